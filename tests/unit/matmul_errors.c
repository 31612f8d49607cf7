/* SPDX-License-Identifier: MIT
 *
 * matmul_errors.c - the text of every error of cmoe_matrix_create, cmoe_grouped_matmul and
 * cmoe_linear; outputs and the arena stay untouched, groups are not trusted.
 */
#include <math.h>

#include "matmul/matmul.h"
#include "unit.h"

enum { T = 3, TOPK = 2, E = 2, N = 4, K = 5, R = 8 };

/* ---- create ---------------------------------------------------------------------------------- */

/* A good call to spoil one thing of. */
typedef struct made {
    unit_env e;
    cmoe_matrix_options o;
    cmoe_view w, bias;
    cmoe_matrix *m, **out;
    float f[E * N * K];
    int8_t q[E * N * K];
} made;

static void made_open(made *g)
{
    memset(g, 0, sizeof *g);
    g->e = unit_open(1);
    cmoe_matrix_options_default(&g->o, sizeof g->o);
    g->w = cmoe_view_3d(g->f, CMOE_F32, E, N, K);
    g->out = &g->m;
}

static cmoe_status made_call(made *g, cmoe_error *err)
{
    static char mark;
    g->m = (cmoe_matrix *)(void *)&mark;
    const cmoe_status status = cmoe_matrix_create(g->out, g->e.ctx, &g->o, g->w, g->bias, err);
    if (status != CMOE_OK)
        assert_ptr_equal(g->m, &mark);
    else
        cmoe_matrix_free(g->m);
    return status;
}

#define MADE(change, status, text)                     \
    do {                                               \
        made g;                                        \
        made_open(&g);                                 \
        UNIT_OK(made_call(&g, &err));                  \
        change;                                        \
        UNIT_FAILS(made_call(&g, &err), status, text); \
        unit_close(&g.e);                              \
    } while (0)

static cmoe_view i8_weights(made *g)
{
    return cmoe_view_3d(g->q, CMOE_I8, E, N, K);
}

static void bad_matrix(void **state)
{
    static float row[1];
    (void)state;
    MADE(g.out = NULL, CMOE_ERR_ARG, "w: out is NULL");
    MADE(g.o.size = 4, CMOE_ERR_ARG, "cmoe_matrix_options.size = 4");
    MADE(g.o.format = CMOE_F16, CMOE_ERR_DTYPE,
         "format f16 (2) not supported, want one of: f32 bf16 i8");
    MADE(g.o.format = 99, CMOE_ERR_DTYPE,
         "format unknown (99) not supported, want one of: f32 bf16 i8");
    MADE(g.w.rank = 2, CMOE_ERR_SHAPE, "w: rank 2, want 3 [experts, outputs, inputs]");
    MADE((g.w.rank = 2, g.o.transposed = 1), CMOE_ERR_SHAPE,
         "w: rank 2, want 3 [experts, inputs, outputs]");
    MADE(g.w.dtype = CMOE_I32, CMOE_ERR_DTYPE,
         "w: dtype i32 (8), want one of: f32 f16 bf16 f8e4m3 i8 f64");
    MADE(g.w.dtype = CMOE_I4X2, CMOE_ERR_DTYPE, "w: dtype i4x2 (11), want one of");
    MADE(g.w.device = 0, CMOE_ERR_DEVICE, "w: device 0, want -1");
    MADE(g.w.data = NULL, CMOE_ERR_ARG, "w: data is NULL, want 160 bytes");
    MADE((g.w.name = "up_proj", g.w.data = NULL), CMOE_ERR_ARG, "up_proj: data is NULL");
    MADE(g.w.dims[1] = -1, CMOE_ERR_SHAPE, "w: dims[1] = -1, want >= 0");
    MADE((g.w.dims[0] = INT64_MAX, g.w.strides[0] = 0), CMOE_ERR_SHAPE,
         "w: dims up to dims[1] = 4 multiply beyond 2^63 - 1");
    MADE(g.w.strides[1] = INT64_MAX / 2, CMOE_ERR_SHAPE,
         "w: strides reach outside the address space");
    MADE(g.w = i8_weights(&g), CMOE_ERR_ARG, "scale is not given");
    MADE((g.w = i8_weights(&g), g.o.scale = cmoe_view_2d(g.f, CMOE_F32, E, N + 1)), CMOE_ERR_SHAPE,
         "scale: dims[1] = 5, want 4 [experts = 2, outputs = 4]");
    MADE((g.w = i8_weights(&g), g.o.scale = cmoe_view_2d(g.f, CMOE_BF16, E, N)), CMOE_ERR_DTYPE,
         "scale: dtype bf16 (3), want one of: f32");
    MADE((g.w = i8_weights(&g), g.o.format = CMOE_F32), CMOE_ERR_DTYPE,
         "w: i8 weights cannot become f32, want format i8");
    MADE((g.w = i8_weights(&g), g.o.format = CMOE_BF16), CMOE_ERR_DTYPE,
         "w: i8 weights cannot become bf16, want format i8");
    MADE(g.o.scale = cmoe_view_2d(g.f, CMOE_F32, E, N), CMOE_ERR_DTYPE,
         "scale is given but w is f32, want i8 weights or no scale");
    MADE(g.bias = cmoe_view_2d(g.f, CMOE_F32, E, K), CMOE_ERR_SHAPE,
         "bias: dims[1] = 5, want 4 [experts = 2, outputs = 4]");
    MADE(g.bias = cmoe_view_1d(g.f, CMOE_F32, N), CMOE_ERR_SHAPE, "bias: rank 1, want 2");
    MADE(g.bias = cmoe_view_2d(g.f, CMOE_I8, E, N), CMOE_ERR_DTYPE, "bias: dtype i8 (6), want");
    MADE(g.bias = cmoe_view_2d(NULL, CMOE_F32, E, N), CMOE_ERR_ARG, "bias: data is NULL");
    /* One row that is the same element again and again needs no memory to be long. */
    MADE(
        (g.w = cmoe_view_3d(row, CMOE_F32, 1, 1, 131073), g.w.strides[2] = 0, g.o.format = CMOE_I8),
        CMOE_ERR_UNSUPPORTED,
        "w: 131073 inputs in int8, want at most 131072 (the sum must fit in int32)");
    MADE((g.w = cmoe_view_3d(row, CMOE_F8E4M3, 1, (int64_t)1 << 40, (int64_t)1 << 22),
          g.w.strides[0] = g.w.strides[1] = g.w.strides[2] = 0, g.o.format = CMOE_F32),
         CMOE_ERR_SHAPE, "w: packed it would exceed 2^63 - 1 bytes");
    MADE((g.w = cmoe_view_3d(row, CMOE_F8E4M3, 1, 1, (int64_t)1 << 61), g.w.strides[2] = 0,
          g.o.format = CMOE_F32),
         CMOE_ERR_SHAPE, "w: packed it would exceed 2^63 - 1 bytes");
    UNIT_FAILS(cmoe_matrix_create(&(cmoe_matrix *){NULL}, NULL, NULL,
                                  cmoe_view_3d(row, CMOE_F32, 1, 1, 1), cmoe_view_none(), &err),
               CMOE_ERR_ARG, "w: ctx is NULL");
    /* The same where there is no view: the loader of whole models asks for a size, then for memory. */
    const int64_t dims[] = {1, 1, 131073};
    int64_t bytes = -1;
    unit_env e = unit_open(1);
    UNIT_FAILS(cmoei_matrix_size(e.ctx, CMOE_I8, false, dims, "w2", &bytes, &err),
               CMOE_ERR_UNSUPPORTED, "w2: 131073 inputs in int8, want at most 131072");
    assert_int_equal(bytes, -1);
    unit_close(&e);
}

/* An empty matrix whose rows alone would be too long to pack. */
static void rows_too_long(void **state)
{
    (void)state;
    unit_env e = unit_open_isa(8, "ref");
    cmoe_matrix *m = NULL;
    UNIT_FAILS(cmoe_matrix_create(&m, e.ctx, NULL,
                                  cmoe_view_3d(NULL, CMOE_F32, 0, 1, (int64_t)1 << 59),
                                  cmoe_view_none(), &err),
               CMOE_ERR_SHAPE, "weights: rows of 576460752303423488 inputs are too long");
    assert_null(m);
    unit_close(&e);
    cmoe_matrix_free(NULL);
    assert_int_equal(cmoe_matrix_weight_bytes(NULL), 0);
    assert_null(cmoe_matrix_variant(NULL));
}

/* ---- product --------------------------------------------------------------------------------- */

/* Groups written by hand: expert 0 has rows 0..2 and padding 3, expert 1 rows 4, 5 and padding. */
typedef struct good {
    unit_env e, other;
    cmoe_grouped_matmul_options o;
    cmoe_matrix *w, *foreign;
    cmoe_view x, weights;
    cmoe_view_mut out;
    cmoe_groups g;
    cmoe_arena arena;
    int64_t first[E + 1];
    int32_t row_of[T * TOPK], slots[R];
    float xs[T * K], ws[T * TOPK], y[R * N];
    char scratch[1 << 14];
} good;

static void good_open(good *g)
{
    static const float f[E * N * K];
    static const int64_t first[E + 1] = {0, 4, R};
    static const int32_t slots[R] = {0, 2, 5, -1, 1, 3, -1, -1};
    memset(g, 0, sizeof *g);
    g->e = unit_open(2);
    g->other = unit_open(1);
    const cmoe_view w = cmoe_view_3d(f, CMOE_F32, E, N, K);
    UNIT_OK(cmoe_matrix_create(&g->w, g->e.ctx, NULL, w, cmoe_view_none(), &err));
    UNIT_OK(cmoe_matrix_create(&g->foreign, g->other.ctx, NULL, w, cmoe_view_none(), &err));
    cmoe_grouped_matmul_options_default(&g->o, sizeof g->o);
    memcpy(g->first, first, sizeof first);
    memcpy(g->slots, slots, sizeof slots);
    for (int i = 0; i < T * TOPK; i++)
        g->row_of[i] = -1;
    for (int r = 0; r < R; r++)
        if (slots[r] >= 0) g->row_of[slots[r]] = r;
    g->g = (cmoe_groups){T, TOPK, R, g->first, g->row_of, g->slots, E};
    g->x = cmoe_view_2d(g->xs, CMOE_F32, T, K);
    g->weights = cmoe_view_2d(g->ws, CMOE_F32, T, TOPK);
    g->out = cmoe_view_mut_2d(g->y, CMOE_F32, T * TOPK, N);
    g->arena = cmoe_arena_make(g->scratch, sizeof g->scratch);
    memset(g->y, 0x5a, sizeof g->y);
}

static void good_close(good *g)
{
    cmoe_matrix_free(g->w);
    cmoe_matrix_free(g->foreign);
    unit_close(&g->e);
    unit_close(&g->other);
}

static cmoe_status good_call(good *g, cmoe_stream *s, const cmoe_matrix *w, const cmoe_groups *of,
                             cmoe_error *err)
{
    const cmoe_status status =
        cmoe_grouped_matmul(s, &g->o, g->x, w, g->weights, of, g->out, &g->arena, err);
    for (size_t i = 0; status != CMOE_OK && i < sizeof g->y; i++)
        assert_int_equal(((unsigned char *)g->y)[i], 0x5a);
    assert_int_equal(g->arena.used, 0);
    return status;
}

#define SPOILT_CALL(change, call, status, text)              \
    do {                                                     \
        good g;                                              \
        good_open(&g);                                       \
        UNIT_OK(good_call(&g, g.e.stream, g.w, &g.g, &err)); \
        memset(g.y, 0x5a, sizeof g.y);                       \
        change;                                              \
        UNIT_FAILS(call, status, text);                      \
        good_close(&g);                                      \
    } while (0)
#define SPOILT(change, status, text) \
    SPOILT_CALL(change, good_call(&g, g.e.stream, g.w, &g.g, &err), status, text)

static void bad_products(void **state)
{
    (void)state;
    SPOILT_CALL((void)0, good_call(&g, NULL, g.w, &g.g, &err), CMOE_ERR_ARG, "stream is NULL");
    SPOILT_CALL((void)0, good_call(&g, g.e.stream, NULL, &g.g, &err), CMOE_ERR_ARG,
                "w is NULL, want a matrix made from the stream's context");
    SPOILT_CALL((void)0, good_call(&g, g.e.stream, g.foreign, &g.g, &err), CMOE_ERR_ARG,
                "w is of another context, want a matrix made from the stream's context");
    SPOILT_CALL((void)0, good_call(&g, g.e.stream, g.w, NULL, &err), CMOE_ERR_ARG,
                "groups is NULL, want those of cmoe_align");
    SPOILT(g.o.size = 7, CMOE_ERR_ARG, "cmoe_grouped_matmul_options.size = 7");
    SPOILT(g.x.dims[0] = T + 1, CMOE_ERR_SHAPE, "x: dims[0] = 4, want 3 [rows = 3, inputs = 5]");
    SPOILT(g.x.dims[1] = K - 1, CMOE_ERR_SHAPE, "x: dims[1] = 4, want 5 [rows = 3, inputs = 5]");
    SPOILT(g.x.rank = 1, CMOE_ERR_SHAPE, "x: rank 1, want 2 [rows = 3, inputs = 5]");
    SPOILT(g.x.dtype = CMOE_I8, CMOE_ERR_DTYPE, "x: dtype i8 (6), want one of: f32 f16 bf16 f64");
    SPOILT(g.x.data = NULL, CMOE_ERR_ARG, "x: data is NULL, want 60 bytes");
    SPOILT(g.o.x_grouped = 1, CMOE_ERR_SHAPE, "x: dims[0] = 3, want at least 8 (group rows)");
    SPOILT(g.out.dims[0] = T, CMOE_ERR_SHAPE, "out: dims[0] = 3, want 6 [rows = 6, outputs = 4]");
    SPOILT(g.out.dims[1] = N + 1, CMOE_ERR_SHAPE, "out: dims[1] = 5, want 4");
    SPOILT(g.o.out_grouped = 1, CMOE_ERR_SHAPE, "out: dims[0] = 6, want at least 8 (group rows)");
    SPOILT(g.out.data = NULL, CMOE_ERR_ARG, "out: data is NULL, want 96 bytes");
    SPOILT(g.out.dtype = CMOE_I32, CMOE_ERR_DTYPE, "out: dtype i32 (8)");
    SPOILT(g.out.strides[0] = 0, CMOE_ERR_SHAPE,
           "out: strides are negative or make elements share memory");
    SPOILT(g.out.strides[1] = -1, CMOE_ERR_SHAPE, "out: strides are negative");
    SPOILT((g.o.mul_weights = 1, g.weights = cmoe_view_none()), CMOE_ERR_ARG,
           "weights is not given");
    SPOILT((g.o.mul_weights = 1, g.weights.dims[1] = 1), CMOE_ERR_SHAPE,
           "weights: dims[1] = 1, want 2 [tokens = 3, topk = 2]");
    SPOILT((g.o.mul_weights = 1, g.weights.data = g.y), CMOE_ERR_ARG,
           "out overlaps weights in memory, want separate tensors");
    SPOILT(g.x.data = g.y + 5, CMOE_ERR_ARG, "out overlaps x in memory, want separate tensors");
    SPOILT((g.x.data = g.y, g.x.name = "hidden", g.out.name = "gate"), CMOE_ERR_ARG,
           "gate overlaps hidden in memory");
    SPOILT(g.arena.bytes = 100, CMOE_ERR_MEMORY, "grouped_matmul: arena of 100 bytes is too small");
    SPOILT(g.arena.base = NULL, CMOE_ERR_MEMORY, "grouped_matmul: arena of 0 bytes is too small");
    SPOILT(g.arena.bytes = -1, CMOE_ERR_MEMORY, "grouped_matmul: arena of 0 bytes is too small");
}

static void bad_groups(void **state)
{
    (void)state;
    SPOILT(g.g.experts = 3, CMOE_ERR_SHAPE, "groups.experts = 3, want 2 (of the weights)");
    SPOILT(g.g.tokens = -1, CMOE_ERR_SHAPE,
           "groups: tokens -1, topk 2, capacity 8, want sizes as cmoe_align makes them");
    SPOILT(g.g.topk = INT64_MAX, CMOE_ERR_SHAPE, "groups: tokens 3, topk 9223372036854775807");
    SPOILT(g.g.topk = (int64_t)1 << 30, CMOE_ERR_SHAPE, "groups: tokens 3, topk 1073741824");
    SPOILT(g.g.capacity = -1, CMOE_ERR_SHAPE, "capacity -1, want sizes");
    SPOILT(g.g.capacity = (int64_t)1 << 31, CMOE_ERR_SHAPE, "capacity 2147483648, want sizes");
    SPOILT(g.g.first = NULL, CMOE_ERR_ARG, "groups: an array is NULL, want those of cmoe_align");
    SPOILT(g.g.row_of = NULL, CMOE_ERR_ARG, "groups: an array is NULL");
    SPOILT(g.g.slots = NULL, CMOE_ERR_ARG, "groups: an array is NULL");
    SPOILT(g.first[0] = -1, CMOE_ERR_RANGE,
           "groups.first[0] = -1, want ascending rows from 0 up to 8 (capacity)");
    SPOILT(g.first[1] = 9, CMOE_ERR_RANGE,
           "groups.first[1] = 9, want ascending rows from 0 up to 8");
    SPOILT(g.first[2] = 3, CMOE_ERR_RANGE,
           "groups.first[2] = 3, want ascending rows from 0 up to 8");
    SPOILT(g.g.capacity = 7, CMOE_ERR_RANGE,
           "groups.first[2] = 8, want ascending rows from 0 up to 7");
    SPOILT(g.slots[2] = -2, CMOE_ERR_RANGE,
           "groups.slots[2] = -2, want -1 <= slot < 6 (tokens * topk)");
    SPOILT(g.slots[5] = 6, CMOE_ERR_RANGE,
           "groups.slots[5] = 6, want -1 <= slot < 6 (tokens * topk)");
    SPOILT(g.slots[0] = -1, CMOE_ERR_RANGE,
           "groups.slots[1] = 2 behind padding, want an expert's padding behind its rows");
    SPOILT(g.slots[7] = 4, CMOE_ERR_RANGE, "groups.slots[7] = 4 behind padding");
    SPOILT(g.row_of[3] = 8, CMOE_ERR_RANGE, "groups.row_of[3] = 8, want -1 <= row < 8");
    SPOILT(g.row_of[3] = -2, CMOE_ERR_RANGE, "groups.row_of[3] = -2, want -1 <= row < 8");
    /* Rows that nobody would fill, or two tasks at once. */
    SPOILT(g.first[0] = 1, CMOE_ERR_RANGE, "groups.first[0] = 1, want ascending rows from 0");
    SPOILT(g.row_of[2] = 0, CMOE_ERR_RANGE, "groups.row_of[2] = 0 but groups.slots[0] = 0, want 2");
    SPOILT(g.row_of[2] = 7, CMOE_ERR_RANGE,
           "groups.row_of[2] = 7 but groups.slots[7] = -1, want 2");
    SPOILT(g.row_of[2] = -1, CMOE_ERR_RANGE,
           "groups.slots[1] = 2 but groups.row_of[2] = -1, want 1");
    SPOILT(g.slots[1] = 0, CMOE_ERR_RANGE, "groups.row_of[2] = 1 but groups.slots[1] = 0, want 2");
    /* An output over the arrays that say where it goes. */
    SPOILT(g.out.data = g.first, CMOE_ERR_ARG, "out overlaps groups.first in memory");
    SPOILT((g.out.data = g.row_of + 1, g.out.dtype = CMOE_BF16, g.o.out_grouped = 1,
            g.first[1] = g.first[2] = 1, g.out.dims[0] = 1, memset(g.row_of, 0xff, sizeof g.row_of),
            g.row_of[0] = 0),
           CMOE_ERR_ARG, "out overlaps groups.row_of in memory");
    SPOILT((g.out.data = g.slots + 7, g.out.dtype = CMOE_BF16), CMOE_ERR_ARG,
           "out overlaps groups.slots in memory");
}

static void bad_sizes(void **state)
{
    (void)state;
    good g;
    good_open(&g);
    int64_t host = -5;
    UNIT_FAILS(cmoe_grouped_matmul_bytes(NULL, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "grouped_matmul_bytes: matrix is NULL");
    UNIT_FAILS(cmoe_grouped_matmul_bytes(g.w, 1, NULL, NULL, &err), CMOE_ERR_ARG,
               "grouped_matmul_bytes: host is NULL");
    UNIT_FAILS(cmoe_grouped_matmul_bytes(g.w, -1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "rows = -1, want 0 to 2^31 - 1");
    UNIT_FAILS(cmoe_grouped_matmul_bytes(g.w, (int64_t)1 << 31, &host, NULL, &err), CMOE_ERR_SHAPE,
               "rows = 2147483648, want 0 to 2^31 - 1");
    UNIT_FAILS(cmoe_linear_bytes(NULL, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "linear_bytes: matrix is NULL");
    UNIT_FAILS(cmoe_linear_bytes(g.w, 1, NULL, NULL, &err), CMOE_ERR_ARG,
               "linear_bytes: host is NULL");
    UNIT_FAILS(cmoe_linear_bytes(g.w, -1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "rows = -1, want 0 to 2^31 - 1");
    assert_int_equal(host, -5);
    assert_int_equal(cmoe_linear_bytes(g.w, -1, &host, NULL, NULL), CMOE_ERR_SHAPE);
    good_close(&g);
}

/* Rows so long that the scratch of many of them leaves int64: a matrix that nobody could fill. */
static cmoe_matrix *long_rows(cmoe_ctx *ctx, int64_t inputs)
{
    static float one[1];
    cmoe_matrix_options o;
    cmoe_matrix_options_default(&o, sizeof o);
    o.borrow = 1;
    cmoe_view w = cmoe_view_3d(one, CMOE_F32, 1, 1, inputs);
    w.strides[2] = 0;
    cmoe_matrix *m = NULL;
    UNIT_OK(cmoe_matrix_create(&m, ctx, &o, w, cmoe_view_none(), &err));
    return m;
}

static void scratch_beyond_int64(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    cmoe_matrix *m = long_rows(e.ctx, (int64_t)1 << 54);
    int64_t host = -5;
    UNIT_FAILS(cmoe_grouped_matmul_bytes(m, 1 << 30, &host, NULL, &err), CMOE_ERR_SHAPE,
               "grouped_matmul: its scratch memory would exceed 2^63 - 1 bytes");
    assert_int_equal(host, -5);
    cmoe_matrix_free(m);
    /* As many rows as fit: their groups do not fit beside them. */
    m = long_rows(e.ctx, ((int64_t)1 << 30) + (1 << 20));
    int64_t fits = 1, too_many = INT32_MAX, ignored;
    while (too_many - fits > 1) {
        const int64_t rows = (fits + too_many) / 2;
        const cmoe_status status = cmoe_grouped_matmul_bytes(m, rows, &ignored, NULL, NULL);
        *(status == CMOE_OK ? &fits : &too_many) = rows;
    }
    UNIT_FAILS(cmoe_linear_bytes(m, fits, &host, NULL, &err), CMOE_ERR_SHAPE,
               "linear: scratch of ");
    assert_int_equal(host, -5);
    cmoe_matrix_free(m);
    unit_close(&e);
}

static void bad_linear(void **state)
{
    static const float f[N * K];
    (void)state;
    good g;
    good_open(&g);
    cmoe_matrix *one = NULL;
    UNIT_OK(cmoe_matrix_create(&one, g.e.ctx, NULL, cmoe_view_3d(f, CMOE_F32, 1, N, K),
                               cmoe_view_none(), &err));
    const cmoe_view_mut out = cmoe_view_mut_2d(g.y, CMOE_F32, T, N);
    cmoe_view x = g.x;
    UNIT_FAILS(cmoe_linear(g.e.stream, x, g.w, out, &g.arena, &err), CMOE_ERR_ARG,
               "w holds 2 matrices, want 1");
    UNIT_FAILS(cmoe_linear(g.e.stream, x, NULL, out, &g.arena, &err), CMOE_ERR_ARG,
               "w holds 0 matrices, want 1");
    UNIT_FAILS(cmoe_linear(NULL, x, one, out, &g.arena, &err), CMOE_ERR_ARG, "stream is NULL");
    UNIT_FAILS(cmoe_linear(g.other.stream, x, one, out, &g.arena, &err), CMOE_ERR_ARG,
               "w is of another context");
    x.dims[1] = K - 1;
    UNIT_FAILS(cmoe_linear(g.e.stream, x, one, out, &g.arena, &err), CMOE_ERR_SHAPE,
               "x: dims[1] = 4, want 5 [tokens, inputs = 5]");
    x = g.x;
    x.dims[0] = (int64_t)1 << 31;
    x.strides[0] = 0;
    UNIT_FAILS(cmoe_linear(g.e.stream, x, one, out, &g.arena, &err), CMOE_ERR_SHAPE,
               "x: dims[0] = 2147483648, want at most 2^31 - 1 tokens");
    x = g.x;
    UNIT_FAILS(
        cmoe_linear(g.e.stream, x, one, cmoe_view_mut_2d(g.y, CMOE_F32, T, N - 1), &g.arena, &err),
        CMOE_ERR_SHAPE, "out: dims[1] = 3, want 4");
    UNIT_FAILS(
        cmoe_linear(g.e.stream, x, one, cmoe_view_mut_2d(g.xs, CMOE_F32, T, N), &g.arena, &err),
        CMOE_ERR_ARG, "out overlaps x in memory");
    cmoe_view_mut bad = out; /* looked at for overlaps before it is checked */
    bad.dims[0] = INT64_MIN;
    UNIT_FAILS(cmoe_linear(g.e.stream, x, one, bad, &g.arena, &err), CMOE_ERR_SHAPE,
               "out: dims[0] = -9223372036854775808, want >= 0");
    /* Scratch that is the output: the groups of the tokens lie there. */
    void *carved = g.scratch + (-(uintptr_t)g.scratch & 63);
    UNIT_FAILS(
        cmoe_linear(g.e.stream, x, one, cmoe_view_mut_2d(carved, CMOE_F32, T, N), &g.arena, &err),
        CMOE_ERR_ARG, "out lies in the free part of the arena");
    cmoe_arena small = cmoe_arena_make(g.scratch, 64);
    UNIT_FAILS(cmoe_linear(g.e.stream, x, one, out, &small, &err), CMOE_ERR_MEMORY,
               "linear: arena of 64 bytes is too small");
    UNIT_FAILS(cmoe_linear(g.e.stream, x, one, out, NULL, &err), CMOE_ERR_MEMORY,
               "linear: arena of 0 bytes is too small");
    for (size_t i = 0; i < sizeof g.y; i++)
        assert_int_equal(((unsigned char *)g.y)[i], 0x5a);
    assert_int_equal(g.arena.used, 0);
    cmoe_matrix_free(one);
    good_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_matrix),   cmocka_unit_test(rows_too_long),
        cmocka_unit_test(bad_products), cmocka_unit_test(bad_groups),
        cmocka_unit_test(bad_sizes),    cmocka_unit_test(scratch_beyond_int64),
        cmocka_unit_test(bad_linear),
    };
    return UNIT_RUN("unit_matmul_errors", tests);
}
