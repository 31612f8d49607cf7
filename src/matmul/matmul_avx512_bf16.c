/* SPDX-License-Identifier: MIT
 *
 * matmul_avx512_bf16.c - bf16 with dot products of two: up to 12 rows times 32 columns.
 *
 * vdpbf16ps flushes subnormals and rounds in its own way, so this row has its own bits.  It does
 * twice the work of an FMA on AMD; on Intel it issues at half the rate, so there it is taken only
 * when asked for by name (CMOE_CPU_BF16_FIRST).
 */
#include "tile_avx512.h"

CMOEI_INLINE void bf16_tile(const cmoei_tile *t, const int rows)
{
    __m512 acc[CMOEI_TILE_ROWS][2];
    cmoei_start_ps(acc, t, rows);
    cmoei_cursor x = cmoei_cursor_at(t, rows);
    const char *ahead = t->ahead;
    const char *w = t->w;
    for (int64_t s = 0; s < t->steps; s++) {
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w),
                       w1 = (__m512bh)_mm512_loadu_si512(w + 64);
        cmoei_fetch(&ahead, t->ahead_step);
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            const __m512bh v =
                (__m512bh)_mm512_set1_epi32(*(const cmoei_word_i32 *)cmoei_cursor_row(&x, m));
            acc[m][0] = _mm512_dpbf16_ps(acc[m][0], v, w0);
            acc[m][1] = _mm512_dpbf16_ps(acc[m][1], v, w1);
        }
        w += 128;
        cmoei_cursor_step(&x, rows, 4);
    }
    cmoei_put_ps(t->acc, acc, rows);
}

void cmoei_matmul_bf16_avx512_bf16(const cmoei_tile *t, int32_t rows)
{
    CMOEI_TILE_SWITCH_12(bf16_tile, t, rows);
}
