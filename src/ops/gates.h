/* SPDX-License-Identifier: MIT
 *
 * ops/gates.h - kernels of the elementwise gates: sigmoid_mul, add_shared_expert, silu_mul.
 */
#ifndef CMOE_OPS_GATES_H
#define CMOE_OPS_GATES_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

/*                     out =
 * sigmoid_mul         x * sigmoid(gate)
 * add_shared_expert   fma(shared, sigmoid(gate), x), or x + shared without a gate
 * silu_mul            silu(gate) * x
 */
typedef struct cmoei_gates_args {
    cmoei_plane x;      /* [N, H] */
    cmoei_plane shared; /* [N, H], add_shared_expert only */
    cmoei_plane gate;   /* [N, H]; .col 0: one a row; data NULL: none */
    cmoei_plane out;    /* [N, H]; may lie exactly on x */
    int64_t cols;
    int32_t round_dtype; /* the sigmoid or SiLU is rounded to this; 0: it is not */
} cmoei_gates_args;

typedef void (*cmoei_gates_fn)(const cmoei_gates_args *a, int64_t row, int64_t row_end);

typedef struct cmoei_gates_kernel {
    cmoei_variant variant;
    cmoei_gates_fn run;
} cmoei_gates_kernel;

extern const cmoei_table cmoei_sigmoid_mul_table, cmoei_add_shared_expert_table,
    cmoei_silu_mul_table;

#endif
