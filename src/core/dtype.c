/* SPDX-License-Identifier: MIT
 *
 * dtype.c - number formats: names, sizes, and exact conversion from and to float32.
 *
 * Every narrowing rounds half to even on the exact value.  The small formats go through one routine
 * that rounds a float to a given number of fraction bits above a given smallest exponent, so that
 * there is one place to check.  Loads and stores go through memcpy: data may lie at any address.
 */
#include <math.h>
#include <string.h>

#include "core.h"

static const struct {
    const char *name;
    int32_t bytes;
} formats[] = {
    [CMOE_F32] = {"f32", 4},       [CMOE_F16] = {"f16", 2},       [CMOE_BF16] = {"bf16", 2},
    [CMOE_F8E4M3] = {"f8e4m3", 1}, [CMOE_F8E8M0] = {"f8e8m0", 1}, [CMOE_I8] = {"i8", 1},
    [CMOE_U8] = {"u8", 1},         [CMOE_I32] = {"i32", 4},       [CMOE_I64] = {"i64", 8},
    [CMOE_F64] = {"f64", 8},       [CMOE_I4X2] = {"i4x2", 1},     [CMOE_E2M1X2] = {"e2m1x2", 1},
};

static bool known(int32_t dtype)
{
    return dtype >= CMOE_F32 && dtype < CMOEI_COUNT(formats);
}

const char *cmoe_dtype_name(int32_t dtype)
{
    return known(dtype) ? formats[dtype].name : "unknown";
}

int64_t cmoe_dtype_bytes(int32_t dtype)
{
    return known(dtype) ? formats[dtype].bytes : 0;
}

int32_t cmoe_dtype_parse(const char *name)
{
    for (int32_t d = CMOE_F32; name && d < CMOEI_COUNT(formats); d++) {
        if (!strcmp(formats[d].name, name)) return d;
    }
    return 0;
}

/* ---- one rounding for all small floats ------------------------------------------------------- */

/* |f| in units of 2^(e - fraction), where e is f's exponent but at least min_exponent, rounded half
 * to even.  Writes the unit's exponent.  f is finite. */
static uint32_t round_to(float f, int fraction, int min_exponent, int *unit)
{
    const uint32_t u = cmoei_bits(f) & 0x7fffffffu;
    int e = (int)(u >> 23) - 127;
    uint32_t m = u & 0x7fffffu; /* value = m * 2^(e - 23) */
    if (e == -127)
        e = -126;
    else
        m |= 0x800000u;
    const int keep = CMOEI_MAX(e, min_exponent);
    const int drop = 23 - fraction + (keep - e);
    *unit = keep - fraction;
    if (drop > 24) return 0; /* below half of the smallest unit */
    const uint32_t half = 1u << (drop - 1), rest = m & ((1u << drop) - 1);
    uint32_t q = m >> drop;
    if (rest > half || (rest == half && (q & 1))) q++;
    return q;
}

uint16_t cmoei_f32_to_f16(float f)
{
    const uint32_t u = cmoei_bits(f), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x1ffu));
    if (magnitude == 0x7f800000u) return (uint16_t)(sign | 0x7c00u);
    int unit;
    const uint32_t q = round_to(f, 10, -14, &unit);
    if (q == 0) return (uint16_t)sign;
    /* q has its leading bit at 10 unless subnormal; a carry to 2^11 only moves the exponent. */
    const uint32_t biased = q < 1024 ? 0 : (uint32_t)(unit + 10 + 15);
    const uint32_t bits = biased ? ((biased - 1) << 10) + q : q;
    return (uint16_t)(sign | (bits >= 0x7c00u ? 0x7c00u : bits));
}

float cmoei_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 1023u;
    if (e == 31) return cmoei_float(sign | 0x7f800000u | m << 13);
    if (e == 0) {
        const float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    return cmoei_float(sign | (e + 112) << 23 | m << 13);
}

uint8_t cmoei_f32_to_f8e4m3(float f)
{
    const uint32_t u = cmoei_bits(f), sign = u >> 24 & 0x80u, magnitude = u & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    int unit;
    const uint32_t q = round_to(f, 3, -6, &unit);
    const uint32_t biased = q < 8 ? 0 : (uint32_t)(unit + 3 + 7);
    const uint32_t bits = biased ? ((biased - 1) << 3) + q : q;
    return (uint8_t)(sign | (bits > 0x7eu ? 0x7fu : bits));
}

float cmoei_f8e4m3_to_f32(uint8_t b)
{
    const uint32_t e = b >> 3 & 15u, m = b & 7u;
    const uint32_t sign = (uint32_t)(b & 0x80u) << 24;
    if ((b & 0x7fu) == 0x7fu) return cmoei_float(sign | 0x7fc00000u);
    if (e == 0) {
        const float f = (float)m * 0x1p-9f;
        return sign ? -f : f;
    }
    return cmoei_float(sign | (e + 120) << 23 | m << 20);
}

/* Nearest power of two; halfway between two of them the one with the even byte. */
uint8_t cmoei_f32_to_f8e8m0(float f)
{
    const uint32_t u = cmoei_bits(f);
    if (u >= 0x7f800000u) /* negative, infinite or NaN */
        return u == 0x80000000u ? 0 : 255;
    const uint32_t e = u >> 23, m = u & 0x7fffffu;
    if (e == 0)
        return m > 0x600000u; /* 2^-127 is m = 0x400000, 2^-126 is byte 1; halfway goes to byte 0 */
    const uint32_t up = m > 0x400000u || (m == 0x400000u && (e & 1));
    return (uint8_t)(e + up); /* 254 + 1 = 255: beyond the largest */
}

float cmoei_f8e8m0_to_f32(uint8_t b)
{
    if (b == 255) return cmoei_float(0x7fc00000u);
    return b == 0 ? 0x1p-127f : cmoei_float((uint32_t)b << 23);
}

static const float e2m1_values[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};

float cmoei_e2m1_to_f32(uint8_t nibble)
{
    const float f = e2m1_values[nibble & 7];
    return nibble & 8 ? -f : f;
}

/* The format has neither NaN nor infinity: infinities clamp to 6, NaN becomes 0. */
uint8_t cmoei_f32_to_e2m1(float f)
{
    const uint32_t u = cmoei_bits(f), sign = u >> 28 & 8u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0;
    if (magnitude >= 0x40c00000u) /* 6 and more */
        return (uint8_t)(sign | 7u);
    int unit;
    const uint32_t q = round_to(f, 1, 0, &unit);
    const uint32_t biased = q < 2 ? 0 : (uint32_t)(unit + 1 + 1);
    const uint32_t bits = biased ? ((biased - 1) << 1) + q : q;
    return (uint8_t)(sign | CMOEI_MIN(bits, 7u));
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* Integers clamp to what float32 values round to; NaN becomes 0. */
static int64_t to_integer(double x, int64_t low, int64_t high)
{
    if (!(x == x)) return 0;
    if (x <= (double)low) return low;
    if (x >= (double)high) return high;
    return (int64_t)nearbyint(x);
}

#define LOAD_LOOP(type, expr)                                     \
    for (int64_t i = 0; i < n; i++) {                             \
        type x;                                                   \
        memcpy(&x, p + i * stride * (int64_t)sizeof x, sizeof x); \
        dst[i] = (expr);                                          \
    }                                                             \
    break

void cmoei_load_f32(float *dst, const void *src, int32_t dtype, int64_t stride, int64_t n)
{
    const char *p = src;
    switch (dtype) {
    case CMOE_F32:
        if (stride == 1) {
            if (n > 0) memcpy(dst, src, (size_t)n * sizeof *dst);
            break;
        }
        LOAD_LOOP(float, x);
    case CMOE_BF16:
        if (stride == 1) { /* a loop of its own, which compilers turn into vectors */
            for (int64_t i = 0; i < n; i++) {
                uint16_t x;
                memcpy(&x, p + 2 * i, sizeof x);
                dst[i] = cmoei_bf16_to_f32(x);
            }
            break;
        }
        LOAD_LOOP(uint16_t, cmoei_bf16_to_f32(x));
    case CMOE_F16:
        LOAD_LOOP(uint16_t, cmoei_f16_to_f32(x));
    case CMOE_F8E4M3:
        LOAD_LOOP(uint8_t, cmoei_f8e4m3_to_f32(x));
    case CMOE_F8E8M0:
        LOAD_LOOP(uint8_t, cmoei_f8e8m0_to_f32(x));
    case CMOE_I8:
        LOAD_LOOP(int8_t, (float)x);
    case CMOE_U8:
        LOAD_LOOP(uint8_t, (float)x);
    case CMOE_I32:
        LOAD_LOOP(int32_t, (float)x);
    case CMOE_I64:
        LOAD_LOOP(int64_t, (float)x);
    case CMOE_F64:
        LOAD_LOOP(double, (float)x);
    default:
        CMOE_ASSERT(!"a dtype that the entry should have refused");
    }
}

#define STORE_LOOP(type, expr)                                    \
    for (int64_t i = 0; i < n; i++) {                             \
        const float x = src[i];                                   \
        const type y = (type)(expr);                              \
        memcpy(p + i * stride * (int64_t)sizeof y, &y, sizeof y); \
    }                                                             \
    break

void cmoei_store_f32(void *dst, int32_t dtype, int64_t stride, const float *src, int64_t n)
{
    char *p = dst;
    switch (dtype) {
    case CMOE_F32:
        if (stride == 1) {
            if (n > 0) memcpy(dst, src, (size_t)n * sizeof *src);
            break;
        }
        STORE_LOOP(float, x);
    case CMOE_BF16:
        if (stride == 1) {
            for (int64_t i = 0; i < n; i++) {
                const uint16_t x = cmoei_f32_to_bf16(src[i]);
                memcpy(p + 2 * i, &x, sizeof x);
            }
            break;
        }
        STORE_LOOP(uint16_t, cmoei_f32_to_bf16(x));
    case CMOE_F16:
        STORE_LOOP(uint16_t, cmoei_f32_to_f16(x));
    case CMOE_F8E4M3:
        STORE_LOOP(uint8_t, cmoei_f32_to_f8e4m3(x));
    case CMOE_F8E8M0:
        STORE_LOOP(uint8_t, cmoei_f32_to_f8e8m0(x));
    case CMOE_I8:
        STORE_LOOP(int8_t, to_integer(x, INT8_MIN, INT8_MAX));
    case CMOE_U8:
        STORE_LOOP(uint8_t, to_integer(x, 0, UINT8_MAX));
    case CMOE_I32:
        STORE_LOOP(int32_t, to_integer(x, INT32_MIN, INT32_MAX));
    case CMOE_I64:
        STORE_LOOP(int64_t, to_integer(x, INT64_MIN, INT64_MAX));
    case CMOE_F64:
        STORE_LOOP(double, x);
    default:
        CMOE_ASSERT(!"a dtype that the entry should have refused");
    }
}

int64_t cmoei_load_index(const void *src, int32_t dtype)
{
    if (dtype == CMOE_I32) {
        int32_t x;
        memcpy(&x, src, sizeof x);
        return x;
    }
    int64_t x;
    memcpy(&x, src, sizeof x);
    return x;
}
