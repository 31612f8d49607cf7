/* SPDX-License-Identifier: MIT
 *
 * cmoe/base.h - what every other header stands on: status and error text, number formats, tensor
 * views, context, stream, arena and random numbers.
 *
 * The library never aborts, exits, prints, reads the environment or keeps state outside the objects
 * made here.  Every call that can fail returns a cmoe_status and takes a cmoe_error last; outputs
 * are written only on success.
 */
#ifndef CMOE_BASE_H
#define CMOE_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define CMOE_API __attribute__((visibility("default")))
#else
#define CMOE_API
#endif

#define CMOE_VERSION_MAJOR 0
#define CMOE_VERSION_MINOR 1
#define CMOE_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status and error text ------------------------------------------------------------------- */

typedef enum cmoe_status {
    CMOE_OK = 0,
    CMOE_ERR_ARG = -1,         /* a pointer or an option makes no sense */
    CMOE_ERR_SHAPE = -2,       /* ranks, dims or strides do not fit each other */
    CMOE_ERR_DTYPE = -3,       /* a tensor has a number format that is not accepted here */
    CMOE_ERR_RANGE = -4,       /* a value lies outside its legal range */
    CMOE_ERR_UNSUPPORTED = -5, /* legal, but this build or this machine has no way to do it */
    CMOE_ERR_MEMORY = -6,      /* an allocation failed, or an arena is too small */
    CMOE_ERR_IO = -7,
    CMOE_ERR_FORMAT = -8,
    CMOE_ERR_DEVICE = -9,
    CMOE_ERR_COMM = -10,
    CMOE_ERR_CANCELLED = -11,
    CMOE_ERR_INTERNAL = -12
} cmoe_status;

/* Owned by the caller, may be NULL wherever it is asked for.  `size` is sizeof(cmoe_error), or 0
 * for the same.  `text` names the thing, the bad value and what is accepted; it is always
 * terminated. */
typedef struct cmoe_error {
    size_t size;
    cmoe_status status;
    char text[512];
} cmoe_error;

CMOE_API const char *cmoe_status_name(cmoe_status status); /* "CMOE_ERR_SHAPE"; never NULL */
CMOE_API const char *cmoe_version(void);                   /* "0.1.0" */
CMOE_API uint32_t cmoe_abi_version(void);                  /* changes when this ABI breaks */

/* ---- number formats -------------------------------------------------------------------------- */

/* The packed formats hold two values in a byte, low nibble first; one element of a view is one
 * byte. */
enum {
    CMOE_F32 = 1,
    CMOE_F16,
    CMOE_BF16,
    CMOE_F8E4M3, /* finite only: 0x7f and 0xff are NaN, largest 448 */
    CMOE_F8E8M0, /* 2^(byte - 127), 255 is NaN */
    CMOE_I8,
    CMOE_U8,
    CMOE_I32,
    CMOE_I64,
    CMOE_F64,
    CMOE_I4X2,  /* two's complement nibbles */
    CMOE_E2M1X2 /* 0 .5 1 1.5 2 3 4 6, bit 3 is the sign */
};

CMOE_API const char *cmoe_dtype_name(int32_t dtype); /* "bf16"; "unknown" for anything else */
CMOE_API int64_t cmoe_dtype_bytes(int32_t dtype);    /* of one element; 0 if unknown */
CMOE_API int32_t cmoe_dtype_parse(const char *name); /* 0 if unknown */

/* ---- tensor views ---------------------------------------------------------------------------- */

enum { CMOE_MAX_RANK = 6, CMOE_HOST = -1 };

/* A tensor that somebody else owns.  Strides are in elements and may be negative on inputs; data
 * may lie at any byte address.  `name` appears in error texts; NULL means the name of the argument.
 * A view of zeros stands for "not given" where an argument is optional. */
typedef struct cmoe_view {
    const void *data;
    const char *name;
    int32_t dtype, device, rank, reserved; /* device: -1 host, n cuda:n */
    int64_t dims[6], strides[6];
} cmoe_view;

typedef struct cmoe_view_mut {
    void *data;
    const char *name;
    int32_t dtype, device, rank, reserved;
    int64_t dims[6], strides[6];
} cmoe_view_mut;

/* Contiguous host tensors, last dimension fastest.  These check nothing: whoever takes the view
 * does. */
CMOE_API cmoe_view cmoe_view_make(const void *data, int32_t dtype, int32_t rank,
                                  const int64_t *dims);
CMOE_API cmoe_view cmoe_view_1d(const void *data, int32_t dtype, int64_t n);
CMOE_API cmoe_view cmoe_view_2d(const void *data, int32_t dtype, int64_t rows, int64_t cols);
CMOE_API cmoe_view cmoe_view_3d(const void *data, int32_t dtype, int64_t n, int64_t rows,
                                int64_t cols);
CMOE_API cmoe_view cmoe_view_none(void);
CMOE_API cmoe_view_mut cmoe_view_mut_make(void *data, int32_t dtype, int32_t rank,
                                          const int64_t *dims);
CMOE_API cmoe_view_mut cmoe_view_mut_1d(void *data, int32_t dtype, int64_t n);
CMOE_API cmoe_view_mut cmoe_view_mut_2d(void *data, int32_t dtype, int64_t rows, int64_t cols);
CMOE_API cmoe_view_mut cmoe_view_mut_none(void);
CMOE_API cmoe_view cmoe_view_of(cmoe_view_mut view);

/* ---- context --------------------------------------------------------------------------------- */

/* CPU features that kernels are chosen by.  A level names everything below it too. */
enum {
    CMOE_CPU_AVX2 = 1 << 0,        /* AVX2, FMA and F16C */
    CMOE_CPU_AVX512 = 1 << 1,      /* F, BW, DQ, VL and CD */
    CMOE_CPU_AVX512_VNNI = 1 << 2, /* int8 dot products */
    CMOE_CPU_AVX512_BF16 = 1 << 3, /* bf16 dot products */
    CMOE_CPU_BF16_FIRST = 1 << 4,  /* which are to be taken before float32 multiply-adds */
    CMOE_CPU_PLAIN = 1 << 5        /* what every CPU can do; part of every level */
};

CMOE_API uint32_t cmoe_cpu_features(void); /* what this CPU and its operating system offer */

/* Levels: "ref", "avx2", "avx512", "avx512_vnni", "avx512_bf16".  The mask of a level, to be put
 * into cmoe_ctx_options.isa_mask.  CMOE_ERR_RANGE for another name. */
CMOE_API cmoe_status cmoe_isa_mask(const char *level, uint32_t *mask, cmoe_error *err);
CMOE_API int32_t cmoe_isa_levels(void);
CMOE_API const char *cmoe_isa_level_name(int32_t level); /* NULL outside 0..levels-1 */

typedef struct cmoe_allocator {
    void *user;
    void *(*alloc)(void *user, size_t bytes, size_t align); /* NULL when there is no memory */
    void (*free)(void *user, void *ptr, size_t bytes);
} cmoe_allocator;

enum { CMOE_LOG_ERROR = 0, CMOE_LOG_WARN, CMOE_LOG_INFO };
typedef void (*cmoe_log_fn)(void *user, int32_t level, const char *text);

/* How work is spread: calls task(arg, i, n) once for every i of 0..n-1 for some n of 1..max, all of
 * them at the same time (a task may wait for another at a barrier of ours), and returns when all
 * have returned.  Which n, and which thread runs which i, cannot be seen in any result.  May be
 * called by several threads at once.  examples/03_openmp is one. */
typedef void (*cmoe_task_fn)(void *arg, int32_t index, int32_t count);
typedef void (*cmoe_parallel)(void *user, int32_t max, cmoe_task_fn task, void *arg);

typedef struct cmoe_ctx_options {
    size_t size;
    cmoe_allocator allocator; /* alloc NULL: the C library's */
    cmoe_log_fn log;          /* NULL: nothing is said */
    void *log_user;
    int32_t threads;        /* 0: one for every CPU this process may run on */
    cmoe_parallel parallel; /* NULL: our own pool of `threads` */
    void *parallel_user;
    uint32_t isa_mask;      /* features that may be used; 0: all, and of two ways to the same the
                               one that is faster on this CPU */
    const char *plugin_dir; /* must be NULL: there are no plugins yet */
} cmoe_ctx_options;

/* Made once, shared by any number of threads, freed after everything that was made from it. */
typedef struct cmoe_ctx cmoe_ctx;

CMOE_API void cmoe_ctx_options_default(cmoe_ctx_options *o, size_t size);
CMOE_API cmoe_status cmoe_ctx_create(cmoe_ctx **out, const cmoe_ctx_options *o, cmoe_error *err);
CMOE_API void cmoe_ctx_free(cmoe_ctx *ctx);
CMOE_API int32_t cmoe_ctx_threads(const cmoe_ctx *ctx);
CMOE_API uint32_t cmoe_ctx_features(const cmoe_ctx *ctx); /* after the mask */

/* Where computing happens, first argument of every computing function.  A host stream is done when
 * the call returns.  Belongs to one thread at a time; any number may be made from one context. */
typedef struct cmoe_stream cmoe_stream;

CMOE_API cmoe_status cmoe_stream_create(cmoe_stream **out, cmoe_ctx *ctx, cmoe_error *err);
CMOE_API void cmoe_stream_free(cmoe_stream *s);
CMOE_API cmoe_ctx *cmoe_stream_ctx(const cmoe_stream *s);

/* ---- arena ----------------------------------------------------------------------------------- */

/* Memory of the caller from which a call carves its scratch and some of its results.
 * cmoe_<op>_bytes says how much.  What was carved lives until the caller sets `used` back.  Scratch
 * of a call is given back before it returns; results stay.  Belongs to one thread at a time. */
typedef struct cmoe_arena {
    void *base;
    int64_t bytes, used;
} cmoe_arena;

CMOE_API cmoe_arena cmoe_arena_make(void *base, int64_t bytes);

/* ---- conversion ------------------------------------------------------------------------------ */

/* out[i] = in[i], any format to any other, any strides.  To a narrower float: half to even; NaN and
 * infinities are kept where the format has them (f8e4m3 makes both, and what rounds beyond 448,
 * NaN). To an integer: half to even, clamped to its range, NaN becomes 0.  A packed view of n
 * elements pairs with 2n values of the other along the last dimension.  `out` must not overlap
 * `in`. */
CMOE_API cmoe_status cmoe_convert(cmoe_stream *s, cmoe_view in, cmoe_view_mut out, cmoe_error *err);

/* ---- training -------------------------------------------------------------------------------- */

/* The micro-batch units of a training step that a call holds: tokens [first[u], first[u + 1]) are unit
 * u; first[0] = 0, first[count] = T, count is a power of two from 1 to CMOE_UNITS_MOST.  The gradient of
 * what tokens share is a sum: inside a unit over ascending tokens, the units as a balanced binary tree
 * ((0+1)+(2+3))+...  So it does not depend on how the units of a step are spread over calls, threads or
 * ranks.  NULL where a call takes units: all tokens are one. */
enum { CMOE_UNITS_MOST = 64 };
typedef struct cmoe_units {
    int64_t count;
    const int64_t *first; /* [count + 1] */
} cmoe_units;

/* What backward needs of a forward.  Carved from the caller's arena, so it lives as long as that, and
 * there is nothing to free. */
typedef struct cmoe_saved cmoe_saved;

/* ---- random numbers -------------------------------------------------------------------------- */

/* A function of (seed, position, draw), not a stream (Philox 4x32-10): the same on every platform,
 * in any order, on any thread. */
CMOE_API uint64_t cmoe_random_u64(uint64_t seed, uint64_t position, uint64_t draw);
CMOE_API float cmoe_random_uniform(uint64_t seed, uint64_t position,
                                   uint64_t draw); /* [0, 1), 24 bits */
CMOE_API float cmoe_random_normal(uint64_t seed, uint64_t position,
                                  uint64_t draw); /* mean 0, variance 1 */

#ifdef __cplusplus
}
#endif
#endif
