/* SPDX-License-Identifier: MIT
 *
 * cross_entropy_simd.c - cross-entropy and its gradient, vectorised by the compiler.
 *
 * A row is gone through for its maximum, then for the exponentials, which are summed and left in
 * dlogits, then they become the gradient: one exponential a logit.  A row of 200k logits is 800 KB,
 * so the second and third time it comes from L2.
 */
#include "ops/cross_entropy.h"

void CMOEI_SIMD(cmoei_cross_entropy)(const cmoei_cross_entropy_args *a, int64_t row,
                                     int64_t row_end);

enum { BLOCK = CMOEI_BLOCK, LANES = CMOEI_LANES };

static inline float number(const cmoei_plane *p, int64_t row, int64_t col)
{
    float x;
    memcpy(&x, cmoei_plane_at(p, row, col), sizeof x);
    return x;
}

/* x * 0 is 0 or, where x is not finite, NaN; `odd` is the sum of all. */
static inline float largest(const cmoei_f32 *restrict x, int64_t n, float *odd)
{
    float m[LANES], z[LANES] = {0};
    int64_t i = 0;
    for (int j = 0; j < LANES; j++)
        m[j] = x[0];
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
            z[j] = fmaf(x[i + j], 0.0f, z[j]);
        }
    }
    for (int j = 0; i + j < n; j++) {
        m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
        z[j] = fmaf(x[i + j], 0.0f, z[j]);
    }
    for (int j = 1; j < LANES; j++)
        m[0] = m[j] > m[0] ? m[j] : m[0];
    *odd = real_fold(z);
    return m[0];
}

/* e^(x - m) of a block that begins at a multiple of LANES; their sum goes to the lanes. */
static inline void exponentials(const cmoei_f32 *restrict x, float m, int64_t n, float *restrict e,
                                float *restrict lane)
{
    float l[LANES];
    int64_t i = 0;
    for (int64_t k = 0; k < n; k++)
        e[k] = cmoei_expf(x[k] - m);
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] += e[i + j];
    }
    for (int j = 0; i + j < n; j++)
        l[j] += e[i + j];
    memcpy(lane, l, sizeof l);
}

static inline void put(const cmoei_plane *p, int64_t row, int64_t col, float x)
{
    memcpy(cmoei_plane_at(p, row, col), &x, sizeof x);
}

static inline void cross_entropy(const cmoei_cross_entropy_args *a, int64_t row, int64_t target)
{
    const cmoei_f32 *x = (const void *)cmoei_plane_at(&a->logits, row, 0);
    float lane[LANES] = {0}, odd;
    const float m = largest(x, a->vocab, &odd), wanted = x[target];
    for (int64_t v = 0; v < a->vocab; v += BLOCK) {
        float e[BLOCK];
        const int64_t n = CMOEI_MIN(a->vocab - v, BLOCK);
        exponentials(x + v, m, n, e, lane);
        if (a->dlogits.data) cmoei_block_store(&a->dlogits, row, v, e, n);
    }
    const float z = real_fold(lane) + odd;
    if (a->loss.data) put(&a->loss, row, 0, m - wanted + cmoei_logf(z));
    if (!a->dlogits.data) return;
    cmoei_f32 *d = (void *)cmoei_plane_at(&a->dlogits, row, 0);
    const int64_t n = a->vocab;
    const float scale = number(&a->scale, row, 0), factor = scale / z;
    const float at_target = fmaf(d[target], factor, -scale);
    for (int64_t v = 0; v < n; v++)
        d[v] *= factor;
    d[target] = at_target;
}

void CMOEI_SIMD(cmoei_cross_entropy)(const cmoei_cross_entropy_args *a, int64_t row,
                                     int64_t row_end)
{
    for (; row < row_end; row++) {
        const int64_t target = cmoei_load_index(cmoei_at(&a->targets, row, 0), a->targets.dtype);
        if (target >= 0) {
            cross_entropy(a, row, target);
            continue;
        }
        if (a->loss.data) put(&a->loss, row, 0, 0);
        if (a->dlogits.data)
            memset(cmoei_plane_at(&a->dlogits, row, 0), 0, (size_t)a->vocab * sizeof(float));
    }
}
