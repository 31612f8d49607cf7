/* SPDX-License-Identifier: MIT
 *
 * training.h - what `cmoe train` and `cmoe finetune` share: flags, the course of a training, its files.
 *
 *     training.c          from the flags to a finished directory
 *     training_flags.c    what the flags mean to the library, and which of them do not go together
 *     training_data.c     tokenizer, texts to learn and texts to be tested on
 *     training_identity.c what a training is, and whether a directory holds the same one
 *     training_files.c    the directory
 *     training_record.c   training.jsonl and pictures
 *     training_show.c     what is seen of it while it runs
 */
#ifndef TOOLS_TRAINING_H
#define TOOLS_TRAINING_H

#include <jansson.h>

#include "cmoe/train.h"
#include "cmoe/weights.h"
#include "machine.h"
#include "options.h"
#include "plot.h"

/* Flags of both verbs; those that one of them does not have stay zero. */
typedef struct training_flags {
    const char *source; /* CONFIG or MODEL */
    const char *data, *eval_file, *out, *tokenizer, *chat_template;
    const char *optimizer, *schedule, *dtype, *objective, *export_dtype;
    const char *targets, *frozen, *adapter;
    double hold_out, lr, final_lr, beta1, beta2, eps, weight_decay, momentum, clip;
    double balance, z_loss, bias_rate, dropout, alpha;
    int64_t steps, units, sequences, length, pass, warmup, cooldown, seed, block_length;
    int64_t eval_every, eval_tokens, save_every, keep, rank;
    bool recompute, keep_best, restart, all_turns, full, rslora;
    bool has_hold_out, has_lr, has_final_lr, has_momentum, has_block_length, has_cooldown;
    bool has_rank, has_alpha, has_targets, has_beta1, has_beta2, has_eps;
    common_options common;
} training_flags;

extern const char *const training_optimizers[], *const training_schedules[];
extern const char *const training_dtypes[], *const training_frozen[], *const training_objectives[];

#define TRAINING_ROW(part, flag, arg, kind, field_, usual, lowest, highest, text)      \
    {                                                                                  \
        .name = flag, .group = part, .argument = arg, .type = kind,                    \
        .offset = offsetof(training_flags, field_), .initial = usual, .least = lowest, \
        .most = highest, .help = text                                                  \
    }
/* One whose presence counts. */
#define TRAINING_GIVEN(part, flag, arg, kind, field_, usual, lowest, highest, text)    \
    {                                                                                  \
        .name = flag, .group = part, .argument = arg, .type = kind,                    \
        .offset = offsetof(training_flags, field_), .initial = usual, .least = lowest, \
        .most = highest, .help = text, .given = offsetof(training_flags, has_##field_) \
    }
#define TRAINING_TEXT(part, flag, arg, field_, needed, text)                         \
    {                                                                                \
        .name = flag, .group = part, .argument = arg, .type = OPTION_TEXT,           \
        .offset = offsetof(training_flags, field_), .required = needed, .help = text \
    }
#define TRAINING_FLAG(part, flag, field_, text)                  \
    {                                                            \
        .name = flag, .group = part, .type = OPTION_FLAG,        \
        .offset = offsetof(training_flags, field_), .help = text \
    }
#define TRAINING_CHOICE(part, flag, field_, words, usual, text)                         \
    {                                                                                   \
        .name = flag, .group = part, .argument = "NAME", .type = OPTION_CHOICE,         \
        .offset = offsetof(training_flags, field_), .choices = words, .initial = usual, \
        .help = text                                                                    \
    }

#define TRAINING_TOKENS 1099511627776.0

#define OPTIONS_TRAINING_DATA                                                                   \
    TRAINING_TEXT(NULL, "data", "F", data, true,                                                \
                  "what is learned: UTF-8 text, or a .jsonl file with an object a line: "       \
                  "{\"text\"}, {\"prompt\", \"completion\"} or {\"messages\"}"),                \
        TRAINING_TEXT(NULL, "out", "DIR", out, true,                                            \
                      "directory for everything that comes out; a training that is there goes " \
                      "on"),                                                                    \
        TRAINING_TEXT(NULL, "eval-file", "F", eval_file, false,                                 \
                      "what is not learned, but foretold; without it the end of --data"),       \
        TRAINING_GIVEN(NULL, "hold-out", "X", OPTION_FLOAT, hold_out, "0.05", 0, 0.9,           \
                       "share of the end of --data that is kept for that; 0: none"),            \
        TRAINING_TEXT(NULL, "chat-template", "F", chat_template, false,                         \
                      "Jinja source for {\"messages\"}; without it the source's own"),          \
        TRAINING_FLAG(NULL, "all-turns", all_turns,                                             \
                      "of {\"messages\"} every token is learned, not the assistant's alone"),   \
        TRAINING_FLAG(NULL, "restart", restart, "begin anew although --out holds a training")

#define STEP_GROUP "Steps"
#define OPTIONS_TRAINING_STEPS(usual)                                                          \
    TRAINING_ROW(STEP_GROUP, "steps", "N", OPTION_INT, steps, usual, 1, 2147483647,            \
                 "steps of the optimizer"),                                                    \
        TRAINING_ROW(STEP_GROUP, "units", "N", OPTION_INT, units, "8", 1, CMOE_UNITS_MOST,     \
                     "parts of a step whose gradients are added in a fixed order; a power of " \
                     "two"),                                                                   \
        TRAINING_ROW(STEP_GROUP, "sequences", "N", OPTION_INT, sequences, "1", 1, 1048576,     \
                     "sequences of a unit"),                                                   \
        TRAINING_ROW(STEP_GROUP, "length", "N", OPTION_INT, length, "256", 1, 1048576,         \
                     "tokens of a sequence"),                                                  \
        TRAINING_ROW(STEP_GROUP, "pass", "N", OPTION_INT, pass, "0", 0, CMOE_UNITS_MOST,       \
                     "units that are in memory together, a power of two; 0: as many as their " \
                     "logits allow. Less memory, same bits"),                                  \
        TRAINING_FLAG(STEP_GROUP, "recompute", recompute,                                      \
                      "compute layers again on the way back instead of keeping them: less "    \
                      "memory, same bits"),                                                    \
        TRAINING_CHOICE(STEP_GROUP, "dtype", dtype, training_dtypes, "f32",                    \
                        "format that products are computed in; weights are kept in float32"),  \
        TRAINING_CHOICE(STEP_GROUP, "objective", objective, training_objectives, "next",       \
                        "foretell the next token, or the masked tokens of a block"),           \
        TRAINING_GIVEN(STEP_GROUP, "block-length", "N", OPTION_INT, block_length, NULL, 1,     \
                       1048576,                                                                \
                       "tokens of a block of --objective block-diffusion; without it "         \
                       "the model's own"),                                                     \
        TRAINING_ROW(STEP_GROUP, "seed", "S", OPTION_INT, seed, "0", 0, 9007199254740992.0,    \
                     "another one, another training")

#define OPTIMIZER_GROUP "Optimizer"
#define OPTIONS_TRAINING_OPTIMIZER(lr_text)                                                        \
    TRAINING_CHOICE(OPTIMIZER_GROUP, "optimizer", optimizer, training_optimizers, "adamw",         \
                    "how weights follow gradients; muon: for matrices, adamw for the rest"),       \
        TRAINING_CHOICE(OPTIMIZER_GROUP, "schedule", schedule, training_schedules, "cosine",       \
                        "of the learning rate; wsd: constant, then down over --cooldown steps"),   \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "lr", "X", OPTION_FLOAT, lr, NULL, 0, 1000, lr_text),      \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "final-lr", "X", OPTION_FLOAT, final_lr, NULL, 0, 1000,    \
                       "what it ends with; without it a tenth of --lr"),                           \
        TRAINING_ROW(OPTIMIZER_GROUP, "warmup", "N", OPTION_INT, warmup, "0", 0, 2147483647,       \
                     "steps in which it rises from 0"),                                            \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "cooldown", "N", OPTION_INT, cooldown, NULL, 0,            \
                       2147483647,                                                                 \
                       "last steps of wsd, in which it falls; without it a fifth of "              \
                       "--steps"),                                                                 \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "beta1", "X", OPTION_FLOAT, beta1, "0.9", 0, 0.99999999,   \
                       "adamw: memory of the mean"),                                               \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "beta2", "X", OPTION_FLOAT, beta2, "0.95", 0, 0.99999999,  \
                       "adamw: memory of the square"),                                             \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "eps", "X", OPTION_FLOAT, eps, "1e-8", 0, 1,               \
                       "adamw: added to the root of the square"),                                  \
        TRAINING_ROW(OPTIMIZER_GROUP, "weight-decay", "X", OPTION_FLOAT, weight_decay, "0.1", 0,   \
                     1000, "of matrices"),                                                         \
        TRAINING_GIVEN(OPTIMIZER_GROUP, "momentum", "X", OPTION_FLOAT, momentum, NULL, 0,          \
                       0.99999999, "of sgd and muon; without it 0 and 0.95"),                      \
        TRAINING_ROW(OPTIMIZER_GROUP, "clip", "X", OPTION_FLOAT, clip, "1", 0, 1e30,               \
                     "longest gradient; 0: any"),                                                  \
        TRAINING_ROW(OPTIMIZER_GROUP, "balance", "X", OPTION_FLOAT, balance, "0.01", 0, 1000,      \
                     "weight of the loss that evens out the load of experts"),                     \
        TRAINING_ROW(OPTIMIZER_GROUP, "z-loss", "X", OPTION_FLOAT, z_loss, "0.001", 0, 1000,       \
                     "weight of the loss that keeps the router's scores small"),                   \
        TRAINING_ROW(OPTIMIZER_GROUP, "bias-rate", "X", OPTION_FLOAT, bias_rate, "0.001", 0, 1000, \
                     "step of the bias that evens out the load, where a model has one"),           \
        TRAINING_ROW(OPTIMIZER_GROUP, "dropout", "X", OPTION_FLOAT, dropout, "0", 0, 0.99,         \
                     "share of the embedding, and of what a block adds, that is left out")

#define FILES_GROUP "Evaluation and files"
#define OPTIONS_TRAINING_FILES                                                                     \
    TRAINING_ROW(FILES_GROUP, "eval-every", "N", OPTION_INT, eval_every, "100", 0, 2147483647,     \
                 "steps between two evaluations; 0: at the end only"),                             \
        TRAINING_ROW(FILES_GROUP, "eval-tokens", "N", OPTION_INT, eval_tokens, "65536", 0,         \
                     TRAINING_TOKENS, "most tokens of one; 0: all that are kept for it"),          \
        TRAINING_ROW(FILES_GROUP, "save-every", "N", OPTION_INT, save_every, "100", 0, 2147483647, \
                     "steps between two checkpoints; 0: at the end only"),                         \
        TRAINING_ROW(FILES_GROUP, "keep", "N", OPTION_INT, keep, "2", 1, 1000000,                  \
                     "checkpoints that stay"),                                                     \
        TRAINING_FLAG(FILES_GROUP, "keep-best", keep_best,                                         \
                      "what comes out is the best of all evaluations, not the last step"),         \
        TRAINING_CHOICE(FILES_GROUP, "export-dtype", export_dtype, training_dtypes, "bf16",        \
                        "format of the model that comes out; adapters are float32")

#define TRAINING_ABOUT                                                                            \
    "A step is the same to the bit at any number of threads. Every --save-every steps, and when " \
    "it is interrupted, the training is saved in DIR/checkpoints; the same command goes on from " \
    "there as if nothing had happened. DIR also gets training.jsonl (a line for every step and "  \
    "every evaluation), loss.svg and load.svg. Bits per byte are those of the text that is kept " \
    "for evaluation, in windows of --length tokens one behind the other, the end of a document "  \
    "counted; of block diffusion they are a bound. `cmoe eval DIR --context L+1 --stride L` "     \
    "scores a text the same way; with its own defaults a token sees more before it, and the "     \
    "number is smaller. "

/* What a verb is. */
typedef struct training_verb {
    const option_verb *about;
    bool finetune;
} training_verb;

int training_main(const training_verb *verb, int argc, char **argv);

/* ---- parts ----------------------------------------------------------------------------------- */

enum { TRAINING_PATH = 4096, TRAINING_LONGER = TRAINING_PATH + 300 };

typedef struct training_eval {
    double loss, bits_per_byte; /* bits: NAN where they make no sense */
    int64_t step;               /* 0: there was none */
} training_eval;

typedef struct training_board {
    bool live, quiet; /* a table that is redrawn; nothing at all */
    bool utf8;
    int rows; /* that stand on the terminal */
    double drawn;
    int64_t drawn_step;
} training_board;

typedef struct training {
    const training_flags *f;
    const training_verb *verb;
    cmoe_train_options o;
    tool_session session;
    int64_t budget, taken; /* bytes of memory: that may be taken (0: any), that are */
    int64_t refused;       /* what `taken` would have become */
    char out[TRAINING_PATH], source[TRAINING_PATH], checkpoints[TRAINING_PATH];
    char tokenizer_path[TRAINING_PATH]; /* directory it lies in */
    bool own_tokenizer;                 /* it was made from the data, in `out` */
    cmoe_tokenizer *tokenizer;
    cmoe_template *chat;
    cmoe_adapter *adapter;
    cmoe_dataset *data, *held; /* held: NULL when nothing is kept for evaluation */
    cmoe_dataset_info data_info, held_info;
    cmoe_trainer *trainer;
    cmoe_trainer_info info;
    json_t *identity; /* what this training is, as its checkpoints record it */
    char *note;       /* its text */
    FILE *record;     /* training.jsonl */
    plot_curve losses, evals;
    int64_t
        *load; /* [2, moe layers, experts] slots of experts: of the last steps, of those before */
    int64_t load_steps, load_before; /* how many */
    int64_t by_kind[8];              /* numbers of weights that come out */
    training_eval last, best;
    cmoe_train_report report; /* of the last step */
    bool fresh;               /* no step was done before this run */
    int lock;             /* descriptor of `out`, which one training at a time may have; -1: none */
    bool locked;          /* we have it; not every file system has locks */
    bool made_out;        /* `out` was not there before */
    int64_t began, saved; /* step that this run began with; of the last checkpoint */
    int64_t steps_here;   /* of this run */
    double seconds, speed; /* of steps alone; tokens a second */
    training_board board;
} training;

/* Options of the library, or 2 after saying what does not go together. */
int training_options(training *t);

int training_open_data(training *t);

/* What makes a training this one: flags, data, tokenizer, model. */
int training_identify(training *t);
/* Whether a name in `checkpoints` is that of one, and of which step. */
bool training_is_step(const char *name, int64_t *step);
/* The note of the newest checkpoint; NULL: there is none that can be read.  *found: there is one. */
json_t *training_read_note(const training *t, bool *found);
/* 0, or the exit status after saying what differs first. */
int training_compare(const training *t, json_t *note);
void training_inside(char path[TRAINING_LONGER], const char *folder, const char *name);
/* Whether `out` is free, or holds this training; anything else is refused. */
int training_check_out(training *t);
int training_clear(training *t);       /* --restart */
int training_open_record(training *t); /* without lines behind the step we begin with */
int training_record_step(training *t, double tokens_per_second);
int training_record_eval(training *t);
int training_write_pictures(training *t);
/* Tokenizer and generation_config.json beside the model. */
int training_copy_files(training *t);
/* Takes away what was only needed on the way, and a directory in which nothing came to be. */
void training_leave(const training *t);

void training_board_open(training_board *b, bool quiet);
void training_board_begin(const training *t);
/* Now and then, and when `always`. */
void training_board_step(training *t, double tokens_per_second, bool always);

#endif
