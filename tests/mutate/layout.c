/* SPDX-License-Identifier: MIT
 *
 * layout.c - see layout.h.
 */
#include "layout.h"

void fill(char *p, int32_t dtype)
{
    const int64_t bytes = cmoe_dtype_bytes(dtype);
    for (int64_t i = 0; i < BUFFER / bytes; i++) {
        const float f = (float)(i * 7 % 13 - 6) / 4;
        const int32_t i32 = (int32_t)(i % E);
        const int64_t i64 = i % E;
        const double f64 = f;
        const void *from = dtype == CMOE_F32   ? (const void *)&f
                           : dtype == CMOE_I32 ? (const void *)&i32
                           : dtype == CMOE_I64 ? (const void *)&i64
                           : dtype == CMOE_F64 ? (const void *)&f64
                                               : (const void *)&i32;
        memcpy(p + i * bytes, from, (size_t)bytes);
    }
}

int tensor(args *a, memory *m, bool is_out, int32_t dtype, uint32_t free_dims, int32_t rank,
           int64_t d0, int64_t d1, int64_t d2)
{
    const int i = a->views++;
    const int64_t dims[3] = {d0, d1, d2};
    fill(m->buffer[i], dtype);
    a->view[i].in = cmoe_view_make(m->buffer[i] + MIDDLE, dtype, rank, dims);
    a->is_out[i] = is_out;
    a->free_dims[i] = free_dims;
    return i;
}

int in2(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n, int64_t k)
{
    return tensor(a, m, false, dtype, free_dims, 2, n, k, 0);
}
int in1(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n)
{
    return tensor(a, m, false, dtype, free_dims, 1, n, 0, 0);
}
int out2(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n, int64_t k)
{
    return tensor(a, m, true, dtype, free_dims, 2, n, k, 0);
}
int out1(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n)
{
    return tensor(a, m, true, dtype, free_dims, 1, n, 0, 0);
}
int absent(args *a, bool is_out)
{
    a->is_out[a->views] = is_out;
    a->view[a->views].in = cmoe_view_none();
    return a->views++;
}

void pointer(args *a, void *at)
{
    a->pointers[a->n_pointers++] = at;
}

void number(args *a, void *at, size_t bytes)
{
    a->words[a->n_words++] = (number_place){at, bytes};
}

void *options(args *a, size_t size, void (*set_default)(void *o, size_t size))
{
    block *b = &a->block[a->blocks];
    b->size = size;
    set_default(b->bytes, size);
    b->closed[0] = b->closed[1] = true; /* `size` */
    a->options[a->blocks] = b->bytes;
    pointer(a, &a->options[a->blocks]);
    a->blocks++;
    return b->bytes;
}

void close_words(block *b, size_t offset, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 4)
        b->closed[(offset + i) / 4] = true;
}

/* View `view` is copied into the last block before the call. */
void place(args *a, int view, size_t offset)
{
    a->embeds[a->n_embeds++] = (embed){view, a->blocks - 1, offset};
    close_words(&a->block[a->blocks - 1], offset, sizeof(cmoe_view));
}

void place_pointer(args *a, size_t offset)
{
    block *b = &a->block[a->blocks - 1];
    close_words(b, offset, sizeof(void *));
    pointer(a, b->bytes + offset);
}

void with_arena(args *a, memory *m)
{
    a->arena = cmoe_arena_make(m->arena, ARENA);
    a->arena_at = &a->arena;
    pointer(a, &a->arena_at);
}

/* The lists are views that no function takes, so that their values are corrupted too. */
void with_groups(args *a, memory *m)
{
    const cmoe_groups *g = &a->fix->groups;
    const cmoe_view first = a->view[in1(a, m, CMOE_I64, 0, E + 1)].in;
    const cmoe_view row_of = a->view[in2(a, m, CMOE_I32, 0, T, K)].in;
    const cmoe_view slots = a->view[in1(a, m, CMOE_I32, 0, R)].in;
    memcpy((void *)(uintptr_t)first.data, g->first, (E + 1) * sizeof *g->first);
    memcpy((void *)(uintptr_t)row_of.data, g->row_of, R * sizeof *g->row_of);
    memcpy((void *)(uintptr_t)slots.data, g->slots, R * sizeof *g->slots);
    a->groups = *g;
    a->groups.first = first.data;
    a->groups.row_of = row_of.data;
    a->groups.slots = slots.data;
    a->groups_at = &a->groups;
    pointer(a, &a->groups_at);
    pointer(a, &a->groups.first);
    pointer(a, &a->groups.row_of);
    pointer(a, &a->groups.slots);
    number(a, &a->groups.tokens, 8);
    number(a, &a->groups.topk, 8);
    number(a, &a->groups.capacity, 8);
    number(a, &a->groups.experts, 8);
}

void with_object(args *a, const void *object)
{
    a->object = object;
    pointer(a, &a->object);
}
