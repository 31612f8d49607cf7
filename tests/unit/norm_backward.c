/* SPDX-License-Identifier: MIT
 *
 * norm_backward.c - gradients of norms: values by hand, heads, in place, any row stride and address,
 * the same bits for any number of threads and however units are spread over calls, every error text.
 */
#include "backward.h"

static const cmoe_view none;
static const cmoe_view_mut no;

/* x = 3 4, mean square 12.5 with eps 12.5: inverse 1/5.  dout 1 0, w 2 1: g = 2 0, mean(g * xhat) =
 * (2 * .6) / 2 = .6, dx = (2 - .6 * .6, -.8 * .6) / 5, dweight = dout * xhat. */
static void rms_values(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const float x[] = {3, 4}, w[] = {2, 1}, dout[] = {1, 0}, residual[] = {10, 20};
    float dx[2], dw[2], one[2];
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = 12.5f;
    int64_t bytes;
    UNIT_OK(cmoe_rms_norm_backward_bytes(e.ctx, 1, 2, &bytes, NULL, &err));
    cmoe_arena a = unit_arena(bytes);
    UNIT_OK(cmoe_rms_norm_backward(e.stream, &o, of(x, 1, 2), flat(w, 2), of(dout, 1, 2), none,
                                   NULL, to(dx, 1, 2), flat_mut(dw, 2), &a, &err));
    assert_float_equal(dx[0], .328, 1e-6);
    assert_float_equal(dx[1], -.096, 1e-6);
    assert_float_equal(dw[0], .6, 1e-6);
    assert_float_equal(dw[1], 0, 0);
    assert_int_equal(a.used, 0);
    UNIT_OK(cmoe_rms_norm_backward(e.stream, &o, of(x, 1, 2), flat(w, 2), of(dout, 1, 2),
                                   of(residual, 1, 2), NULL, to(dx, 1, 2), no, NULL, &err));
    assert_float_equal(dx[0], 10.328, 2e-6);
    assert_float_equal(dx[1], 19.904, 2e-6);
    /* 1 + w, with w one less, is the same. */
    const float less[] = {1, 0};
    o.weight_offset = 1;
    UNIT_OK(cmoe_rms_norm_backward(e.stream, &o, of(x, 1, 2), flat(less, 2), of(dout, 1, 2),
                                   of(residual, 1, 2), NULL, to(one, 1, 2), no, NULL, &err));
    assert_memory_equal(one, dx, sizeof dx);
    free(a.base);
    unit_close(&e);
}

/* x = 1 3, mean 2, variance 1 (eps 0): xhat -1 1.  dout 1 0, no weight: mean(g) = .5, mean(g * xhat)
 * = -.5: dx = 1 - .5 - .5, 0 - .5 + .5. */
static void layer_values(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const float x[] = {1, 3, 1, 3}, dout[] = {1, 0, 2, 4};
    float dx[4], dw[2], db[2];
    int64_t bytes;
    UNIT_OK(cmoe_layer_norm_backward_bytes(e.ctx, 2, 2, &bytes, NULL, &err));
    cmoe_arena a = unit_arena(bytes);
    UNIT_OK(cmoe_layer_norm_backward(e.stream, 0, of(x, 2, 2), none, of(dout, 2, 2), none, NULL,
                                     to(dx, 2, 2), flat_mut(dw, 2), flat_mut(db, 2), &a, &err));
    assert_float_equal(dx[0], 0, 1e-7);
    assert_float_equal(dx[1], 0, 1e-7);
    assert_float_equal(dw[0], -3, 0);
    assert_float_equal(dw[1], 4, 0);
    assert_float_equal(db[0], 3, 0);
    assert_float_equal(db[1], 4, 0);
    /* The bias alone needs no scratch. */
    memset(db, 0, sizeof db);
    UNIT_OK(cmoe_layer_norm_backward(e.stream, 0, of(x, 2, 2), none, of(dout, 2, 2), none, NULL,
                                     to(dx, 2, 2), no, flat_mut(db, 2), NULL, &err));
    assert_float_equal(db[0], 3, 0);
    assert_float_equal(db[1], 4, 0);
    free(a.base);
    unit_close(&e);
}

enum { T = 96, H = 131, U = 8, BYTES = T * 16 + 64 };

typedef struct grads {
    float dx[T * H], dw[H], db[H];
} grads;

typedef struct data {
    float x[T * H], dout[T * H], residual[T * H], w[H];
} data;

static void fill(data *d)
{
    normals(d->x, T * H, 1), normals(d->dout, T * H, 2);
    normals(d->residual, T * H, 3), normals(d->w, H, 4);
}

static void run(unit_env *e, const data *d, bool layer, int64_t begin, int64_t tokens,
                const cmoe_units *u, grads *g)
{
    const int64_t at = begin * H;
    const cmoe_view x = of(d->x + at, tokens, H), dout = of(d->dout + at, tokens, H);
    const cmoe_view residual = of(d->residual + at, tokens, H), w = flat(d->w, H);
    cmoe_arena a = unit_arena(BYTES);
    if (layer)
        UNIT_OK(cmoe_layer_norm_backward(e->stream, 1e-5f, x, w, dout, residual, u,
                                         to(g->dx + at, tokens, H), flat_mut(g->dw, H),
                                         flat_mut(g->db, H), &a, &err));
    else
        UNIT_OK(cmoe_rms_norm_backward(e->stream, NULL, x, w, dout, residual, u,
                                       to(g->dx + at, tokens, H), flat_mut(g->dw, H), &a, &err));
    free(a.base);
}

/* Any number of threads and any instruction set; units in one call, and in two that are added. */
static void same_bits(void **state)
{
    (void)state;
    static data d;
    static grads want, got, left, right;
    const int64_t first[U + 1] = {0, 5, 5, 30, 41, 60, 61, 80, T};
    int64_t second[U / 2 + 1];
    for (int i = 0; i <= U / 2; i++)
        second[i] = first[U / 2 + i] - first[U / 2];
    const int64_t half = first[U / 2];
    fill(&d);
    for (int layer = 0; layer < 2; layer++) {
        memset(&want, 0, sizeof want);
        unit_env one = unit_open_isa(1, NULL);
        run(&one, &d, layer, 0, T, &(cmoe_units){U, first}, &want);
        unit_close(&one);
        ISA_EACH(isa)
        {
            for (int32_t threads = 1; threads <= 3; threads++) {
                unit_env e = unit_open_isa(threads, isa);
                memset(&got, 0, sizeof got);
                run(&e, &d, layer, 0, T, &(cmoe_units){U, first}, &got);
                assert_memory_equal(&got, &want, sizeof want);
                run(&e, &d, layer, 0, half, &(cmoe_units){U / 2, first}, &left);
                run(&e, &d, layer, half, T - half, &(cmoe_units){U / 2, second}, &right);
                for (int h = 0; h < H; h++) {
                    left.dw[h] += right.dw[h];
                    left.db[h] += right.db[h];
                }
                assert_memory_equal(left.dw, want.dw, sizeof want.dw);
                if (layer) assert_memory_equal(left.db, want.db, sizeof want.db);
                assert_memory_equal(left.dx, want.dx, (size_t)half * H * sizeof *want.dx);
                assert_memory_equal(right.dx + half * H, want.dx + half * H,
                                    (size_t)(T - half) * H * sizeof *want.dx);
                unit_close(&e);
            }
        }
    }
}

/* Many rows, so that several threads do work. */
static void many_rows(void **state)
{
    (void)state;
    enum { N = 700, W = 300 };
    float *x = malloc(3 * N * W * sizeof *x), *want = x + N * W, *got = want + N * W;
    float dw[2][W];
    normals(x, N * W, 8);
    for (int32_t threads = 1; threads <= 3; threads++) {
        unit_env e = unit_open(threads);
        cmoe_arena a = unit_arena(N * 16 + 64);
        UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, of(x, N, W), none, of(x, N, W), none, NULL,
                                       to(threads == 1 ? want : got, N, W),
                                       flat_mut(dw[threads > 1], W), &a, &err));
        if (threads > 1) {
            assert_memory_equal(got, want, N * W * sizeof *x);
            assert_memory_equal(dw[1], dw[0], sizeof dw[0]);
        }
        free(a.base);
        unit_close(&e);
    }
    free(x);
}

/* dx on dout, on residual, on both; rows further apart, at an odd address. */
static void in_place(void **state)
{
    (void)state;
    static data d, copy;
    static grads want, got;
    static float wide[T * (H + 3) + 1];
    unit_env e = unit_open(2);
    cmoe_arena a = unit_arena(BYTES);
    fill(&d);
    run(&e, &d, false, 0, T, NULL, &want);
    const cmoe_view x = of(d.x, T, H), w = flat(d.w, H), residual = of(d.residual, T, H);
    const cmoe_view_mut dw = flat_mut(got.dw, H);
    copy = d;
    UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, x, w, of(copy.dout, T, H), residual, NULL,
                                   to(copy.dout, T, H), dw, &a, &err));
    assert_memory_equal(copy.dout, want.dx, sizeof want.dx);
    assert_memory_equal(got.dw, want.dw, sizeof want.dw);
    copy = d;
    UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, x, w, of(d.dout, T, H), of(copy.residual, T, H),
                                   NULL, to(copy.residual, T, H), dw, &a, &err));
    assert_memory_equal(copy.residual, want.dx, sizeof want.dx);
    char *odd = (char *)wide + 1;
    for (int t = 0; t < T; t++)
        memcpy(odd + t * (H + 3) * 4, d.dout + t * H, H * 4);
    cmoe_view strided = of(NULL, T, H);
    cmoe_view_mut strided_mut = to(NULL, T, H);
    strided.data = odd, strided_mut.data = odd;
    strided.strides[0] = strided_mut.strides[0] = H + 3;
    UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, x, w, strided, residual, NULL, strided_mut, dw,
                                   &a, &err));
    for (int t = 0; t < T; t++)
        assert_memory_equal(odd + t * (H + 3) * 4, want.dx + t * H, H * 4);
    assert_memory_equal(got.dw, want.dw, sizeof want.dw);
    UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, x, w, of(d.dout, T, H), of(d.dout, T, H), NULL,
                                   to(want.dx, T, H), no, NULL, &err));
    UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, x, w, of(d.dout, T, H), of(d.dout, T, H), NULL,
                                   to(d.dout, T, H), no, NULL, &err));
    assert_memory_equal(d.dout, want.dx, sizeof want.dx);
    free(a.base);
    unit_close(&e);
}

/* [N, heads, H] in wider rows gives what [N * heads, H] gives, a token's heads in order. */
static void heads(void **state)
{
    (void)state;
    enum { N = 12, HEADS = T / N, WIDE = HEADS * H + 9 };
    static data d;
    static grads want, got;
    static float x[N * WIDE], dout[N * WIDE];
    const int64_t first[] = {0, 7, N}, rows[] = {0, 7 * HEADS, T};
    unit_env e = unit_open(2);
    fill(&d);
    memset(d.residual, 0, sizeof d.residual);
    run(&e, &d, false, 0, T, &(cmoe_units){2, rows}, &want);
    for (int t = 0; t < N; t++) {
        memcpy(x + t * WIDE + 4, d.x + t * HEADS * H, HEADS * H * 4);
        memcpy(dout + t * WIDE + 4, d.dout + t * HEADS * H, HEADS * H * 4);
    }
    const int64_t dims[] = {N, HEADS, H};
    cmoe_view vx = cmoe_view_make(x + 4, CMOE_F32, 3, dims), vd = vx;
    vx.strides[0] = vd.strides[0] = WIDE;
    vd.data = dout + 4;
    cmoe_view_mut dx = cmoe_view_mut_make(dout + 4, CMOE_F32, 3, dims);
    dx.strides[0] = WIDE;
    cmoe_arena a = unit_arena(BYTES);
    UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, vx, flat(d.w, H), vd, none,
                                   &(cmoe_units){2, first}, dx, flat_mut(got.dw, H), &a, &err));
    assert_memory_equal(got.dw, want.dw, sizeof want.dw);
    for (int i = 0; i < T * H; i++)
        assert_float_equal(dout[i / (HEADS * H) * WIDE + 4 + i % (HEADS * H)], want.dx[i], 0);
    free(a.base);
    unit_close(&e);
}

static void nothing(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    float dw[3] = {1, 1, 1}, db[3] = {1, 1, 1}, w[3] = {0};
    const float zeros[3] = {0};
    const int64_t first[] = {0, 0, 0}, dims[][3] = {{0, 2, 3}, {2, 0, 3}, {2, 2, 0}};
    cmoe_arena a = unit_arena(64);
    UNIT_OK(cmoe_layer_norm_backward(e.stream, 1, of(NULL, 0, 3), flat(w, 3), of(NULL, 0, 3), none,
                                     &(cmoe_units){2, first}, to(NULL, 0, 3), flat_mut(dw, 3),
                                     flat_mut(db, 3), &a, &err));
    assert_memory_equal(dw, zeros, sizeof dw);
    assert_memory_equal(db, zeros, sizeof db);
    for (int i = 0; i < 3; i++) {
        const cmoe_view v = cmoe_view_make(NULL, CMOE_F32, 3, dims[i]);
        const cmoe_view_mut m = cmoe_view_mut_make(NULL, CMOE_F32, 3, dims[i]);
        dw[0] = 1;
        UNIT_OK(cmoe_rms_norm_backward(e.stream, NULL, v, none, v, none, NULL, m,
                                       flat_mut(dw, dims[i][2]), &a, &err));
        assert_true(dw[0] == (i == 2 ? 1 : 0));
    }
    free(a.base);
    unit_close(&e);
}

static void errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[24] = {0}, d[24] = {0}, w[4] = {0}, dx[24], dw[12], db[4];
    memset(dx, 0x5a, sizeof dx), memset(dw, 0x5a, sizeof dw), memset(db, 0x5a, sizeof db);
    cmoe_arena a = unit_arena(256), small = unit_arena(16);
    const cmoe_view vx = of(x, 3, 4), vd = of(d, 3, 4), vw = flat(w, 4);
    const cmoe_view_mut mx = to(dx, 3, 4), mw = flat_mut(dw, 4), mb = flat_mut(db, 4);
    int64_t bytes;
#define RMS(...)   cmoe_rms_norm_backward(e.stream, NULL, __VA_ARGS__, &err)
#define LAYER(...) cmoe_layer_norm_backward(e.stream, 0, __VA_ARGS__, &err)
    UNIT_FAILS(cmoe_rms_norm_backward(NULL, NULL, vx, vw, vd, none, NULL, mx, mw, &a, &err),
               CMOE_ERR_ARG, "stream");
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.eps = -1;
    UNIT_FAILS(cmoe_rms_norm_backward(e.stream, &o, vx, vw, vd, none, NULL, mx, mw, &a, &err),
               CMOE_ERR_RANGE, "eps = -1, want a finite number >= 0");
    UNIT_FAILS(cmoe_layer_norm_backward(e.stream, -1, vx, vw, vd, none, NULL, mx, mw, mb, &a, &err),
               CMOE_ERR_RANGE, "eps = -1, want a finite number >= 0");
    UNIT_FAILS(RMS(none, vw, vd, none, NULL, mx, mw, &a), CMOE_ERR_ARG, "x is not given");
    UNIT_FAILS(RMS(gaps(x, 3, 4), vw, vd, none, NULL, mx, mw, &a), CMOE_ERR_SHAPE,
               "x: strides[1] = 2, want 1 (contiguous)");
    UNIT_FAILS(RMS(cmoe_view_2d(x, CMOE_BF16, 3, 4), vw, vd, none, NULL, mx, mw, &a),
               CMOE_ERR_DTYPE, "x: dtype bf16");
    UNIT_FAILS(LAYER(cmoe_view_3d(x, CMOE_F32, 3, 2, 4), vw, vd, none, NULL, mx, mw, mb, &a),
               CMOE_ERR_SHAPE, "x: rank 3, want 2 [rows, hidden]");
    UNIT_FAILS(RMS(vx, flat(w, 3), vd, none, NULL, mx, mw, &a), CMOE_ERR_SHAPE,
               "weight: dims[0] = 3, want 4 [hidden = 4]");
    UNIT_FAILS(RMS(vx, vw, of(d, 2, 4), none, NULL, mx, mw, &a), CMOE_ERR_SHAPE,
               "dout: dims[0] = 2, want 3");
    UNIT_FAILS(RMS(vx, vw, vd, of(d, 3, 3), NULL, mx, mw, &a), CMOE_ERR_SHAPE,
               "residual: dims[1] = 3, want 4");
    const int64_t first[] = {0, 4};
    UNIT_FAILS(RMS(vx, vw, vd, none, &((cmoe_units){1, first}), mx, mw, &a), CMOE_ERR_RANGE,
               "units: first[1] = 4, want 3 (tokens)");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, no, mw, &a), CMOE_ERR_ARG, "dx is not given");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, gaps_mut(dx, 3, 4), mw, &a), CMOE_ERR_SHAPE,
               "dx: strides[1] = 2");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, to(x, 3, 4), mw, &a), CMOE_ERR_ARG, "dx");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, to(d + 1, 3, 4), mw, &a), CMOE_ERR_ARG, "dout");
    UNIT_FAILS(RMS(vx, vw, vd, of(d + 9, 3, 4), NULL, to(d + 8, 3, 4), mw, &a), CMOE_ERR_ARG, "dx");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, mx, flat_mut(dw, 3), &a), CMOE_ERR_SHAPE,
               "dweight: dims[0] = 3, want 4");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, mx, flat_mut(dx + 8, 4), &a), CMOE_ERR_ARG, "dweight");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, mx, flat_mut(w, 4), &a), CMOE_ERR_ARG, "dweight");
    UNIT_FAILS(LAYER(vx, vw, vd, none, NULL, mx, mw, flat_mut(dw + 2, 4), &a), CMOE_ERR_ARG,
               "dweight");
    UNIT_FAILS(LAYER(vx, vw, vd, none, NULL, mx, mw, flat_mut(d + 2, 4), &a), CMOE_ERR_ARG,
               "dbias");
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, mx, mw, NULL), CMOE_ERR_MEMORY,
               "rms_norm_backward: arena of 0 bytes is too small");
    UNIT_FAILS(LAYER(vx, vw, vd, none, NULL, mx, mw, mb, &small), CMOE_ERR_MEMORY,
               "layer_norm_backward: arena of 16 bytes is too small");
    cmoe_arena on_x = cmoe_arena_make(x, sizeof x);
    UNIT_FAILS(RMS(vx, vw, vd, none, NULL, mx, mw, &on_x), CMOE_ERR_ARG, "x");
    UNIT_FAILS(cmoe_rms_norm_backward_bytes(NULL, 1, 1, &bytes, NULL, &err), CMOE_ERR_ARG,
               "rms_norm_backward: ctx is NULL");
    UNIT_FAILS(cmoe_layer_norm_backward_bytes(e.ctx, -1, 1, &bytes, NULL, &err), CMOE_ERR_SHAPE,
               "layer_norm_backward: rows = -1, hidden = 1, want both >= 0");
    UNIT_FAILS(cmoe_rms_norm_backward_bytes(e.ctx, INT64_MAX, 1, &bytes, NULL, &err),
               CMOE_ERR_SHAPE, "would exceed 2^63 - 1 bytes");
    untouched(dx, sizeof dx), untouched(dw, sizeof dw), untouched(db, sizeof db);
    free(a.base), free(small.base);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_values), cmocka_unit_test(layer_values), cmocka_unit_test(same_bits),
        cmocka_unit_test(many_rows),  cmocka_unit_test(in_place),     cmocka_unit_test(heads),
        cmocka_unit_test(nothing),    cmocka_unit_test(errors),
    };
    return UNIT_RUN("unit_norm_backward", tests);
}
