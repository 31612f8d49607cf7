/* SPDX-License-Identifier: MIT
 *
 * attention_errors.c - every error text of cmoe/attention.h, and that cache and outputs are
 * untouched by a call that fails.
 */
#include <math.h>

#include "unit.h"

enum { H = 4, KV_H = 2, KD = 8, VD = 16, T = 70, PAGES = 6, COLUMNS = 3, BYTES = 2 << 16 };

/* A call that works, until a test spoils one thing of it. */
typedef struct call {
    unit_env env;
    cmoe_attention_options o;
    cmoe_kv kv;
    cmoe_batch batch;
    int64_t first[3], start[2];
    int32_t pages[2 * COLUMNS];
    cmoe_view q, k, v, sinks;
    cmoe_view_mut out;
    cmoe_arena arena;
    unsigned char *memory; /* of the cache and of out */
    int64_t memory_bytes;
} call;

/* 69 tokens of sequence 0 from position 60 on, one of sequence 1. */
static call call_open(void)
{
    static const float rows[T * H * VD];
    static const float sinks[H];
    call c = {.env = unit_open(1), .first = {0, 69, 70}, .start = {60, 0}, .pages = {5, 1, 0, 3}};
    cmoe_attention_options_default(&c.o, sizeof c.o);
    c.o.heads = H;
    c.memory_bytes = PAGES * KV_H * (KD + VD) * CMOE_KV_PAGE * 4 + T * H * VD * 4;
    c.memory = aligned_alloc(64, (size_t)(c.memory_bytes + 63) / 64 * 64);
    memset(c.memory, 0x5a, (size_t)c.memory_bytes);
    c.kv = (cmoe_kv){.size = sizeof c.kv,
                     .heads = KV_H,
                     .key_dim = KD,
                     .value_dim = VD,
                     .format = CMOE_F32,
                     .base = c.memory,
                     .pages = PAGES};
    c.batch = (cmoe_batch){.size = sizeof c.batch, .sequences = 2, .page_columns = COLUMNS};
    c.q = cmoe_view_2d(rows, CMOE_F32, T, H * KD);
    c.k = cmoe_view_2d(rows, CMOE_F32, T, KV_H * KD);
    c.v = cmoe_view_2d(rows, CMOE_F32, T, KV_H * VD);
    c.sinks = cmoe_view_1d(sinks, CMOE_F32, H);
    c.out = cmoe_view_mut_2d(c.memory + c.memory_bytes - T * H * VD * 4, CMOE_F32, T, H * VD);
    c.arena = unit_arena(BYTES);
    return c;
}

/* Tables of the struct itself, which may have been copied. */
static void bind(call *c)
{
    c->batch.first = c->first;
    c->batch.start = c->start;
    c->batch.pages = c->pages;
}

static void untouched(call *c)
{
    for (int64_t i = 0; i < c->memory_bytes; i++)
        assert_int_equal(c->memory[i], 0x5a);
    assert_int_equal(c->arena.used, 0);
}

static void call_close(call *c)
{
    unit_close(&c->env);
    free(c->memory);
    free(c->arena.base);
}

static cmoe_status attend(call *c, cmoe_error *err)
{
    return cmoe_attention(c->env.stream, &c->o, c->q, &c->kv, &c->batch, c->sinks, c->out,
                          &c->arena, err);
}
static cmoe_status keep(call *c, cmoe_error *err)
{
    return cmoe_kv_write(c->env.stream, &c->kv, &c->batch, c->k, c->v, err);
}
static cmoe_status ask(call *c, cmoe_error *err)
{
    int64_t host = 17;
    const cmoe_status s =
        cmoe_attention_bytes(c->env.ctx, &c->o, &c->kv, &c->batch, &host, NULL, err);
    if (s != CMOE_OK) assert_int_equal(host, 17);
    return s;
}

/* With `change` made, these fail so; the others are not asked. */
enum { ATTEND = 1, KEEP = 2, ASK = 4, ALL = 7 };
#define SPOILT(which, status, text, ...)                                \
    do {                                                                \
        call c = call_open();                                           \
        bind(&c);                                                       \
        __VA_ARGS__;                                                    \
        if ((which)&ATTEND) UNIT_FAILS(attend(&c, &err), status, text); \
        if ((which)&KEEP) UNIT_FAILS(keep(&c, &err), status, text);     \
        if ((which)&ASK) UNIT_FAILS(ask(&c, &err), status, text);       \
        untouched(&c);                                                  \
        call_close(&c);                                                 \
    } while (0)

static void works(void **state)
{
    (void)state;
    call c = call_open();
    bind(&c);
    UNIT_OK(ask(&c, &err));
    UNIT_OK(keep(&c, &err));
    UNIT_OK(attend(&c, &err));
    call_close(&c);
}

static void of_cache(void **state)
{
    (void)state;
    SPOILT(ALL, CMOE_ERR_ARG, "kv.size = 0, want sizeof(cmoe_kv)", c.kv.size = 0);
    SPOILT(ALL, CMOE_ERR_ARG, "kv.size = 63, want sizeof(cmoe_kv)", c.kv.size = 63);
    SPOILT(ALL, CMOE_ERR_ARG, "kv.size = 70000, want sizeof(cmoe_kv)", c.kv.size = 70000);
    SPOILT(ALL, CMOE_ERR_RANGE, "kv.heads = 0, want >= 1", c.kv.heads = 0);
    SPOILT(ALL, CMOE_ERR_RANGE, "kv.key_dim = -8, want >= 1", c.kv.key_dim = -8);
    SPOILT(ALL, CMOE_ERR_RANGE, "kv.value_dim = 0, want >= 1", c.kv.value_dim = 0);
    SPOILT(ALL, CMOE_ERR_DTYPE, "kv.format = f16 (2), want one of: f32 bf16",
           c.kv.format = CMOE_F16);
    SPOILT(ALL, CMOE_ERR_ARG, "kv.reserved = 1, want 0", c.kv.reserved = 1);
    SPOILT(ALL, CMOE_ERR_SHAPE, "a page would exceed 2^63 - 1 bytes", c.kv.key_dim = INT64_MAX / 8);
    SPOILT(ALL, CMOE_ERR_SHAPE, "a page would exceed 2^63 - 1 bytes",
           c.kv.key_dim = c.kv.value_dim = INT64_MAX);
    SPOILT(ALL, CMOE_ERR_RANGE, "kv.pages = -1, want >= 0", c.kv.pages = -1);
    SPOILT(ALL, CMOE_ERR_RANGE,
           "kv.page_stride = 12224, want 0 or a multiple of 64 >= 12288 (cmoe_kv_page_bytes)",
           c.kv.page_stride = 12224);
    SPOILT(ALL, CMOE_ERR_RANGE, "kv.page_stride = 12300, want 0 or", c.kv.page_stride = 12300);
    SPOILT(ALL, CMOE_ERR_SHAPE, "exceed 2^63 - 1 bytes", c.kv.pages = INT64_MAX / 100);
    SPOILT(ATTEND | KEEP, CMOE_ERR_ARG, "kv.base is NULL, want 73728 bytes", c.kv.base = NULL);
    SPOILT(ATTEND | KEEP, CMOE_ERR_ARG, "kv.base: its address ends in 4, want a multiple of 64",
           c.kv.base = (char *)c.kv.base + 4);
    SPOILT(ATTEND | KEEP, CMOE_ERR_SHAPE, "reach outside the address space",
           c.kv.base = (void *)(UINTPTR_MAX - 127));
    call c = call_open();
    int64_t bytes = 17;
    UNIT_FAILS(cmoe_kv_page_bytes(NULL, &bytes, &err), CMOE_ERR_ARG, "kv is NULL, want a cmoe_kv");
    UNIT_FAILS(cmoe_kv_page_bytes(&c.kv, NULL, &err), CMOE_ERR_ARG, "bytes is NULL");
    c.kv.heads = 0;
    UNIT_FAILS(cmoe_kv_page_bytes(&c.kv, &bytes, &err), CMOE_ERR_RANGE, "kv.heads = 0");
    assert_int_equal(bytes, 17);
    call_close(&c);
}

static void of_batch(void **state)
{
    (void)state;
    SPOILT(ALL, CMOE_ERR_ARG, "batch.size = 0, want sizeof(cmoe_batch)", c.batch.size = 0);
    SPOILT(ALL, CMOE_ERR_ARG, "batch.size = 12, want sizeof(cmoe_batch)", c.batch.size = 12);
    SPOILT(ALL, CMOE_ERR_RANGE, "batch.sequences = -1, want >= 0", c.batch.sequences = -1);
    SPOILT(ALL, CMOE_ERR_RANGE, "batch.page_columns = -1, want >= 0", c.batch.page_columns = -1);
    SPOILT(ALL, CMOE_ERR_SHAPE, "tables would exceed 2^63 - 1 bytes",
           c.batch.page_columns = INT64_MAX / 4);
    SPOILT(ALL, CMOE_ERR_SHAPE, "tables would exceed 2^63 - 1 bytes",
           (c.batch.sequences = INT64_MAX, c.batch.page_columns = 0));
    SPOILT(ALL, CMOE_ERR_ARG, "batch.first is NULL, want 3 numbers", c.batch.first = NULL);
    SPOILT(ALL, CMOE_ERR_ARG, "batch.start is NULL, want 2 numbers", c.batch.start = NULL);
    SPOILT(ALL, CMOE_ERR_RANGE, "batch: first[0] = 1, want 0", c.first[0] = 1);
    SPOILT(ALL, CMOE_ERR_RANGE, "batch: first[2] = 3, want >= 69 (the one before it)",
           c.first[2] = 3);
    SPOILT(ALL, CMOE_ERR_RANGE, "batch: start[1] = -1, want >= 0", c.start[1] = -1);
    SPOILT(ALL, CMOE_ERR_SHAPE,
           "batch: sequence 0 has 69 tokens from position 124, want them within 3 pages of 64",
           c.start[0] = 124);
    SPOILT(ALL, CMOE_ERR_SHAPE, "batch: sequence 1 has 1 tokens from position 9223372036854775807",
           c.start[1] = INT64_MAX);
    SPOILT(ATTEND | KEEP, CMOE_ERR_ARG, "batch.pages is NULL, want pages [2, 3]",
           c.batch.pages = NULL);
    SPOILT(ATTEND | KEEP, CMOE_ERR_RANGE,
           "batch: page 2 of sequence 0 = 6, want 0 <= page < 6 (kv.pages)", c.pages[2] = 6);
    SPOILT(ATTEND | KEEP, CMOE_ERR_RANGE,
           "batch: page 0 of sequence 1 = -1, want 0 <= page < 6 (kv.pages)", c.pages[3] = -1);
    SPOILT(KEEP, CMOE_ERR_RANGE,
           "batch: page 0 of sequence 1 = 1, as is page 1 of sequence 0; want pages that are "
           "written to be different",
           c.pages[3] = 1);
    SPOILT(KEEP, CMOE_ERR_RANGE, "batch: page 2 of sequence 0 = 1, as is page 1 of sequence 0",
           c.pages[2] = 1);
    call c = call_open();
    bind(&c);
    UNIT_FAILS(cmoe_kv_write(c.env.stream, &c.kv, NULL, c.k, c.v, &err), CMOE_ERR_ARG,
               "batch is NULL, want a cmoe_batch");
    UNIT_FAILS(cmoe_kv_write(c.env.stream, NULL, &c.batch, c.k, c.v, &err), CMOE_ERR_ARG,
               "kv is NULL, want a cmoe_kv");
    UNIT_FAILS(cmoe_kv_write(NULL, &c.kv, &c.batch, c.k, c.v, &err), CMOE_ERR_ARG, "stream");
    call_close(&c);
}

/* What is not read may be anything. */
static void not_read(void **state)
{
    (void)state;
    call c = call_open();
    bind(&c);
    c.pages[4] = -5; /* behind sequence 1 */
    UNIT_OK(keep(&c, &err));
    c.start[0] = 128, c.first[1] = 1, c.first[2] = 2;
    c.pages[0] = 99; /* before the window of sequence 0 */
    c.o.window = 64;
    c.q.dims[0] = c.k.dims[0] = c.v.dims[0] = c.out.dims[0] = 2;
    UNIT_OK(keep(&c, &err));
    UNIT_OK(attend(&c, &err));
    c.o.window = 66;
    UNIT_FAILS(attend(&c, &err), CMOE_ERR_RANGE, "batch: page 0 of sequence 0 = 99");
    call_close(&c);
}

static void of_options(void **state)
{
    (void)state;
    enum { BOTH = ATTEND | ASK };
    SPOILT(BOTH, CMOE_ERR_ARG, "cmoe_attention_options.size = 0", c.o.size = 0);
    SPOILT(BOTH, CMOE_ERR_RANGE, "heads = 0, want a multiple of 2 (kv.heads)", c.o.heads = 0);
    SPOILT(BOTH, CMOE_ERR_RANGE, "heads = 3, want a multiple of 2 (kv.heads)", c.o.heads = 3);
    SPOILT(BOTH, CMOE_ERR_RANGE, "heads = -2, want a multiple of 2 (kv.heads)", c.o.heads = -2);
    SPOILT(BOTH, CMOE_ERR_RANGE, "scale = inf, want a finite number", c.o.scale = INFINITY);
    SPOILT(BOTH, CMOE_ERR_RANGE, "nan, want a finite number", c.o.scale = NAN);
    SPOILT(BOTH, CMOE_ERR_RANGE, "mask = -2, want 0 (causal), -1 (full) or the size of a block > 0",
           c.o.mask = -2);
    SPOILT(BOTH, CMOE_ERR_RANGE, "window = -1, want >= 0 (0: none)", c.o.window = -1);
    SPOILT(BOTH, CMOE_ERR_SHAPE, "exceed 2^63 - 1", c.o.heads = INT64_MAX - 1);
    SPOILT(ATTEND, CMOE_ERR_SHAPE, "rows exceed 2^63 - 1 values",
           (c.first[1] = 0, c.first[2] = 1, c.o.heads = INT64_MAX / 4 * 2));
    call c = call_open();
    bind(&c);
    int64_t host;
    UNIT_FAILS(cmoe_attention_bytes(NULL, &c.o, &c.kv, &c.batch, &host, NULL, &err), CMOE_ERR_ARG,
               "attention: ctx is NULL");
    UNIT_FAILS(cmoe_attention_bytes(c.env.ctx, NULL, &c.kv, &c.batch, &host, NULL, &err),
               CMOE_ERR_ARG, "attention: options is NULL, want a cmoe_attention_options");
    UNIT_FAILS(cmoe_attention(NULL, &c.o, c.q, &c.kv, &c.batch, c.sinks, c.out, &c.arena, &err),
               CMOE_ERR_ARG, "stream");
    call_close(&c);
}

static void of_views(void **state)
{
    (void)state;
    SPOILT(ATTEND, CMOE_ERR_SHAPE, "q: dims[0] = 69, want 70 [rows = 70, heads * kv.key_dim = 32]",
           c.q.dims[0] = 69);
    SPOILT(ATTEND, CMOE_ERR_SHAPE, "q: dims[1] = 33, want 32", c.q.dims[1] = 33);
    SPOILT(ATTEND, CMOE_ERR_DTYPE, "q: dtype i32", c.q.dtype = CMOE_I32);
    SPOILT(ATTEND, CMOE_ERR_ARG, "q is not given", c.q = cmoe_view_none());
    SPOILT(ATTEND, CMOE_ERR_SHAPE, "sinks: dims[0] = 3, want 4 [heads = 4]", c.sinks.dims[0] = 3);
    SPOILT(ATTEND, CMOE_ERR_SHAPE, "out: dims[1] = 32, want 64", c.out.dims[1] = 32);
    SPOILT(ATTEND, CMOE_ERR_SHAPE, "out: strides are negative or make elements share memory",
           c.out.strides[0] = 1);
    SPOILT(ATTEND, CMOE_ERR_ARG, "out overlaps q in memory", c.q.data = c.out.data);
    SPOILT(ATTEND, CMOE_ERR_ARG, "out overlaps sinks in memory", c.sinks.data = c.out.data);
    SPOILT(ATTEND, CMOE_ERR_ARG, "out overlaps kv.base in memory", c.out.data = c.memory);
    SPOILT(ATTEND, CMOE_ERR_MEMORY, "attention: arena of 100 bytes is too small",
           c.arena.bytes = 100);
    SPOILT(ATTEND, CMOE_ERR_ARG, "q lies in the free part of the arena", c.q.data = c.arena.base);
    SPOILT(ATTEND, CMOE_ERR_ARG, "kv.base lies in the free part of the arena",
           c.kv.base = (char *)c.arena.base + (64 - (uintptr_t)c.arena.base % 64) % 64);
    SPOILT(ATTEND, CMOE_ERR_ARG, "out lies in the free part of the arena",
           c.out.data = c.arena.base);
    SPOILT(ATTEND, CMOE_ERR_ARG, "sinks lies in the free part of the arena",
           c.sinks.data = c.arena.base);
    SPOILT(KEEP, CMOE_ERR_SHAPE, "k: dims[0] = 71, want 70 [rows = 70, kv.heads * kv.key_dim = 16]",
           c.k.dims[0] = 71);
    SPOILT(KEEP, CMOE_ERR_SHAPE, "v: dims[1] = 16, want 32", c.v.dims[1] = 16);
    SPOILT(KEEP, CMOE_ERR_ARG, "v is not given", c.v = cmoe_view_none());
    SPOILT(KEEP, CMOE_ERR_ARG, "kv.base overlaps k in memory", c.k.data = c.memory + 64);
    SPOILT(KEEP, CMOE_ERR_ARG, "kv.base overlaps v in memory", c.v.data = c.memory + 64);
    SPOILT(ATTEND, CMOE_ERR_DEVICE, "q: device 0, want -1", c.q.device = 0);
}

/* The tables of a batch in the way of what is written. */
static void of_tables(void **state)
{
    (void)state;
    call c = call_open();
    bind(&c);
    int64_t *in_out = (int64_t *)c.out.data, *in_kv = (int64_t *)(void *)(c.memory + 64);
    memcpy(in_out, c.first, sizeof c.first);
    c.batch.first = in_out;
    UNIT_FAILS(attend(&c, &err), CMOE_ERR_ARG, "out overlaps batch.first in memory");
    bind(&c);
    memcpy(in_kv, c.start, sizeof c.start);
    c.batch.start = in_kv;
    UNIT_FAILS(keep(&c, &err), CMOE_ERR_ARG, "kv.base overlaps batch.start in memory");
    bind(&c);
    memcpy(in_kv, c.pages, sizeof c.pages);
    c.batch.pages = (int32_t *)(void *)in_kv;
    UNIT_FAILS(keep(&c, &err), CMOE_ERR_ARG, "kv.base overlaps batch.pages in memory");
    bind(&c);
    void *mine = c.arena.base;
    c.arena = cmoe_arena_make(c.memory, 1 << 16);
    UNIT_FAILS(attend(&c, &err), CMOE_ERR_ARG, "kv.base lies in the free part of the arena");
    c.arena.base = mine;
    call_close(&c);
}

/* Page numbers that are alike in their low 16 bits are different pages. */
static void far_pages(void **state)
{
    (void)state;
    enum { PAGE_BYTES = 2 * CMOE_KV_PAGE * 4, MOST = (1 << 17) + 1 };
    unit_env e = unit_open(1);
    static const float rows[2] = {3, 4};
    static const int64_t first[] = {0, 1, 2}, start[] = {0, 0};
    int32_t pages[2] = {0, 1 << 16};
    char *memory = aligned_alloc(64, (size_t)PAGE_BYTES * MOST); /* little of it is touched */
    assert_non_null(memory);
    const cmoe_kv kv = {.size = sizeof kv,
                        .heads = 1,
                        .key_dim = 1,
                        .value_dim = 1,
                        .format = CMOE_F32,
                        .base = memory,
                        .pages = MOST};
    const cmoe_batch batch = {sizeof batch, 2, first, start, pages, 1};
    const cmoe_view x = cmoe_view_2d(rows, CMOE_F32, 2, 1);
    UNIT_OK(cmoe_kv_write(e.stream, &kv, &batch, x, x, &err));
    for (int i = 0; i < 2; i++)
        assert_memory_equal(memory + (int64_t)pages[i] * PAGE_BYTES, &rows[i], sizeof rows[i]);
    pages[0] = 1 << 17;
    UNIT_OK(cmoe_kv_write(e.stream, &kv, &batch, x, x, &err));
    pages[0] = 1 << 16;
    UNIT_FAILS(cmoe_kv_write(e.stream, &kv, &batch, x, x, &err), CMOE_ERR_RANGE,
               "page 0 of sequence 1 = 65536, as is page 0 of sequence 0");
    free(memory);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(works),     cmocka_unit_test(of_cache),   cmocka_unit_test(of_batch),
        cmocka_unit_test(not_read),  cmocka_unit_test(of_options), cmocka_unit_test(of_views),
        cmocka_unit_test(of_tables), cmocka_unit_test(far_pages),
    };
    return UNIT_RUN("unit_attention_errors", tests);
}
