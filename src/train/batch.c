/* SPDX-License-Identifier: MIT
 *
 * batch.c - rows of a step from windows of a dataset.
 */
#include "batch.h"

#include <string.h>

enum { DRAW_RATE = 1 << 20, DRAW_MASK }; /* of random numbers, apart from those of weights */

static void carve(cmoei_batch *b, cmoei_carver *c)
{
    const int64_t n = b->shape.sequences * b->rows, L = b->shape.length;
    b->ids = cmoei_carve_array(c, n, sizeof *b->ids);
    b->positions = cmoei_carve_array(c, n, sizeof *b->positions);
    b->see = cmoei_carve_array(c, n, 4 * sizeof *b->see);
    b->targets = cmoei_carve_array(c, n, sizeof *b->targets);
    b->scale = cmoei_carve_array(c, n, sizeof *b->scale);
    b->next = cmoei_carve_array(c, L, sizeof *b->next);
    b->start = cmoei_carve_array(c, L, sizeof *b->start);
}

cmoe_status cmoei_batch_open(cmoei_batch *b, cmoe_ctx *ctx, const cmoei_batch_shape *shape,
                             cmoe_error *err)
{
    *b = (cmoei_batch){.shape = *shape, .rows = shape->length};
    if (shape->objective == CMOE_OBJECTIVE_DIFFUSION) b->rows *= 2;
    cmoei_carver c = cmoei_carver_dry();
    carve(b, &c);
    CMOEI_TRY(cmoei_carver_check(&c, "batch", err));
    b->memory_bytes = cmoei_carver_bytes(&c);
    CMOEI_TRY(cmoei_alloc(ctx, b->memory_bytes, "batch", &b->memory, err));
    const cmoe_arena arena = cmoe_arena_make(b->memory, b->memory_bytes);
    c = cmoei_carver_open(&arena);
    carve(b, &c);
    return cmoei_carver_check(&c, "batch", err);
}

void cmoei_batch_close(cmoei_batch *b, cmoe_ctx *ctx)
{
    if (b->memory) cmoei_free(ctx, b->memory, b->memory_bytes);
    *b = (cmoei_batch){0};
}

static void see(cmoei_batch *b, int64_t row, int64_t a, int64_t a_end, int64_t c, int64_t c_end)
{
    int32_t *s = b->see + 4 * row;
    s[0] = (int32_t)a;
    s[1] = (int32_t)a_end;
    s[2] = (int32_t)c;
    s[3] = (int32_t)c_end;
}

/* ---- next token -------------------------------------------------------------------------------- */

static void fill_next(cmoei_batch *b, int64_t base, int64_t length)
{
    for (int64_t i = 0; i < length; i++) {
        const int64_t row = base + i;
        b->positions[row] = i;
        b->targets[row] = b->next[i];
        b->scale[row] = b->next[i] >= 0 ? 1 : 0;
        b->learned += b->next[i] >= 0;
        see(b, row, base + b->start[i], row + 1, row + 1, row + 1);
    }
}

/* ---- block diffusion --------------------------------------------------------------------------- */

/* A token of a window is learned when it was the target of the one before it. */
static bool learned(const cmoei_batch *b, int64_t i)
{
    return i > 0 && b->next[i - 1] >= 0;
}

/* Where the block of token i ends for it: at the end of the block, the window or its document. */
static int64_t block_end(const cmoei_batch *b, int64_t i, int64_t length)
{
    const int64_t end = CMOEI_MIN((i / b->shape.block + 1) * b->shape.block, length);
    int64_t j = i;
    while (j < end && b->start[j] == b->start[i])
        j++;
    return j;
}

static void fill_diffusion(cmoei_batch *b, int64_t base, int64_t length, uint64_t sequence)
{
    const int64_t B = b->shape.block, clean = base + length;
    for (int64_t i = 0; i < length; i++) {
        const int64_t block = i / B * B, begin = CMOEI_MAX(block, b->start[i]);
        const int64_t end = block_end(b, i, length);
        const uint64_t at = sequence * (uint64_t)b->shape.length;
        const float rate =
            0.001f + 0.999f * cmoe_random_uniform(b->shape.seed, at + (uint64_t)block, DRAW_RATE);
        const bool masked =
            learned(b, i) && cmoe_random_uniform(b->shape.seed, at + (uint64_t)i, DRAW_MASK) < rate;
        b->learned += learned(b, i);
        b->targets[base + i] = masked ? b->ids[base + i] : -1;
        b->scale[base + i] = masked ? 1 / rate : 0;
        b->targets[clean + i] = -1;
        b->scale[clean + i] = 0;
        b->ids[clean + i] = b->ids[base + i];
        b->positions[base + i] = b->positions[clean + i] = i;
        see(b, base + i, base + begin, base + end, clean + b->start[i],
            clean + CMOEI_MAX(begin, b->start[i]));
        see(b, clean + i, clean + b->start[i], clean + end, clean + end, clean + end);
    }
    for (int64_t i = 0; i < length; i++)
        if (b->targets[base + i] >= 0) b->ids[base + i] = (int32_t)b->shape.mask_token;
}

/* ---- both -------------------------------------------------------------------------------------- */

/* Weights of losses become shares of all that is learned. */
static void share_out(cmoei_batch *b, int64_t rows)
{
    const double one = b->learned > 0 ? 1.0 / (double)b->learned : 0;
    for (int64_t i = 0; i < rows; i++)
        b->scale[i] = (float)((double)b->scale[i] * one);
}

void cmoei_batch_fill(cmoei_batch *b, const cmoe_dataset *d, const int64_t *at, int64_t count,
                      int64_t length, uint64_t first)
{
    const bool diffusion = b->shape.objective == CMOE_OBJECTIVE_DIFFUSION;
    const int64_t rows = diffusion ? 2 * length : length;
    b->learned = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t base = i * rows;
        cmoei_windows_read(d, at[i], length, b->ids + base, b->next, b->start);
        if (diffusion)
            fill_diffusion(b, base, length, first + (uint64_t)i);
        else
            fill_next(b, base, length);
    }
    share_out(b, count * rows);
}

void cmoei_batch_take(cmoei_batch *b, const cmoe_view *ids, const cmoe_view *targets, int64_t count)
{
    const int64_t L = b->shape.length;
    b->learned = 0;
    memset(b->start, 0, (size_t)L * sizeof *b->start);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t t = 0; t < L; t++)
            b->ids[i * L + t] = (int32_t)cmoei_load_index(cmoei_at(ids, i, t), ids->dtype);
        for (int64_t t = 0; t < L; t++) {
            if (cmoei_given(targets))
                b->next[t] = (int32_t)CMOEI_MAX(
                    cmoei_load_index(cmoei_at(targets, i, t), targets->dtype), -1);
            else
                b->next[t] = t + 1 < L ? b->ids[i * L + t + 1] : -1;
        }
        fill_next(b, i * L, L);
    }
    share_out(b, count * L);
}
