/* SPDX-License-Identifier: MIT
 *
 * layer_norm.c - every layer norm kernel against the double oracle, and all of them bit by bit
 * against each other; rows whose mean is far larger than their spread included.
 */
#include "planes.h"

#include "ops/layer_norm.h"

void cmoei_layer_norm_f64(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end);

#define U 0x1p-24

typedef struct kind {
    int residual, weight, bias, residual_out;
    float mean;
} kind;

static double sum_at(const cmoei_layer_norm_args *a, int64_t r, int64_t h)
{
    return kc_get(&a->x, r, h) + (a->residual.data ? kc_get(&a->residual, r, h) : 0);
}

/* d = s - mean is off by `off` at most: s by U |s|; the mean by its tree, hidden / 32 + 5 additions
 * and a division, of the mean magnitude (twice that, for the second order); d itself by U |d|.  The
 * root of the mean of d^2 then is off by at most the largest such error (a norm), and by half of
 * its own tree, of mean, eps, root and inverse.  Last the product with the inverse and the fused
 * multiply-add. */
static void compare_row(kc *c, const char *name, const cmoei_layer_norm_args *a,
                        const cmoei_plane *want, int64_t r)
{
    const double tree = (double)a->hidden / CMOEI_LAYER_NORM_LANES + 5;
    double mean = 0, magnitude = 0, most = 0, square = 0;
    for (int64_t h = 0; h < a->hidden; h++) {
        mean += sum_at(a, r, h) / (double)a->hidden;
        magnitude += fabs(sum_at(a, r, h)) / (double)a->hidden;
        most = fmax(most, fabs(sum_at(a, r, h)));
    }
    for (int64_t h = 0; h < a->hidden; h++)
        square += pow(sum_at(a, r, h) - mean, 2) / (double)a->hidden;
    const double root = sqrt(square + a->eps);
    const double off = 2 * (tree + 2) * U * magnitude + 3 * U * most;
    for (int64_t h = 0; h < a->hidden; h++) {
        const double w = a->weight.data ? kc_get(&a->weight, 0, h) : 1;
        const double y = (sum_at(a, r, h) - mean) / root;
        const double units = (tree + 2) / 2 + 5;
        const double scaled = off / root * (1 + fabs(y)) + 2 * units * U * fabs(y);
        const double right = kc_get(want, r, h);
        kc_near(c, name, r * a->hidden + h, kc_get(&a->out, r, h), right,
                1.01 * fabs(w) * scaled +
                    (2 * U + kc_half_ulp(a->out.dtype)) * 1.01 * (fabs(right) + fabs(w) * scaled) +
                    3 * kc_tiny(a->out.dtype));
    }
}

static void compare_sum(kc *c, const cmoei_layer_norm_args *a, int64_t rows)
{
    for (int64_t i = 0; i < rows * a->hidden; i++) {
        const double s = sum_at(a, i / a->hidden, i % a->hidden);
        kc_near(c, "residual_out", i, kc_get(&a->residual_out, i / a->hidden, i % a->hidden), s,
                (U + kc_half_ulp(a->residual_out.dtype)) * fabs(s) +
                    kc_tiny(a->residual_out.dtype));
    }
}

static cmoei_layer_norm_args make(kc *c, int64_t rows, int64_t hidden, kc_lie lie, kind k)
{
    cmoei_layer_norm_args a = {
        .x = kc_plane(c, rows, hidden, lie, 1), .hidden = hidden, .eps = 1e-5f};
    for (int64_t i = 0; i < rows * hidden; i++) {
        const float x = (float)kc_get(&a.x, i / hidden, i % hidden) + k.mean;
        cmoei_store_f32(cmoei_plane_at(&a.x, i / hidden, i % hidden), lie.dtype, 1, &x, 1);
    }
    if (k.residual) a.residual = kc_plane(c, rows, hidden, lie, 2);
    if (k.weight) a.weight = kc_plane(c, 1, hidden, lie, .5f);
    if (k.bias) a.bias = kc_plane(c, 1, hidden, lie, 1);
    return a;
}

static void check(kc *c, int64_t rows, int64_t hidden, kc_lie lie, kind k)
{
    kc_begin(c, "layer_norm %dx%d %s col=%d odd=%d kind=%d%d%d%d mean=%g", (int)rows, (int)hidden,
             cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd, k.residual, k.weight, k.bias,
             k.residual_out, k.mean);
    const kc_lie f64 = {CMOE_F64, 1, 0};
    cmoei_layer_norm_args a = make(c, rows, hidden, lie, k);
    const cmoei_plane want = kc_plane_out(c, rows, hidden, f64);
    const cmoei_plane first = kc_plane_out(c, rows, hidden, lie);
    const cmoei_plane first_sum = kc_plane_out(c, rows, hidden, lie);
    const int64_t bytes = rows * hidden * lie.col * cmoe_dtype_bytes(lie.dtype);
    a.out = want;
    cmoei_layer_norm_f64(&a, 0, rows);
    for (int64_t v = cmoei_layer_norm_table.count - 1; v >= 0; v--) {
        const cmoei_layer_norm_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_layer_norm_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_layer_norm_table.count - 1;
        a.out = ref ? first : kc_plane_out(c, rows, hidden, lie);
        if (k.residual_out) a.residual_out = ref ? first_sum : kc_plane_out(c, rows, hidden, lie);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        for (int64_t r = 0; r < rows; r++)
            compare_row(c, kn->variant.name, &a, &want, r);
        if (k.residual_out) compare_sum(c, &a, rows);
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
    const kind kinds[] = {
        {0, 1, 1, 0, 0}, {1, 1, 1, 1, 0}, {0, 0, 0, 1, 100}, {1, 1, 0, 0, 0}, {0, 0, 1, 0, -7}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++) {
            for (int64_t k = 0; k < CMOEI_COUNT(kinds); k++)
                check(&c, shapes[s][0], shapes[s][1], kc_lies[l], kinds[k]);
        }
    }
    return kc_report(&c, "kernels_layer_norm");
}
