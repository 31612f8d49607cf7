/* SPDX-License-Identifier: MIT
 *
 * files.h - a folder of its own for a test, and files in it.
 */
#ifndef CMOE_FILES_H
#define CMOE_FILES_H

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unit.h"

typedef struct files_folder {
    char path[256];
} files_folder;

static inline const char *files_in(const files_folder *f, const char *name)
{
    static char path[8][512];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", f->path, name);
    return p;
}

/* In the folder the test runs in, which is one of the build's. */
static inline files_folder files_open(const char *name)
{
    files_folder f;
    snprintf(f.path, sizeof f.path, "%s.%ld", name, (long)getpid());
    assert_int_equal(mkdir(f.path, 0777), 0);
    return f;
}

static inline int files_count(const files_folder *f)
{
    int n = 0;
    DIR *list = opendir(f->path);
    assert_non_null(list);
    for (struct dirent *e; (e = readdir(list));)
        n += e->d_name[0] != '.';
    closedir(list);
    return n;
}

/* Removes what is in it, and it. */
static inline void files_close(const files_folder *f)
{
    DIR *list = opendir(f->path);
    assert_non_null(list);
    for (struct dirent *e; (e = readdir(list));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (remove(files_in(f, e->d_name)) != 0) fail_msg("%s stays", e->d_name);
    }
    closedir(list);
    assert_int_equal(rmdir(f->path), 0);
}

static inline void files_put(const files_folder *f, const char *name, const void *data, int64_t n)
{
    FILE *out = fopen(files_in(f, name), "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, (size_t)n, out), n);
    assert_int_equal(fclose(out), 0);
}

static inline void files_text(const files_folder *f, const char *name, const char *text)
{
    files_put(f, name, text, (int64_t)strlen(text));
}

/* The whole file, to be freed. */
static inline char *files_get(const files_folder *f, const char *name, int64_t *n)
{
    FILE *in = fopen(files_in(f, name), "rb");
    assert_non_null(in);
    char *data = malloc(1 << 20);
    *n = (int64_t)fread(data, 1, 1 << 20, in);
    fclose(in);
    return data;
}

#endif
