/* SPDX-License-Identifier: MIT
 *
 * route.c - gradients of routing weights and of auxiliary losses against central differences of the
 * double oracle's forward, over all options; the same bits on 1, 2 and 3 threads.
 *
 * Logits are multiples of 2^-10 and so is the step, so that a float32 logit moves by exactly that.
 * A weight is a smooth function of bounded derivatives, at most |scale|: the difference is off by
 * h^2 / 6 of the third one, 2e-7, the gradient by some hundred roundings of 6e-8 each, both relative
 * to the sum of |dweights * scales|: 2e-5 of that is allowed.  Where a step could cross an edge (the
 * reach of sparsemixer, the floor of an eps) logits are drawn again.
 */
#include "kernels/kc.h"

#include "cmoe/route.h"
#include "route/backward.h"

static const double STEP = 0x1p-10, RELATIVE = 2e-5;

enum { MOST_E = 600, MOST_K = 12, MOST_LOSS_E = 2600 };

typedef struct world {
    cmoe_ctx *ctx[3];
    cmoe_stream *stream[3];
} world;

static void must(kc *c, cmoe_status status, const cmoe_error *err)
{
    if (status != CMOE_OK) kc_fail(c, "%s", err->text);
}

static void world_open(world *w)
{
    for (int i = 0; i < 3; i++) {
        cmoe_ctx_options o;
        cmoe_error err = {0};
        cmoe_ctx_options_default(&o, sizeof o);
        o.threads = i + 1;
        if (cmoe_ctx_create(&w->ctx[i], &o, &err) ||
            cmoe_stream_create(&w->stream[i], w->ctx[i], &err)) {
            fprintf(stderr, "%s\n", err.text);
            exit(2);
        }
    }
}

static void world_close(world *w)
{
    for (int i = 0; i < 3; i++) {
        cmoe_stream_free(w->stream[i]);
        cmoe_ctx_free(w->ctx[i]);
    }
}

static float *grid_logits(kc *c, int64_t n)
{
    float *x = kc_f32s(c, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(rint(2 * (double)x[i] / STEP) * STEP);
    return x;
}

/* ---- routing weights ------------------------------------------------------------------------- */

typedef struct shape {
    int64_t T, E, K;
    bool bias, scaled;
    enum { CHOSEN, REPLAYED, HASHED } ids;
} shape;

/* What the oracle works in, for one token. */
typedef struct oracle {
    cmoei_route_plan plan;
    double score[MOST_E], choice[MOST_E], group[MOST_E], weights[MOST_K];
    int32_t key[2 * MOST_E], best[2 * MOST_E];
} oracle;

static double weighed(oracle *o, const float *x, int32_t *ids, const float *dweights)
{
    const cmoei_route_work work = {o->score, o->choice, o->group, o->key, o->best};
    double sum = 0;
    cmoei_route_token_f64(&o->plan, &work, x, ids, o->weights);
    for (int64_t k = 0; k < o->plan.o.topk; k++)
        sum += (double)dweights[k] * o->weights[k];
    return sum;
}

/* Whether a step of a logit may change which formula holds. */
static bool near_an_edge(oracle *o, const float *x, int32_t *ids)
{
    const cmoe_route_options given = o->plan.o;
    if (given.scoring == CMOE_SCORE_SPARSEMIXER) {
        for (int64_t k = 0; k < given.topk; k++) {
            for (int64_t e = 0; ids[k] >= 0 && e < o->plan.experts; e++) {
                const double own = x[ids[k]], size = fmax(fabs((double)x[e]), own);
                if (e != ids[k] &&
                    (fabs(size) < 8 * STEP ||
                     fabs((own - x[e]) / size - 2 * (double)given.jitter) < 2 * STEP / fabs(size)))
                    return true;
            }
        }
    }
    if (given.renormalize == CMOE_RENORM_NONE || given.eps_rule != CMOE_EPS_MAX) return false;
    float ones[MOST_K];
    for (int64_t k = 0; k < given.topk; k++)
        ones[k] = 1;
    o->plan.o.renormalize = CMOE_RENORM_NONE;
    o->plan.o.scale = 1;
    const float *scale = o->plan.expert_scale;
    o->plan.expert_scale = NULL;
    const double sum = weighed(o, x, ids, ones);
    o->plan.o = given;
    o->plan.expert_scale = scale;
    return fabs(sum - (double)given.eps) < 4 * STEP * sum;
}

static void check_token(kc *c, oracle *o, float *x, int32_t *ids, const float *dweights,
                        const float *got)
{
    double size = 0;
    for (int64_t k = 0; k < o->plan.o.topk; k++) {
        const double s = o->plan.expert_scale && ids[k] >= 0 ? o->plan.expert_scale[ids[k]] : 1;
        size += fabs((double)dweights[k] * (double)o->plan.o.scale * s);
    }
    bool chosen[MOST_E] = {0};
    for (int64_t k = 0; k < o->plan.o.topk; k++) {
        if (ids[k] >= 0) chosen[ids[k]] = true;
    }
    for (int64_t e = 0; e < o->plan.experts; e++) {
        if (e >= 32 && e % 29 && !chosen[e]) continue; /* of many experts, some of the others */
        const float x0 = x[e];
        x[e] = (float)(x0 + STEP);
        const double above = weighed(o, x, ids, dweights);
        x[e] = (float)(x0 - STEP);
        const double below = weighed(o, x, ids, dweights);
        x[e] = x0;
        kc_near(c, "dlogits", e, got[e], (above - below) / (2 * STEP), RELATIVE * size);
    }
}

static cmoe_route_inputs inputs_of(kc *c, shape s)
{
    cmoe_route_inputs in;
    cmoe_route_inputs_default(&in, sizeof in);
    if (s.bias) in.bias = cmoe_view_1d(kc_f32s(c, s.E), CMOE_F32, s.E);
    if (s.scaled) in.per_expert_scale = cmoe_view_1d(kc_f32s(c, s.E), CMOE_F32, s.E);
    if (s.ids == REPLAYED) /* repeated ones and dropped ones among them */
        in.given_ids =
            cmoe_view_2d(kc_i32s(c, s.T * s.K, -1, (int32_t)s.E - 1), CMOE_I32, s.T, s.K);
    if (s.ids == HASHED) {
        in.hash_table = cmoe_view_2d(kc_i32s(c, 9 * s.K, 0, (int32_t)s.E - 1), CMOE_I32, 9, s.K);
        in.input_ids = cmoe_view_1d(kc_i32s(c, s.T, 0, 8), CMOE_I32, s.T);
    }
    return in;
}

static void route_forward(kc *c, const world *w, const cmoe_route_options *o, const shape *s,
                          const float *x, const cmoe_route_inputs *in, float *weights, int32_t *ids)
{
    cmoe_error err = {0};
    int64_t bytes = 0;
    must(c, cmoe_route_bytes(o, s->T, s->E, &bytes, NULL, &err), &err);
    cmoe_arena arena = cmoe_arena_make(kc_out(c, bytes), bytes);
    must(c,
         cmoe_route(w->stream[0], o, cmoe_view_2d(x, CMOE_F32, s->T, s->E), in,
                    cmoe_view_mut_2d(weights, CMOE_F32, s->T, s->K),
                    cmoe_view_mut_2d(ids, CMOE_I32, s->T, s->K), &arena, &err),
         &err);
}

static void check_weights(kc *c, const world *w, cmoe_route_options o, shape s)
{
    kc_begin(c,
             "route T=%d E=%d K=%d scoring=%d renorm=%d eps=%d:%g groups=%d/%d scale=%g bias=%d "
             "scaled=%d ids=%d",
             (int)s.T, (int)s.E, (int)s.K, o.scoring, o.renormalize, o.eps_rule, (double)o.eps,
             (int)o.topk_groups, (int)o.groups, (double)o.scale, s.bias, s.scaled, s.ids);
    const cmoe_route_inputs in = inputs_of(c, s);
    oracle * or = kc_out(c, sizeof * or);
    * or = (oracle){.plan = {.o = o, .experts = s.E, .forced = true}};
    or->plan.expert_scale = in.per_expert_scale.data;
    float *weights = kc_out(c, s.T * s.K * 4), *dweights = kc_f32s(c, s.T * s.K);
    int32_t *ids = kc_out(c, s.T * s.K * 4);
    float *x = grid_logits(c, s.T * s.E);
    o.topk = or->plan.o.topk = s.K;
    route_forward(c, w, &o, &s, x, &in, weights, ids);

    float *first = NULL;
    const int64_t gap = 3; /* between rows of dlogits */
    for (int i = 0; i < 3; i++) {
        cmoe_error err = {0};
        float *d = kc_out(c, s.T * (s.E + gap) * 4);
        cmoe_view_mut dlogits = cmoe_view_mut_2d(d, CMOE_F32, s.T, s.E);
        dlogits.strides[0] = s.E + gap;
        must(c,
             cmoe_route_backward(w->stream[i], &o, cmoe_view_2d(x, CMOE_F32, s.T, s.E), &in,
                                 cmoe_view_2d(ids, CMOE_I32, s.T, s.K),
                                 cmoe_view_2d(weights, CMOE_F32, s.T, s.K),
                                 cmoe_view_2d(dweights, CMOE_F32, s.T, s.K), dlogits, &err),
             &err);
        if (first)
            kc_equal(c, "threads", d, first, s.T * (s.E + gap) * 4);
        else
            first = d;
    }
    int64_t looked_at = 0;
    for (int64_t t = 0; t < s.T; t++) {
        if (near_an_edge(or, x + t * s.E, ids + t * s.K)) continue;
        looked_at++;
        check_token(c, or, x + t * s.E, ids + t * s.K, dweights + t * s.K, first + t * (s.E + gap));
    }
    if (looked_at == 0 && s.T > 0) kc_fail(c, "every token is near an edge");
    kc_end(c);
}

static void all_weights(kc *c, const world *w)
{
    const shape shapes[] = {{1, 1, 1, false, false, CHOSEN},    {5, 8, 2, true, true, CHOSEN},
                            {7, 12, 4, false, true, CHOSEN},    {19, 24, 8, true, false, CHOSEN},
                            {3, 4, 7, false, true, CHOSEN},     {4, 12, 5, false, true, REPLAYED},
                            {6, 16, 3, true, false, REPLAYED},  {5, 20, 6, false, false, HASHED},
                            {2, 300, 8, true, true, CHOSEN},    {0, 8, 2, false, false, CHOSEN},
                            {40, 600, 2, false, true, REPLAYED}};
    const struct {
        int32_t renorm, rule;
        float eps;
    } sums[] = {{CMOE_RENORM_NONE, CMOE_EPS_MAX, 1e-20f}, {CMOE_RENORM_SUM, CMOE_EPS_NONE, 0},
                {CMOE_RENORM_SUM, CMOE_EPS_ADD, .25f},    {CMOE_RENORM_SUM, CMOE_EPS_MAX, 1e-20f},
                {CMOE_RENORM_SUM, CMOE_EPS_MAX, .6f},     {CMOE_RENORM_SUM, CMOE_EPS_MAX, 40}};
    for (int64_t i = 0; i < CMOEI_COUNT(shapes); i++) {
        for (int32_t scoring = 0; scoring <= CMOE_SCORE_SPARSEMIXER; scoring++) {
            for (int64_t r = 0; r < CMOEI_COUNT(sums); r++) {
                cmoe_route_options o;
                cmoe_route_options_default(&o, sizeof o);
                shape s = shapes[i];
                o.scoring = scoring;
                o.renormalize = sums[r].renorm;
                o.eps_rule = sums[r].rule;
                o.eps = sums[r].eps;
                o.scale = r % 2 ? 2.5f : 1;
                o.jitter = .3f;
                if (s.E % 4 == 0) o.groups = 4;
                o.topk_groups = o.groups - o.groups / 4;
                if (scoring == CMOE_SCORE_SPARSEMIXER) s.K = 2;
                check_weights(c, w, o, s);
            }
        }
    }
}

/* ---- auxiliary losses ------------------------------------------------------------------------ */

static double log_sum(const float *x, int64_t n)
{
    double top = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

typedef struct losses {
    int64_t T, E, K;
    const float *x;     /* [T, E] */
    const int32_t *ids; /* [T, K]; NULL: the z-loss */
    const int32_t *mask;
} losses;

/* The loss of tokens [begin, end) by its definition. */
static double loss_of_unit(const losses *l, int64_t begin, int64_t end)
{
    double f[MOST_LOSS_E] = {0}, p[MOST_LOSS_E] = {0}, n = 0, z = 0, loss = 0;
    for (int64_t t = begin; t < end; t++)
        n += l->mask[t] != 0;
    for (int64_t t = begin; t < end; t++) {
        if (!l->mask[t]) continue;
        const double all = log_sum(l->x + t * l->E, l->E);
        z += all * all / n;
        for (int64_t e = 0; e < l->E; e++)
            p[e] += exp(l->x[t * l->E + e] - all) / n;
        for (int64_t k = 0; l->ids && k < l->K; k++) {
            const int32_t e = l->ids[t * l->K + k];
            if (e >= 0 && e < l->E) f[e] += 1 / (n * (double)l->K);
        }
    }
    for (int64_t e = 0; e < l->E; e++)
        loss += (double)l->E * f[e] * p[e];
    return l->ids ? loss : z;
}

static double call(kc *c, cmoe_stream *s, const losses *l, int64_t begin, int64_t end,
                   const cmoe_units *units, float scale, float *d)
{
    const int64_t T = end - begin;
    cmoe_error err = {0};
    double loss = NAN;
    const cmoe_view x = cmoe_view_2d(l->x + begin * l->E, CMOE_F32, T, l->E);
    const cmoe_view mask = cmoe_view_1d(l->mask + begin, CMOE_I32, T);
    const cmoe_view_mut dx =
        d ? cmoe_view_mut_2d(d + begin * l->E, CMOE_F32, T, l->E) : cmoe_view_mut_none();
    if (l->ids) {
        const cmoe_view ids = cmoe_view_2d(l->ids + begin * l->K, CMOE_I32, T, l->K);
        must(c, cmoe_route_balance_backward(s, x, ids, mask, units, scale, &loss, dx, &err), &err);
    } else {
        must(c, cmoe_route_z_loss_backward(s, x, mask, units, scale, &loss, dx, &err), &err);
    }
    return loss;
}

static void check_losses(kc *c, const world *w, bool balance, int64_t T, int64_t E, int64_t K,
                         int64_t units)
{
    kc_begin(c, "%s T=%d E=%d K=%d units=%d", balance ? "balance" : "z", (int)T, (int)E, (int)K,
             (int)units);
    int64_t first[CMOE_UNITS_MOST + 1] = {0};
    int32_t *mask = kc_i32s(c, T, 0, 3);
    float *x = grid_logits(c, T * E), *d0 = kc_f32s(c, T * E);
    const losses l = {T, E, K, x, balance ? kc_i32s(c, T * K, -1, (int32_t)E) : NULL, mask};
    for (int64_t u = 1; u < units; u++) /* some are empty */
        first[u] = CMOEI_MAX(first[u - 1], kc_int(c, (u - 1) * T / units, u * T / units));
    first[units] = T;
    const cmoe_units all = {units, first};
    const float scale = .75f;
    double loss[3], want = 0;
    float *d[3];
    for (int i = 0; i < 3; i++) {
        d[i] = kc_out(c, T * E * 4);
        memcpy(d[i], d0, (size_t)(T * E) * 4);
        loss[i] = call(c, w->stream[i], &l, 0, T, &all, scale, d[i]);
        kc_equal(c, "threads", d[i], d[0], T * E * 4);
        kc_equal(c, "loss of threads", &loss[i], &loss[0], sizeof loss[0]);
    }
    const double alone = call(c, w->stream[0], &l, 0, T, &all, scale, NULL);
    kc_equal(c, "loss alone", &alone, &loss[0], sizeof alone);
    if (units > 1) { /* in two calls */
        const int64_t half = units / 2, cut = first[half];
        int64_t rest[CMOE_UNITS_MOST + 1];
        for (int64_t u = 0; u <= half; u++)
            rest[u] = first[half + u] - cut;
        const cmoe_units low = {half, first}, high = {half, rest};
        float *two = kc_out(c, T * E * 4);
        memcpy(two, d0, (size_t)(T * E) * 4);
        double sum = call(c, w->stream[1], &l, 0, cut, &low, scale, two);
        sum += call(c, w->stream[1], &l, cut, T, &high, scale, two);
        kc_equal(c, "two calls", two, d[0], T * E * 4);
        kc_equal(c, "loss of two calls", &sum, &loss[0], sizeof sum);
    }
    for (int64_t u = 0; u < units; u++) {
        want += loss_of_unit(&l, first[u], first[u + 1]);
        for (int64_t i = first[u] * E; i<first[u + 1] * E; i += T * E> 2000 ? 37 : 1) {
            const float x0 = x[i];
            x[i] = (float)(x0 + STEP);
            const double above = loss_of_unit(&l, first[u], first[u + 1]);
            x[i] = (float)(x0 - STEP);
            const double below = loss_of_unit(&l, first[u], first[u + 1]);
            x[i] = x0;
            /* Derivatives of a token's share are at most E times it, of z^2 about 2 |z|. */
            const double n = (double)CMOEI_MAX(first[u + 1] - first[u], 1);
            const double size = balance ? (double)E : 2 * (2 + log((double)E) + 8);
            kc_near(c, "dlogits", i, d[0][i], d0[i] + scale * (above - below) / (2 * STEP),
                    RELATIVE * size * scale * 4 / n + 2 * FLT_EPSILON * fabs((double)d0[i]));
        }
    }
    kc_near(c, "loss", 0, loss[0], want, 1e-5 * (fabs(want) + 1e-3));
    kc_end(c);
}

int main(void)
{
    static kc c;
    world w;
    world_open(&w);
    all_weights(&c, &w);
    for (int balance = 0; balance < 2; balance++) {
        check_losses(&c, &w, balance, 1, 1, 1, 1);
        check_losses(&c, &w, balance, 12, 5, 2, 4);
        check_losses(&c, &w, balance, 37, 16, 3, 8);
        check_losses(&c, &w, balance, 6, 300, 8, 2);
        check_losses(&c, &w, balance, 0, 8, 2, 2);
        check_losses(&c, &w, balance, 5, 2600, 4, 2); /* more experts than counts fit at once */
    }
    world_close(&w);
    return kc_report(&c, "grad_route");
}
