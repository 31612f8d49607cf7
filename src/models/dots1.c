/* SPDX-License-Identifier: MIT
 *
 * dots1.c - dots.llm1.
 *
 * Qwen3's attention with GLM's router and shared experts.  scoring_func says "noaux_tc" in its
 * files and is ignored; attention is full unless layer_types says otherwise.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    d->qk_norm = CMOEI_QK_HEAD;
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "moe_intermediate_size");
    cmoei_config_sigmoid_groups(c, d);
    cmoei_config_shared(c, d, "n_shared_experts", 0);
    cmoei_config_dense_first(c, d,
                             cmoei_config_int(c, "first_k_dense_replace", 0, CMOEI_MOST_LAYERS, 0));
    if (cmoei_config_has(c, "layer_types")) cmoei_config_window(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_experts,
                                                 cmoei_names_shared_experts, cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_dots1 = {"dots1", read, names};
