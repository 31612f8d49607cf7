/* SPDX-License-Identifier: MIT
 *
 * pre.c - pre-tokenizers: each cuts what the one before it left whole; the model gets the pieces.
 *
 * Pieces are handed on at once, one step calling the next, so nothing is listed.  A step that rewrites
 * text, or matches symbols, has a buffer of its own.
 */
#include "tokenizer.h"

#include <string.h>

static cmoe_status run_from(cmoei_encoder *e, int32_t step, const char *s, int64_t bytes,
                            bool first);

/* Symbols [from, to) of a piece as bytes: characters are counted off from *at. */
static int64_t bytes_of(const char *s, int64_t at, int64_t characters)
{
    while (characters-- > 0)
        at += cmoei_utf8_bytes(s[at]);
    return at;
}

static cmoe_status split(cmoei_encoder *e, int32_t step, const char *s, int64_t bytes, bool first)
{
    const cmoei_pre *p = &e->t->pre[step];
    cmoei_buffer *b = &e->step[step];
    /* What is one character stays one, whether it matches or not. */
    if (bytes == cmoei_utf8_bytes(s[0]) && p->keep_match && p->keep_rest)
        return run_from(e, step + 1, s, bytes, first);
    b->bytes = 0;
    CMOEI_TRY(cmoei_buffer_reserve(b, bytes + 8, e->err));
    const int64_t n = cmoei_pattern_symbols(&p->pattern, s, bytes, (uint8_t *)b->data);
    /* done, at: symbols and bytes that were handed on; last_end: of the match before. */
    int64_t done = 0, at = 0, from = 0, last_end = -1;
    while (from <= n) {
        bool found;
        int64_t begin, end;
        CMOEI_TRY(cmoei_pattern_next(&p->pattern, &e->matcher, (const uint8_t *)b->data, n, from,
                                     &found, &begin, &end, e->err));
        if (!found) break;
        if (begin == end && end == last_end) { /* an empty match right behind another: move on */
            from++;
            continue;
        }
        from = last_end = end;
        const int64_t match = bytes_of(s, at, begin - done);
        const int64_t behind = bytes_of(s, match, end - begin);
        if (p->keep_rest) CMOEI_TRY(run_from(e, step + 1, s + at, match - at, first && at == 0));
        if (p->keep_match)
            CMOEI_TRY(run_from(e, step + 1, s + match, behind - match, first && match == 0));
        done = end;
        at = behind;
    }
    return p->keep_rest ? run_from(e, step + 1, s + at, bytes - at, first && at == 0) : CMOE_OK;
}

static cmoe_status digits(cmoei_encoder *e, int32_t step, const char *s, int64_t bytes, bool first)
{
    const bool individual = e->t->pre[step].individual;
    bool before = false; /* the piece that has begun is one of digits */
    int64_t begin = 0;
    for (int64_t at = 0; at < bytes;) {
        int32_t length;
        const bool digit = cmoei_unicode_is_number(cmoei_utf8_get(s + at, &length));
        if (at > begin && (digit != before || (digit && individual))) {
            CMOEI_TRY(run_from(e, step + 1, s + begin, at - begin, first && begin == 0));
            begin = at;
        }
        before = digit;
        at += length;
    }
    return run_from(e, step + 1, s + begin, bytes - begin, first && begin == 0);
}

static bool begins_with(const char *s, int64_t bytes, cmoei_text with)
{
    return bytes >= with.bytes && memcmp(s, with.s, (size_t)with.bytes) == 0;
}

static cmoe_status metaspace(cmoei_encoder *e, int32_t step, const char *s, int64_t bytes,
                             bool first)
{
    const cmoei_pre *p = &e->t->pre[step];
    cmoei_buffer *b = &e->step[step];
    b->bytes = 0;
    const bool there = s[0] == ' ' || begins_with(s, bytes, p->blank);
    if (!there &&
        (p->prepend == CMOEI_PREPEND_ALWAYS || (p->prepend == CMOEI_PREPEND_FIRST && first)))
        CMOEI_TRY(cmoei_buffer_add(b, p->blank.s, p->blank.bytes, e->err));
    CMOEI_TRY(cmoei_replace(b, s, bytes, (cmoei_text){" ", 1}, p->blank, INT64_MAX, e->err));
    if (!p->split) return run_from(e, step + 1, b->data, b->bytes, first);
    int64_t begin = 0;
    for (int64_t at = 0; at < b->bytes; at += cmoei_utf8_bytes(b->data[at])) {
        if (at == begin || !begins_with(b->data + at, b->bytes - at, p->blank)) continue;
        CMOEI_TRY(run_from(e, step + 1, b->data + begin, at - begin, first && begin == 0));
        begin = at;
    }
    return run_from(e, step + 1, b->data + begin, b->bytes - begin, first && begin == 0);
}

static cmoe_status blank_in_front(cmoei_encoder *e, int32_t step, const char *s, int64_t bytes,
                                  bool first)
{
    cmoei_buffer *b = &e->step[step];
    if (e->t->pre[step].prepend == CMOEI_PREPEND_NEVER || s[0] == ' ')
        return run_from(e, step + 1, s, bytes, first);
    b->bytes = 0;
    CMOEI_TRY(cmoei_buffer_add(b, " ", 1, e->err));
    CMOEI_TRY(cmoei_buffer_add(b, s, bytes, e->err));
    return run_from(e, step + 1, b->data, b->bytes, first);
}

static cmoe_status run_from(cmoei_encoder *e, int32_t step, const char *s, int64_t bytes,
                            bool first)
{
    if (bytes == 0) return CMOE_OK;
    if (step == e->t->pres)
        return cmoei_bpe_encode(&e->t->bpe, &e->work, s, bytes, &e->ids, e->err);
    switch (e->t->pre[step].kind) {
    case CMOEI_PRE_SPLIT:
        return split(e, step, s, bytes, first);
    case CMOEI_PRE_DIGITS:
        return digits(e, step, s, bytes, first);
    case CMOEI_PRE_METASPACE:
        return metaspace(e, step, s, bytes, first);
    case CMOEI_PRE_BYTES:
        return blank_in_front(e, step, s, bytes, first);
    }
    return cmoei_fail(e->err, CMOE_ERR_INTERNAL, "pre_tokenizer: step %d", (int)step);
}

cmoe_status cmoei_pre_run(cmoei_encoder *e, const char *s, int64_t bytes, bool first)
{
    return run_from(e, 0, s, bytes, first);
}
