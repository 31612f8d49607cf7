/* SPDX-License-Identifier: MIT
 *
 * attention.c - grouped-query attention: checks, scratch and the table of kernels.
 */
#include "cmoe/attention.h"

#include <inttypes.h>

#include "ops/attention_plan.h"
#include "ops/ops.h"

#define ROW(isa)                                                    \
    void cmoei_attention_part_##isa(const cmoei_attention_args *a); \
    void cmoei_attention_merge_##isa(const cmoei_attention_parts *parts)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_attention_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_attention_part_avx512, cmoei_attention_merge_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_attention_part_avx2, cmoei_attention_merge_avx2},
#endif
    {{"ref", 0, 0}, cmoei_attention_part_ref, cmoei_attention_merge_ref},
};
const cmoei_table cmoei_attention_table = CMOEI_TABLE("attention", kernels);

static const cmoe_attention_options defaults = {
    .size = sizeof defaults,
    .mask = CMOE_MASK_CAUSAL,
};

void cmoe_attention_options_default(cmoe_attention_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static cmoe_status check_options(const cmoe_attention_options *o, const cmoe_kv *kv,
                                 cmoe_error *err)
{
    if (o->heads < 1 || o->heads % kv->heads != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "heads = %" PRId64 ", want a multiple of %" PRId64 " (kv.heads)",
                          o->heads, kv->heads);
    if (!(o->scale - o->scale == 0))
        return cmoei_fail(err, CMOE_ERR_RANGE, "scale = %g, want a finite number",
                          (double)o->scale);
    if (o->mask < CMOE_MASK_FULL)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "mask = %d, want 0 (causal), -1 (full) or the size of a block > 0",
                          o->mask);
    if (o->window < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "window = %" PRId64 ", want >= 0 (0: none)",
                          o->window);
    return CMOE_OK;
}

/* All that the scratch depends on. */
static cmoe_status make_plan(cmoei_attention_plan *p, const cmoe_attention_options *o,
                             const cmoe_kv *kv, const cmoe_batch *batch, int64_t threads,
                             cmoe_error *err)
{
    p->o = defaults;
    if (!o)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "attention: options is NULL, want a cmoe_attention_options with heads");
    CMOEI_TRY(cmoei_options_read(&p->o, sizeof p->o, o, "cmoe_attention_options", err));
    CMOEI_TRY(cmoei_kv_read(&p->kv, kv, err));
    CMOEI_TRY(cmoei_batch_read(&p->batch, batch, err));
    CMOEI_TRY(check_options(&p->o, &p->kv, err));
    return cmoei_attention_plan_make(p, threads, err);
}

/* Pages that some token sees; with a window, earlier ones may be gone. */
static cmoe_status check_pages(const cmoei_attention_plan *p, cmoe_error *err)
{
    const cmoe_batch *b = &p->batch;
    for (int64_t i = 0; i < b->sequences; i++) {
        int64_t lo, hi;
        if (cmoei_batch_count(b, i) == 0) continue;
        cmoei_attention_visible(p, i, b->start[i], &lo, &hi);
        CMOEI_TRY(cmoei_batch_check_pages(b, &p->kv, i, lo / CMOE_KV_PAGE,
                                          cmoei_ceil_div(cmoei_batch_end(b, i), CMOE_KV_PAGE),
                                          err));
    }
    return CMOE_OK;
}

static cmoe_status check_views(const cmoei_attention_plan *p, const cmoe_view *q,
                               const cmoe_view *sinks, const cmoe_view_mut *out, cmoe_error *err)
{
    const int64_t tokens = cmoei_batch_tokens(&p->batch), heads = p->o.heads;
    int64_t q_cols, out_cols;
    if (!cmoei_mul(heads, p->kv.key_dim, &q_cols) || !cmoei_mul(heads, p->kv.value_dim, &out_cols))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "heads = %" PRId64 ": rows exceed 2^63 - 1 values",
                          heads);
    CMOEI_TRY(cmoei_check_matrix(q, "q", tokens, q_cols, "heads * kv.key_dim", err));
    if (cmoei_given(sinks)) {
        const cmoei_want want = {.name = "sinks",
                                 .dtypes = CMOEI_FLOATS,
                                 .rank = 1,
                                 .dims = {heads},
                                 .dim_names = {"heads"}};
        CMOEI_TRY(cmoei_check_in(sinks, &want, err));
    }
    return cmoei_check_matrix_out(out, "out", tokens, out_cols, "heads * kv.value_dim", err);
}

static cmoe_status check_memory(const cmoei_attention_plan *p, const cmoe_view *q,
                                const cmoe_view *sinks, const cmoe_view_mut *out,
                                const cmoe_arena *scratch, cmoe_error *err)
{
    const cmoe_view cache = cmoe_view_of(cmoei_kv_memory(&p->kv)), o = cmoe_view_of(*out);
    CMOEI_TRY(cmoei_check_apart(out, "out", q, "q", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", &cache, "kv.base", err));
    CMOEI_TRY(cmoei_batch_check_apart(&p->batch, out, "out", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, q, "q", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &o, "out", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &cache, "kv.base", err));
    if (!cmoei_given(sinks)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_apart(out, "out", sinks, "sinks", err));
    return cmoei_check_scratch(scratch, sinks, "sinks", err);
}

/* ---- public ---------------------------------------------------------------------------------- */

cmoe_status cmoe_attention_bytes(cmoe_ctx *ctx, const cmoe_attention_options *o, const cmoe_kv *kv,
                                 const cmoe_batch *batch, int64_t *host, int64_t *device,
                                 cmoe_error *err)
{
    cmoei_attention_plan p;
    if (!ctx) return cmoei_fail(err, CMOE_ERR_ARG, "attention: ctx is NULL, want a context");
    CMOEI_TRY(make_plan(&p, o, kv, batch, ctx->threads, err));
    cmoei_carver c = cmoei_carver_dry();
    cmoei_attention_carve(&p, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "attention", err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

cmoe_status cmoe_attention(cmoe_stream *s, const cmoe_attention_options *o, cmoe_view q,
                           const cmoe_kv *kv, const cmoe_batch *batch, cmoe_view sinks,
                           cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err)
{
    cmoei_attention_plan p;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(make_plan(&p, o, kv, batch, s->ctx->threads, err));
    CMOEI_TRY(cmoei_kv_check_base(&p.kv, err));
    CMOEI_TRY(check_views(&p, &q, &sinks, &out, err));
    CMOEI_TRY(check_pages(&p, err));
    CMOEI_TRY(check_memory(&p, &q, &sinks, &out, scratch, err));
    cmoei_carver c = cmoei_carver_open(scratch);
    const cmoei_attention_room room = cmoei_attention_carve(&p, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "attention", err));
    if (cmoei_batch_tokens(&p.batch) == 0) return CMOE_OK;
    const cmoei_plane q_plane = cmoei_plane_of(&q), sink_plane = cmoei_plane_of(&sinks);
    const cmoei_plane out_plane = cmoei_plane_mut(&out);
    cmoei_attention_run(s->ctx, &p, &room, &q_plane, &sink_plane, &out_plane);
    return CMOE_OK;
}
