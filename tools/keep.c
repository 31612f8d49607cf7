/* SPDX-License-Identifier: MIT
 *
 * keep.c - the folder in which packed weights are kept: the user's cache directory, or one that was
 * named; and a thread that writes them there while the first tokens are made.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "keep.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

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

/* ---- writing --------------------------------------------------------------------------------- */

static int32_t on_progress(void *user, int64_t done, int64_t total)
{
    keep_job *job = user;
    job->percent = total > 0 ? (int)(100.0 * (double)done / (double)total) : 100;
    return job->stop;
}

static void *write_weights(void *user)
{
    keep_job *job = user;
    setpriority(PRIO_PROCESS, 0, 19); /* on Linux of this thread alone: tokens come first */
    job->status = cmoe_model_keep(job->model, on_progress, job, &job->err);
    job->over = true;
    return NULL;
}

void keep_begin(keep_job *job, cmoe_model *model)
{
    sigset_t all, usual;
    *job = (keep_job){.model = model, .err = {.size = sizeof job->err}};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &usual); /* signals are for who waits for keys */
    if (pthread_create(&job->thread, NULL, write_weights, job) != 0) job->model = NULL;
    pthread_sigmask(SIG_SETMASK, &usual, NULL);
}

void keep_end(keep_job *job, bool quiet)
{
    const struct timespec some = {.tv_nsec = 20000000};
    if (!job->model) return;
    while (!job->over) {
        if (report_cancelled()) job->stop = true;
        report_progress(quiet, "keeping packed weights, %d%% (Ctrl-C: do not)", job->percent);
        nanosleep(&some, NULL);
    }
    pthread_join(job->thread, NULL);
    report_progress(quiet, "%s", "");
    job->model = NULL;
    if (job->status != CMOE_OK && job->status != CMOE_ERR_CANCELLED)
        fprintf(stderr, "cmoe: note: packed weights are not kept: %s\n", job->err.text);
}
