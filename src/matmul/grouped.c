/* SPDX-License-Identifier: MIT
 *
 * grouped.c - cmoe_grouped_matmul: rows of any tensor times the matrix of their expert.
 *
 * The plain form of what experts/forward.c does twice: prepare the rows, then panels times blocks.
 */
#include <inttypes.h>

#include "epilogue.h"
#include "matmul.h"

static const cmoe_grouped_matmul_options defaults = {.size = sizeof defaults};

void cmoe_grouped_matmul_options_default(cmoe_grouped_matmul_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

typedef struct grouped {
    cmoe_grouped_matmul_options o;
    const cmoe_matrix *m;
    const cmoei_epilogue_kernel *epilogue;
    const cmoe_groups *g;
    cmoe_view x, weights;
    cmoe_view_mut out;
    cmoei_block *blocks;
    int64_t block_count, row_bytes;
    char *rows;   /* [R] prepared */
    float *scale; /* [R], int8 */
    struct task {
        float *row; /* [K] */
        cmoei_panel_scratch panel;
    } * tasks; /* [threads] */
} grouped;

static void carve(grouped *j, cmoei_carver *c, int64_t rows)
{
    const int64_t threads = j->m->ctx->threads;
    j->row_bytes = cmoei_row_bytes(j->m);
    j->blocks = cmoei_carve_array(c, cmoei_blocks_most(rows, j->m->count), sizeof *j->blocks);
    j->rows = cmoei_carve_array(c, rows, j->row_bytes);
    j->scale = cmoei_carve_array(c, rows, sizeof *j->scale);
    j->tasks = cmoei_carve_array(c, threads, sizeof *j->tasks);
    for (int64_t i = 0; i < threads; i++) {
        const struct task t = {.row = cmoei_carve_array(c, j->m->inputs, sizeof(float)),
                               .panel = cmoei_panel_scratch_carve(c, j->m)};
        if (t.row && j->tasks) j->tasks[i] = t;
    }
}

static void prepare(const grouped *j, int32_t index, int32_t count)
{
    const cmoe_groups *g = j->g;
    int64_t begin, end;
    cmoei_split(g->first[g->experts], index, count, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        if (g->slots[r] < 0) continue;
        const int64_t i = j->o.x_grouped ? r : g->slots[r] / g->topk;
        float *row = j->tasks[index].row;
        cmoei_load_f32(row, cmoei_at(&j->x, i, 0), j->x.dtype, j->x.strides[1], j->m->inputs);
        cmoei_row_prepare(j->m, row, j->rows + r * j->row_bytes, &j->scale[r]);
    }
}

static void run_panel(void *arg, int32_t index, const cmoei_block *b, int64_t p)
{
    const grouped *j = arg;
    const cmoe_matrix *m = j->m;
    const cmoei_matmul_kernel *k = m->kernel;
    const cmoei_panel panel = cmoei_matrix_panel(m, b->expert, p, &j->tasks[index].panel);
    _Alignas(64) float acc[CMOEI_TILE_ROWS * CMOEI_PANEL];
    float y[CMOEI_TILE_ROWS * CMOEI_PANEL], weights[CMOEI_TILE_ROWS];
    const int64_t at = p * m->width, n = CMOEI_MIN(m->width, m->outputs - at);
    const int64_t rows = b->end - b->begin, tiles = cmoei_tiles(k, rows);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t begin, end;
        cmoei_tile_rows(rows, tiles, i, &begin, &end);
        const int64_t first = b->begin + begin;
        const int32_t count = (int32_t)(end - begin);
        const int32_t *slots = j->g->slots + first;
        cmoei_tile_run(m, panel.weights, i, tiles, j->rows + first * j->row_bytes, j->row_bytes,
                       count, acc);
        for (int32_t r = 0; r < count && j->o.mul_weights; r++)
            cmoei_load_f32(&weights[r],
                           cmoei_at(&j->weights, slots[r] / j->g->topk, slots[r] % j->g->topk),
                           j->weights.dtype, 1, 1);
        j->epilogue->finish(&(cmoei_epilogue){.acc = acc,
                                              .rows = count,
                                              .panel = k->panel,
                                              .row_scale = j->scale + first,
                                              .col_scale = panel.scale,
                                              .bias = panel.bias,
                                              .weight = j->o.mul_weights ? weights : NULL,
                                              .out = y});
        for (int32_t r = 0; r < count; r++)
            cmoei_store_f32(cmoei_at_mut(&j->out, j->o.out_grouped ? first + r : slots[r], at),
                            j->out.dtype, j->out.strides[1], y + r * k->panel, n);
    }
}

static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    grouped *j = arg;
    prepare(j, index, count);
    cmoei_barrier(team);
    cmoei_panels_run(team, index, count, j->blocks, j->block_count, j->m->panels, run_panel, j);
}

cmoe_status cmoe_grouped_matmul_bytes(const cmoe_matrix *m, int64_t rows, int64_t *host,
                                      int64_t *device, cmoe_error *err)
{
    if (!m || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "grouped_matmul_bytes: %s is NULL",
                          m ? "host" : "matrix");
    if (rows < 0 || rows > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "rows = %" PRId64 ", want 0 to 2^31 - 1", rows);
    cmoei_carver c = cmoei_carver_dry();
    grouped j = {.m = m};
    carve(&j, &c, rows);
    CMOEI_TRY(cmoei_carver_check(&c, "grouped_matmul", err));
    *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

static cmoe_status check(const grouped *j, cmoe_error *err)
{
    const cmoe_groups *g = j->g;
    CMOEI_TRY(cmoei_groups_check(g, j->m->count, err));
    const int64_t filled = g->first[g->experts];
    const cmoei_want wx = {
        "x", CMOEI_FLOATS, 2, {j->o.x_grouped ? -1 : g->tokens, j->m->inputs}, {"rows", "inputs"}};
    CMOEI_TRY(cmoei_check_in(&j->x, &wx, err));
    const cmoei_want wo = {"out",
                           CMOEI_FLOATS,
                           2,
                           {j->o.out_grouped ? -1 : g->tokens * g->topk, j->m->outputs},
                           {"rows", "outputs"}};
    CMOEI_TRY(cmoei_check_out(&j->out, &wo, err));
    const cmoe_view out = cmoe_view_of(j->out);
    if (j->o.x_grouped) CMOEI_TRY(cmoei_check_filled(&j->x, "x", filled, err));
    if (j->o.out_grouped) CMOEI_TRY(cmoei_check_filled(&out, "out", filled, err));
    if (j->o.mul_weights) {
        const cmoei_want ww = {
            "weights", CMOEI_FLOATS, 2, {g->tokens, g->topk}, {"tokens", "topk"}};
        CMOEI_TRY(cmoei_check_in(&j->weights, &ww, err));
        CMOEI_TRY(cmoei_check_apart(&j->out, "out", &j->weights, "weights", err));
    }
    CMOEI_TRY(cmoei_groups_apart(&j->out, "out", g, err));
    CMOEI_TRY(cmoei_matrix_apart(&j->out, "out", j->m, "w", err));
    return cmoei_check_apart(&j->out, "out", &j->x, "x", err);
}

cmoe_status cmoe_grouped_matmul(cmoe_stream *s, const cmoe_grouped_matmul_options *options,
                                cmoe_view x, const cmoe_matrix *w, cmoe_view weights,
                                const cmoe_groups *groups, cmoe_view_mut out, cmoe_arena *scratch,
                                cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    grouped j = {.o = defaults, .m = w, .g = groups, .x = x, .weights = weights, .out = out};
    CMOEI_TRY(cmoei_options_read(&j.o, sizeof j.o, options, "cmoe_grouped_matmul_options", err));
    CMOEI_TRY(cmoei_check_flag(j.o.x_grouped, "x_grouped", err));
    CMOEI_TRY(cmoei_check_flag(j.o.out_grouped, "out_grouped", err));
    CMOEI_TRY(cmoei_check_flag(j.o.mul_weights, "mul_weights", err));
    if (!w || w->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "w is %s, want a matrix made from the stream's context",
                          w ? "of another context" : "NULL");
    CMOEI_TRY(check(&j, err));
    const cmoe_view to = cmoe_view_of(out);
    CMOEI_TRY(cmoei_check_scratch(scratch, &x, "x", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &weights, "weights", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &to, "out", err));
    CMOEI_TRY(cmoei_groups_check_scratch(groups, scratch, err));
    cmoei_carver c = cmoei_carver_open(scratch);
    carve(&j, &c, groups->first[groups->experts]);
    CMOEI_TRY(cmoei_carver_check(&c, "grouped_matmul", err));
    j.epilogue = cmoei_table_pick(&cmoei_epilogue_table, s->ctx->features, 0);
    j.block_count = cmoei_blocks_list(groups, j.blocks);
    if (j.block_count > 0) cmoei_region(s->ctx, j.block_count * w->panels, region, &j);
    return CMOE_OK;
}

/* ---- one matrix ------------------------------------------------------------------------------ */

/* The groups of tokens that all go to expert 0. */
static cmoe_groups carve_trivial(cmoei_carver *c, int64_t tokens)
{
    int64_t *first = cmoei_carve_array(c, 2, sizeof *first);
    int32_t *slots = cmoei_carve_array(c, tokens, sizeof *slots);
    if (first && slots) {
        first[0] = 0;
        first[1] = tokens;
        for (int64_t t = 0; t < tokens; t++)
            slots[t] = (int32_t)t;
    }
    return (cmoe_groups){tokens, 1, tokens, first, slots, slots, 1};
}

cmoe_status cmoe_linear_bytes(const cmoe_matrix *m, int64_t tokens, int64_t *host, int64_t *device,
                              cmoe_error *err)
{
    int64_t product = 0;
    if (!m || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "linear_bytes: %s is NULL", m ? "host" : "matrix");
    CMOEI_TRY(cmoe_grouped_matmul_bytes(m, tokens, &product, device, err));
    cmoei_carver c = cmoei_carver_dry();
    carve_trivial(&c, tokens);
    if (!cmoei_add(product, cmoei_carver_bytes(&c), host))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "linear: scratch of %" PRId64 " tokens exceeds 2^63 - 1", tokens);
    return CMOE_OK;
}

cmoe_status cmoe_linear(cmoe_stream *s, cmoe_view x, const cmoe_matrix *w, cmoe_view_mut out,
                        cmoe_arena *scratch, cmoe_error *err)
{
    if (!w || w->count != 1)
        return cmoei_fail(err, CMOE_ERR_ARG, "w holds %" PRId64 " matrices, want 1",
                          w ? w->count : 0);
    const cmoei_want wx = {"x", CMOEI_FLOATS, 2, {-1, w->inputs}, {"tokens", "inputs"}};
    CMOEI_TRY(cmoei_check_in(&x, &wx, err));
    if (x.dims[0] > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[0] = %" PRId64 ", want at most 2^31 - 1 tokens",
                          cmoei_name(x.name, "x"), x.dims[0]);
    const cmoe_view to = cmoe_view_of(out);
    CMOEI_TRY(cmoei_check_scratch(scratch, &x, "x", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &to, "out", err));
    cmoei_carver c = cmoei_carver_open(scratch);
    const cmoe_groups groups = carve_trivial(&c, x.dims[0]);
    CMOEI_TRY(cmoei_carver_check(&c, "linear", err));
    cmoe_arena rest = {c.base, c.bytes, c.used};
    return cmoe_grouped_matmul(s, NULL, x, w, cmoe_view_none(), &groups, out, &rest, err);
}
