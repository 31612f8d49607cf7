/* SPDX-License-Identifier: MIT
 *
 * checkpoint_files.c - names, sums and the manifest of a checkpoint.
 *
 *     {"format": "cmoe training checkpoint", "version": 1, "cmoe": "0.1.0", "step": 1200,
 *      "key": "...", "note": "..." or null,
 *      "files": {"values.safetensors": {"bytes": 4096, "sum": "0123456789abcdef"}, ...},
 *      "sum": "..."}
 *
 * The last is that of the manifest itself: its other members, compact and sorted.  So a manifest that
 * somebody edits is not one any more, and a broken one is not taken for that of another training.
 */
#include "checkpoint_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "weights/file.h"
#include "weights/sum.h"

const char *const cmoei_checkpoint_files[CMOEI_CHECKPOINT_FILES] = {"values.safetensors",
                                                                    "state.safetensors"};
static const char format_name[] = "cmoe training checkpoint";

/* ---- names ------------------------------------------------------------------------------------- */

cmoei_step_name cmoei_step_folder(int64_t step)
{
    cmoei_step_name name;
    snprintf(name.text, sizeof name.text, "step-%08" PRId64, step);
    return name;
}

cmoei_step_name cmoei_step_part(int64_t step)
{
    cmoei_step_name name;
    snprintf(name.text, sizeof name.text, ".step-%08" PRId64 ".part", step);
    return name;
}

int64_t cmoei_step_of(const char *name, bool part)
{
    const char *digits = name + (part ? 6 : 5);
    int64_t step = 0;
    if (strncmp(name, part ? ".step-" : "step-", part ? 6 : 5) != 0) return -1;
    for (int i = 0; digits[i] >= '0' && digits[i] <= '9'; i++) {
        if (i == 18) return -1;
        step = 10 * step + (digits[i] - '0');
    }
    /* One number has one name. */
    const cmoei_step_name same = part ? cmoei_step_part(step) : cmoei_step_folder(step);
    return strcmp(same.text, name) == 0 ? step : -1;
}

cmoe_status cmoei_checkpoint_dir(const char *dir, cmoe_error *err)
{
    if (!dir || !*dir) return cmoei_fail(err, CMOE_ERR_ARG, "dir is %s", dir ? "empty" : "NULL");
    if (strlen(dir) <= CMOEI_DIR_MOST) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_IO, "%s: the path is longer than %d bytes",
                      cmoei_path_shown(dir).text, CMOEI_DIR_MOST);
}

cmoei_long_path cmoei_path_in(const char *dir, const char *a, const char *b)
{
    cmoei_long_path path;
    snprintf(path.text, sizeof path.text, "%s/%s%s%s", dir, a, b ? "/" : "", b ? b : "");
    return path;
}

int64_t cmoei_newest_step(int dir, int64_t below)
{
    int64_t newest = -1;
    const int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    if (!list) {
        const int why = errno;
        if (fd >= 0) close(fd);
        errno = why;
        return -2;
    }
    errno = 0;
    for (const struct dirent *e; (e = readdir(list));) {
        const int64_t step = cmoei_step_of(e->d_name, false);
        if (step < below) newest = CMOEI_MAX(newest, step);
    }
    const int why = errno;
    closedir(list);
    errno = why;
    return why ? -2 : newest;
}

/* ---- sums -------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 20 };

typedef struct pieces {
    int fd;
    const char *shown;
    int64_t bytes, count;
    uint64_t *sum; /* [count] */
    char *buffer;  /* [threads, PIECE] */
    _Atomic int32_t status;
} pieces;

/* Read, not mapped: a disk that fails is an error then, and not a signal. */
static void sum_pieces(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    pieces *p = arg;
    char *buffer = p->buffer + (int64_t)index * PIECE;
    (void)count;
    for (int64_t i; p->status == CMOE_OK && (i = cmoei_next(team, 1)) < p->count;) {
        const int64_t at = i * PIECE, n = CMOEI_MIN(p->bytes - at, PIECE);
        const cmoe_status status = cmoei_file_read(p->fd, p->shown, buffer, n, at, NULL);
        if (status != CMOE_OK) p->status = (int32_t)status;
        p->sum[i] = status == CMOE_OK ? cmoei_sum64(buffer, n) : 0;
    }
}

static cmoe_status sum_open(cmoe_ctx *ctx, pieces *p, uint64_t *sum, cmoe_error *err)
{
    const int64_t tasks = CMOEI_MIN(p->count, (int64_t)cmoe_ctx_threads(ctx));
    const int64_t list = p->count * (int64_t)sizeof *p->sum, buffers = tasks * PIECE;
    CMOEI_TRY(cmoei_alloc(ctx, list, "sums of a file", (void **)&p->sum, err));
    cmoe_status status = cmoei_alloc(ctx, buffers, "pieces of a file", (void **)&p->buffer, err);
    if (status == CMOE_OK) {
        cmoei_region(ctx, tasks, sum_pieces, p);
        *sum = cmoei_sum64(p->sum, list);
        cmoei_free(ctx, p->buffer, buffers);
        if (p->status != CMOE_OK)
            status = cmoei_fail(err, (cmoe_status)p->status, "%s: cannot be read", p->shown);
    }
    cmoei_free(ctx, p->sum, list);
    return status;
}

cmoe_status cmoei_sum_file(cmoe_ctx *ctx, const char *path, cmoei_file_sum *out, cmoe_error *err)
{
    const cmoei_path shown = cmoei_path_shown(path);
    pieces p = {.shown = shown.text};
    *out = (cmoei_file_sum){0};
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, path, shown.text, "", &p.fd, &p.bytes, err));
    p.count = cmoei_ceil_div(p.bytes, PIECE);
    out->bytes = p.bytes;
    const cmoe_status status = p.count > 0 ? sum_open(ctx, &p, &out->sum, err) : CMOE_OK;
    close(p.fd);
    return status;
}

/* ---- writing a manifest ------------------------------------------------------------------------ */

static json_t *hex(uint64_t sum)
{
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, sum);
    return json_string(text);
}

/* The text of a tree, to be freed by its bytes; NULL: no memory. */
static char *dump(cmoe_ctx *ctx, const json_t *tree, size_t flags, int64_t *bytes)
{
    char *text = NULL;
    *bytes = (int64_t)json_dumpb(tree, NULL, 0, flags);
    if (*bytes == 0 || cmoei_alloc(ctx, *bytes, "manifest", (void **)&text, NULL) != CMOE_OK)
        return NULL;
    (void)json_dumpb(tree, text, (size_t)*bytes, flags);
    return text;
}

/* Of everything but "sum" itself; false: no memory. */
static bool own_sum(cmoe_ctx *ctx, json_t *manifest, uint64_t *sum)
{
    int64_t bytes;
    json_t *rest = json_copy(manifest);
    if (!rest) return false;
    (void)json_object_del(rest, "sum");
    char *text = dump(ctx, rest, JSON_COMPACT | JSON_SORT_KEYS, &bytes);
    json_decref(rest);
    if (!text) return false;
    *sum = cmoei_sum64(text, bytes);
    cmoei_free(ctx, text, bytes);
    return true;
}

/* NULL: no memory, or a text that is not UTF-8. */
static json_t *manifest_json(cmoe_ctx *ctx, const cmoei_manifest *m)
{
    json_t *files = json_object(), *all = json_object();
    bool bad = !files || !all;
    uint64_t sum = 0;
    for (int i = 0; i < CMOEI_CHECKPOINT_FILES && !bad; i++) {
        json_t *one = json_object();
        bad = !one || json_object_set_new(one, "bytes", json_integer(m->file[i].bytes)) ||
              json_object_set_new(one, "sum", hex(m->file[i].sum));
        if (json_object_set_new(files, cmoei_checkpoint_files[i], one)) bad = true;
    }
    bad = bad || json_object_set_new(all, "format", json_string(format_name)) ||
          json_object_set_new(all, "version", json_integer(CMOEI_CHECKPOINT_VERSION)) ||
          json_object_set_new(all, "cmoe", json_string(cmoe_version())) ||
          json_object_set_new(all, "step", json_integer(m->step)) ||
          json_object_set_new(all, "key", json_string(m->key)) ||
          json_object_set_new(all, "note", m->note ? json_string(m->note) : json_null()) ||
          json_object_set(all, "files", files) || !own_sum(ctx, all, &sum) ||
          json_object_set_new(all, "sum", hex(sum));
    json_decref(files);
    if (!bad) return all;
    json_decref(all);
    return NULL;
}

static bool write_synced(const char *path, const char *text, int64_t bytes)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return false;
    bool ok = true;
    for (int64_t at = 0; ok && at < bytes;) {
        const ssize_t n = pwrite(fd, text + at, (size_t)(bytes - at), (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENOSPC;
        ok = n > 0;
        at += n;
    }
    ok = ok && fsync(fd) == 0;
    const int why = errno;
    if (close(fd) != 0 && ok) return false;
    errno = why;
    return ok;
}

cmoe_status cmoei_manifest_write(cmoe_ctx *ctx, const char *path, const cmoei_manifest *m,
                                 cmoe_error *err)
{
    int64_t bytes;
    json_t *all = manifest_json(ctx, m);
    char *text = all ? dump(ctx, all, JSON_INDENT(1), &bytes) : NULL;
    json_decref(all);
    if (!text)
        return cmoei_fail(err, CMOE_ERR_MEMORY, "%s: no memory", cmoei_path_shown(path).text);
    cmoe_status status = CMOE_OK;
    if (!write_synced(path, text, bytes))
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be written: %s",
                            cmoei_path_shown(path).text, cmoei_errno_text(errno).text);
    cmoei_free(ctx, text, bytes);
    return status;
}

/* ---- reading one ------------------------------------------------------------------------------- */

static bool read_hex(const json_t *text, uint64_t *sum)
{
    const char *s = json_string_value(text);
    if (!s || strlen(s) != 16 || strspn(s, "0123456789abcdef") != 16) return false;
    *sum = strtoull(s, NULL, 16);
    return true;
}

/* What is wrong with it; NULL: nothing. */
static const char *read_members(const json_t *all, uint64_t sum, cmoei_manifest *m)
{
    const json_t *files = json_object_get(all, "files"), *note = json_object_get(all, "note");
    uint64_t wanted;
    if (!read_hex(json_object_get(all, "sum"), &wanted) || sum != wanted)
        return "it has changed since it was written";
    m->key = json_string_value(json_object_get(all, "key"));
    m->note = json_string_value(note);
    m->step = json_integer_value(json_object_get(all, "step"));
    if (!m->key || (!m->note && !json_is_null(note)) ||
        !json_is_integer(json_object_get(all, "step")))
        return "it has no step, key or note";
    for (int i = 0; i < CMOEI_CHECKPOINT_FILES; i++) {
        const json_t *one = json_object_get(files, cmoei_checkpoint_files[i]);
        const json_t *bytes = json_object_get(one, "bytes");
        m->file[i].bytes = json_integer_value(bytes);
        if (!json_is_integer(bytes) || !read_hex(json_object_get(one, "sum"), &m->file[i].sum))
            return "it does not say what its files are";
    }
    return NULL;
}

static cmoe_status read_text(const char *path, const char *shown, cmoe_ctx *ctx, char **text,
                             int64_t *bytes, cmoe_error *err)
{
    enum { MOST = 1 << 24 };
    int fd;
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, path, shown, "", &fd, bytes, err));
    cmoe_status status = CMOE_OK;
    if (*bytes == 0 || *bytes > MOST)
        status = cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %" PRId64 " bytes, want 1 to %d", shown,
                            *bytes, MOST);
    if (status == CMOE_OK) status = cmoei_alloc(ctx, *bytes, "manifest", (void **)text, err);
    if (status == CMOE_OK) {
        status = cmoei_file_read(fd, shown, *text, *bytes, 0, err);
        if (status != CMOE_OK) cmoei_free(ctx, *text, *bytes);
    }
    close(fd);
    return status;
}

cmoe_status cmoei_manifest_read(cmoe_ctx *ctx, const char *path, cmoei_manifest *m, bool *broken,
                                cmoe_error *err)
{
    const cmoei_path shown = cmoei_path_shown(path);
    json_error_t where;
    char *text;
    int64_t bytes;
    *m = (cmoei_manifest){0};
    *broken = true;
    CMOEI_TRY(read_text(path, shown.text, ctx, &text, &bytes, err));
    json_t *all = json_loadb(text, (size_t)bytes, JSON_REJECT_DUPLICATES, &where);
    cmoei_free(ctx, text, bytes);
    if (!all && json_error_code(&where) == json_error_out_of_memory)
        return cmoei_fail(err, CMOE_ERR_MEMORY, "%s: no memory", shown.text);
    if (!all)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: line %d: %s", shown.text, where.line,
                          where.text);
    m->json = all;
    const char *format = json_string_value(json_object_get(all, "format"));
    const json_t *version = json_object_get(all, "version");
    if (!format || strcmp(format, format_name) != 0 || !json_is_integer(version)) {
        cmoei_manifest_free(m);
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: it is not the manifest of a checkpoint",
                          shown.text);
    }
    const int64_t number = json_integer_value(version);
    if (number != CMOEI_CHECKPOINT_VERSION) {
        const char *by = json_string_value(json_object_get(all, "cmoe"));
        *broken = false;
        (void)cmoei_fail(err, CMOE_ERR_FORMAT,
                         "%s: version %" PRId64 " of the format, written by cmoe %.20s; this is "
                         "cmoe %s, which reads version %d",
                         shown.text, number, by ? by : "?", cmoe_version(),
                         CMOEI_CHECKPOINT_VERSION);
        cmoei_manifest_free(m);
        return CMOE_ERR_FORMAT;
    }
    uint64_t sum;
    if (!own_sum(ctx, all, &sum)) {
        cmoei_manifest_free(m);
        return cmoei_fail(err, CMOE_ERR_MEMORY, "%s: no memory", shown.text);
    }
    const char *wrong = read_members(all, sum, m);
    if (!wrong) return CMOE_OK;
    cmoei_manifest_free(m);
    return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %s", shown.text, wrong);
}

void cmoei_manifest_free(cmoei_manifest *m)
{
    json_decref(m->json);
    *m = (cmoei_manifest){0};
}
