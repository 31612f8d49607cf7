/* SPDX-License-Identifier: MIT
 *
 * screen.h - an answer on a terminal: text as it comes, and blocks of diffusion in which tokens appear
 * in place as they are decided.
 */
#ifndef TOOLS_SCREEN_H
#define TOOLS_SCREEN_H

#include <stdbool.h>
#include <stdint.h>

#include "cmoe/engine.h"

typedef struct screen {
    const cmoe_tokenizer *tokenizer; /* NULL: ids are shown */
    int64_t mask_token;
    int width, height, column; /* of the terminal; where the next character of text goes */
    int rows; /* that the cursor stands below that place: what is drawn is undecided */
    bool drawn, utf8;
    bool wrapped;               /* the row was full and the next one has been begun */
    int64_t first, count, room; /* canvas: position of its first token, how many */
    int32_t *ids;               /* [count] */
    bool *fresh;                /* [count] decided by the last forward */
} screen;

/* `first`: position of the first new token. */
void screen_open(screen *s, const cmoe_tokenizer *tokenizer, int64_t mask_token, int64_t first);
void screen_close(screen *s);

/* Text that stays; tabs become blanks, other control characters but newlines are left out. */
void screen_text(screen *s, const char *text, int64_t bytes);
/* Tokens below this position stand in the text now. */
void screen_settle(screen *s, int64_t position);
/* Undecided tokens as they stand. */
void screen_canvas(screen *s, const cmoe_event *e);

#endif
