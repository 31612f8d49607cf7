/* SPDX-License-Identifier: MIT
 *
 * world.h - a golden model behind an engine, requests, and all that came of each of them.
 */
#ifndef CMOE_ENGINE_WORLD_H
#define CMOE_ENGINE_WORLD_H

#include <stdbool.h>

#include "../../unit/unit.h"

#include "cmoe/engine.h"
#include "cmoe/model.h"
#include "cmoe/weights.h"

extern const char *world_folder; /* of the golden checkpoints */

typedef struct world {
    unit_env env;
    cmoe_model *model;
    cmoe_model_info info;
    cmoe_tokenizer *tokenizer; /* NULL, or one of single bytes: id = byte */
    cmoe_engine *engine;
} world;

world world_open(const char *name, int32_t threads);
/* With an allocator of the caller's. */
world world_of(unit_env env, const char *name);
void world_engine(world *w, const cmoe_engine_options *o); /* also instead of the one before */
void world_tokenizer(world *w, int size);                  /* of bytes below `size` */
void world_close(world *w);
cmoe_engine_info world_info(const world *w);

/* A prompt of golden.safetensors, or the greedy tokens behind it: "p0.input_ids", "p1.greedy".
 * 0: there is none. */
int64_t world_golden(const world *w, const char *name, const char *tensor, int32_t *ids,
                     int64_t room);
/* Some tokens that depend on `seed`. */
void world_prompt(int32_t *ids, int64_t n, uint64_t seed, int64_t vocab);

/* ---- what came of a request ------------------------------------------------------------------- */

enum { WORLD_TOKENS = 600, WORLD_TEXT = 8192, WORLD_LOGPROBS = 4 };

typedef struct answer {
    int64_t id; /* 0: none */
    int32_t logprobs;
    int32_t ids[WORLD_TOKENS];
    cmoe_logprob best[WORLD_TOKENS * WORLD_LOGPROBS];
    int64_t count, position; /* where the next one has to be */
    char text[WORLD_TEXT];
    int64_t bytes, events;
    int32_t finish;
    int64_t prompt_tokens, cached_tokens, new_tokens, forwards;
} answer;

int64_t world_submit(world *w, const cmoe_request *r, answer *a);
/* Takes all events there are; those of requests that are not in the list fail. */
void world_poll(world *w, answer *all, int64_t n);
bool world_step(world *w, answer *all, int64_t n); /* and polls; whether there is more to do */
void world_run(world *w, answer *all, int64_t n);  /* to the end */
/* Alone in the engine there is. */
void world_answer(world *w, const cmoe_request *r, answer *a);
/* Tokens, log-probabilities, text, finish. */
void world_same(const answer *a, const answer *b, const char *what);

#endif
