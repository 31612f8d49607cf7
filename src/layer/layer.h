/* SPDX-License-Identifier: MIT
 *
 * layer.h - what a layer keeps: its options, small float32 copies, packed router, borrowed experts.
 */
#ifndef CMOE_LAYER_INTERNAL_H
#define CMOE_LAYER_INTERNAL_H

#include "cmoe/dispatch.h"
#include "cmoe/layer.h"
#include "experts/experts.h"
#include "route/logits.h"

struct cmoe_layer {
    cmoe_ctx *ctx;
    cmoe_layer_options o;
    cmoe_route_options route;
    int64_t experts;  /* E that are routed to */
    int64_t appended; /* shared experts behind them */
    int64_t width;    /* slots of a token: K + appended */
    int64_t hidden;
    int64_t vocab;              /* rows of the hash table; 0: none */
    const cmoe_experts *own;    /* routed and appended experts of this rank */
    const cmoe_experts *shared; /* or NULL */
    cmoe_matrix *gate, *lora_a, *lora_b, *shared_gate; /* or NULL */
    float *bias, *gate_bias, *per_expert_scale;        /* [E] or NULL */
    int32_t *hash_table;                               /* [vocab, K] or NULL */
    float lora_scale;
    cmoe_comm *local; /* made here when the caller brought none */
    cmoe_dispatch *dispatch;
};

static inline cmoei_logits cmoei_layer_logits(const cmoe_layer *l)
{
    return (cmoei_logits){
        .gate = l->gate,
        .lora_a = l->lora_a,
        .lora_b = l->lora_b,
        .bias = l->gate_bias ? cmoe_view_1d(l->gate_bias, CMOE_F32, l->experts) : cmoe_view_none(),
        .lora_scale = l->lora_scale,
    };
}

/* What the checks of a call have to know of a layer. */
typedef struct cmoei_layer_form {
    int64_t experts, appended, topk, hidden, vocab;
    bool gate;
    const cmoe_matrix *w13,
        *w2; /* outputs may not lie on these, where they are borrowed; or NULL */
} cmoei_layer_form;

/* Everything that one forward is given and asked for, before anything is written. */
cmoe_status cmoei_layer_check(const cmoei_layer_form *l, const cmoe_view *x,
                              const cmoe_layer_call *call, const cmoe_view_mut *out,
                              const cmoe_arena *scratch, cmoe_error *err);

/* So many experts can be chosen from the groups that are kept. */
cmoe_status cmoei_layer_check_topk(const cmoe_route_options *route, int64_t experts,
                                   cmoe_error *err);

/* Tokens [begin, begin + tokens) of what the caller asked to have written down.  Cannot fail: everything
 * was checked. */
typedef struct cmoei_layer_record {
    int64_t tokens, experts, width;
    const int32_t *ids;            /* [n, width] */
    const float *weights, *logits; /* [n, width], [n, E] */
} cmoei_layer_record;

void cmoei_layer_write_call(const cmoei_layer_record *r, int64_t begin,
                            const cmoe_layer_call *call);

#endif
