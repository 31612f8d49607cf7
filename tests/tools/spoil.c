/* SPDX-License-Identifier: MIT
 *
 * spoil.c - preloaded before libcmoe: every layer gives one slightly wrong number, in the last
 * element of its output, and on the way back in that of one gradient.  bench, doctor and demo must all
 * notice.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT */
#endif
#include <dlfcn.h>
#include <string.h>

#include "cmoe/layer.h"

typedef cmoe_status (*run_fn)(cmoe_stream *, const cmoe_experts *, cmoe_view, cmoe_view, cmoe_view,
                              cmoe_view, cmoe_view_mut, cmoe_arena *, cmoe_error *);

/* About 1e-3 in float32, a quarter in bf16: where each format's own error is far smaller. */
static void spoil_last(cmoe_view_mut out)
{
    uint32_t bits = 0;
    uint16_t upper;
    float f;
    const int64_t last = out.dims[0] * out.dims[1] - 1;
    char *at = (char *)out.data + last * cmoe_dtype_bytes(out.dtype);
    if (out.dtype == CMOE_F32) {
        memcpy(&f, at, sizeof f);
        f += 1e-3f;
        memcpy(at, &f, sizeof f);
        return;
    }
    memcpy(&upper, at, sizeof upper);
    bits = (uint32_t)upper << 16;
    memcpy(&f, &bits, sizeof f);
    f += 0.25f;
    memcpy(&bits, &f, sizeof bits);
    upper = (uint16_t)(bits >> 16);
    memcpy(at, &upper, sizeof upper);
}

CMOE_API cmoe_status cmoe_experts_run(cmoe_stream *s, const cmoe_experts *experts, cmoe_view x,
                                      cmoe_view ids, cmoe_view weights, cmoe_view shared,
                                      cmoe_view_mut out, cmoe_arena *scratch, cmoe_error *err)
{
    void *const symbol = dlsym(RTLD_NEXT, "cmoe_experts_run");
    run_fn real;
    memcpy(&real, &symbol, sizeof real);
    const cmoe_status status = real(s, experts, x, ids, weights, shared, out, scratch, err);
    if (status == CMOE_OK) spoil_last(out);
    return status;
}

typedef cmoe_status (*backward_fn)(cmoe_stream *, const cmoe_layer_train *, const cmoe_saved *,
                                   cmoe_view, cmoe_view, const cmoe_units *,
                                   const cmoe_layer_gradients *, cmoe_arena *, cmoe_error *);

/* By 1, where float32 and bf16 are off by far less. */
CMOE_API cmoe_status cmoe_layer_backward(cmoe_stream *s, const cmoe_layer_train *l,
                                         const cmoe_saved *saved, cmoe_view x, cmoe_view dout,
                                         const cmoe_units *units, const cmoe_layer_gradients *g,
                                         cmoe_arena *scratch, cmoe_error *err)
{
    void *const symbol = dlsym(RTLD_NEXT, "cmoe_layer_backward");
    backward_fn real;
    float f;
    memcpy(&real, &symbol, sizeof real);
    const cmoe_status status = real(s, l, saved, x, dout, units, g, scratch, err);
    if (status != CMOE_OK) return status;
    const cmoe_view_mut w2 = g->w2->w;
    char *at = (char *)w2.data + (w2.dims[0] * w2.dims[1] * w2.dims[2] - 1) * (int64_t)sizeof f;
    memcpy(&f, at, sizeof f);
    f += f < 0 ? -1.0f : 1.0f;
    memcpy(at, &f, sizeof f);
    return status;
}
