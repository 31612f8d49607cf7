/* SPDX-License-Identifier: MIT
 *
 * combine.c - cmoe_combine: values by hand, formats, strides and addresses, the same bits at any
 * number of threads and on any instruction set, and every error text.
 */
#include <math.h>

#include "unit.h"

#include "core/core.h"

static cmoe_groups groups(int64_t tokens, int64_t topk, const int32_t *row_of)
{
    return (cmoe_groups){.tokens = tokens, .topk = topk, .row_of = row_of};
}

static cmoe_combine_options options(float scale, int32_t shared_first)
{
    cmoe_combine_options o;
    cmoe_combine_options_default(&o, sizeof o);
    o.scale = scale;
    o.shared_first = shared_first;
    return o;
}

static void by_hand(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const float rows[3][2] = {{1, 2}, {10, 20}, {100, 200}}, w[6] = {.5f, 2, 3, 4, 8, -1};
    const float shared[6] = {7, 7, 8, 8, 9, 9};
    const int32_t row_of[6] = {2, 0, -1, 1, 1, 1}; /* token 1 dropped one, token 2 has one twice */
    const cmoe_groups g = groups(3, 2, row_of);
    const cmoe_view r = cmoe_view_2d(rows, CMOE_F32, 3, 2), none = cmoe_view_none();
    const cmoe_view vw = cmoe_view_2d(w, CMOE_F32, 3, 2), vs = cmoe_view_2d(shared, CMOE_F32, 3, 2);
    float out[6];
    const cmoe_view_mut o = cmoe_view_mut_2d(out, CMOE_F32, 3, 2);

    UNIT_OK(cmoe_combine(e.stream, NULL, r, vw, &g, none, o, NULL, &err));
    assert_memory_equal(out, ((const float[6]){52, 104, 40, 80, 70, 140}), sizeof out);
    UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, none, o, NULL, &err));
    assert_memory_equal(out, ((const float[6]){101, 202, 10, 20, 20, 40}), sizeof out);
    cmoe_combine_options half = options(.5f, 0);
    UNIT_OK(cmoe_combine(e.stream, &half, r, vw, &g, vs, o, NULL, &err));
    assert_memory_equal(out, ((const float[6]){33, 59, 28, 48, 44, 79}), sizeof out);
    half.shared_first = 1; /* the scale is that of the routed sum all the same */
    UNIT_OK(cmoe_combine(e.stream, &half, r, vw, &g, vs, o, NULL, &err));
    assert_memory_equal(out, ((const float[6]){33, 59, 28, 48, 44, 79}), sizeof out);
    UNIT_OK(cmoe_combine(e.stream, &half, r, vw, &g, none, o, NULL, &err));
    assert_memory_equal(out, ((const float[6]){26, 52, 20, 40, 35, 70}), sizeof out);
    unit_close(&e);
}

/* 2^24 + 1 + 1: adding the small ones one by one loses both, first keeps them. */
static void order_is_that_of_slots(void **state)
{
    (void)state;
    const char *isas[] = {"ref", NULL};
    for (int i = 0; i < 2; i++) {
        unit_env e = unit_open_isa(1, isas[i]);
        const float rows[3] = {1, 16777216, 1}, shared = 1;
        const int32_t big_first[3] = {1, 0, 2}, big_last[3] = {0, 2, 1};
        float out;
        const cmoe_view r = cmoe_view_2d(rows, CMOE_F32, 3, 1), none = cmoe_view_none();
        const cmoe_view_mut o = cmoe_view_mut_2d(&out, CMOE_F32, 1, 1);
        cmoe_groups g = groups(1, 3, big_first);
        UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, none, o, NULL, &err));
        assert_true(out == 16777216);
        g.row_of = big_last;
        UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, none, o, NULL, &err));
        assert_true(out == 16777218);
        /* Last: 2^24 + 2, then + 1, a tie to even.  First: 1 + 1 + 1 + 2^24, a tie to even. */
        const cmoe_view s = cmoe_view_2d(&shared, CMOE_F32, 1, 1);
        UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, s, o, NULL, &err));
        assert_true(out == 16777220);
        const cmoe_combine_options first = options(1, 1);
        UNIT_OK(cmoe_combine(e.stream, &first, r, none, &g, s, o, NULL, &err));
        assert_true(out == 16777220);
        g.row_of = big_first;
        UNIT_OK(cmoe_combine(e.stream, &first, r, none, &g, s, o, NULL, &err));
        assert_true(out == 16777216);
        unit_close(&e);
    }
}

static void nothing_to_add(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float out[6] = {5, 5, 5, 5, 5, 5};
    const float shared[6] = {1, 2, 3, 4, 5, 6}, zeros[6] = {0};
    const int32_t dropped[3] = {-1, -1, -1};
    const cmoe_view none = cmoe_view_none(), r = cmoe_view_2d(NULL, CMOE_F32, 0, 2);
    const cmoe_view_mut o = cmoe_view_mut_2d(out, CMOE_F32, 3, 2);
    cmoe_groups g = groups(3, 0, NULL);
    UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, none, o, NULL, &err));
    assert_memory_equal(out, zeros, sizeof out);
    UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, cmoe_view_2d(shared, CMOE_F32, 3, 2), o, NULL,
                         &err));
    assert_memory_equal(out, shared, sizeof out);
    g = groups(3, 1, dropped);
    UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, none, o, NULL, &err));
    assert_memory_equal(out, zeros, sizeof out);
    g = groups(0, 4, NULL);
    UNIT_OK(cmoe_combine(e.stream, NULL, r, none, &g, none, cmoe_view_mut_2d(NULL, CMOE_F32, 0, 2),
                         NULL, &err));
    g = groups(INT64_MAX, 0, NULL); /* no columns: nothing to do, at once */
    UNIT_OK(cmoe_combine(e.stream, NULL, cmoe_view_2d(NULL, CMOE_F32, 4, 0), none, &g, none,
                         cmoe_view_mut_2d(NULL, CMOE_F32, INT64_MAX, 0), NULL, &err));
    unit_close(&e);
}

/* ---- bits ------------------------------------------------------------------------------------ */

/* One result of random inputs in a format; `odd` moves everything to odd addresses, and columns two
 * apart. */
static void result(const char *isa, int32_t threads, int64_t T, int64_t K, int64_t H, int32_t dtype,
                   int odd, float *out)
{
    unit_env e = unit_open_isa(threads, isa);
    const int64_t bytes = cmoe_dtype_bytes(dtype), col = odd ? 2 : 1, R = T * K;
    char *rows = malloc((size_t)(R * H * bytes * col + 1)), *w = malloc((size_t)(T * K * 4 + 1));
    char *o = malloc((size_t)(T * H * bytes * col + 1));
    int32_t *row_of = malloc((size_t)(T * K) * sizeof *row_of);
    for (int64_t i = 0; i < R * H; i++) {
        const float x = (float)(cmoe_random_uniform(1, (uint64_t)i, 0) - .5f);
        cmoei_store_f32(rows + odd + i * bytes * col, dtype, 1, &x, 1);
    }
    for (int64_t i = 0; i < T * K; i++) {
        const float x = cmoe_random_uniform(2, (uint64_t)i, 0);
        memcpy(w + odd + i * 4, &x, 4);
        row_of[i] = (int32_t)(cmoe_random_u64(3, (uint64_t)i, 0) % (uint64_t)(R + 1)) - 1;
    }
    const cmoe_groups g = groups(T, K, row_of);
    cmoe_view r = cmoe_view_2d(rows + odd, dtype, R, H);
    cmoe_view_mut vo = cmoe_view_mut_2d(o + odd, dtype, T, H);
    r.strides[0] *= col, r.strides[1] *= col;
    vo.strides[0] *= col, vo.strides[1] *= col;
    UNIT_OK(cmoe_combine(e.stream, NULL, r, cmoe_view_2d(w + odd, CMOE_F32, T, K), &g,
                         cmoe_view_none(), vo, NULL, &err));
    for (int64_t i = 0; i < T * H; i++)
        cmoei_load_f32(out + i, o + odd + i * bytes * col, dtype, 1, 1);
    free(rows), free(w), free(o), free(row_of);
    unit_close(&e);
}

static void same_bits(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{1, 8, 30000}, {3, 5, 9001}, {300, 4, 130}};
    const int32_t dtypes[] = {CMOE_F32, CMOE_BF16, CMOE_F16, CMOE_F64};
    for (int s = 0; s < 3; s++) {
        const int64_t T = shapes[s][0], K = shapes[s][1], H = shapes[s][2];
        const size_t bytes = (size_t)(T * H) * sizeof(float);
        float *one = malloc(bytes), *other = malloc(bytes);
        for (int d = 0; d < 4; d++) {
            result("ref", 1, T, K, H, dtypes[d], 0, one);
            result("avx2", 1, T, K, H, dtypes[d], 0, other);
            assert_memory_equal(one, other, bytes);
            const int32_t threads[] = {1, 2, 3, 8};
            for (int t = 0; t < 4; t++) {
                result(NULL, threads[t], T, K, H, dtypes[d], t & 1, other);
                assert_memory_equal(one, other, bytes);
            }
        }
        free(one), free(other);
    }
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float rows[8] = {0}, w[4] = {0}, shared[4] = {0}, out[4];
    const int32_t row_of[4] = {0, 1, 2, 3}, beyond[4] = {0, 1, 2, 4}, below[4] = {0, 1, -2, 3};
    memset(out, 0x5a, sizeof out);
    const cmoe_view r = cmoe_view_2d(rows, CMOE_F32, 4, 2), none = cmoe_view_none();
    const cmoe_view vw = cmoe_view_2d(w, CMOE_F32, 2, 2), vs = cmoe_view_2d(shared, CMOE_F32, 2, 2);
    const cmoe_view_mut o = cmoe_view_mut_2d(out, CMOE_F32, 2, 2);
    const cmoe_groups g = groups(2, 2, row_of);
    cmoe_groups bad = g;

    UNIT_FAILS(cmoe_combine(NULL, NULL, r, vw, &g, vs, o, NULL, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, NULL, vs, o, NULL, &err), CMOE_ERR_ARG,
               "groups is NULL");
    bad.row_of = NULL;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &bad, vs, o, NULL, &err), CMOE_ERR_ARG,
               "row_of is NULL, want 4 rows");
    bad.row_of = beyond;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &bad, vs, o, NULL, &err), CMOE_ERR_RANGE,
               "row_of[1, 1] = 4, want -1 <= row < 4 (rows)");
    bad.row_of = below;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &bad, vs, o, NULL, &err), CMOE_ERR_RANGE,
               "row_of[1, 0] = -2");
    bad = g, bad.tokens = -1;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &bad, vs, o, NULL, &err), CMOE_ERR_SHAPE,
               "groups: tokens = -1, topk = 2");
    bad.tokens = 1 << 30;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &bad, vs, o, NULL, &err), CMOE_ERR_SHAPE,
               "tokens * topk <= 2147483647");

    cmoe_combine_options c = options(1, 2);
    UNIT_FAILS(cmoe_combine(e.stream, &c, r, vw, &g, vs, o, NULL, &err), CMOE_ERR_RANGE,
               "shared_first = 2, want 0 or 1");
    c = options(INFINITY, 0);
    UNIT_FAILS(cmoe_combine(e.stream, &c, r, vw, &g, vs, o, NULL, &err), CMOE_ERR_RANGE,
               "scale = inf, want a finite number");
    c = options(NAN, 0);
    UNIT_FAILS(cmoe_combine(e.stream, &c, r, vw, &g, vs, o, NULL, &err), CMOE_ERR_RANGE, "scale");
    c.size = 1;
    UNIT_FAILS(cmoe_combine(e.stream, &c, r, vw, &g, vs, o, NULL, &err), CMOE_ERR_ARG,
               "cmoe_combine_options.size");

    UNIT_FAILS(
        cmoe_combine(e.stream, NULL, cmoe_view_2d(rows, CMOE_I8, 4, 2), vw, &g, vs, o, NULL, &err),
        CMOE_ERR_DTYPE, "rows: dtype i8 (6), want one of: f32 f16 bf16 f64");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, none, vw, &g, vs, o, NULL, &err), CMOE_ERR_ARG,
               "rows is not given");
    UNIT_FAILS(
        cmoe_combine(e.stream, NULL, r, cmoe_view_2d(w, CMOE_F32, 1, 4), &g, vs, o, NULL, &err),
        CMOE_ERR_SHAPE, "weights: dims[0] = 1, want 2 [tokens = 2, topk = 2]");
    UNIT_FAILS(
        cmoe_combine(e.stream, NULL, r, cmoe_view_2d(NULL, CMOE_F32, 2, 2), &g, vs, o, NULL, &err),
        CMOE_ERR_ARG, "weights: data is NULL");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, cmoe_view_2d(shared, CMOE_F32, 2, 1), o,
                            NULL, &err),
               CMOE_ERR_SHAPE, "shared: dims[1] = 1, want 2");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, vs, cmoe_view_mut_2d(out, CMOE_F32, 1, 2),
                            NULL, &err),
               CMOE_ERR_SHAPE, "out: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, vs, cmoe_view_mut_2d(out, CMOE_I32, 2, 2),
                            NULL, &err),
               CMOE_ERR_DTYPE, "out: dtype i32");
    cmoe_view_mut folded = o;
    folded.strides[0] = 1;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, vs, folded, NULL, &err), CMOE_ERR_SHAPE,
               "out: strides are negative or make elements share memory");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, vs,
                            cmoe_view_mut_2d(rows + 2, CMOE_F32, 2, 2), NULL, &err),
               CMOE_ERR_ARG, "out overlaps rows");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, vs, cmoe_view_mut_2d(w, CMOE_F32, 2, 2),
                            NULL, &err),
               CMOE_ERR_ARG, "out overlaps weights");
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &g, vs, cmoe_view_mut_2d(shared, CMOE_F32, 2, 2),
                            NULL, &err),
               CMOE_ERR_ARG, "out overlaps shared");
    int32_t both[4] = {0};
    bad = g, bad.row_of = both;
    UNIT_FAILS(cmoe_combine(e.stream, NULL, r, vw, &bad, none,
                            cmoe_view_mut_2d(both, CMOE_F32, 2, 2), NULL, &err),
               CMOE_ERR_ARG, "out overlaps groups.row_of");
    for (int i = 0; i < 16; i++)
        assert_int_equal(((unsigned char *)out)[i], 0x5a);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_hand),        cmocka_unit_test(order_is_that_of_slots),
        cmocka_unit_test(nothing_to_add), cmocka_unit_test(same_bits),
        cmocka_unit_test(errors),
    };
    return UNIT_RUN("unit_combine", tests);
}
