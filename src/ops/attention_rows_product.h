/* SPDX-License-Identifier: MIT
 *
 * ops/attention_rows_product.h - the one product that attention_rows_simd.c is made of:
 *
 *     c[i][lane] (+)= sum over n ascending of a[i, n] * b[n][lane]
 *
 * A block of 8 x 2 vectors of sums (6 x 2 for AVX2) stays in registers and makes 16 multiply-adds of
 * ten loads.  Every sum is one chain, so blocks of any size give the same bits.
 */
#ifndef CMOE_OPS_ATTENTION_ROWS_PRODUCT_H
#define CMOE_OPS_ATTENTION_ROWS_PRODUCT_H

#include "core/units.h"
#include "ops/attention_vec.h"

enum { MOST = VEC == 16 ? 8 : 6 }; /* rows of a block */

typedef struct operands {
    const cmoei_f32 *a; /* a[i, n] = a[i * a_row + n * a_col] */
    int64_t a_row, a_col;
    const float *b; /* b[n][lane] = b[n * b_row + lane] */
    int64_t b_row;
    cmoei_f32 *c; /* c[i][lane] = c[i * c_row + lane] */
    int64_t c_row;
    int64_t n;
    const uint32_t *seen; /* SEEN: lanes that term n belongs to */
    float scale;          /* SCALED */
} operands;

enum { SCALED, GROWS, SEEN }; /* c = scale * sum; c += sum; c += sum of the terms of seen lanes */

VEC_INLINE void block(const operands *o, int64_t i, int64_t lane, const int rows, const int vecs,
                      const int how)
{
    vec sum[MOST][2];
    const cmoei_f32 *a = o->a + i * o->a_row;
    const float *b = o->b + lane;
    float *c = (float *)(uintptr_t)(o->c + i * o->c_row + lane);
    VEC_UNROLL
    for (int r = 0; r < rows; r++) {
        VEC_UNROLL
        for (int v = 0; v < vecs; v++)
            sum[r][v] = how == SCALED ? vec_all(0) : vec_get(c + r * o->c_row + v * VEC);
    }
    for (int64_t n = 0; n < o->n; n++) {
        vec x[2];
        VEC_UNROLL
        for (int v = 0; v < vecs; v++)
            x[v] = vec_get(b + n * o->b_row + v * VEC);
        const uint32_t seen = how == SEEN ? o->seen[n] >> lane : 0;
        VEC_UNROLL
        for (int r = 0; r < rows; r++) {
            const vec y = vec_all(a[r * o->a_row + n * o->a_col]);
            VEC_UNROLL
            for (int v = 0; v < vecs; v++) {
                const vec next = vec_fma(y, x[v], sum[r][v]);
                sum[r][v] = how == SEEN ? vec_pick(seen >> v * VEC, next, sum[r][v]) : next;
            }
        }
    }
    VEC_UNROLL
    for (int r = 0; r < rows; r++) {
        VEC_UNROLL
        for (int v = 0; v < vecs; v++)
            vec_put(c + r * o->c_row + v * VEC,
                    how == SCALED ? vec_mul(sum[r][v], vec_all(o->scale)) : sum[r][v]);
    }
}

VEC_INLINE void line(const operands *o, int64_t i, int64_t lanes, const int rows, const int how)
{
    int64_t lane = 0;
    for (; lane + 2 * VEC <= lanes; lane += 2 * VEC)
        block(o, i, lane, rows, 2, how);
    if (lane + VEC <= lanes) block(o, i, lane, rows, 1, how);
}

/* Whole vectors of `lanes`, `rows` of c. */
VEC_INLINE void product(const operands *o, int64_t rows, int64_t lanes, const int how)
{
    int64_t i = 0;
    for (; i + MOST <= rows; i += MOST)
        line(o, i, lanes, MOST, how);
    for (; i + 4 <= rows; i += 4)
        line(o, i, lanes, 4, how);
    for (; i + 2 <= rows; i += 2)
        line(o, i, lanes, 2, how);
    if (i < rows) line(o, i, lanes, 1, how);
}

#define PRODUCT(name, how)                                                                     \
    static __attribute__((noinline)) void name(const operands *o, int64_t rows, int64_t lanes) \
    {                                                                                          \
        product(o, rows, lanes, how);                                                          \
    }
PRODUCT(product_scaled, SCALED)
PRODUCT(product_grows, GROWS)
PRODUCT(product_seen, SEEN)

#endif
