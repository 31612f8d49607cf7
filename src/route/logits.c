/* SPDX-License-Identifier: MIT
 *
 * logits.c - router logits from hidden states: the experts' product, always in float32.
 *
 *     logits[t, e] = hidden[t] . gate[e] (+ gate_bias[e])
 *                    (+ scale * sum over r of (hidden[t] . a[r]) * b[e, r])
 *
 * Routers in bf16 send tokens to other experts, so weights and hidden states of any format become
 * float32 first.  A low-rank delta is computed beside the gate and added at the end, so a zero
 * delta leaves the bits of no delta.
 */
#include "logits.h"

#include <inttypes.h>

/* ---- with matrices that somebody has --------------------------------------------------------- */

static int64_t rank_of(const cmoei_logits *l)
{
    return l->lora_a ? l->lora_a->outputs : 0;
}

typedef struct room {
    float *low;   /* [T, R] */
    float *delta; /* [T, E] */
} room;

static room carve(const cmoei_logits *l, int64_t tokens, cmoei_carver *c)
{
    room r = {0};
    if (rank_of(l) > 0) {
        r.low = cmoei_carve_array(c, tokens, rank_of(l) * (int64_t)sizeof *r.low);
        r.delta = cmoei_carve_array(c, tokens, l->gate->outputs * (int64_t)sizeof *r.delta);
    }
    return r;
}

cmoe_status cmoei_logits_bytes(const cmoei_logits *l, int64_t tokens, int64_t *bytes,
                               cmoe_error *err)
{
    const cmoe_matrix *products[] = {l->gate, l->lora_a, l->lora_b};
    int64_t most = 0;
    for (int i = 0; i < 3; i++) {
        int64_t one = 0;
        if (products[i]) CMOEI_TRY(cmoe_linear_bytes(products[i], tokens, &one, NULL, err));
        most = CMOEI_MAX(most, one);
    }
    cmoei_carver c = cmoei_carver_dry();
    carve(l, tokens, &c);
    cmoei_carve(&c, most);
    CMOEI_TRY(cmoei_carver_check(&c, "route_logits", err));
    *bytes = cmoei_carver_bytes(&c);
    return CMOE_OK;
}

typedef struct finish_job {
    const cmoei_logits *l;
    const float *delta; /* [T, E] or NULL */
    cmoe_view_mut logits;
} finish_job;

/* Adds bias and delta to what the gate product left in logits. */
static void finish(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const finish_job *j = arg;
    const int64_t experts = j->l->gate->outputs;
    int64_t begin, end;
    (void)team;
    cmoei_split(j->logits.dims[0], index, count, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        for (int64_t e = 0; e < experts; e++) {
            void *at = cmoei_at_mut(&j->logits, t, e);
            float sum, bias;
            cmoei_load_f32(&sum, at, CMOE_F32, 1, 1);
            if (cmoei_given(&j->l->bias)) {
                cmoei_load_f32(&bias, cmoei_at(&j->l->bias, e, 0), j->l->bias.dtype, 1, 1);
                sum += bias;
            }
            if (j->delta) sum += j->l->lora_scale * j->delta[t * experts + e];
            cmoei_store_f32(at, CMOE_F32, 1, &sum, 1);
        }
    }
}

cmoe_status cmoei_logits_run(cmoe_stream *s, const cmoei_logits *l, cmoe_view hidden,
                             cmoe_view_mut logits, const cmoe_arena *scratch, cmoe_error *err)
{
    const int64_t tokens = hidden.dims[0], rank = rank_of(l);
    cmoei_carver c = cmoei_carver_open(scratch);
    const room r = carve(l, tokens, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "route_logits", err));
    cmoe_arena rest = {c.base, c.bytes, c.used};
    CMOE_ASSERT(!rank || !tokens || r.low);
    if (rank > 0) {
        const cmoe_view_mut low = cmoe_view_mut_2d(r.low, CMOE_F32, tokens, rank);
        const cmoe_view_mut delta = cmoe_view_mut_2d(r.delta, CMOE_F32, tokens, l->gate->outputs);
        CMOEI_TRY(cmoe_linear(s, hidden, l->lora_a, low, &rest, err));
        CMOEI_TRY(cmoe_linear(s, cmoe_view_of(low), l->lora_b, delta, &rest, err));
    }
    CMOEI_TRY(cmoe_linear(s, hidden, l->gate, logits, &rest, err));
    if (rank > 0 || cmoei_given(&l->bias))
        cmoei_region(s->ctx, tokens / 64, finish,
                     &(finish_job){l, rank > 0 ? r.delta : NULL, logits});
    return CMOE_OK;
}

/* ---- from views ------------------------------------------------------------------------------ */

/* The gate and its delta, borrowed: packed on the way, nothing to free. */
typedef struct borrowed {
    cmoe_matrix gate, a, b;
    cmoei_logits l;
} borrowed;

static cmoe_status borrow(cmoe_matrix *m, cmoe_ctx *ctx, cmoe_view w, cmoe_error *err)
{
    return cmoei_matrix_borrow(m, ctx, CMOE_F32, cmoei_as_matrices(w), err);
}

static cmoe_status borrow_all(borrowed *p, cmoe_ctx *ctx, cmoe_view gate, cmoe_view bias,
                              cmoe_view a, cmoe_view b, float scale, cmoe_error *err)
{
    CMOEI_TRY(borrow(&p->gate, ctx, gate, err));
    p->l = (cmoei_logits){.gate = &p->gate, .bias = bias, .lora_scale = scale};
    if (cmoei_given(&a) && a.dims[0] > 0) {
        CMOEI_TRY(borrow(&p->a, ctx, a, err));
        CMOEI_TRY(borrow(&p->b, ctx, b, err));
        p->l.lora_a = &p->a;
        p->l.lora_b = &p->b;
    }
    return CMOE_OK;
}

static cmoe_status check_sizes(int64_t tokens, int64_t hidden, int64_t experts, int64_t rank,
                               cmoe_error *err)
{
    if (tokens < 0 || tokens > INT32_MAX || hidden < 0 || experts < 0 || experts > INT32_MAX ||
        rank < 0 || rank > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "route_logits: tokens = %" PRId64 ", hidden = %" PRId64
                          ", experts = %" PRId64 ", rank = %" PRId64 ", want 0 to 2^31 - 1",
                          tokens, hidden, experts, rank);
    return CMOE_OK;
}

cmoe_status cmoe_route_logits_bytes(cmoe_ctx *ctx, int64_t tokens, int64_t hidden, int64_t experts,
                                    int64_t lora_rank, int64_t *host, int64_t *device,
                                    cmoe_error *err)
{
    if (!ctx || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "route_logits_bytes: %s is NULL",
                          ctx ? "host" : "ctx");
    CMOEI_TRY(check_sizes(tokens, hidden, experts, lora_rank, err));
    borrowed p;
    CMOEI_TRY(borrow_all(&p, ctx, cmoe_view_2d(NULL, CMOE_F32, experts, hidden), cmoe_view_none(),
                         cmoe_view_2d(NULL, CMOE_F32, lora_rank, hidden),
                         cmoe_view_2d(NULL, CMOE_F32, experts, lora_rank), 1, err));
    if (device) *device = 0;
    return cmoei_logits_bytes(&p.l, tokens, host, err);
}

static cmoe_status check_lora(const cmoe_view *a, const cmoe_view *b, int64_t hidden,
                              int64_t experts, float scale, cmoe_error *err)
{
    if (cmoei_given(a) != cmoei_given(b))
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is given without %s, want both or neither",
                          cmoei_given(a) ? "lora_a" : "lora_b",
                          cmoei_given(a) ? "lora_b" : "lora_a");
    if (!cmoei_given(a)) return CMOE_OK;
    const cmoei_want wa = {"lora_a", CMOEI_FLOATS, 2, {-1, hidden}, {"rank", "hidden"}};
    CMOEI_TRY(cmoei_check_in(a, &wa, err));
    const cmoei_want wb = {"lora_b", CMOEI_FLOATS, 2, {experts, a->dims[0]}, {"experts", "rank"}};
    CMOEI_TRY(cmoei_check_in(b, &wb, err));
    if (scale - scale != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "lora_scale = %g, want a finite number",
                          (double)scale);
    return CMOE_OK;
}

cmoe_status cmoei_logits_check(const cmoe_view *gate, int64_t hidden, const cmoe_view *bias,
                               const cmoe_view *lora_a, const cmoe_view *lora_b, float lora_scale,
                               cmoe_error *err)
{
    const cmoei_want wg = {"gate", CMOEI_FLOATS, 2, {-1, hidden}, {"experts", "hidden"}};
    CMOEI_TRY(cmoei_check_in(gate, &wg, err));
    if (cmoei_given(bias)) {
        const cmoei_want wb = {"gate_bias", CMOEI_FLOATS, 1, {gate->dims[0]}, {"experts"}};
        CMOEI_TRY(cmoei_check_in(bias, &wb, err));
    }
    CMOEI_TRY(check_lora(lora_a, lora_b, hidden, gate->dims[0], lora_scale, err));
    return check_sizes(0, hidden, gate->dims[0], cmoei_given(lora_a) ? lora_a->dims[0] : 0, err);
}

cmoe_status cmoe_route_logits(cmoe_stream *s, cmoe_view hidden, cmoe_view gate, cmoe_view gate_bias,
                              cmoe_view lora_a, cmoe_view lora_b, float lora_scale,
                              cmoe_view_mut logits, cmoe_arena *scratch, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    const cmoei_want wh = {"hidden", CMOEI_FLOATS, 2, {-1, -1}, {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_in(&hidden, &wh, err));
    CMOEI_TRY(
        cmoei_logits_check(&gate, hidden.dims[1], &gate_bias, &lora_a, &lora_b, lora_scale, err));
    CMOEI_TRY(check_sizes(hidden.dims[0], hidden.dims[1], gate.dims[0], 0, err));
    const cmoei_want wl = {
        "logits", CMOEI_DTYPE(CMOE_F32), 2, {hidden.dims[0], gate.dims[0]}, {"tokens", "experts"}};
    CMOEI_TRY(cmoei_check_out(&logits, &wl, err));
    const cmoe_view *inputs[] = {&hidden, &gate, &gate_bias, &lora_a, &lora_b};
    static const char *const names[] = {"hidden", "gate", "gate_bias", "lora_a", "lora_b"};
    const cmoe_view out = cmoe_view_of(logits);
    CMOEI_TRY(cmoei_check_scratch(scratch, &out, "logits", err));
    for (int i = 0; i < 5; i++) {
        CMOEI_TRY(cmoei_check_apart(&logits, "logits", inputs[i], names[i], err));
        CMOEI_TRY(cmoei_check_scratch(scratch, inputs[i], names[i], err));
    }
    borrowed p;
    CMOEI_TRY(borrow_all(&p, s->ctx, gate, gate_bias, lora_a, lora_b, lora_scale, err));
    return cmoei_logits_run(s, &p.l, hidden, logits, scratch, err);
}
