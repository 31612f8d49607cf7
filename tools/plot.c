/* SPDX-License-Identifier: MIT
 *
 * plot.c - loss over steps, an SVG written by hand.
 *
 * Three lines: the loss of every step, faint, for it jumps from batch to batch; its mean over the
 * steps around, which is what one looks for; and the loss on text that is not learned, with a point
 * for each evaluation.  A picture has at most so many points of a line, each the mean of its steps.
 * The first steps fall from so high that they would flatten the rest: what lies above the 98th of
 * 100 losses leaves the picture at the top.
 */
#include "plot.h"

#include <math.h>
#include <stdlib.h>

#include "report.h"

enum { WIDTH = 860, HEIGHT = 460, LEFT = 70, RIGHT = 24, TOP = 76, BOTTOM = 62, POINTS = 600 };

/* What lies where. */
typedef struct frame {
    double first, last; /* steps */
    double low, high, tick;
    double every; /* steps between two labels */
} frame;

bool plot_add(plot_curve *c, double step, double value)
{
    if (c->count == c->room) {
        const int64_t room = c->room ? 2 * c->room : 1024;
        double *steps = realloc(c->step, (size_t)room * sizeof *steps);
        if (steps) c->step = steps;
        double *values = realloc(c->value, (size_t)room * sizeof *values);
        if (values) c->value = values;
        if (!steps || !values) return false;
        c->room = room;
    }
    c->step[c->count] = step;
    c->value[c->count++] = value;
    return true;
}

void plot_free(plot_curve *c)
{
    free(c->step);
    free(c->value);
    *c = (plot_curve){0};
}

/* ---- scales ---------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* 1, 2 or 5 times a power of ten, so that `range` has about `count` of them. */
static double nice(double range, int count)
{
    const double rough = fmax(range, 1e-12) / count, power = pow(10, floor(log10(rough)));
    const double share = rough / power;
    return power * (share < 1.5 ? 1 : share < 3.5 ? 2 : share < 7.5 ? 5 : 10);
}

/* The value that `share` of all values do not exceed. */
static double quantile(const plot_curve *c, double share)
{
    double *sorted = malloc((size_t)c->count * sizeof *sorted);
    double value = c->value[c->count - 1];
    for (int64_t i = 0; i < c->count && sorted; i++)
        sorted[i] = c->value[i];
    if (sorted) {
        qsort(sorted, (size_t)c->count, sizeof *sorted, ascending);
        value = sorted[(int64_t)(share * (double)(c->count - 1))];
    }
    free(sorted);
    return value;
}

static frame frame_of(const plot_curve *losses, const plot_curve *held)
{
    frame f = {.first = losses->step[0], .last = losses->step[losses->count - 1]};
    double low = quantile(losses, 0), high = quantile(losses, 0.98);
    for (int64_t i = 0; i < held->count; i++) {
        low = fmin(low, held->value[i]);
        if (i > 0) high = fmax(high, held->value[i]);
    }
    if (f.last <= f.first) f.last = f.first + 1;
    if (high - low < 1e-6) high = low + 1e-3;
    f.tick = nice(high - low, 6);
    f.low = floor(low / f.tick) * f.tick;
    f.high = ceil(high / f.tick) * f.tick;
    f.every = fmax(1, nice(f.last - f.first, 8));
    return f;
}

static double at_x(const frame *f, double step)
{
    return LEFT + (step - f->first) / (f->last - f->first) * (WIDTH - LEFT - RIGHT);
}

static double at_y(const frame *f, double value)
{
    const double y = (f->high - value) / (f->high - f->low);
    return TOP + fmax(y, -0.02) * (HEIGHT - TOP - BOTTOM);
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void escaped(FILE *to, const char *text)
{
    json_t *plain = report_json_text(text); /* XML is UTF-8, names of files are anything */
    for (const char *p = plain ? json_string_value(plain) : ""; *p; p++) {
        if (*p == '<' || *p == '>' || *p == '&')
            fprintf(to, "&#%d;", *p);
        else
            fputc((unsigned char)*p < ' ' || *p == 0x7f ? '?' : *p, to);
    }
    json_decref(plain);
}

static void head(FILE *to, const char *title)
{
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\" role=\"img\" aria-labelledby=\"title\">\n<title id=\"title\">Loss of ",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    escaped(to, title);
    fputs("</title>\n<style>\n"
          "svg { background: #ffffff; font: 12px system-ui, sans-serif; }\n"
          "text { fill: #3a3a40; } .big { font-size: 18px; font-weight: 600; fill: #16161a; }\n"
          ".small { font-size: 11px; } .right { text-anchor: end; } .mid { text-anchor: middle; }\n"
          ".grid { stroke: #e4e4ea; } .axis { stroke: #8a8a92; }\n"
          ".raw, .mean, .held { fill: none; stroke-linejoin: round; }\n"
          ".raw { stroke: #9db7e0; stroke-width: 1; } .mean { stroke: #1f5fbf; stroke-width: 2; }\n"
          ".held { stroke: #d9480f; stroke-width: 2; } .dot { fill: #d9480f; }\n"
          "@media (prefers-color-scheme: dark) {\n"
          "  svg { background: #16161a; } text { fill: #c8c8d0; } .big { fill: #f4f4f6; }\n"
          "  .grid { stroke: #2c2c34; } .raw { stroke: #3d5a86; } .mean { stroke: #7fb0ff; }\n"
          "  .held { stroke: #ff9a5c; } .dot { fill: #ff9a5c; }\n"
          "}\n</style>\n",
          to);
    fprintf(to, "<text class=\"big\" x=\"%d\" y=\"30\">Loss of ", LEFT);
    escaped(to, title);
    fputs("</text>\n", to);
}

static void axes(FILE *to, const frame *f)
{
    const int below = HEIGHT - BOTTOM, right = WIDTH - RIGHT;
    const int digits = f->tick >= 1 ? 0 : (int)ceil(-log10(f->tick) - 1e-9);
    for (int i = 0; f->low + i * f->tick <= f->high + f->tick / 2; i++) {
        const double value = f->low + i * f->tick, y = at_y(f, value);
        fprintf(to,
                "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                "<text class=\"small right\" x=\"%d\" y=\"%.1f\">%.*f</text>\n",
                LEFT, right, y, y, LEFT - 8, y + 4, digits, value);
    }
    for (double step = ceil(f->first / f->every) * f->every; step <= f->last; step += f->every) {
        const double x = at_x(f, step);
        fprintf(to,
                "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>"
                "<text class=\"small mid\" x=\"%.1f\" y=\"%d\">%.0f</text>\n",
                x, x, below, below + 5, x, below + 19, step);
    }
    fprintf(to, "<line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n", LEFT, right,
            below, below);
    fprintf(to, "<text class=\"mid\" x=\"%d\" y=\"%d\">step</text>\n", (LEFT + right) / 2,
            HEIGHT - 18);
    fprintf(to,
            "<text class=\"mid\" transform=\"translate(20 %d) rotate(-90)\">nats a token</text>\n",
            (TOP + below) / 2);
}

/* What a colour means, with the last value. */
static double legend(FILE *to, double x, const char *class, const char *text, double value)
{
    char label[96];
    const int n = snprintf(label, sizeof label, "%s %.4f", text, value);
    fprintf(to, "<path class=\"%s\" d=\"M%.0f 52h22\"/><text x=\"%.0f\" y=\"56\">%s</text>\n",
            class, x, x + 28, label);
    return x + 28 + 7 * n + 24;
}

/* Means over `group` points at a time. */
static void line(FILE *to, const frame *f, const char *class, const plot_curve *c, int64_t group)
{
    fprintf(to, "<path class=\"%s\" d=\"", class);
    for (int64_t i = 0; i < c->count; i += group) {
        const int64_t n = c->count - i < group ? c->count - i : group;
        double step = 0, value = 0;
        for (int64_t j = i; j < i + n; j++) {
            step += c->step[j] / (double)n;
            value += c->value[j] / (double)n;
        }
        fprintf(to, "%c%.1f %.1f", i == 0 ? 'M' : 'L', at_x(f, step), at_y(f, value));
    }
    fputs("\"/>\n", to);
}

/* Mean over the steps around, a fiftieth of all to either side, fewer at the ends. */
static bool smooth(const plot_curve *c, plot_curve *out)
{
    double *sums = malloc((size_t)(c->count + 1) * sizeof *sums);
    bool ok = sums != NULL;
    if (ok) sums[0] = 0;
    for (int64_t i = 0; i < c->count && ok; i++)
        sums[i + 1] = sums[i] + c->value[i];
    for (int64_t i = 0; i < c->count && ok; i++) {
        const int64_t half = c->count / 50, from = i > half ? i - half : 0;
        const int64_t to = i + half < c->count ? i + half + 1 : c->count;
        ok = plot_add(out, c->step[i], (sums[to] - sums[from]) / (double)(to - from));
    }
    free(sums);
    return ok;
}

void plot_loss(FILE *to, const char *title, const plot_curve *losses, const plot_curve *held)
{
    const frame f = frame_of(losses, held);
    const int64_t group = (losses->count + POINTS - 1) / POINTS;
    plot_curve mean = {0};
    head(to, title);
    axes(to, &f);
    line(to, &f, "raw", losses, group);
    double x = LEFT;
    if (smooth(losses, &mean)) {
        line(to, &f, "mean", &mean, group);
        const int64_t tail = losses->count < 50 ? losses->count : 50;
        double last = 0;
        for (int64_t i = losses->count - tail; i < losses->count; i++)
            last += losses->value[i] / (double)tail;
        x = legend(to, x, "mean", tail > 1 ? "training, mean of the last steps" : "training", last);
    }
    if (held->count > 0) {
        line(to, &f, "held", held, 1);
        for (int64_t i = 0; i < held->count; i++)
            fprintf(to,
                    "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>step %.0f: "
                    "%.4f</title></circle>\n",
                    at_x(&f, held->step[i]), at_y(&f, held->value[i]), held->step[i],
                    held->value[i]);
        legend(to, x, "held", "not learned", held->value[held->count - 1]);
    }
    fputs("</svg>\n", to);
    plot_free(&mean);
}
