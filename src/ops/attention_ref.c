/* SPDX-License-Identifier: MIT
 *
 * attention_ref.c - attention as it reads, one query row and one key at a time, over THE tree of
 * attention_kernel.h.
 */
#include "core/real_plane.h"
#include "ops/attention_kernel.h"

void CMOEI_REF(cmoei_attention_part)(const cmoei_attention_args *a);
void CMOEI_REF(cmoei_attention_merge)(const cmoei_attention_parts *p);

enum { LANES = CMOEI_ATTENTION_LANES };

static cmoei_real larger(cmoei_real x, cmoei_real than)
{
    return x > than ? x : than;
}

static cmoei_real finite_base(cmoei_real m)
{
    return m == -(cmoei_real)INFINITY ? 0 : m;
}

/* Element i of page memory. */
static cmoei_real cached(const cmoei_attention_args *a, const char *at, int64_t i)
{
    float x;
    cmoei_load_f32(&x, at + i * cmoei_float_bytes(a->format), a->format, 1, 1);
    return x;
}

static cmoei_real score(const cmoei_attention_args *a, int64_t r, const char *keys, int64_t j)
{
    cmoei_real s = 0;
    for (int64_t d = 0; d < a->key_dim; d++)
        s = real_fma(a->q[r * a->key_dim + d], cached(a, keys, d * CMOE_KV_PAGE + j), s);
    return s * a->scale;
}

static cmoei_real fold(cmoei_real *lane)
{
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int j = 0; j < n; j++)
            lane[j] += lane[j + n];
    }
    return lane[0];
}

static void add_block(const cmoei_attention_args *a, int64_t r, int64_t page, int32_t low,
                      int32_t high)
{
    cmoei_real *m = (cmoei_real *)a->m + r, *l = (cmoei_real *)a->l + r;
    cmoei_real *acc = (cmoei_real *)a->acc + r * a->value_dim;
    cmoei_real p[CMOE_KV_PAGE], lane[LANES] = {0}, top = *m;
    const char *at = cmoei_attention_page(a, page), *values = at + a->values;
    for (int32_t j = low; j < high; j++) {
        p[j] = score(a, r, at + a->keys, j);
        top = larger(p[j], top);
    }
    const cmoei_real base = finite_base(top), shrink = real_exp(*m - base);
    for (int32_t j = low; j < high; j++) {
        p[j] = real_exp(p[j] - base);
        lane[j % LANES] += p[j];
    }
    *m = top;
    *l = real_fma(*l, shrink, fold(lane));
    for (int64_t d = 0; d < a->value_dim; d++) {
        acc[d] *= shrink;
        for (int32_t j = low; j < high; j++)
            acc[d] = real_fma(p[j], cached(a, values, j * a->value_dim + d), acc[d]);
    }
}

void CMOEI_REF(cmoei_attention_part)(const cmoei_attention_args *a)
{
    const int64_t page = a->key / CMOE_KV_PAGE;
    const int64_t page_end = cmoei_ceil_div(a->key_end, CMOE_KV_PAGE);
    for (int64_t r = 0; r < a->rows; r++) {
        ((cmoei_real *)a->m)[r] = -(cmoei_real)INFINITY;
        ((cmoei_real *)a->l)[r] = 0;
        for (int64_t d = 0; d < a->value_dim; d++)
            ((cmoei_real *)a->acc)[r * a->value_dim + d] = 0;
        for (int64_t b = page; b < page_end; b++) {
            int32_t low, high;
            if (cmoei_attention_sees(a, r, b, &low, &high)) add_block(a, r, b, low, high);
        }
    }
}

void CMOEI_REF(cmoei_attention_merge)(const cmoei_attention_parts *p)
{
    const cmoei_real *m = p->m, *l = p->l, *acc = p->acc;
    cmoei_real *out = p->out, top = -(cmoei_real)INFINITY, sum = 0;
    for (int64_t i = 0; i < p->parts; i++)
        top = larger(m[i * p->step], top);
    if (p->sink) top = larger(*p->sink, top);
    const cmoei_real base = finite_base(top);
    for (int64_t d = 0; d < p->value_dim; d++)
        out[d] = 0;
    for (int64_t i = 0; i < p->parts; i++) {
        const cmoei_real weight = real_exp(m[i * p->step] - base);
        sum = real_fma(l[i * p->step], weight, sum);
        for (int64_t d = 0; d < p->value_dim; d++)
            out[d] = real_fma(acc[i * p->step * p->value_dim + d], weight, out[d]);
    }
    if (p->sink) sum += real_exp(*p->sink - base);
    for (int64_t d = 0; d < p->value_dim; d++)
        out[d] = sum == 0 ? 0 : out[d] / sum;
}
