/* SPDX-License-Identifier: MIT
 *
 * ops/norm.h - the RMS norm kernels.
 */
#ifndef CMOE_OPS_NORM_H
#define CMOE_OPS_NORM_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

/* s = x (+ residual), y = s / sqrt(mean(s^2) + eps) * (offset + weight), row by row.
 *
 * THE tree of the sum of squares, the same in every kernel: column h is added to lane h % 32 with
 * one fused multiply-add, in ascending order; then lanes j and j + 16 are added, then j and j + 8,
 * and so on down to one.  32 lanes, because with 16 gcc unrolls them into scalars. */
typedef struct cmoei_norm_args {
    cmoei_plane x, residual, weight; /* [N, H], [N, H] or none, [H] or none */
    cmoei_plane out, residual_out;   /* [N, H], [N, H] or none; may lie exactly on x or residual */
    int64_t hidden;
    float eps, weight_offset;
    int32_t order;
    int32_t sum_dtype; /* the sum is rounded to this before it is normalised; 0: it is not */
} cmoei_norm_args;

typedef struct cmoei_norm_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_norm_args *a, int64_t row, int64_t row_end);
} cmoei_norm_kernel;

extern const cmoei_table cmoei_norm_table;

/* The caller's options over the defaults, checked. */
cmoe_status cmoei_rms_norm_options(cmoe_rms_norm_options *o, const cmoe_rms_norm_options *options,
                                   cmoe_error *err);

enum { CMOEI_NORM_LANES = 32 };

#endif
