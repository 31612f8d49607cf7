/* SPDX-License-Identifier: MIT
 *
 * training_flags.c - flags of a training as the library's options.
 *
 * The library checks ranges and what fits the model; here is what only the flags know: which of them
 * do not go together, and defaults that depend on the verb.
 */
#include <string.h>

#include "model.h"
#include "report.h"
#include "training.h"

const char *const training_optimizers[] = {"adamw", "sgd", "muon", NULL};
const char *const training_schedules[] = {"constant", "cosine", "wsd", NULL};
const char *const training_dtypes[] = {"f32", "bf16", NULL};
const char *const training_frozen[] = {"f32", "bf16", "int8", NULL};
const char *const training_objectives[] = {"next", "block-diffusion", NULL};

static int32_t place(const char *const *words, const char *word)
{
    int32_t i = 0;
    while (strcmp(words[i], word) != 0)
        i++;
    return i;
}

static int needs(const char *flag, const char *other)
{
    return report_fail(EXIT_USAGE, flag, "means nothing without %s", other);
}

static int check_lora(const training_flags *f)
{
    const char *of_lora = f->has_rank      ? "--rank"
                          : f->has_alpha   ? "--alpha"
                          : f->rslora      ? "--rslora"
                          : f->has_targets ? "--targets"
                                           : NULL;
    if (f->full && of_lora)
        return report_fail(EXIT_USAGE, of_lora, "is for LoRA, and --full trains no adapter");
    if (f->full && (f->frozen || f->adapter))
        return report_fail(EXIT_USAGE, f->frozen ? "--frozen" : "--adapter",
                           "is for LoRA, and --full trains no adapter");
    if (!f->full && !strcmp(f->optimizer, "muon"))
        return report_fail(EXIT_USAGE, "--optimizer",
                           "\"muon\" moves whole matrices: want adamw or sgd, or --full");
    if (f->adapter && of_lora)
        return report_fail(EXIT_USAGE, of_lora, "is the adapter's own with --adapter");
    return 0;
}

static int check_together(const training_flags *f)
{
    const bool wsd = !strcmp(f->schedule, "wsd");
    if (f->eval_file && f->has_hold_out)
        return report_fail(EXIT_USAGE, "--hold-out",
                           "\"%g\" of --data, and --eval-file: want only one of them", f->hold_out);
    if (f->has_block_length && strcmp(f->objective, "block-diffusion") != 0)
        return needs("--block-length", "--objective block-diffusion");
    if (f->has_cooldown && !wsd) return needs("--cooldown", "--schedule wsd");
    if (f->has_final_lr && !strcmp(f->schedule, "constant"))
        return needs("--final-lr", "--schedule cosine or wsd");
    if (f->has_momentum && !strcmp(f->optimizer, "adamw"))
        return needs("--momentum", "--optimizer sgd or muon");
    if ((f->has_beta1 || f->has_beta2 || f->has_eps) && !strcmp(f->optimizer, "sgd"))
        return needs(f->has_beta1   ? "--beta1"
                     : f->has_beta2 ? "--beta2"
                                    : "--eps",
                     "--optimizer adamw or muon");
    if (f->keep_best && !f->eval_file && f->hold_out == 0)
        return needs("--keep-best", "--eval-file or a share in --hold-out");
    if (f->warmup > f->steps)
        return report_fail(EXIT_USAGE, "--warmup",
                           "\"%lld\" is out of range, want at most --steps %lld",
                           (long long)f->warmup, (long long)f->steps);
    if (f->has_cooldown && f->cooldown > f->steps - f->warmup)
        return report_fail(EXIT_USAGE, "--cooldown",
                           "\"%lld\" is out of range, want at most %lld (--steps less --warmup)",
                           (long long)f->cooldown, (long long)(f->steps - f->warmup));
    return 0;
}

static int check_powers(const training_flags *f)
{
    if (f->units & (f->units - 1))
        return report_fail(EXIT_USAGE, "--units", "\"%lld\" is not a power of two",
                           (long long)f->units);
    if (f->pass & (f->pass - 1))
        return report_fail(EXIT_USAGE, "--pass", "\"%lld\" is not a power of two, or 0",
                           (long long)f->pass);
    if (f->pass > f->units)
        return report_fail(EXIT_USAGE, "--pass",
                           "\"%lld\" is out of range, want at most --units %lld",
                           (long long)f->pass, (long long)f->units);
    return 0;
}

static void set_optimizer(cmoe_train_options *o, const training_flags *f, bool finetune)
{
    const double usual = !finetune ? 3e-4 : f->full ? 2e-5 : 2e-4;
    const int64_t room = f->steps - f->warmup, fifth = f->steps / 5;
    o->optimizer = place(training_optimizers, f->optimizer);
    o->schedule = place(training_schedules, f->schedule);
    o->lr = f->has_lr ? f->lr : usual;
    o->final_lr = f->has_final_lr ? f->final_lr : o->lr / 10;
    o->warmup = f->warmup;
    if (o->schedule == CMOE_SCHEDULE_WSD)
        o->cooldown = f->has_cooldown ? f->cooldown : fifth < room ? fifth : room;
    o->beta1 = f->beta1;
    o->beta2 = f->beta2;
    o->eps = f->eps;
    o->weight_decay = f->weight_decay;
    if (f->has_momentum) o->momentum = f->momentum;
    o->clip = f->clip;
    o->balance = (float)f->balance;
    o->z_loss = (float)f->z_loss;
    o->bias_rate = (float)f->bias_rate;
    o->dropout = (float)f->dropout;
}

int training_options(training *t)
{
    const training_flags *f = t->f;
    cmoe_train_options *o = &t->o;
    int status = check_together(f);
    if (status == 0) status = check_powers(f);
    if (status == 0 && t->verb->finetune) status = check_lora(f);
    if (status) return status;
    cmoe_train_options_default(o, sizeof *o);
    o->format = model_format(f->dtype);
    o->objective = place(training_objectives, f->objective);
    o->block = f->has_block_length ? f->block_length : 0;
    o->steps = f->steps;
    o->units = f->units;
    o->sequences = f->sequences;
    o->length = f->length;
    o->pass = f->pass;
    o->recompute = f->recompute;
    o->seed = (uint64_t)f->seed;
    set_optimizer(o, f, t->verb->finetune);
    if (!t->verb->finetune || f->full) return 0;
    o->what = CMOE_TRAIN_LORA;
    o->frozen = f->frozen ? model_format(f->frozen) : 0;
    o->rank = f->rank;
    o->alpha = f->alpha;
    o->rslora = f->rslora;
    o->targets = f->targets;
    return 0;
}
