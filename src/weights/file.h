/* SPDX-License-Identifier: MIT
 *
 * file.h - one safetensors file, checked and mapped; and whole small files.
 */
#ifndef CMOE_WEIGHTS_FILE_H
#define CMOE_WEIGHTS_FILE_H

#include "header.h"

enum { CMOEI_PATH_SHOWN = 200 }; /* bytes of a path in an error text */

typedef struct cmoei_file {
    char *name;       /* without folder */
    const char *data; /* [bytes], mapped read-only */
    int64_t bytes;
    int fd; /* -1: not open */
    cmoei_header header;
} cmoei_file;

/* The end of a path, as texts show it. */
typedef struct cmoei_path {
    char text[CMOEI_PATH_SHOWN + 4];
} cmoei_path;
cmoei_path cmoei_path_shown(const char *path);

/* What errno says. */
typedef struct cmoei_reason {
    char text[96];
} cmoei_reason;
cmoei_reason cmoei_errno_text(int number);

/* Opens a regular file for reading; anything else (a FIFO, a device) is refused, never waited for.
 * `why` is put behind the text of an error, and may be "". */
cmoe_status cmoei_file_open(int folder, const char *path, const char *shown, const char *why,
                            int *fd, int64_t *bytes, cmoe_error *err);
/* Reads exactly `bytes` bytes from `offset`. */
cmoe_status cmoei_file_read(int fd, const char *shown, void *out, int64_t bytes, int64_t offset,
                            cmoe_error *err);

/* Writes a small file, whole or not at all: under another name beside its own, synced, then renamed.
 * Paths of up to 4000 bytes. */
cmoe_status cmoei_file_write(const char *path, const void *data, int64_t bytes, cmoe_error *err);

/* Fills all but `name`.  On error everything is closed again. */
cmoe_status cmoei_file_map(cmoei_file *f, cmoe_ctx *ctx, int folder, const char *path,
                           const char *shown, const char *why, cmoe_error *err);
void cmoei_file_close(cmoei_file *f, cmoe_ctx *ctx);

#endif
