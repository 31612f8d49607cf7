/* SPDX-License-Identifier: MIT
 *
 * jinja_compare.c - truth, equality, order, membership, hashing and sorting, as in Python.
 *
 * Numbers of all three types compare by value (True == 1 == 1.0) and so hash alike.
 */
#include "text/jinja.h"

#include <math.h>
#include <string.h>

const char *cmoei_jj_type(jj_value v)
{
    switch (v.kind) {
    case JJ_MISSING:
    case JJ_UNDEFINED:
        return "Undefined";
    case JJ_NONE:
        return "NoneType";
    case JJ_BOOL:
        return "bool";
    case JJ_INT:
        return "int";
    case JJ_FLOAT:
        return "float";
    case JJ_STRING:
        return v.u.string->markup ? "Markup" : "str";
    case JJ_LIST:
        return "list";
    case JJ_TUPLE:
        return "tuple";
    case JJ_RANGE:
        return "range";
    case JJ_VIEW:
    case JJ_ITERATOR:
        return v.u.list->type;
    case JJ_DICT:
        return "dict";
    case JJ_NAMESPACE:
        return "Namespace";
    case JJ_MACRO:
        return "Macro";
    case JJ_LOOP:
        return "LoopContext";
    case JJ_FUNCTION:
        return "function";
    case JJ_METHOD:
        return "builtin_function_or_method";
    }
    return "object";
}

bool cmoei_jj_truth(jj_value v)
{
    switch (v.kind) {
    case JJ_MISSING:
    case JJ_UNDEFINED:
    case JJ_NONE:
        return false;
    case JJ_BOOL:
        return v.u.truth;
    case JJ_INT:
        return v.u.integer != 0;
    case JJ_FLOAT:
        return v.u.real != 0;
    case JJ_STRING:
        return v.u.string->bytes > 0;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_RANGE:
    case JJ_VIEW:
        return v.u.list->n > 0;
    case JJ_DICT:
        return v.u.dict->n > 0;
    default:
        return true;
    }
}

static bool is_number(jj_value v)
{
    return v.kind == JJ_BOOL || v.kind == JJ_INT || v.kind == JJ_FLOAT;
}

static int64_t as_int(jj_value v)
{
    return v.kind == JJ_BOOL ? v.u.truth : v.u.integer;
}

/* -1 0 1, 2 when a NaN is one of them.  Exact: an integer is not rounded to compare it. */
static int int_float_order(int64_t i, double d)
{
    if (isnan(d)) return 2;
    if (d >= 0x1p63) return -1;
    if (d < -0x1p63) return 1;
    const int64_t whole = (int64_t)d;
    if (i != whole) return i < whole ? -1 : 1;
    const double rest = d - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

static int number_order(jj_value a, jj_value b)
{
    if (a.kind == JJ_FLOAT && b.kind == JJ_FLOAT) {
        if (isnan(a.u.real) || isnan(b.u.real)) return 2;
        return a.u.real < b.u.real ? -1 : a.u.real > b.u.real;
    }
    if (a.kind == JJ_FLOAT) {
        const int order = int_float_order(as_int(b), a.u.real);
        return order == 2 ? 2 : -order;
    }
    if (b.kind == JJ_FLOAT) return int_float_order(as_int(a), b.u.real);
    return as_int(a) < as_int(b) ? -1 : as_int(a) > as_int(b);
}

static int string_order(const jj_string *a, const jj_string *b)
{
    /* The order of UTF-8 bytes is the order of code points. */
    const int64_t n = CMOEI_MIN(a->bytes, b->bytes);
    const int c = n ? memcmp(a->data, b->data, (size_t)n) : 0;
    if (c) return c < 0 ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

static bool lists_equal(jj_env *e, const jj_list *a, const jj_list *b, bool *out)
{
    *out = a->n == b->n;
    for (int64_t i = 0; *out && i < a->n; i++)
        JJ_TRY(cmoei_jj_equal(e, a->items[i], b->items[i], out));
    return cmoei_jj_work(e, a->n);
}

static bool dicts_equal(jj_env *e, const jj_dict *a, const jj_dict *b, bool *out)
{
    *out = a->n == b->n;
    for (int64_t i = 0; *out && i < a->n; i++) {
        jj_pair *other = NULL;
        JJ_TRY(cmoei_jj_dict_find(e, b, a->pairs[i].key, &other));
        *out = other != NULL;
        if (other) JJ_TRY(cmoei_jj_equal(e, a->pairs[i].value, other->value, out));
    }
    return cmoei_jj_work(e, a->n);
}

bool cmoei_jj_equal(jj_env *e, jj_value a, jj_value b, bool *out)
{
    bool ok = true;
    *out = false;
    if (is_number(a) && is_number(b)) {
        *out = number_order(a, b) == 0;
        return true;
    }
    if (a.kind != b.kind) return true;
    /* A step each: a list that holds the same list twice, and so on, is exponential. */
    JJ_TRY(cmoei_jj_deeper(e) && cmoei_jj_step(e));
    switch (a.kind) {
    case JJ_UNDEFINED:
    case JJ_NONE:
        *out = true;
        break;
    case JJ_STRING:
        *out = a.u.string->bytes == b.u.string->bytes && string_order(a.u.string, b.u.string) == 0;
        ok = cmoei_jj_work(e, a.u.string->bytes);
        break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_RANGE:
        ok = lists_equal(e, a.u.list, b.u.list, out);
        break;
    case JJ_DICT:
        ok = dicts_equal(e, a.u.dict, b.u.dict, out);
        break;
    case JJ_FUNCTION:
        *out = a.u.function == b.u.function;
        break;
    default:
        *out = a.u.list == b.u.list;
        break; /* the same object */
    }
    cmoei_jj_shallower(e);
    return ok;
}

static bool lists_order(jj_env *e, const jj_list *a, const jj_list *b, const char *op, int *order)
{
    const int64_t n = CMOEI_MIN(a->n, b->n);
    bool same = false;
    JJ_TRY(cmoei_jj_work(e, n));
    for (int64_t i = 0; i < n; i++) {
        JJ_TRY(cmoei_jj_equal(e, a->items[i], b->items[i], &same));
        if (!same) return cmoei_jj_less(e, a->items[i], b->items[i], op, order);
    }
    *order = a->n < b->n ? -1 : a->n > b->n;
    return true;
}

bool cmoei_jj_less(jj_env *e, jj_value a, jj_value b, const char *op, int *order)
{
    if (is_number(a) && is_number(b)) {
        *order = number_order(a, b);
        return true;
    }
    if (a.kind == JJ_STRING && b.kind == JJ_STRING) {
        *order = string_order(a.u.string, b.u.string);
        return cmoei_jj_work(e, a.u.string->bytes);
    }
    if (a.kind == b.kind && (a.kind == JJ_LIST || a.kind == JJ_TUPLE)) {
        JJ_TRY(cmoei_jj_deeper(e) && lists_order(e, a.u.list, b.u.list, op, order));
        cmoei_jj_shallower(e);
        return true;
    }
    if (a.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, a);
    if (b.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, b);
    return cmoei_jj_fail(e, "'%s' not supported between instances of '%s' and '%s'", op,
                         cmoei_jj_type(a), cmoei_jj_type(b));
}

bool cmoei_jj_contains(jj_env *e, jj_value item, jj_value in, bool *out)
{
    *out = false;
    if (in.kind == JJ_STRING) {
        if (item.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, item);
        if (item.kind != JJ_STRING)
            return cmoei_jj_fail(e, "'in <string>' requires string as left operand, not %s",
                                 cmoei_jj_type(item));
        const jj_string *s = in.u.string, *t = item.u.string;
        *out = memmem(s->data, (size_t)s->bytes, t->data, (size_t)t->bytes) != NULL;
        return cmoei_jj_work(e, s->bytes + t->bytes);
    }
    if (in.kind == JJ_DICT) {
        jj_pair *found = NULL;
        JJ_TRY(cmoei_jj_dict_find(e, in.u.dict, item, &found));
        *out = found != NULL;
        return true;
    }
    if (in.kind == JJ_UNDEFINED) return true;
    if (!cmoei_jj_is_sequence(in))
        return cmoei_jj_fail(e, "argument of type '%s' is not iterable", cmoei_jj_type(in));
    jj_list *l = NULL;
    JJ_TRY(cmoei_jj_items(e, in, &l) && cmoei_jj_work(e, l->n));
    for (int64_t i = 0; !*out && i < l->n; i++)
        JJ_TRY(cmoei_jj_equal(e, l->items[i], item, out));
    return true;
}

/* ---- hashing --------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint64_t hash_number(jj_value v)
{
    if (v.kind != JJ_FLOAT) return mix(1, (uint64_t)as_int(v));
    if (v.u.real >= -0x1p63 && v.u.real < 0x1p63 && v.u.real == floor(v.u.real))
        return mix(1, (uint64_t)(int64_t)v.u.real);
    uint64_t bits = 0;
    memcpy(&bits, &v.u.real, sizeof bits);
    return mix(2, bits);
}

bool cmoei_jj_hash(jj_env *e, jj_value v, uint64_t *out)
{
    uint64_t h = 3, x = 0;
    if (is_number(v)) {
        *out = hash_number(v);
        return true;
    }
    if (v.kind == JJ_STRING) {
        for (int64_t i = 0; i < v.u.string->bytes; i++)
            h = (h ^ (unsigned char)v.u.string->data[i]) * 0x100000001b3u;
        *out = mix(h, 4);
        return cmoei_jj_work(e, v.u.string->bytes);
    }
    if (v.kind == JJ_TUPLE) {
        JJ_TRY(cmoei_jj_deeper(e) && cmoei_jj_step(e) && cmoei_jj_work(e, v.u.list->n));
        for (int64_t i = 0; i < v.u.list->n; i++) {
            JJ_TRY(cmoei_jj_hash(e, v.u.list->items[i], &x));
            h = mix(h, x);
        }
        cmoei_jj_shallower(e);
        *out = h;
        return true;
    }
    if (v.kind == JJ_LIST || v.kind == JJ_DICT)
        return cmoei_jj_fail(e, "unhashable type: '%s'", cmoei_jj_type(v));
    *out = mix(h, (uint64_t)v.kind); /* None, undefined, and objects nobody uses as keys */
    return true;
}

/* ---- sorting --------------------------------------------------------------------------------- */

/* Stable merge of two runs of positions; `order` says how left and right may not stand. */
static bool merge(jj_env *e, const jj_value *keys, const int64_t *from, int64_t *to, int64_t mid,
                  int64_t end, bool reverse)
{
    int64_t a = 0, b = mid;
    for (int64_t i = 0; i < end; i++) {
        bool right = a == mid;
        if (!right && b < end) {
            int order = 0;
            const jj_value x = keys[from[b]], y = keys[from[a]];
            JJ_TRY(reverse ? cmoei_jj_less(e, y, x, "<", &order)
                           : cmoei_jj_less(e, x, y, "<", &order));
            right = order == -1;
        }
        to[i] = right ? from[b++] : from[a++];
    }
    return cmoei_jj_work(e, end);
}

bool cmoei_jj_sort(jj_env *e, jj_value *items, const jj_value *keys, int64_t n, bool reverse)
{
    int64_t *from = cmoei_jj_take(e, n, sizeof *from), *to = cmoei_jj_take(e, n, sizeof *to);
    jj_value *sorted = cmoei_jj_take(e, n, sizeof *sorted);
    if (!from || !to || !sorted) return false;
    for (int64_t i = 0; i < n; i++)
        from[i] = i;
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t i = 0; i < n; i += 2 * run)
            JJ_TRY(merge(e, keys, from + i, to + i, CMOEI_MIN(run, n - i),
                         CMOEI_MIN(2 * run, n - i), reverse));
        int64_t *swap = from;
        from = to;
        to = swap;
    }
    for (int64_t i = 0; i < n; i++)
        sorted[i] = items[from[i]];
    if (n) memcpy(items, sorted, (size_t)n * sizeof *items);
    return true;
}
