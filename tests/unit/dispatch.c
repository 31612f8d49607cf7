/* SPDX-License-Identifier: MIT
 *
 * dispatch.c - over one rank sending is grouping and returning is nothing; slices; every error
 * text.
 */
#include "unit.h"

enum { T = 4, K = 2, E = 3, H = 5 };

typedef struct world {
    unit_env e;
    cmoe_comm *comm;
    cmoe_dispatch_options o;
} world;

static world open_world(void)
{
    world w = {.e = unit_open(1)};
    UNIT_OK(cmoe_comm_create_local(&w.comm, w.e.ctx, &err));
    cmoe_dispatch_options_default(&w.o, sizeof w.o);
    w.o.experts = E;
    w.o.hidden = H;
    return w;
}

static void close_world(world *w)
{
    cmoe_comm_free(w->comm);
    unit_close(&w->e);
}

static void slices(void **state)
{
    (void)state;
    world w = open_world();
    const int64_t own[2] = {0, E};
    for (int given = 0; given < 2; given++) {
        cmoe_dispatch *d = NULL;
        int64_t first = -1, count = -1;
        w.o.first = given ? own : NULL;
        UNIT_OK(cmoe_dispatch_create(&d, w.comm, &w.o, &err));
        cmoe_dispatch_slice(d, &first, &count);
        assert_true(first == 0 && count == E);
        cmoe_dispatch_free(d);
        cmoe_dispatch_slice(NULL, &first, &count);
        assert_true(first == 0 && count == 0);
    }
    cmoe_dispatch_free(NULL);
    close_world(&w);
}

static void bad_create(void **state)
{
    (void)state;
    world w = open_world();
    static char mark;
    cmoe_dispatch *d = (cmoe_dispatch *)(void *)&mark;
    UNIT_FAILS(cmoe_dispatch_create(NULL, w.comm, &w.o, &err), CMOE_ERR_ARG,
               "dispatch: out is NULL");
    UNIT_FAILS(cmoe_dispatch_create(&d, NULL, &w.o, &err), CMOE_ERR_ARG, "dispatch: comm is NULL");
    UNIT_FAILS(cmoe_dispatch_create(&d, w.comm, NULL, &err), CMOE_ERR_RANGE,
               "dispatch: experts = 0, hidden = 0, want experts >= 1, hidden >= 0");
    w.o.hidden = -1;
    UNIT_FAILS(cmoe_dispatch_create(&d, w.comm, &w.o, &err), CMOE_ERR_RANGE,
               "dispatch: experts = 3, hidden = -1, want experts >= 1, hidden >= 0");
    w.o.hidden = H;
    const int64_t bad[][2] = {{1, E}, {-1, E}, {0, E + 1}, {0, E - 1}, {0, -1}};
    const char *texts[] = {"first[0] = 1", "first[0] = -1", "first[1] = 4", "first[1] = 2",
                           "first[1] = -1"};
    for (int i = 0; i < 5; i++) {
        char text[100];
        w.o.first = bad[i];
        snprintf(text, sizeof text, "dispatch: %s, want ascending slices from 0 to 3 (experts)",
                 texts[i]);
        UNIT_FAILS(cmoe_dispatch_create(&d, w.comm, &w.o, &err), CMOE_ERR_RANGE, text);
    }
    w.o.size = 2;
    UNIT_FAILS(cmoe_dispatch_create(&d, w.comm, &w.o, &err), CMOE_ERR_ARG,
               "cmoe_dispatch_options.size = 2");
    assert_ptr_equal(d, &mark);
    close_world(&w);
}

/* What is received is x itself with the groups that align makes; what is returned are the rows. */
static void there_and_back(void **state)
{
    static const int32_t ids[T * K] = {0, 2, -1, 1, 1, 1, 9, 0};
    (void)state;
    world w = open_world();
    cmoe_dispatch *d = NULL;
    float x[T * H] = {0}, rows[T * K * H] = {0}, shares[T * K] = {0};
    UNIT_OK(cmoe_dispatch_create(&d, w.comm, &w.o, &err));
    int64_t need = -1, device = -1;
    UNIT_OK(cmoe_dispatch_bytes(d, T, K, &need, &device, &err));
    assert_int_equal(device, 0);
    cmoe_arena arena = unit_arena(need), other = unit_arena(need);
    cmoe_received got = {.size = sizeof got};
    UNIT_OK(cmoe_dispatch_send(w.e.stream, d, cmoe_view_2d(x, CMOE_F32, T, H),
                               cmoe_view_2d(ids, CMOE_I32, T, K),
                               cmoe_view_2d(shares, CMOE_F32, T, K), &got, &arena, &err));
    assert_ptr_equal(got.x.data, x);
    assert_ptr_equal(got.weights.data, shares);
    assert_int_equal(cmoe_dispatch_capacity(d, T, K), T * K);
    assert_int_equal(cmoe_dispatch_capacity(d, -1, K), -1);
    assert_int_equal(cmoe_dispatch_capacity(NULL, T, K), -1);
    int64_t steps = -1;
    UNIT_OK(cmoe_dispatch_steps(d, 7, &steps, &other, &err));
    assert_int_equal(steps, 7);
    assert_int_equal(got.x_grouped, 0);
    cmoe_align_options ao;
    cmoe_align_options_default(&ao, sizeof ao);
    ao.experts = E;
    cmoe_groups want;
    UNIT_OK(cmoe_align(w.e.stream, &ao, cmoe_view_2d(ids, CMOE_I32, T, K), &want, &other, &err));
    assert_memory_equal(got.groups.first, want.first, (E + 1) * sizeof *want.first);
    assert_memory_equal(got.groups.row_of, want.row_of, T * K * sizeof *want.row_of);
    assert_memory_equal(got.groups.slots, want.slots, (size_t)want.capacity * sizeof *want.slots);
    cmoe_view own;
    cmoe_groups groups;
    UNIT_OK(cmoe_dispatch_return(w.e.stream, d, &got,
                                 cmoe_view_2d(rows, CMOE_F32, want.first[E], H), &own, &groups,
                                 &arena, &err));
    assert_ptr_equal(own.data, rows);
    assert_ptr_equal(groups.row_of, got.groups.row_of);
    /* No tokens, no slots. */
    arena.used = 0;
    UNIT_OK(cmoe_dispatch_send(w.e.stream, d, cmoe_view_2d(NULL, CMOE_F32, 0, H),
                               cmoe_view_2d(NULL, CMOE_I32, 0, K), cmoe_view_none(), &got, &arena,
                               &err));
    assert_int_equal(got.groups.first[E], 0);
    free(arena.base);
    free(other.base);
    cmoe_dispatch_free(d);
    close_world(&w);
}

static void bad_calls(void **state)
{
    static const int32_t ids[T * K];
    (void)state;
    world w = open_world();
    cmoe_dispatch *d = NULL;
    float x[T * H] = {0};
    UNIT_OK(cmoe_dispatch_create(&d, w.comm, &w.o, &err));
    int64_t need = -1;
    UNIT_OK(cmoe_dispatch_bytes(d, T, K, &need, NULL, &err));
    const int64_t fine = need;
    UNIT_FAILS(cmoe_dispatch_bytes(NULL, T, K, &need, NULL, &err), CMOE_ERR_ARG,
               "dispatch_bytes: dispatch is NULL");
    UNIT_FAILS(cmoe_dispatch_bytes(d, -1, K, &need, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = -1, topk = 2: want both >= 0");
    assert_int_equal(need, fine);
    cmoe_arena arena = unit_arena(need), small = cmoe_arena_make(arena.base, 20);
    cmoe_received got, before;
    memset(&got, 0x5a, sizeof got);
    got.size = sizeof got;
    before = got;
    const cmoe_view vx = cmoe_view_2d(x, CMOE_F32, T, H), vi = cmoe_view_2d(ids, CMOE_I32, T, K);
    cmoe_view v;
    cmoe_stream *s = w.e.stream;
    int64_t steps = -5;
    UNIT_FAILS(cmoe_dispatch_steps(NULL, 1, &steps, &arena, &err), CMOE_ERR_ARG,
               "dispatch_steps: dispatch is NULL");
    UNIT_FAILS(cmoe_dispatch_steps(d, 1, NULL, &arena, &err), CMOE_ERR_ARG,
               "dispatch_steps: steps is NULL");
    UNIT_FAILS(cmoe_dispatch_steps(d, -1, &steps, &arena, &err), CMOE_ERR_RANGE,
               "dispatch_steps: mine = -1, want >= 0");
    UNIT_FAILS(cmoe_dispatch_steps(d, 1, &steps, NULL, &err), CMOE_ERR_MEMORY,
               "dispatch: arena of 0 bytes is too small");
    assert_int_equal(steps, -5);
    cmoe_received old = got;
    old.size = 3;
    UNIT_FAILS(cmoe_dispatch_send(s, d, vx, vi, cmoe_view_none(), &old, &arena, &err), CMOE_ERR_ARG,
               "received.size = 3, want sizeof(cmoe_received)");
    UNIT_FAILS(
        cmoe_dispatch_send(s, d, vx, vi, cmoe_view_2d(x, CMOE_F32, T, K + 1), &got, &arena, &err),
        CMOE_ERR_SHAPE, "topk_weights: dims[1] = 3, want 2");
    UNIT_FAILS(cmoe_dispatch_send(NULL, d, vx, vi, cmoe_view_none(), &got, &arena, &err),
               CMOE_ERR_ARG, "stream is NULL");
    UNIT_FAILS(cmoe_dispatch_send(s, NULL, vx, vi, cmoe_view_none(), &got, &arena, &err),
               CMOE_ERR_ARG, "dispatch_send: dispatch is NULL");
    UNIT_FAILS(cmoe_dispatch_send(s, d, vx, vi, cmoe_view_none(), NULL, &arena, &err), CMOE_ERR_ARG,
               "dispatch_send: out is NULL");
    v = vx;
    v.dims[1] = H - 1;
    UNIT_FAILS(cmoe_dispatch_send(s, d, v, vi, cmoe_view_none(), &got, &arena, &err),
               CMOE_ERR_SHAPE, "x: dims[1] = 4, want 5 [tokens, hidden = 5]");
    v = vx;
    v.dtype = CMOE_I8;
    UNIT_FAILS(cmoe_dispatch_send(s, d, v, vi, cmoe_view_none(), &got, &arena, &err),
               CMOE_ERR_DTYPE, "x: dtype i8 (6), want one of: f32 f16 bf16 f64");
    v = vi;
    v.dims[0] = T - 1;
    UNIT_FAILS(cmoe_dispatch_send(s, d, vx, v, cmoe_view_none(), &got, &arena, &err),
               CMOE_ERR_SHAPE, "topk_ids: dims[0] = 3, want 4 [tokens = 4, topk]");
    v = vi;
    v.dtype = CMOE_F32;
    UNIT_FAILS(cmoe_dispatch_send(s, d, vx, v, cmoe_view_none(), &got, &arena, &err),
               CMOE_ERR_DTYPE, "topk_ids: dtype f32 (1), want one of: i32 i64");
    UNIT_FAILS(cmoe_dispatch_send(s, d, vx, vi, cmoe_view_none(), &got, &small, &err),
               CMOE_ERR_MEMORY, "align: arena of 20 bytes is too small");
    assert_memory_equal(&got, &before, sizeof got);
    assert_int_equal(arena.used, 0);
    UNIT_OK(cmoe_dispatch_send(s, d, vx, vi, cmoe_view_none(), &got, &arena, &err));
    cmoe_groups groups;
    cmoe_view own;
    memset(&own, 0x5a, sizeof own);
    const cmoe_view was = own;
    const cmoe_view rows = cmoe_view_2d(x, CMOE_F32, T, H);
    UNIT_FAILS(cmoe_dispatch_return(NULL, d, &got, rows, &own, &groups, &arena, &err), CMOE_ERR_ARG,
               "stream is NULL");
    UNIT_FAILS(cmoe_dispatch_return(s, NULL, &got, rows, &own, &groups, &arena, &err), CMOE_ERR_ARG,
               "dispatch_return: dispatch is NULL");
    UNIT_FAILS(cmoe_dispatch_return(s, d, NULL, rows, &own, &groups, &arena, &err), CMOE_ERR_ARG,
               "dispatch_return: received is NULL");
    UNIT_FAILS(cmoe_dispatch_return(s, d, &got, rows, NULL, &groups, &arena, &err), CMOE_ERR_ARG,
               "dispatch_return: own_rows is NULL");
    UNIT_FAILS(cmoe_dispatch_return(s, d, &got, rows, &own, NULL, &arena, &err), CMOE_ERR_ARG,
               "dispatch_return: own_groups is NULL");
    v = rows;
    v.dims[1] = 2;
    UNIT_FAILS(cmoe_dispatch_return(s, d, &got, v, &own, &groups, &arena, &err), CMOE_ERR_SHAPE,
               "rows: dims[1] = 2, want 5 [rows, hidden = 5]");
    assert_memory_equal(&own, &was, sizeof own);
    free(arena.base);
    cmoe_dispatch_free(d);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices),
        cmocka_unit_test(bad_create),
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(bad_calls),
    };
    return UNIT_RUN("unit_dispatch", tests);
}
