/* SPDX-License-Identifier: MIT
 *
 * ops/norm_backward.h - the backward kernels of RMS norm and layer norm.
 */
#ifndef CMOE_OPS_NORM_BACKWARD_H
#define CMOE_OPS_NORM_BACKWARD_H

#include "ops/columns.h"

/* y = xhat * w, xhat = (x - mean) * inverse, w = offset + weight, or 1 without a weight; with
 * g = dout * w,
 *
 *     dx = residual + inverse * (g - mean(g) - xhat * mean(g * xhat))
 *
 * An RMS norm is the same without the two means that centre x and g: they are 0.
 *
 * `stats` of a row: the mean as layer norm's forward makes it, then one pass with d = x - mean, sums
 * of fma(d, d), fma(g, d) and g over THE tree of lanes.h; mean(g * xhat) = sum(g * d) / H * inverse.
 * `dx`: t = fma(-xhat, mean(g * xhat), g - mean(g)), then fma(inverse, t, residual), or inverse * t.
 */
typedef struct cmoei_norm_backward_args {
    cmoei_heads x, dout, residual; /* [N, heads, H]; residual or none */
    cmoei_heads dx;                /* [N, heads, H]; may lie exactly on dout or residual */
    cmoei_plane weight;            /* [H] or none */
    int64_t heads, hidden;
    float eps, weight_offset;
    bool centred; /* layer norm */
} cmoei_norm_backward_args;

/* stats [row_end - row] are those of these rows. */
typedef struct cmoei_norm_backward_kernel {
    cmoei_variant variant;
    void (*stats)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end, void *stats);
    void (*dx)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end, const void *stats);
} cmoei_norm_backward_kernel;

extern const cmoei_table cmoei_norm_backward_table;

#endif
