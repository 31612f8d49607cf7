/* SPDX-License-Identifier: MIT
 *
 * cmoe/ops.h - the small operations around a layer.
 *
 * N rows of H values.  Tensors are f32, f16, bf16 or f64 with any strides; arithmetic is float32.
 * Rows are independent: a row's result does not depend on the others or on the number of threads.
 * Outputs must not overlap inputs, except that `out` may be exactly `x` (same address, dtype and
 * strides).
 */
#ifndef CMOE_OPS_H
#define CMOE_OPS_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CMOE_NORM_CAST_THEN_WEIGHT = 0, /* y = cast(x * rsqrt) * weight, the Llama and Qwen order */
    CMOE_NORM_WEIGHT_THEN_CAST      /* y = cast(x * rsqrt * weight), the gpt_oss order */
};

typedef struct cmoe_rms_norm_options {
    size_t size;
    float eps;           /* default 1e-6 */
    int32_t order;       /* CMOE_NORM_ */
    int32_t round_sum;   /* 1: normalise the sum x + residual rounded to the type of residual_out
                            (not given: of x); 0 (default): the exact one */
    float weight_offset; /* 1: (1 + weight); default 0 */
} cmoe_rms_norm_options;

CMOE_API void cmoe_rms_norm_options_default(cmoe_rms_norm_options *o, size_t size);

/* s = x + residual (residual not given: s = x); residual_out = cast(s), if given; out = norm(s) *
 * weight. x, residual, out [N, H]; weight [H] or not given.  residual_out may be exactly x or
 * residual.  Heads are rows too: all may be [N, heads, H] instead, with the weight still [H]. */
CMOE_API cmoe_status cmoe_rms_norm(cmoe_stream *s, const cmoe_rms_norm_options *o, cmoe_view x,
                                   cmoe_view residual, cmoe_view weight, cmoe_view_mut out,
                                   cmoe_view_mut residual_out, cmoe_error *err);

/* y = (x - mean) / sqrt(variance + eps) * weight + bias, s = x + residual as above.  weight, bias
 * [H], either or both not given. */
CMOE_API cmoe_status cmoe_layer_norm(cmoe_stream *s, float eps, cmoe_view x, cmoe_view residual,
                                     cmoe_view weight, cmoe_view bias, cmoe_view_mut out,
                                     cmoe_view_mut residual_out, cmoe_error *err);

/* out = x * sigmoid(gate); gate [N, 1] or [N, H].  round_gate 1: the sigmoid is rounded to bf16
 * first. */
CMOE_API cmoe_status cmoe_sigmoid_mul(cmoe_stream *s, cmoe_view x, cmoe_view gate,
                                      int32_t round_gate, cmoe_view_mut out, cmoe_error *err);

/* out = x + shared * sigmoid(gate); gate [N, 1] or [N, H], or not given: out = x + shared. */
CMOE_API cmoe_status cmoe_add_shared_expert(cmoe_stream *s, cmoe_view x, cmoe_view shared,
                                            cmoe_view gate, int32_t round_gate, cmoe_view_mut out,
                                            cmoe_error *err);

/* out = silu(gate) * up.  gate_up [N, 2I], gate first, or interleaved (gate, up, gate, ...); out
 * [N, I]. round_act 1: the SiLU is rounded to the type of out before the product. */
CMOE_API cmoe_status cmoe_silu_mul(cmoe_stream *s, cmoe_view gate_up, int32_t interleaved,
                                   int32_t round_act, cmoe_view_mut out, cmoe_error *err);

/* Rule B5, one scale a row: a = max(max |x|, 1e-4), q = round_half_even(x * (127 / a)), scale =
 * 1 / (127 / a).  x [N, H] -> q int8 [N, H], scale float32 [N].  A row with NaN gets scale NaN, q
 * 0; one with an infinity scale infinity, q 0. */
CMOE_API cmoe_status cmoe_quantize_rows(cmoe_stream *s, cmoe_view x, cmoe_view_mut q,
                                        cmoe_view_mut scale, cmoe_error *err);

/* Activation and fp8 quantisation of grouped rows (semantics C6): x [E, M, 2I] -> out f8e4m3 [E, M,
 * I], scale float32 [E, M, I / group] = max(max |h|, 1e-10) / 448 of each group; rows >= counts[e]
 * are left untouched.  counts int32 or int64 [E]. */
CMOE_API cmoe_status cmoe_silu_mul_quantize_masked(cmoe_stream *s, cmoe_view x, cmoe_view counts,
                                                   int64_t group, cmoe_view_mut out,
                                                   cmoe_view_mut scale, cmoe_error *err);

/* ---- rotary positions -------------------------------------------------------------------------- */

enum {
    CMOE_ROPE_DEFAULT = 0,
    CMOE_ROPE_LINEAR,  /* frequencies / factor */
    CMOE_ROPE_DYNAMIC, /* theta grows with `length` beyond `original`; or with alpha, once for all */
    CMOE_ROPE_YARN,    /* low frequencies / factor, high ones as they are, a ramp between */
    CMOE_ROPE_LLAMA3,  /* the same idea by wavelength */
    CMOE_ROPE_LONGROPE,    /* a factor for each frequency, one set up to `original`, one beyond */
    CMOE_ROPE_PROPORTIONAL /* `dim` turns only in its first `partial` part; exponents use dim */
};
CMOE_API const char *cmoe_rope_kind_name(int32_t kind);  /* "yarn"; NULL if unknown */
CMOE_API int32_t cmoe_rope_kind_parse(const char *name); /* -1 if unknown */

typedef struct cmoe_rope_options {
    size_t size;
    int32_t kind;                  /* CMOE_ROPE_ */
    int32_t truncate;              /* yarn: the ramp's ends are whole numbers; default 1 */
    int64_t dim;                   /* r: rotated dimensions of a head, even */
    double theta;                  /* default 10000 */
    double factor;                 /* default 1 */
    double alpha;                  /* dynamic: > 0: theta * alpha^(r / (r - 2)) at every length */
    double beta_fast, beta_slow;   /* yarn; default 32, 1 */
    double attention_factor;       /* yarn, longrope: amplitude; 0: by its rule */
    double mscale, mscale_all_dim; /* yarn; 0: not given */
    double low_frequency, high_frequency; /* llama3's *_freq_factor; default 1, 4 */
    double partial;                       /* proportional: default 1 */
    int64_t original;                     /* positions it was trained on */
    int64_t length; /* dynamic, longrope: positions there will be; 0: original */
    const float *short_factor, *long_factor; /* longrope: [r / 2] each */
    double short_amplitude, long_amplitude;  /* longrope: 0: by its rule */
} cmoe_rope_options;

CMOE_API void cmoe_rope_options_default(cmoe_rope_options *o, size_t size);

/* frequencies [r / 2]: the angle of position p is p * frequencies[j]; cos and sin are multiplied by
 * the amplitude. */
CMOE_API cmoe_status cmoe_rope_frequencies(const cmoe_rope_options *o, float *frequencies,
                                           float *amplitude, cmoe_error *err);

/* positions int32 or int64 [T], frequencies float32 [r / 2] -> cos, sin float32 [T, r / 2].  The
 * angle is rounded to float32; its sine and cosine are off by at most 1 ulp at any size.  Positions
 * are 0 to 2^24, which float32 holds exactly; frequencies -2^24 to 2^24. */
CMOE_API cmoe_status cmoe_rope_table(cmoe_stream *s, cmoe_view positions, cmoe_view frequencies,
                                     float amplitude, cmoe_view_mut cos, cmoe_view_mut sin,
                                     cmoe_error *err);

typedef struct cmoe_rope_rotate_options {
    size_t size;
    int32_t interleaved; /* pairs (2j, 2j + 1); 0 (default): (j, j + r / 2) */
    int32_t inverse;     /* turns backwards */
    int64_t offset;      /* first rotated dimension of a head; default 0 */
} cmoe_rope_rotate_options;

CMOE_API void cmoe_rope_rotate_options_default(cmoe_rope_rotate_options *o, size_t size);

/* x [T, heads, d] -> out, dimensions [offset, offset + r) of every head turned by its token's angle,
 * the others copied.  cos, sin float32 [T, r / 2].  out may be exactly x. */
CMOE_API cmoe_status cmoe_rope_rotate(cmoe_stream *s, const cmoe_rope_rotate_options *o,
                                      cmoe_view x, cmoe_view cos, cmoe_view sin, cmoe_view_mut out,
                                      cmoe_error *err);

/* ---- around the layers of a model -------------------------------------------------------------- */

/* out[t] = table[ids[t]] * scale.  ids int32 or int64 [T], table [vocab, H], out [T, H]; any float
 * types.  An id outside 0..vocab-1 is an error, and nothing is written. */
CMOE_API cmoe_status cmoe_embedding(cmoe_stream *s, cmoe_view ids, cmoe_view table, float scale,
                                    cmoe_view_mut out, cmoe_error *err);

/* out = x + y * scale, or y * scale when x is not given; one fused multiply-add.  out may be exactly x,
 * or exactly y when x is not given. */
CMOE_API cmoe_status cmoe_scaled_add(cmoe_stream *s, cmoe_view x, cmoe_view y, float scale,
                                     cmoe_view_mut out, cmoe_error *err);

/* out = min(max(x, -limit), limit); NaN stays. */
CMOE_API cmoe_status cmoe_clip(cmoe_stream *s, cmoe_view x, float limit, cmoe_view_mut out,
                               cmoe_error *err);

/* ---- gated delta net: what its decode kernel is given ------------------------------------------ */

/* One token of B sequences.  Hk key heads of Dk, Hv value heads of Dv, C = 2*Hk*Dk + Hv*Dv, width W
 * >= 2. */
typedef struct cmoe_gdn_pack_options {
    size_t size;
    int64_t key_heads, key_dim, value_heads, value_dim;
    int32_t silu; /* 1 (default): SiLU behind the convolution */
    /* 0 (default): qkvz is q | k | v | z and ba is b | a; 1: for each key head its q, k, v, z, and
     * its b, a (Qwen3-Next) */
    int32_t grouped;
} cmoe_gdn_pack_options;

CMOE_API void cmoe_gdn_pack_options_default(cmoe_gdn_pack_options *o, size_t size);

typedef struct cmoe_gdn_pack_out {
    size_t size;
    cmoe_view_mut q, k; /* [B, Hk, Dk] */
    cmoe_view_mut v, z; /* [B, Hv, Dv] */
    cmoe_view_mut b, a; /* [B, Hv] */
} cmoe_gdn_pack_out;

CMOE_API void cmoe_gdn_pack_out_default(cmoe_gdn_pack_out *out, size_t size);

/* Splits qkvz [B, C + Hv*Dv] and ba [B, 2*Hv]; then the causal convolution over q | k | v with one
 * channel a weight row:
 *
 *     y = sum over i < W-1 of state[i] * weight[i], + x * weight[W-1] (+ bias), then silu
 *
 * and the state of sequence row i, state[index[i]] float [n, C, >= W-1] (the first W-1 used), moves
 * left by one and takes x.  weight [C, W], bias [C] or not given, index int32 or int64 [B] of
 * different rows, -1: no state is read or written and its outputs are zeros. */
CMOE_API cmoe_status cmoe_gdn_pack(cmoe_stream *s, const cmoe_gdn_pack_options *o, cmoe_view qkvz,
                                   cmoe_view ba, cmoe_view weight, cmoe_view bias,
                                   cmoe_view_mut state, cmoe_view index,
                                   const cmoe_gdn_pack_out *out, cmoe_error *err);

/* ---- backward ----------------------------------------------------------------------------------
 *
 * float32 tensors, last dimension contiguous, any row stride.  Gradients are written, not added to
 * what is there.  Gradients of weights are sums over rows, in the order that cmoe_units says. */

/* x is what was normalised (the sum, where there was a residual).  dx = residual + gradient; residual
 * may be exactly dx, or not given.  dx may be exactly dout.  Heads are rows too: x, dout, dx may be
 * [N, heads, H], then a token's heads follow each other in the sum.  weight, dweight [H] or not
 * given; scratch may be NULL without dweight. */
CMOE_API cmoe_status cmoe_rms_norm_backward_bytes(cmoe_ctx *ctx, int64_t rows, int64_t hidden,
                                                  int64_t *host, int64_t *device, cmoe_error *err);
CMOE_API cmoe_status cmoe_rms_norm_backward(cmoe_stream *s, const cmoe_rms_norm_options *o,
                                            cmoe_view x, cmoe_view weight, cmoe_view dout,
                                            cmoe_view residual, const cmoe_units *units,
                                            cmoe_view_mut dx, cmoe_view_mut dweight,
                                            cmoe_arena *scratch, cmoe_error *err);
CMOE_API cmoe_status cmoe_layer_norm_backward_bytes(cmoe_ctx *ctx, int64_t rows, int64_t hidden,
                                                    int64_t *host, int64_t *device,
                                                    cmoe_error *err);
CMOE_API cmoe_status cmoe_layer_norm_backward(cmoe_stream *s, float eps, cmoe_view x,
                                              cmoe_view weight, cmoe_view dout, cmoe_view residual,
                                              const cmoe_units *units, cmoe_view_mut dx,
                                              cmoe_view_mut dweight, cmoe_view_mut dbias,
                                              cmoe_arena *scratch, cmoe_error *err);

/* Of cmoe_sigmoid_mul (round_gate 0): dx = dout * sigmoid(gate), dgate = dout * x * sigmoid'(gate),
 * summed over H when gate is [N, 1].  Either may be not given; dx may be exactly dout. */
CMOE_API cmoe_status cmoe_sigmoid_mul_backward(cmoe_stream *s, cmoe_view x, cmoe_view gate,
                                               cmoe_view dout, cmoe_view_mut dx,
                                               cmoe_view_mut dgate, cmoe_error *err);
/* Of cmoe_silu_mul: dgate_up [N, 2I] from dout [N, I]; may be exactly gate_up. */
CMOE_API cmoe_status cmoe_silu_mul_backward(cmoe_stream *s, cmoe_view gate_up, int32_t interleaved,
                                            cmoe_view dout, cmoe_view_mut dgate_up,
                                            cmoe_error *err);
/* Of cmoe_clip: dx = dout where |x| <= limit, else 0; may be exactly dout. */
CMOE_API cmoe_status cmoe_clip_backward(cmoe_stream *s, cmoe_view x, float limit, cmoe_view dout,
                                        cmoe_view_mut dx, cmoe_error *err);
/* Of rotary positions: cmoe_rope_rotate with `inverse`. */

/* Of cmoe_embedding: dtable [vocab, H] = scale * sum of dout [T, H] over the tokens of each id; rows of
 * ids that do not occur become 0. */
CMOE_API cmoe_status cmoe_embedding_backward_bytes(cmoe_ctx *ctx, int64_t tokens, int64_t vocab,
                                                   int64_t *host, int64_t *device, cmoe_error *err);
CMOE_API cmoe_status cmoe_embedding_backward(cmoe_stream *s, cmoe_view ids, cmoe_view dout,
                                             float scale, const cmoe_units *units,
                                             cmoe_view_mut dtable, cmoe_arena *scratch,
                                             cmoe_error *err);

/* loss[t] = logsumexp(logits[t]) - logits[t, targets[t]]          (float32 [T] or not given)
 * dlogits[t] = scale[t] * (softmax(logits[t]) - onehot(targets[t]))   (may be exactly logits, or not
 * given, and then nor need scale be)
 *
 * targets int32 or int64 [T]; a negative one is ignored: loss 0, gradient 0; one >= vocab is an error.
 * scale float32 [T], usually 1 / number of targets.  A token whose logits are not finite gives a loss
 * that is not. */
CMOE_API cmoe_status cmoe_cross_entropy(cmoe_stream *s, cmoe_view logits, cmoe_view targets,
                                        cmoe_view scale, cmoe_view_mut loss, cmoe_view_mut dlogits,
                                        cmoe_error *err);

/* ---- steps of an optimizer ------------------------------------------------------------------------
 *
 * value, gradient and state float32, contiguous, any shape; element by element, equal bits on every
 * instruction set.  Every gradient is multiplied by `scale` first (clipping). */

/* AdamW as in PyTorch: value -= lr * decay * value, then m, v, and value -= lr / (1 - beta1^step) * m /
 * (sqrt(v) / sqrt(1 - beta2^step) + eps).  step counts from 1. */
typedef struct cmoe_adamw_options {
    size_t size;
    double lr, beta1, beta2, eps, decay; /* default 1e-3, 0.9, 0.999, 1e-8, 0 */
    double scale;                        /* default 1 */
    int64_t step;
} cmoe_adamw_options;

CMOE_API void cmoe_adamw_options_default(cmoe_adamw_options *o, size_t size);
CMOE_API cmoe_status cmoe_adamw(cmoe_stream *s, const cmoe_adamw_options *o, cmoe_view gradient,
                                cmoe_view_mut value, cmoe_view_mut m, cmoe_view_mut v,
                                cmoe_error *err);

/* value -= lr * decay * value; m = momentum * m + gradient (m = gradient at step 1); value -= lr * m.
 * Without momentum m is not given. */
typedef struct cmoe_sgd_options {
    size_t size;
    double lr, momentum, decay, scale; /* default 1e-3, 0, 0, 1 */
    int64_t step;
} cmoe_sgd_options;

CMOE_API void cmoe_sgd_options_default(cmoe_sgd_options *o, size_t size);
CMOE_API cmoe_status cmoe_sgd(cmoe_stream *s, const cmoe_sgd_options *o, cmoe_view gradient,
                              cmoe_view_mut value, cmoe_view_mut m, cmoe_error *err);

/* Sum of squares in float64: blocks of 4096 elements, each one chain of 16 lanes, then block by block:
 * the same for any number of threads.  Contiguous float32 of any shape. */
CMOE_API cmoe_status cmoe_sum_squares(cmoe_stream *s, cmoe_view x, double *sum, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
