/* SPDX-License-Identifier: MIT
 *
 * backward.h - the table of kernels that turn gradients of routing weights and of auxiliary losses
 * into those of the logits, a token at a time.
 *
 * They need no memory: what a token needs of its other logits are a maximum and a sum, taken piece
 * by piece.  All rows give equal bits.
 */
#ifndef CMOE_ROUTE_BACKWARD_H
#define CMOE_ROUTE_BACKWARD_H

#include "route_kernel.h"

/* dlogits is real [T, E]: float32, and double in the oracle; any address. */
typedef struct cmoei_route_slope {
    cmoe_view logits; /* [T, E] */
    char *dlogits;    /* NULL: not wanted (auxiliary losses only) */
    int64_t step;     /* bytes from row to row */
} cmoei_route_slope;

typedef struct cmoei_route_back {
    cmoe_route_options o; /* checked */
    cmoei_route_slope slope;
    cmoe_view ids;          /* [T, K], -1: none */
    cmoe_view dweights;     /* [T, K] */
    cmoe_view expert_scale; /* [E], finite; or not given */
} cmoei_route_back;

/* Gradient of the balance loss over some experts, as cmoei_route_share counts them. */
typedef struct cmoei_route_pull {
    cmoei_route_slope slope;
    int64_t first, count;
    const double *load; /* [count] */
    double scale;
} cmoei_route_pull;

typedef struct cmoei_route_back_kernel {
    cmoei_variant variant;
    /* dlogits[t], written whole */
    void (*token)(const cmoei_route_back *a, int64_t t);
    /* dlogits[t, e] += scale * p[t, e] * (load[e] - mean) of the wanted experts */
    void (*pull)(const cmoei_route_pull *a, int64_t t, double mean);
    /* z = logsumexp(logits[t]), and dlogits[t] += scale * 2 z * dz */
    double (*z)(const cmoei_route_slope *a, int64_t t, double scale);
} cmoei_route_back_kernel;

extern const cmoei_table cmoei_route_back_table;

#define CMOEI_ROUTE_BACK_DECLARE(isa)                                                    \
    void cmoei_route_back_token_##isa(const cmoei_route_back *a, int64_t t);             \
    void cmoei_route_back_pull_##isa(const cmoei_route_pull *a, int64_t t, double mean); \
    double cmoei_route_back_z_##isa(const cmoei_route_slope *a, int64_t t, double scale)

CMOEI_ROUTE_BACK_DECLARE(ref);
CMOEI_ROUTE_BACK_DECLARE(avx2);
CMOEI_ROUTE_BACK_DECLARE(avx512);
CMOEI_ROUTE_BACK_DECLARE(f64); /* the tests' oracle */

/* 0 in `mask` marks padding; none given: every token counts. */
static inline bool cmoei_route_counts(const cmoe_view *mask, int64_t t)
{
    return !cmoei_given(mask) || cmoei_load_index(cmoei_at(mask, t, 0), mask->dtype) != 0;
}

#endif
