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
#include "options.h"

typedef struct routing_flags {
    const char *capture, *replay;
    bool replay_weights;
} routing_flags;

/* For a field `routing_flags routing`. */
#define OPTIONS_ROUTING(owner)                                                                  \
    {.name = "capture-routing",                                                                 \
     .group = "Routing",                                                                        \
     .argument = "F",                                                                           \
     .type = OPTION_TEXT,                                                                       \
     .offset = offsetof(owner, routing.capture),                                                \
     .help = "write which experts every token went to, and their weights"},                     \
        {.name = "replay-routing",                                                              \
         .group = "Routing",                                                                    \
         .argument = "F",                                                                       \
         .type = OPTION_TEXT,                                                                   \
         .offset = offsetof(owner, routing.replay),                                             \
         .help = "send tokens to the experts of this file; weights come from the live scores"}, \
    {                                                                                           \
        .name = "replay-weights", .group = "Routing", .type = OPTION_FLAG,                      \
        .offset = offsetof(owner, routing.replay_weights),                                      \
        .help = "take the weights from the file, too"                                           \
    }

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

/* What can be wrong with the flags, before anything is loaded. */
int routing_check_flags(const routing_flags *flags, const cmoe_model_info *info,
                        const char *model_path);

/* How many tokens the file at `path` has rows for. */
int routing_count(cmoe_ctx *ctx, const char *path, int64_t *tokens);

/* Room for T tokens.  Like all here it returns 0, or the exit status after an error line. */
int routing_create(routing *r, const cmoe_model *m, int64_t tokens);
void routing_free(routing *r);

/* Fills `r`, which was created, from a file of just this shape. */
int routing_read(routing *r, cmoe_ctx *ctx, const char *path, bool weights);
int routing_write(const routing *r, const char *path);

/* Tokens [first, first + n) of all layers, as a call takes them; valid until the next time. */
const cmoe_routing *routing_rows(routing *r, int64_t first, int64_t n, bool weights);

#endif
