/* SPDX-License-Identifier: MIT
 *
 * ops/lanes.h - sums over the columns of a row, and rows that are heads, for backward kernels.
 *
 * THE tree of a sum over columns is that of ops/norm.h: column h goes to lane h % 32 in ascending
 * order, then lanes j and j + 16 are added, j and j + 8, and so on down to one.
 */
#ifndef CMOE_OPS_LANES_H
#define CMOE_OPS_LANES_H

#include "core/real_plane.h"
#include "core/units.h"

enum { CMOEI_LANES = 32 };

static inline cmoei_real real_fold(cmoei_real *lane)
{
    for (int n = CMOEI_LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0];
}

/* [tokens, heads, H] of float32, columns side by side.  Row r is head r % heads of token r / heads.
 */
typedef struct cmoei_heads {
    char *data;          /* NULL: not given */
    int64_t token, head; /* bytes from one to the next */
    int32_t dtype;       /* f32; what the oracle writes is f64 */
} cmoei_heads;

/* Of a checked view [N, H] (one head) or [N, heads, H]. */
static inline cmoei_heads cmoei_heads_of(const cmoe_view *v)
{
    const int64_t bytes = v->dtype ? cmoe_dtype_bytes(v->dtype) : 0;
    return (cmoei_heads){.data = (char *)(uintptr_t)v->data,
                         .token = v->strides[0] * bytes,
                         .head = v->rank == 3 ? v->strides[1] * bytes : 0,
                         .dtype = v->dtype};
}
static inline char *cmoei_heads_at(const cmoei_heads *h, int64_t heads, int64_t row)
{
    if (heads == 1) return h->data + row * h->token;
    if (h->token == heads * h->head) return h->data + row * h->head; /* divisions are slow */
    return h->data + row / heads * h->token + row % heads * h->head;
}
static inline cmoei_plane cmoei_heads_row(const cmoei_heads *h, int64_t heads, int64_t row)
{
    return (cmoei_plane){
        .data = h->data ? cmoei_heads_at(h, heads, row) : NULL, .col = 1, .dtype = h->dtype};
}

#endif
