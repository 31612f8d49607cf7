/* SPDX-License-Identifier: MIT
 *
 * line.c - a small line editor.
 *
 * Raw mode is on only while a line is read, so that Ctrl-C is a signal again during an answer.  The
 * line is drawn on one row that scrolls sideways: what a terminal does at its right edge need not be
 * known then.  Characters are moved over whole (UTF-8); each counts as one cell but wide and combining
 * ones, as wcwidth tells them.
 */
#include "line.h"

#include <errno.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "report.h"

void line_open(line *l)
{
    *l = (line){.terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO)};
    setlocale(LC_CTYPE, ""); /* for wcwidth */
}

void line_close(line *l)
{
    for (int i = 0; i < l->n_history; i++)
        free(l->history[i]);
    free(l->text);
    *l = (line){0};
}

/* ---- without a terminal ---------------------------------------------------------------------- */

static line_result read_plain(line *l)
{
    errno = 0;
    const ssize_t n = getline(&l->text, &l->room, stdin);
    if (n < 0 && errno == EINTR) {
        clearerr(stdin);
        return LINE_INTERRUPTED;
    }
    if (n < 0) return errno && ferror(stdin) ? LINE_FAILED : LINE_END;
    if (n > 0 && l->text[n - 1] == '\n') l->text[n - 1] = '\0';
    return LINE_READ;
}

/* ---- the line being edited ------------------------------------------------------------------- */

typedef struct edit {
    line *l;
    const char *prompt;
    size_t n, at; /* bytes; of them before the cursor */
    int older;    /* steps back in the history */
    char *fresh;  /* the line that was typed before going back */
} edit;

static bool make_room(line *l, size_t n)
{
    if (n + 1 <= l->room) return true;
    char *more = realloc(l->text, n + 256);
    if (!more) return false;
    l->text = more;
    l->room = n + 256;
    return true;
}

static bool continues(char c)
{
    return (c & 0xc0) == 0x80;
}

static size_t before(const edit *e, size_t at)
{
    while (at > 0 && continues(e->l->text[--at]))
        ;
    return at;
}

static size_t behind(const edit *e, size_t at)
{
    while (at < e->n && continues(e->l->text[++at]) && at < e->n)
        ;
    return at;
}

static void insert(edit *e, char c)
{
    if (!make_room(e->l, e->n + 1)) return;
    memmove(e->l->text + e->at + 1, e->l->text + e->at, e->n - e->at);
    e->l->text[e->at++] = c;
    e->n++;
}

static void cut(edit *e, size_t begin, size_t end)
{
    memmove(e->l->text + begin, e->l->text + end, e->n - end);
    e->n -= end - begin;
    e->at = begin;
}

static void replace(edit *e, const char *text)
{
    const size_t n = strlen(text);
    if (!make_room(e->l, n)) return;
    memcpy(e->l->text, text, n);
    e->n = e->at = n;
}

/* `step` 1: older, -1: newer. */
static void recall(edit *e, int step)
{
    const int to = e->older + step;
    if (to < 0 || to > e->l->n_history || !make_room(e->l, e->n)) return;
    if (e->older == 0) {
        free(e->fresh);
        e->l->text[e->n] = '\0';
        e->fresh = strdup(e->l->text);
    }
    e->older = to;
    const char *text = to == 0 ? e->fresh : e->l->history[e->l->n_history - to];
    replace(e, text ? text : "");
}

static void remember(line *l)
{
    if (!l->text[0] || (l->n_history > 0 && !strcmp(l->history[l->n_history - 1], l->text))) return;
    char *copy = strdup(l->text);
    if (!copy) return;
    if (l->n_history == LINE_HISTORY) {
        free(l->history[0]);
        memmove(l->history, l->history + 1, (LINE_HISTORY - 1) * sizeof *l->history);
        l->n_history--;
    }
    l->history[l->n_history++] = copy;
}

/* ---- drawing --------------------------------------------------------------------------------- */

static int cells(const char *p, size_t left, size_t *bytes)
{
    wchar_t c = 0;
    mbstate_t state = {0};
    const size_t n = mbrtowc(&c, p, left, &state);
    *bytes = n == 0 || n > left ? 1 : n;
    if (n == 0 || n > left) return continues(*p) ? 0 : 1;
    const int w = wcwidth(c);
    return w < 0 ? 0 : w;
}

static int width_of(const char *p, size_t n)
{
    int width = 0;
    for (size_t i = 0, step; i < n; i += step)
        width += cells(p + i, n - i, &step);
    return width;
}

static void draw(const edit *e)
{
    struct winsize size = {0};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 16) size.ws_col = 80;
    const char *text = e->l->text;
    const int room = size.ws_col - (int)strlen(e->prompt) - 1;
    size_t begin = 0, step;
    int column = width_of(text, e->at);
    for (; column > room; begin += step)
        column -= cells(text + begin, e->n - begin, &step);
    fprintf(stderr, "\r%s", e->prompt);
    int used = 0;
    for (size_t i = begin; i < e->n; i += step) {
        used += cells(text + i, e->n - i, &step);
        if (used > room) break;
        fwrite(text + i, 1, step, stderr);
    }
    fprintf(stderr, "\033[K\r\033[%dC", (int)strlen(e->prompt) + column);
    fflush(stderr);
}

/* ---- keys ------------------------------------------------------------------------------------ */

enum { KEY_NONE = 0, KEY_DELETE = 256 };

/* The next byte of a key.  They come together: after a while it was the escape key alone. */
static bool more(char *c)
{
    enum { WHILE = 50 }; /* milliseconds; over a slow line, too */
    struct pollfd keys = {.fd = STDIN_FILENO, .events = POLLIN};
    return poll(&keys, 1, WHILE) == 1 && read(STDIN_FILENO, c, 1) == 1;
}

/* What follows an escape: the keys that terminals send as several bytes. */
static int escape(void)
{
    char c[3] = {0};
    if (!more(c) || (c[0] != '[' && c[0] != 'O') || !more(c + 1)) return KEY_NONE;
    switch (c[1]) {
    case 'A':
        return 'P' & 31;
    case 'B':
        return 'N' & 31;
    case 'C':
        return 'F' & 31;
    case 'D':
        return 'B' & 31;
    case 'H':
        return 'A' & 31;
    case 'F':
        return 'E' & 31;
    default:
        break;
    }
    while (c[1] >= '0' && c[1] <= '9' && more(c + 2) && c[2] != '~' &&
           (c[2] == ';' || (c[2] >= '0' && c[2] <= '9')))
        ;
    return c[1] == '3' && c[2] == '~' ? KEY_DELETE : KEY_NONE;
}

static void move_or_cut(edit *e, int key)
{
    size_t begin = e->at;
    switch (key) {
    case 'A' & 31:
        e->at = 0;
        break;
    case 'E' & 31:
        e->at = e->n;
        break;
    case 'B' & 31:
        e->at = before(e, e->at);
        break;
    case 'F' & 31:
        e->at = behind(e, e->at);
        break;
    case 'P' & 31:
        recall(e, 1);
        break;
    case 'N' & 31:
        recall(e, -1);
        break;
    case 'H' & 31:
    case 127:
        cut(e, before(e, e->at), e->at);
        break;
    case 'K' & 31:
        cut(e, e->at, e->n);
        break;
    case 'U' & 31:
        cut(e, 0, e->at);
        break;
    case 'W' & 31:
        while (begin > 0 && e->l->text[begin - 1] == ' ')
            begin--;
        while (begin > 0 && e->l->text[begin - 1] != ' ')
            begin--;
        cut(e, begin, e->at);
        break;
    case 'L' & 31:
        fputs("\033[H\033[2J", stderr);
        break;
    default:
        break;
    }
}

/* Waits for a key.  A signal may come just before the wait begins, which then is not interrupted: so it
 * is a short one, again and again.  False: a signal has come. */
static bool wait_for_key(void)
{
    struct pollfd keys = {.fd = STDIN_FILENO, .events = POLLIN};
    while (!report_cancelled()) {
        const int n = poll(&keys, 1, 100);
        if (n > 0 || (n < 0 && errno != EINTR)) return true; /* read says what is wrong */
    }
    return false;
}

/* Until the line is done. */
static line_result edit_line(edit *e)
{
    for (;;) {
        char key;
        draw(e);
        if (!wait_for_key()) return LINE_INTERRUPTED;
        const ssize_t got = read(STDIN_FILENO, &key, 1);
        if (got < 0) return errno == EINTR ? LINE_INTERRUPTED : LINE_FAILED;
        if (got == 0 || (key == ('D' & 31) && e->n == 0)) return LINE_END;
        if (key == ('C' & 31)) return LINE_INTERRUPTED;
        if (key == '\r' || key == '\n') return LINE_READ;
        const int known = key == 27           ? escape()
                          : key == ('D' & 31) ? KEY_DELETE
                                              : (unsigned char)key;
        if (known == KEY_DELETE)
            cut(e, e->at, behind(e, e->at));
        else if (known < ' ' || known == 127)
            move_or_cut(e, known);
        else
            insert(e, key);
    }
}

line_result line_read(line *l, const char *prompt)
{
    struct termios usual, raw;
    if (!l->terminal || tcgetattr(STDIN_FILENO, &usual) != 0) return read_plain(l);
    edit e = {.l = l, .prompt = prompt};
    if (!make_room(l, 0)) return LINE_FAILED;
    raw = usual;
    raw.c_iflag &= (tcflag_t) ~(ICRNL | IXON);
    raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO | ISIG | IEXTEN);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    /* A Ctrl-C that was typed before the keys were ours has come as a signal. */
    line_result result = report_cancelled() ? LINE_INTERRUPTED : edit_line(&e);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &usual);
    fputc('\n', stderr);
    l->text[e.n] = '\0';
    free(e.fresh);
    if (result == LINE_READ) remember(l);
    return result;
}
