/* SPDX-License-Identifier: MIT
 *
 * run.c - see run.h.
 */
#include "run.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *run_memory(int64_t bytes)
{
    void *p = calloc(1, bytes > 0 ? (size_t)bytes : 1);
    if (!p) {
        printf("golden: no memory for %lld bytes\n", (long long)bytes);
        exit(1);
    }
    return p;
}

/* ---- model ----------------------------------------------------------------------------------- */

static bool layers(run_model *m, cmoe_error *err)
{
    m->topk = run_memory(m->info.layers * (int64_t)sizeof *m->topk);
    for (int64_t i = 0; i < m->info.layers; i++) {
        cmoe_model_layer layer = {.size = sizeof layer};
        if (cmoe_model_layer_describe(m->model, i, &layer, err) != CMOE_OK) return false;
        m->topk[i] = layer.experts > 0 ? layer.topk : 0;
    }
    return true;
}

static bool open_with(run_model *m, const char *folder, const cmoe_ctx_options *c,
                      const cmoe_model_options *o, cmoe_error *err)
{
    *m = (run_model){.info = {.size = sizeof m->info}};
    return cmoe_ctx_create(&m->ctx, c, err) == CMOE_OK &&
           cmoe_stream_create(&m->stream, m->ctx, err) == CMOE_OK &&
           cmoe_model_load(&m->model, m->ctx, folder, o, err) == CMOE_OK &&
           cmoe_model_describe(m->model, &m->info, err) == CMOE_OK && layers(m, err);
}

bool run_open(run_model *m, const char *folder, int32_t threads, const char *isa, int32_t format,
              cmoe_error *err)
{
    cmoe_ctx_options c;
    cmoe_ctx_options_default(&c, sizeof c);
    c.threads = threads;
    if (isa && cmoe_isa_mask(isa, &c.isa_mask, err) != CMOE_OK) return false;
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = format;
    return open_with(m, folder, &c, &o, err);
}

static void count_line(void *user, int32_t level, const char *text)
{
    (void)text;
    if (level <= CMOE_LOG_WARN) ++*(int *)user;
}

bool run_open_kept(run_model *m, const char *folder, const char *cache_dir, int32_t format,
                   int *said, cmoe_error *err)
{
    cmoe_ctx_options c;
    cmoe_ctx_options_default(&c, sizeof c);
    c.threads = 1;
    c.log = count_line;
    c.log_user = said;
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = format;
    o.cache_dir = cache_dir;
    return open_with(m, folder, &c, &o, err);
}

bool run_open_options(run_model *m, const char *folder, int32_t threads,
                      const cmoe_model_options *o, cmoe_error *err)
{
    cmoe_ctx_options c;
    cmoe_ctx_options_default(&c, sizeof c);
    c.threads = threads;
    return open_with(m, folder, &c, o, err);
}

void run_close(run_model *m)
{
    if (m->model) cmoe_model_free(m->model);
    if (m->stream) cmoe_stream_free(m->stream);
    if (m->ctx) cmoe_ctx_free(m->ctx);
    free(m->topk);
    *m = (run_model){0};
}

/* ---- routing --------------------------------------------------------------------------------- */

run_routing run_routing_make(const run_model *m, int64_t tokens)
{
    run_routing r = {.layers = m->info.layers};
    r.layer = run_memory(r.layers * (int64_t)sizeof *r.layer);
    for (int64_t i = 0; i < r.layers; i++) {
        const int64_t k = m->topk[i];
        r.layer[i] = (cmoe_routing){cmoe_view_mut_none(), cmoe_view_mut_none()};
        if (k == 0) continue;
        r.layer[i].ids = cmoe_view_mut_2d(run_memory(tokens * k * 4), CMOE_I32, tokens, k);
        r.layer[i].weights = cmoe_view_mut_2d(run_memory(tokens * k * 4), CMOE_F32, tokens, k);
    }
    return r;
}

void run_routing_free(run_routing *r)
{
    for (int64_t i = 0; i < r->layers; i++) {
        free(r->layer[i].ids.data);
        free(r->layer[i].weights.data);
    }
    free(r->layer);
    *r = (run_routing){0};
}

/* ---- logits ---------------------------------------------------------------------------------- */

/* What one run needs beside the model. */
typedef struct state {
    run_model *m;
    const run_sequence *sequences;
    int64_t n;
    const run_options *o;
    cmoe_cache *cache;
    int64_t columns, *start, *first; /* [n], [n+1] */
    int32_t *pages;                  /* [n, columns] */
} state;

static int64_t pages_of(int64_t tokens)
{
    return (tokens + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE;
}

/* Three more than needed, so that some in between belong to nobody. */
static bool make_cache(state *s, cmoe_error *err)
{
    int64_t needed = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const int64_t p = pages_of(s->sequences[i].tokens);
        needed += p;
        s->columns = p + 1 > s->columns ? p + 1 : s->columns;
    }
    cmoe_cache_options o;
    cmoe_cache_options_default(&o, sizeof o);
    o.pages = needed + 3;
    s->pages = run_memory(s->n * s->columns * (int64_t)sizeof *s->pages);
    s->start = run_memory(s->n * (int64_t)sizeof *s->start);
    s->first = run_memory((s->n + 1) * (int64_t)sizeof *s->first);
    for (int64_t i = 0; i < s->n * s->columns; i++)
        s->pages[i] = INT32_MAX;
    /* Page by page over all sequences, and downwards: neighbours in a sequence are none in memory. */
    int32_t free_page = (int32_t)o.pages - 2;
    for (int64_t p = 0; p < s->columns; p++)
        for (int64_t i = 0; i < s->n; i++)
            if (p < pages_of(s->sequences[i].tokens)) s->pages[i * s->columns + p] = free_page--;
    return cmoe_cache_create(&s->cache, s->m->model, &o, err) == CMOE_OK;
}

/* One call: tokens start .. start + count - 1 of every sequence, which `first` says already. */
static bool call(const state *s, cmoe_error *err)
{
    const int64_t T = s->first[s->n], V = s->m->info.vocab, every = s->o->every;
    int32_t *ids = run_memory(T * 4);
    int64_t *rows = run_memory(T * 8), R = 0, host = 0, device = 0;
    for (int64_t i = 0; i < s->n; i++) {
        for (int64_t t = s->first[i]; t < s->first[i + 1]; t++) {
            const int64_t at = s->start[i] + t - s->first[i];
            ids[t] = s->sequences[i].ids[at];
            if (every == 0 || at % every == 0) rows[R++] = t;
        }
    }
    float *logits = run_memory(R * V * 4);
    cmoe_model_call c;
    cmoe_model_call_default(&c, sizeof c);
    const cmoe_batch batch = {sizeof batch, s->n, s->first, s->start, s->pages, s->columns};
    c.batch = &batch;
    c.ids = cmoe_view_1d(ids, CMOE_I32, T);
    c.cache = s->cache;
    if (every > 0) c.rows = cmoe_view_1d(rows, CMOE_I64, R);
    c.capture = s->o->capture ? s->o->capture->layer : NULL;
    c.replay = s->o->replay ? s->o->replay->layer : NULL;
    bool ok = cmoe_model_forward_bytes(s->m->model, T, s->n, R, &host, &device, err) == CMOE_OK;
    cmoe_arena arena = cmoe_arena_make(run_memory(host), host); /* exact: sanitizers see more */
    ok = ok && cmoe_model_forward(s->m->stream, s->m->model, &c,
                                  cmoe_view_mut_2d(logits, CMOE_F32, R, V), &arena, err) == CMOE_OK;
    if (ok && arena.used != 0) {
        snprintf(err->text, sizeof err->text, "%lld bytes of the arena are not given back",
                 (long long)arena.used);
        ok = false;
    }
    for (int64_t r = 0, i = 0; ok && r < R; r++) {
        while (rows[r] >= s->first[i + 1])
            i++;
        const int64_t at = s->start[i] + rows[r] - s->first[i];
        memcpy(s->sequences[i].logits + at * V, logits + r * V, (size_t)V * 4);
    }
    free(arena.base);
    free(logits);
    free(rows);
    free(ids);
    return ok;
}

bool run_logits(run_model *m, const run_sequence *sequences, int64_t n, const run_options *o,
                cmoe_error *err)
{
    state s = {.m = m, .sequences = sequences, .n = n, .o = o};
    bool ok = make_cache(&s, err);
    while (ok) {
        for (int64_t i = 0; i < n; i++) {
            const int64_t left = sequences[i].tokens - s.start[i];
            s.first[i + 1] = s.first[i] + (o->chunk > 0 && o->chunk < left ? o->chunk : left);
        }
        if (s.first[n] == 0) break;
        ok = call(&s, err);
        for (int64_t i = 0; i < n; i++)
            s.start[i] += s.first[i + 1] - s.first[i];
    }
    if (s.cache) cmoe_cache_free(s.cache);
    free(s.pages);
    free(s.start);
    free(s.first);
    return ok;
}
