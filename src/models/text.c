/* SPDX-License-Identifier: MIT
 *
 * text.c - words of strangers in error texts.
 *
 * Keys, values and tensor names come from files, and what we say about them goes to terminals and
 * logs: escape sequences and halves of UTF-8 characters must not.
 */
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void cmoei_text_clean(char *dst, size_t size, const char *src)
{
    size_t i = 0;
    for (; src[i] && i + 1 < size; i++) {
        dst[i] = src[i];
        if (src[i] < ' ' || src[i] > '~') dst[i] = '?';
    }
    if (src[i] && i >= 3) memcpy(dst + i - 3, "...", 3);
    dst[i] = '\0';
}

void cmoei_text_add(cmoei_text_list *list, const char *name)
{
    enum { TAIL = 32, LONGEST = 120 }; /* room for " and N more" */
    char clean[LONGEST];
    list->count++;
    if (list->count - 1 > list->shown) return; /* one did not fit: none behind it is shown */
    cmoei_text_clean(clean, sizeof clean, name);
    const char *between = list->shown ? list->between : "";
    const size_t n = strlen(between) + strlen(clean);
    if (list->used + n + TAIL > sizeof list->text) return;
    snprintf(list->text + list->used, sizeof list->text - list->used, "%s%s", between, clean);
    list->used += n;
    list->shown++;
}

const char *cmoei_text_end(cmoei_text_list *list)
{
    if (list->shown < list->count)
        snprintf(list->text + list->used, sizeof list->text - list->used, " and %" PRId64 " more",
                 list->count - list->shown);
    return list->text;
}

uint64_t cmoei_text_sum(const char *text, int64_t bytes)
{
    uint64_t sum = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < bytes; i++)
        sum = (sum ^ (unsigned char)text[i]) * 0x100000001b3u;
    return sum;
}
