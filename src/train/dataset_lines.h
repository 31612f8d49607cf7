/* SPDX-License-Identifier: MIT
 *
 * dataset_lines.h - lines of JSONL.
 */
#ifndef CMOE_TRAIN_DATASET_LINES_H
#define CMOE_TRAIN_DATASET_LINES_H

#include <jansson.h>

#include "dataset.h"

typedef enum cmoei_line_kind {
    CMOEI_LINE_TEXT,    /* "text" */
    CMOEI_LINE_PAIR,    /* "prompt", "completion" */
    CMOEI_LINE_MESSAGES /* "messages" */
} cmoei_line_kind;

bool cmoei_line_blank(const char *line, int64_t bytes);

/* An object of one kind; that its values are right is not checked. */
cmoe_status cmoei_line_parse(json_t **out, const char *line, int64_t bytes, cmoei_line_kind *kind,
                             cmoe_error *err);

/* Appends a value as text. */
cmoe_status cmoei_json_append(cmoei_buffer *out, const json_t *value, size_t flags,
                              cmoe_error *err);

#endif
