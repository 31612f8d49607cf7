/* SPDX-License-Identifier: MIT
 *
 * train_backward.c - a layer backwards.
 *
 *     experts      dx, dweights, dw13, dw2
 *     shared       dx, dweight -> sigmoid' -> gradient of the shared gate's logit
 *     router       dweights -> dlogits (+ balance loss, + z-loss) -> dgate, dx
 *
 * THE order in which a token's dx is added up, in place:
 *
 *     ((experts + shared) + shared gate) + router
 */
#include "cmoe/ops.h"
#include "core/units.h"
#include "train.h"

typedef struct backward {
    const cmoe_layer_train *l;
    const cmoei_layer_saved *k;
    const cmoe_layer_gradients *g;
    const cmoe_units *units;
    cmoe_view x, dout;
    cmoei_layer_room room;
    cmoe_arena rest;
} backward;

static bool given_mut(const cmoe_view_mut *v)
{
    return v->dtype != 0 || v->data != NULL;
}

static cmoe_view floats(const float *p, int64_t rows, int64_t columns)
{
    return cmoe_view_2d(p, CMOE_F32, rows, columns);
}

/* Somebody wants what the gradient of the router's logits leads to. */
static bool router_wanted(const cmoe_layer_gradients *g)
{
    return g->gate || given_mut(&g->dx);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static cmoei_experts_back experts_of(const backward *f)
{
    const int64_t n = f->k->tokens, K = f->l->route.topk;
    cmoei_experts_back b = {.saved = f->k->experts,
                            .scale = f->l->o.combine_scale,
                            .x = f->x,
                            .weights = floats(f->k->weights, n, K),
                            .dout = f->dout,
                            .units = f->units};
    b.gradients = (cmoe_experts_gradients){.dx = f->g->dx, .w13 = f->g->w13, .w2 = f->g->w2};
    return b;
}

static cmoei_experts_back shared_of(const backward *f)
{
    cmoei_experts_back b = {.saved = f->k->shared,
                            .scale = 1,
                            .x = f->x,
                            .weights = floats(f->k->shared_weights, f->k->tokens, 1),
                            .dout = f->dout,
                            .units = f->units};
    b.gradients =
        (cmoe_experts_gradients){.dx = f->g->dx, .w13 = f->g->shared13, .w2 = f->g->shared2};
    return b;
}

/* dx += dy . w, through room.shared */
static cmoe_status add_dx(cmoe_stream *s, backward *f, const cmoe_trainable *t, cmoe_view dy,
                          cmoe_error *err)
{
    const int64_t n = f->k->tokens, hidden = f->l->hidden;
    const cmoe_view_mut part = cmoe_view_mut_2d(f->room.shared, CMOE_F32, n, hidden);
    if (!given_mut(&f->g->dx)) return CMOE_OK;
    CMOEI_TRY(cmoe_trainable_dx(s, t, dy, 0, NULL, part, &f->rest, err));
    return cmoe_scaled_add(s, cmoe_view_of(f->g->dx), cmoe_view_of(part), 1, f->g->dx, err);
}

static cmoe_status linear_back(cmoe_stream *s, backward *f, const cmoe_trainable *t, cmoe_view dy,
                               const cmoe_part_gradient *parts, cmoe_error *err)
{
    if (parts)
        CMOEI_TRY(cmoe_trainable_dw(s, t, NULL, dy, f->x, NULL, f->units, parts, &f->rest, err));
    return add_dx(s, f, t, dy, err);
}

/* From the weight of the shared expert, sigmoid(z), to z. */
static void through_sigmoid(const backward *f)
{
    const uint64_t before = cmoei_float_enter();
    for (int64_t t = 0; t < f->k->tokens; t++) {
        const float y = f->k->shared_weights[t];
        f->room.dshared[t] *= y * (1.0f - y);
    }
    cmoei_float_leave(before);
}

static cmoe_status shared_back(cmoe_stream *s, backward *f, cmoe_error *err)
{
    const cmoe_trainable *gate = f->l->o.shared_gate;
    const int64_t n = f->k->tokens;
    cmoei_experts_back b = shared_of(f);
    b.base = given_mut(&f->g->dx) ? cmoe_view_of(f->g->dx) : cmoe_view_none();
    if (gate) b.gradients.dweights = cmoe_view_mut_2d(f->room.dshared, CMOE_F32, n, 1);
    CMOEI_TRY(cmoei_experts_back_run(s, &b, f->rest, err));
    if (!gate) return CMOE_OK;
    through_sigmoid(f);
    return linear_back(s, f, gate, floats(f->room.dshared, n, 1), f->g->shared_gate, err);
}

/* Losses are computed when they are asked for, their gradients where their scale is not 0. */
static cmoe_status auxiliary(cmoe_stream *s, backward *f, bool wanted, cmoe_error *err)
{
    const cmoei_layer_saved *k = f->k;
    const cmoe_layer_gradients *g = f->g;
    const int64_t n = k->tokens, E = f->l->count;
    const cmoe_view logits = floats(k->logits, n, E);
    const cmoe_view ids = cmoe_view_2d(k->ids, CMOE_I32, n, f->l->route.topk);
    const cmoe_view_mut none = cmoe_view_mut_none();
    const cmoe_view_mut to = cmoe_view_mut_2d(f->room.dlogits, CMOE_F32, n, E);
    const bool balance = wanted && g->balance != 0, z = wanted && g->z_loss != 0;
    double unused;
    if (balance || g->balance_loss)
        CMOEI_TRY(cmoe_route_balance_backward(s, logits, ids, g->mask, f->units, g->balance,
                                              g->balance_loss ? g->balance_loss : &unused,
                                              balance ? to : none, err));
    if (z || g->z_loss_value)
        CMOEI_TRY(cmoe_route_z_loss_backward(s, logits, g->mask, f->units, g->z_loss,
                                             g->z_loss_value ? g->z_loss_value : &unused,
                                             z ? to : none, err));
    return CMOE_OK;
}

static cmoe_status router_back(cmoe_stream *s, backward *f, cmoe_error *err)
{
    const cmoei_layer_saved *k = f->k;
    const int64_t n = k->tokens, E = f->l->count, K = f->l->route.topk;
    if (!router_wanted(f->g)) return auxiliary(s, f, false, err);
    const cmoe_view_mut dlogits = cmoe_view_mut_2d(f->room.dlogits, CMOE_F32, n, E);
    const cmoe_view ids = cmoe_view_2d(k->ids, CMOE_I32, n, K), weights = floats(k->weights, n, K);
    cmoe_route_inputs in = cmoei_layer_train_inputs(f->l);
    if (k->replayed) in.given_ids = ids;
    if (k->forced) in.given_weights = weights;
    CMOEI_TRY(cmoe_route_backward(s, &f->l->route, floats(k->logits, n, E), &in, ids, weights,
                                  floats(f->room.dweights, n, K), dlogits, err));
    CMOEI_TRY(auxiliary(s, f, true, err));
    return linear_back(s, f, f->l->o.gate, cmoe_view_of(dlogits), f->g->gate, err);
}

static cmoe_status run(cmoe_stream *s, backward *f, const cmoe_arena *scratch, cmoe_error *err)
{
    const int64_t n = f->k->tokens, K = f->l->route.topk;
    cmoei_carver c = cmoei_carver_open(scratch);
    cmoei_layer_room_carve(f->l, n, &c, &f->room);
    CMOEI_TRY(cmoei_carver_check(&c, "layer_train", err));
    f->rest = (cmoe_arena){c.base, c.bytes, c.used};
    cmoei_experts_back b = experts_of(f);
    if (router_wanted(f->g))
        b.gradients.dweights = cmoe_view_mut_2d(f->room.dweights, CMOE_F32, n, K);
    CMOEI_TRY(cmoei_experts_back_run(s, &b, f->rest, err));
    if (f->l->o.shared13) CMOEI_TRY(shared_back(s, f, err));
    return router_back(s, f, err);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoe_status check_losses(const backward *f, cmoe_error *err)
{
    const cmoe_layer_gradients *g = f->g;
    const float scales[] = {g->balance, g->z_loss};
    static const char *const names[] = {"balance", "z_loss"};
    for (int i = 0; i < 2; i++) {
        if (scales[i] - scales[i] != 0)
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %g, want a finite number (0: none)",
                              names[i], (double)scales[i]);
    }
    const cmoei_want want = {"mask", CMOEI_DTYPE(CMOE_I32), 1, {f->k->tokens}, {"tokens"}};
    return cmoei_given(&g->mask) ? cmoei_check_in(&g->mask, &want, err) : CMOE_OK;
}

static cmoe_status check_absent(const cmoe_layer_train *l, const cmoe_layer_gradients *g,
                                cmoe_error *err)
{
    if (!l->o.shared13 && (g->shared13 || g->shared2))
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is asked for, but this layer has no shared expert",
                          g->shared13 ? "shared13" : "shared2");
    if (!l->o.shared_gate && g->shared_gate)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "shared_gate is asked for, but this layer has no shared gate");
    return CMOE_OK;
}

static cmoe_status check(const backward *f, const cmoe_arena *scratch, cmoe_error *err)
{
    const int64_t n = f->k->tokens, hidden = f->l->hidden;
    cmoei_outs outs;
    outs.count = outs.trainables = outs.inputs = 0;
    CMOEI_TRY(cmoei_train_check_in(&f->x, "x", n, "tokens", hidden, "hidden", err));
    CMOEI_TRY(cmoei_train_check_in(&f->dout, "dout", n, "tokens", hidden, "hidden", err));
    CMOEI_TRY(check_losses(f, err));
    CMOEI_TRY(check_absent(f->l, f->g, err));
    cmoei_outs_input(&outs, f->x, "x");
    cmoei_outs_input(&outs, f->dout, "dout");
    cmoei_outs_input(&outs, f->g->mask, "mask");
    cmoei_outs_input(&outs, f->l->o.per_expert_scale, "per_expert_scale");
    cmoei_outs_input(&outs, f->l->o.bias, "bias");
    cmoei_outs_input(&outs, cmoei_saved_view(&f->k->head), "saved");
    CMOEI_TRY(cmoei_outs_add(&outs, &f->g->dx, "dx", n, "tokens", hidden, "hidden", err));
    const cmoei_experts_back experts = experts_of(f), shared = shared_of(f);
    CMOEI_TRY(cmoei_experts_back_check(&experts, "w13", "w2", &outs, err));
    if (f->k->shared)
        CMOEI_TRY(cmoei_experts_back_check(&shared, "shared13", "shared2", &outs, err));
    CMOEI_TRY(cmoei_outs_add_parts(&outs, f->l->o.gate, "gate", f->g->gate, err));
    CMOEI_TRY(
        cmoei_outs_add_parts(&outs, f->l->o.shared_gate, "shared_gate", f->g->shared_gate, err));
    return cmoei_outs_check(&outs, scratch, err);
}

cmoe_status cmoe_layer_backward(cmoe_stream *s, const cmoe_layer_train *l, const cmoe_saved *saved,
                                cmoe_view x, cmoe_view dout, const cmoe_units *units,
                                const cmoe_layer_gradients *given, cmoe_arena *scratch,
                                cmoe_error *err)
{
    cmoe_layer_gradients g;
    cmoe_units checked;
    int64_t keep, need, one[2];
    cmoe_layer_gradients_default(&g, sizeof g);
    CMOEI_TRY(cmoei_layer_train_check(s, l, err));
    CMOEI_TRY(cmoei_saved_check(saved, CMOEI_SAVED_LAYER, s, "cmoe_layer_train_forward", err));
    CMOEI_TRY(cmoei_options_read(&g, sizeof g, given, "cmoe_layer_gradients", err));
    const cmoei_layer_saved *k = (const cmoei_layer_saved *)(const void *)saved;
    if (k->l != l)
        return cmoei_fail(err, CMOE_ERR_ARG, "saved was kept by another layer, want this one's");
    backward f = {.l = l, .k = k, .g = &g, .units = units, .x = x, .dout = dout};
    CMOEI_TRY(check(&f, scratch, err));
    CMOEI_TRY(cmoei_units_check(units, k->tokens, &checked, one, err));
    CMOEI_TRY(cmoe_layer_train_bytes(l, k->tokens, &keep, &need, NULL, err));
    CMOEI_TRY(cmoei_train_check_left(scratch, need, "layer_backward: scratch",
                                     "cmoe_layer_train_bytes", err));
    return run(s, &f, scratch, err);
}
