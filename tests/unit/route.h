/* SPDX-License-Identifier: MIT
 *
 * route.h - calling cmoe_route from a test.
 */
#ifndef CMOE_TEST_ROUTE_H
#define CMOE_TEST_ROUTE_H

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "unit.h"

static inline cmoe_route_options options(int64_t topk, int32_t scoring)
{
    cmoe_route_options o;
    cmoe_route_options_default(&o, sizeof o);
    o.topk = topk;
    o.scoring = scoring;
    return o;
}

static inline cmoe_route_inputs inputs(void)
{
    cmoe_route_inputs in;
    cmoe_route_inputs_default(&in, sizeof in);
    return in;
}

typedef struct result {
    int64_t tokens, width;
    float *weights; /* [T, K + n] */
    int32_t *ids;   /* [T, K + n] */
} result;

static inline void result_free(result *r)
{
    free(r->weights);
    free(r->ids);
}

/* With an arena of exactly the size asked for; fails the test on an error. */
static inline result route_in(cmoe_stream *s, const cmoe_route_options *o, cmoe_view logits,
                              const cmoe_route_inputs *in, int64_t tokens, int64_t experts)
{
    int64_t host = -1, device = -1;
    UNIT_OK(cmoe_route_bytes(o, tokens, experts, &host, &device, &err));
    assert_int_equal(device, 0);
    result r = {.tokens = tokens, .width = o->topk + o->shared};
    r.weights = malloc((size_t)(tokens * r.width * 4 + 1));
    r.ids = malloc((size_t)(tokens * r.width * 4 + 1));
    cmoe_arena arena = unit_arena(host);
    UNIT_OK(cmoe_route(s, o, logits, in, cmoe_view_mut_2d(r.weights, CMOE_F32, tokens, r.width),
                       cmoe_view_mut_2d(r.ids, CMOE_I32, tokens, r.width), &arena, &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
    return r;
}

static inline result route(const cmoe_route_options *o, const float *logits,
                           const cmoe_route_inputs *in, int64_t tokens, int64_t experts)
{
    unit_env e = unit_open(1);
    result r =
        route_in(e.stream, o, cmoe_view_2d(logits, CMOE_F32, tokens, experts), in, tokens, experts);
    unit_close(&e);
    return r;
}

/* One token: ids must be these, weights these within a few roundings. */
static inline void one_token(const cmoe_route_options *o, const float *logits,
                             const cmoe_route_inputs *in, int64_t experts, const int32_t *ids,
                             const double *weights)
{
    result r = route(o, logits, in, 1, experts);
    for (int64_t k = 0; k < r.width; k++) {
        assert_int_equal(r.ids[k], ids[k]);
        if (!(fabs(r.weights[k] - weights[k]) <= 16 * FLT_EPSILON * fabs(weights[k])))
            fail_msg("weights[%d] = %.9g, want %.9g", (int)k, (double)r.weights[k], weights[k]);
    }
    result_free(&r);
}

static inline float *normals(uint64_t seed, int64_t n, float scale)
{
    float *x = malloc((size_t)(n * 4 + 1));
    for (int64_t i = 0; i < n; i++)
        x[i] = scale * cmoe_random_normal(seed, (uint64_t)i, 0);
    return x;
}

#endif
