/* SPDX-License-Identifier: MIT
 *
 * align/combine.h - the combine kernels, for callers inside the library with checked arguments.
 */
#ifndef CMOE_ALIGN_COMBINE_H
#define CMOE_ALIGN_COMBINE_H

#include "cmoe/align.h"
#include "core/kernel.h"
#include "core/plane.h"

/* out[t, h] = scale * sum over k of weights[t, k] * rows[row_of[t, k], h] + shared[t, h] */
typedef struct cmoei_combine_args {
    cmoei_plane rows;      /* [R, H] */
    cmoei_plane weights;   /* [T, K]; data NULL: 1 */
    cmoei_plane shared;    /* [T, H]; data NULL: none */
    cmoei_plane out;       /* [T, H] */
    const int32_t *row_of; /* [T, K], below 0: dropped */
    int64_t topk, hidden;
    float scale;
    bool shared_first;
} cmoei_combine_args;

/* Tokens [t, t_end), columns [h, h_end): any split gives the same bits. */
typedef void (*cmoei_combine_fn)(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h,
                                 int64_t h_end);

typedef struct cmoei_combine_kernel {
    cmoei_variant variant;
    cmoei_combine_fn run;
} cmoei_combine_kernel;

extern const cmoei_table cmoei_combine_table;

const cmoei_combine_kernel *cmoei_combine_pick(uint32_t features);
/* All T tokens, with as many of the context's threads as the work is worth. */
void cmoei_combine_run(cmoe_ctx *ctx, const cmoei_combine_args *a, int64_t tokens);

/* Options with their defaults, checked. */
cmoe_status cmoei_combine_read_options(cmoe_combine_options *o, const cmoe_combine_options *given,
                                       cmoe_error *err);
/* T*K slots in rows 0..rows-1 or -1; names the first that is not. */
cmoe_status cmoei_combine_check_groups(const cmoe_groups *g, int64_t rows, cmoe_error *err);

/* With shared_first the sum grows out of the shared row, so the scale goes onto the weights. */
static inline float cmoei_combine_weight(const cmoei_combine_args *a, int64_t t, int64_t k)
{
    float w = 1;
    if (a->weights.data) {
        const char *p = cmoei_plane_at(&a->weights, t, k);
        if (a->weights.dtype == CMOE_F32)
            memcpy(&w, p, sizeof w);
        else
            cmoei_load_f32(&w, p, a->weights.dtype, 1, 1);
    }
    return a->shared_first ? w * a->scale : w;
}

#endif
