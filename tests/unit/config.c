/* SPDX-License-Identifier: MIT
 *
 * config.c - config.json of every architecture in both spellings, and every text about a bad one.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* mkdtemp, strdup */
#endif
#include "models/config.h"

#include <sys/stat.h>
#include <unistd.h>

#include "unit.h"

static unit_env env;

/* ---- a small config ---------------------------------------------------------------------------- */

/* JSON with ' for ". */
static json_t *json(const char *text)
{
    char *copy = strdup(text);
    for (char *p = copy; *p; p++)
        if (*p == '\'') *p = '"';
    json_t *value = json_loads(copy, JSON_REJECT_DUPLICATES, NULL);
    if (!value) fail_msg("not JSON: %s", text);
    free(copy);
    return value;
}

static const char *const base =
    "{'vocab_size': 256, 'hidden_size': 64, 'num_hidden_layers': 4, 'num_attention_heads': 4,"
    "'num_key_value_heads': 2, 'max_position_embeddings': 512, 'intermediate_size': 96,"
    "'hidden_act': 'silu'}";

/* The base with other keys put over it; null stands for a key that is not there. */
static cmoe_status parse(cmoei_decoder *d, const char *type, const char *over, cmoe_error *err)
{
    json_t *all = json(base), *more = json(over);
    json_object_set_new(all, "model_type", json_string(type));
    json_object_update(all, more);
    char *text = json_dumps(all, 0);
    const cmoe_status status =
        cmoei_decoder_parse(d, env.ctx, text, (int64_t)strlen(text), "config.json", err);
    free(text);
    json_decref(all);
    json_decref(more);
    return status;
}

static cmoei_decoder read_ok(const char *type, const char *over)
{
    cmoei_decoder d;
    UNIT_OK(parse(&d, type, over, &err));
    return d;
}

static void done(cmoei_decoder *d)
{
    cmoei_decoder_close(d, env.ctx);
    assert_null(d->layer);
}

static void fails(const char *type, const char *over, cmoe_status status, const char *text)
{
    cmoei_decoder d;
    UNIT_FAILS(parse(&d, type, over, &err), status, text);
    assert_null(d.layer);
}

static void bad(const char *over, const char *text)
{
    fails("llama", over, CMOE_ERR_FORMAT, text);
}

#define EXPERTS "'num_experts': 8, 'num_experts_per_tok': 2"
#define MOE     "{" EXPERTS ", 'moe_intermediate_size': 24"

static void same(const cmoei_decoder *a, const cmoei_decoder *b)
{
    cmoei_decoder x = *a, y = *b;
    assert_memory_equal(a->layer, b->layer, (size_t)a->layers * sizeof *a->layer);
    assert_int_equal(!a->factors, !b->factors);
    x.layer = y.layer = NULL;
    x.factors = y.factors = NULL;
    x.rope.short_factor = x.rope.long_factor = y.rope.short_factor = y.rope.long_factor = NULL;
    assert_memory_equal(&x, &y, sizeof x);
}

/* ---- what the files of golden cases say -------------------------------------------------------- */

/* Seeds of the fuzzer, found beside this file. */
static cmoe_status parse_seed(cmoei_decoder *d, const char *name, cmoe_error *err)
{
    static char path[4096], text[1 << 16];
    const char *end = strstr(__FILE__, "unit/config.c");
    assert_non_null(end);
    snprintf(path, sizeof path, "%.*sfuzz/corpus/config/%s.json", (int)(end - __FILE__), __FILE__,
             name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is not there", path);
    const size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    return cmoei_decoder_parse(d, env.ctx, text, (int64_t)n, name, err);
}

/* transformers 5 spells and nests many keys anew when it saves: the same decoder. */
static void both_spellings(void **state)
{
    static const char *const cases[] = {
        "mixtral",      "qwen2_moe",      "qwen3_moe", "olmoe",        "flex_olmo",
        "glm4_moe",     "dots1",          "phimoe",    "granitemoe",   "minimax_m2",
        "ernie4_5_moe", "hunyuan_v1_moe", "gpt_oss",   "gpt_oss_mxfp4"};
    (void)state;
    for (int64_t i = 0; i < CMOEI_COUNT(cases); i++) {
        char v5[64];
        cmoei_decoder a, b;
        snprintf(v5, sizeof v5, "%s_v5", cases[i]);
        UNIT_OK(parse_seed(&a, cases[i], &err));
        UNIT_OK(parse_seed(&b, v5, &err));
        same(&a, &b);
        done(&a);
        done(&b);
    }
}

static void no_architecture_yet(void **state)
{
    static const char *const cases[] = {"deepseek_v3", "jamba", "qwen3_5_moe", "llada2_moe"};
    (void)state;
    for (int64_t i = 0; i < CMOEI_COUNT(cases); i++) {
        cmoei_decoder d;
        UNIT_FAILS(parse_seed(&d, cases[i], &err), CMOE_ERR_UNSUPPORTED,
                   "want one of: qwen3_moe qwen2_moe");
    }
}

/* ---- what they have in common ------------------------------------------------------------------ */

static void common_keys(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("llama", "{}");
    assert_string_equal(d.arch->type, "llama");
    assert_int_equal(d.layers, 4);
    assert_int_equal(d.hidden, 64);
    assert_int_equal(d.vocab, 256);
    assert_int_equal(d.heads, 4);
    assert_int_equal(d.kv_heads, 2);
    assert_int_equal(d.head_dim, 16);
    assert_int_equal(d.context, 512);
    assert_int_equal(d.mask, CMOE_MASK_CAUSAL);
    assert_int_equal(d.mask_token, -1);
    assert_int_equal(d.f8_block[0], 128);
    assert_int_equal(d.rope.dim, 16);
    assert_float_equal(d.rope.theta, 10000, 0);
    assert_float_equal(d.eps, 1e-6f, 0);
    assert_float_equal(d.embedding_scale * d.residual_scale * d.logits_scale, 1, 0);
    assert_false(d.tied || d.qkv_bias || d.o_bias || d.mlp_bias || d.layer_norm);
    for (int64_t i = 0; i < 4; i++) {
        assert_int_equal(d.layer[i].experts, 0);
        assert_int_equal(d.layer[i].inter, 96);
        assert_int_equal(d.layer[i].window, 0);
    }
    done(&d);
}

static void options_of_the_skeleton(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("llama", "{'num_key_value_heads': null, 'head_dim': 24,"
                                       "'attention_bias': true, 'mlp_bias': true,"
                                       "'tie_word_embeddings': true, 'rms_norm_eps': 0.5}");
    assert_int_equal(d.kv_heads, 4);
    assert_int_equal(d.head_dim, 24);
    assert_true(d.tied && d.qkv_bias && d.o_bias && d.mlp_bias);
    assert_float_equal(d.eps, 0.5, 0);
    done(&d);
    d = read_ok("llama", "{'quantization_config': {'quant_method': 'fp8',"
                         "'fmt': 'float8_e4m3fn',"
                         "'weight_block_size': [64, 32]}}");
    assert_int_equal(d.f8_block[0], 64);
    assert_int_equal(d.f8_block[1], 32);
    done(&d);
}

static void wrapper(void **state)
{
    (void)state;
    cmoei_decoder d =
        read_ok("a_wrapper", "{'hidden_size': 1, 'tie_word_embeddings': true,"
                             "'quantization_config': {'quant_method': 'fp8',"
                             "'weight_block_size': [32, 32]}, 'text_config':"
                             "{'model_type': 'llama', 'vocab_size': 99, 'hidden_size': 32,"
                             "'num_hidden_layers': 2, 'num_attention_heads': 2,"
                             "'max_position_embeddings': 64, 'intermediate_size': 40}}");
    assert_int_equal(d.hidden, 32);
    assert_int_equal(d.vocab, 99);
    assert_true(d.tied);
    assert_int_equal(d.f8_block[0], 32);
    done(&d);
    bad("{'text_config': 3}", "config.json: text_config = 3, want an object");
}

/* ---- architectures ----------------------------------------------------------------------------- */

static void qwen(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("qwen3_moe", MOE ", 'mlp_only_layers': [0, 77],"
                                               "'decoder_sparse_step': 2}");
    const int64_t experts[] = {0, 8, 0, 8}, inter[] = {96, 24, 96, 24};
    for (int64_t i = 0; i < 4; i++) {
        assert_int_equal(d.layer[i].experts, experts[i]);
        assert_int_equal(d.layer[i].inter, inter[i]);
        assert_int_equal(d.layer[i].topk, experts[i] ? 2 : 0);
    }
    assert_int_equal(d.qk_norm, CMOEI_QK_HEAD);
    assert_int_equal(d.route.renormalize, CMOE_RENORM_NONE); /* the default of the class */
    done(&d);
    d = read_ok("qwen3_moe", MOE ", 'norm_topk_prob': true, 'sliding_window': 9,"
                                 "'use_sliding_window': true, 'decoder_sparse_step': 5}");
    assert_int_equal(d.route.renormalize, CMOE_RENORM_SUM);
    assert_int_equal(d.layer[3].window, 9);
    assert_int_equal(d.layer[3].experts, 0); /* the fifth layer would be the first */
    done(&d);
    fails("qwen3_moe", MOE ", 'decoder_sparse_step': 0}", CMOE_ERR_FORMAT,
          "decoder_sparse_step = 0, want an integer from 1");
    d = read_ok("qwen2_moe", MOE ", 'shared_expert_intermediate_size': 40, 'sliding_window': 9}");
    assert_true(d.qkv_bias && !d.o_bias && d.shared_gate);
    assert_int_equal(d.layer[1].shared_inter, 40);
    assert_int_equal(d.layer[0].window, 0); /* not switched on */
    done(&d);
}

static void windows(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("qwen2_moe", MOE ", 'shared_expert_intermediate_size': 40,"
                                               "'sliding_window': 9, 'max_window_layers': 2,"
                                               "'use_sliding_window': true}");
    assert_int_equal(d.layer[0].window, 9);
    assert_int_equal(d.layer[1].window + d.layer[2].window + d.layer[3].window, 0);
    done(&d);
    const char *types[] = {"qwen2", "qwen3"};
    for (int i = 0; i < 2; i++) {
        d = read_ok(types[i], "{'sliding_window': 9, 'max_window_layers': 2,"
                              "'use_sliding_window': true}");
        assert_int_equal(d.layer[1].window, 0);
        assert_int_equal(d.layer[2].window, 9);
        assert_int_equal(d.layer[3].window, 9);
        assert_int_equal(d.qkv_bias, i == 0);
        done(&d);
        d = read_ok(types[i], "{'sliding_window': 9, 'max_window_layers': 2}");
        assert_int_equal(d.layer[3].window, 0);
        done(&d);
    }
    const char *list = ", 'sliding_window': 5, 'layer_types': ['sliding_attention',"
                       "'full_attention', 'full_attention', 'sliding_attention']}";
    char text[512];
    snprintf(text, sizeof text, "{" EXPERTS "%s", list);
    d = read_ok("mixtral", text);
    assert_int_equal(d.layer[0].window, 5);
    assert_int_equal(d.layer[1].window, 0);
    assert_int_equal(d.layer[3].window, 5);
    done(&d);
    d = read_ok("mixtral", "{" EXPERTS ", 'sliding_window': 8}");
    for (int64_t i = 0; i < 4; i++)
        assert_int_equal(d.layer[i].window, 8);
    done(&d);
}

static void mixtral_olmo(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("mixtral", "{'num_local_experts': 8, 'num_experts_per_tok': 3,"
                                         "'num_experts': null}");
    assert_int_equal(d.layer[0].experts, 8);
    assert_int_equal(d.layer[0].topk, 3);
    assert_int_equal(d.layer[0].inter, 96);
    assert_int_equal(d.route.renormalize, CMOE_RENORM_SUM);
    assert_float_equal(d.rope.theta, 1e6, 0);
    assert_float_equal(d.eps, 1e-5f, 0);
    done(&d);
    d = read_ok("olmoe", "{" EXPERTS ", 'clip_qkv': 0.75}");
    assert_int_equal(d.qk_norm, CMOEI_QK_FULL);
    assert_float_equal(d.clip_qkv, 0.75, 0);
    assert_int_equal(d.route.renormalize, CMOE_RENORM_NONE);
    done(&d);
    d = read_ok("flex_olmo", "{" EXPERTS "}");
    assert_true(d.post_norm && d.qk_norm == CMOEI_QK_FULL);
    assert_float_equal(d.rope.theta, 5e5, 0);
    assert_float_equal(d.eps, 1e-6f, 0);
    done(&d);
}

static void sigmoid_routers(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("glm4_moe", MOE ", 'n_shared_experts': 2, 'n_group': 4,"
                                              "'topk_group': 2, 'routed_scaling_factor': 2.5,"
                                              "'attention_bias': true, 'use_qk_norm': true}");
    assert_int_equal(d.layer[0].experts, 0); /* first_k_dense_replace is 1 */
    assert_int_equal(d.layer[0].inter, 96);
    assert_int_equal(d.layer[0].shared_inter, 0);
    assert_int_equal(d.layer[1].shared_inter, 48);
    assert_true(d.qkv_bias && !d.o_bias && d.choice_bias && d.qk_norm == CMOEI_QK_HEAD);
    assert_int_equal(d.rope.dim, 8);
    assert_int_equal(d.route.scoring, CMOE_SCORE_SIGMOID);
    assert_int_equal(d.route.groups, 4);
    assert_int_equal(d.route.topk_groups, 2);
    assert_int_equal(d.route.eps_rule, CMOE_EPS_ADD);
    assert_float_equal(d.route.scale, 2.5, 0);
    done(&d);
    d = read_ok("dots1", MOE ", 'norm_topk_prob': false}");
    assert_int_equal(d.layer[0].experts, 8);
    assert_int_equal(d.layer[0].shared_inter, 0);
    assert_int_equal(d.route.renormalize, CMOE_RENORM_NONE);
    assert_int_equal(d.rope.dim, 16);
    done(&d);
    d = read_ok("minimax_m2", "{" EXPERTS ", 'rotary_dim': 6, 'intermediate_size': 24}");
    assert_int_equal(d.qk_norm, CMOEI_QK_FULL);
    assert_int_equal(d.rope.dim, 6);
    assert_int_equal(d.route.scoring, CMOE_SCORE_SIGMOID);
    assert_int_equal(d.route.eps_rule, CMOE_EPS_NONE);
    assert_true(d.choice_bias);
    assert_float_equal(d.rope.theta, 5e6, 0);
    done(&d);
}

static void ernie(void **state)
{
    (void)state;
    cmoei_decoder d =
        read_ok("ernie4_5_moe", "{'moe_num_experts': 8, 'moe_k': 3,"
                                "'moe_intermediate_size': 24, 'use_bias': true,"
                                "'moe_layer_interval': 2, 'moe_num_shared_experts': 0,"
                                "'moe_layer_start_index': 0}");
    assert_int_equal(d.layer[0].experts, 0);
    assert_int_equal(d.layer[1].experts, 8);
    assert_int_equal(d.layer[1].topk, 3);
    assert_int_equal(d.layer[1].shared_inter, 0);
    assert_true(d.tied && d.rope_interleaved && d.qkv_bias && d.o_bias && d.mlp_bias);
    assert_true(d.choice_bias && d.route.scoring == CMOE_SCORE_SOFTMAX);
    assert_int_equal(d.route.eps_rule, CMOE_EPS_MAX);
    assert_float_equal(d.route.eps, 1e-12f, 0);
    done(&d);
    d = read_ok("ernie4_5_moe", "{'moe_num_experts': 8, 'moe_k': 3, 'moe_intermediate_size': 24,"
                                "'tie_word_embeddings': false, 'moe_layer_end_index': 2}");
    assert_false(d.tied);
    assert_int_equal(d.layer[0].experts, 0);
    assert_int_equal(d.layer[2].experts, 8);
    assert_int_equal(d.layer[2].shared_inter, 48);
    assert_int_equal(d.layer[3].experts, 0);
    done(&d);
}

static void hunyuan(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok(
        "hunyuan_v1_moe", "{'num_experts': 8, 'moe_topk': [1, 2, 3, 4], 'attention_head_dim': 32,"
                          "'num_shared_expert': [1, 1, 2, 1], 'moe_intermediate_size': [9, 9],"
                          "'rope_scaling': {'type': 'dynamic', 'alpha': 1000.0, 'factor': 1.0}}");
    assert_int_equal(d.layer[3].topk, 4);
    assert_int_equal(d.layer[2].shared_inter, 192);
    assert_int_equal(d.layer[0].inter, 96);
    assert_int_equal(d.head_dim, 32);
    assert_true(d.qk_norm_after_rope && d.qk_norm == CMOEI_QK_HEAD);
    assert_int_equal(d.rope.kind, CMOE_ROPE_DYNAMIC);
    assert_float_equal(d.rope.alpha, 1000, 0);
    done(&d);
    fails("hunyuan_v1_moe", "{'num_experts': 8, 'moe_topk': [1, 2]}", CMOE_ERR_FORMAT,
          "moe_topk has 2 entries, want one for each layer");
    fails("hunyuan_v1_moe", "{'num_experts': 8, 'moe_topk': [1, 9, 1, 1]}", CMOE_ERR_FORMAT,
          "moe_topk[1] = 9, want an integer from 1 to 8");
    fails("hunyuan_v1_moe", "{" EXPERTS ", 'use_cla': true}", CMOE_ERR_UNSUPPORTED, "use_cla");
}

static void gpt_oss(void **state)
{
    (void)state;
    const char *rope = "'rope_scaling': {'rope_type': 'yarn', 'factor': 32.0, 'truncate': false,"
                       "'original_max_position_embeddings': 64}";
    char text[512];
    snprintf(text, sizeof text, "{" EXPERTS ", 'sliding_window': 8, %s}", rope);
    cmoei_decoder d = read_ok("gpt_oss", text);
    for (int64_t i = 0; i < 4; i++)
        assert_int_equal(d.layer[i].window, i % 2 ? 0 : 8);
    assert_true(d.sinks && d.qkv_bias && d.o_bias && d.router_bias && d.expert_bias);
    assert_false(d.mlp_bias);
    assert_int_equal(d.route.scoring, CMOE_SCORE_LOGITS);
    assert_int_equal(d.activation, CMOE_ACT_SWIGLU_OSS);
    assert_float_equal(d.swiglu_limit, 7, 0);
    assert_float_equal(d.swiglu_alpha, 1.702f, 0);
    assert_int_equal(d.rope.kind, CMOE_ROPE_YARN);
    assert_int_equal(d.rope.truncate, 0);
    assert_int_equal(d.rope.original, 64);
    assert_float_equal(d.rope.theta, 150000, 0);
    done(&d);
    fails("gpt_oss", "{" EXPERTS "}", CMOE_ERR_FORMAT, "rope_scaling is missing");
}

static void granite_phi(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("granitemoe", "{" EXPERTS ", 'embedding_multiplier': 12.0,"
                                            "'attention_multiplier': 0.0625, 'logits_scaling': 8,"
                                            "'residual_multiplier': 0.25}");
    assert_float_equal(d.embedding_scale, 12, 0);
    assert_float_equal(d.attention_scale, 0.0625, 0);
    assert_float_equal(d.residual_scale, 0.25, 0);
    assert_float_equal(d.logits_scale, 0.125, 0);
    assert_int_equal(d.route.scoring, CMOE_SCORE_LOGITS);
    done(&d);
    d = read_ok("phimoe", "{" EXPERTS ", 'attention_bias': true, 'lm_head_bias': true,"
                          "'router_jitter_noise': 0.5}");
    assert_true(d.layer_norm && d.head_bias && d.qkv_bias && d.o_bias);
    assert_int_equal(d.route.scoring, CMOE_SCORE_SPARSEMIXER);
    assert_int_equal(d.route.renormalize, CMOE_RENORM_NONE);
    assert_float_equal(d.route.jitter, 0.5, 0);
    done(&d);
    fails("phimoe", "{'num_experts': 8, 'num_experts_per_tok': 3}", CMOE_ERR_FORMAT,
          "num_experts_per_tok = 3, want 2");
}

static void sdar(void **state)
{
    (void)state;
    cmoei_decoder d = read_ok("sdar", "{'block_size': 8, 'mask_token_id': 255}");
    assert_int_equal(d.mask, 8);
    assert_int_equal(d.mask_token, 255);
    assert_int_equal(d.qk_norm, CMOEI_QK_HEAD);
    done(&d);
    d = read_ok("sdar_moe", MOE ", 'vocab_size': 151936, 'block_length': 16}");
    assert_int_equal(d.mask, 16);
    assert_int_equal(d.mask_token, 151669);
    assert_int_equal(d.layer[0].experts, 8);
    assert_int_equal(d.route.renormalize, CMOE_RENORM_SUM); /* unlike qwen3_moe */
    done(&d);
    d = read_ok("sdar_moe", "{'mask_token_id': 1}"); /* no experts: a dense model, block 4 */
    assert_int_equal(d.layer[0].experts, 0);
    assert_int_equal(d.mask, 4);
    done(&d);
    fails("sdar", "{}", CMOE_ERR_FORMAT, "mask_token_id is missing");
    fails("sdar", "{'mask_token_id': 256}", CMOE_ERR_FORMAT,
          "mask_token_id = 256, want an integer from 0 to 255");
    fails("sdar", "{'mask_token_id': 1, 'block_size': 0}", CMOE_ERR_FORMAT, "block_size = 0");
}

/* ---- rotary positions -------------------------------------------------------------------------- */

static void rope_forms(void **state)
{
    static const struct {
        const char *old, *new;
    } forms[] = {
        {"{'rope_theta': 5000, 'rope_scaling': null}", "{'rope_parameters': {'rope_theta': 5000}}"},
        {"{'rope_scaling': {'type': 'default'}}", "{'rope_parameters': {'rope_type': 'default'}}"},
        {"{'rope_theta': 7, 'partial_rotary_factor': 0.25, 'rope_scaling': {'type': 'linear',"
         "'factor': 2}}",
         "{'rope_theta': 99, 'rope_scaling': {'type': 'yarn'}, 'rope_parameters':"
         "{'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 7, 'partial_rotary_factor': 0.25}}"},
        {"{'rope_scaling': {'type': 'dynamic', 'factor': 4}}",
         "{'rope_parameters': {'rope_type': 'dynamic', 'factor': 4, 'alpha': null}}"},
        {"{'rope_scaling': {'rope_type': 'llama3', 'factor': 8, 'low_freq_factor': 1,"
         "'high_freq_factor': 4, 'original_max_position_embeddings': 64}}",
         "{'rope_parameters': {'rope_type': 'llama3', 'factor': 8,"
         "'original_max_position_embeddings': 64}}"},
        {"{'rope_scaling': {'type': 'yarn', 'factor': 8, 'original_max_position_embeddings': 64}}",
         "{'rope_parameters': {'rope_type': 'yarn', 'original_max_position_embeddings': 64,"
         "'beta_fast': 32, 'beta_slow': 1, 'truncate': true, 'mscale': 0}}"},
        {"{'original_max_position_embeddings': 64, 'rope_scaling': {'type': 'su',"
         "'short_factor': [1, 1, 1, 1, 1, 1, 1, 1], 'long_factor': [1, 2, 3, 4, 5, 6, 7, 8.5]}}",
         "{'rope_parameters': {'rope_type': 'longrope', 'original_max_position_embeddings': 64,"
         "'short_factor': [1, 1, 1, 1, 1, 1, 1, 1], 'long_factor': [1, 2, 3, 4, 5, 6, 7, 8.5]}}"},
    };
    (void)state;
    for (int64_t i = 0; i < CMOEI_COUNT(forms); i++) {
        cmoei_decoder a = read_ok("llama", forms[i].old), b = read_ok("llama", forms[i].new);
        same(&a, &b);
        done(&a);
        done(&b);
    }
}

static void rope_values(void **state)
{
    (void)state;
    cmoei_decoder d =
        read_ok("phimoe", "{" EXPERTS ", 'rope_scaling': {'type': 'longrope', 'short_mscale': 1.5,"
                          "'long_mscale': 2.5, 'original_max_position_embeddings': 64,"
                          "'short_factor': [1, 1, 1, 1, 1, 1, 1, 1],"
                          "'long_factor': [1, 2, 3, 4, 5, 6, 7, 8.5]}}");
    assert_int_equal(d.rope.kind, CMOE_ROPE_LONGROPE);
    assert_float_equal(d.rope.factor, 8, 0);
    assert_float_equal(d.rope.short_amplitude, 1.5, 0);
    assert_float_equal(d.rope.long_amplitude, 2.5, 0);
    assert_float_equal(d.rope.short_factor[7], 1, 0);
    assert_float_equal(d.rope.long_factor[7], 8.5, 0);
    done(&d);
    d = read_ok("glm4_moe", MOE ", 'rope_parameters': {'partial_rotary_factor': 0.75,"
                                "'rope_type': 'yarn', 'factor': 3, 'mscale': 0.5,"
                                "'mscale_all_dim': 1, 'attention_factor': 1.25, 'beta_fast': 9}}");
    assert_int_equal(d.rope.dim, 12);
    assert_int_equal(d.rope.original, 512);
    assert_float_equal(d.rope.factor, 3, 0);
    assert_float_equal(d.rope.beta_fast, 9, 0);
    assert_float_equal(d.rope.attention_factor, 1.25, 0);
    assert_float_equal(d.rope.mscale, 0.5, 0);
    assert_float_equal(d.rope.mscale_all_dim, 1, 0);
    done(&d);
}

static void rope_errors(void **state)
{
    (void)state;
    fails("llama", "{'rope_scaling': {'type': 'spiral'}}", CMOE_ERR_UNSUPPORTED,
          "rope_scaling.rope_type = \"spiral\", want one of: default linear dynamic yarn llama3 "
          "longrope proportional");
    bad("{'rope_scaling': [1]}", "rope_scaling = a list, want an object");
    bad("{'rope_scaling': {'factor': 2}}", "rope_scaling.rope_type is missing");
    bad("{'rope_scaling': {'type': 'linear'}}", "rope_scaling.factor is missing");
    bad("{'rope_scaling': {'type': 'dynamic'}}", "rope_scaling.factor is missing");
    bad("{'rope_scaling': {'type': 'linear', 'factor': -2}}", "rope_scaling.factor = -2, want a");
    bad("{'rope_scaling': {'type': 'linear', 'factor': '2'}}", "rope_scaling.factor = \"2\"");
    bad("{'rope_parameters': {'rope_type': 7}}", "rope_parameters.rope_type = 7, want a string");
    bad("{'rope_theta': 0}", "rope_theta = 0, want a number from");
    bad("{'rope_theta': 1e300}", "rope_theta = 1.0");
    bad("{'partial_rotary_factor': 1.5}", "partial_rotary_factor = 1.5, want");
    bad("{'partial_rotary_factor': 0.2}", "turns 3 of 16 dimensions");
    bad("{'rotary_dim': 18}", "rotary_dim = 18, want an integer from 2 to 16");
    bad("{'rope_scaling': {'type': 'llama3', 'factor': 2, 'low_freq_factor': 4}}",
        "high_freq_factor = 4, want more than 4");
    bad("{'rope_scaling': {'type': 'longrope', 'short_factor': [1]}}",
        "rope_scaling.short_factor: want a list of 8 numbers");
    bad("{'rope_scaling': {'type': 'longrope', 'short_factor': [1, 1, 1, 1, 1, 1, 1, 0]}}",
        "rope_scaling.short_factor[7]: want a number");
    fails("llama", "{'rope_parameters': {'full_attention': {}}}", CMOE_ERR_UNSUPPORTED,
          "given by layer type");
}

/* ---- errors ------------------------------------------------------------------------------------ */

static void text_fails(const char *text, cmoe_status status, const char *want)
{
    cmoei_decoder d;
    UNIT_FAILS(cmoei_decoder_parse(&d, env.ctx, text, (int64_t)strlen(text), "config.json", &err),
               status, want);
}

static void not_a_config(void **state)
{
    (void)state;
    text_fails("", CMOE_ERR_FORMAT, "config.json: line 1");
    text_fails("{\"a\": 1,\n\"a\": 2}", CMOE_ERR_FORMAT, "config.json: line 2");
    text_fails("{\"a\": NaN}", CMOE_ERR_FORMAT, "config.json: line 1");
    text_fails("{\"a\": 1e999}", CMOE_ERR_FORMAT, "config.json: line 1");
    text_fails("{\"a\": 9223372036854775808}", CMOE_ERR_FORMAT, "config.json: line 1");
    text_fails("[1, 2]", CMOE_ERR_FORMAT, "holds a list, want an object");
    text_fails("{}", CMOE_ERR_FORMAT, "model_type is missing, want one of: qwen3_moe ");
    text_fails("{\"model_type\": 3}", CMOE_ERR_FORMAT, "model_type = 3, want a string");
    text_fails("{\"model_type\": \"gpt\\u001b[9\"}", CMOE_ERR_UNSUPPORTED,
               "model_type = \"gpt?[9\", want one of: qwen3_moe qwen2_moe olmoe");
    char deep[8192];
    memset(deep, '[', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    text_fails(deep, CMOE_ERR_FORMAT, "config.json: line 1");
}

static void hostile_numbers(void **state)
{
    (void)state;
    bad("{'hidden_size': -64}",
        "config.json: hidden_size = -64, want an integer from 1 to 1048576");
    bad("{'hidden_size': 0}", "hidden_size = 0, want");
    bad("{'hidden_size': 64.0}", "hidden_size = 64.0, want an integer");
    bad("{'hidden_size': '64'}", "hidden_size = \"64\", want an integer");
    bad("{'hidden_size': [64]}", "hidden_size = a list, want an integer");
    bad("{'hidden_size': true}", "hidden_size = true, want an integer");
    bad("{'hidden_size': null}", "hidden_size is missing");
    bad("{'hidden_size': 9223372036854775807}", "hidden_size = 9223372036854775807, want");
    bad("{'num_hidden_layers': 1001}", "num_hidden_layers = 1001, want an integer from 1 to 1000");
    bad("{'vocab_size': 16777217}", "vocab_size = 16777217, want");
    bad("{'max_position_embeddings': 0}", "max_position_embeddings = 0, want");
    bad("{'num_key_value_heads': 3}", "num_key_value_heads = 3, want a divisor of");
    bad("{'num_attention_heads': 3}",
        "hidden_size = 64, want a multiple of num_attention_heads = 3");
    bad("{'head_dim': 5}", "head_dim = 5, want an even one");
    bad("{'head_dim': 4098}", "head_dim = 4098, want an integer from 2 to 4096");
    bad("{'intermediate_size': null}", "intermediate_size is missing");
    bad("{'intermediate_size': {}}", "intermediate_size = an object, want");
    bad("{'rms_norm_eps': -1e-6}", "rms_norm_eps = -9.9");
    bad("{'rms_norm_eps': 'x'}", "rms_norm_eps = \"x\", want a number from 0 to 1");
    bad("{'tie_word_embeddings': 1}", "tie_word_embeddings = 1, want true or false");
    fails("llama", "{'hidden_act': 'gelu'}", CMOE_ERR_UNSUPPORTED,
          "hidden_act = \"gelu\", want one of: silu swish swiglu");
    bad("{'hidden_act': 1}", "hidden_act = 1, want a string");
}

static void hostile_experts(void **state)
{
    const cmoe_status format = CMOE_ERR_FORMAT;
    (void)state;
    fails("mixtral", "{}", format, "num_experts is missing (or num_local_experts n_routed_experts");
    fails("mixtral", "{'num_local_experts': 4}", format,
          "num_experts_per_tok is missing (or moe_k");
    fails("mixtral", "{'num_local_experts': 0}", format, "num_local_experts = 0, want");
    fails("mixtral", "{'num_local_experts': 4, 'num_experts_per_tok': 5}", format,
          "num_experts_per_tok = 5, want an integer from 1 to 4");
    fails("qwen3_moe", "{" EXPERTS "}", format, "moe_intermediate_size is missing");
    fails("mixtral",
          "{'num_local_experts': 65536, 'num_experts_per_tok': 2, 'num_hidden_layers': 1000,"
          "'intermediate_size': 1048576, 'hidden_size': 1048576, 'head_dim': 64}",
          format, "parameters, want at most 2^50");
    fails("qwen3_moe", MOE ", 'mlp_only_layers': 3}", format, "mlp_only_layers: want a list");
    fails("qwen3_moe", MOE ", 'mlp_only_layers': [-1]}", format,
          "mlp_only_layers[0]: want a layer");
    fails("glm4_moe", MOE ", 'n_group': 3}", format,
          "n_group = 3, want a divisor of the 8 experts");
    fails("glm4_moe", MOE ", 'n_group': 8}", format, "n_group = 8, want");
    fails("glm4_moe", MOE ", 'n_group': 2, 'topk_group': 3}", format, "topk_group = 3, want");
    fails("glm4_moe",
          "{'num_experts': 8, 'num_experts_per_tok': 3, 'moe_intermediate_size': 4,"
          "'n_group': 4, 'topk_group': 1}",
          format, "num_experts_per_tok = 3, want at most 2");
    fails("mixtral", "{" EXPERTS ", 'layer_types': ['full_attention']}", CMOE_ERR_UNSUPPORTED,
          "layer_types[1] is missing, want full_attention or");
    fails("mixtral", "{" EXPERTS ", 'layer_types': ['linear_attention']}", CMOE_ERR_UNSUPPORTED,
          "layer_types[0] is linear_attention, want full_attention or");
    fails("mixtral", "{" EXPERTS ", 'layer_types': ['sliding_attention']}", format,
          "sliding_window is missing, and layer 0 slides");
    fails("mixtral", "{" EXPERTS ", 'sliding_window': -1}", format, "sliding_window = -1, want");
    fails("minimax_m2", "{" EXPERTS ", 'qk_norm_type': 'x'}", CMOE_ERR_UNSUPPORTED,
          "qk_norm_type = \"x\", want per_layer");
}

static void quantisation(void **state)
{
    static const char *const refused[] = {"awq", "gptq", "compressed-tensors", "bitsandbytes",
                                          "modelopt"};
    char over[128], text[128];
    (void)state;
    for (int64_t i = 0; i < CMOEI_COUNT(refused); i++) {
        snprintf(over, sizeof over, "{'quantization_config': {'quant_method': '%s'}}", refused[i]);
        snprintf(text, sizeof text,
                 "quantization_config.quant_method = \"%s\", want fp8 (e4m3 with block scales) or",
                 refused[i]);
        fails("llama", over, CMOE_ERR_UNSUPPORTED, text);
    }
    fails("llama", "{'quantization_config': {}}", CMOE_ERR_UNSUPPORTED, "quant_method = \"\"");
    fails("llama", "{'compression_config': {'quant_method': 'x'}}", CMOE_ERR_UNSUPPORTED,
          "compression_config.quant_method");
    bad("{'quantization_config': 1}", "quantization_config = 1, want an object");
    fails("llama", "{'quantization_config': {'quant_method': 'fp8', 'fmt': 'e5m2'}}",
          CMOE_ERR_UNSUPPORTED, "fmt = \"e5m2\", want e4m3");
    bad("{'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [128]}}",
        "weight_block_size: want a list of 2 integers");
    bad("{'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [0, 128]}}",
        "weight_block_size: want a list of 2 integers");
}

/* ---- files ------------------------------------------------------------------------------------- */

static void files(void **state)
{
    char dir[] = "cmoe_config_XXXXXX", path[64];
    cmoei_decoder d;
    (void)state;
    assert_non_null(mkdtemp(dir));
    UNIT_FAILS(cmoei_decoder_open(&d, env.ctx, dir, &err), CMOE_ERR_IO,
               "config.json: cannot be opened: No such file or directory");
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs("{\"model_type\": \"x\"}", f);
    fclose(f);
    UNIT_FAILS(cmoei_decoder_open(&d, env.ctx, dir, &err), CMOE_ERR_UNSUPPORTED, path);
    assert_int_equal(truncate(path, (16 << 20) + 1), 0);
    UNIT_FAILS(cmoei_decoder_open(&d, env.ctx, dir, &err), CMOE_ERR_FORMAT,
               "has 16777217 bytes, want at most 16777216");
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    UNIT_FAILS(cmoei_decoder_open(&d, env.ctx, dir, &err), CMOE_ERR_IO,
               "is a FIFO, want a regular file");
    unlink(path);
    rmdir(dir);
}

/* jansson takes memory on its own: a status and a text whichever allocation fails. */
static int64_t fail_at;
static void *failing(size_t bytes)
{
    return --fail_at == 0 ? NULL : malloc(bytes);
}

static void no_memory(void **state)
{
    (void)state;
    json_malloc_t take;
    json_free_t give;
    json_get_alloc_funcs(&take, &give);
    const char text[] = "{\"model_type\": \"llama\", \"a\": [1, 2.5, {\"b\": \"c\"}]}";
    int64_t n = 0;
    for (bool reached = true; reached;) {
        cmoei_decoder d;
        cmoe_error err = {0};
        fail_at = ++n;
        json_set_alloc_funcs(failing, free);
        const cmoe_status status =
            cmoei_decoder_parse(&d, env.ctx, text, (int64_t)strlen(text), "config.json", &err);
        json_set_alloc_funcs(take, give);
        reached = fail_at <= 0;
        /* Inside of a word jansson takes it for a mistake of the text. */
        if (n == 1) assert_int_equal(status, CMOE_ERR_MEMORY);
        if (status != CMOE_ERR_FORMAT && status != CMOE_ERR_MEMORY)
            fail_msg("allocation %d: %s", (int)n, cmoe_status_name(status));
        assert_true(strstr(err.text, "config.json: ") && !strstr(err.text, "-1"));
    }
    assert_true(n > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_spellings),  cmocka_unit_test(no_architecture_yet),
        cmocka_unit_test(common_keys),     cmocka_unit_test(options_of_the_skeleton),
        cmocka_unit_test(wrapper),         cmocka_unit_test(qwen),
        cmocka_unit_test(windows),         cmocka_unit_test(mixtral_olmo),
        cmocka_unit_test(sigmoid_routers), cmocka_unit_test(ernie),
        cmocka_unit_test(hunyuan),         cmocka_unit_test(gpt_oss),
        cmocka_unit_test(granite_phi),     cmocka_unit_test(sdar),
        cmocka_unit_test(rope_forms),      cmocka_unit_test(rope_values),
        cmocka_unit_test(rope_errors),     cmocka_unit_test(not_a_config),
        cmocka_unit_test(hostile_numbers), cmocka_unit_test(hostile_experts),
        cmocka_unit_test(quantisation),    cmocka_unit_test(files),
        cmocka_unit_test(no_memory),
    };
    env = unit_open(1);
    const int failed = UNIT_RUN("config", tests);
    unit_close(&env);
    return failed;
}
