/* SPDX-License-Identifier: MIT
 *
 * experts.c - cmoe_experts: options, checks of the weights against each other, and packing.
 *
 * Everything that can be wrong with a configuration is found here and not in the first forward.
 */
#include <inttypes.h>
#include <string.h>

#include "experts.h"

static const cmoe_experts_options defaults = {.size = sizeof defaults};

void cmoe_experts_options_default(cmoe_experts_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static cmoe_status check_options(cmoe_experts_options *o, cmoe_error *err)
{
    if (!cmoe_activation_name(o->activation))
        return cmoei_fail(
            err, CMOE_ERR_RANGE,
            "activation = %d unknown, want one of: silu (0) gelu_tanh (1) swiglu_oss (2) relu2 (3)",
            o->activation);
    if (o->ungated && o->activation == CMOE_ACT_SWIGLU_OSS)
        return cmoei_fail(
            err, CMOE_ERR_UNSUPPORTED,
            "activation \"swiglu_oss\" needs gate and up, want another one with ungated experts");
    const struct {
        int32_t value;
        const char *name;
    } flags[] = {{o->ungated, "ungated"},         {o->up_first, "up_first"},
                 {o->interleaved, "interleaved"}, {o->transposed, "transposed"},
                 {o->borrow, "borrow"},           {o->round_gate_up, "round_gate_up"},
                 {o->round_act, "round_act"}};
    for (int64_t i = 0; i < CMOEI_COUNT(flags); i++)
        CMOEI_TRY(cmoei_check_flag(flags[i].value, flags[i].name, err));
    if (!(o->swiglu_limit >= 0) || o->swiglu_limit > 3e38f)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "swiglu_limit = %g, want 0 (none) or a positive number",
                          (double)o->swiglu_limit);
    if (!(o->alpha > -3e38f && o->alpha < 3e38f))
        return cmoei_fail(err, CMOE_ERR_RANGE, "alpha = %g, want a finite number (0: 1.702)",
                          (double)o->alpha);
    if (o->row_dtype == 0) o->row_dtype = CMOE_F32;
    if (o->row_dtype != CMOE_F32 && o->row_dtype != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "row_dtype %s (%d) not supported, want one of: f32 bf16",
                          cmoe_dtype_name(o->row_dtype), o->row_dtype);
    if (o->weight_at != CMOE_WEIGHT_COMBINE && o->weight_at != CMOE_WEIGHT_ROW)
        return cmoei_fail(err, CMOE_ERR_RANGE, "weight_at = %d, want combine (0) or row (1)",
                          o->weight_at);
    if (o->first_expert < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "first_expert = %" PRId64 ", want >= 0",
                          o->first_expert);
    if (o->chunk < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "chunk = %" PRId64 ", want > 0 tokens, or 0 for the default", o->chunk);
    if (o->alpha == 0) o->alpha = 1.702f;
    if (o->chunk == 0) o->chunk = 2048;
    return CMOE_OK;
}

/* w2 must be [E, H, I] for what w13 says of E, H and I. */
static cmoe_status check_pair(const cmoe_experts_options *o, const cmoe_view *w13,
                              const cmoe_view *w2, cmoe_error *err)
{
    const uint32_t stored = CMOEI_FLOATS | CMOEI_DTYPE(CMOE_F8E4M3) | CMOEI_DTYPE(CMOE_I8);
    const char *rows = o->ungated ? "inter" : "2*inter";
    cmoei_want want = {"w13", stored, 3, {-1, -1, -1}, {"experts", rows, "hidden"}};
    if (o->transposed) {
        want.dim_names[1] = "hidden";
        want.dim_names[2] = rows;
    }
    CMOEI_TRY(cmoei_check_in(w13, &want, err));
    if (w13->dims[0] == 0)
        return cmoei_fail(err, CMOE_ERR_SHAPE, "%s: dims[0] = 0, want at least 1 expert",
                          cmoei_name(w13->name, "w13"));
    const int64_t both = w13->dims[o->transposed ? 2 : 1],
                  hidden = w13->dims[o->transposed ? 1 : 2];
    if (!o->ungated && both % 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "%s: dims[%d] = %" PRId64 ", want an even number (gate rows and up rows)",
                          cmoei_name(w13->name, "w13"), o->transposed ? 2 : 1, both);
    const int64_t inter = o->ungated ? both : both / 2;
    cmoei_want down = {
        "w2", stored, 3, {w13->dims[0], hidden, inter}, {"experts", "hidden", "inter"}};
    if (o->transposed) {
        down.dims[1] = inter;
        down.dims[2] = hidden;
        down.dim_names[1] = "inter";
        down.dim_names[2] = "hidden";
    }
    CMOEI_TRY(cmoei_check_in(w2, &down, err));
    if ((w13->dtype == CMOE_I8) != (w2->dtype == CMOE_I8))
        return cmoei_fail(err, CMOE_ERR_DTYPE, "%s is %s and %s is %s, want both i8 or neither",
                          cmoei_name(w13->name, "w13"), cmoe_dtype_name(w13->dtype),
                          cmoei_name(w2->name, "w2"), cmoe_dtype_name(w2->dtype));
    if (o->first_expert > INT64_MAX - w13->dims[0])
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "first_expert = %" PRId64 ", want one that fits %" PRId64 " experts",
                          o->first_expert, w13->dims[0]);
    return CMOE_OK;
}

static cmoe_status pack(cmoe_experts *x, const cmoe_view *w13, const cmoe_view *w2,
                        const cmoe_view *bias13, const cmoe_view *bias2, cmoe_error *err)
{
    cmoe_matrix_options m;
    cmoe_matrix_options_default(&m, sizeof m);
    m.format = x->o.format;
    m.transposed = x->o.transposed;
    m.borrow = x->o.borrow;
    m.scale = x->o.scale13;
    m.scale.name = cmoei_name(m.scale.name, "scale13");
    const cmoei_gate gate = {!x->o.ungated, x->o.interleaved != 0, x->o.up_first != 0};
    CMOEI_TRY(cmoei_matrix_create(&x->w13, x->ctx, &m, gate, *w13, "w13", *bias13, "bias13", err));
    m.format = x->w13->kernel->v.dtype; /* where nobody named one, w13 decides for both */
    m.scale = x->o.scale2;
    m.scale.name = cmoei_name(m.scale.name, "scale2");
    return cmoei_matrix_create(&x->w2, x->ctx, &m, (cmoei_gate){0}, *w2, "w2", *bias2, "bias2",
                               err);
}

/* What follows from packed matrices. */
static void finish(cmoe_experts *x)
{
    const cmoe_experts_options *o = &x->o;
    x->hidden = x->w2->outputs;
    x->inter = x->w2->inputs;
    x->o.format = x->w2->kernel->v.dtype;
    memset(&x->o.scale13, 0, sizeof x->o.scale13);
    memset(&x->o.scale2, 0, sizeof x->o.scale2);
    x->epilogue = cmoei_table_pick(&cmoei_epilogue_table, x->ctx->features, 0);
    x->activation = (cmoei_activation){.kind = o->activation,
                                       .gated = !o->ungated,
                                       .round_gate_up = o->round_gate_up,
                                       .round_act = o->round_act,
                                       .round_out = o->format == CMOE_BF16,
                                       .limit = o->swiglu_limit,
                                       .alpha = o->alpha};
}

cmoe_status cmoei_experts_read_options(cmoe_experts_options *o, const cmoe_experts_options *given,
                                       cmoe_error *err)
{
    *o = defaults;
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, given, "cmoe_experts_options", err));
    return check_options(o, err);
}

cmoe_status cmoe_experts_create(cmoe_experts **out, cmoe_ctx *ctx,
                                const cmoe_experts_options *options, cmoe_view w13, cmoe_view w2,
                                cmoe_view bias13, cmoe_view bias2, cmoe_error *err)
{
    cmoe_experts_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_experts_options", err));
    if (!out || !ctx)
        return cmoei_fail(err, CMOE_ERR_ARG, "experts: %s is NULL", out ? "ctx" : "out");
    CMOEI_TRY(check_options(&o, err));
    CMOEI_TRY(check_pair(&o, &w13, &w2, err));
    cmoe_experts *x = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *x, "experts", (void **)&x, err));
    *x = (cmoe_experts){.ctx = ctx, .o = o, .count = w13.dims[0]};
    const cmoe_status status = pack(x, &w13, &w2, &bias13, &bias2, err);
    if (status != CMOE_OK) {
        cmoe_experts_free(x);
        return status;
    }
    finish(x);
    *out = x;
    return CMOE_OK;
}

static cmoe_status around(cmoe_experts **out, cmoe_ctx *ctx, const cmoe_experts_options *options,
                          cmoe_matrix *w13, cmoe_matrix *w2, cmoe_error *err)
{
    cmoe_experts_options o = defaults;
    cmoe_experts *x;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_experts_options", err));
    CMOEI_TRY(check_options(&o, err));
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *x, "experts", (void **)&x, err));
    *x = (cmoe_experts){.ctx = ctx, .o = o, .count = w13->count, .w13 = w13, .w2 = w2};
    finish(x);
    *out = x;
    return CMOE_OK;
}

cmoe_status cmoei_experts_around(cmoe_experts **out, cmoe_ctx *ctx, const cmoe_experts_options *o,
                                 cmoe_matrix *w13, cmoe_matrix *w2, cmoe_error *err)
{
    const cmoe_status status = around(out, ctx, o, w13, w2, err);
    if (status != CMOE_OK) {
        cmoe_matrix_free(w13);
        cmoe_matrix_free(w2);
    }
    return status;
}

void cmoe_experts_free(cmoe_experts *x)
{
    if (!x) return;
    cmoe_matrix_free(x->w13);
    cmoe_matrix_free(x->w2);
    cmoei_free(x->ctx, x, (int64_t)sizeof *x);
}

void cmoe_experts_info_default(cmoe_experts_info *info, size_t size)
{
    const cmoe_experts_info d = {.size = sizeof d};
    cmoei_options_write(info, size, &d, sizeof d);
}

cmoe_status cmoe_experts_describe(const cmoe_experts *x, cmoe_experts_info *info, cmoe_error *err)
{
    if (!x || !info || info->size < sizeof(size_t))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "experts_describe: %s, want both, info.size = sizeof *info",
                          !x      ? "experts is NULL"
                          : !info ? "info is NULL"
                                  : "info.size is not set");
    const int64_t bytes = cmoe_matrix_weight_bytes(x->w13) + cmoe_matrix_weight_bytes(x->w2);
    const cmoe_experts_info i = {.size = sizeof i,
                                 .experts = x->count,
                                 .hidden = x->hidden,
                                 .inter = x->inter,
                                 .first_expert = x->o.first_expert,
                                 .format = x->o.format,
                                 .row_dtype = x->o.row_dtype,
                                 .weight_bytes = bytes,
                                 .expert_weight_bytes = x->count ? bytes / x->count : 0,
                                 .variant = x->w2->kernel->v.name};
    cmoei_options_write(info, info->size, &i, sizeof i);
    return CMOE_OK;
}
