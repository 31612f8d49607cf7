/* SPDX-License-Identifier: MIT
 *
 * limits_avx512_bf16.c - peak of vdpbf16ps: 32 bf16 products, added by twos, in one instruction.
 *
 * Twice the rate of float multiply-adds on some CPUs, half of it on others; the limit of bf16 is
 * the better of the two.
 */
#include <immintrin.h>

#include "limits.h"

double limits_bf16_avx512_bf16(int64_t rounds)
{
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
    LIMITS_KEEP_ZMM(x);
#define START(i) __m512 sum##i = _mm512_setzero_ps();
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                              \
    sum##i = _mm512_dpbf16_ps(sum##i, x, x); \
    LIMITS_KEEP_ZMM(sum##i);
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 32 * 2;
}
