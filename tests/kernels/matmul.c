/* SPDX-License-Identifier: MIT
 *
 * matmul.c - every tile kernel against the double reference, over every row count, odd lengths and
 * values that trap shortcuts (int8 -128, bf16 subnormals).
 */
#include "kc.h"

#include "matmul/matmul.h"

/* What the oracle multiplies: panels of two columns, one k a step. */
static double *oracle(kc *c, int32_t format, const float *x, int64_t x_row, const float *w,
                      int64_t K, int32_t rows, int32_t columns)
{
    double *acc = kc_out(c, rows * columns * 8), pair[2 * CMOEI_TILE_ROWS];
    float *wf = kc_out(c, 2 * K * 4);
    uint16_t *wh = kc_out(c, 2 * K * 2);
    int8_t *wq = kc_out(c, 2 * K), *xq = kc_out(c, rows * K);
    for (int64_t i = 0; i < rows * K; i++)
        xq[i] = (int8_t)(format == CMOE_I8 ? x[i / K * x_row + i % K] : 0);
    for (int32_t n = 0; n < columns; n += 2) {
        for (int64_t k = 0; k < K; k++) {
            for (int h = 0; h < 2; h++) {
                const float v = n + h < columns ? w[(n + h) * K + k] : 0;
                wf[2 * k + h] = v;
                wh[2 * k + h] = cmoei_f32_to_bf16(v);
                wq[2 * k + h] = (int8_t)(format == CMOE_I8 ? v : 0);
            }
        }
        cmoei_tile t = {.x = (const char *)x,
                        .x_stride = x_row * 4,
                        .w = (const char *)wf,
                        .steps = K,
                        .acc = pair};
        if (format == CMOE_F32) {
            cmoei_matmul_f32_f64(&t, rows);
        } else if (format == CMOE_BF16) {
            t.w = (const char *)wh;
            cmoei_matmul_bf16_f64(&t, rows);
        } else {
            t.w = (const char *)wq;
            t.x = (const char *)xq;
            t.x_stride = K;
            cmoei_matmul_i8_f64(&t, rows);
        }
        for (int32_t m = 0; m < rows; m++) {
            for (int h = 0; h < 2 && n + h < columns; h++)
                acc[m * columns + n + h] = pair[2 * m + h];
        }
    }
    return acc;
}

/* The packed layout of matmul.h, written down a second time. */
static char *pack(kc *c, const cmoei_matmul_kernel *k, const float *w, int64_t K, int64_t steps)
{
    const int64_t size = k->v.dtype == CMOE_F32 ? 4 : k->v.dtype == CMOE_BF16 ? 2 : 1;
    char *p = kc_out(c, steps * k->step * k->panel * size + k->panel * 4);
    memset(p, 0, (size_t)(steps * k->step * k->panel * size));
    for (int64_t col = 0; col < k->panel; col++) {
        int32_t sum = 0;
        for (int64_t i = 0; i < K; i++) {
            const int64_t at = i / k->step * k->step * k->panel + col * k->step + i % k->step;
            const float v = w[col * K + i];
            if (size == 4)
                ((float *)p)[at] = v;
            else if (size == 2)
                ((uint16_t *)p)[at] = cmoei_f32_to_bf16(v);
            else
                p[at] = (char)(int8_t)v;
            sum += size == 1 ? (int32_t)v : 0;
        }
        const int32_t start = k->x_form == CMOEI_X_U8 ? -128 * sum : 0;
        memcpy(p + steps * k->step * k->panel * size + col * 4, &start, 4);
    }
    return p;
}

static char *prepare(kc *c, const cmoei_matmul_kernel *k, const float *x, int64_t x_row, int64_t K,
                     int64_t steps, int32_t rows, int64_t *stride)
{
    const int64_t all = steps * k->step;
    *stride = all * 4 + 64;
    char *p = kc_out(c, rows * *stride);
    for (int32_t m = 0; m < rows; m++) {
        char *row = p + m * *stride;
        for (int64_t i = 0; i < all; i++) {
            const float v = i < K ? x[m * x_row + i] : 0;
            if (k->x_form == CMOEI_X_F32)
                ((float *)row)[i] = v;
            else if (k->x_form == CMOEI_X_BF16)
                ((uint16_t *)row)[i] = cmoei_f32_to_bf16(v);
            else if (k->x_form == CMOEI_X_I16)
                ((int16_t *)row)[i] = (int16_t)v;
            else
                row[i] = (char)(k->x_form == CMOEI_X_U8 ? (int)v + 128 : (int)v);
        }
    }
    return p;
}

static void check(kc *c, const cmoei_matmul_kernel *k, int32_t rows, int64_t K, int scale)
{
    kc_begin(c, "matmul/%s %s rows=%d K=%d 2^%d", k->v.name, cmoe_dtype_name(k->v.dtype), rows,
             (int)K, scale);
    float *x = kc_f32s(c, rows * K), *w = kc_f32s(c, k->panel * K);
    for (int64_t i = 0; i < rows * K; i++)
        x[i] = k->v.dtype == CMOE_I8     ? (float)kc_int(c, -127, 127)
               : k->v.dtype == CMOE_BF16 ? cmoei_round_bf16(ldexpf(x[i], scale))
                                         : ldexpf(x[i], scale);
    for (int64_t i = 0; i < k->panel * K; i++)
        w[i] = k->v.dtype == CMOE_I8 ? (kc_int(c, 0, 3) ? (float)kc_int(c, -128, 127) : -128.0f)
                                     : cmoei_round_bf16(w[i]);
    const int64_t steps = (K + k->step - 1) / k->step;
    int64_t stride;
    const char *xp = prepare(c, k, x, K, K, steps, rows, &stride), *wp = pack(c, k, w, K, steps);
    float *acc = kc_out(c, rows * k->panel * 4);
    k->run(&(cmoei_tile){.x = xp, .x_stride = stride, .w = wp, .steps = steps, .acc = acc}, rows);
    const double *want = oracle(c, k->v.dtype, x, K, w, K, rows, k->panel);
    for (int64_t i = 0; i < rows * k->panel; i++) {
        if (k->v.dtype == CMOE_I8) {
            kc_near(c, "acc", i, ((const int32_t *)acc)[i], want[i], 0);
            continue;
        }
        double mag = 0;
        float chain = 0; /* what every row but vdpbf16ps gives, bit for bit */
        for (int64_t j = 0; j < K; j++) {
            chain = fmaf(x[i / k->panel * K + j], w[i % k->panel * K + j], chain);
            mag += fabs((double)x[i / k->panel * K + j] * w[i % k->panel * K + j]);
        }
        if (k->x_form != CMOEI_X_BF16) kc_equal(c, "acc against the chain", &acc[i], &chain, 4);
        /* A chain of K fused multiply-adds is off by at most K * 2^-24 * sum|p|, allow twice that;
         * vdpbf16ps may flush every term below the smallest normal number. */
        kc_near(c, "acc", i, acc[i], want[i], (double)K * (FLT_EPSILON * mag + 2 * FLT_MIN));
    }
    kc_end(c);
}

/* Float formats: a product cut in two, the second part continuing the sums of the first, and f32 rows
 * that are read across, give the bits of the whole. */
static void check_forms(kc *c, const cmoei_matmul_kernel *k, int32_t rows, int64_t K, int64_t cut)
{
    const int64_t steps = K / k->step, size = k->v.dtype == CMOE_F32 ? 4 : 2;
    kc_begin(c, "matmul/%s %s rows=%d K=%d cut at %d", k->v.name, cmoe_dtype_name(k->v.dtype), rows,
             (int)K, (int)cut);
    float *x = kc_f32s(c, rows * K), *w = kc_f32s(c, k->panel * K);
    int64_t stride;
    const char *xp = prepare(c, k, x, K, K, steps, rows, &stride), *wp = pack(c, k, w, K, steps);
    const int64_t bytes = rows * k->panel * 4, first = cut / k->step;
    float *whole = kc_out(c, bytes), *parts = kc_out(c, bytes), *across = kc_out(c, bytes);
    k->run(&(cmoei_tile){.x = xp, .x_stride = stride, .w = wp, .steps = steps, .acc = whole}, rows);
    cmoei_tile t = {.x = xp, .x_stride = stride, .w = wp, .steps = first, .acc = parts};
    k->run(&t, rows);
    t.x += first * k->step * (k->x_form == CMOEI_X_BF16 ? 2 : 4);
    t.w += first * k->step * k->panel * size;
    t.steps = steps - first;
    t.more = true;
    k->run(&t, rows);
    kc_equal(c, "parts", parts, whole, bytes);
    if (k->v.dtype == CMOE_F32) {
        float *turned = kc_out(c, rows * K * 4);
        for (int64_t i = 0; i < rows * K; i++)
            turned[i % K * rows + i / K] = x[i];
        k->run(&(cmoei_tile){.x = (const char *)turned,
                             .x_stride = 4,
                             .x_step = rows * 4,
                             .w = wp,
                             .steps = steps,
                             .acc = across},
               rows);
        kc_equal(c, "across", across, whole, bytes);
        t = (cmoei_tile){
            .x = xp, .x_stride = stride, .w = wp, .steps = steps, .acc = across, .onto = true};
        k->run(&t, rows);
        for (int64_t i = 0; i < bytes / 4; i++)
            kc_near(c, "onto", i, across[i], whole[i] + whole[i], 0);
    }
    kc_end(c);
}

int main(void)
{
    static const int64_t lengths[] = {1, 2, 3, 4, 5, 7, 31, 64, 100, 257};
    const uint32_t features = cmoe_cpu_features();
    kc c = {0};
    for (int64_t i = 0; i < cmoei_matmul_table.count; i++) {
        const cmoei_matmul_kernel *k = (const void *)cmoei_table_row(&cmoei_matmul_table, i);
        if (k->v.needs & ~features) {
            printf("skipped matmul/%s %s: this CPU has not what it needs\n", k->v.name,
                   cmoe_dtype_name(k->v.dtype));
            continue;
        }
        for (int32_t rows = 1; rows <= k->rows; rows++) {
            for (int64_t n = 0; n < CMOEI_COUNT(lengths); n++)
                check(&c, k, rows, lengths[n], 0);
        }
        for (int32_t rows = 1; rows <= k->rows && k->v.dtype != CMOE_I8; rows++) {
            check_forms(&c, k, rows, 100, 36);
            check_forms(&c, k, rows, 8, 0);
        }
        check(&c, k, k->rows, 2048, 0);
        check(&c, k, 2, 64, -120); /* subnormal products */
    }
    return kc_report(&c, "kernels_matmul");
}
