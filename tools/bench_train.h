/* SPDX-License-Identifier: MIT
 *
 * bench_train.h - the parts of `cmoe bench train`.
 *
 *     bench_train.c        flags, and what is printed
 *     bench_train_layer.c  one layer, forwards and backwards
 *     bench_train_check.c  its results against a double computation
 *     bench_train_steps.c  whole steps of the trainer
 */
#ifndef TOOLS_BENCH_TRAIN_H
#define TOOLS_BENCH_TRAIN_H

#include "cmoe/layer.h"
#include "limits.h"
#include "machine.h"
#include "synth.h"

typedef struct bench_train_flags {
    const char *config;
    int64_t hidden, inter, experts, topk, repeat, units, seed, sequences, length;
    option_ints tokens;
    const char *dtype, *optimizer;
    bool has_hidden, has_inter, has_experts, has_topk, has_tokens;
    bool has_sequences, has_length, has_optimizer;
    common_options common;
} bench_train_flags;

/* ---- one layer ------------------------------------------------------------------------------- */

enum { TRAIN_SHIFTS = 67 }; /* repetition r begins at row r % 67 of x and dout: another routing */

/* T at most `most`.  Everything is float32 but the weights, which are in the format. */
typedef struct train_layer {
    synth s;
    const tool_session *session;
    int64_t most, units;
    void *w13, *w2; /* [E, 2I, H] [E, H, I], what a training keeps and moves */
    float *gate;    /* [E, H] */
    cmoe_trainable *packed_gate, *packed13, *packed2;
    cmoe_layer_train *layer;
    float *x, *dout;           /* [most + TRAIN_SHIFTS, H] */
    float *out, *dx;           /* [most, H] */
    float *dgate, *dw13, *dw2; /* as the weights */
    int32_t *ids;              /* [most, K] */
    void *keep, *scratch;
    int64_t keep_bytes, scratch_bytes;
} train_layer;

/* `l` points to the session, which outlives it. */
int train_layer_open(train_layer *l, const bench_train_flags *f, const tool_session *session,
                     const machine *m, int64_t most);
void train_layer_close(train_layer *l);

/* Forward and backward of rows x [T, H] and dout [T, H]; us[2] microseconds of each.  Gradients of
 * everything are written, and the ids. */
int train_layer_step(train_layer *l, int64_t tokens, const float *x, const float *dout,
                     double us[2]);

/* Whether such a step is right; 0, or an exit status after an error line. */
int train_layer_check(train_layer *l, int64_t tokens);

typedef struct train_point {
    int64_t tokens;
    double us_forward, us_backward, us_median, us_min, spread;
    double gflops; /* 18 H I K T operations over the median */
} train_point;

/* Points [n] of tokens [n], a repetition of each in turn. */
int train_layer_measure(train_layer *l, const bench_train_flags *f, limits *limit,
                        train_point *points);

/* ---- whole steps ----------------------------------------------------------------------------- */

typedef struct train_steps {
    char type[48];
    int64_t parameters, active, tokens;
    double ms_median, ms_min, spread, tokens_per_second, loss;
} train_steps;

int train_steps_measure(const bench_train_flags *f, const machine *m, limits *limit,
                        train_steps *out);

#endif
