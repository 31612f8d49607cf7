/* SPDX-License-Identifier: MIT
 *
 * embedding_backward.c - the gradient of a table of embeddings: checks, the table of kernels,
 * tokens by id, and ids over threads.
 *
 * A stable counting sort puts the tokens of every id side by side in ascending order.  It costs a
 * few nanoseconds a token and an id, so one thread does it; rows of the result, which are most of
 * the work, are handed out a few ids at a time, because ids of a text are far from evenly frequent.
 */
#include "ops/embedding_backward.h"

#include <inttypes.h>

#include "ops/ops.h"

#define ROW(isa)                                                                            \
    void cmoei_embedding_backward_##isa(const cmoei_embedding_backward_args *a, int64_t id, \
                                        int64_t id_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_embedding_backward_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_embedding_backward_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_embedding_backward_avx2},
#endif
    {{"ref", 0, 0}, cmoei_embedding_backward_ref},
};
const cmoei_table cmoei_embedding_backward_table = CMOEI_TABLE("embedding_backward", kernels);

enum { TASK_COST = 1 << 16, GRAINS = 64, GRAIN_MOST = 256 };

typedef struct job {
    cmoei_embedding_backward_args args;
    const cmoei_embedding_backward_kernel *kernel;
    cmoe_view ids;
    int64_t vocab, grain;
    int64_t *order, *first; /* [T], [vocab + 2] */
} job;

/* first[id + 1] counts up from where id begins to where it ends, which is where id + 1 begins. */
static void sort(job *j)
{
    const int64_t tokens = j->ids.dims[0];
    memset(j->first, 0, (size_t)(j->vocab + 2) * sizeof *j->first);
    for (int64_t t = 0; t < tokens; t++)
        j->first[cmoei_load_index(cmoei_at(&j->ids, t, 0), j->ids.dtype) + 2]++;
    for (int64_t id = 2; id < j->vocab + 2; id++)
        j->first[id] += j->first[id - 1];
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t id = cmoei_load_index(cmoei_at(&j->ids, t, 0), j->ids.dtype);
        j->order[j->first[id + 1]++] = t;
    }
}

static void task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    job *j = arg;
    (void)count;
    if (index == 0) sort(j);
    cmoei_barrier(team);
    for (int64_t g; (g = cmoei_next(team, 1)) * j->grain < j->vocab;)
        j->kernel->run(&j->args, g * j->grain, CMOEI_MIN((g + 1) * j->grain, j->vocab));
}

static void carve(cmoei_carver *c, int64_t tokens, int64_t vocab, int64_t **order, int64_t **first)
{
    int64_t n;
    *order = cmoei_carve_array(c, tokens, (int64_t)sizeof **order);
    *first = cmoei_carve_array(c, cmoei_add(vocab, 2, &n) ? n : -1, (int64_t)sizeof **first);
}

cmoe_status cmoe_embedding_backward_bytes(cmoe_ctx *ctx, int64_t tokens, int64_t vocab,
                                          int64_t *host, int64_t *device, cmoe_error *err)
{
    int64_t *order, *first;
    if (!ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "embedding_backward: ctx is NULL, want a context");
    if (tokens < 0 || vocab < 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "embedding_backward: tokens = %" PRId64 ", vocab = %" PRId64
                          ", want both >= 0",
                          tokens, vocab);
    cmoei_carver c = cmoei_carver_dry();
    carve(&c, tokens, vocab, &order, &first);
    CMOEI_TRY(cmoei_carver_check(&c, "embedding_backward", err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

static cmoe_status check(const cmoe_view *ids, const cmoe_view *dout, const cmoe_view_mut *dtable,
                         const cmoe_arena *scratch, cmoe_error *err)
{
    const cmoe_view table = cmoe_view_of(*dtable);
    const cmoei_want want_ids = {
        .name = "ids", .dtypes = CMOEI_INDEX, .rank = 1, .dims = {-1}, .dim_names = {"tokens"}};
    CMOEI_TRY(cmoei_check_in(ids, &want_ids, err));
    cmoei_want want = {
        .name = "dout", .rank = 2, .dims = {ids->dims[0], -1}, .dim_names = {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_rows(dout, &want, err));
    want = (cmoei_want){
        .name = "dtable", .rank = 2, .dims = {-1, dout->dims[1]}, .dim_names = {"vocab", "hidden"}};
    CMOEI_TRY(cmoei_check_rows_out(dtable, &want, err));
    CMOEI_TRY(cmoei_check_apart(dtable, "dtable", ids, "ids", err));
    CMOEI_TRY(cmoei_check_apart(dtable, "dtable", dout, "dout", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, ids, "ids", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, dout, "dout", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &table, "dtable", err));
    return cmoei_check_token_ids(ids, dtable->dims[0], err);
}

cmoe_status cmoe_embedding_backward(cmoe_stream *s, cmoe_view ids, cmoe_view dout, float scale,
                                    const cmoe_units *units, cmoe_view_mut dtable,
                                    cmoe_arena *scratch, cmoe_error *err)
{
    cmoe_units u;
    int64_t one[2];
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_finite_scale(scale, err));
    CMOEI_TRY(check(&ids, &dout, &dtable, scratch, err));
    CMOEI_TRY(cmoei_units_check(units, ids.dims[0], &u, one, err));
    const int64_t tokens = ids.dims[0], vocab = dtable.dims[0], hidden = dtable.dims[1];
    if (vocab == 0 || hidden == 0) return CMOE_OK;
    job j = {.ids = ids, .vocab = vocab};
    cmoei_carver c = cmoei_carver_open(scratch);
    carve(&c, tokens, vocab, &j.order, &j.first);
    CMOEI_TRY(cmoei_carver_check(&c, "embedding_backward", err));
    j.args = (cmoei_embedding_backward_args){.order = j.order,
                                             .first = j.first,
                                             .dout = cmoei_plane_of(&dout),
                                             .dtable = cmoei_plane_mut(&dtable),
                                             .units = u,
                                             .hidden = hidden,
                                             .scale = scale};
    j.args.dtable.col = 1; /* of one column the stride may be anything */
    j.kernel = cmoei_table_pick(&cmoei_embedding_backward_table, s->ctx->features, 0);
    j.grain =
        CMOEI_MIN(cmoei_ceil_div(vocab, GRAINS * (int64_t)s->ctx->threads), (int64_t)GRAIN_MOST);
    const double cost = ((double)tokens * 2 + (double)vocab) * (double)hidden;
    cmoei_region(s->ctx, (int64_t)CMOEI_MIN(cost / TASK_COST, (double)s->ctx->threads), task, &j);
    return CMOE_OK;
}
