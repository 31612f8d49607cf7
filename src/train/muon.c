/* SPDX-License-Identifier: MIT
 *
 * muon.c - Muon: the momentum of a matrix, made nearly orthogonal, is the direction it moves in.
 *
 *     m += (g - m) (1 - momentum);  u = g + (m - g) momentum                        (Nesterov)
 *     x = u, transposed if it has more rows than columns;  x /= max(|u|, 1e-7)
 *     5 times:  G = x x^T;  x = 3.4445 x + (-4.7750 G + 2.0315 G G) x
 *     value *= 1 - lr decay;  value -= lr sqrt(max(1, rows / cols)) x               (transposed back)
 *
 * As torch.optim.Muon with adjust_lr_fn "original" (K. Jordan et al., Muon, 2024), but all of it in
 * float32.  The products are outer products of rows, cmoe_grouped_outer: G is symmetric bit by bit (both
 * halves are the same chains), so G G and B x need no transpose, and x x^T needs the one of x.  Every
 * element is a chain of a fixed order: any number of threads gives the same bits.
 */
#include "muon.h"

#include <math.h>
#include <string.h>

#include "cmoe/matmul.h"
#include "cmoe/ops.h"

static const float A = 3.4445f, B = -4.7750f, C = 2.0315f;
static const double LEAST_NORM = 1e-7;
enum { STEPS = 5 };

/* ---- memory ------------------------------------------------------------------------------------ */

/* [n, k] from `rows` rows. */
static cmoe_status scratch_for(cmoe_ctx *ctx, int64_t rows, int64_t n, int64_t k, int64_t *most,
                               cmoe_error *err)
{
    int64_t host;
    CMOEI_TRY(cmoe_grouped_outer_bytes(ctx, 1, rows, n, k, &host, NULL, err));
    *most = CMOEI_MAX(*most, host);
    return CMOE_OK;
}

cmoe_status cmoei_muon_create(cmoei_muon *x, cmoe_ctx *ctx, const cmoei_trained *tensors,
                              int64_t count, cmoe_error *err)
{
    int64_t matrix = 0, square = 0, scratch = 0;
    *x = (cmoei_muon){.ctx = ctx};
    for (int64_t i = 0; i < count; i++) {
        const cmoei_trained *t = &tensors[i];
        if (!t->orthogonal) continue;
        const int64_t r = CMOEI_MIN(t->rows, t->cols), c = CMOEI_MAX(t->rows, t->cols);
        matrix = CMOEI_MAX(matrix, r * c);
        square = CMOEI_MAX(square, r * r);
        CMOEI_TRY(scratch_for(ctx, c, r, r, &scratch, err));
        CMOEI_TRY(scratch_for(ctx, r, r, r, &scratch, err));
        CMOEI_TRY(scratch_for(ctx, r, r, c, &scratch, err));
    }
    if (matrix == 0) return CMOE_OK;
    cmoei_carver sizes = cmoei_carver_dry();
    for (int pass = 0; pass < 2; pass++) {
        cmoe_arena all = cmoe_arena_make(x->memory, x->bytes);
        cmoei_carver c = pass == 0 ? sizes : cmoei_carver_open(&all);
        x->x = cmoei_carve_array(&c, matrix, sizeof(float));
        x->y = cmoei_carve_array(&c, matrix, sizeof(float));
        x->gram = cmoei_carve_array(&c, square, sizeof(float));
        x->b = cmoei_carve_array(&c, square, sizeof(float));
        x->scratch = cmoe_arena_make(cmoei_carve(&c, scratch), scratch);
        CMOEI_TRY(cmoei_carver_check(&c, "muon", err));
        if (pass > 0) break;
        x->bytes = cmoei_carver_bytes(&c);
        CMOEI_TRY(cmoei_alloc(ctx, x->bytes, "muon", &x->memory, err));
    }
    return CMOE_OK;
}

void cmoei_muon_free(cmoei_muon *x)
{
    if (x->memory) cmoei_free(x->ctx, x->memory, x->bytes);
    x->memory = NULL;
}

/* ---- passes over memory ------------------------------------------------------------------------ */

typedef struct pass {
    const float *in;
    float *out, *m;
    int64_t n, cols; /* elements; of a row */
    float f[3];      /* factors */
    void (*run)(const struct pass *p, int64_t begin, int64_t end);
    int64_t unit; /* elements that stay together */
} pass;

static void pass_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const pass *p = arg;
    int64_t begin, end;
    (void)team;
    cmoei_split(cmoei_ceil_div(p->n, p->unit), index, count, &begin, &end);
    begin *= p->unit;
    end = CMOEI_MIN(end * p->unit, p->n);
    if (begin < end) p->run(p, begin, end);
}

static void run(cmoe_ctx *ctx, pass *p)
{
    enum { WORTH = 1 << 14 }; /* elements for which a thread is woken */
    cmoei_region(ctx, p->n / WORTH, pass_task, p);
}

/* in: gradient; out: u.  f: scale, 1 - momentum, momentum. */
static void momentum(const pass *p, int64_t i, int64_t end)
{
    const float *restrict gradient = p->in;
    float *restrict out = p->out, *restrict m = p->m;
    const float scale = p->f[0], mix = p->f[1], nesterov = p->f[2];
    for (; i < end; i++) {
        const float g = gradient[i] * scale;
        m[i] += (g - m[i]) * mix;
        out[i] = g + (m[i] - g) * nesterov;
    }
}

/* out = f[0] * out + f[1] * in */
static void combine(const pass *p, int64_t i, int64_t end)
{
    const float *restrict in = p->in;
    float *restrict out = p->out;
    const float a = p->f[0], b = p->f[1];
    for (; i < end; i++)
        out[i] = a * out[i] + b * in[i];
}

/* out = in / f[0] */
static void divide(const pass *p, int64_t i, int64_t end)
{
    const float *restrict in = p->in;
    float *restrict out = p->out;
    const float by = p->f[0];
    for (; i < end; i++)
        out[i] = in[i] / by;
}

/* out [cols, rows] = in [rows, cols] transposed, / f[0].  A tile's lines stay in L1. */
static void transpose(const pass *p, int64_t begin, int64_t end)
{
    enum { TILE = 16 };
    const int64_t cols = p->cols, rows = p->n / cols, last = end / cols;
    const float by = p->f[0];
    for (int64_t r = begin / cols; r < last; r += TILE) {
        for (int64_t c = 0; c < cols; c += TILE) {
            for (int64_t j = c; j < CMOEI_MIN(c + TILE, cols); j++) {
                for (int64_t i = r; i < CMOEI_MIN(r + TILE, last); i++)
                    p->out[j * rows + i] = p->in[i * cols + j] / by;
            }
        }
    }
}

static void run_transpose(cmoe_ctx *ctx, const float *in, int64_t rows, int64_t cols, float by,
                          float *out)
{
    pass p = {.in = in,
              .out = out,
              .n = rows * cols,
              .cols = cols,
              .f = {by},
              .run = transpose,
              .unit = 16 * cols};
    run(ctx, &p);
}

enum { BLOCK = 4096 };

static void run_combine(cmoe_ctx *ctx, float *out, float a, const float *in, float b, int64_t n)
{
    pass p = {.in = in, .out = out, .n = n, .f = {a, b}, .run = combine, .unit = BLOCK};
    run(ctx, &p);
}

/* ---- a step ------------------------------------------------------------------------------------ */

/* out [n, k] = a^T b for a [rows, n], b [rows, k] */
static cmoe_status outer(cmoei_muon *x, cmoe_stream *s, const float *a, const float *b,
                         int64_t rows, int64_t n, int64_t k, float *out, cmoe_error *err)
{
    const int64_t dims[3] = {1, n, k};
    return cmoe_grouped_outer(
        s, NULL, cmoe_view_2d(a, CMOE_F32, rows, n), cmoe_view_2d(b, CMOE_F32, rows, k), NULL, NULL,
        cmoe_view_mut_make(out, CMOE_F32, 3, dims), cmoe_view_mut_none(), &x->scratch, err);
}

/* x->x [r, c] becomes nearly orthogonal: singular values end between 0.7 and 1.2. */
static cmoe_status orthogonalize(cmoei_muon *x, cmoe_stream *s, int64_t r, int64_t c,
                                 cmoe_error *err)
{
    for (int i = 0; i < STEPS; i++) {
        run_transpose(x->ctx, x->x, r, c, 1, x->y);
        CMOEI_TRY(outer(x, s, x->y, x->y, c, r, r, x->gram, err));
        CMOEI_TRY(outer(x, s, x->gram, x->gram, r, r, r, x->b, err));
        run_combine(x->ctx, x->b, C, x->gram, B, r * r);
        CMOEI_TRY(outer(x, s, x->b, x->x, r, r, c, x->y, err));
        run_combine(x->ctx, x->x, A, x->y, 1, r * c);
    }
    return CMOE_OK;
}

cmoe_status cmoei_muon_step(cmoei_muon *x, cmoe_stream *s, const cmoei_trained *t,
                            const cmoei_muon_rates *rates, cmoe_error *err)
{
    const int64_t n = t->rows * t->cols;
    const int64_t r = CMOEI_MIN(t->rows, t->cols), c = CMOEI_MAX(t->rows, t->cols);
    double squares;
    if (n == 0) return CMOE_OK;
    pass first = {.in = t->gradient,
                  .out = x->y,
                  .m = t->m,
                  .n = n,
                  .f = {(float)rates->scale, (float)(1 - rates->momentum), (float)rates->momentum},
                  .run = momentum,
                  .unit = BLOCK};
    run(x->ctx, &first);
    CMOEI_TRY(cmoe_sum_squares(s, cmoe_view_1d(x->y, CMOE_F32, n), &squares, err));
    const float norm = (float)fmax(sqrt(squares), LEAST_NORM);
    if (t->rows > t->cols) {
        run_transpose(x->ctx, x->y, t->rows, t->cols, norm, x->x);
    } else {
        pass p = {.in = x->y, .out = x->x, .n = n, .f = {norm}, .run = divide, .unit = BLOCK};
        run(x->ctx, &p);
    }
    CMOEI_TRY(orthogonalize(x, s, r, c, err));
    const float *direction = x->x;
    if (t->rows > t->cols) {
        run_transpose(x->ctx, x->x, r, c, 1, x->y);
        direction = x->y;
    }
    const double rate = rates->lr * sqrt(fmax(1, (double)t->rows / (double)t->cols));
    run_combine(x->ctx, t->value, (float)(1 - rates->lr * rates->decay), direction, (float)-rate,
                n);
    return CMOE_OK;
}
