/* SPDX-License-Identifier: MIT
 *
 * route_backward.c - every row of the table of routing gradients against the double oracle, and all
 * rows bit by bit against each other, at any address and for logits of any format.
 *
 * tests/grad holds the oracle against differences of the forward.  Here the float rows are near it:
 * a term q (g - R) has the softmax's error (kernels/route.c: at most 8 for below + ln n + exps, and
 * n / 16), K additions for R and S each, and some ten roundings of its own, all relative to the sum
 * of |g|, as a q is at most 1, or S / eps, or the score where nothing is divided.
 */
#include "planes.h"

#include "route/backward.h"

static const double U = 0x1p-24;

typedef struct shape {
    int64_t E, K;
    int32_t scoring, renormalize, eps_rule;
    float eps;
    kc_lie lie; /* of the logits */
} shape;

static cmoei_route_slope slope_of(kc *c, cmoe_view logits, int64_t T, int64_t E, int64_t bytes,
                                  int64_t gap)
{
    const int64_t step = E * bytes + gap;
    return (cmoei_route_slope){logits, (char *)kc_out(c, T * step + gap) + gap, step};
}

static double get(const cmoei_route_slope *s, int64_t t, int64_t e, int64_t bytes)
{
    float x;
    double y;
    const char *p = s->dlogits + t * s->step + e * bytes;
    if (bytes == 8) {
        memcpy(&y, p, sizeof y);
        return y;
    }
    memcpy(&x, p, sizeof x);
    return (double)x;
}

static void put(const cmoei_route_slope *s, int64_t t, int64_t e, int64_t bytes, float x)
{
    const double y = (double)x;
    char *p = s->dlogits + t * s->step + e * bytes;
    if (bytes == 8)
        memcpy(p, &y, sizeof y);
    else
        memcpy(p, &x, sizeof x);
}

static cmoe_view view_of(const cmoei_plane *p, int64_t rows, int64_t cols)
{
    cmoe_view v = cmoe_view_2d(p->data, p->dtype, rows, cols);
    v.strides[0] = p->step / cmoei_float_bytes(p->dtype);
    v.strides[1] = p->col;
    return v;
}

static const cmoei_route_back_kernel *row_of(int64_t v)
{
    return (const void *)cmoei_table_row(&cmoei_route_back_table, v);
}

static const float odd_logits[] = {NAN, INFINITY, -INFINITY, 2e20f, -3e30f};

/* Whether float and double may disagree on who is within sparsemixer's reach of a chosen one. */
static bool limit_too_near(const cmoei_route_back *a, const cmoei_plane *x, const int32_t *ids,
                           int64_t t, int64_t experts)
{
    const double reach = 2 * (double)a->o.jitter;
    for (int64_t k = 0; a->o.scoring == CMOE_SCORE_SPARSEMIXER && k < a->o.topk; k++) {
        for (int64_t e = 0; ids[k] >= 0 && e < experts; e++) {
            const double own = kc_get(x, t, ids[k]), other = kc_get(x, t, e);
            if (fabs((own - other) / fmax(fabs(other), own) / reach - 1) <= 4 * U) return true;
        }
    }
    return false;
}

static void check_token(kc *c, shape s)
{
    kc_begin(c, "route_backward E=%d K=%d scoring=%d renorm=%d eps=%d:%g %s col=%d odd=%d",
             (int)s.E, (int)s.K, s.scoring, s.renormalize, s.eps_rule, (double)s.eps,
             cmoe_dtype_name(s.lie.dtype), (int)s.lie.col, s.lie.odd);
    enum { T = 4 };
    const cmoei_plane plane = kc_plane(c, T, s.E, s.lie, 2);
    const cmoe_view logits = view_of(&plane, T, s.E);
    cmoe_route_options o;
    cmoe_route_options_default(&o, sizeof o);
    o.topk = s.K;
    o.scoring = s.scoring;
    o.renormalize = s.renormalize;
    o.eps_rule = s.eps_rule;
    o.eps = s.eps;
    o.scale = 1.25f;
    float *dweights = kc_f32s(c, T * s.K), *scale = kc_f32s(c, s.E);
    int32_t *ids = kc_i32s(c, T * s.K, -1, (int32_t)s.E - 1);
    cmoei_store_f32(cmoei_plane_at(&plane, T - 1, s.E / 2), s.lie.dtype, 1,
                    &odd_logits[kc_int(c, 0, 2)], 1); /* sanitised */
    cmoei_route_back a = {.o = o,
                          .ids = cmoe_view_2d(ids, CMOE_I32, T, s.K),
                          .dweights = cmoe_view_2d(dweights, CMOE_F32, T, s.K),
                          .expert_scale = cmoe_view_1d(scale, CMOE_F32, s.E)};
    const cmoei_route_slope want = slope_of(c, logits, T, s.E, 8, 0);
    a.slope = want;
    for (int64_t t = 0; t < T; t++)
        cmoei_route_back_token_f64(&a, t);
    const cmoei_route_slope ref = slope_of(c, logits, T, s.E, 4, 1);
    for (int64_t v = cmoei_route_back_table.count - 1; v >= 0; v--) {
        const cmoei_route_back_kernel *row = row_of(v);
        if (row->variant.needs & ~cmoe_cpu_features()) continue;
        const bool last = v == cmoei_route_back_table.count - 1;
        a.slope = last ? ref : slope_of(c, logits, T, s.E, 4, 1);
        for (int64_t t = T - 1; t >= 0; t--)
            row->token(&a, t);
        kc_equal(c, row->variant.name, a.slope.dlogits, ref.dlogits, T * ref.step - 1);
    }
    for (int64_t t = 0; t < T; t++) {
        if (t < T - 1 && limit_too_near(&a, &plane, ids + t * s.K, t, s.E)) continue;
        double size = 0;
        for (int64_t k = 0; k < s.K; k++) {
            const int32_t id = ids[t * s.K + k];
            if (id >= 0) size += fabs((double)dweights[t * s.K + k] * (double)scale[id]) * 1.25;
        }
        const double roundings = 2 * ((double)s.E / 16 + 4 * (double)s.K + 40);
        for (int64_t e = 0; e < s.E; e++)
            kc_near(c, "dlogits", t * s.E + e, get(&ref, t, e, 4),
                    t == T - 1 ? 0 : get(&want, t, e, 8), roundings * U * size);
    }
    kc_end(c);
}

/* An auxiliary term: e^(x - top) * factor, with exp's and the sum's error and ten roundings more. */
static void check_losses(kc *c, int64_t E, kc_lie lie)
{
    kc_begin(c, "losses E=%d %s col=%d odd=%d", (int)E, cmoe_dtype_name(lie.dtype), (int)lie.col,
             lie.odd);
    enum { T = 3 };
    const cmoei_plane plane = kc_plane(c, T, E, lie, 2);
    const cmoe_view logits = view_of(&plane, T, E);
    cmoei_store_f32(cmoei_plane_at(&plane, T - 1, E / 2), lie.dtype, 1,
                    &odd_logits[kc_int(c, 0, 2)], 1); /* sanitised */
    float *start = kc_f32s(c, T * E);
    double *load = kc_out(c, E * 8), z[2], zs[8];
    for (int64_t e = 0; e < E; e++)
        load[e] = (double)kc_int(c, 0, 9);
    const double mean[T] = {3.25, 0, 8}, scale = .5;
    const cmoei_route_slope want = slope_of(c, logits, T, E, 8, 0);
    const cmoei_route_slope ref = slope_of(c, logits, T, E, 4, 1);
    for (int64_t v = cmoei_route_back_table.count; v >= 0; v--) {
        const bool oracle = v == cmoei_route_back_table.count;
        if (!oracle && (row_of(v)->variant.needs & ~cmoe_cpu_features())) continue;
        const cmoei_route_slope to = oracle ? want
                                     : v == cmoei_route_back_table.count - 1
                                         ? ref
                                         : slope_of(c, logits, T, E, 4, 1);
        const cmoei_route_pull pull = {to, 0, E, load, scale};
        for (int64_t t = 0; t < T; t++) {
            for (int64_t e = 0; e < E; e++)
                put(&to, t, e, oracle ? 8 : 4, start[t * E + e]);
            if (oracle)
                cmoei_route_back_pull_f64(&pull, t, mean[t]);
            else
                row_of(v)->pull(&pull, t, mean[t]);
            const double zt =
                oracle ? cmoei_route_back_z_f64(&to, t, scale) : row_of(v)->z(&to, t, scale);
            if (t == 0) z[!oracle] = zt;
            if (t == 0 && !oracle) zs[v] = zt;
        }
        if (!oracle) {
            kc_equal(c, row_of(v)->variant.name, to.dlogits, ref.dlogits, T * ref.step - 1);
            kc_near(c, "z", 0, z[1], z[0], 8 * U * (fabs(z[0]) + 4));
            kc_equal(c, "z of rows", &zs[v], &zs[cmoei_route_back_table.count - 1], sizeof zs[v]);
        }
    }
    for (int64_t i = 0; i < T * E; i++) {
        const double w = i / E == T - 1 ? (double)start[i] : get(&want, i / E, i % E, 8);
        const double size = fabs((double)start[i]) + scale * (9 + 2 * (fabs(z[0]) + 16));
        kc_near(c, "dlogits", i, get(&ref, i / E, i % E, 4), w, 40 * U * size);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t sizes[][2] = {{1, 1}, {8, 2}, {17, 5}, {64, 8}, {257, 3}, {600, 12}};
    const struct {
        int32_t renormalize, rule;
        float eps;
    } sums[] = {{CMOE_RENORM_NONE, CMOE_EPS_MAX, 1e-20f},
                {CMOE_RENORM_SUM, CMOE_EPS_NONE, 0},
                {CMOE_RENORM_SUM, CMOE_EPS_ADD, .25f},
                {CMOE_RENORM_SUM, CMOE_EPS_MAX, 1e-20f},
                {CMOE_RENORM_SUM, CMOE_EPS_MAX, 40}};
    for (int64_t i = 0; i < CMOEI_COUNT(sizes); i++) {
        for (int32_t scoring = 0; scoring <= CMOE_SCORE_SPARSEMIXER; scoring++) {
            for (int64_t r = 0; r < CMOEI_COUNT(sums); r++) {
                const shape s = {sizes[i][0],
                                 scoring == CMOE_SCORE_SPARSEMIXER ? 2 : sizes[i][1],
                                 scoring,
                                 sums[r].renormalize,
                                 sums[r].rule,
                                 sums[r].eps,
                                 kc_lies[(i + r + scoring) % CMOEI_COUNT(kc_lies)]};
                check_token(&c, s);
            }
        }
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++)
            check_losses(&c, sizes[i][0], kc_lies[l]);
    }
    return kc_report(&c, "kernels_route_backward");
}
