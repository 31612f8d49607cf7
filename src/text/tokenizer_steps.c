/* SPDX-License-Identifier: MIT
 *
 * tokenizer_steps.c - normalizer, pre_tokenizer, decoder and post_processor of tokenizer.json.
 *
 * Each is one step, or a Sequence of them, which is flattened.  What is not listed here is refused.
 */
#include <string.h>

#include "tokenizer_json.h"

enum { MOST_NESTING = 8 };

typedef cmoe_status (*step_fn)(cmoei_loader *l, const cmoei_place *at, const json_t *step);

/* `names[0]` is Sequence, whose list stands under `list`. */
static cmoe_status each_step(cmoei_loader *l, const cmoei_place *at, const json_t *value,
                             const char *list, step_fn step, int32_t depth)
{
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type || strcmp(type, "Sequence") != 0) return step(l, at, value);
    if (depth == MOST_NESTING)
        return cmoei_loader_fail(l, CMOE_ERR_RANGE, at, "more than %d Sequences in each other",
                                 MOST_NESTING);
    char keys[48] = "type ";
    strncat(keys, list, sizeof keys - 6);
    const json_t *steps;
    CMOEI_TRY(cmoei_json_object(l, at, value, keys));
    CMOEI_TRY(cmoei_json_array(l, at, value, list, &steps));
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const cmoei_place here = cmoei_place_at("%.80s.%s[%zu]", at->text, list, i);
        CMOEI_TRY(each_step(l, &here, json_array_get(steps, i), list, step, depth + 1));
    }
    return CMOE_OK;
}

static cmoe_status full(const cmoei_loader *l, const cmoei_place *at)
{
    return cmoei_loader_fail(l, CMOE_ERR_RANGE, at, "more than %d steps", CMOEI_TOKENIZER_STEPS);
}

/* {"String": "..."} or {"Regex": "..."}. */
static cmoe_status read_pattern(const cmoei_loader *l, const cmoei_place *at, const json_t *step,
                                cmoei_text *out, bool *regex)
{
    const json_t *p = json_object_get(step, "pattern");
    const cmoei_place here = cmoei_place_at("%.100s.pattern", at->text);
    CMOEI_TRY(cmoei_json_object(l, &here, p, "String Regex"));
    if (json_object_size(p) != 1)
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &here, "want either String or Regex");
    *regex = json_object_get(p, "Regex") != NULL;
    CMOEI_TRY(cmoei_json_text(l, &here, p, *regex ? "Regex" : "String", out));
    if (!out->bytes) return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, &here, "an empty text");
    return CMOE_OK;
}

/* One character. */
static cmoe_status read_character(const cmoei_loader *l, const cmoei_place *at, const json_t *step,
                                  const char *key, cmoei_text *out)
{
    CMOEI_TRY(cmoei_json_text(l, at, step, key, out));
    if (!out->bytes || cmoei_utf8_bytes(out->s[0]) != out->bytes)
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "%s = \"%s\", want one character", key,
                                 cmoei_shown_name(out->s, out->bytes).text);
    return CMOE_OK;
}

/* One of the names, which end with NULL; absent: *out stays. */
static cmoe_status read_choice(const cmoei_loader *l, const cmoei_place *at, const json_t *step,
                               const char *key, const char *const *names, const char *want,
                               int32_t *out)
{
    const json_t *v = json_object_get(step, key);
    if (!v || json_is_null(v)) return CMOE_OK;
    const char *s = json_is_string(v) ? json_string_value(v) : "";
    for (int32_t i = 0; names[i]; i++)
        if (strcmp(s, names[i]) == 0) return *out = i, CMOE_OK;
    return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at,
                             "%s \"%s\" not supported, want one of: %s", key,
                             cmoei_shown_name(s, (int64_t)strlen(s)).text, want);
}

/* ---- normalizer -------------------------------------------------------------------------------- */

static cmoe_status load_normalizer(cmoei_loader *l, const cmoei_place *at, const json_t *step)
{
    /* The forms in the order of CMOEI_NFC ... */
    static const char *const names[] = {"NFC",     "NFD",   "NFKC",     "NFKD", "Prepend",
                                        "Replace", "Strip", "Sequence", NULL};
    cmoe_tokenizer *t = l->t;
    int32_t type = 0;
    CMOEI_TRY(cmoei_json_type(l, at, step, names, &type));
    if (t->normalizers == CMOEI_TOKENIZER_STEPS) return full(l, at);
    cmoei_normalizer *n = &t->normalizer[t->normalizers++];
    if (type <= CMOEI_NFKD) {
        *n = (cmoei_normalizer){.kind = CMOEI_NORMALIZER_FORM, .form = type};
        return cmoei_json_object(l, at, step, "type");
    }
    if (type == 4) {
        n->kind = CMOEI_NORMALIZER_PREPEND;
        CMOEI_TRY(cmoei_json_object(l, at, step, "type prepend"));
        return cmoei_json_text(l, at, step, "prepend", &n->to);
    }
    if (type == 5) {
        bool regex;
        n->kind = CMOEI_NORMALIZER_REPLACE;
        CMOEI_TRY(cmoei_json_object(l, at, step, "type pattern content"));
        CMOEI_TRY(read_pattern(l, at, step, &n->from, &regex));
        if (regex)
            return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at,
                                     "pattern Regex not supported, want String");
        return cmoei_json_text(l, at, step, "content", &n->to);
    }
    *n = (cmoei_normalizer){.kind = CMOEI_NORMALIZER_STRIP, .left = true, .right = true};
    CMOEI_TRY(cmoei_json_object(l, at, step, "type strip_left strip_right"));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "strip_left", &n->left));
    return cmoei_json_flag(l, at, step, "strip_right", &n->right);
}

cmoe_status cmoei_load_normalizers(cmoei_loader *l, const json_t *value)
{
    if (!value || json_is_null(value)) return CMOE_OK;
    const cmoei_place at = cmoei_place_at("normalizer");
    return each_step(l, &at, value, "normalizers", load_normalizer, 0);
}

/* ---- pre_tokenizer ------------------------------------------------------------------------------- */

const char cmoei_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static cmoe_status compile(cmoei_loader *l, const cmoei_place *at, cmoei_pre *p, cmoei_text source)
{
    const cmoei_place what = cmoei_place_at("%s: %.90s", l->file, at->text);
    return cmoei_pattern_compile(&p->pattern, l->t->memory, l->t->ctx, source.s, source.bytes,
                                 what.text, l->err);
}

/* A pattern that matches just this text: \x{..} for every character. */
static cmoe_status compile_literal(cmoei_loader *l, const cmoei_place *at, cmoei_pre *p,
                                   cmoei_text s)
{
    static const char digits[] = "0123456789abcdef";
    cmoei_buffer b = {.ctx = l->t->ctx};
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0; i < s.bytes && status == CMOE_OK;) {
        int32_t length;
        const uint32_t c = cmoei_utf8_get(s.s + i, &length);
        char text[10] = "\\x{000000";
        for (int32_t k = 0; k < 6; k++)
            text[3 + k] = digits[c >> (20 - 4 * k) & 15];
        text[9] = '}';
        status = cmoei_buffer_add(&b, text, 10, l->err);
        i += length;
    }
    if (status == CMOE_OK) status = compile(l, at, p, (cmoei_text){b.data, b.bytes});
    cmoei_buffer_free(&b);
    return status;
}

static cmoe_status load_split(cmoei_loader *l, const cmoei_place *at, const json_t *step,
                              cmoei_pre *p)
{
    static const char *const behaviors[] = {"Isolated", "Removed", NULL};
    cmoei_text source;
    bool regex, invert = false;
    int32_t behavior = -1;
    CMOEI_TRY(cmoei_json_object(l, at, step, "type pattern behavior invert"));
    CMOEI_TRY(read_choice(l, at, step, "behavior", behaviors, "Isolated Removed", &behavior));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "invert", &invert));
    if (behavior < 0) return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "behavior is not there");
    p->keep_match = behavior == 0 || invert;
    p->keep_rest = behavior == 0 || !invert;
    CMOEI_TRY(read_pattern(l, at, step, &source, &regex));
    return regex ? compile(l, at, p, source) : compile_literal(l, at, p, source);
}

static cmoe_status load_metaspace(cmoei_loader *l, const cmoei_place *at, const json_t *step,
                                  cmoei_pre *p)
{
    static const char *const schemes[] = {"never", "first", "always", NULL};
    bool add = true;
    *p = (cmoei_pre){.kind = CMOEI_PRE_METASPACE, .prepend = CMOEI_PREPEND_ALWAYS, .split = true};
    CMOEI_TRY(cmoei_json_object(l, at, step,
                                "type replacement prepend_scheme split add_prefix_space str_rep"));
    CMOEI_TRY(read_character(l, at, step, "replacement", &p->blank));
    CMOEI_TRY(
        read_choice(l, at, step, "prepend_scheme", schemes, "never first always", &p->prepend));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "split", &p->split));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "add_prefix_space", &add));
    if (!add && p->prepend != CMOEI_PREPEND_NEVER)
        return cmoei_loader_fail(
            l, CMOE_ERR_FORMAT, at,
            "add_prefix_space is false, want prepend_scheme \"never\" with it");
    return CMOE_OK;
}

/* A blank in front, GPT-2's pattern, and from here on pieces are bytes. */
static cmoe_status load_byte_level(cmoei_loader *l, const cmoei_place *at, const json_t *step,
                                   cmoei_pre *p)
{
    cmoe_tokenizer *t = l->t;
    bool add = true, pattern = true, trim = true;
    CMOEI_TRY(cmoei_json_object(l, at, step, "type add_prefix_space trim_offsets use_regex"));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "add_prefix_space", &add));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "use_regex", &pattern));
    CMOEI_TRY(cmoei_json_flag(l, at, step, "trim_offsets", &trim)); /* moves no id */
    t->bpe.byte_level = true;
    *p = (cmoei_pre){.kind = CMOEI_PRE_BYTES,
                     .prepend = add ? CMOEI_PREPEND_ALWAYS : CMOEI_PREPEND_NEVER};
    if (!pattern) return CMOE_OK;
    if (t->pres == CMOEI_TOKENIZER_STEPS) return full(l, at);
    p = &t->pre[t->pres++];
    *p = (cmoei_pre){.kind = CMOEI_PRE_SPLIT, .keep_match = true, .keep_rest = true};
    return compile(l, at, p, (cmoei_text){cmoei_gpt2_pattern, (int64_t)strlen(cmoei_gpt2_pattern)});
}

static cmoe_status load_pre(cmoei_loader *l, const cmoei_place *at, const json_t *step)
{
    static const char *const names[] = {"Split",     "Digits",   "Metaspace",
                                        "ByteLevel", "Sequence", NULL};
    cmoe_tokenizer *t = l->t;
    int32_t type = 0;
    CMOEI_TRY(cmoei_json_type(l, at, step, names, &type));
    if (t->pres == CMOEI_TOKENIZER_STEPS) return full(l, at);
    if (t->bpe.byte_level)
        return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at, "%s behind ByteLevel not supported",
                                 names[type]);
    cmoei_pre *p = &t->pre[t->pres++];
    if (type == 0) return load_split(l, at, step, p);
    if (type == 2) return load_metaspace(l, at, step, p);
    if (type == 3) return load_byte_level(l, at, step, p);
    p->kind = CMOEI_PRE_DIGITS;
    CMOEI_TRY(cmoei_json_object(l, at, step, "type individual_digits"));
    return cmoei_json_flag(l, at, step, "individual_digits", &p->individual);
}

cmoe_status cmoei_load_pres(cmoei_loader *l, const json_t *value)
{
    if (!value || json_is_null(value)) return CMOE_OK;
    const cmoei_place at = cmoei_place_at("pre_tokenizer");
    return each_step(l, &at, value, "pretokenizers", load_pre, 0);
}

/* ---- decoder ----------------------------------------------------------------------------------- */

static cmoe_status load_replace(cmoei_loader *l, const cmoei_place *at, const json_t *step,
                                cmoei_decoder *d)
{
    bool regex;
    CMOEI_TRY(cmoei_json_object(l, at, step, "type pattern content"));
    CMOEI_TRY(read_pattern(l, at, step, &d->from, &regex));
    if (regex)
        return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at,
                                 "pattern Regex not supported, want String");
    return cmoei_json_text(l, at, step, "content", &d->to);
}

static cmoe_status load_strip(cmoei_loader *l, const cmoei_place *at, const json_t *step,
                              cmoei_decoder *d)
{
    CMOEI_TRY(cmoei_json_object(l, at, step, "type content start stop"));
    CMOEI_TRY(read_character(l, at, step, "content", &d->from));
    CMOEI_TRY(cmoei_json_int(l, at, step, "start", 0, INT32_MAX, &d->start));
    return cmoei_json_int(l, at, step, "stop", 0, INT32_MAX, &d->stop);
}

static cmoe_status load_decoder(cmoei_loader *l, const cmoei_place *at, const json_t *step)
{
    /* In the order of cmoei_decoder_kind. */
    static const char *const names[] = {"ByteLevel", "Replace",   "ByteFallback", "Fuse",
                                        "Strip",     "Metaspace", "Sequence",     NULL};
    cmoe_tokenizer *t = l->t;
    int32_t type = 0;
    CMOEI_TRY(cmoei_json_type(l, at, step, names, &type));
    if (t->decoders == CMOEI_TOKENIZER_STEPS) return full(l, at);
    for (int32_t i = 0; i < t->decoders && type <= CMOEI_DECODER_BYTE_FALLBACK; i++)
        if (t->decoder[i].kind == CMOEI_DECODER_FUSE || t->decoder[i].kind == CMOEI_DECODER_BYTES)
            return cmoei_loader_fail(l, CMOE_ERR_UNSUPPORTED, at, "%s behind %s not supported",
                                     names[type], names[t->decoder[i].kind]);
    cmoei_decoder *d = &t->decoder[t->decoders++];
    d->kind = (cmoei_decoder_kind)type;
    switch (d->kind) {
    case CMOEI_DECODER_BYTES:
        return cmoei_json_object(l, at, step, "type add_prefix_space trim_offsets use_regex");
    case CMOEI_DECODER_REPLACE:
        return load_replace(l, at, step, d);
    case CMOEI_DECODER_STRIP:
        return load_strip(l, at, step, d);
    case CMOEI_DECODER_METASPACE: {
        cmoei_pre p;
        CMOEI_TRY(load_metaspace(l, at, step, &p));
        d->from = p.blank;
        d->prepend = p.prepend != CMOEI_PREPEND_NEVER;
        return CMOE_OK;
    }
    default:
        return cmoei_json_object(l, at, step, "type");
    }
}

cmoe_status cmoei_load_decoders(cmoei_loader *l, const json_t *value)
{
    if (!value || json_is_null(value)) {
        l->t->decoder[l->t->decoders++].kind = CMOEI_DECODER_JOIN;
        return CMOE_OK;
    }
    const cmoei_place at = cmoei_place_at("decoder");
    return each_step(l, &at, value, "decoders", load_decoder, 0);
}

/* ---- post_processor ---------------------------------------------------------------------------- */

enum { MOST_AROUND = 1024 }; /* published ones have one or two */

/* list = ids + list (front), or list + ids. */
static cmoe_status put_ids(cmoei_loader *l, int32_t **list, int64_t *count, const int32_t *ids,
                           int64_t n, bool front)
{
    void *p;
    if (*count + n > MOST_AROUND)
        return cmoei_loader_fail(l, CMOE_ERR_RANGE, &(cmoei_place){"post_processor"},
                                 "more than %d tokens on one side of a text", MOST_AROUND);
    CMOEI_TRY(cmoei_text_alloc(&l->t->pool, *count + n, 4, &p, l->err));
    int32_t *all = p;
    if (*count) memcpy(all + (front ? n : 0), *list, (size_t)*count * 4);
    if (n) memcpy(all + (front ? 0 : *count), ids, (size_t)n * 4);
    *list = all;
    *count += n;
    return CMOE_OK;
}

/* The ids of one special token of a template, appended. */
static cmoe_status template_token(cmoei_loader *l, const cmoei_place *at, const json_t *tokens,
                                  const json_t *piece, int32_t **list, int64_t *count)
{
    const char *name = json_string_value(json_object_get(piece, "id"));
    const json_t *token = name ? json_object_get(tokens, name) : NULL;
    const json_t *ids = json_object_get(token, "ids");
    if (!json_is_array(ids))
        return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "\"%s\" has no ids in special_tokens",
                                 name ? cmoei_shown_name(name, (int64_t)strlen(name)).text : "");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        const int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= l->t->names.size)
            return cmoei_loader_fail(l, CMOE_ERR_RANGE, at,
                                     "special_tokens.%s.ids[%zu] = %lld, want "
                                     "0 <= id < %lld",
                                     cmoei_shown_name(name, (int64_t)strlen(name)).text, i,
                                     (long long)id, (long long)l->t->names.size);
        CMOEI_TRY(put_ids(l, list, count, &(int32_t){(int32_t)id}, 1, false));
    }
    return CMOE_OK;
}

static cmoe_status load_template(cmoei_loader *l, const cmoei_place *at, const json_t *step)
{
    cmoe_tokenizer *t = l->t;
    const json_t *single, *tokens = json_object_get(step, "special_tokens");
    int32_t *part[2] = {NULL, NULL};
    int64_t count[2] = {0, 0}, texts = 0;
    CMOEI_TRY(cmoei_json_object(l, at, step, "type single pair special_tokens"));
    CMOEI_TRY(cmoei_json_array(l, at, step, "single", &single));
    for (size_t i = 0; i < json_array_size(single); i++) {
        const cmoei_place here = cmoei_place_at("%.80s.single[%zu]", at->text, i);
        const json_t *v = json_array_get(single, i), *special = json_object_get(v, "SpecialToken");
        CMOEI_TRY(cmoei_json_object(l, &here, v, "SpecialToken Sequence"));
        if (special) {
            CMOEI_TRY(
                template_token(l, &here, tokens, special, &part[texts > 0], &count[texts > 0]));
            continue;
        }
        const char *id = json_string_value(json_object_get(json_object_get(v, "Sequence"), "id"));
        if (!id || strcmp(id, "A") != 0 || texts++)
            return cmoei_loader_fail(l, CMOE_ERR_FORMAT, &here, "want Sequence A, and once only");
    }
    if (!texts) return cmoei_loader_fail(l, CMOE_ERR_FORMAT, at, "single has no Sequence A");
    CMOEI_TRY(put_ids(l, &t->prefix, &t->prefix_count, part[0], count[0], true));
    return put_ids(l, &t->suffix, &t->suffix_count, part[1], count[1], false);
}

static cmoe_status load_processor(cmoei_loader *l, const cmoei_place *at, const json_t *step)
{
    static const char *const names[] = {"TemplateProcessing", "ByteLevel", "Sequence", NULL};
    int32_t type = 0;
    CMOEI_TRY(cmoei_json_type(l, at, step, names, &type));
    if (type == 0) return load_template(l, at, step);
    return cmoei_json_object(l, at, step, "type add_prefix_space trim_offsets use_regex");
}

cmoe_status cmoei_load_post(cmoei_loader *l, const json_t *value)
{
    if (!value || json_is_null(value)) return CMOE_OK;
    const cmoei_place at = cmoei_place_at("post_processor");
    return each_step(l, &at, value, "processors", load_processor, 0);
}
