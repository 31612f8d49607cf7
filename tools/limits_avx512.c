/* SPDX-License-Identifier: MIT
 *
 * limits_avx512.c - peaks of AVX-512: float multiply-add, and int8 without VNNI.
 */
#include <immintrin.h>

#include "limits.h"

double limits_f32_avx512(int64_t rounds)
{
    __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
    LIMITS_KEEP_ZMM(x);
    LIMITS_KEEP_ZMM(y);
#define START(i) __m512 sum##i = x;
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                             \
    sum##i = _mm512_fmadd_ps(x, y, sum##i); \
    LIMITS_KEEP_ZMM(sum##i);
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 16 * 2;
}

double limits_int8_avx512(int64_t rounds)
{
    __m512i x = _mm512_set1_epi8(1), ones = _mm512_set1_epi16(1);
    LIMITS_KEEP_ZMM(x);
    LIMITS_KEEP_ZMM(ones);
#define START(i) __m512i sum##i = _mm512_setzero_si512();
    LIMITS_CHAINS(START)
#undef START
    for (int64_t r = 0; r < rounds; r++) {
#define STEP(i)                                                            \
    {                                                                      \
        __m512i pairs = _mm512_maddubs_epi16(x, x);                        \
        LIMITS_KEEP_ZMM(pairs);                                            \
        sum##i = _mm512_add_epi32(sum##i, _mm512_madd_epi16(pairs, ones)); \
        LIMITS_KEEP_ZMM(sum##i);                                           \
    }
        LIMITS_CHAINS(STEP)
#undef STEP
    }
    return (double)rounds * LIMITS_CHAIN_COUNT * 64 * 2;
}

uint64_t limits_read_avx512(const void *data, size_t bytes)
{
    enum { AHEAD = 4096 };
    const char *p = data;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 256) {
        for (size_t line = 0; line < 256; line += 64)
            _mm_prefetch(p + i + AHEAD + line, _MM_HINT_T0);
        a = _mm512_xor_si512(a, _mm512_load_si512(p + i));
        b = _mm512_xor_si512(b, _mm512_load_si512(p + i + 64));
        c = _mm512_xor_si512(c, _mm512_load_si512(p + i + 128));
        d = _mm512_xor_si512(d, _mm512_load_si512(p + i + 192));
    }
    a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
    return (uint64_t)_mm512_reduce_add_epi64(a);
}
