/* SPDX-License-Identifier: MIT
 *
 * resolve.h - from names in files to places in a model; shared by resolve.c, place.c and match.c.
 */
#ifndef CMOE_MODELS_RESOLVE_H
#define CMOE_MODELS_RESOLVE_H

#include "decoder.h"

enum { CMOEI_NAME = 256 }; /* longer names fit no pattern */

/* What a name means.  layer and expert are -1 where the name has none. */
typedef struct cmoei_match {
    cmoei_role role;
    uint32_t how;
    int64_t layer, expert;
} cmoei_match;

/* The first pattern of the architecture that fits; false: none does.  Layers that the model does not
 * have are CMOEI_IGNORED, whatever they hold. */
bool cmoei_match_name(const cmoei_decoder *d, const char *name, cmoei_match *m);
/* The same for one list of patterns, whatever layers there are. */
bool cmoei_match_in(const cmoei_tensor_name *list, const char *name, cmoei_match *m);
/* The name that a role has in files, by the first pattern of it; false: it has none. */
bool cmoei_match_fill(const cmoei_decoder *d, const cmoei_match *m, char name[CMOEI_NAME]);

typedef struct cmoei_resolver {
    cmoei_tensors *t;
    const cmoei_decoder *d;
    const cmoe_checkpoint *files;
    cmoe_error *err;
} cmoei_resolver;

/* Checks a tensor whose role the decoder wants, and puts it where it belongs. */
cmoe_status cmoei_place(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m);

static inline cmoei_source *cmoei_place_of(cmoei_tensors *t, int64_t layer, cmoei_role role,
                                           int64_t expert)
{
    if (role < CMOEI_GLOBAL_ROLES) return &t->global[role];
    if (role < CMOEI_LAYER_ROLES) return &t->layer[layer * CMOEI_LAYER_ROLES + role];
    return &t->expert[layer]
                     [(role - CMOEI_LAYER_ROLES) * t->decoder->layer[layer].experts + expert];
}

#endif
