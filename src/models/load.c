/* SPDX-License-Identifier: MIT
 *
 * load.c - a directory -> packed weights.
 *
 * Layer by layer: the matrices of a layer are packed straight from the mapped files, then the layer's
 * part of the files is dropped.  So nothing but the packed weights is ever held in memory, and the
 * disk reads the next layer while this one is packed.  With a tape the same walk takes every matrix
 * as another load has kept it, and packs nothing.
 */
#include "load.h"

#include <inttypes.h>
#include <string.h>

#include "weights/checkpoint.h"

/* ---- vectors -------------------------------------------------------------------------------------- */

/* Vectors are carved twice: dry to count them, then from m->vectors; `read` fills them. */
static float *carve_vector(cmoei_carver *c, const cmoei_source *s, bool read)
{
    if (!s->data) return NULL;
    float *v = cmoei_carve_array(c, s->cols, sizeof *v);
    if (v && read) cmoei_source_row(s, 0, v);
    return v;
}

static void carve_vectors(cmoe_model *m, const cmoei_tensors *t, cmoei_carver *c, bool read)
{
    m->final_norm = carve_vector(c, &t->global[CMOEI_FINAL_NORM], read);
    m->final_norm_bias = carve_vector(c, &t->global[CMOEI_FINAL_NORM_BIAS], read);
    m->frequencies = cmoei_carve_array(c, m->d.rope.dim / 2, sizeof(float));
    for (int64_t i = 0; i < m->d.layers; i++) {
        cmoei_model_layer *l = &m->layer[i];
        l->norm1 = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM1), read);
        l->norm1_bias = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM1_BIAS), read);
        l->norm2 = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM2), read);
        l->norm2_bias = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM2_BIAS), read);
        l->q_norm = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_Q_NORM), read);
        l->k_norm = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_K_NORM), read);
        l->sinks = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_SINKS), read);
    }
}

static cmoe_status load_vectors(cmoei_loader *l)
{
    cmoe_model *m = l->m;
    const void *kept;
    cmoei_carver c = cmoei_carver_dry();
    carve_vectors(m, l->t, &c, false);
    CMOEI_TRY(cmoei_carver_check(&c, "vectors", l->err));
    m->vector_bytes = cmoei_carver_bytes(&c);
    CMOEI_TRY(
        cmoei_alloc(m->ctx, m->vector_bytes, "norms and biases", (void **)&m->vectors, l->err));
    memset(m->vectors, 0, (size_t)m->vector_bytes);
    const cmoe_arena arena = cmoe_arena_make(m->vectors, m->vector_bytes);
    c = cmoei_carver_open(&arena);
    carve_vectors(m, l->t, &c, !cmoei_tape_plays(l->tape));
    CMOEI_TRY(cmoei_carver_check(&c, "vectors", l->err));
    if (cmoei_tape_plays(l->tape)) {
        CMOEI_TRY(cmoei_tape_take(l->tape, m->vector_bytes, &kept, l->err));
        memcpy(m->vectors, kept, (size_t)m->vector_bytes);
    } else {
        CMOEI_TRY(cmoei_tape_put(l->tape, m->vectors, m->vector_bytes, false, l->err));
    }
    /* Last: they depend on the context, which the tape knows nothing of. */
    return cmoe_rope_frequencies(&m->d.rope, m->frequencies, &m->amplitude, l->err);
}

/* ---- attention ------------------------------------------------------------------------------------ */

/* Every piece with its bias, or none of them. */
static cmoei_piece *recipe_piece(cmoei_recipe *r, const cmoei_source *rows,
                                 const cmoei_source *bias, cmoei_range range)
{
    cmoei_piece *p = &r->rows[r->count];
    *p = (cmoei_piece){.source = rows, .rows = range, .layer = -1};
    r->bias[r->count++] = (cmoei_piece){.source = bias, .rows = range, .layer = -1};
    return p;
}

/* A piece that adapters may change. */
static void adapted_piece(cmoei_recipe *r, const cmoei_source *rows, const cmoei_source *bias,
                          cmoei_range range, int64_t layer, cmoei_role role, int64_t first_expert)
{
    cmoei_piece *p = recipe_piece(r, rows, bias, range);
    p->layer = layer;
    p->role = role;
    p->first_expert = first_expert;
}

static cmoe_status load_attention(cmoei_loader *l, int64_t i)
{
    const cmoei_decoder *d = &l->m->d;
    const cmoei_tensors *t = l->t;
    cmoei_model_layer *layer = &l->m->layer[i];
    cmoei_range queries, keys, hidden = cmoei_share_of(&l->m->share, d->hidden);
    cmoei_share_heads(&l->m->share, d, &queries, &keys);
    const cmoei_range q = {queries.first * d->head_dim, queries.count * d->head_dim},
                      k = {keys.first * d->head_dim, keys.count * d->head_dim};
    cmoei_recipe qkv = {
        .name = "q, k, v", .format = l->m->format, .dims = {1, q.count + 2 * k.count, d->hidden}};
    cmoei_recipe o = {
        .name = "o", .format = l->m->format, .dims = {1, hidden.count, d->heads * d->head_dim}};
    const bool biased = d->qkv_bias;
    adapted_piece(&qkv, cmoei_tensor_of(t, i, CMOEI_Q),
                  biased ? cmoei_tensor_of(t, i, CMOEI_Q_BIAS) : NULL, q, i, CMOEI_Q, 0);
    adapted_piece(&qkv, cmoei_tensor_of(t, i, CMOEI_K),
                  biased ? cmoei_tensor_of(t, i, CMOEI_K_BIAS) : NULL, k, i, CMOEI_K, 0);
    adapted_piece(&qkv, cmoei_tensor_of(t, i, CMOEI_V),
                  biased ? cmoei_tensor_of(t, i, CMOEI_V_BIAS) : NULL, k, i, CMOEI_V, 0);
    adapted_piece(&o, cmoei_tensor_of(t, i, CMOEI_O),
                  d->o_bias ? cmoei_tensor_of(t, i, CMOEI_O_BIAS) : NULL, hidden, i, CMOEI_O, 0);
    CMOEI_TRY(cmoei_load_matrix(l, &qkv, &layer->qkv));
    return cmoei_load_matrix(l, &o, &layer->o);
}

/* ---- MLPs ------------------------------------------------------------------------------------------ */

/* Sources of the gate, up and down of some MLPs, and of their biases or NULL. */
typedef struct mlp_sources {
    const cmoei_source *gate, *up, *down, *gate_bias, *up_bias, *down_bias; /* [count] */
    int64_t count, inter;
    int64_t layer, first; /* of which layer, from which expert on */
    cmoei_role role;      /* of the gate; up and down come behind it */
} mlp_sources;

static cmoe_status load_mlp(cmoei_loader *l, const mlp_sources *s,
                            const cmoe_experts_options *options, cmoei_mlp *out)
{
    const cmoei_range inter = cmoei_share_of(&l->m->share, s->inter),
                      hidden = cmoei_share_of(&l->m->share, l->m->d.hidden);
    cmoei_recipe up = {.name = "w13",
                       .format = l->m->format,
                       .gated = true,
                       .dims = {s->count, 2 * inter.count, l->m->d.hidden}};
    cmoei_recipe down = {
        .name = "w2", .format = l->m->format, .dims = {s->count, hidden.count, s->inter}};
    adapted_piece(&up, s->gate, s->gate_bias, inter, s->layer, s->role, s->first);
    adapted_piece(&up, s->up, s->up_bias, inter, s->layer, s->role + 1, s->first);
    adapted_piece(&down, s->down, s->down_bias, hidden, s->layer, s->role + 2, s->first);
    CMOEI_TRY(cmoei_load_matrix(l, &up, &out->w13));
    CMOEI_TRY(cmoei_load_matrix(l, &down, &out->w2));
    if (l->m->share.ranks > 1) return CMOE_OK; /* parts of outputs are not experts yet */
    const cmoei_mlp both = *out;
    *out = (cmoei_mlp){0};
    CMOEI_TRY(cmoei_experts_around(&out->experts, l->m->ctx, options, both.w13, both.w2, l->err));
    out->w13 = both.w13;
    out->w2 = both.w2;
    return CMOE_OK;
}

static cmoe_status load_plain_mlp(cmoei_loader *l, int64_t i, cmoei_role gate, int64_t inter,
                                  cmoei_mlp *out)
{
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = l->m->format;
    mlp_sources s = {.gate = cmoei_tensor_of(l->t, i, gate),
                     .up = cmoei_tensor_of(l->t, i, gate + 1),
                     .down = cmoei_tensor_of(l->t, i, gate + 2),
                     .count = 1,
                     .inter = inter,
                     .layer = i,
                     .role = gate};
    if (l->m->d.mlp_bias) {
        s.gate_bias = cmoei_tensor_of(l->t, i, gate + 3);
        s.up_bias = cmoei_tensor_of(l->t, i, gate + 4);
        s.down_bias = cmoei_tensor_of(l->t, i, gate + 5);
    }
    return load_mlp(l, &s, &o, out);
}

static cmoe_status load_experts(cmoei_loader *l, int64_t i)
{
    const cmoei_decoder *d = &l->m->d;
    const cmoei_range kept = cmoei_share_experts(&l->m->share, d->layer[i].experts);
    const int64_t e = kept.first;
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = l->m->format;
    o.activation = d->activation;
    o.swiglu_limit = d->swiglu_limit;
    o.alpha = d->swiglu_alpha;
    o.first_expert = e;
    if (kept.count == 0) return CMOE_OK;
    mlp_sources s = {.gate = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_GATE, e),
                     .up = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_UP, e),
                     .down = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_DOWN, e),
                     .count = kept.count,
                     .inter = d->layer[i].inter,
                     .layer = i,
                     .first = e,
                     .role = CMOEI_EXPERT_GATE};
    if (d->mlp_bias || d->expert_bias) {
        s.gate_bias = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_GATE_BIAS, e);
        s.up_bias = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_UP_BIAS, e);
        s.down_bias = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_DOWN_BIAS, e);
    }
    return load_mlp(l, &s, &o, &l->m->layer[i].experts);
}

/* ---- router --------------------------------------------------------------------------------------- */

/* All rows of a source, for what takes a view. */
static cmoe_status read_whole(cmoei_loader *l, int64_t layer, cmoei_role role, cmoei_values *w)
{
    const void *kept;
    const cmoei_source *s = cmoei_tensor_of(l->t, layer, role);
    if (!s->data) return CMOE_OK;
    w->rows = s->rows;
    w->cols = s->cols;
    w->bytes = s->rows * s->cols * (int64_t)sizeof *w->values;
    CMOEI_TRY(cmoei_alloc(l->m->ctx, w->bytes, "router", (void **)&w->values, l->err));
    if (cmoei_tape_plays(l->tape)) {
        CMOEI_TRY(cmoei_tape_take(l->tape, w->bytes, &kept, l->err));
        memcpy(w->values, kept, (size_t)w->bytes);
        return CMOE_OK;
    }
    for (int64_t n = 0; n < s->rows; n++) {
        cmoei_source_row(s, n, w->values + n * s->cols);
        cmoei_fold_row(l->folds, layer, role, 0, n, w->values + n * s->cols);
    }
    return cmoei_tape_put(l->tape, w->values, w->bytes, true, l->err);
}

static cmoe_view as_matrix(const cmoei_values *w)
{
    return w->values ? cmoe_view_2d(w->values, CMOE_F32, w->rows, w->cols) : cmoe_view_none();
}

static cmoe_view as_vector(const cmoei_values *w)
{
    return w->values ? cmoe_view_1d(w->values, CMOE_F32, w->cols) : cmoe_view_none();
}

static cmoe_status create_layer(cmoei_loader *l, int64_t i, const cmoei_values *router)
{
    cmoei_model_layer *layer = &l->m->layer[i];
    cmoe_route_options route = l->m->d.route;
    route.topk = l->m->d.layer[i].topk;
    cmoe_layer_options o;
    cmoe_layer_weights w;
    cmoe_layer_options_default(&o, sizeof o);
    cmoe_layer_weights_default(&w, sizeof w);
    o.route = &route;
    w.gate = as_matrix(&router[0]);
    w.gate_bias = as_vector(&router[1]);
    w.bias = as_vector(&router[2]);
    w.shared_gate = as_matrix(&router[3]);
    w.experts = layer->experts.experts;
    w.shared = layer->shared.experts;
    return cmoe_layer_create(&layer->moe, l->m->ctx, &o, &w, l->err);
}

static cmoe_status load_router(cmoei_loader *l, int64_t i)
{
    static const cmoei_role roles[CMOEI_ROUTER_PARTS] = {CMOEI_ROUTER, CMOEI_ROUTER_BIAS,
                                                         CMOEI_CHOICE_BIAS, CMOEI_SHARED_WEIGHT};
    cmoei_model_layer *layer = &l->m->layer[i];
    for (int32_t r = 0; r < CMOEI_ROUTER_PARTS; r++)
        CMOEI_TRY(read_whole(l, i, roles[r], &layer->router[r]));
    if (cmoei_model_is_share(l->m)) return CMOE_OK;
    CMOEI_TRY(create_layer(l, i, layer->router));
    cmoei_model_free_router(l->m, i); /* the layer has copies */
    return CMOE_OK;
}

/* ---- the ends --------------------------------------------------------------------------------------- */

static cmoe_status load_embedding(cmoei_loader *l)
{
    cmoe_model *m = l->m;
    const cmoei_source *s = &l->t->global[CMOEI_EMBEDDING];
    const cmoei_range vocab = cmoei_share_of(&m->share, m->d.vocab);
    const int64_t row = m->d.hidden * cmoe_dtype_bytes(s->dtype), bytes = vocab.count * row;
    m->embedding_dtype = s->dtype;
    l->done += bytes;
    if (cmoei_tape_plays(l->tape)) return cmoei_tape_take(l->tape, bytes, &m->embedding, l->err);
    m->embedding_bytes = bytes;
    CMOEI_TRY(cmoei_alloc(m->ctx, bytes, "embedding", &m->own_embedding, l->err));
    m->embedding = m->own_embedding;
    memcpy(m->own_embedding, s->data + vocab.first * row, (size_t)bytes);
    return cmoei_tape_put(l->tape, m->embedding, bytes, false, l->err);
}

static cmoe_status load_head(cmoei_loader *l)
{
    cmoe_model *m = l->m;
    const cmoei_role role = m->d.tied ? CMOEI_EMBEDDING : CMOEI_HEAD;
    const cmoei_range vocab = cmoei_share_of(&m->share, m->d.vocab);
    cmoei_recipe head = {.name = "head",
                         .format = cmoei_head_format(m->format),
                         .dims = {1, vocab.count, m->d.hidden}};
    recipe_piece(&head, &l->t->global[role], m->d.head_bias ? &l->t->global[CMOEI_HEAD_BIAS] : NULL,
                 vocab);
    CMOEI_TRY(cmoei_load_matrix(l, &head, &m->head));
    return cmoei_load_run(l);
}

/* ---- the whole ------------------------------------------------------------------------------------- */

static cmoe_status load_layer(cmoei_loader *l, int64_t i)
{
    const cmoei_layer_shape *shape = &l->m->d.layer[i];
    cmoei_model_layer *layer = &l->m->layer[i];
    CMOEI_TRY(load_attention(l, i));
    if (shape->experts == 0)
        CMOEI_TRY(load_plain_mlp(l, i, CMOEI_GATE, shape->inter, &layer->dense));
    else
        CMOEI_TRY(load_experts(l, i));
    if (shape->experts > 0 && shape->shared_inter > 0)
        CMOEI_TRY(load_plain_mlp(l, i, CMOEI_SHARED_GATE, shape->shared_inter, &layer->shared));
    CMOEI_TRY(cmoei_load_run(l));
    if (shape->experts > 0) CMOEI_TRY(load_router(l, i));
    return CMOE_OK;
}

static cmoe_status load_all(cmoei_loader *l)
{
    const int64_t layers = l->m->d.layers;
    const bool reads = !cmoei_tape_plays(l->tape), drops = reads && !l->o->keep_page_cache;
    CMOEI_TRY(load_vectors(l));
    CMOEI_TRY(load_embedding(l));
    CMOEI_TRY(load_head(l));
    if (drops) cmoei_load_drop_global(l);
    if (reads && layers > 0) CMOEI_TRY(cmoei_load_extents(l, 0, cmoei_checkpoint_will_need));
    for (int64_t i = 0; i < layers; i++) {
        if (reads && i + 1 < layers)
            CMOEI_TRY(cmoei_load_extents(l, i + 1, cmoei_checkpoint_will_need));
        if (reads) CMOEI_TRY(cmoei_checkpoint_whole(l->c, l->err));
        CMOEI_TRY(load_layer(l, i));
        if (drops) CMOEI_TRY(cmoei_load_extents(l, i, cmoei_checkpoint_drop));
    }
    return CMOE_OK;
}

/* No row that is packed is longer. */
static int64_t longest_row(const cmoei_decoder *d)
{
    int64_t n = CMOEI_MAX(d->hidden, d->heads * d->head_dim);
    for (int64_t i = 0; i < d->layers; i++)
        n = CMOEI_MAX(n, CMOEI_MAX(d->layer[i].inter, d->layer[i].shared_inter));
    return n;
}

cmoe_status cmoei_model_fill(cmoe_model *m, const cmoe_model_options *o, const cmoe_checkpoint *c,
                             const cmoei_tensors *t, const cmoei_folds *folds, cmoei_tape *tape,
                             cmoe_error *err)
{
    const cmoe_model_bytes *b = &m->info.bytes;
    cmoei_loader l = {.m = m, .o = o, .c = c, .t = t, .folds = folds, .tape = tape, .err = err};
    l.total = b->total - b->router - b->embedding - b->small; /* which are copied, not packed */
    if (cmoei_tape_plays(tape)) l.told = l.total;             /* when the tape was opened */
    if (!cmoei_pack_elements(longest_row(&m->d), &l.row_length) ||
        !cmoei_mul(l.row_length, m->ctx->threads * (int64_t)sizeof *l.rows, &l.row_bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "model: rows of %" PRId64 " values are too long",
                          longest_row(&m->d));
    CMOEI_TRY(cmoei_alloc(m->ctx, l.row_bytes, "packing rows", (void **)&l.rows, err));
    const uint64_t before = cmoei_float_enter();
    const cmoe_status status = load_all(&l);
    cmoei_float_leave(before);
    cmoei_free(m->ctx, l.rows, l.row_bytes);
    return status;
}
