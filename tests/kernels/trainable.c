/* SPDX-License-Identifier: MIT
 *
 * trainable.c - forward, dx and dw of trainable weights against sums in double.
 *
 * Random cases over everything that a call can be: experts without rows or with all of them, parts,
 * ranks 0 to 64, weights of every number format, transposed and strided, packed and borrowed, rows by
 * token and by group, padding, units, accumulation, every instruction set, 1 to 3 threads.
 *
 * Bounds are derived.  A chain of n fused multiply-adds is off by at most n * 2^-24 * sum |p|; allow
 * twice that, and the smallest normal number where a product may be flushed (vdpbf16ps).  What enters
 * a second sum with an error of its own brings error * |factor|.
 */
#include "kc.h"

#include "cmoe/cmoe.h"

enum { PARTS_MOST = 3 };

typedef struct tensor {
    cmoe_view view;
    double *values; /* [d0, d1, d2] what the view holds */
} tensor;

typedef struct problem {
    kc *c;
    cmoe_ctx *ctx;
    cmoe_stream *stream;
    int32_t format, borrow, grouped_x, grouped_dy, accumulate;
    int64_t E, N, K, rank, T, topk, R, count;
    bool with_groups;
    cmoe_groups groups;
    int64_t units, bounds[CMOE_UNITS_MOST + 1];
    cmoe_part parts[PARTS_MOST];
    tensor w[PARTS_MOST], scale[PARTS_MOST], bias[PARTS_MOST], a[PARTS_MOST], b[PARTS_MOST];
    int64_t at[PARTS_MOST + 1], rank_at[PARTS_MOST + 1];
    float *x, *dy; /* [T or R, K] [T or R, N] */
    int64_t x_stride, dy_stride;
} problem;

/* Memory of one case. */
static void *blocks[512];
static int block_count;

static void *get(int64_t bytes)
{
    void *p = calloc(1, (size_t)bytes + 8);
    if (!p || block_count == 512) exit(2);
    return blocks[block_count++] = p;
}

static void release(void)
{
    while (block_count > 0)
        free(blocks[--block_count]);
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* Random values in a random layout: dimensions in any order, gaps, an odd address. */
static tensor draw(problem *p, int32_t dtype, int64_t d0, int64_t d1, int64_t d2, double size)
{
    kc *c = p->c;
    const int64_t dims[3] = {d0, d1, d2};
    const int32_t rank = d2 < 0 ? 2 : 3;
    const int64_t n = d0 * d1 * (rank == 3 ? d2 : 1), bytes = cmoe_dtype_bytes(dtype);
    tensor t = {.values = get(n * 8)};
    t.view = cmoe_view_make(NULL, dtype, rank, dims);
    const bool swap = kc_int(c, 0, 2) == 0;
    const int64_t inner = rank - 1, outer = rank - 2, gap = kc_int(c, 0, 1) * kc_int(c, 0, 5),
                  step = kc_int(c, 0, 5) ? 1 : 2;
    const int64_t fast = swap ? outer : inner, slow = swap ? inner : outer;
    t.view.strides[fast] = step;
    t.view.strides[slow] = dims[fast] * step + gap;
    if (rank == 3) t.view.strides[0] = dims[slow] * t.view.strides[slow] + gap;
    const int64_t all =
        (rank == 3 ? d0 * t.view.strides[0] : dims[slow] * t.view.strides[slow]) + 1;
    const int64_t odd = kc_int(c, 0, 3);
    char *data = (char *)get(all * bytes + odd) + odd;
    t.view.data = data;
    for (int64_t i = 0; i < n; i++) {
        float v = (float)(size * (double)kc_normal(c));
        const int64_t j[3] = {rank == 3 ? i / (d1 * d2) : i / d1, rank == 3 ? i / d2 % d1 : i % d1,
                              rank == 3 ? i % d2 : 0};
        int64_t offset = 0;
        for (int32_t r = 0; r < rank; r++)
            offset += j[r] * t.view.strides[r];
        if (dtype == CMOE_I8) {
            const int8_t q = (int8_t)kc_int(c, -128, 127);
            memcpy(data + offset, &q, 1);
            t.values[i] = q;
            continue;
        }
        cmoei_store_f32(data + offset * bytes, dtype, 1, &v, 1);
        cmoei_load_f32(&v, data + offset * bytes, dtype, 1, 1);
        t.values[i] = v;
    }
    return t;
}

static float rounded(const problem *p, double v)
{
    return p->format == CMOE_BF16 ? cmoei_round_bf16((float)v) : (float)v;
}

/* What the product sees of w, s * b and a. */
static double w_of(const problem *p, int64_t i, int64_t e, int64_t n, int64_t k)
{
    const int64_t size = p->at[i + 1] - p->at[i];
    double v = p->w[i].values[(e * size + n) * p->K + k];
    if (p->w[i].view.dtype == CMOE_I8) v = (float)v * (float)p->scale[i].values[e * size + n];
    return rounded(p, v);
}

static double b_of(const problem *p, int64_t i, int64_t e, int64_t n, int64_t r)
{
    const int64_t size = p->at[i + 1] - p->at[i], rank = p->rank_at[i + 1] - p->rank_at[i];
    return rounded(p, (float)p->b[i].values[(e * size + n) * rank + r] * p->parts[i].lora_scale);
}

static double a_of(const problem *p, int64_t i, int64_t e, int64_t r, int64_t k)
{
    const int64_t rank = p->rank_at[i + 1] - p->rank_at[i];
    return rounded(p, p->a[i].values[(e * rank + r) * p->K + k]);
}

/* ---- a case ---------------------------------------------------------------------------------- */

static void draw_parts(problem *p)
{
    static const int32_t dtypes[] = {CMOE_F32, CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F64, CMOE_I8};
    static const int64_t ranks[] = {0, 0, 1, 3, 8, 17, 64};
    static const float scales[] = {0, 1, 0.5f, -2};
    static const int64_t sizes[] = {1, 5, 12, 31, 32, 40, 70};
    kc *c = p->c;
    p->count = kc_int(c, 1, PARTS_MOST);
    p->K = sizes[kc_int(c, 0, 6)];
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t n = sizes[kc_int(c, 0, 6)], rank = ranks[kc_int(c, 0, 6)];
        p->at[i + 1] = p->at[i] + n;
        p->rank_at[i + 1] = p->rank_at[i] + rank;
        p->w[i] = draw(p, dtypes[kc_int(c, 0, 5)], p->E, n, p->K, 1);
        cmoe_part *part = &p->parts[i];
        *part = (cmoe_part){.at = p->at[i], .w = p->w[i].view};
        if (part->w.dtype == CMOE_I8) {
            p->scale[i] = draw(p, CMOE_F32, p->E, n, -1, 0.01);
            part->scale = p->scale[i].view;
        }
        if (kc_int(c, 0, 1)) {
            p->bias[i] = draw(p, CMOE_F32, p->E, n, -1, 1);
            part->bias = p->bias[i].view;
        }
        if (!rank) continue;
        p->a[i] = draw(p, kc_int(c, 0, 1) ? CMOE_F32 : CMOE_BF16, p->E, rank, p->K, 1);
        p->b[i] = draw(p, CMOE_F32, p->E, n, rank, 1);
        part->a = p->a[i].view;
        part->b = p->b[i].view;
        part->lora_scale = scales[kc_int(c, 0, 3)];
    }
    p->N = p->at[p->count];
    p->rank = p->rank_at[p->count];
}

static void draw_groups(problem *p)
{
    kc *c = p->c;
    const int64_t how = kc_int(c, 0, 3), block = kc_int(c, 0, 1) ? 1 : 4;
    int32_t *ids = get(p->T * p->topk * 4);
    for (int64_t i = 0; i < p->T * p->topk; i++)
        ids[i] = how == 0   ? (int32_t)(p->E - 1)                         /* one owns all */
                 : how == 1 ? (int32_t)(kc_int(c, 0, (p->E - 1) / 2) * 2) /* every other has none */
                            : (int32_t)kc_int(c, -1, p->E);
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = p->E;
    o.block = block;
    int64_t bytes = 0;
    cmoe_align_bytes(&o, p->T, p->topk, &bytes, NULL, NULL);
    cmoe_arena arena = cmoe_arena_make(get(bytes), bytes);
    if (cmoe_align(p->stream, &o, cmoe_view_2d(ids, CMOE_I32, p->T, p->topk), &p->groups, &arena,
                   NULL) != CMOE_OK)
        exit(2);
    p->R = p->groups.first[p->E];
}

static problem draw_problem(kc *c, cmoe_ctx *ctx, cmoe_stream *stream)
{
    static const int64_t tokens[] = {0, 1, 2, 13, 60, 130, 300};
    problem p = {.c = c, .ctx = ctx, .stream = stream};
    p.format = kc_int(c, 0, 1) ? CMOE_F32 : CMOE_BF16;
    p.borrow = (int32_t)kc_int(c, 0, 1);
    p.with_groups = kc_int(c, 0, 2) > 0;
    p.E = p.with_groups ? kc_int(c, 1, 5) : 1;
    p.T = p.R = tokens[kc_int(c, 0, 6)];
    p.topk = p.with_groups ? kc_int(c, 1, 3) : 1;
    p.grouped_x = (int32_t)kc_int(c, 0, 1);
    p.grouped_dy = (int32_t)kc_int(c, 0, 1);
    draw_parts(&p);
    if (p.with_groups) draw_groups(&p);
    p.units = 1;
    p.accumulate = kc_int(c, 0, 2) == 0;
    if (!p.accumulate) p.units = (int64_t)1 << kc_int(c, 0, 6);
    for (int64_t u = 1; u <= p.units; u++)
        p.bounds[u] =
            u == p.units ? p.T : p.bounds[u - 1] + kc_int(c, 0, (p.T - p.bounds[u - 1]) / 2);
    p.x_stride = p.K + kc_int(c, 0, 3);
    p.dy_stride = p.N + kc_int(c, 0, 3);
    const int64_t rows = CMOEI_MAX(p.T, p.R);
    p.x = get((rows + 1) * p.x_stride * 4);
    p.dy = get((rows + 1) * p.dy_stride * 4);
    for (int64_t i = 0; i < rows * p.x_stride; i++)
        p.x[i] = kc_normal(c);
    for (int64_t i = 0; i < rows * p.dy_stride; i++)
        p.dy[i] = kc_normal(c);
    return p;
}

static int64_t token_of(const problem *p, int64_t r)
{
    return p->with_groups ? p->groups.slots[r] / p->groups.topk : r;
}

static const float *row_of(const problem *p, bool dy, int64_t r)
{
    const int64_t i = (dy ? p->grouped_dy : p->grouped_x) ? r : token_of(p, r);
    return dy ? p->dy + i * p->dy_stride : p->x + i * p->x_stride;
}

static cmoe_view rows_view(const problem *p, bool dy)
{
    const bool grouped = p->with_groups && (dy ? p->grouped_dy : p->grouped_x);
    cmoe_view v =
        cmoe_view_2d(dy ? p->dy : p->x, CMOE_F32, grouped ? p->R : p->T, dy ? p->N : p->K);
    v.strides[0] = dy ? p->dy_stride : p->x_stride;
    return v;
}

/* ---- what it must be ------------------------------------------------------------------------- */

/* u = x a^T and v = dy s b^T of a row, and what float32 (and rounding to bf16) may add. */
static double narrow(const problem *p, bool dy, int64_t i, int64_t e, int64_t r, const float *row,
                     double *error)
{
    const int64_t n = dy ? p->at[i + 1] - p->at[i] : p->K;
    double sum = 0, mag = 0;
    for (int64_t k = 0; k < n; k++) {
        const double v = rounded(p, row[dy ? p->at[i] + k : k]),
                     m = dy ? b_of(p, i, e, k, r) : a_of(p, i, e, r, k);
        sum += v * m;
        mag += fabs(v * m);
    }
    *error = (double)n * (FLT_EPSILON * mag + 2 * FLT_MIN);
    return sum;
}

typedef struct value {
    double want, magnitude, error;
} value;

static void add(value *v, double x, double error_x, double y)
{
    v->want += x * y;
    v->magnitude += fabs(x * y);
    v->error += error_x * fabs(y);
}

/* Element n of a forward row, k of a dx row. */
static value product(const problem *p, bool back, int64_t e, int64_t j, const float *row)
{
    value v = {0};
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t n = p->at[i + 1] - p->at[i], local = j - p->at[i];
        if (!back && (local < 0 || local >= n)) continue;
        for (int64_t k = 0; k < (back ? n : p->K); k++)
            add(&v, rounded(p, row[back ? p->at[i] + k : k]), 0,
                back ? w_of(p, i, e, k, j) : w_of(p, i, e, local, k));
        for (int64_t r = 0; r < p->rank_at[i + 1] - p->rank_at[i]; r++) {
            double error, u = narrow(p, back, i, e, r, row, &error);
            if (p->format == CMOE_BF16) error += 0x1p-8 * (fabs(u) + error);
            add(&v, u, error, back ? a_of(p, i, e, r, j) : b_of(p, i, e, local, r));
        }
        if (!back && p->bias[i].values) {
            v.want += p->bias[i].values[e * n + local];
            v.magnitude += fabs(p->bias[i].values[e * n + local]);
        }
    }
    const double terms = (double)((back ? p->N : p->K) + p->rank + 1);
    v.error += terms * (FLT_EPSILON * (v.magnitude + v.error) + 2 * FLT_MIN);
    return v;
}

static void check_product(const problem *p, const cmoe_trainable *t, cmoe_arena *arena, bool back)
{
    const int64_t width = back ? p->K : p->N, stride = width + 1;
    float *out = kc_out(p->c, (p->R + 1) * stride * 4);
    cmoe_view_mut view = cmoe_view_mut_2d(out, CMOE_F32, p->R, width);
    view.strides[0] = stride;
    cmoe_error err = {0};
    const cmoe_groups *g = p->with_groups ? &p->groups : NULL;
    const cmoe_status status = back ? cmoe_trainable_dx(p->stream, t, rows_view(p, true),
                                                        p->grouped_dy, g, view, arena, &err)
                                    : cmoe_trainable_forward(p->stream, t, rows_view(p, false),
                                                             p->grouped_x, g, view, arena, &err);
    if (status != CMOE_OK) kc_fail(p->c, "%s: %s", back ? "dx" : "forward", err.text);
    for (int64_t e = 0; e < p->E; e++) {
        const int64_t begin = g ? g->first[e] : 0, end = g ? g->first[e + 1] : p->R;
        for (int64_t r = begin; r < end; r++) {
            if (g && g->slots[r] < 0) continue;
            for (int64_t j = r % 7; j < width; j += 7) {
                const value v = product(p, back, e, j, row_of(p, back, r));
                kc_near(p->c, back ? "dx" : "out", r * width + j, out[r * stride + j], v.want,
                        v.error);
            }
        }
    }
    if (arena->used) kc_fail(p->c, "%lld bytes of scratch kept", (long long)arena->used);
}

/* ---- gradients ------------------------------------------------------------------------------- */

/* A random layout for an output of [d0, d1, d2], which holds 0.5 everywhere. */
static cmoe_view_mut output(problem *p, int64_t d0, int64_t d1, int64_t d2)
{
    tensor t = draw(p, CMOE_F32, d0, d1, d2, 1);
    const int64_t rank = t.view.rank;
    cmoe_view_mut v =
        cmoe_view_mut_make((void *)(uintptr_t)t.view.data, CMOE_F32, (int32_t)rank, t.view.dims);
    memcpy(v.strides, t.view.strides, sizeof v.strides);
    for (int64_t i = 0; i < d0; i++) {
        for (int64_t j = 0; j < d1; j++) {
            for (int64_t k = 0; k < (rank == 3 ? d2 : 1); k++) {
                const float half = 0.5f;
                memcpy((char *)cmoei_at_mut(&v, i, j) + k * (rank == 3 ? v.strides[2] : 0) * 4,
                       &half, 4);
            }
        }
    }
    return v;
}

static float element(const cmoe_view_mut *v, int64_t i, int64_t j, int64_t k)
{
    float x;
    memcpy(&x, (const char *)cmoei_at_mut(v, i, j) + k * (v->rank == 3 ? v->strides[2] : 0) * 4, 4);
    return x;
}

/* Sum over the rows of expert e of a[r] * b[r], each with an error of its own. */
static void check_sum(const problem *p, const char *what, float got, int64_t e, const double *a,
                      const double *a_error, const double *b, const double *b_error)
{
    const cmoe_groups *g = p->with_groups ? &p->groups : NULL;
    const int64_t begin = g ? g->first[e] : 0, end = g ? g->first[e + 1] : p->R;
    value v = {.want = p->accumulate ? 0.5 : 0, .magnitude = p->accumulate ? 0.5 : 0};
    for (int64_t r = begin; r < end; r++) {
        if (g && g->slots[r] < 0) continue;
        const double ae = a_error ? a_error[r] : 0, be = b_error ? b_error[r] : 0;
        add(&v, a[r], ae, b[r]);
        v.error += be * (fabs(a[r]) + ae);
    }
    v.error += (double)(end - begin + 1) * (FLT_EPSILON * (v.magnitude + v.error) + FLT_MIN);
    kc_near(p->c, what, e, got, v.want, v.error);
}

typedef struct columns {
    double *x, *dy, *u, *v, *u_error, *v_error, *one; /* [R] */
} columns;

static void check_part(const problem *p, int64_t i, const cmoe_part_gradient *g, columns *s)
{
    const int64_t n = p->at[i + 1] - p->at[i], rank = p->rank_at[i + 1] - p->rank_at[i];
    const bool low = rank > 0;
    for (int64_t e = 0; e < p->E; e++) {
        for (int turn = 0; turn < 20; turn++) {
            const int64_t j = kc_int(p->c, 0, n - 1), k = kc_int(p->c, 0, p->K - 1),
                          q = low ? kc_int(p->c, 0, rank - 1) : 0;
            for (int64_t r = 0; r < p->R; r++) {
                if (p->with_groups && p->groups.slots[r] < 0) continue;
                const float *x = row_of(p, false, r), *dy = row_of(p, true, r);
                s->x[r] = x[k];
                s->dy[r] = dy[p->at[i] + j];
                s->one[r] = 1;
                if (!low) continue;
                s->u[r] = narrow(p, false, i, e, q, x, &s->u_error[r]) * p->parts[i].lora_scale;
                s->u_error[r] = (s->u_error[r] + fabs(s->u[r]) * FLT_EPSILON) *
                                    fabs((double)p->parts[i].lora_scale) +
                                FLT_EPSILON * fabs(s->u[r]);
                s->v[r] = narrow(p, true, i, e, q, dy, &s->v_error[r]);
            }
            if (g->w.data) check_sum(p, "dW", element(&g->w, e, j, k), e, s->dy, NULL, s->x, NULL);
            if (g->bias.data)
                check_sum(p, "dbias", element(&g->bias, e, j, 0), e, s->dy, NULL, s->one, NULL);
            if (g->a.data)
                check_sum(p, "dA", element(&g->a, e, q, k), e, s->v, s->v_error, s->x, NULL);
            if (g->b.data)
                check_sum(p, "dB", element(&g->b, e, j, q), e, s->dy, NULL, s->u, s->u_error);
        }
    }
}

static void check_dw(problem *p, const cmoe_trainable *t, cmoe_arena *arena)
{
    cmoe_part_gradient g[PARTS_MOST] = {{{0}, {0}, {0}, {0}}};
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t n = p->at[i + 1] - p->at[i], rank = p->rank_at[i + 1] - p->rank_at[i];
        if (kc_int(p->c, 0, 3)) g[i].w = output(p, p->E, n, p->K);
        if (kc_int(p->c, 0, 1)) g[i].bias = output(p, p->E, n, -1);
        if (rank && kc_int(p->c, 0, 3)) g[i].a = output(p, p->E, rank, p->K);
        if (rank && kc_int(p->c, 0, 3)) g[i].b = output(p, p->E, n, rank);
    }
    cmoe_trainable_dw_options o;
    cmoe_trainable_dw_options_default(&o, sizeof o);
    o.dy_grouped = p->grouped_dy;
    o.x_grouped = p->grouped_x;
    o.accumulate = p->accumulate;
    const cmoe_units units = {p->units, p->bounds};
    cmoe_error err = {0};
    if (cmoe_trainable_dw(p->stream, t, &o, rows_view(p, true), rows_view(p, false),
                          p->with_groups ? &p->groups : NULL, &units, g, arena, &err) != CMOE_OK)
        kc_fail(p->c, "dw: %s", err.text);
    double *memory = get((7 * p->R + 1) * 8);
    columns s = {memory,
                 memory + p->R,
                 memory + 2 * p->R,
                 memory + 3 * p->R,
                 memory + 4 * p->R,
                 memory + 5 * p->R,
                 memory + 6 * p->R};
    for (int64_t i = 0; i < p->count; i++)
        check_part(p, i, &g[i], &s);
}

static void check(kc *c, cmoe_ctx *ctx, cmoe_stream *stream, const char *isa, int threads, int i)
{
    kc_begin(c, "trainable/%s threads=%d case %d", isa, threads, i);
    problem p = draw_problem(c, ctx, stream);
    snprintf(c->title + strlen(c->title), sizeof c->title - strlen(c->title),
             " %s E=%d N=%d K=%d rank=%d T=%d topk=%d R=%d units=%d borrow=%d",
             cmoe_dtype_name(p.format), (int)p.E, (int)p.N, (int)p.K, (int)p.rank, (int)p.T,
             (int)p.topk, (int)p.R, (int)p.units, p.borrow);
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    o.format = p.format;
    o.borrow = p.borrow;
    o.rank = p.rank;
    cmoe_trainable *t = NULL;
    cmoe_error err = {0};
    int64_t bytes = 0;
    if (cmoe_trainable_create(&t, ctx, &o, p.E, p.N, p.K, &err) != CMOE_OK ||
        cmoe_trainable_fill(stream, t, p.parts, p.count, &err) != CMOE_OK ||
        cmoe_trainable_bytes(t, p.T, p.R, &bytes, NULL, &err) != CMOE_OK) {
        kc_fail(c, "%s", err.text);
    } else {
        cmoe_arena arena = cmoe_arena_make(malloc((size_t)bytes + 1), bytes);
        check_product(&p, t, &arena, false);
        check_product(&p, t, &arena, true);
        check_dw(&p, t, &arena);
        free(arena.base);
    }
    cmoe_trainable_free(t);
    kc_end(c);
    release();
}

int main(void)
{
    enum { CASES = 60 };
    kc c = {0};
    for (int32_t level = 0; level < cmoe_isa_levels(); level++) {
        uint32_t mask = 0;
        cmoe_isa_mask(cmoe_isa_level_name(level), &mask, NULL);
        if (mask & ~cmoe_cpu_features()) {
            printf("skipped %s: this CPU has not what it needs\n", cmoe_isa_level_name(level));
            continue;
        }
        cmoe_ctx_options o;
        cmoe_ctx_options_default(&o, sizeof o);
        o.isa_mask = mask;
        for (int i = 0; i < CASES; i++) {
            cmoe_ctx *ctx = NULL;
            cmoe_stream *stream = NULL;
            o.threads = 1 + i % 3;
            if (cmoe_ctx_create(&ctx, &o, NULL) != CMOE_OK ||
                cmoe_stream_create(&stream, ctx, NULL) != CMOE_OK)
                return 2;
            check(&c, ctx, stream, cmoe_isa_level_name(level), o.threads, i);
            cmoe_stream_free(stream);
            cmoe_ctx_free(ctx);
        }
    }
    return kc_report(&c, "kernels_trainable");
}
