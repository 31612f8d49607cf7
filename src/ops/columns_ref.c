/* SPDX-License-Identifier: MIT
 *
 * columns_ref.c - sums of columns as they read.
 */
#include "ops/columns.h"

void CMOEI_REF(cmoei_columns)(const cmoei_columns_args *a, int64_t column, int64_t column_end);

static cmoei_real term(const cmoei_columns_args *a, int64_t row, int64_t h, bool weighted,
                       cmoei_real sum)
{
    const cmoei_plane dout = cmoei_heads_row(&a->dout, a->heads, row);
    if (!weighted) return sum + real_get(&dout, 0, h);
    const cmoei_plane x = cmoei_heads_row(&a->x, a->heads, row);
    const cmoei_real xhat = (real_get(&x, 0, h) - a->stats[row].mean) * a->stats[row].inverse;
    return real_fma(real_get(&dout, 0, h), xhat, sum);
}

static cmoei_real column(const cmoei_columns_args *a, int64_t h, bool weighted)
{
    cmoei_real v[CMOE_UNITS_MOST];
    for (int64_t u = 0; u < a->units.count; u++) {
        v[u] = 0;
        for (int64_t r = a->units.first[u] * a->heads; r < a->units.first[u + 1] * a->heads; r++)
            v[u] = term(a, r, h, weighted, v[u]);
    }
    for (int64_t n = a->units.count; n > 1; n /= 2) {
        for (int64_t u = 0; u < n / 2; u++)
            v[u] = v[2 * u] + v[2 * u + 1];
    }
    return v[0];
}

void CMOEI_REF(cmoei_columns)(const cmoei_columns_args *a, int64_t h, int64_t column_end)
{
    for (; h < column_end; h++) {
        if (a->plain.data) real_put(&a->plain, 0, h, column(a, h, false));
        if (a->weighted.data) real_put(&a->weighted, 0, h, column(a, h, true));
    }
}
