/* SPDX-License-Identifier: MIT
 *
 * route_check.c - options of a route, and every check of its arguments.
 *
 * Given ids go before a hash table, and given weights before everything that would make some: so a
 * layer can replay a captured route without taking its other inputs away.
 */
#include <inttypes.h>
#include <math.h>

#include "route_check.h"

static const char *const scoring_names[] = {"softmax", "sigmoid", "sqrtsoftplus", "logits",
                                            "sparsemixer"};

const char *cmoe_route_scoring_name(int32_t scoring)
{
    return scoring >= 0 && scoring < CMOEI_COUNT(scoring_names) ? scoring_names[scoring] : NULL;
}

int32_t cmoe_route_scoring_parse(const char *name)
{
    return cmoei_name_find(scoring_names, (int32_t)CMOEI_COUNT(scoring_names), name);
}

static const cmoe_route_options defaults = {
    .size = sizeof(cmoe_route_options),
    .renormalize = CMOE_RENORM_SUM,
    .eps_rule = CMOE_EPS_MAX,
    .eps = 1e-20f,
    .groups = 1,
    .scale = 1,
    .jitter = 0.01f,
    .groups_biased = 1,
};

void cmoe_route_options_default(cmoe_route_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

void cmoe_route_inputs_default(cmoe_route_inputs *in, size_t size)
{
    const cmoe_route_inputs none = {.size = sizeof none};
    cmoei_options_write(in, size, &none, sizeof none);
}

/* ---- options --------------------------------------------------------------------------------- */

static cmoe_status check_choice(const char *name, int32_t value, int32_t most, const char *what,
                                cmoe_error *err)
{
    if (value >= 0 && value <= most) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %d, want 0 to %d (%s)", name, value, most, what);
}

static cmoe_status check_number(const char *name, float value, bool signed_too, cmoe_error *err)
{
    if (isfinite(value) && (signed_too || value >= 0)) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %g, want a finite value%s", name, (double)value,
                      signed_too ? "" : " >= 0");
}

static cmoe_status check_at_least(const char *name, int64_t value, int64_t least, cmoe_error *err)
{
    if (value >= least) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %" PRId64 ", want at least %" PRId64, name, value,
                      least);
}

static cmoe_status check_rules(const cmoe_route_options *o, cmoe_error *err)
{
    CMOEI_TRY(check_choice("scoring", o->scoring, CMOE_SCORE_SPARSEMIXER,
                           "softmax sigmoid sqrtsoftplus logits sparsemixer", err));
    CMOEI_TRY(check_choice("renormalize", o->renormalize, CMOE_RENORM_SUM, "none sum", err));
    CMOEI_TRY(check_choice("eps_rule", o->eps_rule, CMOE_EPS_MAX, "none add max", err));
    CMOEI_TRY(check_choice("group_mask", o->group_mask, CMOE_MASK_ZERO, "minus_inf zero", err));
    CMOEI_TRY(check_choice("group_score", o->group_score, CMOE_GROUP_MAX, "top2 max", err));
    CMOEI_TRY(check_choice("groups_biased", o->groups_biased, 1, "plain biased", err));
    CMOEI_TRY(check_choice("validate", o->validate, 1, "no yes", err));
    CMOEI_TRY(check_number("eps", o->eps, false, err));
    CMOEI_TRY(check_number("scale", o->scale, true, err));
    if (o->scale == 0) /* of a struct that nobody filled: every weight would be 0 */
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "scale = 0, want another number (cmoe_route_options_default sets 1)");
    return check_number("jitter", o->jitter, false, err);
}

cmoe_status cmoei_route_read_options(cmoe_route_options *o, const cmoe_route_options *given,
                                     int64_t experts, cmoe_error *err)
{
    *o = defaults;
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, given, "cmoe_route_options", err));
    CMOEI_TRY(check_rules(o, err));
    CMOEI_TRY(check_at_least("topk", o->topk, 1, err));
    CMOEI_TRY(check_at_least("groups", o->groups, 1, err));
    CMOEI_TRY(check_at_least("shared", o->shared, 0, err));
    if (o->scoring == CMOE_SCORE_SPARSEMIXER && o->topk != 2)
        return cmoei_fail(err, CMOE_ERR_RANGE, "topk = %" PRId64 ", want 2 (scoring sparsemixer)",
                          o->topk);
    if (o->topk_groups < 0 || o->topk_groups > o->groups)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "topk_groups = %" PRId64 ", want 1 to %" PRId64 " (groups), or 0 for all",
                          o->topk_groups, o->groups);
    if (o->topk_groups == 0) o->topk_groups = o->groups;
    if (experts % o->groups)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "groups = %" PRId64 ", want a divisor of %" PRId64 " (experts)",
                          o->groups, experts);
    int64_t sum;
    if (!cmoei_add(experts, o->shared, &sum) || sum > CMOEI_ROUTE_MOST_EXPERTS)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "experts = %" PRId64 " and shared = %" PRId64
                          ", want at most %d together",
                          experts, o->shared, CMOEI_ROUTE_MOST_EXPERTS);
    if (!cmoei_add(o->topk, o->shared, &sum))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "topk = %" PRId64 " and shared = %" PRId64
                          ", want at most 2^63 - 1 together",
                          o->topk, o->shared);
    return CMOE_OK;
}

/* ---- views ----------------------------------------------------------------------------------- */

static cmoe_status check_1d(const cmoe_view *v, const char *name, uint32_t dtypes, int64_t n,
                            const char *n_name, cmoe_error *err)
{
    if (!cmoei_given(v)) return CMOE_OK;
    const cmoei_want want = {
        .name = name, .dtypes = dtypes, .rank = 1, .dims = {n}, .dim_names = {n_name}};
    return cmoei_check_in(v, &want, err);
}

static cmoei_want want_2d(const char *name, uint32_t dtypes, int64_t rows, const char *rows_name,
                          int64_t cols, const char *cols_name)
{
    return (cmoei_want){.name = name,
                        .dtypes = dtypes,
                        .rank = 2,
                        .dims = {rows, cols},
                        .dim_names = {rows_name, cols_name}};
}

static cmoe_status check_2d(const cmoe_view *v, const cmoei_want *want, cmoe_error *err)
{
    return cmoei_given(v) ? cmoei_check_in(v, want, err) : CMOE_OK;
}

/* What must come together. */
static cmoe_status check_presence(const cmoei_route_call *c, cmoe_error *err)
{
    const cmoe_route_inputs *in = &c->in;
    if (cmoei_given(&in->given_weights) && !cmoei_given(&in->given_ids))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "given_ids: not given, want them beside given_weights");
    if (cmoei_given(&in->hash_table) && !cmoei_given(&in->given_ids) &&
        !cmoei_given(&in->input_ids))
        return cmoei_fail(err, CMOE_ERR_ARG, "input_ids: not given, want them beside hash_table");
    if (cmoei_given(&in->shared_gate) && c->o.shared == 0)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "shared_gate: given with shared = 0, want shared >= 1");
    if (cmoei_given(&c->logits)) return CMOE_OK;
    if (!cmoei_given(&in->given_weights))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "logits: not given, want [tokens, experts]; only given_ids with "
                          "given_weights do without");
    if (c->o.shared > 0)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "shared = %" PRId64 ", want 0 without logits, which say how many experts "
                          "come before the shared ones",
                          c->o.shared);
    return CMOE_OK;
}

static cmoe_status check_inputs(const cmoei_route_call *c, cmoe_error *err)
{
    const cmoe_route_inputs *in = &c->in;
    const int64_t tokens = c->tokens, topk = c->o.topk;
    const int64_t experts = c->experts > 0 ? c->experts : -1;
    CMOEI_TRY(check_1d(&in->bias, "bias", CMOEI_FLOATS, experts, "experts", err));
    CMOEI_TRY(
        check_1d(&in->per_expert_scale, "per_expert_scale", CMOEI_FLOATS, experts, "experts", err));
    CMOEI_TRY(check_1d(&in->input_ids, "input_ids", CMOEI_INDEX, tokens, "tokens", err));
    cmoei_want want = want_2d("hash_table", CMOEI_INDEX, -1, "vocab", topk, "topk");
    CMOEI_TRY(check_2d(&in->hash_table, &want, err));
    want = want_2d("given_ids", CMOEI_INDEX, tokens, "tokens", topk, "topk");
    CMOEI_TRY(check_2d(&in->given_ids, &want, err));
    want = want_2d("given_weights", CMOEI_FLOATS, tokens, "tokens", topk, "topk");
    CMOEI_TRY(check_2d(&in->given_weights, &want, err));
    const bool one = in->shared_gate.rank == 2 && in->shared_gate.dims[1] == 1;
    want = want_2d("shared_gate", CMOEI_FLOATS, tokens, "tokens", one ? 1 : c->o.shared,
                   one ? "1" : "shared");
    return check_2d(&in->shared_gate, &want, err);
}

static cmoe_status check_outputs(const cmoei_route_call *c, cmoe_error *err)
{
    const cmoe_route_inputs *in = &c->in;
    const struct {
        const cmoe_view *view;
        const char *name;
    } inputs[] = {
        {&c->logits, "logits"},
        {&in->bias, "bias"},
        {&in->hash_table, "hash_table"},
        {&in->input_ids, "input_ids"},
        {&in->given_ids, "given_ids"},
        {&in->given_weights, "given_weights"},
        {&in->per_expert_scale, "per_expert_scale"},
        {&in->shared_gate, "shared_gate"},
    };
    cmoei_want want =
        want_2d("weights", CMOEI_DTYPE(CMOE_F32), c->tokens, "tokens", c->width, "topk + shared");
    CMOEI_TRY(cmoei_check_out(&c->weights, &want, err));
    want.name = "ids";
    want.dtypes = CMOEI_DTYPE(CMOE_I32);
    CMOEI_TRY(cmoei_check_out(&c->ids, &want, err));
    const cmoe_view weights = cmoe_view_of(c->weights);
    CMOEI_TRY(cmoei_check_apart(&c->ids, "ids", &weights, "weights", err));
    for (int64_t i = 0; i < CMOEI_COUNT(inputs); i++) {
        if (!cmoei_given(inputs[i].view)) continue;
        CMOEI_TRY(cmoei_check_apart(&c->weights, "weights", inputs[i].view, inputs[i].name, err));
        CMOEI_TRY(cmoei_check_apart(&c->ids, "ids", inputs[i].view, inputs[i].name, err));
    }
    return CMOE_OK;
}

/* ---- values ---------------------------------------------------------------------------------- */

static cmoe_status check_id(const cmoe_view *v, const char *name, int64_t i, int64_t j,
                            int64_t experts, cmoe_error *err)
{
    const int64_t id = cmoei_load_index(cmoei_at(v, i, j), v->dtype);
    const int64_t end = experts > 0 ? experts : CMOEI_ROUTE_MOST_EXPERTS;
    if (id >= -1 && id < end) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE,
                      "%s[%" PRId64 ", %" PRId64 "] = %" PRId64 ", want -1 <= id < %" PRId64
                      " (experts)",
                      cmoei_name(v->name, name), i, j, id, end);
}

static cmoe_status check_forced_ids(const cmoei_route_call *c, cmoe_error *err)
{
    const cmoe_route_inputs *in = &c->in;
    const bool given = cmoei_given(&in->given_ids);
    if (!cmoei_route_forced(c)) return CMOE_OK;
    for (int64_t t = 0; t < c->tokens; t++) {
        const cmoe_view *v = &in->given_ids;
        int64_t row = t;
        if (!given) {
            v = &in->hash_table;
            row = cmoei_load_index(cmoei_at(&in->input_ids, t, 0), in->input_ids.dtype);
            if (row < 0 || row >= v->dims[0])
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "%s[%" PRId64 "] = %" PRId64 ", want 0 <= id < %" PRId64
                                  " (rows of %s)",
                                  cmoei_name(in->input_ids.name, "input_ids"), t, row, v->dims[0],
                                  cmoei_name(v->name, "hash_table"));
        }
        for (int64_t k = 0; k < c->o.topk; k++)
            CMOEI_TRY(check_id(v, given ? "given_ids" : "hash_table", row, k, c->experts, err));
    }
    return CMOE_OK;
}

/* A scale that is not finite would turn a weight of 0 into NaN. */
cmoe_status cmoei_route_check_scale(const cmoe_view *v, cmoe_error *err)
{
    for (int64_t e = 0; cmoei_given(v) && e < v->dims[0]; e++) {
        float x;
        cmoei_load_f32(&x, cmoei_at(v, e, 0), v->dtype, 1, 1);
        if (!isfinite(x))
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s[%" PRId64 "] = %g, want a finite value",
                              cmoei_name(v->name, "per_expert_scale"), e, (double)x);
    }
    return CMOE_OK;
}

cmoe_status cmoei_route_check_inputs(cmoei_route_call *c, const cmoe_route_options *o,
                                     const cmoe_route_inputs *in, cmoe_error *err)
{
    cmoe_route_inputs_default(&c->in, sizeof c->in);
    CMOEI_TRY(cmoei_options_read(&c->in, sizeof c->in, in, "cmoe_route_inputs", err));
    c->experts = 0;
    if (cmoei_given(&c->logits)) {
        const cmoei_want want = want_2d("logits", CMOEI_FLOATS, -1, "tokens", -1, "experts");
        CMOEI_TRY(cmoei_check_in(&c->logits, &want, err));
        c->tokens = c->logits.dims[0];
        c->experts = c->logits.dims[1];
        if (c->experts == 0)
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "%s: dims[1] = 0, want at least 1 expert [tokens, experts]",
                              cmoei_name(c->logits.name, "logits"));
    }
    CMOEI_TRY(cmoei_route_read_options(&c->o, o, c->experts, err));
    c->width = c->o.topk + c->o.shared;
    CMOEI_TRY(check_presence(c, err));
    if (!cmoei_given(&c->logits))
        c->tokens = c->in.given_ids.rank > 0 ? c->in.given_ids.dims[0] : 0;
    return check_inputs(c, err);
}

cmoe_status cmoei_route_check(cmoei_route_call *c, const cmoe_route_options *o,
                              const cmoe_route_inputs *in, cmoe_error *err)
{
    CMOEI_TRY(cmoei_route_check_inputs(c, o, in, err));
    CMOEI_TRY(check_outputs(c, err));
    CMOEI_TRY(check_forced_ids(c, err));
    return cmoei_route_check_scale(&c->in.per_expert_scale, err);
}

int32_t cmoei_route_forced_id(const cmoei_route_call *c, int64_t t, int64_t k)
{
    const cmoe_route_inputs *in = &c->in;
    const cmoe_view *v = &in->given_ids;
    int64_t row = t;
    if (!cmoei_given(v)) {
        v = &in->hash_table;
        row = cmoei_load_index(cmoei_at(&in->input_ids, t, 0), in->input_ids.dtype);
    }
    return (int32_t)cmoei_load_index(cmoei_at(v, row, k), v->dtype);
}
