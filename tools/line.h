/* SPDX-License-Identifier: MIT
 *
 * line.h - lines from stdin; at a terminal with editing and a history.
 */
#ifndef TOOLS_LINE_H
#define TOOLS_LINE_H

#include <stdbool.h>
#include <stddef.h>

typedef enum line_result {
    LINE_READ, /* `text` has it, without its newline */
    LINE_END,
    LINE_INTERRUPTED, /* Ctrl-C, or a signal that report.h counts */
    LINE_FAILED       /* errno says why */
} line_result;

enum { LINE_HISTORY = 200 };

typedef struct line {
    char *text; /* of the last call */
    size_t room;
    bool terminal;               /* stdin and stderr are one */
    char *history[LINE_HISTORY]; /* oldest first */
    int n_history;
} line;

void line_open(line *l);
void line_close(line *l);

/* Keys at a terminal: left, right, home, end, backspace, delete, up and down for older and newer
 * lines, and Ctrl-A E B F P N H D K U W L. */
line_result line_read(line *l, const char *prompt);

#endif
