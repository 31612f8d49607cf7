/* SPDX-License-Identifier: MIT
 *
 * optimizer.c - every adamw, sgd and sum_squares kernel against the double oracle, and all of them bit
 * by bit against each other.
 */
#include "planes.h"

#include "ops/optimizer.h"

void cmoei_adamw_f64(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
void cmoei_sgd_f64(const cmoei_optimizer_args *a, int64_t begin, int64_t end);
void cmoei_sum_squares_f64(const cmoei_squares_args *a, int64_t block, int64_t block_end);

enum { ADAMW, SGD, SGD_FIRST, SGD_PLAIN, OPS };
enum { VALUE, M, V, ARRAYS };

typedef struct inputs {
    cmoei_plane gradient, array[ARRAYS];
} inputs;

/* Copies of the arrays that a kernel may write. */
static cmoei_optimizer_args with_arrays(kc *c, const cmoei_optimizer_args *from, const inputs *in,
                                        int64_t n, kc_lie lie)
{
    cmoei_optimizer_args a = *from;
    cmoei_plane *const own[ARRAYS] = {&a.value, &a.m, &a.v};
    for (int k = 0; k < ARRAYS; k++) {
        if (!in->array[k].data) continue;
        *own[k] = kc_plane_out(c, 1, n, lie);
        for (int64_t i = 0; i < n; i++) {
            const float x = (float)kc_get(&in->array[k], 0, i);
            cmoei_store_f32(cmoei_plane_at(own[k], 0, i), lie.dtype, 1, &x, 1);
        }
    }
    return a;
}

/* Roundings of one element; |.| of what is added, so that cancelling is allowed for.  adamw: m has the
 * difference, its product and sum (3 of scale g and m); v has 4 of positive terms; d has a root, which
 * halves what v brings, and two more; the quotient one, value two. */
static void bounds(const cmoei_optimizer_args *a, int op, double g, double value, double m,
                   double v, double out[ARRAYS])
{
    const double u = 1.01 * 0x1p-24;
    if (op == ADAMW) {
        const double size = (fabs(g) + fabs(m)) * 3;
        const double new_v = a->mix2 * g * g + a->beta2 * v, d = sqrt(new_v) * a->inverse + a->eps;
        const double new_m = m + (g - m) * a->mix1;
        out[M] = u * size + FLT_MIN;
        out[V] = 4 * u * new_v + 2 * FLT_MIN;
        /* v below the smallest normal number has no relative precision: its root has an absolute one. */
        const double d_off = 5 * u * d + (new_v < FLT_MIN ? sqrt(2 * FLT_MIN) * a->inverse : 0);
        const double q_off = (out[M] + fabs(new_m) * (d_off / d + u)) / d;
        out[VALUE] = 2 * u * (fabs(value) + a->rate * fabs(new_m) / d) + a->rate * q_off + FLT_MIN;
        return;
    }
    out[V] = 0;
    out[M] = 2 * u * (fabs(g) + a->momentum * fabs(m)) + FLT_MIN;
    out[VALUE] = 2 * u * (fabs(value) + a->rate * (fabs(g) + a->momentum * fabs(m))) +
                 a->rate * out[M] + FLT_MIN;
}

static void check_row(kc *c, const char *name, int op, const inputs *in,
                      const cmoei_optimizer_args *got, const cmoei_optimizer_args *want, int64_t n)
{
    const cmoei_plane *const g[ARRAYS] = {&got->value, &got->m, &got->v};
    const cmoei_plane *const w[ARRAYS] = {&want->value, &want->m, &want->v};
    for (int64_t i = 0; i < n; i++) {
        double old[ARRAYS], bound[ARRAYS];
        for (int k = 0; k < ARRAYS; k++)
            old[k] = in->array[k].data ? kc_get(&in->array[k], 0, i) : 0;
        bounds(got, op, kc_get(&in->gradient, 0, i) * got->scale, old[VALUE], old[M], old[V],
               bound);
        for (int k = 0; k < ARRAYS; k++) {
            if (g[k]->data) kc_near(c, name, i, kc_get(g[k], 0, i), kc_get(w[k], 0, i), bound[k]);
        }
    }
}

static void make_inputs(kc *c, inputs *in, int op, int64_t n, kc_lie lie)
{
    *in = (inputs){.gradient = kc_plane(c, 1, n, lie, 1)};
    in->array[VALUE] = kc_plane(c, 1, n, lie, 1);
    if (op != SGD_PLAIN) in->array[M] = kc_plane(c, 1, n, lie, .1f);
    if (op == ADAMW) in->array[V] = kc_plane(c, 1, n, lie, .1f);
    for (int64_t i = 0; i < n; i++) {
        /* Magnitudes of gradients go over many orders; some have none, and no state. */
        float g, v;
        memcpy(&g, cmoei_plane_at(&in->gradient, 0, i), sizeof g);
        g = i % 11 == 3 ? 0 : ldexpf(g, -(int)(i % 40));
        memcpy(cmoei_plane_at(&in->gradient, 0, i), &g, sizeof g);
        if (op != ADAMW) continue;
        memcpy(&v, cmoei_plane_at(&in->array[V], 0, i), sizeof v);
        v = i % 11 == 3 ? 0 : v * v;
        memcpy(cmoei_plane_at(&in->array[V], 0, i), &v, sizeof v);
        if (i % 11 == 3) memcpy(cmoei_plane_at(&in->array[M], 0, i), &v, sizeof v);
    }
}

static void check(kc *c, int op, int64_t n, int odd)
{
    static const char *const names[] = {"adamw", "sgd", "sgd first", "sgd plain"};
    const kc_lie lie = {CMOE_F32, 1, odd}, f64 = {CMOE_F64, 1, 0};
    kc_begin(c, "%s n=%d odd=%d", names[op], (int)n, odd);
    const cmoei_table *table = op == ADAMW ? &cmoei_adamw_table : &cmoei_sgd_table;
    inputs in;
    make_inputs(c, &in, op, n, lie);
    const cmoei_optimizer_args options = {.gradient = in.gradient,
                                          .scale = .7f,
                                          .keep = .999f,
                                          .rate = .013f,
                                          .mix1 = .1f,
                                          .mix2 = .05f,
                                          .beta2 = .95f,
                                          .inverse = 1.7f,
                                          .eps = 1e-8f,
                                          .momentum = op == SGD ? .9f : 0};
    const cmoei_optimizer_args want = with_arrays(c, &options, &in, n, f64);
    (op == ADAMW ? cmoei_adamw_f64 : cmoei_sgd_f64)(&want, 0, n);
    cmoei_optimizer_args first = {0};
    for (int64_t v = table->count - 1; v >= 0; v--) {
        const cmoei_optimizer_kernel *kn = (const void *)cmoei_table_row(table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        const cmoei_optimizer_args a = with_arrays(c, &options, &in, n, lie);
        if (v == table->count - 1) first = a;
        kn->run(&a, 0, n / 3);
        kn->run(&a, n / 3, n);
        check_row(c, kn->variant.name, op, &in, &a, &want, n);
        kc_equal(c, kn->variant.name, a.value.data, first.value.data, n * 4);
        if (a.m.data) kc_equal(c, kn->variant.name, a.m.data, first.m.data, n * 4);
        if (a.v.data) kc_equal(c, kn->variant.name, a.v.data, first.v.data, n * 4);
    }
    kc_end(c);
}

/* Squares are exact in double and their order is fixed: every kernel is the oracle. */
static void check_squares(kc *c, int64_t n, int odd)
{
    enum { BLOCKS = 4 };
    const kc_lie lie = {CMOE_F32, 1, odd};
    kc_begin(c, "sum_squares n=%d odd=%d", (int)n, odd);
    const cmoei_plane x = kc_plane(c, 1, n, lie, 1e10f);
    const int64_t blocks = cmoei_ceil_div(n, CMOEI_SQUARES_BLOCK);
    double *want = kc_out(c, BLOCKS * 8), plain = 0, sum = 0;
    cmoei_squares_args a = {.x = x.data, .n = n, .sum = want};
    cmoei_sum_squares_f64(&a, 0, blocks);
    for (int64_t i = 0; i < n; i++)
        plain += kc_get(&x, 0, i) * kc_get(&x, 0, i);
    for (int64_t b = 0; b < blocks; b++)
        sum += want[b];
    kc_near(c, "oracle", 0, sum, plain, (double)n * 0x1p-52 * plain);
    for (int64_t v = 0; v < cmoei_sum_squares_table.count; v++) {
        const cmoei_squares_kernel *kn = (const void *)cmoei_table_row(&cmoei_sum_squares_table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        a.sum = kc_out(c, BLOCKS * 8);
        kn->run(&a, 0, 1);
        if (blocks > 1) {
            a.first = 1;
            a.sum++;
            kn->run(&a, 1, blocks);
            a.first = 0;
            a.sum--;
        }
        kc_equal(c, kn->variant.name, a.sum, want, blocks * 8);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const int64_t sizes[] = {1, 15, 16, 33, 511, 4096, 4097, 12301};
    for (int64_t s = 0; s < CMOEI_COUNT(sizes); s++) {
        for (int odd = 0; odd < 2; odd++) {
            for (int op = 0; op < OPS; op++)
                check(&c, op, sizes[s], odd);
            check_squares(&c, sizes[s], odd);
        }
    }
    return kc_report(&c, "kernels_optimizer");
}
