/* SPDX-License-Identifier: MIT
 *
 * sampling.c - every check of cmoe_sampling_process and cmoe_sampling_draw, filters against a plain
 * sort, ties, and the statistics of draws.
 */
#include <float.h>
#include <math.h>

#include "unit.h"

#include "cmoe/engine.h"
#include "engine/sampling.h"

static cmoe_sampling settings(void)
{
    cmoe_sampling s;
    cmoe_sampling_default(&s, sizeof s);
    s.temperature = 1;
    return s;
}

/* Floats of a seed, about as logits are spread. */
static void fill(float *x, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = 3 * cmoe_random_normal(seed, (uint64_t)i, 7);
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void process_fails(const cmoe_sampling *s, const char *text)
{
    float x[4] = {1, 2, 3, 4};
    int32_t id = 77;
    UNIT_FAILS(cmoe_sampling_process(NULL, s, x, 4, NULL, 0, 0, &err), CMOE_ERR_RANGE, text);
    UNIT_FAILS(cmoe_sampling_draw(s, x, 4, 0, &id, &err), CMOE_ERR_RANGE, text);
    assert_true(x[0] == 1 && x[1] == 2 && x[2] == 3 && x[3] == 4);
    assert_int_equal(id, 77);
}

static void bad_settings(void **state)
{
    (void)state;
    const struct {
        size_t field;
        float value;
        const char *text;
    } bad[] = {
        {offsetof(cmoe_sampling, temperature), -1, "sampling.temperature = -1, want a number >= 0"},
        {offsetof(cmoe_sampling, temperature), NAN, "sampling.temperature = nan"},
        {offsetof(cmoe_sampling, temperature), INFINITY, "sampling.temperature = inf"},
        {offsetof(cmoe_sampling, top_p), 0, "sampling.top_p = 0, want 0 < top_p <= 1"},
        {offsetof(cmoe_sampling, top_p), 1.5f, "sampling.top_p = 1.5"},
        {offsetof(cmoe_sampling, top_p), NAN, "sampling.top_p = nan"},
        {offsetof(cmoe_sampling, min_p), 1, "sampling.min_p = 1, want 0 <= min_p < 1"},
        {offsetof(cmoe_sampling, min_p), -0.5f, "sampling.min_p = -0.5"},
        {offsetof(cmoe_sampling, min_p), NAN, "sampling.min_p = nan"},
        {offsetof(cmoe_sampling, repetition_penalty), 0,
         "sampling.repetition_penalty = 0, want a number > 0 (1: none)"},
        {offsetof(cmoe_sampling, repetition_penalty), -2, "sampling.repetition_penalty = -2"},
        {offsetof(cmoe_sampling, repetition_penalty), INFINITY, "repetition_penalty = inf"},
        {offsetof(cmoe_sampling, presence_penalty), NAN,
         "sampling.presence_penalty = nan, want a number (0: none)"},
        {offsetof(cmoe_sampling, frequency_penalty), INFINITY, "frequency_penalty = inf"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cmoe_sampling s = settings();
        memcpy((char *)&s + bad[i].field, &bad[i].value, sizeof bad[i].value);
        process_fails(&s, bad[i].text);
    }
    cmoe_sampling s = settings();
    s.top_k = -1;
    process_fails(&s, "sampling.top_k = -1, want 0 (all) or more");
}

static void bad_bias(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4};
    int32_t ids[] = {1, 4};
    float bias[] = {-INFINITY, 2};
    cmoe_sampling s = settings();
    s.biases = -3;
    process_fails(&s, "sampling.biases = -3, want 0 or more");
    s.biases = 2;
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 4, NULL, 0, 0, &err), CMOE_ERR_ARG,
               "sampling.bias_ids = NULL, want biases = 2 of them");
    s.bias_ids = ids;
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 4, NULL, 0, 0, &err), CMOE_ERR_ARG,
               "sampling.bias = NULL");
    s.bias = bias;
    process_fails(&s, "sampling.bias_ids[1] = 4, want 0 <= id < 4 (vocab)");
    ids[1] = -1;
    process_fails(&s, "sampling.bias_ids[1] = -1");
    ids[1] = 3;
    bias[1] = INFINITY;
    process_fails(&s, "sampling.bias[1] = inf (id 3), want a number or -infinity");
    bias[1] = NAN;
    process_fails(&s, "sampling.bias[1] = nan (id 3)");
}

static void bad_arguments(void **state)
{
    (void)state;
    const cmoe_sampling s = settings();
    float x[4] = {1, 2, 3, 4};
    int32_t id = 77, previous[] = {0, 4};
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 0, NULL, 0, 0, &err), CMOE_ERR_RANGE,
               "vocab = 0, want 1 to 2147483647");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, NULL, 4, NULL, 0, 0, &err), CMOE_ERR_ARG,
               "logits = NULL, want [4] (vocab)");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 4, NULL, 2, 0, &err), CMOE_ERR_ARG,
               "previous = NULL, want [2] (previous_count)");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 4, previous, 2, 3, &err), CMOE_ERR_RANGE,
               "previous_count = 2, output = 3, want 0 <= output <= previous_count");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 4, previous, -1, -1, &err), CMOE_ERR_RANGE,
               "previous_count = -1");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, 4, previous, 2, 0, &err), CMOE_ERR_RANGE,
               "previous[1] = 4, want 0 <= id < 4 (vocab)");
    UNIT_FAILS(cmoe_sampling_draw(&s, NULL, 4, 0, &id, &err), CMOE_ERR_ARG, "logits = NULL");
    UNIT_FAILS(cmoe_sampling_draw(&s, x, -1, 0, &id, &err), CMOE_ERR_RANGE, "vocab = -1");
    UNIT_FAILS(cmoe_sampling_draw(&s, x, 4, 0, NULL, &err), CMOE_ERR_ARG, "id = NULL");
    UNIT_FAILS(cmoe_sampling_draw(&s, x, 4, -5, &id, &err), CMOE_ERR_RANGE,
               "position = -5, want 0 or more");
    cmoe_sampling other = s;
    other.size = 1;
    UNIT_FAILS(cmoe_sampling_draw(&other, x, 4, 0, &id, &err), CMOE_ERR_ARG,
               "cmoe_sampling.size = 1");
    assert_int_equal(id, 77);
}

static void bad_logits(void **state)
{
    (void)state;
    const cmoe_sampling s = settings();
    int32_t id = 77;
    float nan[] = {1, NAN, 3, NAN}, inf[] = {1, 2, INFINITY, 4};
    float none[] = {-INFINITY, -INFINITY, -INFINITY};
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, nan, 4, NULL, 0, 0, &err), CMOE_ERR_RANGE,
               "logits[1] = nan, want a number or -infinity");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, inf, 4, NULL, 0, 0, &err), CMOE_ERR_RANGE,
               "logits[2] = inf");
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, none, 3, NULL, 0, 0, &err), CMOE_ERR_RANGE,
               "every id of the 3 (vocab) is forbidden");
    UNIT_FAILS(cmoe_sampling_draw(&s, nan, 4, 0, &id, &err), CMOE_ERR_RANGE, "logits[1] = nan");
    UNIT_FAILS(cmoe_sampling_draw(&s, none, 3, 0, &id, &err), CMOE_ERR_RANGE,
               "every one of the 3 logits (vocab) is -infinity");
    cmoe_sampling greedy;
    cmoe_sampling_default(&greedy, sizeof greedy);
    UNIT_FAILS(cmoe_sampling_draw(&greedy, none, 3, 0, &id, &err), CMOE_ERR_RANGE,
               "every one of the 3 logits");
    assert_int_equal(id, 77);
}

/* Bias may forbid all but one id, in any order and more than once, and not the last one. */
static void all_forbidden(void **state)
{
    (void)state;
    enum { N = 300000 }; /* more than one range of ids */
    int32_t *ids = malloc(N * sizeof *ids);
    float *bias = malloc(N * sizeof *bias), *x = malloc(N * sizeof *x);
    for (int i = 0; i < N; i++) {
        ids[i] = N - 1 - i;
        bias[i] = -INFINITY;
        x[i] = (float)(i % 100);
    }
    cmoe_sampling s = settings();
    s.bias_ids = ids;
    s.bias = bias;
    s.biases = N;
    UNIT_FAILS(cmoe_sampling_process(NULL, &s, x, N, NULL, 0, 0, &err), CMOE_ERR_RANGE,
               "every id of the 300000 (vocab) is forbidden by its logit of -infinity or by "
               "sampling.bias");
    assert_true(x[1] == 1 && x[N - 1] == 99); /* untouched */
    ids[1] = ids[0];                          /* now N - 2 is allowed */
    UNIT_OK(cmoe_sampling_process(NULL, &s, x, N, NULL, 0, 0, &err));
    int32_t id;
    UNIT_OK(cmoe_sampling_draw(&s, x, N, 3, &id, &err));
    assert_int_equal(id, N - 2);
    free(ids);
    free(bias);
    free(x);
}

/* ---- penalties ------------------------------------------------------------------------------- */

static void penalties(void **state)
{
    (void)state;
    enum { N = 270000, FAR = 269999 };
    float *x = calloc(N, sizeof *x);
    const int32_t previous[] = {5, 6, FAR, 5, 6, 7, FAR, FAR};
    x[5] = 2, x[6] = -2, x[7] = 0, x[FAR] = 8, x[9] = 1;
    cmoe_sampling s;
    cmoe_sampling_default(&s, sizeof s); /* temperature 0: nothing after the bias */
    s.repetition_penalty = 2;
    s.presence_penalty = 0.5f;
    s.frequency_penalty = 0.25f;
    const int32_t ids[] = {9, 5};
    const float bias[] = {-0.5f, 16};
    s.bias_ids = ids;
    s.bias = bias;
    s.biases = 2;
    s.top_k = 1;
    UNIT_OK(cmoe_sampling_process(NULL, &s, x, N, previous, 8, 4, &err));
    assert_true(x[5] == 1 + 16); /* once, although it stands twice; in the prompt only */
    assert_true(x[6] == -4 - 0.75f);
    assert_true(x[7] == 0 - 0.75f);
    assert_true(x[FAR] == 4 - 1.0f); /* two of its three are output */
    assert_true(x[9] == 0.5f);
    assert_true(x[10] == 0);
    int32_t id;
    UNIT_OK(cmoe_sampling_draw(&s, x, N, 0, &id, &err));
    assert_int_equal(id, 5);
    free(x);
}

/* Numbers at the end of the range of floats stay numbers, and keep their order. */
static void extremes(void **state)
{
    (void)state;
    float x[] = {FLT_MAX, -FLT_MAX, 3e38f, -INFINITY, 5, 4};
    const int32_t previous[] = {0, 1, 2, 3};
    cmoe_sampling s = settings();
    s.repetition_penalty = 0.5f;
    s.presence_penalty = -3e38f;
    s.frequency_penalty = -3e38f;
    UNIT_OK(cmoe_sampling_process(NULL, &s, x, 6, previous, 4, 4, &err));
    assert_true(x[0] == FLT_MAX && x[2] == FLT_MAX && isfinite(x[1]) && x[3] == -INFINITY);
    float cold[] = {5, 4, -3, 5};
    s = settings();
    s.temperature = FLT_MIN;
    UNIT_OK(cmoe_sampling_process(NULL, &s, cold, 4, NULL, 0, 0, &err));
    assert_true(cold[0] == 0 && cold[3] == 0 && cold[1] < -1e37f);
    for (int64_t p = 0; p < 50; p++) {
        int32_t id = -1;
        UNIT_OK(cmoe_sampling_draw(&s, cold, 4, p, &id, &err));
        assert_true(id == 0 || id == 3);
    }
}

/* ---- filters --------------------------------------------------------------------------------- */

typedef struct ranked {
    float x;
    int64_t id;
} ranked;

static int ascending(const void *a, const void *b)
{
    const ranked *p = a, *q = b;
    if (p->x != q->x) return p->x < q->x ? -1 : 1;
    return (p->id > q->id) - (p->id < q->id);
}

static ranked *sorted(const float *x, int64_t n)
{
    ranked *r = malloc((size_t)n * sizeof *r);
    for (int64_t i = 0; i < n; i++)
        r[i] = (ranked){x[i], i};
    qsort(r, (size_t)n, sizeof *r, ascending);
    return r;
}

static void check_top_k(const float *x, int64_t n, int32_t k)
{
    float *y = malloc((size_t)n * sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    ranked *r = sorted(x, n);
    cmoei_keep_top_k(y, n, k);
    const float cut = k > 0 && k < n ? r[n - k].x : -INFINITY;
    for (int64_t i = 0; i < n; i++)
        assert_true(y[i] == (x[i] < cut ? -INFINITY : x[i]));
    free(r);
    free(y);
}

/* Where the cumulated mass comes within rounding of the limit either answer is right. */
static void check_top_p(const float *x, int64_t n, float p)
{
    float *y = malloc((size_t)n * sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    ranked *r = sorted(x, n);
    double sum = 0, below = 0;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)r[i].x - r[n - 1].x);
    cmoei_keep_top_p(y, n, p);
    for (int64_t i = 0; i < n; i++) {
        below += exp((double)r[i].x - r[n - 1].x) / sum;
        const double off = below - (1.0 - (double)p);
        const bool dropped = off <= 0 && i < n - 1 && p < 1;
        const float got = y[r[i].id];
        if (fabs(off) < 1e-7)
            assert_true(got == r[i].x || got == -INFINITY);
        else
            assert_true(got == (dropped ? -INFINITY : r[i].x));
    }
    free(r);
    free(y);
}

static void filters(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 2, 7, 64, 257, 5000};
    const float ps[] = {1e-6f, 0.1f, 0.5f, 0.9f, 0.999f, 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const int64_t n = sizes[i];
        float *x = malloc((size_t)n * sizeof *x);
        for (uint64_t seed = 0; seed < 6; seed++) {
            fill(x, n, seed);
            for (int64_t j = 0; j < n; j++) {
                if (seed % 3 == 1) x[j] = roundf(x[j]); /* ties, 0 and -0 */
                if (seed % 3 == 2 && j % 5 && j) x[j] = -INFINITY;
            }
            for (int32_t k = 0; k <= n + 1; k += 1 + k / 3)
                check_top_k(x, n, k);
            for (size_t j = 0; j < sizeof ps / sizeof ps[0]; j++)
                check_top_p(x, n, ps[j]);
        }
        free(x);
    }
}

static void filter_ties(void **state)
{
    (void)state;
    float x[] = {-0.0f, 3, 0, 3, -1}; /* ties with the k-th stay, and -0 is 0 */
    cmoei_keep_top_k(x, 5, 3);
    assert_true(x[0] == 0 && x[1] == 3 && x[2] == 0 && x[3] == 3 && x[4] == -INFINITY);
    float p[] = {1, 1, 1,
                 1}; /* a quarter each: the lower ids go first, those of exactly 1 - p too */
    cmoei_keep_top_p(p, 4, 0.5f);
    assert_true(p[0] == -INFINITY && p[1] == -INFINITY && p[2] == 1 && p[3] == 1);
    float one[] = {2, 2, 2, 0}; /* the last of the best stays */
    cmoei_keep_top_p(one, 4, 1e-9f);
    assert_true(one[0] == -INFINITY && one[1] == -INFINITY && one[2] == 2 && one[3] == -INFINITY);
    float m[] = {0, -1, -0.5f, -3}; /* 1, 0.37, 0.61, 0.05 of the best */
    cmoei_keep_min_p(m, 4, 0.5f);
    assert_true(m[0] == 0 && m[1] == -INFINITY && m[2] == -0.5f && m[3] == -INFINITY);
}

/* ---- weights --------------------------------------------------------------------------------- */

static void weights(void **state)
{
    (void)state;
    float x[1000];
    double w[1000];
    for (int i = 0; i < 1000; i++)
        x[i] = -0.001f * (float)(i * i);
    cmoei_weights(x, 1000, 0, w);
    for (int i = 0; i < 1000; i++) {
        const double want = x[i] > -700 ? exp(x[i]) : 0;
        assert_true(fabs(w[i] - want) <= 8e-9 * want);
    }
    assert_true(w[0] == 1);
    const float ends[] = {-INFINITY, NAN, -701, -1e30f};
    cmoei_weights(ends, 4, 0, w);
    assert_true(w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 0);
}

/* Equal ones in the order of their ids, however many are asked for; all of a large vocabulary at
 * once, which n * n steps would not get through. */
static void top_of_many(void)
{
    enum { VOCAB = 300007 };
    float *x = malloc(VOCAB * sizeof *x);
    cmoe_logprob *out = malloc((VOCAB + 3) * sizeof *out);
    assert_true(x && out);
    for (int64_t i = 0; i < VOCAB; i++)
        x[i] = (float)(i * 7919 % 1009); /* rising and falling, each value often */
    static const int32_t counts[] = {1, 2, 3, 1009, 5000, VOCAB, VOCAB + 2};
    for (int c = 0; c < 7; c++) {
        cmoei_top_logprobs(x, VOCAB, 3, counts[c], out);
        for (int64_t i = 1; i < counts[c] && i < VOCAB; i++) {
            const cmoe_logprob *a = &out[i], *b = &out[i + 1];
            if (x[a->id] < x[b->id] || (x[a->id] == x[b->id] && a->id >= b->id))
                fail_msg("%d of %d: %d before %d", (int)i, counts[c], a->id, b->id);
        }
        assert_true(x[out[1].id] == 1008);
    }
    assert_true(out[VOCAB].id >= 0 && out[VOCAB + 1].id == -1 && out[VOCAB + 2].id == -1);
    free(x);
    free(out);
}

static void best_and_logprobs(void **state)
{
    (void)state;
    enum { N = 1003 };
    float x[N];
    fill(x, N, 3);
    x[40] = x[900] = x[77] = 20;
    x[41] = 19;
    assert_int_equal(cmoei_best(x, N, -1), 40);
    assert_int_equal(cmoei_best(x, N, 40), 77);
    assert_int_equal(cmoei_best(x, 50, 40), 41);
    assert_int_equal(cmoei_best(x, N, 5000), 40);
    assert_int_equal(cmoei_best(x, 0, -1), -1);
    assert_int_equal(cmoei_best(x, 1, 0), -1);
    const float nans[] = {NAN, -INFINITY, NAN}, high[] = {1, 9, 2};
    assert_int_equal(cmoei_best(nans, 3, -1), 1);
    assert_int_equal(cmoei_best(nans, 1, -1), -1);
    assert_int_equal(cmoei_best(high, 3, 0), 1);
    assert_int_equal(cmoei_best(high, 3, 1), 2);

    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += exp((double)x[i] - 20);
    cmoe_logprob out[6];
    cmoei_top_logprobs(x, N, 5, 5, out);
    const int32_t ids[] = {5, 40, 77, 900, 41};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(out[i].id, ids[i]);
        assert_true(fabs(out[i].logprob - (x[ids[i]] - 20 - log(sum))) < 4 * 20 * FLT_EPSILON);
    }
    assert_true(out[5].logprob <= out[4].logprob && out[5].id >= 0);
    const float two[] = {-INFINITY, 4};
    cmoei_top_logprobs(two, 2, 0, 3, out);
    assert_true(out[0].id == 0 && out[0].logprob == -INFINITY);
    assert_true(out[1].id == 1 && out[1].logprob == 0 && out[2].id == 0);
    assert_true(out[3].id == -1 && out[3].logprob == -INFINITY);
    top_of_many();
    cmoei_top_logprobs(two, 2, 1, 0, out);
    assert_true(out[0].id == 1 && out[0].logprob == 0);
    float log_sum = 1;
    cmoei_log_sum(two, 1, &log_sum);
    assert_true(log_sum == 0);
}

/* ---- draws ----------------------------------------------------------------------------------- */

/* 100,000 positions against the distribution: chi square with n - 1 degrees of freedom has the
 * deviation sqrt(2 (n - 1)); five of them. */
static void statistics(void **state)
{
    (void)state;
    enum { N = 600, POSITIONS = 100000 }; /* ids over three blocks of the sum */
    float x[N];
    int32_t count[N] = {0};
    double sum = 0, chi = 0;
    for (int i = 0; i < N; i++) {
        x[i] = 1 * cmoe_random_normal(1, (uint64_t)i, 0);
        x[i] = i % 7 == 3 ? -INFINITY : fmaxf(-2, x[i]);
        sum += exp(x[i]);
    }
    cmoe_sampling s = settings();
    s.seed = 99;
    for (int64_t p = 0; p < POSITIONS; p++) {
        int32_t id = -1;
        assert_int_equal(cmoe_sampling_draw(&s, x, N, p, &id, NULL), CMOE_OK);
        count[id]++;
    }
    int freedom = -1;
    for (int i = 0; i < N; i++) {
        const double want = POSITIONS * exp(x[i]) / sum;
        if (want <= 0)
            assert_int_equal(count[i], 0);
        else
            freedom++, chi += (count[i] - want) * (count[i] - want) / want;
    }
    if (fabs(chi - freedom) > 5 * sqrt(2.0 * freedom))
        fail_msg("chi square %.1f, want %d", chi, freedom);
}

/* Two seeds, and neighbouring positions, agree as often as chance has it: of 64 equal ids 1 / 64. */
static void independence(void **state)
{
    (void)state;
    enum { N = 64, POSITIONS = 20000 };
    float x[N] = {0};
    int32_t last = -1, same_seeds = 0, same_neighbours = 0;
    for (int64_t p = 0; p < POSITIONS; p++) {
        cmoe_sampling s = settings();
        int32_t a = -1, b = -1, again = -1;
        assert_int_equal(cmoe_sampling_draw(&s, x, N, p, &a, NULL), CMOE_OK);
        assert_int_equal(cmoe_sampling_draw(&s, x, N, p, &again, NULL), CMOE_OK);
        s.seed = 1;
        assert_int_equal(cmoe_sampling_draw(&s, x, N, p, &b, NULL), CMOE_OK);
        assert_int_equal(a, again);
        same_seeds += a == b;
        same_neighbours += a == last;
        last = a;
    }
    const double mean = POSITIONS / (double)N, deviation = sqrt(mean);
    assert_true(fabs(same_seeds - mean) < 5 * deviation);
    assert_true(fabs(same_neighbours - mean) < 5 * deviation);
}

/* The point of the draw falls into each id's share, at both ends. */
static void shares(void **state)
{
    (void)state;
    const float x[] = {-INFINITY, 0, 0, -INFINITY, 0, 0, -INFINITY};
    const double at[] = {0, 0.2499999999, 0.25, 0.5, 0.75, 0.99999999999};
    const int64_t want[] = {1, 1, 2, 4, 5, 5};
    for (int i = 0; i < 6; i++)
        assert_int_equal(cmoei_weight_find(x, 7, at[i]), want[i]);
    assert_int_equal(cmoei_weight_find(x, 1, 0.5), -1);
    float many[1000];
    fill(many, 1000, 2);
    for (int i = 0; i < 100; i++) { /* any share gives an id, the last one too */
        const int64_t id = cmoei_weight_find(many, 1000, 1 - ldexp(1, -53));
        assert_true(id >= 0 && id < 1000);
        many[id] = -INFINITY;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_settings),      cmocka_unit_test(bad_bias),
        cmocka_unit_test(bad_arguments),     cmocka_unit_test(bad_logits),
        cmocka_unit_test(all_forbidden),     cmocka_unit_test(penalties),
        cmocka_unit_test(extremes),          cmocka_unit_test(filters),
        cmocka_unit_test(filter_ties),       cmocka_unit_test(weights),
        cmocka_unit_test(best_and_logprobs), cmocka_unit_test(statistics),
        cmocka_unit_test(independence),      cmocka_unit_test(shares),
    };
    return UNIT_RUN("unit_sampling", tests);
}
