/* SPDX-License-Identifier: MIT
 *
 * synth.h - a layer made up from a seed: weights, tokens and routings of any size, fast.
 *
 * Every weight is a function of (seed, copy, matrix, expert, row, column), so the check can make
 * any row again instead of keeping gigabytes; all experts differ and lie in their own memory.
 * Weights are about normal with variance 1 / columns, tokens with variance 1, which keeps every
 * value on the way through the layer near 1.
 */
#ifndef TOOLS_SYNTH_H
#define TOOLS_SYNTH_H

#include "cmoe/experts.h"
#include "machine.h"

enum { SYNTH_W13 = 0, SYNTH_W2 = 1 }; /* which matrix */

/* H hidden, I inter, E experts, K topk */
typedef struct synth {
    int64_t hidden, inter, experts, topk;
    int32_t format; /* CMOE_F32, CMOE_BF16 or CMOE_I8 */
    uint64_t seed;
} synth;

int64_t synth_rows(const synth *s, int which); /* of one expert: 2I or H */
int64_t synth_cols(const synth *s, int which); /* H or I */

/* out [cols]: the row as it is stored, exact in float; int8 rows as whole numbers. */
void synth_row(const synth *s, int64_t copy, int which, int64_t expert, int64_t row, float *out);
/* What an int8 row is multiplied by; 1 for the other formats. */
float synth_scale(const synth *s, int64_t copy, int which, int64_t expert, int64_t row);

/* Bytes of the weights of `experts` experts in the format, without scales and padding. */
int64_t synth_weight_bytes(const synth *s, int64_t experts);

/* Makes the weights with all threads, packs them and frees the originals.  0, or an exit status
 * after an error line. */
int synth_experts(const synth *s, int64_t copy, const tool_session *session, cmoe_experts **out);

/* One matrix of all experts, in f32 or bf16: *data is freed by free(). */
int synth_matrix(const synth *s, int64_t copy, int which, const tool_session *session, void **data);

/* Tokens x [count, H] in synth_x_dtype: bf16 for bf16, else f32.  Freed by free(). */
int32_t synth_x_dtype(const synth *s);
int synth_tokens(const synth *s, int64_t count, const tool_session *session, void **x);

/* The top-k of normal logits of M tokens, softmaxed; `draw` makes another routing.  tilt > 0 makes
 * some experts more popular than others.  ids [M, K], weights [M, K]. */
int synth_routing(const synth *s, int64_t tokens, uint64_t draw, float tilt,
                  const tool_session *session, int32_t *ids, float *weights);

/* How many different experts are in ids [n]. */
int64_t synth_experts_hit(const synth *s, const int32_t *ids, int64_t n);

#endif
