/* SPDX-License-Identifier: MIT
 *
 * backward_token.h - the backward of a route for one token, in cmoei_real for every build.
 *
 * The slots of a token have scores p_k of logits x_k, and weights w_k = c_k p_k / S with c_k = scale
 * * per-expert scale; S = 1, or what renormalising divides by.  With g_k = c_k dweights_k and q_k =
 * p_k / S, and R = sum_k g_k q_k where S depends on the scores (0 where it is a constant),
 *
 *     p_k * dL/dp_k = q_k (g_k - R)
 *     dL/dx_k      += q_k (g_k - R) * (dp/dx / p at x_k)
 *
 * The logarithmic derivative dp/dx / p keeps tiny scores and sums from overflowing in between.  It
 * is sigmoid(-x) for sigmoid and sigmoid(x) / (2 softplus(x)) for sqrtsoftplus.  A softmax adds the
 * term of its own sum, -p_e * sum_k q_k (g_k - R) for every expert e of it: with R = sum g q that is
 * exactly 0 when S = sum_k p_k, so it is left out there and nothing but rounding is lost.
 *
 * Everything is recomputed from the logits with the sums of route_token.h: kept weights could not
 * be divided by scales of 0 again.
 */
#ifndef CMOE_ROUTE_BACKWARD_TOKEN_H
#define CMOE_ROUTE_BACKWARD_TOKEN_H

#include <string.h>

#include "backward.h"
#include "route_token.h"

/* ---- a row of dlogits ------------------------------------------------------------------------ */

static inline char *back_row(const cmoei_route_slope *a, int64_t t)
{
    return a->dlogits + t * a->step;
}

static inline void back_add(char *row, int64_t e, cmoei_real x)
{
    cmoei_real sum;
    memcpy(&sum, row + e * (int64_t)sizeof sum, sizeof sum);
    sum += x;
    memcpy(row + e * (int64_t)sizeof sum, &sum, sizeof sum);
}

/* ---- softmaxes ------------------------------------------------------------------------------- */

/* e^(x - top) / sum is the softmax of x. */
typedef struct back_norm {
    cmoei_real top, sum;
} back_norm;

/* What stands in a sparsemixer's softmax: logits near `own`, `without` left out; see
 * route_sparsemixer. */
typedef struct back_near {
    bool all; /* all logits, after all */
    cmoei_real own, reach;
    int64_t without; /* -1: nobody */
} back_near;

/* Logits [at, at + n) of token t, sanitised; those outside of `near` are -infinity. */
static inline int64_t back_piece(const cmoe_view *logits, const back_near *near, int64_t t,
                                 int64_t at, cmoei_real *restrict x)
{
    float raw[CMOEI_ROUTE_PIECE];
    const int64_t n = route_piece(logits, t, at, raw, x);
    if (near->all) return n;
    for (int64_t i = 0; i < n; i++) {
        const cmoei_real size = route_larger(x[i] < 0 ? -x[i] : x[i], near->own);
        x[i] = (near->own - x[i]) / size > near->reach ? -INFINITY : x[i]; /* 0 / 0 is near */
    }
    if (near->without >= at && near->without < at + n) x[near->without - at] = -INFINITY;
    return n;
}

static const back_near back_all = {.all = true, .without = -1};

/* Top and sum of route_softmax, bit by bit: lanes go on from piece to piece. */
static inline back_norm back_norm_of(const cmoe_view *logits, const back_near *near, int64_t t)
{
    cmoei_real x[CMOEI_ROUTE_PIECE], part[ROUTE_LANES] = {0};
    const int64_t experts = logits->dims[1];
    back_norm r = {.top = -INFINITY};
    for (int64_t at = 0; at < experts; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = back_piece(logits, near, t, at, x);
        r.top = route_larger(route_max(x, n), r.top);
    }
    for (int64_t at = 0; at < experts; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = back_piece(logits, near, t, at, x);
        for (int64_t i = 0; i < n; i++)
            x[i] = real_exp(x[i] - r.top);
        for (int64_t i = n; i < cmoei_round_up(n, ROUTE_LANES); i++)
            x[i] = 0;
        for (int64_t i = 0; i < n; i += ROUTE_LANES) {
            for (int l = 0; l < ROUTE_LANES; l++)
                part[l] += x[i + l];
        }
    }
    for (int half = ROUTE_LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++)
            part[l] += part[l + half];
    }
    r.sum = part[0];
    return r;
}

/* dlogits[t, e] -= factor * softmax[e] */
static inline void back_spread(const cmoei_route_slope *a, const back_near *near, int64_t t,
                               back_norm norm, cmoei_real factor)
{
    cmoei_real x[CMOEI_ROUTE_PIECE], d[CMOEI_ROUTE_PIECE];
    for (int64_t at = 0; at < a->logits.dims[1]; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = back_piece(&a->logits, near, t, at, x);
        char *to = back_row(a, t) + at * (int64_t)sizeof *d;
        memcpy(d, to, (size_t)n * sizeof *d);
        for (int64_t i = 0; i < n; i++)
            d[i] -= factor * (real_exp(x[i] - norm.top) / norm.sum);
        memcpy(to, d, (size_t)n * sizeof *d);
    }
}

/* Whether a logit of the token is not what its sanitised one is: NaN, or beyond +-1e20. */
static inline bool back_sanitised(const cmoe_view *logits, int64_t t)
{
    float raw[CMOEI_ROUTE_PIECE];
    cmoei_real x[CMOEI_ROUTE_PIECE];
    for (int64_t at = 0; at < logits->dims[1]; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = route_piece(logits, t, at, raw, x);
        int changed = 0;
        for (int64_t i = 0; i < n; i++)
            changed |= !(x[i] == (cmoei_real)raw[i]);
        if (changed) return true;
    }
    return false;
}

/* ---- slots ----------------------------------------------------------------------------------- */

typedef struct back_slot {
    int64_t id;      /* -1: none */
    cmoei_real x, g; /* logit; gradient of the weight before the scales */
} back_slot;

static inline back_slot back_slot_of(const cmoei_route_back *a, int64_t t, int64_t k)
{
    const cmoe_view *logits = &a->slope.logits, *scale = &a->expert_scale;
    back_slot s = {.id = cmoei_load_index(cmoei_at(&a->ids, t, k), a->ids.dtype)};
    float x;
    if (s.id < 0) return s;
    cmoei_load_f32(&x, cmoei_at(logits, t, s.id), logits->dtype, 1, 1);
    s.x = route_sanitise(x);
    cmoei_load_f32(&x, cmoei_at(&a->dweights, t, k), a->dweights.dtype, 1, 1);
    s.g = (cmoei_real)x * a->o.scale;
    if (!cmoei_given(scale)) return s;
    cmoei_load_f32(&x, cmoei_at(scale, s.id, 0), scale->dtype, 1, 1);
    s.g *= x;
    return s;
}

/* The softmax of CMOE_SCORE_LOGITS, as route_chosen_softmax. */
static inline back_norm back_norm_of_chosen(const cmoei_route_back *a, int64_t t)
{
    back_norm r = {.top = -INFINITY};
    for (int64_t k = 0; k < a->o.topk; k++) {
        const back_slot s = back_slot_of(a, t, k);
        if (s.id >= 0) r.top = route_larger(s.x, r.top);
    }
    for (int64_t k = 0; k < a->o.topk; k++) {
        const back_slot s = back_slot_of(a, t, k);
        if (s.id >= 0) r.sum += real_exp(s.x - r.top);
    }
    return r;
}

static inline back_near back_near_of(const cmoei_route_back *a, int64_t t, int64_t k, back_slot s)
{
    back_near near = {.own = s.x, .reach = 2 * a->o.jitter, .without = -1};
    if (k == 0) return near;
    const int64_t first = back_slot_of(a, t, 0).id;
    if (first != s.id) near.without = first;
    return near;
}

static inline cmoei_real back_score(const cmoei_route_back *a, int64_t t, int64_t k, back_slot s,
                                    back_norm norm)
{
    if (s.id < 0) return 0;
    if (a->o.scoring == CMOE_SCORE_SPARSEMIXER) {
        const back_near near = back_near_of(a, t, k, s);
        norm = back_norm_of(&a->slope.logits, &near, t);
    }
    switch (a->o.scoring) {
    case CMOE_SCORE_SIGMOID:
        return real_sigmoid(s.x);
    case CMOE_SCORE_SQRTSOFTPLUS:
        return route_sqrt_softplus(s.x);
    default:
        return real_exp(s.x - norm.top) / norm.sum;
    }
}

/* dp/dx / p of scores that are functions of their logit alone; of a softmax, what is left when its
 * sum is taken as a constant. */
static inline cmoei_real back_relative_slope(int32_t scoring, cmoei_real x)
{
    switch (scoring) {
    case CMOE_SCORE_SIGMOID:
        return real_sigmoid(-x);
    case CMOE_SCORE_SQRTSOFTPLUS: /* softplus(x) = e^x (1 - e^x / 2 ...) far below 0 */
        return x < -20 ? (cmoei_real)0.5 : real_sigmoid(x) / (2 * real_softplus(x));
    default:
        return 1;
    }
}

/* ---- one token ------------------------------------------------------------------------------- */

/* What the slots share. */
typedef struct back_token {
    back_norm norm;
    cmoei_real divisor; /* S; 0: there are no weights */
    cmoei_real common;  /* R */
    cmoei_real rest;    /* sum_k q_k (g_k - R), of softmaxes */
} back_token;

static inline back_token back_token_of(const cmoei_route_back *a, int64_t t)
{
    back_token r = {.divisor = 1};
    cmoei_real sum = 0, dot = 0;
    if (a->o.scoring == CMOE_SCORE_SOFTMAX) r.norm = back_norm_of(&a->slope.logits, &back_all, t);
    if (a->o.scoring == CMOE_SCORE_LOGITS) r.norm = back_norm_of_chosen(a, t);
    for (int64_t k = 0; k < a->o.topk; k++) {
        const back_slot s = back_slot_of(a, t, k);
        sum += back_score(a, t, k, s, r.norm);
    }
    const bool divided = a->o.renormalize == CMOE_RENORM_SUM && a->o.scoring != CMOE_SCORE_LOGITS;
    const bool floored = divided && a->o.eps_rule == CMOE_EPS_MAX && !(sum > a->o.eps);
    if (divided) r.divisor = floored ? a->o.eps : sum;
    if (divided && a->o.eps_rule == CMOE_EPS_ADD) r.divisor += a->o.eps;
    if (!(r.divisor > 0)) return (back_token){0};
    for (int64_t k = 0; k < a->o.topk; k++) {
        const back_slot s = back_slot_of(a, t, k);
        if (s.id >= 0) dot = real_fma(back_score(a, t, k, s, r.norm) / r.divisor, s.g, dot);
    }
    if (!divided || floored) {
        r.rest = dot;
    } else {
        r.common = dot;
        if (a->o.eps_rule == CMOE_EPS_ADD) r.rest = dot * (a->o.eps / r.divisor);
    }
    return r;
}

static inline void back_token_run(const cmoei_route_back *a, int64_t t)
{
    char *row = back_row(&a->slope, t);
    memset(row, 0, (size_t)a->slope.logits.dims[1] * sizeof(cmoei_real));
    if (back_sanitised(&a->slope.logits, t)) return;
    const back_token r = back_token_of(a, t);
    if (!(r.divisor > 0)) return;
    const int32_t scoring = a->o.scoring;
    if (scoring == CMOE_SCORE_SOFTMAX && r.rest != 0)
        back_spread(&a->slope, &back_all, t, r.norm, r.rest);
    const cmoei_real rest = scoring == CMOE_SCORE_LOGITS ? r.rest : 0;
    for (int64_t k = 0; k < a->o.topk; k++) {
        const back_slot s = back_slot_of(a, t, k);
        if (s.id < 0) continue;
        const cmoei_real q = back_score(a, t, k, s, r.norm) / r.divisor;
        const cmoei_real d = q * (s.g - r.common - rest);
        if (scoring == CMOE_SCORE_SPARSEMIXER) {
            const back_near near = back_near_of(a, t, k, s);
            back_spread(&a->slope, &near, t, back_norm_of(&a->slope.logits, &near, t), d);
        }
        back_add(row, s.id, d * back_relative_slope(scoring, s.x));
    }
}

/* ---- auxiliary losses ------------------------------------------------------------------------ */

/* Top and sum of a token, the sum in double as route_share has it. */
static inline double back_sum_of(const cmoe_view *logits, int64_t t, cmoei_real *top)
{
    cmoei_real x[CMOEI_ROUTE_PIECE];
    double part[ROUTE_LANES] = {0};
    const int64_t experts = logits->dims[1];
    *top = -INFINITY;
    for (int64_t at = 0; at < experts; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = back_piece(logits, &back_all, t, at, x);
        *top = route_larger(route_max(x, n), *top);
    }
    for (int64_t at = 0; at < experts; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = back_piece(logits, &back_all, t, at, x);
        for (int64_t i = 0; i < n; i++)
            x[i] = real_exp(x[i] - *top);
        for (int64_t i = n; i < cmoei_round_up(n, ROUTE_LANES); i++)
            x[i] = 0;
        for (int64_t i = 0; i < n; i += ROUTE_LANES) {
            for (int l = 0; l < ROUTE_LANES; l++)
                part[l] += (double)x[i + l];
        }
    }
    for (int half = ROUTE_LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++)
            part[l] += part[l + half];
    }
    return part[0];
}

/* dlogits[t, e] += e^(x_e - top) * factor * (load[e] - mean) for experts [first, first + count);
 * load NULL: all of them 1 and mean 0. */
static inline void back_pull(const cmoei_route_pull *a, int64_t t, cmoei_real top, double factor,
                             double mean)
{
    cmoei_real x[CMOEI_ROUTE_PIECE], d[CMOEI_ROUTE_PIECE];
    const cmoei_route_slope *slope = &a->slope;
    for (int64_t at = a->first; at < a->first + a->count; at += CMOEI_ROUTE_PIECE) {
        const int64_t n = back_piece(&slope->logits, &back_all, t, at, x);
        char *to = back_row(slope, t) + at * (int64_t)sizeof *d;
        memcpy(d, to, (size_t)n * sizeof *d);
        for (int64_t i = 0; i < n; i++)
            x[i] = real_exp(x[i] - top);
        if (a->load) {
            const double *load = a->load + (at - a->first);
            for (int64_t i = 0; i < n; i++)
                d[i] += (cmoei_real)((double)x[i] * (factor * (load[i] - mean)));
        } else {
            for (int64_t i = 0; i < n; i++)
                d[i] += (cmoei_real)((double)x[i] * factor);
        }
        memcpy(to, d, (size_t)n * sizeof *d);
    }
}

static inline void back_pull_run(const cmoei_route_pull *a, int64_t t, double mean)
{
    cmoei_real top;
    if (back_sanitised(&a->slope.logits, t)) return;
    const double sum = back_sum_of(&a->slope.logits, t, &top);
    back_pull(a, t, top, a->scale / sum, mean);
}

static inline double back_log(double x)
{
#ifdef CMOEI_DOUBLE
    return log(x);
#else
    return (double)cmoei_logf((float)x);
#endif
}

static inline double back_z_run(const cmoei_route_slope *a, int64_t t, double scale)
{
    cmoei_real top;
    const double sum = back_sum_of(&a->logits, t, &top), z = (double)top + back_log(sum);
    if (!a->dlogits || back_sanitised(&a->logits, t)) return z;
    const cmoei_route_pull all = {.slope = *a, .count = a->logits.dims[1]};
    back_pull(&all, t, top, scale * 2 * z / sum, 0);
    return z;
}

#endif
