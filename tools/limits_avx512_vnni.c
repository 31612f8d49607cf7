/* SPDX-License-Identifier: MIT
 *
 * limits_avx512_vnni.c - peak of vpdpbusd: 64 int8 products, added by fours, in one instruction.
 */
#include <immintrin.h>

#include "limits.h"

double limits_int8_avx512_vnni(int64_t rounds)
{
    __m512i x = _mm512_set1_epi8(1);
    LIMITS_KEEP_ZMM(x);
#define START(i) __m512i sum##i = _mm512_setzero_si512();
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                                 \
    sum##i = _mm512_dpbusd_epi32(sum##i, x, x); \
    LIMITS_KEEP_ZMM(sum##i);
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 64 * 2;
}
