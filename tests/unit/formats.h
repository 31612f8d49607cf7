/* SPDX-License-Identifier: MIT
 *
 * formats.h - the small number formats as lists of values, and rounding by search.
 *
 * The search is slow and obviously right: it knows a format only as the list of its values, each
 * computed here from its bits.  It takes the nearest one, and of two equally near the one with the
 * even code.  Behind the largest value stands the next one that the exponent would give (2^16 for
 * f16): who is nearer to that overflows.  Values are long double, which holds every int64 and every
 * double, so nothing is rounded on the way.
 */
#ifndef CMOE_FORMATS_H
#define CMOE_FORMATS_H

#include <math.h>

#include "core/core.h"

enum { MOST_CODES = 1 << 15 };

typedef struct small {
    int32_t dtype;
    int codes;       /* values >= 0 in ascending order have codes 0 .. codes - 1 */
    int exponent;    /* bits */
    int fraction;    /* bits */
    int bias;        /* value = 1.fraction * 2^(field - bias) */
    uint32_t beyond; /* code of what rounds beyond the largest */
    uint32_t sign;   /* bit of the sign; 0: there are no negative values */
    uint32_t (*encode)(float f);
    float (*decode)(uint32_t code);
} small;

static uint32_t enc_f16(float f)
{
    return cmoei_f32_to_f16(f);
}
static float dec_f16(uint32_t c)
{
    return cmoei_f16_to_f32((uint16_t)c);
}
static uint32_t enc_bf16(float f)
{
    return cmoei_f32_to_bf16(f);
}
static float dec_bf16(uint32_t c)
{
    return cmoei_bf16_to_f32((uint16_t)c);
}
static uint32_t enc_f8(float f)
{
    return cmoei_f32_to_f8e4m3(f);
}
static float dec_f8(uint32_t c)
{
    return cmoei_f8e4m3_to_f32((uint8_t)c);
}
static uint32_t enc_e8(float f)
{
    return cmoei_f32_to_f8e8m0(f);
}
static float dec_e8(uint32_t c)
{
    return cmoei_f8e8m0_to_f32((uint8_t)c);
}
static uint32_t enc_e2(float f)
{
    return cmoei_f32_to_e2m1(f);
}
static float dec_e2(uint32_t c)
{
    return cmoei_e2m1_to_f32((uint8_t)c);
}

static const small formats[] = {
    {CMOE_F16, 0x7c00, 5, 10, 15, 0x7c00, 0x8000, enc_f16, dec_f16},
    {CMOE_BF16, 0x7f80, 8, 7, 127, 0x7f80, 0x8000, enc_bf16, dec_bf16},
    {CMOE_F8E4M3, 0x7f, 4, 3, 7, 0x7f, 0x80, enc_f8, dec_f8},
    {CMOE_F8E8M0, 0xff, 8, 0, 127, 0xff, 0, enc_e8, dec_e8},
    {CMOE_E2M1X2, 8, 2, 1, 1, 7, 8, enc_e2, dec_e2},
};
enum { FORMATS = sizeof formats / sizeof formats[0] };

/* The value of a code, from the definition of the format. */
static inline double value(const small *f, uint32_t code)
{
    const int field = (int)(code >> f->fraction), m = (int)(code & ((1u << f->fraction) - 1));
    if (f->dtype == CMOE_F8E8M0) return ldexp(1, field - f->bias);
    if (field == 0) return ldexp(m, 1 - f->bias - f->fraction);
    return ldexp(m + (1 << f->fraction), field - f->bias - f->fraction);
}

/* `values` has room for MOST_CODES. */
static inline const double *table(const small *f, double *values)
{
    for (int c = 0; c <= f->codes; c++)
        values[c] = value(f, (uint32_t)c);
    return values;
}

static inline uint32_t nearest(const small *f, const double *values, long double x)
{
    const long double a = fabsl(x);
    uint32_t code;
    if (!f->sign && x < 0) return f->beyond;
    int low = 0, high = f->codes; /* values[low] <= a < values[high], or a lies outside */
    if (a >= values[high]) {
        code = f->beyond;
    } else if (a <= values[0]) {
        code = 0;
    } else {
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            *(a >= values[middle] ? &low : &high) = middle;
        }
        const long double down = a - values[low], up = values[high] - a;
        const int best = down < up || (down == up && low % 2 == 0) ? low : high;
        code = best == f->codes ? f->beyond : (uint32_t)best;
    }
    return code | (signbit(x) ? f->sign : 0);
}

#endif
