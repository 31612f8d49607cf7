/* SPDX-License-Identifier: MIT
 *
 * pages.c - see pages.h.
 */
#include "pages.h"

void cmoei_pages_carve(cmoei_pages *p, int64_t count, cmoei_carver *c)
{
    int64_t buckets = 1;
    while (buckets < count)
        buckets *= 2;
    *p = (cmoei_pages){.count = count, .buckets = buckets};
    p->page = cmoei_carve_array(c, count, sizeof *p->page);
    p->bucket = cmoei_carve_array(c, buckets, sizeof *p->bucket);
    p->unused = cmoei_carve_array(c, count, sizeof *p->unused);
}

void cmoei_pages_clear(cmoei_pages *p)
{
    for (int64_t i = 0; i < p->buckets; i++)
        p->bucket[i] = -1;
    for (int64_t i = 0; i < p->count; i++) {
        p->page[i] = (cmoei_page){.parent = -1, .chain = -1, .older = -1, .newer = -1};
        p->unused[i] = (int32_t)(p->count - 1 - i); /* page 0 is taken first */
    }
    p->free = p->count;
    p->oldest = p->newest = -1;
    p->reusable = 0;
}

/* ---- list of reusable pages -------------------------------------------------------------------- */

static void unlink_page(cmoei_pages *p, int32_t page)
{
    cmoei_page *q = &p->page[page];
    if (q->older >= 0)
        p->page[q->older].newer = q->newer;
    else
        p->oldest = q->newer;
    if (q->newer >= 0)
        p->page[q->newer].older = q->older;
    else
        p->newest = q->older;
    q->older = q->newer = -1;
    p->reusable--;
}

static void link_newest(cmoei_pages *p, int32_t page)
{
    cmoei_page *q = &p->page[page];
    q->older = p->newest;
    q->newer = -1;
    if (p->newest >= 0)
        p->page[p->newest].newer = page;
    else
        p->oldest = page;
    p->newest = page;
    p->reusable++;
}

/* ---- holders ----------------------------------------------------------------------------------- */

int32_t cmoei_pages_take(cmoei_pages *p)
{
    int32_t page;
    if (p->free > 0) {
        page = p->unused[--p->free];
    } else if (p->oldest >= 0) {
        page = p->oldest;
        unlink_page(p, page);
        cmoei_prefix_forget(p, page);
    } else {
        return -1;
    }
    p->page[page].refs = 1;
    return page;
}

void cmoei_pages_hold(cmoei_pages *p, int32_t page)
{
    if (p->page[page].refs++ == 0) unlink_page(p, page);
}

void cmoei_pages_drop(cmoei_pages *p, int32_t page)
{
    cmoei_page *q = &p->page[page];
    CMOE_ASSERT(q->refs > 0);
    if (--q->refs > 0) return;
    if (q->known)
        link_newest(p, page);
    else
        p->unused[p->free++] = page;
}
