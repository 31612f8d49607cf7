/* SPDX-License-Identifier: MIT
 *
 * files.c - reading and writing whole files.
 */
#include "files.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "report.h"

char *files_read(const char *path, size_t *bytes)
{
    FILE *from = strcmp(path, "-") ? fopen(path, "r") : stdin;
    if (!from) return NULL;
    size_t used = 0, room = 1 << 16;
    char *text = malloc(room);
    while (text) {
        used += fread(text + used, 1, room - used - 1, from);
        if (used < room - 1) break;
        char *more = room > SIZE_MAX / 2 ? NULL : realloc(text, room *= 2);
        if (!more) free(text);
        text = more;
    }
    const int why = !text ? ENOMEM : ferror(from) ? errno : 0;
    if (from != stdin) fclose(from);
    if (text) text[used] = '\0';
    *bytes = used;
    if (why) free(text);
    errno = why;
    return why ? NULL : text;
}

/* The folder of a path, as text; false when it is too long. */
static bool folder_of(const char *path, char *folder, size_t size)
{
    const char *slash = strrchr(path, '/');
    const size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= size) return false;
    snprintf(folder, size, "%.*s", (int)length, path);
    if (!slash) snprintf(folder, size, ".");
    if (slash == path) snprintf(folder, size, "/");
    return true;
}

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool files_same(const char *a, const char *b)
{
    char folder[4096];
    struct stat x, y;
    return !strcmp(name_of(a), name_of(b)) && folder_of(a, folder, sizeof folder) &&
           stat(folder, &x) == 0 && folder_of(b, folder, sizeof folder) && stat(folder, &y) == 0 &&
           x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int files_check_writable(const char *flag, const char *path)
{
    struct stat st;
    char folder[4096];
    if (!*path) return report_fail(EXIT_USAGE, flag, "\"\" is no file name");
    if (!folder_of(path, folder, sizeof folder))
        return report_fail(EXIT_ERROR, path, "%s", strerror(ENAMETOOLONG));
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return report_fail(EXIT_ERROR, path, "cannot be written: it is there and not a file");
    if (stat(folder, &st) == 0 && !S_ISDIR(st.st_mode))
        return report_fail(EXIT_ERROR, path, "cannot be written: %s: %s", folder,
                           strerror(ENOTDIR));
    if (access(folder, W_OK | X_OK) != 0)
        return report_fail(EXIT_ERROR, path, "cannot be written: %s: %s", folder, strerror(errno));
    return 0;
}

int files_write(const char *path, const char *text, size_t bytes)
{
    char beside[4096];
    const int length = snprintf(beside, sizeof beside, "%s.%ld", path, (long)getpid());
    if (length < 0 || (size_t)length >= sizeof beside)
        return report_fail(EXIT_ERROR, path, "%s", strerror(ENAMETOOLONG));
    FILE *to = fopen(beside, "w");
    if (!to) return report_fail(EXIT_ERROR, path, "cannot be written: %s", strerror(errno));
    bool done = fwrite(text, 1, bytes, to) == bytes;
    done = fclose(to) == 0 && done && rename(beside, path) == 0;
    if (done) return 0;
    const int why = errno;
    unlink(beside);
    return report_fail(EXIT_ERROR, path, "cannot be written: %s", strerror(why));
}
