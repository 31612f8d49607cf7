/* SPDX-License-Identifier: MIT
 *
 * combine_backward_simd.c - gradients of expert rows and of their weights, AVX2 and AVX-512.
 *
 * Memory sets the pace: each row of `rows` is read once and each of `drows` written once, while the
 * token's dout stays in L1 for its K slots.  The 16 partial sums of combine_backward_ref.c are one
 * vector or two.
 */
#include <immintrin.h>
#include <math.h>

#include "align/combine_backward.h"

void CMOEI_SIMD(cmoei_combine_back)(const cmoei_combine_back_args *a, int64_t t, int64_t t_end);

enum { LANES = 16 };

static inline float f32_at(const char *p, int64_t i)
{
    float x;
    memcpy(&x, p + 4 * i, sizeof x);
    return x;
}

#ifndef __AVX512F__
static inline __m256 load8(const void *p)
{
    return _mm256_loadu_ps(p);
}
#endif

/* Sums of the whole groups of LANES columns; returns how many columns that were.  By hand, as
 * compilers keep an array of partial sums in memory or split it into scalars. */
static inline int64_t dot_lanes(float *part, const char *x, const char *y, int64_t n)
{
    int64_t i = 0;
#ifdef __AVX512F__
    __m512 sum = _mm512_setzero_ps();
    for (; i + LANES <= n; i += LANES)
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + 4 * i), _mm512_loadu_ps(y + 4 * i), sum);
    _mm512_storeu_ps(part, sum);
#else
    __m256 low = _mm256_setzero_ps(), high = low;
    for (; i + LANES <= n; i += LANES) {
        low = _mm256_fmadd_ps(load8(x + 4 * i), load8(y + 4 * i), low);
        high = _mm256_fmadd_ps(load8(x + 4 * i + 32), load8(y + 4 * i + 32), high);
    }
    _mm256_storeu_ps(part, low);
    _mm256_storeu_ps(part + 8, high);
#endif
    return i;
}

static inline float dot(const char *x, const char *y, int64_t n)
{
    float part[LANES];
    const int64_t i = dot_lanes(part, x, y, n);
    for (int l = 0; i + l < n; l++)
        part[l] = fmaf(f32_at(x, i + l), f32_at(y, i + l), part[l]);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++)
            part[l] += part[l + half];
    }
    return part[0];
}

static inline void multiply(char *restrict out, float factor, const char *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float y = factor * f32_at(x, i);
        memcpy(out + 4 * i, &y, sizeof y);
    }
}

static inline float weight_at(const cmoei_combine_back_args *a, int64_t t, int64_t k)
{
    float w = 1;
    if (a->weights.data)
        cmoei_load_f32(&w, cmoei_plane_at(&a->weights, t, k), a->weights.dtype, 1, 1);
    return w;
}

void CMOEI_SIMD(cmoei_combine_back)(const cmoei_combine_back_args *a, int64_t t, int64_t t_end)
{
    for (; t < t_end; t++) {
        const char *dout = a->dout.data + t * a->dout.step;
        for (int64_t k = 0; k < a->topk; k++) {
            const int32_t row = a->row_of[t * a->topk + k];
            if (a->dweights.data) {
                const float d =
                    row < 0 ? 0
                            : a->scale * dot(a->rows.data + row * a->rows.step, dout, a->hidden);
                memcpy(a->dweights.data + t * a->dweights.step + 4 * k, &d, sizeof d);
            }
            if (row >= 0 && a->drows.data)
                multiply(a->drows.data + row * a->drows.step, a->scale * weight_at(a, t, k), dout,
                         a->hidden);
        }
    }
}
