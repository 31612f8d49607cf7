/* SPDX-License-Identifier: MIT
 *
 * fuzz.h - what the targets share.  A target is one file with LLVMFuzzerTestOneInput; libFuzzer
 * feeds it, or, without clang, replay.c with the files of corpus/<name>.
 */
#ifndef CMOE_FUZZ_H
#define CMOE_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What must hold whatever the input was. */
#define FUZZ_CHECK(x)                                                             \
    do {                                                                          \
        if (!(x)) {                                                               \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); \
            abort();                                                              \
        }                                                                         \
    } while (0)

/* One context for all inputs; lives as long as the program. */
static inline cmoe_ctx *fuzz_ctx(void)
{
    static cmoe_ctx *ctx;
    if (!ctx) {
        cmoe_ctx_options o;
        cmoe_ctx_options_default(&o, sizeof o);
        o.threads = 1;
        FUZZ_CHECK(cmoe_ctx_create(&ctx, &o, NULL) == CMOE_OK);
    }
    return ctx;
}

/* Memory of exactly this size: sanitizers see one byte too many. */
static inline char *fuzz_copy(const void *data, size_t size)
{
    char *p = malloc(size > 0 ? size : 1);
    FUZZ_CHECK(p);
    if (size > 0) memcpy(p, data, size);
    return p;
}

#endif
