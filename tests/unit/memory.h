/* SPDX-License-Identifier: MIT
 *
 * memory.h - a context whose n-th allocation fails, and which counts what is out.
 */
#ifndef CMOE_MEMORY_H
#define CMOE_MEMORY_H

#include "unit.h"

typedef struct memory_state {
    int64_t fail_at; /* the n-th from now; 0: none */
    int64_t blocks;
} memory_state;

static inline void *memory_alloc(void *user, size_t bytes, size_t align)
{
    memory_state *m = user;
    if (m->fail_at > 0 && --m->fail_at == 0) return NULL;
    m->blocks++;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static inline void memory_free(void *user, void *p, size_t bytes)
{
    (void)bytes;
    ((memory_state *)user)->blocks--;
    free(p);
}

static inline cmoe_ctx *memory_open(memory_state *m)
{
    cmoe_ctx *ctx = NULL;
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    o.allocator = (cmoe_allocator){m, memory_alloc, memory_free};
    UNIT_OK(cmoe_ctx_create(&ctx, &o, &err));
    return ctx;
}

#endif
