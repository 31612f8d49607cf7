/* SPDX-License-Identifier: MIT
 *
 * flex_olmo.c - FlexOlmo.
 *
 * OLMoE with its norms behind attention and experts instead of before them:
 * h += norm(attention(h)); h += norm(experts(h)).
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    d->qk_norm = CMOEI_QK_FULL;
    d->post_norm = true;
    cmoei_config_rope(c, d, 5e5, 1);
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "intermediate_size");
    cmoei_config_softmax(c, d, false);
}

/* Before the common names: post_attention_layernorm is the first norm here. */
static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.post_attention_layernorm.weight", CMOEI_NORM1, 0},
    {"model.layers.{l}.post_feedforward_layernorm.weight", CMOEI_NORM2, 0},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {own, cmoei_names_common, cmoei_names_experts,
                                                 NULL};

const cmoei_arch cmoei_arch_flex_olmo = {"flex_olmo", read, names};
