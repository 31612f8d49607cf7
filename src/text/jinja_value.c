/* SPDX-License-Identifier: MIT
 *
 * jinja_value.c - making values: strings, lists, dicts, and all of them from JSON.
 */
#include "text/jinja.h"

#include <jansson.h>
#include <string.h>

jj_value cmoei_jj_none(void)
{
    return (jj_value){.kind = JJ_NONE};
}

jj_value cmoei_jj_bool(bool b)
{
    return (jj_value){.kind = JJ_BOOL, .u.truth = b};
}

jj_value cmoei_jj_int(int64_t i)
{
    return (jj_value){.kind = JJ_INT, .u.integer = i};
}

jj_value cmoei_jj_float(double d)
{
    return (jj_value){.kind = JJ_FLOAT, .u.real = d};
}

/* ---- strings --------------------------------------------------------------------------------- */

/* Bytes that several strings begin with; free room behind them belongs to whoever ends at `used`. */
struct jj_buffer {
    int64_t used, capacity;
    char *data;
};

static int64_t count_chars(const char *data, int64_t bytes)
{
    int64_t n = 0;
    for (int64_t i = 0; i < bytes; i++)
        n += ((unsigned char)data[i] & 0xc0) != 0x80;
    return n;
}

static bool string_over(jj_env *e, const char *data, int64_t bytes, int64_t chars, jj_buffer *b,
                        jj_value *out)
{
    jj_string *s = cmoei_jj_take(e, 1, sizeof *s);
    if (!s) return false;
    *s = (jj_string){.data = data, .bytes = bytes, .chars = chars, .buffer = b};
    *out = (jj_value){.kind = JJ_STRING, .u.string = s};
    return true;
}

bool cmoei_jj_string_make(jj_env *e, const char *data, int64_t bytes, jj_value *out)
{
    char *copy = cmoei_jj_take(e, bytes, 1);
    if (!copy || !cmoei_jj_work(e, bytes)) return false;
    if (bytes) memcpy(copy, data, (size_t)bytes);
    return string_over(e, copy, bytes, count_chars(copy, bytes), NULL, out);
}

bool cmoei_jj_string_share(jj_env *e, const jj_string *s, int64_t from, int64_t to, jj_value *out)
{
    const int64_t bytes = CMOEI_MAX(to - from, (int64_t)0);
    const bool ascii = s->bytes == s->chars;
    if (!ascii) JJ_TRY(cmoei_jj_work(e, bytes));
    JJ_TRY(string_over(e, s->data + from, bytes, ascii ? bytes : count_chars(s->data + from, bytes),
                       NULL, out));
    return !s->markup || cmoei_jj_string_markup(e, out->u.string, true, out);
}

bool cmoei_jj_string_markup(jj_env *e, const jj_string *s, bool markup, jj_value *out)
{
    jj_string *copy = cmoei_jj_take(e, 1, sizeof *copy);
    if (!copy) return false;
    *copy = *s;
    copy->markup = markup;
    *out = (jj_value){.kind = JJ_STRING, .u.string = copy};
    return true;
}

/* Templates build text by `ns.text = ns.text ~ more` in loops: appending in place keeps that linear. */
bool cmoei_jj_string_add(jj_env *e, const jj_string *a, const jj_string *b, jj_value *out)
{
    const int64_t bytes = a->bytes + b->bytes, chars = a->chars + b->chars;
    if (bytes > e->out_limit)
        return cmoei_jj_fail(e, "a string gets longer than %lld bytes", (long long)e->out_limit);
    jj_buffer *u = a->buffer;
    if (!u || u->used != a->bytes || u->capacity - u->used < b->bytes) {
        u = cmoei_jj_take(e, 1, sizeof *u);
        if (!u) return false;
        u->capacity = bytes < 256 ? bytes : 2 * bytes;
        u->data = cmoei_jj_take(e, u->capacity, 1);
        if (!u->data || !cmoei_jj_work(e, a->bytes)) return false;
        memcpy(u->data, a->data, (size_t)a->bytes);
        u->used = a->bytes;
    }
    JJ_TRY(cmoei_jj_work(e, b->bytes));
    memcpy(u->data + u->used, b->data, (size_t)b->bytes);
    u->used += b->bytes;
    return string_over(e, u->data, bytes, chars, u, out);
}

bool cmoei_jj_equals_text(const jj_string *s, const char *text)
{
    return s->bytes == (int64_t)strlen(text) && !memcmp(s->data, text, (size_t)s->bytes);
}

/* ---- lists ----------------------------------------------------------------------------------- */

bool cmoei_jj_is_sequence(jj_value v)
{
    return v.kind >= JJ_LIST && v.kind <= JJ_ITERATOR;
}

bool cmoei_jj_list_make(jj_env *e, jj_kind kind, int64_t capacity, jj_value *out)
{
    jj_list *l = cmoei_jj_take(e, 1, sizeof *l);
    if (!l) return false;
    l->type = "generator";
    l->capacity = capacity;
    l->items = capacity ? cmoei_jj_take(e, capacity, sizeof *l->items) : NULL;
    *out = (jj_value){.kind = kind, .u.list = l};
    return l->items || !capacity;
}

bool cmoei_jj_list_push(jj_env *e, jj_list *l, jj_value v)
{
    if (l->n == l->capacity) {
        const int64_t capacity = CMOEI_MAX(l->capacity * 2, (int64_t)8);
        jj_value *grown = cmoei_jj_take(e, capacity, sizeof *grown);
        if (!grown) return false;
        if (l->n) memcpy(grown, l->items, (size_t)l->n * sizeof *grown);
        l->items = grown;
        l->capacity = capacity;
    }
    l->items[l->n++] = v;
    return true;
}

/* ---- dicts ----------------------------------------------------------------------------------- */

enum { FEW = 8 }; /* so many pairs are searched one by one */

bool cmoei_jj_dict_make(jj_env *e, jj_kind kind, jj_value *out)
{
    *out = (jj_value){.kind = kind, .u.dict = cmoei_jj_take(e, 1, sizeof(jj_dict))};
    return out->u.dict != NULL;
}

bool cmoei_jj_dict_find(jj_env *e, const jj_dict *d, jj_value key, jj_pair **found)
{
    uint64_t hash = 0;
    bool same = false;
    *found = NULL;
    JJ_TRY(cmoei_jj_hash(e, key, &hash));
    int64_t probe = (int64_t)(hash & (uint64_t)(d->slots - 1)), i = 0;
    for (int64_t tried = 0;; tried++) {
        if (d->index) {
            i = d->index[probe] - 1;
            probe = (probe + 1) & (d->slots - 1);
            if (tried % 16 == 15) JJ_TRY(cmoei_jj_step(e)); /* keys that were made to collide */
        } else {
            i = tried < d->n ? tried : -1;
        }
        if (i < 0) return true;
        if (d->pairs[i].hash != hash) continue;
        JJ_TRY(cmoei_jj_equal(e, d->pairs[i].key, key, &same));
        if (same) *found = d->pairs + i;
        if (same) return true;
    }
}

jj_pair *cmoei_jj_dict_find_name(jj_env *e, const jj_dict *d, const jj_string *name)
{
    jj_pair *found = NULL;
    const jj_value key = {.kind = JJ_STRING, .u.string = name};
    return cmoei_jj_dict_find(e, d, key, &found) ? found : NULL;
}

static void index_put(jj_dict *d, int64_t i)
{
    uint64_t probe = d->pairs[i].hash;
    while (d->index[probe & (uint64_t)(d->slots - 1)])
        probe++;
    d->index[probe & (uint64_t)(d->slots - 1)] = (int32_t)(i + 1);
}

static bool dict_grow(jj_env *e, jj_dict *d)
{
    const int64_t capacity = CMOEI_MAX(d->capacity * 2, (int64_t)4);
    if (capacity > INT32_MAX / 4) return cmoei_jj_fail(e, "a dict gets too large");
    jj_pair *pairs = cmoei_jj_take(e, capacity, sizeof *pairs);
    if (!pairs) return false;
    if (d->n) memcpy(pairs, d->pairs, (size_t)d->n * sizeof *pairs);
    d->pairs = pairs;
    d->capacity = capacity;
    if (capacity <= FEW) return true;
    d->slots = 2 * cmoei_round_up(capacity, 2);
    d->index = cmoei_jj_take(e, d->slots, sizeof *d->index);
    if (!d->index) return false;
    for (int64_t i = 0; i < d->n; i++)
        index_put(d, i);
    return true;
}

bool cmoei_jj_dict_set(jj_env *e, jj_dict *d, jj_value key, jj_value value)
{
    jj_pair *found = NULL;
    uint64_t hash = 0;
    JJ_TRY(cmoei_jj_dict_find(e, d, key, &found) && cmoei_jj_hash(e, key, &hash));
    if (found) {
        found->value = value;
        return true;
    }
    if (d->n == d->capacity) JJ_TRY(dict_grow(e, d));
    d->pairs[d->n] = (jj_pair){.key = key, .value = value, .hash = hash};
    d->n++;
    if (d->index) index_put(d, d->n - 1);
    return true;
}

/* ---- undefined ------------------------------------------------------------------------------- */

bool cmoei_jj_undefined(jj_env *e, const char *object, const jj_string *name, jj_value *out)
{
    jj_hint *h = cmoei_jj_take(e, 1, sizeof *h);
    if (!h) return false;
    *h = (jj_hint){.object = object, .name = name};
    *out = (jj_value){.kind = JJ_UNDEFINED, .u.hint = h};
    return true;
}

bool cmoei_jj_undefined_text(jj_env *e, const char *text, jj_value *out)
{
    jj_value s;
    JJ_TRY(cmoei_jj_string_make(e, text, (int64_t)strlen(text), &s));
    return cmoei_jj_undefined(e, "", s.u.string, out);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static bool from_json(jj_env *e, json_t *j, jj_value *out);

static bool from_object(jj_env *e, json_t *j, jj_value *out)
{
    const char *key = NULL;
    json_t *item = NULL;
    jj_value name, value;
    JJ_TRY(cmoei_jj_dict_make(e, JJ_DICT, out));
    json_object_foreach(j, key, item)
    {
        JJ_TRY(cmoei_jj_string_make(e, key, (int64_t)strlen(key), &name));
        JJ_TRY(from_json(e, item, &value) && cmoei_jj_dict_set(e, out->u.dict, name, value));
    }
    return true;
}

static bool from_array(jj_env *e, json_t *j, jj_value *out)
{
    jj_value value;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, (int64_t)json_array_size(j), out));
    for (size_t i = 0; i < json_array_size(j); i++)
        JJ_TRY(from_json(e, json_array_get(j, i), &value) &&
               cmoei_jj_list_push(e, out->u.list, value));
    return true;
}

static bool from_json(jj_env *e, json_t *j, jj_value *out)
{
    bool ok = true;
    JJ_TRY(cmoei_jj_deeper(e));
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        ok = from_object(e, j, out);
        break;
    case JSON_ARRAY:
        ok = from_array(e, j, out);
        break;
    case JSON_STRING:
        ok = cmoei_jj_string_make(e, json_string_value(j), (int64_t)json_string_length(j), out);
        break;
    case JSON_INTEGER:
        *out = cmoei_jj_int(json_integer_value(j));
        break;
    case JSON_REAL:
        *out = cmoei_jj_float(json_real_value(j));
        break;
    case JSON_TRUE:
        *out = cmoei_jj_bool(true);
        break;
    case JSON_FALSE:
        *out = cmoei_jj_bool(false);
        break;
    default:
        *out = cmoei_jj_none();
        break;
    }
    cmoei_jj_shallower(e);
    return ok;
}

bool cmoei_jj_json(jj_env *e, const char *text, int64_t bytes, const char *what, jj_value *out)
{
    json_error_t why;
    json_t *j = json_loadb(text ? text : "", (size_t)bytes,
                           JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!j && json_error_code(&why) == json_error_out_of_memory)
        e->status = cmoei_fail(e->err, CMOE_ERR_MEMORY, "%s: no memory to read them", what);
    if (!j)
        return cmoei_jj_fail(e, "%s are no JSON: %s (line %d, column %d)", what, why.text, why.line,
                             why.column);
    const bool ok = from_json(e, j, out);
    json_decref(j);
    return ok;
}
