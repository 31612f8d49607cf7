/* SPDX-License-Identifier: MIT
 *
 * gdn_pack.c - what the decode kernel of a gated delta net is given: one token of each of B
 * sequences, split into q, k, v, z, b, a, with the causal convolution over q | k | v.
 *
 * Work is cut into heads, of q, k, v and z, of each sequence: one sequence keeps all threads busy
 * too.  No two heads share a channel, so none waits for the state of another; and sequences have
 * different states, which is checked.
 */
#include "ops/gdn_pack.h"

#include <inttypes.h>

#include "ops/ops.h"

#define ROW(isa) void cmoei_gdn_conv_##isa(const cmoei_gdn_conv_args *a)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_gdn_conv_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_gdn_conv_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_gdn_conv_avx2},
#endif
    {{"ref", 0, 0}, cmoei_gdn_conv_ref},
};
const cmoei_table cmoei_gdn_conv_table = CMOEI_TABLE("gdn_conv", kernels);

static const cmoe_gdn_pack_options defaults = {.size = sizeof defaults, .silu = 1};

void cmoe_gdn_pack_out_default(cmoe_gdn_pack_out *out, size_t size)
{
    const cmoe_gdn_pack_out d = {.size = sizeof d};
    cmoei_options_write(out, size, &d, sizeof d);
}

void cmoe_gdn_pack_options_default(cmoe_gdn_pack_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* Widths of rows, all products checked. */
typedef struct sizes {
    int64_t q, v;     /* Hk * Dk, Hv * Dv */
    int64_t channels; /* C = 2q + v */
    int64_t qkvz, ba; /* C + v, 2 * Hv */
} sizes;

static cmoe_status check_options(const cmoe_gdn_pack_options *o, sizes *n, cmoe_error *err)
{
    const int64_t value[4] = {o->key_heads, o->key_dim, o->value_heads, o->value_dim};
    static const char *const names[4] = {"key_heads", "key_dim", "value_heads", "value_dim"};
    for (int i = 0; i < 4; i++) {
        if (value[i] < 1)
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %" PRId64 ", want >= 1", names[i],
                              value[i]);
    }
    CMOEI_TRY(cmoei_check_flag(o->silu, "silu", err));
    CMOEI_TRY(cmoei_check_flag(o->grouped, "grouped", err));
    if (o->grouped && o->value_heads % o->key_heads)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "value_heads = %" PRId64 ", want a multiple of %" PRId64
                          " (key_heads) where they are grouped",
                          o->value_heads, o->key_heads);
    if (!cmoei_mul(o->key_heads, o->key_dim, &n->q) ||
        !cmoei_mul(o->value_heads, o->value_dim, &n->v) || !cmoei_add(n->q, n->q, &n->channels) ||
        !cmoei_add(n->channels, n->v, &n->channels) || !cmoei_add(n->channels, n->v, &n->qkvz) ||
        !cmoei_mul(2, o->value_heads, &n->ba))
        return cmoei_fail(err, CMOE_ERR_RANGE, "heads and dims multiply beyond 2^63 - 1");
    return CMOE_OK;
}

static cmoe_status check_inputs(const sizes *n, const cmoe_view *qkvz, const cmoe_view *ba,
                                const cmoe_view *weight, const cmoe_view *bias,
                                const cmoe_view *index, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_matrix(qkvz, "qkvz", -1, n->qkvz, "q + k + v + z", err));
    const cmoei_want want_weight = {.name = "weight",
                                    .dtypes = CMOEI_FLOATS,
                                    .rank = 2,
                                    .dims = {n->channels, -1},
                                    .dim_names = {"q + k + v", "width"}};
    const cmoei_want want_bias = {.name = "bias",
                                  .dtypes = CMOEI_FLOATS,
                                  .rank = 1,
                                  .dims = {n->channels},
                                  .dim_names = {"q + k + v"}};
    const cmoei_want want_index = {.name = "index",
                                   .dtypes = CMOEI_INDEX,
                                   .rank = 1,
                                   .dims = {qkvz->dims[0]},
                                   .dim_names = {"rows"}};
    CMOEI_TRY(cmoei_check_matrix(ba, "ba", qkvz->dims[0], n->ba, "b + a", err));
    CMOEI_TRY(cmoei_check_in(weight, &want_weight, err));
    if (weight->dims[1] < 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims[1] = %" PRId64 ", want >= 2 (width)",
                          cmoei_name(weight->name, "weight"), weight->dims[1]);
    if (cmoei_given(bias)) CMOEI_TRY(cmoei_check_in(bias, &want_bias, err));
    return cmoei_check_in(index, &want_index, err);
}

static cmoe_status check_state(const sizes *n, int64_t width, const cmoe_view_mut *state,
                               cmoe_error *err)
{
    const cmoei_want want = {.name = "state",
                             .dtypes = CMOEI_FLOATS,
                             .rank = 3,
                             .dims = {-1, n->channels, -1},
                             .dim_names = {"states", "q + k + v", ">= width - 1"}};
    CMOEI_TRY(cmoei_check_out(state, &want, err));
    if (state->dims[2] < width - 1)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[2] = %" PRId64 ", want >= %" PRId64 " (width - 1)",
                          cmoei_name(state->name, "state"), state->dims[2], width - 1);
    return CMOE_OK;
}

enum { OUTPUTS = 7, INPUTS = 5 };

typedef struct named {
    const cmoe_view_mut *view;
    const char *name;
    int64_t heads, dim; /* dim 0: [B, heads] */
} named;

static cmoe_status check_outputs(const cmoe_gdn_pack_options *o, int64_t rows,
                                 const cmoe_view_mut *state, const cmoe_gdn_pack_out *out,
                                 const cmoe_view *const inputs[INPUTS], cmoe_error *err)
{
    static const char *const in_names[INPUTS] = {"qkvz", "ba", "weight", "bias", "index"};
    const named all[OUTPUTS] = {{state, "state", 0, 0},
                                {&out->q, "q", o->key_heads, o->key_dim},
                                {&out->k, "k", o->key_heads, o->key_dim},
                                {&out->v, "v", o->value_heads, o->value_dim},
                                {&out->z, "z", o->value_heads, o->value_dim},
                                {&out->b, "b", o->value_heads, 0},
                                {&out->a, "a", o->value_heads, 0}};
    for (int i = 0; i < OUTPUTS; i++) {
        const cmoei_want want = {.name = all[i].name,
                                 .dtypes = CMOEI_FLOATS,
                                 .rank = all[i].dim ? 3 : 2,
                                 .dims = {rows, all[i].heads, all[i].dim},
                                 .dim_names = {"rows", "heads", "head_dim"}};
        if (i > 0) CMOEI_TRY(cmoei_check_out(all[i].view, &want, err));
        for (int j = 0; j < INPUTS; j++)
            CMOEI_TRY(cmoei_check_apart(all[i].view, all[i].name, inputs[j], in_names[j], err));
        for (int j = 0; j < i; j++) {
            const cmoe_view other = cmoe_view_of(*all[j].view);
            CMOEI_TRY(cmoei_check_apart(all[i].view, all[i].name, &other, all[j].name, err));
        }
    }
    return CMOE_OK;
}

static int64_t index_at(const cmoe_view *index, int64_t row)
{
    return cmoei_load_index(cmoei_at(index, row, 0), index->dtype);
}

static cmoe_status twice(const cmoe_view *index, int64_t row, cmoe_error *err)
{
    const char *name = cmoei_name(index->name, "index");
    const int64_t state = index_at(index, row);
    int64_t first = 0;
    while (index_at(index, first) != state)
        first++;
    return cmoei_fail(err, CMOE_ERR_RANGE,
                      "%s[%" PRId64 "] and %s[%" PRId64 "] are both %" PRId64
                      ", want different states, or -1",
                      name, first, name, row, state);
}

/* Every row in range and no state twice.  A set of bits on the stack holds some states at a time;
 * the rows are gone through once for each such window, which is once unless there are very many. */
static cmoe_status check_index(const cmoe_view *index, int64_t states, cmoe_error *err)
{
    enum { WINDOW = 1 << 15 };
    const int64_t rows = index->dims[0];
    int64_t last = -1;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t i = index_at(index, row);
        last = CMOEI_MAX(last, i);
        if (i < -1 || i >= states)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %" PRId64 ", want 0 <= index < %" PRId64
                              " (states), or -1: none",
                              cmoei_name(index->name, "index"), row, i, states);
    }
    for (int64_t begin = 0; begin <= last; begin += WINDOW) {
        uint64_t seen[WINDOW / 64] = {0};
        for (int64_t row = 0; row < rows; row++) {
            const int64_t at = index_at(index, row) - begin;
            if (at < 0 || at >= WINDOW) continue;
            const uint64_t bit = (uint64_t)1 << (at & 63);
            if (seen[at >> 6] & bit) return twice(index, row, err);
            seen[at >> 6] |= bit;
        }
    }
    return CMOE_OK;
}

/* ---- work ------------------------------------------------------------------------------------ */

typedef struct job {
    cmoe_gdn_pack_options o;
    int64_t width;
    sizes n;
    cmoei_plane qkvz, ba, bias, weight; /* weight with a tap a row */
    cmoe_view_mut state;
    cmoe_view index;
    const cmoe_gdn_pack_out *out;
    const cmoei_gdn_conv_kernel *kernel;
} job;

/* Where a head comes from and goes to. */
typedef struct head {
    int64_t column;  /* its first one in qkvz */
    int64_t channel; /* its first one in the convolution; -1: it is not convolved */
    const cmoe_view_mut *out;
    int64_t index, dim; /* in out */
} head;

/* Heads are counted q, k, v, z. */
static head find_head(const job *j, int64_t unit)
{
    const cmoe_gdn_pack_options *o = &j->o;
    const int64_t hk = o->key_heads, dk = o->key_dim, hv = o->value_heads, dv = o->value_dim;
    if (unit < 2 * hk) {
        const bool k = unit >= hk;
        const int64_t h = k ? unit - hk : unit, channel = unit * dk;
        const int64_t group = j->n.qkvz / hk * h + (k ? dk : 0);
        return (head){o->grouped ? group : channel, channel, k ? &j->out->k : &j->out->q, h, dk};
    }
    const bool z = unit - 2 * hk >= hv;
    const int64_t h = unit - 2 * hk - (z ? hv : 0), channel = 2 * j->n.q + h * dv;
    int64_t column = channel + (z ? j->n.v : 0);
    if (o->grouped) {
        const int64_t r = hv / hk; /* value heads of a key head */
        column = j->n.qkvz / hk * (h / r) + 2 * dk + (z ? r * dv : 0) + h % r * dv;
    }
    return (head){column, z ? -1 : channel, z ? &j->out->z : &j->out->v, h, dv};
}

/* Head `h` of row `row` of [B, heads, dim], or element of [B, heads]. */
static cmoei_plane out_plane(const cmoe_view_mut *v, int64_t row, int64_t h)
{
    return (cmoei_plane){.data = cmoei_at_mut(v, row, h),
                         .col = v->rank == 3 ? v->strides[2] : 1,
                         .dtype = v->dtype};
}

/* Columns [column, column + n) of a row of x, or zeros. */
static void copy(const cmoei_plane *x, int64_t row, int64_t column, const cmoei_plane *out,
                 int64_t n, bool zeros)
{
    for (int64_t c = 0; c < n; c += CMOEI_BLOCK) {
        float v[CMOEI_BLOCK] = {0};
        const int64_t part = CMOEI_MIN(n - c, CMOEI_BLOCK);
        if (!zeros) cmoei_block_load(v, x, row, column + c, part);
        cmoei_block_store(out, 0, c, v, part);
    }
}

static void convolve(const job *j, const head *h, int64_t row, int64_t state,
                     const cmoei_plane *out)
{
    const int64_t bytes = cmoe_dtype_bytes(j->state.dtype);
    cmoei_gdn_conv_args a = {.x = j->qkvz,
                             .bias = j->bias,
                             .out = *out,
                             .weight = j->weight,
                             .state = {.data = cmoei_at_mut(&j->state, state, h->channel),
                                       .step = j->state.strides[2] * bytes,
                                       .col = j->state.strides[1],
                                       .dtype = j->state.dtype},
                             .channels = h->dim,
                             .width = j->width,
                             .silu = j->o.silu};
    a.x.data = cmoei_plane_at(&a.x, row, h->column);
    a.weight.data = cmoei_plane_at(&a.weight, 0, h->channel);
    if (a.bias.data) a.bias.data = cmoei_plane_at(&a.bias, 0, h->channel);
    j->kernel->run(&a);
}

/* b and a of value head h. */
static void copy_gates(const job *j, int64_t row, int64_t h, bool zeros)
{
    const int64_t hv = j->o.value_heads, r = hv / j->o.key_heads;
    const int64_t b = j->o.grouped ? h / r * 2 * r + h % r : h;
    const cmoei_plane to_b = out_plane(&j->out->b, row, h), to_a = out_plane(&j->out->a, row, h);
    copy(&j->ba, row, b, &to_b, 1, zeros);
    copy(&j->ba, row, b + (j->o.grouped ? r : hv), &to_a, 1, zeros);
}

/* Heads are numbered over all sequences. */
static void run_heads(const void *arg, int64_t i, int64_t end)
{
    const job *j = arg;
    const int64_t heads = 2 * (j->o.key_heads + j->o.value_heads);
    for (; i < end; i++) {
        const int64_t row = i / heads, state = index_at(&j->index, row);
        const head h = find_head(j, i % heads);
        const cmoei_plane out = out_plane(h.out, row, h.index);
        if (h.channel >= 0 && state >= 0)
            convolve(j, &h, row, state, &out);
        else
            copy(&j->qkvz, row, h.column, &out, h.dim, state < 0);
        if (h.channel < 0) copy_gates(j, row, h.index, state < 0);
    }
}

static cmoe_status check_all(const cmoe_gdn_pack_options *o, sizes *n, const cmoe_view *qkvz,
                             const cmoe_view *ba, const cmoe_view *weight, const cmoe_view *bias,
                             const cmoe_view_mut *state, const cmoe_view *index,
                             const cmoe_gdn_pack_out *out, cmoe_error *err)
{
    const cmoe_view *const inputs[INPUTS] = {qkvz, ba, weight, bias, index};
    CMOEI_TRY(check_options(o, n, err));
    CMOEI_TRY(check_inputs(n, qkvz, ba, weight, bias, index, err));
    CMOEI_TRY(check_state(n, weight->dims[1], state, err));
    CMOEI_TRY(check_outputs(o, qkvz->dims[0], state, out, inputs, err));
    return check_index(index, state->dims[0], err);
}

cmoe_status cmoe_gdn_pack(cmoe_stream *s, const cmoe_gdn_pack_options *options, cmoe_view qkvz,
                          cmoe_view ba, cmoe_view weight, cmoe_view bias, cmoe_view_mut state,
                          cmoe_view index, const cmoe_gdn_pack_out *out, cmoe_error *err)
{
    enum { COST = 32 }; /* of a channel: strided loads and stores of the taps, an exponential */
    cmoe_gdn_pack_options o = defaults;
    cmoe_gdn_pack_out to = {.size = sizeof to};
    sizes n;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_gdn_pack_options", err));
    if (!out)
        return cmoei_fail(err, CMOE_ERR_ARG, "out is NULL, want the views of q, k, v, z, b and a");
    CMOEI_TRY(cmoei_options_read(&to, sizeof to, out, "cmoe_gdn_pack_out", err));
    CMOEI_TRY(check_all(&o, &n, &qkvz, &ba, &weight, &bias, &state, &index, &to, err));
    const int64_t rows = qkvz.dims[0];
    if (rows == 0) return CMOE_OK;
    const job j = {.o = o,
                   .n = n,
                   .width = weight.dims[1],
                   .qkvz = cmoei_plane_of(&qkvz),
                   .ba = cmoei_plane_of(&ba),
                   .bias = cmoei_plane_of(&bias),
                   .weight = {.data = (char *)(uintptr_t)weight.data,
                              .step = weight.strides[1] * cmoe_dtype_bytes(weight.dtype),
                              .col = weight.strides[0],
                              .dtype = weight.dtype},
                   .state = state,
                   .index = index,
                   .out = &to,
                   .kernel = cmoei_table_pick(&cmoei_gdn_conv_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, rows * 2 * (o.key_heads + o.value_heads),
                   COST * (double)rows * (double)n.qkvz, run_heads, &j);
    return CMOE_OK;
}
