/* SPDX-License-Identifier: MIT
 *
 * run.h - a model of a folder, and the logits of sequences cut, batched and paged as a test wants.
 */
#ifndef CMOE_GOLDEN_RUN_H
#define CMOE_GOLDEN_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmoe/model.h"
#include "cmoe/weights.h"

void *run_memory(int64_t bytes); /* zeros; ends the program when there are none */

/* ---- model ----------------------------------------------------------------------------------- */

typedef struct run_model {
    cmoe_ctx *ctx;
    cmoe_stream *stream;
    cmoe_model *model;
    cmoe_model_info info;
    int64_t *topk; /* [layers]; 0: a dense layer */
} run_model;

/* isa NULL: the best there is; format 0: as stored. */
bool run_open(run_model *m, const char *folder, int32_t threads, const char *isa, int32_t format,
              cmoe_error *err);
/* One thread, packed weights kept in `cache_dir`; what is said to the log is counted in *said. */
bool run_open_kept(run_model *m, const char *folder, const char *cache_dir, int32_t format,
                   int *said, cmoe_error *err);
/* With options of the test's own. */
bool run_open_options(run_model *m, const char *folder, int32_t threads,
                      const cmoe_model_options *o, cmoe_error *err);
void run_close(run_model *m); /* also one that did not open */

/* ---- routing --------------------------------------------------------------------------------- */

/* Of `tokens` tokens: [layers] views of own memory, empty where a layer has no experts. */
typedef struct run_routing {
    int64_t layers;
    cmoe_routing *layer;
} run_routing;

run_routing run_routing_make(const run_model *m, int64_t tokens);
void run_routing_free(run_routing *r);

/* ---- logits ---------------------------------------------------------------------------------- */

typedef struct run_sequence {
    const int32_t *ids; /* [tokens] */
    int64_t tokens;
    float *logits; /* [tokens, vocab], written */
} run_sequence;

typedef struct run_options {
    int64_t chunk; /* tokens of each sequence in one call; 0: all */
    int64_t every; /* > 0: only the logits of each so-many-th token are asked for, and written */
    const run_routing *capture, *replay; /* of one call; or NULL */
} run_options;

/* Runs the sequences side by side with a cache of their own.  Page p of sequence i lies anywhere, all
 * sequences mixed; entries of the page table that must not be read are poisoned. */
bool run_logits(run_model *m, const run_sequence *sequences, int64_t n, const run_options *o,
                cmoe_error *err);

#endif
