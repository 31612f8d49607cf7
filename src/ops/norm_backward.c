/* SPDX-License-Identifier: MIT
 *
 * norm_backward.c - gradients of RMS norm and layer norm: checks, the table of kernels, and their
 * order.
 *
 * Two numbers of every row (four for layer norm) are needed by everything, so they come first; then
 * dweight and dbias, whose threads share the columns and read dout; then dx, whose threads share the
 * rows and which may overwrite dout.  Without weight gradients each task does its rows a few at a
 * time, and the numbers of these stay on its stack.
 */
#include "ops/norm_backward.h"

#include <inttypes.h>

#include "ops/norm.h"
#include "ops/ops.h"

#define ROWS(isa)                                                                                \
    void cmoei_norm_stats_##isa(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end, \
                                void *stats);                                                    \
    void cmoei_norm_dx_##isa(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,    \
                             const void *stats)
#if CMOE_HAVE_AVX512
ROWS(avx512);
#endif
#if CMOE_HAVE_AVX2
ROWS(avx2);
#endif
ROWS(ref);

static const cmoei_norm_backward_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_norm_stats_avx512, cmoei_norm_dx_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_norm_stats_avx2, cmoei_norm_dx_avx2},
#endif
    {{"ref", 0, 0}, cmoei_norm_stats_ref, cmoei_norm_dx_ref},
};
const cmoei_table cmoei_norm_backward_table = CMOEI_TABLE("norm_backward", kernels);

enum { TASK_COST = 1 << 16, CHUNK = 32 };

/* One call, whichever norm; dbias only of layer norm. */
typedef struct call {
    const char *name;
    cmoe_view x, weight, dout, residual;
    cmoe_view_mut dx, dweight, dbias;
    cmoe_arena *scratch;
    float eps, weight_offset;
    bool centred;
} call;

/* ---- checks ---------------------------------------------------------------------------------- */

/* x, or like x. */
static cmoei_want rows_want(const char *name, int32_t rank, const cmoe_view *like)
{
    cmoei_want w = {
        .name = name, .rank = rank, .dims = {-1, -1, -1}, .dim_names = {"rows", "heads", "hidden"}};
    if (rank == 2) w.dim_names[1] = "hidden";
    for (int32_t i = 0; like && i < rank; i++)
        w.dims[i] = like->dims[i];
    return w;
}

static cmoei_want hidden_want(const char *name, const cmoe_view *x)
{
    return (cmoei_want){
        .name = name, .rank = 1, .dims = {x->dims[x->rank - 1]}, .dim_names = {"hidden"}};
}

static cmoe_status check_inputs(const call *c, cmoe_error *err)
{
    const bool heads = !c->centred && c->x.rank == 3;
    const cmoei_want any = rows_want("x", heads ? 3 : 2, NULL);
    CMOEI_TRY(cmoei_check_rows(&c->x, &any, err));
    const cmoei_want weight = hidden_want("weight", &c->x);
    const cmoei_want dout = rows_want("dout", c->x.rank, &c->x);
    const cmoei_want residual = rows_want("residual", c->x.rank, &c->x);
    if (cmoei_given(&c->weight)) CMOEI_TRY(cmoei_check_rows(&c->weight, &weight, err));
    CMOEI_TRY(cmoei_check_rows(&c->dout, &dout, err));
    return cmoei_given(&c->residual) ? cmoei_check_rows(&c->residual, &residual, err) : CMOE_OK;
}

/* A weight's gradient shares no address with anything; views that are not given have none. */
static cmoe_status check_sum(const call *c, const cmoe_view_mut *out, const char *name,
                             cmoe_error *err)
{
    const cmoei_want want = hidden_want(name, &c->x);
    const cmoe_view dx = cmoe_view_of(c->dx);
    if (!out->dtype && !out->data) return CMOE_OK;
    CMOEI_TRY(cmoei_check_rows_out(out, &want, err));
    CMOEI_TRY(cmoei_check_apart(out, name, &c->x, "x", err));
    CMOEI_TRY(cmoei_check_apart(out, name, &c->weight, "weight", err));
    CMOEI_TRY(cmoei_check_apart(out, name, &c->dout, "dout", err));
    CMOEI_TRY(cmoei_check_apart(out, name, &c->residual, "residual", err));
    return cmoei_check_apart(out, name, &dx, "dx", err);
}

static cmoe_status check_outputs(const call *c, cmoe_error *err)
{
    const cmoei_want want = rows_want("dx", c->x.rank, &c->x);
    const cmoe_view dbias = cmoe_view_of(c->dbias);
    CMOEI_TRY(cmoei_check_rows_out(&c->dx, &want, err));
    CMOEI_TRY(cmoei_check_apart(&c->dx, "dx", &c->x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&c->dx, "dx", &c->weight, "weight", err));
    CMOEI_TRY(cmoei_check_in_place(&c->dx, "dx", &c->dout, "dout", err));
    CMOEI_TRY(cmoei_check_in_place(&c->dx, "dx", &c->residual, "residual", err));
    CMOEI_TRY(check_sum(c, &c->dweight, "dweight", err));
    CMOEI_TRY(check_sum(c, &c->dbias, "dbias", err));
    return cmoei_check_apart(&c->dweight, "dweight", &dbias, "dbias", err);
}

static cmoe_status check_scratch(const call *c, cmoe_error *err)
{
    const cmoe_view all[] = {c->x,
                             c->weight,
                             c->dout,
                             c->residual,
                             cmoe_view_of(c->dx),
                             cmoe_view_of(c->dweight),
                             cmoe_view_of(c->dbias)};
    static const char *const names[] = {"x",  "weight",  "dout", "residual",
                                        "dx", "dweight", "dbias"};
    for (int64_t i = 0; i < CMOEI_COUNT(all); i++) {
        if (cmoei_given(&all[i]))
            CMOEI_TRY(cmoei_check_scratch(c->scratch, &all[i], names[i], err));
    }
    return CMOE_OK;
}

/* ---- running --------------------------------------------------------------------------------- */

typedef struct job {
    cmoei_norm_backward_args args;
    cmoei_columns_args columns;
    const cmoei_norm_backward_kernel *kernel;
    const cmoei_columns_kernel *columns_kernel;
    cmoei_norm_stats *stats; /* [rows]; NULL: none are kept */
    int64_t rows, width;
    bool sums;
} job;

static void run_rows(const job *j, int64_t row, int64_t end)
{
    for (; row < end; row += CHUNK) {
        cmoei_norm_stats stats[CHUNK];
        const int64_t next = CMOEI_MIN(row + CHUNK, end);
        if (!j->stats) j->kernel->stats(&j->args, row, next, stats);
        j->kernel->dx(&j->args, row, next, j->stats ? j->stats + row : stats);
    }
}

static void task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    int64_t row, end;
    cmoei_split(j->rows, index, count, &row, &end);
    if (j->sums) {
        if (j->stats && row < end) j->kernel->stats(&j->args, row, end, j->stats + row);
        cmoei_barrier(team);
        cmoei_columns_task(&j->columns, j->columns_kernel, j->width, team);
        cmoei_barrier(team);
    }
    run_rows(j, row, end);
}

static cmoei_norm_stats *carve(cmoei_carver *c, int64_t rows)
{
    return cmoei_carve_array(c, rows, (int64_t)sizeof(cmoei_norm_stats));
}

static void bind(job *j, cmoe_ctx *ctx, const call *c, const cmoe_units *units)
{
    const cmoe_view dx = cmoe_view_of(c->dx);
    const int64_t hidden = c->x.dims[c->x.rank - 1];
    const int64_t heads = c->x.rank == 3 ? c->x.dims[1] : 1;
    j->args = (cmoei_norm_backward_args){.x = cmoei_heads_of(&c->x),
                                         .dout = cmoei_heads_of(&c->dout),
                                         .residual = cmoei_heads_of(&c->residual),
                                         .dx = cmoei_heads_of(&dx),
                                         .weight = cmoei_plane_of(&c->weight),
                                         .heads = heads,
                                         .hidden = hidden,
                                         .eps = c->eps,
                                         .weight_offset = c->weight_offset,
                                         .centred = c->centred};
    j->columns = (cmoei_columns_args){.dout = j->args.dout,
                                      .x = j->args.x,
                                      .stats = j->stats,
                                      .units = *units,
                                      .plain = cmoei_plane_mut(&c->dbias),
                                      .weighted = cmoei_plane_mut(&c->dweight),
                                      .heads = heads,
                                      .hidden = hidden};
    j->kernel = cmoei_table_pick(&cmoei_norm_backward_table, ctx->features, 0);
    j->columns_kernel = cmoei_table_pick(&cmoei_columns_table, ctx->features, 0);
    j->rows = c->x.dims[0] * heads;
    j->width = cmoei_columns_width(hidden, ctx->threads);
}

static cmoe_status backward(cmoe_stream *s, const call *c, const cmoe_units *units, cmoe_error *err)
{
    enum { COST = 12 };
    cmoe_units u;
    int64_t one[2];
    CMOEI_TRY(check_inputs(c, err));
    CMOEI_TRY(cmoei_units_check(units, c->x.dims[0], &u, one, err));
    CMOEI_TRY(check_outputs(c, err));
    const int64_t elements = cmoei_elements(&c->x), hidden = c->x.dims[c->x.rank - 1];
    job j = {.sums = c->dweight.data || c->dbias.data};
    if (hidden == 0) return CMOE_OK;
    if (c->dweight.data) {
        CMOEI_TRY(check_scratch(c, err));
        cmoei_carver carver = cmoei_carver_open(c->scratch);
        j.stats = carve(&carver, elements / hidden);
        CMOEI_TRY(cmoei_carver_check(&carver, c->name, err));
    }
    bind(&j, s->ctx, c, &u);
    const double tasks = COST * (double)elements / TASK_COST;
    cmoei_region(s->ctx, (int64_t)CMOEI_MIN(tasks, (double)s->ctx->threads), task, &j);
    return CMOE_OK;
}

/* ---- public ---------------------------------------------------------------------------------- */

static cmoe_status bytes(cmoe_ctx *ctx, const char *name, int64_t rows, int64_t hidden,
                         int64_t *host, int64_t *device, cmoe_error *err)
{
    if (!ctx) return cmoei_fail(err, CMOE_ERR_ARG, "%s: ctx is NULL, want a context", name);
    if (rows < 0 || hidden < 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: rows = %" PRId64 ", hidden = %" PRId64 ", want both >= 0", name,
                          rows, hidden);
    cmoei_carver c = cmoei_carver_dry();
    carve(&c, rows);
    CMOEI_TRY(cmoei_carver_check(&c, name, err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

cmoe_status cmoe_rms_norm_backward_bytes(cmoe_ctx *ctx, int64_t rows, int64_t hidden, int64_t *host,
                                         int64_t *device, cmoe_error *err)
{
    return bytes(ctx, "rms_norm_backward", rows, hidden, host, device, err);
}

cmoe_status cmoe_rms_norm_backward(cmoe_stream *s, const cmoe_rms_norm_options *options,
                                   cmoe_view x, cmoe_view weight, cmoe_view dout,
                                   cmoe_view residual, const cmoe_units *units, cmoe_view_mut dx,
                                   cmoe_view_mut dweight, cmoe_arena *scratch, cmoe_error *err)
{
    cmoe_rms_norm_options o;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_rms_norm_options(&o, options, err));
    const call c = {.name = "rms_norm_backward",
                    .x = x,
                    .weight = weight,
                    .dout = dout,
                    .residual = residual,
                    .dx = dx,
                    .dweight = dweight,
                    .scratch = scratch,
                    .eps = o.eps,
                    .weight_offset = o.weight_offset};
    return backward(s, &c, units, err);
}

cmoe_status cmoe_layer_norm_backward_bytes(cmoe_ctx *ctx, int64_t rows, int64_t hidden,
                                           int64_t *host, int64_t *device, cmoe_error *err)
{
    return bytes(ctx, "layer_norm_backward", rows, hidden, host, device, err);
}

cmoe_status cmoe_layer_norm_backward(cmoe_stream *s, float eps, cmoe_view x, cmoe_view weight,
                                     cmoe_view dout, cmoe_view residual, const cmoe_units *units,
                                     cmoe_view_mut dx, cmoe_view_mut dweight, cmoe_view_mut dbias,
                                     cmoe_arena *scratch, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!(eps >= 0) || eps - eps != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "eps = %g, want a finite number >= 0", (double)eps);
    const call c = {.name = "layer_norm_backward",
                    .x = x,
                    .weight = weight,
                    .dout = dout,
                    .residual = residual,
                    .dx = dx,
                    .dweight = dweight,
                    .dbias = dbias,
                    .scratch = scratch,
                    .eps = eps,
                    .centred = true};
    return backward(s, &c, units, err);
}
