/* SPDX-License-Identifier: MIT
 *
 * tape.c - packed weights on disk: written whole, mapped again, never believed.
 */
#include "tape.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "weights/sum.h"

enum { PAGE = 4096, MAGIC_BYTES = 16, PATH_SIZE = 4096 };
static const char magic[MAGIC_BYTES] = "cmoe tape 1\n";

/* The fixed part of the first page; the key and the table follow it. */
typedef struct tape_head {
    char magic[MAGIC_BYTES];
    int64_t file_bytes, key_bytes, count;
    uint64_t sum; /* of key and table */
} tape_head;

typedef struct tape_entry {
    int64_t offset, bytes;
    uint64_t sum;
} tape_entry;

static int64_t table_at(int64_t key_bytes)
{
    return (int64_t)sizeof(tape_head) + cmoei_round_up(key_bytes, 8);
}

/* ---- playing ------------------------------------------------------------------------------------- */

static const tape_entry *entry(const cmoei_tape *t, int64_t i)
{
    const tape_head *h = (const void *)t->map;
    return (const tape_entry *)(const void *)(t->map + table_at(h->key_bytes)) + i;
}

/* Whether key and table are as they were written. */
static const char *broken_index(const cmoei_tape *t, int64_t *end)
{
    const tape_head *h = (const void *)t->map;
    const int64_t head = (int64_t)sizeof *h;
    if (memcmp(h->magic, magic, sizeof magic) != 0) return "it is no cache of packed weights";
    if (h->file_bytes != t->map_bytes) return "it has another size than when it was written";
    if (h->key_bytes < 1 || h->key_bytes > t->map_bytes - head || h->count < 0 ||
        !cmoei_mul(h->count, (int64_t)sizeof(tape_entry), end) ||
        !cmoei_add(*end, table_at(h->key_bytes), end) || *end > t->map_bytes)
        return "its table does not fit into it";
    if (cmoei_sum64(t->map + head, *end - head) != h->sum)
        return "its table has changed since it was written";
    return NULL;
}

static bool is_of(const cmoei_tape *t, const char *key)
{
    const tape_head *h = (const void *)t->map;
    return h->key_bytes == (int64_t)strlen(key) + 1 &&
           memcmp(t->map + sizeof *h, key, (size_t)h->key_bytes) == 0;
}

static const char *broken_stretches(const cmoei_tape *t, int64_t end)
{
    const tape_head *h = (const void *)t->map;
    for (int64_t i = 0; i < h->count; i++) {
        const tape_entry *e = entry(t, i);
        if (e->bytes <= 0 || e->offset < end || e->offset % PAGE != 0 ||
            e->bytes > t->map_bytes - e->offset)
            return "its table points beyond its end";
    }
    return NULL;
}

typedef struct verification {
    const cmoei_tape *tape;
    cmoei_tape_stop stop;
    void *user;
    _Atomic bool changed, stopped;
    _Atomic int64_t done; /* bytes */
} verification;

/* In steps, so that somebody can be asked in between: a stretch may be gigabytes. */
static bool same(verification *v, const tape_entry *e, bool asks)
{
    enum { STEP = 8 << 20 };
    const char *p = v->tape->map + e->offset;
    int64_t left = e->bytes;
    cmoei_sum running;
    for (cmoei_sum_begin(&running); left >= CMOEI_SUM_WORDS && !v->stopped;) {
        const int64_t n = CMOEI_MIN(left, STEP) / CMOEI_SUM_WORDS * CMOEI_SUM_WORDS;
        cmoei_sum_add(&running, p, n);
        p += n;
        left -= n;
        v->done += n;
        if (asks && v->stop(v->user, v->done, v->tape->map_bytes)) v->stopped = true;
    }
    return v->stopped || cmoei_sum_end(&running, p, left, e->bytes) == e->sum;
}

static void verify(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    verification *v = arg;
    (void)count;
    const tape_head *h = (const void *)v->tape->map;
    for (int64_t i; !v->changed && !v->stopped && (i = cmoei_next(team, 1)) < h->count;)
        if (!same(v, entry(v->tape, i), index == 0)) v->changed = true;
}

/* Every byte is looked at: a cache that could change results would be worse than none, and the pages
 * are wanted in memory anyway. */
static const char *changed(verification *v)
{
    const cmoei_tape *t = v->tape;
    cmoei_region(t->ctx, ((const tape_head *)(const void *)t->map)->count, verify, v);
    if (!v->changed && !v->stopped && v->stop(v->user, t->map_bytes, t->map_bytes))
        v->stopped = true;
    return v->changed ? "its weights have changed since they were written" : NULL;
}

static cmoe_status map_file(cmoei_tape *t, const char *path, cmoe_error *err)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(tape_head)) {
        close(fd);
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: it is no cache of packed weights", path);
    }
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be mapped: %s", path, strerror(errno));
    t->map = map;
    t->map_bytes = (int64_t)st.st_size;
    return CMOE_OK;
}

cmoe_status cmoei_tape_open(cmoei_tape *t, cmoe_ctx *ctx, const char *path, const char *key,
                            cmoei_tape_stop stop, void *user, cmoe_error *err)
{
    int64_t end = 0;
    *t = (cmoei_tape){.ctx = ctx};
    CMOEI_TRY(map_file(t, path, err));
    verification v = {.tape = t, .stop = stop, .user = user};
    const char *why = broken_index(t, &end);
    const bool other = !why && !is_of(t, key);
    if (!why && !other) why = broken_stretches(t, end);
    if (!why && !other) {
        madvise((void *)(uintptr_t)t->map, (size_t)t->map_bytes, MADV_WILLNEED);
        why = changed(&v);
    }
    if (!why && !other && !v.stopped) return CMOE_OK;
    cmoei_tape_close(t);
    if (other)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "%s: it is of other files or of another version", path);
    if (!why) return cmoei_fail(err, CMOE_ERR_CANCELLED, "loading was cancelled");
    return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %s", path, why);
}

cmoe_status cmoei_tape_take(cmoei_tape *t, int64_t bytes, const void **data, cmoe_error *err)
{
    *data = NULL;
    if (bytes == 0) return CMOE_OK;
    const tape_head *h = (const void *)t->map;
    if (t->next >= h->count || entry(t, t->next)->bytes != bytes)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          "packed weights: stretch %" PRId64 " has %" PRId64
                          " bytes, want %" PRId64,
                          t->next, t->next < h->count ? entry(t, t->next)->bytes : 0, bytes);
    *data = t->map + entry(t, t->next++)->offset;
    return CMOE_OK;
}

cmoe_status cmoei_tape_end(const cmoei_tape *t, cmoe_error *err)
{
    const int64_t count = ((const tape_head *)(const void *)t->map)->count;
    if (t->next == count) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_FORMAT, "packed weights: %" PRId64 " stretches, want %" PRId64,
                      count, t->next);
}

void cmoei_tape_close(cmoei_tape *t)
{
    if (t->map) munmap((void *)(uintptr_t)t->map, (size_t)t->map_bytes);
    for (int64_t i = 0; i < t->count; i++) {
        if (t->list[i].own)
            cmoei_free(t->ctx, (void *)(uintptr_t)t->list[i].data, t->list[i].bytes);
    }
    if (t->list) cmoei_free(t->ctx, t->list, t->capacity * (int64_t)sizeof *t->list);
    *t = (cmoei_tape){.ctx = t->ctx};
}

/* ---- recording ----------------------------------------------------------------------------------- */

static cmoe_status grow(cmoei_tape *t, cmoe_error *err)
{
    const int64_t capacity = CMOEI_MAX(256, 2 * t->capacity);
    cmoei_stretch *list;
    if (t->count < t->capacity) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(t->ctx, capacity * (int64_t)sizeof *list, "list of packed weights",
                          (void **)&list, err));
    if (t->count > 0) memcpy(list, t->list, (size_t)t->count * sizeof *list);
    if (t->list) cmoei_free(t->ctx, t->list, t->capacity * (int64_t)sizeof *list);
    t->list = list;
    t->capacity = capacity;
    return CMOE_OK;
}

cmoe_status cmoei_tape_put(cmoei_tape *t, const void *data, int64_t bytes, bool copy,
                           cmoe_error *err)
{
    if (!t->records || bytes == 0) return CMOE_OK;
    CMOEI_TRY(grow(t, err));
    void *own = NULL;
    if (copy) {
        CMOEI_TRY(cmoei_alloc(t->ctx, bytes, "copy for the cache", &own, err));
        memcpy(own, data, (size_t)bytes);
    }
    t->list[t->count++] = (cmoei_stretch){copy ? own : data, bytes, copy};
    return CMOE_OK;
}

/* ---- writing ------------------------------------------------------------------------------------- */

/* Who may want the writing to end, and how much of it there is. */
typedef struct halt {
    cmoei_tape_stop stop;
    void *user;
    int64_t total;
} halt;

static bool write_all(int fd, const void *data, int64_t bytes, int64_t offset)
{
    const char *p = data;
    while (bytes > 0) {
        const ssize_t n = pwrite(fd, p, (size_t)bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        offset += n;
        bytes -= n;
    }
    return true;
}

/* Summed a little at a time, while it is in the processor's cache anyway. */
static bool write_stretch(int fd, const cmoei_stretch *s, int64_t offset, const halt *h,
                          uint64_t *sum)
{
    const char *p = s->data;
    cmoei_sum running;
    cmoei_sum_begin(&running);
    for (int64_t done = 0, n; done < s->bytes; done += n) {
        n = CMOEI_MIN(s->bytes - done, 1 << 20);
        const int64_t whole =
            n / CMOEI_SUM_WORDS * CMOEI_SUM_WORDS; /* all of it but for the last ones */
        cmoei_sum_add(&running, p + done, whole);
        if (done + n == s->bytes)
            *sum = cmoei_sum_end(&running, p + done + whole, n - whole, s->bytes);
        if (h->stop(h->user, offset + done, h->total)) {
            errno = ECANCELED;
            return false;
        }
        if (!write_all(fd, p + done, n, offset + done)) return false;
    }
    return true;
}

/* Head, key and table of what is recorded, `*bytes` of it, without sums. */
static cmoe_status make_index(const cmoei_tape *t, const char *key, char **index, int64_t *bytes,
                              cmoe_error *err)
{
    const int64_t key_bytes = (int64_t)strlen(key) + 1, table = table_at(key_bytes);
    *bytes = table + t->count * (int64_t)sizeof(tape_entry);
    CMOEI_TRY(cmoei_alloc(t->ctx, *bytes, "index of packed weights", (void **)index, err));
    memset(*index, 0, (size_t)*bytes);
    memcpy(*index + sizeof(tape_head), key, (size_t)key_bytes);
    int64_t offset = cmoei_round_up(*bytes, PAGE);
    for (int64_t i = 0; i < t->count; i++) {
        const tape_entry e = {.offset = offset, .bytes = t->list[i].bytes};
        memcpy(*index + table + i * (int64_t)sizeof e, &e, sizeof e);
        offset = cmoei_round_up(offset + e.bytes, PAGE);
    }
    tape_head head = {.file_bytes = offset, .key_bytes = key_bytes, .count = t->count};
    memcpy(head.magic, magic, sizeof magic);
    memcpy(*index, &head, sizeof head);
    return CMOE_OK;
}

/* Without waiting for the disk: a file that a power cut has spoiled is noticed by its sums. */
static bool write_tape(const cmoei_tape *t, int fd, char *index, int64_t index_bytes, halt *h)
{
    tape_head head;
    memcpy(&head, index, sizeof head);
    h->total = head.file_bytes;
    char *table = index + table_at(head.key_bytes);
    bool ok = ftruncate(fd, 0) == 0 && ftruncate(fd, (off_t)head.file_bytes) == 0;
    for (int64_t i = 0; ok && i < t->count; i++, table += sizeof(tape_entry)) {
        tape_entry e;
        memcpy(&e, table, sizeof e);
        ok = write_stretch(fd, &t->list[i], e.offset, h, &e.sum);
        memcpy(table, &e, sizeof e);
    }
    head.sum = cmoei_sum64(index + sizeof head, index_bytes - (int64_t)sizeof head);
    memcpy(index, &head, sizeof head);
    return ok && write_all(fd, index, index_bytes, 0);
}

/* ---- names of files that are being written ------------------------------------------------------- */

static const char ending[] = ".packed", part[] = ".part";

/* "....packed.1234.part" */
static bool is_part(const char *name)
{
    const char *at = strstr(name, ending);
    if (!at || at[sizeof ending - 1] != '.') return false;
    at += sizeof ending;
    const size_t digits = strspn(at, "0123456789");
    return digits > 0 && strcmp(at + digits, part) == 0;
}

/* A writer holds a lock on its file, which ends with it, however that ends.  Between making a file and
 * locking it there is a moment: young files are left alone. */
static bool is_left(int fd)
{
    enum { YOUNG = 60 }; /* seconds */
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && time(NULL) - st.st_mtime > YOUNG &&
           flock(fd, LOCK_EX | LOCK_NB) == 0;
}

/* Removes what writers that were killed have left in the folder. */
static void sweep(const char *folder)
{
    DIR *d = opendir(folder);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (!is_part(e->d_name)) continue;
        const int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0) continue;
        if (is_left(fd)) unlinkat(dirfd(d), e->d_name, 0);
        close(fd);
    }
    if (d) closedir(d);
}

/* A file without a name, so that nothing stays behind when we are killed; where the file system has
 * none of these, one named `temporary`. */
static int open_new(const char *folder, const char *temporary, bool *nameless)
{
    int fd = open(folder, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    *nameless = fd >= 0;
    if (fd < 0) fd = open(temporary, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    /* Where there are no locks, nothing is ever swept. */
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        close(fd); /* another one's, in another container */
        errno = EBUSY;
        return -1;
    }
    return fd;
}

static bool give_name(int fd, bool nameless, const char *temporary, const char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (nameless) unlink(temporary); /* of a process that had our number */
    if (nameless && linkat(AT_FDCWD, link, AT_FDCWD, temporary, AT_SYMLINK_FOLLOW) != 0)
        return false;
    return rename(temporary, path) == 0;
}

cmoe_status cmoei_tape_write(const cmoei_tape *t, const char *folder, const char *name,
                             const char *key, cmoei_tape_stop stop, void *user, cmoe_error *err)
{
    halt h = {.stop = stop, .user = user};
    char path[PATH_SIZE], temporary[PATH_SIZE], *index = NULL;
    int64_t index_bytes;
    bool nameless;
    const int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    const int m = snprintf(temporary, sizeof temporary, "%s.%ld%s", path, (long)getpid(), part);
    if (n < 0 || m < 0 || m >= (int)sizeof temporary)
        return cmoei_fail(err, CMOE_ERR_IO, "%.200s...: the path is too long", path);
    CMOEI_TRY(make_index(t, key, &index, &index_bytes, err));
    sweep(folder);
    const int fd = open_new(folder, temporary, &nameless);
    const bool ok = fd >= 0 && write_tape(t, fd, index, index_bytes, &h) &&
                    give_name(fd, nameless, temporary, path);
    const int why = errno;
    if (!ok && fd >= 0) unlink(temporary);
    if (fd >= 0) close(fd);
    cmoei_free(t->ctx, index, index_bytes);
    if (ok) return CMOE_OK;
    const cmoe_status status = why == ECANCELED ? CMOE_ERR_CANCELLED : CMOE_ERR_IO;
    return cmoei_fail(err, status, "%s: %s", path, strerror(why));
}
