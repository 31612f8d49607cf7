/* SPDX-License-Identifier: MIT
 *
 * pack.c - rows of weights -> panels.
 *
 * Packing goes panel by panel: each output column is one row of the source, loaded as float32,
 * brought into the format and spread with the panel's stride.  The same routine packs at create,
 * for the loader of whole models, and, for borrowed weights, on the way into scratch, so all give
 * the same bytes.
 */
#include <math.h>
#include <string.h>

#include "matmul.h"

enum {
    GROUP = 16, /* columns that are spread together: one 64-byte line of float32 */
    BLOCK = 64, /* values of each at a time */
    LINES = 16  /* lines at a time: as many streams as a CPU can follow */
};

int64_t cmoei_matrix_row(const cmoe_matrix *m, int64_t p, int64_t c)
{
    const int64_t width = m->width;
    if (!m->gate.gated) {
        const int64_t n = p * width + c;
        return n < m->outputs ? n : -1;
    }
    const int64_t half = m->outputs / 2, i = p * width + c % width;
    const int64_t part = (c / width) ^ (m->gate.up_first); /* 0: the part that stands first */
    if (i >= half) return -1;
    return m->gate.interleaved ? 2 * i + part : part * half + i;
}

/* |max| as B5 wants it, then the scale of a weight row: a / 127. */
static float weight_scale(const float *x, int64_t n, float *inverse)
{
    float most = 1e-4f;
    for (int64_t i = 0; i < n; i++) {
        const float a = fabsf(x[i]);
        most = a > most || a != a ? a : most;
    }
    *inverse = 127.0f / most;
    return most / 127.0f;
}

/* Where value k of a column lies: a step's values side by side, steps a line apart. */
static inline int64_t place(int64_t k, int64_t step, int64_t line)
{
    return k / step * line + k % step;
}

/* Values k..k_end of one column, brought into the format, to their places.  Called with a constant
 * step, which the compiler divides by. */
static inline void put_f32(float *to, const float *x, int64_t k, int64_t k_end, int64_t step,
                           int64_t line)
{
    for (; k < k_end; k++)
        to[place(k, step, line)] = x[k];
}

static inline void put_bf16(uint16_t *to, const float *x, int64_t k, int64_t k_end, int64_t step,
                            int64_t line)
{
    uint16_t half[BLOCK];
    for (int64_t i = 0; i < k_end - k; i++)
        half[i] = cmoei_f32_to_bf16(x[k + i]);
    for (int64_t i = 0; i < k_end - k; i++)
        to[place(k + i, step, line)] = half[i];
}

static inline int32_t put_int8(int8_t *to, const float *x, int64_t k, int64_t k_end, int64_t step,
                               int64_t line)
{
    int32_t sum = 0;
    for (; k < k_end; k++) {
        const int8_t q = x[k] == x[k] && fabsf(x[k]) <= 128 ? (int8_t)x[k] : 0;
        to[place(k, step, line)] = q;
        sum += q;
    }
    return sum;
}

/* -> the sum of int8 values, else 0. */
static int32_t put(const cmoe_matrix *m, char *panel, int64_t c, const float *x, int64_t k,
                   int64_t k_end)
{
    const int64_t step = m->kernel->step, line = m->kernel->panel * step, at = c * step;
    float *f = (float *)(void *)panel + at;
    uint16_t *h = (uint16_t *)(void *)panel + at;
    int8_t *b = (int8_t *)panel + at;
    int32_t sum = 0;
    switch (m->kernel->v.dtype) {
    case CMOE_F32:
        CMOE_ASSERT(step == 1);
        put_f32(f, x, k, k_end, 1, line);
        break;
    case CMOE_BF16:
        CMOE_ASSERT(step == 1 || step == 2);
        if (step == 1)
            put_bf16(h, x, k, k_end, 1, line);
        else
            put_bf16(h, x, k, k_end, 2, line);
        break;
    default:
        CMOE_ASSERT(step == 1 || step == 2 || step == 4);
        if (step == 1)
            sum = put_int8(b, x, k, k_end, 1, line);
        else if (step == 2)
            sum = put_int8(b, x, k, k_end, 2, line);
        else
            sum = put_int8(b, x, k, k_end, 4, line);
        break;
    }
    return sum;
}

/* What x + 128 adds too much; the kernel starts from it, modulo 2^32. */
static void put_start(const cmoe_matrix *m, char *panel, int64_t c, int32_t sum)
{
    const int64_t line = m->kernel->panel * m->kernel->step;
    const uint32_t start = 0u - 128u * (uint32_t)sum;
    if (m->kernel->x_form == CMOEI_X_U8)
        memcpy(panel + m->steps * line + c * (int64_t)sizeof start, &start, sizeof start);
}

/* Columns c .. c + n - 1, whose values are rows of x [n, K]; those without a source are skipped.  A
 * block of k at a time, so that the lines that all columns share stay in L1. */
static void put_columns(const cmoe_matrix *m, char *panel, int64_t c, int64_t n,
                        const bool *present, const float *x)
{
    int32_t sums[GROUP] = {0};
    for (int64_t k = 0; k < m->inputs; k += BLOCK) {
        const int64_t end = CMOEI_MIN(k + BLOCK, m->inputs);
        for (int64_t i = 0; i < n; i++) {
            if (present[i]) sums[i] += put(m, panel, c + i, x + i * m->inputs, k, end);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        if (present[i] && m->kernel->v.dtype == CMOE_I8) put_start(m, panel, c + i, sums[i]);
    }
}

/* x -> whole numbers, as B5 says, and the scale.  NaN makes the scale NaN. */
static float quantize(float *x, int64_t n)
{
    float inverse;
    const float scale = weight_scale(x, n, &inverse);
    for (int64_t i = 0; i < n; i++)
        x[i] = rintf(x[i] * inverse);
    return scale;
}

void cmoei_panel_pack(const cmoe_matrix *m, const cmoei_rows *rows, int64_t e, int64_t p,
                      char *panel, float *scale, float *x)
{
    if (rows->lines) {
        cmoei_panels_pack_lines(m, rows, e, p, p + 1, panel);
        return;
    }
    memset(panel, 0, (size_t)m->panel_bytes);
    for (int64_t c = 0; c < m->kernel->panel; c += GROUP) {
        const int64_t n = CMOEI_MIN(GROUP, m->kernel->panel - c);
        bool present[GROUP];
        for (int64_t i = 0; i < n; i++) {
            const int64_t from = cmoei_matrix_row(m, p, c + i);
            float *row = x + i * m->inputs;
            present[i] = from >= 0;
            if (scale) scale[c + i] = 0;
            if (!present[i]) continue;
            rows->row(rows->user, e, from, row);
            if (scale)
                scale[c + i] =
                    rows->scale ? rows->scale(rows->user, e, from) : quantize(row, m->inputs);
        }
        put_columns(m, panel, c, n, present, x);
    }
}

/* Lines [k, k + n) of one panel, from float32 [n, panel]; lines behind n, of the last step, are zero. */
static void put_lines(const cmoe_matrix *m, char *panel, int64_t k, int64_t n, const float *x)
{
    const int64_t columns = m->kernel->panel, step = m->kernel->step;
    uint16_t *to = (uint16_t *)(void *)panel + k * columns;
    CMOE_ASSERT(m->kernel->v.dtype == CMOE_BF16 && step <= 2 && k % step == 0);
    if (step == 1) {
        for (int64_t i = 0; i < n * columns; i++)
            to[i] = cmoei_f32_to_bf16(x[i]);
        return;
    }
    for (int64_t i = 0; i < n; i += 2, to += 2 * columns) {
        const float *even = x + i * columns, *odd = even + columns;
        const bool last = i + 1 == n;
        for (int64_t c = 0; c < columns; c++) {
            to[2 * c] = cmoei_f32_to_bf16(even[c]);
            to[2 * c + 1] = last ? 0 : cmoei_f32_to_bf16(odd[c]);
        }
    }
}

void cmoei_panels_pack_lines(const cmoe_matrix *m, const cmoei_rows *rows, int64_t e, int64_t p,
                             int64_t end, char *panels)
{
    const int64_t columns = m->kernel->panel;
    const bool plain = m->kernel->v.dtype == CMOE_F32;
    float x[LINES * CMOEI_PANEL];
    for (int64_t k = 0; k < m->inputs; k += LINES) {
        const int64_t lines = CMOEI_MIN(LINES, m->inputs - k);
        for (int64_t i = p; i < end; i++) {
            char *panel = panels + (i - p) * m->panel_bytes;
            const int64_t n = CMOEI_MIN(columns, m->outputs - i * columns);
            float *to = plain ? (float *)(void *)panel + k * columns : x;
            rows->lines(rows->user, e, k, lines, i * columns, n, to, columns);
            for (int64_t l = 0; l < lines && n < columns; l++)
                memset(to + l * columns + n, 0, (size_t)(columns - n) * sizeof *to);
            if (!plain) put_lines(m, panel, k, lines, x);
        }
    }
}

bool cmoei_pack_elements(int64_t inputs, int64_t *elements)
{
    return cmoei_mul(inputs, GROUP, elements);
}

void cmoei_matrix_pack(cmoe_matrix *m, const cmoei_rows *rows, int64_t i, float *x)
{
    cmoei_panel_pack(m, rows, i / m->panels, i % m->panels, m->packed + i * m->panel_bytes,
                     m->scale ? m->scale + i * m->kernel->panel : NULL, x);
}

void cmoei_matrix_set_bias(cmoe_matrix *m, int64_t e, const float *bias)
{
    const int64_t columns = m->panels * m->kernel->panel;
    for (int64_t i = 0; i < columns; i++) {
        const int64_t n = cmoei_matrix_row(m, i / m->kernel->panel, i % m->kernel->panel);
        m->bias[e * columns + i] = n < 0 ? 0 : bias[n];
    }
}

/* ---- rows of a view -------------------------------------------------------------------------- */

static void view_row(const void *user, int64_t e, int64_t n, float *row)
{
    const cmoe_matrix *m = user;
    const cmoe_view *w = &m->source;
    cmoei_load_f32(row, cmoei_at(w, e, n), w->dtype, w->strides[2], m->inputs);
}

static float view_scale(const void *user, int64_t e, int64_t n)
{
    const cmoe_matrix *m = user;
    float scale;
    cmoei_load_f32(&scale, cmoei_at(&m->o.scale, e, n), CMOE_F32, 1, 1);
    return scale;
}

cmoei_rows cmoei_matrix_source(const cmoe_matrix *m)
{
    if (m->rows.row) return m->rows;
    return (cmoei_rows){view_row, m->source.dtype == CMOE_I8 ? view_scale : NULL, m, NULL};
}
