/* SPDX-License-Identifier: MIT
 *
 * params.c - where the weights of a trained decoder lie.
 *
 * One walk over the decoder carves everything, from two arenas: what is trained and what is fixed.  It is
 * walked dry first, to know how much that is.
 */
#include "params.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cmoe/ops.h"
#include "models/resolve.h"
#include "targets.h"

typedef struct walk {
    cmoei_params *p;
    cmoei_carver trained, fixed;
    bool dry;
    cmoe_error *err;
} walk;

/* ---- shapes ------------------------------------------------------------------------------------ */

static void add_part(cmoei_weight *w, cmoei_role role, cmoei_role bias, int64_t rows)
{
    w->part[w->parts++] =
        (cmoei_weight_part){.role = role, .bias_role = bias, .at = w->outputs, .rows = rows};
    w->outputs += rows;
}

/* gate, up and down of an MLP whose roles follow each other. */
static void shape_mlp(cmoei_weight *up, cmoei_weight *down, cmoei_role gate, int64_t experts,
                      int64_t inter, int64_t hidden)
{
    *up = (cmoei_weight){.experts = experts, .inputs = hidden};
    *down = (cmoei_weight){.experts = experts, .inputs = inter};
    add_part(up, gate, gate + 3, inter);
    add_part(up, gate + 1, gate + 4, inter);
    add_part(down, gate + 2, gate + 5, hidden);
}

/* The weights of layer i without memory; outputs 0: there is none. */
static void shape_layer(const cmoei_decoder *d, int64_t i, cmoei_weight w[CMOEI_W_KINDS])
{
    const cmoei_layer_shape *l = &d->layer[i];
    const int64_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim, H = d->hidden;
    memset(w, 0, CMOEI_W_KINDS * sizeof *w);
    w[CMOEI_W_QKV] = (cmoei_weight){.experts = 1, .inputs = H};
    add_part(&w[CMOEI_W_QKV], CMOEI_Q, CMOEI_Q_BIAS, q);
    add_part(&w[CMOEI_W_QKV], CMOEI_K, CMOEI_K_BIAS, kv);
    add_part(&w[CMOEI_W_QKV], CMOEI_V, CMOEI_V_BIAS, kv);
    w[CMOEI_W_O] = (cmoei_weight){.experts = 1, .inputs = q};
    add_part(&w[CMOEI_W_O], CMOEI_O, CMOEI_O_BIAS, H);
    if (l->experts == 0) {
        shape_mlp(&w[CMOEI_W_13], &w[CMOEI_W_2], CMOEI_GATE, 1, l->inter, H);
        return;
    }
    shape_mlp(&w[CMOEI_W_13], &w[CMOEI_W_2], CMOEI_EXPERT_GATE, l->experts, l->inter, H);
    w[CMOEI_W_ROUTER] =
        (cmoei_weight){.experts = 1, .inputs = H, .format = CMOE_F32, .exact = true};
    add_part(&w[CMOEI_W_ROUTER], CMOEI_ROUTER, CMOEI_ROUTER_BIAS, l->experts);
    if (l->shared_inter == 0) return;
    shape_mlp(&w[CMOEI_W_SHARED_13], &w[CMOEI_W_SHARED_2], CMOEI_SHARED_GATE, 1, l->shared_inter,
              H);
    if (!d->shared_gate) return;
    w[CMOEI_W_SHARED_GATE] =
        (cmoei_weight){.experts = 1, .inputs = H, .format = CMOE_F32, .exact = true};
    add_part(&w[CMOEI_W_SHARED_GATE], CMOEI_SHARED_WEIGHT, CMOEI_ROLES, 1);
}

static bool has_bias(const cmoei_decoder *d, int64_t layer, const cmoei_weight *w)
{
    int64_t dims[2];
    return w->part[0].bias_role != CMOEI_ROLES &&
           cmoei_role_shape(d, layer, w->part[0].bias_role, dims);
}

/* ---- memory ------------------------------------------------------------------------------------ */

static float *carve_floats(walk *k, bool trained, int64_t n)
{
    return cmoei_carve_array(trained ? &k->trained : &k->fixed, n, sizeof(float));
}

/* A vector of the decoder: NULL when it has none. */
static float *carve_vector(walk *k, int64_t layer, cmoei_role role)
{
    int64_t dims[2];
    if (!cmoei_role_shape(k->p->d, layer, role, dims)) return NULL;
    if (k->dry) k->p->parameters += dims[0] * dims[1];
    return carve_floats(k, !k->p->lora && role != CMOEI_CHOICE_BIAS, dims[0] * dims[1]);
}

static void carve_weight(walk *k, int64_t layer, cmoei_weight *w)
{
    cmoei_params *p = k->p;
    if (w->outputs == 0) return;
    const int64_t n = w->experts * w->outputs * w->inputs;
    const bool bias = has_bias(p->d, layer, w), tied = layer < 0 && p->d->tied;
    if (w->format == 0) w->format = p->o.format;
    w->dtype = w->exact || layer < 0 ? CMOE_F32 : p->o.frozen ? p->o.frozen : w->format;
    if (tied)
        w->value = p->lora ? NULL : p->embedding;
    else if (!p->lora)
        w->value = carve_floats(k, true, n);
    if (p->lora) {
        w->fixed = tied ? (void *)p->embedding
                        : cmoei_carve_array(&k->fixed, n, cmoe_dtype_bytes(w->dtype));
        if (w->dtype == CMOE_I8) w->scale = carve_floats(k, false, w->experts * w->outputs);
    }
    if (bias) w->bias = carve_floats(k, !p->lora, w->experts * w->outputs);
    for (int32_t i = 0; i < w->parts; i++) {
        cmoei_weight_part *part = &w->part[i];
        if (part->rank == 0) continue;
        part->a = carve_floats(k, true, w->experts * part->rank * w->inputs);
        part->b = carve_floats(k, true, w->experts * part->rows * part->rank);
    }
    if (!k->dry) return;
    p->parameters += (tied ? 0 : n) + (bias ? w->experts * w->outputs : 0);
}

static void carve_layer(walk *k, int64_t i)
{
    cmoei_layer_params *l = &k->p->layer[i];
    l->norm1 = carve_vector(k, i, CMOEI_NORM1);
    l->norm1_bias = carve_vector(k, i, CMOEI_NORM1_BIAS);
    l->norm2 = carve_vector(k, i, CMOEI_NORM2);
    l->norm2_bias = carve_vector(k, i, CMOEI_NORM2_BIAS);
    l->q_norm = carve_vector(k, i, CMOEI_Q_NORM);
    l->k_norm = carve_vector(k, i, CMOEI_K_NORM);
    l->sinks = carve_vector(k, i, CMOEI_SINKS);
    l->choice_bias = carve_vector(k, i, CMOEI_CHOICE_BIAS);
    for (int32_t j = 0; j < CMOEI_W_KINDS; j++)
        carve_weight(k, i, &l->weight[j]);
}

static void carve_all(walk *k)
{
    cmoei_params *p = k->p;
    int64_t dims[2];
    cmoei_role_shape(p->d, -1, CMOEI_EMBEDDING, dims);
    p->embedding = carve_floats(k, !p->lora, dims[0] * dims[1]);
    if (k->dry) p->parameters += dims[0] * dims[1];
    p->final_norm = carve_vector(k, -1, CMOEI_FINAL_NORM);
    p->final_norm_bias = carve_vector(k, -1, CMOEI_FINAL_NORM_BIAS);
    carve_weight(k, -1, &p->head);
    for (int64_t i = 0; i < p->d->layers; i++)
        carve_layer(k, i);
}

static cmoe_status take_memory(cmoei_params *p, cmoe_error *err)
{
    walk k = {p, cmoei_carver_dry(), cmoei_carver_dry(), true, err};
    carve_all(&k);
    CMOEI_TRY(cmoei_carver_check(&k.trained, "trained weights", err));
    CMOEI_TRY(cmoei_carver_check(&k.fixed, "fixed weights", err));
    p->values_bytes = cmoei_carver_bytes(&k.trained);
    p->fixed_bytes = cmoei_carver_bytes(&k.fixed);
    CMOEI_TRY(cmoei_alloc(p->ctx, p->values_bytes, "trained weights", (void **)&p->values, err));
    CMOEI_TRY(cmoei_alloc(p->ctx, p->fixed_bytes, "fixed weights", (void **)&p->fixed, err));
    memset(p->values, 0, (size_t)p->values_bytes);
    memset(p->fixed, 0, (size_t)p->fixed_bytes);
    p->count = p->values_bytes / (int64_t)sizeof(float);
    if (p->d->tied && !p->lora) p->extra = cmoei_round_up(p->d->vocab * p->d->hidden, 16);
    const cmoe_arena trained = cmoe_arena_make(p->values, p->values_bytes),
                     fixed = cmoe_arena_make(p->fixed, p->fixed_bytes);
    k = (walk){p, cmoei_carver_open(&trained), cmoei_carver_open(&fixed), false, err};
    carve_all(&k);
    CMOEI_TRY(cmoei_carver_check(&k.trained, "trained weights", err));
    return cmoei_carver_check(&k.fixed, "fixed weights", err);
}

/* ---- trainables -------------------------------------------------------------------------------- */

static cmoe_status create_trainable(cmoei_params *p, cmoei_weight *w, cmoe_error *err)
{
    cmoe_trainable_options o;
    cmoe_trainable_options_default(&o, sizeof o);
    if (w->outputs == 0) return CMOE_OK;
    o.format = w->format;
    o.borrow = !w->value && w->dtype == CMOE_I8;
    for (int32_t i = 0; i < w->parts; i++)
        o.rank += w->part[i].rank;
    return cmoe_trainable_create(&w->trainable, p->ctx, &o, w->experts, w->outputs, w->inputs, err);
}

static cmoe_status create_trainables(cmoei_params *p, cmoe_error *err)
{
    CMOEI_TRY(create_trainable(p, &p->head, err));
    for (int64_t i = 0; i < p->d->layers; i++)
        for (int32_t j = 0; j < CMOEI_W_KINDS; j++)
            CMOEI_TRY(create_trainable(p, &p->layer[i].weight[j], err));
    return CMOE_OK;
}

static cmoe_status check_decoder(const cmoei_decoder *d, cmoe_error *err)
{
    if (d->clip_qkv > 0)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "%s: clip_qkv = %g has no backward here, want a model without it",
                          d->arch->type, (double)d->clip_qkv);
    return CMOE_OK;
}

static void count_active(cmoei_params *p)
{
    p->active = p->parameters;
    for (int64_t i = 0; i < p->d->layers; i++) {
        const cmoei_layer_shape *l = &p->d->layer[i];
        if (l->experts > 0)
            p->active -=
                (l->experts - CMOEI_MIN(l->topk, l->experts)) * 3 * l->inter * p->d->hidden;
    }
}

cmoe_status cmoei_params_create(cmoei_params *p, cmoe_ctx *ctx, const cmoei_decoder *d,
                                const cmoe_train_options *o, cmoe_error *err)
{
    *p = (cmoei_params){.ctx = ctx, .d = d, .o = *o, .lora = o->what == CMOE_TRAIN_LORA};
    CMOEI_TRY(check_decoder(d, err));
    p->layer_bytes = d->layers * (int64_t)sizeof *p->layer;
    CMOEI_TRY(cmoei_alloc(ctx, p->layer_bytes, "layers", (void **)&p->layer, err));
    memset(p->layer, 0, (size_t)p->layer_bytes);
    p->head = (cmoei_weight){.experts = 1, .inputs = d->hidden};
    add_part(&p->head, CMOEI_HEAD, CMOEI_HEAD_BIAS, d->vocab);
    for (int64_t i = 0; i < d->layers; i++)
        shape_layer(d, i, p->layer[i].weight);
    if (p->lora) CMOEI_TRY(cmoei_targets_apply(p, err));
    CMOEI_TRY(take_memory(p, err));
    count_active(p);
    return create_trainables(p, err);
}

static int64_t packed_bytes(const cmoei_weight *w)
{
    cmoe_trainable_info info = {.size = sizeof info};
    if (!w->trainable) return 0;
    (void)cmoe_trainable_describe(w->trainable, &info, NULL);
    return info.packed_bytes;
}

int64_t cmoei_params_bytes(const cmoei_params *p)
{
    int64_t bytes = p->values_bytes + p->fixed_bytes + p->layer_bytes + packed_bytes(&p->head);
    for (int64_t i = 0; i < p->d->layers; i++)
        for (int32_t j = 0; j < CMOEI_W_KINDS; j++)
            bytes += packed_bytes(&p->layer[i].weight[j]);
    return bytes;
}

void cmoei_params_free(cmoei_params *p)
{
    if (!p->ctx) return;
    cmoe_trainable_free(p->head.trainable);
    for (int64_t i = 0; p->layer && i < p->d->layers; i++)
        for (int32_t j = 0; j < CMOEI_W_KINDS; j++)
            cmoe_trainable_free(p->layer[i].weight[j].trainable);
    if (p->values) cmoei_free(p->ctx, p->values, p->values_bytes);
    if (p->fixed) cmoei_free(p->ctx, p->fixed, p->fixed_bytes);
    if (p->layer) cmoei_free(p->ctx, p->layer, p->layer_bytes);
    *p = (cmoei_params){0};
}

/* ---- parts as views ---------------------------------------------------------------------------- */

/* Rows of a part in an array [E, N, K]. */
static cmoe_view rows_of(const cmoei_weight *w, const cmoei_weight_part *part, const void *base,
                         int32_t dtype)
{
    const char *at = (const char *)base + part->at * w->inputs * cmoe_dtype_bytes(dtype);
    cmoe_view v = cmoe_view_3d(at, dtype, w->experts, part->rows, w->inputs);
    v.strides[0] = w->outputs * w->inputs;
    return v;
}

static cmoe_view columns_of(const cmoei_weight *w, const cmoei_weight_part *part, const float *base)
{
    if (!base) return cmoe_view_none();
    cmoe_view v = cmoe_view_2d(base + part->at, CMOE_F32, w->experts, part->rows);
    v.strides[0] = w->outputs;
    return v;
}

static cmoe_status fill(cmoei_params *p, cmoe_stream *s, cmoei_weight *w, bool all, cmoe_error *err)
{
    cmoe_part parts[CMOEI_WEIGHT_PARTS];
    bool trained = w->value != NULL;
    if (!w->trainable) return CMOE_OK;
    for (int32_t i = 0; i < w->parts; i++) {
        const cmoei_weight_part *part = &w->part[i];
        trained = trained || part->rank > 0;
        parts[i] = (cmoe_part){.at = part->at,
                               .w = w->value ? rows_of(w, part, w->value, CMOE_F32)
                                             : rows_of(w, part, w->fixed, w->dtype),
                               .scale = columns_of(w, part, w->scale),
                               .bias = columns_of(w, part, w->bias),
                               .lora_scale = p->lora_scale};
        if (part->rank == 0) continue;
        parts[i].a = cmoe_view_3d(part->a, CMOE_F32, w->experts, part->rank, w->inputs);
        parts[i].b = cmoe_view_3d(part->b, CMOE_F32, w->experts, part->rows, part->rank);
    }
    if (!trained && !all) return CMOE_OK;
    return cmoe_trainable_fill(s, w->trainable, parts, w->parts, err);
}

cmoe_status cmoei_params_fill(cmoei_params *p, cmoe_stream *s, bool all, cmoe_error *err)
{
    CMOEI_TRY(fill(p, s, &p->head, all, err));
    for (int64_t i = 0; i < p->d->layers; i++)
        for (int32_t j = 0; j < CMOEI_W_KINDS; j++)
            CMOEI_TRY(fill(p, s, &p->layer[i].weight[j], all, err));
    return CMOE_OK;
}

static cmoe_view_mut writable(cmoe_view v, float *data)
{
    cmoe_view_mut m = {
        .data = data, .name = v.name, .dtype = v.dtype, .device = v.device, .rank = v.rank};
    memcpy(m.dims, v.dims, sizeof m.dims);
    memcpy(m.strides, v.strides, sizeof m.strides);
    return m;
}

void cmoei_params_gradients(const cmoei_params *p, const cmoei_weight *w, float *array,
                            cmoe_part_gradient out[CMOEI_WEIGHT_PARTS])
{
    memset(out, 0, CMOEI_WEIGHT_PARTS * sizeof *out);
    for (int32_t i = 0; i < w->parts; i++) {
        const cmoei_weight_part *part = &w->part[i];
        float *value = cmoei_params_in(p, array, w->value),
              *bias = cmoei_params_in(p, array, w->bias), *a = cmoei_params_in(p, array, part->a),
              *b = cmoei_params_in(p, array, part->b);
        if (value)
            out[i].w = writable(rows_of(w, part, value, CMOE_F32), value + part->at * w->inputs);
        if (bias) out[i].bias = writable(columns_of(w, part, bias), bias + part->at);
        if (!a) continue;
        out[i].a = writable(cmoe_view_3d(a, CMOE_F32, w->experts, part->rank, w->inputs), a);
        out[i].b = writable(cmoe_view_3d(b, CMOE_F32, w->experts, part->rows, part->rank), b);
    }
}

cmoe_status cmoei_params_close(const cmoei_params *p, cmoe_stream *s, float *gradient,
                               cmoe_error *err)
{
    const int64_t rows = p->d->vocab, cols = p->d->hidden;
    if (p->extra == 0) return CMOE_OK;
    const cmoe_view_mut sum =
        cmoe_view_mut_2d(cmoei_params_in(p, gradient, p->embedding), CMOE_F32, rows, cols);
    return cmoe_scaled_add(s, cmoe_view_of(sum),
                           cmoe_view_2d(gradient + p->count, CMOE_F32, rows, cols), 1, sum, err);
}

/* ---- every trained tensor ---------------------------------------------------------------------- */

enum { NAME = 160 };

static const char *const kind_names[CMOEI_W_KINDS] = {
    "qkv", "o", "router", "w13", "w2", "shared_w13", "shared_w2", "shared_gate"};

typedef struct each {
    const cmoei_params *p;
    bool apart;
    cmoei_params_fn fn;
    void *user;
} each;

static void make_name(char name[NAME], int64_t layer, const char *what)
{
    if (layer < 0)
        snprintf(name, NAME, "%s", what);
    else
        snprintf(name, NAME, "layers.%" PRId64 ".%s", layer, what);
}

static cmoe_status tell(const each *e, const char *name, float *value, int64_t rows, int64_t cols,
                        bool decay, bool hidden)
{
    if (!cmoei_params_in(e->p, e->p->values, value)) return CMOE_OK;
    return e->fn(e->user, name, value, rows, cols, decay, hidden);
}

static cmoe_status tell_vector(const each *e, int64_t layer, const char *what, float *value,
                               cmoei_role role)
{
    char name[NAME];
    int64_t dims[2];
    if (!value || !cmoei_role_shape(e->p->d, layer, role, dims)) return CMOE_OK;
    make_name(name, layer, what);
    return tell(e, name, value, 1, dims[0] * dims[1], false, false);
}

/* [E, rows, cols] at once, or a matrix at a time. */
static cmoe_status tell_matrices(const each *e, const char *name, float *value, int64_t experts,
                                 int64_t rows, int64_t cols, bool hidden)
{
    char one[NAME + 24];
    if (!e->apart) return tell(e, name, value, experts * rows, cols, true, hidden);
    for (int64_t i = 0; i < experts; i++) {
        snprintf(one, sizeof one, experts > 1 ? "%s.%" PRId64 : "%s", name, i);
        CMOEI_TRY(tell(e, one, value + i * rows * cols, rows, cols, true, hidden));
    }
    return CMOE_OK;
}

static cmoe_status tell_weight(const each *e, int64_t layer, const char *what, cmoei_weight *w)
{
    char name[NAME], part_name[NAME + 8];
    make_name(name, layer, what);
    const bool hidden = layer >= 0 && w->outputs > 1 && w->part[0].role != CMOEI_ROUTER;
    if (w->value && !(layer < 0 && e->p->d->tied)) {
        if (!e->apart || w->parts == 1) {
            CMOEI_TRY(tell_matrices(e, name, w->value, w->experts, w->outputs, w->inputs, hidden));
        } else {
            /* Parts of one expert follow each other, so a part of many experts is not contiguous. */
            for (int64_t x = 0; x < w->experts; x++)
                for (int32_t i = 0; i < w->parts; i++) {
                    snprintf(part_name, sizeof part_name, "%.140s.%d.%d", name, (int)x, i);
                    CMOEI_TRY(tell(e, part_name,
                                   w->value + (x * w->outputs + w->part[i].at) * w->inputs,
                                   w->part[i].rows, w->inputs, true, hidden));
                }
        }
    }
    if (w->bias) {
        snprintf(part_name, sizeof part_name, "%s.bias", name);
        CMOEI_TRY(tell(e, part_name, w->bias, 1, w->experts * w->outputs, false, false));
    }
    for (int32_t i = 0; i < w->parts; i++) {
        const cmoei_weight_part *part = &w->part[i];
        if (part->rank == 0) continue;
        snprintf(part_name, sizeof part_name, "%.140s.%d.lora_a", name, i);
        CMOEI_TRY(tell_matrices(e, part_name, part->a, w->experts, part->rank, w->inputs, true));
        snprintf(part_name, sizeof part_name, "%.140s.%d.lora_b", name, i);
        CMOEI_TRY(tell_matrices(e, part_name, part->b, w->experts, part->rows, part->rank, true));
    }
    return CMOE_OK;
}

cmoe_status cmoei_params_each(const cmoei_params *p, bool apart, cmoei_params_fn fn, void *user)
{
    const each e = {p, apart, fn, user};
    CMOEI_TRY(tell_matrices(&e, "embedding", p->embedding, 1, p->d->vocab, p->d->hidden, false));
    CMOEI_TRY(tell_vector(&e, -1, "final_norm", p->final_norm, CMOEI_FINAL_NORM));
    CMOEI_TRY(tell_vector(&e, -1, "final_norm_bias", p->final_norm_bias, CMOEI_FINAL_NORM_BIAS));
    CMOEI_TRY(tell_weight(&e, -1, "head", (cmoei_weight *)&p->head));
    for (int64_t i = 0; i < p->d->layers; i++) {
        cmoei_layer_params *l = &p->layer[i];
        CMOEI_TRY(tell_vector(&e, i, "norm1", l->norm1, CMOEI_NORM1));
        CMOEI_TRY(tell_vector(&e, i, "norm1_bias", l->norm1_bias, CMOEI_NORM1_BIAS));
        CMOEI_TRY(tell_vector(&e, i, "norm2", l->norm2, CMOEI_NORM2));
        CMOEI_TRY(tell_vector(&e, i, "norm2_bias", l->norm2_bias, CMOEI_NORM2_BIAS));
        CMOEI_TRY(tell_vector(&e, i, "q_norm", l->q_norm, CMOEI_Q_NORM));
        CMOEI_TRY(tell_vector(&e, i, "k_norm", l->k_norm, CMOEI_K_NORM));
        CMOEI_TRY(tell_vector(&e, i, "sinks", l->sinks, CMOEI_SINKS));
        for (int32_t j = 0; j < CMOEI_W_KINDS; j++)
            if (l->weight[j].outputs > 0)
                CMOEI_TRY(tell_weight(&e, i, kind_names[j], &l->weight[j]));
    }
    return CMOE_OK;
}
