/* SPDX-License-Identifier: MIT
 *
 * route_kernel.h - the table of route kernels: one token's logits in, its ids and weights out.
 *
 * A kernel sees a single token, so a token cannot depend on its neighbours, on where it stands in
 * the batch or on the thread that has it.  All rows walk the same trees (route_token.h) and give
 * equal bits: the experts a token goes to are the same on every instruction set.
 */
#ifndef CMOE_ROUTE_KERNEL_H
#define CMOE_ROUTE_KERNEL_H

#include "core/kernel.h"

#include "cmoe/route.h"

/* What is the same for all tokens of a call.  Options are checked; topk_groups is never 0. */
typedef struct cmoei_route_plan {
    cmoe_route_options o;
    int64_t experts;           /* E */
    const float *bias;         /* [E], sanitised; NULL: none */
    const float *expert_scale; /* [E], finite; NULL: none */
    bool forced;               /* the ids come from outside: only weights are wanted */
} cmoei_route_plan;

/* Scratch of one token at a time; real is float, and double in the oracle. */
typedef struct cmoei_route_work {
    void *score;   /* real [E] */
    void *choice;  /* real [E] selection scores */
    void *group;   /* real [groups] */
    int32_t *key;  /* [E rounded up to lanes] */
    int32_t *best; /* [2, lanes] best key of a column, and whose it is */
} cmoei_route_work;

/* Columns that a token's experts are dealt to, for finding its best ones: see route_simd.c.  A
 * power of two, about twice the square root of E. */
static inline int64_t cmoei_route_lanes(int64_t experts)
{
    int64_t lanes = 16;
    while (lanes < INT32_MAX / 2 && lanes * lanes / 4 < experts)
        lanes *= 2;
    return lanes;
}

/* The balance loss needs the probabilities of a few experts, weighted: see balance.c. */
typedef struct cmoei_route_share {
    cmoe_view logits;   /* [T, E] */
    int64_t first;      /* of the experts wanted; a multiple of CMOEI_ROUTE_PIECE */
    int64_t count;      /* how many */
    const double *load; /* [count] */
} cmoei_route_share;

enum { CMOEI_ROUTE_PIECE = 256 }; /* logits on the stack at a time; a multiple of 16 */

typedef struct cmoei_route_kernel {
    cmoei_variant variant;
    /* logits [E] -> ids [K] (or from them, when the plan says forced), weights real [K] */
    void (*token)(const cmoei_route_plan *p, const cmoei_route_work *work, const float *logits,
                  int32_t *ids, void *weights);
    /* sum over the wanted experts of load[e] * softmax(logits[t])[e] */
    double (*share)(const cmoei_route_share *a, int64_t t);
} cmoei_route_kernel;

extern const cmoei_table cmoei_route_table;

#define CMOEI_ROUTE_DECLARE(isa)                                                          \
    void cmoei_route_token_##isa(const cmoei_route_plan *p, const cmoei_route_work *work, \
                                 const float *logits, int32_t *ids, void *weights);       \
    double cmoei_route_share_##isa(const cmoei_route_share *a, int64_t t)

CMOEI_ROUTE_DECLARE(ref);
CMOEI_ROUTE_DECLARE(avx2);
CMOEI_ROUTE_DECLARE(avx512);
CMOEI_ROUTE_DECLARE(f64); /* the tests' oracle */

#endif
