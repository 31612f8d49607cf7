/* SPDX-License-Identifier: MIT
 *
 * moe.h - a whole layer as one formula in double, and the same weights as trainables.
 *
 *     logits = gate . x;  ids as the library chose them;  weights by the rule of the route options
 *     out    = scale * sum over k of w[k] * mlp(ids[k], x)  +  sigmoid(shared_gate . x) * shared(x)
 *     loss   = <cotangent, out> + balance * (balance losses of the units) + z * (z-losses of the units)
 *
 * Gradients are checked against central differences of the loss, step 1e-6: in double they are off by
 * about 1e-10 of the loss.  Ours are float32 sums of a few hundred products at most, each off by some
 * 2^-24 of its size: 1e-4 of the largest gradient of a tensor leaves a factor of ten, and any term that is
 * wrong or missing is far outside.  In bf16 every factor is off by 2^-9, and sums of some tens of products
 * by a few times that: 0.06 of the largest.
 */
#ifndef CMOE_TEST_GRAD_MOE_H
#define CMOE_TEST_GRAD_MOE_H

#include "../kernels/kc.h"

#include "cmoe/cmoe.h"

enum { MOE_PARTS = 2, MOE_TENSORS = 4 };

/* One parameter: its value, the library's copy, and the gradient that the library gave. */
typedef struct tensor {
    int64_t n;
    double *v;
    float *f, *grad;
} tensor;

typedef struct part {
    int64_t at, n, r;
    float s;
    tensor w, bias, a, b; /* [E, n, K] [E, n] [E, r, K] [E, n, r]; n 0: none */
} part;

typedef struct mat {
    int64_t E, N, K;
    int parts;
    part p[MOE_PARTS];
    cmoe_trainable *t;
    cmoe_part_gradient g[MOE_PARTS];
} mat;

typedef struct moe {
    int64_t T, K, E, H, I, S; /* S: inter of the shared expert, 0: none */
    cmoe_experts_options eo;
    cmoe_route_options ro;
    float combine_scale;
    int32_t shared_first, gated_shared, format;
    int32_t borrow; /* the trainables of the experts pack nothing */
    double near;    /* bound, as a part of the largest gradient; 0: 1e-4 */
    int32_t forced; /* weights are given though there is a router */
    mat gate, w13, w2, s13, s2, sg;
    tensor x, weights; /* [T, H] [T, K]; weights only where there is no router */
    tensor scale;      /* per expert [E]; n 0: none */
    double *cot;       /* [T, H] */
    float *dout;
    int32_t *ids, *mask; /* [T, K] [T] or NULL */
    double balance, z;
    cmoe_units units;
    int64_t first[CMOE_UNITS_MOST + 1];
} moe;

/* ---- making ---------------------------------------------------------------------------------- */

static inline void *moe_get(int64_t bytes)
{
    void *p = calloc((size_t)(bytes > 0 ? bytes : 1), 1);
    if (!p) exit(2);
    return p;
}

static inline tensor tensor_make(kc *c, int64_t n, double size)
{
    tensor t = {n, moe_get(n * 8), moe_get(n * 4), moe_get(n * 4)};
    for (int64_t i = 0; i < n; i++) {
        t.f[i] = (float)(size * kc_normal(c));
        t.v[i] = t.f[i];
    }
    return t;
}

static inline void tensor_free(tensor *t)
{
    free(t->v);
    free(t->f);
    free(t->grad);
    *t = (tensor){0};
}

static inline void part_add(kc *c, mat *m, int64_t n, bool bias, int64_t r, float s)
{
    part *p = &m->p[m->parts++];
    *p = (part){.at = m->N, .n = n, .r = r, .s = s};
    p->w = tensor_make(c, m->E * n * m->K, 1.5 / sqrt((double)m->K + 1));
    if (bias) p->bias = tensor_make(c, m->E * n, 0.3);
    if (r > 0) {
        p->a = tensor_make(c, m->E * r * m->K, 0.5);
        p->b = tensor_make(c, m->E * n * r, 0.5 / sqrt((double)r));
    }
    m->N += n;
}

static inline void mat_free(mat *m)
{
    for (int i = 0; i < m->parts; i++) {
        tensor_free(&m->p[i].w);
        tensor_free(&m->p[i].bias);
        tensor_free(&m->p[i].a);
        tensor_free(&m->p[i].b);
    }
    cmoe_trainable_free(m->t);
    *m = (mat){0};
}

static inline void moe_free(moe *m)
{
    mat *all[] = {&m->gate, &m->w13, &m->w2, &m->s13, &m->s2, &m->sg};
    for (int i = 0; i < 6; i++)
        mat_free(all[i]);
    tensor_free(&m->x);
    tensor_free(&m->weights);
    tensor_free(&m->scale);
    free(m->cot);
    free(m->dout);
    free(m->ids);
    free(m->mask);
}

static inline void moe_must(cmoe_status status, const cmoe_error *err, const char *what)
{
    if (status == CMOE_OK) return;
    printf("FAIL %s: %s\n", what, err->text);
    exit(1);
}

/* ---- what a test runs in --------------------------------------------------------------------- */

typedef struct env {
    cmoe_ctx *ctx;
    cmoe_stream *s;
} env;

/* `isa` NULL: the best that this CPU has. */
static inline env env_open_isa(int32_t threads, const char *isa)
{
    env e;
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = threads;
    if (isa) moe_must(cmoe_isa_mask(isa, &o.isa_mask, &err), &err, "isa_mask");
    moe_must(cmoe_ctx_create(&e.ctx, &o, &err), &err, "ctx_create");
    moe_must(cmoe_stream_create(&e.s, e.ctx, &err), &err, "stream_create");
    return e;
}

static inline env env_open(int32_t threads)
{
    return env_open_isa(threads, NULL);
}

static inline void env_close(env *e)
{
    cmoe_stream_free(e->s);
    cmoe_ctx_free(e->ctx);
}

/* Threads and instructions that may not change a bit in f32; the first is compared with. */
static const struct {
    int32_t threads;
    const char *isa;
} moe_ways[] = {{1, NULL}, {2, NULL}, {3, NULL}, {2, "ref"}, {1, "avx2"}};
enum { MOE_WAYS = 5 };

static inline cmoe_arena arena_of(int64_t bytes)
{
    return cmoe_arena_make(moe_get(bytes), bytes);
}

/* ---- trainables ------------------------------------------------------------------------------ */

static inline cmoe_view view3(const float *p, int64_t a, int64_t b, int64_t n)
{
    return p ? cmoe_view_3d(p, CMOE_F32, a, b, n) : cmoe_view_none();
}
static inline cmoe_view_mut view3_mut(float *p, int64_t a, int64_t b, int64_t n)
{
    const int64_t dims[3] = {a, b, n};
    return p ? cmoe_view_mut_make(p, CMOE_F32, 3, dims) : cmoe_view_mut_none();
}

/* The trainable of a matrix, filled, and where its gradients go. */
static inline void mat_open(mat *m, cmoe_stream *s, int32_t format, int32_t borrow)
{
    cmoe_error err = {0};
    cmoe_part parts[MOE_PARTS];
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    o.format = format;
    o.borrow = borrow;
    memset(parts, 0, sizeof parts);
    if (m->parts == 0) return;
    for (int i = 0; i < m->parts; i++) {
        part *p = &m->p[i];
        o.rank += p->r;
        parts[i].at = p->at;
        parts[i].w = view3(p->w.f, m->E, p->n, m->K);
        parts[i].bias =
            p->bias.n ? cmoe_view_2d(p->bias.f, CMOE_F32, m->E, p->n) : cmoe_view_none();
        parts[i].a = view3(p->a.f, m->E, p->r, m->K);
        parts[i].b = view3(p->b.f, m->E, p->n, p->r);
        parts[i].lora_scale = p->s;
        m->g[i].w = view3_mut(p->w.grad, m->E, p->n, m->K);
        m->g[i].bias =
            p->bias.n ? cmoe_view_mut_2d(p->bias.grad, CMOE_F32, m->E, p->n) : cmoe_view_mut_none();
        m->g[i].a = view3_mut(p->a.grad, m->E, p->r, m->K);
        m->g[i].b = view3_mut(p->b.grad, m->E, p->n, p->r);
    }
    moe_must(cmoe_trainable_create(&m->t, cmoe_stream_ctx(s), &o, m->E, m->N, m->K, &err), &err,
             "trainable_create");
    moe_must(cmoe_trainable_fill(s, m->t, parts, m->parts, &err), &err, "trainable_fill");
}

static inline void mat_close(mat *m)
{
    cmoe_trainable_free(m->t);
    m->t = NULL;
}

static inline void moe_open(moe *m, cmoe_stream *s)
{
    mat_open(&m->gate, s, CMOE_F32, 0);
    mat_open(&m->w13, s, m->format, m->borrow);
    mat_open(&m->w2, s, m->format, m->borrow);
    mat_open(&m->s13, s, m->format, m->borrow);
    mat_open(&m->s2, s, m->format, m->borrow);
    mat_open(&m->sg, s, CMOE_F32, 0);
}

static inline void moe_close(moe *m)
{
    mat *all[] = {&m->gate, &m->w13, &m->w2, &m->s13, &m->s2, &m->sg};
    for (int i = 0; i < 6; i++)
        mat_close(all[i]);
}

/* ---- the formula ----------------------------------------------------------------------------- */

static inline void mat_apply(const mat *m, int64_t e, const double *x, double *y)
{
    for (int i = 0; i < m->parts; i++) {
        const part *p = &m->p[i];
        for (int64_t n = 0; n < p->n; n++) {
            double sum = p->bias.n ? p->bias.v[e * p->n + n] : 0;
            for (int64_t k = 0; k < m->K; k++)
                sum += p->w.v[(e * p->n + n) * m->K + k] * x[k];
            y[p->at + n] = sum;
        }
        for (int64_t r = 0; r < p->r; r++) {
            double low = 0;
            for (int64_t k = 0; k < m->K; k++)
                low += p->a.v[(e * p->r + r) * m->K + k] * x[k];
            for (int64_t n = 0; n < p->n; n++)
                y[p->at + n] += p->s * p->b.v[(e * p->n + n) * p->r + r] * low;
        }
    }
}

static inline double moe_sigmoid(double v)
{
    return 1 / (1 + exp(-v));
}

static inline double moe_act(const cmoe_experts_options *o, double g)
{
    switch (o->activation) {
    case CMOE_ACT_SILU:
        return g * moe_sigmoid(g);
    case CMOE_ACT_GELU_TANH:
        return g / 2 * (1 + tanh(0.79788456080286536 * (g + 0.044715 * g * g * g)));
    case CMOE_ACT_SWIGLU_OSS:
        return g * moe_sigmoid((o->alpha ? o->alpha : 1.702) * g);
    default:
        return g < 0 ? 0 : g * g;
    }
}

/* y [H] = mlp of expert e */
static inline void moe_mlp(const cmoe_experts_options *o, const mat *w13, const mat *w2, int64_t e,
                           const double *x, double *y)
{
    const int64_t I = w2->K;
    double *gu = moe_get((w13->N + I) * 8), *h = gu + w13->N;
    mat_apply(w13, e, x, gu);
    for (int64_t i = 0; i < I; i++) {
        const int64_t first = o->interleaved ? 2 * i : i,
                      second = o->interleaved ? 2 * i + 1 : I + i;
        double g = gu[o->ungated ? i : o->up_first ? second : first];
        double u = o->ungated ? 1 : gu[o->up_first ? first : second];
        const double limit = o->swiglu_limit;
        if (limit > 0) {
            g = fmin(g, limit);
            if (!o->ungated) u = fmax(fmin(u, limit), -limit);
        }
        h[i] = moe_act(o, g) * (o->activation == CMOE_ACT_SWIGLU_OSS ? u + 1 : u);
    }
    mat_apply(w2, e, h, y);
    free(gu);
}

/* w [K] of a token's ids by the options' rule. */
static inline void moe_weights(const moe *m, const double *logits, const int32_t *ids, double *w)
{
    const cmoe_route_options *o = &m->ro;
    double most = -1e300, all = 0, chosen = 0, sum = 0;
    for (int64_t e = 0; e < m->E; e++)
        most = fmax(most, logits[e]);
    for (int64_t e = 0; e < m->E; e++)
        all += exp(logits[e] - most);
    for (int64_t k = 0; k < m->K; k++)
        chosen += ids[k] < 0 ? 0 : exp(logits[ids[k]] - most);
    for (int64_t k = 0; k < m->K; k++) {
        const double l = ids[k] < 0 ? 0 : logits[ids[k]];
        w[k] = o->scoring == CMOE_SCORE_SOFTMAX   ? exp(l - most) / all
               : o->scoring == CMOE_SCORE_SIGMOID ? moe_sigmoid(l)
               : o->scoring == CMOE_SCORE_LOGITS  ? exp(l - most) / chosen
                                                  : sqrt(fmax(l, 0) + log1p(exp(-fabs(l))));
        if (ids[k] < 0) w[k] = 0;
        sum += w[k];
    }
    for (int64_t k = 0; k < m->K; k++) {
        if (o->renormalize == CMOE_RENORM_SUM && o->scoring != CMOE_SCORE_LOGITS) w[k] /= sum;
        w[k] *= o->scale;
        if (m->scale.n && ids[k] >= 0) w[k] *= m->scale.v[ids[k]];
    }
}

static inline double moe_token(const moe *m, int64_t t, const double *logits)
{
    const double *x = m->x.v + t * m->H;
    double *y = moe_get((m->H + m->K + 1) * 8), *w = y + m->H, loss = 0;
    const int32_t *ids = m->ids + t * m->K;
    if (m->gate.parts && !m->forced)
        moe_weights(m, logits, ids, w);
    else
        memcpy(w, m->weights.v + t * m->K, (size_t)m->K * 8);
    for (int64_t k = 0; k < m->K; k++) {
        const int64_t e = ids[k] - m->eo.first_expert;
        if (e < 0 || e >= m->w13.E) continue;
        moe_mlp(&m->eo, &m->w13, &m->w2, e, x, y);
        for (int64_t h = 0; h < m->H; h++)
            loss += m->cot[t * m->H + h] * m->combine_scale * w[k] * y[h];
    }
    if (m->S) {
        const cmoe_experts_options plain = {.size = sizeof plain};
        double gate = 1, z;
        if (m->gated_shared) {
            mat_apply(&m->sg, 0, x, &z);
            gate = moe_sigmoid(z);
        }
        moe_mlp(&plain, &m->s13, &m->s2, 0, x, y);
        for (int64_t h = 0; h < m->H; h++)
            loss += m->cot[t * m->H + h] * gate * y[h];
    }
    free(y);
    return loss;
}

/* Of tokens [begin, end). */
static inline void moe_aux(const moe *m, int64_t begin, int64_t end, const double *logits,
                           double *balance, double *z)
{
    double n = 0, *p = moe_get(m->E * 8), *f = moe_get(m->E * 8), sum = 0;
    for (int64_t t = begin; t < end; t++) {
        const double *l = logits + t * m->E;
        double most = -1e300, all = 0;
        if (m->mask && !m->mask[t]) continue;
        n++;
        for (int64_t e = 0; e < m->E; e++)
            most = fmax(most, l[e]);
        for (int64_t e = 0; e < m->E; e++)
            all += exp(l[e] - most);
        for (int64_t e = 0; e < m->E; e++)
            p[e] += exp(l[e] - most) / all;
        for (int64_t k = 0; k < m->K; k++)
            if (m->ids[t * m->K + k] >= 0) f[m->ids[t * m->K + k]]++;
        sum += pow(most + log(all), 2);
    }
    for (int64_t e = 0; e < m->E && n > 0; e++)
        *balance += (double)m->E * f[e] / (n * (double)m->K) * p[e] / n;
    if (n > 0) *z += sum / n;
    free(p);
    free(f);
}

/* The loss; the auxiliary ones are also written down when they are asked for. */
static inline double moe_loss(const moe *m, double *balance, double *z)
{
    double *logits = moe_get(m->T * m->E * 8), loss = 0, b = 0, q = 0;
    for (int64_t t = 0; t < m->T; t++) {
        if (m->gate.parts) mat_apply(&m->gate, 0, m->x.v + t * m->H, logits + t * m->E);
        loss += moe_token(m, t, logits + t * m->E);
    }
    for (int64_t u = 0; m->gate.parts && u < m->units.count; u++)
        moe_aux(m, m->first[u], m->first[u + 1], logits, &b, &q);
    if (balance) *balance = b;
    if (z) *z = q;
    free(logits);
    return loss + m->balance * b + m->z * q;
}

/* ---- the check ------------------------------------------------------------------------------- */

/* At most MOST elements of a tensor, spread over it. */
static inline void tensor_check(kc *c, const moe *m, const char *name, tensor *t)
{
    enum { MOST = 160 };
    const double step = 1e-6;
    const int64_t stride = t->n > MOST ? t->n / MOST + 1 : 1;
    double *want = moe_get((t->n / stride + 1) * 8), most = 0;
    for (int64_t i = 0, j = 0; i < t->n; i += stride, j++) {
        const double v = t->v[i];
        t->v[i] = v + step;
        const double high = moe_loss(m, NULL, NULL);
        t->v[i] = v - step;
        want[j] = (high - moe_loss(m, NULL, NULL)) / (2 * step);
        t->v[i] = v;
        most = fmax(most, fabs(want[j]));
    }
    for (int64_t i = 0, j = 0; i < t->n; i += stride, j++)
        kc_near(c, name, i, t->grad[i], want[j], (m->near > 0 ? m->near : 1e-4) * most + 1e-7);
    free(want);
}

static inline void mat_check(kc *c, const moe *m, const char *name, mat *a)
{
    static const char *const kinds[] = {"w", "bias", "a", "b"};
    char title[64];
    for (int i = 0; i < a->parts; i++) {
        tensor *all[] = {&a->p[i].w, &a->p[i].bias, &a->p[i].a, &a->p[i].b};
        for (int j = 0; j < MOE_TENSORS; j++) {
            snprintf(title, sizeof title, "d%s.%d.%s", name, i, kinds[j]);
            if (all[j]->n) tensor_check(c, m, title, all[j]);
        }
    }
}

static inline void moe_check(kc *c, moe *m)
{
    mat *all[] = {&m->gate, &m->w13, &m->w2, &m->s13, &m->s2, &m->sg};
    static const char *const names[] = {"gate", "w13", "w2", "shared13", "shared2", "shared_gate"};
    for (int i = 0; i < 6; i++)
        mat_check(c, m, names[i], all[i]);
    tensor_check(c, m, "dx", &m->x);
    if (!m->gate.parts) tensor_check(c, m, "dweights", &m->weights);
}

/* ---- all gradients of weights one behind the other ------------------------------------------- */

static inline int64_t moe_gradients(const moe *m, float *to)
{
    const mat *all[] = {&m->gate, &m->w13, &m->w2, &m->s13, &m->s2, &m->sg};
    int64_t n = 0;
    for (int i = 0; i < 6; i++) {
        for (int p = 0; p < all[i]->parts; p++) {
            const part *a = &all[i]->p[p];
            const tensor *t[] = {&a->w, &a->bias, &a->a, &a->b};
            for (int j = 0; j < MOE_TENSORS; j++) {
                if (to && t[j]->n) memcpy(to + n, t[j]->grad, (size_t)t[j]->n * 4);
                n += t[j]->n;
            }
        }
    }
    return n;
}

/* ---- cases ----------------------------------------------------------------------------------- */

/* How w13 and w2 are cut, and what stands beside them. */
typedef struct moe_form {
    int64_t T, K, E, H, I;
    int32_t activation, interleaved, up_first, ungated, bias;
    float limit;
    int64_t r13, r2; /* ranks; with two parts of w13 the second has r13 / 2 */
    int32_t two_parts;
    float s; /* scale of the low-rank terms */
} moe_form;

/* Experts alone: ids as `pick` says, weights of either sign. */
static inline void moe_experts(kc *c, moe *m, const moe_form *f)
{
    *m = (moe){.T = f->T, .K = f->K, .E = f->E, .H = f->H, .I = f->I};
    const int64_t columns = f->ungated ? f->I : 2 * f->I;
    cmoe_experts_options_default(&m->eo, sizeof m->eo);
    cmoe_route_options_default(&m->ro, sizeof m->ro);
    m->eo.activation = f->activation;
    m->eo.interleaved = f->interleaved;
    m->eo.up_first = f->up_first;
    m->eo.ungated = f->ungated;
    m->eo.swiglu_limit = f->limit;
    m->combine_scale = 1;
    m->format = CMOE_F32;
    m->w13 = (mat){.E = f->E, .K = f->H};
    if (f->two_parts && !f->ungated) {
        part_add(c, &m->w13, f->I, f->bias, f->r13 - f->r13 / 2, f->s);
        part_add(c, &m->w13, f->I, f->bias, f->r13 / 2, 2 * f->s);
    } else {
        part_add(c, &m->w13, columns, f->bias, f->r13, f->s);
    }
    m->w2 = (mat){.E = f->E, .K = f->I};
    part_add(c, &m->w2, f->H, f->bias, f->r2, f->s);
    m->x = tensor_make(c, f->T * f->H, 1);
    m->weights = tensor_make(c, f->T * f->K, 1);
    m->ids = moe_get(f->T * f->K * 4);
    for (int64_t i = 0; i < f->T * f->K; i++)
        m->ids[i] = (int32_t)kc_int(c, 0, f->E - 1);
    m->cot = moe_get(f->T * f->H * 8);
    m->dout = moe_get(f->T * f->H * 4);
    for (int64_t i = 0; i < f->T * f->H; i++)
        m->cot[i] = m->dout[i] = kc_normal(c);
    m->units = (cmoe_units){1, m->first};
    m->first[1] = f->T;
}

/* Tokens in `count` units of uneven size, some of them empty. */
static inline void moe_cut(kc *c, moe *m, int64_t count)
{
    m->units.count = count;
    m->first[0] = 0;
    for (int64_t u = 1; u < count; u++)
        m->first[u] = kc_int(c, m->first[u - 1], m->T);
    m->first[count] = m->T;
}

/* A layer around the experts of a moe_form. */
typedef struct layer_form {
    moe_form f;
    int32_t scoring, renormalize, gate_bias;
    int64_t gate_rank, S, s_rank;
    int32_t gated_shared, shared_first;
    float route_scale, combine_scale;
    int32_t expert_scale, replay; /* replay 1: ids are given; 2: weights, too */
    float balance, z;
    int32_t mask;
    int64_t units;
} layer_form;

static inline void layer_make(kc *c, moe *m, const layer_form *l)
{
    const moe_form *f = &l->f;
    moe_experts(c, m, f);
    m->ro.topk = f->K;
    m->ro.scoring = l->scoring;
    m->ro.renormalize = l->renormalize;
    m->ro.scale = l->route_scale;
    m->combine_scale = l->combine_scale;
    m->shared_first = l->shared_first;
    m->forced = l->replay == 2;
    m->balance = l->balance;
    m->z = l->z;
    m->gate = (mat){.E = 1, .K = f->H};
    part_add(c, &m->gate, f->E, l->gate_bias, l->gate_rank, 0.5f);
    m->S = l->S;
    if (l->S) {
        m->s13 = (mat){.E = 1, .K = f->H};
        part_add(c, &m->s13, 2 * l->S, f->bias, l->s_rank, 0.5f);
        m->s2 = (mat){.E = 1, .K = l->S};
        part_add(c, &m->s2, f->H, f->bias, l->s_rank, 0.5f);
        m->gated_shared = l->gated_shared;
        m->sg = (mat){.E = 1, .K = f->H};
        if (l->gated_shared) part_add(c, &m->sg, 1, f->bias, l->s_rank, 0.5f);
    }
    if (l->expert_scale) m->scale = tensor_make(c, f->E, 1);
    if (l->mask) m->mask = moe_get(f->T * 4);
    for (int64_t t = 0; t < f->T && l->mask; t++)
        m->mask[t] = (int32_t)kc_int(c, 0, 2) > 0;
    for (int64_t i = 0; i < f->T * f->K;
         i++) { /* replayed: different experts in a token, or none */
        const int64_t t = i / f->K, k = i % f->K;
        m->ids[i] = i % 7 == 6 ? -1 : (int32_t)((t + k) % f->E);
    }
    moe_cut(c, m, l->units);
}

static inline cmoe_layer_train *layer_open(const moe *m, cmoe_ctx *ctx)
{
    cmoe_error err = {0};
    cmoe_layer_train *l = NULL;
    cmoe_layer_train_options o;
    cmoe_layer_train_options_default(&o, sizeof o);
    o.route = &m->ro;
    o.experts = &m->eo;
    o.combine_scale = m->combine_scale;
    o.shared_first = m->shared_first;
    o.gate = m->gate.t;
    o.w13 = m->w13.t;
    o.w2 = m->w2.t;
    o.shared13 = m->s13.t;
    o.shared2 = m->s2.t;
    o.shared_gate = m->sg.t;
    if (m->scale.n) o.per_expert_scale = cmoe_view_1d(m->scale.f, CMOE_F32, m->E);
    moe_must(cmoe_layer_train_create(&l, ctx, &o, &err), &err, "layer_train_create");
    return l;
}

#endif
