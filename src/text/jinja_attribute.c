/* SPDX-License-Identifier: MIT
 *
 * jinja_attribute.c - `a.b` and `a[b]`, and walking over values.
 *
 * As in Jinja, `a.b` asks for an attribute first and for an item then, `a[b]` the other way round: so
 * m.items is the method even where m has a key "items".  What is not there is undefined, and becomes
 * an error when it is used.
 */
#include "text/jinja.h"

#include <string.h>

/* "dict object": how Jinja names what was asked. */
static const char *object_name(jj_value v)
{
    switch (v.kind) {
    case JJ_NONE:
        return "None";
    case JJ_BOOL:
        return "bool object";
    case JJ_INT:
        return "int object";
    case JJ_FLOAT:
        return "float object";
    case JJ_STRING:
        return v.u.string->markup ? "markupsafe.Markup object" : "str object";
    case JJ_LIST:
        return "list object";
    case JJ_TUPLE:
        return "tuple object";
    case JJ_RANGE:
        return "range object";
    case JJ_VIEW:
        return v.u.list->type[5] == 'k'   ? "dict_keys object"
               : v.u.list->type[5] == 'v' ? "dict_values object"
                                          : "dict_items object";
    case JJ_ITERATOR:
        return "generator object";
    case JJ_DICT:
        return "dict object";
    case JJ_NAMESPACE:
        return "jinja2.utils.Namespace object";
    case JJ_MACRO:
        return "jinja2.runtime.Macro object";
    case JJ_LOOP:
        return "jinja2.runtime.LoopContext object";
    default:
        return "function object";
    }
}

/* An undefined value that says that the sandbox is why. */
static bool unsafe(jj_env *e, jj_value v, const jj_string *name, jj_value *out)
{
    jj_value text;
    const int64_t mark = e->out_bytes;
    JJ_TRY(cmoei_jj_put_text(e, "access to attribute '") &&
           cmoei_jj_put(e, name->data, name->bytes) && cmoei_jj_put_text(e, "' of '") &&
           cmoei_jj_put_text(e, cmoei_jj_type(v)) && cmoei_jj_put_text(e, "' object is unsafe."));
    JJ_TRY(cmoei_jj_cut(e, mark, &text));
    return cmoei_jj_undefined(e, "", text.u.string, out);
}

/* The type's own attributes.  *found: there is one. */
static bool own_attribute(jj_env *e, jj_value v, const jj_string *name, jj_value *out, bool *found)
{
    *found = true;
    if (v.kind == JJ_LOOP) {
        JJ_TRY(cmoei_jj_loop_attribute(e, v.u.loop, name, out));
        if (out->kind != JJ_MISSING) return true;
    }
    if (v.kind == JJ_NAMESPACE) {
        jj_pair *pair = cmoei_jj_dict_find_name(e, v.u.dict, name);
        if (pair) *out = pair->value;
        *found = pair != NULL;
        return e->status == CMOE_OK;
    }
    if (name->bytes > 4 && !memcmp(name->data, "__", 2) &&
        !memcmp(name->data + name->bytes - 2, "__", 2))
        return unsafe(e, v, name, out);
    const jj_builtin *what = cmoei_jj_find_method(v.kind, name);
    *found = what != NULL;
    if (!what) return true;
    if (what->run == cmoei_jj_method_unsafe) return unsafe(e, v, name, out);
    if (!what->run)
        return cmoei_jj_fail(e, "'%s' of '%s' is not supported", what->name, object_name(v));
    jj_method *m = cmoei_jj_take(e, 1, sizeof *m);
    if (!m) return false;
    *m = (jj_method){.what = what, .self = v};
    *out = (jj_value){.kind = JJ_METHOD, .u.method = m};
    return true;
}

bool cmoei_jj_attribute(jj_env *e, jj_value v, const jj_string *name, jj_value *out)
{
    bool found = false;
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    JJ_TRY(own_attribute(e, v, name, out, &found));
    if (found) return true;
    if (v.kind == JJ_DICT) {
        jj_pair *pair = cmoei_jj_dict_find_name(e, v.u.dict, name);
        if (pair) *out = pair->value;
        if (pair || e->status != CMOE_OK) return pair != NULL;
    }
    return cmoei_jj_undefined(e, object_name(v), name, out);
}

/* The item at `at`, counted from the end when negative.  *found false: there is none. */
static bool item_at(jj_env *e, jj_value v, int64_t at, jj_value *out, bool *found)
{
    const bool text = v.kind == JJ_STRING;
    const int64_t n = text ? v.u.string->chars : v.u.list->n;
    if (at < 0) at += n;
    *found = at >= 0 && at < n;
    if (!*found) return true;
    if (!text) {
        *out = v.u.list->items[at];
        return true;
    }
    int64_t begin = cmoei_jj_utf8_offset(v.u.string, at), end = begin;
    if (v.u.string->chars != v.u.string->bytes) JJ_TRY(cmoei_jj_work(e, begin));
    cmoei_jj_utf8_next(v.u.string->data, v.u.string->bytes, &end);
    return cmoei_jj_string_share(e, v.u.string, begin, end, out);
}

bool cmoei_jj_item(jj_env *e, jj_value v, jj_value key, jj_value *out)
{
    const bool indexed =
        v.kind == JJ_STRING || v.kind == JJ_LIST || v.kind == JJ_TUPLE || v.kind == JJ_RANGE;
    bool found = false;
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    if (v.kind == JJ_DICT && key.kind != JJ_LIST && key.kind != JJ_DICT) {
        jj_pair *pair = NULL;
        JJ_TRY(cmoei_jj_dict_find(e, v.u.dict, key, &pair));
        if (pair) *out = pair->value;
        if (pair) return true;
    }
    if (indexed && (key.kind == JJ_INT || key.kind == JJ_BOOL))
        JJ_TRY(item_at(e, v, key.kind == JJ_INT ? key.u.integer : key.u.truth, out, &found));
    if (!found && key.kind == JJ_STRING) JJ_TRY(own_attribute(e, v, key.u.string, out, &found));
    if (found) return true;
    const jj_string *name = NULL;
    if (key.kind == JJ_STRING) return cmoei_jj_undefined(e, object_name(v), key.u.string, out);
    const int64_t mark = e->out_bytes;
    JJ_TRY(cmoei_jj_put_repr(e, key) && cmoei_jj_cut(e, mark, out) && cmoei_jj_str(e, *out, &name));
    JJ_TRY(cmoei_jj_undefined(e, object_name(v), name, out));
    jj_hint *h = cmoei_jj_take(e, 1, sizeof *h);
    if (!h) return false;
    *h = (jj_hint){.object = object_name(v), .name = name, .element = true};
    out->u.hint = h;
    return true;
}

/* map(attribute=...), sort(attribute=...): names between dots; digits are an index. */
bool cmoei_jj_path(jj_env *e, jj_value v, jj_value path, jj_value *out)
{
    *out = v;
    if (path.kind == JJ_NONE || path.kind == JJ_MISSING) return true;
    if (path.kind != JJ_STRING) return cmoei_jj_item(e, v, path, out);
    const jj_string *s = path.u.string;
    for (int64_t from = 0, to = 0; from <= s->bytes; from = to + 1) {
        jj_value part;
        int64_t index = 0;
        bool digits = true;
        for (to = from; to < s->bytes && s->data[to] != '.'; to++) {
            digits = digits && s->data[to] >= '0' && s->data[to] <= '9' && to - from < 15;
            index = digits ? index * 10 + (s->data[to] - '0') : 0;
        }
        JJ_TRY(cmoei_jj_string_share(e, s, from, to, &part));
        JJ_TRY(cmoei_jj_item(e, *out, digits && to > from ? cmoei_jj_int(index) : part, out));
    }
    return true;
}

/* ---- walking --------------------------------------------------------------------------------- */

static bool chars_of(jj_env *e, const jj_string *s, jj_value *out)
{
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, s->chars, out));
    for (int64_t at = 0; at < s->bytes;) {
        const int64_t from = at;
        jj_value c;
        cmoei_jj_utf8_next(s->data, s->bytes, &at);
        JJ_TRY(cmoei_jj_string_share(e, s, from, at, &c) && cmoei_jj_list_push(e, out->u.list, c));
    }
    return cmoei_jj_work(e, s->bytes);
}

bool cmoei_jj_items(jj_env *e, jj_value v, jj_list **out)
{
    jj_value list;
    if (v.kind == JJ_STRING) {
        JJ_TRY(chars_of(e, v.u.string, &list));
    } else if (v.kind == JJ_DICT) {
        JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, v.u.dict->n, &list));
        for (int64_t i = 0; i < v.u.dict->n; i++)
            list.u.list->items[list.u.list->n++] = v.u.dict->pairs[i].key;
    } else if (v.kind == JJ_UNDEFINED) {
        JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, &list));
    } else if (v.kind == JJ_ITERATOR) {
        jj_list *l = v.u.list;
        JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, &list));
        list.u.list->items = l->items ? l->items + l->next : NULL;
        list.u.list->n = list.u.list->capacity = l->n - l->next;
        l->next = l->n;
    } else if (cmoei_jj_is_sequence(v)) {
        list = v;
    } else {
        return cmoei_jj_fail(e, "'%s' object is not iterable", cmoei_jj_type(v));
    }
    *out = list.u.list;
    return true;
}

bool cmoei_jj_length(jj_env *e, jj_value v, int64_t *out)
{
    if (v.kind == JJ_STRING)
        *out = v.u.string->chars;
    else if (v.kind == JJ_DICT)
        *out = v.u.dict->n;
    else if (v.kind == JJ_UNDEFINED)
        *out = 0;
    else if (cmoei_jj_is_sequence(v) && v.kind != JJ_ITERATOR)
        *out = v.u.list->n;
    else
        return cmoei_jj_fail(e, "object of type '%s' has no len()", cmoei_jj_type(v));
    return true;
}
