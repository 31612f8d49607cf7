/* SPDX-License-Identifier: MIT
 *
 * norm_backward.c - every norm gradient kernel and every column sum against the double oracle, and
 * all of them bit by bit against each other.
 */
#include "backward.h"

#include "ops/norm_backward.h"

void cmoei_norm_stats_f64(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                          void *stats);
void cmoei_norm_dx_f64(const cmoei_norm_backward_args *a, int64_t row, int64_t row_end,
                       const void *stats);
void cmoei_columns_f64(const cmoei_columns_args *a, int64_t column, int64_t column_end);

typedef struct kind {
    bool centred, weight, residual;
    float offset;
    int64_t heads;
} kind;

/* Magnitudes of a row: mean |x|, mean |g|, mean |g * xhat|. */
typedef struct sizes {
    double x, g, product;
} sizes;

static double gradient(const cmoei_norm_backward_args *a, const cmoei_plane *dout, int64_t r,
                       int64_t h)
{
    return kc_get(dout, r, h) * (a->weight.data ? a->weight_offset + kc_get(&a->weight, 0, h) : 1);
}

static sizes measure(const cmoei_norm_backward_args *a, const cmoei_plane *x,
                     const cmoei_plane *dout, int64_t r, const double *stats)
{
    sizes s = {0, 0, 0};
    for (int64_t h = 0; h < a->hidden; h++) {
        const double g = fabs(gradient(a, dout, r, h)), v = kc_get(x, r, h);
        s.x += fabs(v) / (double)a->hidden;
        s.g += g / (double)a->hidden;
        s.product += g * fabs(v - stats[0]) * stats[1] / (double)a->hidden;
    }
    return s;
}

/* Every sum over columns is off by L = hidden / 32 + 12 roundings of its magnitude, the inverse root
 * by half of that and a few; dx = inverse * (g - shift - xhat * slope) by that much of each term.  The
 * mean is off by d = L * mean |x|, which moves xhat by d * inverse and slope by mean |g| * d *
 * inverse.  Four times all of it; then one rounding with the residual. */
static double bound(const cmoei_norm_backward_args *a, const sizes *s, double g, double xhat,
                    double inverse, double want)
{
    const double l = (double)a->hidden / CMOEI_LANES + 12;
    const double terms = g + s->g + xhat * s->product;
    const double mean = a->centred ? inverse * s->x * (s->product + xhat * s->g) : 0;
    return 4 * KC_U * l * inverse * (terms + mean) + 2 * KC_U * fabs(want) + FLT_MIN;
}

static void check_dx(kc *c, int64_t rows, int64_t hidden, kind k, int odd)
{
    kc_begin(c, "dx %dx%d centred=%d weight=%d residual=%d heads=%d odd=%d", (int)rows, (int)hidden,
             k.centred, k.weight, k.residual, (int)k.heads, odd);
    const cmoei_plane x = kc_plane(c, rows, hidden, kc_f32(odd), 2);
    const cmoei_plane dout = kc_plane(c, rows, hidden, kc_f32(odd), 1);
    const cmoei_plane residual = kc_plane(c, rows, hidden, kc_f32(odd), 1);
    const cmoei_plane want = kc_plane_out(c, rows, hidden, kc_f64);
    const cmoei_plane first = kc_plane_out(c, rows, hidden, kc_f32(odd));
    cmoei_norm_backward_args a = {.x = kc_heads(&x, k.heads),
                                  .dout = kc_heads(&dout, k.heads),
                                  .dx = kc_heads(&want, k.heads),
                                  .heads = k.heads,
                                  .hidden = hidden,
                                  .eps = 1e-6f,
                                  .weight_offset = k.offset,
                                  .centred = k.centred};
    if (k.residual) a.residual = kc_heads(&residual, k.heads);
    if (k.weight) a.weight = kc_plane(c, 1, hidden, kc_f32(odd), 1);
    double *stats = kc_out(c, rows * 4 * (int64_t)sizeof *stats);
    float *first_stats = kc_out(c, rows * 4 * (int64_t)sizeof(float));
    cmoei_norm_stats_f64(&a, 0, rows, stats);
    cmoei_norm_dx_f64(&a, 0, rows, stats);
    for (int64_t v = cmoei_norm_backward_table.count - 1; v >= 0; v--) {
        const cmoei_norm_backward_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_norm_backward_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_norm_backward_table.count - 1;
        const cmoei_plane dx = ref ? first : kc_plane_out(c, rows, hidden, kc_f32(odd));
        float *s = ref ? first_stats : kc_out(c, rows * 4 * (int64_t)sizeof *s);
        a.dx = kc_heads(&dx, k.heads);
        kn->stats(&a, 0, rows / 2, s);
        kn->stats(&a, rows / 2, rows, s + rows / 2 * 4);
        kn->dx(&a, 0, rows / 3, s);
        kn->dx(&a, rows / 3, rows, s + rows / 3 * 4);
        kc_equal(c, "stats", s, first_stats, rows * 4 * (int64_t)sizeof *s);
        kc_equal(c, kn->variant.name, dx.data, first.data, kc_bytes(&dx, rows));
        for (int64_t r = 0; r < rows; r++) {
            const double *t = stats + 4 * r;
            const sizes m = measure(&a, &x, &dout, r, t);
            for (int64_t h = 0; h < hidden; h++) {
                const double y = kc_get(&want, r, h);
                kc_near(c, kn->variant.name, r * hidden + h, kc_get(&dx, r, h), y,
                        bound(&a, &m, fabs(gradient(&a, &dout, r, h)),
                              fabs(kc_get(&x, r, h) - t[0]) * t[1], t[1], y));
            }
        }
    }
    kc_end(c);
}

/* A sum of n products in any order is off by n * 2^-23 * sum |product|; xhat has two roundings. */
static void check_columns(kc *c, int64_t tokens, int64_t hidden, int64_t heads, int64_t units,
                          int odd)
{
    kc_begin(c, "columns %dx%dx%d units=%d odd=%d", (int)tokens, (int)heads, (int)hidden,
             (int)units, odd);
    int64_t cuts[CMOE_UNITS_MOST + 1];
    const int64_t rows = tokens * heads, bytes = hidden * (int64_t)sizeof(float);
    const cmoei_plane x = kc_plane(c, rows, hidden, kc_f32(odd), 2);
    const cmoei_plane dout = kc_plane(c, rows, hidden, kc_f32(odd), 1);
    const cmoei_plane want = kc_plane_out(c, 2, hidden, kc_f64);
    const cmoei_plane first = kc_plane_out(c, 2, hidden, kc_f32(odd));
    const cmoei_plane want_weighted = {want.data + want.step, 0, 1, CMOE_F64};
    float *stats = kc_f32s(c, rows * 4);
    cmoei_columns_args a = {.dout = kc_heads(&dout, heads),
                            .x = kc_heads(&x, heads),
                            .stats = (const void *)stats,
                            .units = kc_units(c, tokens, units, cuts),
                            .plain = want,
                            .weighted = want_weighted,
                            .heads = heads,
                            .hidden = hidden};
    cmoei_columns_f64(&a, 0, hidden);
    for (int64_t v = cmoei_columns_table.count - 1; v >= 0; v--) {
        const cmoei_columns_kernel *kn = (const void *)cmoei_table_row(&cmoei_columns_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_columns_table.count - 1;
        const cmoei_plane got = ref ? first : kc_plane_out(c, 2, hidden, kc_f32(odd));
        a.plain = a.weighted = got;
        a.weighted.data += got.step;
        kn->run(&a, 0, hidden / 3);
        kn->run(&a, hidden / 3, hidden);
        kc_equal(c, kn->variant.name, got.data, first.data, 2 * bytes);
        for (int64_t h = 0; h < hidden; h++) {
            double plain = 0, weighted = 0;
            for (int64_t r = 0; r < rows; r++) {
                plain += fabs(kc_get(&dout, r, h));
                weighted += fabs(kc_get(&dout, r, h) * (kc_get(&x, r, h) - stats[4 * r]) *
                                 stats[4 * r + 1]);
            }
            const double n = 2 * KC_U * (double)(rows + 3);
            kc_near(c, kn->variant.name, h, kc_get(&got, 0, h), kc_get(&want, 0, h),
                    n * plain + FLT_MIN);
            kc_near(c, "weighted", h, kc_get(&got, 1, h), kc_get(&want, 1, h),
                    n * weighted + FLT_MIN);
        }
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][2] = {{1, 512}, {3, 1}, {6, 31}, {2, 32}, {3, 33}, {2, 1100}, {12, 127}};
    const kind kinds[] = {
        {false, true, false, 0, 1}, {false, true, true, 1, 1},  {false, false, false, 0, 1},
        {true, true, true, 0, 1},   {true, false, false, 0, 1}, {false, true, true, 0, 2},
    };
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t k = 0; k < CMOEI_COUNT(kinds); k++) {
            for (int odd = 0; odd < 2; odd++)
                check_dx(&c, shapes[s][0] * kinds[k].heads, shapes[s][1], kinds[k], odd);
        }
    }
    const int64_t sums[][4] = {{0, 5, 1, 1},  {1, 1, 1, 1},     {7, 33, 1, 2},   {64, 300, 1, 8},
                               {9, 64, 3, 4}, {100, 17, 1, 64}, {33, 128, 2, 16}};
    for (int64_t s = 0; s < CMOEI_COUNT(sums); s++) {
        for (int odd = 0; odd < 2; odd++)
            check_columns(&c, sums[s][0], sums[s][1], sums[s][2], sums[s][3], odd);
    }
    return kc_report(&c, "kernels_norm_backward");
}
