/* SPDX-License-Identifier: MIT
 *
 * load.h - filling a model from a checkpoint.
 */
#ifndef CMOE_MODELS_LOAD_H
#define CMOE_MODELS_LOAD_H

#include "model.h"

/* Packs every tensor; m->d, share, format, layer array and info are set. */
cmoe_status cmoei_model_fill(cmoe_model *m, const cmoe_model_options *o, const cmoe_checkpoint *c,
                             const cmoei_tensors *t, cmoe_error *err);

#endif
