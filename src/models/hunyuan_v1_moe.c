/* SPDX-License-Identifier: MIT
 *
 * hunyuan_v1_moe.c - Hunyuan-A13B.
 *
 * q and k are normed per head after they have turned.  Top-k and the number of shared experts may be
 * lists with an entry for each layer; the width of experts is intermediate_size.  Its "dynamic"
 * rotary scaling has an alpha and does not depend on the length.  The router is stored as float32.
 */
#include "archs.h"

static void read(cmoei_config *c, cmoei_decoder *d)
{
    if (cmoei_config_bool(c, "use_cla", false))
        cmoei_config_fail(c, CMOE_ERR_UNSUPPORTED,
                          "use_cla = true: attention shared by layers is not known here");
    cmoei_config_eps(c, d, 1e-5);
    if (cmoei_config_bool(c, "use_qk_norm", true)) d->qk_norm = CMOEI_QK_HEAD;
    d->qk_norm_after_rope = true;
    cmoei_config_attention_bias(c, d, false);
    cmoei_config_experts(c, d, "intermediate_size");
    cmoei_config_shared(c, d, "num_shared_expert", 1);
}

static const cmoei_tensor_name own[] = {
    {"model.layers.{l}.self_attn.query_layernorm.weight", CMOEI_Q_NORM, 0},
    {"model.layers.{l}.self_attn.key_layernorm.weight", CMOEI_K_NORM, 0},
    {"model.layers.{l}.mlp.gate.wg.weight", CMOEI_ROUTER, 0},
    {"model.layers.{l}.mlp.shared_mlp.gate_proj.weight", CMOEI_SHARED_GATE, 0},
    {"model.layers.{l}.mlp.shared_mlp.up_proj.weight", CMOEI_SHARED_UP, 0},
    {"model.layers.{l}.mlp.shared_mlp.down_proj.weight", CMOEI_SHARED_DOWN, 0},
    {NULL, CMOEI_IGNORED, 0},
};
static const cmoei_tensor_name *const names[] = {own, cmoei_names_common, cmoei_names_experts,
                                                 NULL};

const cmoei_arch cmoei_arch_hunyuan_v1_moe = {"hunyuan_v1_moe", read, names};
