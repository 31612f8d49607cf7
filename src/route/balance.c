/* SPDX-License-Identifier: MIT
 *
 * balance.c - how evenly the experts are used: cmoe_route_load counts, cmoe_route_balance_loss
 * weighs the counts with the router's probabilities, cmoe_route_bias_update evens them out.
 *
 * logits [T, E], ids [T, K], mask [T].  With N tokens that count, c_e slots of theirs on expert e,
 *
 *     loss = E * sum_e (c_e / (N K)) * (1/N sum_t p[t, e])
 *          = E / (N^2 K) * sum_t (sum_e c_e * p[t, e])
 *
 * The second form needs no sum over tokens for every expert, and so no memory: counts of a chunk of
 * experts fit the stack, and each token gives one number.  Tokens are cut into BLOCKS ranges
 * whatever the number of threads; sums go in token order inside a block, then as a balanced tree
 * over blocks, in double.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "backward.h"
#include "route_kernel.h"

enum { CHUNK = 4 * CMOEI_ROUTE_PIECE, BLOCKS = 64, TASK_TOKENS = 16 };

/* ---- balance loss ---------------------------------------------------------------------------- */

typedef struct balance {
    cmoei_route_share share;
    const cmoei_route_kernel *kernel;
    cmoe_view ids, mask;
    double load[CHUNK], block[BLOCKS];
} balance;

/* Slots on each expert of the chunk; masked tokens and ids outside are left out. */
static void count_chunk(balance *b)
{
    const cmoe_view *ids = &b->ids;
    for (int64_t e = 0; e < b->share.count; e++)
        b->load[e] = 0;
    for (int64_t t = 0; t < ids->dims[0]; t++) {
        if (!cmoei_route_counts(&b->mask, t)) continue;
        for (int64_t k = 0; k < ids->dims[1]; k++) {
            /* Unsigned: ids come from outside and may be anything. */
            const uint64_t e = (uint64_t)cmoei_load_index(cmoei_at(ids, t, k), ids->dtype) -
                               (uint64_t)b->share.first;
            if (e < (uint64_t)b->share.count) b->load[e] += 1;
        }
    }
}

static void sum_blocks(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    balance *b = arg;
    (void)index;
    (void)count;
    for (int64_t i; (i = cmoei_next(team, 1)) < BLOCKS;) {
        int64_t begin, end;
        cmoei_split(b->ids.dims[0], (int32_t)i, BLOCKS, &begin, &end);
        for (int64_t t = begin; t < end; t++) {
            if (cmoei_route_counts(&b->mask, t)) b->block[i] += b->kernel->share(&b->share, t);
        }
    }
}

static double fold(double *x, int n)
{
    for (int half = n / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++)
            x[i] += x[i + half];
    }
    return x[0];
}

static double balance_loss(cmoe_ctx *ctx, balance *b)
{
    const int64_t tokens = b->ids.dims[0], topk = b->ids.dims[1];
    const int64_t experts = b->share.logits.dims[1];
    double n = 0, sum = 0;
    if (topk == 0 || experts == 0) return 0; /* of any number of tokens */
    for (int64_t t = 0; t < tokens; t++)
        n += cmoei_route_counts(&b->mask, t);
    if (n == 0) return 0;
    for (b->share.first = 0; b->share.first < experts; b->share.first += CHUNK) {
        b->share.count = CMOEI_MIN(experts - b->share.first, (int64_t)CHUNK);
        count_chunk(b);
        for (int i = 0; i < BLOCKS; i++)
            b->block[i] = 0;
        cmoei_region(ctx, cmoei_ceil_div(tokens, TASK_TOKENS), sum_blocks, b);
        sum += fold(b->block, BLOCKS);
    }
    return (double)experts * sum / (n * n * (double)topk);
}

cmoe_status cmoe_route_balance_loss(cmoe_stream *s, cmoe_view logits, cmoe_view ids, cmoe_view mask,
                                    double *loss, cmoe_error *err)
{
    const cmoei_want want_logits = {.name = "logits",
                                    .dtypes = CMOEI_FLOATS,
                                    .rank = 2,
                                    .dims = {-1, -1},
                                    .dim_names = {"tokens", "experts"}};
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_in(&logits, &want_logits, err));
    const cmoei_want want_ids = {.name = "ids",
                                 .dtypes = CMOEI_INDEX,
                                 .rank = 2,
                                 .dims = {logits.dims[0], -1},
                                 .dim_names = {"tokens", "topk"}};
    CMOEI_TRY(cmoei_check_in(&ids, &want_ids, err));
    const cmoei_want want_mask = {.name = "mask",
                                  .dtypes = CMOEI_DTYPE(CMOE_I32),
                                  .rank = 1,
                                  .dims = {logits.dims[0]},
                                  .dim_names = {"tokens"}};
    if (cmoei_given(&mask)) CMOEI_TRY(cmoei_check_in(&mask, &want_mask, err));
    if (!loss) return cmoei_fail(err, CMOE_ERR_ARG, "loss is NULL, want a place for the result");
    balance b = {
        .share = {.logits = logits},
        .kernel = cmoei_table_pick(&cmoei_route_table, s->ctx->features, 0),
        .ids = ids,
        .mask = mask,
    };
    b.share.load = b.load;
    const uint64_t before = cmoei_float_enter();
    const double sum = balance_loss(s->ctx, &b);
    cmoei_float_leave(before);
    *loss = sum;
    return CMOE_OK;
}

/* ---- load ------------------------------------------------------------------------------------ */

cmoe_status cmoe_route_load(cmoe_stream *s, cmoe_view ids, cmoe_view_mut out, cmoe_error *err)
{
    const cmoei_want want_ids = {.name = "ids",
                                 .dtypes = CMOEI_INDEX,
                                 .rank = 2,
                                 .dims = {-1, -1},
                                 .dim_names = {"tokens", "topk"}};
    const cmoei_want want_counts = {.name = "counts",
                                    .dtypes = CMOEI_DTYPE(CMOE_I64),
                                    .rank = 1,
                                    .dims = {-1},
                                    .dim_names = {"experts"}};
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_in(&ids, &want_ids, err));
    CMOEI_TRY(cmoei_check_out(&out, &want_counts, err));
    CMOEI_TRY(cmoei_check_apart(&out, "counts", &ids, "ids", err));
    int64_t n = 0;
    for (int64_t e = 0; e < out.dims[0]; e++)
        memcpy(cmoei_at_mut(&out, e, 0), &n, sizeof n);
    for (int64_t t = 0; ids.dims[1] > 0 && t < ids.dims[0]; t++) {
        for (int64_t k = 0; k < ids.dims[1]; k++) {
            const int64_t e = cmoei_load_index(cmoei_at(&ids, t, k), ids.dtype);
            if (e < 0 || e >= out.dims[0]) continue;
            memcpy(&n, cmoei_at_mut(&out, e, 0), sizeof n);
            n++;
            memcpy(cmoei_at_mut(&out, e, 0), &n, sizeof n);
        }
    }
    return CMOE_OK;
}

/* ---- correction bias ------------------------------------------------------------------------- */

static int64_t count_of(const cmoe_view *counts, int64_t e)
{
    return cmoei_load_index(cmoei_at(counts, e, 0), counts->dtype);
}

static cmoe_status sum_counts(const cmoe_view *counts, int64_t *sum, cmoe_error *err)
{
    *sum = 0;
    for (int64_t e = 0; e < counts->dims[0]; e++) {
        const int64_t n = count_of(counts, e);
        if (n < 0)
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s[%" PRId64 "] = %" PRId64 ", want >= 0",
                              cmoei_name(counts->name, "counts"), e, n);
        if (!cmoei_add(*sum, n, sum))
            return cmoei_fail(err, CMOE_ERR_RANGE, "%s: their sum is beyond 2^63 - 1",
                              cmoei_name(counts->name, "counts"));
    }
    return CMOE_OK;
}

/* The mean is whole + part / E: compared in integers, so that equal is equal. */
cmoe_status cmoe_route_bias_update(cmoe_stream *s, cmoe_view counts, float rate, cmoe_view_mut bias,
                                   cmoe_error *err)
{
    cmoei_want want = {.name = "counts",
                       .dtypes = CMOEI_DTYPE(CMOE_I64),
                       .rank = 1,
                       .dims = {-1},
                       .dim_names = {"experts"}};
    int64_t sum;
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_check_in(&counts, &want, err));
    want.name = "bias";
    want.dtypes = CMOEI_DTYPE(CMOE_F32);
    want.dims[0] = counts.dims[0];
    CMOEI_TRY(cmoei_check_out(&bias, &want, err));
    CMOEI_TRY(cmoei_check_apart(&bias, "bias", &counts, "counts", err));
    if (!isfinite(rate))
        return cmoei_fail(err, CMOE_ERR_RANGE, "rate = %g, want a finite value", (double)rate);
    CMOEI_TRY(sum_counts(&counts, &sum, err));
    const int64_t experts = counts.dims[0];
    if (experts == 0) return CMOE_OK;
    const int64_t whole = sum / experts, part = sum % experts;
    const uint64_t before = cmoei_float_enter();
    for (int64_t e = 0; e < experts; e++) {
        const int64_t n = count_of(&counts, e);
        if (n == whole && part == 0) continue;
        float b;
        memcpy(&b, cmoei_at_mut(&bias, e, 0), sizeof b);
        b += n > whole ? -rate : rate;
        memcpy(cmoei_at_mut(&bias, e, 0), &b, sizeof b);
    }
    cmoei_float_leave(before);
    return CMOE_OK;
}
