/* SPDX-License-Identifier: MIT
 *
 * qwen3_moe.c - Qwen3-30B-A3B, 235B-A22B, Coder.
 *
 * q and k are RMS-normed per head before they turn.  head_dim is a key of its own and not
 * hidden / heads, so q is not square.  Softmax over all experts; the chosen weights are divided by
 * their sum only with norm_topk_prob, which published files set and the class does not.  A window
 * needs use_sliding_window, and then every layer has it.
 */
#include "archs.h"

void cmoei_qwen3_moe_read(cmoei_config *c, cmoei_decoder *d)
{
    d->qk_norm = CMOEI_QK_HEAD;
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "moe_intermediate_size");
    cmoei_config_sparse_step(c, d);
    cmoei_config_softmax(c, d, false);
    if (cmoei_config_bool(c, "use_sliding_window", false)) cmoei_config_window(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_experts,
                                                 cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_qwen3_moe = {"qwen3_moe", cmoei_qwen3_moe_read, names};
