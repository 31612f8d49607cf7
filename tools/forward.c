/* SPDX-License-Identifier: MIT
 *
 * forward.c - one sequence of known ids, in chunks; a token's logits do not depend on how it was cut.
 */
#include "forward.h"

#include <stdlib.h>

#include "model.h"
#include "report.h"

int64_t forward_chunk(const cmoe_model_info *info, int64_t tokens, int64_t chunk)
{
    const int64_t B = info->mask;
    if (B == CMOE_MASK_FULL) return tokens;
    if (B > 0) chunk = (chunk + B - 1) / B * B;
    return chunk < tokens ? chunk : tokens;
}

int forward_open(forward *f, const tool_session *session, const cmoe_model *model,
                 int64_t positions, int64_t chunk, const char *what)
{
    const int64_t pages = (positions + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE;
    cmoe_error err = {.size = sizeof err};
    cmoe_model_info info = {.size = sizeof info};
    cmoe_cache_options c;
    int64_t host = 0, device = 0;
    *f = (forward){.session = session, .model = model, .positions = positions, .chunk = chunk};
    cmoe_cache_options_default(&c, sizeof c);
    c.pages = pages;
    cmoe_status status = cmoe_model_describe(model, &info, &err);
    if (status == CMOE_OK) status = cmoe_cache_create(&f->cache, model, &c, &err);
    if (status == CMOE_OK)
        status = cmoe_model_forward_bytes(model, chunk, 1, chunk, &host, &device, &err);
    if (status != CMOE_OK) return report_status(status, what, &err);
    f->vocab = info.vocab;
    f->row = malloc((size_t)info.vocab * sizeof *f->row);
    f->pages = malloc((size_t)pages * sizeof *f->pages);
    /* The arena begins at a cache line; nothing depends on it but speed. */
    f->work = aligned_alloc(64, ((size_t)host + 127) / 64 * 64);
    if (!f->row || !f->pages || !f->work)
        return report_fail(EXIT_MEMORY, what, "no memory for %s of work", size_of(host).s);
    for (int64_t i = 0; i < pages; i++)
        f->pages[i] = (int32_t)i;
    f->arena = cmoe_arena_make(f->work, host);
    return 0;
}

void forward_close(forward *f)
{
    free(f->work);
    free(f->pages);
    free(f->row);
    cmoe_cache_free(f->cache);
    *f = (forward){0};
}

int forward_tokens(forward *f, const int64_t *ids, int64_t at, int64_t n,
                   const cmoe_routing *capture, const cmoe_routing *replay, float *logits,
                   const char *what)
{
    const int64_t first[2] = {0, n}, start[1] = {at}, last[1] = {n - 1};
    cmoe_error err = {.size = sizeof err};
    cmoe_model_call call;
    if (report_cancelled()) return report_fail(EXIT_CANCELLED, what, "cancelled");
    cmoe_model_call_default(&call, sizeof call);
    const cmoe_batch batch = {.size = sizeof batch,
                              .sequences = 1,
                              .first = first,
                              .start = start,
                              .pages = f->pages,
                              .page_columns = (f->positions + CMOE_KV_PAGE - 1) / CMOE_KV_PAGE};
    call.batch = &batch;
    call.ids = cmoe_view_1d(ids, CMOE_I64, n);
    call.cache = f->cache;
    call.capture = capture;
    call.replay = replay;
    if (!logits) call.rows = cmoe_view_1d(last, CMOE_I64, 1);
    const cmoe_view_mut out = logits ? cmoe_view_mut_2d(logits, CMOE_F32, n, f->vocab)
                                     : cmoe_view_mut_2d(f->row, CMOE_F32, 1, f->vocab);
    return report_status(
        cmoe_model_forward(f->session->stream, f->model, &call, out, &f->arena, &err), what, &err);
}
