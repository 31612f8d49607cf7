/* SPDX-License-Identifier: MIT
 *
 * attention_rows_run.c - attention of whole sequences: scratch, and the spreading over threads.
 *
 * Forward, every token is on its own: an item is a few tokens of one kv head.  Backward, a key's
 * gradient is a sum over all that see it, so an item is one kv head of tokens that have no key in
 * common with others.  Packed documents are such, each with its noised half in block diffusion; they
 * are found in `see`, nobody has to name them:
 *
 *   piece   tokens between two places that no range of keys spans; so a range lies in one piece
 *   family  pieces joined by tokens whose two ranges lie in different ones, closed under that
 *
 * Which tokens share an item or a thread cannot be seen in a result.
 */
#include "ops/attention_rows.h"

#include <math.h>

/* ---- scratch --------------------------------------------------------------------------------- */

cmoei_attention_rows_room cmoei_attention_rows_carve(const cmoei_attention_rows_plan *p,
                                                     cmoei_carver *c)
{
    const int64_t tokens = p->tokens;
    cmoei_attention_rows_room r;
    int64_t dots;
    if (!cmoei_mul(tokens, p->o.heads, &dots)) dots = -1; /* the carver notes it */
    r.kernel_bytes = cmoei_attention_rows_kernel_bytes(tokens, p->head_dim);
    r.kernel = cmoei_carve_array(c, tokens > 0 ? p->threads : 0, r.kernel_bytes);
    r.dot = cmoei_carve_array(c, dots, sizeof *r.dot);
    r.dsinks = cmoei_carve_array(c, p->o.heads, sizeof *r.dsinks);
    r.owner = cmoei_carve_array(c, tokens, sizeof *r.owner);
    r.parent = cmoei_carve_array(c, tokens, sizeof *r.parent);
    r.queries = cmoei_carve_array(c, tokens, sizeof *r.queries);
    r.keys = cmoei_carve_array(c, tokens, sizeof *r.keys);
    r.query_first = cmoei_carve_array(c, tokens + 1, sizeof *r.query_first);
    r.key_first = cmoei_carve_array(c, tokens + 1, sizeof *r.key_first);
    return r;
}

/* ---- families -------------------------------------------------------------------------------- */

/* owner[t] becomes the piece of token t; returns how many there are. */
static int32_t find_pieces(const cmoei_plane *see, int64_t tokens, int32_t *owner)
{
    int32_t at[4], pieces = 0, open = 0;
    memset(owner, 0, (size_t)tokens * sizeof *owner);
    for (int64_t t = 0; t < tokens; t++) { /* how many more ranges span what is behind t */
        cmoei_attention_rows_see(see, t, at);
        for (int i = 0; i < 4; i += 2) {
            if (at[i] >= at[i + 1]) continue;
            owner[at[i]]++;
            owner[at[i + 1] - 1]--;
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        open += owner[t];
        owner[t] = pieces;
        pieces += open == 0;
    }
    return pieces;
}

static int32_t root_of(int32_t *parent, int32_t piece)
{
    while (parent[piece] != piece) {
        parent[piece] = parent[parent[piece]];
        piece = parent[piece];
    }
    return piece;
}

/* parent[piece] becomes the family of a piece; returns how many there are. */
static int32_t find_families(const cmoei_plane *see, int64_t tokens, const int32_t *owner,
                             int32_t pieces, int32_t *parent)
{
    int32_t at[4], families = 0;
    for (int32_t i = 0; i < pieces; i++)
        parent[i] = i;
    for (int64_t t = 0; t < tokens; t++) {
        cmoei_attention_rows_see(see, t, at);
        if (at[0] >= at[1] || at[2] >= at[3]) continue;
        const int32_t a = root_of(parent, owner[at[0]]), b = root_of(parent, owner[at[2]]);
        parent[CMOEI_MAX(a, b)] = CMOEI_MIN(a, b);
    }
    for (int32_t i = 0; i < pieces; i++) /* a parent stands before its children */
        parent[i] = parent[i] == i ? families++ : parent[parent[i]];
    return families;
}

/* Of token t as a query: where its keys are; without any, where it is itself. */
static int32_t query_piece(const cmoei_plane *see, int64_t t, const int32_t *owner)
{
    int32_t at[4];
    cmoei_attention_rows_see(see, t, at);
    return owner[at[0] < at[1] ? at[0] : at[2] < at[3] ? at[2] : t];
}

/* first [families + 1] holds in [f + 1] how many there are of family f: puts each at its place. */
static void prefix(int32_t *first, int32_t families)
{
    first[0] = 0;
    for (int32_t f = 0; f < families; f++)
        first[f + 1] += first[f];
}

/* Tokens by family, ascending inside of it, as queries and as keys. */
static int32_t sort_tokens(const cmoei_plane *see, int64_t tokens,
                           const cmoei_attention_rows_room *r)
{
    const int32_t pieces = find_pieces(see, tokens, r->owner);
    const int32_t families = find_families(see, tokens, r->owner, pieces, r->parent);
    memset(r->query_first, 0, (size_t)(families + 1) * sizeof *r->query_first);
    memset(r->key_first, 0, (size_t)(families + 1) * sizeof *r->key_first);
    for (int64_t t = 0; t < tokens; t++) {
        r->query_first[r->parent[query_piece(see, t, r->owner)] + 1]++;
        r->key_first[r->parent[r->owner[t]] + 1]++;
    }
    prefix(r->query_first, families);
    prefix(r->key_first, families);
    for (int64_t t = 0; t < tokens; t++) { /* first[f] runs up to where f + 1 begins ... */
        r->queries[r->query_first[r->parent[query_piece(see, t, r->owner)]]++] = (int32_t)t;
        r->keys[r->key_first[r->parent[r->owner[t]]]++] = (int32_t)t;
    }
    for (int32_t f = families; f > 0; f--) { /* ... and is put back */
        r->query_first[f] = r->query_first[f - 1];
        r->key_first[f] = r->key_first[f - 1];
    }
    r->query_first[0] = r->key_first[0] = 0;
    return families;
}

/* ---- tasks ----------------------------------------------------------------------------------- */

typedef struct job {
    cmoei_attention_rows_args *a;
    const cmoei_attention_rows_room *room;
    const cmoei_attention_rows_kernel *kernel;
    const cmoe_units *units;
    const cmoei_plane *dsinks;
    int32_t families;
} job;

static int64_t kv_heads(const job *j)
{
    return j->a->heads / j->a->ratio;
}

/* The default of `scale` here and not where options are read: a task rounds to nearest, whatever its
 * caller does. */
static cmoei_attention_rows_args with_scale(const cmoei_attention_rows_args *a)
{
    cmoei_attention_rows_args own = *a;
    if (own.scale == 0) own.scale = (float)(1 / sqrt((double)a->head_dim));
    return own;
}

static void forward_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    const cmoei_attention_rows_args a = with_scale(j->a);
    const int64_t chunks = cmoei_ceil_div(j->a->tokens, CMOEI_ATTENTION_ROWS_CHUNK);
    char *room = j->room->kernel + index * j->room->kernel_bytes;
    int64_t i;
    (void)count;
    while ((i = cmoei_next(team, 1)) < chunks * kv_heads(j)) {
        const int64_t token = i / kv_heads(j) * CMOEI_ATTENTION_ROWS_CHUNK;
        j->kernel->forward(&a, i % kv_heads(j), token,
                           CMOEI_MIN(j->a->tokens, token + CMOEI_ATTENTION_ROWS_CHUNK), room);
    }
}

static void backward_item(const job *j, const cmoei_attention_rows_args *a, int64_t family,
                          int64_t kv_head, void *room)
{
    const cmoei_attention_rows_room *r = j->room;
    const int64_t d = a->head_dim, from = r->query_first[family];
    for (int64_t i = r->key_first[family]; i < r->key_first[family + 1]; i++) {
        memset(cmoei_plane_at(&a->dk, r->keys[i], kv_head * d), 0, (size_t)d * sizeof(float));
        memset(cmoei_plane_at(&a->dv, r->keys[i], kv_head * d), 0, (size_t)d * sizeof(float));
    }
    j->kernel->backward(a, kv_head, r->queries + from, r->query_first[family + 1] - from, room);
}

static void backward_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    const cmoei_attention_rows_args a = with_scale(j->a);
    const int64_t items = j->families * kv_heads(j);
    int64_t i, head, head_end;
    while ((i = cmoei_next(team, 1)) < items)
        backward_item(j, &a, i / kv_heads(j), i % kv_heads(j),
                      j->room->kernel + index * j->room->kernel_bytes);
    if (!j->dsinks->data) return;
    cmoei_barrier(team);
    cmoei_split(j->a->heads, index, count, &head, &head_end);
    if (head == head_end) return;
    j->kernel->sinks(j->a, j->units, head, head_end, j->room->dsinks + head);
    cmoei_block_store(j->dsinks, 0, head, j->room->dsinks + head, head_end - head);
}

enum { TASK_COST = 1 << 18 }; /* multiply-adds that are worth a thread: about 10 us */

static int64_t tasks_of(const cmoei_attention_rows_args *a)
{
    double keys = 0;
    for (int64_t t = 0; t < a->tokens; t++) {
        int32_t at[4];
        cmoei_attention_rows_see(&a->see, t, at);
        keys += (double)(at[1] - at[0]) + (double)(at[3] - at[2]);
    }
    const double tasks = keys * (double)a->heads * (double)(2 * a->head_dim) / TASK_COST;
    return (int64_t)CMOEI_MIN(tasks, 1e6);
}

void cmoei_attention_rows_forward(cmoe_ctx *ctx, cmoei_attention_rows_args *a,
                                  const cmoei_attention_rows_room *room)
{
    job j = {.a = a,
             .room = room,
             .kernel = cmoei_table_pick(&cmoei_attention_rows_table, ctx->features, 0)};
    cmoei_region(ctx, tasks_of(a), forward_task, &j);
}

void cmoei_attention_rows_backward(cmoe_ctx *ctx, cmoei_attention_rows_args *a,
                                   const cmoe_units *units, const cmoei_plane *dsinks,
                                   const cmoei_attention_rows_room *room)
{
    job j = {.a = a,
             .room = room,
             .kernel = cmoei_table_pick(&cmoei_attention_rows_table, ctx->features, 0),
             .units = units,
             .dsinks = dsinks};
    a->dot = cmoei_plane_f32(room->dot, a->heads);
    j.families = sort_tokens(&a->see, a->tokens, room);
    cmoei_region(ctx, tasks_of(a), backward_task, &j);
}
