/* SPDX-License-Identifier: MIT
 *
 * adapters.h - adapters of the command line, DIR[:SCALE] each.
 */
#ifndef TOOLS_ADAPTERS_H
#define TOOLS_ADAPTERS_H

#include "cmoe/model.h"
#include "options.h"

typedef struct adapters {
    int64_t n;
    const cmoe_adapter *list[OPTION_TEXTS_MAX];
    float scales[OPTION_TEXTS_MAX];
    cmoe_adapter *own[OPTION_TEXTS_MAX];
} adapters;

/* 0, or the exit status after an error line; 3 for a folder that is no adapter.  Closed in either
 * case. */
int adapters_open(adapters *a, cmoe_ctx *ctx, const option_texts *texts);
void adapters_close(adapters *a);

#endif
