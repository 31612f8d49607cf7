/* SPDX-License-Identifier: MIT
 *
 * cross_entropy_ref.c - cross-entropy as it reads.
 */
#include "ops/cross_entropy.h"

void CMOEI_REF(cmoei_cross_entropy)(const cmoei_cross_entropy_args *a, int64_t row,
                                    int64_t row_end);

static cmoei_real largest(const cmoei_cross_entropy_args *a, int64_t row)
{
    cmoei_real m = real_get(&a->logits, row, 0);
    for (int64_t v = 1; v < a->vocab; v++) {
        const cmoei_real x = real_get(&a->logits, row, v);
        m = x > m ? x : m;
    }
    return m;
}

/* NaN where a logit is not finite. */
static cmoei_real sum_exp(const cmoei_cross_entropy_args *a, int64_t row, cmoei_real m)
{
    cmoei_real lane[CMOEI_LANES] = {0}, odd = 0;
    for (int64_t v = 0; v < a->vocab; v++) {
        const cmoei_real x = real_get(&a->logits, row, v);
        lane[v % CMOEI_LANES] += real_exp(x - m);
        odd += x * 0;
    }
    return real_fold(lane) + odd;
}

static void ignore(const cmoei_cross_entropy_args *a, int64_t row)
{
    if (a->loss.data) real_put(&a->loss, row, 0, 0);
    for (int64_t v = 0; a->dlogits.data && v < a->vocab; v++)
        real_put(&a->dlogits, row, v, 0);
}

static void cross_entropy(const cmoei_cross_entropy_args *a, int64_t row, int64_t target)
{
    const cmoei_real m = largest(a, row), z = sum_exp(a, row, m);
    if (a->loss.data)
        real_put(&a->loss, row, 0, m - real_get(&a->logits, row, target) + real_log(z));
    if (!a->dlogits.data) return;
    const cmoei_real scale = real_get(&a->scale, row, 0), factor = scale / z;
    for (int64_t v = 0; v < a->vocab; v++) {
        /* Reads a logit before it writes its gradient: they may lie on each other. */
        const cmoei_real e = real_exp(real_get(&a->logits, row, v) - m);
        real_put(&a->dlogits, row, v, v == target ? real_fma(e, factor, -scale) : e * factor);
    }
}

void CMOEI_REF(cmoei_cross_entropy)(const cmoei_cross_entropy_args *a, int64_t row, int64_t row_end)
{
    for (; row < row_end; row++) {
        const int64_t target = cmoei_load_index(cmoei_at(&a->targets, row, 0), a->targets.dtype);
        if (target < 0)
            ignore(a, row);
        else
            cross_entropy(a, row, target);
    }
}
