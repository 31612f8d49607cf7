/* SPDX-License-Identifier: MIT
 *
 * bpe.h - byte-pair encoding: a piece of text to ids.
 */
#ifndef CMOE_TEXT_BPE_H
#define CMOE_TEXT_BPE_H

#include "unicode.h"

/* Memory that lives as long as the tokenizer, freed at once. */
typedef struct cmoei_pool_block cmoei_pool_block;
typedef struct cmoei_text_pool {
    cmoe_ctx *ctx;
    cmoei_pool_block *block;
    int64_t left; /* bytes behind the newest block's used part */
} cmoei_text_pool;

cmoe_status cmoei_text_alloc(cmoei_text_pool *p, int64_t n, int64_t element_bytes, void **out,
                             cmoe_error *err); /* zeroed */
void cmoei_text_pool_free(cmoei_text_pool *p);

/* Texts with numbers, found by text. */
typedef struct cmoei_names {
    const char **text; /* [size], NULL: no text with this number */
    int32_t *bytes;    /* [size] */
    int32_t *slot;     /* [mask + 1] -1: free */
    int64_t size, mask;
} cmoei_names;

cmoe_status cmoei_names_init(cmoei_names *n, cmoei_text_pool *pool, int64_t size, cmoe_error *err);
/* The text is not copied.  It must not be there yet. */
void cmoei_names_put(cmoei_names *n, int32_t id, const char *text, int32_t bytes);
int32_t cmoei_names_find(const cmoei_names *n, const char *text, int64_t bytes); /* -1: none */

typedef struct cmoei_merge {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank;
    int32_t id; /* what the two become; -1: a free slot */
} cmoei_merge;

typedef struct cmoei_bpe {
    bool byte_level; /* a piece is bytes, not characters */
    bool fuse_unk, ignore_merges;
    int32_t unk;          /* -1: what is unknown vanishes */
    int32_t byte_id[256]; /* byte level: of a byte; else of <0xNN>; -1: none */
    cmoei_names words;    /* ignore_merges: what is a token as a whole, as pieces are written */
    cmoei_merge *merge;   /* [merge_mask + 1] */
    int64_t merge_mask;
    uint64_t *character; /* [character_mask + 1] code point << 32 | id; UINT64_MAX: free */
    int64_t character_mask;
    uint64_t *junction; /* [junction_mask + 1] left << 32 | right, code points at which a merge
                              can join; UINT64_MAX: free.  NULL: not known */
    int64_t junction_mask;
} cmoei_bpe;

cmoe_status cmoei_bpe_init_merges(cmoei_bpe *b, cmoei_text_pool *pool, int64_t count,
                                  cmoe_error *err);
void cmoei_bpe_put_merge(cmoei_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);
cmoe_status cmoei_bpe_init_set(uint64_t **set, int64_t *mask, cmoei_text_pool *pool, int64_t count,
                               cmoe_error *err);
void cmoei_bpe_put_character(cmoei_bpe *b, uint32_t c, int32_t id);
void cmoei_bpe_put_junction(cmoei_bpe *b, uint32_t left, uint32_t right);

/* The byte behind a character of GPT-2's alphabet of bytes, -1: none. */
int32_t cmoei_byte_of(uint32_t c);
uint32_t cmoei_byte_character(int32_t byte);

/* Where ids go: all are counted, the first `capacity` are written. */
typedef struct cmoei_ids {
    int32_t *id;
    int64_t capacity, count;
} cmoei_ids;

static inline void cmoei_ids_add(cmoei_ids *out, int32_t id)
{
    if (out->count < out->capacity) out->id[out->count] = id;
    out->count++;
}

/* What one call needs; opened empty. */
typedef struct cmoei_bpe_work {
    cmoe_ctx *ctx;
    struct cmoei_bpe_slot *slot; /* [slot_mask + 1] pieces met before, NULL: no cache */
    int64_t slot_mask;
    cmoei_buffer symbols, links, run, heap, later;
} cmoei_bpe_work;

/* text_bytes: how much is to come, which decides on the size of the cache. */
cmoe_status cmoei_bpe_open(cmoei_bpe_work *w, cmoe_ctx *ctx, int64_t text_bytes, cmoe_error *err);
void cmoei_bpe_close(cmoei_bpe_work *w);
cmoe_status cmoei_bpe_encode(const cmoei_bpe *b, cmoei_bpe_work *w, const char *s, int64_t bytes,
                             cmoei_ids *out, cmoe_error *err);

/* ---- between bpe.c and bpe_long.c ---------------------------------------------------------------- */

static inline uint64_t cmoei_mix(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

static inline const cmoei_merge *cmoei_bpe_find(const cmoei_bpe *b, int32_t left, int32_t right)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (int64_t i = (int64_t)cmoei_mix(pair) & b->merge_mask;; i = (i + 1) & b->merge_mask) {
        const cmoei_merge *m = &b->merge[i];
        if (m->id < 0) return NULL;
        if (m->pair == pair) return m;
    }
}

/* Merges n symbols in place, however many; returns how many are left through *n. */
cmoe_status cmoei_bpe_merge_long(const cmoei_bpe *b, cmoei_bpe_work *w, int32_t *id, int64_t *n,
                                 cmoe_error *err);

#endif
