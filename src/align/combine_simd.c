/* SPDX-License-Identifier: MIT
 *
 * combine_simd.c - weighted sum of expert rows back into token order, vectorised by the compiler.
 *
 * The rows of one token lie anywhere in memory, so loads set the pace: each row is read once, a
 * block of columns at a time, and the block's sums stay in L1.  Up to four rows are added in one
 * pass, which saves three of four round trips of the sums to L1; the adds are still in slot order,
 * one fused multiply-add each, so the bits are those of combine_ref.c.
 */
#include "align/combine.h"

#include <math.h>

void CMOEI_SIMD(cmoei_combine)(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h,
                               int64_t h_end);

enum { WAYS = 4 };

/* The next up to WAYS kept slots of a token. */
typedef struct slots {
    int64_t n;
    const char *row[WAYS];
    float weight[WAYS];
} slots;

static inline float f32_at(const char *p, int64_t i)
{
    float x;
    memcpy(&x, p + 4 * i, sizeof x);
    return x;
}

static inline float bf16_at(const char *p, int64_t i)
{
    uint16_t x;
    memcpy(&x, p + 2 * i, sizeof x);
    return cmoei_bf16_to_f32(x);
}

#define ADD_ROWS(name, at)                                                                       \
    static inline void name##_4(float *restrict sum, const slots *s, int64_t n)                  \
    {                                                                                            \
        const char *restrict x0 = s->row[0], *restrict x1 = s->row[1];                           \
        const char *restrict x2 = s->row[2], *restrict x3 = s->row[3];                           \
        const float w0 = s->weight[0], w1 = s->weight[1], w2 = s->weight[2], w3 = s->weight[3];  \
        for (int64_t i = 0; i < n; i++) {                                                        \
            const float first = fmaf(w1, at(x1, i), fmaf(w0, at(x0, i), sum[i]));                \
            sum[i] = fmaf(w3, at(x3, i), fmaf(w2, at(x2, i), first));                            \
        }                                                                                        \
    }                                                                                            \
    static inline void name##_1(float *restrict sum, const char *restrict x, float w, int64_t n) \
    {                                                                                            \
        for (int64_t i = 0; i < n; i++)                                                          \
            sum[i] = fmaf(w, at(x, i), sum[i]);                                                  \
    }                                                                                            \
    static inline void name(float *restrict sum, const slots *s, int64_t n)                      \
    {                                                                                            \
        if (s->n == WAYS) {                                                                      \
            name##_4(sum, s, n);                                                                 \
            return;                                                                              \
        }                                                                                        \
        for (int64_t i = 0; i < s->n; i++)                                                       \
            name##_1(sum, s->row[i], s->weight[i], n);                                           \
    }

ADD_ROWS(add_f32, f32_at)
ADD_ROWS(add_bf16, bf16_at)

static inline void add_any(float *restrict sum, const slots *s, const cmoei_plane *rows, int64_t n)
{
    float x[CMOEI_BLOCK];
    for (int64_t i = 0; i < s->n; i++) {
        cmoei_load_f32(x, s->row[i], rows->dtype, rows->col, n);
        for (int64_t j = 0; j < n; j++)
            sum[j] = fmaf(s->weight[i], x[j], sum[j]);
    }
}

static inline void add_rows(const cmoei_combine_args *a, float *sum, int64_t t, int64_t h,
                            int64_t n)
{
    const int32_t *row_of = a->row_of + t * a->topk;
    for (int64_t k = 0; k < a->topk;) {
        slots s = {0};
        for (; k < a->topk && s.n < WAYS; k++) {
            if (row_of[k] < 0) continue; /* dropped slot */
            s.row[s.n] = cmoei_plane_at(&a->rows, row_of[k], h);
            s.weight[s.n++] = cmoei_combine_weight(a, t, k);
        }
        if (cmoei_plane_direct(&a->rows, CMOE_F32))
            add_f32(sum, &s, n);
        else if (cmoei_plane_direct(&a->rows, CMOE_BF16))
            add_bf16(sum, &s, n);
        else
            add_any(sum, &s, &a->rows, n);
    }
}

static inline void finish(const cmoei_combine_args *a, float *restrict sum, int64_t t, int64_t h,
                          int64_t n)
{
    if (a->shared_first) return;
    if (a->scale != 1) {
        for (int64_t i = 0; i < n; i++)
            sum[i] *= a->scale;
    }
    if (a->shared.data) {
        float shared[CMOEI_BLOCK];
        cmoei_block_load(shared, &a->shared, t, h, n);
        for (int64_t i = 0; i < n; i++)
            sum[i] += shared[i];
    }
}

void CMOEI_SIMD(cmoei_combine)(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h_0,
                               int64_t h_end)
{
    for (; t < t_end; t++) {
        for (int64_t h = h_0; h < h_end; h += CMOEI_BLOCK) {
            const int64_t n = CMOEI_MIN(h_end - h, CMOEI_BLOCK);
            float sum[CMOEI_BLOCK];
            if (a->shared_first)
                cmoei_block_load(sum, &a->shared, t, h, n);
            else
                memset(sum, 0, (size_t)n * sizeof *sum);
            add_rows(a, sum, t, h, n);
            finish(a, sum, t, h, n);
            cmoei_block_store(&a->out, t, h, sum, n);
        }
    }
}
