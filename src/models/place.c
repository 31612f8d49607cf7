/* SPDX-License-Identifier: MIT
 *
 * place.c - one tensor of a file -> the sources that it is made of.
 *
 * A source is a pointer with strides, so nothing is copied here: a fused tensor becomes two sources
 * for each expert, whatever order its rows and columns lie in.  Before a source is made, shape and
 * format of the tensor have been compared with what the decoder wants; nothing later looks at what
 * the file says again.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "resolve.h"
#include "text.h"

enum { FP4_BLOCK = 32, SHAPE_TEXT = 160 };

/* ---- what a tensor must look like -------------------------------------------------------------- */

static const char *show_shape(char text[SHAPE_TEXT], const int64_t *dims, int32_t rank)
{
    size_t used = 0;
    text[used++] = '[';
    for (int32_t i = 0; i < rank; i++)
        used +=
            (size_t)snprintf(text + used, SHAPE_TEXT - used, "%s%" PRId64, i ? ", " : "", dims[i]);
    snprintf(text + used, SHAPE_TEXT - used, "]");
    return text;
}

static cmoe_status check_shape(cmoei_resolver *r, const cmoe_tensor *x, const int64_t *dims,
                               int32_t rank)
{
    bool same = x->rank == rank;
    for (int32_t i = 0; same && i < rank; i++)
        same = x->dims[i] == dims[i];
    if (same) return CMOE_OK;
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %s has shape %s, want %s", x->file, x->name,
                      show_shape(have, x->dims, x->rank), show_shape(want, dims, rank));
}

/* Vectors may also be written as one row. */
static cmoe_status check_plain(cmoei_resolver *r, const cmoe_tensor *x, const int64_t dims[2])
{
    if (dims[0] == 1 && x->rank == 1) return check_shape(r, x, dims + 1, 1);
    if (dims[0] == 1 && x->rank != 2) return check_shape(r, x, dims + 1, 1);
    return check_shape(r, x, dims, 2);
}

static cmoe_status check_dtype(cmoei_resolver *r, const cmoe_tensor *x, bool f8)
{
    if (x->dtype == CMOE_F32 || x->dtype == CMOE_F16 || x->dtype == CMOE_BF16) return CMOE_OK;
    if (x->dtype == CMOE_F8E4M3 && f8) return CMOE_OK;
    char stored[32];
    cmoei_text_clean(stored, sizeof stored, x->stored ? x->stored : cmoe_dtype_name(x->dtype));
    return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %s has the format %s, want F32, F16 or BF16%s",
                      x->file, x->name, stored, f8 ? ", or F8_E4M3 with scales" : "");
}

/* ---- scales ------------------------------------------------------------------------------------ */

static cmoe_status find_partner(cmoei_resolver *r, const cmoe_tensor *x, const char *name,
                                cmoe_tensor *out)
{
    *out = (cmoe_tensor){.size = sizeof *out};
    const int64_t i = cmoe_checkpoint_find(r->files, name);
    if (i >= 0) return cmoe_checkpoint_tensor(r->files, i, out, r->err);
    return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %s is there without %s", x->file, x->name,
                      name);
}

/* Gives a source its f8 scales, one for a block of rows and columns; `lead` 1: a dimension of experts
 * comes first. */
static cmoe_status add_f8_scales(cmoei_resolver *r, const cmoe_tensor *x, cmoei_source *s,
                                 int32_t lead)
{
    if (s->dtype != CMOE_F8E4M3) return CMOE_OK;
    char name[CMOEI_NAME + 16];
    cmoe_tensor scale;
    const int64_t *block = r->d->f8_block;
    const int64_t dims[3] = {x->dims[0], cmoei_ceil_div(s->rows, block[0]),
                             cmoei_ceil_div(s->cols, block[1])};
    snprintf(name, sizeof name, "%s_scale_inv", x->name);
    CMOEI_TRY(find_partner(r, x, name, &scale));
    CMOEI_TRY(check_shape(r, &scale, dims + 1 - lead, 2 + lead));
    CMOEI_TRY(check_dtype(r, &scale, false));
    s->scale = scale.data;
    s->scale_dtype = scale.dtype;
    s->scale_row = dims[2];
    s->scale_col = 1;
    s->block_rows = block[0];
    s->block_cols = block[1];
    return CMOE_OK;
}

/* Packed fp4: [E, rows, cols / 32, 16] bytes, and [E, rows, cols / 32] powers of two. */
static cmoe_status read_blocks(cmoei_resolver *r, const cmoe_tensor *x, int64_t experts,
                               cmoei_source *s)
{
    char name[CMOEI_NAME];
    cmoe_tensor scale;
    const int64_t dims[4] = {experts, s->rows, s->cols / FP4_BLOCK, FP4_BLOCK / 2};
    if (s->cols % FP4_BLOCK)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "%s: %s packs rows of %" PRId64 ", want a multiple of %d", x->file,
                          x->name, s->cols, FP4_BLOCK);
    CMOEI_TRY(check_shape(r, x, dims, 4));
    if (x->dtype != CMOE_U8)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %s has the format %s, want U8", x->file,
                          x->name, cmoe_dtype_name(x->dtype));
    const size_t stem = strlen(x->name) - strlen("_blocks");
    snprintf(name, sizeof name, "%.*s_scales", (int)stem, x->name);
    CMOEI_TRY(find_partner(r, x, name, &scale));
    CMOEI_TRY(check_shape(r, &scale, dims, 3));
    if (scale.dtype != CMOE_U8 && scale.dtype != CMOE_F8E8M0)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "%s: %s has the format %s, want U8 or F8_E8M0",
                          scale.file, scale.name, cmoe_dtype_name(scale.dtype));
    s->dtype = CMOE_E2M1X2;
    s->row = s->cols / 2;
    s->col = 1;
    s->scale = scale.data;
    s->scale_dtype = CMOE_F8E8M0;
    s->scale_row = dims[2];
    s->scale_col = 1;
    s->block_rows = 1;
    s->block_cols = FP4_BLOCK;
    return CMOE_OK;
}

/* ---- putting --------------------------------------------------------------------------------- */

static cmoe_status put(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m,
                       cmoei_role role, int64_t expert, const cmoei_source *s)
{
    cmoei_source *place = cmoei_place_of(r->t, m->layer, role, expert);
    if (place->data)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                          "%s: %s: another tensor already holds a part of this one", x->file,
                          x->name);
    *place = *s;
    return CMOE_OK;
}

static cmoe_status put_rows(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m,
                            cmoei_role role, int64_t expert, const cmoei_source *s, int64_t first,
                            int64_t step, int64_t count)
{
    const cmoei_source part = cmoei_source_rows(s, first, step, count);
    return put(r, x, m, role, expert, &part);
}

/* ---- one tensor for one place, and for several ----------------------------------------------- */

static cmoe_status place_one(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m)
{
    int64_t dims[2] = {0, 0};
    (void)cmoei_role_shape(r->d, m->layer, m->role, dims);
    CMOEI_TRY(check_plain(r, x, dims));
    /* Of the embedding single rows are looked up as they are stored, without scales. */
    CMOEI_TRY(check_dtype(r, x, dims[0] > 1 && m->role != CMOEI_EMBEDDING));
    cmoei_source s = {.data = x->data,
                      .rows = dims[0],
                      .cols = dims[1],
                      .row = dims[1],
                      .col = 1,
                      .dtype = x->dtype};
    CMOEI_TRY(add_f8_scales(r, x, &s, 0));
    return put(r, x, m, m->role, m->expert, &s);
}

static cmoe_status place_qkv(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m)
{
    const int64_t q = r->d->heads * r->d->head_dim, kv = r->d->kv_heads * r->d->head_dim;
    const int64_t dims[2] = {q + 2 * kv, r->d->hidden};
    CMOEI_TRY(check_shape(r, x, dims, 2));
    CMOEI_TRY(check_dtype(r, x, true));
    cmoei_source s = {.data = x->data,
                      .rows = dims[0],
                      .cols = dims[1],
                      .row = dims[1],
                      .col = 1,
                      .dtype = x->dtype};
    CMOEI_TRY(add_f8_scales(r, x, &s, 0));
    CMOEI_TRY(put_rows(r, x, m, CMOEI_Q, -1, &s, 0, 1, q));
    CMOEI_TRY(put_rows(r, x, m, CMOEI_K, -1, &s, q, 1, kv));
    return put_rows(r, x, m, CMOEI_V, -1, &s, q + kv, 1, kv);
}

/* The matrix [rows, cols] of expert 0 in a fused tensor; `stride` and `scale_stride` bytes behind it
 * is that of expert 1. */
static cmoe_status read_fused(cmoei_resolver *r, const cmoe_tensor *x, uint32_t how,
                              int64_t experts, cmoei_source *s, int64_t *stride,
                              int64_t *scale_stride)
{
    const bool turned = how & CMOEI_TRANSPOSED;
    if (how & CMOEI_BLOCKS) {
        CMOEI_TRY(read_blocks(r, x, experts, s));
        *stride = s->rows * s->row;
        *scale_stride = s->rows * s->scale_row;
        return CMOE_OK;
    }
    const int64_t dims[3] = {experts, turned ? s->cols : s->rows, turned ? s->rows : s->cols};
    CMOEI_TRY(check_shape(r, x, dims, 3));
    CMOEI_TRY(check_dtype(r, x, !turned));
    s->dtype = x->dtype;
    s->row = turned ? 1 : s->cols;
    s->col = turned ? s->rows : 1;
    CMOEI_TRY(add_f8_scales(r, x, s, 1));
    *stride = s->rows * s->cols * cmoe_dtype_bytes(x->dtype);
    *scale_stride = 0;
    if (s->scale)
        *scale_stride = cmoei_ceil_div(s->rows, s->block_rows) * s->scale_row *
                        cmoe_dtype_bytes(s->scale_dtype);
    return CMOE_OK;
}

static cmoe_status place_fused(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m)
{
    const cmoei_layer_shape *l = &r->d->layer[m->layer];
    const int64_t I = l->inter, H = r->d->hidden;
    const bool down = m->role == CMOEI_FUSED_DOWN, mixed = m->how & CMOEI_INTERLEAVED;
    int64_t stride, scale_stride;
    cmoei_source s = {.data = x->data, .rows = down ? H : 2 * I, .cols = down ? I : H};
    CMOEI_TRY(read_fused(r, x, m->how, l->experts, &s, &stride, &scale_stride));
    for (int64_t e = 0; e < l->experts; e++) {
        if (down) {
            CMOEI_TRY(put(r, x, m, CMOEI_EXPERT_DOWN, e, &s));
        } else {
            const int64_t step = mixed ? 2 : 1, up = mixed ? 1 : I;
            CMOEI_TRY(put_rows(r, x, m, CMOEI_EXPERT_GATE, e, &s, 0, step, I));
            CMOEI_TRY(put_rows(r, x, m, CMOEI_EXPERT_UP, e, &s, up, step, I));
        }
        s.data += stride;
        if (s.scale) s.scale += scale_stride;
    }
    return CMOE_OK;
}

/* Biases [E, n]: vectors with a stride. */
static cmoe_status place_fused_bias(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m)
{
    const cmoei_layer_shape *l = &r->d->layer[m->layer];
    const bool down = m->role == CMOEI_FUSED_DOWN_BIAS, mixed = m->how & CMOEI_INTERLEAVED;
    const int64_t n = down ? r->d->hidden : l->inter, dims[2] = {l->experts, down ? n : 2 * n};
    CMOEI_TRY(check_shape(r, x, dims, 2));
    CMOEI_TRY(check_dtype(r, x, false));
    const int64_t element = cmoe_dtype_bytes(x->dtype);
    for (int64_t e = 0; e < l->experts; e++) {
        const char *data = (const char *)x->data + e * dims[1] * element;
        cmoei_source s = {
            .data = data, .rows = 1, .cols = n, .row = dims[1], .col = 1, .dtype = x->dtype};
        if (down) {
            CMOEI_TRY(put(r, x, m, CMOEI_EXPERT_DOWN_BIAS, e, &s));
            continue;
        }
        if (mixed) s.col = 2;
        CMOEI_TRY(put(r, x, m, CMOEI_EXPERT_GATE_BIAS, e, &s));
        s.data += (mixed ? 1 : n) * element;
        CMOEI_TRY(put(r, x, m, CMOEI_EXPERT_UP_BIAS, e, &s));
    }
    return CMOE_OK;
}

/* Scales are read with the tensor they belong to; here only whether there is one. */
static cmoe_status check_packed_scales(cmoei_resolver *r, const cmoe_tensor *x)
{
    char name[CMOEI_NAME];
    cmoe_tensor blocks;
    const size_t stem = strlen(x->name) - strlen("_scales");
    snprintf(name, sizeof name, "%.*s_blocks", (int)stem, x->name);
    return find_partner(r, x, name, &blocks);
}

cmoe_status cmoei_place(cmoei_resolver *r, const cmoe_tensor *x, const cmoei_match *m)
{
    if (m->how & CMOEI_SCALES) return check_packed_scales(r, x);
    switch ((int)m->role) {
    case CMOEI_FUSED_GATE_UP:
    case CMOEI_FUSED_DOWN:
        return place_fused(r, x, m);
    case CMOEI_FUSED_GATE_UP_BIAS:
    case CMOEI_FUSED_DOWN_BIAS:
        return place_fused_bias(r, x, m);
    case CMOEI_FUSED_QKV:
        return place_qkv(r, x, m);
    default:
        return place_one(r, x, m);
    }
}
