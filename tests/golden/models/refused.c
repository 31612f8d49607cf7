/* SPDX-License-Identifier: MIT
 *
 * refused.c - calls of a forward that are refused must leave logits, cache and captured routing as
 * they were, whichever layer would have found the mistake.
 *
 *     golden_refused FOLDER
 */
#include "../../unit/unit.h"
#include "run.h"

enum { T = 3, START = 80, PAGES = 4, ROOM = 16, MARK = 0x55 };

static const char *folder;

/* gpt_oss: layers 0 and 2 see a window of 8, layers 1 and 3 everything. */
typedef struct scene {
    run_model m;
    cmoe_cache *cache;
    cmoe_batch batch;
    cmoe_model_call call;
    cmoe_arena arena;
    run_routing captured, replayed;
    float *logits;
    int64_t logits_bytes, first[2], start[1];
    int32_t pages[PAGES + ROOM], ids[T]; /* with room for captured ids */
} scene;

static void open(scene *s)
{
    char path[4096];
    int64_t host = 0, device = 0;
    *s = (scene){.first = {0, T}, .start = {START}, .pages = {0, 1, 2, 3}, .ids = {1, 2, 3}};
    snprintf(path, sizeof path, "%s/gpt_oss", folder);
    cmoe_error why = {.size = sizeof why};
    if (!run_open(&s->m, path, 2, NULL, CMOE_F32, &why)) fail_msg("%s", why.text);
    cmoe_cache_options o;
    cmoe_cache_options_default(&o, sizeof o);
    o.pages = PAGES;
    UNIT_OK(cmoe_cache_create(&s->cache, s->m.model, &o, &err));
    UNIT_OK(cmoe_model_forward_bytes(s->m.model, T, 1, T, &host, &device, &err));
    s->arena = cmoe_arena_make(run_memory(host), host);
    s->captured = run_routing_make(&s->m, T);
    s->replayed = run_routing_make(&s->m, T);
    for (int64_t i = 0; i < s->m.info.layers; i++)
        memset(s->captured.layer[i].ids.data, MARK, (size_t)(T * s->m.topk[i]) * 4);
    s->logits_bytes = T * s->m.info.vocab * 4;
    s->logits = run_memory(s->logits_bytes);
    memset(s->logits, MARK, (size_t)s->logits_bytes);
    cmoe_model_call_default(&s->call, sizeof s->call);
    s->batch = (cmoe_batch){sizeof s->batch, 1, s->first, s->start, s->pages, PAGES};
    s->call.batch = &s->batch;
    s->call.ids = cmoe_view_1d(s->ids, CMOE_I32, T);
    s->call.cache = s->cache;
    s->call.capture = s->captured.layer;
}

static void close(scene *s)
{
    cmoe_cache_free(s->cache);
    run_routing_free(&s->captured);
    run_routing_free(&s->replayed);
    run_close(&s->m);
    free(s->arena.base);
    free(s->logits);
}

static cmoe_status forward(scene *s, void *logits, cmoe_error *err)
{
    return cmoe_model_forward(s->m.stream, s->m.model, &s->call,
                              cmoe_view_mut_2d(logits, CMOE_F32, T, s->m.info.vocab), &s->arena,
                              err);
}

static void untouched(const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++)
        assert_int_equal(((const unsigned char *)data)[i], MARK);
}

static void check_untouched(const scene *s)
{
    untouched(s->logits, s->logits_bytes);
    untouched(s->captured.layer[0].ids.data, T * s->m.topk[0] * 4);
    assert_int_equal(s->arena.used, 0);
}

/* Layer 0 does not look at page 0 any more, layer 1 does. */
static void a_page_that_a_later_layer_reads(void **state)
{
    scene s;
    (void)state;
    open(&s);
    s.pages[0] = -7;
    UNIT_FAILS(forward(&s, s.logits, &err), CMOE_ERR_RANGE,
               "page 0 of sequence 0 = -7, want 0 <= page < 4");
    check_untouched(&s);
    s.pages[0] = 0;
    UNIT_OK(forward(&s, s.logits, &err));
    close(&s);
}

static void outputs_on_inputs(void **state)
{
    scene s;
    (void)state;
    open(&s);
    s.call.ids = cmoe_view_1d(s.logits, CMOE_I32, T);
    UNIT_FAILS(forward(&s, s.logits, &err), CMOE_ERR_ARG, "logits overlaps ids");
    s.call.ids = cmoe_view_1d(s.ids, CMOE_I32, T);
    UNIT_FAILS(forward(&s, s.arena.base, &err), CMOE_ERR_ARG,
               "logits lies in the free part of the arena");
    s.call.replay = s.captured.layer;
    for (int64_t i = 0; i < s.m.info.layers; i++)
        memset(s.captured.layer[i].ids.data, 0, (size_t)(T * s.m.topk[i]) * 4);
    UNIT_FAILS(forward(&s, s.logits, &err), CMOE_ERR_ARG, "capture ids overlaps replay");
    untouched(s.logits, s.logits_bytes);
    close(&s);
}

static void capture_on(scene *s, void *memory, const char *text)
{
    cmoe_view_mut *ids = &s->captured.layer[1].ids;
    void *was = ids->data;
    ids->data = memory;
    UNIT_FAILS(forward(s, s->logits, &err), CMOE_ERR_ARG, text);
    ids->data = was;
    check_untouched(s);
}

static void captured_routing(void **state)
{
    scene s;
    (void)state;
    open(&s);
    capture_on(&s, s.logits, "logits overlaps capture");
    capture_on(&s, s.arena.base, "capture ids lies in the free part of the arena");
    capture_on(&s, s.pages, "capture ids overlaps batch.pages");
    capture_on(&s, s.captured.layer[0].ids.data, "capture ids overlaps capture");
    capture_on(&s, s.captured.layer[1].weights.data, "capture ids overlaps capture weights");
    capture_on(&s, s.captured.layer[3].weights.data, "capture ids overlaps capture");
    UNIT_OK(forward(&s, s.logits, &err));
    close(&s);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_page_that_a_later_layer_reads),
        cmocka_unit_test(outputs_on_inputs),
        cmocka_unit_test(captured_routing),
    };
    if (argc != 2) {
        printf("usage: golden_refused FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("golden_refused", tests);
}
