/* SPDX-License-Identifier: MIT
 *
 * gates_backward_simd.c - gradients of the elementwise gates, vectorised by the compiler.
 *
 * Each element is the same sequence of operations as in gates_backward_ref.c.  Results go into a
 * block that stays in L1, which is stored when the same block of the inputs has been read: outputs
 * may lie on inputs.
 */
#include "ops/gates_backward.h"

void CMOEI_SIMD(cmoei_sigmoid_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                            int64_t row_end);
void CMOEI_SIMD(cmoei_silu_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                         int64_t row_end);
void CMOEI_SIMD(cmoei_clip_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                     int64_t row_end);

enum { BLOCK = CMOEI_BLOCK, LANES = CMOEI_LANES };

static inline const cmoei_f32 *at(const cmoei_plane *p, int64_t row, int64_t h)
{
    return (const void *)cmoei_plane_at(p, row, h);
}

/* ---- sigmoid_mul ----------------------------------------------------------------------------- */

/* A block begins at a multiple of LANES. */
static inline void add_products(float *restrict lane, const cmoei_f32 *restrict x,
                                const cmoei_f32 *restrict y, int64_t n)
{
    float l[LANES];
    int64_t i = 0;
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] = fmaf(y[i + j], x[i + j], l[j]);
    }
    for (int j = 0; i + j < n; j++)
        l[j] = fmaf(y[i + j], x[i + j], l[j]);
    memcpy(lane, l, sizeof l);
}

/* One gate for the row. */
static inline void sigmoid_row(const cmoei_gates_backward_args *a, int64_t row)
{
    const float s = cmoei_sigmoidf(*at(&a->gate, row, 0));
    float lane[LANES] = {0};
    for (int64_t h = 0; h < a->cols; h += BLOCK) {
        const int64_t n = CMOEI_MIN(a->cols - h, BLOCK);
        const cmoei_f32 *dout = at(&a->dout, row, h);
        if (a->dgate.data) add_products(lane, at(&a->x, row, h), dout, n);
        if (!a->dx.data) continue;
        float dx[BLOCK];
        for (int64_t i = 0; i < n; i++)
            dx[i] = dout[i] * s;
        cmoei_block_store(&a->dx, row, h, dx, n);
    }
    const float dgate = real_fold(lane) * (s * (1.0f - s));
    if (a->dgate.data) memcpy(cmoei_plane_at(&a->dgate, row, 0), &dgate, sizeof dgate);
}

static inline void sigmoid_block(const cmoei_f32 *restrict x, const cmoei_f32 *restrict gate,
                                 const cmoei_f32 *restrict dout, int64_t n, float *restrict dx,
                                 float *restrict dgate)
{
    for (int64_t i = 0; i < n; i++) {
        const float s = cmoei_sigmoidf(gate[i]);
        dx[i] = dout[i] * s;
        dgate[i] = dout[i] * x[i] * (s * (1.0f - s));
    }
}

void CMOEI_SIMD(cmoei_sigmoid_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                            int64_t row_end)
{
    for (; row < row_end; row++) {
        if (a->gate.col == 0) {
            sigmoid_row(a, row);
            continue;
        }
        for (int64_t h = 0; h < a->cols; h += BLOCK) {
            float dx[BLOCK], dgate[BLOCK];
            const int64_t n = CMOEI_MIN(a->cols - h, BLOCK);
            sigmoid_block(at(&a->x, row, h), at(&a->gate, row, h), at(&a->dout, row, h), n, dx,
                          dgate);
            if (a->dx.data) cmoei_block_store(&a->dx, row, h, dx, n);
            if (a->dgate.data) cmoei_block_store(&a->dgate, row, h, dgate, n);
        }
    }
}

/* ---- silu_mul -------------------------------------------------------------------------------- */

/* gate and up become their gradients. */
static inline void silu_block(const cmoei_f32 *restrict dout, int64_t n, float *restrict gate,
                              float *restrict up)
{
    for (int64_t i = 0; i < n; i++) {
        const float s = cmoei_sigmoidf(gate[i]), silu = gate[i] * s;
        gate[i] = dout[i] * up[i] * fmaf(silu, 1.0f - s, s);
        up[i] = dout[i] * silu;
    }
}

static inline void silu_interleaved(const cmoei_gates_backward_args *a, int64_t row, int64_t h,
                                    int64_t n)
{
    float both[2 * BLOCK], gate[BLOCK], up[BLOCK];
    cmoei_block_load(both, &a->x, row, 2 * h, 2 * n);
    for (int64_t i = 0; i < n; i++) {
        gate[i] = both[2 * i];
        up[i] = both[2 * i + 1];
    }
    silu_block(at(&a->dout, row, h), n, gate, up);
    for (int64_t i = 0; i < n; i++) {
        both[2 * i] = gate[i];
        both[2 * i + 1] = up[i];
    }
    cmoei_block_store(&a->dx, row, 2 * h, both, 2 * n);
}

void CMOEI_SIMD(cmoei_silu_mul_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                         int64_t row_end)
{
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += BLOCK) {
            float gate[BLOCK], up[BLOCK];
            const int64_t n = CMOEI_MIN(a->cols - h, BLOCK);
            if (a->interleaved) {
                silu_interleaved(a, row, h, n);
                continue;
            }
            cmoei_block_load(gate, &a->x, row, h, n);
            cmoei_block_load(up, &a->x, row, a->cols + h, n);
            silu_block(at(&a->dout, row, h), n, gate, up);
            cmoei_block_store(&a->dx, row, h, gate, n);
            cmoei_block_store(&a->dx, row, a->cols + h, up, n);
        }
    }
}

/* ---- clip ------------------------------------------------------------------------------------ */

void CMOEI_SIMD(cmoei_clip_backward)(const cmoei_gates_backward_args *a, int64_t row,
                                     int64_t row_end)
{
    const float limit = a->limit;
    for (; row < row_end; row++) {
        for (int64_t h = 0; h < a->cols; h += BLOCK) {
            float dx[BLOCK];
            const int64_t n = CMOEI_MIN(a->cols - h, BLOCK);
            const cmoei_f32 *restrict x = at(&a->x, row, h), *restrict dout = at(&a->dout, row, h);
            for (int64_t i = 0; i < n; i++)
                dx[i] = fabsf(x[i]) <= limit ? dout[i] : 0.0f; /* false for NaN */
            cmoei_block_store(&a->dx, row, h, dx, n);
        }
    }
}
