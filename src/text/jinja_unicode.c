/* SPDX-License-Identifier: MIT
 *
 * jinja_unicode.c - code points: UTF-8, what Python counts as white space, cases and categories.
 */
#include "text/jinja.h"

#include <utf8proc.h>

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

int32_t cmoei_jj_utf8_next(const char *data, int64_t bytes, int64_t *at)
{
    const unsigned char *s = (const unsigned char *)data + *at;
    const int64_t left = bytes - *at;
    const int n = s[0] < 0x80 || left < 2 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n == 1 || left < n) {
        *at += 1;
        return s[0];
    }
    int32_t c = s[0] & (0x7f >> n);
    for (int i = 1; i < n; i++)
        c = c << 6 | (s[i] & 0x3f);
    *at += n;
    return c;
}

int64_t cmoei_jj_utf8_offset(const jj_string *s, int64_t chars)
{
    if (s->chars == s->bytes) return chars;
    int64_t at = 0;
    for (; chars > 0 && at < s->bytes; chars--)
        cmoei_jj_utf8_next(s->data, s->bytes, &at);
    return at;
}

int64_t cmoei_jj_utf8_check(const char *data, int64_t bytes)
{
    for (int64_t at = 0; at < bytes;) {
        utf8proc_int32_t c = 0;
        const utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)data + at, bytes - at, &c);
        if (n < 1) return at;
        at += n;
    }
    return -1;
}

int64_t cmoei_jj_utf8_write(int32_t c, char text[4])
{
    return utf8proc_encode_char(c, (utf8proc_uint8_t *)text);
}

/* ---- categories ------------------------------------------------------------------------------ */

bool cmoei_jj_is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static utf8proc_category_t category(int32_t c)
{
    return utf8proc_category(c);
}

static bool in_range(utf8proc_category_t k, utf8proc_category_t from, utf8proc_category_t to)
{
    return k >= from && k <= to;
}

bool cmoei_jj_is_printable(int32_t c)
{
    if (c < 0x7f) return c >= 0x20;
    const utf8proc_category_t k = category(c);
    return k != UTF8PROC_CATEGORY_CN && !in_range(k, UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_CO);
}

static bool is_letter(int32_t c)
{
    return in_range(category(c), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO);
}

bool cmoei_jj_is_word(int32_t c)
{
    return c == '_' || is_letter(c) ||
           in_range(category(c), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
}

static bool is_lower(int32_t c)
{
    return category(c) == UTF8PROC_CATEGORY_LL || c == 0xaa || c == 0xba;
}

static bool is_upper(int32_t c)
{
    return category(c) == UTF8PROC_CATEGORY_LU || category(c) == UTF8PROC_CATEGORY_LT;
}

static bool is_superscript(int32_t c)
{
    return c == 0xb2 || c == 0xb3 || c == 0xb9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
           (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468);
}

static bool is_one(int32_t c, int32_t what)
{
    const utf8proc_category_t k = category(c);
    const bool decimal = k == UTF8PROC_CATEGORY_ND;
    switch (what) {
    case JJ_IS_ALPHA:
        return is_letter(c);
    case JJ_IS_DECIMAL:
        return decimal;
    case JJ_IS_DIGIT:
        return decimal || is_superscript(c);
    case JJ_IS_NUMERIC:
        return in_range(k, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
    case JJ_IS_ALNUM:
        return is_letter(c) || in_range(k, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
    default:
        return cmoei_jj_is_space(c);
    }
}

bool cmoei_jj_is(const jj_string *s, int32_t what)
{
    bool cased = false;
    if (what == JJ_IS_ASCII) {
        for (int64_t i = 0; i < s->bytes; i++)
            if ((unsigned char)s->data[i] >= 0x80) return false;
        return true;
    }
    for (int64_t at = 0; at < s->bytes;) {
        const int32_t c = cmoei_jj_utf8_next(s->data, s->bytes, &at);
        if (what == JJ_IS_LOWER || what == JJ_IS_UPPER) {
            if (what == JJ_IS_LOWER ? is_upper(c)
                                    : is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT)
                return false;
            cased = cased || is_upper(c) || is_lower(c);
        } else if (!is_one(c, what)) {
            return false;
        }
    }
    return what == JJ_IS_LOWER || what == JJ_IS_UPPER ? cased : s->bytes > 0;
}

/* ---- cases ----------------------------------------------------------------------------------- */

/* Letters that become several (SpecialCasing.txt, the unconditional ones in use today). */
typedef struct expansion {
    int32_t from;
    const char *upper, *title;
} expansion;

static const expansion expansions[] = {
    {0xdf, "SS", "Ss"},
    {0x149, "\xca\xbcN", "\xca\xbcN"},
    {0x1f0, "J\xcc\x8c", "J\xcc\x8c"},
    {0x587, "\xd4\xb5\xd5\x92", "\xd4\xb5\xd6\x82"},
    {0xfb00, "FF", "Ff"},
    {0xfb01, "FI", "Fi"},
    {0xfb02, "FL", "Fl"},
    {0xfb03, "FFI", "Ffi"},
    {0xfb04, "FFL", "Ffl"},
    {0xfb05, "ST", "St"},
    {0xfb06, "ST", "St"},
};

static bool put_upper(jj_env *e, int32_t c, bool title)
{
    for (int64_t i = 0; c >= 0xdf && i < CMOEI_COUNT(expansions); i++)
        if (expansions[i].from == c)
            return cmoei_jj_put_text(e, title ? expansions[i].title : expansions[i].upper);
    return cmoei_jj_put_char(e, title ? utf8proc_totitle(c) : utf8proc_toupper(c), 1);
}

static bool is_cased(int32_t c)
{
    return is_lower(c) || is_upper(c);
}

/* A sigma that ends a word has a form of its own. */
static bool final_sigma(const char *data, int64_t bytes, int64_t begin, int64_t end)
{
    int64_t next = end;
    if (next < bytes && is_cased(cmoei_jj_utf8_next(data, bytes, &next))) return false;
    while (begin > 0 && ((unsigned char)data[--begin] & 0xc0) == 0x80)
        ;
    return end > 2 && is_cased(cmoei_jj_utf8_next(data, bytes, &begin));
}

static bool put_lower(jj_env *e, const char *data, int64_t bytes, int64_t begin, int64_t end,
                      int32_t c)
{
    if (c == 0x130) return cmoei_jj_put_text(e, "i\xcc\x87");
    if (c == 0x3a3)
        return cmoei_jj_put_text(e, final_sigma(data, bytes, begin, end) ? "\xcf\x82" : "\xcf\x83");
    return cmoei_jj_put_char(e, utf8proc_tolower(c), 1);
}

bool cmoei_jj_put_case(jj_env *e, const char *data, int64_t bytes, int32_t to)
{
    bool inside = false; /* of a word */
    for (int64_t at = 0; at < bytes;) {
        const int64_t begin = at;
        const int32_t c = cmoei_jj_utf8_next(data, bytes, &at);
        const bool first = to == JJ_TITLE ? !inside : to == JJ_CAPITALIZE && begin == 0;
        if (to == JJ_UPPER || first || (to == JJ_SWAP && is_lower(c)))
            JJ_TRY(put_upper(e, c, first));
        else if (to == JJ_SWAP && !is_upper(c))
            JJ_TRY(cmoei_jj_put(e, data + begin, at - begin));
        else
            JJ_TRY(put_lower(e, data, bytes, begin, at, c));
        inside = is_cased(c);
    }
    return true;
}
