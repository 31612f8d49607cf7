/* SPDX-License-Identifier: MIT
 *
 * norm_backward_ref.c - the gradient of norms as it reads.
 */
#include "ops/norm_backward.h"

void CMOEI_REF(cmoei_norm_stats)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                                 void *stats);
void CMOEI_REF(cmoei_norm_dx)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                              const void *stats);

typedef struct row_stats {
    cmoei_real mean, inverse, shift, slope;
} row_stats;

typedef struct row_of {
    cmoei_plane x, dout, residual, dx;
} row_of;

static row_of planes(const cmoei_norm_backward_args *a, int64_t row)
{
    return (row_of){cmoei_heads_row(&a->x, a->heads, row), cmoei_heads_row(&a->dout, a->heads, row),
                    cmoei_heads_row(&a->residual, a->heads, row),
                    cmoei_heads_row(&a->dx, a->heads, row)};
}

static cmoei_real gradient(const cmoei_norm_backward_args *a, const row_of *p, int64_t h)
{
    const cmoei_real dout = real_get(&p->dout, 0, h);
    if (!a->weight.data) return dout;
    return dout * ((cmoei_real)a->weight_offset + real_get(&a->weight, 0, h));
}

static cmoei_real mean(const cmoei_norm_backward_args *a, const row_of *p)
{
    cmoei_real lane[CMOEI_LANES] = {0};
    for (int64_t h = 0; h < a->hidden; h++)
        lane[h % CMOEI_LANES] += real_get(&p->x, 0, h);
    return real_fold(lane) / (cmoei_real)a->hidden;
}

static row_stats measure(const cmoei_norm_backward_args *a, int64_t row)
{
    cmoei_real square[CMOEI_LANES] = {0}, product[CMOEI_LANES] = {0}, sum[CMOEI_LANES] = {0};
    const cmoei_real n = (cmoei_real)a->hidden;
    const row_of p = planes(a, row);
    row_stats s = {.mean = a->centred ? mean(a, &p) : 0};
    for (int64_t h = 0; h < a->hidden; h++) {
        const int64_t j = h % CMOEI_LANES;
        const cmoei_real d = real_get(&p.x, 0, h) - s.mean, g = gradient(a, &p, h);
        square[j] = real_fma(d, d, square[j]);
        product[j] = real_fma(g, d, product[j]);
        sum[j] += g;
    }
    s.inverse = 1 / real_sqrt(real_fold(square) / n + a->eps);
    s.shift = a->centred ? real_fold(sum) / n : 0;
    s.slope = real_fold(product) / n * s.inverse;
    return s;
}

void CMOEI_REF(cmoei_norm_stats)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                                 void *stats)
{
    for (row_stats *s = stats; row < row_end; row++, s++)
        *s = measure(a, row);
}

void CMOEI_REF(cmoei_norm_dx)(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                              const void *stats)
{
    for (const row_stats *s = stats; row < row_end; row++, s++) {
        const row_of p = planes(a, row);
        for (int64_t h = 0; h < a->hidden; h++) {
            /* Reads column h before it writes it: dx may lie on dout or residual. */
            const cmoei_real xhat = (real_get(&p.x, 0, h) - s->mean) * s->inverse;
            const cmoei_real t = real_fma(-xhat, s->slope, gradient(a, &p, h) - s->shift);
            real_put(&p.dx, 0, h,
                     p.residual.data ? real_fma(s->inverse, t, real_get(&p.residual, 0, h))
                                     : s->inverse * t);
        }
    }
}
