/* SPDX-License-Identifier: MIT
 *
 * source.c - rows read from every stored format, strides, scales and edges, against the values
 * computed one by one from the definition.
 */
#include "unit.h"

#include "weights/source.h"

enum { ROWS = 7, COLS = 37 };

static const int32_t formats[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F8E4M3};

/* The definition: one value, one scale, one product. */
static float value_of(const cmoei_source *s, int64_t n, int64_t k)
{
    float x, scale = 1;
    if (s->dtype == CMOE_E2M1X2) {
        static const float values[] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
        const int byte = (unsigned char)s->data[n * s->row + k / 2];
        const int nibble = k % 2 ? byte >> 4 : byte & 15;
        x = nibble & 8 ? -values[nibble & 7] : values[nibble & 7];
    } else {
        const int64_t at = (n * s->row + k * s->col) * cmoe_dtype_bytes(s->dtype);
        cmoei_load_f32(&x, s->data + at, s->dtype, 1, 1);
    }
    if (!s->scale) return x;
    const int64_t row = (s->first + n * (s->step ? s->step : 1)) / s->block_rows;
    const int64_t at = row * s->scale_row + k / s->block_cols * s->scale_col;
    cmoei_load_f32(&scale, s->scale + at * cmoe_dtype_bytes(s->scale_dtype), s->scale_dtype, 1, 1);
    return x * scale;
}

static void same(float got, float want, int64_t n, int64_t k)
{
    if (cmoei_bits(got) != cmoei_bits(want) && !(got != got && want != want))
        fail_msg("[%d, %d] = %a, want %a", (int)n, (int)k, got, want);
}

/* All rows, into memory of exactly one row. */
static void check(const cmoei_source *s)
{
    float *row = malloc((size_t)s->cols * sizeof *row + (s->cols == 0));
    for (int64_t n = 0; n < s->rows; n++) {
        cmoei_source_row(s, n, row);
        for (int64_t k = 0; k < s->cols; k++)
            same(row[k], value_of(s, n, k), n, k);
    }
    free(row);
}

/* `bytes` random bytes at an odd address, nothing behind them. */
static char *noise(int64_t bytes, uint64_t seed, char **block)
{
    *block = malloc((size_t)bytes + 1);
    for (int64_t i = 0; i < bytes; i++)
        (*block)[i + 1] = (char)cmoe_random_u64(seed, (uint64_t)i, 0);
    return *block + 1;
}

static void every_value(void **state)
{
    (void)state;
    static const int32_t small[] = {CMOE_F16, CMOE_BF16, CMOE_F8E4M3};
    for (int f = 0; f < 3; f++) {
        const int64_t n = small[f] == CMOE_F8E4M3 ? 256 : 65536, bytes = cmoe_dtype_bytes(small[f]);
        char *data = malloc((size_t)(n * bytes));
        float *row = malloc((size_t)n * sizeof *row), *want = malloc((size_t)n * sizeof *want);
        for (int64_t i = 0; i < n; i++) {
            const uint16_t bits = (uint16_t)i;
            memcpy(data + i * bytes, &bits, (size_t)bytes);
        }
        const cmoei_source s = {
            .data = data, .rows = 1, .cols = n, .row = n, .col = 1, .dtype = small[f]};
        cmoei_source_row(&s, 0, row);
        for (int64_t i = 0; i < n; i++)
            cmoei_load_f32(&want[i], data + i * bytes, small[f], 1, 1);
        assert_memory_equal(row, want, (size_t)n * sizeof *row); /* NaN too */
        free(want);
        free(row);
        free(data);
    }
}

static void plain(void **state)
{
    (void)state;
    for (int f = 0; f < 4; f++) {
        const int64_t bytes = cmoe_dtype_bytes(formats[f]);
        char *block, *data = noise(ROWS * COLS * bytes, 10 + (uint64_t)f, &block);
        cmoei_source s = {.data = data, .rows = ROWS, .cols = COLS, .dtype = formats[f]};
        s.row = COLS;
        s.col = 1;
        check(&s);
        s.row = 1; /* transposed */
        s.col = ROWS;
        check(&s);
        s.cols = COLS / 2; /* every other column, backwards from the last row */
        s.data = data + (ROWS - 1) * COLS * bytes;
        s.row = -COLS;
        s.col = 2;
        check(&s);
        s.cols = 0;
        check(&s);
        free(block);
    }
}

static void packed(void **state)
{
    (void)state;
    for (int64_t cols = 0; cols < 12; cols++) {
        char *block, *data = noise(ROWS * 9, 20, &block);
        const cmoei_source s = {
            .data = data, .rows = ROWS, .cols = cols, .row = 9, .col = 1, .dtype = CMOE_E2M1X2};
        check(&s);
        free(block);
    }
    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    const cmoei_source s = {
        .data = all, .rows = 1, .cols = 512, .row = 256, .col = 1, .dtype = CMOE_E2M1X2};
    check(&s);
}

static void scaled(void **state)
{
    (void)state;
    static const int32_t scales[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F8E8M0};
    static const int64_t blocks[][2] = {{1, 1}, {1, 32}, {3, 8}, {7, 37}, {128, 128}, {2, 36}};
    for (int f = 0; f < 5; f++) {
        const int32_t dtype = f == 4 ? CMOE_E2M1X2 : formats[f];
        for (int g = 0; g < 4; g++) {
            for (int b = 0; b < 6; b++) {
                const int64_t rows = cmoei_ceil_div(ROWS, blocks[b][0]);
                const int64_t cols = cmoei_ceil_div(COLS, blocks[b][1]);
                const int64_t width = dtype == CMOE_E2M1X2 ? (COLS + 1) / 2 : COLS;
                char *d, *e, *data = noise(ROWS * width * cmoe_dtype_bytes(dtype), 30, &d);
                char *scale = noise(rows * cols * cmoe_dtype_bytes(scales[g]), 40, &e);
                cmoei_source s = {.data = data,
                                  .scale = scale,
                                  .rows = ROWS,
                                  .cols = COLS,
                                  .row = width,
                                  .col = 1,
                                  .scale_row = cols,
                                  .scale_col = 1,
                                  .block_rows = blocks[b][0],
                                  .block_cols = blocks[b][1],
                                  .dtype = dtype,
                                  .scale_dtype = scales[g]};
                check(&s);
                s.scale_row = 1; /* scales transposed */
                s.scale_col = rows;
                check(&s);
                free(d);
                free(e);
            }
        }
    }
}

/* Rows of a part are the rows of the whole, wherever the blocks begin. */
static void parts(void **state)
{
    (void)state;
    char *d, *e, *data = noise(ROWS * COLS, 50, &d), *scale = noise(4 * 5, 60, &e);
    const cmoei_source whole = {.data = data,
                                .scale = scale,
                                .rows = ROWS,
                                .cols = COLS,
                                .row = COLS,
                                .col = 1,
                                .scale_row = 5,
                                .scale_col = 1,
                                .block_rows = 2,
                                .block_cols = 8,
                                .dtype = CMOE_F8E4M3,
                                .scale_dtype = CMOE_F8E8M0};
    float got[COLS], want[COLS];
    for (int64_t first = 0; first < ROWS; first++) {
        for (int64_t step = 1; step < 4; step++) {
            const int64_t count = cmoei_ceil_div(ROWS - first, step);
            const cmoei_source part = cmoei_source_rows(&whole, first, step, count);
            assert_int_equal(part.rows, count);
            for (int64_t n = 0; n < count; n++) {
                cmoei_source_row(&part, n, got);
                cmoei_source_row(&whole, first + n * step, want);
                assert_memory_equal(got, want, sizeof got);
            }
            for (int64_t n = 1; n < count; n += 2) { /* a part of a part */
                const cmoei_source inner = cmoei_source_rows(&part, n, 2, 1);
                cmoei_source_row(&inner, 0, got);
                cmoei_source_row(&whole, first + n * step, want);
                assert_memory_equal(got, want, sizeof got);
            }
        }
    }
    const cmoei_source none = {.rows = 4, .cols = 4};
    assert_null(cmoei_source_rows(&none, 1, 1, 2).data);
    free(d);
    free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value), cmocka_unit_test(plain), cmocka_unit_test(packed),
        cmocka_unit_test(scaled),      cmocka_unit_test(parts),
    };
    return UNIT_RUN("unit_source", tests);
}
