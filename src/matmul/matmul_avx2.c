/* SPDX-License-Identifier: MIT
 *
 * matmul_avx2.c - up to 6 rows times a panel of 16 columns with AVX2 and FMA.
 *
 * 6 x 2 accumulators, two vectors of weights and a broadcast are 15 of 16 registers.  The formats
 * go as in matmul_avx512.c, with half the lanes.
 */
#include <immintrin.h>

#include "tile.h"

CMOEI_INLINE void start(__m256 acc[][2], const cmoei_tile *t, const int rows)
{
    const float *from = t->acc;
    if (t->more) {
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            acc[m][0] = _mm256_load_ps(from + m * 16);
            acc[m][1] = _mm256_load_ps(from + m * 16 + 8);
        }
    } else {
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++)
            acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    }
}

CMOEI_INLINE void add(__m256 acc[][2], const float *from, const int rows)
{
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        acc[m][0] = _mm256_add_ps(_mm256_load_ps(from + m * 16), acc[m][0]);
        acc[m][1] = _mm256_add_ps(_mm256_load_ps(from + m * 16 + 8), acc[m][1]);
    }
}

CMOEI_INLINE void put(float *out, __m256 acc[][2], const int rows)
{
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        _mm256_store_ps(out + m * 16, acc[m][0]);
        _mm256_store_ps(out + m * 16 + 8, acc[m][1]);
    }
}

CMOEI_INLINE void f32_tile(const cmoei_tile *t, const int rows)
{
    __m256 acc[6][2];
    start(acc, t, rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const int x_step = cmoei_x_step(t);
    const char *ahead = t->ahead;
    const cmoei_word_f32 *w = (const cmoei_word_f32 *)t->w;
    for (int64_t s = 0; s < t->steps; s++) {
        const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
        cmoei_fetch(&ahead, t->ahead_step);
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m256 v = _mm256_broadcast_ss((const cmoei_word_f32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm256_fmadd_ps(v, w0, acc[m][0]);
            acc[m][1] = _mm256_fmadd_ps(v, w1, acc[m][1]);
        }
        w += 16;
        cmoei_cursor_step(&x, rows, x_step);
    }
    if (t->onto) add(acc, t->acc, rows);
    put(t->acc, acc, rows);
}

CMOEI_INLINE void bf16_tile(const cmoei_tile *t, const int rows)
{
    __m256 acc[6][2];
    start(acc, t, rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const char *ahead = t->ahead;
    const char *w = t->w;
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    for (int64_t s = 0; s < t->steps; s++) {
        const __m256i *line = (const __m256i *)w;
        cmoei_fetch(&ahead, t->ahead_step);
        __m256 w0 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(line), 16));
        __m256 w1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(line + 1), 16));
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m256 v = _mm256_broadcast_ss((const cmoei_word_f32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm256_fmadd_ps(v, w0, acc[m][0]);
            acc[m][1] = _mm256_fmadd_ps(v, w1, acc[m][1]);
        }
        w0 = _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(line), high));
        w1 = _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(line + 1), high));
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m256 v =
                _mm256_broadcast_ss((const cmoei_word_f32 *)cmoei_cursor_row(&x, m) + 1);
            acc[m][0] = _mm256_fmadd_ps(v, w0, acc[m][0]);
            acc[m][1] = _mm256_fmadd_ps(v, w1, acc[m][1]);
        }
        w += 64;
        cmoei_cursor_step(&x, rows, 8);
    }
    put(t->acc, acc, rows);
}

CMOEI_INLINE void i8_tile(const cmoei_tile *t, const int rows)
{
    __m256i acc[6][2];
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++)
        acc[m][0] = acc[m][1] = _mm256_setzero_si256();
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const char *ahead = t->ahead;
    const char *w = t->w;
    for (int64_t s = 0; s < t->steps; s++) {
        const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
        const __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)));
        cmoei_fetch(&ahead, t->ahead_step);
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m256i v = _mm256_set1_epi32(*(const cmoei_word_i32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm256_add_epi32(acc[m][0], _mm256_madd_epi16(v, w0));
            acc[m][1] = _mm256_add_epi32(acc[m][1], _mm256_madd_epi16(v, w1));
        }
        w += 32;
        cmoei_cursor_step(&x, rows, 4);
    }
    int32_t *out = t->acc;
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        _mm256_store_si256((__m256i *)(out + m * 16), acc[m][0]);
        _mm256_store_si256((__m256i *)(out + m * 16 + 8), acc[m][1]);
    }
}

void cmoei_matmul_f32_avx2(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_6(f32_tile, t, rows);
}

void cmoei_matmul_bf16_avx2(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_6(bf16_tile, t, rows);
}

void cmoei_matmul_i8_avx2(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_6(i8_tile, t, rows);
}
