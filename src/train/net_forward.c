/* SPDX-License-Identifier: MIT
 *
 * net_forward.c - a layer forwards, keeping what backward needs, and the steps both ways share.
 *
 * The same steps in the same order as models/forward.c; attention runs over whole sequences instead of a
 * cache.
 */
#include <string.h>

#include "net_state.h"

cmoe_view_mut cmoei_columns(const cmoei_pass *p, float *qkv, int64_t first_head, int64_t heads)
{
    const int64_t dim = p->d->head_dim;
    cmoe_view_mut v = cmoei_out(qkv + first_head * dim, p->tokens, heads * dim);
    v.strides[0] = cmoei_qkv_width(p->d);
    return v;
}

cmoe_view_mut cmoei_by_head(const cmoei_pass *p, cmoe_view_mut v)
{
    v.rank = 3;
    v.dims[2] = p->d->head_dim;
    v.dims[1] /= p->d->head_dim;
    v.strides[2] = v.strides[1];
    v.strides[1] = p->d->head_dim;
    return v;
}

cmoe_attention_rows_options cmoei_net_attention(const cmoei_decoder *d)
{
    cmoe_attention_rows_options o;
    cmoe_attention_rows_options_default(&o, sizeof o);
    o.heads = d->heads;
    o.kv_heads = d->kv_heads;
    o.scale = d->attention_scale;
    return o;
}

cmoe_status cmoei_net_rotate(const cmoei_pass *p, cmoe_view_mut v, bool inverse)
{
    const int64_t half = p->d->rope.dim / 2;
    cmoe_rope_rotate_options o;
    if (half == 0) return CMOE_OK;
    cmoe_rope_rotate_options_default(&o, sizeof o);
    o.interleaved = p->d->rope_interleaved;
    o.inverse = inverse;
    v = cmoei_by_head(p, v);
    return cmoe_rope_rotate(p->s, &o, cmoe_view_of(v), cmoei_in(p->n->cos, p->tokens, half),
                            cmoei_in(p->n->sin, p->tokens, half), v, p->err);
}

cmoe_status cmoei_net_norm(const cmoei_pass *p, const float *in, const float *weight,
                           const float *bias, float *out)
{
    const int64_t n = p->d->hidden;
    const cmoe_view x = cmoei_in(in, p->tokens, n);
    if (p->d->layer_norm)
        return cmoe_layer_norm(p->s, p->d->eps, x, cmoe_view_none(), cmoei_vec(weight, n),
                               cmoei_vec(bias, n), cmoei_out(out, p->tokens, n),
                               cmoe_view_mut_none(), p->err);
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = p->d->eps;
    return cmoe_rms_norm(p->s, &o, x, cmoe_view_none(), cmoei_vec(weight, n),
                         cmoei_out(out, p->tokens, n), cmoe_view_mut_none(), p->err);
}

/* ---- dropout ----------------------------------------------------------------------------------- */

typedef struct drop {
    const cmoei_pass *p;
    float *x;
    uint64_t draw;
    uint32_t threshold; /* of 2^16 */
    float scale;
} drop;

static void drop_rows(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const drop *j = arg;
    const int64_t n = j->p->d->hidden;
    int64_t t, end;
    (void)team;
    cmoei_split(j->p->tokens, index, count, &t, &end);
    for (; t < end; t++) {
        float *row = j->x + t * n;
        const uint64_t at = (uint64_t)((j->p->c->first + t) * cmoei_ceil_div(n, 4));
        for (int64_t i = 0; i < n; i += 4) {
            uint64_t bits = cmoe_random_u64(j->p->p->o.seed, at + (uint64_t)i / 4, j->draw);
            for (int64_t k = i; k < CMOEI_MIN(i + 4, n); k++, bits >>= 16)
                row[k] = (bits & 0xffff) < j->threshold ? 0 : row[k] * j->scale;
        }
    }
}

void cmoei_net_dropout(const cmoei_pass *p, float *x, int64_t site)
{
    const float rate = p->p->o.dropout;
    if (rate <= 0 || !p->c->gradient) return;
    const uint32_t all = 1 << 16, threshold = (uint32_t)(rate * (float)all);
    drop j = {.p = p,
              .x = x,
              .draw = ((uint64_t)p->c->step << 16 | (uint64_t)site) + (1ull << 62),
              .threshold = threshold,
              .scale = (float)all / (float)(all - threshold)}; /* of the rate that it really is */
    cmoei_region(p->p->ctx, cmoei_ceil_div(p->tokens * p->d->hidden, 8192), drop_rows, &j);
}

/* ---- attention --------------------------------------------------------------------------------- */

static cmoe_status qk_norm(const cmoei_pass *p, cmoe_view_mut q, cmoe_view_mut k,
                           const cmoei_layer_params *l)
{
    const bool heads = p->d->qk_norm == CMOEI_QK_HEAD;
    const cmoe_view_mut both[] = {heads ? cmoei_by_head(p, q) : q, heads ? cmoei_by_head(p, k) : k};
    const float *weights[] = {l->q_norm, l->k_norm};
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = p->d->eps;
    for (int32_t i = 0; i < 2; i++) {
        const cmoe_view x = cmoe_view_of(both[i]);
        CMOEI_TRY(cmoe_rms_norm(p->s, &o, x, cmoe_view_none(),
                                cmoei_vec(weights[i], x.dims[x.rank - 1]), both[i],
                                cmoe_view_mut_none(), p->err));
    }
    return CMOE_OK;
}

/* A window cuts the first range of each token; there is no second one then. */
cmoe_view cmoei_net_see(const cmoei_pass *p, int64_t i)
{
    const int64_t window = p->d->layer[i].window;
    if (window == 0) return cmoe_view_2d(p->c->see, CMOE_I32, p->tokens, 4);
    int32_t *out = p->n->windowed;
    for (int64_t t = 0; t < p->tokens; t++, out += 4) {
        memcpy(out, p->c->see + 4 * t, 4 * sizeof *out);
        out[0] = (int32_t)CMOEI_MAX(out[0], t + 1 - window);
    }
    return cmoe_view_2d(p->n->windowed, CMOE_I32, p->tokens, 4);
}

/* y = attention(x) */
static cmoe_status mix(cmoei_pass *p, int64_t i, const float *x, float *y)
{
    const cmoei_decoder *d = p->d;
    const cmoei_layer_params *l = &p->p->layer[i];
    cmoei_kept *k = &p->n->kept[i];
    const int64_t width = cmoei_qkv_width(d), wide = d->heads * d->head_dim;
    const cmoe_view_mut q = cmoei_columns(p, k->qkv, 0, d->heads),
                        key = cmoei_columns(p, k->qkv, d->heads, d->kv_heads),
                        value = cmoei_columns(p, k->qkv, d->heads + d->kv_heads, d->kv_heads);
    CMOEI_TRY(cmoe_trainable_forward(p->s, l->weight[CMOEI_W_QKV].trainable,
                                     cmoei_in(x, p->tokens, d->hidden), 0, NULL,
                                     cmoei_out(k->qkv, p->tokens, width), &p->n->scratch, p->err));
    if (k->raw) memcpy(k->raw, k->qkv, (size_t)(p->tokens * width) * sizeof *k->raw);
    if (d->qk_norm != CMOEI_QK_NONE && !d->qk_norm_after_rope) CMOEI_TRY(qk_norm(p, q, key, l));
    CMOEI_TRY(cmoei_net_rotate(p, q, false));
    CMOEI_TRY(cmoei_net_rotate(p, key, false));
    if (d->qk_norm != CMOEI_QK_NONE && d->qk_norm_after_rope) CMOEI_TRY(qk_norm(p, q, key, l));
    const cmoe_attention_rows_options o = cmoei_net_attention(d);
    CMOEI_TRY(cmoe_attention_rows(p->s, &o, cmoe_view_of(q), cmoe_view_of(key), cmoe_view_of(value),
                                  cmoei_net_see(p, i), cmoei_vec(l->sinks, d->heads),
                                  cmoei_out(k->heads, p->tokens, wide),
                                  cmoei_out(k->lse, p->tokens, d->heads), &p->n->scratch, p->err));
    return cmoe_trainable_forward(p->s, l->weight[CMOEI_W_O].trainable,
                                  cmoei_in(k->heads, p->tokens, wide), 0, NULL,
                                  cmoei_out(y, p->tokens, d->hidden), &p->n->scratch, p->err);
}

/* ---- feed-forward ------------------------------------------------------------------------------ */

static cmoe_status feed(cmoei_pass *p, int64_t i, const float *x, float *y)
{
    cmoei_net *n = p->n;
    cmoei_kept *k = &n->kept[i];
    const cmoei_layer_params *l = &p->p->layer[i];
    const cmoe_view in = cmoei_in(x, p->tokens, p->d->hidden);
    const cmoe_view_mut out = cmoei_out(y, p->tokens, p->d->hidden);
    k->arena.used = 0;
    if (!n->moe[i]) {
        const cmoe_experts_weights w = {l->weight[CMOEI_W_13].trainable,
                                        l->weight[CMOEI_W_2].trainable};
        return cmoe_experts_train(p->s, NULL, &w, in,
                                  cmoe_view_2d(n->zeros, CMOE_I32, p->tokens, 1),
                                  cmoei_in(n->ones, p->tokens, 1), cmoe_view_none(), out, &k->saved,
                                  &k->arena, &n->scratch, p->err);
    }
    cmoe_layer_call call;
    cmoe_layer_call_default(&call, sizeof call);
    if (p->r->load) {
        int64_t moe = 0, most = 0;
        for (int64_t j = 0; j < p->d->layers; j++) {
            moe += j < i && p->d->layer[j].experts > 0;
            most = CMOEI_MAX(most, p->d->layer[j].experts);
        }
        call.load = cmoe_view_mut_1d(p->r->load + moe * most, CMOE_I64, p->d->layer[i].experts);
    }
    return cmoe_layer_train_forward(p->s, n->moe[i], in, &call, out, &k->saved, &k->arena,
                                    &n->scratch, p->err);
}

/* ---- a layer ----------------------------------------------------------------------------------- */

/* out = in + residual_scale * half(norm(in)), or in + norm(half(in)) */
static cmoe_status residual(cmoei_pass *p, int64_t i, const float *in, float *out, bool second)
{
    const cmoei_decoder *d = p->d;
    cmoei_net *n = p->n;
    const cmoei_layer_params *l = &p->p->layer[i];
    const float *weight = second ? l->norm2 : l->norm1,
                *bias = second ? l->norm2_bias : l->norm1_bias, *x = in;
    float *kept = second ? n->kept[i].fed : n->kept[i].mixed, *y = d->post_norm ? kept : n->y;
    if (!d->post_norm) {
        CMOEI_TRY(cmoei_net_norm(p, in, weight, bias, n->x));
        x = n->x;
    }
    CMOEI_TRY(second ? feed(p, i, x, y) : mix(p, i, x, y));
    if (d->post_norm) {
        CMOEI_TRY(cmoei_net_norm(p, y, weight, bias, n->y));
        y = n->y;
    }
    cmoei_net_dropout(p, y, 1 + 2 * i + second);
    return cmoe_scaled_add(p->s, cmoei_in(in, p->tokens, d->hidden),
                           cmoei_in(y, p->tokens, d->hidden), d->residual_scale,
                           cmoei_out(out, p->tokens, d->hidden), p->err);
}

cmoe_status cmoei_net_layer_forward(cmoei_pass *p, int64_t i)
{
    cmoei_net *n = p->n;
    CMOEI_TRY(residual(p, i, n->before[i], n->between[i], false));
    return residual(p, i, n->between[i], n->before[i + 1], true);
}
