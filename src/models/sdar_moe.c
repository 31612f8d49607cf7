/* SPDX-License-Identifier: MIT
 *
 * sdar_moe.c - SDAR-30B-A3B: a Qwen3-MoE that writes blocks by diffusion.
 *
 * Its own readers renormalise when norm_topk_prob is absent, and read a file that names no number of
 * experts as a dense model.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    if (cmoei_config_has(c, "num_experts|n_routed_experts|num_local_experts|moe_num_experts"))
        cmoei_qwen3_moe_read(c, d);
    else
        cmoei_qwen3_read(c, d);
    cmoei_config_softmax(c, d, true);
    cmoei_sdar_blocks(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_experts,
                                                 cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_sdar_moe = {"sdar_moe", read, names};
