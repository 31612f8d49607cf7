/* SPDX-License-Identifier: MIT
 *
 * route.c - every row of the route table against the double oracle, and against each other.
 *
 * Weights: the oracle weighs the ids that the row chose, so they can always be compared.  Ids: the
 * j-th best of values that are each off by at most d differs from the j-th best of the exact ones
 * by at most d, so an id may differ from the oracle's only where their exact values lie within 2d.
 * Rows: equal bits, ids and weights.
 *
 * Errors are counted in units of U = 2^-24, the largest relative error of one rounding.  exp is
 * within 1.1 units in the last place (vmath.h), each 2 U at most.  One per cent covers products of
 * errors.
 */
#include "kc.h"

#include "route/route_kernel.h"

static const double U = 0x1p-24, EXP = 2.2, MORE = 1.01;

enum { TOKENS = 6, MOST_K = 120 };

typedef struct shape {
    int64_t experts, topk;
    bool bias, scaled, forced;
} shape;

/* What one kernel works in, for float and for double. */
static cmoei_route_work work_of(kc *c, int64_t experts, int64_t groups, int64_t real)
{
    const int64_t lanes = cmoei_route_lanes(experts);
    return (cmoei_route_work){
        .score = kc_out(c, experts * real),
        .choice = kc_out(c, experts * real),
        .group = kc_out(c, groups * real),
        .key = kc_out(c, cmoei_round_up(experts, lanes) * 4),
        .best = kc_out(c, 2 * lanes * 4),
    };
}

/* ---- derived errors -------------------------------------------------------------------------- */

/* Relative error of a softmax over n logits, of one that lies `below` the best: rounding x - top is
 * worth below * U after exp; so it is for every other term of the sum, and the mean of `below`
 * under a softmax is at most ln n; then the sum's 16 lanes and fold, and the division. */
static double softmax_error(double below, double n)
{
    return (below + log(n) + 2 * EXP + n / 16 + 5 + 1) * U;
}

/* Relative error of the score of logit x. */
static double score_error(const cmoei_route_plan *p, double x, double top)
{
    switch (p->o.scoring) {
    case CMOE_SCORE_SOFTMAX:
        return softmax_error(top - x, (double)p->experts);
    case CMOE_SCORE_SIGMOID:
        return (EXP + 2) * U; /* an addition and a division */
    case CMOE_SCORE_SQRTSOFTPLUS:
        /* e^(x/2) squared, log1p within 5 ulp (Goldberg 1991, theorem 4), an addition, of which the
         * root leaves half, and the root's own rounding. */
        return ((2 * EXP + 1 + 10 + 1) / 2 + 1) * U;
    default:
        return 0;
    }
}

static double max_logit(const float *x, int64_t n)
{
    double top = x[0];
    for (int64_t i = 1; i < n; i++)
        top = fmax(top, x[i]);
    return top;
}

/* Largest absolute error of a selection score. */
static double selection_error(const cmoei_route_plan *p, const float *x, const double *score)
{
    const double top = max_logit(x, p->experts);
    double most = 0;
    for (int64_t e = 0; e < p->experts; e++) {
        double error = MORE * score_error(p, x[e], top) * fabs(score[e]) + FLT_MIN;
        if (p->bias) error += U * fabs(score[e] + p->bias[e]);
        most = fmax(most, error);
    }
    return most;
}

/* ---- ids ------------------------------------------------------------------------------------- */

/* Whether the last group that stays and the first that goes are too near to tell in float. */
static bool groups_too_near(const cmoei_route_plan *p, const double *group, double error)
{
    double worst_kept = INFINITY, best_dropped = -INFINITY;
    for (int64_t g = 0; g < p->o.groups; g++) {
        int64_t better = 0;
        for (int64_t h = 0; h < p->o.groups; h++)
            better += group[h] > group[g] || (group[h] == group[g] && h < g);
        if (better < p->o.topk_groups)
            worst_kept = fmin(worst_kept, group[g]);
        else
            best_dropped = fmax(best_dropped, group[g]);
    }
    /* A sum of two has both errors and a rounding. */
    return worst_kept - best_dropped <= 2 * (2 * error + U * fabs(worst_kept));
}

static void check_ids(kc *c, const cmoei_route_plan *p, const int32_t *got, const int32_t *want,
                      const double *choice, double error)
{
    for (int64_t k = 0; k < p->o.topk; k++) {
        for (int64_t i = 0; i < k; i++) {
            if (got[k] >= 0 && got[k] == got[i])
                kc_fail(c, "ids[%d] = ids[%d] = %d", (int)k, (int)i, got[k]);
        }
        if (got[k] == want[k]) continue;
        if (got[k] < 0 || got[k] >= p->experts || want[k] < 0 ||
            !(fabs(choice[got[k]] - choice[want[k]]) <= 2 * error))
            kc_fail(c, "ids[%d] = %d, want %d", (int)k, got[k], want[k]);
    }
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Whether sparsemixer's limit cannot be told in float: a difference and a division before it. */
static bool limit_too_near(const cmoei_route_plan *p, const float *x, const int32_t *ids)
{
    if (p->o.scoring != CMOE_SCORE_SPARSEMIXER) return false;
    const double reach = 2 * (double)p->o.jitter;
    for (int64_t k = 0; k < p->o.topk; k++) {
        for (int64_t e = 0; ids[k] >= 0 && e < p->experts; e++) {
            const double own = x[ids[k]], size = fmax(fabs((double)x[e]), own);
            if (fabs((own - x[e]) / size / reach - 1) <= 3 * U) return true;
        }
    }
    return false;
}

/* Relative error of w[k] before renormalising. */
static double plain_error(const cmoei_route_plan *p, const float *x, const int32_t *ids, int64_t k)
{
    const double top = max_logit(x, p->experts);
    if (p->o.scoring == CMOE_SCORE_LOGITS) { /* a softmax over K, summed in slot order */
        double best = -INFINITY;
        for (int64_t i = 0; i < p->o.topk; i++) {
            if (ids[i] >= 0) best = fmax(best, x[ids[i]]);
        }
        return softmax_error(best - x[ids[k]], (double)p->o.topk) + (double)p->o.topk * U;
    }
    if (p->o.scoring == CMOE_SCORE_SPARSEMIXER)
        return softmax_error(top - x[ids[k]], (double)p->experts);
    return score_error(p, x[ids[k]], top);
}

/* `plain` are the oracle's weights before renormalising and scaling: where they are so small that
 * float loses them, at most FLT_MIN each, dividing by their sum makes that large again. */
static void check_weights(kc *c, const cmoei_route_plan *p, const float *x, const int32_t *ids,
                          const float *got, const double *want, const double *plain)
{
    double most = 0, sum = 0;
    for (int64_t k = 0; k < p->o.topk; k++) {
        if (ids[k] >= 0) most = fmax(most, plain_error(p, x, ids, k));
        sum += plain[k];
    }
    for (int64_t k = 0; k < p->o.topk; k++) {
        if (ids[k] < 0) {
            if (got[k] != 0) kc_fail(c, "weights[%d] = %g for no expert", (int)k, (double)got[k]);
            continue;
        }
        const double scale = fabs(p->o.scale * (p->expert_scale ? p->expert_scale[ids[k]] : 1));
        double error = plain_error(p, x, ids, k) + 2 * U; /* two scales */
        double lost = FLT_MIN;
        if (p->o.renormalize) { /* K additions, eps, a division */
            error += most + (double)(p->o.topk + 2) * U;
            lost = fmax(lost, (double)(p->o.topk + 1) * FLT_MIN / sum);
        }
        kc_near(c, "weights", k, got[k], want[k],
                MORE * (error * fabs(want[k]) + lost * scale) + FLT_MIN);
    }
}

/* ---- one case -------------------------------------------------------------------------------- */

static cmoei_route_plan plan_of(kc *c, const cmoe_route_options *o, const shape *s)
{
    cmoei_route_plan p = {.o = *o, .experts = s->experts, .forced = s->forced};
    if (s->bias) p.bias = kc_f32s(c, s->experts);
    if (s->scaled) p.expert_scale = kc_f32s(c, s->experts);
    return p;
}

static void check(kc *c, const cmoei_route_kernel *row, const cmoe_route_options *o, shape s)
{
    kc_begin(c,
             "route E=%d K=%d scoring=%d groups=%d/%d mask=%d score=%d biased=%d renorm=%d "
             "eps=%d bias=%d scaled=%d forced=%d",
             (int)s.experts, (int)s.topk, o->scoring, (int)o->topk_groups, (int)o->groups,
             o->group_mask, o->group_score, o->groups_biased, o->renormalize, o->eps_rule, s.bias,
             s.scaled, s.forced);
    const cmoei_route_plan p = plan_of(c, o, &s);
    cmoei_route_plan forced = p;
    forced.forced = true;
    cmoei_route_plan plain = forced;
    plain.o.renormalize = CMOE_RENORM_NONE;
    plain.o.scale = 1;
    plain.expert_scale = NULL;
    const cmoei_route_work work = work_of(c, s.experts, o->groups, 4);
    const cmoei_route_work work64 = work_of(c, s.experts, o->groups, 8);
    int32_t *ids = kc_out(c, s.topk * 4), *ids_ref = kc_out(c, s.topk * 4);
    int32_t *ids64 = kc_out(c, s.topk * 4), *again = kc_out(c, s.topk * 4);
    float *w = kc_out(c, s.topk * 4), *w_ref = kc_out(c, s.topk * 4);
    double *w64 = kc_out(c, s.topk * 8), *w_plain = kc_out(c, s.topk * 8);
    for (int t = 0; t < TOKENS; t++) {
        float *x = kc_f32s(c, s.experts);
        for (int64_t e = 0; e < s.experts; e++)
            x[e] *= (float)(1 << t); /* from flat to saturated */
        for (int64_t k = 0; k < s.topk && s.forced; k++)
            ids[k] = ids_ref[k] = ids64[k] = (int32_t)kc_int(c, -1, s.experts - 1);
        row->token(&p, &work, x, ids, w);
        cmoei_route_token_ref(&p, &work, x, ids_ref, w_ref);
        kc_equal(c, "ids (against ref)", ids, ids_ref, s.topk * 4);
        kc_equal(c, "weights (against ref)", w, w_ref, s.topk * 4);

        cmoei_route_token_f64(&p, &work64, x, ids64, w64);
        const double error = selection_error(&p, x, work64.score);
        const bool unclear = o->topk_groups < o->groups && groups_too_near(&p, work64.group, error);
        if (!s.forced && !unclear && o->scoring != CMOE_SCORE_SPARSEMIXER)
            check_ids(c, &p, ids, ids64, work64.choice, error);
        memcpy(again, ids, (size_t)s.topk * 4);
        cmoei_route_token_f64(&forced, &work64, x, again, w64);
        cmoei_route_token_f64(&plain, &work64, x, again, w_plain);
        if (!limit_too_near(&p, x, ids)) check_weights(c, &p, x, ids, w, w64, w_plain);
    }
    kc_end(c);
}

/* ---- cases ----------------------------------------------------------------------------------- */

static void check_row(kc *c, const cmoei_route_kernel *row)
{
    static const int64_t experts[] = {1,  2,   3,   8,   15,  16,  17,  31,   60,   64,
                                      96, 100, 128, 160, 255, 256, 257, 1000, 4096, 4100};
    for (int i = 0; i < CMOEI_COUNT(experts); i++) {
        for (uint64_t j = 0; j < 40; j++) {
            const uint64_t r = cmoe_random_u64((uint64_t)i, j, 0);
            const int64_t groups[] = {1, 2, 4, 8, 16};
            cmoe_route_options o;
            cmoe_route_options_default(&o, sizeof o);
            const shape s = {
                .experts = experts[i],
                .topk = j % 5 == CMOE_SCORE_SPARSEMIXER ? 2
                        : r & 1                         ? 1 + (int64_t)(r >> 8) % 10
                                : CMOEI_MIN(experts[i] + (int64_t)(r >> 8) % 3, (int64_t)MOST_K),
                .bias = r >> 16 & 1 && j % 5 != CMOE_SCORE_SPARSEMIXER,
                .scaled = r >> 17 & 1,
                .forced = (r >> 18 & 3) == 0};
            o.topk = s.topk;
            o.scoring = (int32_t)(j % 5);
            o.groups = groups[(r >> 20) % 5];
            if (s.experts % o.groups || j % 5 == CMOE_SCORE_SPARSEMIXER) o.groups = 1;
            o.topk_groups = 1 + (int64_t)(r >> 24 & 0xff) % o.groups;
            o.group_mask = r >> 32 & 1;
            o.group_score = r >> 33 & 1;
            o.groups_biased = r >> 34 & 1;
            o.renormalize = r >> 35 & 1;
            o.eps_rule = (int32_t)(r >> 36 & 0xf) % 3;
            o.eps = r >> 40 & 1 ? 1e-20f : 0.5f;
            o.scale = r >> 41 & 1 ? 1 : 2.5f;
            check(c, row, &o, s);
        }
    }
}

/* Values at the edges, where only the rows can be compared: ties, NaN, infinities, zeros. */
static void check_edges(kc *c, const cmoei_route_kernel *row)
{
    static const float values[] = {NAN, INFINITY, -INFINITY, 0,     -0.0f,
                                   1,   -1,       1e-45f,    3e38f, -3e38f};
    for (int64_t experts = 1; experts < 70; experts += 7) {
        for (int32_t scoring = 0; scoring <= CMOE_SCORE_SPARSEMIXER; scoring++) {
            kc_begin(c, "route edges E=%d scoring=%d", (int)experts, scoring);
            cmoei_route_plan p = {.experts = experts};
            cmoe_route_options_default(&p.o, sizeof p.o);
            p.o.topk = scoring == CMOE_SCORE_SPARSEMIXER ? 2 : 9;
            p.o.topk_groups = 1;
            p.o.scoring = scoring;
            const cmoei_route_work work = work_of(c, experts, 1, 4);
            float *x = kc_out(c, experts * 4), *w = kc_out(c, 36), *w_ref = kc_out(c, 36);
            int32_t *ids = kc_out(c, 36), *ids_ref = kc_out(c, 36);
            for (int t = 0; t < 20; t++) {
                for (int64_t e = 0; e < experts; e++)
                    x[e] = values[kc_int(c, 0, CMOEI_COUNT(values) - 1)];
                row->token(&p, &work, x, ids, w);
                cmoei_route_token_ref(&p, &work, x, ids_ref, w_ref);
                kc_equal(c, "ids", ids, ids_ref, p.o.topk * 4);
                kc_equal(c, "weights", w, w_ref, p.o.topk * 4);
                for (int64_t k = 0; k < p.o.topk; k++) {
                    if (!(fabsf(w[k]) <= FLT_MAX)) kc_fail(c, "weights[%d] not finite", (int)k);
                }
            }
            kc_end(c);
        }
    }
}

static void check_share(kc *c, const cmoei_route_kernel *row)
{
    static const int64_t experts[] = {1, 5, 16, 100, 256, 300, 1024, 1500};
    for (int i = 0; i < CMOEI_COUNT(experts); i++) {
        const int64_t E = experts[i];
        for (int64_t first = 0; first < E; first += CMOEI_ROUTE_PIECE) {
            kc_begin(c, "route share E=%d first=%d", (int)E, (int)first);
            float *x = kc_f32s(c, E);
            const int64_t count = CMOEI_MIN(E - first, (int64_t)CMOEI_ROUTE_PIECE);
            double *load = kc_out(c, count * 8), top = max_logit(x, E), below = 0;
            for (int64_t e = 0; e < count; e++) {
                load[e] = (double)kc_int(c, 0, 9);
                below = fmax(below, top - x[first + e]);
            }
            const cmoei_route_share a = {cmoe_view_2d(x, CMOE_F32, 1, E), first, count, load};
            const double got = row->share(&a, 0), want = cmoei_route_share_f64(&a, 0);
            const double ref = cmoei_route_share_ref(&a, 0);
            kc_equal(c, "share (against ref)", &got, &ref, sizeof ref);
            /* Sums are double: their roundings are far below one U. */
            kc_near(c, "share", 0, got, want, MORE * softmax_error(below, (double)E) * want);
            kc_end(c);
        }
    }
}

int main(void)
{
    kc c = {0};
    for (int64_t i = 0; i < cmoei_route_table.count; i++) {
        const cmoei_variant *v = cmoei_table_row(&cmoei_route_table, i);
        if (v->needs & ~cmoe_cpu_features()) continue;
        const cmoei_route_kernel *row = (const cmoei_route_kernel *)v;
        printf("route/%s\n", v->name);
        check_row(&c, row);
        check_edges(&c, row);
        check_share(&c, row);
    }
    return kc_report(&c, "kernels_route");
}
