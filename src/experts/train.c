/* SPDX-License-Identifier: MIT
 *
 * train.c - the grouped gated MLP on weights that change: checks and forward.
 *
 *     gate_up [R, C] = x of the row's token . w13^T      kept
 *     h       [R, I] = act(gate) * up                    scratch; computed again by backward
 *     rows    [R, H] = h . w2^T                          scratch
 *     out     [T, H] = combine
 *
 * Gate and up are kept rather than h: h follows from them with an exponential a element, and its
 * gradient needs them anyway.  Every step has the bits of its counterpart in forward.c: the products are
 * chains over the inputs in both, and the activation is the same kernel.
 */
#include "train.h"

#include <inttypes.h>
#include <string.h>

#include "core/units.h"

/* ---- checks ---------------------------------------------------------------------------------- */

cmoe_status cmoei_train_check_in(const cmoe_view *v, const char *name, int64_t n,
                                 const char *n_name, int64_t m, const char *m_name, cmoe_error *err)
{
    const cmoei_want want = {name, CMOEI_DTYPE(CMOE_F32), 2, {n, m}, {n_name, m_name}};
    return cmoei_check_rows(v, &want, err);
}

cmoe_status cmoei_train_check_out(const cmoe_view_mut *v, const char *name, int64_t n,
                                  const char *n_name, int64_t m, const char *m_name,
                                  cmoe_error *err)
{
    const cmoei_want want = {name, CMOEI_DTYPE(CMOE_F32), 2, {n, m}, {n_name, m_name}};
    return cmoei_check_rows_out(v, &want, err);
}

cmoe_status cmoei_train_check_arenas(const cmoe_arena *keep, const cmoe_arena *scratch,
                                     cmoe_error *err)
{
    const cmoe_view kept = cmoe_view_1d(keep ? (const char *)keep->base + keep->used : NULL,
                                        CMOE_U8, cmoei_arena_left(keep));
    return cmoei_arena_left(keep) > 0 ? cmoei_check_scratch(scratch, &kept, "keep", err) : CMOE_OK;
}

cmoe_status cmoei_train_check_left(const cmoe_arena *arena, int64_t need, const char *what,
                                   const char *ask, cmoe_error *err)
{
    if (cmoei_arena_left(arena) >= need) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_MEMORY,
                      "%s: arena has %" PRId64 " bytes left, want %" PRId64 " (ask %s)", what,
                      cmoei_arena_left(arena), need, ask);
}

static cmoe_status describe(const cmoe_trainable *t, const char *name, const cmoe_ctx *ctx,
                            cmoe_trainable_info *info, cmoe_error *err)
{
    if (!t) return cmoei_fail(err, CMOE_ERR_ARG, "experts: %s is NULL, want a trainable", name);
    if (t->ctx != ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "experts: %s belongs to another context, want the stream's", name);
    *info = (cmoe_trainable_info){.size = sizeof *info};
    return cmoe_trainable_describe(t, info, err);
}

static cmoe_status check_pair(cmoei_experts_train *e, const cmoe_trainable_info *up,
                              const cmoe_trainable_info *down, cmoe_error *err)
{
    if (!e->o.ungated && up->outputs % 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "w13: %" PRId64 " outputs, want an even number (gate and up)",
                          up->outputs);
    e->experts = up->experts;
    e->hidden = up->inputs;
    e->columns = up->outputs;
    e->inter = e->o.ungated ? up->outputs : up->outputs / 2;
    if (down->experts != e->experts || down->outputs != e->hidden || down->inputs != e->inter)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "w2: [%" PRId64 ", %" PRId64 ", %" PRId64 "], want [%" PRId64 ", %" PRId64
                          ", %" PRId64 "] (experts, hidden, inter of w13)",
                          down->experts, down->outputs, down->inputs, e->experts, e->hidden,
                          e->inter);
    if (e->o.first_expert > INT64_MAX - e->experts)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "first_expert = %" PRId64 ", want one that fits %" PRId64 " experts",
                          e->o.first_expert, e->experts);
    return CMOE_OK;
}

cmoe_status cmoei_experts_train_open(cmoei_experts_train *e, const cmoe_ctx *ctx,
                                     const cmoe_experts_options *options,
                                     const cmoe_experts_weights *w, cmoe_error *err)
{
    cmoe_trainable_info up, down;
    *e = (cmoei_experts_train){0};
    CMOEI_TRY(cmoei_experts_read_options(&e->o, options, err));
    if (!w) return cmoei_fail(err, CMOE_ERR_ARG, "experts: weights is NULL, want w13 and w2");
    e->w = *w;
    CMOEI_TRY(describe(w->w13, "w13", ctx, &up, err));
    CMOEI_TRY(describe(w->w2, "w2", ctx, &down, err));
    CMOEI_TRY(check_pair(e, &up, &down, err));
    const cmoe_experts_options *o = &e->o;
    const int64_t far = o->interleaved ? 1 : e->inter;
    e->step = !o->ungated && o->interleaved ? 2 : 1;
    e->gate_at = !o->ungated && o->up_first ? far : 0;
    e->up_at = !o->ungated && o->up_first ? 0 : far;
    e->activation = (cmoei_activation){.kind = o->activation,
                                       .gated = !o->ungated,
                                       .round_out = down.format == CMOE_BF16,
                                       .limit = o->swiglu_limit,
                                       .alpha = o->alpha};
    return CMOE_OK;
}

static cmoe_align_options align_options(const cmoei_experts_train *e)
{
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = e->experts;
    o.first_expert = e->o.first_expert;
    return o;
}

/* ---- scratch --------------------------------------------------------------------------------- */

static int64_t floats(int64_t n)
{
    return n * (int64_t)sizeof(float);
}

/* The larger of what the two products want. */
static cmoe_status products_bytes(const cmoei_experts_train *e, int64_t tokens, int64_t rows,
                                  int64_t *bytes, cmoe_error *err)
{
    int64_t up, down;
    CMOEI_TRY(cmoe_trainable_bytes(e->w.w13, tokens, rows, &up, NULL, err));
    CMOEI_TRY(cmoe_trainable_bytes(e->w.w2, tokens, rows, &down, NULL, err));
    *bytes = CMOEI_MAX(up, down);
    return CMOE_OK;
}

/* Forward takes h and rows (and what is kept, when nobody keeps it); backward takes coefficients,
 * gradients of h, of gate and up, and of rows. */
cmoe_status cmoei_experts_train_bytes(const cmoei_experts_train *e, int64_t tokens, int64_t topk,
                                      int64_t *keep, int64_t *host, cmoe_error *err)
{
    const cmoe_align_options o = align_options(e);
    int64_t slots, align, products;
    if (tokens < 0 || topk < 0 || !cmoei_mul(tokens, topk, &slots) || slots > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64 ", topk = %" PRId64
                          ", want >= 0 and at most 2^31 - 1 slots",
                          tokens, topk);
    CMOEI_TRY(cmoe_align_bytes(&o, tokens, topk, &align, NULL, err));
    CMOEI_TRY(products_bytes(e, tokens, slots, &products, err));
    cmoei_carver c = cmoei_carver_dry();
    cmoei_carve(&c, (int64_t)sizeof(cmoei_experts_saved));
    cmoei_carve(&c, align);
    cmoei_carve_array(&c, slots, floats(e->columns));
    CMOEI_TRY(cmoei_carver_check(&c, "experts_train", err));
    *keep = cmoei_carver_bytes(&c);
    cmoei_carve_array(&c, slots, floats(e->inter));
    cmoei_carve_array(&c, slots, floats(e->hidden));
    cmoei_carve_array(&c, slots, floats(1));
    cmoei_carve(&c, products);
    CMOEI_TRY(cmoei_carver_check(&c, "experts_train", err));
    *host = cmoei_carver_bytes(&c);
    return CMOE_OK;
}

cmoe_status cmoe_experts_train_bytes(const cmoe_experts_options *o, const cmoe_experts_weights *w,
                                     int64_t tokens, int64_t topk, int64_t *keep, int64_t *host,
                                     int64_t *device, cmoe_error *err)
{
    cmoei_experts_train e;
    int64_t kept, scratch;
    CMOEI_TRY(cmoei_experts_train_open(&e, w && w->w13 ? w->w13->ctx : NULL, o, w, err));
    CMOEI_TRY(cmoei_experts_train_bytes(&e, tokens, topk, &kept, &scratch, err));
    if (keep) *keep = kept;
    if (host) *host = scratch;
    if (device) *device = 0;
    return CMOE_OK;
}

/* ---- activation ------------------------------------------------------------------------------ */

typedef struct act_job {
    const cmoei_experts_train *e;
    const cmoei_epilogue_kernel *kernel;
    const float *gate_up; /* [R, C] */
    float *h;             /* [R, I] */
    int64_t rows;
} act_job;

enum { TILES = 16 }; /* tiles of one row that the kernel is given at a time */

/* n elements, `step` apart, of which each tile takes `width`; zeros behind them. */
static void spread(const float *from, int64_t step, int64_t n, int64_t width, float *tiles)
{
    for (int64_t i = 0; i < n; i += width) {
        const int64_t count = CMOEI_MIN(width, n - i);
        float *to = tiles + i / width * CMOEI_PANEL;
        if (step == 1) memcpy(to, from + i, (size_t)count * sizeof *to);
        for (int64_t k = 0; k < count && step != 1; k++)
            to[k] = from[(i + k) * step];
        memset(to + count, 0, (size_t)(width - count) * sizeof *to);
    }
}

/* Columns [at, at + n) of h from one row, n at most what TILES tiles hold.  The kernel wants gate and
 * up of a tile side by side, as panels of packed weights have them. */
static void activate(const act_job *j, const float *row, int64_t at, int64_t n, float *h)
{
    const cmoei_experts_train *e = j->e;
    const int64_t half = CMOEI_PANEL / 2, width = e->activation.gated ? half : CMOEI_PANEL;
    _Alignas(64) float acc[TILES * CMOEI_PANEL], out[TILES * CMOEI_PANEL];
    spread(row + e->gate_at + at * e->step, e->step, n, width, acc);
    if (e->activation.gated) spread(row + e->up_at + at * e->step, e->step, n, width, acc + half);
    j->kernel->activate(&(cmoei_epilogue){.acc = acc,
                                          .rows = (int32_t)cmoei_ceil_div(n, width),
                                          .panel = CMOEI_PANEL,
                                          .activation = &e->activation,
                                          .out = out});
    memcpy(h + at, out, (size_t)n * sizeof *h);
}

static void act_rows(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const act_job *j = arg;
    const int64_t inter = j->e->inter, most = TILES * CMOEI_PANEL / 2;
    int64_t begin, end;
    (void)team;
    cmoei_split(j->rows, index, count, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        for (int64_t at = 0; at < inter; at += most)
            activate(j, j->gate_up + r * j->e->columns, at, CMOEI_MIN(most, inter - at),
                     j->h + r * inter);
    }
}

/* ---- forward --------------------------------------------------------------------------------- */

/* The saved values with their groups, and room for gate and up, from `arena`. */
static cmoe_status keep_open(cmoe_stream *s, const cmoei_experts_train *e, cmoe_view ids,
                             cmoe_arena *arena, cmoei_experts_saved **out, cmoe_error *err)
{
    const cmoe_align_options o = align_options(e);
    cmoei_carver c = cmoei_carver_open(arena);
    cmoei_experts_saved *k = cmoei_carve(&c, (int64_t)sizeof *k);
    CMOEI_TRY(cmoei_carver_check(&c, "experts_train", err));
    arena->used = c.used;
    *k = (cmoei_experts_saved){.head = {.kind = CMOEI_SAVED_EXPERTS, .ctx = s->ctx}, .e = *e};
    CMOEI_TRY(cmoe_align(s, &o, ids, &k->groups, arena, err));
    c = cmoei_carver_open(arena);
    k->gate_up = cmoei_carve_array(&c, k->groups.first[e->experts], floats(e->columns));
    CMOEI_TRY(cmoei_carver_check(&c, "experts_train", err));
    arena->used = c.used;
    k->head.bytes = (char *)arena->base + arena->used - (char *)k;
    *out = k;
    return CMOE_OK;
}

cmoe_status cmoei_experts_train_run(cmoe_stream *s, const cmoei_experts_train *e,
                                    const cmoei_experts_forward *f, cmoei_experts_saved **saved,
                                    cmoe_arena *keep, cmoe_arena scratch, cmoe_error *err)
{
    cmoei_experts_saved *k;
    CMOEI_TRY(keep_open(s, e, f->ids, saved ? keep : &scratch, &k, err));
    const int64_t rows = k->groups.first[e->experts];
    cmoei_carver c = cmoei_carver_open(&scratch);
    float *h = cmoei_carve_array(&c, rows, floats(e->inter));
    float *y = cmoei_carve_array(&c, rows, floats(e->hidden));
    CMOEI_TRY(cmoei_carver_check(&c, "experts_train", err));
    scratch.used = c.used;
    CMOEI_TRY(cmoe_trainable_forward(s, e->w.w13, f->x, 0, &k->groups,
                                     cmoe_view_mut_2d(k->gate_up, CMOE_F32, rows, e->columns),
                                     &scratch, err));
    act_job job = {e, cmoei_table_pick(&cmoei_epilogue_table, s->ctx->features, 0), k->gate_up, h,
                   rows};
    cmoei_region(s->ctx, rows, act_rows, &job);
    const cmoe_view_mut out_rows = cmoe_view_mut_2d(y, CMOE_F32, rows, e->hidden);
    CMOEI_TRY(cmoe_trainable_forward(s, e->w.w2, cmoe_view_2d(h, CMOE_F32, rows, e->inter), 1,
                                     &k->groups, out_rows, &scratch, err));
    if (saved) *saved = k;
    return cmoe_combine(s, f->combine, cmoe_view_of(out_rows), f->weights, &k->groups, f->shared,
                        f->out, &scratch, err);
}

static cmoe_status check_forward(const cmoei_experts_train *e, const cmoei_experts_forward *f,
                                 cmoe_error *err)
{
    const int64_t hidden = e->hidden;
    CMOEI_TRY(cmoei_train_check_in(&f->x, "x", -1, "tokens", hidden, "hidden", err));
    const int64_t tokens = f->x.dims[0];
    const cmoei_want ids = {"topk_ids", CMOEI_INDEX, 2, {tokens, -1}, {"tokens", "topk"}};
    CMOEI_TRY(cmoei_check_in(&f->ids, &ids, err));
    CMOEI_TRY(cmoei_train_check_in(&f->weights, "topk_weights", tokens, "tokens", f->ids.dims[1],
                                   "topk", err));
    CMOEI_TRY(cmoei_train_check_out(&f->out, "out", tokens, "tokens", hidden, "hidden", err));
    if (cmoei_given(&f->shared)) {
        CMOEI_TRY(
            cmoei_train_check_in(&f->shared, "shared", tokens, "tokens", hidden, "hidden", err));
        CMOEI_TRY(cmoei_check_apart(&f->out, "out", &f->shared, "shared", err));
    }
    CMOEI_TRY(cmoei_trainable_apart(&f->out, "out", e->w.w13, err));
    CMOEI_TRY(cmoei_trainable_apart(&f->out, "out", e->w.w2, err));
    CMOEI_TRY(cmoei_check_apart(&f->out, "out", &f->x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&f->out, "out", &f->ids, "topk_ids", err));
    return cmoei_check_apart(&f->out, "out", &f->weights, "topk_weights", err);
}

/* Nothing that is read or written lies in what may be carved. */
static cmoe_status check_arena(const cmoei_experts_forward *f, const cmoe_arena *arena,
                               cmoe_error *err)
{
    const cmoe_view out = cmoe_view_of(f->out);
    CMOEI_TRY(cmoei_check_scratch(arena, &f->x, "x", err));
    CMOEI_TRY(cmoei_check_scratch(arena, &f->ids, "topk_ids", err));
    CMOEI_TRY(cmoei_check_scratch(arena, &f->weights, "topk_weights", err));
    CMOEI_TRY(cmoei_check_scratch(arena, &f->shared, "shared", err));
    return cmoei_check_scratch(arena, &out, "out", err);
}

cmoe_status cmoe_experts_train(cmoe_stream *s, const cmoe_experts_options *o,
                               const cmoe_experts_weights *w, cmoe_view x, cmoe_view ids,
                               cmoe_view weights, cmoe_view shared, cmoe_view_mut out,
                               cmoe_saved **saved, cmoe_arena *keep, cmoe_arena *scratch,
                               cmoe_error *err)
{
    static const char *const ask = "cmoe_experts_train_bytes";
    const cmoei_experts_forward f = {
        .x = x, .ids = ids, .weights = weights, .shared = shared, .out = out};
    cmoei_experts_train e;
    cmoei_experts_saved *kept;
    int64_t need_keep, need;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_experts_train_open(&e, s->ctx, o, w, err));
    CMOEI_TRY(check_forward(&e, &f, err));
    CMOEI_TRY(check_arena(&f, scratch, err));
    CMOEI_TRY(cmoei_experts_train_bytes(&e, x.dims[0], ids.dims[1], &need_keep, &need, err));
    CMOEI_TRY(cmoei_train_check_left(scratch, need, "experts_train: scratch", ask, err));
    if (!saved) return cmoei_experts_train_run(s, &e, &f, NULL, NULL, *scratch, err);
    CMOEI_TRY(check_arena(&f, keep, err));
    CMOEI_TRY(cmoei_train_check_left(keep, need_keep, "experts_train: keep", ask, err));
    CMOEI_TRY(cmoei_train_check_arenas(keep, scratch, err));
    cmoe_arena room = *keep;
    CMOEI_TRY(cmoei_experts_train_run(s, &e, &f, &kept, &room, *scratch, err));
    keep->used = room.used;
    *saved = &kept->head;
    return CMOE_OK;
}
