/* SPDX-License-Identifier: MIT
 *
 * keep.h - the folder in which packed weights are kept.
 */
#ifndef TOOLS_KEEP_H
#define TOOLS_KEEP_H

#include <stdbool.h>
#include <stdint.h>

enum { KEEP_PATH = 4096 };

/* What --cache-dir says, as a path: made if it is not there.  *path is NULL when nothing is to be kept;
 * *read_only when the disk has no room for more.  `bytes`: of the weights.  0, or the exit status. */
int keep_folder(const char *word, int64_t bytes, char room[KEEP_PATH], const char **path,
                bool *read_only);

#endif
