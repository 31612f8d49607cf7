/* SPDX-License-Identifier: MIT
 *
 * glm4_moe.c - GLM-4.5, 4.6, 4.7 and their Air versions.
 *
 * Half of a head turns.  attention_bias puts biases on q, k and v, never on o; the norms of q and k
 * are a switch.  The first layers are dense.  DeepSeek's router, and shared experts of
 * n_shared_experts widths that are added as they are.  Files hold one layer more than the config
 * counts, for predicting several tokens: ignored.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    cmoei_config_eps(c, d, 1e-5);
    cmoei_config_rope(c, d, 10000, 0.5);
    d->qkv_bias = cmoei_config_bool(c, "attention_bias", false);
    if (cmoei_config_bool(c, "use_qk_norm", false)) d->qk_norm = CMOEI_QK_HEAD;
    cmoei_config_experts(c, d, "moe_intermediate_size");
    cmoei_config_sigmoid_groups(c, d);
    cmoei_config_shared(c, d, "n_shared_experts", 1);
    cmoei_config_dense_first(c, d,
                             cmoei_config_int(c, "first_k_dense_replace", 0, CMOEI_MOST_LAYERS, 1));
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_experts,
                                                 cmoei_names_shared_experts, cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_glm4_moe = {"glm4_moe", read, names};
