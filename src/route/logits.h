/* SPDX-License-Identifier: MIT
 *
 * logits.h - the linear part of a router, for cmoe_route_logits and for layers that packed it once.
 */
#ifndef CMOE_LOGITS_H
#define CMOE_LOGITS_H

#include "cmoe/route.h"
#include "matmul/matmul.h"

/* Matrix objects of one float32 matrix each; all but the gate may be NULL. */
typedef struct cmoei_logits {
    const cmoe_matrix *gate;            /* [E, H] */
    const cmoe_matrix *lora_a, *lora_b; /* [R, H], [E, R] */
    cmoe_view bias;                     /* [E] or none */
    float lora_scale;
} cmoei_logits;

/* gate [E, hidden] and what belongs to it. */
cmoe_status cmoei_logits_check(const cmoe_view *gate, int64_t hidden, const cmoe_view *bias,
                               const cmoe_view *lora_a, const cmoe_view *lora_b, float lora_scale,
                               cmoe_error *err);
cmoe_status cmoei_logits_bytes(const cmoei_logits *l, int64_t tokens, int64_t *bytes,
                               cmoe_error *err);
/* Checked arguments; logits float32 [T, E]. */
cmoe_status cmoei_logits_run(cmoe_stream *s, const cmoei_logits *l, cmoe_view hidden,
                             cmoe_view_mut logits, const cmoe_arena *scratch, cmoe_error *err);

#endif
