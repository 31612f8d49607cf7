/* SPDX-License-Identifier: MIT
 *
 * rope.c - rotary positions: tables of cosines and sines, and the turn; checks and the tables of
 * kernels.  The frequencies are made in rope_frequencies.c.
 */
#include "ops/rope.h"

#include <inttypes.h>
#include <math.h>

#include "ops/ops.h"

#define ROW(isa)                                                                               \
    void cmoei_rope_table_##isa(const cmoei_rope_table_args *a, int64_t row, int64_t row_end); \
    void cmoei_rope_rotate_##isa(const cmoei_rope_rotate_args *a, int64_t head, int64_t head_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_rope_table_kernel table_kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_rope_table_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_rope_table_avx2},
#endif
    {{"ref", 0, 0}, cmoei_rope_table_ref},
};
const cmoei_table cmoei_rope_table_table = CMOEI_TABLE("rope_table", table_kernels);

static const cmoei_rope_rotate_kernel rotate_kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_rope_rotate_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_rope_rotate_avx2},
#endif
    {{"ref", 0, 0}, cmoei_rope_rotate_ref},
};
const cmoei_table cmoei_rope_rotate_table = CMOEI_TABLE("rope_rotate", rotate_kernels);

/* ---- tables ---------------------------------------------------------------------------------- */

/* Positions that float32 holds exactly.  With frequencies inside the same limit no angle leaves the
 * 2^48 that sines are good for (core/vmath.h). */
enum { MOST = 1 << 24 };

static cmoe_status check_positions(const cmoe_view *positions, cmoe_error *err)
{
    for (int64_t t = 0; t < positions->dims[0]; t++) {
        const int64_t p = cmoei_load_index(cmoei_at(positions, t, 0), positions->dtype);
        if (p < 0 || p > MOST)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %" PRId64
                              ", want 0 to %d (whole numbers that float32 holds)",
                              cmoei_name(positions->name, "positions"), t, p, MOST);
    }
    return CMOE_OK;
}

static cmoe_status check_frequencies(const cmoe_view *frequencies, cmoe_error *err)
{
    for (int64_t j = 0; j < frequencies->dims[0]; j++) {
        float f;
        cmoei_load_f32(&f, cmoei_at(frequencies, j, 0), CMOE_F32, 1, 1);
        if (!(fabsf(f) <= MOST))
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s[%" PRId64 "] = %g, want -%d to %d",
                              cmoei_name(frequencies->name, "frequencies"), j, (double)f, MOST,
                              MOST);
    }
    return CMOE_OK;
}

static cmoei_want table_want(const char *name, int64_t tokens, int64_t half)
{
    return (cmoei_want){.name = name,
                        .dtypes = CMOEI_DTYPE(CMOE_F32),
                        .rank = 2,
                        .dims = {tokens, half},
                        .dim_names = {"tokens", "rotated / 2"}};
}

static cmoe_status check_table(const cmoe_view *positions, const cmoe_view *frequencies,
                               const cmoe_view_mut *cos, const cmoe_view_mut *sin, cmoe_error *err)
{
    const cmoei_want want_positions = {.name = "positions",
                                       .dtypes = CMOEI_INDEX,
                                       .rank = 1,
                                       .dims = {-1},
                                       .dim_names = {"tokens"}};
    const cmoei_want want_frequencies = {.name = "frequencies",
                                         .dtypes = CMOEI_DTYPE(CMOE_F32),
                                         .rank = 1,
                                         .dims = {-1},
                                         .dim_names = {"rotated / 2"}};
    CMOEI_TRY(cmoei_check_in(positions, &want_positions, err));
    CMOEI_TRY(cmoei_check_in(frequencies, &want_frequencies, err));
    const cmoei_want want_cos = table_want("cos", positions->dims[0], frequencies->dims[0]);
    const cmoei_want want_sin = table_want("sin", positions->dims[0], frequencies->dims[0]);
    const cmoe_view sin_in = cmoe_view_of(*sin);
    CMOEI_TRY(cmoei_check_out(cos, &want_cos, err));
    CMOEI_TRY(cmoei_check_out(sin, &want_sin, err));
    CMOEI_TRY(cmoei_check_apart(cos, "cos", positions, "positions", err));
    CMOEI_TRY(cmoei_check_apart(cos, "cos", frequencies, "frequencies", err));
    CMOEI_TRY(cmoei_check_apart(sin, "sin", positions, "positions", err));
    CMOEI_TRY(cmoei_check_apart(sin, "sin", frequencies, "frequencies", err));
    CMOEI_TRY(cmoei_check_apart(cos, "cos", &sin_in, "sin", err));
    CMOEI_TRY(check_positions(positions, err));
    return check_frequencies(frequencies, err);
}

typedef struct table_job {
    cmoei_rope_table_args args;
    const cmoei_rope_table_kernel *kernel;
} table_job;

static void table_rows(const void *arg, int64_t row, int64_t row_end)
{
    const table_job *j = arg;
    j->kernel->run(&j->args, row, row_end);
}

cmoe_status cmoe_rope_table(cmoe_stream *s, cmoe_view positions, cmoe_view frequencies,
                            float amplitude, cmoe_view_mut cos, cmoe_view_mut sin, cmoe_error *err)
{
    enum { COST = 32 }; /* of an angle, two polynomials in double */
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (amplitude - amplitude != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "amplitude = %g, want a finite number",
                          (double)amplitude);
    CMOEI_TRY(check_table(&positions, &frequencies, &cos, &sin, err));
    const int64_t tokens = positions.dims[0], half = frequencies.dims[0];
    if (tokens == 0 || half == 0) return CMOE_OK;
    const table_job j = {
        .args = {.positions = positions.data,
                 .positions_step = positions.strides[0] * cmoe_dtype_bytes(positions.dtype),
                 .positions_dtype = positions.dtype,
                 .amplitude = amplitude,
                 .frequencies = cmoei_plane_of(&frequencies),
                 .cos = cmoei_plane_mut(&cos),
                 .sin = cmoei_plane_mut(&sin),
                 .half = half},
        .kernel = cmoei_table_pick(&cmoei_rope_table_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, tokens, COST * (double)tokens * (double)half, table_rows, &j);
    return CMOE_OK;
}

/* ---- the turn -------------------------------------------------------------------------------- */

static const cmoe_rope_rotate_options rotate_defaults = {.size = sizeof rotate_defaults};

void cmoe_rope_rotate_options_default(cmoe_rope_rotate_options *o, size_t size)
{
    cmoei_options_write(o, size, &rotate_defaults, sizeof rotate_defaults);
}

static cmoei_want heads_want(const char *name, int64_t tokens, int64_t heads, int64_t dim)
{
    return (cmoei_want){.name = name,
                        .dtypes = CMOEI_FLOATS,
                        .rank = 3,
                        .dims = {tokens, heads, dim},
                        .dim_names = {"tokens", "heads", "head_dim"}};
}

static cmoe_status check_rotate(const cmoe_rope_rotate_options *o, const cmoe_view *x,
                                const cmoe_view *cos, const cmoe_view *sin,
                                const cmoe_view_mut *out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_flag(o->interleaved, "interleaved", err));
    CMOEI_TRY(cmoei_check_flag(o->inverse, "inverse", err));
    const cmoei_want want_x = heads_want("x", -1, -1, -1);
    CMOEI_TRY(cmoei_check_in(x, &want_x, err));
    const int64_t tokens = x->dims[0], dim = x->dims[2];
    const cmoei_want want_cos = table_want("cos", tokens, -1);
    CMOEI_TRY(cmoei_check_in(cos, &want_cos, err));
    const int64_t half = cos->dims[1];
    const cmoei_want want_sin = table_want("sin", tokens, half);
    CMOEI_TRY(cmoei_check_in(sin, &want_sin, err));
    if (half > dim / 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[1] = %" PRId64 ", want at most %" PRId64 " (head_dim / 2)",
                          cmoei_name(cos->name, "cos"), half, dim / 2);
    if (o->offset < 0 || o->offset > dim - 2 * half)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "offset = %" PRId64 ", want 0 to %" PRId64 " (head_dim - rotated)",
                          o->offset, dim - 2 * half);
    const cmoei_want want_out = heads_want("out", tokens, x->dims[1], dim);
    CMOEI_TRY(cmoei_check_out(out, &want_out, err));
    CMOEI_TRY(cmoei_check_in_place(out, "out", x, "x", err));
    CMOEI_TRY(cmoei_check_apart(out, "out", cos, "cos", err));
    return cmoei_check_apart(out, "out", sin, "sin", err);
}

/* The planes of x and out are the heads of the first token. */
typedef struct rotate_job {
    cmoei_plane x, out, cos, sin;
    int64_t x_step, out_step; /* bytes from token to token */
    int64_t heads, dim, half, offset;
    int32_t interleaved, inverse;
    const cmoei_rope_rotate_kernel *kernel;
} rotate_job;

/* Between equal formats bytes are copied, so that f64 keeps its digits as it does in place. */
static void copy_columns(const cmoei_plane *x, const cmoei_plane *out, int64_t head, int64_t c,
                         int64_t end)
{
    const size_t bytes = (size_t)cmoei_float_bytes(x->dtype);
    if (x->dtype != out->dtype) {
        for (; c < end; c += CMOEI_BLOCK) {
            float v[CMOEI_BLOCK];
            const int64_t n = CMOEI_MIN(end - c, CMOEI_BLOCK);
            cmoei_block_load(v, x, head, c, n);
            cmoei_block_store(out, head, c, v, n);
        }
    } else if (x->col == 1 && out->col == 1) {
        if (c < end)
            memcpy(cmoei_plane_at(out, head, c), cmoei_plane_at(x, head, c),
                   (size_t)(end - c) * bytes);
    } else {
        for (; c < end; c++)
            memcpy(cmoei_plane_at(out, head, c), cmoei_plane_at(x, head, c), bytes);
    }
}

static void rotate_heads(const rotate_job *j, int64_t token, int64_t head, int64_t head_end)
{
    cmoei_rope_rotate_args a = {.x = j->x,
                                .out = j->out,
                                .cos = j->cos,
                                .sin = j->sin,
                                .half = j->half,
                                .interleaved = j->interleaved,
                                .inverse = j->inverse};
    a.x.data += token * j->x_step;
    a.out.data += token * j->out_step;
    if (a.x.data != a.out.data) {
        for (int64_t h = head; h < head_end; h++) {
            copy_columns(&a.x, &a.out, h, 0, j->offset);
            copy_columns(&a.x, &a.out, h, j->offset + 2 * j->half, j->dim);
        }
    }
    if (j->half == 0) return;
    a.x.data = cmoei_plane_at(&a.x, 0, j->offset);
    a.out.data = cmoei_plane_at(&a.out, 0, j->offset);
    a.cos.data += token * j->cos.step;
    a.sin.data += token * j->sin.step;
    j->kernel->run(&a, head, head_end);
}

/* Rows are numbered over all tokens: token * heads + head. */
static void rotate_rows(const void *arg, int64_t row, int64_t row_end)
{
    const rotate_job *j = arg;
    while (row < row_end) {
        const int64_t token = row / j->heads, head = row % j->heads;
        const int64_t n = CMOEI_MIN(j->heads - head, row_end - row);
        rotate_heads(j, token, head, head + n);
        row += n;
    }
}

/* Of a [T, heads, d] view, the plane [heads, d] of its first token. */
static cmoei_plane first_token(const cmoe_view *v)
{
    return (cmoei_plane){.data = (char *)(uintptr_t)v->data,
                         .step = v->strides[1] * cmoe_dtype_bytes(v->dtype),
                         .col = v->strides[2],
                         .dtype = v->dtype};
}

cmoe_status cmoe_rope_rotate(cmoe_stream *s, const cmoe_rope_rotate_options *options, cmoe_view x,
                             cmoe_view cos, cmoe_view sin, cmoe_view_mut out, cmoe_error *err)
{
    enum { COST = 4 };
    cmoe_rope_rotate_options o = rotate_defaults;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_rope_rotate_options", err));
    CMOEI_TRY(check_rotate(&o, &x, &cos, &sin, &out, err));
    const int64_t elements = cmoei_elements(&x);
    if (elements == 0) return CMOE_OK;
    const cmoe_view y = cmoe_view_of(out);
    const rotate_job j = {.x = first_token(&x),
                          .out = first_token(&y),
                          .cos = cmoei_plane_of(&cos),
                          .sin = cmoei_plane_of(&sin),
                          .x_step = x.strides[0] * cmoe_dtype_bytes(x.dtype),
                          .out_step = y.strides[0] * cmoe_dtype_bytes(y.dtype),
                          .heads = x.dims[1],
                          .dim = x.dims[2],
                          .half = cos.dims[1],
                          .offset = o.offset,
                          .interleaved = o.interleaved,
                          .inverse = o.inverse,
                          .kernel =
                              cmoei_table_pick(&cmoei_rope_rotate_table, s->ctx->features, 0)};
    cmoei_rows_run(s->ctx, x.dims[0] * x.dims[1], COST * (double)elements, rotate_rows, &j);
    return CMOE_OK;
}
