/* SPDX-License-Identifier: MIT
 *
 * engine.c - the n-th allocation fails while an engine is made or a request is submitted: a status and
 * a text each time, nothing left behind, and those that run already come to the same end.  A step asks
 * for no memory at all, and an engine takes what cmoe_engine_bytes said.
 *
 *     faults_engine FOLDER                 the golden checkpoints
 */
#include <math.h>

#include "cmoe/engine.h"
#include "cmoe/model.h"
#include "fault.h"

enum { PROMPT = 70, NEW = 30 };

static const char *folder;

typedef struct world {
    fault_memory m;
    unit_env env;
    cmoe_model *model;
    cmoe_engine_options o;
    int32_t prompt[PROMPT];
    cmoe_request r;
} world;

static void open_world(world *w)
{
    memset(w, 0, sizeof *w);
    w->env = fault_env(&w->m, 2);
    char path[4096];
    snprintf(path, sizeof path, "%s/qwen3_moe", folder);
    UNIT_OK(cmoe_model_load(&w->model, w->env.ctx, path, NULL, &err));
    cmoe_engine_options_default(&w->o, sizeof w->o);
    w->o.pages = 5;
    w->o.step_tokens = 40;
    w->o.sequences = 3;
    for (int32_t i = 0; i < PROMPT; i++)
        w->prompt[i] = i * 37 % 256;
    cmoe_request_default(&w->r, sizeof w->r);
    w->r.prompt = w->prompt;
    w->r.prompt_count = PROMPT;
    w->r.max_tokens = NEW;
    w->r.logprobs = 3;
}

static void close_world(world *w)
{
    cmoe_model_free(w->model);
    unit_close(&w->env);
    assert_int_equal(w->m.blocks, 0);
    assert_int_equal(w->m.bytes, 0);
}

static void failed(cmoe_status status, const cmoe_error *err, int64_t n)
{
    if (status != CMOE_ERR_MEMORY || !strstr(err->text, "could not be "))
        fail_msg("allocation %d: %s (\"%s\")", (int)n, cmoe_status_name(status), err->text);
}

static cmoe_engine *create(world *w)
{
    const fault_memory before = w->m;
    cmoe_engine *e = NULL;
    for (int64_t n = 1;; n++) {
        cmoe_error err = {0};
        w->m.fail_at = n;
        const cmoe_status status =
            cmoe_engine_create(&e, w->env.stream, w->model, NULL, &w->o, &err);
        const bool reached = w->m.fail_at == 0;
        w->m.fail_at = 0;
        if (!reached) {
            if (status != CMOE_OK) fail_msg("%s", err.text);
            assert_true(n > 2);
            return e;
        }
        failed(status, &err, n);
        assert_null(e);
        assert_int_equal(w->m.blocks, before.blocks);
        assert_int_equal(w->m.bytes, before.bytes);
    }
}

/* Submits with every allocation failing once, then for good. */
static void submit(world *w, cmoe_engine *e)
{
    for (int64_t n = 1;; n++) {
        cmoe_error err = {0};
        int64_t id = -5;
        const int64_t blocks = w->m.blocks;
        w->m.fail_at = n;
        const cmoe_status status = cmoe_engine_submit(e, &w->r, &id, &err);
        const bool reached = w->m.fail_at == 0;
        w->m.fail_at = 0;
        if (!reached) {
            if (status != CMOE_OK) fail_msg("%s", err.text);
            assert_true(id > 0);
            return;
        }
        failed(status, &err, n);
        assert_int_equal(id, -5);
        /* Tables that all requests share may have been made, and stay. */
        assert_true(w->m.blocks - blocks <= 1);
    }
}

/* To the end; no call for memory on the way.  The tokens of request `id`. */
static void run(world *w, cmoe_engine *e, int64_t id, int32_t *tokens, int64_t requests)
{
    int64_t n = 0, ended = 0;
    for (int32_t busy = 1; busy;) {
        const int64_t calls = w->m.calls, libc = fault.libc_calls, blocks = w->m.blocks;
        UNIT_OK(cmoe_engine_step(e, &busy, &err));
        cmoe_event v = {.size = sizeof v};
        assert_int_equal(w->m.calls, calls);
        if (w->m.blocks == blocks)
            assert_int_equal(fault.libc_calls, libc); /* else ended ones go */
        while (cmoe_engine_poll(e, &v)) {
            for (int64_t i = 0; v.kind == CMOE_EVENT_TOKENS && v.request == id && i < v.count; i++)
                tokens[n++] = v.ids[i];
            ended += v.kind == CMOE_EVENT_FINISH && v.finish == CMOE_FINISH_LENGTH;
        }
    }
    assert_int_equal(n, NEW);
    assert_int_equal(ended, requests);
}

static void everywhere(void **state)
{
    (void)state;
    static world w;
    int32_t alone[NEW], others[NEW];
    open_world(&w);
    int64_t planned = 0, id = 0;
    UNIT_OK(cmoe_engine_bytes(w.model, &w.o, &planned, &err));
    const fault_memory before = w.m;
    cmoe_engine *e = create(&w);
    assert_int_equal(w.m.bytes - before.bytes, planned);
    UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err));
    run(&w, e, id, alone, 1);
    UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err));
    int32_t busy;
    UNIT_OK(cmoe_engine_step(e, &busy, &err));
    w.r.capture = 1;
    submit(&w, e);
    w.r.capture = 0;
    for (int i = 0; i < 4; i++)
        submit(&w, e); /* more than run at once, and than there are pages */
    run(&w, e, id, others, 6);
    assert_memory_equal(alone, others, sizeof alone);
    cmoe_engine_free(e);
    assert_int_equal(w.m.blocks, before.blocks);
    close_world(&w);
}

/* Freed with requests in all states. */
static void in_the_middle(void **state)
{
    (void)state;
    static world w;
    open_world(&w);
    for (int steps = 0; steps < 60; steps += 7) {
        cmoe_engine *e = NULL;
        UNIT_OK(cmoe_engine_create(&e, w.env.stream, w.model, NULL, &w.o, &err));
        int64_t id;
        for (int i = 0; i < 5; i++)
            UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err));
        for (int i = 0; i < steps; i++) {
            int32_t busy;
            UNIT_OK(cmoe_engine_step(e, &busy, &err));
        }
        cmoe_engine_free(e);
    }
    close_world(&w);
}

/* ---- a forward that fails, or gives nonsense ---------------------------------------------------- */

static int64_t fail_in, nonsense_in; /* the n-th forward from now; 0: none */

cmoe_status __real_cmoe_model_forward(cmoe_stream *s, const cmoe_model *m,
                                      const cmoe_model_call *call, cmoe_view_mut logits,
                                      cmoe_arena *scratch, cmoe_error *err);
cmoe_status __wrap_cmoe_model_forward(cmoe_stream *s, const cmoe_model *m,
                                      const cmoe_model_call *call, cmoe_view_mut logits,
                                      cmoe_arena *scratch, cmoe_error *err);
cmoe_status __wrap_cmoe_model_forward(cmoe_stream *s, const cmoe_model *m,
                                      const cmoe_model_call *call, cmoe_view_mut logits,
                                      cmoe_arena *scratch, cmoe_error *err)
{
    if (fail_in > 0 && --fail_in == 0) {
        snprintf(err->text, sizeof err->text, "the device is gone");
        return err->status = CMOE_ERR_DEVICE;
    }
    const cmoe_status status = __real_cmoe_model_forward(s, m, call, logits, scratch, err);
    if (nonsense_in > 0 && --nonsense_in == 0)
        ((float *)logits.data)[7] = NAN; /* of the first request */
    return status;
}

typedef struct ends {
    int64_t of[CMOE_FINISH_ERROR + 1], tokens;
} ends;

static cmoe_status until_idle(cmoe_engine *e, ends *all, cmoe_error *err)
{
    *all = (ends){0};
    cmoe_status status = CMOE_OK;
    for (int32_t busy = 1; busy && status == CMOE_OK;) {
        cmoe_event v = {.size = sizeof v};
        status = cmoe_engine_step(e, &busy, err);
        while (cmoe_engine_poll(e, &v)) {
            all->tokens += v.kind == CMOE_EVENT_TOKENS ? v.count : 0;
            all->of[v.kind == CMOE_EVENT_FINISH ? v.finish : 0]++;
        }
    }
    return status;
}

static void forwards_that_fail(void **state)
{
    (void)state;
    static world w;
    ends all;
    open_world(&w);
    cmoe_engine *e = NULL;
    UNIT_OK(cmoe_engine_create(&e, w.env.stream, w.model, NULL, &w.o, &err));
    int64_t id;
    for (int64_t n = 1; n < 40; n += 6) {
        for (int i = 0; i < 5; i++)
            UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err));
        fail_in = n;
        UNIT_FAILS(until_idle(e, &all, &err), CMOE_ERR_DEVICE, "the device is gone");
        assert_int_equal(all.of[CMOE_FINISH_ERROR] + all.of[CMOE_FINISH_LENGTH], 5);
        assert_true(all.of[CMOE_FINISH_ERROR] >= 2);
        cmoe_engine_info info = {.size = sizeof info};
        UNIT_OK(cmoe_engine_describe(e, &info, &err));
        assert_int_equal(info.running + info.waiting + info.pages_used, 0);
        UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err)); /* and goes on */
        UNIT_OK(until_idle(e, &all, &err));
        assert_int_equal(all.tokens, NEW);
    }
    for (int i = 0; i < 3; i++)
        UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err));
    nonsense_in = 9; /* concerns one request, the others do not notice */
    UNIT_OK(until_idle(e, &all, &err));
    assert_int_equal(all.of[CMOE_FINISH_ERROR], 1);
    assert_int_equal(all.of[CMOE_FINISH_LENGTH], 2);
    cmoe_engine_free(e);
    close_world(&w);
}

/* No memory for text: the request ends, and the next one has all of it again. */
static void no_memory_for_text(void **state)
{
    (void)state;
    static world w;
    ends all;
    char path[4096];
    open_world(&w);
    cmoe_tokenizer *t = NULL;
    cmoe_engine *e = NULL;
    snprintf(path, sizeof path, "%s/../text/tokenizers/gpt2_olmoe", folder);
    UNIT_OK(cmoe_tokenizer_open(&t, w.env.ctx, path, &err));
    UNIT_OK(cmoe_engine_create(&e, w.env.stream, w.model, t, &w.o, &err));
    int64_t id, blocks = 0, n = 1;
    for (bool reached = true; reached; n++) {
        UNIT_OK(cmoe_engine_submit(e, &w.r, &id, &err));
        w.m.fail_at = n;
        UNIT_OK(until_idle(e, &all, &err));
        reached = w.m.fail_at == 0;
        w.m.fail_at = 0;
        assert_int_equal(all.of[CMOE_FINISH_ERROR], reached);
        assert_int_equal(all.of[CMOE_FINISH_LENGTH], !reached);
        int32_t busy;
        UNIT_OK(cmoe_engine_step(e, &busy, &err));
        if (n == 1) blocks = w.m.blocks;
        assert_int_equal(w.m.blocks, blocks);
    }
    assert_true(n > 2);
    cmoe_engine_free(e);
    cmoe_tokenizer_free(t);
    close_world(&w);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everywhere), cmocka_unit_test(in_the_middle),
        cmocka_unit_test(forwards_that_fail), cmocka_unit_test(no_memory_for_text)};
    if (argc != 2) {
        printf("usage: faults_engine FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("faults_engine", tests);
}
