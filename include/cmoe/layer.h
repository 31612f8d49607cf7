/* SPDX-License-Identifier: MIT
 *
 * cmoe/layer.h - a Mixture-of-Experts layer: the composition of its steps, checked once.
 *
 *     hidden [T, H] --gate--> logits [T, E] --route--> ids, weights [T, K]
 *        |--dispatch--> rows by expert --experts--> rows --dispatch back--> combine --> out [T, H]
 *        '--shared expert---------------------------------------------------'
 *
 * Every pairing is checked when the layer is created: router output against experts, shapes,
 * formats, top-k, hash table, communicator.  Forward allocates nothing, and a token's result does
 * not depend on its batch, the number of threads or the number of ranks.
 */
#ifndef CMOE_LAYER_H
#define CMOE_LAYER_H

#include "cmoe/base.h"
#include "cmoe/comm.h"
#include "cmoe/experts.h"
#include "cmoe/route.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmoe_layer_options {
    size_t size;
    const cmoe_route_options *route; /* copied; its topk has no default */
    int64_t chunk;        /* tokens worked on at a time, which bounds the scratch; 0: 2048 */
    int32_t shared_first; /* 1: the sum starts from the shared expert; 0: it is added last */
    float combine_scale;  /* of the routed sum; default 1 */
    cmoe_comm *comm;      /* borrowed; NULL: this process alone */
} cmoe_layer_options;

CMOE_API void cmoe_layer_options_default(cmoe_layer_options *o, size_t size);

/* Views are read at create and not needed afterwards; expert objects are borrowed and must outlive
 * the layer.  Everything but gate and experts may be absent. */
typedef struct cmoe_layer_weights {
    size_t size;
    cmoe_view gate;           /* [E, H]; absent: routing is given in every forward */
    cmoe_view gate_bias;      /* [E], part of the logits (gpt_oss) */
    cmoe_view lora_a, lora_b; /* [R, H], [E, R]: low-rank delta of the gate */
    float lora_scale;         /* default 1 */
    int32_t reserved;
    cmoe_view bias;              /* [E], added for the choice only */
    cmoe_view hash_table;        /* int32 or int64 [vocab, K] */
    cmoe_view per_expert_scale;  /* [E] */
    const cmoe_experts *experts; /* E experts, or E + route.shared when shared ones are appended */
    const cmoe_experts *shared;  /* one expert that every token takes, or NULL */
    cmoe_view
        shared_gate; /* [1, H], appended [route.shared, H]: weight sigmoid(x . gate), else 1 */
} cmoe_layer_weights;

CMOE_API void cmoe_layer_weights_default(cmoe_layer_weights *w, size_t size);

/* Immutable, shared by threads; freed before its experts, communicator and context. */
typedef struct cmoe_layer cmoe_layer;

CMOE_API cmoe_status cmoe_layer_create(cmoe_layer **out, cmoe_ctx *ctx, const cmoe_layer_options *o,
                                       const cmoe_layer_weights *w, cmoe_error *err);
CMOE_API void cmoe_layer_free(cmoe_layer *l);

/* What one forward is given besides x, and what it is asked to write down.  All may be absent. */
typedef struct cmoe_layer_call {
    size_t size;
    cmoe_view input_ids;      /* int32 or int64 [T], for hash routing */
    cmoe_view replay_ids;     /* int32 or int64 [T, K]: forced, weights from the live scores */
    cmoe_view replay_weights; /* [T, K] with replay_ids: forced too */
    cmoe_view_mut ids;        /* int32 [T, K + appended]: the routing that was used */
    cmoe_view_mut weights;    /* float32 [T, K + appended] */
    cmoe_view_mut logits;     /* float32 [T, E] */
    cmoe_view_mut load;   /* int64 [E + appended]: slots of each expert, added to what is there */
    double *balance_loss; /* as cmoe_route_balance_loss, over all T tokens; needs logits and ids */
    cmoe_view mask;       /* int32 [T] of the loss: 0 marks padding */
} cmoe_layer_call;

CMOE_API void cmoe_layer_call_default(cmoe_layer_call *c, size_t size);

CMOE_API cmoe_status cmoe_layer_bytes(const cmoe_layer *l, int64_t tokens, int64_t *host,
                                      int64_t *device, cmoe_error *err);

/* Collective over the layer's communicator.  x [T, H] -> out [T, H], any float formats; out must
 * not overlap x.  `call` may be NULL. */
CMOE_API cmoe_status cmoe_layer_forward(cmoe_stream *s, const cmoe_layer *l, cmoe_view x,
                                        const cmoe_layer_call *call, cmoe_view_mut out,
                                        cmoe_arena *scratch, cmoe_error *err);

/* ---- training ------------------------------------------------------------------------------------ */

/* A layer of weights that change.  Trainables are borrowed, and filled by the caller between steps.
 * Everything but gate, w13 and w2 may be absent; routing across ranks is not part of it yet. */
typedef struct cmoe_layer_train_options {
    size_t size;
    const cmoe_route_options *route;     /* copied; shared must be 0 */
    const cmoe_experts_options *experts; /* copied; as cmoe_experts_train; NULL: defaults */
    float combine_scale;                 /* default 1 */
    int32_t shared_first;
    const cmoe_trainable *gate;               /* [1, E, H]; always f32 */
    const cmoe_trainable *w13, *w2;           /* [E, 2I, H], [E, H, I] */
    const cmoe_trainable *shared13, *shared2; /* [1, 2S, H], [1, H, S]: SiLU, gate first */
    const cmoe_trainable *shared_gate;        /* [1, 1, H] */
    cmoe_view bias;             /* float32 [E], for the choice only; read in every forward */
    cmoe_view per_expert_scale; /* float32 [E] */
} cmoe_layer_train_options;

CMOE_API void cmoe_layer_train_options_default(cmoe_layer_train_options *o, size_t size);

/* Checked once at create; immutable but for what its trainables hold. */
typedef struct cmoe_layer_train cmoe_layer_train;

CMOE_API cmoe_status cmoe_layer_train_create(cmoe_layer_train **out, cmoe_ctx *ctx,
                                             const cmoe_layer_train_options *o, cmoe_error *err);
CMOE_API void cmoe_layer_train_free(cmoe_layer_train *l);

CMOE_API cmoe_status cmoe_layer_train_bytes(const cmoe_layer_train *l, int64_t tokens,
                                            int64_t *keep, int64_t *host, int64_t *device,
                                            cmoe_error *err);

/* x [T, H] -> out [T, H], as cmoe_layer_forward.  Of `call` (or NULL): ids, weights, logits and load are
 * written, replay_ids and replay_weights are followed. */
CMOE_API cmoe_status cmoe_layer_train_forward(cmoe_stream *s, const cmoe_layer_train *l,
                                              cmoe_view x, const cmoe_layer_call *call,
                                              cmoe_view_mut out, cmoe_saved **saved,
                                              cmoe_arena *keep, cmoe_arena *scratch,
                                              cmoe_error *err);

/* Gradients, each by part of its trainable; NULL: not computed. */
typedef struct cmoe_layer_gradients {
    size_t size;
    cmoe_view_mut dx; /* [T, H] */
    const cmoe_part_gradient *gate, *w13, *w2, *shared13, *shared2, *shared_gate;
    float balance,
        z_loss; /* scale of the auxiliary losses' gradients, as in cmoe/route.h; 0: none */
    double *balance_loss, *z_loss_value; /* sums over the units of this call; or NULL */
    cmoe_view mask;                      /* int32 [T] of these losses: 0 marks padding */
} cmoe_layer_gradients;

CMOE_API void cmoe_layer_gradients_default(cmoe_layer_gradients *g, size_t size);

CMOE_API cmoe_status cmoe_layer_backward(cmoe_stream *s, const cmoe_layer_train *l,
                                         const cmoe_saved *saved, cmoe_view x, cmoe_view dout,
                                         const cmoe_units *units, const cmoe_layer_gradients *g,
                                         cmoe_arena *scratch, cmoe_error *err);

/* Every kernel variant that this build has, operation by operation, best first.  Returns how many
 * there are and writes at most `capacity` of them. */
typedef struct cmoe_variant {
    const char *op, *name;
    int32_t dtype;  /* the format it computes in; 0: any */
    uint32_t needs; /* CMOE_CPU_ bits */
} cmoe_variant;

CMOE_API int64_t cmoe_variants(cmoe_variant *out, int64_t capacity);

#ifdef __cplusplus
}
#endif
#endif
