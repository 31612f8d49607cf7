/* SPDX-License-Identifier: MIT
 *
 * tile.h - what the tile kernels of all instruction sets share: row pointers that fit into few
 * registers, and a switch from a row count to code in which it is a constant.
 */
#ifndef CMOE_TILE_H
#define CMOE_TILE_H

#include "matmul.h"

/* Prepared rows are read 32 bits at a time, whatever was written there. */
typedef float __attribute__((may_alias)) cmoei_word_f32;
typedef int32_t __attribute__((may_alias)) cmoei_word_i32;

#define CMOEI_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define CMOEI_UNROLL _Pragma("unroll")
#else
#define CMOEI_UNROLL _Pragma("GCC unroll 12")
#endif

/* Row m lies at p[m / 3] + (m % 3) * stride: four pointers and one stride address twelve rows,
 * because an x86 operand may be base + index * 1 or 2.  Twelve pointers would not fit. */
typedef struct cmoei_cursor {
    const char *p[4];
    int64_t stride;
} cmoei_cursor;

CMOEI_INLINE cmoei_cursor cmoei_cursor_at(const cmoei_tile *t, const int rows)
{
    cmoei_cursor c = {.stride = t->x_stride};
    CMOEI_UNROLL
    for (int i = 0; i < 4; i++)
        c.p[i] = 3 * i < rows ? t->x + 3 * i * t->x_stride : t->x;
    return c;
}

CMOEI_INLINE const void *cmoei_cursor_row(const cmoei_cursor *c, const int m)
{
    return c->p[m / 3] + (m % 3) * c->stride;
}

CMOEI_INLINE void cmoei_cursor_step(cmoei_cursor *c, const int rows, const int bytes)
{
    CMOEI_UNROLL
    for (int i = 0; i < 4; i++) {
        if (3 * i < rows) c->p[i] += bytes;
    }
}

CMOEI_INLINE int cmoei_x_step(const cmoei_tile *t)
{
    return t->x_step ? (int)t->x_step : 4;
}

/* Two lines a step; a step of less than that asks for some lines twice, which costs next to
 * nothing. */
CMOEI_INLINE void cmoei_fetch(const char **ahead, int64_t step)
{
    __builtin_prefetch(*ahead, 0, 3);
    __builtin_prefetch(*ahead + 64, 0, 3);
    *ahead += step;
}

#define CMOEI_TILE_CASE(tile, t, n) \
    case n:                         \
        tile(t, n);                 \
        break
#define CMOEI_TILE_CASES_6(tile, t) \
    CMOEI_TILE_CASE(tile, t, 1);    \
    CMOEI_TILE_CASE(tile, t, 2);    \
    CMOEI_TILE_CASE(tile, t, 3);    \
    CMOEI_TILE_CASE(tile, t, 4);    \
    CMOEI_TILE_CASE(tile, t, 5);    \
    CMOEI_TILE_CASE(tile, t, 6)
#define CMOEI_TILE_SWITCH_6(tile, t, rows) \
    switch (rows) {                        \
        CMOEI_TILE_CASES_6(tile, t);       \
    default:                               \
        CMOE_ASSERT(!"rows");              \
    }
#define CMOEI_TILE_SWITCH_12(tile, t, rows) \
    switch (rows) {                         \
        CMOEI_TILE_CASES_6(tile, t);        \
        CMOEI_TILE_CASE(tile, t, 7);        \
        CMOEI_TILE_CASE(tile, t, 8);        \
        CMOEI_TILE_CASE(tile, t, 9);        \
        CMOEI_TILE_CASE(tile, t, 10);       \
        CMOEI_TILE_CASE(tile, t, 11);       \
        CMOEI_TILE_CASE(tile, t, 12);       \
    default:                                \
        CMOE_ASSERT(!"rows");               \
    }

#endif
