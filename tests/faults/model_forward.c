/* SPDX-License-Identifier: MIT
 *
 * model_forward.c - whole models: arenas of sizes too small, calls that are refused late, and the
 * allocation guard.  A call that fails has written neither logits nor routing nor the cache.
 *
 *     faults_model_forward FOLDER                  the golden checkpoints
 */
#include "cmoe/model.h"
#include "fault.h"
#include "models/model.h" /* what lies in a cache */

static const char *folder;

static const struct {
    const char *name;
    int32_t format;
} cases[] = {{"qwen3_moe", CMOE_F32}, /* experts in every layer */
             {"qwen2_moe", CMOE_I8},  /* a shared expert, and a dense layer */
             {"gpt_oss", CMOE_BF16},  /* sinks, a window */
             {"qwen3", CMOE_BF16},
             {"mixtral_window", CMOE_F32}}; /* a window in every layer */
enum { CASES = sizeof cases / sizeof cases[0] };

/* ---- a model and two sequences --------------------------------------------------------------- */

enum { MT = 9, MS = 2, MPAGES = 5, MCOLUMNS = 3, MLAYERS = 8, MK = 8, MV = 512 };

typedef struct world {
    unit_env env;
    cmoe_model *model;
    cmoe_cache *cache;
    cmoe_model_info info;
    cmoe_routing capture[MLAYERS];
    cmoe_batch batch;
    cmoe_model_call call;
    int64_t first[MS + 1], start[MS], bytes;
    int32_t pages[MS * MCOLUMNS], ids[MT];
    struct {
        float logits[MT * MV], weights[MLAYERS * MT * MK];
        int32_t ids[MLAYERS * MT * MK];
    } out;
    cmoe_view_mut logits;
} world;

static void set_capture(world *w)
{
    for (int64_t i = 0; i < w->info.layers; i++) {
        cmoe_model_layer layer = {.size = sizeof layer};
        UNIT_OK(cmoe_model_layer_describe(w->model, i, &layer, &err));
        w->capture[i] = (cmoe_routing){cmoe_view_mut_none(), cmoe_view_mut_none()};
        if (layer.experts == 0) continue;
        assert_true(layer.topk <= MK);
        w->capture[i].ids = cmoe_view_mut_2d(w->out.ids + i * MT * MK, CMOE_I32, MT, layer.topk);
        w->capture[i].weights =
            cmoe_view_mut_2d(w->out.weights + i * MT * MK, CMOE_F32, MT, layer.topk);
    }
}

/* Five tokens of one sequence from position 60 on, where a page ends, and four of another. */
static void world_open(world *w, fault_memory *m, int32_t threads, int i)
{
    static const int32_t pages[MS * MCOLUMNS] = {3, 0, INT32_MAX, 1, INT32_MAX, INT32_MAX};
    char path[4096];
    memset(w, 0, sizeof *w);
    w->env = fault_env(m, threads);
    snprintf(path, sizeof path, "%s/%s", folder, cases[i].name);
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = cases[i].format;
    UNIT_OK(cmoe_model_load(&w->model, w->env.ctx, path, &o, &err));
    w->info.size = sizeof w->info;
    UNIT_OK(cmoe_model_describe(w->model, &w->info, &err));
    assert_true(w->info.layers <= MLAYERS && w->info.vocab <= MV);
    cmoe_cache_options c;
    cmoe_cache_options_default(&c, sizeof c);
    c.pages = MPAGES;
    UNIT_OK(cmoe_cache_create(&w->cache, w->model, &c, &err));
    memset(w->cache->base, 0, (size_t)w->cache->bytes);
    memcpy(w->pages, pages, sizeof pages);
    w->start[0] = 60;
    w->first[1] = 5;
    w->first[2] = MT;
    for (int t = 0; t < MT; t++)
        w->ids[t] = 3 + 7 * t;
    set_capture(w);
    cmoe_model_call_default(&w->call, sizeof w->call);
    w->batch = (cmoe_batch){sizeof w->batch, MS, w->first, w->start, w->pages, MCOLUMNS};
    w->call.batch = &w->batch;
    w->call.ids = cmoe_view_1d(w->ids, CMOE_I32, MT);
    w->call.cache = w->cache;
    w->call.capture = w->capture;
    w->logits = cmoe_view_mut_2d(w->out.logits, CMOE_F32, MT, w->info.vocab);
    UNIT_OK(cmoe_model_forward_bytes(w->model, MT, MS, MT, &w->bytes, NULL, &err));
}

static void world_close(world *w)
{
    cmoe_cache_free(w->cache);
    cmoe_model_free(w->model);
    unit_close(&w->env);
}

static cmoe_status forward(world *w, cmoe_arena *arena, cmoe_error *err)
{
    return cmoe_model_forward(w->env.stream, w->model, &w->call, w->logits, arena, err);
}

/* ---- what a failure leaves ------------------------------------------------------------------- */

/* The call must fail, say so, and leave everything as it was. */
static void refused(world *w, cmoe_arena *arena, cmoe_status want, const char *text)
{
    const cmoe_arena before = *arena;
    char *cache = malloc((size_t)w->cache->bytes), *out = malloc(sizeof w->out);
    memset(&w->out, 0x5a, sizeof w->out);
    memcpy(out, &w->out, sizeof w->out);
    memcpy(cache, w->cache->base, (size_t)w->cache->bytes);
    UNIT_FAILS(forward(w, arena, &err), want, text);
    if (memcmp(cache, w->cache->base, (size_t)w->cache->bytes))
        fail_msg("%s: fails (%s) and writes to the cache", w->info.type, text);
    if (memcmp(out, &w->out, sizeof w->out))
        fail_msg("%s: fails (%s) and writes", w->info.type, text);
    assert_memory_equal(arena, &before, sizeof before);
    free(cache);
    free(out);
}

static void too_small(void **state)
{
    (void)state;
    static world w;
    for (int i = 0; i < CASES; i++) {
        fault_memory m = {0};
        world_open(&w, &m, 1, i);
        char *block = aligned_alloc(64, (size_t)(w.bytes + 127) / 64 * 64);
        for (int64_t bytes = 0; bytes < w.bytes; bytes += w.bytes - bytes < 4 ? 1 : w.bytes / 7) {
            cmoe_arena arena = cmoe_arena_make(block, bytes);
            refused(&w, &arena, CMOE_ERR_MEMORY, "cmoe_model_forward_bytes)");
        }
        for (int offset = 0; offset < 64; offset += 31) { /* what _bytes says is enough anywhere */
            cmoe_arena arena = cmoe_arena_make(block + offset, w.bytes);
            UNIT_OK(forward(&w, &arena, &err));
            assert_int_equal(arena.used, 0);
        }
        free(block);
        world_close(&w);
    }
}

/* What steps of a layer would find themselves, when the first of them have been done. */
static void refused_late(void **state)
{
    (void)state;
    static world w;
    for (int i = 0; i < CASES; i++) {
        fault_memory m = {0};
        world_open(&w, &m, 1, i);
        cmoe_arena arena = unit_arena(w.bytes);
        w.ids[MT - 1] = (int32_t)w.info.vocab;
        refused(&w, &arena, CMOE_ERR_RANGE, "ids[8] = ");
        w.ids[MT - 1] = 5;
        w.pages[0] = MPAGES; /* which is only read, and not by layers with a window */
        w.start[0] = 80;
        if (strcmp(cases[i].name, "mixtral_window") == 0)
            UNIT_OK(forward(&w, &arena, &err));
        else
            refused(&w, &arena, CMOE_ERR_RANGE, "batch: page 0 of sequence 0 = 5");
        w.pages[0] = 3;
        w.pages[MCOLUMNS] = 0; /* of both sequences */
        refused(&w, &arena, CMOE_ERR_RANGE, "want pages that are written to be different");
        w.pages[MCOLUMNS] = 1;
        UNIT_OK(forward(&w, &arena, &err));
        free(arena.base);
        world_close(&w);
    }
}

static void wrong_values(void **state)
{
    (void)state;
    static world w;
    fault_memory m = {0};
    world_open(&w, &m, 1, 0);
    cmoe_arena arena = unit_arena(w.bytes);
    int64_t rows[] = {2, 2};
    const cmoe_view_mut all = w.logits;
    w.call.rows = cmoe_view_1d(rows, CMOE_I64, 2);
    w.logits.dims[0] = 2;
    refused(&w, &arena, CMOE_ERR_RANGE, "rows[1] = 2, want ascending numbers below 9 (tokens)");
    rows[1] = MT;
    refused(&w, &arena, CMOE_ERR_RANGE, "rows[1] = 9");
    rows[1] = MT - 1;
    UNIT_OK(forward(&w, &arena, &err));
    w.call.rows = cmoe_view_none();
    w.logits = all;
    int32_t ids[MT * MK];
    for (int i = 0; i < MT * MK; i++)
        ids[i] = i % 2 - 1; /* -1: nobody */
    cmoe_routing replay[MLAYERS] = {0};
    for (int64_t i = 0; i < w.info.layers; i++)
        replay[i].ids = replay[i].weights = cmoe_view_mut_none();
    cmoe_view_mut *last = &replay[w.info.layers - 1].ids;
    *last = cmoe_view_mut_2d(ids, CMOE_I32, MT, w.info.topk);
    w.call.replay = replay;
    UNIT_OK(forward(&w, &arena, &err));
    ids[5] = -2;
    refused(&w, &arena, CMOE_ERR_RANGE, "ids[1, 1] = -2, want -1 <= id < 8 (experts)");
    ids[5] = 8;
    refused(&w, &arena, CMOE_ERR_RANGE, "replay of layer 2: ids[1, 1] = 8");
    ids[5] = 7;
    last->dims[1]--;
    refused(&w, &arena, CMOE_ERR_SHAPE, "replay of layer 2: dims[1] = 3, want 4");
    free(arena.base);
    world_close(&w);
}

/* Outputs on inputs, on each other, and on the scratch. */
static void overlapping(void **state)
{
    (void)state;
    static world w;
    for (int i = 0; i < CASES; i++) {
        fault_memory m = {0};
        world_open(&w, &m, 1, i);
        cmoe_arena arena = unit_arena(w.bytes);
        const cmoe_view ids = w.call.ids;
        w.call.ids.data = w.out.logits;
        refused(&w, &arena, CMOE_ERR_ARG, "logits overlaps ids");
        memcpy(arena.base, w.ids, sizeof w.ids);
        w.call.ids.data = arena.base;
        refused(&w, &arena, CMOE_ERR_ARG, "ids lies in the free part of the arena");
        w.call.ids = ids;
        const int64_t last = w.info.layers - 1;
        if (w.info.moe_layers > 0) {
            cmoe_routing *c = &w.capture[last];
            void *const data = c->ids.data;
            c->ids.data = w.out.logits + 3;
            refused(&w, &arena, CMOE_ERR_ARG, "logits overlaps capture");
            c->ids.data = c->weights.data;
            refused(&w, &arena, CMOE_ERR_ARG, "capture ids overlaps capture weights");
            c->ids.data = arena.base;
            refused(&w, &arena, CMOE_ERR_ARG, "capture ids lies in the free part of the arena");
            static int64_t start[MT * MK]; /* room for the ids, too */
            memcpy(start, w.start, sizeof w.start);
            w.batch.start = c->ids.data = start;
            refused(&w, &arena, CMOE_ERR_ARG, "capture ids overlaps batch.start");
            c->ids.data = data;
        }
        UNIT_OK(forward(&w, &arena, &err));
        free(arena.base);
        world_close(&w);
    }
}

/* ---- the allocation guard -------------------------------------------------------------------- */

static void guarded(world *w, fault_memory *m)
{
    cmoe_arena arena = unit_arena(w->bytes);
    cmoe_error err = {0};
    const int64_t libc = fault.libc_calls, context = m->calls;
    fault.fail_thread = 1;
    const cmoe_status status = forward(w, &arena, &err);
    const int64_t more = fault.libc_calls - libc + m->calls - context;
    if (status != CMOE_OK) fail_msg("%s: %s", w->info.type, err.text);
    if (more || !fault.fail_thread)
        fail_msg("%s asks %d times for memory", w->info.type, (int)more);
    fault.fail_thread = 0;
    free(arena.base);
}

static void nothing_is_allocated(void **state)
{
    (void)state;
    static world w;
    for (int32_t threads = 1; threads < 4; threads += 2) {
        for (int i = 0; i < CASES; i++) {
            fault_memory m = {0};
            world_open(&w, &m, threads, i);
            guarded(&w, &m);
            w.call.capture = NULL; /* and replayed */
            w.call.replay = w.capture;
            guarded(&w, &m);
            world_close(&w);
            assert_int_equal(m.blocks, 0);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(too_small),
        cmocka_unit_test(refused_late),
        cmocka_unit_test(wrong_values),
        cmocka_unit_test(overlapping),
        cmocka_unit_test(nothing_is_allocated),
    };
    if (argc != 2) {
        printf("usage: faults_model_forward FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("faults_model_forward", tests);
}
