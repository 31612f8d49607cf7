/* SPDX-License-Identifier: MIT
 *
 * source.c - see source.h.
 *
 * Loading a model is bound by the disk or by memory, so the aim is only not to be in the way:
 * contiguous rows are widened by loops without branches, which compilers turn into vectors, in
 * place of the conversions of core/dtype.c that name every case.  Scales are multiplied in a second
 * walk, block by block, while the row lies in the first cache.
 *
 * f16 and f8e4m3 are widened alike: the bits are shifted to where float32 has them and the exponent
 * is rebiased.  A subnormal has no leading one, so it is given one and then loses it again by a
 * subtraction that is exact.
 */
#include "source.h"

#include <string.h>

/* ---- contiguous rows ------------------------------------------------------------------------- */

static void widen_bf16(float *restrict row, const char *restrict data, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, data + 2 * i, sizeof x);
        row[i] = cmoei_bf16_to_f32(x);
    }
}

static void widen_f16(float *restrict row, const char *restrict data, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, data + 2 * i, sizeof x);
        const uint32_t magnitude = (x & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
        const uint32_t normal = magnitude + (112u << 23);
        const uint32_t special = magnitude | 0x7f800000u; /* infinity, NaN and its payload */
        const uint32_t small =
            cmoei_bits(cmoei_float(magnitude + (113u << 23)) - cmoei_float(113u << 23));
        const uint32_t bits = exponent == 0x0f800000u ? special : exponent == 0 ? small : normal;
        row[i] = cmoei_float(bits | (uint32_t)(x & 0x8000u) << 16);
    }
}

static void widen_f8e4m3(float *restrict row, const char *restrict data, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t x = (unsigned char)data[i];
        const uint32_t magnitude = (x & 0x7fu) << 20;
        const uint32_t normal = magnitude + (120u << 23);
        const uint32_t small =
            cmoei_bits(cmoei_float(magnitude + (121u << 23)) - cmoei_float(121u << 23));
        const uint32_t bits = magnitude == 0x07f00000u  ? 0x7fc00000u
                              : magnitude < 0x00800000u ? small
                                                        : normal;
        row[i] = cmoei_float(bits | (x & 0x80u) << 24);
    }
}

/* Two columns a byte, the first in the low nibble. */
static void widen_e2m1(float *restrict row, const char *restrict data, int64_t n)
{
    static const float values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    for (int64_t i = 0; i < n / 2; i++) {
        row[2 * i] = values[(unsigned char)data[i] & 15];
        row[2 * i + 1] = values[(unsigned char)data[i] >> 4];
    }
    if (n % 2) row[n - 1] = values[(unsigned char)data[n / 2] & 15];
}

/* ---- a row ----------------------------------------------------------------------------------- */

static void load_row(const cmoei_source *s, int64_t n, float *row)
{
    const char *data = s->data + n * s->row * cmoe_dtype_bytes(s->dtype);
    if (s->dtype == CMOE_E2M1X2)
        widen_e2m1(row, data, s->cols);
    else if (s->col == 1 && s->dtype == CMOE_BF16)
        widen_bf16(row, data, s->cols);
    else if (s->col == 1 && s->dtype == CMOE_F16)
        widen_f16(row, data, s->cols);
    else if (s->col == 1 && s->dtype == CMOE_F8E4M3)
        widen_f8e4m3(row, data, s->cols);
    else
        cmoei_load_f32(row, data, s->dtype, s->col, s->cols);
}

void cmoei_source_row(const cmoei_source *s, int64_t n, float *row)
{
    if (s->cols <= 0) return;
    load_row(s, n, row);
    if (!s->scale) return;
    const int64_t bytes = cmoe_dtype_bytes(s->scale_dtype);
    const int64_t stands_at = (s->first + n * (s->step ? s->step : 1)) / s->block_rows;
    const char *scale = s->scale + stands_at * s->scale_row * bytes;
    for (int64_t k = 0; k < s->cols; k += s->block_cols, scale += s->scale_col * bytes) {
        const int64_t end = s->block_cols < s->cols - k ? k + s->block_cols : s->cols;
        float factor;
        cmoei_load_f32(&factor, scale, s->scale_dtype, 1, 1);
        for (int64_t i = k; i < end; i++)
            row[i] *= factor;
    }
}

cmoei_source cmoei_source_rows(const cmoei_source *s, int64_t first, int64_t step, int64_t count)
{
    const int64_t before = s->step ? s->step : 1;
    cmoei_source part = *s;
    part.rows = count;
    if (s->data) part.data = s->data + first * s->row * cmoe_dtype_bytes(s->dtype);
    part.row = s->row * step;
    part.first = s->first + first * before;
    part.step = before * step;
    return part;
}
