/* SPDX-License-Identifier: MIT
 *
 * route_token.h - the routing rule for one token, but for finding the K best (route_ref.c,
 * route_simd.c): scores, group mask, weights.
 *
 * Plain loops in cmoei_real.  The same source is built for every instruction set, and once as
 * double; what keeps the bits equal is that every function called here is a fixed sequence of
 * correctly rounded operations (vmath.h), and that long sums are 16 partial sums,
 *
 *     part[l] = x[l] + x[l + 16] + x[l + 32] + ...   in this order
 *     sum     = fold of part: l and l + 8, then + 4, + 2, + 1
 *
 * which is one or two vector registers everywhere.  Short sums (over K) go in slot order.
 */
#ifndef CMOE_ROUTE_TOKEN_H
#define CMOE_ROUTE_TOKEN_H

#include "core/real.h"

#include "route_kernel.h"

enum { ROUTE_LANES = 16 };

/* NaN is the worst logit there is; infinities become finite, so that no difference is NaN. */
static inline float route_sanitise(float x)
{
    const float y = x != x ? -1e20f : x;
    const float low = y < -1e20f ? -1e20f : y;
    return low > 1e20f ? 1e20f : low;
}

static inline cmoei_real route_larger(cmoei_real a, cmoei_real b)
{
    return a > b ? a : b;
}

static inline cmoei_real route_sum(const cmoei_real *x, int64_t n)
{
    cmoei_real part[ROUTE_LANES] = {0};
    int64_t i = 0;
    for (; i + ROUTE_LANES <= n; i += ROUTE_LANES) {
        for (int l = 0; l < ROUTE_LANES; l++)
            part[l] += x[i + l];
    }
    for (int l = 0; i + l < n; l++)
        part[l] += x[i + l];
    for (int half = ROUTE_LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++)
            part[l] += part[l + half];
    }
    return part[0];
}

static inline cmoei_real route_max(const cmoei_real *x, int64_t n)
{
    cmoei_real part[ROUTE_LANES];
    for (int l = 0; l < ROUTE_LANES; l++)
        part[l] = x[0];
    int64_t i = 0;
    for (; i + ROUTE_LANES <= n; i += ROUTE_LANES) {
        for (int l = 0; l < ROUTE_LANES; l++)
            part[l] = route_larger(x[i + l], part[l]);
    }
    for (int l = 0; i + l < n; l++)
        part[l] = route_larger(x[i + l], part[l]);
    for (int half = ROUTE_LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++)
            part[l] = route_larger(part[l], part[l + half]);
    }
    return part[0];
}

/* sqrt(ln(1 + e^x)) to a few units in the last place for every x: ln(1 + e^x) itself is subnormal,
 * with only some digits left, below -87, but there its root is e^(x/2). */
static inline cmoei_real route_sqrt_softplus(cmoei_real x)
{
#ifdef CMOEI_DOUBLE
    return real_sqrt(real_softplus(x));
#else
    const float magnitude = x < 0 ? -x : x;
    const float root = real_exp(-0.5f * magnitude);
    const float softplus = route_larger(x, 0) + cmoei_log1pf(root * root);
    return x < -20 ? root : real_sqrt(softplus); /* e^-20 / 4 is far below half a unit */
#endif
}

/* x, sanitised logits [n], becomes their softmax. */
static inline void route_softmax(cmoei_real *x, int64_t n)
{
    const cmoei_real top = route_max(x, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = real_exp(x[i] - top);
    const cmoei_real sum = route_sum(x, n); /* at least 1: the best logit adds e^0 */
    for (int64_t i = 0; i < n; i++)
        x[i] = x[i] / sum;
}

static inline void route_scores(int32_t scoring, const float *logits, cmoei_real *restrict score,
                                int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        score[i] = route_sanitise(logits[i]);
    switch (scoring) {
    case CMOE_SCORE_SOFTMAX:
        route_softmax(score, n);
        break;
    case CMOE_SCORE_SIGMOID:
        for (int64_t i = 0; i < n; i++)
            score[i] = real_sigmoid(score[i]);
        break;
    case CMOE_SCORE_SQRTSOFTPLUS:
        for (int64_t i = 0; i < n; i++)
            score[i] = route_sqrt_softplus(score[i]);
        break;
    default: /* logits and sparsemixer choose by the logit */
        break;
    }
}

/* ---- selection: score + bias, experts of dropped groups masked ------------------------------- */

static inline cmoei_real route_group_score(const cmoei_real *x, int64_t n, int32_t rule)
{
    cmoei_real best = x[0], second = -INFINITY;
    for (int64_t i = 1; i < n; i++) {
        second = route_larger(second, x[i] < best ? x[i] : best);
        best = route_larger(best, x[i]);
    }
    return rule == CMOE_GROUP_TOP2 && n > 1 ? best + second : best;
}

/* A group stays when fewer than topk_groups are better; of equal ones the first is better. */
static inline bool route_group_stays(const cmoei_real *group, int64_t groups, int64_t g,
                                     int64_t stay)
{
    int64_t better = 0;
    for (int64_t h = 0; h < groups; h++)
        better += group[h] > group[g] || (group[h] == group[g] && h < g);
    return better < stay;
}

static inline void route_mask_groups(const cmoei_route_plan *p, const cmoei_real *score,
                                     cmoei_real *group, cmoei_real *choice)
{
    const int64_t groups = p->o.groups, n = p->experts / groups;
    const cmoei_real *from = p->o.groups_biased ? choice : score;
    for (int64_t g = 0; g < groups; g++)
        group[g] = route_group_score(from + g * n, n, p->o.group_score);
    const cmoei_real masked = p->o.group_mask == CMOE_MASK_ZERO ? 0 : -INFINITY;
    for (int64_t g = 0; g < groups; g++) {
        if (route_group_stays(group, groups, g, p->o.topk_groups)) continue;
        for (int64_t i = 0; i < n; i++)
            choice[g * n + i] = masked;
    }
}

/* Only a dropped expert has -infinity, as scores and bias are finite: it never wins over one that
 * stays.  When fewer than K stay, dropped ones follow, lowest id first, with their own scores as
 * weights; that is what top-k over -infinities gives elsewhere. */
static inline void route_selection(const cmoei_route_plan *p, const cmoei_real *score,
                                   cmoei_real *group, cmoei_real *restrict choice)
{
    for (int64_t i = 0; i < p->experts; i++)
        choice[i] = p->bias ? score[i] + p->bias[i] : score[i];
    if (p->o.topk_groups < p->o.groups) route_mask_groups(p, score, group, choice);
}

/* ---- weights of the chosen ------------------------------------------------------------------- */

static inline void route_chosen_softmax(const cmoei_real *logit, const int32_t *ids, int64_t topk,
                                        cmoei_real *w)
{
    cmoei_real top = -INFINITY, sum = 0;
    for (int64_t k = 0; k < topk; k++) {
        if (ids[k] >= 0) top = route_larger(logit[ids[k]], top);
    }
    for (int64_t k = 0; k < topk; k++) {
        w[k] = ids[k] < 0 ? 0 : real_exp(logit[ids[k]] - top);
        sum += w[k];
    }
    for (int64_t k = 0; k < topk; k++)
        w[k] = sum > 0 ? w[k] / sum : 0;
}

/* Sparsemixer (PhiMoE, arXiv 2409.12136, inference form): the weight of a chosen expert is its
 * softmax among the experts whose logits are not too far below its own; the second round leaves out
 * the first choice.  Where the chosen one is the best, as it is unless a bias, a group mask or
 * given ids say otherwise, "its own" is the maximum that the paper compares with. */
static inline void route_sparsemixer(const cmoei_route_plan *p, const cmoei_real *logit,
                                     cmoei_real *restrict near, const int32_t *ids, cmoei_real *w)
{
    const cmoei_real reach = 2 * p->o.jitter;
    for (int64_t k = 0; k < p->o.topk; k++) {
        w[k] = 0;
        if (ids[k] < 0) continue;
        const cmoei_real own = logit[ids[k]];
        for (int64_t i = 0; i < p->experts; i++) {
            const cmoei_real x = logit[i], size = route_larger(x < 0 ? -x : x, own);
            near[i] = (own - x) / size > reach ? -INFINITY : x; /* 0 / 0 is near */
        }
        if (k > 0 && ids[0] >= 0 && ids[0] != ids[k]) near[ids[0]] = -INFINITY;
        route_softmax(near, p->experts);
        w[k] = near[ids[k]];
    }
}

static inline void route_renormalise(const cmoei_route_plan *p, cmoei_real *w)
{
    cmoei_real sum = 0;
    for (int64_t k = 0; k < p->o.topk; k++)
        sum += w[k];
    if (p->o.eps_rule == CMOE_EPS_ADD) sum += p->o.eps;
    if (p->o.eps_rule == CMOE_EPS_MAX) sum = route_larger(sum, p->o.eps);
    for (int64_t k = 0; k < p->o.topk; k++)
        w[k] = sum > 0 ? w[k] / sum : 0;
}

/* `spare` [E] is overwritten. */
static inline void route_weights(const cmoei_route_plan *p, const cmoei_real *score,
                                 cmoei_real *spare, const int32_t *ids, cmoei_real *w)
{
    const int64_t topk = p->o.topk;
    if (p->o.scoring == CMOE_SCORE_LOGITS) {
        route_chosen_softmax(score, ids, topk, w);
    } else if (p->o.scoring == CMOE_SCORE_SPARSEMIXER) {
        route_sparsemixer(p, score, spare, ids, w);
    } else {
        for (int64_t k = 0; k < topk; k++)
            w[k] = ids[k] < 0 ? 0 : score[ids[k]];
    }
    /* A softmax over the chosen already adds up to 1. */
    if (p->o.renormalize == CMOE_RENORM_SUM && p->o.scoring != CMOE_SCORE_LOGITS)
        route_renormalise(p, w);
    for (int64_t k = 0; k < topk; k++) {
        w[k] *= p->o.scale;
        if (p->expert_scale && ids[k] >= 0) w[k] *= p->expert_scale[ids[k]];
    }
}

/* ---- balance loss ---------------------------------------------------------------------------- */

/* Logits [at, at + n) of token t, sanitised. */
static inline int64_t route_piece(const cmoe_view *logits, int64_t t, int64_t at, float *raw,
                                  cmoei_real *restrict x)
{
    const int64_t n = CMOEI_MIN(logits->dims[1] - at, (int64_t)CMOEI_ROUTE_PIECE);
    cmoei_load_f32(raw, cmoei_at(logits, t, at), logits->dtype, logits->strides[1], n);
    for (int64_t i = 0; i < n; i++)
        x[i] = route_sanitise(raw[i]);
    return n;
}

/* Needs no memory for a whole row: once through it for the maximum, once for the two sums, each of
 * them piece by piece in double. */
static inline double route_share(const cmoei_route_share *a, int64_t t)
{
    float raw[CMOEI_ROUTE_PIECE];
    cmoei_real x[CMOEI_ROUTE_PIECE];
    const int64_t experts = a->logits.dims[1];
    cmoei_real top = -INFINITY;
    for (int64_t at = 0; at < experts; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = route_piece(&a->logits, t, at, raw, x);
        top = route_larger(route_max(x, n), top);
    }
    double all[ROUTE_LANES] = {0}, wanted[ROUTE_LANES] = {0};
    for (int64_t at = 0; at < experts; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = route_piece(&a->logits, t, at, raw, x);
        for (int64_t i = 0; i < n; i++)
            x[i] = real_exp(x[i] - top);
        for (int64_t i = n; i < cmoei_round_up(n, ROUTE_LANES); i++)
            x[i] = 0;
        for (int64_t i = 0; i < n; i += ROUTE_LANES) {
            for (int l = 0; l < ROUTE_LANES; l++)
                all[l] += (double)x[i + l];
        }
        if (at < a->first || at >= a->first + a->count) continue;
        for (int64_t i = 0; i < n; i++)
            wanted[i % ROUTE_LANES] += (double)x[i] * a->load[at - a->first + i];
    }
    for (int half = ROUTE_LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) {
            all[l] += all[l + half];
            wanted[l] += wanted[l + half];
        }
    }
    return wanted[0] / all[0];
}

#endif
