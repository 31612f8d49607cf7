/* SPDX-License-Identifier: MIT
 *
 * write.h - a safetensors file of tensors that are only made when their turn comes, so that a file may be
 * larger than memory.
 */
#ifndef CMOE_WEIGHTS_WRITE_H
#define CMOE_WEIGHTS_WRITE_H

#include "cmoe/weights.h"
#include "core/core.h"

/* As the data of a view: the tensor is asked for. */
extern const char cmoei_later[];

typedef struct cmoei_sink cmoei_sink;
void cmoei_sink_put(cmoei_sink *sink, const void *data, int64_t bytes);

/* Puts all bytes of tensor i, in any number of calls. */
typedef cmoe_status (*cmoei_later_fn)(void *user, int64_t i, cmoei_sink *sink, cmoe_error *err);

/* cmoe_safetensors_write with such tensors among the others. */
cmoe_status cmoei_safetensors_write(const char *path, const cmoe_view *tensors, int64_t count,
                                    const char *const *metadata, cmoei_later_fn later, void *user,
                                    cmoe_error *err);

#endif
