/* SPDX-License-Identifier: MIT
 *
 * text_file.h - a part of a file of text, in memory.
 *
 * Parts [a, b) and [b, c) of one file share nothing and lose nothing: both compute the cut at b alike.
 */
#ifndef CMOE_TRAIN_TEXT_FILE_H
#define CMOE_TRAIN_TEXT_FILE_H

#include "core/core.h"
#include "weights/file.h"

typedef struct cmoei_text_file {
    cmoei_path shown;
    bool lines; /* .jsonl: cut by lines, else by bytes at a character */
    char *memory;
    int64_t memory_bytes;
    const char *text; /* [bytes] the part */
    int64_t bytes;
    int64_t begin; /* where in the file: its offset, or the number of its first line, from 1 */
} cmoei_text_file;

/* On error nothing is held. */
cmoe_status cmoei_text_file_open(cmoei_text_file *f, cmoe_ctx *ctx, const char *path, double from,
                                 double to, cmoe_error *err);
void cmoei_text_file_close(cmoei_text_file *f, cmoe_ctx *ctx);

/* All of it must be UTF-8; the text names file and offset. */
cmoe_status cmoei_text_file_check(const cmoei_text_file *f, cmoe_error *err);

/* The next line from *at on, without its end; false: there is none. */
bool cmoei_text_file_line(const cmoei_text_file *f, int64_t *at, const char **line, int64_t *bytes);

#endif
