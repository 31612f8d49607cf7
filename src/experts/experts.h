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

#endif
