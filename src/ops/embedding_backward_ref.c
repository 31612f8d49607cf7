/* SPDX-License-Identifier: MIT
 *
 * embedding_backward_ref.c - the gradient of a table of embeddings as it reads.
 */
#include "ops/embedding_backward.h"

void CMOEI_REF(cmoei_embedding_backward)(const cmoei_embedding_backward_args *a, int64_t id,
                                         int64_t id_end);

static cmoei_real sum_of(const cmoei_embedding_backward_args *a, int64_t id, int64_t h)
{
    cmoei_real v[CMOE_UNITS_MOST];
    int64_t i = a->first[id];
    for (int64_t u = 0; u < a->units.count; u++) {
        v[u] = 0;
        for (; i < a->first[id + 1] && a->order[i] < a->units.first[u + 1]; i++)
            v[u] = real_fma(real_get(&a->dout, a->order[i], h), a->scale, v[u]);
    }
    for (int64_t n = a->units.count; n > 1; n /= 2) {
        for (int64_t u = 0; u < n / 2; u++)
            v[u] = v[2 * u] + v[2 * u + 1];
    }
    return v[0];
}

void CMOEI_REF(cmoei_embedding_backward)(const cmoei_embedding_backward_args *a, int64_t id,
                                         int64_t id_end)
{
    for (; id < id_end; id++) {
        for (int64_t h = 0; h < a->hidden; h++)
            real_put(&a->dtable, id, h, sum_of(a, id, h));
    }
}
