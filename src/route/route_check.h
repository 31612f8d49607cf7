/* SPDX-License-Identifier: MIT
 *
 * route_check.h - what cmoe_route checks before it writes anything, and what it then knows.
 */
#ifndef CMOE_ROUTE_CHECK_H
#define CMOE_ROUTE_CHECK_H

#include "core/core.h"

#include "cmoe/route.h"

enum { CMOEI_ROUTE_MOST_EXPERTS = 1 << 30 }; /* shared ones included; ids are int32 */

typedef struct cmoei_route_call {
    cmoe_route_options o; /* topk_groups of 0 replaced by groups */
    cmoe_route_inputs in;
    cmoe_view logits;
    cmoe_view_mut weights, ids;
    int64_t tokens, experts, width; /* T, E (0: not known), K + shared */
} cmoei_route_call;

/* Options with their defaults, checked.  experts 0: not known. */
cmoe_status cmoei_route_read_options(cmoe_route_options *o, const cmoe_route_options *given,
                                     int64_t experts, cmoe_error *err);

/* Options, and shapes and formats of logits and inputs. */
cmoe_status cmoei_route_check_inputs(cmoei_route_call *c, const cmoe_route_options *o,
                                     const cmoe_route_inputs *in, cmoe_error *err);

/* Everything: shapes, formats, overlaps, ids.  `c` has logits, weights and ids on entry. */
cmoe_status cmoei_route_check(cmoei_route_call *c, const cmoe_route_options *o,
                              const cmoe_route_inputs *in, cmoe_error *err);

/* Of every expert, finite; a view that is not given passes. */
cmoe_status cmoei_route_check_scale(const cmoe_view *per_expert_scale, cmoe_error *err);

/* Id of slot k of token t, where it is given or comes from the hash table. */
int32_t cmoei_route_forced_id(const cmoei_route_call *c, int64_t t, int64_t k);

static inline bool cmoei_route_forced(const cmoei_route_call *c)
{
    return cmoei_given(&c->in.given_ids) || cmoei_given(&c->in.hash_table);
}

#endif
