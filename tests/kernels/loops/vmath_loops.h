/* SPDX-License-Identifier: MIT
 *
 * vmath_loops.h - the functions of core/vmath.h as loops over arrays, built once per instruction
 * set.
 */
#ifndef CMOE_VMATH_LOOPS_H
#define CMOE_VMATH_LOOPS_H

#include <stdint.h>

typedef void (*vmath_loop)(const float *x, float *y, int64_t n);

enum {
    VMATH_EXP,
    VMATH_LOG,
    VMATH_LOG1P,
    VMATH_SIGMOID,
    VMATH_SILU,
    VMATH_SOFTPLUS,
    VMATH_GELU,
    VMATH_SIN,
    VMATH_COS,
    VMATH_COUNT
};

extern const vmath_loop vmath_loops_scalar[VMATH_COUNT]; /* without vectors, fma from libm */
extern const vmath_loop vmath_loops_avx2[VMATH_COUNT];
extern const vmath_loop vmath_loops_avx512[VMATH_COUNT];

#endif
