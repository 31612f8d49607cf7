/* SPDX-License-Identifier: MIT
 *
 * file.c - see file.h.
 *
 * The header is read into memory of ours and checked there; only then the file is mapped, so that
 * what was checked cannot change behind the check.  The data can, if somebody writes to the file;
 * then values are wrong, but every address stays inside the mapping.
 */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

cmoei_path cmoei_path_shown(const char *path)
{
    cmoei_path out;
    const size_t n = strlen(path);
    if (n <= CMOEI_PATH_SHOWN)
        memcpy(out.text, path, n + 1);
    else
        snprintf(out.text, sizeof out.text, "...%s", path + (n - CMOEI_PATH_SHOWN));
    for (char *p = out.text; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    }
    return out;
}

cmoei_reason cmoei_errno_text(int number)
{
    cmoei_reason out;
    char buffer[96];
    snprintf(out.text, sizeof out.text, "%s", strerror_r(number, buffer, sizeof buffer));
    return out;
}

static cmoe_status io_fail(cmoe_error *err, const char *shown, const char *why, const char *doing)
{
    return cmoei_fail(err, CMOE_ERR_IO, "%s: %s: %s%s", shown, doing, cmoei_errno_text(errno).text,
                      why);
}

static const char *kind_of(mode_t mode)
{
    return S_ISDIR(mode)    ? "a folder"
           : S_ISFIFO(mode) ? "a FIFO"
           : S_ISSOCK(mode) ? "a socket"
                            : "a device";
}

cmoe_status cmoei_file_open(int folder, const char *path, const char *shown, const char *why,
                            int *fd, int64_t *bytes, cmoe_error *err)
{
    struct stat s;
    /* Without O_NONBLOCK a FIFO would be waited for; it changes nothing for regular files. */
    const int f = openat(folder, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (f < 0) return io_fail(err, shown, why, "cannot be opened");
    cmoe_status status = CMOE_OK;
    if (fstat(f, &s) != 0)
        status = io_fail(err, shown, why, "cannot be asked for its size");
    else if (!S_ISREG(s.st_mode))
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: is %s, want a regular file%s", shown,
                            kind_of(s.st_mode), why);
    if (status != CMOE_OK) {
        close(f);
        return status;
    }
    *fd = f;
    *bytes = (int64_t)s.st_size;
    return CMOE_OK;
}

cmoe_status cmoei_file_read(int fd, const char *shown, void *out, int64_t bytes, int64_t offset,
                            cmoe_error *err)
{
    int64_t done = 0;
    while (done < bytes) {
        const ssize_t n = pread(fd, (char *)out + done, (size_t)(bytes - done), offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_fail(err, shown, "", "cannot be read");
        if (n == 0)
            return cmoei_fail(err, CMOE_ERR_IO, "%s: ended at byte %lld while it was read", shown,
                              (long long)(offset + done));
        done += n;
    }
    return CMOE_OK;
}

/* Data of a file that is open, on the disk. */
static bool write_synced(int fd, const char *data, int64_t bytes)
{
    for (int64_t done = 0; done < bytes;) {
        const ssize_t n =
            pwrite(fd, data + done, (size_t)CMOEI_MIN(bytes - done, 1 << 30), (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        done += n;
    }
    return fsync(fd) == 0;
}

cmoe_status cmoei_file_write(const char *path, const void *data, int64_t bytes, cmoe_error *err)
{
    char part[4096];
    const cmoei_path shown = cmoei_path_shown(path);
    const int n = snprintf(part, sizeof part, "%s.%ld.tmp", path, (long)getpid());
    if (n < 0 || n >= (int)sizeof part)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: the path is too long", shown.text);
    const int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && write_synced(fd, data, bytes);
    int why = errno;
    if (fd >= 0) close(fd);
    if (ok) {
        ok = rename(part, path) == 0;
        why = errno;
    }
    if (ok) return CMOE_OK;
    if (fd >= 0) unlink(part);
    return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be written: %s", shown.text,
                      cmoei_errno_text(why).text);
}

static cmoe_status read_header(cmoei_file *f, cmoe_ctx *ctx, const char *shown, cmoe_error *err)
{
    char first[8];
    int64_t length = 0;
    void *text = NULL;
    if (f->bytes >= 8) CMOEI_TRY(cmoei_file_read(f->fd, shown, first, 8, 0, err));
    CMOEI_TRY(cmoei_header_length(first, f->bytes, shown, &length, err));
    CMOEI_TRY(cmoei_alloc(ctx, length, "header of a safetensors file", &text, err));
    cmoe_status status = cmoei_file_read(f->fd, shown, text, length, 8, err);
    if (status == CMOE_OK)
        status = cmoei_header_read(&f->header, ctx, text, length, f->bytes, shown, err);
    cmoei_free(ctx, text, length);
    return status;
}

static cmoe_status map_fail(cmoe_error *err, const char *shown, int64_t bytes)
{
    return cmoei_fail(err, errno == ENOMEM ? CMOE_ERR_MEMORY : CMOE_ERR_IO,
                      "%s: %lld bytes cannot be mapped: %s", shown, (long long)bytes,
                      cmoei_errno_text(errno).text);
}

cmoe_status cmoei_file_map(cmoei_file *f, cmoe_ctx *ctx, int folder, const char *path,
                           const char *shown, const char *why, cmoe_error *err)
{
    CMOEI_TRY(cmoei_file_open(folder, path, shown, why, &f->fd, &f->bytes, err));
    cmoe_status status = read_header(f, ctx, shown, err);
    if (status == CMOE_OK) {
        void *p = mmap(NULL, (size_t)f->bytes, PROT_READ, MAP_SHARED, f->fd, 0);
        if (p == MAP_FAILED)
            status = map_fail(err, shown, f->bytes);
        else
            f->data = p;
    }
    if (status != CMOE_OK) cmoei_file_close(f, ctx);
    return status;
}

void cmoei_file_close(cmoei_file *f, cmoe_ctx *ctx)
{
    cmoei_header_free(&f->header, ctx);
    if (f->data) munmap((void *)(uintptr_t)f->data, (size_t)f->bytes);
    if (f->fd >= 0) close(f->fd);
    f->data = NULL;
    f->fd = -1;
}
