/* SPDX-License-Identifier: MIT
 *
 * elements.c - tensors of more than 2^31 elements: no index, offset or size may go through int32.
 *
 * Memory is mapped without being reserved, so a tensor costs what is written to it and reads as
 * zeros elsewhere; at most about 7 GiB are touched at a time.  Results are looked at in spots on
 * both sides of 2^31.
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, MAP_NORESERVE */
#include <sys/mman.h>

#include "../unit/mlp_oracle.h"

#define HALF ((int64_t)1 << 31)

static void *map(int64_t bytes)
{
    void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail_msg("%lld bytes could not be mapped", (long long)bytes);
    return p;
}

static void unmap(void *p, int64_t bytes)
{
    munmap(p, (size_t)bytes);
}

/* ---- conversion
 * ---------------------------------------------------------------------------------- */

static void convert_one_row(void **state)
{
    const int64_t n = HALF + 1000,
                  spots[] = {0, 1, HALF - 1, HALF, HALF + 1, n - 1, HALF / 2, 12345};
    (void)state;
    unit_env e = unit_open(2);
    int8_t *in = map(n);
    uint16_t *out = map(2 * n);
    for (int i = 0; i < 8; i++)
        in[spots[i]] = (int8_t)(i - 100);
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_1d(in, CMOE_I8, n),
                         cmoe_view_mut_1d(out, CMOE_BF16, n), &err));
    for (int i = 0; i < 8; i++)
        assert_true(cmoei_bf16_to_f32(out[spots[i]]) == (float)(i - 100));
    int64_t others = 0;
    for (int64_t i = 0; i < n; i++)
        others += out[i] != 0;
    assert_int_equal(others, 8);
    unmap(in, n);
    unmap(out, 2 * n);
    unit_close(&e);
}

/* Half a byte a value: 2^31 values begin behind 2^30 bytes. */
static void convert_nibbles(void **state)
{
    const int64_t bytes = HALF / 2 + 40;
    (void)state;
    unit_env e = unit_open(1);
    uint8_t *in = map(bytes);
    int8_t *out = map(2 * bytes);
    in[3] = 0x71;
    in[HALF / 2 - 1] = 0xf0;
    in[HALF / 2] = 0x8e;
    in[bytes - 1] = 0x35;
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_1d(in, CMOE_I4X2, bytes),
                         cmoe_view_mut_1d(out, CMOE_I8, 2 * bytes), &err));
    assert_true(out[6] == 1 && out[7] == 7);
    assert_true(out[HALF - 2] == 0 && out[HALF - 1] == -1);
    assert_true(out[HALF] == -2 && out[HALF + 1] == -8);
    assert_true(out[2 * bytes - 2] == 5 && out[2 * bytes - 1] == 3);
    unmap(in, bytes);
    unmap(out, 2 * bytes);
    unit_close(&e);
}

/* ---- combine
 * ------------------------------------------------------------------------------------- */

static void check_combined(const float *rows, const float *weights, const int32_t *row_of, int K,
                           int64_t H, int64_t t, const float *out)
{
    const int64_t columns[] = {0, H / 2, H - 1};
    for (int c = 0; c < 3; c++) {
        double want = 0, magnitude = 0;
        for (int k = 0; k < K; k++) {
            const double p = (double)weights[t * K + k] * rows[row_of[t * K + k] * H + columns[c]];
            want += p;
            magnitude += fabs(p);
        }
        assert_true(fabs(out[t * H + columns[c]] - want) <= K * FLT_EPSILON * magnitude);
    }
}

/* Rows that begin behind 2^31 elements. */
static void combine_far_rows(void **state)
{
    enum { T = 4, K = 2, R = 70000, H = 32768 };
    const int32_t row_of[T * K] = {0, R - 1, 65536, 65535, 1, 65537, R - 2, R - 1};
    const int64_t bytes = (int64_t)R * H * 4;
    const int64_t first[2] = {0, R};
    (void)state;
    unit_env e = unit_open(2);
    float *rows = map(bytes), *out = malloc(T * H * sizeof *out), weights[T * K];
    for (int i = 0; i < T * K; i++) {
        weights[i] = 0.3f + (float)i;
        for (int64_t h = 0; h < H; h++)
            rows[row_of[i] * (int64_t)H + h] = (float)(row_of[i] % 97) + (float)h / 1000;
    }
    const cmoe_groups g = {T, K, R, first, row_of, NULL, 1};
    UNIT_OK(cmoe_combine(e.stream, NULL, cmoe_view_2d(rows, CMOE_F32, R, H),
                         cmoe_view_2d(weights, CMOE_F32, T, K), &g, cmoe_view_none(),
                         cmoe_view_mut_2d(out, CMOE_F32, T, H), NULL, &err));
    for (int t = 0; t < T; t++)
        check_combined(rows, weights, row_of, K, H, t, out);
    free(out);
    unmap(rows, bytes);
    unit_close(&e);
}

/* An output of more than 2^31 elements, in bf16. */
static void combine_many_tokens(void **state)
{
    enum { T = 65600, R = 8, H = 32768 };
    const int64_t bytes = (int64_t)T * H * 2, first[2] = {0, R};
    (void)state;
    unit_env e = unit_open(2);
    float *rows = malloc(R * H * sizeof *rows);
    int32_t *row_of = malloc(T * sizeof *row_of);
    uint16_t *out = map(bytes);
    for (int64_t i = 0; i < R * H; i++)
        rows[i] = (float)(i % 251); /* exact in bf16 */
    for (int64_t t = 0; t < T; t++)
        row_of[t] = t % 9 == 8 ? -1 : (int32_t)(t % 9);
    const cmoe_groups g = {T, 1, R, first, row_of, NULL, 1};
    UNIT_OK(cmoe_combine(e.stream, NULL, cmoe_view_2d(rows, CMOE_F32, R, H), cmoe_view_none(), &g,
                         cmoe_view_none(), cmoe_view_mut_2d(out, CMOE_BF16, T, H), NULL, &err));
    const int64_t tokens[] = {0, 7, 8, 65535, 65536, 65537, T - 2, T - 1};
    for (int i = 0; i < 8; i++) {
        for (int64_t h = 0; h < H; h++) {
            const int64_t t = tokens[i];
            const float want = row_of[t] < 0 ? 0 : rows[row_of[t] * (int64_t)H + h];
            assert_true(cmoei_bf16_to_f32(out[t * H + h]) == want);
        }
    }
    free(rows);
    free(row_of);
    unmap(out, bytes);
    unit_close(&e);
}

/* ---- route
 * ---------------------------------------------------------------------------------------- */

/* Logits of more than 2^31 elements: zeros but for a few tokens, so the others take 0 and 1. */
static void route_many_tokens(void **state)
{
    enum { T = (1 << 20) + 3, E = 2049, K = 2 };
    const int64_t bytes = (int64_t)T * E * 2, special[] = {0, 1048064, 1048065, T - 1};
    (void)state;
    unit_env e = unit_open(2);
    uint16_t *logits = map(bytes);
    float *weights = malloc((size_t)T * K * sizeof *weights);
    int32_t *ids = malloc((size_t)T * K * sizeof *ids);
    for (int i = 0; i < 4; i++) {
        logits[special[i] * E + E - 1] = cmoei_f32_to_bf16(3);
        logits[special[i] * E + 1000 + i] = cmoei_f32_to_bf16(2);
    }
    cmoe_route_options o;
    cmoe_route_options_default(&o, sizeof o);
    o.topk = K;
    int64_t need;
    UNIT_OK(cmoe_route_bytes(&o, T, E, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    const cmoe_view view = cmoe_view_2d(logits, CMOE_BF16, T, E);
    UNIT_OK(cmoe_route(e.stream, &o, view, NULL, cmoe_view_mut_2d(weights, CMOE_F32, T, K),
                       cmoe_view_mut_2d(ids, CMOE_I32, T, K), &arena, &err));
    for (int64_t t = 0, i = 0; t < T; t++) {
        const bool here = i < 4 && t == special[i];
        assert_int_equal(ids[t * K], here ? E - 1 : 0);
        assert_int_equal(ids[t * K + 1], here ? 1000 + i : 1);
        const double want = here ? 1 / (1 + exp(-1.0)) : 0.5;
        assert_true(fabs(weights[t * K] - want) <= 8 * FLT_EPSILON);
        i += here;
    }
    /* Zeros make every expert equally probable: E * sum_e f_e / E = 1, but for four tokens. */
    double loss = 0;
    UNIT_OK(cmoe_route_balance_loss(e.stream, view, cmoe_view_2d(ids, CMOE_I32, T, K),
                                    cmoe_view_none(), &loss, &err));
    assert_true(fabs(loss - 1) < 1e-4);
    free(arena.base);
    free(weights);
    free(ids);
    unmap(logits, bytes);
    unit_close(&e);
}

/* ---- experts: weights
 * ------------------------------------------------------------------------------ */

enum { WE = 264, WH = 4096, WI = 1024 }; /* 264 * 2048 * 4096 = 2214592512 > 2^31 */

static int8_t weight(int64_t e, int64_t row, int64_t col)
{
    const uint32_t i = (uint32_t)(e * 7919 + row) * 2654435761u + (uint32_t)col * 40503u;
    return (int8_t)(i >> 24);
}

static void fill_expert(int8_t *w13, int8_t *w2, int64_t e)
{
    for (int64_t r = 0; r < 2 * WI; r++)
        for (int64_t h = 0; h < WH; h++)
            w13[(e * 2 * WI + r) * WH + h] = weight(e, r, h);
    for (int64_t h = 0; h < WH; h++)
        for (int64_t i = 0; i < WI; i++)
            w2[(e * WH + h) * WI + i] = weight(e, 2 * WI + h, i);
}

/* The same expert alone, for the exact emulation. */
static void one_expert(mlp *m, int64_t e)
{
    m->gate = mlp_get(m, (int64_t)WI * WH * 8);
    m->up = mlp_get(m, (int64_t)WI * WH * 8);
    m->down = mlp_get(m, (int64_t)WH * WI * 8);
    for (int64_t i = 0; i < WI; i++) {
        for (int64_t h = 0; h < WH; h++) {
            m->gate[i * WH + h] = weight(e, i, h);
            m->up[i * WH + h] = weight(e, WI + i, h);
            m->down[h * WI + i] = weight(e, 2 * WI + h, i);
        }
    }
    m->sgate = mlp_get(m, WI * 8);
    m->sup = mlp_get(m, WI * 8);
    m->sdown = mlp_get(m, WH * 8);
    for (int64_t i = 0; i < WI; i++)
        m->sgate[i] = m->sup[i] = 0x1p-12;
    for (int64_t h = 0; h < WH; h++)
        m->sdown[h] = 0x1p-12;
}

static void check_token(const double *x, int64_t e, const float *out)
{
    static double got[WH];
    mlp m = {.T = 1, .K = 1, .E = 1, .H = WH, .I = WI};
    double one = 1;
    int64_t id = 0;
    m.o.format = CMOE_I8;
    m.out_dtype = m.x_dtype = CMOE_F32;
    m.x = (double *)(uintptr_t)x;
    m.weights = &one;
    m.ids = &id;
    one_expert(&m, e);
    for (int h = 0; h < WH; h++)
        got[h] = out[h];
    oracle_check(&m, "experts of 2^31 weights", got);
    mlp_free(&m);
}

/* Borrowed, then packed: w13 of more than 2^31 int8 weights; the oracle is exact. */
static void weights_beyond(void **state)
{
    static const int32_t used[3] = {0, 131, WE - 1};
    const int64_t bytes13 = (int64_t)WE * 2 * WI * WH, bytes2 = (int64_t)WE * WH * WI;
    (void)state;
    assert_true(bytes13 > HALF);
    unit_env e = unit_open(2);
    int8_t *w13 = map(bytes13), *w2 = map(bytes2);
    float *scale = malloc((size_t)WE * WH * sizeof *scale), *x = malloc(3 * WH * sizeof *x),
          *out = malloc(3 * WH * sizeof *out);
    double *exact = malloc(3 * WH * sizeof *exact);
    for (int i = 0; i < 3; i++)
        fill_expert(w13, w2, used[i]);
    for (int64_t i = 0; i < (int64_t)WE * WH; i++)
        scale[i] = 0x1p-12f;
    for (int64_t i = 0; i < 3 * WH; i++)
        exact[i] = x[i] = cmoe_random_normal(1, (uint64_t)i, 0);
    for (int borrow = 1; borrow >= 0; borrow--) {
        cmoe_experts_options o;
        cmoe_experts_options_default(&o, sizeof o);
        o.borrow = borrow;
        o.scale13 = cmoe_view_2d(scale, CMOE_F32, WE, 2 * WI);
        o.scale2 = cmoe_view_2d(scale, CMOE_F32, WE, WH);
        cmoe_experts *p = NULL;
        UNIT_OK(cmoe_experts_create(&p, e.ctx, &o, cmoe_view_3d(w13, CMOE_I8, WE, 2 * WI, WH),
                                    cmoe_view_3d(w2, CMOE_I8, WE, WH, WI), cmoe_view_none(),
                                    cmoe_view_none(), &err));
        const float ones[3] = {1, 1, 1};
        int64_t need;
        UNIT_OK(cmoe_experts_bytes(p, 3, 1, &need, NULL, &err));
        cmoe_arena arena = unit_arena(need);
        memset(out, 0, 3 * WH * sizeof *out);
        UNIT_OK(cmoe_experts_run(e.stream, p, cmoe_view_2d(x, CMOE_F32, 3, WH),
                                 cmoe_view_2d(used, CMOE_I32, 3, 1),
                                 cmoe_view_2d(ones, CMOE_F32, 3, 1), cmoe_view_none(),
                                 cmoe_view_mut_2d(out, CMOE_F32, 3, WH), &arena, &err));
        for (int i = 0; i < 3; i++)
            check_token(exact + i * WH, used[i], out + i * WH);
        free(arena.base);
        cmoe_experts_free(p);
    }
    free(exact);
    free(scale);
    free(x);
    free(out);
    unmap(w13, bytes13);
    unmap(w2, bytes2);
    unit_close(&e);
}

/* ---- a layer: far rows
 * ----------------------------------------------------------------------------- */

enum { FT = 3, FK = 2, FE = 4, FH = 24, FI = 10 };
#define STRIDE \
    (((int64_t)1 << 30) + 7) /* elements between tokens: the third begins behind 2^31 \
                              */

typedef struct far {
    cmoe_layer *layer;
    cmoe_experts *experts;
    cmoe_view x;
    cmoe_view_mut out, ids, weights, logits;
} far;

static void forward(const unit_env *e, const far *f)
{
    cmoe_layer_call c;
    cmoe_layer_call_default(&c, sizeof c);
    c.ids = f->ids;
    c.weights = f->weights;
    c.logits = f->logits;
    int64_t need;
    UNIT_OK(cmoe_layer_bytes(f->layer, FT, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    UNIT_OK(cmoe_layer_forward(e->stream, f->layer, f->x, &c, f->out, &arena, &err));
    free(arena.base);
}

/* Weights of experts that lie 2^30 elements apart: the third begins behind 2^31. */
static void make_layer(const unit_env *e, far *f, float *weights, int64_t stride)
{
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    cmoe_view w13 = cmoe_view_3d(weights, CMOE_F32, FE, 2 * FI, FH),
              w2 = cmoe_view_3d(weights + 2 * FI * FH, CMOE_F32, FE, FH, FI);
    w13.strides[0] = w2.strides[0] = stride;
    for (int64_t n = 0; n < FE * 3 * FI * FH; n++)
        weights[n / (3 * FI * FH) * stride + n % (3 * FI * FH)] =
            0.2f * cmoe_random_normal(2, (uint64_t)n, 0);
    UNIT_OK(cmoe_experts_create(&f->experts, e->ctx, &o, w13, w2, cmoe_view_none(),
                                cmoe_view_none(), &err));
    float gate[FE * FH];
    for (int i = 0; i < FE * FH; i++)
        gate[i] = cmoe_random_normal(3, (uint64_t)i, 0);
    cmoe_route_options r;
    cmoe_route_options_default(&r, sizeof r);
    r.topk = FK;
    cmoe_layer_options lo;
    cmoe_layer_options_default(&lo, sizeof lo);
    lo.route = &r;
    cmoe_layer_weights w;
    cmoe_layer_weights_default(&w, sizeof w);
    w.gate = cmoe_view_2d(gate, CMOE_F32, FE, FH);
    w.experts = f->experts;
    UNIT_OK(cmoe_layer_create(&f->layer, e->ctx, &lo, &w, &err));
}

/* x, output and records with strides that leave int32 give the bytes of those side by side. */
static void far_layer(void **state)
{
    const int64_t bytes = (2 * STRIDE + 64) * 4, between = HALF / 2 + 5;
    (void)state;
    unit_env e = unit_open(2);
    float *memory[5];
    for (int i = 0; i < 5; i++)
        memory[i] = map(bytes);
    float *weights = map((FE - 1) * between * 4 + 3 * FI * FH * 4), near_w[FE * 3 * FI * FH];
    float x[FT * FH], out[FT * FH], w[FT * FK], logits[FT * FE];
    int32_t ids[FT * FK];
    far a = {0}, b = {0};
    make_layer(&e, &a, near_w, 3 * FI * FH);
    make_layer(&e, &b, weights, between);
    a.x = cmoe_view_2d(x, CMOE_F32, FT, FH);
    a.out = cmoe_view_mut_2d(out, CMOE_F32, FT, FH);
    a.ids = cmoe_view_mut_2d(ids, CMOE_I32, FT, FK);
    a.weights = cmoe_view_mut_2d(w, CMOE_F32, FT, FK);
    a.logits = cmoe_view_mut_2d(logits, CMOE_F32, FT, FE);
    b.x = cmoe_view_2d(memory[0], CMOE_F32, FT, FH);
    b.out = cmoe_view_mut_2d(memory[1], CMOE_F32, FT, FH);
    b.ids = cmoe_view_mut_2d(memory[2], CMOE_I32, FT, FK);
    b.weights = cmoe_view_mut_2d(memory[3], CMOE_F32, FT, FK);
    b.logits = cmoe_view_mut_2d(memory[4], CMOE_F32, FT, FE);
    b.x.strides[0] = b.out.strides[0] = b.ids.strides[0] = b.weights.strides[0] =
        b.logits.strides[0] = STRIDE;
    for (int64_t i = 0; i < FT * FH; i++)
        x[i] = memory[0][i / FH * STRIDE + i % FH] = cmoe_random_normal(4, (uint64_t)i, 0);
    forward(&e, &a);
    forward(&e, &b);
    for (int64_t t = 0; t < FT; t++) {
        assert_memory_equal(memory[1] + t * STRIDE, out + t * FH, FH * 4);
        assert_memory_equal(memory[2] + t * STRIDE, ids + t * FK, FK * 4);
        assert_memory_equal(memory[3] + t * STRIDE, w + t * FK, FK * 4);
        assert_memory_equal(memory[4] + t * STRIDE, logits + t * FE, FE * 4);
    }
    cmoe_layer_free(a.layer);
    cmoe_layer_free(b.layer);
    cmoe_experts_free(a.experts);
    cmoe_experts_free(b.experts);
    for (int i = 0; i < 5; i++)
        unmap(memory[i], bytes);
    unmap(weights, (FE - 1) * between * 4 + 3 * FI * FH * 4);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convert_one_row),   cmocka_unit_test(convert_nibbles),
        cmocka_unit_test(combine_far_rows),  cmocka_unit_test(combine_many_tokens),
        cmocka_unit_test(route_many_tokens), cmocka_unit_test(weights_beyond),
        cmocka_unit_test(far_layer),
    };
    return UNIT_RUN("large_elements", tests);
}
