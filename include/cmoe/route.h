/* SPDX-License-Identifier: MIT
 *
 * cmoe/route.h - scores of a token for every expert -> ids and weights of those it goes to.
 *
 * T tokens, E experts, K slots.  Everything is float32.  ids[t] stand in descending order of the
 * selection score (score plus bias, after group masking), ties by the lower expert id; hash-routed
 * and given ids keep their order.  Logits are sanitised first: NaN becomes -1e20, all are clamped
 * to +-1e20; so no score is ever NaN, nor a weight unless scales or given weights make it one.
 *
 *     score      softmax over E, sigmoid, sqrt(softplus), or the logit itself
 *     selection  score + bias, experts of dropped groups masked
 *     choice     the K best
 *     weight     score of the chosen (never the selection), renormalised, scaled, per-expert scaled
 */
#ifndef CMOE_ROUTE_H
#define CMOE_ROUTE_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CMOE_SCORE_SOFTMAX = 0,
    CMOE_SCORE_SIGMOID,
    CMOE_SCORE_SQRTSOFTPLUS,
    CMOE_SCORE_LOGITS,     /* weights: softmax over the chosen logits (gpt_oss, granite) */
    CMOE_SCORE_SPARSEMIXER /* phimoe; topk must be 2 */
};
enum { CMOE_MASK_MINUS_INF = 0, CMOE_MASK_ZERO }; /* selection score of a dropped group */
enum { CMOE_GROUP_TOP2 = 0, CMOE_GROUP_MAX };   /* score of a group: sum of its best two, or best */
enum { CMOE_RENORM_NONE = 0, CMOE_RENORM_SUM }; /* divide the K weights by their sum */
enum { CMOE_EPS_NONE = 0, CMOE_EPS_ADD, CMOE_EPS_MAX }; /* sum, sum + eps, max(sum, eps) */

typedef struct cmoe_route_options {
    size_t size;
    int64_t topk;          /* K >= 1; columns beyond E hold id -1 and weight 0 */
    int32_t scoring;       /* CMOE_SCORE_ */
    int32_t renormalize;   /* CMOE_RENORM_; default CMOE_RENORM_SUM.  A sum of 0 gives weights 0 */
    int32_t eps_rule;      /* CMOE_EPS_; default CMOE_EPS_MAX */
    float eps;             /* default 1e-20 */
    int64_t groups;        /* default 1: no group step; must divide E */
    int64_t topk_groups;   /* 0: all groups; else 1..groups */
    int32_t group_mask;    /* CMOE_MASK_ */
    int32_t group_score;   /* CMOE_GROUP_ */
    float scale;           /* of the weights, after renormalising; default 1 */
    float jitter;          /* sparsemixer's eps; default 0.01 */
    int64_t shared;        /* n appended slots with ids E..E+n-1; default 0 */
    int32_t validate;      /* 1: check the outputs, name the first bad slot */
    int32_t groups_biased; /* groups scored by the selection scores (1, default) or plain ones */
} cmoe_route_options;

CMOE_API void cmoe_route_options_default(cmoe_route_options *o, size_t size);
CMOE_API const char *cmoe_route_scoring_name(int32_t scoring); /* "softmax" ...; NULL if unknown */
CMOE_API int32_t cmoe_route_scoring_parse(const char *name);   /* -1 if unknown */

/* What a route may be given besides the logits; a view of zeros is "not given". */
typedef struct cmoe_route_inputs {
    size_t size;
    cmoe_view bias;             /* [E], added for the choice only */
    cmoe_view hash_table;       /* int32 or int64 [vocab, K]: ids = hash_table[input_ids] */
    cmoe_view input_ids;        /* int32 or int64 [T] */
    cmoe_view given_ids;        /* int32 or int64 [T, K]: replayed, weights from the scores */
    cmoe_view given_weights;    /* with given_ids: taken as they are; logits may be absent */
    cmoe_view per_expert_scale; /* [E], after everything else */
    cmoe_view shared_gate;      /* [T, shared] or [T, 1]: appended weight = sigmoid(gate), else 1 */
} cmoe_route_inputs;

CMOE_API void cmoe_route_inputs_default(cmoe_route_inputs *in, size_t size);

CMOE_API cmoe_status cmoe_route_bytes(const cmoe_route_options *o, int64_t tokens, int64_t experts,
                                      int64_t *host, int64_t *device, cmoe_error *err);

/* logits f32, f16, bf16 or f64 [T, E] (any strides) -> weights float32 [T, K + shared], ids int32
 * [T, K + shared].  `in` may be NULL.  Given and hash-table ids must lie in 0..E-1, or be -1
 * (weight 0). */
CMOE_API cmoe_status cmoe_route(cmoe_stream *s, const cmoe_route_options *o, cmoe_view logits,
                                const cmoe_route_inputs *in, cmoe_view_mut weights,
                                cmoe_view_mut ids, cmoe_arena *scratch, cmoe_error *err);

/* logits[t, e] = sum over h of hidden[t, h] * gate[e, h], (+ gate_bias[e]) (+ scale * sum over r of
 * (hidden . lora_a[r]) * lora_b[e, r]), float32 throughout whatever the formats are.  hidden [T,
 * H], gate [E, H], lora_a [R, H], lora_b [E, R]; the last three may be "not given".  The gate is
 * packed on the way; a layer packs it once. */
CMOE_API cmoe_status cmoe_route_logits_bytes(cmoe_ctx *ctx, int64_t tokens, int64_t hidden,
                                             int64_t experts, int64_t lora_rank, int64_t *host,
                                             int64_t *device, cmoe_error *err);
CMOE_API cmoe_status cmoe_route_logits(cmoe_stream *s, cmoe_view hidden, cmoe_view gate,
                                       cmoe_view gate_bias, cmoe_view lora_a, cmoe_view lora_b,
                                       float lora_scale, cmoe_view_mut logits, cmoe_arena *scratch,
                                       cmoe_error *err);

/* The load-balancing loss of a batch: E * sum over e of f_e * p_e, f_e = share of the T*K slots
 * that went to e, p_e = mean softmax probability of e; 1 when perfectly balanced (summed over K:
 * divide or multiply by K for other conventions).  `mask` int32 [T] or not given: 0 marks padding
 * tokens. */
CMOE_API cmoe_status cmoe_route_balance_loss(cmoe_stream *s, cmoe_view logits, cmoe_view ids,
                                             cmoe_view mask, double *loss, cmoe_error *err);

/* counts int64 [E]: how many slots of ids [T, K] go to each expert; ids outside are not counted. */
CMOE_API cmoe_status cmoe_route_load(cmoe_stream *s, cmoe_view ids, cmoe_view_mut counts,
                                     cmoe_error *err);

/* ---- training ---------------------------------------------------------------------------------- */

/* dlogits [T, E] from dweights [T, K] (what route gave: ids and weights of the same call), through
 * renormalisation, scale, per-expert scale and scoring.  The choice itself has no gradient, nor has
 * the bias.  With given weights, and for tokens whose logits were sanitised, there is none: zeros.
 * route.shared must be 0.  dlogits float32, written whole. */
CMOE_API cmoe_status cmoe_route_backward(cmoe_stream *s, const cmoe_route_options *o,
                                         cmoe_view logits, const cmoe_route_inputs *in,
                                         cmoe_view ids, cmoe_view weights, cmoe_view dweights,
                                         cmoe_view_mut dlogits, cmoe_error *err);

/* Auxiliary losses, unit by unit, so that they do not depend on how units are spread: *loss is their
 * sum over the units of this call, and scale * d(that sum) is added to dlogits float32 [T, E] (or
 * dlogits is not given).  Masked tokens (mask int32 [T], 0) do not count; a unit without tokens adds
 * nothing. */
/* As cmoe_route_balance_loss; shares f_e are constants. */
CMOE_API cmoe_status cmoe_route_balance_backward(cmoe_stream *s, cmoe_view logits, cmoe_view ids,
                                                 cmoe_view mask, const cmoe_units *units,
                                                 float scale, double *loss, cmoe_view_mut dlogits,
                                                 cmoe_error *err);
/* Mean over tokens of logsumexp(logits)^2. */
CMOE_API cmoe_status cmoe_route_z_loss_backward(cmoe_stream *s, cmoe_view logits, cmoe_view mask,
                                                const cmoe_units *units, float scale, double *loss,
                                                cmoe_view_mut dlogits, cmoe_error *err);

/* The correction bias follows the load and not a gradient: bias[e] += rate * sign(mean(counts) -
 * counts[e]).  bias float32 [E], counts int64 [E]. */
CMOE_API cmoe_status cmoe_route_bias_update(cmoe_stream *s, cmoe_view counts, float rate,
                                            cmoe_view_mut bias, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
