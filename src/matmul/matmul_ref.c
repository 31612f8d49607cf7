/* SPDX-License-Identifier: MIT
 *
 * matmul_ref.c - acc[m, c] = sum over k of x[m, k] * w[c, k]: the definition of every other tile.
 *
 * Panels of two columns, so that a gated panel is one gate and one up row; one k a step.  Each term
 * is one fused multiply-add, in ascending k, as in every vector row: f32, int8 and (but for
 * vdpbf16ps) bf16 give the same bits on all of them.
 */
#include "core/real.h"
#include "matmul.h"

enum { PANEL = 2 };

void CMOEI_REF(cmoei_matmul_f32)(const cmoei_tile *t, int32_t rows)
{
    const float *w = (const float *)t->w; /* [K, 2] */
    const int64_t step = t->x_step ? t->x_step / (int64_t)sizeof(float) : 1;
    for (int32_t m = 0; m < rows; m++) {
        const float *x = (const float *)(t->x + m * t->x_stride); /* [K], `step` apart */
        cmoei_real *acc = (cmoei_real *)t->acc + m * PANEL;
        for (int c = 0; c < PANEL; c++) {
            cmoei_real sum = t->more ? acc[c] : 0;
            for (int64_t k = 0; k < t->steps; k++)
                sum = real_fma(x[k * step], w[k * PANEL + c], sum);
            acc[c] = t->onto ? acc[c] + sum : sum;
        }
    }
}

/* x holds bf16 values as float32. */
void CMOEI_REF(cmoei_matmul_bf16)(const cmoei_tile *t, int32_t rows)
{
    const uint16_t *w = (const uint16_t *)t->w; /* [K, 2] */
    for (int32_t m = 0; m < rows; m++) {
        const float *x = (const float *)(t->x + m * t->x_stride); /* [K] */
        cmoei_real *acc = (cmoei_real *)t->acc + m * PANEL;
        for (int c = 0; c < PANEL; c++) {
            cmoei_real sum = t->more ? acc[c] : 0;
            for (int64_t k = 0; k < t->steps; k++)
                sum = real_fma(x[k], cmoei_bf16_to_f32(w[k * PANEL + c]), sum);
            acc[c] = sum;
        }
    }
}

/* Exact, so the float build holds int32 like every other row; the double build checks them all. */
void CMOEI_REF(cmoei_matmul_i8)(const cmoei_tile *t, int32_t rows)
{
    const int8_t *w = (const int8_t *)t->w; /* [K, 2] */
    for (int32_t m = 0; m < rows; m++) {
        const int8_t *x = (const int8_t *)(t->x + m * t->x_stride); /* [K] */
        for (int c = 0; c < PANEL; c++) {
#ifdef CMOEI_DOUBLE
            double sum = 0;
            double *acc = t->acc;
#else
            int32_t sum = 0;
            int32_t *acc = t->acc;
#endif
            for (int64_t k = 0; k < t->steps; k++)
                sum += x[k] * w[k * PANEL + c];
            acc[m * PANEL + c] = sum;
        }
    }
}
