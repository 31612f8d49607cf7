/* SPDX-License-Identifier: MIT
 *
 * json.c - see json.h.
 *
 * No function looks at a byte at or behind `bytes`, none calls itself, and every loop moves `at`
 * forward: time and stack are bounded by the text.
 */
#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

cmoei_json cmoei_json_open(const char *text, int64_t bytes, const char *file, const char *part,
                           cmoe_error *err)
{
    return (cmoei_json){.text = text,
                        .bytes = bytes,
                        .file = file,
                        .part = part,
                        .err = err,
                        .subject_bytes = -1,
                        .index = -1};
}

const char *cmoei_shown(char out[CMOEI_SHOWN + 4], const char *name, int64_t bytes)
{
    int64_t n = CMOEI_MIN(bytes, CMOEI_SHOWN);
    if (n < bytes) /* not in the middle of a character */
        while (n > 0 && ((unsigned char)name[n - 1] & 0xc0) == 0x80)
            n--;
    if (n < bytes && n > 0 && (unsigned char)name[n - 1] >= 0xc0) n--;
    for (int64_t i = 0; i < n; i++)
        out[i] = (unsigned char)name[i] < 0x20 || name[i] == 0x7f ? '?' : name[i];
    memcpy(out + n, n < bytes ? "..." : "", n < bytes ? 4 : 1);
    return out;
}

cmoe_status cmoei_json_fail(const cmoei_json *j, const char *format, ...)
{
    char text[320], place[2 * CMOEI_SHOWN] = "", shown[CMOEI_SHOWN + 4];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (j->subject_bytes >= 0) {
        /* Only the first bytes of a longer name are kept; shown as cut. */
        cmoei_shown(shown, j->subject, CMOEI_MIN(j->subject_bytes, CMOEI_SHOWN));
        snprintf(place, sizeof place, "\"%s%s\": ", shown,
                 j->subject_bytes > CMOEI_SHOWN ? "..." : "");
    }
    char key[64] = "";
    if (j->key && j->index >= 0)
        snprintf(key, sizeof key, "%s[%lld]: ", j->key, (long long)j->index);
    else if (j->key)
        snprintf(key, sizeof key, "%s: ", j->key);
    return cmoei_fail(j->err, CMOE_ERR_FORMAT, "%s: %s byte %lld: %s%s%s", j->file, j->part,
                      (long long)j->at, place, key, text);
}

/* "end" or the byte that stands there, for texts. */
static const char *found(const cmoei_json *j, char out[16])
{
    if (j->at >= j->bytes) return "its end";
    const unsigned char c = (unsigned char)j->text[j->at];
    snprintf(out, 16, c > 0x20 && c < 0x7f ? "'%c'" : "byte 0x%02x", c);
    return out;
}

static void skip_space(cmoei_json *j)
{
    while (j->at < j->bytes && j->text[j->at] && strchr(" \t\n\r", j->text[j->at]))
        j->at++;
}

bool cmoei_json_next(cmoei_json *j, char c)
{
    skip_space(j);
    if (j->at >= j->bytes || j->text[j->at] != c) return false;
    j->at++;
    return true;
}

cmoe_status cmoei_json_want(cmoei_json *j, char c, const char *what)
{
    char buffer[16];
    if (cmoei_json_next(j, c)) return CMOE_OK;
    return cmoei_json_fail(j, "%s, want '%c' (%s)", found(j, buffer), c, what);
}

cmoe_status cmoei_json_end(cmoei_json *j, bool blanks_only)
{
    char buffer[16];
    if (blanks_only)
        while (j->at < j->bytes && j->text[j->at] == ' ')
            j->at++;
    else
        skip_space(j);
    if (j->at == j->bytes) return CMOE_OK;
    return cmoei_json_fail(j, "%s behind the closing brace, want %s", found(j, buffer),
                           blanks_only ? "nothing but blanks" : "nothing");
}

/* ---- strings --------------------------------------------------------------------------------- */

/* Length of the UTF-8 character at p, of which `left` bytes may be read; 0: it is not one. */
static int utf8_length(const unsigned char *p, int64_t left)
{
    const unsigned char c = p[0];
    const int n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : 4;
    if (n == 1) return 1;
    if ((n == 4 && (c < 0xf0 || c > 0xf4)) || n > left) return 0;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
    }
    if (c == 0xe0 && p[1] < 0xa0) return 0; /* overlong */
    if (c == 0xed && p[1] > 0x9f) return 0; /* surrogates */
    if (c == 0xf0 && p[1] < 0x90) return 0; /* overlong */
    if (c == 0xf4 && p[1] > 0x8f) return 0; /* beyond U+10FFFF */
    return n;
}

bool cmoei_utf8(const char *text, int64_t bytes)
{
    for (int64_t at = 0; at < bytes;) {
        const int n = utf8_length((const unsigned char *)text + at, bytes - at);
        if (n == 0) return false;
        at += n;
    }
    return true;
}

/* Four hexadecimal digits at `at`, or -1. */
static int32_t hex4(const cmoei_json *j, int64_t at)
{
    int32_t value = 0;
    if (j->bytes - at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        const char c = j->text[at + i];
        const int d = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
        if (d < 0) return -1;
        value = value * 16 + d;
    }
    return value;
}

static int utf8_put(uint32_t c, char out[4])
{
    const int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}

/* The escape whose backslash is at `at`, as UTF-8; 0: it is not one that is accepted. */
static int escape(cmoei_json *j, char out[4])
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *known;
    if (j->at + 1 >= j->bytes) return 0;
    const char c = j->text[j->at + 1];
    if (c && (known = strchr(from, c))) {
        out[0] = to[known - from];
        j->at += 2;
        return 1;
    }
    int32_t u = c == 'u' ? hex4(j, j->at + 2) : -1;
    if (u <= 0 || (u >= 0xdc00 && u < 0xe000)) return 0;
    int64_t used = 6;
    if (u >= 0xd800 && u < 0xdc00) { /* the first of a pair */
        const bool pair = j->bytes - j->at >= 12 && !memcmp(j->text + j->at + 6, "\\u", 2);
        const int32_t low = pair ? hex4(j, j->at + 8) : -1;
        if (low < 0xdc00 || low >= 0xe000) return 0;
        u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
        used = 12;
    }
    j->at += used;
    return utf8_put((uint32_t)u, out);
}

/* Bytes of text that stand for themselves, from `at` on. */
static int64_t plain_run(const cmoei_json *j)
{
    int64_t at = j->at;
    while (at < j->bytes) {
        const unsigned char c = (unsigned char)j->text[at];
        if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\') break;
        at++;
    }
    return at - j->at;
}

cmoe_status cmoei_json_string(cmoei_json *j, char *out, int64_t room, int64_t *bytes)
{
    int64_t n = 0;
    char buffer[16], decoded[4];
    CMOEI_TRY(cmoei_json_want(j, '"', "a string"));
    for (;;) {
        const char *from = j->text + j->at;
        int64_t add = plain_run(j);
        j->at += add;
        if (add == 0) {
            if (j->at >= j->bytes) return cmoei_json_fail(j, "a string without end");
            const unsigned char c = (unsigned char)*from;
            if (c == '"') break;
            if (c < 0x20)
                return cmoei_json_fail(j, "%s in a string, want it escaped", found(j, buffer));
            if (c == '\\') {
                from = decoded;
                add = escape(j, decoded);
                if (add == 0)
                    return cmoei_json_fail(j, "an escape that JSON does not have, half of a "
                                              "surrogate pair, or a NUL");
            } else {
                add = utf8_length((const unsigned char *)from, j->bytes - j->at);
                if (add == 0) return cmoei_json_fail(j, "invalid UTF-8 (%s)", found(j, buffer));
                j->at += add;
            }
        }
        if (n < room) memcpy(out + n, from, (size_t)CMOEI_MIN(add, room - n));
        n += add;
    }
    j->at++;
    *bytes = n;
    return CMOE_OK;
}

cmoe_status cmoei_json_subject(cmoei_json *j, char *out, int64_t room, int64_t *bytes)
{
    const int64_t begin = j->at;
    j->subject_bytes = -1;
    j->key = NULL;
    j->index = -1;
    int64_t n;
    CMOEI_TRY(cmoei_json_string(j, j->subject, CMOEI_SHOWN, &n));
    if (room > 0 && n <= CMOEI_SHOWN) {
        memcpy(out, j->subject, (size_t)CMOEI_MIN(n, room));
    } else if (room > 0) {
        j->at = begin;
        CMOEI_TRY(cmoei_json_string(j, out, room, &n));
    }
    j->subject_bytes = *bytes = n;
    return cmoei_json_want(j, ':', "between key and value");
}

/* ---- numbers and the rest -------------------------------------------------------------------- */

static bool digit_at(const cmoei_json *j, int64_t at)
{
    return at < j->bytes && j->text[at] >= '0' && j->text[at] <= '9';
}

/* The number that begins at `from`, for texts. */
static const char *number_at(const cmoei_json *j, int64_t from, char out[28])
{
    int n = 0;
    while (n < 24 && from + n < j->bytes && j->text[from + n] &&
           strchr("+-.0123456789eE", j->text[from + n]))
        n++;
    memcpy(out, j->text + from, (size_t)n);
    memcpy(out + n, n == 24 ? "..." : "", n == 24 ? 4 : 1);
    return out;
}

cmoe_status cmoei_json_count(cmoei_json *j, int64_t *value)
{
    char buffer[28];
    skip_space(j);
    const int64_t begin = j->at;
    int64_t v = 0;
    if (begin < j->bytes && j->text[begin] == '-')
        return cmoei_json_fail(j, "a negative number, %s, want an integer >= 0",
                               number_at(j, begin, buffer));
    for (; digit_at(j, j->at); j->at++) {
        const int digit = j->text[j->at] - '0';
        if (v > (INT64_MAX - digit) / 10)
            return cmoei_json_fail(j, "a number beyond 2^63 - 1, %s, want 0 <= n < 2^63",
                                   number_at(j, begin, buffer));
        v = v * 10 + digit;
    }
    if (j->at == begin) return cmoei_json_fail(j, "%s, want an integer >= 0", found(j, buffer));
    if (j->text[begin] == '0' && j->at > begin + 1)
        return cmoei_json_fail(j, "a number that begins with 0, %s", number_at(j, begin, buffer));
    if (j->at < j->bytes && j->text[j->at] && strchr(".eE", j->text[j->at]))
        return cmoei_json_fail(j, "a fraction or exponent, %s, want an integer >= 0",
                               number_at(j, begin, buffer));
    *value = v;
    return CMOE_OK;
}

/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)? ; false: it is not one */
static bool skip_number(cmoei_json *j)
{
    j->at += j->text[j->at] == '-';
    if (!digit_at(j, j->at)) return false;
    if (j->text[j->at] == '0' && digit_at(j, j->at + 1)) return false;
    while (digit_at(j, j->at))
        j->at++;
    if (j->at < j->bytes && j->text[j->at] == '.') {
        j->at++;
        if (!digit_at(j, j->at)) return false;
        while (digit_at(j, j->at))
            j->at++;
    }
    if (j->at < j->bytes && (j->text[j->at] == 'e' || j->text[j->at] == 'E')) {
        j->at++;
        if (j->at < j->bytes && (j->text[j->at] == '+' || j->text[j->at] == '-')) j->at++;
        if (!digit_at(j, j->at)) return false;
        while (digit_at(j, j->at))
            j->at++;
    }
    return true;
}

/* One value that holds no others. */
static cmoe_status skip_scalar(cmoei_json *j)
{
    static const char *const words[] = {"true", "false", "null"};
    char buffer[16];
    int64_t ignored;
    skip_space(j);
    if (j->at < j->bytes && j->text[j->at] == '"') return cmoei_json_string(j, NULL, 0, &ignored);
    if (digit_at(j, j->at) || (j->at < j->bytes && j->text[j->at] == '-')) {
        if (skip_number(j)) return CMOE_OK;
        return cmoei_json_fail(j, "not a number");
    }
    for (int i = 0; i < 3; i++) {
        const int64_t n = (int64_t)strlen(words[i]);
        if (j->bytes - j->at >= n && !memcmp(j->text + j->at, words[i], (size_t)n)) {
            j->at += n;
            return CMOE_OK;
        }
    }
    return cmoei_json_fail(j, "%s, want a value", found(j, buffer));
}

static cmoe_status skip_key(cmoei_json *j)
{
    int64_t ignored;
    CMOEI_TRY(cmoei_json_string(j, NULL, 0, &ignored));
    return cmoei_json_want(j, ':', "between key and value");
}

cmoe_status cmoei_json_skip(cmoei_json *j)
{
    char open[MAX_DEPTH]; /* what closes each level */
    int depth = 0;
    for (;;) {
        /* A value stands here. */
        const bool object = cmoei_json_next(j, '{'), array = !object && cmoei_json_next(j, '[');
        if (object || array) {
            if (depth == MAX_DEPTH)
                return cmoei_json_fail(j, "nested more than %d levels deep", MAX_DEPTH);
            open[depth++] = object ? '}' : ']';
            if (!cmoei_json_next(j, open[depth - 1])) {
                if (object) CMOEI_TRY(skip_key(j));
                continue;
            }
            depth--;
        } else {
            CMOEI_TRY(skip_scalar(j));
        }
        /* Behind a value: the next one of its level, or the ends of levels. */
        while (depth > 0 && !cmoei_json_next(j, ',')) {
            CMOEI_TRY(cmoei_json_want(j, open[depth - 1], "end of a list or object"));
            depth--;
        }
        if (depth == 0) return CMOE_OK;
        if (open[depth - 1] == '}') CMOEI_TRY(skip_key(j));
    }
}
