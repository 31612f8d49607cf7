/* SPDX-License-Identifier: MIT
 *
 * bench_train_check.c - one step of the layer against its formula in double.
 *
 * With dout zero but for a few marked tokens, every gradient is a sum over those: so all of them can be
 * known in double, at the size that is timed, for the price of a few tokens.  For token t, its slots k:
 *
 *     w = softmax of the chosen logits             dw_k  = dout . row_k
 *     g, u = w13 x,  h = silu(g) u                 dl_k  = w_k (dw_k - sum of w_j dw_j)
 *     row = w2 h,    out = sum of w_k row_k        dh    = w_k w2^T dout
 *     dx = w13^T (dg, du) + gate^T dl              dg    = dh u silu'(g),  du = dh silu(g)
 *     dw13 = (dg, du) x^T,  dw2 = w_k dout h^T,  dgate = dl x^T
 *
 * A float32 sum of n products is off by about sqrt(n) 2^-24 of its size, 2^-16 at the largest n allowed:
 * 1e-4 of the largest value of a tensor (of a gradient: of its largest product) leaves a factor of six.
 * In bf16 h and dh are off by 2^-9 before they are added up: 0.06.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_train.h"
#include "report.h"

enum { MARKED = 3 };

typedef struct slot {
    int64_t token, expert;
    double w, dw, dl;
    double *dgu, *h; /* [2I] [I] */
} slot;

typedef struct check {
    const train_layer *l;
    int64_t T, n, marked[MARKED];
    float *dout;      /* [T, H] */
    slot *slots;      /* [n, K] */
    double *memory;   /* of the slots */
    double *logits;   /* [E] */
    double *out, *dx; /* [n, H] */
} check;

static double weight(const synth *s, const void *w, int64_t i)
{
    float f;
    uint16_t upper;
    if (s->format == CMOE_F32) return (double)((const float *)w)[i];
    memcpy(&upper, (const char *)w + 2 * i, sizeof upper);
    const uint32_t bits = (uint32_t)upper << 16;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

static const float *x_of(const check *c, int64_t i)
{
    return c->l->x + c->marked[i] * c->l->s.hidden;
}

static const float *dout_of(const check *c, int64_t i)
{
    return c->dout + c->marked[i] * c->l->s.hidden;
}

/* ---- the formula ----------------------------------------------------------------------------- */

/* Weights of the experts that token i went to; whether they are the best ones. */
static bool route(check *c, int64_t i)
{
    const synth *s = &c->l->s;
    const int32_t *ids = c->l->ids + c->marked[i] * s->topk;
    slot *slots = c->slots + i * s->topk;
    double least = INFINITY, next = -INFINITY, sum = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        c->logits[e] = 0;
        for (int64_t h = 0; h < s->hidden; h++)
            c->logits[e] += (double)c->l->gate[e * s->hidden + h] * (double)x_of(c, i)[h];
    }
    for (int64_t k = 0; k < s->topk; k++) {
        if (ids[k] < 0 || ids[k] >= s->experts || isnan(c->logits[ids[k]])) return false;
        slots[k].token = i;
        slots[k].expert = ids[k];
        slots[k].w = exp(c->logits[ids[k]]);
        sum += slots[k].w;
        least = fmin(least, c->logits[ids[k]]);
        c->logits[ids[k]] = NAN; /* taken */
    }
    for (int64_t e = 0; e < s->experts; e++)
        next = fmax(next, c->logits[e]); /* passes over NAN */
    for (int64_t k = 0; k < s->topk; k++)
        slots[k].w /= sum;
    return least >= next - 1e-4;
}

static void expert_forward(const check *c, slot *p)
{
    const synth *s = &c->l->s;
    const int64_t H = s->hidden, I = s->inter;
    const float *x = x_of(c, p->token), *dout = dout_of(c, p->token);
    for (int64_t j = 0; j < 2 * I; j++) {
        double sum = 0;
        for (int64_t h = 0; h < H; h++)
            sum += weight(s, c->l->w13, (p->expert * 2 * I + j) * H + h) * (double)x[h];
        p->dgu[j] = sum; /* g and u, until backward */
    }
    for (int64_t j = 0; j < I; j++)
        p->h[j] = p->dgu[j] / (1 + exp(-p->dgu[j])) * p->dgu[I + j];
    p->dw = 0;
    for (int64_t r = 0; r < H; r++) {
        double sum = 0;
        for (int64_t j = 0; j < I; j++)
            sum += weight(s, c->l->w2, (p->expert * H + r) * I + j) * p->h[j];
        c->out[p->token * H + r] += p->w * sum;
        p->dw += (double)dout[r] * sum;
    }
}

static void expert_backward(const check *c, slot *p, double *dh)
{
    const synth *s = &c->l->s;
    const int64_t H = s->hidden, I = s->inter;
    const float *dout = dout_of(c, p->token);
    double *dx = c->dx + p->token * H;
    memset(dh, 0, (size_t)I * sizeof *dh);
    for (int64_t r = 0; r < H; r++) {
        for (int64_t j = 0; j < I; j++)
            dh[j] += p->w * (double)dout[r] * weight(s, c->l->w2, (p->expert * H + r) * I + j);
    }
    for (int64_t j = 0; j < I; j++) {
        const double g = p->dgu[j], up = p->dgu[I + j], sigmoid = 1 / (1 + exp(-g));
        p->dgu[j] = dh[j] * up * sigmoid * (1 + g * (1 - sigmoid));
        p->dgu[I + j] = dh[j] * g * sigmoid;
    }
    for (int64_t j = 0; j < 2 * I; j++) {
        for (int64_t h = 0; h < H; h++)
            dx[h] += p->dgu[j] * weight(s, c->l->w13, (p->expert * 2 * I + j) * H + h);
    }
    for (int64_t h = 0; h < H; h++)
        dx[h] += p->dl * (double)c->l->gate[p->expert * H + h];
}

static bool compute(check *c)
{
    const int64_t K = c->l->s.topk;
    for (int64_t i = 0; i < c->n; i++) {
        slot *slots = c->slots + i * K;
        double mean = 0;
        if (!route(c, i)) return false;
        for (int64_t k = 0; k < K; k++) {
            expert_forward(c, &slots[k]);
            mean += slots[k].w * slots[k].dw;
        }
        for (int64_t k = 0; k < K; k++) {
            slots[k].dl = slots[k].w * (slots[k].dw - mean);
            expert_backward(c, &slots[k], c->memory); /* its first I numbers belong to nobody */
        }
    }
    return true;
}

/* ---- the comparison -------------------------------------------------------------------------- */

static double largest(const double *v, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(v[i]));
    return most;
}

static double largest_float(const float *v, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)v[i]));
    return most;
}

static double near(const check *c)
{
    return c->l->s.format == CMOE_BF16 ? 0.06 : 1e-4;
}

static int wrong(const char *name, int64_t i, int64_t j, double got, double want, double bound)
{
    return report_fail(EXIT_ERROR, "wrong result", "%s[%lld, %lld] is %.9g, want %.9g +- %.2g",
                       name, (long long)i, (long long)j, got, want, bound);
}

/* Rows [T, H]; `others`: those of tokens that are not marked must be zero. */
static int compare_rows(const check *c, const char *name, const float *got, const double *want,
                        bool others)
{
    const int64_t H = c->l->s.hidden;
    const double bound = near(c) * largest(want, c->n * H);
    int64_t next = 0;
    for (int64_t t = 0; t < c->T; t++) {
        const bool marked = next < c->n && t == c->marked[next];
        for (int64_t h = 0; h < H; h++) {
            const double g = (double)got[t * H + h], w = marked ? want[next * H + h] : 0;
            const double most = marked ? bound : others ? 0 : INFINITY;
            if (!isfinite(g) || fabs(g - w) > most) return wrong(name, t, h, g, w, most);
        }
        next += marked;
    }
    return 0;
}

/* One expert's gradient [rows, cols]: the sum over its slots of a outer b. */
typedef struct outer {
    const double *a; /* [rows], times `scale` */
    double scale;
    const double *b; /* [cols] */
} outer;

static int compare_matrix(const check *c, const char *name, const float *got, int64_t rows,
                          int64_t cols, const outer *terms, int n, double size)
{
    const double bound = near(c) * size;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j++) {
            const double g = (double)got[i * cols + j];
            double w = 0;
            for (int m = 0; m < n; m++)
                w += terms[m].scale * terms[m].a[i] * terms[m].b[j];
            if (!(fabs(g - w) <= (n ? bound : 0))) return wrong(name, i, j, g, w, n ? bound : 0);
        }
    }
    return 0;
}

/* What the three gradients of an expert are made of. */
typedef struct terms {
    outer gate[MARKED], w13[MARKED], w2[MARKED];
    double gate_size, w13_size, w2_size;
    int n;
} terms;

/* x and dout [n, H] in double. */
static void collect(const check *c, int64_t expert, const double *x, const double *dout, terms *t)
{
    static const double one = 1;
    const synth *s = &c->l->s;
    const int64_t H = s->hidden, I = s->inter;
    *t = (terms){.n = 0};
    for (int64_t i = 0; i < c->n * s->topk; i++) {
        const slot *p = &c->slots[i];
        if (p->expert != expert) continue;
        const double *px = x + p->token * H, *pd = dout + p->token * H;
        const double most = largest_float(x_of(c, p->token), H);
        double dw = 0; /* of the whole token: dl is a difference of these */
        for (int64_t k = 0; k < s->topk; k++)
            dw = fmax(dw, fabs(c->slots[p->token * s->topk + k].dw));
        t->gate[t->n] = (outer){&one, p->dl, px};
        t->w13[t->n] = (outer){p->dgu, 1, px};
        t->w2[t->n] = (outer){pd, p->w, p->h};
        t->gate_size = fmax(t->gate_size, 2 * p->w * dw * most);
        t->w13_size = fmax(t->w13_size, largest(p->dgu, 2 * I) * most);
        t->w2_size = fmax(t->w2_size, p->w * largest(pd, H) * largest(p->h, I));
        t->n++;
    }
}

static int compare_experts(const check *c)
{
    const train_layer *l = c->l;
    const int64_t H = l->s.hidden, I = l->s.inter;
    double *x = malloc((size_t)(2 * c->n * H) * sizeof *x), *dout = x + c->n * H;
    char name[64];
    int status = 0;
    if (!x) return report_fail(EXIT_MEMORY, "memory", "none left for the check");
    for (int64_t i = 0; i < c->n * H; i++) {
        x[i] = (double)x_of(c, i / H)[i % H];
        dout[i] = (double)dout_of(c, i / H)[i % H];
    }
    for (int64_t e = 0; e < l->s.experts && status == 0; e++) {
        terms t;
        collect(c, e, x, dout, &t);
        snprintf(name, sizeof name, "dgate of expert %lld: ", (long long)e);
        status = compare_matrix(c, name, l->dgate + e * H, 1, H, t.gate, t.n, t.gate_size);
        if (status) break;
        snprintf(name, sizeof name, "dw13 of expert %lld: ", (long long)e);
        status = compare_matrix(c, name, l->dw13 + e * 2 * I * H, 2 * I, H, t.w13, t.n, t.w13_size);
        if (status) break;
        snprintf(name, sizeof name, "dw2 of expert %lld: ", (long long)e);
        status = compare_matrix(c, name, l->dw2 + e * H * I, H, I, t.w2, t.n, t.w2_size);
    }
    free(x);
    return status;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static bool open_check(check *c)
{
    const synth *s = &c->l->s;
    const int64_t H = s->hidden, I = s->inter, n = c->n * s->topk;
    c->dout = calloc((size_t)(c->T * H), sizeof *c->dout);
    c->slots = calloc((size_t)n, sizeof *c->slots);
    c->memory = calloc((size_t)(I + 3 * I * n), sizeof *c->memory);
    c->logits = calloc((size_t)s->experts, sizeof *c->logits);
    c->out = calloc((size_t)(2 * c->n * H), sizeof *c->out);
    if (!c->dout || !c->slots || !c->memory || !c->logits || !c->out) return false;
    c->dx = c->out + c->n * H;
    for (int64_t i = 0; i < n; i++) {
        c->slots[i].dgu = c->memory + I + 3 * I * i;
        c->slots[i].h = c->slots[i].dgu + 2 * I;
    }
    for (int64_t i = 0; i < c->n; i++)
        memcpy(c->dout + c->marked[i] * H, c->l->dout + c->marked[i] * H,
               (size_t)H * sizeof(float));
    return true;
}

int train_layer_check(train_layer *l, int64_t tokens)
{
    const int64_t wanted[MARKED] = {0, tokens / 2, tokens - 1};
    check c = {.l = l, .T = tokens};
    double us[2];
    int status;
    for (int i = 0; i < MARKED; i++) {
        if (c.n == 0 || wanted[i] > c.marked[c.n - 1]) c.marked[c.n++] = wanted[i];
    }
    if (!open_check(&c))
        status = report_fail(EXIT_MEMORY, "memory", "none left for the check");
    else
        status = train_layer_step(l, tokens, l->x, c.dout, us);
    if (status == 0 && !compute(&c))
        status = report_fail(EXIT_ERROR, "wrong result",
                             "a token went to other than its best %lld "
                             "experts",
                             (long long)l->s.topk);
    if (status == 0) status = compare_rows(&c, "out", l->out, c.out, false);
    if (status == 0) status = compare_rows(&c, "dx", l->dx, c.dx, true);
    if (status == 0) status = compare_experts(&c);
    free(c.dout);
    free(c.slots);
    free(c.memory);
    free(c.logits);
    free(c.out);
    return status;
}
