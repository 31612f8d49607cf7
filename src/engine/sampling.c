/* SPDX-License-Identifier: MIT
 *
 * sampling.c - one row of logits [vocab] and the tokens before it -> the next token.
 *
 * In transformers' order: repetition, presence and frequency penalties, bias, temperature, top_k,
 * top_p, min_p, a draw.  The draw inverts the cumulated distribution at a point that is a function
 * of seed, position and draw number, so a text does not depend on what else is computed.
 */
#include "engine/sampling.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { SEEN = 1 << 18, COUNTED = 1 << 13 }; /* ids of one range: 32 KiB of stack each */

void cmoe_sampling_default(cmoe_sampling *s, size_t size)
{
    const cmoe_sampling d = {.size = sizeof d, .top_p = 1, .repetition_penalty = 1};
    cmoei_options_write(s, size, &d, sizeof d);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoe_status check_range(const char *name, float value, bool good, const char *want,
                               cmoe_error *err)
{
    if (good) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "sampling.%s = %g, want %s", name, (double)value, want);
}

static cmoe_status check_bias(const cmoe_sampling *s, int64_t vocab, cmoe_error *err)
{
    if (s->biases < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "sampling.biases = %lld, want 0 or more",
                          (long long)s->biases);
    if (s->biases > 0 && (!s->bias_ids || !s->bias))
        return cmoei_fail(err, CMOE_ERR_ARG, "sampling.%s = NULL, want biases = %lld of them",
                          s->bias_ids ? "bias" : "bias_ids", (long long)s->biases);
    for (int64_t i = 0; i < s->biases; i++) {
        const int32_t id = s->bias_ids[i];
        const float b = s->bias[i];
        if (id < 0 || id >= vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "sampling.bias_ids[%lld] = %d, want 0 <= id < %lld (vocab)",
                              (long long)i, id, (long long)vocab);
        if (isnan(b) || b > FLT_MAX)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "sampling.bias[%lld] = %g (id %d), want a number or -infinity",
                              (long long)i, (double)b, id);
    }
    return CMOE_OK;
}

cmoe_status cmoei_sampling_read(cmoe_sampling *out, const cmoe_sampling *in, int64_t vocab,
                                cmoe_error *err)
{
    cmoe_sampling s;
    cmoe_sampling_default(&s, sizeof s);
    CMOEI_TRY(cmoei_options_read(&s, sizeof s, in, "cmoe_sampling", err));
    CMOEI_TRY(check_range("temperature", s.temperature,
                          isfinite(s.temperature) && s.temperature >= 0, "a number >= 0", err));
    if (s.top_k < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "sampling.top_k = %d, want 0 (all) or more",
                          s.top_k);
    CMOEI_TRY(check_range("top_p", s.top_p, s.top_p > 0 && s.top_p <= 1, "0 < top_p <= 1", err));
    CMOEI_TRY(check_range("min_p", s.min_p, s.min_p >= 0 && s.min_p < 1, "0 <= min_p < 1", err));
    CMOEI_TRY(check_range("repetition_penalty", s.repetition_penalty,
                          isfinite(s.repetition_penalty) && s.repetition_penalty > 0,
                          "a number > 0 (1: none)", err));
    CMOEI_TRY(check_range("presence_penalty", s.presence_penalty, isfinite(s.presence_penalty),
                          "a number (0: none)", err));
    CMOEI_TRY(check_range("frequency_penalty", s.frequency_penalty, isfinite(s.frequency_penalty),
                          "a number (0: none)", err));
    CMOEI_TRY(check_bias(&s, vocab, err));
    *out = s;
    return CMOE_OK;
}

cmoe_status cmoei_sampling_check_logits(const float *logits, int64_t vocab, cmoe_error *err)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < vocab; i++)
        bad |= logits[i] <= FLT_MAX ? 0u : 1u; /* also for NaN */
    for (int64_t i = 0; bad && i < vocab; i++) {
        if (!(logits[i] <= FLT_MAX))
            return cmoei_fail(err, CMOE_ERR_RANGE, "logits[%lld] = %g, want a number or -infinity",
                              (long long)i, (double)logits[i]);
    }
    return CMOE_OK;
}

static cmoe_status check_row(const float *logits, int64_t vocab, cmoe_error *err)
{
    if (vocab < 1 || vocab > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "vocab = %lld, want 1 to %d", (long long)vocab,
                          INT32_MAX);
    if (!logits)
        return cmoei_fail(err, CMOE_ERR_ARG, "logits = NULL, want [%lld] (vocab)",
                          (long long)vocab);
    return CMOE_OK;
}

static cmoe_status check_previous(const int32_t *previous, int64_t count, int64_t output,
                                  int64_t vocab, cmoe_error *err)
{
    if (count < 0 || output < 0 || output > count)
        return cmoei_fail(
            err, CMOE_ERR_RANGE,
            "previous_count = %lld, output = %lld, want 0 <= output <= previous_count",
            (long long)count, (long long)output);
    if (count > 0 && !previous)
        return cmoei_fail(err, CMOE_ERR_ARG, "previous = NULL, want [%lld] (previous_count)",
                          (long long)count);
    for (int64_t i = 0; i < count; i++) {
        if (previous[i] < 0 || previous[i] >= vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "previous[%lld] = %d, want 0 <= id < %lld (vocab)", (long long)i,
                              previous[i], (long long)vocab);
    }
    return CMOE_OK;
}

/* ---- ids of a range -------------------------------------------------------------------------- */

/* Which ids of [low, low + SEEN) have been met. */
typedef struct id_set {
    int64_t low;
    uint64_t bits[SEEN / 64];
} id_set;

static void set_open(id_set *set, int64_t low)
{
    set->low = low;
    memset(set->bits, 0, sizeof set->bits);
}

/* Whether the id lies in the range and is met for the first time. */
static bool set_add(id_set *set, int64_t id)
{
    const int64_t i = id - set->low;
    if (i < 0 || i >= SEEN) return false;
    const uint64_t bit = (uint64_t)1 << (i & 63);
    const bool fresh = !(set->bits[i >> 6] & bit);
    set->bits[i >> 6] |= bit;
    return fresh;
}

static bool set_has(const id_set *set, int64_t id)
{
    const int64_t i = id - set->low;
    return set->bits[i >> 6] >> (i & 63) & 1;
}

/* Something is left: an id that is possible and that no bias forbids. */
static bool any_allowed(const cmoe_sampling *s, const float *logits, int64_t vocab)
{
    id_set forbidden;
    for (int64_t low = 0; low < vocab; low += SEEN) {
        set_open(&forbidden, low);
        for (int64_t i = 0; i < s->biases; i++) {
            if (s->bias[i] < -FLT_MAX) (void)set_add(&forbidden, s->bias_ids[i]);
        }
        for (int64_t i = low; i < CMOEI_MIN(vocab, low + SEEN); i++) {
            if (logits[i] >= -FLT_MAX && !set_has(&forbidden, i)) return true;
        }
    }
    return false;
}

/* ---- penalties, bias, temperature ------------------------------------------------------------ */

/* What is possible stays possible, and finite: only a bias of -infinity forbids. */
static float keep_finite(float before, float x)
{
    if (before < -FLT_MAX) return before;
    return x > FLT_MAX ? FLT_MAX : (x < -FLT_MAX ? -FLT_MAX : x);
}

static void repetition(const cmoe_sampling *s, float *logits, int64_t vocab,
                       const int32_t *previous, int64_t count)
{
    const float p = s->repetition_penalty;
    id_set seen;
    if (p == 1) return;
    for (int64_t low = 0; low < vocab; low += SEEN) {
        set_open(&seen, low);
        for (int64_t i = 0; i < count; i++) {
            if (previous[i] >= vocab || !set_add(&seen, previous[i])) continue;
            float *x = logits + previous[i];
            *x = keep_finite(*x, *x < 0 ? *x * p : *x / p);
        }
    }
}

/* x - presence - count * frequency for every id of the output. */
static void presence_and_frequency(const cmoe_sampling *s, float *logits, int64_t vocab,
                                   const int32_t *output, int64_t count)
{
    int32_t times[COUNTED];
    if ((s->presence_penalty == 0 && s->frequency_penalty == 0) || count == 0) return;
    for (int64_t low = 0; low < vocab; low += COUNTED) {
        const int64_t range = CMOEI_MIN(COUNTED, vocab - low);
        memset(times, 0, sizeof times);
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = output[i] - low;
            if (at >= 0 && at < range) times[at]++;
        }
        for (int64_t i = 0; i < range; i++) {
            if (times[i] == 0) continue;
            const float x = logits[low + i];
            const float less = s->presence_penalty + (float)times[i] * s->frequency_penalty;
            logits[low + i] = keep_finite(x, x - less);
        }
    }
}

static void add_bias(const cmoe_sampling *s, float *logits)
{
    for (int64_t i = 0; i < s->biases; i++) {
        float *x = logits + s->bias_ids[i];
        *x = s->bias[i] < -FLT_MAX ? -INFINITY : keep_finite(*x, *x + s->bias[i]);
    }
}

/* A quotient beyond the largest float would leave nothing to tell the best apart by: then they are
 * taken relative to the best, which means the same. */
static void divide(float *logits, int64_t vocab, float temperature)
{
    if (temperature == 1) return;
    const float top = cmoei_top(logits, vocab);
    const float base = fabsf(top / temperature) <= FLT_MAX ? 0.0f : top;
    for (int64_t i = 0; i < vocab; i++)
        logits[i] = (logits[i] - base) / temperature;
}

cmoe_status cmoei_sampling_run(const cmoe_sampling *s, float *logits, int64_t vocab,
                               const int32_t *previous, int64_t count, int64_t output,
                               cmoe_error *err)
{
    CMOEI_TRY(cmoei_sampling_check_logits(logits, vocab, err));
    if (!any_allowed(s, logits, vocab))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "every id of the %lld (vocab) is forbidden by its logit of -infinity or "
                          "by sampling.bias, want at least one left",
                          (long long)vocab);
    repetition(s, logits, vocab, previous, count);
    if (output > 0) presence_and_frequency(s, logits, vocab, previous + count - output, output);
    add_bias(s, logits);
    if (s->temperature > 0) {
        divide(logits, vocab, s->temperature);
        cmoei_keep_top_k(logits, vocab, s->top_k);
        cmoei_keep_top_p(logits, vocab, s->top_p);
        cmoei_keep_min_p(logits, vocab, s->min_p);
    }
    return CMOE_OK;
}

int64_t cmoei_sampling_pick(const cmoe_sampling *s, const float *logits, int64_t vocab,
                            int64_t position, int64_t draw)
{
    if (s->temperature == 0) {
        const int64_t best = cmoei_best(logits, vocab, -1);
        return best >= 0 && logits[best] > -INFINITY ? best : -1;
    }
    /* 53 bits: with the 24 of cmoe_random_uniform rare ids would come in steps of 6e-8. */
    const uint64_t bits = cmoe_random_u64(s->seed, (uint64_t)position, (uint64_t)draw);
    return cmoei_weight_find(logits, vocab, (double)(bits >> 11) * 0x1p-53);
}

/* ---- public ---------------------------------------------------------------------------------- */

cmoe_status cmoe_sampling_process(cmoe_ctx *ctx, const cmoe_sampling *s, float *logits,
                                  int64_t vocab, const int32_t *previous, int64_t previous_count,
                                  int64_t output, cmoe_error *err)
{
    (void)ctx; /* no memory is needed */
    cmoe_sampling checked;
    CMOEI_TRY(check_row(logits, vocab, err));
    CMOEI_TRY(cmoei_sampling_read(&checked, s, vocab, err));
    CMOEI_TRY(check_previous(previous, previous_count, output, vocab, err));
    const uint64_t before = cmoei_float_enter();
    const cmoe_status status =
        cmoei_sampling_run(&checked, logits, vocab, previous, previous_count, output, err);
    cmoei_float_leave(before);
    return status;
}

cmoe_status cmoe_sampling_draw(const cmoe_sampling *s, const float *logits, int64_t vocab,
                               int64_t position, int32_t *id, cmoe_error *err)
{
    cmoe_sampling checked;
    CMOEI_TRY(check_row(logits, vocab, err));
    if (!id) return cmoei_fail(err, CMOE_ERR_ARG, "id = NULL, want a place for the token");
    if (position < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "position = %lld, want 0 or more",
                          (long long)position);
    CMOEI_TRY(cmoei_sampling_read(&checked, s, vocab, err));
    CMOEI_TRY(cmoei_sampling_check_logits(logits, vocab, err));
    const uint64_t before = cmoei_float_enter();
    const int64_t drawn = cmoei_sampling_pick(&checked, logits, vocab, position, 0);
    cmoei_float_leave(before);
    if (drawn < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "every one of the %lld logits (vocab) is -infinity, want at least one id "
                          "left",
                          (long long)vocab);
    *id = (int32_t)drawn;
    return CMOE_OK;
}
