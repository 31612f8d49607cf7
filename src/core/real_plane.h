/* SPDX-License-Identifier: MIT
 *
 * real_plane.h - single elements of planes for reference kernels.
 *
 * The double build reads the same float32 values, rounds nothing in between and writes doubles (its
 * output planes are f64), so that it shows what the formula gives.
 */
#ifndef CMOE_REAL_PLANE_H
#define CMOE_REAL_PLANE_H

#include "plane.h"
#include "real.h"

static inline cmoei_real real_get(const cmoei_plane *p, int64_t row, int64_t col)
{
    float x;
    cmoei_load_f32(&x, cmoei_plane_at(p, row, col), p->dtype, 1, 1);
    return x;
}

#ifdef CMOEI_DOUBLE
static inline double real_round(double x, int32_t dtype)
{
    (void)dtype;
    return x;
}
static inline void real_put(const cmoei_plane *p, int64_t row, int64_t col, double x)
{
    memcpy(cmoei_plane_at(p, row, col), &x, sizeof x);
}
#else
static inline float real_round(float x, int32_t dtype)
{
    return cmoei_round_to(x, dtype);
}
static inline void real_put(const cmoei_plane *p, int64_t row, int64_t col, float x)
{
    cmoei_store_f32(cmoei_plane_at(p, row, col), p->dtype, 1, &x, 1);
}
#endif

#endif
