/* SPDX-License-Identifier: MIT
 *
 * ops_backward.c - gradients of gates, clip and embedding, and cross-entropy: values by hand, in
 * place, empty tensors, the same bits for any number of threads and however units are spread over
 * calls, every error text.
 */
#include <math.h>

#include "backward.h"

static const cmoe_view none;
static const cmoe_view_mut no;

/* ---- gates and clip -------------------------------------------------------------------------- */

/* sigmoid(0) = 1/2, its derivative 1/4. */
static void gate_values(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const float x[] = {1, -2, 3, 4, 5, 6}, dout[] = {8, 4, 2, 1, 1, 1}, gate[6] = {0};
    float dx[6], dgate[6];
    UNIT_OK(cmoe_sigmoid_mul_backward(e.stream, of(x, 2, 3), of(gate, 2, 3), of(dout, 2, 3),
                                      to(dx, 2, 3), to(dgate, 2, 3), &err));
    for (int i = 0; i < 6; i++) {
        assert_float_equal(dx[i], dout[i] / 2, 0);
        assert_float_equal(dgate[i], dout[i] * x[i] / 4, 0);
    }
    UNIT_OK(cmoe_sigmoid_mul_backward(e.stream, of(x, 2, 3), of(gate, 2, 1), of(dout, 2, 3), no,
                                      to(dgate, 2, 1), &err));
    assert_float_equal(dgate[0], 6 / 4., 0);
    assert_float_equal(dgate[1], 15 / 4., 0);
    memcpy(dx, dout, sizeof dx);
    UNIT_OK(cmoe_sigmoid_mul_backward(e.stream, of(x, 2, 3), of(gate, 2, 1), of(dx, 2, 3),
                                      to(dx, 2, 3), no, &err));
    for (int i = 0; i < 6; i++)
        assert_float_equal(dx[i], dout[i] / 2, 0);
    /* silu(0) = 0, its derivative 1/2; gate and up side by side, and in pairs. */
    const float halves[] = {0, 0, 3, 4}, pairs[] = {0, 3, 0, 4};
    UNIT_OK(
        cmoe_silu_mul_backward(e.stream, of(halves, 1, 4), 0, of(dout, 1, 2), to(dx, 1, 4), &err));
    const float want[] = {12, 8, 0, 0}, want_pairs[] = {12, 0, 8, 0};
    assert_memory_equal(dx, want, sizeof want);
    memcpy(dx, pairs, sizeof pairs);
    UNIT_OK(cmoe_silu_mul_backward(e.stream, of(dx, 1, 4), 1, of(dout, 1, 2), to(dx, 1, 4), &err));
    assert_memory_equal(dx, want_pairs, sizeof want);
    const float edge[] = {2, -2, 2.5f, NAN, -INFINITY, 0}, kept[] = {8, 4, 0, 0, 0, 1};
    UNIT_OK(cmoe_clip_backward(e.stream, of(edge, 2, 3), 2, of(dout, 2, 3), to(dx, 2, 3), &err));
    assert_memory_equal(dx, kept, sizeof kept);
    unit_close(&e);
}

static void gate_threads(void **state)
{
    (void)state;
    enum { N = 90, H = 201, ALL = N * 2 * H };
    static float x[ALL], dout[ALL], want[3][ALL], got[3][ALL];
    normals(x, ALL, 1), normals(dout, ALL, 2);
    for (int32_t threads = 1; threads <= 3; threads++) {
        unit_env e = unit_open(threads);
        float(*to_)[ALL] = threads == 1 ? want : got;
        UNIT_OK(cmoe_silu_mul_backward(e.stream, of(x, N, 2 * H), 0, of(dout, N, H),
                                       to(to_[0], N, 2 * H), &err));
        UNIT_OK(cmoe_sigmoid_mul_backward(e.stream, of(x, N, H), of(x, N, 1), of(dout, N, H),
                                          to(to_[1], N, H), to(to_[2], N, 1), &err));
        if (threads > 1) assert_memory_equal(got, want, sizeof want);
        unit_close(&e);
    }
}

static void gate_nothing(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float gate[2] = {1, 2}, dgate[2] = {1, 1};
    UNIT_OK(cmoe_sigmoid_mul_backward(e.stream, of(NULL, 0, 3), of(NULL, 0, 1), of(NULL, 0, 3),
                                      to(NULL, 0, 3), to(NULL, 0, 1), &err));
    UNIT_OK(cmoe_sigmoid_mul_backward(e.stream, of(NULL, 2, 0), of(gate, 2, 1), of(NULL, 2, 0),
                                      to(NULL, 2, 0), to(dgate, 2, 1), &err));
    assert_true(dgate[0] == 0 && dgate[1] == 0);
    UNIT_OK(
        cmoe_silu_mul_backward(e.stream, of(NULL, 3, 0), 0, of(NULL, 3, 0), to(NULL, 3, 0), &err));
    UNIT_OK(cmoe_clip_backward(e.stream, of(NULL, 0, 3), 1, of(NULL, 0, 3), to(NULL, 0, 3), &err));
    unit_close(&e);
}

static void gate_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[12] = {0}, g[12] = {0}, d[12] = {0}, dx[12], dg[12];
    memset(dx, 0x5a, sizeof dx), memset(dg, 0x5a, sizeof dg);
    const cmoe_view vx = of(x, 2, 4), vg = of(g, 2, 4), vd = of(d, 2, 4);
    const cmoe_view_mut mx = to(dx, 2, 4), mg = to(dg, 2, 4);
#define SIGMOID(...) cmoe_sigmoid_mul_backward(e.stream, __VA_ARGS__, &err)
#define SILU(...)    cmoe_silu_mul_backward(e.stream, __VA_ARGS__, &err)
#define CLIP(...)    cmoe_clip_backward(e.stream, __VA_ARGS__, &err)
    UNIT_FAILS(SIGMOID(gaps(x, 2, 4), vg, vd, mx, mg), CMOE_ERR_SHAPE, "x: strides[1] = 2, want 1");
    UNIT_FAILS(SIGMOID(vx, of(g, 2, 3), vd, mx, mg), CMOE_ERR_SHAPE,
               "gate: dims[1] = 3, want 1 or 4");
    UNIT_FAILS(SIGMOID(vx, of(g, 1, 4), vd, mx, mg), CMOE_ERR_SHAPE, "gate: dims[0] = 1, want 2");
    UNIT_FAILS(SIGMOID(vx, vg, of(d, 2, 3), mx, mg), CMOE_ERR_SHAPE, "dout: dims[1] = 3, want 4");
    UNIT_FAILS(SIGMOID(vx, vg, vd, to(dx, 2, 3), mg), CMOE_ERR_SHAPE, "dx: dims[1] = 3, want 4");
    UNIT_FAILS(SIGMOID(vx, vg, vd, mx, to(dg, 2, 1)), CMOE_ERR_SHAPE, "dgate: dims[1] = 1, want 4");
    UNIT_FAILS(SIGMOID(vx, vg, vd, to(x, 2, 4), mg), CMOE_ERR_ARG, "dx");
    UNIT_FAILS(SIGMOID(vx, vg, vd, to(d + 1, 2, 4), mg), CMOE_ERR_ARG, "dx");
    UNIT_FAILS(SIGMOID(vx, vg, vd, mx, to(dx + 1, 2, 4)), CMOE_ERR_ARG, "dgate");
    UNIT_FAILS(SIGMOID(vx, vg, vd, mx, to(d, 2, 4)), CMOE_ERR_ARG, "dgate");
    UNIT_FAILS(SILU(vx, 2, of(d, 2, 2), mx), CMOE_ERR_RANGE, "interleaved = 2");
    UNIT_FAILS(SILU(of(x, 2, 3), 0, of(d, 2, 2), mx), CMOE_ERR_SHAPE,
               "gate_up: dims[1] = 3, want an even size (gate and up)");
    UNIT_FAILS(SILU(vx, 0, vd, mx), CMOE_ERR_SHAPE, "dout: dims[1] = 4, want 2 [rows = 2, inter");
    UNIT_FAILS(SILU(vx, 0, of(d, 2, 2), to(dx, 2, 2)), CMOE_ERR_SHAPE,
               "dgate_up: dims[1] = 2, want 4");
    UNIT_FAILS(SILU(vx, 0, of(d, 2, 2), to(x + 2, 2, 4)), CMOE_ERR_ARG, "dgate_up");
    UNIT_FAILS(SILU(vx, 0, of(d, 2, 2), to(d, 2, 4)), CMOE_ERR_ARG, "dgate_up");
    UNIT_FAILS(CLIP(vx, NAN, vd, mx), CMOE_ERR_RANGE, "limit = nan, want >= 0");
    UNIT_FAILS(CLIP(vx, 1, of(d, 1, 4), mx), CMOE_ERR_SHAPE, "dout: dims[0] = 1, want 2");
    UNIT_FAILS(CLIP(vx, 1, vd, to(x, 2, 4)), CMOE_ERR_ARG, "dx");
    untouched(dx, sizeof dx), untouched(dg, sizeof dg);
    unit_close(&e);
}

/* ---- embedding ------------------------------------------------------------------------------- */

static void embedding_values(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const int64_t ids[] = {2, 0, 2};
    const float dout[] = {1, 2, 3, 4, 5, 6};
    float dtable[8];
    memset(dtable, 0x5a, sizeof dtable);
    int64_t bytes;
    UNIT_OK(cmoe_embedding_backward_bytes(e.ctx, 3, 4, &bytes, NULL, &err));
    cmoe_arena a = unit_arena(bytes);
    UNIT_OK(cmoe_embedding_backward(e.stream, cmoe_view_1d(ids, CMOE_I64, 3), of(dout, 3, 2), .5f,
                                    NULL, to(dtable, 4, 2), &a, &err));
    const float want[] = {1.5f, 2, 0, 0, 3, 4, 0, 0};
    assert_memory_equal(dtable, want, sizeof want);
    assert_int_equal(a.used, 0);
    free(a.base);
    unit_close(&e);
}

enum { T = 200, V = 23, H = 515, U = 8 };

static void embed(unit_env *e, const int32_t *ids, const float *dout, int64_t tokens,
                  const cmoe_units *u, float *dtable)
{
    cmoe_arena a = unit_arena((T + V) * 8 + 256);
    UNIT_OK(cmoe_embedding_backward(e->stream, cmoe_view_1d(ids, CMOE_I32, tokens),
                                    of(dout, tokens, H), .3f, u, to(dtable, V, H), &a, &err));
    free(a.base);
}

static void embedding_bits(void **state)
{
    (void)state;
    static float dout[T * H], want[V * H], got[V * H], other[V * H];
    int32_t ids[T];
    const int64_t first[U + 1] = {0, 5, 5, 30, 90, 101, 140, 199, T};
    int64_t second[U / 2 + 1];
    for (int i = 0; i <= U / 2; i++)
        second[i] = first[U / 2 + i] - first[U / 2];
    for (int t = 0; t < T; t++)
        ids[t] = (int32_t)(cmoe_random_u64(3, (uint64_t)t, 0) % (V - 3));
    normals(dout, T * H, 1);
    const int64_t half = first[U / 2];
    unit_env one = unit_open(1);
    embed(&one, ids, dout, T, &(cmoe_units){U, first}, want);
    unit_close(&one);
    ISA_EACH(isa)
    {
        for (int32_t threads = 1; threads <= 3; threads++) {
            unit_env e = unit_open_isa(threads, isa);
            embed(&e, ids, dout, T, &(cmoe_units){U, first}, got);
            assert_memory_equal(got, want, sizeof want);
            embed(&e, ids, dout, half, &(cmoe_units){U / 2, first}, got);
            embed(&e, ids + half, dout + half * H, T - half, &(cmoe_units){U / 2, second}, other);
            for (int i = 0; i < V * H; i++)
                got[i] += other[i];
            assert_memory_equal(got, want, sizeof want);
            unit_close(&e);
        }
    }
}

static void embedding_edges(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    float dtable[12], dout[8] = {0};
    const float zeros[12] = {0};
    int32_t ids[2] = {0, 3};
    cmoe_arena a = unit_arena(512), small = unit_arena(32);
    memset(dtable, 0x5a, sizeof dtable);
    UNIT_OK(cmoe_embedding_backward(e.stream, cmoe_view_1d(NULL, CMOE_I32, 0), of(NULL, 0, 4), 1,
                                    NULL, to(dtable, 3, 4), &a, &err));
    assert_memory_equal(dtable, zeros, sizeof zeros);
    UNIT_OK(cmoe_embedding_backward(e.stream, cmoe_view_1d(NULL, CMOE_I32, 0), of(NULL, 0, 4), 1,
                                    NULL, to(NULL, 0, 4), NULL, &err));
    memset(dtable, 0x5a, sizeof dtable);
    const cmoe_view vi = cmoe_view_1d(ids, CMOE_I32, 2), vd = of(dout, 2, 4);
    const cmoe_view_mut mt = to(dtable, 3, 4);
    int64_t bytes;
#define EMBED(...) cmoe_embedding_backward(e.stream, __VA_ARGS__, &err)
    UNIT_FAILS(EMBED(vi, vd, 1, NULL, mt, &a), CMOE_ERR_RANGE,
               "ids[1] = 3, want 0 <= id < 3 (vocab)");
    ids[1] = 1;
    UNIT_FAILS(EMBED(vi, vd, NAN, NULL, mt, &a), CMOE_ERR_RANGE, "scale = nan");
    UNIT_FAILS(EMBED(of(dout, 1, 2), vd, 1, NULL, mt, &a), CMOE_ERR_SHAPE, "ids: rank 2, want 1");
    UNIT_FAILS(EMBED(vi, of(dout, 1, 4), 1, NULL, mt, &a), CMOE_ERR_SHAPE,
               "dout: dims[0] = 1, want 2");
    UNIT_FAILS(EMBED(vi, vd, 1, NULL, to(dtable, 3, 3), &a), CMOE_ERR_SHAPE,
               "dtable: dims[1] = 3, want 4");
    UNIT_FAILS(EMBED(vi, vd, 1, NULL, gaps_mut(dtable, 1, 4), &a), CMOE_ERR_SHAPE,
               "dtable: strides[1] = 2");
    UNIT_FAILS(EMBED(vi, vd, 1, NULL, to(dout, 2, 4), &a), CMOE_ERR_ARG, "dtable");
    const int64_t first[] = {0, 3};
    UNIT_FAILS(EMBED(vi, vd, 1, &((cmoe_units){1, first}), mt, &a), CMOE_ERR_RANGE,
               "units: first[1] = 3, want 2 (tokens)");
    UNIT_FAILS(EMBED(vi, vd, 1, NULL, mt, &small), CMOE_ERR_MEMORY,
               "embedding_backward: arena of 32 bytes is too small");
    cmoe_arena on = cmoe_arena_make(dout, sizeof dout);
    UNIT_FAILS(EMBED(vi, vd, 1, NULL, mt, &on), CMOE_ERR_ARG, "dout");
    UNIT_FAILS(cmoe_embedding_backward_bytes(NULL, 1, 1, &bytes, NULL, &err), CMOE_ERR_ARG,
               "ctx is NULL");
    UNIT_FAILS(cmoe_embedding_backward_bytes(e.ctx, 1, -1, &bytes, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = 1, vocab = -1, want both >= 0");
    UNIT_FAILS(cmoe_embedding_backward_bytes(e.ctx, 1, INT64_MAX, &bytes, NULL, &err),
               CMOE_ERR_SHAPE, "would exceed 2^63 - 1 bytes");
    untouched(dtable, sizeof dtable);
    free(a.base), free(small.base);
    unit_close(&e);
}

/* ---- cross-entropy --------------------------------------------------------------------------- */

static void entropy_values(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[] = {0, 0, 0, 0, 5, -3, 2, 7, 1, 2, 3, INFINITY};
    const int32_t targets[] = {1, -1, 0};
    const float scale[] = {.5f, 1, 1};
    float loss[3] = {9, 9, 9};
    UNIT_OK(cmoe_cross_entropy(e.stream, of(x, 3, 4), cmoe_view_1d(targets, CMOE_I32, 3),
                               flat(scale, 3), flat_mut(loss, 3), to(x, 3, 4), &err));
    assert_float_equal(loss[0], log(4), 1e-6);
    assert_true(loss[1] == 0);
    assert_true(loss[2] - loss[2] != 0);
    const float want[] = {.125f, -.375f, .125f, .125f, 0, 0, 0, 0};
    assert_memory_equal(x, want, sizeof want);
    assert_true(x[8] != x[8]);
    /* -infinity and NaN are not finite either; no gradient is asked for. */
    const float odd[] = {1, -INFINITY, 2, NAN, 3, 4};
    const int32_t first[] = {0, 1, 1};
    UNIT_OK(cmoe_cross_entropy(e.stream, of(odd, 3, 2), cmoe_view_1d(first, CMOE_I32, 3), none,
                               flat_mut(loss, 3), no, &err));
    assert_true(loss[0] - loss[0] != 0 && loss[1] - loss[1] != 0);
    assert_float_equal(loss[2], log(1 + exp(-1)), 1e-6);
    unit_close(&e);
}

static void entropy_threads(void **state)
{
    (void)state;
    enum { N = 70, W = 331 };
    static float x[N * W], want[N * W], got[N * W], scale[N], loss[2][N];
    int64_t targets[N];
    normals(x, N * W, 1), normals(scale, N, 2);
    for (int t = 0; t < N; t++)
        targets[t] = (t * 37) % (W + 1) - 1;
    const cmoe_view vt = cmoe_view_1d(targets, CMOE_I64, N);
    for (int32_t threads = 1; threads <= 3; threads++) {
        unit_env e = unit_open(threads);
        UNIT_OK(cmoe_cross_entropy(e.stream, of(x, N, W), vt, flat(scale, N),
                                   flat_mut(loss[threads > 1], N),
                                   to(threads > 1 ? got : want, N, W), &err));
        if (threads > 1) {
            assert_memory_equal(got, want, sizeof want);
            assert_memory_equal(loss[1], loss[0], sizeof loss[0]);
        }
        unit_close(&e);
    }
}

static void entropy_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[12] = {0}, scale[3] = {0}, loss[3], dx[12];
    int32_t targets[3] = {0, 3, 4};
    memset(loss, 0x5a, sizeof loss), memset(dx, 0x5a, sizeof dx);
    const cmoe_view vx = of(x, 3, 4), vt = cmoe_view_1d(targets, CMOE_I32, 3), vs = flat(scale, 3);
    const cmoe_view_mut ml = flat_mut(loss, 3), mx = to(dx, 3, 4);
#define ENTROPY(...) cmoe_cross_entropy(e.stream, __VA_ARGS__, &err)
    UNIT_OK(ENTROPY(of(NULL, 0, 4), cmoe_view_1d(NULL, CMOE_I32, 0), flat(NULL, 0),
                    flat_mut(NULL, 0), to(NULL, 0, 4)));
    UNIT_FAILS(ENTROPY(vx, vt, vs, ml, mx), CMOE_ERR_RANGE,
               "targets[2] = 4, want below 4 (vocab), or negative for none");
    targets[2] = 0;
    UNIT_FAILS(ENTROPY(gaps(x, 1, 4), vt, vs, ml, mx), CMOE_ERR_SHAPE, "logits: strides[1] = 2");
    UNIT_FAILS(ENTROPY(vx, flat(scale, 3), vs, ml, mx), CMOE_ERR_DTYPE, "targets: dtype f32");
    UNIT_FAILS(ENTROPY(vx, cmoe_view_1d(targets, CMOE_I32, 2), vs, ml, mx), CMOE_ERR_SHAPE,
               "targets: dims[0] = 2, want 3");
    UNIT_FAILS(ENTROPY(vx, vt, none, ml, mx), CMOE_ERR_ARG, "scale is not given");
    UNIT_FAILS(ENTROPY(vx, vt, flat(scale, 2), ml, mx), CMOE_ERR_SHAPE,
               "scale: dims[0] = 2, want 3");
    UNIT_FAILS(ENTROPY(vx, vt, vs, flat_mut(loss, 2), mx), CMOE_ERR_SHAPE,
               "loss: dims[0] = 2, want 3");
    UNIT_FAILS(ENTROPY(vx, vt, vs, ml, to(dx, 3, 3)), CMOE_ERR_SHAPE,
               "dlogits: dims[1] = 3, want 4");
    UNIT_FAILS(ENTROPY(vx, vt, vs, ml, to(x + 1, 2, 4)), CMOE_ERR_SHAPE, "dlogits");
    UNIT_FAILS(ENTROPY(of(x, 2, 4), cmoe_view_1d(targets, CMOE_I32, 2), flat(scale, 2), no,
                       to(x + 1, 2, 4)),
               CMOE_ERR_ARG, "dlogits");
    UNIT_FAILS(ENTROPY(vx, vt, vs, flat_mut(x, 3), mx), CMOE_ERR_ARG, "loss");
    UNIT_FAILS(ENTROPY(vx, vt, vs, flat_mut(dx, 3), mx), CMOE_ERR_ARG, "loss");
    UNIT_FAILS(ENTROPY(vx, vt, vs, flat_mut(scale, 3), mx), CMOE_ERR_ARG, "loss");
    untouched(loss, sizeof loss), untouched(dx, sizeof dx);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gate_values),      cmocka_unit_test(gate_threads),
        cmocka_unit_test(gate_nothing),     cmocka_unit_test(gate_errors),
        cmocka_unit_test(embedding_values), cmocka_unit_test(embedding_bits),
        cmocka_unit_test(embedding_edges),  cmocka_unit_test(entropy_values),
        cmocka_unit_test(entropy_threads),  cmocka_unit_test(entropy_errors),
    };
    return UNIT_RUN("unit_ops_backward", tests);
}
