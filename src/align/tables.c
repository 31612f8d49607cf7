/* SPDX-License-Identifier: MIT
 *
 * tables.c - the table forms of a grouping that other systems use: one-hot, index tables, block
 * table, padded list, sorted list.
 *
 * These calls have no arena, so the counting core runs on a window of experts at a time with its
 * counters on the stack; up to WINDOW experts, which is every model known, that is one window.
 * one_hot, compact and blocks need no counting of ids: they mark, squeeze and list.
 */
#include "align/counting.h"

#include <inttypes.h>

enum {
    WINDOW = 1024,
    PARTS = 8, /* WINDOW * PARTS counters of 4 bytes: 32 KiB of stack */
    PART_SLOTS = 8192,
    TASK_CELLS = 1 << 16 /* of a table that a task at least goes through */
};

/* ---- shared parts ---------------------------------------------------------------------------- */

static void put_i32(char *p, int64_t value)
{
    const int32_t x = (int32_t)value;
    memcpy(p, &x, sizeof x);
}

static void put_i64(char *p, int64_t value)
{
    memcpy(p, &value, sizeof value);
}

/* Element (i, j) of a checked view whose elements have 4 bytes, and there are some. */
static char *cell(const cmoe_view_mut *v, int64_t i, int64_t j)
{
    return (char *)v->data + 4 * (i * v->strides[0] + (v->rank > 1 ? j * v->strides[1] : 0));
}

static float weight_at(const cmoe_view *w, int64_t t, int64_t k)
{
    float x;
    memcpy(&x, (const char *)w->data + 4 * (t * w->strides[0] + k * w->strides[1]), sizeof x);
    return x;
}

static cmoe_status check_experts(const char *name, int64_t experts, cmoe_error *err)
{
    if (experts < 1 || experts > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: %" PRId64 " experts, want 1 to 2147483647",
                          name, experts);
    return CMOE_OK;
}

/* An int32 or float32 table [experts, slots]. */
static cmoe_status check_table(const cmoe_view_mut *v, const char *name, int32_t dtype,
                               int64_t experts, int64_t slots, cmoe_error *err)
{
    const cmoei_want want = {.name = name,
                             .dtypes = CMOEI_DTYPE(dtype),
                             .rank = 2,
                             .dims = {experts, slots},
                             .dim_names = {"experts", "tokens * topk"}};
    return cmoei_check_out(v, &want, err);
}

static cmoe_status check_list(const cmoe_view_mut *v, const char *name, int32_t dtype,
                              int64_t entries, const char *dim_name, cmoe_error *err)
{
    const cmoei_want want = {.name = name,
                             .dtypes = CMOEI_DTYPE(dtype),
                             .rank = 1,
                             .dims = {entries},
                             .dim_names = {dim_name}};
    return cmoei_check_out(v, &want, err);
}

static cmoe_status check_weights(const cmoe_view *w, int64_t tokens, int64_t topk, cmoe_error *err)
{
    const cmoei_want want = {.name = "weights",
                             .dtypes = CMOEI_DTYPE(CMOE_F32),
                             .rank = 2,
                             .dims = {tokens, topk},
                             .dim_names = {"tokens", "topk"}};
    return cmoei_check_in(w, &want, err);
}

/* No output may touch another output or an input. */
typedef struct named {
    const char *name;
    const cmoe_view_mut *view;
} named;

static cmoe_status check_all_apart(const named *outs, int n, const cmoe_view *in0,
                                   const char *name0, const cmoe_view *in1, const char *name1,
                                   cmoe_error *err)
{
    for (int i = 0; i < n; i++) {
        CMOEI_TRY(cmoei_check_apart(outs[i].view, outs[i].name, in0, name0, err));
        if (in1) CMOEI_TRY(cmoei_check_apart(outs[i].view, outs[i].name, in1, name1, err));
        for (int j = i + 1; j < n; j++) {
            const cmoe_view other = cmoe_view_of(*outs[j].view);
            CMOEI_TRY(cmoei_check_apart(outs[i].view, outs[i].name, &other, outs[j].name, err));
        }
    }
    return CMOE_OK;
}

/* Runs the counting core on the stack's counters; returns the number of rows. */
static int64_t count_windows(cmoe_ctx *ctx, const cmoe_view *ids, int64_t experts,
                             int64_t first_expert, cmoei_region_fn task, void *form)
{
    int32_t cursor[PARTS * WINDOW];
    const int64_t slots = ids->dims[0] * ids->dims[1];
    cmoei_counting c = {.ids = cmoei_ids_of(ids),
                        .experts = experts,
                        .first_expert = first_expert,
                        .window = CMOEI_MIN(experts, WINDOW),
                        .parts = CMOEI_MIN(slots / PART_SLOTS, PARTS),
                        .cursor = cursor,
                        .form = form};
    c.parts = CMOEI_MAX(CMOEI_MIN(c.parts, ctx->threads), 1);
    if (slots == 0) c.ids.tokens = 0;
    cmoei_region(ctx, c.parts, task, &c);
    return c.row;
}

/* ---- one_hot: int32 [E, T*K] ----------------------------------------------------------------- */

typedef struct marks {
    cmoei_ids ids;
    cmoe_view_mut table;
} marks;

/* Columns belong to slots, so tasks split the tokens. */
static void mark_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const marks *m = arg;
    const int64_t experts = m->table.dims[0], topk = m->ids.topk;
    int64_t begin, end;
    (void)team;
    cmoei_split(m->ids.tokens, index, count, &begin, &end);
    for (int64_t e = 0; e < experts; e++) {
        if (m->table.strides[1] == 1 && end > begin) {
            memset(cell(&m->table, e, begin * topk), 0, (size_t)((end - begin) * topk) * 4);
            continue;
        }
        for (int64_t slot = begin * topk; slot < end * topk; slot++)
            put_i32(cell(&m->table, e, slot), 0);
    }
    for (int64_t t = begin; t < end; t++) {
        for (int64_t k = 0; k < topk; k++) {
            const int64_t id = cmoei_id_at(&m->ids, t, k);
            if (id >= 0 && id < experts) put_i32(cell(&m->table, id, t * topk + k), 1);
        }
    }
}

cmoe_status cmoe_align_one_hot(cmoe_stream *s, cmoe_view ids, cmoe_view_mut one_hot,
                               cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_ids(&ids, -1, -1, err));
    const int64_t slots = ids.dims[0] * ids.dims[1];
    CMOEI_TRY(check_table(&one_hot, "one_hot", CMOE_I32, -1, slots, err));
    CMOEI_TRY(check_experts(cmoei_name(one_hot.name, "one_hot"), one_hot.dims[0], err));
    CMOEI_TRY(cmoei_check_apart(&one_hot, "one_hot", &ids, "ids", err));
    if (slots == 0) return CMOE_OK;
    marks m = {cmoei_ids_of(&ids), one_hot};
    cmoei_region(s->ctx, CMOEI_MIN(slots * one_hot.dims[0] / TASK_CELLS, ids.dims[0]), mark_task,
                 &m);
    return CMOE_OK;
}

/* ---- compact: one-hot -> ascending slots at the front of each row, in place ------------------ */

typedef struct squeeze {
    cmoe_view_mut info, info_weights, counts;
    cmoe_view weights;
} squeeze;

/* An entry moves to the left or stays, so reading runs ahead of writing. */
static void squeeze_row(const squeeze *q, int64_t e)
{
    const int64_t topk = q->weights.dims[1];
    int64_t n = 0;
    for (int64_t slot = 0; slot < q->info.dims[1]; slot++) {
        if (cmoei_load_index(cell(&q->info, e, slot), CMOE_I32) == 0) continue;
        const float w = weight_at(&q->weights, slot / topk, slot % topk);
        put_i32(cell(&q->info, e, n), slot);
        memcpy(cell(&q->info_weights, e, n), &w, sizeof w);
        n++;
    }
    put_i32(cell(&q->counts, e, 0), n);
}

static void squeeze_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const squeeze *q = arg;
    int64_t e, end;
    (void)team;
    cmoei_split(q->info.dims[0], index, count, &e, &end);
    for (; e < end; e++)
        squeeze_row(q, e);
}

static cmoe_status check_marks(const cmoe_view_mut *info, cmoe_error *err)
{
    for (int64_t e = 0; e < info->dims[0]; e++) {
        for (int64_t slot = 0; slot < info->dims[1]; slot++) {
            const int64_t x = cmoei_load_index(cell(info, e, slot), CMOE_I32);
            if (x != 0 && x != 1)
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "%s[%" PRId64 ", %" PRId64 "] = %" PRId64 ", want 0 or 1",
                                  cmoei_name(info->name, "info"), e, slot, x);
        }
    }
    return CMOE_OK;
}

cmoe_status cmoe_align_compact(cmoe_stream *s, cmoe_view_mut info, cmoe_view weights,
                               cmoe_view_mut info_weights, cmoe_view_mut counts, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(check_weights(&weights, -1, -1, err));
    int64_t slots;
    if (!cmoei_mul(weights.dims[0], weights.dims[1], &slots) || slots > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "weights: dims %" PRId64 " x %" PRId64
                          ", want tokens * topk <= 2147483647",
                          weights.dims[0], weights.dims[1]);
    CMOEI_TRY(check_table(&info, "info", CMOE_I32, -1, slots, err));
    const int64_t experts = info.dims[0];
    CMOEI_TRY(check_experts(cmoei_name(info.name, "info"), experts, err));
    CMOEI_TRY(check_table(&info_weights, "info_weights", CMOE_F32, experts, slots, err));
    CMOEI_TRY(check_list(&counts, "counts", CMOE_I32, experts, "experts", err));
    const named outs[] = {{"info", &info}, {"info_weights", &info_weights}, {"counts", &counts}};
    CMOEI_TRY(check_all_apart(outs, 3, &weights, "weights", NULL, NULL, err));
    if (slots > 0) CMOEI_TRY(check_marks(&info, err));
    squeeze q = {info, info_weights, counts, weights};
    cmoei_region(s->ctx, CMOEI_MIN(slots * experts / TASK_CELLS, experts), squeeze_task, &q);
    return CMOE_OK;
}

/* ---- tables: index and weight of every slot, a row for each expert --------------------------- */

typedef struct tables {
    cmoe_view weights;
    cmoe_view_mut index, index_weights, counts;
    int64_t topk;
} tables;

static int64_t table_expert(void *form, int64_t expert, int64_t row, int64_t count)
{
    const tables *f = form;
    put_i32(cell(&f->counts, expert, 0), count);
    return row; /* 0: every expert has a row of the table to itself */
}

static void table_slot(void *form, int64_t expert, int64_t t, int64_t k, int64_t row)
{
    const tables *f = form;
    if (row < 0) return;
    const float w = weight_at(&f->weights, t, k);
    put_i32(cell(&f->index, expert, row), t * f->topk + k);
    memcpy(cell(&f->index_weights, expert, row), &w, sizeof w);
}

static void table_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoei_count_task(arg, team, index, count, table_expert, table_slot);
}

cmoe_status cmoe_align_tables(cmoe_stream *s, cmoe_view ids, cmoe_view weights, cmoe_view_mut index,
                              cmoe_view_mut index_weights, cmoe_view_mut counts, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_ids(&ids, -1, -1, err));
    CMOEI_TRY(check_weights(&weights, ids.dims[0], ids.dims[1], err));
    const int64_t slots = ids.dims[0] * ids.dims[1];
    CMOEI_TRY(check_table(&index, "index", CMOE_I32, -1, slots, err));
    const int64_t experts = index.dims[0];
    CMOEI_TRY(check_experts(cmoei_name(index.name, "index"), experts, err));
    CMOEI_TRY(check_table(&index_weights, "index_weights", CMOE_F32, experts, slots, err));
    CMOEI_TRY(check_list(&counts, "counts", CMOE_I32, experts, "experts", err));
    const named outs[] = {
        {"index", &index}, {"index_weights", &index_weights}, {"counts", &counts}};
    CMOEI_TRY(check_all_apart(outs, 3, &ids, "ids", &weights, "weights", err));
    tables f = {weights, index, index_weights, counts, ids.dims[1]};
    count_windows(s->ctx, &ids, experts, 0, table_task, &f);
    return CMOE_OK;
}

/* ---- blocks: (expert, block inside the expert, first row) ------------------------------------ */

static cmoe_status check_counts(const cmoe_view *counts, int64_t slots, cmoe_error *err)
{
    const char *name = cmoei_name(counts->name, "counts");
    int64_t sum = 0;
    for (int64_t e = 0; e < counts->dims[0]; e++) {
        const int64_t n = cmoei_load_index(cmoei_at(counts, e, 0), CMOE_I32);
        if (n < 0)
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s[%" PRId64 "] = %" PRId64 ", want >= 0", name,
                              e, n);
        sum += n;
        if (sum > slots)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[0..%" PRId64 "] sum to %" PRId64 ", want at most %" PRId64
                              " (slots)",
                              name, e, sum, slots);
    }
    return CMOE_OK;
}

static void put_block(const cmoe_view_mut *blocks, int64_t i, int64_t expert, int64_t block,
                      int64_t row)
{
    put_i32(cell(blocks, i, 0), expert);
    put_i32(cell(blocks, i, 1), block);
    put_i32(cell(blocks, i, 2), row);
}

static void list_blocks(const cmoe_view *counts, int64_t block, const cmoe_view_mut *blocks)
{
    int64_t i = 0, row = 0;
    for (int64_t e = 0; e < counts->dims[0]; e++) {
        const int64_t n = cmoei_load_index(cmoei_at(counts, e, 0), CMOE_I32);
        for (int64_t b = 0; b * block < n; b++)
            put_block(blocks, i++, e, b, row + b * block);
        row += n;
    }
    for (; i < blocks->dims[0]; i++)
        put_block(blocks, i, -1, -1, -1);
}

cmoe_status cmoe_align_blocks(cmoe_stream *s, cmoe_view counts, int64_t slots, int64_t block,
                              cmoe_view_mut blocks, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    const cmoei_want want = {.name = "counts",
                             .dtypes = CMOEI_DTYPE(CMOE_I32),
                             .rank = 1,
                             .dims = {-1},
                             .dim_names = {"experts"}};
    CMOEI_TRY(cmoei_check_in(&counts, &want, err));
    CMOEI_TRY(check_experts(cmoei_name(counts.name, "counts"), counts.dims[0], err));
    if (slots < 0 || slots > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "slots = %" PRId64 ", want 0 to 2147483647", slots);
    if (block < 1 || block > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "block = %" PRId64 ", want 1 to 2147483647", block);
    const cmoei_want table = {.name = "blocks",
                              .dtypes = CMOEI_DTYPE(CMOE_I32),
                              .rank = 2,
                              .dims = {-1, 3},
                              .dim_names = {"blocks", "(expert, block, row)"}};
    CMOEI_TRY(cmoei_check_out(&blocks, &table, err));
    /* All below 2^31, so that this cannot overflow. */
    const int64_t need = cmoei_ceil_div(slots + counts.dims[0] * (block - 1), block);
    if (blocks.dims[0] < need)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[0] = %" PRId64 ", want at least %" PRId64
                          " (slots + experts * (block - 1), in blocks)",
                          cmoei_name(blocks.name, "blocks"), blocks.dims[0], need);
    CMOEI_TRY(cmoei_check_apart(&blocks, "blocks", &counts, "counts", err));
    CMOEI_TRY(check_counts(&counts, slots, err));
    list_blocks(&counts, block, &blocks);
    return CMOE_OK;
}

/* ---- padded: flat slots by expert, padded to blocks, and the expert of each block ------------ */

typedef struct padded_form {
    cmoe_view_mut sorted, expert_of;
    int64_t topk, block;
} padded_form;

static int64_t padded_expert(void *form, int64_t expert, int64_t row, int64_t count)
{
    const padded_form *f = form;
    const int64_t end = row + count, next = cmoei_round_up(end, f->block);
    for (int64_t r = end; r < next; r++)
        put_i32(cell(&f->sorted, r, 0), -1);
    for (int64_t b = row / f->block; b < next / f->block; b++)
        put_i32(cell(&f->expert_of, b, 0), expert);
    return next;
}

static void padded_slot(void *form, int64_t expert, int64_t t, int64_t k, int64_t row)
{
    const padded_form *f = form;
    (void)expert;
    if (row >= 0) put_i32(cell(&f->sorted, row, 0), t * f->topk + k);
}

static void padded_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoei_count_task(arg, team, index, count, padded_expert, padded_slot);
}

static cmoe_status check_padded(int64_t slots, int64_t experts, int64_t first_expert, int64_t block,
                                const cmoe_view_mut *sorted, const cmoe_view_mut *expert_of,
                                int64_t *length, cmoe_error *err)
{
    if (experts < 1 || experts > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "experts = %" PRId64 ", want 1 to 2147483647",
                          experts);
    if (first_expert < 0 || first_expert > INT64_MAX - experts)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "first_expert = %" PRId64 ", want >= 0 and first_expert + experts < 2^63",
                          first_expert);
    if (block < 1 || block > INT32_MAX || slots + experts * block > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "block = %" PRId64
                          ", want >= 1 and tokens * topk + experts * block <= 2147483647",
                          block);
    *length = slots + experts * block;
    CMOEI_TRY(check_list(sorted, "sorted", CMOE_I32, -1, "padded slots", err));
    CMOEI_TRY(check_list(expert_of, "expert_of", CMOE_I32, -1, "blocks", err));
    if (sorted->dims[0] < *length)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[0] = %" PRId64 ", want at least %" PRId64
                          " (tokens * topk + experts * block)",
                          cmoei_name(sorted->name, "sorted"), sorted->dims[0], *length);
    if (expert_of->dims[0] < *length / block)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[0] = %" PRId64 ", want at least %" PRId64
                          " ((tokens * topk + experts * block) / block)",
                          cmoei_name(expert_of->name, "expert_of"), expert_of->dims[0],
                          *length / block);
    return CMOE_OK;
}

cmoe_status cmoe_align_padded(cmoe_stream *s, cmoe_view ids, int64_t experts, int64_t first_expert,
                              int64_t block, cmoe_view_mut sorted, cmoe_view_mut expert_of,
                              int64_t *padded, cmoe_error *err)
{
    int64_t length = 0;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_ids(&ids, -1, -1, err));
    CMOEI_TRY(check_padded(ids.dims[0] * ids.dims[1], experts, first_expert, block, &sorted,
                           &expert_of, &length, err));
    if (!padded)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "align: padded is NULL, want a place for the padded length");
    const named outs[] = {{"sorted", &sorted}, {"expert_of", &expert_of}};
    CMOEI_TRY(check_all_apart(outs, 2, &ids, "ids", NULL, NULL, err));
    padded_form f = {sorted, expert_of, ids.dims[1], block};
    const int64_t rows = count_windows(s->ctx, &ids, experts, first_expert, padded_task, &f);
    for (int64_t r = rows; r < sorted.dims[0]; r++)
        put_i32(cell(&sorted, r, 0), -1);
    for (int64_t b = rows / block; b < expert_of.dims[0]; b++)
        put_i32(cell(&expert_of, b, 0), -1);
    *padded = length;
    return CMOE_OK;
}

/* ---- sort: experts and slots as two lists, and where each expert ends ------------------------ */

typedef struct sort_form {
    cmoe_view_mut experts, slots, ends;
    int64_t topk;
} sort_form;

static int64_t sort_expert(void *form, int64_t expert, int64_t row, int64_t count)
{
    const sort_form *f = form;
    put_i64(cmoei_at_mut(&f->ends, expert, 0), row + count);
    return row + count;
}

static void sort_slot(void *form, int64_t expert, int64_t t, int64_t k, int64_t row)
{
    const sort_form *f = form;
    if (row < 0) return;
    const int64_t slot = t * f->topk + k;
    char *e = cmoei_at_mut(&f->experts, row, 0), *p = cmoei_at_mut(&f->slots, row, 0);
    if (f->slots.dtype == CMOE_I64) {
        put_i64(e, expert);
        put_i64(p, slot);
    } else {
        put_i32(e, expert);
        put_i32(p, slot);
    }
}

static void sort_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoei_count_task(arg, team, index, count, sort_expert, sort_slot);
}

cmoe_status cmoe_align_sort(cmoe_stream *s, cmoe_view ids, cmoe_view_mut sorted_experts,
                            cmoe_view_mut sorted_slots, cmoe_view_mut ends, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_ids(&ids, -1, -1, err));
    const int64_t slots = ids.dims[0] * ids.dims[1];
    CMOEI_TRY(
        check_list(&sorted_experts, "sorted_experts", ids.dtype, slots, "tokens * topk", err));
    CMOEI_TRY(check_list(&sorted_slots, "sorted_slots", ids.dtype, slots, "tokens * topk", err));
    CMOEI_TRY(check_list(&ends, "ends", CMOE_I64, -1, "experts", err));
    CMOEI_TRY(check_experts(cmoei_name(ends.name, "ends"), ends.dims[0], err));
    const named outs[] = {
        {"sorted_experts", &sorted_experts}, {"sorted_slots", &sorted_slots}, {"ends", &ends}};
    CMOEI_TRY(check_all_apart(outs, 3, &ids, "ids", NULL, NULL, err));
    CMOEI_TRY(cmoei_check_id_range(&ids, ends.dims[0], "experts", false, err));
    sort_form f = {sorted_experts, sorted_slots, ends, ids.dims[1]};
    count_windows(s->ctx, &ids, ends.dims[0], 0, sort_task, &f);
    return CMOE_OK;
}
