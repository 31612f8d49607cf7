/* SPDX-License-Identifier: MIT
 *
 * train.c - `cmoe train`: a model from nothing.
 */
#include "training.h"
#include "verbs.h"

static const option options[] = {
    {.name = "CONFIG",
     .argument = "a config.json, or the directory that holds it",
     .type = OPTION_TEXT,
     .offset = offsetof(training_flags, source),
     .required = true,
     .positional = true,
     .help = "config.json of a model as it lies on a model hub, or its directory"},
    OPTIONS_TRAINING_DATA,
    TRAINING_TEXT(NULL, "tokenizer", "DIR", tokenizer, false,
                  "directory with tokenizer.json; without it that of CONFIG; if it has none, a "
                  "byte-level BPE tokenizer is made from the data, as large as vocab_size says"),
    OPTIONS_TRAINING_STEPS("1000"),
    OPTIONS_TRAINING_OPTIMIZER("learning rate; without it 3e-4"),
    OPTIONS_TRAINING_FILES,
    OPTIONS_COMMON(training_flags),
};

const option_verb train_verb = {
    .name = "train",
    .group = "Training",
    .summary = "train a model from nothing",
    .examples = "  cmoe train config.json --data book.txt --out my-model --steps 2000 --lr 3e-3\n"
                "  cmoe train my-config/ --data book.txt --out my-model --keep-best\n"
                "  cmoe generate my-model --prompt \"Once upon a time\"\n",
    .text = TRAINING_ABOUT "--json: {\"steps\", \"resumed_from\", \"tokens\", \"loss\", "
                           "\"eval_loss\", \"bits_per_byte\", \"best_step\", "
                           "\"seconds\", \"tokens_per_second\", \"parameters\", \"active\", "
                           "\"trained\", \"trained_by_kind\", \"bytes\", "
                           "\"peak_rss\", \"out\"}.",
    .options = options,
};

int train_main(int argc, char **argv)
{
    static const training_verb verb = {&train_verb, false};
    return training_main(&verb, argc, argv);
}
