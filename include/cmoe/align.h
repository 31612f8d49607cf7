/* SPDX-License-Identifier: MIT
 *
 * cmoe/align.h - order tokens by expert, and put expert rows back in token order.
 *
 * T tokens, K slots per token (top-k), E experts, H hidden size, R rows after grouping (kept slots
 * plus padding; the host may know only the capacity, first[E] is the count).  A slot is (token, k),
 * its flat number t*K + k.  Rows stand by expert, then token, then k, always: never by arrival. Ids
 * outside [first_expert, first_expert + E) are another rank's, or -1 for nobody's, and are skipped.
 */
#ifndef CMOE_ALIGN_H
#define CMOE_ALIGN_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which row holds which slot.  Plain data carved from the caller's arena: it lives exactly as long
 * as the arena does, and there is nothing to free. */
typedef struct cmoe_groups {
    int64_t tokens, topk, capacity; /* T, K, at most so many rows; all the host knows */
    const int64_t *first;           /* [E+1]  first row of each expert; first[E] == R */
    const int32_t *row_of; /* [T, K] row of slot k of token t; -1 if the slot was dropped */
    const int32_t *slots;  /* [capacity] flat slot t*K + k of each row; -1 in padding */
    int64_t experts;       /* E */
} cmoe_groups;

typedef struct cmoe_align_options {
    size_t size;
    int64_t experts;      /* E of this rank */
    int64_t first_expert; /* global id of its first one; default 0 */
    int64_t block;        /* each expert's rows are padded to a multiple of this; default 1 */
    int32_t validate; /* 1: an id outside 0..total_experts-1 and not -1 is an error, not a skip */
    int32_t reserved;
    int64_t total_experts; /* for validate; 0: first_expert + experts */
} cmoe_align_options;

CMOE_API void cmoe_align_options_default(cmoe_align_options *o, size_t size);

/* Arena bytes for the groups of T x K slots. */
CMOE_API cmoe_status cmoe_align_bytes(const cmoe_align_options *o, int64_t tokens, int64_t topk,
                                      int64_t *host, int64_t *device, cmoe_error *err);

/* ids int32 or int64 [T, K].  The groups are carved from `arena` and stay in it.  T*K and the
 * padded rows must fit in int32. */
CMOE_API cmoe_status cmoe_align(cmoe_stream *s, const cmoe_align_options *o, cmoe_view ids,
                                cmoe_groups *out, cmoe_arena *arena, cmoe_error *err);

/* ---- the same grouping in the table forms that other systems use ----------------------------- */

/* one_hot int32 [E, T*K]: 1 where the flat slot goes to the expert, else 0. */
CMOE_API cmoe_status cmoe_align_one_hot(cmoe_stream *s, cmoe_view ids, cmoe_view_mut one_hot,
                                        cmoe_error *err);

/* In place: each row of `info` (one-hot, int32 [E, T*K]) begins with the ascending numbers of its
 * set columns and each row of `info_weights` (float32, same shape) with their weights; what stood
 * behind them stays.  counts int32 [E].  weights float32 [T, K]. */
CMOE_API cmoe_status cmoe_align_compact(cmoe_stream *s, cmoe_view_mut info, cmoe_view weights,
                                        cmoe_view_mut info_weights, cmoe_view_mut counts,
                                        cmoe_error *err);

/* index int32 [E, T*K] and index_weights float32 [E, T*K]: the ascending flat slots of each expert
 * and their weights; entries behind counts[e] are not written.  counts int32 [E]. */
CMOE_API cmoe_status cmoe_align_tables(cmoe_stream *s, cmoe_view ids, cmoe_view weights,
                                       cmoe_view_mut index, cmoe_view_mut index_weights,
                                       cmoe_view_mut counts, cmoe_error *err);

/* blocks int32 [N, 3], N >= ceil((slots + E*(block-1)) / block): (expert, block inside the expert,
 * first row of the block) for counts int32 [E]; rows behind the last block are (-1, -1, -1). */
CMOE_API cmoe_status cmoe_align_blocks(cmoe_stream *s, cmoe_view counts, int64_t slots,
                                       int64_t block, cmoe_view_mut blocks, cmoe_error *err);

/* sorted int32 [>= S]: flat slots by expert, each expert padded with -1 to a multiple of `block`,
 * -1 to the end; expert_of int32 [>= S / block]: expert of each block, -1 behind the last; S,
 * written to *padded, is T*K + E*block, known before. */
CMOE_API cmoe_status cmoe_align_padded(cmoe_stream *s, cmoe_view ids, int64_t experts,
                                       int64_t first_expert, int64_t block, cmoe_view_mut sorted,
                                       cmoe_view_mut expert_of, int64_t *padded, cmoe_error *err);

/* By expert, then flat slot: sorted_experts and sorted_slots, of the type of ids [T*K]; ends int64
 * [E] = cumulated counts.  Every id must lie in 0..E-1. */
CMOE_API cmoe_status cmoe_align_sort(cmoe_stream *s, cmoe_view ids, cmoe_view_mut sorted_experts,
                                     cmoe_view_mut sorted_slots, cmoe_view_mut ends,
                                     cmoe_error *err);

/* ---- combine --------------------------------------------------------------------------------- */

typedef struct cmoe_combine_options {
    size_t size;
    float scale;          /* of the routed sum, before `shared` is added; default 1 */
    int32_t shared_first; /* 1: start from the shared row instead of adding it last; each weight is
                             multiplied by `scale` then, so that shared is not */
} cmoe_combine_options;

CMOE_API void cmoe_combine_options_default(cmoe_combine_options *o, size_t size);

/* out[t, h] = sum over k of weights[t, k] * rows[row_of[t, k], h], (+ shared[t, h])
 *
 * Slots are added in k order with one fused multiply-add each, in float32, so the result is the
 * same at any thread count.  Dropped slots add nothing; T == 0 succeeds and K == 0 writes zeros (or
 * shared). rows, shared and out: f32, f16, bf16 or f64; weights any of these, or not given (then
 * 1).  `out` must not overlap an input.  Safe to call from many threads, each with its own stream;
 * allocates nothing; `scratch` may be NULL. */
CMOE_API cmoe_status cmoe_combine(cmoe_stream *s, const cmoe_combine_options *o, cmoe_view rows,
                                  cmoe_view weights, const cmoe_groups *groups, cmoe_view shared,
                                  cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err);

/* drows[r, h] = scale * weights[t, k] * dout[t, h]    for row r of slot (t, k)
 * dweights[t, k] = scale * sum over h of rows[r, h] * dout[t, h], 0 for dropped slots
 *
 * Either output may be "not given"; rows are only read for dweights.  weights not given: 1.  float32;
 * padding rows of drows are not written.  The shared row's gradient is dout itself. */
CMOE_API cmoe_status cmoe_combine_backward(cmoe_stream *s, const cmoe_combine_options *o,
                                           cmoe_view rows, cmoe_view weights,
                                           const cmoe_groups *groups, cmoe_view dout,
                                           cmoe_view_mut drows, cmoe_view_mut dweights,
                                           cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
