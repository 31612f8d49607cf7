/* SPDX-License-Identifier: MIT
 *
 * text.h - words of strangers in error texts: printable, and cut before they fill them.
 */
#ifndef CMOE_MODELS_TEXT_H
#define CMOE_MODELS_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Copies what is printable ASCII and puts ? for every other byte; "..." ends what did not fit. */
void cmoei_text_clean(char *dst, size_t size, const char *src);

/* FNV-1a: tells texts apart that nobody made to collide. */
uint64_t cmoei_text_sum(const char *text, int64_t bytes);

/* "a, b, c and 12 more": the first few names that fit, and how many there were. */
typedef struct cmoei_text_list {
    char text[200];
    size_t used;
    int64_t shown, count;
    const char *between; /* ", " or " " */
} cmoei_text_list;

void cmoei_text_add(cmoei_text_list *list, const char *name);
/* Says how many were left out; the list is then closed. */
const char *cmoei_text_end(cmoei_text_list *list);

#endif
