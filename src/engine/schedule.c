/* SPDX-License-Identifier: MIT
 *
 * schedule.c - what the next forward does.
 *
 * Jobs that make tokens come first, then prompts in chunks, both in order of arrival, until
 * step_tokens are used up.  A job takes pages as its positions grow.  When there are none left, pages
 * that are only kept for reuse go first, then the youngest running job gives back all of its own and
 * waits; what it has made stays on its canvas and is run again later, as if it were a prompt.  The
 * oldest job always goes on, and submit has seen to it that it fits alone, so everybody comes to an end.
 */
#include <inttypes.h>

#include "job.h"

/* ---- ends -------------------------------------------------------------------------------------- */

void cmoei_job_end(cmoei_job *j, int32_t finish)
{
    cmoe_engine *e = j->engine;
    if (j->state == CMOEI_ENDED) return;
    cmoei_sequence_finish(&j->s, finish);
    *(j->state == CMOEI_RUNNING ? &e->running : &e->waiting) -= 1;
    cmoei_job_release(j);
    cmoei_flags_give(&e->flags, j->flag);
    j->flag = NULL;
    j->state = CMOEI_ENDED;
    j->planned = false;
    j->finish.order = ++e->order;
}

/* Jobs whose end has been polled. */
static void forget_ended(cmoe_engine *e)
{
    cmoei_job **at = &e->jobs;
    while (*at) {
        cmoei_job *j = *at;
        if (j->state == CMOEI_ENDED && j->finish.order == 0) {
            *at = j->next;
            cmoei_job_free(j);
        } else {
            at = &j->next;
        }
    }
    e->tail = at;
}

static void end_cancelled(cmoe_engine *e)
{
    for (cmoei_job *j = e->jobs; j; j = j->next)
        if (j->flag && atomic_load_explicit(j->flag, memory_order_acquire) < 0)
            cmoei_job_end(j, CMOE_FINISH_CANCELLED);
}

static cmoe_status end_all(cmoe_engine *e, cmoe_status status)
{
    for (cmoei_job *j = e->jobs; j; j = j->next)
        cmoei_job_end(j, CMOE_FINISH_ERROR);
    return status;
}

/* ---- who runs ---------------------------------------------------------------------------------- */

/* Pages that a job will soon have, counted without luck: its canvas and one token more. */
static int64_t pages_wanted(const cmoei_job *j)
{
    return cmoei_ceil_div(CMOEI_MIN(j->s.count + 1, j->s.limit), CMOE_KV_PAGE);
}

static void admit(cmoe_engine *e)
{
    int64_t left = e->pages.free + e->pages.reusable;
    for (const cmoei_job *j = e->jobs; j; j = j->next)
        if (j->state == CMOEI_RUNNING) left -= CMOEI_MAX(pages_wanted(j) - j->held, 0);
    for (cmoei_job *j = e->jobs; j && e->running < e->z.o.sequences; j = j->next) {
        if (j->state != CMOEI_WAITING) continue;
        const int64_t wanted = pages_wanted(j);
        if (wanted > left && e->running > 0) return; /* nobody overtakes */
        left -= wanted;
        j->state = CMOEI_RUNNING;
        e->running++;
        e->waiting--;
    }
}

static void preempt(cmoei_job *j)
{
    cmoe_engine *e = j->engine;
    if (j->planned) e->tokens_left += j->work.end - j->work.begin;
    cmoei_job_release(j);
    j->s.cached = 0;
    j->planned = false;
    j->preempted = true;
    j->state = CMOEI_WAITING;
    e->running--;
    e->waiting++;
}

static cmoei_job *youngest(const cmoe_engine *e)
{
    cmoei_job *found = NULL;
    for (cmoei_job *j = e->jobs; j; j = j->next)
        if (j->state == CMOEI_RUNNING) found = j;
    return found;
}

/* Pages for the positions below `end`; false when the job itself had to give way. */
static bool reserve(cmoei_job *j, int64_t end)
{
    cmoe_engine *e = j->engine;
    while (j->held * CMOE_KV_PAGE < end) {
        const int32_t page = cmoei_pages_take(&e->pages);
        if (page >= 0) {
            j->pages[j->held++] = page;
            continue;
        }
        cmoei_job *victim = youngest(e);
        preempt(victim);
        if (victim == j) return false;
    }
    return true;
}

/* ---- what they do ------------------------------------------------------------------------------ */

static void plan(cmoei_job *j)
{
    cmoe_engine *e = j->engine;
    cmoei_sequence *s = &j->s;
    cmoei_job_attach(j);
    int64_t budget = e->tokens_left;
    const int64_t room = e->z.rows - e->rows_used;
    if (e->z.info.mask > 0) budget = CMOEI_MIN(budget, room); /* all of a block may want logits */
    if (cmoei_job_replays(j)) budget = CMOEI_MIN(budget, j->replayed - s->cached);
    if (budget <= 0 || room <= 0) return;
    j->work = (cmoei_work){
        .begin = s->cached, .end = s->cached, .row = e->positions + e->rows_used, .room = room};
    s->method->plan(s, budget, &j->work);
    CMOE_ASSERT(j->work.begin == s->cached && j->work.end - j->work.begin <= budget);
    CMOE_ASSERT(j->work.rows <= room && j->work.final <= j->work.end);
    CMOE_ASSERT(j->work.end <= s->info.context && j->work.end <= s->capacity);
    if (j->work.end == j->work.begin || !reserve(j, j->work.end)) return;
    j->planned = true;
    e->tokens_left -= j->work.end - j->work.begin;
    e->rows_used += j->work.rows;
}

/* All that has been told, but for what one pass of the method runs, is in the cache. */
static bool makes_tokens(const cmoei_job *j)
{
    return j->s.told - j->s.cached <= j->s.method->need(&j->s);
}

static void plan_all(cmoe_engine *e)
{
    e->tokens_left = e->z.o.step_tokens;
    e->rows_used = 0;
    for (cmoei_job *j = e->jobs; j; j = j->next)
        j->planned = false;
    for (int32_t pass = 0; pass < 2; pass++) {
        for (cmoei_job *j = e->jobs; j; j = j->next) {
            if (j->state == CMOEI_RUNNING && !j->planned && !cmoei_job_replays(j) &&
                makes_tokens(j) == (pass == 0))
                plan(j);
        }
    }
}

/* A forward for the oldest job that replays, in turns with one for all others. */
static bool plan_replay(cmoe_engine *e)
{
    cmoei_job *replays = NULL;
    bool others = false;
    for (cmoei_job *j = e->jobs; j; j = j->next) {
        if (j->state != CMOEI_RUNNING) continue;
        if (!cmoei_job_replays(j))
            others = true;
        else if (!replays)
            replays = j;
    }
    e->replayed_last = replays && !(others && e->replayed_last);
    if (!e->replayed_last) return false;
    for (cmoei_job *j = e->jobs; j; j = j->next)
        j->planned = false;
    e->tokens_left = e->z.o.step_tokens;
    e->rows_used = 0;
    plan(replays);
    return replays->planned; /* else it gave way: then there are others */
}

cmoe_status cmoe_engine_step(cmoe_engine *e, int32_t *busy, cmoe_error *err)
{
    if (!e || !busy)
        return cmoei_fail(err, CMOE_ERR_ARG, "engine_step: %s is NULL", e ? "busy" : "engine");
    forget_ended(e);
    end_cancelled(e);
    admit(e);
    if (e->running > 0) {
        if (!plan_replay(e)) plan_all(e);
        const cmoe_status status = cmoei_batch_run(e, err);
        if (status != CMOE_OK) return end_all(e, status);
    }
    *busy = e->running + e->waiting > 0;
    return CMOE_OK;
}
