/* SPDX-License-Identifier: MIT
 *
 * tell.c - what methods say about a sequence, and events made of it.
 *
 * There is no queue that could grow: a job has room for one event of each kind, which refers to its
 * canvas.  Tokens that nobody has polled yet are joined by later ones; of a canvas only the newest
 * state counts.  A number says which of all events came first.
 */
#include <string.h>

#include "job.h"

static const char *const finish_names[] = {
    [CMOE_FINISH_NONE] = "none",           [CMOE_FINISH_LENGTH] = "length",
    [CMOE_FINISH_STOP] = "stop",           [CMOE_FINISH_EOS] = "eos",
    [CMOE_FINISH_CANCELLED] = "cancelled", [CMOE_FINISH_FORWARDS] = "forwards",
    [CMOE_FINISH_REPEATS] = "repeats",     [CMOE_FINISH_ERROR] = "error"};

const char *cmoe_finish_name(int32_t finish)
{
    return finish >= 0 && finish < CMOEI_COUNT(finish_names) ? finish_names[finish] : NULL;
}

/* ---- from methods ------------------------------------------------------------------------------ */

static void mark(cmoei_job *j, cmoei_pending *p)
{
    if (p->order == 0) p->order = ++j->engine->order;
}

cmoe_status cmoei_sequence_tell(cmoei_sequence *s, int64_t end, const cmoe_logprob *logprobs,
                                cmoe_error *err)
{
    cmoei_job *j = s->owner;
    const int64_t n = s->logprobs;
    for (; s->told < end && s->finish == CMOE_FINISH_NONE; s->told++) {
        bool stopped = false;
        if (j->text.detokenizer)
            CMOEI_TRY(cmoei_text_push(&j->text, s->ctx, s->tokens[s->told], &stopped, err));
        if (logprobs && n > 0) {
            memcpy(j->logprobs + (s->told - s->prompt) * n, logprobs, (size_t)n * sizeof *logprobs);
            logprobs += n;
        }
        mark(j, &j->tokens);
        if (stopped) s->finish = CMOE_FINISH_STOP;
    }
    return CMOE_OK;
}

cmoe_status cmoei_sequence_show(cmoei_sequence *s, int64_t begin, int64_t end, cmoe_error *err)
{
    (void)err;
    cmoei_job *j = s->owner;
    cmoei_pending *p = &j->canvas;
    if (begin >= end) return CMOE_OK;
    p->begin = p->order ? CMOEI_MIN(p->begin, begin) : begin;
    p->end = p->order ? CMOEI_MAX(p->end, end) : end;
    mark(j, p);
    return CMOE_OK;
}

void cmoei_sequence_finish(cmoei_sequence *s, int32_t finish)
{
    cmoei_job *j = s->owner;
    if (s->finish == CMOE_FINISH_NONE) {
        s->finish = finish;
        if (j->text.detokenizer) cmoei_text_finish(&j->text, s->ctx);
    }
}

bool cmoei_sequence_stops_at(const cmoei_sequence *s, int32_t id)
{
    for (int64_t i = 0; i < s->stops; i++)
        if (s->stop_tokens[i] == id) return true;
    return false;
}

/* ---- to the caller ----------------------------------------------------------------------------- */

static void give_text(cmoei_job *j, int64_t end, cmoe_event *v)
{
    cmoei_text *t = &j->text;
    if (t->wanted && end > t->begin) {
        v->text = t->data + t->begin;
        v->bytes = end - t->begin;
    }
    t->begin = end;
}

static void give_tokens(cmoei_job *j, cmoe_event *v)
{
    const cmoei_sequence *s = &j->s;
    v->kind = CMOE_EVENT_TOKENS;
    v->ids = s->tokens + j->polled;
    v->count = s->told - j->polled;
    v->position = j->polled;
    if (s->logprobs > 0) v->logprobs = j->logprobs + (j->polled - s->prompt) * s->logprobs;
    j->polled = s->told;
    give_text(j, j->text.ready, v);
}

static void give_canvas(const cmoei_job *j, cmoe_event *v)
{
    v->kind = CMOE_EVENT_CANVAS;
    v->ids = j->s.tokens + j->canvas.begin;
    v->count = CMOEI_MAX(CMOEI_MIN(j->canvas.end, j->s.count) - j->canvas.begin, 0);
    v->position = j->canvas.begin;
}

static void give_finish(cmoei_job *j, cmoe_event *v)
{
    v->kind = CMOE_EVENT_FINISH;
    v->finish = j->s.finish;
    v->prompt_tokens = j->s.prompt;
    v->cached_tokens = j->cached_tokens;
    v->new_tokens = j->s.told - j->s.prompt;
    v->forwards = j->s.forwards;
    give_text(j, j->text.end, v);
}

void cmoe_event_default(cmoe_event *event, size_t size)
{
    const cmoe_event d = {.size = sizeof d};
    cmoei_options_write(event, size, &d, sizeof d);
}

int32_t cmoe_engine_poll(cmoe_engine *e, cmoe_event *event)
{
    if (!e || !event) return 0;
    cmoei_job *job = NULL;
    cmoei_pending *next = NULL;
    for (cmoei_job *j = e->jobs; j; j = j->next) {
        cmoei_pending *const all[] = {&j->tokens, &j->canvas, &j->finish};
        for (int64_t i = 0; i < CMOEI_COUNT(all); i++) {
            if (all[i]->order == 0 || (next && next->order < all[i]->order)) continue;
            next = all[i];
            job = j;
        }
    }
    if (!next) return 0;
    cmoe_event v = {.size = sizeof v, .request = job->s.id};
    if (next == &job->tokens)
        give_tokens(job, &v);
    else if (next == &job->canvas)
        give_canvas(job, &v);
    else
        give_finish(job, &v);
    next->order = 0;
    cmoei_options_write(event, event->size ? event->size : sizeof v, &v, sizeof v);
    return 1;
}
