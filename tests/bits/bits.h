/* SPDX-License-Identifier: MIT
 *
 * bits.h - what must not change a bit, how often that was looked at, and on what it runs.
 */
#ifndef CMOE_BITS_BITS_H
#define CMOE_BITS_BITS_H

#include <stdint.h>

#include "cmoe/cmoe.h"

enum { THREAD_COUNTS = 4, LEVELS = 8 };

enum {
    ALONE,
    BATCH,
    THREADS,
    CHUNKED,
    UNPACKED,
    RELAID,
    ODD,
    STRIDED,
    CAPTURED,
    REPLAYED,
    BESIDE,
    MODE,
    PAGES,
    ISAS,
    KINDS
};

typedef struct tally {
    int64_t compared[KINDS], different[KINDS];
} tally;

/* One context for every thread count of one instruction set. */
typedef struct level {
    const char *name;
    cmoe_ctx *ctx[THREAD_COUNTS];
} level;

/* Compares the `bytes` of one token's result; `title` says of what. */
void bits_compare(tally *t, int kind, const char *title, const char *isa, int64_t token,
                  const void *got, const void *want, int64_t bytes);

/* attention.c: random sequences over `n` levels, all kinds that attention has. */
void bits_attention(uint64_t seed, const level *levels, int n, tally *t);

#endif
