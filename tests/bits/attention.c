/* SPDX-License-Identifier: MIT
 *
 * attention.c - random sequences through cmoe_kv_write and cmoe_attention: whole, side by side, on one
 * thread, with pages in order; then in every other way that must not matter.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "core/core.h"
#include "world.h"

enum { MOST_SEQUENCES = 3, FREE_PAGES = 5 };

typedef struct sequences {
    uint64_t seed, draws;
    int64_t heads, kv_heads, key_dim, value_dim, window;
    int32_t format, mask, x_dtype, out_dtype;
    bool with_sinks;
    int64_t n, length[MOST_SEQUENCES], at[MOST_SEQUENCES + 1]; /* rows at[i] .. at[i+1]-1 */
    int64_t columns, pages;
    float *q, *k, *v, *sinks; /* [rows, heads * key_dim], kv_heads * key_dim, ...; [heads] */
    char title[300];
} sequences;

/* ---- sequences ------------------------------------------------------------------------------- */

static int64_t draw(sequences *w, int64_t low, int64_t high)
{
    return low + (int64_t)(cmoe_random_u64(w->seed, w->draws++, 3) % (uint64_t)(high - low + 1));
}

static float *normals(sequences *w, int64_t n)
{
    float *p = world_memory(n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = cmoe_random_normal(w->seed, w->draws++, 4);
    return p;
}

static int64_t pages_of(int64_t positions)
{
    return (positions + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE;
}

/* Every third so long that keys lie in several parts; then narrow. */
static void draw_sizes(sequences *w)
{
    static const int64_t most[] = {3, 70, 200};
    const int which = (int)draw(w, 0, 2);
    const bool is_long = w->seed % 3 == 2;
    w->kv_heads = draw(w, 1, is_long ? 1 : 3);
    w->heads = w->kv_heads * draw(w, 1, is_long ? 2 : 6);
    w->key_dim = draw(w, 1, is_long ? 20 : 80);
    w->value_dim = draw(w, 1, is_long ? 20 : 80);
    w->n = draw(w, 1, MOST_SEQUENCES);
    for (int64_t i = 0; i < w->n; i++) {
        w->length[i] = draw(w, 1, most[which]);
        if (is_long && i == 0) w->length[i] += draw(w, 0, 9) ? 1025 : 2050;
        w->at[i + 1] = w->at[i] + w->length[i];
        w->pages += pages_of(w->length[i]);
        w->columns = CMOEI_MAX(w->columns, pages_of(w->length[i]));
    }
}

static void draw_options(sequences *w)
{
    static const int32_t floats[] = {CMOE_F32, CMOE_BF16, CMOE_F16, CMOE_F64};
    static const int32_t masks[] = {CMOE_MASK_CAUSAL, CMOE_MASK_CAUSAL, CMOE_MASK_FULL, 1, 4, 32};
    static const int64_t windows[] = {0, 0, 1, 50, 64, 1100};
    w->format = draw(w, 0, 1) ? CMOE_BF16 : CMOE_F32;
    w->mask = masks[draw(w, 0, 5)];
    w->window = windows[draw(w, 0, 5)];
    w->x_dtype = floats[draw(w, 0, 3)];
    w->out_dtype = floats[draw(w, 0, 3)];
    w->with_sinks = draw(w, 0, 1);
}

static sequences *sequences_make(uint64_t seed)
{
    sequences *w = world_memory(sizeof *w);
    memset(w, 0, sizeof *w);
    w->seed = seed;
    draw_sizes(w);
    draw_options(w);
    const int64_t rows = w->at[w->n];
    w->q = normals(w, rows * w->heads * w->key_dim);
    w->k = normals(w, rows * w->kv_heads * w->key_dim);
    w->v = normals(w, rows * w->kv_heads * w->value_dim);
    w->sinks = normals(w, w->heads);
    snprintf(w->title, sizeof w->title,
             "attention seed %llu %s heads=%lld/%lld dims=%lld,%lld mask=%d window=%lld sinks=%d "
             "x=%s out=%s sequences=%lld of up to %lld pages",
             (unsigned long long)seed, cmoe_dtype_name(w->format), (long long)w->heads,
             (long long)w->kv_heads, (long long)w->key_dim, (long long)w->value_dim, w->mask,
             (long long)w->window, w->with_sinks, cmoe_dtype_name(w->x_dtype),
             cmoe_dtype_name(w->out_dtype), (long long)w->n, (long long)w->columns);
    return w;
}

static void sequences_free(sequences *w)
{
    free(w->q);
    free(w->k);
    free(w->v);
    free(w->sinks);
    free(w);
}

static int64_t out_bytes(const sequences *w)
{
    return w->heads * w->value_dim * cmoe_dtype_bytes(w->out_dtype);
}

/* ---- a cache --------------------------------------------------------------------------------- */

typedef struct cache {
    cmoe_kv kv;
    int32_t *table; /* [sequences, columns]; -1 behind the end */
} cache;

/* Scattered: in random order among pages of nobody, with gaps between.  What is not written is NaN. */
static cache cache_make(sequences *w, bool scattered)
{
    cache c = {.kv = {.size = sizeof c.kv,
                      .heads = w->kv_heads,
                      .key_dim = w->key_dim,
                      .value_dim = w->value_dim,
                      .format = w->format,
                      .pages = w->pages + (scattered ? FREE_PAGES : 0)}};
    cmoe_error err = {0};
    int64_t bytes = 0;
    if (cmoe_kv_page_bytes(&c.kv, &bytes, &err) != CMOE_OK) world_die("page", &err);
    c.kv.page_stride = (bytes + 63) / 64 * 64 + (scattered ? 192 : 0);
    const int64_t all = c.kv.page_stride * c.kv.pages;
    c.kv.base = aligned_alloc(64, (size_t)all);
    if (!c.kv.base) abort();
    memset(c.kv.base, 0xff, (size_t)all);
    int32_t *free_pages = world_memory(c.kv.pages * (int64_t)sizeof *free_pages);
    for (int32_t i = 0; i < c.kv.pages; i++)
        free_pages[i] = i;
    for (int64_t i = c.kv.pages - 1; scattered && i > 0; i--) {
        const int64_t j = draw(w, 0, i);
        const int32_t page = free_pages[i];
        free_pages[i] = free_pages[j];
        free_pages[j] = page;
    }
    c.table = world_memory(w->n * w->columns * (int64_t)sizeof *c.table);
    for (int64_t i = 0, next = 0; i < w->n; i++) {
        for (int64_t p = 0; p < w->columns; p++)
            c.table[i * w->columns + p] = p < pages_of(w->length[i]) ? free_pages[next++] : -1;
    }
    free(free_pages);
    return c;
}

static void cache_free(cache *c)
{
    free(c->kv.base);
    free(c->table);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* Tokens start .. start + n - 1 of a sequence. */
typedef struct piece {
    int64_t sequence, start, n;
} piece;

typedef struct tables {
    cmoe_batch batch;
    int64_t first[MOST_SEQUENCES + 1], start[MOST_SEQUENCES];
    int32_t *pages;
} tables;

static void tables_make(tables *t, const sequences *w, const cache *c, const piece *pieces,
                        int64_t n)
{
    const size_t row = (size_t)w->columns * sizeof *t->pages;
    *t = (tables){.pages = world_memory(n * (int64_t)row)};
    for (int64_t i = 0; i < n; i++) {
        t->first[i + 1] = t->first[i] + pieces[i].n;
        t->start[i] = pieces[i].start;
        memcpy(t->pages + i * w->columns, c->table + pieces[i].sequence * w->columns, row);
    }
    t->batch = (cmoe_batch){sizeof t->batch, n, t->first, t->start, t->pages, w->columns};
}

/* The pieces' rows of `from`, laid out as asked. */
static cmoe_view laid_out(const sequences *w, const piece *pieces, int64_t n, const float *from,
                          int64_t cols, layout l, void **memory)
{
    int64_t rows = 0, r = 0;
    for (int64_t i = 0; i < n; i++)
        rows += pieces[i].n;
    const cmoe_view_mut x = world_room(w->x_dtype, rows, cols, l, memory);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t t = 0; t < pieces[i].n; t++)
            cmoei_store_f32(cmoei_at_mut(&x, r++, 0), w->x_dtype, l.col,
                            from + (w->at[pieces[i].sequence] + pieces[i].start + t) * cols, cols);
    }
    return cmoe_view_of(x);
}

static void attend(cmoe_ctx *ctx, const sequences *w, const cache *c, const tables *t, cmoe_view q,
                   cmoe_view k, cmoe_view v, cmoe_view_mut out, bool mode)
{
    cmoe_error err = {0};
    cmoe_attention_options o;
    cmoe_attention_options_default(&o, sizeof o);
    o.heads = w->heads;
    o.mask = w->mask;
    o.window = w->window;
    int64_t bytes = 0;
    if (cmoe_attention_bytes(ctx, &o, &c->kv, &t->batch, &bytes, NULL, &err))
        world_die("attention bytes", &err);
    void *scratch = world_memory(bytes);
    memset(scratch, 0xff, (size_t)bytes); /* NaN, too */
    cmoe_arena arena = cmoe_arena_make(scratch, bytes);
    const cmoe_view sinks =
        w->with_sinks ? cmoe_view_1d(w->sinks, CMOE_F32, w->heads) : cmoe_view_none();
    cmoe_stream *s = NULL;
    if (cmoe_stream_create(&s, ctx, &err) != CMOE_OK) world_die("stream", &err);
    if (mode) world_caller_mode(true);
    cmoe_status status = cmoe_kv_write(s, &c->kv, &t->batch, k, v, &err);
    if (status == CMOE_OK)
        status = cmoe_attention(s, &o, q, &c->kv, &t->batch, sinks, out, &arena, &err);
    if (mode) world_caller_mode(false);
    if (status != CMOE_OK) world_die("attention", &err);
    cmoe_stream_free(s);
    free(scratch);
}

/* Writes and attends; each row comes back at its place in `out` [rows]. */
static void run(const sequences *w, cmoe_ctx *ctx, const cache *c, const piece *pieces, int64_t n,
                layout l, char *out)
{
    void *memory[4];
    tables t;
    tables_make(&t, w, c, pieces, n);
    const cmoe_view q = laid_out(w, pieces, n, w->q, w->heads * w->key_dim, l, &memory[0]);
    const cmoe_view k = laid_out(w, pieces, n, w->k, w->kv_heads * w->key_dim, l, &memory[1]);
    const cmoe_view v = laid_out(w, pieces, n, w->v, w->kv_heads * w->value_dim, l, &memory[2]);
    const int64_t cols = w->heads * w->value_dim, element = cmoe_dtype_bytes(w->out_dtype);
    const cmoe_view_mut y = world_room(w->out_dtype, t.first[n], cols, l, &memory[3]);
    attend(ctx, w, c, &t, q, k, v, y, l.mode);
    for (int64_t i = 0; i < n; i++) {
        char *row = out + (w->at[pieces[i].sequence] + pieces[i].start) * cols * element;
        for (int64_t x = 0; x < pieces[i].n * cols; x++)
            memcpy(row + x * element, cmoei_at_mut(&y, t.first[i] + x / cols, x % cols),
                   (size_t)element);
    }
    for (int i = 0; i < 4; i++)
        free(memory[i]);
    free(t.pages);
}

/* ---- other ways ------------------------------------------------------------------------------ */

static const layout plain = {.col = 1};

typedef struct scene {
    sequences *w;
    const level *isa;
    tally *t;
    const char *want;
    char *got;
} scene;

static void expect(const scene *s, int kind, int64_t from, int64_t to)
{
    const int64_t bytes = out_bytes(s->w);
    for (int64_t r = from; r < to; r++)
        bits_compare(s->t, kind, s->w->title, s->isa->name, r, s->got + r * bytes,
                     s->want + r * bytes, bytes);
}

static void whole(sequences *w, cmoe_ctx *ctx, bool scattered, layout l, char *out)
{
    cache c = cache_make(w, scattered);
    piece pieces[MOST_SEQUENCES];
    for (int64_t i = 0; i < w->n; i++)
        pieces[i] = (piece){i, 0, w->length[i]};
    run(w, ctx, &c, pieces, w->n, l, out);
    cache_free(&c);
}

static void whole_again(const scene *s, int kind, cmoe_ctx *ctx, bool scattered, layout l)
{
    memset(s->got, 0x11, (size_t)(s->w->at[s->w->n] * out_bytes(s->w)));
    whole(s->w, ctx, scattered, l, s->got);
    expect(s, kind, 0, s->w->at[s->w->n]);
}

/* Each sequence in a batch of its own. */
static void apart(const scene *s, cmoe_ctx *ctx)
{
    cache c = cache_make(s->w, false);
    for (int64_t i = s->w->n - 1; i >= 0; i--) {
        run(s->w, ctx, &c, &(piece){i, 0, s->w->length[i]}, 1, plain, s->got);
        expect(s, BATCH, s->w->at[i], s->w->at[i + 1]);
    }
    cache_free(&c);
}

/* A cut is where nobody before it looks beyond: anywhere, or where a block ends. */
static int64_t cut(const sequences *w, int64_t tokens)
{
    const int64_t block = w->mask > 0 ? w->mask : 1;
    return (tokens + block - 1) / block * block;
}

/* All side by side, each in steps of its own. */
static void chunked(const scene *s, cmoe_ctx *ctx, int64_t most)
{
    sequences *w = s->w;
    cache c = cache_make(w, true);
    int64_t done[MOST_SEQUENCES] = {0}, n;
    do {
        piece pieces[MOST_SEQUENCES];
        n = 0;
        for (int64_t i = 0; i < w->n; i++) {
            const int64_t left = w->length[i] - done[i];
            const int64_t drawn = cut(w, draw(w, 1, most)), step = CMOEI_MIN(left, drawn);
            if (step > 0) pieces[n++] = (piece){i, done[i], step};
            done[i] += step;
        }
        if (n > 0) run(w, ctx, &c, pieces, n, plain, s->got);
    } while (n > 0);
    expect(s, CHUNKED, 0, w->at[w->n]);
    cache_free(&c);
}

/* A prompt, and then token after token (or block after block). */
static void decoded(const scene *s, cmoe_ctx *ctx)
{
    sequences *w = s->w;
    cache c = cache_make(w, true);
    const int64_t i = draw(w, 0, w->n - 1), length = w->length[i];
    const int64_t before = length - 1 - draw(w, 0, 6), block = cut(w, 1);
    int64_t at = CMOEI_MAX(0, before) / block * block;
    if (at > 0) run(w, ctx, &c, &(piece){i, 0, at}, 1, plain, s->got);
    while (at < length) {
        const int64_t step = CMOEI_MIN(length - at, block);
        run(w, ctx, &c, &(piece){i, at, step}, 1, plain, s->got);
        expect(s, ALONE, w->at[i] + at, w->at[i] + at + step);
        at += step;
    }
    cache_free(&c);
}

static char *run_level(sequences *w, const level *isa, tally *t)
{
    const int64_t bytes = w->at[w->n] * out_bytes(w);
    char *want = world_memory(bytes);
    const scene s = {.w = w, .isa = isa, .t = t, .want = want, .got = world_memory(bytes)};
    whole(w, isa->ctx[0], false, plain, want);
    for (int i = 1; i < THREAD_COUNTS; i++)
        whole_again(&s, THREADS, isa->ctx[i], false, plain);
    cmoe_ctx *any = isa->ctx[draw(w, 0, THREAD_COUNTS - 1)];
    whole_again(&s, PAGES, any, true, plain);
    whole_again(&s, ODD, any, false, (layout){.odd = draw(w, 1, 3), .col = 1});
    whole_again(&s, STRIDED, any, false, (layout){.col = draw(w, 2, 3), .row_gap = draw(w, 0, 5)});
    whole_again(&s, MODE, any, false, (layout){.col = 1, .mode = true});
    apart(&s, any);
    if (w->mask != CMOE_MASK_FULL) { /* whose tokens see all that is there so far */
        chunked(&s, any, 7 + w->at[w->n] / 16);
        chunked(&s, any, 400);
        decoded(&s, any);
    }
    free(s.got);
    return want;
}

void bits_attention(uint64_t seed, const level *levels, int n, tally *t)
{
    sequences *w = sequences_make(seed);
    const int64_t bytes = out_bytes(w);
    char *first = NULL;
    for (int i = 0; i < n; i++) {
        char *rows = run_level(w, &levels[i], t);
        for (int64_t r = 0; first && r < w->at[w->n]; r++)
            bits_compare(t, ISAS, w->title, levels[i].name, r, rows + r * bytes, first + r * bytes,
                         bytes);
        if (first)
            free(rows);
        else
            first = rows;
    }
    free(first);
    sequences_free(w);
}
