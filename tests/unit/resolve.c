/* SPDX-License-Identifier: MIT
 *
 * resolve.c - tensors of files into the places of a model: every layout that is met, value by value,
 * and every text about files that do not fit.
 *
 * A model's tensors are made up from what its decoder wants, spoiled, written, and resolved.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* mkdtemp, strdup */
#endif
#include "models/resolve.h"

#include <unistd.h>

#include "models/config.h"
#include "unit.h"

enum { MOST = 512 };

static unit_env env;
static char folder[] = "cmoe_resolve_XXXXXX";
static char path[64];

/* ---- a model's files --------------------------------------------------------------------------- */

typedef struct net {
    cmoei_decoder d;
    cmoe_view views[MOST];
    int64_t count;
    cmoe_checkpoint *files;
} net;

/* Values 0, 1, 2, ... from `first` on, which every format up to 16 bits is spared. */
static cmoe_view *add(net *n, const char *name, int32_t dtype, int32_t rank, const int64_t *dims)
{
    int64_t count = 1;
    for (int32_t i = 0; i < rank; i++)
        count *= dims[i];
    char *data = calloc((size_t)count, (size_t)cmoe_dtype_bytes(dtype));
    for (int64_t i = 0; i < count; i++) {
        const float value = (float)(i + n->count);
        if (cmoe_dtype_bytes(dtype) > 1)
            cmoei_store_f32(data + i * cmoe_dtype_bytes(dtype), dtype, 1, &value, 1);
        else
            data[i] = (char)((i * 37 + n->count) % 120); /* no NaN of f8, no infinite scale */
    }
    assert_true(n->count < MOST);
    cmoe_view *v = &n->views[n->count++];
    *v = cmoe_view_make(data, dtype, rank, dims);
    v->name = strdup(name);
    return v;
}

static cmoe_view *find(net *n, const char *name)
{
    for (int64_t i = 0; i < n->count; i++)
        if (strcmp(n->views[i].name, name) == 0) return &n->views[i];
    fail_msg("%s is not in the net", name);
    return NULL;
}

static void drop(net *n, const char *name)
{
    cmoe_view *v = find(n, name);
    free((void *)(uintptr_t)v->data);
    free((void *)(uintptr_t)v->name);
    *v = n->views[--n->count];
}

/* Drops every tensor whose name has this in it. */
static void drop_all(net *n, const char *part)
{
    for (int64_t i = n->count - 1; i >= 0; i--)
        if (strstr(n->views[i].name, part)) drop(n, n->views[i].name);
}

static void add_role(net *n, int64_t layer, int role, int64_t expert)
{
    int64_t dims[2];
    char name[CMOEI_NAME];
    const cmoei_match m = {.role = (cmoei_role)role, .layer = layer, .expert = expert};
    if (!cmoei_role_shape(&n->d, layer, m.role, dims) || !cmoei_match_fill(&n->d, &m, name)) return;
    const bool vector = dims[0] == 1 && role != CMOEI_SHARED_WEIGHT;
    add(n, name, CMOE_F32, vector ? 1 : 2, vector ? dims + 1 : dims);
}

/* All tensors that the architecture has one by one. */
static void build(net *n, const char *type, const char *more)
{
    char text[2048];
    memset(n, 0, sizeof *n);
    snprintf(text, sizeof text,
             "{\"model_type\": \"%s\", \"vocab_size\": 20, \"hidden_size\": 64,"
             "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
             "\"max_position_embeddings\": 32, \"intermediate_size\": 32, \"num_experts\": 3,"
             "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 32%s}",
             type, more);
    UNIT_OK(cmoei_decoder_parse(&n->d, env.ctx, text, (int64_t)strlen(text), "config.json", &err));
    for (int role = 0; role < CMOEI_GLOBAL_ROLES; role++)
        add_role(n, -1, role, -1);
    for (int64_t l = 0; l < n->d.layers; l++) {
        for (int role = CMOEI_GLOBAL_ROLES; role < CMOEI_LAYER_ROLES; role++)
            add_role(n, l, role, -1);
        for (int64_t e = 0; e < n->d.layer[l].experts; e++)
            for (int role = CMOEI_LAYER_ROLES; role < CMOEI_ROLES; role++)
                add_role(n, l, role, e);
    }
}

static void demolish(net *n)
{
    for (int64_t i = 0; i < n->count; i++) {
        free((void *)(uintptr_t)n->views[i].data);
        free((void *)(uintptr_t)n->views[i].name);
    }
    cmoe_checkpoint_free(n->files);
    cmoei_decoder_close(&n->d, env.ctx);
    unlink(path);
}

static cmoe_status resolve(net *n, cmoei_tensors *t, cmoe_error *why)
{
    UNIT_OK(cmoe_safetensors_write(path, n->views, n->count, NULL, &err));
    cmoe_checkpoint_free(n->files);
    n->files = NULL;
    UNIT_OK(cmoe_checkpoint_open(&n->files, env.ctx, path, &err));
    return cmoei_tensors_resolve(t, env.ctx, &n->d, n->files, why);
}

static cmoei_tensors resolved(net *n)
{
    cmoei_tensors t;
    UNIT_OK(resolve(n, &t, &err));
    assert_int_equal(t.used + t.ignored, n->count);
    return t;
}

static void refused(net *n, const char *text)
{
    cmoei_tensors t;
    UNIT_FAILS(resolve(n, &t, &err), CMOE_ERR_FORMAT, text);
    assert_null(t.layer);
    demolish(n);
}

/* ---- values ------------------------------------------------------------------------------------ */

static float at(const cmoei_source *s, int64_t i, int64_t k)
{
    static float row[256];
    assert_true(s->data != NULL && s->cols <= 256 && i < s->rows);
    cmoei_source_row(s, i, row);
    return row[k];
}

/* Element of a float32 tensor as it lies in the file. */
static float flat(net *n, const char *name, int64_t i)
{
    float value;
    memcpy(&value, (const char *)find(n, name)->data + i * 4, sizeof value);
    return value;
}

static int64_t byte_of(const cmoe_view *v, int64_t i)
{
    return ((const unsigned char *)v->data)[i];
}

/* ---- layouts ----------------------------------------------------------------------------------- */

static void one_by_one(void **state)
{
    static net n;
    (void)state;
    build(&n, "mixtral", "");
    cmoei_tensors t = resolved(&n);
    const cmoei_source *w3 = cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_UP, 2);
    const char *name = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
    assert_int_equal(w3->rows, 32);
    assert_int_equal(w3->cols, 64);
    assert_float_equal(at(w3, 5, 7), flat(&n, name, 5 * 64 + 7), 0);
    const cmoei_source *norm = cmoei_tensor_of(&t, 1, CMOEI_NORM2);
    assert_int_equal(norm->rows, 1);
    assert_float_equal(at(norm, 0, 63),
                       flat(&n, "model.layers.1.post_attention_layernorm.weight", 63), 0);
    assert_float_equal(at(&t.global[CMOEI_HEAD], 19, 1), flat(&n, "lm_head.weight", 19 * 64 + 1),
                       0);
    assert_null(cmoei_tensor_of(&t, 0, CMOEI_Q_BIAS)->data);
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

/* Every architecture, as it is when nothing is fused. */
static void all_architectures(void **state)
{
    static const char *const more[][2] = {
        {"qwen3_moe", ", \"attention_bias\": true, \"mlp_only_layers\": [0]"},
        {"qwen2_moe", ", \"shared_expert_intermediate_size\": 16"},
        {"olmoe", ""},
        {"flex_olmo", ""},
        {"phimoe", ", \"attention_bias\": true, \"lm_head_bias\": true"},
        {"minimax_m2", ""},
        {"glm4_moe", ", \"use_qk_norm\": true, \"attention_bias\": true"},
        {"dots1", ", \"n_shared_experts\": 2"},
        {"ernie4_5_moe", ", \"use_bias\": true"},
        {"hunyuan_v1_moe", ""},
        {"sdar_moe", ", \"mask_token_id\": 1"},
        {"sdar", ", \"mask_token_id\": 1"},
        {"qwen3", ", \"tie_word_embeddings\": true"},
        {"qwen2", ""},
        {"llama", ", \"mlp_bias\": true"},
    };
    (void)state;
    for (int64_t i = 0; i < CMOEI_COUNT(more); i++) {
        static net n;
        build(&n, more[i][0], more[i][1]);
        cmoei_tensors t = resolved(&n);
        assert_int_equal(t.ignored, 0);
        cmoei_tensors_free(&t, env.ctx);
        demolish(&n);
    }
}

static void formats(void **state)
{
    static net n;
    (void)state;
    build(&n, "llama", "");
    const int64_t dims[2] = {64, 64}, row[2] = {1, 64};
    drop(&n, "model.layers.0.self_attn.q_proj.weight");
    drop(&n, "model.layers.0.self_attn.o_proj.weight");
    drop(&n, "model.norm.weight");
    add(&n, "model.layers.0.self_attn.q_proj.weight", CMOE_BF16, 2, dims);
    add(&n, "model.layers.0.self_attn.o_proj.weight", CMOE_F16, 2, dims);
    add(&n, "model.norm.weight", CMOE_F32, 2, row); /* a vector as one row */
    cmoei_tensors t = resolved(&n);
    assert_int_equal(cmoei_tensor_of(&t, 0, CMOEI_Q)->dtype, CMOE_BF16);
    assert_int_equal(cmoei_tensor_of(&t, 0, CMOEI_O)->dtype, CMOE_F16);
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

static void fused(void **state)
{
    static net n;
    const int64_t gate_up[3] = {3, 64, 64}, down[3] = {3, 64, 32};
    const char *const names[][2] = {
        {"granitemoe", "model.layers.%d.block_sparse_moe.%s_linear.weight"},
        {"qwen3_moe", "model.layers.%d.mlp.experts.%s_proj"},
    };
    (void)state;
    for (int which = 0; which < 2; which++) {
        char in[2][128], out[2][128];
        build(&n, names[which][0], "");
        drop_all(&n, ".experts.");
        for (int l = 0; l < 2; l++) {
            snprintf(in[l], 128, names[which][1], l, which ? "gate_up" : "input");
            snprintf(out[l], 128, names[which][1], l, which ? "down" : "output");
            add(&n, in[l], CMOE_F32, 3, gate_up);
            add(&n, out[l], CMOE_F32, 3, down);
        }
        cmoei_tensors t = resolved(&n);
        for (int64_t e = 0; e < 3; e++) {
            const int64_t i = 31, k = 17;
            assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_GATE, e), i, k),
                               flat(&n, in[1], (e * 64 + i) * 64 + k), 0);
            assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_UP, e), i, k),
                               flat(&n, in[1], (e * 64 + 32 + i) * 64 + k), 0);
            assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_DOWN, e), i, k),
                               flat(&n, out[1], (e * 64 + i) * 32 + k), 0);
        }
        cmoei_tensors_free(&t, env.ctx);
        demolish(&n);
    }
}

#define GPT     ", \"sliding_window\": 4, \"rope_scaling\": {\"type\": \"default\"}"
#define EXPERTS "model.layers.%d.mlp.experts."

static void build_gpt_oss(net *n, bool packed)
{
    const int64_t gate_up[3] = {3, 64, 64}, down[3] = {3, 32, 64}, up_bias[2] = {3, 64};
    const int64_t up_blocks[4] = {3, 64, 2, 16}, down_blocks[4] = {3, 64, 1, 16};
    char name[128];
    build(n, "gpt_oss", GPT);
    for (int l = 0; l < 2; l++) {
#define NAME(tail) (snprintf(name, sizeof name, EXPERTS tail, l), name)
        add(n, NAME("gate_up_proj_bias"), CMOE_F32, 2, up_bias);
        add(n, NAME("down_proj_bias"), CMOE_F32, 2, up_bias);
        if (packed) {
            add(n, NAME("gate_up_proj_blocks"), CMOE_U8, 4, up_blocks);
            add(n, NAME("gate_up_proj_scales"), CMOE_U8, 3, up_blocks);
            add(n, NAME("down_proj_blocks"), CMOE_U8, 4, down_blocks);
            add(n, NAME("down_proj_scales"), CMOE_U8, 3, down_blocks);
        } else {
            add(n, NAME("gate_up_proj"), CMOE_F32, 3, gate_up);
            add(n, NAME("down_proj"), CMOE_F32, 3, down);
        }
#undef NAME
    }
}

static void transposed_interleaved(void **state)
{
    static net n;
    const char *in = "model.layers.1.mlp.experts.gate_up_proj",
               *out = "model.layers.1.mlp.experts.down_proj";
    (void)state;
    build_gpt_oss(&n, false);
    cmoei_tensors t = resolved(&n);
    for (int64_t e = 0; e < 3; e++) {
        const int64_t i = 30, k = 17;
        assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_GATE, e), i, k),
                           flat(&n, in, (e * 64 + k) * 64 + 2 * i), 0);
        assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_UP, e), i, k),
                           flat(&n, in, (e * 64 + k) * 64 + 2 * i + 1), 0);
        assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_DOWN, e), i, k),
                           flat(&n, out, (e * 32 + k) * 64 + i), 0);
        assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_GATE_BIAS, e), 0, i),
                           flat(&n, "model.layers.1.mlp.experts.gate_up_proj_bias", e * 64 + 2 * i),
                           0);
        assert_float_equal(
            at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_UP_BIAS, e), 0, i),
            flat(&n, "model.layers.1.mlp.experts.gate_up_proj_bias", e * 64 + 2 * i + 1), 0);
        assert_float_equal(at(cmoei_tensor_of_expert(&t, 1, CMOEI_EXPERT_DOWN_BIAS, e), 0, i),
                           flat(&n, "model.layers.1.mlp.experts.down_proj_bias", e * 64 + i), 0);
    }
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

/* Value (row, k) of expert e in a packed tensor of `rows` rows and `cols` columns. */
static float packed_at(const cmoe_view *blocks, const cmoe_view *scales, int64_t row, int64_t cols,
                       int64_t k)
{
    const int64_t byte = byte_of(blocks, row * (cols / 2) + k / 2);
    const int64_t scale = byte_of(scales, row * (cols / 32) + k / 32);
    return cmoei_e2m1_to_f32((uint8_t)(k % 2 ? byte >> 4 : byte & 15)) *
           cmoei_f8e8m0_to_f32((uint8_t)scale);
}

static void mxfp4(void **state)
{
    static net n;
    (void)state;
    build_gpt_oss(&n, true);
    cmoei_tensors t = resolved(&n);
    const cmoe_view *in = find(&n, "model.layers.0.mlp.experts.gate_up_proj_blocks");
    const cmoe_view *in_scales = find(&n, "model.layers.0.mlp.experts.gate_up_proj_scales");
    const cmoe_view *out = find(&n, "model.layers.0.mlp.experts.down_proj_blocks");
    const cmoe_view *out_scales = find(&n, "model.layers.0.mlp.experts.down_proj_scales");
    for (int64_t e = 0; e < 3; e++) {
        for (int64_t i = 0; i < 32; i += 7) {
            for (int64_t k = 0; k < 64; k += 5) {
                const int64_t row = e * 64 + 2 * i;
                assert_float_equal(at(cmoei_tensor_of_expert(&t, 0, CMOEI_EXPERT_GATE, e), i, k),
                                   packed_at(in, in_scales, row, 64, k), 0);
                assert_float_equal(at(cmoei_tensor_of_expert(&t, 0, CMOEI_EXPERT_UP, e), i, k),
                                   packed_at(in, in_scales, row + 1, 64, k), 0);
            }
            assert_float_equal(at(cmoei_tensor_of_expert(&t, 0, CMOEI_EXPERT_DOWN, e), i, i),
                               packed_at(out, out_scales, e * 64 + i, 32, i), 0);
        }
    }
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

#define F8 ", \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [24, 40]}"

static float f8_at(const cmoe_view *w, const cmoe_view *scales, int64_t row, int64_t k)
{
    float scale;
    memcpy(&scale, (const char *)scales->data + ((row / 24) * 2 + k / 40) * 4, sizeof scale);
    return cmoei_f8e4m3_to_f32((uint8_t)byte_of(w, row * 64 + k)) * scale;
}

/* Blocks of 24 x 40 fit into nothing here: edges are partial, and gate ends inside a block. */
static void f8(void **state)
{
    static net n;
    const char *name = "model.layers.0.self_attn.q_proj.weight";
    const char *scale = "model.layers.0.self_attn.q_proj.weight_scale_inv";
    const int64_t dims[2] = {64, 64}, blocks[2] = {3, 2};
    (void)state;
    build(&n, "qwen3_moe", F8);
    drop(&n, name);
    add(&n, name, CMOE_F8E4M3, 2, dims);
    add(&n, scale, CMOE_F32, 2, blocks);
    cmoei_tensors t = resolved(&n);
    const cmoei_source *q = cmoei_tensor_of(&t, 0, CMOEI_Q);
    for (int64_t i = 0; i < 64; i += 9)
        for (int64_t k = 0; k < 64; k += 13)
            assert_float_equal(at(q, i, k), f8_at(find(&n, name), find(&n, scale), i, k), 0);
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

static void f8_fused(void **state)
{
    static net n;
    const char *name = "model.layers.0.mlp.experts.gate_up_proj";
    const char *scale = "model.layers.0.mlp.experts.gate_up_proj_scale_inv";
    const int64_t dims[3] = {3, 64, 64}, blocks[3] = {3, 3, 2};
    (void)state;
    build(&n, "qwen3_moe", F8);
    drop_all(&n, "layers.0.mlp.experts.0.gate");
    drop_all(&n, "layers.0.mlp.experts.1.gate");
    drop_all(&n, "layers.0.mlp.experts.2.gate");
    drop_all(&n, "layers.0.mlp.experts.0.up");
    drop_all(&n, "layers.0.mlp.experts.1.up");
    drop_all(&n, "layers.0.mlp.experts.2.up");
    add(&n, name, CMOE_F8E4M3, 3, dims);
    add(&n, scale, CMOE_F32, 3, blocks);
    cmoei_tensors t = resolved(&n);
    cmoe_view w = *find(&n, name), s = *find(&n, scale);
    for (int64_t e = 0; e < 3; e++) {
        for (int64_t i = 0; i < 32; i += 5) {
            assert_float_equal(at(cmoei_tensor_of_expert(&t, 0, CMOEI_EXPERT_GATE, e), i, 50),
                               f8_at(&w, &s, i, 50), 0);
            assert_float_equal(at(cmoei_tensor_of_expert(&t, 0, CMOEI_EXPERT_UP, e), i, 50),
                               f8_at(&w, &s, 32 + i, 50), 0);
        }
        w.data = (const char *)w.data + 64 * 64;
        s.data = (const char *)s.data + 3 * 2 * 4;
    }
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

/* ---- what is ignored --------------------------------------------------------------------------- */

static void ignored(void **state)
{
    static const char *const names[] = {"model.layers.0.self_attn.rotary_emb.inv_freq",
                                        "model.layers.2.eh_proj.weight",
                                        "model.layers.2.self_attn.q_proj.weight",
                                        "model.layers.61.shared_head.norm.weight",
                                        "model.layers.2.mlp.experts.0.up_proj.weight",
                                        "mtp.fc.weight",
                                        "model.mtp_block.0.norm.weight",
                                        "model.visual.patch_embed.weight",
                                        "lm_head.weight",
                                        "rotary.rotary_emb.inv_freq"};
    static net n;
    const int64_t dims[1] = {3};
    (void)state;
    build(&n, "glm4_moe", ", \"tie_word_embeddings\": true");
    for (int64_t i = 0; i < CMOEI_COUNT(names); i++)
        add(&n, names[i], CMOE_F32, 1, dims);
    add(&n, "model.layers.2.x.weight", CMOE_F8E4M3, 1, dims);
    add(&n, "model.layers.2.x.weight_scale_inv", CMOE_F32, 1, dims);
    cmoei_tensors t = resolved(&n);
    assert_int_equal(t.ignored, CMOEI_COUNT(names) + 2);
    cmoei_tensors_free(&t, env.ctx);
    demolish(&n);
}

/* ---- errors ------------------------------------------------------------------------------------ */

static void missing(void **state)
{
    static net n;
    (void)state;
    build(&n, "qwen3_moe", "");
    drop(&n, "model.layers.1.mlp.experts.2.up_proj.weight");
    refused(&n, "tensors that this qwen3_moe needs are missing: "
                "model.layers.1.mlp.experts.2.up_proj.weight");
    build(&n, "qwen3_moe", "");
    drop_all(&n, ".experts.");
    refused(&n, "missing: model.layers.0.mlp.experts.0.gate_proj.weight, "
                "model.layers.0.mlp.experts.0.up_proj.weight, "
                "model.layers.0.mlp.experts.0.down_proj.weight and 15 more");
    build(&n, "qwen3_moe", "");
    drop(&n, "lm_head.weight");
    refused(&n, "missing: lm_head.weight");
    build(&n, "glm4_moe", "");
    drop(&n, "model.layers.1.mlp.gate.e_score_correction_bias");
    refused(&n, "missing: model.layers.1.mlp.gate.e_score_correction_bias");
    build_gpt_oss(&n, true);
    drop_all(&n, "layers.1.mlp.experts.");
    refused(&n, "missing: model.layers.1.mlp.experts.gate_up_proj, "
                "model.layers.1.mlp.experts.down_proj, "
                "model.layers.1.mlp.experts.gate_up_proj_bias, "
                "model.layers.1.mlp.experts.down_proj_bias");
}

static void unknown(void **state)
{
    static const char *const names[] = {
        "model.foo.bar",
        "model.layers.0.self_attn.q_proj.bias",        /* known, but this model has none */
        "model.layers.1.mlp.experts.3.up_proj.weight", /* there are 3 */
        "model.layers.01.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate_proj.weight", /* not a dense layer */
        "model.layers..x",
        "lm_head.weight.x",
        "x_scale_inv"};
    static net n;
    const int64_t dims[1] = {3};
    (void)state;
    for (int64_t i = 0; i < CMOEI_COUNT(names); i++) {
        char text[128];
        build(&n, "qwen3_moe", "");
        add(&n, names[i], CMOE_F32, 1, dims);
        snprintf(text, sizeof text, "tensors that this qwen3_moe does not have: %s", names[i]);
        refused(&n, text);
    }
    build(&n, "qwen3_moe", "");
    for (int i = 0; i < 20; i++) {
        char name[32];
        snprintf(name, sizeof name, "foo.bar.%02d%s", i, i ? "" : "\xc3\xbc");
        add(&n, name, CMOE_F32, 1, dims);
    }
    drop(&n, "model.norm.weight");
    refused(&n, "does not have: foo.bar.00??, foo.bar.01, ");
    build(&n, "qwen3_moe", "");
    add(&n, "foo.bar", CMOE_F32, 1, dims);
    drop(&n, "model.norm.weight");
    refused(&n, "does not have: foo.bar; and missing: model.norm.weight");
}

static void twice(void **state)
{
    static net n;
    const int64_t down[3] = {3, 64, 32};
    (void)state;
    build(&n, "qwen3_moe", "");
    add(&n, "model.layers.0.mlp.experts.down_proj", CMOE_F32, 3, down);
    refused(&n, "another tensor already holds a part of this one");
}

static void respelled(const char *name, int32_t dtype, int32_t rank, const int64_t *dims,
                      const char *text)
{
    static net n;
    build(&n, "qwen3_moe", "");
    drop(&n, name);
    add(&n, name, dtype, rank, dims);
    refused(&n, text);
}

static void shapes(void **state)
{
    const int64_t turned[2] = {32, 64}, cube[3] = {64, 64, 1}, one[2] = {1, 64}, many[2] = {64, 1};
    (void)state;
    respelled("model.layers.0.mlp.experts.0.down_proj.weight", CMOE_F32, 2, turned,
              ": model.layers.0.mlp.experts.0.down_proj.weight has shape [32, 64], want [64, 32]");
    respelled("model.layers.0.self_attn.q_proj.weight", CMOE_F32, 3, cube,
              "has shape [64, 64, 1], want [64, 64]");
    respelled("model.norm.weight", CMOE_F32, 1, turned, "has shape [32], want [64]");
    respelled("model.norm.weight", CMOE_F32, 2, many, "has shape [64, 1], want [1, 64]");
    respelled("lm_head.weight", CMOE_F32, 2, one, "has shape [1, 64], want [20, 64]");
}

static void dtypes(void **state)
{
    static net n;
    const int64_t q[2] = {64, 64}, norm[1] = {64}, blocks[2] = {1, 1}, wrong[2] = {2, 1};
    const char *name = "model.layers.0.self_attn.q_proj.weight";
    const char *scale = "model.layers.0.self_attn.q_proj.weight_scale_inv";
    (void)state;
    respelled(name, CMOE_I32, 2, q,
              "q_proj.weight has the format I32, want F32, F16 or BF16, or "
              "F8_E4M3 with scales");
    respelled("model.norm.weight", CMOE_F8E4M3, 1, norm,
              "model.norm.weight has the format F8_E4M3, want F32, F16 or BF16");
    respelled(name, CMOE_F8E4M3, 2, q,
              "q_proj.weight is there without model.layers.0.self_attn.q_"
              "proj.weight_scale_inv");
    build(&n, "qwen3_moe", "");
    add(&n, scale, CMOE_F32, 2, blocks);
    refused(&n, "q_proj.weight_scale_inv belongs to F8_E4M3, but model.layers.0.self_attn.q_proj."
                "weight has the format f32");
    build(&n, "qwen3_moe", "");
    drop(&n, name);
    add(&n, scale, CMOE_F32, 2, blocks);
    refused(&n, "q_proj.weight_scale_inv is there without model.layers.0.self_attn.q_proj.weight");
    build(&n, "qwen3_moe", "");
    drop(&n, name);
    add(&n, name, CMOE_F8E4M3, 2, q);
    add(&n, scale, CMOE_F32, 2, wrong);
    refused(&n, "q_proj.weight_scale_inv has shape [2, 1], want [1, 1]");
    /* Rows of the embedding are looked up as they are stored, without scales. */
    const int64_t table[2] = {20, 64};
    build(&n, "qwen3_moe", "");
    drop(&n, "model.embed_tokens.weight");
    add(&n, "model.embed_tokens.weight", CMOE_F8E4M3, 2, table);
    add(&n, "model.embed_tokens.weight_scale_inv", CMOE_F32, 2, blocks);
    refused(&n, "model.embed_tokens.weight has the format F8_E4M3, want F32, F16 or BF16");
}

static void packed_errors(void **state)
{
    static net n;
    const int64_t short_blocks[4] = {3, 64, 2, 8}, short_scales[3] = {3, 64, 1};
    const char *blocks = "model.layers.1.mlp.experts.gate_up_proj_blocks";
    const char *scales = "model.layers.1.mlp.experts.gate_up_proj_scales";
    (void)state;
    build_gpt_oss(&n, true);
    drop(&n, scales);
    refused(&n, "gate_up_proj_blocks is there without model.layers.1.mlp.experts.gate_up_proj_");
    build_gpt_oss(&n, true);
    drop(&n, blocks);
    refused(&n, "gate_up_proj_scales is there without model.layers.1.mlp.experts.gate_up_proj_");
    build_gpt_oss(&n, true);
    drop(&n, blocks);
    add(&n, blocks, CMOE_U8, 4, short_blocks);
    refused(&n, "has shape [3, 64, 2, 8], want [3, 64, 2, 16]");
    build_gpt_oss(&n, true);
    drop(&n, scales);
    add(&n, scales, CMOE_U8, 3, short_scales);
    refused(&n, "gate_up_proj_scales has shape [3, 64, 1], want [3, 64, 2]");
    build_gpt_oss(&n, true);
    drop(&n, scales);
    add(&n, scales, CMOE_BF16, 3, (const int64_t[]){3, 64, 2});
    refused(&n, "gate_up_proj_scales has the format bf16, want U8 or F8_E8M0");
    build_gpt_oss(&n, true);
    add(&n, "model.layers.1.mlp.experts.gate_up_proj", CMOE_F32, 3, (const int64_t[]){3, 64, 64});
    refused(&n, "another tensor already holds a part of this one");
}

/* A table for 65 million experts is not made for a file of a few kilobytes. */
static void implausible(void **state)
{
    static net n;
    (void)state;
    build(&n, "llama", "");
    cmoei_layer_shape *l = n.d.layer;
    for (int i = 0; i < 2; i++)
        l[i] = (cmoei_layer_shape){.experts = CMOEI_MOST_EXPERTS, .topk = 1, .inter = 1 << 20};
    refused(&n, "the experts of config.json need at least");
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_by_one),
        cmocka_unit_test(all_architectures),
        cmocka_unit_test(formats),
        cmocka_unit_test(fused),
        cmocka_unit_test(mxfp4),
        cmocka_unit_test(transposed_interleaved),
        cmocka_unit_test(f8),
        cmocka_unit_test(f8_fused),
        cmocka_unit_test(ignored),
        cmocka_unit_test(missing),
        cmocka_unit_test(unknown),
        cmocka_unit_test(twice),
        cmocka_unit_test(shapes),
        cmocka_unit_test(dtypes),
        cmocka_unit_test(packed_errors),
        cmocka_unit_test(implausible),
    };
    env = unit_open(1);
    const int failed =
        unit_report("resolve", cmocka_run_group_tests_name("resolve", tests, set_up, tear_down),
                    (int)CMOEI_COUNT(tests));
    unit_close(&env);
    return failed;
}
