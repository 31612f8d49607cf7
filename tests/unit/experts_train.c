/* SPDX-License-Identifier: MIT
 *
 * experts_train.c - what cmoe_experts_train and cmoe_experts_backward refuse, with which text, and that
 * nothing is written then.  Values are checked in grad/experts.c.
 */
#include "../grad/moe.h"
#include "unit.h"

enum { T = 6, K = 2, E = 3, H = 10, I = 4 };

static const moe_form form = {T, K, E, H, I, CMOE_ACT_SILU, 0, 0, 0, 1, 0, 2, 0, 0, 1};

typedef struct world {
    unit_env env;
    kc c;
    moe m;
    cmoe_experts_weights w;
    cmoe_saved *saved;
    cmoe_arena keep, scratch;
    float out[T * H];
} world;

static void open_world(world *w)
{
    memset(w, 0, sizeof *w);
    w->env = unit_open(2);
    kc_begin(&w->c, "experts_train");
    moe_experts(&w->c, &w->m, &form);
    moe_open(&w->m, w->env.stream);
    w->w = (cmoe_experts_weights){w->m.w13.t, w->m.w2.t};
    int64_t keep = 0, host = 0;
    UNIT_OK(cmoe_experts_train_bytes(NULL, &w->w, T, K, &keep, &host, NULL, &err));
    w->keep = unit_arena(keep);
    w->scratch = unit_arena(host);
    memset(w->out, 0x5a, sizeof w->out);
}

static void close_world(world *w)
{
    free(w->keep.base);
    free(w->scratch.base);
    moe_close(&w->m);
    moe_free(&w->m);
    unit_close(&w->env);
}

/* The arguments of a forward, right as they are made. */
typedef struct forward {
    cmoe_experts_options o;
    cmoe_experts_weights w;
    cmoe_view x, ids, weights, shared;
    cmoe_view_mut out;
    cmoe_arena *keep, *scratch;
} forward;

static forward forward_of(world *w)
{
    return (forward){.o = w->m.eo,
                     .w = w->w,
                     .x = cmoe_view_2d(w->m.x.f, CMOE_F32, T, H),
                     .ids = cmoe_view_2d(w->m.ids, CMOE_I32, T, K),
                     .weights = cmoe_view_2d(w->m.weights.f, CMOE_F32, T, K),
                     .shared = cmoe_view_none(),
                     .out = cmoe_view_mut_2d(w->out, CMOE_F32, T, H),
                     .keep = &w->keep,
                     .scratch = &w->scratch};
}

static cmoe_status run(world *w, const forward *f, cmoe_error *err)
{
    return cmoe_experts_train(w->env.stream, &f->o, &f->w, f->x, f->ids, f->weights, f->shared,
                              f->out, &w->saved, f->keep, f->scratch, err);
}

static void refused(world *w, const forward *f, cmoe_status status, const char *text)
{
    float was[T * H];
    memcpy(was, w->out, sizeof was);
    UNIT_FAILS(run(w, f, &err), status, text);
    assert_memory_equal(was, w->out, sizeof was);
    assert_null(w->saved);
    assert_int_equal(w->keep.used, 0);
}

static void forward_weights(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    forward f = forward_of(&w);
    UNIT_FAILS(cmoe_experts_train(w.env.stream, NULL, NULL, f.x, f.ids, f.weights, f.shared, f.out,
                                  NULL, NULL, f.scratch, &err),
               CMOE_ERR_ARG, "weights is NULL, want w13 and w2");
    f.w.w13 = NULL;
    refused(&w, &f, CMOE_ERR_ARG, "w13 is NULL, want a trainable");
    f = forward_of(&w);
    f.w.w2 = NULL;
    refused(&w, &f, CMOE_ERR_ARG, "w2 is NULL, want a trainable");
    f = forward_of(&w);
    f.w.w2 = f.w.w13;
    refused(&w, &f, CMOE_ERR_SHAPE,
            "w2: [3, 8, 10], want [3, 10, 4] (experts, hidden, inter of w13)");
    f = forward_of(&w);
    f.o.ungated = 1;
    refused(&w, &f, CMOE_ERR_SHAPE, "w2: [3, 10, 4], want [3, 10, 8]");
    f = forward_of(&w);
    f.o.activation = 9;
    refused(&w, &f, CMOE_ERR_RANGE, "activation = 9 unknown");
    f = forward_of(&w);
    f.o.first_expert = INT64_MAX;
    refused(&w, &f, CMOE_ERR_RANGE, "first_expert = 9223372036854775807");
    unit_env other = unit_open(1);
    UNIT_FAILS(cmoe_experts_train(other.stream, NULL, &w.w, f.x, f.ids, f.weights, f.shared, f.out,
                                  NULL, NULL, f.scratch, &err),
               CMOE_ERR_ARG, "w13 belongs to another context, want the stream's");
    unit_close(&other);
    cmoe_trainable *odd = NULL, *empty = NULL;
    UNIT_OK(cmoe_trainable_create(&odd, w.env.ctx, NULL, E, 7, H, &err));
    UNIT_OK(cmoe_trainable_create(&empty, w.env.ctx, NULL, E, 2 * I, H, &err));
    f = forward_of(&w);
    f.w.w13 = odd;
    refused(&w, &f, CMOE_ERR_SHAPE, "w13: 7 outputs, want an even number");
    f.w.w13 = empty;
    refused(&w, &f, CMOE_ERR_ARG, "fill");
    cmoe_trainable_free(odd);
    cmoe_trainable_free(empty);
    close_world(&w);
}

static void forward_tensors(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    forward f = forward_of(&w);
    f.x.dtype = CMOE_BF16;
    refused(&w, &f, CMOE_ERR_DTYPE, "x");
    f = forward_of(&w);
    f.x.dims[1] = H - 1;
    refused(&w, &f, CMOE_ERR_SHAPE, "x: dims[1] = 9, want 10");
    f = forward_of(&w);
    f.x.dims[0] = 2;
    f.x.strides[1] = 2;
    refused(&w, &f, CMOE_ERR_SHAPE, "x: ");
    f = forward_of(&w);
    f.ids.dtype = CMOE_F32;
    refused(&w, &f, CMOE_ERR_DTYPE, "topk_ids");
    f = forward_of(&w);
    f.weights.dims[1] = 1;
    refused(&w, &f, CMOE_ERR_SHAPE, "topk_weights: dims[1] = 1, want 2");
    f = forward_of(&w);
    f.shared = cmoe_view_2d(w.m.dout, CMOE_F32, T, H - 1);
    refused(&w, &f, CMOE_ERR_SHAPE, "shared");
    f = forward_of(&w);
    f.out.dims[0] = T - 1;
    refused(&w, &f, CMOE_ERR_SHAPE, "out: dims[0] = 5, want 6");
    f = forward_of(&w);
    f.out.data = w.m.x.f;
    refused(&w, &f, CMOE_ERR_ARG, "out");
    close_world(&w);
}

static void forward_arenas(void **state)
{
    (void)state;
    world w;
    open_world(&w);
    forward f = forward_of(&w);
    f.keep = f.scratch;
    refused(&w, &f, CMOE_ERR_ARG, "keep lies in the free part of the arena");
    cmoe_arena over = cmoe_arena_make(w.m.x.f, 1 << 20);
    f = forward_of(&w);
    f.scratch = &over;
    refused(&w, &f, CMOE_ERR_ARG, "x lies in the free part of the arena");
    f = forward_of(&w);
    f.keep = &over;
    refused(&w, &f, CMOE_ERR_ARG, "x lies in the free part of the arena");
    f = forward_of(&w);
    f.keep = NULL;
    refused(&w, &f, CMOE_ERR_MEMORY, "experts_train: keep: arena has 0 bytes left");
    UNIT_FAILS(cmoe_experts_train_bytes(NULL, &w.w, -1, K, NULL, NULL, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = -1, topk = 2, want >= 0");
    UNIT_FAILS(cmoe_experts_train_bytes(NULL, &w.w, INT64_MAX, K, NULL, NULL, NULL, &err),
               CMOE_ERR_SHAPE, "want >= 0 and at most 2^31 - 1 slots");
    UNIT_FAILS(cmoe_experts_train_bytes(NULL, NULL, T, K, NULL, NULL, NULL, &err), CMOE_ERR_ARG,
               "weights is NULL");
    close_world(&w);
}

/* ---- backward -------------------------------------------------------------------------------- */

typedef struct backward {
    const cmoe_saved *saved;
    cmoe_view x, weights, dout;
    const cmoe_units *units;
    cmoe_experts_gradients g;
    cmoe_part_gradient w13, w2;
    cmoe_arena scratch;
} backward;

static void backward_of(world *w, backward *b)
{
    *b = (backward){.saved = w->saved,
                    .x = cmoe_view_2d(w->m.x.f, CMOE_F32, T, H),
                    .weights = cmoe_view_2d(w->m.weights.f, CMOE_F32, T, K),
                    .dout = cmoe_view_2d(w->m.dout, CMOE_F32, T, H),
                    .w13 = w->m.w13.g[0],
                    .w2 = w->m.w2.g[0],
                    .scratch = w->scratch};
    b->g = (cmoe_experts_gradients){.dx = cmoe_view_mut_2d(w->m.x.grad, CMOE_F32, T, H),
                                    .dweights = cmoe_view_mut_2d(w->m.weights.grad, CMOE_F32, T, K),
                                    .w13 = &b->w13,
                                    .w2 = &b->w2};
}

static cmoe_status back(world *w, backward *b, cmoe_error *err)
{
    return cmoe_experts_backward(w->env.stream, b->saved, b->x, b->weights, b->dout, b->units,
                                 &b->g, &b->scratch, err);
}

static void back_refused(world *w, backward *b, cmoe_status status, const char *text)
{
    const int64_t n = moe_gradients(&w->m, NULL);
    float *was = moe_get(n * 4), *is = moe_get(n * 4);
    moe_gradients(&w->m, was);
    UNIT_FAILS(back(w, b, &err), status, text);
    moe_gradients(&w->m, is);
    assert_memory_equal(was, is, n * 4);
    free(was);
    free(is);
    backward_of(w, b);
}

static void backward_errors(void **state)
{
    (void)state;
    world w;
    backward b;
    open_world(&w);
    const forward f = forward_of(&w);
    UNIT_OK(run(&w, &f, &err));
    backward_of(&w, &b);
    b.saved = NULL;
    back_refused(&w, &b, CMOE_ERR_ARG, "saved is NULL, want what cmoe_experts_train kept");
    const int64_t stranger[16] = {0};
    b.saved = (const cmoe_saved *)(const void *)stranger;
    back_refused(&w, &b, CMOE_ERR_ARG, "saved was not kept by cmoe_experts_train");
    UNIT_FAILS(cmoe_experts_backward(w.env.stream, b.saved, b.x, b.weights, b.dout, NULL, NULL,
                                     &b.scratch, &err),
               CMOE_ERR_ARG, "gradients is NULL");
    b.x.dims[0] = T - 1;
    back_refused(&w, &b, CMOE_ERR_SHAPE, "x: dims[0] = 5, want 6");
    b.weights.dims[1] = 1;
    back_refused(&w, &b, CMOE_ERR_SHAPE, "topk_weights: dims[1] = 1, want 2");
    b.dout.dtype = CMOE_F64;
    back_refused(&w, &b, CMOE_ERR_DTYPE, "dout");
    b.g.dx.dims[1] = 3;
    back_refused(&w, &b, CMOE_ERR_SHAPE, "dx: dims[1] = 3, want 10");
    b.g.dweights.dims[1] = 3;
    back_refused(&w, &b, CMOE_ERR_SHAPE, "dweights: dims[1] = 3, want 2");
    b.g.dx.data = w.m.dout;
    back_refused(&w, &b, CMOE_ERR_ARG, "dx");
    b.g.dx.data = w.keep.base;
    back_refused(&w, &b, CMOE_ERR_ARG, "saved");
    b.w13.w.dims[2] = H - 1;
    back_refused(&w, &b, CMOE_ERR_SHAPE, "w13[0].w: dims[2] = 9, want 10");
    b.w13.a.dims[1] = 3;
    back_refused(&w, &b, CMOE_ERR_SHAPE, "w13[0].a: dims[1] = 3, want 2");
    b.w2.bias.dtype = CMOE_F16;
    back_refused(&w, &b, CMOE_ERR_DTYPE, "w2[0].bias");
    b.w2.a = b.w13.a;
    back_refused(&w, &b, CMOE_ERR_ARG, "w2[0].a is asked for, but that part has no low-rank term");
    b.w2.w.data = w.m.w13.p[0].w.grad;
    back_refused(&w, &b, CMOE_ERR_ARG, "w2[0].w");
    const int64_t first[] = {0, 2, 4, T};
    const cmoe_units three = {3, first}, late = {2, first};
    b.units = &three;
    back_refused(&w, &b, CMOE_ERR_RANGE, "3");
    b.units = &late;
    back_refused(&w, &b, CMOE_ERR_RANGE, "4");
    b.scratch = cmoe_arena_make(w.keep.base, w.keep.bytes);
    back_refused(&w, &b, CMOE_ERR_ARG, "saved lies in the free part");
    unit_env other = unit_open(1);
    UNIT_FAILS(cmoe_experts_backward(other.stream, b.saved, b.x, b.weights, b.dout, NULL, &b.g,
                                     &b.scratch, &err),
               CMOE_ERR_ARG, "different contexts");
    unit_close(&other);
    UNIT_OK(back(&w, &b, &err));
    close_world(&w);
}

/* Each gradient alone has the bits of all together, and nothing asked for is nothing done. */
static void one_at_a_time(void **state)
{
    (void)state;
    world w;
    backward b;
    open_world(&w);
    const forward f = forward_of(&w);
    UNIT_OK(run(&w, &f, &err));
    backward_of(&w, &b);
    UNIT_OK(back(&w, &b, &err));
    const int64_t n = moe_gradients(&w.m, NULL);
    float *all = moe_get(n * 4), *some = moe_get(n * 4), dx[T * H], dw[T * K];
    moe_gradients(&w.m, all);
    memcpy(dx, w.m.x.grad, sizeof dx);
    memcpy(dw, w.m.weights.grad, sizeof dw);
    part *parts[] = {&w.m.w13.p[0], &w.m.w2.p[0]};
    for (int i = 0; i < 2; i++) {
        tensor *t[] = {&parts[i]->w, &parts[i]->bias, &parts[i]->a, &parts[i]->b};
        for (int j = 0; j < 4; j++)
            if (t[j]->n) memset(t[j]->grad, 0, (size_t)t[j]->n * 4);
    }
    const cmoe_experts_gradients g = b.g;
    b.g = (cmoe_experts_gradients){0};
    UNIT_OK(back(&w, &b, &err));
    cmoe_part_gradient *asked[] = {&b.w13, &b.w2};
    for (int i = 0; i < 2; i++) {
        const cmoe_part_gradient whole = *asked[i];
        for (int j = 0; j < 4; j++) {
            *asked[i] = (cmoe_part_gradient){0};
            if (j == 0) asked[i]->w = whole.w;
            if (j == 1) asked[i]->bias = whole.bias;
            if (j == 2) asked[i]->a = whole.a;
            if (j == 3) asked[i]->b = whole.b;
            b.g = (cmoe_experts_gradients){0};
            if (i == 0) b.g.w13 = &b.w13;
            if (i == 1) b.g.w2 = &b.w2;
            UNIT_OK(back(&w, &b, &err));
        }
    }
    moe_gradients(&w.m, some);
    assert_memory_equal(some, all, n * 4);
    b.g = (cmoe_experts_gradients){.dx = g.dx};
    memset(w.m.x.grad, 0, sizeof dx);
    UNIT_OK(back(&w, &b, &err));
    assert_memory_equal(w.m.x.grad, dx, sizeof dx);
    b.g = (cmoe_experts_gradients){.dweights = g.dweights};
    memset(w.m.weights.grad, 0, sizeof dw);
    UNIT_OK(back(&w, &b, &err));
    assert_memory_equal(w.m.weights.grad, dw, sizeof dw);
    free(all);
    free(some);
    close_world(&w);
}

/* Rows with gaps, odd addresses, a shared row, wide ids: the same bits. */
static void other_layouts(void **state)
{
    (void)state;
    world w;
    backward b;
    open_world(&w);
    forward f = forward_of(&w);
    f.shared = f.x;
    UNIT_OK(run(&w, &f, &err));
    backward_of(&w, &b);
    UNIT_OK(back(&w, &b, &err));
    float want[T * H], dx[T * H];
    memcpy(want, w.out, sizeof want);
    memcpy(dx, w.m.x.grad, sizeof dx);
    enum { S = H + 3 };
    char x[T * S * 4 + 1], dout[T * S * 4 + 1], out[T * S * 4 + 1], grad[T * S * 4 + 1];
    int64_t ids[T * K];
    for (int64_t t = 0; t < T; t++) {
        memcpy(x + 1 + t * S * 4, w.m.x.f + t * H, H * 4);
        memcpy(dout + 1 + t * S * 4, w.m.dout + t * H, H * 4);
    }
    for (int64_t i = 0; i < T * K; i++)
        ids[i] = w.m.ids[i];
    f.x.data = f.shared.data = b.x.data = x + 1;
    f.x.strides[0] = f.shared.strides[0] = b.x.strides[0] = S;
    b.dout.data = dout + 1;
    b.dout.strides[0] = S;
    f.out.data = out + 1;
    f.out.strides[0] = S;
    b.g.dx.data = grad + 1;
    b.g.dx.strides[0] = S;
    f.ids = cmoe_view_2d(ids, CMOE_I64, T, K);
    w.keep.used = 0;
    UNIT_OK(run(&w, &f, &err));
    b.saved = w.saved;
    UNIT_OK(back(&w, &b, &err));
    for (int64_t t = 0; t < T; t++) {
        assert_memory_equal(out + 1 + t * S * 4, want + t * H, H * 4);
        assert_memory_equal(grad + 1 + t * S * 4, dx + t * H, H * 4);
    }
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_weights), cmocka_unit_test(forward_tensors),
        cmocka_unit_test(forward_arenas),  cmocka_unit_test(backward_errors),
        cmocka_unit_test(one_at_a_time),   cmocka_unit_test(other_layouts)};
    return UNIT_RUN("unit_experts_train", tests);
}
