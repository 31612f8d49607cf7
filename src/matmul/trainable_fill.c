/* SPDX-License-Identifier: MIT
 *
 * trainable_fill.c - parts of the caller's become the rows of the four matrices of a trainable.
 *
 * forward wants what belongs to one output together, backward what belongs to one input.  Of a
 * tensor [N, K] in its usual order the second are lines, which are copied 32 values at a time; a
 * tensor that is stored transposed swaps the two.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "trainable.h"

/* ---- values ---------------------------------------------------------------------------------- */

/* w[e, n, k .. k + count) of a part, or, `across`, w[e, n .. n + count, k], n counted in the part. */
static void load_w(const cmoe_part *p, int64_t e, int64_t n, int64_t k, bool across, int64_t count,
                   float *to)
{
    const cmoe_view *w = &p->w;
    const char *at =
        (const char *)cmoei_at(w, e, n) + k * w->strides[2] * cmoe_dtype_bytes(w->dtype);
    cmoei_load_f32(to, at, w->dtype, w->strides[across ? 1 : 2], count);
    if (w->dtype != CMOE_I8) return;
    const cmoe_view *s = &p->scale;
    for (int64_t i = 0; i < count; i++) {
        float scale;
        cmoei_load_f32(&scale, cmoei_at(s, e, across ? n + i : n), CMOE_F32, 1, 1);
        to[i] *= scale;
    }
}

/* s * b[e, n, r .. r + count) or, `across`, s * b[e, n .. n + count, r]. */
static void load_b(const cmoe_part *p, int64_t e, int64_t n, int64_t r, bool across, int64_t count,
                   float *to)
{
    const cmoe_view *b = &p->b;
    const char *at =
        (const char *)cmoei_at(b, e, n) + r * b->strides[2] * cmoe_dtype_bytes(b->dtype);
    cmoei_load_f32(to, at, b->dtype, b->strides[across ? 1 : 2], count);
    for (int64_t i = 0; i < count; i++)
        to[i] *= p->lora_scale;
}

/* a[e, r, k .. k + count) or, `across`, a[e, r .. r + count, k]. */
static void load_a(const cmoe_part *p, int64_t e, int64_t r, int64_t k, bool across, int64_t count,
                   float *to)
{
    const cmoe_view *a = &p->a;
    const char *at =
        (const char *)cmoei_at(a, e, r) + k * a->strides[2] * cmoe_dtype_bytes(a->dtype);
    cmoei_load_f32(to, at, a->dtype, a->strides[across ? 1 : 2], count);
}

static int64_t part_of_output(const cmoe_trainable *t, int64_t n)
{
    int64_t p = t->count - 1;
    while (t->parts[p].at > n)
        p--;
    return p;
}

static int64_t part_of_rank(const cmoe_trainable *t, int64_t r)
{
    int64_t p = 0;
    while (t->rank_at[p + 1] <= r)
        p++;
    return p;
}

static int64_t rank_of(const cmoe_trainable *t, int64_t p)
{
    return t->rank_at[p + 1] - t->rank_at[p];
}

static void clear(float *x, int64_t n)
{
    memset(x, 0, (size_t)n * sizeof *x);
}

/* ---- forward [E, N, K + rank] ---------------------------------------------------------------- */

static void forward_row(const void *user, int64_t e, int64_t n, float *row)
{
    const cmoe_trainable *t = user;
    const int64_t p = part_of_output(t, n);
    const cmoe_part *part = &t->parts[p];
    load_w(part, e, n - part->at, 0, false, t->inputs, row);
    clear(row + t->inputs, t->o.rank);
    if (rank_of(t, p))
        load_b(part, e, n - part->at, 0, false, rank_of(t, p), row + t->inputs + t->rank_at[p]);
}

/* Value k of outputs n .. n + count. */
static void forward_line(const cmoe_trainable *t, int64_t e, int64_t k, int64_t n, int64_t count,
                         float *to)
{
    const int64_t end = n + count;
    while (n < end) {
        const int64_t p = part_of_output(t, n);
        const cmoe_part *part = &t->parts[p];
        const int64_t next = CMOEI_MIN(end, part->at + cmoei_part_outputs(t, p));
        const int64_t r = k - t->inputs - t->rank_at[p];
        if (k < t->inputs)
            load_w(part, e, n - part->at, k, true, next - n, to);
        else if (r >= 0 && r < rank_of(t, p))
            load_b(part, e, n - part->at, r, true, next - n, to);
        else
            clear(to, next - n);
        to += next - n;
        n = next;
    }
}

static void forward_lines(const void *user, int64_t e, int64_t k, int64_t lines, int64_t n,
                          int64_t count, float *to, int64_t stride)
{
    for (int64_t i = 0; i < lines; i++)
        forward_line(user, e, k + i, n, count, to + i * stride);
}

/* ---- backward [E, K, N + rank] --------------------------------------------------------------- */

static void backward_row(const void *user, int64_t e, int64_t k, float *row)
{
    const cmoe_trainable *t = user;
    for (int64_t p = 0; p < t->count; p++) {
        load_w(&t->parts[p], e, 0, k, true, cmoei_part_outputs(t, p), row + t->parts[p].at);
        if (rank_of(t, p))
            load_a(&t->parts[p], e, 0, k, true, rank_of(t, p), row + t->outputs + t->rank_at[p]);
    }
}

static void backward_lines(const void *user, int64_t e, int64_t n, int64_t lines, int64_t k,
                           int64_t count, float *to, int64_t stride)
{
    const cmoe_trainable *t = user;
    for (int64_t i = 0; i < lines; i++, n++, to += stride) {
        if (n < t->outputs) {
            const cmoe_part *part = &t->parts[part_of_output(t, n)];
            load_w(part, e, n - part->at, k, false, count, to);
        } else {
            const int64_t p = part_of_rank(t, n - t->outputs);
            load_a(&t->parts[p], e, n - t->outputs - t->rank_at[p], k, false, count, to);
        }
    }
}

/* ---- down_x [E, rank, K], down_dy [E, rank, N] ----------------------------------------------- */

static void down_x_row(const void *user, int64_t e, int64_t r, float *row)
{
    const cmoe_trainable *t = user;
    const int64_t p = part_of_rank(t, r);
    load_a(&t->parts[p], e, r - t->rank_at[p], 0, false, t->inputs, row);
}

static void down_dy_row(const void *user, int64_t e, int64_t r, float *row)
{
    const cmoe_trainable *t = user;
    const int64_t p = part_of_rank(t, r);
    clear(row, t->outputs);
    load_b(&t->parts[p], e, 0, r - t->rank_at[p], true, cmoei_part_outputs(t, p),
           row + t->parts[p].at);
}

const cmoei_rows cmoei_forward_rows = {.row = forward_row};
const cmoei_rows cmoei_backward_rows = {.row = backward_row};
const cmoei_rows cmoei_down_x_rows = {.row = down_x_row};
const cmoei_rows cmoei_down_dy_rows = {.row = down_dy_row};

/* Lines where outputs (of backward: inputs) lie side by side and the other dimension does not. */
static void choose(cmoe_trainable *t)
{
    bool inputs = true, outputs = true;
    for (int64_t p = 0; p < t->count; p++) {
        const cmoe_view *w = &t->parts[p].w;
        inputs = inputs && (w->strides[2] == 1 || t->inputs == 1);
        outputs = outputs && (w->strides[1] == 1 || w->dims[1] == 1);
    }
    t->forward.rows.lines = outputs && !inputs ? forward_lines : NULL;
    t->backward.rows.lines = inputs || !outputs ? backward_lines : NULL;
}

/* ---- packing --------------------------------------------------------------------------------- */

enum { TOGETHER = 4 }; /* panels whose lines are read together: 512 bytes of a row */

/* Of one expert. */
static int64_t items_of(const cmoe_matrix *m)
{
    return cmoei_ceil_div(m->panels, TOGETHER);
}

static void pack_item(cmoe_matrix *m, int64_t e, int64_t i, float *x)
{
    const int64_t p = i * TOGETHER, end = CMOEI_MIN(p + TOGETHER, m->panels);
    if (m->rows.lines) {
        cmoei_panels_pack_lines(m, &m->rows, e, p, end,
                                m->packed + (e * m->panels + p) * m->panel_bytes);
        return;
    }
    for (int64_t j = p; j < end; j++)
        cmoei_matrix_pack(m, &m->rows, e * m->panels + j, x);
}

/* One expert after the other: what forward has read of it, backward still finds in a cache. */
static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoe_trainable *t = arg;
    cmoe_matrix *matrices[] = {&t->forward, &t->backward, &t->down_x, &t->down_dy};
    float *x = t->pack + index * t->pack_elements;
    (void)count;
    int64_t each = 0;
    for (int m = 0; m < 4; m++)
        each += items_of(matrices[m]);
    for (int64_t i; (i = cmoei_next(team, 1)) < t->experts * each;) {
        const int64_t e = i / each;
        int m = 0;
        for (i %= each; i >= items_of(matrices[m]); m++)
            i -= items_of(matrices[m]);
        pack_item(matrices[m], e, i, x);
    }
}

/* A part without a bias adds -0, which changes nothing; without any none is added. */
static void fill_bias(cmoe_trainable *t)
{
    const int64_t panels = t->forward.panels * t->forward.kernel->panel;
    bool any = false;
    for (int64_t p = 0; p < t->count; p++)
        any = any || cmoei_given(&t->parts[p].bias);
    t->forward.bias = any ? t->bias : NULL;
    for (int64_t e = 0; e < t->experts && any; e++) {
        clear(t->bias + e * panels, panels);
        for (int64_t p = 0; p < t->count; p++) {
            const cmoe_view *b = &t->parts[p].bias;
            float *to = t->bias + e * panels + t->parts[p].at;
            const int64_t n = cmoei_part_outputs(t, p);
            for (int64_t i = 0; i < n && !cmoei_given(b); i++)
                to[i] = -0.0f;
            if (cmoei_given(b)) cmoei_load_f32(to, cmoei_at(b, e, 0), b->dtype, b->strides[1], n);
        }
    }
}

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoe_status check_w(const cmoe_trainable *t, const cmoe_part *p, int64_t i, cmoe_error *err)
{
    char w[48], scale[48], bias[48];
    snprintf(w, sizeof w, "parts[%" PRId64 "].w", i);
    snprintf(scale, sizeof scale, "parts[%" PRId64 "].scale", i);
    snprintf(bias, sizeof bias, "parts[%" PRId64 "].bias", i);
    const cmoei_want ww = {w,
                           CMOEI_FLOATS | CMOEI_DTYPE(CMOE_I8),
                           3,
                           {t->experts, -1, t->inputs},
                           {"experts", "outputs", "inputs"}};
    CMOEI_TRY(cmoei_check_in(&p->w, &ww, err));
    const int64_t n = p->w.dims[1];
    const cmoei_want ws = {
        scale, CMOEI_DTYPE(CMOE_F32), 2, {t->experts, n}, {"experts", "outputs"}};
    if (p->w.dtype == CMOE_I8) {
        CMOEI_TRY(cmoei_check_in(&p->scale, &ws, err));
    } else if (cmoei_given(&p->scale)) {
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "%s is given but %s is %s, want i8 weights or no scale",
                          cmoei_name(p->scale.name, scale), cmoei_name(p->w.name, w),
                          cmoe_dtype_name(p->w.dtype));
    }
    const cmoei_want wb = {bias, CMOEI_FLOATS, 2, {t->experts, n}, {"experts", "outputs"}};
    return cmoei_given(&p->bias) ? cmoei_check_in(&p->bias, &wb, err) : CMOE_OK;
}

static cmoe_status check_low_rank(const cmoe_trainable *t, const cmoe_part *p, int64_t i,
                                  int64_t *rank, cmoe_error *err)
{
    char a[48], b[48];
    snprintf(a, sizeof a, "parts[%" PRId64 "].a", i);
    snprintf(b, sizeof b, "parts[%" PRId64 "].b", i);
    *rank = 0;
    if (cmoei_given(&p->a) != cmoei_given(&p->b))
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is given without %s, want both or neither",
                          cmoei_given(&p->a) ? a : b, cmoei_given(&p->a) ? b : a);
    if (!cmoei_given(&p->a)) return CMOE_OK;
    const cmoei_want wa = {
        a, CMOEI_FLOATS, 3, {t->experts, -1, t->inputs}, {"experts", "rank", "inputs"}};
    CMOEI_TRY(cmoei_check_in(&p->a, &wa, err));
    *rank = p->a.dims[1];
    const cmoei_want wb = {
        b, CMOEI_FLOATS, 3, {t->experts, p->w.dims[1], *rank}, {"experts", "outputs", "rank"}};
    CMOEI_TRY(cmoei_check_in(&p->b, &wb, err));
    if (!isfinite(p->lora_scale))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "parts[%" PRId64 "].lora_scale = %g, want a finite number", i,
                          (double)p->lora_scale);
    return CMOE_OK;
}

static cmoe_status check(const cmoe_trainable *t, const cmoe_part *parts, int64_t count,
                         int64_t *rank_at, cmoe_error *err)
{
    if (count < 1 || count > CMOEI_PARTS_MOST)
        return cmoei_fail(err, CMOE_ERR_RANGE, "count = %" PRId64 " parts, want 1 to %d", count,
                          CMOEI_PARTS_MOST);
    if (!parts) return cmoei_fail(err, CMOE_ERR_ARG, "parts is NULL, want %" PRId64, count);
    int64_t at = 0;
    rank_at[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        const cmoe_part *p = &parts[i];
        int64_t rank;
        if (p->reserved)
            return cmoei_fail(err, CMOE_ERR_ARG, "parts[%" PRId64 "].reserved = %d, want 0", i,
                              p->reserved);
        if (p->at != at)
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "parts[%" PRId64 "].at = %" PRId64 ", want %" PRId64
                              " (parts stand in order and fill the outputs)",
                              i, p->at, at);
        CMOEI_TRY(check_w(t, p, i, err));
        CMOEI_TRY(check_low_rank(t, p, i, &rank, err));
        at += p->w.dims[1]; /* fits: each is at most 2^63 / 1 bytes, and is compared at once */
        if (p->w.dims[1] > t->outputs || at > t->outputs)
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "parts up to parts[%" PRId64 "] have %" PRId64
                              " outputs, want %" PRId64 " in all",
                              i, at, t->outputs);
        if (rank > t->o.rank - rank_at[i])
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "parts[%" PRId64 "].a: rank %" PRId64 ", want at most %" PRId64
                              " (what is left of the trainable's rank %" PRId64 ")",
                              i, rank, t->o.rank - rank_at[i], t->o.rank);
        rank_at[i + 1] = rank_at[i] + rank;
    }
    if (at != t->outputs)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "parts have %" PRId64 " outputs, want %" PRId64 " in all", at,
                          t->outputs);
    if (rank_at[count] != t->o.rank)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "parts have rank %" PRId64 " together, want the trainable's %" PRId64,
                          rank_at[count], t->o.rank);
    return CMOE_OK;
}

/* Views of memory that is not ours any more. */
static void forget(cmoe_trainable *t)
{
    for (int64_t p = 0; p < t->count; p++) {
        cmoe_part *part = &t->parts[p];
        if (!t->o.borrow) part->w = part->scale = part->a = part->b = cmoe_view_none();
        part->bias = cmoe_view_none();
    }
}

cmoe_status cmoe_trainable_fill(cmoe_stream *s, cmoe_trainable *t, const cmoe_part *parts,
                                int64_t count, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!t || t->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "trainable is %s, want one made from the stream's context",
                          t ? "of another context" : "NULL");
    int64_t rank_at[CMOEI_PARTS_MOST + 1];
    CMOEI_TRY(check(t, parts, count, rank_at, err));
    t->count = count;
    memcpy(t->parts, parts, (size_t)count * sizeof *parts);
    memcpy(t->rank_at, rank_at, (size_t)(count + 1) * sizeof *rank_at);
    choose(t);
    const uint64_t before = cmoei_float_enter(); /* f64 biases are rounded */
    fill_bias(t);
    cmoei_float_leave(before);
    if (!t->o.borrow)
        cmoei_region(t->ctx, t->experts * (items_of(&t->forward) + items_of(&t->backward)), region,
                     t);
    forget(t);
    return CMOE_OK;
}
