/* SPDX-License-Identifier: MIT
 *
 * lora.c - adapters as users have them: whole, for another model, of kinds that are not supported, broken.
 * Every text of adapter_config.json, of the tensors beside it, of their places in a model, and of writing.
 */
#include <math.h>

#include "cmoe/weights.h"
#include "files.h"
#include "lora/peft.h"
#include "models/adapt.h"

static unit_env env;
static files_folder folder;

enum { H = 8, I = 6, E = 4, R = 2, MOST = 12 };

#define LAYER        "base_model.model.model.layers.0."
#define EXPERTS      LAYER "mlp.experts."
#define CONFIG(more) "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4" more "}"
#define STACKED                                                                               \
    CONFIG(", \"target_parameters\": [\"mlp.experts.gate_up_proj\", \"experts.down_proj\"], " \
           "\"peft_version\": \"0.21.2\"")

typedef struct pair {
    const char *name;
    int64_t rows, cols;
} pair;

static float values[4096];

static int open_folder(void **state)
{
    (void)state;
    folder = files_open("unit_lora");
    for (int i = 0; i < 4096; i++)
        values[i] = cmoe_random_normal(3, (uint64_t)i, 0);
    return 0;
}

static int close_folder(void **state)
{
    (void)state;
    files_close(&folder);
    return 0;
}

/* An adapter of these tensors, up to one without a name. */
static void put(const char *config, const pair *tensors)
{
    cmoe_view views[MOST];
    int64_t n = 0;
    for (; tensors[n].name; n++) {
        views[n] = cmoe_view_2d(values + 17 * n, CMOE_F32, tensors[n].rows, tensors[n].cols);
        views[n].name = tensors[n].name;
    }
    files_text(&folder, "adapter_config.json", config);
    UNIT_OK(cmoe_safetensors_write(files_in(&folder, "adapter_model.safetensors"), views, n, NULL,
                                   &err));
}

static const pair query[] = {{LAYER "self_attn.q_proj.lora_A.weight", R, H},
                             {LAYER "self_attn.q_proj.lora_B.weight", H, R},
                             {NULL, 0, 0}};
static const pair experts[] = {{EXPERTS "base_layer.lora_A.weight", R *E, H},
                               {EXPERTS "base_layer.lora_B.weight", 2 * I, R *E},
                               {EXPERTS "lora_A.weight", R *E, I},
                               {EXPERTS "lora_B.weight", H, R *E},
                               {NULL, 0, 0}};

static cmoe_adapter *opened(const char *config, const pair *tensors)
{
    cmoe_adapter *a = NULL;
    put(config, tensors);
    UNIT_OK(cmoe_adapter_open(&a, env.ctx, folder.path, CMOE_PEFT_AUTO, &err));
    return a;
}

static void refuses(const char *config, const pair *tensors, cmoe_status status, const char *text)
{
    static char mark;
    cmoe_adapter *a = (cmoe_adapter *)(void *)&mark;
    put(config, tensors);
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, folder.path, CMOE_PEFT_AUTO, &err), status, text);
    assert_ptr_equal(a, &mark);
    assert_int_equal(cmoe_adapter_open(&a, env.ctx, folder.path, CMOE_PEFT_AUTO, NULL), status);
}

/* ---- opening --------------------------------------------------------------------------------- */

static void arguments(void **state)
{
    (void)state;
    cmoe_adapter *a = NULL;
    cmoe_adapter_info info = {.size = sizeof info};
    UNIT_FAILS(cmoe_adapter_open(NULL, env.ctx, "x", 0, &err), CMOE_ERR_ARG, "out is NULL");
    UNIT_FAILS(cmoe_adapter_open(&a, NULL, "x", 0, &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, NULL, 0, &err), CMOE_ERR_ARG, "path is NULL");
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, "x", 3, &err), CMOE_ERR_RANGE, "layout = 3");
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, "not-there", 0, &err), CMOE_ERR_IO,
               "adapter_config.json: cannot be opened");
    UNIT_FAILS(cmoe_adapter_describe(NULL, &info, &err), CMOE_ERR_ARG, "adapter is NULL");
    cmoe_adapter_free(NULL);
    a = opened(CONFIG(""), query);
    UNIT_FAILS(cmoe_adapter_describe(a, NULL, &err), CMOE_ERR_ARG, "info is NULL");
    info.size = 0;
    UNIT_FAILS(cmoe_adapter_describe(a, &info, &err), CMOE_ERR_ARG, "info.size = 0");
    cmoe_adapter_free(a);
}

static void missing_files(void **state)
{
    (void)state;
    cmoe_adapter *a = NULL;
    files_text(&folder, "adapter_config.json", CONFIG(""));
    (void)unlink(files_in(&folder, "adapter_model.safetensors"));
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err), CMOE_ERR_IO,
               "adapter_model.safetensors");
    files_text(&folder, "adapter_model.bin", "pickle");
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err), CMOE_ERR_UNSUPPORTED,
               "pickled files run programs");
    (void)unlink(files_in(&folder, "adapter_model.bin"));
    files_text(&folder, "adapter_model.safetensors", "cut");
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err), CMOE_ERR_FORMAT,
               "adapter_model.safetensors");
}

static void described(void **state)
{
    (void)state;
    cmoe_adapter_info info = {.size = sizeof info};
    cmoe_adapter *a = opened(STACKED, experts);
    UNIT_OK(cmoe_adapter_describe(a, &info, &err));
    assert_int_equal(info.tensors, 4);
    assert_int_equal(info.parameters, R * E * (H + 2 * I + I + H));
    assert_int_equal(info.rank, R);
    assert_int_equal(info.layers, 1);
    assert_int_equal(info.experts, 1);
    assert_int_equal(info.attention, 0);
    assert_int_equal(info.router, 0);
    assert_int_equal(info.layout, CMOE_PEFT_SINCE_0_19);
    assert_string_equal(info.base, "");
    cmoe_adapter_free(a);
}

/* ---- adapter_config.json --------------------------------------------------------------------- */

static void configs(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        cmoe_status status;
        const char *text;
    } bad[] = {
        {"{", CMOE_ERR_FORMAT, "line 1"},
        {"[]", CMOE_ERR_FORMAT, "is not an object"},
        {"{\"r\": 1, \"r\": 2}", CMOE_ERR_FORMAT, "duplicate"},
        {"{}", CMOE_ERR_FORMAT, "peft_type is missing, want \"LORA\""},
        {"{\"peft_type\": \"IA3\"}", CMOE_ERR_UNSUPPORTED, "peft_type = \"IA3\""},
        {"{\"peft_type\": \"LORA\"}", CMOE_ERR_FORMAT, "r is missing"},
        {"{\"peft_type\": \"LORA\", \"r\": 2}", CMOE_ERR_FORMAT, "lora_alpha is missing"},
        {"{\"peft_type\": \"LORA\", \"r\": 0, \"lora_alpha\": 1}", CMOE_ERR_FORMAT, "r = 0"},
        {"{\"peft_type\": \"LORA\", \"r\": 2.0, \"lora_alpha\": 1}", CMOE_ERR_FORMAT, "r = 2"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": \"1\"}", CMOE_ERR_FORMAT,
         "lora_alpha = \"1\""},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1e300}", CMOE_ERR_FORMAT,
         "lora_alpha = 1"},
        {CONFIG(", \"use_dora\": true"), CMOE_ERR_UNSUPPORTED, "DoRA is not supported"},
        {CONFIG(", \"use_qalora\": true"), CMOE_ERR_UNSUPPORTED, "QALoRA"},
        {CONFIG(", \"use_bdlora\": {}, \"lora_bias\": true"), CMOE_ERR_UNSUPPORTED,
         "lora_bias = true"},
        {CONFIG(", \"bias\": \"all\""), CMOE_ERR_UNSUPPORTED, "bias = \"all\", want \"none\""},
        {CONFIG(", \"fan_in_fan_out\": true"), CMOE_ERR_UNSUPPORTED, "transposed weights"},
        {CONFIG(", \"modules_to_save\": [\"lm_head\"]"), CMOE_ERR_UNSUPPORTED, "whole modules"},
        {CONFIG(", \"layer_replication\": [[0, 1]]"), CMOE_ERR_UNSUPPORTED, "several times"},
        {CONFIG(", \"trainable_token_indices\": [1]"), CMOE_ERR_UNSUPPORTED, "single tokens"},
        {CONFIG(", \"init_lora_weights\": \"pissa\""), CMOE_ERR_UNSUPPORTED, "\"pissa\""},
        {CONFIG(", \"loftq_config\": {\"bits\": 4}"), CMOE_ERR_UNSUPPORTED,
         "loftq_config = an object"},
        {CONFIG(", \"lora_dropout\": 2"), CMOE_ERR_FORMAT, "from 0 to 1"},
        {CONFIG(", \"use_rslora\": 1"), CMOE_ERR_FORMAT, "want true or false"},
        {CONFIG(", \"target_modules\": 3"), CMOE_ERR_FORMAT, "or a regular expression"},
        {CONFIG(", \"target_modules\": [3]"), CMOE_ERR_FORMAT, "want names in it"},
        {CONFIG(", \"target_parameters\": \"x\""), CMOE_ERR_FORMAT, "want a list of names"},
        {CONFIG(", \"peft_version\": 19"), CMOE_ERR_FORMAT, "peft_version = 19"},
        {CONFIG(", \"base_model_name_or_path\": 1"), CMOE_ERR_FORMAT, "want a text"},
        {CONFIG(", \"rank_pattern\": []"), CMOE_ERR_FORMAT, "want an object"},
        {CONFIG(", \"rank_pattern\": {\"q\": 0}"), CMOE_ERR_FORMAT, "want a rank"},
        {CONFIG(", \"alpha_pattern\": {\"q\": null}"), CMOE_ERR_FORMAT, "want a number"},
        {CONFIG(", \"rank_pattern\": {\"q(\": 2}"), CMOE_ERR_FORMAT, "pattern \"q(\""},
        {CONFIG(", \"rank_pattern\": {\"((.|_)*)*[#!]\": 2}"), CMOE_ERR_FORMAT, "takes too long"},
        {CONFIG(", \"new_thing\": 3"), CMOE_ERR_UNSUPPORTED,
         "new_thing = 3, which is not known here"},
        {CONFIG(", \"rank_pattern\": {\"q_proj\": 3}"), CMOE_ERR_FORMAT, "says rank 3"},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(bad); i++)
        refuses(bad[i].config, query, bad[i].status, bad[i].text);
}

/* The scale of the one term of `query`. */
static float scale_of(const char *config)
{
    cmoe_adapter *a = opened(config, query);
    const float scale = a->terms[0].scale;
    cmoe_adapter_free(a);
    return scale;
}

static void scaling(void **state)
{
    (void)state;
    const float of[] = {
        scale_of(CONFIG("")), scale_of(CONFIG(", \"use_rslora\": true")),
        scale_of(CONFIG(", \"alpha_pattern\": {\"k_proj\": 8, \"q_.roj\": 3, \"q_proj\": 9}")),
        scale_of(CONFIG(", \"alpha_pattern\": {\"proj\": 8, \"self_attn.q_proj\": 0}")),
        scale_of(
            CONFIG(", \"new_thing\": null, \"lora_dropout\": 0.1, \"target_modules\": \".*q\""))};
    const float want[] = {2, (float)(4 / sqrt(2)), 1.5f, 0, 2};
    for (int i = 0; i < 5; i++)
        assert_true(of[i] == want[i]);
}

static void versions(void **state)
{
    (void)state;
    static const struct {
        const char *version;
        int32_t layout;
    } cases[] = {
        {"0.3.0", CMOE_PEFT_BEFORE_0_19},          {"0.18.1", CMOE_PEFT_BEFORE_0_19},
        {"0.19.0", CMOE_PEFT_BEFORE_0_19},         {"0.19.1", CMOE_PEFT_SINCE_0_19},
        {"0.19.1.dev0", CMOE_PEFT_AUTO},           {"0.20.0.dev0@abc", CMOE_PEFT_SINCE_0_19},
        {"1.0.0", CMOE_PEFT_SINCE_0_19},           {"main", CMOE_PEFT_AUTO},
        {"99999999999999999.0.1", CMOE_PEFT_AUTO}, {"", CMOE_PEFT_AUTO},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(cases); i++) {
        char config[256];
        cmoe_adapter_info info = {.size = sizeof info};
        snprintf(config, sizeof config, CONFIG(", \"peft_version\": \"%s\""), cases[i].version);
        cmoe_adapter *a = opened(config, query);
        UNIT_OK(cmoe_adapter_describe(a, &info, &err));
        assert_int_equal(info.layout, cases[i].layout);
        cmoe_adapter_free(a);
    }
}

/* ---- tensors --------------------------------------------------------------------------------- */

static void tensors(void **state)
{
    (void)state;
    const struct {
        const char *config;
        pair tensors[3];
        cmoe_status status;
        const char *text;
    } bad[] = {
        {CONFIG(""), {{NULL, 0, 0}}, CMOE_ERR_FORMAT, "has no tensors"},
        {CONFIG(""), {{"x", 2, 2}}, CMOE_ERR_FORMAT, "x belongs to no adapter"},
        {CONFIG(""), {query[0]}, CMOE_ERR_FORMAT, "is there without its lora_B"},
        {CONFIG(""), {query[1]}, CMOE_ERR_FORMAT, "is there without its lora_A"},
        {CONFIG(""), {{LAYER "q_proj.lora_B.bias", 1, 2}}, CMOE_ERR_UNSUPPORTED, "is a bias"},
        {CONFIG(""), {{LAYER "q_proj.lora_magnitude_vector", 1, 2}}, CMOE_ERR_UNSUPPORTED, "DoRA"},
        {CONFIG(""),
         {{"base_model.model.model.embed_tokens.lora_embedding_A", 1, 2}},
         CMOE_ERR_UNSUPPORTED,
         "of an embedding"},
        {CONFIG(""),
         {{"base_model.model.lm_head.modules_to_save.weight", 1, 2}},
         CMOE_ERR_UNSUPPORTED,
         "whole module"},
        {CONFIG(""),
         {{LAYER "q_proj.lora_A.default.weight", 1, 2}},
         CMOE_ERR_FORMAT,
         "is not the A or B of a module"},
        {CONFIG(""), {{query[0].name, 3, H}, query[1]}, CMOE_ERR_FORMAT, "of different ranks"},
        {CONFIG(""),
         {{query[0].name, 3, H}, {query[1].name, H, 3}},
         CMOE_ERR_FORMAT,
         "adapter_config.json says rank 2"},
        {CONFIG(""),
         {{LAYER "q.base_layer.lora_A.weight", 2, H}, {LAYER "q.base_layer.lora_B.weight", H, 2}},
         CMOE_ERR_FORMAT,
         "only stacked experts are nested"},
        {CONFIG(""),
         {experts[2], experts[3]},
         CMOE_ERR_FORMAT,
         "has 1 low-rank terms, but target_parameters of adapter_config.json names 0"},
        {STACKED, {experts[2], experts[3]}, CMOE_ERR_FORMAT, "has 1 low-rank terms"},
        {STACKED, {experts[0], experts[1]}, CMOE_ERR_FORMAT, "has 1 low-rank terms"},
        {CONFIG(", \"target_parameters\": [\"experts.down_proj\"]"),
         {{EXPERTS "lora_A.weight", 7, I}, {EXPERTS "lora_B.weight", H, 7}},
         CMOE_ERR_FORMAT,
         "want a multiple of it"},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(bad); i++) {
        pair list[4] = {bad[i].tensors[0], bad[i].tensors[1], bad[i].tensors[2], {NULL, 0, 0}};
        refuses(bad[i].config, list, bad[i].status, bad[i].text);
    }
}

static void formats(void **state)
{
    (void)state;
    static const int32_t dtypes[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F64};
    for (int i = 0; i < 4; i++) {
        uint16_t halves[2 * R * H];
        char raw[2 * R * H * 8] = {0};
        cmoe_adapter *a = NULL;
        const float numbers[] = {1, -2, 0.5f, 3};
        cmoei_store_f32(halves, CMOE_BF16, 1, values, 2 * R * H);
        for (int k = 0; k < 2 * R * H; k++)
            cmoei_store_f32(raw + k * cmoe_dtype_bytes(dtypes[i]), dtypes[i], 1, numbers + k % 4,
                            1);
        cmoe_view v[2] = {cmoe_view_2d(raw, dtypes[i], R, H), cmoe_view_2d(raw, dtypes[i], H, R)};
        v[0].name = query[0].name;
        v[1].name = query[1].name;
        files_text(&folder, "adapter_config.json", CONFIG(""));
        UNIT_OK(cmoe_safetensors_write(files_in(&folder, "adapter_model.safetensors"), v, 2, NULL,
                                       &err));
        if (dtypes[i] == CMOE_F64) {
            UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err), CMOE_ERR_FORMAT,
                       "has the format F64, want F32, F16 or BF16");
            continue;
        }
        UNIT_OK(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err));
        for (int k = 0; k < R * H; k++)
            assert_true(a->terms[0].a[k] == numbers[k % 4] && a->terms[0].b[k] == numbers[k % 4]);
        cmoe_adapter_free(a);
    }
    const int64_t dims[3] = {1, R, H};
    cmoe_adapter *a = NULL;
    cmoe_view v[2] = {cmoe_view_make(values, CMOE_F32, 3, dims),
                      cmoe_view_2d(values, CMOE_F32, H, R)};
    v[0].name = query[0].name;
    v[1].name = query[1].name;
    UNIT_OK(
        cmoe_safetensors_write(files_in(&folder, "adapter_model.safetensors"), v, 2, NULL, &err));
    UNIT_FAILS(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err), CMOE_ERR_FORMAT,
               "has 3 dimensions, want 2");
}

/* Row e r + p of A and column p E + e of B are of expert e, either way round. */
static void by_expert(void **state)
{
    (void)state;
    cmoe_adapter *a = NULL;
    put(STACKED, experts);
    for (int32_t layout = CMOE_PEFT_BEFORE_0_19; layout <= CMOE_PEFT_SINCE_0_19; layout++) {
        UNIT_OK(cmoe_adapter_open(&a, env.ctx, folder.path, layout, &err));
        const cmoei_lora_term *t = &a->terms[1]; /* down_proj is first by name */
        const float *fa = values, *fb = values + 17;
        assert_string_equal(t->module, "model.layers.0.mlp.experts.gate_up_proj");
        cmoei_lora_term o;
        const bool old = layout == CMOE_PEFT_BEFORE_0_19;
        UNIT_OK(cmoei_lora_orient(a, t, layout, E, old ? H : 2 * I, old ? 2 * I : H, &o, &err));
        for (int e = 0; e < E; e++)
            for (int p = 0; p < R; p++) {
                for (int k = 0; k < H; k++) {
                    const float x = fa[(e * R + p) * H + k];
                    assert_true((old ? o.b[(e * H + k) * R + p] : o.a[(e * R + p) * H + k]) == x);
                }
                for (int n = 0; n < 2 * I; n++) {
                    const float x = fb[n * R * E + p * E + e];
                    assert_true(
                        (old ? o.a[(e * R + p) * 2 * I + n] : o.b[(e * 2 * I + n) * R + p]) == x);
                }
            }
        UNIT_FAILS(cmoei_lora_orient(a, t, layout, E + 1, 2 * I, H, &o, &err), CMOE_ERR_FORMAT,
                   "the model has 5 experts of [12, 8]: an adapter for another model");
        cmoe_adapter_free(a);
    }
}

/* ---- places ---------------------------------------------------------------------------------- */

#define MODEL(hidden, inter, more)                                                                \
    "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 16, \"hidden_size\": " hidden                \
    ", \"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "        \
    "\"head_dim\": 4, \"intermediate_size\": 6, \"num_experts\": 4, \"num_experts_per_tok\": 2, " \
    "\"moe_intermediate_size\": " inter                                                           \
    ", \"max_position_embeddings\": 32, \"mlp_only_layers\": [1]" more "}"

static cmoei_decoder decoder_of(const char *text)
{
    cmoei_decoder d;
    UNIT_OK(cmoei_decoder_parse(&d, env.ctx, text, (int64_t)strlen(text), "config.json", &err));
    return d;
}

static void place(const char *model, const char *config, const pair *list, const char *text)
{
    cmoei_folds f;
    cmoei_decoder d = decoder_of(model);
    cmoe_adapter *a = opened(config, list);
    const cmoe_adapter *const all[] = {a};
    if (text)
        UNIT_FAILS(cmoei_folds_make(&f, env.ctx, &d, all, NULL, 1, &err),
                   strstr(text, "are taken") ? CMOE_ERR_UNSUPPORTED : CMOE_ERR_FORMAT, text);
    else
        UNIT_OK(cmoei_folds_make(&f, env.ctx, &d, all, NULL, 1, &err));
    if (!text) cmoei_folds_free(&f);
    cmoe_adapter_free(a);
    cmoei_decoder_close(&d, env.ctx);
}

static void one(const char *module, int64_t rows, int64_t cols, const char *text)
{
    char names[2][256];
    for (int i = 0; i < 2; i++)
        snprintf(names[i], sizeof names[i], "base_model.model.%s.lora_%c.weight", module, "AB"[i]);
    const pair list[] = {{names[0], R, cols}, {names[1], rows, R}, {NULL, 0, 0}};
    place(MODEL("8", "6", ""), CONFIG(""), list, text);
}

static void places(void **state)
{
    (void)state;
#define L0 "model.layers.0."
#define L1 "model.layers.1."
    one(L0 "self_attn.q_proj", 8, 8, NULL);
    one(L0 "self_attn.k_proj", 4, 8, NULL);
    one(L0 "mlp.gate", 4, 8, NULL);
    one(L0 "mlp.experts.3.up_proj", 6, 8, NULL);
    one(L0 "mlp.experts.0.w2", 8, 6, NULL);
    one(L1 "mlp.down_proj", 8, 6, NULL);
    one(L0 "self_attn.q_proj", 8, 7, "is for [8, 7], the model has [8, 8]: an adapter for another");
    one(L0 "self_attn.qproj", 8, 8, "is no module of this qwen3_moe");
    one("model.layers.2.self_attn.q_proj", 8, 8, "the model has 2 layers");
    one(L0 "mlp.experts.4.up_proj", 6, 8, "layer 0 has 4 experts");
    one(L1 "mlp.experts.0.up_proj", 6, 8, "layer 1 of this qwen3_moe has nothing of that name");
    one(L1 "mlp.gate", 4, 8, "layer 1 of this qwen3_moe has nothing of that name");
    one(L0 "mlp.up_proj", 6, 8, "layer 0 of this qwen3_moe has nothing of that name");
    one(L0 "mlp.experts.gate_up_proj", 12, 8, "has nothing of that name");
    one("model.embed_tokens", 16, 8, "terms are taken for");
    one("lm_head", 16, 8, "terms are taken for");
    one(L0 "input_layernorm", 8, 8, "terms are taken for");
}

static void layouts(void **state)
{
    (void)state;
    const char *unsaid =
        CONFIG(", \"target_parameters\": [\"gate_up_proj\", \"experts.down_proj\"]");
    const char *single = CONFIG(", \"target_parameters\": [\"experts.gate_up_proj\"]");
    const pair alone[] = {
        {EXPERTS "lora_A.weight", R * E, 8}, {EXPERTS "lora_B.weight", 8, R * E}, {NULL, 0, 0}};
    const pair old[] = {{EXPERTS "base_layer.lora_A.weight", R * E, 2 * I},
                        {EXPERTS "base_layer.lora_B.weight", H, R * E},
                        {EXPERTS "lora_A.weight", R * E, H},
                        {EXPERTS "lora_B.weight", I, R * E},
                        {NULL, 0, 0}};
    const pair mixed[] = {old[0], old[1], experts[2], experts[3], {NULL, 0, 0}};
    place(MODEL("8", "6", ""), unsaid, experts, NULL);
    place(MODEL("8", "6", ""), unsaid, old, NULL);
    place(MODEL("8", "6", ""), STACKED, old, "or of another layout of PEFT");
    place(MODEL("8", "6", ""), unsaid, mixed, "or of another layout of PEFT");
    place(MODEL("8", "4", ""), single, alone, "records no peft_version");
    place(MODEL("8", "6", ""), single, alone,
          "is for 4 experts of [8, 8], the model has 4 experts of [12, 8]");
}

/* Two terms of one weight; arguments of the caller; a scale of nothing leaves every bit. */
static void folds(void **state)
{
    (void)state;
    const pair twice[] = {experts[2],
                          experts[3],
                          {EXPERTS "1.down_proj.lora_A.weight", R, I},
                          {EXPERTS "1.down_proj.lora_B.weight", H, R},
                          {NULL, 0, 0}};
    const char *down =
        CONFIG(", \"target_parameters\": [\"experts.down_proj\"], \"peft_version\": \"0.20.0\"");
    place(MODEL("8", "6", ""), down, twice, "are terms of one weight");

    cmoei_folds f;
    cmoei_decoder d = decoder_of(MODEL("8", "6", ""));
    cmoe_adapter *a = opened(STACKED, experts);
    const cmoe_adapter *const all[] = {a, NULL};
    const float bad[] = {NAN}, none[] = {0}, half[] = {0.5f};
    UNIT_FAILS(cmoei_folds_make(&f, env.ctx, &d, all, NULL, -1, &err), CMOE_ERR_RANGE,
               "adapter_count = -1");
    UNIT_FAILS(cmoei_folds_make(&f, env.ctx, &d, NULL, NULL, 1, &err), CMOE_ERR_ARG,
               "adapters is NULL");
    UNIT_FAILS(cmoei_folds_make(&f, env.ctx, &d, all, NULL, 2, &err), CMOE_ERR_ARG,
               "adapters[1] is NULL");
    UNIT_FAILS(cmoei_folds_make(&f, env.ctx, &d, all, bad, 1, &err), CMOE_ERR_RANGE,
               "adapter_scales[0]");

    float row[H] = {-0.0f, 0, 1, -0.0f, 2, 3, -0.0f, 5}, same[H];
    memcpy(same, row, sizeof row);
    UNIT_OK(cmoei_folds_make(&f, env.ctx, &d, all, none, 1, &err));
    cmoei_fold_row(&f, 0, CMOEI_EXPERT_UP, 2, 5, row);
    assert_memory_equal(row, same, sizeof row);
    cmoei_folds_free(&f);

    UNIT_OK(cmoei_folds_make(&f, env.ctx, &d, all, half, 1, &err));
    assert_true(cmoei_folds_touch(&f, 0, CMOEI_EXPERT_GATE) && !cmoei_folds_touch(&f, 0, CMOEI_Q) &&
                !cmoei_folds_touch(&f, 1, CMOEI_EXPERT_GATE) &&
                !cmoei_folds_touch(&f, -1, CMOEI_HEAD));
    cmoei_fold_row(&f, 0, CMOEI_EXPERT_UP, 2, 5, row);
    for (int k = 0; k < H; k++) {
        double want = same[k];
        for (int p = 0; p < R; p++) /* scale 4 / 2, halved */
            want += (double)values[17 + (I + 5) * R * E + p * E + 2] * values[(2 * R + p) * H + k];
        assert_true(fabs(row[k] - want) < 1e-5);
    }
    cmoei_folds_free(&f);
    cmoe_adapter_free(a);
    cmoei_decoder_close(&d, env.ctx);
}

/* ---- writing --------------------------------------------------------------------------------- */

static void writing(void **state)
{
    (void)state;
    cmoei_lora_term t = {.module = "model.layers.0.mlp.experts.up",
                         .experts = E,
                         .stacked = true,
                         .rank = R,
                         .inputs = H,
                         .outputs = I,
                         .scale = 1,
                         .a = values,
                         .b = values};
    cmoei_peft_write_options o = {folder.path, NULL, R, 2, false, false};
    UNIT_FAILS(cmoei_peft_write(env.ctx, &o, &t, 0, &err), CMOE_ERR_ARG, "without terms");
    UNIT_FAILS(cmoei_peft_write(env.ctx, &o, &t, 1, &err), CMOE_ERR_ARG,
               "is not gate_up_proj or down_proj");
    t.stacked = false;
    UNIT_FAILS(cmoei_peft_write(env.ctx, &o, &t, 1, &err), CMOE_ERR_ARG, "4 experts, want 1");
    t.experts = 1;
    t.scale = INFINITY;
    UNIT_FAILS(cmoei_peft_write(env.ctx, &o, &t, 1, &err), CMOE_ERR_ARG, "sizes, factors or scale");
    t.scale = 1;
    o.rank = 0;
    UNIT_FAILS(cmoei_peft_write(env.ctx, &o, &t, 1, &err), CMOE_ERR_RANGE, "rank = 0");
    o.rank = 1;
    o.dir = "not-there";
    UNIT_FAILS(cmoei_peft_write(env.ctx, &o, &t, 1, &err), CMOE_ERR_IO, "not-there");
    /* Another rank and scale than the options say: patterns, and the same terms again. */
    o.dir = folder.path;
    cmoe_adapter *a = NULL;
    UNIT_OK(cmoei_peft_write(env.ctx, &o, &t, 1, &err));
    UNIT_OK(cmoe_adapter_open(&a, env.ctx, folder.path, 0, &err));
    assert_int_equal(a->count, 1);
    assert_int_equal(a->terms[0].rank, R);
    assert_true(a->terms[0].scale == 1);
    assert_memory_equal(a->terms[0].b, values, I * R * 4);
    cmoe_adapter_free(a);
}

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct failing {
    int64_t left, held;
} failing;

static void *fail_alloc(void *user, size_t bytes, size_t align)
{
    failing *f = user;
    if (f->left-- <= 0) return NULL;
    f->held++;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void fail_free(void *user, void *ptr, size_t bytes)
{
    failing *f = user;
    (void)bytes;
    f->held -= ptr != NULL;
    free(ptr);
}

/* Opens, folds and writes with room for so many allocations; what is left behind is counted. */
static cmoe_status with_memory(failing *f, int64_t allocations, cmoe_error *why)
{
    cmoe_ctx_options o;
    cmoe_ctx *ctx = NULL;
    cmoe_adapter *a = NULL;
    cmoei_folds folds;
    cmoei_decoder d = decoder_of(MODEL("8", "6", ""));
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    o.allocator = (cmoe_allocator){f, fail_alloc, fail_free};
    f->left = 1000;
    UNIT_OK(cmoe_ctx_create(&ctx, &o, &err));
    const int64_t before = f->held;
    f->left = allocations;
    cmoe_status status = cmoe_adapter_open(&a, ctx, folder.path, 0, why);
    if (status == CMOE_OK) {
        const cmoe_adapter *const all[] = {a};
        const cmoei_peft_write_options w = {.dir = folder.path, .rank = R, .alpha = 4};
        status = cmoei_folds_make(&folds, ctx, &d, all, NULL, 1, why);
        if (status == CMOE_OK) cmoei_folds_free(&folds);
        if (status == CMOE_OK) status = cmoei_peft_write(ctx, &w, a->terms, a->count, why);
    }
    cmoe_adapter_free(a);
    assert_int_equal(f->held, before);
    cmoe_ctx_free(ctx);
    cmoei_decoder_close(&d, env.ctx);
    return status;
}

static void memory(void **state)
{
    (void)state;
    failing f = {0};
    int64_t n = 0;
    cmoe_status status = CMOE_ERR_MEMORY;
    put(CONFIG(", \"target_parameters\": [\"experts.gate_up_proj\", \"experts.down_proj\"], "
               "\"rank_pattern\": {\"x\": 1}"),
        experts);
    for (; status != CMOE_OK && n < 100; n++) {
        cmoe_error err = {0};
        status = with_memory(&f, n, &err);
        if (status != CMOE_OK && status != CMOE_ERR_MEMORY) fail_msg("%s", err.text);
    }
    assert_true(n > 8 && n < 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(arguments, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(missing_files, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(described, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(configs, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(scaling, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(versions, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(tensors, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(formats, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(by_expert, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(places, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(layouts, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(folds, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(writing, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(memory, open_folder, close_folder),
    };
    env = unit_open(1);
    const int status = UNIT_RUN("lora", tests);
    unit_close(&env);
    return status;
}
