/* SPDX-License-Identifier: MIT
 *
 * trainer.h - a training, as trainer.c steps it and trainer_files.c writes it.
 */
#ifndef CMOE_TRAIN_TRAINER_H
#define CMOE_TRAIN_TRAINER_H

#include "batch.h"
#include "net.h"
#include "params.h"

enum { CMOEI_GRADIENTS = 7 }; /* partial sums of a balanced tree over 64 passes */

struct cmoe_trainer {
    cmoe_ctx *ctx;
    cmoe_stream *stream;
    cmoe_train_options o;
    char *targets; /* copy of o.targets */
    cmoei_decoder d;
    char *config; /* text of config.json */
    int64_t config_bytes;
    char path[4096]; /* of the model or configuration */
    cmoei_params params;
    cmoei_net *net;
    cmoei_optimizer *optimizer;
    int64_t passes, sums; /* of a step; arrays of gradients */
    float *gradient[CMOEI_GRADIENTS];
    float *m, *v; /* as params.values, or NULL */
    cmoei_trained *trained;
    int64_t trained_count, trained_bytes;
    char (*names)[192]; /* [trained_count] */
    int64_t names_bytes;
    cmoei_batch batch;
    cmoei_windows windows;
    const cmoe_dataset *dataset; /* of the last step; may have been freed since */
    int64_t *at;                 /* [sequences of a step] */
    float *loss;                 /* [rows of a step] */
    int64_t *load;               /* [moe layers, most experts] */
    int64_t moe_layers, most_experts;
    int64_t step; /* done */
};

static inline int64_t cmoei_step_sequences(const cmoe_trainer *t)
{
    return t->o.units * t->o.sequences;
}
/* Everything that weights depend on, in a line. */
void cmoei_trainer_key(const cmoe_trainer *t, char *key, size_t size);

#endif
