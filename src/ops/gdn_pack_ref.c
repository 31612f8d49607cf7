/* SPDX-License-Identifier: MIT
 *
 * gdn_pack_ref.c - the causal convolution of one token as it reads.
 */
#include "core/real_plane.h"
#include "ops/gdn_pack.h"

void CMOEI_REF(cmoei_gdn_conv)(const cmoei_gdn_conv_args *a);

void CMOEI_REF(cmoei_gdn_conv)(const cmoei_gdn_conv_args *a)
{
    const int64_t last = a->width - 1;
    for (int64_t c = 0; c < a->channels; c++) {
        const cmoei_real x = real_get(&a->x, 0, c);
        cmoei_real y = a->bias.data ? real_get(&a->bias, 0, c) : 0;
        for (int64_t i = 0; i < last; i++)
            y = real_fma(real_get(&a->state, i, c), real_get(&a->weight, i, c), y);
        y = real_fma(x, real_get(&a->weight, last, c), y);
        real_put(&a->out, 0, c, a->silu ? real_silu(y) : y);
        for (int64_t i = 0; i + 1 < last; i++)
            real_put(&a->state, i, c, real_get(&a->state, i + 1, c));
        real_put(&a->state, last - 1, c, x);
    }
}
