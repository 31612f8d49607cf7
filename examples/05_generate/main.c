/* SPDX-License-Identifier: MIT
 *
 * 05_generate - tokens from a whole model: two requests in one engine, one greedy, one sampled.
 *
 *     05_generate MODEL ID...
 *
 * Ids in, ids out: with a tokenizer (cmoe_tokenizer_open, given to cmoe_engine_create) events carry
 * text, too.
 */
#include <stdio.h>
#include <stdlib.h>

#include <cmoe/engine.h>

enum { REQUESTS = 2, MOST_IDS = 64, NEW = 12 };

typedef struct answer {
    int64_t request;
    int32_t ids[NEW], finish;
    int64_t count;
} answer;

/* What a program opens, in this order, and frees in the other. */
typedef struct world {
    cmoe_ctx *ctx;
    cmoe_stream *stream;
    cmoe_model *model;
    cmoe_engine *engine;
} world;

static cmoe_status open_world(world *w, const char *path, cmoe_error *err)
{
    cmoe_model_options m;
    cmoe_engine_options e;
    cmoe_model_options_default(&m, sizeof m);
    m.format = CMOE_F32;
    cmoe_engine_options_default(&e, sizeof e);
    e.pages = 2 * REQUESTS; /* of CMOE_KV_PAGE positions */
    cmoe_status status = cmoe_ctx_create(&w->ctx, NULL, err);
    if (status == CMOE_OK) status = cmoe_stream_create(&w->stream, w->ctx, err);
    if (status == CMOE_OK) status = cmoe_model_load(&w->model, w->ctx, path, &m, err);
    if (status == CMOE_OK)
        status = cmoe_engine_create(&w->engine, w->stream, w->model, NULL, &e, err);
    return status;
}

static cmoe_status submit(world *w, const int32_t *ids, int64_t count, float temperature, answer *a,
                          cmoe_error *err)
{
    cmoe_sampling s;
    cmoe_request r;
    cmoe_sampling_default(&s, sizeof s); /* greedy */
    s.temperature = temperature;
    s.seed = 7;
    cmoe_request_default(&r, sizeof r);
    r.prompt = ids; /* all of it is copied */
    r.prompt_count = count;
    r.max_tokens = NEW;
    r.sampling = &s;
    return cmoe_engine_submit(w->engine, &r, &a->request, err);
}

/* What has happened since the last step. */
static void listen(world *w, answer *answers)
{
    cmoe_event e;
    cmoe_event_default(&e, sizeof e);
    while (cmoe_engine_poll(w->engine, &e)) {
        answer *a = answers;
        while (a->request != e.request)
            a++;
        if (e.kind == CMOE_EVENT_FINISH) a->finish = e.finish;
        for (int64_t i = 0; e.kind == CMOE_EVENT_TOKENS && i < e.count; i++)
            a->ids[a->count++] = e.ids[i];
    }
}

int main(int argc, char **argv)
{
    cmoe_error err = {0};
    world w = {0};
    answer answers[REQUESTS] = {0};
    int32_t ids[MOST_IDS], busy = 1;
    int64_t count = 0;
    if (argc < 3 || argc - 2 > MOST_IDS) {
        fprintf(stderr, "usage: 05_generate MODEL ID...\n");
        return 2;
    }
    while (count < argc - 2) {
        ids[count] = (int32_t)strtol(argv[2 + count], NULL, 10);
        count++;
    }
    cmoe_status status = open_world(&w, argv[1], &err);
    for (int i = 0; i < REQUESTS && status == CMOE_OK; i++)
        status = submit(&w, ids, count, i ? 0.8f : 0, &answers[i], &err);
    while (busy && status == CMOE_OK) { /* one forward for both */
        status = cmoe_engine_step(w.engine, &busy, &err);
        listen(&w, answers);
    }
    if (status != CMOE_OK) fprintf(stderr, "05_generate: %s\n", err.text);
    for (int i = 0; i < REQUESTS && status == CMOE_OK; i++) {
        printf("%s", i ? "sampled:" : "greedy: ");
        for (int64_t t = 0; t < answers[i].count; t++)
            printf(" %d", (int)answers[i].ids[t]);
        printf(" (%s)\n", cmoe_finish_name(answers[i].finish));
    }
    cmoe_engine_free(w.engine);
    cmoe_model_free(w.model);
    cmoe_stream_free(w.stream);
    cmoe_ctx_free(w.ctx);
    return status == CMOE_OK ? 0 : 1;
}
