/* SPDX-License-Identifier: MIT
 *
 * optimizer.c - adamw, sgd and sum_squares: checks, constants and the tables of kernels.
 *
 * Bias corrections and products of options are made here, in double, once a call; kernels see float
 * constants, so an element costs what its memory costs.
 */
#include "ops/optimizer.h"

#include <inttypes.h>
#include <math.h>

#include "ops/ops.h"

#define ROW(op, isa, args) void cmoei_##op##_##isa(const args *a, int64_t begin, int64_t end)
#if CMOE_HAVE_AVX512
ROW(adamw, avx512, cmoei_optimizer_args);
ROW(sgd, avx512, cmoei_optimizer_args);
ROW(sum_squares, avx512, cmoei_squares_args);
#define AVX512(op) {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_##op##_avx512},
#else
#define AVX512(op)
#endif
#if CMOE_HAVE_AVX2
ROW(adamw, avx2, cmoei_optimizer_args);
ROW(sgd, avx2, cmoei_optimizer_args);
ROW(sum_squares, avx2, cmoei_squares_args);
#define AVX2(op) {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_##op##_avx2},
#else
#define AVX2(op)
#endif
ROW(adamw, ref, cmoei_optimizer_args);
ROW(sgd, ref, cmoei_optimizer_args);
ROW(sum_squares, ref, cmoei_squares_args);
#define REF(op)                         \
    {                                   \
        {"ref", 0, 0}, cmoei_##op##_ref \
    }

#define TABLE(op, row)                                               \
    static const row op##_kernels[] = {AVX512(op) AVX2(op) REF(op)}; \
    const cmoei_table cmoei_##op##_table = CMOEI_TABLE(#op, op##_kernels);

TABLE(adamw, cmoei_optimizer_kernel)
TABLE(sgd, cmoei_optimizer_kernel)
TABLE(sum_squares, cmoei_squares_kernel)

/* ---- checks ------------------------------------------------------------------------------------ */

static cmoei_want want_of(const char *name, int32_t rank, const int64_t *dims)
{
    static const char *const names[CMOE_MAX_RANK] = {"d0", "d1", "d2", "d3", "d4", "d5"};
    cmoei_want want = {.name = name, .dtypes = CMOEI_DTYPE(CMOE_F32), .rank = rank};
    for (int32_t i = 0; i < CMOE_MAX_RANK; i++) {
        want.dims[i] = dims && i < rank ? dims[i] : -1;
        want.dim_names[i] = names[i];
    }
    return want;
}

static cmoe_status check_contiguous(const cmoe_view *v, const char *name, cmoe_error *err)
{
    int64_t stride = 1;
    for (int32_t i = v->rank - 1; i >= 0; i--) {
        if (v->dims[i] == 0) return CMOE_OK;
        if (v->dims[i] > 1 && v->strides[i] != stride)
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "%s: strides[%d] = %" PRId64 ", want %" PRId64 " (contiguous)",
                              cmoei_name(v->name, name), i, v->strides[i], stride);
        stride *= v->dims[i];
    }
    return CMOE_OK;
}

/* Any shape. */
static cmoe_status check_input(const cmoe_view *v, const char *name, cmoe_error *err)
{
    if (v->rank < 0 || v->rank > CMOE_MAX_RANK)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s has rank %d, want 0 to %d",
                          cmoei_name(v->name, name), v->rank, CMOE_MAX_RANK);
    const cmoei_want want = want_of(name, v->rank, NULL);
    CMOEI_TRY(cmoei_check_in(v, &want, err));
    return check_contiguous(v, name, err);
}

/* The shape of the gradient, and apart from it. */
static cmoe_status check_moved(const cmoe_view_mut *v, const char *name, const cmoe_view *gradient,
                               cmoe_error *err)
{
    const cmoei_want want = want_of(name, gradient->rank, gradient->dims);
    const cmoe_view view = cmoe_view_of(*v);
    CMOEI_TRY(cmoei_check_out(v, &want, err));
    CMOEI_TRY(check_contiguous(&view, name, err));
    return cmoei_check_apart(v, name, gradient, "gradient", err);
}

typedef struct option {
    const char *name;
    double value, least, most; /* `most` itself is not accepted */
} option;

static cmoe_status check_options(const option *list, int64_t count, int64_t step, cmoe_error *err)
{
    for (int64_t i = 0; i < count; i++) {
        const option *o = &list[i];
        if (!(o->value >= o->least && o->value < o->most))
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %g, want %g <= %s < %g", o->name, o->value,
                              o->least, o->name, o->most);
    }
    if (step < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "step = %" PRId64 ", want at least 1", step);
    return CMOE_OK;
}

/* What a float constant can be made of. */
#define MOST 1e30

/* ---- adamw and sgd ----------------------------------------------------------------------------- */

static cmoei_plane row_of(const cmoe_view *v)
{
    return (cmoei_plane){.data = (char *)(uintptr_t)v->data, .col = 1, .dtype = v->dtype};
}

static cmoei_plane row_mut(const cmoe_view_mut *m)
{
    const cmoe_view v = cmoe_view_of(*m);
    return row_of(&v);
}

enum { BLOCK = 4096 }; /* elements that threads share by */

typedef struct job {
    cmoei_optimizer_args args;
    const cmoei_optimizer_kernel *kernel;
    int64_t n;
} job;

static void blocks(const void *arg, int64_t block, int64_t block_end)
{
    const job *j = arg;
    j->kernel->run(&j->args, block * BLOCK, CMOEI_MIN(block_end * BLOCK, j->n));
}

static void run(cmoe_ctx *ctx, const cmoei_table *table, const cmoe_view *gradient,
                const cmoei_optimizer_args *a)
{
    const job j = {*a, cmoei_table_pick(table, ctx->features, 0), cmoei_elements(gradient)};
    if (j.n > 0) cmoei_rows_run(ctx, cmoei_ceil_div(j.n, BLOCK), 4.0 * (double)j.n, blocks, &j);
}

static const cmoe_adamw_options adamw_defaults = {.size = sizeof adamw_defaults,
                                                  .lr = 1e-3,
                                                  .beta1 = 0.9,
                                                  .beta2 = 0.999,
                                                  .eps = 1e-8,
                                                  .scale = 1,
                                                  .step = 1};

void cmoe_adamw_options_default(cmoe_adamw_options *o, size_t size)
{
    cmoei_options_write(o, size, &adamw_defaults, sizeof adamw_defaults);
}

cmoe_status cmoe_adamw(cmoe_stream *s, const cmoe_adamw_options *options, cmoe_view gradient,
                       cmoe_view_mut value, cmoe_view_mut m, cmoe_view_mut v, cmoe_error *err)
{
    cmoe_adamw_options o = adamw_defaults;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_adamw_options", err));
    const option list[] = {{"lr", o.lr, 0, MOST},       {"beta1", o.beta1, 0, 1},
                           {"beta2", o.beta2, 0, 1},    {"eps", o.eps, 0, MOST},
                           {"decay", o.decay, 0, MOST}, {"scale", o.scale, -MOST, MOST}};
    CMOEI_TRY(check_options(list, CMOEI_COUNT(list), o.step, err));
    CMOEI_TRY(check_input(&gradient, "gradient", err));
    CMOEI_TRY(check_moved(&value, "value", &gradient, err));
    CMOEI_TRY(check_moved(&m, "m", &gradient, err));
    CMOEI_TRY(check_moved(&v, "v", &gradient, err));
    const cmoe_view first = cmoe_view_of(m), second = cmoe_view_of(v);
    CMOEI_TRY(cmoei_check_apart(&value, "value", &first, "m", err));
    CMOEI_TRY(cmoei_check_apart(&value, "value", &second, "v", err));
    CMOEI_TRY(cmoei_check_apart(&m, "m", &second, "v", err));
    const double step = (double)o.step;
    const uint64_t before = cmoei_float_enter();
    const cmoei_optimizer_args args = {.gradient = row_of(&gradient),
                                       .value = row_mut(&value),
                                       .m = row_mut(&m),
                                       .v = row_mut(&v),
                                       .scale = (float)o.scale,
                                       .keep = (float)(1 - o.lr * o.decay),
                                       .rate = (float)(o.lr / (1 - pow(o.beta1, step))),
                                       .mix1 = (float)(1 - o.beta1),
                                       .mix2 = (float)(1 - o.beta2),
                                       .beta2 = (float)o.beta2,
                                       .inverse = (float)(1 / sqrt(1 - pow(o.beta2, step))),
                                       .eps = (float)o.eps};
    run(s->ctx, &cmoei_adamw_table, &gradient, &args);
    cmoei_float_leave(before);
    return CMOE_OK;
}

static const cmoe_sgd_options sgd_defaults = {
    .size = sizeof sgd_defaults, .lr = 1e-3, .scale = 1, .step = 1};

void cmoe_sgd_options_default(cmoe_sgd_options *o, size_t size)
{
    cmoei_options_write(o, size, &sgd_defaults, sizeof sgd_defaults);
}

cmoe_status cmoe_sgd(cmoe_stream *s, const cmoe_sgd_options *options, cmoe_view gradient,
                     cmoe_view_mut value, cmoe_view_mut m, cmoe_error *err)
{
    cmoe_sgd_options o = sgd_defaults;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_sgd_options", err));
    const option list[] = {{"lr", o.lr, 0, MOST},
                           {"momentum", o.momentum, 0, 1},
                           {"decay", o.decay, 0, MOST},
                           {"scale", o.scale, -MOST, MOST}};
    const cmoe_view given = cmoe_view_of(m);
    CMOEI_TRY(check_options(list, CMOEI_COUNT(list), o.step, err));
    CMOEI_TRY(check_input(&gradient, "gradient", err));
    CMOEI_TRY(check_moved(&value, "value", &gradient, err));
    if (o.momentum > 0) {
        CMOEI_TRY(check_moved(&m, "m", &gradient, err));
        CMOEI_TRY(cmoei_check_apart(&value, "value", &given, "m", err));
    } else if (cmoei_given(&given)) {
        return cmoei_fail(err, CMOE_ERR_ARG, "m is given with momentum 0, want none");
    }
    const uint64_t before = cmoei_float_enter();
    const cmoei_optimizer_args args = {.gradient = row_of(&gradient),
                                       .value = row_mut(&value),
                                       .m = o.momentum > 0 ? row_mut(&m) : (cmoei_plane){0},
                                       .scale = (float)o.scale,
                                       .keep = (float)(1 - o.lr * o.decay),
                                       .rate = (float)o.lr,
                                       .momentum = o.step > 1 ? (float)o.momentum : 0};
    run(s->ctx, &cmoei_sgd_table, &gradient, &args);
    cmoei_float_leave(before);
    return CMOE_OK;
}

/* ---- sum of squares ---------------------------------------------------------------------------- */

enum { ROUND = 1024 }; /* blocks of a region, whose sums lie on the stack: 16 MiB of memory */

typedef struct squares {
    cmoei_squares_args args;
    const cmoei_squares_kernel *kernel;
} squares;

static void square_blocks(const void *arg, int64_t block, int64_t block_end)
{
    const squares *q = arg;
    q->kernel->run(&q->args, q->args.first + block, q->args.first + block_end);
}

cmoe_status cmoe_sum_squares(cmoe_stream *s, cmoe_view x, double *sum, cmoe_error *err)
{
    double part[ROUND], total = 0;
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!sum) return cmoei_fail(err, CMOE_ERR_ARG, "sum is NULL");
    CMOEI_TRY(check_input(&x, "x", err));
    squares q = {.args = {.x = x.data, .n = cmoei_elements(&x), .sum = part},
                 .kernel = cmoei_table_pick(&cmoei_sum_squares_table, s->ctx->features, 0)};
    const int64_t all = cmoei_ceil_div(q.args.n, CMOEI_SQUARES_BLOCK);
    const uint64_t before = cmoei_float_enter();
    for (; q.args.first < all; q.args.first += ROUND) {
        const int64_t n = CMOEI_MIN(all - q.args.first, (int64_t)ROUND);
        cmoei_rows_run(s->ctx, n, (double)n * CMOEI_SQUARES_BLOCK, square_blocks, &q);
        for (int64_t i = 0; i < n; i++)
            total += part[i];
    }
    cmoei_float_leave(before);
    *sum = total;
    return CMOE_OK;
}
