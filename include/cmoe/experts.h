/* SPDX-License-Identifier: MIT
 *
 * cmoe/experts.h - the grouped gated MLP: for every row of an expert, down(act(gate . x) * up . x).
 *
 * Weights are packed once at create, in a layout in which one row and many rows walk the same tree
 * of additions; a row's result depends on nothing but the row, the weights and the chosen kernel.
 */
#ifndef CMOE_EXPERTS_H
#define CMOE_EXPERTS_H

#include "cmoe/align.h"
#include "cmoe/base.h"
#include "cmoe/matmul.h" /* activations */
#include "cmoe/trainable.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CMOE_WEIGHT_COMBINE = 0, /* routing weights are applied when rows are added up, in float32 */
    CMOE_WEIGHT_ROW /* applied to the row before it is rounded to row_dtype (DeepSeek V4) */
};

typedef struct cmoe_experts_options {
    size_t size;
    int32_t format;        /* CMOE_F32, CMOE_BF16, CMOE_I8; 0: as w13, 16 bits and f8 as bf16 */
    int32_t row_dtype;     /* rows are rounded to this before combine: CMOE_F32 (0), CMOE_BF16 */
    int32_t activation;    /* CMOE_ACT_ */
    float swiglu_limit;    /* > 0: g = min(g, limit), u = clamp(u, +-limit) before the activation */
    float alpha;           /* of CMOE_ACT_SWIGLU_OSS; 0: 1.702 */
    int32_t ungated;       /* 1: w13 is [E, I, H], h = act(w1 . x); the next two do nothing */
    int32_t up_first;      /* 1: up rows stand before gate rows (or up, gate, ... interleaved) */
    int32_t interleaved;   /* 1: rows alternate gate, up */
    int32_t transposed;    /* 1: w13 [E, H, 2I], w2 [E, I, H] */
    int32_t borrow;        /* 1: the weights stay the caller's, nothing is copied; slower */
    int32_t round_gate_up; /* 1: gate and up are rounded to bf16 before the activation */
    int32_t round_act;     /* 1: act(gate) is rounded to bf16 before it meets up */
    int32_t weight_at;     /* CMOE_WEIGHT_ */
    int64_t first_expert;  /* global id of w13[0]; ids of other experts are skipped */
    int64_t chunk;         /* tokens at a time, which bounds the scratch; 0: 2048 */
    cmoe_view scale13;     /* with i8 weights: float32 [E, 2I], one scale an output row */
    cmoe_view scale2; /* float32 [E, H]; with borrow both stay the caller's, as the weights do */
} cmoe_experts_options;

CMOE_API void cmoe_experts_options_default(cmoe_experts_options *o, size_t size);

/* Opaque packed weights; immutable, shared by threads; freed before their context. */
typedef struct cmoe_experts cmoe_experts;

/* w13 [E, 2I, H], w2 [E, H, I]; bias13 [E, 2I], bias2 [E, H] or not given.  f32, f16, bf16, f64,
 * f8e4m3, or i8 with scales; any strides.  The format int8 (W8A8) quantises weights by rule B5, one
 * scale an output row, when they are not i8 already. */
CMOE_API cmoe_status cmoe_experts_create(cmoe_experts **out, cmoe_ctx *ctx,
                                         const cmoe_experts_options *o, cmoe_view w13, cmoe_view w2,
                                         cmoe_view bias13, cmoe_view bias2, cmoe_error *err);
CMOE_API void cmoe_experts_free(cmoe_experts *x);

typedef struct cmoe_experts_info {
    size_t size;
    int64_t experts, hidden, inter, first_expert;
    int32_t format, row_dtype;
    int64_t weight_bytes;        /* packed, of all experts */
    int64_t expert_weight_bytes; /* of one, as read by a token */
    const char *variant;         /* name of the kernel: "avx512_vnni" */
} cmoe_experts_info;

CMOE_API void cmoe_experts_info_default(cmoe_experts_info *info, size_t size);

CMOE_API cmoe_status cmoe_experts_describe(const cmoe_experts *x, cmoe_experts_info *info,
                                           cmoe_error *err);

/* Arena bytes of cmoe_experts_rows for `rows` grouped rows.  In every _bytes call `device` may be
 * NULL; it is 0 as long as the stream is the host's. */
CMOE_API cmoe_status cmoe_experts_rows_bytes(const cmoe_experts *x, int64_t tokens, int64_t rows,
                                             int64_t *host, int64_t *device, cmoe_error *err);
/* Grouped rows alone: rows[r] = mlp of expert of row r, for x [T, H] and groups over its slots
 * (with x_grouped 1: x [>= R, H], row r of x is row r).  weights [T, K] only with CMOE_WEIGHT_ROW.
 * rows [>= R, H] of any float type, values rounded to row_dtype first; padding is not written. */
CMOE_API cmoe_status cmoe_experts_rows(cmoe_stream *s, const cmoe_experts *experts, cmoe_view x,
                                       int32_t x_grouped, const cmoe_groups *groups,
                                       cmoe_view weights, cmoe_view_mut rows, cmoe_arena *scratch,
                                       cmoe_error *err);

/* All of it: align, rows, combine.  out[t] = sum over k of weights[t, k] * mlp(ids[t, k], x[t]), (+
 * shared). ids int32 or int64 [T, K]; ids outside this object's experts add nothing; an expert may
 * occur twice in a token.  T == 0 and K == 0 succeed. */
CMOE_API cmoe_status cmoe_experts_bytes(const cmoe_experts *x, int64_t tokens, int64_t topk,
                                        int64_t *host, int64_t *device, cmoe_error *err);
CMOE_API cmoe_status cmoe_experts_run(cmoe_stream *s, const cmoe_experts *experts, cmoe_view x,
                                      cmoe_view ids, cmoe_view weights, cmoe_view shared,
                                      cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err);

/* ---- training ------------------------------------------------------------------------------------
 *
 * The same MLP on weights that change.  Of the options activation, swiglu_limit, alpha, ungated,
 * first_expert, and interleaved and up_first, which say how the outputs of w13 stand, count; formats
 * are the weights'.  float32 tensors, last dimension contiguous. */
typedef struct cmoe_experts_weights {
    const cmoe_trainable *w13; /* [E, 2I, H], ungated [E, I, H] */
    const cmoe_trainable *w2;  /* [E, H, I] */
} cmoe_experts_weights;

/* `keep`: what stays in the arena of saved values; `host`: scratch of forward and of backward. */
CMOE_API cmoe_status cmoe_experts_train_bytes(const cmoe_experts_options *o,
                                              const cmoe_experts_weights *w, int64_t tokens,
                                              int64_t topk, int64_t *keep, int64_t *host,
                                              int64_t *device, cmoe_error *err);
/* out [T, H] as cmoe_experts_run, with the same bits in f32.  saved NULL: nothing is kept, and keep may
 * be NULL. */
CMOE_API cmoe_status cmoe_experts_train(cmoe_stream *s, const cmoe_experts_options *o,
                                        const cmoe_experts_weights *w, cmoe_view x, cmoe_view ids,
                                        cmoe_view weights, cmoe_view shared, cmoe_view_mut out,
                                        cmoe_saved **saved, cmoe_arena *keep, cmoe_arena *scratch,
                                        cmoe_error *err);

/* Each NULL or not given: not computed. */
typedef struct cmoe_experts_gradients {
    cmoe_view_mut dx;                   /* [T, H] */
    cmoe_view_mut dweights;             /* [T, K] */
    const cmoe_part_gradient *w13, *w2; /* one a part */
} cmoe_experts_gradients;

/* x and weights as forward was given, and the trainables as they were.  The gradient of `shared` is
 * dout. */
CMOE_API cmoe_status cmoe_experts_backward(cmoe_stream *s, const cmoe_saved *saved, cmoe_view x,
                                           cmoe_view weights, cmoe_view dout,
                                           const cmoe_units *units,
                                           const cmoe_experts_gradients *gradients,
                                           cmoe_arena *scratch, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
