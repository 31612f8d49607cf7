/* SPDX-License-Identifier: MIT
 *
 * text.h - prompts: --prompt, --prompt-file or --ids, and what a tokenizer makes of them.
 */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <jansson.h>

#include "cmoe/text.h"
#include "model.h"
#include "options.h"

typedef struct prompt_flags {
    const char *text, *file;
    option_list ids;
    bool has_ids;
} prompt_flags;

/* For a field `prompt_flags prompt`. */
#define OPTIONS_PROMPT(owner)                                                                   \
    {.name = "prompt",                                                                          \
     .argument = "TEXT",                                                                        \
     .type = OPTION_TEXT,                                                                       \
     .offset = offsetof(owner, prompt.text),                                                    \
     .help = "the text to go on from, as it is: no chat template; special tokens in it count"}, \
        {.name = "prompt-file",                                                                 \
         .argument = "F",                                                                       \
         .type = OPTION_TEXT,                                                                   \
         .offset = offsetof(owner, prompt.file),                                                \
         .help = "a file with the text (-: stdin)"},                                            \
    {                                                                                           \
        .name = "ids", .argument = "IDS", .type = OPTION_LIST,                                  \
        .offset = offsetof(owner, prompt.ids), .given = offsetof(owner, prompt.has_ids),        \
        .help = "the tokens instead: 1,2,3 or @FILE that holds such a list (@-: stdin); no "    \
                "tokenizer is opened then"                                                      \
    }

/* 0, or 2 when not exactly one of the three was given. */
int text_check_prompt(const prompt_flags *flags);

/* Opens the tokenizer of a model's directory, or a tokenizer.json; 3 when there is none. */
int text_open(const tool_session *session, const char *path, cmoe_tokenizer **out);

/* Ids of a text, freed by free(); `bad` is the exit status for a text that is not UTF-8. */
int text_encode(const cmoe_tokenizer *t, const cmoe_encode_options *o, const char *text,
                size_t bytes, const char *what, int bad, int32_t **ids, int64_t *count);

/* 0, or 3 when the tokenizer knows more tokens than the model. */
int text_check_vocab(const char *path, const cmoe_model_info *info, const int32_t *ids, int64_t n);

/* The prompt's ids, checked against the model, at least one; freed by free().  The tokenizer is
 * opened where there is text, else *tokenizer stays NULL. */
int text_prompt(const tool_session *session, const prompt_flags *flags, const char *path,
                const cmoe_model_info *info, cmoe_tokenizer **tokenizer, int32_t **ids,
                int64_t *count);

/* Text of ids, freed by free(); NULL after an error line. */
char *text_decode(const cmoe_tokenizer *t, const int32_t *ids, int64_t count, bool skip_special,
                  int64_t *bytes);

json_t *text_ids_json(const int32_t *ids, int64_t count);

#endif
