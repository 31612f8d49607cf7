/* SPDX-License-Identifier: MIT
 *
 * adapt.h - adapters meet a model: which rows of which weight a low-rank term changes, and by how much.
 *
 *     W'[n, k] = W[n, k] + sum over adapters of scale * s * (sum over rho of b[n, rho] * a[rho, k])
 *
 * in float32, adapters as they are given, rho ascending: the same bits for every thread and format.
 */
#ifndef CMOE_MODELS_ADAPT_H
#define CMOE_MODELS_ADAPT_H

#include "decoder.h"
#include "lora/peft.h"

/* What one adapter adds to one weight. */
typedef struct cmoei_fold {
    int64_t layer, expert, adapter; /* expert 0 where the role has none */
    cmoei_role role;
    const char *module; /* for texts */
    const float *a, *b; /* [r, K], [.., r] */
    int64_t rank, inputs;
    int64_t first, step; /* row n of the role is row first + n * step of b */
    float scale;
} cmoei_fold;

typedef struct cmoei_folds {
    cmoe_ctx *ctx;
    const cmoei_decoder *d;
    cmoei_fold *list; /* [count] by layer, role, expert, adapter */
    int64_t count, list_bytes;
    int64_t *first; /* [layers * CMOEI_ROLES + 1] into the list */
    int64_t first_bytes;
} cmoei_folds;

/* The layout of an adapter's stacked experts in this model: CMOE_PEFT_BEFORE_0_19 or _SINCE_0_19. */
cmoe_status cmoei_adapter_layout(const cmoe_adapter *a, const cmoei_decoder *d, int32_t *layout,
                                 cmoe_error *err);

/* Finds the place of every term.  CMOE_ERR_FORMAT, CMOE_ERR_UNSUPPORTED: one has none, and the text says
 * why.  The adapters are needed as long as the folds.  scales NULL: 1. */
cmoe_status cmoei_folds_make(cmoei_folds *f, cmoe_ctx *ctx, const cmoei_decoder *d,
                             const cmoe_adapter *const *adapters, const float *scales,
                             int64_t count, cmoe_error *err);
void cmoei_folds_free(cmoei_folds *f);

/* The module that PEFT knows for a role, in transformers 5: stacked experts (CMOEI_FUSED_GATE_UP and
 * CMOEI_EXPERT_DOWN) are "model.layers.0.mlp.experts.gate_up_proj" whatever the files of the model call
 * them.  false: it has none. */
bool cmoei_adapt_module(const cmoei_decoder *d, int64_t layer, cmoei_role role, char *name,
                        size_t size);

/* How the class of a model has a parameter of stacked experts: CMOEI_TRANSPOSED, CMOEI_INTERLEAVED. */
uint32_t cmoei_adapt_how(const cmoei_decoder *d, cmoei_role role);

/* Some expert's weight of that role changes. */
bool cmoei_folds_touch(const cmoei_folds *f, int64_t layer, cmoei_role role);
/* Adds the terms to row n [K] of a weight.  Between cmoei_float_enter and _leave. */
void cmoei_fold_row(const cmoei_folds *f, int64_t layer, cmoei_role role, int64_t expert, int64_t n,
                    float *row);

#endif
