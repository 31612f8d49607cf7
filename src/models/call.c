/* SPDX-License-Identifier: MIT
 *
 * call.c - what a forward is given: pages that every layer finds, and memory that nothing shares.
 *
 * Each step of a forward checks its own arguments, but by then earlier steps have written the cache
 * and the captured routing.  So what could make a later step fail is looked for first.
 */
#include "call.h"

#include "ops/kv.h"

/* ---- pages ----------------------------------------------------------------------------------- */

/* Positions back that some layer sees; 0: all. */
static int64_t widest_window(const cmoei_decoder *d)
{
    int64_t most = 0;
    for (int64_t i = 0; i < d->layers; i++) {
        if (d->layer[i].window == 0) return 0;
        most = CMOEI_MAX(most, d->layer[i].window);
    }
    return most;
}

cmoe_status cmoei_call_check_pages(const cmoe_model *m, const cmoe_model_call *call,
                                   cmoe_error *err)
{
    const int64_t window = widest_window(&m->d);
    const cmoe_batch *b = call->batch;
    const cmoe_kv kv = cmoei_cache_layer(call->cache, 0);
    for (int64_t i = 0; i < b->sequences; i++) {
        if (cmoei_batch_count(b, i) == 0) continue;
        const int64_t seen = window > 0 ? CMOEI_MAX(0, b->start[i] - window + 1) : 0;
        const int64_t end = cmoei_ceil_div(cmoei_batch_end(b, i), CMOE_KV_PAGE);
        CMOEI_TRY(cmoei_batch_check_pages(b, &kv, i, seen / CMOE_KV_PAGE, end, err));
    }
    return cmoei_batch_check_written(b, &kv, err);
}

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct memory {
    const cmoe_model *m;
    const cmoe_model_call *call;
    cmoe_view_mut cache;
    const cmoe_arena *scratch;
    cmoe_error *err;
} memory;

static cmoe_status check_table(const memory *x, const cmoe_view *v, const char *name)
{
    CMOEI_TRY(cmoei_check_apart(&x->cache, "cache", v, name, x->err));
    return cmoei_check_scratch(x->scratch, v, name, x->err);
}

static cmoe_status check_inputs(const memory *x)
{
    const cmoe_batch *b = x->call->batch;
    const cmoe_view cache = cmoe_view_of(x->cache);
    CMOEI_TRY(cmoei_check_scratch(x->scratch, &cache, "cache", x->err));
    CMOEI_TRY(check_table(x, &x->call->ids, "ids"));
    CMOEI_TRY(check_table(x, &x->call->rows, "rows"));
    if (b->sequences > 0) {
        const cmoe_view first = cmoe_view_1d(b->first, CMOE_I64, b->sequences + 1),
                        start = cmoe_view_1d(b->start, CMOE_I64, b->sequences),
                        pages = cmoe_view_2d(b->pages, CMOE_I32, b->sequences, b->page_columns);
        CMOEI_TRY(check_table(x, &first, "batch.first"));
        CMOEI_TRY(check_table(x, &start, "batch.start"));
        CMOEI_TRY(check_table(x, &pages, "batch.pages"));
    }
    for (int64_t i = 0; x->call->replay && i < x->m->d.layers; i++) {
        const cmoe_view ids = cmoe_view_of(x->call->replay[i].ids),
                        weights = cmoe_view_of(x->call->replay[i].weights);
        CMOEI_TRY(check_table(x, &ids, "replay ids"));
        CMOEI_TRY(check_table(x, &weights, "replay weights"));
    }
    return CMOE_OK;
}

/* `out` against what is read, and against the routing of layers from `layer` on. */
static cmoe_status check_output(const memory *x, const cmoe_view_mut *out, const char *name,
                                int64_t layer)
{
    const cmoe_model_call *c = x->call;
    const cmoe_view self = cmoe_view_of(*out), cache = cmoe_view_of(x->cache);
    CMOEI_TRY(cmoei_check_scratch(x->scratch, &self, name, x->err));
    CMOEI_TRY(cmoei_check_apart(out, name, &cache, "cache", x->err));
    CMOEI_TRY(cmoei_check_apart(out, name, &c->ids, "ids", x->err));
    CMOEI_TRY(cmoei_check_apart(out, name, &c->rows, "rows", x->err));
    CMOEI_TRY(cmoei_batch_check_apart(c->batch, out, name, x->err));
    for (int64_t i = 0; i < x->m->d.layers; i++) {
        for (int32_t which = 0; which < 4; which++) {
            const cmoe_routing *r = which < 2 ? c->replay : c->capture;
            if (!r || (which >= 2 && i < layer)) continue;
            const cmoe_view other = cmoe_view_of(which % 2 ? r[i].weights : r[i].ids);
            CMOEI_TRY(
                cmoei_check_apart(out, name, &other, which < 2 ? "replay" : "capture", x->err));
        }
    }
    return CMOE_OK;
}

cmoe_status cmoei_call_check_memory(const cmoe_model *m, const cmoe_model_call *call,
                                    const cmoe_view_mut *logits, const cmoe_arena *scratch,
                                    cmoe_error *err)
{
    const cmoe_cache *c = call->cache;
    const memory x = {m, call, cmoe_view_mut_1d(c->base, CMOE_U8, c->bytes), scratch, err};
    CMOEI_TRY(check_inputs(&x));
    CMOEI_TRY(check_output(&x, logits, "logits", 0));
    for (int64_t i = 0; call->capture && i < m->d.layers; i++) {
        const cmoe_view weights = cmoe_view_of(call->capture[i].weights);
        CMOEI_TRY(cmoei_check_apart(&call->capture[i].ids, "capture ids", &weights,
                                    "capture weights", err));
        CMOEI_TRY(check_output(&x, &call->capture[i].ids, "capture ids", i + 1));
        CMOEI_TRY(check_output(&x, &call->capture[i].weights, "capture weights", i + 1));
    }
    return CMOE_OK;
}
