/* SPDX-License-Identifier: MIT
 *
 * config_rope.c - rotary positions of config.json -> cmoe_rope_options.
 *
 * Two forms are met:
 *
 *     old   rope_theta, rope_scaling: null or {type | rope_type, factor, ...}, partial_rotary_factor
 *     new   rope_parameters: {rope_type, rope_theta, partial_rotary_factor, factor, ...}
 *
 * Where both are, the new one counts; keys that it lacks are then looked for beside it.  What the
 * numbers do is in cmoe/ops.h.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "config.h"
#include "text.h"

#define MOST 1e15 /* of theta and factors; far beyond every model, and finite as float32 */

/* ---- kinds ----------------------------------------------------------------------------------- */

/* Positions it was trained on before scaling; the key stands inside, or beside (Phi). */
static int64_t original(cmoei_config *c, cmoei_config *s, const cmoei_decoder *d)
{
    const char *key = "original_max_position_embeddings";
    const int64_t beside = cmoei_config_int(c, key, 1, INT32_MAX, d->context);
    return cmoei_config_int(s, key, 1, INT32_MAX, beside);
}

static double required_factor(cmoei_config *s)
{
    if (!cmoei_config_has(s, "factor")) cmoei_config_fail(s, CMOE_ERR_FORMAT, "factor is missing");
    return cmoei_config_real(s, "factor", 1e-3, MOST, 1);
}

static void read_dynamic(cmoei_config *s, const cmoei_decoder *d, cmoe_rope_options *o)
{
    o->original = d->context;
    o->alpha = cmoei_config_real(s, "alpha", 0, MOST, 0); /* Hunyuan */
    if (o->alpha == 0) o->factor = required_factor(s);
}

static void read_yarn(cmoei_config *c, cmoei_config *s, const cmoei_decoder *d,
                      cmoe_rope_options *o)
{
    o->original = original(c, s, d);
    o->factor =
        cmoei_config_real(s, "factor", 1e-3, MOST, (double)d->context / (double)o->original);
    o->beta_fast = cmoei_config_real(s, "beta_fast", 0, MOST, 0);
    o->beta_slow = cmoei_config_real(s, "beta_slow", 0, MOST, 0);
    if (o->beta_fast == 0) o->beta_fast = 32;
    if (o->beta_slow == 0) o->beta_slow = 1;
    o->truncate = cmoei_config_bool(s, "truncate", true);
    o->attention_factor = cmoei_config_real(s, "attention_factor", 1e-3, 1e3, 0);
    o->mscale = cmoei_config_real(s, "mscale", 0, 1e3, 0);
    o->mscale_all_dim = cmoei_config_real(s, "mscale_all_dim", 0, 1e3, 0);
}

static void read_llama3(cmoei_config *c, cmoei_config *s, const cmoei_decoder *d,
                        cmoe_rope_options *o)
{
    o->original = original(c, s, d);
    o->factor = required_factor(s);
    o->low_frequency = cmoei_config_real(s, "low_freq_factor", 1e-3, MOST, 1);
    o->high_frequency = cmoei_config_real(s, "high_freq_factor", 1e-3, MOST, 4);
    if (o->high_frequency <= o->low_frequency)
        cmoei_config_fail(s, CMOE_ERR_FORMAT,
                          "high_freq_factor = %g, want more than %g "
                          "(low_freq_factor)",
                          o->high_frequency, o->low_frequency);
}

/* ---- longrope: a list of factors ------------------------------------------------------------- */

static void read_factors(cmoei_config *s, const char *key, float *out, int64_t n)
{
    const json_t *list = json_object_get(s->root, key);
    if (!json_is_array(list) || json_array_size(list) != (size_t)n) {
        cmoei_config_fail(s, CMOE_ERR_FORMAT, "%s: want a list of %" PRId64 " numbers", key, n);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        const json_t *value = json_array_get(list, (size_t)j);
        const double x = json_number_value(value);
        if (json_is_number(value) && x >= 1e-6 && x <= MOST) {
            out[j] = (float)x;
            continue;
        }
        cmoei_config_fail(s, CMOE_ERR_FORMAT, "%s[%" PRId64 "]: want a number from %g to %g", key,
                          j, 1e-6, MOST);
        return;
    }
}

static void read_longrope(cmoei_config *c, cmoei_config *s, cmoei_decoder *d, cmoe_rope_options *o)
{
    void *factors;
    o->original = original(c, s, d);
    const double stretch = (double)d->context / (double)o->original;
    o->factor = cmoei_config_real(s, "factor", 1e-3, MOST, stretch);
    o->attention_factor = cmoei_config_real(s, "attention_factor", 1e-3, 1e3, 0);
    o->short_amplitude = cmoei_config_real(s, "short_mscale", 1e-3, 1e3, 0);
    o->long_amplitude = cmoei_config_real(s, "long_mscale", 1e-3, 1e3, 0);
    if (s->status != CMOE_OK) return;
    s->status = cmoei_alloc(s->ctx, o->dim * (int64_t)sizeof *d->factors, "rotary factors",
                            &factors, s->err);
    if (s->status != CMOE_OK) return;
    d->factors = factors;
    read_factors(s, "short_factor", d->factors, o->dim / 2);
    read_factors(s, "long_factor", d->factors + o->dim / 2, o->dim / 2);
    o->short_factor = d->factors;
    o->long_factor = d->factors + o->dim / 2;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static int32_t read_kind(cmoei_config *s)
{
    const bool given = cmoei_config_has(s, "rope_type|type");
    if (!given && cmoei_config_has(s, "factor"))
        cmoei_config_fail(s, CMOE_ERR_FORMAT, "rope_type is missing");
    const char *name = cmoei_config_text(s, "rope_type|type", "default");
    if (strcmp(name, "su") == 0) name = "longrope"; /* its first name */
    const int32_t kind = cmoe_rope_kind_parse(name);
    if (kind >= 0) return kind;
    char clean[64];
    cmoei_text_list known = {.between = " "};
    for (int32_t i = 0; cmoe_rope_kind_name(i); i++)
        cmoei_text_add(&known, cmoe_rope_kind_name(i));
    cmoei_text_clean(clean, sizeof clean, name);
    cmoei_config_fail(s, CMOE_ERR_UNSUPPORTED, "rope_type = \"%s\", want one of: %s", clean,
                      cmoei_text_end(&known));
    return CMOE_ROPE_DEFAULT;
}

/* Dimensions of a head that turn; models with several sets of frequencies are not here yet. */
static int64_t read_dim(cmoei_config *c, cmoei_config *s, const cmoei_decoder *d, double partial)
{
    const int64_t given = cmoei_config_int(c, "rotary_dim", 2, d->head_dim, 0);
    const int64_t dim = given ? given : (int64_t)((double)d->head_dim * partial);
    if (dim < 2 || dim % 2)
        cmoei_config_fail(s, CMOE_ERR_FORMAT,
                          "partial_rotary_factor = %g turns %" PRId64 " of %" PRId64
                          " dimensions, want an even number",
                          partial, dim, d->head_dim);
    return dim;
}

static void read_scaling(cmoei_config *c, cmoei_config *s, cmoei_decoder *d, cmoe_rope_options *o)
{
    switch (o->kind) {
    case CMOE_ROPE_LINEAR:
        o->factor = required_factor(s);
        break;
    case CMOE_ROPE_DYNAMIC:
        read_dynamic(s, d, o);
        break;
    case CMOE_ROPE_YARN:
        read_yarn(c, s, d, o);
        break;
    case CMOE_ROPE_LLAMA3:
        read_llama3(c, s, d, o);
        break;
    case CMOE_ROPE_LONGROPE:
        read_longrope(c, s, d, o);
        break;
    default:
        break;
    }
}

void cmoei_config_rope(cmoei_config *c, cmoei_decoder *d, double theta, double partial)
{
    cmoe_rope_options *o = &d->rope;
    const char *key = cmoei_config_has(c, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    if (c->status != CMOE_OK) return;
    cmoei_free(c->ctx, d->factors, o->dim * (int64_t)sizeof *d->factors);
    d->factors = NULL;
    cmoe_rope_options_default(o, sizeof *o);
    o->original = d->context;
    cmoei_config s = cmoei_config_section(c, key);
    if (cmoei_config_has(&s, "full_attention|sliding_attention"))
        cmoei_config_fail(&s, CMOE_ERR_UNSUPPORTED,
                          "it is given by layer type, want one for all layers");
    theta = cmoei_config_real(c, "rope_theta", 1.001, MOST, theta);
    o->theta = cmoei_config_real(&s, "rope_theta", 1.001, MOST, theta);
    partial = cmoei_config_real(c, "partial_rotary_factor", 1e-3, 1, partial);
    partial = cmoei_config_real(&s, "partial_rotary_factor", 1e-3, 1, partial);
    o->kind = read_kind(&s);
    if (o->kind == CMOE_ROPE_PROPORTIONAL) {
        o->dim = d->head_dim;
        o->partial = partial;
    } else {
        o->dim = read_dim(c, &s, d, partial);
    }
    if (c->status == CMOE_OK && s.status == CMOE_OK) read_scaling(c, &s, d, o);
    if (c->status == CMOE_OK) cmoei_config_leave(c, &s);
}
