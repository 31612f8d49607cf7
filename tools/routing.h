/* SPDX-License-Identifier: MIT
 *
 * routing.h - captured routing: which experts every token went to, kept, written and read.
 *
 * A safetensors file with layers.<i>.topk_ids int32 [T, K] and layers.<i>.topk_weights float32
 * [T, K] for each MoE layer i, one row per position.
 */
#ifndef TOOLS_ROUTING_H
#define TOOLS_ROUTING_H

#include "cmoe/model.h"
#include "machine.h"

/* T tokens, K experts of a token in this layer; K = 0: a dense layer */
typedef struct routing_layer {
    int64_t topk, experts;
    int32_t *ids;   /* [T, K] */
    float *weights; /* [T, K] */
} routing_layer;

typedef struct routing {
    int64_t layers, tokens;
    routing_layer *layer;
    cmoe_routing *rows; /* [layers] what routing_rows returns */
} routing;

/* Room for T tokens.  Like all here, returns 0, or the exit status after an error line. */
int routing_create(routing *r, const cmoe_model *m, int64_t tokens);
void routing_free(routing *r);

/* Fills `r`, which was created, from a file of just this shape. */
int routing_read(routing *r, cmoe_ctx *ctx, const char *path, bool weights);
int routing_write(const routing *r, const char *path);

/* Tokens [first, first + n) of all layers, as a call takes them; valid until the next time. */
const cmoe_routing *routing_rows(routing *r, int64_t first, int64_t n, bool weights);

#endif
