/* SPDX-License-Identifier: MIT
 *
 * adapter.c - a folder as PEFT saves it -> low-rank terms by module.
 *
 * Every tensor is the A or the B of a module, base_model.model.MODULE.lora_A.weight, and both must be there.
 * Stacked experts are one module, "...experts", with up to two parameters: gate_up_proj and down_proj.  When
 * both have terms, that of gate_up_proj is called experts.base_layer and that of down_proj experts; when one
 * has, it is called experts whichever it is, and only target_parameters tells.  Row e * r + p of A and column
 * p * E + e of B belong to expert e.
 *
 * Up to PEFT 0.19.0 A had the outputs and B the inputs of a stacked parameter.  Which it is may only come
 * out when the adapter meets a model, so such terms are kept both ways.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "peft.h"
#include "weights/checkpoint.h"
#include "weights/file.h"
#include "weights/json.h"

enum { CONFIG_MAX = 16 << 20, MOST_PARAMETERS = 2, PATH = 4096 };

static const char prefix[] = "base_model.model.", nested[] = ".base_layer";

/* Parameters of a module of stacked experts, innermost first: in the order in which the module has
 * them. */
static const char *const stacked[MOST_PARAMETERS] = {"gate_up_proj", "down_proj"};

typedef struct reader {
    cmoe_adapter *a;
    cmoei_adapter_config config;
    cmoe_checkpoint *files;
    float *next; /* values that are free; NULL: they are counted */
    int64_t used;
    int64_t *layers;
    cmoe_error *err;
} reader;

/* ---- names ----------------------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Cuts `end` off, where it stands. */
static bool cut(char *name, const char *end)
{
    if (!ends_with(name, end)) return false;
    name[strlen(name) - strlen(end)] = '\0';
    return true;
}

/* What is wrong with a tensor that is neither A nor B. */
static cmoe_status refuse_tensor(const cmoe_tensor *x, cmoe_error *err)
{
    static const struct {
        const char *part, *what;
    } kinds[] = {
        {"lora_magnitude_vector", "is of DoRA, which is not supported"},
        {"lora_embedding_", "is of an embedding, for which terms are not supported"},
        {"modules_to_save", "is a whole module, which is not supported beside low-rank terms"},
        {".bias", "is a bias, which is not supported beside low-rank terms"},
        {"lora_", "is not the A or B of a module, want base_model.model.MODULE.lora_A.weight"},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(kinds); i++)
        if (strstr(x->name, kinds[i].part))
            return cmoei_fail(err,
                              i + 1 < CMOEI_COUNT(kinds) ? CMOE_ERR_UNSUPPORTED : CMOE_ERR_FORMAT,
                              "%s: %.200s %s", x->file, x->name, kinds[i].what);
    return cmoei_fail(
        err, CMOE_ERR_FORMAT,
        "%s: %.200s belongs to no adapter, want base_model.model.MODULE.lora_A.weight", x->file,
        x->name);
}

/* The module of a tensor, nesting and all; `b`: it is the B. */
static cmoe_status read_name(const cmoe_tensor *x, char module[256], bool *b, cmoe_error *err)
{
    const size_t start = sizeof prefix - 1;
    if (strncmp(x->name, prefix, start) != 0 ||
        (!ends_with(x->name, ".lora_A.weight") && !ends_with(x->name, ".lora_B.weight")))
        return refuse_tensor(x, err);
    const size_t n = strlen(x->name) - start - strlen(".lora_A.weight");
    if (n > 255)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: the name of %.100s... is too long", x->file,
                          x->name);
    memcpy(module, x->name + start, n);
    module[n] = '\0';
    *b = ends_with(x->name, ".lora_B.weight");
    return CMOE_OK;
}

static int64_t find(const reader *r, const char *module, int32_t nesting, char letter)
{
    char name[512];
    size_t used = (size_t)snprintf(name, sizeof name, "%s%s", prefix, module);
    for (int32_t i = 0; i < nesting; i++)
        used += (size_t)snprintf(name + used, sizeof name - used, "%s", nested);
    snprintf(name + used, sizeof name - used, ".lora_%c.weight", letter);
    return cmoe_checkpoint_find(r->files, name);
}

/* The layer of "...layers.N..."; -1: none. */
static int64_t layer_of(const char *module)
{
    const char *at = strstr(module, "layers.");
    if (!at || at[7] < '0' || at[7] > '9') return -1;
    return strtol(at + 7, NULL, 10);
}

/* ---- which parameter of stacked experts ------------------------------------------------------ */

/* `module` without nesting becomes the parameter's name: "...experts.down_proj". */
static cmoe_status name_parameter(const reader *r, const char *file, char module[256],
                                  int32_t nesting)
{
    char full[MOST_PARAMETERS][288];
    int32_t targeted = 0, there = 0;
    for (int32_t i = 0; i < MOST_PARAMETERS; i++) {
        snprintf(full[targeted], sizeof full[0], "%s.%s", module, stacked[i]);
        targeted += cmoei_adapter_config_targets(&r->config, full[targeted]);
    }
    for (int32_t i = 0; i <= MOST_PARAMETERS; i++)
        there += find(r, module, i, 'A') >= 0;
    if (targeted != there || nesting >= targeted)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "%s: %s has %d low-rank terms, but target_parameters of "
                          "adapter_config.json names %d of its gate_up_proj and down_proj",
                          file, module, there, targeted);
    const char *name = full[targeted - 1 - nesting];
    if (strlen(name) > 255)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: the name of %.100s... is too long", file,
                          module);
    memcpy(module, name, strlen(name) + 1);
    return CMOE_OK;
}

/* ---- values ---------------------------------------------------------------------------------- */

static cmoe_status check_tensor(const reader *r, const cmoe_tensor *x)
{
    if (x->dtype != CMOE_F32 && x->dtype != CMOE_F16 && x->dtype != CMOE_BF16)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "%s: %.200s has the format %.20s, want F32, F16 or BF16", x->file,
                          x->name, x->stored);
    if (x->rank == 2 && x->dims[0] > 0 && x->dims[1] > 0) return CMOE_OK;
    return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                      "%s: %.200s has %d dimensions, want 2, none of them 0", x->file, x->name,
                      x->rank);
}

static float value_at(const cmoe_tensor *x, int64_t row, int64_t col)
{
    float v;
    const int64_t at = (row * x->dims[1] + col) * cmoe_dtype_bytes(x->dtype);
    cmoei_load_f32(&v, (const char *)x->data + at, x->dtype, 1, 1);
    return v;
}

/* A [r * E, K]: [E, r, K] as it is, or exchanged [E, K, r]. */
static void read_a(const cmoe_tensor *x, int64_t experts, bool exchanged, float *out)
{
    const int64_t K = x->dims[1], r = x->dims[0] / experts;
    for (int64_t row = 0; row < x->dims[0]; row++) {
        float *to = out + (exchanged ? row / r * K * r + row % r : row * K);
        if (!exchanged)
            cmoei_load_f32(to, (const char *)x->data + row * K * cmoe_dtype_bytes(x->dtype),
                           x->dtype, 1, K);
        for (int64_t k = 0; exchanged && k < K; k++)
            to[k * r] = value_at(x, row, k);
    }
}

/* B [N, r * E]: [E, N, r], or exchanged [E, r, N]. */
static void read_b(const cmoe_tensor *x, int64_t experts, bool exchanged, float *out)
{
    const int64_t N = x->dims[0], r = x->dims[1] / experts;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t c = 0; c < x->dims[1]; c++) {
            const int64_t p = c / experts, e = c % experts;
            out[e * N * r + (exchanged ? p * N + n : n * r + p)] = value_at(x, n, c);
        }
    }
}

static float *take(reader *r, int64_t n)
{
    float *out = r->next;
    r->used += n;
    if (out) r->next += n;
    return out;
}

static void read_values(reader *r, const cmoe_tensor *a, const cmoe_tensor *b, cmoei_lora_term *t)
{
    const int64_t n = a->dims[0] * a->dims[1], m = b->dims[0] * b->dims[1];
    const bool both = t->stacked && r->a->info.layout != CMOE_PEFT_SINCE_0_19;
    float *own_a = take(r, n), *own_b = take(r, m);
    float *other_a = both ? take(r, m) : NULL, *other_b = both ? take(r, n) : NULL;
    t->a = own_a;
    t->b = own_b;
    t->exchanged_a = other_a;
    t->exchanged_b = other_b;
    if (!own_a) return;
    read_a(a, t->experts, false, own_a);
    read_b(b, t->experts, false, own_b);
    if (!both) return;
    read_b(b, t->experts, true, other_a);
    read_a(a, t->experts, true, other_b);
}

/* ---- a term ---------------------------------------------------------------------------------- */

/* The ranks of A and B against each other and against what the config says; sets rank, scale, sizes. */
static cmoe_status check_rank(const reader *r, const cmoe_tensor *a, const cmoe_tensor *b,
                              const char *name, cmoei_lora_term *t)
{
    double alpha;
    int64_t rank;
    CMOEI_TRY(cmoei_adapter_config_rank(&r->config, name, &rank, &alpha, r->err));
    if (a->dims[0] != b->dims[1])
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "%s: %s: A [%" PRId64 ", %" PRId64 "] and B [%" PRId64 ", %" PRId64
                          "] are of different ranks",
                          a->file, t->module, a->dims[0], a->dims[1], b->dims[0], b->dims[1]);
    if (t->stacked ? a->dims[0] % rank != 0 : a->dims[0] != rank)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "%s: %s has A [%" PRId64 ", %" PRId64
                          "], but adapter_config.json says rank %" PRId64 "%s",
                          a->file, t->module, a->dims[0], a->dims[1], rank,
                          t->stacked ? ", want a multiple of it" : "");
    t->experts = t->stacked ? a->dims[0] / rank : 1;
    t->rank = rank;
    t->inputs = a->dims[1];
    t->outputs = b->dims[0];
    t->scale = (float)(alpha / (r->config.rslora ? sqrt((double)rank) : (double)rank));
    return CMOE_OK;
}

static cmoe_status read_term(reader *r, int64_t i, cmoei_lora_term *t)
{
    char name[288];
    int32_t nesting = 0;
    bool is_b;
    cmoe_tensor a = {.size = sizeof a}, b = {.size = sizeof b};
    *t = (cmoei_lora_term){0};
    CMOEI_TRY(cmoe_checkpoint_tensor(r->files, i, &a, r->err));
    CMOEI_TRY(read_name(&a, t->module, &is_b, r->err));
    while (cut(t->module, nested))
        nesting++;
    const int64_t partner = find(r, t->module, nesting, 'B');
    if (partner < 0)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %.200s is there without its lora_B", a.file,
                          a.name);
    CMOEI_TRY(cmoe_checkpoint_tensor(r->files, partner, &b, r->err));
    CMOEI_TRY(check_tensor(r, &a));
    CMOEI_TRY(check_tensor(r, &b));
    t->stacked = ends_with(t->module, ".experts") || !strcmp(t->module, "experts");
    if (!t->stacked && nesting > 0)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %.200s: only stacked experts are nested",
                          a.file, a.name);
    if (t->stacked) CMOEI_TRY(name_parameter(r, a.file, t->module, nesting));
    snprintf(name, sizeof name, "%s.weight", t->module);
    if (t->stacked || !cmoei_adapter_config_targets(&r->config, name))
        snprintf(name, sizeof name, "%s", t->module);
    CMOEI_TRY(check_rank(r, &a, &b, name, t));
    read_values(r, &a, &b, t);
    return CMOE_OK;
}

/* Whether tensor i is an A, which makes a term; a B must have one. */
static cmoe_status is_term(const reader *r, int64_t i, bool *yes)
{
    char module[256];
    bool b;
    int32_t nesting = 0;
    cmoe_tensor x = {.size = sizeof x};
    CMOEI_TRY(cmoe_checkpoint_tensor(r->files, i, &x, r->err));
    CMOEI_TRY(read_name(&x, module, &b, r->err));
    while (cut(module, nested))
        nesting++;
    *yes = !b;
    if (!b || find(r, module, nesting, 'A') >= 0) return CMOE_OK;
    return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %.200s is there without its lora_A", x.file,
                      x.name);
}

/* All terms; the first time only their values are counted. */
static cmoe_status read_terms(reader *r)
{
    cmoe_adapter *a = r->a;
    int64_t at = 0;
    r->used = 0;
    for (int64_t i = 0; i < cmoe_checkpoint_count(r->files); i++) {
        bool yes;
        CMOEI_TRY(is_term(r, i, &yes));
        if (yes) CMOEI_TRY(read_term(r, i, &a->terms[at++]));
    }
    a->count = at;
    if (at > 0) return CMOE_OK;
    return cmoei_fail(r->err, CMOE_ERR_FORMAT, "adapter_model.safetensors: has no tensors");
}

/* ---- what it is ------------------------------------------------------------------------------ */

static int by_module(const void *a, const void *b)
{
    const cmoei_lora_term *x = a, *y = b;
    return strcmp(x->module, y->module);
}

static int by_number(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static cmoe_status describe(reader *r)
{
    cmoe_adapter *a = r->a;
    cmoe_adapter_info *info = &a->info;
    int64_t *layers, count = 0;
    const int64_t bytes = a->count * (int64_t)sizeof *layers;
    CMOEI_TRY(cmoei_alloc(a->ctx, bytes, "layers", (void **)&layers, r->err));
    for (int64_t i = 0; i < a->count; i++) {
        const cmoei_lora_term *t = &a->terms[i];
        info->rank = CMOEI_MAX(info->rank, t->rank);
        info->parameters += t->experts * t->rank * (t->inputs + t->outputs);
        info->experts |= strstr(t->module, ".experts.") != NULL;
        info->attention |= strstr(t->module, "attn.") != NULL;
        info->router |= ends_with(t->module, ".gate") || strstr(t->module, ".router") != NULL ||
                        ends_with(t->module, ".gate.wg");
        layers[i] = layer_of(t->module);
    }
    qsort(layers, (size_t)a->count, sizeof *layers, by_number);
    for (int64_t i = 0; i < a->count; i++)
        count += layers[i] >= 0 && (i == 0 || layers[i] != layers[i - 1]);
    info->layers = count;
    cmoei_free(a->ctx, layers, bytes);
    return CMOE_OK;
}

/* ---- open ------------------------------------------------------------------------------------ */

/* Two names in a folder that share an end: "adapter_config.json". */
static cmoe_status path_of(char out[PATH], const char *path, const char *name, cmoe_error *err)
{
    const int n = snprintf(out, PATH, "%s/%s", path, name);
    if (n > 0 && n < PATH) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_IO, "%s: the path is too long", cmoei_path_shown(path).text);
}

static cmoe_status read_config(reader *r, const char *path)
{
    char file[PATH];
    int fd;
    int64_t bytes;
    void *text;
    CMOEI_TRY(path_of(file, path, "adapter_config.json", r->err));
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, file, "adapter_config.json",
                              ", want a folder that PEFT has saved", &fd, &bytes, r->err));
    cmoe_status status = CMOE_OK;
    if (bytes > CONFIG_MAX)
        status = cmoei_fail(r->err, CMOE_ERR_FORMAT,
                            "adapter_config.json: has %" PRId64 " bytes, want at most %d", bytes,
                            CONFIG_MAX);
    if (status == CMOE_OK)
        status = cmoei_alloc(r->a->ctx, bytes, "adapter_config.json", &text, r->err);
    if (status == CMOE_OK) {
        status = cmoei_file_read(fd, "adapter_config.json", text, bytes, 0, r->err);
        if (status == CMOE_OK)
            status = cmoei_adapter_config_read(&r->config, r->a->ctx, text, bytes, r->err);
        cmoei_free(r->a->ctx, text, bytes);
    }
    close(fd);
    return status;
}

static cmoe_status open_tensors(reader *r, const char *path)
{
    char file[PATH];
    CMOEI_TRY(path_of(file, path, "adapter_model.safetensors", r->err));
    if (access(file, F_OK) != 0) {
        CMOEI_TRY(path_of(file, path, "adapter_model.bin", r->err));
        if (access(file, F_OK) == 0)
            return cmoei_fail(r->err, CMOE_ERR_UNSUPPORTED,
                              "adapter_model.bin: pickled files run programs when they are read, "
                              "want adapter_model.safetensors");
        CMOEI_TRY(path_of(file, path, "adapter_model.safetensors", r->err));
    }
    return cmoe_checkpoint_open(&r->files, r->a->ctx, file, r->err);
}

static cmoe_status read_all(reader *r, const char *path, int32_t layout)
{
    cmoe_adapter *a = r->a;
    CMOEI_TRY(read_config(r, path));
    a->info.layout = layout ? layout : r->config.layout;
    snprintf(a->base, sizeof a->base, "%s", r->config.base);
    CMOEI_TRY(open_tensors(r, path));
    a->info.tensors = cmoe_checkpoint_count(r->files);
    a->terms_bytes = a->info.tensors * (int64_t)sizeof *a->terms;
    CMOEI_TRY(cmoei_alloc(a->ctx, a->terms_bytes, "terms", (void **)&a->terms, r->err));
    CMOEI_TRY(read_terms(r));
    a->values_bytes = r->used * (int64_t)sizeof *a->values;
    CMOEI_TRY(cmoei_alloc(a->ctx, a->values_bytes, "adapter", (void **)&a->values, r->err));
    r->next = a->values;
    CMOEI_TRY(read_terms(r));
    qsort(a->terms, (size_t)a->count, sizeof *a->terms, by_module);
    return describe(r);
}

cmoe_status cmoe_adapter_open(cmoe_adapter **out, cmoe_ctx *ctx, const char *path, int32_t layout,
                              cmoe_error *err)
{
    cmoe_adapter *a;
    if (!out || !ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "adapter: %s is NULL",
                          !out   ? "out"
                          : !ctx ? "ctx"
                                 : "path");
    if (layout < CMOE_PEFT_AUTO || layout > CMOE_PEFT_SINCE_0_19)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "layout = %d, want 0 (auto), 1 (before PEFT 0.19.1) or 2 (since)",
                          layout);
    CMOEI_TRY(cmoei_engine_check(err));
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *a, "adapter", (void **)&a, err));
    *a = (cmoe_adapter){.ctx = ctx, .info = {.size = sizeof a->info}};
    snprintf(a->path, sizeof a->path, "%s", cmoei_path_shown(path).text);
    a->info.base = a->base;
    reader r = {.a = a, .err = err};
    const cmoe_status status = read_all(&r, path, layout);
    if (r.config.root) cmoei_adapter_config_close(&r.config);
    cmoe_checkpoint_free(r.files);
    if (status != CMOE_OK) {
        cmoe_adapter_free(a);
        return status;
    }
    *out = a;
    return CMOE_OK;
}

void cmoe_adapter_free(cmoe_adapter *a)
{
    if (!a) return;
    cmoei_free(a->ctx, a->terms, a->terms ? a->terms_bytes : 0);
    cmoei_free(a->ctx, a->values, a->values ? a->values_bytes : 0);
    cmoei_free(a->ctx, a, (int64_t)sizeof *a);
}

cmoe_status cmoe_adapter_describe(const cmoe_adapter *a, cmoe_adapter_info *info, cmoe_error *err)
{
    if (!a || !info)
        return cmoei_fail(err, CMOE_ERR_ARG, "adapter_describe: %s is NULL",
                          a ? "info" : "adapter");
    if (info->size < sizeof info->size || info->size > 4096)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "info.size = %zu, want sizeof(cmoe_adapter_info), set before the call",
                          info->size);
    cmoei_options_write(info, info->size, &a->info, sizeof a->info);
    return CMOE_OK;
}

/* ---- layouts --------------------------------------------------------------------------------- */

int32_t cmoei_lora_fits(const cmoei_lora_term *t, int64_t experts, int64_t outputs, int64_t inputs)
{
    int32_t fits = 0;
    if (t->experts != experts) return 0;
    if (t->outputs == outputs && t->inputs == inputs) fits |= CMOEI_LORA_FITS_NEW;
    if (t->stacked ? t->outputs == inputs && t->inputs == outputs : fits != 0)
        fits |= CMOEI_LORA_FITS_OLD;
    return fits;
}

cmoe_status cmoei_lora_orient(const cmoe_adapter *a, const cmoei_lora_term *t, int32_t layout,
                              int64_t experts, int64_t outputs, int64_t inputs,
                              cmoei_lora_term *out, cmoe_error *err)
{
    const bool old = layout == CMOE_PEFT_BEFORE_0_19 && t->stacked;
    const int32_t fits = cmoei_lora_fits(t, experts, outputs, inputs);
    if (fits & (old ? CMOEI_LORA_FITS_OLD : CMOEI_LORA_FITS_NEW)) {
        const cmoei_lora_term from = *t; /* which `out` may be */
        *out = from;
        if (!old) return CMOE_OK;
        out->inputs = from.outputs;
        out->outputs = from.inputs;
        out->a = from.exchanged_a;
        out->b = from.exchanged_b;
        return CMOE_OK;
    }
    char of[48] = "", want[48] = "";
    if (t->stacked) {
        snprintf(of, sizeof of, "%" PRId64 " experts of ", t->experts);
        snprintf(want, sizeof want, "%" PRId64 " experts of ", experts);
    }
    return cmoei_fail(err, CMOE_ERR_FORMAT,
                      "%s: %s is for %s[%" PRId64 ", %" PRId64 "]%s, the model has %s[%" PRId64
                      ", %" PRId64 "]: an adapter for another model%s",
                      a->path, t->module, of, old ? t->inputs : t->outputs,
                      old ? t->outputs : t->inputs, old ? " (layout before PEFT 0.19.1)" : "", want,
                      outputs, inputs, fits ? ", or of another layout of PEFT" : "");
}
