/* SPDX-License-Identifier: MIT
 *
 * measure.c - how much memory a model takes and how much of it a token reads, before any is taken.
 *
 * The same shapes that load.c allocates, so that a plan and a loaded model agree.
 */
#include "model.h"

typedef struct sizes {
    cmoe_ctx *ctx;
    const cmoei_decoder *d;
    const cmoei_share *share;
    int32_t format;
    cmoe_error *err;
} sizes;

static cmoe_status matrix(const sizes *z, const char *name, int64_t experts, bool gated,
                          int64_t outputs, int64_t inputs, int32_t format, int64_t *bytes)
{
    const int64_t dims[] = {experts, outputs, inputs};
    return cmoei_matrix_size(z->ctx, format, gated, dims, name, bytes, z->err);
}

/* `experts` gated MLPs of width inter. */
static cmoe_status mlp(const sizes *z, int64_t experts, int64_t inter, int64_t *bytes)
{
    int64_t up, down;
    CMOEI_TRY(matrix(z, "w13", experts, true, 2 * cmoei_share_of(z->share, inter).count,
                     z->d->hidden, z->format, &up));
    CMOEI_TRY(matrix(z, "w2", experts, false, cmoei_share_of(z->share, z->d->hidden).count, inter,
                     z->format, &down));
    *bytes = up + down;
    return CMOE_OK;
}

static cmoe_status layer(const sizes *z, const cmoei_layer_shape *l, cmoe_model_bytes *b)
{
    const cmoei_decoder *d = z->d;
    cmoei_range queries, keys;
    int64_t qkv, o, one, router;
    cmoei_share_heads(z->share, d, &queries, &keys);
    CMOEI_TRY(matrix(z, "q, k, v", 1, false, (queries.count + 2 * keys.count) * d->head_dim,
                     d->hidden, z->format, &qkv));
    CMOEI_TRY(matrix(z, "o", 1, false, cmoei_share_of(z->share, d->hidden).count,
                     d->heads * d->head_dim, z->format, &o));
    b->attention += qkv + o;
    b->per_token += qkv + o;
    if (l->experts == 0) {
        CMOEI_TRY(mlp(z, 1, l->inter, &one));
        b->dense += one;
        b->per_token += one;
        return CMOE_OK;
    }
    const int64_t kept = cmoei_share_experts(z->share, l->experts).count;
    CMOEI_TRY(mlp(z, kept, l->inter, &one));
    b->experts += one;
    b->per_token += kept ? one / kept * CMOEI_MIN(l->topk, kept) : 0;
    CMOEI_TRY(matrix(z, "router", 1, false, l->experts, d->hidden, CMOE_F32, &router));
    b->router += router;
    b->per_token += router;
    if (l->shared_inter == 0) return CMOE_OK;
    CMOEI_TRY(mlp(z, 1, l->shared_inter, &one));
    b->shared += one;
    b->per_token += one;
    return CMOE_OK;
}

/* Values of the model, and of those the ones that meet a token. */
static void count_parameters(const cmoei_decoder *d, cmoe_model_info *info)
{
    int64_t dims[2];
    for (int32_t r = 0; r < CMOEI_GLOBAL_ROLES; r++) {
        if (cmoei_role_shape(d, -1, (cmoei_role)r, dims)) {
            info->parameters += dims[0] * dims[1];
            info->active_parameters +=
                r == CMOEI_EMBEDDING && !d->tied ? dims[1] : dims[0] * dims[1];
        }
    }
    for (int64_t l = 0; l < d->layers; l++) {
        for (int32_t r = CMOEI_GLOBAL_ROLES; r < CMOEI_ROLES; r++) {
            if (!cmoei_role_shape(d, l, (cmoei_role)r, dims)) continue;
            const bool routed = r >= CMOEI_LAYER_ROLES;
            const int64_t n = dims[0] * dims[1];
            info->parameters += n * (routed ? d->layer[l].experts : 1);
            info->active_parameters += n * (routed ? d->layer[l].topk : 1);
        }
    }
}

static int64_t vector_elements(const cmoei_decoder *d)
{
    int64_t dims[2], n = 0;
    for (int64_t l = -1; l < d->layers; l++) {
        const int32_t begin = l < 0 ? 0 : CMOEI_GLOBAL_ROLES,
                      end = l < 0 ? CMOEI_GLOBAL_ROLES : CMOEI_ROLES;
        for (int32_t r = begin; r < end; r++) {
            if (cmoei_role_shape(d, l, (cmoei_role)r, dims) && dims[0] == 1)
                n += dims[1] * (r >= CMOEI_LAYER_ROLES ? d->layer[l].experts : 1);
        }
    }
    return n;
}

static void describe_shape(const cmoei_decoder *d, cmoe_model_info *info)
{
    info->type = d->arch->type;
    info->layers = d->layers;
    info->hidden = d->hidden;
    info->heads = d->heads;
    info->kv_heads = d->kv_heads;
    info->head_dim = d->head_dim;
    info->vocab = d->vocab;
    info->context = d->context;
    info->mask = d->mask;
    info->mask_token = d->mask_token;
    info->tied = d->tied;
    for (int64_t l = 0; l < d->layers; l++) {
        info->moe_layers += d->layer[l].experts > 0;
        info->experts = CMOEI_MAX(info->experts, d->layer[l].experts);
        info->topk = CMOEI_MAX(info->topk, d->layer[l].topk);
        info->window = CMOEI_MAX(info->window, d->layer[l].window);
        info->window_layers += d->layer[l].window > 0;
    }
    count_parameters(d, info);
}

cmoe_status cmoei_model_measure(cmoe_ctx *ctx, const cmoei_tensors *t, const cmoei_share *share,
                                int32_t format, cmoe_model_info *info, cmoe_error *err)
{
    const cmoei_decoder *d = t->decoder;
    const sizes z = {ctx, d, share, format, err};
    *info = (cmoe_model_info){
        .size = sizeof *info, .format = format, .tensors = t->used, .ignored = t->ignored};
    describe_shape(d, info);
    cmoe_model_bytes *b = &info->bytes;
    for (int64_t l = 0; l < d->layers; l++)
        CMOEI_TRY(layer(&z, &d->layer[l], b));
    const int64_t vocab = cmoei_share_of(share, d->vocab).count;
    CMOEI_TRY(matrix(&z, "head", 1, false, vocab, d->hidden, cmoei_head_format(format), &b->head));
    b->embedding = vocab * d->hidden * cmoe_dtype_bytes(t->global[CMOEI_EMBEDDING].dtype);
    b->small = vector_elements(d) * (int64_t)sizeof(float);
    b->total = b->experts + b->shared + b->dense + b->attention + b->router + b->embedding +
               b->head + b->small;
    b->per_token += b->head + b->small + b->embedding / CMOEI_MAX(vocab, 1);
    cmoei_range queries, keys;
    cmoei_share_heads(share, d, &queries, &keys);
    b->cache_per_token = d->layers * keys.count * 2 * d->head_dim * (format == CMOE_F32 ? 4 : 2);
    return CMOE_OK;
}
