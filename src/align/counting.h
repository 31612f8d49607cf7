/* SPDX-License-Identifier: MIT
 *
 * counting.h - the one counting core: ids -> place of every slot, by expert, then token, then k.
 *
 * Tokens are split into parts of neighbours.  Each part counts its ids per expert; a prefix sum
 * over (expert, part) turns the counts into cursors, the row where the part's first slot of that
 * expert goes; then each part walks its slots again and hands out cursor[expert]++.  Parts write to
 * disjoint places fixed by the prefix sum, so the result is a stable counting sort whatever the
 * number of parts or threads, and no atomic is needed.
 *
 * What becomes of it is a form: groups, a sorted list, padded blocks, a table per expert.  A form
 * is two functions, passed as constants so that the loops below are compiled once for each.
 * Counters live where the form has room: all experts at once in an arena, or a window of them on
 * the stack, one window after the other, for calls that have no arena.
 */
#ifndef CMOE_ALIGN_COUNTING_H
#define CMOE_ALIGN_COUNTING_H

#include <string.h>

#include "align/align.h"

typedef struct cmoei_counting {
    cmoei_ids ids;
    int64_t experts,
        first_expert; /* ids outside [first_expert, first_expert + experts) are skipped */
    int64_t window;   /* experts counted at a time */
    int64_t parts;    /* of tokens, counted apart */
    int32_t *cursor;  /* [parts, window] */
    int64_t row;      /* where the next expert begins */
    void *form;
} cmoei_counting;

/* All rows of an expert are counted, they begin at `row`: returns where the next expert begins. */
typedef int64_t (*cmoei_expert_fn)(void *form, int64_t expert, int64_t row, int64_t count);
/* Slot k of token t goes to `row`; -1: its id lies outside the window. */
typedef void (*cmoei_slot_fn)(void *form, int64_t expert, int64_t t, int64_t k, int64_t row);

static inline int64_t cmoei_id_at(const cmoei_ids *ids, int64_t t, int64_t k)
{
    const char *p = ids->data + t * ids->token_step + k * ids->slot_step;
    if (ids->wide) {
        int64_t id;
        memcpy(&id, p, sizeof id);
        return id;
    }
    int32_t id;
    memcpy(&id, p, sizeof id);
    return id;
}

/* Outside the window this is at least `n`; unsigned, so that no id overflows. */
static inline uint64_t cmoei_id_in(const cmoei_counting *c, int64_t t, int64_t k, int64_t begin)
{
    return (uint64_t)cmoei_id_at(&c->ids, t, k) - (uint64_t)(c->first_expert + begin);
}

/* Experts [begin, begin + n) of one part. */
static inline void cmoei_count_part(const cmoei_counting *c, int64_t part, int64_t begin, int64_t n)
{
    int32_t *count = c->cursor + part * c->window;
    int64_t t, end;
    memset(count, 0, (size_t)n * sizeof *count);
    cmoei_split(c->ids.tokens, (int32_t)part, (int32_t)c->parts, &t, &end);
    for (; t < end; t++) {
        for (int64_t k = 0; k < c->ids.topk; k++) {
            const uint64_t e = cmoei_id_in(c, t, k, begin);
            if (e < (uint64_t)n) count[e]++;
        }
    }
}

static inline void cmoei_count_prefix(cmoei_counting *c, int64_t begin, int64_t n,
                                      cmoei_expert_fn expert)
{
    for (int64_t e = 0; e < n; e++) {
        int64_t row = c->row;
        for (int64_t p = 0; p < c->parts; p++) {
            int32_t *cursor = c->cursor + p * c->window + e;
            const int32_t count = *cursor;
            *cursor = (int32_t)row;
            row += count;
        }
        c->row = expert(c->form, begin + e, c->row, row - c->row);
    }
}

static inline void cmoei_count_place(const cmoei_counting *c, int64_t part, int64_t begin,
                                     int64_t n, cmoei_slot_fn slot)
{
    int32_t *cursor = c->cursor + part * c->window;
    int64_t t, end;
    cmoei_split(c->ids.tokens, (int32_t)part, (int32_t)c->parts, &t, &end);
    for (; t < end; t++) {
        for (int64_t k = 0; k < c->ids.topk; k++) {
            const uint64_t e = cmoei_id_in(c, t, k, begin);
            const bool mine = e < (uint64_t)n;
            slot(c->form, mine ? begin + (int64_t)e : -1, t, k, mine ? cursor[e]++ : -1);
        }
    }
}

/* The body of a form's region function. */
static inline void cmoei_count_task(cmoei_counting *c, cmoei_team *team, int32_t index,
                                    int32_t count, cmoei_expert_fn expert, cmoei_slot_fn slot)
{
    for (int64_t begin = 0; begin < c->experts; begin += c->window) {
        const int64_t n = CMOEI_MIN(c->window, c->experts - begin);
        for (int64_t p = index; p < c->parts; p += count)
            cmoei_count_part(c, p, begin, n);
        cmoei_barrier(team);
        if (index == 0) cmoei_count_prefix(c, begin, n, expert);
        cmoei_barrier(team);
        for (int64_t p = index; p < c->parts; p += count)
            cmoei_count_place(c, p, begin, n, slot);
    }
}

#endif
