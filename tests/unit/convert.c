/* SPDX-License-Identifier: MIT
 *
 * convert.c - cmoe_convert between all pairs of formats against one rounding of the exact value,
 * then strides, ranks, packed pairs and every error text.
 */
#include "unit.h"

#include "formats.h"

enum { N = 512 };

static double values_of[FORMATS][MOST_CODES];

static bool is_packed(int32_t d)
{
    return d == CMOE_I4X2 || d == CMOE_E2M1X2;
}

static const small *small_of(int32_t dtype)
{
    for (int i = 0; i < FORMATS; i++) {
        if (formats[i].dtype == dtype) return &formats[i];
    }
    return NULL;
}

/* One value of any format, exactly.  `i` counts values, packed or not. */
static long double load(const unsigned char *p, int32_t dtype, int64_t i)
{
    uint32_t code = 0;
    switch (dtype) {
    case CMOE_F32: {
        float x;
        memcpy(&x, p + 4 * i, 4);
        return x;
    }
    case CMOE_F64: {
        double x;
        memcpy(&x, p + 8 * i, 8);
        return x;
    }
    case CMOE_I8:
        return (signed char)p[i];
    case CMOE_U8:
        return p[i];
    case CMOE_I32: {
        int32_t x;
        memcpy(&x, p + 4 * i, 4);
        return x;
    }
    case CMOE_I64: {
        int64_t x;
        memcpy(&x, p + 8 * i, 8);
        return x;
    }
    case CMOE_I4X2:
        code = p[i / 2] >> (i & 1) * 4 & 15;
        return (int)code - (code > 7 ? 16 : 0);
    case CMOE_E2M1X2:
        return small_of(dtype)->decode(p[i / 2] >> (i & 1) * 4 & 15);
    default:
        if (cmoe_dtype_bytes(dtype) == 2) {
            uint16_t h;
            memcpy(&h, p + 2 * i, 2);
            code = h;
        } else {
            code = p[i];
        }
        return small_of(dtype)->decode(code);
    }
}

static long double clamp(long double x, long double low, long double high)
{
    return isnan(x) ? 0 : x < low ? low : x > high ? high : x;
}

/* What storing x in `dtype` must give, exactly. */
static long double rounded(long double x, int32_t dtype)
{
    switch (dtype) {
    case CMOE_F32:
        return (float)x;
    case CMOE_F64:
        return (double)x;
    case CMOE_I8:
        return clamp(nearbyintl(x), INT8_MIN, INT8_MAX);
    case CMOE_U8:
        return clamp(nearbyintl(x), 0, UINT8_MAX);
    case CMOE_I32:
        return clamp(nearbyintl(x), INT32_MIN, INT32_MAX);
    case CMOE_I64:
        return clamp(nearbyintl(x), (long double)INT64_MIN, (long double)INT64_MAX);
    case CMOE_I4X2:
        return clamp(nearbyintl(x), -8, 7);
    case CMOE_E2M1X2:
        if (isnan(x)) return 0;
        break;
    default:
        if (isnan(x)) return x;
    }
    const small *f = small_of(dtype);
    return f->decode(nearest(f, values_of[f - formats], x));
}

/* Random codes of every kind: any bits, and values in the range where the other format lives. */
static void fill(unsigned char *p, int32_t in, int32_t out)
{
    for (int64_t i = 0; i < N; i++) {
        const uint64_t r = cmoe_random_u64((uint64_t)in, (uint64_t)i, (uint64_t)out);
        const double scale[4] = {1, 30, 1e3, 1e-6};
        const double x = ldexp((double)(int64_t)r, -63) * scale[i % 4];
        const int64_t k = (int64_t)(r >> (r & 31)) >> (r >> 8 & 31);
        /* Just beside the middle of two floats, where rounding twice goes wrong. */
        const double beside =
            1 + (double)((r & 1023) * 2 + 1) * 0x1p-11 + (i % 3 - 1) * (i % 2 ? 0x1p-40 : 0x1p-52);
        const double d = i % 5 < 3 ? x : i % 5 == 3 ? beside * 0.01 * scale[i % 4] : beside;
        const float f = (float)d;
        const int64_t big =
            ((int64_t)1 << 60) + ((int64_t)1 << 36) * (int64_t)(i / 2 % 8) + i % 3 - 1;
        const int64_t whole = i % 2 ? k : i % 4 ? big : -big;
        switch (in) {
        case CMOE_F32:
            memcpy(p + 4 * i, &f, 4);
            break;
        case CMOE_F64:
            memcpy(p + 8 * i, &d, 8);
            break;
        case CMOE_I64:
            memcpy(p + 8 * i, &whole, 8);
            break;
        default:
            memcpy(p + (is_packed(in) ? i / 2 : i * cmoe_dtype_bytes(in)), &r,
                   (size_t)cmoe_dtype_bytes(in));
        }
    }
}

static cmoe_view row_of(const void *p, int32_t dtype)
{
    return cmoe_view_1d(p, dtype, is_packed(dtype) ? N / 2 : N);
}

static void all_pairs(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    static unsigned char in[N * 8], out[N * 8];
    for (int32_t a = CMOE_F32; a <= CMOE_E2M1X2; a++) {
        for (int32_t b = CMOE_F32; b <= CMOE_E2M1X2; b++) {
            fill(in, a, b);
            memset(out, 0xa5, sizeof out);
            const cmoe_view_mut to = cmoe_view_mut_1d(out, b, is_packed(b) ? N / 2 : N);
            UNIT_OK(cmoe_convert(e.stream, row_of(in, a), to, &err));
            for (int64_t i = 0; i < N; i++) {
                const long double x = load(in, a, i), want = rounded(x, b), got = load(out, b, i);
                if (got != want && !(isnan(got) && isnan(want)))
                    fail_msg("%s -> %s: %La gives %La, want %La", cmoe_dtype_name(a),
                             cmoe_dtype_name(b), x, got, want);
            }
        }
    }
    unit_close(&e);
}

/* Three dims, the last one backwards, the others swapped, at an odd address. */
static void strides(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    unsigned char block[2 * 3 * 5 * 4 * 3 + 1], out[2 * 3 * 5 * 2];
    cmoe_view in = cmoe_view_3d(block + 1, CMOE_F32, 2, 3, 5);
    in.strides[0] = 5;
    in.strides[1] = 10;
    in.strides[2] = -1;
    in.data = block + 1 + 4 * 4;
    for (int i = 0; i < 30; i++) {
        const float x = (float)i;
        memcpy(block + 1 + 4 * i, &x, 4);
    }
    cmoe_view_mut to = cmoe_view_mut_make(out, CMOE_BF16, 3, in.dims);
    UNIT_OK(cmoe_convert(e.stream, in, to, &err));
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 3; j++) {
            for (int k = 0; k < 5; k++)
                assert_true(load(out, CMOE_BF16, i * 15 + j * 5 + k) == i * 5 + j * 10 + 4 - k);
        }
    }
    unit_close(&e);
}

static void packed_pairs(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    /* Low nibble first, by hand: -1 and 7; -8 and 3. */
    const unsigned char i4[2] = {0x7f, 0x38};
    float f[4];
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_1d(i4, CMOE_I4X2, 2), cmoe_view_mut_1d(f, CMOE_F32, 4),
                         &err));
    assert_true(f[0] == -1 && f[1] == 7 && f[2] == -8 && f[3] == 3);
    /* 0.5 and -6; 1.5 and -0. */
    const unsigned char e2m1[2] = {0xf1, 0x83};
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_1d(e2m1, CMOE_E2M1X2, 2),
                         cmoe_view_mut_1d(f, CMOE_F32, 4), &err));
    assert_true(f[0] == 0.5f && f[1] == -6 && f[2] == 1.5f && f[3] == 0 && signbit(f[3]));
    unsigned char back[2];
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_1d(f, CMOE_F32, 4),
                         cmoe_view_mut_1d(back, CMOE_E2M1X2, 2), &err));
    assert_memory_equal(back, e2m1, 2);
    unit_close(&e);
}

static void empty(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    const int64_t dims[3] = {4, 0, 3};
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_make(NULL, CMOE_F32, 3, dims),
                         cmoe_view_mut_make(NULL, CMOE_I8, 3, dims), &err));
    const int64_t many[3] = {INT64_MAX, 3, 0};
    UNIT_OK(cmoe_convert(e.stream, cmoe_view_make(NULL, CMOE_F32, 3, many),
                         cmoe_view_mut_make(NULL, CMOE_F16, 3, many), &err));
    unit_close(&e);
}

static void errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float in[12] = {0};
    uint16_t out[12];
    memset(out, 0x5a, sizeof out);
    const cmoe_view v = cmoe_view_2d(in, CMOE_F32, 3, 4);
    cmoe_view_mut m = cmoe_view_mut_2d(out, CMOE_BF16, 3, 4);

    UNIT_FAILS(cmoe_convert(NULL, v, m, &err), CMOE_ERR_ARG,
               "stream is NULL, want one of cmoe_stream_create");
    cmoe_view bad = v;
    bad.rank = 0;
    UNIT_FAILS(cmoe_convert(e.stream, bad, m, &err), CMOE_ERR_SHAPE, "in: rank 0, want 1");
    bad.rank = 7;
    UNIT_FAILS(cmoe_convert(e.stream, bad, m, &err), CMOE_ERR_SHAPE, "in: rank 7, want 6");
    bad = v;
    bad.dtype = 99;
    UNIT_FAILS(cmoe_convert(e.stream, bad, m, &err), CMOE_ERR_DTYPE, "in: dtype unknown (99)");
    bad = v;
    bad.data = NULL;
    UNIT_FAILS(cmoe_convert(e.stream, bad, m, &err), CMOE_ERR_ARG, "in: data is NULL");
    bad = v;
    bad.dims[0] = -3;
    UNIT_FAILS(cmoe_convert(e.stream, bad, m, &err), CMOE_ERR_SHAPE, "in: dims[0] = -3");

    cmoe_view_mut wrong = m;
    wrong.rank = 1;
    UNIT_FAILS(cmoe_convert(e.stream, v, wrong, &err), CMOE_ERR_SHAPE, "out: rank 1, want 2");
    wrong = m;
    wrong.dims[1] = 5;
    UNIT_FAILS(cmoe_convert(e.stream, v, wrong, &err), CMOE_ERR_SHAPE, "out: dims[1] = 5, want 4");
    wrong = m;
    wrong.strides[1] = 0;
    UNIT_FAILS(cmoe_convert(e.stream, v, wrong, &err), CMOE_ERR_SHAPE, "share memory");
    wrong = m;
    wrong.data = in;
    UNIT_FAILS(cmoe_convert(e.stream, v, wrong, &err), CMOE_ERR_ARG, "out overlaps in in memory");

    const cmoe_view odd = cmoe_view_1d(in, CMOE_F32, 3);
    UNIT_FAILS(cmoe_convert(e.stream, odd, cmoe_view_mut_1d(out, CMOE_I4X2, 1), &err),
               CMOE_ERR_SHAPE, "in: dims[0] = 3, want an even size to be packed in pairs");
    bad = cmoe_view_1d(in, CMOE_I4X2, INT64_MAX);
    bad.strides[0] = 0;
    UNIT_FAILS(cmoe_convert(e.stream, bad, m, &err), CMOE_ERR_SHAPE,
               "holds more than 2^63 - 1 values");
    for (int i = 0; i < 12; i++)
        assert_int_equal(out[i], 0x5a5a);
    unit_close(&e);
}

int main(void)
{
    for (int i = 0; i < FORMATS; i++)
        table(&formats[i], values_of[i]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_pairs), cmocka_unit_test(strides), cmocka_unit_test(packed_pairs),
        cmocka_unit_test(empty),     cmocka_unit_test(errors),
    };
    return UNIT_RUN("unit_convert", tests);
}
