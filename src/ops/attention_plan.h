/* SPDX-License-Identifier: MIT
 *
 * ops/attention_plan.h - how the query rows of a batch are cut into work, and the scratch for it.
 *
 * A group is what reads the same keys: up to CMOEI_ATTENTION_ROWS query rows, the query heads of one
 * kv head times neighbouring tokens of one sequence.  An item is a group and a part of the keys; its
 * result (m, l, acc of each row) is a row-part of scratch.  Groups are taken in waves that fill the
 * row-parts at hand: all items of a wave, a barrier, all merges.  So scratch is about
 * threads * CMOEI_ATTENTION_SLOTS row-parts of value_dim + 2 floats, whatever the number of tokens,
 * and a decode of one token with a long context still has work for many threads.
 */
#ifndef CMOE_OPS_ATTENTION_PLAN_H
#define CMOE_OPS_ATTENTION_PLAN_H

#include "core/plane.h"
#include "ops/attention_kernel.h"
#include "ops/kv.h"

enum {
    CMOEI_ATTENTION_ROWS = 32,   /* a part of keys and values is read once for as many rows */
    CMOEI_ATTENTION_SLOTS = 2048 /* row-parts a thread: 64 full items */
};

typedef struct cmoei_attention_plan {
    cmoe_attention_options o;
    cmoe_kv kv;
    cmoe_batch batch;
    int64_t ratio;        /* query heads of a kv head */
    int64_t group_heads;  /* of these in a group, at most */
    int64_t group_tokens; /* at most */
    int64_t slots;        /* row-parts of a wave */
    int64_t threads;
    double cost; /* multiply-adds, roughly */
} cmoei_attention_plan;

/* Of a group: which query rows, which parts of their keys, and the first of its row-parts, which
 * stand part by part. */
typedef struct cmoei_attention_group {
    int64_t sequence, kv_head;
    int64_t head, heads;   /* of the query heads of kv_head */
    int64_t token, tokens; /* of the sequence */
    int64_t part, parts;
    int64_t slot;
} cmoei_attention_group;

typedef struct cmoei_attention_item {
    int64_t group, part;
} cmoei_attention_item;

typedef struct cmoei_attention_room {
    float *m, *l, *acc;            /* [slots], [slots], [slots, value_dim] */
    cmoei_attention_group *groups; /* [slots] */
    cmoei_attention_item *items;   /* [slots] */
    float *q;                      /* [threads, ROWS, key_dim] */
    float *out;                    /* [threads, value_dim] */
} cmoei_attention_room;

/* From checked options, cache and batch. */
cmoe_status cmoei_attention_plan_make(cmoei_attention_plan *p, int64_t threads, cmoe_error *err);
cmoei_attention_room cmoei_attention_carve(const cmoei_attention_plan *p, cmoei_carver *c);
/* Keys [*lo, *hi) that the token at `position` of sequence i sees. */
void cmoei_attention_visible(const cmoei_attention_plan *p, int64_t i, int64_t position,
                             int64_t *lo, int64_t *hi);

/* q, out [T, heads * dim]; sinks [heads] or none. */
void cmoei_attention_run(cmoe_ctx *ctx, const cmoei_attention_plan *p,
                         const cmoei_attention_room *room, const cmoei_plane *q,
                         const cmoei_plane *sinks, const cmoei_plane *out);

#endif
