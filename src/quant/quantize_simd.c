/* SPDX-License-Identifier: MIT
 *
 * quantize_simd.c - rule B5, vectorised by the compiler.
 *
 * Magnitudes are compared as integers, whose maximum a compiler may reorder.  Rounding is an add of
 * 1.5 * 2^23, after which the low byte of the sum's bits is the integer: exact half to even for
 * everything below 2^22, no conversion instruction with a rounding mode needed.
 */
#include "core/vmath.h"
#include "quant/quantize.h"

uint32_t CMOEI_SIMD(cmoei_largest)(const float *x, int64_t n);
void CMOEI_SIMD(cmoei_to_int8)(const float *x, int64_t n, float factor, int8_t *q);

uint32_t CMOEI_SIMD(cmoei_largest)(const float *x, int64_t n)
{
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = CMOEI_MAX(largest, cmoei_bits(x[i]) & 0x7fffffffu);
    return largest;
}

void CMOEI_SIMD(cmoei_to_int8)(const float *restrict x, int64_t n, float factor, int8_t *restrict q)
{
    for (int64_t i = 0; i < n; i++) {
        const float biased = x[i] * factor + CMOEI_ROUNDER;
        q[i] = (int8_t)(uint8_t)cmoei_bits(biased);
    }
}
