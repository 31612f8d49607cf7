/* SPDX-License-Identifier: MIT
 *
 * elementwise.c - embedding, scaled_add and clip: checks and the tables of kernels.
 */
#include "ops/elementwise.h"

#include <inttypes.h>

#include "ops/ops.h"

#define ROW(op, isa) \
    void cmoei_##op##_##isa(const cmoei_elementwise_args *a, int64_t row, int64_t row_end)
#if CMOE_HAVE_AVX512
ROW(scaled_add, avx512);
ROW(clip, avx512);
#define AVX512(op) {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_##op##_avx512},
#else
#define AVX512(op)
#endif
#if CMOE_HAVE_AVX2
ROW(scaled_add, avx2);
ROW(clip, avx2);
#define AVX2(op) {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_##op##_avx2},
#else
#define AVX2(op)
#endif
ROW(scaled_add, ref);
ROW(clip, ref);
#define REF(op)                         \
    {                                   \
        {"ref", 0, 0}, cmoei_##op##_ref \
    }

#define TABLE(op)                                                                         \
    static const cmoei_elementwise_kernel op##_kernels[] = {AVX512(op) AVX2(op) REF(op)}; \
    const cmoei_table cmoei_##op##_table = CMOEI_TABLE(#op, op##_kernels);

TABLE(scaled_add)
TABLE(clip)

cmoe_status cmoei_check_finite_scale(float scale, cmoe_error *err)
{
    if (scale - scale == 0) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "scale = %g, want a finite number", (double)scale);
}

/* ---- scaled_add and clip --------------------------------------------------------------------- */

typedef struct bound {
    cmoei_elementwise_args args;
    const cmoei_elementwise_kernel *kernel;
} bound;

static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    b->kernel->run(&b->args, row, row_end);
}

static void run(cmoe_ctx *ctx, const cmoei_table *table, int64_t rows,
                const cmoei_elementwise_args *a)
{
    const bound b = {*a, cmoei_table_pick(table, ctx->features, 0)};
    if (rows == 0 || a->cols == 0) return;
    cmoei_rows_run(ctx, rows, 2.0 * (double)rows * (double)a->cols, run_rows, &b);
}

cmoe_status cmoe_scaled_add(cmoe_stream *s, cmoe_view x, cmoe_view y, float scale,
                            cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_finite_scale(scale, err));
    CMOEI_TRY(cmoei_check_matrix(&y, "y", -1, -1, "hidden", err));
    const int64_t rows = y.dims[0], cols = y.dims[1];
    if (cmoei_given(&x)) CMOEI_TRY(cmoei_check_matrix(&x, "x", rows, cols, "hidden", err));
    CMOEI_TRY(cmoei_check_matrix_out(&out, "out", rows, cols, "hidden", err));
    if (cmoei_given(&x)) {
        CMOEI_TRY(cmoei_check_in_place(&out, "out", &x, "x", err));
        CMOEI_TRY(cmoei_check_apart(&out, "out", &y, "y", err));
    } else {
        CMOEI_TRY(cmoei_check_in_place(&out, "out", &y, "y", err));
    }
    const cmoei_elementwise_args args = {.x = cmoei_plane_of(&x),
                                         .y = cmoei_plane_of(&y),
                                         .out = cmoei_plane_mut(&out),
                                         .cols = cols,
                                         .scale = scale};
    run(s->ctx, &cmoei_scaled_add_table, rows, &args);
    return CMOE_OK;
}

cmoe_status cmoe_clip(cmoe_stream *s, cmoe_view x, float limit, cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!(limit >= 0))
        return cmoei_fail(err, CMOE_ERR_RANGE, "limit = %g, want >= 0", (double)limit);
    CMOEI_TRY(cmoei_check_matrix(&x, "x", -1, -1, "hidden", err));
    const int64_t rows = x.dims[0], cols = x.dims[1];
    CMOEI_TRY(cmoei_check_matrix_out(&out, "out", rows, cols, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(&out, "out", &x, "x", err));
    const cmoei_elementwise_args args = {
        .x = cmoei_plane_of(&x), .out = cmoei_plane_mut(&out), .cols = cols, .scale = limit};
    run(s->ctx, &cmoei_clip_table, rows, &args);
    return CMOE_OK;
}

/* ---- embedding ------------------------------------------------------------------------------- */

typedef struct embedding_job {
    cmoe_view ids;
    cmoei_elementwise_args args; /* y is the table */
    const cmoei_elementwise_kernel *kernel;
} embedding_job;

static void embedding_rows(const void *arg, int64_t row, int64_t row_end)
{
    const embedding_job *j = arg;
    for (; row < row_end; row++) {
        const int64_t id = cmoei_load_index(cmoei_at(&j->ids, row, 0), j->ids.dtype);
        cmoei_elementwise_args a = j->args;
        a.y.data += id * a.y.step;
        a.out.data += row * a.out.step;
        j->kernel->run(&a, 0, 1);
    }
}

cmoe_status cmoei_check_token_ids(const cmoe_view *ids, int64_t vocab, cmoe_error *err)
{
    for (int64_t t = 0; t < ids->dims[0]; t++) {
        const int64_t id = cmoei_load_index(cmoei_at(ids, t, 0), ids->dtype);
        if (id < 0 || id >= vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %" PRId64 ", want 0 <= id < %" PRId64 " (vocab)",
                              cmoei_name(ids->name, "ids"), t, id, vocab);
    }
    return CMOE_OK;
}

static cmoe_status check_embedding(const cmoe_view *ids, const cmoe_view *table,
                                   const cmoe_view_mut *out, cmoe_error *err)
{
    const cmoei_want want_ids = {
        .name = "ids", .dtypes = CMOEI_INDEX, .rank = 1, .dims = {-1}, .dim_names = {"tokens"}};
    const cmoei_want want_table = {.name = "table",
                                   .dtypes = CMOEI_FLOATS,
                                   .rank = 2,
                                   .dims = {-1, -1},
                                   .dim_names = {"vocab", "hidden"}};
    CMOEI_TRY(cmoei_check_in(ids, &want_ids, err));
    CMOEI_TRY(cmoei_check_in(table, &want_table, err));
    const cmoei_want want_out = {.name = "out",
                                 .dtypes = CMOEI_FLOATS,
                                 .rank = 2,
                                 .dims = {ids->dims[0], table->dims[1]},
                                 .dim_names = {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_out(out, &want_out, err));
    CMOEI_TRY(cmoei_check_apart(out, "out", ids, "ids", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", table, "table", err));
    return cmoei_check_token_ids(ids, table->dims[0], err);
}

cmoe_status cmoe_embedding(cmoe_stream *s, cmoe_view ids, cmoe_view table, float scale,
                           cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_finite_scale(scale, err));
    CMOEI_TRY(check_embedding(&ids, &table, &out, err));
    const int64_t tokens = ids.dims[0], hidden = table.dims[1];
    if (tokens == 0 || hidden == 0) return CMOE_OK;
    const embedding_job j = {.ids = ids,
                             .args = {.y = cmoei_plane_of(&table),
                                      .out = cmoei_plane_mut(&out),
                                      .cols = hidden,
                                      .scale = scale},
                             .kernel =
                                 cmoei_table_pick(&cmoei_scaled_add_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, tokens, 2.0 * (double)tokens * (double)hidden, embedding_rows, &j);
    return CMOE_OK;
}
