/* SPDX-License-Identifier: MIT
 *
 * align.c - groups and every table form against a search by hand, their edge cases, the same bytes
 * at any number of threads, and every error text.
 */
#include "unit.h"

/* ---- ids of every kind ----------------------------------------------------------------------- */

typedef struct ids {
    int64_t tokens, topk;
    int64_t *value; /* [T, K] */
    char *block;
    cmoe_view view;
} ids;

/* Strides 1: contiguous.  `odd` puts the first id on an odd address. */
static ids ids_from(const int64_t *value, int64_t tokens, int64_t topk, int32_t dtype,
                    int64_t spread, int odd)
{
    ids s = {.tokens = tokens, .topk = topk};
    const int64_t n = tokens * topk, bytes = cmoe_dtype_bytes(dtype);
    s.value = malloc((size_t)n * sizeof *s.value + 1);
    s.block = calloc(1, (size_t)(n * spread * bytes) + 8);
    s.view = cmoe_view_2d(s.block + odd, dtype, tokens, topk);
    s.view.strides[0] *= spread;
    s.view.strides[1] *= spread;
    for (int64_t i = 0; i < n; i++) {
        const int32_t narrow = (int32_t)value[i];
        s.value[i] = value[i];
        memcpy(s.block + odd + i * spread * bytes, bytes == 4 ? (const void *)&narrow : &value[i],
               (size_t)bytes);
    }
    return s;
}

/* Random in [low, high]. */
static ids ids_random(uint64_t seed, int64_t tokens, int64_t topk, int64_t low, int64_t high,
                      int32_t dtype, int64_t spread, int odd)
{
    int64_t *value = malloc((size_t)(tokens * topk) * sizeof *value + 1);
    for (int64_t i = 0; i < tokens * topk; i++)
        value[i] =
            low + (int64_t)(cmoe_random_u64(seed, (uint64_t)i, 0) % (uint64_t)(high - low + 1));
    const ids s = ids_from(value, tokens, topk, dtype, spread, odd);
    free(value);
    return s;
}

static void ids_free(ids *s)
{
    free(s->value);
    free(s->block);
}

/* ---- groups ---------------------------------------------------------------------------------- */

static cmoe_align_options options(int64_t experts, int64_t first_expert, int64_t block)
{
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = experts;
    o.first_expert = first_expert;
    o.block = block;
    return o;
}

/* Looks for every expert's slots in turn. */
static void check_groups(const cmoe_groups *g, const ids *s, const cmoe_align_options *o)
{
    const int64_t slots = s->tokens * s->topk;
    int64_t row = 0;
    assert_int_equal(g->tokens, s->tokens);
    assert_int_equal(g->topk, s->topk);
    assert_int_equal(g->experts, o->experts);
    for (int64_t e = 0; e < o->experts; e++) {
        assert_int_equal(g->first[e], row);
        for (int64_t i = 0; i < slots; i++) {
            if (s->value[i] != o->first_expert + e) continue;
            assert_int_equal(g->slots[row], i);
            assert_int_equal(g->row_of[i], row);
            row++;
        }
        for (; row % o->block; row++)
            assert_int_equal(g->slots[row], -1);
    }
    assert_int_equal(g->first[o->experts], row);
    assert_true(row <= g->capacity);
    for (; row < g->capacity; row++)
        assert_int_equal(g->slots[row], -1);
    for (int64_t i = 0; i < slots; i++) {
        if (s->value[i] < o->first_expert || s->value[i] >= o->first_expert + o->experts)
            assert_int_equal(g->row_of[i], -1);
    }
}

static void align_and_check(unit_env *e, const ids *s, const cmoe_align_options *o)
{
    int64_t host = -1, device = -1;
    UNIT_OK(cmoe_align_bytes(o, s->tokens, s->topk, &host, &device, &err));
    assert_int_equal(device, 0);
    cmoe_arena arena = unit_arena(host);
    cmoe_groups g;
    UNIT_OK(cmoe_align(e->stream, o, s->view, &g, &arena, &err));
    assert_true(arena.used <= host);
    check_groups(&g, s, o);
    free(arena.base);
}

static void groups_of_all_kinds(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    const int64_t shapes[][3] = {{1, 8, 128}, {7, 2, 5},   {33, 3, 1},  {64, 1, 64},
                                 {100, 6, 3}, {5, 40, 16}, {3, 2, 9000}};
    for (uint64_t i = 0; i < 7; i++) {
        for (int kind = 0; kind < 16; kind++) {
            const int64_t experts = shapes[i][2];
            const cmoe_align_options o =
                options(experts, kind & 1 ? 3 : 0, (const int64_t[]){1, 4, 16, 7}[kind >> 2]);
            ids s = ids_random(i * 16 + (uint64_t)kind, shapes[i][0], shapes[i][1], -2, experts + 4,
                               kind & 2 ? CMOE_I64 : CMOE_I32, 1 + kind % 3, kind & 1);
            align_and_check(&e, &s, &o);
            ids_free(&s);
        }
    }
    unit_close(&e);
}

static void named_cases(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const cmoe_align_options five = options(5, 0, 4);
    const struct {
        int64_t tokens, topk, value[12];
    } cases[] = {
        {6, 2, {4, 0, 3, 4, 4, 1, 0, 4, 2, 4, 1, 3}}, /* E = 5 with block 4 */
        {6, 2, {3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3}}, /* one expert owns all, repeated in a token */
        {4, 2, {0, 4, 4, 0, 0, 4, 4, 0}},             /* empty experts between */
        {4, 3, {-1, 5, 2, -1, -1, -1, 2, 1000, -7, 2, 2, 0}}, /* nobody's and another rank's */
        {0, 2, {0}},
        {3, 0, {0}},
    };
    for (int i = 0; i < 6; i++) {
        ids s = ids_from(cases[i].value, cases[i].tokens, cases[i].topk, CMOE_I32, 1, 0);
        align_and_check(&e, &s, &five);
        ids_free(&s);
    }
    /* int64 ids at the ends of their range must not wrap around into an expert. */
    const int64_t far[] = {INT64_MIN, INT64_MAX, INT64_MIN + 3, 4294967296, -4294967294, 2};
    const cmoe_align_options two = options(2, 2, 1);
    ids s = ids_from(far, 3, 2, CMOE_I64, 1, 1);
    align_and_check(&e, &s, &two);
    ids_free(&s);
    /* Any number of tokens without slots, at once. */
    cmoe_groups g;
    cmoe_arena arena = unit_arena(4096);
    UNIT_OK(
        cmoe_align(e.stream, &five, cmoe_view_2d(NULL, CMOE_I32, INT64_MAX, 0), &g, &arena, &err));
    assert_int_equal(g.first[5], 0);
    free(arena.base);
    unit_close(&e);
}

static void negative_strides(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int32_t value[] = {2, 0, 1, 1, 2, 2};
    const int64_t backwards[] = {2, 2, 1, 1, 0, 2};
    ids s = ids_from(backwards, 3, 2, CMOE_I32, 1, 0);
    s.view = cmoe_view_2d(value + 5, CMOE_I32, 3, 2);
    s.view.strides[0] = -2;
    s.view.strides[1] = -1;
    const cmoe_align_options o = options(3, 0, 2);
    align_and_check(&e, &s, &o);
    ids_free(&s);
    unit_close(&e);
}

/* An arena that begins anywhere, is used by others before and after, and is exactly large enough.
 */
static void arena_is_given_back(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const cmoe_align_options o = options(300, 0, 16);
    ids s = ids_random(1, 50, 4, 0, 299, CMOE_I32, 1, 0);
    int64_t host;
    UNIT_OK(cmoe_align_bytes(&o, 50, 4, &host, NULL, &err));
    char *base = malloc((size_t)host + 13);
    cmoe_arena arena = cmoe_arena_make(base + 3, host + 10);
    arena.used = 10;
    cmoe_groups g;
    UNIT_OK(cmoe_align(e.stream, &o, s.view, &g, &arena, &err));
    check_groups(&g, &s, &o);
    const int64_t results = 301 * 8 + 50 * 4 * 4 + g.capacity * 4;
    assert_true(arena.used - 10 <= results + 4 * 64); /* the counters are gone */
    memset((char *)arena.base + arena.used, 0x5a, (size_t)(arena.bytes - arena.used));
    check_groups(&g, &s, &o);
    arena = cmoe_arena_make(base, host / 2);
    memset(base, 0x5a, (size_t)host);
    UNIT_FAILS(cmoe_align(e.stream, &o, s.view, &g, &arena, &err), CMOE_ERR_MEMORY,
               "(ask cmoe_align_bytes)");
    for (int64_t i = 0; i < host; i++)
        assert_int_equal(base[i], 0x5a);
    assert_int_equal(arena.used, 0);
    UNIT_FAILS(cmoe_align(e.stream, &o, s.view, &g, NULL, &err), CMOE_ERR_MEMORY, "arena of 0");
    free(base);
    ids_free(&s);
    unit_close(&e);
}

/* ---- threads --------------------------------------------------------------------------------- */

enum { BIG_T = 30001, BIG_K = 6 };

/* All forms of one big batch, one behind the other. */
static unsigned char *all_forms(int32_t threads, const ids *s, int64_t experts, size_t *bytes)
{
    unit_env e = unit_open(threads);
    const int64_t slots = BIG_T * BIG_K, padded = slots + experts * 8;
    const cmoe_align_options o = options(experts, 1, 8);
    int64_t host, length;
    UNIT_OK(cmoe_align_bytes(&o, BIG_T, BIG_K, &host, NULL, &err));
    cmoe_arena arena = unit_arena(host);
    cmoe_groups g;
    UNIT_OK(cmoe_align(e.stream, &o, s->view, &g, &arena, &err));
    const size_t part[] = {(size_t)(experts + 1) * 8, (size_t)slots * 4,
                           (size_t)g.capacity * 4,    (size_t)padded * 4,
                           (size_t)padded / 8 * 4,    (size_t)slots * 4,
                           (size_t)slots * 4,         (size_t)(experts + 8) * 8};
    *bytes = 0;
    for (int i = 0; i < 8; i++)
        *bytes += part[i];
    unsigned char *all = malloc(*bytes), *p = all;
    memcpy(p, g.first, part[0]);
    memcpy(p += part[0], g.row_of, part[1]);
    memcpy(p += part[1], g.slots, part[2]);
    p += part[2];
    UNIT_OK(cmoe_align_padded(e.stream, s->view, experts, 1, 8,
                              cmoe_view_mut_1d(p, CMOE_I32, padded),
                              cmoe_view_mut_1d(p + part[3], CMOE_I32, padded / 8), &length, &err));
    assert_int_equal(length, padded);
    p += part[3] + part[4];
    UNIT_OK(cmoe_align_sort(e.stream, s->view, cmoe_view_mut_1d(p, CMOE_I32, slots),
                            cmoe_view_mut_1d(p + part[5], CMOE_I32, slots),
                            cmoe_view_mut_1d(p + part[5] + part[6], CMOE_I64, experts + 8), &err));
    free(arena.base);
    unit_close(&e);
    return all;
}

static void same_at_any_threads(void **state)
{
    (void)state;
    const int64_t experts[] = {7, 128, 3000};
    for (int i = 0; i < 3; i++) {
        ids s = ids_random(99, BIG_T, BIG_K, 0, experts[i] + 7, CMOE_I32, 1, 0);
        size_t bytes = 0, other = 0;
        unsigned char *one = all_forms(1, &s, experts[i], &bytes);
        const int32_t threads[] = {2, 3, 8};
        for (int t = 0; t < 3; t++) {
            unsigned char *many = all_forms(threads[t], &s, experts[i], &other);
            assert_int_equal(other, bytes);
            assert_memory_equal(one, many, bytes);
            free(many);
        }
        free(one);
        unit_env e = unit_open(8);
        const cmoe_align_options o = options(experts[i], 1, 1);
        if (i == 0) align_and_check(&e, &s, &o);
        unit_close(&e);
        ids_free(&s);
    }
}

/* ---- table forms ----------------------------------------------------------------------------- */

/* What E experts, T*K slots and their one-hot look like, checked against the ids. */
static void one_hot_tables(void **state)
{
    (void)state;
    enum { T = 700, K = 3, S = T * K, E = 45 };
    const int32_t threads[] = {1, 3};
    for (int i = 0; i < 2; i++) {
        unit_env e = unit_open(threads[i]);
        ids s = ids_random(5, T, K, -1, E, CMOE_I64, 1, 1);
        int32_t *hot = malloc(E * S * 4), *index = malloc(E * S * 4), counts[E], counts2[E];
        float *w = malloc(S * 4), *hot_w = malloc(E * S * 4), *index_w = malloc(E * S * 4);
        memset(hot, 0x5a, E * S * 4);
        memset(hot_w, 0x5a, E * S * 4);
        memset(index, 0x5a, E * S * 4);
        memset(index_w, 0x5a, E * S * 4);
        for (int j = 0; j < S; j++)
            w[j] = cmoe_random_normal(3, (uint64_t)j, 0);
        UNIT_OK(cmoe_align_one_hot(e.stream, s.view, cmoe_view_mut_2d(hot, CMOE_I32, E, S), &err));
        for (int j = 0; j < E * S; j++)
            assert_int_equal(hot[j], s.value[j % S] == j / S);
        UNIT_OK(cmoe_align_compact(
            e.stream, cmoe_view_mut_2d(hot, CMOE_I32, E, S), cmoe_view_2d(w, CMOE_F32, T, K),
            cmoe_view_mut_2d(hot_w, CMOE_F32, E, S), cmoe_view_mut_1d(counts, CMOE_I32, E), &err));
        UNIT_OK(cmoe_align_tables(e.stream, s.view, cmoe_view_2d(w, CMOE_F32, T, K),
                                  cmoe_view_mut_2d(index, CMOE_I32, E, S),
                                  cmoe_view_mut_2d(index_w, CMOE_F32, E, S),
                                  cmoe_view_mut_1d(counts2, CMOE_I32, E), &err));
        for (int x = 0; x < E; x++) {
            int n = 0;
            for (int j = 0; j < S; j++) {
                if (s.value[j] != x) continue;
                assert_int_equal(hot[x * S + n], j);
                assert_int_equal(index[x * S + n], j);
                assert_memory_equal(hot_w + x * S + n, w + j, 4);
                assert_memory_equal(index_w + x * S + n, w + j, 4);
                n++;
            }
            assert_int_equal(counts[x], n);
            assert_int_equal(counts2[x], n);
            for (; n < S; n++) { /* compact keeps what stood there, tables write nothing */
                assert_int_equal(hot[x * S + n], s.value[n] == x);
                assert_int_equal(index[x * S + n], 0x5a5a5a5a);
            }
        }
        free(hot), free(index), free(w), free(hot_w), free(index_w);
        ids_free(&s);
        unit_close(&e);
    }
}

/* Semantics C1: [0,1,1,0] and [0,0,0,1] become [1,2,1,0] and [3,0,0,1]; here with a gap between
 * columns and on odd addresses too. */
static void compact_example(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const int32_t hot[8] = {0, 1, 1, 0, 0, 0, 0, 1}, want[8] = {1, 2, 1, 0, 3, 0, 0, 1};
    const float w[4] = {.5f, .25f, 2, 8}, want_w[8] = {.25f, 2, -1, -1, 8, -1, -1, -1};
    for (int spread = 1; spread < 4; spread++) {
        char info[8 * 3 * 4 + 1] = {0}, weights[8 * 3 * 4 + 1] = {0};
        const float none = -1;
        for (int i = 0; i < 8; i++) {
            memcpy(info + 1 + i * spread * 4, hot + i, 4);
            memcpy(weights + 1 + i * spread * 4, &none, 4);
        }
        int32_t counts[2];
        cmoe_view_mut vi = cmoe_view_mut_2d(info + 1, CMOE_I32, 2, 4);
        cmoe_view_mut vw = cmoe_view_mut_2d(weights + 1, CMOE_F32, 2, 4);
        vi.strides[0] = vw.strides[0] = 4 * spread;
        vi.strides[1] = vw.strides[1] = spread;
        UNIT_OK(cmoe_align_compact(e.stream, vi, cmoe_view_2d(w, CMOE_F32, 2, 2), vw,
                                   cmoe_view_mut_1d(counts, CMOE_I32, 2), &err));
        for (int i = 0; i < 8; i++) {
            assert_memory_equal(info + 1 + i * spread * 4, want + i, 4);
            assert_memory_equal(weights + 1 + i * spread * 4, want_w + i, 4);
        }
        assert_int_equal(counts[0], 2);
        assert_int_equal(counts[1], 1);
    }
    unit_close(&e);
}

/* Semantics C3. */
static void blocks_example(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const int32_t counts[4] = {8, 0, 60, 16};
    const int32_t want[11][3] = {{0, 0, 0},    {2, 0, 8},    {2, 1, 24},   {2, 2, 40},
                                 {2, 3, 56},   {3, 0, 68},   {-1, -1, -1}, {-1, -1, -1},
                                 {-1, -1, -1}, {-1, -1, -1}, {-1, -1, -1}};
    int32_t got[11][3];
    const cmoe_view c = cmoe_view_1d(counts, CMOE_I32, 4);
    UNIT_OK(cmoe_align_blocks(e.stream, c, 100, 16, cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err));
    assert_memory_equal(got, want, sizeof want);
    UNIT_FAILS(cmoe_align_blocks(e.stream, c, 100, 16, cmoe_view_mut_2d(got, CMOE_I32, 9, 3), &err),
               CMOE_ERR_SHAPE, "blocks: dims[0] = 9, want at least 10");
    UNIT_FAILS(cmoe_align_blocks(e.stream, c, 83, 16, cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err),
               CMOE_ERR_RANGE, "counts[0..3] sum to 84, want at most 83 (slots)");
    UNIT_FAILS(cmoe_align_blocks(e.stream, c, -1, 16, cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err),
               CMOE_ERR_RANGE, "slots = -1");
    UNIT_FAILS(cmoe_align_blocks(e.stream, c, 100, 0, cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err),
               CMOE_ERR_RANGE, "block = 0");
    UNIT_FAILS(
        cmoe_align_blocks(e.stream, c, 100, 16, cmoe_view_mut_2d(got, CMOE_I32, 11, 2), &err),
        CMOE_ERR_SHAPE, "blocks: dims[1] = 2, want 3");
    const int32_t bad[2] = {3, -4};
    UNIT_FAILS(cmoe_align_blocks(e.stream, cmoe_view_1d(bad, CMOE_I32, 2), 100, 16,
                                 cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err),
               CMOE_ERR_RANGE, "counts[1] = -4, want >= 0");
    UNIT_FAILS(cmoe_align_blocks(e.stream, cmoe_view_1d(got, CMOE_I32, 4), 100, 16,
                                 cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err),
               CMOE_ERR_ARG, "blocks overlaps counts");
    UNIT_FAILS(cmoe_align_blocks(e.stream, cmoe_view_1d(NULL, CMOE_I32, 0), 0, 1,
                                 cmoe_view_mut_2d(got, CMOE_I32, 11, 3), &err),
               CMOE_ERR_SHAPE, "counts: 0 experts, want 1 to 2147483647");
    assert_memory_equal(got, want, sizeof want);
    unit_close(&e);
}

static void padded_lists(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    const int64_t shapes[][5] = {/* T, K, E, first, block */
                                 {9, 2, 5, 0, 4},     {1, 8, 64, 0, 16}, {40, 3, 7, 2, 1},
                                 {30, 2, 2500, 0, 3}, {0, 4, 3, 0, 16},  {6, 4, 1, 0, 16}};
    for (uint64_t i = 0; i < 6; i++) {
        const int64_t T = shapes[i][0], K = shapes[i][1], E = shapes[i][2], first = shapes[i][3];
        const int64_t b = shapes[i][4], length = T * K + E * b, n = length + 3;
        ids s = ids_random(i, T, K, -1, E + 3, i & 1 ? CMOE_I64 : CMOE_I32, 2, (int)i & 1);
        int32_t *sorted = malloc((size_t)n * 4), *expert_of = malloc((size_t)n * 4);
        int64_t padded = -1, row = 0;
        UNIT_OK(cmoe_align_padded(e.stream, s.view, E, first, b,
                                  cmoe_view_mut_1d(sorted, CMOE_I32, n),
                                  cmoe_view_mut_1d(expert_of, CMOE_I32, n), &padded, &err));
        assert_int_equal(padded, length);
        for (int64_t x = 0; x < E; x++) {
            const int64_t begin = row;
            for (int64_t j = 0; j < T * K; j++) {
                if (s.value[j] == first + x) assert_int_equal(sorted[row++], j);
            }
            for (; row % b; row++)
                assert_int_equal(sorted[row], -1);
            for (int64_t r = begin; r < row; r += b)
                assert_int_equal(expert_of[r / b], x);
        }
        for (int64_t r = row / b; r < n; r++)
            assert_int_equal(expert_of[r], -1);
        for (; row < n; row++)
            assert_int_equal(sorted[row], -1);
        free(sorted), free(expert_of);
        ids_free(&s);
    }
    unit_close(&e);
}

static void sorted_lists(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    const int64_t shapes[][3] = {{9, 2, 5}, {20, 8, 64}, {30, 2, 2500}, {0, 4, 3}, {3, 0, 2}};
    for (uint64_t i = 0; i < 10; i++) {
        const int64_t T = shapes[i / 2][0], K = shapes[i / 2][1], E = shapes[i / 2][2], n = T * K;
        const int32_t dtype = i & 1 ? CMOE_I64 : CMOE_I32;
        ids s = ids_random(i, T, K, 0, E - 1, dtype, 1, (int)i & 1);
        char *experts = malloc((size_t)n * 8 + 1), *slots = malloc((size_t)n * 8 + 1);
        char *ends = malloc((size_t)E * 8 + 1);
        UNIT_OK(cmoe_align_sort(e.stream, s.view, cmoe_view_mut_1d(experts + 1, dtype, n),
                                cmoe_view_mut_1d(slots + 1, dtype, n),
                                cmoe_view_mut_1d(ends + 1, CMOE_I64, E), &err));
        int64_t row = 0;
        for (int64_t x = 0; x < E; x++) {
            for (int64_t j = 0; j < n; j++) {
                if (s.value[j] != x) continue;
                int32_t narrow[2];
                int64_t wide[2];
                memcpy(narrow, experts + 1 + row * 4, 4),
                    memcpy(narrow + 1, slots + 1 + row * 4, 4);
                if (dtype == CMOE_I64)
                    memcpy(wide, experts + 1 + row * 8, 8),
                        memcpy(wide + 1, slots + 1 + row * 8, 8);
                assert_int_equal(dtype == CMOE_I64 ? wide[0] : narrow[0], x);
                assert_int_equal(dtype == CMOE_I64 ? wide[1] : narrow[1], j);
                row++;
            }
            int64_t end;
            memcpy(&end, ends + 1 + x * 8, 8);
            assert_int_equal(end, row);
        }
        free(experts), free(slots), free(ends);
        ids_free(&s);
    }
    unit_close(&e);
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void groups_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int32_t value[6] = {0, 1, 2, 3, 64, -1};
    const cmoe_view v = cmoe_view_2d(value, CMOE_I32, 3, 2);
    char memory[4096];
    cmoe_arena a = cmoe_arena_make(memory, sizeof memory);
    cmoe_groups g;
    cmoe_align_options o = options(64, 0, 1), bad = o;
    memset(memory, 0x5a, sizeof memory);

    UNIT_FAILS(cmoe_align(NULL, &o, v, &g, &a, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_align(e.stream, &o, v, NULL, &a, &err), CMOE_ERR_ARG, "out is NULL");
    UNIT_FAILS(cmoe_align(e.stream, NULL, v, &g, &a, &err), CMOE_ERR_RANGE,
               "experts = 0, want 1 to 2147483647");
    bad.experts = -1;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE, "experts = -1");
    bad = o, bad.first_expert = -3;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE, "first_expert = -3");
    bad.first_expert = INT64_MAX;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE, "first_expert = 9223");
    bad = o, bad.block = 0;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE, "block = 0, want >= 1");
    bad.block = 1 << 29;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_SHAPE,
               "may need more than 2147483647 padded rows");
    bad = o, bad.validate = 2;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE, "validate = 2");
    bad = o, bad.total_experts = 63;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE,
               "total_experts = 63, want 0 or >= 64");
    bad = o, bad.validate = 1;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_RANGE,
               "ids[2, 0] = 64, want 0 <= id < 64 (total_experts), or -1");
    cmoe_view named = v;
    named.name = "topk_ids";
    value[4] = -2;
    UNIT_FAILS(cmoe_align(e.stream, &bad, named, &g, &a, &err), CMOE_ERR_RANGE,
               "topk_ids[2, 0] = -2");
    value[4] = 70;
    bad.total_experts = 80;
    UNIT_OK(cmoe_align(e.stream, &bad, v, &g, &a, &err));
    assert_int_equal(g.row_of[4], -1);
    a.used = 0;
    bad = o, bad.size = 3;
    UNIT_FAILS(cmoe_align(e.stream, &bad, v, &g, &a, &err), CMOE_ERR_ARG,
               "cmoe_align_options.size");

    UNIT_FAILS(cmoe_align(e.stream, &o, cmoe_view_1d(value, CMOE_I32, 6), &g, &a, &err),
               CMOE_ERR_SHAPE, "ids: rank 1, want 2 [tokens, topk]");
    UNIT_FAILS(cmoe_align(e.stream, &o, cmoe_view_2d(value, CMOE_F32, 3, 2), &g, &a, &err),
               CMOE_ERR_DTYPE, "ids: dtype f32 (1), want one of: i32 i64");
    UNIT_FAILS(cmoe_align(e.stream, &o, cmoe_view_2d(NULL, CMOE_I32, 3, 2), &g, &a, &err),
               CMOE_ERR_ARG, "ids: data is NULL");
    UNIT_FAILS(cmoe_align(e.stream, &o, cmoe_view_2d(value, CMOE_I32, -3, 2), &g, &a, &err),
               CMOE_ERR_SHAPE, "ids: dims[0] = -3");
    cmoe_view huge = cmoe_view_2d(value, CMOE_I32, 1 << 20, 1 << 12);
    huge.strides[0] = huge.strides[1] = 0;
    UNIT_FAILS(cmoe_align(e.stream, &o, huge, &g, &a, &err), CMOE_ERR_SHAPE,
               "want both >= 0 and tokens * topk <= 2147483647");
    int64_t host = 7;
    UNIT_FAILS(cmoe_align_bytes(&o, -1, 2, &host, NULL, &err), CMOE_ERR_SHAPE, "tokens = -1");
    UNIT_FAILS(cmoe_align_bytes(&o, INT64_MAX, 2, &host, NULL, &err), CMOE_ERR_SHAPE, "tokens = 9");
    assert_int_equal(host, 7);
    assert_int_equal(a.used, 0);
    unit_close(&e);
}

static void table_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int32_t value[4] = {0, 1, 2, 5}, counts[3], index[12], list[64];
    float w[4] = {0}, weights[12];
    int64_t ends[6], padded = -7;
    memset(index, 0x5a, sizeof index);
    memset(list, 0x5a, sizeof list);
    const cmoe_view v = cmoe_view_2d(value, CMOE_I32, 2, 2), vw = cmoe_view_2d(w, CMOE_F32, 2, 2);
    const cmoe_view_mut vi = cmoe_view_mut_2d(index, CMOE_I32, 3, 4);
    const cmoe_view_mut viw = cmoe_view_mut_2d(weights, CMOE_F32, 3, 4);
    const cmoe_view_mut vc = cmoe_view_mut_1d(counts, CMOE_I32, 3);
    const cmoe_view_mut l1 = cmoe_view_mut_1d(list, CMOE_I32, 4);
    const cmoe_view_mut l2 = cmoe_view_mut_1d(list + 32, CMOE_I32, 4);

    UNIT_FAILS(cmoe_align_one_hot(e.stream, v, cmoe_view_mut_2d(index, CMOE_I32, 3, 5), &err),
               CMOE_ERR_SHAPE, "one_hot: dims[1] = 5, want 4 [experts, tokens * topk = 4]");
    UNIT_FAILS(cmoe_align_one_hot(e.stream, v, cmoe_view_mut_2d(index, CMOE_I64, 3, 4), &err),
               CMOE_ERR_DTYPE, "one_hot: dtype i64");
    UNIT_FAILS(cmoe_align_one_hot(e.stream, v, cmoe_view_mut_2d(NULL, CMOE_I32, 0, 4), &err),
               CMOE_ERR_SHAPE, "one_hot: 0 experts");
    UNIT_FAILS(cmoe_align_one_hot(e.stream, v, cmoe_view_mut_2d(value, CMOE_I32, 1, 4), &err),
               CMOE_ERR_ARG, "one_hot overlaps ids");
    UNIT_FAILS(cmoe_align_one_hot(NULL, v, vi, &err), CMOE_ERR_ARG, "stream");

    UNIT_FAILS(cmoe_align_compact(e.stream, vi, vw, viw, vc, &err), CMOE_ERR_RANGE,
               "info[0, 0] = 1515870810, want 0 or 1");
    UNIT_FAILS(cmoe_align_compact(e.stream, vi, cmoe_view_2d(w, CMOE_BF16, 2, 2), viw, vc, &err),
               CMOE_ERR_DTYPE, "weights: dtype bf16");
    UNIT_FAILS(cmoe_align_compact(e.stream, vi, cmoe_view_2d(w, CMOE_F32, 2, 1), viw, vc, &err),
               CMOE_ERR_SHAPE, "info: dims[1] = 4, want 2");
    UNIT_FAILS(
        cmoe_align_compact(e.stream, vi, vw, cmoe_view_mut_2d(weights, CMOE_F32, 2, 4), vc, &err),
        CMOE_ERR_SHAPE, "info_weights: dims[0] = 2, want 3");
    UNIT_FAILS(
        cmoe_align_compact(e.stream, vi, vw, cmoe_view_mut_2d(index, CMOE_F32, 3, 4), vc, &err),
        CMOE_ERR_ARG, "info overlaps info_weights");
    UNIT_FAILS(
        cmoe_align_compact(e.stream, vi, vw, viw, cmoe_view_mut_1d(counts, CMOE_I32, 2), &err),
        CMOE_ERR_SHAPE, "counts: dims[0] = 2, want 3");

    UNIT_FAILS(cmoe_align_tables(e.stream, v, cmoe_view_2d(w, CMOE_F32, 2, 1), vi, viw, vc, &err),
               CMOE_ERR_SHAPE, "weights: dims[1] = 1, want 2");
    UNIT_FAILS(
        cmoe_align_tables(e.stream, v, vw, cmoe_view_mut_2d(index, CMOE_I32, 3, 3), viw, vc, &err),
        CMOE_ERR_SHAPE, "index: dims[1] = 3, want 4");
    cmoe_view_mut shared = vi;
    shared.strides[0] = 0;
    UNIT_FAILS(cmoe_align_tables(e.stream, v, vw, shared, viw, vc, &err), CMOE_ERR_SHAPE,
               "index: strides are negative or make elements share memory");
    UNIT_FAILS(
        cmoe_align_tables(e.stream, v, vw, vi, viw, cmoe_view_mut_1d(index + 3, CMOE_I32, 3), &err),
        CMOE_ERR_ARG, "index overlaps counts");
    UNIT_FAILS(
        cmoe_align_tables(e.stream, v, cmoe_view_2d(weights, CMOE_F32, 2, 2), vi, viw, vc, &err),
        CMOE_ERR_ARG, "index_weights overlaps weights");

    UNIT_FAILS(cmoe_align_padded(e.stream, v, 0, 0, 4, l1, l2, &padded, &err), CMOE_ERR_RANGE,
               "experts = 0");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, -1, 4, l1, l2, &padded, &err), CMOE_ERR_RANGE,
               "first_expert = -1");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, 0, 0, l1, l2, &padded, &err), CMOE_ERR_RANGE,
               "block = 0");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, 0, 1 << 30, l1, l2, &padded, &err), CMOE_ERR_RANGE,
               "tokens * topk + experts * block <= 2147483647");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, 0, 4, l1, l2, &padded, &err), CMOE_ERR_SHAPE,
               "sorted: dims[0] = 4, want at least 16");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, 0, 4, cmoe_view_mut_1d(list, CMOE_I32, 16),
                                 cmoe_view_mut_1d(list + 32, CMOE_I32, 3), &padded, &err),
               CMOE_ERR_SHAPE, "expert_of: dims[0] = 3, want at least 4");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, 0, 4, cmoe_view_mut_1d(list, CMOE_I32, 16), l2,
                                 NULL, &err),
               CMOE_ERR_ARG, "padded is NULL");
    UNIT_FAILS(cmoe_align_padded(e.stream, v, 3, 0, 4, cmoe_view_mut_1d(list, CMOE_I32, 40), l2,
                                 &padded, &err),
               CMOE_ERR_ARG, "sorted overlaps expert_of");

    UNIT_FAILS(cmoe_align_sort(e.stream, v, l1, l2, cmoe_view_mut_1d(ends, CMOE_I64, 5), &err),
               CMOE_ERR_RANGE, "ids[1, 1] = 5, want 0 <= id < 5 (experts)");
    UNIT_FAILS(cmoe_align_sort(e.stream, v, cmoe_view_mut_1d(list, CMOE_I64, 4), l2,
                               cmoe_view_mut_1d(ends, CMOE_I64, 6), &err),
               CMOE_ERR_DTYPE, "sorted_experts: dtype i64 (9), want one of: i32");
    UNIT_FAILS(cmoe_align_sort(e.stream, v, l1, cmoe_view_mut_1d(list + 32, CMOE_I32, 5),
                               cmoe_view_mut_1d(ends, CMOE_I64, 6), &err),
               CMOE_ERR_SHAPE, "sorted_slots: dims[0] = 5, want 4");
    UNIT_FAILS(cmoe_align_sort(e.stream, v, l1, l2, cmoe_view_mut_1d(ends, CMOE_I32, 6), &err),
               CMOE_ERR_DTYPE, "ends: dtype i32");
    UNIT_FAILS(cmoe_align_sort(e.stream, v, l1, l2, cmoe_view_mut_1d(NULL, CMOE_I64, 0), &err),
               CMOE_ERR_SHAPE, "ends: 0 experts");
    UNIT_FAILS(cmoe_align_sort(e.stream, v, l1, l1, cmoe_view_mut_1d(ends, CMOE_I64, 6), &err),
               CMOE_ERR_ARG, "sorted_experts overlaps sorted_slots");

    assert_int_equal(padded, -7);
    for (int i = 0; i < 12; i++)
        assert_int_equal(index[i], 0x5a5a5a5a);
    for (int i = 0; i < 64; i++)
        assert_int_equal(list[i], 0x5a5a5a5a);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_of_all_kinds), cmocka_unit_test(named_cases),
        cmocka_unit_test(negative_strides),    cmocka_unit_test(arena_is_given_back),
        cmocka_unit_test(same_at_any_threads), cmocka_unit_test(one_hot_tables),
        cmocka_unit_test(compact_example),     cmocka_unit_test(blocks_example),
        cmocka_unit_test(padded_lists),        cmocka_unit_test(sorted_lists),
        cmocka_unit_test(groups_errors),       cmocka_unit_test(table_errors),
    };
    return UNIT_RUN("unit_align", tests);
}
