/* SPDX-License-Identifier: MIT
 *
 * options.c - flags of a verb: parsing, error texts, --help, all from one table.
 *
 * Own parser instead of getopt_long: it takes `--name value` and `--name=value`, no abbreviations
 * (a script must not break when a flag is added), and every error can name the flag, the bad value
 * and what is accepted, and suggest the flag that was meant.
 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "report.h"

enum { WIDTH = 80, HELP_COLUMN = 22, MOST_OPTIONS = 64 };

const char *const option_devices[] = {"cpu", NULL};
const char *const option_comms[] = {"auto", "self", NULL};
const char *const option_isas[] = {"ref", "avx2", "avx512", "avx512_vnni", "avx512_bf16", NULL};

/* ---- the nearest name ------------------------------------------------------------------------ */

static int least_of(int a, int b, int c)
{
    const int ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* Levenshtein distance, one row of the table at a time. */
static int distance(const char *a, const char *b)
{
    enum { MOST = 64 };
    int row[MOST + 1];
    const size_t length = strlen(b);
    if (length > MOST || strlen(a) > MOST) return MOST;
    for (size_t j = 0; j <= length; j++)
        row[j] = (int)j;
    for (size_t i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= length; j++) {
            const int above = row[j];
            row[j] = least_of(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[length];
}

const char *options_nearest(const char *text, const char *const *names)
{
    const char *best = NULL;
    int least = 0;
    for (; *names; names++) {
        /* The beginning of a longer name is nearest, as in --tok. */
        const bool begins = strlen(text) >= 2 && !strncmp(text, *names, strlen(text));
        const int d = begins ? 0 : distance(text, *names);
        if (d <= 1 + (int)strlen(*names) / 3 && (!best || d < least)) {
            best = *names;
            least = d;
        }
    }
    return best;
}

/* ---- parsing --------------------------------------------------------------------------------- */

/* What a flag accepts, for --help and error texts. */
static void accepted(const option *o, char *text, size_t size)
{
    text[0] = '\0';
    switch (o->type) {
    case OPTION_INT:
        snprintf(text, size, "%.0f to %.0f", o->least, o->most);
        break;
    case OPTION_INTS:
        snprintf(text, size, "%.0f to %.0f, separated by commas", o->least, o->most);
        break;
    case OPTION_LIST:
        snprintf(text, size, "whole numbers separated by commas, or @FILE that holds them");
        break;
    case OPTION_FLOAT:
        snprintf(text, size, "%g to %g", o->least, o->most);
        break;
    case OPTION_CHOICE:
        snprintf(text, size, "one of:");
        for (int i = 0; o->choices[i]; i++) {
            const size_t used = strlen(text);
            snprintf(text + used, size - used, " %s", o->choices[i]);
        }
        break;
    case OPTION_FLAG:
    case OPTION_TEXT:
    case OPTION_TEXTS:
        snprintf(text, size, "%s", o->argument ? o->argument : "no value");
        break;
    }
}

static int bad_value(const option *o, const char *value, const char *why)
{
    char flag[64], want[256];
    snprintf(flag, sizeof flag, "--%s", o->name);
    accepted(o, want, sizeof want);
    return report_fail(EXIT_USAGE, flag, "\"%.80s\" %s, want %s", value, why, want);
}

static int missing(const option *o, const char *why)
{
    char flag[64], want[256];
    snprintf(flag, sizeof flag, "%s%s", o->positional ? "" : "--", o->name);
    accepted(o, want, sizeof want);
    return report_fail(EXIT_USAGE, flag, "%s, want %s", why, want);
}

/* One whole number up to `end`; false when it is none. */
static bool read_int(const char *text, const char **end, int64_t *out)
{
    char *stop;
    errno = 0;
    const long long v = strtoll(text, &stop, 10);
    *end = stop;
    *out = v;
    return stop != text && errno == 0 && *text != ' ';
}

static bool in_range(const option *o, double v)
{
    return v >= o->least && v <= o->most; /* false for NaN */
}

static int read_ints(const option *o, const char *value, option_ints *out)
{
    out->n = 0;
    for (const char *p = value;; p++) {
        int64_t v;
        if (!read_int(p, &p, &v) || (*p && *p != ','))
            return bad_value(o, value, "is not a list of whole numbers");
        if (!in_range(o, (double)v)) return bad_value(o, value, "is out of range");
        if (out->n == OPTION_INTS_MAX) return bad_value(o, value, "has more than 64 numbers");
        out->v[out->n++] = v;
        if (!*p) return 0;
    }
}

/* Numbers with one comma between them; in a file, blanks and newlines do as well. */
static int parse_list(const option *o, const char *value, const char *text, option_list *out)
{
    static const char blank[] = " \t\r\n";
    const bool file = *value == '@';
    int64_t room = 0;
    const char *p = text;
    out->n = 0;
    if (file) p += strspn(p, blank);
    if (!*p) return bad_value(o, value, "has no numbers");
    for (;;) {
        if (out->n == room) {
            room = room ? 2 * room : 1024;
            int64_t *more = realloc(out->v, (size_t)room * sizeof *more);
            if (!more) return report_fail(EXIT_MEMORY, o->name, "no memory");
            out->v = more;
        }
        if (!read_int(p, &p, &out->v[out->n])) break;
        out->n++;
        const char *end = p;
        if (file) p += strspn(p, blank);
        if (!*p) return 0;
        if (*p == ',')
            p++;
        else if (p == end)
            break;
        if (file) p += strspn(p, blank);
        if (file && !*p) return 0; /* a comma may stand at the end of a file */
    }
    return bad_value(o, value,
                     file ? "does not hold a list of whole numbers"
                          : "is not a list of whole numbers");
}

static int read_list(const option *o, const char *value, option_list *out)
{
    if (*value != '@') return parse_list(o, value, value, out);
    size_t bytes;
    char *text = files_read(value + 1, &bytes);
    if (text && strlen(text) != bytes) {
        free(text);
        text = NULL;
        errno = EILSEQ; /* a zero byte is no text */
    }
    if (!text) return bad_value(o, value, strerror(errno));
    const int status = parse_list(o, value, text, out);
    free(text);
    return status;
}

static int read_choice(const option *o, const char *value, const char **out)
{
    for (int i = 0; o->choices[i]; i++) {
        if (!strcmp(o->choices[i], value)) {
            *out = o->choices[i];
            return 0;
        }
    }
    for (int i = 0; o->later && o->later[i]; i++) {
        if (!strcmp(o->later[i], value))
            return bad_value(o, value, "is not supported yet by this version");
    }
    return bad_value(o, value, "is unknown");
}

static int add_text(const option *o, const char *value, option_texts *out)
{
    if (out->n == OPTION_TEXTS_MAX) return bad_value(o, value, "is one of more than 16");
    out->v[out->n++] = value;
    return 0;
}

static int set_value(const option *o, const char *value, void *values)
{
    void *field = (char *)values + o->offset;
    const char *end;
    char *stop;
    switch (o->type) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return 0;
    case OPTION_INT:
        if (!read_int(value, &end, field) || *end)
            return bad_value(o, value, "is not a whole number");
        return in_range(o, (double)*(int64_t *)field) ? 0 : bad_value(o, value, "is out of range");
    case OPTION_INTS:
        return read_ints(o, value, field);
    case OPTION_LIST:
        return read_list(o, value, field);
    case OPTION_FLOAT:
        *(double *)field = strtod(value, &stop);
        if (stop == value || *stop) return bad_value(o, value, "is not a number");
        return in_range(o, *(double *)field) ? 0 : bad_value(o, value, "is out of range");
    case OPTION_TEXT:
        *(const char **)field = value;
        return 0;
    case OPTION_TEXTS:
        return add_text(o, value, field);
    case OPTION_CHOICE:
        return read_choice(o, value, field);
    }
    return 0;
}

/* The row of `--name` or `--name=value`, or -1 after an error text. */
static int find(const option_verb *verb, const char *arg)
{
    const char *names[MOST_OPTIONS + 1];
    char given[64];
    const size_t length = strcspn(arg, "=");
    int n = 0;
    for (int i = 0; verb->options[i].name; i++) {
        const char *name = verb->options[i].name;
        if (verb->options[i].positional) continue;
        if (strlen(name) + 2 == length && !strncmp(name, arg + 2, length - 2)) return i;
        names[n++] = name;
    }
    names[n] = NULL;
    snprintf(given, sizeof given, "%.*s", (int)length, arg);
    const char *near = length > 2 ? options_nearest(given + 2, names) : NULL;
    report_fail(EXIT_USAGE, given, "unknown flag of `cmoe %s`, %s%s%s", verb->name,
                near ? "did you mean --" : "see cmoe ", near ? near : verb->name,
                near ? "?" : " --help");
    return -1;
}

/* The first positional argument that is still missing, or -1 after an error text. */
static int find_positional(const option_verb *verb, const char *arg, const bool *given)
{
    const char *last = NULL;
    for (int i = 0; verb->options[i].name; i++) {
        if (!verb->options[i].positional) continue;
        last = verb->options[i].name;
        if (!given[i] && arg[0] != '-') return i;
    }
    if (!last)
        report_fail(EXIT_USAGE, arg, "`cmoe %s` takes flags only, see --help", verb->name);
    else if (arg[0] == '-')
        report_fail(EXIT_USAGE, arg, "flags begin with two dashes, see cmoe %s --help", verb->name);
    else
        report_fail(EXIT_USAGE, arg, "`cmoe %s` takes one %s only, see --help", verb->name, last);
    return -1;
}

static int check_required(const option_verb *verb, const bool *given)
{
    for (int i = 0; verb->options[i].name; i++) {
        const option *o = &verb->options[i];
        if (o->required && !given[i]) return missing(o, "is needed");
    }
    return 0;
}

int options_parse(const option_verb *verb, int argc, char **argv, void *values)
{
    bool given[MOST_OPTIONS] = {false};
    for (int i = 0; verb->options[i].name; i++) {
        const option *o = &verb->options[i];
        if (o->initial && set_value(o, o->initial, values)) return EXIT_USAGE;
    }
    for (int i = 0; i < argc; i++) {
        const bool flag = !strncmp(argv[i], "--", 2) && argv[i][2];
        const int found = flag ? find(verb, argv[i]) : find_positional(verb, argv[i], given);
        if (found < 0) return EXIT_USAGE;
        const option *o = &verb->options[found];
        const char *value = strchr(argv[i], '=');
        if (o->positional) {
            value = argv[i];
        } else if (o->type == OPTION_FLAG) {
            if (value) return bad_value(o, value + 1, "was given");
        } else if (value) {
            value++;
        } else if (i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) {
            value = argv[++i];
        } else {
            return missing(o, "has no value");
        }
        const int bad = set_value(o, value, values);
        if (bad) return bad;
        given[found] = true;
        if (o->given) *(bool *)((char *)values + o->given) = true;
    }
    return check_required(verb, given);
}

/* ---- help ------------------------------------------------------------------------------------ */

void options_wrap(FILE *to, const char *text, int indent, int column)
{
    bool first = true; /* of its line */
    for (; column < indent; column++)
        fputc(' ', to);
    while (*text) {
        const int length = (int)strcspn(text, " \n");
        if (!first && column + 1 + length > WIDTH) {
            fprintf(to, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        column += fprintf(to, "%s%.*s", first ? "" : " ", length, text);
        first = false;
        text += length;
        if (*text == '\n') {
            fprintf(to, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        if (*text) text++;
    }
    fputc('\n', to);
}

void options_about(const option *o, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "%s", o->help);
    if (o->type != OPTION_FLAG && o->type != OPTION_TEXT && o->type != OPTION_TEXTS &&
        o->type != OPTION_LIST) {
        char want[256];
        accepted(o, want, sizeof want);
        used += (size_t)snprintf(text + used, size - used, "; %s", want);
    }
    if (o->initial) snprintf(text + used, size - used, " (default %s)", o->initial);
}

static void help_option(FILE *to, const option *o)
{
    char text[1024];
    int column = fprintf(to, "  %s%s%s%s", o->positional ? "" : "--", o->name,
                         o->argument && !o->positional ? " " : "",
                         o->argument && !o->positional ? o->argument : "");
    if (column > HELP_COLUMN - 2) {
        fputc('\n', to);
        column = 0;
    }
    options_about(o, text, sizeof text);
    options_wrap(to, text, HELP_COLUMN, column);
}

static bool same_group(const option *a, const option *b)
{
    return strcmp(a->group ? a->group : "", b->group ? b->group : "") == 0;
}

/* The first option of the group behind the one that `o` leads; NULL when there is no more. */
static const option *next_group(const option_verb *verb, const option *o)
{
    for (o = o ? o + 1 : verb->options; o->name; o++) {
        const option *p = verb->options;
        while (p->positional || !same_group(p, o))
            p++;
        if (p == o) return o;
    }
    return NULL;
}

void options_each(const option_verb *verb, FILE *to, void (*begin)(FILE *to, const char *group),
                  void (*show)(FILE *to, const option *o))
{
    for (const option *head = next_group(verb, NULL); head; head = next_group(verb, head)) {
        begin(to, head->group ? head->group : "Flags");
        for (const option *o = verb->options; o->name; o++) {
            if (!o->positional && same_group(o, head)) show(to, o);
        }
    }
}

static void help_group(FILE *to, const char *group)
{
    fprintf(to, "\n%s:\n", group);
}

void options_help(const option_verb *verb, FILE *to)
{
    fprintf(to, "cmoe %s - %s\n\nExamples:\n%s\nUsage:\n", verb->name, verb->summary,
            verb->examples);
    char usage[512];
    size_t used = (size_t)snprintf(usage, sizeof usage, "cmoe %s", verb->name);
    for (const option *o = verb->options; o->name; o++) {
        if (o->positional)
            used += (size_t)snprintf(usage + used, sizeof usage - used,
                                     o->required ? " %s" : " [%s]", o->name);
        else if (o->required)
            used += (size_t)snprintf(usage + used, sizeof usage - used, " --%s %s", o->name,
                                     o->argument);
    }
    snprintf(usage + used, sizeof usage - used, " [flags]");
    options_wrap(to, usage, 2, 0);
    for (const option *o = verb->options; o->name && o->positional; o++) {
        fprintf(to, "%s", o == verb->options ? "\n" : "");
        help_option(to, o);
    }
    options_each(verb, to, help_group, help_option);
    if (verb->text) {
        fputc('\n', to);
        options_wrap(to, verb->text, 0, 0);
    }
}
