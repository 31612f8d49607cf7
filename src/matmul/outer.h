/* SPDX-License-Identifier: MIT
 *
 * outer.h - sums of outer products over the rows of each expert: gradients of weights.
 *
 *     C[e, i, j] = sum over rows r of expert e of a[r, i] * b[r, j]
 *
 * Of C only rectangles are wanted, each of which is a tensor of the caller's: the gradients of the
 * parts of a weight and of its low-rank terms come out of one product.
 */
#ifndef CMOE_OUTER_H
#define CMOE_OUTER_H

#include "core/units.h"
#include "matmul.h"

/* Rows [x | tail] */
typedef struct cmoei_operand {
    cmoe_view x;       /* float32 [T, n] or, grouped, [R, n]; a row is contiguous */
    int32_t grouped;   /* row r is group row r; else the token's of row r */
    int64_t n;         /* columns of x */
    const float *tail; /* [R, tail_n] by group rows, or NULL */
    int64_t tail_n;
    float scale; /* of x */
} cmoei_operand;

/* Columns [i, i + n) of a times columns [j, j + k) of b -> out [E, n, k]; bias [E, n] is the sum of
 * those columns of a.  float32, any strides; either may be not given. */
typedef struct cmoei_outer_part {
    int64_t i, n, j, k;
    cmoe_view_mut out, bias;
} cmoei_outer_part;

typedef struct cmoei_outer {
    const cmoei_matmul_kernel *kernel;
    int64_t threads, experts;
    const cmoe_groups *groups; /* NULL: one expert, row r is token r */
    int64_t rows;              /* R; at most so many while scratch is counted */
    cmoe_units units;
    bool accumulate;
    bool stream; /* as cmoei_outer_streams says when the parts are known */
    cmoei_operand a, b;
    const cmoei_outer_part *parts;
    int64_t count;
    /* scratch */
    float *packed; /* panels of b for the experts of a round */
    struct cmoei_outer_task {
        float *slab;     /* tiles of a */
        float *sums;     /* [SLAB, CMOEI_UNITS_ROWS, tile] */
        int64_t *bounds; /* [units + 1] rows of the expert */
    } * tasks;           /* [threads] */
} cmoei_outer;

/* kernel, threads, experts, rows, a.n + a.tail_n and b.n + b.tail_n must be known. */
void cmoei_outer_carve(cmoei_outer *o, cmoei_carver *c);
/* Inside a region, by all of its tasks, whose item counter is at 0. */
void cmoei_outer_run(const cmoei_outer *o, cmoei_team *team, int32_t index, int32_t count);
bool cmoei_outer_streams(const cmoei_outer *o);
int64_t cmoei_outer_items(const cmoei_outer *o); /* for cmoei_region: more tasks are of no use */

/* Token of group row r, which is not padding. */
static inline int64_t cmoei_row_token(const cmoe_groups *g, int64_t r)
{
    return g ? g->slots[r] / g->topk : r;
}
/* Rows of expert e without the padding at its end. */
static inline void cmoei_expert_rows(const cmoe_groups *g, int64_t rows, int64_t e, int64_t *begin,
                                     int64_t *end)
{
    *begin = g ? g->first[e] : 0;
    *end = g ? g->first[e + 1] : rows;
    while (g && *end > *begin && g->slots[*end - 1] < 0)
        --*end;
}

#endif
