/* SPDX-License-Identifier: MIT
 *
 * trainable.c - weights that change: every error text, and what must be equal to the last bit:
 * cmoe_grouped_matmul and cmoe_linear, a low-rank term of zeros, packed and borrowed weights, threads,
 * and a step whose units are spread over two calls.  Also cmoe_group_rows and cmoe_grouped_outer.
 */
#include <math.h>
#include <stdbool.h>

#include "groups.h"
#include "isa.h"

enum { E = 3, N = 45, K = 37, T = 50, TOPK = 2, RANK = 5 };

static float *numbers(uint64_t seed, int64_t n)
{
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
    return x;
}

typedef struct weights {
    float *w, *a, *b, *bias;
} weights;

static weights make_weights(void)
{
    return (weights){numbers(1, E * N * K), numbers(2, E * RANK * K), numbers(3, E * N * RANK),
                     numbers(4, E * N)};
}

static void free_weights(weights *w)
{
    free(w->w);
    free(w->a);
    free(w->b);
    free(w->bias);
}

static cmoe_part part_of(const weights *w, bool low, float scale)
{
    cmoe_part p = {.w = cmoe_view_3d(w->w, CMOE_F32, E, N, K),
                   .bias = cmoe_view_2d(w->bias, CMOE_F32, E, N),
                   .lora_scale = scale};
    if (low) {
        p.a = cmoe_view_3d(w->a, CMOE_F32, E, RANK, K);
        p.b = cmoe_view_3d(w->b, CMOE_F32, E, N, RANK);
    }
    return p;
}

static cmoe_trainable *make(const unit_env *e, int32_t format, int32_t borrow, const cmoe_part *p)
{
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    o.format = format;
    o.borrow = borrow;
    o.rank = p->a.data ? RANK : 0;
    cmoe_trainable *t = NULL;
    UNIT_OK(cmoe_trainable_create(&t, e->ctx, &o, E, N, K, &err));
    UNIT_OK(cmoe_trainable_fill(e->stream, t, p, 1, &err));
    return t;
}

static cmoe_arena scratch_of(const cmoe_trainable *t, int64_t rows)
{
    int64_t bytes = 0;
    UNIT_OK(cmoe_trainable_bytes(t, T, rows, &bytes, NULL, &err));
    return unit_arena(bytes);
}

/* forward and dx of R rows -> out [R, N + K] */
static void run(const unit_env *e, const cmoe_trainable *t, const cmoe_groups *g, const float *x,
                const float *dy, float *out)
{
    const int64_t R = g->first[E];
    cmoe_arena arena = scratch_of(t, R);
    UNIT_OK(cmoe_trainable_forward(e->stream, t, cmoe_view_2d(x, CMOE_F32, T, K), 0, g,
                                   cmoe_view_mut_2d(out, CMOE_F32, R, N), &arena, &err));
    UNIT_OK(cmoe_trainable_dx(e->stream, t, cmoe_view_2d(dy, CMOE_F32, R, N), 1, g,
                              cmoe_view_mut_2d(out + R * N, CMOE_F32, R, K), &arena, &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
}

static void same_as_grouped_matmul(void **state)
{
    (void)state;
    weights w = make_weights();
    float *x = numbers(5, T * K), *dy = numbers(6, T * TOPK * N);
    ISA_EACH(isa)
    {
        for (int turn = 0; turn < 4; turn++) {
            const int32_t format = turn & 1 ? CMOE_BF16 : CMOE_F32;
            unit_env e = unit_open_isa(2, isa);
            grouping r = grouping_make(e.stream, 7, T, TOPK, E, 4);
            const int64_t R = r.g.first[E];
            const cmoe_part p = part_of(&w, false, 1);
            cmoe_trainable *t = make(&e, format, turn / 2, &p);
            cmoe_matrix_options o;
            cmoe_matrix_options_default(&o, sizeof o);
            o.format = format;
            cmoe_matrix *m = NULL, *back = NULL;
            UNIT_OK(cmoe_matrix_create(&m, e.ctx, &o, p.w, p.bias, &err));
            o.transposed = 1;
            UNIT_OK(cmoe_matrix_create(&back, e.ctx, &o, p.w, cmoe_view_none(), &err));
            float *got = calloc((size_t)(R * (N + K)), 4), *want = calloc((size_t)(R * (N + K)), 4);
            run(&e, t, &r.g, x, dy, got);
            int64_t bytes = 0;
            UNIT_OK(cmoe_grouped_matmul_bytes(back, R, &bytes, NULL, &err));
            cmoe_arena arena = unit_arena(2 * bytes);
            cmoe_grouped_matmul_options go;
            cmoe_grouped_matmul_options_default(&go, sizeof go);
            go.out_grouped = 1;
            UNIT_OK(cmoe_grouped_matmul(e.stream, &go, cmoe_view_2d(x, CMOE_F32, T, K), m,
                                        cmoe_view_none(), &r.g,
                                        cmoe_view_mut_2d(want, CMOE_F32, R, N), &arena, &err));
            go.x_grouped = 1;
            UNIT_OK(cmoe_grouped_matmul(
                e.stream, &go, cmoe_view_2d(dy, CMOE_F32, R, N), back, cmoe_view_none(), &r.g,
                cmoe_view_mut_2d(want + R * N, CMOE_F32, R, K), &arena, &err));
            assert_memory_equal(got, want, (size_t)(R * (N + K)) * 4);
            free(arena.base);
            free(got);
            free(want);
            cmoe_matrix_free(m);
            cmoe_matrix_free(back);
            cmoe_trainable_free(t);
            grouping_free(&r);
            unit_close(&e);
        }
    }
    free(x);
    free(dy);
    free_weights(&w);
}

/* b = 0, and s = 0: the bits of the base. */
static void zero_low_rank(void **state)
{
    (void)state;
    weights w = make_weights();
    float *x = numbers(5, T * K), *dy = numbers(6, T * TOPK * N);
    ISA_EACH(isa)
    {
        for (int turn = 0; turn < 4; turn++) {
            const int32_t format = turn & 1 ? CMOE_BF16 : CMOE_F32;
            unit_env e = unit_open_isa(2, isa);
            grouping r = grouping_make(e.stream, 7, T, TOPK, E, 1);
            const int64_t R = r.g.first[E];
            weights z = w;
            z.b = calloc(E * N * RANK, sizeof *z.b);
            const cmoe_part base = part_of(&w, false, 1),
                            zero = turn / 2 ? part_of(&w, true, 0) : part_of(&z, true, 2),
                            full = part_of(&w, true, 2);
            const cmoe_part *parts[3] = {&base, &zero, &full};
            float *out[3];
            for (int i = 0; i < 3; i++) {
                cmoe_trainable *t = make(&e, format, 0, parts[i]);
                out[i] = calloc((size_t)(R * (N + K)), 4);
                run(&e, t, &r.g, x, dy, out[i]);
                cmoe_trainable_free(t);
            }
            assert_memory_equal(out[0], out[1], (size_t)(R * (N + K)) * 4);
            assert_memory_not_equal(out[0], out[2], (size_t)(R * (N + K)) * 4);
            for (int i = 0; i < 3; i++)
                free(out[i]);
            free(z.b);
            grouping_free(&r);
            unit_close(&e);
        }
    }
    free(x);
    free(dy);
    free_weights(&w);
}

/* ---- gradients ------------------------------------------------------------------------------- */

enum { GRADIENTS = E * (N * K + N + RANK * K + N * RANK) };

static void gradients(const unit_env *e, const cmoe_part *p, int32_t borrow, const cmoe_groups *g,
                      const float *x, const float *dy, const cmoe_units *units, int32_t accumulate,
                      float *out)
{
    cmoe_trainable *t = make(e, CMOE_F32, borrow, p);
    cmoe_arena arena = scratch_of(t, g->first[E]);
    const int64_t w[] = {E, N, K}, bias[] = {E, N}, a[] = {E, RANK, K}, b[] = {E, N, RANK};
    cmoe_part_gradient to = {.w = cmoe_view_mut_make(out, CMOE_F32, 3, w)};
    out += E * N * K;
    to.bias = cmoe_view_mut_make(out, CMOE_F32, 2, bias);
    out += E * N;
    to.a = cmoe_view_mut_make(out, CMOE_F32, 3, a);
    out += E * RANK * K;
    to.b = cmoe_view_mut_make(out, CMOE_F32, 3, b);
    cmoe_trainable_dw_options o;
    cmoe_trainable_dw_options_default(&o, sizeof o);
    o.dy_grouped = 1;
    o.accumulate = accumulate;
    UNIT_OK(cmoe_trainable_dw(e->stream, t, &o, cmoe_view_2d(dy, CMOE_F32, g->first[E], N),
                              cmoe_view_2d(x, CMOE_F32, g->tokens, K), g, units, &to, &arena,
                              &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
    cmoe_trainable_free(t);
}

static void gradients_of_any_threads(void **state)
{
    (void)state;
    weights w = make_weights();
    const cmoe_part p = part_of(&w, true, 0.5f);
    float *x = numbers(5, T * K), *dy = numbers(6, T * TOPK * N), *want = NULL;
    const int64_t first[] = {0, 7, 7, 30, T};
    const cmoe_units units = {4, first};
    ISA_EACH(isa)
    {
        if (!strcmp(isa, "avx512_bf16")) continue;
        for (int32_t threads = 1; threads <= 3; threads++) {
            unit_env e = unit_open_isa(threads, isa);
            grouping r = grouping_make(e.stream, 7, T, TOPK, E, 4);
            float *got = calloc(GRADIENTS, sizeof *got);
            gradients(&e, &p, threads == 2, &r.g, x, dy, &units, 0, got);
            if (want) assert_memory_equal(got, want, GRADIENTS * sizeof *got);
            if (want)
                free(got);
            else
                want = got;
            grouping_free(&r);
            unit_close(&e);
        }
    }
    free(want);
    free(x);
    free(dy);
    free_weights(&w);
}

/* The first half of the units and the second half in calls of their own, added. */
static void units_over_two_calls(void **state)
{
    enum { HALF = 23 };
    (void)state;
    weights w = make_weights();
    const cmoe_part p = part_of(&w, true, 0.5f);
    unit_env e = unit_open(2);
    float *x = numbers(5, T * K), *tokens = numbers(6, T * N);
    const int64_t first[] = {0, 7, 7, 20, HALF, 24, 24, 40, T};
    int64_t second[5];
    for (int i = 0; i < 5; i++)
        second[i] = first[4 + i] - HALF;
    const cmoe_units units[] = {{8, first}, {4, first}, {4, second}};
    const int64_t begin[] = {0, 0, HALF}, count[] = {T, HALF, T - HALF};
    int32_t ids[T * TOPK];
    for (int i = 0; i < T * TOPK; i++)
        ids[i] = i % 7 == 0 ? -1 : (i * 5 + i / 3) % E;
    float *got[3];
    for (int c = 0; c < 3; c++) {
        cmoe_align_options o;
        cmoe_align_options_default(&o, sizeof o);
        o.experts = E;
        int64_t bytes = 0;
        UNIT_OK(cmoe_align_bytes(&o, count[c], TOPK, &bytes, NULL, &err));
        cmoe_arena arena = unit_arena(bytes);
        cmoe_groups g;
        UNIT_OK(cmoe_align(e.stream, &o,
                           cmoe_view_2d(ids + begin[c] * TOPK, CMOE_I32, count[c], TOPK), &g,
                           &arena, &err));
        const int64_t R = g.first[E];
        float *dy = calloc((size_t)(R * N + 1), sizeof *dy);
        UNIT_OK(cmoe_group_rows(e.stream,
                                cmoe_view_2d(tokens + begin[c] * N, CMOE_F32, count[c], N), 0,
                                cmoe_view_none(), &g, cmoe_view_mut_2d(dy, CMOE_F32, R, N), &err));
        got[c] = calloc(GRADIENTS, sizeof *got[c]);
        gradients(&e, &p, 0, &g, x + begin[c] * K, dy, &units[c], 0, got[c]);
        free(dy);
        free(arena.base);
    }
    for (int i = 0; i < GRADIENTS; i++)
        got[1][i] += got[2][i];
    assert_memory_equal(got[0], got[1], GRADIENTS * sizeof *got[0]);
    for (int c = 0; c < 3; c++)
        free(got[c]);
    free(x);
    free(tokens);
    unit_close(&e);
    free_weights(&w);
}

/* One unit in one call, or its tokens in two that accumulate. */
static void accumulate_continues(void **state)
{
    enum { ROWS = 700, CUT = 301, COLUMNS = 33 };
    (void)state;
    unit_env e = unit_open(2);
    float *a = numbers(8, ROWS * COLUMNS), *b = numbers(9, ROWS * COLUMNS);
    float whole[COLUMNS * (COLUMNS + 1)], cut[COLUMNS * (COLUMNS + 1)];
    for (int c = 0; c < 2; c++) {
        float *to = c ? cut : whole;
        const int64_t dims[] = {1, COLUMNS, COLUMNS}, ends[] = {c ? CUT : ROWS, ROWS};
        for (int64_t i = 0, at = 0; i <= c; at = ends[i++]) {
            cmoe_grouped_outer_options o;
            cmoe_grouped_outer_options_default(&o, sizeof o);
            o.accumulate = i > 0;
            o.scale = 0.3f;
            int64_t bytes = 0;
            UNIT_OK(cmoe_grouped_outer_bytes(e.ctx, 1, ends[i] - at, COLUMNS, COLUMNS, &bytes, NULL,
                                             &err));
            cmoe_arena arena = unit_arena(bytes);
            UNIT_OK(cmoe_grouped_outer(
                e.stream, &o, cmoe_view_2d(a + at * COLUMNS, CMOE_F32, ends[i] - at, COLUMNS),
                cmoe_view_2d(b + at * COLUMNS, CMOE_F32, ends[i] - at, COLUMNS), NULL, NULL,
                cmoe_view_mut_make(to, CMOE_F32, 3, dims),
                cmoe_view_mut_2d(to + COLUMNS * COLUMNS, CMOE_F32, 1, COLUMNS), &arena, &err));
            free(arena.base);
        }
    }
    assert_memory_equal(whole, cut, sizeof whole);
    for (int i = 0; i < COLUMNS; i++) { /* the definition, bit for bit */
        float sum = 0, bias = 0;
        for (int r = 0; r < ROWS; r++) {
            const float v = a[r * COLUMNS + i] * 0.3f;
            sum = fmaf(v, b[r * COLUMNS + 7], sum);
            bias += v;
        }
        assert_memory_equal(&whole[i * COLUMNS + 7], &sum, sizeof sum);
        assert_memory_equal(&whole[COLUMNS * COLUMNS + i], &bias, sizeof bias);
    }
    free(a);
    free(b);
    unit_close(&e);
}

static void outer(const unit_env *e, int64_t rows, int64_t experts, const float *a, const float *b,
                  int64_t width, const cmoe_groups *g, float *out)
{
    cmoe_grouped_outer_options o;
    cmoe_grouped_outer_options_default(&o, sizeof o);
    o.a_grouped = o.b_grouped = 1;
    int64_t bytes = 0;
    UNIT_OK(cmoe_grouped_outer_bytes(e->ctx, experts, rows, width, width, &bytes, NULL, &err));
    cmoe_arena arena = unit_arena(bytes);
    const int64_t dims[] = {experts, width, width};
    UNIT_OK(cmoe_grouped_outer(e->stream, &o, cmoe_view_2d(a, CMOE_F32, rows, width),
                               cmoe_view_2d(b, CMOE_F32, rows, width), g, NULL,
                               cmoe_view_mut_make(out, CMOE_F32, 3, dims), cmoe_view_mut_none(),
                               &arena, &err));
    free(arena.base);
}

/* So large that experts are packed in several rounds and results go past the caches: each expert as in
 * a call of its own. */
static void many_experts_as_one(void **state)
{
    enum { EXPERTS = 5, ROWS = 1200, WIDTH = 700, SIZE = WIDTH * WIDTH };
    (void)state;
    unit_env e = unit_open(3), alone = unit_open(1);
    grouping r = grouping_make(e.stream, 11, ROWS, 1, EXPERTS, 8);
    const int64_t R = r.g.first[EXPERTS];
    float *a = numbers(12, R * WIDTH), *b = numbers(13, R * WIDTH);
    float *all = aligned_alloc(64, EXPERTS * SIZE * sizeof *all), *one = malloc(SIZE * sizeof *one);
    outer(&e, R, EXPERTS, a, b, WIDTH, &r.g, all);
    for (int64_t i = 0; i < EXPERTS; i++) {
        const int64_t begin = r.g.first[i];
        int64_t end = r.g.first[i + 1];
        while (end > begin && r.g.slots[end - 1] < 0)
            end--;
        outer(&alone, end - begin, 1, a + begin * WIDTH, b + begin * WIDTH, WIDTH, NULL, one);
        assert_memory_equal(all + i * SIZE, one, SIZE * sizeof *one);
    }
    free(a);
    free(b);
    free(all);
    free(one);
    grouping_free(&r);
    unit_close(&e);
    unit_close(&alone);
}

static void rows_by_group(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    grouping r = grouping_make(e.stream, 7, T, TOPK, E, 4);
    const int64_t R = r.g.first[E];
    float *x = numbers(1, T * TOPK * K), *c = numbers(2, T * TOPK), *out = numbers(3, R * K),
          *before = numbers(3, R * K);
    for (int turn = 0; turn < 4; turn++) {
        const int per_slot = turn & 1, weighted = turn / 2;
        UNIT_OK(cmoe_group_rows(e.stream, cmoe_view_2d(x, CMOE_F32, per_slot ? T * TOPK : T, K),
                                per_slot,
                                weighted ? cmoe_view_2d(c, CMOE_F32, T, TOPK) : cmoe_view_none(),
                                &r.g, cmoe_view_mut_2d(out, CMOE_F32, R, K), &err));
        for (int64_t i = 0; i < R * K; i++) {
            const int32_t slot = r.g.slots[i / K];
            const float v = slot < 0 ? before[i] : x[(per_slot ? slot : slot / TOPK) * K + i % K];
            const float want = slot < 0 || !weighted ? v : c[slot] * v;
            assert_memory_equal(&out[i], &want, sizeof want);
        }
    }
    cmoe_view few = cmoe_view_2d(x, CMOE_F32, T - 1, K);
    const cmoe_view right = cmoe_view_2d(x, CMOE_F32, T, K), none = cmoe_view_none();
    const cmoe_view_mut to = cmoe_view_mut_2d(out, CMOE_F32, R, K);
    UNIT_FAILS(cmoe_group_rows(e.stream, few, 0, none, &r.g, to, &err), CMOE_ERR_SHAPE,
               "x: dims[0] = 49, want 50 [tokens = 50, columns]");
    UNIT_FAILS(cmoe_group_rows(e.stream, right, 2, none, &r.g, to, &err), CMOE_ERR_RANGE,
               "per_slot = 2, want 0 or 1");
    UNIT_FAILS(cmoe_group_rows(e.stream, right, 0, none, NULL, to, &err), CMOE_ERR_ARG,
               "groups is NULL");
    UNIT_FAILS(cmoe_group_rows(e.stream, right, 0, few, &r.g, to, &err), CMOE_ERR_SHAPE,
               "coefficients: dims[0] = 49, want 50");
    UNIT_FAILS(cmoe_group_rows(e.stream, right, 0, none, &r.g,
                               cmoe_view_mut_2d(out, CMOE_F32, R - 1, K), &err),
               CMOE_ERR_SHAPE, "group rows");
    UNIT_FAILS(
        cmoe_group_rows(e.stream, right, 0, none, &r.g, cmoe_view_mut_2d(x, CMOE_F32, R, K), &err),
        CMOE_ERR_ARG, "out overlaps x");
    free(x);
    free(c);
    free(out);
    free(before);
    grouping_free(&r);
    unit_close(&e);
}

/* ---- texts ----------------------------------------------------------------------------------- */

static void create_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    cmoe_trainable *t = NULL;
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    UNIT_FAILS(cmoe_trainable_create(NULL, e.ctx, &o, 1, 1, 1, &err), CMOE_ERR_ARG, "out is NULL");
    UNIT_FAILS(cmoe_trainable_create(&t, NULL, &o, 1, 1, 1, &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoe_trainable_create(&t, e.ctx, &o, 0, 1, 1, &err), CMOE_ERR_SHAPE,
               "experts = 0, want 1 to 2^31 - 1");
    UNIT_FAILS(cmoe_trainable_create(&t, e.ctx, &o, 1, -1, 1, &err), CMOE_ERR_SHAPE,
               "outputs = -1");
    UNIT_FAILS(cmoe_trainable_create(&t, e.ctx, &o, 1, 1, 0, &err), CMOE_ERR_SHAPE, "inputs = 0");
    o.format = CMOE_I8;
    UNIT_FAILS(cmoe_trainable_create(&t, e.ctx, &o, 1, 1, 1, &err), CMOE_ERR_DTYPE,
               "format i8 (6) not supported, want one of: f32 bf16");
    o.format = CMOE_F32;
    o.borrow = 2;
    UNIT_FAILS(cmoe_trainable_create(&t, e.ctx, &o, 1, 1, 1, &err), CMOE_ERR_RANGE, "borrow = 2");
    o.borrow = 0;
    o.rank = -1;
    UNIT_FAILS(cmoe_trainable_create(&t, e.ctx, &o, 1, 1, 1, &err), CMOE_ERR_RANGE,
               "rank = -1, want 0 to 2^31 - 1");
    assert_null(t);
    unit_close(&e);
}

static void fill_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    weights w = make_weights();
    const cmoe_part right = part_of(&w, true, 1);
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    o.rank = RANK;
    cmoe_trainable *t = NULL;
    UNIT_OK(cmoe_trainable_create(&t, e.ctx, &o, E, N, K, &err));
#define FILL_FAILS(change, status, text)                                              \
    do {                                                                              \
        cmoe_part p[2] = {right, right};                                              \
        int64_t count = 1;                                                            \
        change;                                                                       \
        UNIT_FAILS(cmoe_trainable_fill(e.stream, t, p, count, &err), (status), text); \
    } while (0)
    UNIT_FAILS(cmoe_trainable_fill(e.stream, NULL, &right, 1, &err), CMOE_ERR_ARG,
               "trainable is NULL");
    UNIT_FAILS(cmoe_trainable_fill(e.stream, t, NULL, 1, &err), CMOE_ERR_ARG, "parts is NULL");
    FILL_FAILS(count = 0, CMOE_ERR_RANGE, "count = 0 parts, want 1 to 8");
    FILL_FAILS(count = 9, CMOE_ERR_RANGE, "count = 9 parts, want 1 to 8");
    FILL_FAILS(p[0].reserved = 1, CMOE_ERR_ARG, "parts[0].reserved = 1, want 0");
    FILL_FAILS(p[0].at = 3, CMOE_ERR_SHAPE, "parts[0].at = 3, want 0");
    FILL_FAILS((count = 2, p[1].at = N), CMOE_ERR_SHAPE,
               "parts up to parts[1] have 90 outputs, want 45 in all");
    FILL_FAILS((p[0].w.dims[1] = N - 1, p[0].bias.dims[1] = N - 1, p[0].b.dims[1] = N - 1),
               CMOE_ERR_SHAPE, "parts have 44 outputs, want 45 in all");
    FILL_FAILS(p[0].w = cmoe_view_none(), CMOE_ERR_ARG, "parts[0].w is not given");
    FILL_FAILS(p[0].w.dims[2] = K - 1, CMOE_ERR_SHAPE, "parts[0].w: dims[2] = 36, want 37");
    FILL_FAILS(p[0].w.dtype = CMOE_I32, CMOE_ERR_DTYPE, "parts[0].w: dtype i32");
    FILL_FAILS(p[0].w.dtype = CMOE_I8, CMOE_ERR_ARG, "parts[0].scale is not given");
    FILL_FAILS(p[0].scale = p[0].bias, CMOE_ERR_DTYPE,
               "parts[0].scale is given but parts[0].w is f32, want i8 weights or no scale");
    FILL_FAILS(p[0].bias.dims[1] = 2, CMOE_ERR_SHAPE, "parts[0].bias: dims[1] = 2, want 45");
    FILL_FAILS(p[0].a = cmoe_view_none(), CMOE_ERR_ARG,
               "parts[0].b is given without parts[0].a, want both or neither");
    FILL_FAILS(p[0].b = cmoe_view_none(), CMOE_ERR_ARG,
               "parts[0].a is given without parts[0].b, want both or neither");
    FILL_FAILS(p[0].a.dims[2] = 1, CMOE_ERR_SHAPE, "parts[0].a: dims[2] = 1, want 37");
    FILL_FAILS(p[0].b.dims[2] = 4, CMOE_ERR_SHAPE, "parts[0].b: dims[2] = 4, want 5");
    FILL_FAILS((p[0].a.dims[1] = 4, p[0].b.dims[2] = 4), CMOE_ERR_SHAPE,
               "parts have rank 4 together, want the trainable's 5");
    FILL_FAILS((p[0].a.dims[1] = 6, p[0].b.dims[2] = 6), CMOE_ERR_SHAPE,
               "parts[0].a: rank 6, want at most 5");
    FILL_FAILS(p[0].lora_scale = INFINITY, CMOE_ERR_RANGE, "parts[0].lora_scale = inf");
#undef FILL_FAILS
    float x[K] = {0}, y[N];
    UNIT_FAILS(cmoe_trainable_forward(e.stream, t, cmoe_view_2d(x, CMOE_F32, 1, K), 0, NULL,
                                      cmoe_view_mut_2d(y, CMOE_F32, 1, N), NULL, &err),
               CMOE_ERR_ARG, "trainable has no contents, want cmoe_trainable_fill first");
    cmoe_trainable_free(t);
    free_weights(&w);
    unit_close(&e);
}

static void call_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    weights w = make_weights();
    const cmoe_part p = part_of(&w, false, 1);
    cmoe_trainable *t = make(&e, CMOE_F32, 1, &p);
    grouping r = grouping_make(e.stream, 7, T, TOPK, E, 1);
    const int64_t R = r.g.first[E];
    float *x = numbers(1, T * K), *out = numbers(2, R * N);
    cmoe_arena arena = scratch_of(t, R);
    cmoe_view vx = cmoe_view_2d(x, CMOE_F32, T, K), wide = vx;
    const cmoe_view_mut to = cmoe_view_mut_2d(out, CMOE_F32, R, N);
#define FORWARD(x, grouped, g, out, arena) \
    cmoe_trainable_forward(e.stream, t, x, grouped, g, out, arena, &err)
    UNIT_FAILS(cmoe_trainable_forward(e.stream, NULL, vx, 0, &r.g, to, &arena, &err), CMOE_ERR_ARG,
               "trainable is NULL");
    UNIT_FAILS(FORWARD(vx, 2, &r.g, to, &arena), CMOE_ERR_RANGE, "x_grouped = 2");
    UNIT_FAILS(FORWARD(vx, 0, NULL, to, &arena), CMOE_ERR_ARG,
               "groups is NULL and the trainable has 3 experts, want groups");
    wide.strides[1] = 2;
    wide.dims[0] = T;
    UNIT_FAILS(FORWARD(wide, 0, &r.g, to, &arena), CMOE_ERR_SHAPE,
               "x: strides[1] = 2, want 1 (contiguous)");
    wide = vx;
    wide.dtype = CMOE_BF16;
    UNIT_FAILS(FORWARD(wide, 0, &r.g, to, &arena), CMOE_ERR_DTYPE,
               "x: dtype bf16 (3), want one of: f32");
    UNIT_FAILS(FORWARD(cmoe_view_2d(x, CMOE_F32, T, K - 1), 0, &r.g, to, &arena), CMOE_ERR_SHAPE,
               "x: dims[1] = 36, want 37 [tokens = 50, inputs = 37]");
    UNIT_FAILS(FORWARD(cmoe_view_2d(x, CMOE_F32, R - 1, K), 1, &r.g, to, &arena), CMOE_ERR_SHAPE,
               "(group rows)");
    UNIT_FAILS(FORWARD(vx, 0, &r.g, cmoe_view_mut_2d(out, CMOE_F32, R - 1, N), &arena),
               CMOE_ERR_SHAPE, "(group rows)");
    UNIT_FAILS(FORWARD(vx, 0, &r.g, cmoe_view_mut_2d(out, CMOE_F32, R, N + 1), &arena),
               CMOE_ERR_SHAPE, "out: dims[1] = 46, want 45");
    UNIT_FAILS(FORWARD(vx, 0, &r.g, cmoe_view_mut_2d(x, CMOE_F32, R, N), &arena), CMOE_ERR_ARG,
               "out overlaps x");
    UNIT_FAILS(FORWARD(vx, 0, &r.g, cmoe_view_mut_2d(w.w, CMOE_F32, R, N), &arena), CMOE_ERR_ARG,
               "out overlaps w");
    UNIT_FAILS(FORWARD(vx, 0, &r.g, to, NULL), CMOE_ERR_MEMORY, "trainable_forward");
    UNIT_FAILS(cmoe_trainable_dx(e.stream, t, vx, 1, &r.g, to, &arena, &err), CMOE_ERR_SHAPE,
               "dy: dims[1] = 37, want 45");
    int64_t bytes;
    UNIT_FAILS(cmoe_trainable_bytes(NULL, 1, 1, &bytes, NULL, &err), CMOE_ERR_ARG,
               "trainable is NULL");
    UNIT_FAILS(cmoe_trainable_bytes(t, 1, -1, &bytes, NULL, &err), CMOE_ERR_SHAPE, "rows = -1");
    cmoe_trainable_info info = {.size = sizeof info};
    UNIT_OK(cmoe_trainable_describe(t, &info, &err));
    assert_int_equal(info.outputs, N);
    assert_int_equal(info.packed_bytes, 0);
    UNIT_FAILS(cmoe_trainable_describe(t, NULL, &err), CMOE_ERR_ARG, "info is NULL");
    free(arena.base);
    free(x);
    free(out);
    grouping_free(&r);
    cmoe_trainable_free(t);
    free_weights(&w);
    unit_close(&e);
}

static void gradient_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float *w = numbers(1, N * K), *x = numbers(2, T * K), *dy = numbers(3, T * N),
          *dw = calloc(N * K, sizeof *dw);
    cmoe_trainable *t = NULL;
    UNIT_OK(cmoe_trainable_create(&t, e.ctx, NULL, 1, N, K, &err));
    const cmoe_part p = {.w = cmoe_view_3d(w, CMOE_F32, 1, N, K)};
    UNIT_OK(cmoe_trainable_fill(e.stream, t, &p, 1, &err));
    cmoe_arena arena = scratch_of(t, T);
    const int64_t dims[] = {1, N, K}, first[] = {0, 3, T}, bad[] = {0, 3, T - 1};
    cmoe_part_gradient g = {.w = cmoe_view_mut_make(dw, CMOE_F32, 3, dims)}, h = g;
    const cmoe_units two = {2, first}, wrong = {2, bad}, three = {3, first};
    cmoe_trainable_dw_options o;
    cmoe_trainable_dw_options_default(&o, sizeof o);
    const cmoe_view vy = cmoe_view_2d(dy, CMOE_F32, T, N), vx = cmoe_view_2d(x, CMOE_F32, T, K);
#define DW(units, g) cmoe_trainable_dw(e.stream, t, &o, vy, vx, NULL, units, g, &arena, &err)
    UNIT_FAILS(DW(NULL, NULL), CMOE_ERR_ARG, "gradients is NULL, want one for each of 1 parts");
    UNIT_FAILS(DW(&wrong, &g), CMOE_ERR_RANGE, "units: first[2] = 49, want 50 (tokens)");
    UNIT_FAILS(DW(&three, &g), CMOE_ERR_RANGE, "units: count = 3, want a power of two");
    o.accumulate = 1;
    UNIT_FAILS(DW(&two, &g), CMOE_ERR_ARG, "accumulate = 1 with 2 units, want one unit");
    o.accumulate = 0;
    h.w.dims[2] = K - 1;
    UNIT_FAILS(DW(&two, &h), CMOE_ERR_SHAPE, "gradients[0].w: dims[2] = 36, want 37");
    h = g;
    h.a = cmoe_view_mut_make(x, CMOE_F32, 3, dims);
    UNIT_FAILS(DW(&two, &h), CMOE_ERR_ARG,
               "gradients[0].a is given but part 0 has no low-rank term, want none");
    h = g;
    h.w.data = x;
    UNIT_FAILS(DW(&two, &h), CMOE_ERR_ARG, "gradients[0].w overlaps x");
    h = g;
    h.bias = cmoe_view_mut_2d(dw, CMOE_F32, 1, N);
    UNIT_FAILS(DW(&two, &h), CMOE_ERR_ARG, "gradients[0].bias overlaps gradients[0].w");
    UNIT_FAILS(cmoe_trainable_dw(e.stream, t, &o, vy, cmoe_view_2d(x, CMOE_F32, T - 1, K), NULL,
                                 NULL, &g, &arena, &err),
               CMOE_ERR_SHAPE, "x: dims[0] = 49, want 50 (tokens of dy)");
    for (int i = 0; i < N * K; i++)
        assert_true(dw[i] == 0);
    UNIT_OK(DW(&two, &g));
    free(arena.base);
    cmoe_trainable_free(t);
    free(w);
    free(x);
    free(dy);
    free(dw);
    unit_close(&e);
}

static void outer_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float a[12] = {0}, b[12] = {0}, c[16] = {0};
    const int64_t dims[] = {1, 3, 4}, first[] = {0, 1, 4};
    const cmoe_view va = cmoe_view_2d(a, CMOE_F32, 4, 3), vb = cmoe_view_2d(b, CMOE_F32, 3, 4);
    const cmoe_view right = cmoe_view_2d(b, CMOE_F32, 4, 3);
    const cmoe_view_mut out = cmoe_view_mut_make(c, CMOE_F32, 3, dims), none = cmoe_view_mut_none();
    const cmoe_units two = {2, first};
    cmoe_grouped_outer_options o;
    cmoe_grouped_outer_options_default(&o, sizeof o);
    int64_t bytes = 0;
    UNIT_OK(cmoe_grouped_outer_bytes(e.ctx, 1, 4, 3, 4, &bytes, NULL, &err));
    cmoe_arena arena = unit_arena(bytes);
#define OUTER(a, b, units, out, bias, arena) \
    cmoe_grouped_outer(e.stream, &o, a, b, NULL, units, out, bias, arena, &err)
    UNIT_FAILS(OUTER(va, vb, NULL, out, none, &arena), CMOE_ERR_SHAPE, "b: dims[0] = 3, want 4");
    UNIT_FAILS(OUTER(va, right, NULL, out, none, &arena), CMOE_ERR_SHAPE,
               "out: dims[2] = 4, want 3 [experts = 1, n = 3, k = 3]");
    UNIT_FAILS(OUTER(va, right, NULL, none, cmoe_view_mut_2d(c, CMOE_F32, 1, 4), &arena),
               CMOE_ERR_SHAPE, "bias: dims[1] = 4, want 3");
    UNIT_FAILS(OUTER(va, right, NULL, none, cmoe_view_mut_2d(a, CMOE_F32, 1, 3), &arena),
               CMOE_ERR_ARG, "bias overlaps a");
    UNIT_FAILS(OUTER(va, right, NULL, none, none, NULL), CMOE_ERR_MEMORY, "grouped_outer");
    o.accumulate = 1;
    UNIT_FAILS(OUTER(va, right, &two, none, none, &arena), CMOE_ERR_ARG,
               "accumulate = 1 with 2 units, want one unit");
    o.accumulate = 2;
    UNIT_FAILS(OUTER(va, right, NULL, none, none, &arena), CMOE_ERR_RANGE, "accumulate = 2");
    UNIT_FAILS(cmoe_grouped_outer_bytes(NULL, 1, 1, 1, 1, &bytes, NULL, &err), CMOE_ERR_ARG,
               "ctx is NULL");
    UNIT_FAILS(cmoe_grouped_outer_bytes(e.ctx, 1, -1, 1, 1, &bytes, NULL, &err), CMOE_ERR_SHAPE,
               "rows = -1, want 0 to 2^31 - 1");
    free(arena.base);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_grouped_matmul),
        cmocka_unit_test(zero_low_rank),
        cmocka_unit_test(gradients_of_any_threads),
        cmocka_unit_test(units_over_two_calls),
        cmocka_unit_test(accumulate_continues),
        cmocka_unit_test(many_experts_as_one),
        cmocka_unit_test(rows_by_group),
        cmocka_unit_test(create_errors),
        cmocka_unit_test(fill_errors),
        cmocka_unit_test(call_errors),
        cmocka_unit_test(gradient_errors),
        cmocka_unit_test(outer_errors),
    };
    return UNIT_RUN("unit_trainable", tests);
}
