/* SPDX-License-Identifier: MIT
 *
 * train.h - a layer of weights that change, and what its forward keeps.
 */
#ifndef CMOE_LAYER_TRAIN_H
#define CMOE_LAYER_TRAIN_H

#include "experts/train.h"
#include "layer.h"

struct cmoe_layer_train {
    cmoe_ctx *ctx;
    cmoe_layer_train_options o; /* route and experts are NULL here */
    cmoe_route_options route;
    int64_t count, hidden;       /* E, H */
    cmoei_experts_train experts; /* routed */
    cmoei_experts_train shared;  /* one that every token takes; only with o.shared13 */
};

/* T tokens, E experts, K slots. */
typedef struct cmoei_layer_saved {
    cmoe_saved head;
    const cmoe_layer_train *l;
    int64_t tokens;
    bool replayed, forced;   /* ids were given; weights, too */
    float *logits, *weights; /* [T, E], [T, K] */
    int32_t *ids;            /* [T, K] */
    float *shared_weights;   /* [T] sigmoid of the shared gate, or ones */
    cmoei_experts_saved *experts, *shared;
} cmoei_layer_saved;

/* Scratch of forward and of backward, beside what their steps take one after another. */
typedef struct cmoei_layer_room {
    float *shared;       /* [T, H]  forward: rows of the shared expert; backward: a part of dx */
    int32_t *shared_ids; /* [T]     zeros: the one shared expert */
    float *dlogits;      /* [T, E] */
    float *dweights;     /* [T, K] */
    float *dshared;      /* [T]     gradient of shared_weights, then of its logit */
} cmoei_layer_room;

void cmoei_layer_room_carve(const cmoe_layer_train *l, int64_t tokens, cmoei_carver *c,
                            cmoei_layer_room *room);

static inline cmoe_route_inputs cmoei_layer_train_inputs(const cmoe_layer_train *l)
{
    cmoe_route_inputs in;
    cmoe_route_inputs_default(&in, sizeof in);
    in.bias = l->o.bias;
    in.per_expert_scale = l->o.per_expert_scale;
    return in;
}

cmoe_status cmoei_layer_train_check(const cmoe_stream *s, const cmoe_layer_train *l,
                                    cmoe_error *err);

#endif
