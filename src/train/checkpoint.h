/* SPDX-License-Identifier: MIT
 *
 * checkpoint.h - the state of a training on disk: complete, or not there.
 *
 *     dir/step-00001200/values.safetensors      masters
 *                       state.safetensors       what the optimizer keeps
 *                       manifest.json           written last: version, step, key, sums of the files, note
 *
 * Written as dir/.step-00001200.part, every file synced, then renamed and the folder synced: a reader sees
 * a whole checkpoint or none, whenever the writer is killed.
 */
#ifndef CMOE_TRAIN_CHECKPOINT_H
#define CMOE_TRAIN_CHECKPOINT_H

#include "cmoe/train.h"
#include "core/core.h"

typedef struct cmoei_checkpoint_array {
    const char *name; /* unique; "model.norm.weight", "m:model.norm.weight" */
    float *data;
    int64_t count;
    bool state; /* in state.safetensors */
} cmoei_checkpoint_array;

typedef struct cmoei_checkpoint_write {
    const char *dir;
    int64_t step;
    const char *key;  /* one line: model, shapes, options that weights depend on */
    const char *note; /* or NULL */
    int64_t keep;     /* newest complete checkpoints that stay; at least 1 */
} cmoei_checkpoint_write;

cmoe_status cmoei_checkpoint_save(cmoe_ctx *ctx, const cmoei_checkpoint_write *w,
                                  const cmoei_checkpoint_array *arrays, int64_t count,
                                  cmoe_error *err);

/* The newest complete checkpoint into the arrays; *step 0: there is none.  Nothing is changed unless all of it
 * is right.  Broken or half ones are passed over and said to the log; another key is CMOE_ERR_FORMAT and
 * the text says where the two lines differ. */
cmoe_status cmoei_checkpoint_load(cmoe_ctx *ctx, const char *dir, const char *key,
                                  const cmoei_checkpoint_array *arrays, int64_t count,
                                  int64_t *step, cmoe_error *err);

#endif
