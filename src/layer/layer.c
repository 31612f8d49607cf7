/* SPDX-License-Identifier: MIT
 *
 * layer.c - cmoe_layer: every pairing of its parts is checked here, so that a forward can only fail
 * for what it is given itself.
 */
#include "layer.h"

#include <inttypes.h>
#include <math.h>

#include "align/align.h"
#include "route/route_check.h"

static const cmoe_layer_options default_options = {.size = sizeof default_options,
                                                   .combine_scale = 1};
static const cmoe_layer_weights default_weights = {.size = sizeof default_weights, .lora_scale = 1};

void cmoe_layer_options_default(cmoe_layer_options *o, size_t size)
{
    cmoei_options_write(o, size, &default_options, sizeof default_options);
}

void cmoe_layer_weights_default(cmoe_layer_weights *w, size_t size)
{
    cmoei_options_write(w, size, &default_weights, sizeof default_weights);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoe_status check_experts(const cmoe_layer *l, const cmoe_layer_weights *w, cmoe_error *err)
{
    if (!w->experts)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "layer: experts is NULL, want those of cmoe_experts_create");
    const cmoe_experts *both[] = {w->experts, w->shared};
    for (int i = 0; i < 2; i++) {
        if (both[i] && both[i]->ctx != l->ctx)
            return cmoei_fail(err, CMOE_ERR_ARG,
                              "layer: %s were made from another context, want the layer's",
                              i ? "shared" : "experts");
    }
    if (!w->shared) return CMOE_OK;
    if (w->shared->count != 1 || w->shared->o.first_expert != 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: shared holds %" PRId64 " experts from %" PRId64
                          " on, want 1 from 0",
                          w->shared->count, w->shared->o.first_expert);
    if (w->shared->hidden != w->experts->hidden)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: shared has hidden = %" PRId64 ", want %" PRId64 " (experts)",
                          w->shared->hidden, w->experts->hidden);
    if (w->shared->o.weight_at != CMOE_WEIGHT_COMBINE)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "layer: shared has weight_at row, want combine");
    return CMOE_OK;
}

/* The experts of all ranks and of this one must be the ones that the router names. */
static cmoe_status check_slice(const cmoe_layer *l, const cmoe_experts *x, cmoe_error *err)
{
    int64_t first, count;
    cmoe_dispatch_slice(l->dispatch, &first, &count);
    if (cmoe_comm_size(l->o.comm) == 1 && (x->o.first_expert != 0 || x->count != count))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: experts holds %" PRId64 " experts from %" PRId64
                          " on, want %" PRId64 " from 0 (%" PRId64 " of the gate and %" PRId64
                          " appended)",
                          x->count, x->o.first_expert, count, l->experts, l->appended);
    if (x->o.first_expert != first || x->count != count)
        return cmoei_fail(
            err, CMOE_ERR_SHAPE,
            "layer: experts [%" PRId64 ", %" PRId64 ") are given, want [%" PRId64 ", %" PRId64
            ") on rank %d of %d (router: %" PRId64 " + %" PRId64 " appended)",
            x->o.first_expert, x->o.first_expert + x->count, first, first + count,
            cmoe_comm_rank(l->o.comm), cmoe_comm_size(l->o.comm), l->experts, l->appended);
    return CMOE_OK;
}

cmoe_status cmoei_layer_check_topk(const cmoe_route_options *route, int64_t experts,
                                   cmoe_error *err)
{
    if (route->topk > experts)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "layer: topk = %" PRId64 ", want 1 to %" PRId64 " (experts)", route->topk,
                          experts);
    /* A choice among fewer experts would have to take some of dropped groups. */
    const int64_t kept = experts / route->groups * route->topk_groups;
    if (route->groups > 1 && route->topk > kept)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "layer: topk = %" PRId64 ", want at most %" PRId64
                          ", the experts of %" PRId64 " of %" PRId64 " groups",
                          route->topk, kept, route->topk_groups, route->groups);
    return CMOE_OK;
}

static cmoe_status check_route(cmoe_layer *l, const cmoe_layer_weights *w, cmoe_error *err)
{
    CMOEI_TRY(cmoei_route_read_options(&l->route, l->o.route, l->experts, err));
    l->o.route = NULL;
    CMOEI_TRY(cmoei_layer_check_topk(&l->route, l->experts, err));
    l->appended = l->route.shared;
    l->width = l->route.topk + l->appended;
    if (l->appended > 0 && w->shared)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "layer: shared is given and route.shared = %" PRId64
                          " appends some, want one of the two",
                          l->appended);
    if (l->appended > 0 && !cmoei_given(&w->gate))
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "layer: route.shared = %" PRId64
                          " without a gate, want shared experts as `shared`",
                          l->appended);
    if (l->appended > 0 && cmoe_comm_size(l->o.comm) > 1)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "layer: route.shared = %" PRId64
                          " on %d ranks, want shared experts as `shared`",
                          l->appended, cmoe_comm_size(l->o.comm));
    return CMOE_OK;
}

static cmoe_status check_vectors(const cmoe_layer *l, const cmoe_layer_weights *w, cmoe_error *err)
{
    const cmoe_view *views[] = {&w->bias, &w->per_expert_scale};
    static const char *const names[] = {"bias", "per_expert_scale"};
    for (int i = 0; i < 2; i++) {
        const cmoei_want want = {names[i], CMOEI_FLOATS, 1, {l->experts}, {"experts"}};
        if (cmoei_given(views[i])) CMOEI_TRY(cmoei_check_in(views[i], &want, err));
    }
    CMOEI_TRY(cmoei_route_check_scale(&w->per_expert_scale, err));
    if (cmoei_given(&w->hash_table)) {
        const cmoei_want want = {
            "hash_table", CMOEI_INDEX, 2, {-1, l->route.topk}, {"vocab", "topk"}};
        CMOEI_TRY(cmoei_check_in(&w->hash_table, &want, err));
        if (w->hash_table.dims[0] == 0)
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims[0] = 0, want at least 1 row (vocab)",
                              cmoei_name(w->hash_table.name, "hash_table"));
        cmoe_view named = w->hash_table;
        named.name = cmoei_name(named.name, "hash_table");
        CMOEI_TRY(cmoei_check_id_range(&named, l->experts, "experts", true, err));
    }
    if (!cmoei_given(&w->shared_gate)) return CMOE_OK;
    if (!w->shared && l->appended == 0)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer: shared_gate is given without a shared expert");
    const cmoei_want want = {"shared_gate",
                             CMOEI_FLOATS,
                             2,
                             {w->shared ? 1 : l->appended, l->hidden},
                             {"shared", "hidden"}};
    return cmoei_check_in(&w->shared_gate, &want, err);
}

static cmoe_status check_router(const cmoe_layer *l, const cmoe_layer_weights *w, cmoe_error *err)
{
    if (cmoei_given(&w->gate))
        return cmoei_logits_check(&w->gate, l->hidden, &w->gate_bias, &w->lora_a, &w->lora_b,
                                  w->lora_scale, err);
    const cmoe_view *need[] = {&w->gate_bias, &w->lora_a, &w->lora_b, &w->bias, &w->hash_table};
    static const char *const names[] = {"gate_bias", "lora_a", "lora_b", "bias", "hash_table"};
    for (int i = 0; i < CMOEI_COUNT(need); i++) {
        if (cmoei_given(need[i]))
            return cmoei_fail(err, CMOE_ERR_ARG, "layer: %s is given without a gate", names[i]);
    }
    return CMOE_OK;
}

/* ---- copies ---------------------------------------------------------------------------------- */

static cmoe_status copy_vector(cmoe_layer *l, const cmoe_view *v, const char *what, float **out,
                               cmoe_error *err)
{
    if (!cmoei_given(v)) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(l->ctx, v->dims[0] * (int64_t)sizeof **out, what, (void **)out, err));
    cmoei_load_f32(*out, v->data, v->dtype, v->strides[0], v->dims[0]);
    return CMOE_OK;
}

static cmoe_status copy_table(cmoe_layer *l, const cmoe_view *v, cmoe_error *err)
{
    if (!cmoei_given(v)) return CMOE_OK;
    l->vocab = v->dims[0];
    CMOEI_TRY(cmoei_alloc(l->ctx, l->vocab * v->dims[1] * (int64_t)sizeof *l->hash_table,
                          "hash table", (void **)&l->hash_table, err));
    for (int64_t i = 0; i < l->vocab * v->dims[1]; i++)
        l->hash_table[i] =
            (int32_t)cmoei_load_index(cmoei_at(v, i / v->dims[1], i % v->dims[1]), v->dtype);
    return CMOE_OK;
}

static cmoe_status pack(cmoe_layer *l, const cmoe_view *w, const char *name, cmoe_matrix **out,
                        cmoe_error *err)
{
    if (!cmoei_given(w) || w->dims[0] == 0) return CMOE_OK;
    const cmoe_matrix_options o = {.size = sizeof o, .format = CMOE_F32};
    return cmoei_matrix_create(out, l->ctx, &o, (cmoei_gate){0}, cmoei_as_matrices(*w), name,
                               cmoe_view_none(), "", err);
}

static cmoe_status copy_all(cmoe_layer *l, const cmoe_layer_weights *w, cmoe_error *err)
{
    CMOEI_TRY(pack(l, &w->gate, "gate", &l->gate, err));
    CMOEI_TRY(pack(l, &w->lora_a, "lora_a", &l->lora_a, err));
    if (l->lora_a) CMOEI_TRY(pack(l, &w->lora_b, "lora_b", &l->lora_b, err));
    CMOEI_TRY(pack(l, &w->shared_gate, "shared_gate", &l->shared_gate, err));
    CMOEI_TRY(copy_vector(l, &w->gate_bias, "gate bias", &l->gate_bias, err));
    CMOEI_TRY(copy_vector(l, &w->bias, "bias", &l->bias, err));
    CMOEI_TRY(copy_vector(l, &w->per_expert_scale, "per-expert scale", &l->per_expert_scale, err));
    return copy_table(l, &w->hash_table, err);
}

/* ---- create ---------------------------------------------------------------------------------- */

static cmoe_status build(cmoe_layer *l, const cmoe_layer_weights *w, cmoe_error *err)
{
    CMOEI_TRY(check_experts(l, w, err));
    l->own = w->experts;
    l->shared = w->shared;
    l->hidden = w->experts->hidden;
    l->lora_scale = w->lora_scale;
    if (!l->o.comm) {
        CMOEI_TRY(cmoe_comm_create_local(&l->local, l->ctx, err));
        l->o.comm = l->local;
    }
    /* The router says how many experts there are; without one, the experts of a single rank do. */
    cmoe_route_options route;
    cmoe_route_options_default(&route, sizeof route);
    CMOEI_TRY(cmoei_options_read(&route, sizeof route, l->o.route, "cmoe_route_options", err));
    const int64_t appended = CMOEI_MAX(route.shared, 0);
    const int64_t experts =
        cmoei_given(&w->gate) && w->gate.rank == 2 ? w->gate.dims[0] : w->experts->count - appended;
    if (experts < 1)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "layer: %" PRId64 " routed experts, want at least 1",
                          experts);
    if (experts > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "layer: %" PRId64 " routed experts, want at most 2147483647", experts);
    l->experts = experts;
    CMOEI_TRY(check_router(l, w, err));
    CMOEI_TRY(check_route(l, w, err));
    CMOEI_TRY(check_vectors(l, w, err));
    cmoe_dispatch_options d;
    cmoe_dispatch_options_default(&d, sizeof d);
    d.experts = l->experts + l->appended;
    d.hidden = l->hidden;
    CMOEI_TRY(cmoe_dispatch_create(&l->dispatch, l->o.comm, &d, err));
    CMOEI_TRY(check_slice(l, w->experts, err));
    return copy_all(l, w, err);
}

cmoe_status cmoe_layer_create(cmoe_layer **out, cmoe_ctx *ctx, const cmoe_layer_options *options,
                              const cmoe_layer_weights *weights, cmoe_error *err)
{
    cmoe_layer_options o = default_options;
    cmoe_layer_weights w = default_weights;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_layer_options", err));
    CMOEI_TRY(cmoei_options_read(&w, sizeof w, weights, "cmoe_layer_weights", err));
    if (!out || !ctx || !weights)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer: %s is NULL",
                          !out   ? "out"
                          : !ctx ? "ctx"
                                 : "weights");
    if (o.chunk < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "chunk = %" PRId64 ", want > 0 tokens, or 0 for the default", o.chunk);
    CMOEI_TRY(cmoei_check_flag(o.shared_first, "shared_first", err));
    if (o.combine_scale - o.combine_scale != 0 || o.combine_scale == 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "combine_scale = %g, want a finite number other than 0 "
                          "(cmoe_layer_options_default sets 1)",
                          (double)o.combine_scale);
    if (!o.route)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "layer: options.route is NULL, want routing options with a topk");
    if (o.chunk == 0) o.chunk = 2048;
    cmoe_layer *l = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *l, "layer", (void **)&l, err));
    *l = (cmoe_layer){.ctx = ctx, .o = o};
    const uint64_t before = cmoei_float_enter(); /* f64 vectors are rounded */
    const cmoe_status status = build(l, &w, err);
    cmoei_float_leave(before);
    if (status != CMOE_OK) {
        cmoe_layer_free(l);
        return status;
    }
    *out = l;
    return CMOE_OK;
}

void cmoe_layer_free(cmoe_layer *l)
{
    if (!l) return;
    const int64_t vector = l->experts * (int64_t)sizeof(float);
    cmoe_matrix_free(l->gate);
    cmoe_matrix_free(l->lora_a);
    cmoe_matrix_free(l->lora_b);
    cmoe_matrix_free(l->shared_gate);
    cmoei_free(l->ctx, l->bias, vector);
    cmoei_free(l->ctx, l->gate_bias, vector);
    cmoei_free(l->ctx, l->per_expert_scale, vector);
    cmoei_free(l->ctx, l->hash_table, l->vocab * l->route.topk * (int64_t)sizeof *l->hash_table);
    cmoe_dispatch_free(l->dispatch);
    cmoe_comm_free(l->local);
    cmoei_free(l->ctx, l, (int64_t)sizeof *l);
}
