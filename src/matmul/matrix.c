/* SPDX-License-Identifier: MIT
 *
 * matrix.c - cmoe_matrix: checks, the choice of a kernel, and memory.
 *
 * A matrix is made in one call from a view, or, by the loader of whole models, allocated first and
 * filled panel by panel from wherever its rows lie.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "matmul.h"
#include "quant/quantize.h"

static const cmoe_matrix_options defaults = {.size = sizeof defaults};

void cmoe_matrix_options_default(cmoe_matrix_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static int32_t format_of(int32_t asked, int32_t stored)
{
    if (asked) return asked;
    return stored == CMOE_F32 || stored == CMOE_F64 ? CMOE_F32
           : stored == CMOE_I8                      ? CMOE_I8
                                                    : CMOE_BF16;
}

static cmoe_status check(const cmoe_matrix_options *o, const cmoe_view *w, const char *w_name,
                         const cmoe_view *bias, const char *bias_name, cmoe_error *err)
{
    const uint32_t stored = CMOEI_FLOATS | CMOEI_DTYPE(CMOE_F8E4M3) | CMOEI_DTYPE(CMOE_I8);
    cmoei_want want = {w_name, stored, 3, {-1, -1, -1}, {"experts", "outputs", "inputs"}};
    if (o->transposed) {
        want.dim_names[1] = "inputs";
        want.dim_names[2] = "outputs";
    }
    CMOEI_TRY(cmoei_check_in(w, &want, err));
    const int64_t outputs = w->dims[o->transposed ? 2 : 1];
    const int32_t format = format_of(o->format, w->dtype);
    if (format != CMOE_F32 && format != CMOE_BF16 && format != CMOE_I8)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "format %s (%d) not supported, want one of: f32 bf16 i8",
                          cmoe_dtype_name(format), format);
    if (w->dtype == CMOE_I8 && format != CMOE_I8)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "%s: i8 weights cannot become %s, want format i8",
                          cmoei_name(w->name, w_name), cmoe_dtype_name(format));
    if (w->dtype == CMOE_I8) {
        const cmoei_want scale = {
            "scale", CMOEI_DTYPE(CMOE_F32), 2, {w->dims[0], outputs}, {"experts", "outputs"}};
        CMOEI_TRY(cmoei_check_in(&o->scale, &scale, err));
    } else if (cmoei_given(&o->scale)) {
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "%s is given but %s is %s, want i8 weights or no scale",
                          cmoei_name(o->scale.name, "scale"), cmoei_name(w->name, w_name),
                          cmoe_dtype_name(w->dtype));
    }
    if (cmoei_given(bias)) {
        const cmoei_want b = {
            bias_name, CMOEI_FLOATS, 2, {w->dims[0], outputs}, {"experts", "outputs"}};
        CMOEI_TRY(cmoei_check_in(bias, &b, err));
    }
    return CMOE_OK;
}

/* ---- filling ---------------------------------------------------------------------------------- */

typedef struct pack_job {
    cmoe_matrix *m;
    float *rows; /* [tasks, elements] */
    int64_t elements;
} pack_job;

static void pack_all(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const pack_job *job = arg;
    cmoe_matrix *m = job->m;
    (void)count;
    const cmoei_rows rows = cmoei_matrix_source(m);
    const int64_t all = m->count * m->panels;
    for (int64_t i; (i = cmoei_next(team, 1)) < all;)
        cmoei_matrix_pack(m, &rows, i, job->rows + index * job->elements);
}

static void pack_bias(cmoe_matrix *m, const cmoe_view *bias)
{
    for (int64_t i = 0; i < m->count * m->panels * m->kernel->panel; i++) {
        const int64_t n =
            cmoei_matrix_row(m, i / m->kernel->panel % m->panels, i % m->kernel->panel);
        m->bias[i] = 0;
        if (n >= 0)
            cmoei_load_f32(&m->bias[i], cmoei_at(bias, i / m->kernel->panel / m->panels, n),
                           bias->dtype, 1, 1);
    }
}

/* ---- create ---------------------------------------------------------------------------------- */

static int64_t element_bytes(int32_t format)
{
    return format == CMOE_F32 ? 4 : format == CMOE_BF16 ? 2 : 1;
}

/* Sizes of everything that is kept; false when they leave int64. */
static bool layout(cmoe_matrix *m)
{
    const cmoei_matmul_kernel *k = m->kernel;
    const int64_t elements = m->gate.gated ? m->outputs / 2 : m->outputs;
    m->width = m->gate.gated ? k->panel / 2 : k->panel;
    m->panels = cmoei_ceil_div(elements, m->width);
    m->steps = cmoei_ceil_div(m->inputs, k->step);
    int64_t bytes, panels;
    if (!cmoei_mul(m->steps, k->panel * k->step * element_bytes(k->v.dtype), &bytes) ||
        !cmoei_add(bytes, k->x_form == CMOEI_X_U8 ? k->panel * 4 + 64 : 64, &bytes) ||
        !cmoei_mul(m->count, m->panels, &panels))
        return false;
    m->panel_bytes = (bytes - 1) / 64 * 64;
    return cmoei_mul(panels, m->panel_bytes, &m->packed_bytes) &&
           cmoei_mul(panels, k->panel * (int64_t)sizeof *m->scale, &m->scale_bytes);
}

/* Everything about a matrix but its memory and its source. */
static cmoe_status describe(cmoe_matrix *m, cmoe_ctx *ctx, const cmoe_matrix_options *o,
                            cmoei_gate gate, int32_t format, const int64_t dims[3],
                            const char *name, cmoe_error *err)
{
    *m = (cmoe_matrix){
        .ctx = ctx, .o = *o, .gate = gate, .count = dims[0], .outputs = dims[1], .inputs = dims[2]};
    if (format == CMOE_I8 && m->inputs > CMOEI_INT8_DIM)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "%s: %" PRId64
                          " inputs in int8, want at most %d (the sum must fit in int32)",
                          name, m->inputs, CMOEI_INT8_DIM);
    m->kernel = cmoei_table_pick(&cmoei_matmul_table, ctx->features, format);
    m->quantize = cmoei_quantize_pick(ctx->features);
    if (!layout(m))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: packed it would exceed 2^63 - 1 bytes", name);
    return CMOE_OK;
}

/* The same for weights in a view. */
static cmoe_status describe_view(cmoe_matrix *m, cmoe_ctx *ctx, const cmoe_matrix_options *o,
                                 cmoei_gate gate, cmoe_view w, const char *w_name, cmoe_error *err)
{
    const int32_t n = o->transposed ? 2 : 1, k = o->transposed ? 1 : 2; /* only the strides turn */
    const int64_t dims[] = {w.dims[0], w.dims[n], w.dims[k]};
    const int64_t strides[] = {w.strides[0], w.strides[n], w.strides[k]};
    CMOEI_TRY(describe(m, ctx, o, gate, format_of(o->format, w.dtype), dims,
                       cmoei_name(w.name, w_name), err));
    m->source = w;
    memcpy(m->source.dims, dims, sizeof dims);
    memcpy(m->source.strides, strides, sizeof strides);
    return CMOE_OK;
}

cmoe_status cmoei_matrix_borrow(cmoe_matrix *m, cmoe_ctx *ctx, int32_t format, cmoe_view w,
                                cmoe_error *err)
{
    const cmoe_matrix_options o = {.size = sizeof o, .format = format, .borrow = 1};
    return describe_view(m, ctx, &o, (cmoei_gate){0}, w, "w", err);
}

static cmoe_status allocate(cmoe_matrix *m, bool bias, cmoe_error *err)
{
    if (bias) {
        m->bias_bytes = m->scale_bytes;
        CMOEI_TRY(cmoei_alloc(m->ctx, m->bias_bytes, "packed bias", (void **)&m->bias, err));
    }
    if (m->o.borrow) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(m->ctx, m->packed_bytes, "packed weights", (void **)&m->packed, err));
    if (m->kernel->v.dtype == CMOE_I8)
        CMOEI_TRY(cmoei_alloc(m->ctx, m->scale_bytes, "weight scales", (void **)&m->scale, err));
    return CMOE_OK;
}

static cmoe_status fill(cmoe_matrix *m, const cmoe_view *bias, cmoe_error *err)
{
    cmoe_ctx *ctx = m->ctx;
    CMOEI_TRY(allocate(m, cmoei_given(bias), err));
    if (m->bias) pack_bias(m, bias);
    if (m->o.borrow) return CMOE_OK;
    pack_job job = {.m = m};
    int64_t bytes;
    if (!cmoei_pack_elements(m->inputs, &job.elements) ||
        !cmoei_mul(job.elements, ctx->threads * (int64_t)sizeof *job.rows, &bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "weights: rows of %" PRId64 " inputs are too long",
                          m->inputs);
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "packing rows", (void **)&job.rows, err));
    cmoei_region(ctx, m->count * m->panels, pack_all, &job);
    cmoei_free(ctx, job.rows, bytes);
    memset(&m->source, 0, sizeof m->source); /* the caller's memory is not ours any more */
    memset(&m->o.scale, 0, sizeof m->o.scale);
    return CMOE_OK;
}

cmoe_status cmoei_matrix_init(cmoe_matrix *m, cmoe_ctx *ctx, int32_t format, const int64_t dims[3],
                              bool bias, bool borrow, const char *name, cmoe_error *err)
{
    const cmoe_matrix_options o = {.size = sizeof o, .format = format, .borrow = borrow};
    cmoe_matrix built;
    CMOEI_TRY(describe(&built, ctx, &o, (cmoei_gate){0}, format, dims, name, err));
    const cmoe_status status = allocate(&built, bias, err);
    if (status == CMOE_OK)
        *m = built;
    else
        cmoei_matrix_clear(&built);
    return status;
}

cmoe_status cmoei_matrix_alloc(cmoe_matrix **out, cmoe_ctx *ctx, int32_t format, bool gated,
                               const int64_t dims[3], bool bias, const char *name, cmoe_error *err)
{
    const cmoe_matrix_options o = {.size = sizeof o, .format = format};
    cmoe_matrix built, *m = NULL;
    CMOEI_TRY(describe(&built, ctx, &o, (cmoei_gate){.gated = gated}, format, dims, name, err));
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *m, "matrix", (void **)&m, err));
    *m = built;
    const cmoe_status status = allocate(m, bias, err);
    if (status != CMOE_OK) {
        cmoe_matrix_free(m);
        return status;
    }
    *out = m;
    return CMOE_OK;
}

cmoei_matrix_memory cmoei_matrix_memory_of(const cmoe_matrix *m)
{
    return (cmoei_matrix_memory){{m->packed, m->scale, m->bias},
                                 {m->packed ? m->packed_bytes : 0, m->scale ? m->scale_bytes : 0,
                                  m->bias ? m->bias_bytes : 0}};
}

cmoe_status cmoei_matrix_adopt(cmoe_matrix **out, cmoe_ctx *ctx, int32_t format, bool gated,
                               const int64_t dims[3], bool bias, cmoei_matrix_memory *memory,
                               cmoe_error *err)
{
    const cmoe_matrix_options o = {.size = sizeof o, .format = format};
    cmoe_matrix built, *m = NULL;
    CMOEI_TRY(describe(&built, ctx, &o, (cmoei_gate){.gated = gated}, format, dims, "matrix", err));
    built.bias_bytes = bias ? built.scale_bytes : 0;
    memory->bytes[0] = built.packed_bytes;
    memory->bytes[1] = built.kernel->v.dtype == CMOE_I8 ? built.scale_bytes : 0;
    memory->bytes[2] = built.bias_bytes;
    if (!memory->data[0]) return CMOE_OK;
    built.adopted = true;
    built.packed = (char *)(uintptr_t)memory->data[0]; /* never written: the matrix is filled */
    built.scale = memory->bytes[1] ? (float *)(uintptr_t)memory->data[1] : NULL;
    built.bias = bias ? (float *)(uintptr_t)memory->data[2] : NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *m, "matrix", (void **)&m, err));
    *m = built;
    *out = m;
    return CMOE_OK;
}

void cmoei_matrix_layout(cmoe_ctx *ctx, int32_t format, char *text, size_t size)
{
    const cmoei_matmul_kernel *k = cmoei_table_pick(&cmoei_matmul_table, ctx->features, format);
    snprintf(text, size, "%s %dx%d %d", k->v.name, k->panel, k->step, k->x_form);
}

cmoe_status cmoei_matrix_size(cmoe_ctx *ctx, int32_t format, bool gated, const int64_t dims[3],
                              const char *name, int64_t *bytes, cmoe_error *err)
{
    const cmoe_matrix_options o = {.size = sizeof o, .format = format};
    cmoe_matrix m;
    CMOEI_TRY(describe(&m, ctx, &o, (cmoei_gate){.gated = gated}, format, dims, name, err));
    *bytes = cmoe_matrix_weight_bytes(&m);
    return CMOE_OK;
}

cmoe_status cmoei_matrix_create(cmoe_matrix **out, cmoe_ctx *ctx,
                                const cmoe_matrix_options *options, cmoei_gate gate, cmoe_view w,
                                const char *w_name, cmoe_view bias, const char *bias_name,
                                cmoe_error *err)
{
    cmoe_matrix_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_matrix_options", err));
    if (!out || !ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s: %s is NULL", w_name, out ? "ctx" : "out");
    CMOEI_TRY(cmoei_check_flag(o.transposed, "transposed", err));
    CMOEI_TRY(cmoei_check_flag(o.borrow, "borrow", err));
    CMOEI_TRY(check(&o, &w, w_name, &bias, bias_name, err));
    cmoe_matrix built;
    CMOEI_TRY(describe_view(&built, ctx, &o, gate, w, w_name, err));
    cmoe_matrix *m = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *m, "matrix", (void **)&m, err));
    *m = built;
    const uint64_t before = cmoei_float_enter(); /* f64 biases and weights are rounded */
    const cmoe_status status = fill(m, &bias, err);
    cmoei_float_leave(before);
    if (status != CMOE_OK) {
        cmoe_matrix_free(m);
        return status;
    }
    *out = m;
    return CMOE_OK;
}

cmoe_status cmoe_matrix_create(cmoe_matrix **out, cmoe_ctx *ctx, const cmoe_matrix_options *o,
                               cmoe_view w, cmoe_view bias, cmoe_error *err)
{
    return cmoei_matrix_create(out, ctx, o, (cmoei_gate){0}, w, "w", bias, "bias", err);
}

void cmoei_matrix_clear(cmoe_matrix *m)
{
    if (m->adopted) return;
    cmoei_free(m->ctx, m->packed, m->packed_bytes);
    cmoei_free(m->ctx, m->scale, m->scale_bytes);
    cmoei_free(m->ctx, m->bias, m->bias_bytes);
}

void cmoe_matrix_free(cmoe_matrix *m)
{
    if (!m) return;
    cmoei_matrix_clear(m);
    cmoei_free(m->ctx, m, (int64_t)sizeof *m);
}

int64_t cmoe_matrix_weight_bytes(const cmoe_matrix *m)
{
    return m ? m->packed_bytes + (m->kernel->v.dtype == CMOE_I8 ? m->scale_bytes : 0) : 0;
}

const char *cmoe_matrix_variant(const cmoe_matrix *m)
{
    return m ? m->kernel->v.name : NULL;
}

/* ---- panels ---------------------------------------------------------------------------------- */

cmoei_panel_scratch cmoei_panel_scratch_carve(cmoei_carver *c, const cmoe_matrix *m)
{
    cmoei_panel_scratch s = {0};
    if (m->o.borrow) {
        s.weights = cmoei_carve(c, m->panel_bytes);
        s.scale = cmoei_carve_array(c, m->kernel->panel, sizeof *s.scale);
        int64_t n = 0;
        if (!cmoei_pack_elements(m->inputs, &n)) n = INT64_MAX;
        s.rows = cmoei_carve_array(c, n, sizeof *s.rows);
    }
    return s;
}

cmoei_panel cmoei_matrix_panel(const cmoe_matrix *m, int64_t e, int64_t p,
                               const cmoei_panel_scratch *scratch)
{
    const int64_t i = e * m->panels + p, columns = i * m->kernel->panel;
    cmoei_panel panel = {.bias = m->bias ? m->bias + columns : NULL};
    if (m->o.borrow) {
        const cmoei_rows rows = cmoei_matrix_source(m);
        cmoei_panel_pack(m, &rows, e, p, scratch->weights,
                         m->kernel->v.dtype == CMOE_I8 ? scratch->scale : NULL, scratch->rows);
        panel.weights = scratch->weights;
        panel.scale = m->kernel->v.dtype == CMOE_I8 ? scratch->scale : NULL;
    } else {
        panel.weights = m->packed + i * m->panel_bytes;
        panel.scale = m->scale ? m->scale + columns : NULL;
    }
    return panel;
}
