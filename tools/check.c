/* SPDX-License-Identifier: MIT
 *
 * check.c - one token in double, and how far off float kernels may be.
 *
 * Roundings are bounded, independent and of mean zero, so they add up as a random walk (Higham and
 * Mary, "A new approach to probabilistic rounding error analysis", 2019): with c the root of the
 * sum of their squared bounds, Hoeffding's inequality puts less than 3e-14 beyond 8 c.  The sum of
 * the bounds themselves would be thousands of times what ever happens, and would find little.  The
 * roundings, with u = 2^-24, b = 2^-8 (bf16):
 *
 *   product of n terms       each partial sum, some lanes more:   u sqrt(n + 2) (most + norm)
 *   int8 product             exact; its two scales:               4 u |g|
 *   h = silu(g) * up         |silu'| < 1.1, exp and division good to 8 u:
 *                            1.1 |up| dg, |silu(g)| dup, 8 u |h|
 *   h in bf16                b |h|
 *   h in int8                the bytes of rule B5 are exact unless h * 127 / max lies so near the
 *                            middle of two integers that dh may tip it: then one step, added plainly
 *   combine                  (K + 2) u |weight row|, out in bf16: b |out|, added plainly
 *
 * Quantised tokens are made here with the float operations of rule B5, so they are the same bytes.
 */
#include "check.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

static const double u = 0x1p-24, b = 0x1p-8;

enum { DEVIATIONS = 8 };

typedef struct value {
    double v, c; /* c: root of the sum of the squares of the bounds of its roundings */
} value;

/* Memory of one check. */
typedef struct token {
    const synth *s;
    int64_t copy;
    double *x; /* [H] as the products see it: int8 as whole numbers */
    float x_scale;
    float *row;      /* [max(H, I)] */
    value *gate_up;  /* [2I] */
    double *h, *h_c; /* [I] value, and c of its roundings */
    value *out;      /* [H] */
} token;

static float element(const void *data, int32_t dtype, int64_t i)
{
    float f;
    if (dtype == CMOE_F32) {
        memcpy(&f, (const char *)data + 4 * i, sizeof f);
    } else {
        uint16_t upper;
        memcpy(&upper, (const char *)data + 2 * i, sizeof upper);
        const uint32_t bits = (uint32_t)upper << 16;
        memcpy(&f, &bits, sizeof f);
    }
    return f;
}

/* Rule B5 in float, as every int8 kernel must do it.  Returns what to multiply the bytes by. */
static float quantise(double *x, int64_t n)
{
    float most = 1e-4f;
    for (int64_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf((float)x[i]));
    const float factor = 127.0f / most;
    for (int64_t i = 0; i < n; i++)
        x[i] = (double)rintf((float)x[i] * factor);
    return 1.0f / factor;
}

static double square(double x)
{
    return x * x;
}

/* row . v: the sum, and the walk of its own roundings. */
static value dot(const float *row, const double *v, int64_t n)
{
    double sum = 0, squares = 0, most = 0;
    for (int64_t i = 0; i < n; i++) {
        const double p = (double)row[i] * v[i];
        sum += p;
        squares += p * p;
        most = fmax(most, fabs(sum));
    }
    return (value){sum, u * sqrt((double)n + 2) * (most + sqrt(squares))};
}

static void gate_and_up(token *t, int64_t expert)
{
    const int64_t I = t->s->inter, H = t->s->hidden;
    const bool bytes = t->s->format == CMOE_I8;
    for (int64_t r = 0; r < 2 * I; r++) {
        synth_row(t->s, t->copy, SYNTH_W13, expert, r, t->row);
        const float scale = synth_scale(t->s, t->copy, SYNTH_W13, expert, r);
        value *g = &t->gate_up[r];
        *g = dot(t->row, t->x, H);
        if (bytes) g->v *= (double)scale * (double)t->x_scale;
        if (bytes) g->c = 4 * u * fabs(g->v);
    }
    for (int64_t i = 0; i < I; i++) {
        const value g = t->gate_up[i], up = t->gate_up[I + i];
        const double act = g.v / (1 + exp(-g.v)), h = act * up.v;
        const double squares = square(1.1 * up.v * g.c) + square(act * up.c) + square(8 * u * h) +
                               (t->s->format == CMOE_BF16 ? square(b * h) : 0);
        t->h[i] = h;
        t->h_c[i] = sqrt(squares) + FLT_MIN;
    }
}

/* h as bytes; h_c becomes how many steps each byte may be off, 0 or 1.  Returns the scale, and how
 * far off relatively that may be. */
static double quantise_h(token *t, double *relative)
{
    const int64_t I = t->s->inter;
    double most = 1e-4;
    for (int64_t i = 0; i < I; i++)
        most = fmax(most, fabs(t->h[i]));
    *relative = 4 * u;
    for (int64_t i = 0; i < I; i++)
        *relative = fmax(*relative, DEVIATIONS * t->h_c[i] / most);
    for (int64_t i = 0; i < I; i++) {
        const double q = t->h[i] * (127 / most), near = rint(q);
        const double slack = DEVIATIONS * t->h_c[i] * (127 / most) + fabs(q) * (*relative + 2 * u);
        t->h[i] = near;
        t->h_c[i] = 0.5 - fabs(q - near) <= slack;
    }
    return most / 127;
}

/* Row r of the down product; c is now the whole bound, with what h brings along. */
static value down(token *t, int64_t expert, int64_t r, double h_scale, double h_relative)
{
    const int64_t I = t->s->inter;
    double tipped = 0, squares = 0;
    synth_row(t->s, t->copy, SYNTH_W2, expert, r, t->row);
    value row = dot(t->row, t->h, I);
    for (int64_t i = 0; i < I; i++) {
        const double brought = fabs((double)t->row[i]) * t->h_c[i];
        tipped += brought;
        squares += brought * brought;
    }
    if (t->s->format != CMOE_I8) return (value){row.v, DEVIATIONS * sqrt(square(row.c) + squares)};
    const double scale = (double)synth_scale(t->s, t->copy, SYNTH_W2, expert, r) * h_scale;
    return (value){row.v * scale, tipped * scale + fabs(row.v * scale) * (h_relative + 6 * u)};
}

static void compute(token *t, const int32_t *ids, const float *weights)
{
    const int64_t K = t->s->topk, H = t->s->hidden;
    t->x_scale = t->s->format == CMOE_I8 ? quantise(t->x, H) : 1.0f;
    for (int64_t k = 0; k < K; k++) {
        double h_scale = 1, h_relative = 0;
        if (ids[k] < 0) continue;
        gate_and_up(t, ids[k]);
        if (t->s->format == CMOE_I8) h_scale = quantise_h(t, &h_relative);
        for (int64_t r = 0; r < H; r++) {
            const value row = down(t, ids[k], r, h_scale, h_relative);
            const double w = (double)weights[k];
            t->out[r].v += w * row.v;
            t->out[r].c += fabs(w) * (row.c + ((double)K + 2) * u * fabs(row.v));
        }
    }
}

static bool compare(const token *t, const void *out, char *text, size_t size)
{
    const int32_t dtype = synth_x_dtype(t->s);
    for (int64_t r = 0; r < t->s->hidden; r++) {
        const double got = (double)element(out, dtype, r), want = t->out[r].v;
        double bound = t->out[r].c + FLT_MIN;
        if (dtype == CMOE_BF16) bound += b * (fabs(want) + bound);
        if (fabs(got - want) <= bound) continue; /* false for NaN */
        snprintf(text, size, "element %lld is %.9g, want %.9g +- %.2g", (long long)r, got, want,
                 bound);
        return false;
    }
    return true;
}

bool check_token(const synth *s, int64_t copy, const void *x, const int32_t *ids,
                 const float *weights, const void *out, char *text, size_t size)
{
    const int64_t H = s->hidden, I = s->inter;
    token t = {.s = s, .copy = copy};
    bool right = false;
    t.x = malloc((size_t)H * sizeof *t.x);
    t.row = malloc((size_t)(H > I ? H : I) * sizeof *t.row);
    t.gate_up = calloc((size_t)(2 * I), sizeof *t.gate_up);
    t.h = calloc((size_t)I, sizeof *t.h);
    t.h_c = calloc((size_t)I, sizeof *t.h_c);
    t.out = calloc((size_t)H, sizeof *t.out);
    snprintf(text, size, "no memory for the check");
    if (t.x && t.row && t.gate_up && t.h && t.h_c && t.out) {
        for (int64_t i = 0; i < H; i++)
            t.x[i] = (double)element(x, synth_x_dtype(s), i);
        compute(&t, ids, weights);
        right = compare(&t, out, text, size);
    }
    free(t.x);
    free(t.row);
    free(t.gate_up);
    free(t.h);
    free(t.h_c);
    free(t.out);
    return right;
}

int check_run(const synth *s, const tool_session *session, const cmoe_experts *experts,
              const void *x, int64_t tokens, const int32_t *ids, const float *weights, void *out)
{
    cmoe_error err = {.size = sizeof err};
    int64_t host = 0, device = 0;
    cmoe_status status = cmoe_experts_bytes(experts, tokens, s->topk, &host, &device, &err);
    if (status != CMOE_OK) return report_status(status, "experts", &err);
    void *scratch = malloc((size_t)(host ? host : 1));
    if (!scratch)
        return report_fail(EXIT_MEMORY, "experts", "no memory for %lld bytes of scratch",
                           (long long)host);
    cmoe_arena arena = cmoe_arena_make(scratch, host);
    status = cmoe_experts_run(
        session->stream, experts, cmoe_view_2d(x, synth_x_dtype(s), tokens, s->hidden),
        cmoe_view_2d(ids, CMOE_I32, tokens, s->topk),
        cmoe_view_2d(weights, CMOE_F32, tokens, s->topk), cmoe_view_none(),
        cmoe_view_mut_2d(out, synth_x_dtype(s), tokens, s->hidden), &arena, &err);
    free(scratch);
    return report_status(status, "experts", &err);
}
