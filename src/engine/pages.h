/* SPDX-License-Identifier: MIT
 *
 * pages.h - who holds which page of the cache, and what stands in pages that nobody holds any more.
 *
 * A page is free, held (refs > 0), or reusable: full, known by its tokens, held by nobody.  A known
 * page is named by the page before it and its own 64 tokens, so two pages with one name have the same
 * whole prefix and the same bits.
 */
#ifndef CMOE_ENGINE_PAGES_H
#define CMOE_ENGINE_PAGES_H

#include "cmoe/attention.h"
#include "core/core.h"

typedef struct cmoei_page {
    uint64_t hash;        /* of the whole prefix */
    int32_t refs;         /* sequences that hold it */
    int32_t known;        /* stands in the table */
    int32_t parent;       /* the page before it, which is known too; -1: it is the first */
    int32_t chain;        /* next page of its bucket, or -1 */
    int32_t older, newer; /* among the reusable ones, or -1 */
    int32_t tokens[CMOE_KV_PAGE];
} cmoei_page;

typedef struct cmoei_pages {
    cmoei_page *page; /* [count] */
    int64_t count;
    int32_t *bucket; /* [buckets] first page, or -1; a power of two */
    int64_t buckets;
    int32_t *unused; /* [count] stack of free pages */
    int64_t free;
    int32_t oldest, newest; /* reusable ones, by the time when they were let go */
    int64_t reusable;
} cmoei_pages;

void cmoei_pages_carve(cmoei_pages *p, int64_t count, cmoei_carver *c);
void cmoei_pages_clear(cmoei_pages *p);

/* A page for one holder: a free one, else the reusable one that was not used for longest; -1: none. */
int32_t cmoei_pages_take(cmoei_pages *p);
void cmoei_pages_hold(cmoei_pages *p, int32_t page); /* one holder more */
/* One less.  Pages of a sequence are let go from its end, so that a page is always younger than those
 * that continue it, and what is evicted continues nowhere. */
void cmoei_pages_drop(cmoei_pages *p, int32_t page);

/* ---- by content (prefix.c) -------------------------------------------------------------------- */

/* The known page that holds tokens [CMOE_KV_PAGE] behind `parent` (-1: at the start); -1: none. */
int32_t cmoei_prefix_find(const cmoei_pages *p, int32_t parent, const int32_t *tokens);
/* Makes a held page known.  Returns it, or the page with the same content that is known already: then
 * that one is held instead and `page` is let go. */
int32_t cmoei_prefix_publish(cmoei_pages *p, int32_t page, int32_t parent, const int32_t *tokens);
void cmoei_prefix_forget(cmoei_pages *p, int32_t page);

#endif
