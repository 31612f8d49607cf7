/* SPDX-License-Identifier: MIT
 *
 * checkpoint.c - writes a checkpoint: complete, or not there.
 *
 * One writer at a time has the folder locked, so a .part that it finds was left by one that died.  An
 * older checkpoint is first renamed to a .part and then emptied: it goes as a whole, too.
 */
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_files.h"
#include "cmoe/weights.h"
#include "weights/checkpoint.h"
#include "weights/file.h"
#include "weights/json.h"

typedef struct writer {
    cmoe_ctx *ctx;
    const cmoei_checkpoint_write *w;
    const cmoei_checkpoint_array *arrays;
    int64_t count;
    int dir;
    cmoei_step_name name, part;
    cmoei_manifest manifest;
    cmoe_error *err;
} writer;

static cmoe_status io_fail(const writer *x, const char *name, const char *what)
{
    const int why = errno;
    const cmoei_long_path path = cmoei_path_in(x->w->dir, name, NULL);
    return cmoei_fail(x->err, CMOE_ERR_IO, "%s: %s: %s", cmoei_path_shown(path.text).text, what,
                      cmoei_errno_text(why).text);
}

static void warn(const writer *x, const char *name, const char *what)
{
    char text[512];
    const int why = errno;
    if (!x->ctx->log) return;
    snprintf(text, sizeof text, "%s/%s %s: %s", cmoei_path_shown(x->w->dir).text, name, what,
             cmoei_errno_text(why).text);
    x->ctx->log(x->ctx->log_user, CMOE_LOG_WARN, text);
}

/* ---- folders ----------------------------------------------------------------------------------- */

/* The folder and the files in it; false: errno says why it stays. */
static bool remove_folder(int dir, const char *name)
{
    const int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return errno == ENOENT;
    DIR *list = fdopendir(fd);
    if (!list) {
        close(fd);
        return false;
    }
    for (const struct dirent *e; (e = readdir(list));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            (void)unlinkat(fd, e->d_name, 0); /* one that stays is said by rmdir */
    }
    closedir(list);
    return unlinkat(dir, name, AT_REMOVEDIR) == 0;
}

/* What writers left that died. */
static void remove_parts(const writer *x)
{
    const int fd = openat(x->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    if (!list) {
        if (fd >= 0) close(fd);
        return;
    }
    for (const struct dirent *e; (e = readdir(list));) {
        if (cmoei_step_of(e->d_name, true) >= 0 && !remove_folder(x->dir, e->d_name))
            warn(x, e->d_name, "of a writer that died stays");
    }
    closedir(list);
}

static bool has_manifest(int dir, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "%s/" CMOEI_MANIFEST, name);
    return faccessat(dir, path, F_OK, 0) == 0;
}

/* Older ones beyond `keep`, this one counted. */
static void remove_older(const writer *x)
{
    int64_t kept = 1, step = x->w->step;
    while ((step = cmoei_newest_step(x->dir, step)) >= 0) {
        const cmoei_step_name name = cmoei_step_folder(step), part = cmoei_step_part(step);
        if (!has_manifest(x->dir, name.text) || kept++ < x->w->keep) continue;
        if (renameat(x->dir, name.text, x->dir, part.text) != 0 ||
            !remove_folder(x->dir, part.text))
            warn(x, name.text, "is not wanted any more, but stays");
    }
}

static cmoe_status sync_folder(const writer *x, const char *name)
{
    const int fd = openat(x->dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return io_fail(x, name, "cannot be opened");
    const bool ok = fsync(fd) == 0 || errno == EINVAL; /* of a file system that has no need to */
    const cmoe_status status = ok ? CMOE_OK : io_fail(x, name, "cannot be synced");
    close(fd);
    return status;
}

/* A new folder's name is to outlive a crash as well; who may not read the parent has to hope. */
static void sync_parent(const writer *x)
{
    const int fd = openat(x->dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

/* ---- files ------------------------------------------------------------------------------------- */

static cmoe_status write_arrays(writer *x, int file)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    const int64_t most = CMOEI_MAX(x->count, 1) * (int64_t)sizeof(cmoe_view);
    const cmoei_long_path path =
        cmoei_path_in(x->w->dir, x->part.text, cmoei_checkpoint_files[file]);
    cmoe_view *views;
    int64_t n = 0;
    CMOEI_TRY(cmoei_alloc(x->ctx, most, "tensors of a checkpoint", (void **)&views, x->err));
    for (int64_t i = 0; i < x->count; i++) {
        const cmoei_checkpoint_array *a = &x->arrays[i];
        if (a->state != (file == 1)) continue;
        views[n] = cmoe_view_1d(a->data, CMOE_F32, a->count);
        views[n++].name = a->name;
    }
    cmoe_status status = cmoe_safetensors_write(path.text, views, n, metadata, x->err);
    cmoei_free(x->ctx, views, most);
    if (status == CMOE_OK)
        status = cmoei_sum_file(x->ctx, path.text, &x->manifest.file[file], x->err);
    return status;
}

static cmoe_status write_part(writer *x)
{
    const cmoei_checkpoint_write *w = x->w;
    if (mkdirat(x->dir, x->part.text, 0777) != 0) return io_fail(x, x->part.text, "cannot be made");
    for (int i = 0; i < CMOEI_CHECKPOINT_FILES; i++)
        CMOEI_TRY(write_arrays(x, i));
    x->manifest.step = w->step;
    x->manifest.key = w->key;
    x->manifest.note = w->note;
    const cmoei_long_path path = cmoei_path_in(w->dir, x->part.text, CMOEI_MANIFEST);
    CMOEI_TRY(cmoei_manifest_write(x->ctx, path.text, &x->manifest, x->err));
    return sync_folder(x, x->part.text);
}

/* The part gets its name.  One that has it already goes: in one exchange where the file system can. */
static cmoe_status give_name(const writer *x)
{
    const char *name = x->name.text, *part = x->part.text;
    if (renameat(x->dir, part, x->dir, name) == 0) return CMOE_OK;
    if (errno != ENOTEMPTY && errno != EEXIST) return io_fail(x, part, "cannot be renamed");
    if (renameat2(x->dir, part, x->dir, name, RENAME_EXCHANGE) == 0) {
        if (!remove_folder(x->dir, part)) warn(x, part, "was replaced, but stays");
        return CMOE_OK;
    }
    if (!remove_folder(x->dir, name) || renameat(x->dir, part, x->dir, name) != 0)
        return io_fail(x, name, "cannot be replaced");
    return CMOE_OK;
}

static cmoe_status write_locked(writer *x)
{
    remove_parts(x);
    cmoe_status status = write_part(x);
    if (status == CMOE_OK) status = give_name(x);
    if (status != CMOE_OK) {
        (void)remove_folder(x->dir, x->part.text); /* or the next writer does */
        return status;
    }
    CMOEI_TRY(sync_folder(x, "."));
    remove_older(x);
    return CMOE_OK;
}

/* ---- save -------------------------------------------------------------------------------------- */

enum { TEXT_MOST = 1 << 20 }; /* also with every byte escaped a manifest that can be read */

static cmoe_status check(cmoe_ctx *ctx, const cmoei_checkpoint_write *w,
                         const cmoei_checkpoint_array *arrays, int64_t count, cmoe_error *err)
{
    if (!ctx || !w || (!arrays && count > 0))
        return cmoei_fail(err, CMOE_ERR_ARG, "checkpoint: %s is NULL",
                          !ctx ? "ctx"
                          : !w ? "w"
                               : "arrays");
    CMOEI_TRY(cmoei_engine_check(err));
    CMOEI_TRY(cmoei_checkpoint_dir(w->dir, err));
    if (w->step < 0 || w->step >= 1000000000000000000)
        return cmoei_fail(err, CMOE_ERR_RANGE, "step = %" PRId64 ", want 0 to 10^18 - 1", w->step);
    if (w->keep < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "keep = %" PRId64 ", want at least 1", w->keep);
    if (!w->key || strchr(w->key, '\n') || !cmoei_utf8(w->key, (int64_t)strlen(w->key)))
        return cmoei_fail(err, CMOE_ERR_ARG, "key, want one line of UTF-8");
    if (strlen(w->key) > TEXT_MOST || (w->note && strlen(w->note) > TEXT_MOST))
        return cmoei_fail(err, CMOE_ERR_RANGE, "key or note has more than %d bytes", TEXT_MOST);
    if (w->note && !cmoei_utf8(w->note, (int64_t)strlen(w->note)))
        return cmoei_fail(err, CMOE_ERR_ARG, "note is not UTF-8");
    return CMOE_OK;
}

cmoe_status cmoei_checkpoint_save(cmoe_ctx *ctx, const cmoei_checkpoint_write *w,
                                  const cmoei_checkpoint_array *arrays, int64_t count,
                                  cmoe_error *err)
{
    CMOEI_TRY(check(ctx, w, arrays, count, err));
    const cmoei_path shown = cmoei_path_shown(w->dir);
    writer x = {.ctx = ctx, .w = w, .arrays = arrays, .count = count, .err = err};
    x.name = cmoei_step_folder(w->step);
    x.part = cmoei_step_part(w->step);
    const bool made = mkdir(w->dir, 0777) == 0;
    if (!made && errno != EEXIST)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be made: %s", shown.text,
                          cmoei_errno_text(errno).text);
    x.dir = open(w->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (x.dir < 0)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be opened: %s", shown.text,
                          cmoei_errno_text(errno).text);
    cmoe_status status;
    if (made) sync_parent(&x);
    /* A file system without locks has to be believed. */
    if (flock(x.dir, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: another writer is at work in it", shown.text);
    else
        status = write_locked(&x);
    close(x.dir);
    return status;
}
