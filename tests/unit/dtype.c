/* SPDX-License-Identifier: MIT
 *
 * dtype.c - number formats: names and sizes; every code of every small format there and back; and
 * every narrowing against the search of formats.h.
 */
#include <math.h>

#include "unit.h"

#include "formats.h"

static double values_of[MOST_CODES];

static void expect(const small *f, const double *values, float x)
{
    const uint32_t got = f->encode(x), want = nearest(f, values, x);
    if (got != want)
        fail_msg("%s: %a gives code %x, want %x", cmoe_dtype_name(f->dtype), x, got, want);
}

static void names(void **state)
{
    (void)state;
    const char *const want[] = {"f32", "f16", "bf16", "f8e4m3", "f8e8m0", "i8",
                                "u8",  "i32", "i64",  "f64",    "i4x2",   "e2m1x2"};
    const int64_t bytes[] = {4, 2, 2, 1, 1, 1, 1, 4, 8, 8, 1, 1};
    for (int32_t d = CMOE_F32; d <= CMOE_E2M1X2; d++) {
        assert_string_equal(cmoe_dtype_name(d), want[d - 1]);
        assert_int_equal(cmoe_dtype_bytes(d), bytes[d - 1]);
        assert_int_equal(cmoe_dtype_parse(want[d - 1]), d);
    }
    const int32_t none[] = {0, -1, 13, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 5; i++) {
        assert_string_equal(cmoe_dtype_name(none[i]), "unknown");
        assert_int_equal(cmoe_dtype_bytes(none[i]), 0);
    }
    assert_int_equal(cmoe_dtype_parse("f31"), 0);
    assert_int_equal(cmoe_dtype_parse(""), 0);
    assert_int_equal(cmoe_dtype_parse(NULL), 0);
}

static void all_codes(void **state)
{
    (void)state;
    for (int i = 0; i < FORMATS; i++) {
        const small *f = &formats[i];
        for (uint32_t sign = 0; sign <= f->sign; sign += f->sign ? f->sign : 1) {
            for (uint32_t c = 0; c < (uint32_t)f->codes; c++) {
                const float x = f->decode(c | sign);
                assert_true(fabs((double)x) == value(f, c));
                assert_int_equal(signbit(x) != 0, sign != 0);
                assert_int_equal(f->encode(x), c | sign);
            }
            if (!f->sign) break;
        }
    }
}

static void not_finite(void **state)
{
    (void)state;
    const float inf = cmoei_float(0x7f800000u);
    assert_int_equal(cmoei_f32_to_f16(inf), 0x7c00);
    assert_int_equal(cmoei_f32_to_f16(-inf), 0xfc00);
    assert_int_equal(cmoei_f32_to_bf16(inf), 0x7f80);
    assert_int_equal(cmoei_f32_to_bf16(-inf), 0xff80);
    assert_int_equal(cmoei_f32_to_f8e4m3(inf), 0x7f);
    assert_int_equal(cmoei_f32_to_f8e4m3(-inf), 0xff);
    assert_int_equal(cmoei_f32_to_f8e8m0(inf), 0xff);
    assert_int_equal(cmoei_f32_to_f8e8m0(-1.0f), 0xff);
    assert_int_equal(cmoei_f32_to_e2m1(inf), 7);
    assert_int_equal(cmoei_f32_to_e2m1(-inf), 15);
    assert_true(cmoei_f16_to_f32(0x7c00) == inf && cmoei_f16_to_f32(0xfc00) == -inf);

    /* Every NaN of float32, by its 16 highest bits and three fillings of the rest. */
    for (uint32_t high = 0x7f80; high <= 0x7fff; high++) {
        for (uint32_t low = 0; low < 3; low++) {
            const uint32_t u = high << 16 | (low == 0 ? 0 : low == 1 ? 1 : 0xffff);
            if (u == 0x7f800000u) continue;
            for (uint32_t sign = 0; sign < 2; sign++) {
                const float x = cmoei_float(u | sign << 31);
                const uint16_t h = cmoei_f32_to_f16(x), b = cmoei_f32_to_bf16(x);
                assert_true((h & 0x7fff) > 0x7c00 && h >> 15 == sign);
                assert_true((b & 0x7fff) > 0x7f80 && b >> 15 == sign);
                assert_int_equal(cmoei_f32_to_f8e4m3(x) & 0x7f, 0x7f);
                assert_int_equal(cmoei_f32_to_f8e8m0(x), 0xff);
                assert_int_equal(cmoei_f32_to_e2m1(x), 0);
            }
        }
    }
    /* And back: a NaN stays one. */
    for (uint32_t c = 0x7c01; c < 0x8000; c++)
        assert_true(isnan(cmoei_f16_to_f32((uint16_t)c)) &&
                    isnan(cmoei_f16_to_f32((uint16_t)(c | 0x8000))));
    assert_true(isnan(cmoei_f8e4m3_to_f32(0x7f)) && isnan(cmoei_f8e4m3_to_f32(0xff)));
    assert_true(isnan(cmoei_f8e8m0_to_f32(0xff)));
}

/* Each value, each middle between two neighbours, and the floats next to both. */
static void boundaries(void **state)
{
    (void)state;
    for (int i = 0; i < FORMATS; i++) {
        const small *f = &formats[i];
        const double *values = table(f, values_of);
        for (int c = 0; c < f->codes; c++) {
            const double points[2] = {values[c], (values[c] + values[c + 1]) / 2};
            for (int p = 0; p < 2; p++) {
                const uint32_t u = cmoei_bits((float)points[p]);
                for (uint32_t d = 0; d < 3; d++) {
                    if (u == 0 && d == 0) continue;
                    const uint32_t near = u + d - 1;
                    if (near > 0x7f7fffffu) continue;
                    expect(f, values, cmoei_float(near));
                    expect(f, values, cmoei_float(near | 0x80000000u));
                }
            }
        }
        expect(f, values, 0.0f);
        if (f->sign) expect(f, values, -0.0f);
        expect(f, values, 0x1.fffffep127f);
        expect(f, values, 0x1p-149f);
    }
}

static void random_floats(void **state)
{
    (void)state;
    for (int i = 0; i < FORMATS; i++) {
        const small *f = &formats[i];
        const double *values = table(f, values_of);
        for (uint64_t n = 0; n < 200000; n++) {
            const uint64_t r = cmoe_random_u64(7, n, (uint64_t)i);
            uint32_t u = (uint32_t)r;
            if (r >> 63) { /* half of them where the format has its values */
                const int32_t reach = f->exponent == 8 ? 254 : (1 << f->exponent) + f->fraction + 2;
                const int32_t e =
                    127 + (1 << f->exponent) - f->bias - (int32_t)(r >> 32 & 0xffff) % reach;
                u = (u & 0x807fffffu) | (uint32_t)(e < 0 ? 0 : e) << 23;
            }
            if ((u & 0x7f800000u) == 0x7f800000u) continue;
            expect(f, values, cmoei_float(u));
        }
    }
}

/* Strided, at odd addresses, any length. */
static void rows(void **state)
{
    (void)state;
    const int32_t types[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F8E4M3, CMOE_F8E8M0,
                             CMOE_I8,  CMOE_U8,  CMOE_I32,  CMOE_I64,    CMOE_F64};
    for (int t = 0; t < 10; t++) {
        const int64_t bytes = cmoe_dtype_bytes(types[t]);
        for (int64_t stride = 1; stride < 4; stride++) {
            for (int64_t n = 0; n < 20; n++) {
                char block[20 * 3 * 8 + 1];
                float in[20], out[20];
                memset(block, 0x5a, sizeof block);
                for (int64_t i = 0; i < n; i++)
                    in[i] = (float)(1 << i % 7);
                cmoei_store_f32(block + 1, types[t], stride, in, n);
                cmoei_load_f32(out, block + 1, types[t], stride, n);
                for (int64_t i = 0; i < n; i++) /* powers of two are values of all of them */
                    assert_true(out[i] == in[i]);
                for (int64_t b = 0; b < (int64_t)sizeof block; b++) {
                    const int64_t at = b - 1;
                    const bool ours =
                        at >= 0 && at / bytes % stride == 0 && at / bytes / stride < n;
                    if (!ours) assert_int_equal(block[b], 0x5a);
                }
            }
        }
    }
}

static void integers(void **state)
{
    (void)state;
    const struct {
        float x;
        int64_t i8, u8, i32, i64;
    } cases[] = {
        {0.5f, 0, 0, 0, 0},
        {1.5f, 2, 2, 2, 2},
        {2.5f, 2, 2, 2, 2},
        {-0.5f, 0, 0, 0, 0},
        {-1.5f, -2, 0, -2, -2},
        {126.5f, 126, 126, 126, 126},
        {127.5f, 127, 128, 128, 128},
        {-127.5f, -128, 0, -128, -128},
        {-128.5f, -128, 0, -128, -128},
        {254.5f, 127, 254, 254, 254},
        {255.5f, 127, 255, 256, 256},
        {2147483648.0f, 127, 255, INT32_MAX, 2147483648},
        {-2147483648.0f, -128, 0, INT32_MIN, INT32_MIN},
        {0x1p63f, 127, 255, INT32_MAX, INT64_MAX},
        {-0x1p63f, -128, 0, INT32_MIN, INT64_MIN},
        {INFINITY, 127, 255, INT32_MAX, INT64_MAX},
        {-INFINITY, -128, 0, INT32_MIN, INT64_MIN},
        {NAN, 0, 0, 0, 0},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int8_t i8;
        uint8_t u8;
        int32_t i32;
        int64_t i64;
        cmoei_store_f32(&i8, CMOE_I8, 1, &cases[c].x, 1);
        cmoei_store_f32(&u8, CMOE_U8, 1, &cases[c].x, 1);
        cmoei_store_f32(&i32, CMOE_I32, 1, &cases[c].x, 1);
        cmoei_store_f32(&i64, CMOE_I64, 1, &cases[c].x, 1);
        assert_int_equal(i8, cases[c].i8);
        assert_int_equal(u8, cases[c].u8);
        assert_int_equal(i32, cases[c].i32);
        assert_int_equal(i64, cases[c].i64);
    }
    const int64_t wide = INT64_MIN;
    const int32_t narrow = -7;
    assert_true(cmoei_load_index(&wide, CMOE_I64) == INT64_MIN);
    assert_int_equal(cmoei_load_index(&narrow, CMOE_I32), -7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),      cmocka_unit_test(all_codes),     cmocka_unit_test(not_finite),
        cmocka_unit_test(boundaries), cmocka_unit_test(random_floats), cmocka_unit_test(rows),
        cmocka_unit_test(integers),
    };
    return UNIT_RUN("unit_dtype", tests);
}
