/* SPDX-License-Identifier: MIT
 *
 * tokenizer.c - the public functions: text to ids, ids to text, at once or as they come.
 *
 * A tokenizer is never written to after it was opened; whatever a call needs it opens itself.
 */
#include "tokenizer.h"

#include <string.h>

cmoe_status cmoe_tokenizer_open(cmoe_tokenizer **out, cmoe_ctx *ctx, const char *path,
                                cmoe_error *err)
{
    if (!out || !ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "tokenizer: %s is NULL, want %s",
                          !out   ? "out"
                          : !ctx ? "ctx"
                                 : "path",
                          !out   ? "a place for the tokenizer"
                          : !ctx ? "a context"
                                 : "a model's directory or a tokenizer.json");
    void *p;
    CMOEI_TRY(cmoei_alloc(ctx, sizeof(cmoe_tokenizer), "tokenizer", &p, err));
    cmoe_tokenizer *t = p;
    *t = (cmoe_tokenizer){.ctx = ctx, .pool = {.ctx = ctx}, .bos = -1, .eos = -1};
    const cmoe_status status = cmoei_tokenizer_load(t, path, err);
    if (status != CMOE_OK) {
        cmoe_tokenizer_free(t);
        return status;
    }
    *out = t;
    return CMOE_OK;
}

void cmoei_tokenizer_clear(cmoe_tokenizer *t)
{
    for (int32_t i = 0; i < t->pres; i++)
        if (t->pre[i].pattern.ctx) cmoei_pattern_free(&t->pre[i].pattern);
    pcre2_general_context_free(t->memory);
    cmoei_text_pool_free(&t->pool);
}

void cmoe_tokenizer_free(cmoe_tokenizer *t)
{
    if (!t) return;
    cmoei_tokenizer_clear(t);
    cmoei_free(t->ctx, t, sizeof *t);
}

int64_t cmoe_tokenizer_size(const cmoe_tokenizer *t)
{
    return t ? t->names.size : 0;
}

int64_t cmoe_tokenizer_id(const cmoe_tokenizer *t, const char *token)
{
    return t && token ? cmoei_names_find(&t->names, token, (int64_t)strlen(token)) : -1;
}

const char *cmoe_tokenizer_token(const cmoe_tokenizer *t, int64_t id)
{
    return t && id >= 0 && id < t->names.size ? t->names.text[id] : NULL;
}

int32_t cmoe_tokenizer_is_special(const cmoe_tokenizer *t, int64_t id)
{
    return t && id >= 0 && id < t->names.size && t->special[id];
}

int64_t cmoe_tokenizer_bos(const cmoe_tokenizer *t)
{
    return t ? t->bos : -1;
}

int64_t cmoe_tokenizer_eos(const cmoe_tokenizer *t)
{
    return t ? t->eos : -1;
}

/* ---- encoding -------------------------------------------------------------------------------- */

static const cmoe_encode_options defaults = {
    .size = sizeof defaults, .add_special = 1, .parse_special = 1};

void cmoe_encode_options_default(cmoe_encode_options *o, size_t size)
{
    cmoei_options_write(o, size, &defaults, sizeof defaults);
}

static cmoe_status check_encode(const cmoe_tokenizer *t, const cmoe_encode_options *given,
                                cmoe_encode_options *o, const char *text, int64_t bytes,
                                const int32_t *ids, int64_t capacity, const int64_t *count,
                                cmoe_error *err)
{
    if (!t) return cmoei_fail(err, CMOE_ERR_ARG, "encode: tokenizer is NULL");
    CMOEI_TRY(cmoei_options_read(o, sizeof *o, given, "encode options", err));
    CMOEI_TRY(cmoei_check_flag(o->add_special, "add_special", err));
    CMOEI_TRY(cmoei_check_flag(o->parse_special, "parse_special", err));
    if (!count) return cmoei_fail(err, CMOE_ERR_ARG, "encode: count is NULL");
    if (bytes < 0 || bytes > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_RANGE, "encode: text of %lld bytes, want 0 to %d",
                          (long long)bytes, INT32_MAX);
    if (!text && bytes) return cmoei_fail(err, CMOE_ERR_ARG, "encode: text is NULL");
    if (capacity < 0 || (!ids && capacity))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "encode: ids %s, capacity = %lld, want room for so many",
                          ids ? "given" : "NULL", (long long)capacity);
    const int64_t bad = cmoei_utf8_check(text, bytes);
    if (bad >= 0)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "text: byte %lld (0x%02x) is no UTF-8",
                          (long long)bad, (unsigned)(unsigned char)text[bad]);
    return CMOE_OK;
}

static cmoe_status encode_normalized(cmoei_encoder *e, const char *s, int64_t bytes, bool first)
{
    return cmoei_pre_run(e, s, bytes, first);
}

static cmoe_status encode_raw(cmoei_encoder *e, const char *s, int64_t bytes, bool first)
{
    cmoei_text text = {s, bytes};
    CMOEI_TRY(cmoei_normalizers_run(e->t, e->normal, &text, e->err));
    if (text.bytes > INT32_MAX)
        return cmoei_fail(e->err, CMOE_ERR_RANGE,
                          "text: %lld bytes after normalising, want at most %d",
                          (long long)text.bytes, INT32_MAX);
    return cmoei_added_split(e, &e->t->normalized, text.s, text.bytes, first, encode_normalized);
}

static cmoe_status encoder_open(cmoei_encoder *e, const cmoe_tokenizer *t, int64_t bytes)
{
    e->normal[0].ctx = e->normal[1].ctx = e->found[0].ctx = e->found[1].ctx = t->ctx;
    for (int32_t i = 0; i < t->pres; i++)
        e->step[i].ctx = t->ctx;
    CMOEI_TRY(cmoei_bpe_open(&e->work, t->ctx, bytes, e->err));
    for (int32_t i = 0; i < t->pres; i++)
        if (t->pre[i].kind == CMOEI_PRE_SPLIT)
            return cmoei_matcher_open(&e->matcher, t->memory, e->err);
    return CMOE_OK;
}

static void encoder_close(cmoei_encoder *e)
{
    for (int32_t i = 0; i < 2; i++) {
        cmoei_buffer_free(&e->normal[i]);
        cmoei_buffer_free(&e->found[i]);
    }
    for (int32_t i = 0; i < e->t->pres; i++)
        cmoei_buffer_free(&e->step[i]);
    cmoei_bpe_close(&e->work);
    cmoei_matcher_close(&e->matcher);
}

cmoe_status cmoe_tokenizer_encode(const cmoe_tokenizer *t, const cmoe_encode_options *o,
                                  const char *text, int64_t bytes, int32_t *ids, int64_t capacity,
                                  int64_t *count, cmoe_error *err)
{
    cmoe_encode_options options = defaults;
    CMOEI_TRY(check_encode(t, o, &options, text, bytes, ids, capacity, count, err));
    cmoei_encoder e = {
        .t = t, .err = err, .parse_special = options.parse_special != 0, .ids = {ids, capacity, 0}};
    cmoe_status status = encoder_open(&e, t, bytes);
    if (status == CMOE_OK) {
        for (int64_t i = 0; options.add_special && i < t->prefix_count; i++)
            cmoei_ids_add(&e.ids, t->prefix[i]);
        status = cmoei_added_split(&e, &t->raw, text, bytes, true, encode_raw);
        for (int64_t i = 0; options.add_special && i < t->suffix_count; i++)
            cmoei_ids_add(&e.ids, t->suffix[i]);
    }
    encoder_close(&e);
    if (status == CMOE_OK) *count = e.ids.count;
    return status;
}

/* ---- decoding -------------------------------------------------------------------------------- */

cmoe_status cmoe_tokenizer_decode(const cmoe_tokenizer *t, const int32_t *ids, int64_t count,
                                  int32_t skip_special, char *text, int64_t capacity,
                                  int64_t *bytes, cmoe_error *err)
{
    if (!t) return cmoei_fail(err, CMOE_ERR_ARG, "decode: tokenizer is NULL");
    CMOEI_TRY(cmoei_check_flag(skip_special, "skip_special", err));
    if (!bytes) return cmoei_fail(err, CMOE_ERR_ARG, "decode: bytes is NULL");
    if (count < 0 || (!ids && count))
        return cmoei_fail(err, CMOE_ERR_ARG, "decode: ids %s, count = %lld, want so many ids",
                          ids ? "given" : "NULL", (long long)count);
    if (capacity < 0 || (!text && capacity))
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "decode: text %s, capacity = %lld, want room for so many bytes",
                          text ? "given" : "NULL", (long long)capacity);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0)
            return cmoei_fail(err, CMOE_ERR_RANGE, "ids[%lld] = %d, want 0 <= id", (long long)i,
                              (int)ids[i]);
    cmoei_decode d;
    cmoei_decode_open(&d, t, skip_special != 0);
    d.sink = (cmoei_sink){text, capacity, 0, NULL};
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0; i < count && status == CMOE_OK; i++)
        status = cmoei_decode_push(&d, ids[i], err);
    if (status == CMOE_OK) status = cmoei_decode_finish(&d, err);
    cmoei_decode_close(&d);
    if (status == CMOE_OK) *bytes = d.sink.bytes;
    return status;
}

struct cmoe_detokenizer {
    cmoei_decode decode;
    cmoei_buffer text; /* of the last call */
    bool finished;
};

cmoe_status cmoe_detokenizer_create(cmoe_detokenizer **out, const cmoe_tokenizer *t,
                                    int32_t skip_special, cmoe_error *err)
{
    if (!out || !t)
        return cmoei_fail(err, CMOE_ERR_ARG, "detokenizer: %s is NULL", out ? "tokenizer" : "out");
    CMOEI_TRY(cmoei_check_flag(skip_special, "skip_special", err));
    void *p;
    CMOEI_TRY(cmoei_alloc(t->ctx, sizeof(cmoe_detokenizer), "detokenizer", &p, err));
    cmoe_detokenizer *d = p;
    *d = (cmoe_detokenizer){.text = {.ctx = t->ctx}};
    cmoei_decode_open(&d->decode, t, skip_special != 0);
    d->decode.sink.grows = &d->text;
    *out = d;
    return CMOE_OK;
}

void cmoe_detokenizer_free(cmoe_detokenizer *d)
{
    if (!d) return;
    cmoe_ctx *ctx = d->text.ctx;
    cmoei_decode_close(&d->decode);
    cmoei_buffer_free(&d->text);
    cmoei_free(ctx, d, sizeof *d);
}

static cmoe_status detokenizer_check(const cmoe_detokenizer *d, const char **text,
                                     const int64_t *bytes, cmoe_error *err)
{
    if (!d || !text || !bytes)
        return cmoei_fail(err, CMOE_ERR_ARG, "detokenizer: %s is NULL",
                          !d      ? "detokenizer"
                          : !text ? "text"
                                  : "bytes");
    if (d->finished)
        return cmoei_fail(err, CMOE_ERR_ARG, "detokenizer: already finished, want a new one");
    return CMOE_OK;
}

static void detokenizer_give(cmoe_detokenizer *d, const char **text, int64_t *bytes)
{
    *text = d->text.bytes ? d->text.data : "";
    *bytes = d->text.bytes;
}

cmoe_status cmoe_detokenizer_push(cmoe_detokenizer *d, int32_t id, const char **text,
                                  int64_t *bytes, cmoe_error *err)
{
    CMOEI_TRY(detokenizer_check(d, text, bytes, err));
    if (id < 0) return cmoei_fail(err, CMOE_ERR_RANGE, "id = %d, want 0 <= id", (int)id);
    d->text.bytes = 0;
    CMOEI_TRY(cmoei_decode_push(&d->decode, id, err));
    detokenizer_give(d, text, bytes);
    return CMOE_OK;
}

cmoe_status cmoe_detokenizer_finish(cmoe_detokenizer *d, const char **text, int64_t *bytes,
                                    cmoe_error *err)
{
    CMOEI_TRY(detokenizer_check(d, text, bytes, err));
    d->text.bytes = 0;
    CMOEI_TRY(cmoei_decode_finish(&d->decode, err));
    d->finished = true;
    detokenizer_give(d, text, bytes);
    return CMOE_OK;
}
