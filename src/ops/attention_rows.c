/* SPDX-License-Identifier: MIT
 *
 * attention_rows.c - attention of whole sequences for training: checks and the table of kernels.
 */
#include "ops/attention_rows.h"

#include <inttypes.h>
#include <math.h>

#include "core/units.h"

#define ROW(isa)                                                                                  \
    void cmoei_attention_rows_forward_##isa(const cmoei_attention_rows_args *a, int64_t kv_head,  \
                                            int64_t token, int64_t token_end, void *room);        \
    void cmoei_attention_rows_backward_##isa(const cmoei_attention_rows_args *a, int64_t kv_head, \
                                             const int32_t *tokens, int64_t n, void *room)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);
/* A few thousand numbers: not worth a second one. */
void cmoei_attention_rows_sinks_ref(const cmoei_attention_rows_args *a, const cmoe_units *units,
                                    int64_t head, int64_t head_end, void *dsinks);

static const cmoei_attention_rows_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0},
     cmoei_attention_rows_forward_avx512,
     cmoei_attention_rows_backward_avx512,
     cmoei_attention_rows_sinks_ref},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0},
     cmoei_attention_rows_forward_avx2,
     cmoei_attention_rows_backward_avx2,
     cmoei_attention_rows_sinks_ref},
#endif
    {{"ref", 0, 0},
     cmoei_attention_rows_forward_ref,
     cmoei_attention_rows_backward_ref,
     cmoei_attention_rows_sinks_ref},
};
const cmoei_table cmoei_attention_rows_table = CMOEI_TABLE("attention_rows", kernels);

static const cmoe_attention_rows_options defaults = {.size = sizeof defaults};

void cmoe_attention_rows_options_default(cmoe_attention_rows_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- options and sizes ----------------------------------------------------------------------- */

enum { MOST_TOKENS = 1 << 30 }; /* so that sums of them fit int32 */

static cmoe_status make_plan(cmoei_attention_rows_plan *p, const cmoe_attention_rows_options *o,
                             int64_t tokens, int64_t head_dim, int64_t threads, cmoe_error *err)
{
    *p = (cmoei_attention_rows_plan){
        .o = defaults, .tokens = tokens, .head_dim = head_dim, .threads = threads};
    if (!o)
        return cmoei_fail(
            err, CMOE_ERR_ARG,
            "attention_rows: options is NULL, want a cmoe_attention_rows_options with "
            "heads and kv_heads");
    CMOEI_TRY(cmoei_options_read(&p->o, sizeof p->o, o, "cmoe_attention_rows_options", err));
    if (p->o.kv_heads < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "kv_heads = %" PRId64 ", want >= 1", p->o.kv_heads);
    if (p->o.heads < 1 || p->o.heads % p->o.kv_heads != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "heads = %" PRId64 ", want a multiple of %" PRId64 " (kv_heads)",
                          p->o.heads, p->o.kv_heads);
    if (!(p->o.scale - p->o.scale == 0))
        return cmoei_fail(err, CMOE_ERR_RANGE, "scale = %g, want a finite number",
                          (double)p->o.scale);
    if (p->o.reserved != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "reserved = %d, want 0", p->o.reserved);
    if (tokens < 0 || tokens > MOST_TOKENS)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "attention_rows: tokens = %" PRId64 ", want 0 <= tokens <= %d", tokens,
                          (int)MOST_TOKENS);
    if (head_dim < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "attention_rows: head_dim = %" PRId64 ", want >= 1",
                          head_dim);
    return CMOE_OK;
}

/* Head_dim is what the columns of q hold for each head. */
static cmoe_status plan_of(cmoei_attention_rows_plan *p, const cmoe_attention_rows_options *o,
                           const cmoe_view *q, int64_t threads, cmoe_error *err)
{
    const cmoei_want any = {
        .name = "q", .rank = 2, .dims = {-1, -1}, .dim_names = {"tokens", "heads * head_dim"}};
    CMOEI_TRY(cmoei_check_rows(q, &any, err));
    CMOEI_TRY(make_plan(p, o, q->dims[0], 1, threads, err));
    p->head_dim = q->dims[1] / p->o.heads;
    if (p->head_dim < 1 || q->dims[1] % p->o.heads != 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: %" PRId64 " columns, want a multiple of %" PRId64 " (heads), not 0",
                          cmoei_name(q->name, "q"), q->dims[1], p->o.heads);
    return CMOE_OK;
}

/* ---- views ----------------------------------------------------------------------------------- */

static cmoei_want rows_want(const cmoei_attention_rows_plan *p, const char *name, int64_t heads,
                            const char *cols)
{
    return (cmoei_want){.name = name,
                        .rank = 2,
                        .dims = {p->tokens, heads * p->head_dim},
                        .dim_names = {"tokens", cols}};
}

static cmoei_want query_want(const cmoei_attention_rows_plan *p, const char *name)
{
    return rows_want(p, name, p->o.heads, "heads * head_dim");
}
static cmoei_want key_want(const cmoei_attention_rows_plan *p, const char *name)
{
    return rows_want(p, name, p->o.kv_heads, "kv_heads * head_dim");
}
static cmoei_want lse_want(const cmoei_attention_rows_plan *p)
{
    return (cmoei_want){.name = "lse",
                        .rank = 2,
                        .dims = {p->tokens, p->o.heads},
                        .dim_names = {"tokens", "heads"}};
}
static cmoei_want sinks_want(const cmoei_attention_rows_plan *p, const char *name)
{
    return (cmoei_want){.name = name, .rank = 1, .dims = {p->o.heads}, .dim_names = {"heads"}};
}

static cmoe_status check_see(const cmoe_view *see, int64_t tokens, cmoe_error *err)
{
    const char *name = cmoei_name(see->name, "see");
    const cmoei_plane plane = cmoei_plane_of(see);
    for (int64_t t = 0; t < tokens; t++) {
        int32_t at[4];
        cmoei_attention_rows_see(&plane, t, at);
        for (int i = 0; i < 4; i++) {
            const int32_t least = i % 2 ? at[i - 1] : 0;
            if (at[i] < least || at[i] > tokens)
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "%s[%" PRId64 ", %d] = %d, want %d <= it <= %" PRId64 " (%s)",
                                  name, t, i, at[i], least, tokens,
                                  i % 2 ? "from the begin of the range to tokens" : "tokens");
        }
        if (at[0] < at[1] && at[2] < at[3] && at[2] < at[1])
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64
                              ", 2] = %d, want at least %d, the end of the first range",
                              name, t, at[2], at[1]);
    }
    return CMOE_OK;
}

/* What both directions read. */
static cmoe_status check_inputs(const cmoei_attention_rows_plan *p, const cmoe_view *k,
                                const cmoe_view *v, const cmoe_view *see, const cmoe_view *sinks,
                                cmoe_error *err)
{
    int64_t cols;
    if (!cmoei_mul(p->o.kv_heads, p->head_dim, &cols))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "kv_heads: rows exceed 2^63 - 1 values");
    const cmoei_want keys = key_want(p, "k"), values = key_want(p, "v");
    const cmoei_want sink = sinks_want(p, "sinks");
    const cmoei_want ranges = {.name = "see",
                               .dtypes = CMOEI_DTYPE(CMOE_I32),
                               .rank = 2,
                               .dims = {p->tokens, 4},
                               .dim_names = {"tokens", "two ranges"}};
    CMOEI_TRY(cmoei_check_rows(k, &keys, err));
    CMOEI_TRY(cmoei_check_rows(v, &values, err));
    CMOEI_TRY(cmoei_check_in(see, &ranges, err));
    if (p->tokens > 0 && see->strides[1] != 1)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: strides[1] = %" PRId64 ", want 1 (contiguous)",
                          cmoei_name(see->name, "see"), see->strides[1]);
    if (cmoei_given(sinks)) CMOEI_TRY(cmoei_check_rows(sinks, &sink, err));
    return check_see(see, p->tokens, err);
}

typedef struct named {
    cmoe_view view;
    const char *name;
} named;

/* Outputs apart from inputs, from each other and from scratch; those not given have no elements. */
static cmoe_status check_memory(const named *in, int ins, const named *out, int outs,
                                const cmoe_arena *scratch, cmoe_error *err)
{
    for (int i = 0; i < ins; i++)
        CMOEI_TRY(cmoei_check_scratch(scratch, &in[i].view, in[i].name, err));
    for (int i = 0; i < outs; i++) {
        cmoe_view_mut v = {0};
        memcpy(&v, &out[i].view, sizeof v);
        CMOEI_TRY(cmoei_check_scratch(scratch, &out[i].view, out[i].name, err));
        for (int n = 0; n < ins; n++)
            CMOEI_TRY(cmoei_check_apart(&v, out[i].name, &in[n].view, in[n].name, err));
        for (int n = 0; n < i; n++)
            CMOEI_TRY(cmoei_check_apart(&v, out[i].name, &out[n].view, out[n].name, err));
    }
    return CMOE_OK;
}

/* ---- public ---------------------------------------------------------------------------------- */

cmoe_status cmoe_attention_rows_bytes(cmoe_ctx *ctx, const cmoe_attention_rows_options *o,
                                      int64_t tokens, int64_t head_dim, int64_t *host,
                                      int64_t *device, cmoe_error *err)
{
    cmoei_attention_rows_plan p;
    if (!ctx) return cmoei_fail(err, CMOE_ERR_ARG, "attention_rows: ctx is NULL, want a context");
    CMOEI_TRY(make_plan(&p, o, tokens, head_dim, ctx->threads, err));
    cmoei_carver c = cmoei_carver_dry();
    cmoei_attention_rows_carve(&p, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "attention_rows", err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

static cmoei_attention_rows_args args_of(const cmoei_attention_rows_plan *p, const cmoe_view *q,
                                         const cmoe_view *k, const cmoe_view *v,
                                         const cmoe_view *see, const cmoe_view *sinks)
{
    return (cmoei_attention_rows_args){
        .q = cmoei_plane_of(q),
        .k = cmoei_plane_of(k),
        .v = cmoei_plane_of(v),
        .see = cmoei_plane_of(see),
        .sinks = cmoei_plane_of(sinks),
        .tokens = p->tokens,
        .head_dim = p->head_dim,
        .heads = p->o.heads,
        .ratio = p->o.heads / p->o.kv_heads,
        .scale = p->o.scale,
    };
}

cmoe_status cmoe_attention_rows(cmoe_stream *s, const cmoe_attention_rows_options *o, cmoe_view q,
                                cmoe_view k, cmoe_view v, cmoe_view see, cmoe_view sinks,
                                cmoe_view_mut out, cmoe_view_mut lse, cmoe_arena *scratch,
                                cmoe_error *err)
{
    cmoei_attention_rows_plan p;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(plan_of(&p, o, &q, s->ctx->threads, err));
    CMOEI_TRY(check_inputs(&p, &k, &v, &see, &sinks, err));
    const cmoei_want out_want = query_want(&p, "out"), sum_want = lse_want(&p);
    CMOEI_TRY(cmoei_check_rows_out(&out, &out_want, err));
    CMOEI_TRY(cmoei_check_rows_out(&lse, &sum_want, err));
    const named in[] = {{q, "q"}, {k, "k"}, {v, "v"}, {see, "see"}, {sinks, "sinks"}};
    const named outs[] = {{cmoe_view_of(out), "out"}, {cmoe_view_of(lse), "lse"}};
    CMOEI_TRY(check_memory(in, CMOEI_COUNT(in), outs, CMOEI_COUNT(outs), scratch, err));
    cmoei_carver c = cmoei_carver_open(scratch);
    const cmoei_attention_rows_room room = cmoei_attention_rows_carve(&p, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "attention_rows", err));
    if (p.tokens == 0) return CMOE_OK;
    cmoei_attention_rows_args a = args_of(&p, &q, &k, &v, &see, &sinks);
    a.out = cmoei_plane_mut(&out);
    a.lse = cmoei_plane_mut(&lse);
    cmoei_attention_rows_forward(s->ctx, &a, &room);
    return CMOE_OK;
}

cmoe_status cmoe_attention_rows_backward(cmoe_stream *s, const cmoe_attention_rows_options *o,
                                         cmoe_view q, cmoe_view k, cmoe_view v, cmoe_view see,
                                         cmoe_view sinks, cmoe_view out, cmoe_view lse,
                                         cmoe_view dout, const cmoe_units *units, cmoe_view_mut dq,
                                         cmoe_view_mut dk, cmoe_view_mut dv, cmoe_view_mut dsinks,
                                         cmoe_arena *scratch, cmoe_error *err)
{
    cmoei_attention_rows_plan p;
    cmoe_units all;
    int64_t one[2];
    const cmoe_view dsinks_in = cmoe_view_of(dsinks);
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(plan_of(&p, o, &q, s->ctx->threads, err));
    CMOEI_TRY(check_inputs(&p, &k, &v, &see, &sinks, err));
    CMOEI_TRY(cmoei_units_check(units, p.tokens, &all, one, err));
    const cmoei_want wants[] = {query_want(&p, "out"),   lse_want(&p),       query_want(&p, "dout"),
                                query_want(&p, "dq"),    key_want(&p, "dk"), key_want(&p, "dv"),
                                sinks_want(&p, "dsinks")};
    CMOEI_TRY(cmoei_check_rows(&out, &wants[0], err));
    CMOEI_TRY(cmoei_check_rows(&lse, &wants[1], err));
    CMOEI_TRY(cmoei_check_rows(&dout, &wants[2], err));
    CMOEI_TRY(cmoei_check_rows_out(&dq, &wants[3], err));
    CMOEI_TRY(cmoei_check_rows_out(&dk, &wants[4], err));
    CMOEI_TRY(cmoei_check_rows_out(&dv, &wants[5], err));
    if (cmoei_given(&dsinks_in)) {
        CMOEI_TRY(cmoei_check_rows_out(&dsinks, &wants[6], err));
        if (!cmoei_given(&sinks))
            return cmoei_fail(err, CMOE_ERR_ARG,
                              "%s is given without sinks, want both or no dsinks",
                              cmoei_name(dsinks.name, "dsinks"));
    }
    const named in[] = {{q, "q"},         {k, "k"},     {v, "v"},     {see, "see"},
                        {sinks, "sinks"}, {out, "out"}, {lse, "lse"}, {dout, "dout"}};
    const named outs[] = {{cmoe_view_of(dq), "dq"},
                          {cmoe_view_of(dk), "dk"},
                          {cmoe_view_of(dv), "dv"},
                          {dsinks_in, "dsinks"}};
    CMOEI_TRY(check_memory(in, CMOEI_COUNT(in), outs, CMOEI_COUNT(outs), scratch, err));
    cmoei_carver c = cmoei_carver_open(scratch);
    const cmoei_attention_rows_room room = cmoei_attention_rows_carve(&p, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "attention_rows", err));
    cmoei_attention_rows_args a = args_of(&p, &q, &k, &v, &see, &sinks);
    a.out = cmoei_plane_of(&out);
    a.lse = cmoei_plane_of(&lse);
    a.dout = cmoei_plane_of(&dout);
    a.dq = cmoei_plane_mut(&dq);
    a.dk = cmoei_plane_mut(&dk);
    a.dv = cmoei_plane_mut(&dv);
    const cmoei_plane sink_sums = cmoei_plane_mut(&dsinks);
    cmoei_attention_rows_backward(s->ctx, &a, &all, &sink_sums, &room);
    return CMOE_OK;
}
