/* SPDX-License-Identifier: MIT
 *
 * experts_errors.c - the text of every error of cmoe_experts_create, _rows and _run; outputs and
 * the arena stay untouched.
 */
#include <math.h>

#include "groups.h"

enum { T = 3, TOPK = 2, E = 2, H = 5, I = 4, R = 8 };

/* ---- create ---------------------------------------------------------------------------------- */

typedef struct made {
    unit_env e;
    cmoe_experts_options o;
    cmoe_view w13, w2, bias13, bias2;
    cmoe_experts *x, **out;
    float f[E * 2 * I * H];
    int8_t q[E * 2 * I * H];
} made;

static void made_open(made *g)
{
    memset(g, 0, sizeof *g);
    g->e = unit_open(1);
    cmoe_experts_options_default(&g->o, sizeof g->o);
    g->w13 = cmoe_view_3d(g->f, CMOE_F32, E, 2 * I, H);
    g->w2 = cmoe_view_3d(g->f, CMOE_F32, E, H, I);
    g->out = &g->x;
}

static cmoe_status made_call(made *g, cmoe_ctx *ctx, cmoe_error *err)
{
    static char mark;
    g->x = (cmoe_experts *)(void *)&mark;
    const cmoe_status status =
        cmoe_experts_create(g->out, ctx, &g->o, g->w13, g->w2, g->bias13, g->bias2, err);
    if (status != CMOE_OK)
        assert_ptr_equal(g->x, &mark);
    else
        cmoe_experts_free(g->x);
    return status;
}

#define MADE(change, status, text)                              \
    do {                                                        \
        made g;                                                 \
        made_open(&g);                                          \
        UNIT_OK(made_call(&g, g.e.ctx, &err));                  \
        change;                                                 \
        UNIT_FAILS(made_call(&g, g.e.ctx, &err), status, text); \
        unit_close(&g.e);                                       \
    } while (0)

static void bad_options(void **state)
{
    (void)state;
    MADE(g.out = NULL, CMOE_ERR_ARG, "experts: out is NULL");
    MADE(g.o.size = 1, CMOE_ERR_ARG, "cmoe_experts_options.size = 1");
    MADE(g.o.activation = 4, CMOE_ERR_RANGE,
         "activation = 4 unknown, want one of: silu (0) gelu_tanh (1) swiglu_oss (2) relu2 (3)");
    MADE(g.o.activation = -1, CMOE_ERR_RANGE, "activation = -1 unknown");
    MADE((g.o.ungated = 1, g.o.activation = CMOE_ACT_SWIGLU_OSS), CMOE_ERR_UNSUPPORTED,
         "activation \"swiglu_oss\" needs gate and up, want another one with ungated experts");
    MADE(g.o.swiglu_limit = -1, CMOE_ERR_RANGE,
         "swiglu_limit = -1, want 0 (none) or a positive number");
    MADE(g.o.swiglu_limit = NAN, CMOE_ERR_RANGE, "swiglu_limit = nan");
    MADE(g.o.swiglu_limit = INFINITY, CMOE_ERR_RANGE, "swiglu_limit = inf");
    MADE(g.o.alpha = NAN, CMOE_ERR_RANGE, "alpha = nan, want a finite number (0: 1.702)");
    MADE(g.o.alpha = -INFINITY, CMOE_ERR_RANGE, "alpha = -inf, want a finite number");
    MADE(g.o.row_dtype = CMOE_F16, CMOE_ERR_DTYPE,
         "row_dtype f16 (2) not supported, want one of: f32 bf16");
    MADE(g.o.weight_at = 2, CMOE_ERR_RANGE, "weight_at = 2, want combine (0) or row (1)");
    MADE(g.o.first_expert = -1, CMOE_ERR_RANGE, "first_expert = -1, want >= 0");
    MADE(g.o.first_expert = INT64_MAX - 1, CMOE_ERR_RANGE,
         "first_expert = 9223372036854775806, want one that fits 2 experts");
    MADE(g.o.chunk = -1, CMOE_ERR_RANGE, "chunk = -1, want > 0 tokens, or 0 for the default");
    MADE(g.o.format = CMOE_F8E4M3, CMOE_ERR_DTYPE,
         "format f8e4m3 (4) not supported, want one of: f32 bf16 i8");
    made g;
    made_open(&g);
    UNIT_FAILS(made_call(&g, NULL, &err), CMOE_ERR_ARG, "experts: ctx is NULL");
    unit_close(&g.e);
}

static cmoe_view i8(const made *g, int64_t rows, int64_t cols)
{
    return cmoe_view_3d(g->q, CMOE_I8, E, rows, cols);
}

static void bad_weights(void **state)
{
    static float row[1];
    (void)state;
    MADE(g.w13.rank = 2, CMOE_ERR_SHAPE, "w13: rank 2, want 3 [experts, 2*inter, hidden]");
    MADE((g.w13.rank = 2, g.o.ungated = 1), CMOE_ERR_SHAPE,
         "w13: rank 2, want 3 [experts, inter, hidden]");
    MADE((g.w13.rank = 4, g.o.transposed = 1), CMOE_ERR_SHAPE,
         "w13: rank 4, want 3 [experts, hidden, 2*inter]");
    MADE(g.w13.dims[0] = 0, CMOE_ERR_SHAPE, "w13: dims[0] = 0, want at least 1 expert");
    MADE(g.w13.dims[1] = 7, CMOE_ERR_SHAPE,
         "w13: dims[1] = 7, want an even number (gate rows and up rows)");
    MADE((g.o.transposed = 1, g.w13 = cmoe_view_3d(g.f, CMOE_F32, E, H, 7)), CMOE_ERR_SHAPE,
         "w13: dims[2] = 7, want an even number");
    MADE(g.w13.dims[2] = -3, CMOE_ERR_SHAPE, "w13: dims[2] = -3, want >= 0");
    MADE(g.w13.data = NULL, CMOE_ERR_ARG, "w13: data is NULL, want 320 bytes");
    MADE(g.w13.dtype = CMOE_U8, CMOE_ERR_DTYPE,
         "w13: dtype u8 (7), want one of: f32 f16 bf16 f8e4m3 i8 f64");
    MADE(g.w2.dims[0] = 1, CMOE_ERR_SHAPE,
         "w2: dims[0] = 1, want 2 [experts = 2, hidden = 5, inter = 4]");
    MADE(g.w2.dims[1] = 4, CMOE_ERR_SHAPE,
         "w2: dims[1] = 4, want 5 [experts = 2, hidden = 5, inter = 4]");
    MADE(g.w2.dims[2] = 8, CMOE_ERR_SHAPE, "w2: dims[2] = 8, want 4");
    MADE((g.o.transposed = 1, g.w13 = cmoe_view_3d(g.f, CMOE_F32, E, H, 2 * I)), CMOE_ERR_SHAPE,
         "w2: dims[1] = 5, want 4 [experts = 2, inter = 4, hidden = 5]");
    MADE(g.o.ungated = 1, CMOE_ERR_SHAPE, "w2: dims[2] = 4, want 8");
    MADE(g.w2.data = NULL, CMOE_ERR_ARG, "w2: data is NULL");
    MADE((g.w2.name = "down_proj", g.w2.rank = 1), CMOE_ERR_SHAPE, "down_proj: rank 1, want 3");
    MADE(g.w13 = i8(&g, 2 * I, H), CMOE_ERR_DTYPE,
         "w13 is i8 and w2 is f32, want both i8 or neither");
    MADE(g.w2 = i8(&g, H, I), CMOE_ERR_DTYPE, "w13 is f32 and w2 is i8, want both i8 or neither");
    MADE((g.w13 = i8(&g, 2 * I, H), g.w2 = i8(&g, H, I)), CMOE_ERR_ARG, "scale13 is not given");
    MADE((g.w13 = i8(&g, 2 * I, H), g.w2 = i8(&g, H, I),
          g.o.scale13 = cmoe_view_2d(g.f, CMOE_F32, E, 2 * I)),
         CMOE_ERR_ARG, "scale2 is not given");
    MADE((g.w13 = i8(&g, 2 * I, H), g.w2 = i8(&g, H, I),
          g.o.scale13 = cmoe_view_2d(g.f, CMOE_F32, E, I)),
         CMOE_ERR_SHAPE, "scale13: dims[1] = 4, want 8");
    MADE((g.w13 = i8(&g, 2 * I, H), g.w2 = i8(&g, H, I), g.o.format = CMOE_BF16), CMOE_ERR_DTYPE,
         "w13: i8 weights cannot become bf16, want format i8");
    MADE(g.o.scale13 = cmoe_view_2d(g.f, CMOE_F32, E, 2 * I), CMOE_ERR_DTYPE,
         "scale13 is given but w13 is f32, want i8 weights or no scale");
    MADE(g.o.scale2 = cmoe_view_2d(g.f, CMOE_F32, E, H), CMOE_ERR_DTYPE,
         "scale2 is given but w2 is f32, want i8 weights or no scale");
    MADE(g.bias13 = cmoe_view_2d(g.f, CMOE_F32, E, I), CMOE_ERR_SHAPE,
         "bias13: dims[1] = 4, want 8 [experts = 2, outputs = 8]");
    MADE(g.bias2 = cmoe_view_2d(g.f, CMOE_F32, E, I), CMOE_ERR_SHAPE,
         "bias2: dims[1] = 4, want 5 [experts = 2, outputs = 5]");
    MADE(g.bias2 = cmoe_view_2d(g.f, CMOE_I64, E, H), CMOE_ERR_DTYPE, "bias2: dtype i64 (9)");
    MADE((g.w13 = cmoe_view_3d(row, CMOE_F32, 1, 2, 131073), g.w13.strides[2] = 0,
          g.w13.strides[1] = 0, g.w2 = cmoe_view_3d(row, CMOE_F32, 1, 131073, 1),
          g.w2.strides[1] = 0, g.o.format = CMOE_I8),
         CMOE_ERR_UNSUPPORTED, "w13: 131073 inputs in int8, want at most 131072");
    MADE((g.w13 = cmoe_view_3d(row, CMOE_F32, 1, 2 * 131073, 1), g.w13.strides[1] = 0,
          g.w2 = cmoe_view_3d(row, CMOE_F32, 1, 1, 131073), g.w2.strides[2] = 0,
          g.o.format = CMOE_I8),
         CMOE_ERR_UNSUPPORTED, "w2: 131073 inputs in int8, want at most 131072");
}

static void bad_description(void **state)
{
    (void)state;
    made g;
    made_open(&g);
    cmoe_experts *x = NULL;
    cmoe_experts_info info = {.size = sizeof info};
    UNIT_OK(cmoe_experts_create(&x, g.e.ctx, NULL, g.w13, g.w2, g.bias13, g.bias2, &err));
    UNIT_FAILS(cmoe_experts_describe(NULL, &info, &err), CMOE_ERR_ARG,
               "experts_describe: experts is NULL, want both");
    UNIT_FAILS(cmoe_experts_describe(x, NULL, &err), CMOE_ERR_ARG,
               "experts_describe: info is NULL, want both");
    info.size = 0;
    UNIT_FAILS(cmoe_experts_describe(x, &info, &err), CMOE_ERR_ARG,
               "experts_describe: info.size is not set, want both, info.size = sizeof *info");
    assert_int_equal(info.hidden, 0);
    cmoe_experts_free(x);
    unit_close(&g.e);
}

/* ---- rows and run ---------------------------------------------------------------------------- */

typedef struct good {
    unit_env e, other;
    cmoe_experts *p, *at_row;
    cmoe_view x, ids, weights, shared;
    cmoe_view_mut rows, out;
    int32_t x_grouped;
    cmoe_groups g;
    cmoe_arena arena;
    int64_t first[E + 1];
    int32_t row_of[T * TOPK], slots[R], id[T * TOPK];
    float xs[T * H], ws[T * TOPK], sh[T * H], y[R * H];
    char scratch[1 << 15];
} good;

static void good_open(good *g)
{
    static const float f[E * 2 * I * H];
    static const int64_t first[E + 1] = {0, 4, R};
    static const int32_t slots[R] = {0, 2, 5, -1, 1, 3, -1, -1};
    cmoe_experts_options o;
    memset(g, 0, sizeof *g);
    g->e = unit_open(2);
    g->other = unit_open(1);
    cmoe_experts_options_default(&o, sizeof o);
    for (o.weight_at = 0; o.weight_at < 2; o.weight_at++)
        UNIT_OK(cmoe_experts_create(
            o.weight_at ? &g->at_row : &g->p, g->e.ctx, &o, cmoe_view_3d(f, CMOE_F32, E, 2 * I, H),
            cmoe_view_3d(f, CMOE_F32, E, H, I), cmoe_view_none(), cmoe_view_none(), &err));
    memcpy(g->first, first, sizeof first);
    memcpy(g->slots, slots, sizeof slots);
    for (int i = 0; i < T * TOPK; i++)
        g->row_of[i] = -1;
    for (int r = 0; r < R; r++)
        if (slots[r] >= 0) g->row_of[slots[r]] = r;
    g->g = (cmoe_groups){T, TOPK, R, g->first, g->row_of, g->slots, E};
    g->x = cmoe_view_2d(g->xs, CMOE_F32, T, H);
    g->ids = cmoe_view_2d(g->id, CMOE_I32, T, TOPK);
    g->weights = cmoe_view_2d(g->ws, CMOE_F32, T, TOPK);
    g->rows = cmoe_view_mut_2d(g->y, CMOE_F32, R, H);
    g->out = cmoe_view_mut_2d(g->y, CMOE_F32, T, H);
    g->arena = cmoe_arena_make(g->scratch, sizeof g->scratch);
    memset(g->y, 0x5a, sizeof g->y);
}

static void good_close(good *g)
{
    cmoe_experts_free(g->p);
    cmoe_experts_free(g->at_row);
    unit_close(&g->e);
    unit_close(&g->other);
}

static cmoe_status untouched(const good *g, cmoe_status status)
{
    for (size_t i = 0; status != CMOE_OK && i < sizeof g->y; i++)
        assert_int_equal(((const unsigned char *)g->y)[i], 0x5a);
    assert_int_equal(g->arena.used, 0);
    return status;
}

static cmoe_status rows_call(good *g, cmoe_stream *s, const cmoe_experts *p, cmoe_error *err)
{
    const cmoe_view w = p && p == g->at_row ? g->weights : cmoe_view_none();
    return untouched(
        g, cmoe_experts_rows(s, p, g->x, g->x_grouped, &g->g, w, g->rows, &g->arena, err));
}

static cmoe_status run_call(good *g, cmoe_stream *s, const cmoe_experts *p, cmoe_error *err)
{
    return untouched(
        g, cmoe_experts_run(s, p, g->x, g->ids, g->weights, g->shared, g->out, &g->arena, err));
}

#define SPOILT(call, change, status, text)              \
    do {                                                \
        good g;                                         \
        good_open(&g);                                  \
        UNIT_OK(call(&g, g.e.stream, g.p, &err));       \
        UNIT_OK(call(&g, g.e.stream, g.at_row, &err));  \
        memset(g.y, 0x5a, sizeof g.y);                  \
        cmoe_stream *s = g.e.stream;                    \
        cmoe_experts *p = g.p;                          \
        change;                                         \
        UNIT_FAILS(call(&g, s, p, &err), status, text); \
        good_close(&g);                                 \
    } while (0)
#define ROWS(change, status, text) SPOILT(rows_call, change, status, text)
#define RUN(change, status, text)  SPOILT(run_call, change, status, text)

static void bad_rows(void **state)
{
    (void)state;
    ROWS(s = NULL, CMOE_ERR_ARG, "stream is NULL");
    ROWS(p = NULL, CMOE_ERR_ARG, "experts is NULL, want those of cmoe_experts_create");
    ROWS(s = g.other.stream, CMOE_ERR_ARG,
         "experts and stream belong to different contexts, want one");
    ROWS(g.g.experts = 1, CMOE_ERR_SHAPE, "groups.experts = 1, want 2 (of the weights)");
    ROWS(g.g.slots = NULL, CMOE_ERR_ARG, "groups: an array is NULL");
    ROWS(g.first[1] = -3, CMOE_ERR_RANGE, "groups.first[1] = -3, want ascending rows");
    ROWS(g.slots[1] = 6, CMOE_ERR_RANGE, "groups.slots[1] = 6, want -1 <= slot < 6");
    ROWS(g.slots[4] = -1, CMOE_ERR_RANGE, "groups.slots[5] = 3 behind padding");
    ROWS(g.row_of[0] = 100, CMOE_ERR_RANGE, "groups.row_of[0] = 100, want -1 <= row < 8");
    ROWS(g.x.dims[0] = 2, CMOE_ERR_SHAPE, "x: dims[0] = 2, want 3 [tokens = 3, hidden = 5]");
    ROWS(g.x.dims[1] = 4, CMOE_ERR_SHAPE, "x: dims[1] = 4, want 5 [tokens = 3, hidden = 5]");
    ROWS(g.x.dtype = CMOE_F8E4M3, CMOE_ERR_DTYPE, "x: dtype f8e4m3 (4), want one of");
    ROWS(g.x_grouped = 1, CMOE_ERR_SHAPE, "x: dims[0] = 3, want at least 8 (group rows)");
    ROWS((g.x_grouped = 1, g.x.rank = 3), CMOE_ERR_SHAPE, "x: rank 3, want 2 [rows, hidden = 5]");
    ROWS(g.rows.dims[0] = 7, CMOE_ERR_SHAPE, "rows: dims[0] = 7, want at least 8 (group rows)");
    ROWS(g.rows.dims[1] = 6, CMOE_ERR_SHAPE, "rows: dims[1] = 6, want 5 [rows, hidden = 5]");
    ROWS(g.rows.dtype = CMOE_I8, CMOE_ERR_DTYPE, "rows: dtype i8 (6), want one of");
    ROWS(g.rows.data = NULL, CMOE_ERR_ARG, "rows: data is NULL, want 160 bytes");
    ROWS(g.rows.strides[0] = 4, CMOE_ERR_SHAPE,
         "rows: strides are negative or make elements share");
    ROWS(g.x.data = g.y, CMOE_ERR_ARG, "rows overlaps x in memory");
    ROWS((p = g.at_row, g.weights.data = g.y), CMOE_ERR_ARG, "rows overlaps weights in memory");
    ROWS((p = g.at_row, g.weights.dims[1] = 1), CMOE_ERR_SHAPE,
         "weights: dims[1] = 1, want 2 [tokens = 3, topk = 2]");
    ROWS((p = g.at_row, g.weights = cmoe_view_none()), CMOE_ERR_ARG, "weights is not given");
    ROWS((g.rows.data = g.first, g.rows.dtype = CMOE_BF16), CMOE_ERR_ARG,
         "rows overlaps groups.first in memory");
    ROWS(g.arena.bytes = 200, CMOE_ERR_MEMORY, "experts_rows: arena of 200 bytes is too small");
    ROWS(g.arena.base = NULL, CMOE_ERR_MEMORY, "experts_rows: arena of 0 bytes is too small");
    good g;
    good_open(&g);
    UNIT_FAILS(
        cmoe_experts_rows(g.e.stream, g.p, g.x, 0, NULL, cmoe_view_none(), g.rows, &g.arena, &err),
        CMOE_ERR_ARG, "groups is NULL, want those of cmoe_align");
    UNIT_FAILS(
        cmoe_experts_rows(g.e.stream, g.p, g.x, 0, &g.g, g.weights, g.rows, &g.arena, &err),
        CMOE_ERR_ARG,
        "weights are given but weight_at is combine, want none here (cmoe_combine takes them)");
    untouched(&g, CMOE_ERR_ARG);
    good_close(&g);
}

static void bad_runs(void **state)
{
    (void)state;
    RUN(s = NULL, CMOE_ERR_ARG, "stream is NULL");
    RUN(p = NULL, CMOE_ERR_ARG, "experts is NULL");
    RUN(s = g.other.stream, CMOE_ERR_ARG, "experts and stream belong to different contexts");
    RUN(g.x.rank = 3, CMOE_ERR_SHAPE, "x: rank 3, want 2 [tokens, hidden = 5]");
    RUN(g.x.dims[1] = 6, CMOE_ERR_SHAPE, "x: dims[1] = 6, want 5 [tokens, hidden = 5]");
    RUN(g.x.dims[0] = -1, CMOE_ERR_SHAPE, "x: dims[0] = -1, want >= 0");
    RUN(g.x.data = NULL, CMOE_ERR_ARG, "x: data is NULL, want 60 bytes");
    RUN(g.x.device = 1, CMOE_ERR_DEVICE, "x: device 1, want -1");
    RUN(g.ids.dims[0] = 2, CMOE_ERR_SHAPE, "topk_ids: dims[0] = 2, want 3 [tokens = 3, topk]");
    RUN(g.ids.dtype = CMOE_F32, CMOE_ERR_DTYPE, "topk_ids: dtype f32 (1), want one of: i32 i64");
    RUN(g.weights.dims[1] = 1, CMOE_ERR_SHAPE,
        "topk_weights: dims[1] = 1, want 2 [tokens = 3, topk = 2]");
    RUN(g.weights.dtype = CMOE_I32, CMOE_ERR_DTYPE, "topk_weights: dtype i32 (8)");
    RUN(g.shared = cmoe_view_2d(g.sh, CMOE_F32, T, H - 1), CMOE_ERR_SHAPE,
        "shared: dims[1] = 4, want 5 [tokens = 3, hidden = 5]");
    RUN(g.shared = cmoe_view_2d(g.y, CMOE_F32, T, H), CMOE_ERR_ARG,
        "out overlaps shared in memory");
    RUN(g.out.dims[0] = 2, CMOE_ERR_SHAPE, "out: dims[0] = 2, want 3 [tokens = 3, hidden = 5]");
    RUN(g.out.dtype = CMOE_U8, CMOE_ERR_DTYPE, "out: dtype u8 (7)");
    RUN(g.out.strides[1] = 0, CMOE_ERR_SHAPE, "out: strides are negative or make elements share");
    RUN(g.out.data = NULL, CMOE_ERR_ARG, "out: data is NULL, want 60 bytes");
    RUN(g.x.data = g.y + 3, CMOE_ERR_ARG, "out overlaps x in memory");
    RUN(g.ids.data = g.y + 3, CMOE_ERR_ARG, "out overlaps topk_ids in memory");
    RUN(g.weights.data = g.y + 3, CMOE_ERR_ARG, "out overlaps topk_weights in memory");
    RUN(g.arena.bytes = 300, CMOE_ERR_MEMORY, "experts: arena has 300 bytes left, want ");
    RUN(g.arena.base = NULL, CMOE_ERR_MEMORY, "experts: arena has 0 bytes left, want ");
    /* 2^31 slots in one chunk, of tokens that are all the same one. */
    RUN((g.x.dims[0] = g.ids.dims[0] = g.weights.dims[0] = g.out.dims[0] = 2048, g.x.strides[0] = 0,
         g.ids.strides[0] = g.ids.strides[1] = 0, g.weights.strides[0] = g.weights.strides[1] = 0,
         g.ids.dims[1] = g.weights.dims[1] = 1 << 20, g.out.data = (void *)(uintptr_t)0x1000),
        CMOE_ERR_SHAPE,
        "tokens = 2048, topk = 1048576, want >= 0 and at most 2^31 - 1 slots a chunk");
    good g;
    good_open(&g);
    UNIT_FAILS(
        cmoe_experts_run(g.e.stream, g.p, g.x, g.ids, g.weights, g.shared, g.out, NULL, &err),
        CMOE_ERR_MEMORY, "experts: arena has 0 bytes left, want ");
    g.arena.used = -1;
    UNIT_FAILS(
        cmoe_experts_run(g.e.stream, g.p, g.x, g.ids, g.weights, g.shared, g.out, &g.arena, &err),
        CMOE_ERR_MEMORY, "experts: arena has ");
    g.arena.used = 0;
    untouched(&g, CMOE_ERR_MEMORY);
    good_close(&g);
}

static void bad_sizes(void **state)
{
    (void)state;
    good g;
    int64_t host = -5;
    good_open(&g);
    UNIT_FAILS(cmoe_experts_rows_bytes(NULL, 1, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "experts_rows_bytes: experts is NULL");
    UNIT_FAILS(cmoe_experts_rows_bytes(g.p, 1, 1, NULL, NULL, &err), CMOE_ERR_ARG,
               "experts_rows_bytes: host is NULL");
    UNIT_FAILS(cmoe_experts_rows_bytes(g.p, -1, 1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = -1, rows = 1, want 0 to 2^31 - 1");
    UNIT_FAILS(cmoe_experts_rows_bytes(g.p, 1, -1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = 1, rows = -1, want 0 to 2^31 - 1");
    UNIT_FAILS(cmoe_experts_rows_bytes(g.p, 1, (int64_t)1 << 31, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = 1, rows = 2147483648, want 0 to 2^31 - 1");
    UNIT_FAILS(cmoe_experts_bytes(NULL, 1, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "experts_bytes: experts is NULL");
    UNIT_FAILS(cmoe_experts_bytes(g.p, 1, 1, NULL, NULL, &err), CMOE_ERR_ARG,
               "experts_bytes: host is NULL");
    UNIT_FAILS(cmoe_experts_bytes(g.p, -1, 1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = -1, topk = 1, want >= 0 and at most 2^31 - 1 slots a chunk");
    UNIT_FAILS(cmoe_experts_bytes(g.p, 1, -1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = 1, topk = -1, want");
    UNIT_FAILS(cmoe_experts_bytes(g.p, INT64_MAX, 2, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = 9223372036854775807, topk = 2, want");
    assert_int_equal(host, -5);
    /* Many tokens need no more than one chunk of them. */
    int64_t chunk = 0, more = 0;
    UNIT_OK(cmoe_experts_bytes(g.p, 2048, 2, &chunk, NULL, &err));
    UNIT_OK(cmoe_experts_bytes(g.p, (int64_t)1 << 61, 2, &more, NULL, &err));
    assert_int_equal(chunk, more);
    good_close(&g);
}

/* Scratch beyond int64, by experts that borrow rows nobody could store. */
static void scratch_beyond_int64(void **state)
{
    static float one[1];
    (void)state;
    unit_env e = unit_open(1);
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.borrow = 1;
    o.chunk = (int64_t)1 << 40;
    const int64_t wide = (int64_t)1 << 50;
    cmoe_view w13 = cmoe_view_3d(one, CMOE_F32, 1, 2, wide),
              w2 = cmoe_view_3d(one, CMOE_F32, 1, wide, 1);
    for (int i = 0; i < 3; i++)
        w13.strides[i] = w2.strides[i] = 0;
    cmoe_experts *p = NULL;
    int64_t host = -5;
    UNIT_OK(cmoe_experts_create(&p, e.ctx, &o, w13, w2, cmoe_view_none(), cmoe_view_none(), &err));
    UNIT_FAILS(cmoe_experts_rows_bytes(p, 1, 1 << 30, &host, NULL, &err), CMOE_ERR_SHAPE,
               "experts_rows: its scratch memory would exceed 2^63 - 1 bytes");
    UNIT_FAILS(cmoe_experts_bytes(p, 1 << 10, 2, &host, NULL, &err), CMOE_ERR_SHAPE,
               "experts_rows: its scratch memory would exceed 2^63 - 1 bytes");
    /* The rows of x just fit, those of the result do not any more. */
    UNIT_FAILS(cmoe_experts_bytes(p, 600, 2, &host, NULL, &err), CMOE_ERR_SHAPE,
               "experts: scratch of 600 x 2 slots exceeds 2^63 - 1");
    assert_int_equal(host, -5);
    cmoe_experts_free(p);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_options),
        cmocka_unit_test(bad_weights),
        cmocka_unit_test(bad_description),
        cmocka_unit_test(bad_rows),
        cmocka_unit_test(bad_runs),
        cmocka_unit_test(bad_sizes),
        cmocka_unit_test(scratch_beyond_int64),
    };
    return UNIT_RUN("unit_experts_errors", tests);
}
