/* SPDX-License-Identifier: MIT
 *
 * align/align.h - grouping for callers inside the library that have checked everything already and
 * carve the groups together with their own scratch.
 *
 *     cmoei_align_plan plan = {.tokens, .topk, .experts, .first_expert, .block};
 *     CMOEI_TRY(cmoei_align_check(&plan, err));      sizes only
 *     cmoei_align_carve(&carver, &plan);             groups
 *     cmoei_align_carve_scratch(&carver, &plan);     counters, not needed after the run
 *     cmoei_align_run(ctx, &plan, &ids, &groups);
 */
#ifndef CMOE_ALIGN_ALIGN_H
#define CMOE_ALIGN_ALIGN_H

#include "cmoe/align.h"
#include "core/core.h"

/* A checked view of ids [T, K], with steps in bytes. */
typedef struct cmoei_ids {
    const char *data;
    int64_t tokens, topk;
    int64_t token_step, slot_step;
    bool wide; /* int64, else int32 */
} cmoei_ids;

typedef struct cmoei_align_plan {
    int64_t tokens, topk, experts, first_expert, block;
    /* by cmoei_align_check: */
    int64_t slots, capacity; /* T*K; rows that are enough for any ids */
    /* by cmoei_align_carve: */
    int64_t *first;           /* [E+1] */
    int32_t *row_of, *sorted; /* [T, K] [capacity] */
    /* by cmoei_align_carve_scratch: */
    int64_t parts;
    int32_t *cursor; /* [parts, E] */
} cmoei_align_plan;

cmoei_ids cmoei_ids_of(const cmoe_view *ids);
/* ids [tokens, topk] (either -1: any) with T*K in int32. */
cmoe_status cmoei_check_ids(const cmoe_view *ids, int64_t tokens, int64_t topk, cmoe_error *err);
/* Every id in 0..experts-1, or -1 where that is allowed; names the first that is not. */
cmoe_status cmoei_check_id_range(const cmoe_view *ids, int64_t experts, const char *experts_name,
                                 bool allow_none, cmoe_error *err);

cmoe_status cmoei_align_check(cmoei_align_plan *plan, cmoe_error *err);
void cmoei_align_carve(cmoei_carver *c, cmoei_align_plan *plan);
void cmoei_align_carve_scratch(cmoei_carver *c, cmoei_align_plan *plan);
/* Starts a region of its own only where there are enough slots to pay for it. */
void cmoei_align_run(cmoe_ctx *ctx, const cmoei_align_plan *plan, const cmoei_ids *ids,
                     cmoe_groups *out);

#endif
