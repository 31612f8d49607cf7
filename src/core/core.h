/* SPDX-License-Identifier: MIT
 *
 * core.h - what every folder of libcmoe uses: error texts, argument checks, scratch memory, rows of
 * any number format, and regions of tasks.  Internal; nothing here is exported.
 */
#ifndef CMOE_CORE_H
#define CMOE_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmoe/base.h"

/* Internal functions that libcmoe_engine calls carry this: cmoei_f, exported as cmoe_priv_f.  They
 * may change with every version; the engine refuses a libcmoe of another one (cmoei_core_version). */
#define CMOEI_STRING_(x) #x
#define CMOEI_STRING(x)  CMOEI_STRING_(x)
#define CMOE_PRIV(name)                                             \
    __asm__(CMOEI_STRING(__USER_LABEL_PREFIX__) "cmoe_priv_" #name) \
        __attribute__((visibility("default")))

#define CMOEI_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define CMOEI_MIN(a, b)    ((a) < (b) ? (a) : (b))
#define CMOEI_MAX(a, b)    ((a) > (b) ? (a) : (b))
#define CMOEI_COUNT(array) ((int64_t)(sizeof(array) / sizeof((array)[0])))

/* For our own mistakes only; what comes from outside ends in a status. */
#ifdef NDEBUG
#define CMOE_ASSERT(x) ((void)0)
#else
#include <assert.h>
#define CMOE_ASSERT(x) assert(x)
#endif

/* ---- errors: who finds one writes the text, callers pass it on ------------------------------- */

cmoe_status cmoei_fail(cmoe_error *err, cmoe_status status, const char *format, ...) CMOE_PRIV(fail)
    CMOEI_PRINTF(3, 4);

/* The full version of this build of libcmoe. */
const char *cmoei_core_version(void) CMOE_PRIV(core_version);

#define CMOEI_TRY(call)                                 \
    do {                                                \
        const cmoe_status try_status_ = (call);         \
        if (try_status_ != CMOE_OK) return try_status_; \
    } while (0)

/* Copies the caller's options over `dst`, which holds the defaults.  `src` NULL keeps them. Structs
 * of an older header are shorter; of a newer one longer, then the part that is unknown here must be
 * zero. */
cmoe_status cmoei_options_read(void *dst, size_t dst_size, const void *src, const char *what,
                               cmoe_error *err) CMOE_PRIV(options_read);
void cmoei_options_write(void *dst, size_t dst_size, const void *src, size_t src_size)
    CMOE_PRIV(options_write);

/* Name of a value in a list, for "want one of: a b c".  -1 when it is not there. */
int32_t cmoei_name_find(const char *const *names, int32_t n, const char *name) CMOE_PRIV(name_find);

/* 0 or 1, so that other values can come to mean something. */
cmoe_status cmoei_check_flag(int32_t value, const char *name, cmoe_error *err)
    CMOE_PRIV(check_flag);

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Both false on overflow or a negative factor; `out` is then untouched. */
bool cmoei_mul(int64_t a, int64_t b, int64_t *out) CMOE_PRIV(mul);
bool cmoei_add(int64_t a, int64_t b, int64_t *out) CMOE_PRIV(add);
static inline int64_t cmoei_ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}
static inline int64_t cmoei_round_up(int64_t a, int64_t b)
{
    return cmoei_ceil_div(a, b) * b;
}

/* ---- views ----------------------------------------------------------------------------------- */

#define CMOEI_DTYPE(d) (1u << (d))
enum {
    CMOEI_FLOATS = 1u << CMOE_F32 | 1u << CMOE_F16 | 1u << CMOE_BF16 | 1u << CMOE_F64,
    CMOEI_INDEX = 1u << CMOE_I32 | 1u << CMOE_I64
};

/* What an argument must look like.  dims[i] < 0: any size; dim_names[i] says what it is in texts.
 */
typedef struct cmoei_want {
    const char *name; /* of the argument, when the view has none */
    uint32_t dtypes;  /* CMOEI_DTYPE bits */
    int32_t rank;
    int64_t dims[CMOE_MAX_RANK];
    const char *dim_names[CMOE_MAX_RANK];
} cmoei_want;

/* Checks rank, dtype, dims, strides, sizes and device (host only here).  Data may be NULL only when
 * there are no elements. */
cmoe_status cmoei_check_in(const cmoe_view *v, const cmoei_want *want, cmoe_error *err)
    CMOE_PRIV(check_in);
cmoe_status cmoei_check_out(const cmoe_view_mut *v, const cmoei_want *want, cmoe_error *err)
    CMOE_PRIV(check_out);
/* `out` may not share an address with `in`; views without elements never do. */
cmoe_status cmoei_check_apart(const cmoe_view_mut *out, const char *out_name, const cmoe_view *in,
                              const char *in_name, cmoe_error *err) CMOE_PRIV(check_apart);
/* A tensor may not lie in what a call may carve. */
cmoe_status cmoei_check_scratch(const cmoe_arena *scratch, const cmoe_view *v, const char *name,
                                cmoe_error *err) CMOE_PRIV(check_scratch);
static inline bool cmoei_given(const cmoe_view *v)
{
    return v->dtype != 0 || v->data != NULL;
}
static inline const char *cmoei_name(const char *name, const char *fallback)
{
    return name ? name : fallback;
}
/* Rows [begin, begin + count) of a checked view; nothing of one that is not given. */
cmoe_view cmoei_rows_of(cmoe_view v, int64_t begin, int64_t count) CMOE_PRIV(rows_of);
cmoe_view_mut cmoei_rows_of_mut(cmoe_view_mut v, int64_t begin, int64_t count)
    CMOE_PRIV(rows_of_mut);
int64_t cmoei_elements(const cmoe_view *v) CMOE_PRIV(elements); /* of a checked view */
/* Address of element (i, j, 0, ...) of a checked view. */
const void *cmoei_at(const cmoe_view *v, int64_t i, int64_t j) CMOE_PRIV(at);
void *cmoei_at_mut(const cmoe_view_mut *v, int64_t i, int64_t j) CMOE_PRIV(at_mut);

/* ---- number formats -------------------------------------------------------------------------- */

/* n elements, `stride` elements apart, at any address, to and from contiguous float32.  Packed
 * formats are not rows of values: use cmoe_convert. */
void cmoei_load_f32(float *dst, const void *src, int32_t dtype, int64_t stride, int64_t n)
    CMOE_PRIV(load_f32);
void cmoei_store_f32(void *dst, int32_t dtype, int64_t stride, const float *src, int64_t n)
    CMOE_PRIV(store_f32);
int64_t cmoei_load_index(const void *src, int32_t dtype)
    CMOE_PRIV(load_index); /* one i32 or i64 at any address */

float cmoei_f16_to_f32(uint16_t h);
uint16_t cmoei_f32_to_f16(float f);
float cmoei_f8e4m3_to_f32(uint8_t b) CMOE_PRIV(f8e4m3_to_f32);
uint8_t cmoei_f32_to_f8e4m3(float f);
float cmoei_f8e8m0_to_f32(uint8_t b) CMOE_PRIV(f8e8m0_to_f32);
uint8_t cmoei_f32_to_f8e8m0(float f);
float cmoei_e2m1_to_f32(uint8_t nibble) CMOE_PRIV(e2m1_to_f32);
uint8_t cmoei_f32_to_e2m1(float f);

static inline uint32_t cmoei_bits(float f)
{
    union {
        float f;
        uint32_t u;
    } b = {.f = f};
    return b.u;
}
static inline float cmoei_float(uint32_t u)
{
    union {
        uint32_t u;
        float f;
    } b = {.u = u};
    return b.f;
}
static inline float cmoei_bf16_to_f32(uint16_t h)
{
    return cmoei_float((uint32_t)h << 16);
}
/* Half to even; a NaN keeps its sign and stays one. */
static inline uint16_t cmoei_f32_to_bf16(float f)
{
    const uint32_t u = cmoei_bits(f);
    const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16 | 0x40u) : rounded);
}
static inline float cmoei_round_bf16(float f)
{
    return cmoei_bf16_to_f32(cmoei_f32_to_bf16(f));
}

/* ---- context --------------------------------------------------------------------------------- */

typedef struct cmoei_pool cmoei_pool;

struct cmoe_ctx {
    cmoe_allocator allocator;
    cmoe_log_fn log;
    void *log_user;
    cmoe_parallel parallel;
    void *parallel_user;
    cmoei_pool *pool; /* NULL when the caller brought their own */
    int32_t threads;
    uint32_t features;
};

struct cmoe_stream {
    cmoe_ctx *ctx;
};

enum { CMOEI_ALIGN = 64 };

/* Through the context's allocator, aligned to CMOEI_ALIGN.  `what` names it in the text. */
cmoe_status cmoei_alloc(cmoe_ctx *ctx, int64_t bytes, const char *what, void **out, cmoe_error *err)
    CMOE_PRIV(alloc);
void cmoei_free(cmoe_ctx *ctx, void *ptr, int64_t bytes) CMOE_PRIV(free);

cmoe_status cmoei_check_stream(const cmoe_stream *s, cmoe_error *err) CMOE_PRIV(check_stream);

/* ---- arena ----------------------------------------------------------------------------------- */

/* Sizes are added up with the same calls that carve, so the two cannot disagree: a `dry` carver has
 * no memory and only counts.
 *
 *     cmoei_carver c = cmoei_carver_dry();          or cmoei_carver_open(arena)
 *     float *x = cmoei_carve(&c, rows * 4);
 *     if (!cmoei_carver_ok(&c, "op", err)) ...
 */
typedef struct cmoei_carver {
    char *base;
    int64_t bytes, used;
    bool dry, overflow;
} cmoei_carver;

int64_t cmoei_arena_left(const cmoe_arena *arena)
    CMOE_PRIV(arena_left); /* 0 for none, or one whose numbers make no sense */
cmoei_carver cmoei_carver_dry(void) CMOE_PRIV(carver_dry);
cmoei_carver cmoei_carver_open(const cmoe_arena *arena)
    CMOE_PRIV(carver_open); /* NULL: an arena of no bytes */
void *cmoei_carve(cmoei_carver *c, int64_t bytes)
    CMOE_PRIV(carve); /* aligned; NULL when dry or out of memory */
void *cmoei_carve_array(cmoei_carver *c, int64_t n, int64_t element_bytes) CMOE_PRIV(carve_array);
int64_t cmoei_carver_bytes(const cmoei_carver *c)
    CMOE_PRIV(carver_bytes); /* what an arena at any address must have */
cmoe_status cmoei_carver_check(const cmoei_carver *c, const char *op, cmoe_error *err)
    CMOE_PRIV(carver_check);

/* ---- floating point -------------------------------------------------------------------------- */

/* Rounding mode and treatment of subnormals belong to the thread, and callers change them (many
 * switch on flush-to-zero).  Whatever computes runs between these two: rounding half to even,
 * nothing flushed. A region does it for its tasks; code that computes outside of one must. */
uint64_t cmoei_float_enter(void) CMOE_PRIV(float_enter);
void cmoei_float_leave(uint64_t before) CMOE_PRIV(float_leave);

/* ---- tasks ----------------------------------------------------------------------------------- */

/* The tasks of one region, and the barrier between its phases. */
typedef struct cmoei_team cmoei_team;
typedef void (*cmoei_region_fn)(void *arg, cmoei_team *team, int32_t index, int32_t count);

/* Runs fn on at most `max` (and the context's threads) tasks at once; max <= 1 runs it right here.
 */
void cmoei_region(cmoe_ctx *ctx, int64_t max, cmoei_region_fn fn, void *arg) CMOE_PRIV(region);
void cmoei_barrier(cmoei_team *team)
    CMOE_PRIV(barrier); /* every task of the region calls it equally often */
/* The next item of a list that all tasks share, in order of asking; reset by every barrier. */
int64_t cmoei_next(cmoei_team *team, int64_t grain) CMOE_PRIV(next);

/* Splits [0, n) evenly: the part of task `index` of `count`. */
static inline void cmoei_split(int64_t n, int32_t index, int32_t count, int64_t *begin,
                               int64_t *end)
{
    const int64_t q = n / count, r = n % count;
    *begin = index * q + CMOEI_MIN((int64_t)index, r);
    *end = *begin + q + (index < r);
}

/* Our own threads.  Created once; a region that finds them busy runs on its caller alone. */
cmoe_status cmoei_pool_create(cmoei_pool **out, cmoe_ctx *ctx, int32_t threads, cmoe_error *err);
void cmoei_pool_free(cmoei_pool *pool, cmoe_ctx *ctx);
void cmoei_pool_run(void *pool, int32_t max, cmoe_task_fn task, void *arg); /* a cmoe_parallel */
int32_t cmoei_cpu_count(void);     /* CPUs this process may run on */
bool cmoei_cpu_bf16_is_slow(void); /* bf16 dot products are no faster than float32 multiply-adds */

#endif
