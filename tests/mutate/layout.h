/* SPDX-License-Identifier: MIT
 *
 * layout.h - the words in which calls.c describe their arguments.
 */
#ifndef CMOE_MUTATE_LAYOUT_H
#define CMOE_MUTATE_LAYOUT_H

#include "mutate.h"

void fill(char *p, int32_t dtype); /* a whole buffer */

/* The next view; its index.  `free_dims` as in args. */
int tensor(args *a, memory *m, bool is_out, int32_t dtype, uint32_t free_dims, int32_t rank,
           int64_t d0, int64_t d1, int64_t d2);
int in2(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n, int64_t k);
int in1(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n);
int out2(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n, int64_t k);
int out1(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n);
int absent(args *a, bool is_out);

/* What else may be corrupted: a pointer, a number, the words of a struct. */
void pointer(args *a, void *at);
void number(args *a, void *at, size_t bytes);
void *options(args *a, size_t size, void (*set_default)(void *o, size_t size));
void close_words(block *b, size_t offset, size_t bytes);
void place(args *a, int view, size_t offset);
void place_pointer(args *a, size_t offset); /* in the last block */

void with_arena(args *a, memory *m);
void with_groups(args *a, memory *m);
/* `b` lies at `offset` of the last block. */
void batch_init(void *o, size_t size);
void with_batch(args *a, memory *m, cmoe_batch *b, size_t offset);
bool batch_fits(const cmoe_batch *b, int corrupted); /* or is refused before memory ends */
void with_object(args *a, const void *object);

/* Adapters, for a call through a pointer of another type is undefined. */
#define DEFAULTS(type)                            \
    static void type##_init(void *o, size_t size) \
    {                                             \
        type##_default(o, size);                  \
    }
#define OPTIONS(a, type) options(a, sizeof(type), type##_init)

#define IN(i)  (a->view[i].in)
#define OUT(i) (a->view[i].out)

#endif
