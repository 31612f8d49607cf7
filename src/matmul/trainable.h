/* SPDX-License-Identifier: MIT
 *
 * matmul/trainable.h - what a cmoe_trainable consists of.
 */
#ifndef CMOE_MATMUL_TRAINABLE_H
#define CMOE_MATMUL_TRAINABLE_H

#include "cmoe/trainable.h"
#include "matmul.h"
#include "outer.h"

enum { CMOEI_PARTS_MOST = 8 };

/* Four products: rows [x | u] times forward, [dy | v] times backward, with u = x A^T and v = dy s B.
 * Columns of all parts' low-rank terms stand side by side; where a column is another part's the
 * matrix is 0. */
struct cmoe_trainable {
    cmoe_ctx *ctx;
    cmoe_trainable_options o;
    int64_t experts, outputs, inputs; /* E, N, K */
    cmoe_matrix forward;              /* [E, N, K + rank] rows [w[n, :] | s b[n, :]] */
    cmoe_matrix backward;             /* [E, K, N + rank] rows [w[:, k] | a[:, k]] */
    cmoe_matrix down_x;               /* [E, rank, K] a; only with a rank */
    cmoe_matrix down_dy;              /* [E, rank, N] rows s b[:, r]; only with a rank */
    float *bias;                      /* of forward, kept while no part has one */
    float *pack;                      /* [threads, pack_elements] */
    int64_t pack_elements, pack_bytes;
    int64_t count;                         /* parts of the last fill; 0: there was none */
    cmoe_part parts[CMOEI_PARTS_MOST];     /* views only of borrowed weights */
    int64_t rank_at[CMOEI_PARTS_MOST + 1]; /* first column of each part's low-rank term */
};

static inline int64_t cmoei_part_outputs(const cmoe_trainable *t, int64_t p)
{
    return (p + 1 < t->count ? t->parts[p + 1].at : t->outputs) - t->parts[p].at;
}

/* Where the rows of the four come from: their `user` is the object. */
extern const cmoei_rows cmoei_forward_rows, cmoei_backward_rows, cmoei_down_x_rows,
    cmoei_down_dy_rows;

/* One of the two products over rows: [x | x . down] times main. */
typedef struct cmoei_pass {
    const cmoe_matrix *main;
    const cmoe_matrix *down; /* NULL without a rank */
    const cmoe_groups *groups;
    cmoe_view x; /* float32 rows */
    int32_t x_grouped;
    int64_t rows; /* R */
    /* scratch */
    cmoei_block *blocks;
    int64_t block_count, row_bytes;
    struct cmoei_pass_task {
        char *rows; /* [block] prepared, for callers that keep none */
        float *low; /* [block, panels of down] */
        cmoei_panel_scratch main, down;
    } * tasks; /* [threads] */
} cmoei_pass;

int64_t cmoei_pass_block(const cmoe_matrix *m); /* most rows of a block */
void cmoei_pass_carve(cmoei_pass *p, cmoei_carver *c, int64_t experts);
void cmoei_pass_blocks(cmoei_pass *p);
/* Prepares the rows of a block at `to`, row_bytes apart.  With a rank their tails are computed: put
 * behind the rows, or, with `tails` [R, rank], there. */
void cmoei_pass_prepare(const cmoei_pass *p, int32_t index, const cmoei_block *b, char *to,
                        float *tails);

/* An object of this context that was filled. */
cmoe_status cmoei_trainable_check(const cmoe_stream *s, const cmoe_trainable *t, cmoe_error *err);
/* Rows of x (dy): tokens or group rows. */
cmoe_status cmoei_trainable_check_rows(const cmoe_trainable *t, const cmoe_view *x,
                                       const char *name, int32_t grouped, const char *flag,
                                       const cmoe_groups *g, int64_t width, cmoe_error *err);
/* An output does not lie on weights that are borrowed. */
cmoe_status cmoei_trainable_apart(const cmoe_view_mut *out, const char *name,
                                  const cmoe_trainable *t, cmoe_error *err);
cmoe_status cmoei_trainable_dw_bytes(const cmoe_trainable *t, int64_t rows, int64_t *host,
                                     cmoe_error *err);

#endif
