/* SPDX-License-Identifier: MIT
 *
 * keep.h - where a model's packed weights are kept, and what they depend on.
 */
#ifndef CMOE_MODELS_KEEP_H
#define CMOE_MODELS_KEEP_H

#include "model.h"
#include "weights/checkpoint.h"

/* Makes m->keep. */
cmoe_status cmoei_keep_open(cmoe_model *m, const cmoe_model_options *o, const cmoe_checkpoint *c,
                            const char *path, cmoe_error *err);
void cmoei_keep_close(cmoe_model *m);
/* m->tape plays what was kept; statuses of cmoei_tape_open. */
cmoe_status cmoei_keep_play(cmoe_model *m, const cmoe_model_options *o, cmoe_error *err);
/* A line of the log. */
void cmoei_keep_say(const cmoe_model *m, const char *what, const cmoe_error *err);

#endif
