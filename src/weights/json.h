/* SPDX-License-Identifier: MIT
 *
 * json.h - JSON read word by word, without a tree in memory.
 *
 * The header of a safetensors file may have 100 MB, and a tree of `[0,0,0,...` takes thirty times
 * its text.  Both texts read here (such headers, and model.safetensors.index.json) have a fixed
 * form, so their readers ask for one word after the other and memory stays what they keep.  Strict
 * RFC 8259: valid UTF-8, whole surrogate pairs, no control characters in strings; and no NUL.
 *
 * tests/fuzz compares what is accepted with a general JSON library.
 */
#ifndef CMOE_WEIGHTS_JSON_H
#define CMOE_WEIGHTS_JSON_H

#include "core/core.h"

enum { CMOEI_SHOWN = 96 }; /* bytes of a foreign name in an error text */

typedef struct cmoei_json {
    const char *text;
    int64_t bytes, at;
    const char *file, *part; /* for texts: "model.safetensors", "header" */
    cmoe_error *err;

    /* Where reading is, for texts: tensor "subject": key[index]. */
    char subject[CMOEI_SHOWN];
    int64_t subject_bytes; /* of the whole name; -1: none */
    const char *key;       /* NULL: none */
    int64_t index;         /* -1: none */
} cmoei_json;

cmoei_json cmoei_json_open(const char *text, int64_t bytes, const char *file, const char *part,
                           cmoe_error *err);

/* CMOE_ERR_FORMAT with file, place and this text. */
cmoe_status cmoei_json_fail(const cmoei_json *j, const char *format, ...) CMOEI_PRINTF(2, 3);

/* Skips white space; takes `c` if that comes next. */
bool cmoei_json_next(cmoei_json *j, char c);
/* It must come next; `what` says in texts what it begins or ends. */
cmoe_status cmoei_json_want(cmoei_json *j, char c, const char *what);
/* A string.  Its first `room` bytes go to `out`; `bytes` is its whole length. */
cmoe_status cmoei_json_string(cmoei_json *j, char *out, int64_t room, int64_t *bytes);
/* A key that becomes the subject of texts, and the colon. */
cmoe_status cmoei_json_subject(cmoei_json *j, char *out, int64_t room, int64_t *bytes);
/* An integer of 0 .. 2^63 - 1. */
cmoe_status cmoei_json_count(cmoei_json *j, int64_t *value);
/* Any value, at most 64 levels deep. */
cmoe_status cmoei_json_skip(cmoei_json *j);
/* Nothing may follow. */
cmoe_status cmoei_json_end(cmoei_json *j, bool blanks_only);

bool cmoei_utf8(const char *text, int64_t bytes);

/* A foreign name as texts may show it: control characters replaced, cut when long.  Returns out. */
const char *cmoei_shown(char out[CMOEI_SHOWN + 4], const char *name, int64_t bytes);

#endif
