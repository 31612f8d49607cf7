/* SPDX-License-Identifier: MIT
 *
 * quant/quantize.h - int8 activations: one scale a row, rule B5.
 *
 *     a = max(max |x|, 1e-4)   q = round_half_even(x * (127 / a))   scale = 1 / (127 / a)
 *
 * Every product and quotient is one float32 operation and the maximum is exact, so all machines
 * give equal bytes.  A row with a NaN or an infinity has q = 0 and that as its scale: what is
 * multiplied by it later shows it.
 */
#ifndef CMOE_QUANT_QUANTIZE_H
#define CMOE_QUANT_QUANTIZE_H

#include "core/kernel.h"

/* Bits of max |x[0..n)|, which order like the values; a NaN is above infinity.  0 for n == 0. */
typedef uint32_t (*cmoei_largest_fn)(const float *x, int64_t n);
/* q[i] = round_half_even(x[i] * factor); |x * factor| must stay below 128. */
typedef void (*cmoei_to_int8_fn)(const float *x, int64_t n, float factor, int8_t *q);

typedef struct cmoei_quantize_kernel {
    cmoei_variant variant;
    cmoei_largest_fn largest;
    cmoei_to_int8_fn to_int8;
} cmoei_quantize_kernel;

extern const cmoei_table cmoei_quantize_table;

const cmoei_quantize_kernel *cmoei_quantize_pick(uint32_t features) CMOE_PRIV(quantize_pick);

/* From the bits of the row's largest magnitude: what to multiply by (0: all q are 0), and the scale
 * that undoes it. */
float cmoei_quantize_factor(uint32_t largest, float *scale);

/* x [n] -> q [n]; returns the scale. */
float cmoei_quantize_row(const cmoei_quantize_kernel *kernel, const float *x, int64_t n, int8_t *q)
    CMOE_PRIV(quantize_row);

#endif
