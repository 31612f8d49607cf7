/* SPDX-License-Identifier: MIT
 *
 * phimoe.c - Phi-3.5-MoE.
 *
 * LayerNorm with a bias everywhere; biases on q, k, v, o and on the head.  The router is a
 * sparsemixer: two rounds of argmax, each weight a softmax over what comes near enough to its
 * maximum, and the two are not divided by their sum.  Noise on its input is for training only.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    cmoei_config_rope(c, d, 1e6, 1);
    d->layer_norm = true;
    d->head_bias = cmoei_config_bool(c, "lm_head_bias", false);
    cmoei_config_eps(c, d, 1e-5);
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "intermediate_size");
    cmoei_config_window(c, d);
    d->route.scoring = CMOE_SCORE_SPARSEMIXER;
    d->route.renormalize = CMOE_RENORM_NONE;
    d->route.jitter = (float)cmoei_config_real(c, "router_jitter_noise", 0, 1, 0.01);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_block_sparse,
                                                 NULL};

const cmoei_arch cmoei_arch_phimoe = {"phimoe", read, names};
