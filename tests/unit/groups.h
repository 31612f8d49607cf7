/* SPDX-License-Identifier: MIT
 *
 * groups.h - groups of random ids for tests of what runs on them.
 */
#ifndef CMOE_TEST_GROUPS_H
#define CMOE_TEST_GROUPS_H

#include "unit.h"

typedef struct grouping {
    cmoe_groups g;
    int32_t *ids; /* [T, K] */
    cmoe_arena arena;
} grouping;

/* Ids of -1 .. experts: some slots are dropped. */
static inline grouping grouping_make(cmoe_stream *s, uint64_t seed, int64_t tokens, int64_t topk,
                                     int64_t experts, int64_t block)
{
    grouping r = {.ids = malloc((size_t)(tokens * topk * 4 + 1))};
    for (int64_t i = 0; i < tokens * topk; i++)
        r.ids[i] = (int32_t)(cmoe_random_u64(seed, (uint64_t)i, 5) % (uint64_t)(experts + 2)) - 1;
    cmoe_align_options o;
    cmoe_align_options_default(&o, sizeof o);
    o.experts = experts;
    o.block = block;
    int64_t bytes = 0;
    UNIT_OK(cmoe_align_bytes(&o, tokens, topk, &bytes, NULL, &err));
    r.arena = unit_arena(bytes);
    UNIT_OK(cmoe_align(s, &o, cmoe_view_2d(r.ids, CMOE_I32, tokens, topk), &r.g, &r.arena, &err));
    return r;
}

static inline void grouping_free(grouping *r)
{
    free(r->ids);
    free(r->arena.base);
}

#endif
