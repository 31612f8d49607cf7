/* SPDX-License-Identifier: MIT
 *
 * kernel.h - tables of kernel variants, and the two ways a kernel is written once and built often.
 *
 * An operation's variants are rows of one constant table, best first, the plain reference last;
 * dispatch, checks and benchmarks walk that same table.  docs/adding-a-kernel.md walks through one.
 *
 *   x_ref.c    plain loops in cmoei_real, for a reader to hold against the formula.  Built as
 *              float it is the last row, CMOEI_REF(f) = f_ref; built as double it is the tests'
 *              oracle, f_f64.
 *   x_simd.c   portable C that compilers vectorise, built once per instruction set, CMOEI_SIMD(f) =
 *              f_avx2, f_avx512.  A fixed number of partial sums makes all of them give equal bits.
 */
#ifndef CMOE_KERNEL_H
#define CMOE_KERNEL_H

#include "core.h"

/* First member of every row. */
typedef struct cmoei_variant {
    const char *name; /* "avx512" */
    uint32_t needs;   /* CMOE_CPU_ bits */
    int32_t dtype;    /* the format it computes in; 0: any */
} cmoei_variant;

typedef struct cmoei_table {
    const char *op; /* "combine" */
    const void *rows;
    int64_t count;
    size_t row_bytes;
} cmoei_table;

#define CMOEI_TABLE(op, rows)                          \
    {                                                  \
        op, rows, CMOEI_COUNT(rows), sizeof((rows)[0]) \
    }

static inline const cmoei_variant *cmoei_table_row(const cmoei_table *t, int64_t i)
{
    return (const cmoei_variant *)((const char *)t->rows + (size_t)i * t->row_bytes);
}

/* The first row that these features can run and that computes in `dtype`; NULL when none does. */
static inline const void *cmoei_table_pick(const cmoei_table *t, uint32_t features, int32_t dtype)
{
    for (int64_t i = 0; i < t->count; i++) {
        const cmoei_variant *v = cmoei_table_row(t, i);
        if ((v->needs & ~features) == 0 && (v->dtype == dtype || v->dtype == 0)) return v;
    }
    return NULL;
}

#define CMOEI_PASTE_(a, b) a##_##b
#define CMOEI_PASTE(a, b)  CMOEI_PASTE_(a, b)
#define CMOEI_SIMD(name)   CMOEI_PASTE(name, CMOEI_ISA)

#ifdef CMOEI_DOUBLE
typedef double cmoei_real;
#define CMOEI_REF(name) CMOEI_PASTE(name, f64)
#else
typedef float cmoei_real;
#define CMOEI_REF(name) CMOEI_PASTE(name, ref)
#endif

#endif
