/* SPDX-License-Identifier: MIT
 *
 * cmoe/engine.h - text from a model: many requests at once over one cache.
 *
 *     cmoe_engine_create     a model, its tokenizer, a cache of pages
 *     cmoe_engine_submit     a request: prompt, sampling, stops
 *     cmoe_engine_step       one forward for whoever has work: prompts in chunks beside decodes
 *     cmoe_engine_poll       what happened: tokens, text, the end
 *
 * A request's result does not depend on what else runs, on the number of threads, nor on whether its
 * prompt was found in the cache: random numbers are a function of seed, position and draw, and the
 * model gives the same bits in any batch.  Part of libcmoe_engine.
 */
#ifndef CMOE_ENGINE_H
#define CMOE_ENGINE_H

#include "cmoe/base.h"
#include "cmoe/model.h"
#include "cmoe/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- sampling -------------------------------------------------------------------------------- */

/* In this order, which is transformers': repetition, presence and frequency penalties, bias,
 * temperature, top_k, top_p, min_p, then a draw.  temperature 0: the best logit, ties to the lower id;
 * what follows temperature then does nothing. */
typedef struct cmoe_sampling {
    size_t size;
    float temperature;        /* default 0 */
    int32_t top_k;            /* 0 (default): all; ties with the k-th stay */
    float top_p;              /* default 1 */
    float min_p;              /* default 0 */
    float repetition_penalty; /* default 1; over prompt and output, once per distinct id */
    float presence_penalty, frequency_penalty; /* default 0; over the output */
    uint64_t seed;                             /* default 0 */
    const int32_t *bias_ids;                   /* [biases] */
    const float *bias; /* added to the logits of these ids; -infinity forbids one */
    int64_t biases;
} cmoe_sampling;

CMOE_API void cmoe_sampling_default(cmoe_sampling *s, size_t size);

/* What sampling does to one row of logits [vocab] in place, without the draw: what is left out becomes
 * -infinity.  `previous` are prompt and output, of which the last `output` are output. */
CMOE_API cmoe_status cmoe_sampling_process(cmoe_ctx *ctx, const cmoe_sampling *s, float *logits,
                                           int64_t vocab, const int32_t *previous,
                                           int64_t previous_count, int64_t output, cmoe_error *err);
/* A draw from processed logits for the token at `position`; with temperature 0, the best one. */
CMOE_API cmoe_status cmoe_sampling_draw(const cmoe_sampling *s, const float *logits, int64_t vocab,
                                        int64_t position, int32_t *id, cmoe_error *err);

/* ---- block diffusion ------------------------------------------------------------------------- */

enum {
    CMOE_REMASK_LOW_CONFIDENCE_DYNAMIC = 0, /* all above the threshold, or the n best */
    CMOE_REMASK_LOW_CONFIDENCE_STATIC,      /* the n best */
    CMOE_REMASK_SEQUENTIAL,                 /* the leftmost n */
    CMOE_REMASK_ENTROPY_BOUNDED             /* by ascending entropy while their sum is below eb */
};
CMOE_API const char *cmoe_remasking_name(int32_t remasking); /* NULL if unknown */
CMOE_API int32_t cmoe_remasking_parse(const char *name);     /* -1 if unknown */

/* Blocks of B masks are filled a few tokens a forward.  Confidence is the probability of the token
 * under unfiltered softmax; ties go to the lower position and the lower token id.  The mask token and
 * ids beyond the tokenizer are never chosen. */
typedef struct cmoe_diffusion {
    size_t size;
    int64_t block; /* B: 4 .. 64; 0: the model's */
    int64_t steps; /* forwards a block is planned for: n = B / steps tokens each, one more for the
                             first B mod steps; 0: B */
    int32_t remasking; /* CMOE_REMASK_ */
    float threshold;   /* of dynamic; default 0.85 */
    float eb;          /* of entropy_bounded; default 0.35 */
    int64_t buffer;    /* blocks worked on at once; default 1: one after the other */
    float add_block;   /* the next block is opened when this share of the last one is filled; 0.1 */
    float semi_complete;  /* from this share on a block makes the next one progress; 0.9 */
    float accept;         /* with buffer > 1: tokens above it are accepted; default 0.95 */
    int64_t mask_token;   /* -1 (default): the model's */
    int64_t max_forwards; /* 0: any */
    int64_t max_repeats;  /* ends when one token stands so often in a row; 0: never */
} cmoe_diffusion;

CMOE_API void cmoe_diffusion_default(cmoe_diffusion *d, size_t size);

/* ---- engine ---------------------------------------------------------------------------------- */

typedef struct cmoe_engine_options {
    size_t size;
    int64_t pages;           /* of the cache; 0: enough for one sequence of the model's context */
    int64_t step_tokens;     /* most tokens of one forward; default 512 */
    int64_t sequences;       /* most that run at once, others wait; default 64 */
    int32_t cache_format;    /* as cmoe_cache_options.format */
    int32_t no_prefix_reuse; /* 1: pages of ended requests are not looked at again */
} cmoe_engine_options;

CMOE_API void cmoe_engine_options_default(cmoe_engine_options *o, size_t size);

/* Belongs to one thread at a time, but for cmoe_engine_cancel.  Borrows model and tokenizer; the
 * tokenizer may be NULL, then there are ids and no text. */
typedef struct cmoe_engine cmoe_engine;

CMOE_API cmoe_status cmoe_engine_create(cmoe_engine **out, cmoe_stream *s, const cmoe_model *model,
                                        const cmoe_tokenizer *tokenizer,
                                        const cmoe_engine_options *o, cmoe_error *err);
CMOE_API void cmoe_engine_free(cmoe_engine *e);
/* What an engine with these options takes beside the model: cache and work memory. */
CMOE_API cmoe_status cmoe_engine_bytes(const cmoe_model *model, const cmoe_engine_options *o,
                                       int64_t *bytes, cmoe_error *err);

typedef struct cmoe_request {
    size_t size;
    const int32_t *prompt; /* [prompt_count], at least 1; copied, as all the rest */
    int64_t prompt_count;
    int64_t max_tokens;            /* at most so many new ones; 0: up to the context */
    const cmoe_sampling *sampling; /* NULL: greedy */
    const int32_t *stop_tokens; /* [stops] end the answer and are not part of it; the engine itself
                                     knows none, they are in generation_config.json */
    int64_t stops;
    const char *const *stop_strings; /* ends in NULL; needs a tokenizer; or NULL */
    int32_t logprobs; /* 1 + n: log-probability of each token and of the n best; 0: none */
    int32_t capture;  /* 1: routing is kept, see cmoe_engine_routing */
    const cmoe_diffusion *diffusion; /* for models of block diffusion: how; NULL: their defaults */
    const cmoe_routing *replay; /* [layers], tables of `replay_tokens` rows by position; or NULL */
    int64_t replay_tokens;
    int32_t want_text; /* 1 (default): events carry text */
    int32_t reserved;
} cmoe_request;

CMOE_API void cmoe_request_default(cmoe_request *r, size_t size);

/* *id: a number that no other request of this engine has. */
CMOE_API cmoe_status cmoe_engine_submit(cmoe_engine *e, const cmoe_request *r, int64_t *id,
                                        cmoe_error *err);
/* Ends it with CMOE_FINISH_CANCELLED at the next step.  May be called from any thread.  An unknown or
 * ended request is nothing. */
CMOE_API void cmoe_engine_cancel(cmoe_engine *e, int64_t id);

/* One forward.  *busy: whether there is more to do.  An error concerns the engine, not one request;
 * all of its requests are then ended with CMOE_FINISH_ERROR. */
CMOE_API cmoe_status cmoe_engine_step(cmoe_engine *e, int32_t *busy, cmoe_error *err);

enum {
    CMOE_EVENT_TOKENS = 1, /* ids and text that belong to the answer, for good */
    CMOE_EVENT_CANVAS,     /* diffusion: ids of a block as they stand now, masks included */
    CMOE_EVENT_FINISH
};
enum {
    CMOE_FINISH_NONE = 0,
    CMOE_FINISH_LENGTH, /* max_tokens, or the context is full */
    CMOE_FINISH_STOP,   /* a stop string */
    CMOE_FINISH_EOS,    /* a stop token */
    CMOE_FINISH_CANCELLED,
    CMOE_FINISH_FORWARDS, /* diffusion: max_forwards */
    CMOE_FINISH_REPEATS,  /* diffusion: max_repeats */
    CMOE_FINISH_ERROR
};
CMOE_API const char *cmoe_finish_name(int32_t finish); /* "length"; NULL if unknown */

typedef struct cmoe_logprob {
    int32_t id;
    float logprob; /* natural, of the model's own distribution: before penalties and temperature */
} cmoe_logprob;

/* Pointers live until the next call of step, poll or free. */
typedef struct cmoe_event {
    size_t size; /* set by the caller; 0: sizeof(cmoe_event) */
    int64_t request;
    int32_t kind, finish;
    const int32_t *ids; /* TOKENS, CANVAS */
    int64_t count;
    int64_t position; /* of ids[0] in the sequence, prompt included */
    const char *text; /* TOKENS, and what was held back on FINISH; not terminated */
    int64_t bytes;
    const cmoe_logprob *logprobs; /* [count, logprobs]: the token itself first */
    /* on FINISH */
    int64_t prompt_tokens, cached_tokens, new_tokens, forwards;
} cmoe_event;

CMOE_API void cmoe_event_default(cmoe_event *event, size_t size);

/* The next event, in the order in which they happened; 0 when there is none. */
CMOE_API int32_t cmoe_engine_poll(cmoe_engine *e, cmoe_event *event);

/* Routing that a request with `capture` used at its positions so far: ids int32 [n, topk], weights
 * float32 [n, topk] of a layer with experts.  Lives until the request's FINISH event has been polled
 * and another call of step follows. */
CMOE_API cmoe_status cmoe_engine_routing(const cmoe_engine *e, int64_t id, int64_t layer,
                                         cmoe_view *ids, cmoe_view *weights, cmoe_error *err);

typedef struct cmoe_engine_info {
    size_t size;
    int64_t pages, pages_used, pages_reusable; /* used by requests; kept for reuse */
    int64_t running, waiting;
    int64_t forwards, tokens; /* so far */
    int64_t prompt_tokens, cached_tokens;
} cmoe_engine_info;

CMOE_API void cmoe_engine_info_default(cmoe_engine_info *info, size_t size);

CMOE_API cmoe_status cmoe_engine_describe(const cmoe_engine *e, cmoe_engine_info *info,
                                          cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
