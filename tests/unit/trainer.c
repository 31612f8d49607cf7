/* SPDX-License-Identifier: MIT
 *
 * trainer.c - what a trainer is given and does not own, and what must not depend on memory.
 */
#include "unit.h"

#include "cmoe/train.h"
#include "files.h"

enum { VOCAB = 64, TOKENS = 600 };

static const char config[] =
    "{\"model_type\": \"sdar_moe\", \"vocab_size\": 64, \"hidden_size\": 32, "
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"head_dim\": 8, \"hidden_act\": \"silu\", \"intermediate_size\": 24, "
    "\"moe_intermediate_size\": 16, \"num_experts\": 4, \"num_experts_per_tok\": 2, "
    "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": false, \"norm_topk_prob\": true, \"decoder_sparse_step\": 1, "
    "\"mlp_only_layers\": [], \"attention_bias\": false, \"block_size\": 4, "
    "\"mask_token_id\": 63}";

static unit_env env;
static files_folder folder;

static cmoe_train_options options(void)
{
    cmoe_train_options o;
    cmoe_train_options_default(&o, sizeof o);
    o.steps = 10;
    o.units = 4;
    o.length = 16;
    return o;
}

static cmoe_trainer *make(const cmoe_train_options *o)
{
    cmoe_trainer *t = NULL;
    UNIT_OK(cmoe_trainer_create(&t, env.ctx, files_in(&folder, "config.json"), o, &err));
    return t;
}

static cmoe_dataset *tokens(int64_t n)
{
    static int32_t ids[TOKENS];
    cmoe_dataset *d = NULL;
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i * i % 61);
    UNIT_OK(cmoe_dataset_make(&d, env.ctx, cmoe_view_1d(ids, CMOE_I32, n), cmoe_view_none(),
                              cmoe_view_none(), &err));
    return d;
}

/* A dataset may be freed before the trainer, and another lie where it lay. */
static void dataset_goes(void **state)
{
    const cmoe_train_options o = options();
    const int64_t lengths[] = {TOKENS, 18, TOKENS / 2};
    cmoe_trainer *t = make(&o);
    (void)state;
    for (int i = 0; i < 3; i++) {
        cmoe_dataset *d = tokens(lengths[i]);
        for (int k = 0; k < 3; k++)
            UNIT_OK(cmoe_trainer_step(t, d, NULL, &err));
        cmoe_dataset_free(d);
    }
    cmoe_trainer_free(t);
}

/* How many units are in memory together decides nothing: neither weights nor noise of an evaluation. */
static void any_pass(void **state)
{
    double first = 0;
    cmoe_train_options o = options();
    cmoe_dataset *d = tokens(TOKENS);
    (void)state;
    o.objective = CMOE_OBJECTIVE_DIFFUSION;
    for (o.pass = 1; o.pass <= o.units; o.pass *= 2) {
        int64_t learned = 0;
        double loss = 0;
        cmoe_trainer *t = make(&o);
        UNIT_OK(cmoe_trainer_step(t, d, NULL, &err));
        UNIT_OK(cmoe_trainer_evaluate(t, d, 0, &loss, &learned, &err));
        if (o.pass == 1) first = loss;
        /* Shares of all that is learned are rounded to float32, the sums of a pass are not. */
        assert_true(loss > first * (1 - 1e-6) && loss < first * (1 + 1e-6));
        cmoe_trainer_free(t);
    }
    cmoe_dataset_free(d);
}

static void refusals(void **state)
{
    const int32_t ids[3] = {1, 2, 3};
    const int64_t none[1] = {0};
    cmoe_dataset *d = NULL;
    cmoe_trainer *t = NULL;
    cmoe_train_options o = options();
    (void)state;
    o.schedule = CMOE_SCHEDULE_WSD;
    o.warmup = 4;
    o.cooldown = 7;
    UNIT_FAILS(cmoe_trainer_create(&t, env.ctx, files_in(&folder, "config.json"), &o, &err),
               CMOE_ERR_RANGE, "cooldown = 7, want 0 to 6 (steps less warmup)");
    UNIT_FAILS(cmoe_dataset_make(&d, env.ctx, cmoe_view_1d(ids, CMOE_I32, 3), cmoe_view_none(),
                                 cmoe_view_1d(none, CMOE_I64, 0), &err),
               CMOE_ERR_SHAPE, "documents is empty, but there are 3 tokens");
    o.steps = INT64_MAX;
    o.warmup = -1;
    UNIT_FAILS(cmoe_trainer_create(&t, env.ctx, files_in(&folder, "config.json"), &o, &err),
               CMOE_ERR_RANGE, "steps = 9223372036854775807, want 1 to 2147483647");
}

/* Trainings that differ only in what follows a long list of targets in the key. */
static void long_targets(void **state)
{
    char list[4096] = "q_proj";
    cmoe_trainer *base, *t[2] = {0};
    cmoe_train_options o = options();
    int64_t step;
    (void)state;
    base = make(&o);
    UNIT_OK(cmoe_trainer_export(base, files_in(&folder, "model"), CMOE_F32, &err));
    cmoe_trainer_free(base);
    for (int i = 0; i < 200; i++)
        strcat(list, ",q_proj,v_proj");
    o.what = CMOE_TRAIN_LORA;
    o.targets = list;
    for (int i = 0; i < 2; i++, o.alpha *= 2)
        UNIT_OK(cmoe_trainer_create(&t[i], env.ctx, files_in(&folder, "model"), &o, &err));
    UNIT_OK(cmoe_trainer_save(t[0], files_in(&folder, "checkpoints"), 1, NULL, &err));
    UNIT_OK(cmoe_trainer_resume(t[0], files_in(&folder, "checkpoints"), &step, &err));
    UNIT_FAILS(cmoe_trainer_resume(t[1], files_in(&folder, "checkpoints"), &step, &err),
               CMOE_ERR_FORMAT, "other options");
    for (int i = 0; i < 2; i++)
        cmoe_trainer_free(t[i]);
}

static int open_all(void **state)
{
    (void)state;
    env = unit_open(2);
    folder = files_open("unit_trainer");
    files_put(&folder, "config.json", config, (int64_t)sizeof config - 1);
    return 0;
}

static int close_all(void **state)
{
    static const char *const made[] = {"model/config.json",
                                       "model/model.safetensors",
                                       "model",
                                       "checkpoints/step-00000000/values.safetensors",
                                       "checkpoints/step-00000000/state.safetensors",
                                       "checkpoints/step-00000000/manifest.json",
                                       "checkpoints/step-00000000",
                                       "checkpoints"};
    (void)state;
    for (size_t i = 0; i < sizeof made / sizeof made[0]; i++)
        (void)remove(files_in(&folder, made[i]));
    files_close(&folder);
    unit_close(&env);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dataset_goes),
        cmocka_unit_test(any_pass),
        cmocka_unit_test(refusals),
        cmocka_unit_test(long_targets),
    };
    return unit_report("unit_trainer",
                       cmocka_run_group_tests_name("unit_trainer", tests, open_all, close_all),
                       (int)(sizeof tests / sizeof tests[0]));
}
