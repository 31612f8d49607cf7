/* SPDX-License-Identifier: MIT
 *
 * act_backward_simd.c - act_backward_ref.c in passes over blocks of a row that stay in L1, each a plain
 * loop that compilers turn into vectors.  The same roundings in the same order: equal bits to the
 * reference.
 */
#include <string.h>

#include "act_backward.h"
#include "cmoe/matmul.h"
#include "core/vmath.h"

enum { BLOCK = 128, LANES = CMOEI_ACT_LANES }; /* a block begins at lane 0 */

static inline void unpack(const float *restrict from, int64_t step, int64_t n, float *restrict to)
{
    if (step == 1) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        to[i] = from[2 * i];
}

static inline void pack(float *restrict to, int64_t step, int64_t n, const float *restrict from)
{
    if (step == 1) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        to[2 * i] = from[i];
}

static inline void slopes_silu(const float *restrict g, float *restrict a, float *restrict da)
{
    for (int i = 0; i < BLOCK; i++) {
        const float e = 1.0f + cmoei_expf(-g[i]), s = 1.0f / e;
        a[i] = g[i] / e;
        da[i] = fmaf(a[i], 1.0f - s, s);
    }
}

static inline void slopes_gelu(const float *restrict g, float *restrict a, float *restrict da)
{
    for (int i = 0; i < BLOCK; i++) {
        const float x = g[i], x2 = x * x;
        const float dy = fmaf(0.214064449f, x2, 1.59576912f);
        const float e = 1.0f + cmoei_expf(-(x * fmaf(0.0713548163f, x2, 1.59576912f)));
        const float s = 1.0f / e, flat = s * (1.0f - s);
        const float slope = fmaf(x * flat, dy, s);
        a[i] = x / e;
        da[i] = flat == 0.0f ? s : slope;
    }
}

static inline void slopes_oss(float alpha, const float *restrict g, float *restrict a,
                              float *restrict da)
{
    for (int i = 0; i < BLOCK; i++) {
        const float e = 1.0f + cmoei_expf(-(alpha * g[i])), s = 1.0f / e;
        a[i] = g[i] / e;
        da[i] = fmaf(alpha * a[i], 1.0f - s, s);
    }
}

static inline void slopes_relu2(const float *restrict g, float *restrict a, float *restrict da)
{
    for (int i = 0; i < BLOCK; i++) {
        a[i] = g[i] < 0 ? 0 : g[i] * g[i];
        da[i] = g[i] < 0 ? 0 : 2.0f * g[i];
    }
}

/* a = act(g), da = its derivative.  Always whole blocks: what stands behind n is zeros. */
static inline void slopes(const cmoei_activation *k, const float *g, float *a, float *da)
{
    switch (k->kind) {
    case CMOE_ACT_SILU:
        slopes_silu(g, a, da);
        break;
    case CMOE_ACT_GELU_TANH:
        slopes_gelu(g, a, da);
        break;
    case CMOE_ACT_SWIGLU_OSS:
        slopes_oss(k->alpha, g, a, da);
        break;
    default: /* CMOE_ACT_RELU2 */
        slopes_relu2(g, a, da);
    }
}

static inline void cut_at(float limit, const float *restrict raw, const float *restrict raw_up,
                          float *restrict gate, float *restrict up)
{
    for (int i = 0; i < BLOCK; i++) {
        const float low = raw_up[i] < -limit ? -limit : raw_up[i];
        gate[i] = raw[i] > limit ? limit : raw[i];
        up[i] = low > limit ? limit : low;
    }
}

/* No gradient where a limit cut. */
static inline void clear_cut(float limit, const float *restrict raw, const float *restrict raw_up,
                             float *restrict dgate, float *restrict dup)
{
    for (int i = 0; i < BLOCK; i++) {
        dgate[i] = raw[i] > limit ? 0.0f : dgate[i];
        dup[i] = raw_up[i] > limit || raw_up[i] < -limit ? 0.0f : dup[i];
    }
}

/* lane[i % LANES] += x[i] * y[i] for a block, whose zeros behind n add nothing but zeros. */
static inline void add_products(float *restrict lane, const float *restrict x,
                                const float *restrict y, int64_t n)
{
    float l[LANES];
    int64_t i = 0;
    memcpy(l, lane, sizeof l);
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            l[j] = fmaf(x[i + j], y[i + j], l[j]);
    }
    for (int j = 0; i + j < n; j++)
        l[j] = fmaf(x[i + j], y[i + j], l[j]);
    memcpy(lane, l, sizeof l);
}

static inline float add_lanes(float *lane)
{
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0];
}

/* Elements [i, i + n) of the row. */
static inline void block(const cmoei_act_backward_args *a, int64_t i, int64_t n,
                         float *restrict lane)
{
    const cmoei_activation *k = a->activation;
    const int64_t gate_at = a->gate_at + i * a->step, up_at = a->up_at + i * a->step;
    float raw[BLOCK] = {0}, raw_up[BLOCK] = {0}, gate[BLOCK], up[BLOCK], act[BLOCK], dact[BLOCK],
          g[BLOCK] = {0}, h[BLOCK], dgate[BLOCK], dup[BLOCK];
    unpack(a->gate_up + gate_at, a->step, n, raw);
    if (k->gated) unpack(a->gate_up + up_at, a->step, n, raw_up);
    memcpy(g, a->g + i, (size_t)n * sizeof *g);
    memcpy(gate, raw, sizeof gate);
    memcpy(up, raw_up, sizeof up);
    if (k->limit > 0) cut_at(k->limit, raw, raw_up, gate, up);
    for (int j = 0; j < BLOCK && !k->gated; j++)
        up[j] = 1.0f;
    for (int j = 0; j < BLOCK && k->kind == CMOE_ACT_SWIGLU_OSS; j++)
        up[j] += 1.0f;
    slopes(k, gate, act, dact);
    for (int j = 0; j < BLOCK; j++)
        h[j] = act[j] * up[j];
    for (int j = 0; j < BLOCK && k->round_out; j++)
        h[j] = cmoei_round_bf16(h[j]);
    add_products(lane, h, g, n);
    for (int j = 0; j < BLOCK; j++) {
        const float dh = a->weight * g[j];
        dgate[j] = dh * up[j] * dact[j];
        dup[j] = dh * act[j];
        h[j] *= a->weight;
    }
    if (k->limit > 0) clear_cut(k->limit, raw, raw_up, dgate, dup);
    memcpy((float *)a->hw + i, h, (size_t)n * sizeof *h);
    pack((float *)a->dgate_up + gate_at, a->step, n, dgate);
    if (k->gated) pack((float *)a->dgate_up + up_at, a->step, n, dup);
}

static inline float bias_dot(const cmoei_act_backward_args *a)
{
    float lane[LANES] = {0}, dout[BLOCK];
    for (int64_t i = 0; i < a->hidden; i += BLOCK) {
        const int64_t n = CMOEI_MIN(a->hidden - i, BLOCK);
        memcpy(dout, (const char *)a->dout + i * (int64_t)sizeof *dout, (size_t)n * sizeof *dout);
        add_products(lane, a->bias + i, dout, n);
    }
    return add_lanes(lane);
}

void CMOEI_SIMD(cmoei_act_backward)(const cmoei_act_backward_args *a)
{
    float lane[LANES] = {0};
    for (int64_t i = 0; i < a->inter; i += BLOCK)
        block(a, i, CMOEI_MIN(a->inter - i, BLOCK), lane);
    const float dot = add_lanes(lane);
    *(float *)a->dweight = a->bias ? dot + bias_dot(a) : dot;
}
