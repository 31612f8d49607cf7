/* SPDX-License-Identifier: MIT
 *
 * layer_norm.c - layer norm of rows, with the residual sum before it: checks and the table of
 * kernels.
 */
#include "ops/layer_norm.h"

#include "ops/ops.h"

#define ROW(isa) \
    void cmoei_layer_norm_##isa(const cmoei_layer_norm_args *a, int64_t row, int64_t row_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_layer_norm_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_layer_norm_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_layer_norm_avx2},
#endif
    {{"ref", 0, 0}, cmoei_layer_norm_ref},
};
const cmoei_table cmoei_layer_norm_table = CMOEI_TABLE("layer_norm", kernels);

static cmoe_status check_inputs(const cmoe_view *x, const cmoe_view *residual,
                                const cmoe_view *weight, const cmoe_view *bias, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_matrix(x, "x", -1, -1, "hidden", err));
    cmoei_want want = {.name = "weight",
                       .dtypes = CMOEI_FLOATS,
                       .rank = 1,
                       .dims = {x->dims[1]},
                       .dim_names = {"hidden"}};
    if (cmoei_given(residual))
        CMOEI_TRY(cmoei_check_matrix(residual, "residual", x->dims[0], x->dims[1], "hidden", err));
    if (cmoei_given(weight)) CMOEI_TRY(cmoei_check_in(weight, &want, err));
    want.name = "bias";
    return cmoei_given(bias) ? cmoei_check_in(bias, &want, err) : CMOE_OK;
}

/* Views that are not given have no address to overlap with. */
static cmoe_status check_outputs(const cmoe_view *x, const cmoe_view *residual,
                                 const cmoe_view *weight, const cmoe_view *bias,
                                 const cmoe_view_mut *out, const cmoe_view_mut *residual_out,
                                 cmoe_error *err)
{
    const int64_t n = x->dims[0], h = x->dims[1];
    const cmoe_view sum = cmoe_view_of(*residual_out);
    CMOEI_TRY(cmoei_check_matrix_out(out, "out", n, h, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(out, "out", x, "x", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", residual, "residual", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", weight, "weight", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", bias, "bias", err));
    if (!cmoei_given(&sum)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_matrix_out(residual_out, "residual_out", n, h, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(residual_out, "residual_out", x, "x", err));
    CMOEI_TRY(cmoei_check_in_place(residual_out, "residual_out", residual, "residual", err));
    CMOEI_TRY(cmoei_check_apart(residual_out, "residual_out", weight, "weight", err));
    CMOEI_TRY(cmoei_check_apart(residual_out, "residual_out", bias, "bias", err));
    return cmoei_check_apart(out, "out", &sum, "residual_out", err);
}

typedef struct bound {
    cmoei_layer_norm_args args;
    const cmoei_layer_norm_kernel *kernel;
} bound;

static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    b->kernel->run(&b->args, row, row_end);
}

cmoe_status cmoe_layer_norm(cmoe_stream *s, float eps, cmoe_view x, cmoe_view residual,
                            cmoe_view weight, cmoe_view bias, cmoe_view_mut out,
                            cmoe_view_mut residual_out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!(eps >= 0) || eps - eps != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "eps = %g, want a finite number >= 0", (double)eps);
    CMOEI_TRY(check_inputs(&x, &residual, &weight, &bias, err));
    CMOEI_TRY(check_outputs(&x, &residual, &weight, &bias, &out, &residual_out, err));
    const int64_t rows = x.dims[0], hidden = x.dims[1];
    if (rows == 0 || hidden == 0) return CMOE_OK;
    const bound b = {.args = {.x = cmoei_plane_of(&x),
                              .residual = cmoei_plane_of(&residual),
                              .weight = cmoei_plane_of(&weight),
                              .bias = cmoei_plane_of(&bias),
                              .out = cmoei_plane_mut(&out),
                              .residual_out = cmoei_plane_mut(&residual_out),
                              .hidden = hidden,
                              .eps = eps},
                     .kernel = cmoei_table_pick(&cmoei_layer_norm_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, rows, 8.0 * (double)rows * (double)hidden, run_rows, &b);
    return CMOE_OK;
}
