/* SPDX-License-Identifier: MIT
 *
 * 02_steps - the same layer step by step: route, align, expert rows, combine.
 *
 * Each step is a public function of its own; an engine that has its own router, or wants the expert
 * rows before they are added up, calls the ones it needs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmoe/cmoe.h>

enum { T = 6, H = 64, I = 96, E = 5, K = 2 };

static float x[T * H], logits[T * E], w13[E * 2 * I * H], w2[E * H * I];
static float weights[T * K], rows[T * K * H], out[T * H], at_once[T * H];
static int32_t ids[T * K];

static void must(cmoe_status status, const cmoe_error *err)
{
    if (status == CMOE_OK) return;
    fprintf(stderr, "02_steps: %s: %s\n", cmoe_status_name(status), err->text);
    exit(1);
}

static void fill(float *p, int64_t n, uint64_t seed, float scale)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = scale * cmoe_random_normal(seed, (uint64_t)i, 0);
}

int main(void)
{
    static char memory[1 << 20]; /* enough for all steps; cmoe_<step>_bytes says how much */
    cmoe_arena arena = cmoe_arena_make(memory, sizeof memory);
    cmoe_error err = {0};
    cmoe_ctx *ctx;
    cmoe_stream *s;
    cmoe_experts *experts;
    const cmoe_view none = cmoe_view_none(), x_view = cmoe_view_2d(x, CMOE_F32, T, H);
    const cmoe_view_mut ids_view = cmoe_view_mut_2d(ids, CMOE_I32, T, K);
    const cmoe_view_mut weights_view = cmoe_view_mut_2d(weights, CMOE_F32, T, K);
    const cmoe_view_mut rows_view = cmoe_view_mut_2d(rows, CMOE_F32, T * K, H);

    fill(x, T * H, 1, 1.0f);
    fill(logits, T * E, 2, 1.0f);
    fill(w13, E * 2 * I * H, 3, 0.125f);
    fill(w2, E * H * I, 4, 0.1f);
    must(cmoe_ctx_create(&ctx, NULL, &err), &err);
    must(cmoe_stream_create(&s, ctx, &err), &err);
    must(cmoe_experts_create(&experts, ctx, NULL, cmoe_view_3d(w13, CMOE_F32, E, 2 * I, H),
                             cmoe_view_3d(w2, CMOE_F32, E, H, I), none, none, &err),
         &err);

    /* 1. route: which experts, with which weights.  Best first. */
    cmoe_route_options route;
    cmoe_route_options_default(&route, sizeof route);
    route.topk = K;
    must(cmoe_route(s, &route, cmoe_view_2d(logits, CMOE_F32, T, E), NULL, weights_view, ids_view,
                    &arena, &err),
         &err);
    for (int t = 0; t < T; t++)
        printf("token %d -> %d (%.3f), %d (%.3f)\n", t, (int)ids[t * K], weights[t * K],
               (int)ids[t * K + 1], weights[t * K + 1]);

    /* 2. align: rows stand by expert, then token, then slot.  The groups stay in the arena. */
    cmoe_align_options align;
    cmoe_groups groups;
    cmoe_align_options_default(&align, sizeof align);
    align.experts = E;
    must(cmoe_align(s, &align, cmoe_view_of(ids_view), &groups, &arena, &err), &err);
    for (int e = 0; e < E; e++) {
        printf("expert %d: tokens", e);
        for (int64_t r = groups.first[e]; r < groups.first[e + 1]; r++)
            printf(" %d", (int)groups.slots[r] / K);
        printf("\n");
    }

    /* 3. experts: one row for every slot, in the order of the groups. */
    must(cmoe_experts_rows(s, experts, x_view, 0, &groups, none, rows_view, &arena, &err), &err);

    /* 4. combine: out[t] = sum over k of weights[t, k] * row of slot (t, k). */
    must(cmoe_combine(s, NULL, cmoe_view_of(rows_view), cmoe_view_of(weights_view), &groups, none,
                      cmoe_view_mut_2d(out, CMOE_F32, T, H), &arena, &err),
         &err);

    /* All of 2 to 4 in one call: the same bits. */
    must(cmoe_experts_run(s, experts, x_view, cmoe_view_of(ids_view), cmoe_view_of(weights_view),
                          none, cmoe_view_mut_2d(at_once, CMOE_F32, T, H), &arena, &err),
         &err);
    printf("step by step and at once: %s\n",
           memcmp(out, at_once, sizeof out) ? "DIFFERENT" : "the same bits");

    cmoe_experts_free(experts);
    cmoe_stream_free(s);
    cmoe_ctx_free(ctx);
    return 0;
}
