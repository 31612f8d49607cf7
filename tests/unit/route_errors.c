/* SPDX-License-Identifier: MIT
 *
 * route_errors.c - the text of every error of cmoe_route; outputs stay untouched.
 */
#include "route.h"

/* A good call to spoil one thing of; outputs must stay as they were. */
typedef struct good {
    unit_env e;
    cmoe_route_options o;
    cmoe_route_inputs in;
    cmoe_view logits;
    cmoe_view_mut weights, ids;
    cmoe_arena arena;
    float x[2 * 8], w[2 * 4];
    int32_t id[2 * 4];
    char scratch[8192];
} good;

static void good_open(good *g)
{
    memset(g, 0, sizeof *g);
    g->e = unit_open(1);
    g->o = options(3, CMOE_SCORE_SIGMOID);
    g->in = inputs();
    g->logits = cmoe_view_2d(g->x, CMOE_F32, 2, 8);
    g->weights = cmoe_view_mut_2d(g->w, CMOE_F32, 2, 3);
    g->ids = cmoe_view_mut_2d(g->id, CMOE_I32, 2, 3);
    g->arena = cmoe_arena_make(g->scratch, sizeof g->scratch);
    memset(g->w, 0x5a, sizeof g->w);
    memset(g->id, 0x5a, sizeof g->id);
}

static cmoe_status good_call(good *g, cmoe_error *err)
{
    const cmoe_status status =
        cmoe_route(g->e.stream, &g->o, g->logits, &g->in, g->weights, g->ids, &g->arena, err);
    if (status == CMOE_OK) return status;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(((unsigned char *)g->w)[i], 0x5a);
        assert_int_equal(((unsigned char *)g->id)[i], 0x5a);
    }
    assert_int_equal(g->arena.used, 0);
    return status;
}

/* `change` is made to a fresh good call g, which must then fail so. */
#define SPOILT(change, status, text)                   \
    do {                                               \
        good g;                                        \
        good_open(&g);                                 \
        UNIT_OK(good_call(&g, &err));                  \
        memset(g.w, 0x5a, sizeof g.w);                 \
        memset(g.id, 0x5a, sizeof g.id);               \
        change;                                        \
        UNIT_FAILS(good_call(&g, &err), status, text); \
        unit_close(&g.e);                              \
    } while (0)

static void bad_options(void **state)
{
    (void)state;
    SPOILT(g.o.topk = 0, CMOE_ERR_RANGE, "topk = 0, want at least 1");
    SPOILT(g.o.topk = -3, CMOE_ERR_RANGE, "topk = -3, want at least 1");
    SPOILT(g.o.scoring = 5, CMOE_ERR_RANGE,
           "scoring = 5, want 0 to 4 (softmax sigmoid sqrtsoftplus logits sparsemixer)");
    SPOILT(g.o.scoring = CMOE_SCORE_SPARSEMIXER, CMOE_ERR_RANGE,
           "topk = 3, want 2 (scoring sparsemixer)");
    SPOILT(g.o.renormalize = -1, CMOE_ERR_RANGE, "renormalize = -1, want 0 to 1 (none sum)");
    SPOILT(g.o.eps_rule = 3, CMOE_ERR_RANGE, "eps_rule = 3, want 0 to 2 (none add max)");
    SPOILT(g.o.eps = -1, CMOE_ERR_RANGE, "eps = -1, want a finite value >= 0");
    SPOILT(g.o.scale = INFINITY, CMOE_ERR_RANGE, "scale = inf, want a finite value");
    SPOILT(g.o.jitter = -0.5f, CMOE_ERR_RANGE, "jitter = -0.5, want a finite value >= 0");
    SPOILT(g.o.groups = 0, CMOE_ERR_RANGE, "groups = 0, want at least 1");
    SPOILT(g.o.groups = 3, CMOE_ERR_RANGE, "groups = 3, want a divisor of 8 (experts)");
    SPOILT(g.o.groups = 16, CMOE_ERR_RANGE, "groups = 16, want a divisor of 8 (experts)");
    SPOILT((g.o.groups = 4, g.o.topk_groups = 5), CMOE_ERR_RANGE,
           "topk_groups = 5, want 1 to 4 (groups), or 0 for all");
    SPOILT(g.o.topk_groups = -1, CMOE_ERR_RANGE,
           "topk_groups = -1, want 1 to 1 (groups), or 0 for all");
    SPOILT(g.o.group_mask = 2, CMOE_ERR_RANGE, "group_mask = 2, want 0 to 1 (minus_inf zero)");
    SPOILT(g.o.group_score = 2, CMOE_ERR_RANGE, "group_score = 2, want 0 to 1 (top2 max)");
    SPOILT(g.o.groups_biased = 2, CMOE_ERR_RANGE, "groups_biased = 2, want 0 to 1 (plain biased)");
    SPOILT(g.o.validate = 2, CMOE_ERR_RANGE, "validate = 2, want 0 to 1 (no yes)");
    SPOILT(g.o.shared = -1, CMOE_ERR_RANGE, "shared = -1, want at least 0");
    SPOILT(g.o.shared = INT64_MAX, CMOE_ERR_RANGE,
           "experts = 8 and shared = 9223372036854775807, want at most 1073741824 together");
    SPOILT((g.o.shared = 1, g.o.topk = INT64_MAX), CMOE_ERR_RANGE,
           "topk = 9223372036854775807 and shared = 1, want at most 2^63 - 1 together");
    SPOILT(g.o.size = 3, CMOE_ERR_ARG, "cmoe_route_options.size = 3");
    SPOILT(g.in.size = 3, CMOE_ERR_ARG, "cmoe_route_inputs.size = 3");
}

static void bad_views(void **state)
{
    (void)state;
    static const float f[64];
    static const int32_t i[64];
    SPOILT(g.logits.rank = 3, CMOE_ERR_SHAPE, "logits: rank 3, want 2 [tokens, experts]");
    SPOILT(g.logits.dtype = CMOE_I32, CMOE_ERR_DTYPE,
           "logits: dtype i32 (8), want one of: f32 f16 bf16 f64");
    SPOILT(g.logits.data = NULL, CMOE_ERR_ARG, "logits: data is NULL, want 64 bytes");
    SPOILT(g.logits.device = 0, CMOE_ERR_DEVICE, "logits: device 0, want -1");
    SPOILT(g.logits.dims[0] = -2, CMOE_ERR_SHAPE, "logits: dims[0] = -2, want >= 0");
    SPOILT(g.logits.dims[1] = 0, CMOE_ERR_SHAPE,
           "logits: dims[1] = 0, want at least 1 expert [tokens, experts]");
    SPOILT(g.logits.dims[0] = INT64_MAX, CMOE_ERR_SHAPE,
           "logits: dims up to dims[1] = 8 multiply beyond 2^63 - 1");
    SPOILT(g.logits.strides[0] = INT64_MAX, CMOE_ERR_SHAPE,
           "logits: strides reach outside the address space");
    SPOILT(g.logits = cmoe_view_none(), CMOE_ERR_ARG,
           "logits: not given, want [tokens, experts]; only given_ids with given_weights do "
           "without");
    SPOILT(g.weights.dims[1] = 4, CMOE_ERR_SHAPE,
           "weights: dims[1] = 4, want 3 [tokens = 2, topk + shared = 3]");
    SPOILT(g.weights.dtype = CMOE_BF16, CMOE_ERR_DTYPE,
           "weights: dtype bf16 (3), want one of: f32");
    SPOILT(g.weights.strides[0] = 1, CMOE_ERR_SHAPE, "weights: strides are negative or make");
    SPOILT(g.ids.dims[0] = 1, CMOE_ERR_SHAPE,
           "ids: dims[0] = 1, want 2 [tokens = 2, topk + shared = 3]");
    SPOILT(g.ids.dtype = CMOE_I64, CMOE_ERR_DTYPE, "ids: dtype i64 (9), want one of: i32");
    SPOILT(g.ids.data = g.w, CMOE_ERR_ARG, "ids overlaps weights in memory");
    SPOILT(g.weights.data = g.x, CMOE_ERR_ARG, "weights overlaps logits in memory");
    SPOILT(g.in.bias = cmoe_view_1d(g.id, CMOE_F32, 8), CMOE_ERR_ARG,
           "ids overlaps bias in memory");
    SPOILT(g.in.bias = cmoe_view_1d(f, CMOE_F32, 7), CMOE_ERR_SHAPE,
           "bias: dims[0] = 7, want 8 [experts = 8]");
    SPOILT(g.in.per_expert_scale = cmoe_view_1d(f, CMOE_F32, 9), CMOE_ERR_SHAPE,
           "per_expert_scale: dims[0] = 9, want 8 [experts = 8]");
    SPOILT(g.in.hash_table = cmoe_view_2d(i, CMOE_I32, 5, 2), CMOE_ERR_ARG,
           "input_ids: not given, want them beside hash_table");
    SPOILT((g.in.hash_table = cmoe_view_2d(i, CMOE_I32, 5, 2),
            g.in.input_ids = cmoe_view_1d(i, CMOE_I32, 2)),
           CMOE_ERR_SHAPE, "hash_table: dims[1] = 2, want 3 [vocab, topk = 3]");
    SPOILT(g.in.input_ids = cmoe_view_1d(i, CMOE_I32, 3), CMOE_ERR_SHAPE,
           "input_ids: dims[0] = 3, want 2 [tokens = 2]");
    SPOILT(g.in.given_ids = cmoe_view_2d(i, CMOE_I32, 2, 4), CMOE_ERR_SHAPE,
           "given_ids: dims[1] = 4, want 3 [tokens = 2, topk = 3]");
    SPOILT(g.in.given_weights = cmoe_view_2d(f, CMOE_F32, 2, 3), CMOE_ERR_ARG,
           "given_ids: not given, want them beside given_weights");
    SPOILT((g.in.given_weights = cmoe_view_2d(f, CMOE_F32, 1, 3),
            g.in.given_ids = cmoe_view_2d(i, CMOE_I32, 2, 3)),
           CMOE_ERR_SHAPE, "given_weights: dims[0] = 1, want 2 [tokens = 2, topk = 3]");
    SPOILT(g.in.shared_gate = cmoe_view_2d(f, CMOE_F32, 2, 1), CMOE_ERR_ARG,
           "shared_gate: given with shared = 0, want shared >= 1");
    SPOILT((g.o.shared = 3, g.in.shared_gate = cmoe_view_2d(f, CMOE_F32, 2, 2)), CMOE_ERR_SHAPE,
           "shared_gate: dims[1] = 2, want 3 [tokens = 2, shared = 3]");
    SPOILT((g.logits = cmoe_view_none(), g.o.shared = 1,
            g.in.given_weights = cmoe_view_2d(f, CMOE_F32, 2, 3),
            g.in.given_ids = cmoe_view_2d(i, CMOE_I32, 2, 3)),
           CMOE_ERR_ARG, "shared = 1, want 0 without logits");
}

static void bad_values(void **state)
{
    (void)state;
    static const int32_t ids[6] = {0, 1, 2, 3, 8, 5}, below[6] = {0, 1, -2, 3, 7, 5};
    static const int64_t wide[6] = {0, 1, 2, 3, 4, (int64_t)1 << 32};
    static const int32_t tokens[2] = {1, 0}, outside[2] = {1, 2}, negative[2] = {-1, 0};
    static const float scale[8] = {1, 1, 1, NAN, 1, 1, 1, 1}, f[6] = {0, 1, 2, 3, -INFINITY, NAN};
    SPOILT(g.in.given_ids = cmoe_view_2d(ids, CMOE_I32, 2, 3), CMOE_ERR_RANGE,
           "given_ids[1, 1] = 8, want -1 <= id < 8 (experts)");
    SPOILT(g.in.given_ids = cmoe_view_2d(below, CMOE_I32, 2, 3), CMOE_ERR_RANGE,
           "given_ids[0, 2] = -2, want -1 <= id < 8 (experts)");
    SPOILT(g.in.given_ids = cmoe_view_2d(wide, CMOE_I64, 2, 3), CMOE_ERR_RANGE,
           "given_ids[1, 2] = 4294967296, want -1 <= id < 8 (experts)");
    SPOILT((g.in.hash_table = cmoe_view_2d(ids, CMOE_I32, 2, 3),
            g.in.input_ids = cmoe_view_1d(tokens, CMOE_I32, 2)),
           CMOE_ERR_RANGE, "hash_table[1, 1] = 8, want -1 <= id < 8 (experts)");
    SPOILT((g.in.hash_table = cmoe_view_2d(below, CMOE_I32, 2, 3),
            g.in.input_ids = cmoe_view_1d(outside, CMOE_I32, 2)),
           CMOE_ERR_RANGE, "input_ids[1] = 2, want 0 <= id < 2 (rows of hash_table)");
    SPOILT((g.in.hash_table = cmoe_view_2d(below, CMOE_I32, 2, 3),
            g.in.input_ids = cmoe_view_1d(negative, CMOE_I32, 2)),
           CMOE_ERR_RANGE, "input_ids[0] = -1, want 0 <= id < 2 (rows of hash_table)");
    SPOILT(g.in.per_expert_scale = cmoe_view_1d(scale, CMOE_F32, 8), CMOE_ERR_RANGE,
           "per_expert_scale[3] = nan, want a finite value");
    SPOILT((g.logits = cmoe_view_none(), g.in.given_ids = cmoe_view_2d(wide, CMOE_I64, 2, 3),
            g.in.given_weights = cmoe_view_2d(f, CMOE_F32, 2, 3)),
           CMOE_ERR_RANGE, "given_ids[1, 2] = 4294967296, want -1 <= id < 1073741824");
    /* Validation names the first bad slot, by the caller's name for the tensor. */
    static const int32_t fine[6] = {0, 1, 2, 3, -1, 5};
    SPOILT((g.o.validate = 1, g.in.given_ids = cmoe_view_2d(fine, CMOE_I32, 2, 3),
            g.in.given_weights = cmoe_view_2d(f, CMOE_F32, 2, 3)),
           CMOE_ERR_RANGE, "weights[1, 1] = -inf, want a finite value");
    SPOILT((g.o.validate = 1, g.weights.name = "topk_weights",
            g.in.given_ids = cmoe_view_2d(fine, CMOE_I32, 1, 3),
            g.in.given_weights = cmoe_view_2d(f + 3, CMOE_F32, 1, 3), g.logits.dims[0] = 1,
            g.weights.dims[0] = g.ids.dims[0] = 1),
           CMOE_ERR_RANGE, "topk_weights[0, 1] = -inf, want a finite value");
    SPOILT((g.o.validate = 1, g.o.scale = FLT_MAX, g.o.scoring = CMOE_SCORE_SQRTSOFTPLUS,
            g.o.renormalize = CMOE_RENORM_NONE, g.x[0] = 100, g.x[8] = 100),
           CMOE_ERR_RANGE, "weights[0, 0] = inf, want a finite value");
}

static void bad_calls(void **state)
{
    (void)state;
    int64_t host = -5;
    const cmoe_route_options o = options(3, CMOE_SCORE_SIGMOID);
    SPOILT(g.arena.bytes = 100, CMOE_ERR_MEMORY, "route: arena of 100 bytes is too small");
    SPOILT((unit_close(&g.e), g.e = (unit_env){0}), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_route_bytes(&o, -1, 8, &host, NULL, &err), CMOE_ERR_RANGE,
               "tokens = -1, experts = 8, want both >= 0");
    UNIT_FAILS(cmoe_route_bytes(NULL, 1, 8, &host, NULL, &err), CMOE_ERR_RANGE,
               "topk = 0, want at least 1");
    cmoe_route_options huge = options(INT64_MAX / 2, CMOE_SCORE_SIGMOID);
    UNIT_FAILS(cmoe_route_bytes(&huge, 1, 8, &host, NULL, &err), CMOE_ERR_SHAPE,
               "route: its scratch memory would exceed 2^63 - 1 bytes");
    huge = options(1000, CMOE_SCORE_SIGMOID);
    huge.validate = 1;
    UNIT_FAILS(cmoe_route_bytes(&huge, INT64_MAX / 10, 8, &host, NULL, &err), CMOE_ERR_SHAPE,
               "route: its scratch memory would exceed 2^63 - 1 bytes");
    assert_int_equal(host, -5);
    UNIT_OK(cmoe_route_bytes(&o, 1, 8, NULL, NULL, &err));
    assert_int_equal(cmoe_route_bytes(&o, -1, 8, NULL, NULL, NULL), CMOE_ERR_RANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_options),
        cmocka_unit_test(bad_views),
        cmocka_unit_test(bad_values),
        cmocka_unit_test(bad_calls),
    };
    return UNIT_RUN("unit_route_errors", tests);
}
