/* SPDX-License-Identifier: MIT
 *
 * talk.h - a loaded model with an engine, one request at a time: for generate, chat and bench model.
 */
#ifndef TOOLS_TALK_H
#define TOOLS_TALK_H

#include "cmoe/engine.h"
#include "keep.h"
#include "model.h"
#include "routing.h"

typedef struct talk {
    const model_flags *flags;
    const common_options *common;
    tool_session session;
    cmoe_model_info info;      /* of model_plan */
    cmoe_tokenizer *tokenizer; /* may be NULL: ids and no text */
    cmoe_model *model;
    cmoe_engine *engine;
    keep_job keeping; /* packed weights are written beside the first tokens */
    double load_seconds;
} talk;

/* Session and plan: what can be known before loading.  0, or the exit status after an error line, as
 * all here. */
int talk_open(talk *t, const model_flags *flags, const common_options *common);
/* Compares what is needed with what is there, loads, makes the engine: room for one sequence of
 * `positions`, whole blocks of `block` (0: none). */
int talk_load(talk *t, int64_t positions, int64_t block, bool reuse);
void talk_close(talk *t);

/* Told of events as they come; each may be NULL. */
typedef struct talk_listener {
    void *user;
    void (*tokens)(void *user, const cmoe_event *e); /* FINISH too, for the text held back */
    void (*canvas)(void *user, const cmoe_event *e);
    bool *failed; /* becomes true when nobody can hear: the request is cancelled */
} talk_listener;

typedef struct talk_answer {
    int32_t *ids; /* [count] */
    char *text;   /* [bytes], and a zero */
    int64_t count, bytes, ids_room, text_room;
    int32_t finish;
    int64_t prompt_tokens, cached_tokens, forwards;
    double prompt_seconds, generate_seconds; /* to the first tokens; from there to the end */
} talk_answer;

/* Runs a request to its end; an interrupt cancels it.  `captured`: filled when the request captures,
 * or NULL. */
int talk_ask(talk *t, const cmoe_request *r, const talk_listener *listener, routing *captured,
             talk_answer *a);
void talk_answer_free(talk_answer *a);

/* "prompt 7 tokens, 90.1 tokens/s; ..." on stderr. */
void talk_figures(const talk_answer *a);

#endif
