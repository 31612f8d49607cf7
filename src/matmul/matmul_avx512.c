/* SPDX-License-Identifier: MIT
 *
 * matmul_avx512.c - up to 12 rows times a panel of 32 columns with AVX-512.
 *
 * 12 x 2 accumulators, two lines of weights and a broadcast fill 27 of 32 registers.  A step of f32
 * loads 2 lines and broadcasts 12 values for 24 FMAs, so the FMA units (two a cycle) are the limit,
 * not the loads (two a cycle).  bf16 lines hold two k of 16 columns: a shift gives the even ones, a
 * mask the odd ones as float32, 4 cheap instructions for 48 FMAs.  int8 without VNNI widens to 16
 * bits and uses madd: exact for every value, -128 included, where maddubs would saturate.
 *
 * One row has two chains only, 4 cycles for 128 bytes: still three times what memory delivers.
 */
#include "tile_avx512.h"

CMOEI_INLINE void f32_tile(const cmoei_tile *t, const int rows)
{
    __m512 acc[CMOEI_TILE_ROWS][2];
    cmoei_start_ps(acc, t, rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const int x_step = cmoei_x_step(t);
    const char *ahead = t->ahead;
    const cmoei_word_f32 *w = (const cmoei_word_f32 *)t->w;
    for (int64_t s = 0; s < t->steps; s++) {
        const __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 16);
        cmoei_fetch(&ahead, t->ahead_step);
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m512 v = _mm512_set1_ps(*(const cmoei_word_f32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm512_fmadd_ps(v, w0, acc[m][0]);
            acc[m][1] = _mm512_fmadd_ps(v, w1, acc[m][1]);
        }
        w += 32;
        cmoei_cursor_step(&x, rows, x_step);
    }
    if (t->onto) cmoei_add_ps(acc, t->acc, rows);
    cmoei_put_ps(t->acc, acc, rows);
}

CMOEI_INLINE void bf16_tile(const cmoei_tile *t, const int rows)
{
    __m512 acc[CMOEI_TILE_ROWS][2];
    cmoei_start_ps(acc, t, rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const char *ahead = t->ahead;
    const char *w = t->w;
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    for (int64_t s = 0; s < t->steps; s++) {
        const __m512i r0 = _mm512_loadu_si512(w), r1 = _mm512_loadu_si512(w + 64);
        cmoei_fetch(&ahead, t->ahead_step);
        const __m512 e0 = _mm512_castsi512_ps(_mm512_slli_epi32(r0, 16));
        const __m512 e1 = _mm512_castsi512_ps(_mm512_slli_epi32(r1, 16));
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m512 v = _mm512_set1_ps(*(const cmoei_word_f32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm512_fmadd_ps(v, e0, acc[m][0]);
            acc[m][1] = _mm512_fmadd_ps(v, e1, acc[m][1]);
        }
        const __m512 o0 = _mm512_castsi512_ps(_mm512_and_si512(r0, high));
        const __m512 o1 = _mm512_castsi512_ps(_mm512_and_si512(r1, high));
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m512 v = _mm512_set1_ps(((const cmoei_word_f32 *)cmoei_cursor_row(&x, m))[1]);
            acc[m][0] = _mm512_fmadd_ps(v, o0, acc[m][0]);
            acc[m][1] = _mm512_fmadd_ps(v, o1, acc[m][1]);
        }
        w += 128;
        cmoei_cursor_step(&x, rows, 8);
    }
    cmoei_put_ps(t->acc, acc, rows);
}

CMOEI_INLINE void i8_tile(const cmoei_tile *t, const int rows)
{
    __m512i acc[CMOEI_TILE_ROWS][2];
    cmoei_start_epi32(acc, _mm512_setzero_si512(), _mm512_setzero_si512(), rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const char *ahead = t->ahead;
    const char *w = t->w;
    for (int64_t s = 0; s < t->steps; s++) {
        const __m512i w0 = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
        const __m512i w1 = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(w + 32)));
        cmoei_fetch(&ahead, t->ahead_step);
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m512i v = _mm512_set1_epi32(*(const cmoei_word_i32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm512_add_epi32(acc[m][0], _mm512_madd_epi16(v, w0));
            acc[m][1] = _mm512_add_epi32(acc[m][1], _mm512_madd_epi16(v, w1));
        }
        w += 64;
        cmoei_cursor_step(&x, rows, 4);
    }
    cmoei_put_epi32(t->acc, acc, rows);
}

void cmoei_matmul_f32_avx512(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_12(f32_tile, t, rows);
}

void cmoei_matmul_bf16_avx512(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_12(bf16_tile, t, rows);
}

void cmoei_matmul_i8_avx512(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_12(i8_tile, t, rows);
}
