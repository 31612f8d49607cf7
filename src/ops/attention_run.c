/* SPDX-License-Identifier: MIT
 *
 * attention_run.c - groups of query rows, waves of items, and the spreading over threads, as
 * attention_plan.h explains.
 *
 * Which rows share a group or a wave, and who computes which part, cannot be seen in a result: rows
 * are independent of each other, and the parts of a row are cut at absolute positions and merged in
 * ascending order.
 */
#include "ops/attention_plan.h"

#include <math.h>

void cmoei_attention_visible(const cmoei_attention_plan *p, int64_t i, int64_t position,
                             int64_t *lo, int64_t *hi)
{
    const int64_t end = cmoei_batch_end(&p->batch, i), window = p->o.window, block = p->o.mask;
    *lo = window > 0 ? CMOEI_MAX(0, position - window + 1) : 0;
    if (block == CMOE_MASK_CAUSAL) {
        *hi = position + 1;
    } else if (block == CMOE_MASK_FULL) {
        *hi = end;
    } else {
        const int64_t from = position - position % block;
        *hi = end - from < block ? end : from + block;
    }
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* No group of sequence i reads more parts than this. */
static int64_t most_parts(const cmoei_attention_plan *p, int64_t i)
{
    const int64_t end = cmoei_batch_end(&p->batch, i);
    const int64_t all = cmoei_ceil_div(end, CMOE_KV_PART);
    if (p->o.window == 0 || p->o.window >= end || p->o.mask == CMOE_MASK_FULL) return all;
    const int64_t ahead = CMOEI_MIN(end, CMOEI_MAX(p->o.mask, 0));
    const int64_t keys = p->o.window / CMOE_KV_PART + ahead / CMOE_KV_PART;
    return CMOEI_MIN(all, keys + p->group_tokens / CMOE_KV_PART + 4); /* 3 remainders, 1 edge */
}

/* Adds sequence i; false when sizes leave int64. */
static bool plan_sequence(cmoei_attention_plan *p, int64_t i, int64_t *least, int64_t *all)
{
    const int64_t tokens = cmoei_batch_count(&p->batch, i), end = cmoei_batch_end(&p->batch, i);
    if (tokens == 0) return true;
    const int64_t parts = most_parts(p, i);
    const int64_t rows = CMOEI_MIN(tokens, p->group_tokens) * p->group_heads;
    const double keys = (double)(p->o.window ? CMOEI_MIN(end, p->o.window) : end);
    int64_t group, n;
    if (!cmoei_mul(rows, parts, &group) || !cmoei_mul(tokens, p->o.heads, &n) ||
        !cmoei_mul(n, parts, &n) || !cmoei_add(*all, n, all))
        return false;
    *least = CMOEI_MAX(*least, group);
    p->cost +=
        (double)tokens * (double)p->o.heads * keys * (double)(p->kv.key_dim + p->kv.value_dim);
    return true;
}

cmoe_status cmoei_attention_plan_make(cmoei_attention_plan *p, int64_t threads, cmoe_error *err)
{
    int64_t least = 0, all = 0;
    p->ratio = p->o.heads / p->kv.heads;
    p->group_heads = CMOEI_MIN(p->ratio, CMOEI_ATTENTION_ROWS);
    p->group_tokens = CMOEI_ATTENTION_ROWS / p->group_heads;
    p->cost = 0;
    for (int64_t i = 0; i < p->batch.sequences; i++) {
        if (!plan_sequence(p, i, &least, &all))
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "attention: tokens * heads * parts of keys exceed 2^63 - 1");
    }
    p->slots = CMOEI_MAX(least, CMOEI_MIN(all, CMOEI_ATTENTION_SLOTS * threads));
    p->threads = p->slots > 0 ? threads : 0;
    return CMOE_OK;
}

cmoei_attention_room cmoei_attention_carve(const cmoei_attention_plan *p, cmoei_carver *c)
{
    cmoei_attention_room r;
    int64_t acc, q;
    if (!cmoei_mul(p->slots, p->kv.value_dim, &acc)) acc = -1; /* the carver notes it */
    if (!cmoei_mul(p->threads * CMOEI_ATTENTION_ROWS, p->kv.key_dim, &q)) q = -1;
    r.m = cmoei_carve_array(c, p->slots, sizeof *r.m);
    r.l = cmoei_carve_array(c, p->slots, sizeof *r.l);
    r.acc = cmoei_carve_array(c, acc, sizeof *r.acc);
    r.groups = cmoei_carve_array(c, p->slots, sizeof *r.groups);
    r.items = cmoei_carve_array(c, p->slots, sizeof *r.items);
    r.q = cmoei_carve_array(c, q, sizeof *r.q);
    r.out = cmoei_carve_array(c, p->threads, p->kv.value_dim * (int64_t)sizeof *r.out);
    return r;
}

/* ---- waves ----------------------------------------------------------------------------------- */

typedef struct job {
    const cmoei_attention_plan *plan;
    const cmoei_attention_room *room;
    const cmoei_attention_kernel *kernel;
    const cmoei_plane *q, *sinks, *out;
    cmoei_attention_group next; /* the first group of the next wave */
    int64_t groups, items;      /* of this wave */
} job;

/* `g` becomes the group at its place, or one of no tokens behind the last.  Tokens go fastest: their
 * groups read the same keys. */
static void settle(const cmoei_attention_plan *p, cmoei_attention_group *g)
{
    for (; g->sequence < p->batch.sequences; g->sequence++, g->kv_head = 0) {
        const int64_t n = cmoei_batch_count(&p->batch, g->sequence);
        if (n == 0) continue;
        if (g->token >= n) {
            g->token = 0;
            g->head += p->group_heads;
        }
        if (g->head >= p->ratio) {
            g->head = 0;
            g->kv_head++;
        }
        if (g->kv_head < p->kv.heads) break;
    }
    g->tokens = 0;
    if (g->sequence == p->batch.sequences) return;
    const int64_t at = p->batch.start[g->sequence] + g->token;
    const int64_t n = cmoei_batch_count(&p->batch, g->sequence);
    int64_t lo, hi, skip;
    g->tokens = CMOEI_MIN(n - g->token, p->group_tokens);
    g->heads = CMOEI_MIN(p->ratio - g->head, p->group_heads);
    cmoei_attention_visible(p, g->sequence, at, &lo, &skip);
    cmoei_attention_visible(p, g->sequence, at + g->tokens - 1, &skip, &hi);
    g->part = lo / CMOE_KV_PART;
    g->parts = cmoei_ceil_div(hi, CMOE_KV_PART) - g->part;
}

/* Items of groups [from, to), which share a kv head, by part: whoever comes next finds its keys in
 * the cache. */
static void add_items(job *j, int64_t from, int64_t to)
{
    const cmoei_attention_group *g = j->room->groups;
    int64_t part = INT64_MAX, end = 0;
    for (int64_t i = from; i < to; i++) {
        part = CMOEI_MIN(part, g[i].part);
        end = CMOEI_MAX(end, g[i].part + g[i].parts);
    }
    for (; part < end; part++) {
        for (int64_t i = from; i < to; i++) {
            if (part >= g[i].part && part < g[i].part + g[i].parts)
                j->room->items[j->items++] = (cmoei_attention_item){i, part};
        }
    }
}

static bool reads_same(const cmoei_attention_group *a, const cmoei_attention_group *b)
{
    return a->sequence == b->sequence && a->kv_head == b->kv_head;
}

static void next_wave(job *j)
{
    const cmoei_attention_plan *p = j->plan;
    cmoei_attention_group *g = j->room->groups, *next = &j->next;
    int64_t used = 0, from = 0;
    j->groups = j->items = 0;
    for (settle(p, next); next->tokens > 0; next->token += next->tokens, settle(p, next)) {
        const int64_t slots = next->tokens * next->heads * next->parts;
        if (used + slots > p->slots) break;
        if (j->groups > from && !reads_same(&g[from], next)) {
            add_items(j, from, j->groups);
            from = j->groups;
        }
        next->slot = used;
        used += slots;
        g[j->groups++] = *next;
    }
    add_items(j, from, j->groups);
}

/* ---- items and merges ------------------------------------------------------------------------ */

/* Row r of a group is head r % heads of its token r / heads. */
static int64_t row_token(const job *j, const cmoei_attention_group *g, int64_t r)
{
    return j->plan->batch.first[g->sequence] + g->token + r / g->heads;
}
static int64_t row_head(const job *j, const cmoei_attention_group *g, int64_t r)
{
    return g->kv_head * j->plan->ratio + g->head + r % g->heads;
}
static void row_visible(const job *j, const cmoei_attention_group *g, int64_t r, int64_t *lo,
                        int64_t *hi)
{
    const int64_t position = j->plan->batch.start[g->sequence] + g->token + r / g->heads;
    cmoei_attention_visible(j->plan, g->sequence, position, lo, hi);
}

/* Here and not where options are read: a task rounds to nearest, whatever its caller does. */
static float scale_of(const cmoei_attention_plan *p)
{
    return p->o.scale != 0 ? p->o.scale : (float)(1 / sqrt((double)p->kv.key_dim));
}

static void run_item(const job *j, const cmoei_attention_item *item, float *q)
{
    const cmoei_attention_plan *p = j->plan;
    const cmoei_attention_group *g = j->room->groups + item->group;
    const int64_t rows = g->tokens * g->heads;
    const int64_t slot = g->slot + (item->part - g->part) * rows;
    int64_t lo[CMOEI_ATTENTION_ROWS], hi[CMOEI_ATTENTION_ROWS], last = 0;
    for (int64_t r = 0; r < rows; r++) {
        row_visible(j, g, r, &lo[r], &hi[r]);
        last = CMOEI_MAX(last, hi[r]);
        cmoei_block_load(q + r * p->kv.key_dim, j->q, row_token(j, g, r),
                         row_head(j, g, r) * p->kv.key_dim, p->kv.key_dim);
    }
    const int64_t key = item->part * CMOE_KV_PART;
    j->kernel->part(&(cmoei_attention_args){
        .q = q,
        .lo = lo,
        .hi = hi,
        .m = j->room->m + slot,
        .l = j->room->l + slot,
        .acc = j->room->acc + slot * p->kv.value_dim,
        .base = p->kv.base,
        .pages = p->batch.pages + g->sequence * p->batch.page_columns,
        .page_stride = p->kv.page_stride,
        .keys = cmoei_kv_keys_at(&p->kv, g->kv_head),
        .values = cmoei_kv_values_at(&p->kv, g->kv_head),
        .rows = rows,
        .key_dim = p->kv.key_dim,
        .value_dim = p->kv.value_dim,
        .key = key,
        .key_end = CMOEI_MIN(last, key + CMOE_KV_PART),
        .format = p->kv.format,
        .scale = scale_of(p),
    });
}

static void merge_group(const job *j, const cmoei_attention_group *g, float *out)
{
    const cmoei_attention_plan *p = j->plan;
    const int64_t rows = g->tokens * g->heads, dims = p->kv.value_dim;
    for (int64_t r = 0; r < rows; r++) {
        int64_t lo, hi;
        float sink;
        row_visible(j, g, r, &lo, &hi);
        const int64_t part = lo / CMOE_KV_PART, head = row_head(j, g, r);
        const int64_t slot = g->slot + (part - g->part) * rows + r;
        if (j->sinks->data) cmoei_block_load(&sink, j->sinks, 0, head, 1);
        j->kernel->merge(&(cmoei_attention_parts){
            .m = j->room->m + slot,
            .l = j->room->l + slot,
            .acc = j->room->acc + slot * dims,
            .parts = cmoei_ceil_div(hi, CMOE_KV_PART) - part,
            .step = rows,
            .value_dim = dims,
            .sink = j->sinks->data ? &sink : NULL,
            .out = out,
        });
        cmoei_block_store(j->out, row_token(j, g, r), head * dims, out, dims);
    }
}

static void run_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    job *j = arg;
    const cmoei_attention_plan *p = j->plan;
    float *q = j->room->q + index * CMOEI_ATTENTION_ROWS * p->kv.key_dim;
    float *out = j->room->out + index * p->kv.value_dim;
    int64_t i;
    (void)count;
    for (;;) {
        if (index == 0) next_wave(j);
        cmoei_barrier(team);
        if (j->groups == 0) return;
        while ((i = cmoei_next(team, 1)) < j->items)
            run_item(j, j->room->items + i, q);
        cmoei_barrier(team);
        while ((i = cmoei_next(team, 1)) < j->groups)
            merge_group(j, j->room->groups + i, out);
        cmoei_barrier(team);
    }
}

enum { TASK_COST = 1 << 18 }; /* multiply-adds that are worth a thread: about 10 us */

void cmoei_attention_run(cmoe_ctx *ctx, const cmoei_attention_plan *p,
                         const cmoei_attention_room *room, const cmoei_plane *q,
                         const cmoei_plane *sinks, const cmoei_plane *out)
{
    job j = {.plan = p,
             .room = room,
             .kernel = cmoei_table_pick(&cmoei_attention_table, ctx->features, 0),
             .q = q,
             .sinks = sinks,
             .out = out};
    const double tasks = CMOEI_MIN(p->cost / TASK_COST, (double)p->threads);
    cmoei_region(ctx, (int64_t)tasks, run_task, &j);
}
