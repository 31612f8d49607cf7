/* SPDX-License-Identifier: MIT
 *
 * quantize_ref.c - rule B5 as it reads.
 */
#include "core/real.h"
#include "quant/quantize.h"

uint32_t CMOEI_REF(cmoei_largest)(const float *x, int64_t n);
void CMOEI_REF(cmoei_to_int8)(const float *x, int64_t n, cmoei_real factor, int8_t *q);

uint32_t CMOEI_REF(cmoei_largest)(const float *x, int64_t n)
{
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = CMOEI_MAX(largest, cmoei_bits(x[i]) & 0x7fffffffu);
    return largest;
}

void CMOEI_REF(cmoei_to_int8)(const float *x, int64_t n, cmoei_real factor, int8_t *q)
{
    for (int64_t i = 0; i < n; i++)
        q[i] = (int8_t)nearbyint(x[i] * factor);
}
