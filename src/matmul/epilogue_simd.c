/* SPDX-License-Identifier: MIT
 *
 * epilogue_simd.c - epilogue_ref.c in passes over one row of a tile, each a plain loop over columns
 * that compilers turn into vectors.  The same roundings in the same order: equal bits to the
 * reference.
 *
 * A row of a tile is 16 or 32 floats, so the passes run in registers and L1.
 */
#include "cmoe/matmul.h"
#include "core/vmath.h"
#include "epilogue.h"
#include "matmul.h"

/* v[0..panel) = dequantised sum + bias */
static void sums(const cmoei_epilogue *e, int32_t r, float *restrict v)
{
    const int32_t n = e->panel;
    if (e->col_scale) {
        const int32_t *acc = (const int32_t *)e->acc + r * n;
        const float row = e->row_scale[r];
        for (int32_t c = 0; c < n; c++)
            v[c] = (float)acc[c] * row * e->col_scale[c];
    } else {
        const float *acc = (const float *)e->acc + r * n;
        for (int32_t c = 0; c < n; c++)
            v[c] = acc[c];
    }
    if (e->bias) {
        for (int32_t c = 0; c < n; c++)
            v[c] += e->bias[c];
    }
}

static void round_all(float *v, int32_t n)
{
    for (int32_t c = 0; c < n; c++)
        v[c] = cmoei_round_bf16(v[c]);
}

static void limit_both(float limit, float *restrict g, float *restrict u, int32_t n)
{
    for (int32_t c = 0; c < n; c++) {
        g[c] = g[c] > limit ? limit : g[c];
        const float low = u[c] < -limit ? -limit : u[c];
        u[c] = low > limit ? limit : low;
    }
}

/* h = act(g) */
static void apply(const cmoei_activation *a, const float *restrict g, float *restrict h, int32_t n)
{
    const float alpha = a->alpha;
    switch (a->kind) {
    case CMOE_ACT_SILU:
        for (int32_t c = 0; c < n; c++)
            h[c] = cmoei_siluf(g[c]);
        break;
    case CMOE_ACT_GELU_TANH:
        for (int32_t c = 0; c < n; c++)
            h[c] = cmoei_gelu_tanhf(g[c]);
        break;
    case CMOE_ACT_SWIGLU_OSS:
        for (int32_t c = 0; c < n; c++)
            h[c] = g[c] / (1.0f + cmoei_expf(-(alpha * g[c])));
        break;
    default: /* CMOE_ACT_RELU2 */
        for (int32_t c = 0; c < n; c++)
            h[c] = g[c] < 0 ? 0 : g[c] * g[c];
    }
}

/* h *= u, or u + 1 */
static void meet(int32_t kind, const float *restrict u, float *restrict h, int32_t n)
{
    if (kind == CMOE_ACT_SWIGLU_OSS) {
        for (int32_t c = 0; c < n; c++)
            h[c] *= u[c] + 1.0f;
    } else {
        for (int32_t c = 0; c < n; c++)
            h[c] *= u[c];
    }
}

void CMOEI_SIMD(cmoei_activate)(const cmoei_epilogue *e)
{
    const cmoei_activation *a = e->activation;
    const int32_t width = a->gated ? e->panel / 2 : e->panel;
    float v[CMOEI_PANEL] = {0}, *u = v + width;
    for (int32_t r = 0; r < e->rows; r++) {
        float *h = (float *)e->out + r * width;
        sums(e, r, v);
        if (a->round_gate_up) round_all(v, e->panel);
        if (a->limit > 0) {
            float none[CMOEI_PANEL] = {0};
            limit_both(a->limit, v, a->gated ? u : none, width);
        }
        apply(a, v, h, width);
        if (a->round_act) round_all(h, width);
        if (a->gated) meet(a->kind, u, h, width);
        if (a->round_out) round_all(h, width);
    }
}

void CMOEI_SIMD(cmoei_finish)(const cmoei_epilogue *e)
{
    for (int32_t r = 0; r < e->rows; r++) {
        float *y = (float *)e->out + r * e->panel;
        sums(e, r, y);
        if (e->weight) {
            for (int32_t c = 0; c < e->panel; c++)
                y[c] *= e->weight[r];
        }
        if (e->round_out) round_all(y, e->panel);
    }
}
