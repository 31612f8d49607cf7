/* SPDX-License-Identifier: MIT
 *
 * layer.c - a whole layer's backward against finite differences of its formula, its forward against
 * cmoe_layer_forward, and both over threads and over calls.
 */
#include "grad/moe.h"

/* What a call writes beside gradients. */
typedef struct results {
    float *out, *logits, *weights; /* [T, H] [T, E] [T, K] */
    int32_t *ids;                  /* [T, K] */
    int64_t *load;                 /* [E] */
    double balance, z;
} results;

static results results_make(const moe *m)
{
    return (results){.out = moe_get(m->T * m->H * 4),
                     .logits = moe_get(m->T * m->E * 4),
                     .weights = moe_get(m->T * m->K * 4),
                     .ids = moe_get(m->T * m->K * 4),
                     .load = moe_get(m->E * 8)};
}

static void results_free(results *r)
{
    free(r->out);
    free(r->logits);
    free(r->weights);
    free(r->ids);
    free(r->load);
}

static void results_equal(kc *c, const moe *m, const results *got, const results *want)
{
    kc_equal(c, "out", got->out, want->out, m->T * m->H * 4);
    kc_equal(c, "logits", got->logits, want->logits, m->T * m->E * 4);
    kc_equal(c, "weights", got->weights, want->weights, m->T * m->K * 4);
    kc_equal(c, "ids", got->ids, want->ids, m->T * m->K * 4);
    kc_equal(c, "load", got->load, want->load, m->E * 8);
}

/* Of tokens [begin, end). */
static cmoe_layer_call call_of(const moe *m, int replay, int64_t begin, int64_t end,
                               const results *r)
{
    const int64_t n = end - begin, K = m->K, E = m->E;
    cmoe_layer_call c;
    cmoe_layer_call_default(&c, sizeof c);
    c.ids = cmoe_view_mut_2d(r->ids + begin * K, CMOE_I32, n, K);
    c.weights = cmoe_view_mut_2d(r->weights + begin * K, CMOE_F32, n, K);
    c.logits = cmoe_view_mut_2d(r->logits + begin * E, CMOE_F32, n, E);
    c.load = cmoe_view_mut_1d(r->load, CMOE_I64, E);
    if (replay) c.replay_ids = cmoe_view_2d(m->ids + begin * K, CMOE_I32, n, K);
    if (replay == 2) c.replay_weights = cmoe_view_2d(m->weights.f + begin * K, CMOE_F32, n, K);
    return c;
}

static void step(moe *m, const cmoe_layer_train *l, cmoe_stream *s, int replay, int64_t begin,
                 int64_t end, const cmoe_units *units, results *r)
{
    const int64_t n = end - begin, H = m->H;
    cmoe_error err = {0};
    cmoe_saved *saved = NULL;
    int64_t keep = 0, host = 0;
    moe_must(cmoe_layer_train_bytes(l, n, &keep, &host, NULL, &err), &err, "bytes");
    cmoe_arena kept = arena_of(keep), scratch = arena_of(host);
    const cmoe_view x = cmoe_view_2d(m->x.f + begin * H, CMOE_F32, n, H);
    const cmoe_layer_call call = call_of(m, replay, begin, end, r);
    moe_must(cmoe_layer_train_forward(s, l, x, &call,
                                      cmoe_view_mut_2d(r->out + begin * H, CMOE_F32, n, H), &saved,
                                      &kept, &scratch, &err),
             &err, "layer_train_forward");
    cmoe_layer_gradients g;
    cmoe_layer_gradients_default(&g, sizeof g);
    g.dx = cmoe_view_mut_2d(m->x.grad + begin * H, CMOE_F32, n, H);
    g.gate = m->gate.g;
    g.w13 = m->w13.g;
    g.w2 = m->w2.g;
    if (m->S) {
        g.shared13 = m->s13.g;
        g.shared2 = m->s2.g;
    }
    if (m->gated_shared) g.shared_gate = m->sg.g;
    g.balance = (float)m->balance;
    g.z_loss = (float)m->z;
    g.balance_loss = &r->balance;
    g.z_loss_value = &r->z;
    if (m->mask) g.mask = cmoe_view_1d(m->mask + begin, CMOE_I32, n);
    moe_must(cmoe_layer_backward(s, l, saved, x, cmoe_view_2d(m->dout + begin * H, CMOE_F32, n, H),
                                 units, &g, &scratch, &err),
             &err, "layer_backward");
    free(kept.base);
    free(scratch.base);
}

static void title(kc *c, const char *what, const layer_form *l)
{
    const moe_form *f = &l->f;
    kc_begin(c,
             "%s T=%d K=%d E=%d H=%d I=%d %s %s renorm=%d gate rank=%d%s S=%d%s rank=%d first=%d "
             "scales=%g,%g,%d replay=%d aux=%g,%g%s units=%d",
             what, (int)f->T, (int)f->K, (int)f->E, (int)f->H, (int)f->I,
             cmoe_activation_name(f->activation), cmoe_route_scoring_name(l->scoring),
             l->renormalize, (int)l->gate_rank, l->gate_bias ? " bias" : "", (int)l->S,
             l->gated_shared ? " gated" : "", (int)l->s_rank, l->shared_first,
             (double)l->route_scale, (double)l->combine_scale, l->expert_scale, l->replay,
             (double)l->balance, (double)l->z, l->mask ? " mask" : "", (int)l->units);
}

static void differences(kc *c, const layer_form *form)
{
    moe m;
    env e = env_open(2);
    title(c, "layer", form);
    layer_make(c, &m, form);
    moe_open(&m, e.s);
    cmoe_layer_train *l = layer_open(&m, e.ctx);
    results r = results_make(&m);
    step(&m, l, e.s, form->replay, 0, m.T, &m.units, &r);
    memcpy(m.ids, r.ids, (size_t)(m.T * m.K) * 4); /* the formula follows the choice */
    moe_check(c, &m);
    double loss = 0, size = 0, balance = 0, z = 0;
    for (int64_t i = 0; i < m.T * m.H; i++) {
        loss += m.cot[i] * r.out[i];
        size += fabs(m.cot[i] * r.out[i]);
    }
    const double want = moe_loss(&m, &balance, &z);
    kc_near(c, "balance", 0, r.balance, balance, 1e-5 * balance);
    kc_near(c, "z", 0, r.z, z, 1e-5 * z);
    kc_near(c, "loss", 0, loss + m.balance * r.balance + m.z * r.z, want,
            1e-5 * (size + fabs(want)) + 1e-9);
    results_free(&r);
    cmoe_layer_train_free(l);
    moe_close(&m);
    moe_free(&m);
    env_close(&e);
    kc_end(c);
}

/* ---- against cmoe_layer_forward -------------------------------------------------------------- */

static cmoe_experts *experts_of(cmoe_ctx *ctx, const cmoe_experts_options *o, const mat *w13,
                                const mat *w2)
{
    cmoe_error err = {0};
    cmoe_experts *x = NULL;
    const part *up = &w13->p[0], *down = &w2->p[0];
    const bool bias = up->bias.n > 0;
    moe_must(cmoe_experts_create(
                 &x, ctx, o, view3(up->w.f, w13->E, up->n, w13->K),
                 view3(down->w.f, w2->E, w2->N, w2->K),
                 bias ? cmoe_view_2d(up->bias.f, CMOE_F32, w13->E, up->n) : cmoe_view_none(),
                 bias ? cmoe_view_2d(down->bias.f, CMOE_F32, w2->E, w2->N) : cmoe_view_none(),
                 &err),
             &err, "experts_create");
    return x;
}

/* Without low-rank terms, and without a bias of the shared gate, which a plain layer has not. */
static void same_as_forward(kc *c, const layer_form *given)
{
    layer_form form = *given;
    form.gate_rank = form.s_rank = form.f.r13 = form.f.r2 = 0;
    form.f.two_parts = 0;
    form.f.T = form.f.T > 1 ? 31 : form.f.T;
    if (form.gated_shared) form.f.bias = 0;
    moe m;
    env e = env_open(2);
    cmoe_error err = {0};
    title(c, "layer_forward", &form);
    layer_make(c, &m, &form);
    m.eo.format = CMOE_F32;
    moe_open(&m, e.s);
    cmoe_layer_train *l = layer_open(&m, e.ctx);
    results got = results_make(&m), want = results_make(&m);
    step(&m, l, e.s, form.replay, 0, m.T, NULL, &got);
    cmoe_layer_options o;
    cmoe_layer_weights w;
    cmoe_layer *plain = NULL;
    cmoe_layer_options_default(&o, sizeof o);
    o.route = &m.ro;
    o.chunk = 7;
    o.shared_first = m.shared_first;
    o.combine_scale = m.combine_scale;
    cmoe_layer_weights_default(&w, sizeof w);
    w.gate = cmoe_view_2d(m.gate.p[0].w.f, CMOE_F32, m.E, m.H);
    if (form.gate_bias) w.gate_bias = cmoe_view_1d(m.gate.p[0].bias.f, CMOE_F32, m.E);
    if (m.scale.n) w.per_expert_scale = cmoe_view_1d(m.scale.f, CMOE_F32, m.E);
    cmoe_experts *experts = experts_of(e.ctx, &m.eo, &m.w13, &m.w2);
    cmoe_experts *shared = m.S ? experts_of(e.ctx, NULL, &m.s13, &m.s2) : NULL;
    w.experts = experts;
    w.shared = shared;
    if (m.gated_shared) w.shared_gate = cmoe_view_2d(m.sg.p[0].w.f, CMOE_F32, 1, m.H);
    moe_must(cmoe_layer_create(&plain, e.ctx, &o, &w, &err), &err, "layer_create");
    int64_t bytes = 0;
    moe_must(cmoe_layer_bytes(plain, m.T, &bytes, NULL, &err), &err, "layer_bytes");
    cmoe_arena scratch = arena_of(bytes);
    cmoe_layer_call call = call_of(&m, form.replay, 0, m.T, &want);
    const cmoe_view x = cmoe_view_2d(m.x.f, CMOE_F32, m.T, m.H);
    moe_must(cmoe_layer_forward(e.s, plain, x, &call,
                                cmoe_view_mut_2d(want.out, CMOE_F32, m.T, m.H), &scratch, &err),
             &err, "layer_forward");
    results_equal(c, &m, &got, &want);
    /* Without saved values, from scratch alone. */
    free(scratch.base);
    moe_must(cmoe_layer_train_bytes(l, m.T, NULL, &bytes, NULL, &err), &err, "bytes");
    scratch = arena_of(bytes);
    memset(got.out, 0xff, (size_t)(m.T * m.H) * 4);
    moe_must(cmoe_layer_train_forward(e.s, l, x, NULL,
                                      cmoe_view_mut_2d(got.out, CMOE_F32, m.T, m.H), NULL, NULL,
                                      &scratch, &err),
             &err, "layer_train_forward");
    if (!form.replay) kc_equal(c, "out alone", got.out, want.out, m.T * m.H * 4);
    free(scratch.base);
    results_free(&got);
    results_free(&want);
    cmoe_layer_free(plain);
    cmoe_experts_free(experts);
    cmoe_experts_free(shared);
    cmoe_layer_train_free(l);
    moe_close(&m);
    moe_free(&m);
    env_close(&e);
    kc_end(c);
}

/* ---- bits ------------------------------------------------------------------------------------ */

/* The same bits with 1, 2 and 3 threads and other instructions, and from two calls that hold half of the units each. */
static void same_bits(kc *c, const layer_form *form)
{
    moe m;
    title(c, "layer bits", form);
    layer_make(c, &m, form);
    const int64_t n = moe_gradients(&m, NULL), x = m.T * m.H, half = m.units.count / 2;
    float *want = moe_get((n + x) * 4), *got = moe_get((n + x) * 4), *late = moe_get(n * 4);
    results first = results_make(&m), r = results_make(&m);
    for (int way = 0; way < MOE_WAYS; way++) {
        env e = env_open_isa(moe_ways[way].threads, moe_ways[way].isa);
        float *to = way == 0 ? want : got;
        moe_open(&m, e.s);
        cmoe_layer_train *l = layer_open(&m, e.ctx);
        memset(r.load, 0, (size_t)m.E * 8);
        step(&m, l, e.s, form->replay, 0, m.T, &m.units, way == 0 ? &first : &r);
        moe_gradients(&m, to);
        memcpy(to + n, m.x.grad, (size_t)x * 4);
        if (way > 0) {
            results_equal(c, &m, &r, &first);
            kc_equal(c, moe_ways[way].isa ? moe_ways[way].isa : "threads", got, want, (n + x) * 4);
            kc_equal(c, "losses", &r.balance, &first.balance, 16);
        }
        if (way == 1) {
            const int64_t middle = m.first[half];
            int64_t rest[CMOE_UNITS_MOST + 1];
            double balance, z;
            for (int64_t u = 0; u <= half; u++)
                rest[u] = m.first[half + u] - middle;
            memset(r.load, 0, (size_t)m.E * 8);
            step(&m, l, e.s, form->replay, 0, middle, &(cmoe_units){half, m.first}, &r);
            moe_gradients(&m, got);
            balance = r.balance;
            z = r.z;
            step(&m, l, e.s, form->replay, middle, m.T, &(cmoe_units){half, rest}, &r);
            moe_gradients(&m, late);
            for (int64_t i = 0; i < n; i++)
                got[i] += late[i];
            memcpy(got + n, m.x.grad, (size_t)x * 4);
            results_equal(c, &m, &r, &first);
            kc_equal(c, "two calls", got, want, (n + x) * 4);
            kc_near(c, "balance of two", 0, balance + r.balance, first.balance, 1e-12);
            kc_near(c, "z of two", 0, z + r.z, first.z, 1e-10);
        }
        cmoe_layer_train_free(l);
        moe_close(&m);
        env_close(&e);
    }
    results_free(&first);
    results_free(&r);
    free(want);
    free(got);
    free(late);
    moe_free(&m);
    kc_end(c);
}

int main(void)
{
    enum { SILU = CMOE_ACT_SILU, OSS = CMOE_ACT_SWIGLU_OSS, GELU = CMOE_ACT_GELU_TANH };
    enum { SOFT = CMOE_SCORE_SOFTMAX, SIGM = CMOE_SCORE_SIGMOID, SQRT = CMOE_SCORE_SQRTSOFTPLUS };
    enum { LOGITS = CMOE_SCORE_LOGITS };
    /* {T K E H I activation interleaved up_first ungated bias limit r13 r2 parts s}
     * scoring renorm gate_bias gate_rank S s_rank gated first route_scale combine_scale
     * expert_scale replay balance z mask units */
    static const layer_form forms[] = {
        {{9, 2, 5, 13, 10, SILU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
         SOFT,
         1,
         0,
         0,
         0,
         0,
         0,
         0,
         1,
         1,
         0,
         0,
         0,
         0,
         0,
         1},
        {{9, 2, 5, 13, 10, SILU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
         SOFT,
         0,
         0,
         0,
         7,
         0,
         1,
         0,
         1.5f,
         1,
         0,
         0,
         0.7f,
         0.3f,
         1,
         4},
        {{9, 3, 6, 13, 10, SILU, 0, 0, 0, 0, 0, 3, 5, 1, 0.5f},
         SIGM,
         1,
         0,
         3,
         7,
         2,
         1,
         1,
         2.5f,
         0.5f,
         0,
         0,
         0.5f,
         0,
         0,
         2},
        {{8, 2, 4, 11, 9, GELU, 0, 1, 0, 1, 0, 0, 0, 0, 0},
         SQRT,
         1,
         1,
         5,
         6,
         0,
         0,
         1,
         1,
         2,
         1,
         0,
         0,
         0.1f,
         0,
         8},
        {{8, 2, 4, 11, 9, OSS, 1, 0, 0, 1, 0.9f, 4, 4, 0, 1},
         LOGITS,
         1,
         1,
         0,
         0,
         0,
         0,
         0,
         1,
         1,
         0,
         0,
         0.2f,
         0.1f,
         1,
         2},
        {{7, 2, 4, 11, 9, CMOE_ACT_RELU2, 0, 0, 1, 0, 0, 0, 0, 0, 0},
         SIGM,
         0,
         0,
         1,
         5,
         3,
         1,
         0,
         1,
         1,
         1,
         1,
         0.5f,
         0.5f,
         0,
         2},
        {{7, 2, 4, 11, 9, SILU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
         SOFT,
         1,
         0,
         0,
         5,
         0,
         0,
         0,
         1,
         0.5f,
         0,
         2,
         0.5f,
         0.5f,
         0,
         2},
        {{1, 1, 1, 5, 3, SILU, 0, 0, 0, 1, 0, 0, 0, 0, 0},
         SOFT,
         0,
         1,
         0,
         2,
         0,
         1,
         0,
         1,
         1,
         0,
         0,
         0.5f,
         0.5f,
         0,
         1},
        {{0, 2, 3, 5, 3, SILU, 0, 0, 0, 1, 0, 2, 2, 0, 1},
         SOFT,
         1,
         1,
         2,
         2,
         1,
         1,
         0,
         1,
         1,
         0,
         0,
         0.5f,
         0.5f,
         0,
         4},
        {{6, 8, 9, 12, 5, SILU, 0, 0, 0, 0, 0, 6, 11, 0, 2},
         SOFT,
         1,
         0,
         64,
         3,
         1,
         1,
         0,
         1,
         1,
         0,
         0,
         0,
         0,
         0,
         4},
    };
    static const layer_form wide = {{40, 3, 6, 130, 70, SILU, 0, 0, 0, 0, 0, 5, 3, 1, 0.5f},
                                    SIGM,
                                    1,
                                    0,
                                    3,
                                    33,
                                    2,
                                    1,
                                    0,
                                    2.5f,
                                    1,
                                    0,
                                    0,
                                    0.5f,
                                    0.01f,
                                    1,
                                    8};
    kc c = {0};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        differences(&c, &forms[i]);
        same_as_forward(&c, &forms[i]);
        if (forms[i].units > 1) same_bits(&c, &forms[i]);
    }
    same_bits(&c, &wide);
    return kc_report(&c, "grad_layer");
}
