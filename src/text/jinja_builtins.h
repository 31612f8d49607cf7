/* SPDX-License-Identifier: MIT
 *
 * jinja_builtins.h - the functions behind the tables of jinja_tables.c, and what they share.
 */
#ifndef CMOE_TEXT_JINJA_BUILTINS_H
#define CMOE_TEXT_JINJA_BUILTINS_H

#include "text/jinja.h"

typedef bool jj_builtin_fn(jj_env *e, const jj_call *c, jj_value *out);

/* jinja_filters.c: single values */
jj_builtin_fn cmoei_jj_f_abs, cmoei_jj_f_attr, cmoei_jj_f_case, cmoei_jj_f_title,
    cmoei_jj_f_default, cmoei_jj_f_escape, cmoei_jj_f_float, cmoei_jj_f_format, cmoei_jj_f_indent,
    cmoei_jj_f_int, cmoei_jj_f_length, cmoei_jj_f_replace, cmoei_jj_f_round, cmoei_jj_f_safe,
    cmoei_jj_f_string, cmoei_jj_f_trim, cmoei_jj_f_truncate, cmoei_jj_f_wordcount,
    cmoei_jj_f_center;
/* jinja_sequences.c: lists and dicts */
jj_builtin_fn cmoei_jj_f_batch, cmoei_jj_f_dictsort, cmoei_jj_f_first, cmoei_jj_f_items,
    cmoei_jj_f_join, cmoei_jj_f_last, cmoei_jj_f_list, cmoei_jj_f_map, cmoei_jj_f_extreme,
    cmoei_jj_f_select, cmoei_jj_f_reverse, cmoei_jj_f_slice, cmoei_jj_f_sort, cmoei_jj_f_sum,
    cmoei_jj_f_unique;
/* jinja_json.c */
jj_builtin_fn cmoei_jj_f_tojson, cmoei_jj_f_from_json;
/* jinja_tests.c */
jj_builtin_fn cmoei_jj_t_kind, cmoei_jj_t_number, cmoei_jj_t_compare, cmoei_jj_t_in,
    cmoei_jj_t_divisible, cmoei_jj_t_case, cmoei_jj_t_known, cmoei_jj_t_same;
enum {
    JJ_T_DEFINED,
    JJ_T_UNDEFINED_,
    JJ_T_NONE,
    JJ_T_BOOLEAN,
    JJ_T_TRUE,
    JJ_T_FALSE,
    JJ_T_INTEGER,
    JJ_T_FLOAT_,
    JJ_T_NUMBER,
    JJ_T_STRING_,
    JJ_T_MAPPING,
    JJ_T_ITERABLE,
    JJ_T_SEQUENCE,
    JJ_T_CALLABLE,
    JJ_T_ESCAPED
};
/* jinja_methods.c */
jj_builtin_fn cmoei_jj_m_affix, cmoei_jj_m_case, cmoei_jj_m_count, cmoei_jj_m_find,
    cmoei_jj_m_format, cmoei_jj_m_is, cmoei_jj_m_join, cmoei_jj_m_justify, cmoei_jj_m_partition,
    cmoei_jj_m_remove_affix, cmoei_jj_m_replace, cmoei_jj_m_split, cmoei_jj_m_splitlines,
    cmoei_jj_m_strip, cmoei_jj_m_zfill, cmoei_jj_m_dict, cmoei_jj_m_get, cmoei_jj_m_copy,
    cmoei_jj_m_list_count, cmoei_jj_m_list_index;
enum { JJ_LEFT = 1, JJ_RIGHT = 2, JJ_BOTH = 3, JJ_OR_FAIL = 4 };
/* jinja_functions.c */
jj_builtin_fn cmoei_jj_g_range, cmoei_jj_g_dict, cmoei_jj_g_namespace, cmoei_jj_g_raise,
    cmoei_jj_g_strftime, cmoei_jj_g_cycle, cmoei_jj_g_changed;

/* Arguments: `i` of the row's parameters, given or not. */
bool cmoei_jj_arg_int(jj_env *e, const jj_call *c, int i, int64_t fallback, int64_t *out);
bool cmoei_jj_arg_string(jj_env *e, const jj_call *c, int i,
                         const jj_string **out);                               /* NULL: none */
bool cmoei_jj_self_string(jj_env *e, const jj_call *c, const jj_string **out); /* str(self) */

/* s without white space, or without the characters of `set`, on these sides. */
void cmoei_jj_strip(const jj_string *s, const jj_string *set, int sides, int64_t *from,
                    int64_t *to);
bool cmoei_jj_replace(jj_env *e, const jj_string *s, const jj_string *old, const jj_string *now,
                      int64_t most, jj_value *out);
bool cmoei_jj_splitlines(jj_env *e, const jj_string *s, bool keep, jj_value *out);
bool cmoei_jj_lower(jj_env *e, jj_value v, jj_value *out); /* what is no string stays */
int64_t cmoei_jj_find(const jj_string *s, int64_t from, const jj_string *part); /* -1: not there */

#endif
