/* SPDX-License-Identifier: MIT
 *
 * chat.c - `cmoe chat`: a conversation on a terminal, or line by line from a pipe.
 *
 * Every turn renders the whole conversation through the model's template and submits it as one
 * prompt.  That is not the waste it seems: the engine finds what it has read before in its cache and
 * reads only what is new.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "line.h"
#include "report.h"
#include "screen.h"
#include "settings.h"
#include "talk.h"
#include "template.h"
#include "text.h"
#include "verbs.h"

typedef struct chat_options {
    model_flags model;
    const char *system, *chat_template;
    int64_t max_tokens;
    sampling_flags sampling;
    diffusion_flags diffusion;
    common_options common;
} chat_options;

#define AT(field) offsetof(chat_options, field)

static const option options[] = {
    OPTION_MODEL(chat_options, true),
    {.name = "system",
     .argument = "TEXT",
     .type = OPTION_TEXT,
     .offset = AT(system),
     .help = "what the model is told first"},
    {.name = "chat-template",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(chat_template),
     .help = "a file with Jinja source, instead of the model's own template"},
    {.name = "max-tokens",
     .argument = "N",
     .type = OPTION_INT,
     .offset = AT(max_tokens),
     .initial = "0",
     .most = 1099511627776.0,
     .help = "at most so many tokens of an answer; 0: up to the context"},
    OPTIONS_MODEL(chat_options, "auto", "user"),
    OPTIONS_SAMPLING(chat_options),
    OPTIONS_DIFFUSION(chat_options),
    OPTIONS_COMMON(chat_options),
};

static const char commands[] = "  /clear   forget the conversation (the system text stays)\n"
                               "  /exit    the end; so are end of input and Ctrl-C, twice\n"
                               "  /help    this list\n"
                               "  Ctrl-C   stops an answer\n";

const option_verb chat_verb = {
    .name = "chat",
    .group = "Text from a model",
    .summary = "talk with a model",
    .examples = "  cmoe chat MODEL\n"
                "  cmoe chat MODEL --system \"Answer in one sentence.\" --temperature 0\n"
                "  echo \"What is a monad?\" | cmoe chat MODEL --quiet\n",
    .text = "Each line is a message; /help lists the commands. Ctrl-C stops the answer and not the "
            "program; at the prompt, twice in a row, it ends it. Conversations have room for "
            "--context tokens (0: 16384, or what the model takes if that is less).\n"
            "\n"
            "From a pipe, stdout has the answers and nothing else. --json prints the conversation "
            "at its end: {\"messages\": [{\"role\", \"content\"}], \"turns\": [{\"finish\", "
            "\"prompt_tokens\", \"cached_tokens\", \"new_tokens\", \"forwards\", \"seconds\"}]}.",
    .options = options,
};

enum { ROOM = 16384 };

typedef struct run {
    const chat_options *o;
    model_flags flags; /* with the context that there is room for */
    talk talk;
    settings settings;
    cmoe_template *template;
    json_t *messages, *turns;
    line line;
    screen screen;
    bool terminal, failed;
} run;

/* ---- before the first turn ------------------------------------------------------------------- */

static int prepare(run *r)
{
    const chat_options *o = r->o;
    talk *t = &r->talk;
    r->flags = o->model;
    int status = talk_open(t, &r->flags, &o->common);
    if (status == 0)
        status = settings_read(&r->settings, t->session.ctx, o->model.path, &t->info, &o->sampling,
                               &o->diffusion, o->model.block_length);
    if (status == 0)
        status = template_open(&t->session, o->model.path, o->chat_template, &r->template);
    if (status == 0) status = text_open(&t->session, o->model.path, &t->tokenizer);
    if (status) return status;
    if (r->flags.context == 0 && t->info.context > ROOM) {
        r->flags.context = ROOM;
        status = model_plan(&t->session, &r->flags, model_format(r->flags.dtype), &t->info);
    }
    if (status == 0)
        status = talk_load(t, t->info.context, settings_canvas(&r->settings, &t->info), true);
    return status;
}

static void say(json_t *messages, const char *role, const char *text, size_t bytes)
{
    json_t *content = json_stringn(text, bytes);
    json_array_append_new(messages, json_pack("{ss so}", "role", role, "content",
                                              content ? content : report_json_text(text)));
}

static void clear(run *r)
{
    json_array_clear(r->messages);
    if (r->o->system) say(r->messages, "system", r->o->system, strlen(r->o->system));
}

/* ---- a turn ---------------------------------------------------------------------------------- */

static void on_tokens(void *user, const cmoe_event *e)
{
    run *r = user;
    if (r->terminal) {
        if (e->kind == CMOE_EVENT_TOKENS) screen_settle(&r->screen, e->position + e->count);
        screen_text(&r->screen, e->text, e->bytes);
    } else if (e->bytes > 0 && !r->failed &&
               (fwrite(e->text, 1, (size_t)e->bytes, stdout) != (size_t)e->bytes ||
                fflush(stdout) != 0)) {
        report_fail(EXIT_ERROR, "stdout", "%s", strerror(errno));
        r->failed = true;
    }
}

static void on_canvas(void *user, const cmoe_event *e)
{
    run *r = user;
    screen_canvas(&r->screen, e);
}

/* The conversation as ids. */
static int prompt_of(const run *r, int32_t **ids, int64_t *count)
{
    const char *what = r->o->chat_template ? r->o->chat_template : r->o->model.path;
    json_t *variables = template_variables(r->o->model.path, true);
    char *text = NULL;
    int64_t bytes = 0;
    cmoe_encode_options e;
    cmoe_encode_options_default(&e, sizeof e);
    e.add_special = 0; /* the template has written them */
    json_object_set(variables, "messages", r->messages);
    int status = template_render(&r->talk.session, r->template, what, variables, &text, &bytes);
    if (status == 0)
        status = text_encode(r->talk.tokenizer, &e, text, (size_t)bytes, "message", EXIT_USAGE, ids,
                             count);
    if (status == 0 && *count == 0)
        status = report_fail(EXIT_FILE, what, "the template gives no text");
    if (status == 0 && *count >= r->talk.info.context)
        status = report_fail(EXIT_USAGE, "conversation",
                             "%lld tokens, want less than %lld (--context): /clear begins anew",
                             (long long)*count, (long long)r->talk.info.context);
    free(text);
    json_decref(variables);
    return status;
}

static void keep_turn(run *r, const talk_answer *a)
{
    const char *finish = cmoe_finish_name(a->finish);
    say(r->messages, "assistant", a->text, (size_t)a->bytes);
    json_array_append_new(
        r->turns,
        json_pack("{ss sI sI sI sI s{sf sf}}", "finish", finish ? finish : "", "prompt_tokens",
                  (json_int_t)a->prompt_tokens, "cached_tokens", (json_int_t)a->cached_tokens,
                  "new_tokens", (json_int_t)a->count, "forwards", (json_int_t)a->forwards,
                  "seconds", "prompt", a->prompt_seconds, "generate", a->generate_seconds));
}

static int ask(run *r, const int32_t *ids, int64_t count, talk_answer *a)
{
    const chat_options *o = r->o;
    talk_listener listener = {.user = r, .failed = &r->failed};
    cmoe_request q;
    cmoe_request_default(&q, sizeof q);
    q.prompt = ids;
    q.prompt_count = count;
    q.max_tokens = o->max_tokens;
    q.sampling = &r->settings.sampling;
    q.stop_tokens = r->settings.eos;
    q.stops = r->settings.n_eos;
    q.diffusion = r->settings.diffuses ? &r->settings.diffusion : NULL;
    if (!o->common.json) listener.tokens = on_tokens;
    if (r->terminal) {
        screen_open(&r->screen, r->talk.tokenizer, settings_mask_token(&r->settings, &r->talk.info),
                    count);
        listener.canvas = on_canvas;
    }
    const int status = talk_ask(&r->talk, &q, &listener, NULL, a);
    if (r->terminal) screen_close(&r->screen);
    return status;
}

/* A message and its answer.  A message that cannot be answered is forgotten. */
static int turn(run *r, const char *text)
{
    int32_t *ids = NULL;
    int64_t count = 0;
    talk_answer a = {0};
    report_go_on(true); /* an interrupt before the message is not one of its answer */
    say(r->messages, "user", text, strlen(text));
    int status = prompt_of(r, &ids, &count);
    if (status == 0) status = ask(r, ids, count, &a);
    if (status == 0) {
        keep_turn(r, &a);
        if (!r->o->common.json) fputc('\n', stdout);
        if (a.finish == CMOE_FINISH_CANCELLED && r->line.terminal) fputs("(stopped)\n", stderr);
        if (fflush(stdout) != 0) r->failed = true;
        if (!r->o->common.quiet && r->line.terminal) talk_figures(&a);
    } else {
        json_array_remove(r->messages, json_array_size(r->messages) - 1);
    }
    talk_answer_free(&a);
    free(ids);
    report_go_on(true); /* nor is one of the answer a word at the next prompt */
    return r->failed ? EXIT_ERROR : status;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* False: the end. */
static bool command(run *r, const char *text)
{
    if (!strcmp(text, "/exit") || !strcmp(text, "/quit")) return false;
    if (!strcmp(text, "/clear"))
        clear(r);
    else if (!strcmp(text, "/help"))
        fputs(commands, stderr);
    else
        fprintf(stderr, "%.40s is no command:\n%s", text, commands);
    return true;
}

/* From a pipe the first failure ends it; at a terminal one can say something else. */
static int loop(run *r)
{
    bool interrupted = false;
    for (;;) {
        const line_result got = line_read(&r->line, "> ");
        if (got == LINE_INTERRUPTED) {
            /* At a terminal the key is no signal; whoever sends one means it. */
            if (interrupted || report_cancelled()) return EXIT_CANCELLED;
            interrupted = true;
            report_go_on(true); /* first: from the text on, the next one counts */
            fputs("(once more, or /exit, ends the chat)\n", stderr);
            continue;
        }
        interrupted = false;
        if (got == LINE_END) return 0;
        if (got == LINE_FAILED) return report_fail(EXIT_ERROR, "stdin", "%s", strerror(errno));
        if (r->line.text[0] == '\0') continue;
        if (r->line.text[0] == '/') {
            if (!command(r, r->line.text)) return 0;
            continue;
        }
        const int status = turn(r, r->line.text);
        if (status && (!r->line.terminal || r->failed)) return status;
    }
}

int chat_main(int argc, char **argv)
{
    chat_options o = {0};
    run r = {.o = &o, .messages = json_array(), .turns = json_array()};
    int status = options_parse(&chat_verb, argc, argv, &o);
    if (status == 0) {
        report_catch_signals();
        status = prepare(&r);
    }
    if (status == 0) {
        r.terminal = !o.common.json && isatty(STDOUT_FILENO);
        report_go_on(true);
        line_open(&r.line);
        clear(&r);
        if (r.line.terminal && !o.common.quiet)
            fprintf(stderr, "%s as %s. /help lists commands.\n", r.talk.info.type,
                    model_format_name(r.talk.info.format));
        status = loop(&r);
        line_close(&r.line);
    }
    if (status == 0 && o.common.json)
        status = report_json(json_pack("{sO sO}", "messages", r.messages, "turns", r.turns));
    json_decref(r.messages);
    json_decref(r.turns);
    cmoe_template_free(r.template);
    settings_free(&r.settings);
    talk_close(&r.talk);
    return status;
}
