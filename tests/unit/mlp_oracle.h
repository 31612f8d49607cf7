/* SPDX-License-Identifier: MIT
 *
 * mlp_oracle.h - what a grouped MLP must give, from its formula:
 *
 *     out[t] = sum over k of w[t, k] * (down . (act(gate . x[t]) * (up . x[t])))  (+ shared[t])
 *
 * In double, with a bound beside every value that says how far float32 arithmetic may be away; a
 * rounding to bf16 moves both ends of that interval, so values that round alike leave no error, and
 * a rounding that is missing shows.  For int8 there is no bound: the same float32 operations are
 * done here in their documented order, products in int64, and results must be equal.
 */
#ifndef CMOE_TEST_MLP_ORACLE_H
#define CMOE_TEST_MLP_ORACLE_H

#include <float.h>

#include "core/vmath.h"
#include "mlp.h"

/* The exact result lies at v, the library's within e of it. */
typedef struct near {
    double v, e;
} near;

/* ---- float formats --------------------------------------------------------------------------- */

/* Rounding is monotone: the ends of the interval say where everything inside goes. */
static inline near near_round(near a, int32_t dtype)
{
    const double r = mlp_stored(a.v, dtype), low = mlp_stored(a.v - a.e, dtype),
                 high = mlp_stored(a.v + a.e, dtype);
    return (near){r, fmax(high - r, r - low)};
}

/* One more float32 operation that gave v. */
static inline near near_op(double v, double e)
{
    return (near){v, e + FLT_EPSILON * fabs(v) + FLT_MIN};
}

/* A chain of n multiply-adds is off by at most n * 2^-23 * sum|p|, with two roundings a term, and
 * by n * 2 * FLT_MIN where a bf16 dot product flushes. */
static inline near near_dot(const double *w, const near *x, int64_t n, double bias)
{
    double sum = 0, e = 0, magnitude = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += w[i] * x[i].v;
        e += fabs(w[i]) * x[i].e;
        magnitude += fabs(w[i]) * (fabs(x[i].v) + x[i].e);
    }
    return near_op(sum + bias, e + (double)n * (FLT_EPSILON * magnitude + 2 * FLT_MIN));
}

static inline near near_limit(near a, double low, double high)
{
    return (near){a.v < low ? low : a.v > high ? high : a.v, a.e};
}

/* Slopes: silu, gelu and g * sigmoid(alpha g) never exceed 1.13; relu^2 has 2g.  The evaluation is
 * off by a few roundings of the result, and by those of the exponent times its size. */
static inline near near_act(const mlp *m, near g)
{
    const double alpha = m->o.alpha == 0 ? (double)1.702f : (double)m->o.alpha, x = g.v;
    double y, exponent = fabs(x), slope = 1.13;
    switch (m->o.activation) {
    case CMOE_ACT_SILU:
        y = x / (1 + exp(-x));
        break;
    case CMOE_ACT_GELU_TANH:
        exponent = fabs(x * (1.6 + 0.08 * x * x));
        y = 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979324) * (x + 0.044715 * x * x * x)));
        break;
    case CMOE_ACT_SWIGLU_OSS:
        exponent = fabs(alpha * x);
        y = x / (1 + exp(-alpha * x));
        break;
    default:
        y = x > 0 ? x * x : 0;
        exponent = 0;
        slope = 2 * (fabs(x) + g.e);
    }
    return (near){y, slope * g.e + (8 + 2 * exponent) * FLT_EPSILON * fabs(y) + 1e-35};
}

/* h of one element from the sums of gate and up. */
static inline near near_hidden(const mlp *m, near g, near u)
{
    if (m->o.round_gate_up) {
        g = near_round(g, CMOE_BF16);
        u = near_round(u, CMOE_BF16);
    }
    if (m->o.swiglu_limit > 0) {
        const double limit = m->o.swiglu_limit;
        g = near_limit(g, -INFINITY, limit);
        u = near_limit(u, -limit, limit);
    }
    near a = near_act(m, g);
    if (m->o.round_act) a = near_round(a, CMOE_BF16);
    if (!m->o.ungated) {
        if (m->o.activation == CMOE_ACT_SWIGLU_OSS) u = near_op(u.v + 1, u.e);
        a = near_op(a.v * u.v, fabs(a.v) * u.e + fabs(u.v) * a.e + a.e * u.e);
    }
    return m->o.format == CMOE_BF16 ? near_round(a, CMOE_BF16) : a;
}

static inline double weight_value(const mlp *m, double w)
{
    return m->o.format == CMOE_BF16 ? mlp_bf16((float)w) : (float)w;
}

static inline const double *weight_row(const mlp *m, const double *w, int64_t n, double *row)
{
    for (int64_t i = 0; i < n; i++)
        row[i] = weight_value(m, w[i]);
    return row;
}

/* y [H] of token t in expert e, rounded to row_dtype; `weight` is applied before that. */
static inline void oracle_row(const mlp *m, int64_t t, int64_t e, const double *weight, near *y)
{
    const int64_t H = m->H, I = m->I;
    near *x = calloc((size_t)(H + I + 1), sizeof *x), *h = x + H;
    double *row = calloc((size_t)(H + I + 1), sizeof *row);
    for (int64_t i = 0; i < H; i++)
        x[i].v = weight_value(m, m->x[t * H + i]);
    for (int64_t i = 0; i < I; i++) {
        const int64_t at = e * I + i;
        const near g = near_dot(weight_row(m, m->gate + at * H, H, row), x, H,
                                m->bgate ? (float)m->bgate[at] : 0);
        near u = {1, 0};
        if (m->up)
            u = near_dot(weight_row(m, m->up + at * H, H, row), x, H,
                         m->bup ? (float)m->bup[at] : 0);
        h[i] = near_hidden(m, g, u);
    }
    for (int64_t j = 0; j < H; j++) {
        const int64_t at = e * H + j;
        y[j] = near_dot(weight_row(m, m->down + at * I, I, row), h, I,
                        m->bdown ? (float)m->bdown[at] : 0);
        if (weight) y[j] = near_op(y[j].v * *weight, y[j].e * fabs(*weight));
        if (m->o.row_dtype == CMOE_BF16) y[j] = near_round(y[j], CMOE_BF16);
    }
    free(x);
    free(row);
}

/* out [T, H] */
static inline void oracle_run(const mlp *m, near *out)
{
    const int64_t H = m->H;
    near *y = calloc((size_t)(H + 1), sizeof *y);
    double *magnitude = calloc((size_t)(H + 1), sizeof *magnitude);
    for (int64_t t = 0; t < m->T; t++) {
        memset(out + t * H, 0, (size_t)H * sizeof *out);
        memset(magnitude, 0, (size_t)H * sizeof *magnitude);
        for (int64_t k = 0; k < m->K; k++) {
            const int64_t e = m->ids[t * m->K + k] - m->o.first_expert;
            const double w = (float)m->weights[t * m->K + k];
            const bool at_row = m->o.weight_at == CMOE_WEIGHT_ROW;
            if (e < 0 || e >= m->E) continue;
            oracle_row(m, t, e, at_row ? &w : NULL, y);
            for (int64_t h = 0; h < H; h++) {
                const double v = at_row ? 1 : w;
                out[t * H + h].v += v * y[h].v;
                out[t * H + h].e += fabs(v) * y[h].e;
                magnitude[h] += fabs(v * y[h].v);
            }
        }
        for (int64_t h = 0; h < H; h++) {
            near *o = &out[t * H + h];
            o->e += (double)m->K * (FLT_EPSILON * magnitude[h] + FLT_MIN);
            if (m->shared) *o = near_op(o->v + (float)m->shared[t * H + h], o->e);
            if (m->out_dtype != CMOE_F32 && m->out_dtype != CMOE_F64)
                *o = near_round(*o, m->out_dtype);
        }
    }
    free(y);
    free(magnitude);
}

/* How many of n values lie outside their bounds; the first one through `at`. */
static inline int64_t oracle_bad(const near *want, const double *got, int64_t n, int64_t *at)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        if (fabs(got[i] - want[i].v) <= want[i].e) continue;
        if (bad++ == 0) *at = i;
    }
    return bad;
}

/* ---- int8, operation for operation ----------------------------------------------------------- */

/* Rule B5; returns the scale. */
static inline float exact_quantize(const float *x, int64_t n, int *q)
{
    float a = 1e-4f;
    for (int64_t i = 0; i < n; i++)
        a = fabsf(x[i]) > a ? fabsf(x[i]) : a;
    const float factor = 127.0f / a;
    for (int64_t i = 0; i < n; i++)
        q[i] = (int)nearbyintf(x[i] * factor);
    return 1.0f / factor;
}

/* One output row of weights -> q [n]; its scale, a / 127 or the one given. */
static inline float exact_weight(const mlp *m, const double *w, int64_t n, const double *scale,
                                 int *q)
{
    float a = 1e-4f;
    for (int64_t i = 0; i < n; i++)
        a = fabsf((float)w[i]) > a ? fabsf((float)w[i]) : a;
    const float inverse = 127.0f / a;
    for (int64_t i = 0; i < n; i++)
        q[i] = m->sgate ? (int)w[i] : (int)nearbyintf((float)w[i] * inverse);
    return m->sgate ? (float)*scale : a / 127.0f;
}

static inline float exact_dot(const int *a, const int *b, int64_t n, float a_scale, float b_scale)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (int64_t)a[i] * b[i];
    assert_true(sum >= INT32_MIN && sum <= INT32_MAX);
    return (float)sum * a_scale * b_scale;
}

static inline float exact_act(const mlp *m, float g)
{
    const float alpha = m->o.alpha == 0 ? 1.702f : m->o.alpha;
    switch (m->o.activation) {
    case CMOE_ACT_SILU:
        return cmoei_siluf(g);
    case CMOE_ACT_GELU_TANH:
        return cmoei_gelu_tanhf(g);
    case CMOE_ACT_SWIGLU_OSS:
        return g / (1.0f + cmoei_expf(-(alpha * g)));
    default:
        return g < 0 ? 0 : g * g;
    }
}

static inline float exact_hidden(const mlp *m, float g, float u)
{
    const float limit = m->o.swiglu_limit;
    if (m->o.round_gate_up) {
        g = (float)mlp_bf16(g);
        u = (float)mlp_bf16(u);
    }
    if (limit > 0) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    float h = exact_act(m, g);
    if (m->o.round_act) h = (float)mlp_bf16(h);
    if (m->o.ungated) return h;
    return m->o.activation == CMOE_ACT_SWIGLU_OSS ? h * (u + 1.0f) : h * u;
}

static inline void exact_row(const mlp *m, int64_t t, int64_t e, const float *weight, float *y)
{
    const int64_t H = m->H, I = m->I, most = (H > I ? H : I) + 1;
    int *xq = calloc((size_t)most, sizeof *xq), *wq = calloc((size_t)most, sizeof *wq);
    float *f = calloc((size_t)most, sizeof *f);
    for (int64_t i = 0; i < H; i++)
        f[i] = (float)m->x[t * H + i];
    const float x_scale = exact_quantize(f, H, xq);
    for (int64_t i = 0; i < I; i++) {
        const int64_t at = e * I + i;
        float scale = exact_weight(m, m->gate + at * H, H, m->sgate + (m->sgate ? at : 0), wq);
        float g = exact_dot(xq, wq, H, x_scale, scale), u = 1;
        if (m->bgate) g += (float)m->bgate[at];
        if (m->up) {
            scale = exact_weight(m, m->up + at * H, H, m->sup + (m->sup ? at : 0), wq);
            u = exact_dot(xq, wq, H, x_scale, scale);
            if (m->bup) u += (float)m->bup[at];
        }
        f[i] = exact_hidden(m, g, u);
    }
    const float h_scale = exact_quantize(f, I, xq);
    for (int64_t j = 0; j < H; j++) {
        const int64_t at = e * H + j;
        const float scale =
            exact_weight(m, m->down + at * I, I, m->sdown + (m->sdown ? at : 0), wq);
        y[j] = exact_dot(xq, wq, I, h_scale, scale);
        if (m->bdown) y[j] += (float)m->bdown[at];
        if (weight) y[j] *= *weight;
        if (m->o.row_dtype == CMOE_BF16) y[j] = (float)mlp_bf16(y[j]);
    }
    free(xq);
    free(wq);
    free(f);
}

/* out [T, H], as the output's format holds it. */
static inline void exact_run(const mlp *m, double *out)
{
    const int64_t H = m->H;
    float *y = calloc((size_t)(2 * H + 1), sizeof *y), *sum = y + H;
    for (int64_t t = 0; t < m->T; t++) {
        memset(sum, 0, (size_t)H * sizeof *sum);
        for (int64_t k = 0; k < m->K; k++) {
            const int64_t e = m->ids[t * m->K + k] - m->o.first_expert;
            const float w = (float)m->weights[t * m->K + k];
            const bool at_row = m->o.weight_at == CMOE_WEIGHT_ROW;
            if (e < 0 || e >= m->E) continue;
            exact_row(m, t, e, at_row ? &w : NULL, y);
            for (int64_t h = 0; h < H; h++)
                sum[h] = fmaf(at_row ? 1 : w, y[h], sum[h]);
        }
        for (int64_t h = 0; h < H; h++) {
            if (m->shared) sum[h] += (float)m->shared[t * H + h];
            out[t * H + h] = mlp_stored(sum[h], m->out_dtype);
        }
    }
    free(y);
}

/* Fails the test, with the case and the place, when the library's result is not the oracle's. */
static inline void oracle_check(const mlp *m, const char *where, const double *got)
{
    char title[400];
    const int64_t n = m->T * m->H;
    int64_t at = 0, bad;
    near *want = calloc((size_t)(n + 1), sizeof *want);
    if (m->o.format == CMOE_I8) {
        double *exact = calloc((size_t)(n + 1), sizeof *exact);
        exact_run(m, exact);
        for (int64_t i = 0; i < n; i++)
            want[i] = (near){exact[i], 0};
        free(exact);
    } else {
        oracle_run(m, want);
    }
    bad = oracle_bad(want, got, n, &at);
    if (bad)
        fail_msg("%s, %s: %d of %d values are wrong; token %d, column %d: %.9g, want %.9g +- %.3g",
                 where, mlp_title(m, title), (int)bad, (int)n, (int)(at / m->H), (int)(at % m->H),
                 got[at], want[at].v, want[at].e);
    free(want);
}

#endif
