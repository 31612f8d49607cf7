/* SPDX-License-Identifier: MIT
 *
 * engine.h - sequences, and the methods by which they grow.
 *
 * A sequence is a canvas of token ids, of which the first `cached` have final keys and values in the
 * cache.  Each step the scheduler asks a sequence's method which positions to run and whose logits it
 * wants, puts all sequences into one batch, runs it, and gives each method its logits.  A method
 * knows nothing of other sequences, of pages or of batches; the scheduler knows nothing of tokens'
 * meaning.  So one token after the other and blocks of masks run side by side.
 */
#ifndef CMOE_ENGINE_INTERNAL_H
#define CMOE_ENGINE_INTERNAL_H

#include "cmoe/engine.h"
#include "core/core.h"

typedef struct cmoei_sequence cmoei_sequence;

/* What a sequence wants to have run: positions [begin, end), begin == cached. */
typedef struct cmoei_work {
    int64_t begin, end;
    int64_t rows; /* how many of them need logits */
    int64_t *row; /* [end - begin at most] their positions, ascending; room for `room` */
    int64_t room;
    int64_t final; /* after this forward positions below have final keys and values */
} cmoei_work;

typedef struct cmoei_method {
    const char *name; /* "autoregressive", "diffusion" */
    /* Makes s->state from the request, which has been checked in general; fails for what concerns the
     * method alone. */
    cmoe_status (*open)(cmoei_sequence *s, const cmoe_request *r, cmoe_error *err);
    void (*close)(cmoei_sequence *s);
    /* At most `budget` positions (at least what one step of the method needs, else 0 for later; a
     * prompt may be cut anywhere that `step` allows).  Cannot fail. */
    void (*plan)(cmoei_sequence *s, int64_t budget, cmoei_work *w);
    /* logits float32 [w->rows, vocab], to be overwritten at will.  Writes tokens, tells what became of
     * them through cmoei_sequence_tell, finishes through cmoei_sequence_finish. */
    cmoe_status (*accept)(cmoei_sequence *s, const cmoei_work *w, float *logits, cmoe_error *err);
    int64_t (*step)(const cmoei_sequence *s); /* prompts are cut at multiples of this position */
    /* Positions that one forward must hold at least: a pass is all or nothing. */
    int64_t (*need)(const cmoei_sequence *s);
} cmoei_method;

extern const cmoei_method cmoei_autoregressive, cmoei_diffusion;

struct cmoei_sequence {
    cmoe_ctx *ctx;
    const cmoe_model *model;
    cmoe_model_info info; /* of the model */
    int64_t usable;       /* ids below may be chosen: those that the tokenizer knows, or vocab */
    int64_t id;
    const cmoei_method *method;
    void *state; /* of the method */
    /* the canvas */
    int32_t *tokens;         /* [capacity] */
    int64_t count, capacity; /* tokens on the canvas, masks included */
    int64_t prompt;          /* of them were given */
    int64_t limit;           /* the canvas never holds more of the answer: prompt + max_tokens */
    int64_t cached;          /* positions with final keys and values */
    int64_t told;            /* positions that events have reported */
    /* the request */
    cmoe_sampling sampling; /* bias arrays copied behind it */
    int32_t *stop_tokens;   /* [stops] */
    int64_t stops;
    int32_t logprobs;
    /* the end */
    int32_t finish;   /* CMOE_FINISH_, NONE while it runs */
    int64_t forwards; /* counted by the method: those that depend on the request alone, so no
                         parts of prompts and nothing that is run again */
    void *owner;      /* the engine's own bookkeeping */
};

/* The scheduler's side, for methods.  Tokens [s->told, end) of the canvas are final: they become an
 * event, looked through for stop strings, and text.  logprobs [end - told, s->logprobs] or NULL.
 * After a stop s->finish is set. */
cmoe_status cmoei_sequence_tell(cmoei_sequence *s, int64_t end, const cmoe_logprob *logprobs,
                                cmoe_error *err);
/* The canvas in [begin, end) as it stands: a CANVAS event. */
cmoe_status cmoei_sequence_show(cmoei_sequence *s, int64_t begin, int64_t end, cmoe_error *err);
void cmoei_sequence_finish(cmoei_sequence *s, int32_t finish);
bool cmoei_sequence_stops_at(const cmoei_sequence *s, int32_t id); /* a stop token */

/* ---- sampling (sampling.c) -------------------------------------------------------------------- */

/* Log-softmax of one row: *log_sum so that logprob(i) = logits[i] - *log_sum.  Fixed tree. */
void cmoei_log_sum(const float *logits, int64_t n, float *log_sum);
/* The best id below `usable` (ties to the lower), skipping `never` (-1: none). */
int64_t cmoei_best(const float *logits, int64_t usable, int64_t never);
/* out [1 + n]: the token, then the n best with their log-probabilities. */
void cmoei_top_logprobs(const float *logits, int64_t vocab, int64_t id, int32_t n,
                        cmoe_logprob *out);

#endif
