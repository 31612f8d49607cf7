/* SPDX-License-Identifier: MIT
 *
 * gates.c - sigmoid_mul, add_shared_expert and silu_mul: checks and the tables of kernels.
 */
#include "ops/gates.h"

#include <inttypes.h>

#include "ops/ops.h"

#define ROW(op, isa) \
    void cmoei_##op##_##isa(const cmoei_gates_args *a, int64_t row, int64_t row_end)
#define ROWS(isa)                \
    ROW(sigmoid_mul, isa);       \
    ROW(add_shared_expert, isa); \
    ROW(silu_mul, isa)
#if CMOE_HAVE_AVX512
ROWS(avx512);
#define AVX512(op) {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_##op##_avx512},
#else
#define AVX512(op)
#endif
#if CMOE_HAVE_AVX2
ROWS(avx2);
#define AVX2(op) {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_##op##_avx2},
#else
#define AVX2(op)
#endif
ROWS(ref);
#define REF(op)                         \
    {                                   \
        {"ref", 0, 0}, cmoei_##op##_ref \
    }

#define TABLE(op)                                                                   \
    static const cmoei_gates_kernel op##_kernels[] = {AVX512(op) AVX2(op) REF(op)}; \
    const cmoei_table cmoei_##op##_table = CMOEI_TABLE(#op, op##_kernels);

TABLE(sigmoid_mul)
TABLE(add_shared_expert)
TABLE(silu_mul)

typedef struct bound {
    cmoei_gates_args args;
    const cmoei_gates_kernel *kernel;
} bound;

static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    b->kernel->run(&b->args, row, row_end);
}

static void run(cmoe_ctx *ctx, const cmoei_table *table, int64_t rows, const cmoei_gates_args *a)
{
    enum { COST = 16 }; /* of an element, mostly the exponential */
    const bound b = {*a, cmoei_table_pick(table, ctx->features, 0)};
    if (rows == 0 || a->cols == 0) return;
    cmoei_rows_run(ctx, rows, COST * (double)rows * (double)a->cols, run_rows, &b);
}

/* gate [rows, 1] or [rows, cols]. */
static cmoe_status check_gate(const cmoe_view *gate, int64_t rows, int64_t cols, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_matrix(gate, "gate", rows, -1, "1 or hidden", err));
    if (gate->dims[1] != 1 && gate->dims[1] != cols)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims[1] = %" PRId64 ", want 1 or %" PRId64,
                          cmoei_name(gate->name, "gate"), gate->dims[1], cols);
    return CMOE_OK;
}

static cmoei_plane gate_plane(const cmoe_view *gate)
{
    cmoei_plane p = cmoei_plane_of(gate);
    if (gate->dims[1] == 1) p.col = 0;
    return p;
}

cmoe_status cmoe_sigmoid_mul(cmoe_stream *s, cmoe_view x, cmoe_view gate, int32_t round_gate,
                             cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_flag(round_gate, "round_gate", err));
    CMOEI_TRY(cmoei_check_matrix(&x, "x", -1, -1, "hidden", err));
    const int64_t rows = x.dims[0], cols = x.dims[1];
    CMOEI_TRY(check_gate(&gate, rows, cols, err));
    CMOEI_TRY(cmoei_check_matrix_out(&out, "out", rows, cols, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(&out, "out", &x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&out, "out", &gate, "gate", err));
    const cmoei_gates_args args = {.x = cmoei_plane_of(&x),
                                   .gate = gate_plane(&gate),
                                   .out = cmoei_plane_mut(&out),
                                   .cols = cols,
                                   .round_dtype = round_gate ? CMOE_BF16 : 0};
    run(s->ctx, &cmoei_sigmoid_mul_table, rows, &args);
    return CMOE_OK;
}

cmoe_status cmoe_add_shared_expert(cmoe_stream *s, cmoe_view x, cmoe_view shared, cmoe_view gate,
                                   int32_t round_gate, cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_flag(round_gate, "round_gate", err));
    CMOEI_TRY(cmoei_check_matrix(&x, "x", -1, -1, "hidden", err));
    const int64_t rows = x.dims[0], cols = x.dims[1];
    CMOEI_TRY(cmoei_check_matrix(&shared, "shared", rows, cols, "hidden", err));
    if (cmoei_given(&gate)) CMOEI_TRY(check_gate(&gate, rows, cols, err));
    CMOEI_TRY(cmoei_check_matrix_out(&out, "out", rows, cols, "hidden", err));
    CMOEI_TRY(cmoei_check_in_place(&out, "out", &x, "x", err));
    CMOEI_TRY(cmoei_check_apart(&out, "out", &shared, "shared", err));
    if (cmoei_given(&gate)) CMOEI_TRY(cmoei_check_apart(&out, "out", &gate, "gate", err));
    cmoei_gates_args args = {.x = cmoei_plane_of(&x),
                             .shared = cmoei_plane_of(&shared),
                             .out = cmoei_plane_mut(&out),
                             .cols = cols,
                             .round_dtype = round_gate ? CMOE_BF16 : 0};
    if (cmoei_given(&gate)) args.gate = gate_plane(&gate);
    run(s->ctx, &cmoei_add_shared_expert_table, rows, &args);
    return CMOE_OK;
}

cmoe_status cmoe_silu_mul(cmoe_stream *s, cmoe_view gate_up, int32_t interleaved, int32_t round_act,
                          cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_flag(interleaved, "interleaved", err));
    CMOEI_TRY(cmoei_check_flag(round_act, "round_act", err));
    CMOEI_TRY(cmoei_check_matrix(&gate_up, "gate_up", -1, -1, "2 * inter", err));
    if (gate_up.dims[1] % 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[1] = %" PRId64 ", want an even size (gate and up)",
                          cmoei_name(gate_up.name, "gate_up"), gate_up.dims[1]);
    const int64_t rows = gate_up.dims[0], inter = gate_up.dims[1] / 2;
    CMOEI_TRY(cmoei_check_matrix_out(&out, "out", rows, inter, "inter", err));
    CMOEI_TRY(cmoei_check_apart(&out, "out", &gate_up, "gate_up", err));
    if (rows == 0 || inter == 0) return CMOE_OK;
    cmoei_plane gate = cmoei_plane_of(&gate_up), up = gate;
    up.data = cmoei_plane_at(&gate, 0, interleaved ? 1 : inter);
    if (interleaved) gate.col = up.col = 2 * gate.col;
    const cmoei_gates_args args = {.x = up,
                                   .gate = gate,
                                   .out = cmoei_plane_mut(&out),
                                   .cols = inter,
                                   .round_dtype = round_act ? out.dtype : 0};
    run(s->ctx, &cmoei_silu_mul_table, rows, &args);
    return CMOE_OK;
}
