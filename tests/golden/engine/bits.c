/* SPDX-License-Identifier: MIT
 *
 * bits.c - a request gives the same tokens, log-probabilities and text alone and in company, in large
 * and small steps, with any number of threads, found in the cache or not, preempted or not, polled
 * early or late.
 *
 *     golden_engine_bits FOLDER [CASE ...]           the golden checkpoints
 */
#include "engine/job.h"
#include "world.h"

enum { REQUESTS = 32, LONGEST = 200, EXTRAS = 8 };

static const char *const some[] = {"qwen3_moe", "gpt_oss", "mixtral_window", "sdar_moe"};

/* ---- requests ----------------------------------------------------------------------------------- */

typedef struct company {
    int32_t prompt[REQUESTS][LONGEST];
    cmoe_request request[REQUESTS];
    cmoe_sampling sampling[REQUESTS];
    const char *stop[REQUESTS][3];
    answer alone[REQUESTS], now[REQUESTS];
    bool preempted; /* somebody, at least once */
    int64_t needed; /* tokens that have to run, nothing found and nothing lost */
} company;

static uint64_t seed = 1;
static int64_t below(int64_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((seed >> 33) % (uint64_t)n);
}

/* Every second is made of three pages that come in any order, so prefixes are common, and so are equal
 * pages behind different ones. */
static void shuffle(int32_t *prompt, int64_t n, int64_t vocab)
{
    for (int64_t i = 0; i < n; i += CMOE_KV_PAGE)
        world_prompt(prompt + i, n - i < CMOE_KV_PAGE ? n - i : CMOE_KV_PAGE,
                     99 + (uint64_t)below(3), vocab);
}

static void invite(company *c, const cmoe_model_info *info)
{
    const int64_t vocab = info->vocab;
    const bool blocks = info->mask > 0;
    static const char *const stops[] = {"e", "a\xc3\xa9", "\x01\x02"};
    for (int64_t i = 0; i < REQUESTS; i++) {
        cmoe_request *r = &c->request[i];
        cmoe_sampling *s = &c->sampling[i];
        const int64_t n = 1 + below(LONGEST);
        world_prompt(c->prompt[i], n, (uint64_t)(i + 1), vocab);
        if (i % 2 == 1) shuffle(c->prompt[i], n, vocab);
        cmoe_request_default(r, sizeof *r);
        cmoe_sampling_default(s, sizeof *s);
        r->prompt = c->prompt[i];
        r->prompt_count = n;
        r->max_tokens = 1 + below(70);
        r->logprobs = blocks ? 0 : (int32_t)below(WORLD_LOGPROBS + 1);
        r->sampling = s;
        s->seed = (uint64_t)i;
        s->temperature = i % 3 && !blocks ? 0.3f + 0.1f * (float)(i % 9) : 0;
        s->top_k = i % 5 == 1 ? 20 : 0;
        s->top_p = i % 5 == 2 ? 0.9f : 1;
        s->repetition_penalty = i % 6 == 4 ? 1.2f : 1;
        c->stop[i][0] = stops[i % 3];
        r->stop_strings = i % 8 == 5 ? c->stop[i] : NULL;
    }
}

static cmoe_engine_options plain(void)
{
    cmoe_engine_options o;
    cmoe_engine_options_default(&o, sizeof o);
    o.no_prefix_reuse = 1;
    return o;
}

static void each_alone(world *w, company *c)
{
    cmoe_engine_options o = plain();
    c->needed = 0;
    for (int64_t i = 0; i < REQUESTS; i++) {
        if (i % 8 == 0) world_engine(w, &o); /* a fresh one now and then */
        world_answer(w, &c->request[i], &c->alone[i]);
        assert_int_equal(c->alone[i].cached_tokens, 0);
        assert_int_equal(c->alone[i].prompt_tokens, c->request[i].prompt_count);
        /* Of blocks: every forward, and each block once more. */
        if (w->info.mask > 0)
            c->needed += c->request[i].prompt_count + c->alone[i].count +
                         c->alone[i].forwards * w->info.mask;
        else
            c->needed += c->request[i].prompt_count + c->alone[i].count - 1;
    }
}

static void nothing_left(world *w)
{
    int32_t busy;
    UNIT_OK(cmoe_engine_step(w->engine, &busy, &err));
    const cmoe_engine_info info = world_info(w);
    assert_int_equal(info.pages_used, 0);
    assert_int_equal(info.running, 0);
    assert_int_equal(info.waiting, 0);
}

/* All of them at once, each from a step of its own on, among others that come and are cancelled. */
static cmoe_engine_info together(world *w, company *c, const cmoe_engine_options *o, bool late,
                                 const char *what)
{
    static answer all[REQUESTS + EXTRAS];
    int64_t when[REQUESTS], submitted = 0, extras = 0;
    if (o) world_engine(w, o);
    memset(all, 0, sizeof all);
    c->preempted = false;
    for (int64_t i = 0; i < REQUESTS; i++)
        when[i] = below(30);
    for (int64_t step = 0, busy = 1; busy || submitted < REQUESTS; step++) {
        for (int64_t i = 0; i < REQUESTS; i++) {
            if (when[i] != step) continue;
            world_submit(w, &c->request[i], &all[i]);
            submitted++;
        }
        if (step % 4 == 2 && extras < EXTRAS)
            world_submit(w, &c->request[below(REQUESTS)], &all[REQUESTS + extras++]);
        if (extras > 0 && step % 3 == 1)
            cmoe_engine_cancel(w->engine, all[REQUESTS + below(extras)].id);
        int32_t more;
        UNIT_OK(cmoe_engine_step(w->engine, &more, &err));
        if (!late) world_poll(w, all, REQUESTS + EXTRAS);
        busy = more;
        for (const cmoei_job *j = w->engine->jobs; j; j = j->next)
            c->preempted = c->preempted || j->preempted;
        const cmoe_engine_info info = world_info(w);
        assert_true(info.pages_used + info.pages_reusable <= info.pages);
        assert_true(step < 20000);
    }
    world_poll(w, all, REQUESTS + EXTRAS);
    for (int64_t i = 0; i < REQUESTS; i++) {
        char text[128];
        snprintf(text, sizeof text, "%s, request %d", what, (int)i);
        world_same(&c->alone[i], &all[i], text);
        c->now[i] = all[i];
    }
    nothing_left(w);
    return world_info(w);
}

/* ---- one model ---------------------------------------------------------------------------------- */

static void in_company(const char *name, int32_t first, int32_t last)
{
    static company c;
    for (int32_t threads = first; threads <= last; threads++) {
        world w = world_open(name, threads);
        world_tokenizer(&w, 256);
        if (threads == first) {
            invite(&c, &w.info);
            each_alone(&w, &c);
        }
        cmoe_engine_options o = plain();
        o.pages = 200;
        together(&w, &c, &o, false, "in a batch");
        o.step_tokens = 37;
        o.sequences = 5;
        together(&w, &c, &o, true, "in small steps");
        o.step_tokens = 1;
        if (threads == 1 && w.info.mask == CMOE_MASK_CAUSAL)
            together(&w, &c, &o, false, "token by token");
        o = plain();
        o.pages = 9; /* one of them always fits, three never do */
        together(&w, &c, &o, false, "preempted");
        if (!c.preempted) fail_msg("%s: nobody was preempted", name);
        world_close(&w);
    }
}

static void from_the_cache(const char *name)
{
    static company c;
    world w = world_open(name, 2);
    world_tokenizer(&w, 256);
    invite(&c, &w.info);
    each_alone(&w, &c);
    cmoe_engine_options o;
    cmoe_engine_options_default(&o, sizeof o);
    o.pages = 300;
    cmoe_engine_info before = together(&w, &c, &o, false, "shared");
    assert_true(before.cached_tokens > 0); /* by those that run side by side */
    assert_true(before.pages_reusable > 0);
    const cmoe_engine_info info = together(&w, &c, NULL, false, "found again");
    assert_true(info.tokens - before.tokens < c.needed);
    for (int64_t i = 0; i < REQUESTS; i++)
        assert_int_equal(c.now[i].cached_tokens, /* all of its whole pages */
                         (c.request[i].prompt_count - 1) / CMOE_KV_PAGE * CMOE_KV_PAGE);
    o.pages = 9;
    o.step_tokens = 50;
    together(&w, &c, &o, false, "evicted");
    o.pages = 20;
    together(&w, &c, &o, true, "evicted at times");
    together(&w, &c, NULL, false, "evicted at times, again");
    world_close(&w);
}

static const char *const *names = some;
static int count = sizeof some / sizeof some[0];

static void company_of_others(void **state)
{
    (void)state;
    for (int i = 0; i < count; i++)
        in_company(names[i], i ? 2 : 1, i ? 2 : 3); /* threads */
}

static void prefixes(void **state)
{
    (void)state;
    for (int i = 0; i < count; i++)
        from_the_cache(names[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(company_of_others),
                                       cmocka_unit_test(prefixes)};
    if (argc < 2) {
        printf("usage: golden_engine_bits FOLDER [CASE ...]\n");
        return 2;
    }
    world_folder = argv[1];
    if (argc > 2) {
        names = (const char *const *)argv + 2;
        count = argc - 2;
    }
    return UNIT_RUN("golden_engine_bits", tests);
}
