/* SPDX-License-Identifier: MIT
 *
 * saved.h - what stands at the head of everything that a forward keeps for its backward, so that a
 * backward can tell that it was handed somebody else's.
 */
#ifndef CMOE_SAVED_H
#define CMOE_SAVED_H

#include "core.h"

enum { CMOEI_SAVED_EXPERTS = 0x43453031, CMOEI_SAVED_LAYER = 0x434c3031 };

struct cmoe_saved {
    uint32_t kind; /* CMOEI_SAVED_ */
    uint32_t reserved;
    int64_t bytes; /* the arena from here on, as far as it is part of this */
    const cmoe_ctx *ctx;
};

/* Of this kind and of the stream's context. */
static inline cmoe_status cmoei_saved_check(const cmoe_saved *saved, uint32_t kind,
                                            const cmoe_stream *s, const char *maker,
                                            cmoe_error *err)
{
    if (!saved) return cmoei_fail(err, CMOE_ERR_ARG, "saved is NULL, want what %s kept", maker);
    if (saved->kind != kind)
        return cmoei_fail(err, CMOE_ERR_ARG, "saved was not kept by %s", maker);
    if (saved->ctx != s->ctx)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "saved and stream belong to different contexts, want one");
    return CMOE_OK;
}

/* All of it as bytes, for checks of overlaps. */
static inline cmoe_view cmoei_saved_view(const cmoe_saved *saved)
{
    return cmoe_view_1d(saved, CMOE_U8, saved->bytes);
}

#endif
