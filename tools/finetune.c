/* SPDX-License-Identifier: MIT
 *
 * finetune.c - `cmoe finetune`: a model learns more, as an adapter (LoRA) or as a whole.
 */
#include "training.h"
#include "verbs.h"

#define LORA_GROUP "LoRA"

static const option options[] = {
    {.name = "MODEL",
     .argument = "a directory as on a model hub",
     .type = OPTION_TEXT,
     .offset = offsetof(training_flags, source),
     .required = true,
     .positional = true,
     .help = "directory with config.json and *.safetensors, as it lies on a model hub"},
    OPTIONS_TRAINING_DATA,
    TRAINING_FLAG(NULL, "full", full, "change all weights; without it an adapter is trained"),
    TRAINING_GIVEN(LORA_GROUP, "rank", "R", OPTION_INT, rank, "16", 1, 16384, "of each term"),
    TRAINING_GIVEN(LORA_GROUP, "alpha", "X", OPTION_FLOAT, alpha, "32", -1e6, 1e6,
                   "terms count alpha / rank"),
    TRAINING_FLAG(LORA_GROUP, "rslora", rslora, "they count alpha / sqrt(rank)"),
    TRAINING_GIVEN(LORA_GROUP, "targets", "NAMES", OPTION_TEXT, targets, NULL, 0, 0,
                   "parameters that get one, by name or ending, with commas: "
                   "q_proj,v_proj,experts,router; without it all projections, experts, router"),
    TRAINING_CHOICE(LORA_GROUP, "frozen", frozen, training_frozen, NULL,
                    "format of the weights that do not change; without it --dtype"),
    TRAINING_TEXT(LORA_GROUP, "adapter", "DIR", adapter, false,
                  "go on with this adapter; its rank, alpha and targets stay"),
    OPTIONS_TRAINING_STEPS("200"),
    OPTIONS_TRAINING_OPTIMIZER("learning rate; without it 2e-4, with --full 2e-5"),
    OPTIONS_TRAINING_FILES,
    OPTIONS_COMMON(training_flags),
};

const option_verb finetune_verb = {
    .name = "finetune",
    .group = "Training",
    .summary = "teach a model more: a LoRA adapter, or all of its weights",
    .examples = "  cmoe finetune MODEL --data chats.jsonl --out my-adapter\n"
                "  cmoe finetune MODEL --data chats.jsonl --out my-adapter --rank 8 \\\n"
                "      --targets experts,q_proj,v_proj --frozen int8\n"
                "  cmoe finetune MODEL --data book.txt --out my-model --full\n",
    .text = TRAINING_ABOUT
    "Adapters are in PEFT's layout. --json: {\"steps\", \"resumed_from\", \"tokens\", \"loss\", "
    "\"eval_loss\", "
    "\"bits_per_byte\", \"best_step\", \"seconds\", \"tokens_per_second\", \"parameters\", "
    "\"active\", \"trained\", \"trained_by_kind\", \"bytes\", \"peak_rss\", \"out\"}.",
    .options = options,
};

int finetune_main(int argc, char **argv)
{
    static const training_verb verb = {&finetune_verb, true};
    return training_main(&verb, argc, argv);
}
