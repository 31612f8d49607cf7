/* SPDX-License-Identifier: MIT
 *
 * act_backward.c - every kernel between the MLP's products against the double oracle, and against each
 * other bit for bit.
 */
#include "experts/act_backward.h"

#include "cmoe/matmul.h"
#include "kc.h"

/* Both act() and its slope are within a few ulp of a value of this size: sums and products of at most
 * eight roundings around an exponential of 1.1 ulp, whose argument is off by a few ulp itself. */
static double slack(double g, double u)
{
    const double a = fabs(g) + 1;
    return 64 * 0x1p-24 * a * a * (fabs(u) + 1);
}

typedef struct outs {
    float *hw, *dgate_up, dweight;
} outs;

static void run(const cmoei_act_backward_kernel *kn, cmoei_act_backward_args *a, const outs *o,
                float *dweight)
{
    a->hw = o->hw;
    a->dgate_up = o->dgate_up;
    a->dweight = dweight;
    kn->row(a);
}

static void check_values(kc *c, const cmoei_act_backward_args *a, const outs *got, int64_t columns)
{
    cmoei_act_backward_args f = *a;
    double *hw = malloc((size_t)(a->inter + 1) * 8), *d = malloc((size_t)(columns + 1) * 8), dot;
    double mag = 0;
    f.hw = hw;
    f.dgate_up = d;
    f.dweight = &dot;
    cmoei_act_backward_f64(&f);
    for (int64_t i = 0; i < a->inter; i++) {
        const int64_t at = a->gate_at + i * a->step, up = a->up_at + i * a->step;
        const double g = a->gate_up[at], u = a->activation->gated ? a->gate_up[up] : 1;
        /* A rounding to bf16 may fall the other way: 2^-8 of the value. */
        const double e = slack(g, u), wide = a->activation->round_out ? fabs(hw[i]) * 0x1p-7 : 0;
        const double w = fabs((double)a->weight), dy = fabs((double)a->g[i]);
        kc_near(c, "hw", i, got->hw[i], hw[i], w * e + wide);
        kc_near(c, "dgate", i, got->dgate_up[at], d[at], w * dy * e * (1 + fabs(g)));
        if (a->activation->gated) kc_near(c, "dup", i, got->dgate_up[up], d[up], w * dy * e);
        mag += dy * (e + (w > 0 ? wide / w : 0)) +
               (double)a->inter * 0x1p-23 * dy * fabs(hw[i]) / (w > 0 ? w : 1);
    }
    for (int64_t i = 0; a->bias && i < a->hidden; i++) {
        float dout;
        memcpy(&dout, (const char *)a->dout + 4 * i, 4);
        mag += (double)a->hidden * 0x1p-23 * fabs((double)dout * (double)a->bias[i]);
    }
    kc_near(c, "dweight", 0, got->dweight, dot, mag + fabs(dot) * 0x1p-22);
    free(hw);
    free(d);
}

/* `at`: 0 gate first, 1 up first, 2 gate and up alternate, 3 up and gate do. */
static void check(kc *c, cmoei_activation act, int64_t inter, int64_t hidden, int at, bool bias)
{
    const int64_t columns = act.gated ? 2 * inter : inter;
    kc_begin(c, "act_backward %s%s limit=%g%s I=%d H=%d at=%d", cmoe_activation_name(act.kind),
             act.gated ? "" : " ungated", (double)act.limit, act.round_out ? " bf16" : "",
             (int)inter, (int)hidden, at);
    float *gate_up = kc_f32s(c, columns), *g = kc_f32s(c, inter), *b = kc_f32s(c, hidden);
    float *dout = kc_f32s(c, hidden + 1);
    for (int64_t i = 0; i < columns; i++)
        gate_up[i] *= i % 5 ? 1.5f : 12.0f;
    if (columns > 3) {
        gate_up[0] = 0;
        gate_up[1] = -0.0f;
        gate_up[2] = -90;
        gate_up[3] = 100;
    }
    cmoei_act_backward_args a = {.activation = &act,
                                 .inter = inter,
                                 .hidden = hidden,
                                 .gate_at = at == 1   ? inter
                                            : at == 3 ? 1
                                                      : 0,
                                 .up_at = at == 0   ? inter
                                          : at == 2 ? 1
                                                    : 0,
                                 .step = at >= 2 ? 2 : 1,
                                 .gate_up = gate_up,
                                 .g = g,
                                 .weight = kc_normal(c),
                                 .bias = bias ? b : NULL,
                                 .dout = (const char *)dout + 1};
    for (int64_t i = 0; i < hidden; i++) /* at an odd address */
        memcpy((char *)dout + 1 + 4 * i, &b[hidden - 1 - i], 4);
    outs first = {kc_out(c, inter * 4), kc_out(c, columns * 4), 0};
    const cmoei_table *t = &cmoei_act_backward_table;
    for (int64_t i = t->count - 1; i >= 0; i--) {
        const cmoei_act_backward_kernel *kn = (const void *)cmoei_table_row(t, i);
        if (kn->v.needs & ~cmoe_cpu_features()) continue;
        if (i == t->count - 1) {
            run(kn, &a, &first, &first.dweight);
            check_values(c, &a, &first, columns);
            continue;
        }
        outs o = {kc_out(c, inter * 4), kc_out(c, columns * 4), 0};
        run(kn, &a, &o, &o.dweight);
        kc_equal(c, kn->v.name, o.hw, first.hw, inter * 4);
        kc_equal(c, kn->v.name, o.dgate_up, first.dgate_up, columns * 4);
        kc_equal(c, kn->v.name, &o.dweight, &first.dweight, 4);
        /* hw in the place of g */
        memcpy(o.hw, g, (size_t)inter * 4);
        cmoei_act_backward_args in_place = a;
        in_place.g = o.hw;
        run(kn, &in_place, &o, &o.dweight);
        kc_equal(c, "in place", o.hw, first.hw, inter * 4);
        kc_equal(c, "in place", &o.dweight, &first.dweight, 4);
    }
    kc_end(c);
}

int main(void)
{
    static const int64_t inters[] = {0, 1, 7, 31, 32, 33, 128, 129, 300};
    kc c = {0};
    for (int kind = CMOE_ACT_SILU; kind <= CMOE_ACT_RELU2; kind++) {
        for (int variant = 0; variant < 8; variant++) {
            cmoei_activation a = {.kind = kind,
                                  .gated = variant % 2 == 0 || kind == CMOE_ACT_SWIGLU_OSS,
                                  .round_out = variant / 2 % 2 == 1,
                                  .limit = variant / 4 ? 2.5f : 0,
                                  .alpha = 1.702f};
            for (size_t i = 0; i < sizeof inters / sizeof *inters; i++)
                for (int at = 0; at < (a.gated ? 4 : 1); at++)
                    check(&c, a, inters[i], 3 * inters[i] / 2 + 1, at, i % 2 == 1);
        }
    }
    return kc_report(&c, "kernels_act_backward");
}
