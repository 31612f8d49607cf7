/* SPDX-License-Identifier: MIT
 *
 * train_forward.c - one batch through a layer of weights that change.
 *
 * The same steps as forward.c, in one chunk, with the same bits in f32; kept are logits, ids and
 * weights, the weight of the shared expert, and what the experts keep.
 */
#include <string.h>

#include "core/units.h"
#include "core/vmath.h"
#include "train.h"

typedef struct forward {
    const cmoe_layer_train *l;
    cmoei_layer_saved *k;
    cmoei_layer_room room;
    cmoe_arena *keep; /* of the experts' saved values; NULL: nothing is kept */
    cmoe_arena rest;
} forward;

static cmoe_status keep_open(const cmoe_layer_train *l, int64_t tokens, cmoe_arena *arena,
                             cmoei_layer_saved **out, cmoe_error *err)
{
    const int64_t bytes = (int64_t)sizeof(float), K = l->route.topk;
    cmoei_carver c = cmoei_carver_open(arena);
    cmoei_layer_saved *k = cmoei_carve(&c, (int64_t)sizeof *k);
    CMOEI_TRY(cmoei_carver_check(&c, "layer_train", err));
    *k = (cmoei_layer_saved){
        .head = {.kind = CMOEI_SAVED_LAYER, .ctx = l->ctx}, .l = l, .tokens = tokens};
    k->logits = cmoei_carve_array(&c, tokens, l->count * bytes);
    k->weights = cmoei_carve_array(&c, tokens, K * bytes);
    k->ids = cmoei_carve_array(&c, tokens, K * (int64_t)sizeof *k->ids);
    k->shared_weights = cmoei_carve_array(&c, tokens, bytes);
    CMOEI_TRY(cmoei_carver_check(&c, "layer_train", err));
    arena->used = c.used;
    *out = k;
    return CMOE_OK;
}

static cmoe_status route(cmoe_stream *s, forward *f, cmoe_view x, const cmoe_layer_call *call,
                         cmoe_error *err)
{
    const cmoe_layer_train *l = f->l;
    cmoei_layer_saved *k = f->k;
    const int64_t n = k->tokens;
    const cmoe_view_mut logits = cmoe_view_mut_2d(k->logits, CMOE_F32, n, l->count);
    CMOEI_TRY(cmoe_trainable_forward(s, l->o.gate, x, 0, NULL, logits, &f->rest, err));
    cmoe_route_inputs in = cmoei_layer_train_inputs(l);
    in.given_ids = call->replay_ids;
    in.given_weights = call->replay_weights;
    k->replayed = cmoei_given(&call->replay_ids);
    k->forced = cmoei_given(&call->replay_weights);
    return cmoe_route(s, &l->route, cmoe_view_of(logits), &in,
                      cmoe_view_mut_2d(k->weights, CMOE_F32, n, l->route.topk),
                      cmoe_view_mut_2d(k->ids, CMOE_I32, n, l->route.topk), &f->rest, err);
}

/* shared[t] = mlp(x[t]) * (sigmoid(gate[t]) or 1): the shared expert routed to by every token. */
static cmoe_status run_shared(cmoe_stream *s, forward *f, cmoe_view x, cmoe_error *err)
{
    const cmoe_layer_train *l = f->l;
    cmoei_layer_saved *k = f->k;
    const int64_t n = k->tokens;
    if (l->o.shared_gate)
        CMOEI_TRY(cmoe_trainable_forward(s, l->o.shared_gate, x, 0, NULL,
                                         cmoe_view_mut_2d(k->shared_weights, CMOE_F32, n, 1),
                                         &f->rest, err));
    const uint64_t before = cmoei_float_enter();
    for (int64_t t = 0; t < n; t++) {
        f->room.shared_ids[t] = 0;
        k->shared_weights[t] = l->o.shared_gate ? cmoei_sigmoidf(k->shared_weights[t]) : 1.0f;
    }
    cmoei_float_leave(before);
    const cmoei_experts_forward e = {.x = x,
                                     .ids = cmoe_view_2d(f->room.shared_ids, CMOE_I32, n, 1),
                                     .weights = cmoe_view_2d(k->shared_weights, CMOE_F32, n, 1),
                                     .out =
                                         cmoe_view_mut_2d(f->room.shared, CMOE_F32, n, l->hidden)};
    return cmoei_experts_train_run(s, &l->shared, &e, f->keep ? &k->shared : NULL, f->keep, f->rest,
                                   err);
}

static cmoe_status run_experts(cmoe_stream *s, forward *f, cmoe_view x, cmoe_view_mut out,
                               cmoe_error *err)
{
    const cmoe_layer_train *l = f->l;
    cmoei_layer_saved *k = f->k;
    const int64_t n = k->tokens, K = l->route.topk;
    cmoe_combine_options o;
    cmoe_combine_options_default(&o, sizeof o);
    o.scale = l->o.combine_scale;
    o.shared_first = l->o.shared_first;
    const cmoei_experts_forward e = {
        .combine = &o,
        .x = x,
        .ids = cmoe_view_2d(k->ids, CMOE_I32, n, K),
        .weights = cmoe_view_2d(k->weights, CMOE_F32, n, K),
        .shared =
            l->o.shared13 ? cmoe_view_2d(f->room.shared, CMOE_F32, n, l->hidden) : cmoe_view_none(),
        .out = out};
    return cmoei_experts_train_run(s, &l->experts, &e, f->keep ? &k->experts : NULL, f->keep,
                                   f->rest, err);
}

static cmoe_status run(cmoe_stream *s, const cmoe_layer_train *l, cmoe_view x,
                       const cmoe_layer_call *call, cmoe_view_mut out, cmoe_arena *keep,
                       cmoe_arena scratch, cmoei_layer_saved **saved, cmoe_error *err)
{
    forward f = {.l = l, .keep = keep};
    const int64_t n = x.dims[0];
    CMOEI_TRY(keep_open(l, n, keep ? keep : &scratch, &f.k, err));
    cmoei_carver c = cmoei_carver_open(&scratch);
    cmoei_layer_room_carve(l, n, &c, &f.room);
    CMOEI_TRY(cmoei_carver_check(&c, "layer_train", err));
    f.rest = (cmoe_arena){c.base, c.bytes, c.used};
    CMOEI_TRY(route(s, &f, x, call, err));
    if (l->o.shared13) CMOEI_TRY(run_shared(s, &f, x, err));
    CMOEI_TRY(run_experts(s, &f, x, out, err));
    const cmoei_layer_record r = {n, l->count, l->route.topk, f.k->ids, f.k->weights, f.k->logits};
    cmoei_layer_write_call(&r, 0, call);
    if (keep) f.k->head.bytes = (char *)keep->base + keep->used - (char *)f.k;
    *saved = f.k;
    return CMOE_OK;
}

/* No output lies on weights that are borrowed, or on the vectors, which always are. */
static cmoe_status check_weights(const cmoe_layer_train *l, const cmoe_layer_call *call,
                                 const cmoe_view_mut *out, cmoe_error *err)
{
    const cmoe_trainable *t[] = {l->o.gate,     l->o.w13,     l->o.w2,
                                 l->o.shared13, l->o.shared2, l->o.shared_gate};
    const cmoe_view_mut *outs[] = {out, &call->ids, &call->weights, &call->logits, &call->load};
    static const char *const names[] = {"out", "ids", "weights", "logits", "load"};
    for (int64_t i = 0; i < CMOEI_COUNT(outs); i++) {
        for (int64_t k = 0; k < CMOEI_COUNT(t); k++)
            if (t[k]) CMOEI_TRY(cmoei_trainable_apart(outs[i], names[i], t[k], err));
        CMOEI_TRY(cmoei_check_apart(outs[i], names[i], &l->o.bias, "bias", err));
        CMOEI_TRY(
            cmoei_check_apart(outs[i], names[i], &l->o.per_expert_scale, "per_expert_scale", err));
    }
    return CMOE_OK;
}

static cmoe_status check(const cmoe_layer_train *l, const cmoe_view *x, const cmoe_layer_call *call,
                         const cmoe_view_mut *out, const cmoe_arena *arena, cmoe_error *err)
{
    const cmoei_layer_form form = {
        .experts = l->count, .topk = l->route.topk, .hidden = l->hidden, .gate = true};
    CMOEI_TRY(cmoei_train_check_in(x, "x", -1, "tokens", l->hidden, "hidden", err));
    CMOEI_TRY(cmoei_train_check_out(out, "out", x->dims[0], "tokens", l->hidden, "hidden", err));
    if (call->balance_loss)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "balance_loss is asked for, want it from cmoe_layer_backward");
    CMOEI_TRY(cmoei_layer_check(&form, x, call, out, arena, err));
    return check_weights(l, call, out, err);
}

cmoe_status cmoe_layer_train_forward(cmoe_stream *s, const cmoe_layer_train *l, cmoe_view x,
                                     const cmoe_layer_call *given, cmoe_view_mut out,
                                     cmoe_saved **saved, cmoe_arena *keep, cmoe_arena *scratch,
                                     cmoe_error *err)
{
    static const char *const ask = "cmoe_layer_train_bytes";
    cmoe_layer_call call;
    cmoei_layer_saved *k;
    int64_t need_keep, need;
    cmoe_layer_call_default(&call, sizeof call);
    CMOEI_TRY(cmoei_layer_train_check(s, l, err));
    CMOEI_TRY(cmoei_options_read(&call, sizeof call, given, "cmoe_layer_call", err));
    CMOEI_TRY(check(l, &x, &call, &out, scratch, err));
    CMOEI_TRY(cmoe_layer_train_bytes(l, x.dims[0], &need_keep, &need, NULL, err));
    CMOEI_TRY(cmoei_train_check_left(scratch, need, "layer_train: scratch", ask, err));
    if (!saved) return run(s, l, x, &call, out, NULL, *scratch, &k, err);
    CMOEI_TRY(check(l, &x, &call, &out, keep, err));
    CMOEI_TRY(cmoei_train_check_left(keep, need_keep, "layer_train: keep", ask, err));
    CMOEI_TRY(cmoei_train_check_arenas(keep, scratch, err));
    cmoe_arena room = *keep;
    CMOEI_TRY(run(s, l, x, &call, out, &room, *scratch, &k, err));
    keep->used = room.used;
    *saved = &k->head;
    return CMOE_OK;
}
