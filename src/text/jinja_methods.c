/* SPDX-License-Identifier: MIT
 *
 * jinja_methods.c - methods of strings, dicts and lists, as in Python.
 */
#include "text/jinja_builtins.h"

#include <string.h>

static bool keep_markup(jj_env *e, const jj_call *c, jj_value *out)
{
    return !c->self.u.string->markup || cmoei_jj_string_markup(e, out->u.string, true, out);
}

static bool want_string(jj_env *e, const jj_call *c, int i, const jj_string **out)
{
    JJ_TRY(cmoei_jj_arg_string(e, c, i, out));
    return *out || cmoei_jj_fail(e, "'%s' wants a string, not 'NoneType'", c->what->name);
}

int64_t cmoei_jj_find(const jj_string *s, int64_t from, const jj_string *part)
{
    if (from > s->bytes) return -1;
    const char *at =
        memmem(s->data + from, (size_t)(s->bytes - from), part->data, (size_t)part->bytes);
    return at ? at - s->data : -1;
}

/* Where every place of s may look at all of part. */
static bool work_product(jj_env *e, const jj_string *s, const jj_string *part)
{
    int64_t n = 0;
    if (!cmoei_mul(s->bytes, part ? part->bytes : 1, &n)) n = INT64_MAX / 4;
    return cmoei_jj_work(e, n);
}

/* The last place at or before which part ends by `to`. */
static int64_t find_last(const jj_string *s, int64_t from, int64_t to, const jj_string *part)
{
    for (int64_t at = to - part->bytes; at >= from; at--)
        if (!memcmp(s->data + at, part->data, (size_t)part->bytes)) return at;
    return -1;
}

/* ---- cutting --------------------------------------------------------------------------------- */

static bool in_set(const jj_string *set, int32_t c)
{
    if (!set) return cmoei_jj_is_space(c);
    for (int64_t at = 0; at < set->bytes;)
        if (cmoei_jj_utf8_next(set->data, set->bytes, &at) == c) return true;
    return false;
}

void cmoei_jj_strip(const jj_string *s, const jj_string *set, int sides, int64_t *from, int64_t *to)
{
    *from = 0;
    *to = s->bytes;
    while (sides & JJ_LEFT && *from < *to) {
        int64_t next = *from;
        if (!in_set(set, cmoei_jj_utf8_next(s->data, s->bytes, &next))) break;
        *from = next;
    }
    while (sides & JJ_RIGHT && *to > *from) {
        int64_t begin = *to - 1;
        while (begin > *from && ((unsigned char)s->data[begin] & 0xc0) == 0x80)
            begin--;
        int64_t next = begin;
        if (!in_set(set, cmoei_jj_utf8_next(s->data, s->bytes, &next))) break;
        *to = begin;
    }
}

bool cmoei_jj_m_strip(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *set = NULL;
    int64_t from = 0, to = 0;
    JJ_TRY(cmoei_jj_arg_string(e, c, 0, &set) && work_product(e, s, set));
    cmoei_jj_strip(s, set, c->what->tag, &from, &to);
    return cmoei_jj_string_share(e, s, from, to, out);
}

bool cmoei_jj_m_remove_affix(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *part = NULL;
    JJ_TRY(want_string(e, c, 0, &part));
    const bool left = c->what->tag == JJ_LEFT;
    const int64_t rest = s->bytes - part->bytes;
    const bool there =
        rest >= 0 && !memcmp(s->data + (left ? 0 : rest), part->data, (size_t)part->bytes);
    return cmoei_jj_string_share(e, s, there && left ? part->bytes : 0,
                                 there && !left ? rest : s->bytes, out);
}

static bool push_part(jj_env *e, jj_value *list, const jj_string *s, int64_t from, int64_t to)
{
    jj_value part;
    return cmoei_jj_string_share(e, s, from, to, &part) &&
           cmoei_jj_list_push(e, list->u.list, part);
}

/* Without a separator: runs of white space are one, and none stands at either end. */
static bool split_space(jj_env *e, const jj_string *s, int64_t most, jj_value *out)
{
    jj_string rest = *s;
    int64_t at = 0, from = 0, to = 0;
    for (;;) {
        rest.data = s->data + at;
        rest.bytes = s->bytes - at;
        cmoei_jj_strip(&rest, NULL, JJ_LEFT, &from, &to);
        at += from;
        if (at >= s->bytes) return true;
        if (most-- == 0) return push_part(e, out, s, at, s->bytes);
        const int64_t begin = at;
        int64_t end = at;
        while (at < s->bytes && !cmoei_jj_is_space(cmoei_jj_utf8_next(s->data, s->bytes, &at)))
            end = at;
        JJ_TRY(push_part(e, out, s, begin, end));
    }
}

static bool split_at(jj_env *e, const jj_string *s, const jj_string *by, int64_t most,
                     jj_value *out)
{
    int64_t from = 0, at = 0;
    while (most-- != 0 && (at = cmoei_jj_find(s, from, by)) >= 0) {
        JJ_TRY(push_part(e, out, s, from, at));
        from = at + by->bytes;
    }
    return push_part(e, out, s, from, s->bytes);
}

static bool split_at_last(jj_env *e, const jj_string *s, const jj_string *by, int64_t most,
                          jj_value *out)
{
    int64_t to = s->bytes, at = 0;
    while (most-- != 0 && (at = find_last(s, 0, to, by)) >= 0) {
        JJ_TRY(push_part(e, out, s, at + by->bytes, to));
        to = at;
    }
    return push_part(e, out, s, 0, to);
}

/* The parts at the end of the list came last to first. */
static void turn_around(jj_list *l)
{
    for (int64_t i = 0, k = l->n - 1; i < k; i++, k--) {
        const jj_value v = l->items[i];
        l->items[i] = l->items[k];
        l->items[k] = v;
    }
}

static bool rsplit_space(jj_env *e, const jj_string *s, int64_t most, jj_value *out)
{
    jj_string rest = *s;
    int64_t from = 0, to = 0;
    for (;;) {
        cmoei_jj_strip(&rest, NULL, JJ_RIGHT, &from, &to);
        if (to == 0) break;
        if (most-- == 0) {
            JJ_TRY(push_part(e, out, s, 0, to));
            break;
        }
        int64_t begin = to;
        while (begin > 0) {
            int64_t before = begin - 1;
            while (before > 0 && ((unsigned char)s->data[before] & 0xc0) == 0x80)
                before--;
            int64_t next = before;
            if (cmoei_jj_is_space(cmoei_jj_utf8_next(s->data, s->bytes, &next))) break;
            begin = before;
        }
        JJ_TRY(push_part(e, out, s, begin, to));
        rest.bytes = begin;
    }
    turn_around(out->u.list);
    return true;
}

bool cmoei_jj_m_split(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *by = NULL;
    const bool right = c->what->tag == JJ_RIGHT;
    int64_t most = -1;
    JJ_TRY(cmoei_jj_arg_string(e, c, 0, &by) && cmoei_jj_arg_int(e, c, 1, -1, &most));
    most = CMOEI_MAX(most, (int64_t)-1); /* all of them; it is counted down */
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, out) && cmoei_jj_work(e, s->bytes));
    if (by && by->bytes == 0) return cmoei_jj_fail(e, "empty separator");
    if (!by)
        return right && most >= 0 ? rsplit_space(e, s, most, out) : split_space(e, s, most, out);
    if (!right || most < 0) return split_at(e, s, by, most, out);
    JJ_TRY(work_product(e, s, by));
    JJ_TRY(split_at_last(e, s, by, most, out));
    turn_around(out->u.list);
    return true;
}

bool cmoei_jj_m_partition(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *by = NULL;
    const bool left = c->what->tag == JJ_LEFT;
    JJ_TRY(want_string(e, c, 0, &by) && cmoei_jj_list_make(e, JJ_TUPLE, 3, out));
    if (!by->bytes) return cmoei_jj_fail(e, "empty separator");
    if (!left) JJ_TRY(work_product(e, s, by));
    int64_t at = left ? cmoei_jj_find(s, 0, by) : find_last(s, 0, s->bytes, by),
            end = at + by->bytes;
    if (at < 0) at = end = left ? s->bytes : 0;
    return cmoei_jj_work(e, s->bytes) && push_part(e, out, s, 0, at) &&
           push_part(e, out, s, at, end) && push_part(e, out, s, end, s->bytes);
}

static bool ends_line(int32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

bool cmoei_jj_splitlines(jj_env *e, const jj_string *s, bool keep, jj_value *out)
{
    int64_t from = 0, at = 0;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, out) && cmoei_jj_work(e, s->bytes));
    while (at < s->bytes) {
        const int64_t begin = at;
        const int32_t c = cmoei_jj_utf8_next(s->data, s->bytes, &at);
        if (!ends_line(c)) continue;
        if (c == '\r' && at < s->bytes && s->data[at] == '\n') at++;
        JJ_TRY(push_part(e, out, s, from, keep ? at : begin));
        from = at;
    }
    return from == s->bytes || push_part(e, out, s, from, s->bytes);
}

bool cmoei_jj_m_splitlines(jj_env *e, const jj_call *c, jj_value *out)
{
    return cmoei_jj_splitlines(e, c->self.u.string, cmoei_jj_truth(c->v[0]), out);
}

/* ---- looking --------------------------------------------------------------------------------- */

/* What start and end, counted in characters, leave of a string.  *valid false: start is behind the
 * end, where not even an empty string is found. */
static bool window(jj_env *e, const jj_call *c, int64_t *from, int64_t *to, bool *valid)
{
    const jj_string *s = c->self.u.string;
    int64_t start = 0, end = s->chars;
    JJ_TRY(cmoei_jj_arg_int(e, c, 1, 0, &start) && cmoei_jj_arg_int(e, c, 2, s->chars, &end));
    if (start < 0) start = CMOEI_MAX(start + s->chars, (int64_t)0);
    if (end < 0) end = CMOEI_MAX(end + s->chars, (int64_t)0);
    end = CMOEI_MIN(end, s->chars);
    *valid = start <= end;
    *from = cmoei_jj_utf8_offset(s, CMOEI_MIN(start, s->chars));
    *to = cmoei_jj_utf8_offset(s, end);
    return cmoei_jj_work(e, s->bytes);
}

static bool has_affix(const jj_string *s, int64_t from, int64_t to, const jj_string *part, int side)
{
    if (to - from < part->bytes) return false;
    const int64_t at = side == JJ_LEFT ? from : to - part->bytes;
    return !memcmp(s->data + at, part->data, (size_t)part->bytes);
}

bool cmoei_jj_m_affix(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *part = NULL;
    int64_t from = 0, to = 0;
    bool valid = false, found = false;
    JJ_TRY(window(e, c, &from, &to, &valid));
    if (c->v[0].kind == JJ_TUPLE) {
        const jj_list *l = c->v[0].u.list;
        for (int64_t i = 0; i < l->n; i++) {
            if (l->items[i].kind != JJ_STRING)
                return cmoei_jj_fail(e, "'%s' wants strings, not '%s'", c->what->name,
                                     cmoei_jj_type(l->items[i]));
            found = found || has_affix(s, from, to, l->items[i].u.string, c->what->tag);
        }
    } else {
        JJ_TRY(want_string(e, c, 0, &part));
        found = has_affix(s, from, to, part, c->what->tag);
    }
    *out = cmoei_jj_bool(valid && found);
    return true;
}

bool cmoei_jj_m_find(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *part = NULL;
    int64_t from = 0, to = 0, chars = 0;
    bool valid = false;
    JJ_TRY(want_string(e, c, 0, &part) && window(e, c, &from, &to, &valid));
    int64_t at = -1;
    if (c->what->tag & JJ_RIGHT) JJ_TRY(work_product(e, s, part));
    if (valid && c->what->tag & JJ_LEFT) at = cmoei_jj_find(s, from, part);
    if (valid && c->what->tag & JJ_RIGHT) at = find_last(s, from, to, part);
    if (at >= 0 && at + part->bytes > to) at = -1;
    if (at < 0 && c->what->tag & JJ_OR_FAIL) return cmoei_jj_fail(e, "substring not found");
    for (int64_t i = 0; i < at; i++)
        chars += ((unsigned char)s->data[i] & 0xc0) != 0x80;
    *out = cmoei_jj_int(at < 0 ? -1 : chars);
    return true;
}

bool cmoei_jj_m_count(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *part = NULL;
    int64_t from = 0, to = 0, n = 0, at = 0;
    bool valid = false;
    JJ_TRY(want_string(e, c, 0, &part) && window(e, c, &from, &to, &valid));
    if (part->bytes == 0) {
        for (int64_t i = from; i < to; i++)
            n += ((unsigned char)s->data[i] & 0xc0) != 0x80;
        n += valid;
    } else {
        while (valid && (at = cmoei_jj_find(s, from, part)) >= 0 && at + part->bytes <= to) {
            n++;
            from = at + part->bytes;
        }
    }
    *out = cmoei_jj_int(n);
    return true;
}

bool cmoei_jj_m_is(jj_env *e, const jj_call *c, jj_value *out)
{
    *out = cmoei_jj_bool(cmoei_jj_is(c->self.u.string, c->what->tag));
    return cmoei_jj_work(e, c->self.u.string->bytes);
}

/* ---- making ---------------------------------------------------------------------------------- */

bool cmoei_jj_m_case(jj_env *e, const jj_call *c, jj_value *out)
{
    const int64_t mark = e->out_bytes;
    return cmoei_jj_put_case(e, c->self.u.string->data, c->self.u.string->bytes, c->what->tag) &&
           cmoei_jj_cut(e, mark, out) && keep_markup(e, c, out);
}

/* An empty `old` is found between all characters, and at both ends. */
bool cmoei_jj_replace(jj_env *e, const jj_string *s, const jj_string *old, const jj_string *now,
                      int64_t most, jj_value *out)
{
    const int64_t mark = e->out_bytes;
    int64_t from = 0, at = 0;
    most = CMOEI_MAX(most, (int64_t)-1); /* all of them; it is counted down */
    if (old->bytes == 0) {
        for (; most != 0 && from <= s->bytes; most--) {
            JJ_TRY(cmoei_jj_put(e, now->data, now->bytes) && cmoei_jj_work(e, 8));
            if (from == s->bytes) break;
            at = from;
            cmoei_jj_utf8_next(s->data, s->bytes, &at);
            JJ_TRY(cmoei_jj_put(e, s->data + from, at - from));
            from = at;
        }
    } else {
        for (; most != 0 && (at = cmoei_jj_find(s, from, old)) >= 0; most--) {
            JJ_TRY(cmoei_jj_put(e, s->data + from, at - from) &&
                   cmoei_jj_put(e, now->data, now->bytes));
            from = at + old->bytes;
        }
    }
    return cmoei_jj_work(e, s->bytes) && cmoei_jj_put(e, s->data + from, s->bytes - from) &&
           cmoei_jj_cut(e, mark, out);
}

bool cmoei_jj_m_replace(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *old = NULL, *now = NULL;
    int64_t most = -1;
    JJ_TRY(want_string(e, c, 0, &old) && want_string(e, c, 1, &now));
    JJ_TRY(cmoei_jj_arg_int(e, c, 2, -1, &most));
    if (c->self.u.string->markup && !now->markup) {
        jj_value v;
        const int64_t mark = e->out_bytes;
        JJ_TRY(cmoei_jj_put_html(e, now) && cmoei_jj_cut(e, mark, &v));
        now = v.u.string;
    }
    return cmoei_jj_replace(e, c->self.u.string, old, now, most, out) && keep_markup(e, c, out);
}

bool cmoei_jj_m_join(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *between = c->self.u.string;
    const int64_t mark = e->out_bytes;
    jj_list *l = NULL;
    JJ_TRY(cmoei_jj_items(e, c->v[0], &l));
    for (int64_t i = 0; i < l->n; i++) {
        if (l->items[i].kind != JJ_STRING)
            return cmoei_jj_fail(e, "sequence item %lld: expected str instance, %s found",
                                 (long long)i, cmoei_jj_type(l->items[i]));
        if (i) JJ_TRY(cmoei_jj_put(e, between->data, between->bytes));
        JJ_TRY(cmoei_jj_put_str(e, l->items[i]) && cmoei_jj_work(e, 16));
    }
    return cmoei_jj_cut(e, mark, out) && keep_markup(e, c, out);
}

/* center, ljust, rjust: tag says on which sides the filling goes. */
bool cmoei_jj_m_justify(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string, *fill = NULL;
    int64_t width = 0, at = 0;
    JJ_TRY(cmoei_jj_arg_int(e, c, 0, 0, &width) && cmoei_jj_arg_string(e, c, 1, &fill));
    if (fill && fill->chars != 1)
        return cmoei_jj_fail(e, "the fill character must be exactly one character long");
    const int32_t ch = fill ? cmoei_jj_utf8_next(fill->data, fill->bytes, &at) : ' ';
    const int64_t mark = e->out_bytes, pad = CMOEI_MAX(width, s->chars) - s->chars;
    const int64_t half = pad / 2 + (pad & width & 1);
    const int64_t left = c->what->tag == JJ_LEFT ? pad : c->what->tag == JJ_RIGHT ? 0 : half;
    return cmoei_jj_put_char(e, ch, left) && cmoei_jj_put(e, s->data, s->bytes) &&
           cmoei_jj_put_char(e, ch, pad - left) && cmoei_jj_cut(e, mark, out) &&
           keep_markup(e, c, out);
}

bool cmoei_jj_m_zfill(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = c->self.u.string;
    int64_t width = 0;
    JJ_TRY(cmoei_jj_arg_int(e, c, 0, 0, &width));
    const int64_t mark = e->out_bytes;
    const int64_t sign = s->bytes && (s->data[0] == '-' || s->data[0] == '+');
    const int64_t pad = CMOEI_MAX(width, s->chars) - s->chars;
    return cmoei_jj_put(e, s->data, sign) && cmoei_jj_put_char(e, '0', pad) &&
           cmoei_jj_put(e, s->data + sign, s->bytes - sign) && cmoei_jj_cut(e, mark, out);
}

bool cmoei_jj_m_format(jj_env *e, const jj_call *c, jj_value *out)
{
    if (c->self.u.string->markup) return cmoei_jj_fail(e, "'format' of Markup is not supported");
    return cmoei_jj_format_braces(e, c->self.u.string, c->args, out);
}

/* ---- dicts and lists ------------------------------------------------------------------------- */

bool cmoei_jj_m_get(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_pair *pair = NULL;
    JJ_TRY(cmoei_jj_dict_find(e, c->self.u.dict, c->v[0], &pair));
    *out = pair ? pair->value : c->v[1].kind == JJ_MISSING ? cmoei_jj_none() : c->v[1];
    return true;
}

/* keys, values, items.  The dict cannot change, so the view is a list made now. */
bool cmoei_jj_m_dict(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_dict *d = c->self.u.dict;
    const int32_t sort = c->what->tag;
    jj_value pair;
    JJ_TRY(cmoei_jj_list_make(e, JJ_VIEW, d->n, out) && cmoei_jj_work(e, d->n));
    out->u.list->type = sort == 'k' ? "dict_keys" : sort == 'v' ? "dict_values" : "dict_items";
    for (int64_t i = 0; i < d->n; i++) {
        if (sort == 'i')
            JJ_TRY(cmoei_jj_list_make(e, JJ_TUPLE, 2, &pair) &&
                   cmoei_jj_list_push(e, pair.u.list, d->pairs[i].key) &&
                   cmoei_jj_list_push(e, pair.u.list, d->pairs[i].value));
        else
            pair = sort == 'k' ? d->pairs[i].key : d->pairs[i].value;
        JJ_TRY(cmoei_jj_list_push(e, out->u.list, pair));
    }
    return true;
}

bool cmoei_jj_m_copy(jj_env *e, const jj_call *c, jj_value *out)
{
    (void)e;
    *out = c->self; /* nothing can change either of them */
    return true;
}

bool cmoei_jj_m_list_count(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_list *l = c->self.u.list;
    int64_t n = 0;
    bool same = false;
    for (int64_t i = 0; i < l->n; i++) {
        JJ_TRY(cmoei_jj_equal(e, l->items[i], c->v[0], &same));
        n += same;
    }
    *out = cmoei_jj_int(n);
    return cmoei_jj_work(e, l->n);
}

bool cmoei_jj_m_list_index(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_list *l = c->self.u.list;
    bool same = false;
    for (int64_t i = 0; i < l->n; i++) {
        JJ_TRY(cmoei_jj_equal(e, l->items[i], c->v[0], &same));
        *out = cmoei_jj_int(i);
        if (same) return true;
    }
    return cmoei_jj_fail(e, "the value is not in the %s", cmoei_jj_type(c->self));
}
