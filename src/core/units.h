/* SPDX-License-Identifier: MIT
 *
 * units.h - what the backward steps share: float32 rows at any address, and sums over tokens.
 *
 * THE tree of a sum over tokens: inside a unit one chain of fused multiply-adds over ascending
 * tokens that starts at 0; units as a balanced binary tree, (0 + 1) + (2 + 3) + ...  A unit without
 * rows gives 0.  A call that holds half of a step's units computes one of the two subtrees below
 * the root, so adding what two such calls return gives the bits of one call.
 */
#ifndef CMOE_UNITS_H
#define CMOE_UNITS_H

#include "core.h"

/* A float32 of the caller's, at any address. */
typedef float cmoei_f32 __attribute__((may_alias, aligned(1)));

/* Checks the caller's units against T; NULL: all tokens are one, whose bounds go into `one`.  What
 * `out` says is then sane. */
cmoe_status cmoei_units_check(const cmoe_units *units, int64_t tokens, cmoe_units *out,
                              int64_t one[2], cmoe_error *err) CMOE_PRIV(units_check);

/* cmoei_check_in and _out for float32 (want->dtypes is not read) whose last dimension is
 * contiguous. */
cmoe_status cmoei_check_rows(const cmoe_view *v, const cmoei_want *want, cmoe_error *err)
    CMOE_PRIV(check_rows);
cmoe_status cmoei_check_rows_out(const cmoe_view_mut *v, const cmoei_want *want, cmoe_error *err)
    CMOE_PRIV(check_rows_out);

/* v [count, n], rows `step` apart: the sum of all units ends in the first row. */
static inline void cmoei_units_tree(float *v, int64_t step, int64_t count, int64_t n)
{
    for (int64_t half = 1; half < count; half *= 2) {
        for (int64_t u = 0; u < count; u += 2 * half) {
            for (int64_t i = 0; i < n; i++)
                v[u * step + i] += v[(u + half) * step + i];
        }
    }
}

/* The same tree one unit after the other, which needs 7 rows instead of 64: the sum of unit u is
 * made in row cmoei_units_row(u) of v [CMOEI_UNITS_ROWS, n], then cmoei_units_fold closes the pairs
 * that it completes.  After the last unit the sum is in row 0. */
enum { CMOEI_UNITS_ROWS = 7 };

static inline int64_t cmoei_units_row(int64_t u)
{
    int64_t ones = 0;
    for (; u; u &= u - 1)
        ones++;
    return ones;
}
static inline void cmoei_units_fold(float *v, int64_t step, int64_t u, int64_t n)
{
    for (int64_t row = cmoei_units_row(u); u & 1; u >>= 1, row--) {
        for (int64_t i = 0; i < n; i++)
            v[(row - 1) * step + i] += v[row * step + i];
    }
}

#endif
