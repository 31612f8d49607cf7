/* SPDX-License-Identifier: MIT
 *
 * elementwise_ref.c - scaled_add and clip as they read.
 */
#include "core/real_plane.h"
#include "ops/elementwise.h"

void CMOEI_REF(cmoei_scaled_add)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);
void CMOEI_REF(cmoei_clip)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);

void CMOEI_REF(cmoei_scaled_add)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++) {
            const cmoei_real y = real_get(&a->y, row, h);
            real_put(&a->out, row, h,
                     a->x.data ? real_fma(y, a->scale, real_get(&a->x, row, h)) : y * a->scale);
        }
    }
}

void CMOEI_REF(cmoei_clip)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++) {
            const cmoei_real x = real_get(&a->x, row, h);
            const cmoei_real above = x < -a->scale ? -a->scale : x; /* false for NaN */
            real_put(&a->out, row, h, above > a->scale ? a->scale : above);
        }
    }
}
