/* SPDX-License-Identifier: MIT
 *
 * quantize.c - rule B5: every kernel against the rule in double, and byte for byte against each
 * other.
 */
#include "kc.h"

#include "quant/quantize.h"

uint32_t cmoei_largest_f64(const float *x, int64_t n);
void cmoei_to_int8_f64(const float *x, int64_t n, double factor, int8_t *q);

static void fill(kc *c, float *x, int64_t n, int kind)
{
    for (int64_t i = 0; i < n; i++) {
        if (kind == 0) x[i] = kc_normal(c);
        if (kind == 1) x[i] = kc_normal(c) * 1e-5f; /* below the floor */
        if (kind == 2) x[i] = kc_normal(c) * 1e30f;
        if (kind == 3) x[i] = (float)kc_int(c, -254, 254) * .5f; /* ties, when 127 is there */
        /* Products that are a tie only once they are rounded: a fused add would see past it. */
        if (kind == 6) x[i] = ((float)(i % 127) + .5f) / 127;
        if (kind == 4) x[i] = i % 3 ? -0.0f : 0.0f;
        if (kind == 5) x[i] = 0x1p-140f * (float)kc_int(c, -9, 9);
    }
    if (kind == 3) x[n / 2] = -127;
    if (kind == 6) x[n / 2] = 1;
    if (kind == 7) x[n / 2] = NAN;
    if (kind == 8) x[n - 1] = -INFINITY;
}

/* 127 / a and the product are each off by half a unit: the same integer, but where the exact
 * product lies that close to a half. */
static void check_rule(kc *c, const float *x, int64_t n, const int8_t *q, float scale)
{
    double a = 1e-4f;
    for (int64_t i = 0; i < n; i++)
        a = fmax(a, fabs((double)x[i]));
    kc_near(c, "scale", 0, scale, a / 127, 2.1 * 0x1p-24 * a / 127);
    for (int64_t i = 0; i < n; i++) {
        const double exact = x[i] * (127 / a);
        kc_near(c, "q", i, q[i], exact, .5 + 2.1 * 0x1p-24 * fabs(exact));
    }
}

static void check(kc *c, int64_t n, int kind)
{
    kc_begin(c, "quantize n=%d kind=%d", (int)n, kind);
    float *x = kc_f32s(c, n);
    fill(c, x, n, kind);
    int8_t *first = kc_out(c, n), *oracle = kc_out(c, n);
    float first_scale = 0;
    const cmoei_table *t = &cmoei_quantize_table;
    for (int64_t v = t->count - 1; v >= 0; v--) {
        const cmoei_quantize_kernel *kn = (const void *)cmoei_table_row(t, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        int8_t *q = v == t->count - 1 ? first : kc_out(c, n);
        const float scale = cmoei_quantize_row(kn, x, n, q);
        if (v == t->count - 1) first_scale = scale;
        kc_equal(c, kn->variant.name, q, first, n);
        kc_equal(c, "scale", &scale, &first_scale, sizeof scale);
        if (kind < 7) {
            check_rule(c, x, n, q, scale);
            continue;
        }
        if (kind == 7 ? scale == scale : scale != INFINITY)
            kc_fail(c, "scale is %g", (double)scale);
        for (int64_t i = 0; i < n; i++) {
            if (q[i] != 0) kc_fail(c, "q[%lld] = %d, want 0", (long long)i, q[i]);
        }
    }
    if (kind == 3) { /* here 127 / a = 1 exactly, so the double rule has no slack */
        float scale;
        cmoei_to_int8_f64(x, n, cmoei_quantize_factor(cmoei_largest_f64(x, n), &scale), oracle);
        kc_equal(c, "ties", first, oracle, n);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t sizes[] = {1, 2, 7, 16, 31, 64, 65, 128, 511, 2048};
    for (int64_t s = 0; s < CMOEI_COUNT(sizes); s++) {
        for (int kind = 0; kind < 9; kind++)
            check(&c, sizes[s], kind);
    }
    return kc_report(&c, "kernels_quantize");
}
