/* SPDX-License-Identifier: MIT
 *
 * source.h - rows of a matrix as they lie in a checkpoint, read as float32 whatever their format.
 *
 * [N, K] values of f32, f16, bf16, f8e4m3 or packed e2m1, at any address and in any order of
 * strides, with or without scales of blocks:
 *
 *     value(n, k) = stored(n, k) * scale((first + n * step) / block_rows, k / block_cols)
 *
 * The product is rounded once, to float32.  Edge blocks may be partial.  Runs in a region, or
 * between cmoei_float_enter and cmoei_float_leave; nothing is checked here: whoever fills a source
 * has compared it with the tensors it points into.
 */
#ifndef CMOE_WEIGHTS_SOURCE_H
#define CMOE_WEIGHTS_SOURCE_H

#include "cmoe/weights.h"
#include "core/core.h"

typedef struct cmoei_source {
    const char *data;               /* NULL: there is none */
    const char *scale;              /* NULL: no scales */
    int64_t rows, cols;             /* N, K */
    int64_t row, col;               /* strides in elements; packed e2m1: row in bytes, col 1 */
    int64_t scale_row, scale_col;   /* strides in elements */
    int64_t block_rows, block_cols; /* values of one scale */
    int64_t first, step; /* row n has the scales of row first + n * step; step 0: as 1.  So that
                            blocks stay where they are when a source is a part of another */
    int32_t dtype;       /* CMOE_F32, F16, BF16, F8E4M3, E2M1X2 (two columns a byte, low first) */
    int32_t scale_dtype; /* CMOE_F32, F16, BF16, F8E8M0 */
} cmoei_source;

/* Row n as float32 [K]. */
void cmoei_source_row(const cmoei_source *s, int64_t n, float *row);

/* The part of a source that rows first, first + step, ... (count of them) make up. */
cmoei_source cmoei_source_rows(const cmoei_source *s, int64_t first, int64_t step, int64_t count);

#endif
