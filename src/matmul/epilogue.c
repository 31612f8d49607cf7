/* SPDX-License-Identifier: MIT
 *
 * epilogue.c - the list of epilogues, and the names of activations.
 */
#include "epilogue.h"

#include "cmoe/matmul.h"

static const cmoei_epilogue_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_activate_avx512, cmoei_finish_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_activate_avx2, cmoei_finish_avx2},
#endif
    {{"ref", 0, 0}, cmoei_activate_ref, cmoei_finish_ref},
};

const cmoei_table cmoei_epilogue_table = CMOEI_TABLE("epilogue", kernels);

static const char *const activations[] = {
    [CMOE_ACT_SILU] = "silu",
    [CMOE_ACT_GELU_TANH] = "gelu_tanh",
    [CMOE_ACT_SWIGLU_OSS] = "swiglu_oss",
    [CMOE_ACT_RELU2] = "relu2",
};

const char *cmoe_activation_name(int32_t activation)
{
    return activation >= 0 && activation < CMOEI_COUNT(activations) ? activations[activation]
                                                                    : NULL;
}

int32_t cmoe_activation_parse(const char *name)
{
    return cmoei_name_find(activations, (int32_t)CMOEI_COUNT(activations), name);
}
