/* SPDX-License-Identifier: MIT
 *
 * settings.h - how to generate: each value is the flag's, else that of the model's
 * generation_config.json, else greedy and the library's default.
 */
#ifndef TOOLS_SETTINGS_H
#define TOOLS_SETTINGS_H

#include "cmoe/engine.h"
#include "options.h"

typedef struct sampling_flags {
    double temperature, top_p, min_p, penalty;
    int64_t top_k, seed;
    bool has_temperature, has_top_p, has_min_p, has_penalty, has_top_k;
} sampling_flags;

typedef struct diffusion_flags {
    const char *remasking;
    int64_t steps, buffer, mask_token, forwards, repeats;
    double threshold, eb, add_block, semi_complete, accept;
    bool has_block, has_remasking, has_steps, has_buffer, has_mask_token, has_forwards, has_repeats;
    bool has_threshold, has_eb, has_add_block, has_semi_complete, has_accept;
} diffusion_flags;

extern const char *const settings_remaskings[];

#define SETTINGS_ROW(owner, part, field, flag, arg, kind, lowest, highest, text)           \
    {                                                                                      \
        .name = flag, .group = part##_GROUP, .argument = arg, .type = kind,                \
        .offset = offsetof(owner, part.field), .given = offsetof(owner, part.has_##field), \
        .least = lowest, .most = highest, .help = text                                     \
    }
#define sampling_GROUP  "Sampling (else generation_config.json, else greedy)"
#define diffusion_GROUP "Block diffusion (else the model's files, else what its family uses)"

/* For a field `sampling_flags sampling`. */
#define OPTIONS_SAMPLING(owner)                                                                  \
    SETTINGS_ROW(owner, sampling, temperature, "temperature", "X", OPTION_FLOAT, 0, 100,         \
                 "above 0: sample; 0: greedy, and all of generation_config.json is set aside"),  \
        SETTINGS_ROW(owner, sampling, top_k, "top-k", "K", OPTION_INT, 0, 2147483647,            \
                     "keep the K best tokens; 0: all"),                                          \
        SETTINGS_ROW(owner, sampling, top_p, "top-p", "P", OPTION_FLOAT, 0, 1,                   \
                     "keep the best tokens that together have probability P"),                   \
        SETTINGS_ROW(owner, sampling, min_p, "min-p", "P", OPTION_FLOAT, 0, 1,                   \
                     "keep tokens at least P times as probable as the best"),                    \
        SETTINGS_ROW(owner, sampling, penalty, "repeat-penalty", "X", OPTION_FLOAT, 0.001, 1000, \
                     "above 1: tokens that were there become less probable"),                    \
    {                                                                                            \
        .name = "seed", .group = sampling_GROUP, .argument = "S", .type = OPTION_INT,            \
        .offset = offsetof(owner, sampling.seed), .most = 9007199254740992.0, .initial = "0",    \
        .help = "another one, another answer"                                                    \
    }

/* For fields `diffusion_flags diffusion` and `model_flags model`. */
#define OPTIONS_DIFFUSION(owner)                                                                  \
    {.name = "block-length",                                                                      \
     .group = diffusion_GROUP,                                                                    \
     .argument = "N",                                                                             \
     .type = OPTION_INT,                                                                          \
     .offset = offsetof(owner, model.block_length),                                               \
     .given = offsetof(owner, diffusion.has_block),                                               \
     .least = 4,                                                                                  \
     .most = 64,                                                                                  \
     .help = "tokens of a block"},                                                                \
        SETTINGS_ROW(owner, diffusion, steps, "steps", "N", OPTION_INT, 1, 64,                    \
                     "forwards a block is planned for; at most its length"),                      \
        {.name = "remasking",                                                                     \
         .group = diffusion_GROUP,                                                                \
         .argument = "S",                                                                         \
         .type = OPTION_CHOICE,                                                                   \
         .offset = offsetof(owner, diffusion.remasking),                                          \
         .given = offsetof(owner, diffusion.has_remasking),                                       \
         .choices = settings_remaskings,                                                          \
         .help = "which tokens of a block are decided first"},                                    \
        SETTINGS_ROW(owner, diffusion, threshold, "threshold", "X", OPTION_FLOAT, 0, 1,           \
                     "of low_confidence_dynamic: more probable tokens are decided at once"),      \
        SETTINGS_ROW(owner, diffusion, eb, "eb", "X", OPTION_FLOAT, 0, 1000,                      \
                     "of entropy_bounded: how much entropy is decided at once"),                  \
        SETTINGS_ROW(owner, diffusion, buffer, "buffer-blocks", "N", OPTION_INT, 1, 64,           \
                     "blocks worked on at once"),                                                 \
        SETTINGS_ROW(owner, diffusion, add_block, "add-block-threshold", "X", OPTION_FLOAT, 0, 1, \
                     "the next block is opened when this share of the last one is decided"),      \
        SETTINGS_ROW(owner, diffusion, semi_complete, "semi-complete-threshold", "X",             \
                     OPTION_FLOAT, 0, 1,                                                          \
                     "from this share on a block makes the next one progress"),                   \
        SETTINGS_ROW(owner, diffusion, accept, "accept-threshold", "X", OPTION_FLOAT, 0, 1,       \
                     "with several blocks: more probable tokens are accepted"),                   \
        SETTINGS_ROW(owner, diffusion, mask_token, "mask-token-id", "N", OPTION_INT, 0,           \
                     2147483647, "the token that stands for an undecided one"),                   \
        SETTINGS_ROW(owner, diffusion, forwards, "max-forwards", "N", OPTION_INT, 0,              \
                     1099511627776.0, "end after so many forwards; 0: never"),                    \
        SETTINGS_ROW(owner, diffusion, repeats, "max-repeats", "N", OPTION_INT, 0,                \
                     1099511627776.0, "end when one token stands so often in a row; 0: never")

/* What a request is made of. */
typedef struct settings {
    cmoe_sampling sampling;
    cmoe_diffusion diffusion;
    bool diffuses; /* the model is one of block diffusion, or is to be taken as one */
    int32_t *eos;  /* [n_eos] */
    int64_t n_eos;
} settings;

/* Reads generation_config.json (a model need not have one) and config.json beside it.  0, or the exit
 * status after an error line: 3 when the files, 2 when the flags are not what they should be. */
int settings_read(settings *s, cmoe_ctx *ctx, const char *path, const cmoe_model_info *info,
                  const sampling_flags *sampling, const diffusion_flags *diffusion,
                  int64_t block_length);
void settings_free(settings *s);

/* The token that stands for an undecided one; -1: the model does not diffuse. */
int64_t settings_mask_token(const settings *s, const cmoe_model_info *info);
/* Tokens that are worked on at once beside those that are decided; 0: the model does not diffuse. */
int64_t settings_canvas(const settings *s, const cmoe_model_info *info);

#endif
