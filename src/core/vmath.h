/* SPDX-License-Identifier: MIT
 *
 * vmath.h - exp, log, log1p, sine, cosine, sigmoid and friends, one element at a time.
 *
 * Ours rather than libm's, because libm differs from machine to machine.  Each is a fixed sequence
 * of correctly rounded operations (add, multiply, fma, divide, square root, integer arithmetic)
 * without branches or tables, so a compiler that turns a loop of them into vectors cannot change a
 * bit: scalar, AVX2 and AVX-512 builds of one source agree everywhere, tests/kernels/vmath.c checks
 * all of it. Errors are measured there against libm in double.
 */
#ifndef CMOE_VMATH_H
#define CMOE_VMATH_H

#include <math.h>

#include "core.h"

/* Nearest integer, half to even, for |x| < 2^22: adding 1.5 * 2^23 pushes the fraction out. */
#define CMOEI_ROUNDER 12582912.0f

/* 2^n for n in [-126, 127] as bits of the rounder sum carry it. */
static inline float cmoei_pow2i(int32_t n)
{
    return cmoei_float((uint32_t)(n + 127) << 23);
}

/* e^x, at most 1.1 ulp; subnormal results included; overflow gives infinity, NaN stays. */
static inline float cmoei_expf(float x)
{
    /* Beyond these the result is 0 or infinity anyway; the comparisons keep NaN. */
    const float c = x > 89.0f ? 89.0f : x;
    const float d = c < -104.0f ? -104.0f : c;
    const float biased = fmaf(d, 1.44269504f, CMOEI_ROUNDER);
    const float n = biased - CMOEI_ROUNDER;
    /* ln 2 in two parts, the first with trailing zeros so that n * hi is exact. */
    const float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, d));
    float p = 1.98756912e-4f;
    p = fmaf(p, r, 1.39819994e-3f);
    p = fmaf(p, r, 8.33345205e-3f);
    p = fmaf(p, r, 4.16657962e-2f);
    p = fmaf(p, r, 1.66666657e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p * r, r, r) + 1.0f;
    /* 2^n in two halves: n reaches from -150 to 128. */
    const int32_t i = (int32_t)(cmoei_bits(biased) - 0x4b400000u);
    const int32_t half = i >> 1;
    return p * cmoei_pow2i(half) * cmoei_pow2i(i - half);
}

/* ln x, at most 1 ulp; 0 gives -infinity, infinity itself, negative and NaN give NaN. */
static inline float cmoei_logf(float x)
{
    /* Subnormals are scaled up first. */
    const float small = x < 0x1p-126f ? 0x1p25f : 1.0f;
    const float bias = x < 0x1p-126f ? -25.0f : 0.0f;
    const uint32_t u = cmoei_bits(x * small);
    /* x = 2^e * m with m in [sqrt(1/2), sqrt(2)). */
    const uint32_t shifted = u - 0x3f3504f3u;
    const float e = (float)((int32_t)shifted >> 23) + bias;
    const float m = cmoei_float((shifted & 0x7fffffu) + 0x3f3504f3u);
    const float f = m - 1.0f, f2 = f * f;
    float p = 7.0376836292e-2f;
    p = fmaf(p, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    const float tail = fmaf(e, -2.12194440e-4f, p * f * f2);
    const float y = fmaf(e, 0.693359375f, f + fmaf(-0.5f, f2, tail));
    const float finite = x > 0.0f ? y : (x == 0.0f ? -INFINITY : NAN);
    return x <= 0x1.fffffep127f ? finite : x; /* infinity and NaN */
}

/* ln(1 + x) for x >= 0.  ln(u) * x / (u - 1) with u = 1 + x rounded cancels that rounding. */
static inline float cmoei_log1pf(float x)
{
    const float u = 1.0f + x, d = u - 1.0f;
    const float y = cmoei_logf(u) * (x / (d == 0.0f ? 1.0f : d));
    return d == 0.0f || x > 0x1.fffffep127f ? x : y; /* infinity / infinity would be NaN */
}

static inline float cmoei_sigmoidf(float x)
{
    return 1.0f / (1.0f + cmoei_expf(-x));
}

static inline float cmoei_siluf(float x)
{
    return x / (1.0f + cmoei_expf(-x));
}

/* ln(1 + e^x) = max(x, 0) + log1p(e^-|x|): the plain form gives 0 below -16.6. */
static inline float cmoei_softplusf(float x)
{
    const float magnitude = x < 0.0f ? -x : x;
    const float positive = x > 0.0f ? x : 0.0f; /* a NaN comes through the other term */
    return positive + cmoei_log1pf(cmoei_expf(-magnitude));
}

/* The tanh form of GELU: x/2 * (1 + tanh(y)) = x * sigmoid(2y), y = sqrt(2/pi) (x + 0.044715 x^3).
 */
static inline float cmoei_gelu_tanhf(float x)
{
    const float y = x * fmaf(0.0713548163f, x * x, 1.59576912f); /* 2 sqrt(2/pi) {0.044715, 1} */
    return x / (1.0f + cmoei_expf(-y));
}

static inline uint64_t cmoei_bits64(double d)
{
    union {
        double d;
        uint64_t u;
    } b = {.d = d};
    return b.u;
}
static inline double cmoei_double(uint64_t u)
{
    union {
        uint64_t u;
        double d;
    } b = {.u = u};
    return b.d;
}

/* Sine (quarter 0) or cosine (quarter 1: the sine a quarter turn on) of x, at most 0.51 ulp for
 * |x| <= 2^48; beyond that, and for infinities, NaN.
 *
 * In double: n = x / (pi / 2) to the nearest integer, r = x - n * pi / 2 with pi / 2 in two parts.
 * The first fma is exact: its result is a multiple of 2^-52 (or x itself) and below 1.  The second
 * leaves out n * 1.5e-33, and no float32 comes closer to a multiple of pi / 2 than 2^-30, so r is
 * right to far more digits than float32 has.  The polynomials are Taylor's: on [-pi/4, pi/4] their
 * first term left out is below 2^-36. */
static inline float cmoei_sine_from(float x, uint64_t quarter)
{
    const double rounder = 0x1.8p52; /* as CMOEI_ROUNDER, for doubles */
    const double d = x;
    const double biased = fma(d, 0x1.45f306dc9c883p-1, rounder);
    const double n = biased - rounder;
    const double r = fma(-n, 0x1.1a62633145c07p-54, fma(-n, 0x1.921fb54442d18p+0, d));
    const double r2 = r * r;
    double s = -1.0 / 39916800;
    s = fma(s, r2, 1.0 / 362880);
    s = fma(s, r2, -1.0 / 5040);
    s = fma(s, r2, 1.0 / 120);
    s = fma(s, r2, -1.0 / 6);
    s = r * fma(s, r2, 1.0);
    double c = 1.0 / 479001600;
    c = fma(c, r2, -1.0 / 3628800);
    c = fma(c, r2, 1.0 / 40320);
    c = fma(c, r2, -1.0 / 720);
    c = fma(c, r2, 1.0 / 24);
    c = fma(c, r2, -0.5);
    c = fma(c, r2, 1.0);
    /* The low bits of the rounder sum are those of n: odd quarters take the cosine, and the two of
     * the lower half turn change sign. */
    const uint64_t k = cmoei_bits64(biased) + quarter;
    const uint64_t odd = 0 - (k & 1);
    const uint64_t y = (cmoei_bits64(c) & odd) | (cmoei_bits64(s) & ~odd);
    const float sine = (float)cmoei_double(y ^ (k >> 1 & 1) << 63);
    return fabsf(x) <= 0x1p48f ? sine : NAN;
}

static inline float cmoei_sinf(float x)
{
    return cmoei_sine_from(x, 0);
}

static inline float cmoei_cosf(float x)
{
    return cmoei_sine_from(x, 1);
}

#endif
