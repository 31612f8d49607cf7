/* SPDX-License-Identifier: MIT
 *
 * mixtral.c - Mixtral 8x7B, 8x22B.
 *
 * The plain case: no biases, no norms of q and k, experts in every layer, chosen weights always
 * divided by their sum.  Its own names: w1 is gate, w3 up and w2 down.  sliding_window, where it is
 * not null, holds for all layers.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    cmoei_config_eps(c, d, 1e-5);
    cmoei_config_rope(c, d, 1e6, 1);
    cmoei_config_experts(c, d, "intermediate_size");
    cmoei_config_window(c, d);
}

static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_block_sparse,
                                                 NULL};

const cmoei_arch cmoei_arch_mixtral = {"mixtral", read, names};
