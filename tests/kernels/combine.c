/* SPDX-License-Identifier: MIT
 *
 * combine.c - every combine kernel against the double oracle, and all of them bit by bit against
 * each other, whatever the formats, strides, addresses and splits of columns.
 */
#include "planes.h"

#include "align/combine.h"

void cmoei_combine_f64(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h,
                       int64_t h_end);

typedef struct shape {
    int64_t T, K, H;
} shape;

enum { NONE, LAST, FIRST }; /* the shared row */

/* Every product and sum is rounded once, half a unit relative to at most the sum of magnitudes: K
 * products with their fused adds, the scale (or the scaled weight), the shared row; twice that. */
static double bound(const cmoei_combine_args *a, int64_t t, int64_t h)
{
    double sum = a->shared.data ? fabs(kc_get(&a->shared, t, h)) : 0;
    for (int64_t k = 0; k < a->topk; k++) {
        const int32_t row = a->row_of[t * a->topk + k];
        const double w = a->weights.data ? kc_get(&a->weights, t, k) : 1;
        if (row >= 0) sum += fabs(w * a->scale * kc_get(&a->rows, row, h));
    }
    return (double)(2 * a->topk + 4) * FLT_EPSILON * sum + FLT_MIN;
}

static void check_rounding(kc *c, const cmoei_combine_args *a, const cmoei_plane *f32, shape s)
{
    for (int64_t i = 0; i < s.T * s.H; i++) {
        const float x = (float)kc_get(f32, i / s.H, i % s.H);
        const double want = cmoei_round_to(x, a->out.dtype);
        if (kc_get(&a->out, i / s.H, i % s.H) != want)
            kc_fail(c, "out[%lld] is not the rounded sum", (long long)i);
    }
}

static void check(kc *c, shape s, kc_lie lie, int shared, int32_t weights, float scale)
{
    kc_begin(c, "combine T=%d K=%d H=%d %s col=%d odd=%d shared=%d weights=%s scale=%g", (int)s.T,
             (int)s.K, (int)s.H, cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd, shared,
             cmoe_dtype_name(weights), (double)scale);
    const int64_t R = s.T * s.K + 1;
    cmoei_combine_args a = {.rows = kc_plane(c, R, s.H, lie, 1),
                            .row_of = kc_i32s(c, s.T * s.K, -1, (int32_t)R - 1), /* -1: dropped */
                            .topk = s.K,
                            .hidden = s.H,
                            .scale = scale,
                            .shared_first = shared == FIRST};
    const kc_lie plain = {CMOE_F32, 1, 0};
    if (weights) a.weights = kc_plane(c, s.T, s.K, (kc_lie){weights, 2, 1}, .3f);
    if (shared != NONE) a.shared = kc_plane(c, s.T, s.H, lie, 1);
    const cmoei_plane want = kc_plane_out(c, s.T, s.H, (kc_lie){CMOE_F64, 1, 0});
    const cmoei_plane ref = kc_plane_out(c, s.T, s.H, plain);
    a.out = want;
    cmoei_combine_f64(&a, 0, s.T, 0, s.H);
    a.out = ref;
    const cmoei_combine_kernel *last =
        (const void *)cmoei_table_row(&cmoei_combine_table, cmoei_combine_table.count - 1);
    last->run(&a, 0, s.T, 0, s.H);
    for (int64_t i = 0; i < s.T * s.H; i++)
        kc_near(c, "ref", i, kc_get(&ref, i / s.H, i % s.H), kc_get(&want, i / s.H, i % s.H),
                bound(&a, i / s.H, i % s.H));

    for (int64_t v = 0; v < cmoei_combine_table.count; v++) {
        const cmoei_combine_kernel *kn = (const void *)cmoei_table_row(&cmoei_combine_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        a.out = kc_plane_out(c, s.T, s.H, plain);
        const int64_t cut = kc_int(c, 0, s.H), half = s.T / 2;
        kn->run(&a, 0, half, 0, s.H);
        kn->run(&a, half, s.T, cut, s.H);
        kn->run(&a, half, s.T, 0, cut);
        kc_equal(c, kn->variant.name, a.out.data, ref.data, s.T * s.H * 4);
        a.out = kc_plane_out(c, s.T, s.H, lie);
        kn->run(&a, 0, s.T, 0, s.H);
        check_rounding(c, &a, &ref, s);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const shape shapes[] = {{1, 8, 512}, {3, 1, 1},   {5, 4, 33},  {2, 9, 1300},
                            {4, 0, 17},  {7, 6, 127}, {1, 3, 513}, {6, 5, 64}};
    const int32_t weights[] = {0, CMOE_F32, CMOE_BF16};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++) {
            for (int shared = NONE; shared <= FIRST; shared++)
                check(&c, shapes[s], kc_lies[l], shared, weights[(s + l + shared) % 3],
                      (s + l) % 2 ? 1 : 2.5f);
        }
    }
    return kc_report(&c, "kernels_combine");
}
