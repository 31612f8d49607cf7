/* SPDX-License-Identifier: MIT
 *
 * keep.c - the folder in which packed weights are kept: the user's cache directory, or one that was
 * named.
 */
#include "keep.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "report.h"

/* With everything above it, for the user alone. */
static bool make_folder(char *path)
{
    struct stat st;
    for (char *p = path + 1; *p; p++) {
        if (*p != '/') continue;
        *p = '\0';
        const bool ok = mkdir(path, 0700) == 0 || errno == EEXIST;
        *p = '/';
        if (!ok) return false;
    }
    if (mkdir(path, 0700) == 0) return true;
    if (errno != EEXIST) return false;
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) errno = ENOTDIR;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* As the XDG base directory specification has it; false when nobody says where. */
static bool user_folder(char room[KEEP_PATH])
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (cache && cache[0] == '/')
        n = snprintf(room, KEEP_PATH, "%s/cmoe", cache);
    else if (home && home[0] == '/')
        n = snprintf(room, KEEP_PATH, "%s/.cache/cmoe", home);
    return n > 0 && n < KEEP_PATH;
}

/* A convenience that nobody asked for must not fill a disk. */
static bool has_room(const char *path, int64_t bytes)
{
    struct statvfs v;
    return statvfs(path, &v) == 0 && (double)v.f_bavail * (double)v.f_frsize > 4 * (double)bytes;
}

int keep_folder(const char *word, int64_t bytes, char room[KEEP_PATH], const char **path,
                bool *read_only)
{
    *path = NULL;
    *read_only = false;
    if (!strcmp(word, "none")) return 0;
    if (!strcmp(word, "user")) {
        if (!user_folder(room) || !make_folder(room)) return 0;
        *path = room;
        *read_only = !has_room(room, bytes);
        return 0;
    }
    const int n = snprintf(room, KEEP_PATH, "%s", word);
    if (n <= 0 || n >= KEEP_PATH)
        return report_fail(EXIT_USAGE, "--cache-dir", "\"%.100s\" is no folder", word);
    if (!make_folder(room))
        return report_fail(EXIT_ERROR, "--cache-dir", "\"%s\": %s", word, strerror(errno));
    *path = room;
    return 0;
}
