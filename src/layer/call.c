/* SPDX-License-Identifier: MIT
 *
 * call.c - what one forward is given and asked for: every tensor by itself, then each output against
 * everything else.
 *
 * A tensor that this layer has no use for (a mask without a loss, ids without a hash table) is checked
 * all the same: it is looked at for overlaps.
 */
#include <inttypes.h>
#include <string.h>

#include "align/align.h"
#include "layer.h"

enum { INPUTS = 5, OUTPUTS = 5 };

/* One tensor of the call; `v` is not given when it is all zeros. */
typedef struct part {
    cmoe_view v;
    cmoei_want want;
} part;

static void inputs_of(const cmoei_layer_form *l, const cmoe_view *x, const cmoe_layer_call *call,
                      part *in)
{
    const int64_t T = x->dims[0], K = l->topk;
    in[0] = (part){*x, {"x", CMOEI_FLOATS, 2, {-1, l->hidden}, {"tokens", "hidden"}}};
    in[1] = (part){call->input_ids, {"input_ids", CMOEI_INDEX, 1, {T}, {"tokens"}}};
    in[2] = (part){call->replay_ids, {"replay_ids", CMOEI_INDEX, 2, {T, K}, {"tokens", "topk"}}};
    in[3] = (part){call->replay_weights,
                   {"replay_weights", CMOEI_FLOATS, 2, {T, K}, {"tokens", "topk"}}};
    in[4] = (part){call->mask, {"mask", CMOEI_DTYPE(CMOE_I32), 1, {T}, {"tokens"}}};
}

static void outputs_of(const cmoei_layer_form *l, int64_t T, const cmoe_layer_call *call,
                       const cmoe_view_mut *out, part *to)
{
    const int64_t E = l->experts, W = l->topk + l->appended;
    to[0] =
        (part){cmoe_view_of(*out), {"out", CMOEI_FLOATS, 2, {T, l->hidden}, {"tokens", "hidden"}}};
    to[1] = (part){cmoe_view_of(call->ids),
                   {"ids", CMOEI_DTYPE(CMOE_I32), 2, {T, W}, {"tokens", "slots"}}};
    to[2] = (part){cmoe_view_of(call->weights),
                   {"weights", CMOEI_DTYPE(CMOE_F32), 2, {T, W}, {"tokens", "slots"}}};
    to[3] = (part){cmoe_view_of(call->logits),
                   {"logits", CMOEI_DTYPE(CMOE_F32), 2, {T, E}, {"tokens", "experts"}}};
    to[4] = (part){cmoe_view_of(call->load),
                   {"load", CMOEI_DTYPE(CMOE_I64), 1, {E + l->appended}, {"experts"}}};
}

/* An output's place, as the checks of outputs want it; nothing is written through it. */
static cmoe_view_mut place_of(const part *p)
{
    cmoe_view_mut m = cmoe_view_mut_make((void *)(uintptr_t)p->v.data, p->v.dtype, 0, NULL);
    m.name = p->v.name;
    m.device = p->v.device;
    m.rank = p->v.rank;
    m.reserved = p->v.reserved;
    for (int32_t i = 0; i < CMOE_MAX_RANK; i++) {
        m.dims[i] = p->v.dims[i];
        m.strides[i] = p->v.strides[i];
    }
    return m;
}

static cmoe_status check_apart(const cmoei_layer_form *l, const part *in, const part *to,
                               const cmoe_arena *scratch, cmoe_error *err)
{
    for (int i = 0; i < INPUTS; i++)
        CMOEI_TRY(cmoei_check_scratch(scratch, &in[i].v, in[i].want.name, err));
    for (int i = 0; i < OUTPUTS; i++) {
        const cmoe_view_mut m = place_of(&to[i]);
        const char *name = to[i].want.name;
        CMOEI_TRY(cmoei_check_scratch(scratch, &to[i].v, name, err));
        if (l->w13) CMOEI_TRY(cmoei_matrix_apart(&m, name, l->w13, "w13", err));
        if (l->w2) CMOEI_TRY(cmoei_matrix_apart(&m, name, l->w2, "w2", err));
        for (int j = 0; j < INPUTS; j++)
            CMOEI_TRY(cmoei_check_apart(&m, name, &in[j].v, in[j].want.name, err));
        for (int j = 0; j < i; j++)
            CMOEI_TRY(cmoei_check_apart(&m, name, &to[j].v, to[j].want.name, err));
    }
    return CMOE_OK;
}

static cmoe_status check_replay_ids(const cmoei_layer_form *l, const cmoe_view *v, cmoe_error *err)
{
    cmoe_view named = *v;
    named.name = cmoei_name(v->name, "replay_ids");
    return cmoei_check_id_range(&named, l->experts, "experts", true, err);
}

static cmoe_status check_input_ids(const cmoei_layer_form *l, const cmoe_view *v, cmoe_error *err)
{
    for (int64_t t = 0; t < v->dims[0]; t++) {
        const int64_t id = cmoei_load_index(cmoei_at(v, t, 0), v->dtype);
        if (id < 0 || id >= l->vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %" PRId64 ", want 0 <= id < %" PRId64
                              " (rows of hash_table)",
                              cmoei_name(v->name, "input_ids"), t, id, l->vocab);
    }
    return CMOE_OK;
}

/* The routing comes from somewhere: the gate, the hash table, or the call. */
static cmoe_status check_routing(const cmoei_layer_form *l, const cmoe_layer_call *call,
                                 cmoe_error *err)
{
    const bool ids = cmoei_given(&call->replay_ids), weights = cmoei_given(&call->replay_weights);
    if (weights && !ids)
        return cmoei_fail(err, CMOE_ERR_ARG, "replay_weights are given without replay_ids");
    if (!l->gate && !ids)
        return cmoei_fail(
            err, CMOE_ERR_ARG,
            "replay_ids and replay_weights are not given, want both: this layer has no gate");
    if (!l->gate && !weights)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "replay_weights are not given, want them: this layer has no gate");
    if (ids) CMOEI_TRY(check_replay_ids(l, &call->replay_ids, err));
    if (l->vocab == 0 || ids) return CMOE_OK;
    if (!cmoei_given(&call->input_ids))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "input_ids is not given, want it: this layer has a hash table");
    return check_input_ids(l, &call->input_ids, err);
}

static cmoe_status check_asked(const cmoei_layer_form *l, const part *to,
                               const cmoe_layer_call *call, cmoe_error *err)
{
    const bool ids = cmoei_given(&to[1].v), logits = cmoei_given(&to[3].v);
    if (logits && !l->gate)
        return cmoei_fail(err, CMOE_ERR_ARG, "logits are asked for, but this layer has no gate");
    if (call->balance_loss && (!logits || !ids))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "balance_loss is asked for without %s, want logits and ids",
                          logits ? "ids" : "logits");
    return CMOE_OK;
}

cmoe_status cmoei_layer_check(const cmoei_layer_form *l, const cmoe_view *x,
                              const cmoe_layer_call *call, const cmoe_view_mut *out,
                              const cmoe_arena *scratch, cmoe_error *err)
{
    part in[INPUTS], to[OUTPUTS];
    inputs_of(l, x, call, in);
    outputs_of(l, x->dims[0], call, out, to);
    for (int i = 0; i < INPUTS; i++) {
        if (i == 0 || cmoei_given(&in[i].v)) CMOEI_TRY(cmoei_check_in(&in[i].v, &in[i].want, err));
    }
    for (int i = 0; i < OUTPUTS; i++) {
        const cmoe_view_mut m = place_of(&to[i]);
        if (i == 0 || cmoei_given(&to[i].v)) CMOEI_TRY(cmoei_check_out(&m, &to[i].want, err));
    }
    CMOEI_TRY(check_routing(l, call, err));
    CMOEI_TRY(check_asked(l, to, call, err));
    return check_apart(l, in, to, scratch, err);
}

static bool given_mut(const cmoe_view_mut *v)
{
    return v->dtype != 0 || v->data != NULL;
}

void cmoei_layer_write_call(const cmoei_layer_record *r, int64_t begin, const cmoe_layer_call *call)
{
    for (int64_t t = 0; t < r->tokens; t++) {
        for (int64_t i = 0; i < r->width; i++) {
            const int32_t id = r->ids[t * r->width + i];
            if (given_mut(&call->ids))
                memcpy(cmoei_at_mut(&call->ids, begin + t, i), &id, sizeof id);
            if (given_mut(&call->weights))
                memcpy(cmoei_at_mut(&call->weights, begin + t, i), &r->weights[t * r->width + i],
                       sizeof(float));
            if (given_mut(&call->load) && id >= 0) {
                char *at = cmoei_at_mut(&call->load, id, 0);
                const int64_t count = cmoei_load_index(at, CMOE_I64) + 1;
                memcpy(at, &count, sizeof count);
            }
        }
        if (given_mut(&call->logits))
            cmoei_store_f32(cmoei_at_mut(&call->logits, begin + t, 0), CMOE_F32,
                            call->logits.strides[1], r->logits + t * r->experts, r->experts);
    }
}
