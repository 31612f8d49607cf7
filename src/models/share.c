/* SPDX-License-Identifier: MIT
 *
 * share.c - which part of a model a rank keeps.
 *
 * Only outputs are ever split, so that no sum is: gate and up rows by inter, down and o rows by
 * hidden, q, k and v by heads, embedding and head by vocabulary.  Shares may be uneven.
 */
#include "model.h"

cmoei_range cmoei_share_of(const cmoei_share *s, int64_t total)
{
    int64_t begin = 0, end = total;
    if (s->ranks > 1) cmoei_split(total, s->rank, s->ranks, &begin, &end);
    return (cmoei_range){begin, end - begin};
}

void cmoei_share_heads(const cmoei_share *s, const cmoei_decoder *d, cmoei_range *queries,
                       cmoei_range *keys)
{
    const int64_t group = d->heads / d->kv_heads;
    *queries = cmoei_share_of(s, d->heads);
    const int64_t first = queries->first / group,
                  end = cmoei_ceil_div(queries->first + queries->count, group);
    *keys = (cmoei_range){first, queries->count ? end - first : 0};
}

cmoei_range cmoei_share_experts(const cmoei_share *s, int64_t experts)
{
    if (s->experts.count == 0) return (cmoei_range){0, experts};
    const int64_t first = CMOEI_MIN(s->experts.first, experts);
    return (cmoei_range){first, CMOEI_MIN(s->experts.count, experts - first)};
}
