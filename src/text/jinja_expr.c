/* SPDX-License-Identifier: MIT
 *
 * jinja_expr.c - expressions: tokens to tree.
 *
 * One function a level of precedence, loosest first, as Jinja has them:
 *     a if c else b    or    and    not    comparisons, in    + -    ~    * / // %    **
 *     unary + -    . [] ()    | filter    is test
 * Note that ** groups from the left, and that a filter binds tighter than a unary minus's operand.
 */
#include "text/jinja.h"

static bool enter(jj_parser *p)
{
    p->e->line = p->now.line;
    if (++p->e->depth <= JJ_PARSE_DEPTH) return true;
    return cmoei_jj_fail(p->e, "expressions are nested more than %d deep", JJ_PARSE_DEPTH);
}

static bool binary(jj_parser *p, jj_node_kind kind, int32_t op, jj_node *a, jj_node *b,
                   jj_node **out)
{
    JJ_TRY(cmoei_jj_node_make(p, kind, out));
    (*out)->op = op;
    (*out)->a = a;
    (*out)->b = b;
    (*out)->line = a->line;
    return true;
}

/* ---- operands -------------------------------------------------------------------------------- */

static bool parse_name(jj_parser *p, jj_node **out)
{
    const jj_string *name = p->now.value.u.string;
    const bool is_true = cmoei_jj_equals_text(name, "true") || cmoei_jj_equals_text(name, "True");
    const bool is_false =
        cmoei_jj_equals_text(name, "false") || cmoei_jj_equals_text(name, "False");
    const bool is_none = cmoei_jj_equals_text(name, "none") || cmoei_jj_equals_text(name, "None");
    JJ_TRY(cmoei_jj_node_make(p, is_true || is_false || is_none ? JJ_N_CONST : JJ_N_NAME, out));
    if ((*out)->kind == JJ_N_CONST)
        (*out)->value = is_none ? cmoei_jj_none() : cmoei_jj_bool(is_true);
    else
        JJ_TRY(cmoei_jj_symbol(p, name, &(*out)->name));
    if (p->macro && (*out)->kind == JJ_N_NAME)
        p->macro->op |= (*out)->name == JJ_SYM_VARARGS  ? JJ_MACRO_VARARGS
                        : (*out)->name == JJ_SYM_KWARGS ? JJ_MACRO_KWARGS
                        : (*out)->name == JJ_SYM_CALLER ? JJ_MACRO_CALLER
                                                        : 0;
    return cmoei_jj_next(p);
}

static bool parse_string(jj_parser *p, jj_node **out)
{
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_CONST, out));
    (*out)->value = p->now.value;
    JJ_TRY(cmoei_jj_next(p));
    while (p->now.kind == JJ_T_STRING) { /* "a" "b" is one string */
        JJ_TRY(cmoei_jj_string_add(p->e, (*out)->value.u.string, p->now.value.u.string,
                                   &(*out)->value));
        JJ_TRY(cmoei_jj_next(p));
    }
    return true;
}

/* [a, b] and {a: b, c: d}; the opening bracket is at hand. */
static bool parse_display(jj_parser *p, jj_node_kind kind, jj_token_kind close, jj_node **out)
{
    jj_node *item = NULL;
    JJ_TRY(cmoei_jj_node_make(p, kind, out) && cmoei_jj_next(p));
    while (p->now.kind != close) {
        JJ_TRY(cmoei_jj_parse_expression(p, true, &item) && cmoei_jj_node_push(p, *out, item));
        if (kind == JJ_N_DICT) {
            JJ_TRY(cmoei_jj_expect(p, JJ_T_COLON) && cmoei_jj_parse_expression(p, true, &item));
            JJ_TRY(cmoei_jj_node_push(p, *out, item));
        }
        if (p->now.kind != close) JJ_TRY(cmoei_jj_expect(p, JJ_T_COMMA));
    }
    return cmoei_jj_next(p);
}

bool cmoei_jj_parse_primary(jj_parser *p, jj_node **out)
{
    switch (p->now.kind) {
    case JJ_T_NAME:
        return parse_name(p, out);
    case JJ_T_STRING:
        return parse_string(p, out);
    case JJ_T_INT:
    case JJ_T_FLOAT:
        JJ_TRY(cmoei_jj_node_make(p, JJ_N_CONST, out));
        (*out)->value = p->now.value;
        return cmoei_jj_next(p);
    case JJ_T_LPAREN:
        JJ_TRY(enter(p) && cmoei_jj_next(p));
        if (p->now.kind == JJ_T_RPAREN)
            JJ_TRY(cmoei_jj_node_make(p, JJ_N_TUPLE, out));
        else
            JJ_TRY(cmoei_jj_parse_tuple(p, true, NULL, out));
        p->e->depth--;
        return cmoei_jj_expect(p, JJ_T_RPAREN);
    case JJ_T_LBRACKET:
        return parse_display(p, JJ_N_LIST, JJ_T_RBRACKET, out);
    case JJ_T_LBRACE:
        return parse_display(p, JJ_N_DICT, JJ_T_RBRACE, out);
    default:
        return cmoei_jj_parse_error(p);
    }
}

/* ---- behind an operand ----------------------------------------------------------------------- */

/* (a, b, name=c); the opening parenthesis is at hand. */
static bool parse_arguments(jj_parser *p, jj_node *call)
{
    jj_node *arg = NULL, *keyword = NULL;
    bool named = false;
    JJ_TRY(cmoei_jj_expect(p, JJ_T_LPAREN));
    while (p->now.kind != JJ_T_RPAREN) {
        if (p->now.kind == JJ_T_MUL || p->now.kind == JJ_T_POW)
            return cmoei_jj_fail(p->e, "%s in front of an argument is not supported",
                                 cmoei_jj_token_name(p->now.kind));
        keyword = NULL;
        if (p->now.kind == JJ_T_NAME && p->then.kind == JJ_T_ASSIGN) {
            JJ_TRY(cmoei_jj_node_make(p, JJ_N_KEYWORD, &keyword));
            keyword->value = p->now.value;
            JJ_TRY(cmoei_jj_next(p) && cmoei_jj_next(p));
            named = true;
        } else if (named) {
            return cmoei_jj_fail(p->e, "a positional argument behind a keyword argument");
        }
        JJ_TRY(cmoei_jj_parse_expression(p, true, &arg));
        if (keyword) keyword->a = arg;
        JJ_TRY(cmoei_jj_node_push(p, call, keyword ? keyword : arg));
        if (p->now.kind != JJ_T_RPAREN) JJ_TRY(cmoei_jj_expect(p, JJ_T_COMMA));
    }
    return cmoei_jj_next(p);
}

/* What stands in brackets behind `base`: an index, or a slice of up to three parts. */
static bool parse_subscript(jj_parser *p, jj_node *base, jj_node **out)
{
    jj_node *part[3] = {NULL, NULL, NULL}, *index = NULL;
    int n = 0;
    bool colon = false;
    JJ_TRY(cmoei_jj_expect(p, JJ_T_LBRACKET) && enter(p));
    for (;;) {
        if (p->now.kind != JJ_T_COLON && p->now.kind != JJ_T_RBRACKET)
            JJ_TRY(cmoei_jj_parse_expression(p, true, &part[n]));
        if (p->now.kind != JJ_T_COLON || n == 2) break;
        colon = true;
        n++;
        JJ_TRY(cmoei_jj_next(p));
    }
    p->e->depth--;
    if (p->now.kind == JJ_T_COMMA)
        return cmoei_jj_fail(p->e, "a tuple as an index is not supported");
    JJ_TRY(cmoei_jj_expect(p, JJ_T_RBRACKET));
    if (!colon) {
        index = part[0];
        return index ? binary(p, JJ_N_ITEM, 0, base, index, out) : cmoei_jj_parse_error(p);
    }
    JJ_TRY(binary(p, JJ_N_SLICE, 0, base, NULL, out));
    for (int i = 0; i < 3; i++)
        JJ_TRY(cmoei_jj_node_push(p, *out, part[i]));
    return true;
}

static bool parse_dot(jj_parser *p, jj_node *base, jj_node **out)
{
    JJ_TRY(cmoei_jj_next(p));
    if (p->now.kind == JJ_T_INT) {
        jj_node *index = NULL;
        return cmoei_jj_parse_primary(p, &index) && binary(p, JJ_N_ITEM, 0, base, index, out);
    }
    if (p->now.kind != JJ_T_NAME) return cmoei_jj_parse_error(p);
    JJ_TRY(binary(p, JJ_N_ATTR, 0, base, NULL, out));
    (*out)->line = p->now.line;
    (*out)->value = p->now.value;
    return cmoei_jj_next(p);
}

static bool parse_call(jj_parser *p, jj_node *base, jj_node **out)
{
    JJ_TRY(binary(p, JJ_N_CALL, 0, base, NULL, out) && enter(p));
    JJ_TRY(parse_arguments(p, *out));
    p->e->depth--;
    return true;
}

static bool parse_postfix(jj_parser *p, jj_node *base, jj_node **out)
{
    for (*out = base;; base = *out) {
        if (p->now.kind == JJ_T_DOT)
            JJ_TRY(parse_dot(p, base, out));
        else if (p->now.kind == JJ_T_LBRACKET)
            JJ_TRY(parse_subscript(p, base, out));
        else if (p->now.kind == JJ_T_LPAREN)
            JJ_TRY(parse_call(p, base, out));
        else
            return true;
    }
}

/* first_bare: the name of a filter is at hand already, as in {% filter upper %}. */
bool cmoei_jj_parse_filters(jj_parser *p, jj_node *base, bool first_bare, jj_node **out)
{
    for (*out = base; p->now.kind == JJ_T_PIPE || first_bare; base = *out) {
        if (!first_bare) JJ_TRY(cmoei_jj_next(p));
        first_bare = false;
        JJ_TRY(binary(p, JJ_N_FILTER, 0, base, NULL, out));
        (*out)->line = p->e->line = p->now.line;
        const jj_value name = p->now.value;
        JJ_TRY(cmoei_jj_expect(p, JJ_T_NAME));
        (*out)->what = cmoei_jj_find_filter(name.u.string);
        if (!(*out)->what || !(*out)->what->run)
            return cmoei_jj_fail(p->e, "filter '%.*s' is not supported",
                                 (int)CMOEI_MIN(name.u.string->bytes, 100), name.u.string->data);
        if (p->now.kind == JJ_T_LPAREN) {
            JJ_TRY(enter(p) && parse_arguments(p, *out));
            p->e->depth--;
        }
    }
    return true;
}

/* Whether the token at hand begins the one operand of a test without parentheses. */
static bool test_operand(const jj_parser *p)
{
    switch (p->now.kind) {
    case JJ_T_NAME:
        return !cmoei_jj_is_name(p, "else") && !cmoei_jj_is_name(p, "or") &&
               !cmoei_jj_is_name(p, "and");
    case JJ_T_STRING:
    case JJ_T_INT:
    case JJ_T_FLOAT:
    case JJ_T_LBRACKET:
    case JJ_T_LBRACE:
        return true;
    default:
        return false;
    }
}

static bool parse_test(jj_parser *p, jj_node *base, jj_node **out)
{
    jj_node *test = NULL, *arg = NULL;
    JJ_TRY(cmoei_jj_next(p));
    const bool negated = cmoei_jj_is_name(p, "not");
    if (negated) JJ_TRY(cmoei_jj_next(p));
    JJ_TRY(binary(p, JJ_N_TEST, 0, base, NULL, &test));
    p->e->line = test->line = p->now.line;
    const jj_value name = p->now.value;
    JJ_TRY(cmoei_jj_expect(p, JJ_T_NAME));
    test->what = cmoei_jj_find_test(name.u.string);
    if (!test->what || !test->what->run)
        return cmoei_jj_fail(p->e, "test '%.*s' is not supported",
                             (int)CMOEI_MIN(name.u.string->bytes, 100), name.u.string->data);
    JJ_TRY(enter(p));
    if (p->now.kind == JJ_T_LPAREN) {
        JJ_TRY(parse_arguments(p, test));
    } else if (test_operand(p)) {
        if (cmoei_jj_is_name(p, "is"))
            return cmoei_jj_fail(p->e, "tests cannot be chained with is");
        JJ_TRY(cmoei_jj_parse_primary(p, &arg) && parse_postfix(p, arg, &arg));
        JJ_TRY(cmoei_jj_node_push(p, test, arg));
    }
    p->e->depth--;
    *out = test;
    return !negated || binary(p, JJ_N_NOT, 0, test, NULL, out);
}

static bool parse_suffixes(jj_parser *p, jj_node *base, jj_node **out)
{
    for (*out = base;; base = *out) {
        if (p->now.kind == JJ_T_PIPE)
            JJ_TRY(cmoei_jj_parse_filters(p, base, false, out));
        else if (cmoei_jj_is_name(p, "is"))
            JJ_TRY(parse_test(p, base, out));
        else if (p->now.kind == JJ_T_LPAREN)
            JJ_TRY(parse_call(p, base, out));
        else
            return true;
    }
}

/* ---- operators ------------------------------------------------------------------------------- */

bool cmoei_jj_parse_unary(jj_parser *p, bool with_filter, jj_node **out)
{
    jj_node *operand = NULL;
    JJ_TRY(enter(p));
    if (p->now.kind == JJ_T_SUB || p->now.kind == JJ_T_ADD) {
        const jj_node_kind kind = p->now.kind == JJ_T_SUB ? JJ_N_NEGATE : JJ_N_POSITIVE;
        JJ_TRY(cmoei_jj_next(p) && cmoei_jj_parse_unary(p, false, &operand));
        JJ_TRY(binary(p, kind, 0, operand, NULL, &operand));
    } else {
        JJ_TRY(cmoei_jj_parse_primary(p, &operand));
    }
    JJ_TRY(parse_postfix(p, operand, out));
    if (with_filter) JJ_TRY(parse_suffixes(p, *out, out));
    p->e->depth--;
    return true;
}

static bool parse_power(jj_parser *p, jj_node **out)
{
    jj_node *right = NULL;
    JJ_TRY(cmoei_jj_parse_unary(p, true, out));
    while (p->now.kind == JJ_T_POW) {
        JJ_TRY(cmoei_jj_next(p) && cmoei_jj_parse_unary(p, true, &right));
        JJ_TRY(binary(p, JJ_N_BINARY, JJ_T_POW, *out, right, out));
    }
    return true;
}

static bool parse_product(jj_parser *p, jj_node **out)
{
    jj_node *right = NULL;
    JJ_TRY(parse_power(p, out));
    while (p->now.kind >= JJ_T_MUL && p->now.kind <= JJ_T_MOD) {
        const jj_token_kind op = p->now.kind;
        JJ_TRY(cmoei_jj_next(p) && parse_power(p, &right));
        JJ_TRY(binary(p, JJ_N_BINARY, (int32_t)op, *out, right, out));
    }
    return true;
}

static bool parse_concat(jj_parser *p, jj_node **out)
{
    jj_node *all = NULL, *item = NULL;
    JJ_TRY(parse_product(p, out));
    if (p->now.kind != JJ_T_TILDE) return true;
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_CONCAT, &all) && cmoei_jj_node_push(p, all, *out));
    while (p->now.kind == JJ_T_TILDE) {
        JJ_TRY(cmoei_jj_next(p) && parse_product(p, &item) && cmoei_jj_node_push(p, all, item));
    }
    *out = all;
    return true;
}

static bool parse_sum(jj_parser *p, jj_node **out)
{
    jj_node *right = NULL;
    JJ_TRY(parse_concat(p, out));
    while (p->now.kind == JJ_T_ADD || p->now.kind == JJ_T_SUB) {
        const jj_token_kind op = p->now.kind;
        JJ_TRY(cmoei_jj_next(p) && parse_concat(p, &right));
        JJ_TRY(binary(p, JJ_N_BINARY, (int32_t)op, *out, right, out));
    }
    return true;
}

/* The comparison at hand, or JJ_T_END; "not in" is two names. */
static jj_token_kind comparison(const jj_parser *p)
{
    if (p->now.kind >= JJ_T_EQ && p->now.kind <= JJ_T_GE) return p->now.kind;
    if (cmoei_jj_is_name(p, "in")) return JJ_T_IN;
    if (cmoei_jj_is_name(p, "not") && p->then.kind == JJ_T_NAME &&
        cmoei_jj_equals_text(p->then.value.u.string, "in"))
        return JJ_T_NOT_IN;
    return JJ_T_END;
}

static bool parse_comparison(jj_parser *p, jj_node **out)
{
    jj_node *all = NULL, *operand = NULL;
    JJ_TRY(parse_sum(p, out));
    for (jj_token_kind op = comparison(p); op != JJ_T_END; op = comparison(p)) {
        if (!all) JJ_TRY(binary(p, JJ_N_COMPARE, 0, *out, NULL, &all));
        JJ_TRY(cmoei_jj_node_make(p, JJ_N_OPERAND, &operand) && cmoei_jj_next(p));
        if (op == JJ_T_NOT_IN) JJ_TRY(cmoei_jj_next(p));
        operand->op = (int32_t)op;
        JJ_TRY(parse_sum(p, &operand->a) && cmoei_jj_node_push(p, all, operand));
    }
    if (all) *out = all;
    return true;
}

static bool parse_not(jj_parser *p, jj_node **out)
{
    if (!cmoei_jj_is_name(p, "not")) return parse_comparison(p, out);
    jj_node *operand = NULL;
    JJ_TRY(enter(p) && cmoei_jj_next(p) && parse_not(p, &operand));
    p->e->depth--;
    return binary(p, JJ_N_NOT, 0, operand, NULL, out);
}

static bool parse_and(jj_parser *p, jj_node **out)
{
    jj_node *right = NULL;
    JJ_TRY(parse_not(p, out));
    while (cmoei_jj_is_name(p, "and")) {
        JJ_TRY(cmoei_jj_next(p) && parse_not(p, &right));
        JJ_TRY(binary(p, JJ_N_AND, 0, *out, right, out));
    }
    return true;
}

static bool parse_or(jj_parser *p, jj_node **out)
{
    jj_node *right = NULL;
    JJ_TRY(parse_and(p, out));
    while (cmoei_jj_is_name(p, "or")) {
        JJ_TRY(cmoei_jj_next(p) && parse_and(p, &right));
        JJ_TRY(binary(p, JJ_N_OR, 0, *out, right, out));
    }
    return true;
}

bool cmoei_jj_parse_expression(jj_parser *p, bool with_condition, jj_node **out)
{
    jj_node *test = NULL;
    JJ_TRY(enter(p) && parse_or(p, out));
    while (with_condition && cmoei_jj_is_name(p, "if")) {
        JJ_TRY(cmoei_jj_next(p) && parse_or(p, &test));
        JJ_TRY(binary(p, JJ_N_COND, 0, test, *out, out));
        if (cmoei_jj_is_name(p, "else"))
            JJ_TRY(cmoei_jj_next(p) && cmoei_jj_parse_expression(p, true, &(*out)->c));
    }
    p->e->depth--;
    return true;
}

static bool tuple_end(const jj_parser *p, const char *end)
{
    return p->now.kind == JJ_T_PRINT_END || p->now.kind == JJ_T_BLOCK_END ||
           p->now.kind == JJ_T_RPAREN || (end && cmoei_jj_is_name(p, end));
}

bool cmoei_jj_parse_tuple(jj_parser *p, bool with_condition, const char *end, jj_node **out)
{
    jj_node *all = NULL;
    JJ_TRY(cmoei_jj_parse_expression(p, with_condition, out));
    if (p->now.kind != JJ_T_COMMA) return true;
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_TUPLE, &all) && cmoei_jj_node_push(p, all, *out));
    while (p->now.kind == JJ_T_COMMA) {
        JJ_TRY(cmoei_jj_next(p));
        if (tuple_end(p, end)) break;
        JJ_TRY(cmoei_jj_parse_expression(p, with_condition, out) &&
               cmoei_jj_node_push(p, all, *out));
    }
    *out = all;
    return true;
}
