/* SPDX-License-Identifier: MIT
 *
 * gates_ref.c - the elementwise gates as they read.
 */
#include "core/real_plane.h"
#include "ops/gates.h"

void CMOEI_REF(cmoei_sigmoid_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end);
void CMOEI_REF(cmoei_add_shared_expert)(const cmoei_gates_args *a, int64_t row, int64_t row_end);
void CMOEI_REF(cmoei_silu_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end);

static cmoei_real sigmoid_at(const cmoei_gates_args *a, int64_t row, int64_t h)
{
    return real_round(real_sigmoid(real_get(&a->gate, row, h)), a->round_dtype);
}

void CMOEI_REF(cmoei_sigmoid_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++)
            real_put(&a->out, row, h, real_get(&a->x, row, h) * sigmoid_at(a, row, h));
    }
}

void CMOEI_REF(cmoei_add_shared_expert)(const cmoei_gates_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++) {
            const cmoei_real gate = a->gate.data ? sigmoid_at(a, row, h) : 1;
            const cmoei_real x = real_get(&a->x, row, h);
            real_put(&a->out, row, h, real_fma(real_get(&a->shared, row, h), gate, x));
        }
    }
}

void CMOEI_REF(cmoei_silu_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h++) {
            const cmoei_real silu = real_silu(real_get(&a->gate, row, h));
            real_put(&a->out, row, h, real_round(silu, a->round_dtype) * real_get(&a->x, row, h));
        }
    }
}
