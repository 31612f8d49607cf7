/* SPDX-License-Identifier: MIT
 *
 * optimizer_ref.c - adamw, sgd and sum_squares as they read.
 */
#include "core/real_plane.h"
#include "ops/optimizer.h"

void CMOEI_REF(cmoei_adamw)(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
void CMOEI_REF(cmoei_sgd)(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
void CMOEI_REF(cmoei_sum_squares)(const cmoei_squares_args *a, int64_t block, int64_t block_end);

void CMOEI_REF(cmoei_adamw)(const cmoei_optimizer_args *a, int64_t i, int64_t end)
{
    for (; i < end; i++) {
        const cmoei_real g = real_get(&a->gradient, 0, i) * a->scale;
        const cmoei_real before = real_get(&a->m, 0, i);
        const cmoei_real m = real_fma(g - before, a->mix1, before);
        const cmoei_real v = real_fma(a->mix2 * g, g, a->beta2 * real_get(&a->v, 0, i));
        const cmoei_real d = real_fma(real_sqrt(v), a->inverse, a->eps);
        const cmoei_real value = real_get(&a->value, 0, i) * a->keep;
        real_put(&a->m, 0, i, m);
        real_put(&a->v, 0, i, v);
        real_put(&a->value, 0, i, real_fma(-a->rate, m / d, value));
    }
}

void CMOEI_REF(cmoei_sgd)(const cmoei_optimizer_args *a, int64_t i, int64_t end)
{
    for (; i < end; i++) {
        cmoei_real m = real_get(&a->gradient, 0, i) * a->scale;
        if (a->momentum > 0) m = real_fma(a->momentum, real_get(&a->m, 0, i), m);
        if (a->m.data) real_put(&a->m, 0, i, m);
        real_put(&a->value, 0, i, real_fma(-a->rate, m, real_get(&a->value, 0, i) * a->keep));
    }
}

void CMOEI_REF(cmoei_sum_squares)(const cmoei_squares_args *a, int64_t block, int64_t block_end)
{
    for (; block < block_end; block++) {
        double lane[CMOEI_SQUARES_LANES] = {0};
        const int64_t begin = block * CMOEI_SQUARES_BLOCK;
        const int64_t end = CMOEI_MIN(begin + CMOEI_SQUARES_BLOCK, a->n);
        for (int64_t i = begin; i < end; i++) {
            float x;
            memcpy(&x, a->x + i * (int64_t)sizeof x, sizeof x);
            lane[i % CMOEI_SQUARES_LANES] += (double)x * (double)x;
        }
        for (int n = CMOEI_SQUARES_LANES / 2; n > 0; n /= 2) {
            for (int j = 0; j < n; j++)
                lane[j] += lane[j + n];
        }
        a->sum[block - a->first] = lane[0];
    }
}
