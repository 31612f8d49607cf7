/* SPDX-License-Identifier: MIT
 *
 * combine_ref.c - weighted sum of expert rows back into token order, as the formula reads.
 *
 * One fused multiply-add a slot, in slot order, from 0 or from the shared row; then the scale; then
 * the shared row.  The float build gives the bits that every other row of the table must give.
 */
#include "align/combine.h"
#include "core/real_plane.h"

void CMOEI_REF(cmoei_combine)(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h,
                              int64_t h_end);

static cmoei_real combined(const cmoei_combine_args *a, int64_t t, int64_t h)
{
    cmoei_real sum = a->shared_first ? real_get(&a->shared, t, h) : 0;
    for (int64_t k = 0; k < a->topk; k++) {
        const int32_t row = a->row_of[t * a->topk + k];
        if (row >= 0)
            sum = real_fma(cmoei_combine_weight(a, t, k), real_get(&a->rows, row, h), sum);
    }
    if (a->shared_first) return sum;
    sum *= a->scale;
    return a->shared.data ? sum + real_get(&a->shared, t, h) : sum;
}

void CMOEI_REF(cmoei_combine)(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h,
                              int64_t h_end)
{
    for (; t < t_end; t++) {
        for (int64_t i = h; i < h_end; i++)
            real_put(&a->out, t, i, combined(a, t, i));
    }
}
