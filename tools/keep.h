/* SPDX-License-Identifier: MIT
 *
 * keep.h - the folder in which packed weights are kept.
 */
#ifndef TOOLS_KEEP_H
#define TOOLS_KEEP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cmoe/model.h"

enum { KEEP_PATH = 4096 };

/* What --cache-dir says, as a path: made if it is not there.  *path is NULL when nothing is to be kept;
 * *read_only when the disk has no room for more.  `bytes`: of the weights.  0, or the exit status. */
int keep_folder(const char *word, int64_t bytes, char room[KEEP_PATH], const char **path,
                bool *read_only);

/* Writing of packed weights beside what is done with them. */
typedef struct keep_job {
    pthread_t thread;
    cmoe_model *model; /* NULL: there is nothing to write */
    _Atomic bool stop, over;
    _Atomic int percent;
    cmoe_status status;
    cmoe_error err;
} keep_job;

/* For a model loaded with cache_later. */
void keep_begin(keep_job *job, cmoe_model *model);
/* Waits until it is written; an interrupt ends that, and then nothing is kept. */
void keep_end(keep_job *job, bool quiet);

#endif
