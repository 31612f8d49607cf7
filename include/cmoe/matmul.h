/* SPDX-License-Identifier: MIT
 *
 * cmoe/matmul.h - rows times packed matrices: the one product that gate, experts and linears use.
 *
 * A cmoe_matrix holds E matrices [N, K] in the layout and format of one kernel of its context.
 * Every output element is one chain of multiply-adds over K in ascending order, so it does not
 * depend on how many rows there are, where they lie, or who computes them.
 */
#ifndef CMOE_MATMUL_H
#define CMOE_MATMUL_H

#include "cmoe/align.h"
#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What may be applied to the sums of gate and up before they leave the registers. */
enum {
    CMOE_ACT_SILU = 0,
    CMOE_ACT_GELU_TANH,
    CMOE_ACT_SWIGLU_OSS, /* g = min(g, limit), u = clamp(u, +-limit), g * sigmoid(alpha * g) * (u +
                            1) */
    CMOE_ACT_RELU2       /* max(g, 0)^2, for experts without a gate */
};
CMOE_API const char *cmoe_activation_name(int32_t activation); /* "silu"; NULL if unknown */
CMOE_API int32_t cmoe_activation_parse(const char *name);      /* -1 if unknown */

typedef struct cmoe_matrix_options {
    size_t size;
    int32_t format;     /* CMOE_F32, CMOE_BF16, CMOE_I8; 0 (default): 16 bits and f8 as bf16 */
    int32_t transposed; /* 1: w is [E, K, N] */
    int32_t borrow;     /* 1: no copy; w must stay where it is and is packed on the way */
    int32_t reserved;
    cmoe_view scale; /* i8 weights: float32 [E, N], one scale an output row */
} cmoe_matrix_options;

CMOE_API void cmoe_matrix_options_default(cmoe_matrix_options *o, size_t size);

/* Immutable, shared by threads; freed before its context. */
typedef struct cmoe_matrix cmoe_matrix;

/* w [E, N, K] in f32, f16, bf16, f64, f8e4m3 or i8 (with a scale), any strides; bias [E, N] or not
 * given. */
CMOE_API cmoe_status cmoe_matrix_create(cmoe_matrix **out, cmoe_ctx *ctx,
                                        const cmoe_matrix_options *o, cmoe_view w, cmoe_view bias,
                                        cmoe_error *err);
CMOE_API void cmoe_matrix_free(cmoe_matrix *m);
CMOE_API int64_t cmoe_matrix_weight_bytes(const cmoe_matrix *m); /* packed weights and scales */
CMOE_API const char *cmoe_matrix_variant(const cmoe_matrix *m);  /* name of its kernel: "avx512" */

typedef struct cmoe_grouped_matmul_options {
    size_t size;
    int32_t x_grouped;   /* 1: row r of x is group row r; 0 (default): x[token of the row] */
    int32_t out_grouped; /* 1: group row r goes to out row r; 0 (default): to out row = flat slot */
    int32_t mul_weights; /* 1: times weights[slot], after the bias */
    int32_t reserved;
} cmoe_grouped_matmul_options;

CMOE_API void cmoe_grouped_matmul_options_default(cmoe_grouped_matmul_options *o, size_t size);

CMOE_API cmoe_status cmoe_grouped_matmul_bytes(const cmoe_matrix *m, int64_t rows, int64_t *host,
                                               int64_t *device, cmoe_error *err);

/* out row = x row . w[expert of the row]^T (+ bias) (* weight).  x [T, K] or, grouped, [R, K];
 * weights [T, topk] or not given; out [T*topk, N] or, grouped, [>= R, N].  Rows of dropped slots
 * and padding are not written. */
CMOE_API cmoe_status cmoe_grouped_matmul(cmoe_stream *s, const cmoe_grouped_matmul_options *o,
                                         cmoe_view x, const cmoe_matrix *w, cmoe_view weights,
                                         const cmoe_groups *groups, cmoe_view_mut out,
                                         cmoe_arena *scratch, cmoe_error *err);

/* out [T, N] = x [T, K] . w^T (+ bias) for a matrix object that holds one matrix. */
CMOE_API cmoe_status cmoe_linear_bytes(const cmoe_matrix *m, int64_t tokens, int64_t *host,
                                       int64_t *device, cmoe_error *err);
CMOE_API cmoe_status cmoe_linear(cmoe_stream *s, cmoe_view x, const cmoe_matrix *w,
                                 cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err);

/* ---- the other forms of grouped products, for training -------------------------------------------- */

/* out row r = coefficient[slot] * x[token of row r] (or x[slot], with per_slot 1): rows stand by expert
 * afterwards.  x [T, K] ([T*topk, K]), coefficients [T, topk] or not given: 1.  Padding is not
 * written. */
CMOE_API cmoe_status cmoe_group_rows(cmoe_stream *s, cmoe_view x, int32_t per_slot,
                                     cmoe_view coefficients, const cmoe_groups *groups,
                                     cmoe_view_mut out, cmoe_error *err);

typedef struct cmoe_grouped_outer_options {
    size_t size;
    int32_t a_grouped, b_grouped; /* 1: row r of a (b) is group row r; 0 (default): a[token] */
    int32_t accumulate; /* 1: the sum continues from what is in out; then units must be one */
    float scale;        /* default 1: of every product, applied to a's rows */
} cmoe_grouped_outer_options;

CMOE_API void cmoe_grouped_outer_options_default(cmoe_grouped_outer_options *o, size_t size);

/* out[e, n, k] = sum over rows r of expert e of scale * a[r, n] * b[r, k]: the gradient of weights [E,
 * N, K] whose outputs have the gradient a and whose inputs were b.  bias [E, N] = sum of scale * a[r,
 * n].  Rows are added in ascending order inside a unit of tokens, one fused multiply-add each, units as
 * a balanced tree; an expert without rows gets zeros.  out and bias float32, each may be not given;
 * groups NULL: one expert that has all rows. */
CMOE_API cmoe_status cmoe_grouped_outer_bytes(cmoe_ctx *ctx, int64_t experts, int64_t rows,
                                              int64_t n, int64_t k, int64_t *host, int64_t *device,
                                              cmoe_error *err);
CMOE_API cmoe_status cmoe_grouped_outer(cmoe_stream *s, const cmoe_grouped_outer_options *o,
                                        cmoe_view a, cmoe_view b, const cmoe_groups *groups,
                                        const cmoe_units *units, cmoe_view_mut out,
                                        cmoe_view_mut bias, cmoe_arena *scratch, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
