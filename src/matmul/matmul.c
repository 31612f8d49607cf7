/* SPDX-License-Identifier: MIT
 *
 * matmul.c - the list of tile kernels, and how rows are prepared and shared out for them.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "matmul.h"
#include "quant/quantize.h"

/* Best first.  The last row of each format needs nothing and is the definition of correct.
 * Dispatch, tests/kernels/matmul.c and `cmoe doctor` all walk this list. */
static const cmoei_matmul_kernel kernels[] = {
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, CMOE_F32}, 32, 1, 12, CMOEI_X_F32, cmoei_matmul_f32_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, CMOE_F32}, 16, 1, 6, CMOEI_X_F32, cmoei_matmul_f32_avx2},
#endif
    {{"ref", 0, CMOE_F32}, 2, 1, 4, CMOEI_X_F32, cmoei_matmul_f32_ref},
#if CMOE_HAVE_AVX512_BF16
    {{"avx512_bf16", CMOE_CPU_AVX512_BF16 | CMOE_CPU_BF16_FIRST, CMOE_BF16},
     32,
     2,
     12,
     CMOEI_X_BF16,
     cmoei_matmul_bf16_avx512_bf16},
#endif
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, CMOE_BF16}, 32, 2, 12, CMOEI_X_F32, cmoei_matmul_bf16_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, CMOE_BF16}, 16, 2, 6, CMOEI_X_F32, cmoei_matmul_bf16_avx2},
#endif
    {{"ref", 0, CMOE_BF16}, 2, 1, 4, CMOEI_X_F32, cmoei_matmul_bf16_ref},
#if CMOE_HAVE_AVX512_VNNI
    {{"avx512_vnni", CMOE_CPU_AVX512_VNNI, CMOE_I8},
     32,
     4,
     12,
     CMOEI_X_U8,
     cmoei_matmul_i8_avx512_vnni},
#endif
#if CMOE_HAVE_AVX512
    {{"avx512", CMOE_CPU_AVX512, CMOE_I8}, 32, 2, 12, CMOEI_X_I16, cmoei_matmul_i8_avx512},
#endif
#if CMOE_HAVE_AVX2
    {{"avx2", CMOE_CPU_AVX2, CMOE_I8}, 16, 2, 6, CMOEI_X_I16, cmoei_matmul_i8_avx2},
#endif
    {{"ref", 0, CMOE_I8}, 2, 1, 4, CMOEI_X_I8, cmoei_matmul_i8_ref},
};

const cmoei_table cmoei_matmul_table = CMOEI_TABLE("matmul", kernels);

/* ---- rows ------------------------------------------------------------------------------------ */

int64_t cmoei_row_bytes(const cmoe_matrix *m)
{
    static const int8_t size[] = {[CMOEI_X_F32] = 4,
                                  [CMOEI_X_BF16] = 2,
                                  [CMOEI_X_I8] = 1,
                                  [CMOEI_X_U8] = 1,
                                  [CMOEI_X_I16] = 2};
    const int64_t bytes = m->steps * m->kernel->step * size[m->kernel->x_form];
    /* An odd number of cache lines, so that the rows of a tile do not fall into one set. */
    return cmoei_round_up(bytes, 128) + 64;
}

static void prepare_int8(const cmoe_matrix *m, const float *x, char *row, float *scale)
{
    const int64_t n = m->inputs, all = m->steps * m->kernel->step;
    int8_t *q = (int8_t *)row;
    *scale = cmoei_quantize_row(m->quantize, x, n, q);
    memset(q + n, 0, (size_t)(all - n));
    if (m->kernel->x_form == CMOEI_X_U8) {
        uint8_t *u = (uint8_t *)row;
        for (int64_t i = 0; i < all; i++)
            u[i] ^= 0x80; /* + 128 */
    } else if (m->kernel->x_form == CMOEI_X_I16) {
        int16_t *wide = (int16_t *)(void *)row;
        for (int64_t i = all - 1; i >= 0; i--) /* from the end: it grows over itself */
            wide[i] = q[i];
    }
}

void cmoei_row_prepare(const cmoe_matrix *m, const float *x, void *row, float *scale)
{
    const int64_t n = m->inputs, all = m->steps * m->kernel->step;
    if (m->kernel->v.dtype == CMOE_I8) {
        prepare_int8(m, x, row, scale);
    } else if (m->kernel->x_form == CMOEI_X_BF16) {
        uint16_t *to = row;
        for (int64_t i = 0; i < n; i++)
            to[i] = cmoei_f32_to_bf16(x[i]);
        memset(to + n, 0, (size_t)(all - n) * sizeof *to);
    } else {
        float *to = row;
        if (m->kernel->v.dtype == CMOE_BF16) {
            for (int64_t i = 0; i < n; i++)
                to[i] = cmoei_round_bf16(x[i]);
        } else {
            memcpy(to, x, (size_t)n * sizeof *to);
        }
        memset(to + n, 0, (size_t)(all - n) * sizeof *to);
    }
}

/* ---- blocks of rows -------------------------------------------------------------------------- */

int64_t cmoei_blocks_most(int64_t rows, int64_t experts)
{
    return CMOEI_MIN(rows, experts) + rows / CMOEI_BLOCK_ROWS;
}

int64_t cmoei_blocks_list(const cmoe_groups *g, cmoei_block *blocks)
{
    int64_t n = 0;
    for (int64_t e = 0; e < g->experts; e++) {
        int64_t end = g->first[e + 1];
        while (end > g->first[e] && g->slots[end - 1] < 0)
            end--;
        /* Blocks of one expert are as even as possible. */
        const int64_t rows = end - g->first[e], parts = cmoei_ceil_div(rows, CMOEI_BLOCK_ROWS);
        for (int64_t i = 0; i < parts; i++) {
            cmoei_block *b = &blocks[n++];
            b->expert = e;
            cmoei_split(rows, (int32_t)i, (int32_t)parts, &b->begin, &b->end);
            b->begin += g->first[e];
            b->end += g->first[e];
        }
    }
    return n;
}

/* Tokens are brought to the rows that row_of names and rows are read where slots says: were they not
 * each other's inverse, two tasks could fill one row and nobody another. */
static cmoe_status check_inverse(const cmoe_groups *g, int64_t slots, int64_t rows, cmoe_error *err)
{
    for (int64_t i = 0; i < slots; i++) {
        const int32_t r = g->row_of[i];
        if (r < -1 || r >= rows)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups.row_of[%" PRId64 "] = %d, want -1 <= row < %" PRId64, i, r,
                              rows);
        if (r >= 0 && g->slots[r] != i)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups.row_of[%" PRId64
                              "] = %d but groups.slots[%d] = %d, want %" PRId64,
                              i, r, r, g->slots[r], i);
    }
    for (int64_t r = 0; r < rows; r++) {
        if (g->slots[r] >= 0 && g->row_of[g->slots[r]] != r)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups.slots[%" PRId64
                              "] = %d but groups.row_of[%d] = %d, want %" PRId64,
                              r, g->slots[r], g->slots[r], g->row_of[g->slots[r]], r);
    }
    return CMOE_OK;
}

cmoe_status cmoei_groups_check(const cmoe_groups *g, int64_t experts, cmoe_error *err)
{
    int64_t slots;
    if (!g) return cmoei_fail(err, CMOE_ERR_ARG, "groups is NULL, want those of cmoe_align");
    if (g->experts != experts)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "groups.experts = %" PRId64 ", want %" PRId64 " (of the weights)",
                          g->experts, experts);
    if (!cmoei_mul(g->tokens, g->topk, &slots) || slots > INT32_MAX || g->capacity < 0 ||
        g->capacity > INT32_MAX)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "groups: tokens %" PRId64 ", topk %" PRId64 ", capacity %" PRId64
                          ", want sizes as cmoe_align makes them",
                          g->tokens, g->topk, g->capacity);
    if (!g->first || (slots > 0 && !g->row_of) || (g->capacity > 0 && !g->slots))
        return cmoei_fail(err, CMOE_ERR_ARG, "groups: an array is NULL, want those of cmoe_align");
    for (int64_t e = 0; e <= experts; e++) {
        const bool starts = e > 0 || g->first[0] == 0;
        if (!starts || g->first[e] < (e ? g->first[e - 1] : 0) || g->first[e] > g->capacity)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups.first[%" PRId64 "] = %" PRId64
                              ", want ascending rows from 0 up to %" PRId64 " (capacity)",
                              e, g->first[e], g->capacity);
    }
    for (int64_t r = 0, e = 0; r < g->first[experts]; r++) {
        if (g->slots[r] < -1 || g->slots[r] >= slots)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups.slots[%" PRId64 "] = %d, want -1 <= slot < %" PRId64
                              " (tokens * topk)",
                              r, g->slots[r], slots);
        while (g->first[e + 1] <= r)
            e++;
        if (r > g->first[e] && g->slots[r] >= 0 && g->slots[r - 1] < 0)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "groups.slots[%" PRId64 "] = %d behind padding, want an expert's "
                              "padding behind its rows",
                              r, g->slots[r]);
    }
    return check_inverse(g, slots, g->first[experts], err);
}

cmoe_status cmoei_check_filled(const cmoe_view *v, const char *name, int64_t rows, cmoe_error *err)
{
    if (v->dims[0] >= rows) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_SHAPE,
                      "%s: dims[0] = %" PRId64 ", want at least %" PRId64 " (group rows)",
                      cmoei_name(v->name, name), v->dims[0], rows);
}

/* The arrays of groups as views, for checks of where they lie. */
static void arrays_of(const cmoe_groups *g, cmoe_view *arrays)
{
    arrays[0] = cmoe_view_1d(g->first, CMOE_I64, g->experts + 1);
    arrays[1] = cmoe_view_1d(g->row_of, CMOE_I32, g->tokens * g->topk);
    arrays[2] = cmoe_view_1d(g->slots, CMOE_I32, g->capacity);
}

static const char *const array_names[3] = {"groups.first", "groups.row_of", "groups.slots"};

cmoe_status cmoei_groups_apart(const cmoe_view_mut *out, const char *name, const cmoe_groups *g,
                               cmoe_error *err)
{
    cmoe_view arrays[3];
    arrays_of(g, arrays);
    for (int i = 0; i < 3; i++)
        CMOEI_TRY(cmoei_check_apart(out, name, &arrays[i], array_names[i], err));
    return CMOE_OK;
}

cmoe_status cmoei_groups_check_scratch(const cmoe_groups *g, const cmoe_arena *scratch,
                                       cmoe_error *err)
{
    cmoe_view arrays[3];
    arrays_of(g, arrays);
    for (int i = 0; i < 3; i++)
        CMOEI_TRY(cmoei_check_scratch(scratch, &arrays[i], array_names[i], err));
    return CMOE_OK;
}

cmoe_status cmoei_matrix_apart(const cmoe_view_mut *out, const char *out_name, const cmoe_matrix *m,
                               const char *name, cmoe_error *err)
{
    return m->o.borrow ? cmoei_check_apart(out, out_name, &m->source, name, err) : CMOE_OK;
}

void cmoei_panels_run(cmoei_team *team, int32_t task, int32_t tasks, const cmoei_block *blocks,
                      int64_t count, int64_t panels, cmoei_panel_fn run, void *arg)
{
    /* Runs of neighbouring panels stream one stretch of memory; eight turns a task keep the end
     * even. */
    const int64_t items = count * panels;
    const int64_t grain = CMOEI_MIN(CMOEI_MAX(items / (8 * (int64_t)tasks), 1), 16);
    for (int64_t begin; (begin = cmoei_next(team, grain)) < items;) {
        const int64_t end = CMOEI_MIN(begin + grain, items);
        for (int64_t i = begin; i < end; i++)
            run(arg, task, &blocks[i / panels], i % panels);
    }
}
