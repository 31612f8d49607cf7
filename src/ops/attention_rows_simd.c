/* SPDX-License-Identifier: MIT
 *
 * attention_rows_simd.c - attention of whole sequences in tiles of 32 query rows, for AVX2 and
 * AVX-512.
 *
 * A lane is a query row wherever a row has sums of its own: queries are turned to [head_dim, rows],
 * scores are [keys, rows], so maxima, exponentials and sums over keys are vertical and no sum is ever
 * split.  Keys and values are read where they lie, one number for all lanes.  In dk and dv a lane is a
 * dim.  So all five products are one small kernel,
 *
 *     c[i][lane] (+)= sum over n ascending of a[i, n] * b[n][lane]
 *
 *     scores      a = keys   [key, dim]   b = queries [dim, row]
 *     dp          a = values [key, dim]   b = dout    [dim, row]
 *     out, dq     a = values, keys, turned by their strides: [dim, key]   b = p, ds [key, row]
 *     dk, dv      a = ds, p  [key, row]   b = queries, dout [row, dim]
 *
 * that is attention_rows_product.h.  Lanes behind the last row of a tile repeat the first row; nobody
 * reads them.
 */
#include "core/plane.h"
#include "core/vmath.h"
#include "ops/attention_rows_product.h"
#include "ops/attention_rows_tile.h"

void CMOEI_SIMD(cmoei_attention_rows_forward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                              int64_t token, int64_t token_end, void *room);
void CMOEI_SIMD(cmoei_attention_rows_backward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                               const int32_t *tokens, int64_t n, void *room);

enum {
    ROWS = TILE_ROWS,
    KEYS = CMOEI_ATTENTION_ROWS_KEYS,
    LANES = 16, /* rows are taken in such groups, whatever the vector */
};

/* ---- a tile ---------------------------------------------------------------------------------- */

typedef struct work {
    const cmoei_attention_rows_args *a;
    tile t;
    int64_t kv_head, head;     /* head: the first of the tile's */
    int64_t lanes;             /* rows, rounded up to LANES */
    int64_t pad;               /* head_dim, rounded up to LANES */
    float *score;              /* [keys, ROWS] */
    float *grad, *copy;        /* [KEYS, ROWS], [KEYS, head_dim] */
    float *q, *dout, *out;     /* [head_dim, ROWS]; out, dq */
    float *q_rows, *dout_rows; /* [ROWS, pad] */
    uint32_t *seen;            /* [keys] */
    float base[ROWS], dot[ROWS], sum[ROWS];
} work;

static work work_make(const cmoei_attention_rows_args *a, int64_t kv_head, void *room)
{
    work w = {.a = a, .kv_head = kv_head, .pad = cmoei_round_up(a->head_dim, LANES)};
    float *at = room;
    w.score = at, at += a->tokens * ROWS;
    w.grad = at, at += KEYS * ROWS;
    w.copy = at, at += KEYS * a->head_dim;
    w.q = at, at += a->head_dim * ROWS;
    w.dout = at, at += a->head_dim * ROWS;
    w.out = at, at += a->head_dim * ROWS;
    w.q_rows = at, at += w.pad * ROWS;
    w.dout_rows = at, at += w.pad * ROWS;
    w.seen = (uint32_t *)(void *)at;
    return w;
}

/* Lanes behind the last row repeat the first. */
static int64_t row_token(const work *w, int64_t r)
{
    return r < w->t.rows ? w->t.token[r / w->t.heads] : w->t.token[0];
}
static int64_t row_head(const work *w, int64_t r)
{
    return w->head + (r < w->t.rows ? r % w->t.heads : 0);
}
static char *row_at(const work *w, const cmoei_plane *p, int64_t r)
{
    return cmoei_plane_at(p, row_token(w, r), row_head(w, r) * w->a->head_dim);
}

/* [rows, head_dim] of a plane -> [head_dim, ROWS]. */
static void turn_in(const work *w, const cmoei_plane *p, float *dst)
{
    const int64_t dims = w->a->head_dim;
    for (int64_t r = 0; r < w->lanes; r += 8) {
        const char *row[8];
        for (int i = 0; i < 8; i++)
            row[i] = row_at(w, p, r + i);
        int64_t d = 0;
        for (; d + 8 <= dims; d += 8) {
            __m256 x[8];
            VEC_UNROLL
            for (int i = 0; i < 8; i++)
                x[i] = _mm256_loadu_ps((const float *)(const void *)(row[i] + 4 * d));
            vec_turn8(x);
            VEC_UNROLL
            for (int i = 0; i < 8; i++)
                _mm256_storeu_ps(dst + (d + i) * ROWS + r, x[i]);
        }
        for (; d < dims; d++) {
            for (int i = 0; i < 8; i++)
                memcpy(dst + d * ROWS + r + i, row[i] + 4 * d, sizeof *dst);
        }
    }
}

/* And back, the rows that there are. */
static void turn_out(const work *w, const float *src, const cmoei_plane *p)
{
    const int64_t dims = w->a->head_dim;
    for (int64_t r = 0; r < w->t.rows; r += 8) {
        const int64_t rows = CMOEI_MIN(8, w->t.rows - r);
        char *row[8];
        for (int i = 0; i < 8; i++)
            row[i] = row_at(w, p, r + i);
        int64_t d = 0;
        for (; d + 8 <= dims; d += 8) {
            __m256 x[8];
            VEC_UNROLL
            for (int i = 0; i < 8; i++)
                x[i] = _mm256_loadu_ps(src + (d + i) * ROWS + r);
            vec_turn8(x);
            for (int i = 0; i < rows; i++)
                _mm256_storeu_ps((float *)(void *)(row[i] + 4 * d), x[i]);
        }
        for (; d < dims; d++) {
            for (int i = 0; i < rows; i++)
                memcpy(row[i] + 4 * d, src + d * ROWS + r + i, sizeof *src);
        }
    }
}

static void copy_rows(const work *w, const cmoei_plane *p, float *dst)
{
    for (int64_t r = 0; r < w->t.rows; r++) {
        memcpy(dst + r * w->pad, row_at(w, p, r), (size_t)w->a->head_dim * sizeof *dst);
        for (int64_t d = w->a->head_dim; d < w->pad; d++)
            dst[r * w->pad + d] = 0;
    }
}

/* ---- a piece --------------------------------------------------------------------------------- */

/* Up to KEYS keys of a run, so that their scores stay in L1 from product to product. */
typedef struct piece {
    int64_t key, keys;
    float *score;         /* [keys, ROWS] */
    const uint32_t *seen; /* [keys]; NULL: all rows see all of them */
} piece;

/* The piece from key `from` of run n on. */
static piece piece_of(const work *w, int n, int64_t from)
{
    const tile_run *run = &w->t.run[n];
    return (piece){.key = run->first + from,
                   .keys = CMOEI_MIN(KEYS, run->count - from),
                   .score = w->score + (run->slot + from) * ROWS,
                   .seen = run->all ? NULL : w->seen + run->slot + from};
}

static const cmoei_f32 *keys_at(const work *w, const cmoei_plane *x, int64_t key)
{
    return (const cmoei_f32 *)(const void *)cmoei_plane_at(x, key, w->kv_head * w->a->head_dim);
}

/* s[key, row] = scale * x[key] . y[row]. */
static void by_dims(const work *w, const piece *p, const cmoei_plane *x, const float *y, float *s,
                    float scale)
{
    const operands o = {.a = keys_at(w, x, p->key),
                        .a_row = x->step / 4,
                        .a_col = 1,
                        .b = y,
                        .b_row = ROWS,
                        .c = s,
                        .c_row = ROWS,
                        .n = w->a->head_dim,
                        .scale = scale};
    product_scaled(&o, p->keys, w->lanes);
}

/* out[dim, row] += sum over seen keys of x[key, dim] * s[key, row].  Every key is read once for each
 * few dims; where they lie may be far apart, and in few sets of the cache, so they are copied. */
static void by_keys(const work *w, const piece *p, const cmoei_plane *x, const float *s)
{
    const int64_t dims = w->a->head_dim;
    for (int64_t j = 0; j < p->keys; j++)
        memcpy(w->copy + j * dims, keys_at(w, x, p->key + j), (size_t)dims * sizeof *w->copy);
    const operands o = {.a = w->copy,
                        .a_row = 1,
                        .a_col = dims,
                        .b = s,
                        .b_row = ROWS,
                        .c = w->out,
                        .c_row = ROWS,
                        .n = p->keys,
                        .seen = p->seen};
    (p->seen ? product_seen : product_grows)(&o, dims, w->lanes);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* What is not seen is no maximum, and exp(-infinity) is 0. */
static void hide(const work *w, const piece *p)
{
    const vec never = vec_all(-INFINITY);
    for (int64_t j = 0; p->seen && j < p->keys; j++) {
        for (int64_t r = 0; r < w->lanes; r += VEC) {
            float *at = p->score + j * ROWS + r;
            vec_put(at, vec_pick(p->seen[j] >> r, vec_get(at), never));
        }
    }
}

static void find_top(work *w, const piece *p)
{
    for (int64_t r = 0; r < w->lanes; r += VEC) {
        vec top = vec_get(w->base + r);
        for (int64_t j = 0; j < p->keys; j++)
            top = vec_max(vec_get(p->score + j * ROWS + r), top);
        vec_put(w->base + r, top);
    }
}

/* base: what stands for the largest score. */
static void settle_base(work *w, const float *sink)
{
    for (int64_t r = 0; r < w->lanes; r++) {
        const float top = sink && sink[r] > w->base[r] ? sink[r] : w->base[r];
        w->base[r] = top == -INFINITY ? 0 : top;
    }
}

/* Scores of LANES rows from r on become weights, and are added up. */
static void weigh(work *w, const piece *p, int64_t r)
{
    float *restrict s = p->score + r;
    const float *restrict base = w->base + r;
    for (int64_t j = 0; j < p->keys; j++) {
        for (int i = 0; i < LANES; i++)
            s[j * ROWS + i] = cmoei_expf(s[j * ROWS + i] - base[i]);
    }
    for (int v = 0; v < LANES; v += VEC) {
        vec sum = vec_get(w->sum + r + v);
        for (int64_t j = 0; j < p->keys; j++)
            sum = vec_add(sum, vec_get(s + j * ROWS + v));
        vec_put(w->sum + r + v, sum);
    }
}

static void finish(work *w, const float *sink)
{
    const cmoei_attention_rows_args *a = w->a;
    float *restrict sum = w->sum, *restrict out = w->out;
    for (int64_t r = 0; sink && r < w->lanes; r++)
        sum[r] += cmoei_expf(sink[r] - w->base[r]);
    for (int64_t d = 0; d < a->head_dim; d++) {
        for (int64_t r = 0; r < w->lanes; r++)
            out[d * ROWS + r] = sum[r] == 0 ? 0 : out[d * ROWS + r] / sum[r];
    }
    turn_out(w, w->out, &a->out);
    for (int64_t r = 0; r < w->t.rows; r++) {
        const float lse = sum[r] == 0 ? -INFINITY : w->base[r] + cmoei_logf(sum[r]);
        cmoei_block_store(&a->lse, row_token(w, r), row_head(w, r), &lse, 1);
    }
}

static void forward_tile(work *w)
{
    const cmoei_attention_rows_args *a = w->a;
    float sinks[ROWS], *sink = a->sinks.data ? sinks : NULL;
    turn_in(w, &a->q, w->q);
    tile_look(&w->t, w->seen);
    for (int64_t r = 0; r < w->lanes; r++) {
        w->base[r] = -INFINITY;
        w->sum[r] = 0;
        if (sink) cmoei_block_load(sink + r, &a->sinks, 0, row_head(w, r), 1);
    }
    for (int n = 0; n < w->t.runs; n++) {
        for (int64_t j = 0; j < w->t.run[n].count; j += KEYS) {
            const piece p = piece_of(w, n, j);
            by_dims(w, &p, &a->k, w->q, p.score, a->scale);
            hide(w, &p);
            find_top(w, &p);
        }
    }
    settle_base(w, sink);
    memset(w->out, 0, (size_t)(a->head_dim * ROWS) * sizeof *w->out);
    for (int n = 0; n < w->t.runs; n++) {
        for (int64_t j = 0; j < w->t.run[n].count; j += KEYS) {
            const piece p = piece_of(w, n, j);
            for (int64_t r = 0; r < w->lanes; r += LANES)
                weigh(w, &p, r);
            by_keys(w, &p, &a->v, p.score);
        }
    }
    finish(w, sink);
}

/* ---- backward -------------------------------------------------------------------------------- */

static void load_sums(work *w)
{
    const cmoei_attention_rows_args *a = w->a;
    float *restrict dot = w->dot;
    turn_in(w, &a->out, w->out);
    for (int64_t r = 0; r < ROWS; r++)
        dot[r] = 0;
    for (int64_t d = 0; d < a->head_dim; d++) {
        for (int64_t r = 0; r < w->lanes; r++)
            dot[r] = fmaf(w->dout[d * ROWS + r], w->out[d * ROWS + r], dot[r]);
    }
    for (int64_t r = 0; r < w->lanes; r++) {
        float lse;
        cmoei_block_load(&lse, &a->lse, row_token(w, r), row_head(w, r), 1);
        w->base[r] = lse == -INFINITY ? 0 : lse;
        if (r < w->t.rows) cmoei_block_store(&a->dot, row_token(w, r), row_head(w, r), dot + r, 1);
    }
}

/* Scores become p, their gradient (so far of p) that of the score; LANES rows from r on. */
static void return_scores(const work *w, const piece *p, int64_t r)
{
    float *restrict s = p->score + r, *restrict g = w->grad + r;
    const float *restrict base = w->base + r, *restrict dot = w->dot + r;
    const float scale = w->a->scale;
    for (int64_t j = 0; j < p->keys; j++) {
        for (int i = 0; i < LANES; i++) {
            const float weight = cmoei_expf(s[j * ROWS + i] - base[i]);
            s[j * ROWS + i] = weight;
            g[j * ROWS + i] = weight * (g[j * ROWS + i] - dot[i]) * scale;
        }
    }
}

/* Dims behind the last whole vector, of one key. */
static void add_rest(const operands *o, int64_t done, int64_t dims)
{
    float c[VEC] = {0};
    operands rest = *o;
    rest.b += done;
    rest.c = c;
    memcpy(c, o->c + done, (size_t)(dims - done) * sizeof *c);
    product_grows(&rest, 1, VEC);
    memcpy(o->c + done, c, (size_t)(dims - done) * sizeof *c);
}

/* Rows [r, r_end) of the tile, all of which see `keys` keys from slot on. */
static void add_rows(const work *w, operands o, int64_t keys, int64_t r, int64_t r_end)
{
    const int64_t dims = w->a->head_dim, whole = dims / VEC * VEC;
    o.a += r;
    o.b += r * w->pad;
    o.n = r_end - r;
    product_grows(&o, keys, whole);
    for (int64_t j = 0; whole < dims && j < keys; j++) {
        add_rest(&o, whole, dims);
        o.a += o.a_row;
        o.c += o.c_row;
    }
}

/* A few keys that not all rows see: rows that see all of these go together. */
static void add_seen(const work *w, const operands *o, const uint32_t *seen, int64_t keys)
{
    uint32_t all = ~0u, any = 0;
    int64_t r = 0;
    for (int64_t j = 0; j < keys; j++) {
        all &= seen[j];
        any |= seen[j];
    }
    while (r < w->t.rows) {
        int64_t end = r + 1;
        if (all >> r & 1) {
            while (end < w->t.rows && (all >> end & 1))
                end++;
            add_rows(w, *o, keys, r, end);
        } else if (any >> r & 1) {
            for (int64_t j = 0; j < keys; j++) {
                operands one = *o;
                one.a += j * o->a_row;
                one.c += j * o->c_row;
                if (seen[j] >> r & 1) add_rows(w, one, 1, r, end);
            }
        }
        r = end;
    }
}

/* x[key] += sum over rows that see it of s[key, row] * y[row]. */
static void by_rows(const work *w, const piece *p, const cmoei_plane *x, const float *s,
                    const float *y)
{
    operands o = {.a = s,
                  .a_row = ROWS,
                  .a_col = 1,
                  .b = y,
                  .b_row = w->pad,
                  .c = (cmoei_f32 *)(uintptr_t)keys_at(w, x, p->key),
                  .c_row = x->step / 4};
    if (!p->seen) {
        add_rows(w, o, p->keys, 0, w->t.rows);
        return;
    }
    for (int64_t j = 0; j < p->keys; j += 4) {
        add_seen(w, &o, p->seen + j, CMOEI_MIN(4, p->keys - j));
        o.a += 4 * o.a_row;
        o.c += 4 * o.c_row;
    }
}

static void backward_piece(const work *w, const piece *p)
{
    const cmoei_attention_rows_args *a = w->a;
    by_dims(w, p, &a->k, w->q, p->score, a->scale);
    by_dims(w, p, &a->v, w->dout, w->grad, 1);
    for (int64_t r = 0; r < w->lanes; r += LANES) /* of what is not seen, too: nobody adds that */
        return_scores(w, p, r);
    by_keys(w, p, &a->k, w->grad);
    by_rows(w, p, &a->dv, p->score, w->dout_rows);
    by_rows(w, p, &a->dk, w->grad, w->q_rows);
}

static void backward_tile(work *w)
{
    const cmoei_attention_rows_args *a = w->a;
    turn_in(w, &a->q, w->q);
    turn_in(w, &a->dout, w->dout);
    copy_rows(w, &a->q, w->q_rows);
    copy_rows(w, &a->dout, w->dout_rows);
    load_sums(w);
    tile_look(&w->t, w->seen);
    memset(w->out, 0, (size_t)(a->head_dim * ROWS) * sizeof *w->out);
    for (int n = 0; n < w->t.runs; n++) {
        for (int64_t j = 0; j < w->t.run[n].count; j += KEYS) {
            piece p = piece_of(w, n, j);
            p.score = w->score; /* nobody needs it behind the piece: let it stay in L1 */
            backward_piece(w, &p);
        }
    }
    turn_out(w, w->out, &a->dq);
}

/* ---- tokens to tiles ------------------------------------------------------------------------- */

/* Tokens tokens[0 .. n), or token, token + 1, ... when that is NULL. */
VEC_INLINE void walk(work *w, int64_t token, const int32_t *tokens, int64_t n, void (*run)(work *w))
{
    const cmoei_attention_rows_args *a = w->a;
    const int64_t heads = CMOEI_MIN(a->ratio, ROWS), most = ROWS / heads;
    for (int64_t i = 0; i < n; i += w->t.tokens) {
        w->t.tokens = w->t.most = 0;
        memset(w->t.hull, 0, sizeof w->t.hull);
        for (int64_t m = i; m < n && w->t.tokens < most; m++) {
            if (!tile_add(&w->t, &a->see, tokens ? tokens[m] : token + m)) break;
        }
        for (int64_t h = 0; h < a->ratio; h += heads) {
            tile_close(&w->t, CMOEI_MIN(heads, a->ratio - h));
            w->head = w->kv_head * a->ratio + h;
            w->lanes = cmoei_round_up(w->t.rows, LANES);
            run(w);
        }
    }
}

void CMOEI_SIMD(cmoei_attention_rows_forward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                              int64_t token, int64_t token_end, void *room)
{
    work w = work_make(a, kv_head, room);
    walk(&w, token, NULL, token_end - token, forward_tile);
}

void CMOEI_SIMD(cmoei_attention_rows_backward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                               const int32_t *tokens, int64_t n, void *room)
{
    work w = work_make(a, kv_head, room);
    walk(&w, 0, tokens, n, backward_tile);
}
