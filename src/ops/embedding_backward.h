/* SPDX-License-Identifier: MIT
 *
 * ops/embedding_backward.h - the kernels of embedding's gradient.
 */
#ifndef CMOE_OPS_EMBEDDING_BACKWARD_H
#define CMOE_OPS_EMBEDDING_BACKWARD_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "ops/lanes.h"

/* dtable[id] = sum of scale * dout[t] over the tokens of id, in THE order of core/units.h: one fused
 * multiply-add a token.  `order` has the tokens by id, ascending; those of id begin at first[id]. */
typedef struct cmoei_embedding_backward_args {
    const int64_t *order, *first; /* [T], [vocab + 1] */
    cmoei_plane dout, dtable;     /* float32 [T, H], [vocab, H] */
    cmoe_units units;
    int64_t hidden;
    float scale;
} cmoei_embedding_backward_args;

typedef struct cmoei_embedding_backward_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_embedding_backward_args *a, int64_t id, int64_t id_end);
} cmoei_embedding_backward_kernel;

extern const cmoei_table cmoei_embedding_backward_table;

#endif
