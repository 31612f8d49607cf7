/* SPDX-License-Identifier: MIT
 *
 * share.c - a sequence's pages: found again, made known, let go.
 *
 * Only positions below `cached` have final keys and values, and only whole pages of them are shared.
 * A sequence looks for its next page before every forward, since somebody with the same prompt may be
 * ahead of it; what it has of that page already is then given up.  The last given token is always run,
 * because its logits are wanted.
 */
#include "job.h"

/* Positions below may be found instead of run.  Of blocks that were generated the last forward counts
 * as one of the request's, so it is not left out. */
static int64_t findable(const cmoei_job *j)
{
    const cmoei_sequence *s = &j->s;
    const int64_t step = s->method->step(s);
    if (!j->shares || CMOE_KV_PAGE % step != 0) return 0;
    return CMOEI_MIN(s->count - 1, step == 1 ? s->told : s->prompt);
}

static void count_found(cmoei_job *j, int64_t end)
{
    const int64_t found = CMOEI_MIN(end, j->s.prompt) - j->s.cached;
    if (j->preempted || found <= 0) return;
    j->cached_tokens += found;
    j->engine->cached_tokens += found;
}

void cmoei_job_attach(cmoei_job *j)
{
    cmoei_sequence *s = &j->s;
    cmoei_pages *p = &j->engine->pages;
    const int64_t last = findable(j);
    for (;;) {
        const int64_t k = s->cached / CMOE_KV_PAGE, end = (k + 1) * CMOE_KV_PAGE;
        if (end > last || j->published != k || j->held > k + 1) return;
        const int32_t page =
            cmoei_prefix_find(p, k ? j->pages[k - 1] : -1, s->tokens + k * CMOE_KV_PAGE);
        if (page < 0) return;
        cmoei_pages_hold(p, page);
        if (j->held > k) cmoei_pages_drop(p, j->pages[k]);
        j->pages[k] = page;
        j->held = j->published = k + 1;
        count_found(j, end);
        s->cached = end;
    }
}

void cmoei_job_publish(cmoei_job *j)
{
    if (!j->shares) return;
    while ((j->published + 1) * CMOE_KV_PAGE <= j->s.cached) {
        const int64_t i = j->published++;
        j->pages[i] = cmoei_prefix_publish(&j->engine->pages, j->pages[i], i ? j->pages[i - 1] : -1,
                                           j->s.tokens + i * CMOE_KV_PAGE);
    }
}

void cmoei_job_release(cmoei_job *j)
{
    while (j->held > 0)
        cmoei_pages_drop(&j->engine->pages, j->pages[--j->held]);
    j->published = 0;
}
