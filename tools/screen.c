/* SPDX-License-Identifier: MIT
 *
 * screen.c - drawing undecided tokens behind text that stays.
 *
 * Behind the text the current blocks are drawn, and taken back before anything else is written: the
 * cursor goes up as many rows as the drawing is high and clears from there.  For this the screen
 * knows the column at which the text ends, counted in cells as wcwidth tells them.  Saving and
 * restoring the cursor would be simpler, but is wrong as soon as the terminal scrolls.
 */
#include "screen.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "report.h"

void screen_open(screen *s, const cmoe_tokenizer *tokenizer, int64_t mask_token, int64_t first)
{
    struct winsize size = {0};
    *s = (screen){.tokenizer = tokenizer, .mask_token = mask_token, .first = first};
    setlocale(LC_CTYPE, ""); /* for wcwidth */
    s->utf8 = report_style_of_stdout().utf8;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) size.ws_col = 0;
    s->width = size.ws_col > 1 ? size.ws_col : 80;
    s->height = size.ws_row > 1 ? size.ws_row : 24;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* Cells of the character at `p`, and how many bytes it has. */
static int cells(const screen *s, const char *p, int64_t left, int *bytes)
{
    wchar_t c = 0;
    mbstate_t state = {0};
    const size_t n = s->utf8 ? mbrtowc(&c, p, (size_t)left, &state) : 1;
    *bytes = n == 0 || n > (size_t)left ? 1 : (int)n;
    if (!s->utf8 || n == 0 || n > (size_t)left) return (*p & 0xc0) == 0x80 ? 0 : 1;
    const int w = wcwidth(c);
    return w < 0 ? 0 : w;
}

static bool is_control(const char *p, int bytes)
{
    return (unsigned char)*p < ' ' || *p == 0x7f ||
           (bytes == 2 && *p == '\xc2' && (unsigned char)p[1] < 0xa0); /* C1 */
}

/* Takes back what is drawn; the cursor stands behind the text again. */
static void erase(screen *s)
{
    if (!s->drawn) return;
    if (s->rows > 0) printf("\033[%dA", s->rows);
    putchar('\r');
    if (s->column > 0) printf("\033[%dC", s->column);
    fputs("\033[J", stdout);
    s->drawn = false;
    s->rows = 0;
}

static void put(screen *s, const char *p, int bytes, int w)
{
    fwrite(p, 1, (size_t)bytes, stdout);
    s->column = s->column + w > s->width ? w : s->column + w;
    s->wrapped = false;
}

void screen_text(screen *s, const char *text, int64_t bytes)
{
    erase(s);
    for (int64_t i = 0; i < bytes;) {
        int n;
        const int w = cells(s, text + i, bytes - i, &n);
        if (text[i] == '\n') {
            if (!s->wrapped) putchar('\n');
            s->column = 0;
            s->wrapped = false;
        } else if (text[i] == '\t') { /* what a real one does at the edge differs */
            do
                put(s, " ", 1, 1);
            while (s->column % 8 != 0);
        } else if (!is_control(text + i, n)) {
            put(s, text + i, n, w);
        }
        i += n;
    }
    fflush(stdout);
}

/* ---- canvas ---------------------------------------------------------------------------------- */

void screen_settle(screen *s, int64_t position)
{
    const int64_t gone = position - s->first;
    if (gone <= 0) return;
    const int64_t left = gone < s->count ? s->count - gone : 0;
    if (left > 0) {
        memmove(s->ids, s->ids + gone, (size_t)left * sizeof *s->ids);
        memmove(s->fresh, s->fresh + gone, (size_t)left * sizeof *s->fresh);
    }
    s->first = position;
    s->count = left;
}

/* Room for `count` tokens; false: nothing is drawn, which hurts nobody. */
static bool make_room(screen *s, int64_t count)
{
    if (count <= s->room) return true;
    int32_t *ids = realloc(s->ids, (size_t)count * sizeof *ids);
    if (ids) s->ids = ids;
    bool *fresh = realloc(s->fresh, (size_t)count * sizeof *fresh);
    if (fresh) s->fresh = fresh;
    if (ids && fresh) s->room = count;
    return ids && fresh;
}

static void update(screen *s, const cmoe_event *e)
{
    const int64_t end = e->position + e->count - s->first;
    if (end <= 0 || !make_room(s, end)) return;
    for (; s->count < end; s->count++)
        s->ids[s->count] = (int32_t)s->mask_token;
    for (int64_t i = 0; i < s->count; i++)
        s->fresh[i] = false;
    for (int64_t i = 0; i < e->count; i++) {
        const int64_t at = e->position + i - s->first;
        if (at < 0) continue; /* of the prompt, or shown already */
        s->fresh[at] = e->ids[i] != s->ids[at];
        s->ids[at] = e->ids[i];
    }
}

/* Where drawing stands. */
typedef struct pen {
    int row, column;
    bool full; /* no more rows */
} pen;

static void new_row(const screen *s, pen *p)
{
    p->full = p->row + 2 >= s->height;
    if (p->full) return;
    fputs("\r\n", stdout);
    p->row++;
    p->column = 0;
}

static void draw_text(const screen *s, pen *p, const char *text, int64_t bytes)
{
    for (int64_t i = 0; i < bytes && !p->full;) {
        int n;
        const int w = cells(s, text + i, bytes - i, &n);
        if (text[i] == '\n' || p->column + w >= s->width) new_row(s, p);
        if (!p->full && !is_control(text + i, n)) {
            fwrite(text + i, 1, (size_t)n, stdout);
            p->column += w;
        }
        i += n;
    }
}

/* One run of tokens that look alike: masks, fresh ones, older ones. */
static void draw_run(const screen *s, pen *p, int64_t begin, int64_t end)
{
    enum { MOST = 4000 };
    char text[MOST + 96];
    int64_t bytes = 0;
    if (s->ids[begin] == s->mask_token) {
        fputs("\033[2m", stdout);
        for (int64_t i = begin; i < end; i++)
            draw_text(s, p, s->utf8 ? "\xe2\x96\x91" : "_", s->utf8 ? 3 : 1);
    } else {
        fputs(s->fresh[begin] ? "\033[1;32m" : "", stdout);
        for (int64_t i = begin; i < end && !s->tokenizer && bytes < MOST; i++)
            bytes += snprintf(text + bytes, sizeof text - (size_t)bytes, " %d", (int)s->ids[i]);
        if (s->tokenizer && cmoe_tokenizer_decode(s->tokenizer, s->ids + begin, end - begin, 0,
                                                  text, sizeof text, &bytes, NULL) != CMOE_OK)
            bytes = 0;
        draw_text(s, p, text, bytes < MOST ? bytes : MOST);
    }
    fputs("\033[0m", stdout);
}

static void draw(screen *s)
{
    if (s->column >= s->width) { /* the terminal has not wrapped yet; now it has */
        fputs("\r\n", stdout);
        s->column = 0;
        s->wrapped = true;
    }
    pen p = {.column = s->column};
    for (int64_t i = 0, end; i < s->count && !p.full; i = end) {
        const bool mask = s->ids[i] == s->mask_token;
        for (end = i + 1; end < s->count && (s->ids[end] == s->mask_token) == mask &&
                          s->fresh[end] == s->fresh[i];
             end++)
            ;
        draw_run(s, &p, i, end);
    }
    s->rows = p.row;
    s->drawn = true;
    fflush(stdout);
}

void screen_canvas(screen *s, const cmoe_event *e)
{
    erase(s);
    update(s, e);
    draw(s);
}

void screen_close(screen *s)
{
    erase(s);
    fflush(stdout);
    free(s->ids);
    free(s->fresh);
    *s = (screen){0};
}
