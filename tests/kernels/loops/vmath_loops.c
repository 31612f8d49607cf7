/* SPDX-License-Identifier: MIT
 *
 * vmath_loops.c - built three times (tests/CMakeLists.txt), by the compiler's own vectoriser.
 */
#include "vmath_loops.h"

#include "core/kernel.h"
#include "core/vmath.h"

#define LOOP(name)                                                                 \
    static void loop_##name(const float *restrict x, float *restrict y, int64_t n) \
    {                                                                              \
        for (int64_t i = 0; i < n; i++)                                            \
            y[i] = cmoei_##name(x[i]);                                             \
    }

LOOP(expf)
LOOP(logf)
LOOP(log1pf)
LOOP(sigmoidf)
LOOP(siluf)
LOOP(softplusf)
LOOP(gelu_tanhf)
LOOP(sinf)
LOOP(cosf)

const vmath_loop CMOEI_SIMD(vmath_loops)[VMATH_COUNT] = {
    [VMATH_EXP] = loop_expf,         [VMATH_LOG] = loop_logf,   [VMATH_LOG1P] = loop_log1pf,
    [VMATH_SIGMOID] = loop_sigmoidf, [VMATH_SILU] = loop_siluf, [VMATH_SOFTPLUS] = loop_softplusf,
    [VMATH_GELU] = loop_gelu_tanhf,  [VMATH_SIN] = loop_sinf,   [VMATH_COS] = loop_cosf,
};
