/* SPDX-License-Identifier: MIT
 *
 * names.c - names of tensors that most files share.
 *
 * Biases and norms are listed whether or not a model has them: a tensor whose role the decoder does
 * not want is reported like one that nobody knows.
 */
#include "config.h"

#define LAYER "model.layers.{l}."

const cmoei_tensor_name cmoei_names_common[] = {
    {"model.embed_tokens.weight", CMOEI_EMBEDDING, 0},
    {"model.norm.weight", CMOEI_FINAL_NORM, 0},
    {"model.norm.bias", CMOEI_FINAL_NORM_BIAS, 0},
    {"lm_head.weight", CMOEI_HEAD, 0},
    {"lm_head.bias", CMOEI_HEAD_BIAS, 0},

    {LAYER "input_layernorm.weight", CMOEI_NORM1, 0},
    {LAYER "input_layernorm.bias", CMOEI_NORM1_BIAS, 0},
    {LAYER "post_attention_layernorm.weight", CMOEI_NORM2, 0},
    {LAYER "post_attention_layernorm.bias", CMOEI_NORM2_BIAS, 0},
    {LAYER "self_attn.q_proj.weight", CMOEI_Q, 0},
    {LAYER "self_attn.k_proj.weight", CMOEI_K, 0},
    {LAYER "self_attn.v_proj.weight", CMOEI_V, 0},
    {LAYER "self_attn.o_proj.weight", CMOEI_O, 0},
    {LAYER "self_attn.q_proj.bias", CMOEI_Q_BIAS, 0},
    {LAYER "self_attn.k_proj.bias", CMOEI_K_BIAS, 0},
    {LAYER "self_attn.v_proj.bias", CMOEI_V_BIAS, 0},
    {LAYER "self_attn.o_proj.bias", CMOEI_O_BIAS, 0},
    {LAYER "self_attn.q_norm.weight", CMOEI_Q_NORM, 0},
    {LAYER "self_attn.k_norm.weight", CMOEI_K_NORM, 0},

    {"{*}.rotary_emb.inv_freq", CMOEI_IGNORED, 0}, /* recomputed */
    {LAYER "{*}", CMOEI_IGNORED, 0}, /* {l} of an ignored name: layers behind the last, for
                                        predicting several tokens */
    {"mtp.{*}", CMOEI_IGNORED, 0},   /* the same, other spellings */
    {"model.mtp_{*}", CMOEI_IGNORED, 0},
    {"model.visual.{*}", CMOEI_IGNORED, 0},
    {NULL, CMOEI_IGNORED, 0},
};

const cmoei_tensor_name cmoei_names_mlp[] = {
    {LAYER "mlp.gate_proj.weight", CMOEI_GATE, 0},
    {LAYER "mlp.up_proj.weight", CMOEI_UP, 0},
    {LAYER "mlp.down_proj.weight", CMOEI_DOWN, 0},
    {LAYER "mlp.gate_proj.bias", CMOEI_GATE_BIAS, 0},
    {LAYER "mlp.up_proj.bias", CMOEI_UP_BIAS, 0},
    {LAYER "mlp.down_proj.bias", CMOEI_DOWN_BIAS, 0},
    {NULL, CMOEI_IGNORED, 0},
};

const cmoei_tensor_name cmoei_names_experts[] = {
    {LAYER "mlp.experts.{e}.gate_proj.weight", CMOEI_EXPERT_GATE, 0},
    {LAYER "mlp.experts.{e}.up_proj.weight", CMOEI_EXPERT_UP, 0},
    {LAYER "mlp.experts.{e}.down_proj.weight", CMOEI_EXPERT_DOWN, 0},
    {LAYER "mlp.experts.{e}.gate_proj.bias", CMOEI_EXPERT_GATE_BIAS, 0},
    {LAYER "mlp.experts.{e}.up_proj.bias", CMOEI_EXPERT_UP_BIAS, 0},
    {LAYER "mlp.experts.{e}.down_proj.bias", CMOEI_EXPERT_DOWN_BIAS, 0},
    {LAYER "mlp.gate.weight", CMOEI_ROUTER, 0},
    {LAYER "mlp.gate.e_score_correction_bias", CMOEI_CHOICE_BIAS, 0},
    {LAYER "mlp.experts.gate_up_proj", CMOEI_FUSED_GATE_UP, 0},
    {LAYER "mlp.experts.down_proj", CMOEI_FUSED_DOWN, 0},
    {NULL, CMOEI_IGNORED, 0},
};

const cmoei_tensor_name cmoei_names_block_sparse[] = {
    {LAYER "block_sparse_moe.experts.{e}.w1.weight", CMOEI_EXPERT_GATE, 0},
    {LAYER "block_sparse_moe.experts.{e}.w3.weight", CMOEI_EXPERT_UP, 0},
    {LAYER "block_sparse_moe.experts.{e}.w2.weight", CMOEI_EXPERT_DOWN, 0},
    {LAYER "block_sparse_moe.gate.weight", CMOEI_ROUTER, 0},
    {NULL, CMOEI_IGNORED, 0},
};

const cmoei_tensor_name cmoei_names_shared_experts[] = {
    {LAYER "mlp.shared_experts.gate_proj.weight", CMOEI_SHARED_GATE, 0},
    {LAYER "mlp.shared_experts.up_proj.weight", CMOEI_SHARED_UP, 0},
    {LAYER "mlp.shared_experts.down_proj.weight", CMOEI_SHARED_DOWN, 0},
    {LAYER "mlp.shared_experts.gate_proj.bias", CMOEI_SHARED_GATE_BIAS, 0},
    {LAYER "mlp.shared_experts.up_proj.bias", CMOEI_SHARED_UP_BIAS, 0},
    {LAYER "mlp.shared_experts.down_proj.bias", CMOEI_SHARED_DOWN_BIAS, 0},
    {NULL, CMOEI_IGNORED, 0},
};
