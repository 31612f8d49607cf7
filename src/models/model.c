/* SPDX-License-Identifier: MIT
 *
 * model.c - cmoe_model: options, planning, loading, describing.
 *
 * Planning and loading are the same up to the point where memory is taken, so what a plan accepts a
 * load accepts.
 */
#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "adapt.h"
#include "keep.h"
#include "load.h"
#include "text.h"
#include "weights/checkpoint.h"

static const cmoe_model_options defaults = {.size = sizeof defaults};

void cmoe_model_options_default(cmoe_model_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

int64_t cmoe_model_types(void)
{
    int64_t n = 0;
    while (cmoei_archs[n])
        n++;
    return n;
}

const char *cmoe_model_type_name(int64_t i)
{
    return i >= 0 && i < cmoe_model_types() ? cmoei_archs[i]->type : NULL;
}

/* ---- from a path to checked tensors --------------------------------------------------------------- */

typedef struct opened {
    cmoe_ctx *ctx;
    const char *path;
    cmoe_model_options o;
    cmoei_decoder d;
    cmoe_checkpoint *c;
    cmoei_tensors t;
    cmoei_folds folds;
    cmoei_share share;
    int32_t format;
    cmoe_model_info info;
} opened;

static cmoe_status check_options(const cmoe_model_options *o, cmoe_error *err)
{
    if (o->format && o->format != CMOE_F32 && o->format != CMOE_BF16 && o->format != CMOE_I8)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "format %s (%d) not supported, want one of: auto (0) f32 bf16 i8",
                          cmoe_dtype_name(o->format), o->format);
    if (o->mask_block < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "mask_block = %d, want > 0, or 0 for the model's own", o->mask_block);
    if (o->context < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "context = %" PRId64 ", want > 0, or 0 for the model's own", o->context);
    if (o->memory_limit < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "memory_limit = %" PRId64 ", want > 0, or 0 for any",
                          o->memory_limit);
    if (o->first_expert < 0 || o->experts < 0 || o->first_expert > INT64_MAX - o->experts)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "first_expert = %" PRId64 ", experts = %" PRId64 ", want both >= 0",
                          o->first_expert, o->experts);
    if (o->experts == 0 && o->first_expert > 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "first_expert = %" PRId64 " without experts, want how many of them",
                          o->first_expert);
    if (o->tensor_ranks < 0 || o->tensor_rank < 0 ||
        o->tensor_rank >= CMOEI_MAX(o->tensor_ranks, 1))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "tensor_rank = %d of tensor_ranks = %d, want 0 <= rank < ranks",
                          o->tensor_rank, o->tensor_ranks);
    CMOEI_TRY(cmoei_check_flag(o->describe_only, "describe_only", err));
    CMOEI_TRY(cmoei_check_flag(o->cache_read_only, "cache_read_only", err));
    CMOEI_TRY(cmoei_check_flag(o->cache_later, "cache_later", err));
    return cmoei_check_flag(o->keep_page_cache, "keep_page_cache", err);
}

/* What the caller asks of the decoder, against what the model says. */
static cmoe_status apply_options(opened *x, const char *path, cmoe_error *err)
{
    cmoei_decoder *d = &x->d;
    const cmoe_model_options *o = &x->o;
    if (o->mask_block > 0) d->mask = o->mask_block;
    if (o->context > d->context)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "context = %" PRId64 ", want at most %" PRId64
                          " (max_position_embeddings of %s)",
                          o->context, d->context, path);
    if (o->context > 0) d->context = o->context;
    if (d->rope.length == 0) d->rope.length = d->context;
    int64_t most = 0;
    for (int64_t i = 0; i < d->layers; i++)
        most = CMOEI_MAX(most, d->layer[i].experts);
    if (o->experts > 0 && o->first_expert + o->experts > most)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "experts [%" PRId64 ", %" PRId64 "), want some of the model's %" PRId64,
                          o->first_expert, o->first_expert + o->experts, most);
    if (o->tensor_ranks > d->heads)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "tensor_ranks = %d, want at most %" PRId64 " (heads of the model)",
                          o->tensor_ranks, d->heads);
    x->share =
        (cmoei_share){{o->first_expert, o->experts}, o->tensor_rank, CMOEI_MAX(o->tensor_ranks, 1)};
    return CMOE_OK;
}

static void close_all(opened *x)
{
    cmoei_folds_free(&x->folds);
    cmoei_tensors_free(&x->t, x->ctx);
    cmoe_checkpoint_free(x->c);
    cmoei_decoder_close(&x->d, x->ctx);
}

static cmoe_status open_parts(opened *x, const char *path, cmoe_error *err)
{
    CMOEI_TRY(cmoei_decoder_open(&x->d, x->ctx, path, err));
    CMOEI_TRY(apply_options(x, path, err));
    CMOEI_TRY(cmoe_checkpoint_open(&x->c, x->ctx, path, err));
    CMOEI_TRY(cmoei_tensors_resolve(&x->t, x->ctx, &x->d, x->c, err));
    CMOEI_TRY(cmoei_folds_make(&x->folds, x->ctx, &x->d, x->o.adapters, x->o.adapter_scales,
                               x->o.adapter_count, err));
    x->format = x->o.format;
    if (x->format == 0 && x->d.layers > 0)
        x->format = cmoei_tensor_of(&x->t, 0, CMOEI_Q)->dtype == CMOE_F32 ? CMOE_F32 : CMOE_BF16;
    CMOEI_TRY(cmoei_model_measure(x->ctx, &x->t, &x->share, x->format, &x->info, err));
    x->info.file_bytes = cmoe_checkpoint_bytes(x->c);
    if (x->o.memory_limit > 0 && x->info.bytes.total > x->o.memory_limit)
        return cmoei_fail(err, CMOE_ERR_MEMORY,
                          "%s: the weights need %" PRId64 " bytes as %s, want at most %" PRId64
                          " (memory_limit)",
                          path, x->info.bytes.total, cmoe_dtype_name(x->format), x->o.memory_limit);
    return CMOE_OK;
}

static cmoe_status open_all(opened *x, cmoe_ctx *ctx, const char *path,
                            const cmoe_model_options *options, cmoe_error *err)
{
    *x = (opened){.ctx = ctx, .path = path, .o = defaults};
    CMOEI_TRY(cmoei_options_read(&x->o, sizeof x->o, options, "cmoe_model_options", err));
    if (!ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "model: %s is NULL", ctx ? "path" : "ctx");
    CMOEI_TRY(check_options(&x->o, err));
    const cmoe_status status = open_parts(x, path, err);
    if (status != CMOE_OK) close_all(x);
    return status;
}

/* A struct that is filled for the caller.  A size that nobody ever set is mostly a large one. */
static cmoe_status check_filled(const void *at, const char *name, const char *what, cmoe_error *err)
{
    size_t size;
    if (!at) return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL, want a %s", name, what);
    memcpy(&size, at, sizeof size);
    if (size >= sizeof size && size <= 4096) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_ARG, "%s.size = %zu, want sizeof(%s), set before the call",
                      name, size, what);
}

cmoe_status cmoe_model_plan(cmoe_ctx *ctx, const char *path, const cmoe_model_options *options,
                            cmoe_model_info *info, cmoe_error *err)
{
    opened x;
    CMOEI_TRY(check_filled(info, "info", "cmoe_model_info", err));
    CMOEI_TRY(open_all(&x, ctx, path, options, err));
    cmoei_options_write(info, info->size, &x.info, sizeof x.info);
    close_all(&x);
    return CMOE_OK;
}

/* ---- weights go ------------------------------------------------------------------------------------ */

void cmoei_model_free_router(cmoe_model *m, int64_t layer)
{
    for (int32_t r = 0; r < CMOEI_ROUTER_PARTS; r++) {
        cmoei_values *v = &m->layer[layer].router[r];
        cmoei_free(m->ctx, v->values, v->bytes);
        *v = (cmoei_values){0};
    }
}

static void free_mlp(cmoei_mlp *mlp)
{
    if (mlp->experts) {
        cmoe_experts_free(mlp->experts);
        return;
    }
    cmoe_matrix_free(mlp->w13);
    cmoe_matrix_free(mlp->w2);
}

/* All that a load has filled in, as far as it came. */
static void empty(cmoe_model *m)
{
    for (int64_t i = 0; m->layer && i < m->d.layers; i++) {
        cmoei_model_layer *l = &m->layer[i];
        cmoe_layer_free(l->moe);
        cmoei_model_free_router(m, i);
        free_mlp(&l->experts);
        free_mlp(&l->shared);
        free_mlp(&l->dense);
        cmoe_matrix_free(l->qkv);
        cmoe_matrix_free(l->o);
        *l = (cmoei_model_layer){0};
    }
    cmoe_matrix_free(m->head);
    cmoei_free(m->ctx, m->own_embedding, m->embedding_bytes);
    cmoei_free(m->ctx, m->vectors, m->vector_bytes);
    m->head = NULL;
    m->embedding = m->own_embedding = NULL;
    m->vectors = NULL;
    cmoei_tape_close(&m->tape);
}

/* ---- load -------------------------------------------------------------------------------------------- */

/* What another load has kept; nothing, and m as it was, when that is of no use. */
static cmoe_status play(cmoe_model *m, opened *x, cmoe_error *err)
{
    cmoe_error why = {.size = sizeof why};
    cmoe_status status = cmoei_keep_play(m, &x->o, &why);
    if (status == CMOE_OK)
        status = cmoei_model_fill(m, &x->o, x->c, &x->t, &x->folds, &m->tape, &why);
    if (status == CMOE_OK) status = cmoei_tape_end(&m->tape, &why);
    m->info.cached = status == CMOE_OK;
    if (status == CMOE_OK) return status;
    empty(m);
    if (status == CMOE_ERR_FORMAT) cmoei_keep_say(m, "packed weights are made again", &why);
    if (status == CMOE_ERR_FORMAT || status == CMOE_ERR_UNSUPPORTED || status == CMOE_ERR_IO)
        return CMOE_OK;
    return cmoei_fail(err, status, "%s", why.text);
}

/* From the folder of packed weights if they are there, else from the files, and then into the
 * folder. */
static cmoe_status fill(cmoe_model *m, opened *x, cmoe_error *err)
{
    cmoe_error why = {.size = sizeof why};
    m->tape.ctx = x->ctx;
    /* Packed with adapters in them they are of no use to another load. */
    if (!x->o.cache_dir || x->o.adapter_count > 0)
        return cmoei_model_fill(m, &x->o, x->c, &x->t, &x->folds, &m->tape, err);
    CMOEI_TRY(cmoei_keep_open(m, &x->o, x->c, x->path, err));
    CMOEI_TRY(play(m, x, err));
    m->tape.records = !m->info.cached && !x->o.cache_read_only;
    if (!m->info.cached)
        CMOEI_TRY(cmoei_model_fill(m, &x->o, x->c, &x->t, &x->folds, &m->tape, err));
    if (m->tape.records && x->o.cache_later) return CMOE_OK;
    const cmoe_status kept = cmoe_model_keep(m, x->o.progress, x->o.progress_user, &why);
    if (kept == CMOE_ERR_CANCELLED) return cmoei_fail(err, kept, "loading was cancelled");
    if (kept != CMOE_OK) cmoei_keep_say(m, "packed weights are not kept", &why);
    return CMOE_OK;
}

static cmoe_status create(cmoe_model **out, opened *x, cmoe_error *err)
{
    cmoe_model *m;
    CMOEI_TRY(cmoei_alloc(x->ctx, (int64_t)sizeof *m, "model", (void **)&m, err));
    *m = (cmoe_model){
        .ctx = x->ctx, .d = x->d, .share = x->share, .format = x->format, .info = x->info};
    memset(&x->d, 0, sizeof x->d); /* the model owns what the decoder does */
    x->t.decoder = &m->d;
    x->folds.d = &m->d;
    *out = m;
    const int64_t bytes = m->d.layers * (int64_t)sizeof *m->layer;
    CMOEI_TRY(cmoei_alloc(m->ctx, bytes, "layers", (void **)&m->layer, err));
    memset(m->layer, 0, (size_t)bytes);
    return x->o.describe_only ? CMOE_OK : fill(m, x, err);
}

cmoe_status cmoe_model_load(cmoe_model **out, cmoe_ctx *ctx, const char *path,
                            const cmoe_model_options *options, cmoe_error *err)
{
    opened x;
    cmoe_model *m = NULL;
    if (!out) return cmoei_fail(err, CMOE_ERR_ARG, "model: out is NULL");
    CMOEI_TRY(open_all(&x, ctx, path, options, err));
    const cmoe_status status = create(&m, &x, err);
    close_all(&x);
    if (status != CMOE_OK) {
        cmoe_model_free(m);
        return status;
    }
    *out = m;
    return CMOE_OK;
}

void cmoe_model_free(cmoe_model *m)
{
    if (!m) return;
    empty(m);
    cmoei_keep_close(m);
    if (m->layer) cmoei_free(m->ctx, m->layer, m->d.layers * (int64_t)sizeof *m->layer);
    cmoei_decoder_close(&m->d, m->ctx);
    cmoei_free(m->ctx, m, (int64_t)sizeof *m);
}

/* ---- describe ----------------------------------------------------------------------------------------- */

void cmoe_model_info_default(cmoe_model_info *info, size_t size)
{
    const cmoe_model_info d = {.size = sizeof d};
    cmoei_options_write(info, size, &d, sizeof d);
}

void cmoe_model_layer_default(cmoe_model_layer *layer, size_t size)
{
    const cmoe_model_layer d = {.size = sizeof d};
    cmoei_options_write(layer, size, &d, sizeof d);
}

cmoe_status cmoe_model_describe(const cmoe_model *m, cmoe_model_info *info, cmoe_error *err)
{
    if (!m) return cmoei_fail(err, CMOE_ERR_ARG, "model_describe: model is NULL");
    CMOEI_TRY(check_filled(info, "info", "cmoe_model_info", err));
    cmoei_options_write(info, info->size, &m->info, sizeof m->info);
    return CMOE_OK;
}

cmoe_status cmoe_model_layer_describe(const cmoe_model *m, int64_t layer, cmoe_model_layer *out,
                                      cmoe_error *err)
{
    if (!m) return cmoei_fail(err, CMOE_ERR_ARG, "model_layer_describe: model is NULL");
    CMOEI_TRY(check_filled(out, "out", "cmoe_model_layer", err));
    if (layer < 0 || layer >= m->d.layers)
        return cmoei_fail(err, CMOE_ERR_RANGE, "layer = %" PRId64 ", want 0 <= layer < %" PRId64,
                          layer, m->d.layers);
    const cmoei_layer_shape *l = &m->d.layer[layer];
    const cmoe_model_layer described = {.size = sizeof described,
                                        .experts = l->experts,
                                        .topk = l->topk,
                                        .inter = l->inter,
                                        .shared_inter = l->shared_inter,
                                        .window = l->window,
                                        .mixer = "attention"};
    cmoei_options_write(out, out->size, &described, sizeof described);
    return CMOE_OK;
}
