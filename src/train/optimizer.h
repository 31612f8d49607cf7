/* SPDX-License-Identifier: MIT
 *
 * optimizer.h - what moves the weights: one step over a list of tensors, and the learning rate of a step.
 */
#ifndef CMOE_TRAIN_OPTIMIZER_H
#define CMOE_TRAIN_OPTIMIZER_H

#include "cmoe/train.h"
#include "core/core.h"

/* One parameter [rows, cols], contiguous, with its gradient and state beside it. */
typedef struct cmoei_trained {
    const char *name;
    float *value;
    const float *gradient;
    float *m, *v; /* NULL where cmoei_optimizer_states says so */
    int64_t rows, cols;
    bool decay;      /* matrices; norms and biases never */
    bool orthogonal; /* Muon moves it; the others go by AdamW */
} cmoei_trained;

/* How many arrays of state (0, 1: m, 2: m and v) a tensor has under these options. */
int32_t cmoei_optimizer_states(const cmoe_train_options *o, bool orthogonal);

/* Learning rate of step 1, 2, ... of o->steps. */
double cmoei_learning_rate(const cmoe_train_options *o, int64_t step);

/* Euclidean norm of all gradients; the same for any number of threads. */
cmoe_status cmoei_gradient_norm(cmoe_stream *s, const cmoei_trained *tensors, int64_t count,
                                double *norm, cmoe_error *err);

/* Memory and packed matrices that Muon needs for the shapes of these tensors; empty for the others. */
typedef struct cmoei_optimizer cmoei_optimizer;

cmoe_status cmoei_optimizer_create(cmoei_optimizer **out, cmoe_ctx *ctx,
                                   const cmoe_train_options *o, const cmoei_trained *tensors,
                                   int64_t count, cmoe_error *err);
void cmoei_optimizer_free(cmoei_optimizer *x);
int64_t cmoei_optimizer_bytes(const cmoei_optimizer *x); /* beside the state of tensors */

/* Moves every tensor; gradients are multiplied by `scale` first. */
cmoe_status cmoei_optimizer_step(cmoei_optimizer *x, cmoe_stream *s, const cmoei_trained *tensors,
                                 int64_t count, int64_t step, double scale, cmoe_error *err);

#endif
