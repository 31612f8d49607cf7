/* SPDX-License-Identifier: MIT
 *
 * write.c - terms -> a folder that PEFT reads, in its layout since 0.19.1.
 *
 * Modules and parameters are targeted by their whole names, because PEFT takes the end of a name for every
 * module that ends so, and only the terms that are here may be made.  Parameters of stacked experts and the
 * weights of routers, which are parameters of modules that are no linear layers, go to target_parameters.
 * The same terms give the same bytes.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peft.h"
#include "weights/checkpoint.h"
#include "weights/file.h"

#define VERSION "0.21.2" /* of PEFT, whose layout this is */

enum { PATH = 4096, NAME = 320 };

typedef struct writer {
    cmoe_ctx *ctx;
    const cmoei_peft_write_options *o;
    const cmoei_lora_term *terms;
    int64_t count;
    cmoe_view *views; /* [2 * count] */
    char (*names)[NAME];
    float *values; /* B of stacked terms, by rank first */
    int64_t views_bytes, names_bytes, values_bytes;
    cmoe_error *err;
} writer;

/* ---- names ----------------------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static bool is_router(const cmoei_lora_term *t)
{
    return !t->stacked && (ends_with(t->module, ".gate") || ends_with(t->module, ".router"));
}

/* Targeted by its weight instead of as a module. */
static bool is_parameter(const writer *w, const cmoei_lora_term *t)
{
    const bool mlp = ends_with(t->module, ".gate_proj") || ends_with(t->module, ".up_proj") ||
                     ends_with(t->module, ".down_proj");
    return is_router(t) || (w->o->experts && mlp && !t->stacked && !strstr(t->module, ".experts."));
}

/* Another parameter of the same experts is targeted as well. */
static bool has_sister(const writer *w, const cmoei_lora_term *t, size_t stem)
{
    for (int64_t i = 0; i < w->count; i++) {
        const cmoei_lora_term *x = &w->terms[i];
        if (x != t && x->stacked && strncmp(x->module, t->module, stem + 1) == 0 &&
            ends_with(x->module, ".down_proj"))
            return true;
    }
    return false;
}

/* The module as tensors call it: of stacked experts without the parameter, nested where there are two. */
static cmoe_status tensor_stem(const writer *w, const cmoei_lora_term *t, char out[NAME])
{
    const char *dot = strrchr(t->module, '.');
    if (!t->stacked) {
        snprintf(out, NAME, "base_model.model.%s", t->module);
        return CMOE_OK;
    }
    const bool up = ends_with(t->module, ".gate_up_proj");
    if (!dot || (!up && !ends_with(t->module, ".down_proj")))
        return cmoei_fail(w->err, CMOE_ERR_ARG,
                          "%s: is not gate_up_proj or down_proj of stacked experts", t->module);
    const size_t stem = (size_t)(dot - t->module);
    snprintf(out, NAME, "base_model.model.%.*s%s", (int)stem, t->module,
             up && has_sister(w, t, stem) ? ".base_layer" : "");
    return CMOE_OK;
}

/* ---- adapter_config.json --------------------------------------------------------------------- */

static json_t *number(double v)
{
    return v == rint(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A module's name as a pattern that fits it alone. */
static void escape(const char *name, char *out)
{
    for (; *name; name++) {
        if (*name == '.') *out++ = '\\';
        *out++ = *name;
    }
    *out = '\0';
}

static void add_term(const writer *w, const char *target, const cmoei_lora_term *t, json_t *ranks,
                     json_t *alphas)
{
    char key[2 * NAME];
    const double r = (double)t->rank, divisor = w->o->rslora ? sqrt(r) : r;
    escape(target, key);
    if (t->rank != w->o->rank) json_object_set_new(ranks, key, json_integer(t->rank));
    if (t->scale != (float)(w->o->alpha / divisor))
        json_object_set_new(alphas, key, number((double)t->scale * divisor));
}

/* Sorted targets of one kind. */
static json_t *list_targets(const writer *w, const char **sorted, char (*own)[NAME],
                            bool parameters, json_t *ranks, json_t *alphas)
{
    int64_t n = 0;
    json_t *list = json_array();
    for (int64_t i = 0; i < w->count; i++) {
        const cmoei_lora_term *t = &w->terms[i];
        if ((t->stacked || is_parameter(w, t)) != parameters) continue;
        snprintf(own[n], NAME, "%s%s", t->module, is_parameter(w, t) ? ".weight" : "");
        add_term(w, own[n], t, ranks, alphas);
        sorted[n] = own[n];
        n++;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_text);
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_string(sorted[i]));
    return list;
}

static json_t *make_config(const writer *w, const char **sorted, char (*own)[NAME])
{
    json_t *root = json_object(), *ranks = json_object(), *alphas = json_object();
    json_object_set_new(root, "peft_type", json_string("LORA"));
    json_object_set_new(root, "task_type", json_string("CAUSAL_LM"));
    json_object_set_new(root, "peft_version", json_string(VERSION));
    json_object_set_new(root, "base_model_name_or_path",
                        w->o->base_model ? json_string(w->o->base_model) : json_null());
    json_object_set_new(root, "inference_mode", json_true());
    json_object_set_new(root, "r", json_integer(w->o->rank));
    json_object_set_new(root, "lora_alpha", number(w->o->alpha));
    json_object_set_new(root, "use_rslora", json_boolean(w->o->rslora));
    json_object_set_new(root, "lora_dropout", json_real(0));
    json_object_set_new(root, "bias", json_string("none"));
    json_object_set_new(root, "fan_in_fan_out", json_false());
    json_object_set_new(root, "init_lora_weights", json_true());
    json_object_set_new(root, "use_dora", json_false());
    json_object_set_new(root, "target_modules", list_targets(w, sorted, own, false, ranks, alphas));
    json_object_set_new(root, "target_parameters",
                        list_targets(w, sorted, own, true, ranks, alphas));
    json_object_set_new(root, "rank_pattern", ranks);
    json_object_set_new(root, "alpha_pattern", alphas);
    return root;
}

static cmoe_status write_json(const writer *w, const char *file, const json_t *root)
{
    const size_t flags = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17);
    const size_t bytes = json_dumpb(root, NULL, 0, flags);
    char *text;
    if (bytes == 0) return cmoei_fail(w->err, CMOE_ERR_MEMORY, "no memory for adapter_config.json");
    CMOEI_TRY(cmoei_alloc(w->ctx, (int64_t)bytes, "adapter_config.json", (void **)&text, w->err));
    (void)json_dumpb(root, text, bytes, flags);
    const cmoe_status status = cmoei_file_write(file, text, (int64_t)bytes, w->err);
    cmoei_free(w->ctx, text, (int64_t)bytes);
    return status;
}

static cmoe_status write_config(const writer *w)
{
    char file[PATH];
    const char **sorted;
    char(*own)[NAME];
    const int64_t bytes = w->count * (int64_t)sizeof *sorted,
                  names = w->count * (int64_t)sizeof *own;
    CMOEI_TRY(cmoei_alloc(w->ctx, bytes, "targets", (void **)&sorted, w->err));
    cmoe_status status = cmoei_alloc(w->ctx, names, "targets", (void **)&own, w->err);
    if (status == CMOE_OK) {
        json_t *root = make_config(w, sorted, own);
        snprintf(file, sizeof file, "%s/adapter_config.json", w->o->dir);
        status = write_json(w, file, root);
        json_decref(root);
        cmoei_free(w->ctx, own, names);
    }
    cmoei_free(w->ctx, sorted, bytes);
    return status;
}

/* ---- adapter_model.safetensors --------------------------------------------------------------- */

/* The row of a file that row n of b is. */
static int64_t file_row(const cmoei_lora_term *t, int64_t n)
{
    const int64_t half = t->outputs / 2;
    if (!t->interleaved) return n;
    return n < half ? 2 * n : 2 * (n - half) + 1;
}

/* b [E, N, r] -> [N, r * E], column p * E + e. */
static void by_rank(const cmoei_lora_term *t, float *out)
{
    for (int64_t e = 0; e < t->experts; e++)
        for (int64_t n = 0; n < t->outputs; n++)
            for (int64_t p = 0; p < t->rank; p++)
                out[(file_row(t, n) * t->rank + p) * t->experts + e] =
                    t->b[(e * t->outputs + n) * t->rank + p];
}

static cmoe_status list_tensors(writer *w)
{
    char stem[NAME];
    float *next = w->values;
    for (int64_t i = 0; i < w->count; i++) {
        const cmoei_lora_term *t = &w->terms[i];
        const float *b = t->b;
        CMOEI_TRY(tensor_stem(w, t, stem));
        if (t->stacked) {
            by_rank(t, next);
            b = next;
            next += t->experts * t->outputs * t->rank;
        }
        const float *data[2] = {t->a, b};
        const int64_t dims[2][2] = {{t->experts * t->rank, t->inputs},
                                    {t->outputs, t->experts * t->rank}};
        for (int32_t k = 0; k < 2; k++) {
            char *name = w->names[2 * i + k];
            const int n = snprintf(name, NAME, "%.290s.lora_%c.weight", stem, "AB"[k]);
            if (n >= NAME || strlen(stem) > 290)
                return cmoei_fail(w->err, CMOE_ERR_ARG, "%s: the name is too long", t->module);
            w->views[2 * i + k] = cmoe_view_2d(data[k], CMOE_F32, dims[k][0], dims[k][1]);
            w->views[2 * i + k].name = name;
        }
    }
    return CMOE_OK;
}

static cmoe_status write_tensors(writer *w)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    char file[PATH];
    w->views_bytes = 2 * w->count * (int64_t)sizeof *w->views;
    w->names_bytes = 2 * w->count * (int64_t)sizeof *w->names;
    for (int64_t i = 0; i < w->count; i++) {
        const cmoei_lora_term *t = &w->terms[i];
        if (t->stacked)
            w->values_bytes += t->experts * t->outputs * t->rank * (int64_t)sizeof(float);
    }
    CMOEI_TRY(cmoei_alloc(w->ctx, w->views_bytes, "tensors", (void **)&w->views, w->err));
    CMOEI_TRY(cmoei_alloc(w->ctx, w->names_bytes, "names", (void **)&w->names, w->err));
    CMOEI_TRY(cmoei_alloc(w->ctx, w->values_bytes, "factors", (void **)&w->values, w->err));
    CMOEI_TRY(list_tensors(w));
    snprintf(file, sizeof file, "%s/adapter_model.safetensors", w->o->dir);
    return cmoe_safetensors_write(file, w->views, 2 * w->count, metadata, w->err);
}

static cmoe_status check_terms(const writer *w)
{
    const cmoei_peft_write_options *o = w->o;
    if (strlen(o->dir) > PATH - 80)
        return cmoei_fail(w->err, CMOE_ERR_IO, "%s: the path is too long",
                          cmoei_path_shown(o->dir).text);
    if (o->rank < 1 || !isfinite(o->alpha))
        return cmoei_fail(w->err, CMOE_ERR_RANGE, "rank = %lld, alpha = %g, want 1 or more, finite",
                          (long long)o->rank, o->alpha);
    if (w->count < 1) return cmoei_fail(w->err, CMOE_ERR_ARG, "an adapter without terms");
    for (int64_t i = 0; i < w->count; i++) {
        const cmoei_lora_term *t = &w->terms[i];
        if (t->rank < 1 || t->experts < 1 || t->inputs < 1 || t->outputs < 1 || !t->a || !t->b ||
            !isfinite(t->scale))
            return cmoei_fail(w->err, CMOE_ERR_ARG,
                              "terms[%lld] %s: sizes, factors or scale are missing", (long long)i,
                              t->module);
        if (!t->stacked && t->experts != 1)
            return cmoei_fail(w->err, CMOE_ERR_ARG, "terms[%lld] %s: %lld experts, want 1",
                              (long long)i, t->module, (long long)t->experts);
    }
    return CMOE_OK;
}

cmoe_status cmoei_peft_write(cmoe_ctx *ctx, const cmoei_peft_write_options *o,
                             const cmoei_lora_term *terms, int64_t count, cmoe_error *err)
{
    writer w = {.ctx = ctx, .o = o, .terms = terms, .count = count, .err = err};
    CMOEI_TRY(check_terms(&w));
    cmoe_status status = write_tensors(&w);
    if (status == CMOE_OK) status = write_config(&w);
    cmoei_free(ctx, w.views, w.views ? w.views_bytes : 0);
    cmoei_free(ctx, w.names, w.names ? w.names_bytes : 0);
    cmoei_free(ctx, w.values, w.values ? w.values_bytes : 0);
    return status;
}
