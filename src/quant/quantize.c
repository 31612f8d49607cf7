/* SPDX-License-Identifier: MIT
 *
 * quantize.c - rule B5 for one row: the table of kernels and what stands between their two passes.
 */
#include "quant/quantize.h"

#include <string.h>

#define ROW(isa)                                             \
    uint32_t cmoei_largest_##isa(const float *x, int64_t n); \
    void cmoei_to_int8_##isa(const float *x, int64_t n, float factor, int8_t *q)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_quantize_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_largest_avx512, cmoei_to_int8_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_largest_avx2, cmoei_to_int8_avx2},
#endif
    {{"ref", 0, 0}, cmoei_largest_ref, cmoei_to_int8_ref},
};
const cmoei_table cmoei_quantize_table = CMOEI_TABLE("quantize_rows", kernels);

const cmoei_quantize_kernel *cmoei_quantize_pick(uint32_t features)
{
    return cmoei_table_pick(&cmoei_quantize_table, features, 0);
}

float cmoei_quantize_factor(uint32_t largest, float *scale)
{
    const float magnitude = cmoei_float(largest);
    if (largest >= 0x7f800000u) {
        *scale = magnitude;
        return 0;
    }
    const float factor = 127.0f / (magnitude > 1e-4f ? magnitude : 1e-4f);
    *scale = 1.0f / factor;
    return factor;
}

float cmoei_quantize_row(const cmoei_quantize_kernel *kernel, const float *x, int64_t n, int8_t *q)
{
    float scale;
    const float factor = cmoei_quantize_factor(kernel->largest(x, n), &scale);
    if (factor > 0)
        kernel->to_int8(x, n, factor, q);
    else if (n > 0)
        memset(q, 0, (size_t)n);
    return scale;
}
