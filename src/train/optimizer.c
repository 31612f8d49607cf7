/* SPDX-License-Identifier: MIT
 *
 * optimizer.c - learning rates, the norm of a gradient, and a step of every tensor.
 */
#include "optimizer.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cmoe/ops.h"
#include "muon.h"

struct cmoei_optimizer {
    cmoe_ctx *ctx;
    cmoe_train_options o;
    cmoei_muon muon;
};

int32_t cmoei_optimizer_states(const cmoe_train_options *o, bool orthogonal)
{
    if (o->optimizer == CMOE_OPTIMIZER_SGD) return o->momentum > 0;
    return o->optimizer == CMOE_OPTIMIZER_MUON && orthogonal ? 1 : 2;
}

/* ---- learning rates ---------------------------------------------------------------------------- */

/* Warm-up is linear from 0, whose first step is lr / warmup and whose last is lr.  Then
 *     constant  lr
 *     cosine    half a period, down to final_lr in the last step
 *     wsd       lr, and a line down to final_lr over the last `cooldown` steps
 * A step behind the last one has what the last one had. */
double cmoei_learning_rate(const cmoe_train_options *o, int64_t step)
{
    const double pi = 3.14159265358979323846;
    step = CMOEI_MIN(step, o->steps);
    if (step <= o->warmup) return o->lr * (double)step / (double)o->warmup;
    if (o->schedule == CMOE_SCHEDULE_COSINE) {
        const double done = (double)(step - o->warmup) / (double)(o->steps - o->warmup);
        return o->final_lr + (o->lr - o->final_lr) * 0.5 * (1 + cos(pi * done));
    }
    const int64_t down = step - (o->steps - o->cooldown);
    if (o->schedule == CMOE_SCHEDULE_WSD && down > 0)
        return o->lr + (o->final_lr - o->lr) * ((double)down / (double)o->cooldown);
    return o->lr;
}

/* ---- norm -------------------------------------------------------------------------------------- */

cmoe_status cmoei_gradient_norm(cmoe_stream *s, const cmoei_trained *tensors, int64_t count,
                                double *norm, cmoe_error *err)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        const cmoei_trained *t = &tensors[i];
        const uint64_t before = cmoei_float_enter();
        double own = 0;
        const cmoe_status status =
            cmoe_sum_squares(s, cmoe_view_2d(t->gradient, CMOE_F32, t->rows, t->cols), &own, err);
        sum += own;
        cmoei_float_leave(before);
        CMOEI_TRY(status);
    }
    *norm = sqrt(sum);
    return CMOE_OK;
}

/* ---- a step ------------------------------------------------------------------------------------ */

cmoe_status cmoei_optimizer_create(cmoei_optimizer **out, cmoe_ctx *ctx,
                                   const cmoe_train_options *o, const cmoei_trained *tensors,
                                   int64_t count, cmoe_error *err)
{
    cmoei_optimizer *x;
    CMOEI_TRY(cmoei_alloc(ctx, sizeof *x, "optimizer", (void **)&x, err));
    memset(x, 0, sizeof *x);
    x->ctx = ctx;
    x->o = *o;
    const cmoe_status status = cmoei_muon_create(&x->muon, ctx, tensors, count, err);
    if (status != CMOE_OK) {
        cmoei_optimizer_free(x);
        return status;
    }
    *out = x;
    return CMOE_OK;
}

void cmoei_optimizer_free(cmoei_optimizer *x)
{
    if (!x) return;
    cmoei_muon_free(&x->muon);
    cmoei_free(x->ctx, x, sizeof *x);
}

int64_t cmoei_optimizer_bytes(const cmoei_optimizer *x)
{
    return x->muon.bytes;
}

typedef struct rates {
    double lr, scale;
    int64_t step;
} rates;

static cmoe_status move(cmoei_optimizer *x, cmoe_stream *s, const cmoei_trained *t, const rates *r,
                        cmoe_error *err)
{
    const cmoe_train_options *o = &x->o;
    const double decay = t->decay ? o->weight_decay : 0;
    const cmoe_view gradient = cmoe_view_2d(t->gradient, CMOE_F32, t->rows, t->cols);
    cmoe_view_mut value = cmoe_view_mut_2d(t->value, CMOE_F32, t->rows, t->cols);
    cmoe_view_mut m =
        t->m ? cmoe_view_mut_2d(t->m, CMOE_F32, t->rows, t->cols) : cmoe_view_mut_none();
    value.name = t->name;
    if (o->optimizer == CMOE_OPTIMIZER_MUON && t->orthogonal) {
        const cmoei_muon_rates muon = {r->lr, decay, o->momentum, r->scale};
        return cmoei_muon_step(&x->muon, s, t, &muon, err);
    }
    if (o->optimizer == CMOE_OPTIMIZER_SGD) {
        const cmoe_sgd_options sgd = {.size = sizeof sgd,
                                      .lr = r->lr,
                                      .momentum = o->momentum,
                                      .decay = decay,
                                      .scale = r->scale,
                                      .step = r->step};
        return cmoe_sgd(s, &sgd, gradient, value, m, err);
    }
    const cmoe_adamw_options adamw = {.size = sizeof adamw,
                                      .lr = r->lr,
                                      .beta1 = o->beta1,
                                      .beta2 = o->beta2,
                                      .eps = o->eps,
                                      .decay = decay,
                                      .scale = r->scale,
                                      .step = r->step};
    return cmoe_adamw(s, &adamw, gradient, value, m,
                      cmoe_view_mut_2d(t->v, CMOE_F32, t->rows, t->cols), err);
}

cmoe_status cmoei_optimizer_step(cmoei_optimizer *x, cmoe_stream *s, const cmoei_trained *tensors,
                                 int64_t count, int64_t step, double scale, cmoe_error *err)
{
    if (step < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "step = %" PRId64 ", want at least 1", step);
    const uint64_t before = cmoei_float_enter();
    const rates r = {cmoei_learning_rate(&x->o, step), scale, step};
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0; i < count && status == CMOE_OK; i++)
        status = move(x, s, &tensors[i], &r, err);
    cmoei_float_leave(before);
    return status;
}
