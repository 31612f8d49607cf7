/* SPDX-License-Identifier: MIT
 *
 * route.c - cmoe_route against a routing rule written a second time (whole sorts, in double), and
 * its edge cases one by one.
 */
#include "route.h"

enum { MOST_E = 64, MOST_K = 16 };

/* ---- the rule a second time ------------------------------------------------------------------ */

typedef struct naive {
    const cmoe_route_options *o;
    const float *bias;       /* [E] or NULL */
    const int32_t *forced;   /* [K] or NULL */
    const float *per_expert; /* [E] or NULL */
    int64_t experts;
} naive;

/* Indices of x [n] by falling value, lower index first: insertion sort. */
static void sorted(const double *x, int64_t n, int32_t *order)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t j = i;
        for (; j > 0 && x[order[j - 1]] < x[i]; j--)
            order[j] = order[j - 1];
        order[j] = (int32_t)i;
    }
}

static double naive_score(int32_t scoring, double x, double top, double sum)
{
    switch (scoring) {
    case CMOE_SCORE_SOFTMAX:
        return exp(x - top) / sum;
    case CMOE_SCORE_SIGMOID:
        return 1 / (1 + exp(-x));
    case CMOE_SCORE_SQRTSOFTPLUS:
        return sqrt(x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)));
    default:
        return x;
    }
}

static void naive_groups(const naive *n, const double *score, double *choice)
{
    const cmoe_route_options *o = n->o;
    const int64_t size = n->experts / o->groups;
    double value[MOST_E];
    int32_t order[MOST_E];
    if (!o->topk_groups || o->topk_groups == o->groups) return;
    for (int64_t g = 0; g < o->groups; g++) {
        const double *x = (o->groups_biased ? choice : score) + g * size;
        sorted(x, size, order);
        value[g] = x[order[0]];
        if (o->group_score == CMOE_GROUP_TOP2 && size > 1) value[g] += x[order[1]];
    }
    sorted(value, o->groups, order);
    for (int64_t i = o->topk_groups; i < o->groups; i++) {
        for (int64_t j = 0; j < size; j++)
            choice[order[i] * size + j] = o->group_mask == CMOE_MASK_ZERO ? 0 : -INFINITY;
    }
}

static void naive_route(const naive *n, const float *logits, int32_t *ids, double *w)
{
    const cmoe_route_options *o = n->o;
    double score[MOST_E], choice[MOST_E], top = -INFINITY, sum = 0, total = 0;
    int32_t order[MOST_E];
    for (int64_t e = 0; e < n->experts; e++)
        top = fmax(top, logits[e]);
    for (int64_t e = 0; e < n->experts; e++)
        sum += exp(logits[e] - top);
    for (int64_t e = 0; e < n->experts; e++) {
        score[e] = naive_score(o->scoring, logits[e], top, sum);
        choice[e] = score[e] + (n->bias ? (double)n->bias[e] : 0);
    }
    naive_groups(n, score, choice);
    sorted(choice, n->experts, order);
    for (int64_t k = 0; k < o->topk; k++) {
        ids[k] = n->forced ? n->forced[k] : k < n->experts ? order[k] : -1;
        w[k] = ids[k] < 0 ? 0 : score[ids[k]];
        if (o->scoring == CMOE_SCORE_LOGITS && ids[k] >= 0) w[k] = exp(w[k] - top);
        total += w[k];
    }
    const bool logits_scored = o->scoring == CMOE_SCORE_LOGITS; /* weights are a softmax: no eps */
    if (o->eps_rule == CMOE_EPS_ADD && !logits_scored) total += o->eps;
    if (o->eps_rule == CMOE_EPS_MAX && !logits_scored) total = fmax(total, o->eps);
    for (int64_t k = 0; k < o->topk; k++) {
        if (o->renormalize || logits_scored) w[k] /= total;
        w[k] *= o->scale;
        if (n->per_expert && ids[k] >= 0) w[k] *= n->per_expert[ids[k]];
    }
}

/* Options drawn at random; sparsemixer has its own test. */
static cmoe_route_options random_options(uint64_t i, int64_t *experts)
{
    const int64_t sizes[] = {1, 2, 3, 8, 16, 24, 60, 64};
    const int64_t groups[] = {1, 2, 3, 1, 4, 8, 6, 8};
    const uint64_t r = cmoe_random_u64(1, i, 0);
    const int64_t at = (int64_t)(r % 8);
    *experts = sizes[at];
    cmoe_route_options o = options(1 + (int64_t)(r >> 8) % 9, (int32_t)(r >> 16 & 3));
    o.groups = r >> 20 & 1 ? groups[at] : 1;
    o.topk_groups = (int64_t)(r >> 24 & 0xff) % (o.groups + 1);
    o.group_mask = r >> 32 & 1;
    o.group_score = r >> 33 & 1;
    o.groups_biased = r >> 34 & 1;
    o.renormalize = r >> 35 & 1;
    o.eps_rule = (int32_t)(r >> 36 & 0xf) % 3;
    o.eps = r >> 40 & 1 ? 1e-20f : 0.25f;
    o.scale = r >> 41 & 1 ? 1 : 2.5f;
    o.validate = r >> 42 & 1;
    return o;
}

static void as_written_twice(void **state)
{
    (void)state;
    enum { T = 5 };
    for (uint64_t i = 0; i < 600; i++) {
        int64_t experts;
        cmoe_route_options o = random_options(i, &experts);
        const uint64_t r = cmoe_random_u64(2, i, 0);
        float *x = normals(i, T * experts, 2), *bias = normals(i + 1000, experts, 0.3f);
        float *per_expert = normals(i + 2000, experts, 1);
        int32_t forced[T * 16], want[16];
        double w[16];
        for (int j = 0; j < T * o.topk; j++)
            forced[j] = (int32_t)(cmoe_random_u64(3, i, (uint64_t)j) % (uint64_t)(experts + 1)) - 1;
        cmoe_route_inputs in = inputs();
        if (r & 1) in.bias = cmoe_view_1d(bias, CMOE_F32, experts);
        if (r & 2) in.per_expert_scale = cmoe_view_1d(per_expert, CMOE_F32, experts);
        if ((r & 12) == 0) in.given_ids = cmoe_view_2d(forced, CMOE_I32, T, o.topk);
        result got = route(&o, x, &in, T, experts);
        for (int t = 0; t < T; t++) {
            const naive n = {&o, r & 1 ? bias : NULL, r & 12 ? NULL : forced + t * o.topk,
                             r & 2 ? per_expert : NULL, experts};
            naive_route(&n, x + t * experts, want, w);
            for (int k = 0; k < o.topk; k++) {
                if (got.ids[t * o.topk + k] != want[k])
                    fail_msg("case %d: ids[%d, %d] = %d, want %d", (int)i, t, k,
                             got.ids[t * o.topk + k], want[k]);
                if (!(fabs(got.weights[t * o.topk + k] - w[k]) <= 64 * FLT_EPSILON * fabs(w[k])) &&
                    w[k] == w[k]) /* 0 / 0 without an epsilon: ours is 0 */
                    fail_msg("case %d: weights[%d, %d] = %.9g, want %.9g", (int)i, t, k,
                             (double)got.weights[t * o.topk + k], w[k]);
            }
        }
        result_free(&got);
        free(x);
        free(bias);
        free(per_expert);
    }
}

/* ---- named cases ----------------------------------------------------------------------------- */

static void names(void **state)
{
    (void)state;
    const char *want[] = {"softmax", "sigmoid", "sqrtsoftplus", "logits", "sparsemixer"};
    for (int32_t i = 0; i < 5; i++) {
        assert_string_equal(cmoe_route_scoring_name(i), want[i]);
        assert_int_equal(cmoe_route_scoring_parse(want[i]), i);
    }
    assert_null(cmoe_route_scoring_name(-1));
    assert_null(cmoe_route_scoring_name(5));
    assert_int_equal(cmoe_route_scoring_parse("relu"), -1);
    assert_int_equal(cmoe_route_scoring_parse(NULL), -1);
}

static void more_slots_than_experts(void **state)
{
    (void)state;
    const float x[3] = {0, 2, 1};
    const double sum = exp(-2) + 1 + exp(-1);
    const cmoe_route_options o = options(5, CMOE_SCORE_SOFTMAX);
    one_token(&o, x, NULL, 3, (const int32_t[]){1, 2, 0, -1, -1},
              (const double[]){1 / sum, exp(-1) / sum, exp(-2) / sum, 0, 0});
    const cmoe_route_options logits = options(5, CMOE_SCORE_LOGITS);
    one_token(&logits, x, NULL, 3, (const int32_t[]){1, 2, 0, -1, -1},
              (const double[]){1 / sum, exp(-1) / sum, exp(-2) / sum, 0, 0});
    const cmoe_route_options sparse = options(2, CMOE_SCORE_SPARSEMIXER);
    one_token(&sparse, x, NULL, 1, (const int32_t[]){0, -1}, (const double[]){1, 0});
}

static void one_expert_and_many(void **state)
{
    (void)state;
    const float lone = -3;
    const cmoe_route_options o = options(1, CMOE_SCORE_SOFTMAX);
    one_token(&o, &lone, NULL, 1, (const int32_t[]){0}, (const double[]){1});

    enum { E = 4099, K = 40 };
    float *x = normals(5, E, 1);
    x[4098] = 9;
    x[4096] = x[17] = 8;
    cmoe_route_options many = options(K, CMOE_SCORE_SIGMOID);
    many.renormalize = CMOE_RENORM_NONE;
    result r = route(&many, x, NULL, 1, E);
    assert_int_equal(r.ids[0], 4098);
    assert_int_equal(r.ids[1], 17);
    assert_int_equal(r.ids[2], 4096);
    for (int k = 1; k < K; k++) {
        assert_true(x[r.ids[k - 1]] > x[r.ids[k]] ||
                    (x[r.ids[k - 1]] == x[r.ids[k]] && r.ids[k - 1] < r.ids[k]));
    }
    int above = 0; /* nobody was passed over */
    for (int e = 0; e < E; e++)
        above += x[e] > x[r.ids[K - 1]];
    assert_int_equal(above, K - 1);
    result_free(&r);
    free(x);
}

static void no_tokens(void **state)
{
    (void)state;
    const cmoe_route_options o = options(4, CMOE_SCORE_SOFTMAX);
    result r = route(&o, NULL, NULL, 0, 8);
    result_free(&r);
}

static void ties_go_to_the_lower_id(void **state)
{
    (void)state;
    float x[40] = {0};
    x[7] = -0.0f; /* as good as +0 */
    cmoe_route_options o = options(40, CMOE_SCORE_LOGITS);
    result r = route(&o, x, NULL, 1, 40);
    for (int k = 0; k < 40; k++)
        assert_int_equal(r.ids[k], k);
    result_free(&r);
    x[39] = x[21] = x[5] = 1;
    o.topk = 4;
    r = route(&o, x, NULL, 1, 40);
    assert_memory_equal(r.ids, ((int32_t[]){5, 21, 39, 0}), 16);
    result_free(&r);
}

static void strange_logits(void **state)
{
    (void)state;
    const float x[6] = {NAN, INFINITY, -INFINITY, 0, INFINITY, -NAN};
    for (int32_t scoring = 0; scoring < CMOE_SCORE_SPARSEMIXER; scoring++) {
        cmoe_route_options o = options(6, scoring);
        o.validate = 1;
        result r = route(&o, x, NULL, 1, 6);
        /* Both infinities are the best, and worth the same; NaN counts as -1e20, as -infinity. */
        const int32_t saturated[] = {1, 4, 3, 0, 2, 5}, flat[] = {1, 4, 0, 2, 3, 5};
        assert_memory_equal(r.ids, scoring == CMOE_SCORE_SOFTMAX ? flat : saturated, 24);
        assert_true(r.weights[0] == r.weights[1] && r.weights[0] > 0);
        assert_true(r.weights[5] == 0);
        result_free(&r);
    }
    const float nothing[2] = {NAN, NAN};
    const cmoe_route_options o = options(2, CMOE_SCORE_SOFTMAX);
    one_token(&o, nothing, NULL, 2, (const int32_t[]){0, 1}, (const double[]){0.5, 0.5});
    const cmoe_route_options sparse = options(2, CMOE_SCORE_SPARSEMIXER);
    one_token(&sparse, nothing, NULL, 2, (const int32_t[]){0, 1},
              (const double[]){1 / 3.0, 2 / 3.0});
}

static void strange_bias(void **state)
{
    (void)state;
    const float x[4] = {3, 2, 1, 0}, bias[4] = {-INFINITY, NAN, 0, INFINITY};
    cmoe_route_options o = options(4, CMOE_SCORE_SIGMOID);
    o.renormalize = CMOE_RENORM_NONE;
    cmoe_route_inputs in = inputs();
    in.bias = cmoe_view_1d(bias, CMOE_F32, 4);
    one_token(&o, x, &in, 4, (const int32_t[]){3, 2, 0, 1},
              (const double[]){0.5, 1 / (1 + exp(-1)), 1 / (1 + exp(-3)), 1 / (1 + exp(-2))});
}

/* Kept group 0 has selection scores below 0, so zeros of the dropped group win over it. */
static void negative_bias_under_both_masks(void **state)
{
    (void)state;
    const float x[4] = {1, 2, 0, 0}, bias[4] = {-2, -2, -3, -3};
    cmoe_route_options o = options(2, CMOE_SCORE_SIGMOID);
    cmoe_route_inputs in = inputs();
    in.bias = cmoe_view_1d(bias, CMOE_F32, 4);
    o.groups = 2;
    o.topk_groups = 1;
    const double s0 = 1 / (1 + exp(-1)), s1 = 1 / (1 + exp(-2));
    one_token(&o, x, &in, 4, (const int32_t[]){1, 0},
              (const double[]){s1 / (s0 + s1), s0 / (s0 + s1)});
    o.group_mask = CMOE_MASK_ZERO;
    one_token(&o, x, &in, 4, (const int32_t[]){2, 3}, (const double[]){0.5, 0.5});
}

static void fewer_survivors_than_slots(void **state)
{
    (void)state;
    const float x[6] = {0, 1, 5, 4, 3, 2};
    cmoe_route_options o = options(4, CMOE_SCORE_SIGMOID);
    o.renormalize = CMOE_RENORM_NONE;
    o.groups = 3;
    o.topk_groups = 1;
    one_token(&o, x, NULL, 6, (const int32_t[]){2, 3, 0, 1},
              (const double[]){1 / (1 + exp(-5)), 1 / (1 + exp(-4)), 0.5, 1 / (1 + exp(-1))});
}

static void group_scores(void **state)
{
    (void)state;
    const float x[6] = {4, -9, 3, 2, 0, 0}, bias[6] = {0, 0, 0, 0, 9, 9};
    cmoe_route_options o = options(1, CMOE_SCORE_LOGITS);
    cmoe_route_inputs in = inputs();
    o.groups = 3;
    o.topk_groups = 1;
    one_token(&o, x, NULL, 6, (const int32_t[]){2}, (const double[]){1});
    o.group_score = CMOE_GROUP_MAX;
    one_token(&o, x, NULL, 6, (const int32_t[]){0}, (const double[]){1});
    in.bias = cmoe_view_1d(bias, CMOE_F32, 6);
    one_token(&o, x, &in, 6, (const int32_t[]){4}, (const double[]){1});
    o.groups_biased = 0;
    one_token(&o, x, &in, 6, (const int32_t[]){0}, (const double[]){1});
    o.groups = 6; /* groups of one expert: the best two are that one */
    o.topk_groups = 2;
    o.group_score = CMOE_GROUP_TOP2;
    one_token(&o, x, NULL, 6, (const int32_t[]){0}, (const double[]){1});
    const float equal[6] = {0, 0, 1, 2, 2, 1}; /* of equal groups the first stays */
    o.groups = 3;
    o.topk_groups = 1;
    one_token(&o, equal, NULL, 6, (const int32_t[]){3}, (const double[]){1});
}

/* The plain form loses digits below -16 and everything below -104. */
static void sqrtsoftplus_over_the_range(void **state)
{
    (void)state;
    enum { T = 4001 };
    float *x = malloc(T * 4);
    for (int t = 0; t < T; t++)
        x[t] = -100 + (float)t * 0.05f;
    cmoe_route_options o = options(1, CMOE_SCORE_SQRTSOFTPLUS);
    o.renormalize = CMOE_RENORM_NONE;
    result r = route(&o, x, NULL, T, 1);
    for (int t = 0; t < T; t++) {
        const double want = sqrt(fmax(x[t], 0) + log1p(exp(-fabs(x[t]))));
        if (!(fabs(r.weights[t] - want) <= 4 * FLT_EPSILON * want))
            fail_msg("at %g: %.9g, want %.9g", (double)x[t], (double)r.weights[t], want);
    }
    result_free(&r);
    free(x);
}

static void all_scores_zero(void **state)
{
    (void)state;
    const float x[4] = {-1e20f, -INFINITY, NAN, -1e20f};
    const int32_t scoring[] = {CMOE_SCORE_SIGMOID, CMOE_SCORE_SQRTSOFTPLUS};
    for (int i = 0; i < 2; i++) {
        for (int32_t rule = CMOE_EPS_NONE; rule <= CMOE_EPS_MAX; rule++) {
            for (int zero = 0; zero < 2; zero++) {
                cmoe_route_options o = options(3, scoring[i]);
                o.eps_rule = rule;
                o.validate = 1;
                if (zero) o.eps = 0;
                one_token(&o, x, NULL, 4, (const int32_t[]){0, 1, 2}, (const double[]){0, 0, 0});
            }
        }
    }
}

static void epsilon_rules(void **state)
{
    (void)state;
    const float x[2] = {0, 0};
    cmoe_route_options o = options(2, CMOE_SCORE_SIGMOID); /* scores of a half, sum 1 */
    o.eps = 3;
    o.eps_rule = CMOE_EPS_ADD;
    one_token(&o, x, NULL, 2, (const int32_t[]){0, 1}, (const double[]){0.125, 0.125});
    o.eps_rule = CMOE_EPS_MAX;
    one_token(&o, x, NULL, 2, (const int32_t[]){0, 1}, (const double[]){0.5 / 3, 0.5 / 3});
    o.eps_rule = CMOE_EPS_NONE;
    o.scale = -2;
    one_token(&o, x, NULL, 2, (const int32_t[]){0, 1}, (const double[]){-1, -1});
    o.renormalize = CMOE_RENORM_NONE;
    one_token(&o, x, NULL, 2, (const int32_t[]){0, 1}, (const double[]){-1, -1});
}

static void hash_table(void **state)
{
    (void)state;
    const int64_t wide[3][3] = {{2, 2, 0}, {1, -1, 3}, {3, 0, 1}}, wide_in[2] = {1, 0};
    const int32_t narrow[3][3] = {{2, 2, 0}, {1, -1, 3}, {3, 0, 1}}, narrow_in[2] = {1, 0};
    const float x[8] = {0, 1, 2, 3, 0, 0, 1, 0};
    cmoe_route_options o = options(3, CMOE_SCORE_SIGMOID);
    const double a = 1 / (1 + exp(-1)), b = 1 / (1 + exp(-3));
    const double want[6] = {
        a / (a + b), 0, b / (a + b), a / (a + a + 0.5), a / (a + a + 0.5), 0.5 / (a + a + 0.5)};
    const int32_t ids[6] = {1, -1, 3, 2, 2, 0};
    for (int i = 0; i < 2; i++) {
        cmoe_route_inputs in = inputs();
        in.hash_table =
            cmoe_view_2d(i ? (const void *)narrow : wide, i ? CMOE_I32 : CMOE_I64, 3, 3);
        in.input_ids =
            cmoe_view_1d(i ? (const void *)narrow_in : wide_in, i ? CMOE_I32 : CMOE_I64, 2);
        result r = route(&o, x, &in, 2, 4);
        assert_memory_equal(r.ids, ids, sizeof ids);
        for (int k = 0; k < 6; k++)
            assert_true(fabs(r.weights[k] - want[k]) <= 4 * FLT_EPSILON);
        result_free(&r);
    }
}

/* Captured ids give the same weights again, for every scoring. */
static void replay(void **state)
{
    (void)state;
    enum { T = 9, E = 20, K = 2 };
    float *x = normals(3, T * E, 3);
    for (int32_t scoring = 0; scoring <= CMOE_SCORE_SPARSEMIXER; scoring++) {
        const cmoe_route_options o = options(K, scoring);
        result first = route(&o, x, NULL, T, E);
        int64_t wide[T * K];
        for (int i = 0; i < T * K; i++)
            wide[i] = first.ids[i];
        cmoe_route_inputs in = inputs();
        in.given_ids = cmoe_view_2d(wide, CMOE_I64, T, K);
        result again = route(&o, x, &in, T, E);
        assert_memory_equal(first.ids, again.ids, T * K * 4);
        assert_memory_equal(first.weights, again.weights, T * K * 4);
        result_free(&first);
        result_free(&again);
    }
    free(x);
}

static void softmax_over_given_logits(void **state)
{
    (void)state;
    const float x[4] = {1, 50, 2, 3};
    const int32_t given[4] = {3, -1, 0, 3};
    const cmoe_route_options o = options(4, CMOE_SCORE_LOGITS);
    cmoe_route_inputs in = inputs();
    in.given_ids = cmoe_view_2d(given, CMOE_I32, 1, 4);
    const double sum = 2 + exp(-2);
    one_token(&o, x, &in, 4, given, (const double[]){1 / sum, 0, exp(-2) / sum, 1 / sum});
    const int32_t none[4] = {-1, -1, -1, -1};
    in.given_ids = cmoe_view_2d(none, CMOE_I32, 1, 4);
    one_token(&o, x, &in, 4, none, (const double[]){0, 0, 0, 0});
}

static void sparsemixer(void **state)
{
    (void)state;
    /* jitter 0.01: near means within 2 %.  Round one keeps 10 and 9.9, round two 9.9 alone. */
    const float x[4] = {9.9f, -3, 10, 9};
    cmoe_route_options o = options(2, CMOE_SCORE_SPARSEMIXER);
    o.renormalize = CMOE_RENORM_NONE;
    const double first = 1 / (1 + exp((double)x[0] - 10));
    one_token(&o, x, NULL, 4, (const int32_t[]){2, 0}, (const double[]){first, 1});
    o.jitter = 1; /* everything above -max is near */
    const double all = exp((double)x[0] - 10) + exp(-13) + 1 + exp(-1);
    const double rest = 1 + exp(-3 - (double)x[0]) + exp(9 - (double)x[0]);
    one_token(&o, x, NULL, 4, (const int32_t[]){2, 0}, (const double[]){1 / all, 1 / rest});
    /* All negative: the distance is measured by the larger size, |s|. */
    const float below[3] = {-1, -1.01f, -1.05f};
    o.jitter = 0.01f;
    one_token(&o, below, NULL, 3, (const int32_t[]){0, 1},
              (const double[]){1 / (1 + exp(-1.01f + 1)), 1});
    const float zeros[3] = {0, 0, 0}; /* 0 / 0 is near */
    one_token(&o, zeros, NULL, 3, (const int32_t[]){0, 1}, (const double[]){1 / 3.0, 0.5});
    /* Forced ids keep a weight: what is not far below them is near; the same id twice is round one
     * twice. */
    const int32_t given[2] = {3, 3};
    cmoe_route_inputs in = inputs();
    in.given_ids = cmoe_view_2d(given, CMOE_I32, 1, 2);
    const double w = 1 / (1 + exp(1) + exp((double)x[0] - 9));
    one_token(&o, x, &in, 4, given, (const double[]){w, w});
}

static void bypass(void **state)
{
    (void)state;
    const int64_t given[4] = {7, -1, 0, 7};
    const double weights[4] = {0.5, 0, -3, 8};
    const float scale[8] = {9, 9, 9, 9, 9, 9, 9, 9}, x[16] = {0};
    unit_env e = unit_open(1);
    cmoe_route_options o = options(2, CMOE_SCORE_SOFTMAX);
    o.scale = 100;
    cmoe_route_inputs in = inputs();
    in.given_ids = cmoe_view_2d(given, CMOE_I64, 2, 2);
    in.given_weights = cmoe_view_2d(weights, CMOE_F64, 2, 2);
    in.per_expert_scale = cmoe_view_1d(scale, CMOE_F32, 8);
    for (int with = 0; with < 2; with++) {
        result r = route_in(e.stream, &o, with ? cmoe_view_2d(x, CMOE_F32, 2, 8) : cmoe_view_none(),
                            &in, 2, 8);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(r.ids[i], given[i]);
            assert_true(r.weights[i] == (float)weights[i]);
        }
        result_free(&r);
    }
    unit_close(&e);
}

static void shared_experts(void **state)
{
    (void)state;
    const float x[4] = {0, 1, 2, 3}, gate[2] = {0, -INFINITY}, scale[4] = {1, 1, 1, 2};
    cmoe_route_options o = options(1, CMOE_SCORE_SOFTMAX);
    cmoe_route_inputs in = inputs();
    o.shared = 2;
    o.scale = 5;
    in.per_expert_scale = cmoe_view_1d(scale, CMOE_F32, 4);
    one_token(&o, x, &in, 4, (const int32_t[]){3, 4, 5}, (const double[]){10, 1, 1});
    in.shared_gate = cmoe_view_2d(gate, CMOE_F32, 1, 2);
    one_token(&o, x, &in, 4, (const int32_t[]){3, 4, 5}, (const double[]){10, 0.5, 0});
    in.shared_gate = cmoe_view_2d(gate, CMOE_F32, 1, 1); /* one gate for both */
    one_token(&o, x, &in, 4, (const int32_t[]){3, 4, 5}, (const double[]){10, 0.5, 0.5});
}

/* ---- the same bits --------------------------------------------------------------------------- */

/* Values that every format holds exactly. */
static float coarse(uint64_t i)
{
    return (float)((int)(cmoe_random_u64(8, i, 0) % 33) - 16) * 0.25f;
}

static void any_format_stride_address(void **state)
{
    (void)state;
    enum { T = 3, E = 21, K = 4 };
    float x[T * E];
    for (int i = 0; i < T * E; i++)
        x[i] = coarse((uint64_t)i);
    unit_env e = unit_open(1);
    const cmoe_route_options o = options(K, CMOE_SCORE_SOFTMAX);
    const cmoe_view plain = cmoe_view_2d(x, CMOE_F32, T, E);
    result want = route_in(e.stream, &o, plain, NULL, T, E);
    const int32_t formats[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F64};
    for (int f = 0; f < 4; f++) {
        const int64_t bytes = cmoe_dtype_bytes(formats[f]);
        char *block = malloc((size_t)(T * E * 6 * bytes + 1));
        cmoe_view_mut v = cmoe_view_mut_2d(block + 1, formats[f], T, E);
        v.strides[0] = 2; /* columns far apart, rows near */
        v.strides[1] = 2 * T;
        UNIT_OK(cmoe_convert(e.stream, plain, v, &err));
        result r = route_in(e.stream, &o, cmoe_view_of(v), NULL, T, E);
        assert_memory_equal(r.ids, want.ids, T * K * 4);
        assert_memory_equal(r.weights, want.weights, T * K * 4);
        result_free(&r);
        free(block);
    }
    /* Outputs: odd address, strides with gaps that stay untouched; validated or not. */
    for (int validate = 0; validate < 2; validate++) {
        char w[T * K * 12 + 1], ids[T * K * 8 + 1];
        int64_t host;
        cmoe_route_options ov = o;
        ov.validate = validate;
        UNIT_OK(cmoe_route_bytes(&ov, T, E, &host, NULL, &err));
        cmoe_arena arena = unit_arena(host + 1);
        arena.used = 1;
        memset(w, 0x5a, sizeof w);
        memset(ids, 0x5a, sizeof ids);
        cmoe_view_mut vw = cmoe_view_mut_2d(w + 1, CMOE_F32, T, K);
        cmoe_view_mut vi = cmoe_view_mut_2d(ids + 1, CMOE_I32, T, K);
        vw.strides[0] = 3 * K;
        vw.strides[1] = 3;
        vi.strides[0] = 1;
        vi.strides[1] = T + 1;
        UNIT_OK(cmoe_route(e.stream, &ov, plain, NULL, vw, vi, &arena, &err));
        assert_int_equal(arena.used, 1);
        for (int i = 0; i < T * K; i++) {
            assert_memory_equal(w + 1 + 12 * i, &want.weights[i], 4);
            assert_int_equal(w[1 + 12 * i + 4], 0x5a);
            assert_memory_equal(ids + 1 + 4 * (i % K * (T + 1) + i / K), &want.ids[i], 4);
        }
        assert_int_equal(w[0], 0x5a);
        free(arena.base);
    }
    result_free(&want);
    unit_close(&e);
}

/* Every token by itself against the batch. */
static void same_alone(const cmoe_route_options *o, const float *x, const cmoe_route_inputs *in,
                       int64_t experts, const result *want)
{
    for (int64_t t = 0; t < want->tokens; t++) {
        result r = route(o, x + t * experts, in, 1, experts);
        assert_memory_equal(r.ids, want->ids + t * r.width, r.width * 4);
        assert_memory_equal(r.weights, want->weights + t * r.width, r.width * 4);
        result_free(&r);
    }
}

/* Threads, instruction sets, batches. */
static void same_bits(void **state)
{
    (void)state;
    enum { T = 150, E = 72, K = 6 };
    float *x = normals(12, T * E, 4), *bias = normals(13, E, 1);
    cmoe_route_inputs in = inputs();
    in.bias = cmoe_view_1d(bias, CMOE_F32, E);
    for (int32_t scoring = 0; scoring <= CMOE_SCORE_SPARSEMIXER; scoring++) {
        cmoe_route_options o = options(scoring == CMOE_SCORE_SPARSEMIXER ? 2 : K, scoring);
        o.groups = 6;
        o.topk_groups = 3;
        result want = route(&o, x, &in, T, E);
        double loss = -1;
        for (int32_t level = 0; level < cmoe_isa_levels(); level++) {
            for (int i = 0; i < 4; i++) {
                const int32_t threads[] = {1, 2, 3, 8};
                unit_env e = unit_open_isa(threads[i], cmoe_isa_level_name(level));
                const cmoe_view logits = cmoe_view_2d(x, CMOE_F32, T, E);
                result r = route_in(e.stream, &o, logits, &in, T, E);
                assert_memory_equal(r.ids, want.ids, T * o.topk * 4);
                assert_memory_equal(r.weights, want.weights, T * o.topk * 4);
                double again;
                UNIT_OK(cmoe_route_balance_loss(e.stream, logits,
                                                cmoe_view_2d(r.ids, CMOE_I32, T, o.topk),
                                                cmoe_view_none(), &again, &err));
                if (loss == -1) loss = again;
                assert_memory_equal(&again, &loss, sizeof loss);
                result_free(&r);
                unit_close(&e);
            }
        }
        same_alone(&o, x, &in, E, &want);
        result_free(&want);
    }
    free(x);
    free(bias);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_written_twice),
        cmocka_unit_test(names),
        cmocka_unit_test(more_slots_than_experts),
        cmocka_unit_test(one_expert_and_many),
        cmocka_unit_test(no_tokens),
        cmocka_unit_test(ties_go_to_the_lower_id),
        cmocka_unit_test(strange_logits),
        cmocka_unit_test(strange_bias),
        cmocka_unit_test(negative_bias_under_both_masks),
        cmocka_unit_test(fewer_survivors_than_slots),
        cmocka_unit_test(group_scores),
        cmocka_unit_test(sqrtsoftplus_over_the_range),
        cmocka_unit_test(all_scores_zero),
        cmocka_unit_test(epsilon_rules),
        cmocka_unit_test(hash_table),
        cmocka_unit_test(replay),
        cmocka_unit_test(softmax_over_given_logits),
        cmocka_unit_test(sparsemixer),
        cmocka_unit_test(bypass),
        cmocka_unit_test(shared_experts),
        cmocka_unit_test(any_format_stride_address),
        cmocka_unit_test(same_bits),
    };
    return UNIT_RUN("unit_route", tests);
}
