/* SPDX-License-Identifier: MIT
 *
 * llama.c - Llama 2, 3 and the many that share its form: the skeleton without anything added.
 * Biases are switches that published files leave off.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    cmoei_config_attention_bias(c, d, false);
    d->mlp_bias = cmoei_config_bool(c, "mlp_bias", false);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_mlp, NULL};

const cmoei_arch cmoei_arch_llama = {"llama", read, names};
