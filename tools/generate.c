/* SPDX-License-Identifier: MIT
 *
 * generate.c - `cmoe generate`: text from a model, or ids from ids.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report.h"
#include "screen.h"
#include "settings.h"
#include "talk.h"
#include "text.h"
#include "verbs.h"

typedef struct generate_options {
    model_flags model;
    prompt_flags prompt;
    int64_t max_tokens;
    bool ignore_eos;
    sampling_flags sampling;
    routing_flags routing;
    diffusion_flags diffusion;
    common_options common;
} generate_options;

#define AT(field) offsetof(generate_options, field)

static const option options[] = {
    OPTION_MODEL(generate_options, true),
    OPTIONS_PROMPT(generate_options),
    {.name = "max-tokens",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(max_tokens),
     .initial = "256",
     .most = 1099511627776.0,
     .help = "at most so many new tokens; 0: up to the context"},
    {.name = "ignore-eos",
     .type = OPTION_FLAG,
     .offset = AT(ignore_eos),
     .help = "go on behind the end of the text"},
    OPTIONS_MODEL(generate_options, "auto", "user"),
    OPTIONS_SAMPLING(generate_options),
    OPTIONS_ROUTING(generate_options),
    OPTIONS_DIFFUSION(generate_options),
    OPTIONS_COMMON(generate_options),
};

const option_verb generate_verb = {
    .name = "generate",
    .group = "Text from a model",
    .summary = "go on from a text, or from token ids",
    .examples = "  cmoe generate MODEL --prompt \"Once upon a time\"\n"
                "  cmoe generate MODEL --prompt-file story.txt --max-tokens 500 --temperature 0.7\n"
                "  cmoe generate MODEL --ids 1,2,3 --temperature 0 --json\n"
                "  cmoe generate MODEL --prompt \"2 + 2 =\" --remasking sequential\n",
    .text = "Writes the new text and nothing else to stdout, as it comes; with --ids the new ids, "
            "separated by commas. Figures go to stderr. The prompt is not repeated and no chat "
            "template is used. The same seed gives the same text, whatever the number of threads.\n"
            "\n"
            "Ends at a token that generation_config.json (else config.json) names as end of text, "
            "which is not part of the answer; at --max-tokens; or where the context is full. An "
            "interrupt ends it, too: what there is has been written, exit status 130.\n"
            "\n"
            "On a terminal, models of block diffusion show undecided tokens in place.\n"
            "\n"
            "--json: {\"prompt_ids\", \"ids\", \"text\", \"finish\": "
            "\"length|stop|eos|cancelled|forwards|repeats\", \"forwards\", \"seconds\": {\"load\", "
            "\"prompt\", \"generate\"}, \"ranks\"}. A captured routing has a row for each position "
            "that went through the model; a replayed one is used by position.",
    .options = options,
};

typedef struct run {
    const generate_options *o;
    talk talk;
    settings settings;
    int32_t *prompt; /* [prompt_count] */
    int64_t prompt_count, positions;
    routing captured, replayed;
    screen screen;
    bool terminal, failed, ids_begun;
} run;

/* ---- before the answer ----------------------------------------------------------------------- */

/* What can be known before loading. */
static int prepare(run *r)
{
    const generate_options *o = r->o;
    talk *t = &r->talk;
    int status = text_check_prompt(&o->prompt);
    if (status == 0) status = talk_open(t, &o->model, &o->common);
    if (status == 0)
        status = settings_read(&r->settings, t->session.ctx, o->model.path, &t->info, &o->sampling,
                               &o->diffusion, o->model.block_length);
    if (status == 0) status = routing_check_flags(&o->routing, &t->info, o->model.path);
    if (status == 0 && o->routing.replay && r->settings.diffuses)
        status = report_fail(EXIT_USAGE, "--replay-routing",
                             "%s makes blocks, whose positions go through the model more than "
                             "once: there is no routing of each to replay",
                             o->model.path);
    if (status == 0 && o->routing.capture)
        status =
            model_check_output(&t->session, &o->model, "--capture-routing", o->routing.capture);
    if (status == 0)
        status = text_prompt(&t->session, &o->prompt, o->model.path, &t->info, &t->tokenizer,
                             &r->prompt, &r->prompt_count);
    if (status) return status;
    if (o->ignore_eos) r->settings.n_eos = 0;
    r->positions = t->info.context;
    if (o->max_tokens > 0 && o->max_tokens < r->positions - r->prompt_count)
        r->positions = r->prompt_count + o->max_tokens;
    return 0;
}

static int read_replay(run *r)
{
    const routing_flags *f = &r->o->routing;
    int64_t rows;
    int status = routing_count(r->talk.session.ctx, f->replay, &rows);
    if (status == 0) status = routing_create(&r->replayed, r->talk.model, rows);
    if (status == 0)
        status = routing_read(&r->replayed, r->talk.session.ctx, f->replay, f->replay_weights);
    return status;
}

/* ---- the answer ------------------------------------------------------------------------------ */

static void write_out(run *r, const char *text, int64_t bytes)
{
    if (bytes > 0 && !r->failed &&
        (fwrite(text, 1, (size_t)bytes, stdout) != (size_t)bytes || fflush(stdout) != 0)) {
        report_fail(EXIT_ERROR, "stdout", "%s", strerror(errno));
        r->failed = true;
    }
}

static void on_tokens(void *user, const cmoe_event *e)
{
    run *r = user;
    if (r->terminal && e->kind == CMOE_EVENT_TOKENS)
        screen_settle(&r->screen, e->position + e->count);
    if (r->talk.tokenizer) {
        if (r->terminal)
            screen_text(&r->screen, e->text, e->bytes);
        else
            write_out(r, e->text, e->bytes);
        return;
    }
    for (int64_t i = 0; i < e->count; i++) {
        char text[16];
        const int n = snprintf(text, sizeof text, r->ids_begun ? ",%d" : "%d", (int)e->ids[i]);
        r->ids_begun = true;
        if (r->terminal)
            screen_text(&r->screen, text, n);
        else
            write_out(r, text, n);
    }
}

static void on_canvas(void *user, const cmoe_event *e)
{
    run *r = user;
    screen_canvas(&r->screen, e);
}

static int print_json(const run *r, const talk_answer *a)
{
    const char *finish = cmoe_finish_name(a->finish);
    return report_json(json_pack(
        "{so so so ss sI s{sf sf sf} so}", "prompt_ids", text_ids_json(r->prompt, r->prompt_count),
        "ids", text_ids_json(a->ids, a->count), "text", json_stringn(a->text, (size_t)a->bytes),
        "finish", finish ? finish : "", "forwards", (json_int_t)a->forwards, "seconds", "load",
        r->talk.load_seconds, "prompt", a->prompt_seconds, "generate", a->generate_seconds, "ranks",
        model_ranks_json(&r->talk.info)));
}

/* Behind the answer: what else was asked for. */
static int conclude(run *r, const talk_answer *a)
{
    const generate_options *o = r->o;
    int status = 0;
    if (r->failed) return EXIT_ERROR;
    if (o->routing.capture) status = routing_write(&r->captured, o->routing.capture);
    if (status == 0 && o->common.json) status = print_json(r, a);
    if (status == 0 && !o->common.json && !o->common.quiet) talk_figures(a);
    if (status == 0 && a->finish == CMOE_FINISH_CANCELLED) status = EXIT_CANCELLED;
    return status;
}

static cmoe_request request_of(run *r)
{
    const generate_options *o = r->o;
    cmoe_request q;
    cmoe_request_default(&q, sizeof q);
    q.prompt = r->prompt;
    q.prompt_count = r->prompt_count;
    q.max_tokens = o->max_tokens;
    q.sampling = &r->settings.sampling;
    q.stop_tokens = r->settings.eos;
    q.stops = r->settings.n_eos;
    q.capture = o->routing.capture != NULL;
    q.diffusion = r->settings.diffuses ? &r->settings.diffusion : NULL;
    q.want_text = r->talk.tokenizer != NULL;
    if (o->routing.replay) {
        q.replay = routing_rows(&r->replayed, 0, r->replayed.tokens, o->routing.replay_weights);
        q.replay_tokens = r->replayed.tokens;
    }
    return q;
}

static int answer(run *r)
{
    const generate_options *o = r->o;
    const int64_t mask = settings_mask_token(&r->settings, &r->talk.info);
    talk_answer a = {0};
    talk_listener listener = {.user = r, .failed = &r->failed};
    const cmoe_request q = request_of(r);
    r->terminal = !o->common.json && isatty(STDOUT_FILENO);
    if (!o->common.json) listener.tokens = on_tokens;
    if (r->terminal) {
        screen_open(&r->screen, r->talk.tokenizer, mask, r->prompt_count);
        listener.canvas = on_canvas;
    }
    int status = talk_ask(&r->talk, &q, &listener, o->routing.capture ? &r->captured : NULL, &a);
    if (r->terminal) screen_close(&r->screen);
    if (status == 0 && !o->common.json && (r->ids_begun || r->terminal)) write_out(r, "\n", 1);
    if (status == 0) status = conclude(r, &a);
    talk_answer_free(&a);
    return status;
}

int generate_main(int argc, char **argv)
{
    generate_options o = {0};
    run r = {.o = &o};
    int status = options_parse(&generate_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = prepare(&r);
    }
    if (status == 0)
        status = talk_load(&r.talk, r.positions, settings_canvas(&r.settings, &r.talk.info), false);
    if (status == 0 && o.routing.replay) status = read_replay(&r);
    if (status == 0) status = answer(&r);
    routing_free(&r.captured);
    routing_free(&r.replayed);
    settings_free(&r.settings);
    talk_close(&r.talk);
    free(r.prompt);
    free(o.prompt.ids.v);
    return status;
}
