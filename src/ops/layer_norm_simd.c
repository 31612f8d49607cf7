/* SPDX-License-Identifier: MIT
 *
 * layer_norm_simd.c - layer norm in blocks that stay in L1, vectorised by the compiler.
 *
 * A row is gone through three times: mean, variance, result.  Rows of up to one block are loaded
 * once.  The 32 lanes are two vectors of AVX-512 or four of AVX2.
 */
#include "ops/layer_norm.h"

#include <math.h>

void CMOEI_SIMD(cmoei_layer_norm)(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end);

enum { BLOCK = 4 * CMOEI_BLOCK, LANES = CMOEI_LAYER_NORM_LANES };

/* The exact sum, which residual_out holds. */
static inline void load_sum(const cmoei_layer_norm_args *a, int64_t row, int64_t h, int64_t n,
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
static inline void add_values(float *restrict lane, const float *restrict s, int64_t n)
{
    float l[LANES];
    int64_t i = 0;
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] += s[i + j];
    }
    for (int j = 0; i + j < n; j++)
        l[j] += s[i + j];
    memcpy(lane, l, sizeof l);
}

static inline void add_squares(float *restrict lane, const float *restrict s, float middle,
                               int64_t n)
{
    float l[LANES];
    int64_t i = 0;
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] = fmaf(s[i + j] - middle, s[i + j] - middle, l[j]);
    }
    for (int j = 0; i + j < n; j++)
        l[j] = fmaf(s[i + j] - middle, s[i + j] - middle, l[j]);
    memcpy(lane, l, sizeof l);
}

static inline float mean_of(float *lane, int64_t n)
{
    for (int m = LANES / 2; m > 0; m /= 2) {
        for (int j = 0; j < m; j++)
            lane[j] += lane[j + m];
    }
    return lane[0] / (float)n;
}

/* Of [H] or none: then `otherwise` everywhere. */
static inline void load_row(const cmoei_plane *p, int64_t h, int64_t n, float otherwise,
                            float *restrict dst)
{
    if (p->data) {
        cmoei_block_load(dst, p, 0, h, n);
    } else {
        for (int64_t i = 0; i < n; i++)
            dst[i] = otherwise;
    }
}

/* s holds the sums of these columns. */
static inline void finish(const cmoei_layer_norm_args *a, int64_t row, int64_t h, int64_t n,
                          float *restrict s, float middle, float inverse)
{
    if (a->residual_out.data) cmoei_block_store(&a->residual_out, row, h, s, n);
    for (int64_t at = 0; at < n; at += CMOEI_BLOCK) {
        float w[CMOEI_BLOCK], b[CMOEI_BLOCK];
        const int64_t part = CMOEI_MIN(n - at, CMOEI_BLOCK);
        load_row(&a->weight, h + at, part, 1, w);
        load_row(&a->bias, h + at, part, 0, b);
        for (int64_t i = 0; i < part; i++)
            s[at + i] = fmaf((s[at + i] - middle) * inverse, w[i], b[i]);
    }
    cmoei_block_store(&a->out, row, h, s, n);
}

static inline void norm_row(const cmoei_layer_norm_args *a, int64_t row)
{
    float s[BLOCK], lane[LANES] = {0}, square[LANES] = {0};
    const bool once = a->hidden <= BLOCK;
    for (int64_t h = 0; h < a->hidden; h += BLOCK) {
        const int64_t n = CMOEI_MIN(a->hidden - h, BLOCK);
        load_sum(a, row, h, n, s);
        add_values(lane, s, n);
    }
    const float middle = mean_of(lane, a->hidden);
    for (int64_t h = 0; h < a->hidden; h += BLOCK) {
        const int64_t n = CMOEI_MIN(a->hidden - h, BLOCK);
        if (!once) load_sum(a, row, h, n, s);
        add_squares(square, s, middle, n);
    }
    const float inverse = 1.0f / sqrtf(mean_of(square, a->hidden) + a->eps);
    for (int64_t h = 0; h < a->hidden; h += BLOCK) {
        const int64_t n = CMOEI_MIN(a->hidden - h, BLOCK);
        if (!once) load_sum(a, row, h, n, s);
        finish(a, row, h, n, s, middle, inverse);
    }
}

void CMOEI_SIMD(cmoei_layer_norm)(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++)
        norm_row(a, row);
}
