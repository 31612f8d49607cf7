/* SPDX-License-Identifier: MIT
 *
 * jinja_filters.c - filters over single values; those over lists are in jinja_sequences.c.
 */
#include "text/jinja_builtins.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What str() leaves alone keeps being Markup. */
static bool keep_markup(jj_env *e, const jj_string *from, jj_value *out)
{
    return !from->markup || cmoei_jj_string_markup(e, out->u.string, true, out);
}

/* ---- text ------------------------------------------------------------------------------------ */

bool cmoei_jj_f_string(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    *out = (jj_value){.kind = JJ_STRING, .u.string = s};
    return true;
}

bool cmoei_jj_f_safe(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    return cmoei_jj_self_string(e, c, &s) && cmoei_jj_string_markup(e, s, true, out);
}

bool cmoei_jj_put_html(jj_env *e, const jj_string *s)
{
    static const char what[] = "&<>\"'";
    static const char *const becomes[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    int64_t from = 0;
    for (int64_t i = 0; i < s->bytes; i++) {
        const char *at = s->data[i] ? strchr(what, s->data[i]) : NULL;
        if (!at) continue;
        JJ_TRY(cmoei_jj_put(e, s->data + from, i - from) &&
               cmoei_jj_put_text(e, becomes[at - what]));
        from = i + 1;
    }
    return cmoei_jj_put(e, s->data + from, s->bytes - from);
}

bool cmoei_jj_f_escape(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    const int64_t mark = e->out_bytes;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    if (s->markup && !c->what->tag) return cmoei_jj_f_string(e, c, out);
    return cmoei_jj_put_html(e, s) && cmoei_jj_cut(e, mark, out) &&
           cmoei_jj_string_markup(e, out->u.string, true, out);
}

bool cmoei_jj_f_case(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    const int64_t mark = e->out_bytes;
    return cmoei_jj_put_case(e, s->data, s->bytes, c->what->tag) && cmoei_jj_cut(e, mark, out) &&
           keep_markup(e, s, out);
}

/* Words begin behind white space and - ( { [ <, unlike for the method of the same name. */
bool cmoei_jj_f_title(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    const int64_t mark = e->out_bytes;
    bool first = true;
    for (int64_t at = 0; at < s->bytes;) {
        const int64_t begin = at;
        const int32_t ch = cmoei_jj_utf8_next(s->data, s->bytes, &at);
        JJ_TRY(cmoei_jj_put_case(e, s->data + begin, at - begin, first ? JJ_UPPER : JJ_LOWER));
        first = cmoei_jj_is_space(ch) || (ch < 0x80 && ch > 0 && strchr("-({[<", ch));
    }
    return cmoei_jj_cut(e, mark, out) && keep_markup(e, s, out);
}

bool cmoei_jj_f_trim(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL, *set = NULL;
    int64_t from = 0, to = 0, n = 0;
    JJ_TRY(cmoei_jj_self_string(e, c, &s) && cmoei_jj_arg_string(e, c, 0, &set));
    if (!cmoei_mul(s->bytes, set ? set->bytes : 1, &n)) n = INT64_MAX / 4;
    JJ_TRY(cmoei_jj_work(e, n));
    cmoei_jj_strip(s, set, JJ_BOTH, &from, &to);
    return cmoei_jj_string_share(e, s, from, to, out);
}

bool cmoei_jj_f_replace(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL, *old = NULL, *now = NULL;
    int64_t most = -1;
    JJ_TRY(cmoei_jj_self_string(e, c, &s) && cmoei_jj_str(e, c->v[0], &old) &&
           cmoei_jj_str(e, c->v[1], &now));
    JJ_TRY(cmoei_jj_arg_int(e, c, 2, -1, &most));
    return cmoei_jj_replace(e, s, old, now, most, out);
}

bool cmoei_jj_f_center(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    int64_t width = 80;
    JJ_TRY(cmoei_jj_self_string(e, c, &s) && cmoei_jj_arg_int(e, c, 0, 80, &width));
    const int64_t mark = e->out_bytes;
    const int64_t pad = CMOEI_MAX(width, s->chars) - s->chars;
    const int64_t left = pad / 2 + (pad & width & 1);
    return cmoei_jj_put_char(e, ' ', left) && cmoei_jj_put(e, s->data, s->bytes) &&
           cmoei_jj_put_char(e, ' ', pad - left) && cmoei_jj_cut(e, mark, out);
}

bool cmoei_jj_f_indent(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_value lines;
    const jj_string *s = NULL, *by = NULL;
    int64_t width = 4;
    const bool first = cmoei_jj_truth(c->v[1]), blank = cmoei_jj_truth(c->v[2]);
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    if (c->v[0].kind == JJ_STRING)
        by = c->v[0].u.string;
    else
        JJ_TRY(cmoei_jj_arg_int(e, c, 0, 4, &width));
    const int64_t mark = e->out_bytes;
    const bool ends = s->bytes > 0 && s->data[s->bytes - 1] == '\n';
    JJ_TRY(cmoei_jj_splitlines(e, s, false, &lines));
    jj_value empty;
    JJ_TRY(cmoei_jj_string_make(e, "", 0, &empty));
    /* Jinja adds a newline before it splits, so that text ending in one has an empty last line. */
    if (ends || !s->bytes) JJ_TRY(cmoei_jj_list_push(e, lines.u.list, empty));
    for (int64_t i = 0; i < lines.u.list->n; i++) {
        const jj_string *line = lines.u.list->items[i].u.string;
        if (i) JJ_TRY(cmoei_jj_put(e, "\n", 1));
        if (i ? blank || line->bytes > 0 : first)
            JJ_TRY(by ? cmoei_jj_put(e, by->data, by->bytes) : cmoei_jj_put_char(e, ' ', width));
        JJ_TRY(cmoei_jj_put(e, line->data, line->bytes));
    }
    return cmoei_jj_cut(e, mark, out) && keep_markup(e, s, out);
}

bool cmoei_jj_f_truncate(jj_env *e, const jj_call *c, jj_value *out)
{
    static const jj_string dots = {"...", 3, 3, NULL, false};
    const jj_string *s = NULL, *end = NULL;
    int64_t length = 255, leeway = 5;
    JJ_TRY(cmoei_jj_self_string(e, c, &s) && cmoei_jj_arg_int(e, c, 0, 255, &length));
    JJ_TRY(cmoei_jj_arg_string(e, c, 2, &end) && cmoei_jj_arg_int(e, c, 3, 5, &leeway));
    if (!end) end = &dots;
    if (length < end->chars || leeway < 0)
        return cmoei_jj_fail(e, "truncate: expected length >= %lld, got %lld",
                             (long long)end->chars, (long long)length);
    if (s->chars <= length || s->chars - length <= leeway) return cmoei_jj_f_string(e, c, out);
    int64_t to = cmoei_jj_utf8_offset(s, length - end->chars);
    if (!cmoei_jj_truth(c->v[1])) {
        int64_t blank = to;
        while (blank > 0 && s->data[blank - 1] != ' ')
            blank--;
        if (blank > 0) to = blank - 1;
    }
    const int64_t mark = e->out_bytes;
    return cmoei_jj_put(e, s->data, to) && cmoei_jj_put(e, end->data, end->bytes) &&
           cmoei_jj_cut(e, mark, out);
}

bool cmoei_jj_f_wordcount(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    int64_t n = 0;
    bool inside = false;
    JJ_TRY(cmoei_jj_self_string(e, c, &s) && cmoei_jj_work(e, s->bytes));
    for (int64_t at = 0; at < s->bytes;) {
        const bool word = cmoei_jj_is_word(cmoei_jj_utf8_next(s->data, s->bytes, &at));
        n += word && !inside;
        inside = word;
    }
    *out = cmoei_jj_int(n);
    return true;
}

/* "%s, %s" | format(a, b) */
bool cmoei_jj_f_format(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    jj_value right;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    if (c->args->n && c->args->n_named)
        return cmoei_jj_fail(e, "can't handle positional and keyword arguments at the same time");
    if (c->args->n_named) {
        JJ_TRY(cmoei_jj_dict_make(e, JJ_DICT, &right));
        for (int32_t i = 0; i < c->args->n_named; i++)
            JJ_TRY(cmoei_jj_dict_set(
                e, right.u.dict, (jj_value){.kind = JJ_STRING, .u.string = c->args->named[i].name},
                c->args->named[i].value));
    } else {
        JJ_TRY(cmoei_jj_list_make(e, JJ_TUPLE, c->args->n, &right));
        for (int32_t i = 0; i < c->args->n; i++)
            JJ_TRY(cmoei_jj_list_push(e, right.u.list, c->args->at[i]));
    }
    return cmoei_jj_percent(e, s, right, out);
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* int("..."): white space, sign, prefix of the base, digits with single underscores. */
static bool read_int(jj_env *e, const jj_string *s, int base, int64_t *value, bool *valid)
{
    char digits[80];
    size_t n = 0;
    int64_t from = 0, to = 0;
    cmoei_jj_strip(s, NULL, JJ_BOTH, &from, &to);
    *valid = false;
    if (from < to && (s->data[from] == '-' || s->data[from] == '+')) digits[n++] = s->data[from++];
    const int letter = to - from > 2 && s->data[from] == '0' ? s->data[from + 1] | 32 : 0;
    const int prefix = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : -1;
    if (prefix == base || (base == 0 && prefix > 0)) {
        from += 2;
        base = prefix;
        if (s->data[from] == '_') from++;
    }
    if (base == 0) base = 10;
    for (int64_t i = from; i < to; i++) {
        const bool between = i > from && i + 1 < to && s->data[i - 1] != '_';
        if (s->data[i] == '_' && between) continue;
        if (!isalnum((unsigned char)s->data[i]) || s->data[i] == '_') return true;
        if (n == 79) return cmoei_jj_fail(e, "an integer does not fit into 64 bits");
        digits[n++] = s->data[i];
    }
    digits[n] = '\0';
    char *rest = NULL;
    errno = 0;
    *value = strtoll(digits, &rest, base);
    *valid = from < to && *rest == '\0';
    if (*valid && errno == ERANGE) return cmoei_jj_fail(e, "an integer does not fit into 64 bits");
    return true;
}

static bool read_float(const jj_string *s, double *value)
{
    static const char *const words[] = {"inf", "infinity", "nan"};
    int64_t from = 0, to = 0;
    cmoei_jj_strip(s, NULL, JJ_BOTH, &from, &to);
    if (to - from > 100 || from == to) return false;
    const bool negative = s->data[from] == '-';
    if (negative || s->data[from] == '+') from++;
    for (int i = 0; i < 3; i++)
        if (to - from == (int64_t)strlen(words[i]) &&
            !strncasecmp(s->data + from, words[i], (size_t)(to - from))) {
            *value = i < 2 ? (negative ? -INFINITY : INFINITY) : NAN;
            return true;
        }
    bool digits = false, point = false, exponent = false;
    for (int64_t i = from; i < to; i++) {
        const char c = s->data[i];
        if (c >= '0' && c <= '9') {
            digits = true;
        } else if (c == '.' && !point && !exponent) {
            point = true;
        } else if ((c == 'e' || c == 'E') && digits && !exponent) {
            exponent = true;
            digits = false;
            if (i + 1 < to && (s->data[i + 1] == '-' || s->data[i + 1] == '+')) i++;
        } else if (c != '_' || i == from || i + 1 == to ||
                   !isdigit((unsigned char)s->data[i - 1]) ||
                   !isdigit((unsigned char)s->data[i + 1])) {
            return false;
        }
    }
    if (!digits) return false;
    *value = cmoei_jj_float_read(s->data + from, to - from) * (negative ? -1 : 1);
    return true;
}

static bool float_to_int(jj_env *e, double d, jj_value *out)
{
    if (!(fabs(d) < 0x1p63)) return cmoei_jj_fail(e, "an integer does not fit into 64 bits");
    *out = cmoei_jj_int((int64_t)d);
    return true;
}

bool cmoei_jj_f_int(jj_env *e, const jj_call *c, jj_value *out)
{
    int64_t base = 10, value = 0;
    bool valid = false;
    double d = 0;
    *out = c->v[0].kind == JJ_MISSING ? cmoei_jj_int(0) : c->v[0];
    JJ_TRY(cmoei_jj_arg_int(e, c, 1, 10, &base));
    if (base < 0 || base == 1 || base > 36) return true;
    switch (c->self.kind) {
    case JJ_UNDEFINED:
        return cmoei_jj_fail_undefined(e, c->self);
    case JJ_BOOL:
        *out = cmoei_jj_int(c->self.u.truth);
        return true;
    case JJ_INT:
        *out = c->self;
        return true;
    case JJ_FLOAT:
        if (isnan(c->self.u.real) || isinf(c->self.u.real)) return true;
        return float_to_int(e, c->self.u.real, out);
    case JJ_STRING:
        JJ_TRY(read_int(e, c->self.u.string, (int)base, &value, &valid));
        if (valid) *out = cmoei_jj_int(value);
        if (valid || !read_float(c->self.u.string, &d) || isnan(d) || isinf(d)) return true;
        return float_to_int(e, d, out);
    default:
        return true;
    }
}

bool cmoei_jj_f_float(jj_env *e, const jj_call *c, jj_value *out)
{
    double d = 0;
    *out = c->v[0].kind == JJ_MISSING ? cmoei_jj_float(0) : c->v[0];
    switch (c->self.kind) {
    case JJ_UNDEFINED:
        return cmoei_jj_fail_undefined(e, c->self);
    case JJ_BOOL:
        *out = cmoei_jj_float(c->self.u.truth);
        return true;
    case JJ_INT:
        *out = cmoei_jj_float((double)c->self.u.integer);
        return true;
    case JJ_FLOAT:
        *out = c->self;
        return true;
    case JJ_STRING:
        if (read_float(c->self.u.string, &d)) *out = cmoei_jj_float(d);
        return true;
    default:
        return true;
    }
}

bool cmoei_jj_f_abs(jj_env *e, const jj_call *c, jj_value *out)
{
    if (c->self.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, c->self);
    if (c->self.kind == JJ_FLOAT) *out = cmoei_jj_float(fabs(c->self.u.real));
    if (c->self.kind == JJ_FLOAT) return true;
    if (c->self.kind != JJ_INT && c->self.kind != JJ_BOOL)
        return cmoei_jj_fail(e, "bad operand type for abs(): '%s'", cmoei_jj_type(c->self));
    const int64_t i = c->self.kind == JJ_INT ? c->self.u.integer : c->self.u.truth;
    return cmoei_jj_negate(e, i < 0 ? JJ_N_NEGATE : JJ_N_POSITIVE, cmoei_jj_int(i), out);
}

/* Half to even on the exact value, as printing does it. */
static double round_decimal(double d, int64_t precision)
{
    char text[400];
    if (!isfinite(d) || precision > 320) return d;
    if (precision < -308) return copysign(0.0, d);
    if (precision < 0) {
        const double scale = pow(10, (double)-precision);
        return rint(d / scale) * scale;
    }
    snprintf(text, sizeof text, "%.*f", (int)CMOEI_MIN(precision, 60), d);
    return precision > 60 ? d : strtod(text, NULL);
}

bool cmoei_jj_f_round(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *method = NULL;
    int64_t precision = 0;
    jj_value v = c->self;
    JJ_TRY(cmoei_jj_arg_int(e, c, 0, 0, &precision) && cmoei_jj_arg_string(e, c, 1, &method));
    const bool ceiling = method && cmoei_jj_equals_text(method, "ceil");
    const bool lower = method && cmoei_jj_equals_text(method, "floor");
    if (method && !ceiling && !lower && !cmoei_jj_equals_text(method, "common"))
        return cmoei_jj_fail(e, "method must be common, ceil or floor");
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    if (v.kind != JJ_INT && v.kind != JJ_BOOL && v.kind != JJ_FLOAT)
        return cmoei_jj_fail(e, "round wants a number, not '%s'", cmoei_jj_type(v));
    if (v.kind == JJ_BOOL) v = cmoei_jj_int(v.u.truth);
    if (!ceiling && !lower && v.kind == JJ_INT) {
        if (precision < 0) return cmoei_jj_fail(e, "rounding an integer to tens is not supported");
        *out = v;
        return true;
    }
    const double d = v.kind == JJ_INT ? (double)v.u.integer : v.u.real;
    const double scale = pow(10, (double)precision);
    *out = cmoei_jj_float(ceiling ? ceil(d * scale) / scale
                          : lower ? floor(d * scale) / scale
                                  : round_decimal(d, precision));
    return true;
}

/* ---- anything -------------------------------------------------------------------------------- */

bool cmoei_jj_f_default(jj_env *e, const jj_call *c, jj_value *out)
{
    *out = c->self;
    if (c->self.kind != JJ_UNDEFINED && !(cmoei_jj_truth(c->v[1]) && !cmoei_jj_truth(c->self)))
        return true;
    if (c->v[0].kind == JJ_MISSING) return cmoei_jj_string_make(e, "", 0, out);
    *out = c->v[0];
    return true;
}

bool cmoei_jj_f_length(jj_env *e, const jj_call *c, jj_value *out)
{
    int64_t n = 0;
    JJ_TRY(cmoei_jj_length(e, c->self, &n));
    *out = cmoei_jj_int(n);
    return true;
}

/* Attributes only: items do not count. */
bool cmoei_jj_f_attr(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *name = NULL;
    JJ_TRY(cmoei_jj_str(e, c->v[0], &name));
    if (c->self.kind == JJ_DICT && !cmoei_jj_find_method(JJ_DICT, name))
        return cmoei_jj_undefined(e, "dict object", name, out);
    return cmoei_jj_attribute(e, c->self, name, out);
}
