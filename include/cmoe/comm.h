/* SPDX-License-Identifier: MIT
 *
 * cmoe/comm.h - what ranks say to each other: exchange, gather, reduction, barrier.
 *
 * One interface for every transport.  The local communicator is one rank and the identity, so that
 * one code path serves 1 and N ranks; transports between processes come as plugins that fill the
 * same table. Every call but the queries is collective: all ranks make it in the same order, and
 * when one of them fails it fails on every rank within the timeout.
 */
#ifndef CMOE_COMM_H
#define CMOE_COMM_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Belongs to one thread at a time; freed before its context. */
typedef struct cmoe_comm cmoe_comm;

CMOE_API cmoe_status cmoe_comm_create_local(cmoe_comm **out, cmoe_ctx *ctx, cmoe_error *err);
CMOE_API void cmoe_comm_free(cmoe_comm *c);
CMOE_API int32_t cmoe_comm_rank(const cmoe_comm *c);
CMOE_API int32_t cmoe_comm_size(const cmoe_comm *c);
CMOE_API const char *cmoe_comm_name(const cmoe_comm *c); /* "local" */

/* Collective.  Returns when every rank has called it. */
CMOE_API cmoe_status cmoe_comm_barrier(cmoe_comm *c, cmoe_error *err);

/* Collective.  send holds one run of bytes for each rank, in rank order without gaps; recv gets one
 * from each.  Both arrays of sizes are [size]; what one rank sends is what the other expects, else
 * CMOE_ERR_COMM on every rank.  send and recv may be the same address only with one rank. */
CMOE_API cmoe_status cmoe_comm_all_to_all(cmoe_comm *c, const void *send, const int64_t *send_bytes,
                                          void *recv, const int64_t *recv_bytes, cmoe_error *err);

/* Collective.  recv [size * bytes] gets every rank's `bytes` in rank order. */
CMOE_API cmoe_status cmoe_comm_all_gather(cmoe_comm *c, const void *send, int64_t bytes, void *recv,
                                          cmoe_error *err);

/* Collective.  out[i] = in[i] of rank 0 + rank 1 + ..., added in that order on every rank. */
CMOE_API cmoe_status cmoe_comm_all_reduce_f32(cmoe_comm *c, const float *in, float *out, int64_t n,
                                              cmoe_error *err);

/* Collective.  As all_reduce over in [size * n], of which rank r keeps [r * n, (r + 1) * n). */
CMOE_API cmoe_status cmoe_comm_reduce_scatter_f32(cmoe_comm *c, const float *in, float *out,
                                                  int64_t n, cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
