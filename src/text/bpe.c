/* SPDX-License-Identifier: MIT
 *
 * bpe.c - pieces of text to ids: symbols, then merges by rank.
 *
 * A piece begins as one symbol a byte (byte level) or a character.  The pair of neighbours with the
 * lowest rank, the leftmost of them, becomes one symbol, until no pair has a rank.  Pieces of ordinary
 * text are words: up to 48 symbols the next pair is found by looking at all of them, which for so few
 * beats any queue; bpe_long.c does the rest.  Words repeat, so each call remembers what became of them.
 *
 * Files in the manner of sentencepiece have no pre-tokenizer: the piece is the whole text.  Most places
 * in it can still be cut, since no merge joins, say, "e" with "▁" (the junctions, read off the merges).
 */
#include "bpe.h"

#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

struct cmoei_pool_block {
    cmoei_pool_block *next;
    int64_t bytes, used; /* this head included */
};

enum { BLOCK = 1 << 18, BLOCK_HEAD = CMOEI_ALIGN };

cmoe_status cmoei_text_alloc(cmoei_text_pool *p, int64_t n, int64_t element_bytes, void **out,
                             cmoe_error *err)
{
    int64_t bytes;
    if (!cmoei_mul(n, element_bytes, &bytes) ||
        !cmoei_add(bytes, BLOCK + 2 * BLOCK_HEAD, &(int64_t){0}))
        return cmoei_fail(err, CMOE_ERR_MEMORY, "tokenizer: %lld elements of %lld bytes",
                          (long long)n, (long long)element_bytes);
    bytes = cmoei_round_up(CMOEI_MAX(bytes, (int64_t)1), 16); /* nothing has an address, too */
    if (bytes > p->left) {
        void *space;
        const int64_t size = BLOCK_HEAD + CMOEI_MAX(bytes, BLOCK);
        CMOEI_TRY(cmoei_alloc(p->ctx, size, "tokenizer", &space, err));
        cmoei_pool_block *fresh = space;
        *fresh = (cmoei_pool_block){p->block, size, BLOCK_HEAD};
        p->block = fresh;
        p->left = size - BLOCK_HEAD;
    }
    *out = (char *)p->block + p->block->used;
    memset(*out, 0, (size_t)bytes);
    p->block->used += bytes;
    p->left -= bytes;
    return CMOE_OK;
}

void cmoei_text_pool_free(cmoei_text_pool *p)
{
    while (p->block) {
        cmoei_pool_block *next = p->block->next;
        cmoei_free(p->ctx, p->block, p->block->bytes);
        p->block = next;
    }
    p->left = 0;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static uint64_t hash_bytes(const char *s, int64_t bytes)
{
    uint64_t h = (uint64_t)bytes * 0x9e3779b97f4a7c15u;
    for (; bytes >= 8; s += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        h = cmoei_mix(h ^ word);
    }
    uint64_t rest = 0;
    for (int64_t i = 0; i < bytes; i++)
        rest = rest << 8 | (unsigned char)s[i];
    return cmoei_mix(cmoei_mix(h ^ rest));
}

/* A power of two with room for twice `count`. */
static int64_t table_size(int64_t count)
{
    int64_t size = 16;
    while (size < 2 * count)
        size *= 2;
    return size;
}

cmoe_status cmoei_names_init(cmoei_names *n, cmoei_text_pool *pool, int64_t size, cmoe_error *err)
{
    void *p;
    const int64_t slots = table_size(size);
    CMOEI_TRY(cmoei_text_alloc(pool, size, sizeof(char *), &p, err));
    n->text = p;
    CMOEI_TRY(cmoei_text_alloc(pool, size, 4, &p, err));
    n->bytes = p;
    CMOEI_TRY(cmoei_text_alloc(pool, slots, 4, &p, err));
    n->slot = p;
    memset(p, 0xff, (size_t)slots * 4);
    n->size = size;
    n->mask = slots - 1;
    return CMOE_OK;
}

void cmoei_names_put(cmoei_names *n, int32_t id, const char *text, int32_t bytes)
{
    n->text[id] = text;
    n->bytes[id] = bytes;
    int64_t i = (int64_t)hash_bytes(text, bytes) & n->mask;
    while (n->slot[i] >= 0)
        i = (i + 1) & n->mask;
    n->slot[i] = id;
}

int32_t cmoei_names_find(const cmoei_names *n, const char *text, int64_t bytes)
{
    for (int64_t i = (int64_t)hash_bytes(text, bytes) & n->mask;; i = (i + 1) & n->mask) {
        const int32_t id = n->slot[i];
        if (id < 0) return -1;
        if (n->bytes[id] == bytes && memcmp(n->text[id], text, (size_t)bytes) == 0) return id;
    }
}

cmoe_status cmoei_bpe_init_merges(cmoei_bpe *b, cmoei_text_pool *pool, int64_t count,
                                  cmoe_error *err)
{
    const int64_t slots = table_size(count);
    void *p;
    CMOEI_TRY(cmoei_text_alloc(pool, slots, sizeof(cmoei_merge), &p, err));
    b->merge = p;
    b->merge_mask = slots - 1;
    for (int64_t i = 0; i < slots; i++)
        b->merge[i].id = -1;
    return CMOE_OK;
}

void cmoei_bpe_put_merge(cmoei_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    int64_t i = (int64_t)cmoei_mix(pair) & b->merge_mask;
    while (b->merge[i].id >= 0 && b->merge[i].pair != pair)
        i = (i + 1) & b->merge_mask;
    b->merge[i] = (cmoei_merge){pair, rank, id}; /* of two of a kind the later counts */
}

cmoe_status cmoei_bpe_init_set(uint64_t **set, int64_t *mask, cmoei_text_pool *pool, int64_t count,
                               cmoe_error *err)
{
    const int64_t slots = table_size(count);
    void *p = NULL;
    CMOEI_TRY(cmoei_text_alloc(pool, slots, 8, &p, err));
    memset(p, 0xff, (size_t)slots * 8);
    *set = p;
    *mask = slots - 1;
    return CMOE_OK;
}

void cmoei_bpe_put_character(cmoei_bpe *b, uint32_t c, int32_t id)
{
    int64_t i = (int64_t)cmoei_mix(c) & b->character_mask;
    while (b->character[i] != UINT64_MAX)
        i = (i + 1) & b->character_mask;
    b->character[i] = (uint64_t)c << 32 | (uint32_t)id;
}

static int32_t character_id(const cmoei_bpe *b, uint32_t c)
{
    for (int64_t i = (int64_t)cmoei_mix(c) & b->character_mask;; i = (i + 1) & b->character_mask) {
        const uint64_t entry = b->character[i];
        if (entry == UINT64_MAX) return -1;
        if (entry >> 32 == c) return (int32_t)(entry & 0xffffffff);
    }
}

void cmoei_bpe_put_junction(cmoei_bpe *b, uint32_t left, uint32_t right)
{
    const uint64_t key = (uint64_t)left << 32 | right;
    int64_t i = (int64_t)cmoei_mix(key) & b->junction_mask;
    while (b->junction[i] != UINT64_MAX && b->junction[i] != key)
        i = (i + 1) & b->junction_mask;
    b->junction[i] = key;
}

static bool can_join(const cmoei_bpe *b, uint32_t left, uint32_t right)
{
    const uint64_t key = (uint64_t)left << 32 | right;
    for (int64_t i = (int64_t)cmoei_mix(key) & b->junction_mask;; i = (i + 1) & b->junction_mask) {
        if (b->junction[i] == key) return true;
        if (b->junction[i] == UINT64_MAX) return false;
    }
}

/* GPT-2 writes bytes as characters: those that print as themselves, the other 68 from U+0100 on. */
static bool prints(uint32_t b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

int32_t cmoei_byte_of(uint32_t c)
{
    if (c < 0x100) return prints(c) ? (int32_t)c : -1;
    const int32_t k = (int32_t)c - 0x100;
    return k <= 0x20 ? k : k == 33 ? 0x7f : k <= 66 ? 0x80 + k - 34 : k == 67 ? 0xad : -1;
}

uint32_t cmoei_byte_character(int32_t byte)
{
    uint32_t c = (uint32_t)byte;
    while (cmoei_byte_of(c) != byte)
        c = c < 0x100 ? 0x100 : c + 1;
    return c;
}

/* ---- merging --------------------------------------------------------------------------------- */

enum { SHORT = 48 };

static int64_t merge_short(const cmoei_bpe *b, int32_t *id, int64_t n)
{
    uint32_t rank[SHORT];
    int32_t becomes[SHORT];
    for (int64_t i = 0; i + 1 < n; i++) {
        const cmoei_merge *m = cmoei_bpe_find(b, id[i], id[i + 1]);
        rank[i] = m ? m->rank : UINT32_MAX;
        becomes[i] = m ? m->id : -1;
    }
    while (n > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (becomes[best] < 0 || rank[best] == UINT32_MAX) break;
        id[best] = becomes[best];
        n--;
        for (int64_t i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i];
            becomes[i - 1] = becomes[i];
        }
        for (int64_t i = CMOEI_MAX(best - 1, 0); i <= best && i + 1 < n; i++) {
            const cmoei_merge *m = cmoei_bpe_find(b, id[i], id[i + 1]);
            rank[i] = m ? m->rank : UINT32_MAX;
            becomes[i] = m ? m->id : -1;
        }
    }
    return n;
}

/* One symbol, or some bytes, or nothing: `pending` is an unknown stretch that has not been written. */
static int64_t add_unknown(const cmoei_bpe *b, int32_t *id, int64_t n, const char *s, int32_t bytes,
                           bool *pending)
{
    bool known = !b->byte_level;
    for (int32_t i = 0; i < bytes && known; i++)
        known = b->byte_id[(unsigned char)s[i]] >= 0;
    if (known) {
        for (int32_t i = 0; i < bytes; i++)
            id[n++] = b->byte_id[(unsigned char)s[i]];
    } else if (b->unk >= 0) {
        if (*pending && !b->fuse_unk) id[n++] = b->unk;
        *pending = true;
    }
    return n;
}

/* id has room for `bytes` and one more. */
static int64_t make_symbols(const cmoei_bpe *b, const char *s, int64_t bytes, int32_t *id)
{
    int64_t n = 0;
    bool pending = false;
    for (int64_t at = 0; at < bytes;) {
        int32_t length = 1;
        const int32_t known = b->byte_level ? b->byte_id[(unsigned char)s[at]]
                                            : character_id(b, cmoei_utf8_get(s + at, &length));
        if (known < 0) {
            n = add_unknown(b, id, n, s + at, length, &pending);
        } else {
            if (pending) id[n++] = b->unk;
            pending = false;
            id[n++] = known;
        }
        at += length;
    }
    if (pending) id[n++] = b->unk;
    return n;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

/* A piece and its ids in one cache line. */
struct cmoei_bpe_slot {
    uint8_t bytes, count; /* bytes 0: free */
    char text[30];
    int32_t id[8];
};

cmoe_status cmoei_bpe_open(cmoei_bpe_work *w, cmoe_ctx *ctx, int64_t text_bytes, cmoe_error *err)
{
    *w = (cmoei_bpe_work){.ctx = ctx};
    w->symbols.ctx = w->links.ctx = w->run.ctx = w->heap.ctx = w->later.ctx = ctx;
    if (text_bytes < 1024) return CMOE_OK;
    int64_t slots = 256;
    while (slots < text_bytes / 8 && slots < 16384)
        slots *= 2;
    void *p;
    const int64_t bytes = slots * (int64_t)sizeof *w->slot;
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "tokenizer: cache", &p, err));
    memset(p, 0, (size_t)bytes);
    w->slot = p;
    w->slot_mask = slots - 1;
    return CMOE_OK;
}

void cmoei_bpe_close(cmoei_bpe_work *w)
{
    if (w->slot) cmoei_free(w->ctx, w->slot, (w->slot_mask + 1) * (int64_t)sizeof *w->slot);
    w->slot = NULL;
    cmoei_buffer_free(&w->symbols);
    cmoei_buffer_free(&w->links);
    cmoei_buffer_free(&w->run);
    cmoei_buffer_free(&w->heap);
    cmoei_buffer_free(&w->later);
}

static cmoe_status encode_whole(const cmoei_bpe *b, cmoei_bpe_work *w, const char *s, int64_t bytes,
                                cmoei_ids *out, struct cmoei_bpe_slot *slot, cmoe_error *err)
{
    int32_t few[SHORT + 1], *id = few;
    int64_t n;
    if (bytes <= SHORT) {
        n = make_symbols(b, s, bytes, id);
    } else {
        w->symbols.bytes = 0;
        CMOEI_TRY(cmoei_buffer_reserve(&w->symbols, (bytes + 1) * 4, err));
        id = (int32_t *)(void *)w->symbols.data;
        n = make_symbols(b, s, bytes, id);
    }
    if (n <= SHORT)
        n = merge_short(b, id, n);
    else
        CMOEI_TRY(cmoei_bpe_merge_long(b, w, id, &n, err));
    for (int64_t i = 0; i < n; i++)
        cmoei_ids_add(out, id[i]);
    if (slot && n <= CMOEI_COUNT(slot->id)) {
        slot->bytes = (uint8_t)bytes;
        slot->count = (uint8_t)n;
        memcpy(slot->text, s, (size_t)bytes);
        memcpy(slot->id, id, (size_t)n * 4);
    }
    return CMOE_OK;
}

static cmoe_status encode_part(const cmoei_bpe *b, cmoei_bpe_work *w, const char *s, int64_t bytes,
                               cmoei_ids *out, cmoe_error *err)
{
    struct cmoei_bpe_slot *slot = NULL;
    if (bytes == 1 && b->byte_level && b->byte_id[(unsigned char)*s] >= 0)
        return cmoei_ids_add(out, b->byte_id[(unsigned char)*s]), CMOE_OK;
    if (w->slot && bytes <= (int64_t)sizeof slot->text) {
        slot = &w->slot[(int64_t)hash_bytes(s, bytes) & w->slot_mask];
        if (slot->bytes == bytes && memcmp(slot->text, s, (size_t)bytes) == 0) {
            for (int32_t i = 0; i < slot->count; i++)
                cmoei_ids_add(out, slot->id[i]);
            return CMOE_OK;
        }
    }
    return encode_whole(b, w, s, bytes, out, slot, err);
}

/* The end of the first part that no merge reaches beyond. */
static int64_t part_end(const cmoei_bpe *b, const char *s, int64_t bytes)
{
    int32_t length;
    uint32_t left = cmoei_utf8_get(s, &length);
    bool left_known = character_id(b, left) >= 0;
    for (int64_t at = length; at < bytes; at += length) {
        const uint32_t right = cmoei_utf8_get(s + at, &length);
        if (left == right && left_known) {
            if (!can_join(b, left, right)) return at;
            continue;
        }
        const bool known = character_id(b, right) >= 0;
        if (left_known && known && !can_join(b, left, right)) return at;
        left = right;
        left_known = known;
    }
    return bytes;
}

cmoe_status cmoei_bpe_encode(const cmoei_bpe *b, cmoei_bpe_work *w, const char *s, int64_t bytes,
                             cmoei_ids *out, cmoe_error *err)
{
    if (b->ignore_merges) {
        const int32_t id = cmoei_names_find(&b->words, s, bytes);
        if (id >= 0) return cmoei_ids_add(out, id), CMOE_OK;
    }
    if (!b->junction) return encode_part(b, w, s, bytes, out, err);
    for (int64_t at = 0; at < bytes;) {
        const int64_t n = part_end(b, s + at, bytes - at);
        CMOEI_TRY(encode_part(b, w, s + at, n, out, err));
        at += n;
    }
    return CMOE_OK;
}
