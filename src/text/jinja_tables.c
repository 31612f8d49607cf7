/* SPDX-License-Identifier: MIT
 *
 * jinja_tables.c - everything a template can call, and how arguments find their parameters.
 *
 * A name that stands nowhere here does not exist; one with NULL exists in Python or Jinja and is
 * refused by name.  Parameters behind "|" may be left out; "*" takes anything.
 */
#include "text/jinja_builtins.h"

#include <string.h>

static const jj_builtin filters[] = {
    {"abs", "", cmoei_jj_f_abs, 0},
    {"attr", "name", cmoei_jj_f_attr, 0},
    {"batch", "linecount | fill_with", cmoei_jj_f_batch, 0},
    {"capitalize", "", cmoei_jj_f_case, JJ_CAPITALIZE},
    {"center", "| width", cmoei_jj_f_center, 0},
    {"count", "", cmoei_jj_f_length, 0},
    {"d", "| default_value boolean", cmoei_jj_f_default, 0},
    {"default", "| default_value boolean", cmoei_jj_f_default, 0},
    {"dictsort", "| case_sensitive by reverse", cmoei_jj_f_dictsort, 0},
    {"e", "", cmoei_jj_f_escape, 0},
    {"escape", "", cmoei_jj_f_escape, 0},
    {"filesizeformat", "*", NULL, 0},
    {"first", "", cmoei_jj_f_first, 0},
    {"float", "| default", cmoei_jj_f_float, 0},
    {"forceescape", "", cmoei_jj_f_escape, 1},
    {"format", "*", cmoei_jj_f_format, 0},
    {"from_json", "", cmoei_jj_f_from_json, 0},
    {"groupby", "*", NULL, 0},
    {"indent", "| width first blank", cmoei_jj_f_indent, 0},
    {"int", "| default base", cmoei_jj_f_int, 0},
    {"items", "", cmoei_jj_f_items, 0},
    {"join", "| d attribute", cmoei_jj_f_join, 0},
    {"last", "", cmoei_jj_f_last, 0},
    {"length", "", cmoei_jj_f_length, 0},
    {"list", "", cmoei_jj_f_list, 0},
    {"lower", "", cmoei_jj_f_case, JJ_LOWER},
    {"map", "*", cmoei_jj_f_map, 0},
    {"max", "| case_sensitive attribute", cmoei_jj_f_extreme, 1},
    {"min", "| case_sensitive attribute", cmoei_jj_f_extreme, -1},
    {"pprint", "*", NULL, 0},
    {"random", "*", NULL, 0},
    {"reject", "*", cmoei_jj_f_select, 0},
    {"rejectattr", "*", cmoei_jj_f_select, 2},
    {"replace", "old new | count", cmoei_jj_f_replace, 0},
    {"reverse", "", cmoei_jj_f_reverse, 0},
    {"round", "| precision method", cmoei_jj_f_round, 0},
    {"safe", "", cmoei_jj_f_safe, 0},
    {"select", "*", cmoei_jj_f_select, 1},
    {"selectattr", "*", cmoei_jj_f_select, 3},
    {"slice", "slices | fill_with", cmoei_jj_f_slice, 0},
    {"sort", "| reverse case_sensitive attribute", cmoei_jj_f_sort, 0},
    {"string", "", cmoei_jj_f_string, 0},
    {"striptags", "*", NULL, 0},
    {"sum", "| attribute start", cmoei_jj_f_sum, 0},
    {"title", "", cmoei_jj_f_title, 0},
    {"tojson", "| ensure_ascii indent separators sort_keys", cmoei_jj_f_tojson, 0},
    {"trim", "| chars", cmoei_jj_f_trim, 0},
    {"truncate", "| length killwords end leeway", cmoei_jj_f_truncate, 0},
    {"unique", "| case_sensitive attribute", cmoei_jj_f_unique, 0},
    {"upper", "", cmoei_jj_f_case, JJ_UPPER},
    {"urlencode", "*", NULL, 0},
    {"urlize", "*", NULL, 0},
    {"wordcount", "", cmoei_jj_f_wordcount, 0},
    {"wordwrap", "*", NULL, 0},
    {"xmlattr", "*", NULL, 0},
};

static const jj_builtin tests[] = {
    {"defined", "", cmoei_jj_t_kind, JJ_T_DEFINED},
    {"undefined", "", cmoei_jj_t_kind, JJ_T_UNDEFINED_},
    {"none", "", cmoei_jj_t_kind, JJ_T_NONE},
    {"boolean", "", cmoei_jj_t_kind, JJ_T_BOOLEAN},
    {"true", "", cmoei_jj_t_kind, JJ_T_TRUE},
    {"false", "", cmoei_jj_t_kind, JJ_T_FALSE},
    {"integer", "", cmoei_jj_t_kind, JJ_T_INTEGER},
    {"float", "", cmoei_jj_t_kind, JJ_T_FLOAT_},
    {"number", "", cmoei_jj_t_kind, JJ_T_NUMBER},
    {"string", "", cmoei_jj_t_kind, JJ_T_STRING_},
    {"mapping", "", cmoei_jj_t_kind, JJ_T_MAPPING},
    {"iterable", "", cmoei_jj_t_kind, JJ_T_ITERABLE},
    {"sequence", "", cmoei_jj_t_kind, JJ_T_SEQUENCE},
    {"callable", "", cmoei_jj_t_kind, JJ_T_CALLABLE},
    {"escaped", "", cmoei_jj_t_kind, JJ_T_ESCAPED},
    {"odd", "", cmoei_jj_t_number, 1},
    {"even", "", cmoei_jj_t_number, 0},
    {"divisibleby", "num", cmoei_jj_t_divisible, 0},
    {"lower", "", cmoei_jj_t_case, JJ_IS_LOWER},
    {"upper", "", cmoei_jj_t_case, JJ_IS_UPPER},
    {"filter", "", cmoei_jj_t_known, 0},
    {"test", "", cmoei_jj_t_known, 1},
    {"sameas", "other", cmoei_jj_t_same, 0},
    {"in", "seq", cmoei_jj_t_in, 0},
    {"==", "other", cmoei_jj_t_compare, JJ_T_EQ},
    {"eq", "other", cmoei_jj_t_compare, JJ_T_EQ},
    {"equalto", "other", cmoei_jj_t_compare, JJ_T_EQ},
    {"!=", "other", cmoei_jj_t_compare, JJ_T_NE},
    {"ne", "other", cmoei_jj_t_compare, JJ_T_NE},
    {">", "other", cmoei_jj_t_compare, JJ_T_GT},
    {"gt", "other", cmoei_jj_t_compare, JJ_T_GT},
    {"greaterthan", "other", cmoei_jj_t_compare, JJ_T_GT},
    {">=", "other", cmoei_jj_t_compare, JJ_T_GE},
    {"ge", "other", cmoei_jj_t_compare, JJ_T_GE},
    {"<", "other", cmoei_jj_t_compare, JJ_T_LT},
    {"lt", "other", cmoei_jj_t_compare, JJ_T_LT},
    {"lessthan", "other", cmoei_jj_t_compare, JJ_T_LT},
    {"<=", "other", cmoei_jj_t_compare, JJ_T_LE},
    {"le", "other", cmoei_jj_t_compare, JJ_T_LE},
};

static const jj_builtin functions[] = {
    {"range", "start | stop step", cmoei_jj_g_range, 0},
    {"dict", "*", cmoei_jj_g_dict, 0},
    {"namespace", "*", cmoei_jj_g_namespace, 0},
    {"raise_exception", "message", cmoei_jj_g_raise, 0},
    {"strftime_now", "format", cmoei_jj_g_strftime, 0},
    {"cycler", "*", NULL, 0},
    {"joiner", "*", NULL, 0},
    {"lipsum", "*", NULL, 0},
};

static const jj_builtin string_methods[] = {
    {"capitalize", "", cmoei_jj_m_case, JJ_CAPITALIZE},
    {"casefold", "", NULL, 0},
    {"center", "width | fillchar", cmoei_jj_m_justify, JJ_BOTH},
    {"count", "sub | start end", cmoei_jj_m_count, 0},
    {"encode", "*", NULL, 0},
    {"endswith", "suffix | start end", cmoei_jj_m_affix, JJ_RIGHT},
    {"expandtabs", "*", NULL, 0},
    {"find", "sub | start end", cmoei_jj_m_find, JJ_LEFT},
    {"format", "*", cmoei_jj_m_format, 0},
    {"format_map", "*", NULL, 0},
    {"index", "sub | start end", cmoei_jj_m_find, JJ_LEFT | JJ_OR_FAIL},
    {"isalnum", "", cmoei_jj_m_is, JJ_IS_ALNUM},
    {"isalpha", "", cmoei_jj_m_is, JJ_IS_ALPHA},
    {"isascii", "", cmoei_jj_m_is, JJ_IS_ASCII},
    {"isdecimal", "", cmoei_jj_m_is, JJ_IS_DECIMAL},
    {"isdigit", "", cmoei_jj_m_is, JJ_IS_DIGIT},
    {"isidentifier", "*", NULL, 0},
    {"islower", "", cmoei_jj_m_is, JJ_IS_LOWER},
    {"isnumeric", "", cmoei_jj_m_is, JJ_IS_NUMERIC},
    {"isprintable", "*", NULL, 0},
    {"isspace", "", cmoei_jj_m_is, JJ_IS_SPACE},
    {"istitle", "*", NULL, 0},
    {"isupper", "", cmoei_jj_m_is, JJ_IS_UPPER},
    {"join", "iterable", cmoei_jj_m_join, 0},
    {"ljust", "width | fillchar", cmoei_jj_m_justify, JJ_RIGHT},
    {"lower", "", cmoei_jj_m_case, JJ_LOWER},
    {"lstrip", "| chars", cmoei_jj_m_strip, JJ_LEFT},
    {"maketrans", "*", NULL, 0},
    {"partition", "sep", cmoei_jj_m_partition, JJ_LEFT},
    {"removeprefix", "prefix", cmoei_jj_m_remove_affix, JJ_LEFT},
    {"removesuffix", "suffix", cmoei_jj_m_remove_affix, JJ_RIGHT},
    {"replace", "old new | count", cmoei_jj_m_replace, 0},
    {"rfind", "sub | start end", cmoei_jj_m_find, JJ_RIGHT},
    {"rindex", "sub | start end", cmoei_jj_m_find, JJ_RIGHT | JJ_OR_FAIL},
    {"rjust", "width | fillchar", cmoei_jj_m_justify, JJ_LEFT},
    {"rpartition", "sep", cmoei_jj_m_partition, JJ_RIGHT},
    {"rsplit", "| sep maxsplit", cmoei_jj_m_split, JJ_RIGHT},
    {"rstrip", "| chars", cmoei_jj_m_strip, JJ_RIGHT},
    {"split", "| sep maxsplit", cmoei_jj_m_split, JJ_LEFT},
    {"splitlines", "| keepends", cmoei_jj_m_splitlines, 0},
    {"startswith", "prefix | start end", cmoei_jj_m_affix, JJ_LEFT},
    {"strip", "| chars", cmoei_jj_m_strip, JJ_BOTH},
    {"swapcase", "", cmoei_jj_m_case, JJ_SWAP},
    {"title", "", cmoei_jj_m_case, JJ_TITLE},
    {"translate", "*", NULL, 0},
    {"upper", "", cmoei_jj_m_case, JJ_UPPER},
    {"zfill", "width", cmoei_jj_m_zfill, 0},
};

static const jj_builtin dict_methods[] = {
    {"clear", "*", cmoei_jj_method_unsafe, 0},
    {"copy", "", cmoei_jj_m_copy, 0},
    {"fromkeys", "*", NULL, 0},
    {"get", "key | default", cmoei_jj_m_get, 0},
    {"items", "", cmoei_jj_m_dict, 'i'},
    {"keys", "", cmoei_jj_m_dict, 'k'},
    {"pop", "*", cmoei_jj_method_unsafe, 0},
    {"popitem", "*", cmoei_jj_method_unsafe, 0},
    {"setdefault", "*", cmoei_jj_method_unsafe, 0},
    {"update", "*", cmoei_jj_method_unsafe, 0},
    {"values", "", cmoei_jj_m_dict, 'v'},
};

static const jj_builtin list_methods[] = {
    {"append", "*", cmoei_jj_method_unsafe, 0}, {"clear", "*", cmoei_jj_method_unsafe, 0},
    {"copy", "", cmoei_jj_m_copy, 0},           {"count", "value", cmoei_jj_m_list_count, 0},
    {"extend", "*", cmoei_jj_method_unsafe, 0}, {"index", "value", cmoei_jj_m_list_index, 0},
    {"insert", "*", cmoei_jj_method_unsafe, 0}, {"pop", "*", cmoei_jj_method_unsafe, 0},
    {"remove", "*", cmoei_jj_method_unsafe, 0}, {"reverse", "*", cmoei_jj_method_unsafe, 0},
    {"sort", "*", cmoei_jj_method_unsafe, 0},
};

static const jj_builtin tuple_methods[] = {
    {"count", "value", cmoei_jj_m_list_count, 0},
    {"index", "value", cmoei_jj_m_list_index, 0},
};

static const jj_builtin loop_methods[] = {
    {"cycle", "*", cmoei_jj_g_cycle, 0},
    {"changed", "*", cmoei_jj_g_changed, 0},
};

static const jj_builtin number_methods[] = {
    {"as_integer_ratio", "*", NULL, 0}, {"bit_count", "*", NULL, 0},   {"bit_length", "*", NULL, 0},
    {"conjugate", "*", NULL, 0},        {"hex", "*", NULL, 0},         {"imag", "*", NULL, 0},
    {"is_integer", "*", NULL, 0},       {"numerator", "*", NULL, 0},   {"real", "*", NULL, 0},
    {"to_bytes", "*", NULL, 0},         {"denominator", "*", NULL, 0},
};

/* ---- finding --------------------------------------------------------------------------------- */

static const jj_builtin *find(const jj_builtin *rows, int64_t n, const jj_string *name)
{
    for (int64_t i = 0; i < n; i++)
        if (cmoei_jj_equals_text(name, rows[i].name)) return rows + i;
    return NULL;
}

const jj_builtin *cmoei_jj_find_filter(const jj_string *name)
{
    return find(filters, CMOEI_COUNT(filters), name);
}

const jj_builtin *cmoei_jj_find_test(const jj_string *name)
{
    return find(tests, CMOEI_COUNT(tests), name);
}

const jj_builtin *cmoei_jj_find_function(const jj_string *name)
{
    return find(functions, CMOEI_COUNT(functions), name);
}

const jj_builtin *cmoei_jj_find_method(jj_kind kind, const jj_string *name)
{
    switch (kind) {
    case JJ_STRING:
        return find(string_methods, CMOEI_COUNT(string_methods), name);
    case JJ_DICT:
        return find(dict_methods, CMOEI_COUNT(dict_methods), name);
    case JJ_LIST:
        return find(list_methods, CMOEI_COUNT(list_methods), name);
    case JJ_TUPLE:
    case JJ_RANGE:
        return find(tuple_methods, CMOEI_COUNT(tuple_methods), name);
    case JJ_LOOP:
        return find(loop_methods, CMOEI_COUNT(loop_methods), name);
    case JJ_BOOL:
    case JJ_INT:
    case JJ_FLOAT:
        return find(number_methods, CMOEI_COUNT(number_methods), name);
    default:
        return NULL;
    }
}

/* Marks what changes a value; jinja_attribute.c never lets it be called. */
bool cmoei_jj_method_unsafe(jj_env *e, const jj_call *c, jj_value *out)
{
    (void)out;
    return cmoei_jj_fail(e, "'%s' is unsafe", c->what->name);
}

/* ---- calling --------------------------------------------------------------------------------- */

/* The next word of a row's parameters; NULL at the end. */
static const char *next_param(const char **at, int64_t *bytes, bool *optional)
{
    const char *s = *at + strspn(*at, " ");
    if (*s == '|') {
        *optional = true;
        s += 1 + strspn(s + 1, " ");
    }
    *bytes = (int64_t)strcspn(s, " ");
    *at = s + *bytes;
    return *bytes ? s : NULL;
}

static bool bind(jj_env *e, const jj_args *args, const char *sort, jj_call *c)
{
    const char *at = c->what->params, *name = NULL;
    int64_t bytes = 0;
    bool optional = false;
    int32_t i = 0, used = 0;
    for (; (name = next_param(&at, &bytes, &optional)) && i < JJ_PARAMS; i++) {
        if (i < args->n) c->v[i] = args->at[i];
        for (int32_t k = 0; k < args->n_named; k++) {
            const jj_string *s = args->named[k].name;
            if (s->bytes != bytes || memcmp(s->data, name, (size_t)bytes) != 0) continue;
            if (i < args->n)
                return cmoei_jj_fail(e, "%s '%s' got two values for '%.*s'", sort, c->what->name,
                                     (int)bytes, name);
            c->v[i] = args->named[k].value;
            used++;
        }
        if (c->v[i].kind == JJ_MISSING && !optional)
            return cmoei_jj_fail(e, "%s '%s' wants an argument '%.*s'", sort, c->what->name,
                                 (int)bytes, name);
    }
    if (args->n > i)
        return cmoei_jj_fail(e, "%s '%s' takes at most %d arguments (%d given)", sort,
                             c->what->name, i, args->n);
    if (args->n_named > used)
        return cmoei_jj_fail(e, "%s '%s' does not have all of these keyword arguments: %.*s%s",
                             sort, c->what->name, (int)CMOEI_MIN(args->named[0].name->bytes, 60),
                             args->named[0].name->data, args->n_named > 1 ? ", ..." : "");
    return true;
}

bool cmoei_jj_run_builtin(jj_env *e, const jj_builtin *what, const char *sort, jj_value self,
                          const jj_args *args, jj_value *out)
{
    jj_call c = {.self = self, .args = args, .what = what};
    if (*what->params != '*') JJ_TRY(bind(e, args, sort, &c));
    return what->run(e, &c, out);
}

bool cmoei_jj_arg_int(jj_env *e, const jj_call *c, int i, int64_t fallback, int64_t *out)
{
    const jj_value v = c->v[i];
    *out = fallback;
    if (v.kind == JJ_MISSING || v.kind == JJ_NONE) return true;
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    if (v.kind != JJ_INT && v.kind != JJ_BOOL)
        return cmoei_jj_fail(e, "'%s' wants an integer, not '%s'", c->what->name, cmoei_jj_type(v));
    *out = v.kind == JJ_INT ? v.u.integer : v.u.truth;
    return true;
}

bool cmoei_jj_arg_string(jj_env *e, const jj_call *c, int i, const jj_string **out)
{
    const jj_value v = c->v[i];
    *out = NULL;
    if (v.kind == JJ_MISSING || v.kind == JJ_NONE) return true;
    if (v.kind == JJ_UNDEFINED) return cmoei_jj_fail_undefined(e, v);
    if (v.kind != JJ_STRING)
        return cmoei_jj_fail(e, "'%s' wants a string, not '%s'", c->what->name, cmoei_jj_type(v));
    *out = v.u.string;
    return true;
}

bool cmoei_jj_self_string(jj_env *e, const jj_call *c, const jj_string **out)
{
    return cmoei_jj_str(e, c->self, out);
}
