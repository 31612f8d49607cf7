/* SPDX-License-Identifier: MIT
 *
 * arena.c - the caller's memory, cut into aligned pieces.
 */
#include <inttypes.h>

#include "core.h"

cmoe_arena cmoe_arena_make(void *base, int64_t bytes)
{
    cmoe_arena a;
    a.base = base;
    a.bytes = bytes;
    a.used = 0;
    return a;
}

cmoei_carver cmoei_carver_dry(void)
{
    return (cmoei_carver){.dry = true};
}

static bool sane(const cmoe_arena *a)
{
    return a && a->base && a->used >= 0 && a->used <= a->bytes;
}

int64_t cmoei_arena_left(const cmoe_arena *arena)
{
    return sane(arena) ? arena->bytes - arena->used : 0;
}

cmoei_carver cmoei_carver_open(const cmoe_arena *arena)
{
    cmoei_carver c = {0};
    if (sane(arena)) {
        c.base = arena->base;
        c.bytes = arena->bytes;
        c.used = arena->used;
    }
    return c;
}

void *cmoei_carve(cmoei_carver *c, int64_t bytes)
{
    /* A dry run counts from an aligned address; the caller's may be odd, for which
     * cmoei_carver_bytes adds once. */
    const uintptr_t at = (uintptr_t)c->base + (uintptr_t)c->used;
    const int64_t pad = (int64_t)(-at & (CMOEI_ALIGN - 1));
    int64_t end;
    if (bytes < 0 || !cmoei_add(c->used, pad, &end) || !cmoei_add(end, bytes, &end)) {
        c->overflow = true;
        return NULL;
    }
    void *p = c->dry || end > c->bytes || !c->base ? NULL : c->base + c->used + pad;
    c->used = end;
    return p;
}

void *cmoei_carve_array(cmoei_carver *c, int64_t n, int64_t element_bytes)
{
    int64_t bytes;
    if (!cmoei_mul(n, element_bytes, &bytes)) {
        c->overflow = true;
        return NULL;
    }
    return cmoei_carve(c, bytes);
}

int64_t cmoei_carver_bytes(const cmoei_carver *c)
{
    int64_t bytes;
    return c->overflow || !cmoei_add(c->used, CMOEI_ALIGN, &bytes) ? INT64_MAX : bytes;
}

cmoe_status cmoei_carver_check(const cmoei_carver *c, const char *op, cmoe_error *err)
{
    if (c->overflow)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: its scratch memory would exceed 2^63 - 1 bytes",
                          op);
    if (!c->dry && (c->used > c->bytes || (!c->base && c->used > 0)))
        return cmoei_fail(err, CMOE_ERR_MEMORY,
                          "%s: arena of %" PRId64 " bytes is too small, want at least %" PRId64
                          " (ask cmoe_%s_bytes)",
                          op, c->bytes, c->used, op);
    return CMOE_OK;
}
