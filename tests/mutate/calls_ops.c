/* SPDX-License-Identifier: MIT
 *
 * calls_ops.c - the small operations; see mutate.h.
 */
#include "layout.h"

DEFAULTS(cmoe_rms_norm_options)
DEFAULTS(cmoe_rope_options)
DEFAULTS(cmoe_rope_rotate_options)
DEFAULTS(cmoe_gdn_pack_options)

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

static void set_norm_heads(args *a, memory *m)
{
    tensor(a, m, false, CMOE_F32, 0, 3, T, 2, H);
    tensor(a, m, false, CMOE_F32, 0, 3, T, 2, H);
    in1(a, m, CMOE_F32, 0, H);
    tensor(a, m, true, CMOE_F32, 0, 3, T, 2, H);
    tensor(a, m, true, CMOE_F32, 0, 3, T, 2, H);
    OPTIONS(a, cmoe_rms_norm_options);
}

static void set_layer_norm(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, T, H);
    in1(a, m, CMOE_F32, 0, H);
    in1(a, m, CMOE_F32, 0, H);
    out2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    number(a, &a->scale, 4);
}
static cmoe_status run_layer_norm(args *a, cmoe_error *err)
{
    return cmoe_layer_norm(a->stream, a->scale, IN(0), IN(1), IN(2), IN(3), OUT(4), OUT(5), err);
}

static void set_frequencies(args *a, memory *m)
{
    in1(a, m, CMOE_F32, 0, I); /* which no function takes: the factors */
    for (int i = 0; i < I; i++)
        memcpy(m->buffer[0] + MIDDLE + 4 * i, &(const float){1}, 4);
    cmoe_rope_options *o = OPTIONS(a, cmoe_rope_options);
    o->kind = CMOE_ROPE_LONGROPE;
    o->dim = 2 * I;
    o->original = o->length = 64;
    o->short_factor = o->long_factor = a->view[0].in.data;
    close_words(&a->block[0], offsetof(cmoe_rope_options, dim), sizeof o->dim);
    place_pointer(a, offsetof(cmoe_rope_options, short_factor));
    place_pointer(a, offsetof(cmoe_rope_options, long_factor));
    pointer(a, &a->result[0]);
    pointer(a, &a->result[1]);
}
static cmoe_status run_frequencies(args *a, cmoe_error *err)
{
    return cmoe_rope_frequencies(a->options[0], a->result[0], a->result[1], err);
}

static void set_rope_table(args *a, memory *m)
{
    in1(a, m, CMOE_I32, 0, T);
    in1(a, m, CMOE_F32, 0, I);
    out2(a, m, CMOE_F32, 0, T, I);
    out2(a, m, CMOE_F32, 0, T, I);
    number(a, &a->scale, 4);
}
static cmoe_status run_rope_table(args *a, cmoe_error *err)
{
    return cmoe_rope_table(a->stream, IN(0), IN(1), a->scale, OUT(2), OUT(3), err);
}

static void set_rotate(args *a, memory *m)
{
    tensor(a, m, false, CMOE_F32, 0, 3, T, 2, H);
    in2(a, m, CMOE_F32, 0, T, 2);
    in2(a, m, CMOE_F32, 0, T, 2);
    tensor(a, m, true, CMOE_BF16, 0, 3, T, 2, H);
    cmoe_rope_rotate_options *o = OPTIONS(a, cmoe_rope_rotate_options);
    o->offset = 2;
}
static cmoe_status run_rotate(args *a, cmoe_error *err)
{
    return cmoe_rope_rotate(a->stream, a->options[0], IN(0), IN(1), IN(2), OUT(3), err);
}

static void set_embedding(args *a, memory *m)
{
    in1(a, m, CMOE_I32, 0, T);
    in2(a, m, CMOE_F32, 1, E, H);
    out2(a, m, CMOE_F32, 0, T, H);
    number(a, &a->scale, 4);
}
static cmoe_status run_embedding(args *a, cmoe_error *err)
{
    return cmoe_embedding(a->stream, IN(0), IN(1), a->scale, OUT(2), err);
}

static void set_scaled_add(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    number(a, &a->scale, 4);
}
static cmoe_status run_scaled_add(args *a, cmoe_error *err)
{
    return cmoe_scaled_add(a->stream, IN(0), IN(1), a->scale, OUT(2), err);
}

static void set_clip(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, T, H);
    out2(a, m, CMOE_F32, 0, T, H);
    number(a, &a->scale, 4);
}
static cmoe_status run_clip(args *a, cmoe_error *err)
{
    return cmoe_clip(a->stream, IN(0), a->scale, OUT(1), err);
}

static void gdn_out_init(void *o, size_t size)
{
    *(cmoe_gdn_pack_out *)o = (cmoe_gdn_pack_out){.size = size};
}

/* E rows, because indices count 0 .. E - 1 and must differ; C = 2 * 2 * 2 + 4 * 1. */
static void set_gdn(args *a, memory *m)
{
    in2(a, m, CMOE_F32, 0, E, 16);
    in2(a, m, CMOE_F32, 0, E, 8);
    in2(a, m, CMOE_F32, 0, 12, 3);
    in1(a, m, CMOE_F32, 0, 12);
    in1(a, m, CMOE_I32, 0, E);
    tensor(a, m, true, CMOE_F32, 5, 3, E + 1, 12, 3);
    cmoe_gdn_pack_options *o = OPTIONS(a, cmoe_gdn_pack_options);
    o->key_heads = o->key_dim = 2;
    o->value_heads = 4;
    o->value_dim = 1;
    options(a, sizeof(cmoe_gdn_pack_out), gdn_out_init);
    place(a, tensor(a, m, true, CMOE_F32, 0, 3, E, 2, 2), offsetof(cmoe_gdn_pack_out, q));
    place(a, tensor(a, m, true, CMOE_F32, 0, 3, E, 2, 2), offsetof(cmoe_gdn_pack_out, k));
    place(a, tensor(a, m, true, CMOE_F32, 0, 3, E, 4, 1), offsetof(cmoe_gdn_pack_out, v));
    place(a, tensor(a, m, true, CMOE_F32, 0, 3, E, 4, 1), offsetof(cmoe_gdn_pack_out, z));
    place(a, out2(a, m, CMOE_F32, 0, E, 4), offsetof(cmoe_gdn_pack_out, b));
    place(a, out2(a, m, CMOE_F32, 0, E, 4), offsetof(cmoe_gdn_pack_out, a));
}
static cmoe_status run_gdn(args *a, cmoe_error *err)
{
    return cmoe_gdn_pack(a->stream, a->options[0], IN(0), IN(1), IN(2), IN(3), OUT(5), IN(4),
                         a->options[1], err);
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

const call ops_calls[] = {
    {"rms_norm", set_norm, run_norm, NULL, false},
    {"sigmoid_mul", set_sigmoid, run_sigmoid, NULL, false},
    {"add_shared_expert", set_add_shared, run_add_shared, NULL, false},
    {"silu_mul", set_silu, run_silu, NULL, false},
    {"quantize_rows", set_quantize, run_quantize, NULL, false},
    {"silu_mul_quantize_masked", set_masked, run_masked, NULL, false},
    {"rms_norm, heads", set_norm_heads, run_norm, NULL, false},
    {"layer_norm", set_layer_norm, run_layer_norm, NULL, false},
    {"rope_frequencies", set_frequencies, run_frequencies, NULL, false},
    {"rope_table", set_rope_table, run_rope_table, NULL, false},
    {"rope_rotate", set_rotate, run_rotate, NULL, false},
    {"embedding", set_embedding, run_embedding, NULL, false},
    {"scaled_add", set_scaled_add, run_scaled_add, NULL, false},
    {"clip", set_clip, run_clip, NULL, false},
    {"gdn_pack", set_gdn, run_gdn, NULL, false},
    {"convert", set_convert, run_convert, NULL, false},
    {"convert, packed", set_convert_packed, run_convert, NULL, false},
};
const int n_ops_calls = (int)(sizeof ops_calls / sizeof ops_calls[0]);
