/* SPDX-License-Identifier: MIT
 *
 * ops/optimizer.h - the kernels of adamw, sgd and sum_squares.
 *
 * All of them stream: n contiguous float32 of each array, read once and written once.  What the
 * options say is folded in double into a few float constants first.
 */
#ifndef CMOE_OPS_OPTIMIZER_H
#define CMOE_OPS_OPTIMIZER_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

enum { CMOEI_SQUARES_BLOCK = 4096, CMOEI_SQUARES_LANES = 16 };

/* Element by element, every line one rounding but where it says fma:
 *
 * adamw   g = gradient * scale
 *         m = fma(g - m, mix1, m)                 mix1 = 1 - beta1
 *         v = fma(mix2 * g, g, beta2 * v)         mix2 = 1 - beta2
 *         d = fma(sqrt(v), inverse, eps)          inverse = 1 / sqrt(1 - beta2^step)
 *         value = fma(-rate, m / d, value * keep) rate = lr / (1 - beta1^step), keep = 1 - lr * decay
 *
 * sgd     m = fma(momentum, m, g), or g at the first step and without momentum
 *         value = fma(-rate, m, value * keep)     rate = lr
 */
typedef struct cmoei_optimizer_args {
    cmoei_plane gradient, value, m, v; /* [1, n]; f32, what the oracle writes is f64 */
    float scale, keep, rate;
    float mix1, mix2, beta2, inverse, eps; /* adamw */
    float momentum;                        /* sgd; 0: m is not read */
} cmoei_optimizer_args;

typedef struct cmoei_optimizer_kernel {
    cmoei_variant variant;
    /* Elements [begin, end). */
    void (*run)(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
} cmoei_optimizer_kernel;

extern const cmoei_table cmoei_adamw_table, cmoei_sgd_table;

/* sum[b] = sum of squares of block b: element i of a block goes to lane i % 16 in ascending order, lanes j
 * and j + 8 are added, j and j + 4, and so on.  In double, where a square of a float is exact. */
typedef struct cmoei_squares_args {
    const char *x; /* [n] float32 */
    int64_t n;
    double *sum; /* of block `first` and those that follow */
    int64_t first;
} cmoei_squares_args;

typedef struct cmoei_squares_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_squares_args *a, int64_t block, int64_t block_end);
} cmoei_squares_kernel;

extern const cmoei_table cmoei_sum_squares_table;

#endif
