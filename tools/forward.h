/* SPDX-License-Identifier: MIT
 *
 * forward.h - known ids through a model, without an engine: one sequence in chunks, so that memory
 * is bounded by its cache and not by the activations.
 */
#ifndef TOOLS_FORWARD_H
#define TOOLS_FORWARD_H

#include "cmoe/model.h"
#include "machine.h"

typedef struct forward {
    const tool_session *session;
    const cmoe_model *model;
    int64_t vocab, positions; /* room of the cache */
    int64_t chunk;            /* most tokens of a call */
    cmoe_cache *cache;
    int32_t *pages; /* [ceil(positions / CMOE_KV_PAGE)] 0, 1, 2, ... */
    void *work;
    cmoe_arena arena;
    float *row; /* [vocab] of calls that want no logits */
} forward;

/* Tokens of a call: whole blocks, because a token sees all of its block; everything at once where all
 * tokens see each other. */
int64_t forward_chunk(const cmoe_model_info *info, int64_t tokens, int64_t chunk);

/* 0, or the exit status after an error line, as all here.  `what` stands in error lines. */
int forward_open(forward *f, const tool_session *session, const cmoe_model *model,
                 int64_t positions, int64_t chunk, const char *what);
void forward_close(forward *f);

/* Tokens ids [n] at positions [at, at + n), n <= chunk; those before have been here.  logits [n, vocab]
 * or NULL: not wanted. */
int forward_tokens(forward *f, const int64_t *ids, int64_t at, int64_t n,
                   const cmoe_routing *capture, const cmoe_routing *replay, float *logits,
                   const char *what);

#endif
