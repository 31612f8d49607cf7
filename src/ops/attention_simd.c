/* SPDX-License-Identifier: MIT
 *
 * attention_simd.c - attention in tiles of four query rows, for AVX2 and AVX-512.
 *
 * In scores a lane is a key, in values it is a dim, so no sum is ever split and the bits are those
 * of attention_ref.c.  A strip of keys or dims of four rows stays in registers: 4 x 64 sums fill 16
 * of 32 registers of AVX-512, 4 x 16 sums 8 of 16 of AVX2.  A line of keys or values is loaded, and
 * widened from bf16, once for four rows.
 *
 * Scores of a whole page are computed whatever of it a row sees, because that costs less than to
 * ask; those that it does not see, of memory that may hold anything, are replaced by selection.
 * Values are added for visible keys only: 0 * NaN would be NaN.  Rows of a tile that see different
 * keys (neighbouring tokens) go together over what all see and one by one over the rest.
 */
#include "core/plane.h"
#include "core/vmath.h"
#include "ops/attention_kernel.h"
#include "ops/attention_vec.h"

void CMOEI_SIMD(cmoei_attention_part)(const cmoei_attention_args *a);
void CMOEI_SIMD(cmoei_attention_merge)(const cmoei_attention_parts *p);

enum {
    TILE = 4,
    KEYS = CMOE_KV_PAGE,
    LANES = CMOEI_ATTENTION_LANES,
};

/* ---- scores ---------------------------------------------------------------------------------- */

VEC_INLINE void score_strip(const cmoei_attention_args *a, const float *q, const char *keys,
                            float (*s)[KEYS], const int strip, const int rows, const int32_t format)
{
    vec sum[TILE][VEC_MOST];
    const int vecs = vec_strip(rows);
    const int64_t dims = a->key_dim;
    VEC_UNROLL
    for (int i = 0; i < rows * vecs; i++)
        sum[i / vecs][i % vecs] = vec_all(0);
    for (int64_t d = 0; d < dims; d++) {
        vec k[VEC_MOST];
        VEC_UNROLL
        for (int i = 0; i < vecs; i++)
            k[i] = vec_cached(keys, d * KEYS + strip + i * VEC, format);
        VEC_UNROLL
        for (int r = 0; r < rows; r++) {
            const vec x = vec_all(q[r * dims + d]);
            VEC_UNROLL
            for (int i = 0; i < vecs; i++)
                sum[r][i] = vec_fma(x, k[i], sum[r][i]);
        }
    }
    VEC_UNROLL
    for (int i = 0; i < rows * vecs; i++)
        vec_put(s[i / vecs] + strip + i % vecs * VEC,
                vec_mul(sum[i / vecs][i % vecs], vec_all(a->scale)));
}

/* ---- softmax of one row over one block ------------------------------------------------------- */

VEC_INLINE float fold_max(float *lane, float top)
{
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] = lane[j + n] > lane[j] ? lane[j + n] : lane[j];
    }
    return lane[0] > top ? lane[0] : top;
}

VEC_INLINE float fold_sum(float *lane)
{
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0];
}

/* Scores become weights, 0 where the row does not see; returns what l and acc shrink by. */
static inline float weigh(float *restrict s, int32_t low, int32_t high, float *m, float *l)
{
    float lane[LANES], t[KEYS];
    for (int32_t j = 0; j < KEYS; j++)
        t[j] = j >= low && j < high ? s[j] : -INFINITY;
    for (int j = 0; j < LANES; j++) {
        float x = -INFINITY; /* a NaN is dropped here */
        for (int i = 0; i < KEYS; i += LANES)
            x = t[i + j] > x ? t[i + j] : x;
        lane[j] = x;
    }
    const float top = fold_max(lane, *m), base = top == -INFINITY ? 0 : top;
    for (int32_t j = 0; j < KEYS; j++) {
        /* exp of an unseen score may raise anything or be slow; exp(0) is neither. */
        const bool seen = j >= low && j < high;
        const float e = cmoei_expf(seen ? s[j] - base : 0);
        s[j] = seen ? e : 0;
    }
    for (int j = 0; j < LANES; j++) {
        float x = 0;
        for (int i = 0; i < KEYS; i += LANES)
            x += s[i + j];
        lane[j] = x;
    }
    const float shrink = cmoei_expf(*m - base);
    *m = top;
    *l = fmaf(*l, shrink, fold_sum(lane));
    return shrink;
}

/* ---- values ---------------------------------------------------------------------------------- */

/* acc[r, d ..] = acc * shrink[r] + p[r] . values[low .. high - 1, d ..] for `vecs` vectors. */
VEC_INLINE void value_strip(const cmoei_attention_args *a, const char *values, float *acc,
                            const float (*p)[KEYS], const float *shrink, int32_t low, int32_t high,
                            int64_t d, const int rows, const int vecs, const int32_t format)
{
    vec sum[TILE][VEC_MOST];
    const int64_t dims = a->value_dim;
    VEC_UNROLL
    for (int r = 0; r < rows; r++) {
        VEC_UNROLL
        for (int i = 0; i < vecs; i++)
            sum[r][i] = vec_mul(vec_get(acc + r * dims + d + i * VEC), vec_all(shrink[r]));
    }
    for (int32_t j = low; j < high; j++) {
        vec v[VEC_MOST];
        VEC_UNROLL
        for (int i = 0; i < vecs; i++)
            v[i] = vec_cached(values, j * dims + d + i * VEC, format);
        VEC_UNROLL
        for (int r = 0; r < rows; r++) {
            const vec x = vec_all(p[r][j]);
            VEC_UNROLL
            for (int i = 0; i < vecs; i++)
                sum[r][i] = vec_fma(x, v[i], sum[r][i]);
        }
    }
    VEC_UNROLL
    for (int r = 0; r < rows; r++) {
        VEC_UNROLL
        for (int i = 0; i < vecs; i++)
            vec_put(acc + r * dims + d + i * VEC, sum[r][i]);
    }
}

/* The last few dims of one row, fewer than a vector. */
static void value_rest(const cmoei_attention_args *a, const char *values, float *acc,
                       const float *p, float shrink, int32_t low, int32_t high, int64_t d)
{
    const int64_t n = a->value_dim - d, bytes = cmoei_float_bytes(a->format);
    float v[VEC] = {0};
    memcpy(v, acc + d, (size_t)n * sizeof *v);
    vec sum = vec_mul(vec_get(v), vec_all(shrink));
    for (int32_t j = low; j < high; j++) {
        cmoei_load_f32(v, values + (j * a->value_dim + d) * bytes, a->format, 1, n);
        sum = vec_fma(vec_all(p[j]), vec_get(v), sum);
    }
    vec_put(v, sum);
    memcpy(acc + d, v, (size_t)n * sizeof *v);
}

VEC_INLINE void value_rows(const cmoei_attention_args *a, const char *values, float *acc,
                           const float (*p)[KEYS], const float *shrink, int32_t low, int32_t high,
                           const int rows, const int32_t format)
{
    const int vecs = vec_strip(rows);
    int64_t d = 0;
    for (; d + vecs * VEC <= a->value_dim; d += vecs * VEC)
        value_strip(a, values, acc, p, shrink, low, high, d, rows, vecs, format);
    for (; d + VEC <= a->value_dim; d += VEC)
        value_strip(a, values, acc, p, shrink, low, high, d, rows, 1, format);
    for (int r = 0; d < a->value_dim && r < rows; r++)
        value_rest(a, values, acc + r * a->value_dim, p[r], shrink[r], low, high, d);
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* What each row of a tile sees of a page, and what all of them do. */
typedef struct sight {
    int32_t low[TILE], high[TILE];
    int32_t all_low, all_high;
    bool any;
} sight;

VEC_INLINE sight look(const cmoei_attention_args *a, int64_t r, int64_t page, const int rows)
{
    sight s = {.all_low = 0, .all_high = KEYS};
    for (int i = 0; i < rows; i++) {
        s.any |= cmoei_attention_sees(a, r + i, page, &s.low[i], &s.high[i]);
        s.all_low = CMOEI_MAX(s.all_low, s.low[i]);
        s.all_high = CMOEI_MIN(s.all_high, s.high[i]);
    }
    return s;
}

/* Ascending keys for every row: before what all see, that, and after it. */
VEC_INLINE void add_values(const cmoei_attention_args *a, const char *values, float *acc,
                           const float (*p)[KEYS], float *shrink, const sight *s, const int rows,
                           const int32_t format)
{
    const bool together = s->all_low < s->all_high;
    for (int i = 0; i < rows; i++) {
        const int32_t end = together ? s->all_low : s->high[i];
        if (s->low[i] >= end) continue;
        value_rows(a, values, acc + i * a->value_dim, p + i, shrink + i, s->low[i], end, 1, format);
        shrink[i] = 1;
    }
    if (!together) return;
    value_rows(a, values, acc, p, shrink, s->all_low, s->all_high, rows, format);
    for (int i = 0; i < rows; i++) {
        shrink[i] = 1;
        if (s->all_high < s->high[i])
            value_rows(a, values, acc + i * a->value_dim, p + i, shrink + i, s->all_high,
                       s->high[i], 1, format);
    }
}

VEC_INLINE void add_block(const cmoei_attention_args *a, int64_t r, int64_t page, const int rows,
                          const int32_t format)
{
    const sight s = look(a, r, page, rows);
    if (!s.any) return;
    const char *at = cmoei_attention_page(a, page);
    float p[TILE][KEYS], shrink[TILE];
    for (int strip = 0; strip < KEYS; strip += vec_strip(rows) * VEC)
        score_strip(a, a->q + r * a->key_dim, at + a->keys, p, strip, rows, format);
    for (int i = 0; i < rows; i++) {
        shrink[i] = 1;
        if (s.low[i] < s.high[i])
            shrink[i] =
                weigh(p[i], s.low[i], s.high[i], (float *)a->m + r + i, (float *)a->l + r + i);
    }
    add_values(a, at + a->values, (float *)a->acc + r * a->value_dim, (const float(*)[KEYS])p,
               shrink, &s, rows, format);
}

#define BLOCK(name, rows, format)                                                        \
    static __attribute__((noinline)) void name(const cmoei_attention_args *a, int64_t r, \
                                               int64_t page)                             \
    {                                                                                    \
        add_block(a, r, page, rows, format);                                             \
    }
BLOCK(f32_tile, TILE, CMOE_F32)
BLOCK(f32_one, 1, CMOE_F32)
BLOCK(bf16_tile, TILE, CMOE_BF16)
BLOCK(bf16_one, 1, CMOE_BF16)

/* Page by page, so that all rows find it in the cache. */
void CMOEI_SIMD(cmoei_attention_part)(const cmoei_attention_args *a)
{
    const int64_t page_end = cmoei_ceil_div(a->key_end, KEYS);
    const bool wide = a->format == CMOE_F32;
    for (int64_t r = 0; r < a->rows; r++) {
        ((float *)a->m)[r] = -INFINITY;
        ((float *)a->l)[r] = 0;
    }
    memset(a->acc, 0, (size_t)(a->rows * a->value_dim) * sizeof(float));
    for (int64_t b = a->key / KEYS; b < page_end; b++) {
        int64_t r = 0;
        for (; r + TILE <= a->rows; r += TILE)
            (wide ? f32_tile : bf16_tile)(a, r, b);
        for (; r < a->rows; r++)
            (wide ? f32_one : bf16_one)(a, r, b);
    }
}

void CMOEI_SIMD(cmoei_attention_merge)(const cmoei_attention_parts *p)
{
    const float *m = p->m, *l = p->l;
    const float *restrict acc = p->acc;
    float *restrict out = p->out;
    float top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < p->parts; i++)
        top = m[i * p->step] > top ? m[i * p->step] : top;
    if (p->sink) top = *p->sink > top ? *p->sink : top;
    const float base = top == -INFINITY ? 0 : top;
    memset(out, 0, (size_t)p->value_dim * sizeof *out);
    for (int64_t i = 0; i < p->parts; i++) {
        const float weight = cmoei_expf(m[i * p->step] - base);
        sum = fmaf(l[i * p->step], weight, sum);
        for (int64_t d = 0; d < p->value_dim; d++)
            out[d] = fmaf(acc[i * p->step * p->value_dim + d], weight, out[d]);
    }
    if (p->sink) sum += cmoei_expf(*p->sink - base);
    for (int64_t d = 0; d < p->value_dim; d++)
        out[d] = sum == 0 ? 0 : out[d] / sum;
}
