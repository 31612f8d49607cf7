/* SPDX-License-Identifier: MIT
 *
 * act_backward_ref.c - one element at a time, the sums over THE tree of act_backward.h.
 *
 * The double build keeps the rounding of h to bf16: it is part of what is computed.
 */
#include <string.h>

#include "act_backward.h"
#include "cmoe/matmul.h"
#include "core/real.h"

typedef struct slope {
    cmoei_real a, da; /* act(g) and its derivative */
} slope;

static slope act(const cmoei_activation *k, cmoei_real g)
{
    switch (k->kind) {
    case CMOE_ACT_SILU: {
        const cmoei_real s = real_sigmoid(g), a = real_silu(g);
        return (slope){a, real_fma(a, 1 - s, s)};
    }
    case CMOE_ACT_GELU_TANH: {
        /* g * sigmoid(y); where the sigmoid is flat, y' may be infinite. */
        const cmoei_real y =
            g * real_fma((cmoei_real)0.0713548163f, g * g, (cmoei_real)1.59576912f);
        const cmoei_real dy = real_fma((cmoei_real)0.214064449f, g * g, (cmoei_real)1.59576912f);
        const cmoei_real s = real_sigmoid(y), flat = s * (1 - s);
        return (slope){real_gelu_tanh(g), flat == 0 ? s : real_fma(g * flat, dy, s)};
    }
    case CMOE_ACT_SWIGLU_OSS: {
        const cmoei_real e = 1 + real_exp(-((cmoei_real)k->alpha * g)), s = 1 / e, a = g / e;
        return (slope){a, real_fma((cmoei_real)k->alpha * a, 1 - s, s)};
    }
    default: /* CMOE_ACT_RELU2 */
        return (slope){g < 0 ? 0 : g * g, g < 0 ? 0 : 2 * g};
    }
}

static cmoei_real tree(cmoei_real *lane)
{
    for (int n = CMOEI_ACT_LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0];
}

static cmoei_real bias_dot(const cmoei_act_backward_args *a)
{
    cmoei_real lane[CMOEI_ACT_LANES] = {0};
    for (int64_t i = 0; i < a->hidden; i++) {
        float d;
        memcpy(&d, (const char *)a->dout + i * (int64_t)sizeof d, sizeof d);
        lane[i % CMOEI_ACT_LANES] =
            real_fma((cmoei_real)a->bias[i], (cmoei_real)d, lane[i % CMOEI_ACT_LANES]);
    }
    return tree(lane);
}

void CMOEI_REF(cmoei_act_backward)(const cmoei_act_backward_args *a)
{
    const cmoei_activation *k = a->activation;
    cmoei_real *hw = a->hw, *dgate_up = a->dgate_up;
    cmoei_real lane[CMOEI_ACT_LANES] = {0};
    for (int64_t i = 0; i < a->inter; i++) {
        const int64_t gate = a->gate_at + i * a->step, up = a->up_at + i * a->step;
        const cmoei_real limit = k->limit, raw = a->gate_up[gate];
        const cmoei_real raw_up = k->gated ? a->gate_up[up] : 1;
        const bool cut = limit > 0 && raw > limit;
        const bool cut_up = limit > 0 && (raw_up > limit || raw_up < -limit);
        const slope s = act(k, cut ? limit : raw);
        cmoei_real u = cut_up ? (raw_up > 0 ? limit : -limit) : raw_up;
        if (k->kind == CMOE_ACT_SWIGLU_OSS) u += 1;
        if (!k->gated) u = 1;
        const cmoei_real h = k->round_out ? cmoei_round_bf16((float)(s.a * u)) : s.a * u;
        const cmoei_real g = a->g[i], dh = a->weight * g;
        lane[i % CMOEI_ACT_LANES] = real_fma(h, g, lane[i % CMOEI_ACT_LANES]);
        hw[i] = a->weight * h;
        dgate_up[gate] = cut ? 0 : dh * u * s.da;
        if (k->gated) dgate_up[up] = cut_up ? 0 : dh * s.a;
    }
    const cmoei_real dot = tree(lane);
    *(cmoei_real *)a->dweight = a->bias ? dot + bias_dot(a) : dot;
}
