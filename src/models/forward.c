/* SPDX-License-Identifier: MIT
 *
 * forward.c - tokens through a decoder.
 *
 * T tokens, D hidden, H query heads and K heads of keys and values of d, R rows of logits.  Scratch:
 *
 *     h [T, D]      the residual stream, float32
 *     x [T, D]      normed h, input of mixer and feed-forward
 *     y [T, D]      what they give
 *     qkv [T, (H + 2K) d], heads [T, H d]     attention
 *     cos, sin [T, r / 2]                     of every token's position
 *     then whatever one step needs at a time
 *
 * Every step treats tokens alone, but for attention, which looks at a token's own sequence.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "model.h"
#include "ops/kv.h"

static const cmoe_model_call default_call = {.size = sizeof default_call};

void cmoe_model_call_default(cmoe_model_call *c, size_t size)
{
    cmoei_options_write(c, size, &default_call, sizeof default_call);
}

typedef struct pass {
    cmoe_stream *s;
    const cmoe_model *m;
    const cmoei_decoder *d;
    const cmoe_model_call *call;
    cmoe_batch batch;
    int64_t tokens, rows;
    float *h, *x, *y, *qkv, *heads, *cos, *sin;
    int64_t *positions; /* [T] */
    float *ones;        /* [T] weights of the one expert that a dense layer is */
    int32_t *zeros;     /* [T] its id */
    cmoe_arena rest;
    cmoe_error *err;
} pass;

/* ---- scratch ----------------------------------------------------------------------------------------- */

static int64_t qkv_width(const cmoei_decoder *d)
{
    return (d->heads + 2 * d->kv_heads) * d->head_dim;
}

static void carve(pass *p, cmoei_carver *c)
{
    const cmoei_decoder *d = p->d;
    const int64_t t = p->tokens, f = sizeof(float);
    const int64_t wide = CMOEI_MAX(t, p->rows); /* y also holds the rows that logits are made of */
    p->h = cmoei_carve_array(c, t, d->hidden * f);
    p->x = cmoei_carve_array(c, wide, d->hidden * f);
    p->y = cmoei_carve_array(c, wide, d->hidden * f);
    p->qkv = cmoei_carve_array(c, t, qkv_width(d) * f);
    p->heads = cmoei_carve_array(c, t, d->heads * d->head_dim * f);
    p->cos = cmoei_carve_array(c, t, d->rope.dim / 2 * f);
    p->sin = cmoei_carve_array(c, t, d->rope.dim / 2 * f);
    p->positions = cmoei_carve_array(c, t, sizeof *p->positions);
    p->ones = cmoei_carve_array(c, t, f);
    p->zeros = cmoei_carve_array(c, t, sizeof *p->zeros);
}

static cmoe_attention_options attention_options(const cmoei_decoder *d, int64_t layer)
{
    cmoe_attention_options o;
    cmoe_attention_options_default(&o, sizeof o);
    o.heads = d->heads;
    o.scale = d->attention_scale;
    o.mask = d->mask;
    o.window = d->layer[layer].window;
    return o;
}

/* Of any batch of so many tokens: none needs more than one sequence that ends where the context does,
 * or behind it. */
static cmoe_status attention_bytes(const cmoe_model *m, int64_t layer, int64_t tokens,
                                   int64_t *bytes, cmoe_error *err)
{
    const cmoe_attention_options o = attention_options(&m->d, layer);
    const cmoe_cache sizes = {.model = m, .pages = 1, .format = CMOE_F32};
    const cmoe_kv kv = cmoei_cache_layer(&sizes, 0);
    const int64_t first[] = {0, tokens}, start[] = {CMOEI_MAX(m->d.context - tokens, 0)};
    const int32_t page = 0;
    const cmoe_batch batch = {.size = sizeof batch,
                              .sequences = 1,
                              .first = first,
                              .start = start,
                              .pages = &page, /* not read */
                              .page_columns = cmoei_ceil_div(start[0] + tokens, CMOE_KV_PAGE)};
    return cmoe_attention_bytes(m->ctx, &o, &kv, &batch, bytes, NULL, err);
}

/* Most that one step of a layer carves. */
static cmoe_status layer_bytes(const cmoe_model *m, int64_t i, int64_t tokens, int64_t *most,
                               cmoe_error *err)
{
    const cmoei_model_layer *l = &m->layer[i];
    int64_t bytes;
    CMOEI_TRY(cmoe_linear_bytes(l->qkv, tokens, &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    CMOEI_TRY(cmoe_linear_bytes(l->o, tokens, &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    if (l->moe)
        CMOEI_TRY(cmoe_layer_bytes(l->moe, tokens, &bytes, NULL, err));
    else
        CMOEI_TRY(cmoe_experts_bytes(l->dense.experts, tokens, 1, &bytes, NULL, err));
    *most = CMOEI_MAX(*most, bytes);
    CMOEI_TRY(attention_bytes(m, i, tokens, &bytes, err));
    *most = CMOEI_MAX(*most, bytes);
    return CMOE_OK;
}

static cmoe_status whole_only(const cmoe_model *m, cmoe_error *err)
{
    if (!m->head)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "this model was loaded with describe_only, want one with weights");
    if (!cmoei_model_is_share(m)) return CMOE_OK;
    return cmoei_fail(
        err, CMOE_ERR_UNSUPPORTED,
        "this model holds experts [%" PRId64 ", %" PRId64
        ") and tensor rank %d of %d: a forward needs all of them in one process, want "
        "a model loaded whole",
        m->share.experts.first, m->share.experts.first + m->share.experts.count, m->share.rank,
        m->share.ranks);
}

cmoe_status cmoe_model_forward_bytes(const cmoe_model *m, int64_t tokens, int64_t sequences,
                                     int64_t rows, int64_t *host, int64_t *device, cmoe_error *err)
{
    if (!m || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "model_forward_bytes: %s is NULL",
                          m ? "host" : "model");
    CMOEI_TRY(whole_only(m, err));
    if (tokens < 0 || tokens > INT32_MAX || sequences < 0 || rows < 0 || rows > tokens)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64 ", sequences = %" PRId64 ", rows = %" PRId64
                          ", want 0 <= rows <= tokens <= 2147483647 and sequences >= 0",
                          tokens, sequences, rows);
    int64_t most;
    CMOEI_TRY(cmoe_linear_bytes(m->head, rows, &most, NULL, err));
    for (int64_t i = 0; i < m->d.layers; i++)
        CMOEI_TRY(layer_bytes(m, i, tokens, &most, err));
    pass p = {.d = &m->d, .tokens = tokens, .rows = rows};
    cmoei_carver c = cmoei_carver_dry();
    carve(&p, &c);
    cmoei_carve(&c, most);
    CMOEI_TRY(cmoei_carver_check(&c, "model", err));
    *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

/* ---- views ---------------------------------------------------------------------------------------------- */

static cmoe_view_mut matrix(float *data, int64_t rows, int64_t cols)
{
    return cmoe_view_mut_2d(data, CMOE_F32, rows, cols);
}

static cmoe_view vector(const float *data, int64_t n)
{
    return data ? cmoe_view_1d(data, CMOE_F32, n) : cmoe_view_none();
}

/* Columns of qkv: [T, heads * d], rows as long as qkv's. */
static cmoe_view_mut columns(const pass *p, int64_t first_head, int64_t heads)
{
    cmoe_view_mut v =
        matrix(p->qkv + first_head * p->d->head_dim, p->tokens, heads * p->d->head_dim);
    v.strides[0] = qkv_width(p->d);
    return v;
}

/* [T, heads * d] as [T, heads, d] */
static cmoe_view_mut by_head(const pass *p, cmoe_view_mut v)
{
    v.rank = 3;
    v.dims[2] = p->d->head_dim;
    v.dims[1] /= p->d->head_dim;
    v.strides[2] = v.strides[1];
    v.strides[1] = p->d->head_dim;
    return v;
}

/* ---- steps ----------------------------------------------------------------------------------------------- */

static cmoe_status norm(const pass *p, float *in, int64_t rows, const float *weight,
                        const float *bias, float *out)
{
    const int64_t n = p->d->hidden;
    const cmoe_view x = cmoe_view_2d(in, CMOE_F32, rows, n);
    if (p->d->layer_norm)
        return cmoe_layer_norm(p->s, p->d->eps, x, cmoe_view_none(), vector(weight, n),
                               vector(bias, n), matrix(out, rows, n), cmoe_view_mut_none(), p->err);
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = p->d->eps;
    return cmoe_rms_norm(p->s, &o, x, cmoe_view_none(), vector(weight, n), matrix(out, rows, n),
                         cmoe_view_mut_none(), p->err);
}

static cmoe_status qk_norm(const pass *p, cmoe_view_mut q, cmoe_view_mut k, const float *q_weight,
                           const float *k_weight)
{
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = p->d->eps;
    const bool heads = p->d->qk_norm == CMOEI_QK_HEAD;
    const cmoe_view_mut both[] = {heads ? by_head(p, q) : q, heads ? by_head(p, k) : k};
    const float *weights[] = {q_weight, k_weight};
    for (int32_t i = 0; i < 2; i++) {
        const cmoe_view x = cmoe_view_of(both[i]);
        CMOEI_TRY(cmoe_rms_norm(p->s, &o, x, cmoe_view_none(),
                                vector(weights[i], x.dims[x.rank - 1]), both[i],
                                cmoe_view_mut_none(), p->err));
    }
    return CMOE_OK;
}

static cmoe_status rotate(const pass *p, cmoe_view_mut v)
{
    if (p->d->rope.dim == 0) return CMOE_OK;
    cmoe_rope_rotate_options o;
    cmoe_rope_rotate_options_default(&o, sizeof o);
    o.interleaved = p->d->rope_interleaved;
    const int64_t half = p->d->rope.dim / 2;
    v = by_head(p, v);
    return cmoe_rope_rotate(p->s, &o, cmoe_view_of(v),
                            cmoe_view_2d(p->cos, CMOE_F32, p->tokens, half),
                            cmoe_view_2d(p->sin, CMOE_F32, p->tokens, half), v, p->err);
}

static cmoe_status clip(const pass *p, cmoe_view_mut v)
{
    return cmoe_clip(p->s, cmoe_view_of(v), p->d->clip_qkv, v, p->err);
}

/* y = attention(x) of layer i */
static cmoe_status attention(pass *p, int64_t i)
{
    const cmoei_decoder *d = p->d;
    const cmoei_model_layer *l = &p->m->layer[i];
    const cmoe_view_mut q = columns(p, 0, d->heads), k = columns(p, d->heads, d->kv_heads),
                        v = columns(p, d->heads + d->kv_heads, d->kv_heads);
    const cmoe_view x = cmoe_view_2d(p->x, CMOE_F32, p->tokens, d->hidden);
    CMOEI_TRY(
        cmoe_linear(p->s, x, l->qkv, matrix(p->qkv, p->tokens, qkv_width(d)), &p->rest, p->err));
    if (d->qk_norm != CMOEI_QK_NONE && !d->qk_norm_after_rope)
        CMOEI_TRY(qk_norm(p, q, k, l->q_norm, l->k_norm));
    if (d->clip_qkv > 0) CMOEI_TRY(clip(p, matrix(p->qkv, p->tokens, qkv_width(d))));
    CMOEI_TRY(rotate(p, q));
    CMOEI_TRY(rotate(p, k));
    if (d->qk_norm != CMOEI_QK_NONE && d->qk_norm_after_rope)
        CMOEI_TRY(qk_norm(p, q, k, l->q_norm, l->k_norm));
    const cmoe_kv kv = cmoei_cache_layer(p->call->cache, i);
    CMOEI_TRY(cmoe_kv_write(p->s, &kv, p->call->batch, cmoe_view_of(k), cmoe_view_of(v), p->err));
    const cmoe_attention_options o = attention_options(d, i);
    const cmoe_view_mut heads = matrix(p->heads, p->tokens, d->heads * d->head_dim);
    CMOEI_TRY(cmoe_attention(p->s, &o, cmoe_view_of(q), &kv, p->call->batch,
                             vector(l->sinks, d->heads), heads, &p->rest, p->err));
    return cmoe_linear(p->s, cmoe_view_of(heads), l->o, matrix(p->y, p->tokens, d->hidden),
                       &p->rest, p->err);
}

/* y = feed-forward(x) of layer i */
static cmoe_status feed_forward(pass *p, int64_t i)
{
    const cmoei_model_layer *l = &p->m->layer[i];
    const cmoe_view x = cmoe_view_2d(p->x, CMOE_F32, p->tokens, p->d->hidden);
    const cmoe_view_mut y = matrix(p->y, p->tokens, p->d->hidden);
    if (!l->moe)
        return cmoe_experts_run(
            p->s, l->dense.experts, x, cmoe_view_2d(p->zeros, CMOE_I32, p->tokens, 1),
            cmoe_view_2d(p->ones, CMOE_F32, p->tokens, 1), cmoe_view_none(), y, &p->rest, p->err);
    cmoe_layer_call call;
    cmoe_layer_call_default(&call, sizeof call);
    if (p->call->capture) {
        call.ids = p->call->capture[i].ids;
        call.weights = p->call->capture[i].weights;
    }
    if (p->call->replay) {
        call.replay_ids = cmoe_view_of(p->call->replay[i].ids);
        call.replay_weights = cmoe_view_of(p->call->replay[i].weights);
    }
    return cmoe_layer_forward(p->s, l->moe, x, &call, y, &p->rest, p->err);
}

/* h += residual_scale * step(norm(h)), or h += norm(step(h)) */
static cmoe_status residual(pass *p, int64_t i, cmoe_status (*step)(pass *, int64_t),
                            const float *weight, const float *bias)
{
    const cmoei_decoder *d = p->d;
    const int64_t n = p->tokens;
    if (d->post_norm)
        memcpy(p->x, p->h, (size_t)(n * d->hidden) * sizeof *p->h);
    else
        CMOEI_TRY(norm(p, p->h, n, weight, bias, p->x));
    CMOEI_TRY(step(p, i));
    if (d->post_norm) CMOEI_TRY(norm(p, p->y, n, weight, bias, p->y));
    return cmoe_scaled_add(p->s, cmoe_view_2d(p->h, CMOE_F32, n, d->hidden),
                           cmoe_view_2d(p->y, CMOE_F32, n, d->hidden), d->residual_scale,
                           matrix(p->h, n, d->hidden), p->err);
}

static cmoe_status begin(pass *p)
{
    const cmoe_model *m = p->m;
    const cmoei_decoder *d = p->d;
    const cmoe_batch *b = p->call->batch;
    for (int64_t i = 0; i < b->sequences; i++) {
        for (int64_t t = b->first[i]; t < b->first[i + 1]; t++)
            p->positions[t] = b->start[i] + t - b->first[i];
    }
    for (int64_t t = 0; t < p->tokens; t++) {
        p->ones[t] = 1;
        p->zeros[t] = 0;
    }
    const int64_t half = d->rope.dim / 2;
    if (half > 0)
        CMOEI_TRY(cmoe_rope_table(p->s, cmoe_view_1d(p->positions, CMOE_I64, p->tokens),
                                  vector(m->frequencies, half), m->amplitude,
                                  matrix(p->cos, p->tokens, half), matrix(p->sin, p->tokens, half),
                                  p->err));
    return cmoe_embedding(p->s, p->call->ids,
                          cmoe_view_2d(m->embedding, m->embedding_dtype, d->vocab, d->hidden),
                          d->embedding_scale, matrix(p->h, p->tokens, d->hidden), p->err);
}

/* logits of the rows that were asked for */
static cmoe_status finish(pass *p, cmoe_view_mut logits)
{
    const cmoe_model *m = p->m;
    const cmoei_decoder *d = p->d;
    float *rows = p->h;
    if (cmoei_given(&p->call->rows)) {
        rows = p->y;
        for (int64_t r = 0; r < p->rows; r++) {
            const int64_t t = cmoei_load_index(cmoei_at(&p->call->rows, r, 0), p->call->rows.dtype);
            memcpy(rows + r * d->hidden, p->h + t * d->hidden, (size_t)d->hidden * sizeof *rows);
        }
    }
    CMOEI_TRY(norm(p, rows, p->rows, m->final_norm, m->final_norm_bias, p->x));
    CMOEI_TRY(cmoe_linear(p->s, cmoe_view_2d(p->x, CMOE_F32, p->rows, d->hidden), m->head, logits,
                          &p->rest, p->err));
    if (d->logits_scale == 1) return CMOE_OK;
    return cmoe_scaled_add(p->s, cmoe_view_none(), cmoe_view_of(logits), d->logits_scale, logits,
                           p->err);
}

/* ---- checks ------------------------------------------------------------------------------------------------ */

/* Copied, because a caller's may be of an older header, and checked. */
static cmoe_status read_batch(pass *p)
{
    cmoe_batch *batch = &p->batch;
    CMOEI_TRY(cmoei_batch_read(batch, p->call->batch, p->err));
    for (int64_t i = 0; i < batch->sequences; i++) {
        const int64_t n = batch->first[i + 1] - batch->first[i];
        if (batch->start[i] > p->d->context - n)
            return cmoei_fail(p->err, CMOE_ERR_RANGE,
                              "batch: sequence %" PRId64 " has %" PRId64
                              " tokens from position %" PRId64 " on, want at most %" PRId64
                              " positions (context)",
                              i, n, batch->start[i], p->d->context);
    }
    return CMOE_OK;
}

/* Ids that were recorded for another model would otherwise be found in the middle of a forward. */
static cmoe_status check_replayed(const pass *p, const cmoe_view *ids, int64_t layer)
{
    const int64_t experts = p->d->layer[layer].experts;
    for (int64_t i = 0; i < ids->dims[0] * ids->dims[1]; i++) {
        const int64_t t = i / ids->dims[1], k = i % ids->dims[1];
        const int64_t id = cmoei_load_index(cmoei_at(ids, t, k), ids->dtype);
        if (id < -1 || id >= experts)
            return cmoei_fail(p->err, CMOE_ERR_RANGE,
                              "replay of layer %" PRId64 ": ids[%" PRId64 ", %" PRId64
                              "] = %" PRId64 ", want -1 <= id < %" PRId64 " (experts)",
                              layer, t, k, id, experts);
    }
    return CMOE_OK;
}

static cmoe_status check_routing(const pass *p, const cmoe_routing *all, bool replay)
{
    char name[64];
    for (int64_t i = 0; all && i < p->d->layers; i++) {
        const cmoe_view ids = cmoe_view_of(all[i].ids), weights = cmoe_view_of(all[i].weights);
        const cmoei_layer_shape *l = &p->d->layer[i];
        if (!cmoei_given(&ids) && !cmoei_given(&weights)) continue;
        snprintf(name, sizeof name, "%s of layer %" PRId64, replay ? "replay" : "capture", i);
        if (l->experts == 0)
            return cmoei_fail(p->err, CMOE_ERR_ARG, "%s is given, want none: it has no experts",
                              name);
        const cmoei_want want = {
            name, CMOEI_DTYPE(CMOE_I32), 2, {p->tokens, l->topk}, {"tokens", "topk"}};
        cmoei_want values = want;
        values.dtypes = CMOEI_DTYPE(CMOE_F32);
        CMOEI_TRY(replay ? cmoei_check_in(&ids, &want, p->err)
                         : cmoei_check_out(&all[i].ids, &want, p->err));
        if (cmoei_given(&weights))
            CMOEI_TRY(replay ? cmoei_check_in(&weights, &values, p->err)
                             : cmoei_check_out(&all[i].weights, &values, p->err));
        if (replay) CMOEI_TRY(check_replayed(p, &ids, i));
    }
    return CMOE_OK;
}

static cmoe_status check_rows(pass *p, const cmoe_view_mut *logits)
{
    const cmoe_view *rows = &p->call->rows;
    p->rows = p->tokens;
    if (cmoei_given(rows)) {
        const cmoei_want want = {"rows", CMOEI_INDEX, 1, {-1}, {"rows"}};
        CMOEI_TRY(cmoei_check_in(rows, &want, p->err));
        p->rows = rows->dims[0];
        int64_t before = -1;
        for (int64_t r = 0; r < p->rows; r++) {
            const int64_t t = cmoei_load_index(cmoei_at(rows, r, 0), rows->dtype);
            if (t <= before || t >= p->tokens)
                return cmoei_fail(p->err, CMOE_ERR_RANGE,
                                  "rows[%" PRId64 "] = %" PRId64
                                  ", want ascending numbers below %" PRId64 " (tokens)",
                                  r, t, p->tokens);
            before = t;
        }
    }
    const cmoei_want want = {
        "logits", CMOEI_DTYPE(CMOE_F32), 2, {p->rows, p->d->vocab}, {"rows", "vocab"}};
    return cmoei_check_out(logits, &want, p->err);
}

static cmoe_status check(pass *p, const cmoe_view_mut *logits, cmoe_arena *scratch)
{
    const cmoe_model_call *call = p->call;
    CMOEI_TRY(whole_only(p->m, p->err));
    if (!call->cache || call->cache->model != p->m)
        return cmoei_fail(p->err, CMOE_ERR_ARG, "cache is %s, want one made for this model",
                          call->cache ? "of another model" : "NULL");
    p->tokens = cmoei_batch_tokens(call->batch);
    const cmoei_want want = {"ids", CMOEI_INDEX, 1, {p->tokens}, {"tokens"}};
    CMOEI_TRY(cmoei_check_in(&call->ids, &want, p->err));
    CMOEI_TRY(check_rows(p, logits));
    CMOEI_TRY(check_routing(p, call->capture, false));
    CMOEI_TRY(check_routing(p, call->replay, true));
    CMOEI_TRY(cmoei_call_check_pages(p->m, call, p->err));
    CMOEI_TRY(cmoei_call_check_memory(p->m, call, logits, scratch, p->err));
    int64_t need;
    CMOEI_TRY(cmoe_model_forward_bytes(p->m, p->tokens, call->batch->sequences, p->rows, &need,
                                       NULL, p->err));
    if (cmoei_arena_left(scratch) < need)
        return cmoei_fail(p->err, CMOE_ERR_MEMORY,
                          "model: arena has %" PRId64 " bytes left, want %" PRId64
                          " (ask cmoe_model_forward_bytes)",
                          cmoei_arena_left(scratch), need);
    return CMOE_OK;
}

/* ---- forward ------------------------------------------------------------------------------------------------- */

cmoe_status cmoe_model_forward(cmoe_stream *s, const cmoe_model *m, const cmoe_model_call *given,
                               cmoe_view_mut logits, cmoe_arena *scratch, cmoe_error *err)
{
    cmoe_model_call call = default_call;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&call, sizeof call, given, "cmoe_model_call", err));
    if (!m || m->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "model is %s, want one made from the stream's context",
                          m ? "of another context" : "NULL");
    pass p = {.s = s, .m = m, .d = &m->d, .call = &call, .err = err};
    CMOEI_TRY(read_batch(&p));
    call.batch = &p.batch;
    CMOEI_TRY(check(&p, &logits, scratch));
    cmoei_carver c = cmoei_carver_open(scratch);
    carve(&p, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "model", err));
    p.rest = (cmoe_arena){c.base, c.bytes, c.used};
    if (p.tokens == 0) return CMOE_OK;
    CMOEI_TRY(begin(&p));
    for (int64_t i = 0; i < m->d.layers; i++) {
        const cmoei_model_layer *l = &m->layer[i];
        CMOEI_TRY(residual(&p, i, attention, l->norm1, l->norm1_bias));
        CMOEI_TRY(residual(&p, i, feed_forward, l->norm2, l->norm2_bias));
    }
    return finish(&p, logits);
}
