/* SPDX-License-Identifier: MIT
 *
 * mutate.h - one valid small call of every public computing function, laid out so that a corrupter can
 * reach each field of it.
 */
#ifndef CMOE_MUTATE_H
#define CMOE_MUTATE_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/cmoe.h"

/* T tokens, K slots, E experts, H hidden, I inter, R rows, L rank of the low-rank gate, V vocab. */
enum { T = 6, K = 2, E = 4, H = 8, I = 4, R = T * K, L = 2, V = 5 };

/* A tensor begins in the middle of its buffer: neighbouring dims and strides stay inside. */
enum { BUFFER = 16384, MIDDLE = 8192, ARENA = 1 << 17, BLOCK = 4096, RESULTS = 256 };
enum { MAX_VIEWS = 12, MAX_BLOCKS = 4, MAX_EMBEDS = 16, MAX_WORDS = 6, MAX_POINTERS = 14 };

/* cmoe_view and cmoe_view_mut have one layout, so one type holds either. */
typedef union any_view {
    cmoe_view in;
    cmoe_view_mut out;
} any_view;

/* A struct with a size in front, as the caller fills it. */
typedef struct block {
    _Alignas(16) char bytes[BLOCK];
    size_t size;
    bool closed[BLOCK /
                4]; /* words that hold views or pointers, which have corrupters of their own */
} block;

typedef struct embed {
    int view, block;
    size_t offset;
} embed;

typedef struct number_place {
    void *at;
    size_t bytes;
} number_place;

/* Objects that are made once. */
typedef struct fixture {
    cmoe_ctx *ctx;
    cmoe_stream *stream;
    cmoe_matrix *matrix, *one; /* E of [I, H]; one of [I, H] */
    cmoe_experts *experts, *shared;
    cmoe_layer *layer, *hashed;
    cmoe_groups groups;
    void *groups_memory;
    struct cmoe_model *model; /* these of the engine, NULL without one */
    struct cmoe_cache *cache;
    struct cmoe_checkpoint *checkpoint;
} fixture;

/* The arguments of a call; the pointers may be corrupted to NULL. */
typedef struct args args;
struct args {
    const fixture *fix;
    any_view view[MAX_VIEWS];
    bool is_out[MAX_VIEWS];
    uint32_t free_dims[MAX_VIEWS]; /* bit i: no other argument says how large dims[i] is */
    int views;
    block block[MAX_BLOCKS];
    int blocks;
    embed embeds[MAX_EMBEDS];
    int n_embeds;
    number_place words[MAX_WORDS];
    int n_words;
    void *pointers[MAX_POINTERS]; /* addresses of pointers */
    int n_pointers;

    cmoe_ctx *ctx;
    cmoe_stream *stream;
    const void *object;
    const void *options[MAX_BLOCKS];
    const cmoe_groups *groups_at;
    cmoe_groups groups;
    cmoe_arena arena, *arena_at;
    int64_t n[3];
    int32_t flag[2];
    float scale;
    void *result[2];         /* places in `results` */
    void *made;              /* what a create function made */
    uint32_t written;        /* bit i: buffer i is written, though no view says so */
    bool filled[MAX_BLOCKS]; /* the call fills this block */
    /* What the call can be given without leaving its memory; NULL: views say it all. */
    bool (*may)(const args *a, int corrupted);
};

/* Memory of all calls: a buffer for each view, and small results. */
typedef struct memory {
    char *buffer[MAX_VIEWS], *before[MAX_VIEWS];
    char *arena, *results;
} memory;

typedef struct call {
    const char *name;
    void (*set)(args *a, memory *m);
    cmoe_status (*run)(args *a, cmoe_error *err);
    void (*done)(void *made);
    bool keeps; /* its results stay in the arena */
} call;

/* calls_layer.c, calls_ops.c, ... */
extern const call layer_calls[], ops_calls[], attention_calls[], bytes_calls[];
extern const int n_layer_calls, n_ops_calls, n_attention_calls, n_bytes_calls;

#ifdef MUTATE_MODEL /* the engine is built */
extern const call model_calls[];
extern const int n_model_calls;
void fixture_model(fixture *f);
void fixture_model_close(fixture *f);
#endif

void must(cmoe_status status, const cmoe_error *err); /* ends the program otherwise */
fixture fixture_open(memory *m);
void fixture_close(fixture *f);

#endif
