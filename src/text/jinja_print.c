/* SPDX-License-Identifier: MIT
 *
 * jinja_print.c - values as text: str() and repr() of Python.
 */
#include "text/jinja.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- floats ---------------------------------------------------------------------------------- */

/* The C library's decimal point belongs to the caller's locale, so it is only ever skipped (writing)
 * or put in (reading). */
double cmoei_jj_float_read(const char *text, int64_t bytes)
{
    char copy[128];
    const char *point = localeconv()->decimal_point;
    size_t n = 0;
    for (int64_t i = 0; i < bytes && n + 8 < sizeof copy; i++) {
        if (text[i] == '_') continue;
        if (text[i] == '.')
            n += (size_t)snprintf(copy + n, 8, "%.7s", point);
        else
            copy[n++] = text[i];
    }
    copy[n] = '\0';
    return strtod(copy, NULL);
}

/* The fewest digits that read back as d, and its decimal exponent: d = 0.DIGITS * 10^point. */
static int shortest_digits(double d, char digits[20], int *point)
{
    char text[48];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, d);
        if (strtod(text, NULL) == d) break;
    }
    int n = 0;
    const char *at = text;
    for (; *at && *at != 'e'; at++)
        if (*at >= '0' && *at <= '9' && n < 19) digits[n++] = *at;
    *point = (int)strtol(at + 1, NULL, 10) + 1;
    while (n > 1 && digits[n - 1] == '0')
        n--;
    digits[n] = '\0';
    return n;
}

void cmoei_jj_float_text(double d, char text[40])
{
    char digits[20];
    int point = 0;
    if (isnan(d) || isinf(d)) {
        snprintf(text, 40, "%s", isnan(d) ? "nan" : d < 0 ? "-inf" : "inf");
        return;
    }
    const char *sign = signbit(d) ? "-" : "";
    const int n = shortest_digits(fabs(d), digits, &point);
    if (d == 0)
        snprintf(text, 40, "%s0.0", sign);
    else if (point > 16 || point < -3)
        snprintf(text, 40, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "", digits + 1,
                 point > 0 ? '+' : '-', abs(point - 1));
    else if (point <= 0)
        snprintf(text, 40, "%s0.%.*s%s", sign, -point, "000", digits);
    else if (point >= n)
        snprintf(text, 40, "%s%s%.*s.0", sign, digits, point - n, "0000000000000000");
    else
        snprintf(text, 40, "%s%.*s.%s", sign, point, digits, digits + point);
}

/* ---- strings --------------------------------------------------------------------------------- */

static bool put_escape(jj_env *e, int32_t c, char quote)
{
    char text[12];
    if (c == quote || c == '\\')
        snprintf(text, sizeof text, "\\%c", (char)c);
    else if (c == '\n' || c == '\r' || c == '\t')
        snprintf(text, sizeof text, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else if (c < 0x100)
        snprintf(text, sizeof text, "\\x%02x", (unsigned)c);
    else if (c < 0x10000)
        snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    else
        snprintf(text, sizeof text, "\\U%08x", (unsigned)c);
    return cmoei_jj_put_text(e, text);
}

/* In single quotes, unless only double ones need no escapes. */
static bool put_string_repr(jj_env *e, const jj_string *s)
{
    const bool single = memchr(s->data, '\'', (size_t)s->bytes) != NULL;
    const bool both = memchr(s->data, '"', (size_t)s->bytes) != NULL;
    const char quote = single && !both ? '"' : '\'';
    JJ_TRY(cmoei_jj_put_text(e, s->markup ? "Markup(" : "") && cmoei_jj_put(e, &quote, 1));
    int64_t from = 0;
    for (int64_t at = 0; at < s->bytes;) {
        const int64_t begin = at;
        const int32_t c = cmoei_jj_utf8_next(s->data, s->bytes, &at);
        if (c != quote && c != '\\' && cmoei_jj_is_printable(c)) continue;
        JJ_TRY(cmoei_jj_put(e, s->data + from, begin - from) && put_escape(e, c, quote));
        from = at;
    }
    return cmoei_jj_put(e, s->data + from, s->bytes - from) && cmoei_jj_put(e, &quote, 1) &&
           cmoei_jj_put_text(e, s->markup ? ")" : "");
}

/* ---- the rest -------------------------------------------------------------------------------- */

static bool put_items(jj_env *e, const jj_list *l, const char *open, const char *close)
{
    JJ_TRY(cmoei_jj_put_text(e, open));
    for (int64_t i = 0; i < l->n; i++)
        JJ_TRY(cmoei_jj_put_text(e, i ? ", " : "") && cmoei_jj_put_repr(e, l->items[i]));
    return cmoei_jj_put_text(e, close);
}

static bool put_dict(jj_env *e, const jj_dict *d)
{
    JJ_TRY(cmoei_jj_put_text(e, "{"));
    for (int64_t i = 0; i < d->n; i++)
        JJ_TRY(cmoei_jj_put_text(e, i ? ", " : "") && cmoei_jj_put_repr(e, d->pairs[i].key) &&
               cmoei_jj_put_text(e, ": ") && cmoei_jj_put_repr(e, d->pairs[i].value));
    return cmoei_jj_put_text(e, "}");
}

static bool put_format(jj_env *e, const char *format, const char *a, int64_t b)
{
    char text[160];
    snprintf(text, sizeof text, format, a, (long long)b);
    return cmoei_jj_put_text(e, text);
}

static bool put_range(jj_env *e, const jj_list *l)
{
    const int64_t stop = l->capacity; /* a range is never pushed to: it keeps its end there */
    char text[96];
    if (l->step == 1)
        snprintf(text, sizeof text, "range(%lld, %lld)", (long long)l->start, (long long)stop);
    else
        snprintf(text, sizeof text, "range(%lld, %lld, %lld)", (long long)l->start, (long long)stop,
                 (long long)l->step);
    return cmoei_jj_put_text(e, text);
}

static bool put_object(jj_env *e, jj_value v)
{
    char text[40];
    switch (v.kind) {
    case JJ_NONE:
        return cmoei_jj_put_text(e, "None");
    case JJ_BOOL:
        return cmoei_jj_put_text(e, v.u.truth ? "True" : "False");
    case JJ_INT:
        return put_format(e, "%s%lld", "", v.u.integer);
    case JJ_FLOAT:
        cmoei_jj_float_text(v.u.real, text);
        return cmoei_jj_put_text(e, text);
    case JJ_LIST:
        return put_items(e, v.u.list, "[", "]");
    case JJ_TUPLE:
        return put_items(e, v.u.list, "(", v.u.list->n == 1 ? ",)" : ")");
    case JJ_RANGE:
        return put_range(e, v.u.list);
    case JJ_VIEW:
        return cmoei_jj_put_text(e, v.u.list->type) && put_items(e, v.u.list, "([", "])");
    case JJ_DICT:
        return put_dict(e, v.u.dict);
    case JJ_NAMESPACE:
        return cmoei_jj_put_text(e, "<Namespace ") && put_dict(e, v.u.dict) &&
               cmoei_jj_put_text(e, ">");
    case JJ_MACRO:
        return cmoei_jj_put_text(e, "<Macro ") && cmoei_jj_put_repr(e, v.u.macro->node->value) &&
               cmoei_jj_put_text(e, ">");
    default:
        return cmoei_jj_fail(e, "a %s cannot be printed", cmoei_jj_type(v));
    }
}

bool cmoei_jj_put_repr(jj_env *e, jj_value v)
{
    if (v.kind == JJ_STRING) return put_string_repr(e, v.u.string);
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_put_text(e, "Undefined");
    JJ_TRY(cmoei_jj_deeper(e));
    const bool ok = put_object(e, v);
    cmoei_jj_shallower(e);
    return ok;
}

bool cmoei_jj_put_str(jj_env *e, jj_value v)
{
    if (v.kind == JJ_STRING) return cmoei_jj_put(e, v.u.string->data, v.u.string->bytes);
    if (v.kind == JJ_UNDEFINED) return true;
    return cmoei_jj_put_repr(e, v);
}

bool cmoei_jj_str(jj_env *e, jj_value v, const jj_string **out)
{
    if (v.kind != JJ_STRING) {
        const int64_t mark = e->out_bytes;
        JJ_TRY(cmoei_jj_put_str(e, v) && cmoei_jj_cut(e, mark, &v));
    }
    *out = v.u.string;
    return true;
}
