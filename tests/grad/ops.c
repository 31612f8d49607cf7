/* SPDX-License-Identifier: MIT
 *
 * ops.c - gradients of the small operations against finite differences.
 *
 * Forward is written down here once more, in double, as a function of double inputs; the loss is the
 * sum of its outputs times the dout that backward is given.  Central differences with h = 1e-4 are off
 * by h^2 / 6 of the third derivative and by 1e-16 / h of the loss, together far below 1e-6 of the
 * largest gradient for inputs of size 1; float32 rounds sums of at most 100 terms to about 1e-5 of
 * it.  A wrong factor or sign anywhere is off by the gradient itself.
 */
#include "kernels/kc.h"

#include "cmoe/cmoe.h"

enum { MOST = 4096, INPUTS = 4 };

typedef struct task task;
typedef double (*loss_fn)(const task *t);

/* Inputs as backward reads them, and as forward perturbs them. */
struct task {
    kc *c;
    cmoe_stream *s;
    int64_t rows, hidden;
    float *in[INPUTS], *dout;
    double *x[INPUTS];
    int64_t n[INPUTS];
    int64_t inputs;
    float offset, limit;
    bool pairs, one;
    const int32_t *ids;
    int64_t vocab;
};

/* ---- forward, in double ---------------------------------------------------------------------- */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double rms_loss(const task *t)
{
    double loss = 0;
    for (int64_t r = 0; r < t->rows; r++) {
        const double *x = t->x[0] + r * t->hidden;
        double square = 0;
        for (int64_t h = 0; h < t->hidden; h++)
            square += x[h] * x[h];
        const double inverse = 1 / sqrt(square / (double)t->hidden + 1e-6);
        for (int64_t h = 0; h < t->hidden; h++)
            loss += t->dout[r * t->hidden + h] * x[h] * inverse * (t->offset + t->x[1][h]);
    }
    return loss;
}

static double layer_loss(const task *t)
{
    double loss = 0;
    const double n = (double)t->hidden;
    for (int64_t r = 0; r < t->rows; r++) {
        const double *x = t->x[0] + r * t->hidden;
        double mean = 0, square = 0;
        for (int64_t h = 0; h < t->hidden; h++)
            mean += x[h] / n;
        for (int64_t h = 0; h < t->hidden; h++)
            square += (x[h] - mean) * (x[h] - mean) / n;
        for (int64_t h = 0; h < t->hidden; h++)
            loss += t->dout[r * t->hidden + h] *
                    ((x[h] - mean) / sqrt(square + 1e-3) * t->x[1][h] + t->x[2][h]);
    }
    return loss;
}

static double sigmoid_loss(const task *t)
{
    double loss = 0;
    for (int64_t i = 0; i < t->rows * t->hidden; i++)
        loss += t->dout[i] * t->x[0][i] * sigmoid(t->x[1][t->one ? i / t->hidden : i]);
    return loss;
}

static double silu_loss(const task *t)
{
    double loss = 0;
    for (int64_t i = 0; i < t->rows * t->hidden; i++) {
        const double *row = t->x[0] + i / t->hidden * 2 * t->hidden;
        const int64_t h = i % t->hidden;
        const double gate = row[t->pairs ? 2 * h : h];
        loss += t->dout[i] * gate * sigmoid(gate) * row[t->pairs ? 2 * h + 1 : t->hidden + h];
    }
    return loss;
}

static double clip_loss(const task *t)
{
    double loss = 0;
    for (int64_t i = 0; i < t->rows * t->hidden; i++)
        loss += t->dout[i] * fmin(fmax(t->x[0][i], -t->limit), t->limit);
    return loss;
}

static double embedding_loss(const task *t)
{
    double loss = 0;
    for (int64_t i = 0; i < t->rows * t->hidden; i++)
        loss += t->dout[i] * t->x[0][t->ids[i / t->hidden] * t->hidden + i % t->hidden] * t->offset;
    return loss;
}

/* dout [rows] is the scale of a token. */
static double entropy_loss(const task *t)
{
    double loss = 0;
    for (int64_t r = 0; r < t->rows; r++) {
        const double *x = t->x[0] + r * t->hidden;
        double z = 0;
        for (int64_t v = 0; v < t->hidden; v++)
            z += exp(x[v]);
        if (t->ids[r] >= 0) loss += t->dout[r] * (log(z) - x[t->ids[r]]);
    }
    return loss;
}

/* ---- comparing ------------------------------------------------------------------------------- */

static task begin(kc *c, cmoe_stream *s, const char *what, int64_t rows, int64_t hidden)
{
    kc_begin(c, "%s %dx%d", what, (int)rows, (int)hidden);
    return (task){.c = c, .s = s, .rows = rows, .hidden = hidden};
}

static float *input(task *t, int64_t n)
{
    const int64_t i = t->inputs++;
    t->n[i] = n;
    t->in[i] = kc_f32s(t->c, n);
    t->x[i] = kc_out(t->c, n * (int64_t)sizeof(double));
    return t->in[i];
}

static void differences(task *t, loss_fn loss, float *const *gradient)
{
    static double want[INPUTS][MOST];
    const double step = 1e-4;
    for (int64_t i = 0; i < t->inputs; i++) {
        for (int64_t j = 0; j < t->n[i]; j++)
            t->x[i][j] = t->in[i][j];
    }
    for (int64_t i = 0; i < t->inputs; i++) {
        double most = 0;
        for (int64_t j = 0; j < t->n[i]; j++) {
            t->x[i][j] += step;
            const double above = loss(t);
            t->x[i][j] -= 2 * step;
            want[i][j] = (above - loss(t)) / (2 * step);
            t->x[i][j] = t->in[i][j];
            most = fmax(most, fabs(want[i][j]));
        }
        for (int64_t j = 0; j < t->n[i]; j++)
            kc_near(t->c,
                    i == 0   ? "first input"
                    : i == 1 ? "second"
                             : "third",
                    j, gradient[i][j], want[i][j], 2e-5 * most + 1e-6);
    }
    kc_end(t->c);
}

static void must(const task *t, cmoe_status status, const cmoe_error *err)
{
    if (status != CMOE_OK) kc_fail(t->c, "%s", err->text);
}

static cmoe_view of(const float *p, int64_t n, int64_t h)
{
    return cmoe_view_2d(p, CMOE_F32, n, h);
}

static cmoe_view_mut to(float *p, int64_t n, int64_t h)
{
    return cmoe_view_mut_2d(p, CMOE_F32, n, h);
}

/* Two units: the first third of the tokens, and the others. */
static cmoe_units units(int64_t tokens, int64_t *first)
{
    first[0] = 0, first[1] = tokens / 3, first[2] = tokens;
    return (cmoe_units){2, first};
}

/* ---- operations ------------------------------------------------------------------------------ */

static void norms(kc *c, cmoe_stream *s, int64_t n, int64_t h, bool layer, float offset)
{
    task t = begin(c, s, layer ? "layer_norm" : offset != 0 ? "rms_norm, 1 + w" : "rms_norm", n, h);
    const float *x = input(&t, n * h), *w = input(&t, h);
    if (layer) input(&t, h);
    t.dout = kc_f32s(c, n * h), t.offset = offset;
    float *dx = kc_out(c, n * h * 4), *dw = kc_out(c, h * 4), *db = kc_out(c, h * 4);
    int64_t first[3];
    const cmoe_units u = units(n, first);
    cmoe_error err = {0};
    const int64_t bytes = n * 16 + 64;
    cmoe_arena a = cmoe_arena_make(kc_out(c, bytes), bytes);
    cmoe_rms_norm_options o;
    cmoe_rms_norm_options_default(&o, sizeof o);
    o.weight_offset = offset;
    const cmoe_view vw = cmoe_view_1d(w, CMOE_F32, h), none = cmoe_view_none();
    const cmoe_view_mut mw = cmoe_view_mut_1d(dw, CMOE_F32, h);
    must(&t,
         layer ? cmoe_layer_norm_backward(s, 1e-3f, of(x, n, h), vw, of(t.dout, n, h), none, &u,
                                          to(dx, n, h), mw, cmoe_view_mut_1d(db, CMOE_F32, h), &a,
                                          &err)
               : cmoe_rms_norm_backward(s, &o, of(x, n, h), vw, of(t.dout, n, h), none, &u,
                                        to(dx, n, h), mw, &a, &err),
         &err);
    differences(&t, layer ? layer_loss : rms_loss, (float *[]){dx, dw, db});
}

static void sigmoids(kc *c, cmoe_stream *s, int64_t n, int64_t h, bool one)
{
    task t = begin(c, s, one ? "sigmoid_mul, one gate" : "sigmoid_mul", n, h);
    const int64_t gates = one ? 1 : h;
    const float *x = input(&t, n * h), *gate = input(&t, n * gates);
    t.dout = kc_f32s(c, n * h), t.one = one;
    float *dx = kc_out(c, n * h * 4), *dgate = kc_out(c, n * gates * 4);
    cmoe_error err = {0};
    must(&t,
         cmoe_sigmoid_mul_backward(s, of(x, n, h), of(gate, n, gates), of(t.dout, n, h),
                                   to(dx, n, h), to(dgate, n, gates), &err),
         &err);
    differences(&t, sigmoid_loss, (float *[]){dx, dgate});
}

static void silus(kc *c, cmoe_stream *s, int64_t n, int64_t h, bool pairs)
{
    task t = begin(c, s, pairs ? "silu_mul, pairs" : "silu_mul", n, h);
    const float *x = input(&t, n * 2 * h);
    t.dout = kc_f32s(c, n * h), t.pairs = pairs;
    float *dx = kc_out(c, n * 2 * h * 4);
    cmoe_error err = {0};
    must(
        &t,
        cmoe_silu_mul_backward(s, of(x, n, 2 * h), pairs, of(t.dout, n, h), to(dx, n, 2 * h), &err),
        &err);
    differences(&t, silu_loss, (float *[]){dx});
}

static void clips(kc *c, cmoe_stream *s, int64_t n, int64_t h)
{
    task t = begin(c, s, "clip", n, h);
    float *x = input(&t, n * h);
    for (int64_t i = 0; i < n * h; i++) /* a difference must not reach over the edge */
        x[i] += fabsf(fabsf(x[i]) - .8f) < .01f ? .1f : 0;
    t.dout = kc_f32s(c, n * h), t.limit = .8f;
    float *dx = kc_out(c, n * h * 4);
    cmoe_error err = {0};
    must(&t, cmoe_clip_backward(s, of(x, n, h), t.limit, of(t.dout, n, h), to(dx, n, h), &err),
         &err);
    differences(&t, clip_loss, (float *[]){dx});
}

static void embeddings(kc *c, cmoe_stream *s, int64_t n, int64_t h, int64_t vocab)
{
    task t = begin(c, s, "embedding", n, h);
    input(&t, vocab * h);
    t.dout = kc_f32s(c, n * h), t.offset = 1.5f;
    const int32_t *ids = t.ids = kc_i32s(c, n, 0, (int32_t)vocab / 2);
    float *dtable = kc_out(c, vocab * h * 4);
    const int64_t bytes = (n + vocab) * 8 + 256;
    cmoe_arena a = cmoe_arena_make(kc_out(c, bytes), bytes);
    int64_t first[3];
    const cmoe_units u = units(n, first);
    cmoe_error err = {0};
    must(&t,
         cmoe_embedding_backward(s, cmoe_view_1d(ids, CMOE_I32, n), of(t.dout, n, h), t.offset, &u,
                                 to(dtable, vocab, h), &a, &err),
         &err);
    differences(&t, embedding_loss, (float *[]){dtable});
}

static void entropies(kc *c, cmoe_stream *s, int64_t n, int64_t vocab)
{
    task t = begin(c, s, "cross_entropy", n, vocab);
    const float *x = input(&t, n * vocab);
    t.dout = kc_f32s(c, n);
    const int32_t *ids = t.ids = kc_i32s(c, n, -1, (int32_t)vocab - 1);
    float *dx = kc_out(c, n * vocab * 4);
    cmoe_error err = {0};
    must(&t,
         cmoe_cross_entropy(s, of(x, n, vocab), cmoe_view_1d(ids, CMOE_I32, n),
                            cmoe_view_1d(t.dout, CMOE_F32, n), cmoe_view_mut_none(),
                            to(dx, n, vocab), &err),
         &err);
    differences(&t, entropy_loss, (float *[]){dx});
}

int main(void)
{
    static kc c;
    cmoe_ctx *ctx = NULL;
    cmoe_stream *s = NULL;
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 2;
    if (cmoe_ctx_create(&ctx, &o, &err) != CMOE_OK || cmoe_stream_create(&s, ctx, &err) != CMOE_OK)
        return printf("%s\n", err.text), 2;
    const int64_t shapes[][2] = {{1, 1}, {1, 7}, {5, 3}, {4, 33}, {9, 40}};
    for (int64_t i = 0; i < CMOEI_COUNT(shapes); i++) {
        const int64_t n = shapes[i][0], h = shapes[i][1];
        norms(&c, s, n, h, false, 0), norms(&c, s, n, h, false, 1), norms(&c, s, n, h, true, 0);
        sigmoids(&c, s, n, h, false), sigmoids(&c, s, n, h, true);
        silus(&c, s, n, h, false), silus(&c, s, n, h, true);
        clips(&c, s, n, h);
        embeddings(&c, s, n, h, 2), embeddings(&c, s, n, h, 11);
        entropies(&c, s, n, h);
    }
    cmoe_stream_free(s);
    cmoe_ctx_free(ctx);
    return kc_report(&c, "grad_ops");
}
