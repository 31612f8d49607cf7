/* SPDX-License-Identifier: MIT
 *
 * norm.c - every RMS norm kernel against the double oracle, and all of them bit by bit against each
 * other.
 */
#include "planes.h"

#include "ops/norm.h"

void cmoei_norm_f64(const cmoei_norm_args *a, int64_t row, int64_t row_end);

typedef struct kind {
    int residual, weight, residual_out, round_sum;
    int32_t order;
    float offset;
} kind;

/* In units of 2^-24, relative to |y|, to first order: each term of the sum of squares passes
 * hidden / 32 + 5 additions and the square of s, itself rounded once; the root halves that.  Then
 * mean, eps, root, inverse (4 roundings, the first two halved), s, two products, offset + weight.
 * Twice it. */
static double relative(const cmoei_norm_args *a)
{
    double units = ((double)a->hidden / CMOEI_NORM_LANES + 5 + 3 + 2) / 2 + 2 + 1 + 2 + 1;
    double r = 2 * units * 0x1p-24;
    if (a->order == CMOE_NORM_CAST_THEN_WEIGHT) r += kc_half_ulp(a->out.dtype);
    return r + kc_half_ulp(a->out.dtype);
}

/* What the oracle does not round: s to sum_dtype, in |y| through s itself and through the mean. */
static double of_sum(const cmoei_norm_args *a)
{
    return a->sum_dtype ? 2 * kc_half_ulp(a->sum_dtype) : 0;
}

/* s = x + r is off by half a unit of |s|, and so is y; where |s| is small against |x| that is still
 * relative to s, because one addition is correctly rounded. */
static void compare(kc *c, const char *name, const cmoei_norm_args *a, const cmoei_plane *want,
                    const cmoei_plane *want_sum, int64_t rows)
{
    for (int64_t i = 0; i < rows * a->hidden; i++) {
        const int64_t r = i / a->hidden, h = i % a->hidden;
        const double y = kc_get(want, r, h);
        kc_near(c, name, i, kc_get(&a->out, r, h), y,
                (relative(a) + of_sum(a)) * 1.01 * fabs(y) + 3 * kc_tiny(a->out.dtype));
        if (!a->residual_out.data) continue;
        const double s = kc_get(want_sum, r, h);
        kc_near(c, "residual_out", i, kc_get(&a->residual_out, r, h), s,
                (0x1p-24 + kc_half_ulp(a->residual_out.dtype)) * fabs(s) +
                    kc_tiny(a->residual_out.dtype));
    }
}

static void check(kc *c, int64_t rows, int64_t hidden, kc_lie lie, kind k)
{
    kc_begin(c, "norm %dx%d %s col=%d odd=%d kind=%d%d%d%d order=%d", (int)rows, (int)hidden,
             cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd, k.residual, k.weight,
             k.residual_out, k.round_sum, k.order);
    const kc_lie f64 = {CMOE_F64, 1, 0};
    cmoei_norm_args a = {.x = kc_plane(c, rows, hidden, lie, 1),
                         .hidden = hidden,
                         .eps = 1e-6f,
                         .weight_offset = k.offset,
                         .order = k.order,
                         .sum_dtype = k.round_sum ? lie.dtype : 0};
    if (k.residual) a.residual = kc_plane(c, rows, hidden, lie, 2);
    if (k.weight) {
        a.weight = kc_plane(c, 1, hidden, lie, .5f);
        a.weight.step = 0;
    }
    const cmoei_plane want = kc_plane_out(c, rows, hidden, f64);
    const cmoei_plane sum = kc_plane_out(c, rows, hidden, f64);
    const cmoei_plane first = kc_plane_out(c, rows, hidden, lie);
    const cmoei_plane first_sum = kc_plane_out(c, rows, hidden, lie);
    const int64_t bytes = rows * hidden * lie.col * cmoe_dtype_bytes(lie.dtype);
    a.out = want;
    if (k.residual_out) a.residual_out = sum;
    cmoei_norm_f64(&a, 0, rows);
    for (int64_t v = cmoei_norm_table.count - 1; v >= 0; v--) {
        const cmoei_norm_kernel *kn = (const void *)cmoei_table_row(&cmoei_norm_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_norm_table.count - 1;
        a.out = ref ? first : kc_plane_out(c, rows, hidden, lie);
        if (k.residual_out) a.residual_out = ref ? first_sum : kc_plane_out(c, rows, hidden, lie);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        compare(c, kn->variant.name, &a, &want, &sum, rows);
        kc_equal(c, kn->variant.name, a.out.data, first.data, bytes);
        if (k.residual_out) kc_equal(c, "residual_out", a.residual_out.data, first_sum.data, bytes);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][2] = {{1, 2048}, {3, 1},    {5, 31},   {2, 32},
                                 {3, 33},   {2, 4100}, {1, 9000}, {4, 127}};
    const kind kinds[] = {{0, 1, 0, 0, 0, 0}, {1, 1, 1, 0, 0, 0}, {1, 1, 1, 1, 1, 1},
                          {1, 1, 0, 1, 0, 1}, {0, 0, 1, 0, 1, 0}, {1, 0, 1, 1, 0, 0}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++) {
            for (int64_t k = 0; k < CMOEI_COUNT(kinds); k++)
                check(&c, shapes[s][0], shapes[s][1], kc_lies[l], kinds[k]);
        }
    }
    return kc_report(&c, "kernels_norm");
}
