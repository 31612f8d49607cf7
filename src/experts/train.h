/* SPDX-License-Identifier: MIT
 *
 * train.h - the MLP on weights that change, for callers inside the library: options and shapes checked
 * once, and a combine of the caller's.
 *
 * T tokens, K slots, R rows, H hidden, I inter, C columns of gate and up (2I, or I without a gate).
 */
#ifndef CMOE_EXPERTS_TRAIN_H
#define CMOE_EXPERTS_TRAIN_H

#include "core/saved.h"
#include "experts.h"
#include "matmul/trainable.h"
#include "train_outs.h"

/* What to compute; plain data. */
typedef struct cmoei_experts_train {
    cmoe_experts_options o; /* defaults resolved */
    cmoe_experts_weights w;
    int64_t experts, hidden, inter, columns;
    int64_t gate_at, up_at, step; /* element i of gate is column gate_at + i * step */
    cmoei_activation activation;
} cmoei_experts_train;

/* What stays of a forward. */
typedef struct cmoei_experts_saved {
    cmoe_saved head;
    cmoei_experts_train e;
    cmoe_groups groups;
    float *gate_up; /* [R, C] */
} cmoei_experts_saved;

/* Options read and checked, the two trainables against each other and against `ctx`. */
cmoe_status cmoei_experts_train_open(cmoei_experts_train *e, const cmoe_ctx *ctx,
                                     const cmoe_experts_options *o, const cmoe_experts_weights *w,
                                     cmoe_error *err);
cmoe_status cmoei_experts_train_bytes(const cmoei_experts_train *e, int64_t tokens, int64_t topk,
                                      int64_t *keep, int64_t *host, cmoe_error *err);

/* Everything below is for checked arguments; arenas are by value and big enough unless it fails.  With
 * `saved`, what is kept is carved from `keep`, else from scratch. */
typedef struct cmoei_experts_forward {
    const cmoe_combine_options *combine;
    cmoe_view x, ids, weights, shared;
    cmoe_view_mut out;
} cmoei_experts_forward;

cmoe_status cmoei_experts_train_run(cmoe_stream *s, const cmoei_experts_train *e,
                                    const cmoei_experts_forward *f, cmoei_experts_saved **saved,
                                    cmoe_arena *keep, cmoe_arena scratch, cmoe_error *err);

typedef struct cmoei_experts_back {
    const cmoei_experts_saved *saved;
    float scale; /* of the combine */
    cmoe_view x, weights, dout;
    cmoe_view base; /* added to dx; may be exactly dx, or not given */
    const cmoe_units *units;
    cmoe_experts_gradients gradients;
} cmoei_experts_back;

/* Adds the gradients of both trainables to what is to be checked. */
cmoe_status cmoei_experts_back_check(const cmoei_experts_back *b, const char *w13, const char *w2,
                                     cmoei_outs *outs, cmoe_error *err);
cmoe_status cmoei_experts_back_run(cmoe_stream *s, const cmoei_experts_back *b, cmoe_arena scratch,
                                   cmoe_error *err);

/* float32 [n, m] (-1: any) whose rows are contiguous. */
cmoe_status cmoei_train_check_in(const cmoe_view *v, const char *name, int64_t n,
                                 const char *n_name, int64_t m, const char *m_name,
                                 cmoe_error *err);
cmoe_status cmoei_train_check_out(const cmoe_view_mut *v, const char *name, int64_t n,
                                  const char *n_name, int64_t m, const char *m_name,
                                  cmoe_error *err);
/* What is kept and what is scratch may not share memory. */
cmoe_status cmoei_train_check_arenas(const cmoe_arena *keep, const cmoe_arena *scratch,
                                     cmoe_error *err);
cmoe_status cmoei_train_check_left(const cmoe_arena *arena, int64_t need, const char *what,
                                   const char *ask, cmoe_error *err);

#endif
