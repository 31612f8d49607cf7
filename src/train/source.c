/* SPDX-License-Identifier: MIT
 *
 * source.c - what a training begins with.
 */
#include "source.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "weights/checkpoint.h"
#include "weights/file.h"

enum { MOST_BYTES = 16 << 20 };

static cmoe_status read_config(cmoe_trainer *t, const char *file, cmoe_error *err)
{
    int fd;
    const cmoei_path shown = cmoei_path_shown(file);
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, file, shown.text, "", &fd, &t->config_bytes, err));
    cmoe_status status = CMOE_OK;
    if (t->config_bytes > MOST_BYTES)
        status = cmoei_fail(err, CMOE_ERR_FORMAT, "%s has %" PRId64 " bytes, want at most %d",
                            shown.text, t->config_bytes, MOST_BYTES);
    if (status == CMOE_OK)
        status = cmoei_alloc(t->ctx, t->config_bytes, "config.json", (void **)&t->config, err);
    if (status == CMOE_OK)
        status = cmoei_file_read(fd, shown.text, t->config, t->config_bytes, 0, err);
    (void)close(fd);
    CMOEI_TRY(status);
    CMOEI_TRY(cmoei_decoder_parse(&t->d, t->ctx, t->config, t->config_bytes, shown.text, err));
    if (t->d.rope.length == 0) t->d.rope.length = t->d.context;
    return CMOE_OK;
}

cmoe_status cmoei_training_source_open(cmoei_training_source *s, cmoe_trainer *t, const char *path,
                                       cmoe_error *err)
{
    char file[sizeof t->path + 16];
    struct stat st;
    const int n = snprintf(t->path, sizeof t->path, "%s", path);
    if (n < 0 || n >= (int)sizeof t->path)
        return cmoei_fail(err, CMOE_ERR_IO, "the path is longer than %zu bytes", sizeof t->path);
    const bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    snprintf(file, sizeof file, folder ? "%s/config.json" : "%s", path);
    CMOEI_TRY(read_config(t, file, err));
    if (!folder) return CMOE_OK;
    CMOEI_TRY(cmoe_checkpoint_open(&s->checkpoint, t->ctx, path, err));
    return cmoei_tensors_resolve(&s->tensors, t->ctx, &t->d, s->checkpoint, err);
}

void cmoei_training_source_close(cmoei_training_source *s, cmoe_trainer *t)
{
    if (!s->checkpoint) return;
    cmoei_tensors_free(&s->tensors, t->ctx);
    cmoe_checkpoint_free(s->checkpoint);
    s->checkpoint = NULL;
}
