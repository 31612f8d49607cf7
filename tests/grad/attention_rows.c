/* SPDX-License-Identifier: MIT
 *
 * attention_rows.c - gradients of attention over whole sequences against finite differences.
 *
 * The loss is sum of dout * out, out from the double oracle.  Differences are central, of steps h and
 * 2h combined so that h^2 falls out; inputs are float32, so the step is what the float really moved
 * by.  With h = 2^-8 what is left is h^4 times the fifth derivative, below 1e-8 here; float32
 * gradients are sums of at most a few hundred terms of size 1.  Bound: 1e-4 of the largest gradient.
 */
#include "kernels/kc.h"

#include "ops/attention_rows.h"
#include "sights.h"

void cmoei_attention_rows_forward_f64(const cmoei_attention_rows_args *a, int64_t kv_head,
                                      int64_t token, int64_t token_end, void *room);

typedef struct shape {
    sight_kind kind;
    int64_t tokens, kv_heads, ratio, head_dim, size;
    float scale;
    bool sinks;
} shape;

typedef struct net {
    shape s;
    int64_t heads, queries, keys; /* elements of q and of k */
    float *q, *k, *v, *sinks, *dout;
    int32_t *see;
    double *out, *lse;
} net;

static cmoei_plane plane(const void *data, int64_t cols, int32_t dtype)
{
    return (cmoei_plane){.data = (char *)(uintptr_t)data,
                         .step = cols * cmoe_dtype_bytes(dtype),
                         .col = 1,
                         .dtype = dtype};
}

static double loss(const net *n)
{
    const shape *s = &n->s;
    const cmoei_attention_rows_args a = {
        .q = plane(n->q, n->heads * s->head_dim, CMOE_F32),
        .k = plane(n->k, s->kv_heads * s->head_dim, CMOE_F32),
        .v = plane(n->v, s->kv_heads * s->head_dim, CMOE_F32),
        .see = plane(n->see, 4, CMOE_I32),
        .sinks = plane(n->sinks, n->heads, CMOE_F32),
        .out = plane(n->out, n->heads * s->head_dim, CMOE_F64),
        .lse = plane(n->lse, n->heads, CMOE_F64),
        .tokens = s->tokens,
        .head_dim = s->head_dim,
        .heads = n->heads,
        .ratio = s->ratio,
        .scale = s->scale != 0 ? s->scale : (float)(1 / sqrt((double)s->head_dim)),
    };
    double sum = 0;
    for (int64_t h = 0; h < s->kv_heads; h++)
        cmoei_attention_rows_forward_f64(&a, h, 0, s->tokens, NULL);
    for (int64_t i = 0; i < n->queries; i++)
        sum += n->dout[i] * n->out[i];
    return sum;
}

static double slope(const net *n, float *x, float h)
{
    const float at = *x, up = at + h, down = at - h;
    *x = up;
    const double high = loss(n);
    *x = down;
    const double low = loss(n);
    *x = at;
    return (high - low) / ((double)up - down);
}

static void against(kc *c, const net *n, const char *what, float *x, const float *got,
                    int64_t count)
{
    const float h = 0x1p-8f;
    double most = 0;
    for (int64_t i = 0; i < count; i++)
        most = fmax(most, fabs(got[i]));
    const int64_t step = count > 60 ? count / 60 : 1; /* some of many */
    for (int64_t i = 0; i < count; i += step) {
        const double want = (4 * slope(n, x + i, h) - slope(n, x + i, 2 * h)) / 3;
        kc_near(c, what, i, got[i], want, 1e-4 * fmax(most, 1e-3));
    }
}

static void must(kc *c, cmoe_status status, const cmoe_error *err)
{
    if (status != CMOE_OK) kc_fail(c, "%s", err->text);
}

static void check(kc *c, cmoe_ctx *ctx, shape s)
{
    kc_begin(c, "attention_rows %s tokens=%d heads=%dx%d dim=%d sinks=%d", sight_names[s.kind],
             (int)s.tokens, (int)s.kv_heads, (int)s.ratio, (int)s.head_dim, s.sinks);
    net n = {.s = s, .heads = s.kv_heads * s.ratio};
    const int64_t T = s.tokens, cols = n.heads * s.head_dim, kv_cols = s.kv_heads * s.head_dim;
    cmoe_error err = {0};
    n.queries = T * cols;
    n.keys = T * kv_cols;
    n.q = kc_f32s(c, n.queries);
    n.k = kc_f32s(c, n.keys);
    n.v = kc_f32s(c, n.keys);
    n.dout = kc_f32s(c, n.queries);
    n.sinks = s.sinks ? kc_f32s(c, n.heads) : NULL;
    n.see = kc_out(c, T * 16);
    n.out = kc_out(c, n.queries * 8);
    n.lse = kc_out(c, T * n.heads * 8);
    sights(n.see, s.kind, T, s.size, c->seed);
    float *out = kc_out(c, n.queries * 4), *lse = kc_out(c, T * n.heads * 4);
    float *dq = kc_out(c, n.queries * 4), *dk = kc_out(c, n.keys * 4), *dv = kc_out(c, n.keys * 4);
    float *dsinks = kc_out(c, n.heads * 4);
    cmoe_attention_rows_options o;
    cmoe_attention_rows_options_default(&o, sizeof o);
    o.heads = n.heads;
    o.kv_heads = s.kv_heads;
    o.scale = s.scale;
    int64_t bytes = 0;
    must(c, cmoe_attention_rows_bytes(ctx, &o, T, s.head_dim, &bytes, NULL, &err), &err);
    cmoe_arena arena = cmoe_arena_make(kc_out(c, bytes), bytes);
    cmoe_stream *stream = NULL;
    must(c, cmoe_stream_create(&stream, ctx, &err), &err);
    const cmoe_view q = cmoe_view_2d(n.q, CMOE_F32, T, cols);
    const cmoe_view k = cmoe_view_2d(n.k, CMOE_F32, T, kv_cols);
    const cmoe_view v = cmoe_view_2d(n.v, CMOE_F32, T, kv_cols);
    const cmoe_view see = cmoe_view_2d(n.see, CMOE_I32, T, 4);
    const cmoe_view sinks = s.sinks ? cmoe_view_1d(n.sinks, CMOE_F32, n.heads) : cmoe_view_none();
    must(c,
         cmoe_attention_rows(stream, &o, q, k, v, see, sinks,
                             cmoe_view_mut_2d(out, CMOE_F32, T, cols),
                             cmoe_view_mut_2d(lse, CMOE_F32, T, n.heads), &arena, &err),
         &err);
    must(c,
         cmoe_attention_rows_backward(
             stream, &o, q, k, v, see, sinks, cmoe_view_2d(out, CMOE_F32, T, cols),
             cmoe_view_2d(lse, CMOE_F32, T, n.heads), cmoe_view_2d(n.dout, CMOE_F32, T, cols), NULL,
             cmoe_view_mut_2d(dq, CMOE_F32, T, cols), cmoe_view_mut_2d(dk, CMOE_F32, T, kv_cols),
             cmoe_view_mut_2d(dv, CMOE_F32, T, kv_cols),
             s.sinks ? cmoe_view_mut_1d(dsinks, CMOE_F32, n.heads) : cmoe_view_mut_none(), &arena,
             &err),
         &err);
    against(c, &n, "dq", n.q, dq, n.queries);
    against(c, &n, "dk", n.k, dk, n.keys);
    against(c, &n, "dv", n.v, dv, n.keys);
    if (s.sinks) against(c, &n, "dsinks", n.sinks, dsinks, n.heads);
    cmoe_stream_free(stream);
    kc_end(c);
}

int main(void)
{
    static kc c;
    cmoe_ctx *ctx = NULL;
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 2;
    if (cmoe_ctx_create(&ctx, &o, NULL) != CMOE_OK) return 1;
    const shape shapes[] = {
        {SIGHT_CAUSAL, 1, 1, 1, 3, 1, 0, true},      {SIGHT_CAUSAL, 33, 2, 2, 5, 20, 0, false},
        {SIGHT_CAUSAL, 40, 1, 3, 16, 40, .5f, true}, {SIGHT_WINDOW, 37, 1, 2, 8, 7, 0, true},
        {SIGHT_BLOCK, 30, 1, 1, 9, 8, 0, false},     {SIGHT_DIFFUSION, 40, 1, 2, 8, 4, 0, true},
        {SIGHT_RANDOM, 25, 2, 2, 7, 0, 0, true},     {SIGHT_NOTHING, 21, 1, 2, 4, 0, 0, true},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(shapes); i++)
        check(&c, ctx, shapes[i]);
    cmoe_ctx_free(ctx);
    return kc_report(&c, "grad_attention_rows");
}
