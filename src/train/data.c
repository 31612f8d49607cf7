/* SPDX-License-Identifier: MIT
 *
 * data.c - datasets made from ids, and windows drawn from them.
 */
#include "data.h"

#include <inttypes.h>
#include <string.h>

enum {
    DRAW_OFFSET = 1 << 22,
    DRAW_ORDER
}; /* of random numbers, apart from all others of a training */

/* ---- made from ids ------------------------------------------------------------------------------ */

static cmoe_status check_documents(const cmoe_view *v, int64_t tokens, cmoe_error *err)
{
    int64_t last = -1;
    if (v->dims[0] == 0 && tokens > 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "documents is empty, but there are %" PRId64
                          " tokens: want at least the first, at 0",
                          tokens);
    for (int64_t i = 0; i < v->dims[0]; i++) {
        const int64_t at = cmoei_load_index(cmoei_at(v, i, 0), v->dtype);
        if (at <= last || at >= tokens || (i == 0 && at != 0))
            return cmoei_fail(err, CMOE_ERR_RANGE, "documents[%" PRId64 "] = %" PRId64 ", want %s",
                              i, at, i == 0 ? "0" : "ascending places inside the tokens");
        last = at;
    }
    return CMOE_OK;
}

cmoe_status cmoei_dataset_alloc(cmoe_dataset **out, cmoe_ctx *ctx, int64_t tokens,
                                int64_t documents, cmoe_error *err)
{
    cmoe_dataset *d;
    CMOEI_TRY(cmoei_alloc(ctx, sizeof *d, "dataset", (void **)&d, err));
    *d = (cmoe_dataset){.ctx = ctx,
                        .tokens = tokens,
                        .document_count = documents,
                        .ids_bytes = tokens * (int64_t)sizeof *d->ids,
                        .learn_bytes = tokens,
                        .documents_bytes = (documents + 1) * (int64_t)sizeof *d->documents};
    cmoe_status status = cmoei_alloc(ctx, d->ids_bytes, "tokens", (void **)&d->ids, err);
    if (status == CMOE_OK)
        status = cmoei_alloc(ctx, d->learn_bytes, "tokens", (void **)&d->learn, err);
    if (status == CMOE_OK)
        status = cmoei_alloc(ctx, d->documents_bytes, "documents", (void **)&d->documents, err);
    if (status != CMOE_OK) {
        cmoe_dataset_free(d);
        return status;
    }
    *out = d;
    return CMOE_OK;
}

cmoe_status cmoe_dataset_make(cmoe_dataset **out, cmoe_ctx *ctx, cmoe_view ids, cmoe_view learn,
                              cmoe_view documents, cmoe_error *err)
{
    cmoe_dataset *d;
    if (!out || !ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "dataset_make: %s is NULL", out ? "ctx" : "out");
    const cmoei_want wi = {"ids", CMOEI_INDEX, 1, {-1}, {"tokens"}};
    CMOEI_TRY(cmoei_check_in(&ids, &wi, err));
    const int64_t n = ids.dims[0];
    const cmoei_want wl = {"learn", CMOEI_DTYPE(CMOE_U8), 1, {n}, {"tokens"}};
    const cmoei_want wd = {"documents", CMOEI_INDEX, 1, {-1}, {"documents"}};
    const bool chosen = cmoei_given(&learn), cut = cmoei_given(&documents);
    if (chosen) CMOEI_TRY(cmoei_check_in(&learn, &wl, err));
    if (cut) CMOEI_TRY(cmoei_check_in(&documents, &wd, err));
    if (cut) CMOEI_TRY(check_documents(&documents, n, err));
    for (int64_t i = 0; i < n; i++) {
        const int64_t id = cmoei_load_index(cmoei_at(&ids, i, 0), ids.dtype);
        if (id < 0 || id > INT32_MAX)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "ids[%" PRId64 "] = %" PRId64 ", want 0 to 2^31 - 1", i, id);
    }
    CMOEI_TRY(cmoei_dataset_alloc(&d, ctx, n, cut ? documents.dims[0] : n > 0, err));
    for (int64_t i = 0; i < n; i++) {
        d->ids[i] = (int32_t)cmoei_load_index(cmoei_at(&ids, i, 0), ids.dtype);
        d->learn[i] = chosen ? *(const uint8_t *)cmoei_at(&learn, i, 0) != 0 : 1;
        d->learned += d->learn[i];
    }
    for (int64_t i = 0; i < d->document_count; i++)
        d->documents[i] = cut ? cmoei_load_index(cmoei_at(&documents, i, 0), documents.dtype) : 0;
    d->documents[d->document_count] = n;
    *out = d;
    return CMOE_OK;
}

void cmoe_dataset_free(cmoe_dataset *d)
{
    if (!d) return;
    cmoe_ctx *ctx = d->ctx;
    cmoei_free(ctx, d->ids, d->ids_bytes);
    cmoei_free(ctx, d->learn, d->learn_bytes);
    cmoei_free(ctx, d->documents, d->documents_bytes);
    cmoei_free(ctx, d, sizeof *d);
}

cmoe_status cmoe_dataset_describe(const cmoe_dataset *d, cmoe_dataset_info *info, cmoe_error *err)
{
    if (!d || !info)
        return cmoei_fail(err, CMOE_ERR_ARG, "dataset_describe: %s is NULL",
                          d ? "info" : "dataset");
    const cmoe_dataset_info x = {.size = sizeof x,
                                 .tokens = d->tokens,
                                 .documents = d->document_count,
                                 .learned = d->learned,
                                 .bytes = d->bytes};
    cmoei_options_write(info, info->size, &x, sizeof x);
    return CMOE_OK;
}

/* ---- windows ------------------------------------------------------------------------------------ */

cmoe_status cmoei_windows_open(cmoei_windows *w, cmoe_ctx *ctx, const cmoe_dataset *d,
                               uint64_t seed, int64_t length, cmoe_error *err)
{
    if (d->tokens < length + 1)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "the data has %" PRId64 " tokens, want at least %" PRId64
                          " (a window of %" PRId64 " and one behind it)",
                          d->tokens, length + 1, length);
    if (d->learned == 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "no token of the data is to be learned");
    *w = (cmoei_windows){
        .ctx = ctx, .tokens = d->tokens, .seed = seed, .length = length, .epoch = -1};
    w->per_epoch = CMOEI_MAX((d->tokens - 1) / length - 1, 1);
    if (w->per_epoch > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "the data has %" PRId64 " windows of %" PRId64
                          " tokens, want at most 2^31 - 1",
                          w->per_epoch, length);
    return cmoei_alloc(ctx, w->per_epoch * (int64_t)sizeof *w->order, "order of windows",
                       (void **)&w->order, err);
}

void cmoei_windows_close(cmoei_windows *w)
{
    if (w->ctx) cmoei_free(w->ctx, w->order, w->per_epoch * (int64_t)sizeof *w->order);
    *w = (cmoei_windows){0};
}

/* Fisher and Yates, with numbers that are functions of (seed, place, epoch). */
static void shuffle(cmoei_windows *w, int64_t epoch)
{
    const uint64_t draw = (uint64_t)epoch << 32;
    const int64_t room = CMOEI_MIN(w->length, w->tokens - w->per_epoch * w->length);
    w->epoch = epoch;
    w->offset = (int64_t)(cmoe_random_u64(w->seed, 0, draw | DRAW_OFFSET) % (uint64_t)room);
    for (int64_t i = 0; i < w->per_epoch; i++)
        w->order[i] = (int32_t)i;
    for (int64_t i = w->per_epoch - 1; i > 0; i--) {
        const uint64_t r = cmoe_random_u64(w->seed, (uint64_t)i, draw | DRAW_ORDER);
        const int64_t j = (int64_t)(r % (uint64_t)(i + 1));
        const int32_t held = w->order[i];
        w->order[i] = w->order[j];
        w->order[j] = held;
    }
}

int64_t cmoei_windows_at(cmoei_windows *w, int64_t i)
{
    const int64_t epoch = i / w->per_epoch;
    if (epoch != w->epoch) shuffle(w, epoch);
    return w->offset + (int64_t)w->order[i % w->per_epoch] * w->length;
}

/* The document that holds token `at`. */
static int64_t document_of(const cmoe_dataset *d, int64_t at)
{
    int64_t low = 0, high = d->document_count;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (d->documents[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

void cmoei_windows_read(const cmoe_dataset *d, int64_t at, int64_t length, int32_t *ids,
                        int32_t *targets, int32_t *start)
{
    int64_t document = document_of(d, at);
    for (int64_t i = 0; i < length; i++) {
        const int64_t t = at + i;
        while (t >= d->documents[document + 1])
            document++;
        const bool last = t + 1 >= d->documents[document + 1];
        ids[i] = d->ids[t];
        targets[i] = !last && d->learn[t + 1] ? d->ids[t + 1] : -1;
        start[i] = (int32_t)CMOEI_MAX(d->documents[document] - at, 0);
    }
}
