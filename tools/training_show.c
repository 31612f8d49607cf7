/* SPDX-License-Identifier: MIT
 *
 * training_show.c - a training while it runs: a table on a terminal, else a line now and then.
 *
 * The table stands on stderr and is drawn over its last self: the cursor goes up as many rows as it
 * had.  It never has more rows than the terminal, and no row is longer than one, so nothing wraps.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "crew.h"
#include "model.h"
#include "report.h"
#include "training.h"

enum { ROWS_ABOVE = 5 }; /* of the table, over the bars */

void training_board_open(training_board *b, bool quiet)
{
    const char *term = getenv("TERM");
    *b = (training_board){.quiet = quiet, .utf8 = report_style_of_stdout().utf8};
    b->live = !quiet && isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
}

/* "1h 02m", "3m 07s", "12s" */
static void duration(double seconds, char text[32])
{
    const long s = isfinite(seconds) && seconds > 0 && seconds < 1e9 ? lround(seconds) : 0;
    if (s >= 3600)
        snprintf(text, 32, "%ldh %02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(text, 32, "%ldm %02lds", s / 60, s % 60);
    else
        snprintf(text, 32, "%lds", s);
}

void training_board_begin(const training *t)
{
    const cmoe_trainer_info *i = &t->info;
    const training_flags *f = t->f;
    if (t->board.quiet) return;
    fprintf(stderr, "%s, %.4g M weights, %.4g M of them active%s", i->type,
            (double)i->parameters / 1e6, (double)i->active / 1e6, t->verb->finetune ? "" : "\n");
    if (t->verb->finetune) fprintf(stderr, ", %.4g M trained\n", (double)i->trained / 1e6);
    fprintf(stderr, "%lld tokens to learn%s", (long long)t->data_info.tokens,
            t->held ? "" : ", none kept for evaluation\n");
    if (t->held) fprintf(stderr, ", %lld kept for evaluation\n", (long long)t->held_info.tokens);
    fprintf(stderr, "%lld steps of %lld tokens, %s, %s, threads %d, memory %s\n",
            (long long)f->steps, (long long)i->tokens, f->optimizer, f->dtype,
            (int)cmoe_ctx_threads(t->session.ctx), size_of(i->bytes).s);
    if (t->began > 0)
        fprintf(stderr, "going on from step %lld of %s%s\n", (long long)t->began, t->checkpoints,
                t->began == f->steps ? ": all steps are done" : "");
}

/* ---- one line -------------------------------------------------------------------------------- */

static void held_text(const training *t, char text[96])
{
    const training_eval *e = &t->last;
    text[0] = '\0';
    if (e->step == 0) return;
    if (isnan(e->bits_per_byte))
        snprintf(text, 96, "held-out loss %.4f (step %lld)", e->loss, (long long)e->step);
    else
        snprintf(text, 96, "held-out %.4f bits/byte, loss %.4f (step %lld)", e->bits_per_byte,
                 e->loss, (long long)e->step);
}

static double left(const training *t, double tokens_per_second)
{
    const double tokens = (double)(t->f->steps - t->report.step) * (double)t->info.tokens;
    return tokens / fmax(tokens_per_second, 1e-9);
}

static void print_line(const training *t, double tokens_per_second)
{
    const cmoe_train_report *r = &t->report;
    char time[32], held[96];
    duration(left(t, tokens_per_second), time);
    held_text(t, held);
    fprintf(stderr, "step %lld of %lld  loss %.4f  lr %.3g  norm %.3g  %.0f tokens/s  %s left",
            (long long)r->step, (long long)t->f->steps, r->loss, r->lr, r->gradient_norm,
            tokens_per_second, time);
    if (t->info.moe_layers > 0)
        fprintf(stderr, "  load max/mean %.2f  dead %lld", r->imbalance, (long long)r->dead);
    fprintf(stderr, "%s%s\n", *held && t->last.step == r->step ? "  " : "",
            t->last.step == r->step ? held : "");
}

/* ---- the table ------------------------------------------------------------------------------- */

typedef struct pen {
    int width, rows;
} pen;

/* A row; what is too long is cut, cells counted as characters of UTF-8. */
static void row(pen *p, const char *text)
{
    int cells = 0;
    fputs("\r\033[K", stderr);
    for (; *text && (cells < p->width - 1 || (*text & 0xc0) == 0x80); text++) {
        cells += (*text & 0xc0) != 0x80;
        fputc(*text, stderr);
    }
    fputc('\n', stderr);
    p->rows++;
}

/* Load of each expert of a layer over the mean of the layer, full at twice the mean. */
static void bars(const training *t, pen *p, int64_t moe)
{
    static const char *const blocks[] = {"\xe2\x96\x81", "\xe2\x96\x82", "\xe2\x96\x83",
                                         "\xe2\x96\x84", "\xe2\x96\x85", "\xe2\x96\x86",
                                         "\xe2\x96\x87", "\xe2\x96\x88"};
    const int64_t E = t->info.experts, *load = t->report.load + moe * E;
    const int64_t room = p->width > 40 ? p->width - 28 : 12, cells = E < room ? E : room;
    char text[4096];
    int64_t all = 0, most = 0, dead = 0;
    for (int64_t e = 0; e < E; e++) {
        all += load[e];
        dead += load[e] == 0;
        most = load[e] > most ? load[e] : most;
    }
    int used = snprintf(text, sizeof text, " %4lld  ", (long long)moe);
    const double mean = all > 0 ? (double)all / (double)E : 1;
    for (int64_t c = 0; c < cells && used < (int)sizeof text - 64; c++) {
        const int64_t from = c * E / cells, to = (c + 1) * E / cells;
        int64_t sum = 0;
        for (int64_t e = from; e < to; e++)
            sum += load[e];
        const double share = (double)sum / (double)(to - from) / mean;
        const int level = share >= 1.99 ? 7 : (int)(share * 4);
        const char *block = sum == 0 ? "." : blocks[level];
        const char digit[2] = {(char)(sum == 0 ? '.' : '1' + level), '\0'};
        used +=
            snprintf(text + used, sizeof text - (size_t)used, "%s", t->board.utf8 ? block : digit);
    }
    snprintf(text + used, sizeof text - (size_t)used, "  %.2f%s", (double)most / mean,
             dead > 0 ? " dead" : "");
    if (dead > 0) {
        const size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, " %lld", (long long)dead);
    }
    row(p, text);
}

static void progress_bar(const training *t, char *text, size_t size)
{
    enum { BAR = 30 };
    const int full = (int)((double)t->report.step / (double)t->f->steps * BAR);
    snprintf(text, size, "%.*s%.*s", full, "##############################", BAR - full,
             "..............................");
}

static void draw(training *t, double tokens_per_second)
{
    const cmoe_train_report *r = &t->report;
    struct winsize size = {0};
    char text[512], bar[64], time[32], held[96];
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0) size.ws_col = 0;
    pen p = {.width = size.ws_col > 20 ? size.ws_col : 80};
    const int height = size.ws_row > 4 ? size.ws_row : 24;
    if (t->board.rows > 0) fprintf(stderr, "\033[%dA", t->board.rows);
    progress_bar(t, bar, sizeof bar);
    duration(left(t, tokens_per_second), time);
    held_text(t, held);
    snprintf(text, sizeof text, " step  %lld of %lld  %s  %s left", (long long)r->step,
             (long long)t->f->steps, bar, time);
    row(&p, text);
    snprintf(text, sizeof text, " loss  %.4f   norm %.3g   lr %.3g   %.0f tokens/s", r->loss,
             r->gradient_norm, r->lr, tokens_per_second);
    row(&p, text);
    snprintf(text, sizeof text, "       %s", *held ? held : "not evaluated yet");
    row(&p, text);
    const int64_t layers = t->info.moe_layers, room = height - ROWS_ABOVE - 1;
    if (layers > 0) {
        snprintf(text, sizeof text, " load  max/mean %.2f, %lld dead experts", r->imbalance,
                 (long long)r->dead);
        row(&p, text);
    }
    const int64_t shown = layers <= room ? layers : room > 1 ? room - 1 : 0;
    for (int64_t i = 0; i < shown; i++)
        bars(t, &p, i);
    if (shown < layers) {
        snprintf(text, sizeof text, "  and %lld more layers", (long long)(layers - shown));
        row(&p, text);
    }
    fputs("\033[J", stderr);
    fflush(stderr);
    t->board.rows = p.rows;
}

void training_board_step(training *t, double tokens_per_second, bool always)
{
    training_board *b = &t->board;
    const double now = crew_now(), since = now - b->drawn;
    const bool many = t->report.step - b->drawn_step >= 50 && since >= 1;
    if (b->quiet || (!always && !(b->live ? since >= 0.15 : since >= 5 || many))) return;
    b->drawn = now;
    b->drawn_step = t->report.step;
    if (b->live)
        draw(t, tokens_per_second);
    else
        print_line(t, tokens_per_second);
}
