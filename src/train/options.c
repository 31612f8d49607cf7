/* SPDX-License-Identifier: MIT
 *
 * options.c - what a training is asked to be, checked.
 */
#include "options.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const cmoe_train_options defaults = {.size = sizeof defaults,
                                            .format = CMOE_F32,
                                            .steps = 1000,
                                            .units = 8,
                                            .sequences = 1,
                                            .length = 256,
                                            .optimizer = CMOE_OPTIMIZER_ADAMW,
                                            .schedule = CMOE_SCHEDULE_COSINE,
                                            .lr = 3e-4,
                                            .final_lr = -1,
                                            .beta1 = 0.9,
                                            .beta2 = 0.95,
                                            .eps = 1e-8,
                                            .weight_decay = 0.1,
                                            .momentum = -1,
                                            .clip = 1,
                                            .balance = 0.01f,
                                            .z_loss = 0.001f,
                                            .bias_rate = 0.001f,
                                            .rank = 16,
                                            .alpha = 32};

void cmoe_train_options_default(cmoe_train_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- ranges ------------------------------------------------------------------------------------ */

typedef struct real_range {
    const char *name;
    double value, least, most;
} real_range;

typedef struct int_range {
    const char *name;
    int64_t value, least, most;
} int_range;

static cmoe_status check_reals(const cmoe_train_options *o, cmoe_error *err)
{
    const real_range reals[] = {
        {"lr", o->lr, 0, 1e3},
        {"final_lr", o->final_lr, 0, 1e3},
        {"beta1", o->beta1, 0, 0.99999999},
        {"beta2", o->beta2, 0, 0.99999999},
        {"eps", o->eps, 0, 1},
        {"weight_decay", o->weight_decay, 0, 1e3},
        {"momentum", o->momentum, 0, 0.99999999},
        {"clip", o->clip, 0, 1e30},
        {"balance", (double)o->balance, 0, 1e3},
        {"z_loss", (double)o->z_loss, 0, 1e3},
        {"bias_rate", (double)o->bias_rate, 0, 1e3},
        {"dropout", (double)o->dropout, 0, 0.99},
        {"alpha", o->alpha, -1e6, 1e6},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(reals); i++) {
        const real_range *r = &reals[i];
        if (!(r->value >= r->least && r->value <= r->most))
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %g, want %g to %g", r->name, r->value,
                              r->least, r->most);
    }
    return CMOE_OK;
}

static cmoe_status check_ints(const cmoe_train_options *o, cmoe_error *err)
{
    const int_range ints[] = {
        {"steps", o->steps, 1, INT32_MAX},
        {"units", o->units, 1, CMOE_UNITS_MOST},
        {"sequences", o->sequences, 1, 1 << 20},
        {"length", o->length, 1, 1 << 20},
        {"pass", o->pass, 0, o->units},
        {"warmup", o->warmup, 0, o->steps},
        {"cooldown", o->cooldown, 0, o->steps},
        {"block", o->block, 0, 1 << 20},
        {"rank", o->rank, 1, 1 << 14},
        {"what", o->what, CMOE_TRAIN_ALL, CMOE_TRAIN_LORA},
        {"objective", o->objective, CMOE_OBJECTIVE_NEXT, CMOE_OBJECTIVE_DIFFUSION},
        {"optimizer", o->optimizer, CMOE_OPTIMIZER_ADAMW, CMOE_OPTIMIZER_MUON},
        {"schedule", o->schedule, CMOE_SCHEDULE_CONSTANT, CMOE_SCHEDULE_WSD},
        {"recompute", o->recompute, 0, 1},
        {"rslora", o->rslora, 0, 1},
    };
    for (int64_t i = 0; i < CMOEI_COUNT(ints); i++) {
        const int_range *r = &ints[i];
        if (r->value < r->least || r->value > r->most)
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %" PRId64 ", want %" PRId64 " to %" PRId64,
                              r->name, r->value, r->least, r->most);
    }
    if (o->cooldown > o->steps - o->warmup)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "cooldown = %" PRId64 ", want 0 to %" PRId64 " (steps less warmup)",
                          o->cooldown, o->steps - o->warmup);
    if (o->units & (o->units - 1))
        return cmoei_fail(err, CMOE_ERR_RANGE, "units = %" PRId64 ", want a power of two",
                          o->units);
    if (o->pass & (o->pass - 1))
        return cmoei_fail(err, CMOE_ERR_RANGE, "pass = %" PRId64 ", want a power of two, or 0",
                          o->pass);
    return CMOE_OK;
}

static cmoe_status check_formats(const cmoe_train_options *o, cmoe_error *err)
{
    if (o->format != CMOE_F32 && o->format != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "format %s (%d), want one of: f32 bf16",
                          cmoe_dtype_name(o->format), o->format);
    if (o->frozen && o->frozen != CMOE_F32 && o->frozen != CMOE_BF16 && o->frozen != CMOE_I8)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "frozen %s (%d), want one of: f32 bf16 i8",
                          cmoe_dtype_name(o->frozen), o->frozen);
    if (o->frozen && o->what != CMOE_TRAIN_LORA)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "frozen = %s without LoRA, where everything is trained",
                          cmoe_dtype_name(o->frozen));
    if (o->start && o->what != CMOE_TRAIN_LORA)
        return cmoei_fail(err, CMOE_ERR_ARG, "an adapter to go on with (start), and not LoRA");
    if (o->what == CMOE_TRAIN_LORA && o->optimizer == CMOE_OPTIMIZER_MUON)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "optimizer muon moves whole matrices, want adamw or sgd for LoRA");
    return CMOE_OK;
}

cmoe_status cmoei_train_options_read(cmoe_trainer *t, const cmoe_train_options *options,
                                     cmoe_error *err)
{
    cmoe_train_options *o = &t->o;
    *o = defaults;
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, options, "cmoe_train_options", err));
    if (o->final_lr < 0) o->final_lr = o->lr / 10;
    if (o->momentum < 0) o->momentum = o->optimizer == CMOE_OPTIMIZER_MUON ? 0.95 : 0;
    CMOEI_TRY(check_ints(o, err));
    CMOEI_TRY(check_reals(o, err));
    CMOEI_TRY(check_formats(o, err));
    const char *targets = o->targets;
    o->targets = NULL;
    if (!targets) return CMOE_OK;
    const int64_t bytes = (int64_t)strlen(targets) + 1;
    CMOEI_TRY(cmoei_alloc(t->ctx, bytes, "targets", (void **)&t->targets, err));
    memcpy(t->targets, targets, (size_t)bytes);
    o->targets = t->targets;
    return CMOE_OK;
}

/* ---- against the decoder ----------------------------------------------------------------------- */

static cmoe_status fit_diffusion(cmoe_trainer *t, cmoe_error *err)
{
    cmoe_train_options *o = &t->o;
    if (o->block == 0) o->block = t->d.mask;
    if (t->d.mask_token < 0)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "%s: it has no mask token (mask_token_id), which block diffusion needs",
                          t->path);
    if (o->block < 1)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "%s: it says no block length, want one (block) for block diffusion",
                          t->path);
    for (int64_t i = 0; i < t->d.layers; i++)
        if (t->d.layer[i].window > 0)
            return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                              "%s: layer %" PRId64 " has a window of %" PRId64
                              " positions, and block diffusion is trained without",
                              t->path, i, t->d.layer[i].window);
    return CMOE_OK;
}

cmoe_status cmoei_train_options_fit(cmoe_trainer *t, cmoe_error *err)
{
    cmoe_train_options *o = &t->o;
    if (o->length > t->d.context)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "length = %" PRId64 ", want at most %" PRId64
                          " (max_position_embeddings of %s)",
                          o->length, t->d.context, t->path);
    if (o->objective == CMOE_OBJECTIVE_DIFFUSION) CMOEI_TRY(fit_diffusion(t, err));
    const int64_t rows = o->length * (o->objective == CMOE_OBJECTIVE_DIFFUSION ? 2 : 1);
    int64_t all, logits;
    if (!cmoei_mul(rows, o->sequences, &all) || !cmoei_mul(all, o->units, &all) ||
        all > INT32_MAX / 4)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "units * sequences * length = %" PRId64 " * %" PRId64 " * %" PRId64
                          ", want less than 2^29 tokens a step",
                          o->units, o->sequences, o->length);
    /* As many units at a time as their logits fit into half a GiB. */
    if (o->pass > 0) return CMOE_OK;
    for (o->pass = o->units; o->pass > 1; o->pass /= 2)
        if (cmoei_mul(all / o->units * o->pass, t->d.vocab * 4, &logits) && logits <= 512 << 20)
            break;
    return CMOE_OK;
}
