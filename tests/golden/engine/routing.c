/* SPDX-License-Identifier: MIT
 *
 * routing.c - routing that is kept, and routing that is forced, of requests among others.
 *
 *     golden_engine_routing FOLDER                 the golden checkpoints
 */
#include "world.h"

enum { N = 70, NEW = 20, LAYERS = 8 };

static int32_t prompt[WORLD_TOKENS];

static cmoe_request request(void)
{
    cmoe_request r;
    cmoe_request_default(&r, sizeof r);
    r.prompt = prompt;
    r.prompt_count = N;
    r.max_tokens = NEW;
    r.logprobs = 2;
    return r;
}

/* Everything that one request used. */
typedef struct recorded {
    cmoe_routing layer[LAYERS];
    int64_t tokens;
} recorded;

static cmoe_view_mut keep(cmoe_view v)
{
    const size_t bytes = (size_t)(v.dims[0] * v.dims[1]) * 4;
    void *data = malloc(bytes);
    assert_non_null(data);
    memcpy(data, v.data, bytes);
    return cmoe_view_mut_2d(data, v.dtype, v.dims[0], v.dims[1]);
}

static recorded record(world *w, const answer *a)
{
    recorded all = {0};
    assert_true(w->info.layers <= LAYERS);
    for (int64_t i = 0; i < w->info.layers; i++) {
        cmoe_view ids, weights;
        cmoe_error err = {0};
        all.layer[i] = (cmoe_routing){cmoe_view_mut_none(), cmoe_view_mut_none()};
        if (cmoe_engine_routing(w->engine, a->id, i, &ids, &weights, &err) != CMOE_OK) {
            assert_non_null(strstr(err.text, "has no experts, want one that has"));
            continue;
        }
        all.layer[i].ids = keep(ids);
        all.layer[i].weights = keep(weights);
        all.tokens = ids.dims[0];
    }
    return all;
}

static recorded copy_of(const recorded *r)
{
    recorded all = *r;
    for (int64_t i = 0; i < LAYERS; i++) {
        if (!r->layer[i].ids.data) continue;
        all.layer[i].ids = keep(cmoe_view_of(r->layer[i].ids));
        all.layer[i].weights = keep(cmoe_view_of(r->layer[i].weights));
    }
    return all;
}

static void forget(recorded *r)
{
    for (int64_t i = 0; i < LAYERS; i++) {
        free(r->layer[i].ids.data);
        free(r->layer[i].weights.data);
    }
}

static void same_routing(const recorded *a, const recorded *b)
{
    assert_int_equal(a->tokens, b->tokens);
    for (int64_t i = 0; i < LAYERS; i++) {
        if (!a->layer[i].ids.data) continue;
        const size_t bytes = (size_t)(a->tokens * a->layer[i].ids.dims[1]) * 4;
        assert_memory_equal(a->layer[i].ids.data, b->layer[i].ids.data, bytes);
        assert_memory_equal(a->layer[i].weights.data, b->layer[i].weights.data, bytes);
    }
}

/* The same forward asked of the model itself. */
static recorded by_the_model(world *w, const recorded *shape, const answer *a)
{
    const int64_t n = N + NEW - 1;
    int32_t ids[N + NEW];
    memcpy(ids, prompt, N * sizeof *ids);
    memcpy(ids + N, a->ids, NEW * sizeof *ids);
    recorded all = {.tokens = n};
    for (int64_t i = 0; i < LAYERS; i++) {
        all.layer[i] = (cmoe_routing){cmoe_view_mut_none(), cmoe_view_mut_none()};
        if (!shape->layer[i].ids.data) continue;
        all.layer[i].ids = keep(cmoe_view_of(shape->layer[i].ids));
        all.layer[i].weights = keep(cmoe_view_of(shape->layer[i].weights));
        memset(all.layer[i].ids.data, 0xff, 4);
    }
    cmoe_cache_options o;
    cmoe_cache_options_default(&o, sizeof o);
    o.pages = 2;
    cmoe_cache *cache = NULL;
    UNIT_OK(cmoe_cache_create(&cache, w->model, &o, &err));
    const int64_t first[] = {0, n}, start[] = {0};
    const int32_t pages[] = {1, 0};
    cmoe_model_call c;
    cmoe_model_call_default(&c, sizeof c);
    const cmoe_batch batch = {sizeof batch, 1, first, start, pages, 2};
    c.batch = &batch;
    c.ids = cmoe_view_1d(ids, CMOE_I32, n);
    c.cache = cache;
    c.capture = all.layer;
    int64_t host = 0;
    UNIT_OK(cmoe_model_forward_bytes(w->model, n, 1, n, &host, NULL, &err));
    cmoe_arena arena = unit_arena(host);
    float *logits = malloc((size_t)(n * w->info.vocab) * sizeof *logits);
    UNIT_OK(cmoe_model_forward(w->env.stream, w->model, &c,
                               cmoe_view_mut_2d(logits, CMOE_F32, n, w->info.vocab), &arena, &err));
    free(logits);
    free(arena.base);
    cmoe_cache_free(cache);
    return all;
}

/* Kept, forced with and without weights, and forced to something else, all at once. */
static void in_company(world *w, const recorded *first, const answer *alone, const char *name)
{
    static answer all[6];
    cmoe_routing ids_only[LAYERS];
    recorded other = copy_of(first), again;
    for (int64_t i = 0; i < LAYERS; i++) {
        ids_only[i] = first->layer[i];
        ids_only[i].weights = cmoe_view_mut_none();
        if (!other.layer[i].ids.data) continue;
        int32_t *ids =
            other.layer[i].ids.data; /* slots of the first token exchanged with the last's */
        const int64_t k = other.layer[i].ids.dims[1];
        for (int64_t t = 0; t < N - 1; t++)
            memcpy(ids + t * k, ids + (t + 1) * k, (size_t)k * sizeof *ids);
    }
    cmoe_request forced[6];
    for (int i = 0; i < 6; i++)
        forced[i] = request();
    forced[1].capture = 1;
    forced[2].replay = first->layer;
    forced[2].replay_tokens = first->tokens;
    forced[3].replay = ids_only;
    forced[3].replay_tokens = first->tokens;
    forced[3].capture = 1;
    forced[5].replay = other.layer;
    forced[5].replay_tokens = first->tokens;
    for (int i = 0; i < 6; i++)
        world_submit(w, &forced[i], &all[i]);
    for (int32_t busy = 1; busy;) /* not polled, so that the routing of all of them stays */
        UNIT_OK(cmoe_engine_step(w->engine, &busy, &err));
    world_poll(w, all, 6);
    for (int i = 0; i < 5; i++)
        world_same(alone, &all[i], "kept or forced in company");
    if (memcmp(alone->best, all[5].best, sizeof alone->best) == 0)
        fail_msg("%s: forced routing changes nothing", name);
    for (int i = 1; i <= 3; i += 2) {
        again = record(w, &all[i]);
        same_routing(first, &again);
        forget(&again);
    }
    forget(&other);
}

static void capture_and_replay(const char *name)
{
    static answer alone, all;
    world w = world_open(name, 2);
    cmoe_engine_options o;
    cmoe_engine_options_default(&o, sizeof o);
    o.step_tokens = 48;
    o.pages = 32;
    world_engine(&w, &o);
    world_prompt(prompt, N, 5, w.info.vocab);
    cmoe_request plain = request(), r = request();
    world_answer(&w, &plain, &alone);
    r.capture = 1;
    world_answer(&w, &r, &all);
    world_same(&alone, &all, "captured");
    assert_int_equal(all.cached_tokens, 0); /* though its prompt is known */
    recorded first = record(&w, &all), model = by_the_model(&w, &first, &all);
    same_routing(&first, &model);

    in_company(&w, &first, &alone, name);
    /* What was forced is nobody else's. */
    world_answer(&w, &plain, &all);
    world_same(&alone, &all, "after all of them");
    assert_int_equal(all.cached_tokens, 64);
    forget(&first);
    forget(&model);
    world_close(&w);
}

/* Tables end in the middle of the prompt: what follows is routed as the model likes. */
static void partly(const char *name)
{
    static answer alone, part;
    world w = world_open(name, 1);
    world_engine(&w, NULL);
    world_prompt(prompt, N, 5, w.info.vocab);
    cmoe_request r = request();
    r.capture = 1;
    world_answer(&w, &r, &alone);
    recorded all = record(&w, &alone);
    for (int64_t n = 1; n <= N + NEW - 1; n += 22) {
        cmoe_routing cut[LAYERS];
        for (int64_t i = 0; i < LAYERS; i++) {
            cut[i] = all.layer[i];
            cut[i].ids.dims[0] = cut[i].weights.dims[0] = n;
        }
        r = request();
        r.replay = cut;
        r.replay_tokens = n;
        world_answer(&w, &r, &part);
        world_same(&alone, &part, "forced in part");
    }
    forget(&all);
    world_close(&w);
}

static void errors(const char *name, const char *dense)
{
    static answer a;
    world w = world_open(name, 1);
    world_engine(&w, NULL);
    world_prompt(prompt, N, 5, w.info.vocab);
    cmoe_request r = request();
    int64_t id = 0;
    r.capture = 1;
    world_answer(&w, &r, &a);
    recorded all = record(&w, &a);
    cmoe_view ids, weights;
    UNIT_FAILS(cmoe_engine_routing(NULL, a.id, 0, &ids, &weights, &err), CMOE_ERR_ARG,
               "engine is NULL");
    UNIT_FAILS(cmoe_engine_routing(w.engine, a.id, 0, NULL, &weights, &err), CMOE_ERR_ARG,
               "ids is NULL");
    UNIT_FAILS(cmoe_engine_routing(w.engine, a.id, 0, &ids, NULL, &err), CMOE_ERR_ARG,
               "weights is NULL");
    UNIT_FAILS(cmoe_engine_routing(w.engine, 99, 0, &ids, &weights, &err), CMOE_ERR_ARG,
               "request 99 is not known");
    UNIT_FAILS(cmoe_engine_routing(w.engine, a.id, -1, &ids, &weights, &err), CMOE_ERR_RANGE,
               "layer = -1, want 0 <= layer <");
    r = request();
    r.replay = all.layer;
    r.replay_tokens = 5;
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_SHAPE, "replay ids");
    r.replay_tokens = 513;
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_RANGE,
               "replay_tokens = 513, want at most 512 (context)");
    r.replay_tokens = all.tokens;
    int64_t moe = 0;
    while (!all.layer[moe].ids.data)
        moe++;
    ((int32_t *)all.layer[moe].ids.data)[1] = 1000;
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_RANGE,
               "ids[0, 1] = 1000, want -1");
    r = request();
    world_answer(&w, &r, &a);
    UNIT_FAILS(cmoe_engine_routing(w.engine, a.id, 0, &ids, &weights, &err), CMOE_ERR_ARG,
               "has no routing, want one with capture");
    forget(&all);
    world_close(&w);
    w = world_open(dense, 1);
    world_engine(&w, NULL);
    r.capture = 1;
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_UNSUPPORTED,
               "capture is asked for, want a model with experts");
    world_close(&w);
}

static void of_experts(void **state)
{
    (void)state;
    capture_and_replay("qwen3_moe");
    partly("qwen3_moe");
}
static void of_some_layers(void **state)
{
    (void)state;
    capture_and_replay("glm4_moe"); /* a dense layer before */
    partly("glm4_moe");
}
static void refused(void **state)
{
    (void)state;
    errors("qwen3_moe", "qwen3");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(of_experts),
                                       cmocka_unit_test(of_some_layers), cmocka_unit_test(refused)};
    if (argc != 2) {
        printf("usage: golden_engine_routing FOLDER\n");
        return 2;
    }
    world_folder = argv[1];
    return UNIT_RUN("golden_engine_routing", tests);
}
