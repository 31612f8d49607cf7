/* SPDX-License-Identifier: MIT
 *
 * steps.h - every forward step that takes an arena, on the small layer, as one list.
 */
#ifndef CMOE_STEPS_H
#define CMOE_STEPS_H

#include "fault.h"

typedef struct steps_out {
    float weights[FT * (FK + 1)], logits[FT * FE], rows[FT * FK * FH], out[FT * FH];
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
    int32_t which; /* format of the step that is run, 0..3 */
} steps_env;

typedef struct step {
    const char *name;
    int32_t formats; /* how many values of `which` it has */
    int32_t keeps;   /* 1: its results stay in the arena */
    cmoe_status (*bytes)(steps_env *e, int64_t *host, cmoe_error *err);
    cmoe_status (*run)(steps_env *e, cmoe_arena *arena, cmoe_error *err);
} step;

enum { STEPS = 11 };
extern const step steps[STEPS];

void steps_open(steps_env *e, fault_memory *m, int32_t threads);
void steps_close(steps_env *e);

#endif
