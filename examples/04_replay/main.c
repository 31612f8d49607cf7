/* SPDX-License-Identifier: MIT
 *
 * 04_replay - a cmoe_layer with a DeepSeek-like router: record which experts were chosen, count their
 * load, and run the same tokens again with the recorded routing forced.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmoe/cmoe.h>

enum { T = 8, H = 64, I = 48, E = 8, K = 2 }; /* tokens, hidden, inter, experts, top-k */

static float x[T * H], gate[E * H], bias[E], w13[E * 2 * I * H], w2[E * H * I];
static float out[T * H], again[T * H], weights[T * K];
static int32_t ids[T * K];
static int64_t load[E];

static void fill(float *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = scale * cmoe_random_normal(seed, (uint64_t)i, 0);
}

/* Weights of the layer: sigmoid scores, a bias for the choice only, 2 of 4 groups, shares that sum to
 * 2.5.  Everything that can be wrong with the combination is found here. */
static cmoe_status make_layer(cmoe_layer **layer, cmoe_ctx *ctx, const cmoe_experts *experts,
                              cmoe_error *err)
{
    cmoe_route_options route;
    cmoe_layer_options options;
    cmoe_layer_weights w;
    cmoe_route_options_default(&route, sizeof route);
    cmoe_layer_options_default(&options, sizeof options);
    cmoe_layer_weights_default(&w, sizeof w);
    route.topk = K;
    route.scoring = CMOE_SCORE_SIGMOID;
    route.groups = 4;
    route.topk_groups = 2;
    route.scale = 2.5f;
    options.route = &route;
    w.gate = cmoe_view_2d(gate, CMOE_F32, E, H);
    w.bias = cmoe_view_1d(bias, CMOE_F32, E);
    w.experts = experts;
    return cmoe_layer_create(layer, ctx, &options, &w, err);
}

int main(void)
{
    cmoe_error err = {0};
    cmoe_ctx *ctx = NULL;
    cmoe_stream *s = NULL;
    cmoe_experts *experts = NULL;
    cmoe_layer *layer = NULL;
    cmoe_arena arena = {0};
    int64_t bytes = 0;
    const cmoe_view none = cmoe_view_none(), in = cmoe_view_2d(x, CMOE_F32, T, H);
    fill(x, T * H, 1, 1.0f);
    fill(gate, E * H, 2, 0.2f);
    fill(bias, E, 3, 0.1f);
    fill(w13, E * 2 * I * H, 4, 0.125f);
    fill(w2, E * H * I, 5, 0.15f);

    int bad = cmoe_ctx_create(&ctx, NULL, &err) || cmoe_stream_create(&s, ctx, &err) ||
              cmoe_experts_create(&experts, ctx, NULL, cmoe_view_3d(w13, CMOE_F32, E, 2 * I, H),
                                  cmoe_view_3d(w2, CMOE_F32, E, H, I), none, none, &err) ||
              make_layer(&layer, ctx, experts, &err) ||
              cmoe_layer_bytes(layer, T, &bytes, NULL, &err);
    arena = cmoe_arena_make(malloc((size_t)bytes + 1), bytes);

    cmoe_layer_call record, replay;
    cmoe_layer_call_default(&record, sizeof record);
    record.ids = cmoe_view_mut_2d(ids, CMOE_I32, T, K);
    record.weights = cmoe_view_mut_2d(weights, CMOE_F32, T, K);
    record.load = cmoe_view_mut_1d(load, CMOE_I64, E);
    cmoe_layer_call_default(&replay, sizeof replay);
    replay.replay_ids = cmoe_view_of(record.ids); /* weights come from the live scores */
    bad = bad ||
          cmoe_layer_forward(s, layer, in, &record, cmoe_view_mut_2d(out, CMOE_F32, T, H), &arena,
                             &err) ||
          cmoe_layer_forward(s, layer, in, &replay, cmoe_view_mut_2d(again, CMOE_F32, T, H), &arena,
                             &err);
    if (bad) fprintf(stderr, "04_replay: %s\n", err.text);
    for (int t = 0; t < T && !bad; t++)
        printf("token %d: experts %d %d, weights %.3f %.3f\n", t, (int)ids[t * K],
               (int)ids[t * K + 1], weights[t * K], weights[t * K + 1]);
    for (int e = 0; e < E && !bad; e++)
        printf("%s%d", e ? " " : "load of each expert: ", (int)load[e]);
    if (!bad)
        printf("\nreplayed: %s\n", memcmp(out, again, sizeof out) ? "other bits" : "the same bits");
    free(arena.base);
    cmoe_layer_free(layer);
    cmoe_experts_free(experts);
    cmoe_stream_free(s);
    cmoe_ctx_free(ctx);
    return bad ? 1 : 0;
}
