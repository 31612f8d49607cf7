/* SPDX-License-Identifier: MIT
 *
 * cmoe/text.h - text to token ids and back, and chat templates.
 *
 * A tokenizer is what tokenizer.json says, to the id; a template is what the Jinja source says, in a
 * sandbox: it sees the variables it is given and nothing else, and its depth, steps and output are
 * bounded.  Constructs that are not known are refused by name, never guessed.  Part of libcmoe_engine.
 */
#ifndef CMOE_TEXT_H
#define CMOE_TEXT_H

#include "cmoe/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- tokenizer ------------------------------------------------------------------------------- */

/* Immutable, shared by threads; freed before its context. */
typedef struct cmoe_tokenizer cmoe_tokenizer;

/* `path`: a model's directory (tokenizer.json, and tokenizer_config.json if it is there) or a
 * tokenizer.json. */
CMOE_API cmoe_status cmoe_tokenizer_open(cmoe_tokenizer **out, cmoe_ctx *ctx, const char *path,
                                         cmoe_error *err);
CMOE_API void cmoe_tokenizer_free(cmoe_tokenizer *t);

CMOE_API int64_t cmoe_tokenizer_size(const cmoe_tokenizer *t);                  /* largest id + 1 */
CMOE_API int64_t cmoe_tokenizer_id(const cmoe_tokenizer *t, const char *token); /* -1: none */
/* The token's text as the file writes it; NULL for an id without one. */
CMOE_API const char *cmoe_tokenizer_token(const cmoe_tokenizer *t, int64_t id);
CMOE_API int32_t cmoe_tokenizer_is_special(const cmoe_tokenizer *t, int64_t id);
/* What tokenizer_config.json calls them; -1: none. */
CMOE_API int64_t cmoe_tokenizer_bos(const cmoe_tokenizer *t);
CMOE_API int64_t cmoe_tokenizer_eos(const cmoe_tokenizer *t);

typedef struct cmoe_encode_options {
    size_t size;
    int32_t add_special;   /* 1 (default): what the post-processor adds: bos, eos, ... */
    int32_t parse_special; /* 1 (default): added tokens inside the text are found; 0: special ones
                              among them are plain text */
} cmoe_encode_options;

CMOE_API void cmoe_encode_options_default(cmoe_encode_options *o, size_t size);

/* text: UTF-8, `bytes` of it, zeros included.  *count is how many ids there are; at most `capacity` of
 * them are written.  CMOE_ERR_FORMAT: not UTF-8, with the offset. */
CMOE_API cmoe_status cmoe_tokenizer_encode(const cmoe_tokenizer *t, const cmoe_encode_options *o,
                                           const char *text, int64_t bytes, int32_t *ids,
                                           int64_t capacity, int64_t *count, cmoe_error *err);

/* *bytes is how long the text is; at most `capacity` bytes are written, no terminator.  Bytes that are
 * no UTF-8 become U+FFFD, as in Hugging Face tokenizers. */
CMOE_API cmoe_status cmoe_tokenizer_decode(const cmoe_tokenizer *t, const int32_t *ids,
                                           int64_t count, int32_t skip_special, char *text,
                                           int64_t capacity, int64_t *bytes, cmoe_error *err);

/* Decodes a growing sequence: each push gives the text that is certain by now, never half of a
 * character.  What all pushes and the finish give is what decode gives.  Belongs to one thread. */
typedef struct cmoe_detokenizer cmoe_detokenizer;

CMOE_API cmoe_status cmoe_detokenizer_create(cmoe_detokenizer **out, const cmoe_tokenizer *t,
                                             int32_t skip_special, cmoe_error *err);
CMOE_API void cmoe_detokenizer_free(cmoe_detokenizer *d);
/* *text lives until the next call. */
CMOE_API cmoe_status cmoe_detokenizer_push(cmoe_detokenizer *d, int32_t id, const char **text,
                                           int64_t *bytes, cmoe_error *err);
CMOE_API cmoe_status cmoe_detokenizer_finish(cmoe_detokenizer *d, const char **text, int64_t *bytes,
                                             cmoe_error *err);

/* ---- chat templates -------------------------------------------------------------------------- */

/* Immutable, shared by threads; freed before its context. */
typedef struct cmoe_template cmoe_template;

/* `path`: a model's directory (chat_template.jinja, else chat_template in tokenizer_config.json, else
 * chat_template.json), or a file with Jinja source.  `name`: which of a list of templates, NULL: the
 * default one. */
CMOE_API cmoe_status cmoe_template_open(cmoe_template **out, cmoe_ctx *ctx, const char *path,
                                        const char *name, cmoe_error *err);
/* From source; `name` stands in error texts.  CMOE_ERR_FORMAT names line and construct. */
CMOE_API cmoe_status cmoe_template_parse(cmoe_template **out, cmoe_ctx *ctx, const char *source,
                                         int64_t bytes, const char *name, cmoe_error *err);
CMOE_API void cmoe_template_free(cmoe_template *t);

typedef struct cmoe_render_options {
    size_t size;
    int64_t steps;  /* most expressions and statements evaluated; default 10 million */
    int64_t output; /* most bytes; default 64 MiB */
    int64_t now;    /* seconds since 1970, for strftime_now; default 0 */
} cmoe_render_options;

CMOE_API void cmoe_render_options_default(cmoe_render_options *o, size_t size);

/* `variables`: a JSON object: messages, tools, add_generation_prompt, bos_token, ...  *text comes from
 * the context's allocator and goes back with cmoe_text_free.  CMOE_ERR_FORMAT: the template failed, or
 * called raise_exception, whose text is passed on. */
CMOE_API cmoe_status cmoe_template_render(const cmoe_template *t, const cmoe_render_options *o,
                                          const char *variables, int64_t variables_bytes,
                                          char **text, int64_t *bytes, cmoe_error *err);
CMOE_API void cmoe_text_free(cmoe_ctx *ctx, char *text, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
