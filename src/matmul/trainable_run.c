/* SPDX-License-Identifier: MIT
 *
 * trainable_run.c - forward and dx of a trainable.
 *
 * Both are the same: rows are prepared and, with a low-rank term, multiplied by its narrow matrix,
 * whose results become the rows' tails; then [row | tail] times the wide matrix, panel by panel.
 */
#include <inttypes.h>
#include <string.h>

#include "epilogue.h"
#include "trainable.h"

enum { TURNS = 6 }; /* items a task, for an even end */

/* ---- rows ------------------------------------------------------------------------------------ */

/* Borrowed panels are packed once a block, so it pays to have fewer of them. */
int64_t cmoei_pass_block(const cmoe_matrix *m)
{
    return m->o.borrow ? 4 * CMOEI_BLOCK_ROWS : CMOEI_BLOCK_ROWS;
}

void cmoei_pass_carve(cmoei_pass *p, cmoei_carver *c, int64_t experts)
{
    const int64_t threads = p->main->ctx->threads,
                  block = CMOEI_MIN(cmoei_pass_block(p->main), p->rows);
    p->row_bytes = cmoei_row_bytes(p->main);
    const int64_t blocks = CMOEI_MIN(p->rows, experts) + p->rows / cmoei_pass_block(p->main);
    p->blocks = cmoei_carve_array(c, blocks, sizeof *p->blocks);
    p->tasks = cmoei_carve_array(c, threads, sizeof *p->tasks);
    for (int64_t i = 0; i < threads; i++) {
        struct cmoei_pass_task t = {.main = cmoei_panel_scratch_carve(c, p->main)};
        t.rows = cmoei_carve_array(c, block, p->row_bytes);
        if (p->down) {
            t.down = cmoei_panel_scratch_carve(c, p->down);
            t.low = cmoei_carve_array(
                c, block, p->down->panels * p->down->kernel->panel * (int64_t)sizeof *t.low);
        }
        if (p->tasks && !c->overflow) p->tasks[i] = t;
    }
}

void cmoei_pass_blocks(cmoei_pass *p)
{
    const int64_t experts = p->groups ? p->groups->experts : 1, most = cmoei_pass_block(p->main);
    p->block_count = 0;
    for (int64_t e = 0; e < experts; e++) {
        int64_t begin, end;
        cmoei_expert_rows(p->groups, p->rows, e, &begin, &end);
        const int64_t parts = cmoei_ceil_div(end - begin, most);
        for (int64_t i = 0; i < parts; i++) {
            cmoei_block *b = &p->blocks[p->block_count++];
            b->expert = e;
            cmoei_split(end - begin, (int32_t)i, (int32_t)parts, &b->begin, &b->end);
            b->begin += begin;
            b->end += begin;
        }
    }
}

/* n values from position `at` of a prepared row on. */
static void put_values(const cmoe_matrix *m, char *row, int64_t at, const cmoei_f32 *x, int64_t n)
{
    if (m->kernel->x_form == CMOEI_X_BF16) {
        uint16_t *to = (uint16_t *)(void *)row + at;
        for (int64_t i = 0; i < n; i++)
            to[i] = cmoei_f32_to_bf16(x[i]);
    } else {
        float *to = (float *)(void *)row + at;
        if (m->kernel->v.dtype == CMOE_BF16) {
            for (int64_t i = 0; i < n; i++)
                to[i] = cmoei_round_bf16(x[i]);
        } else {
            memcpy(to, x, (size_t)n * sizeof *to);
        }
    }
}

static void put_zeros(const cmoe_matrix *m, char *row, int64_t at)
{
    const int64_t size = m->kernel->x_form == CMOEI_X_BF16 ? 2 : 4;
    memset(row + at * size, 0, (size_t)((m->steps * m->kernel->step - at) * size));
}

/* low [rows of the block, panels] = rows . down */
static void run_down(const cmoei_pass *p, int32_t index, const cmoei_block *b, const char *rows)
{
    const cmoe_matrix *m = p->down;
    const int64_t n = b->end - b->begin, tiles = cmoei_tiles(m->kernel, n);
    const int64_t panel = m->kernel->panel, width = m->panels * panel;
    _Alignas(64) float acc[CMOEI_TILE_ROWS * CMOEI_PANEL];
    for (int64_t j = 0; j < m->panels; j++) {
        const cmoei_panel w = cmoei_matrix_panel(m, b->expert, j, &p->tasks[index].down);
        for (int64_t i = 0; i < tiles; i++) {
            int64_t begin, end;
            cmoei_tile_rows(n, tiles, i, &begin, &end);
            cmoei_tile_run(m, w.weights, i, tiles, rows + begin * p->row_bytes, p->row_bytes,
                           (int32_t)(end - begin), acc);
            for (int64_t r = begin; r < end; r++)
                memcpy(p->tasks[index].low + r * width + j * panel, acc + (r - begin) * panel,
                       (size_t)panel * sizeof *acc);
        }
    }
}

void cmoei_pass_prepare(const cmoei_pass *p, int32_t index, const cmoei_block *b, char *to,
                        float *tails)
{
    const int64_t n = b->end - b->begin, width = p->x.dims[1];
    for (int64_t r = 0; r < n; r++) {
        const int64_t from = p->x_grouped ? b->begin + r : cmoei_row_token(p->groups, b->begin + r);
        put_values(p->main, to + r * p->row_bytes, 0, cmoei_at(&p->x, from, 0), width);
        put_zeros(p->main, to + r * p->row_bytes, width);
    }
    if (!p->down) return;
    const int64_t rank = p->down->outputs, low = p->down->panels * p->down->kernel->panel;
    run_down(p, index, b, to);
    for (int64_t r = 0; r < n; r++) {
        const float *u = p->tasks[index].low + r * low;
        if (tails)
            memcpy(tails + (b->begin + r) * rank, u, (size_t)rank * sizeof *u);
        else
            put_values(p->main, to + r * p->row_bytes, width, (const cmoei_f32 *)u, rank);
    }
}

/* ---- products -------------------------------------------------------------------------------- */

typedef struct product {
    cmoei_pass pass;
    const cmoei_epilogue_kernel *epilogue;
    cmoe_view_mut out;
} product;

/* Sums [count, panel] -> n columns of rows first.. of a tensor. */
static inline void put_rows(const cmoe_view_mut *out, int64_t first, int64_t at, int32_t count,
                            int64_t n, const float *sums, int64_t panel)
{
    char *to = cmoei_at_mut(out, first, at);
    const int64_t stride = out->strides[0] * (int64_t)sizeof *sums;
    for (int32_t r = 0; r < count; r++, to += stride, sums += panel) {
        if (n == 32) /* the usual case, of a size that the compiler knows */
            memcpy(to, sums, 32 * sizeof *sums);
        else
            memcpy(to, sums, (size_t)n * sizeof *sums);
    }
}

static void run_panel(const product *j, int32_t index, const cmoei_block *b, int64_t p)
{
    const char *x = j->pass.tasks[index].rows;
    const cmoe_matrix *m = j->pass.main;
    const cmoei_matmul_kernel *k = m->kernel;
    const int64_t row_bytes = j->pass.row_bytes;
    const cmoei_panel panel = cmoei_matrix_panel(m, b->expert, p, &j->pass.tasks[index].main);
    _Alignas(64) float acc[CMOEI_TILE_ROWS * CMOEI_PANEL];
    _Alignas(64) float y[CMOEI_TILE_ROWS * CMOEI_PANEL];
    const int64_t at = p * m->width, n = CMOEI_MIN(m->width, m->outputs - at);
    const int64_t rows = b->end - b->begin, tiles = cmoei_tiles(k, rows);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t begin, end;
        cmoei_tile_rows(rows, tiles, i, &begin, &end);
        const int64_t first = b->begin + begin;
        const int32_t count = (int32_t)(end - begin);
        cmoei_tile_run(m, panel.weights, i, tiles, x + begin * row_bytes, row_bytes, count, acc);
        if (panel.bias)
            j->epilogue->finish(&(cmoei_epilogue){
                .acc = acc, .rows = count, .panel = k->panel, .bias = panel.bias, .out = y});
        const float *sums = panel.bias ? y : acc;
        put_rows(&j->out, first, at, count, n, sums, k->panel);
    }
}

/* A block of rows and a range of panels: the rows are prepared by whoever multiplies them, where they
 * stay in its L2.  Panels are only divided where there are few blocks. */
static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const product *j = arg;
    const cmoei_pass *pass = &j->pass;
    const int64_t panels = pass->main->panels;
    const int64_t ranges =
        CMOEI_MIN(panels, cmoei_ceil_div(TURNS * (int64_t)count, CMOEI_MAX(pass->block_count, 1)));
    int64_t ready = -1;
    for (int64_t i; (i = cmoei_next(team, 1)) < pass->block_count * ranges;) {
        const cmoei_block *b = &pass->blocks[i / ranges];
        int64_t p, end;
        cmoei_split(panels, (int32_t)(i % ranges), (int32_t)ranges, &p, &end);
        if (ready != i / ranges) cmoei_pass_prepare(pass, index, b, pass->tasks[index].rows, NULL);
        ready = i / ranges;
        for (; p < end; p++)
            run_panel(j, index, b, p);
    }
}

static cmoe_status run(cmoe_stream *s, const cmoe_trainable *t, bool back, cmoe_view x,
                       int32_t x_grouped, const cmoe_groups *g, cmoe_view_mut out,
                       cmoe_arena *scratch, cmoe_error *err)
{
    CMOEI_TRY(cmoei_trainable_check(s, t, err));
    const char *const name = back ? "dy" : "x", *const out_name = back ? "dx" : "out";
    const int64_t from = back ? t->outputs : t->inputs, to = back ? t->inputs : t->outputs;
    CMOEI_TRY(cmoei_trainable_check_rows(t, &x, name, x_grouped, back ? "dy_grouped" : "x_grouped",
                                         g, from, err));
    const int64_t rows = g ? g->first[g->experts] : x.dims[0];
    const cmoei_want want = {
        out_name, 0, 2, {g ? -1 : rows, to}, {g ? "rows" : "tokens", back ? "inputs" : "outputs"}};
    CMOEI_TRY(cmoei_check_rows_out(&out, &want, err));
    const cmoe_view written = cmoe_view_of(out);
    CMOEI_TRY(cmoei_check_filled(&written, out_name, rows, err));
    CMOEI_TRY(cmoei_check_apart(&out, out_name, &x, name, err));
    CMOEI_TRY(cmoei_trainable_apart(&out, out_name, t, err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &x, name, err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &written, out_name, err));
    if (g) {
        CMOEI_TRY(cmoei_groups_apart(&out, out_name, g, err));
        CMOEI_TRY(cmoei_groups_check_scratch(g, scratch, err));
    }
    product j = {.pass = {.main = back ? &t->backward : &t->forward,
                          .down = !t->o.rank ? NULL
                                  : back     ? &t->down_dy
                                             : &t->down_x,
                          .groups = g,
                          .x = x,
                          .x_grouped = x_grouped,
                          .rows = rows},
                 .out = out};
    cmoei_carver c = cmoei_carver_open(scratch);
    cmoei_pass_carve(&j.pass, &c, t->experts);
    CMOEI_TRY(cmoei_carver_check(&c, back ? "trainable_dx" : "trainable_forward", err));
    j.epilogue = cmoei_table_pick(&cmoei_epilogue_table, s->ctx->features, 0);
    cmoei_pass_blocks(&j.pass);
    if (j.pass.block_count > 0)
        cmoei_region(s->ctx, j.pass.block_count * j.pass.main->panels, region, &j);
    return CMOE_OK;
}

cmoe_status cmoe_trainable_forward(cmoe_stream *s, const cmoe_trainable *t, cmoe_view x,
                                   int32_t x_grouped, const cmoe_groups *groups, cmoe_view_mut out,
                                   cmoe_arena *scratch, cmoe_error *err)
{
    return run(s, t, false, x, x_grouped, groups, out, scratch, err);
}

cmoe_status cmoe_trainable_dx(cmoe_stream *s, const cmoe_trainable *t, cmoe_view dy,
                              int32_t dy_grouped, const cmoe_groups *groups, cmoe_view_mut dx,
                              cmoe_arena *scratch, cmoe_error *err)
{
    return run(s, t, true, dy, dy_grouped, groups, dx, scratch, err);
}

/* ---- scratch --------------------------------------------------------------------------------- */

cmoe_status cmoe_trainable_bytes(const cmoe_trainable *t, int64_t tokens, int64_t rows,
                                 int64_t *host, int64_t *device, cmoe_error *err)
{
    if (!t || !host)
        return cmoei_fail(err, CMOE_ERR_ARG, "trainable_bytes: %s is NULL",
                          t ? "host" : "trainable");
    if (tokens < 0 || tokens > INT32_MAX || rows < 0 || rows > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64 ", rows = %" PRId64 ", want 0 to 2^31 - 1", tokens,
                          rows);
    int64_t most;
    CMOEI_TRY(cmoei_trainable_dw_bytes(t, rows, &most, err));
    for (int back = 0; back < 2; back++) {
        product j = {.pass = {.main = back ? &t->backward : &t->forward,
                              .down = !t->o.rank ? NULL
                                      : back     ? &t->down_dy
                                                 : &t->down_x,
                              .rows = rows}};
        cmoei_carver c = cmoei_carver_dry();
        cmoei_pass_carve(&j.pass, &c, t->experts);
        CMOEI_TRY(cmoei_carver_check(&c, "trainable", err));
        most = CMOEI_MAX(most, cmoei_carver_bytes(&c));
    }
    *host = most;
    if (device) *device = 0;
    return CMOE_OK;
}
