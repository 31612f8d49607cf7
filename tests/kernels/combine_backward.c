/* SPDX-License-Identifier: MIT
 *
 * combine_backward.c - every kernel of combine's backward against the double oracle, and all of
 * them bit by bit against each other, at any address and any split of the tokens.
 */
#include "planes.h"

#include "align/combine_backward.h"

void cmoei_combine_back_f64(const cmoei_combine_back_args *a, int64_t t, int64_t t_end);

typedef struct shape {
    int64_t T, K, H;
} shape;

/* Rows `gap` bytes further apart than they are long, from an odd address when that is 1. */
static cmoei_dense dense(kc *c, int64_t rows, int64_t cols, int64_t bytes, int64_t gap)
{
    const int64_t step = cols * bytes + gap;
    return (cmoei_dense){(char *)kc_out(c, rows * step + gap) + gap, step};
}

static cmoei_dense normals(kc *c, int64_t rows, int64_t cols, int64_t gap)
{
    const cmoei_dense d = dense(c, rows, cols, 4, gap);
    for (int64_t i = 0; i < rows * cols; i++) {
        const float x = kc_normal(c);
        memcpy(d.data + i / cols * d.step + i % cols * 4, &x, sizeof x);
    }
    return d;
}

static double get(const cmoei_dense *d, int64_t row, int64_t col, int64_t bytes)
{
    float x;
    double y;
    const char *p = d->data + row * d->step + col * bytes;
    if (bytes == 8) {
        memcpy(&y, p, sizeof y);
        return y;
    }
    memcpy(&x, p, sizeof x);
    return (double)x;
}

/* Each row of experts belongs to one slot; some slots have none. */
static int32_t *rows_of_slots(kc *c, int64_t slots)
{
    int32_t *row_of = kc_out(c, slots * 4);
    for (int64_t i = 0; i < slots; i++)
        row_of[i] = (int32_t)i;
    for (int64_t i = slots - 1; i > 0; i--) {
        const int64_t j = kc_int(c, 0, i);
        const int32_t row = row_of[i];
        row_of[i] = row_of[j];
        row_of[j] = row;
    }
    for (int64_t i = 0; i < slots; i += 5)
        row_of[i] = -1;
    return row_of;
}

/* A product of three has two roundings; a sum of H products in 16 chains has H/16 + 5 each. */
static void check_bounds(kc *c, const cmoei_combine_back_args *a, const cmoei_combine_back_args *w,
                         shape s)
{
    const double U = 0x1p-24;
    for (int64_t i = 0; i < s.T * s.K; i++) {
        const int32_t row = a->row_of[i];
        double size = 0;
        for (int64_t h = 0; row >= 0 && h < s.H; h++) {
            const double want = get(&w->drows, row, h, 8);
            kc_near(c, "drows", h, get(&a->drows, row, h, 4), want,
                    3 * U * fabs(want) + (double)FLT_MIN);
            size += fabs(get(&a->rows, row, h, 4) * get(&a->dout, i / s.K, h, 4));
        }
        kc_near(c, "dweights", i, get(&a->dweights, i / s.K, i % s.K, 4),
                get(&w->dweights, i / s.K, i % s.K, 8),
                ((double)s.H / 16 + 7) * U * size * fabs((double)a->scale) + (double)FLT_MIN);
    }
}

static void check(kc *c, shape s, int64_t gap, int32_t weights, float scale)
{
    kc_begin(c, "combine_backward T=%d K=%d H=%d gap=%d weights=%s scale=%g", (int)s.T, (int)s.K,
             (int)s.H, (int)gap, cmoe_dtype_name(weights), (double)scale);
    const int64_t R = s.T * s.K;
    cmoei_combine_back_args a = {.rows = normals(c, R, s.H, gap),
                                 .dout = normals(c, s.T, s.H, gap),
                                 .row_of = rows_of_slots(c, R),
                                 .topk = s.K,
                                 .hidden = s.H,
                                 .scale = scale};
    if (weights) a.weights = kc_plane(c, s.T, s.K, (kc_lie){weights, 2, 1}, .3f);
    cmoei_combine_back_args want = a;
    want.drows = dense(c, R, s.H, 8, 0);
    want.dweights = dense(c, s.T, s.K, 8, 0);
    cmoei_combine_back_f64(&want, 0, s.T);
    cmoei_combine_back_args ref = a;
    for (int64_t v = cmoei_combine_back_table.count - 1; v >= 0; v--) {
        const cmoei_combine_back_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_combine_back_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        a.drows = dense(c, R, s.H, 4, gap);
        a.dweights = dense(c, s.T, s.K, 4, gap);
        kn->run(&a, s.T / 2, s.T);
        kn->run(&a, 0, s.T / 2);
        check_bounds(c, &a, &want, s);
        if (v == cmoei_combine_back_table.count - 1) ref = a;
        kc_equal(c, kn->variant.name, a.drows.data, ref.drows.data, R * a.drows.step);
        kc_equal(c, kn->variant.name, a.dweights.data, ref.dweights.data, s.T * a.dweights.step);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const shape shapes[] = {{1, 8, 512}, {3, 1, 1},   {5, 4, 33}, {2, 9, 1300},
                            {7, 6, 127}, {1, 3, 513}, {6, 5, 64}};
    const int32_t weights[] = {0, CMOE_F32, CMOE_BF16};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t gap = 0; gap <= 3; gap = 2 * gap + 1) /* 0 1 3 */
            check(&c, shapes[s], gap, weights[(s + gap) % 3], gap % 2 ? 1 : 2.5f);
    }
    return kc_report(&c, "kernels_combine_backward");
}
