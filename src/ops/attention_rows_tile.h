/* SPDX-License-Identifier: MIT
 *
 * ops/attention_rows_tile.h - which query rows a kernel takes together, and over which keys.
 *
 * A tile is up to CMOEI_ATTENTION_ROWS_TILE rows: some tokens, the heads of a group of each.  It
 * walks every key that one of them sees, ascending, in runs: of keys that all rows see, and of others,
 * for which a bit of each row says so.  Neighbours in a causal document share all keys but a few of
 * the last; in a window also a few of the first; in a block of block diffusion all of them.
 */
#ifndef CMOE_OPS_ATTENTION_ROWS_TILE_H
#define CMOE_OPS_ATTENTION_ROWS_TILE_H

#include "ops/attention_rows.h"

enum {
    TILE_ROWS = CMOEI_ATTENTION_ROWS_TILE,
    TILE_RUNS = 10, /* two stretches, cut at both ends of what all see of either range */
    TILE_SLACK = 64 /* keys that a tile may walk beyond what one of its tokens sees */
};

typedef struct tile_run {
    int64_t first, count; /* keys */
    int64_t slot;         /* where its scores begin */
    bool all;             /* every row sees every key of it */
} tile_run;

typedef struct tile {
    int64_t tokens, heads, rows; /* row: token * heads + head */
    int32_t token[TILE_ROWS];
    int32_t see[TILE_ROWS][4];
    int32_t hull[4]; /* around the first and around the second ranges */
    int64_t most;    /* keys of the token that sees most */
    int64_t slots;   /* keys of all runs */
    int runs;
    tile_run run[TILE_RUNS];
} tile;

/* Ranges that touch become one, and none is empty before one that is not. */
static inline void tile_normalise(int32_t at[4])
{
    if (at[2] >= at[3]) at[2] = at[3] = 0;
    if (at[0] >= at[1]) {
        at[0] = at[2], at[1] = at[3];
        at[2] = at[3] = 0;
    }
    if (at[2] < at[3] && at[1] == at[2]) {
        at[1] = at[3];
        at[2] = at[3] = 0;
    }
}

static inline void tile_widen(int32_t *hull, const int32_t *range)
{
    if (range[0] >= range[1]) return;
    const bool none = hull[0] >= hull[1];
    hull[0] = none ? range[0] : CMOEI_MIN(hull[0], range[0]);
    hull[1] = none ? range[1] : CMOEI_MAX(hull[1], range[1]);
}

/* The second hull never begins before the first. */
static inline bool tile_one_stretch(const int32_t hull[4])
{
    return hull[2] >= hull[3] || hull[2] <= hull[1];
}
static inline int64_t tile_hull_keys(const int32_t hull[4])
{
    if (tile_one_stretch(hull)) return CMOEI_MAX(hull[1], hull[3]) - hull[0];
    return (int64_t)(hull[1] - hull[0]) + (hull[3] - hull[2]);
}

/* False when the token's keys lie too far from those of the others. */
static inline bool tile_add(tile *t, const cmoei_plane *see, int64_t token)
{
    int32_t at[4], hull[4];
    cmoei_attention_rows_see(see, token, at);
    tile_normalise(at);
    memcpy(hull, t->hull, sizeof hull);
    tile_widen(hull, at);
    tile_widen(hull + 2, at + 2);
    const int64_t keys = (int64_t)(at[1] - at[0]) + (at[3] - at[2]);
    const int64_t most = CMOEI_MAX(t->most, keys), walk = tile_hull_keys(hull);
    const bool apart = walk >= tile_hull_keys(t->hull) + keys;
    if (t->tokens > 0 && walk > TILE_SLACK && (apart || walk > most + TILE_SLACK)) return false;
    memcpy(t->hull, hull, sizeof hull);
    memcpy(t->see[t->tokens], at, sizeof at);
    t->token[t->tokens++] = (int32_t)token;
    t->most = most;
    return true;
}

/* What all tokens see of their first (which 0) or second (2) range. */
static inline void tile_common(const tile *t, int which, int32_t all[2])
{
    all[0] = 0, all[1] = INT32_MAX;
    for (int64_t i = 0; i < t->tokens; i++) {
        all[0] = CMOEI_MAX(all[0], t->see[i][which]);
        all[1] = CMOEI_MIN(all[1], t->see[i][which + 1]);
    }
}

static inline void tile_stretch(tile *t, int64_t from, int64_t to, const int32_t all[4])
{
    while (from < to) {
        tile_run *run = &t->run[t->runs++];
        *run = (tile_run){.first = from, .slot = t->slots};
        int64_t end = to;
        for (int i = 0; i < 4; i += 2) {
            if (all[i] >= all[i + 1] || from >= all[i + 1]) continue;
            run->all |= from >= all[i];
            end = CMOEI_MIN(end, from >= all[i] ? all[i + 1] : all[i]);
        }
        run->count = end - from;
        t->slots += run->count;
        from = end;
    }
}

/* Once all tokens are there; `heads` of each. */
static inline void tile_close(tile *t, int64_t heads)
{
    int32_t all[4];
    const int32_t *h = t->hull;
    t->heads = heads;
    t->rows = t->tokens * heads;
    t->slots = t->runs = 0;
    tile_common(t, 0, all);
    tile_common(t, 2, all + 2);
    if (tile_one_stretch(h)) {
        tile_stretch(t, h[0], CMOEI_MAX(h[1], h[3]), all);
    } else {
        tile_stretch(t, h[0], h[1], all);
        tile_stretch(t, h[2], h[3], all);
    }
}

/* Bit r of seen[slot]: row r sees the key; only of runs that not all rows see. */
static inline void tile_look(const tile *t, uint32_t *seen)
{
    const uint32_t heads = (uint32_t)((UINT64_C(1) << t->heads) - 1);
    for (int n = 0; n < t->runs; n++) {
        const tile_run *run = &t->run[n];
        if (run->all) continue;
        memset(seen + run->slot, 0, (size_t)run->count * sizeof *seen);
        for (int64_t i = 0; i < t->tokens; i++) {
            for (int w = 0; w < 4; w += 2) {
                const int64_t from = CMOEI_MAX(run->first, t->see[i][w]) - run->first;
                const int64_t to =
                    CMOEI_MIN(run->first + run->count, t->see[i][w + 1]) - run->first;
                for (int64_t j = from; j < to; j++)
                    seen[run->slot + j] |= heads << (i * t->heads);
            }
        }
    }
}

#endif
