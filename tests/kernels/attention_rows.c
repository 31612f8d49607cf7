/* SPDX-License-Identifier: MIT
 *
 * attention_rows.c - attention of whole sequences, forward and backward: every kernel bit by bit
 * against the reference, for tokens taken together and one by one; the reference against the double
 * oracle, and the oracle against the formula.
 */
#include "sights.h"

#include "kc.h"
#include "ops/attention_rows.h"

void cmoei_attention_rows_forward_f64(const cmoei_attention_rows_args *a, int64_t kv_head,
                                      int64_t token, int64_t token_end, void *room);
void cmoei_attention_rows_backward_f64(const cmoei_attention_rows_args *a, int64_t kv_head,
                                       const int32_t *tokens, int64_t n, void *room);
void cmoei_attention_rows_sinks_f64(const cmoei_attention_rows_args *a, const cmoe_units *units,
                                    int64_t head, int64_t head_end, void *dsinks);

typedef struct shape {
    sight_kind kind;
    int64_t tokens, kv_heads, ratio, head_dim;
    int64_t size; /* of a document, window or block */
    float scale;
    bool sinks;
    int64_t gap; /* columns between rows */
} shape;

/* What one kernel writes; elements of `bytes`. */
typedef struct results {
    void *out, *lse, *dot, *dq, *dk, *dv, *dsinks;
    int64_t bytes;
} results;

static results make(kc *c, const shape *s, int64_t bytes)
{
    const int64_t keys = s->tokens * s->kv_heads * s->head_dim * bytes;
    const int64_t heads = s->kv_heads * s->ratio;
    return (results){.out = kc_out(c, keys * s->ratio),
                     .lse = kc_out(c, s->tokens * heads * bytes),
                     .dot = kc_out(c, s->tokens * heads * bytes),
                     .dq = kc_out(c, keys * s->ratio),
                     .dk = kc_out(c, keys),
                     .dv = kc_out(c, keys),
                     .dsinks = kc_out(c, heads * bytes),
                     .bytes = bytes};
}

static cmoei_plane plane(const void *data, int64_t cols, int64_t bytes)
{
    return (cmoei_plane){.data = (char *)(uintptr_t)data,
                         .step = cols * bytes,
                         .col = 1,
                         .dtype = bytes == 8 ? CMOE_F64 : CMOE_F32};
}

/* `step` tokens a call; backward needs all queries of a key in ascending order, no more. */
static void run(cmoei_attention_rows_args a, const cmoei_attention_rows_kernel *kn,
                const cmoe_units *units, results to, int64_t step)
{
    const int64_t heads = a.heads, kv_heads = heads / a.ratio, d = a.head_dim;
    int32_t *tokens = malloc((size_t)a.tokens * sizeof *tokens);
    void *room = malloc((size_t)cmoei_attention_rows_kernel_bytes(a.tokens, d));
    memset(to.dk, 0, (size_t)(a.tokens * kv_heads * d * to.bytes));
    memset(to.dv, 0, (size_t)(a.tokens * kv_heads * d * to.bytes));
    a.out = plane(to.out, heads * d, to.bytes);
    a.lse = plane(to.lse, heads, to.bytes);
    a.dot = plane(to.dot, heads, to.bytes);
    a.dq = plane(to.dq, heads * d, to.bytes);
    a.dk = plane(to.dk, kv_heads * d, to.bytes);
    a.dv = plane(to.dv, kv_heads * d, to.bytes);
    for (int64_t t = 0; t < a.tokens; t++)
        tokens[t] = (int32_t)t;
    for (int64_t h = 0; h < kv_heads; h++) {
        for (int64_t t = 0; t < a.tokens; t += step)
            kn->forward(&a, h, t, CMOEI_MIN(a.tokens, t + step), room);
        for (int64_t t = 0; t < a.tokens; t += step)
            kn->backward(&a, h, tokens + t, CMOEI_MIN(step, a.tokens - t), room);
    }
    if (a.sinks.data) kn->sinks(&a, units, 0, heads, to.dsinks);
    free(tokens);
    free(room);
}

/* ---- the formula ----------------------------------------------------------------------------- */

/* Of all rows of one head: scores, weights and their gradients, and how far float32 may be off. */
typedef struct truth {
    double *p, *ds;         /* [T, T] */
    double *p_off, *ds_off; /* absolute */
    double *dot, *dot_off, *w_off;
} truth;

static double value(const cmoei_plane *p, int64_t row, int64_t col)
{
    float x;
    memcpy(&x, cmoei_plane_at(p, row, col), sizeof x);
    return x;
}

static bool sees(const cmoei_attention_rows_args *a, int64_t t, int64_t key)
{
    int32_t at[4];
    cmoei_attention_rows_see(&a->see, t, at);
    return (key >= at[0] && key < at[1]) || (key >= at[2] && key < at[3]);
}

/* u = 2^-24.  A score passes d fused adds and a product: e = (d + 1) u scale sum |q k|.  p = exp(s -
 * lse) is off, relative, by e of its own, by that of lse, which is at most the largest e of the row
 * and 1 unit of each of its `keys` sums, 2.2 of exp, 1 of ln and 1 of |lse| and |m|, and by 1 unit of
 * |s - lse| and 2.2 of exp.  Doubled for second order. */
static void row_truth(const cmoei_attention_rows_args *a, int64_t t, int64_t h, truth *w)
{
    const double u = 0x1p-24;
    const int64_t T = a->tokens, d = a->head_dim, q = h * d, k = h / a->ratio * d;
    double m = a->sinks.data ? value(&a->sinks, 0, h) : -INFINITY, l = 0, e = 0, keys = 0;
    double low = INFINITY;
    for (int64_t j = 0; j < T; j++) {
        double s = 0, size = 0;
        if (!sees(a, t, j)) continue;
        for (int64_t i = 0; i < d; i++) {
            const double x = value(&a->q, t, q + i) * value(&a->k, j, k + i);
            s += x;
            size += fabs(x);
        }
        w->p[t * T + j] = s * a->scale;
        m = fmax(m, s * a->scale);
        low = fmin(low, s * a->scale);
        e = fmax(e, ((double)d + 1) * u * fabs(a->scale) * size);
        keys++;
    }
    if (m == -INFINITY) return;
    if (a->sinks.data) l = exp(value(&a->sinks, 0, h) - m);
    for (int64_t j = 0; j < T; j++)
        l += sees(a, t, j) ? exp(w->p[t * T + j] - m) : 0;
    const double lse = m + log(l);
    const double off = 2 * (2 * e + u * (keys + 1 + 2.2 + 1 + fabs(lse) + fabs(m) +
                                         (m - fmin(low, m)) + 3.2 + fabs(lse)));
    w->w_off[t] = off;
    double dot = 0, dot_off = 0;
    for (int64_t j = 0; j < T; j++) {
        if (!sees(a, t, j)) continue;
        w->p[t * T + j] = exp(w->p[t * T + j] - lse);
        w->p_off[t * T + j] = off * w->p[t * T + j] + 2 * FLT_MIN;
        double dp = 0, size = 0;
        for (int64_t i = 0; i < d; i++) {
            const double x = value(&a->v, j, k + i) * value(&a->dout, t, q + i);
            dp += x;
            size += fabs(x);
        }
        w->ds[t * T + j] = dp;
        w->ds_off[t * T + j] = (double)d * u * size;
        dot += w->p[t * T + j] * dp;
        /* dot passes out, which is off by off and keys units, and d fused adds. */
        dot_off += w->p[t * T + j] * size * (off + u * (2 * keys + 2 + (double)d));
    }
    w->dot[t] = dot;
    w->dot_off[t] = dot_off;
    for (int64_t j = 0; j < T; j++) {
        if (!sees(a, t, j)) continue;
        const double p = w->p[t * T + j], g = w->ds[t * T + j] - dot, scale = fabs(a->scale);
        const double g_off = w->ds_off[t * T + j] + dot_off + u * fabs(g);
        w->ds[t * T + j] = p * g * a->scale;
        w->ds_off[t * T + j] =
            scale * ((p + w->p_off[t * T + j]) * g_off + w->p_off[t * T + j] * fabs(g)) +
            2 * u * fabs(p * g * scale) + FLT_MIN;
    }
}

/* All of it is one block that begins at p. */
static truth truth_of(const cmoei_attention_rows_args *a, int64_t h)
{
    const int64_t T = a->tokens;
    double *x = calloc((size_t)(4 * T * T + 3 * T), sizeof *x);
    truth w = {.p = x,
               .ds = x + T * T,
               .p_off = x + 2 * T * T,
               .ds_off = x + 3 * T * T,
               .dot = x + 4 * T * T,
               .dot_off = x + 4 * T * T + T,
               .w_off = x + 4 * T * T + 2 * T};
    for (int64_t t = 0; t < T; t++)
        row_truth(a, t, h, &w);
    return w;
}

/* `exact`: a double; `near`: the float that is held against it, or NULL to hold the double against the
 * formula, whose bound shrinks with its unit. */
static void hold(kc *c, const char *what, int64_t i, const void *exact, const void *near_it,
                 double want, double bound)
{
    const double got = ((const double *)exact)[i];
    if (near_it)
        kc_near(c, what, i, ((const float *)near_it)[i], got, bound);
    else
        kc_near(c, what, i, got, want, bound * 0x1p-24 + 1e-300);
}

/* sum over n of x[n] * y[n] with x off by x_off, in a chain of `terms`. */
typedef struct total {
    double sum, off, size;
} total;
static void total_add(total *s, double x, double x_off, double y)
{
    s->sum += x * y;
    s->off += (x_off + 0x1p-149) * fabs(y);
    s->size += fabs(x * y);
}
static double total_bound(const total *s, double terms)
{
    return 2 * (s->off + terms * 0x1p-24 * s->size) + terms * FLT_MIN;
}

static void queries_near(kc *c, const cmoei_attention_rows_args *a, int64_t h, const truth *w,
                         results exact, const results *near_it)
{
    const int64_t T = a->tokens, d = a->head_dim, k = h / a->ratio * d;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t i = 0; i < d; i++) {
            total o = {0}, g = {0};
            for (int64_t j = 0; j < T; j++) {
                if (!sees(a, t, j)) continue;
                total_add(&o, w->p[t * T + j], w->p_off[t * T + j], value(&a->v, j, k + i));
                total_add(&g, w->ds[t * T + j], w->ds_off[t * T + j], value(&a->k, j, k + i));
            }
            const int64_t at = (t * a->heads + h) * d + i;
            hold(c, "out", at, exact.out, near_it ? near_it->out : NULL, o.sum,
                 total_bound(&o, 2 * (double)T));
            hold(c, "dq", at, exact.dq, near_it ? near_it->dq : NULL, g.sum,
                 total_bound(&g, (double)T));
        }
        hold(c, "dot", t * a->heads + h, exact.dot, near_it ? near_it->dot : NULL, w->dot[t],
             2 * w->dot_off[t] + FLT_MIN);
    }
}

/* Sums of the heads of a group grow in dk, dv [T, d]. */
static void keys_add(const cmoei_attention_rows_args *a, int64_t h, const truth *w, total *dk,
                     total *dv)
{
    const int64_t T = a->tokens, d = a->head_dim;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t j = 0; j < T; j++) {
            if (!sees(a, t, j)) continue;
            for (int64_t i = 0; i < d; i++) {
                total_add(&dk[j * d + i], w->ds[t * T + j], w->ds_off[t * T + j],
                          value(&a->q, t, h * d + i));
                total_add(&dv[j * d + i], w->p[t * T + j], w->p_off[t * T + j],
                          value(&a->dout, t, h * d + i));
            }
        }
    }
}

static void keys_near(kc *c, const cmoei_attention_rows_args *a, int64_t kv_head, const total *dk,
                      const total *dv, results exact, const results *near_it)
{
    const int64_t d = a->head_dim, kv_heads = a->heads / a->ratio;
    const double terms = (double)(a->tokens * a->ratio);
    for (int64_t i = 0; i < a->tokens * d; i++) {
        const int64_t at = (i / d * kv_heads + kv_head) * d + i % d;
        hold(c, "dk", at, exact.dk, near_it ? near_it->dk : NULL, dk[i].sum,
             total_bound(&dk[i], terms));
        hold(c, "dv", at, exact.dv, near_it ? near_it->dv : NULL, dv[i].sum,
             total_bound(&dv[i], terms));
    }
}

/* One less the sum of p is what the sink has. */
static void sink_near(kc *c, const cmoei_attention_rows_args *a, int64_t h, const truth *w,
                      results exact, const results *near_it)
{
    const int64_t T = a->tokens;
    total s = {0};
    for (int64_t t = 0; t < T; t++) {
        double p = 1;
        for (int64_t j = 0; j < T; j++)
            p -= w->p[t * T + j];
        s.sum -= p * w->dot[t];
        s.off += p * w->dot_off[t] + w->w_off[t] * p * fabs(w->dot[t]);
        s.off += (double)T * 0x1p-28 * fabs(w->dot[t]); /* p is off by T 2^-53, times 2^-24 below */
        s.size += fabs(p * w->dot[t]);
    }
    hold(c, "dsinks", h, exact.dsinks, near_it ? near_it->dsinks : NULL, s.sum,
         total_bound(&s, (double)T + 4));
}

static void near_truth(kc *c, const cmoei_attention_rows_args *a, results exact,
                       const results *near_it)
{
    const int64_t n = a->tokens * a->head_dim;
    for (int64_t kv_head = 0; kv_head < a->heads / a->ratio; kv_head++) {
        total *dk = calloc((size_t)n, sizeof *dk), *dv = calloc((size_t)n, sizeof *dv);
        for (int64_t h = kv_head * a->ratio; h < (kv_head + 1) * a->ratio; h++) {
            const truth w = truth_of(a, h);
            queries_near(c, a, h, &w, exact, near_it);
            keys_add(a, h, &w, dk, dv);
            if (a->sinks.data) sink_near(c, a, h, &w, exact, near_it);
            free(w.p);
        }
        keys_near(c, a, kv_head, dk, dv, exact, near_it);
        free(dk);
        free(dv);
    }
}

/* ---- kernels --------------------------------------------------------------------------------- */

static void equal(kc *c, const char *name, const shape *s, results got, results want)
{
    const int64_t heads = s->kv_heads * s->ratio, rows = s->tokens * heads;
    const int64_t keys = s->tokens * s->kv_heads * s->head_dim;
    const int bad = c->bad;
    kc_equal(c, "out", got.out, want.out, rows * s->head_dim * 4);
    kc_equal(c, "lse", got.lse, want.lse, rows * 4);
    kc_equal(c, "dot", got.dot, want.dot, rows * 4);
    kc_equal(c, "dq", got.dq, want.dq, rows * s->head_dim * 4);
    kc_equal(c, "dk", got.dk, want.dk, keys * 4);
    kc_equal(c, "dv", got.dv, want.dv, keys * 4);
    kc_equal(c, "dsinks", got.dsinks, want.dsinks, heads * 4);
    if (c->bad != bad) kc_fail(c, "that was %s", name);
}

static cmoei_attention_rows_args input(kc *c, const shape *s)
{
    const int64_t heads = s->kv_heads * s->ratio, q = heads * s->head_dim + s->gap;
    const int64_t k = s->kv_heads * s->head_dim + s->gap;
    int32_t *see = kc_out(c, s->tokens * 16);
    sights(see, s->kind, s->tokens, s->size, c->seed);
    return (cmoei_attention_rows_args){
        .q = plane(kc_f32s(c, s->tokens * q), q, 4),
        .k = plane(kc_f32s(c, s->tokens * k), k, 4),
        .v = plane(kc_f32s(c, s->tokens * k), k, 4),
        .dout = plane(kc_f32s(c, s->tokens * q), q, 4),
        .sinks = plane(s->sinks ? kc_f32s(c, heads) : NULL, heads, 4),
        .see = {.data = (char *)see, .step = 16, .col = 1, .dtype = CMOE_I32},
        .tokens = s->tokens,
        .head_dim = s->head_dim,
        .heads = heads,
        .ratio = s->ratio,
        .scale = s->scale,
    };
}

static void check(kc *c, shape s, bool formula)
{
    kc_begin(c, "attention_rows %s tokens=%d heads=%dx%d dim=%d size=%d scale=%g sinks=%d",
             sight_names[s.kind], (int)s.tokens, (int)s.kv_heads, (int)s.ratio, (int)s.head_dim,
             (int)s.size, s.scale, s.sinks);
    static const cmoei_attention_rows_kernel oracle = {
        {"f64", 0, 0},
        cmoei_attention_rows_forward_f64,
        cmoei_attention_rows_backward_f64,
        cmoei_attention_rows_sinks_f64,
    };
    const cmoei_attention_rows_args a = input(c, &s);
    const int64_t first[3] = {0, s.tokens / 3, s.tokens}, whole[2] = {0, s.tokens};
    const cmoe_units two = {2, first}, one = {1, whole};
    const cmoe_units *units = formula ? &one : &two;
    const results want = make(c, &s, 4), got = make(c, &s, 4);
    const cmoei_table *table = &cmoei_attention_rows_table;
    const cmoei_attention_rows_kernel *ref = (const void *)cmoei_table_row(table, table->count - 1);
    run(a, ref, units, want, s.tokens);
    if (formula) {
        const results exact = make(c, &s, 8);
        run(a, &oracle, units, exact, s.tokens);
        near_truth(c, &a, exact, NULL);
        near_truth(c, &a, exact, &want);
    }
    for (int64_t v = 0; v < table->count - 1; v++) {
        const cmoei_attention_rows_kernel *kn = (const void *)cmoei_table_row(table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        for (int64_t step = s.tokens; step > 0; step = step > 7 ? 7 : step > 1 ? 1 : 0) {
            run(a, kn, units, got, step);
            equal(c, kn->variant.name, &s, got, want);
        }
    }
    kc_end(c);
}

/* As numbers, and NaN where there is NaN. */
static void same(kc *c, const char *what, const void *got, const void *want, int64_t n)
{
    const float *x = got, *y = want;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] != y[i] && (x[i] == x[i] || y[i] == y[i]))
            kc_fail(c, "%s[%lld] = %g, want %g", what, (long long)i, x[i], y[i]);
    }
}

/* A key, a value and a query that are not numbers reach what sees them, and nothing else. */
static void check_nan(kc *c, sight_kind kind)
{
    enum { T = 75, D = 20, HEADS = 2 };
    const shape s = {kind, T, 1, HEADS, D, 16, .3f, true, 0};
    kc_begin(c, "attention_rows NaN %s", sight_names[kind]);
    const cmoei_attention_rows_args a = input(c, &s);
    const int64_t whole[2] = {0, T};
    const cmoe_units one = {1, whole};
    const cmoei_table *table = &cmoei_attention_rows_table;
    for (int64_t i = 0; i < D; i++) {
        ((float *)(void *)a.v.data)[40 * D + i] = NAN;
        ((float *)(void *)a.k.data)[41 * D + i] = NAN;
        ((float *)(void *)a.dout.data)[30 * D * HEADS + i] = INFINITY;
    }
    const results want = make(c, &s, 4), got = make(c, &s, 4);
    run(a, (const void *)cmoei_table_row(table, table->count - 1), &one, want, T);
    for (int64_t v = 0; v < table->count - 1; v++) {
        const cmoei_attention_rows_kernel *kn = (const void *)cmoei_table_row(table, v);
        if (kn->variant.needs & ~cmoe_cpu_features()) continue;
        run(a, kn, &one, got, T);
        same(c, "out", got.out, want.out, T * HEADS * D);
        same(c, "lse", got.lse, want.lse, T * HEADS);
        same(c, "dq", got.dq, want.dq, T * HEADS * D);
        same(c, "dk", got.dk, want.dk, T * D);
        same(c, "dv", got.dv, want.dv, T * D);
    }
    kc_end(c);
}

int main(void)
{
    static kc c;
    const shape small[] = {
        {SIGHT_CAUSAL, 1, 1, 1, 1, 1, 1, false, 0},
        {SIGHT_CAUSAL, 70, 2, 2, 16, 40, .25f, false, 0},
        {SIGHT_CAUSAL, 50, 1, 3, 20, 50, .3f, true, 3},
        {SIGHT_WINDOW, 61, 1, 4, 32, 9, .2f, true, 0},
        {SIGHT_BLOCK, 48, 2, 1, 8, 8, 1, false, 5},
        {SIGHT_DIFFUSION, 64, 1, 2, 24, 4, .2f, true, 0},
        {SIGHT_RANDOM, 40, 1, 5, 33, 0, .2f, true, 1},
        {SIGHT_NOTHING, 20, 1, 2, 8, 0, 1, false, 0},
        {SIGHT_NOTHING, 20, 1, 2, 8, 0, 1, true, 0},
    };
    const shape large[] = {
        {SIGHT_CAUSAL, 300, 1, 1, 64, 180, .125f, false, 0},
        {SIGHT_CAUSAL, 140, 2, 4, 80, 90, .1f, true, 2},
        {SIGHT_CAUSAL, 90, 1, 40, 17, 50, .3f, false, 0}, /* more heads than a tile has rows */
        {SIGHT_CAUSAL, 200, 1, 1, 31, 6, .3f, false, 0},  /* many small documents */
        {SIGHT_WINDOW, 250, 1, 2, 64, 70, .125f, true, 0},
        {SIGHT_BLOCK, 130, 1, 2, 128, 32, .09f, false, 0},
        {SIGHT_DIFFUSION, 320, 1, 1, 32, 4, .2f, false, 7},
        {SIGHT_DIFFUSION, 192, 2, 2, 40, 32, .2f, true, 0},
        {SIGHT_RANDOM, 200, 2, 3, 12, 0, 5, true, 0}, /* weights that underflow */
    };
    for (int64_t i = 0; i < CMOEI_COUNT(small); i++)
        check(&c, small[i], true);
    for (int64_t i = 0; i < CMOEI_COUNT(large); i++)
        check(&c, large[i], false);
    check_nan(&c, SIGHT_CAUSAL);
    check_nan(&c, SIGHT_WINDOW);
    check_nan(&c, SIGHT_DIFFUSION);
    check_nan(&c, SIGHT_RANDOM);
    return kc_report(&c, "kernels_attention_rows");
}
