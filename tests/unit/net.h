/* SPDX-License-Identifier: MIT
 *
 * net.h - a small layer with everything in it, run with all of its records.
 */
#ifndef CMOE_TEST_NET_H
#define CMOE_TEST_NET_H

#include "mlp_oracle.h"

typedef struct net {
    mlp m;      /* routed experts and x; ids and weights come from the router */
    mlp shared; /* one expert, used when with_shared; its x is the same */
    cmoe_route_options route;
    cmoe_layer_options o;
    bool with_gate, with_shared, with_shared_gate;
    bool with_bias, with_gate_bias, with_scale, with_lora, with_table;
    double *gate, *sgate;             /* [E, H], [S, H] */
    double *bias, *gate_bias, *scale; /* [E] */
    double *lora_a, *lora_b;          /* [R, H], [E, R] */
    float lora_scale;
    int64_t *table;     /* [vocab, K] */
    int32_t *input_ids; /* [T] */
} net;

enum { NET_RANK = 3, NET_VOCAB = 11 };

/* What a forward gave. */
typedef struct records {
    float *out;              /* [T, H] */
    int32_t *ids;            /* [T, W] */
    float *weights, *logits; /* [T, W], [T, E] */
    int64_t *load;           /* [E + appended] */
    double loss;
    int64_t width;
} records;

static inline net net_make(uint64_t seed, int32_t format, int64_t T, int64_t K, int64_t E,
                           int64_t H, int64_t I)
{
    net n = {.m = {.seed = seed, .T = T, .K = K, .E = E, .H = H, .I = I}, .with_gate = true};
    mlp *m = &n.m;
    cmoe_experts_options_default(&m->o, sizeof m->o);
    m->o.format = format;
    m->x_dtype = m->w_dtype = m->w2_dtype = m->bias_dtype = m->weight_dtype = m->out_dtype =
        CMOE_F32;
    m->id_dtype = CMOE_I32;
    cmoe_route_options_default(&n.route, sizeof n.route);
    n.route.topk = K;
    cmoe_layer_options_default(&n.o, sizeof n.o);
    return n;
}

/* All values; sizes, options and what is `with` may still be changed before net_create. */
static inline void net_fill(net *n)
{
    mlp *m = &n->m;
    const int64_t E = m->E - n->route.shared; /* routed ones */
    mlp_fill(m, true, false);
    n->shared = *m;
    n->shared.blocks = 0;
    n->shared.seed += 1000;
    n->shared.E = n->shared.K = 1;
    n->shared.o.row_dtype = n->shared.o.weight_at = 0;
    mlp_fill(&n->shared, true, false);
    n->shared.x = m->x;
    n->gate = mlp_normals(m, E * m->H, 0.3, CMOE_F32);
    n->sgate = mlp_normals(m, CMOEI_MAX(n->route.shared, 1) * m->H, 0.3, CMOE_F32);
    n->bias = mlp_normals(m, E, 0.2, CMOE_F32);
    n->gate_bias = mlp_normals(m, E, 0.2, CMOE_F32);
    n->scale = mlp_normals(m, E, 1, CMOE_F32);
    n->lora_a = mlp_normals(m, NET_RANK * m->H, 0.3, CMOE_F32);
    n->lora_b = mlp_normals(m, E * NET_RANK, 0.3, CMOE_F32);
    n->lora_scale = 0.5f;
    n->table = mlp_get(m, NET_VOCAB * m->K * (int64_t)sizeof *n->table);
    for (int64_t i = 0; i < NET_VOCAB * m->K; i++)
        n->table[i] = mlp_draw(m, -1, E - 1);
    n->input_ids = mlp_get(m, m->T * (int64_t)sizeof *n->input_ids);
    for (int64_t t = 0; t < m->T; t++)
        n->input_ids[t] = (int32_t)mlp_draw(m, 0, NET_VOCAB - 1);
}

static inline void net_free(net *n)
{
    mlp_free(&n->m);
    mlp_free(&n->shared);
}

static inline cmoe_view net_row(mlp *m, const double *v, int64_t n)
{
    return cmoe_view_1d(mlp_lay_2d(m, v, CMOE_F32, 1, n).data, CMOE_F32, n);
}

/* The layer with the objects that it borrows. */
typedef struct built_net {
    cmoe_experts *experts, *shared;
    cmoe_layer *layer;
} built_net;

static inline void net_weights(net *n, const built_net *b, cmoe_layer_weights *w)
{
    mlp *m = &n->m;
    const int64_t E = m->E - n->route.shared, S = CMOEI_MAX(n->route.shared, 1);
    cmoe_layer_weights_default(w, sizeof *w);
    w->experts = b->experts;
    w->shared = b->shared;
    if (n->with_gate) w->gate = mlp_lay_2d(m, n->gate, CMOE_F32, E, m->H);
    if (n->with_shared_gate) w->shared_gate = mlp_lay_2d(m, n->sgate, CMOE_F32, S, m->H);
    if (n->with_bias) w->bias = net_row(m, n->bias, E);
    if (n->with_gate_bias) w->gate_bias = net_row(m, n->gate_bias, E);
    if (n->with_scale) w->per_expert_scale = net_row(m, n->scale, E);
    if (n->with_table) w->hash_table = cmoe_view_2d(n->table, CMOE_I64, NET_VOCAB, m->K);
    if (!n->with_lora) return;
    w->lora_a = mlp_lay_2d(m, n->lora_a, CMOE_F32, NET_RANK, m->H);
    w->lora_b = mlp_lay_2d(m, n->lora_b, CMOE_F32, E, NET_RANK);
    w->lora_scale = n->lora_scale;
}

/* What was laid out for creating is overwritten and freed: a layer keeps copies. */
static inline built_net net_create(net *n, cmoe_ctx *ctx)
{
    const int blocks = n->m.blocks, more = n->shared.blocks;
    built_net b = {0};
    cmoe_layer_weights w;
    UNIT_OK(mlp_create(&n->m, ctx, &b.experts, &err));
    if (n->with_shared) UNIT_OK(mlp_create(&n->shared, ctx, &b.shared, &err));
    net_weights(n, &b, &w);
    n->o.route = &n->route;
    UNIT_OK(cmoe_layer_create(&b.layer, ctx, &n->o, &w, &err));
    while (n->m.blocks > blocks)
        free(n->m.block[--n->m.blocks]);
    while (n->shared.blocks > more)
        free(n->shared.block[--n->shared.blocks]);
    return b;
}

static inline void built_free(built_net *b)
{
    cmoe_layer_free(b->layer);
    cmoe_experts_free(b->experts);
    cmoe_experts_free(b->shared);
}

static inline records records_make(const net *n)
{
    const mlp *m = &n->m;
    const int64_t E = m->E - n->route.shared;
    records r = {.width = m->K + n->route.shared, .loss = -1};
    r.out = malloc((size_t)(m->T * m->H + 1) * sizeof *r.out);
    r.ids = malloc((size_t)(m->T * r.width + 1) * sizeof *r.ids);
    r.weights = malloc((size_t)(m->T * r.width + 1) * sizeof *r.weights);
    r.logits = malloc((size_t)(m->T * E + 1) * sizeof *r.logits);
    r.load = calloc((size_t)m->E, sizeof *r.load);
    return r;
}

static inline void records_free(records *r)
{
    free(r->out);
    free(r->ids);
    free(r->weights);
    free(r->logits);
    free(r->load);
}

/* A call that asks for everything. */
static inline cmoe_layer_call net_call(net *n, records *r)
{
    const mlp *m = &n->m;
    cmoe_layer_call c;
    cmoe_layer_call_default(&c, sizeof c);
    c.ids = cmoe_view_mut_2d(r->ids, CMOE_I32, m->T, r->width);
    c.weights = cmoe_view_mut_2d(r->weights, CMOE_F32, m->T, r->width);
    c.load = cmoe_view_mut_1d(r->load, CMOE_I64, m->E);
    if (n->with_gate) {
        c.logits = cmoe_view_mut_2d(r->logits, CMOE_F32, m->T, m->E - n->route.shared);
        c.balance_loss = &r->loss;
    }
    if (n->with_table) c.input_ids = cmoe_view_1d(n->input_ids, CMOE_I32, m->T);
    return c;
}

static inline void net_forward(net *n, const unit_env *e, const built_net *b,
                               const cmoe_layer_call *call, records *r)
{
    mlp *m = &n->m;
    const int blocks = m->blocks;
    int64_t need = -1;
    UNIT_OK(cmoe_layer_bytes(b->layer, m->T, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    UNIT_OK(cmoe_layer_forward(e->stream, b->layer, mlp_lay_2d(m, m->x, m->x_dtype, m->T, m->H),
                               call, cmoe_view_mut_2d(r->out, CMOE_F32, m->T, m->H), &arena, &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
    while (m->blocks > blocks)
        free(m->block[--m->blocks]);
}

/* Build, run, free. */
static inline records net_run(net *n, const unit_env *e)
{
    records r = records_make(n);
    built_net b = net_create(n, e->ctx);
    const cmoe_layer_call c = net_call(n, &r);
    net_forward(n, e, &b, &c, &r);
    built_free(&b);
    return r;
}

static inline void records_equal(const net *n, const records *a, const records *b)
{
    const mlp *m = &n->m;
    assert_memory_equal(a->out, b->out, (size_t)(m->T * m->H) * sizeof *a->out);
    assert_memory_equal(a->ids, b->ids, (size_t)(m->T * a->width) * sizeof *a->ids);
    assert_memory_equal(a->weights, b->weights, (size_t)(m->T * a->width) * sizeof *a->weights);
    assert_memory_equal(a->load, b->load, (size_t)m->E * sizeof *a->load);
    if (n->with_gate)
        assert_memory_equal(a->logits, b->logits,
                            (size_t)(m->T * (m->E - n->route.shared)) * sizeof *a->logits);
    assert_memory_equal(&a->loss, &b->loss, sizeof a->loss);
}

#endif
