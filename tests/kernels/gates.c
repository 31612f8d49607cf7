/* SPDX-License-Identifier: MIT
 *
 * gates.c - the kernels of sigmoid_mul, add_shared_expert and silu_mul against the double oracle,
 * and all of them bit by bit against each other.
 */
#include "planes.h"

#include "ops/gates.h"

void cmoei_sigmoid_mul_f64(const cmoei_gates_args *a, int64_t row, int64_t row_end);
void cmoei_add_shared_expert_f64(const cmoei_gates_args *a, int64_t row, int64_t row_end);
void cmoei_silu_mul_f64(const cmoei_gates_args *a, int64_t row, int64_t row_end);

typedef struct op {
    const cmoei_table *table;
    cmoei_gates_fn oracle;
    bool shared;
} op;

static const op ops[] = {{&cmoei_sigmoid_mul_table, cmoei_sigmoid_mul_f64, false},
                         {&cmoei_add_shared_expert_table, cmoei_add_shared_expert_f64, true},
                         {&cmoei_silu_mul_table, cmoei_silu_mul_f64, false}};

/* The gate is off by 1.1 ulp of exp (2.2 half units), one addition and one division, then perhaps a
 * rounding to round_dtype; the product, or the fused add, is one rounding of its own; the result is
 * rounded to its format.  Twice the float32 part. */
static double bound(const cmoei_gates_args *a, const op *o, int64_t r, int64_t h, double want)
{
    const double gate = 2 * 4.2 * 0x1p-24 + (a->round_dtype ? kc_half_ulp(a->round_dtype) : 0);
    double product = fabs(want);
    if (o->shared) product = fabs(want - kc_get(&a->x, r, h));
    return gate * 1.01 * product + (0x1p-23 + kc_half_ulp(a->out.dtype)) * fabs(want) +
           kc_tiny(a->out.dtype) + (fabs(kc_get(&a->x, r, h)) + 1) * kc_tiny(a->round_dtype);
}

static void check(kc *c, const op *o, int64_t rows, int64_t cols, kc_lie lie, int gate,
                  int32_t round_dtype)
{
    kc_begin(c, "%s %dx%d %s col=%d odd=%d gate=%d round=%s", o->table->op, (int)rows, (int)cols,
             cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd, gate, cmoe_dtype_name(round_dtype));
    cmoei_gates_args a = {
        .x = kc_plane(c, rows, cols, lie, 1), .cols = cols, .round_dtype = round_dtype};
    if (o->shared) a.shared = kc_plane(c, rows, cols, lie, 1);
    if (gate) a.gate = kc_plane(c, rows, gate == 1 ? 1 : cols, lie, 8);
    if (gate == 1) a.gate.col = 0;
    const cmoei_plane want = kc_plane_out(c, rows, cols, (kc_lie){CMOE_F64, 1, 0});
    const cmoei_plane first = kc_plane_out(c, rows, cols, lie);
    a.out = want;
    o->oracle(&a, 0, rows);
    for (int64_t v = o->table->count - 1; v >= 0; v--) {
        const cmoei_gates_kernel *kn = (const void *)cmoei_table_row(o->table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        a.out = v == o->table->count - 1 ? first : kc_plane_out(c, rows, cols, lie);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        for (int64_t i = 0; i < rows * cols; i++) {
            const double y = kc_get(&want, i / cols, i % cols);
            kc_near(c, kn->variant.name, i, kc_get(&a.out, i / cols, i % cols), y,
                    bound(&a, o, i / cols, i % cols, y));
        }
        kc_equal(c, kn->variant.name, a.out.data, first.data,
                 rows * cols * lie.col * cmoe_dtype_bytes(lie.dtype));
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][2] = {{1, 2048}, {3, 1}, {5, 31}, {2, 513}, {4, 127}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++) {
            for (int64_t o = 0; o < CMOEI_COUNT(ops); o++) {
                for (int gate = ops[o].shared ? 0 : 1; gate < 3; gate++) {
                    check(&c, &ops[o], shapes[s][0], shapes[s][1], kc_lies[l], gate, 0);
                    check(&c, &ops[o], shapes[s][0], shapes[s][1], kc_lies[l], gate, CMOE_BF16);
                }
            }
        }
    }
    return kc_report(&c, "kernels_gates");
}
