/* SPDX-License-Identifier: MIT
 *
 * batch.c - all that is planned, as one forward; and everybody gets their own of it.
 */
#include <inttypes.h>
#include <string.h>

#include "job.h"
#include "models/model.h"

typedef struct cmoei_gathered {
    int64_t sequences, tokens, rows;
    bool capture;
    const cmoei_job *replays;
} gathered;

/* Tables of the call, in order of arrival. */
static gathered gather(cmoe_engine *e)
{
    gathered g = {0};
    e->first[0] = 0;
    for (const cmoei_job *j = e->jobs; j; j = j->next) {
        if (!j->planned) continue;
        const cmoei_work *w = &j->work;
        const int64_t n = w->end - w->begin;
        memcpy(e->ids + g.tokens, j->s.tokens + w->begin, (size_t)n * sizeof *e->ids);
        memcpy(e->table + g.sequences * e->z.columns, j->pages, (size_t)j->held * sizeof *e->table);
        for (int64_t r = 0; r < w->rows; r++)
            e->rows[g.rows++] = g.tokens + w->row[r] - w->begin;
        g.capture = g.capture || j->capture;
        if (cmoei_job_replays(j)) g.replays = j;
        g.tokens += n;
        e->start[g.sequences++] = w->begin;
        e->first[g.sequences] = g.tokens;
    }
    return g;
}

static cmoe_status forward(cmoe_engine *e, const gathered *g, cmoe_error *err)
{
    cmoe_model_call call;
    cmoe_model_call_default(&call, sizeof call);
    const cmoe_batch batch = {.size = sizeof batch,
                              .sequences = g->sequences,
                              .first = e->first,
                              .start = e->start,
                              .pages = e->table,
                              .page_columns = e->z.columns};
    call.batch = &batch;
    call.ids = cmoe_view_1d(e->ids, CMOE_I32, g->tokens);
    call.rows = cmoe_view_1d(e->rows, CMOE_I64, g->rows);
    call.cache = e->cache;
    if (g->capture) {
        cmoei_routing_capture(e, g->tokens);
        call.capture = e->capture;
    }
    if (g->replays) {
        cmoei_routing_replay(g->replays, g->tokens);
        call.replay = e->replay;
    }
    return cmoe_model_forward(e->stream, e->model, &call,
                              cmoe_view_mut_2d(e->logits, CMOE_F32, g->rows, e->z.info.vocab),
                              &e->scratch, err);
}

/* A failure here is the request's own: the others go on. */
static void accept(cmoei_job *j, float *logits)
{
    const cmoe_ctx *ctx = j->engine->ctx;
    cmoe_error err = {0};
    if (j->s.method->accept(&j->s, &j->work, logits, &err) != CMOE_OK) {
        if (ctx->log) ctx->log(ctx->log_user, CMOE_LOG_ERROR, err.text);
        cmoei_job_end(j, CMOE_FINISH_ERROR);
    } else if (j->s.finish != CMOE_FINISH_NONE) {
        cmoei_job_end(j, j->s.finish);
    }
}

cmoe_status cmoei_batch_run(cmoe_engine *e, cmoe_error *err)
{
    const gathered g = gather(e);
    if (g.sequences == 0)
        return cmoei_fail(err, CMOE_ERR_INTERNAL,
                          "no request can go on: %" PRId64 " are running, step_tokens = %" PRId64,
                          e->running, e->z.o.step_tokens);
    CMOEI_TRY(forward(e, &g, err));
    e->forwards++;
    e->tokens += g.tokens;
    int64_t first = 0;
    float *logits = e->logits;
    for (cmoei_job *j = e->jobs; j; j = j->next) {
        if (!j->planned) continue;
        if (j->capture) cmoei_routing_keep(j, first);
        first += j->work.end - j->work.begin;
        j->s.cached = j->work.final;
        cmoei_job_publish(j);
        accept(j, logits);
        logits += j->work.rows * e->z.info.vocab;
    }
    return CMOE_OK;
}
