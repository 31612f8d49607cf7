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
 * A file gets its name when everything has been written, and takes the place of the one that had it.
 * Nobody waits for the disk: after a power cut a file may hold anything, which its sums tell.
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

/* Asked every few MiB, by one thread; true: CMOE_ERR_CANCELLED, and nothing is left. */
typedef bool (*cmoei_tape_stop)(void *user, int64_t done, int64_t total);

/* Plays what lies at `path`.  CMOE_ERR_IO: there is no such file; CMOE_ERR_UNSUPPORTED: it is the tape
 * of another key; CMOE_ERR_FORMAT: it is broken. */
cmoe_status cmoei_tape_open(cmoei_tape *t, cmoe_ctx *ctx, const char *path, const char *key,
                            cmoei_tape_stop stop, void *user, cmoe_error *err);
void cmoei_tape_close(cmoei_tape *t);
static inline bool cmoei_tape_plays(const cmoei_tape *t)
{
    return t->map != NULL;
}

/* The next stretch; 0 bytes are none.  CMOE_ERR_FORMAT: it has another size. */
cmoe_status cmoei_tape_take(cmoei_tape *t, int64_t bytes, const void **data, cmoe_error *err);
/* CMOE_ERR_FORMAT: there are more of them. */
cmoe_status cmoei_tape_end(const cmoei_tape *t, cmoe_error *err);
/* Notes a stretch; without `copy` it must stay until the tape is written.  Nothing when the tape does
 * not record. */
cmoe_status cmoei_tape_put(cmoei_tape *t, const void *data, int64_t bytes, bool copy,
                           cmoe_error *err);
/* Into folder/name, where name ends in ".packed".  What writers that were killed have left in the
 * folder goes. */
cmoe_status cmoei_tape_write(const cmoei_tape *t, const char *folder, const char *name,
                             const char *key, cmoei_tape_stop stop, void *user, cmoe_error *err);

#endif
