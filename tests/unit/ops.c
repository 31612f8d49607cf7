/* SPDX-License-Identifier: MIT
 *
 * ops.c - the small operations: values by hand, both rounding orders, in place, exact int8 bytes,
 * the same bits at any number of threads, and every error text.
 */
#include <math.h>

#include "unit.h"

#include "core/core.h"

static float bf16_at(const void *p, int64_t i)
{
    float x;
    cmoei_load_f32(&x, (const char *)p + 2 * i, CMOE_BF16, 1, 1);
    return x;
}

static void to_bf16(void *p, const float *x, int64_t n)
{
    cmoei_store_f32(p, CMOE_BF16, 1, x, n);
}

static void normals(float *x, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
}

/* ---- rms_norm -------------------------------------------------------------------------------- */

static cmoe_rms_norm_options norm(float eps, int32_t order, int32_t round_sum, float offset)
{
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    assert_true(o.eps == 1e-6f && o.order == 0 && o.round_sum == 0 && o.weight_offset == 0);
    o.eps = eps;
    o.order = order;
    o.round_sum = round_sum;
    o.weight_offset = offset;
    return o;
}

/* 3 / sqrt(12.5) = .848528, in bf16 .84765625; times 1.0390625 that is .88075 -> .87890625, while
 * the unrounded .88167 -> .8828125.  And 4 / sqrt(12.5) likewise. */
static void norm_orders(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    uint16_t x[2], w[2], out[2];
    to_bf16(x, (const float[2]){3, 4}, 2);
    to_bf16(w, (const float[2]){1.0390625f, 1.0390625f}, 2);
    const float want[2][2] = {{.87890625f, 1.1796875f}, {.8828125f, 1.171875f}};
    for (int32_t order = 0; order < 2; order++) {
        const cmoe_rms_norm_options o = norm(0, order, 0, 0);
        UNIT_OK(cmoe_rms_norm(e.stream, &o, cmoe_view_2d(x, CMOE_BF16, 1, 2), cmoe_view_none(),
                              cmoe_view_1d(w, CMOE_BF16, 2), cmoe_view_mut_2d(out, CMOE_BF16, 1, 2),
                              cmoe_view_mut_none(), &err));
        assert_true(bf16_at(out, 0) == want[order][0]);
        assert_true(bf16_at(out, 1) == want[order][1]);
    }
    unit_close(&e);
}

/* 1 + 2^-9 is 1 in bf16, so only the exact sum has two different columns. */
static void norm_sums(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    uint16_t x[2], r[2], sum[2];
    float out[2];
    to_bf16(x, (const float[2]){1, 1}, 2);
    to_bf16(r, (const float[2]){0x1p-9f, 0}, 2);
    const cmoe_view vx = cmoe_view_2d(x, CMOE_BF16, 1, 2), vr = cmoe_view_2d(r, CMOE_BF16, 1, 2);
    const cmoe_view_mut vo = cmoe_view_mut_2d(out, CMOE_F32, 1, 2);
    const cmoe_view_mut vs = cmoe_view_mut_2d(sum, CMOE_BF16, 1, 2);
    cmoe_rms_norm_options o = norm(0, 0, 0, 0);
    UNIT_OK(cmoe_rms_norm(e.stream, &o, vx, vr, cmoe_view_none(), vo, vs, &err));
    assert_true(out[0] > 1 && out[1] < 1);
    assert_true(bf16_at(sum, 0) == 1 && bf16_at(sum, 1) == 1);
    o.round_sum = 1;
    UNIT_OK(cmoe_rms_norm(e.stream, &o, vx, vr, cmoe_view_none(), vo, vs, &err));
    assert_true(out[0] == 1 && out[1] == 1);
    UNIT_OK(cmoe_rms_norm(e.stream, &o, vx, vr, cmoe_view_none(), vo, cmoe_view_mut_none(), &err));
    assert_true(out[0] == 1 && out[1] == 1);
    /* (1 + weight), and the defaults: eps 1e-6 keeps a row of zeros at zero. */
    const float zero[2] = {0, 0}, w[2] = {.5f, -.25f};
    o = norm(0, 0, 1, 1);
    UNIT_OK(cmoe_rms_norm(e.stream, &o, vx, vr, cmoe_view_1d(w, CMOE_F32, 2), vo,
                          cmoe_view_mut_none(), &err));
    assert_true(out[0] == 1.5f && out[1] == .75f);
    UNIT_OK(cmoe_rms_norm(e.stream, NULL, cmoe_view_2d(zero, CMOE_F32, 1, 2), cmoe_view_none(),
                          cmoe_view_none(), vo, cmoe_view_mut_none(), &err));
    assert_true(out[0] == 0 && out[1] == 0);
    unit_close(&e);
}

/* out on x, and residual_out on x or on residual, give what separate outputs give; rows from one
 * column to 32k. */
static void norm_in_place(void **state)
{
    (void)state;
    enum { N = 3 };
    unit_env e = unit_open(2);
    const int64_t sizes[] = {1, 33, 2048, 32768};
    for (int i = 0; i < 4; i++) {
        const int64_t H = sizes[i], n = N * H;
        const size_t bytes = (size_t)n * 4;
        float *x = malloc(bytes), *r = malloc(bytes), *w = malloc((size_t)H * 4);
        float *out = malloc(bytes), *sum = malloc(bytes), *a = malloc(bytes), *b = malloc(bytes);
        normals(x, n, 1), normals(r, n, 2), normals(w, H, 3);
        const cmoe_view vw = cmoe_view_1d(w, CMOE_F32, H);
        const cmoe_view va = cmoe_view_2d(a, CMOE_F32, N, H), vb = cmoe_view_2d(b, CMOE_F32, N, H);
        const cmoe_view_mut ma = cmoe_view_mut_2d(a, CMOE_F32, N, H);
        const cmoe_view_mut mb = cmoe_view_mut_2d(b, CMOE_F32, N, H);
        UNIT_OK(cmoe_rms_norm(
            e.stream, NULL, cmoe_view_2d(x, CMOE_F32, N, H), cmoe_view_2d(r, CMOE_F32, N, H), vw,
            cmoe_view_mut_2d(out, CMOE_F32, N, H), cmoe_view_mut_2d(sum, CMOE_F32, N, H), &err));
        memcpy(a, x, bytes), memcpy(b, r, bytes);
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, va, vb, vw, ma, mb, &err));
        assert_memory_equal(a, out, bytes);
        assert_memory_equal(b, sum, bytes);
        float *c = malloc(bytes);
        memcpy(a, x, bytes), memcpy(b, r, bytes);
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, va, vb, vw, cmoe_view_mut_2d(c, CMOE_F32, N, H), ma,
                              &err));
        assert_memory_equal(c, out, bytes);
        assert_memory_equal(a, sum, bytes);
        assert_memory_equal(b, r, bytes);
        free(x), free(r), free(w), free(out), free(sum), free(a), free(b), free(c);
    }
    unit_close(&e);
}

/* ---- gates ----------------------------------------------------------------------------------- */

/* sigmoid(1) = .731058..., in bf16 .73046875. */
static void sigmoid_gates(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const float x[4] = {1, 2, -4, 8}, one[2] = {1, 0}, all[4] = {1, 0, 0, 1};
    const float s = 1 / (1 + expf(-1));
    float out[4];
    const cmoe_view vx = cmoe_view_2d(x, CMOE_F32, 2, 2), none = cmoe_view_none();
    const cmoe_view g1 = cmoe_view_2d(one, CMOE_F32, 2, 1), g2 = cmoe_view_2d(all, CMOE_F32, 2, 2);
    const cmoe_view_mut vo = cmoe_view_mut_2d(out, CMOE_F32, 2, 2);
    UNIT_OK(cmoe_sigmoid_mul(e.stream, vx, g1, 1, vo, &err));
    assert_memory_equal(out, ((const float[4]){.73046875f, 1.4609375f, -2, 4}), sizeof out);
    UNIT_OK(cmoe_sigmoid_mul(e.stream, vx, g2, 1, vo, &err));
    assert_memory_equal(out, ((const float[4]){.73046875f, 1, -2, 5.84375f}), sizeof out);
    UNIT_OK(cmoe_sigmoid_mul(e.stream, vx, g1, 0, vo, &err));
    assert_true(fabsf(out[0] - s) < 1e-6f && fabsf(out[1] - 2 * s) < 1e-6f && out[0] != .73046875f);
    memcpy(out, x, sizeof out); /* in place */
    UNIT_OK(cmoe_sigmoid_mul(e.stream, cmoe_view_of(vo), g2, 1, vo, &err));
    assert_memory_equal(out, ((const float[4]){.73046875f, 1, -2, 5.84375f}), sizeof out);

    const float shared[4] = {4, 4, 2, 2};
    const cmoe_view vs = cmoe_view_2d(shared, CMOE_F32, 2, 2);
    UNIT_OK(cmoe_add_shared_expert(e.stream, vx, vs, g1, 1, vo, &err));
    assert_memory_equal(out, ((const float[4]){3.921875f, 4.921875f, -3, 9}), sizeof out);
    UNIT_OK(cmoe_add_shared_expert(e.stream, vx, vs, none, 0, vo, &err));
    assert_memory_equal(out, ((const float[4]){5, 6, -2, 10}), sizeof out);
    memcpy(out, x, sizeof out);
    UNIT_OK(cmoe_add_shared_expert(e.stream, cmoe_view_of(vo), vs, none, 0, vo, &err));
    assert_memory_equal(out, ((const float[4]){5, 6, -2, 10}), sizeof out);
    unit_close(&e);
}

static void silu_layouts(void **state)
{
    (void)state;
    enum { N = 2, I = 700 };
    unit_env e = unit_open(1);
    float *x = malloc(N * 2 * I * 4), *mixed = malloc(N * 2 * I * 4);
    float *a = malloc(N * I * 4), *b = malloc(N * I * 4);
    normals(x, N * 2 * I, 5);
    for (int n = 0; n < N; n++) {
        for (int i = 0; i < I; i++) {
            mixed[n * 2 * I + 2 * i] = x[n * 2 * I + i];
            mixed[n * 2 * I + 2 * i + 1] = x[n * 2 * I + I + i];
        }
    }
    UNIT_OK(cmoe_silu_mul(e.stream, cmoe_view_2d(x, CMOE_F32, N, 2 * I), 0, 0,
                          cmoe_view_mut_2d(a, CMOE_F32, N, I), &err));
    UNIT_OK(cmoe_silu_mul(e.stream, cmoe_view_2d(mixed, CMOE_F32, N, 2 * I), 1, 0,
                          cmoe_view_mut_2d(b, CMOE_F32, N, I), &err));
    assert_memory_equal(a, b, N * I * 4);
    for (int i = 0; i < I; i++) {
        const double want = x[i] / (1 + exp(-(double)x[i])) * x[I + i];
        assert_true(fabs(a[i] - want) <= 1e-6 * fabs(want) + 1e-30);
    }
    /* silu(1) = .7310586, in bf16 .73046875: times 4.5 that is 3.2871 -> 3.28125, and 3.2898 ->
     * 3.296875 without the rounding in between. */
    uint16_t in[2], out;
    float wide;
    to_bf16(in, (const float[2]){1, 4.5f}, 2);
    const cmoe_view v = cmoe_view_2d(in, CMOE_BF16, 1, 2);
    UNIT_OK(cmoe_silu_mul(e.stream, v, 0, 1, cmoe_view_mut_2d(&out, CMOE_BF16, 1, 1), &err));
    assert_true(bf16_at(&out, 0) == 3.28125f);
    UNIT_OK(cmoe_silu_mul(e.stream, v, 0, 0, cmoe_view_mut_2d(&out, CMOE_BF16, 1, 1), &err));
    assert_true(bf16_at(&out, 0) == 3.296875f);
    UNIT_OK(cmoe_silu_mul(e.stream, v, 0, 1, cmoe_view_mut_2d(&wide, CMOE_F32, 1, 1), &err));
    assert_true(fabsf(wide - 4.5f * .7310586f) < 1e-6f); /* nothing to round in float32 */
    free(x), free(mixed), free(a), free(b);
    unit_close(&e);
}

/* ---- quantize_rows --------------------------------------------------------------------------- */

static void int8_bytes(void **state)
{
    (void)state;
    const char *isas[] = {"ref", "avx2", NULL};
    const float x[6][8] = {{127, -127, 63.5f, .5f, 1.5f, -2.5f, -.49f, 126.5f}, /* factor 1 */
                           {0, -0.0f, 0, 0, 0, 0, 0, 0},
                           {1, -1, .5f, .25f, -.75f, .1f, 0, 1e-9f},
                           {5e-5f, -1e-4f, 1e-5f, 0, 0, 0, 0, 0}, /* the floor */
                           {1, NAN, 3, 4, 5, 6, 7, 8},
                           {1, 2, 3, -INFINITY, 5, 6, 7, 8}};
    const int8_t want[6][8] = {{127, -127, 64, 0, 2, -2, 0, 126}, /* halves go to even */
                               {0},
                               {127, -127, 64, 32, -95, 13, 0, 0},
                               {64, -127, 13, 0, 0, 0, 0, 0},
                               {0},
                               {0}};
    for (int i = 0; i < 3; i++) {
        unit_env e = unit_open_isa(1, isas[i]);
        int8_t q[6][8];
        char scales[6 * 8 + 1];
        memset(q, 0x5a, sizeof q);
        cmoe_view_mut vs = cmoe_view_mut_1d(scales + 1, CMOE_F32, 6);
        vs.strides[0] = 2;
        UNIT_OK(cmoe_quantize_rows(e.stream, cmoe_view_2d(x, CMOE_F32, 6, 8),
                                   cmoe_view_mut_2d(q, CMOE_I8, 6, 8), vs, &err));
        assert_memory_equal(q, want, sizeof want);
        float s[6];
        for (int r = 0; r < 6; r++)
            memcpy(&s[r], scales + 1 + 8 * r, 4);
        assert_true(s[0] == 1 && s[2] == 1 / 127.0f);
        assert_true(s[1] == 1 / (127 / 1e-4f) && s[3] == s[1]);
        assert_true(s[4] != s[4] && s[5] == INFINITY);
        unit_close(&e);
    }
}

/* Longer than a block, other formats, odd addresses and strides: the same bytes. */
static void int8_lies(void **state)
{
    (void)state;
    enum { N = 40, H = 1234 };
    float *x = malloc(N * H * 4), scale[N], other_scale[N];
    int8_t *q = malloc(N * H), *other = malloc(N * H * 3 + 1);
    char *moved = malloc(N * H * 16 + 1);
    normals(x, N * H, 7);
    for (int i = 0; i < N * H; i++)
        x[i] = cmoei_round_bf16(x[i]);
    unit_env e = unit_open(1);
    UNIT_OK(cmoe_quantize_rows(e.stream, cmoe_view_2d(x, CMOE_F32, N, H),
                               cmoe_view_mut_2d(q, CMOE_I8, N, H),
                               cmoe_view_mut_1d(scale, CMOE_F32, N), &err));
    unit_close(&e);
    const int32_t dtypes[] = {CMOE_F32, CMOE_BF16, CMOE_F64}, threads[] = {1, 3, 8};
    for (int d = 0; d < 3; d++) {
        e = unit_open(threads[d]);
        const int64_t bytes = cmoe_dtype_bytes(dtypes[d]);
        for (int64_t i = 0; i < N * H; i++)
            cmoei_store_f32(moved + 1 + i * 2 * bytes, dtypes[d], 1, x + i, 1);
        cmoe_view v = cmoe_view_2d(moved + 1, dtypes[d], N, H);
        cmoe_view_mut o = cmoe_view_mut_2d(other + 1, CMOE_I8, N, H);
        v.strides[0] *= 2, v.strides[1] *= 2;
        o.strides[0] *= 3, o.strides[1] *= 3;
        UNIT_OK(
            cmoe_quantize_rows(e.stream, v, o, cmoe_view_mut_1d(other_scale, CMOE_F32, N), &err));
        for (int i = 0; i < N * H; i++)
            assert_int_equal(other[1 + 3 * i], q[i]);
        assert_memory_equal(scale, other_scale, sizeof scale);
        unit_close(&e);
    }
    free(x), free(q), free(other), free(moved);
}

/* ---- silu_mul_quantize_masked ---------------------------------------------------------------- */

static void masked_groups(int64_t E, int64_t M, int64_t I, int64_t group, int32_t threads)
{
    unit_env e = unit_open(threads);
    const int64_t x_dims[3] = {E, M, 2 * I}, o_dims[3] = {E, M, I}, s_dims[3] = {E, M, I / group};
    const int64_t n = E * M * I, scales = n / group;
    float *x = malloc((size_t)n * 8), *scale = malloc((size_t)scales * 4);
    uint8_t *out = malloc((size_t)n);
    int64_t *counts = malloc((size_t)E * 8);
    normals(x, 2 * n, 11);
    memset(x, 0, (size_t)group * 4); /* the first group is all zero */
    memset(out, 0x5a, (size_t)n);
    memset(scale, 0x5a, (size_t)scales * 4);
    for (int64_t i = 0; i < E; i++)
        counts[i] = i % (M + 1);
    counts[0] = M;
    UNIT_OK(cmoe_silu_mul_quantize_masked(e.stream, cmoe_view_make(x, CMOE_F32, 3, x_dims),
                                          cmoe_view_1d(counts, CMOE_I64, E), group,
                                          cmoe_view_mut_make(out, CMOE_F8E4M3, 3, o_dims),
                                          cmoe_view_mut_make(scale, CMOE_F32, 3, s_dims), &err));
    for (int64_t g = 0; g < scales; g++) {
        const int64_t row = g / (I / group), first = g % (I / group) * group;
        float largest = 0, untouched;
        memset(&untouched, 0x5a, 4);
        if (row % M >= counts[row / M]) {
            assert_memory_equal(scale + g, &untouched, 4);
            for (int64_t i = 0; i < group; i++)
                assert_int_equal(out[row * I + first + i], 0x5a);
            continue;
        }
        for (int64_t i = 0; i < group; i++) {
            const double gate = x[row * 2 * I + first + i], up = x[row * 2 * I + I + first + i];
            const double h = gate / (1 + exp(-gate)) * up;
            const double got = cmoei_f8e4m3_to_f32(out[row * I + first + i]) * (double)scale[g];
            /* e4m3: half a unit is 2^-4 of the value, 2^-10 of the scale when subnormal. */
            assert_true(fabs(got - h) <= fabs(h) * .0626 + scale[g] * 0x1.01p-10);
            largest = fmaxf(largest, fabsf((float)h));
        }
        const float want = fmaxf(largest, 1e-10f) / 448;
        assert_true(fabsf(scale[g] - want) <= 1e-6f * want);
    }
    free(x), free(scale), free(out), free(counts);
    unit_close(&e);
}

static void masked(void **state)
{
    (void)state;
    masked_groups(5, 3, 256, 128, 1);
    masked_groups(2, 4, 1300, 1300, 2); /* longer than a block */
    masked_groups(3, 40, 60, 20, 8);
    masked_groups(1, 1, 1, 1, 1);
}

/* ---- threads and nothing --------------------------------------------------------------------- */

static void same_at_any_threads(void **state)
{
    (void)state;
    enum { N = 333, H = 700 };
    const size_t bytes = N * H * 4;
    float *x = malloc(bytes), *y = malloc(bytes), *first = malloc(4 * bytes),
          *other = malloc(4 * bytes);
    normals(x, N * H, 1), normals(y, N * H, 2);
    const int32_t threads[] = {1, 2, 3, 8};
    const cmoe_view vx = cmoe_view_2d(x, CMOE_F32, N, H), vy = cmoe_view_2d(y, CMOE_F32, N, H);
    for (int t = 0; t < 4; t++) {
        unit_env e = unit_open(threads[t]);
        float *o = t ? other : first;
        memset(o, 0, 4 * bytes);
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, vx, vy, cmoe_view_none(),
                              cmoe_view_mut_2d(o, CMOE_F32, N, H), cmoe_view_mut_none(), &err));
        UNIT_OK(cmoe_sigmoid_mul(e.stream, vx, vy, 0, cmoe_view_mut_2d(o + N * H, CMOE_F32, N, H),
                                 &err));
        UNIT_OK(cmoe_add_shared_expert(e.stream, vx, vy, vx, 1,
                                       cmoe_view_mut_2d(o + 2 * N * H, CMOE_F32, N, H), &err));
        UNIT_OK(cmoe_silu_mul(e.stream, vx, 0, 0,
                              cmoe_view_mut_2d(o + 3 * N * H, CMOE_F32, N, H / 2), &err));
        if (t) assert_memory_equal(first, other, 4 * bytes);
        unit_close(&e);
    }
    free(x), free(y), free(first), free(other);
}

static void empty(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const int64_t sizes[][2] = {{0, 5}, {INT64_MAX, 0}};
    for (int i = 0; i < 2; i++) {
        const int64_t n = sizes[i][0], h = sizes[i][1], d3[3] = {n, n, h};
        const cmoe_view v = cmoe_view_2d(NULL, CMOE_F32, n, h);
        const cmoe_view_mut o = cmoe_view_mut_2d(NULL, CMOE_F32, n, h);
        UNIT_OK(cmoe_rms_norm(e.stream, NULL, v, v, cmoe_view_none(), o, o, &err));
        UNIT_OK(cmoe_sigmoid_mul(e.stream, v, v, 0, o, &err));
        UNIT_OK(cmoe_add_shared_expert(e.stream, v, v, v, 0, o, &err));
        if (n > 0) continue;
        UNIT_OK(cmoe_silu_mul(e.stream, cmoe_view_2d(NULL, CMOE_F32, n, 2 * h), 0, 0, o, &err));
        UNIT_OK(cmoe_quantize_rows(e.stream, v, cmoe_view_mut_2d(NULL, CMOE_I8, n, h),
                                   cmoe_view_mut_1d(NULL, CMOE_F32, n), &err));
        const int64_t x3[3] = {n, n, 2 * h};
        UNIT_OK(cmoe_silu_mul_quantize_masked(
            e.stream, cmoe_view_make(NULL, CMOE_F32, 3, x3), cmoe_view_1d(NULL, CMOE_I32, n), 5,
            cmoe_view_mut_make(NULL, CMOE_F8E4M3, 3, d3),
            cmoe_view_mut_make(NULL, CMOE_F32, 3, (const int64_t[]){n, n, 1}), &err));
    }
    float scale[2] = {0};
    UNIT_OK(cmoe_quantize_rows(e.stream, cmoe_view_2d(NULL, CMOE_F32, 2, 0),
                               cmoe_view_mut_2d(NULL, CMOE_I8, 2, 0),
                               cmoe_view_mut_1d(scale, CMOE_F32, 2), &err));
    assert_true(scale[0] == 1 / (127 / 1e-4f) && scale[1] == scale[0]);
    unit_close(&e);
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void norm_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[8] = {0}, r[8] = {0}, w[4] = {0}, out[8], sum[8];
    memset(out, 0x5a, sizeof out);
    memset(sum, 0x5a, sizeof sum);
    const cmoe_view vx = cmoe_view_2d(x, CMOE_F32, 2, 4), vr = cmoe_view_2d(r, CMOE_F32, 2, 4);
    const cmoe_view vw = cmoe_view_1d(w, CMOE_F32, 4);
    const cmoe_view_mut vo = cmoe_view_mut_2d(out, CMOE_F32, 2, 4);
    const cmoe_view_mut vs = cmoe_view_mut_2d(sum, CMOE_F32, 2, 4);
    UNIT_FAILS(cmoe_rms_norm(NULL, NULL, vx, vr, vw, vo, vs, &err), CMOE_ERR_ARG, "stream");
    cmoe_rms_norm_options o = norm(-1, 0, 0, 0);
    UNIT_FAILS(cmoe_rms_norm(e.stream, &o, vx, vr, vw, vo, vs, &err), CMOE_ERR_RANGE, "eps = -1");
    o = norm(NAN, 0, 0, 0);
    UNIT_FAILS(cmoe_rms_norm(e.stream, &o, vx, vr, vw, vo, vs, &err), CMOE_ERR_RANGE, "eps = ");
    o = norm(0, 2, 0, 0);
    UNIT_FAILS(cmoe_rms_norm(e.stream, &o, vx, vr, vw, vo, vs, &err), CMOE_ERR_RANGE,
               "order = 2, want 0 (cast, then weight) or 1 (weight, then cast)");
    o = norm(0, 0, 2, 0);
    UNIT_FAILS(cmoe_rms_norm(e.stream, &o, vx, vr, vw, vo, vs, &err), CMOE_ERR_RANGE,
               "round_sum = 2, want 0 or 1");
    o = norm(0, 0, 0, INFINITY);
    UNIT_FAILS(cmoe_rms_norm(e.stream, &o, vx, vr, vw, vo, vs, &err), CMOE_ERR_RANGE,
               "weight_offset = inf");
    o.size = 2;
    UNIT_FAILS(cmoe_rms_norm(e.stream, &o, vx, vr, vw, vo, vs, &err), CMOE_ERR_ARG,
               "cmoe_rms_norm_options.size");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, cmoe_view_1d(x, CMOE_F32, 8), vr, vw, vo, vs, &err),
               CMOE_ERR_SHAPE, "x: rank 1, want 2 [rows, hidden]");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, cmoe_view_2d(r, CMOE_F32, 1, 4), vw, vo, vs, &err),
               CMOE_ERR_SHAPE, "residual: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, vr, cmoe_view_1d(w, CMOE_F32, 3), vo, vs, &err),
               CMOE_ERR_SHAPE, "weight: dims[0] = 3, want 4 [hidden = 4]");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, vr, cmoe_view_1d(w, CMOE_I32, 4), vo, vs, &err),
               CMOE_ERR_DTYPE, "weight: dtype i32");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, vr, vw, cmoe_view_mut_none(), vs, &err),
               CMOE_ERR_ARG, "out is not given");
    UNIT_FAILS(
        cmoe_rms_norm(e.stream, NULL, vx, vr, vw, vo, cmoe_view_mut_2d(sum, CMOE_F32, 2, 3), &err),
        CMOE_ERR_SHAPE, "residual_out: dims[1] = 3, want 4");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, vx, vr, vw, vo, vo, &err), CMOE_ERR_ARG,
               "out overlaps residual_out");
    UNIT_FAILS(
        cmoe_rms_norm(e.stream, NULL, vx, vr, vw, cmoe_view_mut_2d(r, CMOE_F32, 2, 4), vs, &err),
        CMOE_ERR_ARG, "out overlaps residual");
    UNIT_FAILS(
        cmoe_rms_norm(e.stream, NULL, vx, vr, vw, cmoe_view_mut_2d(x, CMOE_BF16, 2, 4), vs, &err),
        CMOE_ERR_ARG, "out overlaps x"); /* same address, another format */
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, cmoe_view_2d(x, CMOE_F32, 1, 4),
                             cmoe_view_2d(r, CMOE_F32, 1, 4), vw,
                             cmoe_view_mut_2d(out, CMOE_F32, 1, 4),
                             cmoe_view_mut_2d(x + 1, CMOE_F32, 1, 4), &err),
               CMOE_ERR_ARG, "residual_out overlaps x");
    UNIT_FAILS(cmoe_rms_norm(e.stream, NULL, cmoe_view_2d(x, CMOE_F32, 1, 4),
                             cmoe_view_2d(r, CMOE_F32, 1, 4), vw,
                             cmoe_view_mut_2d(out, CMOE_F32, 1, 4),
                             cmoe_view_mut_2d(w, CMOE_F32, 1, 4), &err),
               CMOE_ERR_ARG, "residual_out overlaps weight");
    for (int i = 0; i < 32; i++) {
        assert_int_equal(((unsigned char *)out)[i], 0x5a);
        assert_int_equal(((unsigned char *)sum)[i], 0x5a);
    }
    unit_close(&e);
}

static void gate_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[8] = {0}, g[8] = {0}, y[8] = {0}, out[8];
    memset(out, 0x5a, sizeof out);
    const cmoe_view vx = cmoe_view_2d(x, CMOE_F32, 2, 4), vg = cmoe_view_2d(g, CMOE_F32, 2, 4);
    const cmoe_view vy = cmoe_view_2d(y, CMOE_F32, 2, 4), none = cmoe_view_none();
    const cmoe_view_mut vo = cmoe_view_mut_2d(out, CMOE_F32, 2, 4);
    UNIT_FAILS(cmoe_sigmoid_mul(NULL, vx, vg, 0, vo, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_sigmoid_mul(e.stream, vx, vg, -1, vo, &err), CMOE_ERR_RANGE,
               "round_gate = -1, want 0 or 1");
    UNIT_FAILS(cmoe_sigmoid_mul(e.stream, vx, cmoe_view_2d(g, CMOE_F32, 2, 3), 0, vo, &err),
               CMOE_ERR_SHAPE, "gate: dims[1] = 3, want 1 or 4");
    UNIT_FAILS(cmoe_sigmoid_mul(e.stream, vx, none, 0, vo, &err), CMOE_ERR_ARG,
               "gate is not given");
    UNIT_FAILS(cmoe_sigmoid_mul(e.stream, vx, vg, 0, cmoe_view_mut_2d(out, CMOE_I8, 2, 4), &err),
               CMOE_ERR_DTYPE, "out: dtype i8");
    UNIT_FAILS(cmoe_sigmoid_mul(e.stream, vx, vg, 0, cmoe_view_mut_2d(g, CMOE_F32, 2, 4), &err),
               CMOE_ERR_ARG, "out overlaps gate");
    UNIT_FAILS(cmoe_sigmoid_mul(e.stream, cmoe_view_2d(x, CMOE_F32, 1, 4),
                                cmoe_view_2d(g, CMOE_F32, 1, 4), 0,
                                cmoe_view_mut_2d(x + 1, CMOE_F32, 1, 4), &err),
               CMOE_ERR_ARG, "out overlaps x");
    UNIT_FAILS(
        cmoe_add_shared_expert(e.stream, vx, cmoe_view_2d(y, CMOE_F32, 2, 3), vg, 0, vo, &err),
        CMOE_ERR_SHAPE, "shared: dims[1] = 3, want 4");
    UNIT_FAILS(cmoe_add_shared_expert(e.stream, vx, none, vg, 0, vo, &err), CMOE_ERR_ARG,
               "shared is not given");
    UNIT_FAILS(
        cmoe_add_shared_expert(e.stream, vx, vy, cmoe_view_2d(g, CMOE_F32, 1, 4), 0, vo, &err),
        CMOE_ERR_SHAPE, "gate: dims[0] = 1, want 2");
    UNIT_FAILS(
        cmoe_add_shared_expert(e.stream, vx, vy, vg, 0, cmoe_view_mut_2d(y, CMOE_F32, 2, 4), &err),
        CMOE_ERR_ARG, "out overlaps shared");
    UNIT_FAILS(
        cmoe_add_shared_expert(e.stream, vx, vy, vg, 0, cmoe_view_mut_2d(g, CMOE_F32, 2, 4), &err),
        CMOE_ERR_ARG, "out overlaps gate");
    UNIT_FAILS(cmoe_add_shared_expert(e.stream, vx, vy, vg, 3, vo, &err), CMOE_ERR_RANGE,
               "round_gate = 3");
    const cmoe_view_mut half = cmoe_view_mut_2d(out, CMOE_F32, 2, 2);
    UNIT_FAILS(cmoe_silu_mul(e.stream, vx, 2, 0, half, &err), CMOE_ERR_RANGE, "interleaved = 2");
    UNIT_FAILS(cmoe_silu_mul(e.stream, vx, 0, 7, half, &err), CMOE_ERR_RANGE, "round_act = 7");
    UNIT_FAILS(cmoe_silu_mul(e.stream, cmoe_view_2d(x, CMOE_F32, 2, 3), 0, 0, half, &err),
               CMOE_ERR_SHAPE, "gate_up: dims[1] = 3, want an even size");
    UNIT_FAILS(cmoe_silu_mul(e.stream, vx, 0, 0, vo, &err), CMOE_ERR_SHAPE,
               "out: dims[1] = 4, want 2");
    UNIT_FAILS(cmoe_silu_mul(e.stream, vx, 0, 0, cmoe_view_mut_2d(x, CMOE_F32, 2, 2), &err),
               CMOE_ERR_ARG, "out overlaps gate_up");
    for (int i = 0; i < 32; i++)
        assert_int_equal(((unsigned char *)out)[i], 0x5a);
    unit_close(&e);
}

static void quantize_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[8] = {0}, scale[8];
    int8_t q[8];
    memset(q, 0x5a, sizeof q);
    memset(scale, 0x5a, sizeof scale);
    const cmoe_view vx = cmoe_view_2d(x, CMOE_F32, 2, 4);
    const cmoe_view_mut vq = cmoe_view_mut_2d(q, CMOE_I8, 2, 4);
    const cmoe_view_mut vs = cmoe_view_mut_1d(scale, CMOE_F32, 2);
    UNIT_FAILS(cmoe_quantize_rows(e.stream, vx, cmoe_view_mut_2d(q, CMOE_U8, 2, 4), vs, &err),
               CMOE_ERR_DTYPE, "q: dtype u8 (7), want one of: i8");
    UNIT_FAILS(cmoe_quantize_rows(e.stream, vx, vq, cmoe_view_mut_1d(scale, CMOE_F32, 3), &err),
               CMOE_ERR_SHAPE, "scale: dims[0] = 3, want 2");
    UNIT_FAILS(cmoe_quantize_rows(e.stream, cmoe_view_2d(x, CMOE_I8, 2, 4), vq, vs, &err),
               CMOE_ERR_DTYPE, "x: dtype i8");
    UNIT_FAILS(cmoe_quantize_rows(e.stream, vx, cmoe_view_mut_2d(x, CMOE_I8, 2, 4), vs, &err),
               CMOE_ERR_ARG, "q overlaps x");
    UNIT_FAILS(cmoe_quantize_rows(e.stream, vx, vq, cmoe_view_mut_1d(x + 1, CMOE_F32, 2), &err),
               CMOE_ERR_ARG, "scale overlaps x");
    UNIT_FAILS(cmoe_quantize_rows(e.stream, vx, cmoe_view_mut_2d(scale, CMOE_I8, 2, 4), vs, &err),
               CMOE_ERR_ARG, "q overlaps scale");
    UNIT_FAILS(cmoe_quantize_rows(NULL, vx, vq, vs, &err), CMOE_ERR_ARG, "stream");

    const int64_t x3[3] = {1, 2, 4}, o3[3] = {1, 2, 2}, s3[3] = {1, 2, 1};
    const int32_t counts[1] = {3}, ok[1] = {2};
    const cmoe_view mx = cmoe_view_make(x, CMOE_F32, 3, x3), vc = cmoe_view_1d(ok, CMOE_I32, 1);
    const cmoe_view_mut mo = cmoe_view_mut_make(q, CMOE_F8E4M3, 3, o3);
    const cmoe_view_mut ms = cmoe_view_mut_make(scale, CMOE_F32, 3, s3);
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(NULL, mx, vc, 2, mo, ms, &err), CMOE_ERR_ARG,
               "stream");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, vx, vc, 2, mo, ms, &err), CMOE_ERR_SHAPE,
               "x: rank 2, want 3 [experts, rows, 2 * inter]");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, mx, cmoe_view_1d(counts, CMOE_I32, 1), 2, mo,
                                             ms, &err),
               CMOE_ERR_RANGE, "counts[0] = 3, want 0 to 2 (rows)");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, mx, vc, 0, mo, ms, &err), CMOE_ERR_RANGE,
               "group = 0, want one that divides 2 (inter)");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, mx, vc, 3, mo, ms, &err), CMOE_ERR_RANGE,
               "group = 3");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, mx, vc, 1, mo, ms, &err), CMOE_ERR_SHAPE,
               "scale: dims[2] = 1, want 2");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, mx, vc, 2, ms, ms, &err), CMOE_ERR_DTYPE,
               "out: dtype f32");
    cmoe_view odd = mx;
    odd.dims[2] = 3;
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, odd, vc, 1, mo, ms, &err), CMOE_ERR_SHAPE,
               "x: dims[2] = 3, want an even size");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(e.stream, mx, vc, 2,
                                             cmoe_view_mut_make(x, CMOE_F8E4M3, 3, o3), ms, &err),
               CMOE_ERR_ARG, "out overlaps x");
    UNIT_FAILS(cmoe_silu_mul_quantize_masked(
                   e.stream, mx, vc, 2, cmoe_view_mut_make(scale, CMOE_F8E4M3, 3, o3), ms, &err),
               CMOE_ERR_ARG, "out overlaps scale");
    for (int i = 0; i < 8; i++)
        assert_int_equal(q[i], 0x5a);
    for (int i = 0; i < 32; i++)
        assert_int_equal(((unsigned char *)scale)[i], 0x5a);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_orders),         cmocka_unit_test(norm_sums),
        cmocka_unit_test(norm_in_place),       cmocka_unit_test(sigmoid_gates),
        cmocka_unit_test(silu_layouts),        cmocka_unit_test(int8_bytes),
        cmocka_unit_test(int8_lies),           cmocka_unit_test(masked),
        cmocka_unit_test(same_at_any_threads), cmocka_unit_test(empty),
        cmocka_unit_test(norm_errors),         cmocka_unit_test(gate_errors),
        cmocka_unit_test(quantize_errors),
    };
    return UNIT_RUN("unit_ops", tests);
}
