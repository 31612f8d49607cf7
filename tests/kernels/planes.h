/* SPDX-License-Identifier: MIT
 *
 * planes.h - random and empty planes of any format, column stride and address for kernel checks.
 */
#ifndef CMOE_PLANES_H
#define CMOE_PLANES_H

#include "kc.h"

#include "core/plane.h"

/* How a matrix lies in memory; `odd` bytes past an aligned address. */
typedef struct kc_lie {
    int32_t dtype;
    int64_t col;
    int odd;
} kc_lie;

static const kc_lie kc_lies[] = {
    {CMOE_F32, 1, 0},  {CMOE_F32, 1, 1},  {CMOE_F32, 3, 1}, {CMOE_BF16, 1, 0},
    {CMOE_BF16, 1, 1}, {CMOE_BF16, 2, 0}, {CMOE_F16, 1, 1}, {CMOE_F64, 2, 1},
};

/* Contents 0xa5. */
static inline cmoei_plane kc_plane_out(kc *c, int64_t rows, int64_t cols, kc_lie lie)
{
    const int64_t bytes = cmoe_dtype_bytes(lie.dtype);
    char *data = kc_out(c, rows * cols * lie.col * bytes + lie.odd);
    return (cmoei_plane){
        .data = data + lie.odd, .step = cols * lie.col * bytes, .col = lie.col, .dtype = lie.dtype};
}

/* Normal values times `scale`, rounded to the format. */
static inline cmoei_plane kc_plane(kc *c, int64_t rows, int64_t cols, kc_lie lie, float scale)
{
    const cmoei_plane p = kc_plane_out(c, rows, cols, lie);
    for (int64_t i = 0; i < rows * cols; i++) {
        const float x = kc_normal(c) * scale;
        cmoei_store_f32(cmoei_plane_at(&p, i / cols, i % cols), p.dtype, 1, &x, 1);
    }
    return p;
}

static inline double kc_get(const cmoei_plane *p, int64_t row, int64_t col)
{
    if (p->dtype == CMOE_F64) {
        double x;
        memcpy(&x, cmoei_plane_at(p, row, col), sizeof x);
        return x;
    }
    float x;
    cmoei_load_f32(&x, cmoei_plane_at(p, row, col), p->dtype, 1, 1);
    return x;
}

/* Half a unit in the last place of a format, relative at worst: to the power of two. */
static inline double kc_half_ulp(int32_t dtype)
{
    return dtype == CMOE_BF16 ? 0x1p-8 : dtype == CMOE_F16 ? 0x1p-11 : 0x1p-24;
}
/* And absolute, where it is subnormal. */
static inline double kc_tiny(int32_t dtype)
{
    return dtype == CMOE_F16 ? 0x1p-25 : FLT_MIN;
}

#endif
