/* SPDX-License-Identifier: MIT
 *
 * requests.c - how requests end, what their events say, and every error text.
 *
 *     golden_engine_requests FOLDER                 the golden checkpoints
 */
#include "world.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "models/model.h"

static const char *const name = "qwen3_moe";
static int32_t prompt[WORLD_TOKENS];

static cmoe_request request(int64_t n, int64_t max_tokens)
{
    cmoe_request r;
    cmoe_request_default(&r, sizeof r);
    r.prompt = prompt;
    r.prompt_count = n;
    r.max_tokens = max_tokens;
    return r;
}

static world open_world(int size)
{
    world w = world_open(name, 1);
    if (size > 0) world_tokenizer(&w, size);
    world_engine(&w, NULL);
    world_prompt(prompt, WORLD_TOKENS, 7, w.info.vocab);
    return w;
}

/* ---- ends --------------------------------------------------------------------------------------- */

static void stop_tokens(void **state)
{
    (void)state;
    static answer whole, cut;
    world w = open_world(256);
    cmoe_request r = request(20, 40);
    world_answer(&w, &r, &whole);
    assert_int_equal(whole.finish, CMOE_FINISH_LENGTH);
    assert_int_equal(whole.count, 40);
    for (int64_t k = 0; k < 40; k += 7) {
        const int32_t stops[] = {whole.ids[k], 3};
        int64_t first = 0;
        while (whole.ids[first] != stops[0] && whole.ids[first] != stops[1])
            first++;
        r.stop_tokens = stops;
        r.stops = 2;
        world_answer(&w, &r, &cut);
        assert_int_equal(cut.finish, CMOE_FINISH_EOS);
        assert_int_equal(cut.count, first);
        assert_memory_equal(cut.ids, whole.ids, (size_t)first * sizeof *cut.ids);
        assert_int_equal(cut.forwards, first + 1);
    }
    world_close(&w);
}

/* Stop strings that are parts of the answer's own text, one to three tokens long. */
static void stop_strings(void **state)
{
    (void)state;
    static answer whole, cut;
    world w = open_world(256);
    cmoe_request r = request(20, 60);
    cmoe_sampling sampling;
    cmoe_sampling_default(&sampling, sizeof sampling);
    int32_t ids[WORLD_TOKENS];
    float bias[WORLD_TOKENS];
    for (int32_t id = 0; id < 256; id++) { /* lower-case letters alone */
        if (id >= 'a' && id <= 'z') continue;
        ids[sampling.biases] = id;
        bias[sampling.biases++] = -INFINITY;
    }
    sampling.bias_ids = ids;
    sampling.bias = bias;
    sampling.temperature = 1;
    r.sampling = &sampling;
    world_answer(&w, &r, &whole);
    assert_int_equal(whole.bytes, 60);
    for (int64_t n = 1; n <= 3; n++) {
        for (int64_t at = 0; at + n <= 60; at += 5) {
            char stop[8] = {0};
            memcpy(stop, whole.text + at, (size_t)n);
            const char *stops[] = {"never there", stop, NULL};
            r.stop_strings = stops;
            r.want_text = 1;
            const int64_t want = strstr(whole.text, stop) - whole.text;
            world_answer(&w, &r, &cut);
            assert_int_equal(cut.finish, CMOE_FINISH_STOP);
            assert_int_equal(cut.bytes, want);
            assert_int_equal(cut.count, want + n); /* ids keep what was sampled */
            assert_memory_equal(cut.text, whole.text, (size_t)want);
            r.want_text = 0;
            world_answer(&w, &r, &cut);
            assert_int_equal(cut.count, want + n);
            assert_int_equal(cut.bytes, 0);
        }
    }
    world_close(&w);
}

static void context_full(void **state)
{
    (void)state;
    static answer a, b;
    world w = open_world(0);
    const int64_t context = w.info.context;
    cmoe_request r = request(context - 12, 0);
    world_answer(&w, &r, &a);
    assert_int_equal(a.finish, CMOE_FINISH_LENGTH);
    assert_int_equal(a.count, 12);
    r.max_tokens = INT64_MAX;
    world_answer(&w, &r, &b);
    world_same(&a, &b, "max_tokens beyond the context");
    r = request(context - 1, 0);
    world_answer(&w, &r, &a);
    assert_int_equal(a.count, 1);
    cmoe_engine_options o;
    cmoe_engine_options_default(&o, sizeof o);
    o.pages = 2; /* fewer than the context: it ends where they do */
    world_engine(&w, &o);
    r = request(100, 0);
    world_answer(&w, &r, &a);
    assert_int_equal(a.count, 28);
    assert_int_equal(a.bytes, 0); /* no tokenizer */
    world_close(&w);
}

/* Ids that the tokenizer does not know are never chosen. */
static void unknown_ids(void **state)
{
    (void)state;
    static answer a;
    world w = open_world(40);
    cmoe_request r = request(20, 100);
    world_answer(&w, &r, &a);
    assert_int_equal(a.count, 100);
    for (int64_t i = 0; i < a.count; i++)
        assert_true(a.ids[i] < 40);
    world_close(&w);
}

static void logprobs(void **state)
{
    (void)state;
    static answer a;
    world w = open_world(0);
    cmoe_request r = request(20, 10);
    r.logprobs = 4;
    world_answer(&w, &r, &a);
    for (int64_t i = 0; i < a.count; i++) {
        const cmoe_logprob *p = a.best + 4 * i;
        assert_int_equal(p[0].id, a.ids[i]); /* greedy: the token is the best */
        assert_int_equal(p[1].id, a.ids[i]);
        assert_true(p[0].logprob == p[1].logprob && p[1].logprob >= p[2].logprob &&
                    p[2].logprob >= p[3].logprob && p[0].logprob < 0);
    }
    world_close(&w);
}

/* ---- cancelling --------------------------------------------------------------------------------- */

static void cancelled(void **state)
{
    (void)state;
    enum { MANY = 100 };
    static answer all[MANY];
    world w = open_world(256);
    const cmoe_request r = request(20, 30);
    for (int i = 0; i < MANY; i++)
        world_submit(&w, &r, &all[i]);
    cmoe_engine_cancel(w.engine, all[1].id); /* before it ran */
    cmoe_engine_cancel(w.engine, all[MANY - 1].id);
    cmoe_engine_cancel(w.engine, 0);
    cmoe_engine_cancel(w.engine, -all[2].id);
    cmoe_engine_cancel(w.engine, 123456);
    cmoe_engine_cancel(NULL, 1);
    for (int k = 0; k < 5; k++)
        world_step(&w, all, MANY);
    cmoe_engine_cancel(w.engine, all[4].id);
    world_run(&w, all, MANY);
    for (int i = 0; i < MANY; i++) {
        const bool stopped = i == 1 || i == 4 || i == MANY - 1;
        assert_int_equal(all[i].finish, stopped ? CMOE_FINISH_CANCELLED : CMOE_FINISH_LENGTH);
        assert_int_equal(all[i].count, !stopped ? 30 : i == 4 ? 5 : 0);
    }
    cmoe_engine_cancel(w.engine, all[4].id); /* long gone */
    assert_false(world_step(&w, all, MANY));
    world_close(&w);
}

typedef struct canceller {
    cmoe_engine *engine;
    _Atomic int64_t newest;
    _Atomic int done;
} canceller;

static void *cancel_them(void *arg)
{
    canceller *c = arg;
    for (int64_t i = 0; !atomic_load(&c->done); i++)
        cmoe_engine_cancel(c->engine, 1 + i % (atomic_load(&c->newest) + 2));
    return NULL;
}

static void cancelled_by_others(void **state)
{
    (void)state;
    static answer all[200];
    world w = open_world(0);
    canceller c = {.engine = w.engine};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, cancel_them, &c), 0);
    for (int i = 0; i < 200; i++) {
        const cmoe_request r = request(1 + i % 20, 20);
        world_submit(&w, &r, &all[i]);
        atomic_store(&c.newest, all[i].id);
        if (i % 2) world_step(&w, all, 200);
    }
    world_run(&w, all, 200);
    atomic_store(&c.done, 1);
    pthread_join(t, NULL);
    assert_int_equal(world_info(&w).pages_used, 0);
    world_close(&w);
}

/* A pass of several blocks needs the whole forward.  Younger requests of one block each, which would
 * always leave too little of it, do not hold it up. */
static void wide_passes_go_on(void **state)
{
    enum { NARROW = 4, ALL = NARROW + 1 };
    static answer all[ALL];
    (void)state;
    world w = world_open("sdar_moe", 1);
    cmoe_engine_options o;
    cmoe_engine_options_default(&o, sizeof o);
    o.step_tokens = NARROW * w.info.mask;
    o.pages = 64;
    world_engine(&w, &o);
    world_prompt(prompt, WORLD_TOKENS, 7, w.info.vocab);
    for (int i = 0; i < ALL; i++) {
        cmoe_request r = request(w.info.mask, 16 * w.info.mask);
        cmoe_diffusion d;
        cmoe_diffusion_default(&d, sizeof d);
        d.remasking = CMOE_REMASK_SEQUENTIAL;
        if (i == 0) d.buffer = NARROW; /* all blocks are opened and filled at once */
        if (i == 0) d.add_block = d.accept = 0;
        r.diffusion = &d;
        world_submit(&w, &r, &all[i]);
    }
    while (all[0].finish == CMOE_FINISH_NONE)
        assert_true(world_step(&w, all, ALL));
    for (int i = 1; i < ALL; i++)
        assert_int_equal(all[i].finish, CMOE_FINISH_NONE);
    world_run(&w, all, ALL);
    world_close(&w);
}

/* ---- events and numbers ------------------------------------------------------------------------- */

static void numbers(void **state)
{
    (void)state;
    static answer all[3];
    world w = open_world(0);
    cmoe_engine_options o;
    cmoe_engine_options_default(&o, sizeof o);
    o.sequences = 2;
    o.step_tokens = 30;
    o.pages = 16;
    world_engine(&w, &o);
    const cmoe_request r = request(65, 10);
    for (int i = 0; i < 3; i++)
        world_submit(&w, &r, &all[i]);
    cmoe_engine_info info = world_info(&w);
    assert_int_equal(info.waiting, 3);
    assert_int_equal(info.pages, 16);
    world_step(&w, all, 3);
    info = world_info(&w);
    assert_int_equal(info.running, 2);
    assert_int_equal(info.waiting, 1);
    assert_int_equal(info.forwards, 1);
    assert_int_equal(info.tokens, 30);
    assert_int_equal(info.pages_used, 1);
    world_run(&w, all, 3);
    info = world_info(&w);
    assert_int_equal(info.prompt_tokens, 3 * 65);
    /* The second had run 25 of its tokens when the page was there; the third finds it at once. */
    assert_int_equal(info.cached_tokens, 64 - 25 + 64);
    assert_int_equal(info.tokens, 65 + 25 + 1 + 1 + 3 * 9);
    assert_int_equal(info.pages_reusable, 1);
    assert_int_equal(info.pages_used, 0);
    assert_int_equal(all[0].cached_tokens, 0);
    assert_int_equal(all[2].cached_tokens, 64);
    assert_int_equal(all[2].events, 11);
    cmoe_event v = {.size = sizeof v};
    assert_int_equal(cmoe_engine_poll(w.engine, &v), 0);
    assert_int_equal(cmoe_engine_poll(NULL, &v), 0);
    assert_int_equal(cmoe_engine_poll(w.engine, NULL), 0);
    assert_string_equal(cmoe_finish_name(CMOE_FINISH_STOP), "stop");
    assert_null(cmoe_finish_name(-1));
    assert_null(cmoe_finish_name(CMOE_FINISH_ERROR + 1));
    world_close(&w);
}

/* ---- error texts -------------------------------------------------------------------------------- */

static void bad_requests(void **state)
{
    (void)state;
    world w = open_world(256);
    int64_t id = 77;
    const int32_t far[] = {1, 256}, negative[] = {-1};
    const char *const empty[] = {"a", "", NULL}, *const broken[] = {"a\xff", NULL};
    cmoe_diffusion diffusion = {.size = sizeof diffusion};
    cmoe_sampling sampling;
    cmoe_sampling_default(&sampling, sizeof sampling);
    sampling.temperature = -1;
    cmoe_request r;
#define BAD(change, status, text)                                              \
    do {                                                                       \
        r = request(20, 10);                                                   \
        change;                                                                \
        UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), status, text); \
    } while (0)
    BAD(r.prompt_count = 0, CMOE_ERR_SHAPE, "prompt_count = 0, want at least 1");
    BAD(r.prompt = NULL, CMOE_ERR_ARG, "prompt is NULL");
    BAD((r.prompt = far, r.prompt_count = 2), CMOE_ERR_RANGE,
        "prompt[1] = 256, want 0 <= id < 256 (vocab)");
    BAD((r.prompt = negative, r.prompt_count = 1), CMOE_ERR_RANGE, "prompt[0] = -1");
    BAD(r.prompt_count = 512, CMOE_ERR_RANGE,
        "prompt has 512 tokens, want at most 511 (context 512, at least one of it for the answer)");
    BAD(r.max_tokens = -1, CMOE_ERR_RANGE, "max_tokens = -1, want at least 0");
    BAD(r.stops = -1, CMOE_ERR_RANGE, "stops = -1, want at least 0");
    BAD(r.stops = 1, CMOE_ERR_ARG, "stop_tokens is NULL");
    BAD((r.stops = 2, r.stop_tokens = far), CMOE_ERR_RANGE, "stop_tokens[1] = 256");
    BAD(r.stop_strings = empty, CMOE_ERR_ARG, "stop_strings[1] is empty");
    BAD(r.stop_strings = broken, CMOE_ERR_FORMAT, "stop_strings[0] is not UTF-8 at byte 1");
    BAD(r.logprobs = -1, CMOE_ERR_RANGE, "logprobs = -1, want 0 to 256 (vocab)");
    BAD(r.logprobs = 257, CMOE_ERR_RANGE, "logprobs = 257");
    BAD(r.capture = 2, CMOE_ERR_RANGE, "capture");
    BAD(r.want_text = 2, CMOE_ERR_RANGE, "want_text");
    BAD(r.reserved = 1, CMOE_ERR_ARG, "reserved = 1, want 0");
    BAD(r.diffusion = &diffusion, CMOE_ERR_UNSUPPORTED,
        "diffusion is given, want none: a model of type qwen3_moe makes one token after the other");
    BAD(r.sampling = &sampling, CMOE_ERR_RANGE, "temperature = -1");
    BAD(r.replay_tokens = 1, CMOE_ERR_ARG, "replay is NULL and replay_tokens = 1, want both");
    BAD(r.size = 1, CMOE_ERR_ARG, "cmoe_request");
#undef BAD
    r = request(20, 10);
    UNIT_FAILS(cmoe_engine_submit(NULL, &r, &id, &err), CMOE_ERR_ARG, "engine is NULL");
    UNIT_FAILS(cmoe_engine_submit(w.engine, NULL, &id, &err), CMOE_ERR_ARG, "request is NULL");
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, NULL, &err), CMOE_ERR_ARG, "id is NULL");
    assert_int_equal(id, 77);
    assert_int_equal(world_info(&w).waiting, 0);
    world_close(&w);
}

/* What the engine at hand cannot do. */
static void refused(void **state)
{
    (void)state;
    static const char *const stops[] = {"a", NULL};
    world w = open_world(0);
    cmoe_engine_options o;
    int64_t id = 0;
    cmoe_engine_options_default(&o, sizeof o);
    o.pages = 2;
    world_engine(&w, &o);
    cmoe_request r = request(100, 29);
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_RANGE,
               "a prompt of 100 tokens and up to 29 new ones take 3 pages of 64, want at most 2 "
               "(pages of the engine)");
    r = request(128, 0);
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_RANGE, "take 3 pages");
    r = request(20, 10);
    r.stop_strings = stops;
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_ARG,
               "stop_strings are given, want none: the engine has no tokenizer");
    assert_int_equal(world_info(&w).waiting, 0);
    world_close(&w);

    w = world_open("sdar_moe", 1);
    o.step_tokens = 3;
    world_engine(&w, &o);
    r = request(20, 10);
    UNIT_FAILS(cmoe_engine_submit(w.engine, &r, &id, &err), CMOE_ERR_RANGE,
               "one step of this request is 8 tokens, want at most 3 (step_tokens of the engine)");
    w.model->info.mask = CMOE_MASK_FULL; /* none of the published ones */
    cmoe_engine *e = NULL;
    UNIT_FAILS(cmoe_engine_create(&e, w.env.stream, w.model, NULL, NULL, &err),
               CMOE_ERR_UNSUPPORTED,
               "sees all positions at once, want a causal or block-causal one");
    assert_null(e);
    world_close(&w);
}

static void bad_engines(void **state)
{
    (void)state;
    world w = open_world(0);
    cmoe_engine *e = NULL;
    cmoe_engine_options o;
    int64_t bytes = 0;
    int32_t busy;
#define BAD(change, status, text)                                                                \
    do {                                                                                         \
        cmoe_engine_options_default(&o, sizeof o);                                               \
        change;                                                                                  \
        UNIT_FAILS(cmoe_engine_create(&e, w.env.stream, w.model, NULL, &o, &err), status, text); \
        UNIT_FAILS(cmoe_engine_bytes(w.model, &o, &bytes, &err), status, text);                  \
    } while (0)
    BAD(o.pages = -1, CMOE_ERR_RANGE, "pages = -1, want 1 to 2147483647");
    BAD(o.step_tokens = 0, CMOE_ERR_RANGE, "step_tokens = 0, want 1 to");
    BAD(o.sequences = 0, CMOE_ERR_RANGE, "sequences = 0, want 1 to 65536");
    BAD(o.sequences = 65537, CMOE_ERR_RANGE, "sequences = 65537");
    BAD(o.cache_format = CMOE_F16, CMOE_ERR_DTYPE, "want one of: f32 bf16");
    BAD(o.no_prefix_reuse = 2, CMOE_ERR_RANGE, "no_prefix_reuse");
    BAD(o.size = 1, CMOE_ERR_ARG, "cmoe_engine_options");
#undef BAD
    unit_env other = unit_open(1);
    UNIT_FAILS(cmoe_engine_create(&e, other.stream, w.model, NULL, NULL, &err), CMOE_ERR_ARG,
               "model is of another context");
    unit_close(&other);
    UNIT_FAILS(cmoe_engine_create(NULL, w.env.stream, w.model, NULL, NULL, &err), CMOE_ERR_ARG,
               "out is NULL");
    UNIT_FAILS(cmoe_engine_create(&e, w.env.stream, NULL, NULL, NULL, &err), CMOE_ERR_ARG,
               "model is NULL");
    UNIT_FAILS(cmoe_engine_create(&e, NULL, w.model, NULL, NULL, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_engine_bytes(NULL, NULL, &bytes, &err), CMOE_ERR_ARG, "model is NULL");
    UNIT_FAILS(cmoe_engine_bytes(w.model, NULL, NULL, &err), CMOE_ERR_ARG, "bytes is NULL");
    UNIT_FAILS(cmoe_engine_step(NULL, &busy, &err), CMOE_ERR_ARG, "engine is NULL");
    UNIT_FAILS(cmoe_engine_step(w.engine, NULL, &err), CMOE_ERR_ARG, "busy is NULL");
    cmoe_engine_info info = {0};
    UNIT_FAILS(cmoe_engine_describe(NULL, &info, &err), CMOE_ERR_ARG, "engine is NULL");
    UNIT_FAILS(cmoe_engine_describe(w.engine, NULL, &err), CMOE_ERR_ARG, "info is NULL");
    UNIT_FAILS(cmoe_engine_describe(w.engine, &info, &err), CMOE_ERR_ARG, "info.size is not set");
    assert_null(e);
    assert_int_equal(bytes, 0);
    cmoe_engine_free(NULL);
    world_close(&w);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stop_tokens),
                                       cmocka_unit_test(stop_strings),
                                       cmocka_unit_test(context_full),
                                       cmocka_unit_test(unknown_ids),
                                       cmocka_unit_test(logprobs),
                                       cmocka_unit_test(cancelled),
                                       cmocka_unit_test(cancelled_by_others),
                                       cmocka_unit_test(numbers),
                                       cmocka_unit_test(wide_passes_go_on),
                                       cmocka_unit_test(bad_requests),
                                       cmocka_unit_test(refused),
                                       cmocka_unit_test(bad_engines)};
    if (argc != 2) {
        printf("usage: golden_engine_requests FOLDER\n");
        return 2;
    }
    world_folder = argv[1];
    return UNIT_RUN("golden_engine_requests", tests);
}
