/* SPDX-License-Identifier: MIT
 *
 * text.c - an answer's text, and the stop strings in it.
 *
 * Tokens and stop strings do not end in the same places.  Text goes on only when no stop string can
 * begin in it any more; the rest waits.  The stop string that ends first counts (of those that end at
 * one place the longest), so that the answer does not depend on how text falls into tokens.
 */
#include <string.h>

#include "job.h"

enum { FIRST_ROOM = 1024 };

static cmoe_status append(cmoei_text *t, cmoe_ctx *ctx, const char *text, int64_t bytes,
                          cmoe_error *err)
{
    const int64_t kept = t->end - t->begin;
    if (kept + bytes > t->room) {
        const int64_t room = CMOEI_MAX(CMOEI_MAX(2 * t->room, FIRST_ROOM), kept + bytes);
        void *grown;
        CMOEI_TRY(cmoei_alloc(ctx, room, "text", &grown, err));
        if (kept > 0) memcpy(grown, t->data + t->begin, (size_t)kept);
        cmoei_free(ctx, t->data, t->room);
        t->data = grown;
        t->room = room;
    } else if (t->begin > 0 && kept > 0) {
        memmove(t->data, t->data + t->begin, (size_t)kept);
    }
    t->ready -= t->begin;
    t->end = kept;
    t->begin = 0;
    if (bytes > 0) memcpy(t->data + t->end, text, (size_t)bytes);
    t->end += bytes;
    return CMOE_OK;
}

/* Bytes of the longest stop string that ends at `end` and begins in waiting text; 0: none. */
static int64_t stop_at(const cmoei_text *t, int64_t end)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < t->stops; i++) {
        const int64_t n = t->stop_bytes[i];
        if (n > longest && n <= end - t->ready &&
            memcmp(t->data + end - n, t->stop[i], (size_t)n) == 0)
            longest = n;
    }
    return longest;
}

/* Whether text from `begin` on may be the beginning of a stop string. */
static bool may_begin(const cmoei_text *t, int64_t begin)
{
    const int64_t bytes = t->end - begin;
    for (int64_t i = 0; i < t->stops; i++)
        if (bytes < t->stop_bytes[i] && memcmp(t->data + begin, t->stop[i], (size_t)bytes) == 0)
            return true;
    return false;
}

/* Looks through what is new from `from` on; cuts the text at a stop string. */
static bool look(cmoei_text *t, int64_t from)
{
    for (int64_t end = from + 1; t->stops > 0 && end <= t->end; end++) {
        const int64_t n = stop_at(t, end);
        if (n == 0) continue;
        t->ready = t->end = end - n;
        return true;
    }
    while (t->ready < t->end && !may_begin(t, t->ready))
        t->ready++;
    return false;
}

cmoe_status cmoei_text_push(cmoei_text *t, cmoe_ctx *ctx, int32_t id, bool *stopped,
                            cmoe_error *err)
{
    const char *text;
    int64_t bytes;
    CMOEI_TRY(cmoe_detokenizer_push(t->detokenizer, id, &text, &bytes, err));
    if (!t->wanted) t->begin = t->ready; /* nobody reads it */
    CMOEI_TRY(append(t, ctx, text, bytes, err));
    *stopped = look(t, t->end - bytes);
    return CMOE_OK;
}

void cmoei_text_finish(cmoei_text *t, cmoe_ctx *ctx)
{
    const char *text;
    int64_t bytes;
    if (cmoe_detokenizer_finish(t->detokenizer, &text, &bytes, NULL) != CMOE_OK ||
        append(t, ctx, text, bytes, NULL) != CMOE_OK)
        return; /* no memory: half a character less */
    look(t, t->end - bytes);
}
