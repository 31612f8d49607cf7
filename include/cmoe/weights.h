/* SPDX-License-Identifier: MIT
 *
 * cmoe/weights.h - tensors in files: checkpoints in the Hugging Face layout, read and written.
 *
 * Nothing in a file is believed.  One validator reads the header of a safetensors file and yields a
 * table of tensors whose names, shapes, formats and bytes agree with each other and with the size of
 * the file; everybody else works with that table.  Part of libcmoe_engine.
 */
#ifndef CMOE_WEIGHTS_H
#define CMOE_WEIGHTS_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The tensors of a directory: model.safetensors, or the shards that model.safetensors.index.json
 * names; or of one file.  Files are mapped, not read, and must not be changed or cut while a
 * checkpoint is open.  Immutable, shared by threads; freed before its context. */
typedef struct cmoe_checkpoint cmoe_checkpoint;

typedef struct cmoe_tensor {
    size_t size;
    const char *name;
    const char *file;   /* the shard's name, without its folder */
    const char *stored; /* the file's word for the format: "BF16" */
    int32_t dtype; /* the same as CMOE_..., 0 for one that nothing here reads (BOOL, U32, ...) */
    int32_t rank;
    int64_t dims[CMOE_MAX_RANK];
    int64_t bytes;
    const void *data; /* in the mapping, at any address */
} cmoe_tensor;

CMOE_API void cmoe_tensor_default(cmoe_tensor *tensor, size_t size);

/* `path`: a directory or a .safetensors file.  CMOE_ERR_IO: it cannot be opened; CMOE_ERR_FORMAT: it
 * is not what it should be. */
CMOE_API cmoe_status cmoe_checkpoint_open(cmoe_checkpoint **out, cmoe_ctx *ctx, const char *path,
                                          cmoe_error *err);
CMOE_API void cmoe_checkpoint_free(cmoe_checkpoint *c);

CMOE_API int64_t cmoe_checkpoint_count(const cmoe_checkpoint *c); /* of tensors, in name order */
CMOE_API int64_t cmoe_checkpoint_bytes(const cmoe_checkpoint *c); /* of all files */
CMOE_API int64_t cmoe_checkpoint_find(const cmoe_checkpoint *c,
                                      const char *name); /* -1: not there */
/* Fills `tensor`, whose size is set.  CMOE_ERR_RANGE when there is no i-th one. */
CMOE_API cmoe_status cmoe_checkpoint_tensor(const cmoe_checkpoint *c, int64_t i,
                                            cmoe_tensor *tensor, cmoe_error *err);

/* A contiguous view of a tensor, named after it; dtype 0 stays 0. */
CMOE_API cmoe_view cmoe_tensor_view(const cmoe_tensor *tensor);

/* Writes named, contiguous host tensors into a safetensors file: whole, or not at all (a temporary
 * file beside it is renamed).  `metadata`: pairs of key and value, ending in NULL; may be NULL. */
CMOE_API cmoe_status cmoe_safetensors_write(const char *path, const cmoe_view *tensors,
                                            int64_t count, const char *const *metadata,
                                            cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
