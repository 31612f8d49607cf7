/* SPDX-License-Identifier: MIT
 *
 * jinja_tests.c - what stands behind `is`.
 */
#include "text/jinja_builtins.h"

static bool is_kind(jj_value v, int32_t what)
{
    const bool is_int = v.kind == JJ_INT, is_bool = v.kind == JJ_BOOL,
               is_float = v.kind == JJ_FLOAT;
    const bool walkable = cmoei_jj_is_sequence(v) || v.kind == JJ_STRING || v.kind == JJ_DICT ||
                          v.kind == JJ_UNDEFINED || v.kind == JJ_LOOP;
    switch (what) {
    case JJ_T_DEFINED:
        return v.kind != JJ_UNDEFINED;
    case JJ_T_UNDEFINED_:
        return v.kind == JJ_UNDEFINED;
    case JJ_T_NONE:
        return v.kind == JJ_NONE;
    case JJ_T_BOOLEAN:
        return is_bool;
    case JJ_T_TRUE:
        return is_bool && v.u.truth;
    case JJ_T_FALSE:
        return is_bool && !v.u.truth;
    case JJ_T_INTEGER:
        return is_int;
    case JJ_T_FLOAT_:
        return is_float;
    case JJ_T_NUMBER:
        return is_int || is_bool || is_float;
    case JJ_T_STRING_:
        return v.kind == JJ_STRING;
    case JJ_T_MAPPING:
        return v.kind == JJ_DICT;
    case JJ_T_ITERABLE:
        return walkable;
    case JJ_T_SEQUENCE:
        return walkable && v.kind != JJ_ITERATOR && v.kind != JJ_VIEW && v.kind != JJ_LOOP;
    case JJ_T_CALLABLE:
        return v.kind == JJ_UNDEFINED || v.kind == JJ_MACRO || v.kind == JJ_LOOP ||
               v.kind == JJ_FUNCTION || v.kind == JJ_METHOD;
    default:
        return v.kind == JJ_STRING && v.u.string->markup;
    }
}

bool cmoei_jj_t_kind(jj_env *e, const jj_call *c, jj_value *out)
{
    (void)e;
    *out = cmoei_jj_bool(is_kind(c->self, c->what->tag));
    return true;
}

static bool remainder_is(jj_env *e, jj_value a, jj_value b, int64_t want, jj_value *out)
{
    bool same = false;
    JJ_TRY(cmoei_jj_binary(e, JJ_T_MOD, a, b, out) &&
           cmoei_jj_equal(e, *out, cmoei_jj_int(want), &same));
    *out = cmoei_jj_bool(same);
    return true;
}

bool cmoei_jj_t_number(jj_env *e, const jj_call *c, jj_value *out)
{
    return remainder_is(e, c->self, cmoei_jj_int(2), c->what->tag, out);
}

bool cmoei_jj_t_divisible(jj_env *e, const jj_call *c, jj_value *out)
{
    return remainder_is(e, c->self, c->v[0], 0, out);
}

bool cmoei_jj_t_compare(jj_env *e, const jj_call *c, jj_value *out)
{
    const int32_t op = c->what->tag;
    bool same = false;
    int order = 0;
    if (op == JJ_T_EQ || op == JJ_T_NE) {
        JJ_TRY(cmoei_jj_equal(e, c->self, c->v[0], &same));
        *out = cmoei_jj_bool(same == (op == JJ_T_EQ));
        return true;
    }
    JJ_TRY(cmoei_jj_less(e, c->self, c->v[0], cmoei_jj_token_name((jj_token_kind)op), &order));
    *out = cmoei_jj_bool((order == -1 && (op == JJ_T_LT || op == JJ_T_LE)) ||
                         (order == 1 && (op == JJ_T_GT || op == JJ_T_GE)) ||
                         (order == 0 && (op == JJ_T_LE || op == JJ_T_GE)));
    return true;
}

bool cmoei_jj_t_in(jj_env *e, const jj_call *c, jj_value *out)
{
    bool is_in = false;
    JJ_TRY(cmoei_jj_contains(e, c->self, c->v[0], &is_in));
    *out = cmoei_jj_bool(is_in);
    return true;
}

bool cmoei_jj_t_case(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    *out = cmoei_jj_bool(cmoei_jj_is(s, c->what->tag));
    return cmoei_jj_work(e, s->bytes);
}

bool cmoei_jj_t_known(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_self_string(e, c, &s));
    const jj_builtin *found = c->what->tag ? cmoei_jj_find_test(s) : cmoei_jj_find_filter(s);
    *out = cmoei_jj_bool(found && found->run);
    return true;
}

/* The same object; values without an identity worth the name are compared. */
bool cmoei_jj_t_same(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_value a = c->self, b = c->v[0];
    bool same = a.kind == b.kind;
    if (same && (cmoei_jj_is_sequence(a) || a.kind == JJ_DICT))
        same = a.u.list == b.u.list;
    else if (same)
        JJ_TRY(cmoei_jj_equal(e, a, b, &same));
    *out = cmoei_jj_bool(same);
    return true;
}
