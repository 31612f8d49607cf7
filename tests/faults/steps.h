/* SPDX-License-Identifier: MIT
 *
 * steps.h - every forward step that takes an arena, on the small layer, as one list.
 */
#ifndef CMOE_STEPS_H
#define CMOE_STEPS_H

#include "fault.h"

/* The cache: heads of keys and values, their widths, heads of queries, pages and their most bytes. */
enum {
    FKV = 2,
    FKD = 8,
    FVD = 12,
    FQ = 4,
    FPAGES = 3,
    FPAGE = FKV * (FKD + FVD) * CMOE_KV_PAGE * 4
};
/* Gated delta net: key heads and their width, value heads and theirs, channels, width of the filter. */
enum { FGK = 2, FGKD = 4, FGV = 4, FGVD = 3, FGC = 2 * FGK * FGKD + FGV * FGVD, FGW = 3 };

typedef struct steps_out {
    _Alignas(64) char pages[FPAGES * FPAGE];
    float weights[FT * (FK + 1)], logits[FT * FE], rows[FT * FK * FH], out[FT * FH];
    float state[(FT + 1) * FGC * (FGW - 1)];
    int32_t ids[FT * (FK + 1)];
    cmoe_groups groups;
} steps_out;

/* Everything a step needs that is made once. */
typedef struct steps_env {
    unit_env env;
    fault_data data;
    steps_out out;
    cmoe_matrix *matrix[3];   /* w2 in f32, bf16, int8 */
    cmoe_experts *experts[4]; /* in f32, bf16, int8; f32 borrowed */
    cmoe_experts *shared;
    cmoe_layer *layers[4]; /* over them; the last one in chunks, with a shared expert */
    cmoe_groups groups;    /* of data.ids */
    void *groups_memory;
    char *cache[2]; /* keys and values in f32, bf16: 70 positions of one sequence, 0 of another */
    int32_t which;  /* format of the step that is run, 0..3 */
} steps_env;

typedef struct step {
    const char *name;
    int32_t formats; /* how many values of `which` it has */
    int32_t keeps;   /* 1: its results stay in the arena */
    cmoe_status (*bytes)(steps_env *e, int64_t *host, cmoe_error *err);
    cmoe_status (*run)(steps_env *e, cmoe_arena *arena, cmoe_error *err);
} step;

enum { STEPS = 20 };
extern const step steps[STEPS];

void steps_open(steps_env *e, fault_memory *m, int32_t threads);
void steps_close(steps_env *e);

#endif
