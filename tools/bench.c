/* SPDX-License-Identifier: MIT
 *
 * bench.c - time one made-up layer.
 *
 * What could flatter the result is taken away: weights come from memory (copies are taken in turn
 * until they fill the last-level cache four times), every repetition has another routing and other
 * tokens, the result is compared with a double computation before the clock starts, and the
 * machine's bandwidth is probed directly before and after, because on shared machines it moves.
 */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "crew.h"
#include "report.h"

/* ---- setting up ------------------------------------------------------------------------------ */

/* How many copies are wanted and fit; 0 after an error line. */
static int64_t count_copies(bench *b, const machine *m)
{
    const double one = (double)synth_weight_bytes(b->s, b->s->experts);
    const double x = (double)(b->most_tokens + BENCH_ROUTINGS) * (double)b->s->hidden * 16;
    const double left = (double)m->available_bytes - (double)b->limits->buffer_bytes - x;
    /* The originals of one copy lie in memory while it is packed. */
    if (m->available_bytes > 0 && 2 * one > left) {
        report_fail(EXIT_MEMORY, "memory",
                    "the weights and their packed copy need %.1f GB, %.1f GB are free",
                    2 * one / 1e9, left > 0 ? left / 1e9 : 0.0);
        return 0;
    }
    const double wanted = ceil(4 * (double)m->llc_bytes / one);
    const double fit = m->available_bytes > 0 ? floor(0.8 * left / one) - 1 : wanted;
    double n = fmin(wanted, BENCH_COPIES);
    n = fmin(n, fmax(fit, 1));
    return n < 1 ? 1 : (int64_t)n;
}

int bench_open(bench *b, const synth *s, const tool_session *session, const machine *m, limits *l,
               int64_t most_tokens, bool quiet)
{
    *b = (bench){.s = s,
                 .session = session,
                 .limits = l,
                 .most_tokens = most_tokens,
                 .quiet = quiet,
                 .info = {.size = sizeof b->info}};
    const int64_t n = count_copies(b, m);
    if (n == 0) return EXIT_MEMORY;
    int status = synth_tokens(s, most_tokens + BENCH_ROUTINGS, session, &b->x);
    b->copies = calloc((size_t)n, sizeof(cmoe_experts *));
    if (status == 0 && !b->copies) status = report_fail(EXIT_MEMORY, "memory", "none left");
    for (int64_t i = 0; i < n && status == 0; i++) {
        report_progress(quiet, "making weights, copy %lld of %lld", (long long)i + 1, (long long)n);
        status = synth_experts(s, i, session, &b->copies[i]);
        if (status == 0) b->n_copies++;
        if (status == 0 && report_cancelled())
            status = report_fail(EXIT_CANCELLED, "bench layer", "cancelled");
    }
    if (status == 0) {
        cmoe_error err = {.size = sizeof err};
        status =
            report_status(cmoe_experts_describe(b->copies[0], &b->info, &err), "weights", &err);
    }
    b->cached = (double)b->info.weight_bytes * (double)n < 4 * (double)m->llc_bytes;
    if (status) bench_close(b);
    return status;
}

void bench_close(bench *b)
{
    for (int64_t i = 0; i < b->n_copies; i++)
        cmoe_experts_free(b->copies[i]);
    free(b->copies);
    free(b->x);
    *b = (bench){0};
}

/* ---- one point ------------------------------------------------------------------------------- */

/* Memory of one point. */
typedef struct point {
    bench *b;
    int64_t M, n_routings;
    int32_t *ids;               /* [n_routings, M, K] */
    float *weights;             /* likewise */
    double hit[BENCH_ROUTINGS]; /* experts hit by each routing */
    char *out;                  /* [M, H] */
    void *scratch;
    int64_t scratch_bytes;
    double *us; /* [repeats] */
} point;

static const char *x_of(const point *p, int64_t r)
{
    const synth *s = p->b->s;
    return (const char *)p->b->x +
           r % BENCH_ROUTINGS * s->hidden * cmoe_dtype_bytes(synth_x_dtype(s));
}

static int make_routing(point *p, int64_t i)
{
    const int64_t MK = p->M * p->b->s->topk;
    const int status = synth_routing(p->b->s, p->M, (uint64_t)i, 0, p->b->session, p->ids + i * MK,
                                     p->weights + i * MK);
    if (status == 0) p->hit[i] = (double)synth_experts_hit(p->b->s, p->ids + i * MK, MK);
    return status;
}

/* Repetition r; returns its microseconds, or a negative number after an error line. */
static double repetition(point *p, int64_t r)
{
    const synth *s = p->b->s;
    const int64_t MK = p->M * s->topk, i = r % p->n_routings;
    const int32_t dtype = synth_x_dtype(s);
    cmoe_error err = {.size = sizeof err};
    cmoe_arena arena = cmoe_arena_make(p->scratch, p->scratch_bytes);
    const cmoe_view x = cmoe_view_2d(x_of(p, r), dtype, p->M, s->hidden),
                    ids = cmoe_view_2d(p->ids + i * MK, CMOE_I32, p->M, s->topk),
                    weights = cmoe_view_2d(p->weights + i * MK, CMOE_F32, p->M, s->topk);
    const cmoe_view_mut out = cmoe_view_mut_2d(p->out, dtype, p->M, s->hidden);
    const double start = crew_now();
    const cmoe_status status =
        cmoe_experts_run(p->b->session->stream, p->b->copies[r % p->b->n_copies], x, ids, weights,
                         cmoe_view_none(), out, &arena, &err);
    const double us = (crew_now() - start) * 1e6;
    if (status == CMOE_OK) return us;
    report_status(status, "experts", &err);
    return -1;
}

/* The output of repetition 0: everything finite, the last token as double computes it. */
static int check_output(const point *p)
{
    const synth *s = p->b->s;
    const int64_t t = p->M - 1, x_bytes = cmoe_dtype_bytes(synth_x_dtype(s));
    const int64_t infinite = s->format == CMOE_BF16 ? 0x7f80 : 0x7f800000;
    char text[160];
    for (int64_t i = 0; i < p->M * s->hidden; i++) {
        uint32_t bits = 0;
        if (x_bytes == 2) {
            uint16_t half;
            memcpy(&half, p->out + 2 * i, sizeof half);
            bits = half;
        } else {
            memcpy(&bits, p->out + 4 * i, sizeof bits);
        }
        if ((bits & infinite) == infinite)
            return report_fail(EXIT_ERROR, "wrong result", "out[%lld, %lld] is not finite (%s)",
                               (long long)(i / s->hidden), (long long)(i % s->hidden),
                               p->b->info.variant);
    }
    if (check_token(s, 0, x_of(p, 0) + t * s->hidden * x_bytes, p->ids + t * s->topk,
                    p->weights + t * s->topk, p->out + t * s->hidden * x_bytes, text, sizeof text))
        return 0;
    return report_fail(EXIT_ERROR, "wrong result", "token %lld of %lld: %s (%s)", (long long)t,
                       (long long)p->M, text, p->b->info.variant);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/* Times n repetitions between two probes. */
static int attempt(point *p, int64_t n, bench_point *out)
{
    bench *b = p->b;
    const synth *s = b->s;
    const int format = limits_format(s->format);
    double hit = 0;
    limits_peak(b->limits, format);
    out->read_before = limits_read(b->limits);
    for (int64_t r = 0; r < n; r++) {
        p->us[r] = repetition(p, r);
        if (p->us[r] < 0) return EXIT_ERROR;
        if (report_cancelled()) return report_fail(EXIT_CANCELLED, "bench layer", "cancelled");
        hit += p->hit[r % p->n_routings];
    }
    out->read_after = limits_read(b->limits);
    out->us_median = bench_median(p->us, n); /* sorts */
    out->tokens = p->M;
    out->repeats = n;
    out->us_min = p->us[0];
    out->spread = (p->us[n - 1 - n / 4] - p->us[n / 4]) / out->us_median;
    out->experts_hit = hit / (double)n;
    out->ops = 6.0 * (double)s->hidden * (double)s->inter * (double)(s->topk * p->M);
    out->bytes = out->experts_hit * (double)synth_weight_bytes(s, 1);
    out->gflops = out->ops / out->us_median / 1e3;
    out->gbps = out->bytes / out->us_median / 1e3;
    const double read = 0.5 * (out->read_before + out->read_after);
    out->of_limit = fmax(out->gbps / read, out->gflops / b->limits->gflops[format]);
    return 0;
}

static double difference(const bench_point *p)
{
    return fabs(p->read_before - p->read_after) / fmax(p->read_before, p->read_after);
}

static int measure(point *p, double budget, int64_t repeat, bench_point *out)
{
    enum { LEAST = 5, MOST = 1000000 };
    int status = make_routing(p, 0);
    p->n_routings = 1;
    if (status || repetition(p, 0) < 0) return status ? status : EXIT_ERROR;
    status = check_output(p);
    const double us = status ? -1 : repetition(p, 0); /* warm: how long will one take? */
    if (us < 0) return status ? status : EXIT_ERROR;
    int64_t n = repeat;
    if (n == 0) n = (int64_t)fmin(fmax(budget * 1e6 / fmax(us, 0.1), LEAST), MOST);
    p->us = malloc((size_t)n * sizeof *p->us);
    if (!p->us) return report_fail(EXIT_MEMORY, "memory", "none left for %lld times", (long long)n);
    for (; p->n_routings < BENCH_ROUTINGS && p->n_routings < n && status == 0; p->n_routings++)
        status = make_routing(p, p->n_routings);
    for (int i = 0; i < BENCH_ATTEMPTS && status == 0; i++) {
        bench_point now;
        status = attempt(p, n, &now);
        if (status == 0 && (i == 0 || difference(&now) < difference(out))) *out = now;
        if (status == 0 && difference(out) <= 0.1) break;
    }
    return status;
}

int bench_measure(bench *b, int64_t tokens, double budget, int64_t repeat, bench_point *out)
{
    const synth *s = b->s;
    const size_t slots = (size_t)(BENCH_ROUTINGS * tokens * s->topk);
    cmoe_error err = {.size = sizeof err};
    int64_t device = 0;
    point p = {.b = b, .M = tokens};
    report_progress(b->quiet, "timing %lld tokens", (long long)tokens);
    int status = report_status(
        cmoe_experts_bytes(b->copies[0], tokens, s->topk, &p.scratch_bytes, &device, &err),
        "experts", &err);
    if (status) return status;
    p.ids = malloc(slots * sizeof *p.ids);
    p.weights = malloc(slots * sizeof *p.weights);
    p.out = malloc((size_t)(tokens * s->hidden * cmoe_dtype_bytes(synth_x_dtype(s))));
    p.scratch = malloc((size_t)(p.scratch_bytes ? p.scratch_bytes : 1));
    if (p.ids && p.weights && p.out && p.scratch)
        status = measure(&p, budget, repeat, out);
    else
        status = report_fail(EXIT_MEMORY, "memory", "none left for %lld tokens", (long long)tokens);
    free(p.ids);
    free(p.weights);
    free(p.out);
    free(p.scratch);
    free(p.us);
    return status;
}
