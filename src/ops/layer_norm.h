/* SPDX-License-Identifier: MIT
 *
 * ops/layer_norm.h - the layer norm kernels.
 */
#ifndef CMOE_OPS_LAYER_NORM_H
#define CMOE_OPS_LAYER_NORM_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

/* s = x (+ residual), d = s - mean(s), y = fma(d / sqrt(mean(d^2) + eps), weight, bias).
 *
 * Two passes, because mean(s^2) - mean(s)^2 loses every digit where the mean is large.  Both sums
 * walk THE tree of ops/norm.h: column h goes to lane h % 32 in ascending order, by an addition for
 * the mean, by a fused multiply-add for the variance; lanes are folded 16, 8, 4, 2, 1. */
typedef struct cmoei_layer_norm_args {
    cmoei_plane x, residual;       /* [N, H], [N, H] or none */
    cmoei_plane weight, bias;      /* [H], each or none */
    cmoei_plane out, residual_out; /* [N, H], [N, H] or none; may lie exactly on x or residual */
    int64_t hidden;
    float eps;
} cmoei_layer_norm_args;

typedef struct cmoei_layer_norm_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end);
} cmoei_layer_norm_kernel;

extern const cmoei_table cmoei_layer_norm_table;

enum { CMOEI_LAYER_NORM_LANES = 32 };

#endif
