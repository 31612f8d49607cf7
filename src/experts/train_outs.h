/* SPDX-License-Identifier: MIT
 *
 * train_outs.h - all outputs of one backward, collected so that each can be checked by itself and
 * against everything else before the first is written.
 */
#ifndef CMOE_EXPERTS_TRAIN_OUTS_H
#define CMOE_EXPERTS_TRAIN_OUTS_H

#include "matmul/trainable.h"

enum {
    CMOEI_OUTS_TRAINABLES = 6, /* gate, w13, w2, shared13, shared2, shared_gate */
    CMOEI_OUTS_MOST = 2 + CMOEI_OUTS_TRAINABLES * CMOEI_PARTS_MOST * 4,
    CMOEI_OUTS_INPUTS = 8
};

typedef struct cmoei_outs {
    int64_t count, trainables, inputs;
    struct {
        const cmoe_view_mut *v;
        char name[64]; /* in texts, where the view has none */
    } out[CMOEI_OUTS_MOST];
    const cmoe_trainable *t[CMOEI_OUTS_TRAINABLES]; /* whose weights may be borrowed */
    struct {
        cmoe_view v;
        const char *name;
    } in[CMOEI_OUTS_INPUTS];
} cmoei_outs;

/* Nothing happens for what is not given. */
void cmoei_outs_input(cmoei_outs *o, cmoe_view v, const char *name);
/* float32 [n, m] with contiguous rows. */
cmoe_status cmoei_outs_add(cmoei_outs *o, const cmoe_view_mut *v, const char *name, int64_t n,
                           const char *n_name, int64_t m, const char *m_name, cmoe_error *err);
/* The gradients of a trainable, one entry a part; NULL: none. */
cmoe_status cmoei_outs_add_parts(cmoei_outs *o, const cmoe_trainable *t, const char *name,
                                 const cmoe_part_gradient *parts, cmoe_error *err);
/* Outputs share memory with nothing, and nothing lies in what the call may carve. */
cmoe_status cmoei_outs_check(const cmoei_outs *o, const cmoe_arena *scratch, cmoe_error *err);

#endif
