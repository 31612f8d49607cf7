/* SPDX-License-Identifier: MIT
 *
 * route_ref.c - one token: scores, the K best one after the other, weights (plain reference).
 *
 * logits [E] -> ids [K], weights [K].  route_token.h has the rule; here is only the choice, in the
 * way that needs no proof: K times the largest of those that are left, the first of equal ones.
 */
#include "route_token.h"

/* `key` [E] marks what was taken. */
static void choose(const cmoei_real *choice, int64_t experts, int64_t topk, int32_t *key,
                   int32_t *ids)
{
    for (int64_t i = 0; i < experts; i++)
        key[i] = 0;
    for (int64_t k = 0; k < topk; k++) {
        int64_t best = -1;
        for (int64_t i = 0; i < experts; i++) {
            if (!key[i] && (best < 0 || choice[i] > choice[best])) best = i;
        }
        ids[k] = (int32_t)best; /* -1: K is larger than E */
        if (best >= 0) key[best] = 1;
    }
}

void CMOEI_REF(cmoei_route_token)(const cmoei_route_plan *p, const cmoei_route_work *work,
                                  const float *logits, int32_t *ids, void *weights)
{
    cmoei_real *score = work->score, *choice = work->choice;
    route_scores(p->o.scoring, logits, score, p->experts);
    if (!p->forced) {
        route_selection(p, score, work->group, choice);
        choose(choice, p->experts, p->o.topk, work->key, ids);
    }
    route_weights(p, score, choice, ids, weights);
}

double CMOEI_REF(cmoei_route_share)(const cmoei_route_share *a, int64_t t)
{
    return route_share(a, t);
}
