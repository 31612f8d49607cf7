/* SPDX-License-Identifier: MIT
 *
 * rope.c - every kernel of rotary positions against the double oracle, and all of them bit by bit
 * against each other.
 */
#include "planes.h"

#include "ops/rope.h"

void cmoei_rope_table_f64(const cmoei_rope_table_args *a, int64_t row, int64_t row_end);
void cmoei_rope_rotate_f64(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end);

#define U 0x1p-24

/* ---- tables ---------------------------------------------------------------------------------- */

static double ulp(double x)
{
    int e;
    frexp(x, &e);
    return ldexp(1, x == 0 || e < -125 ? -149 : e - 24);
}

/* A sine is promised to 0.51 ulp (core/vmath.h); the product with the amplitude rounds once more,
 * and is exact for amplitude 1. */
static void compare_table(kc *c, const char *name, const cmoei_plane *got, const cmoei_plane *want,
                          int64_t rows, int64_t half, double amplitude)
{
    for (int64_t i = 0; i < rows * half; i++) {
        const double y = kc_get(want, i / half, i % half);
        const double product = amplitude == 1 ? 0 : .51 * ulp(y);
        kc_near(c, name, i, kc_get(got, i / half, i % half), y,
                .51 * ulp(y / amplitude) * amplitude + product);
    }
}

static void check_table(kc *c, int64_t rows, int64_t half, int32_t dtype, kc_lie lie,
                        float amplitude, int64_t most)
{
    kc_begin(c, "rope_table %dx%d %s col=%d odd=%d amplitude=%g most=%lld", (int)rows, (int)half,
             cmoe_dtype_name(dtype), (int)lie.col, lie.odd, amplitude, (long long)most);
    const kc_lie f64 = {CMOE_F64, 1, 0};
    const int64_t bytes = rows * half * lie.col * 4, step = 2 * cmoe_dtype_bytes(dtype);
    char *positions = (char *)kc_out(c, rows * step + 1) + 1;
    for (int64_t t = 0; t < rows; t++) {
        const int64_t p = t == 0 ? most : kc_int(c, 0, most);
        const int32_t p32 = (int32_t)p;
        memcpy(positions + t * step, dtype == CMOE_I32 ? (const void *)&p32 : &p, (size_t)step / 2);
    }
    cmoei_rope_table_args a = {.positions = positions,
                               .positions_step = step,
                               .positions_dtype = dtype,
                               .amplitude = amplitude,
                               .frequencies = kc_plane(c, 1, half, lie, 1),
                               .half = half};
    const cmoei_plane cosines = kc_plane_out(c, rows, half, f64);
    const cmoei_plane sines = kc_plane_out(c, rows, half, f64);
    const cmoei_plane first_cos = kc_plane_out(c, rows, half, lie);
    const cmoei_plane first_sin = kc_plane_out(c, rows, half, lie);
    a.cos = cosines, a.sin = sines;
    cmoei_rope_table_f64(&a, 0, rows);
    for (int64_t v = cmoei_rope_table_table.count - 1; v >= 0; v--) {
        const cmoei_rope_table_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_rope_table_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_rope_table_table.count - 1;
        a.cos = ref ? first_cos : kc_plane_out(c, rows, half, lie);
        a.sin = ref ? first_sin : kc_plane_out(c, rows, half, lie);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        compare_table(c, "cos", &a.cos, &cosines, rows, half, amplitude);
        compare_table(c, "sin", &a.sin, &sines, rows, half, amplitude);
        kc_equal(c, kn->variant.name, a.cos.data, first_cos.data, bytes);
        kc_equal(c, kn->variant.name, a.sin.data, first_sin.data, bytes);
    }
    kc_end(c);
}

static void tables(kc *c)
{
    const int64_t shapes[][2] = {{1, 1}, {3, 32}, {7, 33}, {2, 700}};
    const int64_t most[] = {4095, 1 << 22, 1 << 24};
    const kc_lie lies[] = {{CMOE_F32, 1, 0}, {CMOE_F32, 3, 1}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(lies); l++) {
            for (int64_t m = 0; m < CMOEI_COUNT(most); m++) {
                check_table(c, shapes[s][0], shapes[s][1], CMOE_I32, lies[l], 1, most[m]);
                check_table(c, shapes[s][0], shapes[s][1], CMOE_I64, lies[l], 1.3f, most[m]);
            }
        }
    }
}

/* ---- the turn -------------------------------------------------------------------------------- */

/* One rounding of the product of the partner, one of the sum; then the format. */
static void compare_turn(kc *c, const char *name, const cmoei_rope_rotate_args *a,
                         const cmoei_plane *x, const cmoei_plane *want, int64_t heads)
{
    for (int64_t i = 0; i < heads * 2 * a->half; i++) {
        const int64_t h = i / (2 * a->half), col = i % (2 * a->half);
        const int64_t j = a->interleaved ? col / 2 : col % a->half;
        const int64_t partner = a->interleaved  ? col ^ 1
                                : col < a->half ? col + a->half
                                                : col - a->half;
        const double product = fabs(kc_get(x, h, partner) * kc_get(&a->sin, 0, j));
        const double y = kc_get(want, h, col);
        kc_near(c, name, i, kc_get(&a->out, h, col), y,
                1.01 * (U * product + (U + kc_half_ulp(a->out.dtype)) * (fabs(y) + U * product)) +
                    2 * kc_tiny(a->out.dtype));
    }
}

static void check_turn(kc *c, int64_t heads, int64_t half, kc_lie lie, int32_t interleaved,
                       int32_t inverse)
{
    kc_begin(c, "rope_rotate %dx%d %s col=%d odd=%d interleaved=%d inverse=%d", (int)heads,
             (int)half, cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd, interleaved, inverse);
    const kc_lie f32 = {CMOE_F32, 1, 1}, f64 = {CMOE_F64, 1, 0};
    const cmoei_plane x = kc_plane(c, heads, 2 * half, lie, 1);
    cmoei_rope_rotate_args a = {.x = x,
                                .cos = kc_plane(c, 1, half, f32, 1),
                                .sin = kc_plane(c, 1, half, f32, 1),
                                .half = half,
                                .interleaved = interleaved,
                                .inverse = inverse};
    const cmoei_plane want = kc_plane_out(c, heads, 2 * half, f64);
    const cmoei_plane first = kc_plane_out(c, heads, 2 * half, lie);
    const int64_t bytes = heads * 2 * half * lie.col * cmoe_dtype_bytes(lie.dtype);
    a.out = want;
    cmoei_rope_rotate_f64(&a, 0, heads);
    for (int64_t v = cmoei_rope_rotate_table.count - 1; v >= 0; v--) {
        const cmoei_rope_rotate_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_rope_rotate_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_rope_rotate_table.count - 1;
        a.x = x;
        a.out = ref ? first : kc_plane_out(c, heads, 2 * half, lie);
        kn->run(&a, 0, heads / 2);
        kn->run(&a, heads / 2, heads);
        compare_turn(c, kn->variant.name, &a, &x, &want, heads);
        kc_equal(c, kn->variant.name, a.out.data, first.data, bytes);
        if (lie.col > 1) continue; /* between columns the copy has other bytes than the output */
        a.x = a.out = kc_plane_out(c, heads, 2 * half, lie);
        memcpy(a.out.data, x.data, (size_t)bytes);
        kn->run(&a, 0, heads);
        kc_equal(c, "in place", a.out.data, first.data, bytes);
    }
    kc_end(c);
}

static void turns(kc *c)
{
    const int64_t shapes[][2] = {{1, 1}, {4, 32}, {3, 37}, {2, 64}, {2, 900}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++) {
            for (int32_t k = 0; k < 4; k++)
                check_turn(c, shapes[s][0], shapes[s][1], kc_lies[l], k & 1, k >> 1);
        }
    }
}

int main(void)
{
    static kc c;
    tables(&c);
    turns(&c);
    return kc_report(&c, "kernels_rope");
}
