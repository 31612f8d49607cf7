/* SPDX-License-Identifier: MIT
 *
 * tape.h - packed weights kept in a file, to be mapped by the next load.
 *
 * Loading walks a model in one fixed order.  A tape is the list of memory stretches met on that walk:
 * a recording tape notes them and can be written; a playing one hands them out again, from a mapping.
 * A file belongs to one key: every byte of the key must be equal, or the tape is somebody else's.
 *
 *     magic, sizes, key, table of (offset, bytes, sum)      one page or more
 *     stretches, each at a multiple of 4096
 *
 * A file appears whole or not at all: it gets its name when everything is on the disk.
 */
#ifndef CMOE_MODELS_TAPE_H
#define CMOE_MODELS_TAPE_H

#include "core/core.h"

typedef struct cmoei_stretch {
    const void *data;
    int64_t bytes;
    bool own; /* a copy, freed with the tape */
} cmoei_stretch;

typedef struct cmoei_tape {
    cmoe_ctx *ctx;
    bool records;
    cmoei_stretch *list; /* recording */
    int64_t count, capacity;
    const char *map; /* playing; NULL otherwise */
    int64_t map_bytes, next;
} cmoei_tape;

/* Plays what lies at `path`.  CMOE_ERR_IO: there is no such file; CMOE_ERR_FORMAT: it is not the tape
 * of this key, or broken. */
cmoe_status cmoei_tape_open(cmoei_tape *t, cmoe_ctx *ctx, const char *path, const char *key,
                            cmoe_error *err);
void cmoei_tape_close(cmoei_tape *t);
static inline bool cmoei_tape_plays(const cmoei_tape *t)
{
    return t->map != NULL;
}

/* The next stretch, which must have so many bytes; 0 bytes are none. */
cmoe_status cmoei_tape_take(cmoei_tape *t, int64_t bytes, const void **data, cmoe_error *err);
/* Notes a stretch; without `copy` it must stay until the tape is written.  Nothing when the tape does
 * not record. */
cmoe_status cmoei_tape_put(cmoei_tape *t, const void *data, int64_t bytes, bool copy,
                           cmoe_error *err);
/* `stop` is asked every few MiB; true: CMOE_ERR_CANCELLED, and nothing is left. */
typedef bool (*cmoei_tape_stop)(void *user);
cmoe_status cmoei_tape_write(const cmoei_tape *t, const char *path, const char *key,
                             cmoei_tape_stop stop, void *user, cmoe_error *err);

#endif
