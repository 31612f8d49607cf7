/* SPDX-License-Identifier: MIT
 *
 * combine_backward_ref.c - gradients of expert rows and of their weights, as the formulas read.
 *
 * The sum over H is 16 partial sums, one fused multiply-add an element, folded l and l + 8, then
 * + 4, + 2, + 1; the float build gives the bits that every other row of the table must give.
 */
#include <string.h>

#include "align/combine_backward.h"
#include "core/real.h"

void CMOEI_REF(cmoei_combine_back)(const cmoei_combine_back_args *a, int64_t t, int64_t t_end);

enum { LANES = 16 };

static float get(const cmoei_dense *d, int64_t row, int64_t col)
{
    float x;
    memcpy(&x, d->data + row * d->step + col * (int64_t)sizeof x, sizeof x);
    return x;
}

static void put(const cmoei_dense *d, int64_t row, int64_t col, cmoei_real x)
{
    memcpy(d->data + row * d->step + col * (int64_t)sizeof x, &x, sizeof x);
}

static cmoei_real dot(const cmoei_combine_back_args *a, int64_t row, int64_t t)
{
    cmoei_real part[LANES] = {0};
    for (int64_t h = 0; h < a->hidden; h++)
        part[h % LANES] = real_fma(get(&a->rows, row, h), get(&a->dout, t, h), part[h % LANES]);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++)
            part[l] += part[l + half];
    }
    return part[0];
}

void CMOEI_REF(cmoei_combine_back)(const cmoei_combine_back_args *a, int64_t t, int64_t t_end)
{
    for (; t < t_end; t++) {
        for (int64_t k = 0; k < a->topk; k++) {
            const int32_t row = a->row_of[t * a->topk + k];
            if (a->dweights.data) put(&a->dweights, t, k, row < 0 ? 0 : a->scale * dot(a, row, t));
            if (row < 0 || !a->drows.data) continue;
            float w = 1;
            if (a->weights.data)
                cmoei_load_f32(&w, cmoei_plane_at(&a->weights, t, k), a->weights.dtype, 1, 1);
            const cmoei_real factor = (cmoei_real)a->scale * w;
            for (int64_t h = 0; h < a->hidden; h++)
                put(&a->drows, row, h, factor * get(&a->dout, t, h));
        }
    }
}
