/* SPDX-License-Identifier: MIT
 *
 * gates_backward.c - the gradient kernels of sigmoid_mul, silu_mul and clip against the double
 * oracle, and all of them bit by bit against each other.
 */
#include "backward.h"

#include "ops/gates_backward.h"

void cmoei_sigmoid_mul_backward_f64(const cmoei_gates_backward_args *a, int64_t row,
                                    int64_t row_end);
void cmoei_silu_mul_backward_f64(const cmoei_gates_backward_args *a, int64_t row, int64_t row_end);
void cmoei_clip_backward_f64(const cmoei_gates_backward_args *a, int64_t row, int64_t row_end);

enum { SIGMOID, SIGMOID_ONE, SILU, SILU_PAIRS, CLIP, OPS };

typedef struct op {
    const char *name;
    const cmoei_table *table;
    cmoei_gates_backward_fn oracle;
} op;

static const op ops[OPS] = {
    {"sigmoid", &cmoei_sigmoid_mul_backward_table, cmoei_sigmoid_mul_backward_f64},
    {"sigmoid, one gate", &cmoei_sigmoid_mul_backward_table, cmoei_sigmoid_mul_backward_f64},
    {"silu", &cmoei_silu_mul_backward_table, cmoei_silu_mul_backward_f64},
    {"silu, pairs", &cmoei_silu_mul_backward_table, cmoei_silu_mul_backward_f64},
    {"clip", &cmoei_clip_backward_table, cmoei_clip_backward_f64},
};

/* The sigmoid s is off by 4.2 roundings, 1 - s by 4.2 s + 1, so s * (1 - s) by less than 12 s; twice
 * that.  A sum adds cols / 32 + 6. */
static double sigmoid_bound(const cmoei_gates_backward_args *a, int64_t r, int64_t h, bool one)
{
    double product = 0;
    if (!one) return 24 * KC_U * fabs(kc_get(&a->dout, r, h) * kc_get(&a->x, r, h)) + FLT_MIN;
    for (int64_t i = 0; i < a->cols; i++)
        product += fabs(kc_get(&a->dout, r, i) * kc_get(&a->x, r, i));
    return 2 * KC_U * ((double)a->cols / CMOEI_LANES + 18) * product + FLT_MIN;
}

/* a = g * s is off by 5.2 roundings; a * (1 - s) + s by 5.2 |a| (1 - s) + |a| (4.2 s + 1) + 4.2 s and
 * one of its own, all less than 6.2 |a| + 6.5; then two products.  Twice it. */
static double silu_bound(const cmoei_gates_backward_args *a, int64_t r, int64_t col, double want)
{
    const bool up = a->interleaved ? col % 2 : col >= a->cols;
    const int64_t h = a->interleaved ? col / 2 : col % a->cols;
    const int64_t g = a->interleaved ? 2 * h : h, u = a->interleaved ? g + 1 : a->cols + h;
    if (up) return 2 * 6.2 * KC_U * 1.01 * fabs(want) + FLT_MIN;
    const double gate = kc_get(&a->x, r, g), silu = gate / (1 + exp(-gate));
    return 2 * KC_U * (6.2 * fabs(silu) + 6.5) *
               fabs(kc_get(&a->dout, r, h) * kc_get(&a->x, r, u)) +
           4 * KC_U * fabs(want) + FLT_MIN;
}

static double bound(const cmoei_gates_backward_args *a, int o, int64_t r, int64_t h, double want)
{
    if (o == CLIP) return 0;
    if (o == SILU || o == SILU_PAIRS) return silu_bound(a, r, h, want);
    return 2 * 5.2 * KC_U * 1.01 * fabs(want) + FLT_MIN;
}

static void compare(kc *c, const char *name, const cmoei_gates_backward_args *a, int o,
                    const cmoei_plane *dx, const cmoei_plane *dgate, int64_t rows)
{
    const int64_t wide = o == SILU || o == SILU_PAIRS ? 2 * a->cols : a->cols;
    const int64_t gates = o == SIGMOID_ONE ? 1 : a->cols;
    for (int64_t i = 0; i < rows * wide; i++) {
        const double want = kc_get(dx, i / wide, i % wide);
        kc_near(c, name, i, kc_get(&a->dx, i / wide, i % wide), want,
                bound(a, o, i / wide, i % wide, want));
    }
    for (int64_t i = 0; dgate && i < rows * gates; i++)
        kc_near(c, "dgate", i, kc_get(&a->dgate, i / gates, i % gates),
                kc_get(dgate, i / gates, i % gates),
                sigmoid_bound(a, i / gates, i % gates, o == SIGMOID_ONE));
}

static void check(kc *c, int o, int64_t rows, int64_t cols, int odd)
{
    kc_begin(c, "%s backward %dx%d odd=%d", ops[o].name, (int)rows, (int)cols, odd);
    const kc_lie lie = kc_f32(odd);
    const bool silu = o == SILU || o == SILU_PAIRS, gate = o == SIGMOID || o == SIGMOID_ONE;
    const int64_t wide = silu ? 2 * cols : cols, gates = o == SIGMOID_ONE ? 1 : cols;
    cmoei_gates_backward_args a = {.x = kc_plane(c, rows, wide, lie, silu ? 6 : 1),
                                   .dout = kc_plane(c, rows, cols, lie, 1),
                                   .cols = cols,
                                   .limit = .7f,
                                   .interleaved = o == SILU_PAIRS};
    if (o == CLIP) {
        const float special[4] = {NAN, -INFINITY, .7f, -.7f};
        for (int64_t i = 0; i < CMOEI_MIN(cols, 4); i++)
            cmoei_store_f32(cmoei_plane_at(&a.x, 0, i), CMOE_F32, 1, special + i, 1);
    }
    if (gate) a.gate = kc_plane(c, rows, gates, lie, 8);
    if (gates == 1) a.gate.col = 0;
    const cmoei_plane dx = kc_plane_out(c, rows, wide, kc_f64);
    const cmoei_plane dgate = kc_plane_out(c, rows, gates, kc_f64);
    const cmoei_plane first = kc_plane_out(c, rows, wide, lie);
    const cmoei_plane first_gate = kc_plane_out(c, rows, gates, lie);
    a.dx = dx;
    if (gate) a.dgate = dgate;
    ops[o].oracle(&a, 0, rows);
    for (int64_t v = ops[o].table->count - 1; v >= 0; v--) {
        const cmoei_gates_backward_kernel *kn = (const void *)cmoei_table_row(ops[o].table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == ops[o].table->count - 1;
        a.dx = ref ? first : kc_plane_out(c, rows, wide, lie);
        if (gate) a.dgate = ref ? first_gate : kc_plane_out(c, rows, gates, lie);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        compare(c, kn->variant.name, &a, o, &dx, gate ? &dgate : NULL, rows);
        kc_equal(c, kn->variant.name, a.dx.data, first.data, kc_bytes(&first, rows));
        if (gate) kc_equal(c, "dgate", a.dgate.data, first_gate.data, kc_bytes(&first_gate, rows));
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][2] = {{1, 1}, {2, 7}, {3, 32}, {4, 127}, {2, 700}, {1, 1100}};
    for (int o = 0; o < OPS; o++) {
        for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
            for (int odd = 0; odd < 2; odd++)
                check(&c, o, shapes[s][0], shapes[s][1], odd);
        }
    }
    return kc_report(&c, "kernels_gates_backward");
}
