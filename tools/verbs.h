/* SPDX-License-Identifier: MIT
 *
 * verbs.h - what the program can do; each verb is one file and one row of the table in main.c.
 */
#ifndef TOOLS_VERBS_H
#define TOOLS_VERBS_H

#include "options.h"

/* A verb gets the arguments behind its name, prints its own errors and returns the exit status. */
extern const option_verb logits_verb, inspect_verb, plan_verb;
extern const option_verb bench_layer_verb, doctor_verb, demo_verb;
int logits_main(int argc, char **argv);
int inspect_main(int argc, char **argv);
int plan_main(int argc, char **argv);
int bench_layer_main(int argc, char **argv);
int doctor_main(int argc, char **argv);
int demo_main(int argc, char **argv);

#endif
