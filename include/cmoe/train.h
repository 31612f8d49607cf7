/* SPDX-License-Identifier: MIT
 *
 * cmoe/train.h - training: data, steps, checkpoints, and models and adapters that come out.
 *
 *     cmoe_dataset_open      text or JSONL -> tokens, packed into windows
 *     cmoe_trainer_create    a configuration (from nothing) or a model (fine-tuning) -> weights that change
 *     cmoe_trainer_step      one step of the optimizer
 *     cmoe_trainer_save      a checkpoint, whole or not at all; cmoe_trainer_resume goes on, bit for bit
 *     cmoe_trainer_export    a directory that every verb reads, or an adapter that PEFT reads
 *
 * A step has a fixed number of micro-batch units, whose gradients are added as a balanced tree: the
 * weights after it do not depend on the number of threads, nor on where training was interrupted.
 * Part of libcmoe_engine.
 */
#ifndef CMOE_TRAIN_H
#define CMOE_TRAIN_H

#include "cmoe/base.h"
#include "cmoe/lora.h"
#include "cmoe/text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- data ------------------------------------------------------------------------------------ */

/* Tokens of many documents one behind the other, and which of them are to be learned.  Immutable,
 * shared by threads; freed before its context. */
typedef struct cmoe_dataset cmoe_dataset;

typedef struct cmoe_dataset_options {
    size_t size;
    const cmoe_tokenizer *tokenizer; /* of the model */
    const cmoe_template *chat;       /* for JSONL with "messages"; or NULL */
    double from,
        to; /* this part of the file alone, by bytes and cut at a character (text) or by lines
                        (JSONL); default 0, 1 */
    int64_t
        end; /* id behind every document that does not end so; -1 (default): the tokenizer's eos, -2: none */
    int32_t all_turns; /* 1: every token of a chat is learned; 0 (default): the assistant's */
    int32_t reserved;
} cmoe_dataset_options;

CMOE_API void cmoe_dataset_options_default(cmoe_dataset_options *o, size_t size);

/* A file that ends in .jsonl holds an object a line: {"text": ...}, {"prompt": ..., "completion": ...}
 * or {"messages": [...]}; any other is one document of plain text.  CMOE_ERR_FORMAT names the line. */
CMOE_API cmoe_status cmoe_dataset_open(cmoe_dataset **out, cmoe_ctx *ctx, const char *path,
                                       const cmoe_dataset_options *o, cmoe_error *err);
/* From ids int32 or int64 [N]; learn u8 [N] or not given: all; documents int64 [D]: where each begins,
 * the first at 0; not given: one. */
CMOE_API cmoe_status cmoe_dataset_make(cmoe_dataset **out, cmoe_ctx *ctx, cmoe_view ids,
                                       cmoe_view learn, cmoe_view documents, cmoe_error *err);
CMOE_API void cmoe_dataset_free(cmoe_dataset *d);

typedef struct cmoe_dataset_info {
    size_t size;
    int64_t tokens, documents, learned;
    int64_t bytes; /* of text; 0 for one made from ids */
} cmoe_dataset_info;

CMOE_API cmoe_status cmoe_dataset_describe(const cmoe_dataset *d, cmoe_dataset_info *info,
                                           cmoe_error *err);

/* A byte-level BPE tokenizer of `vocab` ids (256 bytes, merges, special tokens last) from the text of
 * files, written as `out_dir`/tokenizer.json and tokenizer_config.json; the same files give the same
 * tokenizer.  Words are what the pattern of GPT-2 finds. */
typedef struct cmoe_bpe_options {
    size_t size;
    int64_t vocab;              /* default 4096 */
    int64_t least;              /* a pair is merged when it occurs so often; default 2 */
    double from, to;            /* part of each file, as in cmoe_dataset_options */
    const char *const *special; /* ends in NULL, the first is eos; NULL: "<|endoftext|>" */
} cmoe_bpe_options;

CMOE_API void cmoe_bpe_options_default(cmoe_bpe_options *o, size_t size);
CMOE_API cmoe_status cmoe_bpe_train(cmoe_ctx *ctx, const char *const *paths, int64_t count,
                                    const cmoe_bpe_options *o, const char *out_dir,
                                    cmoe_error *err);

/* ---- what a training is ----------------------------------------------------------------------- */

enum { CMOE_OPTIMIZER_ADAMW = 0, CMOE_OPTIMIZER_SGD, CMOE_OPTIMIZER_MUON };
enum { CMOE_SCHEDULE_CONSTANT = 0, CMOE_SCHEDULE_COSINE, CMOE_SCHEDULE_WSD };
enum { CMOE_OBJECTIVE_NEXT = 0, CMOE_OBJECTIVE_DIFFUSION };
enum { CMOE_TRAIN_ALL = 0, CMOE_TRAIN_LORA };

typedef struct cmoe_train_options {
    size_t size;
    int32_t format;    /* CMOE_F32 (default), CMOE_BF16: of products; masters are float32 */
    int32_t frozen;    /* of weights that are not trained: CMOE_F32, BF16, I8; 0: as format */
    int32_t what;      /* CMOE_TRAIN_ */
    int32_t objective; /* CMOE_OBJECTIVE_ */
    int64_t block;     /* diffusion: 0: the model's own */

    int64_t steps;     /* of the whole training, which schedules need */
    int64_t units;     /* U, a power of two up to CMOE_UNITS_MOST; default 8 */
    int64_t sequences; /* of a unit; default 1 */
    int64_t length;    /* tokens of a sequence; default 256 */
    int64_t pass;      /* units that are in memory together, a power of two; 0 (default): as many
                          as their logits allow */
    int32_t recompute; /* 1: layers are computed again in backward instead of kept */

    int32_t optimizer, schedule;
    double lr, final_lr;                    /* default 3e-4, a tenth of it */
    int64_t warmup;                         /* steps; default 0 */
    int64_t cooldown;                       /* wsd: the last steps, down to final_lr */
    double beta1, beta2, eps, weight_decay; /* default 0.9, 0.95, 1e-8, 0.1: matrices only */
    double momentum;                        /* sgd 0, muon 0.95 */
    double clip;                            /* of the norm of all gradients; 0: none; default 1 */

    float balance, z_loss; /* auxiliary losses of routers; default 0.01, 0.001 */
    float bias_rate;       /* of the correction bias, where a model has one; default 0.001 */
    float dropout;         /* of the embedding, the outputs of mixer and feed-forward; default 0 */
    uint64_t seed;

    /* LoRA.  Targets: names or endings of parameters, with commas: "q_proj,v_proj,experts,router"; NULL:
     * all projections, experts and router.  One that fits nothing is an error. */
    const char *targets;
    int64_t rank;   /* default 16 */
    double alpha;   /* default 32 */
    int32_t rslora; /* 1: alpha / sqrt(rank) */
    int32_t reserved;
    /* An adapter to go on with: its terms are the targets, and rank, alpha and rslora are its own.  Needed
     * until create returns. */
    const cmoe_adapter *start;
} cmoe_train_options;

CMOE_API void cmoe_train_options_default(cmoe_train_options *o, size_t size);

/* ---- trainer ---------------------------------------------------------------------------------- */

/* Belongs to one thread at a time; freed before its context. */
typedef struct cmoe_trainer cmoe_trainer;

/* `path`: a config.json, which is filled with random numbers; or a directory with weights.  What cannot be
 * trained is refused by name. */
CMOE_API cmoe_status cmoe_trainer_create(cmoe_trainer **out, cmoe_ctx *ctx, const char *path,
                                         const cmoe_train_options *o, cmoe_error *err);
CMOE_API void cmoe_trainer_free(cmoe_trainer *t);

typedef struct cmoe_trainer_info {
    size_t size;
    const char *type;
    int64_t parameters, trained, active; /* numbers of weights */
    int64_t tokens;                      /* of a step */
    int64_t bytes;                       /* memory of the trainer, arenas included */
    int64_t step;                        /* done */
    int64_t layers, moe_layers, experts, topk, vocab, context;
} cmoe_trainer_info;

CMOE_API cmoe_status cmoe_trainer_describe(const cmoe_trainer *t, cmoe_trainer_info *info,
                                           cmoe_error *err);

typedef struct cmoe_train_report {
    size_t size;
    int64_t step;                /* done, this one included */
    int64_t targets;             /* tokens that were learned */
    double loss;                 /* mean over them, nats */
    double balance_loss, z_loss; /* means over layers and units, before their coefficients */
    double gradient_norm, lr;
    double imbalance;    /* most loaded expert over the mean, mean over layers */
    int64_t dead;        /* experts that nobody chose in this step, all layers */
    const int64_t *load; /* [moe_layers, experts] slots of each; lives until the next step */
} cmoe_train_report;

/* One step on windows of the dataset that (seed, step) alone decide.  CMOE_ERR_RANGE: the loss is not
 * finite; the weights are those of before. */
CMOE_API cmoe_status cmoe_trainer_step(cmoe_trainer *t, const cmoe_dataset *d,
                                       cmoe_train_report *report, cmoe_error *err);

/* The same on sequences of the caller's: ids int32 or int64 [units * sequences, length], targets likewise,
 * negative where nothing is learned; not given: the id behind each, and nothing behind the last.  For
 * the objective of the next token. */
CMOE_API cmoe_status cmoe_trainer_step_on(cmoe_trainer *t, cmoe_view ids, cmoe_view targets,
                                          cmoe_train_report *report, cmoe_error *err);

/* Mean loss over the dataset in windows of the trainer's length, at most `tokens` of them (0: all);
 * tokens learned in *targets. */
CMOE_API cmoe_status cmoe_trainer_evaluate(cmoe_trainer *t, const cmoe_dataset *d, int64_t tokens,
                                           double *loss, int64_t *targets, cmoe_error *err);

/* A directory `dir`/step-N: masters, state of the optimizer, manifest; complete or not there.  Older ones
 * than the last `keep` go.  `note`: text of the caller that lies in the manifest; or NULL. */
CMOE_API cmoe_status cmoe_trainer_save(const cmoe_trainer *t, const char *dir, int64_t keep,
                                       const char *note, cmoe_error *err);
/* The newest complete checkpoint of a directory; *step is 0 when there is none.  CMOE_ERR_FORMAT: it belongs
 * to another model, other options or another version. */
CMOE_API cmoe_status cmoe_trainer_resume(cmoe_trainer *t, const char *dir, int64_t *step,
                                         cmoe_error *err);

/* All: config.json and model.safetensors (dtype CMOE_F32, CMOE_BF16).  LoRA: adapter_config.json and
 * adapter_model.safetensors, in PEFT's layout. */
CMOE_API cmoe_status cmoe_trainer_export(const cmoe_trainer *t, const char *dir, int32_t dtype,
                                         cmoe_error *err);

#ifdef __cplusplus
}
#endif
#endif
