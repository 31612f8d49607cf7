/* SPDX-License-Identifier: MIT
 *
 * sights.h - what tokens see, for the tests of attention of whole sequences: see [tokens, 4].
 */
#ifndef CMOE_TESTS_SIGHTS_H
#define CMOE_TESTS_SIGHTS_H

#include <string.h>

#include "core/core.h"

typedef enum sight_kind {
    SIGHT_CAUSAL,    /* documents of `size` tokens */
    SIGHT_WINDOW,    /* the last `size` tokens, and the first two */
    SIGHT_BLOCK,     /* all up to the end of the own block of `size` */
    SIGHT_DIFFUSION, /* noised half, then clean half: a noised block sees itself and the clean blocks
                        before its own; a clean one itself and the clean ones before it */
    SIGHT_RANDOM,
    SIGHT_NOTHING /* every third token sees one other */
} sight_kind;

static const char *const sight_names[] = {"causal",    "window", "block",
                                          "diffusion", "random", "nothing"};

static inline void sight_random(int32_t *at, int64_t tokens, int64_t t, uint64_t seed)
{
    uint64_t cut[4];
    for (uint64_t i = 0; i < 4; i++)
        cut[i] = cmoe_random_u64(seed, (uint64_t)t, i) % (uint64_t)(tokens + 1);
    for (int i = 0; i < 4; i++) {
        for (int j = i + 1; j < 4; j++) {
            if (cut[j] >= cut[i]) continue;
            const uint64_t x = cut[i];
            cut[i] = cut[j];
            cut[j] = x;
        }
    }
    for (int i = 0; i < 4; i++)
        at[i] = (int32_t)cut[i];
    if (t % 5 == 1) at[0] = at[1];
    if (t % 5 == 2) at[2] = at[3] = 0;
}

static inline void sights(int32_t *see, sight_kind kind, int64_t tokens, int64_t size,
                          uint64_t seed)
{
    const int64_t half = tokens / 2;
    memset(see, 0, (size_t)tokens * 4 * sizeof *see);
    for (int64_t t = 0; t < tokens; t++) {
        int32_t *at = see + 4 * t;
        int64_t x[4] = {0, 0, 0, 0};
        if (kind == SIGHT_CAUSAL) {
            x[0] = t / size * size;
            x[1] = t + 1;
        } else if (kind == SIGHT_WINDOW) {
            x[2] = CMOEI_MAX(0, t - size + 1);
            x[1] = CMOEI_MIN(2, x[2]);
            x[3] = t + 1;
        } else if (kind == SIGHT_BLOCK) {
            x[1] = CMOEI_MIN(tokens, t / size * size + size);
        } else if (kind == SIGHT_DIFFUSION && t < half) {
            x[0] = t / size * size;
            x[1] = CMOEI_MIN(half, x[0] + size);
            x[2] = half;
            x[3] = half + x[0];
        } else if (kind == SIGHT_DIFFUSION) {
            x[0] = half;
            x[1] = CMOEI_MIN(tokens, half + (t - half) / size * size + size);
        } else if (kind == SIGHT_NOTHING && t % 3 == 0) {
            x[0] = tokens - 1 - t;
            x[1] = x[0] + 1;
        }
        for (int i = 0; i < 4; i++)
            at[i] = (int32_t)x[i];
        if (kind == SIGHT_RANDOM) sight_random(at, tokens, t, seed);
    }
}

#endif
