/* SPDX-License-Identifier: MIT
 *
 * sampling.h - from a row of logits to a token: what the methods of the engine share.
 *
 * Nothing here allocates: 32 KiB of stack serve vocabularies of any size, which are gone through in
 * ranges of ids where a table of all of them would be larger.
 */
#ifndef CMOE_ENGINE_SAMPLING_H
#define CMOE_ENGINE_SAMPLING_H

#include "engine/engine.h"

enum { CMOEI_SUM_BLOCK = 256 }; /* ids whose weights are added up in one tree */

/* Reads `in` (NULL: the defaults) into *out and checks it for a model of `vocab` ids. */
cmoe_status cmoei_sampling_read(cmoe_sampling *out, const cmoe_sampling *in, int64_t vocab,
                                cmoe_error *err);
/* The first id whose logit is neither a number nor -infinity is an error. */
cmoe_status cmoei_sampling_check_logits(const float *logits, int64_t vocab, cmoe_error *err);
/* As cmoe_sampling_process, with settings and ids that have been checked; ids of `previous` outside
 * of the vocabulary count for nothing. */
cmoe_status cmoei_sampling_run(const cmoe_sampling *s, float *logits, int64_t vocab,
                               const int32_t *previous, int64_t count, int64_t output,
                               cmoe_error *err);
/* Draw number `draw` for `position` from processed logits; -1 when all of them are -infinity. */
int64_t cmoei_sampling_pick(const cmoe_sampling *s, const float *logits, int64_t vocab,
                            int64_t position, int64_t draw);

/* ---- filters (sampling_filter.c): what is left out becomes -infinity -------------------------- */

void cmoei_keep_top_k(float *logits, int64_t n, int64_t k);
void cmoei_keep_top_p(float *logits, int64_t n, float p);
void cmoei_keep_min_p(float *logits, int64_t n, float p);

/* ---- weights (sampling_weights.c) ------------------------------------------------------------- */

/* The largest of x [n]; NaN does not count; -infinity when there is none. */
float cmoei_top(const float *x, int64_t n);
/* out[i] = e^(x[i] - top) for x[i] <= top: 1 for the best, 0 for -infinity. */
void cmoei_weights(const float *x, int64_t n, float top, double *out);
/* Their sum, in a fixed order of additions. */
double cmoei_weight_sum(const float *x, int64_t n, float top);
/* The sum of w * ln w over the weights w. */
double cmoei_weight_log_sum(const float *x, int64_t n, float top);
/* The id at which the cumulated weight passes `share` in [0, 1) of the whole; -1 for no weight. */
int64_t cmoei_weight_find(const float *x, int64_t n, double share);

#endif
