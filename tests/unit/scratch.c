/* SPDX-License-Identifier: MIT
 *
 * scratch.c - tensors may not lie in the part of the arena that a call writes over, flags are 0 or 1,
 * and what a hash layer needs when its routing is replayed.
 */
#include "unit.h"

enum { T = 3, H = 8, I = 5, E = 4, K = 2, V = 6 };

typedef struct set {
    unit_env e;
    float x[T * H], gate[E * H], w13[E * 2 * I * H], w2[E * H * I], out[T * H], weights[T * K];
    int32_t ids[T * K], table[V * K], tokens[T];
    cmoe_experts *experts;
    cmoe_arena arena;
} set;

static void fill(float *p, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
}

static set *set_open(void)
{
    set *s = calloc(1, sizeof *s);
    s->e = unit_open(2);
    fill(s->x, T * H, 1);
    fill(s->gate, E * H, 2);
    fill(s->w13, E * 2 * I * H, 3);
    fill(s->w2, E * H * I, 4);
    for (int i = 0; i < T * K; i++) {
        s->ids[i] = i % E;
        s->weights[i] = 0.5f;
    }
    for (int i = 0; i < V * K; i++)
        s->table[i] = i % E;
    for (int i = 0; i < T; i++)
        s->tokens[i] = i;
    UNIT_OK(cmoe_experts_create(
        &s->experts, s->e.ctx, NULL, cmoe_view_3d(s->w13, CMOE_F32, E, 2 * I, H),
        cmoe_view_3d(s->w2, CMOE_F32, E, H, I), cmoe_view_none(), cmoe_view_none(), &err));
    s->arena = unit_arena(1 << 20);
    return s;
}

static void set_close(set *s)
{
    free(s->arena.base);
    cmoe_experts_free(s->experts);
    unit_close(&s->e);
    free(s);
}

static cmoe_status run(set *s, const float *x, float *out, cmoe_error *err)
{
    return cmoe_experts_run(s->e.stream, s->experts, cmoe_view_2d(x, CMOE_F32, T, H),
                            cmoe_view_2d(s->ids, CMOE_I32, T, K),
                            cmoe_view_2d(s->weights, CMOE_F32, T, K), cmoe_view_none(),
                            cmoe_view_mut_2d(out, CMOE_F32, T, H), &s->arena, err);
}

static void tensors_in_scratch(void **state)
{
    (void)state;
    set *s = set_open();
    float *inside = (float *)s->arena.base;
    memcpy(inside, s->x, sizeof s->x);
    UNIT_FAILS(run(s, inside, s->out, &err), CMOE_ERR_ARG, "x lies in the free part of the arena");
    UNIT_FAILS(run(s, s->x, inside, &err), CMOE_ERR_ARG, "out lies in the free part of the arena");
    float *last = (float *)((char *)s->arena.base + s->arena.bytes) - T * H;
    memcpy(last, s->x, sizeof s->x);
    UNIT_FAILS(run(s, last, s->out, &err), CMOE_ERR_ARG, "x lies in the free part of the arena");
    /* Below `used` it is the caller's, and the result is the one from elsewhere. */
    s->arena.used = sizeof s->x;
    float want[T * H];
    UNIT_OK(run(s, s->x, want, &err));
    UNIT_OK(run(s, inside, s->out, &err));
    assert_memory_equal(s->out, want, sizeof want);
    set_close(s);
}

static void borrowed_weights(void **state)
{
    (void)state;
    set *s = set_open();
    cmoe_experts *borrowed = NULL;
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.borrow = 1;
    UNIT_OK(cmoe_experts_create(
        &borrowed, s->e.ctx, &o, cmoe_view_3d(s->w13, CMOE_F32, E, 2 * I, H),
        cmoe_view_3d(s->w2, CMOE_F32, E, H, I), cmoe_view_none(), cmoe_view_none(), &err));
    cmoe_experts *packed = s->experts;
    s->experts = borrowed;
    UNIT_FAILS(run(s, s->x, s->w13, &err), CMOE_ERR_ARG, "out overlaps w13");
    UNIT_FAILS(run(s, s->x, s->w2 + 7, &err), CMOE_ERR_ARG, "out overlaps w2");
    s->experts = packed;
    cmoe_experts_free(borrowed);
    set_close(s);
}

static void flags(void **state)
{
    (void)state;
    set *s = set_open();
    cmoe_experts *x = NULL;
    const size_t at[] = {
        offsetof(cmoe_experts_options, ungated),     offsetof(cmoe_experts_options, up_first),
        offsetof(cmoe_experts_options, interleaved), offsetof(cmoe_experts_options, transposed),
        offsetof(cmoe_experts_options, borrow),      offsetof(cmoe_experts_options, round_gate_up),
        offsetof(cmoe_experts_options, round_act)};
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        cmoe_experts_options o;
        cmoe_experts_options_default(&o, sizeof o);
        const int32_t bad = i % 2 ? 2 : -1;
        memcpy((char *)&o + at[i], &bad, sizeof bad);
        UNIT_FAILS(cmoe_experts_create(&x, s->e.ctx, &o,
                                       cmoe_view_3d(s->w13, CMOE_F32, E, 2 * I, H),
                                       cmoe_view_3d(s->w2, CMOE_F32, E, H, I), cmoe_view_none(),
                                       cmoe_view_none(), &err),
                   CMOE_ERR_RANGE, ", want 0 or 1");
    }
    set_close(s);
}

static void hash_layer(void **state)
{
    (void)state;
    set *s = set_open();
    cmoe_route_options r;
    cmoe_layer_options o;
    cmoe_layer_weights w;
    cmoe_route_options_default(&r, sizeof r);
    cmoe_layer_options_default(&o, sizeof o);
    cmoe_layer_weights_default(&w, sizeof w);
    r.topk = K;
    o.route = &r;
    w.gate = cmoe_view_2d(s->gate, CMOE_F32, E, H);
    w.hash_table = cmoe_view_2d(s->table, CMOE_I32, V, K);
    w.experts = s->experts;
    cmoe_layer *l = NULL;
    UNIT_OK(cmoe_layer_create(&l, s->e.ctx, &o, &w, &err));
    const cmoe_view x = cmoe_view_2d(s->x, CMOE_F32, T, H);
    const cmoe_view_mut out = cmoe_view_mut_2d(s->out, CMOE_F32, T, H);
    cmoe_layer_call call;
    cmoe_layer_call_default(&call, sizeof call);
    UNIT_FAILS(cmoe_layer_forward(s->e.stream, l, x, &call, out, &s->arena, &err), CMOE_ERR_ARG,
               "input_ids is not given");
    int32_t used[T * K];
    call.input_ids = cmoe_view_1d(s->tokens, CMOE_I32, T);
    call.ids = cmoe_view_mut_2d(used, CMOE_I32, T, K);
    UNIT_OK(cmoe_layer_forward(s->e.stream, l, x, &call, out, &s->arena, &err));
    assert_memory_equal(used, s->table, sizeof used);
    /* Replayed routing needs no input ids. */
    float again[T * H];
    cmoe_layer_call_default(&call, sizeof call);
    call.replay_ids = cmoe_view_2d(used, CMOE_I32, T, K);
    UNIT_OK(cmoe_layer_forward(s->e.stream, l, x, &call, cmoe_view_mut_2d(again, CMOE_F32, T, H),
                               &s->arena, &err));
    assert_memory_equal(again, s->out, sizeof again);
    /* What is of no use is still a tensor. */
    call.mask = cmoe_view_1d(s->tokens, CMOE_I32, T);
    call.mask.rank = 1 << 24;
    UNIT_FAILS(cmoe_layer_forward(s->e.stream, l, x, &call, out, &s->arena, &err), CMOE_ERR_SHAPE,
               "mask: rank 16777216");
    call.mask = cmoe_view_none();
    s->arena.used = INT64_MAX;
    UNIT_FAILS(cmoe_layer_forward(s->e.stream, l, x, &call, out, &s->arena, &err), CMOE_ERR_MEMORY,
               "layer: arena has 0 bytes left");
    s->arena.used = 0;
    cmoe_layer_free(l);
    set_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_in_scratch),
        cmocka_unit_test(borrowed_weights),
        cmocka_unit_test(flags),
        cmocka_unit_test(hash_layer),
    };
    return UNIT_RUN("unit_scratch", tests);
}
