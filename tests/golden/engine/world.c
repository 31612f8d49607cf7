/* SPDX-License-Identifier: MIT
 *
 * world.c - see world.h.
 */
#include "world.h"

#include <unistd.h>

const char *world_folder;

/* ---- model and engine --------------------------------------------------------------------------- */

world world_of(unit_env env, const char *name)
{
    world w = {.env = env, .info = {.size = sizeof w.info}};
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", world_folder, name);
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = CMOE_F32; /* as golden values were made */
    UNIT_OK(cmoe_model_load(&w.model, env.ctx, path, &o, &err));
    UNIT_OK(cmoe_model_describe(w.model, &w.info, &err));
    return w;
}

world world_open(const char *name, int32_t threads)
{
    return world_of(unit_open(threads), name);
}

void world_engine(world *w, const cmoe_engine_options *o)
{
    cmoe_engine_free(w->engine);
    w->engine = NULL;
    UNIT_OK(cmoe_engine_create(&w->engine, w->env.stream, w->model, w->tokenizer, o, &err));
}

/* tokenizer.json of a byte-level BPE without merges: byte b is written as GPT-2 does and has id b. */
static void write_tokenizer(FILE *f, int size)
{
    int extra = 256;
    fputs("{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": "
          "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, "
          "\"use_regex\": false}, \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", "
          "\"add_prefix_space\": false, \"trim_offsets\": false, \"use_regex\": false}, "
          "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
          "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, "
          "\"byte_fallback\": false, \"merges\": [], \"vocab\": {",
          f);
    for (int b = 0; b < size; b++) {
        const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        fprintf(f, "%s\"\\u%04x\": %d", b ? ", " : "", plain ? b : extra++, b);
    }
    fputs("}}}", f);
}

void world_tokenizer(world *w, int size)
{
    char path[] = "engine_tokenizer_XXXXXX.json";
    const int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    FILE *f = fdopen(fd, "w");
    assert_non_null(f);
    write_tokenizer(f, size);
    assert_int_equal(fclose(f), 0);
    cmoe_error err = {0};
    const cmoe_status status = cmoe_tokenizer_open(&w->tokenizer, w->env.ctx, path, &err);
    remove(path);
    if (status != CMOE_OK) fail_msg("tokenizer: %s", err.text);
}

cmoe_engine_info world_info(const world *w)
{
    cmoe_engine_info info = {.size = sizeof info};
    UNIT_OK(cmoe_engine_describe(w->engine, &info, &err));
    return info;
}

void world_close(world *w)
{
    cmoe_engine_free(w->engine);
    cmoe_tokenizer_free(w->tokenizer);
    cmoe_model_free(w->model);
    unit_close(&w->env);
}

/* ---- prompts ------------------------------------------------------------------------------------ */

int64_t world_golden(const world *w, const char *name, const char *tensor, int32_t *ids,
                     int64_t room)
{
    char path[4096];
    cmoe_checkpoint *c = NULL;
    cmoe_tensor t = {.size = sizeof t};
    int64_t data[WORLD_TOKENS], n = 0;
    snprintf(path, sizeof path, "%s/%s/golden.safetensors", world_folder, name);
    UNIT_OK(cmoe_checkpoint_open(&c, w->env.ctx, path, &err));
    const int64_t i = cmoe_checkpoint_find(c, tensor);
    if (i >= 0) {
        UNIT_OK(cmoe_checkpoint_tensor(c, i, &t, &err));
        n = t.dims[0];
        assert_true(n <= room && n <= WORLD_TOKENS && t.bytes == n * 8);
        memcpy(data, t.data, (size_t)t.bytes);
        for (int64_t k = 0; k < n; k++)
            ids[k] = (int32_t)data[k];
    }
    cmoe_checkpoint_free(c);
    return n;
}

void world_prompt(int32_t *ids, int64_t n, uint64_t seed, int64_t vocab)
{
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((seed >> 33) % (uint64_t)vocab);
    }
}

/* ---- answers ------------------------------------------------------------------------------------ */

int64_t world_submit(world *w, const cmoe_request *r, answer *a)
{
    memset(a, 0, sizeof *a);
    assert_true(r->logprobs <= WORLD_LOGPROBS);
    UNIT_OK(cmoe_engine_submit(w->engine, r, &a->id, &err));
    a->logprobs = r->logprobs;
    a->position = r->prompt_count;
    return a->id;
}

static void take(answer *a, const cmoe_event *v)
{
    a->events++;
    assert_int_equal(a->finish, CMOE_FINISH_NONE);
    if (v->kind == CMOE_EVENT_TOKENS) {
        assert_true(v->count > 0 && a->count + v->count <= WORLD_TOKENS);
        assert_int_equal(v->position, a->position);
        memcpy(a->ids + a->count, v->ids, (size_t)v->count * sizeof *v->ids);
        if (a->logprobs > 0)
            memcpy(a->best + a->count * a->logprobs, v->logprobs,
                   (size_t)(v->count * a->logprobs) * sizeof *v->logprobs);
        else
            assert_null(v->logprobs);
        a->count += v->count;
        a->position += v->count;
    }
    if (v->bytes > 0) {
        assert_true(v->kind != CMOE_EVENT_CANVAS && a->bytes + v->bytes < WORLD_TEXT);
        memcpy(a->text + a->bytes, v->text, (size_t)v->bytes);
        a->bytes += v->bytes;
    }
    if (v->kind != CMOE_EVENT_FINISH) return;
    a->finish = v->finish;
    a->prompt_tokens = v->prompt_tokens;
    a->cached_tokens = v->cached_tokens;
    a->new_tokens = v->new_tokens;
    a->forwards = v->forwards;
    assert_int_equal(a->new_tokens, a->count);
    assert_true(a->finish != CMOE_FINISH_NONE && cmoe_finish_name(a->finish));
}

void world_poll(world *w, answer *all, int64_t n)
{
    cmoe_event v = {.size = sizeof v};
    while (cmoe_engine_poll(w->engine, &v)) {
        int64_t i = 0;
        while (i < n && all[i].id != v.request)
            i++;
        if (i == n) fail_msg("event of request %lld, which nobody made", (long long)v.request);
        take(&all[i], &v);
    }
}

bool world_step(world *w, answer *all, int64_t n)
{
    int32_t busy = 0;
    UNIT_OK(cmoe_engine_step(w->engine, &busy, &err));
    world_poll(w, all, n);
    return busy != 0;
}

void world_run(world *w, answer *all, int64_t n)
{
    while (world_step(w, all, n)) {
    }
    for (int64_t i = 0; i < n; i++)
        assert_true(all[i].id == 0 || all[i].finish != CMOE_FINISH_NONE);
}

void world_answer(world *w, const cmoe_request *r, answer *a)
{
    world_submit(w, r, a);
    world_run(w, a, 1);
}

void world_same(const answer *a, const answer *b, const char *what)
{
    if (a->count != b->count || memcmp(a->ids, b->ids, (size_t)a->count * sizeof *a->ids) != 0)
        fail_msg("%s: other tokens (%lld, %lld)", what, (long long)a->count, (long long)b->count);
    if (a->logprobs != b->logprobs ||
        memcmp(a->best, b->best, (size_t)(a->count * a->logprobs) * sizeof *a->best) != 0)
        fail_msg("%s: other log-probabilities", what);
    if (a->bytes != b->bytes || memcmp(a->text, b->text, (size_t)a->bytes) != 0)
        fail_msg("%s: other text", what);
    if (a->finish != b->finish || a->forwards != b->forwards)
        fail_msg("%s: finish %d and %d, forwards %lld and %lld", what, (int)a->finish,
                 (int)b->finish, (long long)a->forwards, (long long)b->forwards);
}
