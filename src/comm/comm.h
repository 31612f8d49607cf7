/* SPDX-License-Identifier: MIT
 *
 * comm.h - the table that a transport fills.  Arguments have been checked when an entry is called.
 */
#ifndef CMOE_COMM_INTERNAL_H
#define CMOE_COMM_INTERNAL_H

#include "cmoe/comm.h"
#include "core/core.h"

typedef struct cmoei_transport {
    const char *name;
    cmoe_status (*barrier)(cmoe_comm *c, cmoe_error *err);
    cmoe_status (*all_to_all)(cmoe_comm *c, const char *send, const int64_t *send_bytes, char *recv,
                              const int64_t *recv_bytes, cmoe_error *err);
    cmoe_status (*all_gather)(cmoe_comm *c, const char *send, int64_t bytes, char *recv,
                              cmoe_error *err);
    cmoe_status (*all_reduce_f32)(cmoe_comm *c, const float *in, float *out, int64_t n,
                                  cmoe_error *err);
    cmoe_status (*reduce_scatter_f32)(cmoe_comm *c, const float *in, float *out, int64_t n,
                                      cmoe_error *err);
    void (*close)(cmoe_comm *c);
} cmoei_transport;

struct cmoe_comm {
    cmoe_ctx *ctx;
    const cmoei_transport *transport;
    int32_t rank, size;
    void *state; /* of the transport */
};

#endif
