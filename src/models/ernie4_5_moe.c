/* SPDX-License-Identifier: MIT
 *
 * ernie4_5_moe.c - ERNIE 4.5 21B-A3B, 300B-A47B.
 *
 * Pairs that turn lie next to each other (interleaved).  Softmax scores, a bias for the choice, and
 * a floor under the sum that the weights are divided by.  use_bias puts biases on every linear of
 * attention and MLPs, experts included.  Experts in every moe_layer_interval-th layer from
 * moe_layer_start_index to moe_layer_end_index.  Tied unless the file says otherwise.
 */
#include "archs.h"

static void set_dense(cmoei_config *c, cmoei_decoder *d)
{
    const int64_t most = CMOEI_MOST_LAYERS;
    const int64_t step = cmoei_config_int(c, "moe_layer_interval", 1, most, 1);
    const int64_t first = cmoei_config_int(c, "moe_layer_start_index", 0, most, 1);
    const int64_t end = cmoei_config_int(c, "moe_layer_end_index", -1, most, -1);
    const int64_t last = end < 0 ? d->layers - 1 : end;
    for (int64_t i = 0; i < d->layers; i++)
        if (i < first || i > last || (i + 1) % step != 0) cmoei_layer_dense(c, d, i);
}

static void read(cmoei_config *c, cmoei_decoder *d)
{
    cmoei_config_eps(c, d, 1e-5);
    cmoei_config_rope(c, d, 5e5, 1);
    d->rope_interleaved = true;
    d->tied = cmoei_config_bool(c, "tie_word_embeddings", true);
    d->qkv_bias = d->o_bias = d->mlp_bias = cmoei_config_bool(c, "use_bias", false);
    cmoei_config_experts(c, d, "moe_intermediate_size");
    cmoei_config_shared(c, d, "moe_num_shared_experts", 2);
    set_dense(c, d);
    d->choice_bias = true;
    d->route.eps_rule = CMOE_EPS_MAX;
    d->route.eps = (float)cmoei_config_real(c, "moe_norm_min", 0, 1, 1e-12);
}

static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.mlp.moe_statics.e_score_correction_bias", CMOEI_CHOICE_BIAS, 0},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {
    cmoei_names_common, own, cmoei_names_experts, cmoei_names_shared_experts, cmoei_names_mlp, NULL,
};

const cmoei_arch cmoei_arch_ernie4_5_moe = {"ernie4_5_moe", read, names};
