/* SPDX-License-Identifier: MIT
 *
 * quantize.c - quantize_rows (int8, rule B5) and silu_mul_quantize_masked (f8e4m3 a group).
 *
 * A row is read twice, for its largest magnitude and for its values, a block of float32 on the
 * stack at a time.
 */
#include "quant/quantize.h"

#include <inttypes.h>

#include "ops/gates.h"
#include "ops/ops.h"

/* ---- int8 rows ------------------------------------------------------------------------------- */

typedef struct rows_job {
    cmoei_plane x, q;
    char *scale; /* float32, `scale_step` bytes apart */
    int64_t scale_step, cols;
    const cmoei_quantize_kernel *kernel;
} rows_job;

static void quantize_one(const rows_job *j, int64_t row)
{
    float x[CMOEI_BLOCK], scale;
    int8_t q[CMOEI_BLOCK] = {0};
    uint32_t largest = 0;
    for (int64_t h = 0; h < j->cols; h += CMOEI_BLOCK) {
        const int64_t n = CMOEI_MIN(j->cols - h, CMOEI_BLOCK);
        cmoei_block_load(x, &j->x, row, h, n);
        largest = CMOEI_MAX(largest, j->kernel->largest(x, n));
    }
    const float factor = cmoei_quantize_factor(largest, &scale);
    for (int64_t h = 0; h < j->cols; h += CMOEI_BLOCK) {
        const int64_t n = CMOEI_MIN(j->cols - h, CMOEI_BLOCK);
        if (j->cols > CMOEI_BLOCK) cmoei_block_load(x, &j->x, row, h, n);
        if (factor > 0) j->kernel->to_int8(x, n, factor, q);
        char *out = j->q.data + row * j->q.step + h * j->q.col;
        if (j->q.col == 1)
            memcpy(out, q, (size_t)n);
        else
            for (int64_t i = 0; i < n; i++)
                memcpy(out + i * j->q.col, q + i, 1);
    }
    memcpy(j->scale + row * j->scale_step, &scale, sizeof scale);
}

static void quantize_rows(const void *arg, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++)
        quantize_one(arg, row);
}

cmoe_status cmoe_quantize_rows(cmoe_stream *s, cmoe_view x, cmoe_view_mut q, cmoe_view_mut scale,
                               cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_matrix(&x, "x", -1, -1, "hidden", err));
    const int64_t rows = x.dims[0], cols = x.dims[1];
    const cmoei_want want_q = {.name = "q",
                               .dtypes = CMOEI_DTYPE(CMOE_I8),
                               .rank = 2,
                               .dims = {rows, cols},
                               .dim_names = {"rows", "hidden"}};
    const cmoei_want want_scale = {.name = "scale",
                                   .dtypes = CMOEI_DTYPE(CMOE_F32),
                                   .rank = 1,
                                   .dims = {rows},
                                   .dim_names = {"rows"}};
    const cmoe_view scale_in = cmoe_view_of(scale);
    CMOEI_TRY(cmoei_check_out(&q, &want_q, err));
    CMOEI_TRY(cmoei_check_out(&scale, &want_scale, err));
    CMOEI_TRY(cmoei_check_apart(&q, "q", &x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&scale, "scale", &x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&q, "q", &scale_in, "scale", err));
    if (rows == 0) return CMOE_OK;
    rows_job j = {.x = cmoei_plane_of(&x),
                  .q = {.data = q.data, .step = q.strides[0], .col = q.strides[1]},
                  .scale = scale.data,
                  .scale_step = scale.strides[0] * (int64_t)sizeof(float),
                  .cols = cols,
                  .kernel = cmoei_quantize_pick(s->ctx->features)};
    cmoei_rows_run(s->ctx, rows, 4.0 * (double)rows * (double)(cols + 1), quantize_rows, &j);
    return CMOE_OK;
}

/* ---- activation and f8e4m3 of the rows that exist -------------------------------------------- */

typedef struct masked_job {
    cmoe_view x, counts;
    cmoe_view_mut out, scale;
    int64_t group;
    cmoei_gates_fn silu_mul;
    const cmoei_quantize_kernel *quantize;
} masked_job;

enum { LARGEST_F8 = 448 };

/* Columns [c, c + n) of row (e, m), n <= CMOEI_BLOCK. */
static void activate(const masked_job *j, int64_t e, int64_t m, int64_t c, int64_t n, float *h)
{
    const int64_t bytes = cmoe_dtype_bytes(j->x.dtype), col = j->x.strides[2];
    char *gate = (char *)(uintptr_t)cmoei_at(&j->x, e, m) + c * col * bytes;
    cmoei_gates_args a = {.gate = {.data = gate, .col = col, .dtype = j->x.dtype},
                          .out = cmoei_plane_f32(h, n),
                          .cols = n};
    a.x = a.gate;
    a.x.data += j->out.dims[2] * col * bytes;
    j->silu_mul(&a, 0, 1);
}

static void masked_group(const masked_job *j, int64_t e, int64_t m, int64_t g)
{
    float h[CMOEI_BLOCK];
    uint32_t bits = 0;
    for (int64_t c = 0; c < j->group; c += CMOEI_BLOCK) {
        const int64_t n = CMOEI_MIN(j->group - c, CMOEI_BLOCK);
        activate(j, e, m, g * j->group + c, n, h);
        bits = CMOEI_MAX(bits, j->quantize->largest(h, n));
    }
    const float largest = cmoei_float(bits);
    const float scale = (largest < 1e-10f ? 1e-10f : largest) / LARGEST_F8; /* keeps NaN */
    uint8_t *out = cmoei_at_mut(&j->out, e, m);
    for (int64_t c = 0; c < j->group; c += CMOEI_BLOCK) {
        const int64_t n = CMOEI_MIN(j->group - c, CMOEI_BLOCK), at = g * j->group + c;
        if (j->group > CMOEI_BLOCK) activate(j, e, m, at, n, h);
        for (int64_t i = 0; i < n; i++)
            out[(at + i) * j->out.strides[2]] = cmoei_f32_to_f8e4m3(h[i] / scale);
    }
    char *to = (char *)cmoei_at_mut(&j->scale, e, m) + g * j->scale.strides[2] * 4;
    memcpy(to, &scale, sizeof scale);
}

/* Rows are numbered over all experts: e * M + m. */
static void masked_rows(const void *arg, int64_t row, int64_t row_end)
{
    const masked_job *j = arg;
    const int64_t most = j->x.dims[1];
    for (; row < row_end; row++) {
        const int64_t e = row / most, m = row % most;
        if (m >= cmoei_load_index(cmoei_at(&j->counts, e, 0), j->counts.dtype)) continue;
        for (int64_t g = 0; g < j->scale.dims[2]; g++)
            masked_group(j, e, m, g);
    }
}

static cmoe_status check_masked(const cmoe_view *x, const cmoe_view *counts, int64_t group,
                                const cmoe_view_mut *out, const cmoe_view_mut *scale,
                                cmoe_error *err)
{
    const int64_t experts = x->dims[0], most = x->dims[1], inter = x->dims[2] / 2;
    if (x->dims[2] % 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[2] = %" PRId64 ", want an even size (gate and up)",
                          cmoei_name(x->name, "x"), x->dims[2]);
    if (group < 1 || inter % group)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "group = %" PRId64 ", want one that divides %" PRId64 " (inter)", group,
                          inter);
    const cmoei_want want_counts = {.name = "counts",
                                    .dtypes = CMOEI_INDEX,
                                    .rank = 1,
                                    .dims = {experts},
                                    .dim_names = {"experts"}};
    const cmoei_want want_out = {.name = "out",
                                 .dtypes = CMOEI_DTYPE(CMOE_F8E4M3),
                                 .rank = 3,
                                 .dims = {experts, most, inter},
                                 .dim_names = {"experts", "rows", "inter"}};
    const cmoei_want want_scale = {.name = "scale",
                                   .dtypes = CMOEI_DTYPE(CMOE_F32),
                                   .rank = 3,
                                   .dims = {experts, most, inter / group},
                                   .dim_names = {"experts", "rows", "inter / group"}};
    CMOEI_TRY(cmoei_check_in(counts, &want_counts, err));
    CMOEI_TRY(cmoei_check_out(out, &want_out, err));
    CMOEI_TRY(cmoei_check_out(scale, &want_scale, err));
    for (int64_t e = 0; e < experts; e++) {
        const int64_t n = cmoei_load_index(cmoei_at(counts, e, 0), counts->dtype);
        if (n < 0 || n > most)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %" PRId64 ", want 0 to %" PRId64 " (rows)",
                              cmoei_name(counts->name, "counts"), e, n, most);
    }
    return CMOE_OK;
}

cmoe_status cmoe_silu_mul_quantize_masked(cmoe_stream *s, cmoe_view x, cmoe_view counts,
                                          int64_t group, cmoe_view_mut out, cmoe_view_mut scale,
                                          cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    const cmoei_want want = {.name = "x",
                             .dtypes = CMOEI_FLOATS,
                             .rank = 3,
                             .dims = {-1, -1, -1},
                             .dim_names = {"experts", "rows", "2 * inter"}};
    CMOEI_TRY(cmoei_check_in(&x, &want, err));
    CMOEI_TRY(check_masked(&x, &counts, group, &out, &scale, err));
    const cmoe_view scale_in = cmoe_view_of(scale);
    CMOEI_TRY(cmoei_check_apart(&out, "out", &x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&out, "out", &counts, "counts", err));
    CMOEI_TRY(cmoei_check_apart(&scale, "scale", &x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&scale, "scale", &counts, "counts", err));
    CMOEI_TRY(cmoei_check_apart(&out, "out", &scale_in, "scale", err));
    if (x.dims[0] == 0 || x.dims[1] == 0 || x.dims[2] == 0) return CMOE_OK;
    const cmoei_gates_kernel *silu_mul =
        cmoei_table_pick(&cmoei_silu_mul_table, s->ctx->features, 0);
    masked_job j = {.x = x,
                    .counts = counts,
                    .out = out,
                    .scale = scale,
                    .group = group,
                    .silu_mul = silu_mul->run,
                    .quantize = cmoei_quantize_pick(s->ctx->features)};
    const int64_t rows = x.dims[0] * x.dims[1];
    cmoei_rows_run(s->ctx, rows, 16.0 * (double)rows * (double)x.dims[2], masked_rows, &j);
    return CMOE_OK;
}
