/* SPDX-License-Identifier: MIT
 *
 * ops/attention_vec.h - one vector of floats as attention_simd.c and attention_rows_simd.c need it,
 * AVX-512 or AVX2.
 *
 * The inner loops are written with these because compilers turn tiles of plain arrays into scalars
 * or keep them in memory: a tenth to a third of the speed.
 */
#ifndef CMOE_OPS_ATTENTION_VEC_H
#define CMOE_OPS_ATTENTION_VEC_H

#include <immintrin.h>
#include <string.h>

#include "core/core.h"

#define VEC_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define VEC_UNROLL _Pragma("unroll")
#else
#define VEC_UNROLL _Pragma("GCC unroll 16")
#endif

#ifdef __AVX512F__
typedef __m512 vec;
enum { VEC = 16, VEC_MOST = 4 }; /* floats of a vector; vectors that a row keeps in registers */
VEC_INLINE vec vec_all(float x)
{
    return _mm512_set1_ps(x);
}
VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VEC_INLINE vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
VEC_INLINE vec vec_get(const float *at)
{
    return _mm512_loadu_ps(at);
}
VEC_INLINE void vec_put(float *at, vec x)
{
    _mm512_storeu_ps(at, x);
}
VEC_INLINE vec vec_bf16(const char *at)
{
    const __m256i h = _mm256_loadu_si256((const void *)at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
VEC_INLINE vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
VEC_INLINE vec vec_max(vec x, vec m) /* m where x is NaN */
{
    return _mm512_max_ps(x, m);
}
VEC_INLINE vec vec_pick(uint32_t bits, vec a, vec b) /* lane i: a where bit i is set, else b */
{
    return _mm512_mask_blend_ps((__mmask16)bits, b, a);
}
VEC_INLINE int vec_strip(const int rows) /* these, of each of so many rows */
{
    (void)rows;
    return VEC_MOST;
}
#else
typedef __m256 vec;
enum { VEC = 8, VEC_MOST = 4 };
VEC_INLINE vec vec_all(float x)
{
    return _mm256_set1_ps(x);
}
VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VEC_INLINE vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
VEC_INLINE vec vec_get(const float *at)
{
    return _mm256_loadu_ps(at);
}
VEC_INLINE void vec_put(float *at, vec x)
{
    _mm256_storeu_ps(at, x);
}
VEC_INLINE vec vec_bf16(const char *at)
{
    const __m128i h = _mm_loadu_si128((const void *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
VEC_INLINE vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
VEC_INLINE vec vec_max(vec x, vec m)
{
    return _mm256_max_ps(x, m);
}
VEC_INLINE vec vec_pick(uint32_t bits, vec a, vec b)
{
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), lane);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}
VEC_INLINE int vec_strip(const int rows)
{
    return rows > 1 ? 2 : VEC_MOST; /* 16 registers; one row alone waits for its own FMAs */
}
#endif

/* VEC values of page memory from element i on; pages are aligned to 64 bytes, rows of values need
 * not be. */
VEC_INLINE vec vec_cached(const char *at, int64_t i, const int32_t format)
{
    return format == CMOE_F32 ? vec_get((const float *)(const void *)(at + 4 * i))
                              : vec_bf16(at + 2 * i);
}

/* Eight rows of eight become eight columns, the same instructions in both. */
VEC_INLINE void vec_turn8(__m256 x[8])
{
    __m256 t[8];
    VEC_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    VEC_UNROLL
    for (int i = 0; i < 8; i += 4) {
        x[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        x[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        x[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        x[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    VEC_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    }
    memcpy(x, t, sizeof t);
}

#endif
