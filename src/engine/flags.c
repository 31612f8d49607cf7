/* SPDX-License-Identifier: MIT
 *
 * flags.c - one word for every request, which any thread may set to cancel it.
 *
 * The engine's thread takes and gives words; another thread looks for a number and swaps it for its
 * negative, which fails when the request has ended meanwhile.  Chunks are never moved nor freed before
 * the engine, so nobody looks at memory that is gone and nobody waits.
 */
#include "job.h"

static int64_t chunk_slots(int32_t chunk)
{
    return (int64_t)CMOEI_FLAGS << chunk;
}

/* The chunk of slot n, and what is left of n in it. */
static int32_t chunk_of(int64_t *n)
{
    int32_t chunk = 0;
    for (; *n >= chunk_slots(chunk); chunk++)
        *n -= chunk_slots(chunk);
    return chunk;
}

static cmoe_status chunk_make(cmoei_flags *f, cmoe_ctx *ctx, int32_t chunk, cmoe_error *err)
{
    void *made;
    CMOEI_TRY(cmoei_alloc(ctx, chunk_slots(chunk) * (int64_t)sizeof(_Atomic int64_t),
                          "flags of requests", &made, err));
    _Atomic int64_t *slot = made;
    for (int64_t i = 0; i < chunk_slots(chunk); i++)
        atomic_init(&slot[i], 0);
    atomic_store_explicit(&f->chunk[chunk], slot, memory_order_release);
    return CMOE_OK;
}

cmoe_status cmoei_flags_take(cmoei_flags *f, cmoe_ctx *ctx, int64_t id, _Atomic int64_t **flag,
                             cmoe_error *err)
{
    for (int64_t n = f->lowest;; n++) {
        int64_t i = n;
        const int32_t chunk = chunk_of(&i);
        if (chunk >= CMOEI_FLAG_CHUNKS)
            return cmoei_fail(err, CMOE_ERR_MEMORY, "too many requests at once");
        if (!atomic_load_explicit(&f->chunk[chunk], memory_order_relaxed))
            CMOEI_TRY(chunk_make(f, ctx, chunk, err));
        _Atomic int64_t *slot = atomic_load_explicit(&f->chunk[chunk], memory_order_relaxed) + i;
        if (atomic_load_explicit(slot, memory_order_relaxed) != 0) continue;
        atomic_store_explicit(slot, id, memory_order_release);
        f->lowest = n + 1;
        *flag = slot;
        return CMOE_OK;
    }
}

void cmoei_flags_give(cmoei_flags *f, _Atomic int64_t *flag)
{
    int64_t before = 0;
    for (int32_t c = 0; c < CMOEI_FLAG_CHUNKS; before += chunk_slots(c), c++) {
        _Atomic int64_t *slot = atomic_load_explicit(&f->chunk[c], memory_order_relaxed);
        if (!slot || flag < slot || flag >= slot + chunk_slots(c)) continue;
        f->lowest = CMOEI_MIN(f->lowest, before + (flag - slot));
        break;
    }
    atomic_store_explicit(flag, 0, memory_order_release);
}

void cmoei_flags_free(cmoei_flags *f, cmoe_ctx *ctx)
{
    for (int32_t c = 0; c < CMOEI_FLAG_CHUNKS; c++)
        cmoei_free(ctx, atomic_load_explicit(&f->chunk[c], memory_order_relaxed),
                   chunk_slots(c) * (int64_t)sizeof(_Atomic int64_t));
}

void cmoe_engine_cancel(cmoe_engine *e, int64_t id)
{
    if (!e || id <= 0) return;
    for (int32_t c = 0; c < CMOEI_FLAG_CHUNKS; c++) {
        _Atomic int64_t *slot = atomic_load_explicit(&e->flags.chunk[c], memory_order_acquire);
        if (!slot) return; /* chunks are made in order */
        for (int64_t i = 0; i < chunk_slots(c); i++) {
            int64_t found = id;
            if (atomic_load_explicit(&slot[i], memory_order_relaxed) != id) continue;
            atomic_compare_exchange_strong(&slot[i], &found, -id);
            return;
        }
    }
}
