/* SPDX-License-Identifier: MIT
 *
 * columns.c - sums of the columns of a matrix: the table of kernels, and columns over threads.
 *
 * One chain a column cannot be cut, so threads share the columns, not the rows.
 */
#include "ops/columns.h"

#define ROW(isa) \
    void cmoei_columns_##isa(const cmoei_columns_args *a, int64_t column, int64_t column_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_columns_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_columns_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_columns_avx2},
#endif
    {{"ref", 0, 0}, cmoei_columns_ref},
};
const cmoei_table cmoei_columns_table = CMOEI_TABLE("column_sums", kernels);

enum { WIDE = 128, NARROW = 32, TASK_COST = 1 << 16 };

int64_t cmoei_columns_width(int64_t hidden, int64_t threads)
{
    const int64_t share = cmoei_round_up(cmoei_ceil_div(hidden, threads), NARROW);
    return CMOEI_MAX(CMOEI_MIN(share, (int64_t)WIDE), (int64_t)NARROW);
}

void cmoei_columns_task(const cmoei_columns_args *a, const cmoei_columns_kernel *kernel,
                        int64_t width, cmoei_team *team)
{
    const int64_t blocks = cmoei_ceil_div(a->hidden, width);
    for (int64_t b; (b = cmoei_next(team, 1)) < blocks;)
        kernel->run(a, b * width, CMOEI_MIN((b + 1) * width, a->hidden));
}

typedef struct job {
    cmoei_columns_args args;
    const cmoei_columns_kernel *kernel;
    int64_t width;
} job;

static void task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    (void)index;
    (void)count;
    cmoei_columns_task(&j->args, j->kernel, j->width, team);
}

void cmoei_column_sums(cmoe_ctx *ctx, const cmoe_view *x, const cmoe_units *units,
                       const cmoe_view_mut *out)
{
    const int64_t hidden = x->dims[1];
    job j = {.args = {.dout = cmoei_heads_of(x),
                      .units = *units,
                      .plain = cmoei_plane_mut(out),
                      .heads = 1,
                      .hidden = hidden},
             .kernel = cmoei_table_pick(&cmoei_columns_table, ctx->features, 0),
             .width = cmoei_columns_width(hidden, ctx->threads)};
    const double tasks = (double)x->dims[0] * (double)hidden / TASK_COST;
    cmoei_region(ctx, (int64_t)CMOEI_MIN(tasks, (double)ctx->threads), task, &j);
}
