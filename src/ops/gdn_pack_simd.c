/* SPDX-License-Identifier: MIT
 *
 * gdn_pack_simd.c - the causal convolution of one token, a block of channels at a time, vectorised
 * by the compiler.
 *
 * Each tap of the state is read once: it enters the sum, and then takes the place of the tap before
 * it.
 */
#include "core/vmath.h"
#include "ops/gdn_pack.h"

void CMOEI_SIMD(cmoei_gdn_conv)(const cmoei_gdn_conv_args *a);

static inline void add_tap(const cmoei_gdn_conv_args *a, int64_t tap, int64_t c, int64_t n,
                           const float *restrict s, float *restrict y)
{
    float w[CMOEI_BLOCK];
    cmoei_block_load(w, &a->weight, tap, c, n);
    for (int64_t i = 0; i < n; i++)
        y[i] = fmaf(s[i], w[i], y[i]);
}

static inline void conv_block(const cmoei_gdn_conv_args *a, int64_t c, int64_t n)
{
    float y[CMOEI_BLOCK] = {0}, s[CMOEI_BLOCK];
    const int64_t last = a->width - 1;
    if (a->bias.data) cmoei_block_load(y, &a->bias, 0, c, n);
    for (int64_t tap = 0; tap < last; tap++) {
        cmoei_block_load(s, &a->state, tap, c, n);
        add_tap(a, tap, c, n, s, y);
        if (tap > 0) cmoei_block_store(&a->state, tap - 1, c, s, n);
    }
    cmoei_block_load(s, &a->x, 0, c, n);
    add_tap(a, last, c, n, s, y);
    cmoei_block_store(&a->state, last - 1, c, s, n);
    for (int64_t i = 0; a->silu && i < n; i++)
        y[i] = cmoei_siluf(y[i]);
    cmoei_block_store(&a->out, 0, c, y, n);
}

void CMOEI_SIMD(cmoei_gdn_conv)(const cmoei_gdn_conv_args *a)
{
    for (int64_t c = 0; c < a->channels; c += CMOEI_BLOCK)
        conv_block(a, c, CMOEI_MIN(a->channels - c, CMOEI_BLOCK));
}
