/* SPDX-License-Identifier: MIT
 *
 * forward.c - the grouped gated MLP over rows that stand by expert.
 *
 * T tokens, R rows, H hidden, I inter.  One region of tasks, with barriers between four phases:
 *
 *     prepare   each token's x is brought into the kernel's form once and copied to the rows of
 *               its slots
 *     gate/up   a panel of w13 times the rows of its expert; the activation is applied to the tile
 *               while it is in L1, and h is written in the form that w2's kernel wants
 *     (int8)    h is quantised row by row, which needs the whole row
 *     down      a panel of w2 times the rows of h; bias, weight and rounding, and out
 *
 * Rows of an expert are taken in blocks that fit in L2; all panels of a block pass by before the
 * next.  Every output element is computed by one task from one row and one column: nothing depends
 * on the split.
 */
#include <inttypes.h>
#include <string.h>

#include "experts.h"

/* Where finished rows go. */
typedef struct sink {
    char *data;
    int32_t dtype;
    int64_t row_stride, col_stride; /* elements */
} sink;

typedef struct forward {
    const cmoe_experts *e;
    const cmoe_groups *g;
    cmoe_view x;
    bool x_grouped;
    cmoe_view weights; /* or none */
    sink out;
    cmoei_block *blocks;
    int64_t block_count;
    int64_t x_bytes, h_bytes; /* of a prepared row */
    char *x_rows;             /* [R] prepared rows of x */
    char *h_rows;             /* [R] prepared rows of h */
    float *x_scale, *h_scale; /* [R], int8 */
    float *h_full;            /* [R, h_full_stride] before quantising, int8 */
    int64_t h_full_stride;    /* I, rounded up so that rows begin on a cache line */
    struct task {
        float *row; /* [max(H, I)] */
        cmoei_panel_scratch panel13, panel2;
    } * tasks; /* [threads] */
} forward;

static bool int8(const cmoe_experts *e)
{
    return e->o.format == CMOE_I8;
}

/* ---- scratch --------------------------------------------------------------------------------- */

static void carve(forward *f, cmoei_carver *c, int64_t rows)
{
    const cmoe_experts *e = f->e;
    const int64_t threads = e->ctx->threads;
    f->x_bytes = cmoei_row_bytes(e->w13);
    f->h_bytes = cmoei_row_bytes(e->w2);
    f->blocks = cmoei_carve_array(c, cmoei_blocks_most(rows, e->count), sizeof *f->blocks);
    f->x_rows = cmoei_carve_array(c, rows, f->x_bytes);
    f->h_rows = cmoei_carve_array(c, rows, f->h_bytes);
    f->x_scale = cmoei_carve_array(c, rows, sizeof *f->x_scale);
    f->h_scale = cmoei_carve_array(c, rows, sizeof *f->h_scale);
    if (int8(e)) {
        f->h_full_stride = cmoei_round_up(e->inter, CMOEI_ALIGN / (int64_t)sizeof *f->h_full);
        f->h_full = cmoei_carve_array(c, rows, f->h_full_stride * (int64_t)sizeof *f->h_full);
    }
    f->tasks = cmoei_carve_array(c, threads, sizeof *f->tasks);
    for (int64_t i = 0; i < threads; i++) {
        const struct task t = {
            .row = cmoei_carve_array(c, CMOEI_MAX(e->hidden, e->inter), sizeof(float)),
            .panel13 = cmoei_panel_scratch_carve(c, e->w13),
            .panel2 = cmoei_panel_scratch_carve(c, e->w2),
        };
        if (f->tasks && !c->dry && t.row) f->tasks[i] = t;
    }
}

static float *h_full_row(const forward *f, int64_t row)
{
    return f->h_full + row * f->h_full_stride;
}

/* ---- prepare --------------------------------------------------------------------------------- */

static void load_row(const forward *f, int64_t i, float *row)
{
    cmoei_load_f32(row, cmoei_at(&f->x, i, 0), f->x.dtype, f->x.strides[1], f->e->hidden);
}

static void prepare_token(const forward *f, int64_t t, float *row)
{
    const cmoe_groups *g = f->g;
    int64_t first = -1;
    for (int64_t k = 0; k < g->topk; k++) {
        const int32_t r = g->row_of[t * g->topk + k];
        if (r < 0) continue;
        char *to = f->x_rows + r * f->x_bytes;
        if (first < 0) {
            first = r;
            load_row(f, t, row);
            cmoei_row_prepare(f->e->w13, row, to, &f->x_scale[r]);
        } else {
            memcpy(to, f->x_rows + first * f->x_bytes, (size_t)f->x_bytes);
            f->x_scale[r] = f->x_scale[first];
        }
    }
}

static void prepare(const forward *f, int32_t index, int32_t count)
{
    const cmoe_groups *g = f->g;
    float *row = f->tasks[index].row;
    int64_t begin, end;
    if (!f->x_grouped) {
        cmoei_split(g->tokens, index, count, &begin, &end);
        for (int64_t t = begin; t < end; t++)
            prepare_token(f, t, row);
        return;
    }
    cmoei_split(g->first[g->experts], index, count, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        if (g->slots[r] < 0) continue;
        load_row(f, r, row);
        cmoei_row_prepare(f->e->w13, row, f->x_rows + r * f->x_bytes, &f->x_scale[r]);
    }
}

/* ---- gate and up ----------------------------------------------------------------------------- */

/* n elements of h from column `at` on, into row r as w2's kernel wants them.  The last panel also
 * writes the zeros that pad the row. */
static void put_h(const forward *f, int64_t r, int64_t at, const float *h, int64_t n)
{
    const cmoe_matrix *w2 = f->e->w2;
    const int64_t inter = f->e->inter, padded = w2->steps * w2->kernel->step;
    char *row = f->h_rows + r * f->h_bytes;
    const int64_t zeros = at + n == inter ? padded - inter : 0;
    if (int8(f->e)) {
        memcpy(h_full_row(f, r) + at, h, (size_t)n * sizeof *h);
    } else if (w2->kernel->x_form == CMOEI_X_BF16) {
        uint16_t *to = (uint16_t *)(void *)row + at;
        for (int64_t i = 0; i < n; i++)
            to[i] = cmoei_f32_to_bf16(h[i]);
        memset(to + n, 0, (size_t)zeros * sizeof *to);
    } else {
        float *to = (float *)(void *)row + at;
        memcpy(to, h, (size_t)n * sizeof *h);
        memset(to + n, 0, (size_t)zeros * sizeof *to);
    }
}

static void gate_up_panel(void *arg, int32_t index, const cmoei_block *b, int64_t p)
{
    const forward *f = arg;
    const cmoe_matrix *m = f->e->w13;
    const cmoei_matmul_kernel *k = m->kernel;
    const cmoei_panel panel = cmoei_matrix_panel(m, b->expert, p, &f->tasks[index].panel13);
    _Alignas(64) float acc[CMOEI_TILE_ROWS * CMOEI_PANEL];
    float h[CMOEI_TILE_ROWS * CMOEI_PANEL];
    const int64_t at = p * m->width, n = CMOEI_MIN(m->width, f->e->inter - at);
    const int64_t rows = b->end - b->begin, tiles = cmoei_tiles(k, rows);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t begin, end;
        cmoei_tile_rows(rows, tiles, i, &begin, &end);
        const int64_t first = b->begin + begin;
        const int32_t count = (int32_t)(end - begin);
        cmoei_tile_run(m, panel.weights, i, tiles, f->x_rows + first * f->x_bytes, f->x_bytes,
                       count, acc);
        f->e->epilogue->activate(&(cmoei_epilogue){.acc = acc,
                                                   .rows = count,
                                                   .panel = k->panel,
                                                   .row_scale = f->x_scale + first,
                                                   .col_scale = panel.scale,
                                                   .bias = panel.bias,
                                                   .activation = &f->e->activation,
                                                   .out = h});
        for (int32_t r = 0; r < count; r++)
            put_h(f, first + r, at, h + r * m->width, n);
    }
}

static void quantize_h(const forward *f, cmoei_team *team)
{
    enum { GRAIN = 8 };
    const int64_t rows = f->g->first[f->g->experts];
    for (int64_t begin; (begin = cmoei_next(team, GRAIN)) < rows;) {
        for (int64_t r = begin; r < CMOEI_MIN(begin + GRAIN, rows); r++) {
            if (f->g->slots[r] >= 0)
                cmoei_row_prepare(f->e->w2, h_full_row(f, r), f->h_rows + r * f->h_bytes,
                                  &f->h_scale[r]);
        }
    }
}

/* ---- down ------------------------------------------------------------------------------------ */

static const float *weights_of(const forward *f, int64_t first, int32_t count, float *buffer)
{
    if (!cmoei_given(&f->weights)) return NULL;
    for (int32_t r = 0; r < count; r++) {
        const int64_t slot = f->g->slots[first + r], topk = f->g->topk;
        cmoei_load_f32(&buffer[r], cmoei_at(&f->weights, slot / topk, slot % topk),
                       f->weights.dtype, 1, 1);
    }
    return buffer;
}

static void down_panel(void *arg, int32_t index, const cmoei_block *b, int64_t p)
{
    const forward *f = arg;
    const cmoe_matrix *m = f->e->w2;
    const cmoei_matmul_kernel *k = m->kernel;
    const cmoei_panel panel = cmoei_matrix_panel(m, b->expert, p, &f->tasks[index].panel2);
    _Alignas(64) float acc[CMOEI_TILE_ROWS * CMOEI_PANEL];
    float y[CMOEI_TILE_ROWS * CMOEI_PANEL], weights[CMOEI_TILE_ROWS];
    const int64_t at = p * m->width, n = CMOEI_MIN(m->width, f->e->hidden - at);
    const int64_t rows = b->end - b->begin, tiles = cmoei_tiles(k, rows);
    const int64_t bytes = cmoe_dtype_bytes(f->out.dtype);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t begin, end;
        cmoei_tile_rows(rows, tiles, i, &begin, &end);
        const int64_t first = b->begin + begin;
        const int32_t count = (int32_t)(end - begin);
        cmoei_tile_run(m, panel.weights, i, tiles, f->h_rows + first * f->h_bytes, f->h_bytes,
                       count, acc);
        f->e->epilogue->finish(&(cmoei_epilogue){.acc = acc,
                                                 .rows = count,
                                                 .panel = k->panel,
                                                 .row_scale = f->h_scale + first,
                                                 .col_scale = panel.scale,
                                                 .bias = panel.bias,
                                                 .weight = weights_of(f, first, count, weights),
                                                 .round_out = f->e->o.row_dtype == CMOE_BF16,
                                                 .out = y});
        for (int32_t r = 0; r < count; r++) {
            char *to =
                f->out.data + ((first + r) * f->out.row_stride + at * f->out.col_stride) * bytes;
            cmoei_store_f32(to, f->out.dtype, f->out.col_stride, y + r * k->panel, n);
        }
    }
}

/* ---- the region ------------------------------------------------------------------------------ */

static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    forward *f = arg;
    prepare(f, index, count);
    cmoei_barrier(team);
    cmoei_panels_run(team, index, count, f->blocks, f->block_count, f->e->w13->panels,
                     gate_up_panel, f);
    cmoei_barrier(team);
    if (int8(f->e)) {
        quantize_h(f, team);
        cmoei_barrier(team);
    }
    cmoei_panels_run(team, index, count, f->blocks, f->block_count, f->e->w2->panels, down_panel,
                     f);
}

static void run(forward *f)
{
    f->block_count = cmoei_blocks_list(f->g, f->blocks);
    if (f->block_count > 0 && f->e->hidden > 0)
        cmoei_region(f->e->ctx, f->block_count * CMOEI_MAX(f->e->w13->panels, f->e->w2->panels),
                     region, f);
}

/* ---- rows alone ------------------------------------------------------------------------------ */

static cmoe_status check_experts(const cmoe_stream *s, const cmoe_experts *e, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!e)
        return cmoei_fail(err, CMOE_ERR_ARG, "experts is NULL, want those of cmoe_experts_create");
    if (e->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "experts and stream belong to different contexts, want one");
    return CMOE_OK;
}

cmoe_status cmoe_experts_rows_bytes(const cmoe_experts *e, int64_t tokens, int64_t rows,
                                    int64_t *host, int64_t *device, cmoe_error *err)
{
    if (!e || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "experts_rows_bytes: %s is NULL",
                          e ? "host" : "experts");
    if (tokens < 0 || rows < 0 || rows > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64 ", rows = %" PRId64 ", want 0 to 2^31 - 1", tokens,
                          rows);
    cmoei_carver c = cmoei_carver_dry();
    forward f = {.e = e};
    carve(&f, &c, rows);
    CMOEI_TRY(cmoei_carver_check(&c, "experts_rows", err));
    *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

static cmoe_status check_rows(const cmoe_experts *e, const cmoe_view *x, int32_t x_grouped,
                              const cmoe_groups *g, const cmoe_view *weights,
                              const cmoe_view_mut *rows, cmoe_error *err)
{
    CMOEI_TRY(cmoei_groups_check(g, e->count, err));
    const int64_t filled = g->first[g->experts];
    cmoei_want wx = {"x", CMOEI_FLOATS, 2, {g->tokens, e->hidden}, {"tokens", "hidden"}};
    if (x_grouped) {
        wx.dims[0] = -1;
        wx.dim_names[0] = "rows";
    }
    CMOEI_TRY(cmoei_check_in(x, &wx, err));
    if (x_grouped) CMOEI_TRY(cmoei_check_filled(x, "x", filled, err));
    const cmoei_want wr = {"rows", CMOEI_FLOATS, 2, {-1, e->hidden}, {"rows", "hidden"}};
    CMOEI_TRY(cmoei_check_out(rows, &wr, err));
    const cmoe_view out = cmoe_view_of(*rows);
    CMOEI_TRY(cmoei_check_filled(&out, "rows", filled, err));
    CMOEI_TRY(cmoei_check_apart(rows, "rows", x, "x", err));
    CMOEI_TRY(cmoei_groups_apart(rows, "rows", g, err));
    CMOEI_TRY(cmoei_matrix_apart(rows, "rows", e->w13, "w13", err));
    CMOEI_TRY(cmoei_matrix_apart(rows, "rows", e->w2, "w2", err));
    if (e->o.weight_at == CMOE_WEIGHT_ROW) {
        const cmoei_want ww = {
            "weights", CMOEI_FLOATS, 2, {g->tokens, g->topk}, {"tokens", "topk"}};
        CMOEI_TRY(cmoei_check_in(weights, &ww, err));
        CMOEI_TRY(cmoei_check_apart(rows, "rows", weights, "weights", err));
    } else if (cmoei_given(weights)) {
        return cmoei_fail(
            err, CMOE_ERR_ARG,
            "weights are given but weight_at is combine, want none here (cmoe_combine takes them)");
    }
    return CMOE_OK;
}

cmoe_status cmoe_experts_rows(cmoe_stream *s, const cmoe_experts *e, cmoe_view x, int32_t x_grouped,
                              const cmoe_groups *groups, cmoe_view weights, cmoe_view_mut rows,
                              cmoe_arena *scratch, cmoe_error *err)
{
    CMOEI_TRY(check_experts(s, e, err));
    CMOEI_TRY(check_rows(e, &x, x_grouped, groups, &weights, &rows, err));
    const cmoe_view out = cmoe_view_of(rows);
    CMOEI_TRY(cmoei_check_scratch(scratch, &x, "x", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &weights, "weights", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &out, "rows", err));
    CMOEI_TRY(cmoei_groups_check_scratch(groups, scratch, err));
    forward f = {.e = e,
                 .g = groups,
                 .x = x,
                 .x_grouped = x_grouped != 0,
                 .weights = weights,
                 .out = {rows.data, rows.dtype, rows.strides[0], rows.strides[1]}};
    cmoei_carver c = cmoei_carver_open(scratch);
    carve(&f, &c, groups->first[groups->experts]);
    CMOEI_TRY(cmoei_carver_check(&c, "experts_rows", err));
    run(&f);
    return CMOE_OK;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static cmoe_align_options align_options(const cmoe_experts *e)
{
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = e->count;
    o.first_expert = e->o.first_expert;
    return o;
}

/* Scratch of one chunk: groups, then the rows, then what cmoe_experts_rows carves. */
static cmoe_status chunk_bytes(const cmoe_experts *e, int64_t tokens, int64_t topk, int64_t *bytes,
                               cmoe_error *err)
{
    const cmoe_align_options o = align_options(e);
    int64_t align, rows, forward_bytes;
    CMOEI_TRY(cmoe_align_bytes(&o, tokens, topk, &align, NULL, err));
    CMOEI_TRY(cmoe_experts_rows_bytes(e, tokens, tokens * topk, &forward_bytes, NULL, err));
    if (!cmoei_mul(tokens * topk, e->hidden * cmoe_dtype_bytes(e->o.row_dtype), &rows) ||
        !cmoei_add(rows, CMOEI_ALIGN, &rows) || !cmoei_add(rows, align, &rows) ||
        !cmoei_add(rows, forward_bytes, bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "experts: scratch of %" PRId64 " x %" PRId64 " slots exceeds 2^63 - 1",
                          tokens, topk);
    return CMOE_OK;
}

cmoe_status cmoe_experts_bytes(const cmoe_experts *e, int64_t tokens, int64_t topk, int64_t *host,
                               int64_t *device, cmoe_error *err)
{
    int64_t slots;
    if (!e || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "experts_bytes: %s is NULL", e ? "host" : "experts");
    if (!cmoei_mul(tokens, topk, &slots) ||
        !cmoei_mul(CMOEI_MIN(tokens, e->o.chunk), topk, &slots) || slots > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64 ", topk = %" PRId64
                          ", want >= 0 and at most 2^31 - 1 slots a chunk",
                          tokens, topk);
    CMOEI_TRY(chunk_bytes(e, CMOEI_MIN(tokens, e->o.chunk), topk, host, err));
    if (device) *device = 0;
    return CMOE_OK;
}

static cmoe_status check_run(const cmoe_experts *e, const cmoe_view *x, const cmoe_view *ids,
                             const cmoe_view *weights, const cmoe_view *shared,
                             const cmoe_view_mut *out, cmoe_error *err)
{
    const cmoei_want wx = {"x", CMOEI_FLOATS, 2, {-1, e->hidden}, {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_in(x, &wx, err));
    const cmoei_want wi = {"topk_ids", CMOEI_INDEX, 2, {x->dims[0], -1}, {"tokens", "topk"}};
    CMOEI_TRY(cmoei_check_in(ids, &wi, err));
    const cmoei_want ww = {
        "topk_weights", CMOEI_FLOATS, 2, {x->dims[0], ids->dims[1]}, {"tokens", "topk"}};
    CMOEI_TRY(cmoei_check_in(weights, &ww, err));
    const cmoei_want wo = {"out", CMOEI_FLOATS, 2, {x->dims[0], e->hidden}, {"tokens", "hidden"}};
    CMOEI_TRY(cmoei_check_out(out, &wo, err));
    if (cmoei_given(shared)) {
        const cmoei_want ws = {
            "shared", CMOEI_FLOATS, 2, {x->dims[0], e->hidden}, {"tokens", "hidden"}};
        CMOEI_TRY(cmoei_check_in(shared, &ws, err));
        CMOEI_TRY(cmoei_check_apart(out, "out", shared, "shared", err));
    }
    CMOEI_TRY(cmoei_matrix_apart(out, "out", e->w13, "w13", err));
    CMOEI_TRY(cmoei_matrix_apart(out, "out", e->w2, "w2", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", x, "x", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", ids, "topk_ids", err));
    return cmoei_check_apart(out, "out", weights, "topk_weights", err);
}

static cmoe_status run_chunk(cmoe_stream *s, const cmoe_experts *e, cmoe_view x, cmoe_view ids,
                             cmoe_view weights, cmoe_view shared, cmoe_view_mut out,
                             cmoe_arena scratch, cmoe_error *err)
{
    const cmoe_align_options ao = align_options(e);
    cmoe_groups groups;
    CMOEI_TRY(cmoe_align(s, &ao, ids, &groups, &scratch, err));
    const int64_t filled = groups.first[groups.experts];
    cmoei_carver c = cmoei_carver_open(&scratch);
    void *memory = cmoei_carve_array(&c, filled, e->hidden * cmoe_dtype_bytes(e->o.row_dtype));
    CMOEI_TRY(cmoei_carver_check(&c, "experts", err));
    scratch.used = c.used;
    const cmoe_view_mut rows = cmoe_view_mut_2d(memory, e->o.row_dtype, filled, e->hidden);
    const bool at_row = e->o.weight_at == CMOE_WEIGHT_ROW;
    CMOEI_TRY(cmoe_experts_rows(s, e, x, 0, &groups, at_row ? weights : cmoe_view_none(), rows,
                                &scratch, err));
    return cmoe_combine(s, NULL, cmoe_view_of(rows), at_row ? cmoe_view_none() : weights, &groups,
                        shared, out, &scratch, err);
}

cmoe_status cmoe_experts_run(cmoe_stream *s, const cmoe_experts *e, cmoe_view x, cmoe_view ids,
                             cmoe_view weights, cmoe_view shared, cmoe_view_mut out,
                             cmoe_arena *scratch, cmoe_error *err)
{
    CMOEI_TRY(check_experts(s, e, err));
    CMOEI_TRY(check_run(e, &x, &ids, &weights, &shared, &out, err));
    const cmoe_view o = cmoe_view_of(out);
    CMOEI_TRY(cmoei_check_scratch(scratch, &x, "x", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &ids, "topk_ids", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &weights, "topk_weights", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &shared, "shared", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &o, "out", err));
    const int64_t tokens = x.dims[0], chunk = e->o.chunk;
    int64_t need;
    CMOEI_TRY(cmoe_experts_bytes(e, tokens, ids.dims[1], &need, NULL, err));
    if (cmoei_arena_left(scratch) < need)
        return cmoei_fail(err, CMOE_ERR_MEMORY,
                          "experts: arena has %" PRId64 " bytes left, want %" PRId64
                          " (ask cmoe_experts_bytes)",
                          cmoei_arena_left(scratch), need);
    for (int64_t t = 0; t < tokens; t += chunk) {
        const int64_t n = CMOEI_MIN(chunk, tokens - t);
        CMOEI_TRY(run_chunk(s, e, cmoei_rows_of(x, t, n), cmoei_rows_of(ids, t, n),
                            cmoei_rows_of(weights, t, n), cmoei_rows_of(shared, t, n),
                            cmoei_rows_of_mut(out, t, n), *scratch, err));
    }
    return CMOE_OK;
}
