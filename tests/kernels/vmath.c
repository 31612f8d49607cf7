/* SPDX-License-Identifier: MIT
 *
 * vmath.c - exp, log, sine and friends: errors against libm in double, special values, and equal bits of
 * the scalar, AVX2 and AVX-512 builds.
 *
 *     kernels_vmath [STEP]     every STEP-th of the 2^32 floats (997: a prime, so that all
 * exponents and many fractions are met); `make test-large` takes them all
 *
 * Bounds.  One rounding is at most u = 2^-24 of a normal result, exp is promised to 1.1 ulp and log
 * to 1 ulp, which is at most 2.2 u and 2 u; the rest follows from counting roundings.  Where e^-x
 * overflows the true result is far below 2^-120 and we return 0, hence the absolute terms.
 */
#include "kc.h"

#include "core/vmath.h"
#include "loops/vmath_loops.h"

#define U 0x1p-24

enum { BLOCK = 4096, MOST_TASKS = 64, BUILDS = 3 };

static double ulp(double want)
{
    int e;
    frexp(want, &e);
    return ldexp(1, want == 0 || e < -125 ? -149 : e - 24);
}

static double log_bound(double want)
{
    return want == 0 ? 0 : ulp(want);
}

/* The true value; *bound is how far ours may be from it. */
static double truth(int f, double x, double *bound)
{
    const double e = exp(-x), l = log1p(exp(-fabs(x)));
    double want = 0, y;
    switch (f) {
    case VMATH_EXP:
        want = exp(x);
        *bound = 1.1 * ulp(want);
        break;
    case VMATH_LOG:
        want = log(x);
        *bound = log_bound(want);
        break;
    case VMATH_LOG1P: /* log, quotient and product; the roundings of 1 + x cancel */
        want = log1p(x);
        *bound = 5 * U * fabs(want) + 0x1p-149;
        break;
    case VMATH_SIGMOID: /* exp, sum, quotient */
        want = 1 / (1 + e);
        *bound = 4.2 * U * want + 0x1p-127;
        break;
    case VMATH_SILU:
        want = x / (1 + e);
        *bound = 4.2 * U * fabs(want) + 0x1p-121;
        break;
    case VMATH_SOFTPLUS: /* exp and log1p on the small part, then a sum */
        want = fmax(x, 0) + l;
        *bound = 7.2 * U * l + U * want + 0x1p-148;
        break;
    case VMATH_GELU: /* four roundings of y, which e^-y takes |y| / (1 + e^y) times as large */
        y = 1.5957691216057308 * (x + 0.044715 * x * x * x);
        want = x / (1 + exp(-y));
        *bound = (4.2 + (y < 700 ? 4 * fabs(y) / (1 + exp(y)) : 0)) * U * fabs(want) + 0x1p-123;
        break;
    case VMATH_SIN: /* one rounding, of a double that is right to 2^-36 */
        want = fabs(x) > 0x1p48 ? NAN : sin(x);
        *bound = .51 * ulp(want);
        break;
    case VMATH_COS:
        want = fabs(x) > 0x1p48 ? NAN : cos(x);
        *bound = .51 * ulp(want);
        break;
    default:
        *bound = 0;
    }
    return want;
}

static const char *const names[VMATH_COUNT] = {"exp",      "log",       "log1p", "sigmoid", "silu",
                                               "softplus", "gelu_tanh", "sin",   "cos"};

typedef struct found {
    int64_t bad[VMATH_COUNT], differ[VMATH_COUNT][BUILDS];
    uint32_t bad_at[VMATH_COUNT], differ_at[VMATH_COUNT][BUILDS];
    double worst[VMATH_COUNT]; /* error in ulp, of results above 2^-100 */
} found;

typedef struct job {
    uint64_t step;
    int64_t blocks;
    const vmath_loop *builds[BUILDS]; /* NULL: not on this CPU */
    found tasks[MOST_TASKS];
} job;

static bool within(int f, float x, float got, double *error)
{
    double bound;
    *error = 0;
    if (isnan(x)) return isnan(got);
    if (isinf(x)) return true; /* special() looks at these */
    const double want = truth(f, x, &bound);
    if (isnan(want)) return isnan(got);
    if (got == (float)want) return true;
    if (fabs(want) >= 0x1p-100 && !isinf(want)) *error = fabs(got - want) / ulp(want);
    return fabs(got - want) <= bound;
}

static void check_block(const job *j, found *f, int64_t block)
{
    float x[BLOCK], y[BUILDS][BLOCK];
    int n = 0;
    for (; n < BLOCK; n++) {
        const uint64_t i = ((uint64_t)block * BLOCK + (uint64_t)n) * j->step;
        if (i > UINT32_MAX) break;
        x[n] = cmoei_float((uint32_t)i);
    }
    for (int k = 0; k < VMATH_COUNT; k++) {
        for (int b = 0; b < BUILDS; b++) {
            if (j->builds[b]) j->builds[b][k](x, y[b], n);
        }
        for (int i = 0; i < n; i++) {
            double error;
            if (k == VMATH_LOG1P && x[i] < 0) continue;
            if (!within(k, x[i], y[0][i], &error) && f->bad[k]++ == 0)
                f->bad_at[k] = cmoei_bits(x[i]);
            f->worst[k] = fmax(f->worst[k], error);
        }
        for (int b = 1; b < BUILDS; b++) {
            if (!j->builds[b] || !memcmp(y[0], y[b], (size_t)n * sizeof x[0])) continue;
            for (int i = 0; i < n; i++) {
                if (k == VMATH_LOG1P && x[i] < 0) continue; /* which NaN is nobody's business */
                if (cmoei_bits(y[0][i]) != cmoei_bits(y[b][i]) && f->differ[k][b]++ == 0)
                    f->differ_at[k][b] = cmoei_bits(x[i]);
            }
        }
    }
}

static void check_blocks(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    job *j = arg;
    (void)count;
    for (int64_t block; (block = cmoei_next(team, 1)) < j->blocks;)
        check_block(j, &j->tasks[index], block);
}

static void all_floats(kc *c, cmoe_ctx *ctx, uint64_t step)
{
    static job j;
    static const char *const builds[BUILDS] = {"scalar", "avx2", "avx512"};
    j.step = step;
    j.blocks = (int64_t)((0x100000000u / step + 1) / BLOCK + 1);
    j.builds[0] = vmath_loops_scalar;
#if CMOE_HAVE_AVX2
    if (cmoe_cpu_features() & CMOE_CPU_AVX2) j.builds[1] = vmath_loops_avx2;
#endif
#if CMOE_HAVE_AVX512
    if (cmoe_cpu_features() & CMOE_CPU_AVX512) j.builds[2] = vmath_loops_avx512;
#endif
    cmoei_region(ctx, MOST_TASKS, check_blocks, &j);
    for (int k = 0; k < VMATH_COUNT; k++) {
        double worst = 0;
        kc_begin(c, "vmath/%s against libm in double", names[k]);
        for (int t = 0; t < MOST_TASKS; t++) {
            const found *f = &j.tasks[t];
            worst = fmax(worst, f->worst[k]);
            if (f->bad[k])
                kc_fail(c, "%lld values beyond the bound, one at x = %a", (long long)f->bad[k],
                        cmoei_float(f->bad_at[k]));
        }
        printf("%-9s largest error %.3f ulp\n", names[k], worst);
        kc_end(c);
        for (int b = 1; b < BUILDS; b++) {
            if (!j.builds[b]) continue;
            kc_begin(c, "vmath/%s %s against scalar", names[k], builds[b]);
            for (int t = 0; t < MOST_TASKS; t++) {
                if (j.tasks[t].differ[k][b])
                    kc_fail(c, "%lld values differ, one at x = %a",
                            (long long)j.tasks[t].differ[k][b],
                            cmoei_float(j.tasks[t].differ_at[k][b]));
            }
            kc_end(c);
        }
    }
}

static void special(kc *c)
{
    /* f(-inf), f(-0), f(0), f(inf); signs of zeros count. */
    const float want[VMATH_COUNT][4] = {
        [VMATH_EXP] = {0, 1, 1, INFINITY},
        [VMATH_LOG] = {NAN, -INFINITY, -INFINITY, INFINITY},
        [VMATH_LOG1P] = {NAN, -0.0f, 0, INFINITY},
        [VMATH_SIGMOID] = {0, 0.5f, 0.5f, 1},
        [VMATH_SILU] = {NAN, -0.0f, 0, INFINITY}, /* -inf * 0 */
        [VMATH_SOFTPLUS] = {0, 0.693147182f, 0.693147182f, INFINITY},
        [VMATH_GELU] = {NAN, -0.0f, 0, INFINITY},
        [VMATH_SIN] = {NAN, -0.0f, 0, NAN},
        [VMATH_COS] = {NAN, 1, 1, NAN},
    };
    const float x[4] = {-INFINITY, -0.0f, 0.0f, INFINITY};
    for (int k = 0; k < VMATH_COUNT; k++) {
        float y[4];
        kc_begin(c, "vmath/%s special values", names[k]);
        vmath_loops_scalar[k](x, y, 4);
        for (int i = 0; i < 4; i++) {
            const bool nan = isnan(want[k][i]);
            if (nan ? !isnan(y[i]) : cmoei_bits(y[i]) != cmoei_bits(want[k][i]))
                kc_fail(c, "f(%g) = %.9g, want %.9g", x[i], y[i], want[k][i]);
        }
        kc_end(c);
    }
}

int main(int argc, char **argv)
{
    kc c = {0};
    cmoe_ctx_options o;
    cmoe_ctx *ctx;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = CMOEI_MIN(cmoei_cpu_count(), MOST_TASKS);
    if (cmoe_ctx_create(&ctx, &o, NULL) != CMOE_OK) return 2;
    special(&c);
    all_floats(&c, ctx, argc > 1 ? strtoull(argv[1], NULL, 10) : 997);
    cmoe_ctx_free(ctx);
    return kc_report(&c, "kernels_vmath");
}
