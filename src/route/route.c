/* SPDX-License-Identifier: MIT
 *
 * route.c - cmoe_route: the experts of every token and their weights.
 *
 * logits [T, E] -> weights float32 [T, K + n], ids int32 [T, K + n]; n appended shared experts.
 *
 * Tasks share the tokens evenly.  Each copies a token's logits to its own contiguous float32 row,
 * has the kernel choose and weigh, and stores the result through the strides: so format, strides
 * and address of the tensors end here, and kernels know nothing of them.  With `validate` the
 * results stand in scratch until all of them were looked at, since outputs are written only on
 * success.
 *
 * The rule itself is route_token.h, the checks are route_check.c.  What the header leaves open:
 *   - bias is sanitised as logits are, so -infinity there keeps an expert out as long as K others
 *     are left;
 *   - logits scoring needs no renormalising, sparsemixer does it when the options say so (PhiMoE
 *     does not);
 *   - bypassed weights are what a capture recorded: nothing, per_expert_scale included, is applied
 *     to them again.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/real.h"

#include "route_check.h"
#include "route_kernel.h"
#include "route_token.h"

static const cmoei_route_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX2 | CMOE_CPU_AVX512, 0},
     cmoei_route_token_avx512,
     cmoei_route_share_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_route_token_avx2, cmoei_route_share_avx2},
#endif
    {{"ref", 0, 0}, cmoei_route_token_ref, cmoei_route_share_ref},
};
const cmoei_table cmoei_route_table = CMOEI_TABLE("route", kernels);

/* ---- scratch --------------------------------------------------------------------------------- */

enum { MOST_TASKS = 64, TASK_TOKENS = 16 }; /* fewer tokens are not worth waking a thread */

typedef struct desk { /* of one task */
    float *logits;    /* [E] */
    float *weights;   /* [K + n] */
    int32_t *ids;     /* [K + n] */
    cmoei_route_work work;
} desk;

typedef struct memory {
    int64_t tasks;
    desk desks[MOST_TASKS];
    float *bias, *expert_scale; /* [E] */
    float *weights;             /* [T, K + n], only to validate */
    int32_t *ids;               /* [T, K + n], only to validate */
} memory;

static void carve_desk(cmoei_carver *c, const cmoe_route_options *o, int64_t experts, desk *d)
{
    const int64_t lanes = cmoei_route_lanes(experts);
    d->logits = cmoei_carve_array(c, experts, 4);
    d->weights = cmoei_carve_array(c, o->topk + o->shared, 4);
    d->ids = cmoei_carve_array(c, o->topk + o->shared, 4);
    d->work.score = cmoei_carve_array(c, experts, 4);
    d->work.choice = cmoei_carve_array(c, experts, 4);
    d->work.group = cmoei_carve_array(c, o->groups, 4);
    d->work.key = cmoei_carve_array(c, cmoei_round_up(experts, lanes), 4);
    d->work.best = cmoei_carve_array(c, 2 * lanes, 4);
}

static void carve(cmoei_carver *c, const cmoe_route_options *o, int64_t tokens, int64_t experts,
                  memory *m)
{
    memset(m, 0, sizeof *m);
    m->tasks = CMOEI_MIN(cmoei_ceil_div(tokens, TASK_TOKENS), (int64_t)MOST_TASKS);
    m->bias = cmoei_carve_array(c, experts, 4);
    m->expert_scale = cmoei_carve_array(c, experts, 4);
    for (int64_t i = 0; i < m->tasks; i++)
        carve_desk(c, o, experts, &m->desks[i]);
    if (!o->validate) return;
    int64_t slots = 0;
    if (!cmoei_mul(tokens, o->topk + o->shared, &slots)) c->overflow = true;
    m->weights = cmoei_carve_array(c, slots, 4);
    m->ids = cmoei_carve_array(c, slots, 4);
}

cmoe_status cmoe_route_bytes(const cmoe_route_options *given, int64_t tokens, int64_t experts,
                             int64_t *host, int64_t *device, cmoe_error *err)
{
    cmoe_route_options o;
    memory m;
    if (tokens < 0 || experts < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "tokens = %" PRId64 ", experts = %" PRId64 ", want both >= 0", tokens,
                          experts);
    CMOEI_TRY(cmoei_route_read_options(&o, given, experts, err));
    cmoei_carver c = cmoei_carver_dry();
    carve(&c, &o, tokens, experts, &m);
    CMOEI_TRY(cmoei_carver_check(&c, "route", err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

/* ---- one token ------------------------------------------------------------------------------- */

typedef struct job {
    const cmoei_route_call *call;
    const cmoei_route_kernel *kernel;
    cmoei_route_plan plan;
    memory *m;
    cmoe_view_mut weights, ids; /* the caller's, or the scratch to validate */
} job;

/* Slots K..K+n-1: the experts behind the routed ones. */
static void append_shared(const cmoei_route_call *c, int64_t t, desk *d)
{
    const cmoe_view *gate = &c->in.shared_gate;
    const int64_t topk = c->o.topk;
    for (int64_t i = 0; i < c->o.shared; i++) {
        float x, w = 1;
        if (cmoei_given(gate)) {
            cmoei_load_f32(&x, cmoei_at(gate, t, gate->dims[1] == 1 ? 0 : i), gate->dtype, 1, 1);
            w = cmoei_sigmoidf(route_sanitise(x));
        }
        d->weights[topk + i] = w;
        d->ids[topk + i] = (int32_t)(c->experts + i);
    }
}

static void store_token(const job *j, int64_t t, const desk *d)
{
    const int64_t width = j->call->width;
    cmoei_store_f32(cmoei_at_mut(&j->weights, t, 0), CMOE_F32, j->weights.strides[1], d->weights,
                    width);
    for (int64_t k = 0; k < width; k++)
        memcpy(cmoei_at_mut(&j->ids, t, k), &d->ids[k], sizeof d->ids[k]);
}

static void route_token(const job *j, int64_t t, desk *d)
{
    const cmoei_route_call *c = j->call;
    const cmoe_view *logits = &c->logits, *given = &c->in.given_weights;
    if (j->plan.forced) {
        for (int64_t k = 0; k < c->o.topk; k++)
            d->ids[k] = cmoei_route_forced_id(c, t, k);
    }
    if (cmoei_given(given)) {
        cmoei_load_f32(d->weights, cmoei_at(given, t, 0), given->dtype, given->strides[1],
                       c->o.topk);
    } else {
        cmoei_load_f32(d->logits, cmoei_at(logits, t, 0), logits->dtype, logits->strides[1],
                       c->experts);
        j->kernel->token(&j->plan, &d->work, d->logits, d->ids, d->weights);
    }
    append_shared(c, t, d);
    store_token(j, t, d);
}

static void route_tokens(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    job *j = arg;
    int64_t begin, end;
    (void)team;
    cmoei_split(j->call->tokens, index, count, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        route_token(j, t, &j->m->desks[index]);
}

/* ---- validation ------------------------------------------------------------------------------ */

static cmoe_status validate(const cmoei_route_call *c, const memory *m, cmoe_error *err)
{
    for (int64_t i = 0; i < c->tokens * c->width; i++) {
        const float w = m->weights[i];
        if (!isfinite(w))
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 ", %" PRId64 "] = %s, want a finite value",
                              cmoei_name(c->weights.name, "weights"), i / c->width, i % c->width,
                              w != w  ? "nan"
                              : w > 0 ? "inf"
                                      : "-inf");
    }
    return CMOE_OK;
}

static void publish(const cmoei_route_call *c, const memory *m)
{
    for (int64_t t = 0; t < c->tokens; t++) {
        for (int64_t k = 0; k < c->width; k++) {
            const int64_t i = t * c->width + k;
            memcpy(cmoei_at_mut(&c->weights, t, k), &m->weights[i], sizeof *m->weights);
            memcpy(cmoei_at_mut(&c->ids, t, k), &m->ids[i], sizeof *m->ids);
        }
    }
}

/* ---- entry ----------------------------------------------------------------------------------- */

/* Bias and per-expert scale as contiguous float32, where there are any. */
static void prepare(job *j)
{
    const cmoe_route_inputs *in = &j->call->in;
    const int64_t experts = j->call->experts;
    if (experts == 0) return; /* bypass without logits needs neither */
    if (cmoei_given(&in->bias)) {
        cmoei_load_f32(j->m->bias, in->bias.data, in->bias.dtype, in->bias.strides[0], experts);
        for (int64_t e = 0; e < experts; e++)
            j->m->bias[e] = route_sanitise(j->m->bias[e]);
        j->plan.bias = j->m->bias;
    }
    if (cmoei_given(&in->per_expert_scale)) {
        cmoei_load_f32(j->m->expert_scale, in->per_expert_scale.data, in->per_expert_scale.dtype,
                       in->per_expert_scale.strides[0], experts);
        j->plan.expert_scale = j->m->expert_scale;
    }
}

cmoe_status cmoe_route(cmoe_stream *s, const cmoe_route_options *o, cmoe_view logits,
                       const cmoe_route_inputs *in, cmoe_view_mut weights, cmoe_view_mut ids,
                       cmoe_arena *scratch, cmoe_error *err)
{
    cmoei_route_call c = {.logits = logits, .weights = weights, .ids = ids};
    memory m;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_route_check(&c, o, in, err));
    cmoei_carver carver = cmoei_carver_open(scratch);
    carve(&carver, &c.o, c.tokens, c.experts, &m);
    CMOEI_TRY(cmoei_carver_check(&carver, "route", err));
    if (c.tokens == 0) return CMOE_OK;
    job j = {
        .call = &c,
        .kernel = cmoei_table_pick(&cmoei_route_table, s->ctx->features, 0),
        .plan = {.o = c.o, .experts = c.experts, .forced = cmoei_route_forced(&c)},
        .m = &m,
        .weights = weights,
        .ids = ids,
    };
    const uint64_t before = cmoei_float_enter();
    prepare(&j);
    cmoei_float_leave(before);
    if (c.o.validate) {
        j.weights = cmoe_view_mut_2d(m.weights, CMOE_F32, c.tokens, c.width);
        j.ids = cmoe_view_mut_2d(m.ids, CMOE_I32, c.tokens, c.width);
    }
    cmoei_region(s->ctx, m.tasks, route_tokens, &j);
    if (c.o.validate) {
        CMOEI_TRY(validate(&c, &m, err));
        publish(&c, &m);
    }
    return CMOE_OK;
}
