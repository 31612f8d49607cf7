/* SPDX-License-Identifier: MIT
 *
 * cmoe/attention.h - grouped-query attention over keys and values that lie in pages.
 *
 * T tokens of a batch belong to sequences; token i of a sequence stands at position start + i, and
 * the keys and values of positions 0 .. start-1 are in the cache already.  First cmoe_kv_write puts
 * the new ones there, then cmoe_attention reads all of them:
 *
 *     out[t] = sum over visible s of softmax_s(scale * q[t] . k[s], sink) * v[s]
 *
 * Keys are walked in blocks of one page, in parts of CMOE_KV_PART keys, both counted from position
 * 0; every part is a sum of its own and parts are merged in ascending order.  So a token's result
 * depends on its sequence alone: not on the batch, on how the prompt was cut into calls, nor on the
 * number of threads.  What a token may not see takes part in no sum, whatever lies there, NaN too;
 * pages that no token sees are not read.
 */
#ifndef CMOE_ATTENTION_H
#define CMOE_ATTENTION_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CMOE_KV_PAGE = 64,  /* positions of a page */
    CMOE_KV_PART = 1024 /* keys that are summed before parts are merged */
};

/* Keys and values of one layer.  Plain data of the caller; the memory behind `base` is too.  A page
 * holds CMOE_KV_PAGE positions of every head: for each head the keys [key_dim, CMOE_KV_PAGE], then
 * for each head the values [CMOE_KV_PAGE, value_dim]. */
typedef struct cmoe_kv {
    size_t size;
    int64_t heads, key_dim, value_dim; /* heads of keys and values */
    int32_t format;                    /* CMOE_F32, CMOE_BF16 */
    int32_t reserved;
    void *base;          /* at least page_bytes * pages, aligned to 64 */
    int64_t pages;       /* how many there are */
    int64_t page_stride; /* bytes from page to page, a multiple of 64; 0: cmoe_kv_page_bytes */
} cmoe_kv;

CMOE_API void cmoe_kv_default(cmoe_kv *kv, size_t size);

CMOE_API cmoe_status cmoe_kv_page_bytes(const cmoe_kv *kv, int64_t *bytes, cmoe_error *err);

/* Which tokens belong to which sequence, and where the sequences lie in the cache.  Plain data. */
typedef struct cmoe_batch {
    size_t size;
    int64_t sequences; /* S */
    const int64_t
        *first; /* [S+1] tokens of sequence i are first[i] .. first[i+1]-1; first[0] = 0 */
    const int64_t *start; /* [S] position of its first token */
    const int32_t *pages; /* [S, page_columns] page p of sequence i holds its positions from
                             p * CMOE_KV_PAGE on; entries behind the last token are not read */
    int64_t page_columns;
} cmoe_batch;

CMOE_API void cmoe_batch_default(cmoe_batch *batch, size_t size);

/* k [T, heads * key_dim], v [T, heads * value_dim] of any float type and stride -> the cache.  Pages
 * that are written must not be shared by two sequences of the batch. */
CMOE_API cmoe_status cmoe_kv_write(cmoe_stream *s, const cmoe_kv *kv, const cmoe_batch *batch,
                                   cmoe_view k, cmoe_view v, cmoe_error *err);

enum { CMOE_MASK_CAUSAL = 0, CMOE_MASK_FULL = -1 };

typedef struct cmoe_attention_options {
    size_t size;
    int64_t heads;  /* of queries: a multiple of kv.heads; query head h reads kv head h / (heads /
                       kv.heads) */
    float scale;    /* 0 (default): 1 / sqrt(key_dim) */
    int32_t mask;   /* CMOE_MASK_CAUSAL (default); CMOE_MASK_FULL: all positions of the sequence so
                       far; B > 0: block-causal, all positions before the end of the token's block
                       of B */
    int64_t window; /* w > 0: position p sees nothing before p - w + 1 */
} cmoe_attention_options;

CMOE_API void cmoe_attention_options_default(cmoe_attention_options *o, size_t size);

CMOE_API cmoe_status cmoe_attention_bytes(cmoe_ctx *ctx, const cmoe_attention_options *o,
                                          const cmoe_kv *kv, const cmoe_batch *batch, int64_t *host,
                                          int64_t *device, cmoe_error *err);

/* q [T, heads * key_dim] -> out [T, heads * value_dim], any float types and strides.  sinks [heads]
 * or not given: one more logit per head that takes part in the softmax and adds no value. */
CMOE_API cmoe_status cmoe_attention(cmoe_stream *s, const cmoe_attention_options *o, cmoe_view q,
                                    const cmoe_kv *kv, const cmoe_batch *batch, cmoe_view sinks,
                                    cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err);

/* ---- training: whole sequences, without a cache -------------------------------------------------- */

typedef struct cmoe_attention_rows_options {
    size_t size;
    int64_t heads, kv_heads; /* heads is a multiple of kv_heads */
    float scale;             /* 0 (default): 1 / sqrt(head_dim) */
    int32_t reserved;
} cmoe_attention_rows_options;

CMOE_API void cmoe_attention_rows_options_default(cmoe_attention_rows_options *o, size_t size);

CMOE_API cmoe_status cmoe_attention_rows_bytes(cmoe_ctx *ctx, const cmoe_attention_rows_options *o,
                                               int64_t tokens, int64_t head_dim, int64_t *host,
                                               int64_t *device, cmoe_error *err);

/* q [T, heads * d], k, v [T, kv_heads * d] -> out [T, heads * d], all float32, last dimension
 * contiguous.  Token t sees the keys of tokens [see[t, 0], see[t, 1]) and [see[t, 2], see[t, 3]), see
 * int32 [T, 4]; the second range begins at or behind the end of the first, either may be empty: so
 * packed documents, windows, block-causal masks and the two halves of block diffusion are all the
 * same.  A token that sees nothing gives zeros.  sinks [heads] or not given.  lse float32 [T, heads]:
 * logarithm of the sum of exponentials, sink included; what backward needs. */
CMOE_API cmoe_status cmoe_attention_rows(cmoe_stream *s, const cmoe_attention_rows_options *o,
                                         cmoe_view q, cmoe_view k, cmoe_view v, cmoe_view see,
                                         cmoe_view sinks, cmoe_view_mut out, cmoe_view_mut lse,
                                         cmoe_arena *scratch, cmoe_error *err);
/* dq, dk, dv as q, k, v, written whole; dsinks [heads] or not given.  A key's gradient is a sum over
 * the heads of its group and over ascending queries, whatever else is in the batch. */
CMOE_API cmoe_status cmoe_attention_rows_backward(
    cmoe_stream *s, const cmoe_attention_rows_options *o, cmoe_view q, cmoe_view k, cmoe_view v,
    cmoe_view see, cmoe_view sinks, cmoe_view out, cmoe_view lse, cmoe_view dout,
    const cmoe_units *units, cmoe_view_mut dq, cmoe_view_mut dk, cmoe_view_mut dv,
    cmoe_view_mut dsinks, cmoe_arena *scratch, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
