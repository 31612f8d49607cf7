/* SPDX-License-Identifier: MIT
 *
 * ops/gdn_pack.h - the kernels of the causal convolution of one token over some channels.
 */
#ifndef CMOE_OPS_GDN_PACK_H
#define CMOE_OPS_GDN_PACK_H

#include "cmoe/ops.h"
#include "core/kernel.h"
#include "core/plane.h"

/* For each channel c:
 *
 *     y = bias or 0; y = fma(state[i], weight[i], y), i = 0 .. width - 2; y = fma(x, weight[width -
 *     1], y); out = silu(y) or y; then state[i] = state[i + 1], state[width - 2] = x
 *
 * Planes of weight and state are seen with a tap a row, because a block of channels is what is
 * computed at once. */
typedef struct cmoei_gdn_conv_args {
    cmoei_plane x, bias, out;  /* [channels]; bias or none */
    cmoei_plane weight, state; /* [width, channels], [width - 1, channels] */
    int64_t channels, width;
    int32_t silu;
} cmoei_gdn_conv_args;

typedef struct cmoei_gdn_conv_kernel {
    cmoei_variant variant;
    void (*run)(const cmoei_gdn_conv_args *a);
} cmoei_gdn_conv_kernel;

extern const cmoei_table cmoei_gdn_conv_table;

#endif
