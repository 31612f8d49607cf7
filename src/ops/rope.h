/* SPDX-License-Identifier: MIT
 *
 * ops/rope.h - the kernels of rotary positions: tables of cosines and sines, and the turn itself.
 */
#ifndef CMOE_OPS_ROPE_H
#define CMOE_OPS_ROPE_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

/* cos, sin [t, j] = f(angle) * amplitude, angle = position of t as float32 * frequency of j, both
 * products rounded to float32. */
typedef struct cmoei_rope_table_args {
    const char *positions; /* [T] of i32 or i64, `positions_step` bytes apart */
    int64_t positions_step;
    int32_t positions_dtype;
    float amplitude;
    cmoei_plane frequencies; /* [half] */
    cmoei_plane cos, sin;    /* [T, half] */
    int64_t half;
} cmoei_rope_table_args;

typedef struct cmoei_rope_table_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_rope_table_args *a, int64_t row, int64_t row_end);
} cmoei_rope_table_kernel;

/* The heads of one token.  A pair (a, b) is columns (j, half + j) or (2j, 2j + 1):
 *
 *     a' = fma(a, c, -(b * s))        b' = fma(b, c, a * s)
 *
 * with one rounding of the product and one of the sum; backwards, s changes its sign. */
typedef struct cmoei_rope_rotate_args {
    cmoei_plane x, out;   /* [heads, 2 * half], from the first rotated column; out may be x */
    cmoei_plane cos, sin; /* [half] */
    int64_t half;
    int32_t interleaved, inverse;
} cmoei_rope_rotate_args;

typedef struct cmoei_rope_rotate_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end);
} cmoei_rope_rotate_kernel;

extern const cmoei_table cmoei_rope_table_table, cmoei_rope_rotate_table;

#endif
