/* SPDX-License-Identifier: MIT
 *
 * write.c - a safetensors file, whole or not at all.
 *
 * The file is written under another name beside its own, synced, and renamed: whoever opens the
 * path sees the old file or the new one, also after a crash.  Tensors lie by size of their elements,
 * largest first, then by name, as in the reference writer: so all are aligned, and the order in
 * which they are given does not change the file.  The header is written twice with the same code,
 * the first time only to be counted.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint.h"
#include "file.h"
#include "json.h"
#include "write.h"

const char cmoei_later[] = "later";

typedef struct writer {
    cmoe_ctx *ctx; /* for its memory */
    const cmoe_view *tensors;
    int64_t count;
    const char *const *metadata;
    cmoei_later_fn later;
    void *user;
    int32_t *order; /* [count] as they are written */
    cmoe_error *err;

    int fd; /* -1: only count */
    int64_t at;
    cmoe_status status; /* the first error; after it nothing is written */
    const char *shown;
    int64_t held; /* bytes of the buffer */
    char buffer[4096];
} writer;

/* ---- what is accepted ------------------------------------------------------------------------ */

/* What the reader takes back: valid UTF-8 without control characters. */
static cmoe_status check_text(const char *text, const char *what, int64_t i, bool name,
                              cmoe_error *err)
{
    if (!text) return cmoei_fail(err, CMOE_ERR_ARG, "%s[%lld] is NULL", what, (long long)i);
    const int64_t n = (int64_t)strlen(text);
    bool control = false;
    for (int64_t k = 0; name && k < n; k++)
        control = control || (unsigned char)text[k] < 0x20 || text[k] == 0x7f;
    char shown[CMOEI_SHOWN + 4];
    if (control)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s[%lld] \"%s\": a control character", what,
                          (long long)i, cmoei_shown(shown, text, n));
    if (!cmoei_utf8(text, n))
        return cmoei_fail(err, CMOE_ERR_ARG, "%s[%lld] is not UTF-8", what, (long long)i);
    return CMOE_OK;
}

static cmoe_status check_tensor(const cmoe_view *v, int64_t i, cmoe_error *err)
{
    if (v->name && !strcmp(v->name, "__metadata__"))
        return cmoei_fail(err, CMOE_ERR_ARG, "tensor name[%lld]: \"__metadata__\" has another use",
                          (long long)i);
    CMOEI_TRY(check_text(v->name, "tensor name", i, true, err));
    if (v->rank < 0 || v->rank > CMOE_MAX_RANK)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: rank %d, want 0 <= rank <= %d", v->name,
                          v->rank, CMOE_MAX_RANK);
    if (!cmoei_stored_of(v->dtype))
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "%s: safetensors has no word for dtype %s (%d); packed values are "
                          "written as u8",
                          v->name, cmoe_dtype_name(v->dtype), v->dtype);
    cmoei_want want = {.name = v->name, .dtypes = CMOEI_DTYPE(v->dtype), .rank = v->rank};
    for (int k = 0; k < CMOE_MAX_RANK; k++) {
        want.dims[k] = -1;
        want.dim_names[k] = "n";
    }
    CMOEI_TRY(cmoei_check_in(v, &want, err));
    int64_t stride = 1, ignored;
    for (int32_t k = v->rank - 1; k >= 0; k--) {
        if (v->dims[k] > 1 && v->strides[k] != stride)
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: strides[%d] = %lld, want %lld (contiguous)",
                              v->name, k, (long long)v->strides[k], (long long)stride);
        if (v->dims[k] > 0 &&
            (!cmoei_mul(stride, v->dims[k], &stride) || !cmoei_mul(stride, 64, &ignored)))
            return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims multiply to 2^63 bits or more",
                              v->name);
    }
    return CMOE_OK;
}

static cmoe_status check_metadata(const char *const *metadata, cmoe_error *err)
{
    for (int64_t i = 0; metadata && metadata[i]; i += 2) {
        if (i / 2 == CMOEI_METADATA_MAX)
            return cmoei_fail(err, CMOE_ERR_ARG, "metadata: more than %d pairs",
                              CMOEI_METADATA_MAX);
        CMOEI_TRY(check_text(metadata[i], "metadata", i, true, err));
        CMOEI_TRY(check_text(metadata[i + 1], "metadata", i + 1, false, err));
        for (int64_t k = 0; k < i; k += 2) {
            if (!strcmp(metadata[k], metadata[i]))
                return cmoei_fail(err, CMOE_ERR_ARG, "metadata: key \"%.100s\" twice", metadata[i]);
        }
    }
    return CMOE_OK;
}

/* ---- order ----------------------------------------------------------------------------------- */

static int by_name(const void *table, int32_t a, int32_t b)
{
    const cmoe_view *v = table;
    return strcmp(v[a].name, v[b].name);
}

static int by_width(const void *table, int32_t a, int32_t b)
{
    const cmoe_view *v = table;
    const int64_t x = cmoe_dtype_bytes(v[a].dtype), y = cmoe_dtype_bytes(v[b].dtype);
    return (x < y) - (x > y); /* the sort is stable: names stay in order */
}

static cmoe_status sort_tensors(writer *w, int32_t *scratch)
{
    for (int64_t i = 0; i < w->count; i++)
        w->order[i] = (int32_t)i;
    cmoei_sort(w->order, scratch, w->count, by_name, w->tensors);
    for (int64_t i = 1; i < w->count; i++) {
        const char *name = w->tensors[w->order[i]].name;
        if (!strcmp(name, w->tensors[w->order[i - 1]].name))
            return cmoei_fail(w->err, CMOE_ERR_ARG, "tensor \"%.100s\" is given twice", name);
    }
    cmoei_sort(w->order, scratch, w->count, by_width, w->tensors);
    return CMOE_OK;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static void send(writer *w, const char *data, int64_t bytes)
{
    for (int64_t done = 0; w->status == CMOE_OK && done < bytes;) {
        /* One call takes at most 2 GB. */
        const int64_t part = CMOEI_MIN(bytes - done, (int64_t)1 << 30);
        const ssize_t n = pwrite(w->fd, data + done, (size_t)part, w->at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            w->status = cmoei_fail(w->err, CMOE_ERR_IO, "%s: cannot be written: %s", w->shown,
                                   cmoei_errno_text(n < 0 ? errno : ENOSPC).text);
            return;
        }
        done += n;
        w->at += n;
    }
}

static void flush(writer *w)
{
    send(w, w->buffer, w->held);
    w->held = 0;
}

static void put(writer *w, const char *text, int64_t bytes)
{
    if (w->fd < 0) {
        w->at += bytes;
        return;
    }
    while (bytes > 0) {
        const int64_t part = CMOEI_MIN(bytes, (int64_t)sizeof w->buffer - w->held);
        memcpy(w->buffer + w->held, text, (size_t)part);
        w->held += part;
        text += part;
        bytes -= part;
        if (w->held == (int64_t)sizeof w->buffer) flush(w);
    }
}

static void put_text(writer *w, const char *text)
{
    put(w, text, (int64_t)strlen(text));
}

static void put_string(writer *w, const char *text)
{
    char escaped[8];
    put(w, "\"", 1);
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c < 0x20) {
            snprintf(escaped, sizeof escaped, "\\u%04x", c);
            put_text(w, escaped);
            continue;
        }
        if (c == '"' || c == '\\') put(w, "\\", 1);
        put(w, text, 1);
    }
    put(w, "\"", 1);
}

static void put_count(writer *w, int64_t n)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)n);
    put_text(w, digits);
}

static int64_t bytes_of(const cmoe_view *v)
{
    int64_t n = cmoe_dtype_bytes(v->dtype);
    for (int32_t k = 0; k < v->rank; k++)
        n *= v->dims[k];
    return n;
}

static void put_tensor(writer *w, const cmoe_view *v, int64_t begin, int64_t end)
{
    put_string(w, v->name);
    put_text(w, ":{\"dtype\":");
    put_string(w, cmoei_stored_of(v->dtype)->name);
    put_text(w, ",\"shape\":[");
    for (int32_t k = 0; k < v->rank; k++) {
        if (k > 0) put_text(w, ",");
        put_count(w, v->dims[k]);
    }
    put_text(w, "],\"data_offsets\":[");
    put_count(w, begin);
    put_text(w, ",");
    put_count(w, end);
    put_text(w, "]}");
}

/* The header's text, blanks behind it up to a multiple of 8. */
static cmoe_status put_header(writer *w)
{
    const int64_t begin = w->at + w->held;
    int64_t end = 0;
    put_text(w, "{");
    if (w->metadata && w->metadata[0]) {
        put_text(w, "\"__metadata__\":{");
        for (int64_t i = 0; w->metadata[i]; i += 2) {
            if (i > 0) put_text(w, ",");
            put_string(w, w->metadata[i]);
            put_text(w, ":");
            put_string(w, w->metadata[i + 1]);
        }
        put_text(w, w->count > 0 ? "}," : "}");
    }
    for (int64_t i = 0; i < w->count; i++) {
        const cmoe_view *v = &w->tensors[w->order[i]];
        const int64_t first = end;
        if (!cmoei_add(end, bytes_of(v), &end))
            return cmoei_fail(w->err, CMOE_ERR_SHAPE, "%s: more than 2^63 - 1 bytes of tensors",
                              w->shown);
        if (i > 0) put_text(w, ",");
        put_tensor(w, v, first, end);
    }
    put_text(w, "}");
    const int64_t length = w->at + w->held - begin;
    put(w, "        ", cmoei_round_up(length, 8) - length);
    return CMOE_OK;
}

void cmoei_sink_put(cmoei_sink *sink, const void *data, int64_t bytes)
{
    send((writer *)sink, data, bytes);
}

/* A tensor that is made now: as many bytes as its view says. */
static cmoe_status send_later(writer *w, int64_t i)
{
    const int64_t end = w->at + bytes_of(&w->tensors[i]);
    CMOEI_TRY(w->later(w->user, i, (cmoei_sink *)w, w->err));
    if (w->status == CMOE_OK && w->at != end)
        w->status = cmoei_fail(w->err, CMOE_ERR_INTERNAL, "%s: %lld bytes too many or few",
                               w->tensors[i].name, (long long)(w->at - end));
    return w->status;
}

static cmoe_status write_all(writer *w, int64_t length)
{
    char size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (char)((uint64_t)length >> 8 * i & 0xff);
    put(w, size, 8);
    CMOEI_TRY(put_header(w));
    flush(w);
    for (int64_t i = 0; i < w->count; i++) {
        const cmoe_view *v = &w->tensors[w->order[i]];
        if (v->data == cmoei_later)
            CMOEI_TRY(send_later(w, w->order[i]));
        else
            send(w, v->data, bytes_of(v));
    }
    if (w->status == CMOE_OK && fsync(w->fd) != 0)
        w->status = cmoei_fail(w->err, CMOE_ERR_IO, "%s: cannot be synced: %s", w->shown,
                               cmoei_errno_text(errno).text);
    return w->status;
}

/* ---- the file -------------------------------------------------------------------------------- */

/* Where the file is written before it gets its name: new, beside it.  Not mkstemp: the user's umask
 * is to hold. */
static cmoe_status open_beside(writer *w, const char *path, char *beside, size_t room)
{
    for (int attempt = 0; attempt < 1000; attempt++) {
        snprintf(beside, room, "%s.%ld-%d.tmp", path, (long)getpid(), attempt);
        w->fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0 || errno != EEXIST) break;
    }
    if (w->fd >= 0) return CMOE_OK;
    return cmoei_fail(w->err, CMOE_ERR_IO, "%s: cannot be made: %s", cmoei_path_shown(beside).text,
                      cmoei_errno_text(errno).text);
}

/* So that the new name outlives a crash as well.  Not every file system can; the file is whole
 * either way. */
static void sync_folder(const char *path, char *folder)
{
    const char *slash = strrchr(path, '/');
    const size_t n = slash ? (size_t)(slash - path) + 1 : 0;
    memcpy(folder, path, n);
    memcpy(folder + n, ".", 2);
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* `beside` has room for the path and 64 bytes more. */
static cmoe_status write_file(writer *w, const char *path, char *beside, size_t room)
{
    struct stat s;
    if (stat(path, &s) == 0 && !S_ISREG(s.st_mode))
        return cmoei_fail(w->err, CMOE_ERR_IO, "%s: is there and not a regular file", w->shown);
    w->at = 0;
    CMOEI_TRY(put_header(w)); /* counts */
    const int64_t length = w->at;
    if (length > CMOEI_HEADER_MAX)
        return cmoei_fail(w->err, CMOE_ERR_RANGE,
                          "%s: the header would take %lld bytes, want at most %d", w->shown,
                          (long long)length, CMOEI_HEADER_MAX);
    w->at = 0;
    CMOEI_TRY(open_beside(w, path, beside, room));
    cmoe_status status = write_all(w, length);
    if (close(w->fd) != 0 && status == CMOE_OK)
        status = cmoei_fail(w->err, CMOE_ERR_IO, "%s: cannot be closed: %s", w->shown,
                            cmoei_errno_text(errno).text);
    if (status == CMOE_OK && rename(beside, path) != 0)
        status = cmoei_fail(w->err, CMOE_ERR_IO, "%s: cannot be renamed: %s", w->shown,
                            cmoei_errno_text(errno).text);
    if (status != CMOE_OK)
        unlink(beside);
    else
        sync_folder(path, beside);
    return status;
}

static cmoe_status with_memory(writer *w, const char *path)
{
    const int64_t list_bytes = w->count * (int64_t)sizeof *w->order;
    const int64_t room = (int64_t)strlen(path) + 64;
    int32_t *lists;
    void *beside;
    CMOEI_TRY(cmoei_alloc(w->ctx, 2 * list_bytes, "order of tensors", (void **)&lists, w->err));
    cmoe_status status = cmoei_alloc(w->ctx, room, "name of a file", &beside, w->err);
    if (status == CMOE_OK) {
        w->order = lists;
        status = sort_tensors(w, lists + w->count);
        if (status == CMOE_OK) status = write_file(w, path, beside, (size_t)room);
        cmoei_free(w->ctx, beside, room);
    }
    cmoei_free(w->ctx, lists, 2 * list_bytes);
    return status;
}

cmoe_status cmoe_safetensors_write(const char *path, const cmoe_view *tensors, int64_t count,
                                   const char *const *metadata, cmoe_error *err)
{
    return cmoei_safetensors_write(path, tensors, count, metadata, NULL, NULL, err);
}

cmoe_status cmoei_safetensors_write(const char *path, const cmoe_view *tensors, int64_t count,
                                    const char *const *metadata, cmoei_later_fn later, void *user,
                                    cmoe_error *err)
{
    if (!path || (!tensors && count > 0))
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL", path ? "tensors" : "path");
    if (count < 0 || count > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "%lld tensors, want 0 <= count < 2^31",
                          (long long)count);
    CMOEI_TRY(cmoei_engine_check(err));
    for (int64_t i = 0; i < count; i++)
        CMOEI_TRY(check_tensor(&tensors[i], i, err));
    CMOEI_TRY(check_metadata(metadata, err));
    const cmoei_path shown = cmoei_path_shown(path);
    writer w = {.tensors = tensors,
                .count = count,
                .metadata = metadata,
                .later = later,
                .user = user,
                .err = err,
                .fd = -1,
                .shown = shown.text};
    /* No context comes in; one without threads has the C library's memory. */
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    CMOEI_TRY(cmoe_ctx_create(&w.ctx, &o, err));
    const cmoe_status status = with_memory(&w, path);
    cmoe_ctx_free(w.ctx);
    return status;
}
