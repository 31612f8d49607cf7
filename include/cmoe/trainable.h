/* SPDX-License-Identifier: MIT
 *
 * cmoe/trainable.h - weights that change: E matrices [N, K], multiplied forwards and backwards, with
 * low-rank terms.
 *
 *     forward   y  = x (W + s B A)^T + bias          x [., K] -> y [., N]
 *     dx        dx = dy (W + s B A)                  dy [., N] -> dx [., K]
 *     dw        dW = dy^T x,  dB = s dy^T (x A^T),  dA = s (dy B)^T x,  dbias = sum of dy
 *
 * W is kept packed both ways and filled again after every step of an optimizer.  The low-rank term
 * lies behind the weights, [W | s B] times the row [x | x A^T], and [W ; A] times [dy | s dy B] on the
 * way back: one pass over the rows, and a term of zeros gives the bits of the base.  y has the bits of
 * cmoe_grouped_matmul on the same weights and format.
 *
 * N may consist of parts, which are parameters of their own: q, k and v; gate and up.
 */
#ifndef CMOE_TRAINABLE_H
#define CMOE_TRAINABLE_H

#include "cmoe/align.h"
#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmoe_trainable_options {
    size_t size;
    int32_t format; /* CMOE_F32 (default), CMOE_BF16: rows and weights are rounded to it, sums are
                       float32 */
    int32_t borrow; /* 1: nothing is packed; the views given to fill stay where they are, and panels
                       are made on the way: for frozen weights of any format, int8 with scales too */
    int64_t rank;   /* of all low-rank terms together; default 0 */
} cmoe_trainable_options;

CMOE_API void cmoe_trainable_options_default(cmoe_trainable_options *o, size_t size);

/* Shared by threads, but for fill, which belongs to one and lets nobody else in.  Freed before its
 * context.  Without contents until it is filled. */
typedef struct cmoe_trainable cmoe_trainable;

CMOE_API cmoe_status cmoe_trainable_create(cmoe_trainable **out, cmoe_ctx *ctx,
                                           const cmoe_trainable_options *o, int64_t experts,
                                           int64_t outputs, int64_t inputs, cmoe_error *err);
CMOE_API void cmoe_trainable_free(cmoe_trainable *t);

/* Rows [at, at + n) of N. */
typedef struct cmoe_part {
    int64_t at;
    cmoe_view w;     /* [E, n, K]: f32, f16, bf16, f64, or i8 with scales; any strides */
    cmoe_view scale; /* i8: float32 [E, n] */
    cmoe_view bias;  /* [E, n] or not given */
    cmoe_view a,
        b; /* low-rank term: [E, r, K], [E, n, r], or not given; ranks of the parts stand in
                        the order of the parts and add up to the object's */
    float lora_scale; /* s; 0 is honoured */
    int32_t reserved;
} cmoe_part;

/* Parts stand in order and fill N.  Allocates nothing, packs on all threads. */
CMOE_API cmoe_status cmoe_trainable_fill(cmoe_stream *s, cmoe_trainable *t, const cmoe_part *parts,
                                         int64_t count, cmoe_error *err);

/* Bytes of scratch that any of the three takes, for so many tokens and grouped rows (without groups:
 * rows = tokens). */
CMOE_API cmoe_status cmoe_trainable_bytes(const cmoe_trainable *t, int64_t tokens, int64_t rows,
                                          int64_t *host, int64_t *device, cmoe_error *err);

/* groups NULL: E is 1 and every token is a row.  x_grouped 1: row r of x is group row r; 0: x[token of
 * the row].  out rows are grouped.  Rows are float32, last dimension contiguous. */
CMOE_API cmoe_status cmoe_trainable_forward(cmoe_stream *s, const cmoe_trainable *t, cmoe_view x,
                                            int32_t x_grouped, const cmoe_groups *groups,
                                            cmoe_view_mut out, cmoe_arena *scratch,
                                            cmoe_error *err);
CMOE_API cmoe_status cmoe_trainable_dx(cmoe_stream *s, const cmoe_trainable *t, cmoe_view dy,
                                       int32_t dy_grouped, const cmoe_groups *groups,
                                       cmoe_view_mut dx, cmoe_arena *scratch, cmoe_error *err);

/* Gradients of one part, float32, any strides; those that are not given are not computed. */
typedef struct cmoe_part_gradient {
    cmoe_view_mut w, bias, a, b; /* shaped as in cmoe_part */
} cmoe_part_gradient;

typedef struct cmoe_trainable_dw_options {
    size_t size;
    int32_t dy_grouped, x_grouped;
    int32_t accumulate; /* 1: sums continue from what is there; then units must be one */
    int32_t reserved;
} cmoe_trainable_dw_options;

CMOE_API void cmoe_trainable_dw_options_default(cmoe_trainable_dw_options *o, size_t size);

/* `gradients` has one entry for each part of the last fill, in the same order. */
CMOE_API cmoe_status cmoe_trainable_dw(cmoe_stream *s, const cmoe_trainable *t,
                                       const cmoe_trainable_dw_options *o, cmoe_view dy,
                                       cmoe_view x, const cmoe_groups *groups,
                                       const cmoe_units *units, const cmoe_part_gradient *gradients,
                                       cmoe_arena *scratch, cmoe_error *err);

typedef struct cmoe_trainable_info {
    size_t size;
    int64_t experts, outputs, inputs, rank, parts;
    int32_t format, borrow;
    int64_t packed_bytes;
} cmoe_trainable_info;

CMOE_API cmoe_status cmoe_trainable_describe(const cmoe_trainable *t, cmoe_trainable_info *info,
                                             cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
