/* SPDX-License-Identifier: MIT
 *
 * talk.c - one request at a time through an engine.
 */
#include "talk.h"

#include <stdlib.h>
#include <string.h>

#include "crew.h"
#include "report.h"

int talk_open(talk *t, const model_flags *flags, const common_options *common)
{
    *t = (talk){.flags = flags, .common = common};
    const int status = session_open(&t->session, common);
    return status ? status : model_plan(&t->session, flags, model_format(flags->dtype), &t->info);
}

static int create_engine(talk *t, const cmoe_engine_options *o)
{
    cmoe_error err = {.size = sizeof err};
    machine m;
    int64_t bytes = 0;
    cmoe_status status = cmoe_engine_bytes(t->model, o, &bytes, &err);
    machine_read(&m);
    if (status == CMOE_OK && m.available_bytes > 0 && bytes > m.available_bytes)
        return report_fail(EXIT_MEMORY, t->flags->path,
                           "cache and work memory need %s, %s are there: try a smaller --context "
                           "or fewer tokens",
                           size_of(bytes).s, size_of(m.available_bytes).s);
    if (status == CMOE_OK)
        status = cmoe_engine_create(&t->engine, t->session.stream, t->model, t->tokenizer, o, &err);
    return model_fail(status, t->flags->path, &err);
}

int talk_load(talk *t, int64_t positions, int64_t block, bool reuse)
{
    machine m;
    cmoe_engine_options o;
    if (block > 0) positions += block; /* the block that holds the last token is worked on whole */
    if (positions > t->info.context) positions = t->info.context;
    cmoe_engine_options_default(&o, sizeof o);
    o.sequences = 1;
    /* One page more than it fills: its last one may be kept for the next request. */
    o.pages = (positions + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE + 1;
    o.no_prefix_reuse = !reuse;
    const int64_t rows = block > 0 ? block : 1;
    const model_needs n =
        model_needs_of(&t->info, positions, o.step_tokens, rows * t->info.vocab * 4);
    machine_read(&m);
    int status = model_check_memory(&t->session, t->flags, &t->info, &n, m.available_bytes);
    if (status) return status;
    const int64_t limit = m.available_bytes > 0 ? m.available_bytes - (n.total - n.weights) : 0;
    const double start = crew_now();
    status = model_load(&t->session, t->flags, &t->info, limit, true, t->common->quiet, &t->model);
    t->load_seconds = crew_now() - start;
    if (status == 0) status = create_engine(t, &o);
    if (status == 0) keep_begin(&t->keeping, t->model);
    return status;
}

void talk_close(talk *t)
{
    if (t->common) keep_end(&t->keeping, t->common->quiet);
    cmoe_engine_free(t->engine);
    cmoe_model_free(t->model);
    cmoe_tokenizer_free(t->tokenizer);
    session_close(&t->session);
    *t = (talk){0};
}

/* ---- one request ----------------------------------------------------------------------------- */

void talk_answer_free(talk_answer *a)
{
    free(a->ids);
    free(a->text);
    *a = (talk_answer){0};
}

/* At least `needed` elements of `size` bytes. */
static bool grow(void **data, int64_t *room, int64_t needed, size_t size)
{
    if (needed <= *room) return true;
    const int64_t more = needed + needed / 2 + 64;
    void *grown = realloc(*data, (size_t)more * size);
    if (!grown) return false;
    *data = grown;
    *room = more;
    return true;
}

static bool keep(talk_answer *a, const cmoe_event *e)
{
    void *ids = a->ids, *text = a->text;
    const bool there = grow(&ids, &a->ids_room, a->count + e->count, sizeof *a->ids) &&
                       grow(&text, &a->text_room, a->bytes + e->bytes + 1, 1);
    a->ids = ids;
    a->text = text;
    if (!there) return false;
    if (e->count > 0) memcpy(a->ids + a->count, e->ids, (size_t)e->count * sizeof *a->ids);
    if (e->bytes > 0) memcpy(a->text + a->bytes, e->text, (size_t)e->bytes);
    a->count += e->count;
    a->bytes += e->bytes;
    a->text[a->bytes] = '\0';
    return true;
}

/* The routing of a request that has just ended. */
static int take_routing(const talk *t, int64_t id, routing *r)
{
    cmoe_error err = {.size = sizeof err};
    for (int64_t i = 0; i < t->info.layers; i++) {
        cmoe_model_layer l = {.size = sizeof l};
        cmoe_view ids, weights;
        cmoe_status status = cmoe_model_layer_describe(t->model, i, &l, &err);
        if (status == CMOE_OK && l.experts == 0) continue;
        if (status == CMOE_OK) status = cmoe_engine_routing(t->engine, id, i, &ids, &weights, &err);
        if (status != CMOE_OK) return report_status(status, "routing", &err);
        if (!r->layer) {
            const int bad = routing_create(r, t->model, ids.dims[0]);
            if (bad) return bad;
        }
        for (int64_t row = 0; row < r->tokens; row++) {
            const size_t n = (size_t)l.topk;
            memcpy(r->layer[i].ids + row * l.topk, (const int32_t *)ids.data + row * ids.strides[0],
                   n * sizeof(int32_t));
            memcpy(r->layer[i].weights + row * l.topk,
                   (const float *)weights.data + row * weights.strides[0], n * sizeof(float));
        }
    }
    return 0;
}

static void finish(talk_answer *a, const cmoe_event *e)
{
    a->finish = e->finish;
    a->prompt_tokens = e->prompt_tokens;
    a->cached_tokens = e->cached_tokens;
    a->forwards = e->forwards;
}

/* All events there are. */
static int hear(const talk *t, const talk_listener *l, double start, routing *captured,
                talk_answer *a)
{
    cmoe_event e = {.size = sizeof e};
    while (cmoe_engine_poll(t->engine, &e)) {
        if (a->prompt_seconds == 0) {
            a->prompt_seconds = crew_now() - start;
            report_progress(t->common->quiet, "%s", "");
        }
        if (e.kind == CMOE_EVENT_CANVAS) {
            if (l && l->canvas) l->canvas(l->user, &e);
            continue;
        }
        if (!keep(a, &e)) return report_fail(EXIT_MEMORY, "answer", "no memory for its text");
        if (l && l->tokens) l->tokens(l->user, &e);
        if (e.kind != CMOE_EVENT_FINISH) continue;
        finish(a, &e);
        const int status = captured ? take_routing(t, e.request, captured) : 0;
        if (status) return status;
    }
    return 0;
}

/* On a terminal, while nothing has come yet: how much of the prompt has been read. */
static void show_prompt(const talk *t, const cmoe_request *r, int64_t before)
{
    cmoe_engine_info info = {.size = sizeof info};
    if (cmoe_engine_describe(t->engine, &info, NULL) != CMOE_OK) return;
    const int64_t read = info.tokens - before;
    if (read < r->prompt_count)
        report_progress(t->common->quiet, "reading, %lld of %lld tokens", (long long)read,
                        (long long)r->prompt_count);
}

/* Nobody listens any more: the engine is not left with a request that the next one waits for. */
static void drop(const talk *t, int64_t id)
{
    int32_t busy = 1;
    cmoe_event e = {.size = sizeof e};
    cmoe_engine_cancel(t->engine, id);
    while (busy && cmoe_engine_step(t->engine, &busy, NULL) == CMOE_OK)
        ;
    while (cmoe_engine_poll(t->engine, &e))
        ;
}

int talk_ask(talk *t, const cmoe_request *r, const talk_listener *l, routing *captured,
             talk_answer *a)
{
    cmoe_error err = {.size = sizeof err};
    int64_t id = 0;
    int32_t busy = 1;
    cmoe_engine_info before = {.size = sizeof before};
    *a = (talk_answer){0};
    const double start = crew_now();
    int status = model_refuse(cmoe_engine_submit(t->engine, r, &id, &err), t->flags->path, &err);
    if (cmoe_engine_describe(t->engine, &before, NULL) != CMOE_OK) before.tokens = 0;
    while (status == 0 && a->finish == CMOE_FINISH_NONE && busy) {
        if (report_cancelled() || (l && l->failed && *l->failed)) cmoe_engine_cancel(t->engine, id);
        const cmoe_status stepped = cmoe_engine_step(t->engine, &busy, &err);
        if (a->prompt_seconds == 0) show_prompt(t, r, before.tokens);
        status = hear(t, l, start, captured, a);
        if (stepped != CMOE_OK) status = model_fail(stepped, t->flags->path, &err);
        if (status && a->finish == CMOE_FINISH_NONE) drop(t, id);
    }
    a->generate_seconds = crew_now() - start - a->prompt_seconds;
    /* What went wrong with this request alone has been said as a note. */
    if (status == 0 && a->finish == CMOE_FINISH_ERROR)
        status = report_fail(EXIT_ERROR, t->flags->path, "the answer could not go on");
    if (status == 0 && !a->text && !(a->text = calloc(1, 1)))
        status = report_fail(EXIT_MEMORY, "answer", "no memory for its text");
    return status;
}

void talk_figures(const talk_answer *a)
{
    const int64_t fresh = a->prompt_tokens - a->cached_tokens;
    fprintf(stderr, "prompt %lld tokens", (long long)a->prompt_tokens);
    if (a->cached_tokens > 0) fprintf(stderr, " (%lld known)", (long long)a->cached_tokens);
    if (a->prompt_seconds > 0)
        fprintf(stderr, ", %.1f tokens/s", (double)fresh / a->prompt_seconds);
    fprintf(stderr, "; generated %lld tokens", (long long)a->count);
    if (a->generate_seconds > 0 && a->count > 1)
        fprintf(stderr, ", %.1f tokens/s", (double)(a->count - 1) / a->generate_seconds);
    const char *name = cmoe_finish_name(a->finish);
    fprintf(stderr, "; %lld forwards; %s\n", (long long)a->forwards, name ? name : "?");
}
