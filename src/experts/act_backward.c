/* SPDX-License-Identifier: MIT
 *
 * act_backward.c - the list of kernels.
 */
#include "act_backward.h"

static const cmoei_act_backward_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_act_backward_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_act_backward_avx2},
#endif
    {{"ref", 0, 0}, cmoei_act_backward_ref},
};

const cmoei_table cmoei_act_backward_table = CMOEI_TABLE("experts_act_backward", kernels);
