/* SPDX-License-Identifier: MIT
 *
 * trainer_files.c - a training on disk: checkpoints, and models and adapters that come out.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint.h"
#include "lora/peft.h"
#include "models/adapt.h"
#include "models/resolve.h"
#include "models/text.h"
#include "targets.h"
#include "trainer.h"
#include "weights/file.h"

/* ---- checkpoints ------------------------------------------------------------------------------- */

void cmoei_trainer_key(const cmoe_trainer *t, char *key, size_t size)
{
    enum { SHORT = 512 };
    const cmoe_train_options *o = &t->o;
    const char *targets = o->targets ? o->targets : "-";
    const int64_t bytes = (int64_t)strlen(targets);
    char sum[24];
    /* A list that is longer than the key is in it as a sum. */
    snprintf(sum, sizeof sum, "%016" PRIx64, cmoei_text_sum(targets, bytes));
    snprintf(
        key, size,
        "%s; config %016" PRIx64 "; %s frozen %s what %d; objective %d block %" PRId64
        "; steps %" PRId64 " units %" PRId64 " sequences %" PRId64 " length %" PRId64
        "; optimizer %d schedule %d lr %.17g to %.17g warmup %" PRId64 " cooldown %" PRId64
        " betas %.17g %.17g eps %.17g decay %.17g momentum %.17g clip %.17g; balance %.9g z %.9g "
        "bias %.9g dropout %.9g; seed %" PRIu64 "; lora %s rank %" PRId64 " alpha %.17g rs %d",
        t->d.arch->type, cmoei_text_sum(t->config, t->config_bytes), cmoe_dtype_name(o->format),
        o->frozen ? cmoe_dtype_name(o->frozen) : "-", o->what, o->objective, o->block, o->steps,
        o->units, o->sequences, o->length, o->optimizer, o->schedule, o->lr, o->final_lr, o->warmup,
        o->cooldown, o->beta1, o->beta2, o->eps, o->weight_decay, o->momentum, o->clip,
        (double)o->balance, (double)o->z_loss, (double)o->bias_rate, (double)o->dropout, o->seed,
        bytes < SHORT ? targets : sum, o->rank, o->alpha, o->rslora);
    /* That of an adapter to go on with is not in the options. */
    const size_t used = strlen(key);
    if (t->params.lora)
        snprintf(key + used, size - used, " scale %.9g", (double)t->params.lora_scale);
}

typedef struct arrays {
    cmoei_checkpoint_array *list;
    char (*names)[208];
    int64_t count, list_bytes, names_bytes;
} arrays;

static void add_array(arrays *a, const char *prefix, const char *name, float *data, int64_t count,
                      bool state)
{
    if (!data) return;
    char *own = a->names[a->count];
    snprintf(own, sizeof a->names[0], "%s%s", prefix, name);
    a->list[a->count++] =
        (cmoei_checkpoint_array){.name = own, .data = data, .count = count, .state = state};
}

static cmoe_status list_arrays(const cmoe_trainer *t, arrays *a, cmoe_error *err)
{
    const int64_t most = 3 * t->trained_count + t->d.layers;
    a->list_bytes = most * (int64_t)sizeof *a->list;
    a->names_bytes = most * (int64_t)sizeof *a->names;
    CMOEI_TRY(cmoei_alloc(t->ctx, a->list_bytes, "checkpoint", (void **)&a->list, err));
    CMOEI_TRY(cmoei_alloc(t->ctx, a->names_bytes, "checkpoint", (void **)&a->names, err));
    for (int64_t i = 0; i < t->trained_count; i++) {
        const cmoei_trained *x = &t->trained[i];
        const int64_t n = x->rows * x->cols;
        add_array(a, "", x->name, x->value, n, false);
        add_array(a, "m:", x->name, x->m, n, true);
        add_array(a, "v:", x->name, x->v, n, true);
    }
    for (int64_t i = 0; i < t->d.layers; i++) {
        char name[64];
        snprintf(name, sizeof name, "layers.%" PRId64 ".choice_bias", i);
        add_array(a, "", name, t->params.layer[i].choice_bias, t->d.layer[i].experts, false);
    }
    return CMOE_OK;
}

static void free_arrays(const cmoe_trainer *t, arrays *a)
{
    cmoei_free(t->ctx, a->list, a->list ? a->list_bytes : 0);
    cmoei_free(t->ctx, a->names, a->names ? a->names_bytes : 0);
}

enum { KEY = 1536 };

cmoe_status cmoe_trainer_save(const cmoe_trainer *t, const char *dir, int64_t keep,
                              const char *note, cmoe_error *err)
{
    char key[KEY];
    arrays a = {0};
    if (!t || !dir) return cmoei_fail(err, CMOE_ERR_ARG, "save: %s is NULL", t ? "dir" : "trainer");
    if (keep < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "keep = %" PRId64 ", want at least 1", keep);
    cmoei_trainer_key(t, key, sizeof key);
    cmoe_status status = list_arrays(t, &a, err);
    const cmoei_checkpoint_write w = {dir, t->step, key, note, keep};
    if (status == CMOE_OK) status = cmoei_checkpoint_save(t->ctx, &w, a.list, a.count, err);
    free_arrays(t, &a);
    return status;
}

cmoe_status cmoe_trainer_resume(cmoe_trainer *t, const char *dir, int64_t *step, cmoe_error *err)
{
    char key[KEY];
    arrays a = {0};
    int64_t found = 0;
    if (!t || !dir || !step)
        return cmoei_fail(err, CMOE_ERR_ARG, "resume: %s is NULL",
                          !t     ? "trainer"
                          : !dir ? "dir"
                                 : "step");
    cmoei_trainer_key(t, key, sizeof key);
    cmoe_status status = list_arrays(t, &a, err);
    if (status == CMOE_OK)
        status = cmoei_checkpoint_load(t->ctx, dir, key, a.list, a.count, &found, err);
    free_arrays(t, &a);
    CMOEI_TRY(status);
    *step = found;
    if (found > 0) t->step = found;
    /* Values may also be those of a checkpoint before the first step. */
    return cmoei_params_fill(&t->params, t->stream, false, err);
}

/* ---- a model ----------------------------------------------------------------------------------- */

typedef struct model_out {
    const cmoe_trainer *t;
    cmoe_view *views;
    char (*names)[CMOEI_NAME];
    char *values; /* rounded */
    int64_t count, most, used, value_bytes;
    int32_t dtype;
    bool dry;
    cmoe_error *err;
} model_out;

static cmoe_status add_role(model_out *o, int64_t layer, cmoei_role role, int64_t expert)
{
    const cmoei_params *p = &o->t->params;
    cmoe_view v = cmoei_params_role(p, layer, role, expert);
    const cmoei_match m = {.role = role, .layer = layer, .expert = expert};
    if (!cmoei_given(&v)) return CMOE_OK;
    const int64_t n = cmoei_elements(&v);
    if (o->dry) {
        o->most++;
        o->value_bytes += cmoei_round_up(n * cmoe_dtype_bytes(o->dtype), CMOEI_ALIGN);
        return CMOE_OK;
    }
    char *name = o->names[o->count];
    if (!cmoei_match_fill(p->d, &m, name))
        return cmoei_fail(o->err, CMOE_ERR_UNSUPPORTED,
                          "%s: files of this type keep all experts in one tensor, which is not "
                          "written yet; train an adapter instead",
                          p->d->arch->type);
    char *out = o->values + o->used;
    cmoei_store_f32(out, o->dtype, 1, v.data, n);
    o->used += cmoei_round_up(n * cmoe_dtype_bytes(o->dtype), CMOEI_ALIGN);
    v.data = out;
    v.dtype = o->dtype;
    v.name = name;
    o->views[o->count++] = v;
    return CMOE_OK;
}

static cmoe_status add_all(model_out *o)
{
    const cmoei_decoder *d = o->t->params.d;
    for (cmoei_role r = 0; r < CMOEI_GLOBAL_ROLES; r++)
        CMOEI_TRY(add_role(o, -1, r, -1));
    for (int64_t i = 0; i < d->layers; i++) {
        for (cmoei_role r = CMOEI_GLOBAL_ROLES; r < CMOEI_LAYER_ROLES; r++)
            CMOEI_TRY(add_role(o, i, r, -1));
        for (int64_t e = 0; e < d->layer[i].experts; e++)
            for (cmoei_role r = CMOEI_LAYER_ROLES; r < CMOEI_ROLES; r++)
                CMOEI_TRY(add_role(o, i, r, e));
    }
    return CMOE_OK;
}

/* Weights that were read from 8 or 4 bits are not written so: config.json must not say they are. */
static cmoe_status write_config(const cmoe_trainer *t, const char *file, cmoe_error *err)
{
    static const char key[] = "quantization_config";
    const size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(17);
    json_t *root = json_loadb(t->config, (size_t)t->config_bytes, 0, NULL); /* was read before */
    json_t *inner = json_object_get(root, "text_config");
    const bool packed = json_object_get(root, key) || json_object_get(inner, key);
    cmoe_status status;
    char *text;
    if (packed) {
        (void)json_object_del(root, key);
        if (inner) (void)json_object_del(inner, key);
        const int64_t bytes = (int64_t)json_dumpb(root, NULL, 0, flags);
        status = cmoei_alloc(t->ctx, bytes, "config.json", (void **)&text, err);
        if (status == CMOE_OK) {
            (void)json_dumpb(root, text, (size_t)bytes, flags);
            status = cmoei_file_write(file, text, bytes, err);
            cmoei_free(t->ctx, text, bytes);
        }
    } else {
        status = cmoei_file_write(file, t->config, t->config_bytes, err);
    }
    json_decref(root);
    return status;
}

static cmoe_status export_model(const cmoe_trainer *t, const char *dir, int32_t dtype,
                                cmoe_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    char file[4160];
    model_out o = {.t = t, .dtype = dtype, .dry = true, .err = err};
    CMOEI_TRY(add_all(&o));
    o.dry = false;
    const int64_t views = o.most * (int64_t)sizeof *o.views,
                  names = o.most * (int64_t)sizeof *o.names;
    cmoe_status status = cmoei_alloc(t->ctx, views, "tensors", (void **)&o.views, err);
    if (status == CMOE_OK) status = cmoei_alloc(t->ctx, names, "names", (void **)&o.names, err);
    if (status == CMOE_OK)
        status = cmoei_alloc(t->ctx, o.value_bytes, "rounded weights", (void **)&o.values, err);
    if (status == CMOE_OK) status = add_all(&o);
    if (status == CMOE_OK) {
        snprintf(file, sizeof file, "%s/model.safetensors", dir);
        status = cmoe_safetensors_write(file, o.views, o.count, metadata, err);
    }
    if (status == CMOE_OK) {
        snprintf(file, sizeof file, "%s/config.json", dir);
        status = write_config(t, file, err);
    }
    cmoei_free(t->ctx, o.views, o.views ? views : 0);
    cmoei_free(t->ctx, o.names, o.names ? names : 0);
    cmoei_free(t->ctx, o.values, o.values ? o.value_bytes : 0);
    return status;
}

/* ---- an adapter -------------------------------------------------------------------------------- */

static bool has_experts(const cmoei_decoder *d)
{
    for (int64_t i = 0; i < d->layers; i++)
        if (d->layer[i].experts > 0) return true;
    return false;
}

static cmoe_status export_adapter(const cmoe_trainer *t, const char *dir, cmoe_error *err)
{
    const cmoei_params *p = &t->params;
    const int64_t most = p->d->layers * CMOEI_W_KINDS * CMOEI_WEIGHT_PARTS;
    cmoei_lora_term *terms;
    int64_t count = 0;
    CMOEI_TRY(cmoei_alloc(t->ctx, most * (int64_t)sizeof *terms, "terms", (void **)&terms, err));
    for (int64_t i = 0; i < p->d->layers; i++)
        for (int32_t k = 0; k < CMOEI_W_KINDS; k++)
            for (int32_t j = 0; j < p->layer[i].weight[k].parts; j++) {
                const cmoei_weight *w = &p->layer[i].weight[k];
                const cmoei_weight_part *part = &w->part[j];
                if (part->rank == 0) continue;
                cmoei_lora_term *x = &terms[count++];
                *x = (cmoei_lora_term){
                    .experts = w->experts,
                    .stacked = part->role == CMOEI_FUSED_GATE_UP || part->role == CMOEI_EXPERT_DOWN,
                    .interleaved = part->role == CMOEI_FUSED_GATE_UP &&
                                   (cmoei_adapt_how(p->d, part->role) & CMOEI_INTERLEAVED),
                    .rank = part->rank,
                    .inputs = w->inputs,
                    .outputs = part->rows,
                    .scale = p->lora_scale,
                    .a = part->a,
                    .b = part->b};
                (void)cmoei_targets_module(p, i, w, j, x->module, sizeof x->module);
            }
    const cmoei_peft_write_options o = {.dir = dir,
                                        .base_model = t->path,
                                        .rank = t->o.rank,
                                        .alpha = t->o.alpha,
                                        .rslora = t->o.rslora,
                                        .experts = has_experts(p->d)};
    const cmoe_status status = cmoei_peft_write(t->ctx, &o, terms, count, err);
    cmoei_free(t->ctx, terms, most * (int64_t)sizeof *terms);
    return status;
}

cmoe_status cmoe_trainer_export(const cmoe_trainer *t, const char *dir, int32_t dtype,
                                cmoe_error *err)
{
    if (!t || !dir)
        return cmoei_fail(err, CMOE_ERR_ARG, "export: %s is NULL", t ? "dir" : "trainer");
    if (dtype != CMOE_F32 && dtype != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "dtype %s (%d), want one of: f32 bf16",
                          cmoe_dtype_name(dtype), dtype);
    if (strlen(dir) > 4000)
        return cmoei_fail(err, CMOE_ERR_IO, "the path is longer than 4000 bytes");
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return cmoei_fail(err, CMOE_ERR_IO, "%s cannot be made: %s", cmoei_path_shown(dir).text,
                          cmoei_errno_text(errno).text);
    return t->params.lora ? export_adapter(t, dir, err) : export_model(t, dir, dtype, err);
}
