/* SPDX-License-Identifier: MIT
 *
 * trainable_dw.c - gradients of the weights of a trainable.
 *
 * With u = x A^T and v = dy s B all of them are rectangles of one product over the rows,
 *
 *     [dy | v]^T [x | s u]  =  | dW   dB |
 *                              | dA   -  |
 *
 * of which only the wanted ones are computed.  Sums are float32 in every format.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "trainable.h"

static const cmoe_trainable_dw_options defaults = {.size = sizeof defaults};

void cmoe_trainable_dw_options_default(cmoe_trainable_dw_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

typedef struct job {
    const cmoe_trainable *t;
    cmoei_pass x, dy; /* for u and v */
    bool wants_u, wants_v;
    float *u, *v; /* [R, rank] */
    cmoei_outer outer;
    cmoei_outer_part parts[3 * CMOEI_PARTS_MOST];
} job;

static void plan(job *j, const cmoe_trainable *t, const cmoe_groups *g, int64_t rows)
{
    const int64_t rank = t->o.rank;
    *j = (job){.t = t, .wants_u = rank > 0, .wants_v = rank > 0};
    j->x = (cmoei_pass){.main = &t->forward, .down = &t->down_x, .groups = g, .rows = rows};
    j->dy = (cmoei_pass){.main = &t->backward, .down = &t->down_dy, .groups = g, .rows = rows};
    j->outer = (cmoei_outer){
        .kernel = cmoei_table_pick(&cmoei_matmul_table, t->ctx->features, CMOE_F32),
        .threads = t->ctx->threads,
        .experts = t->experts,
        .groups = g,
        .rows = rows,
        .a = {.n = t->outputs, .tail_n = rank, .scale = 1},
        .b = {.n = t->inputs, .tail_n = rank, .scale = 1},
    };
}

static void carve(job *j, cmoei_carver *c)
{
    const int64_t rank = j->t->o.rank, rows = j->outer.rows;
    if (rank > 0) {
        cmoei_pass_carve(&j->x, c, j->t->experts);
        cmoei_pass_carve(&j->dy, c, j->t->experts);
        j->u = cmoei_carve_array(c, rows, rank * (int64_t)sizeof *j->u);
        j->v = cmoei_carve_array(c, rows, rank * (int64_t)sizeof *j->v);
    }
    cmoei_outer_carve(&j->outer, c);
}

cmoe_status cmoei_trainable_dw_bytes(const cmoe_trainable *t, int64_t rows, int64_t *host,
                                     cmoe_error *err)
{
    job j;
    plan(&j, t, NULL, rows);
    cmoei_carver c = cmoei_carver_dry();
    carve(&j, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "trainable_dw", err));
    *host = cmoei_carver_bytes(&c);
    return CMOE_OK;
}

/* ---- the narrow products --------------------------------------------------------------------- */

/* Columns of u belong to parts, which have a scale each; v has it from its matrix. */
static void scale_u(const job *j, const cmoei_block *b)
{
    const cmoe_trainable *t = j->t;
    for (int64_t r = b->begin; r < b->end; r++) {
        float *u = j->u + r * t->o.rank;
        for (int64_t p = 0; p < t->count; p++) {
            for (int64_t i = t->rank_at[p]; i < t->rank_at[p + 1]; i++)
                u[i] *= t->parts[p].lora_scale;
        }
    }
}

static void narrow(const job *j, cmoei_team *team, int32_t index)
{
    const int64_t n = j->x.block_count;
    for (int64_t i; (i = cmoei_next(team, 1)) < 2 * n;) {
        if (i < n && j->wants_u) {
            cmoei_pass_prepare(&j->x, index, &j->x.blocks[i], j->x.tasks[index].rows, j->u);
            scale_u(j, &j->x.blocks[i]);
        } else if (i >= n && j->wants_v) {
            cmoei_pass_prepare(&j->dy, index, &j->dy.blocks[i - n], j->dy.tasks[index].rows, j->v);
        }
    }
}

static void region(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    if (j->wants_u || j->wants_v) {
        narrow(j, team, index);
        cmoei_barrier(team);
    }
    cmoei_outer_run(&j->outer, team, index, count);
}

/* ---- rectangles ------------------------------------------------------------------------------ */

/* What a rectangle is called in texts. */
static cmoe_view_mut named(cmoe_view_mut v, char name[48], int64_t p, const char *field)
{
    snprintf(name, 48, "gradients[%" PRId64 "].%s", p, field);
    if (!v.name) v.name = name;
    return v;
}

static bool given(const cmoe_view_mut *v)
{
    const cmoe_view in = cmoe_view_of(*v);
    return cmoei_given(&in);
}

static cmoe_status check_output(const cmoe_view_mut *out, int32_t rank, const int64_t *dims,
                                const char *const *names, const job *j, const cmoe_arena *scratch,
                                cmoe_error *err)
{
    cmoei_want want = {"gradient", CMOEI_DTYPE(CMOE_F32), rank, {0}, {0}};
    const cmoe_view v = cmoe_view_of(*out);
    memcpy(want.dims, dims, (size_t)rank * sizeof *dims);
    memcpy(want.dim_names, names, (size_t)rank * sizeof *names);
    CMOEI_TRY(cmoei_check_out(out, &want, err));
    CMOEI_TRY(cmoei_check_apart(out, "gradient", &j->outer.a.x, "dy", err));
    CMOEI_TRY(cmoei_check_apart(out, "gradient", &j->outer.b.x, "x", err));
    CMOEI_TRY(cmoei_trainable_apart(out, "gradient", j->t, err));
    if (j->outer.groups) CMOEI_TRY(cmoei_groups_apart(out, "gradient", j->outer.groups, err));
    return cmoei_check_scratch(scratch, &v, "gradient", err);
}

/* The rectangles of one part, after checks; those of its low-rank term only where it has one. */
static cmoe_status add_part(job *j, int64_t p, const cmoe_part_gradient *g,
                            const cmoe_arena *scratch, cmoe_error *err)
{
    static const char *const w_names[] = {"experts", "outputs", "inputs"};
    static const char *const a_names[] = {"experts", "rank", "inputs"};
    static const char *const b_names[] = {"experts", "outputs", "rank"};
    const cmoe_trainable *t = j->t;
    const int64_t N = t->outputs, K = t->inputs, at = t->parts[p].at, n = cmoei_part_outputs(t, p);
    const int64_t r = t->rank_at[p], rank = t->rank_at[p + 1] - r;
    const int64_t w_dims[] = {t->experts, n, K}, a_dims[] = {t->experts, rank, K},
                  b_dims[] = {t->experts, n, rank};
    char names[4][48];
    const cmoe_view_mut none = cmoe_view_mut_none(), w = named(g->w, names[0], p, "w"),
                        bias = named(g->bias, names[1], p, "bias"),
                        a = named(g->a, names[2], p, "a"), b = named(g->b, names[3], p, "b");
    if (given(&w)) CMOEI_TRY(check_output(&w, 3, w_dims, w_names, j, scratch, err));
    if (given(&bias)) CMOEI_TRY(check_output(&bias, 2, w_dims, w_names, j, scratch, err));
    if (!rank && (given(&a) || given(&b)))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "%s is given but part %" PRId64 " has no low-rank term, want none",
                          given(&a) ? a.name : b.name, p);
    if (given(&a)) CMOEI_TRY(check_output(&a, 3, a_dims, a_names, j, scratch, err));
    if (given(&b)) CMOEI_TRY(check_output(&b, 3, b_dims, b_names, j, scratch, err));
    cmoei_outer_part *to = &j->parts[j->outer.count];
    *to++ = (cmoei_outer_part){at, n, 0, K, g->w, g->bias};
    *to++ = (cmoei_outer_part){at, n, K + r, rank, g->b, none};
    *to++ = (cmoei_outer_part){N + r, rank, 0, K, g->a, none};
    j->outer.count += 3;
    j->wants_u = j->wants_u || given(&b);
    j->wants_v = j->wants_v || given(&a);
    return CMOE_OK;
}

/* No two gradients share memory. */
static cmoe_status check_apart(const job *j, const cmoe_part_gradient *g, cmoe_error *err)
{
    static const char *const fields[] = {"w", "bias", "a", "b"};
    const int64_t n = 4 * j->t->count;
    for (int64_t i = 0; i < n; i++) {
        const cmoe_view_mut *x[] = {&g[i / 4].w, &g[i / 4].bias, &g[i / 4].a, &g[i / 4].b};
        for (int64_t k = 0; k < i; k++) {
            const cmoe_view_mut *y[] = {&g[k / 4].w, &g[k / 4].bias, &g[k / 4].a, &g[k / 4].b};
            char names[2][48];
            const cmoe_view_mut out = named(*x[i % 4], names[0], i / 4, fields[i % 4]);
            const cmoe_view other = cmoe_view_of(named(*y[k % 4], names[1], k / 4, fields[k % 4]));
            CMOEI_TRY(cmoei_check_apart(&out, "gradient", &other, "gradient", err));
        }
    }
    return CMOE_OK;
}

static cmoe_status check(job *j, const cmoe_trainable_dw_options *o, const cmoe_units *units,
                         const cmoe_part_gradient *gradients, const cmoe_arena *scratch,
                         int64_t one[2], cmoe_error *err)
{
    const cmoe_groups *g = j->outer.groups;
    CMOEI_TRY(cmoei_units_check(units, g ? g->tokens : j->outer.rows, &j->outer.units, one, err));
    if (o->accumulate && j->outer.units.count != 1)
        return cmoei_fail(err, CMOE_ERR_ARG, "accumulate = 1 with %" PRId64 " units, want one unit",
                          j->outer.units.count);
    if (!gradients)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "gradients is NULL, want one for each of %" PRId64 " parts", j->t->count);
    j->wants_u = j->wants_v = false;
    for (int64_t p = 0; p < j->t->count; p++)
        CMOEI_TRY(add_part(j, p, &gradients[p], scratch, err));
    CMOEI_TRY(check_apart(j, gradients, err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &j->outer.a.x, "dy", err));
    CMOEI_TRY(cmoei_check_scratch(scratch, &j->outer.b.x, "x", err));
    return g ? cmoei_groups_check_scratch(g, scratch, err) : CMOE_OK;
}

cmoe_status cmoe_trainable_dw(cmoe_stream *s, const cmoe_trainable *t,
                              const cmoe_trainable_dw_options *options, cmoe_view dy, cmoe_view x,
                              const cmoe_groups *groups, const cmoe_units *units,
                              const cmoe_part_gradient *gradients, cmoe_arena *scratch,
                              cmoe_error *err)
{
    CMOEI_TRY(cmoei_trainable_check(s, t, err));
    cmoe_trainable_dw_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_trainable_dw_options", err));
    CMOEI_TRY(cmoei_check_flag(o.accumulate, "accumulate", err));
    CMOEI_TRY(cmoei_trainable_check_rows(t, &dy, "dy", o.dy_grouped, "dy_grouped", groups,
                                         t->outputs, err));
    CMOEI_TRY(
        cmoei_trainable_check_rows(t, &x, "x", o.x_grouped, "x_grouped", groups, t->inputs, err));
    if (!groups && x.dims[0] != dy.dims[0])
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[0] = %" PRId64 ", want %" PRId64 " (tokens of dy)",
                          cmoei_name(x.name, "x"), x.dims[0], dy.dims[0]);
    job j;
    int64_t one[2];
    plan(&j, t, groups, groups ? groups->first[groups->experts] : x.dims[0]);
    j.x.x = j.outer.b.x = x;
    j.x.x_grouped = j.outer.b.grouped = o.x_grouped;
    j.dy.x = j.outer.a.x = dy;
    j.dy.x_grouped = j.outer.a.grouped = o.dy_grouped;
    j.outer.accumulate = o.accumulate != 0;
    j.outer.parts = j.parts;
    CMOEI_TRY(check(&j, &o, units, gradients, scratch, one, err));
    cmoei_carver c = cmoei_carver_open(scratch);
    carve(&j, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "trainable_dw", err));
    /* Columns that nobody wants are not packed. */
    j.outer.a.tail = j.v;
    j.outer.b.tail = j.u;
    if (!j.wants_v) j.outer.a.tail_n = 0;
    if (!j.wants_u) j.outer.b.tail_n = 0;
    if (j.wants_u) cmoei_pass_blocks(&j.x);
    if (j.wants_v) cmoei_pass_blocks(&j.dy);
    j.x.block_count = j.dy.block_count = CMOEI_MAX(j.x.block_count, j.dy.block_count);
    j.outer.stream = cmoei_outer_streams(&j.outer);
    cmoei_region(s->ctx, cmoei_outer_items(&j.outer), region, &j);
    return CMOE_OK;
}
