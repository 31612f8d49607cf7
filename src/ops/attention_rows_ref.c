/* SPDX-License-Identifier: MIT
 *
 * attention_rows_ref.c - attention of whole sequences as it reads, one query row and one key at a
 * time, over THE tree of attention_rows.h.
 *
 * Sums grow in the outputs themselves, and scores are computed anew wherever they are needed.
 */
#include "core/real_plane.h"
#include "ops/attention_rows.h"

void CMOEI_REF(cmoei_attention_rows_forward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                             int64_t token, int64_t token_end, void *room);
void CMOEI_REF(cmoei_attention_rows_backward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                              const int32_t *tokens, int64_t n, void *room);
void CMOEI_REF(cmoei_attention_rows_sinks)(const cmoei_attention_rows_args *a,
                                           const cmoe_units *units, int64_t head, int64_t head_end,
                                           void *dsinks);

/* A query row, and the columns where its head and its kv head begin. */
typedef struct row {
    int64_t token, head, col, kv_col;
    int32_t see[4];
} row;

static row row_of(const cmoei_attention_rows_args *a, int64_t token, int64_t head)
{
    row r = {.token = token,
             .head = head,
             .col = head * a->head_dim,
             .kv_col = head / a->ratio * a->head_dim};
    cmoei_attention_rows_see(&a->see, token, r.see);
    return r;
}

/* The key behind `key` that the row sees, from -1 on; -1 behind the last. */
static int64_t next_key(const row *r, int64_t key)
{
    for (int i = 0; i < 4; i += 2) {
        const int64_t next = CMOEI_MAX(key + 1, (int64_t)r->see[i]);
        if (next < r->see[i + 1]) return next;
    }
    return -1;
}

/* An output of an earlier pass, or one that grows. */
static cmoei_real take(const cmoei_plane *p, int64_t i, int64_t col)
{
    cmoei_real x;
    memcpy(&x, cmoei_plane_at(p, i, col), sizeof x);
    return x;
}

static void add(const cmoei_plane *p, int64_t i, int64_t col, cmoei_real x, cmoei_real y)
{
    real_put(p, i, col, real_fma(x, y, take(p, i, col)));
}

/* x[i] . y[j] over the dims of a head. */
static cmoei_real product(const cmoei_attention_rows_args *a, const cmoei_plane *x, int64_t i,
                          int64_t x_col, const cmoei_plane *y, int64_t j, int64_t y_col)
{
    cmoei_real sum = 0;
    for (int64_t d = 0; d < a->head_dim; d++)
        sum = real_fma(real_get(x, i, x_col + d), real_get(y, j, y_col + d), sum);
    return sum;
}

static cmoei_real score(const cmoei_attention_rows_args *a, const row *r, int64_t key)
{
    return product(a, &a->q, r->token, r->col, &a->k, key, r->kv_col) * a->scale;
}

static cmoei_real finite_base(cmoei_real m)
{
    return m == -(cmoei_real)INFINITY ? 0 : m;
}

/* ---- forward --------------------------------------------------------------------------------- */

static void attend(const cmoei_attention_rows_args *a, const row *r)
{
    cmoei_real m = -(cmoei_real)INFINITY, l = 0;
    for (int64_t j = next_key(r, -1); j >= 0; j = next_key(r, j)) {
        const cmoei_real s = score(a, r, j);
        m = s > m ? s : m; /* a NaN is dropped here, and comes back through p */
    }
    const cmoei_real sink = a->sinks.data ? real_get(&a->sinks, 0, r->head) : m;
    const cmoei_real base = finite_base(sink > m ? sink : m);
    for (int64_t d = 0; d < a->head_dim; d++)
        real_put(&a->out, r->token, r->col + d, 0);
    for (int64_t j = next_key(r, -1); j >= 0; j = next_key(r, j)) {
        const cmoei_real p = real_exp(score(a, r, j) - base);
        l += p;
        for (int64_t d = 0; d < a->head_dim; d++)
            add(&a->out, r->token, r->col + d, p, real_get(&a->v, j, r->kv_col + d));
    }
    if (a->sinks.data) l += real_exp(sink - base);
    for (int64_t d = 0; d < a->head_dim; d++)
        real_put(&a->out, r->token, r->col + d,
                 l == 0 ? 0 : take(&a->out, r->token, r->col + d) / l);
    real_put(&a->lse, r->token, r->head, l == 0 ? -(cmoei_real)INFINITY : base + real_log(l));
}

void CMOEI_REF(cmoei_attention_rows_forward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                             int64_t token, int64_t token_end, void *room)
{
    (void)room;
    for (; token < token_end; token++) {
        for (int64_t h = kv_head * a->ratio; h < (kv_head + 1) * a->ratio; h++) {
            const row r = row_of(a, token, h);
            attend(a, &r);
        }
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

static void return_row(const cmoei_attention_rows_args *a, const row *r)
{
    const cmoei_real base = finite_base(take(&a->lse, r->token, r->head));
    cmoei_real dot = 0;
    for (int64_t d = 0; d < a->head_dim; d++) {
        dot = real_fma(real_get(&a->dout, r->token, r->col + d),
                       take(&a->out, r->token, r->col + d), dot);
        real_put(&a->dq, r->token, r->col + d, 0);
    }
    real_put(&a->dot, r->token, r->head, dot);
    for (int64_t j = next_key(r, -1); j >= 0; j = next_key(r, j)) {
        const cmoei_real p = real_exp(score(a, r, j) - base);
        const cmoei_real dp = product(a, &a->dout, r->token, r->col, &a->v, j, r->kv_col);
        const cmoei_real ds = p * (dp - dot) * a->scale;
        for (int64_t d = 0; d < a->head_dim; d++) {
            add(&a->dq, r->token, r->col + d, ds, real_get(&a->k, j, r->kv_col + d));
            add(&a->dk, j, r->kv_col + d, ds, real_get(&a->q, r->token, r->col + d));
            add(&a->dv, j, r->kv_col + d, p, real_get(&a->dout, r->token, r->col + d));
        }
    }
}

void CMOEI_REF(cmoei_attention_rows_backward)(const cmoei_attention_rows_args *a, int64_t kv_head,
                                              const int32_t *tokens, int64_t n, void *room)
{
    (void)room;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t h = kv_head * a->ratio; h < (kv_head + 1) * a->ratio; h++) {
            const row r = row_of(a, tokens[i], h);
            return_row(a, &r);
        }
    }
}

void CMOEI_REF(cmoei_attention_rows_sinks)(const cmoei_attention_rows_args *a,
                                           const cmoe_units *units, int64_t head, int64_t head_end,
                                           void *dsinks)
{
    for (int64_t h = head; h < head_end; h++) {
        cmoei_real sum[CMOE_UNITS_MOST];
        const cmoei_real sink = real_get(&a->sinks, 0, h);
        for (int64_t u = 0; u < units->count; u++) {
            sum[u] = 0;
            for (int64_t t = units->first[u]; t < units->first[u + 1]; t++)
                sum[u] = real_fma(-real_exp(sink - finite_base(take(&a->lse, t, h))),
                                  take(&a->dot, t, h), sum[u]);
        }
        for (int64_t n = units->count; n > 1; n /= 2) {
            for (int64_t u = 0; u < n / 2; u++)
                sum[u] = sum[2 * u] + sum[2 * u + 1];
        }
        ((cmoei_real *)dsinks)[h - head] = sum[0];
    }
}
