/* SPDX-License-Identifier: MIT
 *
 * tokenizer_model.c - vocabulary, merges and added tokens of tokenizer.json.
 */
#include <string.h>

#include "tokenizer_json.h"

/* Ids may have gaps, but a file of a few tokens cannot ask for gigabytes. */
static int64_t most_ids(int64_t tokens)
{
    return CMOEI_MIN(16 * tokens + (1 << 20), INT32_MAX);
}

static cmoe_status check_id(const cmoei_loader *l, const cmoei_place *at, const char *token,
                            const json_t *value, int64_t limit, int64_t *id)
{
    *id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (*id >= 0 && *id < limit) return CMOE_OK;
    return cmoei_loader_fail(l, CMOE_ERR_RANGE, at, "\"%s\" has id %s%lld, want 0 <= id < %lld",
                             cmoei_shown_name(token, (int64_t)strlen(token)).text,
                             json_is_integer(value) ? "" : "no number, ",
                             (long long)(json_is_integer(value) ? json_integer_value(value) : 0),
                             (long long)limit);
}

static cmoe_status put_name(cmoei_loader *l, const cmoei_place *at, const char *text, int64_t bytes,
                            int64_t id)
{
    cmoei_names *names = &l->t->names;
    if (bytes > INT32_MAX)
        return cmoei_loader_fail(l, CMOE_ERR_RANGE, at, "a token of %lld bytes", (long long)bytes);
    if (names->text[id])
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at,
                                 "id %lld belongs to both \"%s\" and \"%s\"", (long long)id,
                                 cmoei_shown_name(names->text[id], names->bytes[id]).text,
                                 cmoei_shown_name(text, bytes).text);
    void *p;
    CMOEI_TRY(cmoei_text_alloc(&l->t->pool, bytes + 1, 1, &p, l->err));
    memcpy(p, text, (size_t)bytes);
    cmoei_names_put(names, (int32_t)id, p, (int32_t)bytes);
    return CMOE_OK;
}

/* ---- added tokens ------------------------------------------------------------------------------ */

static cmoe_status load_added_token(cmoei_loader *l, size_t i, const json_t *value)
{
    cmoe_tokenizer *t = l->t;
    cmoei_added *a = &t->added[t->added_count];
    const cmoei_place at = cmoei_place_at("added_tokens[%zu]", i);
    CMOEI_TRY(cmoei_json_flag(l, &at, value, "single_word", &a->single_word));
    CMOEI_TRY(cmoei_json_flag(l, &at, value, "lstrip", &a->lstrip));
    CMOEI_TRY(cmoei_json_flag(l, &at, value, "rstrip", &a->rstrip));
    CMOEI_TRY(cmoei_json_flag(l, &at, value, "normalized", &a->normalized));
    CMOEI_TRY(cmoei_json_flag(l, &at, value, "special", &a->special));
    CMOEI_TRY(cmoei_json_text(l, &at, value, "content", &a->content));
    if (!a->content.bytes) return CMOE_OK; /* never found in a text */
    int64_t id = json_integer_value(json_object_get(value, "id"));
    const int32_t known = cmoei_names_find(&t->names, a->content.s, a->content.bytes);
    if (known >= 0 && known != id)
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &at, "\"%s\" has id %lld, want its id %d",
                                 cmoei_shown_name(a->content.s, a->content.bytes).text,
                                 (long long)id, (int)known);
    if (known >= 0 && t->added_of[id])
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &at, "\"%s\" is there twice",
                                 cmoei_shown_name(a->content.s, a->content.bytes).text);
    if (known < 0) CMOEI_TRY(put_name(l, &at, a->content.s, a->content.bytes, id));
    a->id = (int32_t)id;
    t->special[id] = a->special;
    t->added_of[id] = (int32_t)++t->added_count;
    return CMOE_OK;
}

/* Sizes from both lists first, so that every table is made once. */
static cmoe_status count_ids(cmoei_loader *l, const json_t *vocab, const json_t *added,
                             int64_t *size)
{
    const cmoei_place at = cmoei_place_at("model.vocab");
    const int64_t limit =
        most_ids((int64_t)json_object_size(vocab) + (int64_t)json_array_size(added));
    const char *key;
    json_t *value;
    int64_t id;
    *size = 0;
    json_object_foreach((json_t *)(uintptr_t)vocab, key, value)
    {
        CMOEI_TRY(check_id(l, &at, key, value, limit, &id));
        *size = CMOEI_MAX(*size, id + 1);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const cmoei_place here = cmoei_place_at("added_tokens[%zu]", i);
        const json_t *v = json_array_get(added, i);
        CMOEI_TRY(cmoei_json_object(l, &here, v,
                                    "id content single_word lstrip rstrip normalized special"));
        const char *content = json_string_value(json_object_get(v, "content"));
        CMOEI_TRY(check_id(l, &here, content ? content : "", json_object_get(v, "id"), limit, &id));
        *size = CMOEI_MAX(*size, id + 1);
    }
    return CMOE_OK;
}

cmoe_status cmoei_load_names(cmoei_loader *l, const json_t *model, const json_t *added)
{
    static const char *const types[] = {"BPE", NULL};
    cmoe_tokenizer *t = l->t;
    const cmoei_place at = cmoei_place_at("model"), in_vocab = cmoei_place_at("model.vocab");
    int32_t type;
    /* Early files do not say: BPE is what has merges. */
    if (!json_is_object(model) || json_object_get(model, "type") ||
        !json_object_get(model, "merges"))
        CMOEI_TRY(cmoei_json_type(l, &at, model, types, &type));
    const json_t *vocab = json_object_get(model, "vocab");
    if (!json_is_object(vocab))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &in_vocab, "is not there, want an object");
    if (added && !json_is_null(added) && !json_is_array(added))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &(cmoei_place){"added_tokens"}, "want a list");
    int64_t size;
    void *p;
    CMOEI_TRY(count_ids(l, vocab, added, &size));
    CMOEI_TRY(cmoei_names_init(&t->names, &t->pool, size, l->err));
    CMOEI_TRY(cmoei_text_alloc(&t->pool, size, 1, &p, l->err));
    t->special = p;
    CMOEI_TRY(cmoei_text_alloc(&t->pool, size, 4, &p, l->err));
    t->added_of = p;
    CMOEI_TRY(cmoei_text_alloc(&t->pool, size, 1, &p, l->err));
    l->in_model = p;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocab, key, value)
    {
        CMOEI_TRY(put_name(l, &in_vocab, key, (int64_t)strlen(key), json_integer_value(value)));
        l->in_model[json_integer_value(value)] = 1;
    }
    CMOEI_TRY(
        cmoei_text_alloc(&t->pool, (int64_t)json_array_size(added), sizeof *t->added, &p, l->err));
    t->added = p;
    for (size_t i = 0; i < json_array_size(added); i++)
        CMOEI_TRY(load_added_token(l, i, json_array_get(added, i)));
    return CMOE_OK;
}

/* Special ones before the others: of two that normalise to the same the first counts. */
cmoe_status cmoei_load_trees(cmoei_loader *l)
{
    cmoe_tokenizer *t = l->t;
    void *contents, *tokens;
    CMOEI_TRY(cmoei_text_alloc(&t->pool, t->added_count, sizeof(cmoei_text), &contents, l->err));
    CMOEI_TRY(cmoei_text_alloc(&t->pool, t->added_count, 4, &tokens, l->err));
    int64_t before = 0, behind = 0; /* bytes of those that are normalised */
    for (int32_t normalized = 0; normalized < 2; normalized++) {
        int64_t n = 0;
        for (int64_t i = 0; i < 2 * t->added_count; i++) {
            const int64_t k = i % t->added_count;
            cmoei_added *a = &t->added[k];
            if (a->special != (i < t->added_count) || a->normalized != normalized) continue;
            if (normalized) {
                cmoei_buffer work[2] = {{.ctx = t->ctx}, {.ctx = t->ctx}};
                cmoei_text s = a->content;
                void *p = NULL;
                before += s.bytes;
                cmoe_status status = cmoei_normalizers_run(t, work, &s, l->err);
                if (status == CMOE_OK) status = cmoei_text_alloc(&t->pool, s.bytes, 1, &p, l->err);
                if (status == CMOE_OK && s.bytes) memcpy(p, s.s, (size_t)s.bytes);
                cmoei_buffer_free(&work[0]);
                cmoei_buffer_free(&work[1]);
                CMOEI_TRY(status);
                a->content = (cmoei_text){p, s.bytes};
                behind += s.bytes;
                if (behind > CMOEI_NORMAL_MORE + CMOEI_NORMAL_TIMES * before)
                    return cmoei_loader_fail(l, CMOE_ERR_RANGE, &(cmoei_place){"added_tokens"},
                                             "more than %lld bytes out of %lld when normalised",
                                             (long long)behind, (long long)before);
            }
            if (!a->content.bytes)
                return cmoei_loader_fail(
                    l, CMOE_ERR_UNSUPPORTED, &(cmoei_place){"added_tokens"},
                    "\"%s\" is nothing when normalised",
                    cmoei_shown_name(t->names.text[a->id], t->names.bytes[a->id]).text);
            ((cmoei_text *)contents)[n] = a->content;
            ((int32_t *)tokens)[n++] = (int32_t)k;
        }
        CMOEI_TRY(cmoei_tree_build(t, normalized ? &t->normalized : &t->raw, contents, tokens, n,
                                   l->err));
    }
    return CMOE_OK;
}

/* ---- model ------------------------------------------------------------------------------------- */

static int32_t model_id(const cmoei_loader *l, const char *text, int64_t bytes)
{
    const int32_t id = cmoei_names_find(&l->t->names, text, bytes);
    return id >= 0 && l->in_model[id] ? id : -1;
}

/* The two parts of one merge. */
static cmoe_status merge_parts(const cmoei_loader *l, const cmoei_place *at, const json_t *value,
                               cmoei_text part[2])
{
    if (json_is_string(value)) {
        const char *s = json_string_value(value);
        const int64_t bytes = (int64_t)json_string_length(value);
        const char *blank = memchr(s, ' ', (size_t)bytes);
        if (blank && !memchr(blank + 1, ' ', (size_t)(s + bytes - blank - 1))) {
            part[0] = (cmoei_text){s, blank - s};
            part[1] = (cmoei_text){blank + 1, s + bytes - blank - 1};
            return CMOE_OK;
        }
    } else if (json_array_size(value) == 2 && json_is_string(json_array_get(value, 0)) &&
               json_is_string(json_array_get(value, 1))) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *v = json_array_get(value, i);
            part[i] = (cmoei_text){json_string_value(v), (int64_t)json_string_length(v)};
        }
        return CMOE_OK;
    }
    return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at,
                             "want \"left right\" or [\"left\", \"right\"]");
}

static cmoe_status load_merge(cmoei_loader *l, size_t i, const json_t *value, int64_t rank,
                              cmoei_buffer *joined)
{
    cmoei_bpe *b = &l->t->bpe;
    const cmoei_place at = cmoei_place_at("model.merges[%zu]", i);
    cmoei_text part[3];
    int32_t id[3];
    CMOEI_TRY(merge_parts(l, &at, value, part));
    joined->bytes = 0;
    CMOEI_TRY(cmoei_buffer_add(joined, part[0].s, part[0].bytes, l->err));
    CMOEI_TRY(cmoei_buffer_add(joined, part[1].s, part[1].bytes, l->err));
    part[2] = (cmoei_text){joined->data, joined->bytes};
    for (int32_t k = 0; k < 3; k++) {
        id[k] = model_id(l, part[k].s, part[k].bytes);
        if (id[k] < 0 || !part[k].bytes)
            return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &at,
                                     "\"%s\" + \"%s\": \"%s\" is not in vocab",
                                     cmoei_shown_name(part[0].s, part[0].bytes).text,
                                     cmoei_shown_name(part[1].s, part[1].bytes).text,
                                     cmoei_shown_name(part[k].s, part[k].bytes).text);
    }
    cmoei_bpe_put_merge(b, id[0], id[1], (uint32_t)rank, id[2]);
    if (b->junction) {
        int32_t length;
        const char *last = part[0].s + cmoei_utf8_before(part[0].s, part[0].bytes);
        cmoei_bpe_put_junction(b, cmoei_utf8_get(last, &length),
                               cmoei_utf8_get(part[1].s, &length));
        /* A symbol that is not the text of its name: then names say nothing about junctions. */
        bool other = id[0] == b->unk || id[1] == b->unk;
        for (int32_t k = 0; k < 256; k++)
            other |= b->byte_id[k] >= 0 && (b->byte_id[k] == id[0] || b->byte_id[k] == id[1]);
        if (other) b->junction = NULL;
    }
    return CMOE_OK;
}

static cmoe_status load_merges(cmoei_loader *l, const json_t *model)
{
    cmoei_bpe *b = &l->t->bpe;
    const cmoei_place at = cmoei_place_at("model");
    const json_t *merges;
    CMOEI_TRY(cmoei_json_array(l, &at, model, "merges", &merges));
    const int64_t n = (int64_t)json_array_size(merges);
    CMOEI_TRY(cmoei_bpe_init_merges(b, &l->t->pool, n, l->err));
    if (!b->byte_level)
        CMOEI_TRY(cmoei_bpe_init_set(&b->junction, &b->junction_mask, &l->t->pool, n, l->err));
    cmoei_buffer joined = {.ctx = l->t->ctx};
    cmoe_status status = CMOE_OK;
    int64_t rank = 0;
    for (int64_t i = 0; i < n && status == CMOE_OK; i++) {
        const json_t *v = json_array_get(merges, (size_t)i);
        const char *s = json_string_value(v);
        if (s && strncmp(s, "#version", 8) == 0) continue;
        status = load_merge(l, (size_t)i, v, rank++, &joined);
    }
    cmoei_buffer_free(&joined);
    return status;
}

/* Which token a byte is, and which a character. */
static cmoe_status load_symbols(cmoei_loader *l, bool byte_fallback)
{
    static const char digits[] = "0123456789ABCDEF";
    cmoe_tokenizer *t = l->t;
    cmoei_bpe *b = &t->bpe;
    for (int32_t i = 0; i < 256; i++) {
        char text[6] = {'<', '0', 'x', digits[i >> 4], digits[i & 15], '>'};
        int32_t bytes = 6;
        if (b->byte_level) bytes = cmoei_utf8_put(text, cmoei_byte_character(i));
        b->byte_id[i] = b->byte_level || byte_fallback ? model_id(l, text, bytes) : -1;
    }
    if (b->byte_level) return CMOE_OK;
    int64_t n = 0;
    for (int32_t pass = 0; pass < 2; pass++) {
        for (int64_t id = 0; id < t->names.size; id++) {
            const char *s = t->names.text[id];
            int32_t length;
            if (!l->in_model[id] || !t->names.bytes[id] ||
                cmoei_utf8_bytes(*s) != t->names.bytes[id])
                continue;
            if (pass) cmoei_bpe_put_character(b, cmoei_utf8_get(s, &length), (int32_t)id);
            n++;
        }
        if (pass == 0)
            CMOEI_TRY(cmoei_bpe_init_set(&b->character, &b->character_mask, &t->pool, n, l->err));
    }
    return CMOE_OK;
}

/* ignore_merges: tokens as pieces are written.  On the level of bytes a token with a character that is
 * no byte is no piece. */
static cmoe_status load_words(cmoei_loader *l)
{
    cmoe_tokenizer *t = l->t;
    CMOEI_TRY(cmoei_names_init(&t->bpe.words, &t->pool, t->names.size, l->err));
    for (int64_t id = 0; id < t->names.size; id++) {
        if (!l->in_model[id] || !t->names.bytes[id]) continue;
        const char *s = t->names.text[id];
        const int32_t bytes = t->names.bytes[id];
        if (!t->bpe.byte_level) {
            cmoei_names_put(&t->bpe.words, (int32_t)id, s, bytes);
            continue;
        }
        void *p;
        CMOEI_TRY(cmoei_text_alloc(&t->pool, bytes, 1, &p, l->err));
        int32_t n = 0, length, byte = 0;
        for (int32_t at = 0; at < bytes && byte >= 0; at += length)
            if ((byte = cmoei_byte_of(cmoei_utf8_get(s + at, &length))) >= 0)
                ((char *)p)[n++] = (char)byte;
        if (byte >= 0) cmoei_names_put(&t->bpe.words, (int32_t)id, p, n);
    }
    return CMOE_OK;
}

/* null, or "" */
static cmoe_status want_empty(const cmoei_loader *l, const cmoei_place *at, const json_t *model,
                              const char *key)
{
    const json_t *v = json_object_get(model, key);
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0)) return CMOE_OK;
    return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at, "%s not supported, want null", key);
}

static cmoe_status load_unk(cmoei_loader *l, const cmoei_place *at, const json_t *model)
{
    cmoei_bpe *b = &l->t->bpe;
    const json_t *v = json_object_get(model, "unk_token");
    b->unk = -1;
    if (!v || json_is_null(v)) return CMOE_OK;
    if (!json_is_string(v))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "unk_token: want a text or null");
    b->unk = model_id(l, json_string_value(v), (int64_t)json_string_length(v));
    /* Where every byte is known nobody asks for it. */
    bool all = true;
    for (int32_t i = 0; i < 256; i++)
        all &= b->byte_id[i] >= 0;
    if (b->unk < 0 && !all && json_string_length(v))
        return cmoei_loader_fail(
            l, CMOE_ERR_FORMAT, at, "unk_token \"%s\" is not in vocab",
            cmoei_shown_name(json_string_value(v), (int64_t)json_string_length(v)).text);
    return CMOE_OK;
}

cmoe_status cmoei_load_model(cmoei_loader *l, const json_t *model)
{
    cmoei_bpe *b = &l->t->bpe;
    const cmoei_place at = cmoei_place_at("model");
    bool byte_fallback = false;
    CMOEI_TRY(
        cmoei_json_object(l, &at, model,
                          "type dropout unk_token continuing_subword_prefix end_of_word_suffix "
                          "fuse_unk byte_fallback ignore_merges vocab merges"));
    CMOEI_TRY(want_empty(l, &at, model, "continuing_subword_prefix"));
    CMOEI_TRY(want_empty(l, &at, model, "end_of_word_suffix"));
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) == 0))
        return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, &at,
                                 "dropout not supported, want null or 0");
    CMOEI_TRY(cmoei_json_flag(l, &at, model, "fuse_unk", &b->fuse_unk));
    CMOEI_TRY(cmoei_json_flag(l, &at, model, "byte_fallback", &byte_fallback));
    CMOEI_TRY(cmoei_json_flag(l, &at, model, "ignore_merges", &b->ignore_merges));
    if (byte_fallback && b->byte_level)
        return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, &at,
                                 "byte_fallback together with ByteLevel not supported");
    CMOEI_TRY(load_symbols(l, byte_fallback));
    CMOEI_TRY(load_unk(l, &at, model));
    if (b->ignore_merges) CMOEI_TRY(load_words(l));
    return load_merges(l, model);
}
