/* SPDX-License-Identifier: MIT
 *
 * settings.c - sampling, diffusion and end of text, from flags and from the model's files.
 *
 * generation_config.json is read as transformers reads it: without do_sample it is greedy and only its
 * repetition_penalty counts; with it, temperature is 1 and top_k is 50 where they are not named.
 * --temperature X above 0 asks for sampling, do_sample or not: what the file says of it then counts.
 * --temperature 0 asks for the model's own best token and sets all of the file aside, its penalty
 * too: --repeat-penalty brings one back.
 */
#include "settings.h"

#include <errno.h>
#include <float.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model.h"
#include "report.h"

const char *const settings_remaskings[] = {"low_confidence_dynamic", "low_confidence_static",
                                           "sequential", "entropy_bounded", NULL};

/* The two files; absent ones are NULL. */
typedef struct config {
    const char *path; /* of the model */
    json_t *generation, *model;
} config;

static const char generation_name[] = "generation_config.json", model_name[] = "config.json";

/* ---- files ----------------------------------------------------------------------------------- */

static int load(const char *folder, const char *name, json_t **out)
{
    char path[4096];
    json_error_t why;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    struct stat st;
    const bool there = stat(path, &st) == 0;
    if (!there && errno == ENOENT) return 0;
    if (there && !S_ISREG(st.st_mode)) return report_fail(EXIT_FILE, path, "is not a regular file");
    *out = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!*out) return report_fail(EXIT_FILE, path, "line %d: %s", why.line, why.text);
    return json_is_object(*out) ? 0 : report_fail(EXIT_FILE, path, "is not a JSON object");
}

static int bad_key_of(const config *c, const char *file, const char *key, const json_t *v,
                      const char *want)
{
    char path[4096];
    char *text = json_dumps(v, JSON_ENCODE_ANY);
    snprintf(path, sizeof path, "%s/%s", c->path, file);
    const int status =
        report_fail(EXIT_FILE, path, "%s is %.60s, want %s", key, text ? text : "?", want);
    free(text);
    return status;
}

static int bad_key(const config *c, const char *key, const json_t *v, const char *want)
{
    return bad_key_of(c, generation_name, key, v, want);
}

/* Takes a number of the file into *out; keeps it when there is none. */
static int number_in(const config *c, const char *key, float least, float most, const char *want,
                     float *out)
{
    const json_t *v = json_object_get(c->generation, key);
    if (!v || json_is_null(v)) return 0;
    const float f = (float)json_number_value(v); /* what is used: 1 - 1e-12 is 1 */
    if (!json_is_number(v) || !(f >= least && f <= most)) return bad_key(c, key, v, want);
    *out = f;
    return 0;
}

static int number(const config *c, const char *key, double least, double most, float *out)
{
    char want[64];
    snprintf(want, sizeof want, "a number, %g to %g", least, most);
    return number_in(c, key, (float)least, (float)most, want, out);
}

static int whole(const config *c, const char *key, int64_t least, int64_t most, int64_t *out)
{
    const json_t *v = json_object_get(c->generation, key);
    char want[80];
    if (!v || json_is_null(v)) return 0;
    snprintf(want, sizeof want, "a whole number, %lld to %lld", (long long)least, (long long)most);
    if (!json_is_integer(v) || json_integer_value(v) < least || json_integer_value(v) > most)
        return bad_key(c, key, v, want);
    *out = (int64_t)json_integer_value(v);
    return 0;
}

/* ---- sampling -------------------------------------------------------------------------------- */

/* `asked`: by a flag. */
static int file_sampling(const config *c, bool asked, cmoe_sampling *s)
{
    const json_t *sample = json_object_get(c->generation, "do_sample");
    int64_t top_k = json_is_true(sample) ? 50 : 0;
    if (sample && !json_is_boolean(sample) && !json_is_null(sample))
        return bad_key(c, "do_sample", sample, "true or false");
    int status = number(c, "repetition_penalty", 0.001, 1000, &s->repetition_penalty);
    if (status || !(json_is_true(sample) || asked)) return status;
    s->temperature = 1;
    status = number(c, "temperature", 0, 100, &s->temperature);
    if (status == 0) status = whole(c, "top_k", 0, INT32_MAX, &top_k);
    if (status == 0)
        status = number_in(c, "top_p", FLT_MIN, 1, "a number above 0, up to 1", &s->top_p);
    if (status == 0)
        status =
            number_in(c, "min_p", 0, 1 - FLT_EPSILON / 2, "a number, 0 and below 1", &s->min_p);
    s->top_k = (int32_t)top_k;
    return status;
}

static int read_sampling(const config *c, const sampling_flags *f, cmoe_sampling *s)
{
    cmoe_sampling_default(s, sizeof *s);
    const bool greedy = f->has_temperature && f->temperature == 0;
    const int status = file_sampling(c, f->has_temperature && !greedy, s);
    if (status) return status; /* a broken file is said in any case */
    if (greedy) cmoe_sampling_default(s, sizeof *s);
    if (f->has_temperature) s->temperature = (float)f->temperature;
    if (f->has_top_k) s->top_k = (int32_t)f->top_k;
    if (f->has_top_p) s->top_p = (float)f->top_p;
    if (f->has_min_p) s->min_p = (float)f->min_p;
    if (f->has_penalty) s->repetition_penalty = (float)f->penalty;
    s->seed = (uint64_t)f->seed;
    return 0;
}

/* The library knows what it takes: it is asked with a row of one token. */
static int check_sampling(cmoe_ctx *ctx, const cmoe_sampling *s)
{
    cmoe_error err = {.size = sizeof err};
    float logit = 0;
    const cmoe_status status = cmoe_sampling_process(ctx, s, &logit, 1, NULL, 0, 0, &err);
    return model_refuse(status, "sampling", &err);
}

/* ---- end of text ----------------------------------------------------------------------------- */

/* A number, or a list of them; generation_config.json goes before config.json. */
static int read_eos(const config *c, int64_t vocab, settings *s)
{
    const json_t *v = json_object_get(c->generation, "eos_token_id");
    const json_t *text = json_object_get(c->model, "text_config");
    const char *file = v && !json_is_null(v) ? generation_name : model_name;
    if (!v || json_is_null(v)) v = json_object_get(c->model, "eos_token_id");
    if (!v || json_is_null(v)) v = json_object_get(text, "eos_token_id");
    if (!v || json_is_null(v)) return 0;
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    s->eos = calloc(n + 1, sizeof *s->eos);
    if (!s->eos) return report_fail(EXIT_MEMORY, "eos_token_id", "no memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX)
            return bad_key_of(c, file, "eos_token_id", v, "an id or a list of ids");
        /* Ids beyond the vocabulary can never come. */
        if (value < vocab) s->eos[s->n_eos++] = (int32_t)value;
    }
    return 0;
}

/* ---- diffusion ------------------------------------------------------------------------------- */

static int file_diffusion(const config *c, cmoe_diffusion *d)
{
    const json_t *remasking = json_object_get(c->generation, "remasking_strategy");
    if (!remasking) remasking = json_object_get(c->generation, "remasking");
    if (remasking && !json_is_null(remasking)) {
        const char *word = json_string_value(remasking);
        d->remasking = word ? cmoe_remasking_parse(word) : -1;
        if (d->remasking < 0)
            return bad_key(c, "remasking", remasking,
                           "low_confidence_dynamic, low_confidence_static, sequential or "
                           "entropy_bounded");
    }
    int status = whole(c, "denoising_steps", 1, 64, &d->steps);
    if (status == 0) status = number(c, "confidence_threshold", 0, 1, &d->threshold);
    if (status == 0) status = number(c, "eb_threshold", 0, 1000, &d->eb);
    if (status == 0) status = whole(c, "buffer_blocks", 1, 64, &d->buffer);
    if (status == 0) status = number(c, "add_block_threshold", 0, 1, &d->add_block);
    if (status == 0) status = number(c, "semi_complete_threshold", 0, 1, &d->semi_complete);
    return status ? status : number(c, "accept_threshold", 0, 1, &d->accept);
}

static void flag_diffusion(const diffusion_flags *f, cmoe_diffusion *d)
{
    if (f->has_steps) d->steps = f->steps;
    if (f->has_remasking) d->remasking = cmoe_remasking_parse(f->remasking);
    if (f->has_threshold) d->threshold = (float)f->threshold;
    if (f->has_eb) d->eb = (float)f->eb;
    if (f->has_buffer) d->buffer = f->buffer;
    if (f->has_add_block) d->add_block = (float)f->add_block;
    if (f->has_semi_complete) d->semi_complete = (float)f->semi_complete;
    if (f->has_accept) d->accept = (float)f->accept;
    if (f->has_mask_token) d->mask_token = f->mask_token;
    if (f->has_forwards) d->max_forwards = f->forwards;
    if (f->has_repeats) d->max_repeats = f->repeats;
}

/* The first flag that asks for diffusion; NULL: none. */
static const char *diffusion_flag(const diffusion_flags *f)
{
    const struct {
        bool given;
        const char *flag;
    } all[] = {{f->has_block, "--block-length"},
               {f->has_steps, "--steps"},
               {f->has_remasking, "--remasking"},
               {f->has_threshold, "--threshold"},
               {f->has_eb, "--eb"},
               {f->has_buffer, "--buffer-blocks"},
               {f->has_add_block, "--add-block-threshold"},
               {f->has_semi_complete, "--semi-complete-threshold"},
               {f->has_accept, "--accept-threshold"},
               {f->has_forwards, "--max-forwards"},
               {f->has_repeats, "--max-repeats"}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i].given) return all[i].flag;
    }
    return NULL;
}

static int check_diffusion(const config *c, const cmoe_model_info *info, const diffusion_flags *f,
                           const cmoe_diffusion *d, bool diffuses)
{
    const char *flag = diffusion_flag(f);
    if (f->has_mask_token && f->mask_token >= info->vocab)
        return report_fail(EXIT_USAGE, "--mask-token-id",
                           "\"%lld\" is out of range, want 0 to %lld (vocab of %s)",
                           (long long)f->mask_token, (long long)info->vocab - 1, c->path);
    if (!diffuses && flag)
        return report_fail(EXIT_USAGE, flag,
                           "%s is no model of block diffusion: it has no mask token (give "
                           "--mask-token-id N if it is one)",
                           c->path);
    if (!diffuses) return 0;
    if (d->block == 0 && info->mask <= 0)
        return report_fail(EXIT_USAGE, "--block-length", "is needed: %s does not say it", c->path);
    const int64_t B = d->block ? d->block : info->mask;
    if (B < 4 || B > 64)
        return report_fail(EXIT_USAGE, "--block-length", "blocks of %lld tokens (%s), want 4 to 64",
                           (long long)B, c->path);
    if (d->steps > B)
        return report_fail(EXIT_USAGE, "--steps",
                           "\"%lld\" is out of range, want 1 to %lld (block length)",
                           (long long)d->steps, (long long)B);
    return 0;
}

/* ---- all of it ------------------------------------------------------------------------------- */

int settings_read(settings *s, cmoe_ctx *ctx, const char *path, const cmoe_model_info *info,
                  const sampling_flags *sampling, const diffusion_flags *diffusion,
                  int64_t block_length)
{
    config c = {.path = path};
    *s = (settings){.diffuses = info->mask_token >= 0 || diffusion->has_mask_token};
    cmoe_diffusion_default(&s->diffusion, sizeof s->diffusion);
    int status = load(path, generation_name, &c.generation);
    if (status == 0) status = load(path, model_name, &c.model);
    if (status == 0) status = read_sampling(&c, sampling, &s->sampling);
    if (status == 0) status = check_sampling(ctx, &s->sampling);
    if (status == 0) status = read_eos(&c, info->vocab, s);
    if (status == 0 && s->diffuses) status = file_diffusion(&c, &s->diffusion);
    if (status == 0) {
        s->diffusion.block = block_length;
        flag_diffusion(diffusion, &s->diffusion);
        status = check_diffusion(&c, info, diffusion, &s->diffusion, s->diffuses);
    }
    json_decref(c.generation);
    json_decref(c.model);
    return status;
}

void settings_free(settings *s)
{
    free(s->eos);
    s->eos = NULL;
    s->n_eos = 0;
}

int64_t settings_mask_token(const settings *s, const cmoe_model_info *info)
{
    if (!s->diffuses) return -1;
    return s->diffusion.mask_token >= 0 ? s->diffusion.mask_token : info->mask_token;
}

int64_t settings_canvas(const settings *s, const cmoe_model_info *info)
{
    const int64_t B = s->diffusion.block ? s->diffusion.block : info->mask;
    return s->diffuses ? B * (s->diffusion.buffer + 1) : 0;
}
