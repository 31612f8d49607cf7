/* SPDX-License-Identifier: MIT
 *
 * request.c - what is asked for: checked, copied, and given all the memory it will need.
 */
#include <inttypes.h>
#include <string.h>

#include "job.h"
#include "sampling.h"
#include "text/unicode.h"

static const cmoe_request defaults = {.size = sizeof defaults, .want_text = 1};

void cmoe_request_default(cmoe_request *r, size_t size)
{
    cmoei_options_write(r, size, &defaults, sizeof defaults);
}

/* A canvas may run so far beyond the limit: blocks are worked on whole. */
enum { SLACK = 64 };

/* ---- checks ------------------------------------------------------------------------------------ */

static cmoe_status check_ids(const char *name, const int32_t *ids, int64_t n, int64_t vocab,
                             cmoe_error *err)
{
    if (n > 0 && !ids) return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL", name);
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %d, want 0 <= id < %" PRId64 " (vocab)", name, i,
                              (int)ids[i], vocab);
    }
    return CMOE_OK;
}

static cmoe_status check_stops(const cmoe_engine *e, const cmoe_request *r, cmoe_error *err)
{
    if (r->stops < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "stops = %" PRId64 ", want at least 0", r->stops);
    CMOEI_TRY(check_ids("stop_tokens", r->stop_tokens, r->stops, e->z.info.vocab, err));
    for (int64_t i = 0; r->stop_strings && r->stop_strings[i]; i++) {
        const char *stop = r->stop_strings[i];
        if (!e->tokenizer)
            return cmoei_fail(err, CMOE_ERR_ARG,
                              "stop_strings are given, want none: the engine has no tokenizer");
        if (!*stop) return cmoei_fail(err, CMOE_ERR_ARG, "stop_strings[%" PRId64 "] is empty", i);
        const int64_t bad = cmoei_utf8_check(stop, (int64_t)strlen(stop));
        if (bad >= 0)
            return cmoei_fail(err, CMOE_ERR_FORMAT,
                              "stop_strings[%" PRId64 "] is not UTF-8 at byte %" PRId64, i, bad);
    }
    return CMOE_OK;
}

static cmoe_status check(const cmoe_engine *e, const cmoe_request *r, cmoe_error *err)
{
    const cmoe_model_info *info = &e->z.info;
    if (r->prompt_count < 1)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "prompt_count = %" PRId64 ", want at least 1",
                          r->prompt_count);
    CMOEI_TRY(check_ids("prompt", r->prompt, r->prompt_count, info->vocab, err));
    if (r->prompt_count >= info->context)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "prompt has %" PRId64 " tokens, want at most %" PRId64
                          " (context %" PRId64 ", at least one of it for the answer)",
                          r->prompt_count, info->context - 1, info->context);
    if (r->max_tokens < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "max_tokens = %" PRId64 ", want at least 0",
                          r->max_tokens);
    if (r->logprobs < 0 || r->logprobs > info->vocab)
        return cmoei_fail(err, CMOE_ERR_RANGE, "logprobs = %d, want 0 to %" PRId64 " (vocab)",
                          (int)r->logprobs, info->vocab);
    if (r->reserved != 0)
        return cmoei_fail(err, CMOE_ERR_ARG, "reserved = %d, want 0", (int)r->reserved);
    if (r->diffusion && info->mask == CMOE_MASK_CAUSAL)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "diffusion is given, want none: a model of type %s makes one token after "
                          "the other",
                          info->type);
    CMOEI_TRY(cmoei_check_flag(r->capture, "capture", err));
    CMOEI_TRY(cmoei_check_flag(r->want_text, "want_text", err));
    CMOEI_TRY(check_stops(e, r, err));
    return cmoei_routing_check(e, r, err);
}

/* Where the canvas ends: at max_tokens or the context; without max_tokens also where pages do. */
static int64_t limit_of(const cmoe_engine *e, const cmoe_request *r)
{
    const int64_t context = e->z.info.context;
    if (r->max_tokens == 0)
        return CMOEI_MAX(CMOEI_MIN(context, e->z.columns * CMOE_KV_PAGE), r->prompt_count + 1);
    return r->prompt_count + CMOEI_MIN(r->max_tokens, context - r->prompt_count);
}

/* What no waiting would help: more pages than there are, or a method's step larger than a forward. */
static cmoe_status check_fits(const cmoei_job *j, cmoe_error *err)
{
    const cmoei_sequence *s = &j->s;
    const cmoe_engine_options *o = &j->engine->z.o;
    const int64_t step = s->method->step(s);
    const int64_t end = CMOEI_MIN(cmoei_round_up(s->limit, step), s->info.context);
    const int64_t pages = cmoei_ceil_div(end, CMOE_KV_PAGE);
    if (pages > o->pages)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "a prompt of %" PRId64 " tokens and up to %" PRId64
                          " new ones take %" PRId64 " pages of %d, want at most %" PRId64
                          " (pages of the engine)",
                          s->prompt, s->limit - s->prompt, pages, CMOE_KV_PAGE, o->pages);
    const int64_t need = CMOEI_MAX(step, s->method->need(s));
    if (need > o->step_tokens)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "one step of this request is %" PRId64 " tokens, want at most %" PRId64
                          " (step_tokens of the engine)",
                          need, o->step_tokens);
    return CMOE_OK;
}

/* ---- memory ------------------------------------------------------------------------------------ */

static int64_t strings(const cmoe_request *r, int64_t *bytes)
{
    int64_t n = 0;
    *bytes = 0;
    for (; r->stop_strings && r->stop_strings[n]; n++)
        *bytes += (int64_t)strlen(r->stop_strings[n]) + 1;
    return n;
}

/* Everything of a job in one block; j->s.limit is set already. */
static cmoei_job *carve(cmoei_job *j, const cmoe_engine *e, const cmoe_request *r, char **text,
                        cmoei_carver *c)
{
    cmoei_sequence *s = &j->s;
    cmoei_job *block = cmoei_carve_array(c, 1, sizeof *block);
    int64_t bytes, entries = INT64_MAX;
    s->capacity = s->limit + SLACK;
    cmoei_mul(s->limit - r->prompt_count, r->logprobs, &entries);
    j->text.stops = strings(r, &bytes);
    s->tokens = cmoei_carve_array(c, s->capacity, sizeof *s->tokens);
    s->stop_tokens = cmoei_carve_array(c, r->stops, sizeof *s->stop_tokens);
    s->sampling.bias_ids = cmoei_carve_array(c, s->sampling.biases, sizeof(int32_t));
    s->sampling.bias = cmoei_carve_array(c, s->sampling.biases, sizeof(float));
    j->pages = cmoei_carve_array(c, cmoei_ceil_div(s->capacity, CMOE_KV_PAGE), sizeof *j->pages);
    j->logprobs = cmoei_carve_array(c, entries, sizeof *j->logprobs);
    j->text.stop = cmoei_carve_array(c, j->text.stops, sizeof *j->text.stop);
    j->text.stop_bytes = cmoei_carve_array(c, j->text.stops, sizeof *j->text.stop_bytes);
    *text = cmoei_carve(c, bytes);
    cmoei_routing_carve(j, e, r, s->capacity, c);
    return block;
}

static void copy(cmoei_job *j, const cmoe_request *r, const cmoe_sampling *sampling, char *text)
{
    cmoei_sequence *s = &j->s;
    memcpy(s->tokens, r->prompt, (size_t)r->prompt_count * sizeof *s->tokens);
    s->count = s->prompt = s->told = j->polled = r->prompt_count;
    s->logprobs = r->logprobs;
    s->stops = r->stops;
    if (r->stops > 0)
        memcpy(s->stop_tokens, r->stop_tokens, (size_t)r->stops * sizeof *s->stop_tokens);
    if (sampling->biases > 0) {
        const size_t n = (size_t)sampling->biases;
        memcpy((void *)(uintptr_t)s->sampling.bias_ids, sampling->bias_ids, n * sizeof(int32_t));
        memcpy((void *)(uintptr_t)s->sampling.bias, sampling->bias, n * sizeof(float));
    }
    for (int64_t i = 0; i < j->text.stops; i++) {
        const int64_t bytes = (int64_t)strlen(r->stop_strings[i]);
        memcpy(text, r->stop_strings[i], (size_t)bytes + 1);
        j->text.stop[i] = text;
        j->text.stop_bytes[i] = bytes;
        text += bytes + 1;
    }
    cmoei_routing_copy(j, r);
}

static cmoe_status make(cmoei_job **out, cmoe_engine *e, const cmoe_request *r, cmoe_error *err)
{
    cmoe_sampling sampling;
    CMOEI_TRY(cmoei_sampling_read(&sampling, r->sampling, e->z.info.vocab, err));
    cmoei_job built = {.engine = e, .s = {.sampling = sampling, .limit = limit_of(e, r)}};
    char *text;
    cmoei_carver c = cmoei_carver_dry();
    carve(&built, e, r, &text, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "request", err));
    built.bytes = cmoei_carver_bytes(&c);
    void *block;
    CMOEI_TRY(cmoei_alloc(e->ctx, built.bytes, "request", &block, err));
    const cmoe_arena memory = cmoe_arena_make(block, built.bytes);
    c = cmoei_carver_open(&memory);
    cmoei_job *j = carve(&built, e, r, &text, &c);
    cmoei_sequence *s = &built.s;
    s->ctx = e->ctx;
    s->model = e->model;
    s->info = e->z.info;
    s->usable = e->usable;
    s->method = s->info.mask > 0 ? &cmoei_diffusion : &cmoei_autoregressive;
    s->owner = j;
    built.shares = !e->z.o.no_prefix_reuse && !r->capture && !r->replay;
    memcpy(j, &built, sizeof built);
    copy(j, r, &sampling, text);
    *out = j;
    return CMOE_OK;
}

/* What of a job can fail once it has its memory. */
static cmoe_status open_job(cmoei_job *j, const cmoe_request *r, cmoe_error *err)
{
    cmoe_engine *e = j->engine;
    CMOEI_TRY(j->s.method->open(&j->s, r, err));
    j->opened = true;
    CMOEI_TRY(check_fits(j, err));
    j->text.wanted = r->want_text && e->tokenizer;
    if (j->text.wanted || j->text.stops > 0)
        CMOEI_TRY(cmoe_detokenizer_create(&j->text.detokenizer, e->tokenizer, 1, err));
    if (r->capture) CMOEI_TRY(cmoei_routing_prepare(e, err));
    return cmoei_flags_take(&e->flags, e->ctx, e->last_id + 1, &j->flag, err);
}

void cmoei_job_free(cmoei_job *j)
{
    cmoe_engine *e = j->engine;
    if (j->opened) j->s.method->close(&j->s);
    if (j->flag) cmoei_flags_give(&e->flags, j->flag);
    cmoe_detokenizer_free(j->text.detokenizer);
    cmoei_free(e->ctx, j->text.data, j->text.room);
    cmoei_free(e->ctx, j, j->bytes);
}

cmoe_status cmoe_engine_submit(cmoe_engine *e, const cmoe_request *given, int64_t *id,
                               cmoe_error *err)
{
    if (!e || !given || !id)
        return cmoei_fail(err, CMOE_ERR_ARG, "engine_submit: %s is NULL",
                          !e       ? "engine"
                          : !given ? "request"
                                   : "id");
    cmoe_request r = defaults;
    cmoei_job *j;
    CMOEI_TRY(cmoei_options_read(&r, sizeof r, given, "cmoe_request", err));
    CMOEI_TRY(check(e, &r, err));
    CMOEI_TRY(make(&j, e, &r, err));
    const cmoe_status status = open_job(j, &r, err);
    if (status != CMOE_OK) {
        cmoei_job_free(j);
        return status;
    }
    j->s.id = ++e->last_id;
    *e->tail = j;
    e->tail = &j->next;
    e->waiting++;
    e->prompt_tokens += j->s.prompt;
    *id = j->s.id;
    return CMOE_OK;
}
