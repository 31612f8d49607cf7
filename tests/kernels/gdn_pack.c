/* SPDX-License-Identifier: MIT
 *
 * gdn_pack.c - every kernel of the one token convolution against the double oracle, and all of them
 * bit by bit against each other; the state that is left behind exactly.
 */
#include "planes.h"

#include "ops/gdn_pack.h"

void cmoei_gdn_conv_f64(const cmoei_gdn_conv_args *a);

/* `slack` taps behind those that are used, which stay what they were. */
typedef struct shape {
    int64_t channels, width, slack;
} shape;

static cmoei_plane turn(cmoei_plane p, int64_t channel_step)
{
    p.step = p.col * cmoei_float_bytes(p.dtype);
    p.col *= channel_step;
    return p;
}

/* A plane [channels, taps] seen with a tap a row. */
static cmoei_plane copy_of(kc *c, const cmoei_plane *from, int64_t channels, int64_t taps,
                           kc_lie lie)
{
    const cmoei_plane p = kc_plane_out(c, channels, taps, lie);
    for (int64_t i = 0; i < channels * taps; i++) {
        const double x = kc_get(from, i / taps, i % taps);
        const float f = (float)x;
        cmoei_store_f32(cmoei_plane_at(&p, i / taps, i % taps), lie.dtype, 1, &f, 1);
    }
    return p;
}

/* A chain of `width` fused multiply-adds: off by at most width roundings of the sum of magnitudes
 * (doubled: the second order).  SiLU's slope is below 1.1, its own error 4.2 roundings. */
static double bound(const cmoei_gdn_conv_args *a, const cmoei_plane *state, int64_t c, double want)
{
    double sum = a->bias.data ? fabs(kc_get(&a->bias, 0, c)) : 0;
    for (int64_t i = 0; i + 1 < a->width; i++)
        sum += fabs(kc_get(state, c, i) * kc_get(&a->weight, i, c));
    sum += fabs(kc_get(&a->x, 0, c) * kc_get(&a->weight, a->width - 1, c));
    const double chain = (double)a->width * 0x1p-23 * sum * 1.1;
    const double silu = a->silu ? 4.2 * 0x1p-24 * (fabs(want) + chain) : 0;
    return chain + 1.01 * silu + kc_half_ulp(a->out.dtype) * 1.01 * (fabs(want) + chain) +
           2 * kc_tiny(a->out.dtype);
}

static void compare(kc *c, const char *name, const cmoei_gdn_conv_args *a,
                    const cmoei_plane *before, const cmoei_plane *after, const cmoei_plane *want,
                    shape s)
{
    const int64_t taps = s.width - 1 + s.slack;
    for (int64_t i = 0; i < s.channels; i++) {
        const double y = kc_get(want, 0, i);
        kc_near(c, name, i, kc_get(&a->out, 0, i), y, bound(a, before, i, y));
        for (int64_t t = 0; t < taps; t++) {
            const double moved = t + 2 < s.width    ? kc_get(before, i, t + 1)
                                 : t + 2 == s.width ? kc_get(&a->x, 0, i)
                                                    : kc_get(before, i, t);
            kc_near(c, "state", i * taps + t, kc_get(after, i, t), moved, 0);
        }
    }
}

static void check(kc *c, shape s, kc_lie lie, int32_t bias, int32_t silu)
{
    kc_begin(c, "gdn_conv %d width=%d slack=%d %s col=%d odd=%d bias=%d silu=%d", (int)s.channels,
             (int)s.width, (int)s.slack, cmoe_dtype_name(lie.dtype), (int)lie.col, lie.odd, bias,
             silu);
    const int64_t taps = s.width - 1 + s.slack;
    const kc_lie f64 = {CMOE_F64, 1, 0};
    const cmoei_plane before = kc_plane(c, s.channels, taps, lie, 1);
    cmoei_gdn_conv_args a = {.x = kc_plane(c, 1, s.channels, lie, 1),
                             .weight = turn(kc_plane(c, s.channels, s.width, lie, 1), s.width),
                             .channels = s.channels,
                             .width = s.width,
                             .silu = silu};
    if (bias) a.bias = kc_plane(c, 1, s.channels, lie, 1);
    const cmoei_plane want = kc_plane_out(c, 1, s.channels, f64);
    const cmoei_plane first = kc_plane_out(c, 1, s.channels, lie);
    const int64_t bytes = s.channels * lie.col * cmoe_dtype_bytes(lie.dtype);
    a.out = want;
    a.state = turn(copy_of(c, &before, s.channels, taps, f64), taps);
    cmoei_gdn_conv_f64(&a);
    for (int64_t v = cmoei_gdn_conv_table.count - 1; v >= 0; v--) {
        const cmoei_gdn_conv_kernel *kn = (const void *)cmoei_table_row(&cmoei_gdn_conv_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        a.out = v == cmoei_gdn_conv_table.count - 1 ? first : kc_plane_out(c, 1, s.channels, lie);
        const cmoei_plane after = copy_of(c, &before, s.channels, taps, lie);
        a.state = turn(after, taps);
        kn->run(&a);
        compare(c, kn->variant.name, &a, &before, &after, &want, s);
        kc_equal(c, kn->variant.name, a.out.data, first.data, bytes);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const shape shapes[] = {{1, 2, 0}, {37, 4, 0}, {128, 4, 1}, {700, 3, 0}, {33, 9, 2}};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int64_t l = 0; l < CMOEI_COUNT(kc_lies); l++) {
            for (int32_t k = 0; k < 4; k++)
                check(&c, shapes[s], kc_lies[l], k & 1, k >> 1);
        }
    }
    return kc_report(&c, "kernels_gdn_pack");
}
