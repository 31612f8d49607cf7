/* SPDX-License-Identifier: MIT
 *
 * report.h - what the program says: error lines, exit statuses, output that appears whole or not at
 * all, colours where they are wanted.
 */
#ifndef TOOLS_REPORT_H
#define TOOLS_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "cmoe/base.h"

/* Exit statuses of every verb; 0 is success. */
enum {
    EXIT_ERROR = 1,
    EXIT_USAGE = 2,  /* a flag or a prompt is wrong */
    EXIT_FILE = 3,   /* a file of the user is not what it should be */
    EXIT_MEMORY = 4, /* out of memory */
    EXIT_RANK = 5,   /* another rank was lost */
    EXIT_CANCELLED = 130
};

/* Writes "cmoe: <what>: <why>" to stderr and returns `status`. */
int report_fail(int status, const char *what, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Writes a text that may hold names from files: nothing in it can move the cursor or add a line. */
void report_plain(FILE *to, const char *text);

/* The same as report_fail for a call of the library that failed. */
int report_status(cmoe_status status, const char *what, const cmoe_error *err);

/* The same with an exit status of the caller's choice.  A path that stands at the beginning of the
 * error's text, too, is said once. */
int report_error(int code, const char *what, cmoe_status status, const cmoe_error *err);

/* Output is gathered in memory and written by report_end, so that stdout stays empty when something
 * fails on the way.  One report at a time and thread. */
typedef struct report {
    FILE *to; /* where to print; NULL when there was no memory */
    char *text;
    size_t bytes;
} report;

int report_begin(report *r);
/* Closes; with status 0 the text goes to stdout, else it is thrown away.  Returns the status, or 1
 * when stdout could not be written. */
int report_end(report *r, int status);

/* Prints `object` on stdout and drops it; `object` NULL means that it ran out of memory. */
int report_json(json_t *object);

/* A string of any bytes, such as a path; those that are not UTF-8 become question marks. */
json_t *report_json_text(const char *text);

/* A line on stderr that the next one replaces, only on a terminal; "" clears it. */
void report_progress(bool quiet, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Styles of stdout; empty texts unless it is a terminal, NO_COLOR is not set and TERM not "dumb".
 */
typedef struct report_style {
    const char *bold, *good, *bad, *off;
    bool utf8; /* the locale can show block characters */
} report_style;

report_style report_style_of_stdout(void);

/* SIGINT and SIGTERM only raise a flag from here on, a second one ends the program at once. */
void report_catch_signals(void);
bool report_cancelled(void);
/* Forgets an interrupt, so that the next one is a first one again.  With `patient` further ones do not
 * end the program before it is forgotten; SIGTERM always does at the second time. */
void report_go_on(bool patient);

/* A cmoe_log_fn: warnings of the library, as lines of stderr. */
void report_warning(void *user, int32_t level, const char *text);

#endif
