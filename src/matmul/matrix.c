/* SPDX-License-Identifier: MIT
 *
 * matrix.c - cmoe_matrix: checks, the choice of a kernel, and packing.
 *
 * Packing goes panel by panel: each output column is one row of the source, loaded as float32,
 * brought into the format and spread with the panel's stride.  The same routine packs at create
 * and, for borrowed weights, on the way into scratch, so both give the same bytes.
 */
#include <inttypes.h>
#include <math.h>
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
    const int64_t outputs = w->dims[o->transposed ? 2 : 1], inputs = w->dims[o->transposed ? 1 : 2];
    const int32_t format = format_of(o->format, w->dtype);
    if (format != CMOE_F32 && format != CMOE_BF16 && format != CMOE_I8)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "format %s (%d) not supported, want one of: f32 bf16 i8",
                          cmoe_dtype_name(format), format);
    if (w->dtype == CMOE_I8 && format != CMOE_I8)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "%s: i8 weights cannot become %s, want format i8",
                          cmoei_name(w->name, w_name), cmoe_dtype_name(format));
    if (format == CMOE_I8 && inputs > CMOEI_INT8_DIM)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "%s: %" PRId64
                          " inputs in int8, want at most %d (the sum must fit in int32)",
                          cmoei_name(w->name, w_name), inputs, CMOEI_INT8_DIM);
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

/* ---- packing --------------------------------------------------------------------------------- */

/* Row of w that column c of panel p comes from; -1 behind the last one. */
static int64_t source_row(const cmoe_matrix *m, int64_t p, int64_t c)
{
    const int64_t width = m->width;
    if (!m->gate.gated) {
        const int64_t n = p * width + c;
        return n < m->outputs ? n : -1;
    }
    const int64_t half = m->outputs / 2, i = p * width + c % width;
    const int64_t part = (c / width) ^ (m->gate.up_first); /* 0: the part that stands first */
    if (i >= half) return -1;
    return m->gate.interleaved ? 2 * i + part : part * half + i;
}

/* |max| as B5 wants it, then the scale of a weight row: a / 127. */
static float weight_scale(const float *x, int64_t n, float *inverse)
{
    float most = 1e-4f;
    for (int64_t i = 0; i < n; i++) {
        const float a = fabsf(x[i]);
        most = a > most || a != a ? a : most;
    }
    *inverse = 127.0f / most;
    return most / 127.0f;
}

static void put_column(const cmoe_matrix *m, char *panel, int64_t c, const float *x)
{
    const int64_t step = m->kernel->step, line = m->kernel->panel * step;
    for (int64_t k = 0; k < m->inputs; k++) {
        const int64_t at = k / step * line + c * step + k % step;
        if (m->kernel->v.dtype == CMOE_F32)
            ((float *)(void *)panel)[at] = x[k];
        else
            ((uint16_t *)(void *)panel)[at] = cmoei_f32_to_bf16(x[k]);
    }
}

/* -> scale; q as B5 says.  NaN makes the scale NaN. */
static float put_column_int8(const cmoe_matrix *m, char *panel, int64_t c, const float *x,
                             bool ready)
{
    const int64_t step = m->kernel->step, line = m->kernel->panel * step;
    float inverse = 1, scale = ready ? 1 : weight_scale(x, m->inputs, &inverse);
    int32_t sum = 0;
    for (int64_t k = 0; k < m->inputs; k++) {
        const float y = ready ? x[k] : rintf(x[k] * inverse);
        const int8_t q = y == y && fabsf(y) <= 128 ? (int8_t)y : 0;
        ((int8_t *)panel)[k / step * line + c * step + k % step] = q;
        sum += q;
    }
    if (m->kernel->x_form ==
        CMOEI_X_U8) { /* what x + 128 adds too much; the kernel starts from it, modulo 2^32 */
        const uint32_t start = 0u - 128u * (uint32_t)sum;
        memcpy(panel + m->steps * line + c * (int64_t)sizeof start, &start, sizeof start);
    }
    return scale;
}

static void pack_panel(const cmoe_matrix *m, const cmoe_view *w, int64_t e, int64_t p, char *panel,
                       float *scale, float *row)
{
    const int64_t bytes = cmoe_dtype_bytes(w->dtype);
    memset(panel, 0, (size_t)m->panel_bytes);
    for (int64_t c = 0; c < m->kernel->panel; c++) {
        const int64_t n = source_row(m, p, c);
        if (scale) scale[c] = 0;
        if (n < 0) continue;
        const char *src = (const char *)w->data + (e * w->strides[0] + n * w->strides[1]) * bytes;
        cmoei_load_f32(row, src, w->dtype, w->strides[2], m->inputs);
        if (m->kernel->v.dtype != CMOE_I8) {
            put_column(m, panel, c, row);
            continue;
        }
        scale[c] = put_column_int8(m, panel, c, row, w->dtype == CMOE_I8);
        if (w->dtype == CMOE_I8)
            cmoei_load_f32(&scale[c], cmoei_at(&m->o.scale, e, n), CMOE_F32, 1, 1);
    }
}

typedef struct pack_job {
    cmoe_matrix *m;
    float *rows; /* [tasks, K] */
} pack_job;

static void pack_all(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const pack_job *job = arg;
    cmoe_matrix *m = job->m;
    (void)count;
    const int64_t all = m->count * m->panels;
    for (int64_t i; (i = cmoei_next(team, 1)) < all;)
        pack_panel(m, &m->source, i / m->panels, i % m->panels, m->packed + i * m->panel_bytes,
                   m->scale ? m->scale + i * m->kernel->panel : NULL,
                   job->rows + index * m->inputs);
}

static void pack_bias(cmoe_matrix *m, const cmoe_view *bias)
{
    const int64_t panel = m->kernel->panel;
    for (int64_t i = 0; i < m->count * m->panels * panel; i++) {
        const int64_t n = source_row(m, i / panel % m->panels, i % panel);
        m->bias[i] = 0;
        if (n >= 0)
            cmoei_load_f32(&m->bias[i], cmoei_at(bias, i / panel / m->panels, n), bias->dtype, 1,
                           1);
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

/* Everything about a matrix but its memory. */
static cmoe_status describe(cmoe_matrix *m, cmoe_ctx *ctx, const cmoe_matrix_options *o,
                            cmoei_gate gate, cmoe_view w, const char *w_name, cmoe_error *err)
{
    *m = (cmoe_matrix){.ctx = ctx, .o = *o, .gate = gate, .count = w.dims[0], .source = w};
    if (o->transposed) { /* only the strides turn */
        m->source.dims[1] = w.dims[2];
        m->source.dims[2] = w.dims[1];
        m->source.strides[1] = w.strides[2];
        m->source.strides[2] = w.strides[1];
    }
    m->outputs = m->source.dims[1];
    m->inputs = m->source.dims[2];
    m->kernel = cmoei_table_pick(&cmoei_matmul_table, ctx->features, format_of(o->format, w.dtype));
    m->quantize = cmoei_quantize_pick(ctx->features);
    if (!layout(m))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: packed it would exceed 2^63 - 1 bytes",
                          cmoei_name(w.name, w_name));
    return CMOE_OK;
}

cmoe_status cmoei_matrix_borrow(cmoe_matrix *m, cmoe_ctx *ctx, int32_t format, cmoe_view w,
                                cmoe_error *err)
{
    const cmoe_matrix_options o = {.size = sizeof o, .format = format, .borrow = 1};
    return describe(m, ctx, &o, (cmoei_gate){0}, w, "w", err);
}

static cmoe_status fill(cmoe_matrix *m, const cmoe_view *bias, cmoe_error *err)
{
    cmoe_ctx *ctx = m->ctx;
    if (cmoei_given(bias)) {
        m->bias_bytes = m->scale_bytes;
        CMOEI_TRY(cmoei_alloc(ctx, m->bias_bytes, "packed bias", (void **)&m->bias, err));
        pack_bias(m, bias);
    }
    if (m->o.borrow) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(ctx, m->packed_bytes, "packed weights", (void **)&m->packed, err));
    if (m->kernel->v.dtype == CMOE_I8)
        CMOEI_TRY(cmoei_alloc(ctx, m->scale_bytes, "weight scales", (void **)&m->scale, err));
    pack_job job = {.m = m};
    int64_t bytes;
    if (!cmoei_mul(m->inputs, ctx->threads * (int64_t)sizeof *job.rows, &bytes))
        return cmoei_fail(err, CMOE_ERR_SHAPE, "weights: rows of %" PRId64 " inputs are too long",
                          m->inputs);
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "packing rows", (void **)&job.rows, err));
    cmoei_region(ctx, m->count * m->panels, pack_all, &job);
    cmoei_free(ctx, job.rows, bytes);
    memset(&m->source, 0, sizeof m->source); /* the caller's memory is not ours any more */
    memset(&m->o.scale, 0, sizeof m->o.scale);
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
    CMOEI_TRY(describe(&built, ctx, &o, gate, w, w_name, err));
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

void cmoe_matrix_free(cmoe_matrix *m)
{
    if (!m) return;
    cmoei_free(m->ctx, m->packed, m->packed_bytes);
    cmoei_free(m->ctx, m->scale, m->scale_bytes);
    cmoei_free(m->ctx, m->bias, m->bias_bytes);
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
        s.row = cmoei_carve_array(c, m->inputs, sizeof *s.row);
    }
    return s;
}

cmoei_panel cmoei_matrix_panel(const cmoe_matrix *m, int64_t e, int64_t p,
                               const cmoei_panel_scratch *scratch)
{
    const int64_t i = e * m->panels + p, columns = i * m->kernel->panel;
    cmoei_panel panel = {.bias = m->bias ? m->bias + columns : NULL};
    if (m->o.borrow) {
        pack_panel(m, &m->source, e, p, scratch->weights,
                   m->kernel->v.dtype == CMOE_I8 ? scratch->scale : NULL, scratch->row);
        panel.weights = scratch->weights;
        panel.scale = m->kernel->v.dtype == CMOE_I8 ? scratch->scale : NULL;
    } else {
        panel.weights = m->packed + i * m->panel_bytes;
        panel.scale = m->scale ? m->scale + columns : NULL;
    }
    return panel;
}
