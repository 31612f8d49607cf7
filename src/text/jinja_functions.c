/* SPDX-License-Identifier: MIT
 *
 * jinja_functions.c - global functions, and the methods of `loop`.
 */
#include "text/jinja_builtins.h"

#include <stdio.h>
#include <string.h>

enum { RANGE_MOST = 100000 }; /* as the sandbox of Jinja */

bool cmoei_jj_g_range(jj_env *e, const jj_call *c, jj_value *out)
{
    int64_t start = 0, stop = 0, step = 1;
    JJ_TRY(cmoei_jj_arg_int(e, c, 0, 0, &start) && cmoei_jj_arg_int(e, c, 2, 1, &step));
    if (c->v[0].kind == JJ_NONE)
        return cmoei_jj_fail(e, "'range' wants an integer, not 'NoneType'");
    JJ_TRY(cmoei_jj_arg_int(e, c, 1, 0, &stop));
    if (c->v[1].kind == JJ_MISSING) {
        stop = start;
        start = 0;
    }
    if (step == 0) return cmoei_jj_fail(e, "range() arg 3 must not be zero");
    uint64_t n = 0;
    if (step > 0 && start < stop) n = ((uint64_t)stop - (uint64_t)start - 1) / (uint64_t)step + 1;
    if (step < 0 && start > stop)
        n = ((uint64_t)start - (uint64_t)stop - 1) / (0 - (uint64_t)step) + 1;
    if (n > RANGE_MOST)
        return cmoei_jj_fail(
            e, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", RANGE_MOST);
    JJ_TRY(cmoei_jj_work(e, (int64_t)n) && cmoei_jj_list_make(e, JJ_RANGE, (int64_t)n, out));
    jj_list *l = out->u.list;
    for (int64_t i = 0, at = start; i < (int64_t)n; i++) {
        l->items[l->n++] = cmoei_jj_int(at);
        if (i + 1 < (int64_t)n) at += step;
    }
    l->start = start;
    l->step = step;
    l->capacity = stop; /* see put_range */
    return true;
}

/* dict(mapping, a=1): also what a namespace begins with. */
static bool fill_dict(jj_env *e, const jj_args *args, jj_dict *d)
{
    if (args->n > 1) return cmoei_jj_fail(e, "dict expected at most 1 argument, got %d", args->n);
    if (args->n && args->at[0].kind == JJ_DICT) {
        const jj_dict *from = args->at[0].u.dict;
        for (int64_t i = 0; i < from->n; i++)
            JJ_TRY(cmoei_jj_dict_set(e, d, from->pairs[i].key, from->pairs[i].value));
    } else if (args->n) {
        jj_list *l = NULL, *pair = NULL;
        JJ_TRY(cmoei_jj_items(e, args->at[0], &l));
        for (int64_t i = 0; i < l->n; i++) {
            JJ_TRY(cmoei_jj_items(e, l->items[i], &pair));
            if (pair->n != 2) return cmoei_jj_fail(e, "dict wants pairs");
            JJ_TRY(cmoei_jj_dict_set(e, d, pair->items[0], pair->items[1]));
        }
    }
    for (int32_t i = 0; i < args->n_named; i++)
        JJ_TRY(cmoei_jj_dict_set(e, d,
                                 (jj_value){.kind = JJ_STRING, .u.string = args->named[i].name},
                                 args->named[i].value));
    return true;
}

bool cmoei_jj_g_dict(jj_env *e, const jj_call *c, jj_value *out)
{
    return cmoei_jj_dict_make(e, JJ_DICT, out) && fill_dict(e, c->args, out->u.dict);
}

bool cmoei_jj_g_namespace(jj_env *e, const jj_call *c, jj_value *out)
{
    return cmoei_jj_dict_make(e, JJ_NAMESPACE, out) && fill_dict(e, c->args, out->u.dict);
}

bool cmoei_jj_g_raise(jj_env *e, const jj_call *c, jj_value *out)
{
    (void)out;
    const jj_string *s = NULL;
    JJ_TRY(cmoei_jj_str(e, c->v[0], &s));
    return cmoei_jj_fail(e, "%.*s", (int)CMOEI_MIN(s->bytes, 390), s->data);
}

bool cmoei_jj_g_cycle(jj_env *e, const jj_call *c, jj_value *out)
{
    if (!c->args->n) return cmoei_jj_fail(e, "no items for cycling given");
    *out = c->args->at[c->self.u.loop->index0 % c->args->n];
    return true;
}

bool cmoei_jj_g_changed(jj_env *e, const jj_call *c, jj_value *out)
{
    jj_loop *l = c->self.u.loop;
    jj_value now;
    bool same = false;
    JJ_TRY(cmoei_jj_list_make(e, JJ_TUPLE, c->args->n, &now));
    for (int32_t i = 0; i < c->args->n; i++)
        JJ_TRY(cmoei_jj_list_push(e, now.u.list, c->args->at[i]));
    JJ_TRY(cmoei_jj_equal(e, l->changed, now, &same));
    l->changed = now;
    *out = cmoei_jj_bool(!same);
    return true;
}

/* ---- time ------------------------------------------------------------------------------------ */

typedef struct moment {
    int64_t year, month, day, hour, minute, second, weekday, yearday; /* month, day from 1 */
} moment;

/* Days since 1970 to a date of the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date
 * algorithms"): years are counted from March in eras of 400. */
static moment moment_of(int64_t seconds)
{
    moment m = {0};
    int64_t days = seconds / 86400, rest = seconds % 86400;
    if (rest < 0) {
        rest += 86400;
        days--;
    }
    m.hour = rest / 3600;
    m.minute = rest / 60 % 60;
    m.second = rest % 60;
    m.weekday = ((days + 4) % 7 + 7) % 7;
    const int64_t z = days + 719468, era = (z >= 0 ? z : z - 146096) / 146097;
    const int64_t doe = z - era * 146097;
    const int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    const int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    m.day = doy - (153 * mp + 2) / 5 + 1;
    m.month = mp < 10 ? mp + 3 : mp - 9;
    m.year = yoe + era * 400 + (m.month <= 2);
    const bool leap = (m.year % 4 == 0 && m.year % 100 != 0) || m.year % 400 == 0;
    m.yearday = m.month > 2 ? doy + 60 + leap : doy - 305; /* from 1 */
    return m;
}

static const char *const months[] = {"January",   "February", "March",    "April",
                                     "May",       "June",     "July",     "August",
                                     "September", "October",  "November", "December"};
static const char *const weekdays[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};

static bool put_number(jj_env *e, int64_t n, int width)
{
    char text[24];
    snprintf(text, sizeof text, "%0*lld", width, (long long)n);
    return cmoei_jj_put_text(e, text);
}

/* Directives that stand for several. */
static const struct {
    char name;
    const char *format;
} composed[] = {{'F', "%Y-%m-%d"}, {'D', "%m/%d/%y"}, {'x', "%m/%d/%y"},
                {'T', "%H:%M:%S"}, {'X', "%H:%M:%S"}, {'R', "%H:%M"}};

/* One directive, in the C locale and UTC.  `plain`: %-d, without leading zeros. */
static bool put_directive(jj_env *e, char d, bool plain, const moment *m)
{
    const int two = plain ? 1 : 2;
    const int64_t twelve = m->hour % 12 ? m->hour % 12 : 12;
    switch (d) {
    case 'Y':
        return put_number(e, m->year, 1);
    case 'y':
        return put_number(e, m->year % 100, two);
    case 'm':
        return put_number(e, m->month, two);
    case 'd':
        return put_number(e, m->day, two);
    case 'e':
        return (m->day > 9 || plain || cmoei_jj_put_text(e, " ")) && put_number(e, m->day, 1);
    case 'H':
        return put_number(e, m->hour, two);
    case 'I':
        return put_number(e, twelve, two);
    case 'M':
        return put_number(e, m->minute, two);
    case 'S':
        return put_number(e, m->second, two);
    case 'f':
        return put_number(e, 0, 6);
    case 'j':
        return put_number(e, m->yearday, plain ? 1 : 3);
    case 'w':
        return put_number(e, m->weekday, 1);
    case 'u':
        return put_number(e, m->weekday ? m->weekday : 7, 1);
    case 'B':
        return cmoei_jj_put_text(e, months[m->month - 1]);
    case 'b':
    case 'h':
        return cmoei_jj_put(e, months[m->month - 1], 3);
    case 'A':
        return cmoei_jj_put_text(e, weekdays[m->weekday]);
    case 'a':
        return cmoei_jj_put(e, weekdays[m->weekday], 3);
    case 'p':
        return cmoei_jj_put_text(e, m->hour < 12 ? "AM" : "PM");
    case 'Z':
    case 'z':
        return true; /* a time without a zone */
    case 'n':
        return cmoei_jj_put_text(e, "\n");
    case 't':
        return cmoei_jj_put_text(e, "\t");
    case '%':
        return cmoei_jj_put_text(e, "%");
    default:
        return cmoei_jj_fail(e, "strftime_now: %%%c is not supported", d);
    }
}

static bool put_time(jj_env *e, const char *format, int64_t bytes, const moment *m)
{
    for (int64_t i = 0; i < bytes; i++) {
        if (format[i] != '%') {
            JJ_TRY(cmoei_jj_put(e, format + i, 1));
            continue;
        }
        const bool plain = i + 1 < bytes && format[i + 1] == '-';
        i += 1 + plain;
        if (i >= bytes) return cmoei_jj_fail(e, "strftime_now: the format ends in %%");
        int64_t k = 0;
        while (k < CMOEI_COUNT(composed) && composed[k].name != format[i])
            k++;
        if (k < CMOEI_COUNT(composed))
            JJ_TRY(put_time(e, composed[k].format, (int64_t)strlen(composed[k].format), m));
        else
            JJ_TRY(put_directive(e, format[i], plain, m));
    }
    return true;
}

bool cmoei_jj_g_strftime(jj_env *e, const jj_call *c, jj_value *out)
{
    const jj_string *s = NULL;
    const int64_t mark = e->out_bytes;
    JJ_TRY(cmoei_jj_arg_string(e, c, 0, &s));
    if (!s) return cmoei_jj_fail(e, "strftime_now wants a format");
    const moment m = moment_of(e->now);
    return put_time(e, s->data, s->bytes, &m) && cmoei_jj_cut(e, mark, out);
}
