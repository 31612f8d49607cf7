/* SPDX-License-Identifier: MIT
 *
 * diffusion_settings.c - settings of block diffusion: defaults, names, checks.
 */
#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "engine/diffusion.h"

static const char *const names[] = {[CMOE_REMASK_LOW_CONFIDENCE_DYNAMIC] = "low_confidence_dynamic",
                                    [CMOE_REMASK_LOW_CONFIDENCE_STATIC] = "low_confidence_static",
                                    [CMOE_REMASK_SEQUENTIAL] = "sequential",
                                    [CMOE_REMASK_ENTROPY_BOUNDED] = "entropy_bounded"};

const char *cmoe_remasking_name(int32_t remasking)
{
    return remasking >= 0 && remasking < CMOEI_COUNT(names) ? names[remasking] : NULL;
}

int32_t cmoe_remasking_parse(const char *name)
{
    return cmoei_name_find(names, (int32_t)CMOEI_COUNT(names), name);
}

void cmoe_diffusion_default(cmoe_diffusion *d, size_t size)
{
    const cmoe_diffusion o = {.size = sizeof o,
                              .threshold = 0.85f,
                              .eb = 0.35f,
                              .buffer = 1,
                              .add_block = 0.1f,
                              .semi_complete = 0.9f,
                              .accept = 0.95f,
                              .mask_token = -1};
    cmoei_options_write(d, size, &o, sizeof o);
}

static cmoe_status check_share(const char *name, float value, cmoe_error *err)
{
    if (value >= 0 && value <= 1) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "diffusion.%s = %g, want 0 to 1", name, (double)value);
}

static cmoe_status check_count(const char *name, int64_t value, int64_t least, int64_t most,
                               const char *what, cmoe_error *err)
{
    if (value >= least && value <= most) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE,
                      "diffusion.%s = %" PRId64 ", want %" PRId64 " to %" PRId64 "%s", name, value,
                      least, most, what);
}

/* The model's attention has blocks, and of this length. */
static cmoe_status check_block(const cmoe_diffusion *d, const cmoe_model_info *m, cmoe_error *err)
{
    if (m->mask <= 0)
        return cmoei_fail(
            err, CMOE_ERR_UNSUPPORTED,
            "block diffusion needs a block-causal model, and one of type %s was loaded "
            "%s, want mask_block of 4, 8, 16, 32 or 64 when it is loaded",
            m->type, m->mask == CMOE_MASK_CAUSAL ? "causal" : "with a full mask");
    if (d->block < 4 || d->block > CMOEI_DIFFUSION_BLOCK || CMOE_KV_PAGE % d->block != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "diffusion.block = %" PRId64 ", want 4, 8, 16, 32 or 64", d->block);
    if (d->block != m->mask)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "diffusion.block = %" PRId64 ", want %d: with blocks of that length the "
                          "model was loaded (mask_block)",
                          d->block, m->mask);
    return CMOE_OK;
}

static cmoe_status check_remasking(const cmoe_diffusion *d, cmoe_error *err)
{
    if (cmoe_remasking_name(d->remasking)) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE,
                      "diffusion.remasking = %d, want one of: %s (0), %s (1), %s (2), %s (3)",
                      d->remasking, names[0], names[1], names[2], names[3]);
}

static cmoe_status check_mask_token(const cmoe_diffusion *d, const cmoe_model_info *m,
                                    cmoe_error *err)
{
    if (d->mask_token == -1)
        return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                          "a model of type %s says no mask token, want one in diffusion.mask_token",
                          m->type);
    if (d->mask_token < 0 || d->mask_token >= m->vocab)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "diffusion.mask_token = %" PRId64 ", want 0 <= id < %" PRId64
                          " (vocab), or -1 for the model's",
                          d->mask_token, m->vocab);
    return CMOE_OK;
}

cmoe_status cmoei_diffusion_read(cmoe_diffusion *out, const cmoe_diffusion *in,
                                 const cmoe_model_info *m, cmoe_error *err)
{
    cmoe_diffusion d;
    cmoe_diffusion_default(&d, sizeof d);
    CMOEI_TRY(cmoei_options_read(&d, sizeof d, in, "cmoe_diffusion", err));
    if (d.block == 0) d.block = m->mask;
    if (d.mask_token == -1) d.mask_token = m->mask_token;
    CMOEI_TRY(check_block(&d, m, err));
    if (d.steps == 0) d.steps = d.block;
    CMOEI_TRY(check_count("steps", d.steps, 1, d.block, " (block)", err));
    CMOEI_TRY(check_remasking(&d, err));
    CMOEI_TRY(check_share("threshold", d.threshold, err));
    if (!(d.eb >= 0 && d.eb <= FLT_MAX))
        return cmoei_fail(err, CMOE_ERR_RANGE, "diffusion.eb = %g, want a number >= 0",
                          (double)d.eb);
    CMOEI_TRY(check_count("buffer", d.buffer, 1, CMOEI_DIFFUSION_SPAN / d.block,
                          " (blocks of 256 positions)", err));
    CMOEI_TRY(check_share("add_block", d.add_block, err));
    CMOEI_TRY(check_share("semi_complete", d.semi_complete, err));
    CMOEI_TRY(check_share("accept", d.accept, err));
    CMOEI_TRY(check_mask_token(&d, m, err));
    CMOEI_TRY(check_count("max_forwards", d.max_forwards, 0, INT64_MAX, " (0: any)", err));
    CMOEI_TRY(check_count("max_repeats", d.max_repeats, 0, INT64_MAX, " (0: never)", err));
    *out = d;
    return CMOE_OK;
}
