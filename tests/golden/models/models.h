/* SPDX-License-Identifier: MIT
 *
 * models.h - one golden case, and what is found out about it.
 */
#ifndef CMOE_GOLDEN_MODELS_H
#define CMOE_GOLDEN_MODELS_H

#include "run.h"

enum { PROMPTS = 2, LONG_TOKENS = 150 };

typedef struct golden_case {
    const char *name, *folder;
    cmoe_checkpoint *golden; /* golden.safetensors */
    int64_t vocab, tokens[PROMPTS];
    int32_t *ids[PROMPTS];         /* [tokens] */
    float *logits[PROMPTS];        /* [tokens, vocab], what has to come out */
    int32_t long_ids[LONG_TOKENS]; /* a prompt of several pages that golden knows nothing about */
    float deviation;               /* of p1's logits */

    int64_t positions;    /* compared */
    double logit, weight; /* largest differences from golden */
    double bf16, int8;    /* mean differences from float32, in deviations */
    int passed, failed;
} golden_case;

bool golden_open(golden_case *g, cmoe_ctx *ctx, const char *name, const char *folder);
void golden_close(golden_case *g);

/* Counts a check, and says what is wrong when it failed. */
void golden_check(golden_case *g, bool ok, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for a call of run.h. */
bool golden_call(golden_case *g, bool ok, const cmoe_error *err, const char *what);

/* [tokens, vocab] of memory. */
float *golden_room(const golden_case *g, int64_t tokens);

/* Logits and routing against golden's. */
void golden_compare(golden_case *g, run_model *m);
/* Everything that must not change a bit. */
void golden_bits(golden_case *g, run_model *m);
/* bf16 and int8: finite, about right, and as indifferent to chunks as float32. */
void golden_formats(golden_case *g, run_model *m);

#endif
