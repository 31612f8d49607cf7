/* SPDX-License-Identifier: MIT
 *
 * jinja_format.c - "%s" % x and "{}".format(x).
 */
#include "text/jinja.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct spec {
    char align, sign, type; /* 0: not given */
    bool zero, alternate;
    int64_t width, precision; /* -1: not given */
} spec;

enum { WIDEST = 10000 };

/* text in a width.  A zero-padded number gets its zeros behind the sign. */
static bool put_padded(jj_env *e, const spec *f, const char *text, int64_t bytes, int64_t chars,
                       char align)
{
    const int64_t pad = CMOEI_MAX(f->width - chars, (int64_t)0);
    const bool sign = bytes > 0 && (text[0] == '-' || text[0] == '+' || text[0] == ' ');
    if (align == '=') {
        JJ_TRY(cmoei_jj_put(e, text, sign) && cmoei_jj_put_char(e, '0', pad));
        return cmoei_jj_put(e, text + sign, bytes - sign);
    }
    const int64_t left = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    return cmoei_jj_put_char(e, ' ', left) && cmoei_jj_put(e, text, bytes) &&
           cmoei_jj_put_char(e, ' ', pad - left);
}

static bool put_text_value(jj_env *e, const spec *f, jj_value v, char align)
{
    const int64_t mark = e->out_bytes;
    jj_value s;
    JJ_TRY(f->type == 'r' ? cmoei_jj_put_repr(e, v) : cmoei_jj_put_str(e, v));
    JJ_TRY(cmoei_jj_cut(e, mark, &s));
    if (f->precision >= 0 && f->precision < s.u.string->chars)
        JJ_TRY(cmoei_jj_string_share(e, s.u.string, 0,
                                     cmoei_jj_utf8_offset(s.u.string, f->precision), &s));
    return put_padded(e, f, s.u.string->data, s.u.string->bytes, s.u.string->chars, align);
}

/* Digits of a number as the C library writes them, the decimal point made a point. */
static int float_digits(char *text, size_t size, const spec *f, double d)
{
    char format[16];
    const char type = f->type == 'F' ? 'f' : f->type;
    snprintf(format, sizeof format, "%%%s%s.*%c",
             f->sign == '+' ? "+"
             : f->sign      ? " "
                            : "",
             f->alternate ? "#" : "", type);
    const int n = snprintf(text, size, format, (int)(f->precision < 0 ? 6 : f->precision), d);
    for (int i = 0; isfinite(d) && i < n; i++)
        if (text[i] == ',') text[i] = '.';
    return n;
}

/* Digits of an integer; a float is cut off at its point. */
static int int_digits(char *text, size_t size, const spec *f, int64_t i)
{
    const uint64_t magnitude = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    const unsigned long long u = magnitude;
    const char *sign = i < 0 ? "-" : f->sign == '+' ? "+" : f->sign ? " " : "";
    switch (f->type) {
    case 'o':
        return snprintf(text, size, "%s%llo", sign, u);
    case 'x':
        return snprintf(text, size, "%s%llx", sign, u);
    case 'X':
        return snprintf(text, size, "%s%llX", sign, u);
    default:
        return snprintf(text, size, "%s%llu", sign, u);
    }
}

static bool put_number(jj_env *e, const spec *f, jj_value v)
{
    char text[512];
    const bool as_float = strchr("eEfFgG", f->type) != NULL;
    const double d = v.kind == JJ_FLOAT  ? v.u.real
                     : v.kind == JJ_BOOL ? v.u.truth
                                         : (double)v.u.integer;
    int n = 0;
    if (f->precision > 100) return cmoei_jj_fail(e, "a precision above 100 is not supported");
    if (!as_float && f->alternate) return cmoei_jj_fail(e, "the format flag # is not supported");
    if (!as_float && v.kind == JJ_FLOAT && !(fabs(d) < 0x1p63))
        return cmoei_jj_fail(e, "a float does not fit an integer");
    if (as_float)
        n = float_digits(text, sizeof text, f, d);
    else
        n = int_digits(text, sizeof text, f,
                       v.kind == JJ_FLOAT  ? (int64_t)d
                       : v.kind == JJ_BOOL ? v.u.truth
                                           : v.u.integer);
    if (n < 0 || n >= (int)sizeof text) return cmoei_jj_fail(e, "a number is too long to format");
    return put_padded(e, f, text, n, n, f->align ? f->align : f->zero ? '=' : '>');
}

static int64_t read_width(const jj_string *s, int64_t *at)
{
    int64_t n = 0;
    while (*at < s->bytes && s->data[*at] >= '0' && s->data[*at] <= '9' && n <= WIDEST)
        n = n * 10 + (s->data[(*at)++] - '0');
    return n;
}

/* ---- % --------------------------------------------------------------------------------------- */

static bool read_percent(jj_env *e, const jj_string *s, int64_t *at, spec *f)
{
    *f = (spec){.precision = -1};
    for (; *at < s->bytes && memchr("-+ 0#", s->data[*at], 5); ++*at) {
        const char c = s->data[*at];
        if (c == '-') f->align = '<';
        if (c == '0') f->zero = true;
        if (c == '#') f->alternate = true;
        if (c == '+' || (c == ' ' && !f->sign)) f->sign = c;
    }
    f->width = read_width(s, at);
    if (*at < s->bytes && s->data[*at] == '.') {
        ++*at;
        f->precision = read_width(s, at);
    }
    if (f->width > WIDEST || f->precision > WIDEST)
        return cmoei_jj_fail(e, "a width above %d is not supported", WIDEST);
    if (*at >= s->bytes) return cmoei_jj_fail(e, "incomplete format");
    f->type = s->data[(*at)++];
    if (memchr("sdiuxXofFeEgGr%", f->type, 15)) return true;
    return cmoei_jj_fail(e, "unsupported format character '%c'", f->type);
}

static bool put_percent(jj_env *e, const spec *f, jj_value v)
{
    if (f->type == 's' || f->type == 'r') return put_text_value(e, f, v, f->align ? f->align : '>');
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    if (v.kind != JJ_INT && v.kind != JJ_BOOL && v.kind != JJ_FLOAT)
        return cmoei_jj_fail(e, "%%%c format: a number is required, not %s", f->type,
                             cmoei_jj_type(v));
    return put_number(e, f, v);
}

/* "%s and %d" % (a, b); "%(name)s" % dict. */
bool cmoei_jj_percent(jj_env *e, const jj_string *s, jj_value right, jj_value *out)
{
    const int64_t mark = e->out_bytes;
    const bool many = right.kind == JJ_TUPLE;
    const int64_t n = many ? right.u.list->n : 1;
    int64_t used = 0;
    for (int64_t at = 0; at < s->bytes;) {
        const char *sign = memchr(s->data + at, '%', (size_t)(s->bytes - at));
        const int64_t to = sign ? sign - s->data : s->bytes;
        jj_value v = right;
        spec f;
        JJ_TRY(cmoei_jj_put(e, s->data + at, to - at));
        if (!sign) break;
        at = to + 1;
        bool named = false;
        if (at < s->bytes && s->data[at] == '(') {
            const char *close = memchr(s->data + at, ')', (size_t)(s->bytes - at));
            jj_value name;
            if (!close) return cmoei_jj_fail(e, "incomplete format key");
            if (right.kind != JJ_DICT) return cmoei_jj_fail(e, "format requires a mapping");
            JJ_TRY(cmoei_jj_string_share(e, s, at + 1, close - s->data, &name));
            jj_pair *pair = NULL;
            JJ_TRY(cmoei_jj_dict_find(e, right.u.dict, name, &pair));
            if (!pair)
                return cmoei_jj_fail(e, "format: no key '%.*s'",
                                     (int)CMOEI_MIN(name.u.string->bytes, 60), name.u.string->data);
            v = pair->value;
            at = close - s->data + 1;
            named = true;
            used = n;
        }
        JJ_TRY(read_percent(e, s, &at, &f));
        if (f.type == '%') {
            JJ_TRY(cmoei_jj_put(e, "%", 1));
            continue;
        }
        if (!named) {
            if (used >= n) return cmoei_jj_fail(e, "not enough arguments for format string");
            if (many) v = right.u.list->items[used];
            used++;
        }
        JJ_TRY(put_percent(e, &f, v));
    }
    if (used < n && right.kind != JJ_DICT && right.kind != JJ_LIST)
        return cmoei_jj_fail(e, "not all arguments converted during string formatting");
    JJ_TRY(cmoei_jj_cut(e, mark, out));
    return !s->markup || cmoei_jj_string_markup(e, out->u.string, true, out);
}

/* ---- {} -------------------------------------------------------------------------------------- */

/* [align][sign][0][width][.precision][type] */
static bool read_braces(jj_env *e, const jj_string *s, spec *f)
{
    int64_t at = 0;
    *f = (spec){.precision = -1};
    if (s->bytes && memchr("<>^", s->data[0], 3)) f->align = s->data[at++];
    if (at < s->bytes && memchr("+- ", s->data[at], 3)) f->sign = s->data[at++];
    if (f->sign == '-') f->sign = 0;
    if (at < s->bytes && s->data[at] == '0') f->zero = true;
    f->width = read_width(s, &at);
    if (at < s->bytes && s->data[at] == '.') {
        at++;
        f->precision = read_width(s, &at);
    }
    if (at < s->bytes && memchr("sdfFeEgGxXo", s->data[at], 11)) f->type = s->data[at++];
    if (at < s->bytes || f->width > WIDEST || f->precision > WIDEST)
        return cmoei_jj_fail(e, "format specification '%.*s' is not supported",
                             (int)CMOEI_MIN(s->bytes, 60), s->data);
    return true;
}

static bool put_braces(jj_env *e, const jj_string *s, jj_value v)
{
    spec f;
    JJ_TRY(read_braces(e, s, &f));
    const bool number = v.kind == JJ_INT || v.kind == JJ_FLOAT || v.kind == JJ_BOOL;
    if (s->bytes == 0) return cmoei_jj_put_str(e, v);
    if (v.kind == JJ_STRING && (!f.type || f.type == 's') && !f.zero)
        return put_text_value(e, &f, v, f.align ? f.align : '<');
    if (v.kind == JJ_INT && !f.type) f.type = 'd';
    if (!number || !f.type || f.type == 's' || (v.kind == JJ_FLOAT && strchr("dxXo", f.type)))
        return cmoei_jj_fail(e, "format specification '%.*s' is not supported for '%s'",
                             (int)CMOEI_MIN(s->bytes, 60), s->data, cmoei_jj_type(v));
    return put_number(e, &f, v);
}

/* The argument that a field names: a position, a name, or the next one. */
static bool field_value(jj_env *e, const jj_string *name, const jj_args *args, int32_t *next,
                        jj_value *out)
{
    int64_t at = 0, i = read_width(name, &at);
    if (name->bytes == 0) i = (*next)++;
    if (at == name->bytes) {
        if (i >= args->n)
            return cmoei_jj_fail(e, "Replacement index %lld out of range for positional args tuple",
                                 (long long)i);
        *out = args->at[i];
        return true;
    }
    for (int32_t k = 0; k < args->n_named; k++)
        if (args->named[k].name->bytes == name->bytes &&
            !memcmp(args->named[k].name->data, name->data, (size_t)name->bytes)) {
            *out = args->named[k].value;
            return true;
        }
    return cmoei_jj_fail(e, "format field '%.*s' is not supported or not given",
                         (int)CMOEI_MIN(name->bytes, 60), name->data);
}

bool cmoei_jj_format_braces(jj_env *e, const jj_string *s, const jj_args *args, jj_value *out)
{
    const int64_t mark = e->out_bytes;
    int32_t next = 0;
    for (int64_t at = 0; at < s->bytes; at++) {
        const char c = s->data[at];
        if (c != '{' && c != '}') {
            JJ_TRY(cmoei_jj_put(e, s->data + at, 1));
            continue;
        }
        if (at + 1 < s->bytes && s->data[at + 1] == c) {
            JJ_TRY(cmoei_jj_put(e, &c, 1));
            at++;
            continue;
        }
        const char *close = memchr(s->data + at, '}', (size_t)(s->bytes - at));
        if (c == '}' || !close) return cmoei_jj_fail(e, "single '%c' in a format string", c);
        const int64_t end = close - s->data;
        const char *colon = memchr(s->data + at, ':', (size_t)(end - at));
        const int64_t mid = colon ? colon - s->data : end;
        jj_value name, how, v;
        JJ_TRY(cmoei_jj_string_share(e, s, at + 1, mid, &name));
        JJ_TRY(cmoei_jj_string_share(e, s, CMOEI_MIN(mid + 1, end), end, &how));
        JJ_TRY(field_value(e, name.u.string, args, &next, &v));
        JJ_TRY(put_braces(e, how.u.string, v));
        at = end;
    }
    return cmoei_jj_cut(e, mark, out);
}
