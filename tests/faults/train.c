/* SPDX-License-Identifier: MIT
 *
 * train.c - a training step asks nobody for memory; with arenas that are too small it fails and writes
 * nothing; and a layer that cannot be had leaves nothing behind.
 */
#include "../grad/moe.h"
#include "fault.h"

/* Everything at once: low-rank terms, biases, a gated shared expert, both losses. */
static const layer_form form = {{7, 3, 5, 20, 12, CMOE_ACT_SILU, 0, 0, 0, 1, 0, 4, 3, 1, 0.5f},
                                CMOE_SCORE_SIGMOID,
                                1,
                                1,
                                3,
                                9,
                                2,
                                1,
                                0,
                                2.5f,
                                1,
                                0,
                                0,
                                0.5f,
                                0.01f,
                                1,
                                2};

typedef struct world {
    unit_env env;
    fault_memory memory;
    moe m;
    kc c;
    cmoe_layer_train *layer;
    cmoe_experts_weights w;
    float *out;
} world;

static void world_open(world *w, int32_t threads)
{
    memset(w, 0, sizeof *w);
    w->env = fault_env(&w->memory, threads);
    kc_begin(&w->c, "faults_train");
    layer_make(&w->c, &w->m, &form);
    moe_open(&w->m, w->env.stream);
    w->layer = layer_open(&w->m, w->env.ctx);
    w->w = (cmoe_experts_weights){w->m.w13.t, w->m.w2.t};
    w->out = moe_get(form.f.T * form.f.H * 4);
}

static void world_close(world *w)
{
    cmoe_layer_train_free(w->layer);
    moe_close(&w->m);
    moe_free(&w->m);
    free(w->out);
    unit_close(&w->env);
    assert_int_equal(w->memory.blocks, 0);
}

static cmoe_view tokens(const float *p)
{
    return cmoe_view_2d(p, CMOE_F32, form.f.T, form.f.H);
}
static cmoe_view_mut tokens_out(float *p)
{
    return cmoe_view_mut_2d(p, CMOE_F32, form.f.T, form.f.H);
}
static cmoe_view weights_of(const world *w)
{
    return cmoe_view_2d(w->m.weights.f, CMOE_F32, form.f.T, form.f.K);
}

/* ---- the four calls -------------------------------------------------------------------------- */

typedef struct call {
    const char *name;
    bool keeps;
    cmoe_status (*run)(world *w, cmoe_saved **saved, cmoe_arena *keep, cmoe_arena *scratch,
                       cmoe_error *err);
} call;

static cmoe_status experts_forward(world *w, cmoe_saved **saved, cmoe_arena *keep,
                                   cmoe_arena *scratch, cmoe_error *err)
{
    return cmoe_experts_train(w->env.stream, &w->m.eo, &w->w, tokens(w->m.x.f),
                              cmoe_view_2d(w->m.ids, CMOE_I32, form.f.T, form.f.K), weights_of(w),
                              cmoe_view_none(), tokens_out(w->out), saved, keep, scratch, err);
}

static cmoe_status experts_backward(world *w, cmoe_saved **saved, cmoe_arena *keep,
                                    cmoe_arena *scratch, cmoe_error *err)
{
    const cmoe_experts_gradients g = {
        .dx = tokens_out(w->m.x.grad),
        .dweights = cmoe_view_mut_2d(w->m.weights.grad, CMOE_F32, form.f.T, form.f.K),
        .w13 = w->m.w13.g,
        .w2 = w->m.w2.g};
    (void)keep;
    return cmoe_experts_backward(w->env.stream, *saved, tokens(w->m.x.f), weights_of(w),
                                 tokens(w->m.dout), &w->m.units, &g, scratch, err);
}

static cmoe_status layer_forward(world *w, cmoe_saved **saved, cmoe_arena *keep,
                                 cmoe_arena *scratch, cmoe_error *err)
{
    return cmoe_layer_train_forward(w->env.stream, w->layer, tokens(w->m.x.f), NULL,
                                    tokens_out(w->out), saved, keep, scratch, err);
}

static cmoe_status layer_backward(world *w, cmoe_saved **saved, cmoe_arena *keep,
                                  cmoe_arena *scratch, cmoe_error *err)
{
    double balance, z;
    cmoe_layer_gradients g;
    cmoe_layer_gradients_default(&g, sizeof g);
    g.dx = tokens_out(w->m.x.grad);
    g.gate = w->m.gate.g;
    g.w13 = w->m.w13.g;
    g.w2 = w->m.w2.g;
    g.shared13 = w->m.s13.g;
    g.shared2 = w->m.s2.g;
    g.shared_gate = w->m.sg.g;
    g.balance = 0.5f;
    g.z_loss = 0.5f;
    g.balance_loss = &balance;
    g.z_loss_value = &z;
    (void)keep;
    return cmoe_layer_backward(w->env.stream, w->layer, *saved, tokens(w->m.x.f), tokens(w->m.dout),
                               &w->m.units, &g, scratch, err);
}

static const call calls[] = {
    {"experts_train", true, experts_forward},
    {"experts_backward", false, experts_backward},
    {"layer_train_forward", true, layer_forward},
    {"layer_backward", false, layer_backward},
};

static void bytes_of(world *w, int i, int64_t *keep, int64_t *host)
{
    if (i < 2)
        UNIT_OK(
            cmoe_experts_train_bytes(&w->m.eo, &w->w, form.f.T, form.f.K, keep, host, NULL, &err));
    else
        UNIT_OK(cmoe_layer_train_bytes(w->layer, form.f.T, keep, host, NULL, &err));
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void nothing_is_allocated(void **state)
{
    (void)state;
    static world w;
    for (int32_t threads = 1; threads < 4; threads++) {
        world_open(&w, threads);
        cmoe_saved *saved = NULL;
        cmoe_arena keep = {0};
        for (int i = 0; i < 4; i++) {
            int64_t need_keep = 0, need = 0;
            cmoe_error err = {0};
            bytes_of(&w, i, &need_keep, &need);
            cmoe_arena scratch = unit_arena(need);
            if (calls[i].keeps) {
                free(keep.base);
                keep = unit_arena(need_keep);
            }
            const int64_t libc = fault.libc_calls, context = w.memory.calls;
            fault.fail_thread = 1;
            const cmoe_status status = calls[i].run(&w, &saved, &keep, &scratch, &err);
            const int64_t more = fault.libc_calls - libc + w.memory.calls - context;
            if (status != CMOE_OK) fail_msg("%s: %s", calls[i].name, err.text);
            if (more || !fault.fail_thread)
                fail_msg("%s asks %d times for memory", calls[i].name, (int)more);
            fault.fail_thread = 0;
            assert_int_equal(scratch.used, 0);
            free(scratch.base);
        }
        free(keep.base);
        world_close(&w);
    }
}

/* Fails with a text, writes no output, and leaves both arenas as they were. */
static void try_sizes(world *w, int i, cmoe_saved **saved, int64_t keep_bytes, int64_t bytes)
{
    const int64_t n = form.f.T * form.f.H * 4;
    cmoe_saved *kept = *saved;
    cmoe_arena keep = unit_arena(keep_bytes), scratch = unit_arena(bytes);
    float *was = moe_get(n);
    memset(w->out, 0x5a, (size_t)n);
    memset(w->m.x.grad, 0x5a, (size_t)n);
    memset(was, 0x5a, (size_t)n);
    UNIT_FAILS(calls[i].run(w, &kept, &keep, &scratch, &err), CMOE_ERR_MEMORY, "_bytes)");
    assert_ptr_equal(kept, *saved);
    assert_int_equal(keep.used, 0);
    assert_int_equal(scratch.used, 0);
    assert_memory_equal(w->out, was, n);
    assert_memory_equal(w->m.x.grad, was, n);
    free(keep.base);
    free(scratch.base);
    free(was);
}

static void too_small(void **state)
{
    (void)state;
    static world w;
    world_open(&w, 2);
    cmoe_saved *saved = NULL;
    cmoe_arena keep = {0};
    for (int i = 0; i < 4; i++) {
        int64_t need_keep = 0, need = 0;
        bytes_of(&w, i, &need_keep, &need);
        if (calls[i].keeps) {
            free(keep.base);
            keep = unit_arena(need_keep);
            cmoe_arena scratch = unit_arena(need);
            UNIT_OK(calls[i].run(&w, &saved, &keep, &scratch, &err));
            assert_true(keep.used > 0 && keep.used <= need_keep);
            free(scratch.base);
            try_sizes(&w, i, &saved, need_keep - 1, need);
            try_sizes(&w, i, &saved, 0, need);
        }
        try_sizes(&w, i, &saved, need_keep, need - 1);
        try_sizes(&w, i, &saved, need_keep, 0);
    }
    free(keep.base);
    world_close(&w);
}

static void no_layer(void **state)
{
    (void)state;
    static world w;
    world_open(&w, 1);
    cmoe_layer_train *l = NULL;
    cmoe_layer_train_options o;
    cmoe_layer_train_options_default(&o, sizeof o);
    o.route = &w.m.ro;
    o.gate = w.m.gate.t;
    o.w13 = w.m.w13.t;
    o.w2 = w.m.w2.t;
    const int64_t blocks = w.memory.blocks;
    w.memory.fail_at = 1;
    UNIT_FAILS(cmoe_layer_train_create(&l, w.env.ctx, &o, &err), CMOE_ERR_MEMORY, "layer");
    assert_null(l);
    assert_int_equal(w.memory.blocks, blocks);
    UNIT_OK(cmoe_layer_train_create(&l, w.env.ctx, &o, &err));
    cmoe_layer_train_free(l);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_is_allocated),
                                       cmocka_unit_test(too_small), cmocka_unit_test(no_layer)};
    return UNIT_RUN("faults_train", tests);
}
