/* SPDX-License-Identifier: MIT
 *
 * act_backward.h - the kernels between the two products of the MLP's backward.
 *
 * One row: h = act(gate) * up again from what forward kept, the gradient of the row's weight, and the
 * gradients of gate and up.  a = act(gate), u = up (up + 1 for swiglu_oss, 1 without a gate):
 *
 *     h        = a * u
 *     dweight  = <h, g> (+ <bias, dout>)     g = gradient of h before the weight
 *     hw       = weight * h
 *     dh       = weight * g
 *     dgate    = dh * u * act'(gate)         0 where gate was cut at the limit
 *     dup      = dh * a                      0 where up was
 *
 * THE tree of the two sums: element i is added to lane i % 32 with one fused multiply-add, then lanes
 * j and j + 16 are added, then j and j + 8, ...; 32, because with 16 gcc unrolls them into scalars.
 */
#ifndef CMOE_EXPERTS_ACT_BACKWARD_H
#define CMOE_EXPERTS_ACT_BACKWARD_H

#include "core/kernel.h"
#include "matmul/epilogue.h"

enum { CMOEI_ACT_LANES = 32 };

typedef struct cmoei_act_backward_args {
    const cmoei_activation *activation;
    int64_t inter, hidden;
    int64_t gate_at, up_at, step; /* element i of gate is gate_up[gate_at + i * step] */
    const float *gate_up;         /* [2I], ungated [I] */
    const float *g;               /* [I] */
    float weight;
    const float *bias; /* [H] of w2, or NULL; then dout is not read */
    const void *dout;  /* [H] floats at any address */
    void *hw;          /* [I]; may be exactly g */
    void *dgate_up;    /* as gate_up */
    void *dweight;     /* [1] */
} cmoei_act_backward_args;

typedef struct cmoei_act_backward_kernel {
    cmoei_variant v;
    void (*row)(const cmoei_act_backward_args *a);
} cmoei_act_backward_kernel;

extern const cmoei_table cmoei_act_backward_table;

void cmoei_act_backward_avx512(const cmoei_act_backward_args *a);
void cmoei_act_backward_avx2(const cmoei_act_backward_args *a);
void cmoei_act_backward_ref(const cmoei_act_backward_args *a);
void cmoei_act_backward_f64(const cmoei_act_backward_args *a);

#endif
