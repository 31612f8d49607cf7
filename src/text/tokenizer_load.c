/* SPDX-License-Identifier: MIT
 *
 * tokenizer_load.c - opens tokenizer.json and tokenizer_config.json.
 *
 * Nothing in the files is believed: ids have a range, names must exist, keys and types that are not
 * known are refused by name.  truncation and padding are passed over: they are for batches, and
 * transformers switches them off as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tokenizer_json.h"

enum { MOST_FILE = 256 << 20 };

static cmoe_status read_all(int fd, cmoei_buffer *out, const char *path, int64_t bytes,
                            cmoe_error *err)
{
    CMOEI_TRY(cmoei_buffer_reserve(out, bytes, err));
    while (out->bytes < bytes) {
        const ssize_t n = read(fd, out->data + out->bytes, (size_t)(bytes - out->bytes));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
        if (n == 0) break;
        out->bytes += n;
    }
    return CMOE_OK;
}

/* *there false: no such file, which is an error unless it may be missing. */
static cmoe_status read_file(cmoei_buffer *out, const char *path, bool may_miss, bool *there,
                             cmoe_error *err)
{
    struct stat s;
    /* Without O_NONBLOCK a FIFO would be waited for; it changes nothing for regular files. */
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    *there = fd >= 0;
    if (fd < 0 && errno == ENOENT && may_miss) return CMOE_OK;
    if (fd < 0) return cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
    cmoe_status status = CMOE_OK;
    if (fstat(fd, &s) != 0)
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(s.st_mode))
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: not a file", path);
    else if (s.st_size > MOST_FILE)
        status = cmoei_fail(err, CMOE_ERR_RANGE, "%s: %lld bytes, want at most %d", path,
                            (long long)s.st_size, MOST_FILE);
    else
        status = read_all(fd, out, path, s.st_size, err);
    close(fd);
    return status;
}

static cmoe_status parse_json(const char *data, int64_t bytes, const char *file, json_t **out,
                              cmoe_error *err)
{
    json_error_t e;
    *out = json_loadb(data ? data : "", (size_t)bytes, JSON_REJECT_DUPLICATES, &e);
    if (*out) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: line %d, column %d: %s", file, e.line, e.column,
                      e.text);
}

/* ---- tokenizer_config.json ----------------------------------------------------------------------- */

/* "<s>", {"content": "<s>"} or null. */
static cmoe_status config_token(const cmoei_loader *l, const json_t *config, const char *key,
                                int64_t *id)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    if (!v || json_is_null(v)) return CMOE_OK;
    if (!json_is_string(v))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &(cmoei_place){""},
                                 "%s: want a text, an object with content, or null", key);
    *id = cmoei_names_find(&l->t->names, json_string_value(v), (int64_t)json_string_length(v));
    return CMOE_OK;
}

static cmoe_status config_add(const cmoei_loader *l, const json_t *config, const char *key,
                              int64_t id, int32_t **list, int64_t *count)
{
    bool add = false;
    void *p;
    CMOEI_TRY(cmoei_json_flag(l, &(cmoei_place){""}, config, key, &add));
    if (!add || id < 0) return CMOE_OK;
    CMOEI_TRY(cmoei_text_alloc(&l->t->pool, 1, 4, &p, l->err));
    *list = p;
    **list = (int32_t)id;
    *count = 1;
    return CMOE_OK;
}

static cmoe_status load_config(cmoei_loader *l, const json_t *config, bool has_post)
{
    cmoe_tokenizer *t = l->t;
    l->file = "tokenizer_config.json";
    if (!json_is_object(config))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &(cmoei_place){""}, "want an object");
    CMOEI_TRY(config_token(l, config, "bos_token", &t->bos));
    CMOEI_TRY(config_token(l, config, "eos_token", &t->eos));
    if (has_post) return CMOE_OK; /* which then says what is added */
    CMOEI_TRY(config_add(l, config, "add_bos_token", t->bos, &t->prefix, &t->prefix_count));
    return config_add(l, config, "add_eos_token", t->eos, &t->suffix, &t->suffix_count);
}

/* ---- tokenizer.json ------------------------------------------------------------------------------ */

static cmoe_status load_root(cmoei_loader *l, const json_t *root)
{
    CMOEI_TRY(cmoei_json_object(l, &(cmoei_place){""}, root,
                                "version truncation padding added_tokens normalizer pre_tokenizer "
                                "post_processor decoder model"));
    const json_t *model = json_object_get(root, "model");
    CMOEI_TRY(cmoei_load_names(l, model, json_object_get(root, "added_tokens")));
    CMOEI_TRY(cmoei_load_normalizers(l, json_object_get(root, "normalizer")));
    CMOEI_TRY(cmoei_load_pres(l, json_object_get(root, "pre_tokenizer")));
    CMOEI_TRY(cmoei_load_model(l, model));
    CMOEI_TRY(cmoei_load_trees(l));
    CMOEI_TRY(cmoei_load_decoders(l, json_object_get(root, "decoder")));
    return cmoei_load_post(l, json_object_get(root, "post_processor"));
}

cmoe_status cmoei_tokenizer_parse(cmoe_tokenizer *t, const char *json, int64_t bytes,
                                  const char *config, int64_t config_bytes, cmoe_error *err)
{
    cmoei_loader l = {.t = t, .err = err, .file = "tokenizer.json"};
    json_t *root = NULL, *other = NULL;
    t->memory = cmoei_pattern_memory(t->ctx);
    if (!t->memory) return cmoei_fail(err, CMOE_ERR_MEMORY, "tokenizer: no memory for patterns");
    CMOEI_TRY(parse_json(json, bytes, l.file, &root, err));
    cmoe_status status = load_root(&l, root);
    if (status == CMOE_OK && config)
        status = parse_json(config, config_bytes, "tokenizer_config.json", &other, err);
    const json_t *post = json_object_get(root, "post_processor");
    if (status == CMOE_OK && other) status = load_config(&l, other, post && !json_is_null(post));
    json_decref(root);
    json_decref(other);
    return status;
}

static cmoe_status load_from(cmoe_tokenizer *t, const char *path, cmoei_buffer *json,
                             cmoei_buffer *config, cmoe_error *err)
{
    struct stat s;
    char file[4096], other[4096];
    bool there, config_there = false;
    const bool directory = stat(path, &s) == 0 && S_ISDIR(s.st_mode);
    const int n = snprintf(file, sizeof file, directory ? "%s/tokenizer.json" : "%s", path);
    const int m = snprintf(other, sizeof other, "%s/tokenizer_config.json", path);
    if (n < 0 || n >= (int)sizeof file || m < 0 || (directory && m >= (int)sizeof other))
        return cmoei_fail(err, CMOE_ERR_ARG, "tokenizer: path of %zu bytes, want at most 4000",
                          strlen(path));
    CMOEI_TRY(read_file(json, file, false, &there, err));
    if (directory) CMOEI_TRY(read_file(config, other, true, &config_there, err));
    return cmoei_tokenizer_parse(t, json->data, json->bytes,
                                 config_there ? (config->data ? config->data : "") : NULL,
                                 config->bytes, err);
}

cmoe_status cmoei_tokenizer_load(cmoe_tokenizer *t, const char *path, cmoe_error *err)
{
    cmoei_buffer json = {.ctx = t->ctx}, config = {.ctx = t->ctx};
    const cmoe_status status = load_from(t, path, &json, &config, err);
    cmoei_buffer_free(&json);
    cmoei_buffer_free(&config);
    return status;
}
