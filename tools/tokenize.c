/* SPDX-License-Identifier: MIT
 *
 * tokenize.c - `cmoe tokenize`: text to ids and back, as the model's tokenizer.json says.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "report.h"
#include "text.h"
#include "verbs.h"

typedef struct tokenize_options {
    const char *path, *text, *file;
    option_list ids;
    bool has_ids, decode, no_special, plain;
    common_options common;
} tokenize_options;

#define AT(field) offsetof(tokenize_options, field)

static const option options[] = {
    {.name = "MODEL",
     .argument = "a directory with tokenizer.json, or such a file",
     .type = OPTION_TEXT,
     .offset = AT(path),
     .required = true,
     .positional = true,
     .help = "directory with tokenizer.json, or such a file"},
    {.name = "text",
     .argument = "TEXT",
     .type = OPTION_TEXT,
     .offset = AT(text),
     .help = "the text"},
    {.name = "file",
     .argument = "F",
     .type = OPTION_TEXT,
     .offset = AT(file),
     .help = "a file with the text (-: stdin)"},
    {.name = "decode", .type = OPTION_FLAG, .offset = AT(decode), .help = "from --ids to text"},
    {.name = "ids",
     .argument = "IDS",
     .type = OPTION_LIST,
     .offset = AT(ids),
     .given = AT(has_ids),
     .help = "what to decode: 1,2,3 or @FILE that holds such a list (@-: stdin)"},
    {.name = "no-special",
     .type = OPTION_FLAG,
     .offset = AT(no_special),
     .help = "add no tokens such as bos; with --decode: leave special tokens out"},
    {.name = "plain",
     .type = OPTION_FLAG,
     .offset = AT(plain),
     .help = "special tokens that stand in the text are text like any other"},
    OPTIONS_COMMON(tokenize_options),
};

const option_verb tokenize_verb = {
    .name = "tokenize",
    .group = "Text",
    .summary = "text to token ids, and back",
    .examples = "  cmoe tokenize MODEL --text \"Hello, world\"\n"
                "  cmoe tokenize MODEL --file book.txt --json\n"
                "  cmoe tokenize MODEL --decode --ids 9707,11,1879\n",
    .text = "Prints a line for each token: its id and its text; --json: {\"ids\":[...],"
            "\"tokens\":[...]}. With --decode it prints the text and nothing else. Exit status 3 "
            "when the tokenizer, 2 when the text is not what it should be.",
    .options = options,
};

static int check(const tokenize_options *o)
{
    if (o->decode) {
        if (!o->has_ids) return report_fail(EXIT_USAGE, "--decode", "needs --ids IDS");
        if (o->text || o->file) return report_fail(EXIT_USAGE, "--decode", "takes --ids, not text");
        return 0;
    }
    if (o->has_ids) return report_fail(EXIT_USAGE, "--ids", "needs --decode");
    if (!o->text && !o->file) return report_fail(EXIT_USAGE, "--text", "is needed, or --file");
    if (o->text && o->file) return report_fail(EXIT_USAGE, "--file", "want it or --text, not both");
    return 0;
}

/* ---- decode ---------------------------------------------------------------------------------- */

static int decode(const tokenize_options *o, const cmoe_tokenizer *t)
{
    const int64_t n = o->ids.n, size = cmoe_tokenizer_size(t);
    int64_t bytes;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    int status = ids ? 0 : report_fail(EXIT_MEMORY, "--ids", "no memory");
    for (int64_t i = 0; i < n && status == 0; i++) {
        char what[64];
        snprintf(what, sizeof what, "ids[%lld] = %lld", (long long)i, (long long)o->ids.v[i]);
        if (o->ids.v[i] < 0 || o->ids.v[i] >= size)
            status = report_fail(EXIT_USAGE, what, "want 0 <= id < %lld (tokens of %s)",
                                 (long long)size, o->path);
        ids[i] = (int32_t)o->ids.v[i];
    }
    char *text = status == 0 ? text_decode(t, ids, n, o->no_special, &bytes) : NULL;
    report r;
    if (text && o->common.json) {
        status = report_json(json_pack("{so so}", "ids", text_ids_json(ids, n), "text",
                                       json_stringn(text, (size_t)bytes)));
    } else if (text) {
        status = report_begin(&r);
        if (status == 0) {
            fwrite(text, 1, (size_t)bytes, r.to);
            status = report_end(&r, 0);
        }
    } else if (status == 0) {
        status = EXIT_ERROR;
    }
    free(text);
    free(ids);
    return status;
}

/* ---- encode ---------------------------------------------------------------------------------- */

static int print_ids(const tokenize_options *o, const cmoe_tokenizer *t, const int32_t *ids,
                     int64_t n)
{
    if (o->common.json) {
        json_t *tokens = json_array();
        for (int64_t i = 0; i < n; i++) {
            const char *token = cmoe_tokenizer_token(t, ids[i]);
            json_array_append_new(tokens, report_json_text(token ? token : ""));
        }
        return report_json(json_pack("{so so}", "ids", text_ids_json(ids, n), "tokens", tokens));
    }
    report r;
    const int status = report_begin(&r);
    if (status) return status;
    for (int64_t i = 0; i < n; i++) {
        const char *token = cmoe_tokenizer_token(t, ids[i]);
        fprintf(r.to, "%8d  ", (int)ids[i]);
        report_plain(r.to, token ? token : "");
        fputc('\n', r.to);
    }
    return report_end(&r, 0);
}

static int encode(const tokenize_options *o, const cmoe_tokenizer *t)
{
    const char *what = o->file ? o->file : "--text";
    size_t bytes = o->text ? strlen(o->text) : 0;
    char *read = NULL;
    int32_t *ids = NULL;
    int64_t n = 0;
    cmoe_encode_options e;
    cmoe_encode_options_default(&e, sizeof e);
    e.add_special = !o->no_special;
    e.parse_special = !o->plain;
    if (o->file && !(read = files_read(o->file, &bytes)))
        return report_fail(EXIT_USAGE, what, "%s", strerror(errno));
    int status = text_encode(t, &e, read ? read : o->text, bytes, what, EXIT_USAGE, &ids, &n);
    if (status == 0) status = print_ids(o, t, ids, n);
    free(ids);
    free(read);
    return status;
}

int tokenize_main(int argc, char **argv)
{
    tokenize_options o = {0};
    tool_session session = {0};
    cmoe_tokenizer *t = NULL;
    int status = options_parse(&tokenize_verb, argc, argv, &o);
    if (status == 0) status = check(&o);
    if (status == 0) status = session_open(&session, &o.common);
    if (status == 0) status = text_open(&session, o.path, &t);
    if (status == 0) status = o.decode ? decode(&o, t) : encode(&o, t);
    cmoe_tokenizer_free(t);
    session_close(&session);
    free(o.ids.v);
    return status;
}
