/* SPDX-License-Identifier: MIT
 *
 * autoregressive.c - one token after the other.
 *
 * The logits of the last token say the next one.  The random numbers of a token depend on the seed and
 * its position alone, so neither the batch nor a preemption changes what is drawn.
 */
#include <math.h>
#include <string.h>

#include "engine.h"

/* For requests with log-probabilities: the model's own logits, before sampling changes them. */
typedef struct state {
    int64_t bytes;
    cmoe_logprob *best; /* [logprobs] */
    float *logits;      /* [vocab] */
} state;

static state *carve(state *st, const cmoei_sequence *s, cmoei_carver *c)
{
    state *block = cmoei_carve_array(c, 1, sizeof *block);
    st->best = cmoei_carve_array(c, s->logprobs, sizeof *st->best);
    st->logits = cmoei_carve_array(c, s->info.vocab, sizeof *st->logits);
    return block;
}

static cmoe_status open_sequence(cmoei_sequence *s, const cmoe_request *r, cmoe_error *err)
{
    (void)r;
    if (s->logprobs == 0) return CMOE_OK;
    state built = {0};
    cmoei_carver c = cmoei_carver_dry();
    carve(&built, s, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "log-probabilities", err));
    built.bytes = cmoei_carver_bytes(&c);
    void *block;
    CMOEI_TRY(cmoei_alloc(s->ctx, built.bytes, "log-probabilities", &block, err));
    const cmoe_arena memory = cmoe_arena_make(block, built.bytes);
    c = cmoei_carver_open(&memory);
    state *st = carve(&built, s, &c);
    *st = built;
    s->state = st;
    return CMOE_OK;
}

static void close_sequence(cmoei_sequence *s)
{
    state *st = s->state;
    if (st) cmoei_free(s->ctx, st, st->bytes);
    s->state = NULL;
}

static void plan(cmoei_sequence *s, int64_t budget, cmoei_work *w)
{
    w->begin = s->cached;
    w->end = w->final = s->cached + CMOEI_MIN(s->count - s->cached, budget);
    w->rows = 0;
    if (w->end == s->count && w->room > 0) w->row[w->rows++] = s->count - 1;
}

static cmoe_status accept(cmoei_sequence *s, const cmoei_work *w, float *logits, cmoe_error *err)
{
    if (w->rows == 0) return CMOE_OK; /* a part of the prompt */
    const int64_t vocab = s->info.vocab;
    state *st = s->state;
    int32_t id;
    s->forwards++;
    if (st) memcpy(st->logits, logits, (size_t)vocab * sizeof *logits);
    for (int64_t i = s->usable; i < vocab; i++)
        logits[i] = -INFINITY; /* rows that only fill up the matrix */
    CMOEI_TRY(cmoe_sampling_process(s->ctx, &s->sampling, logits, vocab, s->tokens, s->count,
                                    s->count - s->prompt, err));
    CMOEI_TRY(cmoe_sampling_draw(&s->sampling, logits, vocab, s->count, &id, err));
    if (cmoei_sequence_stops_at(s, id)) {
        cmoei_sequence_finish(s, CMOE_FINISH_EOS);
        return CMOE_OK;
    }
    if (st) cmoei_top_logprobs(st->logits, vocab, id, s->logprobs - 1, st->best);
    s->tokens[s->count++] = id;
    CMOEI_TRY(cmoei_sequence_tell(s, s->count, st ? st->best : NULL, err));
    if (s->count == s->limit) cmoei_sequence_finish(s, CMOE_FINISH_LENGTH);
    return CMOE_OK;
}

static int64_t step(const cmoei_sequence *s)
{
    (void)s;
    return 1;
}

const cmoei_method cmoei_autoregressive = {.name = "autoregressive",
                                           .open = open_sequence,
                                           .close = close_sequence,
                                           .plan = plan,
                                           .accept = accept,
                                           .step = step,
                                           .need = step};
