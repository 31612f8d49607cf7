/* SPDX-License-Identifier: MIT
 *
 * ops/gates_backward.h - gradients of sigmoid_mul, silu_mul and clip.
 */
#ifndef CMOE_OPS_GATES_BACKWARD_H
#define CMOE_OPS_GATES_BACKWARD_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "ops/lanes.h"

/* With s = sigmoid(gate):
 *
 *                dx                       dgate
 * sigmoid_mul    dout * s                 (dout * x) * (s * (1 - s)); one gate a row: the sum over
 *                                         columns of fma(dout, x) in THE tree of lanes.h, times that
 * silu_mul       dout * a, a = gate * s   (dout * x) * fma(a, 1 - s, s)
 * clip           |x| <= limit ? dout : 0
 *
 * Of silu_mul, x is up; gate and up stand side by side in one tensor, or `interleaved`. */
typedef struct cmoei_gates_backward_args {
    cmoei_plane x, dout; /* float32 [N, H]; silu_mul: x is gate and up, [N, 2H] */
    cmoei_plane gate;    /* [N, H]; .col 0: one a row; sigmoid_mul only */
    cmoei_plane dx;      /* as x, or none; may lie exactly on dout; of silu_mul exactly on x */
    cmoei_plane dgate;   /* as gate, or none; sigmoid_mul only */
    int64_t cols;        /* H */
    float limit;
    bool interleaved;
} cmoei_gates_backward_args;

typedef void (*cmoei_gates_backward_fn)(const cmoei_gates_backward_args *a, int64_t row,
                                        int64_t row_end);

typedef struct cmoei_gates_backward_kernel {
    cmoei_variant variant;
    cmoei_gates_backward_fn run;
} cmoei_gates_backward_kernel;

extern const cmoei_table cmoei_sigmoid_mul_backward_table, cmoei_silu_mul_backward_table,
    cmoei_clip_backward_table;

#endif
