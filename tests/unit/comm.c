/* SPDX-License-Identifier: MIT
 *
 * comm.c - the local communicator is the identity, at the same address too; every error text.
 */
#include "unit.h"

typedef struct pair {
    unit_env e;
    cmoe_comm *c;
} pair;

static pair open_comm(void)
{
    pair p = {.e = unit_open(1)};
    UNIT_OK(cmoe_comm_create_local(&p.c, p.e.ctx, &err));
    return p;
}

static void close_comm(pair *p)
{
    cmoe_comm_free(p->c);
    unit_close(&p->e);
}

static void one_rank(void **state)
{
    (void)state;
    pair p = open_comm();
    assert_int_equal(cmoe_comm_rank(p.c), 0);
    assert_int_equal(cmoe_comm_size(p.c), 1);
    assert_string_equal(cmoe_comm_name(p.c), "local");
    assert_int_equal(cmoe_comm_size(NULL), 0);
    assert_int_equal(cmoe_comm_rank(NULL), 0);
    assert_null(cmoe_comm_name(NULL));
    cmoe_comm_free(NULL);
    UNIT_OK(cmoe_comm_barrier(p.c, &err));
    close_comm(&p);
}

static void identity(void **state)
{
    (void)state;
    pair p = open_comm();
    const char text[] = "what one rank says to itself";
    const int64_t n = sizeof text;
    char got[sizeof text] = {0}, again[sizeof text] = {0};
    UNIT_OK(cmoe_comm_all_to_all(p.c, text, &n, got, &n, &err));
    assert_memory_equal(got, text, sizeof text);
    UNIT_OK(cmoe_comm_all_gather(p.c, text, n, again, &err));
    assert_memory_equal(again, text, sizeof text);
    UNIT_OK(cmoe_comm_all_to_all(p.c, got, &n, got, &n, &err));
    UNIT_OK(cmoe_comm_all_gather(p.c, got, n, got, &err));
    assert_memory_equal(got, text, sizeof text);
    const float x[3] = {1.5f, -0.0f, 3e38f};
    float y[4] = {7, 7, 7, 7}, z[4] = {7, 7, 7, 7};
    UNIT_OK(cmoe_comm_all_reduce_f32(p.c, x, y, 3, &err));
    UNIT_OK(cmoe_comm_reduce_scatter_f32(p.c, x, z, 3, &err));
    assert_memory_equal(y, x, sizeof x);
    assert_memory_equal(z, x, sizeof x);
    assert_true(y[3] == 7 && z[3] == 7);
    UNIT_OK(cmoe_comm_all_reduce_f32(p.c, y, y, 3, &err));
    assert_memory_equal(y, x, sizeof x);
    close_comm(&p);
}

static void nothing_to_say(void **state)
{
    (void)state;
    pair p = open_comm();
    const int64_t none = 0;
    UNIT_OK(cmoe_comm_all_to_all(p.c, NULL, &none, NULL, &none, &err));
    UNIT_OK(cmoe_comm_all_gather(p.c, NULL, 0, NULL, &err));
    UNIT_OK(cmoe_comm_all_reduce_f32(p.c, NULL, NULL, 0, &err));
    UNIT_OK(cmoe_comm_reduce_scatter_f32(p.c, NULL, NULL, 0, &err));
    close_comm(&p);
}

static void errors(void **state)
{
    (void)state;
    pair p = open_comm();
    cmoe_comm *c = NULL;
    float x[4] = {1, 2, 3, 4}, y[4] = {5, 5, 5, 5};
    const float before[4] = {5, 5, 5, 5};
    const int64_t n = 8, other = 12, negative = -1, most = INT64_MAX;
    UNIT_FAILS(cmoe_comm_create_local(NULL, p.e.ctx, &err), CMOE_ERR_ARG, "comm: out is NULL");
    UNIT_FAILS(cmoe_comm_create_local(&c, NULL, &err), CMOE_ERR_ARG, "comm: ctx is NULL");
    assert_null(c);
    UNIT_FAILS(cmoe_comm_barrier(NULL, &err), CMOE_ERR_ARG,
               "barrier: comm is NULL, want a communicator");
    UNIT_FAILS(cmoe_comm_all_to_all(NULL, x, &n, y, &n, &err), CMOE_ERR_ARG,
               "all_to_all: comm is NULL, want a communicator");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, NULL, y, &n, &err), CMOE_ERR_ARG,
               "all_to_all: send_bytes is NULL, want sizes for 1 ranks");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, &n, y, NULL, &err), CMOE_ERR_ARG,
               "all_to_all: recv_bytes is NULL, want sizes for 1 ranks");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, NULL, &n, y, &n, &err), CMOE_ERR_ARG,
               "all_to_all: send is NULL, want 8 bytes");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, &n, NULL, &n, &err), CMOE_ERR_ARG,
               "all_to_all: recv is NULL, want 8 bytes");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, &negative, y, &n, &err), CMOE_ERR_SHAPE,
               "all_to_all: send of -1 bytes, want >= 0 and below 2^63");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, &n, y, &negative, &err), CMOE_ERR_SHAPE,
               "all_to_all: recv of -1 bytes, want >= 0 and below 2^63");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, &n, y, &other, &err), CMOE_ERR_COMM,
               "all_to_all: rank 0 sends itself 8 bytes and expects 12, want the same");
    UNIT_FAILS(cmoe_comm_all_to_all(p.c, x, &n, y, &most, &err), CMOE_ERR_COMM, "want the same");
    UNIT_FAILS(cmoe_comm_all_gather(NULL, x, n, y, &err), CMOE_ERR_ARG,
               "all_gather: comm is NULL, want a communicator");
    UNIT_FAILS(cmoe_comm_all_gather(p.c, NULL, n, y, &err), CMOE_ERR_ARG,
               "all_gather: send is NULL, want 8 bytes");
    UNIT_FAILS(cmoe_comm_all_gather(p.c, x, n, NULL, &err), CMOE_ERR_ARG,
               "all_gather: recv is NULL, want 8 bytes");
    UNIT_FAILS(cmoe_comm_all_gather(p.c, x, -1, y, &err), CMOE_ERR_SHAPE,
               "all_gather: send of -1 bytes, want >= 0 and below 2^63");
    UNIT_FAILS(cmoe_comm_all_reduce_f32(NULL, x, y, 4, &err), CMOE_ERR_ARG,
               "all_reduce: comm is NULL, want a communicator");
    UNIT_FAILS(cmoe_comm_all_reduce_f32(p.c, NULL, y, 4, &err), CMOE_ERR_ARG,
               "all_reduce: in is NULL, want 16 bytes");
    UNIT_FAILS(cmoe_comm_all_reduce_f32(p.c, x, NULL, 4, &err), CMOE_ERR_ARG,
               "all_reduce: out is NULL, want 16 bytes");
    UNIT_FAILS(cmoe_comm_all_reduce_f32(p.c, x, y, -4, &err), CMOE_ERR_SHAPE,
               "all_reduce: in of -1 bytes, want >= 0 and below 2^63");
    UNIT_FAILS(cmoe_comm_all_reduce_f32(p.c, x, y, INT64_MAX / 2, &err), CMOE_ERR_SHAPE,
               "all_reduce: in of -1 bytes, want >= 0 and below 2^63");
    UNIT_FAILS(cmoe_comm_reduce_scatter_f32(NULL, x, y, 4, &err), CMOE_ERR_ARG,
               "reduce_scatter: comm is NULL, want a communicator");
    UNIT_FAILS(cmoe_comm_reduce_scatter_f32(p.c, NULL, y, 4, &err), CMOE_ERR_ARG,
               "reduce_scatter: in is NULL, want 16 bytes");
    UNIT_FAILS(cmoe_comm_reduce_scatter_f32(p.c, x, NULL, 4, &err), CMOE_ERR_ARG,
               "reduce_scatter: out is NULL, want 16 bytes");
    UNIT_FAILS(cmoe_comm_reduce_scatter_f32(p.c, x, y, -1, &err), CMOE_ERR_SHAPE,
               "reduce_scatter: in of -1 bytes");
    assert_int_equal(cmoe_comm_barrier(NULL, NULL), CMOE_ERR_ARG);
    assert_memory_equal(y, before, sizeof y);
    close_comm(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank),
        cmocka_unit_test(identity),
        cmocka_unit_test(nothing_to_say),
        cmocka_unit_test(errors),
    };
    return UNIT_RUN("unit_comm", tests);
}
