/* SPDX-License-Identifier: MIT
 *
 * ops/columns.h - sums of the columns of a matrix: gradients of biases and of norm weights.
 */
#ifndef CMOE_OPS_COLUMNS_H
#define CMOE_OPS_COLUMNS_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "ops/lanes.h"

/* Of one row that was normalised. */
typedef struct cmoei_norm_stats {
    float mean, inverse; /* xhat = (x - mean) * inverse */
    float shift, slope;  /* mean(g), mean(g * xhat), see norm_backward.h */
} cmoei_norm_stats;

/* plain[h] = sum over rows of dout, weighted[h] = sum of fma(dout, xhat, ...), in THE order of
 * core/units.h; a token's heads follow each other.  xhat is two roundings. */
typedef struct cmoei_columns_args {
    cmoei_heads dout, x;           /* [N, heads, H]; x only with `weighted` */
    const cmoei_norm_stats *stats; /* [N * heads], only with `weighted` */
    cmoe_units units;
    cmoei_plane plain, weighted; /* [H] each or none */
    int64_t heads, hidden;
} cmoei_columns_args;

typedef struct cmoei_columns_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_columns_args *a, int64_t column, int64_t column_end);
} cmoei_columns_kernel;

extern const cmoei_table cmoei_columns_table;

/* Columns of one task at a time: small enough that every thread gets some. */
int64_t cmoei_columns_width(int64_t hidden, int64_t threads);
/* The part of a task in a region: blocks of columns until none is left. */
void cmoei_columns_task(const cmoei_columns_args *a, const cmoei_columns_kernel *kernel,
                        int64_t width, cmoei_team *team);

/* out[h] = sum over tokens of x[t, h]; a checked float32 [T, H] with contiguous columns, float32
 * [H] contiguous, checked units. */
void cmoei_column_sums(cmoe_ctx *ctx, const cmoe_view *x, const cmoe_units *units,
                       const cmoe_view_mut *out) CMOE_PRIV(column_sums);

#endif
