/* SPDX-License-Identifier: MIT
 *
 * dataset.h - a dataset while it is read: tokens of documents, one behind the other.
 */
#ifndef CMOE_TRAIN_DATASET_H
#define CMOE_TRAIN_DATASET_H

#include "data.h"
#include "text/tokenizer.h"
#include "text_file.h"

typedef struct cmoei_reader {
    cmoe_ctx *ctx;
    cmoe_error *err;
    cmoe_dataset_options o;
    int64_t end;             /* id, below 0: none */
    cmoei_buffer ids, learn; /* int32, uint8 */
    cmoei_buffer documents;  /* int64: where each begins */
    int64_t text_bytes, learned;
    cmoei_buffer part, joined; /* scratch: tokens of the beginning of a text; a text of two */
} cmoei_reader;

/* Appends the tokens of a text to a buffer of int32. */
cmoe_status cmoei_reader_encode(cmoei_reader *r, cmoei_buffer *ids, bool special, const char *text,
                                int64_t bytes);
/* Tokens up to `end` that are not marked yet are learned, or not. */
cmoe_status cmoei_reader_learn(cmoei_reader *r, int64_t end, bool learned);
/* Tokens from `begin` on become a document.  Those that are not marked yet are learned like its end. */
cmoe_status cmoei_reader_document(cmoei_reader *r, int64_t begin, bool learn_end);

/* dataset_lines.c: objects, one a line. */
cmoe_status cmoei_reader_lines(cmoei_reader *r, const cmoei_text_file *f);

#endif
