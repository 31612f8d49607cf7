/* SPDX-License-Identifier: MIT
 *
 * outer.c - cmoe_grouped_outer: checks, and the one rectangle that is all of the product.
 */
#include "outer.h"

#include <inttypes.h>

static const cmoe_grouped_outer_options defaults = {.size = sizeof defaults, .scale = 1};

void cmoe_grouped_outer_options_default(cmoe_grouped_outer_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static cmoei_outer plan(const cmoe_ctx *ctx, int64_t experts, int64_t rows, int64_t n, int64_t k)
{
    return (cmoei_outer){
        .kernel = cmoei_table_pick(&cmoei_matmul_table, ctx->features, CMOE_F32),
        .threads = ctx->threads,
        .experts = experts,
        .rows = rows,
        .a = {.n = n, .scale = 1},
        .b = {.n = k, .scale = 1},
    };
}

cmoe_status cmoe_grouped_outer_bytes(cmoe_ctx *ctx, int64_t experts, int64_t rows, int64_t n,
                                     int64_t k, int64_t *host, int64_t *device, cmoe_error *err)
{
    if (!ctx || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "grouped_outer_bytes: %s is NULL",
                          ctx ? "host" : "ctx");
    const int64_t sizes[] = {experts, rows, n, k};
    static const char *const names[] = {"experts", "rows", "n", "k"};
    for (int i = 0; i < 4; i++) {
        if (sizes[i] < 0 || sizes[i] > INT32_MAX)
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s = %" PRId64 ", want 0 to 2^31 - 1", names[i],
                              sizes[i]);
    }
    cmoei_outer o = plan(ctx, experts, rows, n, k);
    cmoei_carver c = cmoei_carver_dry();
    cmoei_outer_carve(&o, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "grouped_outer", err));
    *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoei_outer_run(arg, team, index, count);
}

/* Rows of a or b: by token, or as the groups have them. */
static cmoe_status check_operand(const cmoe_view *v, const char *name, int32_t grouped,
                                 const cmoe_groups *g, int64_t rows, cmoe_error *err)
{
    const cmoei_want want = {
        name, 0, 2, {grouped && g ? -1 : rows, -1}, {"rows", name[0] == 'a' ? "n" : "k"}};
    CMOEI_TRY(cmoei_check_rows(v, &want, err));
    return grouped && g ? cmoei_check_filled(v, name, g->first[g->experts], err) : CMOE_OK;
}

static cmoe_status check_output(const cmoe_view_mut *out, const cmoei_want *want,
                                const cmoe_view *a, const cmoe_view *b, const cmoe_groups *g,
                                const cmoe_arena *scratch, cmoe_error *err)
{
    const cmoe_view v = cmoe_view_of(*out);
    if (!cmoei_given(&v)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_out(out, want, err));
    CMOEI_TRY(cmoei_check_apart(out, want->name, a, "a", err));
    CMOEI_TRY(cmoei_check_apart(out, want->name, b, "b", err));
    if (g) CMOEI_TRY(cmoei_groups_apart(out, want->name, g, err));
    return cmoei_check_scratch(scratch, &v, want->name, err);
}

static cmoe_status check(const cmoei_outer *o, const cmoei_outer_part *part,
                         const cmoe_arena *scratch, cmoe_error *err)
{
    const uint32_t f32 = CMOEI_DTYPE(CMOE_F32);
    const cmoe_view *a = &o->a.x, *b = &o->b.x;
    const cmoei_want out = {
        "out", f32, 3, {o->experts, a->dims[1], b->dims[1]}, {"experts", "n", "k"}};
    const cmoei_want bias = {"bias", f32, 2, {o->experts, a->dims[1]}, {"experts", "n"}};
    const cmoe_view sums = cmoe_view_of(part->out);
    CMOEI_TRY(check_output(&part->out, &out, a, b, o->groups, scratch, err));
    CMOEI_TRY(check_output(&part->bias, &bias, a, b, o->groups, scratch, err));
    CMOEI_TRY(cmoei_check_apart(&part->bias, "bias", &sums, "out", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, a, "a", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, b, "b", err));
    return o->groups ? cmoei_groups_check_scratch(o->groups, scratch, err) : CMOE_OK;
}

cmoe_status cmoe_grouped_outer(cmoe_stream *s, const cmoe_grouped_outer_options *options,
                               cmoe_view a, cmoe_view b, const cmoe_groups *groups,
                               const cmoe_units *units, cmoe_view_mut out, cmoe_view_mut bias,
                               cmoe_arena *scratch, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    cmoe_grouped_outer_options op = defaults;
    CMOEI_TRY(cmoei_options_read(&op, sizeof op, options, "cmoe_grouped_outer_options", err));
    CMOEI_TRY(cmoei_check_flag(op.a_grouped, "a_grouped", err));
    CMOEI_TRY(cmoei_check_flag(op.b_grouped, "b_grouped", err));
    CMOEI_TRY(cmoei_check_flag(op.accumulate, "accumulate", err));
    if (groups) CMOEI_TRY(cmoei_groups_check(groups, groups->experts, err));
    const int64_t tokens = groups ? groups->tokens : a.dims[0];
    CMOEI_TRY(check_operand(&a, "a", op.a_grouped, groups, groups ? tokens : -1, err));
    CMOEI_TRY(check_operand(&b, "b", op.b_grouped, groups, tokens, err));
    cmoei_outer o = plan(s->ctx, groups ? groups->experts : 1,
                         groups ? groups->first[groups->experts] : tokens, a.dims[1], b.dims[1]);
    int64_t one[2];
    CMOEI_TRY(cmoei_units_check(units, tokens, &o.units, one, err));
    if (op.accumulate && o.units.count != 1)
        return cmoei_fail(err, CMOE_ERR_ARG, "accumulate = 1 with %" PRId64 " units, want one unit",
                          o.units.count);
    const cmoei_outer_part part = {0, a.dims[1], 0, b.dims[1], out, bias};
    o.groups = groups;
    o.accumulate = op.accumulate != 0;
    o.a = (cmoei_operand){.x = a, .grouped = op.a_grouped, .n = a.dims[1], .scale = op.scale};
    o.b = (cmoei_operand){.x = b, .grouped = op.b_grouped, .n = b.dims[1], .scale = 1};
    o.parts = &part;
    o.count = 1;
    CMOEI_TRY(check(&o, &part, scratch, err));
    cmoei_carver c = cmoei_carver_open(scratch);
    cmoei_outer_carve(&o, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "grouped_outer", err));
    o.stream = cmoei_outer_streams(&o);
    cmoei_region(s->ctx, cmoei_outer_items(&o), region, &o);
    return CMOE_OK;
}
