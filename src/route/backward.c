/* SPDX-License-Identifier: MIT
 *
 * backward.c - cmoe_route_backward: gradients of the routing weights to those of the logits.
 *
 * logits [T, E], ids and dweights [T, K] -> dlogits float32 [T, E].  Tokens do not know each other,
 * so tasks share them as they like.  backward_token.h has the formulas; here are the checks and the
 * table.
 */
#include "backward.h"

#include <inttypes.h>
#include <string.h>

#include "core/units.h"
#include "route_check.h"

static const cmoei_route_back_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX2 | CMOE_CPU_AVX512, 0},
     cmoei_route_back_token_avx512,
     cmoei_route_back_pull_avx512,
     cmoei_route_back_z_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0},
     cmoei_route_back_token_avx2,
     cmoei_route_back_pull_avx2,
     cmoei_route_back_z_avx2},
#endif
    {{"ref", 0, 0}, cmoei_route_back_token_ref, cmoei_route_back_pull_ref, cmoei_route_back_z_ref},
};
const cmoei_table cmoei_route_back_table = CMOEI_TABLE("route_backward", kernels);

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoei_want slots_of(const cmoei_route_call *c, const char *name, uint32_t dtypes)
{
    return (cmoei_want){.name = name,
                        .dtypes = dtypes,
                        .rank = 2,
                        .dims = {c->tokens, c->o.topk},
                        .dim_names = {"tokens", "topk"}};
}

static cmoe_status check_ids(const cmoe_view *ids, int64_t experts, cmoe_error *err)
{
    for (int64_t t = 0; t < ids->dims[0]; t++) {
        for (int64_t k = 0; k < ids->dims[1]; k++) {
            const int64_t id = cmoei_load_index(cmoei_at(ids, t, k), ids->dtype);
            if (id < -1 || id >= experts)
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "%s[%" PRId64 ", %" PRId64 "] = %" PRId64
                                  ", want -1 <= id < %" PRId64 " (experts)",
                                  cmoei_name(ids->name, "ids"), t, k, id, experts);
        }
    }
    return CMOE_OK;
}

static cmoe_status check_dlogits(const cmoei_route_call *c, const cmoe_view_mut *dlogits,
                                 const cmoe_view *ids, const cmoe_view *weights,
                                 const cmoe_view *dweights, cmoe_error *err)
{
    const struct {
        const cmoe_view *view;
        const char *name;
    } inputs[] = {
        {&c->logits, "logits"},
        {ids, "ids"},
        {weights, "weights"},
        {dweights, "dweights"},
        {&c->in.per_expert_scale, "per_expert_scale"},
    };
    const cmoei_want want = {.name = "dlogits",
                             .rank = 2,
                             .dims = {c->tokens, c->experts > 0 ? c->experts : -1},
                             .dim_names = {"tokens", "experts"}};
    CMOEI_TRY(cmoei_check_rows_out(dlogits, &want, err));
    for (int64_t i = 0; i < CMOEI_COUNT(inputs); i++) {
        if (cmoei_given(inputs[i].view))
            CMOEI_TRY(cmoei_check_apart(dlogits, "dlogits", inputs[i].view, inputs[i].name, err));
    }
    return CMOE_OK;
}

/* `c` has the logits on entry. */
static cmoe_status check(cmoei_route_call *c, const cmoe_route_options *o,
                         const cmoe_route_inputs *in, const cmoe_view *ids,
                         const cmoe_view *weights, const cmoe_view *dweights,
                         const cmoe_view_mut *dlogits, cmoe_error *err)
{
    CMOEI_TRY(cmoei_route_check_inputs(c, o, in, err));
    if (c->o.shared > 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "shared = %" PRId64 ", want 0 (only routed slots have a backward)",
                          c->o.shared);
    cmoei_want want = slots_of(c, "ids", CMOEI_INDEX);
    CMOEI_TRY(cmoei_check_in(ids, &want, err));
    want = slots_of(c, "weights", CMOEI_DTYPE(CMOE_F32));
    CMOEI_TRY(cmoei_check_in(weights, &want, err));
    want.name = "dweights";
    CMOEI_TRY(cmoei_check_rows(dweights, &want, err));
    CMOEI_TRY(check_dlogits(c, dlogits, ids, weights, dweights, err));
    CMOEI_TRY(check_ids(ids, dlogits->dims[1], err));
    return cmoei_route_check_scale(&c->in.per_expert_scale, err);
}

/* ---- run ------------------------------------------------------------------------------------- */

enum { TASK_TOKENS = 16 }; /* fewer are not worth waking a thread */

typedef struct job {
    const cmoei_route_back_kernel *kernel;
    cmoei_route_back args;
    int64_t tokens;
} job;

static void run(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    int64_t begin, end;
    (void)team;
    cmoei_split(j->tokens, index, count, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        j->kernel->token(&j->args, t);
}

/* Weights that came from outside say nothing about the logits. */
static void write_zeros(const cmoe_view_mut *dlogits)
{
    for (int64_t t = 0; dlogits->dims[1] > 0 && t < dlogits->dims[0]; t++)
        memset(cmoei_at_mut(dlogits, t, 0), 0, (size_t)dlogits->dims[1] * sizeof(float));
}

cmoe_status cmoe_route_backward(cmoe_stream *s, const cmoe_route_options *o, cmoe_view logits,
                                const cmoe_route_inputs *in, cmoe_view ids, cmoe_view weights,
                                cmoe_view dweights, cmoe_view_mut dlogits, cmoe_error *err)
{
    cmoei_route_call c = {.logits = logits};
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(check(&c, o, in, &ids, &weights, &dweights, &dlogits, err));
    if (c.tokens == 0) return CMOE_OK;
    if (cmoei_given(&c.in.given_weights)) {
        write_zeros(&dlogits);
        return CMOE_OK;
    }
    job j = {
        .kernel = cmoei_table_pick(&cmoei_route_back_table, s->ctx->features, 0),
        .args = {.o = c.o,
                 .slope = {.logits = logits,
                           .dlogits = dlogits.data,
                           .step = dlogits.strides[0] * (int64_t)sizeof(float)},
                 .ids = ids,
                 .dweights = dweights,
                 .expert_scale = c.in.per_expert_scale},
        .tokens = c.tokens,
    };
    cmoei_region(s->ctx, cmoei_ceil_div(c.tokens, TASK_TOKENS), run, &j);
    return CMOE_OK;
}
