/* SPDX-License-Identifier: MIT
 *
 * combine.c - gradient of a combine against differences of the double oracle's forward; the same
 * bits on 1, 2 and 3 threads.
 *
 * sum(dout * out) is linear in each element of rows and weights, so a difference is exact however
 * long the step: what is left are roundings of the backward, H/16 + 7 for the sum over H.
 */
#include "kernels/planes.h"

#include "align/combine.h"
#include "cmoe/align.h"

void cmoei_combine_f64(const cmoei_combine_args *a, int64_t t, int64_t t_end, int64_t h,
                       int64_t h_end);

typedef struct shape {
    int64_t T, K, E, H, block;
    bool weighted;
    int32_t shared_first;
    int32_t only; /* -1: any expert; else the one that owns all tokens */
} shape;

static void must(kc *c, cmoe_status status, const cmoe_error *err)
{
    if (status != CMOE_OK) kc_fail(c, "%s", err->text);
}

typedef struct fixture {
    shape s;
    cmoe_groups g;
    int64_t R;
    float *rows, *weights, *dout, scale;
    double *out;
} fixture;

/* sum over h of dout * out of one token. */
static double objective(const fixture *f, int64_t t)
{
    const shape *s = &f->s;
    const cmoe_view rows = cmoe_view_2d(f->rows, CMOE_F32, f->R, s->H);
    const cmoe_view weights = cmoe_view_2d(f->weights, CMOE_F32, s->T, s->K);
    const cmoe_view out = cmoe_view_2d(f->out, CMOE_F64, s->T, s->H);
    cmoei_combine_args a = {.rows = cmoei_plane_of(&rows),
                            .out = cmoei_plane_of(&out),
                            .row_of = f->g.row_of,
                            .topk = s->K,
                            .hidden = s->H,
                            .scale = f->scale};
    if (s->weighted) a.weights = cmoei_plane_of(&weights);
    cmoei_combine_f64(&a, t, t + 1, 0, s->H);
    double sum = 0;
    for (int64_t h = 0; h < s->H; h++)
        sum += (double)f->dout[t * s->H + h] * f->out[t * s->H + h];
    return sum;
}

static double difference(const fixture *f, float *x, int64_t t)
{
    const float x0 = *x;
    *x = x0 + 1;
    const double high = (double)*x, above = objective(f, t);
    *x = x0 - 1;
    const double low = (double)*x, below = objective(f, t);
    *x = x0;
    return (above - below) / (high - low);
}

static void align(kc *c, cmoe_stream *s, fixture *f)
{
    cmoe_error err = {0};
    cmoe_align_options o;
    int64_t bytes = 0;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = f->s.E;
    o.block = f->s.block;
    const int32_t low = f->s.only < 0 ? -1 : f->s.only;
    const int32_t high = f->s.only < 0 ? (int32_t)f->s.E : f->s.only;
    const int32_t *ids = kc_i32s(c, f->s.T * f->s.K, low, high);
    must(c, cmoe_align_bytes(&o, f->s.T, f->s.K, &bytes, NULL, &err), &err);
    cmoe_arena arena = cmoe_arena_make(kc_out(c, bytes), bytes);
    must(c, cmoe_align(s, &o, cmoe_view_2d(ids, CMOE_I32, f->s.T, f->s.K), &f->g, &arena, &err),
         &err);
    f->R = f->g.capacity;
}

static void compare(kc *c, fixture *f, const float *drows, const float *dweights)
{
    const shape *s = &f->s;
    const double U = 0x1p-24;
    for (int64_t i = 0; i < s->T * s->K; i++) {
        const int32_t row = f->g.row_of[i];
        const int64_t t = i / s->K;
        double size = 0;
        for (int64_t h = 0; row >= 0 && h < s->H; h++) {
            const double want = difference(f, &f->rows[row * s->H + h], t);
            kc_near(c, "drows", row * s->H + h, drows[row * s->H + h], want,
                    4 * U * fabs(want) + 1e-12);
            size += fabs((double)f->rows[row * s->H + h] * f->dout[t * s->H + h] * f->scale);
        }
        if (s->weighted)
            kc_near(c, "dweights", i, dweights[i], difference(f, &f->weights[i], t),
                    ((double)s->H / 16 + 7) * U * size + 1e-12);
    }
}

static void check(kc *c, cmoe_stream *const *streams, shape s)
{
    kc_begin(c, "combine T=%d K=%d E=%d H=%d block=%d weighted=%d first=%d only=%d", (int)s.T,
             (int)s.K, (int)s.E, (int)s.H, (int)s.block, s.weighted, s.shared_first, s.only);
    fixture f = {.s = s, .scale = 1.5f};
    align(c, streams[0], &f);
    f.rows = kc_f32s(c, f.R * s.H);
    f.weights = kc_f32s(c, s.T * s.K);
    f.dout = kc_f32s(c, s.T * s.H);
    f.out = kc_out(c, s.T * s.H * 8);
    cmoe_combine_options o;
    cmoe_combine_options_default(&o, sizeof o);
    o.scale = f.scale;
    o.shared_first = s.shared_first;
    float *drows[3], *dweights[3];
    for (int i = 0; i < 3; i++) {
        cmoe_error err = {0};
        drows[i] = kc_out(c, f.R * s.H * 4);
        dweights[i] = kc_out(c, s.T * s.K * 4);
        const cmoe_view weights =
            s.weighted ? cmoe_view_2d(f.weights, CMOE_F32, s.T, s.K) : cmoe_view_none();
        must(c,
             cmoe_combine_backward(streams[i], &o, cmoe_view_2d(f.rows, CMOE_F32, f.R, s.H),
                                   weights, &f.g, cmoe_view_2d(f.dout, CMOE_F32, s.T, s.H),
                                   cmoe_view_mut_2d(drows[i], CMOE_F32, f.R, s.H),
                                   cmoe_view_mut_2d(dweights[i], CMOE_F32, s.T, s.K), &err),
             &err);
        kc_equal(c, "drows of threads", drows[i], drows[0], f.R * s.H * 4);
        kc_equal(c, "dweights of threads", dweights[i], dweights[0], s.T * s.K * 4);
    }
    compare(c, &f, drows[0], dweights[0]);
    kc_end(c);
}

int main(void)
{
    static kc c;
    cmoe_ctx *ctx[3];
    cmoe_stream *streams[3];
    for (int i = 0; i < 3; i++) {
        cmoe_ctx_options o;
        cmoe_error err = {0};
        cmoe_ctx_options_default(&o, sizeof o);
        o.threads = i + 1;
        if (cmoe_ctx_create(&ctx[i], &o, &err) || cmoe_stream_create(&streams[i], ctx[i], &err)) {
            fprintf(stderr, "%s\n", err.text);
            return 2;
        }
    }
    const shape shapes[] = {{1, 1, 1, 1, 1, true, 0, -1},    {1, 8, 16, 33, 1, true, 1, -1},
                            {9, 2, 4, 65, 4, true, 0, -1},   {13, 4, 3, 17, 1, false, 0, 2},
                            {0, 2, 4, 8, 1, true, 0, -1},    {40, 3, 24, 31, 8, true, 0, -1},
                            {6, 5, 5, 512, 1, false, 1, -1}, {300, 2, 8, 130, 1, true, 0, 0}};
    for (int64_t i = 0; i < CMOEI_COUNT(shapes); i++)
        check(&c, streams, shapes[i]);
    for (int i = 0; i < 3; i++) {
        cmoe_stream_free(streams[i]);
        cmoe_ctx_free(ctx[i]);
    }
    return kc_report(&c, "grad_combine");
}
