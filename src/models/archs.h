/* SPDX-License-Identifier: MIT
 *
 * archs.h - the architectures, one file each, and what some of them take from others.
 */
#ifndef CMOE_MODELS_ARCHS_H
#define CMOE_MODELS_ARCHS_H

#include "config.h"

extern const cmoei_arch cmoei_arch_qwen3_moe, cmoei_arch_qwen2_moe, cmoei_arch_olmoe,
    cmoei_arch_flex_olmo, cmoei_arch_mixtral, cmoei_arch_phimoe, cmoei_arch_granitemoe,
    cmoei_arch_minimax_m2, cmoei_arch_glm4_moe, cmoei_arch_dots1, cmoei_arch_ernie4_5_moe,
    cmoei_arch_hunyuan_v1_moe, cmoei_arch_gpt_oss, cmoei_arch_sdar, cmoei_arch_sdar_moe,
    cmoei_arch_qwen3, cmoei_arch_qwen2, cmoei_arch_llama;

/* qwen3.c, qwen3_moe.c: the networks under sdar and sdar_moe. */
void cmoei_qwen3_read(cmoei_config *c, cmoei_decoder *d);
void cmoei_qwen3_moe_read(cmoei_config *c, cmoei_decoder *d);
/* sdar.c: block-causal attention and the mask token. */
void cmoei_sdar_blocks(cmoei_config *c, cmoei_decoder *d);

#endif
