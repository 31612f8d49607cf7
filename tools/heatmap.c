/* SPDX-License-Identifier: MIT
 *
 * heatmap.c - an SVG heat map, written by hand.
 *
 * Colour is viridis: equal steps look equally large, also to the colour-blind and in grey.  It shows
 * load relative to the mean of the layer, because layers may have another top-k; 1 is balance.  The
 * scale is linear up to what 99 of 100 cells reach, so that one hot expert does not darken all others.
 * Text and ground follow the reader's light or dark scheme; every cell tells its numbers when pointed
 * at.
 */
#include "heatmap.h"

#include <math.h>
#include <stdlib.h>

#include "report.h"

enum { LEFT = 64, TOP = 78, RIGHT = 76, BELOW = 104, LEGEND = 220 };

/* What is drawn, in pixels. */
typedef struct plan {
    int64_t rows, columns;
    double w, h;          /* of a cell */
    double width, height; /* of the map */
    double scale;         /* load of the brightest colour */
} plan;

static const unsigned viridis[] = {0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c,
                                   0x28ae80, 0x5ec962, 0xaddc30, 0xfde725};
enum { STOPS = sizeof viridis / sizeof viridis[0] };

/* 0 to 1. */
static unsigned colour(double x)
{
    const double at = fmin(fmax(x, 0), 1) * (STOPS - 1);
    const int i = at >= STOPS - 1 ? STOPS - 2 : (int)at;
    unsigned mixed = 0;
    for (int shift = 16; shift >= 0; shift -= 8) {
        const double a = viridis[i] >> shift & 255, b = viridis[i + 1] >> shift & 255;
        mixed |= (unsigned)lround(a + (b - a) * (at - i)) << shift;
    }
    return mixed;
}

static void escaped(FILE *to, const char *text)
{
    for (; *text; text++) {
        if (*text == '<' || *text == '>' || *text == '&')
            fprintf(to, "&#%d;", *text);
        else
            fputc((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text, to);
    }
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double load(const heatmap_row *r, int64_t e)
{
    return r->mean > 0 ? (double)r->counts[e] / r->mean : 0;
}

static plan plan_of(const heatmap_row *rows, int64_t n)
{
    plan p = {.rows = n, .scale = 2};
    int64_t cells = 0;
    for (int64_t i = 0; i < n; i++) {
        p.columns = rows[i].experts > p.columns ? rows[i].experts : p.columns;
        cells += rows[i].experts;
    }
    p.w = fmin(fmax(floor(1024.0 / (double)p.columns), 3), 28);
    p.h = fmin(fmax(floor(720.0 / (double)n), 9), 26);
    p.width = p.w * (double)p.columns;
    p.height = p.h * (double)n;
    double *all = malloc((size_t)cells * sizeof *all);
    int64_t at = 0;
    for (int64_t i = 0; i < n && all; i++) {
        for (int64_t e = 0; e < rows[i].experts; e++)
            all[at++] = load(&rows[i], e);
    }
    if (all) qsort(all, (size_t)cells, sizeof *all, ascending);
    if (all) p.scale = fmax(p.scale, ceil(2 * all[(cells - 1) * 99 / 100]) / 2);
    free(all);
    return p;
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void head(FILE *to, const plan *p, const char *title, int64_t tokens)
{
    const double width = fmax(LEFT + p->width + RIGHT, LEFT + 2 * LEGEND);
    const double height = TOP + p->height + BELOW;
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" "
            "height=\"%g\" role=\"img\" aria-labelledby=\"title\">\n<title id=\"title\">",
            width, height, width, height);
    escaped(to, title);
    fputs("</title>\n<style>\n"
          "svg { background: #ffffff; font: 12px system-ui, sans-serif; }\n"
          "text { fill: #3a3a40; } .big { font-size: 18px; font-weight: 600; fill: #16161a; }\n"
          ".small { font-size: 11px; } .right { text-anchor: end; } .mid { text-anchor: middle; }\n"
          ".dead { fill: none; stroke: #8a8a92; stroke-width: 0.8; }\n"
          "rect.c:hover { stroke: #ff5a36; stroke-width: 1.5; }\n"
          "@media (prefers-color-scheme: dark) {\n"
          "  svg { background: #16161a; } text { fill: #c8c8d0; } .big { fill: #f4f4f6; }\n"
          "}\n</style>\n",
          to);
    fprintf(to, "<text class=\"big\" x=\"%d\" y=\"30\">", LEFT);
    escaped(to, title);
    fprintf(to,
            "</text>\n<text x=\"%d\" y=\"50\">How often each expert was chosen, %lld "
            "tokens</text>\n",
            LEFT, (long long)tokens);
    fprintf(to, "<text class=\"small right\" x=\"%g\" y=\"%d\">max / mean</text>\n",
            LEFT + p->width + RIGHT - 6, TOP - 8);
}

static void cells(FILE *to, const plan *p, const heatmap_row *r, double y)
{
    const double gap = p->w >= 8 ? 1 : 0;
    for (int64_t e = 0; e < r->experts; e++) {
        const double x = LEFT + p->w * (double)e, l = load(r, e);
        if (r->counts[e] > 0)
            fprintf(to,
                    "<rect class=\"c\" x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" "
                    "fill=\"#%06x\">",
                    x, y, p->w - gap, p->h - gap, colour(l / p->scale));
        else
            fprintf(to,
                    "<rect class=\"c dead\" pointer-events=\"all\" x=\"%g\" y=\"%g\" "
                    "width=\"%g\" height=\"%g\">",
                    x + 0.5, y + 0.5, p->w - gap - 1, p->h - gap - 1);
        fprintf(to,
                "<title>layer %lld, expert %lld: %lld tokens, %.2f times the mean</title></rect>\n",
                (long long)r->layer, (long long)e, (long long)r->counts[e], l);
    }
}

/* Labels at multiples of `step`. */
static int64_t step_of(double size, double least)
{
    int64_t step = 1;
    while (size * (double)step < least)
        step *= 2;
    return step;
}

static void axes(FILE *to, const plan *p, const heatmap_row *rows)
{
    const int64_t every = step_of(p->w, 26), rows_every = step_of(p->h, 13);
    for (int64_t i = 0; i < p->rows; i++) {
        const double y = TOP + p->h * ((double)i + 0.5) + 4;
        if (i % rows_every) continue;
        fprintf(to, "<text class=\"small right\" x=\"%d\" y=\"%g\">%lld</text>\n", LEFT - 8, y,
                (long long)rows[i].layer);
        fprintf(to, "<text class=\"small right\" x=\"%g\" y=\"%g\">%.2f</text>\n",
                LEFT + p->width + RIGHT - 6, y, rows[i].imbalance);
    }
    for (int64_t e = 0; e < p->columns; e += every)
        fprintf(to, "<text class=\"small mid\" x=\"%g\" y=\"%g\">%lld</text>\n",
                LEFT + p->w * ((double)e + 0.5), TOP + p->height + 16, (long long)e);
    fprintf(to, "<text class=\"mid\" x=\"%g\" y=\"%g\">expert</text>\n", LEFT + p->width / 2,
            TOP + p->height + 36);
    fprintf(to, "<text class=\"mid\" transform=\"translate(20 %g) rotate(-90)\">layer</text>\n",
            TOP + p->height / 2);
}

static void legend(FILE *to, const plan *p)
{
    enum { TICKS = 5 };
    const double y = TOP + p->height + 56;
    fputs("<defs><linearGradient id=\"v\">", to);
    for (int i = 0; i < STOPS; i++)
        fprintf(to, "<stop offset=\"%g\" stop-color=\"#%06x\"/>", i / (STOPS - 1.0), viridis[i]);
    fprintf(to,
            "</linearGradient></defs>\n<rect x=\"%d\" y=\"%g\" width=\"%d\" height=\"12\" "
            "fill=\"url(#v)\"/>\n",
            LEFT, y, LEGEND);
    for (int i = 0; i < TICKS; i++) {
        const double share = i / (TICKS - 1.0);
        fprintf(to, "<text class=\"small mid\" x=\"%g\" y=\"%g\">%s%.3g</text>\n",
                LEFT + share * LEGEND, y + 26, i == TICKS - 1 ? "\xe2\x89\xa5 " : "",
                share * p->scale);
    }
    fprintf(to,
            "<text x=\"%d\" y=\"%g\">times the mean load of its layer</text>\n"
            "<rect class=\"dead\" x=\"%d\" y=\"%g\" width=\"12\" height=\"12\"/>"
            "<text x=\"%d\" y=\"%g\">never chosen</text>\n",
            LEFT + LEGEND + 18, y + 4, LEFT + LEGEND + 18, y + 14, LEFT + LEGEND + 36, y + 24);
}

void heatmap_svg(FILE *to, const char *title, int64_t tokens, const heatmap_row *rows, int64_t n)
{
    const plan p = plan_of(rows, n);
    json_t *plain = report_json_text(title); /* XML is UTF-8, names of files are anything */
    head(to, &p, plain ? json_string_value(plain) : "", tokens);
    json_decref(plain);
    for (int64_t i = 0; i < n; i++)
        cells(to, &p, &rows[i], TOP + p.h * (double)i);
    axes(to, &p, rows);
    legend(to, &p);
    fputs("</svg>\n", to);
}
