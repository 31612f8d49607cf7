/* SPDX-License-Identifier: MIT
 *
 * calls.c - see mutate.h.
 */
#include "mutate.h"

/* ---- laying out ------------------------------------------------------------------------------ */

static void fill(char *p, int32_t dtype)
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

/* `free_dims` as in args. */
static int tensor(args *a, memory *m, bool is_out, int32_t dtype, uint32_t free_dims, int32_t rank,
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

static int in2(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n, int64_t k)
{
    return tensor(a, m, false, dtype, free_dims, 2, n, k, 0);
}
static int in1(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n)
{
    return tensor(a, m, false, dtype, free_dims, 1, n, 0, 0);
}
static int out2(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n, int64_t k)
{
    return tensor(a, m, true, dtype, free_dims, 2, n, k, 0);
}
static int out1(args *a, memory *m, int32_t dtype, uint32_t free_dims, int64_t n)
{
    return tensor(a, m, true, dtype, free_dims, 1, n, 0, 0);
}
static int absent(args *a, bool is_out)
{
    a->is_out[a->views] = is_out;
    a->view[a->views].in = cmoe_view_none();
    return a->views++;
}

static void pointer(args *a, void *at)
{
    a->pointers[a->n_pointers++] = at;
}

static void number(args *a, void *at, size_t bytes)
{
    a->words[a->n_words++] = (number_place){at, bytes};
}

static void *options(args *a, size_t size, void (*set_default)(void *o, size_t size))
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

/* Adapters, for a call through a pointer of another type is undefined. */
#define DEFAULTS(type)                            \
    static void type##_init(void *o, size_t size) \
    {                                             \
        type##_default(o, size);                  \
    }
DEFAULTS(cmoe_route_options)
DEFAULTS(cmoe_route_inputs)
DEFAULTS(cmoe_align_options)
DEFAULTS(cmoe_combine_options)
DEFAULTS(cmoe_experts_options)
DEFAULTS(cmoe_matrix_options)
DEFAULTS(cmoe_grouped_matmul_options)
DEFAULTS(cmoe_rms_norm_options)
DEFAULTS(cmoe_layer_options)
DEFAULTS(cmoe_layer_weights)
DEFAULTS(cmoe_layer_call)
#define OPTIONS(a, type) options(a, sizeof(type), type##_init)

static void close_words(block *b, size_t offset, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 4)
        b->closed[(offset + i) / 4] = true;
}

/* View `view` is copied into the last block before the call. */
static void place(args *a, int view, size_t offset)
{
    a->embeds[a->n_embeds++] = (embed){view, a->blocks - 1, offset};
    close_words(&a->block[a->blocks - 1], offset, sizeof(cmoe_view));
}

static void place_pointer(args *a, size_t offset)
{
    block *b = &a->block[a->blocks - 1];
    close_words(b, offset, sizeof(void *));
    pointer(a, b->bytes + offset);
}

static void with_arena(args *a, memory *m)
{
    a->arena = cmoe_arena_make(m->arena, ARENA);
    a->arena_at = &a->arena;
    pointer(a, &a->arena_at);
}

/* The lists are views that no function takes, so that their values are corrupted too. */
static void with_groups(args *a, memory *m)
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

static void with_object(args *a, const void *object)
{
    a->object = object;
    pointer(a, &a->object);
}

#define IN(i)  (a->view[i].in)
#define OUT(i) (a->view[i].out)

/* ---- route ----------------------------------------------------------------------------------- */

static void set_route(args *a, memory *m, int form)
{
    in2(a, m, CMOE_F32, form == 0 ? 0 : 2, T, E);
    out2(a, m, CMOE_F32, 0, T, K + 1);
    out2(a, m, CMOE_I32, 0, T, K + 1);
    cmoe_route_options *o = OPTIONS(a, cmoe_route_options);
    o->topk = K;
    o->shared = 1;
    o->groups = form == 0 ? 2 : 1;
    o->validate = form == 2;
    OPTIONS(a, cmoe_route_inputs);
    place(a, form == 0 ? in1(a, m, CMOE_F32, 0, E) : absent(a, false),
          offsetof(cmoe_route_inputs, bias));
    place(a, form == 1 ? in2(a, m, CMOE_I32, 1, V, K) : absent(a, false),
          offsetof(cmoe_route_inputs, hash_table));
    place(a, form == 1 ? in1(a, m, CMOE_I64, 0, T) : absent(a, false),
          offsetof(cmoe_route_inputs, input_ids));
    place(a, form == 2 ? in2(a, m, CMOE_I64, 0, T, K) : absent(a, false),
          offsetof(cmoe_route_inputs, given_ids));
    place(a, form == 2 ? in2(a, m, CMOE_F32, 0, T, K) : absent(a, false),
          offsetof(cmoe_route_inputs, given_weights));
    place(a, form == 0 ? in1(a, m, CMOE_F32, 0, E) : absent(a, false),
          offsetof(cmoe_route_inputs, per_expert_scale));
    place(a, in2(a, m, CMOE_F32, 0, T, 1), offsetof(cmoe_route_inputs, shared_gate));
    with_arena(a, m);
}
static void set_route_plain(args *a, memory *m)
{
    set_route(a, m, 0);
}
static void set_route_hash(args *a, memory *m)
{
    set_route(a, m, 1);
}
static void set_route_given(args *a, memory *m)
{
    set_route(a, m, 2);
}
static cmoe_status run_route(args *a, cmoe_error *err)
{
    return cmoe_route(a->stream, a->options[0], IN(0), a->options[1], OUT(1), OUT(2), a->arena_at,
                      err);
}

static void set_logits(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, E, H);
    in1(a, m, CMOE_F32, 0, E);
    in2(a, m, CMOE_F32, 0, L, H);
    in2(a, m, CMOE_F32, 0, E, L);
    out2(a, m, CMOE_F32, 0, T, E);
    a->scale = 1;
    number(a, &a->scale, 4);
    with_arena(a, m);
}
static void set_logits_plain(args *a, memory *m)
{
    set_logits(a, m);
    a->view[3].in = a->view[4].in = cmoe_view_none();
}
static cmoe_status run_logits(args *a, cmoe_error *err)
{
    return cmoe_route_logits(a->stream, IN(0), IN(1), IN(2), IN(3), IN(4), a->scale, OUT(5),
                             a->arena_at, err);
}

static void set_balance(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 2, T, E);
    in2(a, m, CMOE_I32, 2, T, K);
    in1(a, m, CMOE_I32, 0, T);
    pointer(a, &a->result[0]);
}
static cmoe_status run_balance(args *a, cmoe_error *err)
{
    return cmoe_route_balance_loss(a->stream, IN(0), IN(1), IN(2), a->result[0], err);
}

static void set_load(args *a, memory *m)
{
    in2(a, m, CMOE_I32, 3, T, K);
    out1(a, m, CMOE_I64, 1, E);
}
static cmoe_status run_load(args *a, cmoe_error *err)
{
    return cmoe_route_load(a->stream, IN(0), OUT(1), err);
}

/* ---- align ----------------------------------------------------------------------------------- */

static void set_align(args *a, memory *m)
{
    in2(a, m, CMOE_I32, 3, T, K);
    cmoe_align_options *o = OPTIONS(a, cmoe_align_options);
    o->experts = E;
    o->block = 4;
    o->validate = 1;
    pointer(a, &a->result[0]);
    with_arena(a, m);
}
static cmoe_status run_align(args *a, cmoe_error *err)
{
    return cmoe_align(a->stream, a->options[0], IN(0), a->result[0], a->arena_at, err);
}

static void set_one_hot(args *a, memory *m)
{
    in2(a, m, CMOE_I64, 0, T, K);
    out2(a, m, CMOE_I32, 1, E, T * K);
}
static cmoe_status run_one_hot(args *a, cmoe_error *err)
{
    return cmoe_align_one_hot(a->stream, IN(0), OUT(1), err);
}

static void set_compact(args *a, memory *m)
{
    out2(a, m, CMOE_I32, 0, E, T * K);
    for (int i = 0; i < BUFFER; i++)
        m->buffer[0][i] &= 1; /* one-hot */
    in2(a, m, CMOE_F32, 0, T, K);
    out2(a, m, CMOE_F32, 0, E, T * K);
    out1(a, m, CMOE_I32, 0, E);
}
static cmoe_status run_compact(args *a, cmoe_error *err)
{
    return cmoe_align_compact(a->stream, OUT(0), IN(1), OUT(2), OUT(3), err);
}

static void set_tables(args *a, memory *m)
{
    in2(a, m, CMOE_I32, 0, T, K);
    in2(a, m, CMOE_F32, 0, T, K);
    out2(a, m, CMOE_I32, 0, E, T * K);
    out2(a, m, CMOE_F32, 0, E, T * K);
    out1(a, m, CMOE_I32, 0, E);
}
static cmoe_status run_tables(args *a, cmoe_error *err)
{
    return cmoe_align_tables(a->stream, IN(0), IN(1), OUT(2), OUT(3), OUT(4), err);
}

static void set_blocks(args *a, memory *m)
{
    in1(a, m, CMOE_I32, 1, E);
    out2(a, m, CMOE_I32, 1, 6, 3);
    a->n[0] = R;
    a->n[1] = 4;
    number(a, &a->n[0], 8);
    number(a, &a->n[1], 8);
}
static cmoe_status run_blocks(args *a, cmoe_error *err)
{
    return cmoe_align_blocks(a->stream, IN(0), a->n[0], a->n[1], OUT(1), err);
}

static void set_padded(args *a, memory *m)
{
    in2(a, m, CMOE_I32, 3, T, K);
    out1(a, m, CMOE_I32, 1, R + E * 4);
    out1(a, m, CMOE_I32, 1, (R + E * 4) / 4);
    a->n[0] = E;
    a->n[2] = 4;
    for (int i = 0; i < 3; i++)
        number(a, &a->n[i], 8);
    pointer(a, &a->result[0]);
}
static cmoe_status run_padded(args *a, cmoe_error *err)
{
    return cmoe_align_padded(a->stream, IN(0), a->n[0], a->n[1], a->n[2], OUT(1), OUT(2),
                             a->result[0], err);
}

static void set_sort(args *a, memory *m)
{
    in2(a, m, CMOE_I32, 0, T, K);
    out1(a, m, CMOE_I32, 0, T * K);
    out1(a, m, CMOE_I32, 0, T * K);
    out1(a, m, CMOE_I64, 1, E);
}
static cmoe_status run_sort(args *a, cmoe_error *err)
{
    return cmoe_align_sort(a->stream, IN(0), OUT(1), OUT(2), OUT(3), err);
}

static void set_combine(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 1, R, H);
    in2(a, m, CMOE_F32, 0, T, K);
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    OPTIONS(a, cmoe_combine_options);
    with_groups(a, m);
    with_arena(a, m);
}
static cmoe_status run_combine(args *a, cmoe_error *err)
{
    return cmoe_combine(a->stream, a->options[0], IN(0), IN(1), a->groups_at, IN(2), OUT(3),
                        a->arena_at, err);
}

/* ---- products and experts -------------------------------------------------------------------- */

static void set_experts_create(args *a, memory *m)
{
    tensor(a, m, false, CMOE_F32, 0, 3, E, 2 * I, H);
    tensor(a, m, false, CMOE_F32, 0, 3, E, H, I);
    in2(a, m, CMOE_F32, 0, E, 2 * I);
    in2(a, m, CMOE_F32, 0, E, H);
    OPTIONS(a, cmoe_experts_options);
    place(a, absent(a, false), offsetof(cmoe_experts_options, scale13));
    place(a, absent(a, false), offsetof(cmoe_experts_options, scale2));
    pointer(a, &a->ctx);
}
static void set_experts_create_i8(args *a, memory *m)
{
    tensor(a, m, false, CMOE_I8, 0, 3, E, 2 * I, H);
    tensor(a, m, false, CMOE_I8, 0, 3, E, H, I);
    absent(a, false);
    absent(a, false);
    cmoe_experts_options *o = OPTIONS(a, cmoe_experts_options);
    o->format = CMOE_I8;
    place(a, in2(a, m, CMOE_F32, 0, E, 2 * I), offsetof(cmoe_experts_options, scale13));
    place(a, in2(a, m, CMOE_F32, 0, E, H), offsetof(cmoe_experts_options, scale2));
    pointer(a, &a->ctx);
}
static cmoe_status run_experts_create(args *a, cmoe_error *err)
{
    return cmoe_experts_create((cmoe_experts **)&a->made, a->ctx, a->options[0], IN(0), IN(1),
                               IN(2), IN(3), err);
}
static void free_experts(void *x)
{
    cmoe_experts_free(x);
}

static void set_experts_rows(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 1, T, H);
    absent(a, false);
    out2(a, m, CMOE_F32, 1, R, H);
    number(a, &a->flag[0], 4);
    with_object(a, a->fix->experts);
    with_groups(a, m);
    with_arena(a, m);
}
static cmoe_status run_experts_rows(args *a, cmoe_error *err)
{
    return cmoe_experts_rows(a->stream, a->object, IN(0), a->flag[0], a->groups_at, IN(1), OUT(2),
                             a->arena_at, err);
}

static void set_experts_run(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_I32, 0, T, K);
    in2(a, m, CMOE_F32, 0, T, K);
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    with_object(a, a->fix->experts);
    with_arena(a, m);
}
static cmoe_status run_experts_run(args *a, cmoe_error *err)
{
    return cmoe_experts_run(a->stream, a->object, IN(0), IN(1), IN(2), IN(3), OUT(4), a->arena_at,
                            err);
}

static void set_matrix_create(args *a, memory *m)
{
    tensor(a, m, false, CMOE_F32, 4, 3, E, I, H);
    in2(a, m, CMOE_F32, 0, E, I);
    OPTIONS(a, cmoe_matrix_options);
    place(a, absent(a, false), offsetof(cmoe_matrix_options, scale));
    pointer(a, &a->ctx);
}
static cmoe_status run_matrix_create(args *a, cmoe_error *err)
{
    return cmoe_matrix_create((cmoe_matrix **)&a->made, a->ctx, a->options[0], IN(0), IN(1), err);
}
static void free_matrix(void *x)
{
    cmoe_matrix_free(x);
}

static void set_grouped(args *a, memory *m, bool grouped)
{
    in2(a, m, CMOE_F32, grouped, grouped ? R : T, H);
    in2(a, m, CMOE_F32, 0, T, K);
    out2(a, m, CMOE_F32, grouped, R, I);
    cmoe_grouped_matmul_options *o = OPTIONS(a, cmoe_grouped_matmul_options);
    o->x_grouped = o->out_grouped = grouped;
    o->mul_weights = 1;
    with_object(a, a->fix->matrix);
    with_groups(a, m);
    with_arena(a, m);
}
static void set_grouped_slots(args *a, memory *m)
{
    set_grouped(a, m, false);
}
static void set_grouped_rows(args *a, memory *m)
{
    set_grouped(a, m, true);
}
static cmoe_status run_grouped(args *a, cmoe_error *err)
{
    return cmoe_grouped_matmul(a->stream, a->options[0], IN(0), a->object, IN(1), a->groups_at,
                               OUT(2), a->arena_at, err);
}

static void set_linear(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, I);
    with_object(a, a->fix->one);
    with_arena(a, m);
}
static cmoe_status run_linear(args *a, cmoe_error *err)
{
    return cmoe_linear(a->stream, IN(0), a->object, OUT(1), a->arena_at, err);
}

/* ---- layer ----------------------------------------------------------------------------------- */

static void set_layer_create(args *a, memory *m)
{
    cmoe_route_options *r = OPTIONS(a, cmoe_route_options);
    r->topk = K;
    cmoe_layer_options *o = OPTIONS(a, cmoe_layer_options);
    o->route = (const cmoe_route_options *)r;
    place_pointer(a, offsetof(cmoe_layer_options, route));
    place_pointer(a, offsetof(cmoe_layer_options, comm));
    cmoe_layer_weights *w = OPTIONS(a, cmoe_layer_weights);
    w->experts = a->fix->experts;
    w->shared = a->fix->shared;
    place_pointer(a, offsetof(cmoe_layer_weights, experts));
    place_pointer(a, offsetof(cmoe_layer_weights, shared));
    place(a, in2(a, m, CMOE_F32, 0, E, H), offsetof(cmoe_layer_weights, gate));
    place(a, in1(a, m, CMOE_F32, 0, E), offsetof(cmoe_layer_weights, gate_bias));
    place(a, in2(a, m, CMOE_F32, 0, L, H), offsetof(cmoe_layer_weights, lora_a));
    place(a, in2(a, m, CMOE_F32, 0, E, L), offsetof(cmoe_layer_weights, lora_b));
    place(a, absent(a, false), offsetof(cmoe_layer_weights, bias));
    place(a, in2(a, m, CMOE_I32, 1, V, K), offsetof(cmoe_layer_weights, hash_table));
    place(a, in1(a, m, CMOE_F32, 0, E), offsetof(cmoe_layer_weights, per_expert_scale));
    place(a, in2(a, m, CMOE_F32, 0, 1, H), offsetof(cmoe_layer_weights, shared_gate));
    pointer(a, &a->ctx);
}
static cmoe_status run_layer_create(args *a, cmoe_error *err)
{
    return cmoe_layer_create((cmoe_layer **)&a->made, a->ctx, a->options[1], a->options[2], err);
}
static void free_layer(void *x)
{
    cmoe_layer_free(x);
}

static void set_forward(args *a, memory *m, bool hashed)
{
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    cmoe_layer_call *c = OPTIONS(a, cmoe_layer_call);
    c->balance_loss = a->result[0];
    place_pointer(a, offsetof(cmoe_layer_call, balance_loss));
    place(a, in1(a, m, CMOE_I64, 0, T), offsetof(cmoe_layer_call, input_ids));
    place(a, hashed ? absent(a, false) : in2(a, m, CMOE_I32, 0, T, K),
          offsetof(cmoe_layer_call, replay_ids));
    place(a, hashed ? absent(a, false) : in2(a, m, CMOE_F32, 0, T, K),
          offsetof(cmoe_layer_call, replay_weights));
    place(a, out2(a, m, CMOE_I32, 0, T, K), offsetof(cmoe_layer_call, ids));
    place(a, out2(a, m, CMOE_F32, 0, T, K), offsetof(cmoe_layer_call, weights));
    place(a, out2(a, m, CMOE_F32, 0, T, E), offsetof(cmoe_layer_call, logits));
    place(a, out1(a, m, CMOE_I64, 0, E), offsetof(cmoe_layer_call, load));
    place(a, in1(a, m, CMOE_I32, 0, T), offsetof(cmoe_layer_call, mask));
    with_object(a, hashed ? a->fix->hashed : a->fix->layer);
    with_arena(a, m);
}
static void set_forward_replay(args *a, memory *m)
{
    set_forward(a, m, false);
}
static void set_forward_hashed(args *a, memory *m)
{
    set_forward(a, m, true);
}
static cmoe_status run_forward(args *a, cmoe_error *err)
{
    return cmoe_layer_forward(a->stream, a->object, IN(0), a->options[0], OUT(1), a->arena_at, err);
}

/* ---- small operations ------------------------------------------------------------------------ */

static void set_norm(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, T, H);
    in1(a, m, CMOE_F32, 0, H);
    out2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    OPTIONS(a, cmoe_rms_norm_options);
}
static cmoe_status run_norm(args *a, cmoe_error *err)
{
    return cmoe_rms_norm(a->stream, a->options[0], IN(0), IN(1), IN(2), OUT(3), OUT(4), err);
}

static void set_sigmoid(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, T, 1);
    out2(a, m, CMOE_F32, 0, T, H);
    number(a, &a->flag[0], 4);
}
static cmoe_status run_sigmoid(args *a, cmoe_error *err)
{
    return cmoe_sigmoid_mul(a->stream, IN(0), IN(1), a->flag[0], OUT(2), err);
}

static void set_add_shared(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    number(a, &a->flag[0], 4);
}
static cmoe_status run_add_shared(args *a, cmoe_error *err)
{
    return cmoe_add_shared_expert(a->stream, IN(0), IN(1), IN(2), a->flag[0], OUT(3), err);
}

static void set_silu(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, 2 * I);
    out2(a, m, CMOE_F32, 0, T, I);
    number(a, &a->flag[0], 4);
    number(a, &a->flag[1], 4);
}
static cmoe_status run_silu(args *a, cmoe_error *err)
{
    return cmoe_silu_mul(a->stream, IN(0), a->flag[0], a->flag[1], OUT(1), err);
}

static void set_quantize(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_I8, 0, T, H);
    out1(a, m, CMOE_F32, 0, T);
}
static cmoe_status run_quantize(args *a, cmoe_error *err)
{
    return cmoe_quantize_rows(a->stream, IN(0), OUT(1), OUT(2), err);
}

static void set_masked(args *a, memory *m)
{
    tensor(a, m, false, CMOE_F32, 0, 3, E, 3, 2 * I);
    in1(a, m, CMOE_I32, 0, E);
    tensor(a, m, true, CMOE_F8E4M3, 0, 3, E, 3, I);
    tensor(a, m, true, CMOE_F32, 0, 3, E, 3, I / 2);
    a->n[0] = 2;
    number(a, &a->n[0], 8);
}
static cmoe_status run_masked(args *a, cmoe_error *err)
{
    return cmoe_silu_mul_quantize_masked(a->stream, IN(0), IN(1), a->n[0], OUT(2), OUT(3), err);
}

static void set_convert(args *a, memory *m)
{
    tensor(a, m, false, CMOE_F32, 0, 3, E, 3, H);
    tensor(a, m, true, CMOE_BF16, 0, 3, E, 3, H);
}
static void set_convert_packed(args *a, memory *m)
{
    in2(a, m, CMOE_I4X2, 0, T, I);
    out2(a, m, CMOE_F32, 0, T, 2 * I);
}
static cmoe_status run_convert(args *a, cmoe_error *err)
{
    return cmoe_convert(a->stream, IN(0), OUT(1), err);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static void set_sizes(args *a, int numbers, int64_t n0, int64_t n1, int64_t n2)
{
    a->n[0] = n0;
    a->n[1] = n1;
    a->n[2] = n2;
    for (int i = 0; i < numbers; i++)
        number(a, &a->n[i], 8);
    pointer(a, &a->result[0]);
    pointer(a, &a->result[1]);
}

static void set_route_bytes(args *a, memory *m)
{
    (void)m;
    cmoe_route_options *o = OPTIONS(a, cmoe_route_options);
    o->topk = K;
    set_sizes(a, 2, T, E, 0);
}
static cmoe_status run_route_bytes(args *a, cmoe_error *err)
{
    return cmoe_route_bytes(a->options[0], a->n[0], a->n[1], a->result[0], a->result[1], err);
}
static void set_logits_bytes(args *a, memory *m)
{
    (void)m;
    set_sizes(a, 3, T, H, E);
    pointer(a, &a->ctx);
}
static cmoe_status run_logits_bytes(args *a, cmoe_error *err)
{
    return cmoe_route_logits_bytes(a->ctx, a->n[0], a->n[1], a->n[2], L, a->result[0], a->result[1],
                                   err);
}
static cmoe_status run_lora_bytes(args *a, cmoe_error *err)
{
    return cmoe_route_logits_bytes(a->ctx, T, a->n[0], a->n[1], a->n[2], a->result[0], a->result[1],
                                   err);
}
static void set_align_bytes(args *a, memory *m)
{
    (void)m;
    cmoe_align_options *o = OPTIONS(a, cmoe_align_options);
    o->experts = E;
    set_sizes(a, 2, T, K, 0);
}
static cmoe_status run_align_bytes(args *a, cmoe_error *err)
{
    return cmoe_align_bytes(a->options[0], a->n[0], a->n[1], a->result[0], a->result[1], err);
}
static void set_experts_bytes(args *a, memory *m)
{
    (void)m;
    set_sizes(a, 2, T, K, 0);
    with_object(a, a->fix->experts);
}
static cmoe_status run_experts_bytes(args *a, cmoe_error *err)
{
    return cmoe_experts_bytes(a->object, a->n[0], a->n[1], a->result[0], a->result[1], err);
}
static cmoe_status run_rows_bytes(args *a, cmoe_error *err)
{
    return cmoe_experts_rows_bytes(a->object, a->n[0], a->n[1], a->result[0], a->result[1], err);
}
static void set_matrix_bytes(args *a, memory *m)
{
    (void)m;
    set_sizes(a, 1, R, 0, 0);
    with_object(a, a->fix->one);
}
static cmoe_status run_grouped_bytes(args *a, cmoe_error *err)
{
    return cmoe_grouped_matmul_bytes(a->object, a->n[0], a->result[0], a->result[1], err);
}
static cmoe_status run_linear_bytes(args *a, cmoe_error *err)
{
    return cmoe_linear_bytes(a->object, a->n[0], a->result[0], a->result[1], err);
}
static void set_layer_bytes(args *a, memory *m)
{
    (void)m;
    set_sizes(a, 1, T, 0, 0);
    with_object(a, a->fix->layer);
}
static cmoe_status run_layer_bytes(args *a, cmoe_error *err)
{
    return cmoe_layer_bytes(a->object, a->n[0], a->result[0], a->result[1], err);
}

const call calls[] = {
    {"route", set_route_plain, run_route, NULL, false},
    {"route, hash table", set_route_hash, run_route, NULL, false},
    {"route, given ids", set_route_given, run_route, NULL, false},
    {"route_logits", set_logits, run_logits, NULL, false},
    {"route_logits, no delta", set_logits_plain, run_logits, NULL, false},
    {"route_balance_loss", set_balance, run_balance, NULL, false},
    {"route_load", set_load, run_load, NULL, false},
    {"align", set_align, run_align, NULL, true},
    {"align_one_hot", set_one_hot, run_one_hot, NULL, false},
    {"align_compact", set_compact, run_compact, NULL, false},
    {"align_tables", set_tables, run_tables, NULL, false},
    {"align_blocks", set_blocks, run_blocks, NULL, false},
    {"align_padded", set_padded, run_padded, NULL, false},
    {"align_sort", set_sort, run_sort, NULL, false},
    {"combine", set_combine, run_combine, NULL, false},
    {"experts_create", set_experts_create, run_experts_create, free_experts, false},
    {"experts_create, i8", set_experts_create_i8, run_experts_create, free_experts, false},
    {"experts_rows", set_experts_rows, run_experts_rows, NULL, false},
    {"experts_run", set_experts_run, run_experts_run, NULL, false},
    {"matrix_create", set_matrix_create, run_matrix_create, free_matrix, false},
    {"grouped_matmul", set_grouped_slots, run_grouped, NULL, false},
    {"grouped_matmul, rows", set_grouped_rows, run_grouped, NULL, false},
    {"linear", set_linear, run_linear, NULL, false},
    {"layer_create", set_layer_create, run_layer_create, free_layer, false},
    {"layer_forward", set_forward_replay, run_forward, NULL, false},
    {"layer_forward, hash table", set_forward_hashed, run_forward, NULL, false},
    {"rms_norm", set_norm, run_norm, NULL, false},
    {"sigmoid_mul", set_sigmoid, run_sigmoid, NULL, false},
    {"add_shared_expert", set_add_shared, run_add_shared, NULL, false},
    {"silu_mul", set_silu, run_silu, NULL, false},
    {"quantize_rows", set_quantize, run_quantize, NULL, false},
    {"silu_mul_quantize_masked", set_masked, run_masked, NULL, false},
    {"convert", set_convert, run_convert, NULL, false},
    {"convert, packed", set_convert_packed, run_convert, NULL, false},
    {"route_bytes", set_route_bytes, run_route_bytes, NULL, false},
    {"route_logits_bytes", set_logits_bytes, run_logits_bytes, NULL, false},
    {"route_logits_bytes, lora", set_logits_bytes, run_lora_bytes, NULL, false},
    {"align_bytes", set_align_bytes, run_align_bytes, NULL, false},
    {"experts_bytes", set_experts_bytes, run_experts_bytes, NULL, false},
    {"experts_rows_bytes", set_experts_bytes, run_rows_bytes, NULL, false},
    {"grouped_matmul_bytes", set_matrix_bytes, run_grouped_bytes, NULL, false},
    {"linear_bytes", set_matrix_bytes, run_linear_bytes, NULL, false},
    {"layer_bytes", set_layer_bytes, run_layer_bytes, NULL, false},
};
const int n_calls = (int)(sizeof calls / sizeof calls[0]);

/* ---- what they need -------------------------------------------------------------------------- */

/* Small, so that sizes nobody can have end in a refusal and not in a machine out of memory. */
static void *limited_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    return bytes > (1u << 26) ? NULL : aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void limited_free(void *user, void *p, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(p);
}

static void must(cmoe_status status, const cmoe_error *err)
{
    if (status == CMOE_OK) return;
    printf("setting up: %s\n", err->text);
    exit(2);
}

static void make_layers(fixture *f, const float *w)
{
    cmoe_error err = {0};
    int32_t table[V * K];
    for (int i = 0; i < V * K; i++)
        table[i] = i % E;
    cmoe_route_options r;
    cmoe_route_options_default(&r, sizeof r);
    r.topk = K;
    cmoe_layer_options o;
    cmoe_layer_options_default(&o, sizeof o);
    o.route = &r;
    cmoe_layer_weights lw;
    cmoe_layer_weights_default(&lw, sizeof lw);
    lw.gate = cmoe_view_2d(w, CMOE_F32, E, H);
    lw.experts = f->experts;
    lw.shared = f->shared;
    must(cmoe_layer_create(&f->layer, f->ctx, &o, &lw, &err), &err);
    lw.hash_table = cmoe_view_2d(table, CMOE_I32, V, K);
    must(cmoe_layer_create(&f->hashed, f->ctx, &o, &lw, &err), &err);
}

fixture fixture_open(memory *m)
{
    fixture f = {0};
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    o.allocator = (cmoe_allocator){.alloc = limited_alloc, .free = limited_free};
    must(cmoe_ctx_create(&f.ctx, &o, &err), &err);
    must(cmoe_stream_create(&f.stream, f.ctx, &err), &err);
    fill(m->buffer[0], CMOE_F32);
    const void *w = m->buffer[0];
    const cmoe_view none = cmoe_view_none();
    must(cmoe_matrix_create(&f.matrix, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, E, I, H), none, &err),
         &err);
    must(cmoe_matrix_create(&f.one, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, 1, I, H), none, &err),
         &err);
    must(cmoe_experts_create(&f.experts, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, E, 2 * I, H),
                             cmoe_view_3d(w, CMOE_F32, E, H, I), none, none, &err),
         &err);
    must(cmoe_experts_create(&f.shared, f.ctx, NULL, cmoe_view_3d(w, CMOE_F32, 1, 2 * I, H),
                             cmoe_view_3d(w, CMOE_F32, 1, H, I), none, none, &err),
         &err);
    make_layers(&f, w);
    fill(m->buffer[1], CMOE_I32);
    cmoe_align_options ao;
    cmoe_align_options_default(&ao, sizeof ao);
    ao.experts = E;
    f.groups_memory = malloc(BUFFER);
    cmoe_arena arena = cmoe_arena_make(f.groups_memory, BUFFER);
    must(cmoe_align(f.stream, &ao, cmoe_view_2d(m->buffer[1], CMOE_I32, T, K), &f.groups, &arena,
                    &err),
         &err);
    return f;
}

void fixture_close(fixture *f)
{
    cmoe_layer_free(f->layer);
    cmoe_layer_free(f->hashed);
    cmoe_experts_free(f->experts);
    cmoe_experts_free(f->shared);
    cmoe_matrix_free(f->matrix);
    cmoe_matrix_free(f->one);
    cmoe_stream_free(f->stream);
    cmoe_ctx_free(f->ctx);
    free(f->groups_memory);
}
