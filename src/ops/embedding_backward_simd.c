/* SPDX-License-Identifier: MIT
 *
 * embedding_backward_simd.c - the gradient of a table of embeddings, vectorised by the compiler.
 *
 * Most ids of a large vocabulary have no token, most others one.  So a row without tokens is only
 * cleared, and units without tokens of this id are not added: each would add 0, which changes
 * nothing but -0 to 0, and that one addition is made at the end.  -0 is possible: a fused
 * multiply-add of 0 and a tiny negative product rounds to it.
 */
#include "ops/embedding_backward.h"

void CMOEI_SIMD(cmoei_embedding_backward)(const cmoei_embedding_backward_args *a, int64_t id,
                                          int64_t id_end);

enum { BLOCK = CMOEI_BLOCK };

static inline void add(float *restrict sum, const cmoei_f32 *restrict dout, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] = fmaf(dout[i], scale, sum[i]);
}

/* Tokens [i, end) of the order, into sum: a chain that starts at 0. */
static inline void chain(const cmoei_embedding_backward_args *a, int64_t i, int64_t end, int64_t h,
                         int64_t n, float *restrict sum)
{
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (; i < end; i++) {
        const char *dout = cmoei_plane_at(&a->dout, a->order[i], 0);
        add(sum, (const cmoei_f32 *)(const void *)dout + h, a->scale, n);
    }
}

/* A unit that has tokens of this id, and where they are in the order. */
typedef struct leaf {
    int64_t unit, begin, end;
} leaf;

static int leaves(const cmoei_embedding_backward_args *a, int64_t id, leaf *found)
{
    int n = 0;
    int64_t i = a->first[id], u = 0;
    const int64_t end = a->first[id + 1];
    while (i < end) {
        while (a->order[i] >= a->units.first[u + 1])
            u++;
        found[n].unit = u;
        found[n].begin = i;
        while (i < end && a->order[i] < a->units.first[u + 1])
            i++;
        found[n++].end = i;
    }
    return n;
}

/* Sums stand on a stack, each with a unit of its subtree; the two on top become one when the next
 * leaf lies outside the smallest subtree that holds both.  Those subtrees shrink upwards, so there are
 * never more than CMOEI_UNITS_ROWS. */
static inline void block(const cmoei_embedding_backward_args *a, int64_t id, const leaf *found,
                         int count, int64_t h, int64_t n)
{
    float sum[CMOEI_UNITS_ROWS * BLOCK];
    int64_t unit[CMOEI_UNITS_ROWS];
    int depth = 0;
    for (int l = 0; l < count; l++) {
        chain(a, found[l].begin, found[l].end, h, n, sum + depth * BLOCK);
        unit[depth++] = found[l].unit;
        while (depth > 1) {
            const int64_t both = unit[depth - 2] ^ unit[depth - 1];
            const int64_t next = l + 1 < count ? unit[depth - 1] ^ found[l + 1].unit : INT64_MAX;
            if (next <= both) break; /* the next leaf joins the top one first */
            depth--;
            for (int64_t i = 0; i < n; i++)
                sum[(depth - 1) * BLOCK + i] += sum[depth * BLOCK + i];
            unit[depth - 1] = unit[depth];
        }
    }
    if (count < a->units.count) {
        for (int64_t i = 0; i < n; i++)
            sum[i] += 0.0f;
    }
    cmoei_block_store(&a->dtable, id, h, sum, n);
}

void CMOEI_SIMD(cmoei_embedding_backward)(const cmoei_embedding_backward_args *a, int64_t id,
                                          int64_t id_end)
{
    for (; id < id_end; id++) {
        leaf found[CMOE_UNITS_MOST];
        const int count = leaves(a, id, found);
        if (count == 0) {
            memset(cmoei_plane_at(&a->dtable, id, 0), 0, (size_t)a->hidden * sizeof(float));
            continue;
        }
        for (int64_t h = 0; h < a->hidden; h += BLOCK)
            block(a, id, found, count, h, CMOEI_MIN(a->hidden - h, BLOCK));
    }
}
