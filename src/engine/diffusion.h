/* SPDX-License-Identifier: MIT
 *
 * diffusion.h - the parts of block diffusion: settings, what a forward says about masked positions,
 * and which of them are filled.
 */
#ifndef CMOE_ENGINE_DIFFUSION_H
#define CMOE_ENGINE_DIFFUSION_H

#include "engine/engine.h"

/* Positions of one forward at most: `buffer` blocks. */
enum { CMOEI_DIFFUSION_BLOCK = 64, CMOEI_DIFFUSION_SPAN = 256 };

/* A masked position and what stands to be written there. */
typedef struct cmoei_candidate {
    int64_t position;
    int32_t token;     /* -1: no id is possible */
    bool take;         /* it is written after this forward */
    double confidence; /* probability of the token, unfiltered softmax */
    double entropy;    /* of that softmax, natural; of entropy_bounded only */
} cmoei_candidate;

/* ---- settings (diffusion_settings.c) ---------------------------------------------------------- */

/* Reads `in` (NULL: the defaults), puts in what is left to the model, and checks everything. */
cmoe_status cmoei_diffusion_read(cmoe_diffusion *out, const cmoe_diffusion *in,
                                 const cmoe_model_info *model, cmoe_error *err);
/* ---- choice (diffusion_pick.c) ----------------------------------------------------------------- */

/* How many positions pass `pass` of a block fills by schedule. */
int64_t cmoei_diffusion_share(const cmoe_diffusion *d, int64_t pass);
/* One block after the other: which of its masks [n], in order of position, are filled. */
void cmoei_diffusion_pick(const cmoe_diffusion *d, int64_t pass, cmoei_candidate *c, int64_t n);
/* Several blocks at once: all above the threshold; if none, the best one when `forced`. */
void cmoei_diffusion_pick_accepted(const cmoe_diffusion *d, bool forced, cmoei_candidate *c,
                                   int64_t n);

/* ---- rows of logits (diffusion_rows.c) --------------------------------------------------------- */

typedef struct cmoei_rows {
    const cmoei_sequence *s;
    int64_t mask_token;
    bool entropy;         /* wanted */
    const float *logits;  /* [n, vocab] */
    const int64_t *draw;  /* [n] the number of the draw at each position */
    cmoei_candidate *out; /* [n], positions set */
    int64_t n;
    float *row; /* [tasks, vocab] for sampling; NULL: greedy, nothing changes the logits */
    int64_t tasks;
    const int32_t *previous; /* [previous_count] prompt and what is decided, for penalties */
    int64_t previous_count, output;
} cmoei_rows;

/* Whether the settings do anything to logits beyond choosing the best. */
bool cmoei_rows_are_sampled(const cmoe_sampling *s);
/* Fills token, confidence and entropy of every candidate. */
cmoe_status cmoei_rows_read(cmoe_ctx *ctx, cmoei_rows *r, cmoe_error *err);

#endif
