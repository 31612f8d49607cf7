/* SPDX-License-Identifier: MIT
 *
 * jinja_loop.c - `for`, and what a loop's body can ask of it.
 *
 * Items are taken one by one, since the condition of `for x in y if c` may depend on what the body
 * did; loop.last and loop.nextitem look one ahead, loop.length all the way.
 */
#include "text/jinja.h"

/* The next item that passes the condition.  *more false: there is none. */
static bool pull(jj_env *e, jj_loop *l, jj_value *out, bool *more)
{
    jj_scope *scope = e->scope;
    for (*more = false; !*more && l->at < l->source->n;) {
        *out = l->source->items[l->at++];
        *more = true;
        if (!l->test) break;
        jj_value v;
        JJ_TRY(cmoei_jj_scope_open(e, l->outer, &e->scope) && cmoei_jj_assign(e, l->node->a, *out));
        JJ_TRY(cmoei_jj_eval(e, l->test, &v));
        *more = cmoei_jj_truth(v);
    }
    e->scope = scope;
    return true;
}

static bool look_ahead(jj_env *e, jj_loop *l, bool *more)
{
    *more = true;
    if (l->after.kind != JJ_MISSING) return true;
    return pull(e, l, &l->after, more) && (*more || (l->after.kind = JJ_MISSING, true));
}

/* Takes all that is to come, so that it can be counted. */
static bool count(jj_env *e, jj_loop *l)
{
    jj_value rest, v;
    bool more = true;
    if (l->length >= 0) return true;
    JJ_TRY(cmoei_jj_list_make(e, JJ_LIST, 0, &rest));
    for (;;) {
        JJ_TRY(pull(e, l, &v, &more));
        if (!more) break;
        JJ_TRY(cmoei_jj_list_push(e, rest.u.list, v));
    }
    l->source = rest.u.list;
    l->at = 0;
    l->test = NULL;
    l->length = l->index0 + 1 + (l->after.kind != JJ_MISSING) + l->source->n;
    return true;
}

/* ---- the statement --------------------------------------------------------------------------- */

/* *empty: no iteration came to the end of the body (as Jinja has it: one that `continue` or `break`
 * leaves does not count), so that `else` is next. */
static jj_flow run(jj_env *e, jj_loop *l, bool *empty)
{
    jj_scope *outer = e->scope;
    jj_scope inner = {.parent = l->outer}, *scope = cmoei_jj_take(e, 1, sizeof inner);
    bool more = true;
    if (!scope) return JJ_FAILED;
    *empty = true;
    for (;;) {
        if (!look_ahead(e, l, &more)) return JJ_FAILED;
        if (!more) break;
        l->index0++;
        l->before = l->current;
        l->current = l->after;
        l->after.kind = JJ_MISSING;
        inner.vars = scope->vars;
        inner.capacity = scope->capacity;
        *scope = inner; /* emptied, its room kept */
        e->scope = scope;
        const jj_value self = {.kind = JJ_LOOP, .u.loop = l};
        if (!cmoei_jj_scope_set(e, scope, JJ_SYM_LOOP, self) ||
            !cmoei_jj_assign(e, l->node->a, l->current))
            return JJ_FAILED;
        const jj_flow flow = cmoei_jj_exec(e, l->node->list[0]);
        e->scope = outer;
        if (flow == JJ_FAILED) return flow;
        if (flow == JJ_BREAK) break;
        if (flow == JJ_NEXT) *empty = false;
    }
    return JJ_NEXT;
}

static jj_flow walk(jj_env *e, const jj_node *n, jj_scope *outer, jj_value over, int64_t depth)
{
    jj_loop *l = cmoei_jj_take(e, 1, sizeof *l);
    bool empty = true;
    if (!l) return JJ_FAILED;
    *l = (jj_loop){
        .node = n, .outer = outer, .test = n->c, .index0 = -1, .length = -1, .depth0 = depth};
    if (!cmoei_jj_items(e, over, &l->source)) return JJ_FAILED;
    const jj_flow flow = run(e, l, &empty);
    if (flow == JJ_FAILED || !empty || !n->list[1]) return flow;
    jj_scope *before = e->scope;
    if (!cmoei_jj_scope_open(e, outer, &e->scope)) return JJ_FAILED;
    const jj_flow other = cmoei_jj_exec(e, n->list[1]);
    e->scope = before;
    return other;
}

jj_flow cmoei_jj_exec_for(jj_env *e, const jj_node *n)
{
    jj_value over;
    if (!cmoei_jj_eval(e, n->b, &over)) return JJ_FAILED;
    return walk(e, n, e->scope, over, 0);
}

/* loop(items): the same body once more, a level down; its text is the value. */
bool cmoei_jj_loop_again(jj_env *e, const jj_loop *l, const jj_args *args, jj_value *out)
{
    const int64_t mark = e->out_bytes;
    if (!l->node->op)
        return cmoei_jj_fail(e, "loop is called, but its for is not marked recursive");
    if (args->n != 1 || args->n_named) return cmoei_jj_fail(e, "loop takes one argument");
    if (walk(e, l->node, l->outer, args->at[0], l->depth0 + 1) == JJ_FAILED) return false;
    return cmoei_jj_cut(e, mark, out);
}

/* ---- loop.x ---------------------------------------------------------------------------------- */

typedef enum field {
    INDEX,
    INDEX0,
    REVINDEX,
    REVINDEX0,
    FIRST,
    LAST,
    LENGTH,
    DEPTH,
    DEPTH0,
    PREVIOUS,
    FOLLOWING
} field;

static const char *const fields[] = {"index",  "index0", "revindex", "revindex0", "first",   "last",
                                     "length", "depth",  "depth0",   "previtem",  "nextitem"};

/* *out MISSING: there is no such field, but perhaps a method. */
bool cmoei_jj_loop_attribute(jj_env *e, jj_loop *l, const jj_string *name, jj_value *out)
{
    int f = 0;
    bool more = false;
    out->kind = JJ_MISSING;
    while (f <= FOLLOWING && !cmoei_jj_equals_text(name, fields[f]))
        f++;
    if (f == REVINDEX || f == REVINDEX0 || f == LENGTH) JJ_TRY(count(e, l));
    if (f == LAST || f == FOLLOWING) JJ_TRY(look_ahead(e, l, &more));
    switch (f) {
    case INDEX:
        *out = cmoei_jj_int(l->index0 + 1);
        return true;
    case INDEX0:
        *out = cmoei_jj_int(l->index0);
        return true;
    case REVINDEX:
        *out = cmoei_jj_int(l->length - l->index0);
        return true;
    case REVINDEX0:
        *out = cmoei_jj_int(l->length - l->index0 - 1);
        return true;
    case FIRST:
        *out = cmoei_jj_bool(l->index0 == 0);
        return true;
    case LAST:
        *out = cmoei_jj_bool(!more);
        return true;
    case LENGTH:
        *out = cmoei_jj_int(l->length);
        return true;
    case DEPTH:
        *out = cmoei_jj_int(l->depth0 + 1);
        return true;
    case DEPTH0:
        *out = cmoei_jj_int(l->depth0);
        return true;
    case PREVIOUS:
        if (l->index0 == 0) return cmoei_jj_undefined_text(e, "there is no previous item", out);
        *out = l->before;
        return true;
    case FOLLOWING:
        if (!more) return cmoei_jj_undefined_text(e, "there is no next item", out);
        *out = l->after;
        return true;
    default:
        return true;
    }
}
