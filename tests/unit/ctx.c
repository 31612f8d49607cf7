/* SPDX-License-Identifier: MIT
 *
 * ctx.c - contexts and streams: options, allocator and parallel hooks, instruction set masks.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "unit.h"

#include "core/core.h"

/* Sanitizers end the program when asked for too much memory, unless told to fail as malloc does. */
CMOE_API const char *__asan_default_options(void);
CMOE_API const char *__tsan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static cmoe_ctx_options defaults(void)
{
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    return o;
}

static cmoe_status create(const cmoe_ctx_options *o, cmoe_error *err)
{
    cmoe_ctx *ctx = NULL;
    const cmoe_status status = cmoe_ctx_create(&ctx, o, err);
    assert_true((status == CMOE_OK) == (ctx != NULL));
    cmoe_ctx_free(ctx);
    return status;
}

static void options(void **state)
{
    (void)state;
    cmoe_ctx_options o = defaults();
    assert_int_equal(o.size, sizeof o);
    assert_int_equal(o.isa_mask, 0); /* all */
    assert_int_equal(o.threads, 0);
    UNIT_OK(create(&o, &err));
    UNIT_OK(create(NULL, &err));
    UNIT_OK(create(NULL, NULL));

    o.threads = -1;
    UNIT_FAILS(create(&o, &err), CMOE_ERR_RANGE, "threads = -1, want 0 (all) to 4096");
    o.threads = 4097;
    UNIT_FAILS(create(&o, &err), CMOE_ERR_RANGE, "threads = 4097");
    o = defaults();
    o.size = 0;
    UNIT_FAILS(create(&o, &err), CMOE_ERR_ARG, "cmoe_ctx_options.size = 0");
    UNIT_FAILS(cmoe_ctx_create(NULL, NULL, &err), CMOE_ERR_ARG,
               "ctx: out is NULL, want a place for the context");

    /* A header from before `threads`: the rest keeps its default. */
    o = defaults();
    o.threads = -5;
    o.size = offsetof(cmoe_ctx_options, threads);
    UNIT_OK(create(&o, &err));
}

typedef struct newer {
    cmoe_ctx_options known;
    int64_t unknown;
} newer;

static void newer_options(void **state)
{
    (void)state;
    newer o = {defaults(), 0};
    o.known.size = sizeof o;
    UNIT_OK(create(&o.known, &err));
    o.unknown = 1;
    UNIT_FAILS(create(&o.known, &err), CMOE_ERR_UNSUPPORTED, "made for a newer cmoe");
}

/* ---- allocator ------------------------------------------------------------------------------- */

typedef struct counts {
    int64_t blocks, bytes, calls;
} counts;

static void *count_alloc(void *user, size_t bytes, size_t align)
{
    counts *c = user;
    c->blocks++;
    c->calls++;
    c->bytes += (int64_t)bytes;
    assert_true(bytes > 0 && align == CMOEI_ALIGN);
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void count_free(void *user, void *ptr, size_t bytes)
{
    counts *c = user;
    assert_non_null(ptr);
    c->blocks--;
    c->bytes -= (int64_t)bytes;
    free(ptr);
}

static void allocator(void **state)
{
    (void)state;
    counts c = {0};
    cmoe_ctx_options o = defaults();
    o.allocator = (cmoe_allocator){&c, count_alloc, NULL};
    UNIT_FAILS(create(&o, &err), CMOE_ERR_ARG,
               "allocator: only one of alloc and free is given, want both or neither");
    o.allocator = (cmoe_allocator){&c, NULL, count_free};
    UNIT_FAILS(create(&o, &err), CMOE_ERR_ARG, "allocator: only one");

    o.allocator = (cmoe_allocator){&c, count_alloc, count_free};
    o.threads = 3;
    cmoe_ctx *ctx;
    cmoe_stream *s;
    UNIT_OK(cmoe_ctx_create(&ctx, &o, &err));
    UNIT_OK(cmoe_stream_create(&s, ctx, &err));
    assert_true(c.calls >= 3); /* context, threads, stream */
    assert_ptr_equal(cmoe_stream_ctx(s), ctx);
    cmoe_stream_free(s);
    cmoe_ctx_free(ctx);
    assert_int_equal(c.blocks, 0);
    assert_int_equal(c.bytes, 0); /* each freed with the size it was asked with */

    void *p = &c;
    cmoe_ctx *plain;
    UNIT_OK(cmoe_ctx_create(&plain, NULL, &err));
    UNIT_FAILS(cmoei_alloc(plain, INT64_MAX, "weights", &p, &err), CMOE_ERR_MEMORY,
               "weights: 9223372036854775807 bytes could not be allocated");
    UNIT_FAILS(cmoei_alloc(plain, -1, "weights", &p, &err), CMOE_ERR_MEMORY, "weights: -1 bytes");
    assert_ptr_equal(p, &c);
    UNIT_OK(cmoei_alloc(plain, 0, "nothing", &p, &err)); /* a place of its own, to be freed */
    assert_true(p != NULL && (uintptr_t)p % CMOEI_ALIGN == 0);
    cmoei_free(plain, p, 0);
    cmoei_free(plain, NULL, 5);
    cmoe_ctx_free(plain);
}

static void streams(void **state)
{
    (void)state;
    cmoe_stream *s = NULL;
    UNIT_FAILS(cmoe_stream_create(&s, NULL, &err), CMOE_ERR_ARG, "stream: ctx is NULL");
    assert_null(s);
    unit_env e = unit_open(1);
    UNIT_FAILS(cmoe_stream_create(NULL, e.ctx, &err), CMOE_ERR_ARG, "stream: out is NULL");
    unit_close(&e);
    cmoe_stream_free(NULL);
    cmoe_ctx_free(NULL);
    assert_null(cmoe_stream_ctx(NULL));
    assert_int_equal(cmoe_ctx_threads(NULL), 0);
    assert_int_equal(cmoe_ctx_features(NULL), 0);
}

/* ---- the caller's own threads ---------------------------------------------------------------- */

typedef struct spread {
    int32_t most, used; /* how many tasks this "pool" really runs; what it was asked for */
    int calls;
} spread;

typedef struct one_task {
    cmoe_task_fn task;
    void *arg;
    int32_t index, count;
} one_task;

static void *run_one(void *p)
{
    const one_task *t = p;
    t->task(t->arg, t->index, t->count);
    return NULL;
}

static void own_threads(void *user, int32_t max, cmoe_task_fn task, void *arg)
{
    spread *s = user;
    const int32_t n = CMOEI_MIN(max, s->most);
    pthread_t threads[16];
    one_task tasks[16];
    s->calls++;
    s->used = max;
    for (int32_t i = 1; i < n; i++) {
        tasks[i] = (one_task){task, arg, i, n};
        assert_int_equal(pthread_create(&threads[i], NULL, run_one, &tasks[i]), 0);
    }
    task(arg, 0, n);
    for (int32_t i = 1; i < n; i++)
        pthread_join(threads[i], NULL);
}

typedef struct sum {
    _Atomic int64_t total;
    _Atomic int32_t tasks, passed;
} sum;

static void add_items(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    sum *s = arg;
    (void)index;
    atomic_store(&s->tasks, count);
    for (int64_t i; (i = cmoei_next(team, 3)) < 30;)
        atomic_fetch_add(&s->total, i);
    cmoei_barrier(team);
    atomic_fetch_add(&s->passed, 1);
}

static void parallel_hook(void **state)
{
    (void)state;
    spread threads = {.most = 3};
    cmoe_ctx_options o = defaults();
    o.parallel = own_threads;
    o.parallel_user = &threads;
    o.threads = 5;
    cmoe_ctx *ctx;
    UNIT_OK(cmoe_ctx_create(&ctx, &o, &err));
    assert_int_equal(cmoe_ctx_threads(ctx), 5);

    sum s = {0};
    cmoei_region(ctx, 100, add_items, &s);
    assert_int_equal(threads.calls, 1);
    assert_int_equal(threads.used, 5); /* no more than the context's threads */
    assert_int_equal(s.tasks, 3);      /* fewer tasks than asked for is the hook's right */
    assert_int_equal(s.passed, 3);
    assert_int_equal(s.total, 135);

    s = (sum){0};
    cmoei_region(ctx, 1, add_items, &s); /* nothing to spread: not asked */
    assert_int_equal(threads.calls, 1);
    assert_int_equal(s.total, 135);
    cmoei_region(ctx, 0, add_items, &s); /* still runs once, for its checks and its empty outputs */
    assert_int_equal(s.passed, 2);
    cmoe_ctx_free(ctx);
}

static void thread_counts(void **state)
{
    (void)state;
    const int32_t all = cmoei_cpu_count();
    assert_true(all >= 1);
    unit_env e = unit_open(0);
    assert_int_equal(cmoe_ctx_threads(e.ctx), all);
    unit_close(&e);
    e = unit_open(7);
    assert_int_equal(cmoe_ctx_threads(e.ctx), 7);
    unit_close(&e);
}

/* ---- instruction sets ------------------------------------------------------------------------ */

static uint32_t features_with(uint32_t mask)
{
    cmoe_ctx_options o = defaults();
    o.threads = 1;
    o.isa_mask = mask;
    cmoe_ctx *ctx;
    UNIT_OK(cmoe_ctx_create(&ctx, &o, &err));
    const uint32_t features = cmoe_ctx_features(ctx);
    cmoe_ctx_free(ctx);
    return features;
}

static void isa_levels(void **state)
{
    (void)state;
    const char *const want[] = {"ref", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
    assert_int_equal(cmoe_isa_levels(), 5);
    assert_null(cmoe_isa_level_name(-1));
    assert_null(cmoe_isa_level_name(5));
    uint32_t below = 0;
    for (int32_t i = 0; i < 5; i++) {
        uint32_t mask = ~0u;
        assert_string_equal(cmoe_isa_level_name(i), want[i]);
        UNIT_OK(cmoe_isa_mask(want[i], &mask, &err));
        assert_true((mask & below) == below && mask != below); /* one level more */
        below = mask;
        assert_int_equal(features_with(mask), mask & cmoe_cpu_features());
    }
    uint32_t mask = 77;
    UNIT_FAILS(cmoe_isa_mask("avx3", &mask, &err), CMOE_ERR_RANGE,
               "isa \"avx3\" unknown, want one of: ref avx2 avx512 avx512_vnni avx512_bf16");
    UNIT_FAILS(cmoe_isa_mask(NULL, &mask, &err), CMOE_ERR_RANGE, "isa \"(null)\" unknown");
    UNIT_FAILS(cmoe_isa_mask("ref", NULL, &err), CMOE_ERR_ARG, "isa: mask is NULL");
    assert_int_equal(mask, 77);
}

/* What a context that chooses by itself leaves out. */
static uint32_t unpreferred(void)
{
    return cmoei_cpu_bf16_is_slow() ? CMOE_CPU_BF16_FIRST : 0;
}

/* A mask with a hole drops everything above the hole: a kernel of a level uses all below it. */
static void masks_with_holes(void **state)
{
    (void)state;
    const uint32_t order[] = {CMOE_CPU_AVX2, CMOE_CPU_AVX512, CMOE_CPU_AVX512_VNNI,
                              CMOE_CPU_AVX512_BF16};
    /* ... of which the last is a preference, not a feature. */
    assert_int_equal(features_with(UINT32_MAX) | CMOE_CPU_BF16_FIRST,
                     cmoe_cpu_features() | CMOE_CPU_BF16_FIRST);
    assert_int_equal(features_with(0), features_with(UINT32_MAX) & ~unpreferred());
    assert_int_equal(features_with(CMOE_CPU_AVX512), CMOE_CPU_PLAIN);
    for (uint32_t mask = 1; mask < 16; mask++) {
        const uint32_t got = features_with(mask), allowed = mask & cmoe_cpu_features();
        bool standing = true;
        for (int i = 0; i < 4; i++) {
            standing = standing && (allowed & order[i]);
            assert_int_equal((got & order[i]) != 0, standing);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options),       cmocka_unit_test(newer_options),
        cmocka_unit_test(allocator),     cmocka_unit_test(streams),
        cmocka_unit_test(parallel_hook), cmocka_unit_test(thread_counts),
        cmocka_unit_test(isa_levels),    cmocka_unit_test(masks_with_holes),
    };
    return UNIT_RUN("unit_ctx", tests);
}
