/* SPDX-License-Identifier: MIT
 *
 * jinja_operators.c - arithmetic and slices.
 *
 * Integers are of 64 bits; where Python would go on with longer ones, this fails.  // and % round
 * towards minus infinity, / always gives a float.
 */
#include "text/jinja.h"

#include <math.h>

static bool is_int(jj_value v)
{
    return v.kind == JJ_BOOL || v.kind == JJ_INT;
}

static int64_t int_of(jj_value v)
{
    return v.kind == JJ_BOOL ? v.u.truth : v.u.integer;
}

static bool is_number(jj_value v)
{
    return is_int(v) || v.kind == JJ_FLOAT;
}

static double float_of(jj_value v)
{
    return v.kind == JJ_FLOAT ? v.u.real : (double)int_of(v);
}

static bool overflow(jj_env *e)
{
    return cmoei_jj_fail(e, "an integer does not fit into 64 bits");
}

/* ---- numbers --------------------------------------------------------------------------------- */

static bool int_power(jj_env *e, int64_t a, int64_t b, jj_value *out)
{
    int64_t result = 1;
    if (b < 0 && a == 0) return cmoei_jj_fail(e, "0.0 cannot be raised to a negative power");
    if (b < 0) *out = cmoei_jj_float(pow((double)a, (double)b));
    if (b < 0) return true;
    if (a == 0 || a == 1 || a == -1) b = b == 0 ? 0 : 2 - b % 2; /* a long way for nothing */
    for (int64_t i = 0; i < b; i++)
        if (__builtin_mul_overflow(result, a, &result)) return overflow(e);
    *out = cmoei_jj_int(result);
    return true;
}

static bool int_binary(jj_env *e, int32_t op, int64_t a, int64_t b, jj_value *out)
{
    int64_t r = 0;
    bool over = false;
    if (b == 0 && op == JJ_T_DIV) return cmoei_jj_fail(e, "division by zero");
    if (b == 0 && (op == JJ_T_FLOORDIV || op == JJ_T_MOD))
        return cmoei_jj_fail(e, "integer division or modulo by zero");
    switch (op) {
    case JJ_T_ADD:
        over = __builtin_add_overflow(a, b, &r);
        break;
    case JJ_T_SUB:
        over = __builtin_sub_overflow(a, b, &r);
        break;
    case JJ_T_MUL:
        over = __builtin_mul_overflow(a, b, &r);
        break;
    case JJ_T_DIV:
        *out = cmoei_jj_float((double)((long double)a / (long double)b));
        return true;
    case JJ_T_FLOORDIV:
        over = a == INT64_MIN && b == -1;
        r = over ? 0 : a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case JJ_T_MOD:
        r = b == -1 ? 0 : a % b;
        if (r != 0 && (r < 0) != (b < 0)) r += b;
        break;
    default:
        return int_power(e, a, b, out);
    }
    *out = cmoei_jj_int(r);
    return over ? overflow(e) : true;
}

static double float_mod(double a, double b)
{
    double r = fmod(a, b);
    if (r != 0 && (b < 0) != (r < 0)) r += b;
    return r == 0 ? copysign(0.0, b) : r;
}

static double float_floordiv(double a, double b)
{
    const double r = fmod(a, b);
    double q = (a - r) / b;
    if (r != 0 && (b < 0) != (r < 0)) q -= 1;
    if (q == 0) return copysign(0.0, a / b);
    const double whole = floor(q);
    return q - whole > 0.5 ? whole + 1 : whole;
}

static bool float_binary(jj_env *e, int32_t op, double a, double b, jj_value *out)
{
    if (b == 0 && op == JJ_T_DIV) return cmoei_jj_fail(e, "float division by zero");
    if (b == 0 && op == JJ_T_FLOORDIV) return cmoei_jj_fail(e, "float floor division by zero");
    if (b == 0 && op == JJ_T_MOD) return cmoei_jj_fail(e, "float modulo");
    switch (op) {
    case JJ_T_ADD:
        *out = cmoei_jj_float(a + b);
        return true;
    case JJ_T_SUB:
        *out = cmoei_jj_float(a - b);
        return true;
    case JJ_T_MUL:
        *out = cmoei_jj_float(a * b);
        return true;
    case JJ_T_DIV:
        *out = cmoei_jj_float(a / b);
        return true;
    case JJ_T_FLOORDIV:
        *out = cmoei_jj_float(float_floordiv(a, b));
        return true;
    case JJ_T_MOD:
        *out = cmoei_jj_float(float_mod(a, b));
        return true;
    default:
        break;
    }
    if (a == 0 && b < 0) return cmoei_jj_fail(e, "0.0 cannot be raised to a negative power");
    const double r = pow(a, b);
    if (isnan(r) && !isnan(a) && !isnan(b))
        return cmoei_jj_fail(e, "complex numbers are not supported");
    if (isinf(r) && !isinf(a) && !isinf(b)) return cmoei_jj_fail(e, "a float power is too large");
    *out = cmoei_jj_float(r);
    return true;
}

bool cmoei_jj_negate(jj_env *e, jj_node_kind sign, jj_value a, jj_value *out)
{
    if (a.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, a);
    if (!is_number(a))
        return cmoei_jj_fail(e, "bad operand type for unary %c: '%s'",
                             sign == JJ_N_NEGATE ? '-' : '+', cmoei_jj_type(a));
    if (sign == JJ_N_POSITIVE) {
        *out = is_int(a) ? cmoei_jj_int(int_of(a)) : a;
        return true;
    }
    if (!is_int(a)) {
        *out = cmoei_jj_float(-a.u.real);
        return true;
    }
    return int_binary(e, JJ_T_SUB, 0, int_of(a), out);
}

/* ---- text and lists -------------------------------------------------------------------------- */

static bool escaped(jj_env *e, const jj_string *s, const jj_string **out)
{
    const int64_t mark = e->out_bytes;
    jj_value v;
    if (s->markup) *out = s;
    if (s->markup) return true;
    JJ_TRY(cmoei_jj_put_html(e, s) && cmoei_jj_cut(e, mark, &v));
    *out = v.u.string;
    return true;
}

/* Where one side is Markup, so is the sum, and the other side is escaped. */
static bool add_strings(jj_env *e, const jj_string *a, const jj_string *b, jj_value *out)
{
    if (!a->markup && !b->markup) return cmoei_jj_string_add(e, a, b, out);
    JJ_TRY(escaped(e, a, &a) && escaped(e, b, &b) && cmoei_jj_string_add(e, a, b, out));
    return cmoei_jj_string_markup(e, out->u.string, true, out);
}

static bool add_lists(jj_env *e, jj_value a, jj_value b, jj_value *out)
{
    const jj_list *x = a.u.list, *y = b.u.list;
    JJ_TRY(cmoei_jj_work(e, x->n + y->n) && cmoei_jj_list_make(e, a.kind, x->n + y->n, out));
    for (int64_t i = 0; i < x->n; i++)
        out->u.list->items[out->u.list->n++] = x->items[i];
    for (int64_t i = 0; i < y->n; i++)
        out->u.list->items[out->u.list->n++] = y->items[i];
    return true;
}

static bool repeat(jj_env *e, jj_value v, int64_t times, jj_value *out)
{
    int64_t n = 0;
    if (times < 0) times = 0;
    if (v.kind == JJ_STRING) {
        const jj_string *s = v.u.string;
        const int64_t mark = e->out_bytes;
        if (!cmoei_mul(s->bytes, times, &n) || n > e->out_limit)
            return cmoei_jj_fail(e, "a string gets longer than %lld bytes",
                                 (long long)e->out_limit);
        for (int64_t i = 0; i < times && s->bytes; i++)
            JJ_TRY(cmoei_jj_put(e, s->data, s->bytes));
        return cmoei_jj_work(e, times) && cmoei_jj_cut(e, mark, out) &&
               (!s->markup || cmoei_jj_string_markup(e, out->u.string, true, out));
    }
    const jj_list *l = v.u.list;
    if (!cmoei_mul(l->n, times, &n)) n = INT64_MAX / 64;
    JJ_TRY(cmoei_jj_work(e, n) && cmoei_jj_list_make(e, v.kind, n, out));
    for (int64_t i = 0; i < n; i++)
        out->u.list->items[i] = l->items[i % l->n];
    out->u.list->n = n;
    return true;
}

static bool can_repeat(jj_value v)
{
    return v.kind == JJ_STRING || v.kind == JJ_LIST || v.kind == JJ_TUPLE;
}

static bool refuse(jj_env *e, int32_t op, jj_value a, jj_value b)
{
    if (a.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, a);
    if (b.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, b);
    if (op == JJ_T_ADD && can_repeat(a))
        return cmoei_jj_fail(e, "can only concatenate %s (not \"%s\") to %s", cmoei_jj_type(a),
                             cmoei_jj_type(b), cmoei_jj_type(a));
    return cmoei_jj_fail(e, "unsupported operand type(s) for %s: '%s' and '%s'",
                         op == JJ_T_POW ? "** or pow()" : cmoei_jj_token_name((jj_token_kind)op),
                         cmoei_jj_type(a), cmoei_jj_type(b));
}

bool cmoei_jj_binary(jj_env *e, int32_t op, jj_value a, jj_value b, jj_value *out)
{
    if (is_int(a) && is_int(b)) return int_binary(e, op, int_of(a), int_of(b), out);
    if (is_number(a) && is_number(b)) return float_binary(e, op, float_of(a), float_of(b), out);
    if (op == JJ_T_ADD && a.kind == b.kind) {
        if (a.kind == JJ_STRING) return add_strings(e, a.u.string, b.u.string, out);
        if (a.kind == JJ_LIST || a.kind == JJ_TUPLE) return add_lists(e, a, b, out);
    }
    if (op == JJ_T_MUL && can_repeat(a) && is_int(b)) return repeat(e, a, int_of(b), out);
    if (op == JJ_T_MUL && is_int(a) && can_repeat(b)) return repeat(e, b, int_of(a), out);
    if (op == JJ_T_MOD && a.kind == JJ_STRING) return cmoei_jj_percent(e, a.u.string, b, out);
    return refuse(e, op, a, b);
}

/* ---- slices ---------------------------------------------------------------------------------- */

static bool slice_part(jj_env *e, jj_value part, int64_t fallback, int64_t low, int64_t high,
                       int64_t n, int64_t *out)
{
    *out = fallback;
    if (part.kind == JJ_NONE) return true;
    if (part.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, part);
    if (!is_int(part))
        return cmoei_jj_fail(e, "slice indices must be integers or None, not %s",
                             cmoei_jj_type(part));
    int64_t i = int_of(part);
    if (i < 0) i = i < -n ? -1 : i + n;
    *out = int_of(part) < -n ? low : CMOEI_MIN(CMOEI_MAX(i, low), high);
    return true;
}

/* Positions from, from + step, ...: so many of them. */
static int64_t slice_count(int64_t from, int64_t to, int64_t step)
{
    if (step > 0) return from < to ? (to - from - 1) / step + 1 : 0;
    return from > to ? (from - to - 1) / -step + 1 : 0;
}

static bool slice_string(jj_env *e, const jj_string *s, int64_t from, int64_t n, int64_t step,
                         jj_value *out)
{
    jj_value chars;
    const int64_t mark = e->out_bytes;
    if (step == 1) {
        JJ_TRY(cmoei_jj_work(e, s->chars == s->bytes ? 0 : s->bytes));
        return cmoei_jj_string_share(e, s, cmoei_jj_utf8_offset(s, from),
                                     cmoei_jj_utf8_offset(s, from + n), out);
    }
    jj_list *l = NULL;
    JJ_TRY(cmoei_jj_items(e, (jj_value){.kind = JJ_STRING, .u.string = s}, &l));
    for (int64_t i = 0; i < n; i++)
        JJ_TRY(cmoei_jj_put_str(e, l->items[from + i * step]));
    JJ_TRY(cmoei_jj_cut(e, mark, &chars));
    *out = chars;
    return !s->markup || cmoei_jj_string_markup(e, chars.u.string, true, out);
}

/* A slice of a range is a range, and prints as one. */
static void slice_range(const jj_list *l, int64_t from, int64_t to, int64_t step, jj_list *out)
{
    const uint64_t s = (uint64_t)l->step;
    out->start = (int64_t)((uint64_t)l->start + (uint64_t)from * s);
    out->capacity = (int64_t)((uint64_t)l->start + (uint64_t)to * s); /* its end: see put_range */
    out->step = (int64_t)(s * (uint64_t)step);
}

bool cmoei_jj_slice(jj_env *e, jj_value v, const jj_value part[3], jj_value *out)
{
    const bool text = v.kind == JJ_STRING;
    int64_t step = 1, from = 0, to = 0;
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    if (!text && v.kind != JJ_LIST && v.kind != JJ_TUPLE && v.kind != JJ_RANGE)
        return cmoei_jj_undefined_text(e, "what has no order cannot be sliced", out);
    const int64_t n = text ? v.u.string->chars : v.u.list->n;
    if (part[2].kind != JJ_NONE) {
        if (!is_int(part[2])) return cmoei_jj_fail(e, "a slice's step must be an integer");
        step = int_of(part[2]);
        if (step == 0) return cmoei_jj_fail(e, "slice step cannot be zero");
        if (step < -INT32_MAX || step > INT32_MAX) step = step < 0 ? -INT32_MAX : INT32_MAX;
    }
    const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    JJ_TRY(slice_part(e, part[0], step > 0 ? 0 : n - 1, low, high, n, &from));
    JJ_TRY(slice_part(e, part[1], step > 0 ? n : -1, low, high, n, &to));
    const int64_t count = slice_count(from, to, step);
    if (text) return slice_string(e, v.u.string, from, count, step, out);
    JJ_TRY(cmoei_jj_work(e, count) && cmoei_jj_list_make(e, v.kind, count, out));
    for (int64_t i = 0; i < count; i++)
        out->u.list->items[out->u.list->n++] = v.u.list->items[from + i * step];
    if (v.kind == JJ_RANGE) slice_range(v.u.list, from, to, step, out->u.list);
    return true;
}
