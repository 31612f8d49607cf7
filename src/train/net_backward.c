/* SPDX-License-Identifier: MIT
 *
 * net_backward.c - a layer backwards, and the head with its losses.
 *
 * dh is the gradient of the residual stream.  A half of a layer adds to the stream, so its input's gradient
 * is dh itself plus what comes back through the half; norms are computed again rather than kept.
 */
#include <string.h>

#include "net_state.h"

/* ---- norms ------------------------------------------------------------------------------------- */

/* dx = residual + gradient through the norm of `in`. */
static cmoe_status norm_backward(cmoei_pass *p, const float *in, const float *weight,
                                 const float *bias, const float *dout, const float *residual,
                                 float *dx)
{
    const int64_t n = p->d->hidden, t = p->tokens;
    float *g = p->c->gradient;
    const cmoe_view_mut dw = cmoei_vec_out(cmoei_params_in(p->p, g, weight), n),
                        db = cmoei_vec_out(cmoei_params_in(p->p, g, bias), n);
    const cmoe_view add = residual ? cmoei_in(residual, t, n) : cmoe_view_none();
    if (p->d->layer_norm)
        return cmoe_layer_norm_backward(p->s, p->d->eps, cmoei_in(in, t, n), cmoei_vec(weight, n),
                                        cmoei_in(dout, t, n), add, &p->c->units,
                                        cmoei_out(dx, t, n), dw, db, &p->n->scratch, p->err);
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = p->d->eps;
    return cmoe_rms_norm_backward(p->s, &o, cmoei_in(in, t, n), cmoei_vec(weight, n),
                                  cmoei_in(dout, t, n), add, &p->c->units, cmoei_out(dx, t, n), dw,
                                  &p->n->scratch, p->err);
}

/* The gradient of normed q or k, in place; x is what was normed. */
static cmoe_status head_norm_backward(cmoei_pass *p, cmoe_view_mut x, const float *weight,
                                      cmoe_view_mut dx)
{
    const bool heads = p->d->qk_norm == CMOEI_QK_HEAD;
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = p->d->eps;
    if (heads) {
        x = cmoei_by_head(p, x);
        dx = cmoei_by_head(p, dx);
    }
    const int64_t n = x.dims[x.rank - 1];
    return cmoe_rms_norm_backward(p->s, &o, cmoe_view_of(x), cmoei_vec(weight, n), cmoe_view_of(dx),
                                  cmoe_view_none(), &p->c->units, dx,
                                  cmoei_vec_out(cmoei_params_in(p->p, p->c->gradient, weight), n),
                                  &p->n->scratch, p->err);
}

/* ---- weights ----------------------------------------------------------------------------------- */

static cmoe_status weight_gradient(cmoei_pass *p, const cmoei_weight *w, const float *dy,
                                   int64_t outputs, const float *x, int64_t inputs)
{
    cmoe_part_gradient g[CMOEI_WEIGHT_PARTS];
    cmoei_params_gradients(p->p, w, p->c->gradient, g);
    return cmoe_trainable_dw(p->s, w->trainable, NULL, cmoei_in(dy, p->tokens, outputs),
                             cmoei_in(x, p->tokens, inputs), NULL, &p->c->units, g, &p->n->scratch,
                             p->err);
}

static cmoe_status input_gradient(cmoei_pass *p, const cmoei_weight *w, const float *dy,
                                  int64_t outputs, float *dx, int64_t inputs)
{
    return cmoe_trainable_dx(p->s, w->trainable, cmoei_in(dy, p->tokens, outputs), 0, NULL,
                             cmoei_out(dx, p->tokens, inputs), &p->n->scratch, p->err);
}

/* ---- attention --------------------------------------------------------------------------------- */

/* From gradients of q and k as attention reads them to those as projected, in place. */
static cmoe_status qk_backward(cmoei_pass *p, int64_t i)
{
    const cmoei_decoder *d = p->d;
    const cmoei_layer_params *l = &p->p->layer[i];
    cmoei_kept *k = &p->n->kept[i];
    const int64_t first[] = {0, d->heads}, heads[] = {d->heads, d->kv_heads};
    const float *weights[] = {l->q_norm, l->k_norm};
    for (int32_t j = 0; j < 2; j++) {
        const cmoe_view_mut dx = cmoei_columns(p, p->n->dqkv, first[j], heads[j]);
        if (!k->raw) {
            CMOEI_TRY(cmoei_net_rotate(p, dx, true));
            continue;
        }
        const cmoe_view_mut x = cmoei_columns(p, k->raw, first[j], heads[j]);
        if (d->qk_norm_after_rope) {
            CMOEI_TRY(cmoei_net_rotate(p, x, false));
            CMOEI_TRY(head_norm_backward(p, x, weights[j], dx));
            CMOEI_TRY(cmoei_net_rotate(p, dx, true));
        } else {
            CMOEI_TRY(cmoei_net_rotate(p, dx, true));
            CMOEI_TRY(head_norm_backward(p, x, weights[j], dx));
        }
    }
    return CMOE_OK;
}

/* dx from dy through the mixer of layer i, whose input was x. */
static cmoe_status mix_backward(cmoei_pass *p, int64_t i, const float *x, const float *dy,
                                float *dx)
{
    const cmoei_decoder *d = p->d;
    cmoei_net *n = p->n;
    const cmoei_layer_params *l = &p->p->layer[i];
    cmoei_kept *k = &n->kept[i];
    const int64_t t = p->tokens, wide = d->heads * d->head_dim, width = cmoei_qkv_width(d);
    const int64_t value = d->heads + d->kv_heads;
    const cmoe_attention_rows_options o = cmoei_net_attention(d);
    CMOEI_TRY(weight_gradient(p, &l->weight[CMOEI_W_O], dy, d->hidden, k->heads, wide));
    CMOEI_TRY(input_gradient(p, &l->weight[CMOEI_W_O], dy, d->hidden, n->dheads, wide));
    CMOEI_TRY(cmoe_attention_rows_backward(
        p->s, &o, cmoe_view_of(cmoei_columns(p, k->qkv, 0, d->heads)),
        cmoe_view_of(cmoei_columns(p, k->qkv, d->heads, d->kv_heads)),
        cmoe_view_of(cmoei_columns(p, k->qkv, value, d->kv_heads)), cmoei_net_see(p, i),
        cmoei_vec(l->sinks, d->heads), cmoei_in(k->heads, t, wide), cmoei_in(k->lse, t, d->heads),
        cmoei_in(n->dheads, t, wide), &p->c->units, cmoei_columns(p, n->dqkv, 0, d->heads),
        cmoei_columns(p, n->dqkv, d->heads, d->kv_heads),
        cmoei_columns(p, n->dqkv, value, d->kv_heads),
        cmoei_vec_out(cmoei_params_in(p->p, p->c->gradient, l->sinks), d->heads), &n->scratch,
        p->err));
    CMOEI_TRY(qk_backward(p, i));
    CMOEI_TRY(weight_gradient(p, &l->weight[CMOEI_W_QKV], n->dqkv, width, x, d->hidden));
    return input_gradient(p, &l->weight[CMOEI_W_QKV], n->dqkv, width, dx, d->hidden);
}

/* ---- feed-forward ------------------------------------------------------------------------------ */

static cmoe_status dense_backward(cmoei_pass *p, int64_t i, const float *x, const float *dy,
                                  float *dx)
{
    const cmoei_layer_params *l = &p->p->layer[i];
    cmoei_net *n = p->n;
    cmoe_part_gradient up[CMOEI_WEIGHT_PARTS], down[CMOEI_WEIGHT_PARTS];
    cmoei_params_gradients(p->p, &l->weight[CMOEI_W_13], p->c->gradient, up);
    cmoei_params_gradients(p->p, &l->weight[CMOEI_W_2], p->c->gradient, down);
    const cmoe_experts_gradients g = {
        .dx = cmoei_out(dx, p->tokens, p->d->hidden), .w13 = up, .w2 = down};
    return cmoe_experts_backward(p->s, n->kept[i].saved, cmoei_in(x, p->tokens, p->d->hidden),
                                 cmoei_in(n->ones, p->tokens, 1),
                                 cmoei_in(dy, p->tokens, p->d->hidden), &p->c->units, &g,
                                 &n->scratch, p->err);
}

static cmoe_status feed_backward(cmoei_pass *p, int64_t i, const float *x, const float *dy,
                                 float *dx)
{
    const cmoei_layer_params *l = &p->p->layer[i];
    cmoei_net *n = p->n;
    static const cmoei_weight_kind kinds[] = {CMOEI_W_ROUTER,   CMOEI_W_13,
                                              CMOEI_W_2,        CMOEI_W_SHARED_13,
                                              CMOEI_W_SHARED_2, CMOEI_W_SHARED_GATE};
    cmoe_part_gradient parts[CMOEI_COUNT(kinds)][CMOEI_WEIGHT_PARTS];
    cmoe_layer_gradients g;
    double balance = 0, z = 0;
    if (!n->moe[i]) return dense_backward(p, i, x, dy, dx);
    for (int64_t k = 0; k < CMOEI_COUNT(kinds); k++)
        cmoei_params_gradients(p->p, &l->weight[kinds[k]], p->c->gradient, parts[k]);
    cmoe_layer_gradients_default(&g, sizeof g);
    g.dx = cmoei_out(dx, p->tokens, p->d->hidden);
    g.gate = parts[0];
    g.w13 = parts[1];
    g.w2 = parts[2];
    if (l->weight[CMOEI_W_SHARED_13].trainable) g.shared13 = parts[3];
    if (l->weight[CMOEI_W_SHARED_2].trainable) g.shared2 = parts[4];
    if (l->weight[CMOEI_W_SHARED_GATE].trainable) g.shared_gate = parts[5];
    g.balance = p->p->o.balance * p->c->router_scale;
    g.z_loss = p->p->o.z_loss * p->c->router_scale;
    g.balance_loss = &balance;
    g.z_loss_value = &z;
    if (p->c->mask) g.mask = cmoe_view_1d(p->c->mask, CMOE_I32, p->tokens);
    CMOEI_TRY(cmoe_layer_backward(
        p->s, n->moe[i], n->kept[i].saved, cmoei_in(x, p->tokens, p->d->hidden),
        cmoei_in(dy, p->tokens, p->d->hidden), &p->c->units, &g, &n->scratch, p->err));
    p->r->balance_loss += balance;
    p->r->z_loss += z;
    return CMOE_OK;
}

/* ---- a layer ----------------------------------------------------------------------------------- */

/* dh behind a half -> in front of it; `in` is the stream there. */
static cmoe_status residual_backward(cmoei_pass *p, int64_t i, const float *in, bool second)
{
    const cmoei_decoder *d = p->d;
    cmoei_net *n = p->n;
    const cmoei_layer_params *l = &p->p->layer[i];
    const int64_t t = p->tokens;
    const float *weight = second ? l->norm2 : l->norm1,
                *bias = second ? l->norm2_bias : l->norm1_bias, *x = in;
    CMOEI_TRY(cmoe_scaled_add(p->s, cmoe_view_none(), cmoei_in(n->dh, t, d->hidden),
                              d->residual_scale, cmoei_out(n->y, t, d->hidden), p->err));
    cmoei_net_dropout(p, n->y, 1 + 2 * i + second);
    if (d->post_norm) {
        const float *kept = second ? n->kept[i].fed : n->kept[i].mixed;
        CMOEI_TRY(norm_backward(p, kept, weight, bias, n->y, NULL, n->y));
    } else {
        CMOEI_TRY(cmoei_net_norm(p, in, weight, bias, n->x));
        x = n->x;
    }
    CMOEI_TRY(second ? feed_backward(p, i, x, n->y, n->dx) : mix_backward(p, i, x, n->y, n->dx));
    if (!d->post_norm) return norm_backward(p, in, weight, bias, n->dx, n->dh, n->dh);
    return cmoe_scaled_add(p->s, cmoei_in(n->dh, t, d->hidden), cmoei_in(n->dx, t, d->hidden), 1,
                           cmoei_out(n->dh, t, d->hidden), p->err);
}

cmoe_status cmoei_net_layer_backward(cmoei_pass *p, int64_t i)
{
    CMOEI_TRY(residual_backward(p, i, p->n->between[i], true));
    return residual_backward(p, i, p->n->before[i], false);
}

/* ---- head -------------------------------------------------------------------------------------- */

/* Rows [at, at + rows): their losses, and with a gradient dx and the head's. */
static cmoe_status head_chunk(cmoei_pass *p, int64_t at, int64_t rows)
{
    const cmoei_decoder *d = p->d;
    cmoei_net *n = p->n;
    const cmoei_weight *w = &p->p->head;
    const cmoe_view x = cmoei_in(n->x + at * d->hidden, rows, d->hidden);
    const cmoe_view_mut logits = cmoei_out(n->logits, rows, d->vocab);
    cmoe_part_gradient g[CMOEI_WEIGHT_PARTS];
    cmoe_trainable_dw_options o;
    CMOEI_TRY(cmoe_trainable_forward(p->s, w->trainable, x, 0, NULL, logits, &n->scratch, p->err));
    if (d->logits_scale != 1)
        CMOEI_TRY(cmoe_scaled_add(p->s, cmoe_view_none(), cmoe_view_of(logits), d->logits_scale,
                                  logits, p->err));
    CMOEI_TRY(cmoe_cross_entropy(
        p->s, cmoe_view_of(logits), cmoe_view_1d(p->c->targets + at, CMOE_I32, rows),
        cmoei_vec(p->c->scale + at, rows), cmoei_vec_out(p->r->loss + at, rows),
        p->c->gradient ? logits : cmoe_view_mut_none(), p->err));
    if (!p->c->gradient) return CMOE_OK;
    if (d->logits_scale != 1)
        CMOEI_TRY(cmoe_scaled_add(p->s, cmoe_view_none(), cmoe_view_of(logits), d->logits_scale,
                                  logits, p->err));
    cmoei_params_gradients(p->p, w, p->c->gradient, g);
    cmoe_trainable_dw_options_default(&o, sizeof o);
    o.accumulate = at > 0;
    CMOEI_TRY(cmoe_trainable_dw(p->s, w->trainable, &o, cmoe_view_of(logits), x, NULL,
                                rows == p->tokens ? &p->c->units : NULL, g, &n->scratch, p->err));
    return cmoe_trainable_dx(p->s, w->trainable, cmoe_view_of(logits), 0, NULL,
                             cmoei_out(n->dx + at * d->hidden, rows, d->hidden), &n->scratch,
                             p->err);
}

cmoe_status cmoei_net_head(cmoei_pass *p)
{
    cmoei_net *n = p->n;
    const float *in = n->before[p->d->layers];
    CMOEI_TRY(cmoei_net_norm(p, in, p->p->final_norm, p->p->final_norm_bias, n->x));
    for (int64_t at = 0; at < p->tokens; at += n->chunk)
        CMOEI_TRY(head_chunk(p, at, CMOEI_MIN(n->chunk, p->tokens - at)));
    if (!p->c->gradient) return CMOE_OK;
    return norm_backward(p, in, p->p->final_norm, p->p->final_norm_bias, n->dx, NULL, n->dh);
}
