/* SPDX-License-Identifier: MIT
 *
 * matmul_avx512_vnni.c - int8 with dot products of four: up to 12 rows times 32 columns.
 *
 * vpdpbusd multiplies unsigned by signed, so rows carry x + 128, and 128 times the column's sum of
 * weights, packed behind the panel, is taken off at the end.  Sums wrap modulo 2^32 on the way and
 * are exact at the end, -128 included.
 */
#include "tile_avx512.h"

CMOEI_INLINE void i8_tile(const cmoei_tile *t, const int rows)
{
    __m512i acc[CMOEI_TILE_ROWS][2];
    const char *w = t->w;
    cmoei_start_epi32(acc, _mm512_loadu_si512(w + t->steps * 128),
                      _mm512_loadu_si512(w + t->steps * 128 + 64), rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const char *ahead = t->ahead;
    for (int64_t s = 0; s < t->steps; s++) {
        const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);
        cmoei_fetch(&ahead, t->ahead_step);
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m512i v = _mm512_set1_epi32(*(const cmoei_word_i32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm512_dpbusd_epi32(acc[m][0], v, w0);
            acc[m][1] = _mm512_dpbusd_epi32(acc[m][1], v, w1);
        }
        w += 128;
        cmoei_cursor_step(&x, rows, 4);
    }
    cmoei_put_epi32(t->acc, acc, rows);
}

void cmoei_matmul_i8_avx512_vnni(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_12(i8_tile, t, rows);
}
