/* SPDX-License-Identifier: MIT
 *
 * bpe_train.c - merges learned from counted words (Sennrich et al., 2016), on bytes.
 *
 * Again and again the most frequent pair of neighbours becomes one symbol; of equals the one with the
 * smaller left id, then the smaller right id.  Counts are kept up to date: each pair has a list of the
 * words it was ever seen in, and a merge visits those alone.  A heap finds the next pair; its numbers may be
 * too high (what became rarer stays where it is), so the top is looked up and put back when it is stale.
 *
 * Two merges can make the same text ("a" + "bc", "ab" + "c"); it keeps one id.  A pair that was merged
 * before and shows up again that way is merged at once, as encoding would.
 */
#include <string.h>

#include "bpe.h"
#include "bpe_train.h"

typedef struct pair_entry {
    uint64_t pair; /* left << 32 | right */
    int64_t count;
    int32_t seen;  /* newest link of its list, -1: none */
    int32_t merge; /* index, -1: not merged */
    bool risen;    /* is in `risen` */
} pair_entry;

typedef struct link {
    int32_t word, next;
} link;

typedef struct heap_item {
    int64_t key;
    uint64_t pair;
    int32_t entry;
} heap_item;

typedef struct learner {
    cmoe_ctx *ctx;
    cmoe_error *err;
    cmoei_word *words;
    int64_t word_count;
    int32_t *symbols; /* of all words; a word's first `length` count */
    int64_t symbols_bytes;
    cmoei_buffer pairs, links, heap, risen; /* pair_entry, link, heap_item, int32 */
    int32_t *slot;                          /* [mask + 1] index of a pair, -1: free */
    int64_t mask;
    int32_t *named; /* [named_mask + 1] id of a token, -1: free */
    int64_t named_mask;
    cmoei_vocabulary *v;
} learner;

static int64_t count_of(const cmoei_buffer *b, size_t element)
{
    return b->bytes / (int64_t)element;
}

static pair_entry *pair_at(const learner *l, int64_t i)
{
    return (pair_entry *)(void *)l->pairs.data + i;
}

/* ---- pairs ------------------------------------------------------------------------------------- */

static cmoe_status slots_make(learner *l, int64_t count)
{
    CMOEI_TRY(cmoei_alloc(l->ctx, count * 4, "table of pairs", (void **)&l->slot, l->err));
    memset(l->slot, 0xff, (size_t)count * 4);
    l->mask = count - 1;
    return CMOE_OK;
}

static int64_t slot_of(const learner *l, uint64_t pair)
{
    int64_t k = (int64_t)(cmoei_mix(pair) & (uint64_t)l->mask);
    while (l->slot[k] >= 0 && pair_at(l, l->slot[k])->pair != pair)
        k = (k + 1) & l->mask;
    return k;
}

static cmoe_status slots_grow(learner *l)
{
    int32_t *old = l->slot;
    const int64_t old_bytes = (l->mask + 1) * 4;
    CMOEI_TRY(slots_make(l, 2 * (l->mask + 1)));
    cmoei_free(l->ctx, old, old_bytes);
    for (int64_t i = 0; i < count_of(&l->pairs, sizeof(pair_entry)); i++)
        l->slot[slot_of(l, pair_at(l, i)->pair)] = (int32_t)i;
    return CMOE_OK;
}

static cmoe_status full(cmoe_error *err, const char *what)
{
    return cmoei_fail(err, CMOE_ERR_RANGE, "more than 2^31 - 1 %s", what);
}

/* `by` more of a pair, in a word. */
static cmoe_status pair_add(learner *l, int32_t left, int32_t right, int64_t by, int32_t word)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const int64_t k = slot_of(l, pair);
    int32_t i = l->slot[k];
    if (i < 0) {
        const pair_entry made = {.pair = pair, .seen = -1, .merge = -1};
        const int64_t n = count_of(&l->pairs, sizeof made);
        if (n == INT32_MAX) return full(l->err, "different pairs");
        CMOEI_TRY(cmoei_buffer_add(&l->pairs, &made, sizeof made, l->err));
        i = l->slot[k] = (int32_t)n;
        if (3 * n > 2 * l->mask) CMOEI_TRY(slots_grow(l));
    }
    pair_entry *p = pair_at(l, i);
    p->count += by;
    if (by < 0) return CMOE_OK;
    if (!p->risen) CMOEI_TRY(cmoei_buffer_add(&l->risen, &i, sizeof i, l->err));
    p->risen = true;
    const link *links = (const link *)(void *)l->links.data;
    if (p->seen >= 0 && links[p->seen].word == word) return CMOE_OK;
    const int64_t n = count_of(&l->links, sizeof(link));
    if (n == INT32_MAX) return full(l->err, "places of pairs");
    const link made = {word, p->seen};
    p->seen = (int32_t)n;
    return cmoei_buffer_add(&l->links, &made, sizeof made, l->err);
}

/* ---- heap -------------------------------------------------------------------------------------- */

static bool before(const heap_item *a, const heap_item *b)
{
    return a->key != b->key ? a->key > b->key : a->pair < b->pair;
}

static void sink(heap_item *heap, int64_t n, int64_t at)
{
    const heap_item moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static cmoe_status push(learner *l, int32_t entry)
{
    const pair_entry *p = pair_at(l, entry);
    if (p->count <= 0) return CMOE_OK;
    /* Those merged before come first, in the order of their merges. */
    const heap_item made = {p->merge >= 0 ? INT64_MAX - p->merge : p->count, p->pair, entry};
    CMOEI_TRY(cmoei_buffer_add(&l->heap, &made, sizeof made, l->err));
    heap_item *heap = (heap_item *)(void *)l->heap.data;
    int64_t at = count_of(&l->heap, sizeof made) - 1;
    for (; at > 0 && before(&made, &heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = made;
    return CMOE_OK;
}

static cmoe_status push_risen(learner *l)
{
    const int64_t n = count_of(&l->risen, sizeof(int32_t));
    for (int64_t i = 0; i < n; i++) {
        int32_t entry;
        memcpy(&entry, l->risen.data + i * 4, 4);
        pair_at(l, entry)->risen = false;
        CMOEI_TRY(push(l, entry));
    }
    l->risen.bytes = 0;
    return CMOE_OK;
}

/* The most frequent pair, -1: there is none. */
static int32_t pop(learner *l)
{
    while (l->heap.bytes > 0) {
        heap_item *heap = (heap_item *)(void *)l->heap.data;
        const heap_item top = heap[0];
        const pair_entry *p = pair_at(l, top.entry);
        const int64_t n = count_of(&l->heap, sizeof top);
        const bool stale = p->merge < 0 && p->count != top.key;
        if (stale && p->count > 0) {
            heap[0].key = p->count;
            sink(heap, n, 0);
            continue;
        }
        heap[0] = heap[n - 1];
        l->heap.bytes -= (int64_t)sizeof top;
        if (n > 1) sink(heap, n - 1, 0);
        if (p->count > 0) return top.entry;
    }
    return -1;
}

/* ---- tokens ------------------------------------------------------------------------------------ */

static const char *token_at(const cmoei_vocabulary *v, int64_t id, int64_t *bytes)
{
    const int64_t *begin = (const int64_t *)(const void *)v->begin.data;
    *bytes = begin[id + 1] - begin[id];
    return v->text.data + begin[id];
}

/* The token with the text of two, made if there is none. */
static cmoe_status token_of(learner *l, int32_t left, int32_t right, int32_t *id)
{
    cmoei_vocabulary *v = l->v;
    int64_t a, b, n;
    token_at(v, left, &a);
    token_at(v, right, &b);
    CMOEI_TRY(cmoei_buffer_reserve(&v->text, a + b, l->err));
    char *text = v->text.data + v->text.bytes; /* which is not taken yet */
    memcpy(text, token_at(v, left, &a), (size_t)a);
    memcpy(text + a, token_at(v, right, &b), (size_t)b);
    uint64_t hash = 0;
    for (int64_t i = 0; i < a + b; i++)
        hash = cmoei_mix(hash + (unsigned char)text[i] + 1);
    int64_t k = (int64_t)(hash & (uint64_t)l->named_mask);
    for (; l->named[k] >= 0; k = (k + 1) & l->named_mask) {
        const char *other = token_at(v, l->named[k], &n);
        if (n == a + b && memcmp(other, text, (size_t)n) == 0) {
            *id = l->named[k];
            return CMOE_OK;
        }
    }
    v->text.bytes += a + b;
    *id = l->named[k] = (int32_t)v->tokens++;
    return cmoei_buffer_add(&v->begin, &v->text.bytes, 8, l->err);
}

/* ---- learning ---------------------------------------------------------------------------------- */

/* Bytes in the order of the characters that GPT-2 writes them as. */
static cmoe_status open_tokens(learner *l, int32_t id_of[256])
{
    const int64_t zero = 0;
    cmoei_vocabulary *v = l->v;
    CMOEI_TRY(cmoei_buffer_add(&v->begin, &zero, 8, l->err));
    for (uint32_t c = 0; v->tokens < 256; c++) {
        const int32_t byte = cmoei_byte_of(c);
        if (byte < 0) continue;
        const char text = (char)byte;
        id_of[byte] = (int32_t)v->tokens++;
        CMOEI_TRY(cmoei_buffer_add(&v->text, &text, 1, l->err));
        CMOEI_TRY(cmoei_buffer_add(&v->begin, &v->text.bytes, 8, l->err));
    }
    return CMOE_OK;
}

static cmoe_status open_words(learner *l, const cmoei_words *w, const int32_t id_of[256])
{
    l->symbols_bytes = w->bytes.bytes * 4;
    CMOEI_TRY(
        cmoei_alloc(l->ctx, l->symbols_bytes, "symbols of words", (void **)&l->symbols, l->err));
    for (int64_t i = 0; i < w->bytes.bytes; i++)
        l->symbols[i] = id_of[(unsigned char)w->bytes.data[i]];
    for (int64_t i = 0; i < l->word_count; i++) {
        const cmoei_word *word = &l->words[i];
        const int32_t *s = l->symbols + word->at;
        for (int32_t k = 0; k + 1 < word->length; k++)
            CMOEI_TRY(pair_add(l, s[k], s[k + 1], word->count, (int32_t)i));
    }
    return push_risen(l);
}

/* Left and right become id wherever they meet in a word, from left to right. */
static cmoe_status merge_word(learner *l, int32_t index, int32_t left, int32_t right, int32_t id)
{
    cmoei_word *word = &l->words[index];
    int32_t *s = l->symbols + word->at, kept = 0;
    for (int32_t i = 0; i < word->length; i++) {
        if (i + 1 == word->length || s[i] != left || s[i + 1] != right) {
            s[kept++] = s[i];
            continue;
        }
        if (kept > 0) {
            CMOEI_TRY(pair_add(l, s[kept - 1], left, -word->count, index));
            CMOEI_TRY(pair_add(l, s[kept - 1], id, word->count, index));
        }
        if (i + 2 < word->length) {
            CMOEI_TRY(pair_add(l, right, s[i + 2], -word->count, index));
            CMOEI_TRY(pair_add(l, id, s[i + 2], word->count, index));
        }
        s[kept++] = id;
        i++;
    }
    word->length = kept;
    return CMOE_OK;
}

static cmoe_status merge_pair(learner *l, int32_t entry)
{
    const uint64_t pair = pair_at(l, entry)->pair;
    const int32_t left = (int32_t)(pair >> 32), right = (int32_t)(pair & UINT32_MAX);
    int32_t id;
    CMOEI_TRY(token_of(l, left, right, &id));
    if (pair_at(l, entry)->merge < 0) {
        const cmoei_learned_merge made = {left, right, id};
        pair_at(l, entry)->merge = (int32_t)count_of(&l->v->merges, sizeof made);
        CMOEI_TRY(cmoei_buffer_add(&l->v->merges, &made, sizeof made, l->err));
    }
    int32_t at = pair_at(l, entry)->seen;
    pair_at(l, entry)->seen = -1;
    while (at >= 0) {
        const link here = ((const link *)(void *)l->links.data)[at];
        CMOEI_TRY(merge_word(l, here.word, left, right, id));
        at = here.next;
    }
    pair_at(l, entry)->count = 0;
    return push_risen(l);
}

static cmoe_status learn(learner *l, const cmoei_words *w, int64_t most, int64_t least)
{
    int32_t id_of[256];
    CMOEI_TRY(slots_make(l, 1 << 12));
    l->named_mask = 1 << 9;
    while (l->named_mask < 2 * most)
        l->named_mask *= 2;
    const int64_t named_bytes = l->named_mask * 4;
    l->named_mask--;
    CMOEI_TRY(cmoei_alloc(l->ctx, named_bytes, "table of tokens", (void **)&l->named, l->err));
    memset(l->named, 0xff, (size_t)named_bytes);
    CMOEI_TRY(open_tokens(l, id_of));
    CMOEI_TRY(open_words(l, w, id_of));
    while (l->v->tokens < most) {
        const int32_t entry = pop(l);
        if (entry < 0) break;
        const pair_entry *p = pair_at(l, entry);
        if (p->merge < 0 && p->count < least) break;
        CMOEI_TRY(merge_pair(l, entry));
    }
    return CMOE_OK;
}

cmoe_status cmoei_bpe_learn(cmoei_vocabulary *v, cmoei_words *w, int64_t most, int64_t least,
                            cmoe_error *err)
{
    cmoe_ctx *ctx = w->ctx;
    *v = (cmoei_vocabulary){.text = {.ctx = ctx}, .begin = {.ctx = ctx}, .merges = {.ctx = ctx}};
    learner l = {.ctx = ctx,
                 .err = err,
                 .v = v,
                 .words = (cmoei_word *)(void *)w->list.data,
                 .word_count = count_of(&w->list, sizeof(cmoei_word)),
                 .pairs = {.ctx = ctx},
                 .links = {.ctx = ctx},
                 .heap = {.ctx = ctx},
                 .risen = {.ctx = ctx}};
    const cmoe_status status = learn(&l, w, most, least);
    cmoei_buffer_free(&l.pairs);
    cmoei_buffer_free(&l.links);
    cmoei_buffer_free(&l.heap);
    cmoei_buffer_free(&l.risen);
    if (l.slot) cmoei_free(ctx, l.slot, (l.mask + 1) * 4);
    if (l.named) cmoei_free(ctx, l.named, (l.named_mask + 1) * 4);
    if (l.symbols) cmoei_free(ctx, l.symbols, l.symbols_bytes);
    if (status != CMOE_OK) cmoei_vocabulary_free(v);
    return status;
}

void cmoei_vocabulary_free(cmoei_vocabulary *v)
{
    cmoei_buffer_free(&v->text);
    cmoei_buffer_free(&v->begin);
    cmoei_buffer_free(&v->merges);
}
