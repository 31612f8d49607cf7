/* SPDX-License-Identifier: MIT
 *
 * rope_simd.c - rotary positions in blocks that stay in L1, vectorised by the compiler.
 *
 * Each element is the same sequence of operations as in rope_ref.c, so the bits are too.  Both
 * halves of a block of pairs are loaded before either is stored: out may lie on x.  The cosines of
 * a block are loaded once for all heads of the token.
 */
#include "core/vmath.h"
#include "ops/rope.h"

void CMOEI_SIMD(cmoei_rope_table)(const cmoei_rope_table_args *a, int64_t row, int64_t row_end);
void CMOEI_SIMD(cmoei_rope_rotate)(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end);

enum { PAIRS = CMOEI_BLOCK / 2 };

static inline void table_block(const cmoei_rope_table_args *a, int64_t row, int64_t j, int64_t n,
                               float position)
{
    float angle[CMOEI_BLOCK], c[CMOEI_BLOCK], s[CMOEI_BLOCK];
    cmoei_block_load(angle, &a->frequencies, 0, j, n);
    for (int64_t i = 0; i < n; i++)
        angle[i] *= position;
    for (int64_t i = 0; i < n; i++)
        c[i] = cmoei_cosf(angle[i]) * a->amplitude;
    for (int64_t i = 0; i < n; i++)
        s[i] = cmoei_sinf(angle[i]) * a->amplitude;
    cmoei_block_store(&a->cos, row, j, c, n);
    cmoei_block_store(&a->sin, row, j, s, n);
}

void CMOEI_SIMD(cmoei_rope_table)(const cmoei_rope_table_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        const char *p = a->positions + row * a->positions_step;
        const float position = (float)cmoei_load_index(p, a->positions_dtype);
        for (int64_t j = 0; j < a->half; j += CMOEI_BLOCK)
            table_block(a, row, j, CMOEI_MIN(a->half - j, CMOEI_BLOCK), position);
    }
}

static inline void turn_halves(const cmoei_rope_rotate_args *a, int64_t head, int64_t j, int64_t n,
                               const float *restrict c, const float *restrict s)
{
    float x[PAIRS], y[PAIRS];
    cmoei_block_load(x, &a->x, head, j, n);
    cmoei_block_load(y, &a->x, head, a->half + j, n);
    for (int64_t i = 0; i < n; i++) {
        const float first = fmaf(x[i], c[i], -(y[i] * s[i]));
        y[i] = fmaf(y[i], c[i], x[i] * s[i]);
        x[i] = first;
    }
    cmoei_block_store(&a->out, head, j, x, n);
    cmoei_block_store(&a->out, head, a->half + j, y, n);
}

static inline void turn_neighbours(const cmoei_rope_rotate_args *a, int64_t head, int64_t j,
                                   int64_t n, const float *restrict c, const float *restrict s)
{
    float x[2 * PAIRS], turned[2 * PAIRS];
    cmoei_block_load(x, &a->x, head, 2 * j, 2 * n);
    for (int64_t i = 0; i < n; i++) {
        turned[2 * i] = fmaf(x[2 * i], c[i], -(x[2 * i + 1] * s[i]));
        turned[2 * i + 1] = fmaf(x[2 * i + 1], c[i], x[2 * i] * s[i]);
    }
    cmoei_block_store(&a->out, head, 2 * j, turned, 2 * n);
}

void CMOEI_SIMD(cmoei_rope_rotate)(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end)
{
    for (int64_t j = 0; j < a->half; j += PAIRS) {
        const int64_t n = CMOEI_MIN(a->half - j, PAIRS);
        float c[PAIRS], s[PAIRS];
        cmoei_block_load(c, &a->cos, 0, j, n);
        cmoei_block_load(s, &a->sin, 0, j, n);
        for (int64_t i = 0; a->inverse && i < n; i++)
            s[i] = -s[i];
        for (int64_t h = head; h < head_end; h++) {
            if (a->interleaved)
                turn_neighbours(a, h, j, n, c, s);
            else
                turn_halves(a, h, j, n, c, s);
        }
    }
}
