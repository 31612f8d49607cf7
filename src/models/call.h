/* SPDX-License-Identifier: MIT
 *
 * call.h - checks of a forward that no single step of it can make in time.
 */
#ifndef CMOE_MODELS_CALL_H
#define CMOE_MODELS_CALL_H

#include "model.h"

/* All pages that some layer reads or writes are in the cache: found at layer 5, layers 0 to 4 would
 * have been written.  Batch and cache are there and agree with the model. */
cmoe_status cmoei_call_check_pages(const cmoe_model *m, const cmoe_model_call *call,
                                   cmoe_error *err);
/* No output shares memory with anything else, nothing lies in the scratch that the call writes over.
 * The views' shapes have been checked. */
cmoe_status cmoei_call_check_memory(const cmoe_model *m, const cmoe_model_call *call,
                                    const cmoe_view_mut *logits, const cmoe_arena *scratch,
                                    cmoe_error *err);

#endif
