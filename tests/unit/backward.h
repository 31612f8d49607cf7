/* SPDX-License-Identifier: MIT
 *
 * backward.h - tensors for unit tests of backward steps.
 */
#ifndef CMOE_UNIT_BACKWARD_H
#define CMOE_UNIT_BACKWARD_H

#include <stdbool.h>

#include "isa.h"
#include "unit.h"

static inline void normals(float *x, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = cmoe_random_normal(seed, (uint64_t)i, 0);
}

static inline cmoe_view flat(const float *p, int64_t n)
{
    return cmoe_view_1d(p, CMOE_F32, n);
}
static inline cmoe_view_mut flat_mut(float *p, int64_t n)
{
    return cmoe_view_mut_1d(p, CMOE_F32, n);
}
static inline cmoe_view of(const float *p, int64_t n, int64_t h)
{
    return cmoe_view_2d(p, CMOE_F32, n, h);
}
static inline cmoe_view_mut to(float *p, int64_t n, int64_t h)
{
    return cmoe_view_mut_2d(p, CMOE_F32, n, h);
}

/* Every second element of a row: what training tensors may not be. */
static inline cmoe_view gaps(const float *p, int64_t n, int64_t h)
{
    cmoe_view v = cmoe_view_2d(p, CMOE_F32, n, h);
    v.strides[0] = 2 * h, v.strides[1] = 2;
    return v;
}
static inline cmoe_view_mut gaps_mut(float *p, int64_t n, int64_t h)
{
    cmoe_view_mut v = cmoe_view_mut_2d(p, CMOE_F32, n, h);
    v.strides[0] = 2 * h, v.strides[1] = 2;
    return v;
}

static inline void untouched(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(((const unsigned char *)p)[i], 0x5a);
}

#endif
