/* SPDX-License-Identifier: MIT
 *
 * logits.c - cmoe_route_logits against double: any format of hidden states and gate, bias, low-rank
 * delta, odd sizes, every instruction set and 1 to 3 threads; every error text.
 */
#include <float.h>

#include "isa.h"
#include "mlp.h"

typedef struct router {
    mlp m;
    int64_t T, H, E, R;
    int32_t x_dtype, gate_dtype;
    bool bias, lora;
    float scale;
    double *x, *gate, *b, *a, *up; /* [T, H] [E, H] [E] [R, H] [E, R] */
} router;

static router router_make(uint64_t seed, int64_t T, int64_t H, int64_t E, int64_t R,
                          int32_t x_dtype, int32_t gate_dtype, bool bias)
{
    router r = {.m = {.seed = seed}, .T = T, .H = H, .E = E, .R = R};
    r.x_dtype = x_dtype;
    r.gate_dtype = gate_dtype;
    r.bias = bias;
    r.lora = R > 0;
    r.scale = 0.75f;
    r.m.pad = (int32_t)(seed % 3);
    r.m.odd = (int32_t)(seed % 2);
    r.x = mlp_normals(&r.m, T * H, 1, x_dtype);
    r.gate = mlp_normals(&r.m, E * H, 0.3, gate_dtype);
    r.b = mlp_normals(&r.m, E, 1, CMOE_F32);
    r.a = mlp_normals(&r.m, R * H, 0.3, gate_dtype);
    r.up = mlp_normals(&r.m, E * R, 0.5, gate_dtype);
    return r;
}

/* logits [T, E] float32 */
static void router_run(router *r, const unit_env *e, float *out)
{
    const int blocks = r->m.blocks;
    const cmoe_view none = cmoe_view_none();
    int64_t need = -1, device = -1;
    UNIT_OK(cmoe_route_logits_bytes(e->ctx, r->T, r->H, r->E, r->lora ? r->R : 0, &need, &device,
                                    &err));
    assert_int_equal(device, 0);
    cmoe_arena arena = unit_arena(need);
    const cmoe_view bias =
        cmoe_view_1d(mlp_lay_2d(&r->m, r->b, CMOE_F32, 1, r->E).data, CMOE_F32, r->E);
    UNIT_OK(cmoe_route_logits(e->stream, mlp_lay_2d(&r->m, r->x, r->x_dtype, r->T, r->H),
                              mlp_lay_2d(&r->m, r->gate, r->gate_dtype, r->E, r->H),
                              r->bias ? bias : none,
                              r->lora ? mlp_lay_2d(&r->m, r->a, r->gate_dtype, r->R, r->H) : none,
                              r->lora ? mlp_lay_2d(&r->m, r->up, r->gate_dtype, r->E, r->R) : none,
                              r->scale, cmoe_view_mut_2d(out, CMOE_F32, r->T, r->E), &arena, &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
    while (r->m.blocks > blocks)
        free(r->m.block[--r->m.blocks]);
}

/* The formula, and how far float32 may be off: 2^-23 a term and its magnitude in each of the three
 * products, and a few roundings of the sum. */
static double want_logit(const router *r, int64_t t, int64_t e, double *bound)
{
    double sum = 0, magnitude = 0;
    for (int64_t h = 0; h < r->H; h++) {
        const double p = (float)r->x[t * r->H + h] * (double)(float)r->gate[e * r->H + h];
        sum += p;
        magnitude += fabs(p);
    }
    *bound = (double)r->H * FLT_EPSILON * magnitude;
    if (r->bias) sum += r->b[e];
    double delta = 0;
    for (int64_t i = 0; r->lora && i < r->R; i++) {
        double low = 0, low_magnitude = 0;
        for (int64_t h = 0; h < r->H; h++) {
            const double p = (float)r->x[t * r->H + h] * (double)(float)r->a[i * r->H + h];
            low += p;
            low_magnitude += fabs(p);
        }
        const double b = fabs((float)r->up[e * r->R + i]) * (double)r->scale;
        delta += low * (float)r->up[e * r->R + i];
        *bound += b * FLT_EPSILON * ((double)r->H * low_magnitude + (double)r->R * fabs(low));
    }
    sum += (double)r->scale * delta;
    *bound += 4 * FLT_EPSILON * (fabs(sum) + magnitude + fabs(delta)) + FLT_MIN;
    return sum;
}

static int64_t wrong(const router *r, const float *got)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < r->T * r->E; i++) {
        double bound;
        const double want = want_logit(r, i / r->E, i % r->E, &bound);
        bad += !(fabs(got[i] - want) <= bound);
    }
    return bad;
}

static void against_double(void **state)
{
    static const int32_t dtypes[] = {CMOE_F32, CMOE_BF16, CMOE_F16, CMOE_F64};
    static const int64_t sizes[][4] = {{1, 64, 8, 0}, {3, 33, 17, 2},  {200, 20, 5, 3},
                                       {7, 1, 1, 1},  {2, 100, 64, 8}, {0, 8, 4, 2},
                                       {4, 0, 3, 0}};
    (void)state;
    ISA_EACH(isa)
    {
        for (int32_t threads = 1; threads < 4; threads++) {
            unit_env e = unit_open_isa(threads, isa);
            for (int i = 0; i < 7 * 8; i++) {
                const int64_t *n = sizes[i / 8];
                router r = router_make((uint64_t)i, n[0], n[1], n[2], n[3], dtypes[i % 4],
                                       dtypes[i / 2 % 4], i % 8 < 4);
                float *got = malloc((size_t)(r.T * r.E + 1) * sizeof *got);
                router_run(&r, &e, got);
                if (wrong(&r, got))
                    fail_msg("%s T=%d H=%d E=%d R=%d x=%s gate=%s: %d logits are wrong", isa,
                             (int)r.T, (int)r.H, (int)r.E, (int)r.R, cmoe_dtype_name(r.x_dtype),
                             cmoe_dtype_name(r.gate_dtype), (int)wrong(&r, got));
                free(got);
                mlp_free(&r.m);
            }
            unit_close(&e);
        }
    }
}

static void the_bound_is_tight(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    router r = router_make(5, 2, 50, 6, 3, CMOE_F32, CMOE_F32, true);
    float got[12];
    router_run(&r, &e, got);
    assert_int_equal(wrong(&r, got), 0);
    double *values[] = {&r.x[3], &r.gate[60], &r.b[2], &r.a[7], &r.up[4]};
    for (int i = 0; i < 5; i++) {
        const double was = *values[i];
        *values[i] += 0.001;
        assert_true(wrong(&r, got) > 0);
        *values[i] = was;
    }
    r.bias = false;
    assert_true(wrong(&r, got) > 0);
    r.bias = true;
    r.lora = false;
    assert_true(wrong(&r, got) > 0);
    r.lora = true;
    r.scale = 0.7501f;
    assert_true(wrong(&r, got) > 0);
    mlp_free(&r.m);
    unit_close(&e);
}

/* A delta of zeros, whatever its scale, and a rank of zero leave the bits of no delta. */
static void zero_delta(void **state)
{
    (void)state;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        router r = router_make(6, 5, 40, 9, 4, CMOE_BF16, CMOE_F32, true);
        float without[45], with[45];
        r.lora = false;
        router_run(&r, &e, without);
        r.lora = true;
        memset(r.up, 0, (size_t)(r.E * r.R) * sizeof *r.up);
        router_run(&r, &e, with);
        assert_memory_equal(with, without, sizeof with);
        r.R = 0;
        router_run(&r, &e, with);
        assert_memory_equal(with, without, sizeof with);
        mlp_free(&r.m);
        unit_close(&e);
    }
}

/* Float32 throughout: a gate in bf16 is that of the same values in float32, and hidden states are
 * not rounded. */
static void formats_do_not_matter(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    router r = router_make(7, 4, 48, 10, 2, CMOE_BF16, CMOE_BF16, false);
    float narrow[40], wide[40];
    router_run(&r, &e, narrow);
    r.x_dtype = r.gate_dtype = CMOE_F32;
    router_run(&r, &e, wide);
    assert_memory_equal(narrow, wide, sizeof narrow);
    mlp_free(&r.m);
    unit_close(&e);
}

/* ---- errors ---------------------------------------------------------------------------------- */

enum { T = 3, H = 5, E = 4, R = 2 };

typedef struct good {
    unit_env e;
    cmoe_stream *s;
    cmoe_view hidden, gate, bias, a, b;
    float scale, x[T * H], w[E * H], small[E * H], y[T * E];
    cmoe_view_mut logits;
    cmoe_arena arena;
    char scratch[1 << 15];
} good;

static void good_open(good *g)
{
    memset(g, 0, sizeof *g);
    g->e = unit_open(1);
    g->s = g->e.stream;
    g->hidden = cmoe_view_2d(g->x, CMOE_F32, T, H);
    g->gate = cmoe_view_2d(g->w, CMOE_F32, E, H);
    g->bias = cmoe_view_1d(g->small, CMOE_F32, E);
    g->a = cmoe_view_2d(g->small, CMOE_F32, R, H);
    g->b = cmoe_view_2d(g->small, CMOE_F32, E, R);
    g->logits = cmoe_view_mut_2d(g->y, CMOE_F32, T, E);
    g->arena = cmoe_arena_make(g->scratch, sizeof g->scratch);
    memset(g->y, 0x5a, sizeof g->y);
}

static cmoe_status good_call(good *g, cmoe_error *err)
{
    const cmoe_status status = cmoe_route_logits(g->s, g->hidden, g->gate, g->bias, g->a, g->b,
                                                 g->scale, g->logits, &g->arena, err);
    for (size_t i = 0; status != CMOE_OK && i < sizeof g->y; i++)
        assert_int_equal(((unsigned char *)g->y)[i], 0x5a);
    assert_int_equal(g->arena.used, 0);
    return status;
}

#define SPOILT(change, status, text)                   \
    do {                                               \
        good g;                                        \
        good_open(&g);                                 \
        UNIT_OK(good_call(&g, &err));                  \
        memset(g.y, 0x5a, sizeof g.y);                 \
        change;                                        \
        UNIT_FAILS(good_call(&g, &err), status, text); \
        unit_close(&g.e);                              \
    } while (0)

/* Dims of a delta that is not given say nothing. */
static void no_delta(void **state)
{
    (void)state;
    good g;
    good_open(&g);
    g.a = cmoe_view_2d(NULL, 0, R, H);
    g.b = cmoe_view_2d(NULL, 0, E, R);
    UNIT_OK(good_call(&g, &err));
    unit_close(&g.e);
}

static void errors(void **state)
{
    (void)state;
    SPOILT(g.s = NULL, CMOE_ERR_ARG, "stream is NULL");
    SPOILT(g.hidden.rank = 1, CMOE_ERR_SHAPE, "hidden: rank 1, want 2 [tokens, hidden]");
    SPOILT(g.hidden.dtype = CMOE_I8, CMOE_ERR_DTYPE, "hidden: dtype i8 (6), want one of");
    SPOILT(g.hidden.data = NULL, CMOE_ERR_ARG, "hidden: data is NULL, want 60 bytes");
    SPOILT(g.gate.dims[1] = 4, CMOE_ERR_SHAPE, "gate: dims[1] = 4, want 5 [experts, hidden = 5]");
    SPOILT(g.gate.rank = 3, CMOE_ERR_SHAPE, "gate: rank 3, want 2 [experts, hidden = 5]");
    SPOILT(g.gate.dtype = CMOE_F8E4M3, CMOE_ERR_DTYPE, "gate: dtype f8e4m3 (4), want one of");
    SPOILT(g.bias.dims[0] = 3, CMOE_ERR_SHAPE, "gate_bias: dims[0] = 3, want 4 [experts = 4]");
    SPOILT(g.bias.rank = 2, CMOE_ERR_SHAPE, "gate_bias: rank 2, want 1 [experts = 4]");
    SPOILT((g.hidden.dims[0] = g.logits.dims[0] = 0, g.arena = cmoe_arena_make(NULL, 0)),
           CMOE_ERR_MEMORY, "arena of 0 bytes is too small");
    SPOILT(g.a = cmoe_view_none(), CMOE_ERR_ARG,
           "lora_b is given without lora_a, want both or neither");
    SPOILT(g.b = cmoe_view_none(), CMOE_ERR_ARG,
           "lora_a is given without lora_b, want both or neither");
    SPOILT(g.a.dims[1] = 6, CMOE_ERR_SHAPE, "lora_a: dims[1] = 6, want 5 [rank, hidden = 5]");
    SPOILT(g.b.dims[1] = 3, CMOE_ERR_SHAPE, "lora_b: dims[1] = 3, want 2 [experts = 4, rank = 2]");
    SPOILT(g.b.dims[0] = 3, CMOE_ERR_SHAPE, "lora_b: dims[0] = 3, want 4");
    SPOILT(g.scale = NAN, CMOE_ERR_RANGE, "lora_scale = nan, want a finite number");
    SPOILT(g.scale = INFINITY, CMOE_ERR_RANGE, "lora_scale = inf, want a finite number");
    SPOILT(g.logits.dims[1] = 3, CMOE_ERR_SHAPE,
           "logits: dims[1] = 3, want 4 [tokens = 3, experts = 4]");
    SPOILT(g.logits.dtype = CMOE_BF16, CMOE_ERR_DTYPE, "logits: dtype bf16 (3), want one of: f32");
    SPOILT(g.logits.strides[0] = 1, CMOE_ERR_SHAPE, "logits: strides are negative or make");
    SPOILT(g.logits.data = NULL, CMOE_ERR_ARG, "logits: data is NULL, want 48 bytes");
    SPOILT(g.hidden.data = g.y, CMOE_ERR_ARG, "logits overlaps hidden in memory");
    SPOILT(g.gate.data = g.y, CMOE_ERR_ARG, "logits overlaps gate in memory");
    SPOILT(g.bias.data = g.y, CMOE_ERR_ARG, "logits overlaps gate_bias in memory");
    SPOILT(g.a.data = g.y, CMOE_ERR_ARG, "logits overlaps lora_a in memory");
    SPOILT(g.b.data = g.y, CMOE_ERR_ARG, "logits overlaps lora_b in memory");
    SPOILT(g.arena.bytes = 10, CMOE_ERR_MEMORY, "route_logits: arena of 10 bytes is too small");
    SPOILT(g.arena.base = NULL, CMOE_ERR_MEMORY, "route_logits: arena of 0 bytes is too small");
    /* More tokens than rows are counted in, all of them the same. */
    SPOILT(
        (g.hidden.dims[0] = (int64_t)1 << 31, g.hidden.strides[0] = 0), CMOE_ERR_SHAPE,
        "route_logits: tokens = 2147483648, hidden = 5, experts = 4, rank = 0, want 0 to 2^31 - 1");
    SPOILT((g.gate.dims[0] = (int64_t)1 << 31, g.gate.strides[0] = 0, g.bias = cmoe_view_none(),
            g.a = g.b = g.bias),
           CMOE_ERR_SHAPE, "experts = 2147483648, rank = 0, want 0 to 2^31 - 1");
    SPOILT((g.a.dims[0] = g.b.dims[1] = (int64_t)1 << 31, g.a.strides[0] = g.b.strides[1] = 0),
           CMOE_ERR_SHAPE, "experts = 4, rank = 2147483648, want 0 to 2^31 - 1");
}

static void bad_sizes(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int64_t host = -5;
    UNIT_FAILS(cmoe_route_logits_bytes(NULL, T, H, E, R, &host, NULL, &err), CMOE_ERR_ARG,
               "route_logits_bytes: ctx is NULL");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, T, H, E, R, NULL, NULL, &err), CMOE_ERR_ARG,
               "route_logits_bytes: host is NULL");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, -1, H, E, R, &host, NULL, &err), CMOE_ERR_SHAPE,
               "route_logits: tokens = -1, hidden = 5, experts = 4, rank = 2, want 0 to 2^31 - 1");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, T, -1, E, R, &host, NULL, &err), CMOE_ERR_SHAPE,
               "hidden = -1");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, T, H, -1, R, &host, NULL, &err), CMOE_ERR_SHAPE,
               "experts = -1");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, T, H, E, -1, &host, NULL, &err), CMOE_ERR_SHAPE,
               "rank = -1");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, 1 << 30, (int64_t)1 << 40, E, 0, &host, NULL, &err),
               CMOE_ERR_SHAPE, "its scratch memory would exceed 2^63 - 1 bytes");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, INT32_MAX, 1, INT32_MAX, 1, &host, NULL, &err),
               CMOE_ERR_SHAPE, "route_logits: its scratch memory would exceed 2^63 - 1 bytes");
    UNIT_FAILS(cmoe_route_logits_bytes(e.ctx, T, (int64_t)1 << 61, E, 0, &host, NULL, &err),
               CMOE_ERR_SHAPE, "w: packed it would exceed 2^63 - 1 bytes");
    assert_int_equal(host, -5);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_double), cmocka_unit_test(the_bound_is_tight),
        cmocka_unit_test(zero_delta),     cmocka_unit_test(formats_do_not_matter),
        cmocka_unit_test(no_delta),       cmocka_unit_test(errors),
        cmocka_unit_test(bad_sizes),
    };
    return UNIT_RUN("unit_logits", tests);
}
