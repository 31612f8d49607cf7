/* SPDX-License-Identifier: MIT
 *
 * unicode.h - UTF-8, sets of code points, and normal forms, as Hugging Face tokenizers 0.23 sees
 * them: categories of Unicode 16, normal forms of Unicode 9.
 */
#ifndef CMOE_TEXT_UNICODE_H
#define CMOE_TEXT_UNICODE_H

#include "core/core.h"

enum {
    CMOEI_CAT_CN,
    CMOEI_CAT_CC,
    CMOEI_CAT_CF,
    CMOEI_CAT_CO,
    CMOEI_CAT_CS,
    CMOEI_CAT_LU,
    CMOEI_CAT_LL,
    CMOEI_CAT_LT,
    CMOEI_CAT_LM,
    CMOEI_CAT_LO,
    CMOEI_CAT_MN,
    CMOEI_CAT_MC,
    CMOEI_CAT_ME,
    CMOEI_CAT_ND,
    CMOEI_CAT_NL,
    CMOEI_CAT_NO,
    CMOEI_CAT_PC,
    CMOEI_CAT_PD,
    CMOEI_CAT_PS,
    CMOEI_CAT_PE,
    CMOEI_CAT_PI,
    CMOEI_CAT_PF,
    CMOEI_CAT_PO,
    CMOEI_CAT_SM,
    CMOEI_CAT_SC,
    CMOEI_CAT_SK,
    CMOEI_CAT_SO,
    CMOEI_CAT_ZS,
    CMOEI_CAT_ZL,
    CMOEI_CAT_ZP,
    CMOEI_CATS
};

enum { CMOEI_CODE_POINTS = 0x110000 };

extern const uint32_t cmoei_unicode_runs[]; /* first << 8 | category */
extern const int64_t cmoei_unicode_run_count;
extern const uint32_t cmoei_unicode_newer[]; /* first, end, first, end, ... */
extern const int64_t cmoei_unicode_newer_count;

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

/* Offset of the first byte that is no UTF-8, -1 if there is none. */
int64_t cmoei_utf8_check(const char *text, int64_t bytes);
/* How many bytes from `s` are a character, or the longest part of one that could become one, or, as
 * -1 - n, n bytes that never can.  0: bytes == 0.  *whole says which of the first two. */
int32_t cmoei_utf8_scan(const char *s, int64_t bytes, bool *whole);
int32_t cmoei_utf8_put(char out[4], uint32_t c);

static inline int32_t cmoei_utf8_bytes(char first)
{
    const unsigned char c = (unsigned char)first;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* One character of checked UTF-8. */
static inline uint32_t cmoei_utf8_get(const char *s, int32_t *bytes)
{
    const unsigned char *p = (const unsigned char *)s;
    const uint32_t a = p[0];
    if (a < 0x80) return *bytes = 1, a;
    if (a < 0xe0) return *bytes = 2, (a & 0x1f) << 6 | (p[1] & 0x3fu);
    if (a < 0xf0) return *bytes = 3, (a & 0xf) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    *bytes = 4;
    return (a & 7) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}
/* Start of the character that ends before s + at, at > 0. */
static inline int64_t cmoei_utf8_before(const char *s, int64_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)s[at] & 0xc0) == 0x80);
    return at;
}

/* ---- single code points ------------------------------------------------------------------------ */

int32_t cmoei_unicode_category(uint32_t c);
bool cmoei_unicode_is_space(uint32_t c);  /* White_Space */
bool cmoei_unicode_is_number(uint32_t c); /* Rust's char::is_numeric, which Digits asks */
bool cmoei_unicode_is_word(uint32_t c);   /* \w of Rust's regex, which single_word asks */

/* ---- sets ---------------------------------------------------------------------------------------- */

/* Ranges first..last, ascending, with a gap between any two.  Memory from the context. */
typedef struct cmoei_charset {
    cmoe_ctx *ctx;
    uint32_t *range; /* [2 * count] first, last */
    int64_t count, capacity;
} cmoei_charset;

void cmoei_charset_free(cmoei_charset *s);
cmoe_status cmoei_charset_add(cmoei_charset *s, uint32_t first, uint32_t last, cmoe_error *err);
cmoe_status cmoei_charset_union(cmoei_charset *s, const cmoei_charset *other, cmoe_error *err);
cmoe_status cmoei_charset_invert(cmoei_charset *s, cmoe_error *err);
bool cmoei_charset_has(const cmoei_charset *s, uint32_t c);
/* Adds what differs from a member in case only. */
cmoe_status cmoei_charset_fold(cmoei_charset *s, cmoe_error *err);
/* What \s, \d, \w, \h stand for in Oniguruma (`letter` in lower case). */
cmoe_status cmoei_charset_escape(cmoei_charset *s, char letter, cmoe_error *err);
/* "L", "Lu", ...; *known is false for another name. */
cmoe_status cmoei_charset_property(cmoei_charset *s, const char *name, int64_t bytes, bool *known,
                                   cmoe_error *err);

/* ---- memory that grows --------------------------------------------------------------------------- */

typedef struct cmoei_buffer {
    cmoe_ctx *ctx;
    char *data;
    int64_t bytes, capacity;
} cmoei_buffer;

/* Room for `more` bytes behind what is there. */
cmoe_status cmoei_buffer_reserve(cmoei_buffer *b, int64_t more, cmoe_error *err);
cmoe_status cmoei_buffer_add(cmoei_buffer *b, const void *data, int64_t bytes, cmoe_error *err);
void cmoei_buffer_free(cmoei_buffer *b);

/* ---- normal forms -------------------------------------------------------------------------------- */

enum { CMOEI_NFC, CMOEI_NFD, CMOEI_NFKC, CMOEI_NFKD };

/* Appends the normal form of checked UTF-8. */
cmoe_status cmoei_normalize(cmoei_buffer *out, const char *s, int64_t bytes, int32_t form,
                            cmoe_error *err);

#endif
