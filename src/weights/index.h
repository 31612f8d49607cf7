/* SPDX-License-Identifier: MIT
 *
 * index.h - model.safetensors.index.json: which shard holds which tensor.
 *
 *     {"metadata": {...}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors", ...}}
 *
 * Of the rest nothing is used.  A shard is a name in the same folder: no '/', no "..".
 */
#ifndef CMOE_WEIGHTS_INDEX_H
#define CMOE_WEIGHTS_INDEX_H

#include "core/core.h"

enum { CMOEI_INDEX_MAX = 100000000 }; /* bytes */

typedef struct cmoei_index_row {
    const char *name, *shard;
    int32_t file; /* shards are numbered from 0 in name order */
} cmoei_index_row;

typedef struct cmoei_index {
    int64_t count, files;
    cmoei_index_row *rows; /* [count], as the index lists them */
    int32_t *by_shard;     /* [count] rows by shard, then name */
    int32_t *by_name;      /* [count] */
    void *block;           /* all of it */
    int64_t block_bytes;
} cmoei_index;

/* From the file's text, which must not change meanwhile.  `file` stands in texts. */
cmoe_status cmoei_index_read(cmoei_index *out, cmoe_ctx *ctx, const char *text, int64_t bytes,
                             const char *file, cmoe_error *err);
void cmoei_index_free(cmoei_index *index, cmoe_ctx *ctx);

#endif
