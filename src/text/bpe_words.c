/* SPDX-License-Identifier: MIT
 *
 * bpe_words.c - the words of a text, each with how often it occurs.
 *
 * The pattern is the one that encoding uses, so what is counted is what will be encoded.
 */
#include <string.h>

#include "bpe_train.h"

enum { STRETCH = 1 << 20, FIRST_SLOTS = 1 << 12, MOST_WORD = 1 << 24 };

static cmoe_status slots_open(cmoei_words *w, int64_t count, cmoe_error *err)
{
    CMOEI_TRY(cmoei_alloc(w->ctx, count * 4, "table of words", (void **)&w->slot, err));
    memset(w->slot, 0xff, (size_t)count * 4);
    w->mask = count - 1;
    return CMOE_OK;
}

cmoe_status cmoei_words_open(cmoei_words *w, cmoe_ctx *ctx, cmoe_error *err)
{
    *w = (cmoei_words){
        .ctx = ctx, .symbols = {.ctx = ctx}, .bytes = {.ctx = ctx}, .list = {.ctx = ctx}};
    w->memory = cmoei_pattern_memory(ctx);
    if (!w->memory) return cmoei_fail(err, CMOE_ERR_MEMORY, "words: no memory for patterns");
    CMOEI_TRY(cmoei_pattern_compile(&w->pattern, w->memory, ctx, cmoei_gpt2_pattern,
                                    (int64_t)strlen(cmoei_gpt2_pattern), "words", err));
    CMOEI_TRY(cmoei_matcher_open(&w->matcher, w->memory, err));
    return slots_open(w, FIRST_SLOTS, err);
}

void cmoei_words_close(cmoei_words *w)
{
    if (!w->ctx) return;
    if (w->slot) cmoei_free(w->ctx, w->slot, (w->mask + 1) * 4);
    cmoei_buffer_free(&w->symbols);
    cmoei_buffer_free(&w->bytes);
    cmoei_buffer_free(&w->list);
    cmoei_matcher_close(&w->matcher);
    if (w->pattern.ctx) cmoei_pattern_free(&w->pattern);
    pcre2_general_context_free(w->memory);
    *w = (cmoei_words){0};
}

static uint32_t hash_of(const char *s, int64_t bytes)
{
    uint64_t h = (uint64_t)bytes;
    for (; bytes >= 8; s += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    for (; bytes > 0; s++, bytes--)
        h = (h ^ (unsigned char)*s) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h ^ h >> 32);
}

static cmoe_status grow(cmoei_words *w, cmoe_error *err)
{
    const cmoei_word *list = (const cmoei_word *)(void *)w->list.data;
    const int64_t count = w->list.bytes / (int64_t)sizeof *list;
    int32_t *old = w->slot;
    const int64_t old_bytes = (w->mask + 1) * 4;
    CMOEI_TRY(slots_open(w, 2 * (w->mask + 1), err));
    cmoei_free(w->ctx, old, old_bytes);
    for (int64_t i = 0; i < count; i++) {
        int64_t k = list[i].hash & w->mask;
        while (w->slot[k] >= 0)
            k = (k + 1) & w->mask;
        w->slot[k] = (int32_t)i;
    }
    return CMOE_OK;
}

static cmoe_status count_word(cmoei_words *w, const char *s, int64_t bytes, cmoe_error *err)
{
    if (bytes < 2) return CMOE_OK; /* holds no pair */
    if (bytes > MOST_WORD)
        return cmoei_fail(err, CMOE_ERR_RANGE, "a word of %lld bytes, want at most %d",
                          (long long)bytes, MOST_WORD);
    const uint32_t hash = hash_of(s, bytes);
    cmoei_word *list = (cmoei_word *)(void *)w->list.data;
    int64_t k = hash & w->mask;
    for (; w->slot[k] >= 0; k = (k + 1) & w->mask) {
        cmoei_word *found = &list[w->slot[k]];
        if (found->hash != hash || found->length != bytes ||
            memcmp(w->bytes.data + found->at, s, (size_t)bytes) != 0)
            continue;
        found->count++;
        return CMOE_OK;
    }
    const int64_t count = w->list.bytes / (int64_t)sizeof *list;
    const cmoei_word made = {w->bytes.bytes, (int32_t)bytes, hash, 1};
    if (count == INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "more than 2^31 - 1 different words");
    CMOEI_TRY(cmoei_buffer_add(&w->bytes, s, bytes, err));
    CMOEI_TRY(cmoei_buffer_add(&w->list, &made, sizeof made, err));
    w->slot[k] = (int32_t)count;
    return 3 * (count + 1) > 2 * w->mask ? grow(w, err) : CMOE_OK;
}

/* The pattern matches every character, one match behind the other. */
static cmoe_status add_stretch(cmoei_words *w, const char *s, int64_t bytes, cmoe_error *err)
{
    w->symbols.bytes = 0;
    CMOEI_TRY(cmoei_buffer_reserve(&w->symbols, bytes + 8, err));
    uint8_t *symbols = (uint8_t *)w->symbols.data;
    const int64_t n = cmoei_pattern_symbols(&w->pattern, s, bytes, symbols);
    for (int64_t from = 0, at = 0; from < n;) {
        bool found;
        int64_t begin, end, behind = at;
        CMOEI_TRY(cmoei_pattern_next(&w->pattern, &w->matcher, symbols, n, from, &found, &begin,
                                     &end, err));
        if (!found || begin != from || end <= begin)
            return cmoei_fail(err, CMOE_ERR_INTERNAL, "words: no match at character %lld",
                              (long long)from);
        for (int64_t i = begin; i < end; i++)
            behind += cmoei_utf8_bytes(s[behind]);
        CMOEI_TRY(count_word(w, s + at, behind - at, err));
        at = behind;
        from = end;
    }
    return CMOE_OK;
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Where text may be cut without changing a word: no word goes on with a blank, unless it is of blanks alone.
 * ASCII only on both sides, which is enough. */
static int64_t cut_behind(const char *s, int64_t least, int64_t bytes)
{
    for (int64_t at = least; at < bytes; at++)
        if (is_blank(s[at]) && !is_blank(s[at - 1]) && !(s[at - 1] & 0x80)) return at;
    return bytes;
}

cmoe_status cmoei_words_add(cmoei_words *w, const char *text, int64_t bytes, cmoe_error *err)
{
    for (int64_t at = 0; at < bytes;) {
        const int64_t n = cut_behind(text + at, STRETCH, bytes - at);
        CMOEI_TRY(add_stretch(w, text + at, n, err));
        at += n;
    }
    return CMOE_OK;
}
