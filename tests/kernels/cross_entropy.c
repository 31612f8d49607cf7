/* SPDX-License-Identifier: MIT
 *
 * cross_entropy.c - every cross-entropy kernel against the double oracle, and all of them bit by bit
 * against each other.
 */
#include "backward.h"

#include "ops/cross_entropy.h"

void cmoei_cross_entropy_f64(const cmoei_cross_entropy_args *a, int64_t row, int64_t row_end);

/* Of a row: the largest logit, the widest distance from it, the sum of exponentials. */
typedef struct shape {
    double most, wide, z;
} shape;

static shape measure(const cmoei_cross_entropy_args *a, int64_t r)
{
    shape s = {-INFINITY, 0, 0};
    for (int64_t v = 0; v < a->vocab; v++)
        s.most = fmax(s.most, kc_get(&a->logits, r, v));
    for (int64_t v = 0; v < a->vocab; v++) {
        const double d = kc_get(&a->logits, r, v) - s.most;
        s.wide = fmax(s.wide, -d);
        s.z += exp(d);
    }
    return s;
}

/* An exponential is off by 2.2 roundings and by |x - m| for the rounding of its argument, z by the
 * largest of these and vocab / 32 + 6 additions; two more for the factor and the product.  The target
 * is one fused multiply-add.  Twice it all. */
static void compare(kc *c, const char *name, const cmoei_cross_entropy_args *a,
                    const cmoei_plane *want, const cmoei_plane *want_loss, const int32_t *targets,
                    int64_t rows)
{
    for (int64_t r = 0; r < rows; r++) {
        if (targets[r] < 0) continue;
        const shape s = measure(a, r);
        const double scale = fabs(kc_get(&a->scale, r, 0)),
                     of_z = (double)a->vocab / 32 + 9 + s.wide;
        const double below = s.most - kc_get(&a->logits, r, targets[r]);
        kc_near(c, "loss", r, kc_get(&a->loss, r, 0), kc_get(want_loss, r, 0),
                2 * KC_U * (of_z + 2 * log(s.z) + 2 * below + 1));
        for (int64_t v = 0; v < a->vocab; v++) {
            const double p = exp(kc_get(&a->logits, r, v) - s.most) / s.z;
            const double bound = 2 * KC_U * scale * (p * (of_z + s.wide + 6) + (v == targets[r]));
            kc_near(c, name, r * a->vocab + v, kc_get(&a->dlogits, r, v), kc_get(want, r, v),
                    bound * 1.01 + FLT_MIN);
        }
    }
}

static cmoei_plane down(kc *c, int64_t rows, int odd, float scale)
{
    cmoei_plane p = kc_plane(c, rows, 1, kc_f32(odd), scale);
    return p;
}

static void check(kc *c, int64_t rows, int64_t vocab, float size, int odd)
{
    kc_begin(c, "cross_entropy %dx%d size=%g odd=%d", (int)rows, (int)vocab, (double)size, odd);
    int32_t *targets = kc_i32s(c, rows, -1, (int32_t)vocab - 1);
    const cmoei_plane want = kc_plane_out(c, rows, vocab, kc_f64);
    const cmoei_plane want_loss = kc_plane_out(c, rows, 1, kc_f64);
    const cmoei_plane first = kc_plane_out(c, rows, vocab, kc_f32(odd));
    const cmoei_plane first_loss = down(c, rows, odd, 1);
    cmoei_cross_entropy_args a = {.logits = kc_plane(c, rows, vocab, kc_f32(odd), size),
                                  .dlogits = want,
                                  .scale = down(c, rows, odd, 1),
                                  .loss = want_loss,
                                  .targets = cmoe_view_1d(targets, CMOE_I32, rows),
                                  .vocab = vocab};
    cmoei_cross_entropy_f64(&a, 0, rows);
    for (int64_t v = cmoei_cross_entropy_table.count - 1; v >= 0; v--) {
        const cmoei_cross_entropy_kernel *kn =
            (const void *)cmoei_table_row(&cmoei_cross_entropy_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const bool ref = v == cmoei_cross_entropy_table.count - 1;
        a.dlogits = ref ? first : kc_plane_out(c, rows, vocab, kc_f32(odd));
        a.loss = ref ? first_loss : down(c, rows, odd, 1);
        kn->run(&a, 0, rows / 2);
        kn->run(&a, rows / 2, rows);
        compare(c, kn->variant.name, &a, &want, &want_loss, targets, rows);
        kc_equal(c, kn->variant.name, a.dlogits.data, first.data, kc_bytes(&first, rows));
        kc_equal(c, "loss", a.loss.data, first_loss.data, rows * (int64_t)sizeof(float));
        /* In place. */
        const cmoei_plane copy = kc_plane_out(c, rows, vocab, kc_f32(odd));
        memcpy(copy.data, a.logits.data, (size_t)kc_bytes(&copy, rows));
        cmoei_cross_entropy_args in_place = a;
        in_place.logits = in_place.dlogits = copy;
        kn->run(&in_place, 0, rows);
        kc_equal(c, "in place", copy.data, first.data, kc_bytes(&first, rows));
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t shapes[][2] = {{4, 1}, {3, 2}, {5, 31}, {6, 32}, {3, 33}, {2, 1000}, {2, 5003}};
    const float sizes[] = {.1f, 3, 30};
    for (int64_t s = 0; s < CMOEI_COUNT(shapes); s++) {
        for (int i = 0; i < 6; i++)
            check(&c, shapes[s][0], shapes[s][1], sizes[i / 2], i % 2);
    }
    return kc_report(&c, "kernels_cross_entropy");
}
