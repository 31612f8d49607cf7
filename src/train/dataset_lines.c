/* SPDX-License-Identifier: MIT
 *
 * dataset_lines.c - JSONL: an object a line, a document an object.
 *
 * A text is encoded as a whole, and the tokens of its beginning are found by encoding that alone: where the
 * two lists differ first, what follows the beginning starts.  A token that has a part in both belongs to
 * what follows.
 *
 * The assistant's turns are found by rendering the conversation up to each: with the prompt that asks for
 * it, and with it.  Both must be beginnings of the whole, or the turn's place is not known and the line is
 * refused.
 */
#include "dataset_lines.h"

#include <inttypes.h>
#include <string.h>

#include "text/template.h"
#include "text/tokenizer.h"

/* ---- parts of a text --------------------------------------------------------------------------- */

/* How many of the tokens from `begin` on are those of the first `bytes` bytes of their text. */
static cmoe_status tokens_of(cmoei_reader *r, int64_t begin, bool special, const char *text,
                             int64_t bytes, int64_t *count)
{
    r->part.bytes = 0;
    CMOEI_TRY(cmoei_reader_encode(r, &r->part, special, text, bytes));
    const int64_t behind = special ? r->o.tokenizer->suffix_count : 0;
    const int64_t most = CMOEI_MIN(r->part.bytes / 4 - behind, r->ids.bytes / 4 - begin);
    const int32_t *part = (const int32_t *)(const void *)r->part.data;
    const int32_t *ids = (const int32_t *)(const void *)r->ids.data + begin;
    int64_t n = 0;
    while (n < most && part[n] == ids[n])
        n++;
    *count = n;
    return CMOE_OK;
}

/* Tokens of text[0, to) that are not marked yet. */
static cmoe_status mark(cmoei_reader *r, int64_t begin, bool special, const char *text, int64_t to,
                        bool learned)
{
    int64_t n;
    CMOEI_TRY(tokens_of(r, begin, special, text, to, &n));
    return cmoei_reader_learn(r, begin + n, learned);
}

/* ---- text, prompt and completion --------------------------------------------------------------- */

static cmoe_status string_of(const cmoei_reader *r, const json_t *object, const char *key,
                             cmoei_text *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_string(v))
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "\"%s\" is %s, want a text", key,
                          v ? "something else" : "not there");
    *out = (cmoei_text){json_string_value(v), (int64_t)json_string_length(v)};
    return CMOE_OK;
}

static cmoe_status read_text(cmoei_reader *r, const json_t *object)
{
    cmoei_text text = {0};
    const int64_t begin = r->ids.bytes / 4;
    CMOEI_TRY(string_of(r, object, "text", &text));
    if (text.bytes == 0) return CMOE_OK;
    r->text_bytes += text.bytes;
    CMOEI_TRY(cmoei_reader_encode(r, &r->ids, true, text.s, text.bytes));
    return cmoei_reader_document(r, begin, true);
}

static cmoe_status read_pair(cmoei_reader *r, const json_t *object)
{
    cmoei_text prompt = {0}, completion = {0};
    const int64_t begin = r->ids.bytes / 4;
    CMOEI_TRY(string_of(r, object, "prompt", &prompt));
    CMOEI_TRY(string_of(r, object, "completion", &completion));
    if (prompt.bytes + completion.bytes == 0) return CMOE_OK;
    r->joined.bytes = 0;
    CMOEI_TRY(cmoei_buffer_add(&r->joined, prompt.s, prompt.bytes, r->err));
    CMOEI_TRY(cmoei_buffer_add(&r->joined, completion.s, completion.bytes, r->err));
    r->text_bytes += r->joined.bytes;
    CMOEI_TRY(cmoei_reader_encode(r, &r->ids, true, r->joined.data, r->joined.bytes));
    CMOEI_TRY(mark(r, begin, true, r->joined.data, prompt.bytes, false));
    return cmoei_reader_document(r, begin, true);
}

/* ---- messages ---------------------------------------------------------------------------------- */

typedef struct rendered {
    cmoe_ctx *ctx;
    char *text;
    int64_t bytes;
} rendered;

static void rendered_free(rendered *t)
{
    cmoe_text_free(t->ctx, t->text, t->bytes);
    t->text = NULL;
}

/* What the template sees; tokens that the tokenizer does not have stay undefined. */
static json_t *variables_of(const cmoei_reader *r, const json_t *object, int64_t count, bool ask)
{
    const cmoe_tokenizer *t = r->o.tokenizer;
    const char *bos = cmoe_tokenizer_token(t, cmoe_tokenizer_bos(t));
    const char *eos = cmoe_tokenizer_token(t, cmoe_tokenizer_eos(t));
    const json_t *all = json_object_get(object, "messages");
    json_t *messages = json_array();
    for (int64_t i = 0; i < count; i++)
        if (json_array_append(messages, json_array_get(all, (size_t)i)) != 0) {
            json_decref(messages);
            return NULL;
        }
    return json_pack("{s:o, s:b, s:s*, s:s*, s:O*}", "messages", messages, "add_generation_prompt",
                     (int)ask, "bos_token", bos, "eos_token", eos, "tools",
                     json_object_get(object, "tools"));
}

/* The first `count` messages; ask: and the prompt for the assistant. */
static cmoe_status render(const cmoei_reader *r, const json_t *object, int64_t count, bool ask,
                          rendered *out)
{
    cmoei_buffer given = {.ctx = r->ctx};
    json_t *variables = variables_of(r, object, count, ask);
    cmoe_status status = variables ? cmoei_json_append(&given, variables, 0, r->err)
                                   : cmoei_fail(r->err, CMOE_ERR_MEMORY, "no memory for messages");
    json_decref(variables);
    out->ctx = cmoei_template_ctx(r->o.chat);
    if (status == CMOE_OK)
        status = cmoe_template_render(r->o.chat, NULL, given.data, given.bytes, &out->text,
                                      &out->bytes, r->err);
    cmoei_buffer_free(&given);
    return status;
}

/* Marks text up to the end of the first `count` messages. */
static cmoe_status mark_turn(cmoei_reader *r, int64_t begin, const json_t *object, int64_t count,
                             bool ask, bool learned, const rendered *whole)
{
    rendered part = {0};
    CMOEI_TRY(render(r, object, count, ask, &part));
    const bool fits =
        part.bytes <= whole->bytes && memcmp(part.text, whole->text, (size_t)part.bytes) == 0;
    cmoe_status status =
        fits ? mark(r, begin, false, whole->text, part.bytes, learned)
             : cmoei_fail(r->err, CMOE_ERR_UNSUPPORTED,
                          "messages[%" PRId64
                          "]: what the template writes %s is no beginning of the whole "
                          "conversation, so the tokens of that turn are not known; want a template "
                          "that only appends, one answer a conversation, or all_turns",
                          ask ? count : count - 1, ask ? "to ask for it" : "up to its end");
    rendered_free(&part);
    return status;
}

static cmoe_status mark_turns(cmoei_reader *r, int64_t begin, const json_t *object,
                              const rendered *whole, bool *last)
{
    const json_t *messages = json_object_get(object, "messages");
    const int64_t count = (int64_t)json_array_size(messages);
    for (int64_t i = 0; i < count; i++) {
        const json_t *role = json_object_get(json_array_get(messages, (size_t)i), "role");
        if (!json_is_string(role))
            return cmoei_fail(r->err, CMOE_ERR_FORMAT,
                              "messages[%" PRId64 "] is no object with a \"role\" that is a text",
                              i);
        *last = strcmp(json_string_value(role), "assistant") == 0;
        if (!*last) continue;
        CMOEI_TRY(mark_turn(r, begin, object, i, true, false, whole));
        if (i + 1 < count) CMOEI_TRY(mark_turn(r, begin, object, i + 1, false, true, whole));
    }
    return CMOE_OK;
}

static cmoe_status read_messages(cmoei_reader *r, const json_t *object)
{
    const json_t *messages = json_object_get(object, "messages");
    const int64_t begin = r->ids.bytes / 4;
    rendered whole = {0};
    bool last = true;
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return cmoei_fail(r->err, CMOE_ERR_FORMAT, "\"messages\" is %s, want a list of messages",
                          json_is_array(messages) ? "empty" : "no list");
    if (!r->o.chat)
        return cmoei_fail(r->err, CMOE_ERR_ARG, "\"messages\", but chat (a template) is NULL");
    CMOEI_TRY(render(r, object, (int64_t)json_array_size(messages), false, &whole));
    r->text_bytes += whole.bytes;
    /* The template writes bos itself. */
    cmoe_status status = cmoei_reader_encode(r, &r->ids, false, whole.text, whole.bytes);
    if (status == CMOE_OK && !r->o.all_turns) status = mark_turns(r, begin, object, &whole, &last);
    if (status == CMOE_OK) status = cmoei_reader_document(r, begin, last);
    rendered_free(&whole);
    return status;
}

/* ---- JSON -------------------------------------------------------------------------------------- */

static int append(const char *text, size_t bytes, void *out)
{
    return cmoei_buffer_add(out, text, (int64_t)bytes, NULL) == CMOE_OK ? 0 : -1;
}

cmoe_status cmoei_json_append(cmoei_buffer *out, const json_t *value, size_t flags, cmoe_error *err)
{
    if (json_dump_callback(value, append, out, flags) == 0) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_MEMORY, "no memory for JSON as text");
}

/* ---- lines ------------------------------------------------------------------------------------- */

bool cmoei_line_blank(const char *line, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r", line[i]) || !line[i]) return false;
    return true;
}

cmoe_status cmoei_line_parse(json_t **out, const char *line, int64_t bytes, cmoei_line_kind *kind,
                             cmoe_error *err)
{
    json_error_t why;
    const int64_t bad = cmoei_utf8_check(line, bytes);
    if (bad >= 0)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "byte %" PRId64 " (0x%02x) is no UTF-8", bad,
                          (unsigned)(unsigned char)line[bad]);
    json_t *j = json_loadb(line, (size_t)bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!j)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "no JSON: %s (column %d)", why.text, why.column);
    const bool text = json_object_get(j, "text");
    const bool pair = json_object_get(j, "prompt") || json_object_get(j, "completion");
    const bool messages = json_object_get(j, "messages");
    if (!json_is_object(j) || text + pair + messages != 1) {
        const cmoe_status status =
            cmoei_fail(err, CMOE_ERR_FORMAT,
                       "%s, want an object with \"text\", with \"prompt\" and \"completion\", or "
                       "with \"messages\"",
                       !json_is_object(j)            ? "no object"
                       : text + pair + messages == 0 ? "none of the keys"
                                                     : "keys of more than one kind");
        json_decref(j);
        return status;
    }
    *kind = text ? CMOEI_LINE_TEXT : pair ? CMOEI_LINE_PAIR : CMOEI_LINE_MESSAGES;
    *out = j;
    return CMOE_OK;
}

static cmoe_status read_line(cmoei_reader *r, const char *line, int64_t bytes)
{
    json_t *object;
    cmoei_line_kind kind;
    CMOEI_TRY(cmoei_line_parse(&object, line, bytes, &kind, r->err));
    const cmoe_status status = kind == CMOEI_LINE_TEXT   ? read_text(r, object)
                               : kind == CMOEI_LINE_PAIR ? read_pair(r, object)
                                                         : read_messages(r, object);
    json_decref(object);
    return status;
}

cmoe_status cmoei_reader_lines(cmoei_reader *r, const cmoei_text_file *f)
{
    cmoe_error *err = r->err, inner = {.size = sizeof inner};
    cmoe_status status = CMOE_OK;
    const char *line;
    int64_t bytes, at = 0, number = f->begin;
    r->err = &inner;
    for (; status == CMOE_OK && cmoei_text_file_line(f, &at, &line, &bytes); number++)
        if (!cmoei_line_blank(line, bytes)) status = read_line(r, line, bytes);
    r->err = err;
    if (status == CMOE_OK) return CMOE_OK;
    return cmoei_fail(err, status, "%s: line %" PRId64 ": %s", f->shown.text, number - 1,
                      inner.text);
}
