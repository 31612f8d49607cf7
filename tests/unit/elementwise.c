/* SPDX-License-Identifier: MIT
 *
 * elementwise.c - embedding, scaled_add and clip: values, formats, in place, any number of threads,
 * and every error text.
 */
#include <math.h>

#include "isa.h"
#include "unit.h"

#include "core/core.h"

static cmoe_view of(const float *p, int64_t n, int64_t h)
{
    return cmoe_view_2d(p, CMOE_F32, n, h);
}

static cmoe_view_mut to(float *p, int64_t n, int64_t h)
{
    return cmoe_view_mut_2d(p, CMOE_F32, n, h);
}

static void untouched(const float *p, int64_t n)
{
    for (int64_t i = 0; i < n * 4; i++)
        assert_int_equal(((const unsigned char *)p)[i], 0x5a);
}

static void embedding(void **state)
{
    (void)state;
    enum { VOCAB = 7, H = 37, T = 6 };
    float rows[VOCAB * H], out[T * H];
    uint16_t table[VOCAB * H];
    for (int i = 0; i < VOCAB * H; i++)
        rows[i] = cmoei_round_bf16(cmoe_random_normal(1, (uint64_t)i, 0));
    cmoei_store_f32(table, CMOE_BF16, 1, rows, VOCAB * H);
    const int64_t ids[2 * T] = {6, -9, 0, -9, 3, -9, 3, -9, 6, -9, 1, -9};
    cmoe_view every_second = cmoe_view_1d(ids, CMOE_I64, T);
    every_second.strides[0] = 2;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        UNIT_OK(cmoe_embedding(e.stream, every_second, cmoe_view_2d(table, CMOE_BF16, VOCAB, H),
                               .3f, to(out, T, H), &err));
        for (int i = 0; i < T * H; i++)
            assert_true(out[i] == rows[ids[i / H * 2] * H + i % H] * .3f);
        uint16_t half[T * H];
        UNIT_OK(cmoe_embedding(e.stream, every_second, cmoe_view_2d(table, CMOE_BF16, VOCAB, H), 1,
                               cmoe_view_mut_2d(half, CMOE_BF16, T, H), &err));
        for (int i = 0; i < T * H; i++)
            assert_int_equal(half[i], table[ids[i / H * 2] * H + i % H]);
        unit_close(&e);
    }
    unit_env e = unit_open(1);
    const int32_t id = 0;
    UNIT_OK(cmoe_embedding(e.stream, cmoe_view_1d(NULL, CMOE_I32, 0), of(rows, VOCAB, H), 1,
                           to(NULL, 0, H), &err));
    UNIT_OK(cmoe_embedding(e.stream, cmoe_view_1d(&id, CMOE_I32, 1), of(NULL, 1, 0), 1,
                           to(NULL, 1, 0), &err));
    unit_close(&e);
}

static void embedding_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int32_t ids[2] = {0, 2};
    float table[6] = {0}, out[6];
    memset(out, 0x5a, sizeof out);
    const cmoe_view vi = cmoe_view_1d(ids, CMOE_I32, 2), vt = of(table, 2, 3);
    const cmoe_view_mut vo = to(out, 2, 3);
    UNIT_FAILS(cmoe_embedding(NULL, vi, vt, 1, vo, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_embedding(e.stream, vi, vt, 1, vo, &err), CMOE_ERR_RANGE,
               "ids[1] = 2, want 0 <= id < 2 (vocab)");
    ids[1] = -1;
    UNIT_FAILS(cmoe_embedding(e.stream, vi, vt, 1, vo, &err), CMOE_ERR_RANGE, "ids[1] = -1");
    UNIT_FAILS(cmoe_embedding(e.stream, vi, of(NULL, 0, 3), 1, vo, &err), CMOE_ERR_RANGE,
               "ids[0] = 0, want 0 <= id < 0 (vocab)");
    ids[1] = 1;
    UNIT_FAILS(cmoe_embedding(e.stream, vi, vt, INFINITY, vo, &err), CMOE_ERR_RANGE,
               "scale = inf, want a finite number");
    UNIT_FAILS(cmoe_embedding(e.stream, vt, vt, 1, vo, &err), CMOE_ERR_SHAPE,
               "ids: rank 2, want 1 [tokens]");
    UNIT_FAILS(cmoe_embedding(e.stream, vi, vi, 1, vo, &err), CMOE_ERR_SHAPE,
               "table: rank 1, want 2 [vocab, hidden]");
    UNIT_FAILS(cmoe_embedding(e.stream, vi, cmoe_view_2d(table, CMOE_I8, 2, 3), 1, vo, &err),
               CMOE_ERR_DTYPE, "table: dtype i8");
    UNIT_FAILS(cmoe_embedding(e.stream, vi, vt, 1, to(out, 2, 2), &err), CMOE_ERR_SHAPE,
               "out: dims[1] = 2, want 3 [tokens = 2, hidden = 3]");
    UNIT_FAILS(cmoe_embedding(e.stream, vi, vt, 1, to(table, 2, 3), &err), CMOE_ERR_ARG,
               "out overlaps table");
    int32_t both[6] = {0};
    UNIT_FAILS(cmoe_embedding(e.stream, cmoe_view_1d(both, CMOE_I32, 2), vt, 1,
                              cmoe_view_mut_2d(both, CMOE_F32, 2, 3), &err),
               CMOE_ERR_ARG, "out overlaps ids");
    untouched(out, 6);
    unit_close(&e);
}

static void scaled_add(void **state)
{
    (void)state;
    enum { N = 70, H = 1030 };
    const size_t bytes = N * H * sizeof(float);
    float *x = malloc(bytes), *y = malloc(bytes), *sum = malloc(bytes), *product = malloc(bytes);
    for (int i = 0; i < N * H; i++) {
        x[i] = cmoe_random_normal(1, (uint64_t)i, 0);
        y[i] = cmoe_random_normal(2, (uint64_t)i, 0);
    }
    for (int32_t threads = 1; threads < 4; threads++) {
        unit_env e = unit_open(threads);
        UNIT_OK(cmoe_scaled_add(e.stream, of(x, N, H), of(y, N, H), .1f, to(sum, N, H), &err));
        UNIT_OK(
            cmoe_scaled_add(e.stream, cmoe_view_none(), of(y, N, H), .1f, to(product, N, H), &err));
        for (int i = 0; i < N * H; i++) {
            assert_true(sum[i] == fmaf(y[i], .1f, x[i]));
            assert_true(product[i] == y[i] * .1f);
        }
        memcpy(product, x, bytes);
        UNIT_OK(cmoe_scaled_add(e.stream, of(product, N, H), of(y, N, H), .1f, to(product, N, H),
                                &err));
        assert_memory_equal(product, sum, bytes);
        memcpy(product, y, bytes);
        UNIT_OK(cmoe_scaled_add(e.stream, cmoe_view_none(), of(product, N, H), .1f,
                                to(product, N, H), &err));
        for (int i = 0; i < N * H; i++)
            assert_true(product[i] == y[i] * .1f);
        unit_close(&e);
    }
    free(x), free(y), free(sum), free(product);
}

static void clip(void **state)
{
    (void)state;
    const float x[8] = {1, -1, 3, -3, NAN, INFINITY, -INFINITY, -0.0f};
    const float want[8] = {1, -1, 2, -2, NAN, 2, -2, -0.0f};
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(1, isa);
        float out[8];
        memcpy(out, x, sizeof x);
        UNIT_OK(cmoe_clip(e.stream, of(out, 2, 4), 2, to(out, 2, 4), &err));
        for (int i = 0; i < 8; i++)
            assert_true(isnan(want[i]) ? isnan(out[i]) : cmoei_bits(out[i]) == cmoei_bits(want[i]));
        UNIT_OK(cmoe_clip(e.stream, of(x, 2, 4), INFINITY, to(out, 2, 4), &err));
        assert_memory_equal(out, x, sizeof x);
        UNIT_OK(cmoe_clip(e.stream, of(NULL, 0, 4), 2, to(NULL, 0, 4), &err));
        unit_close(&e);
    }
}

static void errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[6] = {0}, y[6] = {0}, out[6];
    memset(out, 0x5a, sizeof out);
    const cmoe_view vx = of(x, 2, 3), vy = of(y, 2, 3), none = cmoe_view_none();
    const cmoe_view_mut vo = to(out, 2, 3);
    UNIT_FAILS(cmoe_scaled_add(NULL, vx, vy, 1, vo, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_scaled_add(e.stream, vx, vy, NAN, vo, &err), CMOE_ERR_RANGE, "scale = ");
    UNIT_FAILS(cmoe_scaled_add(e.stream, vx, none, 1, vo, &err), CMOE_ERR_ARG, "y is not given");
    UNIT_FAILS(cmoe_scaled_add(e.stream, of(x, 1, 3), vy, 1, vo, &err), CMOE_ERR_SHAPE,
               "x: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_scaled_add(e.stream, vx, vy, 1, to(out, 2, 2), &err), CMOE_ERR_SHAPE,
               "out: dims[1] = 2, want 3");
    UNIT_FAILS(cmoe_scaled_add(e.stream, vx, vy, 1, to(y, 2, 3), &err), CMOE_ERR_ARG,
               "out overlaps y");
    UNIT_FAILS(cmoe_scaled_add(e.stream, of(x, 1, 3), of(y, 1, 3), 1, to(x + 1, 1, 3), &err),
               CMOE_ERR_ARG, "out overlaps x");
    UNIT_FAILS(cmoe_clip(NULL, vx, 1, vo, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_clip(e.stream, vx, -1, vo, &err), CMOE_ERR_RANGE, "limit = -1, want >= 0");
    UNIT_FAILS(cmoe_clip(e.stream, vx, NAN, vo, &err), CMOE_ERR_RANGE, "limit = ");
    UNIT_FAILS(cmoe_clip(e.stream, none, 1, vo, &err), CMOE_ERR_ARG, "x is not given");
    UNIT_FAILS(cmoe_clip(e.stream, vx, 1, to(out, 1, 3), &err), CMOE_ERR_SHAPE,
               "out: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_clip(e.stream, of(x, 1, 3), 1, to(x + 1, 1, 3), &err), CMOE_ERR_ARG,
               "out overlaps x");
    untouched(out, 6);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding),  cmocka_unit_test(embedding_errors),
        cmocka_unit_test(scaled_add), cmocka_unit_test(clip),
        cmocka_unit_test(errors),
    };
    return UNIT_RUN("unit_elementwise", tests);
}
