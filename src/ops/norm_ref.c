/* SPDX-License-Identifier: MIT
 *
 * norm_ref.c - RMS norm as it reads, over THE tree of norm.h.
 */
#include "core/real_plane.h"
#include "ops/norm.h"

void CMOEI_REF(cmoei_norm)(const cmoei_norm_args *a, int64_t row, int64_t row_end);

static cmoei_real sum_at(const cmoei_norm_args *a, int64_t row, int64_t h)
{
    cmoei_real s = real_get(&a->x, row, h);
    if (a->residual.data) s += real_get(&a->residual, row, h);
    return s;
}

static cmoei_real mean_square(const cmoei_norm_args *a, int64_t row)
{
    cmoei_real lane[CMOEI_NORM_LANES] = {0};
    for (int64_t h = 0; h < a->hidden; h++) {
        const cmoei_real s = real_round(sum_at(a, row, h), a->sum_dtype);
        lane[h % CMOEI_NORM_LANES] = real_fma(s, s, lane[h % CMOEI_NORM_LANES]);
    }
    for (int n = CMOEI_NORM_LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0] / (cmoei_real)a->hidden;
}

/* Reads column h before it writes it: outputs may lie on x or residual. */
static void norm_at(const cmoei_norm_args *a, int64_t row, int64_t h, cmoei_real inverse)
{
    const cmoei_real sum = sum_at(a, row, h);
    cmoei_real y = real_round(sum, a->sum_dtype) * inverse;
    if (a->order == CMOE_NORM_CAST_THEN_WEIGHT) y = real_round(y, a->out.dtype);
    if (a->weight.data) y *= (cmoei_real)a->weight_offset + real_get(&a->weight, 0, h);
    if (a->residual_out.data) real_put(&a->residual_out, row, h, sum);
    real_put(&a->out, row, h, y);
}

void CMOEI_REF(cmoei_norm)(const cmoei_norm_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        const cmoei_real inverse = 1 / real_sqrt(mean_square(a, row) + a->eps);
        for (int64_t h = 0; h < a->hidden; h++)
            norm_at(a, row, h, inverse);
    }
}
