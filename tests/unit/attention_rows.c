/* SPDX-License-Identifier: MIT
 *
 * attention_rows.c - attention of whole sequences through the public API: the same bits on every
 * instruction set, at any number of threads and wherever a sequence is packed; close to what
 * cmoe_attention gives; tokens that see nothing; units; every error text.
 */
#include <math.h>

#include "isa.h"

#include "core/core.h"
#include "sights.h"

enum { D = 12, HEADS = 6, KV = 2 };

/* A batch and all that is made of it. */
typedef struct net {
    int64_t tokens;
    int32_t *see;
    float *q, *k, *v, *dout, *sinks; /* sinks NULL: none */
    float *out, *lse, *dq, *dk, *dv, *dsinks;
} net;

static float *numbers(int64_t n, uint64_t seed)
{
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
    return x;
}

static net net_open(int64_t tokens, sight_kind kind, int64_t size, bool sinks)
{
    net n = {.tokens = tokens};
    n.see = malloc((size_t)(tokens + 1) * 16);
    sights(n.see, kind, tokens, size, 7);
    n.q = numbers(tokens * HEADS * D, 1);
    n.k = numbers(tokens * KV * D, 2);
    n.v = numbers(tokens * KV * D, 3);
    n.dout = numbers(tokens * HEADS * D, 4);
    n.sinks = sinks ? numbers(HEADS, 5) : NULL;
    n.out = numbers(tokens * HEADS * D, 6);
    n.lse = numbers(tokens * HEADS, 6);
    n.dq = numbers(tokens * HEADS * D, 6);
    n.dk = numbers(tokens * KV * D, 6);
    n.dv = numbers(tokens * KV * D, 6);
    n.dsinks = numbers(HEADS, 6);
    return n;
}

static void net_close(net *n)
{
    float *all[] = {n->q,   n->k,  n->v,  n->dout, n->sinks, n->out,
                    n->lse, n->dq, n->dk, n->dv,   n->dsinks};
    for (int64_t i = 0; i < CMOEI_COUNT(all); i++)
        free(all[i]);
    free(n->see);
}

static cmoe_view queries(const net *n, const float *x)
{
    return cmoe_view_2d(x, CMOE_F32, n->tokens, HEADS * D);
}
static cmoe_view keys(const net *n, const float *x)
{
    return cmoe_view_2d(x, CMOE_F32, n->tokens, KV * D);
}
static cmoe_view_mut queries_mut(const net *n, float *x)
{
    return cmoe_view_mut_2d(x, CMOE_F32, n->tokens, HEADS * D);
}
static cmoe_view_mut keys_mut(const net *n, float *x)
{
    return cmoe_view_mut_2d(x, CMOE_F32, n->tokens, KV * D);
}

static cmoe_attention_rows_options options(void)
{
    cmoe_attention_rows_options o;
    cmoe_attention_rows_options_default(&o, sizeof o);
    o.heads = HEADS;
    o.kv_heads = KV;
    return o;
}

static void run_units(unit_env *e, net *n, const cmoe_units *units)
{
    const cmoe_attention_rows_options o = options();
    const cmoe_view see = cmoe_view_2d(n->see, CMOE_I32, n->tokens, 4);
    const cmoe_view sinks = n->sinks ? cmoe_view_1d(n->sinks, CMOE_F32, HEADS) : cmoe_view_none();
    int64_t bytes = 0, device = 1;
    UNIT_OK(cmoe_attention_rows_bytes(e->ctx, &o, n->tokens, D, &bytes, &device, &err));
    assert_int_equal(device, 0);
    cmoe_arena arena = unit_arena(bytes);
    UNIT_OK(cmoe_attention_rows(e->stream, &o, queries(n, n->q), keys(n, n->k), keys(n, n->v), see,
                                sinks, queries_mut(n, n->out),
                                cmoe_view_mut_2d(n->lse, CMOE_F32, n->tokens, HEADS), &arena,
                                &err));
    UNIT_OK(cmoe_attention_rows_backward(
        e->stream, &o, queries(n, n->q), keys(n, n->k), keys(n, n->v), see, sinks,
        queries(n, n->out), cmoe_view_2d(n->lse, CMOE_F32, n->tokens, HEADS), queries(n, n->dout),
        units, queries_mut(n, n->dq), keys_mut(n, n->dk), keys_mut(n, n->dv),
        n->sinks ? cmoe_view_mut_1d(n->dsinks, CMOE_F32, HEADS) : cmoe_view_mut_none(), &arena,
        &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
}
static void run(unit_env *e, net *n)
{
    run_units(e, n, NULL);
}

/* ---- the same bits --------------------------------------------------------------------------- */

/* Tokens [at, at + count) of a are those from `to` on of b. */
static void same_tokens(const net *a, int64_t at, const net *b, int64_t to, int64_t count)
{
    const float *x[] = {a->out, a->dq, a->dk, a->dv, a->lse};
    const float *y[] = {b->out, b->dq, b->dk, b->dv, b->lse};
    const int64_t cols[] = {HEADS * D, HEADS * D, KV * D, KV * D, HEADS};
    for (int i = 0; i < 5; i++)
        assert_memory_equal(x[i] + at * cols[i], y[i] + to * cols[i],
                            (size_t)(count * cols[i]) * sizeof **x);
}

static void same_everywhere(sight_kind kind, int64_t tokens, int64_t size, bool sinks)
{
    net want = net_open(tokens, kind, size, sinks);
    unit_env one = unit_open_isa(1, "ref");
    run(&one, &want);
    unit_close(&one);
    ISA_EACH(isa)
    {
        for (int32_t threads = 1; threads <= 3; threads++) {
            net got = net_open(tokens, kind, size, sinks);
            unit_env e = unit_open_isa(threads, isa);
            run(&e, &got);
            same_tokens(&got, 0, &want, 0, tokens);
            assert_memory_equal(got.dsinks, want.dsinks, HEADS * sizeof *got.dsinks);
            unit_close(&e);
            net_close(&got);
        }
    }
    net_close(&want);
}

static void every_isa_and_thread(void **state)
{
    (void)state;
    same_everywhere(SIGHT_CAUSAL, 300, 70, true);
    same_everywhere(SIGHT_WINDOW, 200, 30, false);
    same_everywhere(SIGHT_DIFFUSION, 256, 8, true);
    same_everywhere(SIGHT_RANDOM, 120, 0, true);
    same_everywhere(SIGHT_NOTHING, 90, 0, true);
}

/* `from` holds the sequence alone; `to` holds it from token `at` on, among others. */
static void copy_in(const net *from, net *to, int64_t at)
{
    const int64_t n = from->tokens;
    memcpy(to->q + at * HEADS * D, from->q, (size_t)(n * HEADS * D) * 4);
    memcpy(to->dout + at * HEADS * D, from->dout, (size_t)(n * HEADS * D) * 4);
    memcpy(to->k + at * KV * D, from->k, (size_t)(n * KV * D) * 4);
    memcpy(to->v + at * KV * D, from->v, (size_t)(n * KV * D) * 4);
    for (int64_t i = 0; i < 4 * n; i++)
        to->see[4 * at + i] = from->see[i] + (int32_t)at;
}

static void any_place(void **state)
{
    (void)state;
    const sight_kind kinds[] = {SIGHT_CAUSAL, SIGHT_WINDOW, SIGHT_DIFFUSION, SIGHT_RANDOM};
    unit_env e = unit_open(2);
    for (int64_t kind = 0; kind < CMOEI_COUNT(kinds); kind++) {
        net alone = net_open(110, kinds[kind], 16, false);
        run(&e, &alone);
        for (int64_t at = 0; at < 80; at += 13) {
            net packed = net_open(190, SIGHT_CAUSAL, 1, false); /* the others see themselves */
            copy_in(&alone, &packed, at);
            for (int64_t t = 0; t < 190; t++) { /* some of them one another */
                if (t > at + 110) packed.see[4 * t] = (int32_t)at + 110;
            }
            run(&e, &packed);
            same_tokens(&alone, 0, &packed, at, 110);
            net_close(&packed);
        }
        net_close(&alone);
    }
    unit_close(&e);
}

/* Two calls that hold one half of the units each, added, are one call. */
static void units_of_a_step(void **state)
{
    (void)state;
    const int64_t first[] = {0, 20, 20, 47, 64}, low[] = {0, 20, 20}, high[] = {0, 27, 44};
    const cmoe_units all = {4, first}, a = {2, low}, b = {2, high};
    unit_env e = unit_open(1);
    net whole = net_open(64, SIGHT_WINDOW, 1, true), one = net_open(20, SIGHT_WINDOW, 1, true);
    net two = net_open(44, SIGHT_WINDOW, 1, true);
    for (int64_t t = 0; t < 64; t++) {
        whole.see[4 * t] = whole.see[4 * t + 1] = 0; /* tokens see themselves */
        if (t < 20) one.see[4 * t + 1] = 0;
        if (t < 44) two.see[4 * t + 1] = 0;
    }
    const int64_t q = 20 * HEADS * D, k = 20 * KV * D;
    memcpy(two.q, whole.q + q, (size_t)(44 * HEADS * D) * 4);
    memcpy(two.dout, whole.dout + q, (size_t)(44 * HEADS * D) * 4);
    memcpy(two.k, whole.k + k, (size_t)(44 * KV * D) * 4);
    memcpy(two.v, whole.v + k, (size_t)(44 * KV * D) * 4);
    run_units(&e, &whole, &all);
    run_units(&e, &one, &a);
    run_units(&e, &two, &b);
    for (int h = 0; h < HEADS; h++) {
        const float sum = one.dsinks[h] + two.dsinks[h];
        assert_memory_equal(&sum, &whole.dsinks[h], sizeof sum);
    }
    net_close(&whole);
    net_close(&one);
    net_close(&two);
    unit_close(&e);
}

/* Rows a few columns apart, at an odd address. */
static void any_address(void **state)
{
    (void)state;
    enum { T = 70, GAP = 3 };
    unit_env e = unit_open(1);
    net n = net_open(T, SIGHT_CAUSAL, 40, false), want = net_open(T, SIGHT_CAUSAL, 40, false);
    run(&e, &want);
    char *memory[8]; /* q, k, v, dout, dq, dk, dv, out */
    const int64_t cols[8] = {HEADS * D, KV * D, KV * D, HEADS * D,
                             HEADS * D, KV * D, KV * D, HEADS * D};
    const float *in[4] = {n.q, n.k, n.v, n.dout};
    cmoe_view_mut x[8];
    for (int i = 0; i < 8; i++) {
        memory[i] = calloc(T * (size_t)(cols[i] + GAP) + 1, 4);
        x[i] = cmoe_view_mut_2d(memory[i] + 1, CMOE_F32, T, cols[i]);
        x[i].strides[0] = cols[i] + GAP;
        for (int64_t t = 0; i < 4 && t < T; t++)
            memcpy(memory[i] + 1 + t * (cols[i] + GAP) * 4, in[i] + t * cols[i],
                   (size_t)cols[i] * 4);
    }
    const cmoe_attention_rows_options o = options();
    const cmoe_view see = cmoe_view_2d(n.see, CMOE_I32, T, 4);
    int64_t bytes = 0;
    UNIT_OK(cmoe_attention_rows_bytes(e.ctx, &o, T, D, &bytes, NULL, &err));
    cmoe_arena arena = unit_arena(bytes);
    UNIT_OK(cmoe_attention_rows(e.stream, &o, cmoe_view_of(x[0]), cmoe_view_of(x[1]),
                                cmoe_view_of(x[2]), see, cmoe_view_none(), x[7],
                                cmoe_view_mut_2d(n.lse, CMOE_F32, T, HEADS), &arena, &err));
    UNIT_OK(cmoe_attention_rows_backward(
        e.stream, &o, cmoe_view_of(x[0]), cmoe_view_of(x[1]), cmoe_view_of(x[2]), see,
        cmoe_view_none(), cmoe_view_of(x[7]), cmoe_view_2d(n.lse, CMOE_F32, T, HEADS),
        cmoe_view_of(x[3]), NULL, x[4], x[5], x[6], cmoe_view_mut_none(), &arena, &err));
    const float *wants[8] = {NULL, NULL, NULL, NULL, want.dq, want.dk, want.dv, want.out};
    for (int i = 4; i < 8; i++) {
        for (int64_t t = 0; t < T; t++)
            assert_memory_equal(memory[i] + 1 + t * (cols[i] + GAP) * 4, wants[i] + t * cols[i],
                                (size_t)cols[i] * 4);
    }
    for (int i = 0; i < 8; i++)
        free(memory[i]);
    free(arena.base);
    net_close(&n);
    net_close(&want);
    unit_close(&e);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Both are within a bound of the truth (tests/kernels): 12-dim scores of normal numbers, at most 100
 * keys, values below 5: far inside of 1e-4. */
static void like_paged(void **state)
{
    (void)state;
    enum { T = 150, ROOM = 1 << 20 };
    unit_env e = unit_open(1);
    net n = net_open(T, SIGHT_CAUSAL, 100, true);
    run(&e, &n);
    cmoe_kv kv = {.size = sizeof kv,
                  .heads = KV,
                  .key_dim = D,
                  .value_dim = D,
                  .format = CMOE_F32,
                  .base = aligned_alloc(64, 4 * CMOE_KV_PAGE * KV * 2 * D * 4),
                  .pages = 4};
    const int64_t first[] = {0, 100, T}, start[] = {0, 0};
    const int32_t pages[] = {0, 1, 2, 3};
    const cmoe_batch batch = {.size = sizeof batch,
                              .sequences = 2,
                              .first = first,
                              .start = start,
                              .pages = pages,
                              .page_columns = 2};
    cmoe_attention_options o;
    cmoe_attention_options_default(&o, sizeof o);
    o.heads = HEADS;
    cmoe_arena arena = unit_arena(ROOM);
    float *out = numbers(T * HEADS * D, 1);
    UNIT_OK(cmoe_kv_write(e.stream, &kv, &batch, keys(&n, n.k), keys(&n, n.v), &err));
    UNIT_OK(cmoe_attention(e.stream, &o, queries(&n, n.q), &kv, &batch,
                           cmoe_view_1d(n.sinks, CMOE_F32, HEADS), queries_mut(&n, out), &arena,
                           &err));
    for (int64_t i = 0; i < T * HEADS * D; i++)
        assert_true(fabsf(out[i] - n.out[i]) < 1e-4f);
    free(kv.base);
    free(arena.base);
    free(out);
    net_close(&n);
    unit_close(&e);
}

static void all_zero(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        assert_true(x[i] == 0);
}

static void nothing_seen(void **state)
{
    (void)state;
    enum { T = 40 };
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(1, isa);
        for (int sinks = 0; sinks < 2; sinks++) {
            net n = net_open(T, SIGHT_NOTHING, 1, sinks);
            for (int64_t i = 0; i < 4 * T; i++) /* empty ranges, anywhere and in any order */
                n.see[i] = (int32_t)(i * 7 / 2 % 5 * 8 * (i % 4 < 2 ? 1 : 0));
            for (int64_t t = 0; t < T; t++) {
                n.see[4 * t + 1] = n.see[4 * t];
                n.see[4 * t + 3] = n.see[4 * t + 2];
            }
            run(&e, &n);
            all_zero(n.out, T * HEADS * D);
            all_zero(n.dq, T * HEADS * D);
            all_zero(n.dk, T * KV * D);
            all_zero(n.dv, T * KV * D);
            if (sinks) all_zero(n.dsinks, HEADS);
            for (int64_t i = 0; i < T * HEADS; i++)
                assert_true(n.lse[i] == (sinks ? n.sinks[i % HEADS] : -INFINITY));
            net_close(&n);
        }
        unit_close(&e);
    }
}

static void one_key(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    net n = net_open(5, SIGHT_CAUSAL, 1, false);
    run(&e, &n); /* everyone sees itself: out is v, and nothing moves a softmax of one */
    for (int64_t t = 0; t < 5; t++) {
        for (int64_t i = 0; i < HEADS * D; i++)
            assert_true(n.out[t * HEADS * D + i] ==
                        n.v[t * KV * D + i / D / (HEADS / KV) * D + i % D]);
    }
    for (int64_t i = 0; i < 5 * HEADS * D; i++)
        assert_true(fabsf(n.dq[i]) < 1e-4f);
    net_close(&n);
    unit_close(&e);
}

static void no_tokens(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net n = net_open(0, SIGHT_CAUSAL, 1, true);
    run(&e, &n);
    all_zero(n.dsinks, HEADS);
    net_close(&n);
    unit_close(&e);
}

/* ---- errors ---------------------------------------------------------------------------------- */

enum { T = 9, ROOM = 1 << 17 };

/* A call that works, until a test spoils one thing of it. */
typedef struct call {
    unit_env env;
    cmoe_attention_rows_options o;
    net n;
    cmoe_view q, k, v, see, sinks, out_in, lse_in, dout;
    cmoe_view_mut out, lse, dq, dk, dv, dsinks;
    cmoe_units units;
    int64_t first[3];
    cmoe_arena arena;
} call;

static void call_open(call *c)
{
    *c = (call){.env = unit_open(1), .o = options(), .first = {0, 4, T}};
    c->n = net_open(T, SIGHT_CAUSAL, 4, true);
    c->q = queries(&c->n, c->n.q);
    c->k = keys(&c->n, c->n.k);
    c->v = keys(&c->n, c->n.v);
    c->see = cmoe_view_2d(c->n.see, CMOE_I32, T, 4);
    c->sinks = cmoe_view_1d(c->n.sinks, CMOE_F32, HEADS);
    c->out = queries_mut(&c->n, c->n.out);
    c->lse = cmoe_view_mut_2d(c->n.lse, CMOE_F32, T, HEADS);
    c->out_in = cmoe_view_of(c->out);
    c->lse_in = cmoe_view_of(c->lse);
    c->dout = queries(&c->n, c->n.dout);
    c->dq = queries_mut(&c->n, c->n.dq);
    c->dk = keys_mut(&c->n, c->n.dk);
    c->dv = keys_mut(&c->n, c->n.dv);
    c->dsinks = cmoe_view_mut_1d(c->n.dsinks, CMOE_F32, HEADS);
    c->units = (cmoe_units){2, c->first};
    c->arena = unit_arena(ROOM);
}

static cmoe_status forward(call *c, cmoe_error *err)
{
    return cmoe_attention_rows(c->env.stream, &c->o, c->q, c->k, c->v, c->see, c->sinks, c->out,
                               c->lse, &c->arena, err);
}
static cmoe_status backward(call *c, cmoe_error *err)
{
    return cmoe_attention_rows_backward(c->env.stream, &c->o, c->q, c->k, c->v, c->see, c->sinks,
                                        c->out_in, c->lse_in, c->dout, &c->units, c->dq, c->dk,
                                        c->dv, c->dsinks, &c->arena, err);
}

/* Outputs are as net_open left them. */
static void call_close(call *c)
{
    net fresh = net_open(T, SIGHT_CAUSAL, 4, true);
    same_tokens(&c->n, 0, &fresh, 0, T);
    assert_memory_equal(c->n.dsinks, fresh.dsinks, HEADS * sizeof *fresh.dsinks);
    assert_int_equal(c->arena.used, 0);
    net_close(&fresh);
    net_close(&c->n);
    free(c->arena.base);
    unit_close(&c->env);
}

enum { FORWARD = 1, BACKWARD = 2, BOTH = 3 };
#define SPOILT(which, status, text, ...)                                    \
    do {                                                                    \
        call c;                                                             \
        call_open(&c);                                                      \
        __VA_ARGS__;                                                        \
        if ((which)&FORWARD) UNIT_FAILS(forward(&c, &err), status, text);   \
        if ((which)&BACKWARD) UNIT_FAILS(backward(&c, &err), status, text); \
        call_close(&c);                                                     \
    } while (0)

static void of_options(void **state)
{
    (void)state;
    SPOILT(BOTH, CMOE_ERR_RANGE, "kv_heads = 0, want >= 1", c.o.kv_heads = 0);
    SPOILT(BOTH, CMOE_ERR_RANGE, "heads = 6, want a multiple of 4 (kv_heads)", c.o.kv_heads = 4);
    SPOILT(BOTH, CMOE_ERR_RANGE, "heads = 0, want a multiple of 2", c.o.heads = 0);
    SPOILT(BOTH, CMOE_ERR_RANGE, "scale = nan, want a finite number", c.o.scale = NAN);
    SPOILT(BOTH, CMOE_ERR_RANGE, "reserved = 3, want 0", c.o.reserved = 3);
    SPOILT(BOTH, CMOE_ERR_ARG, "cmoe_attention_rows_options", c.o.size = 3);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "q: 72 columns, want a multiple of 10 (heads)",
           (c.o.heads = 10, c.o.kv_heads = 1));
    call c;
    call_open(&c);
    int64_t host = 17;
    UNIT_FAILS(cmoe_attention_rows_bytes(NULL, &c.o, 1, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "ctx is NULL");
    UNIT_FAILS(cmoe_attention_rows_bytes(c.env.ctx, NULL, 1, 1, &host, NULL, &err), CMOE_ERR_ARG,
               "options is NULL");
    UNIT_FAILS(cmoe_attention_rows_bytes(c.env.ctx, &c.o, -1, 1, &host, NULL, &err), CMOE_ERR_RANGE,
               "tokens = -1, want 0 <= tokens");
    UNIT_FAILS(cmoe_attention_rows_bytes(c.env.ctx, &c.o, 1, 0, &host, NULL, &err), CMOE_ERR_RANGE,
               "head_dim = 0, want >= 1");
    UNIT_FAILS(cmoe_attention_rows_bytes(c.env.ctx, &c.o, 1, INT64_MAX, &host, NULL, &err),
               CMOE_ERR_SHAPE, "attention_rows: its scratch memory would exceed");
    assert_int_equal(host, 17);
    call_close(&c);
}

static void of_see(void **state)
{
    (void)state;
    SPOILT(BOTH, CMOE_ERR_RANGE, "see[3, 1] = 10, want 0 <= it <= 9", c.n.see[13] = 10);
    SPOILT(BOTH, CMOE_ERR_RANGE, "see[5, 0] = -1, want 0 <= it <= 9", c.n.see[20] = -1);
    SPOILT(BOTH, CMOE_ERR_RANGE, "see[5, 1] = 3, want 4 <= it", c.n.see[21] = 3);
    SPOILT(BOTH, CMOE_ERR_RANGE, "see[8, 3] = 5, want 6 <= it", (c.n.see[34] = 6, c.n.see[35] = 5));
    SPOILT(BOTH, CMOE_ERR_RANGE, "see[2, 2] = 1, want at least 3, the end of the first range",
           (c.n.see[10] = 1, c.n.see[11] = 5));
    SPOILT(BOTH, CMOE_ERR_DTYPE, "see", c.see.dtype = CMOE_I64);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "see", c.see.dims[0] = T - 1);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "see: strides[1] = 2, want 1", c.see.strides[1] = 2);
}

static void of_views(void **state)
{
    (void)state;
    SPOILT(BOTH, CMOE_ERR_DTYPE, "q", c.q.dtype = CMOE_BF16);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "q", c.q.rank = 1);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "k", c.k.dims[1] = KV * D - 1);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "v: strides[1] = 0, want 1", c.v.strides[1] = 0);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "sinks", c.sinks.dims[0] = KV);
    SPOILT(FORWARD, CMOE_ERR_SHAPE, "out", c.out.dims[0] = T - 1);
    SPOILT(FORWARD, CMOE_ERR_DTYPE, "lse", c.lse.dtype = CMOE_F64);
    SPOILT(BACKWARD, CMOE_ERR_SHAPE, "out", c.out_in.dims[0] = T - 1);
    SPOILT(BACKWARD, CMOE_ERR_SHAPE, "lse", c.lse_in.dims[1] = KV);
    SPOILT(BACKWARD, CMOE_ERR_DTYPE, "dout", c.dout.dtype = CMOE_F16);
    SPOILT(BACKWARD, CMOE_ERR_SHAPE, "dq", c.dq.dims[0] = T + 1);
    SPOILT(BACKWARD, CMOE_ERR_SHAPE, "dk", c.dk.dims[1] = 1);
    SPOILT(BACKWARD, CMOE_ERR_DTYPE, "dv", c.dv.dtype = CMOE_BF16);
    SPOILT(BACKWARD, CMOE_ERR_SHAPE, "dsinks", c.dsinks.dims[0] = 1);
    SPOILT(BACKWARD, CMOE_ERR_ARG, "dsinks is given without sinks", c.sinks = cmoe_view_none());
    SPOILT(BACKWARD, CMOE_ERR_RANGE, "count = 3, want a power of two", c.units.count = 3);
    SPOILT(BACKWARD, CMOE_ERR_RANGE, "first[2] = 8, want 9 (tokens)", c.first[2] = 8);
}

static void of_memory(void **state)
{
    (void)state;
    SPOILT(FORWARD, CMOE_ERR_ARG, "q", c.out.data = c.n.q);
    SPOILT(FORWARD, CMOE_ERR_ARG, "out", c.lse.data = c.n.out);
    SPOILT(BACKWARD, CMOE_ERR_ARG, "dout", c.dq.data = c.n.dout);
    SPOILT(BACKWARD, CMOE_ERR_ARG, "dk", c.dv.data = c.n.dk);
    SPOILT(BOTH, CMOE_ERR_ARG, "v", c.v.data = c.arena.base);
    SPOILT(BOTH, CMOE_ERR_MEMORY, "attention_rows", c.arena.bytes = 100);
    call c;
    call_open(&c);
    cmoe_stream *stream = c.env.stream;
    c.env.stream = NULL;
    UNIT_FAILS(forward(&c, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(backward(&c, &err), CMOE_ERR_ARG, "stream");
    c.env.stream = stream;
    call_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_isa_and_thread),
        cmocka_unit_test(any_place),
        cmocka_unit_test(units_of_a_step),
        cmocka_unit_test(any_address),
        cmocka_unit_test(like_paged),
        cmocka_unit_test(nothing_seen),
        cmocka_unit_test(one_key),
        cmocka_unit_test(no_tokens),
        cmocka_unit_test(of_options),
        cmocka_unit_test(of_see),
        cmocka_unit_test(of_views),
        cmocka_unit_test(of_memory),
    };
    return UNIT_RUN("unit_attention_rows", tests);
}
