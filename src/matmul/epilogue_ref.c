/* SPDX-License-Identifier: MIT
 *
 * epilogue_ref.c - one element at a time.
 *
 *     v = sum                              float formats
 *     v = (sum * row_scale) * col_scale    int8
 *     v = v + bias
 *     activate: g, u = v of gate and up; limits; h = act(g) * u
 *     finish:   y = v * weight
 *
 * The double build keeps the named roundings to bf16: they are part of what is computed.
 */
#include "cmoe/matmul.h"
#include "core/real.h"
#include "epilogue.h"

static cmoei_real to_bf16(cmoei_real x)
{
    return cmoei_round_bf16((float)x);
}

static cmoei_real sum_of(const cmoei_epilogue *e, int32_t r, int32_t c)
{
#ifdef CMOEI_DOUBLE
    const cmoei_real sum = ((const double *)e->acc)[r * e->panel + c];
#else
    const cmoei_real sum = e->col_scale ? (float)((const int32_t *)e->acc)[r * e->panel + c]
                                        : ((const float *)e->acc)[r * e->panel + c];
#endif
    const cmoei_real v = e->col_scale ? sum * e->row_scale[r] * e->col_scale[c] : sum;
    return e->bias ? v + e->bias[c] : v;
}

static cmoei_real act(const cmoei_activation *a, cmoei_real g)
{
    switch (a->kind) {
    case CMOE_ACT_SILU:
        return real_silu(g);
    case CMOE_ACT_GELU_TANH:
        return real_gelu_tanh(g);
    case CMOE_ACT_SWIGLU_OSS:
        return g / (1 + real_exp(-(a->alpha * g)));
    default: /* CMOE_ACT_RELU2 */
        return g < 0 ? 0 : g * g;
    }
}

void CMOEI_REF(cmoei_activate)(const cmoei_epilogue *e)
{
    const cmoei_activation *a = e->activation;
    const int32_t width = a->gated ? e->panel / 2 : e->panel;
    cmoei_real *out = e->out; /* [rows, width] */
    for (int32_t r = 0; r < e->rows; r++) {
        for (int32_t c = 0; c < width; c++) {
            cmoei_real g = sum_of(e, r, c), u = a->gated ? sum_of(e, r, width + c) : 1;
            if (a->round_gate_up) {
                g = to_bf16(g);
                u = to_bf16(u);
            }
            if (a->limit > 0) {
                g = g > a->limit ? a->limit : g;
                u = u > a->limit ? a->limit : u < -a->limit ? -a->limit : u;
            }
            cmoei_real h = act(a, g);
            if (a->round_act) h = to_bf16(h);
            if (a->gated) h = a->kind == CMOE_ACT_SWIGLU_OSS ? h * (u + 1) : h * u;
            out[r * width + c] = a->round_out ? to_bf16(h) : h;
        }
    }
}

void CMOEI_REF(cmoei_finish)(const cmoei_epilogue *e)
{
    cmoei_real *out = e->out; /* [rows, panel] */
    for (int32_t r = 0; r < e->rows; r++) {
        for (int32_t c = 0; c < e->panel; c++) {
            cmoei_real y = sum_of(e, r, c);
            if (e->weight) y *= e->weight[r];
            out[r * e->panel + c] = e->round_out ? to_bf16(y) : y;
        }
    }
}
