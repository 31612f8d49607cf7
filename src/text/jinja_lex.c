/* SPDX-License-Identifier: MIT
 *
 * jinja_lex.c - template source to tokens, one at a time.
 *
 * White space, as with trim_blocks and lstrip_blocks:
 *     {%- and -%}   take all white space on their side
 *     {%            takes blanks between the start of its line and itself, unless written {%+
 *     %}            takes one newline behind it, unless written +%}
 * Comments are treated as blocks; {{ and }} take nothing by themselves.  One newline at the end of
 * the source is dropped, and \r\n and \r are \n.
 */
#include "text/jinja.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
    "end of template",
    "text",
    "{{",
    "}}",
    "{%",
    "%}",
    "name",
    "string",
    "integer",
    "float",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "~",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "=",
    ".",
    ",",
    ":",
    "|",
    ";",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "in",
    "not in",
};

const char *cmoei_jj_token_name(jj_token_kind kind)
{
    return names[kind];
}

bool cmoei_jj_lex_open(jj_lexer *x, jj_env *e, const char *source, int64_t bytes)
{
    *x = (jj_lexer){.e = e, .line = 1, .line_start = true};
    const int64_t bad = cmoei_jj_utf8_check(source, bytes);
    e->line = 1;
    if (bad >= 0) return cmoei_jj_fail(e, "byte %lld is not UTF-8", (long long)bad);
    char *text = cmoei_jj_take(e, bytes, 1);
    if (!text) return false;
    for (int64_t i = 0; i < bytes; i++) {
        const bool cr = source[i] == '\r';
        text[x->bytes++] = cr ? '\n' : source[i];
        if (cr && i + 1 < bytes && source[i + 1] == '\n') i++;
    }
    if (x->bytes && text[x->bytes - 1] == '\n') x->bytes--;
    x->text = text;
    return true;
}

/* ---- characters ------------------------------------------------------------------------------ */

static int peek(const jj_lexer *x, int64_t ahead)
{
    return x->at + ahead < x->bytes ? (unsigned char)x->text[x->at + ahead] : -1;
}

static bool looking_at(const jj_lexer *x, int64_t at, const char *what)
{
    const int64_t n = (int64_t)strlen(what);
    return at + n <= x->bytes && !memcmp(x->text + at, what, (size_t)n);
}

static void move_to(jj_lexer *x, int64_t at)
{
    for (; x->at < at; x->at++)
        x->line += x->text[x->at] == '\n';
}

static int64_t skip_space(const jj_lexer *x, int64_t at)
{
    while (at < x->bytes) {
        int64_t next = at;
        if (!cmoei_jj_is_space(cmoei_jj_utf8_next(x->text, x->bytes, &next))) break;
        at = next;
    }
    return at;
}

static int64_t strip_right(const jj_lexer *x, int64_t from, int64_t to)
{
    while (to > from) {
        int64_t begin = to - 1, next = 0;
        while (begin > from && ((unsigned char)x->text[begin] & 0xc0) == 0x80)
            begin--;
        next = begin;
        if (!cmoei_jj_is_space(cmoei_jj_utf8_next(x->text, x->bytes, &next))) break;
        to = begin;
    }
    return to;
}

/* ---- text between tags ----------------------------------------------------------------------- */

/* Where the text [from, to) in front of a tag ends, given the sign behind the tag's {% or {{ or {#. */
static int64_t data_end(const jj_lexer *x, int64_t from, int64_t to, int sign, bool is_print)
{
    if (sign == '-') return strip_right(x, from, to);
    if (sign == '+' || is_print) return to;
    int64_t line = to;
    while (line > from && x->text[line - 1] != '\n')
        line--;
    if (line == from && !x->line_start) return to;
    return skip_space(x, line) >= to ? line : to;
}

/* Behind a tag's end: `sign` of its end mark, and whether one newline goes with it. */
static void close_tag(jj_lexer *x, int64_t at, int sign, bool trim)
{
    if (sign == '-')
        at = skip_space(x, at);
    else if (trim && sign != '+' && looking_at(x, at, "\n"))
        at++;
    move_to(x, at);
    x->line_start = x->text[at - 1] == '\n';
}

/* {% raw %} or {% endraw %} at `at`: where it ends, or -1.  *sign: in front of its %}. */
static int64_t raw_tag(const jj_lexer *x, int64_t at, const char *word, int *sign)
{
    at += 2;
    if (looking_at(x, at, "-") || looking_at(x, at, "+")) at++;
    at = skip_space(x, at);
    if (!looking_at(x, at, word)) return -1;
    at = skip_space(x, at + (int64_t)strlen(word));
    *sign = at < x->bytes ? (unsigned char)x->text[at] : 0;
    if (*sign == '-' || *sign == '+') at++;
    return looking_at(x, at, "%}") ? at + 2 : -1;
}

static bool data_token(jj_lexer *x, int64_t from, int64_t to, jj_token *out)
{
    out->kind = JJ_T_DATA;
    return cmoei_jj_string_make(x->e, x->text + from, to - from, &out->value);
}

static int sign_at(const jj_lexer *x, int64_t at)
{
    return at < x->bytes && (x->text[at] == '-' || x->text[at] == '+') ? x->text[at] : 0;
}

static bool lex_raw(jj_lexer *x, int64_t begin, jj_token *out)
{
    int sign = 0;
    int64_t end = -1, at = begin;
    for (; at < x->bytes; at++) {
        if (!looking_at(x, at, "{%")) continue;
        end = raw_tag(x, at, "endraw", &sign);
        if (end >= 0) break;
    }
    if (end < 0) return cmoei_jj_fail(x->e, "{%% raw %%} without {%% endraw %%}");
    const int64_t to = data_end(x, begin, at, sign_at(x, at + 2), false);
    JJ_TRY(data_token(x, begin, to, out));
    close_tag(x, end, sign, true);
    return true;
}

static bool skip_comment(jj_lexer *x, int64_t begin)
{
    int64_t at = begin;
    while (at < x->bytes && !looking_at(x, at, "#}"))
        at++;
    if (at >= x->bytes) return cmoei_jj_fail(x->e, "comment without #}");
    close_tag(x, at + 2, at > begin ? sign_at(x, at - 1) : 0, true);
    return true;
}

/* Text up to the next tag.  *again: there was none, and what followed is skipped already. */
static bool lex_text(jj_lexer *x, jj_token *out, bool *again)
{
    const int64_t from = x->at;
    int64_t at = from;
    while (at + 1 < x->bytes &&
           !(x->text[at] == '{' && strchr("{%#", x->text[at + 1]) && x->text[at + 1]))
        at++;
    const bool tag = at + 1 < x->bytes;
    const char sort = tag ? x->text[at + 1] : 0;
    const int sign = tag ? sign_at(x, at + 2) : 0;
    const int64_t to = tag ? data_end(x, from, at, sign, sort == '{') : x->bytes;
    JJ_TRY(data_token(x, from, to, out));
    *again = to == from;
    x->line_start = false;
    if (!tag) {
        move_to(x, x->bytes);
        return true;
    }
    move_to(x, at);
    x->e->line = x->line;
    int raw_sign = 0;
    const int64_t raw = sort == '%' ? raw_tag(x, at, "raw", &raw_sign) : -1;
    if (raw >= 0 && raw_sign != '+') {
        /* Its text becomes the next token: remembered by standing at the tag once more. */
        if (!*again) return true;
        close_tag(x, raw, raw_sign, false);
        *again = false;
        return lex_raw(x, x->at, out);
    }
    const int64_t inside = at + 2 + (sign != 0);
    if (sort == '#') return skip_comment(x, inside);
    move_to(x, inside);
    x->tag = sort == '{' ? JJ_T_PRINT_BEGIN : JJ_T_BLOCK_BEGIN;
    return true;
}

/* ---- inside of tags -------------------------------------------------------------------------- */

static bool is_digit(const jj_lexer *x, int64_t at, int base)
{
    if (at >= x->bytes) return false;
    const char c = x->text[at], lower = (char)(c | 32);
    return (c >= '0' && c <= '9') || (base == 16 && lower >= 'a' && lower <= 'f');
}

/* Behind a run of digits, with single underscores between them. */
static int64_t digits_end(const jj_lexer *x, int64_t at, int base)
{
    while (is_digit(x, at, base) || (looking_at(x, at, "_") && is_digit(x, at + 1, base)))
        at++;
    return at;
}

/* Behind the fraction and exponent that may follow at `at`; `at` when there is neither. */
static int64_t fraction_end(const jj_lexer *x, int64_t at)
{
    if (looking_at(x, at, ".") && is_digit(x, at + 1, 10)) at = digits_end(x, at + 1, 10);
    if (!looking_at(x, at, "e") && !looking_at(x, at, "E")) return at;
    const int64_t digits = at + 1 + (sign_at(x, at + 1) != 0);
    return is_digit(x, digits, 10) ? digits_end(x, digits, 10) : at;
}

static bool lex_number(jj_lexer *x, jj_token *out)
{
    const int64_t from = x->at;
    const int letter = peek(x, 0) == '0' ? peek(x, 1) | 32 : 0;
    const int base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    const int64_t first = from + (base == 10 ? 0 : 2), whole = digits_end(x, first, base);
    int64_t end = whole;
    char digits[80], *rest = NULL;
    size_t n = 0;
    /* Behind a dot a number is an index: x.0.1 */
    if (base == 10 && !(from > 0 && x->text[from - 1] == '.')) end = fraction_end(x, whole);
    if (end - from > 70) return cmoei_jj_fail(x->e, "a number of more than 70 characters");
    for (int64_t i = first; i < end; i++)
        if (x->text[i] != '_') digits[n++] = x->text[i];
    digits[n] = '\0';
    move_to(x, end);
    if (end > whole) {
        out->kind = JJ_T_FLOAT;
        out->value = cmoei_jj_float(cmoei_jj_float_read(digits, (int64_t)n));
        return true;
    }
    errno = 0;
    out->kind = JJ_T_INT;
    out->value = cmoei_jj_int(strtoll(digits, &rest, base));
    if (errno == ERANGE) return cmoei_jj_fail(x->e, "integer %s does not fit into 64 bits", digits);
    if (!n || *rest || (base == 10 && n > 1 && digits[0] == '0' && strspn(digits, "0") != n))
        return cmoei_jj_fail(x->e, "bad number %.*s", (int)(end - from), x->text + from);
    return true;
}

/* n hexadecimal digits, or -1. */
static int32_t hex_digits(const char *s, int64_t n, int64_t bytes)
{
    int32_t c = 0;
    if (bytes < n) return -1;
    for (int64_t i = 0; i < n; i++) {
        const char lower = (char)(s[i] | 32);
        const bool digit = s[i] >= '0' && s[i] <= '9';
        if ((!digit && (lower < 'a' || lower > 'f')) || c > 0x10ffff) return -1;
        c = c * 16 + (digit ? s[i] - '0' : lower - 'a' + 10);
    }
    return c;
}

/* The character that an escape stands for, s[0] being what follows the backslash; *used: its bytes.
 * -1: none, the backslash stays; -2: bad. */
static int32_t escape(const char *s, int64_t bytes, int64_t *used)
{
    static const char plain[] = "\\'\"abfnrtv", means[] = "\\'\"\a\b\f\n\r\t\v";
    const char *at = s[0] ? strchr(plain, s[0]) : NULL;
    int32_t c = 0;
    *used = 1;
    if (at) return means[at - plain];
    if (s[0] == 'x' || s[0] == 'u' || s[0] == 'U') {
        const int64_t n = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : 8;
        *used = 1 + n;
        c = hex_digits(s + 1, n, bytes - 1);
        return c < 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? -2 : c;
    }
    if (s[0] >= '0' && s[0] <= '7') {
        int64_t n = 0;
        for (; n < 3 && n < bytes && s[n] >= '0' && s[n] <= '7'; n++)
            c = c * 8 + (s[n] - '0');
        *used = n;
        return c;
    }
    return s[0] == 'N' ? -2 : -1;
}

static bool lex_string(jj_lexer *x, jj_token *out)
{
    const char quote = x->text[x->at];
    const int64_t mark = x->e->out_bytes;
    int64_t at = x->at + 1;
    for (; at < x->bytes && x->text[at] != quote; at++) {
        if (x->text[at] != '\\') {
            JJ_TRY(cmoei_jj_put(x->e, x->text + at, 1));
            continue;
        }
        if (at + 1 >= x->bytes) break;
        int64_t used = 0;
        if (x->text[at + 1] == '\n') { /* a line that goes on */
            at++;
            continue;
        }
        const int32_t c = escape(x->text + at + 1, x->bytes - at - 1, &used);
        if (c == -2) return cmoei_jj_fail(x->e, "bad escape \\%c in a string", x->text[at + 1]);
        if (c == -1) {
            JJ_TRY(cmoei_jj_put(x->e, "\\", 1));
            continue;
        }
        JJ_TRY(cmoei_jj_put_char(x->e, c, 1));
        at += used;
    }
    if (at >= x->bytes) return cmoei_jj_fail(x->e, "string without its closing %c", quote);
    out->kind = JJ_T_STRING;
    move_to(x, at + 1);
    return cmoei_jj_cut(x->e, mark, &out->value);
}

static bool lex_name(jj_lexer *x, jj_token *out, bool *is_name)
{
    int64_t at = x->at;
    while (at < x->bytes) {
        int64_t next = at;
        if (!cmoei_jj_is_word(cmoei_jj_utf8_next(x->text, x->bytes, &next))) break;
        at = next;
    }
    *is_name = at > x->at;
    if (!*is_name) return true;
    out->kind = JJ_T_NAME;
    JJ_TRY(cmoei_jj_string_make(x->e, x->text + x->at, at - x->at, &out->value));
    move_to(x, at);
    return true;
}

static bool lex_operator(jj_lexer *x, jj_token *out)
{
    jj_token_kind found = JJ_T_END;
    const char c = x->text[x->at];
    for (jj_token_kind k = JJ_T_ADD; k <= JJ_T_RBRACE; k++)
        if (names[k][0] == c && looking_at(x, x->at, names[k]) &&
            (found == JJ_T_END || strlen(names[k]) > strlen(names[found])))
            found = k;
    if (found == JJ_T_END)
        return cmoei_jj_fail(x->e, "unexpected character %.*s", (unsigned char)c < 0x80 ? 1 : 4,
                             x->text + x->at);
    if (c == '(' || c == '[' || c == '{') {
        if (x->n_open == JJ_PARSE_DEPTH)
            return cmoei_jj_fail(x->e, "brackets are nested more than %d deep", JJ_PARSE_DEPTH);
        x->open[x->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (!x->n_open) return cmoei_jj_fail(x->e, "unexpected '%c'", c);
        if (x->open[--x->n_open] != c)
            return cmoei_jj_fail(x->e, "unexpected '%c', expected '%c'", c, x->open[x->n_open]);
    }
    out->kind = found;
    move_to(x, x->at + (int64_t)strlen(names[found]));
    return true;
}

static bool lex_end(jj_lexer *x, jj_token *out)
{
    const char *mark = x->state == JJ_IN_PRINT ? "}}" : "%}";
    int sign = peek(x, 0);
    if (sign != '-' && (sign != '+' || x->state == JJ_IN_PRINT)) sign = 0;
    if (x->n_open || !looking_at(x, x->at + (sign != 0), mark)) return true;
    out->kind = x->state == JJ_IN_PRINT ? JJ_T_PRINT_END : JJ_T_BLOCK_END;
    close_tag(x, x->at + 2 + (sign != 0), sign, x->state == JJ_IN_BLOCK);
    x->state = JJ_IN_TEXT;
    return true;
}

static bool lex_tag(jj_lexer *x, jj_token *out)
{
    move_to(x, skip_space(x, x->at));
    x->e->line = out->line = x->line;
    if (x->at >= x->bytes)
        return cmoei_jj_fail(x->e, "tag without %s", x->state == JJ_IN_PRINT ? "}}" : "%}");
    JJ_TRY(lex_end(x, out));
    if (out->kind != JJ_T_END) return true;
    const int c = peek(x, 0);
    bool is_name = false;
    x->line_start = false;
    if (c >= '0' && c <= '9') return lex_number(x, out);
    if (c == '\'' || c == '"') return lex_string(x, out);
    JJ_TRY(lex_name(x, out, &is_name));
    return is_name || lex_operator(x, out);
}

bool cmoei_jj_lex(jj_lexer *x, jj_token *out)
{
    *out = (jj_token){.line = x->line};
    if (x->state != JJ_IN_TEXT) return lex_tag(x, out);
    for (bool again = true; again && x->tag == JJ_T_END;) {
        *out = (jj_token){.line = x->line};
        if (x->at >= x->bytes) return true;
        JJ_TRY(lex_text(x, out, &again));
        if (!again) return true;
    }
    *out = (jj_token){.kind = x->tag, .line = x->line};
    x->state = x->tag == JJ_T_PRINT_BEGIN ? JJ_IN_PRINT : JJ_IN_BLOCK;
    x->tag = JJ_T_END;
    return true;
}
