/* SPDX-License-Identifier: MIT
 *
 * options.h - what a training is asked to be, checked.
 */
#ifndef CMOE_TRAIN_OPTIONS_H
#define CMOE_TRAIN_OPTIONS_H

#include "trainer.h"

/* The caller's options over the defaults, each in its range. */
cmoe_status cmoei_train_options_read(cmoe_trainer *t, const cmoe_train_options *o, cmoe_error *err);
/* Against the decoder, and what was left to us: pass, block. */
cmoe_status cmoei_train_options_fit(cmoe_trainer *t, cmoe_error *err);

#endif
