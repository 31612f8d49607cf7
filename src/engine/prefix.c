/* SPDX-License-Identifier: MIT
 *
 * prefix.c - pages found again by what stands in them.
 *
 * The hash of a page is that of the page before it, continued over its own tokens.  It only says where
 * to look: a page counts as found when its tokens are equal and the page before it is the one that was
 * found before, so equal hashes of different prefixes can do no harm.
 */
#include <string.h>

#include "pages.h"

/* splitmix64's finaliser over every token. */
static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) + 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 27) * 0x94d049bb133111ebu;
    return h ^ h >> 31;
}

static uint64_t hash_of(const cmoei_pages *p, int32_t parent, const int32_t *tokens)
{
    uint64_t h = parent >= 0 ? p->page[parent].hash : 0;
    for (int64_t i = 0; i < CMOE_KV_PAGE; i++)
        h = mix(h, (uint32_t)tokens[i]);
    return h;
}

static int32_t *bucket_of(const cmoei_pages *p, uint64_t hash)
{
    return &p->bucket[hash & (uint64_t)(p->buckets - 1)];
}

static int32_t find(const cmoei_pages *p, uint64_t hash, int32_t parent, const int32_t *tokens)
{
    for (int32_t i = *bucket_of(p, hash); i >= 0; i = p->page[i].chain) {
        const cmoei_page *q = &p->page[i];
        if (q->hash == hash && q->parent == parent &&
            memcmp(q->tokens, tokens, sizeof q->tokens) == 0)
            return i;
    }
    return -1;
}

int32_t cmoei_prefix_find(const cmoei_pages *p, int32_t parent, const int32_t *tokens)
{
    return find(p, hash_of(p, parent, tokens), parent, tokens);
}

int32_t cmoei_prefix_publish(cmoei_pages *p, int32_t page, int32_t parent, const int32_t *tokens)
{
    cmoei_page *q = &p->page[page];
    const uint64_t hash = hash_of(p, parent, tokens);
    const int32_t twin = find(p, hash, parent, tokens);
    if (twin >= 0) {
        cmoei_pages_hold(p, twin);
        cmoei_pages_drop(p, page);
        return twin;
    }
    int32_t *bucket = bucket_of(p, hash);
    memcpy(q->tokens, tokens, sizeof q->tokens);
    q->hash = hash;
    q->parent = parent;
    q->known = 1;
    q->chain = *bucket;
    *bucket = page;
    return page;
}

#ifndef NDEBUG
static bool continued(const cmoei_pages *p, int32_t page)
{
    for (int64_t i = 0; i < p->count; i++)
        if (p->page[i].known && p->page[i].parent == page) return true;
    return false;
}
#endif

void cmoei_prefix_forget(cmoei_pages *p, int32_t page)
{
    CMOE_ASSERT(!continued(p, page)); /* its number may soon stand for other content */
    cmoei_page *q = &p->page[page];
    int32_t *at = bucket_of(p, q->hash);
    while (*at != page)
        at = &p->page[*at].chain;
    *at = q->chain;
    q->chain = q->parent = -1;
    q->known = 0;
}
