/* SPDX-License-Identifier: MIT
 *
 * template.c - chat templates: where they are found, and the public calls around the interpreter.
 */
#include "cmoe/text.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "text/jinja.h"
#include "text/template.h"

enum {
    FILE_MOST = 64 << 20,    /* bytes of a template or of a configuration */
    PARSE_STEPS = 100000000, /* far beyond what a file of that size can honestly need */
    NAME_MOST = 120
};

struct cmoe_template {
    cmoe_ctx *ctx;
    jj_chunk *chunks; /* where the tree lies */
    const jj_node *root;
    const jj_string *const *symbols; /* [n_symbols] */
    int32_t n_symbols;
    char name[NAME_MOST]; /* for error texts */
};

/* ---- parsing --------------------------------------------------------------------------------- */

static jj_env env_open(cmoe_ctx *ctx, const char *name, cmoe_error *err)
{
    return (jj_env){.ctx = ctx, .err = err, .name = name, .line = 1};
}

cmoe_status cmoe_template_parse(cmoe_template **out, cmoe_ctx *ctx, const char *source,
                                int64_t bytes, const char *name, cmoe_error *err)
{
    if (!out || !ctx) return cmoei_fail(err, CMOE_ERR_ARG, "template: out and ctx must be given");
    if (bytes < 0 || (bytes > 0 && !source))
        return cmoei_fail(err, CMOE_ERR_ARG, "template: source of %lld bytes is not there",
                          (long long)bytes);
    if (bytes > FILE_MOST)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "template: source has %lld bytes, want at most %d",
                          (long long)bytes, FILE_MOST);
    void *memory = NULL;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof(cmoe_template), "template", &memory, err));
    cmoe_template *t = memory;
    *t = (cmoe_template){.ctx = ctx};
    snprintf(t->name, sizeof t->name, "%s", name ? name : "source");
    jj_env e = env_open(ctx, t->name, err);
    e.steps_limit = PARSE_STEPS;
    e.out_limit = FILE_MOST;
    e.memory_limit = (64 << 20) + 400 * bytes; /* a node for every other byte */
    jj_parser p = {.e = &e};
    jj_node *root = NULL;
    const uint64_t mode = cmoei_float_enter(); /* numbers of the source are rounded as usual */
    const bool ok = cmoei_jj_lex_open(&p.lexer, &e, source, bytes) && cmoei_jj_parse(&p, &root);
    cmoei_float_leave(mode);
    t->chunks = e.chunks;
    t->root = root;
    t->symbols = (const jj_string *const *)p.symbols;
    t->n_symbols = p.n_symbols;
    e.chunks = NULL;
    cmoei_jj_env_close(&e);
    if (!ok) {
        cmoe_template_free(t);
        return e.status;
    }
    *out = t;
    return CMOE_OK;
}

void cmoe_template_free(cmoe_template *t)
{
    if (!t) return;
    jj_env e = env_open(t->ctx, t->name, NULL);
    e.chunks = t->chunks;
    cmoei_jj_env_close(&e);
    cmoei_free(t->ctx, t, (int64_t)sizeof *t);
}

cmoe_ctx *cmoei_template_ctx(const cmoe_template *t)
{
    return t->ctx;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* CMOE_ERR_IO with *missing set when there is no such file. */
static cmoe_status read_file(cmoe_ctx *ctx, const char *path, char **data, int64_t *bytes,
                             bool *missing, cmoe_error *err)
{
    struct stat s;
    *data = NULL;
    *bytes = 0;
    /* Without O_NONBLOCK a FIFO would be waited for; it changes nothing for regular files. */
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    *missing = fd < 0 && (errno == ENOENT || errno == ENOTDIR);
    if (fd < 0) return cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
    cmoe_status status = CMOE_OK;
    void *memory = NULL;
    int64_t n = 0;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode))
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: not a regular file", path);
    else if (s.st_size > FILE_MOST)
        status = cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %lld bytes, want at most %d", path,
                            (long long)s.st_size, FILE_MOST);
    else
        status = cmoei_alloc(ctx, CMOEI_MAX((int64_t)s.st_size, (int64_t)1), path, &memory, err);
    while (status == CMOE_OK && n < s.st_size) {
        const ssize_t got = read(fd, (char *)memory + n, (size_t)(s.st_size - n));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) status = cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
        if (got <= 0) break;
        n += got;
    }
    close(fd);
    if (status == CMOE_OK && n < s.st_size)
        status = cmoei_fail(err, CMOE_ERR_IO, "%s: shorter than it was a moment ago", path);
    if (status != CMOE_OK && memory)
        cmoei_free(ctx, memory, CMOEI_MAX((int64_t)s.st_size, (int64_t)1));
    if (status != CMOE_OK) return status;
    *data = memory;
    *bytes = n;
    return CMOE_OK;
}

static void free_file(cmoe_ctx *ctx, char *data, int64_t bytes)
{
    cmoei_free(ctx, data, CMOEI_MAX(bytes, (int64_t)1));
}

/* The template of this name from [{"name": ..., "template": ...}, ...]. */
static cmoe_status from_list(json_t *list, const char *path, const char *name, json_t **found,
                             cmoe_error *err)
{
    char names[200] = "";
    size_t used = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *item = json_array_get(list, i);
        const char *is = json_string_value(json_object_get(item, "name"));
        if (!is) continue;
        *found = json_object_get(item, "template");
        if (!strcmp(is, name ? name : "default")) return CMOE_OK;
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, " %s", is);
    }
    *found = NULL;
    return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: no chat template \"%.60s\", want one of:%s", path,
                      name ? name : "default", names);
}

/* chat_template of a JSON file.  *missing: it has none. */
static cmoe_status open_json(cmoe_template **out, cmoe_ctx *ctx, const char *path, const char *name,
                             const char *data, int64_t bytes, bool *missing, cmoe_error *err)
{
    json_error_t why;
    json_t *j = json_loadb(data, (size_t)bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!j)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: no JSON: %s (line %d)", path, why.text,
                          why.line);
    json_t *source = json_object_get(j, "chat_template");
    cmoe_status status = CMOE_OK;
    *missing = !source || json_is_null(source);
    if (json_is_array(source)) {
        status = from_list(source, path, name, &source, err);
    } else if (!*missing && name && strcmp(name, "default") != 0) {
        status = cmoei_fail(err, CMOE_ERR_FORMAT,
                            "%s: no chat template \"%.60s\", want one of: default", path, name);
    }
    if (status == CMOE_OK && !*missing && !json_is_string(source))
        status = cmoei_fail(err, CMOE_ERR_FORMAT, "%s: chat_template is no string", path);
    if (status == CMOE_OK && !*missing)
        status = cmoe_template_parse(out, ctx, json_string_value(source),
                                     (int64_t)json_string_length(source), path, err);
    json_decref(j);
    return status;
}

/* One of the places of a model's directory.  *missing: it is not there. */
static cmoe_status open_place(cmoe_template **out, cmoe_ctx *ctx, const char *directory,
                              const char *file, const char *name, bool *missing, cmoe_error *err)
{
    char path[4096], *data = NULL;
    int64_t bytes = 0;
    if (snprintf(path, sizeof path, "%s/%s", directory, file) >= (int)sizeof path)
        return cmoei_fail(err, CMOE_ERR_ARG, "template: path is too long");
    const size_t length = strlen(path);
    cmoe_status status = read_file(ctx, path, &data, &bytes, missing, err);
    if (status != CMOE_OK) return status;
    /* The end of a long path says more than its beginning. */
    const char *shown = length < NAME_MOST ? path : path + length - (NAME_MOST - 1);
    if (length > 5 && !strcmp(path + length - 5, ".json"))
        status = open_json(out, ctx, shown, name, data, bytes, missing, err);
    else if (name && strcmp(name, "default") != 0)
        *missing = true; /* this file holds the default one only */
    else
        status = cmoe_template_parse(out, ctx, data, bytes, shown, err);
    free_file(ctx, data, bytes);
    return status;
}

cmoe_status cmoe_template_open(cmoe_template **out, cmoe_ctx *ctx, const char *path,
                               const char *name, cmoe_error *err)
{
    static const char *const places[] = {"chat_template.jinja", "tokenizer_config.json",
                                         "chat_template.json"};
    struct stat s;
    bool missing = false;
    if (!out || !ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "template: out, ctx and path must be given");
    if (stat(path, &s) != 0) return cmoei_fail(err, CMOE_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(s.st_mode)) {
        char *data = NULL;
        int64_t bytes = 0;
        if (name && strcmp(name, "default") != 0)
            return cmoei_fail(err, CMOE_ERR_ARG,
                              "%s: is one template, name \"%.60s\" must not be given", path, name);
        CMOEI_TRY(read_file(ctx, path, &data, &bytes, &missing, err));
        const char *slash = strrchr(path, '/');
        const cmoe_status status =
            cmoe_template_parse(out, ctx, data, bytes, slash ? slash + 1 : path, err);
        free_file(ctx, data, bytes);
        return status;
    }
    for (int i = 0; i < 3; i++) {
        missing = false;
        const cmoe_status status = open_place(out, ctx, path, places[i], name, &missing, err);
        if (!missing) return status;
    }
    return cmoei_fail(err, CMOE_ERR_IO,
                      "%s: no chat template: want chat_template.jinja, or chat_template in "
                      "tokenizer_config.json or chat_template.json%s%.60s",
                      path, name ? ", named " : "", name ? name : "");
}

/* ---- rendering ------------------------------------------------------------------------------- */

static cmoe_render_options defaults(void)
{
    return (cmoe_render_options){
        .size = sizeof(cmoe_render_options), .steps = 10000000, .output = 64 << 20};
}

void cmoe_render_options_default(cmoe_render_options *o, size_t size)
{
    const cmoe_render_options d = defaults();
    cmoei_options_write(o, size, &d, sizeof d);
}

/* What the template's names stand for outside of it: variables, then functions. */
static bool bind_globals(jj_env *e, const char *variables, int64_t bytes)
{
    jj_value all;
    JJ_TRY(cmoei_jj_json(e, variables, bytes, "variables", &all));
    if (all.kind != JJ_DICT) return cmoei_jj_fail(e, "variables are no JSON object");
    e->globals = cmoei_jj_take(e, e->n_symbols, sizeof *e->globals);
    if (!e->globals) return false;
    for (int32_t i = 0; i < e->n_symbols; i++) {
        const jj_pair *pair = cmoei_jj_dict_find_name(e, all.u.dict, e->symbols[i]);
        const jj_builtin *f = cmoei_jj_find_function(e->symbols[i]);
        if (e->status != CMOE_OK) return false;
        if (pair)
            e->globals[i] = pair->value;
        else if (f)
            e->globals[i] = (jj_value){.kind = JJ_FUNCTION, .u.function = f};
        else
            JJ_TRY(cmoei_jj_undefined(e, NULL, e->symbols[i], &e->globals[i]));
    }
    return true;
}

static bool render(jj_env *e, const cmoe_template *t, const char *variables, int64_t bytes)
{
    JJ_TRY(bind_globals(e, variables, bytes) && cmoei_jj_scope_open(e, NULL, &e->scope));
    return cmoei_jj_exec(e, t->root) != JJ_FAILED;
}

cmoe_status cmoe_template_render(const cmoe_template *t, const cmoe_render_options *o,
                                 const char *variables, int64_t variables_bytes, char **text,
                                 int64_t *bytes, cmoe_error *err)
{
    cmoe_render_options opt = defaults();
    if (!t || !text || !bytes)
        return cmoei_fail(err, CMOE_ERR_ARG, "render: template, text and bytes must be given");
    if (variables_bytes < 0 || (variables_bytes > 0 && !variables))
        return cmoei_fail(err, CMOE_ERR_ARG, "render: variables of %lld bytes are not there",
                          (long long)variables_bytes);
    CMOEI_TRY(cmoei_options_read(&opt, sizeof opt, o, "cmoe_render_options", err));
    if (opt.steps < 1 || opt.steps > INT64_MAX / 2 || opt.output < 0 || opt.output > INT64_MAX / 64)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "render: steps = %lld, output = %lld, want steps > 0 "
                          "and output >= 0",
                          (long long)opt.steps, (long long)opt.output);
    jj_env e = env_open(t->ctx, t->name, err);
    e.steps_limit = opt.steps;
    e.out_limit = opt.output;
    e.memory_limit = (64 << 20) + 8 * opt.output + 64 * variables_bytes;
    e.symbols = t->symbols;
    e.n_symbols = t->n_symbols;
    e.now = opt.now;
    const uint64_t mode = cmoei_float_enter();
    bool ok = render(&e, t, variables, variables_bytes);
    cmoei_float_leave(mode);
    void *copy = NULL;
    if (ok) {
        e.status =
            cmoei_alloc(t->ctx, CMOEI_MAX(e.out_bytes, (int64_t)1), "rendered text", &copy, err);
        ok = e.status == CMOE_OK;
    }
    if (ok) {
        if (e.out_bytes) memcpy(copy, e.out, (size_t)e.out_bytes);
        *text = copy;
        *bytes = e.out_bytes;
    }
    cmoei_jj_env_close(&e);
    return ok ? CMOE_OK : e.status;
}

void cmoe_text_free(cmoe_ctx *ctx, char *text, int64_t bytes)
{
    if (ctx && text) cmoei_free(ctx, text, CMOEI_MAX(bytes, (int64_t)1));
}
