/* SPDX-License-Identifier: MIT
 *
 * align.c - ids [T, K] -> groups: rows by expert, then token, then k, each expert padded to a
 * block.
 *
 * The form that the layer runs on.  Counters for all E experts come from the arena, so that ids are
 * read twice whatever E is; see counting.h for the method.
 */
#include "align/counting.h"

#include <inttypes.h>

enum {
    PART_SLOTS = 8192, /* a part with fewer slots is not worth waking a thread (about 10 us) */
    MOST_PARTS = 16
};

static const cmoe_align_options defaults = {
    .size = sizeof defaults,
    .block = 1,
};

void cmoe_align_options_default(cmoe_align_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

cmoei_ids cmoei_ids_of(const cmoe_view *v)
{
    /* Nobody checked the strides of an empty view. */
    const bool empty = v->dims[0] == 0 || v->dims[1] == 0;
    const int64_t bytes = empty ? 0 : cmoe_dtype_bytes(v->dtype);
    return (cmoei_ids){.data = v->data,
                       .tokens = v->dims[0],
                       .topk = v->dims[1],
                       .token_step = bytes ? v->strides[0] * bytes : 0,
                       .slot_step = bytes ? v->strides[1] * bytes : 0,
                       .wide = v->dtype == CMOE_I64};
}

static cmoe_status check_slots(int64_t tokens, int64_t topk, int64_t *slots, cmoe_error *err)
{
    if (!cmoei_mul(tokens, topk, slots) || *slots > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "tokens = %" PRId64 ", topk = %" PRId64
                          ": want both >= 0 and tokens * topk <= 2147483647",
                          tokens, topk);
    return CMOE_OK;
}

cmoe_status cmoei_check_ids(const cmoe_view *ids, int64_t tokens, int64_t topk, cmoe_error *err)
{
    const cmoei_want want = {.name = "ids",
                             .dtypes = CMOEI_INDEX,
                             .rank = 2,
                             .dims = {tokens, topk},
                             .dim_names = {"tokens", "topk"}};
    int64_t slots;
    CMOEI_TRY(cmoei_check_in(ids, &want, err));
    return check_slots(ids->dims[0], ids->dims[1], &slots, err);
}

cmoe_status cmoei_check_id_range(const cmoe_view *view, int64_t experts, const char *experts_name,
                                 bool allow_none, cmoe_error *err)
{
    const cmoei_ids ids = cmoei_ids_of(view);
    for (int64_t t = 0; ids.topk > 0 && t < ids.tokens; t++) {
        for (int64_t k = 0; k < ids.topk; k++) {
            const int64_t id = cmoei_id_at(&ids, t, k);
            if ((id >= 0 && id < experts) || (id == -1 && allow_none)) continue;
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 ", %" PRId64 "] = %" PRId64 ", want 0 <= id < %" PRId64
                              " (%s)%s",
                              cmoei_name(view->name, "ids"), t, k, id, experts, experts_name,
                              allow_none ? ", or -1" : "");
        }
    }
    return CMOE_OK;
}

cmoe_status cmoei_align_check(cmoei_align_plan *p, cmoe_error *err)
{
    CMOEI_TRY(check_slots(p->tokens, p->topk, &p->slots, err));
    if (p->experts < 1 || p->experts > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "experts = %" PRId64 ", want 1 to 2147483647",
                          p->experts);
    if (p->first_expert < 0 || p->first_expert > INT64_MAX - p->experts)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "first_expert = %" PRId64 ", want >= 0 and first_expert + experts < 2^63",
                          p->first_expert);
    if (p->block < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "block = %" PRId64 ", want >= 1", p->block);
    /* Padding follows experts that have a slot, of which there are no more than slots. */
    int64_t padding, rows;
    if (!cmoei_mul(CMOEI_MIN(p->experts, p->slots), p->block - 1, &padding) ||
        !cmoei_add(p->slots, padding, &rows) || rows > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "block = %" PRId64 ": %" PRId64 " slots of %" PRId64
                          " experts may need more than 2147483647 padded rows",
                          p->block, p->slots, p->experts);
    p->capacity = rows / p->block * p->block;
    return CMOE_OK;
}

/* ---- groups ---------------------------------------------------------------------------------- */

void cmoei_align_carve(cmoei_carver *c, cmoei_align_plan *p)
{
    p->first = cmoei_carve_array(c, p->experts + 1, (int64_t)sizeof *p->first);
    p->row_of = cmoei_carve_array(c, p->slots, (int64_t)sizeof *p->row_of);
    p->sorted = cmoei_carve_array(c, p->capacity, (int64_t)sizeof *p->sorted);
}

/* The size may not depend on the context's threads, which the _bytes function does not know; and a
 * part must have more slots than counters, which bounds both memory and the prefix sum. */
void cmoei_align_carve_scratch(cmoei_carver *c, cmoei_align_plan *p)
{
    const int64_t most = p->slots / CMOEI_MAX(p->experts, PART_SLOTS);
    p->parts = CMOEI_MAX(CMOEI_MIN(most, MOST_PARTS), 1);
    p->cursor = cmoei_carve_array(c, p->parts * p->experts, (int64_t)sizeof *p->cursor);
}

static int64_t group_expert(void *form, int64_t expert, int64_t row, int64_t count)
{
    const cmoei_align_plan *p = form;
    /* Most experts of a small batch are empty; the division is what they would cost. */
    const bool whole = count == 0 || p->block == 1;
    const int64_t end = row + count, next = whole ? end : cmoei_round_up(end, p->block);
    for (int64_t r = end; r < next; r++)
        p->sorted[r] = -1;
    p->first[expert] = row;
    return next;
}

static void group_slot(void *form, int64_t expert, int64_t t, int64_t k, int64_t row)
{
    const cmoei_align_plan *p = form;
    const int64_t slot = t * p->topk + k;
    (void)expert;
    p->row_of[slot] = (int32_t)row;
    if (row >= 0) p->sorted[row] = (int32_t)slot;
}

static void group_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    cmoei_count_task(arg, team, index, count, group_expert, group_slot);
}

void cmoei_align_run(cmoe_ctx *ctx, const cmoei_align_plan *plan, const cmoei_ids *ids,
                     cmoe_groups *out)
{
    cmoei_align_plan p = *plan;
    cmoei_counting c = {.ids = *ids,
                        .experts = p.experts,
                        .first_expert = p.first_expert,
                        .window = p.experts,
                        .parts = CMOEI_MIN(p.parts, ctx->threads),
                        .cursor = p.cursor,
                        .form = &p};
    if (p.slots == 0) c.ids.tokens = 0; /* any number of tokens without slots costs nothing */
    cmoei_region(ctx, c.parts, group_task, &c);
    p.first[p.experts] = c.row;
    for (int64_t r = c.row; r < p.capacity; r++)
        p.sorted[r] = -1;
    *out = (cmoe_groups){.tokens = p.tokens,
                         .topk = p.topk,
                         .capacity = p.capacity,
                         .first = p.first,
                         .row_of = p.row_of,
                         .slots = p.sorted,
                         .experts = p.experts};
}

/* ---- public ---------------------------------------------------------------------------------- */

static cmoe_status read_options(const cmoe_align_options *options, int64_t tokens, int64_t topk,
                                cmoe_align_options *o, cmoei_align_plan *plan, cmoe_error *err)
{
    *o = defaults;
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, options, "cmoe_align_options", err));
    *plan = (cmoei_align_plan){.tokens = tokens,
                               .topk = topk,
                               .experts = o->experts,
                               .first_expert = o->first_expert,
                               .block = o->block};
    CMOEI_TRY(cmoei_align_check(plan, err));
    if (o->validate != 0 && o->validate != 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "validate = %d, want 0 or 1", o->validate);
    const int64_t end = o->first_expert + o->experts;
    if (o->total_experts == 0) o->total_experts = end;
    if (o->total_experts < end)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "total_experts = %" PRId64 ", want 0 or >= %" PRId64
                          " (first_expert + experts)",
                          o->total_experts, end);
    return CMOE_OK;
}

cmoe_status cmoe_align_bytes(const cmoe_align_options *options, int64_t tokens, int64_t topk,
                             int64_t *host, int64_t *device, cmoe_error *err)
{
    cmoe_align_options o;
    cmoei_align_plan plan;
    CMOEI_TRY(read_options(options, tokens, topk, &o, &plan, err));
    cmoei_carver c = cmoei_carver_dry();
    cmoei_align_carve(&c, &plan);
    cmoei_align_carve_scratch(&c, &plan);
    CMOEI_TRY(cmoei_carver_check(&c, "align", err));
    if (host) *host = cmoei_carver_bytes(&c);
    if (device) *device = 0;
    return CMOE_OK;
}

cmoe_status cmoe_align(cmoe_stream *s, const cmoe_align_options *options, cmoe_view ids,
                       cmoe_groups *out, cmoe_arena *arena, cmoe_error *err)
{
    cmoe_align_options o;
    cmoei_align_plan plan;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_ids(&ids, -1, -1, err));
    CMOEI_TRY(read_options(options, ids.dims[0], ids.dims[1], &o, &plan, err));
    if (!out)
        return cmoei_fail(err, CMOE_ERR_ARG, "align: out is NULL, want a place for the groups");
    if (o.validate)
        CMOEI_TRY(cmoei_check_id_range(&ids, o.total_experts, "total_experts", true, err));
    cmoei_carver c = cmoei_carver_open(arena);
    cmoei_align_carve(&c, &plan);
    const int64_t used = c.used;
    cmoei_align_carve_scratch(&c, &plan);
    CMOEI_TRY(cmoei_carver_check(&c, "align", err));
    const cmoei_ids flat = cmoei_ids_of(&ids);
    cmoei_align_run(s->ctx, &plan, &flat, out);
    arena->used = used;
    return CMOE_OK;
}
