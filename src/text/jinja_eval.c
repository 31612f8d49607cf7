/* SPDX-License-Identifier: MIT
 *
 * jinja_eval.c - expressions and calls.
 */
#include "text/jinja.h"

/* ---- names ----------------------------------------------------------------------------------- */

static bool eval_name(jj_env *e, const jj_node *n, jj_value *out)
{
    for (const jj_scope *s = e->scope; s; s = s->parent) {
        JJ_TRY(cmoei_jj_work(e, 8 * (int64_t)s->n));
        for (int32_t i = 0; i < s->n; i++)
            if (s->vars[i].name == n->name) {
                *out = s->vars[i].value;
                return true;
            }
    }
    *out = e->globals[n->name];
    if (out->kind == JJ_FUNCTION && !out->u.function->run)
        return cmoei_jj_fail(e, "function '%s' is not supported", out->u.function->name);
    return true;
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* The arguments of CALL, FILTER and TEST nodes: positional ones, then keywords. */
static bool eval_args(jj_env *e, const jj_node *n, int32_t spare, jj_args *args)
{
    *args = (jj_args){0};
    if (n->count + spare == 0) return true;
    args->at = cmoei_jj_take(e, n->count, sizeof *args->at);
    args->named = cmoei_jj_take(e, n->count + spare, sizeof *args->named);
    if (!args->at || !args->named) return false;
    for (int32_t i = 0; i < n->count; i++) {
        const jj_node *arg = n->list[i];
        if (arg->kind != JJ_N_KEYWORD) {
            JJ_TRY(cmoei_jj_eval(e, arg, &args->at[args->n++]));
            continue;
        }
        jj_named *named = &args->named[args->n_named++];
        named->name = arg->value.u.string;
        JJ_TRY(cmoei_jj_eval(e, arg->a, &named->value));
    }
    return true;
}

bool cmoei_jj_call_value(jj_env *e, jj_value f, const jj_args *args, jj_value *out)
{
    switch (f.kind) {
    case JJ_UNDEFINED:
        return cmoei_jj_fail_undefined(e, f);
    case JJ_MACRO:
        return cmoei_jj_call_macro(e, f.u.macro, args, out);
    case JJ_LOOP:
        return cmoei_jj_loop_again(e, f.u.loop, args, out);
    case JJ_FUNCTION:
        return cmoei_jj_run_builtin(e, f.u.function, "function", cmoei_jj_none(), args, out);
    case JJ_METHOD:
        return cmoei_jj_run_builtin(e, f.u.method->what, "method", f.u.method->self, args, out);
    default:
        return cmoei_jj_fail(e, "'%s' object is not callable", cmoei_jj_type(f));
    }
}

/* {% call %}: what it defines goes along as the keyword `caller`. */
static bool eval_call(jj_env *e, const jj_node *n, const jj_node *caller, jj_value *out)
{
    jj_value f;
    jj_args args;
    JJ_TRY(cmoei_jj_eval(e, n->a, &f) && eval_args(e, n, caller != NULL, &args));
    e->line = n->line;
    if (caller) {
        jj_macro *m = cmoei_jj_take(e, 1, sizeof *m);
        if (!m) return false;
        *m = (jj_macro){.node = caller, .scope = e->scope};
        args.named[args.n_named].name = e->symbols[JJ_SYM_CALLER];
        args.named[args.n_named++].value = (jj_value){.kind = JJ_MACRO, .u.macro = m};
    }
    return cmoei_jj_call_value(e, f, &args, out);
}

bool cmoei_jj_eval_call_block(jj_env *e, const jj_node *n, jj_value *out)
{
    return eval_call(e, n->a, n->b, out);
}

static bool eval_filter(jj_env *e, const jj_node *n, const char *sort, jj_value *out)
{
    jj_value left;
    jj_args args;
    JJ_TRY(cmoei_jj_eval(e, n->a, &left) && eval_args(e, n, 0, &args));
    e->line = n->line;
    return cmoei_jj_run_builtin(e, n->what, sort, left, &args, out);
}

/* ---- operators ------------------------------------------------------------------------------- */

static bool compare(jj_env *e, int32_t op, jj_value a, jj_value b, bool *out)
{
    int order = 0;
    switch (op) {
    case JJ_T_EQ:
        return cmoei_jj_equal(e, a, b, out);
    case JJ_T_NE:
        JJ_TRY(cmoei_jj_equal(e, a, b, out));
        *out = !*out;
        return true;
    case JJ_T_IN:
        return cmoei_jj_contains(e, a, b, out);
    case JJ_T_NOT_IN:
        JJ_TRY(cmoei_jj_contains(e, a, b, out));
        *out = !*out;
        return true;
    default:
        JJ_TRY(cmoei_jj_less(e, a, b, cmoei_jj_token_name((jj_token_kind)op), &order));
        *out = op == JJ_T_LT   ? order == -1
               : op == JJ_T_LE ? order == -1 || order == 0
               : op == JJ_T_GT ? order == 1
                               : order == 0 || order == 1;
        return true;
    }
}

/* a < b < c: all of them hold, and nothing behind the first that does not is evaluated. */
static bool eval_compare(jj_env *e, const jj_node *n, jj_value *out)
{
    jj_value left, right;
    bool holds = true;
    JJ_TRY(cmoei_jj_eval(e, n->a, &left));
    for (int32_t i = 0; holds && i < n->count; i++) {
        JJ_TRY(cmoei_jj_eval(e, n->list[i]->a, &right));
        e->line = n->line;
        JJ_TRY(compare(e, n->list[i]->op, left, right, &holds));
        left = right;
    }
    *out = cmoei_jj_bool(holds);
    return true;
}

static bool eval_concat(jj_env *e, const jj_node *n, jj_value *out)
{
    const jj_string *s = NULL;
    for (int32_t i = 0; i < n->count; i++) {
        jj_value v;
        JJ_TRY(cmoei_jj_eval(e, n->list[i], &v) && cmoei_jj_str(e, v, &s));
        if (s->markup) JJ_TRY(cmoei_jj_string_markup(e, s, false, &v) && cmoei_jj_str(e, v, &s));
        if (i == 0)
            *out = (jj_value){.kind = JJ_STRING, .u.string = s};
        else
            JJ_TRY(cmoei_jj_string_add(e, out->u.string, s, out));
    }
    return true;
}

static bool eval_binary(jj_env *e, const jj_node *n, jj_value *out)
{
    jj_value a, b;
    JJ_TRY(cmoei_jj_eval(e, n->a, &a) && cmoei_jj_eval(e, n->b, &b));
    e->line = n->line;
    return n->kind == JJ_N_ITEM ? cmoei_jj_item(e, a, b, out)
                                : cmoei_jj_binary(e, n->op, a, b, out);
}

/* and, or: the operand that decides, not its truth. */
static bool eval_logic(jj_env *e, const jj_node *n, jj_value *out)
{
    JJ_TRY(cmoei_jj_eval(e, n->a, out));
    return cmoei_jj_truth(*out) == (n->kind == JJ_N_OR) || cmoei_jj_eval(e, n->b, out);
}

static bool eval_condition(jj_env *e, const jj_node *n, jj_value *out)
{
    JJ_TRY(cmoei_jj_eval(e, n->a, out));
    if (cmoei_jj_truth(*out)) return cmoei_jj_eval(e, n->b, out);
    if (n->c) return cmoei_jj_eval(e, n->c, out);
    return cmoei_jj_undefined_text(
        e, "the inline if-expression evaluated to false and no else section was defined.", out);
}

static bool eval_slice(jj_env *e, const jj_node *n, jj_value *out)
{
    jj_value v, part[3] = {cmoei_jj_none(), cmoei_jj_none(), cmoei_jj_none()};
    JJ_TRY(cmoei_jj_eval(e, n->a, &v));
    for (int i = 0; i < 3; i++)
        if (n->list[i]) JJ_TRY(cmoei_jj_eval(e, n->list[i], &part[i]));
    e->line = n->line;
    return cmoei_jj_slice(e, v, part, out);
}

static bool eval_items(jj_env *e, const jj_node *n, jj_value *out)
{
    jj_value a, b;
    if (n->kind != JJ_N_DICT) {
        JJ_TRY(cmoei_jj_list_make(e, n->kind == JJ_N_LIST ? JJ_LIST : JJ_TUPLE, n->count, out));
        for (int32_t i = 0; i < n->count; i++)
            JJ_TRY(cmoei_jj_eval(e, n->list[i], &a) && cmoei_jj_list_push(e, out->u.list, a));
        return true;
    }
    JJ_TRY(cmoei_jj_dict_make(e, JJ_DICT, out));
    for (int32_t i = 0; i + 1 < n->count; i += 2) {
        JJ_TRY(cmoei_jj_eval(e, n->list[i], &a) && cmoei_jj_eval(e, n->list[i + 1], &b));
        JJ_TRY(cmoei_jj_dict_set(e, out->u.dict, a, b));
    }
    return true;
}

static bool eval_unary(jj_env *e, const jj_node *n, jj_value *out)
{
    JJ_TRY(cmoei_jj_eval(e, n->a, out));
    e->line = n->line;
    switch (n->kind) {
    case JJ_N_NOT:
        *out = cmoei_jj_bool(!cmoei_jj_truth(*out));
        return true;
    case JJ_N_ATTR:
        return cmoei_jj_attribute(e, *out, n->value.u.string, out);
    default:
        return cmoei_jj_negate(e, n->kind, *out, out);
    }
}

static bool dispatch(jj_env *e, const jj_node *n, jj_value *out)
{
    switch (n->kind) {
    case JJ_N_CONST:
        *out = n->value;
        return true;
    case JJ_N_NAME:
        return eval_name(e, n, out);
    case JJ_N_PIPED:
        *out = e->piped;
        return true;
    case JJ_N_ATTR:
    case JJ_N_NOT:
    case JJ_N_POSITIVE:
    case JJ_N_NEGATE:
        return eval_unary(e, n, out);
    case JJ_N_ITEM:
    case JJ_N_BINARY:
        return eval_binary(e, n, out);
    case JJ_N_SLICE:
        return eval_slice(e, n, out);
    case JJ_N_CALL:
        return eval_call(e, n, NULL, out);
    case JJ_N_FILTER:
        return eval_filter(e, n, "filter", out);
    case JJ_N_TEST:
        return eval_filter(e, n, "test", out);
    case JJ_N_AND:
    case JJ_N_OR:
        return eval_logic(e, n, out);
    case JJ_N_CONCAT:
        return eval_concat(e, n, out);
    case JJ_N_COMPARE:
        return eval_compare(e, n, out);
    case JJ_N_COND:
        return eval_condition(e, n, out);
    case JJ_N_LIST:
    case JJ_N_TUPLE:
    case JJ_N_DICT:
        return eval_items(e, n, out);
    default:
        return cmoei_jj_fail(e, "this is no expression");
    }
}

bool cmoei_jj_eval(jj_env *e, const jj_node *n, jj_value *out)
{
    const int32_t line = e->line;
    e->line = n->line;
    if (++e->depth > JJ_EVAL_DEPTH)
        return cmoei_jj_fail(e, "evaluation is nested more than %d deep", JJ_EVAL_DEPTH);
    JJ_TRY(cmoei_jj_step(e) && dispatch(e, n, out));
    e->depth--;
    e->line = line;
    return true;
}
