/* SPDX-License-Identifier: MIT
 *
 * list.c - every architecture there is.
 */
#include "archs.h"

const cmoei_arch *const cmoei_archs[] = {
    &cmoei_arch_qwen3_moe,
    &cmoei_arch_qwen2_moe,
    &cmoei_arch_olmoe,
    &cmoei_arch_flex_olmo,
    &cmoei_arch_mixtral,
    &cmoei_arch_phimoe,
    &cmoei_arch_granitemoe,
    &cmoei_arch_minimax_m2,
    &cmoei_arch_glm4_moe,
    &cmoei_arch_dots1,
    &cmoei_arch_ernie4_5_moe,
    &cmoei_arch_hunyuan_v1_moe,
    &cmoei_arch_gpt_oss,
    &cmoei_arch_sdar_moe,
    &cmoei_arch_sdar,
    &cmoei_arch_qwen3,
    &cmoei_arch_qwen2,
    &cmoei_arch_llama,
    NULL,
};
