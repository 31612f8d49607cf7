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

#ifdef __cplusplus
}
#endif
#endif
