/* SPDX-License-Identifier: MIT
 *
 * norm_backward_simd.c - the gradient of norms, vectorised by the compiler.
 *
 * `stats` goes through a row once (RMS norm) or twice, `dx` once more, in blocks that stay in L1: a
 * block is computed before the same block of dx is written, which may lie on dout or residual.
 */
#include "ops/norm_backward.h"

void CMOEI_SIMD(cmoei_norm_stats)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                                  void *stats);
void CMOEI_SIMD(cmoei_norm_dx)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                               const void *stats);

enum { BLOCK = CMOEI_BLOCK, LANES = CMOEI_LANES };

typedef struct lanes {
    float square[LANES], product[LANES], sum[LANES];
} lanes;

static inline float mean(const cmoei_f32 *restrict x, int64_t n)
{
    float l[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] += x[i + j];
    }
    for (int j = 0; i + j < n; j++)
        l[j] += x[i + j];
    return real_fold(l) / (float)n;
}

/* g = dout * w of a block. */
static inline void load_gradient(const cmoei_norm_backward_args *a, const cmoei_f32 *restrict dout,
                                 int64_t h, int64_t n, float *restrict g)
{
    const cmoei_f32 *restrict w = (const void *)a->weight.data;
    if (w) {
        for (int64_t i = 0; i < n; i++)
            g[i] = dout[h + i] * (a->weight_offset + w[h + i]);
    } else {
        memcpy(g, dout + h, (size_t)n * sizeof *g);
    }
}

/* A block begins at a multiple of LANES. */
static inline void add_products(lanes *l, const cmoei_f32 *restrict x, const float *restrict g,
                                float middle, int64_t n)
{
    float square[LANES], product[LANES];
    int64_t i = 0;
    memcpy(square, l->square, sizeof square);
    memcpy(product, l->product, sizeof product);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            const float d = x[i + j] - middle;
            square[j] = fmaf(d, d, square[j]);
            product[j] = fmaf(g[i + j], d, product[j]);
        }
    }
    for (int j = 0; i + j < n; j++) {
        const float d = x[i + j] - middle;
        square[j] = fmaf(d, d, square[j]);
        product[j] = fmaf(g[i + j], d, product[j]);
    }
    memcpy(l->square, square, sizeof square);
    memcpy(l->product, product, sizeof product);
}

static inline void add_values(float *restrict lane, const float *restrict g, int64_t n)
{
    float l[LANES];
    int64_t i = 0;
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] += g[i + j];
    }
    for (int j = 0; i + j < n; j++)
        l[j] += g[i + j];
    memcpy(lane, l, sizeof l);
}

static inline cmoei_norm_stats measure(const cmoei_norm_backward_args *a, int64_t row)
{
    const cmoei_f32 *x = (const void *)cmoei_heads_at(&a->x, a->heads, row);
    const cmoei_f32 *dout = (const void *)cmoei_heads_at(&a->dout, a->heads, row);
    const float n = (float)a->hidden;
    cmoei_norm_stats s = {.mean = a->centred ? mean(x, a->hidden) : 0};
    lanes l = {{0}, {0}, {0}};
    for (int64_t h = 0; h < a->hidden; h += BLOCK) {
        float g[BLOCK];
        const int64_t part = CMOEI_MIN(a->hidden - h, BLOCK);
        load_gradient(a, dout, h, part, g);
        add_products(&l, x + h, g, s.mean, part);
        if (a->centred) add_values(l.sum, g, part);
    }
    s.inverse = 1.0f / sqrtf(real_fold(l.square) / n + a->eps);
    s.shift = a->centred ? real_fold(l.sum) / n : 0;
    s.slope = real_fold(l.product) / n * s.inverse;
    return s;
}

void CMOEI_SIMD(cmoei_norm_stats)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                                  void *stats)
{
    for (cmoei_norm_stats *s = stats; row < row_end; row++, s++)
        *s = measure(a, row);
}

static inline void dx_block(const cmoei_norm_stats *s, const cmoei_f32 *restrict x,
                            const cmoei_f32 *restrict residual, int64_t n, float *restrict g)
{
    const float middle = s->mean, inverse = s->inverse, shift = s->shift, slope = s->slope;
    for (int64_t i = 0; i < n; i++)
        g[i] = fmaf(-((x[i] - middle) * inverse), slope, g[i] - shift);
    if (residual) {
        for (int64_t i = 0; i < n; i++)
            g[i] = fmaf(inverse, g[i], residual[i]);
    } else {
        for (int64_t i = 0; i < n; i++)
            g[i] *= inverse;
    }
}

void CMOEI_SIMD(cmoei_norm_dx)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                               const void *stats)
{
    for (const cmoei_norm_stats *s = stats; row < row_end; row++, s++) {
        const cmoei_f32 *x = (const void *)cmoei_heads_at(&a->x, a->heads, row);
        const cmoei_f32 *dout = (const void *)cmoei_heads_at(&a->dout, a->heads, row);
        const cmoei_plane residual = cmoei_heads_row(&a->residual, a->heads, row);
        const cmoei_f32 *r = (const void *)residual.data;
        const cmoei_plane dx = cmoei_heads_row(&a->dx, a->heads, row);
        for (int64_t h = 0; h < a->hidden; h += BLOCK) {
            float g[BLOCK];
            const int64_t n = CMOEI_MIN(a->hidden - h, BLOCK);
            load_gradient(a, dout, h, n, g);
            dx_block(s, x + h, r ? r + h : NULL, n, g);
            cmoei_block_store(&dx, 0, h, g, n);
        }
    }
}
