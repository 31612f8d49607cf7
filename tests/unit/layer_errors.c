/* SPDX-License-Identifier: MIT
 *
 * layer_errors.c - the text of every error of cmoe_layer_create and cmoe_layer_forward; outputs,
 * records and the arena stay untouched.
 */
#include <math.h>

#include "comm/comm.h"
#include "unit.h"

enum { T = 5, K = 2, E = 4, H = 6, I = 3, V = 7 };

/* ---- create ---------------------------------------------------------------------------------- */

static cmoe_experts *experts_make(cmoe_ctx *ctx, int64_t experts, int64_t hidden, int64_t first,
                                  int32_t weight_at)
{
    static const float f[(E + 2) * 2 * I * (H + 1)];
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.first_expert = first;
    o.weight_at = weight_at;
    cmoe_experts *x = NULL;
    UNIT_OK(cmoe_experts_create(&x, ctx, &o, cmoe_view_3d(f, CMOE_F32, experts, 2 * I, hidden),
                                cmoe_view_3d(f, CMOE_F32, experts, hidden, I), cmoe_view_none(),
                                cmoe_view_none(), &err));
    return x;
}

enum { FOUR, FIVE, FROM_1, FOREIGN, ONE, ONE_WIDE, ONE_AT_ROW, ONE_FROM_1, OBJECTS };

typedef struct made {
    unit_env e, other;
    cmoe_experts *x[OBJECTS];
    cmoe_layer_options o;
    cmoe_route_options route;
    cmoe_layer_weights w;
    cmoe_layer *l, **out;
    float f[E * H];
    int32_t table[V * K];
} made;

static void made_open(made *g)
{
    memset(g, 0, sizeof *g);
    g->e = unit_open(2);
    g->other = unit_open(1);
    g->x[FOUR] = experts_make(g->e.ctx, E, H, 0, 0);
    g->x[FIVE] = experts_make(g->e.ctx, E + 1, H, 0, 0);
    g->x[FROM_1] = experts_make(g->e.ctx, E, H, 1, 0);
    g->x[FOREIGN] = experts_make(g->other.ctx, E, H, 0, 0);
    g->x[ONE] = experts_make(g->e.ctx, 1, H, 0, 0);
    g->x[ONE_WIDE] = experts_make(g->e.ctx, 1, H + 1, 0, 0);
    g->x[ONE_AT_ROW] = experts_make(g->e.ctx, 1, H, 0, CMOE_WEIGHT_ROW);
    g->x[ONE_FROM_1] = experts_make(g->e.ctx, 1, H, 1, 0);
    cmoe_route_options_default(&g->route, sizeof g->route);
    g->route.topk = K;
    cmoe_layer_options_default(&g->o, sizeof g->o);
    g->o.route = &g->route;
    cmoe_layer_weights_default(&g->w, sizeof g->w);
    g->w.gate = cmoe_view_2d(g->f, CMOE_F32, E, H);
    g->w.experts = g->x[FOUR];
    g->out = &g->l;
}

static void made_close(made *g)
{
    for (int i = 0; i < OBJECTS; i++)
        cmoe_experts_free(g->x[i]);
    unit_close(&g->e);
    unit_close(&g->other);
}

static cmoe_status made_call(made *g, cmoe_ctx *ctx, const cmoe_layer_weights *w, cmoe_error *err)
{
    static char mark;
    g->l = (cmoe_layer *)(void *)&mark;
    const cmoe_status status = cmoe_layer_create(g->out, ctx, &g->o, w, err);
    if (status != CMOE_OK)
        assert_ptr_equal(g->l, &mark);
    else
        cmoe_layer_free(g->l);
    return status;
}

#define MADE(change, status, text)                                    \
    do {                                                              \
        made g;                                                       \
        made_open(&g);                                                \
        UNIT_OK(made_call(&g, g.e.ctx, &g.w, &err));                  \
        change;                                                       \
        UNIT_FAILS(made_call(&g, g.e.ctx, &g.w, &err), status, text); \
        made_close(&g);                                               \
    } while (0)

static void bad_options(void **state)
{
    (void)state;
    MADE(g.out = NULL, CMOE_ERR_ARG, "layer: out is NULL");
    MADE(g.o.size = 3, CMOE_ERR_ARG, "cmoe_layer_options.size = 3");
    MADE(g.w.size = 3, CMOE_ERR_ARG, "cmoe_layer_weights.size = 3");
    MADE(g.route.size = 3, CMOE_ERR_ARG, "cmoe_route_options.size = 3");
    MADE(g.o.chunk = -2, CMOE_ERR_RANGE, "chunk = -2, want > 0 tokens, or 0 for the default");
    MADE(g.o.combine_scale = NAN, CMOE_ERR_RANGE, "combine_scale = nan, want a finite number");
    MADE(g.o.combine_scale = INFINITY, CMOE_ERR_RANGE, "combine_scale = inf, want a finite number");
    MADE(g.o.shared_first = 2, CMOE_ERR_RANGE, "shared_first = 2, want 0 or 1");
    MADE(g.o.route = NULL, CMOE_ERR_ARG, "layer: options.route is NULL");
    MADE(g.route.topk = 0, CMOE_ERR_RANGE, "topk = 0, want at least 1");
    MADE(g.route.scale = 0, CMOE_ERR_RANGE, "scale = 0, want another number");
    MADE(g.o.combine_scale = 0, CMOE_ERR_RANGE, "combine_scale = 0, want a finite number other");
    MADE((g.route.groups = 4, g.route.topk_groups = 1, g.route.topk = 2), CMOE_ERR_RANGE,
         "layer: topk = 2, want at most 1, the experts of 1 of 4 groups");
    MADE(g.route.topk = -1, CMOE_ERR_RANGE, "topk = -1, want at least 1");
    MADE(g.route.topk = E + 1, CMOE_ERR_RANGE, "layer: topk = 5, want 1 to 4 (experts)");
    MADE(g.route.scoring = 9, CMOE_ERR_RANGE, "scoring = 9, want 0 to 4");
    MADE(g.route.groups = 3, CMOE_ERR_RANGE, "groups = 3, want a divisor of 4 (experts)");
    MADE((g.route.groups = 2, g.route.topk_groups = 3), CMOE_ERR_RANGE,
         "topk_groups = 3, want 1 to 2 (groups)");
    MADE(g.route.shared = -1, CMOE_ERR_RANGE, "shared = -1, want at least 0");
    made g;
    made_open(&g);
    UNIT_FAILS(made_call(&g, NULL, &g.w, &err), CMOE_ERR_ARG, "layer: ctx is NULL");
    UNIT_FAILS(made_call(&g, g.e.ctx, NULL, &err), CMOE_ERR_ARG, "layer: weights is NULL");
    /* Options of an older header end before the fields that it had not: defaults hold. */
    size_t *small = malloc(sizeof *small + sizeof g.route.topk);
    *small = sizeof *small + sizeof g.route.topk;
    memcpy(small + 1, &(int64_t){K}, sizeof(int64_t));
    g.o.route = (const cmoe_route_options *)(const void *)small;
    UNIT_OK(made_call(&g, g.e.ctx, &g.w, &err));
    free(small);
    made_close(&g);
}

static void bad_experts(void **state)
{
    (void)state;
    MADE(g.w.experts = NULL, CMOE_ERR_ARG,
         "layer: experts is NULL, want those of cmoe_experts_create");
    MADE(g.w.experts = g.x[FOREIGN], CMOE_ERR_ARG,
         "layer: experts were made from another context, want the layer's");
    MADE((g.w.shared = g.x[FOREIGN]), CMOE_ERR_ARG,
         "layer: shared were made from another context, want the layer's");
    MADE(g.w.shared = g.x[FOUR], CMOE_ERR_SHAPE,
         "layer: shared holds 4 experts from 0 on, want 1 from 0");
    MADE(g.w.shared = g.x[ONE_FROM_1], CMOE_ERR_SHAPE,
         "layer: shared holds 1 experts from 1 on, want 1 from 0");
    MADE(g.w.shared = g.x[ONE_WIDE], CMOE_ERR_SHAPE,
         "layer: shared has hidden = 7, want 6 (experts)");
    MADE(g.w.shared = g.x[ONE_AT_ROW], CMOE_ERR_UNSUPPORTED,
         "layer: shared has weight_at row, want combine");
    MADE(g.w.experts = g.x[FIVE], CMOE_ERR_SHAPE,
         "layer: experts holds 5 experts from 0 on, want 4 from 0 (4 of the gate and 0 appended)");
    MADE(g.w.experts = g.x[FROM_1], CMOE_ERR_SHAPE,
         "layer: experts holds 4 experts from 1 on, want 4 from 0");
    MADE(g.route.shared = 1, CMOE_ERR_SHAPE,
         "layer: experts holds 4 experts from 0 on, want 5 from 0 (4 of the gate and 1 appended)");
    MADE((g.route.shared = 1, g.w.experts = g.x[FIVE], g.w.shared = g.x[ONE]), CMOE_ERR_ARG,
         "layer: shared is given and route.shared = 1 appends some, want one of the two");
    MADE(g.w.gate.dims[0] = 0, CMOE_ERR_SHAPE, "layer: 0 routed experts, want at least 1");
    MADE((g.w.gate = cmoe_view_none(), g.route.shared = 4), CMOE_ERR_SHAPE,
         "layer: 0 routed experts, want at least 1");
    MADE(g.w.gate.dims[0] = INT64_MAX, CMOE_ERR_SHAPE,
         "layer: 9223372036854775807 routed experts, want at most 2147483647");
    MADE((g.w.gate = cmoe_view_none(), g.route.shared = 1), CMOE_ERR_UNSUPPORTED,
         "layer: route.shared = 1 without a gate, want shared experts as `shared`");
}

static void bad_weights(void **state)
{
    static const float bad[E] = {1, 1, INFINITY, 1};
    (void)state;
    MADE(g.w.gate.rank = 1, CMOE_ERR_SHAPE, "gate: rank 1, want 2 [experts, hidden = 6]");
    MADE(g.w.gate.dims[1] = 5, CMOE_ERR_SHAPE, "gate: dims[1] = 5, want 6 [experts, hidden = 6]");
    MADE(g.w.gate.data = NULL, CMOE_ERR_ARG, "gate: data is NULL, want 96 bytes");
    MADE(g.w.gate.dtype = CMOE_I8, CMOE_ERR_DTYPE, "gate: dtype i8 (6), want one of");
    MADE(g.w.gate_bias = cmoe_view_1d(g.f, CMOE_F32, E - 1), CMOE_ERR_SHAPE,
         "gate_bias: dims[0] = 3, want 4 [experts = 4]");
    MADE(g.w.lora_a = cmoe_view_2d(g.f, CMOE_F32, 2, H), CMOE_ERR_ARG,
         "lora_a is given without lora_b, want both or neither");
    MADE(g.w.lora_b = cmoe_view_2d(g.f, CMOE_F32, E, 2), CMOE_ERR_ARG,
         "lora_b is given without lora_a, want both or neither");
    MADE((g.w.lora_a = cmoe_view_2d(g.f, CMOE_F32, 2, H),
          g.w.lora_b = cmoe_view_2d(g.f, CMOE_F32, E, 3)),
         CMOE_ERR_SHAPE, "lora_b: dims[1] = 3, want 2 [experts = 4, rank = 2]");
    MADE((g.w.lora_a = cmoe_view_2d(g.f, CMOE_F32, 2, H),
          g.w.lora_b = cmoe_view_2d(g.f, CMOE_F32, E, 2), g.w.lora_scale = NAN),
         CMOE_ERR_RANGE, "lora_scale = nan, want a finite number");
    MADE(g.w.bias = cmoe_view_1d(g.f, CMOE_F32, E + 1), CMOE_ERR_SHAPE,
         "bias: dims[0] = 5, want 4 [experts = 4]");
    MADE(g.w.per_expert_scale = cmoe_view_2d(g.f, CMOE_F32, 1, E), CMOE_ERR_SHAPE,
         "per_expert_scale: rank 2, want 1 [experts = 4]");
    MADE(g.w.per_expert_scale = cmoe_view_1d(bad, CMOE_F32, E), CMOE_ERR_RANGE,
         "per_expert_scale[2] = inf, want a finite value");
    MADE(g.w.hash_table = cmoe_view_2d(g.table, CMOE_I32, V, K + 1), CMOE_ERR_SHAPE,
         "hash_table: dims[1] = 3, want 2 [vocab, topk = 2]");
    MADE(g.w.hash_table = cmoe_view_2d(g.table, CMOE_F32, V, K), CMOE_ERR_DTYPE,
         "hash_table: dtype f32 (1), want one of: i32 i64");
    MADE(g.w.hash_table = cmoe_view_2d(g.table, CMOE_I32, 0, K), CMOE_ERR_SHAPE,
         "hash_table: dims[0] = 0, want at least 1 row (vocab)");
    MADE((g.table[5] = E, g.w.hash_table = cmoe_view_2d(g.table, CMOE_I32, V, K)), CMOE_ERR_RANGE,
         "hash_table[2, 1] = 4, want 0 <= id < 4 (experts), or -1");
    MADE((g.table[5] = -2, g.w.hash_table = cmoe_view_2d(g.table, CMOE_I32, V, K)), CMOE_ERR_RANGE,
         "hash_table[2, 1] = -2, want 0 <= id < 4 (experts), or -1");
    MADE(g.w.shared_gate = cmoe_view_2d(g.f, CMOE_F32, 1, H), CMOE_ERR_ARG,
         "layer: shared_gate is given without a shared expert");
    MADE((g.w.shared = g.x[ONE], g.w.shared_gate = cmoe_view_2d(g.f, CMOE_F32, 2, H)),
         CMOE_ERR_SHAPE, "shared_gate: dims[0] = 2, want 1 [shared = 1, hidden = 6]");
    MADE((g.w.experts = g.x[FIVE], g.route.shared = 1,
          g.w.shared_gate = cmoe_view_2d(g.f, CMOE_F32, 1, H - 1)),
         CMOE_ERR_SHAPE, "shared_gate: dims[1] = 5, want 6 [shared = 1, hidden = 6]");
    /* Without a gate there is nothing that these could act on. */
    MADE((g.w.gate = cmoe_view_none(), g.w.gate_bias = cmoe_view_1d(g.f, CMOE_F32, E)),
         CMOE_ERR_ARG, "layer: gate_bias is given without a gate");
    MADE((g.w.gate = cmoe_view_none(), g.w.bias = cmoe_view_1d(g.f, CMOE_F32, E)), CMOE_ERR_ARG,
         "layer: bias is given without a gate");
    MADE((g.w.gate = cmoe_view_none(), g.w.lora_a = cmoe_view_2d(g.f, CMOE_F32, 2, H)),
         CMOE_ERR_ARG, "layer: lora_a is given without a gate");
    MADE((g.w.gate = cmoe_view_none(), g.w.lora_b = cmoe_view_2d(g.f, CMOE_F32, E, 2)),
         CMOE_ERR_ARG, "layer: lora_b is given without a gate");
    MADE((g.w.gate = cmoe_view_none(), g.w.hash_table = cmoe_view_2d(g.table, CMOE_I32, V, K)),
         CMOE_ERR_ARG, "layer: hash_table is given without a gate");
}

/* ---- forward --------------------------------------------------------------------------------- */

enum { GATED, HASHED, GATELESS, VALIDATING, LAYERS };

typedef struct good {
    made m;
    cmoe_layer *l[LAYERS], *p;
    cmoe_stream *s;
    cmoe_view x;
    cmoe_view_mut out;
    cmoe_layer_call call;
    cmoe_arena *arena, room;
    float xs[T * H], replay_w[T * K];
    int32_t input[T], replay[T * K], mask[2 * T + 2];
    struct { /* what may not be touched */
        float y[T * H], w[T * K], logits[T * E];
        int32_t ids[T * K];
        int64_t load[E];
        double loss;
    } o, before;
    char scratch[1 << 15];
} good;

static void good_open(good *g)
{
    memset(g, 0, sizeof *g);
    made *m = &g->m;
    made_open(m);
    for (int i = 0; i < LAYERS; i++) {
        m->w.gate = i == GATELESS ? cmoe_view_none() : cmoe_view_2d(m->f, CMOE_F32, E, H);
        m->w.hash_table = i == HASHED ? cmoe_view_2d(m->table, CMOE_I32, V, K) : cmoe_view_none();
        m->route.validate = i == VALIDATING;
        m->o.chunk = i == VALIDATING || i == HASHED ? 2 : 0;
        UNIT_OK(cmoe_layer_create(&g->l[i], m->e.ctx, &m->o, &m->w, &err));
    }
    g->p = g->l[GATED];
    g->s = m->e.stream;
    g->x = cmoe_view_2d(g->xs, CMOE_F32, T, H);
    g->out = cmoe_view_mut_2d(g->o.y, CMOE_F32, T, H);
    cmoe_layer_call *c = &g->call;
    cmoe_layer_call_default(c, sizeof *c);
    c->ids = cmoe_view_mut_2d(g->o.ids, CMOE_I32, T, K);
    c->weights = cmoe_view_mut_2d(g->o.w, CMOE_F32, T, K);
    c->logits = cmoe_view_mut_2d(g->o.logits, CMOE_F32, T, E);
    c->load = cmoe_view_mut_1d(g->o.load, CMOE_I64, E);
    c->balance_loss = &g->o.loss;
    g->room = cmoe_arena_make(g->scratch, sizeof g->scratch);
    g->arena = &g->room;
}

static void good_close(good *g)
{
    for (int i = 0; i < LAYERS; i++)
        cmoe_layer_free(g->l[i]);
    made_close(&g->m);
}

static cmoe_status good_call(good *g, cmoe_error *err)
{
    memset(&g->o, 0x5a, sizeof g->o);
    memcpy(&g->before, &g->o, sizeof g->o);
    const cmoe_status status =
        cmoe_layer_forward(g->s, g->p, g->x, &g->call, g->out, g->arena, err);
    if (status != CMOE_OK) assert_memory_equal(&g->o, &g->before, sizeof g->o);
    assert_int_equal(g->room.used, 0);
    return status;
}

#define SPOILT(change, status, text)                   \
    do {                                               \
        good g;                                        \
        good_open(&g);                                 \
        UNIT_OK(good_call(&g, &err));                  \
        change;                                        \
        UNIT_FAILS(good_call(&g, &err), status, text); \
        good_close(&g);                                \
    } while (0)

static cmoe_view replay(const good *g)
{
    return cmoe_view_2d(g->replay, CMOE_I32, T, K);
}
static cmoe_view replay_weights(const good *g)
{
    return cmoe_view_2d(g->replay_w, CMOE_F32, T, K);
}

static void bad_forward(void **state)
{
    (void)state;
    SPOILT(g.s = NULL, CMOE_ERR_ARG, "stream is NULL");
    SPOILT(g.p = NULL, CMOE_ERR_ARG, "layer is NULL, want one made from the stream's context");
    SPOILT(g.s = g.m.other.stream, CMOE_ERR_ARG,
           "layer is of another context, want one made from the stream's context");
    SPOILT(g.call.size = 5, CMOE_ERR_ARG, "cmoe_layer_call.size = 5");
    SPOILT(g.x.rank = 3, CMOE_ERR_SHAPE, "x: rank 3, want 2 [tokens, hidden = 6]");
    SPOILT(g.x.dims[1] = 5, CMOE_ERR_SHAPE, "x: dims[1] = 5, want 6 [tokens, hidden = 6]");
    SPOILT(g.x.dtype = CMOE_I32, CMOE_ERR_DTYPE, "x: dtype i32 (8), want one of");
    SPOILT(g.x.data = NULL, CMOE_ERR_ARG, "x: data is NULL, want 120 bytes");
    SPOILT(g.x.strides[0] = INT64_MAX / 2, CMOE_ERR_SHAPE, "x: strides reach outside");
    SPOILT(g.out.dims[0] = T - 1, CMOE_ERR_SHAPE,
           "out: dims[0] = 4, want 5 [tokens = 5, hidden = 6]");
    SPOILT(g.out.dtype = CMOE_I8, CMOE_ERR_DTYPE, "out: dtype i8 (6), want one of");
    SPOILT(g.out.strides[0] = 3, CMOE_ERR_SHAPE,
           "out: strides are negative or make elements share");
    SPOILT(g.out.data = g.xs, CMOE_ERR_ARG, "out overlaps x in memory");
    SPOILT(g.arena = NULL, CMOE_ERR_MEMORY, "layer: arena has 0 bytes left, want ");
    SPOILT(g.room.bytes = 640, CMOE_ERR_MEMORY, "layer: arena has 640 bytes left, want ");
    SPOILT(g.room.base = NULL, CMOE_ERR_MEMORY, "(ask cmoe_layer_bytes)");
}

static void bad_routing(void **state)
{
    (void)state;
    SPOILT(g.call.replay_weights = replay_weights(&g), CMOE_ERR_ARG,
           "replay_weights are given without replay_ids");
    SPOILT(g.p = g.l[GATELESS], CMOE_ERR_ARG,
           "replay_ids and replay_weights are not given, want both: this layer has no gate");
    SPOILT((g.p = g.l[GATELESS], g.call.replay_ids = replay(&g)), CMOE_ERR_ARG,
           "replay_weights are not given, want them: this layer has no gate");
    SPOILT((g.p = g.l[GATELESS], g.call.replay_ids = replay(&g),
            g.call.replay_weights = replay_weights(&g)),
           CMOE_ERR_ARG, "logits are asked for, but this layer has no gate");
    SPOILT((g.call.replay_ids = replay(&g), g.call.replay_ids.dims[1] = 1), CMOE_ERR_SHAPE,
           "replay_ids: dims[1] = 1, want 2 [tokens = 5, topk = 2]");
    SPOILT((g.call.replay_ids = replay(&g), g.call.replay_ids.dtype = CMOE_F32), CMOE_ERR_DTYPE,
           "replay_ids: dtype f32 (1), want one of: i32 i64");
    SPOILT((g.call.replay_ids = replay(&g), g.replay[7] = E), CMOE_ERR_RANGE,
           "replay_ids[3, 1] = 4, want 0 <= id < 4 (experts), or -1");
    SPOILT((g.call.replay_ids = replay(&g), g.replay[7] = -2), CMOE_ERR_RANGE,
           "replay_ids[3, 1] = -2, want 0 <= id < 4 (experts), or -1");
    SPOILT((g.call.replay_ids = replay(&g), g.replay[7] = 99, g.call.replay_ids.name = "captured"),
           CMOE_ERR_RANGE, "captured[3, 1] = 99");
    SPOILT((g.call.replay_ids = replay(&g), g.call.replay_weights = replay_weights(&g),
            g.call.replay_weights.dims[0] = 4),
           CMOE_ERR_SHAPE, "replay_weights: dims[0] = 4, want 5 [tokens = 5, topk = 2]");
    SPOILT(g.p = g.l[HASHED], CMOE_ERR_ARG, "input_ids is not given");
    SPOILT((g.p = g.l[HASHED], g.call.input_ids = cmoe_view_1d(g.input, CMOE_I32, T - 1)),
           CMOE_ERR_SHAPE, "input_ids: dims[0] = 4, want 5 [tokens = 5]");
    SPOILT((g.p = g.l[HASHED], g.call.input_ids = cmoe_view_1d(g.input, CMOE_U8, T)),
           CMOE_ERR_DTYPE, "input_ids: dtype u8 (7), want one of: i32 i64");
    /* Validation: the bad weight is in the last chunk, and the first ones write nothing. */
    SPOILT((g.p = g.l[VALIDATING], g.call.replay_ids = replay(&g),
            g.call.replay_weights = replay_weights(&g), g.replay_w[9] = NAN),
           CMOE_ERR_RANGE, "weights[0, 1] = nan, want a finite value");
}

/* Ids of tokens outside the table, which is looked at before anything is written. */
static void bad_input_ids(void **state)
{
    (void)state;
    SPOILT(
        (g.p = g.l[HASHED], g.call.input_ids = cmoe_view_1d(g.input, CMOE_I32, T), g.input[4] = V),
        CMOE_ERR_RANGE, "input_ids[4] = 7, want 0 <= id < 7 (rows of hash_table)");
    SPOILT(
        (g.p = g.l[HASHED], g.call.input_ids = cmoe_view_1d(g.input, CMOE_I32, T), g.input[2] = -1),
        CMOE_ERR_RANGE, "input_ids[2] = -1, want 0 <= id < 7 (rows of hash_table)");
}

static void bad_records(void **state)
{
    (void)state;
    SPOILT(g.call.ids.dims[1] = 1, CMOE_ERR_SHAPE,
           "ids: dims[1] = 1, want 2 [tokens = 5, slots = 2]");
    SPOILT(g.call.ids.dtype = CMOE_I64, CMOE_ERR_DTYPE, "ids: dtype i64 (9), want one of: i32");
    SPOILT(g.call.weights.dims[0] = 4, CMOE_ERR_SHAPE,
           "weights: dims[0] = 4, want 5 [tokens = 5, slots = 2]");
    SPOILT(g.call.weights.dtype = CMOE_BF16, CMOE_ERR_DTYPE, "weights: dtype bf16 (3)");
    SPOILT(g.call.logits.dims[1] = 3, CMOE_ERR_SHAPE,
           "logits: dims[1] = 3, want 4 [tokens = 5, experts = 4]");
    SPOILT(g.call.load.dims[0] = 5, CMOE_ERR_SHAPE, "load: dims[0] = 5, want 4 [experts = 4]");
    SPOILT(g.call.load.dtype = CMOE_I32, CMOE_ERR_DTYPE, "load: dtype i32 (8), want one of: i64");
    SPOILT(g.call.load.data = NULL, CMOE_ERR_ARG, "load: data is NULL, want 32 bytes");
    SPOILT(g.call.ids.strides[0] = 0, CMOE_ERR_SHAPE, "ids: strides are negative or make");
    SPOILT(g.call.logits = cmoe_view_mut_none(), CMOE_ERR_ARG,
           "balance_loss is asked for without logits, want logits and ids");
    SPOILT(g.call.ids = cmoe_view_mut_none(), CMOE_ERR_ARG,
           "balance_loss is asked for without ids, want logits and ids");
    SPOILT(g.call.mask = cmoe_view_1d(g.mask, CMOE_I64, T), CMOE_ERR_DTYPE,
           "mask: dtype i64 (9), want one of: i32");
    SPOILT(g.call.mask = cmoe_view_1d(g.mask, CMOE_I32, T + 1), CMOE_ERR_SHAPE,
           "mask: dims[0] = 6, want 5 [tokens = 5]");
}

static void overlaps(void **state)
{
    (void)state;
    SPOILT(g.call.ids.data = g.o.y, CMOE_ERR_ARG, "ids overlaps out in memory");
    SPOILT(g.call.weights.data = g.xs, CMOE_ERR_ARG, "weights overlaps x in memory");
    SPOILT(g.call.logits.data = g.o.w, CMOE_ERR_ARG, "logits overlaps weights in memory");
    SPOILT(g.call.load.data = g.o.logits, CMOE_ERR_ARG, "load overlaps logits in memory");
    SPOILT((g.call.replay_ids = replay(&g), g.call.ids.data = g.replay), CMOE_ERR_ARG,
           "ids overlaps ");
    SPOILT((g.call.replay_ids = replay(&g), g.out.data = g.replay), CMOE_ERR_ARG, "out overlaps ");
    SPOILT(g.call.mask = cmoe_view_1d(g.o.y, CMOE_I32, T), CMOE_ERR_ARG, "out overlaps ");
}

static void bad_sizes(void **state)
{
    (void)state;
    good g;
    int64_t host = -5, one = 0, many = 0;
    good_open(&g);
    UNIT_FAILS(cmoe_layer_bytes(NULL, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "layer_bytes: layer is NULL");
    UNIT_FAILS(cmoe_layer_bytes(g.p, 1, NULL, NULL, &err), CMOE_ERR_ARG,
               "layer_bytes: host is NULL");
    UNIT_FAILS(cmoe_layer_bytes(g.p, -1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = -1, want >= 0 and at most 2^31 - 1 slots a chunk of 2048");
    assert_int_equal(host, -5);
    UNIT_OK(cmoe_layer_bytes(g.p, 2048, &one, NULL, &err));
    UNIT_OK(cmoe_layer_bytes(g.p, INT64_MAX, &many, NULL, &err));
    assert_int_equal(one, many);
    g.m.o.chunk = INT64_MAX;
    cmoe_layer *l = NULL;
    g.m.w.hash_table = cmoe_view_none();
    UNIT_OK(cmoe_layer_create(&l, g.m.e.ctx, &g.m.o, &g.m.w, &err));
    UNIT_FAILS(cmoe_layer_bytes(l, (int64_t)1 << 30, &host, NULL, &err), CMOE_ERR_SHAPE,
               "tokens = 1073741824, want >= 0 and at most 2^31 - 1 slots a chunk of ");
    cmoe_layer_free(l);
    cmoe_layer_free(NULL);
    good_close(&g);
}

/* A layer of experts so wide that nobody could store a token: scratch beyond int64. */
static void scratch_beyond_int64(void **state)
{
    static float one[1];
    (void)state;
    unit_env e = unit_open(1);
    cmoe_experts_options o;
    cmoe_experts_options_default(&o, sizeof o);
    o.borrow = 1;
    const int64_t wide = ((int64_t)1 << 30) + (1 << 20);
    cmoe_view w13 = cmoe_view_3d(one, CMOE_F32, 1, 2, wide),
              w2 = cmoe_view_3d(one, CMOE_F32, 1, wide, 1);
    for (int i = 0; i < 3; i++)
        w13.strides[i] = w2.strides[i] = 0;
    cmoe_experts *x = NULL;
    UNIT_OK(cmoe_experts_create(&x, e.ctx, &o, w13, w2, cmoe_view_none(), cmoe_view_none(), &err));
    cmoe_route_options r;
    cmoe_route_options_default(&r, sizeof r);
    r.topk = 1;
    cmoe_layer_options lo;
    cmoe_layer_options_default(&lo, sizeof lo);
    lo.route = &r;
    lo.chunk = INT64_MAX;
    cmoe_layer_weights w;
    cmoe_layer_weights_default(&w, sizeof w);
    w.experts = x;
    cmoe_layer *l = NULL;
    UNIT_OK(cmoe_layer_create(&l, e.ctx, &lo, &w, &err));
    int64_t host = -5, fits = 1, too_many = INT32_MAX, ignored;
    while (too_many - fits > 1) {
        const int64_t rows = (fits + too_many) / 2;
        const cmoe_status status = cmoe_experts_rows_bytes(x, rows, rows, &ignored, NULL, NULL);
        *(status == CMOE_OK ? &fits : &too_many) = rows;
    }
    UNIT_FAILS(cmoe_layer_bytes(l, too_many, &host, NULL, &err), CMOE_ERR_SHAPE,
               "experts_rows: its scratch memory would exceed 2^63 - 1 bytes");
    UNIT_FAILS(cmoe_layer_bytes(l, fits, &host, NULL, &err), CMOE_ERR_SHAPE, "layer: scratch of ");
    UNIT_FAILS(cmoe_layer_bytes(l, fits / 4 * 3, &host, NULL, &err), CMOE_ERR_SHAPE,
               "layer: its scratch memory would exceed 2^63 - 1 bytes");
    assert_int_equal(host, -5);
    cmoe_layer_free(l);
    cmoe_experts_free(x);
    unit_close(&e);
}

/* Two ranks, of which this is the second: no transport can do that yet, but create looks at it. */
static void other_ranks(void **state)
{
    static const cmoei_transport silent = {.name = "silent"};
    (void)state;
    made g;
    made_open(&g);
    cmoe_comm comm = {.ctx = g.e.ctx, .transport = &silent, .rank = 1, .size = 2};
    g.o.comm = &comm;
    UNIT_FAILS(made_call(&g, g.e.ctx, &g.w, &err), CMOE_ERR_SHAPE,
               "layer: experts [0, 4) are given, want [2, 4) on rank 1 of 2 (router: 4 + 0 "
               "appended)");
    g.route.shared = 1;
    UNIT_FAILS(made_call(&g, g.e.ctx, &g.w, &err), CMOE_ERR_UNSUPPORTED,
               "layer: route.shared = 1 on 2 ranks, want shared experts as `shared`");
    g.route.shared = 0;
    cmoe_experts *own = experts_make(g.e.ctx, 2, H, 2, 0);
    g.w.experts = own;
    UNIT_OK(made_call(&g, g.e.ctx, &g.w, &err));
    cmoe_experts_free(own);
    made_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_options), cmocka_unit_test(bad_experts),
        cmocka_unit_test(bad_weights), cmocka_unit_test(bad_forward),
        cmocka_unit_test(bad_routing), cmocka_unit_test(bad_input_ids),
        cmocka_unit_test(bad_records), cmocka_unit_test(overlaps),
        cmocka_unit_test(bad_sizes),   cmocka_unit_test(scratch_beyond_int64),
        cmocka_unit_test(other_ranks),
    };
    return UNIT_RUN("unit_layer_errors", tests);
}
