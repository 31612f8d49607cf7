/* SPDX-License-Identifier: MIT
 *
 * checkpoint_load.c - the newest checkpoint that is whole, into memory.
 *
 * A broken one (a file that is cut, missing or changed) is passed over and said to the log.  What is
 * whole but belongs to something else is an error: going on with an older one would hide it.
 */
#include "checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint_files.h"
#include "cmoe/weights.h"
#include "weights/checkpoint.h"
#include "weights/file.h"
#include "weights/json.h"

typedef struct reader {
    cmoe_ctx *ctx;
    const char *dir, *key;
    const cmoei_checkpoint_array *arrays;
    int64_t count;
    int fd;
    cmoe_checkpoint *file[CMOEI_CHECKPOINT_FILES];
} reader;

/* ---- is it ours -------------------------------------------------------------------------------- */

/* A piece of a key for a text, from a little before `at`. */
static const char *piece(char out[CMOEI_SHOWN + 4], const char *key, int64_t at)
{
    enum { BEFORE = 24, LENGTH = 60 };
    const int64_t begin = CMOEI_MAX(at - BEFORE, 0), rest = (int64_t)strlen(key) - begin;
    return cmoei_shown(out, key + begin, CMOEI_MIN(rest, LENGTH));
}

static cmoe_status check_key(const reader *r, const char *shown, const char *key, cmoe_error *err)
{
    char has[CMOEI_SHOWN + 4], want[CMOEI_SHOWN + 4];
    int64_t at = 0;
    if (strcmp(key, r->key) == 0) return CMOE_OK;
    while (key[at] == r->key[at])
        at++;
    return cmoei_fail(err, CMOE_ERR_FORMAT,
                      "%s: it belongs to another model or other options: its key has \"%s\" where "
                      "\"%s\" is wanted (character %" PRId64 ")",
                      shown, piece(has, key, at), piece(want, r->key, at), at + 1);
}

static cmoe_status check_array(const reader *r, const char *shown, const cmoei_checkpoint_array *a,
                               cmoe_tensor *t, cmoe_error *err)
{
    const cmoe_checkpoint *file = r->file[a->state];
    const char *name = cmoei_checkpoint_files[a->state];
    const int64_t i = cmoe_checkpoint_find(file, a->name);
    if (i < 0)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s/%s: there is no tensor \"%.150s\"", shown, name,
                          a->name);
    t->size = sizeof *t;
    CMOEI_TRY(cmoe_checkpoint_tensor(file, i, t, err));
    if (t->dtype != CMOE_F32 || t->rank != 1)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          "%s/%s: tensor \"%.150s\" is %.20s of rank %d, want F32 of rank 1", shown,
                          name, a->name, t->stored, t->rank);
    if (t->dims[0] != a->count)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          "%s/%s: tensor \"%.150s\" has %" PRId64 " elements, want %" PRId64, shown,
                          name, a->name, t->dims[0], a->count);
    return CMOE_OK;
}

/* Called when there are more tensors than arrays. */
static cmoe_status fail_extra(const reader *r, const char *shown, int file, cmoe_error *err)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(r->file[file]); i++) {
        cmoe_tensor t = {.size = sizeof t};
        bool known = false;
        char name[CMOEI_SHOWN + 4];
        CMOEI_TRY(cmoe_checkpoint_tensor(r->file[file], i, &t, err));
        for (int64_t k = 0; k < r->count && !known; k++)
            known = r->arrays[k].state == (file == 1) && strcmp(r->arrays[k].name, t.name) == 0;
        if (!known)
            return cmoei_fail(err, CMOE_ERR_FORMAT, "%s/%s: tensor \"%s\" is not known here", shown,
                              cmoei_checkpoint_files[file],
                              cmoei_shown(name, t.name, (int64_t)strlen(t.name)));
    }
    return cmoei_fail(err, CMOE_ERR_ARG, "checkpoint: an array is given twice");
}

static cmoe_status check_arrays(const reader *r, const char *shown, cmoe_error *err)
{
    int64_t n[CMOEI_CHECKPOINT_FILES] = {0};
    for (int64_t i = 0; i < r->count; i++) {
        cmoe_tensor t;
        CMOEI_TRY(check_array(r, shown, &r->arrays[i], &t, err));
        n[r->arrays[i].state]++;
    }
    for (int i = 0; i < CMOEI_CHECKPOINT_FILES; i++) {
        if (cmoe_checkpoint_count(r->file[i]) != n[i]) return fail_extra(r, shown, i, err);
    }
    return CMOE_OK;
}

/* ---- one checkpoint ---------------------------------------------------------------------------- */

/* Sums and headers of its files, which stay open. */
static cmoe_status open_files(reader *r, const char *folder, const cmoei_manifest *m,
                              cmoe_error *err)
{
    for (int i = 0; i < CMOEI_CHECKPOINT_FILES; i++) {
        const cmoei_long_path path = cmoei_path_in(r->dir, folder, cmoei_checkpoint_files[i]);
        const cmoei_path shown = cmoei_path_shown(path.text);
        cmoei_file_sum sum;
        CMOEI_TRY(cmoei_sum_file(r->ctx, path.text, &sum, err));
        if (sum.bytes != m->file[i].bytes)
            return cmoei_fail(err, CMOE_ERR_FORMAT,
                              "%s: %" PRId64 " bytes, want %" PRId64 " (manifest)", shown.text,
                              sum.bytes, m->file[i].bytes);
        if (sum.sum != m->file[i].sum)
            return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: it has changed since it was written",
                              shown.text);
        CMOEI_TRY(cmoe_checkpoint_open(&r->file[i], r->ctx, path.text, err));
    }
    return CMOE_OK;
}

static void close_files(reader *r)
{
    for (int i = 0; i < CMOEI_CHECKPOINT_FILES; i++) {
        cmoe_checkpoint_free(r->file[i]);
        r->file[i] = NULL;
    }
}

static cmoe_status copy_arrays(const reader *r, const char *shown, cmoe_error *err)
{
    CMOEI_TRY(check_arrays(r, shown, err));
    for (int64_t i = 0; i < r->count; i++) {
        const cmoei_checkpoint_array *a = &r->arrays[i];
        cmoe_tensor t;
        CMOEI_TRY(check_array(r, shown, a, &t, err)); /* finds it; cannot fail a second time */
        if (a->count > 0) memcpy(a->data, t.data, (size_t)a->count * sizeof *a->data);
    }
    return CMOE_OK;
}

/* *broken: an older one may be tried. */
static cmoe_status load_step(reader *r, int64_t step, bool *broken, cmoe_error *err)
{
    const cmoei_step_name folder = cmoei_step_folder(step);
    const cmoei_long_path path = cmoei_path_in(r->dir, folder.text, CMOEI_MANIFEST);
    const cmoei_path shown = cmoei_path_shown(cmoei_path_in(r->dir, folder.text, NULL).text);
    cmoei_manifest m;
    CMOEI_TRY(cmoei_manifest_read(r->ctx, path.text, &m, broken, err));
    *broken = true;
    cmoe_status status = CMOE_OK;
    if (m.step != step)
        status = cmoei_fail(err, CMOE_ERR_FORMAT, "%s: its manifest is that of step %" PRId64,
                            shown.text, m.step);
    if (status == CMOE_OK) {
        status = check_key(r, shown.text, m.key, err);
        *broken = status == CMOE_OK;
    }
    if (status == CMOE_OK) {
        status = open_files(r, folder.text, &m, err);
        *broken = status == CMOE_ERR_FORMAT || status == CMOE_ERR_IO;
    }
    if (status == CMOE_OK) status = copy_arrays(r, shown.text, err);
    close_files(r);
    cmoei_manifest_free(&m);
    return status;
}

/* ---- load -------------------------------------------------------------------------------------- */

static void say(const cmoe_ctx *ctx, const char *why)
{
    char text[600];
    if (!ctx->log) return;
    snprintf(text, sizeof text, "a checkpoint is passed over: %s", why);
    ctx->log(ctx->log_user, CMOE_LOG_WARN, text);
}

static cmoe_status load_newest(reader *r, int64_t *found, cmoe_error *err)
{
    int64_t step = INT64_MAX;
    *found = 0;
    while ((step = cmoei_newest_step(r->fd, step)) >= 0) {
        cmoe_error why = {.size = sizeof why};
        bool broken = false;
        const cmoe_status status = load_step(r, step, &broken, &why);
        if (status == CMOE_OK) {
            *found = step;
            return CMOE_OK;
        }
        if (!broken || (status != CMOE_ERR_FORMAT && status != CMOE_ERR_IO))
            return cmoei_fail(err, status, "%s", why.text);
        say(r->ctx, why.text);
    }
    if (step == -1) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be read: %s", cmoei_path_shown(r->dir).text,
                      cmoei_errno_text(errno).text);
}

cmoe_status cmoei_checkpoint_load(cmoe_ctx *ctx, const char *dir, const char *key,
                                  const cmoei_checkpoint_array *arrays, int64_t count,
                                  int64_t *step, cmoe_error *err)
{
    if (!ctx || !key || !step || (!arrays && count > 0))
        return cmoei_fail(err, CMOE_ERR_ARG, "checkpoint: %s is NULL",
                          !ctx    ? "ctx"
                          : !key  ? "key"
                          : !step ? "step"
                                  : "arrays");
    CMOEI_TRY(cmoei_engine_check(err));
    CMOEI_TRY(cmoei_checkpoint_dir(dir, err));
    reader r = {.ctx = ctx, .dir = dir, .key = key, .arrays = arrays, .count = count};
    r.fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r.fd < 0 && errno == ENOENT) {
        *step = 0;
        return CMOE_OK;
    }
    if (r.fd < 0)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be opened: %s", cmoei_path_shown(dir).text,
                          cmoei_errno_text(errno).text);
    int64_t found;
    const cmoe_status status = load_newest(&r, &found, err);
    close(r.fd);
    if (status == CMOE_OK) *step = found;
    return status;
}
