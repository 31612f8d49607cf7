/* SPDX-License-Identifier: MIT
 *
 * diffusion_pick.c - which masked positions of a block a forward fills.
 *
 * After JetAstra/SDAR's generate.py, with what it leaves open or gets wrong decided: never more
 * positions than masks are left, confidence before any filter, ties to the lower position, and
 * entropy_bounded by the entropies of whole distributions, at least one position a forward.  The rule
 * for several blocks at once is Diffulex's (multi_bd), with its thresholds as settings.
 */
#include "engine/diffusion.h"

int64_t cmoei_diffusion_share(const cmoe_diffusion *d, int64_t pass)
{
    const int64_t step = CMOEI_MIN(pass, d->steps - 1);
    return d->block / d->steps + (step < d->block % d->steps);
}

static double key_of(const cmoe_diffusion *d, const cmoei_candidate *c)
{
    return d->remasking == CMOE_REMASK_ENTROPY_BOUNDED ? -c->entropy : c->confidence;
}

/* The best one that is not taken; ties go to the lower position.  Blocks are short. */
static cmoei_candidate *best_left(const cmoe_diffusion *d, cmoei_candidate *c, int64_t n)
{
    cmoei_candidate *best = NULL;
    for (int64_t i = 0; i < n; i++) {
        if (!c[i].take && (!best || key_of(d, &c[i]) > key_of(d, best))) best = &c[i];
    }
    return best;
}

static void take_best(const cmoe_diffusion *d, cmoei_candidate *c, int64_t n, int64_t count)
{
    for (; count > 0; count--)
        best_left(d, c, n)->take = true;
}

static int64_t take_above(float threshold, cmoei_candidate *c, int64_t n)
{
    int64_t taken = 0;
    for (int64_t i = 0; i < n; i++) {
        c[i].take = c[i].confidence > (double)threshold;
        taken += c[i].take;
    }
    return taken;
}

static void take_bounded(const cmoe_diffusion *d, cmoei_candidate *c, int64_t n)
{
    double sum = 0;
    for (int64_t taken = 0; taken < n; taken++) {
        cmoei_candidate *next = best_left(d, c, n);
        sum += next->entropy;
        if (taken > 0 && !(sum < (double)d->eb)) return;
        next->take = true;
    }
}

void cmoei_diffusion_pick(const cmoe_diffusion *d, int64_t pass, cmoei_candidate *c, int64_t n)
{
    const int64_t count = CMOEI_MIN(cmoei_diffusion_share(d, pass), n);
    for (int64_t i = 0; i < n; i++)
        c[i].take = d->remasking == CMOE_REMASK_SEQUENTIAL && i < count;
    switch (d->remasking) {
    case CMOE_REMASK_LOW_CONFIDENCE_DYNAMIC:
        if (take_above(d->threshold, c, n) >= count) return;
        for (int64_t i = 0; i < n; i++)
            c[i].take = false;
        take_best(d, c, n, count);
        return;
    case CMOE_REMASK_LOW_CONFIDENCE_STATIC:
        take_best(d, c, n, count);
        return;
    case CMOE_REMASK_ENTROPY_BOUNDED:
        take_bounded(d, c, n);
        return;
    default:
        return;
    }
}

void cmoei_diffusion_pick_accepted(const cmoe_diffusion *d, bool forced, cmoei_candidate *c,
                                   int64_t n)
{
    const cmoe_diffusion by_confidence = {.remasking = CMOE_REMASK_LOW_CONFIDENCE_STATIC};
    if (take_above(d->accept, c, n) == 0 && forced && n > 0) take_best(&by_confidence, c, n, 1);
}
