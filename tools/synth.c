/* SPDX-License-Identifier: MIT
 *
 * synth.c - weights by a hash of their place.
 *
 * One Philox number per row seeds a 32-bit mixer (Wellons, "lowbias32") per column; the sum of its
 * four bytes is close to normal (Irwin-Hall) and an exact small integer, so each format gets the
 * values it can hold: a few nanoseconds a weight, where exact normal numbers cost twenty.
 */
#include "synth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/route.h"
#include "crew.h"
#include "report.h"

/* Sum of four bytes: mean 510, variance 4 * (256^2 - 1) / 12. */
static const float byte_sum_mean = 510.0f, byte_sum_deviation = 147.8005f;

int64_t synth_rows(const synth *s, int which)
{
    return which == SYNTH_W13 ? 2 * s->inter : s->hidden;
}

int64_t synth_cols(const synth *s, int which)
{
    return which == SYNTH_W13 ? s->hidden : s->inter;
}

static uint64_t row_key(const synth *s, int64_t copy, int which, int64_t expert, int64_t row)
{
    const int64_t place = (copy * s->experts + expert) * synth_rows(s, which) + row;
    return cmoe_random_u64(s->seed, (uint64_t)place, (uint64_t)which);
}

static void byte_sums(uint64_t key, int64_t n, float *out)
{
    const uint32_t from = (uint32_t)key, flip = (uint32_t)(key >> 32);
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = (from + (uint32_t)i * 0x9e3779b9u) ^ flip;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        x = (x & 0x00ff00ffu) + (x >> 8 & 0x00ff00ffu);
        out[i] = (float)(int32_t)((x & 0xffffu) + (x >> 16)) - byte_sum_mean;
    }
}

static float round_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    u = (u + 0x7fffu + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &u, sizeof f);
    return f;
}

void synth_row(const synth *s, int64_t copy, int which, int64_t expert, int64_t row, float *out)
{
    const int64_t n = synth_cols(s, which);
    const float scale = 1.0f / (byte_sum_deviation * sqrtf((float)n));
    byte_sums(row_key(s, copy, which, expert, row), n, out);
    for (int64_t i = 0; i < n && s->format == CMOE_F32; i++)
        out[i] *= scale;
    for (int64_t i = 0; i < n && s->format == CMOE_BF16; i++)
        out[i] = round_bf16(out[i] * scale);
    for (int64_t i = 0; i < n && s->format == CMOE_I8; i++)
        out[i] = floorf(out[i] * 0.25f); /* -128 to 127 */
}

float synth_scale(const synth *s, int64_t copy, int which, int64_t expert, int64_t row)
{
    if (s->format != CMOE_I8) return 1.0f;
    const uint64_t key = row_key(s, copy, which, expert, row);
    const float varied = 0.75f + 0.5f * (float)(key >> 48) * 0x1p-16f;
    return varied * 4.0f / (byte_sum_deviation * sqrtf((float)synth_cols(s, which)));
}

int64_t synth_weight_bytes(const synth *s, int64_t experts)
{
    return 3 * s->hidden * s->inter * cmoe_dtype_bytes(s->format) * experts;
}

/* ---- storing and packing --------------------------------------------------------------------- */

typedef struct weights_work {
    const synth *s;
    int64_t copy;
    int which;
    char *data;   /* [E, rows, cols] in the format */
    float *scale; /* [E, rows] */
    _Atomic bool failed;
} weights_work;

static void store_row(int32_t format, const float *row, int64_t n, char *to)
{
    if (format == CMOE_F32) memcpy(to, row, (size_t)n * sizeof *row);
    for (int64_t i = 0; i < n && format == CMOE_BF16; i++) {
        uint32_t bits;
        memcpy(&bits, &row[i], sizeof bits);
        const uint16_t upper = (uint16_t)(bits >> 16);
        memcpy(to + 2 * i, &upper, sizeof upper);
    }
    for (int64_t i = 0; i < n && format == CMOE_I8; i++)
        ((int8_t *)to)[i] = (int8_t)row[i];
}

static void weights_thread(void *arg, int32_t index, int32_t count)
{
    weights_work *w = arg;
    const int64_t rows = synth_rows(w->s, w->which), cols = synth_cols(w->s, w->which);
    const int64_t all = w->s->experts * rows, bytes = cols * cmoe_dtype_bytes(w->s->format);
    float *row = malloc((size_t)cols * sizeof *row);
    if (!row) {
        w->failed = true;
        return;
    }
    for (int64_t r = all * index / count; r < all * (index + 1) / count; r++) {
        synth_row(w->s, w->copy, w->which, r / rows, r % rows, row);
        store_row(w->s->format, row, cols, w->data + r * bytes);
        if (w->scale) w->scale[r] = synth_scale(w->s, w->copy, w->which, r / rows, r % rows);
    }
    free(row);
}

/* One matrix of all experts; the view's data and scale's data are freed by the caller. */
static bool make_weights(const synth *s, int64_t copy, int which, const tool_session *session,
                         cmoe_view *view, cmoe_view *scale)
{
    const int64_t rows = synth_rows(s, which), cols = synth_cols(s, which);
    const size_t n = (size_t)(s->experts * rows);
    weights_work w = {.s = s, .copy = copy, .which = which};
    w.data = malloc(n * (size_t)(cols * cmoe_dtype_bytes(s->format)));
    if (s->format == CMOE_I8) w.scale = malloc(n * sizeof *w.scale);
    *view = cmoe_view_3d(w.data, s->format, s->experts, rows, cols);
    *scale = w.scale ? cmoe_view_2d(w.scale, CMOE_F32, s->experts, rows) : cmoe_view_none();
    if (!w.data || (s->format == CMOE_I8 && !w.scale)) return false;
    crew_run(cmoe_ctx_threads(session->ctx), weights_thread, &w);
    return !w.failed;
}

int synth_experts(const synth *s, int64_t copy, const tool_session *session, cmoe_experts **out)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_experts_options o;
    cmoe_view w13, w2 = cmoe_view_none(), scale2 = w2;
    int status = EXIT_MEMORY;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = s->format;
    const bool made = make_weights(s, copy, SYNTH_W13, session, &w13, &o.scale13) &&
                      make_weights(s, copy, SYNTH_W2, session, &w2, &scale2);
    o.scale2 = scale2;
    if (made)
        status = report_status(cmoe_experts_create(out, session->ctx, &o, w13, w2, cmoe_view_none(),
                                                   cmoe_view_none(), &err),
                               "weights", &err);
    else
        report_fail(status, "weights", "%lld bytes could not be allocated",
                    (long long)synth_weight_bytes(s, s->experts));
    free((void *)w13.data);
    free((void *)w2.data);
    free((void *)o.scale13.data);
    free((void *)scale2.data);
    return status;
}

int synth_matrix(const synth *s, int64_t copy, int which, const tool_session *session, void **data)
{
    cmoe_view w, scale;
    const bool made = make_weights(s, copy, which, session, &w, &scale);
    *data = (void *)w.data;
    if (made) return 0;
    free(*data);
    *data = NULL;
    return report_fail(EXIT_MEMORY, "weights", "%lld bytes could not be allocated",
                       (long long)synth_weight_bytes(s, s->experts));
}

/* ---- tokens and routings --------------------------------------------------------------------- */

typedef struct fill_work {
    const synth *s;
    char *x;       /* [count, H] in synth_x_dtype, or NULL */
    float *logits; /* [count, E], or NULL */
    int64_t count;
    uint64_t draw;
    float tilt;
} fill_work;

enum { DRAW_TOKENS = 16, DRAW_TILT = 17, DRAW_LOGITS = 32 }; /* 0 and 1 are the matrices */

int32_t synth_x_dtype(const synth *s)
{
    return s->format == CMOE_BF16 ? CMOE_BF16 : CMOE_F32;
}

static void tokens_thread(void *arg, int32_t index, int32_t count)
{
    const fill_work *w = arg;
    const int64_t H = w->s->hidden, bytes = cmoe_dtype_bytes(synth_x_dtype(w->s));
    for (int64_t t = w->count * index / count; t < w->count * (index + 1) / count; t++) {
        for (int64_t h = 0; h < H; h++) {
            float v = cmoe_random_normal(w->s->seed, (uint64_t)(t * H + h), DRAW_TOKENS);
            if (w->s->format != CMOE_F32) v = round_bf16(v); /* what a model would hand over */
            store_row(synth_x_dtype(w->s), &v, 1, w->x + (t * H + h) * bytes);
        }
    }
}

int synth_tokens(const synth *s, int64_t count, const tool_session *session, void **x)
{
    fill_work w = {.s = s, .count = count};
    const int64_t bytes = count * s->hidden * cmoe_dtype_bytes(synth_x_dtype(s));
    *x = w.x = malloc((size_t)bytes);
    if (!*x)
        return report_fail(EXIT_MEMORY, "tokens", "%lld bytes could not be allocated",
                           (long long)bytes);
    crew_run(cmoe_ctx_threads(session->ctx), tokens_thread, &w);
    return 0;
}

static void logits_thread(void *arg, int32_t index, int32_t count)
{
    const fill_work *w = arg;
    const int64_t E = w->s->experts, n = w->count * E;
    for (int64_t i = n * index / count; i < n * (index + 1) / count; i++) {
        w->logits[i] = cmoe_random_normal(w->s->seed, (uint64_t)i, DRAW_LOGITS + w->draw);
        if (w->tilt > 0)
            w->logits[i] += w->tilt * cmoe_random_normal(w->s->seed, (uint64_t)(i % E), DRAW_TILT);
    }
}

int synth_routing(const synth *s, int64_t tokens, uint64_t draw, float tilt,
                  const tool_session *session, int32_t *ids, float *weights)
{
    cmoe_error err = {.size = sizeof err};
    fill_work w = {.s = s, .count = tokens, .draw = draw, .tilt = tilt};
    cmoe_route_options o;
    int64_t host = 0, device = 0;
    cmoe_route_options_default(&o, sizeof o);
    o.topk = s->topk;
    cmoe_status status = cmoe_route_bytes(&o, tokens, s->experts, &host, &device, &err);
    if (status != CMOE_OK) return report_status(status, "routing", &err);
    w.logits = malloc((size_t)(tokens * s->experts) * sizeof *w.logits);
    void *scratch = malloc((size_t)(host ? host : 1));
    if (!w.logits || !scratch) {
        free(w.logits);
        free(scratch);
        return report_fail(EXIT_MEMORY, "routing", "no memory for %lld tokens", (long long)tokens);
    }
    crew_run(cmoe_ctx_threads(session->ctx), logits_thread, &w);
    cmoe_arena arena = cmoe_arena_make(scratch, host);
    status = cmoe_route(session->stream, &o, cmoe_view_2d(w.logits, CMOE_F32, tokens, s->experts),
                        NULL, cmoe_view_mut_2d(weights, CMOE_F32, tokens, s->topk),
                        cmoe_view_mut_2d(ids, CMOE_I32, tokens, s->topk), &arena, &err);
    free(w.logits);
    free(scratch);
    return report_status(status, "routing", &err);
}

int64_t synth_experts_hit(const synth *s, const int32_t *ids, int64_t n)
{
    int64_t hit = 0;
    char *seen = calloc((size_t)s->experts, 1);
    for (int64_t i = 0; seen && i < n; i++) {
        hit += !seen[ids[i]];
        seen[ids[i]] = 1;
    }
    free(seen);
    return hit;
}
