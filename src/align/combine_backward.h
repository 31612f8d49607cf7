/* SPDX-License-Identifier: MIT
 *
 * align/combine_backward.h - the kernels of combine's backward, for callers inside the library with
 * checked arguments.
 */
#ifndef CMOE_ALIGN_COMBINE_BACKWARD_H
#define CMOE_ALIGN_COMBINE_BACKWARD_H

#include "core/kernel.h"
#include "core/plane.h"

/* Rows of reals (float32, and double in the oracle where written) side by side, at any address. */
typedef struct cmoei_dense {
    char *data;   /* NULL: not given */
    int64_t step; /* bytes from row to row */
} cmoei_dense;

typedef struct cmoei_combine_back_args {
    cmoei_dense rows;      /* [R, H] float32, for dweights only */
    cmoei_dense dout;      /* [T, H] float32 */
    cmoei_plane weights;   /* [T, K]; data NULL: 1 */
    cmoei_dense drows;     /* [R, H] real, or not given */
    cmoei_dense dweights;  /* [T, K] real, or not given */
    const int32_t *row_of; /* [T, K], below 0: dropped */
    int64_t topk, hidden;
    float scale;
} cmoei_combine_back_args;

/* Tokens [t, t_end): any split gives the same bits. */
typedef void (*cmoei_combine_back_fn)(const cmoei_combine_back_args *a, int64_t t, int64_t t_end);

typedef struct cmoei_combine_back_kernel {
    cmoei_variant variant;
    cmoei_combine_back_fn run;
} cmoei_combine_back_kernel;

extern const cmoei_table cmoei_combine_back_table;

#endif
