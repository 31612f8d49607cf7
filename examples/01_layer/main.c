/* SPDX-License-Identifier: MIT
 *
 * 01_layer - a Mixture-of-Experts layer in two calls: route chooses, experts computes.
 */
#include <stdio.h>
#include <stdlib.h>

#include <cmoe/cmoe.h>

enum { T = 4, H = 64, I = 96, E = 8, K = 2 }; /* tokens, hidden, inter, experts, top-k */

static float x[T * H], logits[T * E], w13[E * 2 * I * H], w2[E * H * I], weights[T * K], out[T * H];
static int32_t ids[T * K];

static void fill(float *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = scale * cmoe_random_normal(seed, (uint64_t)i, 0);
}

int main(void)
{
    cmoe_error err = {0};
    cmoe_ctx *ctx = NULL;
    cmoe_stream *s = NULL;
    cmoe_experts *experts = NULL;
    cmoe_arena arena = {0};
    int64_t route_bytes = 0, experts_bytes = 0, device;
    fill(x, T * H, 1, 1.0f);
    fill(logits, T * E, 2, 1.0f);
    fill(w13, E * 2 * I * H, 3, 0.125f);
    fill(w2, E * H * I, 4, 0.1f);
    cmoe_route_options o;
    cmoe_route_options_default(&o, sizeof o);
    o.topk = K;
    const cmoe_view none = cmoe_view_none(), x_view = cmoe_view_2d(x, CMOE_F32, T, H);
    const cmoe_view_mut ids_out = cmoe_view_mut_2d(ids, CMOE_I32, T, K);
    const cmoe_view_mut weights_out = cmoe_view_mut_2d(weights, CMOE_F32, T, K);

    int bad = cmoe_ctx_create(&ctx, NULL, &err) || cmoe_stream_create(&s, ctx, &err) ||
              cmoe_experts_create(&experts, ctx, NULL, cmoe_view_3d(w13, CMOE_F32, E, 2 * I, H),
                                  cmoe_view_3d(w2, CMOE_F32, E, H, I), none, none, &err) ||
              cmoe_route_bytes(&o, T, E, &route_bytes, &device, &err) ||
              cmoe_experts_bytes(experts, T, K, &experts_bytes, &device, &err);
    const int64_t bytes = route_bytes > experts_bytes ? route_bytes : experts_bytes;
    arena = cmoe_arena_make(malloc((size_t)bytes + 1), bytes);
    bad = bad ||
          cmoe_route(s, &o, cmoe_view_2d(logits, CMOE_F32, T, E), NULL, weights_out, ids_out,
                     &arena, &err) ||
          cmoe_experts_run(s, experts, x_view, cmoe_view_of(ids_out), cmoe_view_of(weights_out),
                           none, cmoe_view_mut_2d(out, CMOE_F32, T, H), &arena, &err);
    if (bad) fprintf(stderr, "01_layer: %s\n", err.text);
    for (int t = 0; t < T && !bad; t++)
        printf("token %d: experts %d and %d with weights %.3f and %.3f, out %7.3f %7.3f ...\n", t,
               (int)ids[t * K], (int)ids[t * K + 1], weights[t * K], weights[t * K + 1], out[t * H],
               out[t * H + 1]);
    free(arena.base);
    cmoe_experts_free(experts);
    cmoe_stream_free(s);
    cmoe_ctx_free(ctx);
    return bad ? 1 : 0;
}
