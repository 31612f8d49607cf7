/* SPDX-License-Identifier: MIT
 *
 * ops/kv.h - the cache of keys and values and the batch that reads it: checks and addresses.
 */
#ifndef CMOE_OPS_KV_H
#define CMOE_OPS_KV_H

#include "cmoe/attention.h"
#include "core/core.h"

/* Copies and checks all but the memory; page_stride 0 becomes what it stands for. */
cmoe_status cmoei_kv_read(cmoe_kv *out, const cmoe_kv *kv, cmoe_error *err);
/* `base` is there, aligned, and large enough to address. */
cmoe_status cmoei_kv_check_base(const cmoe_kv *kv, cmoe_error *err);
/* All of the cache as one tensor, for checks of overlap. */
cmoe_view_mut cmoei_kv_memory(const cmoe_kv *kv);

/* Bytes from a page to the keys [key_dim, CMOE_KV_PAGE] and the values [CMOE_KV_PAGE, value_dim] of
 * a head. */
static inline int64_t cmoei_kv_keys_at(const cmoe_kv *kv, int64_t head)
{
    return head * kv->key_dim * CMOE_KV_PAGE * cmoe_dtype_bytes(kv->format);
}
static inline int64_t cmoei_kv_values_at(const cmoe_kv *kv, int64_t head)
{
    return cmoei_kv_keys_at(kv, kv->heads) +
           head * kv->value_dim * CMOE_KV_PAGE * cmoe_dtype_bytes(kv->format);
}

/* Copies and checks all but the pages. */
cmoe_status cmoei_batch_read(cmoe_batch *out, const cmoe_batch *batch, cmoe_error *err)
    CMOE_PRIV(batch_read);
/* Pages [page, page_end) of sequence i are in the table and in the cache. */
cmoe_status cmoei_batch_check_pages(const cmoe_batch *b, const cmoe_kv *kv, int64_t i, int64_t page,
                                    int64_t page_end, cmoe_error *err) CMOE_PRIV(batch_check_pages);
/* The pages that cmoe_kv_write writes to are in the cache, and no two of them are the same. */
cmoe_status cmoei_batch_check_written(const cmoe_batch *b, const cmoe_kv *kv, cmoe_error *err)
    CMOE_PRIV(batch_check_written);
/* `out` lies on none of the batch's tables. */
cmoe_status cmoei_batch_check_apart(const cmoe_batch *b, const cmoe_view_mut *out, const char *name,
                                    cmoe_error *err) CMOE_PRIV(batch_check_apart);

static inline int64_t cmoei_batch_tokens(const cmoe_batch *b)
{
    return b->sequences > 0 ? b->first[b->sequences] : 0;
}
static inline int64_t cmoei_batch_count(const cmoe_batch *b, int64_t i)
{
    return b->first[i + 1] - b->first[i];
}
/* One past the last position of sequence i. */
static inline int64_t cmoei_batch_end(const cmoe_batch *b, int64_t i)
{
    return b->start[i] + cmoei_batch_count(b, i);
}

#endif
