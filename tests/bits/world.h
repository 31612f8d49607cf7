/* SPDX-License-Identifier: MIT
 *
 * world.h - a random layer with its weights, and ways to build and run it.
 */
#ifndef CMOE_BITS_WORLD_H
#define CMOE_BITS_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "cmoe/cmoe.h"

/* Sizes and options drawn at random, and the weights in one plain layout. */
typedef struct world {
    uint64_t seed, draws;
    int32_t format;
    int64_t tokens, topk, experts, hidden, inter;
    int32_t activation, row_dtype, weight_at, scoring, shared_first;
    int32_t x_dtype, out_dtype;
    bool gated, bias, shared, shared_gate, lora, round_gate_up, round_act;
    int64_t groups;
    float combine_scale;
    float limit;
    float *x;                   /* [T, H] */
    float *gate, *choice_bias;  /* [E, H] [E] */
    float *gate_bias, *scale;   /* [E] [E] */
    float *lora_a, *lora_b;     /* [3, H] [E, 3] */
    float *w13, *w2, *b13, *b2; /* [E, 2I or I, H] [E, H, I] [E, 2I or I] [E, H] */
    float *s13, *s2, *sgate;    /* the shared expert, [1, ...], [1, H] */
} world;

/* How a layer is built from the world's weights; none of it may change a bit. */
typedef struct how {
    bool borrow;      /* unpacked */
    bool transposed;  /* [E, H, 2I] [E, I, H] */
    bool interleaved; /* gate, up, gate, up */
    bool up_first;    /* up before gate */
    int64_t odd;      /* bytes by which every weight is off its natural address */
    int64_t chunk;
} how;

typedef struct built {
    cmoe_ctx *ctx;
    cmoe_experts *experts, *shared;
    cmoe_layer *layer;
    void *memory[8]; /* weights in the asked layout, kept for borrowed ones */
    int blocks;
} built;

world *world_make(uint64_t seed, int32_t format);
void world_free(world *w);
int64_t world_draw(world *w, int64_t low, int64_t high); /* in [low, high] */
void world_title(const world *w, char *text, int64_t size);

built world_build(const world *w, cmoe_ctx *ctx, how h);
void built_free(built *b);

/* x of these tokens (indices into the world) in the world's formats, `odd` bytes off and with these
 * element strides; the result comes back contiguous, in out_dtype. */
typedef struct layout {
    int64_t odd, col, row_gap;
    bool mode; /* the caller rounds upwards and flushes subnormals during the call */
} layout;

/* out [n, H] of w->out_dtype.  capture: ids and weights are recorded into ids/weights [n, slots]
 * when they are not NULL; replay: ids (and weights) are forced. */
void world_run(const world *w, const built *b, const int64_t *tokens, int64_t n, layout l,
               int32_t *ids, float *weights, bool replay, void *out);
cmoe_view_mut world_room(int32_t dtype, int64_t rows, int64_t cols, layout l, void **memory);
void world_caller_mode(bool odd);        /* rounds upwards and flushes; false: as usual */
void *world_memory(int64_t bytes);       /* ends the program when there is none */
int64_t world_out_bytes(const world *w); /* of one token */

_Noreturn void world_die(const char *what, const cmoe_error *err);

#endif
