/* SPDX-License-Identifier: MIT
 *
 * params_values.c - what the weights of a training begin with: random numbers, or the tensors of files.
 *
 * Random: normal with the configuration's initializer_range, and that over sqrt(2 * layers) for what adds to
 * the residual stream (o, down); norms 1, biases 0.  Number i of weight w is a function of (seed, i, w), so
 * one seed means one model whatever the number of threads.
 */
#include <math.h>
#include <string.h>

#include "params.h"
#include "quant/quantize.h"

/* ---- random ------------------------------------------------------------------------------------ */

typedef struct noise {
    float *out;
    int64_t n;
    float std;
    uint64_t seed, draw;
} noise;

static void make_noise(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const noise *x = arg;
    int64_t i, end;
    (void)team;
    cmoei_split(x->n, index, count, &i, &end);
    for (; i < end; i++)
        x->out[i] = x->std * cmoe_random_normal(x->seed, (uint64_t)i, x->draw);
}

static void randomize(cmoei_params *p, float *out, int64_t n, float std, uint64_t draw)
{
    noise x = {out, n, std, p->o.seed, draw};
    cmoei_region(p->ctx, cmoei_ceil_div(n, 4096), make_noise, &x);
}

static void ones(float *v, int64_t n)
{
    for (int64_t i = 0; v && i < n; i++)
        v[i] = 1;
}

/* B stays zero, so that a training begins at the model it adapts. */
static void random_factors(cmoei_params *p, cmoei_weight *w, uint64_t draw)
{
    for (int32_t i = 0; i < w->parts; i++) {
        cmoei_weight_part *part = &w->part[i];
        if (part->rank > 0)
            randomize(p, part->a, w->experts * part->rank * w->inputs,
                      1 / sqrtf((float)w->inputs) / sqrtf(3.0f), draw + 1 + (uint64_t)i);
    }
}

/* Draws of a weight: its own and one for each part. */
enum { DRAWS = 1 + CMOEI_WEIGHT_PARTS };

static bool adds_to_residual(cmoei_weight_kind k)
{
    return k == CMOEI_W_O || k == CMOEI_W_2 || k == CMOEI_W_SHARED_2;
}

static uint64_t draw_of(int64_t layer, int32_t kind)
{
    return 2 + (uint64_t)(layer * CMOEI_W_KINDS + kind) * DRAWS;
}

cmoe_status cmoei_params_random(cmoei_params *p, cmoe_error *err)
{
    const cmoei_decoder *d = p->d;
    const float std = d->init_std, small = std / sqrtf(2 * (float)CMOEI_MAX(d->layers, 1));
    if (p->lora)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "an adapter is trained on a model with weights, and there are none");
    randomize(p, p->embedding, d->vocab * d->hidden, std, 0);
    ones(p->final_norm, d->hidden);
    if (!d->tied) randomize(p, p->head.value, d->vocab * d->hidden, std, 1);
    for (int64_t i = 0; i < d->layers; i++) {
        cmoei_layer_params *l = &p->layer[i];
        const bool full = d->qk_norm == CMOEI_QK_FULL;
        ones(l->norm1, d->hidden);
        ones(l->norm2, d->hidden);
        ones(l->q_norm, full ? d->heads * d->head_dim : d->head_dim);
        ones(l->k_norm, full ? d->kv_heads * d->head_dim : d->head_dim);
        for (int32_t k = 0; k < CMOEI_W_KINDS; k++) {
            const cmoei_weight *w = &l->weight[k];
            if (w->value)
                randomize(p, w->value, w->experts * w->outputs * w->inputs,
                          adds_to_residual((cmoei_weight_kind)k) ? small : std, draw_of(i, k));
        }
    }
    return CMOE_OK;
}

/* ---- files ------------------------------------------------------------------------------------- */

static void read_vector(float *out, const cmoei_source *s)
{
    if (out && s->data) cmoei_source_row(s, 0, out);
}

/* The source of row n of matrix e, and the row in it. */
static const cmoei_source *source_of(const cmoei_params *p, const cmoei_tensors *t, int64_t layer,
                                     const cmoei_weight *w, int64_t e, int64_t *n)
{
    cmoei_role role = w->part[0].role;
    if (layer < 0) return &t->global[p->d->tied ? CMOEI_EMBEDDING : CMOEI_HEAD];
    if (role == CMOEI_FUSED_GATE_UP) {
        const int64_t inter = w->outputs / 2;
        role = *n < inter ? CMOEI_EXPERT_GATE : CMOEI_EXPERT_UP;
        *n %= inter;
    } else {
        int32_t i = 0;
        while (*n >= w->part[i].at + w->part[i].rows)
            i++;
        role = w->part[i].role;
        *n -= w->part[i].at;
    }
    return role >= CMOEI_LAYER_ROLES ? cmoei_tensor_of_expert(t, layer, role, e)
                                     : cmoei_tensor_of(t, layer, role);
}

typedef struct reading {
    cmoei_params *p;
    const cmoei_tensors *t;
    int64_t layer;
    cmoei_weight *w;
    float *rows; /* [threads, inputs] */
} reading;

static void store_row(const cmoe_ctx *ctx, const cmoei_weight *w, int64_t row, const float *x)
{
    if (w->value) {
        memcpy(w->value + row * w->inputs, x, (size_t)w->inputs * sizeof *x);
    } else if (w->dtype == CMOE_I8) {
        w->scale[row] = cmoei_quantize_row(cmoei_quantize_pick(ctx->features), x, w->inputs,
                                           (int8_t *)w->fixed + row * w->inputs);
    } else {
        char *out = (char *)w->fixed + row * w->inputs * cmoe_dtype_bytes(w->dtype);
        cmoei_store_f32(out, w->dtype, 1, x, w->inputs);
    }
}

static void read_rows(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const reading *r = arg;
    const cmoei_weight *w = r->w;
    float *row = r->rows + index * w->inputs;
    (void)count;
    for (int64_t i; (i = cmoei_next(team, 16)) < w->experts * w->outputs;) {
        for (int64_t j = i; j < CMOEI_MIN(i + 16, w->experts * w->outputs); j++) {
            int64_t n = j % w->outputs;
            const cmoei_source *s = source_of(r->p, r->t, r->layer, w, j / w->outputs, &n);
            cmoei_source_row(s, n, row);
            store_row(r->p->ctx, w, j, row);
        }
    }
}

/* Every part's bias, or each half's of gate and up. */
static void read_bias(const reading *r)
{
    const cmoei_weight *w = r->w;
    const bool fused = w->part[0].role == CMOEI_FUSED_GATE_UP;
    const int32_t parts = fused ? 2 : w->parts;
    for (int64_t e = 0; e < w->experts; e++) {
        float *out = w->bias + e * w->outputs;
        for (int32_t i = 0; i < parts; i++) {
            const cmoei_role role =
                fused ? CMOEI_EXPERT_GATE_BIAS + (cmoei_role)i : w->part[i].bias_role;
            const cmoei_source *s = r->layer < 0 ? &r->t->global[role]
                                    : role >= CMOEI_LAYER_ROLES
                                        ? cmoei_tensor_of_expert(r->t, r->layer, role, e)
                                        : cmoei_tensor_of(r->t, r->layer, role);
            read_vector(out, s);
            out += fused ? w->outputs / 2 : w->part[i].rows;
        }
    }
}

static cmoe_status read_weight(reading *r, cmoe_error *err)
{
    const cmoei_weight *w = r->w;
    const int64_t bytes = r->p->ctx->threads * w->inputs * (int64_t)sizeof(float);
    if (w->outputs == 0) return CMOE_OK;
    if (w->bias) read_bias(r);
    if (r->layer < 0 && r->p->d->tied) return CMOE_OK; /* the embedding has been read */
    CMOEI_TRY(cmoei_alloc(r->p->ctx, bytes, "rows", (void **)&r->rows, err));
    cmoei_region(r->p->ctx, cmoei_ceil_div(w->experts * w->outputs, 16), read_rows, r);
    cmoei_free(r->p->ctx, r->rows, bytes);
    return CMOE_OK;
}

static cmoe_status read_layer(cmoei_params *p, const cmoei_tensors *t, int64_t i, cmoe_error *err)
{
    cmoei_layer_params *l = &p->layer[i];
    read_vector(l->norm1, cmoei_tensor_of(t, i, CMOEI_NORM1));
    read_vector(l->norm1_bias, cmoei_tensor_of(t, i, CMOEI_NORM1_BIAS));
    read_vector(l->norm2, cmoei_tensor_of(t, i, CMOEI_NORM2));
    read_vector(l->norm2_bias, cmoei_tensor_of(t, i, CMOEI_NORM2_BIAS));
    read_vector(l->q_norm, cmoei_tensor_of(t, i, CMOEI_Q_NORM));
    read_vector(l->k_norm, cmoei_tensor_of(t, i, CMOEI_K_NORM));
    read_vector(l->sinks, cmoei_tensor_of(t, i, CMOEI_SINKS));
    read_vector(l->choice_bias, cmoei_tensor_of(t, i, CMOEI_CHOICE_BIAS));
    for (int32_t k = 0; k < CMOEI_W_KINDS; k++) {
        reading r = {.p = p, .t = t, .layer = i, .w = &l->weight[k]};
        CMOEI_TRY(read_weight(&r, err));
        random_factors(p, r.w, draw_of(i, k));
    }
    return CMOE_OK;
}

static cmoe_status read_all(cmoei_params *p, const cmoei_tensors *t, cmoe_error *err)
{
    const cmoei_source *embedding = &t->global[CMOEI_EMBEDDING];
    for (int64_t i = 0; i < p->d->vocab; i++)
        cmoei_source_row(embedding, i, p->embedding + i * p->d->hidden);
    read_vector(p->final_norm, &t->global[CMOEI_FINAL_NORM]);
    read_vector(p->final_norm_bias, &t->global[CMOEI_FINAL_NORM_BIAS]);
    reading r = {.p = p, .t = t, .layer = -1, .w = &p->head};
    CMOEI_TRY(read_weight(&r, err));
    for (int64_t i = 0; i < p->d->layers; i++)
        CMOEI_TRY(read_layer(p, t, i, err));
    return CMOE_OK;
}

cmoe_status cmoei_params_read(cmoei_params *p, const cmoei_tensors *t, cmoe_error *err)
{
    const uint64_t before = cmoei_float_enter();
    const cmoe_status status = read_all(p, t, err);
    cmoei_float_leave(before);
    return status;
}

/* ---- and out again ----------------------------------------------------------------------------- */

static cmoe_view role_in_weight(const cmoei_weight *w, cmoei_role role, int64_t expert)
{
    const int64_t e = CMOEI_MAX(expert, 0);
    for (int32_t i = 0; i < w->parts; i++) {
        const cmoei_weight_part *part = &w->part[i];
        if (part->role == role && w->value)
            return cmoe_view_2d(w->value + (e * w->outputs + part->at) * w->inputs, CMOE_F32,
                                part->rows, w->inputs);
        if (part->bias_role == role && w->bias)
            return cmoe_view_1d(w->bias + e * w->outputs + part->at, CMOE_F32, part->rows);
    }
    return cmoe_view_none();
}

static const float *vector_of(const cmoei_params *p, int64_t layer, cmoei_role role)
{
    const cmoei_layer_params *l = layer >= 0 ? &p->layer[layer] : NULL;
    switch (role) {
    case CMOEI_FINAL_NORM:
        return p->final_norm;
    case CMOEI_FINAL_NORM_BIAS:
        return p->final_norm_bias;
    case CMOEI_NORM1:
        return l->norm1;
    case CMOEI_NORM1_BIAS:
        return l->norm1_bias;
    case CMOEI_NORM2:
        return l->norm2;
    case CMOEI_NORM2_BIAS:
        return l->norm2_bias;
    case CMOEI_Q_NORM:
        return l->q_norm;
    case CMOEI_K_NORM:
        return l->k_norm;
    case CMOEI_SINKS:
        return l->sinks;
    case CMOEI_CHOICE_BIAS:
        return l->choice_bias;
    default:
        return NULL;
    }
}

cmoe_view cmoei_params_role(const cmoei_params *p, int64_t layer, cmoei_role role, int64_t expert)
{
    int64_t dims[2];
    if (!cmoei_role_shape(p->d, layer, role, dims)) return cmoe_view_none();
    if (role == CMOEI_EMBEDDING)
        return cmoe_view_2d(p->embedding, CMOE_F32, p->d->vocab, p->d->hidden);
    const float *vector = vector_of(p, layer, role);
    if (vector) return cmoe_view_1d(vector, CMOE_F32, dims[0] * dims[1]);
    if (layer < 0) return role_in_weight(&p->head, role, -1);
    for (int32_t k = 0; k < CMOEI_W_KINDS; k++) {
        const cmoe_view v = role_in_weight(&p->layer[layer].weight[k], role, expert);
        if (cmoei_given(&v)) return v;
    }
    return cmoe_view_none();
}
