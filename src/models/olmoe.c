/* SPDX-License-Identifier: MIT
 *
 * olmoe.c - OLMoE-1B-7B.
 *
 * q and k are RMS-normed over the whole projection, before it is split into heads; then q, k and v
 * are clipped to +-clip_qkv where that is given.  Every layer has experts, of width
 * intermediate_size; their weights do not sum to 1.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    d->qk_norm = CMOEI_QK_FULL;
    d->clip_qkv = (float)cmoei_config_real(c, "clip_qkv", 1e-6, 1e6, 0);
    cmoei_config_eps(c, d, 1e-5);
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "intermediate_size");
    cmoei_config_softmax(c, d, false);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_experts, NULL};

const cmoei_arch cmoei_arch_olmoe = {"olmoe", read, names};
