/* SPDX-License-Identifier: MIT
 *
 * losses.c - auxiliary losses of a router with their gradients: load balance and router z-loss.
 *
 * logits [T, E], ids [T, K], mask [T]; a unit has N tokens that count and c_e slots on expert e.
 *
 *     balance   E / (N^2 K) * sum_t s_t          s_t = sum_e c_e p[t, e]
 *               d/dlogits[t, e] = E / (N^2 K) * p[t, e] (c_e - s_t)
 *     z         1 / N * sum_t z_t^2              z_t = logsumexp(logits[t])
 *               d/dlogits[t, e] = 2 / N * z_t p[t, e]
 *
 * Each token gives one number and the gradient of its own logits, in any order on any thread; the
 * numbers wait on the stack, ROUND of them, until one task adds them up in token order, in double.
 * Units are added as a balanced tree.  Counts of up to CHUNK experts fit a task's stack; with more
 * experts a task goes through them twice for every few tokens, counting again.
 *
 * Logits are sanitised as for routing: a token whose logits that changed adds its loss but gets no
 * gradient.
 */
#include <math.h>

#include "backward.h"
#include "core/units.h"

enum { CHUNK = 8 * CMOEI_ROUTE_PIECE, ROUND = 1024, GRAIN = 16 };

typedef struct losses {
    const cmoei_route_kernel *route;
    const cmoei_route_back_kernel *back;
    cmoei_route_slope slope;
    cmoe_view ids, mask;
    bool balance;
    double scale;
    cmoe_units units;
    double value[ROUND]; /* s_t or z_t of this round */
    double unit[CMOE_UNITS_MOST];
} losses;

/* Counts of a chunk of experts in a unit, of one task. */
typedef struct tally {
    int64_t unit, first, count; /* unit -1: nothing yet */
    double load[CHUNK];
} tally;

static void count_chunk(const losses *l, int64_t unit, int64_t first, tally *c)
{
    if (c->unit == unit && c->first == first) return;
    c->unit = unit;
    c->first = first;
    c->count = CMOEI_MIN(l->slope.logits.dims[1] - first, (int64_t)CHUNK);
    for (int64_t e = 0; e < c->count; e++)
        c->load[e] = 0;
    for (int64_t t = l->units.first[unit]; t < l->units.first[unit + 1]; t++) {
        if (!cmoei_route_counts(&l->mask, t)) continue;
        for (int64_t k = 0; k < l->ids.dims[1]; k++) {
            /* Unsigned: ids come from outside and may be anything. */
            const uint64_t e =
                (uint64_t)cmoei_load_index(cmoei_at(&l->ids, t, k), l->ids.dtype) - (uint64_t)first;
            if (e < (uint64_t)c->count) c->load[e] += 1;
        }
    }
}

/* Tokens [begin, end), at most GRAIN; their numbers go to value. */
static void balance_tokens(const losses *l, int64_t unit, double factor, int64_t begin, int64_t end,
                           double *value, tally *c)
{
    const int64_t experts = l->slope.logits.dims[1];
    for (int64_t t = begin; t < end; t++)
        value[t - begin] = 0;
    for (int64_t first = 0; first < experts; first += CHUNK) {
        count_chunk(l, unit, first, c);
        const cmoei_route_share share = {l->slope.logits, first, c->count, c->load};
        for (int64_t t = begin; t < end; t++) {
            if (cmoei_route_counts(&l->mask, t)) value[t - begin] += l->route->share(&share, t);
        }
    }
    for (int64_t first = 0; l->slope.dlogits && first < experts; first += CHUNK) {
        count_chunk(l, unit, first, c);
        const cmoei_route_pull pull = {l->slope, first, c->count, c->load, factor * l->scale};
        for (int64_t t = begin; t < end; t++) {
            if (cmoei_route_counts(&l->mask, t)) l->back->pull(&pull, t, value[t - begin]);
        }
    }
}

static void z_tokens(const losses *l, double factor, int64_t begin, int64_t end, double *value)
{
    for (int64_t t = begin; t < end; t++) {
        value[t - begin] = 0;
        if (!cmoei_route_counts(&l->mask, t)) continue;
        const double z = l->back->z(&l->slope, t, factor * l->scale);
        value[t - begin] = z * z;
    }
}

/* What the sum over tokens of a unit is multiplied with; 0 when no token counts. */
static double factor_of(const losses *l, int64_t unit)
{
    const double experts = (double)l->slope.logits.dims[1];
    double n = 0;
    for (int64_t t = l->units.first[unit]; t < l->units.first[unit + 1]; t++)
        n += cmoei_route_counts(&l->mask, t);
    if (n == 0) return 0;
    return l->balance ? experts / (n * n * (double)l->ids.dims[1]) : 1 / n;
}

static void run(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    losses *l = arg;
    tally c;
    (void)count;
    c.unit = -1;
    for (int64_t u = 0; u < l->units.count; u++) {
        const double factor = factor_of(l, u);
        const int64_t unit_end = l->units.first[u + 1];
        if (factor == 0) continue; /* for every task alike */
        for (int64_t first = l->units.first[u]; first < unit_end; first += ROUND) {
            const int64_t n = CMOEI_MIN(unit_end - first, (int64_t)ROUND);
            for (int64_t i; (i = cmoei_next(team, GRAIN)) < n;) {
                const int64_t begin = first + i, end = first + CMOEI_MIN(i + GRAIN, n);
                if (l->balance)
                    balance_tokens(l, u, factor, begin, end, l->value + i, &c);
                else
                    z_tokens(l, factor, begin, end, l->value + i);
            }
            cmoei_barrier(team);
            for (int64_t i = 0; index == 0 && i < n; i++)
                l->unit[u] += l->value[i];
            cmoei_barrier(team);
        }
        if (index == 0) l->unit[u] *= factor;
    }
}

static double tree(double *x, int64_t n)
{
    for (; n > 1; n /= 2) {
        for (int64_t i = 0; i < n / 2; i++)
            x[i] = x[2 * i] + x[2 * i + 1];
    }
    return x[0];
}

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoe_status check_dlogits(const losses *l, const cmoe_view_mut *dlogits, cmoe_error *err)
{
    const cmoe_view v = cmoe_view_of(*dlogits), *logits = &l->slope.logits;
    const cmoei_want want = {.name = "dlogits",
                             .rank = 2,
                             .dims = {logits->dims[0], logits->dims[1]},
                             .dim_names = {"tokens", "experts"}};
    if (!cmoei_given(&v)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_rows_out(dlogits, &want, err));
    CMOEI_TRY(cmoei_check_apart(dlogits, "dlogits", logits, "logits", err));
    if (l->balance) CMOEI_TRY(cmoei_check_apart(dlogits, "dlogits", &l->ids, "ids", err));
    if (cmoei_given(&l->mask))
        CMOEI_TRY(cmoei_check_apart(dlogits, "dlogits", &l->mask, "mask", err));
    return CMOE_OK;
}

static cmoe_status check(losses *l, const cmoe_units *units, int64_t one[2], const double *loss,
                         const cmoe_view_mut *dlogits, cmoe_error *err)
{
    cmoei_want want = {.name = "logits",
                       .dtypes = CMOEI_FLOATS,
                       .rank = 2,
                       .dims = {-1, -1},
                       .dim_names = {"tokens", "experts"}};
    CMOEI_TRY(cmoei_check_in(&l->slope.logits, &want, err));
    const int64_t tokens = l->slope.logits.dims[0];
    want = (cmoei_want){.name = "ids",
                        .dtypes = CMOEI_INDEX,
                        .rank = 2,
                        .dims = {tokens, -1},
                        .dim_names = {"tokens", "topk"}};
    if (l->balance) CMOEI_TRY(cmoei_check_in(&l->ids, &want, err));
    want = (cmoei_want){.name = "mask",
                        .dtypes = CMOEI_DTYPE(CMOE_I32),
                        .rank = 1,
                        .dims = {tokens},
                        .dim_names = {"tokens"}};
    if (cmoei_given(&l->mask)) CMOEI_TRY(cmoei_check_in(&l->mask, &want, err));
    CMOEI_TRY(cmoei_units_check(units, tokens, &l->units, one, err));
    if (!isfinite(l->scale))
        return cmoei_fail(err, CMOE_ERR_RANGE, "scale = %g, want a finite value", l->scale);
    if (!loss) return cmoei_fail(err, CMOE_ERR_ARG, "loss is NULL, want a place for the result");
    return check_dlogits(l, dlogits, err);
}

/* ---- entries --------------------------------------------------------------------------------- */

static cmoe_status compute(cmoe_stream *s, losses *l, const cmoe_units *units, double *loss,
                           const cmoe_view_mut *dlogits, cmoe_error *err)
{
    int64_t one[2], most = 0;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(check(l, units, one, loss, dlogits, err));
    const int64_t tokens = l->slope.logits.dims[0], experts = l->slope.logits.dims[1];
    if (tokens == 0 || experts == 0 || (l->balance && l->ids.dims[1] == 0)) {
        *loss = 0;
        return CMOE_OK;
    }
    l->route = cmoei_table_pick(&cmoei_route_table, s->ctx->features, 0);
    l->back = cmoei_table_pick(&cmoei_route_back_table, s->ctx->features, 0);
    l->slope.dlogits = dlogits->data;
    if (l->slope.dlogits) l->slope.step = dlogits->strides[0] * (int64_t)sizeof(float);
    for (int64_t u = 0; u < l->units.count; u++)
        most = CMOEI_MAX(most, l->units.first[u + 1] - l->units.first[u]);
    cmoei_region(s->ctx, cmoei_ceil_div(most, GRAIN), run, l);
    *loss = tree(l->unit, l->units.count);
    return CMOE_OK;
}

cmoe_status cmoe_route_balance_backward(cmoe_stream *s, cmoe_view logits, cmoe_view ids,
                                        cmoe_view mask, const cmoe_units *units, float scale,
                                        double *loss, cmoe_view_mut dlogits, cmoe_error *err)
{
    losses l = {.slope = {.logits = logits},
                .ids = ids,
                .mask = mask,
                .balance = true,
                .scale = (double)scale};
    return compute(s, &l, units, loss, &dlogits, err);
}

cmoe_status cmoe_route_z_loss_backward(cmoe_stream *s, cmoe_view logits, cmoe_view mask,
                                       const cmoe_units *units, float scale, double *loss,
                                       cmoe_view_mut dlogits, cmoe_error *err)
{
    losses l = {.slope = {.logits = logits}, .mask = mask, .scale = (double)scale};
    return compute(s, &l, units, loss, &dlogits, err);
}
