/* SPDX-License-Identifier: MIT
 *
 * qwen2.c - dense Qwen2 and Qwen2.5: biases on q, k and v, none on o, no norms of q and k.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    d->qkv_bias = true;
    cmoei_config_window_from(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_qwen2 = {"qwen2", read, names};
