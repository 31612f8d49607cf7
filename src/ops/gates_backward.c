/* SPDX-License-Identifier: MIT
 *
 * gates_backward.c - gradients of sigmoid_mul, silu_mul and clip: checks and the tables of kernels.
 */
#include "ops/gates_backward.h"

#include <inttypes.h>

#include "ops/ops.h"

#define ROW(op, isa)                                                                  \
    void cmoei_##op##_backward_##isa(const cmoei_gates_backward_args *a, int64_t row, \
                                     int64_t row_end)
#define ROWS(isa)          \
    ROW(sigmoid_mul, isa); \
    ROW(silu_mul, isa);    \
    ROW(clip, isa)
#if CMOE_HAVE_AVX512
ROWS(avx512);
#define AVX512(op) {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_##op##_backward_avx512},
#else
#define AVX512(op)
#endif
#if CMOE_HAVE_AVX2
ROWS(avx2);
#define AVX2(op) {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_##op##_backward_avx2},
#else
#define AVX2(op)
#endif
ROWS(ref);
#define REF(op)                                  \
    {                                            \
        {"ref", 0, 0}, cmoei_##op##_backward_ref \
    }

#define TABLE(op)                                                                            \
    static const cmoei_gates_backward_kernel op##_kernels[] = {AVX512(op) AVX2(op) REF(op)}; \
    const cmoei_table cmoei_##op##_backward_table = CMOEI_TABLE(#op "_backward", op##_kernels);

TABLE(sigmoid_mul)
TABLE(silu_mul)
TABLE(clip)

typedef struct bound {
    cmoei_gates_backward_args args;
    const cmoei_gates_backward_kernel *kernel;
} bound;

static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    b->kernel->run(&b->args, row, row_end);
}

static void run(cmoe_ctx *ctx, const cmoei_table *table, int64_t rows, double cost,
                const cmoei_gates_backward_args *a)
{
    const bound b = {*a, cmoei_table_pick(table, ctx->features, 0)};
    if (rows == 0) return; /* without columns dgate [N, 1] is still 0 */
    cmoei_rows_run(ctx, rows, cost * (double)rows * (double)a->cols, run_rows, &b);
}

static cmoei_want matrix(const char *name, int64_t n, int64_t m, const char *m_name)
{
    return (cmoei_want){.name = name, .rank = 2, .dims = {n, m}, .dim_names = {"rows", m_name}};
}

static cmoe_status check(const cmoe_view *v, const char *name, int64_t n, int64_t m,
                         const char *m_name, cmoe_error *err)
{
    const cmoei_want want = matrix(name, n, m, m_name);
    return cmoei_check_rows(v, &want, err);
}

static cmoe_status check_out(const cmoe_view_mut *v, const char *name, int64_t n, int64_t m,
                             const char *m_name, cmoe_error *err)
{
    const cmoei_want want = matrix(name, n, m, m_name);
    return cmoei_check_rows_out(v, &want, err);
}

static bool given(const cmoe_view_mut *m)
{
    const cmoe_view v = cmoe_view_of(*m);
    return cmoei_given(&v);
}

enum { SIGMOID_COST = 16, SILU_COST = 20, CLIP_COST = 2 }; /* of an element */

cmoe_status cmoe_sigmoid_mul_backward(cmoe_stream *s, cmoe_view x, cmoe_view gate, cmoe_view dout,
                                      cmoe_view_mut dx, cmoe_view_mut dgate, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(check(&x, "x", -1, -1, "hidden", err));
    const int64_t rows = x.dims[0], cols = x.dims[1];
    CMOEI_TRY(check(&gate, "gate", rows, -1, "1 or hidden", err));
    const int64_t gates = gate.dims[1];
    if (gates != 1 && gates != cols)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims[1] = %" PRId64 ", want 1 or %" PRId64,
                          cmoei_name(gate.name, "gate"), gates, cols);
    CMOEI_TRY(check(&dout, "dout", rows, cols, "hidden", err));
    if (given(&dx)) {
        const cmoe_view other = cmoe_view_of(dgate);
        CMOEI_TRY(check_out(&dx, "dx", rows, cols, "hidden", err));
        CMOEI_TRY(cmoei_check_in_place(&dx, "dx", &dout, "dout", err));
        CMOEI_TRY(cmoei_check_apart(&dx, "dx", &x, "x", err));
        CMOEI_TRY(cmoei_check_apart(&dx, "dx", &gate, "gate", err));
        CMOEI_TRY(cmoei_check_apart(&dx, "dx", &other, "dgate", err));
    }
    if (given(&dgate)) {
        CMOEI_TRY(check_out(&dgate, "dgate", rows, gates, gates == 1 ? "1" : "hidden", err));
        CMOEI_TRY(cmoei_check_apart(&dgate, "dgate", &dout, "dout", err));
        CMOEI_TRY(cmoei_check_apart(&dgate, "dgate", &x, "x", err));
        CMOEI_TRY(cmoei_check_apart(&dgate, "dgate", &gate, "gate", err));
    }
    cmoei_gates_backward_args args = {.x = cmoei_plane_of(&x),
                                      .dout = cmoei_plane_of(&dout),
                                      .gate = cmoei_plane_of(&gate),
                                      .dx = cmoei_plane_mut(&dx),
                                      .dgate = cmoei_plane_mut(&dgate),
                                      .cols = cols};
    args.x.col = args.dout.col = args.dx.col = 1; /* of one column the stride may be anything */
    args.gate.col = args.dgate.col = gates == 1 ? 0 : 1;
    run(s->ctx, &cmoei_sigmoid_mul_backward_table, rows, SIGMOID_COST, &args);
    return CMOE_OK;
}

cmoe_status cmoe_silu_mul_backward(cmoe_stream *s, cmoe_view gate_up, int32_t interleaved,
                                   cmoe_view dout, cmoe_view_mut dgate_up, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_flag(interleaved, "interleaved", err));
    CMOEI_TRY(check(&gate_up, "gate_up", -1, -1, "2 * inter", err));
    const int64_t rows = gate_up.dims[0], inter = gate_up.dims[1] / 2;
    if (gate_up.dims[1] % 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[1] = %" PRId64 ", want an even size (gate and up)",
                          cmoei_name(gate_up.name, "gate_up"), gate_up.dims[1]);
    CMOEI_TRY(check(&dout, "dout", rows, inter, "inter", err));
    CMOEI_TRY(check_out(&dgate_up, "dgate_up", rows, 2 * inter, "2 * inter", err));
    CMOEI_TRY(cmoei_check_in_place(&dgate_up, "dgate_up", &gate_up, "gate_up", err));
    CMOEI_TRY(cmoei_check_apart(&dgate_up, "dgate_up", &dout, "dout", err));
    cmoei_gates_backward_args args = {.x = cmoei_plane_of(&gate_up),
                                      .dout = cmoei_plane_of(&dout),
                                      .dx = cmoei_plane_mut(&dgate_up),
                                      .cols = inter,
                                      .interleaved = interleaved};
    args.dout.col = 1;
    run(s->ctx, &cmoei_silu_mul_backward_table, rows, SILU_COST, &args);
    return CMOE_OK;
}

cmoe_status cmoe_clip_backward(cmoe_stream *s, cmoe_view x, float limit, cmoe_view dout,
                               cmoe_view_mut dx, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    if (!(limit >= 0))
        return cmoei_fail(err, CMOE_ERR_RANGE, "limit = %g, want >= 0", (double)limit);
    CMOEI_TRY(check(&x, "x", -1, -1, "hidden", err));
    const int64_t rows = x.dims[0], cols = x.dims[1];
    CMOEI_TRY(check(&dout, "dout", rows, cols, "hidden", err));
    CMOEI_TRY(check_out(&dx, "dx", rows, cols, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(&dx, "dx", &dout, "dout", err));
    CMOEI_TRY(cmoei_check_apart(&dx, "dx", &x, "x", err));
    cmoei_gates_backward_args args = {.x = cmoei_plane_of(&x),
                                      .dout = cmoei_plane_of(&dout),
                                      .dx = cmoei_plane_mut(&dx),
                                      .cols = cols,
                                      .limit = limit};
    args.x.col = args.dout.col = args.dx.col = 1;
    run(s->ctx, &cmoei_clip_backward_table, rows, CLIP_COST, &args);
    return CMOE_OK;
}
