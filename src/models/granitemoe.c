/* SPDX-License-Identifier: MIT
 *
 * granitemoe.c - Granite 3 MoE.
 *
 * Four multipliers: of embeddings, of attention scores (instead of head_dim^-1/2), of both residual
 * branches, and a divisor of logits.  The router takes the best logits first and softmax over those.
 * Experts lie fused in one tensor, gate rows first.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    const double least = 1e-6, most = 1e6;
    d->embedding_scale = (float)cmoei_config_real(c, "embedding_multiplier", least, most, 1);
    d->attention_scale = (float)cmoei_config_real(c, "attention_multiplier", least, most, 1);
    d->residual_scale = (float)cmoei_config_real(c, "residual_multiplier", least, most, 1);
    d->logits_scale = (float)(1 / cmoei_config_real(c, "logits_scaling", least, most, 1));
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "intermediate_size");
    d->route.scoring = CMOE_SCORE_LOGITS;
}

static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.block_sparse_moe.router.layer.weight", CMOEI_ROUTER, 0},
    {"model.layers.{l}.block_sparse_moe.input_linear.weight", CMOEI_FUSED_GATE_UP, 0},
    {"model.layers.{l}.block_sparse_moe.output_linear.weight", CMOEI_FUSED_DOWN, 0},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {cmoei_names_common, own, NULL};

const cmoei_arch cmoei_arch_granitemoe = {"granitemoe", read, names};
