/* SPDX-License-Identifier: MIT
 *
 * jinja.h - the template interpreter: what its parts know of each other.
 *
 *     source -> tokens (jinja_lex) -> tree (jinja_parse, jinja_expr) -> text (jinja_exec, jinja_eval)
 *
 * The language is Jinja as chat templates see it: trim_blocks, lstrip_blocks, break and continue,
 * immutable sandbox, autoescape off.  Values behave and print as in Python.  What exists beyond the
 * grammar stands in the tables of jinja_tables.c; everything else is refused by name.
 *
 * Memory is one arena an env: nothing is freed on the way, everything at the end.  Steps, depth,
 * output and memory are bounded, because templates come with models and models from anywhere.
 */
#ifndef CMOE_TEXT_JINJA_H
#define CMOE_TEXT_JINJA_H

#include "cmoe/text.h"
#include "core/core.h"

enum {
    JJ_PARSE_DEPTH = 150, /* nested expressions and statements */
    JJ_EVAL_DEPTH = 1500, /* nested evaluations, macros included */
    JJ_DATA_DEPTH = 500,  /* lists in lists */
    JJ_PARAMS = 5,        /* most parameters of a builtin */
    JJ_WORK = 256         /* bytes or elements looked at that count as one step */
};

typedef struct jj_buffer jj_buffer;
typedef struct jj_chunk jj_chunk;

/* ---- values ---------------------------------------------------------------------------------- */

typedef enum jj_kind {
    JJ_MISSING, /* an argument that was not given; never seen by a template */
    JJ_UNDEFINED,
    JJ_NONE,
    JJ_BOOL,
    JJ_INT,
    JJ_FLOAT,
    JJ_STRING,
    JJ_LIST,
    JJ_TUPLE,
    JJ_RANGE,
    JJ_VIEW,     /* dict.keys(), .values(), .items() */
    JJ_ITERATOR, /* what map, select, reverse, ... give: can be walked once */
    JJ_DICT,
    JJ_NAMESPACE,
    JJ_MACRO,
    JJ_LOOP,
    JJ_FUNCTION,
    JJ_METHOD /* of a value: "x".strip */
} jj_kind;

/* UTF-8, never changed once made.  `buffer` lets the next `a + b` append in place. */
typedef struct jj_string {
    const char *data; /* [bytes], no terminator */
    int64_t bytes, chars;
    jj_buffer *buffer; /* NULL: none */
    bool markup;       /* what `safe` and `escape` make: + escapes the other side */
} jj_string;

typedef struct jj_value {
    jj_kind kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        const jj_string *string;
        struct jj_list *list; /* list, tuple, range, view, iterator */
        struct jj_dict *dict; /* dict, namespace */
        const struct jj_hint *hint;
        const struct jj_macro *macro;
        struct jj_loop *loop;
        const struct jj_builtin *function;
        const struct jj_method *method;
    } u;
} jj_value;

typedef struct jj_list {
    jj_value *items; /* [n] */
    int64_t n, capacity;
    int64_t next;        /* iterator: first item not walked yet */
    int64_t start, step; /* range */
    const char *type;    /* view, iterator: its name in Python */
} jj_list;

typedef struct jj_pair {
    jj_value key, value;
    uint64_t hash;
} jj_pair;

/* In order of insertion, found through `index` (open addressing, positions + 1; 0: free). */
typedef struct jj_dict {
    jj_pair *pairs; /* [n] */
    int64_t n, capacity, slots;
    int32_t *index; /* [slots], a power of two; NULL while there are few */
} jj_dict;

/* Why a value is undefined, for the text of whoever uses it. */
typedef struct jj_hint {
    const char *object;    /* type of what was asked; NULL: a variable; "": `text` says it all */
    const jj_string *name; /* what was asked for */
    bool element;          /* by a key that is no string */
} jj_hint;

typedef struct jj_macro {
    const struct jj_node *node;
    struct jj_scope *scope; /* where it was defined */
} jj_macro;

typedef struct jj_method {
    const struct jj_builtin *what;
    jj_value self;
} jj_method;

/* ---- tree ------------------------------------------------------------------------------------ */

/* Which fields a node uses stands beside its kind; `list` has `count` nodes. */
typedef enum jj_node_kind {
    /* expressions */
    JJ_N_CONST,    /* value */
    JJ_N_NAME,     /* name */
    JJ_N_PIPED,    /* what a filter block or a set block captured */
    JJ_N_ATTR,     /* a . value */
    JJ_N_ITEM,     /* a [b] */
    JJ_N_SLICE,    /* a [list[0] : list[1] : list[2]], each may be NULL */
    JJ_N_CALL,     /* a (list): positional, then KEYWORD */
    JJ_N_KEYWORD,  /* value = a */
    JJ_N_FILTER,   /* a | what (list) */
    JJ_N_TEST,     /* a is what (list) */
    JJ_N_NEGATE,   /* - a */
    JJ_N_POSITIVE, /* + a */
    JJ_N_NOT,      /* not a */
    JJ_N_BINARY,   /* a op b */
    JJ_N_AND,      /* a and b */
    JJ_N_OR,       /* a or b */
    JJ_N_CONCAT,   /* list joined by ~ */
    JJ_N_COMPARE,  /* a, then list of OPERAND: op a */
    JJ_N_OPERAND,
    JJ_N_COND,  /* b if a else c; c may be NULL */
    JJ_N_LIST,  /* list */
    JJ_N_TUPLE, /* list; also a target */
    JJ_N_DICT,  /* list: key, value, key, value, ... */
    /* statements */
    JJ_N_BODY,  /* list */
    JJ_N_TEXT,  /* value */
    JJ_N_PRINT, /* a */
    JJ_N_IF,    /* list: condition, body, condition, body, ...; c: else or NULL */
    JJ_N_FOR, /* a target, b iterable, c condition or NULL; list: body, else or NULL; op: recursive */
    JJ_N_SET,       /* a target = b */
    JJ_N_SET_BLOCK, /* a target, b body, c filters over PIPED or NULL */
    JJ_N_NS_ATTR,   /* target: name . value */
    JJ_N_MACRO, /* name, value: as text; list of parameters: NAME with a: default or NULL; b body;
                       op: JJ_MACRO_ bits */
    JJ_N_CALL_BLOCK,   /* a: CALL; b: MACRO that becomes `caller` */
    JJ_N_FILTER_BLOCK, /* a: filters over PIPED; b body */
    JJ_N_WITH,         /* list: target, value, target, value, ...; b body */
    JJ_N_SCOPE,        /* b: body in a scope of its own, as {% generation %} */
    JJ_N_BREAK,
    JJ_N_CONTINUE
} jj_node_kind;

enum { JJ_MACRO_VARARGS = 1, JJ_MACRO_KWARGS = 2, JJ_MACRO_CALLER = 4 };

typedef struct jj_node {
    jj_node_kind kind;
    int32_t op, line, name, count;
    struct jj_node *a, *b, *c;
    struct jj_node **list; /* [count] */
    const struct jj_builtin *what;
    jj_value value;
} jj_node;

/* Names that the interpreter itself binds; the first symbols of every template. */
enum { JJ_SYM_LOOP, JJ_SYM_CALLER, JJ_SYM_VARARGS, JJ_SYM_KWARGS, JJ_SYM_FIRST };

/* ---- running --------------------------------------------------------------------------------- */

typedef struct jj_var {
    int32_t name;
    jj_value value;
} jj_var;

typedef struct jj_scope {
    struct jj_scope *parent;
    int32_t n, capacity;
    jj_var *vars; /* [n] */
} jj_scope;

typedef struct jj_loop {
    const jj_node *node;
    jj_scope *outer;        /* where the statement stands */
    jj_list *source;        /* what is walked */
    int64_t at;             /* next of it */
    const jj_node *test;    /* condition still to be asked, or NULL */
    int64_t index0, length; /* length -1: not asked for yet */
    int64_t depth0;
    jj_value before, current, after; /* after: MISSING unless it was looked at already */
    jj_value changed;                /* what loop.changed saw last */
} jj_loop;

/* What parsing and rendering share: where errors and memory go. */
typedef struct jj_env {
    cmoe_ctx *ctx;
    cmoe_error *err;
    cmoe_status status;
    const char *name; /* of the template */
    int32_t line;
    int32_t depth;      /* of the parser, or of evaluation */
    int32_t data_depth; /* of lists being walked */
    jj_chunk *chunks;
    int64_t memory, memory_limit;
    int64_t steps, steps_limit;
    char *out; /* [out_bytes of out_capacity]; captured text is cut off its end */
    int64_t out_bytes, out_capacity, out_limit;
    const jj_string *const *symbols; /* [n_symbols] */
    int32_t n_symbols;
    jj_value *globals; /* [n_symbols] */
    jj_scope *scope;
    jj_value piped;
    int64_t now;
} jj_env;

#define JJ_TRY(call)               \
    do {                           \
        if (!(call)) return false; \
    } while (0)

/* ---- builtins -------------------------------------------------------------------------------- */

typedef struct jj_named {
    const jj_string *name;
    jj_value value;
} jj_named;

typedef struct jj_args {
    jj_value *at; /* [n] */
    int32_t n, n_named;
    jj_named *named; /* [n_named] */
} jj_args;

/* A call after its arguments found their parameters. */
typedef struct jj_call {
    jj_value self;         /* what stands left of | or . or is */
    jj_value v[JJ_PARAMS]; /* in order of the row's parameters; MISSING: not given */
    const jj_args *args;   /* as they came, for rows with "*" */
    const struct jj_builtin *what;
} jj_call;

/* `params`: names in order; those after "|" may be left out; "*": anything, `args` has it.
 * `run` NULL: known in Python, and refused here. */
typedef struct jj_builtin {
    const char *name, *params;
    bool (*run)(jj_env *e, const jj_call *c, jj_value *out);
    int32_t tag; /* for functions that share their code */
} jj_builtin;

const jj_builtin *cmoei_jj_find_filter(const jj_string *name);
const jj_builtin *cmoei_jj_find_test(const jj_string *name);
const jj_builtin *cmoei_jj_find_function(const jj_string *name);
/* Also finds rows that are refused; NULL when the type has no such attribute. */
const jj_builtin *cmoei_jj_find_method(jj_kind kind, const jj_string *name);
bool cmoei_jj_run_builtin(jj_env *e, const jj_builtin *what, const char *sort, jj_value self,
                          const jj_args *args, jj_value *out);
bool cmoei_jj_method_unsafe(jj_env *e, const jj_call *c,
                            jj_value *out); /* marks what changes a value */

/* ---- jinja_env.c: errors, memory, limits, text under construction ----------------------------- */

bool cmoei_jj_fail(jj_env *e, const char *format, ...) CMOEI_PRINTF(2, 3); /* always false */
bool cmoei_jj_fail_undefined(jj_env *e, jj_value v);
void *cmoei_jj_take(jj_env *e, int64_t n, int64_t size); /* zeroed; NULL: failed, and said so */
bool cmoei_jj_work(jj_env *e, int64_t n);                /* n bytes or elements were looked at */
bool cmoei_jj_step(jj_env *e);
bool cmoei_jj_deeper(jj_env *e); /* one list further in; cmoei_jj_shallower when done */
void cmoei_jj_shallower(jj_env *e);
void cmoei_jj_env_close(jj_env *e); /* gives everything back */

/* Everything that makes text appends to `out`; who wants it as a string cuts it off again. */
bool cmoei_jj_put(jj_env *e, const char *data, int64_t bytes);
bool cmoei_jj_put_text(jj_env *e, const char *text);
bool cmoei_jj_put_char(jj_env *e, int32_t c, int64_t times);
bool cmoei_jj_cut(jj_env *e, int64_t mark,
                  jj_value *out); /* what was put since out_bytes was mark */

/* ---- jinja_value.c: making values ------------------------------------------------------------- */

jj_value cmoei_jj_none(void);
jj_value cmoei_jj_bool(bool b);
jj_value cmoei_jj_int(int64_t i);
jj_value cmoei_jj_float(double d);
bool cmoei_jj_string_make(jj_env *e, const char *data, int64_t bytes, jj_value *out); /* copies */
bool cmoei_jj_string_share(jj_env *e, const jj_string *s, int64_t from, int64_t to, jj_value *out);
bool cmoei_jj_string_add(jj_env *e, const jj_string *a, const jj_string *b, jj_value *out);
bool cmoei_jj_string_markup(jj_env *e, const jj_string *s, bool markup, jj_value *out);
bool cmoei_jj_list_make(jj_env *e, jj_kind kind, int64_t capacity, jj_value *out);
bool cmoei_jj_list_push(jj_env *e, jj_list *l, jj_value v);
bool cmoei_jj_dict_make(jj_env *e, jj_kind kind, jj_value *out);
bool cmoei_jj_dict_set(jj_env *e, jj_dict *d, jj_value key, jj_value value);
/* *found NULL: not there.  Fails for a key that cannot be one. */
bool cmoei_jj_dict_find(jj_env *e, const jj_dict *d, jj_value key, jj_pair **found);
jj_pair *cmoei_jj_dict_find_name(jj_env *e, const jj_dict *d, const jj_string *name);
bool cmoei_jj_undefined(jj_env *e, const char *object, const jj_string *name, jj_value *out);
bool cmoei_jj_undefined_text(jj_env *e, const char *text, jj_value *out);
const char *cmoei_jj_type(jj_value v); /* as Python names it */
bool cmoei_jj_is_sequence(jj_value v); /* list, tuple, range, view, iterator: u.list is in use */
bool cmoei_jj_equals_text(const jj_string *s, const char *text);
/* From JSON text; what stands for errors. */
bool cmoei_jj_json(jj_env *e, const char *text, int64_t bytes, const char *what, jj_value *out);

/* ---- jinja_compare.c --------------------------------------------------------------------------- */

bool cmoei_jj_truth(jj_value v);
bool cmoei_jj_equal(jj_env *e, jj_value a, jj_value b, bool *out);
bool cmoei_jj_less(jj_env *e, jj_value a, jj_value b, const char *op,
                   int *order); /* -1 0 1 2: NaN */
bool cmoei_jj_contains(jj_env *e, jj_value item, jj_value in, bool *out);
bool cmoei_jj_hash(jj_env *e, jj_value v, uint64_t *out);
bool cmoei_jj_sort(jj_env *e, jj_value *items, const jj_value *keys, int64_t n, bool reverse);

/* ---- jinja_print.c ------------------------------------------------------------------------------ */

bool cmoei_jj_put_str(jj_env *e, jj_value v);
bool cmoei_jj_put_repr(jj_env *e, jj_value v);
void cmoei_jj_float_text(double d,
                         char text[40]); /* shortest that reads back, as Python writes it */
double cmoei_jj_float_read(const char *text,
                           int64_t bytes);             /* digits, point, exponent; checked before */
bool cmoei_jj_put_html(jj_env *e, const jj_string *s); /* with & < > " and ' escaped */
bool cmoei_jj_str(jj_env *e, jj_value v, const jj_string **out);

/* ---- jinja_operators.c, jinja_format.c --------------------------------------------------------- */

bool cmoei_jj_binary(jj_env *e, int32_t op, jj_value a, jj_value b,
                     jj_value *out); /* op: a token */
bool cmoei_jj_negate(jj_env *e, jj_node_kind sign, jj_value a, jj_value *out);
bool cmoei_jj_slice(jj_env *e, jj_value v, const jj_value part[3], jj_value *out);
/* Numbers and text in a width: spec as in %[flags][width][.precision]type. */
bool cmoei_jj_percent(jj_env *e, const jj_string *format, jj_value right, jj_value *out);
bool cmoei_jj_format_braces(jj_env *e, const jj_string *format, const jj_args *args, jj_value *out);

/* ---- jinja_unicode.c ------------------------------------------------------------------------------ */

int32_t cmoei_jj_utf8_next(const char *data, int64_t bytes, int64_t *at); /* valid text only */
int64_t cmoei_jj_utf8_offset(const jj_string *s, int64_t chars);
int64_t cmoei_jj_utf8_check(const char *data, int64_t bytes); /* -1: valid, else where it is not */
int64_t cmoei_jj_utf8_write(int32_t c, char text[4]);
bool cmoei_jj_is_space(int32_t c);
bool cmoei_jj_is_printable(int32_t c);
bool cmoei_jj_is_word(int32_t c); /* letter, digit, underscore */
enum { JJ_LOWER, JJ_UPPER, JJ_TITLE, JJ_CAPITALIZE, JJ_SWAP };
bool cmoei_jj_put_case(jj_env *e, const char *data, int64_t bytes, int32_t to);
enum {
    JJ_IS_ALPHA,
    JJ_IS_DIGIT,
    JJ_IS_DECIMAL,
    JJ_IS_NUMERIC,
    JJ_IS_ALNUM,
    JJ_IS_SPACE,
    JJ_IS_LOWER,
    JJ_IS_UPPER,
    JJ_IS_ASCII
};
bool cmoei_jj_is(const jj_string *s, int32_t what);

/* ---- jinja_attribute.c: . and [] --------------------------------------------------------------------- */

bool cmoei_jj_attribute(jj_env *e, jj_value v, const jj_string *name, jj_value *out);
bool cmoei_jj_item(jj_env *e, jj_value v, jj_value key, jj_value *out);
bool cmoei_jj_path(jj_env *e, jj_value v, jj_value path, jj_value *out); /* "a.b.0", or an index */
/* The items of anything that can be walked; an iterator is then at its end. */
bool cmoei_jj_items(jj_env *e, jj_value v, jj_list **out);
bool cmoei_jj_length(jj_env *e, jj_value v, int64_t *out);

/* ---- jinja_eval.c, jinja_exec.c, jinja_loop.c -------------------------------------------------------- */

bool cmoei_jj_eval(jj_env *e, const jj_node *n, jj_value *out);
bool cmoei_jj_call_value(jj_env *e, jj_value f, const jj_args *args, jj_value *out);
bool cmoei_jj_eval_call_block(jj_env *e, const jj_node *n, jj_value *out);
bool cmoei_jj_call_macro(jj_env *e, const jj_macro *m, const jj_args *args, jj_value *out);
typedef enum jj_flow { JJ_FAILED, JJ_NEXT, JJ_BREAK, JJ_CONTINUE } jj_flow;
jj_flow cmoei_jj_exec(jj_env *e, const jj_node *n);
bool cmoei_jj_scope_open(jj_env *e, jj_scope *parent, jj_scope **out);
bool cmoei_jj_scope_set(jj_env *e, jj_scope *s, int32_t name, jj_value v);
bool cmoei_jj_assign(jj_env *e, const jj_node *target, jj_value v);
jj_flow cmoei_jj_exec_for(jj_env *e, const jj_node *n);
bool cmoei_jj_loop_attribute(jj_env *e, jj_loop *l, const jj_string *name, jj_value *out);
bool cmoei_jj_loop_again(jj_env *e, const jj_loop *l, const jj_args *args, jj_value *out);

/* ---- jinja_lex.c, jinja_parse.c, jinja_expr.c --------------------------------------------------------- */

typedef enum jj_token_kind {
    JJ_T_END,
    JJ_T_DATA,
    JJ_T_PRINT_BEGIN,
    JJ_T_PRINT_END,
    JJ_T_BLOCK_BEGIN,
    JJ_T_BLOCK_END,
    JJ_T_NAME,
    JJ_T_STRING,
    JJ_T_INT,
    JJ_T_FLOAT,
    JJ_T_ADD,
    JJ_T_SUB,
    JJ_T_MUL,
    JJ_T_DIV,
    JJ_T_FLOORDIV,
    JJ_T_MOD,
    JJ_T_POW,
    JJ_T_TILDE,
    JJ_T_EQ,
    JJ_T_NE,
    JJ_T_LT,
    JJ_T_LE,
    JJ_T_GT,
    JJ_T_GE,
    JJ_T_ASSIGN,
    JJ_T_DOT,
    JJ_T_COMMA,
    JJ_T_COLON,
    JJ_T_PIPE,
    JJ_T_SEMICOLON,
    JJ_T_LPAREN,
    JJ_T_RPAREN,
    JJ_T_LBRACKET,
    JJ_T_RBRACKET,
    JJ_T_LBRACE,
    JJ_T_RBRACE,
    JJ_T_IN,
    JJ_T_NOT_IN /* operands of comparisons only */
} jj_token_kind;

typedef struct jj_token {
    jj_token_kind kind;
    int32_t line;
    jj_value value; /* text of data, name, string; number */
} jj_token;

typedef struct jj_lexer {
    jj_env *e;
    const char *text; /* [bytes] newlines are \n only */
    int64_t bytes, at;
    int32_t line;
    enum { JJ_IN_TEXT, JJ_IN_PRINT, JJ_IN_BLOCK } state;
    jj_token_kind tag; /* begin of the tag that follows the data just given; JJ_T_END: none */
    bool line_start;   /* what was read last ended a line */
    char open[JJ_PARSE_DEPTH]; /* closing brackets to come */
    int32_t n_open;
} jj_lexer;

bool cmoei_jj_lex_open(jj_lexer *x, jj_env *e, const char *source, int64_t bytes);
bool cmoei_jj_lex(jj_lexer *x, jj_token *out);
const char *cmoei_jj_token_name(jj_token_kind kind);

typedef struct jj_parser {
    jj_env *e;
    jj_lexer lexer;
    jj_token now, then;        /* the token at hand and the one after it */
    const jj_string **symbols; /* [n_symbols] */
    int32_t n_symbols, symbols_capacity;
    jj_node *macro; /* the innermost one that is open, or NULL */
    int32_t loops;  /* open inside of it */
} jj_parser;

bool cmoei_jj_parse(jj_parser *p, jj_node **out);
bool cmoei_jj_next(jj_parser *p);
bool cmoei_jj_expect(jj_parser *p, jj_token_kind kind);
bool cmoei_jj_is_name(const jj_parser *p, const char *name);
bool cmoei_jj_parse_error(jj_parser *p); /* "unexpected ..." of the token at hand */
bool cmoei_jj_node_make(jj_parser *p, jj_node_kind kind, jj_node **out);
bool cmoei_jj_node_push(jj_parser *p, jj_node *n, jj_node *child);
bool cmoei_jj_symbol(jj_parser *p, const jj_string *name, int32_t *out);
bool cmoei_jj_parse_expression(jj_parser *p, bool with_condition, jj_node **out);
/* Expressions between commas; a tuple when there is a comma.  `end`: a name that ends it. */
bool cmoei_jj_parse_tuple(jj_parser *p, bool with_condition, const char *end, jj_node **out);
bool cmoei_jj_parse_primary(jj_parser *p, jj_node **out);
bool cmoei_jj_parse_unary(jj_parser *p, bool with_filter, jj_node **out);
bool cmoei_jj_parse_filters(jj_parser *p, jj_node *base, bool first_bare, jj_node **out);

#endif
