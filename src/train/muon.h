/* SPDX-License-Identifier: MIT
 *
 * muon.h - one step of Muon on a matrix.
 */
#ifndef CMOE_TRAIN_MUON_H
#define CMOE_TRAIN_MUON_H

#include "optimizer.h"

/* Memory for the largest of the matrices that it moves. */
typedef struct cmoei_muon {
    cmoe_ctx *ctx;
    float *x, *y;    /* [r, c] with r <= c: the direction, and its transpose or its next value */
    float *gram, *b; /* [r, r] */
    cmoe_arena scratch;
    void *memory;
    int64_t bytes;
} cmoei_muon;

/* For the orthogonal ones of these tensors; without any it takes nothing. */
cmoe_status cmoei_muon_create(cmoei_muon *x, cmoe_ctx *ctx, const cmoei_trained *tensors,
                              int64_t count, cmoe_error *err);
void cmoei_muon_free(cmoei_muon *x);

/* lr and decay of this tensor, the gradient's factor. */
typedef struct cmoei_muon_rates {
    double lr, decay, momentum, scale;
} cmoei_muon_rates;

cmoe_status cmoei_muon_step(cmoei_muon *x, cmoe_stream *s, const cmoei_trained *t,
                            const cmoei_muon_rates *rates, cmoe_error *err);

#endif
