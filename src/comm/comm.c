/* SPDX-License-Identifier: MIT
 *
 * comm.c - checks in front of every transport, so that transports need none.
 */
#include <inttypes.h>

#include "comm.h"

static cmoe_status check(const cmoe_comm *c, const char *call, cmoe_error *err)
{
    return c ? CMOE_OK
             : cmoei_fail(err, CMOE_ERR_ARG, "%s: comm is NULL, want a communicator", call);
}

static cmoe_status check_buffer(const char *call, const char *name, const void *data, int64_t bytes,
                                cmoe_error *err)
{
    if (bytes < 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: %s of %" PRId64 " bytes, want >= 0 and below 2^63", call, name,
                          bytes);
    if (!data && bytes > 0)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s: %s is NULL, want %" PRId64 " bytes", call, name,
                          bytes);
    return CMOE_OK;
}

/* Sum of the sizes of one side; -1 on a negative one or an overflow. */
static int64_t total(const int64_t *bytes, int32_t n)
{
    int64_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!cmoei_add(sum, bytes[i], &sum)) return -1;
    }
    return sum;
}

void cmoe_comm_free(cmoe_comm *c)
{
    if (!c) return;
    if (c->transport->close) c->transport->close(c);
    cmoei_free(c->ctx, c, (int64_t)sizeof *c);
}

int32_t cmoe_comm_rank(const cmoe_comm *c)
{
    return c ? c->rank : 0;
}

int32_t cmoe_comm_size(const cmoe_comm *c)
{
    return c ? c->size : 0;
}

const char *cmoe_comm_name(const cmoe_comm *c)
{
    return c ? c->transport->name : NULL;
}

cmoe_status cmoe_comm_barrier(cmoe_comm *c, cmoe_error *err)
{
    CMOEI_TRY(check(c, "barrier", err));
    return c->transport->barrier(c, err);
}

cmoe_status cmoe_comm_all_to_all(cmoe_comm *c, const void *send, const int64_t *send_bytes,
                                 void *recv, const int64_t *recv_bytes, cmoe_error *err)
{
    CMOEI_TRY(check(c, "all_to_all", err));
    if (!send_bytes || !recv_bytes)
        return cmoei_fail(err, CMOE_ERR_ARG, "all_to_all: %s is NULL, want sizes for %d ranks",
                          send_bytes ? "recv_bytes" : "send_bytes", c->size);
    CMOEI_TRY(check_buffer("all_to_all", "send", send, total(send_bytes, c->size), err));
    CMOEI_TRY(check_buffer("all_to_all", "recv", recv, total(recv_bytes, c->size), err));
    return c->transport->all_to_all(c, send, send_bytes, recv, recv_bytes, err);
}

cmoe_status cmoe_comm_all_gather(cmoe_comm *c, const void *send, int64_t bytes, void *recv,
                                 cmoe_error *err)
{
    int64_t all = -1;
    CMOEI_TRY(check(c, "all_gather", err));
    CMOEI_TRY(check_buffer("all_gather", "send", send, bytes, err));
    if (!cmoei_mul(bytes, c->size, &all)) all = -1;
    CMOEI_TRY(check_buffer("all_gather", "recv", recv, all, err));
    return c->transport->all_gather(c, send, bytes, recv, err);
}

static cmoe_status check_floats(const char *call, const void *in, int64_t n_in, const void *out,
                                int64_t n_out, cmoe_error *err)
{
    int64_t bytes_in = -1, bytes_out = -1;
    if (!cmoei_mul(n_in, 4, &bytes_in) || !cmoei_mul(n_out, 4, &bytes_out)) bytes_in = -1;
    CMOEI_TRY(check_buffer(call, "in", in, bytes_in, err));
    return check_buffer(call, "out", out, bytes_out, err);
}

cmoe_status cmoe_comm_all_reduce_f32(cmoe_comm *c, const float *in, float *out, int64_t n,
                                     cmoe_error *err)
{
    CMOEI_TRY(check(c, "all_reduce", err));
    CMOEI_TRY(check_floats("all_reduce", in, n, out, n, err));
    return c->transport->all_reduce_f32(c, in, out, n, err);
}

cmoe_status cmoe_comm_reduce_scatter_f32(cmoe_comm *c, const float *in, float *out, int64_t n,
                                         cmoe_error *err)
{
    int64_t all = -1;
    CMOEI_TRY(check(c, "reduce_scatter", err));
    if (!cmoei_mul(n, c->size, &all)) all = -1;
    CMOEI_TRY(check_floats("reduce_scatter", in, all, out, n, err));
    return c->transport->reduce_scatter_f32(c, in, out, n, err);
}
