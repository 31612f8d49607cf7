/* SPDX-License-Identifier: MIT
 *
 * bpe.c - a tokenizer from files of text, written as Hugging Face's tokenizers write theirs.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmoe/train.h"
#include "dataset_lines.h"
#include "text/bpe.h"
#include "text/bpe_train.h"

enum { MOST_VOCAB = 1 << 20, BYTES = 256, MOST_SPECIAL = 1024, MOST_PATH = 3900 };

static const char *const default_special[] = {"<|endoftext|>", NULL};
static const cmoe_bpe_options defaults = {
    .size = sizeof defaults, .vocab = 4096, .least = 2, .from = 0, .to = 1};

void cmoe_bpe_options_default(cmoe_bpe_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

/* ---- what is accepted ------------------------------------------------------------------------- */

static cmoe_status check_special(const char *const *special, int64_t *count, cmoe_error *err)
{
    for (*count = 0; special[*count]; ++*count) {
        const char *s = special[*count];
        const int64_t i = *count, bytes = (int64_t)strlen(s);
        if (i == MOST_SPECIAL)
            return cmoei_fail(err, CMOE_ERR_RANGE, "special: more than %d tokens", MOST_SPECIAL);
        if (bytes == 0 || cmoei_utf8_check(s, bytes) >= 0)
            return cmoei_fail(err, CMOE_ERR_ARG, "special[%" PRId64 "] is %s, want a text", i,
                              bytes ? "no UTF-8" : "empty");
        for (int64_t k = 0; k < i; k++)
            if (!strcmp(special[k], s))
                return cmoei_fail(err, CMOE_ERR_ARG,
                                  "special[%" PRId64 "] = \"%.60s\" is there twice", i, s);
    }
    return CMOE_OK;
}

static cmoe_status check_options(const cmoe_bpe_options *o, int64_t special, cmoe_error *err)
{
    if (o->vocab < BYTES + special || o->vocab > MOST_VOCAB)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "vocab = %" PRId64 ", want %" PRId64 " (%d bytes, %" PRId64
                          " special tokens) to %d",
                          o->vocab, BYTES + special, BYTES, special, MOST_VOCAB);
    if (o->least < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "least = %" PRId64 ", want 1 or more", o->least);
    return CMOE_OK;
}

/* ---- learning --------------------------------------------------------------------------------- */

static cmoe_status add_string(cmoei_words *w, const json_t *object, const char *key,
                              cmoe_error *err)
{
    const json_t *v = json_object_get(object, key);
    return json_is_string(v)
               ? cmoei_words_add(w, json_string_value(v), (int64_t)json_string_length(v), err)
               : CMOE_OK;
}

static cmoe_status add_line(cmoei_words *w, const char *line, int64_t bytes, cmoe_error *err)
{
    json_t *object;
    cmoei_line_kind kind;
    CMOEI_TRY(cmoei_line_parse(&object, line, bytes, &kind, err));
    const json_t *messages = json_object_get(object, "messages");
    cmoe_status status = add_string(w, object, "text", err);
    if (status == CMOE_OK) status = add_string(w, object, "prompt", err);
    if (status == CMOE_OK) status = add_string(w, object, "completion", err);
    for (size_t i = 0; i < json_array_size(messages) && status == CMOE_OK; i++)
        status = add_string(w, json_array_get(messages, i), "content", err);
    json_decref(object);
    return status;
}

static cmoe_status add_lines(cmoei_words *w, const cmoei_text_file *f, cmoe_error *err)
{
    cmoe_error inner = {.size = sizeof inner};
    const char *line;
    int64_t bytes, at = 0;
    for (int64_t number = f->begin; cmoei_text_file_line(f, &at, &line, &bytes); number++) {
        const cmoe_status status =
            cmoei_line_blank(line, bytes) ? CMOE_OK : add_line(w, line, bytes, &inner);
        if (status != CMOE_OK)
            return cmoei_fail(err, status, "%s: line %" PRId64 ": %s", f->shown.text, number,
                              inner.text);
    }
    return CMOE_OK;
}

static cmoe_status add_file(cmoei_words *w, const char *path, const cmoe_bpe_options *o,
                            cmoe_error *err)
{
    cmoei_text_file f;
    CMOEI_TRY(cmoei_text_file_open(&f, w->ctx, path, o->from, o->to, err));
    cmoe_status status = f.lines ? add_lines(w, &f, err) : cmoei_text_file_check(&f, err);
    if (status == CMOE_OK && !f.lines) status = cmoei_words_add(w, f.text, f.bytes, err);
    cmoei_text_file_close(&f, w->ctx);
    return status;
}

static cmoe_status learn(cmoei_vocabulary *v, cmoe_ctx *ctx, const char *const *paths,
                         int64_t count, const cmoe_bpe_options *o, int64_t special, cmoe_error *err)
{
    cmoei_words w;
    cmoe_status status = cmoei_words_open(&w, ctx, err);
    for (int64_t i = 0; i < count && status == CMOE_OK; i++)
        status = add_file(&w, paths[i], o, err);
    if (status == CMOE_OK) status = cmoei_bpe_learn(v, &w, o->vocab - special, o->least, err);
    cmoei_words_close(&w);
    CMOEI_TRY(status);
    const int64_t got = v->tokens + special;
    if (got == o->vocab) return CMOE_OK;
    cmoei_vocabulary_free(v);
    return cmoei_fail(err, CMOE_ERR_RANGE,
                      "vocab = %" PRId64 ", but the text gives %" PRId64 " (%d bytes, %" PRId64
                      " merges of pairs that occur %" PRId64 " times or more, %" PRId64
                      " special tokens)",
                      o->vocab, got, BYTES, got - BYTES - special, o->least, special);
}

/* ---- tokenizer.json ---------------------------------------------------------------------------- */

static cmoe_status no_memory(cmoe_error *err)
{
    return cmoei_fail(err, CMOE_ERR_MEMORY, "no memory for tokenizer.json");
}

/* A token as the file writes it: a character for each byte. */
static cmoe_status written(cmoei_buffer *out, const cmoei_vocabulary *v, int64_t id,
                           cmoe_error *err)
{
    const int64_t *begin = (const int64_t *)(const void *)v->begin.data;
    char character[4];
    out->bytes = 0;
    for (int64_t i = begin[id]; i < begin[id + 1]; i++) {
        const int32_t byte = (unsigned char)v->text.data[i];
        const int32_t n = cmoei_utf8_put(character, cmoei_byte_character(byte));
        CMOEI_TRY(cmoei_buffer_add(out, character, n, err));
    }
    return CMOE_OK;
}

static cmoe_status put_vocab(json_t *vocab, const cmoei_vocabulary *v, cmoei_buffer *work,
                             const char *const *special, cmoe_error *err)
{
    for (int64_t id = 0; id < v->tokens; id++) {
        CMOEI_TRY(written(work, v, id, err));
        if (json_object_setn_new(vocab, work->data, (size_t)work->bytes, json_integer(id)) != 0)
            return no_memory(err);
    }
    for (int64_t i = 0; special[i]; i++) {
        if (json_object_get(vocab, special[i]))
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "special[%" PRId64 "] = \"%.60s\" is a token of the text as well", i,
                              special[i]);
    }
    return CMOE_OK;
}

static cmoe_status put_merges(json_t *merges, const cmoei_vocabulary *v, cmoei_buffer *work,
                              cmoe_error *err)
{
    const cmoei_learned_merge *m = (const cmoei_learned_merge *)(const void *)v->merges.data;
    for (int64_t i = 0; i < v->merges.bytes / (int64_t)sizeof *m; i++) {
        json_t *pair = json_array();
        bool ok = json_array_append_new(merges, pair) == 0;
        CMOEI_TRY(written(work, v, m[i].left, err));
        ok = ok && json_array_append_new(pair, json_stringn(work->data, (size_t)work->bytes)) == 0;
        CMOEI_TRY(written(work, v, m[i].right, err));
        ok = ok && json_array_append_new(pair, json_stringn(work->data, (size_t)work->bytes)) == 0;
        if (!ok) return no_memory(err);
    }
    return CMOE_OK;
}

static json_t *added_tokens(const char *const *special, int64_t first)
{
    json_t *list = json_array();
    for (int64_t i = 0; special[i]; i++)
        json_array_append_new(list, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id",
                                              (json_int_t)(first + i), "content", special[i],
                                              "single_word", 0, "lstrip", 0, "rstrip", 0,
                                              "normalized", 0, "special", 1));
    return list;
}

static json_t *byte_level(void)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", 1);
}

static cmoe_status tokenizer_text(cmoei_buffer *out, const cmoei_vocabulary *v,
                                  const char *const *special, cmoe_error *err)
{
    cmoei_buffer work = {.ctx = out->ctx};
    json_t *vocab = json_object(), *merges = json_array();
    json_t *root =
        json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:n, s:o, s:{s:s, s:n, s:n, s:n, s:n, s:b, s:b, "
                  "s:b, s:o, s:o}}",
                  "version", "1.0", "truncation", "padding", "added_tokens",
                  added_tokens(special, v->tokens), "normalizer", "pre_tokenizer", byte_level(),
                  "post_processor", "decoder", byte_level(), "model", "type", "BPE", "dropout",
                  "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                  "byte_fallback", 0, "ignore_merges", 0, "vocab", vocab, "merges", merges);
    cmoe_status status = root ? put_vocab(vocab, v, &work, special, err) : no_memory(err);
    if (status == CMOE_OK) status = put_merges(merges, v, &work, err);
    if (status == CMOE_OK) status = cmoei_json_append(out, root, JSON_INDENT(1), err);
    cmoei_buffer_free(&work);
    json_decref(root);
    return status;
}

/* model_max_length: what transformers writes for "no limit". */
static cmoe_status config_text(cmoei_buffer *out, const char *eos, cmoe_error *err)
{
    json_t *root =
        json_pack("{s:s, s:s*, s:f, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                  "eos_token", eos, "model_max_length", 1e30, "clean_up_tokenization_spaces", 0);
    const cmoe_status status =
        root ? cmoei_json_append(out, root, JSON_INDENT(1), err) : no_memory(err);
    json_decref(root);
    return status;
}

/* ---- files ------------------------------------------------------------------------------------- */

/* tokenizer.json last, as it is what readers look for; a configuration alone does not stay. */
static cmoe_status write_both(const char *dir, const cmoei_buffer *config,
                              const cmoei_buffer *tokenizer, cmoe_error *err)
{
    char config_path[4096], path[4096];
    if (strlen(dir) > MOST_PATH)
        return cmoei_fail(err, CMOE_ERR_ARG, "out_dir has %zu bytes, want at most %d", strlen(dir),
                          MOST_PATH);
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be made: %s", cmoei_path_shown(dir).text,
                          cmoei_errno_text(errno).text);
    snprintf(config_path, sizeof config_path, "%s/tokenizer_config.json", dir);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    const bool was_there = access(config_path, F_OK) == 0;
    CMOEI_TRY(cmoei_file_write(config_path, config->data, config->bytes, err));
    const cmoe_status status = cmoei_file_write(path, tokenizer->data, tokenizer->bytes, err);
    if (status != CMOE_OK && !was_there) (void)unlink(config_path);
    return status;
}

static cmoe_status write_tokenizer(cmoe_ctx *ctx, const cmoei_vocabulary *v,
                                   const char *const *special, const char *dir, cmoe_error *err)
{
    cmoei_buffer tokenizer = {.ctx = ctx}, config = {.ctx = ctx};
    cmoe_status status = tokenizer_text(&tokenizer, v, special, err);
    if (status == CMOE_OK) status = config_text(&config, special[0], err);
    if (status == CMOE_OK) status = write_both(dir, &config, &tokenizer, err);
    cmoei_buffer_free(&tokenizer);
    cmoei_buffer_free(&config);
    return status;
}

cmoe_status cmoe_bpe_train(cmoe_ctx *ctx, const char *const *paths, int64_t count,
                           const cmoe_bpe_options *options, const char *out_dir, cmoe_error *err)
{
    cmoe_bpe_options o = defaults;
    int64_t special;
    if (!ctx || !paths || !out_dir)
        return cmoei_fail(err, CMOE_ERR_ARG, "bpe_train: %s is NULL",
                          !ctx     ? "ctx"
                          : !paths ? "paths"
                                   : "out_dir");
    CMOEI_TRY(cmoei_options_read(&o, sizeof o, options, "bpe options", err));
    if (!o.special) o.special = default_special;
    if (count < 1)
        return cmoei_fail(err, CMOE_ERR_RANGE, "bpe_train: %" PRId64 " files, want 1 or more",
                          count);
    for (int64_t i = 0; i < count; i++)
        if (!paths[i]) return cmoei_fail(err, CMOE_ERR_ARG, "paths[%" PRId64 "] is NULL", i);
    CMOEI_TRY(check_special(o.special, &special, err));
    CMOEI_TRY(check_options(&o, special, err));
    cmoei_vocabulary v;
    CMOEI_TRY(learn(&v, ctx, paths, count, &o, special, err));
    const cmoe_status status = write_tokenizer(ctx, &v, o.special, out_dir, err);
    cmoei_vocabulary_free(&v);
    return status;
}
