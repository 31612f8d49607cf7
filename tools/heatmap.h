/* SPDX-License-Identifier: MIT
 *
 * heatmap.h - loads of experts as a picture: a row for each layer, a column for each expert.
 */
#ifndef TOOLS_HEATMAP_H
#define TOOLS_HEATMAP_H

#include <stdint.h>
#include <stdio.h>

typedef struct heatmap_row {
    int64_t layer, experts;
    const int64_t *counts; /* [experts] tokens that went there */
    double mean, imbalance;
} heatmap_row;

/* `title` is any text; `tokens` went through the layers. */
void heatmap_svg(FILE *to, const char *title, int64_t tokens, const heatmap_row *rows, int64_t n);

#endif
