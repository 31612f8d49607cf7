/* SPDX-License-Identifier: MIT
 *
 * train.c - cmoe_layer_train: every pairing of its trainables is checked here, so that a step can only
 * fail for what it is given itself.
 */
#include "train.h"

#include <inttypes.h>

#include "route/route_check.h"

static const cmoe_layer_train_options defaults = {.size = sizeof defaults, .combine_scale = 1};
static const cmoe_layer_gradients no_gradients = {.size = sizeof no_gradients};

void cmoe_layer_train_options_default(cmoe_layer_train_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

void cmoe_layer_gradients_default(cmoe_layer_gradients *g, size_t size)
{
    cmoei_options_write(g, size, &no_gradients, sizeof no_gradients);
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* A trainable [1, outputs, H] of this context. */
static cmoe_status check_linear(const cmoe_layer_train *l, const cmoe_trainable *t,
                                const char *name, int64_t outputs, const char *outputs_name,
                                cmoe_error *err)
{
    if (t->ctx != l->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "layer: %s belongs to another context, want the layer's", name);
    cmoe_trainable_info i = {.size = sizeof i};
    CMOEI_TRY(cmoe_trainable_describe(t, &i, err));
    if (i.experts != 1 || i.outputs != outputs || i.inputs != l->hidden)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: %s is [%" PRId64 ", %" PRId64 ", %" PRId64 "], want [1, %" PRId64
                          ", %" PRId64 "] (1, %s, hidden)",
                          name, i.experts, i.outputs, i.inputs, outputs, l->hidden, outputs_name);
    if (i.format != CMOE_F32)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "layer: %s computes in %s, want f32", name,
                          cmoe_dtype_name(i.format));
    return CMOE_OK;
}

static cmoe_status check_experts(cmoe_layer_train *l, cmoe_error *err)
{
    const cmoe_layer_train_options *o = &l->o;
    const cmoe_experts_weights routed = {o->w13, o->w2};
    CMOEI_TRY(cmoei_experts_train_open(&l->experts, l->ctx, o->experts, &routed, err));
    if (l->experts.o.first_expert != 0)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "layer: first_expert = %" PRId64
                          ", want 0 (training across ranks is not part of it yet)",
                          l->experts.o.first_expert);
    l->count = l->experts.experts;
    l->hidden = l->experts.hidden;
    if (l->count > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: %" PRId64 " experts, want at most 2147483647", l->count);
    return CMOE_OK;
}

static cmoe_status check_shared(cmoe_layer_train *l, cmoe_error *err)
{
    const cmoe_layer_train_options *o = &l->o;
    if (!o->shared13 != !o->shared2)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer: %s is given without %s, want both or neither",
                          o->shared13 ? "shared13" : "shared2",
                          o->shared13 ? "shared2" : "shared13");
    if (!o->shared13) {
        if (o->shared_gate)
            return cmoei_fail(err, CMOE_ERR_ARG,
                              "layer: shared_gate is given without a shared expert");
        return CMOE_OK;
    }
    const cmoe_experts_weights shared = {o->shared13, o->shared2};
    CMOEI_TRY(cmoei_experts_train_open(&l->shared, l->ctx, NULL, &shared, err));
    if (l->shared.experts != 1 || l->shared.hidden != l->hidden)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: shared13 is [%" PRId64 ", %" PRId64 ", %" PRId64
                          "], want [1, %" PRId64 ", %" PRId64 "] (1, 2 inter, hidden)",
                          l->shared.experts, l->shared.columns, l->shared.hidden, l->shared.columns,
                          l->hidden);
    return o->shared_gate ? check_linear(l, o->shared_gate, "shared_gate", 1, "1", err) : CMOE_OK;
}

static cmoe_status check_route(cmoe_layer_train *l, cmoe_error *err)
{
    CMOEI_TRY(cmoei_route_read_options(&l->route, l->o.route, l->count, err));
    CMOEI_TRY(cmoei_layer_check_topk(&l->route, l->count, err));
    if (l->route.shared != 0)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "layer: route.shared = %" PRId64 ", want 0: shared experts as shared13",
                          l->route.shared);
    const cmoe_view *vectors[] = {&l->o.bias, &l->o.per_expert_scale};
    static const char *const names[] = {"bias", "per_expert_scale"};
    for (int i = 0; i < 2; i++) {
        const cmoei_want want = {names[i], CMOEI_DTYPE(CMOE_F32), 1, {l->count}, {"experts"}};
        if (cmoei_given(vectors[i])) CMOEI_TRY(cmoei_check_in(vectors[i], &want, err));
    }
    return cmoei_route_check_scale(&l->o.per_expert_scale, err);
}

static cmoe_status build(cmoe_layer_train *l, cmoe_error *err)
{
    CMOEI_TRY(check_experts(l, err));
    CMOEI_TRY(check_linear(l, l->o.gate, "gate", l->count, "experts", err));
    CMOEI_TRY(check_shared(l, err));
    CMOEI_TRY(check_route(l, err));
    l->o.route = NULL;
    l->o.experts = NULL;
    return CMOE_OK;
}

/* ---- create ---------------------------------------------------------------------------------- */

static cmoe_status check_options(const cmoe_layer_train_options *o, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_flag(o->shared_first, "shared_first", err));
    if (o->combine_scale - o->combine_scale != 0 || o->combine_scale == 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "combine_scale = %g, want a finite number other than 0 "
                          "(cmoe_layer_train_options_default sets 1)",
                          (double)o->combine_scale);
    if (!o->route)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "layer: options.route is NULL, want routing options with a topk");
    if (!o->gate || !o->w13 || !o->w2)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer: %s is NULL, want a trainable",
                          !o->gate  ? "gate"
                          : !o->w13 ? "w13"
                                    : "w2");
    return CMOE_OK;
}

cmoe_status cmoe_layer_train_create(cmoe_layer_train **out, cmoe_ctx *ctx,
                                    const cmoe_layer_train_options *options, cmoe_error *err)
{
    cmoe_layer_train_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_layer_train_options", err));
    if (!out || !ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer_train: %s is NULL", out ? "ctx" : "out");
    CMOEI_TRY(check_options(&o, err));
    cmoe_layer_train *l = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *l, "layer", (void **)&l, err));
    *l = (cmoe_layer_train){.ctx = ctx, .o = o};
    const cmoe_status status = build(l, err);
    if (status != CMOE_OK) {
        cmoe_layer_train_free(l);
        return status;
    }
    *out = l;
    return CMOE_OK;
}

void cmoe_layer_train_free(cmoe_layer_train *l)
{
    if (l) cmoei_free(l->ctx, l, (int64_t)sizeof *l);
}

cmoe_status cmoei_layer_train_check(const cmoe_stream *s, const cmoe_layer_train *l,
                                    cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!l || l->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer is %s, want one made from the stream's context",
                          l ? "of another context" : "NULL");
    return CMOE_OK;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

void cmoei_layer_room_carve(const cmoe_layer_train *l, int64_t tokens, cmoei_carver *c,
                            cmoei_layer_room *room)
{
    const int64_t bytes = (int64_t)sizeof(float), shared = l->o.shared13 != NULL;
    room->shared = cmoei_carve_array(c, tokens, l->hidden * bytes);
    room->shared_ids = cmoei_carve_array(c, tokens, shared * (int64_t)sizeof *room->shared_ids);
    room->dlogits = cmoei_carve_array(c, tokens, l->count * bytes);
    room->dweights = cmoei_carve_array(c, tokens, l->route.topk * bytes);
    room->dshared = cmoei_carve_array(c, tokens, shared * bytes);
}

static cmoe_status steps_bytes(const cmoe_layer_train *l, int64_t n, int64_t *keep, int64_t *host,
                               cmoe_error *err)
{
    int64_t one, kept = 0, most;
    CMOEI_TRY(cmoei_experts_train_bytes(&l->experts, n, l->route.topk, keep, &most, err));
    if (l->o.shared13) {
        CMOEI_TRY(cmoei_experts_train_bytes(&l->shared, n, 1, &kept, &one, err));
        most = CMOEI_MAX(most, one);
        CMOEI_TRY(cmoei_add(*keep, kept, keep)
                      ? CMOE_OK
                      : cmoei_fail(err, CMOE_ERR_SHAPE,
                                   "layer: %" PRId64 " tokens take more than 2^63 - 1 bytes", n));
    }
    CMOEI_TRY(cmoe_route_bytes(&l->route, n, l->count, &one, NULL, err));
    most = CMOEI_MAX(most, one);
    CMOEI_TRY(cmoe_trainable_bytes(l->o.gate, n, n, &one, NULL, err));
    most = CMOEI_MAX(most, one);
    if (l->o.shared_gate) {
        CMOEI_TRY(cmoe_trainable_bytes(l->o.shared_gate, n, n, &one, NULL, err));
        most = CMOEI_MAX(most, one);
    }
    *host = most;
    return CMOE_OK;
}

/* The layer's own arrays of what is kept, in the order in which forward carves them. */
static void count_kept(const cmoe_layer_train *l, int64_t n, cmoei_carver *c)
{
    const int64_t bytes = (int64_t)sizeof(float);
    cmoei_carve(c, (int64_t)sizeof(cmoei_layer_saved));
    cmoei_carve_array(c, n, l->count * bytes);
    cmoei_carve_array(c, n, l->route.topk * bytes);
    cmoei_carve_array(c, n, l->route.topk * (int64_t)sizeof(int32_t));
    cmoei_carve_array(c, n, bytes);
}

cmoe_status cmoe_layer_train_bytes(const cmoe_layer_train *l, int64_t tokens, int64_t *keep,
                                   int64_t *host, int64_t *device, cmoe_error *err)
{
    int64_t kept, most;
    if (!l) return cmoei_fail(err, CMOE_ERR_ARG, "layer_train_bytes: layer is NULL");
    CMOEI_TRY(steps_bytes(l, tokens, &kept, &most, err));
    cmoei_layer_room room;
    cmoei_carver c = cmoei_carver_dry();
    count_kept(l, tokens, &c);
    cmoei_carve(&c, kept);
    CMOEI_TRY(cmoei_carver_check(&c, "layer_train", err));
    if (keep) *keep = cmoei_carver_bytes(&c);
    /* Without `saved` the layer's own arrays are scratch, too; the experts count theirs. */
    c = cmoei_carver_dry();
    count_kept(l, tokens, &c);
    cmoei_layer_room_carve(l, tokens, &c, &room);
    cmoei_carve(&c, most);
    CMOEI_TRY(cmoei_carver_check(&c, "layer_train", err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}
