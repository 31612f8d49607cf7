/* SPDX-License-Identifier: MIT
 *
 * cmoe/dispatch.h - tokens to the ranks that own their experts, and expert rows back.
 *
 * E experts stand on the ranks in contiguous slices.  Sending groups a rank's tokens by expert and
 * brings every row to the rank that owns it; there rows stand by expert, then source rank, token
 * and slot. Returning brings each expert row back to the slot it came from, so that combine adds in
 * slot order at the token's own rank and the number of ranks cannot be seen in the result.  With
 * one rank nothing moves: what is received is x itself.
 */
#ifndef CMOE_DISPATCH_H
#define CMOE_DISPATCH_H

#include "cmoe/align.h"
#include "cmoe/base.h"
#include "cmoe/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cmoe_dispatch_options {
    size_t size;
    int64_t experts; /* of all ranks together */
    int64_t hidden;  /* H */
    const int64_t
        *first; /* [ranks + 1] slice of each rank, first[ranks] == experts; NULL: even slices */
} cmoe_dispatch_options;

CMOE_API void cmoe_dispatch_options_default(cmoe_dispatch_options *o, size_t size);

/* Immutable; the communicator is borrowed and must outlive it. */
typedef struct cmoe_dispatch cmoe_dispatch;

CMOE_API cmoe_status cmoe_dispatch_create(cmoe_dispatch **out, cmoe_comm *comm,
                                          const cmoe_dispatch_options *o, cmoe_error *err);
CMOE_API void cmoe_dispatch_free(cmoe_dispatch *d);
CMOE_API void cmoe_dispatch_slice(const cmoe_dispatch *d, int64_t *first_expert, int64_t *experts);

/* The most group rows that `tokens` x `topk` slots on every rank can bring to this one. */
CMOE_API int64_t cmoe_dispatch_capacity(const cmoe_dispatch *d, int64_t tokens, int64_t topk);

/* Collective.  Ranks with fewer tokens take as many steps as the one with most, some of them empty:
 * *steps = the largest `mine` of all ranks. */
CMOE_API cmoe_status cmoe_dispatch_steps(const cmoe_dispatch *d, int64_t mine, int64_t *steps,
                                         cmoe_arena *scratch, cmoe_error *err);

/* The rows that this rank's experts work on. */
typedef struct cmoe_received {
    size_t size;       /* sizeof(cmoe_received), set by the caller */
    cmoe_view x;       /* [T, H] tokens, or [R, H] rows in group order */
    cmoe_view weights; /* [T, K] of the groups' slots; not given when none were sent */
    int32_t x_grouped; /* whether x is in group order */
    int32_t reserved;
    cmoe_groups groups; /* over the experts of this rank */
} cmoe_received;

CMOE_API void cmoe_received_default(cmoe_received *r, size_t size);

CMOE_API cmoe_status cmoe_dispatch_bytes(const cmoe_dispatch *d, int64_t tokens, int64_t topk,
                                         int64_t *host, int64_t *device, cmoe_error *err);

/* Collective.  x [T, H], ids int32 or int64 [T, K], weights [T, K] or not given (they travel only where
 * experts apply them to rows).  What is received lives in `arena` (and x). */
CMOE_API cmoe_status cmoe_dispatch_send(cmoe_stream *s, const cmoe_dispatch *d, cmoe_view x,
                                        cmoe_view ids, cmoe_view weights, cmoe_received *out,
                                        cmoe_arena *arena, cmoe_error *err);

/* Collective.  rows [R, H] of received->groups -> rows of this rank's own tokens and the groups
 * that say which slot each belongs to, as cmoe_combine takes them. */
CMOE_API cmoe_status cmoe_dispatch_return(cmoe_stream *s, const cmoe_dispatch *d,
                                          const cmoe_received *received, cmoe_view rows,
                                          cmoe_view *own_rows, cmoe_groups *own_groups,
                                          cmoe_arena *arena, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
