/* SPDX-License-Identifier: MIT
 *
 * files.h - files of the user, read whole and written whole or not at all.
 */
#ifndef TOOLS_FILES_H
#define TOOLS_FILES_H

#include <stdbool.h>
#include <stddef.h>

/* All bytes of a file that is not mapped, for it may be a pipe ("-": stdin), and a zero behind them;
 * freed by free().  NULL: errno says why. */
char *files_read(const char *path, size_t *bytes);

/* 0, or the exit status after saying that no file can be made there: known before the work, not
 * after it. */
int files_check_writable(const char *flag, const char *path);

/* Whether two paths, which need not exist, are the same place: the same name in the same folder. */
bool files_same(const char *a, const char *b);

/* Whole or not at all: written beside its place, then renamed.  0, or the exit status. */
int files_write(const char *path, const char *text, size_t bytes);

#endif
