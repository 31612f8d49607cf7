/* SPDX-License-Identifier: MIT
 *
 * unicode_normal.c - NFC, NFD, NFKC and NFKD of Unicode 9.
 *
 * Hugging Face tokenizers normalises with a crate whose tables are of Unicode 9, whereas utf8proc has
 * those of its release.  Normal forms of characters that both know are the same for ever (that is
 * Unicode's promise), so what is newer simply stands apart here: it does not decompose, compose or
 * change places.
 *
 * utf8proc decomposes single characters and composes; the ordering of marks is done here, because its
 * own is quadratic in the number of marks behind one letter.
 */
#include <string.h>

#include <utf8proc.h>

#include "unicode.h"

/* Newer; or U+11A7, which changes nothing either but is swallowed behind a Hangul syllable by utf8proc
 * 2.8 when it composes. */
static bool stands_apart(uint32_t c)
{
    if (c == 0x11a7) return true;
    if (c >= 0x3300 && c < 0xa7f2) return false;       /* most of Chinese and Japanese */
    int64_t low = 0, high = cmoei_unicode_newer_count; /* entries that are not above c */
    while (low < high) {
        const int64_t mid = low + (high - low) / 2;
        if (cmoei_unicode_newer[mid] <= c)
            low = mid + 1;
        else
            high = mid;
    }
    return low % 2 == 1;
}

static int32_t class_of(int32_t c)
{
    return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
}

/* The marks of one letter, [n] of them, ordered by class, those of one class as they stood: by
 * insertion while they are few, else by counting.  `spare` has room for n. */
static void order_marks(int32_t *mark, int64_t n, int32_t *spare)
{
    if (n <= 32) {
        for (int64_t i = 1; i < n; i++) {
            const int32_t c = mark[i], class = class_of(c);
            int64_t j = i;
            for (; j > 0 && class_of(mark[j - 1]) > class; j--)
                mark[j] = mark[j - 1];
            mark[j] = c;
        }
        return;
    }
    int64_t place[257] = {0};
    for (int64_t i = 0; i < n; i++)
        place[(class_of(mark[i]) & 0xff) + 1]++;
    for (int32_t k = 0; k < 256; k++)
        place[k + 1] += place[k];
    for (int64_t i = 0; i < n; i++)
        spare[place[class_of(mark[i]) & 0xff]++] = mark[i];
    memcpy(mark, spare, (size_t)n * sizeof *mark);
}

static void order(int32_t *c, int64_t n, int32_t *spare)
{
    for (int64_t i = 0; i < n;) {
        if (class_of(c[i]) == 0) {
            i++;
            continue;
        }
        int64_t end = i;
        while (end < n && class_of(c[end]) != 0)
            end++;
        if (end - i > 1) order_marks(c + i, end - i, spare);
        i = end;
    }
}

enum { MOST_OF_ONE = 32 }; /* the longest decomposition, U+FDFA, has 18 */

/* s: nothing in it is newer. */
static cmoe_status normalize_part(cmoei_buffer *out, cmoei_buffer *work, const char *s,
                                  int64_t bytes, int32_t form, cmoe_error *err)
{
    const bool compat = form == CMOEI_NFKC || form == CMOEI_NFKD;
    const bool compose = form == CMOEI_NFC || form == CMOEI_NFKC;
    const int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                        (compat ? UTF8PROC_COMPAT : 0);
    if (bytes == 0) return CMOE_OK;
    work->bytes = 0;
    for (int64_t at = 0; at < bytes;) {
        int32_t length;
        const uint32_t c = cmoei_utf8_get(s + at, &length);
        at += length;
        CMOEI_TRY(cmoei_buffer_reserve(work, MOST_OF_ONE * 4, err));
        int bound = 0;
        const utf8proc_ssize_t n = utf8proc_decompose_char(
            (int32_t)c, (utf8proc_int32_t *)(void *)(work->data + work->bytes), MOST_OF_ONE,
            (utf8proc_option_t)options, &bound);
        if (n < 0 || n > MOST_OF_ONE)
            return cmoei_fail(err, CMOE_ERR_INTERNAL, "normalizer: U+%04X: %s", c,
                              utf8proc_errmsg(n));
        work->bytes += n * 4;
    }
    int64_t n = work->bytes / 4;
    CMOEI_TRY(cmoei_buffer_reserve(work, work->bytes, err));
    int32_t *points = (int32_t *)(void *)work->data;
    order(points, n, points + n);
    if (compose) n = utf8proc_normalize_utf32(points, n, (utf8proc_option_t)options);
    if (n < 0) return cmoei_fail(err, CMOE_ERR_INTERNAL, "normalizer: %s", utf8proc_errmsg(n));
    CMOEI_TRY(cmoei_buffer_reserve(out, n * 4, err));
    for (int64_t i = 0; i < n; i++)
        out->bytes += cmoei_utf8_put(out->data + out->bytes, (uint32_t)points[i]);
    return CMOE_OK;
}

/* The end of what no normal form changes: ASCII, and for NFC everything below the first mark; the last
 * character before something else belongs to that. */
static int64_t plain_part(const char *s, int64_t bytes, int32_t form)
{
    const unsigned char below = form == CMOEI_NFC ? 0xcc : 0x80; /* U+0300 is cc 80 */
    int64_t at = 0;
    while (at < bytes && (unsigned char)s[at] < below)
        at++;
    if (at == bytes) return at;
    while (at > 0 && ((unsigned char)s[at] & 0xc0) == 0x80)
        at--;
    return at > 0 ? cmoei_utf8_before(s, at) : 0;
}

/* From a character that may change to the next place where both neighbours are ASCII. */
static int64_t other_part(const char *s, int64_t bytes)
{
    int64_t at = 0;
    for (; at + 1 < bytes; at++)
        if (!(s[at] & 0x80) && !(s[at + 1] & 0x80) && at > 0) return at + 1;
    return bytes;
}

static cmoe_status normalize_all(cmoei_buffer *out, cmoei_buffer *work, const char *s,
                                 int64_t bytes, int32_t form, cmoe_error *err)
{
    for (int64_t at = 0, begin; at < bytes;) {
        const int64_t plain = plain_part(s + at, bytes - at, form);
        CMOEI_TRY(cmoei_buffer_add(out, s + at, plain, err));
        at += plain;
        const int64_t end = at + other_part(s + at, bytes - at);
        for (begin = at; at < end;) {
            int32_t length;
            const uint32_t c = cmoei_utf8_get(s + at, &length);
            if (c >= 0x300 && stands_apart(c)) {
                CMOEI_TRY(normalize_part(out, work, s + begin, at - begin, form, err));
                CMOEI_TRY(cmoei_buffer_add(out, s + at, length, err));
                begin = at + length;
            }
            at += length;
        }
        CMOEI_TRY(normalize_part(out, work, s + begin, at - begin, form, err));
    }
    return CMOE_OK;
}

cmoe_status cmoei_normalize(cmoei_buffer *out, const char *s, int64_t bytes, int32_t form,
                            cmoe_error *err)
{
    cmoei_buffer work = {.ctx = out->ctx};
    const cmoe_status status = normalize_all(out, &work, s, bytes, form, err);
    cmoei_buffer_free(&work);
    return status;
}
