/* SPDX-License-Identifier: MIT
 *
 * config.c - config.json: parsed once, read through getters that name what they dislike.
 *
 * The file is a stranger's.  The parser refuses duplicate keys, numbers that no integer or double
 * holds, and deep nesting; every number is then taken through a getter with a range, so that sizes
 * can be multiplied afterwards without asking again.  An integer written as 1.0 is refused rather
 * than guessed.
 */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "text.h"
#include "weights/file.h"

/* ---- errors ---------------------------------------------------------------------------------- */

void cmoei_config_fail(cmoei_config *c, cmoe_status status, const char *format, ...)
{
    if (c->status != CMOE_OK) return;
    char text[sizeof c->err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    c->status = cmoei_fail(c->err, status, "%s: %s%s%s", c->file, c->section ? c->section : "",
                           c->section ? "." : "", text);
}

/* A value as it stands in the file, or what kind of thing it is. */
static const char *show(char *dst, size_t size, const json_t *value)
{
    char text[64];
    switch (json_typeof(value)) {
    case JSON_INTEGER:
        snprintf(dst, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(dst, size, "%.17g", json_real_value(value));
        if (!strpbrk(dst, ".e")) snprintf(dst + strlen(dst), size - strlen(dst), ".0");
        break;
    case JSON_STRING:
        cmoei_text_clean(text, sizeof text, json_string_value(value));
        snprintf(dst, size, "\"%s\"", text);
        break;
    case JSON_ARRAY:
        snprintf(dst, size, "a list");
        break;
    case JSON_OBJECT:
        snprintf(dst, size, "an object");
        break;
    default:
        snprintf(dst, size, "%s",
                 json_is_true(value)    ? "true"
                 : json_is_false(value) ? "false"
                                        : "null");
    }
    return dst;
}

/* ---- keys ------------------------------------------------------------------------------------ */

enum { KEY = 64, VALUE = 80 };

/* The first spelling that is there and not null, and its name. */
static const json_t *find(const cmoei_config *c, const char *keys, char name[KEY])
{
    for (const char *key = keys; *key;) {
        const size_t n = strcspn(key, "|");
        const json_t *value = json_object_getn(c->root, key, n);
        if (value && !json_is_null(value)) {
            snprintf(name, KEY, "%.*s", (int)n, key);
            return value;
        }
        key += n + (key[n] == '|');
    }
    return NULL;
}

/* "num_experts is missing (or num_local_experts)" */
static void fail_missing(cmoei_config *c, const char *keys)
{
    const size_t n = strcspn(keys, "|");
    char others[160] = "";
    if (keys[n]) snprintf(others, sizeof others, " (or %s)", keys + n + 1);
    for (char *p = others; *p; p++)
        if (*p == '|') *p = ' ';
    cmoei_config_fail(c, CMOE_ERR_FORMAT, "%.*s is missing%s", (int)n, keys, others);
}

static void fail_value(cmoei_config *c, const char *key, const json_t *value, const char *want)
{
    char text[VALUE];
    cmoei_config_fail(c, CMOE_ERR_FORMAT, "%s = %s, want %s", key, show(text, sizeof text, value),
                      want);
}

bool cmoei_config_has(const cmoei_config *c, const char *keys)
{
    char key[KEY];
    return find(c, keys, key) != NULL;
}

static int64_t int_of(cmoei_config *c, const char *key, const json_t *value, int64_t least,
                      int64_t most, int64_t fallback)
{
    const bool whole = json_is_integer(value);
    const int64_t x = json_integer_value(value);
    if (whole && x >= least && x <= most) return x;
    char want[80];
    snprintf(want, sizeof want, "an integer from %" PRId64 " to %" PRId64, least, most);
    fail_value(c, key, value, want);
    return fallback;
}

int64_t cmoei_config_int(cmoei_config *c, const char *keys, int64_t least, int64_t most,
                         int64_t fallback)
{
    const int64_t otherwise = fallback == CMOEI_REQUIRED ? least : fallback;
    char key[KEY];
    if (c->status != CMOE_OK) return otherwise;
    const json_t *value = find(c, keys, key);
    if (value) return int_of(c, key, value, least, most, otherwise);
    if (fallback == CMOEI_REQUIRED) fail_missing(c, keys);
    return otherwise;
}

int64_t cmoei_config_int_of(cmoei_config *c, const char *keys, int64_t layer, int64_t least,
                            int64_t most, int64_t fallback)
{
    char key[KEY], entry[KEY + 24];
    const json_t *list = find(c, keys, key);
    if (c->status != CMOE_OK || !json_is_array(list))
        return cmoei_config_int(c, keys, least, most, fallback);
    const int64_t otherwise = fallback == CMOEI_REQUIRED ? least : fallback;
    const json_t *value = json_array_get(list, (size_t)layer);
    if (!value) {
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "%s has %zu entries, want one for each layer", key,
                          json_array_size(list));
        return otherwise;
    }
    snprintf(entry, sizeof entry, "%s[%" PRId64 "]", key, layer);
    return int_of(c, entry, value, least, most, otherwise);
}

double cmoei_config_real(cmoei_config *c, const char *keys, double least, double most,
                         double fallback)
{
    char key[KEY], want[80];
    if (c->status != CMOE_OK) return fallback;
    const json_t *value = find(c, keys, key);
    if (!value) return fallback;
    const double x = json_number_value(value);
    if (json_is_number(value) && x >= least && x <= most) return x;
    snprintf(want, sizeof want, "a number from %g to %g", least, most);
    fail_value(c, key, value, want);
    return fallback;
}

bool cmoei_config_bool(cmoei_config *c, const char *keys, bool fallback)
{
    char key[KEY];
    if (c->status != CMOE_OK) return fallback;
    const json_t *value = find(c, keys, key);
    if (!value) return fallback;
    if (json_is_boolean(value)) return json_is_true(value);
    fail_value(c, key, value, "true or false");
    return fallback;
}

const char *cmoei_config_text(cmoei_config *c, const char *keys, const char *fallback)
{
    char key[KEY];
    if (c->status != CMOE_OK) return fallback;
    const json_t *value = find(c, keys, key);
    if (!value) return fallback;
    if (json_is_string(value)) return json_string_value(value);
    fail_value(c, key, value, "a string");
    return fallback;
}

cmoei_config cmoei_config_section(cmoei_config *c, const char *key)
{
    cmoei_config section = *c;
    section.section = key;
    section.root = NULL;
    json_t *value = json_object_get(c->root, key);
    if (c->status != CMOE_OK || !value || json_is_null(value)) return section;
    if (json_is_object(value)) {
        section.root = value;
    } else {
        fail_value(c, key, value, "an object");
        section.status = c->status;
    }
    return section;
}

void cmoei_config_leave(cmoei_config *c, const cmoei_config *section)
{
    c->status = section->status;
}

/* ---- the file -------------------------------------------------------------------------------- */

static void unknown_type(cmoei_config *c, const char *type)
{
    char clean[VALUE];
    cmoei_text_list known = {.between = " "};
    for (int64_t i = 0; cmoei_archs[i]; i++)
        cmoei_text_add(&known, cmoei_archs[i]->type);
    if (type) {
        cmoei_text_clean(clean, sizeof clean, type);
        cmoei_config_fail(c, CMOE_ERR_UNSUPPORTED, "model_type = \"%s\", want one of: %s", clean,
                          cmoei_text_end(&known));
    } else {
        cmoei_config_fail(c, CMOE_ERR_FORMAT, "model_type is missing, want one of: %s",
                          cmoei_text_end(&known));
    }
}

static const cmoei_arch *find_arch(const char *type)
{
    for (int64_t i = 0; type && cmoei_archs[i]; i++)
        if (strcmp(cmoei_archs[i]->type, type) == 0) return cmoei_archs[i];
    return NULL;
}

/* Wrappers of several models keep the language model's keys under text_config. */
static const cmoei_arch *open_root(cmoei_config *c)
{
    const char *type = cmoei_config_text(c, "model_type", NULL);
    const cmoei_arch *arch = find_arch(type);
    const cmoei_config inner = cmoei_config_section(c, "text_config");
    if (inner.root) {
        c->root = inner.root;
        const char *inner_type = cmoei_config_text(c, "model_type", NULL);
        if (!arch) arch = find_arch(inner_type);
        if (!type) type = inner_type;
    }
    if (!arch) unknown_type(c, type);
    return arch;
}

cmoe_status cmoei_decoder_parse(cmoei_decoder *d, cmoe_ctx *ctx, const char *text, int64_t bytes,
                                const char *file, cmoe_error *err)
{
    json_error_t why;
    memset(d, 0, sizeof *d);
    json_t *json = json_loadb(text, (size_t)bytes, JSON_REJECT_DUPLICATES, &why);
    /* Where jansson has no memory it mostly says nothing. */
    if (!json && (!why.text[0] || json_error_code(&why) == json_error_out_of_memory))
        return cmoei_fail(err, CMOE_ERR_MEMORY,
                          "%s: its %" PRId64 " bytes could not be read: no memory", file, bytes);
    if (!json) {
        char clean[JSON_ERROR_TEXT_LENGTH];
        cmoei_text_clean(clean, sizeof clean, why.text);
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: line %d, column %d: %s", file, why.line,
                          why.column, clean);
    }
    cmoei_config c = {.ctx = ctx, .file = file, .root = json, .outer = json, .err = err};
    if (!json_is_object(json)) {
        char kind[VALUE];
        cmoei_config_fail(&c, CMOE_ERR_FORMAT, "the file holds %s, want an object",
                          show(kind, sizeof kind, json));
    }
    if (c.status == CMOE_OK) d->arch = open_root(&c);
    if (c.status == CMOE_OK) cmoei_config_decoder(&c, d);
    if (c.status == CMOE_OK) d->arch->read(&c, d);
    if (c.status == CMOE_OK) cmoei_config_check(&c, d);
    json_decref(json);
    if (c.status != CMOE_OK) cmoei_decoder_close(d, ctx);
    return c.status;
}

void cmoei_decoder_close(cmoei_decoder *d, cmoe_ctx *ctx)
{
    cmoei_free(ctx, d->layer, d->layers * (int64_t)sizeof *d->layer);
    cmoei_free(ctx, d->factors, d->rope.dim * (int64_t)sizeof *d->factors);
    memset(d, 0, sizeof *d);
}

/* ---- reading it ------------------------------------------------------------------------------ */

enum { MOST_BYTES = 16 << 20 };

static cmoe_status parse_open(cmoei_decoder *d, cmoe_ctx *ctx, int fd, int64_t bytes,
                              const char *file, cmoe_error *err)
{
    void *text;
    if (bytes > MOST_BYTES)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s has %" PRId64 " bytes, want at most %d", file,
                          bytes, MOST_BYTES);
    CMOEI_TRY(cmoei_alloc(ctx, bytes, "config.json", &text, err));
    cmoe_status status = cmoei_file_read(fd, file, text, bytes, 0, err);
    if (status == CMOE_OK) status = cmoei_decoder_parse(d, ctx, text, bytes, file, err);
    if (status == CMOE_OK) d->sum = cmoei_text_sum(text, bytes);
    cmoei_free(ctx, text, bytes);
    return status;
}

cmoe_status cmoei_decoder_open(cmoei_decoder *d, cmoe_ctx *ctx, const char *path, cmoe_error *err)
{
    char file[4096];
    int fd;
    int64_t bytes;
    memset(d, 0, sizeof *d);
    const int n = snprintf(file, sizeof file, "%s/config.json", path);
    if (n < 0 || n >= (int)sizeof file)
        return cmoei_fail(err, CMOE_ERR_IO, "the path is longer than %zu bytes", sizeof file);
    const cmoei_path shown = cmoei_path_shown(file);
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, file, shown.text, "", &fd, &bytes, err));
    const cmoe_status status = parse_open(d, ctx, fd, bytes, shown.text, err);
    (void)close(fd);
    return status;
}
