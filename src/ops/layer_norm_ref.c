/* SPDX-License-Identifier: MIT
 *
 * layer_norm_ref.c - layer norm as it reads, over the tree of layer_norm.h.
 */
#include "core/real_plane.h"
#include "ops/layer_norm.h"

void CMOEI_REF(cmoei_layer_norm)(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end);

enum { LANES = CMOEI_LAYER_NORM_LANES };

static cmoei_real sum_at(const cmoei_layer_norm_args *a, int64_t row, int64_t h)
{
    cmoei_real s = real_get(&a->x, row, h);
    if (a->residual.data) s += real_get(&a->residual, row, h);
    return s;
}

static cmoei_real mean_of(cmoei_real *lane, int64_t n)
{
    for (int m = LANES / 2; m > 0; m /= 2) {
        for (int j = 0; j < m; j++)
            lane[j] += lane[j + m];
    }
    return lane[0] / (cmoei_real)n;
}

static cmoei_real mean(const cmoei_layer_norm_args *a, int64_t row)
{
    cmoei_real lane[LANES] = {0};
    for (int64_t h = 0; h < a->hidden; h++)
        lane[h % LANES] += sum_at(a, row, h);
    return mean_of(lane, a->hidden);
}

static cmoei_real variance(const cmoei_layer_norm_args *a, int64_t row, cmoei_real middle)
{
    cmoei_real lane[LANES] = {0};
    for (int64_t h = 0; h < a->hidden; h++) {
        const cmoei_real d = sum_at(a, row, h) - middle;
        lane[h % LANES] = real_fma(d, d, lane[h % LANES]);
    }
    return mean_of(lane, a->hidden);
}

void CMOEI_REF(cmoei_layer_norm)(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        const cmoei_real middle = mean(a, row);
        const cmoei_real inverse = 1 / real_sqrt(variance(a, row, middle) + a->eps);
        for (int64_t h = 0; h < a->hidden; h++) {
            /* Reads column h before it writes it: outputs may lie on x or residual. */
            const cmoei_real s = sum_at(a, row, h);
            const cmoei_real w = a->weight.data ? real_get(&a->weight, 0, h) : 1;
            const cmoei_real b = a->bias.data ? real_get(&a->bias, 0, h) : 0;
            if (a->residual_out.data) real_put(&a->residual_out, row, h, s);
            real_put(&a->out, row, h, real_fma((s - middle) * inverse, w, b));
        }
    }
}
