/* SPDX-License-Identifier: MIT
 *
 * text.c - prompts and tokenizers for the verbs.
 */
#include "text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "report.h"

int text_check_prompt(const prompt_flags *flags)
{
    const int given = (flags->text != NULL) + (flags->file != NULL) + flags->has_ids;
    if (given == 1) return 0;
    return report_fail(EXIT_USAGE, "--prompt",
                       given ? "want only one of --prompt, --prompt-file and --ids"
                             : "is needed, or --prompt-file or --ids");
}

int text_open(const tool_session *session, const char *path, cmoe_tokenizer **out)
{
    cmoe_error err = {.size = sizeof err};
    const cmoe_status status = cmoe_tokenizer_open(out, session->ctx, path, &err);
    if (status == CMOE_ERR_IO)
        return report_fail(EXIT_FILE, path, "%s: text needs a tokenizer, --ids does not", err.text);
    return model_fail(status, path, &err);
}

int text_encode(const cmoe_tokenizer *t, const cmoe_encode_options *o, const char *text,
                size_t bytes, const char *what, int bad, int32_t **ids, int64_t *count)
{
    cmoe_error err = {.size = sizeof err};
    /* There are seldom more ids than bytes; if so, a second turn. */
    int64_t room = (int64_t)bytes + 16;
    for (;;) {
        *ids = malloc((size_t)room * sizeof **ids);
        if (!*ids) return report_fail(EXIT_MEMORY, what, "no memory for %zu bytes of text", bytes);
        const cmoe_status status =
            cmoe_tokenizer_encode(t, o, text, (int64_t)bytes, *ids, room, count, &err);
        if (status == CMOE_OK && *count <= room) return 0;
        free(*ids);
        *ids = NULL;
        if (status == CMOE_ERR_MEMORY) return report_error(EXIT_MEMORY, what, status, &err);
        if (status != CMOE_OK) return report_error(bad, what, status, &err);
        room = *count;
    }
}

static int encode_prompt(const prompt_flags *flags, const cmoe_tokenizer *t, int32_t **ids,
                         int64_t *count)
{
    const char *what = flags->file ? flags->file : "--prompt";
    size_t bytes = flags->text ? strlen(flags->text) : 0;
    char *text = NULL;
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    if (flags->file && !(text = files_read(flags->file, &bytes)))
        return report_fail(EXIT_USAGE, what, "%s", strerror(errno));
    const int status =
        text_encode(t, &o, text ? text : flags->text, bytes, what, EXIT_USAGE, ids, count);
    free(text);
    return status;
}

int text_check_vocab(const char *path, const cmoe_model_info *info, const int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < info->vocab) continue;
        return report_fail(EXIT_FILE, path,
                           "its tokenizer gives id %d, want 0 <= id < %lld (vocab_size)",
                           (int)ids[i], (long long)info->vocab);
    }
    return 0;
}

static int given_ids(const prompt_flags *flags, const char *path, const cmoe_model_info *info,
                     int32_t **ids, int64_t *count)
{
    const int status = model_check_ids(path, info, flags->ids.v, flags->ids.n, "--ids");
    if (status) return status;
    *count = flags->ids.n;
    *ids = malloc((size_t)*count * sizeof **ids);
    if (!*ids) return report_fail(EXIT_MEMORY, "--ids", "no memory");
    for (int64_t i = 0; i < *count; i++)
        (*ids)[i] = (int32_t)flags->ids.v[i];
    return 0;
}

int text_prompt(const tool_session *session, const prompt_flags *flags, const char *path,
                const cmoe_model_info *info, cmoe_tokenizer **tokenizer, int32_t **ids,
                int64_t *count)
{
    const char *flag = flags->file ? "--prompt-file" : "--prompt";
    if (flags->has_ids) return given_ids(flags, path, info, ids, count);
    int status = text_open(session, path, tokenizer);
    if (status == 0) status = encode_prompt(flags, *tokenizer, ids, count);
    if (status == 0) status = text_check_vocab(path, info, *ids, *count);
    if (status) return status;
    if (*count == 0) return report_fail(EXIT_USAGE, flag, "gives no token, want at least one");
    return model_check_length(path, info, *count, flag);
}

char *text_decode(const cmoe_tokenizer *t, const int32_t *ids, int64_t count, bool skip_special,
                  int64_t *bytes)
{
    cmoe_error err = {.size = sizeof err};
    cmoe_status status = cmoe_tokenizer_decode(t, ids, count, skip_special, NULL, 0, bytes, &err);
    char *text = status == CMOE_OK ? malloc((size_t)*bytes + 1) : NULL;
    if (text)
        status = cmoe_tokenizer_decode(t, ids, count, skip_special, text, *bytes, bytes, &err);
    else if (status == CMOE_OK)
        status = CMOE_ERR_MEMORY;
    if (status == CMOE_OK) {
        text[*bytes] = '\0';
        return text;
    }
    free(text);
    report_status(status, "text", &err);
    return NULL;
}

json_t *text_ids_json(const int32_t *ids, int64_t count)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer((json_int_t)ids[i]));
    return list;
}
