/* SPDX-License-Identifier: MIT
 *
 * load.c - a directory -> packed weights.
 *
 * Layer by layer: the matrices of a layer are allocated empty, all their panels are packed in one
 * parallel region straight from the mapped files, then the layer's part of the files is dropped.  So
 * nothing but the packed weights is ever held in memory, and the disk reads the next layer while
 * this one is packed.
 */
#include "load.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "weights/checkpoint.h"

/* ---- rows of a matrix that is made of several sources --------------------------------------------- */

/* Rows [first, first + count) of a source of each expert. */
typedef struct piece {
    const cmoei_source *source; /* [E] */
    cmoei_range rows;
} piece;

enum { PIECES = 3 };

/* A matrix [E, N, K] whose rows are those of its pieces, one below the other. */
typedef struct job {
    cmoe_matrix *matrix;
    piece pieces[PIECES];
    int64_t panels; /* of all E matrices */
} job;

static void stacked_row(const void *user, int64_t e, int64_t n, float *row)
{
    const job *j = user;
    for (int32_t i = 0; i < PIECES; i++) {
        const piece *p = &j->pieces[i];
        if (n < p->rows.count) {
            cmoei_source_row(&p->source[e], p->rows.first + n, row);
            return;
        }
        n -= p->rows.count;
    }
}

/* ---- one layer's worth of packing ----------------------------------------------------------------- */

enum { JOBS = 8 };

typedef struct loader {
    cmoe_model *m;
    const cmoe_model_options *o;
    const cmoe_checkpoint *c;
    const cmoei_tensors *t;
    cmoe_error *err;
    job jobs[JOBS];
    int32_t count;
    _Atomic int32_t cancelled;
    _Atomic int64_t packed; /* bytes, of the jobs at hand */
    int64_t told;           /* at how many bytes progress was last called */
    float *rows;            /* [threads, row_length] */
    int64_t row_length, row_bytes;
    int64_t done, total; /* packed bytes */
} loader;

static cmoe_status add_job(loader *l, cmoe_matrix *matrix, const piece *pieces, int32_t count)
{
    CMOE_ASSERT(l->count < JOBS && count <= PIECES);
    job *j = &l->jobs[l->count++];
    *j = (job){.matrix = matrix, .panels = matrix->count * matrix->panels};
    memcpy(j->pieces, pieces, (size_t)count * sizeof *pieces);
    return CMOE_OK;
}

/* Task 0 tells how far all of them are, about 500 times in a load. */
static void tell(loader *l, int64_t done)
{
    if (!l->o->progress || done - l->told < l->total / 500) return;
    l->told = done;
    if (l->o->progress(l->o->progress_user, CMOEI_MIN(done, l->total), l->total)) l->cancelled = 1;
}

static void pack(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    loader *l = arg;
    (void)count;
    int64_t all = 0;
    for (int32_t i = 0; i < l->count; i++)
        all += l->jobs[i].panels;
    for (int64_t i; !l->cancelled && (i = cmoei_next(team, 1)) < all;) {
        const job *j = l->jobs;
        while (i >= j->panels)
            i -= j++->panels;
        const cmoei_rows rows = {.row = stacked_row, .user = j};
        cmoei_matrix_pack(j->matrix, &rows, i, l->rows + index * l->row_length);
        l->packed += j->matrix->panel_bytes;
        if (index == 0) tell(l, l->done + l->packed);
    }
}

/* Packs what was added, then forgets it. */
static cmoe_status run_jobs(loader *l)
{
    int64_t panels = 0, bytes = 0;
    for (int32_t i = 0; i < l->count; i++) {
        panels += l->jobs[i].panels;
        bytes += cmoe_matrix_weight_bytes(l->jobs[i].matrix);
    }
    l->packed = 0;
    cmoei_region(l->m->ctx, panels, pack, l);
    l->count = 0;
    l->done += bytes;
    tell(l, l->done);
    if (l->cancelled) return cmoei_fail(l->err, CMOE_ERR_CANCELLED, "loading was cancelled");
    return CMOE_OK;
}

/* ---- what is read of the files, and when ---------------------------------------------------------- */

/* Bytes [data, data + bytes) of the mapping. */
typedef struct extent {
    const char *data;
    int64_t bytes;
} extent;

static extent extent_of(const cmoei_source *s)
{
    const int64_t size = s->dtype == CMOE_E2M1X2 ? 1 : cmoe_dtype_bytes(s->dtype);
    const int64_t cols = s->dtype == CMOE_E2M1X2 ? cmoei_ceil_div(s->cols, 2) : s->cols;
    const bool any = s->data && s->rows > 0 && cols > 0;
    return (extent){s->data, any ? ((s->rows - 1) * s->row + (cols - 1) * s->col + 1) * size : 0};
}

static int by_address(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    return x->data < y->data ? -1 : x->data > y->data;
}

static int64_t collect(const loader *l, int64_t layer, extent *list)
{
    int64_t n = 0;
    for (int32_t r = CMOEI_GLOBAL_ROLES; r < CMOEI_LAYER_ROLES; r++)
        list[n++] = extent_of(cmoei_tensor_of(l->t, layer, (cmoei_role)r));
    const cmoei_range kept = cmoei_share_experts(&l->m->share, l->m->d.layer[layer].experts);
    for (int32_t r = CMOEI_LAYER_ROLES; r < CMOEI_ROLES; r++) {
        for (int64_t e = kept.first; e < kept.first + kept.count; e++)
            list[n++] = extent_of(cmoei_tensor_of_expert(l->t, layer, (cmoei_role)r, e));
    }
    return n;
}

typedef void (*extent_fn)(const cmoe_checkpoint *c, const void *data, int64_t bytes);

/* Calls fn for what a layer reads, neighbours together: a call to the kernel costs as much as
 * reading half a megabyte, and a layer has hundreds of tensors side by side. */
static cmoe_status each_extent(const loader *l, int64_t layer, extent_fn fn)
{
    enum { GAP = 65536 };
    const int64_t most =
        CMOEI_ROLES + (CMOEI_ROLES - CMOEI_LAYER_ROLES) * l->m->d.layer[layer].experts;
    const int64_t bytes = most * (int64_t)sizeof(extent);
    extent *list;
    CMOEI_TRY(cmoei_alloc(l->m->ctx, bytes, "extents of a layer", (void **)&list, l->err));
    const int64_t n = collect(l, layer, list);
    qsort(list, (size_t)n, sizeof *list, by_address);
    for (int64_t i = 0, next; i < n; i = next) {
        const char *end = list[i].data + list[i].bytes;
        for (next = i + 1; next < n && list[next].data - end <= GAP; next++)
            end = CMOEI_MAX(end, list[next].data + list[next].bytes);
        if (list[i].bytes > 0) fn(l->c, list[i].data, end - list[i].data);
    }
    cmoei_free(l->m->ctx, list, bytes);
    return CMOE_OK;
}

/* ---- parts of a layer ------------------------------------------------------------------------------ */

static void vector_row(const cmoei_source *s, float *out)
{
    if (s->data) cmoei_source_row(s, 0, out);
}

/* Vectors are carved twice: dry to count them, then from m->vectors. */
static float *carve_vector(cmoei_carver *c, const cmoei_source *s)
{
    if (!s->data) return NULL;
    float *v = cmoei_carve_array(c, s->cols, sizeof *v);
    if (v) vector_row(s, v);
    return v;
}

static void carve_vectors(cmoe_model *m, const cmoei_tensors *t, cmoei_carver *c)
{
    m->final_norm = carve_vector(c, &t->global[CMOEI_FINAL_NORM]);
    m->final_norm_bias = carve_vector(c, &t->global[CMOEI_FINAL_NORM_BIAS]);
    m->frequencies = cmoei_carve_array(c, m->d.rope.dim / 2, sizeof(float));
    for (int64_t i = 0; i < m->d.layers; i++) {
        cmoei_model_layer *l = &m->layer[i];
        l->norm1 = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM1));
        l->norm1_bias = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM1_BIAS));
        l->norm2 = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM2));
        l->norm2_bias = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_NORM2_BIAS));
        l->q_norm = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_Q_NORM));
        l->k_norm = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_K_NORM));
        l->sinks = carve_vector(c, cmoei_tensor_of(t, i, CMOEI_SINKS));
    }
}

static cmoe_status load_vectors(cmoe_model *m, const cmoei_tensors *t, cmoe_error *err)
{
    cmoei_carver c = cmoei_carver_dry();
    carve_vectors(m, t, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "vectors", err));
    m->vector_bytes = cmoei_carver_bytes(&c);
    CMOEI_TRY(cmoei_alloc(m->ctx, m->vector_bytes, "norms and biases", (void **)&m->vectors, err));
    const cmoe_arena arena = cmoe_arena_make(m->vectors, m->vector_bytes);
    c = cmoei_carver_open(&arena);
    carve_vectors(m, t, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "vectors", err));
    return cmoe_rope_frequencies(&m->d.rope, m->frequencies, &m->amplitude, err);
}

/* Biases of [count] pieces, stacked as the rows of their matrix are, for experts [first, + n). */
static cmoe_status set_bias(loader *l, cmoe_matrix *m, const piece *pieces, int32_t count)
{
    float *bias;
    const int64_t bytes = m->outputs * (int64_t)sizeof *bias;
    if (!m->bias) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(l->m->ctx, bytes, "bias", (void **)&bias, l->err));
    for (int64_t e = 0; e < m->count; e++) {
        int64_t at = 0;
        for (int32_t i = 0; i < count; i++) {
            const cmoei_source s = pieces[i].source[e];
            cmoei_source part = s;
            part.data += pieces[i].rows.first * s.col * cmoe_dtype_bytes(s.dtype);
            part.cols = pieces[i].rows.count;
            if (part.cols) cmoei_source_row(&part, 0, bias + at);
            at += part.cols;
        }
        cmoei_matrix_set_bias(m, e, bias);
    }
    cmoei_free(l->m->ctx, bias, bytes);
    return CMOE_OK;
}

static cmoe_status load_attention(loader *l, int64_t i)
{
    const cmoei_decoder *d = &l->m->d;
    cmoei_model_layer *layer = &l->m->layer[i];
    cmoei_range queries, keys, hidden = cmoei_share_of(&l->m->share, d->hidden);
    cmoei_share_heads(&l->m->share, d, &queries, &keys);
    const cmoei_range q = {queries.first * d->head_dim, queries.count * d->head_dim},
                      k = {keys.first * d->head_dim, keys.count * d->head_dim};
    const piece qkv[] = {{cmoei_tensor_of(l->t, i, CMOEI_Q), q},
                         {cmoei_tensor_of(l->t, i, CMOEI_K), k},
                         {cmoei_tensor_of(l->t, i, CMOEI_V), k}};
    const piece bias[] = {{cmoei_tensor_of(l->t, i, CMOEI_Q_BIAS), q},
                          {cmoei_tensor_of(l->t, i, CMOEI_K_BIAS), k},
                          {cmoei_tensor_of(l->t, i, CMOEI_V_BIAS), k}};
    const piece o = {cmoei_tensor_of(l->t, i, CMOEI_O), hidden};
    const piece o_bias = {cmoei_tensor_of(l->t, i, CMOEI_O_BIAS), hidden};
    const int64_t qkv_dims[] = {1, q.count + 2 * k.count, d->hidden},
                  o_dims[] = {1, hidden.count, d->heads * d->head_dim};
    CMOEI_TRY(cmoei_matrix_alloc(&layer->qkv, l->m->ctx, l->m->format, false, qkv_dims, d->qkv_bias,
                                 "q, k, v", l->err));
    CMOEI_TRY(cmoei_matrix_alloc(&layer->o, l->m->ctx, l->m->format, false, o_dims, d->o_bias, "o",
                                 l->err));
    CMOEI_TRY(set_bias(l, layer->qkv, bias, 3));
    CMOEI_TRY(set_bias(l, layer->o, &o_bias, 1));
    CMOEI_TRY(add_job(l, layer->qkv, qkv, 3));
    return add_job(l, layer->o, &o, 1);
}

/* Sources of the gate, up and down of `experts` MLPs, and of their biases. */
typedef struct mlp_sources {
    const cmoei_source *gate, *up, *down, *gate_bias, *up_bias, *down_bias; /* [E] */
    cmoei_range experts; /* of the layer; dense and shared: {0, 1} */
    int64_t inter;
    bool bias;
} mlp_sources;

static cmoe_status alloc_mlp(loader *l, const mlp_sources *s, const cmoe_experts_options *options,
                             cmoei_mlp *out)
{
    const cmoei_decoder *d = &l->m->d;
    if (l->m->share.ranks > 1) {
        const int64_t up[] = {s->experts.count, 2 * cmoei_share_of(&l->m->share, s->inter).count,
                              d->hidden},
                      down[] = {s->experts.count, cmoei_share_of(&l->m->share, d->hidden).count,
                                s->inter};
        CMOEI_TRY(cmoei_matrix_alloc(&out->w13, l->m->ctx, l->m->format, true, up, s->bias, "w13",
                                     l->err));
        return cmoei_matrix_alloc(&out->w2, l->m->ctx, l->m->format, false, down, s->bias, "w2",
                                  l->err);
    }
    CMOEI_TRY(cmoei_experts_alloc(&out->experts, l->m->ctx, options, s->experts.count, d->hidden,
                                  s->inter, s->bias, s->bias, l->err));
    out->w13 = out->experts->w13;
    out->w2 = out->experts->w2;
    return CMOE_OK;
}

static cmoe_status load_mlp(loader *l, const mlp_sources *s, const cmoe_experts_options *options,
                            cmoei_mlp *out)
{
    const cmoei_range inter = cmoei_share_of(&l->m->share, s->inter),
                      hidden = cmoei_share_of(&l->m->share, l->m->d.hidden);
    const int64_t e = s->experts.first;
    CMOEI_TRY(alloc_mlp(l, s, options, out));
    const piece up[] = {{s->gate + e, inter}, {s->up + e, inter}};
    const piece down = {s->down + e, hidden};
    if (s->bias) {
        const piece up_bias[] = {{s->gate_bias + e, inter}, {s->up_bias + e, inter}};
        const piece down_bias = {s->down_bias + e, hidden};
        CMOEI_TRY(set_bias(l, out->w13, up_bias, 2));
        CMOEI_TRY(set_bias(l, out->w2, &down_bias, 1));
    }
    CMOEI_TRY(add_job(l, out->w13, up, 2));
    return add_job(l, out->w2, &down, 1);
}

static cmoe_status load_plain_mlp(loader *l, int64_t i, cmoei_role gate, int64_t inter,
                                  cmoei_mlp *out)
{
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = l->m->format;
    const mlp_sources s = {
        .gate = cmoei_tensor_of(l->t, i, gate),
        .up = cmoei_tensor_of(l->t, i, gate + 1),
        .down = cmoei_tensor_of(l->t, i, gate + 2),
        .gate_bias = cmoei_tensor_of(l->t, i, gate + 3),
        .up_bias = cmoei_tensor_of(l->t, i, gate + 4),
        .down_bias = cmoei_tensor_of(l->t, i, gate + 5),
        .experts = {0, 1},
        .inter = inter,
        .bias = l->m->d.mlp_bias,
    };
    return load_mlp(l, &s, &o, out);
}

static cmoe_status load_experts(loader *l, int64_t i)
{
    const cmoei_decoder *d = &l->m->d;
    const cmoei_layer_shape *shape = &d->layer[i];
    const cmoei_range kept = cmoei_share_experts(&l->m->share, shape->experts);
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = l->m->format;
    o.activation = d->activation;
    o.swiglu_limit = d->swiglu_limit;
    o.alpha = d->swiglu_alpha;
    o.first_expert = kept.first;
    const mlp_sources s = {
        .gate = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_GATE, 0),
        .up = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_UP, 0),
        .down = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_DOWN, 0),
        .gate_bias = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_GATE_BIAS, 0),
        .up_bias = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_UP_BIAS, 0),
        .down_bias = cmoei_tensor_of_expert(l->t, i, CMOEI_EXPERT_DOWN_BIAS, 0),
        .experts = kept,
        .inter = shape->inter,
        .bias = d->mlp_bias || d->expert_bias,
    };
    if (kept.count == 0) return CMOE_OK;
    return load_mlp(l, &s, &o, &l->m->layer[i].experts);
}

/* ---- router --------------------------------------------------------------------------------------- */

/* All rows of a source as float32, for what takes a view. */
static cmoe_status read_whole(loader *l, const cmoei_source *s, float **out, int64_t *bytes,
                              cmoe_view *view)
{
    *view = cmoe_view_none();
    *out = NULL;
    *bytes = s->rows * s->cols * (int64_t)sizeof **out;
    if (!s->data) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(l->m->ctx, *bytes, "router", (void **)out, l->err));
    for (int64_t n = 0; n < s->rows; n++)
        cmoei_source_row(s, n, *out + n * s->cols);
    *view = s->rows == 1 ? cmoe_view_1d(*out, CMOE_F32, s->cols)
                         : cmoe_view_2d(*out, CMOE_F32, s->rows, s->cols);
    return CMOE_OK;
}

static cmoe_status create_layer(loader *l, int64_t i, const cmoe_view *router)
{
    cmoei_model_layer *layer = &l->m->layer[i];
    cmoe_route_options route = l->m->d.route;
    route.topk = l->m->d.layer[i].topk;
    cmoe_layer_options o;
    cmoe_layer_weights w;
    cmoe_layer_options_default(&o, sizeof o);
    cmoe_layer_weights_default(&w, sizeof w);
    o.route = &route;
    w.gate = router[0];
    w.gate_bias = router[1];
    w.bias = router[2];
    w.shared_gate = router[3];
    w.experts = layer->experts.experts;
    w.shared = layer->shared.experts;
    return cmoe_layer_create(&layer->moe, l->m->ctx, &o, &w, l->err);
}

static cmoe_status load_router(loader *l, int64_t i)
{
    static const cmoei_role roles[] = {CMOEI_ROUTER, CMOEI_ROUTER_BIAS, CMOEI_CHOICE_BIAS,
                                       CMOEI_SHARED_WEIGHT};
    float *values[4] = {0};
    int64_t bytes[4] = {0};
    cmoe_view views[4];
    cmoe_status status = CMOE_OK;
    for (int32_t r = 0; r < 4 && status == CMOE_OK; r++)
        status =
            read_whole(l, cmoei_tensor_of(l->t, i, roles[r]), &values[r], &bytes[r], &views[r]);
    if (status == CMOE_OK && views[0].rank == 1) /* a single expert */
        views[0] = cmoe_view_2d(values[0], CMOE_F32, 1, l->m->d.hidden);
    if (status == CMOE_OK && values[3])
        views[3] = cmoe_view_2d(values[3], CMOE_F32, 1, l->m->d.hidden);
    if (status == CMOE_OK) status = create_layer(l, i, views);
    for (int32_t r = 0; r < 4; r++)
        cmoei_free(l->m->ctx, values[r], bytes[r]);
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------------- */

static cmoe_status load_layer(loader *l, int64_t i)
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
    CMOEI_TRY(run_jobs(l));
    if (shape->experts > 0 && !cmoei_model_is_share(l->m)) CMOEI_TRY(load_router(l, i));
    return CMOE_OK;
}

static cmoe_status load_embedding(loader *l)
{
    cmoe_model *m = l->m;
    const cmoei_source *s = &l->t->global[CMOEI_EMBEDDING];
    const cmoei_range vocab = cmoei_share_of(&m->share, m->d.vocab);
    const int64_t row = m->d.hidden * cmoe_dtype_bytes(s->dtype);
    m->embedding_dtype = s->dtype;
    m->embedding_bytes = vocab.count * row;
    CMOEI_TRY(cmoei_alloc(m->ctx, m->embedding_bytes, "embedding", &m->embedding, l->err));
    memcpy(m->embedding, s->data + vocab.first * row, (size_t)m->embedding_bytes);
    l->done += m->embedding_bytes;
    return CMOE_OK;
}

static cmoe_status load_head(loader *l)
{
    cmoe_model *m = l->m;
    const cmoei_role role = m->d.tied ? CMOEI_EMBEDDING : CMOEI_HEAD;
    const cmoei_range vocab = cmoei_share_of(&m->share, m->d.vocab);
    const int64_t dims[] = {1, vocab.count, m->d.hidden};
    const piece rows = {&l->t->global[role], vocab}, bias = {&l->t->global[CMOEI_HEAD_BIAS], vocab};
    CMOEI_TRY(cmoei_matrix_alloc(&m->head, m->ctx, cmoei_head_format(m->format), false, dims,
                                 m->d.head_bias, "head", l->err));
    CMOEI_TRY(set_bias(l, m->head, &bias, 1));
    CMOEI_TRY(add_job(l, m->head, &rows, 1));
    return run_jobs(l);
}

static void drop_global(const loader *l)
{
    for (int32_t r = 0; r < CMOEI_GLOBAL_ROLES; r++) {
        const extent x = extent_of(&l->t->global[r]);
        if (x.bytes > 0) cmoei_checkpoint_drop(l->c, x.data, x.bytes);
    }
}

static cmoe_status load_all(loader *l)
{
    cmoe_model *m = l->m;
    CMOEI_TRY(load_vectors(m, l->t, l->err));
    CMOEI_TRY(load_embedding(l));
    CMOEI_TRY(load_head(l));
    if (!l->o->keep_page_cache) drop_global(l);
    if (m->d.layers > 0) CMOEI_TRY(each_extent(l, 0, cmoei_checkpoint_will_need));
    for (int64_t i = 0; i < m->d.layers; i++) {
        if (i + 1 < m->d.layers) CMOEI_TRY(each_extent(l, i + 1, cmoei_checkpoint_will_need));
        CMOEI_TRY(cmoei_checkpoint_whole(l->c, l->err));
        CMOEI_TRY(load_layer(l, i));
        if (!l->o->keep_page_cache) CMOEI_TRY(each_extent(l, i, cmoei_checkpoint_drop));
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
                             const cmoei_tensors *t, cmoe_error *err)
{
    loader l = {.m = m, .o = o, .c = c, .t = t, .err = err, .total = m->info.bytes.total};
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
