/* SPDX-License-Identifier: MIT
 *
 * train_backward.c - the grouped gated MLP backwards.
 *
 * c = combine scale * weight of a row's slot; dout is read by token, everything else by row:
 *
 *     g       [R, I] = dout . w2                   the gradient of h, before the weight
 *     h, hw = c * h, dgate_up, dweights            one kernel (act_backward.h); hw takes g's place
 *     dw2     = dout^T hw                          so that no weighted copy of dout is made
 *     db2     = sum of c * dout                    which only a bias needs, over a copy
 *     dw13    = dgate_up^T x
 *     dx      = combine(dgate_up . w13) + base
 */
#include "train.h"

#include <string.h>

#include "act_backward.h"
#include "align/combine.h"
#include "core/units.h"

typedef struct backward {
    const cmoei_experts_back *b;
    const cmoei_experts_train *e;
    const cmoe_groups *g;
    int64_t rows, hidden;
    float *coefficients; /* [T, K]  c */
    float *hw;           /* [R, I]  g, then c * h */
    float *dgate_up;     /* [R, C] */
    float *hidden_rows;  /* [R, H]  c * dout for a bias, then rows of dx */
    cmoe_arena rest;
} backward;

static bool given_mut(const cmoe_view_mut *v)
{
    return v->dtype != 0 || v->data != NULL;
}

/* ---- checks ---------------------------------------------------------------------------------- */

cmoe_status cmoei_experts_back_check(const cmoei_experts_back *b, const char *w13, const char *w2,
                                     cmoei_outs *outs, cmoe_error *err)
{
    const cmoei_experts_train *e = &b->saved->e;
    CMOEI_TRY(cmoei_outs_add_parts(outs, e->w.w13, w13, b->gradients.w13, err));
    return cmoei_outs_add_parts(outs, e->w.w2, w2, b->gradients.w2, err);
}

static cmoe_status check(const cmoei_experts_back *b, const cmoe_arena *scratch, cmoe_error *err)
{
    const cmoe_groups *g = &b->saved->groups;
    const int64_t T = g->tokens, K = g->topk, H = b->saved->e.hidden;
    cmoei_outs outs;
    outs.count = outs.trainables = outs.inputs = 0;
    CMOEI_TRY(cmoei_train_check_in(&b->x, "x", T, "tokens", H, "hidden", err));
    CMOEI_TRY(cmoei_train_check_in(&b->weights, "topk_weights", T, "tokens", K, "topk", err));
    CMOEI_TRY(cmoei_train_check_in(&b->dout, "dout", T, "tokens", H, "hidden", err));
    cmoei_outs_input(&outs, b->x, "x");
    cmoei_outs_input(&outs, b->weights, "topk_weights");
    cmoei_outs_input(&outs, b->dout, "dout");
    cmoei_outs_input(&outs, cmoei_saved_view(&b->saved->head), "saved");
    CMOEI_TRY(cmoei_outs_add(&outs, &b->gradients.dx, "dx", T, "tokens", H, "hidden", err));
    CMOEI_TRY(
        cmoei_outs_add(&outs, &b->gradients.dweights, "dweights", T, "tokens", K, "topk", err));
    CMOEI_TRY(cmoei_experts_back_check(b, "w13", "w2", &outs, err));
    return cmoei_outs_check(&outs, scratch, err);
}

/* ---- between the products -------------------------------------------------------------------- */

static void fill_coefficients(backward *f)
{
    const cmoe_view *w = &f->b->weights;
    const int64_t K = f->g->topk;
    const uint64_t before = cmoei_float_enter();
    for (int64_t t = 0; t < f->g->tokens; t++) {
        float *to = f->coefficients + t * K;
        cmoei_load_f32(to, cmoei_at(w, t, 0), CMOE_F32, w->strides[1], K);
        for (int64_t k = 0; k < K; k++)
            to[k] *= f->b->scale;
    }
    cmoei_float_leave(before);
}

/* The bias of one expert, [H] as w2's kernel has it; NULL when there is none. */
static const float *bias_of(const cmoe_matrix *w2, int64_t expert)
{
    return w2->bias ? w2->bias + expert * w2->panels * w2->kernel->panel : NULL;
}

static int64_t expert_of(const cmoe_groups *g, int64_t row)
{
    int64_t low = 0, high = g->experts; /* first[low] <= row < first[high] */
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (g->first[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void act_rows(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const backward *f = arg;
    const cmoei_experts_train *e = f->e;
    const cmoei_act_backward_kernel *kernel =
        cmoei_table_pick(&cmoei_act_backward_table, e->w.w2->ctx->features, 0);
    const cmoe_view_mut *dweights = &f->b->gradients.dweights;
    int64_t begin, end;
    (void)team;
    cmoei_split(f->rows, index, count, &begin, &end);
    int64_t expert = begin < end ? expert_of(f->g, begin) : 0;
    for (int64_t r = begin; r < end; r++) {
        while (r >= f->g->first[expert + 1])
            expert++;
        const int64_t slot = f->g->slots[r], K = f->g->topk;
        float dot;
        kernel->row(&(cmoei_act_backward_args){
            .activation = &e->activation,
            .inter = e->inter,
            .hidden = f->hidden,
            .gate_at = e->gate_at,
            .up_at = e->up_at,
            .step = e->step,
            .gate_up = f->b->saved->gate_up + r * e->columns,
            .g = f->hw + r * e->inter,
            .weight = f->coefficients[slot],
            .bias = bias_of(&e->w.w2->forward, expert),
            .dout = cmoei_at(&f->b->dout, slot / K, 0),
            .hw = f->hw + r * e->inter,
            .dgate_up = f->dgate_up + r * e->columns,
            .dweight = &dot,
        });
        dot *= f->b->scale;
        if (given_mut(dweights))
            memcpy(cmoei_at_mut(dweights, slot / K, slot % K), &dot, sizeof dot);
    }
}

static void clear_dropped(const backward *f)
{
    const cmoe_view_mut *to = &f->b->gradients.dweights;
    const int64_t K = f->g->topk;
    const float none = 0;
    for (int64_t i = 0; given_mut(to) && i < f->g->tokens * K; i++) {
        if (f->g->row_of[i] < 0) memcpy(cmoei_at_mut(to, i / K, i % K), &none, sizeof none);
    }
}

/* ---- products -------------------------------------------------------------------------------- */

static cmoe_view_mut rows_of(const backward *f, float *p, int64_t columns)
{
    return cmoe_view_mut_2d(p, CMOE_F32, f->rows, columns);
}

/* w2 without its biases takes dout by token; they take c * dout, row by row. */
static cmoe_status down_gradients(cmoe_stream *s, backward *f, cmoe_error *err)
{
    const cmoei_experts_back *b = f->b;
    const cmoe_trainable *w2 = f->e->w.w2;
    const cmoe_view hw = cmoe_view_of(rows_of(f, f->hw, f->e->inter));
    cmoe_part_gradient plain[CMOEI_PARTS_MOST], biases[CMOEI_PARTS_MOST];
    cmoe_trainable_dw_options o;
    bool bias = false;
    if (!b->gradients.w2) return CMOE_OK;
    for (int64_t i = 0; i < w2->count; i++) {
        plain[i] = b->gradients.w2[i];
        biases[i] = (cmoe_part_gradient){.bias = plain[i].bias};
        bias = bias || given_mut(&plain[i].bias);
        plain[i].bias = cmoe_view_mut_none();
    }
    cmoe_trainable_dw_options_default(&o, sizeof o);
    o.x_grouped = 1;
    CMOEI_TRY(cmoe_trainable_dw(s, w2, &o, b->dout, hw, f->g, b->units, plain, &f->rest, err));
    if (!bias) return CMOE_OK;
    const cmoe_view_mut weighted = rows_of(f, f->hidden_rows, f->hidden);
    const cmoe_view c = cmoe_view_2d(f->coefficients, CMOE_F32, f->g->tokens, f->g->topk);
    CMOEI_TRY(cmoe_group_rows(s, b->dout, 0, c, f->g, weighted, err));
    o.dy_grouped = 1;
    return cmoe_trainable_dw(s, w2, &o, cmoe_view_of(weighted), hw, f->g, b->units, biases,
                             &f->rest, err);
}

static cmoe_status up_gradients(cmoe_stream *s, backward *f, cmoe_error *err)
{
    const cmoei_experts_back *b = f->b;
    const cmoe_trainable *w13 = f->e->w.w13;
    const cmoe_view dgate_up = cmoe_view_of(rows_of(f, f->dgate_up, f->e->columns));
    cmoe_trainable_dw_options o;
    if (b->gradients.w13) {
        cmoe_trainable_dw_options_default(&o, sizeof o);
        o.dy_grouped = 1;
        CMOEI_TRY(cmoe_trainable_dw(s, w13, &o, dgate_up, b->x, f->g, b->units, b->gradients.w13,
                                    &f->rest, err));
    }
    if (!given_mut(&b->gradients.dx)) return CMOE_OK;
    const cmoe_view_mut dx_rows = rows_of(f, f->hidden_rows, f->hidden);
    CMOEI_TRY(cmoe_trainable_dx(s, w13, dgate_up, 1, f->g, dx_rows, &f->rest, err));
    const cmoe_view rows = cmoe_view_of(dx_rows);
    const cmoei_combine_args args = {.rows = cmoei_plane_of(&rows),
                                     .shared = cmoei_plane_of(&b->base),
                                     .out = cmoei_plane_mut(&b->gradients.dx),
                                     .row_of = f->g->row_of,
                                     .topk = f->g->topk,
                                     .hidden = f->hidden,
                                     .scale = 1};
    cmoei_combine_run(s->ctx, &args, f->g->tokens);
    return CMOE_OK;
}

static cmoe_status carve(backward *f, const cmoe_arena *scratch, cmoe_error *err)
{
    const int64_t float_bytes = (int64_t)sizeof(float), slots = f->g->tokens * f->g->topk;
    cmoei_carver c = cmoei_carver_open(scratch);
    f->coefficients = cmoei_carve_array(&c, slots, float_bytes);
    f->hw = cmoei_carve_array(&c, f->rows, f->e->inter * float_bytes);
    f->dgate_up = cmoei_carve_array(&c, f->rows, f->e->columns * float_bytes);
    f->hidden_rows = cmoei_carve_array(&c, f->rows, f->hidden * float_bytes);
    CMOEI_TRY(cmoei_carver_check(&c, "experts_train", err));
    f->rest = (cmoe_arena){c.base, c.bytes, c.used};
    return CMOE_OK;
}

cmoe_status cmoei_experts_back_run(cmoe_stream *s, const cmoei_experts_back *b, cmoe_arena scratch,
                                   cmoe_error *err)
{
    const cmoei_experts_saved *k = b->saved;
    backward f = {.b = b,
                  .e = &k->e,
                  .g = &k->groups,
                  .rows = k->groups.first[k->e.experts],
                  .hidden = k->e.hidden};
    CMOEI_TRY(carve(&f, &scratch, err));
    CMOEI_TRY(cmoe_trainable_dx(s, k->e.w.w2, b->dout, 0, f.g, rows_of(&f, f.hw, k->e.inter),
                                &f.rest, err));
    fill_coefficients(&f);
    cmoei_region(s->ctx, f.rows, act_rows, &f);
    clear_dropped(&f);
    CMOEI_TRY(down_gradients(s, &f, err));
    return up_gradients(s, &f, err);
}

cmoe_status cmoe_experts_backward(cmoe_stream *s, const cmoe_saved *saved, cmoe_view x,
                                  cmoe_view weights, cmoe_view dout, const cmoe_units *units,
                                  const cmoe_experts_gradients *gradients, cmoe_arena *scratch,
                                  cmoe_error *err)
{
    int64_t keep, need, one[2];
    cmoe_units checked;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_saved_check(saved, CMOEI_SAVED_EXPERTS, s, "cmoe_experts_train", err));
    if (!gradients)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "experts_backward: gradients is NULL, want a list of what to compute");
    const cmoei_experts_back b = {.saved = (const cmoei_experts_saved *)(const void *)saved,
                                  .scale = 1,
                                  .x = x,
                                  .weights = weights,
                                  .dout = dout,
                                  .units = units,
                                  .gradients = *gradients};
    const cmoe_groups *g = &b.saved->groups;
    CMOEI_TRY(check(&b, scratch, err));
    CMOEI_TRY(cmoei_units_check(units, g->tokens, &checked, one, err));
    CMOEI_TRY(cmoei_experts_train_bytes(&b.saved->e, g->tokens, g->topk, &keep, &need, err));
    CMOEI_TRY(cmoei_train_check_left(scratch, need, "experts_backward: scratch",
                                     "cmoe_experts_train_bytes", err));
    return cmoei_experts_back_run(s, &b, *scratch, err);
}
