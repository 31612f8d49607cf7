/* SPDX-License-Identifier: MIT
 *
 * norm.c - norms of heads (rms_norm of rank 3) and layer norm: the same bits as the flattened rows,
 * values by hand, large means, in place, any number of threads, and every error text.
 */
#include <math.h>

#include "isa.h"
#include "unit.h"

#include "core/core.h"

static void normals(float *x, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
}

static cmoe_view of(const float *p, int64_t n, int64_t h)
{
    return cmoe_view_2d(p, CMOE_F32, n, h);
}

static cmoe_view_mut to(float *p, int64_t n, int64_t h)
{
    return cmoe_view_mut_2d(p, CMOE_F32, n, h);
}

/* ---- heads ----------------------------------------------------------------------------------- */

enum { T = 5, HEADS = 3, D = 40, WIDE = 400, FROM = 17 };

/* Heads inside wider rows: [T, HEADS, D] with a token WIDE elements behind the other. */
static cmoe_view heads_in(const float *p)
{
    cmoe_view v = cmoe_view_3d(p + FROM, CMOE_F32, T, HEADS, D);
    v.strides[0] = WIDE;
    return v;
}

static cmoe_view_mut heads_out(float *p)
{
    cmoe_view_mut v = cmoe_view_mut_make(p + FROM, CMOE_F32, 3, (const int64_t[]){T, HEADS, D});
    v.strides[0] = WIDE;
    return v;
}

static void gather(float *flat, const float *wide)
{
    for (int64_t t = 0; t < T; t++)
        memcpy(flat + t * HEADS * D, wide + FROM + t * WIDE, HEADS * D * sizeof *flat);
}

static void heads_are_rows(void **state)
{
    (void)state;
    static float x[T * WIDE], r[T * WIDE], out[T * WIDE], sum[T * WIDE], w[D];
    static float fx[T * HEADS * D], fr[sizeof fx / 4], want[sizeof fx / 4], want_sum[sizeof fx / 4],
        got[sizeof fx / 4];
    normals(w, D, 3);
    const cmoe_view vw = cmoe_view_1d(w, CMOE_F32, D);
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(3, isa);
        normals(x, T * WIDE, 1), normals(r, T * WIDE, 2);
        gather(fx, x), gather(fr, r);
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, of(fx, T * HEADS, D), of(fr, T * HEADS, D), vw,
                              to(want, T * HEADS, D), to(want_sum, T * HEADS, D), &err));
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, heads_in(x), heads_in(r), vw, heads_out(out),
                              heads_out(sum), &err));
        gather(got, out);
        assert_memory_equal(got, want, sizeof got);
        gather(got, sum);
        assert_memory_equal(got, want_sum, sizeof got);
        /* In place, in a row that holds other things too. */
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, of(fx, T * HEADS, D), cmoe_view_none(), vw,
                              to(want, T * HEADS, D), cmoe_view_mut_none(), &err));
        const float before = x[FROM - 1], behind = x[FROM + HEADS * D];
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, heads_in(x), cmoe_view_none(), vw, heads_out(x),
                              cmoe_view_mut_none(), &err));
        gather(got, x);
        assert_memory_equal(got, want, sizeof got);
        assert_true(x[FROM - 1] == before && x[FROM + HEADS * D] == behind);
        unit_close(&e);
    }
}

/* Heads before tokens, every second element, tokens backwards: only the input may lie so. */
static void heads_any_strides(void **state)
{
    (void)state;
    enum { ALL = T * HEADS * D };
    static float x[2 * ALL], flat[ALL], want[ALL], out[ALL];
    unit_env e = unit_open(2);
    normals(x, 2 * ALL, 9);
    cmoe_view v = cmoe_view_3d(x + (T - 1) * 2 * D, CMOE_F32, T, HEADS, D);
    v.strides[0] = -2 * D, v.strides[1] = 2 * D * T, v.strides[2] = 2;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t h = 0; h < HEADS; h++) {
            for (int64_t i = 0; i < D; i++)
                flat[(t * HEADS + h) * D + i] = x[(T - 1 - t) * 2 * D + h * 2 * D * T + 2 * i];
        }
    }
    UNIT_OK(cmoe_rms_norm(e.stream, NULL, of(flat, T * HEADS, D), cmoe_view_none(),
                          cmoe_view_none(), to(want, T * HEADS, D), cmoe_view_mut_none(), &err));
    const cmoe_view_mut vo = cmoe_view_mut_make(out, CMOE_F32, 3, (const int64_t[]){T, HEADS, D});
    UNIT_OK(cmoe_rms_norm(e.stream, NULL, v, cmoe_view_none(), cmoe_view_none(), vo,
                          cmoe_view_mut_none(), &err));
    assert_memory_equal(out, want, sizeof want);
    const int64_t none[][3] = {{0, 3, 4}, {2, 0, 4}, {2, 3, 0}};
    for (int i = 0; i < 3; i++)
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, cmoe_view_make(NULL, CMOE_F32, 3, none[i]),
                              cmoe_view_none(), cmoe_view_none(),
                              cmoe_view_mut_make(NULL, CMOE_F32, 3, none[i]), cmoe_view_mut_none(),
                              &err));
    unit_close(&e);
}

static void heads_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[24] = {0}, out[24], w[4] = {0};
    memset(out, 0x5a, sizeof out);
    const cmoe_view vx = cmoe_view_3d(x, CMOE_F32, 2, 3, 4), none = cmoe_view_none();
    const cmoe_view_mut vo = cmoe_view_mut_make(out, CMOE_F32, 3, (const int64_t[]){2, 3, 4});
    const cmoe_view_mut no = cmoe_view_mut_none();
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, none, none, to(out, 6, 4), no, &err),
               CMOE_ERR_SHAPE, "out: rank 2, want 3 [rows = 2, heads = 3, hidden = 4]");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, of(x, 6, 4), none, none, vo, no, &err), CMOE_ERR_SHAPE,
               "out: rank 3, want 2 [rows = 6, hidden = 4]");
    UNIT_FAILS(
        cmoe_rms_norm(e.stream, NULL, vx, cmoe_view_3d(x, CMOE_F32, 2, 2, 4), none, vo, no, &err),
        CMOE_ERR_SHAPE, "residual: dims[1] = 2, want 3");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, none, cmoe_view_1d(w, CMOE_F32, 3), vo, no, &err),
               CMOE_ERR_SHAPE, "weight: dims[0] = 3, want 4 [hidden = 4]");
    UNIT_FAILS(
        cmoe_rms_norm(e.stream, NULL, vx, none, cmoe_view_2d(w, CMOE_F32, 1, 4), vo, no, &err),
        CMOE_ERR_SHAPE, "weight: rank 2, want 1");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, none, none, vo, to(x, 6, 4), &err), CMOE_ERR_SHAPE,
               "residual_out: rank 2, want 3");
    for (size_t i = 0; i < sizeof out; i++)
        assert_int_equal(((unsigned char *)out)[i], 0x5a);
    unit_close(&e);
}

/* ---- layer norm ------------------------------------------------------------------------------ */

/* 1 3 has mean 2, variance 1; weight 2 -1, bias .5 .25. */
static void layer_values(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const float x[2] = {0, 5}, r[2] = {1, -2}, w[2] = {2, -1}, b[2] = {.5f, .25f};
    const cmoe_view none = cmoe_view_none(), vw = cmoe_view_1d(w, CMOE_F32, 2);
    const cmoe_view vb = cmoe_view_1d(b, CMOE_F32, 2);
    float out[2], sum[2];
    UNIT_OK(cmoe_layer_norm(e.stream, 0, of(x, 1, 2), of(r, 1, 2), vw, vb, to(out, 1, 2),
                            to(sum, 1, 2), &err));
    assert_true(out[0] == -1.5f && out[1] == -.75f && sum[0] == 1 && sum[1] == 3);
    UNIT_OK(cmoe_layer_norm(e.stream, 0, of(sum, 1, 2), none, none, none, to(out, 1, 2),
                            cmoe_view_mut_none(), &err));
    assert_true(out[0] == -1 && out[1] == 1);
    UNIT_OK(cmoe_layer_norm(e.stream, 3, of(sum, 1, 2), none, none, vb, to(out, 1, 2),
                            cmoe_view_mut_none(), &err)); /* 1 / sqrt(1 + 3) */
    assert_true(out[0] == 0 && out[1] == .75f);
    /* A mean of 4096 leaves mean(s^2) - mean(s)^2 nothing: 2^24 +- 1 are the same float32. */
    float far[64];
    for (int i = 0; i < 64; i++)
        far[i] = 4096 + (i & 1 ? .5f : -.5f);
    UNIT_OK(cmoe_layer_norm(e.stream, 0, of(far, 1, 64), none, none, none, to(far, 1, 64),
                            cmoe_view_mut_none(), &err));
    for (int i = 0; i < 64; i++)
        assert_true(far[i] == (i & 1 ? 1 : -1));
    unit_close(&e);
}

static void layer_in_place(void **state)
{
    (void)state;
    enum { N = 97, H = 2100 };
    const size_t bytes = N * H * sizeof(float);
    float *x = malloc(bytes), *r = malloc(bytes), *a = malloc(bytes), *b = malloc(bytes);
    float *out = malloc(bytes), *sum = malloc(bytes), w[H];
    normals(x, N * H, 1), normals(r, N * H, 2), normals(w, H, 3);
    const cmoe_view vw = cmoe_view_1d(w, CMOE_F32, H);
    const int32_t threads[] = {1, 2, 5};
    for (int t = 0; t < 3; t++) {
        unit_env e = unit_open(threads[t]);
        memcpy(a, x, bytes), memcpy(b, r, bytes);
        if (t == 0)
            UNIT_OK(cmoe_layer_norm(e.stream, 1e-5f, of(x, N, H), of(r, N, H), vw, vw,
                                    to(out, N, H), to(sum, N, H), &err));
        UNIT_OK(cmoe_layer_norm(e.stream, 1e-5f, of(a, N, H), of(b, N, H), vw, vw, to(a, N, H),
                                to(b, N, H), &err));
        assert_memory_equal(a, out, bytes);
        assert_memory_equal(b, sum, bytes);
        unit_close(&e);
    }
    free(x), free(r), free(a), free(b), free(out), free(sum);
}

static void layer_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[8] = {0}, r[8] = {0}, w[4] = {0}, out[8], sum[8];
    memset(out, 0x5a, sizeof out);
    memset(sum, 0x5a, sizeof sum);
    const cmoe_view vx = of(x, 2, 4), vr = of(r, 2, 4), vw = cmoe_view_1d(w, CMOE_F32, 4);
    const cmoe_view none = cmoe_view_none(), w3 = cmoe_view_1d(w, CMOE_F32, 3);
    const cmoe_view_mut vo = to(out, 2, 4), vs = to(sum, 2, 4), no = cmoe_view_mut_none();
    const struct {
        float eps;
        cmoe_view x, residual, weight, bias;
        cmoe_view_mut out, sum;
        cmoe_status status;
        const char *text;
    } cases[] = {
        {-1, vx, vr, vw, vw, vo, vs, CMOE_ERR_RANGE, "eps = -1, want a finite number >= 0"},
        {NAN, vx, vr, vw, vw, vo, vs, CMOE_ERR_RANGE, "eps = "},
        {INFINITY, vx, vr, vw, vw, vo, vs, CMOE_ERR_RANGE, "eps = inf"},
        {0, vw, vr, vw, vw, vo, vs, CMOE_ERR_SHAPE, "x: rank 1, want 2 [rows, hidden]"},
        {0, vx, of(r, 1, 4), vw, vw, vo, vs, CMOE_ERR_SHAPE, "residual: dims[0] = 1, want 2"},
        {0, vx, vr, w3, vw, vo, vs, CMOE_ERR_SHAPE, "weight: dims[0] = 3, want 4"},
        {0, vx, vr, vw, w3, vo, vs, CMOE_ERR_SHAPE, "bias: dims[0] = 3, want 4"},
        {0, vx, vr, vw, vw, no, vs, CMOE_ERR_ARG, "out is not given"},
        {0, vx, vr, vw, vw, vo, to(sum, 2, 3), CMOE_ERR_SHAPE, "residual_out: dims[1] = 3"},
        {0, vx, vr, vw, vw, vo, vo, CMOE_ERR_ARG, "out overlaps residual_out"},
        {0, vx, vr, vw, vw, to(r, 2, 4), vs, CMOE_ERR_ARG, "out overlaps residual"},
        {0, of(x, 1, 4), none, vw, vw, to(x + 1, 1, 4), no, CMOE_ERR_ARG, "out overlaps x"},
        {0, of(x, 1, 4), none, vw, none, to(w, 1, 4), no, CMOE_ERR_ARG, "out overlaps weight"},
        {0, of(x, 1, 4), none, none, vw, to(w, 1, 4), no, CMOE_ERR_ARG, "out overlaps bias"},
        {0, of(x, 1, 4), none, none, vw, to(out, 1, 4), to(w, 1, 4), CMOE_ERR_ARG,
         "residual_out overlaps bias"},
        {0, of(x, 1, 4), none, vw, none, to(out, 1, 4), to(w, 1, 4), CMOE_ERR_ARG,
         "residual_out overlaps weight"},
        {0, of(x, 1, 4), none, vw, none, to(out, 1, 4), to(x + 1, 1, 4), CMOE_ERR_ARG,
         "residual_out overlaps x"},
        {0, of(x, 1, 4), of(r, 1, 4), vw, none, to(out, 1, 4), to(r + 1, 1, 4), CMOE_ERR_ARG,
         "residual_out overlaps residual"},
    };
    UNIT_FAILS(cmoe_layer_norm(NULL, 0, vx, vr, vw, vw, vo, vs, &err), CMOE_ERR_ARG, "stream");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        UNIT_FAILS(cmoe_layer_norm(e.stream, cases[i].eps, cases[i].x, cases[i].residual,
                                   cases[i].weight, cases[i].bias, cases[i].out, cases[i].sum,
                                   &err),
                   cases[i].status, cases[i].text);
    for (size_t i = 0; i < sizeof out; i++) {
        assert_int_equal(((unsigned char *)out)[i], 0x5a);
        assert_int_equal(((unsigned char *)sum)[i], 0x5a);
    }
    const cmoe_view v0 = of(NULL, 0, 4);
    UNIT_OK(cmoe_layer_norm(e.stream, 0, v0, v0, vw, vw, to(NULL, 0, 4), no, &err));
    UNIT_OK(
        cmoe_layer_norm(e.stream, 0, of(NULL, 3, 0), none, none, none, to(NULL, 3, 0), no, &err));
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_are_rows), cmocka_unit_test(heads_any_strides),
        cmocka_unit_test(heads_errors),   cmocka_unit_test(layer_values),
        cmocka_unit_test(layer_in_place), cmocka_unit_test(layer_errors),
    };
    return UNIT_RUN("unit_norm", tests);
}
