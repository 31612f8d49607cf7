/* SPDX-License-Identifier: MIT
 *
 * cross_entropy.c - cross-entropy and its gradient: checks and the table of kernels.
 */
#include "ops/cross_entropy.h"

#include <inttypes.h>

#include "ops/ops.h"

#define ROW(isa) \
    void cmoei_cross_entropy_##isa(const cmoei_cross_entropy_args *a, int64_t row, int64_t row_end)
#if CMOE_HAVE_AVX512
ROW(avx512);
#endif
#if CMOE_HAVE_AVX2
ROW(avx2);
#endif
ROW(ref);

static const cmoei_cross_entropy_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, 0}, cmoei_cross_entropy_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, 0}, cmoei_cross_entropy_avx2},
#endif
    {{"ref", 0, 0}, cmoei_cross_entropy_ref},
};
const cmoei_table cmoei_cross_entropy_table = CMOEI_TABLE("cross_entropy", kernels);

enum { COST = 16 }; /* of a logit, mostly the exponential */

typedef struct bound {
    cmoei_cross_entropy_args args;
    const cmoei_cross_entropy_kernel *kernel;
} bound;

static void run_rows(const void *arg, int64_t row, int64_t row_end)
{
    const bound *b = arg;
    b->kernel->run(&b->args, row, row_end);
}

static cmoe_status check_targets(const cmoe_view *targets, int64_t vocab, cmoe_error *err)
{
    for (int64_t t = 0; t < targets->dims[0]; t++) {
        const int64_t id = cmoei_load_index(cmoei_at(targets, t, 0), targets->dtype);
        if (id >= vocab)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "%s[%" PRId64 "] = %" PRId64 ", want below %" PRId64
                              " (vocab), or negative for none",
                              cmoei_name(targets->name, "targets"), t, id, vocab);
    }
    return CMOE_OK;
}

static cmoei_want tokens_want(const char *name, uint32_t dtypes, const cmoe_view *logits)
{
    return (cmoei_want){.name = name,
                        .dtypes = dtypes,
                        .rank = 1,
                        .dims = {logits->dims[0]},
                        .dim_names = {"tokens"}};
}

static cmoe_status check_inputs(const cmoe_view *logits, const cmoe_view *targets,
                                const cmoe_view *scale, bool gradient, cmoe_error *err)
{
    const cmoei_want want = {
        .name = "logits", .rank = 2, .dims = {-1, -1}, .dim_names = {"tokens", "vocab"}};
    CMOEI_TRY(cmoei_check_rows(logits, &want, err));
    const cmoei_want want_targets = tokens_want("targets", CMOEI_INDEX, logits);
    const cmoei_want want_scale = tokens_want("scale", 0, logits);
    CMOEI_TRY(cmoei_check_in(targets, &want_targets, err));
    if (gradient) CMOEI_TRY(cmoei_check_rows(scale, &want_scale, err));
    return CMOE_OK;
}

/* Views that are not given have no address to overlap with. */
static cmoe_status check_outputs(const cmoe_view *logits, const cmoe_view *targets,
                                 const cmoe_view *scale, const cmoe_view_mut *loss,
                                 const cmoe_view_mut *dlogits, cmoe_error *err)
{
    const cmoe_view l = cmoe_view_of(*loss), d = cmoe_view_of(*dlogits);
    const cmoei_want want_loss = tokens_want("loss", 0, logits);
    const cmoei_want want = {.name = "dlogits",
                             .rank = 2,
                             .dims = {logits->dims[0], logits->dims[1]},
                             .dim_names = {"tokens", "vocab"}};
    if (cmoei_given(&l)) {
        CMOEI_TRY(cmoei_check_rows_out(loss, &want_loss, err));
        CMOEI_TRY(cmoei_check_apart(loss, "loss", logits, "logits", err));
        CMOEI_TRY(cmoei_check_apart(loss, "loss", targets, "targets", err));
        CMOEI_TRY(cmoei_check_apart(loss, "loss", scale, "scale", err));
        CMOEI_TRY(cmoei_check_apart(loss, "loss", &d, "dlogits", err));
    }
    if (!cmoei_given(&d)) return CMOE_OK;
    CMOEI_TRY(cmoei_check_rows_out(dlogits, &want, err));
    CMOEI_TRY(cmoei_check_in_place(dlogits, "dlogits", logits, "logits", err));
    CMOEI_TRY(cmoei_check_apart(dlogits, "dlogits", targets, "targets", err));
    return cmoei_check_apart(dlogits, "dlogits", scale, "scale", err);
}

/* [T] as rows of one column. */
static cmoei_plane down(const cmoe_view *v)
{
    cmoei_plane p = {.data = (char *)(uintptr_t)v->data, .col = 1, .dtype = v->dtype};
    p.step = (int64_t)sizeof(float);
    return p;
}

cmoe_status cmoe_cross_entropy(cmoe_stream *s, cmoe_view logits, cmoe_view targets, cmoe_view scale,
                               cmoe_view_mut loss, cmoe_view_mut dlogits, cmoe_error *err)
{
    const cmoe_view l = cmoe_view_of(loss), d = cmoe_view_of(dlogits);
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(check_inputs(&logits, &targets, &scale, cmoei_given(&d), err));
    CMOEI_TRY(check_outputs(&logits, &targets, &scale, &loss, &dlogits, err));
    CMOEI_TRY(check_targets(&targets, logits.dims[1], err));
    const int64_t tokens = logits.dims[0], vocab = logits.dims[1];
    if (tokens == 0) return CMOE_OK;
    bound b = {.args = {.logits = cmoei_plane_of(&logits),
                        .dlogits = cmoei_plane_of(&d),
                        .scale = down(&scale),
                        .loss = down(&l),
                        .targets = targets,
                        .vocab = vocab},
               .kernel = cmoei_table_pick(&cmoei_cross_entropy_table, s->ctx->features, 0)};
    b.args.logits.col = b.args.dlogits.col = 1; /* of one column the stride may be anything */
    cmoei_rows_run(s->ctx, tokens, COST * (double)tokens * (double)vocab, run_rows, &b);
    return CMOE_OK;
}
