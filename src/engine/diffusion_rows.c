/* SPDX-License-Identifier: MIT
 *
 * diffusion_rows.c - logits [n, vocab] of masked positions -> a token for each, its probability under
 * unfiltered softmax, and the entropy of that.
 *
 * The mask token takes part in the softmax and is never chosen; neither are ids beyond the tokenizer's.
 * Rows are independent, so tasks share them; what a row gives does not depend on who reads it.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/vmath.h"
#include "engine/diffusion.h"
#include "engine/sampling.h"

bool cmoei_rows_are_sampled(const cmoe_sampling *s)
{
    return s->temperature > 0 || s->repetition_penalty != 1 || s->presence_penalty != 0 ||
           s->frequency_penalty != 0 || s->biases > 0;
}

/* The token by sampling: `row` [vocab] is a copy to be worked on.  -1: none is possible. */
static int32_t sampled(const cmoei_rows *r, int64_t i, float *row)
{
    const cmoei_sequence *s = r->s;
    memcpy(row, r->logits + i * s->info.vocab, (size_t)s->info.vocab * sizeof *row);
    row[r->mask_token] = -INFINITY;
    if (cmoei_sampling_run(&s->sampling, row, s->usable, r->previous, r->previous_count, r->output,
                           NULL) != CMOE_OK)
        return -1;
    return (int32_t)cmoei_sampling_pick(&s->sampling, row, s->usable, r->out[i].position,
                                        r->draw[i]);
}

static void read_row(const cmoei_rows *r, int64_t i, float *row)
{
    const int64_t vocab = r->s->info.vocab;
    const float *x = r->logits + i * vocab;
    cmoei_candidate *c = &r->out[i];
    c->token = -1;
    if (cmoei_sampling_check_logits(x, vocab, NULL) != CMOE_OK) return;
    c->token = row ? sampled(r, i, row) : (int32_t)cmoei_best(x, r->s->usable, r->mask_token);
    if (c->token < 0) return;
    const float top = cmoei_top(x, vocab);
    const double sum = cmoei_weight_sum(x, vocab, top);
    double weight;
    cmoei_weights(x + c->token, 1, top, &weight);
    c->confidence = weight / sum;
    /* -sum of p ln p with p = w / sum and ln w = x - top. */
    if (r->entropy)
        c->entropy = (double)cmoei_logf((float)sum) - cmoei_weight_log_sum(x, vocab, top) / sum;
}

static void task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const cmoei_rows *r = arg;
    int64_t begin, end;
    (void)team;
    cmoei_split(r->n, index, count, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        read_row(r, i, r->row ? r->row + index * r->s->info.vocab : NULL);
}

cmoe_status cmoei_rows_read(cmoe_ctx *ctx, cmoei_rows *r, cmoe_error *err)
{
    const int64_t vocab = r->s->info.vocab;
    cmoei_region(ctx, CMOEI_MIN(r->n, r->tasks), task, r);
    for (int64_t i = 0; i < r->n; i++) {
        if (r->out[i].token >= 0) continue;
        CMOEI_TRY(cmoei_sampling_check_logits(r->logits + i * vocab, vocab, err));
        return cmoei_fail(
            err, CMOE_ERR_RANGE,
            "position %lld: every id below %lld but the mask token is forbidden by its "
            "logit of -infinity or by sampling.bias, want at least one left",
            (long long)r->out[i].position, (long long)r->s->usable);
    }
    return CMOE_OK;
}
