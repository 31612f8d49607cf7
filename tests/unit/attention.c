/* SPDX-License-Identifier: MIT
 *
 * attention.c - the cache and attention through the public API: who sees what, exactly; the same
 * bits however a prompt is cut, batched and spread; memory that nobody may see; every error text.
 */
#include <math.h>

#include "isa.h"

#include "core/core.h"

enum { PAGE = CMOE_KV_PAGE };

/* ---- a cache, and sequences in it ------------------------------------------------------------ */

/* What one sequence of a batch does in a call. */
typedef struct part {
    uint64_t seed;
    int64_t start, n;
} part;

typedef struct net {
    int64_t heads, kv_heads, key_dim, value_dim;
    int32_t format;
    int64_t columns; /* pages of a sequence */
    cmoe_kv kv;
    int32_t *pages; /* [sequences, columns] */
    int64_t sequences;
    bool exact; /* values that make every result exact, see exact_value */
} net;

/* All bytes 0xff: NaN in both formats. Pages go to sequences in turn, backwards. */
static void net_open(net *n, int64_t sequences)
{
    int64_t bytes;
    n->sequences = sequences;
    n->kv = (cmoe_kv){.size = sizeof n->kv,
                      .heads = n->kv_heads,
                      .key_dim = n->key_dim,
                      .value_dim = n->value_dim,
                      .format = n->format,
                      .pages = sequences * n->columns};
    UNIT_OK(cmoe_kv_page_bytes(&n->kv, &bytes, &err));
    n->kv.page_stride = bytes + 64;
    const size_t all = (size_t)(n->kv.page_stride * n->kv.pages);
    n->kv.base = aligned_alloc(64, all);
    memset(n->kv.base, 0xff, all);
    n->pages = malloc((size_t)n->kv.pages * sizeof *n->pages);
    for (int64_t i = 0; i < n->kv.pages; i++)
        n->pages[i] = (int32_t)(n->kv.pages - 1 - i % n->columns * sequences - i / n->columns);
}

static void net_close(net *n)
{
    free(n->kv.base);
    free(n->pages);
}

/* Scores are 0 for keys of one residue and, times 1 / sqrt(key_dim), below -104 for the others:
 * weights are exactly 1 and 0, values small integers, sums exact. */
static float exact_value(const net *n, int what, int64_t position, int64_t head, int64_t d)
{
    if (what == 0) return d == (position + head) % n->key_dim;
    if (what == 1) return d == position % n->key_dim ? 0 : -1000;
    return (float)((position * 7 + head * 5 + d) % 32);
}

/* Rows of q (0), k (1) or v (2) of all parts: functions of sequence and position alone. */
static float *rows_of(const net *n, const part *parts, int count, int what)
{
    const int64_t heads = what == 0 ? n->heads : n->kv_heads;
    const int64_t dim = what == 2 ? n->value_dim : n->key_dim;
    int64_t rows = 0, row = 0;
    for (int i = 0; i < count; i++)
        rows += parts[i].n;
    float *x = malloc((size_t)(rows * heads * dim + 1) * sizeof *x);
    for (int i = 0; i < count; i++) {
        for (int64_t t = 0; t < parts[i].n; t++, row++) {
            const int64_t position = parts[i].start + t;
            for (int64_t e = 0; e < heads * dim; e++)
                x[row * heads * dim + e] =
                    n->exact ? exact_value(n, what, position, e / dim, e % dim)
                             : cmoe_random_normal(parts[i].seed * 4 + (uint64_t)what,
                                                  (uint64_t)position, (uint64_t)e);
        }
    }
    return x;
}

typedef struct tables {
    int64_t first[9], start[8];
    cmoe_batch batch;
} tables;

/* Sequence i of the batch lies in row i of the net's pages. */
static void tables_make(tables *t, const net *n, const part *parts, int count)
{
    t->first[0] = 0;
    for (int i = 0; i < count; i++) {
        t->first[i + 1] = t->first[i] + parts[i].n;
        t->start[i] = parts[i].start;
    }
    t->batch = (cmoe_batch){.size = sizeof t->batch,
                            .sequences = count,
                            .first = t->first,
                            .start = t->start,
                            .pages = n->pages,
                            .page_columns = n->columns};
}

static void write_kv(unit_env *e, const net *n, const tables *t, const float *k, const float *v)
{
    const int64_t rows = t->first[t->batch.sequences];
    UNIT_OK(cmoe_kv_write(e->stream, &n->kv, &t->batch,
                          cmoe_view_2d(k, CMOE_F32, rows, n->kv_heads * n->key_dim),
                          cmoe_view_2d(v, CMOE_F32, rows, n->kv_heads * n->value_dim), &err));
}

static cmoe_view sinks_of(const net *n, const float *sinks)
{
    return sinks ? cmoe_view_1d(sinks, CMOE_F32, n->heads) : cmoe_view_none();
}

static void attend(unit_env *e, const cmoe_attention_options *o, const net *n, const tables *t,
                   const float *q, const float *sinks, float *out)
{
    const int64_t rows = t->first[t->batch.sequences];
    int64_t host, device = -1;
    UNIT_OK(cmoe_attention_bytes(e->ctx, o, &n->kv, &t->batch, &host, &device, &err));
    assert_int_equal(device, 0);
    cmoe_arena arena = unit_arena(host);
    UNIT_OK(cmoe_attention(e->stream, o, cmoe_view_2d(q, CMOE_F32, rows, n->heads * n->key_dim),
                           &n->kv, &t->batch, sinks_of(n, sinks),
                           cmoe_view_mut_2d(out, CMOE_F32, rows, n->heads * n->value_dim), &arena,
                           &err));
    assert_int_equal(arena.used, 0);
    free(arena.base);
}

/* Writes and attends these parts in one call. */
static void step(unit_env *e, const cmoe_attention_options *o, const net *n, const part *parts,
                 int count, const float *sinks, float *out)
{
    tables t;
    float *q = rows_of(n, parts, count, 0), *k = rows_of(n, parts, count, 1);
    float *v = rows_of(n, parts, count, 2);
    tables_make(&t, n, parts, count);
    write_kv(e, n, &t, k, v);
    attend(e, o, n, &t, q, sinks, out);
    free(q), free(k), free(v);
}

static cmoe_attention_options options(const net *n, int32_t mask, int64_t window)
{
    cmoe_attention_options o;
    cmoe_attention_options_default(&o, sizeof o);
    assert_true(o.size == sizeof o && o.heads == 0 && o.scale == 0 && o.mask == 0 && o.window == 0);
    o.heads = n->heads;
    o.mask = mask;
    o.window = window;
    return o;
}

static float *outputs(const net *n, int64_t rows)
{
    const size_t count = (size_t)(rows * n->heads * n->value_dim);
    float *x = malloc((count + 1) * sizeof *x);
    memset(x, 0xa5, count * sizeof *x);
    return x;
}

/* ---- who sees what --------------------------------------------------------------------------- */

/* The mean over visible keys of the token's residue; over all visible where there is none. */
static float expected(const net *n, const cmoe_attention_options *o, int64_t p, int64_t end,
                      int64_t h, int64_t d, bool sink)
{
    double sum[2] = {0}, count[2] = {0};
    const int64_t kv_head = h / (n->heads / n->kv_heads);
    for (int64_t s = 0; s < end; s++) {
        const bool before = o->mask == CMOE_MASK_CAUSAL ? s <= p
                            : o->mask == CMOE_MASK_FULL ? true
                                                        : s / o->mask <= p / o->mask;
        if (!before || (o->window && s <= p - o->window)) continue;
        const int which = s % n->key_dim == (p + h) % n->key_dim;
        sum[which] += (double)exact_value(n, 2, s, kv_head, d);
        count[which]++;
    }
    if (count[1] == 0 && sink) return 0;
    const int which = count[1] > 0;
    return (float)sum[which] / (float)(count[which] + sink);
}

static void check_exact(unit_env *e, const net *n, const cmoe_attention_options *o,
                        const part *parts, int count, bool with_sinks)
{
    float *sinks = calloc((size_t)n->heads, sizeof *sinks);
    int64_t rows = 0;
    for (int i = 0; i < count; i++)
        rows += parts[i].n;
    float *out = outputs(n, rows);
    const float *at = out;
    step(e, o, n, parts, count, with_sinks ? sinks : NULL, out);
    for (int i = 0; i < count; i++) {
        for (int64_t t = 0; t < parts[i].n; t++) {
            for (int64_t x = 0; x < n->heads * n->value_dim; x++, at++) {
                const int64_t p = parts[i].start + t;
                const float want = expected(n, o, p, parts[i].start + parts[i].n, x / n->value_dim,
                                            x % n->value_dim, with_sinks);
                if (*at != want)
                    fail_msg("mask %d window %d sink %d: sequence %d position %d column %d = %g, "
                             "want %g",
                             o->mask, (int)o->window, with_sinks, i, (int)p, (int)x, (double)*at,
                             (double)want);
            }
        }
    }
    free(sinks), free(out);
}

static const int32_t masks[] = {CMOE_MASK_CAUSAL, CMOE_MASK_FULL, 1, 7, 32, 5000};
static const int64_t windows[] = {0, 1, 5, 64, 100};

static void sees(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net nets[] = {{.heads = 4, .kv_heads = 2, .key_dim = 8, .value_dim = 3, .format = CMOE_F32},
                  {.heads = 2, .kv_heads = 2, .key_dim = 5, .value_dim = 18, .format = CMOE_BF16},
                  {.heads = 40, .kv_heads = 1, .key_dim = 4, .value_dim = 1, .format = CMOE_F32},
                  {.heads = 10, .kv_heads = 2, .key_dim = 6, .value_dim = 2, .format = CMOE_BF16}};
    const part first[] = {{1, 0, 130}, {2, 0, 1}, {3, 0, 0}, {4, 0, 67}};
    const part then[] = {{1, 130, 3}, {2, 1, 80}, {3, 0, 5}, {4, 67, 1}};
    for (int i = 0; i < 4; i++) {
        for (int m = 0; m < 6; m++) {
            for (int w = 0; w < 5; w++) {
                net *n = &nets[i];
                n->columns = 3;
                n->exact = true;
                net_open(n, 4);
                const cmoe_attention_options o = options(n, masks[m], windows[w]);
                check_exact(&e, n, &o, first, 4, w % 2);
                check_exact(&e, n, &o, then, 4, !(w % 2));
                net_close(n);
            }
        }
    }
    unit_close(&e);
}

/* Several parts; windows whose start is in the middle of one; pages before it are not there. */
static void sees_far(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net n = {
        .heads = 2, .kv_heads = 1, .key_dim = 16, .value_dim = 2, .columns = 41, .exact = true};
    n.format = CMOE_BF16;
    net_open(&n, 1);
    const part long_one = {1, 0, 2500}, more = {1, 2500, 40};
    const cmoe_attention_options causal = options(&n, CMOE_MASK_CAUSAL, 0);
    const cmoe_attention_options window = options(&n, CMOE_MASK_CAUSAL, 1100);
    check_exact(&e, &n, &causal, &long_one, 1, true);
    for (int i = 0; i < (2500 - 1100) / PAGE; i++)
        n.pages[i] = -1;
    check_exact(&e, &n, &window, &more, 1, false);
    net_close(&n);
    unit_close(&e);
}

/* Windows that reach over one part edge more than their length says, in calls so small that scratch has
 * no row-parts to spare. */
static void over_edges(void **state)
{
    (void)state;
    static const struct {
        int32_t mask;
        int64_t window, start, n;
    } cases[] = {{CMOE_MASK_CAUSAL, 1026, 2048, 1}, {CMOE_MASK_CAUSAL, 2, 1024, 1},
                 {CMOE_MASK_CAUSAL, 2, 1000, 40},   {1100, 1026, 2047, 153},
                 {CMOE_MASK_FULL, 1026, 2047, 3},   {40, 1000, 2000, 60}};
    unit_env e = unit_open(1);
    for (int i = 0; i < 6; i++) {
        net n = {.heads = 2, .kv_heads = 1, .key_dim = 8, .value_dim = 2, .columns = 36};
        n.format = CMOE_F32;
        n.exact = true;
        net_open(&n, 1);
        const part before = {1, 0, cases[i].start}, now = {1, cases[i].start, cases[i].n};
        const cmoe_attention_options o = options(&n, cases[i].mask, cases[i].window);
        float *ignored = outputs(&n, before.n);
        step(&e, &o, &n, &before, 1, NULL, ignored);
        check_exact(&e, &n, &o, &now, 1, true);
        free(ignored);
        net_close(&n);
    }
    unit_close(&e);
}

/* Scores by hand: q . k = 2 and 4, scale .5: weights e^-1 and 1, and a sink of 2 that is not
 * scaled. */
static void scale_and_sink(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    net n = {.heads = 1, .kv_heads = 1, .key_dim = 1, .value_dim = 1, .format = CMOE_F32};
    n.columns = 1;
    net_open(&n, 1);
    tables t;
    tables_make(&t, &n, &(part){0, 0, 2}, 1);
    const float q[2] = {0, 2}, k[2] = {1, 2}, v[2] = {8, 16}, sink = 2;
    float out[2];
    write_kv(&e, &n, &t, k, v);
    cmoe_attention_options o = options(&n, 0, 0);
    o.scale = .5f;
    attend(&e, &o, &n, &t, q, NULL, out);
    const double w = exp(-1);
    assert_true(out[0] == 8);
    assert_true(fabs((double)out[1] - (8 * w + 16) / (w + 1)) < 16 * 0x1p-21);
    attend(&e, &o, &n, &t, q, &sink, out);
    assert_true(fabs((double)out[1] - (8 * w + 16) / (w + 2)) < 16 * 0x1p-21);
    /* All weights 0 but for the sink: zeros; and a score of -infinity weighs nothing. */
    const float huge = 1000, far_k[2] = {-3e38f, 1};
    attend(&e, &o, &n, &t, q, &huge, out);
    assert_true(out[0] == 0 && out[1] == 0);
    o.scale = 3;
    write_kv(&e, &n, &t, far_k, v);
    attend(&e, &o, &n, &t, (const float[2]){1, 1}, NULL, out);
    assert_true(out[0] == 0 && out[1] == 16);
    net_close(&n);
    unit_close(&e);
}

/* ---- the same bits --------------------------------------------------------------------------- */

/* All of a sequence, `chunk` tokens a call. */
static float *in_chunks(unit_env *e, net *n, const cmoe_attention_options *o, int64_t tokens,
                        int64_t chunk, const float *sinks)
{
    float *out = outputs(n, tokens);
    net_open(n, 1);
    for (int64_t at = 0; at < tokens; at += chunk) {
        const part p = {9, at, CMOEI_MIN(chunk, tokens - at)};
        step(e, o, n, &p, 1, sinks, out + at * n->heads * n->value_dim);
    }
    net_close(n);
    return out;
}

static void chunks(void **state)
{
    (void)state;
    enum { TOKENS = 1100 };
    const float sinks[4] = {.5f, -2, 8, -60};
    const int64_t sizes[] = {1, 7, 64};
    unit_env e = unit_open(2);
    net n = {.heads = 4, .kv_heads = 2, .key_dim = 6, .value_dim = 9, .columns = 18};
    for (int kind = 0; kind < 2; kind++) {
        n.format = kind == 1 ? CMOE_BF16 : CMOE_F32;
        const cmoe_attention_options o = options(&n, 0, kind == 1 ? 300 : 0);
        const float *s = kind == 1 ? sinks : NULL;
        float *whole = in_chunks(&e, &n, &o, TOKENS, TOKENS, s);
        for (int i = 0; i < 3; i++) {
            float *out = in_chunks(&e, &n, &o, TOKENS, sizes[i], s);
            assert_memory_equal(out, whole, TOKENS * 4 * 9 * sizeof *out);
            free(out);
        }
        free(whole);
    }
    const cmoe_attention_options o = options(&n, 32, 0);
    float *whole = in_chunks(&e, &n, &o, 320, 320, NULL);
    for (int64_t chunk = 32; chunk <= 96; chunk += 64) {
        float *out = in_chunks(&e, &n, &o, 320, chunk, NULL);
        assert_memory_equal(out, whole, 320 * 4 * 9 * sizeof *out);
        free(out);
    }
    free(whole);
    unit_close(&e);
}

/* Each sequence in a cache of its own; the others' pages are NaN there. */
static void batches(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net n = {.heads = 4, .kv_heads = 1, .key_dim = 24, .value_dim = 32, .columns = 3};
    const part before[] = {{1, 0, 63}, {2, 0, 100}, {3, 0, 0}, {4, 0, 1}};
    const part now[] = {{1, 63, 70}, {2, 100, 1}, {3, 0, 0}, {4, 1, 33}};
    n.format = CMOE_F32;
    const cmoe_attention_options o = options(&n, 0, 0);
    net_open(&n, 4);
    for (int i = 0; i < 3; i++)
        n.pages[2 * 3 + i] = -7; /* of a sequence without tokens */
    float *out = outputs(&n, 164), *all = outputs(&n, 104), *at = all;
    step(&e, &o, &n, before, 4, NULL, out);
    step(&e, &o, &n, now, 4, NULL, all);
    for (int i = 0; i < 4; i++) {
        net alone = n;
        net_open(&alone, 4);
        memcpy(alone.pages, alone.pages + 3 * i, 3 * sizeof *alone.pages);
        step(&e, &o, &alone, &before[i], 1, NULL, out);
        step(&e, &o, &alone, &now[i], 1, NULL, out);
        assert_memory_equal(out, at, (size_t)now[i].n * 4 * 32 * sizeof *out);
        at += now[i].n * 4 * 32;
        net_close(&alone);
    }
    free(out), free(all);
    net_close(&n);
    unit_close(&e);
}

/* Only into the cache. */
static void prefill(unit_env *e, const net *n, part p)
{
    tables t;
    float *k = rows_of(n, &p, 1, 1), *v = rows_of(n, &p, 1, 2);
    tables_make(&t, n, &p, 1);
    write_kv(e, n, &t, k, v);
    free(k), free(v);
}

/* Threads 1, 2, 3 and all instruction sets: a prompt over many waves, then one token.  The slow
 * reference does the end of the prompt only. */
static void threads(void **state)
{
    (void)state;
    enum { TOKENS = 1100, ROW = 4 * 8, LATE = 1000 };
    net n = {.heads = 4, .kv_heads = 2, .key_dim = 8, .value_dim = 8, .columns = 24};
    n.format = CMOE_F32;
    const cmoe_attention_options o = options(&n, 0, 0);
    unit_env one = unit_open(1);
    float *want = in_chunks(&one, &n, &o, TOKENS + 1, TOKENS, NULL);
    unit_close(&one);
    ISA_EACH(isa)
    {
        const int64_t from = strcmp(isa, "ref") ? 0 : LATE;
        for (int32_t count = 1; count <= 3; count++) {
            unit_env e = unit_open_isa(count, isa);
            float *out = outputs(&n, TOKENS + 1);
            net_open(&n, 1);
            prefill(&e, &n, (part){9, 0, from});
            step(&e, &o, &n, &(part){9, from, TOKENS - from}, 1, NULL, out + from * ROW);
            step(&e, &o, &n, &(part){9, TOKENS, 1}, 1, NULL, out + TOKENS * ROW);
            net_close(&n);
            unit_close(&e);
            assert_memory_equal(out + from * ROW, want + from * ROW,
                                (size_t)(TOKENS + 1 - from) * ROW * sizeof *out);
            free(out);
        }
    }
    free(want);
}

/* Every other column of rows that lie apart, at odd addresses, in bf16: the numbers of contiguous
 * float32 rows. */
static void strides(void **state)
{
    (void)state;
    enum { T = 70, HEADS = 4, KD = 20, VD = 12 };
    unit_env e = unit_open(2);
    net n = {.heads = HEADS, .kv_heads = 2, .key_dim = KD, .value_dim = VD, .columns = 2};
    n.format = CMOE_BF16;
    const part p = {6, 0, T};
    const cmoe_attention_options o = options(&n, 0, 0);
    const int64_t cols[4] = {HEADS * KD, 2 * KD, 2 * VD, HEADS * VD};
    float *x[4], *out = outputs(&n, T);
    char *raw[4];
    cmoe_view view[4];
    for (int i = 0; i < 4; i++) {
        const int64_t step_cols = 2 * cols[i] + 5;
        raw[i] = malloc((size_t)(T * step_cols * 2 + 1));
        view[i] = cmoe_view_2d(raw[i] + 1, CMOE_BF16, T, cols[i]);
        view[i].strides[0] = step_cols;
        view[i].strides[1] = 2;
        x[i] = i < 3 ? rows_of(&n, &p, 1, i) : outputs(&n, T);
        for (int64_t j = 0; i < 3 && j < T * cols[i]; j++) {
            char *at = raw[i] + 1 + 2 * (j / cols[i] * step_cols + j % cols[i] * 2);
            cmoei_store_f32(at, CMOE_BF16, 1, &x[i][j], 1);
            cmoei_load_f32(&x[i][j], at, CMOE_BF16, 1, 1);
        }
    }
    tables t;
    net_open(&n, 1);
    tables_make(&t, &n, &p, 1);
    write_kv(&e, &n, &t, x[1], x[2]);
    attend(&e, &o, &n, &t, x[0], NULL, x[3]);
    net_close(&n), net_open(&n, 1);
    tables_make(&t, &n, &p, 1);
    int64_t host;
    UNIT_OK(cmoe_attention_bytes(e.ctx, &o, &n.kv, &t.batch, &host, NULL, &err));
    cmoe_arena arena = unit_arena(host);
    cmoe_view_mut vo = cmoe_view_mut_2d(raw[3] + 1, CMOE_BF16, T, cols[3]);
    memcpy(vo.strides, view[3].strides, sizeof vo.strides);
    UNIT_OK(cmoe_kv_write(e.stream, &n.kv, &t.batch, view[1], view[2], &err));
    UNIT_OK(
        cmoe_attention(e.stream, &o, view[0], &n.kv, &t.batch, cmoe_view_none(), vo, &arena, &err));
    for (int64_t j = 0; j < T * cols[3]; j++) {
        float got;
        const char *at = raw[3] + 1 + 2 * (j / cols[3] * vo.strides[0] + j % cols[3] * 2);
        cmoei_load_f32(&got, at, CMOE_BF16, 1, 1);
        assert_true(got == cmoei_round_bf16(x[3][j]));
    }
    for (int i = 0; i < 4; i++)
        free(x[i]), free(raw[i]);
    free(out), free(arena.base);
    net_close(&n);
    unit_close(&e);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static bool all_finite(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (x[i] - x[i] != 0) return false;
    }
    return true;
}

/* A NaN in q is its token's alone; in k or v it is of those who see it. */
static void nan_stays(void **state)
{
    (void)state;
    enum { T = 12, AT = 5, ROW = 2 * 16 };
    unit_env e = unit_open(1);
    net n = {.heads = 2, .kv_heads = 1, .key_dim = 8, .value_dim = 16, .format = CMOE_F32};
    n.columns = 1;
    const part p = {7, 0, T};
    const cmoe_attention_options o = options(&n, 0, 0);
    for (int what = 0; what < 3; what++) {
        for (int infinite = 0; infinite < 2; infinite++) {
            float *x[3], *out = outputs(&n, T);
            for (int i = 0; i < 3; i++)
                x[i] = rows_of(&n, &p, 1, i);
            for (int64_t d = 0; d < 8; d++)
                x[what][AT * (what == 2 ? 16 : what == 1 ? 8 : 16) + d] = infinite ? INFINITY : NAN;
            tables t;
            net_open(&n, 1);
            tables_make(&t, &n, &p, 1);
            write_kv(&e, &n, &t, x[1], x[2]);
            attend(&e, &o, &n, &t, x[0], NULL, out);
            assert_true(all_finite(out, AT * ROW));
            assert_false(all_finite(out + AT * ROW, ROW));
            for (int64_t i = AT + 1; what == 0 && i < T; i++)
                assert_true(all_finite(out + i * ROW, ROW));
            for (int i = 0; i < 3; i++)
                free(x[i]);
            free(out);
            net_close(&n);
        }
    }
    unit_close(&e);
}

/* Where things lie, rounding half to even, and not one byte more. */
static void layout(void **state)
{
    (void)state;
    enum { H = 2, KD = 3, VD = 5, PAGE_BYTES = H * (KD + VD) * PAGE * 2 };
    unit_env e = unit_open(2);
    net n = {.heads = H, .kv_heads = H, .key_dim = KD, .value_dim = VD, .format = CMOE_BF16};
    n.columns = 2;
    int64_t bytes;
    net_open(&n, 1);
    UNIT_OK(cmoe_kv_page_bytes(&n.kv, &bytes, &err));
    assert_int_equal(bytes, PAGE_BYTES);
    const part p = {8, 62, 4};
    tables t;
    tables_make(&t, &n, &p, 1);
    float *k = rows_of(&n, &p, 1, 1), *v = rows_of(&n, &p, 1, 2);
    k[0] = 1 + 0x1p-8f, v[0] = 1 + 0x3p-8f; /* ties: to 1 and to 1 + 2^-6 */
    write_kv(&e, &n, &t, k, v);
    int64_t touched = 0;
    for (int64_t i = 0; i < n.kv.pages * n.kv.page_stride; i++)
        touched += ((unsigned char *)n.kv.base)[i] != 0xff;
    for (int64_t i = 0; i < 4; i++) {
        const int64_t slot = (62 + i) % PAGE, page = n.pages[(62 + i) / PAGE];
        const char *at = (char *)n.kv.base + page * n.kv.page_stride;
        for (int64_t h = 0; h < H; h++) {
            for (int64_t d = 0; d < KD; d++, touched -= 2) {
                float x;
                cmoei_load_f32(&x, at + 2 * ((h * KD + d) * PAGE + slot), CMOE_BF16, 1, 1);
                assert_true(x == cmoei_round_bf16(k[(i * H + h) * KD + d]));
            }
            for (int64_t d = 0; d < VD; d++, touched -= 2) {
                float x;
                const int64_t to = H * KD * PAGE + (h * PAGE + slot) * VD + d;
                cmoei_load_f32(&x, at + 2 * to, CMOE_BF16, 1, 1);
                assert_true(x == cmoei_round_bf16(v[(i * H + h) * VD + d]));
            }
        }
    }
    assert_true(cmoei_round_bf16(k[0]) == 1 && cmoei_round_bf16(v[0]) == 1 + 0x1p-6f);
    assert_true(touched <= 0 && touched >= -8); /* a written byte may be 0xff */
    free(k), free(v);
    net_close(&n);
    unit_close(&e);
}

/* Scratch does not grow with the prompt; no tokens need none; a cache need not be there to ask. */
static void scratch(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net n = {.heads = 32, .kv_heads = 4, .key_dim = 128, .value_dim = 128, .format = CMOE_BF16};
    cmoe_attention_options o = options(&n, 0, 0);
    const cmoe_kv kv = {
        .size = sizeof kv, .heads = 4, .key_dim = 128, .value_dim = 128, .format = CMOE_BF16};
    tables t;
    n.columns = 100000;
    int64_t small, large, none, decode;
    tables_make(&t, &n, &(part){0, 0, 1}, 1);
    UNIT_OK(cmoe_attention_bytes(e.ctx, &o, &kv, &t.batch, &decode, NULL, &err));
    tables_make(&t, &n, &(part){0, 0, 1000}, 1);
    UNIT_OK(cmoe_attention_bytes(e.ctx, &o, &kv, &t.batch, &small, NULL, &err));
    tables_make(&t, &n, &(part){0, 0, 100000}, 1);
    UNIT_OK(cmoe_attention_bytes(e.ctx, &o, &kv, &t.batch, &large, NULL, &err));
    tables_make(&t, &n, &(part){0, 77, 0}, 1);
    UNIT_OK(cmoe_attention_bytes(e.ctx, &o, &kv, &t.batch, &none, NULL, &err));
    assert_true(none <= 64 && decode < 64 << 10 && small == large && large < 4 << 20);
    const cmoe_view q = cmoe_view_2d(NULL, CMOE_F32, 0, 32 * 128);
    const cmoe_view_mut out = cmoe_view_mut_2d(NULL, CMOE_F32, 0, 32 * 128);
    const cmoe_view k = cmoe_view_2d(NULL, CMOE_F32, 0, 4 * 128);
    UNIT_OK(cmoe_attention(e.stream, &o, q, &kv, &t.batch, cmoe_view_none(), out, NULL, &err));
    UNIT_OK(cmoe_kv_write(e.stream, &kv, &t.batch, k, k, &err));
    const cmoe_batch nobody = {.size = sizeof nobody};
    UNIT_OK(cmoe_attention(e.stream, &o, q, &kv, &nobody, cmoe_view_none(), out, NULL, &err));
    UNIT_OK(cmoe_kv_write(e.stream, &kv, &nobody, k, k, &err));
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sees),           cmocka_unit_test(sees_far), cmocka_unit_test(over_edges),
        cmocka_unit_test(scale_and_sink), cmocka_unit_test(chunks),   cmocka_unit_test(batches),
        cmocka_unit_test(threads),        cmocka_unit_test(strides),  cmocka_unit_test(nan_stays),
        cmocka_unit_test(layout),         cmocka_unit_test(scratch),
    };
    return UNIT_RUN("unit_attention", tests);
}
