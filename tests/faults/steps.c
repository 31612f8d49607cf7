/* SPDX-License-Identifier: MIT
 *
 * steps.c - see steps.h.
 */
#include "steps.h"

static cmoe_view logits_of(const steps_env *e)
{
    return cmoe_view_2d(e->data.logits, CMOE_F32, FT, FE);
}
static cmoe_view x_of(const steps_env *e)
{
    return cmoe_view_2d(e->data.x, CMOE_F32, FT, FH);
}
static cmoe_view ids_of(const steps_env *e)
{
    return cmoe_view_2d(e->data.ids, CMOE_I32, FT, FK);
}
static cmoe_view weights_of(const steps_env *e)
{
    return cmoe_view_2d(e->data.weights, CMOE_F32, FT, FK);
}
static cmoe_view gate_of(const steps_env *e)
{
    return cmoe_view_2d(e->data.gate, CMOE_F32, FE, FH);
}
static cmoe_view shared_of(const steps_env *e)
{
    return cmoe_view_2d(e->data.shared, CMOE_F32, FT, FH);
}
static cmoe_view_mut rows_out(steps_env *e)
{
    return cmoe_view_mut_2d(e->out.rows, CMOE_F32, FT * FK, FH);
}
static cmoe_view_mut tokens_out(steps_env *e)
{
    return cmoe_view_mut_2d(e->out.out, CMOE_F32, FT, FH);
}

static cmoe_view_mut out_3d(float *p, int64_t a, int64_t b, int64_t c)
{
    const int64_t dims[3] = {a, b, c};
    return cmoe_view_mut_make(p, CMOE_F32, 3, dims);
}

/* ---- route ----------------------------------------------------------------------------------- */

static cmoe_route_options route_options(void)
{
    cmoe_route_options o;
    cmoe_route_options_default(&o, sizeof o);
    o.topk = FK;
    o.shared = 1;
    return o;
}

static cmoe_status route_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    const cmoe_route_options o = route_options();
    int64_t device;
    (void)e;
    return cmoe_route_bytes(&o, FT, FE, host, &device, err);
}

static cmoe_status route_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    const cmoe_route_options o = route_options();
    return cmoe_route(e->env.stream, &o, logits_of(e), NULL,
                      cmoe_view_mut_2d(e->out.weights, CMOE_F32, FT, FK + 1),
                      cmoe_view_mut_2d(e->out.ids, CMOE_I32, FT, FK + 1), arena, err);
}

static cmoe_status logits_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    int64_t device;
    return cmoe_route_logits_bytes(e->env.ctx, FT, FH, FE, 0, host, &device, err);
}

static cmoe_status logits_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    const cmoe_view none = cmoe_view_none();
    return cmoe_route_logits(e->env.stream, x_of(e), gate_of(e), none, none, none, 1,
                             cmoe_view_mut_2d(e->out.logits, CMOE_F32, FT, FE), arena, err);
}

/* ---- align, combine -------------------------------------------------------------------------- */

static cmoe_align_options align_options(void)
{
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = FE;
    return o;
}

static cmoe_status align_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    const cmoe_align_options o = align_options();
    int64_t device;
    (void)e;
    return cmoe_align_bytes(&o, FT, FK, host, &device, err);
}

static cmoe_status align_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    const cmoe_align_options o = align_options();
    return cmoe_align(e->env.stream, &o, ids_of(e), &e->out.groups, arena, err);
}

static cmoe_status no_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    (void)e;
    (void)err;
    *host = 0;
    return CMOE_OK;
}

static cmoe_status combine_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    return cmoe_combine(e->env.stream, NULL, cmoe_view_2d(e->data.rows, CMOE_F32, FT * FK, FH),
                        weights_of(e), &e->groups, shared_of(e), tokens_out(e), arena, err);
}

/* ---- products and experts -------------------------------------------------------------------- */

static cmoe_status grouped_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    int64_t device;
    return cmoe_grouped_matmul_bytes(e->matrix[e->which], FT * FK, host, &device, err);
}

/* Inputs are the rows' first FI columns. */
static cmoe_status grouped_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    cmoe_grouped_matmul_options o;
    cmoe_grouped_matmul_options_default(&o, sizeof o);
    o.x_grouped = 1;
    cmoe_view x = cmoe_view_2d(e->data.rows, CMOE_F32, FT * FK, FI);
    x.strides[0] = FH;
    return cmoe_grouped_matmul(e->env.stream, &o, x, e->matrix[e->which], cmoe_view_none(),
                               &e->groups, rows_out(e), arena, err);
}

static cmoe_status rows_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    int64_t device;
    return cmoe_experts_rows_bytes(e->experts[e->which], FT, e->groups.capacity, host, &device,
                                   err);
}

static cmoe_status rows_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    return cmoe_experts_rows(e->env.stream, e->experts[e->which], x_of(e), 0, &e->groups,
                             cmoe_view_none(), rows_out(e), arena, err);
}

static cmoe_status experts_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    int64_t device;
    return cmoe_experts_bytes(e->experts[e->which], FT, FK, host, &device, err);
}

static cmoe_status experts_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    return cmoe_experts_run(e->env.stream, e->experts[e->which], x_of(e), ids_of(e), weights_of(e),
                            shared_of(e), tokens_out(e), arena, err);
}

/* ---- the layer ------------------------------------------------------------------------------- */

static cmoe_status layer_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    int64_t device;
    return cmoe_layer_bytes(e->layers[e->which], FT, host, &device, err);
}

static cmoe_status layer_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    cmoe_layer_call call;
    cmoe_layer_call_default(&call, sizeof call);
    call.ids = cmoe_view_mut_2d(e->out.ids, CMOE_I32, FT, FK);
    call.weights = cmoe_view_mut_2d(e->out.weights, CMOE_F32, FT, FK);
    call.logits = cmoe_view_mut_2d(e->out.logits, CMOE_F32, FT, FE);
    return cmoe_layer_forward(e->env.stream, e->layers[e->which], x_of(e), &call, tokens_out(e),
                              arena, err);
}

/* ---- attention ------------------------------------------------------------------------------- */

static cmoe_batch batch_of(const int64_t first[3], const int64_t start[2])
{
    static const int32_t pages[4] = {2, 0, 1, -1};
    return (cmoe_batch){.size = sizeof(cmoe_batch),
                        .sequences = 2,
                        .first = first,
                        .start = start,
                        .pages = pages,
                        .page_columns = 2};
}

/* Four tokens behind the 70 positions that the first sequence has, the others alone. */
static cmoe_batch new_tokens(void)
{
    static const int64_t first[3] = {0, 4, FT}, start[2] = {70, 0};
    return batch_of(first, start);
}

static cmoe_kv kv_over(const steps_env *e, void *base)
{
    return (cmoe_kv){.size = sizeof(cmoe_kv),
                     .heads = FKV,
                     .key_dim = FKD,
                     .value_dim = FVD,
                     .format = e->which ? CMOE_BF16 : CMOE_F32,
                     .base = base,
                     .pages = FPAGES};
}

/* The first columns of rows of FH. */
static cmoe_view columns_of(const float *p, int64_t columns)
{
    cmoe_view v = cmoe_view_2d(p, CMOE_F32, FT, columns);
    v.strides[0] = FH;
    return v;
}

static cmoe_status write_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    const cmoe_kv kv = kv_over(e, e->out.pages);
    const cmoe_batch batch = new_tokens();
    (void)arena;
    return cmoe_kv_write(e->env.stream, &kv, &batch, columns_of(e->data.x, FKV * FKD),
                         columns_of(e->data.shared, FKV * FVD), err);
}

static cmoe_attention_options attention_options(void)
{
    cmoe_attention_options o;
    cmoe_attention_options_default(&o, sizeof o);
    o.heads = FQ;
    return o;
}

static cmoe_status attention_bytes(steps_env *e, int64_t *host, cmoe_error *err)
{
    const cmoe_attention_options o = attention_options();
    const cmoe_kv kv = kv_over(e, e->cache[e->which]);
    const cmoe_batch batch = new_tokens();
    int64_t device;
    return cmoe_attention_bytes(e->env.ctx, &o, &kv, &batch, host, &device, err);
}

static cmoe_status attention_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    const cmoe_attention_options o = attention_options();
    const cmoe_kv kv = kv_over(e, e->cache[e->which]);
    const cmoe_batch batch = new_tokens();
    return cmoe_attention(e->env.stream, &o, columns_of(e->data.x, FQ * FKD), &kv, &batch,
                          cmoe_view_1d(e->data.bias2, CMOE_F32, FQ),
                          cmoe_view_mut_2d(e->out.rows, CMOE_F32, FT, FQ * FVD), arena, err);
}

/* ---- small operations: no arena, no allocation either ---------------------------------------- */

static cmoe_status norm_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    const cmoe_view none = cmoe_view_none();
    return cmoe_rms_norm(e->env.stream, NULL, x_of(e), shared_of(e), none, tokens_out(e),
                         cmoe_view_mut_none(), err);
}

static cmoe_status small_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    const cmoe_status status = cmoe_silu_mul(
        e->env.stream, x_of(e), 0, 0, cmoe_view_mut_2d(e->out.rows, CMOE_F32, FT, FH / 2), err);
    if (status != CMOE_OK) return status;
    return cmoe_add_shared_expert(e->env.stream, x_of(e), shared_of(e), cmoe_view_none(), 0,
                                  tokens_out(e), err);
}

static cmoe_status load_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    int64_t counts[FE];
    double loss;
    const cmoe_status status =
        cmoe_route_load(e->env.stream, ids_of(e), cmoe_view_mut_1d(counts, CMOE_I64, FE), err);
    if (status != CMOE_OK) return status;
    return cmoe_route_balance_loss(e->env.stream, logits_of(e), ids_of(e), cmoe_view_none(), &loss,
                                   err);
}

static cmoe_status layer_norm_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    return cmoe_layer_norm(e->env.stream, 1e-5f, x_of(e), shared_of(e),
                           cmoe_view_1d(e->data.gate, CMOE_F32, FH),
                           cmoe_view_1d(e->data.bias2, CMOE_F32, FH), tokens_out(e),
                           cmoe_view_mut_2d(e->out.rows, CMOE_F32, FT, FH), err);
}

static cmoe_status rope_table_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    return cmoe_rope_table(e->env.stream, cmoe_view_1d(e->data.ids, CMOE_I32, FT),
                           cmoe_view_1d(e->data.weights, CMOE_F32, 4), 1,
                           cmoe_view_mut_2d(e->out.logits, CMOE_F32, FT, 4),
                           cmoe_view_mut_2d(e->out.weights, CMOE_F32, FT, 4), err);
}

static cmoe_status rope_rotate_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    return cmoe_rope_rotate(e->env.stream, NULL, cmoe_view_3d(e->data.x, CMOE_F32, FT, FH / 8, 8),
                            columns_of(e->data.rows, 4), columns_of(e->data.shared, 4),
                            out_3d(e->out.out, FT, FH / 8, 8), err);
}

static cmoe_status embedding_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    return cmoe_embedding(e->env.stream, cmoe_view_1d(e->data.ids, CMOE_I32, FT), gate_of(e), 2,
                          tokens_out(e), err);
}

static cmoe_status scaled_add_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    return cmoe_scaled_add(e->env.stream, x_of(e), shared_of(e), 0.5f, tokens_out(e), err);
}

static cmoe_status clip_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    (void)arena;
    return cmoe_clip(e->env.stream, x_of(e), 0.5f, tokens_out(e), err);
}

/* The outputs stand one behind the other in `rows`. */
static cmoe_status gdn_pack_run(steps_env *e, cmoe_arena *arena, cmoe_error *err)
{
    static const int32_t index[FT] = {3, 0, -1, 5, 1, 7, 2};
    enum { QK = FT * FGK * FGKD, VZ = FT * FGV * FGVD };
    float *p = e->out.rows;
    cmoe_gdn_pack_options o;
    (void)arena;
    cmoe_gdn_pack_options_default(&o, sizeof o);
    o.key_heads = FGK;
    o.key_dim = FGKD;
    o.value_heads = FGV;
    o.value_dim = FGVD;
    const cmoe_gdn_pack_out out = {
        .size = sizeof out,
        .q = out_3d(p, FT, FGK, FGKD),
        .k = out_3d(p + QK, FT, FGK, FGKD),
        .v = out_3d(p + 2 * QK, FT, FGV, FGVD),
        .z = out_3d(p + 2 * QK + VZ, FT, FGV, FGVD),
        .b = cmoe_view_mut_2d(p + 2 * QK + 2 * VZ, CMOE_F32, FT, FGV),
        .a = cmoe_view_mut_2d(p + 2 * QK + 2 * VZ + FT * FGV, CMOE_F32, FT, FGV),
    };
    return cmoe_gdn_pack(e->env.stream, &o, columns_of(e->data.x, FGC + FGV * FGVD),
                         columns_of(e->data.shared, 2 * FGV),
                         cmoe_view_2d(e->data.rows, CMOE_F32, FGC, FGW), cmoe_view_none(),
                         out_3d(e->out.state, FT + 1, FGC, FGW - 1),
                         cmoe_view_1d(index, CMOE_I32, FT), &out, err);
}

const step steps[STEPS] = {
    {"route", 1, 0, route_bytes, route_run},
    {"route_logits", 1, 0, logits_bytes, logits_run},
    {"align", 1, 1, align_bytes, align_run},
    {"combine", 1, 0, no_bytes, combine_run},
    {"grouped_matmul", 3, 0, grouped_bytes, grouped_run},
    {"experts_rows", 4, 0, rows_bytes, rows_run},
    {"experts_run", 4, 0, experts_bytes, experts_run},
    {"layer", 4, 0, layer_bytes, layer_run},
    {"rms_norm", 1, 0, no_bytes, norm_run},
    {"silu_mul, add_shared_expert", 1, 0, no_bytes, small_run},
    {"load, balance loss", 1, 0, no_bytes, load_run},
    {"kv_write", 2, 0, no_bytes, write_run},
    {"attention", 2, 0, attention_bytes, attention_run},
    {"layer_norm", 1, 0, no_bytes, layer_norm_run},
    {"rope_table", 1, 0, no_bytes, rope_table_run},
    {"rope_rotate", 1, 0, no_bytes, rope_rotate_run},
    {"embedding", 1, 0, no_bytes, embedding_run},
    {"scaled_add", 1, 0, no_bytes, scaled_add_run},
    {"clip", 1, 0, no_bytes, clip_run},
    {"gdn_pack", 1, 0, no_bytes, gdn_pack_run},
};

/* ---- what they need -------------------------------------------------------------------------- */

static void make_experts(steps_env *e, int i)
{
    static const int32_t formats[4] = {CMOE_F32, CMOE_BF16, CMOE_I8, CMOE_F32};
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.format = formats[i];
    o.borrow = i == 3;
    o.chunk = i == 2 ? 3 : 0; /* some in more than one chunk */
    UNIT_OK(cmoe_experts_create(&e->experts[i], e->env.ctx, &o,
                                cmoe_view_3d(e->data.w13, CMOE_F32, FE, 2 * FI, FH),
                                cmoe_view_3d(e->data.w2, CMOE_F32, FE, FH, FI),
                                cmoe_view_2d(e->data.bias13, CMOE_F32, FE, 2 * FI),
                                cmoe_view_2d(e->data.bias2, CMOE_F32, FE, FH), &err));
    if (i == 3) return;
    cmoe_matrix_options m;
    cmoe_matrix_options_default(&m, sizeof m);
    m.format = formats[i];
    UNIT_OK(cmoe_matrix_create(&e->matrix[i], e->env.ctx, &m,
                               cmoe_view_3d(e->data.w2, CMOE_F32, FE, FH, FI), cmoe_view_none(),
                               &err));
}

static void make_layer(steps_env *e, int i)
{
    cmoe_route_options route;
    cmoe_route_options_default(&route, sizeof route);
    route.topk = FK;
    cmoe_layer_options o;
    cmoe_layer_options_default(&o, sizeof o);
    o.route = &route;
    cmoe_layer_weights w;
    cmoe_layer_weights_default(&w, sizeof w);
    w.gate = gate_of(e);
    w.experts = e->experts[i];
    if (i == 3) {
        o.chunk = 2;
        w.shared = e->shared;
        w.shared_gate = cmoe_view_2d(e->data.gate, CMOE_F32, 1, FH);
    }
    UNIT_OK(cmoe_layer_create(&e->layers[i], e->env.ctx, &o, &w, &err));
}

/* A cache that attention reads: both sequences' tokens, and the 70 positions before those of the
 * first, FT at a time. */
static void make_cache(steps_env *e)
{
    static const int64_t first[3] = {0, FT, FT};
    for (e->which = 0; e->which < 2; e->which++) {
        char *base = e->cache[e->which] = aligned_alloc(64, FPAGES * FPAGE);
        assert_non_null(base);
        const cmoe_kv kv = kv_over(e, base);
        const cmoe_view k = columns_of(e->data.x, FKV * FKD);
        const cmoe_view v = columns_of(e->data.shared, FKV * FVD);
        for (int64_t at = 0; at < 70; at += FT) {
            const int64_t start[2] = {at, 0};
            const cmoe_batch batch = batch_of(first, start);
            UNIT_OK(cmoe_kv_write(e->env.stream, &kv, &batch, k, v, &err));
        }
        const cmoe_batch batch = new_tokens();
        UNIT_OK(cmoe_kv_write(e->env.stream, &kv, &batch, k, v, &err));
    }
    e->which = 0;
}

void steps_open(steps_env *e, fault_memory *m, int32_t threads)
{
    memset(e, 0, sizeof *e);
    fault_fill(&e->data);
    e->env = fault_env(m, threads);
    for (int i = 0; i < 4; i++)
        make_experts(e, i);
    UNIT_OK(cmoe_experts_create(
        &e->shared, e->env.ctx, NULL, cmoe_view_3d(e->data.w13, CMOE_F32, 1, 2 * FI, FH),
        cmoe_view_3d(e->data.w2, CMOE_F32, 1, FH, FI), cmoe_view_none(), cmoe_view_none(), &err));
    for (int i = 0; i < 4; i++)
        make_layer(e, i);
    make_cache(e);
    int64_t bytes = 0;
    UNIT_OK(align_bytes(e, &bytes, &err));
    cmoe_arena arena = unit_arena(bytes);
    e->groups_memory = arena.base;
    UNIT_OK(align_run(e, &arena, &err));
    e->groups = e->out.groups;
}

void steps_close(steps_env *e)
{
    for (int i = 0; i < 4; i++)
        cmoe_layer_free(e->layers[i]);
    for (int i = 0; i < 4; i++)
        cmoe_experts_free(e->experts[i]);
    cmoe_experts_free(e->shared);
    for (int i = 0; i < 3; i++)
        cmoe_matrix_free(e->matrix[i]);
    for (int i = 0; i < 2; i++)
        free(e->cache[i]);
    free(e->groups_memory);
    unit_close(&e->env);
}
