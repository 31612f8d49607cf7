/* SPDX-License-Identifier: MIT
 *
 * limits_avx2.c - peaks of AVX2: float multiply-add, and int8 by maddubs + madd + add, three
 * instructions for 32 products, which is what a CPU without VNNI can do.
 */
#include <immintrin.h>

#include "limits.h"

double limits_f32_avx2(int64_t rounds)
{
    __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
    LIMITS_KEEP(x);
    LIMITS_KEEP(y);
#define START(i) __m256 sum##i = x;
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                             \
    sum##i = _mm256_fmadd_ps(x, y, sum##i); \
    LIMITS_KEEP(sum##i);
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 8 * 2;
}

double limits_int8_avx2(int64_t rounds)
{
    __m256i x = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    LIMITS_KEEP(x);
    LIMITS_KEEP(ones);
#define START(i) __m256i sum##i = _mm256_setzero_si256();
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                                                            \
    {                                                                      \
        __m256i pairs = _mm256_maddubs_epi16(x, x);                        \
        LIMITS_KEEP(pairs); /* else it would be computed once for all */   \
        sum##i = _mm256_add_epi32(sum##i, _mm256_madd_epi16(pairs, ones)); \
        LIMITS_KEEP(sum##i);                                               \
    }
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 32 * 2;
}

/* Two streams of prefetches ahead of four sums: the loads alone do not keep enough lines in
 * flight. */
uint64_t limits_read_avx2(const void *data, size_t bytes)
{
    enum { AHEAD = 2048 };
    const char *p = data;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 128) {
        _mm_prefetch(p + i + AHEAD, _MM_HINT_T0);
        _mm_prefetch(p + i + AHEAD + 64, _MM_HINT_T0);
        a = _mm256_xor_si256(a, _mm256_load_si256((const void *)(p + i)));
        b = _mm256_xor_si256(b, _mm256_load_si256((const void *)(p + i + 32)));
        c = _mm256_xor_si256(c, _mm256_load_si256((const void *)(p + i + 64)));
        d = _mm256_xor_si256(d, _mm256_load_si256((const void *)(p + i + 96)));
    }
    uint64_t sum[4];
    _mm256_storeu_si256((void *)sum,
                        _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)));
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}
