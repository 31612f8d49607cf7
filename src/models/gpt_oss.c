/* SPDX-License-Identifier: MIT
 *
 * gpt_oss.c - gpt-oss-20b, 120b.
 *
 * Every second layer sees a window only, beginning with the first.  Each head has a sink: a logit
 * that takes part in the softmax and adds no value.  Biases on q, k, v, o, on the router and in the
 * experts, whose gate and up are clamped: g * sigmoid(1.702 g) * (u + 1).  The router takes the best
 * logits first and softmax over those.
 *
 * Experts lie fused with gate and up alternating: transposed [E, hidden, 2I] in bf16, or packed as
 * mxfp4 [E, 2I, hidden / 32, 16] with one power of two for 32 values.  The biases are the same.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    d->sinks = d->router_bias = d->expert_bias = true;
    cmoei_config_eps(c, d, 1e-5);
    if (!cmoei_config_has(c, "rope_scaling|rope_parameters")) /* the class would scale by 32 */
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "rope_scaling is missing (or rope_parameters)");
    cmoei_config_rope(c, d, 150000, 1);
    cmoei_config_attention_bias(c, d, true);
    cmoei_config_experts(c, d, "intermediate_size");
    if (!cmoei_config_has(c, "sliding_window"))
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "sliding_window is missing");
    cmoei_config_window(c, d);
    for (int64_t i = 1; i < d->layers && !cmoei_config_has(c, "layer_types"); i += 2)
        d->layer[i].window = 0;
    d->route.scoring = CMOE_SCORE_LOGITS;
    d->activation = CMOE_ACT_SWIGLU_OSS;
    d->swiglu_limit = (float)cmoei_config_real(c, "swiglu_limit", 1e-3, 1e6, 7);
    d->swiglu_alpha = (float)cmoei_config_real(c, "swiglu_alpha", 1e-3, 1e6, 1.702);
}

#define EXPERTS "model.layers.{l}.mlp.experts."
static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.self_attn.sinks", CMOEI_SINKS, 0},
    {"model.layers.{l}.mlp.router.weight", CMOEI_ROUTER, 0},
    {"model.layers.{l}.mlp.router.bias", CMOEI_ROUTER_BIAS, 0},
    {EXPERTS "gate_up_proj", CMOEI_FUSED_GATE_UP, CMOEI_TRANSPOSED | CMOEI_INTERLEAVED},
    {EXPERTS "down_proj", CMOEI_FUSED_DOWN, CMOEI_TRANSPOSED},
    {EXPERTS "gate_up_proj_bias", CMOEI_FUSED_GATE_UP_BIAS, CMOEI_INTERLEAVED},
    {EXPERTS "down_proj_bias", CMOEI_FUSED_DOWN_BIAS, 0},
    {EXPERTS "gate_up_proj_blocks", CMOEI_FUSED_GATE_UP, CMOEI_BLOCKS | CMOEI_INTERLEAVED},
    {EXPERTS "gate_up_proj_scales", CMOEI_FUSED_GATE_UP, CMOEI_SCALES | CMOEI_INTERLEAVED},
    {EXPERTS "down_proj_blocks", CMOEI_FUSED_DOWN, CMOEI_BLOCKS},
    {EXPERTS "down_proj_scales", CMOEI_FUSED_DOWN, CMOEI_SCALES},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {cmoei_names_common, own, NULL};

const cmoei_arch cmoei_arch_gpt_oss = {"gpt_oss", read, names};
