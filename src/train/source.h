/* SPDX-License-Identifier: MIT
 *
 * source.h - what a training begins with: a configuration, or a directory with weights.
 */
#ifndef CMOE_TRAIN_SOURCE_H
#define CMOE_TRAIN_SOURCE_H

#include "trainer.h"

typedef struct cmoei_training_source {
    cmoe_checkpoint *checkpoint; /* NULL: weights are made */
    cmoei_tensors tensors;
} cmoei_training_source;

/* Fills the trainer's decoder, path and text of the configuration. */
cmoe_status cmoei_training_source_open(cmoei_training_source *s, cmoe_trainer *t, const char *path,
                                       cmoe_error *err);
void cmoei_training_source_close(cmoei_training_source *s, cmoe_trainer *t);

#endif
