/* SPDX-License-Identifier: MIT
 *
 * route_backward.c - backward of a route, auxiliary losses and the update of the correction bias:
 * every text of an error, and the cases that have a name.
 */
#include "route.h"

enum { T = 3, E = 4, K = 2 };

/* Valid arguments, to be spoiled one at a time. */
typedef struct fixture {
    unit_env env;
    cmoe_route_options o;
    cmoe_route_inputs in;
    float x[T * E], w[T * K], dw[T * K], d[T * E];
    int32_t id[T * K], keep[T];
    cmoe_view logits, ids, weights, dweights, mask;
    cmoe_view_mut dlogits;
    double loss;
} fixture;

static void open_fixture(fixture *f)
{
    memset(f, 0, sizeof *f);
    f->env = unit_open(2);
    f->o = options(K, CMOE_SCORE_SOFTMAX);
    f->in = inputs();
    for (int i = 0; i < T * E; i++) {
        f->x[i] = (float)(i * 7 % 5) / 2;
        f->d[i] = 7;
    }
    for (int i = 0; i < T * K; i++) {
        f->dw[i] = (float)i - 2;
        f->w[i] = .5f;
        f->id[i] = i % E;
    }
    for (int t = 0; t < T; t++)
        f->keep[t] = 1;
    f->logits = cmoe_view_2d(f->x, CMOE_F32, T, E);
    f->ids = cmoe_view_2d(f->id, CMOE_I32, T, K);
    f->weights = cmoe_view_2d(f->w, CMOE_F32, T, K);
    f->dweights = cmoe_view_2d(f->dw, CMOE_F32, T, K);
    f->dlogits = cmoe_view_mut_2d(f->d, CMOE_F32, T, E);
    f->mask = cmoe_view_1d(f->keep, CMOE_I32, T);
}

static cmoe_status backward(fixture *f, cmoe_error *err)
{
    return cmoe_route_backward(f->env.stream, &f->o, f->logits, &f->in, f->ids, f->weights,
                               f->dweights, f->dlogits, err);
}

#define SPOILED(spoil, call, status, text) \
    do {                                   \
        fixture f;                         \
        open_fixture(&f);                  \
        spoil;                             \
        UNIT_FAILS(call, status, text);    \
        for (int i_ = 0; i_ < T * E; i_++) \
            assert_true(f.d[i_] == 7);     \
        unit_close(&f.env);                \
    } while (0)
#define BACKWARD(spoil, status, text) SPOILED(spoil, backward(&f, &err), status, text)

static void errors(void **state)
{
    (void)state;
    BACKWARD(f.logits = cmoe_view_none(), CMOE_ERR_ARG, "logits: not given");
    BACKWARD(f.o.topk = 0, CMOE_ERR_RANGE, "topk = 0, want at least 1");
    BACKWARD(f.o.scoring = 9, CMOE_ERR_RANGE, "scoring = 9");
    BACKWARD(f.o.shared = 2, CMOE_ERR_RANGE, "shared = 2, want 0");
    BACKWARD(f.ids = cmoe_view_2d(f.id, CMOE_I32, T, 1), CMOE_ERR_SHAPE,
             "ids: dims[1] = 1, want 2");
    BACKWARD(f.ids.dtype = CMOE_F32, CMOE_ERR_DTYPE, "ids");
    BACKWARD(f.id[3] = 4, CMOE_ERR_RANGE, "ids[1, 1] = 4, want -1 <= id < 4 (experts)");
    BACKWARD(f.id[5] = -2, CMOE_ERR_RANGE, "ids[2, 1] = -2, want -1 <= id < 4 (experts)");
    BACKWARD(f.weights = cmoe_view_none(), CMOE_ERR_ARG, "weights");
    BACKWARD(f.dweights = cmoe_view_2d(f.dw, CMOE_F32, T, 1), CMOE_ERR_SHAPE,
             "dweights: dims[1] = 1");
    BACKWARD(f.dweights.dtype = CMOE_BF16, CMOE_ERR_DTYPE, "dweights");
    BACKWARD((f.dweights.strides[0] = 1, f.dweights.strides[1] = 3), CMOE_ERR_SHAPE,
             "dweights: strides[1] = 3, want 1");
    BACKWARD((f.dlogits.strides[0] = 1, f.dlogits.strides[1] = 3), CMOE_ERR_SHAPE,
             "dlogits: strides[1] = 3, want 1");
    BACKWARD(f.dlogits = cmoe_view_mut_2d(f.d, CMOE_F32, T, 3), CMOE_ERR_SHAPE,
             "dlogits: dims[1] = 3, want 4");
    BACKWARD(f.logits.data = f.d, CMOE_ERR_ARG, "dlogits overlaps logits");
    BACKWARD(f.dweights.data = f.d, CMOE_ERR_ARG, "dlogits overlaps dweights");
    const float bad[E] = {1, 1, INFINITY, 1};
    BACKWARD(f.in.per_expert_scale = cmoe_view_1d(bad, CMOE_F32, E), CMOE_ERR_RANGE,
             "per_expert_scale[2] = inf");
    UNIT_FAILS(cmoe_route_backward(NULL, NULL, cmoe_view_none(), NULL, cmoe_view_none(),
                                   cmoe_view_none(), cmoe_view_none(), cmoe_view_mut_none(), &err),
               CMOE_ERR_ARG, "stream");
}

static void zeros(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f);
    f.x[E + 2] = NAN; /* token 1 is sanitised, token 2 has no experts */
    f.id[4] = f.id[5] = -1;
    UNIT_OK(backward(&f, &err));
    for (int i = E; i < T * E; i++)
        assert_true(f.d[i] == 0);
    assert_true(f.d[0] != 0 && f.d[1] != 0 && f.d[2] == 0 && f.d[3] == 0); /* renormalised */
    const float x[2] = {-INFINITY, 1e21f};
    for (int i = 0; i < 2; i++) {
        f.x[0] = x[i];
        UNIT_OK(backward(&f, &err));
        for (int e = 0; e < E; e++)
            assert_true(f.d[e] == 0);
    }
    unit_close(&f.env);

    open_fixture(&f); /* given weights, then without logits */
    f.in.given_ids = f.ids;
    f.in.given_weights = f.weights;
    UNIT_OK(backward(&f, &err));
    for (int i = 0; i < T * E; i++)
        assert_true(f.d[i] == 0);
    f.logits = cmoe_view_none();
    f.d[5] = 1;
    UNIT_OK(backward(&f, &err));
    assert_true(f.d[5] == 0);
    unit_close(&f.env);
}

/* One expert, renormalised: the weight is 1 whatever the logit. */
static void sums(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f);
    f.o.scoring = CMOE_SCORE_SIGMOID;
    f.o.eps_rule = CMOE_EPS_NONE;
    for (int i = 0; i < E; i++)
        f.x[i] = -2000; /* scores of 0: no sum, no weights, no gradient */
    UNIT_OK(backward(&f, &err));
    for (int i = 0; i < E; i++)
        assert_true(f.d[i] == 0);
    /* Tiny scores are divided before they can be lost: d = q (g - R) with q of 1/2 each. */
    for (int i = 0; i < E; i++)
        f.x[i] = -80;
    UNIT_OK(backward(&f, &err));
    assert_true(fabsf(f.d[0] + .25f) < 1e-6f && fabsf(f.d[1] - .25f) < 1e-6f && f.d[2] == 0);
    /* The floor acts: the sum is a constant. */
    f.o.eps_rule = CMOE_EPS_MAX;
    f.o.eps = 4;
    for (int i = 0; i < E; i++)
        f.x[i] = 0;
    UNIT_OK(backward(&f, &err)); /* dweight / eps * 1/4 */
    assert_true(f.d[0] == -2.f / 16 && f.d[1] == -1.f / 16 && f.d[2] == 0);
    /* An expert that has both slots gets both. */
    f.id[1] = 0;
    UNIT_OK(backward(&f, &err));
    assert_true(f.d[0] == -3.f / 16 && f.d[1] == 0);
    unit_close(&f.env);
}

/* ---- auxiliary losses ------------------------------------------------------------------------ */

static cmoe_status balance(fixture *f, const cmoe_units *u, float scale, cmoe_error *err)
{
    return cmoe_route_balance_backward(f->env.stream, f->logits, f->ids, f->mask, u, scale,
                                       &f->loss, f->dlogits, err);
}

static cmoe_status z_loss(fixture *f, const cmoe_units *u, float scale, cmoe_error *err)
{
    return cmoe_route_z_loss_backward(f->env.stream, f->logits, f->mask, u, scale, &f->loss,
                                      f->dlogits, err);
}

static void loss_errors(void **state)
{
    (void)state;
    const int64_t first[5] = {0, 1, 1, 2, 3}, late[2] = {1, 3}, down[3] = {0, 2, 1};
    const cmoe_units three = {3, first}, none = {2, NULL}, bad = {1, late}, falls = {2, down};
    const cmoe_units most = {128, first}, few = {2, first};
#define BOTH(spoil, units, scale, status, text)                        \
    do {                                                               \
        SPOILED(spoil, balance(&f, units, scale, &err), status, text); \
        SPOILED(spoil, z_loss(&f, units, scale, &err), status, text);  \
    } while (0)
    BOTH(, &three, 1, CMOE_ERR_RANGE, "units: count = 3, want a power of two");
    BOTH(, &most, 1, CMOE_ERR_RANGE, "units: count = 128");
    BOTH(, &none, 1, CMOE_ERR_ARG, "units: first is NULL");
    BOTH(, &bad, 1, CMOE_ERR_RANGE, "units: first[0] = 1, want 0");
    BOTH(, &falls, 1, CMOE_ERR_RANGE, "units: first[2] = 1");
    BOTH(, &few, 1, CMOE_ERR_RANGE, "units: first[2] = 1, want 3 (tokens)");
    BOTH(, NULL, NAN, CMOE_ERR_RANGE, "scale = nan, want a finite value");
    BOTH(f.mask = cmoe_view_1d(f.keep, CMOE_I32, 2), NULL, 1, CMOE_ERR_SHAPE, "mask: dims[0] = 2");
    BOTH(f.logits.dtype = CMOE_I32, NULL, 1, CMOE_ERR_DTYPE, "logits");
    BOTH(f.logits.data = f.d, NULL, 1, CMOE_ERR_ARG, "dlogits overlaps logits");
    BOTH((f.dlogits.strides[0] = 1, f.dlogits.strides[1] = 3), NULL, 1, CMOE_ERR_SHAPE,
         "dlogits: strides[1] = 3, want 1");
    BOTH(f.dlogits.dims[1] = 3, NULL, 1, CMOE_ERR_SHAPE, "dlogits: dims[1] = 3, want 4");
    SPOILED(f.ids.dtype = CMOE_F32, balance(&f, NULL, 1, &err), CMOE_ERR_DTYPE, "ids");
    fixture f;
    open_fixture(&f);
    UNIT_FAILS(
        cmoe_route_z_loss_backward(f.env.stream, f.logits, f.mask, NULL, 1, NULL, f.dlogits, &err),
        CMOE_ERR_ARG, "loss is NULL");
    unit_close(&f.env);
}

static void losses(void **state)
{
    (void)state;
    fixture f;
    double want;
    open_fixture(&f);
    UNIT_OK(balance(&f, NULL, 1, &err));
    UNIT_OK(cmoe_route_balance_loss(f.env.stream, f.logits, f.ids, f.mask, &want, &err));
    assert_true(fabs(f.loss - want) < 1e-12);
    double sum = 0; /* a softmax does not care about what all logits have in common */
    for (int e = 0; e < E; e++)
        sum += (double)f.d[e] - 7;
    assert_true(fabs(sum) < 1e-5);
    memset(f.keep, 0, sizeof f.keep); /* all masked */
    f.d[0] = 7;
    UNIT_OK(z_loss(&f, NULL, 1, &err));
    assert_true(f.loss == 0 && f.d[0] == 7);
    unit_close(&f.env);

    open_fixture(&f); /* a sanitised token counts and has no gradient */
    f.x[0] = NAN;
    const int64_t first[3] = {0, 1, T};
    const cmoe_units units = {2, first};
    for (int i = 1; i < E; i++)
        f.x[i] = 0;
    f.keep[1] = f.keep[2] = 0; /* so the other unit is without tokens */
    UNIT_OK(z_loss(&f, &units, 1, &err));
    assert_true(fabs(f.loss - log(3) * log(3)) < 1e-6);
    for (int i = 0; i < T * E; i++)
        assert_true(f.d[i] == 7);
    f.ids = cmoe_view_2d(f.id, CMOE_I32, T, 0); /* no slots */
    UNIT_OK(balance(&f, &units, 1, &err));
    assert_true(f.loss == 0);
    unit_close(&f.env);
}

/* ---- correction bias ------------------------------------------------------------------------- */

static void bias_update(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int64_t n[4] = {1, 5, 3, 3};
    float b[4] = {.5f, .5f, .5f, .5f};
    const cmoe_view counts = cmoe_view_1d(n, CMOE_I64, 4);
    const cmoe_view_mut bias = cmoe_view_mut_1d(b, CMOE_F32, 4);
    UNIT_OK(cmoe_route_bias_update(e.stream, counts, .25f, bias, &err));
    assert_true(b[0] == .75f && b[1] == .25f && b[2] == .5f && b[3] == .5f);
    n[0] = 2; /* the mean is 3.25 */
    UNIT_OK(cmoe_route_bias_update(e.stream, counts, .25f, bias, &err));
    assert_true(b[0] == 1 && b[1] == 0 && b[2] == .75f && b[3] == .75f);
    UNIT_FAILS(cmoe_route_bias_update(e.stream, counts, NAN, bias, &err), CMOE_ERR_RANGE,
               "rate = nan, want a finite value");
    n[2] = -1;
    UNIT_FAILS(cmoe_route_bias_update(e.stream, counts, 1, bias, &err), CMOE_ERR_RANGE,
               "counts[2] = -1, want >= 0");
    n[2] = n[3] = INT64_MAX;
    UNIT_FAILS(cmoe_route_bias_update(e.stream, counts, 1, bias, &err), CMOE_ERR_RANGE,
               "counts: their sum is beyond");
    UNIT_FAILS(cmoe_route_bias_update(e.stream, counts, 1, cmoe_view_mut_1d(b, CMOE_F32, 3), &err),
               CMOE_ERR_SHAPE, "bias: dims[0] = 3, want 4");
    UNIT_FAILS(cmoe_route_bias_update(e.stream, counts, 1, cmoe_view_mut_1d(n, CMOE_F32, 4), &err),
               CMOE_ERR_ARG, "bias overlaps counts");
    assert_true(b[0] == 1 && b[1] == 0);
    UNIT_OK(cmoe_route_bias_update(e.stream, cmoe_view_1d(NULL, CMOE_I64, 0), 1,
                                   cmoe_view_mut_1d(NULL, CMOE_F32, 0), &err));
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors),      cmocka_unit_test(zeros),  cmocka_unit_test(sums),
        cmocka_unit_test(loss_errors), cmocka_unit_test(losses), cmocka_unit_test(bias_update),
    };
    return UNIT_RUN("unit_route_backward", tests);
}
