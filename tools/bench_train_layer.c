/* SPDX-License-Identifier: MIT
 *
 * bench_train_layer.c - one layer, forwards and backwards, as a training step does it.
 *
 * Weights lie in memory twice, as in a training: as they are kept, and packed for the products.  The
 * layer's own gate decides where tokens go, and every repetition takes other tokens.  Repetitions of all
 * points alternate, so that a machine that slows down slows all of them.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench_train.h"
#include "crew.h"
#include "model.h"
#include "report.h"

enum { DRAW_GATE = 64, DRAW_X, DRAW_DOUT }; /* apart from those of synth.c */

/* ---- setting up ------------------------------------------------------------------------------ */

typedef struct normals {
    float *v;
    int64_t n;
    uint64_t seed, draw;
    float scale;
    bool cut; /* to what bf16 can hold, so that the products see what the check sees */
} normals;

static void normals_thread(void *arg, int32_t index, int32_t count)
{
    const normals *w = arg;
    for (int64_t i = w->n * index / count; i < w->n * (index + 1) / count; i++) {
        float v = w->scale * cmoe_random_normal(w->seed, (uint64_t)i, w->draw);
        if (w->cut) {
            uint32_t bits;
            memcpy(&bits, &v, sizeof bits);
            bits &= 0xffff0000u;
            memcpy(&v, &bits, sizeof v);
        }
        w->v[i] = v;
    }
}

static float *take(int64_t n)
{
    return malloc((size_t)n * sizeof(float));
}

static bool make_rows(train_layer *l)
{
    const synth *s = &l->s;
    const int64_t H = s->hidden, rows = (l->most + TRAIN_SHIFTS) * H, gate = s->experts * H;
    const int64_t w = s->experts * s->inter * H;
    l->gate = take(gate);
    l->x = take(rows);
    l->dout = take(rows);
    l->out = take(l->most * H);
    l->dx = take(l->most * H);
    l->dgate = take(gate);
    l->dw13 = take(2 * w);
    l->dw2 = take(w);
    l->ids = malloc((size_t)(l->most * s->topk) * sizeof *l->ids);
    if (!l->gate || !l->x || !l->dout || !l->out || !l->dx || !l->dgate || !l->dw13 || !l->dw2 ||
        !l->ids)
        return false;
    const bool cut = s->format == CMOE_BF16;
    normals all[] = {{l->gate, gate, s->seed, DRAW_GATE, 1 / sqrtf((float)H), false},
                     {l->x, rows, s->seed, DRAW_X, 1, cut},
                     {l->dout, rows, s->seed, DRAW_DOUT, 1, cut}};
    for (int i = 0; i < 3; i++)
        crew_run(cmoe_ctx_threads(l->session->ctx), normals_thread, &all[i]);
    return true;
}

static int pack(train_layer *l, cmoe_trainable **out, int32_t format, const void *data, int64_t E,
                int64_t N, int64_t K)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    o.format = format;
    const cmoe_part part = {.w = cmoe_view_3d(data, format, E, N, K)};
    cmoe_status status = cmoe_trainable_create(out, l->session->ctx, &o, E, N, K, &err);
    if (status == CMOE_OK) status = cmoe_trainable_fill(l->session->stream, *out, &part, 1, &err);
    return report_status(status, "weights", &err);
}

static int pack_all(train_layer *l)
{
    const synth *s = &l->s;
    const int64_t H = s->hidden, I = s->inter, E = s->experts;
    int status = pack(l, &l->packed_gate, CMOE_F32, l->gate, 1, E, H);
    if (status == 0) status = synth_matrix(s, 0, SYNTH_W13, l->session, &l->w13);
    if (status == 0) status = pack(l, &l->packed13, s->format, l->w13, E, 2 * I, H);
    if (status == 0) status = synth_matrix(s, 0, SYNTH_W2, l->session, &l->w2);
    if (status == 0) status = pack(l, &l->packed2, s->format, l->w2, E, H, I);
    return status;
}

static int make_layer(train_layer *l)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_route_options route;
    cmoe_layer_train_options o;
    cmoe_route_options_default(&route, sizeof route);
    route.topk = l->s.topk;
    cmoe_layer_train_options_default(&o, sizeof o);
    o.route = &route;
    o.gate = l->packed_gate;
    o.w13 = l->packed13;
    o.w2 = l->packed2;
    cmoe_status status = cmoe_layer_train_create(&l->layer, l->session->ctx, &o, &err);
    if (status == CMOE_OK)
        status = cmoe_layer_train_bytes(l->layer, l->most, &l->keep_bytes, &l->scratch_bytes, NULL,
                                        &err);
    return report_status(status, "layer", &err);
}

static int no_memory(const train_layer *l)
{
    return report_fail(EXIT_MEMORY, "memory", "none left for %lld tokens", (long long)l->most);
}

/* Weights, packed both ways, and gradients; rows of tokens, and what a forward keeps of them. */
static int check_memory(const train_layer *l, const machine *m)
{
    const synth *s = &l->s;
    const double weights = 3.0 * (double)s->hidden * (double)s->inter * (double)s->experts;
    const double rows = 16.0 * (double)s->hidden + 12.0 * (double)(s->inter * s->topk);
    const double need =
        weights * (3.0 * (double)cmoe_dtype_bytes(s->format) + 4) + rows * (double)l->most;
    if (m->available_bytes <= 0 || need <= (double)m->available_bytes) return 0;
    return report_fail(EXIT_MEMORY, "memory",
                       "the weights, packed both ways, and their gradients need %.1f GB, %.1f GB "
                       "are free",
                       need / 1e9, (double)m->available_bytes / 1e9);
}

int train_layer_open(train_layer *l, const bench_train_flags *f, const tool_session *session,
                     const machine *m, int64_t most)
{
    *l = (train_layer){.s = {.hidden = f->hidden,
                             .inter = f->inter,
                             .experts = f->experts,
                             .topk = f->topk,
                             .format = model_format(f->dtype),
                             .seed = (uint64_t)f->seed},
                       .session = session,
                       .most = most,
                       .units = f->units ? f->units : 1};
    int status = check_memory(l, m);
    if (status) return status;
    report_progress(f->common.quiet, "making weights");
    if (!make_rows(l)) status = no_memory(l);
    if (status == 0) status = pack_all(l);
    if (status == 0) status = make_layer(l);
    if (status == 0) {
        l->keep = malloc((size_t)l->keep_bytes);
        l->scratch = malloc((size_t)l->scratch_bytes);
        if (!l->keep || !l->scratch) status = no_memory(l);
    }
    if (status) train_layer_close(l);
    return status;
}

void train_layer_close(train_layer *l)
{
    void *const all[] = {l->w13,   l->w2,   l->gate, l->x,   l->dout, l->out,    l->dx,
                         l->dgate, l->dw13, l->dw2,  l->ids, l->keep, l->scratch};
    cmoe_layer_train_free(l->layer);
    cmoe_trainable_free(l->packed_gate);
    cmoe_trainable_free(l->packed13);
    cmoe_trainable_free(l->packed2);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    *l = (train_layer){0};
}

/* ---- a step ---------------------------------------------------------------------------------- */

static cmoe_view_mut view_3d(float *data, int64_t n, int64_t rows, int64_t cols)
{
    const int64_t dims[] = {n, rows, cols};
    return cmoe_view_mut_make(data, CMOE_F32, 3, dims);
}

int train_layer_step(train_layer *l, int64_t tokens, const float *x, const float *dout,
                     double us[2])
{
    const synth *s = &l->s;
    const int64_t H = s->hidden, I = s->inter, E = s->experts;
    int64_t first[CMOE_UNITS_MOST + 1];
    const cmoe_units units = {.count = l->units, .first = first};
    for (int64_t u = 0; u <= l->units; u++)
        first[u] = tokens * u / l->units;
    const cmoe_part_gradient gate = {.w = view_3d(l->dgate, 1, E, H)},
                             w13 = {.w = view_3d(l->dw13, E, 2 * I, H)},
                             w2 = {.w = view_3d(l->dw2, E, H, I)};
    const cmoe_view rows = cmoe_view_2d(x, CMOE_F32, tokens, H);
    cmoe_arena keep = cmoe_arena_make(l->keep, l->keep_bytes),
               scratch = cmoe_arena_make(l->scratch, l->scratch_bytes);
    cmoe_error err = {.size = sizeof err};
    cmoe_layer_call call;
    cmoe_layer_gradients g;
    cmoe_saved *saved = NULL;
    cmoe_layer_call_default(&call, sizeof call);
    call.ids = cmoe_view_mut_2d(l->ids, CMOE_I32, tokens, s->topk);
    cmoe_layer_gradients_default(&g, sizeof g);
    g.dx = cmoe_view_mut_2d(l->dx, CMOE_F32, tokens, H);
    g.gate = &gate;
    g.w13 = &w13;
    g.w2 = &w2;
    const double start = crew_now();
    cmoe_status status = cmoe_layer_train_forward(l->session->stream, l->layer, rows, &call,
                                                  cmoe_view_mut_2d(l->out, CMOE_F32, tokens, H),
                                                  &saved, &keep, &scratch, &err);
    const double middle = crew_now();
    if (status == CMOE_OK)
        status = cmoe_layer_backward(l->session->stream, l->layer, saved, rows,
                                     cmoe_view_2d(dout, CMOE_F32, tokens, H), &units, &g, &scratch,
                                     &err);
    us[0] = (middle - start) * 1e6;
    us[1] = (crew_now() - middle) * 1e6;
    return report_status(status, "layer", &err);
}

/* ---- measuring ------------------------------------------------------------------------------- */

/* us [3, repeat]: forward, backward, both. */
static void summarise(const synth *s, int64_t tokens, int64_t n, double *us, train_point *p)
{
    double *both = us + 2 * n;
    p->tokens = tokens;
    p->us_forward = bench_median(us, n);
    p->us_backward = bench_median(us + n, n);
    p->us_median = bench_median(both, n); /* sorts */
    p->us_min = both[0];
    p->spread = (both[n - 1 - n / 4] - both[n / 4]) / p->us_median;
    p->gflops = 18.0 * (double)s->hidden * (double)s->inter * (double)(s->topk * tokens) /
                p->us_median / 1e3;
}

/* Repetition r of every point; r < 0: not counted.  us [points, 3, repeat]. */
static int round_of(train_layer *l, const bench_train_flags *f, int64_t r, double *us)
{
    const int64_t shift = (r + TRAIN_SHIFTS) % TRAIN_SHIFTS * l->s.hidden, n = f->repeat;
    for (int64_t i = 0; i < f->tokens.n; i++) {
        double one[2];
        const int status = train_layer_step(l, f->tokens.v[i], l->x + shift, l->dout + shift, one);
        if (status) return status;
        if (report_cancelled()) return report_fail(EXIT_CANCELLED, "bench train", "cancelled");
        if (r < 0) continue;
        us[(3 * i) * n + r] = one[0];
        us[(3 * i + 1) * n + r] = one[1];
        us[(3 * i + 2) * n + r] = one[0] + one[1];
    }
    return 0;
}

int train_layer_measure(train_layer *l, const bench_train_flags *f, limits *limit,
                        train_point *points)
{
    const int64_t n = f->repeat;
    double *us = malloc((size_t)(3 * n * f->tokens.n) * sizeof *us);
    int status = us ? 0 : no_memory(l);
    report_progress(f->common.quiet, "checking the result");
    for (int64_t i = 0; i < f->tokens.n && status == 0; i++)
        status = train_layer_check(l, f->tokens.v[i]);
    for (int64_t r = -1; r < n && status == 0; r++) {
        report_progress(f->common.quiet, "repetition %lld of %lld", (long long)r + 1, (long long)n);
        limits_peak(limit, LIMIT_F32);
        status = round_of(l, f, r, us);
    }
    limits_peak(limit, LIMIT_F32);
    for (int64_t i = 0; i < f->tokens.n && status == 0; i++)
        summarise(&l->s, f->tokens.v[i], n, us + 3 * i * n, &points[i]);
    free(us);
    return status;
}
