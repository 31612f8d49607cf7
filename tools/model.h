/* SPDX-License-Identifier: MIT
 *
 * model.h - what every verb with a MODEL does: the words of --dtype, planning, whether it fits into
 * memory, loading with a progress bar, and which exit status an error becomes.
 */
#ifndef TOOLS_MODEL_H
#define TOOLS_MODEL_H

#include <jansson.h>

#include "cmoe/model.h"
#include "machine.h"
#include "options.h"

typedef struct model_flags {
    const char *path, *dtype, *cache_dir;
    int64_t context, block_length;
    option_texts adapters;
} model_flags;

/* Words for --dtype that work, and those that a later version will take. */
extern const char *const model_dtypes[], *const model_dtypes_later[];

#define OPTION_MODEL(owner, needed)                                                        \
    {                                                                                      \
        .name = "MODEL", .argument = "a directory as on a model hub", .type = OPTION_TEXT, \
        .offset = offsetof(owner, model.path), .required = needed, .positional = true,     \
        .help = "directory with config.json and *.safetensors, as it lies on a model hub"  \
    }

#define OPTIONS_MODEL(owner, usual, kept)                                                          \
    {.name = "dtype",                                                                              \
     .group = "Model",                                                                             \
     .argument = "FORMAT",                                                                         \
     .type = OPTION_CHOICE,                                                                        \
     .offset = offsetof(owner, model.dtype),                                                       \
     .choices = model_dtypes,                                                                      \
     .later = model_dtypes_later,                                                                  \
     .initial = usual,                                                                             \
     .help = "format of the weights; auto: as stored, 16 bits and less as bf16"},                  \
        {.name = "cache-dir",                                                                      \
         .group = "Model",                                                                         \
         .argument = "DIR",                                                                        \
         .type = OPTION_TEXT,                                                                      \
         .offset = offsetof(owner, model.cache_dir),                                               \
         .initial = kept,                                                                          \
         .help = "keep packed weights there, so that the next start takes no time; none: do not; " \
                 "user: in the user's cache directory, if the disk has room for four times as "    \
                 "much"},                                                                          \
        {.name = "adapter",                                                                        \
         .group = "Model",                                                                         \
         .argument = "DIR[:SCALE]",                                                                \
         .type = OPTION_TEXTS,                                                                     \
         .offset = offsetof(owner, model.adapters),                                                \
         .help = "an adapter as PEFT saves it, folded into the weights, times SCALE; may be "      \
                 "given several times"},                                                           \
    {                                                                                              \
        .name = "context", .group = "Model", .argument = "N", .type = OPTION_INT,                  \
        .offset = offsetof(owner, model.context), .most = 1099511627776.0, .initial = "0",         \
        .help = "positions of the sequence that there is room for; 0: as many as the model takes"  \
    }

/* CMOE_..., or 0 for auto. */
int32_t model_format(const char *word);
const char *model_format_name(int32_t format); /* "int8" */
const char *model_mask_name(int32_t mask, char text[32]);

/* "61.2 GiB" */
typedef struct size_text {
    char s[24];
} size_text;
size_text size_of(int64_t bytes);

/* The error line of a failed call of the engine, and the exit status: 3 when the model, 2 when an
 * option is not what it should be. */
int model_fail(cmoe_status status, const char *path, const cmoe_error *err);

/* The same for a call that took a request, made of flags: 2 unless it is about memory. */
int model_refuse(cmoe_status status, const char *what, const cmoe_error *err);

/* Ids of a flag: each in the vocabulary, together no longer than the context.  0 or 2. */
int model_check_ids(const char *path, const cmoe_model_info *info, const int64_t *ids, int64_t n,
                    const char *flag);

/* So many tokens, at most the context.  0 or 2. */
int model_check_length(const char *path, const cmoe_model_info *info, int64_t n, const char *flag);

/* 0, or 3 after saying that this is no model directory. */
int model_check_path(const char *path);

/* Headers only.  `format` takes the place of flags->dtype.  Fills info, or prints why not and
 * returns the exit status. */
int model_plan(const tool_session *session, const model_flags *flags, int32_t format,
               cmoe_model_info *info);
/* Whether it can be loaded in this format: int8 has a limit to the length of rows. */
bool model_can_be(const tool_session *session, const model_flags *flags, int32_t format);

/* The model without its weights, to be asked about its layers, as flags->dtype says. */
int model_outline(const tool_session *session, const model_flags *flags, cmoe_model **out);

/* ---- memory ---------------------------------------------------------------------------------- */

/* Bytes that a run takes, by what they are for. */
typedef struct model_needs {
    int64_t weights, cache, work, output, total;
} model_needs;

/* `positions` in the cache, `chunk` tokens of a forward, `output` bytes of results. */
model_needs model_needs_of(const cmoe_model_info *info, int64_t positions, int64_t chunk,
                           int64_t output);

/* 0, or 4 after saying how much is needed, how much is there, what to try. */
int model_check_memory(const tool_session *session, const model_flags *flags,
                       const cmoe_model_info *info, const model_needs *needs, int64_t available);

/* ---- load ------------------------------------------------------------------------------------ */

/* Weights may take `limit` bytes; with `later` the caller keeps what was packed.  0, or the exit status
 * after an error line. */
int model_load(const tool_session *session, const model_flags *flags,
               const cmoe_model_info *planned, int64_t limit, bool later, bool quiet,
               cmoe_model **out);

json_t *model_bytes_json(const cmoe_model_bytes *b);
json_t *model_ranks_json(const cmoe_model_info *info);

/* 0, or the exit status after saying that no file can be made there, or that it is a file of the
 * model, which would be replaced by what was computed from it. */
int model_check_output(const tool_session *session, const model_flags *flags, const char *flag,
                       const char *path);

#endif
