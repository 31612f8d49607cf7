/* SPDX-License-Identifier: MIT
 *
 * verbs.h - what the program can do; each verb is one file and one row of the table in main.c.
 */
#ifndef TOOLS_VERBS_H
#define TOOLS_VERBS_H

#include "options.h"

/* A verb gets the arguments behind its name, prints its own errors and returns the exit status. */
extern const option_verb generate_verb, chat_verb, inspect_verb, plan_verb;
extern const option_verb experts_verb, logits_verb, eval_verb, tokenize_verb;
extern const option_verb render_verb, bench_layer_verb, bench_model_verb, doctor_verb;
extern const option_verb demo_verb, train_verb, finetune_verb, merge_verb;
extern const option_verb bench_train_verb;
int generate_main(int argc, char **argv);
int chat_main(int argc, char **argv);
int inspect_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int experts_main(int argc, char **argv);
int logits_main(int argc, char **argv);
int eval_main(int argc, char **argv);
int tokenize_main(int argc, char **argv);
int render_main(int argc, char **argv);
int bench_layer_main(int argc, char **argv);
int bench_model_main(int argc, char **argv);
int bench_train_main(int argc, char **argv);
int doctor_main(int argc, char **argv);
int merge_main(int argc, char **argv);
int demo_main(int argc, char **argv);
int train_main(int argc, char **argv);
int finetune_main(int argc, char **argv);

#endif
