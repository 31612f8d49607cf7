/* SPDX-License-Identifier: MIT
 *
 * sort.c - indices in order: a merge sort from below that leaves alone what is in order already,
 * as tables of files mostly are.
 */
#include <string.h>

#include "header.h"

static void merge(int32_t *out, const int32_t *a, int64_t na, const int32_t *b, int64_t nb,
                  cmoei_compare compare, const void *table)
{
    while (na > 0 && nb > 0) {
        if (compare(table, *a, *b) <= 0) {
            *out++ = *a++;
            na--;
        } else {
            *out++ = *b++;
            nb--;
        }
    }
    memcpy(out, a, (size_t)na * sizeof *a);
    memcpy(out + na, b, (size_t)nb * sizeof *b);
}

void cmoei_sort(int32_t *order, int32_t *scratch, int64_t n, cmoei_compare compare,
                const void *table)
{
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t begin = 0; n - begin > run; begin += 2 * run) {
            const int64_t middle = begin + run, end = CMOEI_MIN(middle + run, n);
            if (compare(table, order[middle - 1], order[middle]) <= 0) continue;
            merge(scratch, order + begin, run, order + middle, end - middle, compare, table);
            memcpy(order + begin, scratch, (size_t)(end - begin) * sizeof *order);
        }
    }
}
