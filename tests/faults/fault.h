/* SPDX-License-Identifier: MIT
 *
 * fault.h - memory that runs out when told to, a count of every call for memory, and a small layer
 * to try both on.
 */
#ifndef CMOE_FAULT_H
#define CMOE_FAULT_H

#include <stdbool.h>

#include "../unit/unit.h"

/* ---- what the linker puts between libcmoe and the C library (fault.c) ------------------------ */

typedef struct fault_state {
    int64_t libc_calls;  /* malloc and its kin, free too */
    int64_t fail_libc;   /* the n-th from now returns NULL; 0: none */
    int64_t fail_thread; /* the n-th pthread_create from now fails */
    int64_t threads;     /* started and not yet joined */
} fault_state;

extern fault_state fault;

/* ---- a context's allocator that counts and fails --------------------------------------------- */

typedef struct fault_memory {
    int64_t calls, blocks, bytes; /* calls for memory; what is out at the moment */
    int64_t fail_at;              /* the n-th from now returns NULL; 0: none */
} fault_memory;

cmoe_allocator fault_allocator(fault_memory *m);
unit_env fault_env(fault_memory *m, int32_t threads);

/* ---- a small layer --------------------------------------------------------------------------- */

enum { FT = 7, FK = 3, FE = 5, FH = 40, FI = 24 }; /* tokens, top-k, experts, hidden, inter */

typedef struct fault_data {
    float x[FT * FH], gate[FE * FH], logits[FT * FE], w13[FE * 2 * FI * FH], w2[FE * FH * FI];
    float bias13[FE * 2 * FI], bias2[FE * FH], shared[FT * FH], weights[FT * FK],
        rows[FT * FK * FH];
    int32_t ids[FT * FK];
} fault_data;

void fault_fill(fault_data *d);

#endif
