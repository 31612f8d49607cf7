/* SPDX-License-Identifier: MIT
 *
 * calls_bytes.c - how much scratch; see mutate.h.
 */
#include "layout.h"

DEFAULTS(cmoe_route_options)
DEFAULTS(cmoe_align_options)

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

const call bytes_calls[] = {
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
const int n_bytes_calls = (int)(sizeof bytes_calls / sizeof bytes_calls[0]);
