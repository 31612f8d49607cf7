/* SPDX-License-Identifier: MIT
 *
 * job.h - the engine's side of a request, and the engine itself.
 *
 * A job is a sequence with what the scheduler and the caller need beside it: its pages, what the next
 * forward does for it, its text, what has not been polled yet.  Jobs stand in one list by their
 * number, which is the order of arrival; a preempted one is waiting again, and so before younger ones.
 */
#ifndef CMOE_ENGINE_JOB_H
#define CMOE_ENGINE_JOB_H

#include <stdatomic.h>

#include "engine.h"
#include "pages.h"

/* ---- job --------------------------------------------------------------------------------------- */

typedef enum cmoei_job_state { CMOEI_WAITING = 0, CMOEI_RUNNING, CMOEI_ENDED } cmoei_job_state;

/* What has happened and was not polled: order 0 means nothing.  Tokens are [polled, told). */
typedef struct cmoei_pending {
    int64_t order;      /* of the engine's events */
    int64_t begin, end; /* of the canvas */
} cmoei_pending;

/* Text of the answer.  [begin, ready) is for the next TOKENS event; [ready, end) may be the beginning of
 * a stop string and waits. */
typedef struct cmoei_text {
    cmoe_detokenizer *detokenizer; /* NULL: nobody asks for text */
    bool wanted;                   /* in events; else for stop strings only */
    char *data;                    /* from the context's allocator */
    int64_t room, begin, ready, end;
    const char **stop; /* [stops] */
    int64_t *stop_bytes;
    int64_t stops;
} cmoei_text;

typedef struct cmoei_job {
    cmoei_sequence s; /* s.owner is the job */
    cmoe_engine *engine;
    struct cmoei_job *next;
    int64_t bytes; /* of this block */
    cmoei_job_state state;
    bool opened;           /* by its method */
    _Atomic int64_t *flag; /* where cancel leaves its word */
    bool preempted;        /* once at least */
    int64_t cached_tokens; /* of the prompt, found in the cache */

    int32_t *pages; /* [columns] */
    int64_t held;
    int64_t published; /* pages that are known by their tokens */
    bool shares;       /* its pages can serve others, and others' can serve it */

    cmoei_work work; /* of the step that is being made */
    bool planned;

    cmoei_pending tokens, canvas, finish;
    int64_t polled;
    cmoe_logprob *logprobs; /* [limit - prompt, s.logprobs] */
    cmoei_text text;

    cmoe_routing *capture; /* [layers], tables of `capacity` rows; or NULL */
    int64_t captured;      /* rows of them that are filled */
    cmoe_routing *replay;  /* [layers], tables of `replayed` rows; or NULL */
    int64_t replayed;
} cmoei_job;

/* ---- engine ------------------------------------------------------------------------------------ */

/* Words that other threads may write: a job's number while it lives, its negative once it is to be
 * cancelled, 0 when nobody uses it.  Chunk i has CMOEI_FLAGS << i of them and stays where it is. */
enum { CMOEI_FLAGS = 64, CMOEI_FLAG_CHUNKS = 32 };
typedef struct cmoei_flags {
    _Atomic(_Atomic int64_t *) chunk[CMOEI_FLAG_CHUNKS];
    int64_t lowest; /* none below is unused */
} cmoei_flags;

/* Options as they are used, and what follows from them. */
typedef struct cmoei_engine_sizes {
    cmoe_engine_options o;
    cmoe_model_info info;
    int64_t rows;    /* most rows of logits in one forward */
    int64_t columns; /* pages of the longest sequence */
    int64_t scratch; /* bytes of a forward */
    int64_t cache;   /* bytes of keys and values */
} cmoei_engine_sizes;

struct cmoe_engine {
    cmoei_engine_sizes z;
    cmoe_ctx *ctx;
    cmoe_stream *stream;
    const cmoe_model *model;
    const cmoe_tokenizer *tokenizer;
    cmoe_cache *cache;
    int64_t bytes;  /* of this block */
    int64_t usable; /* ids below may be chosen */
    int64_t *topk;  /* [layers] routed experts of a token; 0: a dense layer */
    int64_t *experts;
    cmoei_pages pages;

    cmoei_job *jobs, **tail;
    int64_t last_id, running, waiting;
    int64_t order; /* of the last event */
    cmoei_flags flags;

    /* one forward */
    int32_t *ids;       /* [step_tokens] */
    int64_t *rows;      /* [rows] tokens of the batch */
    int64_t *positions; /* [rows] the same as methods know them */
    int64_t *first;     /* [sequences + 1] */
    int64_t *start;     /* [sequences] */
    int32_t *table;     /* [sequences, columns] */
    float *logits;      /* [rows, vocab] */
    cmoe_arena scratch;
    int64_t tokens_left, rows_used; /* while it is planned */
    bool replayed_last;             /* the last forward was one of a job that replays */
    cmoe_routing *capture, *replay; /* [layers] of the call, as long as the batch */
    void *captured;                 /* memory behind capture; NULL until somebody asks for it */
    int64_t captured_bytes;

    int64_t forwards, tokens, prompt_tokens, cached_tokens; /* so far */
};

cmoe_status cmoei_engine_measure(cmoei_engine_sizes *z, const cmoe_model *m,
                                 const cmoe_engine_options *o, cmoe_error *err);

/* request.c */
void cmoei_job_free(cmoei_job *j);
/* flags.c */
cmoe_status cmoei_flags_take(cmoei_flags *f, cmoe_ctx *ctx, int64_t id, _Atomic int64_t **flag,
                             cmoe_error *err);
void cmoei_flags_give(cmoei_flags *f, _Atomic int64_t *flag);
void cmoei_flags_free(cmoei_flags *f, cmoe_ctx *ctx);
/* schedule.c: lets go of the pages, tells the end. */
void cmoei_job_end(cmoei_job *j, int32_t finish);
/* share.c */
void cmoei_job_attach(cmoei_job *j);
void cmoei_job_publish(cmoei_job *j);
void cmoei_job_release(cmoei_job *j);
/* batch.c: one forward of all planned jobs. */
cmoe_status cmoei_batch_run(cmoe_engine *e, cmoe_error *err);
/* routing.c */
cmoe_status cmoei_routing_check(const cmoe_engine *e, const cmoe_request *r, cmoe_error *err);
void cmoei_routing_carve(cmoei_job *j, const cmoe_engine *e, const cmoe_request *r,
                         int64_t capacity, cmoei_carver *c);
void cmoei_routing_copy(cmoei_job *j, const cmoe_request *r);
cmoe_status cmoei_routing_prepare(cmoe_engine *e, cmoe_error *err);
/* e->replay: the job's tables from its next position on, for a forward of `tokens` of it alone. */
void cmoei_routing_replay(const cmoei_job *j, int64_t tokens);
/* e->capture: tables of `tokens` rows, whose rows from `first` on are then kept for the job. */
void cmoei_routing_capture(cmoe_engine *e, int64_t tokens);
void cmoei_routing_keep(cmoei_job *j, int64_t first);
static inline bool cmoei_job_replays(const cmoei_job *j)
{
    return j->s.cached < j->replayed;
}
/* text.c */
cmoe_status cmoei_text_push(cmoei_text *t, cmoe_ctx *ctx, int32_t id, bool *stopped,
                            cmoe_error *err);
void cmoei_text_finish(cmoei_text *t, cmoe_ctx *ctx);

#endif
