/* SPDX-License-Identifier: MIT
 *
 * net.h - tokens through a decoder and gradients back.
 *
 * One pass holds T tokens of some units.  It is given inputs and, for each, a target and the weight of its
 * loss; what the tokens see is a table, so next-token and block-diffusion training are the same to it.
 */
#ifndef CMOE_TRAIN_NET_H
#define CMOE_TRAIN_NET_H

#include "params.h"

typedef struct cmoei_net_call {
    int64_t tokens;           /* T, at most what the net was made for */
    const int32_t *ids;       /* [T] */
    const int64_t *positions; /* [T] */
    const int32_t *see;       /* [T, 4] as cmoe_attention_rows */
    const int32_t *targets;   /* [T], -1: not learned */
    const float *scale;       /* [T] weight of its loss in the gradient */
    const int32_t *mask;      /* [T] 0: padding, not part of the routers' losses; or NULL */
    cmoe_units units;
    float router_scale; /* of the routers' losses: 1 / (units of the step) */
    int64_t first;      /* row of the step that token 0 is, for dropout */
    int64_t step;
    float *gradient; /* [count + extra] as params.values, written whole; NULL: forward
                                 only */
} cmoei_net_call;

typedef struct cmoei_net_result {
    float *loss;                 /* [T] of each token, unweighted; 0 where there is no target */
    int64_t *load;               /* [moe layers, most experts]: slots of each expert, added */
    double balance_loss, z_loss; /* sums over layers and units */
} cmoei_net_result;

/* Memory for passes of at most `tokens` tokens. */
typedef struct cmoei_net cmoei_net;

cmoe_status cmoei_net_create(cmoei_net **out, cmoei_params *p, int64_t tokens, int64_t units,
                             cmoe_error *err);
void cmoei_net_free(cmoei_net *n);
int64_t cmoei_net_bytes(const cmoei_net *n);

/* Weights must have been filled. */
cmoe_status cmoei_net_run(cmoei_net *n, cmoe_stream *s, const cmoei_net_call *call,
                          cmoei_net_result *result, cmoe_error *err);

#endif
