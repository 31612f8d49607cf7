/* SPDX-License-Identifier: MIT
 *
 * gdn_pack.c - the inputs of a gated delta net's decode step: both layouts against plain loops, a
 * sequence token by token against the convolution of the whole, states that are shared out by
 * index, rows without one, any number of threads, and every error text.
 */
#include <math.h>

#include "isa.h"
#include "unit.h"

#include "core/vmath.h"

/* ---- a call and what it must give ------------------------------------------------------------ */

typedef struct net {
    int64_t hk, dk, hv, dv, width, slack, states;
    int32_t silu, grouped, bias;
    int64_t channels, row;               /* C, width of a row of qkvz */
    float *weight, *bias_values, *state; /* [C, width], [C], [states, C, width - 1 + slack] */
} net;

static float *normals(int64_t n, uint64_t seed)
{
    float *p = malloc((size_t)(n ? n : 1) * sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
    return p;
}

static void net_make(net *n)
{
    n->channels = 2 * n->hk * n->dk + n->hv * n->dv;
    n->row = n->channels + n->hv * n->dv;
    n->weight = normals(n->channels * n->width, 1);
    n->bias_values = normals(n->channels, 2);
    n->state = normals(n->states * n->channels * (n->width - 1 + n->slack), 3);
}

static void net_free(net *n)
{
    free(n->weight), free(n->bias_values), free(n->state);
}

/* Results of B rows, one after the other: q k v z b a. */
typedef struct result {
    float *all, *q, *k, *v, *z, *b, *a;
    size_t bytes;
} result;

static result result_make(const net *n, int64_t rows)
{
    const int64_t q = rows * n->hk * n->dk, v = rows * n->hv * n->dv, g = rows * n->hv;
    result r = {.bytes = (size_t)(2 * q + 2 * v + 2 * g) * sizeof(float)};
    r.all = malloc(r.bytes ? r.bytes : 1);
    memset(r.all, 0x5a, r.bytes);
    r.q = r.all, r.k = r.q + q, r.v = r.k + q, r.z = r.v + v, r.b = r.z + v, r.a = r.b + g;
    return r;
}

static cmoe_view_mut out3(float *p, int64_t rows, int64_t heads, int64_t dim)
{
    return cmoe_view_mut_make(p, CMOE_F32, 3, (const int64_t[]){rows, heads, dim});
}

static cmoe_gdn_pack_out out_of(const net *n, int64_t rows, const result *r)
{
    return (cmoe_gdn_pack_out){.size = sizeof(cmoe_gdn_pack_out),
                               .q = out3(r->q, rows, n->hk, n->dk),
                               .k = out3(r->k, rows, n->hk, n->dk),
                               .v = out3(r->v, rows, n->hv, n->dv),
                               .z = out3(r->z, rows, n->hv, n->dv),
                               .b = cmoe_view_mut_2d(r->b, CMOE_F32, rows, n->hv),
                               .a = cmoe_view_mut_2d(r->a, CMOE_F32, rows, n->hv)};
}

static cmoe_gdn_pack_options options_of(const net *n)
{
    cmoe_gdn_pack_options o;
    cmoe_gdn_pack_options_default(&o, sizeof o);
    assert_true(o.silu == 1 && o.grouped == 0);
    o.key_heads = n->hk, o.key_dim = n->dk, o.value_heads = n->hv, o.value_dim = n->dv;
    o.silu = n->silu, o.grouped = n->grouped;
    return o;
}

static void run(cmoe_stream *s, net *n, const float *qkvz, const float *ba, const int32_t *index,
                int64_t rows, const result *r)
{
    const cmoe_gdn_pack_options o = options_of(n);
    const cmoe_gdn_pack_out out = out_of(n, rows, r);
    const int64_t dims[3] = {n->states, n->channels, n->width - 1 + n->slack};
    UNIT_OK(cmoe_gdn_pack(s, &o, cmoe_view_2d(qkvz, CMOE_F32, rows, n->row),
                          cmoe_view_2d(ba, CMOE_F32, rows, 2 * n->hv),
                          cmoe_view_2d(n->weight, CMOE_F32, n->channels, n->width),
                          n->bias ? cmoe_view_1d(n->bias_values, CMOE_F32, n->channels)
                                  : cmoe_view_none(),
                          cmoe_view_mut_make(n->state, CMOE_F32, 3, dims),
                          cmoe_view_1d(index, CMOE_I32, rows), &out, &err));
}

/* Column of channel c of q | k | v, or of z behind them, in a row of qkvz: written with a list of
 * the pieces in their order, not with formulas of offsets. */
static int64_t column(const net *n, int64_t wanted)
{
    if (!n->grouped) return wanted;
    const int64_t r = n->hv / n->hk, q = n->hk * n->dk;
    int64_t at = 0;
    for (int64_t h = 0; h < n->hk; h++) {
        const int64_t first[4] = {h * n->dk, q + h * n->dk, 2 * q + h * r * n->dv,
                                  n->channels + h * r * n->dv};
        const int64_t size[4] = {n->dk, n->dk, r * n->dv, r * n->dv};
        for (int i = 0; i < 4; at += size[i], i++) {
            if (wanted >= first[i] && wanted < first[i] + size[i]) return at + wanted - first[i];
        }
    }
    fail();
    return -1;
}

static float convolved(const net *n, const float *taps, float x, int64_t c)
{
    float y = n->bias ? n->bias_values[c] : 0;
    for (int64_t i = 0; i + 1 < n->width; i++)
        y = fmaf(taps[i], n->weight[c * n->width + i], y);
    y = fmaf(x, n->weight[c * n->width + n->width - 1], y);
    return n->silu ? cmoei_siluf(y) : y;
}

/* Plain loops over one row; moves the state too. */
static void expect_row(net *n, const float *qkvz, const float *ba, int32_t index, int64_t row,
                       const result *r)
{
    const int64_t q = n->hk * n->dk, v = n->hv * n->dv, taps = n->width - 1 + n->slack;
    for (int64_t c = 0; c < n->channels + v; c++) {
        float *to = c < q             ? r->q + row * q + c
                    : c < 2 * q       ? r->k + row * q + c - q
                    : c < n->channels ? r->v + row * v + c - 2 * q
                                      : r->z + row * v + c - n->channels;
        const float x = qkvz[row * n->row + column(n, c)];
        *to = index < 0 ? 0 : x;
        if (index < 0 || c >= n->channels) continue;
        float *state = n->state + (index * n->channels + c) * taps;
        *to = convolved(n, state, x, c);
        memmove(state, state + 1, (size_t)(n->width - 2) * sizeof *state);
        state[n->width - 2] = x;
    }
    const int64_t share = n->grouped ? n->hv / n->hk : n->hv;
    for (int64_t h = 0; h < n->hv; h++) {
        const float *from = ba + row * 2 * n->hv + h / share * 2 * share + h % share;
        r->b[row * n->hv + h] = index < 0 ? 0 : from[0];
        r->a[row * n->hv + h] = index < 0 ? 0 : from[share];
    }
}

static void check(const char *isa, int32_t threads, net n)
{
    enum { B = 4 };
    const int32_t index[B] = {3, -1, 0, 4};
    unit_env e = unit_open_isa(threads, isa);
    net_make(&n);
    const size_t state_bytes =
        (size_t)(n.states * n.channels * (n.width - 1 + n.slack)) * sizeof(float);
    float *qkvz = normals(B * n.row, 5), *ba = normals(B * 2 * n.hv, 6);
    float *before = malloc(state_bytes), *after = malloc(state_bytes);
    const result got = result_make(&n, B), want = result_make(&n, B), one = result_make(&n, 1);
    memcpy(before, n.state, state_bytes);
    run(e.stream, &n, qkvz, ba, index, B, &got);
    memcpy(after, n.state, state_bytes);
    memcpy(n.state, before, state_bytes);
    for (int64_t row = 0; row < B; row++)
        expect_row(&n, qkvz, ba, index[row], row, &want);
    assert_memory_equal(got.all, want.all, got.bytes);
    assert_memory_equal(after, n.state, state_bytes);
    /* The third row alone. */
    memcpy(n.state, before, state_bytes);
    run(e.stream, &n, qkvz + 2 * n.row, ba + 4 * n.hv, index + 2, 1, &one);
    assert_memory_equal(one.v, want.v + 2 * n.hv * n.dv, (size_t)(n.hv * n.dv) * 4);
    assert_memory_equal(one.a, want.a + 2 * n.hv, (size_t)n.hv * 4);
    free(qkvz), free(ba), free(before), free(after), free(got.all), free(want.all), free(one.all);
    net_free(&n);
    unit_close(&e);
}

static void layouts(void **state)
{
    (void)state;
    const net shapes[] = {
        {.hk = 2, .dk = 5, .hv = 4, .dv = 7, .width = 4},
        {.hk = 1, .dk = 1, .hv = 1, .dv = 1, .width = 2},
        {.hk = 3, .dk = 16, .hv = 3, .dv = 33, .width = 3, .slack = 1},
        {.hk = 2, .dk = 128, .hv = 6, .dv = 600, .width = 4},
        {.hk = 1, .dk = 8, .hv = 2, .dv = 8, .width = 9, .slack = 3},
    };
    ISA_EACH(isa)
    {
        for (int i = 0; i < 5; i++) {
            for (int32_t k = 0; k < 8; k++) {
                net n = shapes[i];
                n.states = 5;
                n.silu = k & 1, n.grouped = k >> 1 & 1, n.bias = k >> 2;
                check(isa, 1 + i % 3, n);
            }
        }
    }
    /* The plain layout asks nothing of value heads. */
    check(NULL, 2, (net){.hk = 3, .dk = 2, .hv = 2, .dv = 4, .width = 4, .states = 5, .silu = 1});
}

/* Token by token from a state of zeros = the causal convolution of the whole, zeros before it. */
static void a_sequence(void **state)
{
    (void)state;
    enum { TOKENS = 9 };
    net n = {.hk = 1, .dk = 3, .hv = 2, .dv = 4, .width = 4, .states = 1, .silu = 1};
    unit_env e = unit_open(1);
    net_make(&n);
    memset(n.state, 0, (size_t)(n.channels * 3) * sizeof(float));
    float *x = normals((TOKENS + 3) * n.row, 8), *ba = normals(2 * n.hv, 9);
    memset(x, 0, (size_t)(3 * n.row) * sizeof(float));
    const int32_t index = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        const result r = result_make(&n, 1);
        run(e.stream, &n, x + (t + 3) * n.row, ba, &index, 1, &r);
        for (int64_t c = 0; c < n.channels; c++) {
            float y = 0;
            for (int64_t i = 0; i < 4; i++)
                y = fmaf(x[(t + i) * n.row + c], n.weight[c * 4 + i], y);
            assert_true(r.all[c] == cmoei_siluf(y)); /* q, k and v stand one behind the other */
        }
        free(r.all);
    }
    free(x), free(ba);
    net_free(&n);
    unit_close(&e);
}

/* bf16 at odd addresses, the state with channels inside, outputs as heads of wider rows. */
static void formats(void **state)
{
    (void)state;
    enum { C = 12, ROW = 16, W = 3, B = 2 };
    static const int64_t index[B] = {1, 0};
    float x[B * ROW], w[C * W], s[2 * C * (W - 1)], ba[B * 2] = {1, 2, 3, 4}, wide[B * 20];
    char hx[B * ROW * 2 + 1], hw[C * W * 2 + 1], hs[2 * C * (W - 1) * 2 + 1];
    for (int i = 0; i < B * ROW; i++)
        x[i] = cmoei_round_bf16(cmoe_random_normal(1, (uint64_t)i, 0));
    for (int i = 0; i < C * W; i++)
        w[i] = cmoei_round_bf16(cmoe_random_normal(2, (uint64_t)i, 0));
    for (int i = 0; i < 2 * C * (W - 1); i++)
        s[i] = cmoei_round_bf16(cmoe_random_normal(3, (uint64_t)i, 0));
    cmoei_store_f32(hx + 1, CMOE_BF16, 1, x, B * ROW);
    cmoei_store_f32(hw + 1, CMOE_BF16, 1, w, C * W);
    cmoei_store_f32(hs + 1, CMOE_BF16, 1, s, 2 * C * (W - 1));
    const int64_t dims[3] = {2, C, W - 1}, q_dims[3] = {B, 1, 4};
    cmoe_view_mut vs = cmoe_view_mut_make(hs + 1, CMOE_BF16, 3, dims);
    vs.strides[1] = 1, vs.strides[2] = C; /* [2, W - 1, C] in memory */
    float k[B * 4], v[B * 4], z[B * 4], b[B], a[B];
    cmoe_gdn_pack_out out = {.size = sizeof out,
                             .q = cmoe_view_mut_make(wide + 3, CMOE_F32, 3, q_dims),
                             .k = out3(k, B, 1, 4),
                             .v = out3(v, B, 1, 4),
                             .z = out3(z, B, 1, 4),
                             .b = cmoe_view_mut_2d(b, CMOE_F32, B, 1),
                             .a = cmoe_view_mut_2d(a, CMOE_F32, B, 1)};
    out.q.strides[0] = 20;
    cmoe_gdn_pack_options o = {
        .size = sizeof o, .key_heads = 1, .key_dim = 4, .value_heads = 1, .value_dim = 4};
    unit_env e = unit_open(1);
    UNIT_OK(cmoe_gdn_pack(e.stream, &o, cmoe_view_2d(hx + 1, CMOE_BF16, B, ROW),
                          cmoe_view_2d(ba, CMOE_F32, B, 2), cmoe_view_2d(hw + 1, CMOE_BF16, C, W),
                          cmoe_view_none(), vs, cmoe_view_1d(index, CMOE_I64, B), &out, &err));
    for (int row = 0; row < B; row++) {
        const float *taps = s + index[row] * C * 2;
        for (int c = 0; c < C; c++) {
            float y = fmaf(taps[c], w[c * W], 0);
            y = fmaf(taps[C + c], w[c * W + 1], y);
            y = fmaf(x[row * ROW + c], w[c * W + 2], y);
            const float got = c < 4   ? wide[3 + row * 20 + c]
                              : c < 8 ? k[row * 4 + c - 4]
                                      : v[row * 4 + c - 8];
            assert_true(got == y);
            float now[2];
            cmoei_load_f32(now, hs + 1 + (index[row] * C * 2 + c) * 2, CMOE_BF16, C, 2);
            assert_true(now[0] == taps[C + c] && now[1] == x[row * ROW + c]);
        }
        for (int c = 0; c < 4; c++)
            assert_true(z[row * 4 + c] == x[row * ROW + C + c]);
        assert_true(b[row] == ba[row * 2] && a[row] == ba[row * 2 + 1]);
    }
    unit_close(&e);
}

static void empty(void **state)
{
    (void)state;
    net n = {.hk = 1, .dk = 2, .hv = 1, .dv = 2, .width = 2, .states = 0};
    unit_env e = unit_open(1);
    net_make(&n);
    const int32_t none = -1;
    float *x = normals(n.row, 1), ba[2] = {1, 1};
    const result r0 = result_make(&n, 0), r1 = result_make(&n, 1);
    run(e.stream, &n, x, ba, &none, 0, &r0);
    run(e.stream, &n, x, ba, &none, 1, &r1); /* no state at all, and none wanted */
    for (size_t i = 0; i < r1.bytes / sizeof(float); i++)
        assert_true(r1.all[i] == 0);
    free(x), free(r0.all), free(r1.all);
    net_free(&n);
    unit_close(&e);
}

/* ---- errors ---------------------------------------------------------------------------------- */

/* A good call of 3 rows, 4 states, one key head of 2 and 2 value heads of 1: C = 6, width 3. */
typedef struct call {
    cmoe_gdn_pack_options o;
    cmoe_view qkvz, ba, weight, bias, index;
    cmoe_view_mut state;
    cmoe_gdn_pack_out out;
} call;

enum { B = 3, STATES = 4, C = 6, W = 3 };
static float qkvz[B * 8], ba[B * 4], weight[C * W], bias[C], conv[STATES * C * (W - 1)];
static float q[B * 2], k[B * 2], v[B * 2], z[B * 2], b[B * 2], a[B * 2];
static int32_t rows[B];

static call good(void)
{
    const int64_t dims[3] = {STATES, C, W - 1};
    rows[0] = 2, rows[1] = -1, rows[2] = 0;
    return (call){.o = {.size = sizeof(cmoe_gdn_pack_options),
                        .key_heads = 1,
                        .key_dim = 2,
                        .value_heads = 2,
                        .value_dim = 1},
                  .qkvz = cmoe_view_2d(qkvz, CMOE_F32, B, 8),
                  .ba = cmoe_view_2d(ba, CMOE_F32, B, 4),
                  .weight = cmoe_view_2d(weight, CMOE_F32, C, W),
                  .bias = cmoe_view_1d(bias, CMOE_F32, C),
                  .index = cmoe_view_1d(rows, CMOE_I32, B),
                  .state = cmoe_view_mut_make(conv, CMOE_F32, 3, dims),
                  .out = {.size = sizeof(cmoe_gdn_pack_out),
                          .q = out3(q, B, 1, 2),
                          .k = out3(k, B, 1, 2),
                          .v = out3(v, B, 2, 1),
                          .z = out3(z, B, 2, 1),
                          .b = cmoe_view_mut_2d(b, CMOE_F32, B, 2),
                          .a = cmoe_view_mut_2d(a, CMOE_F32, B, 2)}};
}

static void refused(cmoe_stream *s, const call *c, cmoe_status status, const char *text)
{
    memset(conv, 0x5a, sizeof conv);
    memset(q, 0x5a, sizeof q);
    UNIT_FAILS(cmoe_gdn_pack(s, &c->o, c->qkvz, c->ba, c->weight, c->bias, c->state, c->index,
                             &c->out, &err),
               status, text);
    for (size_t i = 0; i < sizeof conv; i++)
        assert_int_equal(((unsigned char *)conv)[i], 0x5a);
    for (size_t i = 0; i < sizeof q; i++)
        assert_int_equal(((unsigned char *)q)[i], 0x5a);
}

static void option_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const size_t at[4] = {offsetof(call, o.key_heads), offsetof(call, o.key_dim),
                          offsetof(call, o.value_heads), offsetof(call, o.value_dim)};
    const char *const texts[4] = {"key_heads = 0, want >= 1", "key_dim = 0, want >= 1",
                                  "value_heads = 0, want >= 1", "value_dim = 0, want >= 1"};
    call c = good();
    UNIT_OK(cmoe_gdn_pack(e.stream, &c.o, c.qkvz, c.ba, c.weight, c.bias, c.state, c.index, &c.out,
                          &err));
    refused(NULL, &c, CMOE_ERR_ARG, "stream");
    for (int i = 0; i < 4; i++) {
        c = good();
        memset((char *)&c + at[i], 0, sizeof(int64_t));
        refused(e.stream, &c, CMOE_ERR_RANGE, texts[i]);
        memset((char *)&c + at[i], 0x7f, sizeof(int64_t));
        if (i % 2) c.o.key_heads = c.o.value_heads = 2;
        refused(e.stream, &c, CMOE_ERR_RANGE, "heads and dims multiply beyond 2^63 - 1");
    }
    c = good();
    c.o.silu = 2;
    refused(e.stream, &c, CMOE_ERR_RANGE, "silu = 2, want 0 or 1");
    c = good();
    c.o.grouped = 3;
    refused(e.stream, &c, CMOE_ERR_RANGE, "grouped = 3, want 0 or 1");
    c.o.grouped = 1, c.o.key_heads = 3;
    refused(e.stream, &c, CMOE_ERR_RANGE,
            "value_heads = 2, want a multiple of 3 (key_heads) where they are grouped");
    c = good();
    c.o.size = 1;
    refused(e.stream, &c, CMOE_ERR_ARG, "cmoe_gdn_pack_options.size");
    c = good();
    c.out.size = 1;
    refused(e.stream, &c, CMOE_ERR_ARG, "cmoe_gdn_pack_out.size");
    UNIT_FAILS(
        cmoe_gdn_pack(e.stream, &c.o, c.qkvz, c.ba, c.weight, c.bias, c.state, c.index, NULL, &err),
        CMOE_ERR_ARG, "out is NULL, want the views of q, k, v, z, b and a");
    unit_close(&e);
}

static void index_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    call c = good();
    rows[2] = 2;
    refused(e.stream, &c, CMOE_ERR_RANGE,
            "index[0] and index[2] are both 2, want different states, or -1");
    rows[2] = 4;
    refused(e.stream, &c, CMOE_ERR_RANGE,
            "index[2] = 4, want 0 <= index < 4 (states), or -1: none");
    rows[2] = -2;
    refused(e.stream, &c, CMOE_ERR_RANGE, "index[2] = -2");
    /* States far apart, and twice the last one. */
    enum { MANY = 70000 };
    cmoe_view_mut s = cmoe_view_mut_make(NULL, CMOE_F32, 3, (const int64_t[]){MANY, C, W - 1});
    s.data = calloc((size_t)MANY * C * (W - 1), sizeof(float));
    c.state = s;
    rows[0] = MANY - 1, rows[1] = 1, rows[2] = MANY - 1;
    refused(e.stream, &c, CMOE_ERR_RANGE, "index[0] and index[2] are both 69999");
    rows[2] = MANY - 1 - 32768;
    UNIT_OK(cmoe_gdn_pack(e.stream, &c.o, c.qkvz, c.ba, c.weight, c.bias, c.state, c.index, &c.out,
                          &err));
    free(s.data);
    unit_close(&e);
}

static void view_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    call c = good();
    c.qkvz.dims[1] = 7;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "qkvz: dims[1] = 7, want 8 [rows, q + k + v + z = 8]");
    c = good(), c.ba.dims[0] = 2;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "ba: dims[0] = 2, want 3");
    c = good(), c.weight.dims[0] = 5;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "weight: dims[0] = 5, want 6 [q + k + v = 6, width]");
    c = good(), c.weight.dims[1] = 1;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "weight: dims[1] = 1, want >= 2 (width)");
    c = good(), c.bias.dims[0] = 5;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "bias: dims[0] = 5, want 6");
    c = good(), c.index = cmoe_view_none();
    refused(e.stream, &c, CMOE_ERR_ARG, "index is not given");
    c = good(), c.index.dtype = CMOE_F32;
    refused(e.stream, &c, CMOE_ERR_DTYPE, "index: dtype f32");
    c = good(), c.state = cmoe_view_mut_none();
    refused(e.stream, &c, CMOE_ERR_ARG, "state is not given");
    c = good(), c.state.dims[2] = 1;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "state: dims[2] = 1, want >= 2 (width - 1)");
    c = good(), c.state.dims[1] = 5;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "state: dims[1] = 5, want 6");
    c = good(), c.state.strides[0] = 0;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "state: strides are negative or make elements share");
    c = good(), c.state.dtype = CMOE_I8;
    refused(e.stream, &c, CMOE_ERR_DTYPE, "state: dtype i8");
    c = good(), c.out.q = cmoe_view_mut_none();
    refused(e.stream, &c, CMOE_ERR_ARG, "q is not given, want a tensor [rows = 3, heads = 1");
    c = good(), c.out.k.dims[2] = 1;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "k: dims[2] = 1, want 2");
    c = good(), c.out.v.dims[1] = 1;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "v: dims[1] = 1, want 2");
    c = good(), c.out.z.rank = 2;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "z: rank 2, want 3");
    c = good(), c.out.b.dims[0] = 2;
    refused(e.stream, &c, CMOE_ERR_SHAPE, "b: dims[0] = 2, want 3");
    c = good(), c.out.a.dtype = CMOE_I64;
    refused(e.stream, &c, CMOE_ERR_DTYPE, "a: dtype i64");
    c = good(), c.out.k.data = q;
    refused(e.stream, &c, CMOE_ERR_ARG, "k overlaps q in memory");
    c = good(), c.out.v.data = conv;
    refused(e.stream, &c, CMOE_ERR_ARG, "v overlaps state in memory");
    c = good(), c.out.z.data = qkvz;
    refused(e.stream, &c, CMOE_ERR_ARG, "z overlaps qkvz in memory");
    c = good(), c.out.b.data = ba;
    refused(e.stream, &c, CMOE_ERR_ARG, "b overlaps ba in memory");
    c = good(), c.out.a.data = bias;
    refused(e.stream, &c, CMOE_ERR_ARG, "a overlaps bias in memory");
    c = good(), c.weight.data = conv;
    refused(e.stream, &c, CMOE_ERR_ARG, "state overlaps weight in memory");
    c = good(), c.out.q.data = rows;
    refused(e.stream, &c, CMOE_ERR_ARG, "q overlaps index in memory");
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts),       cmocka_unit_test(a_sequence),
        cmocka_unit_test(formats),       cmocka_unit_test(empty),
        cmocka_unit_test(option_errors), cmocka_unit_test(index_errors),
        cmocka_unit_test(view_errors),
    };
    return UNIT_RUN("unit_gdn_pack", tests);
}
