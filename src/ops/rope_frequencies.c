/* SPDX-License-Identifier: MIT
 *
 * rope_frequencies.c - angles per position of each pair of rotated dimensions, by the rules that
 * published models use to read texts longer than those they were trained on.
 *
 *     plain_j = theta^(-2j / r), j = 0 .. r/2 - 1
 *
 * All of it in double, each frequency rounded to float32 once at the end.  pow and log are libm's:
 * they differ between machines by far less than half a float32 unit, so the rounded frequency is
 * the same wherever the exact value is not next to the middle between two floats.
 */
#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "cmoe/ops.h"
#include "core/core.h"

static const char *const kinds[] = {"default", "linear",   "dynamic",     "yarn",
                                    "llama3",  "longrope", "proportional"};

const char *cmoe_rope_kind_name(int32_t kind)
{
    return kind >= 0 && kind < CMOEI_COUNT(kinds) ? kinds[kind] : NULL;
}

int32_t cmoe_rope_kind_parse(const char *name)
{
    return cmoei_name_find(kinds, (int32_t)CMOEI_COUNT(kinds), name);
}

static const cmoe_rope_options defaults = {
    .size = sizeof defaults,
    .truncate = 1,
    .theta = 10000,
    .factor = 1,
    .beta_fast = 32,
    .beta_slow = 1,
    .low_frequency = 1,
    .high_frequency = 4,
    .partial = 1,
};

void cmoe_rope_options_default(cmoe_rope_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static const double pi = 3.14159265358979323846;
enum { MOST_DIM = 1 << 24 }; /* far more than heads have: a number read from the wrong place */

static bool finite(double x)
{
    return x - x == 0;
}

static cmoe_status check_positive(double x, const char *name, cmoe_error *err)
{
    if (x > 0 && finite(x)) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %g, want a finite number > 0", name, x);
}

static cmoe_status check_optional(double x, const char *name, cmoe_error *err)
{
    if (x >= 0 && finite(x)) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "%s = %g, want a finite number > 0, or 0: not given",
                      name, x);
}

static cmoe_status check_lengths(const cmoe_rope_options *o, cmoe_error *err)
{
    if (o->original < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "original = %" PRId64 ", want >= 1 (%s)",
                          o->original, kinds[o->kind]);
    if (o->length < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "length = %" PRId64 ", want >= 0", o->length);
    return CMOE_OK;
}

static cmoe_status check_dynamic(const cmoe_rope_options *o, cmoe_error *err)
{
    CMOEI_TRY(check_optional(o->alpha, "alpha", err));
    if (o->dim < 4)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "dim = %" PRId64
                          ", want >= 4 (dynamic: theta grows by the power dim / (dim - 2))",
                          o->dim);
    return o->alpha > 0 ? CMOE_OK : check_lengths(o, err);
}

static cmoe_status check_yarn(const cmoe_rope_options *o, cmoe_error *err)
{
    if (!(o->theta > 1))
        return cmoei_fail(err, CMOE_ERR_RANGE, "theta = %g, want > 1 (yarn divides by its log)",
                          o->theta);
    CMOEI_TRY(cmoei_check_flag(o->truncate, "truncate", err));
    CMOEI_TRY(check_positive(o->beta_fast, "beta_fast", err));
    CMOEI_TRY(check_positive(o->beta_slow, "beta_slow", err));
    CMOEI_TRY(check_optional(o->attention_factor, "attention_factor", err));
    CMOEI_TRY(check_optional(o->mscale, "mscale", err));
    CMOEI_TRY(check_optional(o->mscale_all_dim, "mscale_all_dim", err));
    return check_lengths(o, err);
}

static cmoe_status check_llama3(const cmoe_rope_options *o, cmoe_error *err)
{
    CMOEI_TRY(check_positive(o->low_frequency, "low_frequency", err));
    CMOEI_TRY(check_positive(o->high_frequency, "high_frequency", err));
    if (!(o->high_frequency > o->low_frequency))
        return cmoei_fail(err, CMOE_ERR_RANGE, "high_frequency = %g, want > %g (low_frequency)",
                          o->high_frequency, o->low_frequency);
    return check_lengths(o, err);
}

static cmoe_status check_factors(const float *factor, const char *name, int64_t n, cmoe_error *err)
{
    if (!factor)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL, want %" PRId64 " factors (dim / 2)", name,
                          n);
    for (int64_t j = 0; j < n; j++) {
        float f;
        cmoei_load_f32(&f, factor + j, CMOE_F32, 1, 1);
        if (!(f > 0) || !finite(f))
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s[%" PRId64 "] = %g, want a finite number > 0",
                              name, j, (double)f);
    }
    return CMOE_OK;
}

static cmoe_status check_longrope(const cmoe_rope_options *o, cmoe_error *err)
{
    CMOEI_TRY(check_lengths(o, err));
    if (o->original < 2)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "original = 1, want >= 2 (longrope divides by its log)");
    CMOEI_TRY(check_factors(o->short_factor, "short_factor", o->dim / 2, err));
    CMOEI_TRY(check_factors(o->long_factor, "long_factor", o->dim / 2, err));
    CMOEI_TRY(check_optional(o->attention_factor, "attention_factor", err));
    CMOEI_TRY(check_optional(o->short_amplitude, "short_amplitude", err));
    return check_optional(o->long_amplitude, "long_amplitude", err);
}

static cmoe_status check_options(const cmoe_rope_options *o, cmoe_error *err)
{
    if (!cmoe_rope_kind_name(o->kind))
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "kind = %d, want one of: 0 default, 1 linear, 2 dynamic, 3 yarn, "
                          "4 llama3, 5 longrope, 6 proportional",
                          o->kind);
    if (o->dim < 2 || o->dim % 2 || o->dim > MOST_DIM)
        return cmoei_fail(err, CMOE_ERR_RANGE, "dim = %" PRId64 ", want an even number, 2 to %d",
                          o->dim, MOST_DIM);
    CMOEI_TRY(check_positive(o->theta, "theta", err));
    CMOEI_TRY(check_positive(o->factor, "factor", err));
    switch (o->kind) {
    case CMOE_ROPE_DYNAMIC:
        return check_dynamic(o, err);
    case CMOE_ROPE_YARN:
        return check_yarn(o, err);
    case CMOE_ROPE_LLAMA3:
        return check_llama3(o, err);
    case CMOE_ROPE_LONGROPE:
        return check_longrope(o, err);
    case CMOE_ROPE_PROPORTIONAL:
        if (o->partial > 0 && o->partial <= 1) return CMOE_OK;
        return cmoei_fail(err, CMOE_ERR_RANGE, "partial = %g, want 0 < partial <= 1", o->partial);
    default:
        return CMOE_OK;
    }
}

/* ---- rules ----------------------------------------------------------------------------------- */

/* What is the same for every pair. */
typedef struct rule {
    const cmoe_rope_options *o;
    double theta;         /* as dynamic makes it */
    double low, high;     /* yarn: the ramp's ends, as indices of pairs */
    int64_t turning;      /* proportional: pairs that turn at all */
    const float *factors; /* longrope: the chosen set */
    double amplitude;
} rule;

/* theta * (f * L / P - (f - 1))^(r / (r - 2)): the lowest frequency of length L is what P has. */
static double dynamic_theta(const cmoe_rope_options *o)
{
    const double r = (double)o->dim, f = o->factor, trained = (double)o->original;
    const double length = fmax((double)o->length, trained);
    const double growth = o->alpha > 0 ? o->alpha : f * length / trained - (f - 1);
    return o->theta * pow(growth, r / (r - 2));
}

/* Index of the pair that turns `turns` times over the trained length. */
static double yarn_pair(const cmoe_rope_options *o, double turns)
{
    return (double)o->dim * log((double)o->original / (turns * 2 * pi)) / (2 * log(o->theta));
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static void yarn(rule *u)
{
    const cmoe_rope_options *o = u->o;
    const double low = yarn_pair(o, o->beta_fast), high = yarn_pair(o, o->beta_slow);
    u->low = fmax(o->truncate ? floor(low) : low, 0);
    u->high = fmin(o->truncate ? ceil(high) : high, (double)o->dim - 1);
    if (u->low == u->high) u->high += 0.001; /* a ramp needs a width */
    if (o->attention_factor > 0)
        u->amplitude = o->attention_factor;
    else if (o->mscale > 0 && o->mscale_all_dim > 0)
        u->amplitude = yarn_scale(o->factor, o->mscale) / yarn_scale(o->factor, o->mscale_all_dim);
    else
        u->amplitude = yarn_scale(o->factor, 1);
}

static void longrope(rule *u)
{
    const cmoe_rope_options *o = u->o;
    const bool beyond = o->length > o->original;
    const double given = beyond ? o->long_amplitude : o->short_amplitude;
    u->factors = beyond ? o->long_factor : o->short_factor;
    if (given > 0)
        u->amplitude = given;
    else if (o->attention_factor > 0)
        u->amplitude = o->attention_factor;
    else if (o->factor > 1)
        u->amplitude = sqrt(1 + log(o->factor) / log((double)o->original));
}

static rule make_rule(const cmoe_rope_options *o)
{
    rule u = {.o = o, .theta = o->theta, .amplitude = 1};
    if (o->kind == CMOE_ROPE_DYNAMIC) u.theta = dynamic_theta(o);
    if (o->kind == CMOE_ROPE_YARN) yarn(&u);
    if (o->kind == CMOE_ROPE_LONGROPE) longrope(&u);
    if (o->kind == CMOE_ROPE_PROPORTIONAL) u.turning = (int64_t)(o->partial * (double)o->dim) / 2;
    return u;
}

/* Short waves stay, long ones are stretched by the factor, those between in part. */
static double llama3(const cmoe_rope_options *o, double plain)
{
    const double wave = 2 * pi / plain, trained = (double)o->original;
    if (wave < trained / o->high_frequency) return plain;
    if (wave > trained / o->low_frequency) return plain / o->factor;
    const double keep =
        (trained / wave - o->low_frequency) / (o->high_frequency - o->low_frequency);
    return (1 - keep) * plain / o->factor + keep * plain;
}

static double frequency(const rule *u, int64_t j)
{
    const cmoe_rope_options *o = u->o;
    const double plain = pow(u->theta, -2.0 * (double)j / (double)o->dim);
    switch (o->kind) {
    case CMOE_ROPE_LINEAR:
        return plain / o->factor;
    case CMOE_ROPE_YARN: {
        const double ramp = fmin(fmax(((double)j - u->low) / (u->high - u->low), 0), 1);
        return plain / o->factor * ramp + plain * (1 - ramp);
    }
    case CMOE_ROPE_LLAMA3:
        return llama3(o, plain);
    case CMOE_ROPE_LONGROPE: {
        float f;
        cmoei_load_f32(&f, u->factors + j, CMOE_F32, 1, 1);
        return plain / f;
    }
    case CMOE_ROPE_PROPORTIONAL:
        return j < u->turning ? plain / o->factor : 0;
    default:
        return plain;
    }
}

/* Numbers that are each in range may still give together what float32 does not hold. */
static cmoe_status check_results(const rule *u, cmoe_error *err)
{
    for (int64_t j = 0; j < u->o->dim / 2; j++) {
        const double f = frequency(u, j);
        if (!(f <= FLT_MAX))
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "frequency %" PRId64 " = %g, want at most %g (theta = %g, factor = "
                              "%g)",
                              j, f, (double)FLT_MAX, u->theta, u->o->factor);
    }
    if (!(u->amplitude <= FLT_MAX))
        return cmoei_fail(err, CMOE_ERR_RANGE, "amplitude = %g, want at most %g", u->amplitude,
                          (double)FLT_MAX);
    return CMOE_OK;
}

static cmoe_status compute(const cmoe_rope_options *o, float *frequencies, float *amplitude,
                           cmoe_error *err)
{
    const rule u = make_rule(o);
    CMOEI_TRY(check_results(&u, err));
    for (int64_t j = 0; j < o->dim / 2; j++) {
        const float f = (float)frequency(&u, j);
        cmoei_store_f32(frequencies + j, CMOE_F32, 1, &f, 1);
    }
    const float a = (float)u.amplitude;
    cmoei_store_f32(amplitude, CMOE_F32, 1, &a, 1);
    return CMOE_OK;
}

cmoe_status cmoe_rope_frequencies(const cmoe_rope_options *options, float *frequencies,
                                  float *amplitude, cmoe_error *err)
{
    cmoe_rope_options o = defaults;
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "cmoe_rope_options", err));
    CMOEI_TRY(check_options(&o, err));
    if (!frequencies)
        return cmoei_fail(err, CMOE_ERR_ARG, "frequencies is NULL, want %" PRId64 " floats",
                          o.dim / 2);
    if (!amplitude) return cmoei_fail(err, CMOE_ERR_ARG, "amplitude is NULL, want one float");
    const uint64_t mode = cmoei_float_enter();
    const cmoe_status status = compute(&o, frequencies, amplitude, err);
    cmoei_float_leave(mode);
    return status;
}
