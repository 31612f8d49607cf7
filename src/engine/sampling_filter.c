/* SPDX-License-Identifier: MIT
 *
 * sampling_filter.c - top_k, top_p and min_p of a row of logits [n]: what is left out becomes
 * -infinity.
 *
 * No sorting.  Where the cut lies is found by a radix search over the bits of the values, 11, 11 and
 * 10 of them: each round counts (top_k) or weighs (top_p) the values by their next digit and goes
 * on with the digit in which the cut falls.  Three passes over the row whatever it holds, a table of
 * 2048 entries on the stack, and no order among equal values that could depend on the algorithm.
 */
#include "engine/sampling.h"

#include "core/vmath.h"

enum { ROUNDS = 3, DIGITS = 2048, BLOCKS = 1024 };
static const int round_shift[ROUNDS] = {21, 10, 0};
static const uint32_t round_digits[ROUNDS] = {2048, 2048, 1024};

/* Larger for larger values; -0 and 0 are equal. */
static inline uint32_t key_of(float x)
{
    const uint32_t u = cmoei_bits(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static inline float value_of(uint32_t key)
{
    return cmoei_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* Keys that agree with `prefix` above the digit of this round. */
static inline bool in_prefix(uint32_t key, uint32_t prefix, int round)
{
    return round == 0 || (key ^ prefix) >> round_shift[round - 1] == 0;
}

static inline uint32_t digit_of(uint32_t key, int round)
{
    return key >> round_shift[round] & (round_digits[round] - 1);
}

/* The next block of x from *i on that holds anything possible; false at the end.  After top_k most
 * hold nothing. */
static bool next_block(const float *x, int64_t n, int64_t *i, int64_t *end)
{
    for (; *i < n; *i += CMOEI_SUM_BLOCK) {
        *end = CMOEI_MIN(*i + CMOEI_SUM_BLOCK, n);
        if (cmoei_top(x + *i, *end - *i) > -INFINITY) return true;
    }
    return false;
}

/* The k-th largest value, 1 <= k <= n; -infinity when fewer are possible. */
static float kth_largest(const float *x, int64_t n, int64_t k)
{
    uint32_t prefix = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int64_t count[DIGITS] = {0};
        for (int64_t i = 0, end; next_block(x, n, &i, &end);) {
            for (; i < end; i++) {
                const uint32_t key = key_of(x[i]);
                if (in_prefix(key, prefix, round)) count[digit_of(key, round)]++;
            }
        }
        uint32_t d = round_digits[round];
        while (d > 0 && count[d - 1] < k)
            k -= count[--d];
        if (d == 0) return -INFINITY;
        prefix |= (d - 1) << round_shift[round];
    }
    return value_of(prefix);
}

/* The k-th largest of the best of so many blocks cannot be above the k-th largest of all.  Blocks that
 * stay below it go without being looked at again: with k of 20 that is nearly the whole row. */
static void drop_low_blocks(float *x, int64_t n, int64_t k)
{
    float best[BLOCKS] = {0};
    const int64_t size = CMOEI_MAX(cmoei_ceil_div(n, BLOCKS), CMOEI_SUM_BLOCK);
    const int64_t blocks = cmoei_ceil_div(n, size);
    if (k > blocks) return;
    for (int64_t b = 0; b < blocks; b++)
        best[b] = cmoei_top(x + b * size, CMOEI_MIN(size, n - b * size));
    const float floor = kth_largest(best, blocks, k);
    for (int64_t b = 0; b < blocks; b++) {
        if (best[b] >= floor) continue;
        for (int64_t i = b * size; i < CMOEI_MIN(n, (b + 1) * size); i++)
            x[i] = -INFINITY;
    }
}

void cmoei_keep_top_k(float *logits, int64_t n, int64_t k)
{
    if (k <= 0 || k >= n) return;
    drop_low_blocks(logits, n, k);
    const float cut = kth_largest(logits, n, k);
    for (int64_t i = 0; i < n; i++)
        logits[i] = logits[i] < cut ? -INFINITY : logits[i];
}

/* Adds the weights of all values to their first digits. */
static void weigh_all(const float *x, int64_t n, float top, double *mass)
{
    double weight[CMOEI_SUM_BLOCK];
    for (int64_t i = 0, end; next_block(x, n, &i, &end); i = end) {
        cmoei_weights(x + i, end - i, top, weight);
        for (int64_t j = i; j < end; j++)
            mass[digit_of(key_of(x[j]), 0)] += weight[j - i];
    }
}

/* Later rounds: few values are left. */
static void weigh_prefix(const float *x, int64_t n, float top, uint32_t prefix, int round,
                         double *mass)
{
    for (int64_t i = 0, end; next_block(x, n, &i, &end);) {
        for (; i < end; i++) {
            const uint32_t key = key_of(x[i]);
            double weight;
            if (!in_prefix(key, prefix, round)) continue;
            cmoei_weights(x + i, 1, top, &weight);
            mass[digit_of(key, round)] += weight;
        }
    }
}

/* The value at which the weight cumulated from below passes `limit`; *below: of all smaller values.
 * Should rounding let nothing pass, the cut is in the last digit of any weight. */
static float cut_of_mass(const float *x, int64_t n, float top, double limit, double *below)
{
    uint32_t prefix = 0;
    *below = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double mass[DIGITS] = {0};
        if (round == 0)
            weigh_all(x, n, top, mass);
        else
            weigh_prefix(x, n, top, prefix, round, mass);
        uint32_t last = round_digits[round] - 1, d = 0;
        while (mass[last] <= 0)
            last--;
        for (; d < last && *below + mass[d] <= limit; d++)
            *below += mass[d];
        prefix |= d << round_shift[round];
    }
    return value_of(prefix);
}

/* From the low end ids go while the weight of what has gone is at most 1 - p; among equal ones the
 * lower ids first, as a stable ascending sort would have them.  The last of the best stays. */
void cmoei_keep_top_p(float *logits, int64_t n, float p)
{
    const float top = cmoei_top(logits, n);
    if (p >= 1 || top == -INFINITY) return;
    const double limit = (1.0 - (double)p) * cmoei_weight_sum(logits, n, top);
    double below, weight;
    const float cut = cut_of_mass(logits, n, top, limit, &below);
    cmoei_weights(&cut, 1, top, &weight);
    int64_t last = cut == top ? n - 1 : -1;
    while (last >= 0 && logits[last] != top)
        last--;
    for (int64_t i = 0, end; next_block(logits, n, &i, &end);) {
        for (; i < end; i++) {
            if (logits[i] > cut || i == last) continue;
            if (logits[i] == cut && below + weight > limit) continue;
            below += logits[i] == cut ? weight : 0;
            logits[i] = -INFINITY;
        }
    }
}

void cmoei_keep_min_p(float *logits, int64_t n, float p)
{
    if (p <= 0) return;
    double weight[CMOEI_SUM_BLOCK];
    const float top = cmoei_top(logits, n);
    for (int64_t i = 0; i < n; i += CMOEI_SUM_BLOCK) {
        const int64_t count = CMOEI_MIN(n - i, CMOEI_SUM_BLOCK);
        cmoei_weights(logits + i, count, top, weight);
        for (int64_t j = 0; j < count; j++)
            logits[i + j] = weight[j] < (double)p ? -INFINITY : logits[i + j];
    }
}
