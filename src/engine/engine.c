/* SPDX-License-Identifier: MIT
 *
 * engine.c - an engine: its sizes, its memory, its end.
 *
 * Memory.  Everything that depends on the options alone is had at create and counted by
 * cmoe_engine_bytes: the cache, the scratch of the largest forward, its logits, and the tables of
 * pages and of the batch.  Everything that depends on a request is had at submit: its canvas, its
 * table of pages, its log-probabilities, its routing.  A step takes no memory, but for text: what the
 * detokenizer and the caller's unread text need grows through the context's allocator.
 *
 * Where things are:  request.c checks and makes jobs; schedule.c decides what a step does; batch.c
 * runs it; share.c and prefix.c find prefixes again; a method (autoregressive.c, diffusion.c) makes
 * tokens of logits; tell.c and text.c make events of tokens.
 */
#include <inttypes.h>
#include <string.h>

#include "job.h"
#include "models/model.h"

static const cmoe_engine_options defaults = {
    .size = sizeof defaults, .step_tokens = 512, .sequences = 64};

void cmoe_engine_options_default(cmoe_engine_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* Rows of logits that a block-causal model may ask for in one forward, when there is room for so many
 * tokens: four blocks of the longest kind. */
enum { BLOCK_ROWS = 256 };

/* ---- sizes ------------------------------------------------------------------------------------- */

static cmoe_status check_range(const char *name, int64_t value, int64_t most, cmoe_error *err)
{
    if (value >= 1 && value <= most) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %" PRId64 ", want 1 to %" PRId64, name, value,
                      most);
}

cmoe_status cmoei_engine_measure(cmoei_engine_sizes *z, const cmoe_model *m,
                                 const cmoe_engine_options *options, cmoe_error *err)
{
    *z = (cmoei_engine_sizes){.o = defaults, .info = {.size = sizeof z->info}};
    CMOEI_TRY(cmoei_options_read(&z->o, sizeof z->o, options, "cmoe_engine_options", err));
    CMOEI_TRY(cmoe_model_describe(m, &z->info, err));
    const cmoe_model_info *info = &z->info;
    if (info->mask == CMOE_MASK_FULL)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "a model of type %s sees all positions at once, want a causal or "
                          "block-causal one",
                          info->type);
    const int64_t whole = cmoei_ceil_div(info->context, CMOE_KV_PAGE);
    if (z->o.pages == 0) z->o.pages = whole;
    CMOEI_TRY(check_range("pages", z->o.pages, INT32_MAX, err));
    CMOEI_TRY(check_range("step_tokens", z->o.step_tokens, INT32_MAX, err));
    CMOEI_TRY(check_range("sequences", z->o.sequences, 65536, err));
    CMOEI_TRY(cmoei_check_flag(z->o.no_prefix_reuse, "no_prefix_reuse", err));
    z->columns = CMOEI_MIN(whole, z->o.pages);
    z->rows = z->o.sequences;
    if (info->mask > 0) z->rows = CMOEI_MAX(z->rows, BLOCK_ROWS);
    z->rows = CMOEI_MIN(z->rows, z->o.step_tokens);
    const cmoe_cache_options cache = {
        .size = sizeof cache, .pages = z->o.pages, .format = z->o.cache_format};
    CMOEI_TRY(cmoei_cache_bytes(m, &cache, &z->cache, err));
    return cmoe_model_forward_bytes(m, z->o.step_tokens, z->o.sequences, z->rows, &z->scratch, NULL,
                                    err);
}

/* All of the engine but the cache, one block. */
static cmoe_engine *carve(cmoe_engine *e, const cmoei_engine_sizes *z, cmoei_carver *c)
{
    cmoe_engine *block = cmoei_carve_array(c, 1, sizeof *block);
    const cmoe_engine_options *o = &z->o;
    int64_t words = INT64_MAX,
            floats = INT64_MAX; /* too many for carve_array, should they overflow */
    cmoei_mul(o->sequences, z->columns, &words);
    cmoei_mul(z->rows, z->info.vocab, &floats);
    e->topk = cmoei_carve_array(c, z->info.layers, sizeof *e->topk);
    e->experts = cmoei_carve_array(c, z->info.layers, sizeof *e->experts);
    e->capture = cmoei_carve_array(c, z->info.layers, sizeof *e->capture);
    e->replay = cmoei_carve_array(c, z->info.layers, sizeof *e->replay);
    e->ids = cmoei_carve_array(c, o->step_tokens, sizeof *e->ids);
    e->rows = cmoei_carve_array(c, z->rows, sizeof *e->rows);
    e->positions = cmoei_carve_array(c, z->rows, sizeof *e->positions);
    e->first = cmoei_carve_array(c, o->sequences + 1, sizeof *e->first);
    e->start = cmoei_carve_array(c, o->sequences, sizeof *e->start);
    e->table = cmoei_carve_array(c, words, sizeof *e->table);
    e->logits = cmoei_carve_array(c, floats, sizeof *e->logits);
    e->scratch.base = cmoei_carve(c, z->scratch);
    e->scratch.bytes = z->scratch;
    cmoei_pages_carve(&e->pages, o->pages, c);
    return block;
}

cmoe_status cmoe_engine_bytes(const cmoe_model *model, const cmoe_engine_options *o, int64_t *bytes,
                              cmoe_error *err)
{
    if (!model || !bytes)
        return cmoei_fail(err, CMOE_ERR_ARG, "engine_bytes: %s is NULL", model ? "bytes" : "model");
    cmoei_engine_sizes z;
    cmoe_engine built = {0};
    CMOEI_TRY(cmoei_engine_measure(&z, model, o, err));
    cmoei_carver c = cmoei_carver_dry();
    carve(&built, &z, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "engine", err));
    int64_t all;
    if (!cmoei_add(cmoei_carver_bytes(&c), z.cache, &all))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "engine: more than 2^63 - 1 bytes");
    *bytes = all;
    return CMOE_OK;
}

/* ---- create and free --------------------------------------------------------------------------- */

static cmoe_status layers(cmoe_engine *e, cmoe_error *err)
{
    for (int64_t i = 0; i < e->z.info.layers; i++) {
        cmoe_model_layer l = {.size = sizeof l};
        CMOEI_TRY(cmoe_model_layer_describe(e->model, i, &l, err));
        e->topk[i] = l.experts > 0 ? l.topk : 0;
        e->experts[i] = l.experts;
        e->capture[i] = e->replay[i] = (cmoe_routing){cmoe_view_mut_none(), cmoe_view_mut_none()};
    }
    return CMOE_OK;
}

static cmoe_status open_engine(cmoe_engine *e, cmoe_error *err)
{
    const cmoe_cache_options cache = {
        .size = sizeof cache, .pages = e->z.o.pages, .format = e->z.o.cache_format};
    CMOEI_TRY(layers(e, err));
    cmoei_pages_clear(&e->pages);
    for (int32_t i = 0; i < CMOEI_FLAG_CHUNKS; i++)
        atomic_init(&e->flags.chunk[i], NULL);
    return cmoe_cache_create(&e->cache, e->model, &cache, err);
}

cmoe_status cmoe_engine_create(cmoe_engine **out, cmoe_stream *s, const cmoe_model *model,
                               const cmoe_tokenizer *tokenizer, const cmoe_engine_options *o,
                               cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!out || !model)
        return cmoei_fail(err, CMOE_ERR_ARG, "engine: %s is NULL", out ? "model" : "out");
    if (model->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "model is of another context, want one made from the stream's context");
    cmoe_engine built = {.ctx = s->ctx, .stream = s, .model = model, .tokenizer = tokenizer};
    CMOEI_TRY(cmoei_engine_measure(&built.z, model, o, err));
    cmoei_carver c = cmoei_carver_dry();
    carve(&built, &built.z, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "engine", err));
    built.bytes = cmoei_carver_bytes(&c);
    built.usable = built.z.info.vocab;
    if (tokenizer) built.usable = CMOEI_MIN(built.usable, cmoe_tokenizer_size(tokenizer));
    void *block;
    CMOEI_TRY(cmoei_alloc(s->ctx, built.bytes, "engine", &block, err));
    const cmoe_arena memory = cmoe_arena_make(block, built.bytes);
    c = cmoei_carver_open(&memory);
    cmoe_engine *e = carve(&built, &built.z, &c);
    memcpy(e, &built, sizeof built);
    e->tail = &e->jobs;
    const cmoe_status status = open_engine(e, err);
    if (status != CMOE_OK) {
        cmoe_engine_free(e);
        return status;
    }
    *out = e;
    return CMOE_OK;
}

void cmoe_engine_free(cmoe_engine *e)
{
    if (!e) return;
    while (e->jobs) {
        cmoei_job *j = e->jobs;
        e->jobs = j->next;
        cmoei_job_release(j);
        cmoei_job_free(j);
    }
    CMOE_ASSERT(e->pages.free + e->pages.reusable == e->pages.count);
    cmoei_flags_free(&e->flags, e->ctx);
    cmoei_free(e->ctx, e->captured, e->captured_bytes);
    cmoe_cache_free(e->cache);
    cmoei_free(e->ctx, e, e->bytes);
}

void cmoe_engine_info_default(cmoe_engine_info *info, size_t size)
{
    const cmoe_engine_info d = {.size = sizeof d};
    cmoei_options_write(info, size, &d, sizeof d);
}

cmoe_status cmoe_engine_describe(const cmoe_engine *e, cmoe_engine_info *info, cmoe_error *err)
{
    if (!e || !info || info->size < sizeof(size_t))
        return cmoei_fail(err, CMOE_ERR_ARG, "engine_describe: %s",
                          !e      ? "engine is NULL"
                          : !info ? "info is NULL"
                                  : "info.size is not set, want sizeof *info");
    const cmoei_pages *p = &e->pages;
    const cmoe_engine_info now = {.size = sizeof now,
                                  .pages = p->count,
                                  .pages_used = p->count - p->free - p->reusable,
                                  .pages_reusable = p->reusable,
                                  .running = e->running,
                                  .waiting = e->waiting,
                                  .forwards = e->forwards,
                                  .tokens = e->tokens,
                                  .prompt_tokens = e->prompt_tokens,
                                  .cached_tokens = e->cached_tokens};
    cmoei_options_write(info, info->size, &now, sizeof now);
    return CMOE_OK;
}
