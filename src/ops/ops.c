/* SPDX-License-Identifier: MIT
 *
 * ops.c - what the small operations share.
 */
#include "ops/ops.h"

static cmoei_want matrix(const char *name, int64_t n, int64_t m, const char *m_name)
{
    return (cmoei_want){.name = name,
                        .dtypes = CMOEI_FLOATS,
                        .rank = 2,
                        .dims = {n, m},
                        .dim_names = {"rows", m_name}};
}

cmoe_status cmoei_check_matrix(const cmoe_view *v, const char *name, int64_t n, int64_t m,
                               const char *m_name, cmoe_error *err)
{
    const cmoei_want want = matrix(name, n, m, m_name);
    return cmoei_check_in(v, &want, err);
}

cmoe_status cmoei_check_matrix_out(const cmoe_view_mut *v, const char *name, int64_t n, int64_t m,
                                   const char *m_name, cmoe_error *err)
{
    const cmoei_want want = matrix(name, n, m, m_name);
    return cmoei_check_out(v, &want, err);
}

cmoe_status cmoei_check_in_place(const cmoe_view_mut *out, const char *out_name,
                                 const cmoe_view *in, const char *in_name, cmoe_error *err)
{
    bool same = out->data == in->data && out->dtype == in->dtype && out->rank == in->rank;
    for (int32_t i = 0; same && i < out->rank; i++)
        same = out->dims[i] == in->dims[i] && out->strides[i] == in->strides[i];
    return same ? CMOE_OK : cmoei_check_apart(out, out_name, in, in_name, err);
}

enum { TASK_COST = 1 << 16 }; /* about 10 us, what waking a thread may cost */

typedef struct job {
    int64_t rows;
    cmoei_rows_fn run;
    const void *args;
} job;

static void rows_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    int64_t row, end;
    (void)team;
    cmoei_split(j->rows, index, count, &row, &end);
    if (row < end) j->run(j->args, row, end);
}

void cmoei_rows_run(cmoe_ctx *ctx, int64_t rows, double cost, cmoei_rows_fn run, const void *args)
{
    job j = {rows, run, args};
    const double tasks = CMOEI_MIN(cost / TASK_COST, (double)ctx->threads);
    cmoei_region(ctx, CMOEI_MIN((int64_t)tasks, rows), rows_task, &j);
}
