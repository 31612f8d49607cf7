/* SPDX-License-Identifier: MIT
 *
 * jinja_parse.c - statements: tokens to tree.
 *
 * `tags` below is the list of what there is; what Jinja has beyond it (inheritance, imports, ...) is
 * refused by name, since a template cannot reach other files.
 */
#include "text/jinja.h"

#include <string.h>

/* ---- tokens, nodes, names -------------------------------------------------------------------- */

bool cmoei_jj_next(jj_parser *p)
{
    p->now = p->then;
    JJ_TRY(cmoei_jj_lex(&p->lexer, &p->then));
    p->e->line = p->now.line;
    return true;
}

bool cmoei_jj_is_name(const jj_parser *p, const char *name)
{
    return p->now.kind == JJ_T_NAME && cmoei_jj_equals_text(p->now.value.u.string, name);
}

static bool text_of(const jj_token *t, const char **text, int *bytes)
{
    const bool word = t->kind == JJ_T_NAME || t->kind == JJ_T_STRING;
    *text = word ? t->value.u.string->data : cmoei_jj_token_name(t->kind);
    *bytes = word ? (int)CMOEI_MIN(t->value.u.string->bytes, 60) : (int)strlen(*text);
    return word;
}

bool cmoei_jj_parse_error(jj_parser *p)
{
    const char *text = NULL;
    int bytes = 0;
    text_of(&p->now, &text, &bytes);
    p->e->line = p->now.line;
    return cmoei_jj_fail(p->e, "unexpected '%.*s'", bytes, text);
}

bool cmoei_jj_expect(jj_parser *p, jj_token_kind kind)
{
    if (p->now.kind == kind) return cmoei_jj_next(p);
    const char *text = NULL;
    int bytes = 0;
    text_of(&p->now, &text, &bytes);
    p->e->line = p->now.line;
    return cmoei_jj_fail(p->e, "unexpected '%.*s', want %s", bytes, text,
                         cmoei_jj_token_name(kind));
}

static bool expect_name(jj_parser *p, const char *name)
{
    if (cmoei_jj_is_name(p, name)) return cmoei_jj_next(p);
    const char *text = NULL;
    int bytes = 0;
    text_of(&p->now, &text, &bytes);
    return cmoei_jj_fail(p->e, "unexpected '%.*s', want %s", bytes, text, name);
}

bool cmoei_jj_node_make(jj_parser *p, jj_node_kind kind, jj_node **out)
{
    jj_node *n = cmoei_jj_take(p->e, 1, sizeof *n);
    if (!n) return false;
    n->kind = kind;
    n->line = p->now.line;
    *out = n;
    return true;
}

/* Capacity is the power of two that holds count. */
bool cmoei_jj_node_push(jj_parser *p, jj_node *n, jj_node *child)
{
    if ((n->count & (n->count - 1)) == 0) {
        if (n->count >= 1 << 28) return cmoei_jj_fail(p->e, "too long");
        jj_node **grown = cmoei_jj_take(p->e, CMOEI_MAX(2 * n->count, 1), sizeof *grown);
        if (!grown) return false;
        if (n->count) memcpy(grown, n->list, (size_t)n->count * sizeof *grown);
        n->list = grown;
    }
    n->list[n->count++] = child;
    return true;
}

bool cmoei_jj_symbol(jj_parser *p, const jj_string *name, int32_t *out)
{
    JJ_TRY(cmoei_jj_work(p->e, 16 * (int64_t)p->n_symbols)); /* many names are quadratic */
    for (*out = 0; *out < p->n_symbols; ++*out) {
        const jj_string *s = p->symbols[*out];
        if (s->bytes == name->bytes && !memcmp(s->data, name->data, (size_t)s->bytes)) return true;
    }
    if (p->n_symbols == p->symbols_capacity) {
        const int32_t capacity = CMOEI_MAX(2 * p->symbols_capacity, 32);
        const jj_string **grown = cmoei_jj_take(p->e, capacity, sizeof *grown);
        if (!grown) return false;
        if (p->n_symbols) memcpy(grown, p->symbols, (size_t)p->n_symbols * sizeof *grown);
        p->symbols = grown;
        p->symbols_capacity = capacity;
    }
    p->symbols[p->n_symbols++] = name;
    return true;
}

/* ---- targets and bodies ---------------------------------------------------------------------- */

/* name, ns.name, or several of them between commas, in parentheses or not. */
static bool parse_target(jj_parser *p, bool with_attr, bool many, jj_node **out);

static bool parse_one_target(jj_parser *p, bool with_attr, jj_node **out)
{
    if (p->now.kind == JJ_T_LPAREN) {
        if (++p->e->depth > JJ_PARSE_DEPTH) return cmoei_jj_fail(p->e, "nested too deep");
        JJ_TRY(cmoei_jj_next(p) && parse_target(p, with_attr, true, out));
        p->e->depth--;
        return cmoei_jj_expect(p, JJ_T_RPAREN);
    }
    if (p->now.kind != JJ_T_NAME) return cmoei_jj_parse_error(p);
    JJ_TRY(cmoei_jj_parse_primary(p, out));
    if ((*out)->kind != JJ_N_NAME) return cmoei_jj_fail(p->e, "cannot assign to a constant");
    if (!with_attr || p->now.kind != JJ_T_DOT) return true;
    (*out)->kind = JJ_N_NS_ATTR;
    JJ_TRY(cmoei_jj_next(p));
    (*out)->value = p->now.value;
    return cmoei_jj_expect(p, JJ_T_NAME);
}

static bool parse_target(jj_parser *p, bool with_attr, bool many, jj_node **out)
{
    jj_node *all = NULL;
    JJ_TRY(parse_one_target(p, with_attr, out));
    if (!many || p->now.kind != JJ_T_COMMA) return true;
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_TUPLE, &all) && cmoei_jj_node_push(p, all, *out));
    while (p->now.kind == JJ_T_COMMA) {
        JJ_TRY(cmoei_jj_next(p));
        if (p->now.kind == JJ_T_ASSIGN || p->now.kind == JJ_T_RPAREN || cmoei_jj_is_name(p, "in"))
            break;
        JJ_TRY(parse_one_target(p, with_attr, out) && cmoei_jj_node_push(p, all, *out));
    }
    *out = all;
    return true;
}

static bool parse_statement(jj_parser *p, jj_node **out);

static bool ends(const jj_parser *p, const char *const *end)
{
    for (; end && *end; end++)
        if (cmoei_jj_is_name(p, *end)) return true;
    return false;
}

/* Text and tags up to a tag whose name is in `end` (NULL terminated; that name is then at hand), or
 * to the end of the template when `end` is NULL. */
static bool parse_body(jj_parser *p, const char *const *end, jj_node **out)
{
    jj_node *n = NULL;
    const int32_t line = p->now.line;
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_BODY, out));
    for (;;) {
        switch (p->now.kind) {
        case JJ_T_END:
            p->e->line = line;
            return end ? cmoei_jj_fail(p->e, "no {%% %s %%} for what begins here", end[0]) : true;
        case JJ_T_DATA:
            JJ_TRY(cmoei_jj_node_make(p, JJ_N_TEXT, &n));
            n->value = p->now.value;
            JJ_TRY(cmoei_jj_next(p));
            break;
        case JJ_T_PRINT_BEGIN:
            JJ_TRY(cmoei_jj_node_make(p, JJ_N_PRINT, &n) && cmoei_jj_next(p));
            JJ_TRY(cmoei_jj_parse_tuple(p, true, NULL, &n->a) &&
                   cmoei_jj_expect(p, JJ_T_PRINT_END));
            break;
        default:
            JJ_TRY(cmoei_jj_expect(p, JJ_T_BLOCK_BEGIN));
            if (ends(p, end)) return true;
            JJ_TRY(parse_statement(p, &n) && cmoei_jj_expect(p, JJ_T_BLOCK_END));
        }
        JJ_TRY(cmoei_jj_node_push(p, *out, n));
    }
}

/* %} body {% end: stands behind the end's name. */
static bool parse_block(jj_parser *p, const char *end, jj_node **out)
{
    const char *const list[] = {end, NULL};
    return cmoei_jj_expect(p, JJ_T_BLOCK_END) && parse_body(p, list, out) && cmoei_jj_next(p);
}

/* ---- statements: the tag's name is behind us, n is its node ------------------------------------ */

static bool parse_if(jj_parser *p, jj_node *n)
{
    static const char *const end[] = {"endif", "elif", "else", NULL};
    jj_node *part = NULL;
    for (;;) {
        JJ_TRY(cmoei_jj_parse_tuple(p, false, NULL, &part) && cmoei_jj_node_push(p, n, part));
        JJ_TRY(cmoei_jj_expect(p, JJ_T_BLOCK_END) && parse_body(p, end, &part));
        JJ_TRY(cmoei_jj_node_push(p, n, part));
        if (!cmoei_jj_is_name(p, "elif")) break;
        JJ_TRY(cmoei_jj_next(p));
    }
    if (!cmoei_jj_is_name(p, "else")) return cmoei_jj_next(p);
    return cmoei_jj_next(p) && parse_block(p, "endif", &n->c);
}

static bool parse_for(jj_parser *p, jj_node *n)
{
    static const char *const end[] = {"endfor", "else", NULL};
    jj_node *body = NULL;
    JJ_TRY(parse_target(p, false, true, &n->a) && expect_name(p, "in"));
    JJ_TRY(cmoei_jj_parse_tuple(p, false, "recursive", &n->b));
    if (cmoei_jj_is_name(p, "if"))
        JJ_TRY(cmoei_jj_next(p) && cmoei_jj_parse_expression(p, true, &n->c));
    n->op = cmoei_jj_is_name(p, "recursive");
    if (n->op) JJ_TRY(cmoei_jj_next(p));
    p->loops++;
    JJ_TRY(cmoei_jj_expect(p, JJ_T_BLOCK_END) && parse_body(p, end, &body) &&
           cmoei_jj_node_push(p, n, body));
    p->loops--;
    body = NULL;
    const bool has_else = cmoei_jj_is_name(p, "else");
    JJ_TRY(cmoei_jj_next(p));
    if (has_else) JJ_TRY(parse_block(p, "endfor", &body));
    return cmoei_jj_node_push(p, n, body);
}

static bool parse_set(jj_parser *p, jj_node *n)
{
    JJ_TRY(parse_target(p, true, true, &n->a));
    if (p->now.kind == JJ_T_ASSIGN)
        return cmoei_jj_next(p) && cmoei_jj_parse_tuple(p, true, NULL, &n->b);
    n->kind = JJ_N_SET_BLOCK;
    if (p->now.kind == JJ_T_PIPE) {
        jj_node *piped = NULL;
        JJ_TRY(cmoei_jj_node_make(p, JJ_N_PIPED, &piped));
        JJ_TRY(cmoei_jj_parse_filters(p, piped, false, &n->c));
    }
    return parse_block(p, "endset", &n->b);
}

/* (a, b=default): parameters of a macro. */
static bool parse_signature(jj_parser *p, jj_node *macro)
{
    jj_node *param = NULL;
    bool optional = false;
    JJ_TRY(cmoei_jj_expect(p, JJ_T_LPAREN));
    while (p->now.kind != JJ_T_RPAREN) {
        JJ_TRY(parse_one_target(p, false, &param));
        if (param->kind != JJ_N_NAME) return cmoei_jj_fail(p->e, "a parameter must be a name");
        if (p->now.kind == JJ_T_ASSIGN) {
            JJ_TRY(cmoei_jj_next(p) && cmoei_jj_parse_expression(p, true, &param->a));
            optional = true;
        } else if (optional) {
            return cmoei_jj_fail(p->e, "a parameter without default behind one with a default");
        }
        JJ_TRY(cmoei_jj_node_push(p, macro, param));
        if (p->now.kind != JJ_T_RPAREN) JJ_TRY(cmoei_jj_expect(p, JJ_T_COMMA));
    }
    return cmoei_jj_next(p);
}

static bool parse_macro_body(jj_parser *p, jj_node *n, const char *end)
{
    jj_node *outer = p->macro;
    const int32_t loops = p->loops;
    p->macro = n;
    p->loops = 0;
    JJ_TRY(parse_block(p, end, &n->b));
    p->macro = outer;
    p->loops = loops;
    return true;
}

static bool parse_macro(jj_parser *p, jj_node *n)
{
    n->value = p->now.value;
    if (p->now.kind != JJ_T_NAME) return cmoei_jj_parse_error(p);
    JJ_TRY(cmoei_jj_symbol(p, n->value.u.string, &n->name) && cmoei_jj_next(p));
    return parse_signature(p, n) && parse_macro_body(p, n, "endmacro");
}

static bool parse_call_block(jj_parser *p, jj_node *n)
{
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_MACRO, &n->b));
    JJ_TRY(cmoei_jj_string_make(p->e, "caller", 6, &n->b->value));
    if (p->now.kind == JJ_T_LPAREN) JJ_TRY(parse_signature(p, n->b));
    JJ_TRY(cmoei_jj_parse_expression(p, true, &n->a));
    if (n->a->kind != JJ_N_CALL) return cmoei_jj_fail(p->e, "{%% call %%} wants a call");
    return parse_macro_body(p, n->b, "endcall");
}

static bool parse_filter_block(jj_parser *p, jj_node *n)
{
    jj_node *piped = NULL;
    JJ_TRY(cmoei_jj_node_make(p, JJ_N_PIPED, &piped) &&
           cmoei_jj_parse_filters(p, piped, true, &n->a));
    return parse_block(p, "endfilter", &n->b);
}

static bool parse_with(jj_parser *p, jj_node *n)
{
    jj_node *part = NULL;
    while (p->now.kind != JJ_T_BLOCK_END) {
        if (n->count) JJ_TRY(cmoei_jj_expect(p, JJ_T_COMMA));
        JJ_TRY(parse_target(p, false, false, &part) && cmoei_jj_node_push(p, n, part));
        JJ_TRY(cmoei_jj_expect(p, JJ_T_ASSIGN) && cmoei_jj_parse_expression(p, true, &part));
        JJ_TRY(cmoei_jj_node_push(p, n, part));
    }
    return parse_block(p, "endwith", &n->b);
}

static bool parse_generation(jj_parser *p, jj_node *n)
{
    return parse_block(p, "endgeneration", &n->b);
}

/* {% print a, b %}: one after the other. */
static bool parse_print(jj_parser *p, jj_node *n)
{
    jj_node *part = NULL;
    while (p->now.kind != JJ_T_BLOCK_END) {
        if (n->count) JJ_TRY(cmoei_jj_expect(p, JJ_T_COMMA));
        JJ_TRY(cmoei_jj_node_make(p, JJ_N_PRINT, &part) &&
               cmoei_jj_parse_expression(p, true, &part->a));
        JJ_TRY(cmoei_jj_node_push(p, n, part));
    }
    return true;
}

static bool parse_jump(jj_parser *p, jj_node *n)
{
    (void)n;
    return p->loops > 0 || cmoei_jj_fail(p->e, "break or continue outside of a loop");
}

typedef struct tag {
    const char *name;
    jj_node_kind kind;
    bool (*parse)(jj_parser *p, jj_node *n); /* NULL: refused */
} tag;

static const tag tags[] = {
    {"if", JJ_N_IF, parse_if},
    {"for", JJ_N_FOR, parse_for},
    {"break", JJ_N_BREAK, parse_jump},
    {"continue", JJ_N_CONTINUE, parse_jump},
    {"set", JJ_N_SET, parse_set},
    {"macro", JJ_N_MACRO, parse_macro},
    {"call", JJ_N_CALL_BLOCK, parse_call_block},
    {"filter", JJ_N_FILTER_BLOCK, parse_filter_block},
    {"with", JJ_N_WITH, parse_with},
    {"print", JJ_N_BODY, parse_print},
    {"generation", JJ_N_SCOPE, parse_generation},
    {"include", JJ_N_BODY, NULL},
    {"import", JJ_N_BODY, NULL},
    {"from", JJ_N_BODY, NULL},
    {"extends", JJ_N_BODY, NULL},
    {"block", JJ_N_BODY, NULL},
    {"autoescape", JJ_N_BODY, NULL},
    {"do", JJ_N_BODY, NULL},
    {"trans", JJ_N_BODY, NULL},
};

static bool parse_statement(jj_parser *p, jj_node **out)
{
    if (p->now.kind != JJ_T_NAME) return cmoei_jj_parse_error(p);
    const jj_string *name = p->now.value.u.string;
    const int bytes = (int)CMOEI_MIN(name->bytes, 60);
    for (int64_t i = 0; i < CMOEI_COUNT(tags); i++) {
        if (!cmoei_jj_equals_text(name, tags[i].name)) continue;
        if (!tags[i].parse)
            return cmoei_jj_fail(p->e, "{%% %.*s %%} is not supported", bytes, name->data);
        if (++p->e->depth > JJ_PARSE_DEPTH)
            return cmoei_jj_fail(p->e, "statements are nested more than %d deep", JJ_PARSE_DEPTH);
        JJ_TRY(cmoei_jj_node_make(p, tags[i].kind, out) && cmoei_jj_next(p) &&
               tags[i].parse(p, *out));
        p->e->depth--;
        return true;
    }
    return cmoei_jj_fail(p->e, "unknown tag {%% %.*s %%}", bytes, name->data);
}

bool cmoei_jj_parse(jj_parser *p, jj_node **out)
{
    static const char *const own[] = {"loop", "caller", "varargs", "kwargs"};
    jj_value name;
    int32_t symbol = 0;
    for (int i = 0; i < JJ_SYM_FIRST; i++) {
        JJ_TRY(cmoei_jj_string_make(p->e, own[i], (int64_t)strlen(own[i]), &name));
        JJ_TRY(cmoei_jj_symbol(p, name.u.string, &symbol));
    }
    return cmoei_jj_next(p) && cmoei_jj_next(p) && parse_body(p, NULL, out);
}
