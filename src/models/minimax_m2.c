/* SPDX-License-Identifier: MIT
 *
 * minimax_m2.c - MiniMax-M2, M2.1.
 *
 * q and k are normed over the whole projection; the first rotary_dim dimensions of a head turn.
 * Sigmoid router whose choice has a bias of its own, which lies on the block and not on the gate;
 * weights are divided by their plain sum.  Published in f8 with block scales.  attn_type_list,
 * shared_intermediate_size and num_mtp_modules have no effect.
 */
#include <string.h>

#include "archs.h"
#include "text.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    const char *norm = cmoei_config_text(c, "qk_norm_type", "per_layer");
    if (strcmp(norm, "per_layer") != 0) {
        char clean[64];
        cmoei_text_clean(clean, sizeof clean, norm);
        cmoei_config_fail(c, CMOE_ERR_UNSUPPORTED, "qk_norm_type = \"%s\", want per_layer", clean);
    }
    if (cmoei_config_bool(c, "use_qk_norm", true)) d->qk_norm = CMOEI_QK_FULL;
    cmoei_config_rope(c, d, 5e6, 1);
    cmoei_config_experts(c, d, "intermediate_size");
    d->route.scoring = CMOE_SCORE_SIGMOID;
    d->route.eps_rule = CMOE_EPS_NONE;
    d->choice_bias = true;
}

static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.block_sparse_moe.e_score_correction_bias", CMOEI_CHOICE_BIAS, 0},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {cmoei_names_common, cmoei_names_block_sparse, own,
                                                 NULL};

const cmoei_arch cmoei_arch_minimax_m2 = {"minimax_m2", read, names};
