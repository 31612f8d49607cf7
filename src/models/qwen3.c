/* SPDX-License-Identifier: MIT
 *
 * qwen3.c - dense Qwen3: the attention of Qwen3-MoE and one MLP.  Small ones are tied.
 */
#include "archs.h"

void cmoei_qwen3_read(cmoei_config *c, cmoei_decoder *d)
{
    d->qk_norm = CMOEI_QK_HEAD;
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_window_from(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_qwen3 = {"qwen3", cmoei_qwen3_read, names};
