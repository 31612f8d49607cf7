/* SPDX-License-Identifier: MIT
 *
 * ops/elementwise.h - the kernels of scaled_add and clip; embedding is scaled_add of chosen rows.
 */
#ifndef CMOE_OPS_ELEMENTWISE_H
#define CMOE_OPS_ELEMENTWISE_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

/*                out =
 * scaled_add     fma(y, scale, x), or y * scale without an x
 * clip           min(max(x, -scale), scale); NaN stays
 */
typedef struct cmoei_elementwise_args {
    cmoei_plane x, y; /* [N, H], each or none */
    cmoei_plane out;  /* [N, H]; may lie exactly on x */
    int64_t cols;
    float scale;
} cmoei_elementwise_args;

typedef struct cmoei_elementwise_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);
} cmoei_elementwise_kernel;

extern const cmoei_table cmoei_scaled_add_table, cmoei_clip_table;

#endif
