/* SPDX-License-Identifier: MIT
 *
 * drive.h - one sequence of a model, and the method of block diffusion on it, without an engine.
 */
#ifndef CMOE_GOLDEN_DRIVE_H
#define CMOE_GOLDEN_DRIVE_H

#include "../../unit/unit.h"
#include "cmoe/engine.h"

enum { DRIVE_MOST = 256 }; /* positions */

typedef struct drive {
    unit_env env;
    cmoe_model *model;
    cmoe_model_info info;
    cmoe_cache *cache;
    int32_t pages[DRIVE_MOST / CMOE_KV_PAGE];
    float *logits; /* [DRIVE_MOST, vocab] */
} drive;

/* Weights and cache are float32.  block 0: the model's. */
void drive_open(drive *d, const char *folder, int32_t block);
void drive_close(drive *d);
/* Runs positions [begin, end) of a canvas; logits of the positions in `rows` [n]. */
void drive_forward(drive *d, const int32_t *tokens, int64_t begin, int64_t end, const int64_t *rows,
                   int64_t n);

/* Who wrote what, when: sorted by block, pass and position. */
typedef struct drive_row {
    int64_t block, pass, position;
    int32_t token;
    double confidence;
} drive_row;

typedef struct drive_result {
    int32_t tokens[DRIVE_MOST];
    int64_t told, rows, forwards;
    int32_t finish;
    drive_row row[DRIVE_MOST];
} drive_result;

/* tokens [prompt] -> at most limit - prompt more. */
void drive_run(drive *d, const int32_t *tokens, int64_t prompt, int64_t limit,
               const cmoe_diffusion *settings, const cmoe_sampling *sampling, drive_result *r);

#endif
