/* SPDX-License-Identifier: MIT
 *
 * columns_simd.c - sums of columns, one vector lane a column, vectorised by the compiler.
 *
 * The partial sums of a block of columns stay in L1; rows are read once, in order.  Columns never
 * meet, so neither the width of a block nor of a vector can be seen in the result.
 */
#include "ops/columns.h"

void CMOEI_SIMD(cmoei_columns)(const cmoei_columns_args *a, int64_t column, int64_t column_end);

enum { WIDTH = 128, NARROW = 32 };

static inline void add(float *restrict sum, const cmoei_f32 *restrict dout, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += dout[i];
}

static inline void add_weighted(float *restrict sum, const cmoei_f32 *restrict dout,
                                const cmoei_f32 *restrict x, const cmoei_norm_stats *stats,
                                int64_t n)
{
    const float mean = stats->mean, inverse = stats->inverse;
    for (int64_t i = 0; i < n; i++)
        sum[i] = fmaf(dout[i], (x[i] - mean) * inverse, sum[i]);
}

static inline void add_unit(const cmoei_columns_args *a, int64_t u, int64_t h, int64_t n,
                            float *restrict plain, float *restrict weighted)
{
    memset(plain, 0, (size_t)n * sizeof *plain);
    memset(weighted, 0, (size_t)n * sizeof *weighted);
    for (int64_t r = a->units.first[u] * a->heads; r < a->units.first[u + 1] * a->heads; r++) {
        const cmoei_f32 *dout = (const void *)cmoei_heads_at(&a->dout, a->heads, r);
        if (a->plain.data) add(plain, dout + h, n);
        if (!a->weighted.data) continue;
        const cmoei_f32 *x = (const void *)cmoei_heads_at(&a->x, a->heads, r);
        add_weighted(weighted, dout + h, x + h, a->stats + r, n);
    }
}

static inline void block(const cmoei_columns_args *a, int64_t h, int64_t n)
{
    float plain[CMOEI_UNITS_ROWS * WIDTH], weighted[CMOEI_UNITS_ROWS * WIDTH];
    for (int64_t u = 0; u < a->units.count; u++) {
        const int64_t at = cmoei_units_row(u) * WIDTH;
        add_unit(a, u, h, n, plain + at, weighted + at);
        cmoei_units_fold(plain, WIDTH, u, n);
        cmoei_units_fold(weighted, WIDTH, u, n);
    }
    if (a->plain.data) cmoei_block_store(&a->plain, 0, h, plain, n);
    if (a->weighted.data) cmoei_block_store(&a->weighted, 0, h, weighted, n);
}

void CMOEI_SIMD(cmoei_columns)(const cmoei_columns_args *a, int64_t h, int64_t column_end)
{
    for (; h + WIDTH <= column_end; h += WIDTH)
        block(a, h, WIDTH);
    for (; h + NARROW <= column_end; h += NARROW) /* heads: a constant width needs no tails */
        block(a, h, NARROW);
    if (h < column_end) block(a, h, column_end - h);
}
