/* SPDX-License-Identifier: MIT
 *
 * batch.h - what the tokens of a step are: inputs, targets, weights of losses, and who sees whom.
 *
 * Next token: a window of L tokens is L rows; a row sees its document up to itself, and its target is the
 * token behind it.
 *
 * Block diffusion: a window is 2 L rows, a noised copy and a clean one.  Each block of B tokens draws a rate
 * r, and each of its tokens is masked with probability r.  A noised row sees its own block of the noised copy
 * and all blocks before it of the clean one; a clean row sees clean blocks up to its own.  The target of
 * a masked row is the token itself, with weight 1 / r.
 */
#ifndef CMOE_TRAIN_BATCH_H
#define CMOE_TRAIN_BATCH_H

#include "data.h"

typedef struct cmoei_batch_shape {
    int32_t objective;
    int64_t length;     /* L */
    int64_t sequences;  /* at most */
    int64_t block;      /* diffusion */
    int64_t mask_token; /* diffusion */
    uint64_t seed;
} cmoei_batch_shape;

typedef struct cmoei_batch {
    cmoei_batch_shape shape;
    int64_t rows; /* of a sequence: L or 2 L */
    int32_t *ids; /* [sequences * rows] */
    int64_t *positions;
    int32_t *see; /* [.., 4] */
    int32_t *targets;
    float *scale;          /* 1 / learned tokens of the batch, times 1 / r */
    int32_t *next, *start; /* [L] of one window */
    int64_t learned;       /* rows with a target */
    void *memory;
    int64_t memory_bytes;
} cmoei_batch;

cmoe_status cmoei_batch_open(cmoei_batch *b, cmoe_ctx *ctx, const cmoei_batch_shape *shape,
                             cmoe_error *err);
void cmoei_batch_close(cmoei_batch *b, cmoe_ctx *ctx);

/* Windows of `length` <= L tokens that begin at at[0 .. count); noise is drawn by (seed, first + i). */
void cmoei_batch_fill(cmoei_batch *b, const cmoe_dataset *d, const int64_t *at, int64_t count,
                      int64_t length, uint64_t first);

/* Sequences that are given, for the next token: ids [count, L] of an index type, targets likewise or not
 * given. */
void cmoei_batch_take(cmoei_batch *b, const cmoe_view *ids, const cmoe_view *targets,
                      int64_t count);

#endif
