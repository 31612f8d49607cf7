/* SPDX-License-Identifier: MIT
 *
 * optimizer.c - steps of adamw, sgd and muon, learning rates, norms; and what they refuse.
 */
#include <float.h>
#include <math.h>

#include "unit.h"

#include "train/optimizer.h"

static unit_env env;

/* ---- the operations ---------------------------------------------------------------------------- */

enum { N = 12 };
static float g[N], p[N], m[N], v[N];

static void reset(void)
{
    for (int i = 0; i < N; i++) {
        g[i] = (float)(i - 5) * 0.25f;
        p[i] = 1 + (float)i;
        m[i] = v[i] = 0;
    }
}

static cmoe_view in(const float *x)
{
    return cmoe_view_2d(x, CMOE_F32, 3, 4);
}
static cmoe_view_mut out(float *x)
{
    return cmoe_view_mut_2d(x, CMOE_F32, 3, 4);
}

/* The first step of AdamW goes lr against the sign of the gradient, whatever its size. */
static void adamw_first(void **unused)
{
    cmoe_adamw_options o;
    (void)unused;
    reset();
    cmoe_adamw_options_default(&o, sizeof o);
    assert_true(o.lr == 1e-3 && o.beta1 == 0.9 && o.beta2 == 0.999 && o.eps == 1e-8 &&
                o.decay == 0 && o.scale == 1 && o.step == 1);
    o.lr = 0.125;
    o.eps = 0;
    g[5] = 1e-15f; /* its square is far from FLT_MIN */
    UNIT_OK(cmoe_adamw(env.stream, &o, in(g), out(p), out(m), out(v), &err));
    for (int i = 0; i < N; i++)
        assert_true(fabsf(p[i] - (1 + (float)i - (i < 5 ? -0.125f : 0.125f))) < 2e-6f);
}

static void adamw_nothing_moves(void **unused)
{
    (void)unused;
    reset();
    memset(g, 0, sizeof g);
    UNIT_OK(cmoe_adamw(env.stream, NULL, in(g), out(p), out(m), out(v), &err));
    for (int i = 0; i < N; i++)
        assert_true(p[i] == 1 + (float)i && m[i] == 0 && v[i] == 0);
}

static void adamw_decays(void **unused)
{
    cmoe_adamw_options o;
    (void)unused;
    reset();
    memset(g, 0, sizeof g);
    cmoe_adamw_options_default(&o, sizeof o);
    o.lr = 0.5;
    o.decay = 0.5;
    UNIT_OK(cmoe_adamw(env.stream, &o, in(g), out(p), out(m), out(v), &err));
    for (int i = 0; i < N; i++)
        assert_true(p[i] == 0.75f * (1 + (float)i));
}

static void sgd_formula(void **unused)
{
    cmoe_sgd_options o;
    (void)unused;
    reset();
    cmoe_sgd_options_default(&o, sizeof o);
    assert_true(o.lr == 1e-3 && o.momentum == 0 && o.decay == 0 && o.scale == 1 && o.step == 1);
    o.lr = 0.5;
    o.scale = 2;
    UNIT_OK(cmoe_sgd(env.stream, &o, in(g), out(p), cmoe_view_mut_none(), &err));
    for (int i = 0; i < N; i++)
        assert_true(p[i] == 1 + (float)i - g[i]);
    reset();
    memset(m, 0xff, sizeof m); /* is not read in the first step */
    o.scale = 1;
    o.momentum = 0.5;
    UNIT_OK(cmoe_sgd(env.stream, &o, in(g), out(p), out(m), &err));
    o.step = 2;
    UNIT_OK(cmoe_sgd(env.stream, &o, in(g), out(p), out(m), &err));
    for (int i = 0; i < N; i++) {
        assert_true(m[i] == 1.5f * g[i]);
        assert_true(p[i] == 1 + (float)i - 0.5f * g[i] - 0.75f * g[i]);
    }
}

#define ADAMW(o, g, p, m, v) cmoe_adamw(env.stream, o, g, p, m, v, &err)

static void adamw_refuses(void **unused)
{
    const struct {
        size_t at;
        double value;
        const char *text;
    } bad[] = {
        {offsetof(cmoe_adamw_options, lr), -1, "lr = -1, want 0 <= lr < 1e+30"},
        {offsetof(cmoe_adamw_options, lr), NAN, "lr = "},
        {offsetof(cmoe_adamw_options, beta1), 1, "beta1 = 1, want 0 <= beta1 < 1"},
        {offsetof(cmoe_adamw_options, beta2), 1, "beta2 = 1, want 0 <= beta2 < 1"},
        {offsetof(cmoe_adamw_options, eps), -1e-8, "eps = -1e-08, want 0 <= eps"},
        {offsetof(cmoe_adamw_options, decay), -1, "decay = -1, want"},
        {offsetof(cmoe_adamw_options, scale), INFINITY, "scale = inf, want"},
    };
    cmoe_adamw_options o;
    (void)unused;
    reset();
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cmoe_adamw_options_default(&o, sizeof o);
        memcpy((char *)&o + bad[i].at, &bad[i].value, sizeof bad[i].value);
        UNIT_FAILS(ADAMW(&o, in(g), out(p), out(m), out(v)), CMOE_ERR_RANGE, bad[i].text);
    }
    cmoe_adamw_options_default(&o, sizeof o);
    o.step = 0;
    UNIT_FAILS(ADAMW(&o, in(g), out(p), out(m), out(v)), CMOE_ERR_RANGE,
               "step = 0, want at least 1");
    UNIT_FAILS(cmoe_adamw(NULL, NULL, in(g), out(p), out(m), out(v), &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(ADAMW(NULL, cmoe_view_2d(g, CMOE_BF16, 3, 4), out(p), out(m), out(v)),
               CMOE_ERR_DTYPE, "gradient");
    UNIT_FAILS(ADAMW(NULL, in(g), cmoe_view_mut_2d(p, CMOE_F32, 4, 3), out(m), out(v)),
               CMOE_ERR_SHAPE, "value");
    UNIT_FAILS(ADAMW(NULL, in(g), out(p), cmoe_view_mut_1d(m, CMOE_F32, N), out(v)), CMOE_ERR_SHAPE,
               "m: rank 1, want 2 [d0 = 3, d1 = 4]");
    UNIT_FAILS(ADAMW(NULL, in(g), out(p), out(m), cmoe_view_mut_none()), CMOE_ERR_ARG,
               "v is not given");
    UNIT_FAILS(ADAMW(NULL, in(g), out(g), out(m), out(v)), CMOE_ERR_ARG, "value overlaps gradient");
    UNIT_FAILS(ADAMW(NULL, in(g), out(p), out(p), out(v)), CMOE_ERR_ARG, "value overlaps m");
    UNIT_FAILS(ADAMW(NULL, in(g), out(p), out(m), out(p)), CMOE_ERR_ARG, "value overlaps v");
    UNIT_FAILS(ADAMW(NULL, in(g), out(p), out(m), out(m)), CMOE_ERR_ARG, "m overlaps v");
    cmoe_view_mut apart = cmoe_view_mut_2d(p, CMOE_F32, 3, 2);
    apart.strides[0] = 4;
    UNIT_FAILS(ADAMW(NULL, cmoe_view_2d(g, CMOE_F32, 3, 2), apart,
                     cmoe_view_mut_2d(m, CMOE_F32, 3, 2), cmoe_view_mut_2d(v, CMOE_F32, 3, 2)),
               CMOE_ERR_SHAPE, "value: strides[0] = 4, want 2 (contiguous)");
    for (int i = 0; i < N; i++)
        assert_true(p[i] == 1 + (float)i && m[i] == 0 && v[i] == 0);
}

static void sgd_refuses(void **unused)
{
    cmoe_sgd_options o;
    (void)unused;
    reset();
    cmoe_sgd_options_default(&o, sizeof o);
    UNIT_FAILS(cmoe_sgd(env.stream, &o, in(g), out(p), out(m), &err), CMOE_ERR_ARG,
               "m is given with momentum 0, want none");
    o.momentum = 1;
    UNIT_FAILS(cmoe_sgd(env.stream, &o, in(g), out(p), out(m), &err), CMOE_ERR_RANGE,
               "momentum = 1, want 0 <= momentum < 1");
    o.momentum = 0.5;
    UNIT_FAILS(cmoe_sgd(env.stream, &o, in(g), out(p), cmoe_view_mut_none(), &err), CMOE_ERR_ARG,
               "m is not given");
    UNIT_FAILS(cmoe_sgd(env.stream, &o, in(g), out(p), out(p), &err), CMOE_ERR_ARG,
               "value overlaps m");
    o.step = -1;
    UNIT_FAILS(cmoe_sgd(env.stream, &o, in(g), out(p), out(m), &err), CMOE_ERR_RANGE, "step = -1");
}

static void squares(void **unused)
{
    enum { MANY = 5 * 1024 * 1024 + 77 }; /* more than one round of blocks */
    double sum = -1, again;
    (void)unused;
    UNIT_OK(cmoe_sum_squares(env.stream, cmoe_view_1d(NULL, CMOE_F32, 0), &sum, &err));
    assert_true(sum == 0);
    reset();
    UNIT_OK(cmoe_sum_squares(env.stream, in(g), &sum, &err));
    assert_true(sum == (25 + 16 + 9 + 4 + 1 + 1 + 4 + 9 + 16 + 25 + 36) / 16.0);
    UNIT_FAILS(cmoe_sum_squares(env.stream, in(g), NULL, &err), CMOE_ERR_ARG, "sum is NULL");
    UNIT_FAILS(cmoe_sum_squares(env.stream, cmoe_view_1d(g, CMOE_F16, N), &sum, &err),
               CMOE_ERR_DTYPE, "x: dtype f16");
    float *x = malloc(MANY * sizeof *x);
    for (int64_t i = 0; i < MANY; i++)
        x[i] = cmoe_random_normal(1, (uint64_t)i, 0);
    for (int32_t threads = 1; threads <= 3; threads++) {
        unit_env e = unit_open(threads);
        UNIT_OK(cmoe_sum_squares(e.stream, cmoe_view_1d(x, CMOE_F32, MANY), &again, &err));
        if (threads == 1) sum = again;
        assert_true(again == sum && fabs(sum / MANY - 1) < 0.01);
        unit_close(&e);
    }
    free(x);
}

/* ---- learning rates ---------------------------------------------------------------------------- */

static cmoe_train_options options(int32_t schedule)
{
    return (cmoe_train_options){
        .schedule = schedule, .steps = 100, .warmup = 10, .cooldown = 20, .lr = 1, .final_lr = 0.1};
}

static void near(double got, double want)
{
    if (!(fabs(got - want) < 1e-12)) fail_msg("%.17g, want %.17g", got, want);
}

static void schedules(void **unused)
{
    (void)unused;
    for (int32_t k = CMOE_SCHEDULE_CONSTANT; k <= CMOE_SCHEDULE_WSD; k++) {
        const cmoe_train_options o = options(k);
        near(cmoei_learning_rate(&o, 1), 0.1);
        near(cmoei_learning_rate(&o, 5), 0.5);
        near(cmoei_learning_rate(&o, 10), 1);
    }
    cmoe_train_options o = options(CMOE_SCHEDULE_CONSTANT);
    near(cmoei_learning_rate(&o, 11), 1);
    near(cmoei_learning_rate(&o, 100), 1);
    o = options(CMOE_SCHEDULE_COSINE);
    near(cmoei_learning_rate(&o, 55), 0.55);
    near(cmoei_learning_rate(&o, 40), 0.1 + 0.9 * 0.75);
    near(cmoei_learning_rate(&o, 100), 0.1);
    near(cmoei_learning_rate(&o, 1000), 0.1);
    o = options(CMOE_SCHEDULE_WSD);
    near(cmoei_learning_rate(&o, 80), 1);
    near(cmoei_learning_rate(&o, 81), 0.955);
    near(cmoei_learning_rate(&o, 90), 0.55);
    near(cmoei_learning_rate(&o, 100), 0.1);
}

/* Nothing divides by an empty warm-up, a training that is all warm-up, or one step. */
static void schedule_edges(void **unused)
{
    (void)unused;
    for (int32_t k = CMOE_SCHEDULE_CONSTANT; k <= CMOE_SCHEDULE_WSD; k++) {
        cmoe_train_options o = options(k);
        o.warmup = o.cooldown = 0;
        o.steps = 1;
        near(cmoei_learning_rate(&o, 1), k == CMOE_SCHEDULE_COSINE ? 0.1 : 1);
        o.steps = o.warmup = 4;
        near(cmoei_learning_rate(&o, 4), 1);
        o.warmup = 0;
        o.cooldown = 4;
        near(cmoei_learning_rate(&o, 4), k == CMOE_SCHEDULE_CONSTANT ? 1 : 0.1);
    }
}

static void states(void **unused)
{
    cmoe_train_options o = {.optimizer = CMOE_OPTIMIZER_ADAMW};
    (void)unused;
    assert_int_equal(cmoei_optimizer_states(&o, false), 2);
    o.optimizer = CMOE_OPTIMIZER_SGD;
    assert_int_equal(cmoei_optimizer_states(&o, false), 0);
    o.momentum = 0.9;
    assert_int_equal(cmoei_optimizer_states(&o, false), 1);
    o.optimizer = CMOE_OPTIMIZER_MUON;
    assert_int_equal(cmoei_optimizer_states(&o, false), 2);
    assert_int_equal(cmoei_optimizer_states(&o, true), 1);
}

/* ---- whole steps ------------------------------------------------------------------------------- */

typedef struct tensors {
    cmoei_trained t[5];
    float *memory[5][4];
} tensors;

static void make_tensors(tensors *x)
{
    static const int64_t shapes[5][2] = {{130, 70}, {64, 200}, {33, 33}, {1, 300}, {5, 0}};
    for (int i = 0; i < 5; i++) {
        const int64_t n = shapes[i][0] * shapes[i][1];
        for (int k = 0; k < 4; k++) {
            x->memory[i][k] = calloc((size_t)(n > 0 ? n : 1), sizeof(float));
            for (int64_t j = 0; j < n && k < 2; j++)
                x->memory[i][k][j] = cmoe_random_normal((uint64_t)i, (uint64_t)j, (uint64_t)k);
        }
        x->t[i] = (cmoei_trained){
            "x",          x->memory[i][0], x->memory[i][1], x->memory[i][2], x->memory[i][3],
            shapes[i][0], shapes[i][1],    i < 3,           i < 3 || i == 4};
    }
}

static void free_tensors(tensors *x)
{
    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < 4; k++)
            free(x->memory[i][k]);
    }
}

static int64_t allocations;

static void *counted(void *user, size_t bytes, size_t align)
{
    (void)user;
    allocations++;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void give(void *user, void *ptr, size_t bytes)
{
    (void)user, (void)bytes;
    free(ptr);
}

/* Any number of threads gives the same bits, and a step takes no memory. */
static void steps(void **unused)
{
    static tensors x[3];
    double first = 0;
    (void)unused;
    for (int k = 0; k < 3; k++) {
        cmoe_train_options o = {.optimizer = CMOE_OPTIMIZER_MUON,
                                .steps = 3,
                                .lr = 0.1,
                                .beta1 = 0.9,
                                .beta2 = 0.9,
                                .momentum = 0.9,
                                .weight_decay = 0.1};
        cmoe_ctx_options c;
        cmoe_ctx *ctx;
        cmoe_stream *s;
        cmoei_optimizer *optimizer;
        double norm;
        make_tensors(&x[k]);
        cmoe_ctx_options_default(&c, sizeof c);
        c.threads = k + 1;
        c.allocator = (cmoe_allocator){NULL, counted, give};
        UNIT_OK(cmoe_ctx_create(&ctx, &c, &err));
        UNIT_OK(cmoe_stream_create(&s, ctx, &err));
        UNIT_OK(cmoei_optimizer_create(&optimizer, ctx, &o, x[k].t, 5, &err));
        const int64_t before = allocations;
        for (int64_t step = 1; step <= 3; step++) {
            UNIT_OK(cmoei_gradient_norm(s, x[k].t, 5, &norm, &err));
            UNIT_OK(cmoei_optimizer_step(optimizer, s, x[k].t, 5, step, 0.5, &err));
        }
        assert_int_equal(allocations, before);
        if (k == 0) first = norm;
        assert_true(norm == first);
        UNIT_FAILS(cmoei_optimizer_step(optimizer, s, x[k].t, 5, 0, 1, &err), CMOE_ERR_RANGE,
                   "step = 0, want at least 1");
        cmoei_optimizer_free(optimizer);
        cmoe_stream_free(s);
        cmoe_ctx_free(ctx);
        for (int i = 0; i < 4; i++) {
            const size_t bytes = (size_t)(x[k].t[i].rows * x[k].t[i].cols) * sizeof(float);
            for (int j = 0; j < 4; j++)
                assert_memory_equal(x[k].memory[i][j], x[0].memory[i][j], bytes);
        }
    }
    for (int k = 0; k < 3; k++)
        free_tensors(&x[k]);
    cmoei_optimizer_free(NULL);
}

/* What Muon subtracts has singular values near 1 in every direction: |d|^2 is about their number, and
 * d d^T is about the identity.  Of the gradient neither is true. */
static void orthogonal(void **unused)
{
    enum { ROWS = 24, COLS = 60 };
    static float value[ROWS * COLS], gradient[ROWS * COLS], momentum[ROWS * COLS];
    (void)unused;
    for (int i = 0; i < ROWS * COLS; i++)
        gradient[i] = cmoe_random_normal(3, (uint64_t)i, 0) + 1;
    const cmoei_trained t = {"x", value, gradient, momentum, NULL, ROWS, COLS, true, true};
    const cmoe_train_options o = {
        .optimizer = CMOE_OPTIMIZER_MUON, .steps = 1, .lr = 1, .momentum = 0.95};
    cmoei_optimizer *x;
    UNIT_OK(cmoei_optimizer_create(&x, env.ctx, &o, &t, 1, &err));
    UNIT_OK(cmoei_optimizer_step(x, env.stream, &t, 1, 1, 1, &err));
    cmoei_optimizer_free(x);
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < ROWS; j++) {
            double dot = 0;
            for (int k = 0; k < COLS; k++)
                dot += (double)value[i * COLS + k] * value[j * COLS + k];
            if (!(i == j ? dot > 0.45 && dot < 1.5 : fabs(dot) < 0.55))
                fail_msg("[%d, %d] = %g", i, j, dot);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_first),    cmocka_unit_test(adamw_nothing_moves),
        cmocka_unit_test(adamw_decays),   cmocka_unit_test(sgd_formula),
        cmocka_unit_test(adamw_refuses),  cmocka_unit_test(sgd_refuses),
        cmocka_unit_test(squares),        cmocka_unit_test(schedules),
        cmocka_unit_test(schedule_edges), cmocka_unit_test(states),
        cmocka_unit_test(steps),          cmocka_unit_test(orthogonal),
    };
    env = unit_open(2);
    const int failed = UNIT_RUN("unit_optimizer", tests);
    unit_close(&env);
    return failed;
}
