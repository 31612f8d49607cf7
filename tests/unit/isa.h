/* SPDX-License-Identifier: MIT
 *
 * isa.h - the instruction sets of this CPU, one context for each: ISA_EACH runs its body once for
 * every level that the machine has, with `isa_name` saying which.
 */
#ifndef CMOE_TEST_ISA_H
#define CMOE_TEST_ISA_H

#include "unit.h"

static inline const char *isa_at(int32_t level)
{
    for (; cmoe_isa_level_name(level); level++) {
        uint32_t mask = 0;
        assert_int_equal(cmoe_isa_mask(cmoe_isa_level_name(level), &mask, NULL), CMOE_OK);
        if (!(mask & ~cmoe_cpu_features())) return cmoe_isa_level_name(level);
    }
    return NULL;
}

/* Index of the level behind `name`. */
static inline int32_t isa_next(const char *name)
{
    for (int32_t i = 0; cmoe_isa_level_name(i); i++) {
        if (!strcmp(cmoe_isa_level_name(i), name)) return i + 1;
    }
    return cmoe_isa_levels();
}

#define ISA_EACH(isa_name)                                     \
    for (const char *isa_name = isa_at(0); (isa_name) != NULL; \
         isa_name = isa_at(isa_next(isa_name)))

#endif
