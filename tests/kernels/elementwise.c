/* SPDX-License-Identifier: MIT
 *
 * elementwise.c - every scaled_add and clip kernel against the double oracle, and all of them bit
 * by bit against each other.
 */
#include "planes.h"

#include "ops/elementwise.h"

void cmoei_scaled_add_f64(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);
void cmoei_clip_f64(const cmoei_elementwise_args *a, int64_t row, int64_t row_end);

enum { ADD, SCALE, CLIP, OPS };

/* One rounding of a sum or product, then the format; clip is exact, its limit is none of the
 * format's values. */
static double bound(int op, int32_t dtype, double want)
{
    const double units = (op == CLIP ? 0 : 0x1p-24) + kc_half_ulp(dtype);
    return 1.01 * units * fabs(want) + 2 * kc_tiny(dtype);
}

static void check(kc *c, int op, int64_t rows, int64_t cols, kc_lie lie)
{
    static const char *const names[] = {"scaled_add", "scale", "clip"};
    kc_begin(c, "%s %dx%d %s col=%d odd=%d", names[op], (int)rows, (int)cols,
             cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd);
    const cmoei_table *table = op == CLIP ? &cmoei_clip_table : &cmoei_scaled_add_table;
    const kc_lie f64 = {CMOE_F64, 1, 0};
    cmoei_elementwise_args a = {.cols = cols, .scale = .7f};
    if (op != SCALE) a.x = kc_plane(c, rows, cols, lie, 1);
    if (op != CLIP) a.y = kc_plane(c, rows, cols, lie, 1);
    if (op == CLIP) {
        const float special[3] = {NAN, -INFINITY, INFINITY};
        for (int64_t i = 0; i < CMOEI_MIN(cols, 3); i++)
            cmoei_store_f32(cmoei_plane_at(&a.x, 0, i), lie.dtype, 1, special + i, 1);
    }
    const cmoei_plane want = kc_plane_out(c, rows, cols, f64);
    const cmoei_plane first = kc_plane_out(c, rows, cols, lie);
    const int64_t bytes = rows * cols * lie.col * cmoe_dtype_bytes(lie.dtype);
    a.out = want;
    (op == CLIP ? cmoei_clip_f64 : cmoei_scaled_add_f64)(&a, 0, rows);
    for (int64_t v = table->count - 1; v >= 0; v--) {
        const cmoei_elementwise_kernel *kn = (const void *)cmoei_table_row(table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        a.out = v == table->count - 1 ? first : kc_plane_out(c, rows, cols, lie);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        for (int64_t i = 0; i < rows * cols; i++) {
            const double y = kc_get(&want, i / cols, i % cols);
            kc_near(c, kn->variant.name, i, kc_get(&a.out, i / cols, i % cols), y,
                    bound(op, lie.dtype, y));
        }
        kc_equal(c, kn->variant.name, a.out.data, first.data, bytes);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][2] = {{1, 2048}, {3, 1}, {5, 31}, {2, 513}};
    for (int op = 0; op < OPS; op++) {
        for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
            for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++)
                check(&c, op, shapes[s][0], shapes[s][1], kc_lies[l]);
        }
    }
    return kc_report(&c, "kernels_elementwise");
}
