/* SPDX-License-Identifier: MIT
 *
 * norm.c - RMS norm of rows, with the residual sum before it: checks and the table of kernels.
 */
#include "ops/norm.h"

#include "ops/ops.h"

#define ROW(isa) void cmoei_norm_##isa(const cmoei_norm_args *a, int64_t row, int64_t row_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_norm_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_norm_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_norm_avx2},
#endif
    {{"ref", 0, 0}, cmoei_norm_ref},
};
const cmoei_table cmoei_norm_table = CMOEI_TABLE("rms_norm", kernels);

static const cmoe_rms_norm_options defaults = {
    .size = sizeof defaults,
    .eps = 1e-6f,
    .order = CMOE_NORM_CAST_THEN_WEIGHT,
};

void cmoe_rms_norm_options_default(cmoe_rms_norm_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static cmoe_status check_options(const cmoe_rms_norm_options *o, cmoe_error *err)
{
    if (!(o->eps >= 0) || o->eps - o->eps != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "eps = %g, want a finite number >= 0",
                          (double)o->eps);
    if (o->order != CMOE_NORM_CAST_THEN_WEIGHT && o->order != CMOE_NORM_WEIGHT_THEN_CAST)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "order = %d, want 0 (cast, then weight) or 1 (weight, then cast)",
                          o->order);
    if (!(o->weight_offset - o->weight_offset == 0))
        return cmoei_fail(err, CMOE_ERR_RANGE, "weight_offset = %g, want a finite number",
                          (double)o->weight_offset);
    return cmoei_check_flag(o->round_sum, "round_sum", err);
}

static cmoe_status check_views(const cmoe_view *x, const cmoe_view *residual,
                               const cmoe_view *weight, const cmoe_view_mut *out,
                               const cmoe_view_mut *residual_out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_matrix(x, "x", -1, -1, "hidden", err));
    const int64_t n = x->dims[0], h = x->dims[1];
    const cmoei_want want = {
        .name = "weight", .dtypes = CMOEI_FLOATS, .rank = 1, .dims = {h}, .dim_names = {"hidden"}};
    const cmoe_view sum = cmoe_view_of(*residual_out);
    if (cmoei_given(residual))
        CMOEI_TRY(cmoei_check_matrix(residual, "residual", n, h, "hidden", err));
    if (cmoei_given(weight)) CMOEI_TRY(cmoei_check_in(weight, &want, err));
    CMOEI_TRY(cmoei_check_matrix_out(out, "out", n, h, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(out, "out", x, "x", err));
    if (cmoei_given(residual)) CMOEI_TRY(cmoei_check_apart(out, "out", residual, "residual", err));
    if (cmoei_given(weight)) CMOEI_TRY(cmoei_check_apart(out, "out", weight, "weight", err));
    if (!cmoei_given(&sum)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_matrix_out(residual_out, "residual_out", n, h, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(residual_out, "residual_out", x, "x", err));
    if (cmoei_given(residual))
        CMOEI_TRY(cmoei_check_in_place(residual_out, "residual_out", residual, "residual", err));
    if (cmoei_given(weight))
        CMOEI_TRY(cmoei_check_apart(residual_out, "residual_out", weight, "weight", err));
    return cmoei_check_apart(out, "out", &sum, "residual_out", err);
}

typedef struct bound {
    cmoei_norm_args args;
    const cmoei_norm_kernel *kernel;
} bound;

static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    b->kernel->run(&b->args, row, row_end);
}

cmoe_status cmoe_rms_norm(cmoe_stream *s, const cmoe_rms_norm_options *options, cmoe_view x,
                          cmoe_view residual, cmoe_view weight, cmoe_view_mut out,
                          cmoe_view_mut residual_out, cmoe_error *err)
{
    cmoe_rms_norm_options o = defaults;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_rms_norm_options", err));
    CMOEI_TRY(check_options(&o, err));
    CMOEI_TRY(check_views(&x, &residual, &weight, &out, &residual_out, err));
    const int64_t rows = x.dims[0], hidden = x.dims[1];
    if (rows == 0 || hidden == 0) return CMOE_OK;
    const int32_t stored = residual_out.data ? residual_out.dtype : x.dtype;
    const bound b = {.args = {.x = cmoei_plane_of(&x),
                              .residual = cmoei_plane_of(&residual),
                              .weight = cmoei_plane_of(&weight),
                              .out = cmoei_plane_mut(&out),
                              .residual_out = cmoei_plane_mut(&residual_out),
                              .hidden = hidden,
                              .eps = o.eps,
                              .weight_offset = o.weight_offset,
                              .order = o.order,
                              .sum_dtype = o.round_sum ? stored : 0},
                     .kernel = cmoei_table_pick(&cmoei_norm_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, rows, 4.0 * (double)rows * (double)hidden, run_rows, &b);
    return CMOE_OK;
}
