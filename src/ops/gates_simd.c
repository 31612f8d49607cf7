/* SPDX-License-Identifier: MIT
 *
 * gates_simd.c - the elementwise gates in blocks that stay in L1, vectorised by the compiler.
 *
 * Each element is the same sequence of operations as in gates_ref.c, so the bits are too.  A block
 * of x is loaded before the same block of out is stored: out may lie on x.
 */
#include "core/vmath.h"
#include "ops/gates.h"

void CMOEI_SIMD(cmoei_sigmoid_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end);
void CMOEI_SIMD(cmoei_add_shared_expert)(const cmoei_gates_args *a, int64_t row, int64_t row_end);
void CMOEI_SIMD(cmoei_silu_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end);

static inline void load_sigmoid(const cmoei_gates_args *a, int64_t row, int64_t h, int64_t n,
                                float *restrict g)
{
    const bool repeated = a->gate.col == 0;
    const int64_t m = repeated ? 1 : n;
    cmoei_block_load(g, &a->gate, row, h, m);
    for (int64_t i = 0; i < m; i++)
        g[i] = cmoei_sigmoidf(g[i]);
    cmoei_block_round(g, a->round_dtype, m);
    for (int64_t i = m; i < n; i++)
        g[i] = g[0];
}

void CMOEI_SIMD(cmoei_sigmoid_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += CMOEI_BLOCK) {
            const int64_t n = CMOEI_MIN(a->cols - h, CMOEI_BLOCK);
            float x[CMOEI_BLOCK], g[CMOEI_BLOCK];
            cmoei_block_load(x, &a->x, row, h, n);
            load_sigmoid(a, row, h, n, g);
            for (int64_t i = 0; i < n; i++)
                x[i] *= g[i];
            cmoei_block_store(&a->out, row, h, x, n);
        }
    }
}

void CMOEI_SIMD(cmoei_add_shared_expert)(const cmoei_gates_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += CMOEI_BLOCK) {
            const int64_t n = CMOEI_MIN(a->cols - h, CMOEI_BLOCK);
            float x[CMOEI_BLOCK], shared[CMOEI_BLOCK], g[CMOEI_BLOCK];
            cmoei_block_load(x, &a->x, row, h, n);
            cmoei_block_load(shared, &a->shared, row, h, n);
            if (a->gate.data) {
                load_sigmoid(a, row, h, n, g);
                for (int64_t i = 0; i < n; i++)
                    x[i] = fmaf(shared[i], g[i], x[i]);
            } else {
                for (int64_t i = 0; i < n; i++)
                    x[i] += shared[i];
            }
            cmoei_block_store(&a->out, row, h, x, n);
        }
    }
}

void CMOEI_SIMD(cmoei_silu_mul)(const cmoei_gates_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += CMOEI_BLOCK) {
            const int64_t n = CMOEI_MIN(a->cols - h, CMOEI_BLOCK);
            float x[CMOEI_BLOCK], g[CMOEI_BLOCK];
            cmoei_block_load(x, &a->x, row, h, n);
            cmoei_block_load(g, &a->gate, row, h, n);
            for (int64_t i = 0; i < n; i++)
                g[i] = cmoei_siluf(g[i]);
            cmoei_block_round(g, a->round_dtype, n);
            for (int64_t i = 0; i < n; i++)
                g[i] *= x[i];
            cmoei_block_store(&a->out, row, h, g, n);
        }
    }
}
