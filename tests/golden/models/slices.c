/* SPDX-License-Identifier: MIT
 *
 * slices.c - a model loaded in parts: every rank's share of the experts or of the outputs of matrices
 * loads, all shares together are the whole, and a share alone refuses to compute.
 *
 *     golden_slices FOLDER
 */
#include <dirent.h>
#include <string.h>

#include "../../unit/unit.h"
#include "cmoe/model.h"

enum { RANKS = 3, PATH = 4096 };

static const char *folder;
static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};

/* One of each kind: experts only, dense first layers and shared experts, biases, f8, mxfp4, dense. */
static const char *const cases[] = {"mixtral",           "glm4_moe",      "gpt_oss",
                                    "qwen3_moe_fp8",     "gpt_oss_mxfp4", "qwen2_moe",
                                    "ernie4_5_moe_bias", "llama"};
enum { CASES = sizeof cases / sizeof cases[0] };

static cmoe_model *load(cmoe_ctx *ctx, const char *name, const cmoe_model_options *o,
                        cmoe_model_info *info)
{
    char path[PATH];
    cmoe_error err = {0};
    cmoe_model *m = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    *info = (cmoe_model_info){.size = sizeof *info};
    if (cmoe_model_load(&m, ctx, path, o, &err) != CMOE_OK ||
        cmoe_model_describe(m, info, &err) != CMOE_OK)
        fail_msg("%s: %s", name, err.text);
    return m;
}

static void options(cmoe_model_options *o, int32_t format)
{
    cmoe_model_options_default(o, sizeof *o);
    o->format = format;
}

/* What a plan says is what is loaded. */
static void check_plan(cmoe_ctx *ctx, const char *name, const cmoe_model_options *o,
                       const cmoe_model_info *info)
{
    char path[PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    cmoe_model_info plan = {.size = sizeof plan};
    UNIT_OK(cmoe_model_plan(ctx, path, o, &plan, &err));
    assert_memory_equal(&plan.bytes, &info->bytes, sizeof plan.bytes);
    assert_int_equal(plan.parameters, info->parameters);
}

static void check_sum(const cmoe_model_info *info)
{
    const cmoe_model_bytes *b = &info->bytes;
    assert_int_equal(b->total, b->experts + b->shared + b->dense + b->attention + b->router +
                                   b->embedding + b->head + b->small);
}

static void refuses(unit_env *e, const cmoe_model *m, const cmoe_model_info *info)
{
    cmoe_cache *cache = NULL;
    cmoe_cache_options co;
    cmoe_cache_options_default(&co, sizeof co);
    co.pages = 1;
    cmoe_error err = {0};
    if (cmoe_cache_create(&cache, m, &co, &err) != CMOE_OK) {
        assert_int_equal(err.status, CMOE_ERR_UNSUPPORTED); /* early is as good */
        return;
    }
    const int64_t first[] = {0, 1}, start[] = {0};
    const int32_t page = 0, id = 1;
    cmoe_model_call c;
    cmoe_model_call_default(&c, sizeof c);
    const cmoe_batch batch = {sizeof batch, 1, first, start, &page, 1};
    c.batch = &batch;
    c.ids = cmoe_view_1d(&id, CMOE_I32, 1);
    c.cache = cache;
    float *logits = malloc((size_t)info->vocab * 4);
    cmoe_arena arena = unit_arena(1 << 24);
    const cmoe_status status = cmoe_model_forward(
        e->stream, m, &c, cmoe_view_mut_2d(logits, CMOE_F32, 1, info->vocab), &arena, &err);
    if (status != CMOE_ERR_UNSUPPORTED)
        fail_msg("a share computes: %s \"%s\"", cmoe_status_name(status), err.text);
    assert_true(strlen(err.text) > 20); /* says why */
    free(arena.base);
    free(logits);
    cmoe_cache_free(cache);
}

/* The experts of all ranks are the experts; everything else every rank has whole. */
static void expert_shares(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    for (int c = 0; c < CASES; c++) {
        for (int f = 0; f < 3; f++) {
            cmoe_model_info whole, part;
            cmoe_model_options o;
            options(&o, formats[f]);
            cmoe_model_free(load(e.ctx, cases[c], &o, &whole));
            check_sum(&whole);
            check_plan(e.ctx, cases[c], &o, &whole);
            for (int64_t ranks = 2; whole.experts > 0 && ranks <= RANKS; ranks++) {
                int64_t bytes = 0;
                for (int64_t r = 0; r < ranks; r++) {
                    o.first_expert = whole.experts * r / ranks;
                    o.experts = whole.experts * (r + 1) / ranks - o.first_expert;
                    cmoe_model *m = load(e.ctx, cases[c], &o, &part);
                    check_sum(&part);
                    check_plan(e.ctx, cases[c], &o, &part);
                    refuses(&e, m, &part);
                    bytes += part.bytes.experts;
                    assert_int_equal(part.bytes.total - part.bytes.experts,
                                     whole.bytes.total - whole.bytes.experts);
                    cmoe_model_free(m);
                }
                assert_int_equal(bytes, whole.bytes.experts);
            }
        }
    }
    unit_close(&e);
}

/* Packed outputs come in panels of at most 32, so every matrix of every rank may be larger by part of
 * one; never smaller.  No inter of these models exceeds hidden. */
static int64_t most_padding(const cmoe_model_info *whole, int64_t ranks)
{
    return ranks * whole->moe_layers * whole->experts * 2 * 32 * whole->hidden * 4;
}

static void tensor_shares(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    for (int c = 0; c < CASES; c++) {
        cmoe_model_info whole, part;
        cmoe_model_options o;
        options(&o, CMOE_F32);
        cmoe_model_free(load(e.ctx, cases[c], &o, &whole));
        for (int32_t ranks = 1; ranks <= RANKS; ranks++) {
            int64_t experts = 0, total = 0, embedding = 0;
            for (o.tensor_rank = 0; o.tensor_rank < ranks; o.tensor_rank++) {
                o.tensor_ranks = ranks;
                cmoe_model *m = load(e.ctx, cases[c], &o, &part);
                check_sum(&part);
                check_plan(e.ctx, cases[c], &o, &part);
                if (ranks > 1) {
                    refuses(&e, m, &part);
                    assert_true(part.bytes.total < whole.bytes.total);
                }
                experts += part.bytes.experts;
                total += part.bytes.total;
                embedding += part.bytes.embedding;
                cmoe_model_free(m);
            }
            if (ranks == 1) assert_int_equal(total, whole.bytes.total);
            assert_true(experts >= whole.bytes.experts);
            assert_true(experts <= whole.bytes.experts + most_padding(&whole, ranks));
            assert_true(total >= whole.bytes.total);
            assert_int_equal(embedding, whole.bytes.embedding);
        }
    }
    unit_close(&e);
}

static void bad_shares(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    char path[PATH];
    snprintf(path, sizeof path, "%s/mixtral", folder);
    static const struct {
        int64_t first, experts;
        int32_t rank, ranks;
    } bad[] = {{8, 1, 0, 0},
               {-1, 2, 0, 0},
               {4, 5, 0, 0},
               {0, -1, 0, 0},
               {0, 9, 0, 0},
               {0, 0, 1, 1},
               {0, 0, -1, 2},
               {0, 0, 2, 2},
               {0, 0, 0, -1},
               {0, 0, 1, 0},
               {INT64_MAX, INT64_MAX, 0, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cmoe_model_options o;
        options(&o, CMOE_F32);
        o.first_expert = bad[i].first;
        o.experts = bad[i].experts;
        o.tensor_rank = bad[i].rank;
        o.tensor_ranks = bad[i].ranks;
        cmoe_model *m = NULL;
        cmoe_error err = {0};
        const cmoe_status status = cmoe_model_load(&m, e.ctx, path, &o, &err);
        if (status == CMOE_OK || !strstr(err.text, "want"))
            fail_msg("share %d: %s \"%s\"", (int)i, cmoe_status_name(status), err.text);
        assert_null(m);
    }
    unit_close(&e);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expert_shares),
        cmocka_unit_test(tensor_shares),
        cmocka_unit_test(bad_shares),
    };
    if (argc != 2) {
        printf("usage: golden_slices FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("golden_slices", tests);
}
