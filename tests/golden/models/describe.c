/* SPDX-License-Identifier: MIT
 *
 * describe.c - what a model says of itself, against sums over its files; what a load tells of its
 * progress; and the arena of a call that stands at the end of the context.
 *
 *     golden_describe FOLDER
 */
#include <string.h>

#include "../../unit/files.h"
#include "cmoe/engine.h"
#include "cmoe/model.h"
#include "cmoe/weights.h"

enum { PATH = 4096 };

static const char *folder;
static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};

/* Without scales, which are values of the file but not of the model; every MoE layer as wide as the
 * others. */
static const char *const cases[] = {"qwen3_moe", "mixtral", "qwen2_moe", "gpt_oss",
                                    "olmoe",     "llama",   "qwen3",     "granitemoe"};
enum { CASES = sizeof cases / sizeof cases[0] };

static const char *path_of(const char *name)
{
    static char path[PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- numbers --------------------------------------------------------------------------------- */

typedef struct values {
    int64_t all, routed, embedding;
} values;

static values count(cmoe_ctx *ctx, const char *name)
{
    values v = {0};
    cmoe_checkpoint *c = NULL;
    UNIT_OK(cmoe_checkpoint_open(&c, ctx, path_of(name), &err));
    for (int64_t i = 0; i < cmoe_checkpoint_count(c); i++) {
        cmoe_tensor t = {.size = sizeof t};
        int64_t n = 1;
        UNIT_OK(cmoe_checkpoint_tensor(c, i, &t, &err));
        for (int32_t d = 0; d < t.rank; d++)
            n *= t.dims[d];
        if (strstr(t.name, "inv_freq")) continue; /* of older exports */
        v.all += n;
        if (strstr(t.name, ".experts.") || strstr(t.name, ".input_linear.") ||
            strstr(t.name, ".output_linear."))
            v.routed += n;
        if (strstr(t.name, "embed_tokens")) v.embedding += n;
    }
    cmoe_checkpoint_free(c);
    return v;
}

static void check_values(const cmoe_model_info *info, const values *v, const char *name)
{
    const int64_t experts = info->experts ? info->experts : 1;
    int64_t active = v->all - v->routed + v->routed / experts * info->topk;
    if (!info->tied) active -= v->embedding - v->embedding / info->vocab;
    if (info->parameters != v->all || info->active_parameters != active)
        fail_msg("%s: %lld parameters, %lld active; the files hold %lld and %lld", name,
                 (long long)info->parameters, (long long)info->active_parameters, (long long)v->all,
                 (long long)active);
}

/* A token reads all but the experts that it does not choose and the embeddings of other tokens. */
static void check_bytes(const cmoe_model *m, const cmoe_model_info *info)
{
    const cmoe_model_bytes *b = &info->bytes;
    const int64_t experts = info->experts ? info->experts : 1;
    assert_int_equal(b->per_token, b->attention + b->router + b->shared + b->dense + b->small +
                                       b->head + b->experts / experts * info->topk +
                                       b->embedding / info->vocab);
    cmoe_cache *cache = NULL;
    cmoe_cache_options o;
    cmoe_cache_options_default(&o, sizeof o);
    o.pages = 2;
    UNIT_OK(cmoe_cache_create(&cache, m, &o, &err));
    assert_int_equal(cmoe_cache_page_bytes(cache), CMOE_KV_PAGE * b->cache_per_token);
    cmoe_cache_free(cache);
    const int64_t position = info->layers * info->kv_heads * info->head_dim * 2;
    assert_int_equal(b->cache_per_token, position * (info->format == CMOE_F32 ? 4 : 2));
}

static void numbers(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    for (int i = 0; i < CASES; i++) {
        const values v = count(e.ctx, cases[i]);
        for (int f = 0; f < 3; f++) {
            cmoe_model *m = NULL;
            cmoe_model_info info = {.size = sizeof info};
            cmoe_model_options o;
            cmoe_model_options_default(&o, sizeof o);
            o.format = formats[f];
            UNIT_OK(cmoe_model_load(&m, e.ctx, path_of(cases[i]), &o, &err));
            UNIT_OK(cmoe_model_describe(m, &info, &err));
            check_values(&info, &v, cases[i]);
            check_bytes(m, &info);
            cmoe_model_free(m);
        }
    }
    unit_close(&e);
}

/* A size that was never set is not believed. */
static void sizes_unset(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    cmoe_model *m = NULL;
    cmoe_model_info info = {.size = 65537};
    cmoe_model_layer layer = {.size = 65537};
    UNIT_OK(cmoe_model_load(&m, e.ctx, path_of("llama"), NULL, &err));
    UNIT_FAILS(cmoe_model_describe(m, &info, &err), CMOE_ERR_ARG, "info.size = 65537");
    UNIT_FAILS(cmoe_model_layer_describe(m, 0, &layer, &err), CMOE_ERR_ARG, "out.size = 65537");
    UNIT_FAILS(cmoe_model_plan(e.ctx, path_of("llama"), NULL, &info, &err), CMOE_ERR_ARG,
               "info.size = 65537, want sizeof(cmoe_model_info)");
    UNIT_FAILS(cmoe_model_describe(m, NULL, &err), CMOE_ERR_ARG, "info is NULL");
    cmoe_model_free(m);
    unit_close(&e);
}

/* ---- structs that a call fills --------------------------------------------------------------- */

#define EMPTY(type)                                     \
    do {                                                \
        type made, want;                                \
        memset(&made, 0x5a, sizeof made);               \
        memset(&want, 0, sizeof want);                  \
        want.size = sizeof want;                        \
        type##_default(&made, sizeof made);             \
        assert_memory_equal(&made, &want, sizeof want); \
    } while (0)

static void empty_structs(void **state)
{
    (void)state;
    EMPTY(cmoe_tensor);
    EMPTY(cmoe_model_info);
    EMPTY(cmoe_model_layer);
    EMPTY(cmoe_event);
    EMPTY(cmoe_engine_info);
}

/* ---- progress -------------------------------------------------------------------------------- */

typedef struct told {
    int64_t calls, last, total, widest;
    int32_t answer;
} told;

static int32_t listen(void *user, int64_t done, int64_t total)
{
    told *t = user;
    assert_true(done >= t->last && done <= total);
    assert_true(t->calls == 0 || total == t->total);
    if (done - t->last > t->widest) t->widest = done - t->last;
    t->last = done;
    t->total = total;
    t->calls++;
    return t->answer;
}

static void progress(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    static const int32_t answers[] = {0, 7};
    for (int i = 0; i < 2; i++) {
        told t = {.answer = answers[i]};
        cmoe_model *m = NULL;
        cmoe_model_options o;
        cmoe_model_options_default(&o, sizeof o);
        o.progress = listen;
        o.progress_user = &t;
        if (t.answer) {
            UNIT_FAILS(cmoe_model_load(&m, e.ctx, path_of("qwen3_moe"), &o, &err),
                       CMOE_ERR_CANCELLED, "cancelled");
            assert_int_equal(t.calls, 1);
            continue;
        }
        UNIT_OK(cmoe_model_load(&m, e.ctx, path_of("qwen3_moe"), &o, &err));
        /* In small steps, and to the end. */
        assert_true(t.calls >= 20 && t.calls <= 600);
        assert_true(t.widest <= t.total / 10);
        assert_int_equal(t.last, t.total);
        cmoe_model_free(m);
    }
    unit_close(&e);
}

/* ---- the end of the context ------------------------------------------------------------------ */

enum { TOKENS = 3, CONTEXT = 1 << 17, COLUMNS = CONTEXT / CMOE_KV_PAGE, VOCAB = 256 };

/* The golden model qwen3, saying that it has a long context. */
static void put_model(const files_folder *to)
{
    files_folder from = {{0}};
    snprintf(from.path, sizeof from.path, "%.200s", path_of("qwen3"));
    int64_t n;
    char *weights = files_get(&from, "model.safetensors", &n);
    files_put(to, "model.safetensors", weights, n);
    char *config = files_get(&from, "config.json", &n), text[4096];
    config[n] = '\0';
    const char *key = "\"max_position_embeddings\": 512", *at = strstr(config, key);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s\"max_position_embeddings\": %d%s", (int)(at - config), config,
             CONTEXT, at + strlen(key));
    files_text(to, "config.json", text);
    free(weights);
    free(config);
}

/* A few tokens behind many parts of keys need more scratch than the first ones of a prompt.  One page
 * serves as all that are only read. */
static void at_the_end(void **state)
{
    (void)state;
    static int32_t pages[COLUMNS + 1], ids[TOKENS] = {1, 2, 3};
    unit_env e = unit_open(1);
    const files_folder made = files_open("golden_describe");
    cmoe_model *m = NULL;
    cmoe_cache *cache = NULL;
    cmoe_cache_options o;
    cmoe_cache_options_default(&o, sizeof o);
    o.pages = 2;
    put_model(&made);
    UNIT_OK(cmoe_model_load(&m, e.ctx, made.path, NULL, &err));
    UNIT_OK(cmoe_cache_create(&cache, m, &o, &err));
    pages[COLUMNS - 1] = 1;
    int64_t start = 0, bytes = 0;
    const int64_t first[2] = {0, TOKENS}, row = 0;
    float logits[VOCAB];
    cmoe_model_call c;
    cmoe_model_call_default(&c, sizeof c);
    const cmoe_batch batch = {sizeof batch, 1, first, &start, pages, COLUMNS + 1};
    c.batch = &batch;
    c.ids = cmoe_view_1d(ids, CMOE_I32, TOKENS);
    c.cache = cache;
    c.rows = cmoe_view_1d(&row, CMOE_I64, 1);
    const cmoe_view_mut out = cmoe_view_mut_2d(logits, CMOE_F32, 1, VOCAB);
    UNIT_OK(cmoe_model_forward_bytes(m, TOKENS, 1, 1, &bytes, NULL, &err));
    cmoe_arena arena = unit_arena(bytes);
    UNIT_OK(cmoe_model_forward(e.stream, m, &c, out, &arena, &err));
    start = CONTEXT - TOKENS;
    UNIT_OK(cmoe_model_forward(e.stream, m, &c, out, &arena, &err));
    start++; /* the last token is one too many */
    UNIT_FAILS(cmoe_model_forward(e.stream, m, &c, out, &arena, &err), CMOE_ERR_RANGE,
               "has 3 tokens from position 131070 on, want at most 131072 positions (context)");
    free(arena.base);
    cmoe_cache_free(cache);
    cmoe_model_free(m);
    files_close(&made);
    unit_close(&e);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers),       cmocka_unit_test(sizes_unset), cmocka_unit_test(progress),
        cmocka_unit_test(empty_structs), cmocka_unit_test(at_the_end),
    };
    if (argc != 2) {
        printf("usage: golden_describe FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("golden_describe", tests);
}
