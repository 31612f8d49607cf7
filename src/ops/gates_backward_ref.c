/* SPDX-License-Identifier: MIT
 *
 * gates_backward_ref.c - gradients of the elementwise gates as they read.
 *
 * Every element is read before the same element of an output is written: outputs may lie on inputs.
 */
#include "ops/gates_backward.h"

void CMOEI_REF(cmoei_sigmoid_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                           int64_t row_end);
void CMOEI_REF(cmoei_silu_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                        int64_t row_end);
void CMOEI_REF(cmoei_clip_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                    int64_t row_end);

void CMOEI_REF(cmoei_sigmoid_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                           int64_t row_end)
{
    const bool one = a->gate.col == 0;
    for (; row < row_end; row++) {
        cmoei_real lane[CMOEI_LANES] = {0}, s = 0;
        for (int64_t h = 0; h < a->cols; h++) {
            const cmoei_real x = real_get(&a->x, row, h), dout = real_get(&a->dout, row, h);
            s = real_sigmoid(real_get(&a->gate, row, h));
            lane[h % CMOEI_LANES] = real_fma(dout, x, lane[h % CMOEI_LANES]);
            if (a->dx.data) real_put(&a->dx, row, h, dout * s);
            if (a->dgate.data && !one) real_put(&a->dgate, row, h, dout * x * (s * (1 - s)));
        }
        if (a->dgate.data && one) real_put(&a->dgate, row, 0, real_fold(lane) * (s * (1 - s)));
    }
}

void CMOEI_REF(cmoei_silu_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                        int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++) {
            const int64_t g = a->interleaved ? 2 * h : h, u = a->interleaved ? g + 1 : a->cols + h;
            const cmoei_real gate = real_get(&a->x, row, g), up = real_get(&a->x, row, u);
            const cmoei_real dout = real_get(&a->dout, row, h);
            const cmoei_real s = real_sigmoid(gate), silu = gate * s;
            real_put(&a->dx, row, g, dout * up * real_fma(silu, 1 - s, s));
            real_put(&a->dx, row, u, dout * silu);
        }
    }
}

void CMOEI_REF(cmoei_clip_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                    int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++) {
            const cmoei_real x = real_get(&a->x, row, h), dout = real_get(&a->dout, row, h);
            /* false for NaN */
            real_put(&a->dx, row, h, x >= -a->limit && x <= a->limit ? dout : 0);
        }
    }
}
