/* SPDX-License-Identifier: MIT
 *
 * ops/ops.h - what the small operations share: checks of float matrices and spreading rows over
 * threads.
 */
#ifndef CMOE_OPS_OPS_H
#define CMOE_OPS_OPS_H

#include "cmoe/ops.h"
#include "core/plane.h"

/* A float tensor [n, m]; -1: any size. */
cmoe_status cmoei_check_matrix(const cmoe_view *v, const char *name, int64_t n, int64_t m,
                               const char *m_name, cmoe_error *err);
cmoe_status cmoei_check_matrix_out(const cmoe_view_mut *v, const char *name, int64_t n, int64_t m,
                                   const char *m_name, cmoe_error *err);
/* `out` may be exactly `in`, element on element, or lie apart from it. */
cmoe_status cmoei_check_in_place(const cmoe_view_mut *out, const char *out_name,
                                 const cmoe_view *in, const char *in_name, cmoe_error *err);

/* Of embedding and its backward: every id of a checked view is in [0, vocab); scale is finite. */
cmoe_status cmoei_check_token_ids(const cmoe_view *ids, int64_t vocab, cmoe_error *err);
cmoe_status cmoei_check_finite_scale(float scale, cmoe_error *err);

/* Rows [row, row_end) of whatever `args` says. */
typedef void (*cmoei_rows_fn)(const void *args, int64_t row, int64_t row_end);
/* All rows, with as many threads as `cost` (float operations, roughly) is worth. */
void cmoei_rows_run(cmoe_ctx *ctx, int64_t rows, double cost, cmoei_rows_fn run, const void *args);

#endif
