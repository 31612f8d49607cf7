/* SPDX-License-Identifier: MIT
 *
 * experts.c - the MLP's backward against finite differences, its forward against cmoe_experts_run, and
 * both over threads and over calls.
 */
#include "grad/moe.h"

/* Forward and backward of tokens [begin, end), which are `units`. */
static void step(moe *m, cmoe_stream *s, int64_t begin, int64_t end, const cmoe_units *units,
                 float *out)
{
    const int64_t n = end - begin, H = m->H, K = m->K;
    const cmoe_experts_weights w = {m->w13.t, m->w2.t};
    cmoe_error err = {0};
    cmoe_saved *saved = NULL;
    int64_t keep = 0, host = 0;
    moe_must(cmoe_experts_train_bytes(&m->eo, &w, n, K, &keep, &host, NULL, &err), &err, "bytes");
    cmoe_arena kept = arena_of(keep), scratch = arena_of(host);
    const cmoe_view x = cmoe_view_2d(m->x.f + begin * H, CMOE_F32, n, H),
                    ids = cmoe_view_2d(m->ids + begin * K, CMOE_I32, n, K),
                    weights = cmoe_view_2d(m->weights.f + begin * K, CMOE_F32, n, K),
                    dout = cmoe_view_2d(m->dout + begin * H, CMOE_F32, n, H);
    moe_must(cmoe_experts_train(s, &m->eo, &w, x, ids, weights, cmoe_view_none(),
                                cmoe_view_mut_2d(out + begin * H, CMOE_F32, n, H), &saved, &kept,
                                &scratch, &err),
             &err, "experts_train");
    const cmoe_experts_gradients g = {
        .dx = cmoe_view_mut_2d(m->x.grad + begin * H, CMOE_F32, n, H),
        .dweights = cmoe_view_mut_2d(m->weights.grad + begin * K, CMOE_F32, n, K),
        .w13 = m->w13.g,
        .w2 = m->w2.g};
    moe_must(cmoe_experts_backward(s, saved, x, weights, dout, units, &g, &scratch, &err), &err,
             "experts_backward");
    free(kept.base);
    free(scratch.base);
}

static void differences(kc *c, const moe_form *f, int64_t units, const char *ids, int32_t format,
                        int32_t borrow)
{
    moe m;
    env e = env_open(2);
    kc_begin(
        c,
        "experts T=%d K=%d E=%d H=%d I=%d %s%s%s%s%s limit=%g parts=%d rank=%d,%d s=%g units=%d "
        "%s",
        (int)f->T, (int)f->K, (int)f->E, (int)f->H, (int)f->I, cmoe_activation_name(f->activation),
        f->interleaved ? " interleaved" : "", f->up_first ? " up first" : "",
        f->ungated ? " ungated" : "", f->bias ? " bias" : "", (double)f->limit, 1 + f->two_parts,
        (int)f->r13, (int)f->r2, (double)f->s, (int)units, ids);
    moe_experts(c, &m, f);
    moe_cut(c, &m, units);
    m.format = format;
    m.borrow = borrow;
    if (format == CMOE_BF16) m.near = 0.06;
    for (int64_t i = 0; i < f->T * f->K; i++) {
        if (!strcmp(ids, "one")) m.ids[i] = 0;
        if (!strcmp(ids, "some") && i % 3 == 0) m.ids[i] = -1;
    }
    if (!strcmp(ids, "some")) m.eo.first_expert = 1; /* expert 0 is somebody else's */
    float *out = moe_get(f->T * f->H * 4);
    moe_open(&m, e.s);
    step(&m, e.s, 0, f->T, &m.units, out);
    moe_check(c, &m);
    double loss = 0, size = 0; /* the library's forward is the formula's */
    for (int64_t i = 0; i < f->T * f->H; i++) {
        loss += m.cot[i] * out[i];
        size += fabs(m.cot[i] * out[i]);
    }
    kc_near(c, "loss", 0, loss, moe_loss(&m, NULL, NULL),
            (format == CMOE_BF16 ? 0.02 : 1e-5) * size + 1e-9);
    free(out);
    moe_close(&m);
    moe_free(&m);
    env_close(&e);
    kc_end(c);
}

/* cmoe_experts_run on the same weights gives the same bits. */
static void same_as_run(kc *c, const moe_form *f, int32_t format)
{
    moe m;
    env e = env_open(2);
    cmoe_error err = {0};
    kc_begin(c, "experts_run %s H=%d I=%d %s%s%s%s%s", cmoe_dtype_name(format), (int)f->H,
             (int)f->I, cmoe_activation_name(f->activation), f->interleaved ? " interleaved" : "",
             f->up_first ? " up first" : "", f->ungated ? " ungated" : "", f->bias ? " bias" : "");
    moe_experts(c, &m, f);
    m.format = m.eo.format = format;
    m.eo.chunk = 5;
    moe_open(&m, e.s);
    const int64_t n = f->T * f->H;
    float *out = moe_get(n * 4), *want = moe_get(n * 4), *plain = moe_get(n * 4);
    step(&m, e.s, 0, f->T, NULL, out);
    const part *up = &m.w13.p[0], *down = &m.w2.p[0];
    cmoe_experts *x = NULL;
    moe_must(
        cmoe_experts_create(
            &x, e.ctx, &m.eo, view3(up->w.f, f->E, up->n, f->H), view3(down->w.f, f->E, f->H, f->I),
            f->bias ? cmoe_view_2d(up->bias.f, CMOE_F32, f->E, up->n) : cmoe_view_none(),
            f->bias ? cmoe_view_2d(down->bias.f, CMOE_F32, f->E, f->H) : cmoe_view_none(), &err),
        &err, "experts_create");
    int64_t bytes = 0;
    moe_must(cmoe_experts_bytes(x, f->T, f->K, &bytes, NULL, &err), &err, "experts_bytes");
    cmoe_arena scratch = arena_of(bytes);
    const cmoe_view xs = cmoe_view_2d(m.x.f, CMOE_F32, f->T, f->H),
                    ids = cmoe_view_2d(m.ids, CMOE_I32, f->T, f->K),
                    weights = cmoe_view_2d(m.weights.f, CMOE_F32, f->T, f->K);
    moe_must(cmoe_experts_run(e.s, x, xs, ids, weights, cmoe_view_none(),
                              cmoe_view_mut_2d(want, CMOE_F32, f->T, f->H), &scratch, &err),
             &err, "experts_run");
    kc_equal(c, "out", out, want, n * 4);
    /* Without saved values, from scratch alone. */
    const cmoe_experts_weights w = {m.w13.t, m.w2.t};
    free(scratch.base);
    moe_must(cmoe_experts_train_bytes(&m.eo, &w, f->T, f->K, NULL, &bytes, NULL, &err), &err,
             "bytes");
    scratch = arena_of(bytes);
    moe_must(cmoe_experts_train(e.s, &m.eo, &w, xs, ids, weights, cmoe_view_none(),
                                cmoe_view_mut_2d(plain, CMOE_F32, f->T, f->H), NULL, NULL, &scratch,
                                &err),
             &err, "experts_train");
    kc_equal(c, "out without saved", plain, want, n * 4);
    free(scratch.base);
    free(out);
    free(want);
    free(plain);
    cmoe_experts_free(x);
    moe_close(&m);
    moe_free(&m);
    env_close(&e);
    kc_end(c);
}

/* The same bits with 1, 2 and 3 threads and other instructions, and from two calls that hold two of four units each. */
static void same_bits(kc *c, const moe_form *f)
{
    moe m;
    kc_begin(c, "experts bits T=%d E=%d rank=%d,%d%s", (int)f->T, (int)f->E, (int)f->r13,
             (int)f->r2, f->bias ? " bias" : "");
    moe_experts(c, &m, f);
    moe_cut(c, &m, 4);
    const int64_t n = moe_gradients(&m, NULL), x = f->T * f->H, w = f->T * f->K;
    float *want = moe_get((n + x + w + x) * 4), *got = moe_get((n + x + w + x) * 4),
          *half = moe_get(n * 4);
    for (int way = 0; way < MOE_WAYS; way++) {
        env e = env_open_isa(moe_ways[way].threads, moe_ways[way].isa);
        float *to = way == 0 ? want : got;
        moe_open(&m, e.s);
        step(&m, e.s, 0, f->T, &m.units, to + n + x + w);
        moe_gradients(&m, to);
        memcpy(to + n, m.x.grad, (size_t)x * 4);
        memcpy(to + n + x, m.weights.grad, (size_t)w * 4);
        if (way > 0)
            kc_equal(c, moe_ways[way].isa ? moe_ways[way].isa : "threads", got, want,
                     (n + x + w + x) * 4);
        if (way == 1) {
            const int64_t middle = m.first[2], late[3] = {0, m.first[3] - middle, f->T - middle};
            step(&m, e.s, 0, middle, &(cmoe_units){2, m.first}, got + n + x + w);
            moe_gradients(&m, got);
            step(&m, e.s, middle, f->T, &(cmoe_units){2, late}, got + n + x + w);
            moe_gradients(&m, half);
            for (int64_t i = 0; i < n; i++)
                got[i] += half[i];
            memcpy(got + n, m.x.grad, (size_t)x * 4);
            memcpy(got + n + x, m.weights.grad, (size_t)w * 4);
            kc_equal(c, "two calls", got, want, (n + x + w + x) * 4);
        }
        moe_close(&m);
        env_close(&e);
    }
    free(want);
    free(got);
    free(half);
    moe_free(&m);
    kc_end(c);
}

int main(void)
{
    enum { SILU = CMOE_ACT_SILU, GELU = CMOE_ACT_GELU_TANH, OSS = CMOE_ACT_SWIGLU_OSS };
    enum { RELU2 = CMOE_ACT_RELU2 };
    /* T, K, E, H, I, activation, interleaved, up first, ungated, bias, limit, ranks, parts, s */
    static const moe_form forms[] = {
        {9, 2, 5, 13, 10, SILU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
        {9, 2, 5, 13, 10, SILU, 0, 0, 0, 1, 0.8f, 0, 0, 0, 0},
        {7, 3, 4, 17, 9, GELU, 0, 1, 0, 1, 0, 0, 0, 0, 0},
        {7, 3, 4, 17, 9, OSS, 1, 0, 0, 1, 0.9f, 0, 0, 0, 0},
        {7, 1, 4, 17, 9, OSS, 1, 1, 0, 0, 0, 0, 0, 0, 0},
        {8, 2, 3, 11, 12, RELU2, 0, 0, 1, 1, 0, 0, 0, 0, 0},
        {8, 2, 3, 11, 12, RELU2, 0, 0, 1, 0, 0.7f, 3, 5, 0, 0.5f},
        {8, 2, 3, 11, 12, SILU, 0, 0, 1, 0, 0, 0, 0, 0, 0},
        {8, 2, 3, 11, 12, RELU2, 0, 0, 0, 0, 0, 0, 0, 0, 0},
        {6, 2, 3, 16, 8, SILU, 0, 0, 0, 0, 0, 1, 1, 0, 2},
        {6, 2, 3, 12, 7, SILU, 0, 0, 0, 1, 0, 7, 3, 1, 0.5f},
        {6, 2, 2, 12, 7, GELU, 0, 0, 0, 0, 0, 33, 64, 1, 0.1f},
        {6, 2, 2, 12, 7, SILU, 0, 0, 0, 0, 0, 4, 4, 1, 0},
        {1, 1, 1, 5, 3, SILU, 0, 0, 0, 1, 0, 0, 0, 0, 0},
        {1, 8, 12, 9, 4, SILU, 0, 0, 0, 1, 0, 2, 2, 0, 1},
        {5, 8, 3, 9, 4, GELU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
        {0, 2, 3, 6, 4, SILU, 0, 0, 0, 1, 0, 2, 2, 0, 1},
        {4, 0, 3, 6, 4, SILU, 0, 0, 0, 1, 0, 2, 2, 0, 1},
        {3, 1, 1, 1, 1, SILU, 0, 0, 0, 1, 0, 0, 0, 0, 0},
    };
    static const moe_form wide[] = {
        {40, 3, 6, 130, 70, SILU, 0, 0, 0, 0, 0, 0, 0, 0, 0},
        {40, 3, 6, 67, 33, GELU, 0, 1, 0, 1, 0, 5, 3, 0, 0.5f},
    };
    static const char *const ids[] = {"any", "one", "some"};
    kc c = {0};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        for (int j = 0; j < 3; j++)
            differences(&c, &forms[i], j == 1 ? 1 : 4, ids[j], CMOE_F32, 0);
    for (size_t i = 1; i < sizeof forms / sizeof *forms; i += 3) {
        differences(&c, &forms[i], 2, "any", CMOE_BF16, 0);
        differences(&c, &forms[i], 2, "some", CMOE_F32, 1);
    }
    differences(&c, &forms[10], 2, "any", CMOE_BF16, 1);
    for (size_t i = 0; i < 9; i++) {
        moe_form f = forms[i];
        f.T = 23;
        f.r13 = f.r2 = 0;
        same_as_run(&c, &f, CMOE_F32);
        same_as_run(&c, &f, CMOE_BF16);
        f.H = 150;
        f.I = 515; /* more than the activation takes at a time */
        if (i < 3) same_as_run(&c, &f, CMOE_F32);
    }
    same_bits(&c, &wide[0]);
    same_bits(&c, &wide[1]);
    return kc_report(&c, "grad_experts");
}
