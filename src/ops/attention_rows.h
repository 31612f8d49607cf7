/* SPDX-License-Identifier: MIT
 *
 * ops/attention_rows.h - attention of whole sequences for training: the kernels, forward and
 * backward.
 *
 * A query row is one head of one token; it sees the keys of at most two ranges of tokens, of the kv
 * head it shares with the other `ratio` heads of its group.
 *
 * THE tree, forward:
 *
 *   score     one chain of fused multiply-adds over ascending dims, from 0; times scale
 *   m         the largest of the scores and the sink; 0 stands for -infinity
 *   p         exp(score - m)
 *   l         sum of p, one chain over ascending keys, from 0; then + exp(sink - m)
 *   out       one chain of fused multiply-adds p * v over ascending keys, from 0; / l, 0 where l is 0
 *   lse       m + ln l, -infinity where l is 0
 *
 * and backward, with p = exp(score - lse) of the same scores:
 *
 *   dot       one chain of dout * out over ascending dims, from 0
 *   ds        (p * (dp - dot)) * scale, dp one chain of dout * v over ascending dims, from 0
 *   dq        one chain of ds * k over ascending keys, from 0
 *   dk, dv    one chain of ds * q, p * dout over ascending queries, for each the heads of the group,
 *             from 0
 *   dsinks    a chain of -exp(sink - lse) * dot over the tokens of a unit, from 0; units as a tree
 *
 * Nothing here is cut at a place that depends on where a token lies: neither in the batch nor in its
 * sequence.  So a sequence gives the same bits wherever it is packed, and kernels are free to take
 * any query rows together.  What a row does not see takes part in no sum, NaN neither.
 *
 * That is why there are two passes over stored scores, and not an online softmax: rescaling sums from
 * block to block would put the edges of blocks into the result.  Training has the room to store the
 * scores of a tile of rows; the second pass costs less than rescaling does.
 */
#ifndef CMOE_OPS_ATTENTION_ROWS_H
#define CMOE_OPS_ATTENTION_ROWS_H

#include "cmoe/attention.h"
#include "core/kernel.h"
#include "core/plane.h"

enum {
    CMOEI_ATTENTION_ROWS_TILE = 32,  /* query rows that kernels may take together */
    CMOEI_ATTENTION_ROWS_KEYS = 64,  /* keys that they take together */
    CMOEI_ATTENTION_ROWS_CHUNK = 128 /* tokens of an item of forward */
};

/* Planes without data are not given.  out, lse, dot and the gradients are cmoei_real. */
typedef struct cmoei_attention_rows_args {
    cmoei_plane q, k, v;      /* [T, heads * d], [T, kv_heads * d] twice */
    cmoei_plane see;          /* [T, 4] i32, checked */
    cmoei_plane sinks;        /* [heads] */
    cmoei_plane out, lse;     /* [T, heads * d], [T, heads]; written forward, read backward */
    cmoei_plane dout;         /* [T, heads * d] */
    cmoei_plane dq, dk, dv;   /* as q, k, v */
    cmoei_plane dot;          /* [T, heads] of scratch: sum of dout * out */
    int64_t tokens, head_dim; /* T, d */
    int64_t heads, ratio;     /* ratio: heads / kv_heads */
    float scale;
} cmoei_attention_rows_args;

typedef struct cmoei_attention_rows_kernel {
    cmoei_variant variant;
    /* All heads of a group, tokens [token, token_end): out and lse.  `room` is the caller's alone. */
    void (*forward)(const cmoei_attention_rows_args *a, int64_t kv_head, int64_t token,
                    int64_t token_end, void *room);
    /* All heads of a group, n ascending tokens: dq and dot are written, dk and dv of what they see are
     * added to. */
    void (*backward)(const cmoei_attention_rows_args *a, int64_t kv_head, const int32_t *tokens,
                     int64_t n, void *room);
    /* dsinks [head_end - head], once dot is there. */
    void (*sinks)(const cmoei_attention_rows_args *a, const cmoe_units *units, int64_t head,
                  int64_t head_end, void *dsinks);
} cmoei_attention_rows_kernel;

extern const cmoei_table cmoei_attention_rows_table;

/* Ranges [at[0], at[1]) and [at[2], at[3]) of a token. */
static inline void cmoei_attention_rows_see(const cmoei_plane *see, int64_t token, int32_t at[4])
{
    memcpy(at, see->data + token * see->step, 4 * sizeof *at);
}

/* Scratch of a kernel: for a tile of rows the scores of all keys, and which rows see them; of KEYS
 * keys the gradients of scores, and a copy; rows, turned (3) and straight (2).  -1 when that leaves
 * int64. */
static inline int64_t cmoei_attention_rows_kernel_bytes(int64_t tokens, int64_t head_dim)
{
    const int64_t line = CMOEI_ATTENTION_ROWS_TILE * (int64_t)sizeof(float);
    const int64_t column = 5 * line + CMOEI_ATTENTION_ROWS_KEYS * (int64_t)sizeof(float);
    int64_t scores, rows, all;
    if (!cmoei_mul(tokens, line + (int64_t)sizeof(uint32_t), &scores) ||
        !cmoei_add(head_dim, CMOEI_ATTENTION_ROWS_KEYS, &rows) || !cmoei_mul(rows, column, &rows) ||
        !cmoei_add(scores, rows, &all) || !cmoei_add(all, CMOEI_ALIGN, &all))
        return -1;
    return all / CMOEI_ALIGN * CMOEI_ALIGN;
}

/* ---- scratch and spreading over threads (attention_rows_run.c) ------------------------------- */

typedef struct cmoei_attention_rows_plan {
    cmoe_attention_rows_options o;
    int64_t tokens, head_dim;
    int64_t threads;
} cmoei_attention_rows_plan;

typedef struct cmoei_attention_rows_room {
    char *kernel; /* [threads, kernel_bytes] */
    int64_t kernel_bytes;
    float *dot;           /* [T, heads] */
    float *dsinks;        /* [heads] */
    int32_t *owner;       /* [T] see attention_rows_run.c */
    int32_t *parent;      /* [T] */
    int32_t *queries;     /* [T] */
    int32_t *keys;        /* [T] */
    int32_t *query_first; /* [T + 1] */
    int32_t *key_first;   /* [T + 1] */
} cmoei_attention_rows_room;

cmoei_attention_rows_room cmoei_attention_rows_carve(const cmoei_attention_rows_plan *p,
                                                     cmoei_carver *c);
void cmoei_attention_rows_forward(cmoe_ctx *ctx, cmoei_attention_rows_args *a,
                                  const cmoei_attention_rows_room *room);
/* dsinks without data: not asked for. */
void cmoei_attention_rows_backward(cmoe_ctx *ctx, cmoei_attention_rows_args *a,
                                   const cmoe_units *units, const cmoei_plane *dsinks,
                                   const cmoei_attention_rows_room *room);

#endif
