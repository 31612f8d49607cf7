/* SPDX-License-Identifier: MIT
 *
 * elementwise_simd.c - scaled_add and clip in blocks that stay in L1, vectorised by the compiler.
 *
 * Each element is the same sequence of operations as in elementwise_ref.c, so the bits are too.  A
 * block is loaded before the same block of out is stored: out may lie on x.
 */
#include "ops/elementwise.h"

#include <math.h>

void CMOEI_SIMD(cmoei_scaled_add)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);
void CMOEI_SIMD(cmoei_clip)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);

void CMOEI_SIMD(cmoei_scaled_add)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end)
{
    const float scale = a->scale;
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += CMOEI_BLOCK) {
            const int64_t n = CMOEI_MIN(a->cols - h, CMOEI_BLOCK);
            float x[CMOEI_BLOCK], y[CMOEI_BLOCK];
            cmoei_block_load(y, &a->y, row, h, n);
            if (a->x.data) {
                cmoei_block_load(x, &a->x, row, h, n);
                for (int64_t i = 0; i < n; i++)
                    y[i] = fmaf(y[i], scale, x[i]);
            } else {
                for (int64_t i = 0; i < n; i++)
                    y[i] *= scale;
            }
            cmoei_block_store(&a->out, row, h, y, n);
        }
    }
}

void CMOEI_SIMD(cmoei_clip)(const cmoei_elementwise_args *a, int64_t row, int64_t row_end)
{
    const float limit = a->scale;
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += CMOEI_BLOCK) {
            const int64_t n = CMOEI_MIN(a->cols - h, CMOEI_BLOCK);
            float x[CMOEI_BLOCK];
            cmoei_block_load(x, &a->x, row, h, n);
            for (int64_t i = 0; i < n; i++) {
                const float above = x[i] < -limit ? -limit : x[i]; /* false for NaN */
                x[i] = above > limit ? limit : above;
            }
            cmoei_block_store(&a->out, row, h, x, n);
        }
    }
}
