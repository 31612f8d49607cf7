/* SPDX-License-Identifier: MIT
 *
 * dispatch.c - which rank owns which expert, and the way there and back over one rank.
 *
 * With the local communicator sending is grouping and returning is nothing.  The exchange between
 * ranks goes into cmoe_dispatch_send and _return, above the same communicator table; until a
 * transport of more than one rank exists no communicator of that size can be made.
 */
#include <inttypes.h>

#include "cmoe/dispatch.h"
#include "comm/comm.h"
#include "core/core.h"

struct cmoe_dispatch {
    cmoe_ctx *ctx;
    cmoe_comm *comm;
    int64_t experts, hidden;
    int64_t first, count; /* slice of this rank */
};

static const cmoe_dispatch_options defaults = {.size = sizeof defaults};

void cmoe_dispatch_options_default(cmoe_dispatch_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static cmoe_status check_slices(const cmoe_dispatch_options *o, int32_t ranks, cmoe_error *err)
{
    for (int32_t r = 0; r <= ranks; r++) {
        const int64_t low = r ? o->first[r - 1] : 0;
        const int64_t want = r == 0 ? 0 : r == ranks ? o->experts : -1;
        if ((want >= 0 && o->first[r] != want) || o->first[r] < low)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "dispatch: first[%d] = %" PRId64
                              ", want ascending slices from 0 to %" PRId64 " (experts)",
                              r, o->first[r], o->experts);
    }
    return CMOE_OK;
}

cmoe_status cmoe_dispatch_create(cmoe_dispatch **out, cmoe_comm *comm,
                                 const cmoe_dispatch_options *options, cmoe_error *err)
{
    cmoe_dispatch_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_dispatch_options", err));
    if (!out || !comm)
        return cmoei_fail(err, CMOE_ERR_ARG, "dispatch: %s is NULL", out ? "comm" : "out");
    if (o.experts < 1 || o.hidden < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "dispatch: experts = %" PRId64 ", hidden = %" PRId64
                          ", want experts >= 1, hidden >= 0",
                          o.experts, o.hidden);
    const int32_t ranks = cmoe_comm_size(comm), rank = cmoe_comm_rank(comm);
    int64_t first, end;
    cmoei_split(o.experts, rank, ranks, &first, &end);
    if (o.first) {
        CMOEI_TRY(check_slices(&o, ranks, err));
        first = o.first[rank];
        end = o.first[rank + 1];
    }
    cmoe_ctx *ctx = comm->ctx;
    cmoe_dispatch *d = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *d, "dispatch", (void **)&d, err));
    *d = (cmoe_dispatch){ctx, comm, o.experts, o.hidden, first, end - first};
    *out = d;
    return CMOE_OK;
}

void cmoe_dispatch_free(cmoe_dispatch *d)
{
    if (d) cmoei_free(d->ctx, d, (int64_t)sizeof *d);
}

void cmoe_dispatch_slice(const cmoe_dispatch *d, int64_t *first_expert, int64_t *experts)
{
    if (first_expert) *first_expert = d ? d->first : 0;
    if (experts) *experts = d ? d->count : 0;
}

static cmoe_align_options align_options(const cmoe_dispatch *d)
{
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = d->count;
    o.first_expert = d->first;
    return o;
}

int64_t cmoe_dispatch_capacity(const cmoe_dispatch *d, int64_t tokens, int64_t topk)
{
    int64_t rows;
    if (!d || !cmoei_mul(tokens, topk, &rows) || !cmoei_mul(rows, d->comm->size, &rows)) return -1;
    return rows;
}

/* One int64 from every rank. */
static int64_t *carve_steps(const cmoe_dispatch *d, cmoei_carver *c)
{
    return cmoei_carve_array(c, d->comm->size, sizeof(int64_t));
}

cmoe_status cmoe_dispatch_steps(const cmoe_dispatch *d, int64_t mine, int64_t *steps,
                                cmoe_arena *scratch, cmoe_error *err)
{
    if (!d || !steps)
        return cmoei_fail(err, CMOE_ERR_ARG, "dispatch_steps: %s is NULL",
                          d ? "steps" : "dispatch");
    if (mine < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "dispatch_steps: mine = %" PRId64 ", want >= 0",
                          mine);
    cmoei_carver c = cmoei_carver_open(scratch);
    int64_t *all = carve_steps(d, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "dispatch", err));
    CMOEI_TRY(cmoe_comm_all_gather(d->comm, &mine, (int64_t)sizeof mine, all, err));
    int64_t most = 0;
    for (int32_t r = 0; r < d->comm->size; r++)
        most = CMOEI_MAX(most, all[r]);
    *steps = most;
    return CMOE_OK;
}

void cmoe_received_default(cmoe_received *r, size_t size)
{
    const cmoe_received d = {.size = sizeof d};
    cmoei_options_write(r, size, &d, sizeof d);
}

cmoe_status cmoe_dispatch_bytes(const cmoe_dispatch *d, int64_t tokens, int64_t topk, int64_t *host,
                                int64_t *device, cmoe_error *err)
{
    if (!d) return cmoei_fail(err, CMOE_ERR_ARG, "dispatch_bytes: dispatch is NULL");
    const cmoe_align_options o = align_options(d);
    int64_t groups = 0;
    CMOEI_TRY(cmoe_align_bytes(&o, tokens, topk, &groups, device, err));
    cmoei_carver c = cmoei_carver_dry();
    carve_steps(d, &c);
    if (host) *host = CMOEI_MAX(groups, cmoei_carver_bytes(&c));
    return CMOE_OK;
}

cmoe_status cmoe_dispatch_send(cmoe_stream *s, const cmoe_dispatch *d, cmoe_view x, cmoe_view ids,
                               cmoe_view weights, cmoe_received *out, cmoe_arena *arena,
                               cmoe_error *err)
{
    if (!d || !out)
        return cmoei_fail(err, CMOE_ERR_ARG, "dispatch_send: %s is NULL", d ? "out" : "dispatch");
    if (out->size < sizeof(size_t) || out->size > 65536)
        return cmoei_fail(err, CMOE_ERR_ARG, "received.size = %zu, want sizeof(cmoe_received)",
                          out->size);
    const cmoei_want wx = {"x", CMOEI_FLOATS, 2, {-1, d->hidden}, {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_in(&x, &wx, err));
    const cmoei_want wi = {"topk_ids", CMOEI_INDEX, 2, {x.dims[0], -1}, {"tokens", "topk"}};
    CMOEI_TRY(cmoei_check_in(&ids, &wi, err));
    if (cmoei_given(&weights)) {
        const cmoei_want ww = {
            "topk_weights", CMOEI_FLOATS, 2, {x.dims[0], ids.dims[1]}, {"tokens", "topk"}};
        CMOEI_TRY(cmoei_check_in(&weights, &ww, err));
    }
    const cmoe_align_options o = align_options(d);
    cmoe_received received = {.size = sizeof received, .x = x, .weights = weights};
    CMOEI_TRY(cmoe_align(s, &o, ids, &received.groups, arena, err));
    cmoei_options_write(out, out->size, &received, sizeof received);
    return CMOE_OK;
}

cmoe_status cmoe_dispatch_return(cmoe_stream *s, const cmoe_dispatch *d,
                                 const cmoe_received *received, cmoe_view rows, cmoe_view *own_rows,
                                 cmoe_groups *own_groups, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena; /* one rank needs no room */
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!d || !received || !own_rows || !own_groups)
        return cmoei_fail(err, CMOE_ERR_ARG, "dispatch_return: %s is NULL",
                          !d          ? "dispatch"
                          : !received ? "received"
                          : !own_rows ? "own_rows"
                                      : "own_groups");
    const cmoei_want wr = {"rows", CMOEI_FLOATS, 2, {-1, d->hidden}, {"rows", "hidden"}};
    CMOEI_TRY(cmoei_check_in(&rows, &wr, err));
    *own_rows = rows;
    *own_groups = received->groups;
    return CMOE_OK;
}
