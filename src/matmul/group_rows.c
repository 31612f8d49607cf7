/* SPDX-License-Identifier: MIT
 *
 * group_rows.c - cmoe_group_rows: rows of tokens or of slots brought into the order of groups.
 */
#include "outer.h"

typedef struct grouping {
    cmoe_view x, coefficients;
    bool per_slot;
    const cmoe_groups *g;
    cmoe_view_mut out;
} grouping;

static void copy_row(const grouping *j, int64_t r)
{
    const int32_t slot = j->g->slots[r];
    const int64_t from = j->per_slot ? slot : slot / j->g->topk, n = j->x.dims[1];
    const cmoei_f32 *x = cmoei_at(&j->x, from, 0);
    cmoei_f32 *to = cmoei_at_mut(&j->out, r, 0);
    if (!cmoei_given(&j->coefficients)) {
        for (int64_t i = 0; i < n; i++)
            to[i] = x[i];
        return;
    }
    float c;
    cmoei_load_f32(&c, cmoei_at(&j->coefficients, slot / j->g->topk, slot % j->g->topk),
                   j->coefficients.dtype, 1, 1);
    for (int64_t i = 0; i < n; i++)
        to[i] = c * x[i];
}

static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    enum { GRAIN = 16 };
    const grouping *j = arg;
    const int64_t rows = j->g->first[j->g->experts];
    (void)index;
    (void)count;
    for (int64_t r; (r = cmoei_next(team, GRAIN)) < rows;) {
        const int64_t end = CMOEI_MIN(r + GRAIN, rows);
        for (; r < end; r++) {
            if (j->g->slots[r] >= 0) copy_row(j, r);
        }
    }
}

cmoe_status cmoe_group_rows(cmoe_stream *s, cmoe_view x, int32_t per_slot, cmoe_view coefficients,
                            const cmoe_groups *groups, cmoe_view_mut out, cmoe_error *err)
{
    enum { WORTH = 1 << 15 }; /* values that pay for a second thread */
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_flag(per_slot, "per_slot", err));
    CMOEI_TRY(cmoei_groups_check(groups, groups ? groups->experts : 0, err));
    const int64_t T = groups->tokens, K = groups->topk;
    const cmoei_want wx = {
        "x", 0, 2, {per_slot ? T * K : T, -1}, {per_slot ? "slots" : "tokens", "columns"}};
    CMOEI_TRY(cmoei_check_rows(&x, &wx, err));
    const cmoei_want wo = {"out", 0, 2, {-1, x.dims[1]}, {"rows", "columns"}};
    CMOEI_TRY(cmoei_check_rows_out(&out, &wo, err));
    const cmoe_view to = cmoe_view_of(out);
    CMOEI_TRY(cmoei_check_filled(&to, "out", groups->first[groups->experts], err));
    if (cmoei_given(&coefficients)) {
        const cmoei_want wc = {"coefficients", CMOEI_FLOATS, 2, {T, K}, {"tokens", "topk"}};
        CMOEI_TRY(cmoei_check_in(&coefficients, &wc, err));
        CMOEI_TRY(cmoei_check_apart(&out, "out", &coefficients, "coefficients", err));
    }
    CMOEI_TRY(cmoei_check_apart(&out, "out", &x, "x", err));
    CMOEI_TRY(cmoei_groups_apart(&out, "out", groups, err));
    grouping j = {x, coefficients, per_slot != 0, groups, out};
    const int64_t rows = groups->first[groups->experts];
    cmoei_region(s->ctx, rows * (x.dims[1] + 1) < WORTH ? 1 : rows, region, &j);
    return CMOE_OK;
}
