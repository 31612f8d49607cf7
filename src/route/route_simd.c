/* SPDX-License-Identifier: MIT
 *
 * route_simd.c - one token: scores, the K best out of columns, weights (portable C for vectors).
 *
 * logits [E] -> ids [K], weights [K].  The loops of route_token.h become vectors as they are.  What
 * differs from route_ref.c is the search, not its result: selection scores turn into integers of
 * the same order (integer maxima vectorise without leave to reorder floats), and experts are dealt
 * to columns, i % lanes, of which only the best is looked at:
 *
 *     best of every column                     one pass over E, whole vectors
 *     K times: largest column, lowest id       lanes / 16 vectors
 *              take it, find that column's next   E / lanes scalars
 *
 * With lanes about 2 sqrt(E), a choice costs O(sqrt(E)) instead of the O(E) of looking at all.
 */
#include "route_token.h"

enum { TAKEN = INT32_MIN }; /* below the key of -infinity */

/* Integers in the order of floats that are not NaN; the two zeros are one. */
static inline int32_t order_key(float x)
{
    const uint32_t u = cmoei_bits(x + 0.0f);
    return (int32_t)(u ^ (uint32_t)((int32_t)u >> 31) >> 1);
}

/* The largest of column `lane`, the lowest id of equal ones. */
static inline void best_of_column(const int32_t *key, int64_t lanes, int64_t rows, int64_t lane,
                                  int32_t *best, int32_t *best_id)
{
    int32_t top = key[lane], at = 0;
    for (int32_t r = 1; r < (int32_t)rows; r++) {
        const int32_t x = key[r * lanes + lane];
        at = x > top ? r : at;
        top = x > top ? x : top;
    }
    best[lane] = top;
    best_id[lane] = (int32_t)(at * lanes + lane);
}

static void best_of_columns(const int32_t *key, int64_t lanes, int64_t rows, int32_t *restrict best,
                            int32_t *restrict best_id)
{
    for (int64_t l = 0; l < lanes; l++) {
        best[l] = key[l];
        best_id[l] = (int32_t)l;
    }
    for (int64_t r = 1; r < rows; r++) {
        const int32_t first = (int32_t)(r * lanes);
        for (int32_t l = 0; l < (int32_t)lanes; l++) {
            const int32_t x = key[first + l], top = best[l];
            best_id[l] = x > top ? first + l : best_id[l];
            best[l] = x > top ? x : top;
        }
    }
}

static inline int32_t best_of_all(const int32_t *best, const int32_t *best_id, int64_t lanes)
{
    int32_t top = TAKEN, id = INT32_MAX;
    for (int64_t l = 0; l < lanes; l++)
        top = CMOEI_MAX(top, best[l]);
    for (int64_t l = 0; l < lanes; l++) {
        const int32_t candidate = best[l] == top ? best_id[l] : INT32_MAX;
        id = CMOEI_MIN(id, candidate);
    }
    return id;
}

static void choose(const cmoei_route_work *work, int64_t experts, int64_t topk, int32_t *ids)
{
    const int64_t lanes = cmoei_route_lanes(experts), rows = cmoei_ceil_div(experts, lanes);
    const float *choice = work->choice;
    int32_t *restrict key = work->key, *best = work->best, *best_id = best + lanes;
    for (int64_t i = 0; i < experts; i++)
        key[i] = order_key(choice[i]);
    for (int64_t i = experts; i < rows * lanes; i++)
        key[i] = TAKEN;
    best_of_columns(key, lanes, rows, best, best_id);
    const int64_t found = CMOEI_MIN(topk, experts);
    for (int64_t k = 0; k < found; k++) {
        ids[k] = best_of_all(best, best_id, lanes);
        key[ids[k]] = TAKEN;
        best_of_column(key, lanes, rows, ids[k] & (lanes - 1), best, best_id);
    }
    for (int64_t k = found; k < topk; k++)
        ids[k] = -1;
}

void CMOEI_SIMD(cmoei_route_token)(const cmoei_route_plan *p, const cmoei_route_work *work,
                                   const float *logits, int32_t *ids, void *weights)
{
    route_scores(p->o.scoring, logits, work->score, p->experts);
    if (!p->forced) {
        route_selection(p, work->score, work->group, work->choice);
        choose(work, p->experts, p->o.topk, ids);
    }
    route_weights(p, work->score, work->choice, ids, weights);
}

double CMOEI_SIMD(cmoei_route_share)(const cmoei_route_share *a, int64_t t)
{
    return route_share(a, t);
}
