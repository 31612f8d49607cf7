/* SPDX-License-Identifier: MIT
 *
 * plane.h - a checked matrix as kernels see it: any float format, any strides, any address, read
 * and written a block of float32 at a time.
 *
 * Kernels of small operations walk a row in blocks that stay in L1: load, compute in float32,
 * store. Contiguous f32 and bf16 are converted right here, in the instruction set of the including
 * file; everything else goes through cmoei_load_f32 / cmoei_store_f32, which give the same values.
 */
#ifndef CMOE_PLANE_H
#define CMOE_PLANE_H

#include <string.h>

#include "core.h"

enum { CMOEI_BLOCK = 512 }; /* floats; 2 KiB, a multiple of every vector */

typedef struct cmoei_plane {
    char *data;   /* NULL: not given */
    int64_t step; /* bytes from row to row */
    int64_t col;  /* elements from column to column; 0 repeats one value along the row */
    int32_t dtype;
} cmoei_plane;

/* A view of rank 1 is the same row again and again. */
static inline cmoei_plane cmoei_plane_of(const cmoe_view *v)
{
    cmoei_plane p = {.data = (char *)(uintptr_t)v->data, .dtype = v->dtype};
    for (int32_t i = 0; i < v->rank; i++) {
        if (v->dims[i] == 0) return p; /* nobody checked the strides of an empty view */
    }
    if (v->rank > 1) p.step = v->strides[0] * cmoe_dtype_bytes(v->dtype);
    if (v->rank > 0) p.col = v->strides[v->rank - 1];
    return p;
}
static inline cmoei_plane cmoei_plane_mut(const cmoe_view_mut *m)
{
    const cmoe_view v = cmoe_view_of(*m);
    return cmoei_plane_of(&v);
}
/* Contiguous float32 of the library's own. */
static inline cmoei_plane cmoei_plane_f32(float *data, int64_t cols)
{
    return (cmoei_plane){
        .data = (char *)data, .step = cols * (int64_t)sizeof *data, .col = 1, .dtype = CMOE_F32};
}

static inline int64_t cmoei_float_bytes(int32_t dtype)
{
    return dtype == CMOE_F32 ? 4 : dtype == CMOE_F64 ? 8 : 2;
}
static inline char *cmoei_plane_at(const cmoei_plane *p, int64_t row, int64_t col)
{
    return p->data + row * p->step + col * p->col * cmoei_float_bytes(p->dtype);
}
/* Columns lie side by side in a format that kernels read without a copy. */
static inline bool cmoei_plane_direct(const cmoei_plane *p, int32_t dtype)
{
    return p->dtype == dtype && p->col == 1;
}

static inline float cmoei_round_to(float x, int32_t dtype)
{
    if (dtype == CMOE_BF16) return cmoei_round_bf16(x);
    if (dtype == CMOE_F16) return cmoei_f16_to_f32(cmoei_f32_to_f16(x));
    return x;
}
static inline void cmoei_block_round(float *x, int32_t dtype, int64_t n)
{
    if (dtype == CMOE_BF16) {
        for (int64_t i = 0; i < n; i++)
            x[i] = cmoei_round_bf16(x[i]);
    } else if (dtype == CMOE_F16) {
        for (int64_t i = 0; i < n; i++)
            x[i] = cmoei_round_to(x[i], CMOE_F16);
    }
}

/* Columns [col, col + n) of a row. */
static inline void cmoei_block_load(float *restrict dst, const cmoei_plane *p, int64_t row,
                                    int64_t col, int64_t n)
{
    const char *restrict src = cmoei_plane_at(p, row, col);
    if (cmoei_plane_direct(p, CMOE_F32)) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
    } else if (cmoei_plane_direct(p, CMOE_BF16)) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, src + 2 * i, sizeof h);
            dst[i] = cmoei_bf16_to_f32(h);
        }
    } else {
        cmoei_load_f32(dst, src, p->dtype, p->col, n);
    }
}

static inline void cmoei_block_store(const cmoei_plane *p, int64_t row, int64_t col,
                                     const float *restrict src, int64_t n)
{
    char *restrict dst = cmoei_plane_at(p, row, col);
    if (cmoei_plane_direct(p, CMOE_F32)) {
        memcpy(dst, src, (size_t)n * sizeof *src);
    } else if (cmoei_plane_direct(p, CMOE_BF16)) {
        for (int64_t i = 0; i < n; i++) {
            const uint16_t h = cmoei_f32_to_bf16(src[i]);
            memcpy(dst + 2 * i, &h, sizeof h);
        }
    } else {
        cmoei_store_f32(dst, p->dtype, p->col, src, n);
    }
}

#endif
