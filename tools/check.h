/* SPDX-License-Identifier: MIT
 *
 * check.h - is what a layer gave right?  A plain computation in double of one token of a made-up
 * layer, with a bound on how far a correct kernel may be from it.
 */
#ifndef TOOLS_CHECK_H
#define TOOLS_CHECK_H

#include "synth.h"

/* x [H] and out [H] in synth_x_dtype, ids [K], weights [K]: true when every element of `out` lies
 * within the bound of the double computation; else `text` says which one does not. */
bool check_token(const synth *s, int64_t copy, const void *x, const int32_t *ids,
                 const float *weights, const void *out, char *text, size_t size);

/* Runs tokens x [T, H] through the experts.  `out` [T, H] in synth_x_dtype. */
int check_run(const synth *s, const tool_session *session, const cmoe_experts *experts,
              const void *x, int64_t tokens, const int32_t *ids, const float *weights, void *out);

#endif
