/* SPDX-License-Identifier: MIT
 *
 * norm.c - RMS norm of rows or of the heads of rows, with the residual sum before it: checks and
 * the table of kernels.
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

cmoe_status cmoei_rms_norm_options(cmoe_rms_norm_options *o, const cmoe_rms_norm_options *options,
                                   cmoe_error *err)
{
    *o = defaults;
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, options, "cmoe_rms_norm_options", err));
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

/* [rows, hidden], or [rows, heads, hidden]; `like` says which and what sizes, NULL: any. */
static cmoei_want heads_want(const char *name, int32_t rank, const cmoe_view *like)
{
    cmoei_want w = {.name = name,
                    .dtypes = CMOEI_FLOATS,
                    .rank = rank,
                    .dims = {-1, -1, -1},
                    .dim_names = {"rows", "heads", "hidden"}};
    if (rank == 2) w.dim_names[1] = "hidden";
    for (int32_t i = 0; like && i < rank; i++)
        w.dims[i] = like->dims[i];
    return w;
}

static cmoe_status check_inputs(const cmoe_view *x, const cmoe_view *residual,
                                const cmoe_view *weight, cmoe_error *err)
{
    const cmoei_want any = heads_want("x", x->rank == 3 ? 3 : 2, NULL);
    CMOEI_TRY(cmoei_check_in(x, &any, err));
    const cmoei_want rows = heads_want("residual", x->rank, x);
    const cmoei_want one = {.name = "weight",
                            .dtypes = CMOEI_FLOATS,
                            .rank = 1,
                            .dims = {x->dims[x->rank - 1]},
                            .dim_names = {"hidden"}};
    if (cmoei_given(residual)) CMOEI_TRY(cmoei_check_in(residual, &rows, err));
    return cmoei_given(weight) ? cmoei_check_in(weight, &one, err) : CMOE_OK;
}

static cmoe_status check_outputs(const cmoe_view *x, const cmoe_view *residual,
                                 const cmoe_view *weight, const cmoe_view_mut *out,
                                 const cmoe_view_mut *residual_out, cmoe_error *err)
{
    const cmoei_want want = heads_want("out", x->rank, x);
    const cmoei_want want_sum = heads_want("residual_out", x->rank, x);
    const cmoe_view sum = cmoe_view_of(*residual_out);
    CMOEI_TRY(cmoei_check_out(out, &want, err));
    CMOEI_TRY(cmoei_check_in_place(out, "out", x, "x", err));
    if (cmoei_given(residual)) CMOEI_TRY(cmoei_check_apart(out, "out", residual, "residual", err));
    if (cmoei_given(weight)) CMOEI_TRY(cmoei_check_apart(out, "out", weight, "weight", err));
    if (!cmoei_given(&sum)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_out(residual_out, &want_sum, err));
    CMOEI_TRY(cmoei_check_in_place(residual_out, "residual_out", x, "x", err));
    if (cmoei_given(residual))
        CMOEI_TRY(cmoei_check_in_place(residual_out, "residual_out", residual, "residual", err));
    if (cmoei_given(weight))
        CMOEI_TRY(cmoei_check_apart(residual_out, "residual_out", weight, "weight", err));
    return cmoei_check_apart(out, "out", &sum, "residual_out", err);
}

/* The planes of `args` are the heads of one token, and a token's lie `step` bytes behind those of
 * the one before.  Rows without heads are the heads of a single token. */
typedef struct bound {
    cmoei_norm_args args;
    int64_t heads;
    int64_t x_step, residual_step, out_step, sum_step;
    const cmoei_norm_kernel *kernel;
} bound;

/* Rows are numbered over all tokens: token * heads + head. */
static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    while (row < row_end) {
        const int64_t token = row / b->heads, head = row % b->heads;
        const int64_t n = CMOEI_MIN(b->heads - head, row_end - row);
        cmoei_norm_args a = b->args;
        a.x.data += token * b->x_step;
        a.out.data += token * b->out_step;
        if (a.residual.data) a.residual.data += token * b->residual_step;
        if (a.residual_out.data) a.residual_out.data += token * b->sum_step;
        b->kernel->run(&a, head, head + n);
        row += n;
    }
}

static int64_t token_step(const cmoe_view *v)
{
    return v->rank == 3 ? v->strides[0] * cmoe_dtype_bytes(v->dtype) : 0;
}

static cmoei_plane heads_plane(cmoe_view v)
{
    if (v.rank == 3) {
        v.rank = 2;
        memmove(v.dims, v.dims + 1, 2 * sizeof v.dims[0]);
        memmove(v.strides, v.strides + 1, 2 * sizeof v.strides[0]);
    }
    return cmoei_plane_of(&v);
}

cmoe_status cmoe_rms_norm(cmoe_stream *s, const cmoe_rms_norm_options *options, cmoe_view x,
                          cmoe_view residual, cmoe_view weight, cmoe_view_mut out,
                          cmoe_view_mut residual_out, cmoe_error *err)
{
    cmoe_rms_norm_options o;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_rms_norm_options(&o, options, err));
    CMOEI_TRY(check_inputs(&x, &residual, &weight, err));
    CMOEI_TRY(check_outputs(&x, &residual, &weight, &out, &residual_out, err));
    const int64_t elements = cmoei_elements(&x), hidden = x.dims[x.rank - 1];
    if (elements == 0) return CMOE_OK;
    const cmoe_view y = cmoe_view_of(out), sum = cmoe_view_of(residual_out);
    const bound b = {.args = {.x = heads_plane(x),
                              .residual = heads_plane(residual),
                              .weight = cmoei_plane_of(&weight),
                              .out = heads_plane(y),
                              .residual_out = heads_plane(sum),
                              .hidden = hidden,
                              .eps = o.eps,
                              .weight_offset = o.weight_offset,
                              .order = o.order,
                              .sum_dtype = !o.round_sum ? 0
                                           : sum.data   ? sum.dtype
                                                        : x.dtype},
                     .heads = x.dims[x.rank - 2],
                     .x_step = token_step(&x),
                     .residual_step = token_step(&residual),
                     .out_step = token_step(&y),
                     .sum_step = token_step(&sum),
                     .kernel = cmoei_table_pick(&cmoei_norm_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, elements / hidden, 4.0 * (double)elements, run_rows, &b);
    return CMOE_OK;
}
