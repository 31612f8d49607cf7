/* SPDX-License-Identifier: MIT
 *
 * experts.h - the packed weights of a grouped gated MLP.
 */
#ifndef CMOE_EXPERTS_INTERNAL_H
#define CMOE_EXPERTS_INTERNAL_H

#include "cmoe/experts.h"
#include "matmul/epilogue.h"
#include "matmul/matmul.h"

struct cmoe_experts {
    cmoe_ctx *ctx;
    cmoe_experts_options o; /* defaults resolved */
    int64_t count, hidden, inter;
    cmoe_matrix *w13, *w2;
    const cmoei_epilogue_kernel *epilogue;
    cmoei_activation activation;
};

/* Options with their defaults, checked. */
cmoe_status cmoei_experts_read_options(cmoe_experts_options *o, const cmoe_experts_options *given,
                                       cmoe_error *err);

/* Experts around two matrices, gate rows before up rows, which it owns from now on, also when this
 * fails.  Options about the layout of given weights mean nothing here. */
cmoe_status cmoei_experts_around(cmoe_experts **out, cmoe_ctx *ctx, const cmoe_experts_options *o,
                                 cmoe_matrix *w13, cmoe_matrix *w2, cmoe_error *err)
    CMOE_PRIV(experts_around);

#endif
