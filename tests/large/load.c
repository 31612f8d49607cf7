/* SPDX-License-Identifier: MIT
 *
 * load.c - how long a model takes to load beside a plain read of its files, and in how much memory.
 *
 *     large_load FOLDER                    load.py makes one
 *
 * Promised: anonymous memory never exceeds 1.15 times the packed weights, and files leave the page
 * cache as they are read.  A thread reads RssAnon every 10 ms meanwhile.
 */
#define _GNU_SOURCE /* mincore, scandir */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cmoe/model.h"

static const double MEMORY_BOUND = 1.15, CACHE_BOUND = 0.05;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int is_shard(const struct dirent *e)
{
    const size_t n = strlen(e->d_name);
    return n > 12 && strcmp(e->d_name + n - 12, ".safetensors") == 0;
}

/* Sum of what `each` says about every shard. */
static double over_shards(const char *folder, double (*each)(int fd, int64_t bytes))
{
    struct dirent **entries = NULL;
    const int n = scandir(folder, &entries, is_shard, alphasort);
    double sum = 0;
    for (int i = 0; i < n; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        const int fd = open(path, O_RDONLY);
        struct stat st;
        if (fd >= 0 && fstat(fd, &st) == 0) sum += each(fd, st.st_size);
        if (fd >= 0) close(fd);
        free(entries[i]);
    }
    free(entries);
    return sum;
}

static double size_of(int fd, int64_t bytes)
{
    (void)fd;
    return (double)bytes;
}

static double drop(int fd, int64_t bytes)
{
    return posix_fadvise(fd, 0, bytes, POSIX_FADV_DONTNEED);
}

static double read_all(int fd, int64_t bytes)
{
    static char buffer[4 << 20];
    int64_t at = 0;
    for (ssize_t n; at < bytes && (n = read(fd, buffer, sizeof buffer)) > 0;)
        at += n;
    return (double)at;
}

static double cached(int fd, int64_t bytes)
{
    const int64_t page = sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
    void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, fd, 0);
    unsigned char *in = malloc((size_t)pages);
    int64_t sum = 0;
    if (map != MAP_FAILED && in && mincore(map, (size_t)bytes, in) == 0)
        for (int64_t i = 0; i < pages; i++)
            sum += in[i] & 1 ? page : 0;
    if (map != MAP_FAILED) munmap(map, (size_t)bytes);
    free(in);
    return (double)sum;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static double anonymous_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %lld kB", &kib) == 1) break;
    if (f) fclose(f);
    return (double)kib * 1024;
}

typedef struct watch {
    pthread_t thread;
    atomic_bool stop;
    double before, peak;
} watch;

static void *watching(void *arg)
{
    watch *w = arg;
    const struct timespec pause = {0, 10 * 1000 * 1000};
    while (!atomic_load(&w->stop)) {
        const double bytes = anonymous_bytes();
        if (bytes > w->peak) w->peak = bytes;
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static bool watch_begin(watch *w)
{
    w->before = w->peak = anonymous_bytes();
    return pthread_create(&w->thread, NULL, watching, w) == 0;
}

static double watch_end(watch *w)
{
    atomic_store(&w->stop, true);
    pthread_join(w->thread, NULL);
    return w->peak - w->before;
}

/* ---- the test -------------------------------------------------------------------------------- */

static int counts[2];

static void check(bool ok, const char *what)
{
    counts[ok ? 0 : 1]++;
    if (!ok) printf("FAILED: %s\n", what);
}

static double load(const char *folder, int32_t keep, double *peak, cmoe_model_info *info)
{
    cmoe_error err = {0};
    cmoe_ctx *ctx = NULL;
    cmoe_model *m = NULL;
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = CMOE_BF16;
    o.keep_page_cache = keep;
    *info = (cmoe_model_info){.size = sizeof *info};
    watch w = {.stop = false};
    const bool watched = watch_begin(&w);
    bool ok = watched && cmoe_ctx_create(&ctx, NULL, &err) == CMOE_OK;
    const double begin = now();
    ok = ok && cmoe_model_load(&m, ctx, folder, &o, &err) == CMOE_OK;
    const double seconds = now() - begin;
    *peak = watched ? watch_end(&w) : 0;
    ok = ok && cmoe_model_describe(m, info, &err) == CMOE_OK;
    if (!ok) printf("%s\n", err.text);
    check(ok, "the model loads");
    if (m) cmoe_model_free(m);
    if (ctx) cmoe_ctx_free(ctx);
    return seconds;
}

static void line(const char *what, double seconds, double bytes)
{
    printf("%-34s %8.2f s %8.2f GB/s\n", what, seconds, bytes / seconds / 1e9);
    fflush(stdout);
}

static void measure(const char *folder)
{
    const double bytes = over_shards(folder, size_of);
    cmoe_model_info info;
    double peak, warm_peak, begin;

    over_shards(folder, drop);
    printf("page cache before: %.1f %% of %.2f GB\n", 100 * over_shards(folder, cached) / bytes,
           bytes / 1e9);
    begin = now();
    check(over_shards(folder, read_all) == bytes, "all bytes are read");
    line("plain read, cold", now() - begin, bytes);
    begin = now();
    over_shards(folder, read_all);
    line("plain read, warm", now() - begin, bytes);

    over_shards(folder, drop);
    line("load, cold", load(folder, 0, &peak, &info), bytes);
    const double left = over_shards(folder, cached) / bytes;
    over_shards(folder, read_all);
    line("load, warm, keeping the page cache", load(folder, 1, &warm_peak, &info), bytes);

    const double packed = (double)info.bytes.total, most = warm_peak > peak ? warm_peak : peak;
    printf("packed weights %.3f GB, anonymous memory at most %.3f GB: %.3f times, want %.2f\n",
           packed / 1e9, most / 1e9, most / packed, MEMORY_BOUND);
    printf("page cache after: %.1f %% of the files, want %.0f %%\n", 100 * left, 100 * CACHE_BOUND);
    check(packed > 0 && most <= MEMORY_BOUND * packed, "memory");
    check(left <= CACHE_BOUND, "page cache");
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        printf("usage: large_load FOLDER\n");
        return 2;
    }
    measure(argv[1]);
    printf("large_load: %d passed, %d failed\n", counts[0], counts[1]);
    return counts[1] != 0;
}
