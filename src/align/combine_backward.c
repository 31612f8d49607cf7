/* SPDX-License-Identifier: MIT
 *
 * combine_backward.c - gradient of a combine: checks, the table of kernels, and the spreading over
 * threads.
 *
 * dout [T, H] -> drows [R, H] and dweights [T, K].  A gather like the forward: each row belongs to
 * one slot of one token, so tokens can be split at will.
 */
#include "align/combine_backward.h"

#include <inttypes.h>

#include "align/combine.h"
#include "core/units.h"

#define ROW(isa) \
    void cmoei_combine_back_##isa(const cmoei_combine_back_args *a, int64_t t, int64_t t_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_combine_back_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_combine_back_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_combine_back_avx2},
#endif
    {{"ref", 0, 0}, cmoei_combine_back_ref},
};
const cmoei_table cmoei_combine_back_table = CMOEI_TABLE("combine_backward", kernels);

/* ---- spreading ------------------------------------------------------------------------------- */

enum { TASK_TERMS = 1 << 16 }; /* products a task at least has: about 10 us from L2 */

typedef struct job {
    const cmoei_combine_back_args *args;
    cmoei_combine_back_fn run;
    int64_t tokens;
} job;

static void run(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    int64_t begin, end;
    (void)team;
    cmoei_split(j->tokens, index, count, &begin, &end);
    j->run(j->args, begin, end);
}

static void spread(cmoe_ctx *ctx, const cmoei_combine_back_args *a, int64_t tokens)
{
    const cmoei_combine_back_kernel *kernel =
        cmoei_table_pick(&cmoei_combine_back_table, ctx->features, 0);
    const double terms = 2 * (double)tokens * (double)a->hidden * (double)a->topk;
    const double tasks = CMOEI_MIN(terms / TASK_TERMS, (double)ctx->threads);
    job j = {a, kernel->run, tokens};
    cmoei_region(ctx, CMOEI_MIN((int64_t)tasks, tokens), run, &j);
}

/* ---- checks ---------------------------------------------------------------------------------- */

typedef struct call {
    const cmoe_groups *groups;
    cmoe_view rows, weights, dout;
    cmoe_view_mut drows, dweights;
    cmoe_view drows_in, dweights_in; /* the same, to look at */
} call;

static cmoei_want matrix(const char *name, int64_t n, const char *n_name, int64_t m,
                         const char *m_name)
{
    return (cmoei_want){.name = name, .rank = 2, .dims = {n, m}, .dim_names = {n_name, m_name}};
}

/* A row of two slots would be written twice, in any order. */
static cmoe_status check_slots(const cmoe_groups *g, cmoe_error *err)
{
    const int64_t slots = g->tokens * g->topk;
    for (int64_t i = 0; i < slots; i++) {
        const int32_t row = g->row_of[i];
        if (row < 0) continue;
        if (!g->slots || row >= g->capacity || g->slots[row] != i)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups: slots[%d] is not slot %" PRId64
                              ", want the one whose row_of is %d (those of an align)",
                              row, i, row);
    }
    return CMOE_OK;
}

static cmoe_status check_output(const call *c, const cmoe_view_mut *out, const cmoei_want *want,
                                cmoe_error *err)
{
    const cmoe_groups *g = c->groups;
    const cmoe_view row_of = cmoe_view_2d(g->row_of, CMOE_I32, g->tokens, g->topk);
    CMOEI_TRY(cmoei_check_rows_out(out, want, err));
    CMOEI_TRY(cmoei_check_apart(out, want->name, &row_of, "groups.row_of", err));
    CMOEI_TRY(cmoei_check_apart(out, want->name, &c->dout, "dout", err));
    if (cmoei_given(&c->rows)) CMOEI_TRY(cmoei_check_apart(out, want->name, &c->rows, "rows", err));
    if (cmoei_given(&c->weights))
        CMOEI_TRY(cmoei_check_apart(out, want->name, &c->weights, "weights", err));
    return CMOE_OK;
}

static cmoe_status check_inputs(const call *c, cmoe_error *err)
{
    const cmoe_groups *g = c->groups;
    const bool drows = cmoei_given(&c->drows_in), dweights = cmoei_given(&c->dweights_in);
    int64_t rows = drows && c->drows.rank > 0 ? c->drows.dims[0] : INT32_MAX;
    if (dweights && !cmoei_given(&c->rows))
        return cmoei_fail(err, CMOE_ERR_ARG, "rows: not given, want them for dweights");
    cmoei_want want = matrix("dout", -1, "tokens", -1, "hidden");
    CMOEI_TRY(cmoei_check_rows(&c->dout, &want, err));
    if (cmoei_given(&c->rows)) {
        want = matrix("rows", -1, "rows", c->dout.dims[1], "hidden");
        CMOEI_TRY(cmoei_check_rows(&c->rows, &want, err));
        rows = c->rows.dims[0];
    }
    CMOEI_TRY(cmoei_combine_check_groups(g, rows, err));
    want = matrix("dout", g->tokens, "tokens", -1, "hidden");
    CMOEI_TRY(cmoei_check_rows(&c->dout, &want, err));
    want = matrix("weights", g->tokens, "tokens", g->topk, "topk");
    want.dtypes = CMOEI_FLOATS;
    return cmoei_given(&c->weights) ? cmoei_check_in(&c->weights, &want, err) : CMOE_OK;
}

static cmoe_status check(const call *c, cmoe_error *err)
{
    const cmoe_groups *g = c->groups;
    const bool drows = cmoei_given(&c->drows_in), dweights = cmoei_given(&c->dweights_in);
    CMOEI_TRY(check_inputs(c, err));
    if (drows) {
        const int64_t rows = cmoei_given(&c->rows) ? c->rows.dims[0] : -1;
        const cmoei_want want = matrix("drows", rows, "rows", c->dout.dims[1], "hidden");
        CMOEI_TRY(check_output(c, &c->drows, &want, err));
        CMOEI_TRY(check_slots(g, err));
    }
    if (dweights) {
        const cmoei_want want = matrix("dweights", g->tokens, "tokens", g->topk, "topk");
        CMOEI_TRY(check_output(c, &c->dweights, &want, err));
    }
    if (!drows || !dweights) return CMOE_OK;
    return cmoei_check_apart(&c->dweights, "dweights", &c->drows_in, "drows", err);
}

/* ---- public ---------------------------------------------------------------------------------- */

static cmoei_dense dense_of(const cmoe_view *v)
{
    const cmoei_plane p = cmoei_plane_of(v);
    return (cmoei_dense){p.data, p.step};
}

cmoe_status cmoe_combine_backward(cmoe_stream *s, const cmoe_combine_options *options,
                                  cmoe_view rows, cmoe_view weights, const cmoe_groups *groups,
                                  cmoe_view dout, cmoe_view_mut drows, cmoe_view_mut dweights,
                                  cmoe_error *err)
{
    cmoe_combine_options o;
    const call c = {
        groups, rows, weights, dout, drows, dweights, cmoe_view_of(drows), cmoe_view_of(dweights)};
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_combine_read_options(&o, options, err));
    CMOEI_TRY(check(&c, err));
    const cmoei_combine_back_args args = {.rows = dense_of(&rows),
                                          .dout = dense_of(&dout),
                                          .weights = cmoei_plane_of(&weights),
                                          .drows = dense_of(&c.drows_in),
                                          .dweights = dense_of(&c.dweights_in),
                                          .row_of = groups->row_of,
                                          .topk = groups->topk,
                                          .hidden = dout.dims[1],
                                          .scale = o.scale};
    if (groups->tokens > 0 && groups->topk > 0) spread(s->ctx, &args, groups->tokens);
    return CMOE_OK;
}
