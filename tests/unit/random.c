/* SPDX-License-Identifier: MIT
 *
 * random.c - Philox against the known answers of its authors (Random123, kat_vectors), and the
 * distributions drawn from it against what their formulas promise.
 */
#include <math.h>

#include "unit.h"

#define SECOND 0x9e3779b97f4a7c15u /* any other seed */

static void known_answers(void **state)
{
    (void)state;
    /* philox4x32 10: counter words 0..3, key words 0..1, first two words of the answer. */
    const uint32_t kat[3][8] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb},
    };
    for (int i = 0; i < 3; i++) {
        const uint32_t *k = kat[i];
        const uint64_t got = cmoe_random_u64(
            k[4] | (uint64_t)k[5] << 32, k[0] | (uint64_t)k[1] << 32, k[2] | (uint64_t)k[3] << 32);
        assert_true(got == (k[6] | (uint64_t)k[7] << 32));
    }
}

static void uniform(void **state)
{
    (void)state;
    enum { N = 1 << 20, BINS = 256 };
    int32_t bins[BINS] = {0};
    for (uint64_t i = 0; i < N; i++) {
        const float u = cmoe_random_uniform(1, i, 0);
        assert_true(u >= 0 && u < 1);
        assert_true(u * 0x1p24f == truncf(u * 0x1p24f));
        assert_true(u == (float)(cmoe_random_u64(1, i, 0) >> 40) * 0x1p-24f);
        bins[(int)(u * BINS)]++;
    }
    double chi = 0;
    for (int b = 0; b < BINS; b++)
        chi += (bins[b] - N / BINS) * (double)(bins[b] - N / BINS) / (N / BINS);
    /* 255 degrees of freedom: mean 255, deviation sqrt(510) = 22.6; five of them. */
    assert_true(fabs(chi - 255) < 113);
}

/* Each moment within five deviations of its estimate over N draws. */
static void normal_moments(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    for (uint64_t draw = 0; draw < 2; draw++) {
        double m[5] = {0};
        for (uint64_t i = 0; i < N; i++) {
            const double x = cmoe_random_normal(SECOND, i, draw);
            for (int p = 1; p < 5; p++)
                m[p] += pow(x, p) / N;
        }
        /* Variances of x, x^2, x^3, x^4: 1, 2, 15, 96. */
        assert_true(fabs(m[1] - 0) < 5 * sqrt(1.0 / N));
        assert_true(fabs(m[2] - 1) < 5 * sqrt(2.0 / N));
        assert_true(fabs(m[3] - 0) < 5 * sqrt(15.0 / N));
        assert_true(fabs(m[4] - 3) < 5 * sqrt(96.0 / N));
    }
}

/* x = the normal quantile of u: |CDF(x) - u| is at most the density times the error of x.  AS 241's
 * short form is good to 1 in 10^7; some roundings of the float evaluation come on top. */
static void check_quantile(uint64_t seed, uint64_t position)
{
    const double x = cmoe_random_normal(seed, position, 0);
    const double u = ((double)(cmoe_random_u64(seed, position, 0) >> 41) + 0.5) * 0x1p-23;
    const double density = exp(-x * x / 2) / sqrt(2 * 3.14159265358979323846);
    const double cdf = erfc(-x / sqrt(2)) / 2, off = cdf - u;
    if (!(fabs(off) <= density * fmax(fabs(x), 1) * 1e-6))
        fail_msg("position %llu: quantile of %.9g is %.9g, whose probability is %.9g",
                 (unsigned long long)position, u, x, cdf);
}

static void normal_quantile(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1 << 17; i++)
        check_quantile(5, i);
    /* The last cell below 1, where a middle that rounds up would be 1 and its quantile infinite. */
    const uint64_t ends[] = {7113731, 10390068, 44150062};
    for (int i = 0; i < 3; i++) {
        assert_true(cmoe_random_u64(0, ends[i], 0) >> 40 == 0xffffff);
        check_quantile(0, ends[i]);
    }
}

/* The same on every platform: what the first draws are is part of the contract. */
static void fixed(void **state)
{
    (void)state;
    assert_true(cmoe_random_u64(1, 2, 3) == cmoe_random_u64(1, 2, 3));
    assert_true(cmoe_random_u64(1, 2, 3) != cmoe_random_u64(2, 2, 3));
    assert_true(cmoe_random_u64(1, 2, 3) != cmoe_random_u64(1, 3, 3));
    assert_true(cmoe_random_u64(1, 2, 3) != cmoe_random_u64(1, 2, 4));
    const float want[4] = {0x1.2d769ap+0f, -0x1.695808p-2f, -0x1.e082d8p-2f, -0x1.b72576p-3f};
    for (uint64_t i = 0; i < 4; i++) {
        if (cmoe_random_normal(0, i, 0) != want[i])
            fail_msg("normal(0, %d, 0) = %a, want %a", (int)i, cmoe_random_normal(0, i, 0),
                     want[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),  cmocka_unit_test(uniform),
        cmocka_unit_test(normal_moments), cmocka_unit_test(normal_quantile),
        cmocka_unit_test(fixed),
    };
    return UNIT_RUN("unit_random", tests);
}
