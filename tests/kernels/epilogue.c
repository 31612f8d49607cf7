/* SPDX-License-Identifier: MIT
 *
 * epilogue.c - activations, biases, scales and roundings of a tile: each row of the table against
 * the double reference within derived bounds, and against the float reference bit for bit.
 */
#include "kc.h"

#include "cmoe/matmul.h"
#include "matmul/epilogue.h"
#include "matmul/matmul.h"

typedef struct shape {
    int32_t rows, panel;
    bool int8, bias, gated, round_gate_up, round_act, round_out;
    float limit;
} shape;

/* The largest slope of act is below 1.2 (silu, gelu) or 2|g| (relu2), and each of at most 8
 * roundings adds 2^-24 of what it rounds; bf16 roundings are compared through a step of the rounded
 * value. */
static double bound(const cmoei_activation *a, double g, double u, double h)
{
    const double step =
        (a->round_gate_up || a->round_act || a->round_out) ? 0x1p-7 : 16 * FLT_EPSILON;
    const double reach = (fabs(g) + 1) * (fabs(g) + 1) * (fabs(u) + 1);
    return step * (fabs(h) + reach) + FLT_MIN;
}

static void check(kc *c, const cmoei_epilogue_kernel *k, int32_t kind, shape s)
{
    kc_begin(c, "epilogue/%s %s rows=%d panel=%d int8=%d bias=%d gated=%d round=%d%d%d limit=%g",
             k->v.name, cmoe_activation_name(kind), s.rows, s.panel, s.int8, s.bias, s.gated,
             s.round_gate_up, s.round_act, s.round_out, s.limit);
    const int64_t n = s.rows * s.panel;
    const cmoei_activation a = {kind,        s.gated, s.round_gate_up, s.round_act,
                                s.round_out, s.limit, 1.702f};
    float *acc = kc_f32s(c, n);
    double *wide = kc_out(c, n * 8);
    for (int64_t i = 0; i < n; i++) {
        acc[i] *= 4;
        if (s.int8) {
            const int32_t sum = (int32_t)kc_int(c, -200000, 200000);
            memcpy(&acc[i], &sum, 4);
            wide[i] = sum;
        } else {
            wide[i] = acc[i];
        }
    }
    float *row_scale = kc_f32s(c, s.rows), *col_scale = kc_f32s(c, s.panel);
    for (int32_t i = 0; i < s.rows; i++)
        row_scale[i] = fabsf(row_scale[i]) * 5e-3f;
    for (int32_t i = 0; i < s.panel; i++)
        col_scale[i] = fabsf(col_scale[i]) * 5e-3f;
    cmoei_epilogue e = {.acc = acc,
                        .rows = s.rows,
                        .panel = s.panel,
                        .row_scale = row_scale,
                        .col_scale = s.int8 ? col_scale : NULL,
                        .bias = s.bias ? kc_f32s(c, s.panel) : NULL,
                        .weight = s.bias ? kc_f32s(c, s.rows) : NULL,
                        .round_out = s.round_out,
                        .activation = &a};
    const int32_t width = s.gated ? s.panel / 2 : s.panel;
    float *got = kc_out(c, n * 4), *ref = kc_out(c, n * 4);
    double *want = kc_out(c, n * 8);
    for (int finish = 0; finish < 2; finish++) {
        const int64_t outputs = finish ? n : s.rows * width;
        e.out = got;
        (finish ? k->finish : k->activate)(&e);
        e.out = ref;
        (finish ? cmoei_finish_ref : cmoei_activate_ref)(&e);
        kc_equal(c, finish ? "finish against ref" : "activate against ref", got, ref, outputs * 4);
        e.out = want;
        e.acc = wide;
        (finish ? cmoei_finish_f64 : cmoei_activate_f64)(&e);
        e.acc = acc;
        for (int64_t i = 0; i < outputs; i++) {
            const int32_t r = (int32_t)(i / (finish ? s.panel : width)),
                          col = (int32_t)(i % (finish ? s.panel : width));
            const double scale = s.int8 ? (double)row_scale[r] : 1;
            const double g =
                wide[r * s.panel + col] * scale * (s.int8 ? col_scale[col] : 1) + (s.bias ? 4 : 0);
            const double u = s.gated && !finish ? wide[r * s.panel + width + col] * scale *
                                                          (s.int8 ? col_scale[width + col] : 1) +
                                                      (s.bias ? 4 : 0)
                                                : 1;
            kc_near(c, finish ? "finish" : "activate", i, got[i], want[i],
                    bound(&a, g, u, want[i]));
        }
    }
    kc_end(c);
}

int main(void)
{
    const uint32_t features = cmoe_cpu_features();
    kc c = {0};
    for (int64_t i = 0; i < cmoei_epilogue_table.count; i++) {
        const cmoei_epilogue_kernel *k = (const void *)cmoei_table_row(&cmoei_epilogue_table, i);
        if (k->v.needs & ~features) continue;
        for (int32_t kind = CMOE_ACT_SILU; kind <= CMOE_ACT_RELU2; kind++) {
            for (int bits = 0; bits < 128; bits++) {
                const shape s = {1 + bits % 12,      bits & 1 ? 32 : bits & 2 ? 16 : 2,
                                 bits & 4,           bits & 8,
                                 bits & 16,          bits & 32 && bits & 64,
                                 bits & 64,          bits & 32,
                                 bits & 8 ? 1.5f : 0};
                if (s.gated || kind != CMOE_ACT_SWIGLU_OSS) check(&c, k, kind, s);
            }
        }
    }
    return kc_report(&c, "kernels_epilogue");
}
