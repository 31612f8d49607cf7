/* SPDX-License-Identifier: MIT
 *
 * local.c - the communicator of one rank: everything is what it was.
 */
#include <inttypes.h>
#include <string.h>

#include "comm.h"

static void move(void *to, const void *from, int64_t bytes)
{
    if (bytes > 0 && to != from) memmove(to, from, (size_t)bytes);
}

static cmoe_status barrier(cmoe_comm *c, cmoe_error *err)
{
    (void)c;
    (void)err;
    return CMOE_OK;
}

static cmoe_status all_to_all(cmoe_comm *c, const char *send, const int64_t *send_bytes, char *recv,
                              const int64_t *recv_bytes, cmoe_error *err)
{
    (void)c;
    if (send_bytes[0] != recv_bytes[0])
        return cmoei_fail(err, CMOE_ERR_COMM,
                          "all_to_all: rank 0 sends itself %" PRId64 " bytes and expects %" PRId64
                          ", want the same",
                          send_bytes[0], recv_bytes[0]);
    move(recv, send, send_bytes[0]);
    return CMOE_OK;
}

static cmoe_status all_gather(cmoe_comm *c, const char *send, int64_t bytes, char *recv,
                              cmoe_error *err)
{
    (void)c;
    (void)err;
    move(recv, send, bytes);
    return CMOE_OK;
}

static cmoe_status reduce(cmoe_comm *c, const float *in, float *out, int64_t n, cmoe_error *err)
{
    (void)c;
    (void)err;
    move(out, in, n * (int64_t)sizeof *in);
    return CMOE_OK;
}

static const cmoei_transport local = {.name = "local",
                                      .barrier = barrier,
                                      .all_to_all = all_to_all,
                                      .all_gather = all_gather,
                                      .all_reduce_f32 = reduce,
                                      .reduce_scatter_f32 = reduce};

cmoe_status cmoe_comm_create_local(cmoe_comm **out, cmoe_ctx *ctx, cmoe_error *err)
{
    if (!out || !ctx) return cmoei_fail(err, CMOE_ERR_ARG, "comm: %s is NULL", out ? "ctx" : "out");
    cmoe_comm *c = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *c, "communicator", (void **)&c, err));
    *c = (cmoe_comm){.ctx = ctx, .transport = &local, .rank = 0, .size = 1};
    *out = c;
    return CMOE_OK;
}
