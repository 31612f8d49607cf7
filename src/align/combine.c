/* SPDX-License-Identifier: MIT
 *
 * combine.c - expert rows back to token order: checks, the table of kernels, and the spreading over
 * threads.
 *
 * Every element of the result is a sum of its own in slot order, so tasks may split tokens and
 * columns at will: many tokens are split as they are, few tokens also by columns.
 */
#include "align/combine.h"

#include <inttypes.h>

#include "cmoe/align.h"

#define ROW(isa)                                                                               \
    void cmoei_combine_##isa(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h, \
                             int64_t h_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_combine_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_combine_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_combine_avx2},
#endif
    {{"ref", 0, 0}, cmoei_combine_ref},
};
const cmoei_table cmoei_combine_table = CMOEI_TABLE("combine", kernels);

const cmoei_combine_kernel *cmoei_combine_pick(uint32_t features)
{
    return cmoei_table_pick(&cmoei_combine_table, features, 0);
}

/* ---- spreading ------------------------------------------------------------------------------- */

enum { TASK_TERMS = 1 << 16 }; /* products a task at least has: about 10 us from L2 */

typedef struct job {
    const cmoei_combine_args *args;
    cmoei_combine_fn run;
    int64_t tokens, pieces, piece; /* pieces of `piece` columns */
} job;

static void combine_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    int64_t i, end;
    (void)team;
    cmoei_split(j->tokens * j->pieces, index, count, &i, &end);
    for (int64_t next; i < end; i = next) {
        const int64_t t = i / j->pieces, h = i % j->pieces * j->piece;
        if (j->pieces == 1) {
            next = end;
            j->run(j->args, t, end, 0, j->args->hidden);
        } else {
            next = i + 1;
            j->run(j->args, t, t + 1, h, CMOEI_MIN(h + j->piece, j->args->hidden));
        }
    }
}

void cmoei_combine_run(cmoe_ctx *ctx, const cmoei_combine_args *a, int64_t tokens)
{
    if (tokens == 0 || a->hidden == 0) return;
    /* T*H elements exist, but T*H*K may be anything. */
    const double terms = (double)tokens * (double)a->hidden * (double)(a->topk + 1);
    const int64_t tasks = (int64_t)CMOEI_MIN(terms / TASK_TERMS, (double)ctx->threads);
    job j = {a, cmoei_combine_pick(ctx->features)->run, tokens, 1, a->hidden};
    if (tasks > 1 && tokens < 4 * tasks) {
        j.piece = CMOEI_BLOCK;
        j.pieces = cmoei_ceil_div(a->hidden, j.piece);
    }
    cmoei_region(ctx, CMOEI_MIN(tasks, tokens * j.pieces), combine_task, &j);
}

/* ---- public ---------------------------------------------------------------------------------- */

static const cmoe_combine_options defaults = {
    .size = sizeof defaults,
    .scale = 1,
};

void cmoe_combine_options_default(cmoe_combine_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

cmoe_status cmoei_combine_read_options(cmoe_combine_options *o, const cmoe_combine_options *given,
                                       cmoe_error *err)
{
    *o = defaults;
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, given, "cmoe_combine_options", err));
    if (o->shared_first != 0 && o->shared_first != 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "shared_first = %d, want 0 or 1", o->shared_first);
    if (!(o->scale - o->scale == 0) || o->scale == 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "scale = %g, want a finite number other than 0",
                          (double)o->scale);
    return CMOE_OK;
}

cmoe_status cmoei_combine_check_groups(const cmoe_groups *g, int64_t rows, cmoe_error *err)
{
    if (!g) return cmoei_fail(err, CMOE_ERR_ARG, "combine: groups is NULL, want those of an align");
    int64_t slots;
    if (!cmoei_mul(g->tokens, g->topk, &slots) || slots > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "groups: tokens = %" PRId64 ", topk = %" PRId64
                          ": want both >= 0 and tokens * topk <= 2147483647",
                          g->tokens, g->topk);
    if (slots > 0 && !g->row_of)
        return cmoei_fail(err, CMOE_ERR_ARG, "groups: row_of is NULL, want %" PRId64 " rows",
                          slots);
    for (int64_t i = 0; i < slots; i++) {
        if (g->row_of[i] < -1 || g->row_of[i] >= rows)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups: row_of[%" PRId64 ", %" PRId64 "] = %d, want -1 <= row < "
                              "%" PRId64 " (rows)",
                              i / g->topk, i % g->topk, g->row_of[i], rows);
    }
    return CMOE_OK;
}

/* A float tensor [n, m]; `given` false where an optional one is missing. */
static cmoe_status check_floats(const cmoe_view *v, const char *name, int64_t n, const char *n_name,
                                int64_t m, const char *m_name, cmoe_error *err)
{
    const cmoei_want want = {.name = name,
                             .dtypes = CMOEI_FLOATS,
                             .rank = 2,
                             .dims = {n, m},
                             .dim_names = {n_name, m_name}};
    return cmoei_check_in(v, &want, err);
}

static cmoe_status check_apart(const cmoe_view_mut *out, const cmoe_view *rows,
                               const cmoe_view *weights, const cmoe_view *shared,
                               const cmoe_groups *g, cmoe_error *err)
{
    const cmoe_view row_of = cmoe_view_2d(g->row_of, CMOE_I32, g->tokens, g->topk);
    CMOEI_TRY(cmoei_check_apart(out, "out", rows, "rows", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", &row_of, "groups.row_of", err));
    if (cmoei_given(weights)) CMOEI_TRY(cmoei_check_apart(out, "out", weights, "weights", err));
    if (cmoei_given(shared)) CMOEI_TRY(cmoei_check_apart(out, "out", shared, "shared", err));
    return CMOE_OK;
}

cmoe_status cmoe_combine(cmoe_stream *s, const cmoe_combine_options *options, cmoe_view rows,
                         cmoe_view weights, const cmoe_groups *groups, cmoe_view shared,
                         cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err)
{
    cmoe_combine_options o;
    (void)scratch; /* partial sums stay on the stack */
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_combine_read_options(&o, options, err));
    CMOEI_TRY(check_floats(&rows, "rows", -1, "rows", -1, "hidden", err));
    CMOEI_TRY(cmoei_combine_check_groups(groups, rows.dims[0], err));
    const int64_t tokens = groups->tokens, hidden = rows.dims[1];
    if (cmoei_given(&weights))
        CMOEI_TRY(check_floats(&weights, "weights", tokens, "tokens", groups->topk, "topk", err));
    if (cmoei_given(&shared))
        CMOEI_TRY(check_floats(&shared, "shared", tokens, "tokens", hidden, "hidden", err));
    const cmoei_want want = {.name = "out",
                             .dtypes = CMOEI_FLOATS,
                             .rank = 2,
                             .dims = {tokens, hidden},
                             .dim_names = {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_out(&out, &want, err));
    CMOEI_TRY(check_apart(&out, &rows, &weights, &shared, groups, err));

    const cmoei_combine_args args = {.rows = cmoei_plane_of(&rows),
                                     .weights = cmoei_plane_of(&weights),
                                     .shared = cmoei_plane_of(&shared),
                                     .out = cmoei_plane_mut(&out),
                                     .row_of = groups->row_of,
                                     .topk = groups->topk,
                                     .hidden = hidden,
                                     .scale = o.scale,
                                     .shared_first = o.shared_first && cmoei_given(&shared)};
    cmoei_combine_run(s->ctx, &args, tokens);
    return CMOE_OK;
}
