/* SPDX-License-Identifier: MIT
 *
 * norm_simd.c - RMS norm in blocks that stay in L1, vectorised by the compiler.
 *
 * A row is gone through twice: for the sum of squares over THE tree of norm.h, whose 32 lanes are
 * two vectors of AVX-512 or four of AVX2, and for the result.  Rows of up to one block are loaded
 * once.
 */
#include "ops/norm.h"

#include <math.h>

void CMOEI_SIMD(cmoei_norm)(const cmoei_norm_args *a, int64_t row, int64_t row_end);

enum { BLOCK = 4 * CMOEI_BLOCK, LANES = CMOEI_NORM_LANES };

/* The exact sum, which residual_out holds. */
static inline void load_sum(const cmoei_norm_args *a, int64_t row, int64_t h, int64_t n,
                            float *restrict s)
{
    cmoei_block_load(s, &a->x, row, h, n);
    for (int64_t at = 0; a->residual.data && at < n; at += CMOEI_BLOCK) {
        float r[CMOEI_BLOCK];
        const int64_t part = CMOEI_MIN(n - at, CMOEI_BLOCK);
        cmoei_block_load(r, &a->residual, row, h + at, part);
        for (int64_t i = 0; i < part; i++)
            s[at + i] += r[i];
    }
}

/* A block begins at a multiple of LANES, so i % LANES is the lane of column h + i. */
static inline void add_squares(float *restrict lane, const float *restrict s, int64_t n)
{
    float l[LANES];
    int64_t i = 0;
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] = fmaf(s[i + j], s[i + j], l[j]);
    }
    for (int j = 0; i + j < n; j++)
        l[j] = fmaf(s[i + j], s[i + j], l[j]);
    memcpy(lane, l, sizeof l);
}

static inline float add_lanes(float *lane)
{
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0];
}

static inline void times_weight(const cmoei_norm_args *a, int64_t h, int64_t n, float *restrict y)
{
    for (int64_t at = 0; at < n; at += CMOEI_BLOCK) {
        float w[CMOEI_BLOCK];
        const int64_t part = CMOEI_MIN(n - at, CMOEI_BLOCK);
        cmoei_block_load(w, &a->weight, 0, h + at, part);
        for (int64_t i = 0; i < part; i++)
            y[at + i] *= a->weight_offset + w[i];
    }
}

/* s holds the sums of these columns, exact or rounded; where they are rounded, residual_out has
 * that very format. */
static inline void finish(const cmoei_norm_args *a, int64_t row, int64_t h, int64_t n,
                          float *restrict s, float inverse)
{
    if (a->residual_out.data) cmoei_block_store(&a->residual_out, row, h, s, n);
    cmoei_block_round(s, a->sum_dtype, n);
    for (int64_t i = 0; i < n; i++)
        s[i] *= inverse;
    if (a->order == CMOE_NORM_CAST_THEN_WEIGHT) cmoei_block_round(s, a->out.dtype, n);
    if (a->weight.data) times_weight(a, h, n, s);
    cmoei_block_store(&a->out, row, h, s, n);
}

static inline void norm_row(const cmoei_norm_args *a, int64_t row)
{
    float s[BLOCK], lane[LANES] = {0};
    const bool once = a->hidden <= BLOCK;
    for (int64_t h = 0; h < a->hidden; h += BLOCK) {
        const int64_t n = CMOEI_MIN(a->hidden - h, BLOCK);
        load_sum(a, row, h, n, s);
        cmoei_block_round(s, a->sum_dtype, n);
        add_squares(lane, s, n);
    }
    const float inverse = 1.0f / sqrtf(add_lanes(lane) / (float)a->hidden + a->eps);
    for (int64_t h = 0; h < a->hidden; h += BLOCK) {
        const int64_t n = CMOEI_MIN(a->hidden - h, BLOCK);
        if (!once) load_sum(a, row, h, n, s);
        finish(a, row, h, n, s, inverse);
    }
}

void CMOEI_SIMD(cmoei_norm)(const cmoei_norm_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++)
        norm_row(a, row);
}
