/* SPDX-License-Identifier: MIT
 *
 * net_state.h - what the files of net.h share.
 *
 * T tokens, D hidden, W = (heads + 2 kv_heads) * d columns of q, k, v, L layers, V vocab.
 */
#ifndef CMOE_TRAIN_NET_STATE_H
#define CMOE_TRAIN_NET_STATE_H

#include "cmoe/attention.h"
#include "cmoe/experts.h"
#include "cmoe/layer.h"
#include "cmoe/ops.h"
#include "net.h"

/* What backward needs of a layer besides the stream before and between its halves. */
typedef struct cmoei_kept {
    float *raw;   /* [T, W] q, k, v as projected, where q and k are normed; else NULL */
    float *qkv;   /* [T, W] as attention reads them */
    float *heads; /* [T, heads * d] */
    float *lse;   /* [T, heads] */
    float *mixed,
        *fed;         /* [T, D] outputs of mixer and feed-forward, for norms behind them; or NULL */
    cmoe_arena arena; /* for the feed-forward */
    cmoe_saved *saved;
} cmoei_kept;

struct cmoei_net {
    cmoei_params *p;
    const cmoei_decoder *d;
    int64_t tokens, units; /* at most */
    bool recompute;
    cmoe_layer_train **moe; /* [L] NULL in dense layers */
    float *frequencies, amplitude;
    char *memory;
    int64_t memory_bytes;
    int64_t chunk; /* rows of logits at a time */

    float **before,
        **between;    /* [L + 1], [L] each [T, D]: the stream in front of and inside a layer */
    cmoei_kept *kept; /* [L], all the same one when layers are computed again */
    float *x, *y;     /* [T, D] normed, and what a half gives */
    float *cos, *sin; /* [T, r / 2] */
    float *logits;    /* [chunk, V] */
    float *dh, *dx, *dqkv, *dheads;
    float *dchoice;    /* [T, 1] gradient of a dense layer's weight, never used */
    float *ones;       /* [T] */
    int32_t *zeros;    /* [T] */
    int32_t *windowed; /* [T, 4] who sees whom in a layer with a window */
    cmoe_arena scratch;
};

/* One run. */
typedef struct cmoei_pass {
    cmoei_net *n;
    cmoei_params *p;
    const cmoei_decoder *d;
    cmoe_stream *s;
    const cmoei_net_call *c;
    cmoei_net_result *r;
    int64_t tokens;
    cmoe_error *err;
} cmoei_pass;

static inline int64_t cmoei_qkv_width(const cmoei_decoder *d)
{
    return (d->heads + 2 * d->kv_heads) * d->head_dim;
}
static inline cmoe_view cmoei_in(const float *data, int64_t rows, int64_t cols)
{
    return cmoe_view_2d(data, CMOE_F32, rows, cols);
}
static inline cmoe_view_mut cmoei_out(float *data, int64_t rows, int64_t cols)
{
    return cmoe_view_mut_2d(data, CMOE_F32, rows, cols);
}
static inline cmoe_view cmoei_vec(const float *data, int64_t n)
{
    return data ? cmoe_view_1d(data, CMOE_F32, n) : cmoe_view_none();
}
static inline cmoe_view_mut cmoei_vec_out(float *data, int64_t n)
{
    return data ? cmoe_view_mut_1d(data, CMOE_F32, n) : cmoe_view_mut_none();
}

/* Columns of some heads of a [T, W] array, as [T, heads * d]. */
cmoe_view_mut cmoei_columns(const cmoei_pass *p, float *qkv, int64_t first_head, int64_t heads);
/* [T, heads * d] as [T, heads, d]. */
cmoe_view_mut cmoei_by_head(const cmoei_pass *p, cmoe_view_mut v);
cmoe_attention_rows_options cmoei_net_attention(const cmoei_decoder *d);
/* Turns q or k by the positions, or back. */
cmoe_status cmoei_net_rotate(const cmoei_pass *p, cmoe_view_mut v, bool inverse);
cmoe_status cmoei_net_norm(const cmoei_pass *p, const float *in, const float *weight,
                           const float *bias, float *out);

/* Sets elements to zero with probability o.dropout, and scales the others up: a function of (seed, step, row
 * of the step, site), the same in backward. */
void cmoei_net_dropout(const cmoei_pass *p, float *x, int64_t site);

/* Who sees whom in layer i. */
cmoe_view cmoei_net_see(const cmoei_pass *p, int64_t i);

/* Layer i from n->before[i], leaving what backward needs. */
cmoe_status cmoei_net_layer_forward(cmoei_pass *p, int64_t i);
/* n->dh: gradient of the stream behind layer i -> in front of it. */
cmoe_status cmoei_net_layer_backward(cmoei_pass *p, int64_t i);
/* Losses from n->before[L]; with a gradient also n->dh. */
cmoe_status cmoei_net_head(cmoei_pass *p);

#endif
