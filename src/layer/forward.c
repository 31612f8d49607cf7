/* SPDX-License-Identifier: MIT
 *
 * forward.c - one batch through a layer, a chunk of tokens at a time.
 *
 * n tokens of a chunk, E experts, W = K + appended slots, H hidden.  Scratch of a chunk:
 *
 *     logits [n, E]   weights [n, W]   ids [n, W]   shared gate [n, S]   shared row [n, H]
 *     then what dispatch and experts keep, then whatever one step needs at a time
 *
 * Everything that is given is checked before anything is written.
 */
#include <inttypes.h>

#include "core/vmath.h"
#include "layer.h"

static const cmoe_layer_call default_call = {.size = sizeof default_call};

void cmoe_layer_call_default(cmoe_layer_call *c, size_t size)
{
    cmoei_options_write(c, size, &default_call, sizeof default_call);
}

/* ---- scratch --------------------------------------------------------------------------------- */

typedef struct chunk {
    int64_t tokens;
    float *logits, *weights;     /* [n, E], [n, W] */
    int32_t *ids;                /* [n, W] */
    float *shared_gate, *shared; /* [n, S], [n, H] */
    int32_t *shared_ids;         /* [n] zeros: the one shared expert */
    void *rows;                  /* [capacity, H] of row_dtype, in group order */
    cmoe_arena rest;             /* what is left for the steps */
} chunk;

static int64_t gates(const cmoe_layer *l)
{
    return l->shared ? 1 : l->appended;
}

static void carve(const cmoe_layer *l, chunk *k, cmoei_carver *c)
{
    const int64_t n = k->tokens;
    k->logits = cmoei_carve_array(c, n, (l->gate ? l->experts : 0) * (int64_t)sizeof *k->logits);
    k->weights = cmoei_carve_array(c, n, l->width * (int64_t)sizeof *k->weights);
    k->ids = cmoei_carve_array(c, n, l->width * (int64_t)sizeof *k->ids);
    k->shared_gate = cmoei_carve_array(c, n, gates(l) * (int64_t)sizeof *k->shared_gate);
    k->shared = cmoei_carve_array(c, n, (l->shared ? l->hidden : 0) * (int64_t)sizeof *k->shared);
    k->shared_ids = cmoei_carve_array(c, n, l->shared ? (int64_t)sizeof *k->shared_ids : 0);
    k->rows = cmoei_carve_array(c, cmoe_dispatch_capacity(l->dispatch, n, l->width),
                                l->hidden * cmoe_dtype_bytes(l->own->o.row_dtype));
}

/* The steps that run one after another share what is left; dispatch and experts stand together. */
static cmoe_status steps_bytes(const cmoe_layer *l, int64_t n, int64_t *bytes, cmoe_error *err)
{
    int64_t route, dispatch, experts, most = 0, one;
    if (l->gate) {
        const cmoei_logits logits = cmoei_layer_logits(l);
        CMOEI_TRY(cmoei_logits_bytes(&logits, n, &most, err));
    }
    if (l->shared_gate) {
        CMOEI_TRY(cmoe_linear_bytes(l->shared_gate, n, &one, NULL, err));
        most = CMOEI_MAX(most, one);
    }
    if (l->shared) {
        CMOEI_TRY(cmoe_experts_bytes(l->shared, n, 1, &one, NULL, err));
        most = CMOEI_MAX(most, one);
    }
    CMOEI_TRY(cmoe_route_bytes(&l->route, n, l->experts, &route, NULL, err));
    CMOEI_TRY(cmoe_dispatch_bytes(l->dispatch, n, l->width, &dispatch, NULL, err));
    CMOEI_TRY(cmoe_experts_rows_bytes(l->own, n, cmoe_dispatch_capacity(l->dispatch, n, l->width),
                                      &experts, NULL, err));
    if (!cmoei_add(dispatch, experts, &one))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: scratch of %" PRId64 " tokens exceeds 2^63 - 1", n);
    *bytes = CMOEI_MAX(CMOEI_MAX(most, route), one);
    return CMOE_OK;
}

cmoe_status cmoe_layer_bytes(const cmoe_layer *l, int64_t tokens, int64_t *host, int64_t *device,
                             cmoe_error *err)
{
    if (!l || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer_bytes: %s is NULL", l ? "host" : "layer");
    int64_t steps;
    chunk k = {.tokens = CMOEI_MIN(tokens, l->o.chunk)};
    if (tokens < 0 || !cmoei_mul(k.tokens, l->width, &steps) || steps > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64
                          ", want >= 0 and at most 2^31 - 1 slots a chunk of %" PRId64,
                          tokens, l->o.chunk);
    CMOEI_TRY(steps_bytes(l, k.tokens, &steps, err));
    cmoei_carver c = cmoei_carver_dry();
    carve(l, &k, &c);
    cmoei_carve(&c, steps);
    CMOEI_TRY(cmoei_carver_check(&c, "layer", err));
    *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static cmoe_view_mut logits_of(const cmoe_layer *l, const chunk *k)
{
    return l->gate ? cmoe_view_mut_2d(k->logits, CMOE_F32, k->tokens, l->experts)
                   : cmoe_view_mut_none();
}

static cmoe_status route_chunk(cmoe_stream *s, const cmoe_layer *l, chunk *k, cmoe_view x,
                               const cmoe_layer_call *call, cmoe_error *err)
{
    if (l->gate) {
        const cmoei_logits logits = cmoei_layer_logits(l);
        CMOEI_TRY(cmoei_logits_run(s, &logits, x, logits_of(l, k), &k->rest, err));
    }
    const cmoe_view_mut gate = cmoe_view_mut_2d(k->shared_gate, CMOE_F32, k->tokens, gates(l));
    if (l->shared_gate) CMOEI_TRY(cmoe_linear(s, x, l->shared_gate, gate, &k->rest, err));
    cmoe_route_inputs in;
    cmoe_route_inputs_default(&in, sizeof in);
    if (l->bias) in.bias = cmoe_view_1d(l->bias, CMOE_F32, l->experts);
    if (l->per_expert_scale)
        in.per_expert_scale = cmoe_view_1d(l->per_expert_scale, CMOE_F32, l->experts);
    if (l->appended > 0 && l->shared_gate) in.shared_gate = cmoe_view_of(gate);
    if (cmoei_given(&call->replay_ids)) {
        in.given_ids = call->replay_ids;
        in.given_weights = call->replay_weights;
    } else if (l->vocab > 0) {
        in.hash_table = cmoe_view_2d(l->hash_table, CMOE_I32, l->vocab, l->route.topk);
        in.input_ids = call->input_ids;
    }
    return cmoe_route(s, &l->route, cmoe_view_of(logits_of(l, k)), &in,
                      cmoe_view_mut_2d(k->weights, CMOE_F32, k->tokens, l->width),
                      cmoe_view_mut_2d(k->ids, CMOE_I32, k->tokens, l->width), &k->rest, err);
}

/* shared[t] = mlp(x[t]) * (sigmoid(gate[t]) or 1): the shared expert routed to by every token. */
static cmoe_status shared_chunk(cmoe_stream *s, const cmoe_layer *l, chunk *k, cmoe_view x,
                                cmoe_error *err)
{
    const uint64_t before = cmoei_float_enter();
    for (int64_t t = 0; t < k->tokens; t++) {
        k->shared_ids[t] = 0;
        k->shared_gate[t] = l->shared_gate ? cmoei_sigmoidf(k->shared_gate[t]) : 1.0f;
    }
    cmoei_float_leave(before);
    return cmoe_experts_run(s, l->shared, x, cmoe_view_2d(k->shared_ids, CMOE_I32, k->tokens, 1),
                            cmoe_view_2d(k->shared_gate, CMOE_F32, k->tokens, 1), cmoe_view_none(),
                            cmoe_view_mut_2d(k->shared, CMOE_F32, k->tokens, l->hidden), &k->rest,
                            err);
}

static cmoe_status experts_chunk(cmoe_stream *s, const cmoe_layer *l, chunk *k, cmoe_view x,
                                 cmoe_view_mut out, cmoe_error *err)
{
    const cmoe_view weights = cmoe_view_2d(k->weights, CMOE_F32, k->tokens, l->width);
    const bool at_row = l->own->o.weight_at == CMOE_WEIGHT_ROW;
    cmoe_arena arena = k->rest;
    cmoe_received received = {.size = sizeof received};
    CMOEI_TRY(cmoe_dispatch_send(s, l->dispatch, x,
                                 cmoe_view_2d(k->ids, CMOE_I32, k->tokens, l->width),
                                 at_row ? weights : cmoe_view_none(), &received, &arena, err));
    const cmoe_groups *g = &received.groups;
    const cmoe_view_mut rows =
        cmoe_view_mut_2d(k->rows, l->own->o.row_dtype, g->first[g->experts], l->hidden);
    CMOEI_TRY(cmoe_experts_rows(s, l->own, received.x, received.x_grouped, g, received.weights,
                                rows, &arena, err));
    cmoe_view own_rows;
    cmoe_groups own;
    CMOEI_TRY(cmoe_dispatch_return(s, l->dispatch, &received, cmoe_view_of(rows), &own_rows, &own,
                                   &arena, err));
    cmoe_combine_options o;
    cmoe_combine_options_default(&o, sizeof o);
    o.scale = l->o.combine_scale;
    o.shared_first = l->o.shared_first;
    const cmoe_view shared =
        l->shared ? cmoe_view_2d(k->shared, CMOE_F32, k->tokens, l->hidden) : cmoe_view_none();
    return cmoe_combine(s, &o, own_rows, at_row ? cmoe_view_none() : weights, &own, shared, out,
                        &arena, err);
}

/* Scratch of tokens [begin, begin + tokens), and their routing in it. */
static cmoe_status open_chunk(cmoe_stream *s, const cmoe_layer *l, int64_t begin, int64_t tokens,
                              cmoe_view x, const cmoe_layer_call *call, const cmoe_arena *scratch,
                              chunk *k, cmoe_error *err)
{
    *k = (chunk){.tokens = tokens};
    cmoei_carver c = cmoei_carver_open(scratch);
    carve(l, k, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "layer", err));
    k->rest = (cmoe_arena){c.base, c.bytes, c.used};
    cmoe_layer_call part = *call;
    part.input_ids = cmoei_rows_of(call->input_ids, begin, tokens);
    part.replay_ids = cmoei_rows_of(call->replay_ids, begin, tokens);
    part.replay_weights = cmoei_rows_of(call->replay_weights, begin, tokens);
    return route_chunk(s, l, k, cmoei_rows_of(x, begin, tokens), &part, err);
}

static cmoe_status run_chunk(cmoe_stream *s, const cmoe_layer *l, int64_t begin, int64_t tokens,
                             cmoe_view x, const cmoe_layer_call *call, cmoe_view_mut out,
                             const cmoe_arena *scratch, cmoe_error *err)
{
    chunk k;
    CMOEI_TRY(open_chunk(s, l, begin, tokens, x, call, scratch, &k, err));
    x = cmoei_rows_of(x, begin, tokens);
    if (l->shared) CMOEI_TRY(shared_chunk(s, l, &k, x, err));
    CMOEI_TRY(experts_chunk(s, l, &k, x, cmoei_rows_of_mut(out, begin, tokens), err));
    const cmoei_layer_record r = {k.tokens, l->experts, l->width, k.ids, k.weights, k.logits};
    cmoei_layer_write_call(&r, begin, call);
    return CMOE_OK;
}

cmoe_status cmoe_layer_forward(cmoe_stream *s, const cmoe_layer *l, cmoe_view x,
                               const cmoe_layer_call *given, cmoe_view_mut out, cmoe_arena *scratch,
                               cmoe_error *err)
{
    cmoe_layer_call call = default_call;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&call, sizeof call, given, "cmoe_layer_call", err));
    if (!l || l->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer is %s, want one made from the stream's context",
                          l ? "of another context" : "NULL");
    const cmoei_layer_form form = {.experts = l->experts,
                                   .appended = l->appended,
                                   .topk = l->route.topk,
                                   .hidden = l->hidden,
                                   .vocab = l->vocab,
                                   .gate = l->gate != NULL,
                                   .w13 = l->own->w13,
                                   .w2 = l->own->w2};
    CMOEI_TRY(cmoei_layer_check(&form, &x, &call, &out, scratch, err));
    int64_t need;
    CMOEI_TRY(cmoe_layer_bytes(l, x.dims[0], &need, NULL, err));
    if (cmoei_arena_left(scratch) < need)
        return cmoei_fail(err, CMOE_ERR_MEMORY,
                          "layer: arena has %" PRId64 " bytes left, want %" PRId64
                          " (ask cmoe_layer_bytes)",
                          cmoei_arena_left(scratch), need);
    const int64_t tokens = x.dims[0], size = l->o.chunk;
    /* Validation may fail in a later chunk: all of it comes before the first output. */
    chunk k;
    for (int64_t t = 0; l->route.validate && size < tokens && t < tokens; t += size)
        CMOEI_TRY(open_chunk(s, l, t, CMOEI_MIN(size, tokens - t), x, &call, scratch, &k, err));
    /* Every rank takes part in every exchange, with no tokens once its own are done. */
    int64_t steps;
    cmoe_arena room = *scratch;
    CMOEI_TRY(cmoe_dispatch_steps(l->dispatch, cmoei_ceil_div(tokens, size), &steps, &room, err));
    for (int64_t i = 0; i < steps; i++) {
        const int64_t begin = CMOEI_MIN(i * size, tokens);
        CMOEI_TRY(
            run_chunk(s, l, begin, CMOEI_MIN(size, tokens - begin), x, &call, out, scratch, err));
    }
    if (!call.balance_loss) return CMOE_OK;
    cmoe_view ids = cmoe_view_of(call.ids);
    ids.dims[1] = l->route.topk; /* appended experts do not count */
    return cmoe_route_balance_loss(s, cmoe_view_of(call.logits), ids, call.mask, call.balance_loss,
                                   err);
}
