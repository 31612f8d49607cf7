/* SPDX-License-Identifier: MIT
 *
 * jinja_sequences.c - filters over lists and dicts.
 *
 * Where Jinja gives a generator, so does this: it can be walked once and has no length.
 */
#include "text/jinja_builtins.h"

#include <string.h>

static bool generator(jj_env *e, jj_value *out)
{
    return cmoei_jj_list_make(e, JJ_ITERATOR, 0, out);
}

bool cmoei_jj_lower(jj_env *e, jj_value v, jj_value *out)
{
    const int64_t mark = e->out_bytes;
    *out = v;
    if (v.kind != JJ_STRING) return true;
    return cmoei_jj_put_case(e, v.u.string->data, v.u.string->bytes, JJ_LOWER) &&
           cmoei_jj_cut(e, mark, out);
}

/* What an item is compared by: its attribute, in lower case unless case counts. */
static bool key_of(jj_env *e, jj_value item, jj_value path, bool case_sensitive, jj_value *out)
{
    JJ_TRY(cmoei_jj_path(e, item, path, out));
    return case_sensitive || cmoei_jj_lower(e, *out, out);
}

bool cmoei_jj_f_list(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    JJ_TRY(cmoei_jj_items(e, c->self, &l) && cmoei_jj_list_make(e, JJ_LIST, l->n, out) &&
           cmoei_jj_work(e, l->n));
    if (l->n) memcpy(out->u.list->items, l->items, (size_t)l->n * sizeof *l->items);
    out->u.list->n = l->n;
    return true;
}

bool cmoei_jj_f_first(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    JJ_TRY(cmoei_jj_items(e, c->self, &l));
    if (!l->n) return cmoei_jj_undefined_text(e, "No first item, sequence was empty.", out);
    *out = l->items[0];
    return true;
}

bool cmoei_jj_f_last(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    if (c->self.kind == JJ_ITERATOR)
        return cmoei_jj_fail(e, "'%s' object is not reversible", cmoei_jj_type(c->self));
    JJ_TRY(cmoei_jj_items(e, c->self, &l));
    if (!l->n) return cmoei_jj_undefined_text(e, "No last item, sequence was empty.", out);
    *out = l->items[l->n - 1];
    return true;
}

bool cmoei_jj_f_reverse(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_value back[3] = {cmoei_jj_none(), cmoei_jj_none(), cmoei_jj_int(-1)};
    jj_list *l = NULL;
    if (c->self.kind == JJ_STRING) return cmoei_jj_slice(e, c->self, back, out);
    if (c->self.kind == JJ_ITERATOR || c->self.kind == JJ_UNDEFINED)
        return cmoei_jj_fail(e, "argument must be iterable");
    JJ_TRY(cmoei_jj_items(e, c->self, &l) && generator(e, out) && cmoei_jj_work(e, l->n));
    for (int64_t i = l->n; i-- > 0;)
        JJ_TRY(cmoei_jj_list_push(e, out->u.list, l->items[i]));
    return true;
}

bool cmoei_jj_f_join(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *between = NULL;
    jj_list *l = NULL;
    jj_value item;
    if (c->v[0].kind != JJ_MISSING) JJ_TRY(cmoei_jj_str(e, c->v[0], &between));
    JJ_TRY(cmoei_jj_items(e, c->self, &l));
    const int64_t mark = e->out_bytes;
    for (int64_t i = 0; i < l->n; i++) {
        if (i && between) JJ_TRY(cmoei_jj_put(e, between->data, between->bytes));
        JJ_TRY(cmoei_jj_path(e, l->items[i], c->v[1], &item) && cmoei_jj_put_str(e, item) &&
               cmoei_jj_work(e, 16));
    }
    return cmoei_jj_cut(e, mark, out);
}

bool cmoei_jj_f_items(jj_env *e, const jj_call *c, jj_value *out)
{
    JJ_TRY(generator(e, out));
    if (c->self.kind == JJ_UNDEFINED) return true;
    if (c->self.kind != JJ_DICT) return cmoei_jj_fail(e, "Can only get item pairs from a mapping.");
    const jj_dict *d = c->self.u.dict;
    for (int64_t i = 0; i < d->n; i++) {
        jj_value pair;
        JJ_TRY(cmoei_jj_list_make(e, JJ_TUPLE, 2, &pair) &&
               cmoei_jj_list_push(e, pair.u.list, d->pairs[i].key) &&
               cmoei_jj_list_push(e, pair.u.list, d->pairs[i].value) &&
               cmoei_jj_list_push(e, out->u.list, pair));
    }
    return true;
}

/* ---- choosing -------------------------------------------------------------------------------- */

/* The filter or test that map, select, ... name as an argument. */
static bool named_builtin(jj_env *e, jj_value name, bool test, const jj_builtin **out)
{
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_str(e, name, &s));
    *out = test ? cmoei_jj_find_test(s) : cmoei_jj_find_filter(s);
    if (*out && (*out)->run) return true;
    return cmoei_jj_fail(e, "%s '%.*s' is not supported", test ? "test" : "filter",
                         (int)CMOEI_MIN(s->bytes, 100), s->data);
}

static jj_args rest_of(const jj_args *args, int32_t from)
{
    jj_args rest = *args;
    rest.at += from;
    rest.n -= from;
    return rest;
}

static bool map_attribute(jj_env *e, const jj_args *args, const jj_list *l, jj_value *out)
{
    jj_value path = cmoei_jj_none(), fallback = cmoei_jj_none(), item;
    for (int32_t i = 0; i < args->n_named; i++) {
        const jj_string *name = args->named[i].name;
        if (cmoei_jj_equals_text(name, "attribute"))
            path = args->named[i].value;
        else if (cmoei_jj_equals_text(name, "default"))
            fallback = args->named[i].value;
        else
            return cmoei_jj_fail(e, "map: unexpected keyword argument '%.*s'",
                                 (int)CMOEI_MIN(name->bytes, 60), name->data);
    }
    if (path.kind == JJ_NONE) return cmoei_jj_fail(e, "map requires a filter argument");
    for (int64_t i = 0; i < l->n; i++) {
        JJ_TRY(cmoei_jj_step(e) && cmoei_jj_path(e, l->items[i], path, &item));
        if (item.kind == JJ_UNDEFINED && fallback.kind != JJ_NONE) item = fallback;
        JJ_TRY(cmoei_jj_list_push(e, out->u.list, item));
    }
    return true;
}

bool cmoei_jj_f_map(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_builtin *what = NULL;
    jj_list *l = NULL;
    jj_value item;
    JJ_TRY(cmoei_jj_items(e, c->self, &l) && generator(e, out));
    if (!c->args->n) return map_attribute(e, c->args, l, out);
    JJ_TRY(named_builtin(e, c->args->at[0], false, &what));
    const jj_args rest = rest_of(c->args, 1);
    if (++e->depth > JJ_EVAL_DEPTH)
        return cmoei_jj_fail(e, "evaluation is nested more than %d deep", JJ_EVAL_DEPTH);
    for (int64_t i = 0; i < l->n; i++)
        JJ_TRY(cmoei_jj_step(e) &&
               cmoei_jj_run_builtin(e, what, "filter", l->items[i], &rest, &item) &&
               cmoei_jj_list_push(e, out->u.list, item));
    e->depth--;
    return true;
}

/* select, reject; with an attribute: selectattr, rejectattr.  tag: bit 0 keeps what passes, bit 1
 * takes an attribute first. */
bool cmoei_jj_f_select(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_builtin *what = NULL;
    const bool keep = c->what->tag & 1, with_attribute = c->what->tag & 2;
    jj_list *l = NULL;
    jj_value path = cmoei_jj_none(), item, verdict;
    JJ_TRY(generator(e, out));
    if (!cmoei_jj_truth(c->self)) return true;
    if (with_attribute && !c->args->n)
        return cmoei_jj_fail(e, "missing parameter for attribute name");
    if (with_attribute) path = c->args->at[0];
    if (c->args->n > with_attribute)
        JJ_TRY(named_builtin(e, c->args->at[with_attribute], true, &what));
    JJ_TRY(cmoei_jj_items(e, c->self, &l));
    for (int64_t i = 0; i < l->n; i++) {
        JJ_TRY(cmoei_jj_step(e) && cmoei_jj_path(e, l->items[i], path, &item));
        verdict = item;
        if (what) {
            const jj_args rest = rest_of(c->args, 1 + with_attribute);
            JJ_TRY(cmoei_jj_run_builtin(e, what, "test", item, &rest, &verdict));
        }
        if (cmoei_jj_truth(verdict) == keep)
            JJ_TRY(cmoei_jj_list_push(e, out->u.list, l->items[i]));
    }
    return true;
}

bool cmoei_jj_f_unique(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    jj_value seen, key;
    JJ_TRY(cmoei_jj_items(e, c->self, &l) && generator(e, out) &&
           cmoei_jj_dict_make(e, JJ_DICT, &seen));
    for (int64_t i = 0; i < l->n; i++) {
        const int64_t before = seen.u.dict->n;
        JJ_TRY(cmoei_jj_step(e) && key_of(e, l->items[i], c->v[1], cmoei_jj_truth(c->v[0]), &key));
        JJ_TRY(cmoei_jj_dict_set(e, seen.u.dict, key, cmoei_jj_none()));
        if (seen.u.dict->n > before) JJ_TRY(cmoei_jj_list_push(e, out->u.list, l->items[i]));
    }
    return true;
}

/* ---- order ----------------------------------------------------------------------------------- */

/* "a,b" sorts by a, then by b: the key is a list of both. */
static bool sort_key(jj_env *e, jj_value item, jj_value path, bool case_sensitive, jj_value *out)
{
    jj_value part, key;
    if (path.kind != JJ_STRING || !memchr(path.u.string->data, ',', (size_t)path.u.string->bytes))
        return key_of(e, item, path, case_sensitive, out);
    const jj_string *s = path.u.string;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, out));
    for (int64_t from = 0, to = 0; from <= s->bytes; from = to + 1) {
        for (to = from; to < s->bytes && s->data[to] != ','; to++)
            ;
        JJ_TRY(cmoei_jj_string_share(e, s, from, to, &part));
        JJ_TRY(key_of(e, item, part, case_sensitive, &key) &&
               cmoei_jj_list_push(e, out->u.list, key));
    }
    return true;
}

bool cmoei_jj_f_sort(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_value keys, key;
    JJ_TRY(cmoei_jj_f_list(e, c, out));
    jj_list *l = out->u.list;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, l->n, &keys));
    for (int64_t i = 0; i < l->n; i++)
        JJ_TRY(cmoei_jj_step(e) &&
               sort_key(e, l->items[i], c->v[2], cmoei_jj_truth(c->v[1]), &key) &&
               cmoei_jj_list_push(e, keys.u.list, key));
    return cmoei_jj_sort(e, l->items, keys.u.list->items, l->n, cmoei_jj_truth(c->v[0]));
}

bool cmoei_jj_f_dictsort(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *by = NULL;
    jj_value keys, key;
    if (c->self.kind != JJ_DICT)
        return cmoei_jj_fail(e, "dictsort wants a mapping, not '%s'", cmoei_jj_type(c->self));
    JJ_TRY(cmoei_jj_arg_string(e, c, 1, &by));
    if (by && !cmoei_jj_equals_text(by, "key") && !cmoei_jj_equals_text(by, "value"))
        return cmoei_jj_fail(e, "You can only sort by either \"key\" or \"value\"");
    const int64_t at = by && cmoei_jj_equals_text(by, "value");
    JJ_TRY(cmoei_jj_f_items(e, c, out));
    out->kind = JJ_LIST;
    jj_list *l = out->u.list;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, l->n, &keys));
    for (int64_t i = 0; i < l->n; i++)
        JJ_TRY(key_of(e, l->items[i].u.list->items[at], cmoei_jj_none(), cmoei_jj_truth(c->v[0]),
                      &key) &&
               cmoei_jj_list_push(e, keys.u.list, key));
    return cmoei_jj_sort(e, l->items, keys.u.list->items, l->n, cmoei_jj_truth(c->v[2]));
}

/* min, max: the first of those that are equal.  tag: the order that replaces the best so far. */
bool cmoei_jj_f_extreme(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    jj_value best, key;
    int order = 0;
    JJ_TRY(cmoei_jj_items(e, c->self, &l));
    if (!l->n) return cmoei_jj_undefined_text(e, "No aggregated item, sequence was empty.", out);
    JJ_TRY(key_of(e, l->items[0], c->v[1], cmoei_jj_truth(c->v[0]), &best));
    *out = l->items[0];
    for (int64_t i = 1; i < l->n; i++) {
        JJ_TRY(cmoei_jj_step(e) && key_of(e, l->items[i], c->v[1], cmoei_jj_truth(c->v[0]), &key));
        JJ_TRY(cmoei_jj_less(e, key, best, c->what->tag < 0 ? "<" : ">", &order));
        if (order != c->what->tag) continue;
        best = key;
        *out = l->items[i];
    }
    return true;
}

bool cmoei_jj_f_sum(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    jj_value item;
    JJ_TRY(cmoei_jj_items(e, c->self, &l));
    *out = c->v[1].kind == JJ_MISSING ? cmoei_jj_int(0) : c->v[1];
    if (out->kind == JJ_STRING) return cmoei_jj_fail(e, "sum() can't sum strings");
    for (int64_t i = 0; i < l->n; i++)
        JJ_TRY(cmoei_jj_step(e) && cmoei_jj_path(e, l->items[i], c->v[0], &item) &&
               cmoei_jj_binary(e, JJ_T_ADD, *out, item, out));
    return true;
}

/* ---- in groups ------------------------------------------------------------------------------- */

/* Items [from, to) and `fill` up to `width`. */
static bool push_group(jj_env *e, const jj_list *l, int64_t from, int64_t to, int64_t width,
                       jj_value fill, jj_value *out)
{
    jj_value group;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, &group));
    for (int64_t i = from; i < to; i++)
        JJ_TRY(cmoei_jj_list_push(e, group.u.list, l->items[i]));
    if (fill.kind != JJ_MISSING && fill.kind != JJ_NONE)
        for (int64_t i = to - from; i < width; i++)
            JJ_TRY(cmoei_jj_list_push(e, group.u.list, fill));
    return cmoei_jj_list_push(e, out->u.list, group) && cmoei_jj_work(e, to - from);
}

bool cmoei_jj_f_batch(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    int64_t n = 0;
    JJ_TRY(cmoei_jj_arg_int(e, c, 0, 0, &n) && cmoei_jj_items(e, c->self, &l) && generator(e, out));
    if (n < 1) return cmoei_jj_fail(e, "batch wants a positive number");
    for (int64_t i = 0; i < l->n; i += CMOEI_MIN(n, l->n - i))
        JJ_TRY(push_group(e, l, i, CMOEI_MIN(n, l->n - i) + i, n, c->v[1], out));
    return true;
}

/* So many lists, the first ones longer by one; fill makes them equal. */
bool cmoei_jj_f_slice(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_list *l = NULL;
    int64_t n = 0, at = 0;
    JJ_TRY(cmoei_jj_arg_int(e, c, 0, 0, &n) && cmoei_jj_items(e, c->self, &l) && generator(e, out));
    if (n < 1) return cmoei_jj_fail(e, "slice wants a positive number");
    const int64_t each = l->n / n, longer = l->n % n;
    for (int64_t i = 0; i < n; i++) {
        const int64_t size = each + (i < longer);
        JJ_TRY(cmoei_jj_step(e));
        JJ_TRY(push_group(e, l, at, at + size, each + (i >= longer), c->v[1], out));
        at += size;
    }
    return true;
}
