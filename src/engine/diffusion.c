/* SPDX-License-Identifier: MIT
 *
 * diffusion.c - block diffusion: masks of a block of B positions are filled a few tokens a forward.
 *
 * Blocks are counted from position 0.  A block sees all before it and all of itself, never a later
 * one, so keys and values of a finished block are final.  Hence:
 *
 *   1. the full blocks of the prompt go into the cache, in chunks of whole blocks
 *   2. the rest of the prompt begins the first working block; masks fill it up
 *   3. a forward runs what is open behind the cache; logits of masked positions say what is written
 *   4. once no mask is left one more forward, of final tokens, makes the block's keys and values final
 *
 * One block after the other (buffer 1) that is SDAR's published algorithm, forward for forward.  With
 * more, Diffulex's schedule: a window of `buffer` blocks of which the first are complete and wait for
 * step 4, the others are open; a block opens when the one before it is filled to `add_block`, and
 * step 4 of one block is the same forward as step 3 of the next.
 *
 * What is written depends on the canvas, on the passes and on the seed alone.  `window` is where the
 * algorithm is, `cached` what the cache happens to hold: less after pages were taken away, more when
 * somebody else's were found.  So a text is the same whatever else runs, and so are its forwards:
 * those of steps 3 and 4 are counted, as if nothing had been found or lost.
 */
#include "engine/diffusion.h"

#include "engine/sampling.h"

typedef struct diffusion_state {
    int64_t bytes;
    cmoe_diffusion d;
    int64_t span;   /* positions of `buffer` blocks; the tables below are indexed modulo it */
    int64_t end;    /* of the canvas: the block that holds the limit, cut by the context */
    int64_t window; /* blocks below have had their last forward */
    int64_t open;   /* blocks below are on the canvas; window <= open */
    int64_t run;    /* how often the last token told stands in a row */
    int64_t *pass;  /* [buffer] passes of step 3 of each open block */
    cmoei_candidate *candidates; /* [span] masks of one forward */
    int64_t *draw;               /* [span] */
    cmoe_logprob *logprobs;      /* [span, s->logprobs] of tokens not told yet */
    int32_t *previous;           /* [capacity]; NULL without penalties */
    float *row;                  /* [tasks, vocab]; NULL for greedy */
    int64_t tasks;
} diffusion_state;

/* ---- open and close -------------------------------------------------------------------------- */

static bool has_penalties(const cmoe_sampling *s)
{
    return s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

static diffusion_state *carve(diffusion_state *st, const cmoei_sequence *s, cmoei_carver *c)
{
    diffusion_state *block = cmoei_carve_array(c, 1, sizeof *block);
    const int64_t row_bytes = s->info.vocab * (int64_t)sizeof *st->row;
    st->pass = cmoei_carve_array(c, st->d.buffer, sizeof *st->pass);
    st->candidates = cmoei_carve_array(c, st->span, sizeof *st->candidates);
    st->draw = cmoei_carve_array(c, st->span, sizeof *st->draw);
    st->logprobs = cmoei_carve_array(c, st->span * s->logprobs, sizeof *st->logprobs);
    if (has_penalties(&s->sampling))
        st->previous = cmoei_carve_array(c, s->capacity, sizeof *st->previous);
    if (cmoei_rows_are_sampled(&s->sampling)) st->row = cmoei_carve_array(c, st->tasks, row_bytes);
    return block;
}

static cmoe_status open_sequence(cmoei_sequence *s, const cmoe_request *r, cmoe_error *err)
{
    diffusion_state plan = {0};
    CMOEI_TRY(cmoei_diffusion_read(&plan.d, r->diffusion, &s->info, err));
    if (s->limit <= s->prompt)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "a prompt of %lld tokens leaves no position for an answer",
                          (long long)s->prompt);
    const int64_t B = plan.d.block;
    plan.span = plan.d.buffer * B;
    plan.end = CMOEI_MIN(cmoei_round_up(s->limit, B), CMOEI_MIN(s->info.context, s->capacity));
    plan.window = plan.open = s->prompt / B * B;
    plan.tasks = CMOEI_MIN(plan.span, s->ctx->threads);
    cmoei_carver c = cmoei_carver_dry();
    (void)carve(&plan, s, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "diffusion", err));
    plan.bytes = cmoei_carver_bytes(&c);
    void *memory;
    CMOEI_TRY(cmoei_alloc(s->ctx, plan.bytes, "diffusion of a sequence", &memory, err));
    const cmoe_arena arena = cmoe_arena_make(memory, plan.bytes);
    c = cmoei_carver_open(&arena);
    diffusion_state *st = carve(&plan, s, &c);
    *st = plan;
    s->state = st;
    return CMOE_OK;
}

static void close_sequence(cmoei_sequence *s)
{
    diffusion_state *st = s->state;
    if (st) cmoei_free(s->ctx, st, st->bytes);
    s->state = NULL;
}

static int64_t step(const cmoei_sequence *s)
{
    const diffusion_state *st = s->state;
    return st->d.block;
}

static int64_t need(const cmoei_sequence *s)
{
    const diffusion_state *st = s->state;
    return st->span;
}

/* ---- canvas ---------------------------------------------------------------------------------- */

/* What was given is given, even if it is the mask token. */
static bool is_mask(const cmoei_sequence *s, int64_t i)
{
    const diffusion_state *st = s->state;
    return i >= s->prompt && s->tokens[i] == st->d.mask_token;
}

static int64_t masks_in(const cmoei_sequence *s, int64_t begin, int64_t end)
{
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++)
        n += is_mask(s, i);
    return n;
}

/* The first position that still holds a mask; `open` when there is none. */
static int64_t first_mask(const cmoei_sequence *s)
{
    const diffusion_state *st = s->state;
    int64_t i = st->window;
    while (i < st->open && !is_mask(s, i))
        i++;
    return i;
}

/* Where the blocks end that are complete and have only complete ones before them. */
static int64_t complete_end(const cmoei_sequence *s)
{
    const diffusion_state *st = s->state;
    const int64_t mask = first_mask(s);
    return mask == st->open ? mask : mask / st->d.block * st->d.block;
}

/* Whether this share of the block that ends at `end` is filled; what is behind the window is. */
static bool is_filled(const cmoei_sequence *s, int64_t end, float share)
{
    const diffusion_state *st = s->state;
    if (end <= st->window) return true;
    const int64_t begin = (end - 1) / st->d.block * st->d.block;
    const int64_t filled = end - begin - masks_in(s, begin, end);
    return (double)filled >= (double)share * (double)(end - begin);
}

/* The next blocks, as far as the window and add_block allow. */
static void open_blocks(cmoei_sequence *s)
{
    diffusion_state *st = s->state;
    const int64_t B = st->d.block;
    while (st->open < st->end && st->open - st->window < st->span &&
           is_filled(s, st->open, st->d.add_block)) {
        st->pass[st->open / B % st->d.buffer] = 0;
        st->open = CMOEI_MIN(st->open + B, st->end);
        for (; s->count < st->open; s->count++)
            s->tokens[s->count] = (int32_t)st->d.mask_token;
    }
}

/* Only step 4 is left to do for all that is open. */
static bool all_complete(const cmoei_sequence *s)
{
    const diffusion_state *st = s->state;
    return st->open > st->window && first_mask(s) == st->open;
}

/* ---- plan ------------------------------------------------------------------------------------ */

/* Passes that would only make keys and values which the cache has already, from another sequence, are
 * not run; they count as if they had been. */
static void settle(cmoei_sequence *s)
{
    diffusion_state *st = s->state;
    open_blocks(s);
    while (s->cached >= st->open && st->open < st->end) {
        s->forwards++;
        st->window = st->open;
        open_blocks(s);
    }
}

static void plan_final_tokens(const cmoei_sequence *s, int64_t budget, cmoei_work *w)
{
    const diffusion_state *st = s->state;
    const int64_t left = st->window - s->cached;
    w->end = s->cached + CMOEI_MIN(left, budget / st->d.block * st->d.block);
    w->final = w->end;
}

static void plan(cmoei_sequence *s, int64_t budget, cmoei_work *w)
{
    settle(s);
    const diffusion_state *st = s->state;
    w->begin = w->end = w->final = s->cached;
    w->rows = 0;
    if (s->cached < st->window) {
        plan_final_tokens(s, budget, w);
        return;
    }
    const int64_t masks = masks_in(s, s->cached, st->open);
    /* All or nothing: what a pass runs must not depend on how much room others leave. */
    if (st->open - s->cached > budget || masks > w->room) return;
    w->end = st->open;
    w->final = CMOEI_MAX(complete_end(s), s->cached);
    for (int64_t i = w->begin; i < w->end; i++) {
        if (is_mask(s, i)) w->row[w->rows++] = i;
    }
}

/* ---- accept: what a pass writes -------------------------------------------------------------- */

/* Prompt and decided tokens in order of position.  Returns how many; *output: of the answer. */
static int64_t gather_previous(const cmoei_sequence *s, int64_t *output)
{
    const diffusion_state *st = s->state;
    int64_t n = 0;
    for (int64_t i = 0; st->previous && i < s->count; i++) {
        if (!is_mask(s, i)) st->previous[n++] = s->tokens[i];
    }
    *output = CMOEI_MAX(n - s->prompt, 0);
    return n;
}

static cmoe_status read_rows(cmoei_sequence *s, const cmoei_work *w, const float *logits,
                             cmoe_error *err)
{
    diffusion_state *st = s->state;
    for (int64_t i = 0; i < w->rows; i++) {
        st->candidates[i] = (cmoei_candidate){.position = w->row[i]};
        st->draw[i] = st->pass[w->row[i] / st->d.block % st->d.buffer];
    }
    cmoei_rows r = {.s = s,
                    .mask_token = st->d.mask_token,
                    .entropy = st->d.buffer == 1 && st->d.remasking == CMOE_REMASK_ENTROPY_BOUNDED,
                    .logits = logits,
                    .draw = st->draw,
                    .out = st->candidates,
                    .n = w->rows,
                    .row = st->row,
                    .tasks = st->tasks,
                    .previous = st->previous};
    r.previous_count = gather_previous(s, &r.output);
    return cmoei_rows_read(s->ctx, &r, err);
}

/* Chooses in every block, before anything is written. */
static void pick(cmoei_sequence *s, int64_t rows)
{
    diffusion_state *st = s->state;
    const int64_t B = st->d.block;
    for (int64_t i = 0, n; i < rows; i += n) {
        cmoei_candidate *c = st->candidates + i;
        const int64_t block = c->position / B;
        int64_t *pass = &st->pass[block % st->d.buffer];
        for (n = 1; i + n < rows && c[n].position / B == block;)
            n++;
        if (st->d.buffer == 1)
            cmoei_diffusion_pick(&st->d, *pass, c, n);
        else
            cmoei_diffusion_pick_accepted(&st->d, is_filled(s, block * B, st->d.semi_complete), c,
                                          n);
        ++*pass;
    }
}

/* Whether anything changed. */
static bool write_tokens(cmoei_sequence *s, int64_t rows, const float *logits)
{
    diffusion_state *st = s->state;
    bool changed = false;
    for (int64_t i = 0; i < rows; i++) {
        const cmoei_candidate *c = &st->candidates[i];
        if (!c->take) continue;
        s->tokens[c->position] = c->token;
        changed = true;
        if (s->logprobs > 0)
            cmoei_top_logprobs(logits + i * s->info.vocab, s->info.vocab, c->token, s->logprobs - 1,
                               st->logprobs + c->position % st->span * s->logprobs);
    }
    return changed;
}

/* ---- accept: what becomes of it -------------------------------------------------------------- */

/* Tokens are decided for good up to the first mask.  *finish: what ends the answer there, a stop token,
 * a repetition, the limit; the stop token is not part of it. */
static int64_t answer_end(cmoei_sequence *s, int32_t *finish)
{
    diffusion_state *st = s->state;
    const int64_t limit = CMOEI_MIN(s->limit, st->end);
    const int64_t end = CMOEI_MIN(first_mask(s), limit);
    for (int64_t i = s->told; i < end; i++) {
        if (cmoei_sequence_stops_at(s, s->tokens[i])) {
            *finish = CMOE_FINISH_EOS;
            return i;
        }
        const bool again = i > s->prompt && s->tokens[i] == s->tokens[i - 1];
        st->run = again ? st->run + 1 : 1;
        if (st->d.max_repeats > 0 && st->run >= st->d.max_repeats) {
            *finish = CMOE_FINISH_REPEATS;
            return i + 1;
        }
    }
    *finish = end == limit ? CMOE_FINISH_LENGTH : CMOE_FINISH_NONE;
    return end;
}

/* Log-probabilities lie in a ring: at most two calls. */
static cmoe_status tell(cmoei_sequence *s, int64_t end, cmoe_error *err)
{
    const diffusion_state *st = s->state;
    for (int64_t from = s->told; from < end && s->finish == CMOE_FINISH_NONE;) {
        const int64_t at = from % st->span, to = CMOEI_MIN(end, from + st->span - at);
        const cmoe_logprob *logprobs = s->logprobs > 0 ? st->logprobs + at * s->logprobs : NULL;
        CMOEI_TRY(cmoei_sequence_tell(s, to, logprobs, err));
        from = to;
    }
    return CMOE_OK;
}

static cmoe_status report(cmoei_sequence *s, const cmoei_work *w, cmoe_error *err)
{
    int32_t finish;
    CMOEI_TRY(
        cmoei_sequence_show(s, CMOEI_MAX(w->final, s->prompt), CMOEI_MIN(w->end, s->limit), err));
    const int64_t end = answer_end(s, &finish);
    CMOEI_TRY(tell(s, end, err));
    if (finish != CMOE_FINISH_NONE && s->finish == CMOE_FINISH_NONE)
        cmoei_sequence_finish(s, finish);
    return CMOE_OK;
}

static cmoe_status run_pass(cmoei_sequence *s, const cmoei_work *w, const float *logits,
                            cmoe_error *err)
{
    diffusion_state *st = s->state;
    bool changed = false;
    if (w->rows > 0) {
        CMOEI_TRY(read_rows(s, w, logits, err));
        pick(s, w->rows);
        changed = write_tokens(s, w->rows, logits);
    }
    s->forwards++;
    if (changed) CMOEI_TRY(report(s, w, err));
    st->window = w->final;
    if (s->finish != CMOE_FINISH_NONE) return CMOE_OK;
    open_blocks(s);
    /* A pass that could write nothing any more is not worth running. */
    const int64_t next = s->forwards + all_complete(s);
    if (st->d.max_forwards > 0 && next >= st->d.max_forwards)
        cmoei_sequence_finish(s, CMOE_FINISH_FORWARDS);
    return CMOE_OK;
}

static cmoe_status accept(cmoei_sequence *s, const cmoei_work *w, float *logits, cmoe_error *err)
{
    const diffusion_state *st = s->state;
    if (w->begin < st->window) return CMOE_OK; /* tokens that were final before */
    const uint64_t before = cmoei_float_enter();
    const cmoe_status status = run_pass(s, w, logits, err);
    cmoei_float_leave(before);
    return status;
}

const cmoei_method cmoei_diffusion = {.name = "diffusion",
                                      .open = open_sequence,
                                      .close = close_sequence,
                                      .plan = plan,
                                      .accept = accept,
                                      .step = step,
                                      .need = need};
