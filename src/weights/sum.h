/* SPDX-License-Identifier: MIT
 *
 * sum.h - a number for bytes, by which an accident to them is noticed.
 */
#ifndef CMOE_WEIGHTS_SUM_H
#define CMOE_WEIGHTS_SUM_H

#include "core/core.h"

/* 64 bits; against accidents, not against enemies. */
uint64_t cmoei_sum64(const void *data, int64_t bytes);

/* The same a piece at a time: pieces of a multiple of CMOEI_SUM_WORDS bytes, and what is left in the end, of
 * `total` bytes in all. */
enum { CMOEI_SUM_LANES = 8, CMOEI_SUM_WORDS = CMOEI_SUM_LANES * 8 };
typedef struct cmoei_sum {
    uint64_t lane[CMOEI_SUM_LANES];
} cmoei_sum;

void cmoei_sum_begin(cmoei_sum *s);
void cmoei_sum_add(cmoei_sum *s, const void *data, int64_t bytes);
uint64_t cmoei_sum_end(const cmoei_sum *s, const void *data, int64_t bytes, int64_t total);

#endif
