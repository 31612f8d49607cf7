/* SPDX-License-Identifier: MIT
 *
 * ops/cross_entropy.h - the kernels of cross-entropy and its gradient.
 */
#ifndef CMOE_OPS_CROSS_ENTROPY_H
#define CMOE_OPS_CROSS_ENTROPY_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "ops/lanes.h"

/* Of a row: m = max x, e = exp(x - m), z = sum of e over THE tree of lanes.h, by additions;
 *
 *     loss = (m - x[target]) + log z
 *     dlogits = e * (scale / z), of the target fma(e, scale / z, -scale)
 *
 * A logit that is not finite makes z, and so the row, NaN.  A negative target: all are 0. */
typedef struct cmoei_cross_entropy_args {
    cmoei_plane logits;  /* float32 [T, vocab] */
    cmoei_plane dlogits; /* as logits, or none; may lie exactly on them */
    cmoei_plane scale;   /* [T] down the rows; with dlogits only */
    cmoei_plane loss;    /* [T] down the rows, or none */
    cmoe_view targets;   /* [T] */
    int64_t vocab;
} cmoei_cross_entropy_args;

typedef struct cmoei_cross_entropy_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_cross_entropy_args *a, int64_t row, int64_t row_end);
} cmoei_cross_entropy_kernel;

extern const cmoei_table cmoei_cross_entropy_table;

#endif
