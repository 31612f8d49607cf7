/* SPDX-License-Identifier: MIT
 *
 * data.h - windows of a dataset.
 *
 * A dataset is cut into windows of `length` + 1 tokens, one behind the other with one token in common,
 * from an offset below `length` that each epoch has of its own; an epoch takes them in a random order.
 * Offset and order are functions of (seed, epoch): window i of a training is always the same.
 */
#ifndef CMOE_TRAIN_DATA_H
#define CMOE_TRAIN_DATA_H

#include "cmoe/train.h"
#include "core/core.h"

struct cmoe_dataset {
    cmoe_ctx *ctx;
    int32_t *ids;       /* [tokens] */
    uint8_t *learn;     /* [tokens] 1: a target */
    int64_t *documents; /* [document_count + 1] where each begins; the last: tokens */
    int64_t tokens, document_count, learned, bytes;
    int64_t ids_bytes, learn_bytes, documents_bytes; /* of memory */
};

/* One of so many tokens and documents, to be filled. */
cmoe_status cmoei_dataset_alloc(cmoe_dataset **out, cmoe_ctx *ctx, int64_t tokens,
                                int64_t documents, cmoe_error *err);

/* Draws windows in order; holds the order of one epoch, and nothing of the dataset but its length. */
typedef struct cmoei_windows {
    cmoe_ctx *ctx;
    int64_t tokens;
    uint64_t seed;
    int64_t length, per_epoch; /* windows of an epoch, at least 1 */
    int64_t epoch, offset;     /* of the order held; epoch -1: none yet */
    int32_t *order;            /* [per_epoch] */
} cmoei_windows;

/* CMOE_ERR_RANGE: the dataset is shorter than a window. */
cmoe_status cmoei_windows_open(cmoei_windows *w, cmoe_ctx *ctx, const cmoe_dataset *d,
                               uint64_t seed, int64_t length, cmoe_error *err);
void cmoei_windows_close(cmoei_windows *w);
/* First token of window i >= 0 of the training: tokens at .. at + length are its own. */
int64_t cmoei_windows_at(cmoei_windows *w, int64_t i);

/* Tokens [at, at + length) of a dataset as inputs: ids[length]; targets[length]: the token behind each, -1
 * where it is not learned or belongs to another document; start[length]: for each token, the place in the
 * window where its document begins. */
void cmoei_windows_read(const cmoe_dataset *d, int64_t at, int64_t length, int32_t *ids,
                        int32_t *targets, int32_t *start);

#endif
