/* SPDX-License-Identifier: MIT
 *
 * qwen2_moe.c - Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B.
 *
 * Biases on q, k and v, none on o.  Beside the routed experts one shared expert sees every token,
 * weighted by a sigmoid of its own.  Where the window is switched on, it holds for layers 0, 2, 4,
 * ... below max_window_layers.
 */
#include "archs.h"

static void set_window(cmoei_config *c, cmoei_decoder *d)
{
    const int64_t end = cmoei_config_int(c, "max_window_layers", 0, INT32_MAX, 28);
    if (!cmoei_config_bool(c, "use_sliding_window", false)) return;
    cmoei_config_window(c, d);
    if (cmoei_config_has(c, "layer_types")) return;
    for (int64_t i = 0; i < d->layers; i++)
        if (i % 2 == 1 || i >= end) d->layer[i].window = 0;
}

static void read(cmoei_config *c, cmoei_decoder *d)
{
    d->qkv_bias = cmoei_config_bool(c, "qkv_bias", true);
    d->shared_gate = true;
    cmoei_config_experts(c, d, "moe_intermediate_size");
    const int64_t shared =
        cmoei_config_int(c, "shared_expert_intermediate_size", 1, CMOEI_MOST_WIDTH, CMOEI_REQUIRED);
    for (int64_t i = 0; i < d->layers; i++)
        d->layer[i].shared_inter = shared;
    cmoei_config_sparse_step(c, d);
    cmoei_config_softmax(c, d, false);
    set_window(c, d);
}

static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.mlp.shared_expert.gate_proj.weight", CMOEI_SHARED_GATE, 0},
    {"model.layers.{l}.mlp.shared_expert.up_proj.weight", CMOEI_SHARED_UP, 0},
    {"model.layers.{l}.mlp.shared_expert.down_proj.weight", CMOEI_SHARED_DOWN, 0},
    {"model.layers.{l}.mlp.shared_expert_gate.weight", CMOEI_SHARED_WEIGHT, 0},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_experts, own,
                                                 cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_qwen2_moe = {"qwen2_moe", read, names};
