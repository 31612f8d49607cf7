/* SPDX-License-Identifier: MIT
 *
 * sampling_weights.c - weights e^(x - max) of a row of logits [n], their sum, and what follows from
 * it: log-softmax, the best ids, and the id at a given share of the whole.
 *
 * The engine is built for every machine, and there a fused multiply-add is a call.  Hence an
 * exponential of its own in plain double arithmetic, which compilers turn into vectors of two: the
 * same bits everywhere, and good to 8e-9, a seventh of the rounding of a float32.
 *
 * Sums have one order: blocks of 256 ids in eight lanes each, the blocks one after the other.
 */
#include "engine/sampling.h"

#include "core/vmath.h"

enum { LANES = 8, WIDE = 64, NARROW = 4 };

/* e^x for x <= 0; 0 below -700, for -infinity and for NaN.  2^(n + f), |f| <= 1/2: Taylor's series
 * leaves out less than 0.35^8 / 8! = 6e-9, of no less than 0.7; n becomes the exponent. */
static inline double exp_below(double x)
{
    const double rounder = 0x1.8p52;
    const double c = x > -700.0 ? x : -700.0;
    const double y = c * 1.4426950408889634, biased = y + rounder;
    const double f = (y - (biased - rounder)) * 0.69314718055994531;
    double p = 1.0 / 5040;
    p = p * f + 1.0 / 720;
    p = p * f + 1.0 / 120;
    p = p * f + 1.0 / 24;
    p = p * f + 1.0 / 6;
    p = p * f + 0.5;
    p = p * f + 1.0;
    p = p * f + 1.0;
    const double e = p * cmoei_double((cmoei_bits64(biased) + 1023) << 52);
    return x > -700.0 ? e : 0.0;
}

/* So many lanes that compilers keep the loop over them and make vectors of it. */
float cmoei_top(const float *x, int64_t n)
{
    float lane[WIDE], top = -INFINITY;
    for (int j = 0; j < WIDE; j++)
        lane[j] = -INFINITY;
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        for (int j = 0; j < WIDE; j++)
            lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    }
    for (int half = WIDE / 2; half >= NARROW; half /= 2) {
        for (int j = 0; j < half; j++)
            lane[j] = lane[j + half] > lane[j] ? lane[j + half] : lane[j];
    }
    for (int j = 0; j < NARROW; j++)
        top = lane[j] > top ? lane[j] : top;
    for (; i < n; i++)
        top = x[i] > top ? x[i] : top;
    return top;
}

void cmoei_weights(const float *x, int64_t n, float top, double *out)
{
    const double t = top;
    for (int64_t i = 0; i < n; i++)
        out[i] = exp_below((double)x[i] - t);
}

static double lane_sum(const double *lane)
{
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* n at most CMOEI_SUM_BLOCK. */
static double block_sum(const float *x, int64_t n, float top, double *weight)
{
    if (cmoei_top(x, n) == -INFINITY) return 0; /* most blocks after top_k; adding 0 is exact */
    cmoei_weights(x, n, top, weight);
    for (int64_t i = n; i % LANES; i++)
        weight[i] = 0;
    double lane[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            lane[j] += weight[i + j];
    }
    return lane_sum(lane);
}

double cmoei_weight_sum(const float *x, int64_t n, float top)
{
    double weight[CMOEI_SUM_BLOCK], sum = 0;
    for (int64_t i = 0; i < n; i += CMOEI_SUM_BLOCK)
        sum += block_sum(x + i, CMOEI_MIN(n - i, CMOEI_SUM_BLOCK), top, weight);
    return sum;
}

double cmoei_weight_log_sum(const float *x, int64_t n, float top)
{
    double weight[CMOEI_SUM_BLOCK], sum = 0;
    for (int64_t i = 0; i < n; i += CMOEI_SUM_BLOCK) {
        const int64_t count = CMOEI_MIN(n - i, CMOEI_SUM_BLOCK);
        double lane[LANES] = {0};
        cmoei_weights(x + i, count, top, weight);
        for (int64_t j = 0; j < count; j++) /* a weight of 0 may have a logarithm of -infinity */
            lane[j % LANES] += weight[j] > 0 ? weight[j] * ((double)x[i + j] - (double)top) : 0;
        sum += lane_sum(lane);
    }
    return sum;
}

/* Inside the block that holds the point: one id after the other.  The block's sum has another order
 * of additions, so that the end may be reached by rounding; then it is the last id of any weight. */
static int64_t find_in_block(const double *weight, int64_t n, double rest)
{
    double sum = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < n; i++) {
        if (weight[i] <= 0) continue;
        last = i;
        sum += weight[i];
        if (sum > rest) break;
    }
    return last;
}

int64_t cmoei_weight_find(const float *x, int64_t n, double share)
{
    double weight[CMOEI_SUM_BLOCK], sum = 0;
    const float top = cmoei_top(x, n);
    if (top == -INFINITY) return -1;
    const double point = share * cmoei_weight_sum(x, n, top);
    for (int64_t i = 0; i < n; i += CMOEI_SUM_BLOCK) {
        const int64_t count = CMOEI_MIN(n - i, CMOEI_SUM_BLOCK);
        const double block = block_sum(x + i, count, top, weight);
        /* The same additions as in the whole sum, which is above the point: some block passes it. */
        if (sum + block > point) return i + find_in_block(weight, count, point - sum);
        sum += block;
    }
    return -1;
}

void cmoei_log_sum(const float *logits, int64_t n, float *log_sum)
{
    const uint64_t before = cmoei_float_enter();
    const float top = cmoei_top(logits, n);
    /* Nothing has any weight: log-probabilities of -infinity then come out as such. */
    *log_sum = 0;
    if (top > -INFINITY) *log_sum = top + cmoei_logf((float)cmoei_weight_sum(logits, n, top));
    cmoei_float_leave(before);
}

/* ---- the best -------------------------------------------------------------------------------- */

int64_t cmoei_best(const float *logits, int64_t usable, int64_t never)
{
    const bool split = never >= 0 && never < usable;
    const float low = cmoei_top(logits, split ? never : usable);
    const float high = split ? cmoei_top(logits + never + 1, usable - never - 1) : -INFINITY;
    const float top = low >= high ? low : high;
    for (int64_t i = low >= high || !split ? 0 : never + 1; i < usable;) {
        const int64_t end = CMOEI_MIN(i + CMOEI_SUM_BLOCK, usable);
        const bool here = cmoei_top(logits + i, end - i) >= top;
        for (; here && i < end; i++) {
            if (logits[i] == top && i != never) return i;
        }
        i = end;
    }
    return -1; /* no id, or NaN everywhere */
}

/* Of equal ones the lower id is better. */
static bool is_worse(const cmoe_logprob *a, const cmoe_logprob *b)
{
    return a->logprob < b->logprob || (!(a->logprob > b->logprob) && a->id > b->id);
}

/* A heap of n with the worst at its root, but for what stands at `at`: it goes down to where it
 * belongs. */
static void sift(cmoe_logprob *heap, int64_t n, int64_t at)
{
    const cmoe_logprob x = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_worse(&heap[child + 1], &heap[child])) child++;
        if (!is_worse(&heap[child], &x)) break;
        heap[at] = heap[child];
    }
    heap[at] = x;
}

/* Sorting by insertion would take a step for each pair: seconds when all of a vocabulary is asked
 * for. */
void cmoei_top_logprobs(const float *logits, int64_t vocab, int64_t id, int32_t n,
                        cmoe_logprob *out)
{
    float log_sum;
    cmoei_log_sum(logits, vocab, &log_sum);
    out[0] = (cmoe_logprob){(int32_t)id, logits[id] - log_sum};
    cmoe_logprob *best = out + 1;
    const int64_t kept = CMOEI_MIN(n, vocab);
    for (int64_t i = 0; i < kept; i++)
        best[i] = (cmoe_logprob){(int32_t)i, logits[i]};
    for (int64_t i = kept / 2; i-- > 0;)
        sift(best, kept, i);
    for (int64_t i = kept; kept > 0 && i < vocab; i++) {
        if (!(logits[i] > best[0].logprob)) continue; /* of equal ones the later is worse */
        best[0] = (cmoe_logprob){(int32_t)i, logits[i]};
        sift(best, kept, 0);
    }
    for (int64_t i = kept; i-- > 1;) { /* the worst goes last */
        const cmoe_logprob worst = best[0];
        best[0] = best[i];
        best[i] = worst;
        sift(best, i, 0);
    }
    for (int64_t i = 0; i < kept; i++)
        best[i].logprob -= log_sum;
    for (int64_t i = kept; i < n; i++)
        best[i] = (cmoe_logprob){-1, -INFINITY};
}
