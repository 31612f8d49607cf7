/* SPDX-License-Identifier: MIT
 *
 * create.c - the n-th allocation fails, for n = 1, 2, ... until everything is there: each failure
 * is a status and a text, leaves the output alone and nothing behind, and the next call works.
 */
#include "fault.h"

static fault_data data;
static cmoe_experts *layer_experts, *layer_shared; /* what a layer borrows */

/* One thing that can be made and freed again; `made` tells whether the output was written. */
typedef struct subject {
    const char *name;
    cmoe_status (*make)(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err);
    void (*drop)(void *made);
    int variants;
} subject;

static cmoe_status make_stream(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err)
{
    (void)variant;
    return cmoe_stream_create((cmoe_stream **)made, ctx, err);
}
static void drop_stream(void *made)
{
    cmoe_stream_free(made);
}

static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};

static cmoe_status make_matrix(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err)
{
    cmoe_matrix_options o;
    cmoe_matrix_options_default(&o, sizeof o);
    o.format = formats[variant % 3];
    o.borrow = variant / 3 % 2;
    return cmoe_matrix_create(
        (cmoe_matrix **)made, ctx, &o, cmoe_view_3d(data.w2, CMOE_F32, FE, FH, FI),
        variant < 6 ? cmoe_view_2d(data.bias2, CMOE_F32, FE, FH) : cmoe_view_none(), err);
}
static void drop_matrix(void *made)
{
    cmoe_matrix_free(made);
}

static cmoe_status make_trainable(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err)
{
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    o.format = formats[variant % 2];
    o.borrow = variant / 2 % 2;
    o.rank = variant / 4 * 3;
    return cmoe_trainable_create((cmoe_trainable **)made, ctx, &o, FE, FH, FI, err);
}
static void drop_trainable(void *made)
{
    cmoe_trainable_free(made);
}

static cmoe_status make_experts(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err)
{
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = formats[variant % 3];
    o.borrow = variant / 3;
    return cmoe_experts_create((cmoe_experts **)made, ctx, &o,
                               cmoe_view_3d(data.w13, CMOE_F32, FE, 2 * FI, FH),
                               cmoe_view_3d(data.w2, CMOE_F32, FE, FH, FI),
                               cmoe_view_2d(data.bias13, CMOE_F32, FE, 2 * FI),
                               cmoe_view_2d(data.bias2, CMOE_F32, FE, FH), err);
}
static void drop_experts(void *made)
{
    cmoe_experts_free(made);
}

static cmoe_status make_comm(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err)
{
    (void)variant;
    return cmoe_comm_create_local((cmoe_comm **)made, ctx, err);
}
static void drop_comm(void *made)
{
    cmoe_comm_free(made);
}

/* With experts of the caller's own, in the ways that keep the most: bias, scale, low-rank delta,
 * shared expert and its gate. */
static cmoe_status make_layer(cmoe_ctx *ctx, int variant, void **made, cmoe_error *err)
{
    cmoe_route_options route;
    cmoe_route_options_default(&route, sizeof route);
    route.topk = FK;
    cmoe_layer_options o;
    cmoe_layer_options_default(&o, sizeof o);
    o.route = &route;
    cmoe_layer_weights w;
    cmoe_layer_weights_default(&w, sizeof w);
    w.gate = cmoe_view_2d(data.gate, CMOE_F32, FE, FH);
    w.experts = layer_experts;
    if (variant > 0) {
        w.gate_bias = cmoe_view_1d(data.bias2, CMOE_F32, FE);
        w.bias = cmoe_view_1d(data.bias13, CMOE_F32, FE);
        w.per_expert_scale = cmoe_view_1d(data.weights, CMOE_F32, FE);
        w.lora_a = cmoe_view_2d(data.x, CMOE_F32, 2, FH);
        w.lora_b = cmoe_view_2d(data.logits, CMOE_F32, FE, 2);
        w.shared = layer_shared;
        w.shared_gate = cmoe_view_2d(data.x, CMOE_F32, 1, FH);
    }
    return cmoe_layer_create((cmoe_layer **)made, ctx, &o, &w, err);
}
static void drop_layer(void *made)
{
    cmoe_layer_free(made);
}

static const subject subjects[] = {
    {"stream", make_stream, drop_stream, 1},
    {"matrix", make_matrix, drop_matrix, 9},
    {"trainable", make_trainable, drop_trainable, 8},
    {"experts", make_experts, drop_experts, 6},
    {"comm", make_comm, drop_comm, 1},
    {"layer", make_layer, drop_layer, 2},
};

static void check_failure(const char *name, int64_t n, cmoe_status status, const cmoe_error *err,
                          const void *made, const void *mark)
{
    if (status != CMOE_ERR_MEMORY || err->status != CMOE_ERR_MEMORY)
        fail_msg("%s, allocation %d: %s (\"%s\")", name, (int)n, cmoe_status_name(status),
                 err->text);
    if (!strstr(err->text, "could not be "))
        fail_msg("%s, allocation %d: text \"%s\"", name, (int)n, err->text);
    assert_ptr_equal(made, mark);
}

static int64_t until_success(const subject *s, int variant, cmoe_ctx *ctx, fault_memory *m)
{
    static const char mark;
    const fault_memory before = *m;
    for (int64_t n = 1;; n++) {
        cmoe_error found = {0};
        void *made = (void *)(uintptr_t)&mark;
        m->fail_at = n;
        const cmoe_status status = s->make(ctx, variant, &made, &found);
        const bool reached = m->fail_at == 0;
        m->fail_at = 0;
        if (!reached) {
            if (status != CMOE_OK) fail_msg("%s: %s", s->name, found.text);
            s->drop(made);
            assert_int_equal(m->blocks, before.blocks);
            return n - 1;
        }
        check_failure(s->name, n, status, &found, made, &mark);
        assert_int_equal(m->blocks, before.blocks);
        assert_int_equal(m->bytes, before.bytes);
        UNIT_OK(s->make(ctx, variant, &made, &err)); /* the next call works */
        s->drop(made);
        /* And with nobody to listen. */
        m->fail_at = n;
        assert_int_equal(s->make(ctx, variant, &made, NULL), CMOE_ERR_MEMORY);
        m->fail_at = 0;
    }
}

static void made_from_a_context(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads < 4; threads += 2) {
        fault_memory m = {0};
        unit_env e = fault_env(&m, threads);
        UNIT_OK(make_experts(e.ctx, 0, (void **)&layer_experts, &err));
        UNIT_OK(cmoe_experts_create(
            &layer_shared, e.ctx, NULL, cmoe_view_3d(data.w13, CMOE_F32, 1, 2 * FI, FH),
            cmoe_view_3d(data.w2, CMOE_F32, 1, FH, FI), cmoe_view_none(), cmoe_view_none(), &err));
        for (size_t i = 0; i < sizeof subjects / sizeof subjects[0]; i++) {
            for (int v = 0; v < subjects[i].variants; v++) {
                const int64_t allocations = until_success(&subjects[i], v, e.ctx, &m);
                if (allocations < 1) fail_msg("%s allocates nothing?", subjects[i].name);
            }
        }
        cmoe_experts_free(layer_shared);
        cmoe_experts_free(layer_experts);
        unit_close(&e);
        assert_int_equal(m.blocks, 0);
        assert_int_equal(m.bytes, 0);
    }
}

static void dispatch(void **state)
{
    (void)state;
    fault_memory m = {0};
    unit_env e = fault_env(&m, 1);
    cmoe_comm *comm;
    cmoe_dispatch *d = NULL;
    cmoe_dispatch_options o;
    cmoe_dispatch_options_default(&o, sizeof o);
    o.experts = FE;
    o.hidden = FH;
    UNIT_OK(cmoe_comm_create_local(&comm, e.ctx, &err));
    const int64_t before = m.blocks;
    int64_t n = 0;
    for (bool reached = true; reached; n++) {
        cmoe_error err = {0};
        m.fail_at = n + 1;
        const cmoe_status status = cmoe_dispatch_create(&d, comm, &o, &err);
        reached = m.fail_at == 0;
        m.fail_at = 0;
        if (reached) {
            check_failure("dispatch", n + 1, status, &err, d, NULL);
            assert_int_equal(m.blocks, before);
        } else {
            assert_int_equal(status, CMOE_OK);
        }
    }
    assert_true(n > 1);
    cmoe_dispatch_free(d);
    cmoe_comm_free(comm);
    unit_close(&e);
    assert_int_equal(m.blocks, 0);
}

/* The context itself: its memory, that of its threads, and the threads. */
static void contexts(void **state)
{
    (void)state;
    fault_memory m = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 5;
    o.allocator = fault_allocator(&m);
    int64_t failures = 0;
    for (int kind = 0; kind < 2; kind++) {
        int64_t *countdown = kind == 0 ? &m.fail_at : &fault.fail_thread;
        for (int64_t n = 1;; n++) {
            cmoe_error err = {0};
            cmoe_ctx *ctx = NULL;
            *countdown = n;
            const cmoe_status status = cmoe_ctx_create(&ctx, &o, &err);
            const bool reached = *countdown == 0;
            *countdown = 0;
            if (!reached) {
                assert_int_equal(status, CMOE_OK);
                cmoe_ctx_free(ctx);
                break;
            }
            check_failure("context", n, status, &err, ctx, NULL);
            assert_int_equal(m.blocks, 0);
            assert_int_equal(fault.threads, 0); /* those that had started are joined */
            failures++;
        }
    }
    assert_int_equal(failures, 2 + 4); /* context and pool; threads 2 to 5 */
    assert_int_equal(m.blocks, 0);
}

static void thread_text(void **state)
{
    (void)state;
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 5;
    cmoe_ctx *ctx = NULL;
    fault.fail_thread = 3;
    UNIT_FAILS(cmoe_ctx_create(&ctx, &o, &err), CMOE_ERR_MEMORY,
               "thread 4 of 5 could not be started (error 11); want fewer threads");
    assert_null(ctx);
    assert_int_equal(fault.threads, 0);
}

/* Without an allocator of the caller's the C library's is asked, and may say no as well. */
static void libc_memory(void **state)
{
    (void)state;
    for (int64_t n = 1; n < 100; n++) {
        cmoe_error err = {0};
        cmoe_ctx *ctx = NULL;
        void *made[3] = {NULL};
        cmoe_status status;
        fault.fail_libc = n;
        status = cmoe_ctx_create(&ctx, NULL, &err);
        if (status == CMOE_OK) status = make_stream(ctx, 0, &made[0], &err);
        if (status == CMOE_OK) status = make_experts(ctx, 1, &made[1], &err);
        if (status == CMOE_OK) status = make_matrix(ctx, 2, &made[2], &err);
        const bool reached = fault.fail_libc == 0;
        fault.fail_libc = 0;
        assert_int_equal(status, reached ? CMOE_ERR_MEMORY : CMOE_OK);
        if (reached) assert_non_null(strstr(err.text, "could not be allocated"));
        drop_matrix(made[2]);
        drop_experts(made[1]);
        drop_stream(made[0]);
        cmoe_ctx_free(ctx);
        if (!reached) {
            assert_true(n > 4);
            return;
        }
    }
    fail_msg("100 allocations and no end");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_from_a_context),
        cmocka_unit_test(dispatch),
        cmocka_unit_test(contexts),
        cmocka_unit_test(thread_text),
        cmocka_unit_test(libc_memory),
    };
    fault_fill(&data);
    return UNIT_RUN("faults_create", tests);
}
