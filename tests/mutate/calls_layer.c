/* SPDX-License-Identifier: MIT
 *
 * calls_layer.c - routing, alignment, products, experts, the layer; see mutate.h.
 */
#include "layout.h"

DEFAULTS(cmoe_route_options)
DEFAULTS(cmoe_route_inputs)
DEFAULTS(cmoe_align_options)
DEFAULTS(cmoe_combine_options)
DEFAULTS(cmoe_experts_options)
DEFAULTS(cmoe_matrix_options)
DEFAULTS(cmoe_grouped_matmul_options)
DEFAULTS(cmoe_layer_options)
DEFAULTS(cmoe_layer_weights)
DEFAULTS(cmoe_layer_call)

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

const call layer_calls[] = {
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
};
const int n_layer_calls = (int)(sizeof layer_calls / sizeof layer_calls[0]);
