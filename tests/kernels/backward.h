/* SPDX-License-Identifier: MIT
 *
 * backward.h - float32 planes as training has them, for checks of backward kernels.
 */
#ifndef CMOE_KERNELS_BACKWARD_H
#define CMOE_KERNELS_BACKWARD_H

#include "planes.h"

#include "ops/lanes.h"

#define KC_U 0x1p-24 /* one rounding, relative */

static const kc_lie kc_f64 = {CMOE_F64, 1, 0};

static inline kc_lie kc_f32(int odd)
{
    return (kc_lie){CMOE_F32, 1, odd};
}

/* Rows of a plane as heads of tokens. */
static inline cmoei_heads kc_heads(const cmoei_plane *p, int64_t heads)
{
    return (cmoei_heads){
        .data = p->data, .token = heads * p->step, .head = p->step, .dtype = p->dtype};
}

static inline int64_t kc_bytes(const cmoei_plane *p, int64_t rows)
{
    return rows * p->step;
}

/* Cuts tokens into `count` units, some of them empty. */
static inline cmoe_units kc_units(kc *c, int64_t tokens, int64_t count, int64_t *first)
{
    first[0] = 0, first[count] = tokens;
    for (int64_t u = 1; u < count; u++)
        first[u] = kc_int(c, first[u - 1], CMOEI_MIN(tokens, first[u - 1] + 2 * tokens / count));
    return (cmoe_units){count, first};
}

#endif
