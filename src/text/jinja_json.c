/* SPDX-License-Identifier: MIT
 *
 * jinja_json.c - tojson as transformers has it, json.dumps(x, ensure_ascii=False, indent=...) without
 * escaping for HTML, and from_json.
 */
#include "text/jinja_builtins.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct style {
    const jj_string *indent, *between, *colon; /* indent NULL: all in one line */
    bool ascii, sorted;
} style;

static bool put_unit(jj_env *e, int32_t unit)
{
    char text[16];
    snprintf(text, sizeof text, "\\u%04x", (unsigned)unit);
    return cmoei_jj_put_text(e, text);
}

static bool put_escape(jj_env *e, int32_t c)
{
    static const char plain[] = "\"\\\n\r\t\f\b", letter[] = "\"\\nrtfb";
    const char *at = c > 0 && c < 0x80 ? strchr(plain, c) : NULL;
    if (at) return cmoei_jj_put(e, "\\", 1) && cmoei_jj_put(e, letter + (at - plain), 1);
    if (c < 0x10000) return put_unit(e, c);
    c -= 0x10000;
    return put_unit(e, 0xd800 + (c >> 10)) && put_unit(e, 0xdc00 + (c & 0x3ff));
}

static bool put_string(jj_env *e, const jj_string *s, const style *y)
{
    int64_t from = 0;
    JJ_TRY(cmoei_jj_put(e, "\"", 1));
    for (int64_t at = 0; at < s->bytes;) {
        const int64_t begin = at;
        const int32_t c = cmoei_jj_utf8_next(s->data, s->bytes, &at);
        if (c >= 0x20 && c != '"' && c != '\\' && !(y->ascii && c >= 0x7f)) continue;
        JJ_TRY(cmoei_jj_put(e, s->data + from, begin - from) && put_escape(e, c));
        from = at;
    }
    return cmoei_jj_put(e, s->data + from, s->bytes - from) && cmoei_jj_put(e, "\"", 1);
}

static bool put_newline(jj_env *e, const style *y, int64_t level)
{
    if (!y->indent) return true;
    JJ_TRY(cmoei_jj_put(e, "\n", 1));
    for (int64_t i = 0; i < level; i++)
        JJ_TRY(cmoei_jj_put(e, y->indent->data, y->indent->bytes));
    return true;
}

static bool put_value(jj_env *e, jj_value v, const style *y, int64_t level);

static bool put_scalar(jj_env *e, jj_value v, bool *is_scalar)
{
    char text[40];
    *is_scalar = true;
    switch (v.kind) {
    case JJ_NONE:
        return cmoei_jj_put_text(e, "null");
    case JJ_BOOL:
        return cmoei_jj_put_text(e, v.u.truth ? "true" : "false");
    case JJ_INT:
        return cmoei_jj_put_repr(e, v);
    case JJ_FLOAT:
        cmoei_jj_float_text(v.u.real, text);
        return cmoei_jj_put_text(e, isnan(v.u.real)    ? "NaN"
                                    : !isinf(v.u.real) ? text
                                    : v.u.real > 0     ? "Infinity"
                                                       : "-Infinity");
    default:
        *is_scalar = false;
        return true;
    }
}

static bool put_key(jj_env *e, jj_value key, const style *y)
{
    bool scalar = false;
    if (key.kind == JJ_STRING) return put_string(e, key.u.string, y);
    JJ_TRY(cmoei_jj_put(e, "\"", 1) && put_scalar(e, key, &scalar));
    if (!scalar)
        return cmoei_jj_fail(e, "keys must be str, int, float, bool or None, not %s",
                             cmoei_jj_type(key));
    return cmoei_jj_put(e, "\"", 1);
}

static bool put_list(jj_env *e, const jj_list *l, const style *y, int64_t level)
{
    if (!l->n) return cmoei_jj_put_text(e, "[]");
    JJ_TRY(cmoei_jj_put(e, "[", 1));
    for (int64_t i = 0; i < l->n; i++) {
        if (i) JJ_TRY(cmoei_jj_put(e, y->between->data, y->between->bytes));
        JJ_TRY(put_newline(e, y, level + 1) && put_value(e, l->items[i], y, level + 1));
    }
    return put_newline(e, y, level) && cmoei_jj_put(e, "]", 1);
}

/* Positions in order of the keys. */
static bool sorted_pairs(jj_env *e, const jj_dict *d, jj_list **order)
{
    jj_value keys, at;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, d->n, &keys) &&
           cmoei_jj_list_make(e, JJ_LIST, d->n, &at));
    for (int64_t i = 0; i < d->n; i++)
        JJ_TRY(cmoei_jj_list_push(e, keys.u.list, d->pairs[i].key) &&
               cmoei_jj_list_push(e, at.u.list, cmoei_jj_int(i)));
    *order = at.u.list;
    return cmoei_jj_sort(e, at.u.list->items, keys.u.list->items, d->n, false);
}

static bool put_dict(jj_env *e, const jj_dict *d, const style *y, int64_t level)
{
    jj_list *order = NULL;
    if (!d->n) return cmoei_jj_put_text(e, "{}");
    if (y->sorted) JJ_TRY(sorted_pairs(e, d, &order));
    JJ_TRY(cmoei_jj_put(e, "{", 1));
    for (int64_t i = 0; i < d->n; i++) {
        const jj_pair *pair = d->pairs + (order ? order->items[i].u.integer : i);
        if (i) JJ_TRY(cmoei_jj_put(e, y->between->data, y->between->bytes));
        JJ_TRY(put_newline(e, y, level + 1) && put_key(e, pair->key, y));
        JJ_TRY(cmoei_jj_put(e, y->colon->data, y->colon->bytes));
        JJ_TRY(put_value(e, pair->value, y, level + 1));
    }
    return put_newline(e, y, level) && cmoei_jj_put(e, "}", 1);
}

static bool put_value(jj_env *e, jj_value v, const style *y, int64_t level)
{
    bool scalar = false, ok = true;
    if (v.kind == JJ_STRING) return put_string(e, v.u.string, y);
    JJ_TRY(put_scalar(e, v, &scalar));
    if (scalar) return true;
    JJ_TRY(cmoei_jj_step(e) && cmoei_jj_deeper(e));
    if (v.kind == JJ_LIST || v.kind == JJ_TUPLE)
        ok = put_list(e, v.u.list, y, level);
    else if (v.kind == JJ_DICT)
        ok = put_dict(e, v.u.dict, y, level);
    else
        ok = cmoei_jj_fail(e, "Object of type %s is not JSON serializable", cmoei_jj_type(v));
    cmoei_jj_shallower(e);
    return ok;
}

/* indent=2, indent="\t" */
static bool read_indent(jj_env *e, const jj_call *c, style *y)
{
    const jj_value v = c->v[1];
    const int64_t mark = e->out_bytes;
    int64_t blanks = 0;
    jj_value text;
    if (v.kind == JJ_MISSING || v.kind == JJ_NONE) return true;
    if (v.kind == JJ_STRING) {
        y->indent = v.u.string;
        return true;
    }
    JJ_TRY(cmoei_jj_arg_int(e, c, 1, 0, &blanks) && cmoei_jj_put_char(e, ' ', blanks));
    JJ_TRY(cmoei_jj_cut(e, mark, &text));
    y->indent = text.u.string;
    return true;
}

bool cmoei_jj_f_tojson(jj_env *e, const jj_call *c, jj_value *out)
{
    static const jj_string comma = {", ", 2, 2, NULL, false}, colon = {": ", 2, 2, NULL, false},
                           bare = {",", 1, 1, NULL, false};
    style y = {
        .ascii = cmoei_jj_truth(c->v[0]), .sorted = cmoei_jj_truth(c->v[3]), .colon = &colon};
    const int64_t mark = e->out_bytes;
    JJ_TRY(read_indent(e, c, &y));
    y.between = y.indent ? &bare : &comma;
    if (c->v[2].kind == JJ_TUPLE || c->v[2].kind == JJ_LIST) {
        const jj_list *l = c->v[2].u.list;
        if (l->n != 2 || l->items[0].kind != JJ_STRING || l->items[1].kind != JJ_STRING)
            return cmoei_jj_fail(e, "tojson: separators must be two strings");
        y.between = l->items[0].u.string;
        y.colon = l->items[1].u.string;
    } else if (c->v[2].kind != JJ_MISSING && c->v[2].kind != JJ_NONE) {
        return cmoei_jj_fail(e, "tojson: separators must be two strings");
    }
    return put_value(e, c->self, &y, 0) && cmoei_jj_cut(e, mark, out);
}

bool cmoei_jj_f_from_json(jj_env *e, const jj_call *c, jj_value *out)
{
    if (c->self.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, c->self);
    if (c->self.kind != JJ_STRING)
        return cmoei_jj_fail(e, "from_json wants a string, not '%s'", cmoei_jj_type(c->self));
    return cmoei_jj_json(e, c->self.u.string->data, c->self.u.string->bytes, "from_json: these",
                         out);
}
