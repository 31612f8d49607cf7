/* SPDX-License-Identifier: MIT
 *
 * config.c - adapter_config.json, as PEFT has written it since 0.3.
 *
 * Most of its many keys are about training.  Some change what the adapter computes, or say that the file
 * holds more than low-rank terms: those are refused by name unless they are off.  A key that nobody here
 * knows is refused unless its value is as good as none, because PEFT grows and a guess would be silent.
 *
 * Keys of rank_pattern and alpha_pattern are regular expressions, and the first of the file that fits
 * the end of a module's name counts.
 */
#include "config.h"

#include <inttypes.h>
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmoe/lora.h"
#include "weights/json.h"

#define FILE_NAME "adapter_config.json"

enum {
    MOST_RANK = 1 << 20,
    MOST_PATTERNS = 4096,
    MOST_KEY = 1024,
    MATCH_LIMIT = 100000 /* steps of one match: no pattern of a stranger takes long */
};

struct cmoei_adapter_pattern {
    pcre2_code *code;
    double value;
};

/* ---- values ---------------------------------------------------------------------------------- */

/* null, false, 0, "", [], {} */
static bool is_off(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE:
        return true;
    case JSON_TRUE:
        return false;
    case JSON_ARRAY:
        return json_array_size(v) == 0;
    case JSON_OBJECT:
        return json_object_size(v) == 0;
    case JSON_STRING:
        return json_string_length(v) == 0;
    default:
        return json_number_value(v) == 0;
    }
}

typedef struct shown {
    char text[CMOEI_SHOWN + 8];
} shown;

static shown show(const json_t *v)
{
    shown out;
    char name[CMOEI_SHOWN + 4];
    if (json_is_string(v))
        snprintf(out.text, sizeof out.text, "\"%s\"",
                 cmoei_shown(name, json_string_value(v), (int64_t)json_string_length(v)));
    else if (json_is_integer(v))
        snprintf(out.text, sizeof out.text, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    else if (json_is_real(v))
        snprintf(out.text, sizeof out.text, "%.17g", json_real_value(v));
    else
        snprintf(out.text, sizeof out.text, "%s",
                 json_is_true(v)     ? "true"
                 : json_is_false(v)  ? "false"
                 : json_is_array(v)  ? "a list"
                 : json_is_object(v) ? "an object"
                                     : "null");
    return out;
}

/* "adapter_config.json: KEY = VALUE, WANT" */
static cmoe_status refuse(cmoe_error *err, cmoe_status status, const char *key, const json_t *v,
                          const char *want)
{
    char name[CMOEI_SHOWN + 4];
    if (!v) return cmoei_fail(err, status, FILE_NAME ": %s is missing, %s", key, want);
    return cmoei_fail(err, status, FILE_NAME ": %s = %s, %s",
                      cmoei_shown(name, key, (int64_t)strlen(key)), show(v).text, want);
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* Read below, or of no consequence once the adapter is trained. */
static const char *const known[] = {"alpha_pattern",
                                    "auto_mapping",
                                    "base_model_name_or_path",
                                    "bias",
                                    "ensure_weight_tying",
                                    "eva_config",
                                    "exclude_modules",
                                    "inference_mode",
                                    "init_lora_weights",
                                    "layers_pattern",
                                    "layers_to_transform",
                                    "lora_alpha",
                                    "lora_dropout",
                                    "megatron_core",
                                    "peft_type",
                                    "peft_version",
                                    "qalora_group_size",
                                    "r",
                                    "rank_pattern",
                                    "revision",
                                    "runtime_config",
                                    "target_modules",
                                    "target_parameters",
                                    "task_type",
                                    "use_rslora",
                                    NULL};

/* What must be off, and what it would mean. */
static const struct {
    const char *key, *why;
} unsupported[] = {
    {"alora_invocation_tokens", "adapters that begin at a token are not supported"},
    {"arrow_config", "routing between adapters is not supported"},
    {"corda_config", "it changes the weights of the model as well"},
    {"fan_in_fan_out", "transposed weights are not supported"},
    {"kasa_config", "it changes the weights of the model as well"},
    {"layer_replication", "layers that occur several times are not supported"},
    {"loftq_config", "it changes the weights of the model as well"},
    {"lora_bias", "biases beside the low-rank terms are not supported"},
    {"lora_ga_config", "it changes the weights of the model as well"},
    {"megatron_config", "Megatron's parallel layers are not supported"},
    {"modules_to_save", "whole modules beside the low-rank terms are not supported"},
    {"monteclora_config", "it changes the low-rank terms"},
    {"trainable_token_indices", "embeddings of single tokens are not supported"},
    {"use_bdlora", "block-diagonal terms are not supported"},
    {"use_dora", "DoRA is not supported"},
    {"use_qalora", "QALoRA is not supported"},
    {"velora_config", "it changes the low-rank terms"},
};

static bool is_known(const char *key)
{
    for (int i = 0; known[i]; i++)
        if (!strcmp(known[i], key)) return true;
    return false;
}

static cmoe_status check_keys(json_t *root, cmoe_error *err)
{
    const char *key;
    json_t *v;
    for (int64_t i = 0; i < CMOEI_COUNT(unsupported); i++) {
        const json_t *x = json_object_get(root, unsupported[i].key);
        if (x && !is_off(x))
            return refuse(err, CMOE_ERR_UNSUPPORTED, unsupported[i].key, x, unsupported[i].why);
    }
    json_object_foreach(root, key, v)
    {
        if (!is_known(key) && !is_off(v))
            return refuse(err, CMOE_ERR_UNSUPPORTED, key, v,
                          "which is not known here and may change what the adapter computes");
    }
    return CMOE_OK;
}

/* PiSSA and its like replace the weights of the model by what the adapter leaves of them. */
static cmoe_status check_init(const json_t *root, cmoe_error *err)
{
    static const char *const fine[] = {"gaussian", "eva", "orthogonal", NULL};
    const json_t *v = json_object_get(root, "init_lora_weights");
    if (!v || json_is_null(v) || json_is_boolean(v)) return CMOE_OK;
    for (int i = 0; json_is_string(v) && fine[i]; i++)
        if (!strcmp(fine[i], json_string_value(v))) return CMOE_OK;
    return refuse(err, CMOE_ERR_UNSUPPORTED, "init_lora_weights", v,
                  "want true, false, gaussian, eva or orthogonal: others change the weights of the "
                  "model as well");
}

static cmoe_status check_words(const json_t *root, cmoe_error *err)
{
    const json_t *type = json_object_get(root, "peft_type"), *bias = json_object_get(root, "bias");
    if (!json_is_string(type) || strcmp(json_string_value(type), "LORA") != 0)
        return refuse(err, type && json_is_string(type) ? CMOE_ERR_UNSUPPORTED : CMOE_ERR_FORMAT,
                      "peft_type", type, "want \"LORA\"");
    if (bias && !json_is_null(bias) &&
        (!json_is_string(bias) || strcmp(json_string_value(bias), "none") != 0))
        return refuse(err, CMOE_ERR_UNSUPPORTED, "bias", bias, "want \"none\"");
    const json_t *dropout = json_object_get(root, "lora_dropout");
    if (dropout && !json_is_null(dropout) &&
        (!json_is_number(dropout) || !(json_number_value(dropout) >= 0) ||
         json_number_value(dropout) > 1))
        return refuse(err, CMOE_ERR_FORMAT, "lora_dropout", dropout, "want a number from 0 to 1");
    return CMOE_OK;
}

static cmoe_status read_bool(const json_t *root, const char *key, bool *out, cmoe_error *err)
{
    const json_t *v = json_object_get(root, key);
    if (v && !json_is_null(v) && !json_is_boolean(v))
        return refuse(err, CMOE_ERR_FORMAT, key, v, "want true or false");
    *out = json_is_true(v);
    return CMOE_OK;
}

static bool is_rank(const json_t *v)
{
    return json_is_integer(v) && json_integer_value(v) >= 1 && json_integer_value(v) <= MOST_RANK;
}

static bool is_alpha(const json_t *v)
{
    return json_is_number(v) && isfinite((float)json_number_value(v));
}

/* A list of strings, or one string where `single`; null and absent are none. */
static cmoe_status check_names(const json_t *root, const char *key, bool single, cmoe_error *err)
{
    const json_t *v = json_object_get(root, key), *x;
    size_t i;
    if (!v || json_is_null(v) || (single && json_is_string(v))) return CMOE_OK;
    if (!json_is_array(v))
        return refuse(err, CMOE_ERR_FORMAT, key, v,
                      single ? "want a list of names, or a regular expression"
                             : "want a list of names");
    json_array_foreach(v, i, x)
    {
        if (!json_is_string(x)) return refuse(err, CMOE_ERR_FORMAT, key, x, "want names in it");
    }
    return CMOE_OK;
}

/* ---- version --------------------------------------------------------------------------------- */

/* "0.19.1", "0.20.0.dev0".  A development version of 0.19.1 itself may be on either side. */
static int32_t layout_of(const char *version)
{
    int n[3], end = 0;
    if (sscanf(version, "%4d.%4d.%4d%n", &n[0], &n[1], &n[2], &end) != 3 || n[0] < 0 || n[1] < 0 ||
        n[2] < 0)
        return CMOE_PEFT_AUTO;
    const int64_t at = ((int64_t)n[0] * 10000 + n[1]) * 10000 + n[2], first = 19 * 10000 + 1;
    if (at == first && version[end]) return CMOE_PEFT_AUTO;
    return at < first ? CMOE_PEFT_BEFORE_0_19 : CMOE_PEFT_SINCE_0_19;
}

static cmoe_status read_version(cmoei_adapter_config *c, cmoe_error *err)
{
    const json_t *v = json_object_get(c->root, "peft_version");
    if (!v || json_is_null(v)) return CMOE_OK;
    if (!json_is_string(v)) return refuse(err, CMOE_ERR_FORMAT, "peft_version", v, "want a text");
    c->layout = layout_of(json_string_value(v));
    return CMOE_OK;
}

/* ---- patterns -------------------------------------------------------------------------------- */

static cmoe_status compile(const char *key, pcre2_code **out, cmoe_error *err)
{
    char whole[MOST_KEY + 16], why[120], name[CMOEI_SHOWN + 4];
    int number;
    PCRE2_SIZE at;
    if (strlen(key) > MOST_KEY)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          FILE_NAME ": a pattern of %zu bytes, want at most %d", strlen(key),
                          MOST_KEY);
    snprintf(whole, sizeof whole, "(.*\\.)?(%s)$", key);
    *out = pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED,
                         PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &number, &at, NULL);
    if (*out) return CMOE_OK;
    pcre2_get_error_message(number, (PCRE2_UCHAR *)why, sizeof why);
    return cmoei_fail(err, CMOE_ERR_FORMAT, FILE_NAME ": pattern \"%s\": %s",
                      cmoei_shown(name, key, (int64_t)strlen(key)), why);
}

static cmoe_status read_patterns(cmoei_adapter_config *c, const char *key, bool ranks,
                                 cmoei_adapter_pattern **out, int64_t *count, cmoe_error *err)
{
    json_t *patterns = json_object_get(c->root, key), *v;
    const char *name;
    if (!patterns || json_is_null(patterns)) return CMOE_OK;
    if (!json_is_object(patterns))
        return refuse(err, CMOE_ERR_FORMAT, key, patterns, "want an object");
    const int64_t n = (int64_t)json_object_size(patterns);
    if (n > MOST_PATTERNS)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          FILE_NAME ": %s has %" PRId64 " patterns, want at most %d", key, n,
                          MOST_PATTERNS);
    if (n == 0) return CMOE_OK;
    CMOEI_TRY(cmoei_alloc(c->ctx, n * (int64_t)sizeof **out, "patterns", (void **)out, err));
    *count = n;
    memset(*out, 0, (size_t)n * sizeof **out);
    int64_t i = 0;
    json_object_foreach(patterns, name, v)
    {
        if (ranks ? !is_rank(v) : !is_alpha(v))
            return refuse(err, CMOE_ERR_FORMAT, name, v,
                          ranks ? "want a rank, an integer from 1 to 1048576" : "want a number");
        CMOEI_TRY(compile(name, &(*out)[i].code, err));
        (*out)[i++].value = json_number_value(v);
    }
    return CMOE_OK;
}

static void free_patterns(cmoei_adapter_config *c, cmoei_adapter_pattern *list, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        pcre2_code_free(list[i].code);
    cmoei_free(c->ctx, list, count * (int64_t)sizeof *list);
}

/* Sets *value where one of them fits. */
static cmoe_status search(const cmoei_adapter_pattern *list, int64_t count, const char *name,
                          double *value, cmoe_error *err)
{
    if (count == 0) return CMOE_OK;
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    pcre2_match_data *data = pcre2_match_data_create(4, NULL);
    int found = PCRE2_ERROR_NOMEMORY;
    if (limits && data) {
        found = PCRE2_ERROR_NOMATCH;
        pcre2_set_match_limit(limits, MATCH_LIMIT);
        for (int64_t i = 0; i < count && found == PCRE2_ERROR_NOMATCH; i++) {
            found = pcre2_match(list[i].code, (PCRE2_SPTR)name, strlen(name), 0, 0, data, limits);
            if (found >= 0) *value = list[i].value;
        }
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(limits);
    if (found >= 0 || found == PCRE2_ERROR_NOMATCH) return CMOE_OK;
    if (found == PCRE2_ERROR_NOMEMORY)
        return cmoei_fail(err, CMOE_ERR_MEMORY, FILE_NAME ": no memory for its patterns");
    return cmoei_fail(err, CMOE_ERR_FORMAT,
                      FILE_NAME ": a pattern takes too long to match \"%.100s\"", name);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static cmoe_status read_all(cmoei_adapter_config *c, cmoe_error *err)
{
    const json_t *rank = json_object_get(c->root, "r"),
                 *alpha = json_object_get(c->root, "lora_alpha"),
                 *base = json_object_get(c->root, "base_model_name_or_path");
    CMOEI_TRY(check_words(c->root, err));
    CMOEI_TRY(check_keys(c->root, err));
    CMOEI_TRY(check_init(c->root, err));
    if (!is_rank(rank))
        return refuse(err, CMOE_ERR_FORMAT, "r", rank, "want an integer from 1 to 1048576");
    if (!is_alpha(alpha)) return refuse(err, CMOE_ERR_FORMAT, "lora_alpha", alpha, "want a number");
    c->rank = json_integer_value(rank);
    c->alpha = json_number_value(alpha);
    CMOEI_TRY(read_bool(c->root, "use_rslora", &c->rslora, err));
    CMOEI_TRY(check_names(c->root, "target_modules", true, err));
    CMOEI_TRY(check_names(c->root, "target_parameters", false, err));
    const json_t *parameters = json_object_get(c->root, "target_parameters");
    c->parameters = json_is_array(parameters) ? parameters : NULL;
    if (base && !json_is_null(base) && !json_is_string(base))
        return refuse(err, CMOE_ERR_FORMAT, "base_model_name_or_path", base, "want a text");
    c->base = json_is_string(base) ? json_string_value(base) : "";
    CMOEI_TRY(read_version(c, err));
    CMOEI_TRY(read_patterns(c, "rank_pattern", true, &c->rank_pattern, &c->ranks, err));
    return read_patterns(c, "alpha_pattern", false, &c->alpha_pattern, &c->alphas, err);
}

cmoe_status cmoei_adapter_config_read(cmoei_adapter_config *c, cmoe_ctx *ctx, const char *text,
                                      int64_t bytes, cmoe_error *err)
{
    json_error_t why;
    char clean[CMOEI_SHOWN + 4];
    *c = (cmoei_adapter_config){.ctx = ctx};
    c->root = json_loadb(text, (size_t)bytes, JSON_REJECT_DUPLICATES, &why);
    if (!c->root)
        return cmoei_fail(err, CMOE_ERR_FORMAT, FILE_NAME ": line %d: %s", why.line,
                          cmoei_shown(clean, why.text, (int64_t)strlen(why.text)));
    cmoe_status status = CMOE_OK;
    if (!json_is_object(c->root))
        status = cmoei_fail(err, CMOE_ERR_FORMAT, FILE_NAME ": is not an object");
    if (status == CMOE_OK) status = read_all(c, err);
    if (status != CMOE_OK) cmoei_adapter_config_close(c);
    return status;
}

void cmoei_adapter_config_close(cmoei_adapter_config *c)
{
    free_patterns(c, c->rank_pattern, c->ranks);
    free_patterns(c, c->alpha_pattern, c->alphas);
    json_decref(c->root);
    *c = (cmoei_adapter_config){0};
}

bool cmoei_adapter_config_targets(const cmoei_adapter_config *c, const char *name)
{
    const size_t length = strlen(name);
    for (size_t i = 0; i < json_array_size(c->parameters); i++) {
        const json_t *x = json_array_get(c->parameters, i);
        const char *target = json_string_value(x);
        const size_t n = json_string_length(x);
        if (n > length || strcmp(name + length - n, target) != 0) continue;
        if (n == length || name[length - n - 1] == '.') return true;
    }
    return false;
}

cmoe_status cmoei_adapter_config_rank(const cmoei_adapter_config *c, const char *name,
                                      int64_t *rank, double *alpha, cmoe_error *err)
{
    double r = (double)c->rank;
    *alpha = c->alpha;
    CMOEI_TRY(search(c->rank_pattern, c->ranks, name, &r, err));
    *rank = (int64_t)r;
    return search(c->alpha_pattern, c->alphas, name, alpha, err);
}
