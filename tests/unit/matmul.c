/* SPDX-License-Identifier: MIT
 *
 * matmul.c - cmoe_grouped_matmul in all its forms and cmoe_linear, against sums in double: x by
 * token or by row, out by slot or by row, bias, weights, top-k 1 to 4, matrices strided, transposed
 * and borrowed, odd dimensions, every format, instruction set and number of threads.
 */
#include <float.h>

#include "groups.h"
#include "isa.h"
#include "mlp.h"

static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};

typedef struct product {
    mlp m; /* only its memory and random numbers */
    int32_t format;
    int64_t T, topk, E, N, K;
    bool x_grouped, out_grouped, mul_weights, bias, transposed, borrow;
    int64_t block;
    int32_t x_dtype, w_dtype, out_dtype;
    const double *x, *w, *b, *weights; /* [T or R, K], [E, N, K], [E, N], [T, topk] */
} product;

/* ---- what it must be ------------------------------------------------------------------------- */

static double scale_of(const double *v, int64_t n)
{
    double a = 1e-4f;
    for (int64_t i = 0; i < n; i++)
        a = fmax(a, fabs(v[i]));
    return a;
}

static int64_t quantised(double v, double largest)
{
    return (int64_t)nearbyintf((float)v * (127.0f / (float)largest));
}

/* x row . w[e, n]; *bound is how far float32 may be off.  int8: exact up to the few roundings
 * behind the sum. */
static double element(const product *p, const double *x, int64_t e, int64_t n, double *bound)
{
    const double *w = p->w + (e * p->N + n) * p->K;
    double sum = 0, magnitude = 0;
    int64_t exact = 0;
    const double x_most = scale_of(x, p->K), w_most = scale_of(w, p->K);
    for (int64_t k = 0; k < p->K; k++) {
        const double a = p->format == CMOE_BF16 ? mlp_bf16(x[k]) : x[k];
        const double b = p->format == CMOE_BF16 ? mlp_bf16(w[k]) : w[k];
        sum += a * b;
        magnitude += fabs(a * b);
        exact += quantised(x[k], x_most) * quantised(w[k], w_most);
    }
    if (p->format == CMOE_I8) {
        sum = (double)exact * (x_most / 127) * (w_most / 127);
        *bound = 6 * FLT_EPSILON * fabs(sum);
    } else {
        *bound = (double)p->K * (FLT_EPSILON * magnitude + 2 * FLT_MIN);
    }
    return sum;
}

static void check_row(const product *p, const char *isa, const double *x, int64_t e, double weight,
                      double bias_on, const float *got)
{
    for (int64_t n = 0; n < p->N; n++) {
        double bound, want = element(p, x, e, n, &bound);
        if (bias_on != 0) want += p->b[e * p->N + n];
        want *= weight;
        bound = bound * fabs(weight) + 4 * FLT_EPSILON * (fabs(want) + bound) + FLT_MIN;
        /* and the rounding to the output's format */
        bound += (p->out_dtype == CMOE_BF16  ? 0x1p-8
                  : p->out_dtype == CMOE_F16 ? 0x1p-11
                                             : 0) *
                     (fabs(want) + bound) +
                 (p->out_dtype == CMOE_F16 ? 0x1p-25 : 0);
        if (!(fabs(got[n] - want) <= bound))
            fail_msg("%s %s T=%d topk=%d E=%d N=%d K=%d grouped=%d,%d: [%d] = %.9g, want %.9g +- "
                     "%.3g",
                     isa, cmoe_dtype_name(p->format), (int)p->T, (int)p->topk, (int)p->E, (int)p->N,
                     (int)p->K, p->x_grouped, p->out_grouped, (int)n, (double)got[n], want, bound);
    }
}

/* ---- running it ------------------------------------------------------------------------------ */

static cmoe_matrix *matrix_of(product *p, cmoe_ctx *ctx)
{
    cmoe_matrix_options o;
    cmoe_matrix_options_default(&o, sizeof o);
    o.format = p->format;
    o.transposed = p->transposed;
    o.borrow = p->borrow;
    cmoe_matrix *m = NULL;
    UNIT_OK(cmoe_matrix_create(&m, ctx, &o,
                               mlp_lay(&p->m, p->w, p->w_dtype, p->E, p->N, p->K, p->transposed),
                               mlp_lay_2d(&p->m, p->b, CMOE_F32, p->E, p->N), &err));
    assert_true(cmoe_matrix_weight_bytes(m) >= p->E * p->N * p->K *
                                                   (p->format == CMOE_F32    ? 4
                                                    : p->format == CMOE_BF16 ? 2
                                                                             : 1));
    return m;
}

static void run_product(product *p, const char *isa, const unit_env *e)
{
    const int blocks = p->m.blocks;
    grouping r = grouping_make(e->stream, p->m.seed, p->T, p->topk, p->E, p->block);
    const cmoe_groups *g = &r.g;
    const int64_t R = g->first[p->E], x_rows = p->x_grouped ? R : p->T,
                  out_rows = p->out_grouped ? R + 1 : p->T * p->topk;
    cmoe_grouped_matmul_options o;
    cmoe_grouped_matmul_options_default(&o, sizeof o);
    o.x_grouped = p->x_grouped;
    o.out_grouped = p->out_grouped;
    o.mul_weights = p->mul_weights;
    p->x = mlp_normals(&p->m, x_rows * p->K, 1, p->x_dtype);
    cmoe_matrix *w = matrix_of(p, e->ctx);
    int64_t need = -1;
    UNIT_OK(cmoe_grouped_matmul_bytes(w, R, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    float *back = malloc((size_t)(p->N + 1) * sizeof *back);
    const int64_t bytes = cmoe_dtype_bytes(p->out_dtype), row = p->N + p->m.pad;
    char *out = mlp_get(&p->m, out_rows * row * bytes + p->m.odd);
    memset(out, 0x5a, (size_t)(out_rows * row * bytes + p->m.odd));
    cmoe_view_mut view = cmoe_view_mut_2d(out + p->m.odd, p->out_dtype, out_rows, p->N);
    view.strides[0] = row;
    UNIT_OK(cmoe_grouped_matmul(
        e->stream, &o, mlp_lay_2d(&p->m, p->x, p->x_dtype, x_rows, p->K), w,
        p->mul_weights ? mlp_lay_2d(&p->m, p->weights, CMOE_F32, p->T, p->topk) : cmoe_view_none(),
        g, view, &arena, &err));
    assert_int_equal(arena.used, 0);
    char *written = calloc((size_t)out_rows + 1, 1);
    for (int64_t expert = 0; expert < p->E; expert++) {
        for (int64_t i = g->first[expert]; i < g->first[expert + 1]; i++) {
            if (g->slots[i] < 0) continue;
            const int64_t to = p->out_grouped ? i : g->slots[i],
                          from = p->x_grouped ? i : g->slots[i] / p->topk;
            cmoei_load_f32(back, out + p->m.odd + to * row * bytes, p->out_dtype, 1, p->N);
            check_row(p, isa, p->x + from * p->K, expert,
                      p->mul_weights ? p->weights[g->slots[i]] : 1, p->bias, back);
            written[to] = 1;
        }
    }
    for (int64_t i = 0; i < out_rows; i++) { /* dropped slots and padding */
        for (int64_t b = 0; b < p->N * bytes && !written[i]; b++)
            assert_int_equal(out[p->m.odd + i * row * bytes + b], 0x5a);
    }
    free(written);
    free(back);
    free(arena.base);
    cmoe_matrix_free(w);
    grouping_free(&r);
    while (p->m.blocks > blocks)
        free(p->m.block[--p->m.blocks]);
}

static product random_product(uint64_t seed, int32_t format)
{
    static const int64_t dims[] = {1, 2, 17, 33, 80, 96, 100, 128};
    static const int32_t floats[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F64};
    product p = {.m = {.seed = seed}, .format = format};
    mlp *m = &p.m;
    p.T = mlp_draw(m, 0, 3) ? mlp_draw(m, 1, 20) : 1;
    p.topk = mlp_draw(m, 1, 4);
    p.E = mlp_draw(m, 1, 4);
    p.N = dims[mlp_draw(m, 0, 7)];
    p.K = dims[mlp_draw(m, 0, 7)];
    p.x_grouped = mlp_draw(m, 0, 1);
    p.out_grouped = mlp_draw(m, 0, 1);
    p.mul_weights = mlp_draw(m, 0, 1);
    p.bias = mlp_draw(m, 0, 1);
    p.transposed = mlp_draw(m, 0, 1);
    p.borrow = mlp_draw(m, 0, 1);
    p.block = mlp_draw(m, 1, 5);
    p.x_dtype = floats[mlp_draw(m, 0, 2)];
    p.w_dtype = floats[mlp_draw(m, 0, 2)];
    p.out_dtype = floats[mlp_draw(m, 0, 3)];
    m->odd = (int32_t)mlp_draw(m, 0, 3);
    m->pad = (int32_t)mlp_draw(m, 0, 3);
    p.w = mlp_normals(m, p.E * p.N * p.K, 1, p.w_dtype);
    if (p.bias) p.b = mlp_normals(m, p.E * p.N, 1, CMOE_F32);
    p.weights = mlp_normals(m, p.T * p.topk, 1, CMOE_F32);
    return p;
}

static void every_form(void **state)
{
    enum { CASES = 60 };
    (void)state;
    ISA_EACH(isa)
    {
        unit_env env[3];
        for (int32_t t = 0; t < 3; t++)
            env[t] = unit_open_isa(t + 1, isa);
        for (int f = 0; f < 3; f++) {
            for (int i = 0; i < CASES; i++) {
                product p = random_product((uint64_t)(1000 * f + i), formats[f]);
                run_product(&p, isa, &env[i % 3]);
                mlp_free(&p.m);
            }
        }
        for (int32_t t = 0; t < 3; t++)
            unit_close(&env[t]);
    }
}

/* More than one block of rows an expert, and a single row. */
static void many_rows_and_one(void **state)
{
    static const int64_t tokens[] = {1, 97, 200};
    (void)state;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        for (int f = 0; f < 3; f++) {
            for (int i = 0; i < 3; i++) {
                product p = {.m = {.seed = 3}, .format = formats[f], .T = tokens[i], .topk = 1};
                p.E = p.block = 1;
                p.N = 33;
                p.K = 20;
                p.x_dtype = p.w_dtype = p.out_dtype = CMOE_F32;
                p.w = mlp_normals(&p.m, p.N * p.K, 1, CMOE_F32);
                run_product(&p, isa, &e);
                mlp_free(&p.m);
            }
        }
        unit_close(&e);
    }
}

/* A matrix alone: out = x . w^T + bias; no tokens and no inputs succeed. */
static void linear(void **state)
{
    static const int64_t tokens[] = {0, 1, 5, 130}, inputs[] = {0, 1, 40};
    (void)state;
    unit_env e = unit_open(3);
    for (int f = 0; f < 3; f++) {
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 3; j++) {
                product p = {.m = {.seed = 4}, .format = formats[f], .T = tokens[i], .topk = 1};
                p.E = 1;
                p.N = 19;
                p.K = inputs[j];
                p.x_dtype = p.w_dtype = p.out_dtype = CMOE_F32;
                p.w = mlp_normals(&p.m, p.N * p.K, 1, CMOE_F32);
                p.b = mlp_normals(&p.m, p.N, 1, CMOE_F32);
                p.x = mlp_normals(&p.m, p.T * p.K, 1, CMOE_F32);
                cmoe_matrix *w = matrix_of(&p, e.ctx);
                int64_t need = -1, device = -1;
                UNIT_OK(cmoe_linear_bytes(w, p.T, &need, &device, &err));
                assert_int_equal(device, 0);
                cmoe_arena arena = unit_arena(need);
                float *out = malloc((size_t)(p.T * p.N + 1) * sizeof *out);
                UNIT_OK(cmoe_linear(e.stream, mlp_lay_2d(&p.m, p.x, CMOE_F32, p.T, p.K), w,
                                    cmoe_view_mut_2d(out, CMOE_F32, p.T, p.N), &arena, &err));
                assert_int_equal(arena.used, 0);
                for (int64_t t = 0; t < p.T; t++)
                    check_row(&p, "linear", p.x + t * p.K, 0, 1, 1, out + t * p.N);
                free(out);
                free(arena.base);
                cmoe_matrix_free(w);
                mlp_free(&p.m);
            }
        }
    }
    unit_close(&e);
}

/* The check above must be able to fail: one wrong element of x, w, bias or weights is seen. */
static bool differs(const product *p, const float *got)
{
    for (int64_t n = 0; n < p->N; n++) {
        double bound;
        const double want = element(p, p->x, 0, n, &bound) + p->b[n];
        if (!(fabs(got[n] - want) <= bound + 4 * FLT_EPSILON * fabs(want))) return true;
    }
    return false;
}

static void the_bound_is_tight(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    for (int f = 0; f < 3; f++) {
        product p = {
            .m = {.seed = 8}, .format = formats[f], .T = 1, .topk = 1, .E = 1, .N = 20, .K = 100};
        p.x_dtype = p.w_dtype = p.out_dtype = CMOE_F32;
        double *w = mlp_normals(&p.m, p.N * p.K, 1, CMOE_F32),
               *x = mlp_normals(&p.m, p.K, 1, CMOE_F32), *b = mlp_normals(&p.m, p.N, 1, CMOE_F32);
        p.w = w;
        p.x = x;
        p.b = b;
        cmoe_matrix *m = matrix_of(&p, e.ctx);
        float out[20];
        int64_t need;
        UNIT_OK(cmoe_linear_bytes(m, 1, &need, NULL, &err));
        cmoe_arena arena = unit_arena(need);
        UNIT_OK(cmoe_linear(e.stream, mlp_lay_2d(&p.m, x, CMOE_F32, 1, p.K), m,
                            cmoe_view_mut_2d(out, CMOE_F32, 1, p.N), &arena, &err));
        double *wrong[] = {&w[7], &x[50], &b[19]};
        assert_false(differs(&p, out));
        for (int i = 0; i < 3; i++) {
            const double was = *wrong[i];
            *wrong[i] += 0.05;
            assert_true(differs(&p, out));
            *wrong[i] = was;
        }
        p.format = formats[(f + 1) % 3];
        assert_true(differs(&p, out));
        free(arena.base);
        cmoe_matrix_free(m);
        mlp_free(&p.m);
    }
    unit_close(&e);
}

/* int8 of every magnitude around a tie of the quantisation, weights that are given ready. */
static void ready_int8(void **state)
{
    enum { N = 3, K = 5 };
    static const int8_t w[N * K] = {-128, 127, -1, 0, 1, 5, -128, -128, -128, -128, 1, 2, 3, 4, 5};
    static const float scale[N] = {0.5f, 2, 0.25f}, x[K] = {127, -63.5f, 62.5f, 0.5f, 1.5f};
    static const int64_t q[K] = {127, -64, 62, 0, 2}; /* halves go to the even */
    (void)state;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(1, isa);
        cmoe_matrix_options o;
        cmoe_matrix_options_default(&o, sizeof o);
        o.scale = cmoe_view_2d(scale, CMOE_F32, 1, N);
        for (o.borrow = 0; o.borrow < 2; o.borrow++) {
            cmoe_matrix *m = NULL;
            UNIT_OK(cmoe_matrix_create(&m, e.ctx, &o, cmoe_view_3d(w, CMOE_I8, 1, N, K),
                                       cmoe_view_none(), &err));
            int64_t need;
            float out[N];
            UNIT_OK(cmoe_linear_bytes(m, 1, &need, NULL, &err));
            cmoe_arena arena = unit_arena(need);
            UNIT_OK(cmoe_linear(e.stream, cmoe_view_2d(x, CMOE_F32, 1, K), m,
                                cmoe_view_mut_2d(out, CMOE_F32, 1, N), &arena, &err));
            for (int n = 0; n < N; n++) {
                int64_t sum = 0;
                for (int k = 0; k < K; k++)
                    sum += q[k] * w[n * K + k];
                assert_true(out[n] == (float)sum * 1.0f * scale[n]);
            }
            free(arena.base);
            cmoe_matrix_free(m);
        }
        unit_close(&e);
    }
}

/* A NaN or an infinity in one row of x shows in that row's results and in no other's. */
static void not_a_number(void **state)
{
    enum { T = 4, N = 20, K = 33 };
    (void)state;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        for (int f = 0; f < 3; f++) {
            product p = {.m = {.seed = 9}, .format = formats[f], .T = T, .topk = 1, .E = 1};
            p.N = N;
            p.K = K;
            p.x_dtype = p.w_dtype = p.out_dtype = CMOE_F32;
            p.w = mlp_normals(&p.m, N * K, 1, CMOE_F32);
            double *x = mlp_normals(&p.m, T * K, 1, CMOE_F32);
            x[K + 32] = NAN;
            x[2 * K] = INFINITY;
            cmoe_matrix *m = matrix_of(&p, e.ctx);
            int64_t need;
            float out[T * N];
            UNIT_OK(cmoe_linear_bytes(m, T, &need, NULL, &err));
            cmoe_arena arena = unit_arena(need);
            UNIT_OK(cmoe_linear(e.stream, mlp_lay_2d(&p.m, x, CMOE_F32, T, K), m,
                                cmoe_view_mut_2d(out, CMOE_F32, T, N), &arena, &err));
            for (int i = 0; i < T * N; i++) {
                const bool finite = out[i] - out[i] == 0;
                assert_int_equal(finite, i / N == 0 || i / N == 3);
            }
            check_row(&p, isa, x, 0, 1, 0, out);
            check_row(&p, isa, x + 3 * K, 0, 1, 0, out + 3 * N);
            free(arena.base);
            cmoe_matrix_free(m);
            mlp_free(&p.m);
        }
        unit_close(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form), cmocka_unit_test(many_rows_and_one),
        cmocka_unit_test(linear),     cmocka_unit_test(the_bound_is_tight),
        cmocka_unit_test(ready_int8), cmocka_unit_test(not_a_number),
    };
    return UNIT_RUN("unit_matmul", tests);
}
