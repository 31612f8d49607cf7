/* SPDX-License-Identifier: MIT
 *
 * tape.c - packed weights on disk: written whole, mapped again, never believed.
 */
#include "tape.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* Against accidents, not against enemies.  Eight chains, because one alone waits for its own
 * multiplication and is slower than memory. */
static uint64_t sum_of(const void *data, int64_t bytes)
{
    enum { LANES = 8 };
    uint64_t lane[LANES], word[LANES], sum = (uint64_t)bytes;
    const char *p = data;
    for (int i = 0; i < LANES; i++)
        lane[i] = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
    for (; bytes >= (int64_t)sizeof word; bytes -= (int64_t)sizeof word, p += sizeof word) {
        memcpy(word, p, sizeof word);
        for (int i = 0; i < LANES; i++) {
            lane[i] = (lane[i] ^ word[i]) * 0x2545f4914f6cdd1du;
            lane[i] ^= lane[i] >> 32;
        }
    }
    for (int i = 0; i < LANES; i++)
        sum = (sum ^ lane[i]) * 0x2545f4914f6cdd1du;
    for (; bytes > 0; bytes--, p++)
        sum = (sum ^ (unsigned char)*p) * 0x2545f4914f6cdd1du;
    return sum;
}

static int64_t table_at(const char *key)
{
    return (int64_t)sizeof(tape_head) + cmoei_round_up((int64_t)strlen(key) + 1, 8);
}

/* ---- playing ------------------------------------------------------------------------------------- */

static const tape_entry *entry(const cmoei_tape *t, int64_t i)
{
    const tape_head *h = (const void *)t->map;
    return (const tape_entry *)(const void *)(t->map + sizeof *h +
                                              cmoei_round_up(h->key_bytes, 8)) +
           i;
}

/* Everything about the mapping but what lies inside of its stretches. */
static const char *broken(const cmoei_tape *t, const char *key)
{
    const tape_head *h = (const void *)t->map;
    const int64_t key_bytes = (int64_t)strlen(key) + 1;
    int64_t end;
    if (t->map_bytes < (int64_t)sizeof *h || memcmp(h->magic, magic, sizeof magic) != 0)
        return "it is no cache of packed weights";
    if (h->key_bytes != key_bytes || t->map_bytes < table_at(key) ||
        memcmp(t->map + sizeof *h, key, (size_t)key_bytes) != 0)
        return "it belongs to other files, another format or another version";
    if (h->file_bytes != t->map_bytes) return "it has another size than when it was written";
    if (h->count < 0 || !cmoei_mul(h->count, (int64_t)sizeof(tape_entry), &end) ||
        !cmoei_add(end, table_at(key), &end) || end > t->map_bytes)
        return "its table does not fit into it";
    if (sum_of(t->map + sizeof *h, end - (int64_t)sizeof *h) != h->sum)
        return "its table has changed since it was written";
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
    _Atomic bool changed;
} verification;

static void verify(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    verification *v = arg;
    (void)index, (void)count;
    const tape_head *h = (const void *)v->tape->map;
    for (int64_t i; !v->changed && (i = cmoei_next(team, 1)) < h->count;) {
        const tape_entry *e = entry(v->tape, i);
        if (sum_of(v->tape->map + e->offset, e->bytes) != e->sum) v->changed = true;
    }
}

/* Every byte is looked at: a cache that could change results would be worse than none, and the pages
 * are wanted in memory anyway. */
static const char *changed(const cmoei_tape *t)
{
    verification v = {.tape = t};
    cmoei_region(t->ctx, ((const tape_head *)(const void *)t->map)->count, verify, &v);
    return v.changed ? "its weights have changed since they were written" : NULL;
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
                            cmoe_error *err)
{
    *t = (cmoei_tape){.ctx = ctx};
    CMOEI_TRY(map_file(t, path, err));
    madvise((void *)(uintptr_t)t->map, (size_t)t->map_bytes, MADV_WILLNEED);
    const char *why = broken(t, key);
    if (!why) why = changed(t);
    if (!why) return CMOE_OK;
    cmoei_tape_close(t);
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

/* Who may want the writing to end. */
typedef struct halt {
    cmoei_tape_stop stop;
    void *user;
} halt;

static bool write_all(int fd, const void *data, int64_t bytes, int64_t offset, const halt *h)
{
    const char *p = data;
    while (bytes > 0) {
        if (h->stop(h->user)) {
            errno = ECANCELED;
            return false;
        }
        const ssize_t n = pwrite(fd, p, (size_t)CMOEI_MIN(bytes, 16 << 20), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        offset += n;
        bytes -= n;
    }
    return true;
}

/* Head, key and table of what is recorded, `*bytes` of it. */
static cmoe_status make_index(const cmoei_tape *t, const char *key, char **index, int64_t *bytes,
                              cmoe_error *err)
{
    const int64_t table = table_at(key), key_bytes = (int64_t)strlen(key) + 1;
    *bytes = table + t->count * (int64_t)sizeof(tape_entry);
    CMOEI_TRY(cmoei_alloc(t->ctx, *bytes, "index of packed weights", (void **)index, err));
    memset(*index, 0, (size_t)*bytes);
    memcpy(*index + sizeof(tape_head), key, (size_t)key_bytes);
    int64_t offset = cmoei_round_up(*bytes, PAGE);
    for (int64_t i = 0; i < t->count; i++) {
        const cmoei_stretch *s = &t->list[i];
        const tape_entry e = {offset, s->bytes, sum_of(s->data, s->bytes)};
        memcpy(*index + table + i * (int64_t)sizeof e, &e, sizeof e);
        offset = cmoei_round_up(offset + s->bytes, PAGE);
    }
    tape_head head = {.file_bytes = offset, .key_bytes = key_bytes, .count = t->count};
    memcpy(head.magic, magic, sizeof magic);
    head.sum = sum_of(*index + sizeof head, *bytes - (int64_t)sizeof head);
    memcpy(*index, &head, sizeof head);
    return CMOE_OK;
}

static bool write_stretches(const cmoei_tape *t, int fd, const char *index, int64_t index_bytes,
                            const halt *h)
{
    tape_head head;
    memcpy(&head, index, sizeof head);
    int64_t offset = cmoei_round_up(index_bytes, PAGE);
    bool ok = ftruncate(fd, (off_t)head.file_bytes) == 0 && write_all(fd, index, index_bytes, 0, h);
    for (int64_t i = 0; ok && i < t->count; i++) {
        ok = write_all(fd, t->list[i].data, t->list[i].bytes, offset, h);
        offset = cmoei_round_up(offset + t->list[i].bytes, PAGE);
    }
    return ok && fsync(fd) == 0;
}

/* A file without a name, so that nothing stays behind when we are killed; where the file system has
 * none of these, one named `temporary`. */
static int open_new(const char *path, const char *temporary, bool *nameless)
{
    char folder[PATH_SIZE];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
    int fd = open(slash ? folder : ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    *nameless = fd >= 0;
    if (fd < 0) fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
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

cmoe_status cmoei_tape_write(const cmoei_tape *t, const char *path, const char *key,
                             cmoei_tape_stop stop, void *user, cmoe_error *err)
{
    const halt h = {stop, user};
    char temporary[PATH_SIZE], *index = NULL;
    int64_t index_bytes;
    bool nameless;
    const int length = snprintf(temporary, sizeof temporary, "%s.%ld.part", path, (long)getpid());
    if (length < 0 || length >= (int)sizeof temporary)
        return cmoei_fail(err, CMOE_ERR_IO, "%.200s...: the path is too long", path);
    CMOEI_TRY(make_index(t, key, &index, &index_bytes, err));
    const int fd = open_new(path, temporary, &nameless);
    const bool ok = fd >= 0 && write_stretches(t, fd, index, index_bytes, &h) &&
                    give_name(fd, nameless, temporary, path);
    const int why = errno;
    if (fd >= 0) close(fd); /* it has been synchronised: nothing can fail any more */
    if (!ok && fd >= 0) unlink(temporary);
    cmoei_free(t->ctx, index, index_bytes);
    if (ok) return CMOE_OK;
    const cmoe_status status = why == ECANCELED ? CMOE_ERR_CANCELLED : CMOE_ERR_IO;
    return cmoei_fail(err, status, "%s: %s", path, strerror(why));
}
