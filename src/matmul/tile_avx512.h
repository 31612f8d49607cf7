/* SPDX-License-Identifier: MIT
 *
 * tile_avx512.h - the accumulators of a 12 x 32 tile: two registers a row.
 */
#ifndef CMOE_TILE_AVX512_H
#define CMOE_TILE_AVX512_H

#include <immintrin.h>

#include "tile.h"

CMOEI_INLINE void cmoei_start_ps(__m512 acc[][2], const cmoei_tile *t, const int rows)
{
    const float *from = t->acc;
    if (t->more) {
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++) {
            acc[m][0] = _mm512_load_ps(from + m * 32);
            acc[m][1] = _mm512_load_ps(from + m * 32 + 16);
        }
    } else {
        CMOEI_UNROLL
        for (int m = 0; m < rows; m++)
            acc[m][0] = acc[m][1] = _mm512_setzero_ps();
    }
}

CMOEI_INLINE void cmoei_add_ps(__m512 acc[][2], const float *from, const int rows)
{
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        acc[m][0] = _mm512_add_ps(_mm512_load_ps(from + m * 32), acc[m][0]);
        acc[m][1] = _mm512_add_ps(_mm512_load_ps(from + m * 32 + 16), acc[m][1]);
    }
}

CMOEI_INLINE void cmoei_put_ps(float *out, __m512 acc[][2], const int rows)
{
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        _mm512_store_ps(out + m * 32, acc[m][0]);
        _mm512_store_ps(out + m * 32 + 16, acc[m][1]);
    }
}

/* Both columns of every row start from the same values. */
CMOEI_INLINE void cmoei_start_epi32(__m512i acc[][2], __m512i low, __m512i high, const int rows)
{
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        acc[m][0] = low;
        acc[m][1] = high;
    }
}

CMOEI_INLINE void cmoei_put_epi32(int32_t *out, __m512i acc[][2], const int rows)
{
    CMOEI_UNROLL
    for (int m = 0; m < rows; m++) {
        _mm512_store_si512(out + m * 32, acc[m][0]);
        _mm512_store_si512(out + m * 32 + 16, acc[m][1]);
    }
}

#endif
