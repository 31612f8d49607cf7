/* SPDX-License-Identifier: MIT
 *
 * jinja_exec.c - statements, scopes and macros.
 *
 * Scopes form a chain.  `set` writes into the innermost one, so what a loop's body sets is gone with
 * the iteration; `if` has none of its own.  A macro sees the scopes it was defined in, as they are
 * when it is called.
 */
#include "text/jinja.h"

#include <string.h>

/* ---- scopes ---------------------------------------------------------------------------------- */

bool cmoei_jj_scope_open(jj_env *e, jj_scope *parent, jj_scope **out)
{
    *out = cmoei_jj_take(e, 1, sizeof **out);
    if (*out) (*out)->parent = parent;
    return *out != NULL;
}

bool cmoei_jj_scope_set(jj_env *e, jj_scope *s, int32_t name, jj_value v)
{
    JJ_TRY(cmoei_jj_work(e, 8 * (int64_t)s->n));
    for (int32_t i = 0; i < s->n; i++)
        if (s->vars[i].name == name) {
            s->vars[i].value = v;
            return true;
        }
    if (s->n == s->capacity) {
        const int32_t capacity = CMOEI_MAX(2 * s->capacity, 4);
        jj_var *grown = cmoei_jj_take(e, capacity, sizeof *grown);
        if (!grown) return false;
        if (s->n) memcpy(grown, s->vars, (size_t)s->n * sizeof *grown);
        s->vars = grown;
        s->capacity = capacity;
    }
    s->vars[s->n++] = (jj_var){.name = name, .value = v};
    return true;
}

static bool assign_attribute(jj_env *e, const jj_node *target, jj_value v)
{
    jj_value ns, name = target->value;
    const jj_node variable = {.kind = JJ_N_NAME, .name = target->name, .line = target->line};
    JJ_TRY(cmoei_jj_eval(e, &variable, &ns));
    if (ns.kind != JJ_NAMESPACE)
        return cmoei_jj_fail(e, "cannot assign attribute on non-namespace object");
    return cmoei_jj_dict_set(e, ns.u.dict, name, v);
}

bool cmoei_jj_assign(jj_env *e, const jj_node *target, jj_value v)
{
    jj_list *l = NULL;
    if (target->kind == JJ_N_NAME) return cmoei_jj_scope_set(e, e->scope, target->name, v);
    if (target->kind == JJ_N_NS_ATTR) return assign_attribute(e, target, v);
    if (v.kind == JJ_UNDEFINED || !cmoei_jj_items(e, v, &l))
        return cmoei_jj_fail(e, "cannot unpack non-iterable %s object", cmoei_jj_type(v));
    if (l->n != target->count)
        return cmoei_jj_fail(e, "%lld values to unpack, want %d", (long long)l->n, target->count);
    for (int32_t i = 0; i < target->count; i++)
        JJ_TRY(cmoei_jj_assign(e, target->list[i], l->items[i]));
    return true;
}

/* A body in a scope of its own; its text stays at the end of out. */
static jj_flow exec_scoped(jj_env *e, const jj_node *body)
{
    jj_scope *outer = e->scope;
    if (!cmoei_jj_scope_open(e, outer, &e->scope)) return JJ_FAILED;
    const jj_flow flow = cmoei_jj_exec(e, body);
    e->scope = outer;
    return flow;
}

/* ---- macros ---------------------------------------------------------------------------------- */

/* Takes a keyword argument out of the list. */
static bool take_named(jj_args *rest, const jj_string *name, jj_value *out)
{
    for (int32_t i = 0; i < rest->n_named; i++) {
        const jj_string *s = rest->named[i].name;
        if (s->bytes != name->bytes || memcmp(s->data, name->data, (size_t)s->bytes) != 0) continue;
        *out = rest->named[i].value;
        rest->named[i] = rest->named[--rest->n_named];
        return true;
    }
    return false;
}

/* What is left of the arguments goes into varargs and kwargs, where the macro uses them. */
static bool bind_rest(jj_env *e, const jj_node *n, const jj_args *args, jj_args *rest)
{
    const int32_t extra = CMOEI_MAX(args->n - n->count, 0);
    const jj_string *name = n->value.u.string;
    const int bytes = (int)CMOEI_MIN(name->bytes, 60);
    jj_value v;
    if (n->op & JJ_MACRO_CALLER && !take_named(rest, e->symbols[JJ_SYM_CALLER], &v))
        JJ_TRY(cmoei_jj_undefined_text(e, "No caller defined", &v));
    if (n->op & JJ_MACRO_CALLER) JJ_TRY(cmoei_jj_scope_set(e, e->scope, JJ_SYM_CALLER, v));
    if (n->op & JJ_MACRO_KWARGS) {
        JJ_TRY(cmoei_jj_dict_make(e, JJ_DICT, &v));
        for (int32_t i = 0; i < rest->n_named; i++)
            JJ_TRY(cmoei_jj_dict_set(e, v.u.dict,
                                     (jj_value){.kind = JJ_STRING, .u.string = rest->named[i].name},
                                     rest->named[i].value));
        JJ_TRY(cmoei_jj_scope_set(e, e->scope, JJ_SYM_KWARGS, v));
    } else if (rest->n_named) {
        return cmoei_jj_fail(e, "macro '%.*s' takes no keyword argument '%.*s'", bytes, name->data,
                             (int)CMOEI_MIN(rest->named[0].name->bytes, 60),
                             rest->named[0].name->data);
    }
    if (n->op & JJ_MACRO_VARARGS) {
        JJ_TRY(cmoei_jj_list_make(e, JJ_TUPLE, extra, &v));
        for (int32_t i = 0; i < extra; i++)
            JJ_TRY(cmoei_jj_list_push(e, v.u.list, args->at[n->count + i]));
        return cmoei_jj_scope_set(e, e->scope, JJ_SYM_VARARGS, v);
    }
    if (extra)
        return cmoei_jj_fail(e, "macro '%.*s' takes not more than %d argument(s)", bytes,
                             name->data, n->count);
    return true;
}

static bool bind_params(jj_env *e, const jj_node *n, const jj_args *args)
{
    jj_args rest = *args;
    rest.named = cmoei_jj_take(e, args->n_named, sizeof *rest.named);
    if (!rest.named) return false;
    if (args->n_named) memcpy(rest.named, args->named, (size_t)args->n_named * sizeof *rest.named);
    for (int32_t i = 0; i < n->count; i++) {
        const jj_node *param = n->list[i];
        jj_value v;
        if (i < args->n)
            v = args->at[i];
        else if (take_named(&rest, e->symbols[param->name], &v))
            ;
        else if (param->a)
            JJ_TRY(cmoei_jj_eval(e, param->a, &v)); /* may use the parameters before it */
        else
            JJ_TRY(cmoei_jj_undefined(e, NULL, e->symbols[param->name], &v));
        JJ_TRY(cmoei_jj_scope_set(e, e->scope, param->name, v));
    }
    return bind_rest(e, n, args, &rest);
}

bool cmoei_jj_call_macro(jj_env *e, const jj_macro *m, const jj_args *args, jj_value *out)
{
    jj_scope *caller = e->scope;
    const int64_t mark = e->out_bytes;
    const int32_t line = e->line;
    JJ_TRY(cmoei_jj_scope_open(e, m->scope, &e->scope) && bind_params(e, m->node, args));
    if (cmoei_jj_exec(e, m->node->b) == JJ_FAILED) return false;
    e->scope = caller;
    e->line = line;
    return cmoei_jj_cut(e, mark, out);
}

static bool define_macro(jj_env *e, const jj_node *n)
{
    jj_macro *m = cmoei_jj_take(e, 1, sizeof *m);
    if (!m) return false;
    *m = (jj_macro){.node = n, .scope = e->scope};
    return cmoei_jj_scope_set(e, e->scope, n->name, (jj_value){.kind = JJ_MACRO, .u.macro = m});
}

/* ---- statements ------------------------------------------------------------------------------ */

static jj_flow exec_if(jj_env *e, const jj_node *n)
{
    jj_value v;
    for (int32_t i = 0; i + 1 < n->count; i += 2) {
        if (!cmoei_jj_eval(e, n->list[i], &v)) return JJ_FAILED;
        if (cmoei_jj_truth(v)) return cmoei_jj_exec(e, n->list[i + 1]);
    }
    return n->c ? cmoei_jj_exec(e, n->c) : JJ_NEXT;
}

/* A body's text through filters: printed, or kept under a name. */
static jj_flow exec_captured(jj_env *e, const jj_node *n, const jj_node *filters)
{
    const int64_t mark = e->out_bytes;
    const jj_value outer = e->piped;
    jj_value v;
    const jj_flow flow = exec_scoped(e, n->b);
    if (flow == JJ_FAILED) return flow;
    if (flow != JJ_NEXT) e->out_bytes = mark; /* left by break: nothing is kept */
    if (flow != JJ_NEXT) return flow;
    if (!cmoei_jj_cut(e, mark, &e->piped)) return JJ_FAILED;
    v = e->piped;
    if (filters && !cmoei_jj_eval(e, filters, &v)) return JJ_FAILED;
    e->piped = outer;
    const bool ok =
        n->kind == JJ_N_SET_BLOCK ? cmoei_jj_assign(e, n->a, v) : cmoei_jj_put_str(e, v);
    return ok ? JJ_NEXT : JJ_FAILED;
}

static jj_flow exec_with(jj_env *e, const jj_node *n)
{
    jj_scope *outer = e->scope, *inner = NULL;
    if (!cmoei_jj_scope_open(e, outer, &inner)) return JJ_FAILED;
    for (int32_t i = 0; i + 1 < n->count; i += 2) {
        jj_value v;
        if (!cmoei_jj_eval(e, n->list[i + 1], &v)) return JJ_FAILED; /* sees the outer names only */
        e->scope = inner;
        if (!cmoei_jj_assign(e, n->list[i], v)) return JJ_FAILED;
        e->scope = outer;
    }
    e->scope = inner;
    const jj_flow flow = cmoei_jj_exec(e, n->b);
    e->scope = outer;
    return flow;
}

static jj_flow exec_body(jj_env *e, const jj_node *n)
{
    for (int32_t i = 0; i < n->count; i++) {
        const jj_flow flow = cmoei_jj_exec(e, n->list[i]);
        if (flow != JJ_NEXT) return flow;
    }
    return JJ_NEXT;
}

static jj_flow dispatch(jj_env *e, const jj_node *n)
{
    jj_value v;
    bool ok = true;
    switch (n->kind) {
    case JJ_N_BODY:
        return exec_body(e, n);
    case JJ_N_IF:
        return exec_if(e, n);
    case JJ_N_FOR:
        return cmoei_jj_exec_for(e, n);
    case JJ_N_SET_BLOCK:
        return exec_captured(e, n, n->c);
    case JJ_N_FILTER_BLOCK:
        return exec_captured(e, n, n->a);
    case JJ_N_WITH:
        return exec_with(e, n);
    case JJ_N_SCOPE:
        return exec_scoped(e, n->b);
    case JJ_N_BREAK:
        return JJ_BREAK;
    case JJ_N_CONTINUE:
        return JJ_CONTINUE;
    case JJ_N_TEXT:
        ok = cmoei_jj_put_str(e, n->value);
        break;
    case JJ_N_PRINT:
        ok = cmoei_jj_eval(e, n->a, &v) && cmoei_jj_put_str(e, v);
        break;
    case JJ_N_SET:
        ok = cmoei_jj_eval(e, n->b, &v) && cmoei_jj_assign(e, n->a, v);
        break;
    case JJ_N_MACRO:
        ok = define_macro(e, n);
        break;
    case JJ_N_CALL_BLOCK:
        ok = cmoei_jj_eval_call_block(e, n, &v) && cmoei_jj_put_str(e, v);
        break;
    default:
        ok = cmoei_jj_fail(e, "this is no statement");
        break;
    }
    return ok ? JJ_NEXT : JJ_FAILED;
}

jj_flow cmoei_jj_exec(jj_env *e, const jj_node *n)
{
    e->line = n->line;
    if (++e->depth > JJ_EVAL_DEPTH) {
        cmoei_jj_fail(e, "evaluation is nested more than %d deep", JJ_EVAL_DEPTH);
        return JJ_FAILED;
    }
    if (!cmoei_jj_step(e)) return JJ_FAILED;
    const jj_flow flow = dispatch(e, n);
    e->depth--;
    return flow;
}
