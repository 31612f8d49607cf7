/* SPDX-License-Identifier: MIT
 *
 * ops/attention_kernel.h - the attention kernels: one part of the keys, and the merging of parts.
 *
 * THE tree, the same in every kernel and for one query row as for many.  A block is a page: keys
 * 64 b .. 64 b + 63 of the sequence, whatever of them a row sees.
 *
 *   score of a key   one chain of fused multiply-adds over ascending dims, from 0; times scale
 *   block            m' = max(m, scores); p = exp(score - m'), 0 where the row does not see
 *                    l = fma(l, exp(m - m'), 16 partial sums of p, key j to sum j % 16, folded
 *                        8, 4, 2, 1)
 *                    acc = acc * exp(m - m'), then one fused multiply-add a visible key, ascending
 *   part             blocks in ascending order, from m = -infinity, l = 0, acc = 0
 *   row              M = max of all m and the sink; l and acc are sums of fused multiply-adds with
 *                    exp(m - M) over its parts in ascending order, then the sink; out = acc / l
 *
 * A NaN never becomes a maximum (it is no larger than anything), but reaches l and acc through its
 * p.  Where the maximum is -infinity, 0 stands for it, so that exp(-infinity) is 0 and not NaN;
 * where l is 0, out is 0.
 */
#ifndef CMOE_OPS_ATTENTION_KERNEL_H
#define CMOE_OPS_ATTENTION_KERNEL_H

#include "cmoe/attention.h"
#include "core/kernel.h"

/* All query rows read one kv head of one sequence.  Row r sees keys [lo[r], hi[r]), of which the
 * kernel takes those in [key, key_end), a part; a row that sees none of them gets (-infinity, 0, 0).
 * What lies in a page outside of that may be loaded, but cannot be seen in any result. */
typedef struct cmoei_attention_args {
    const float *q;         /* [rows, key_dim] */
    const int64_t *lo, *hi; /* [rows] */
    void *m, *l;            /* [rows] cmoei_real */
    void *acc;              /* [rows, value_dim] cmoei_real */
    const char *base;       /* of the cache */
    const int32_t *pages;   /* of the sequence */
    int64_t page_stride;    /* bytes */
    int64_t keys, values;   /* bytes from a page to the keys and the values of this head */
    int64_t rows, key_dim, value_dim;
    int64_t key, key_end;
    int32_t format; /* CMOE_F32, CMOE_BF16 */
    float scale;
} cmoei_attention_args;

/* One row: its part i has m[i * step], l[i * step], acc[i * step * value_dim ...]. */
typedef struct cmoei_attention_parts {
    const void *m, *l, *acc; /* cmoei_real */
    int64_t parts, step, value_dim;
    const float *sink; /* NULL: none */
    void *out;         /* [value_dim] cmoei_real */
} cmoei_attention_parts;

typedef struct cmoei_attention_kernel {
    cmoei_variant variant;
    void (*part)(const cmoei_attention_args *a);
    void (*merge)(const cmoei_attention_parts *p);
} cmoei_attention_kernel;

extern const cmoei_table cmoei_attention_table;

enum { CMOEI_ATTENTION_LANES = 16 };

/* What of page `page` row r sees, inside of the part: keys [*low, *high) of the page. */
static inline bool cmoei_attention_sees(const cmoei_attention_args *a, int64_t r, int64_t page,
                                        int32_t *low, int32_t *high)
{
    const int64_t first = page * CMOE_KV_PAGE;
    const int64_t from = CMOEI_MAX(CMOEI_MAX(a->lo[r], a->key), first);
    const int64_t to = CMOEI_MIN(CMOEI_MIN(a->hi[r], a->key_end), first + CMOE_KV_PAGE);
    if (from >= to) return false;
    *low = (int32_t)(from - first);
    *high = (int32_t)(to - first);
    return true;
}

static inline const char *cmoei_attention_page(const cmoei_attention_args *a, int64_t page)
{
    return a->base + a->pages[page] * a->page_stride;
}

#endif
