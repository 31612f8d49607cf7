/* SPDX-License-Identifier: MIT
 *
 * bits.c - the same bits: a token's result compared with memcmp over everything that must not
 * matter.
 *
 *     bits [SECONDS]      30 by default; every kind runs at least once per format and instruction
 * set
 *
 * A random layer is run once, whole, packed, on one thread; then tokens alone, in other batches and
 * at other places, on other numbers of threads, in chunks, with unpacked and re-laid weights, at
 * odd addresses, strided, recorded, replayed, and while another layer runs on the same context.
 * Instruction sets are compared too: all agree, but for bf16 where vdpbf16ps rounds in its own way.
 * The same for attention (attention.c).  Whole models are compared in golden/models.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bits.h"
#include "core/core.h"
#include "world.h"

static const int32_t thread_counts[THREAD_COUNTS] = {1, 2, 3, 8};

static const char *const kind_names[KINDS] = {
    "token alone",          "other batch and place",   "threads",         "chunked",    "unpacked",
    "other weight layout",  "odd addresses",           "strided",         "captured",   "replayed",
    "another layer beside", "caller rounds otherwise", "scattered pages", "across ISAs"};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bits_compare(tally *t, int kind, const char *title, const char *isa, int64_t token,
                  const void *got, const void *want, int64_t bytes)
{
    t->compared[kind]++;
    if (!memcmp(got, want, (size_t)bytes)) return;
    if (t->different[kind]++ < 3)
        printf("DIFFERS %s, %s, token %lld: %s\n", kind_names[kind], isa, (long long)token, title);
}

static void compare(tally *t, int kind, const world *w, const char *isa, int64_t token,
                    const void *got, const void *want)
{
    char title[400];
    world_title(w, title, sizeof title);
    bits_compare(t, kind, title, isa, token, got, want, world_out_bytes(w));
}

typedef struct scene {
    world *w;
    const level *isa;
    tally *t;
    const char *want; /* [T] rows of the first run */
    char *got;
    int64_t *tokens; /* [T] 0, 1, 2, ... */
} scene;

static const char *row(const scene *s, const char *rows, int64_t i)
{
    return rows + i * world_out_bytes(s->w);
}

static void expect(const scene *s, int kind, const int64_t *tokens, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        compare(s->t, kind, s->w, s->isa->name, tokens[i], row(s, s->got, i),
                row(s, s->want, tokens[i]));
}

static const layout plain = {.col = 1};

static void built_otherwise(const scene *s, int kind, cmoe_ctx *ctx, how h)
{
    built b = world_build(s->w, ctx, h);
    world_run(s->w, &b, s->tokens, s->w->tokens, plain, NULL, NULL, false, s->got);
    expect(s, kind, s->tokens, s->w->tokens);
    built_free(&b);
}

static void batches(const scene *s, const built *b)
{
    world *w = s->w;
    for (int i = 0; i < 6; i++) {
        const int64_t token = world_draw(w, 0, w->tokens - 1);
        world_run(w, b, &token, 1, plain, NULL, NULL, false, s->got);
        expect(s, ALONE, &token, 1);
    }
    int64_t *some = malloc((size_t)w->tokens * sizeof *some);
    for (int i = 0; i < 3; i++) {
        const int64_t n = world_draw(w, 2, w->tokens);
        for (int64_t j = 0; j < n; j++)
            some[j] = world_draw(w, 0, w->tokens - 1); /* repeats are welcome */
        world_run(w, b, some, n, plain, NULL, NULL, false, s->got);
        expect(s, BATCH, some, n);
    }
    free(some);
}

static void layouts(const scene *s, const built *b)
{
    world *w = s->w;
    const layout odd = {.odd = world_draw(w, 1, 3), .col = 1};
    world_run(w, b, s->tokens, w->tokens, odd, NULL, NULL, false, s->got);
    expect(s, ODD, s->tokens, w->tokens);
    const layout strided = {.col = world_draw(w, 2, 3), .row_gap = world_draw(w, 0, 5)};
    world_run(w, b, s->tokens, w->tokens, strided, NULL, NULL, false, s->got);
    expect(s, STRIDED, s->tokens, w->tokens);
    const layout mode = {.col = 1, .mode = true};
    world_run(w, b, s->tokens, w->tokens, mode, NULL, NULL, false, s->got);
    expect(s, MODE, s->tokens, w->tokens);
}

static void routing(const scene *s, const built *b)
{
    world *w = s->w;
    int32_t *ids = malloc((size_t)(w->tokens * w->topk) * sizeof *ids);
    float *weights = malloc((size_t)(w->tokens * w->topk) * sizeof *weights);
    world_run(w, b, s->tokens, w->tokens, plain, ids, weights, false, s->got);
    expect(s, CAPTURED, s->tokens, w->tokens);
    for (int i = 0; i < 3; i++) { /* what is recorded does not depend on the batch either */
        const int64_t token = world_draw(w, 0, w->tokens - 1);
        int32_t id[8];
        float weight[8];
        world_run(w, b, &token, 1, plain, id, weight, false, s->got);
        s->t->compared[CAPTURED]++;
        s->t->different[CAPTURED] +=
            memcmp(id, ids + token * w->topk, (size_t)w->topk * sizeof *id) != 0 ||
            memcmp(weight, weights + token * w->topk, (size_t)w->topk * sizeof *weight) != 0;
    }
    world_run(w, b, s->tokens, w->tokens, plain, ids, NULL, true, s->got);
    expect(s, REPLAYED, s->tokens, w->tokens);
    world_run(w, b, s->tokens, w->tokens, plain, ids, weights, true, s->got);
    expect(s, REPLAYED, s->tokens, w->tokens);
    free(ids);
    free(weights);
}

typedef struct other {
    const world *w;
    const built *b;
    _Atomic bool stop;
} other;

static void *run_other(void *arg)
{
    other *o = arg;
    char *out = malloc((size_t)world_out_bytes(o->w));
    const int64_t token = 0;
    while (!atomic_load(&o->stop))
        world_run(o->w, o->b, &token, 1, plain, NULL, NULL, false, out);
    free(out);
    return NULL;
}

static void beside(const scene *s, cmoe_ctx *ctx)
{
    built b = world_build(s->w, ctx, (how){0}), c = world_build(s->w, ctx, (how){0});
    other o = {.w = s->w, .b = &c};
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_other, &o)) abort();
    for (int i = 0; i < 3; i++) {
        world_run(s->w, &b, s->tokens, s->w->tokens, plain, NULL, NULL, false, s->got);
        expect(s, BESIDE, s->tokens, s->w->tokens);
    }
    atomic_store(&o.stop, true);
    pthread_join(thread, NULL);
    built_free(&b);
    built_free(&c);
}

/* Returns the rows of the first run, which belong to the caller. */
static char *run_scene(world *w, const level *isa, tally *t)
{
    const size_t bytes = (size_t)(w->tokens * world_out_bytes(w));
    scene s = {
        .w = w, .isa = isa, .t = t, .got = malloc(bytes), .tokens = malloc((size_t)w->tokens * 8)};
    char *want = malloc(bytes);
    for (int64_t i = 0; i < w->tokens; i++)
        s.tokens[i] = i;
    built b = world_build(w, isa->ctx[0], (how){0});
    world_run(w, &b, s.tokens, w->tokens, plain, NULL, NULL, false, want);
    s.want = want;
    batches(&s, &b);
    layouts(&s, &b);
    routing(&s, &b);
    built_free(&b);
    for (int i = 1; i < THREAD_COUNTS; i++)
        built_otherwise(&s, THREADS, isa->ctx[i], (how){0});
    cmoe_ctx *any = isa->ctx[world_draw(w, 0, THREAD_COUNTS - 1)];
    built_otherwise(&s, CHUNKED, any, (how){.chunk = 1});
    built_otherwise(&s, CHUNKED, any, (how){.chunk = world_draw(w, 2, 50)});
    built_otherwise(&s, UNPACKED, any, (how){.borrow = true, .odd = world_draw(w, 0, 3)});
    built_otherwise(&s, RELAID, any,
                    (how){.transposed = true,
                          .interleaved = world_draw(w, 0, 1),
                          .up_first = world_draw(w, 0, 1)});
    built_otherwise(&s, RELAID, any,
                    (how){.interleaved = true, .odd = 1, .borrow = world_draw(w, 0, 1)});
    beside(&s, isa->ctx[2]);
    free(s.got);
    free(s.tokens);
    return want;
}

static int open_levels(level *levels)
{
    const uint32_t features = cmoe_cpu_features();
    int n = 0;
    for (int32_t i = 0; i < cmoe_isa_levels() && n < LEVELS; i++) {
        cmoe_ctx_options o;
        cmoe_error err = {0};
        cmoe_ctx_options_default(&o, sizeof o);
        if (cmoe_isa_mask(cmoe_isa_level_name(i), &o.isa_mask, &err) != CMOE_OK)
            world_die("isa", &err);
        if (o.isa_mask & ~features) {
            printf("skipped %s: this CPU does not have it\n", cmoe_isa_level_name(i));
            continue;
        }
        levels[n].name = cmoe_isa_level_name(i);
        for (int t = 0; t < THREAD_COUNTS; t++) {
            o.threads = thread_counts[t];
            if (cmoe_ctx_create(&levels[n].ctx[t], &o, &err) != CMOE_OK) world_die("ctx", &err);
        }
        n++;
    }
    return n;
}

static void one_world(uint64_t seed, int32_t format, const level *levels, int n, tally *t)
{
    world *w = world_make(seed, format);
    char *first = NULL;
    for (int i = 0; i < n; i++) {
        char *rows = run_scene(w, &levels[i], t);
        const bool own_bits = format == CMOE_BF16 && !strcmp(levels[i].name, "avx512_bf16");
        for (int64_t token = 0; first && !own_bits && token < w->tokens; token++)
            compare(t, ISAS, w, levels[i].name, token, rows + token * world_out_bytes(w),
                    first + token * world_out_bytes(w));
        if (first)
            free(rows);
        else
            first = rows;
    }
    free(first);
    world_free(w);
}

int main(int argc, char **argv)
{
    static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};
    const double seconds = argc > 1 && atof(argv[1]) > 0 ? atof(argv[1]) : 30, start = now();
    level levels[LEVELS];
    tally t = {0};
    const int n = open_levels(levels);
    uint64_t worlds = 0;
    /* The first seed of a process is fixed, so that what fails once fails again. */
    do {
        for (int f = 0; f < 3; f++) {
            one_world(1000 * worlds + (uint64_t)f, formats[f], levels, n, &t);
            bits_attention(1000 * worlds + (uint64_t)f, levels, n, &t);
        }
        worlds++;
    } while (now() - start < seconds);
    int64_t compared = 0, different = 0;
    for (int k = 0; k < KINDS; k++) {
        printf("%-24s %12lld comparisons, %lld mismatches\n", kind_names[k],
               (long long)t.compared[k], (long long)t.different[k]);
        compared += t.compared[k];
        different += t.different[k];
    }
    printf("check-bits: %lld layers of f32, bf16 and int8, as many attentions, on",
           (long long)(3 * worlds));
    for (int i = 0; i < n; i++)
        printf(" %s", levels[i].name);
    printf(": %lld comparisons, %lld mismatches\n", (long long)compared, (long long)different);
    printf("bits: %lld passed, %lld failed\n", (long long)(compared - different),
           (long long)different);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < THREAD_COUNTS; c++)
            cmoe_ctx_free(levels[i].ctx[c]);
    return different != 0;
}
