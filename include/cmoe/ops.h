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
 * residual. */
CMOE_API cmoe_status cmoe_rms_norm(cmoe_stream *s, const cmoe_rms_norm_options *o, cmoe_view x,
                                   cmoe_view residual, cmoe_view weight, cmoe_view_mut out,
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

#ifdef __cplusplus
}
#endif
#endif
