/* SPDX-License-Identifier: MIT
 *
 * optimizer_simd.c - adamw, sgd and sum_squares, vectorised by the compiler.
 *
 * Elements never meet in the first two, and each is the sequence of operations of optimizer_ref.c.
 * A sum of squares keeps its 16 lanes in registers; memory is slower than their additions.
 */
#include "core/units.h"
#include "ops/optimizer.h"

#include <math.h>

void CMOEI_SIMD(cmoei_adamw)(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
void CMOEI_SIMD(cmoei_sgd)(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
void CMOEI_SIMD(cmoei_sum_squares)(const cmoei_squares_args *a, int64_t block, int64_t block_end);

/* The arrays lie apart, which was checked. */
static inline cmoei_f32 *array_of(const cmoei_plane *p)
{
    return (cmoei_f32 *)(void *)p->data;
}

static inline void adamw(const cmoei_optimizer_args *a, const cmoei_f32 *restrict gradient,
                         cmoei_f32 *restrict value, cmoei_f32 *restrict first,
                         cmoei_f32 *restrict second, int64_t n)
{
    const float scale = a->scale, keep = a->keep, rate = -a->rate, mix1 = a->mix1, mix2 = a->mix2;
    const float beta2 = a->beta2, inverse = a->inverse, eps = a->eps;
    for (int64_t i = 0; i < n; i++) {
        const float g = gradient[i] * scale;
        const float m = fmaf(g - first[i], mix1, first[i]);
        const float v = fmaf(mix2 * g, g, beta2 * second[i]);
        const float d = fmaf(sqrtf(v), inverse, eps);
        first[i] = m;
        second[i] = v;
        value[i] = fmaf(rate, m / d, value[i] * keep);
    }
}

void CMOEI_SIMD(cmoei_adamw)(const cmoei_optimizer_args *a, int64_t begin, int64_t end)
{
    adamw(a, array_of(&a->gradient) + begin, array_of(&a->value) + begin, array_of(&a->m) + begin,
          array_of(&a->v) + begin, end - begin);
}

static inline void sgd_plain(const cmoei_optimizer_args *a, const cmoei_f32 *restrict gradient,
                             cmoei_f32 *restrict value, int64_t n)
{
    const float scale = a->scale, keep = a->keep, rate = -a->rate;
    for (int64_t i = 0; i < n; i++)
        value[i] = fmaf(rate, gradient[i] * scale, value[i] * keep);
}

static inline void sgd_first(const cmoei_optimizer_args *a, const cmoei_f32 *restrict gradient,
                             cmoei_f32 *restrict value, cmoei_f32 *restrict m, int64_t n)
{
    const float scale = a->scale, keep = a->keep, rate = -a->rate;
    for (int64_t i = 0; i < n; i++) {
        m[i] = gradient[i] * scale;
        value[i] = fmaf(rate, m[i], value[i] * keep);
    }
}

static inline void sgd_momentum(const cmoei_optimizer_args *a, const cmoei_f32 *restrict gradient,
                                cmoei_f32 *restrict value, cmoei_f32 *restrict m, int64_t n)
{
    const float scale = a->scale, keep = a->keep, rate = -a->rate, momentum = a->momentum;
    for (int64_t i = 0; i < n; i++) {
        m[i] = fmaf(momentum, m[i], gradient[i] * scale);
        value[i] = fmaf(rate, m[i], value[i] * keep);
    }
}

void CMOEI_SIMD(cmoei_sgd)(const cmoei_optimizer_args *a, int64_t begin, int64_t end)
{
    const cmoei_f32 *gradient = array_of(&a->gradient) + begin;
    cmoei_f32 *value = array_of(&a->value) + begin;
    const int64_t n = end - begin;
    if (!a->m.data)
        sgd_plain(a, gradient, value, n);
    else if (a->momentum > 0)
        sgd_momentum(a, gradient, value, array_of(&a->m) + begin, n);
    else
        sgd_first(a, gradient, value, array_of(&a->m) + begin, n);
}

void CMOEI_SIMD(cmoei_sum_squares)(const cmoei_squares_args *a, int64_t block, int64_t block_end)
{
    enum { LANES = CMOEI_SQUARES_LANES };
    for (; block < block_end; block++) {
        double lane[LANES] = {0};
        const cmoei_f32 *x = (const void *)a->x;
        int64_t i = block * CMOEI_SQUARES_BLOCK;
        const int64_t end = CMOEI_MIN(i + CMOEI_SQUARES_BLOCK, a->n);
        for (; i + LANES <= end; i += LANES) {
            for (int j = 0; j < LANES; j++)
                lane[j] += (double)x[i + j] * (double)x[i + j];
        }
        for (int j = 0; i + j < end; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
        for (int n = LANES / 2; n > 0; n /= 2) {
            for (int j = 0; j < n; j++)
                lane[j] += lane[j + n];
        }
        a->sum[block - a->first] = lane[0];
    }
}
