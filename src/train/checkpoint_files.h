/* SPDX-License-Identifier: MIT
 *
 * checkpoint_files.h - what writing and reading checkpoints share: names, folders, the manifest.
 */
#ifndef CMOE_TRAIN_CHECKPOINT_FILES_H
#define CMOE_TRAIN_CHECKPOINT_FILES_H

#include "checkpoint.h"

enum {
    CMOEI_CHECKPOINT_VERSION = 1,
    CMOEI_CHECKPOINT_FILES = 2, /* values, state */
    CMOEI_DIR_MOST = 4000,      /* bytes of a path of the caller */
    CMOEI_PATH_MOST = CMOEI_DIR_MOST + 96
};
extern const char *const cmoei_checkpoint_files[CMOEI_CHECKPOINT_FILES];
#define CMOEI_MANIFEST "manifest.json"

/* "step-00001200" and ".step-00001200.part" */
typedef struct cmoei_step_name {
    char text[40];
} cmoei_step_name;
cmoei_step_name cmoei_step_folder(int64_t step);
cmoei_step_name cmoei_step_part(int64_t step);
/* -1 for any other name. */
int64_t cmoei_step_of(const char *name, bool part);

cmoe_status cmoei_checkpoint_dir(const char *dir, cmoe_error *err); /* NULL, or too long */
/* dir/a/b; b may be NULL */
typedef struct cmoei_long_path {
    char text[CMOEI_PATH_MOST];
} cmoei_long_path;
cmoei_long_path cmoei_path_in(const char *dir, const char *a, const char *b);

/* The newest folder step-N with N < below; -1: there is none; -2: `dir` cannot be read, see errno. */
int64_t cmoei_newest_step(int dir, int64_t below);

typedef struct cmoei_file_sum {
    int64_t bytes;
    uint64_t sum;
} cmoei_file_sum;
/* Of a whole file, on all threads. */
cmoe_status cmoei_sum_file(cmoe_ctx *ctx, const char *path, cmoei_file_sum *out, cmoe_error *err);

typedef struct cmoei_manifest {
    int64_t step;
    const char *key, *note;
    cmoei_file_sum file[CMOEI_CHECKPOINT_FILES];
    void *json; /* holds key and note after reading */
} cmoei_manifest;

/* The file `path`, synced. */
cmoe_status cmoei_manifest_write(cmoe_ctx *ctx, const char *path, const cmoei_manifest *m,
                                 cmoe_error *err);
/* *broken: it is not what was written; otherwise an error is final. */
cmoe_status cmoei_manifest_read(cmoe_ctx *ctx, const char *path, cmoei_manifest *m, bool *broken,
                                cmoe_error *err);
void cmoei_manifest_free(cmoei_manifest *m);

#endif
