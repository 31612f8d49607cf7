/* SPDX-License-Identifier: MIT
 *
 * routing.c - which experts a request's tokens used, kept for it or forced upon it.
 *
 * Capture: a forward writes the routing of the whole batch into tables of its own, from where each
 * job that wants it copies its rows.  Replay: a forward forces the routing of all of its tokens, so a
 * job runs alone as long as its positions are in its tables; behind them it is one among others.
 * Neither takes pages of others: positions whose routing is wanted must run, and keys and values that
 * came of forced routing are nobody else's.
 */
#include <inttypes.h>
#include <string.h>

#include "job.h"

/* ---- checks ------------------------------------------------------------------------------------ */

static cmoe_status check_table(const cmoe_view *ids, int64_t layer, int64_t experts,
                               cmoe_error *err)
{
    for (int64_t t = 0; t < ids->dims[0]; t++) {
        for (int64_t k = 0; k < ids->dims[1]; k++) {
            const char *at = (const char *)ids->data +
                             (t * ids->strides[0] + k * ids->strides[1]) * (int64_t)sizeof(int32_t);
            const int64_t id = cmoei_load_index(at, ids->dtype);
            if (id < -1 || id >= experts)
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "replay of layer %" PRId64 ": ids[%" PRId64 ", %" PRId64
                                  "] = %" PRId64 ", want -1 <= id < %" PRId64 " (experts)",
                                  layer, t, k, id, experts);
        }
    }
    return CMOE_OK;
}

static cmoe_status check_layer(const cmoe_engine *e, const cmoe_request *r, int64_t i,
                               cmoe_error *err)
{
    const cmoe_view ids = cmoe_view_of(r->replay[i].ids),
                    weights = cmoe_view_of(r->replay[i].weights);
    if (!cmoei_given(&ids) && !cmoei_given(&weights)) return CMOE_OK;
    if (e->topk[i] == 0)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "replay of layer %" PRId64 " is given, want none: it has no experts", i);
    cmoei_want want = {"replay ids",
                       CMOEI_DTYPE(CMOE_I32),
                       2,
                       {r->replay_tokens, e->topk[i]},
                       {"replay_tokens", "topk"}};
    CMOEI_TRY(cmoei_check_in(&ids, &want, err));
    want.name = "replay weights";
    want.dtypes = CMOEI_DTYPE(CMOE_F32);
    if (cmoei_given(&weights)) CMOEI_TRY(cmoei_check_in(&weights, &want, err));
    return check_table(&ids, i, e->experts[i], err);
}

cmoe_status cmoei_routing_check(const cmoe_engine *e, const cmoe_request *r, cmoe_error *err)
{
    if ((r->replay != NULL) != (r->replay_tokens != 0) || r->replay_tokens < 0)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "replay is %s and replay_tokens = %" PRId64 ", want both or neither",
                          r->replay ? "given" : "NULL", r->replay_tokens);
    if ((r->replay || r->capture) && e->z.info.moe_layers == 0)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "%s is asked for, want a model with experts, this one is of type %s",
                          r->replay ? "replay" : "capture", e->z.info.type);
    if (!r->replay) return CMOE_OK;
    if (e->z.info.mask != CMOE_MASK_CAUSAL)
        return cmoei_fail(
            err, CMOE_ERR_UNSUPPORTED,
            "replay is for causal models, a model of type %s runs positions more than "
            "once",
            e->z.info.type);
    if (r->replay_tokens > e->z.info.context)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "replay_tokens = %" PRId64 ", want at most %" PRId64 " (context)",
                          r->replay_tokens, e->z.info.context);
    for (int64_t i = 0; i < e->z.info.layers; i++)
        CMOEI_TRY(check_layer(e, r, i, err));
    return CMOE_OK;
}

/* ---- a job's tables ---------------------------------------------------------------------------- */

static cmoe_routing carve_table(int64_t rows, int64_t topk, bool ids, bool weights, cmoei_carver *c)
{
    cmoe_routing t = {cmoe_view_mut_none(), cmoe_view_mut_none()};
    int64_t n = INT64_MAX; /* refused by carve_array, should it overflow */
    cmoei_mul(rows, topk, &n);
    if (ids) t.ids = cmoe_view_mut_2d(cmoei_carve_array(c, n, 4), CMOE_I32, rows, topk);
    if (weights) t.weights = cmoe_view_mut_2d(cmoei_carve_array(c, n, 4), CMOE_F32, rows, topk);
    return t;
}

void cmoei_routing_carve(cmoei_job *j, const cmoe_engine *e, const cmoe_request *r,
                         int64_t capacity, cmoei_carver *c)
{
    const int64_t layers = e->z.info.layers;
    j->capture = r->capture ? cmoei_carve_array(c, layers, sizeof *j->capture) : NULL;
    j->replay = r->replay ? cmoei_carve_array(c, layers, sizeof *j->replay) : NULL;
    j->replayed = r->replay_tokens;
    for (int64_t i = 0; r->capture && i < layers; i++) {
        const cmoe_routing t = carve_table(capacity, e->topk[i], e->topk[i] > 0, e->topk[i] > 0, c);
        if (j->capture) j->capture[i] = t;
    }
    for (int64_t i = 0; r->replay && i < layers; i++) {
        const cmoe_view ids = cmoe_view_of(r->replay[i].ids),
                        weights = cmoe_view_of(r->replay[i].weights);
        const cmoe_routing t =
            carve_table(r->replay_tokens, e->topk[i], cmoei_given(&ids), cmoei_given(&weights), c);
        if (j->replay) j->replay[i] = t;
    }
}

/* Both of 4-byte elements, `from` of any strides. */
static void copy_table(cmoe_view_mut to, cmoe_view_mut from)
{
    for (int64_t t = 0; to.data && t < to.dims[0]; t++) {
        for (int64_t k = 0; k < to.dims[1]; k++)
            memcpy((char *)to.data + (t * to.dims[1] + k) * 4,
                   (const char *)from.data + (t * from.strides[0] + k * from.strides[1]) * 4, 4);
    }
}

void cmoei_routing_copy(cmoei_job *j, const cmoe_request *r)
{
    for (int64_t i = 0; r->replay && i < j->engine->z.info.layers; i++) {
        copy_table(j->replay[i].ids, r->replay[i].ids);
        copy_table(j->replay[i].weights, r->replay[i].weights);
    }
}

void cmoei_routing_replay(const cmoei_job *j, int64_t tokens)
{
    cmoe_routing *call = j->engine->replay;
    for (int64_t i = 0; i < j->engine->z.info.layers; i++) {
        call[i] = j->replay[i];
        if (call[i].ids.data) call[i].ids = cmoei_rows_of_mut(call[i].ids, j->s.cached, tokens);
        if (call[i].weights.data)
            call[i].weights = cmoei_rows_of_mut(call[i].weights, j->s.cached, tokens);
    }
}

/* ---- the batch's tables ------------------------------------------------------------------------ */

static void carve_batch(cmoe_engine *e, cmoei_carver *c)
{
    for (int64_t i = 0; i < e->z.info.layers; i++)
        e->capture[i] =
            carve_table(e->z.o.step_tokens, e->topk[i], e->topk[i] > 0, e->topk[i] > 0, c);
}

cmoe_status cmoei_routing_prepare(cmoe_engine *e, cmoe_error *err)
{
    if (e->captured) return CMOE_OK;
    cmoei_carver c = cmoei_carver_dry();
    carve_batch(e, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "routing", err));
    const int64_t bytes = cmoei_carver_bytes(&c);
    CMOEI_TRY(cmoei_alloc(e->ctx, bytes, "routing", &e->captured, err));
    e->captured_bytes = bytes;
    const cmoe_arena memory = cmoe_arena_make(e->captured, bytes);
    c = cmoei_carver_open(&memory);
    carve_batch(e, &c);
    return CMOE_OK;
}

void cmoei_routing_capture(cmoe_engine *e, int64_t tokens)
{
    for (int64_t i = 0; i < e->z.info.layers; i++) {
        e->capture[i].ids.dims[0] = tokens;
        e->capture[i].weights.dims[0] = tokens;
    }
}

void cmoei_routing_keep(cmoei_job *j, int64_t first)
{
    const int64_t begin = j->work.begin, n = j->work.end - begin;
    for (int64_t i = 0; i < j->engine->z.info.layers; i++) {
        const int64_t k = j->engine->topk[i];
        const cmoe_routing *from = &j->engine->capture[i], *to = &j->capture[i];
        if (k == 0) continue;
        memcpy((int32_t *)to->ids.data + begin * k, (int32_t *)from->ids.data + first * k,
               (size_t)(n * k) * sizeof(int32_t));
        memcpy((float *)to->weights.data + begin * k, (float *)from->weights.data + first * k,
               (size_t)(n * k) * sizeof(float));
    }
    /* What was given has a row each, also where blocks are worked on: that of the last pass. */
    const int64_t given = CMOEI_MIN(j->work.end, j->s.prompt);
    j->captured = CMOEI_MAX(j->captured, CMOEI_MAX(j->work.final, given));
}

cmoe_status cmoe_engine_routing(const cmoe_engine *e, int64_t id, int64_t layer, cmoe_view *ids,
                                cmoe_view *weights, cmoe_error *err)
{
    if (!e || !ids || !weights)
        return cmoei_fail(err, CMOE_ERR_ARG, "engine_routing: %s is NULL",
                          !e     ? "engine"
                          : !ids ? "ids"
                                 : "weights");
    const cmoei_job *j = e->jobs;
    while (j && j->s.id != id)
        j = j->next;
    if (!j || !j->capture)
        return cmoei_fail(err, CMOE_ERR_ARG, "request %" PRId64 " %s", id,
                          j ? "has no routing, want one with capture" : "is not known");
    if (layer < 0 || layer >= e->z.info.layers)
        return cmoei_fail(err, CMOE_ERR_RANGE, "layer = %" PRId64 ", want 0 <= layer < %" PRId64,
                          layer, e->z.info.layers);
    if (e->topk[layer] == 0)
        return cmoei_fail(err, CMOE_ERR_ARG, "layer %" PRId64 " has no experts, want one that has",
                          layer);
    *ids = cmoei_rows_of(cmoe_view_of(j->capture[layer].ids), 0, j->captured);
    *weights = cmoei_rows_of(cmoe_view_of(j->capture[layer].weights), 0, j->captured);
    return CMOE_OK;
}
