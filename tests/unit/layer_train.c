/* SPDX-License-Identifier: MIT
 *
 * layer_train.c - what cmoe_layer_train refuses, at create and in a step, with which text.  Values are
 * checked in grad/layer.c.
 */
#include "../grad/moe.h"
#include "unit.h"

enum { T = 6, K = 2, E = 4, H = 10, I = 4, S = 3 };

static const layer_form form = {{T, K, E, H, I, CMOE_ACT_SILU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
                                CMOE_SCORE_SOFTMAX,
                                1,
                                0,
                                0,
                                S,
                                0,
                                1,
                                0,
                                1,
                                1,
                                0,
                                0,
                                0,
                                0,
                                0,
                                1};

typedef struct world {
    unit_env env;
    kc c;
    moe m;
    cmoe_layer_train *l;
    cmoe_saved *saved;
    cmoe_arena keep, scratch;
    float out[T * H];
} world;

static void open_world(world *w)
{
    memset(w, 0, sizeof *w);
    w->env = unit_open(2);
    kc_begin(&w->c, "layer_train");
    layer_make(&w->c, &w->m, &form);
    moe_open(&w->m, w->env.stream);
    w->l = layer_open(&w->m, w->env.ctx);
    int64_t keep = 0, host = 0;
    UNIT_OK(cmoe_layer_train_bytes(w->l, T, &keep, &host, NULL, &err));
    w->keep = unit_arena(keep);
    w->scratch = unit_arena(host);
}

static void close_world(world *w)
{
    free(w->keep.base);
    free(w->scratch.base);
    cmoe_layer_train_free(w->l);
    moe_close(&w->m);
    moe_free(&w->m);
    unit_close(&w->env);
}

/* ---- create ---------------------------------------------------------------------------------- */

static cmoe_layer_train_options options_of(const world *w)
{
    cmoe_layer_train_options o;
    cmoe_layer_train_options_default(&o, sizeof o);
    o.route = &w->m.ro;
    o.gate = w->m.gate.t;
    o.w13 = w->m.w13.t;
    o.w2 = w->m.w2.t;
    o.shared13 = w->m.s13.t;
    o.shared2 = w->m.s2.t;
    o.shared_gate = w->m.sg.t;
    return o;
}

#define REFUSED(change, status, text)                                                  \
    do {                                                                               \
        cmoe_layer_train_options o = options_of(&w);                                   \
        cmoe_layer_train *made = NULL;                                                 \
        change;                                                                        \
        UNIT_FAILS(cmoe_layer_train_create(&made, w.env.ctx, &o, &err), status, text); \
        assert_null(made);                                                             \
    } while (0)

static void create_parts(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    cmoe_trainable_options bf16;
    cmoe_trainable_options_default(&bf16, sizeof bf16);
    bf16.format = CMOE_BF16;
    cmoe_trainable *narrow = NULL, *low = NULL, *foreign = NULL;
    unit_env other = unit_open(1);
    UNIT_OK(cmoe_trainable_create(&narrow, w.env.ctx, NULL, 1, 2, H, &err));
    UNIT_OK(cmoe_trainable_create(&low, w.env.ctx, &bf16, 1, E, H, &err));
    UNIT_OK(cmoe_trainable_create(&foreign, other.ctx, NULL, 1, E, H, &err));
    REFUSED(o.gate = NULL, CMOE_ERR_ARG, "gate is NULL, want a trainable");
    REFUSED(o.w13 = NULL, CMOE_ERR_ARG, "w13 is NULL, want a trainable");
    REFUSED(o.w2 = NULL, CMOE_ERR_ARG, "w2 is NULL, want a trainable");
    REFUSED(o.gate = narrow, CMOE_ERR_SHAPE,
            "gate is [1, 2, 10], want [1, 4, 10] (1, experts, hidden)");
    REFUSED(o.gate = low, CMOE_ERR_DTYPE, "gate computes in bf16, want f32");
    REFUSED(o.gate = foreign, CMOE_ERR_ARG, "gate belongs to another context");
    REFUSED(o.w2 = o.shared2, CMOE_ERR_SHAPE, "w2: [1, 10, 3], want [4, 10, 4]");
    REFUSED(o.shared13 = NULL, CMOE_ERR_ARG, "shared2 is given without shared13, want both");
    REFUSED(o.shared2 = NULL, CMOE_ERR_ARG, "shared13 is given without shared2, want both");
    REFUSED(o.shared13 = o.shared2 = NULL, CMOE_ERR_ARG,
            "shared_gate is given without a shared expert");
    REFUSED((o.shared13 = o.w13, o.shared2 = o.w2), CMOE_ERR_SHAPE,
            "shared13 is [4, 8, 10], want [1, 8, 10]");
    REFUSED(o.shared_gate = narrow, CMOE_ERR_SHAPE, "shared_gate is [1, 2, 10], want [1, 1, 10]");
    cmoe_trainable_free(narrow);
    cmoe_trainable_free(low);
    cmoe_trainable_free(foreign);
    unit_close(&other);
    close_world(&w);
}

static void create_options(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    const float vector[E] = {1, 2, NAN, 4};
    cmoe_route_options route = w.m.ro;
    cmoe_experts_options experts = w.m.eo;
    cmoe_layer_train *l = NULL;
    const cmoe_layer_train_options good = options_of(&w);
    UNIT_FAILS(cmoe_layer_train_create(NULL, w.env.ctx, &good, &err), CMOE_ERR_ARG, "out is NULL");
    UNIT_FAILS(cmoe_layer_train_create(&l, NULL, &good, &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoe_layer_train_create(&l, w.env.ctx, NULL, &err), CMOE_ERR_ARG, "route is NULL");
    REFUSED(o.route = NULL, CMOE_ERR_ARG, "options.route is NULL");
    REFUSED(o.shared_first = 2, CMOE_ERR_RANGE, "shared_first = 2, want 0 or 1");
    REFUSED(o.combine_scale = 0, CMOE_ERR_RANGE, "combine_scale = 0, want a finite number");
    REFUSED(o.combine_scale = INFINITY, CMOE_ERR_RANGE, "combine_scale = inf");
    REFUSED((route.topk = E + 1, o.route = &route), CMOE_ERR_RANGE, "topk = 5, want 1 to 4");
    route = w.m.ro;
    REFUSED((route.groups = 4, route.topk_groups = 1, o.route = &route), CMOE_ERR_RANGE,
            "topk = 2, want at most 1, the experts of 1 of 4 groups");
    route = w.m.ro;
    REFUSED((route.shared = 1, o.route = &route), CMOE_ERR_UNSUPPORTED, "route.shared = 1, want 0");
    REFUSED((experts.first_expert = 1, o.experts = &experts), CMOE_ERR_UNSUPPORTED,
            "first_expert = 1, want 0");
    REFUSED(o.bias = cmoe_view_1d(vector, CMOE_F32, E - 1), CMOE_ERR_SHAPE,
            "bias: dims[0] = 3, want 4");
    REFUSED(o.per_expert_scale = cmoe_view_1d(vector, CMOE_F16, E), CMOE_ERR_DTYPE,
            "per_expert_scale");
    REFUSED(o.per_expert_scale = cmoe_view_1d(vector, CMOE_F32, E), CMOE_ERR_RANGE,
            "per_expert_scale[2] = nan");
    cmoe_layer_train_free(NULL);
    close_world(&w);
}

/* ---- a step ---------------------------------------------------------------------------------- */

static cmoe_view tokens(const float *p)
{
    return cmoe_view_2d(p, CMOE_F32, T, H);
}

static void forward_errors(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    const cmoe_view x = tokens(w.m.x.f);
    const cmoe_view_mut out = cmoe_view_mut_2d(w.out, CMOE_F32, T, H);
    cmoe_view bad = x;
    cmoe_layer_call call;
    double loss;
#define FORWARD(l, x, call) \
    cmoe_layer_train_forward(w.env.stream, l, x, call, out, &w.saved, &w.keep, &w.scratch, &err)
    UNIT_FAILS(FORWARD(NULL, x, NULL), CMOE_ERR_ARG, "layer is NULL");
    bad.dtype = CMOE_F64;
    UNIT_FAILS(FORWARD(w.l, bad, NULL), CMOE_ERR_DTYPE, "x");
    bad = x;
    bad.dims[1] = 3;
    UNIT_FAILS(FORWARD(w.l, bad, NULL), CMOE_ERR_SHAPE, "x: dims[1] = 3, want 10");
    UNIT_FAILS(FORWARD(w.l, tokens(w.out), NULL), CMOE_ERR_ARG, "out");
    cmoe_layer_call_default(&call, sizeof call);
    call.balance_loss = &loss;
    UNIT_FAILS(FORWARD(w.l, x, &call), CMOE_ERR_UNSUPPORTED, "want it from cmoe_layer_backward");
    cmoe_layer_call_default(&call, sizeof call);
    call.replay_weights = cmoe_view_2d(w.m.weights.f, CMOE_F32, T, K);
    UNIT_FAILS(FORWARD(w.l, x, &call), CMOE_ERR_ARG, "replay_weights are given without replay_ids");
    cmoe_layer_call_default(&call, sizeof call);
    call.replay_ids = cmoe_view_2d(w.m.ids, CMOE_I32, T, K);
    w.m.ids[3] = E;
    UNIT_FAILS(FORWARD(w.l, x, &call), CMOE_ERR_RANGE, "replay_ids[1, 1] = 4");
    cmoe_layer_call_default(&call, sizeof call);
    call.ids = cmoe_view_mut_2d(w.out, CMOE_I32, T, K);
    UNIT_FAILS(FORWARD(w.l, x, &call), CMOE_ERR_ARG, "ids");
    UNIT_FAILS(cmoe_layer_train_forward(w.env.stream, w.l, x, NULL, out, &w.saved, &w.scratch,
                                        &w.scratch, &err),
               CMOE_ERR_ARG, "keep lies in the free part of the arena");
    UNIT_FAILS(cmoe_layer_train_bytes(NULL, T, NULL, NULL, NULL, &err), CMOE_ERR_ARG,
               "layer is NULL");
    UNIT_FAILS(cmoe_layer_train_bytes(w.l, -1, NULL, NULL, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = -1");
    assert_null(w.saved);
    assert_int_equal(w.keep.used, 0);
    UNIT_OK(FORWARD(w.l, x, NULL));
    close_world(&w);
}

static void backward_errors(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    const cmoe_view x = tokens(w.m.x.f), dout = tokens(w.m.dout);
    UNIT_OK(cmoe_layer_train_forward(w.env.stream, w.l, x, NULL,
                                     cmoe_view_mut_2d(w.out, CMOE_F32, T, H), &w.saved, &w.keep,
                                     &w.scratch, &err));
    cmoe_layer_gradients g;
    const cmoe_saved *saved = w.saved;
    const cmoe_units *units = NULL;
    cmoe_layer_train *l = w.l;
#define FAILS(change, status, text)                                                            \
    do {                                                                                       \
        cmoe_layer_gradients_default(&g, sizeof g);                                            \
        saved = w.saved;                                                                       \
        units = NULL;                                                                          \
        l = w.l;                                                                               \
        change;                                                                                \
        UNIT_FAILS(                                                                            \
            cmoe_layer_backward(w.env.stream, l, saved, x, dout, units, &g, &w.scratch, &err), \
            status, text);                                                                     \
    } while (0)
    const int64_t stranger[16] = {0}, first[] = {0, 1, T + 1};
    const cmoe_units long_units = {2, first};
    FAILS(saved = NULL, CMOE_ERR_ARG, "saved is NULL, want what cmoe_layer_train_forward kept");
    FAILS(saved = (const void *)stranger, CMOE_ERR_ARG, "saved was not kept by");
    cmoe_layer_train *other = layer_open(&w.m, w.env.ctx);
    FAILS(l = other, CMOE_ERR_ARG, "saved was kept by another layer");
    cmoe_layer_train_free(other);
    FAILS(units = &long_units, CMOE_ERR_RANGE, "7");
    FAILS(g.dx = cmoe_view_mut_2d(w.m.x.grad, CMOE_F32, T, H - 1), CMOE_ERR_SHAPE,
          "dx: dims[1] = 9, want 10");
    FAILS(g.dx = cmoe_view_mut_2d(w.m.dout, CMOE_F32, T, H), CMOE_ERR_ARG, "dx");
    FAILS(g.balance = NAN, CMOE_ERR_RANGE, "balance = nan, want a finite number");
    FAILS(g.z_loss = INFINITY, CMOE_ERR_RANGE, "z_loss = inf, want a finite number");
    FAILS(g.mask = cmoe_view_1d(w.m.ids, CMOE_I32, T + 1), CMOE_ERR_SHAPE, "mask");
    cmoe_part_gradient wrong = w.m.w13.g[0];
    wrong.w.dims[1] = 1;
    FAILS(g.shared13 = &wrong, CMOE_ERR_SHAPE, "shared13[0].w");
    FAILS(g.gate = &wrong, CMOE_ERR_SHAPE, "gate[0].w");
    FAILS(g.shared_gate = &wrong, CMOE_ERR_SHAPE, "shared_gate[0].w");
    FAILS((g.w13 = w.m.w13.g, g.dx = cmoe_view_mut_2d(w.m.w13.p[0].w.grad, CMOE_F32, T, H)),
          CMOE_ERR_ARG, "w13[0].w");
    close_world(&w);
}

/* A layer without a shared expert has no gradients of one. */
static void no_shared(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    cmoe_layer_train_options o = options_of(&w);
    cmoe_layer_train *l = NULL;
    o.shared13 = o.shared2 = o.shared_gate = NULL;
    UNIT_OK(cmoe_layer_train_create(&l, w.env.ctx, &o, &err));
    const cmoe_view x = tokens(w.m.x.f), dout = tokens(w.m.dout);
    UNIT_OK(cmoe_layer_train_forward(w.env.stream, l, x, NULL,
                                     cmoe_view_mut_2d(w.out, CMOE_F32, T, H), &w.saved, &w.keep,
                                     &w.scratch, &err));
    cmoe_layer_gradients g;
    cmoe_layer_gradients_default(&g, sizeof g);
    g.shared2 = w.m.s2.g;
    UNIT_FAILS(cmoe_layer_backward(w.env.stream, l, w.saved, x, dout, NULL, &g, &w.scratch, &err),
               CMOE_ERR_ARG, "shared2 is asked for, but this layer has no shared expert");
    cmoe_layer_gradients_default(&g, sizeof g);
    g.shared_gate = w.m.sg.g;
    UNIT_FAILS(cmoe_layer_backward(w.env.stream, l, w.saved, x, dout, NULL, &g, &w.scratch, &err),
               CMOE_ERR_ARG, "shared_gate is asked for, but this layer has no shared gate");
    /* Nothing at all is a backward, too; and losses alone are. */
    double balance = -1, z = -1;
    UNIT_OK(cmoe_layer_backward(w.env.stream, l, w.saved, x, dout, NULL, NULL, &w.scratch, &err));
    cmoe_layer_gradients_default(&g, sizeof g);
    g.balance_loss = &balance;
    g.z_loss_value = &z;
    UNIT_OK(cmoe_layer_backward(w.env.stream, l, w.saved, x, dout, NULL, &g, &w.scratch, &err));
    assert_true(balance > 0 && z > 0);
    cmoe_layer_train_free(l);
    close_world(&w);
}

/* The correction bias is read in every forward, and moves the choice alone. */
static void bias_is_live(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    float room[T * H] = {0}, *bias = room + 3;
    int32_t ids[T * K];
    cmoe_layer_train_options o = options_of(&w);
    cmoe_layer_train *l = NULL;
    o.bias = cmoe_view_1d(bias, CMOE_F32, E);
    UNIT_OK(cmoe_layer_train_create(&l, w.env.ctx, &o, &err));
    cmoe_layer_call call;
    cmoe_layer_call_default(&call, sizeof call);
    call.ids = cmoe_view_mut_2d(ids, CMOE_I32, T, K);
    for (int32_t e = 0; e < E; e++) {
        memset(bias, 0, E * sizeof *bias);
        bias[e] = 10;
        UNIT_OK(cmoe_layer_train_forward(w.env.stream, l, tokens(w.m.x.f), &call,
                                         cmoe_view_mut_2d(w.out, CMOE_F32, T, H), NULL, NULL,
                                         &w.scratch, &err));
        for (int64_t t = 0; t < T; t++)
            assert_int_equal(ids[t * K], e);
    }
    UNIT_FAILS(cmoe_layer_train_forward(w.env.stream, l, tokens(w.m.x.f), NULL,
                                        cmoe_view_mut_2d(room, CMOE_F32, T, H), NULL, NULL,
                                        &w.scratch, &err),
               CMOE_ERR_ARG, "out");
    cmoe_layer_train_free(l);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(create_parts),   cmocka_unit_test(create_options),
        cmocka_unit_test(forward_errors), cmocka_unit_test(backward_errors),
        cmocka_unit_test(no_shared),      cmocka_unit_test(bias_is_live)};
    return UNIT_RUN("unit_layer_train", tests);
}
