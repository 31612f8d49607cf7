/* SPDX-License-Identifier: MIT
 *
 * plot.h - the course of a training as a picture.
 */
#ifndef TOOLS_PLOT_H
#define TOOLS_PLOT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Points in the order of their steps. */
typedef struct plot_curve {
    double *step, *value; /* [count] */
    int64_t count, room;
} plot_curve;

/* false: no memory. */
bool plot_add(plot_curve *c, double step, double value);
void plot_free(plot_curve *c);

/* Loss of each step, smoothed too, and the loss on text that is not learned (it may have no points).
 * `title` is any text; `losses` has a point. */
void plot_loss(FILE *to, const char *title, const plot_curve *losses, const plot_curve *held);

#endif
