/* SPDX-License-Identifier: MIT
 *
 * rope.c - rotary positions: frequencies of every rule against numbers computed with numpy, tables,
 * turns there and back, partial heads, in place, and every error text.
 */
#include <math.h>

#include "isa.h"
#include "unit.h"

#include "core/core.h"

static cmoe_rope_options rope(int32_t kind, int64_t dim, double theta)
{
    cmoe_rope_options o;
    cmoe_rope_options_default(&o, sizeof o);
    assert_true(o.theta == 10000 && o.factor == 1 && o.truncate == 1 && o.partial == 1);
    o.kind = kind;
    o.dim = dim;
    o.theta = theta;
    return o;
}

static cmoe_rope_options scaled(int32_t kind, int64_t dim, double theta, double factor,
                                int64_t original)
{
    cmoe_rope_options o = rope(kind, dim, theta);
    o.factor = factor;
    o.original = original;
    return o;
}

/* ---- frequencies ----------------------------------------------------------------------------- */

/* numpy's power is another libm's: one unit in the last place is let pass. */
static void expect(cmoe_rope_options o, const float *want, float want_amplitude)
{
    float got[8], amplitude = -1;
    UNIT_OK(cmoe_rope_frequencies(&o, got, &amplitude, &err));
    for (int64_t j = 0; j < o.dim / 2; j++) {
        if (fabsf(got[j] - want[j]) > 0x1p-23f * want[j])
            fail_msg("%s: frequency %d = %.9g, want %.9g", cmoe_rope_kind_name(o.kind), (int)j,
                     (double)got[j], (double)want[j]);
    }
    if (fabsf(amplitude - want_amplitude) > 0x1p-23f * want_amplitude)
        fail_msg("%s: amplitude %.9g, want %.9g", cmoe_rope_kind_name(o.kind), (double)amplitude,
                 (double)want_amplitude);
}

static void plain_rules(void **state)
{
    (void)state;
    expect(rope(CMOE_ROPE_DEFAULT, 8, 10000),
           (const float[]){1, 0.100000001f, 0.00999999978f, 0.00100000005f}, 1);
    expect(scaled(CMOE_ROPE_LINEAR, 8, 10000, 4, 0),
           (const float[]){0.25f, 0.0250000004f, 0.00249999994f, 0.000250000012f}, 1);
    cmoe_rope_options o = rope(CMOE_ROPE_PROPORTIONAL, 16, 1e6);
    o.partial = .25;
    expect(o, (const float[]){1, 0.177827939f, 0, 0, 0, 0, 0, 0}, 1);
    /* Longer than trained, as long, and alpha whatever the length. */
    o = scaled(CMOE_ROPE_DYNAMIC, 8, 10000, 2, 2048);
    o.length = 8192;
    expect(o, (const float[]){1, 0.0522757955f, 0.00273275888f, 0.000142857141f}, 1);
    const float same[] = {1, 0.100000001f, 0.00999999978f, 0.00100000005f};
    o.length = 2048;
    expect(o, same, 1);
    o.length = 0;
    expect(o, same, 1);
    o = rope(CMOE_ROPE_DYNAMIC, 8, 10000);
    o.alpha = 1000;
    expect(o, (const float[]){1, 0.00999999978f, 9.99999975e-05f, 9.99999997e-07f}, 1);
}

static void yarn_rules(void **state)
{
    (void)state;
    const float deepseek[] = {1,
                              0.316227764f,
                              0.100000001f,
                              0.0239147246f,
                              0.00512500014f,
                              0.000849862117f,
                              2.49999994e-05f,
                              7.90569447e-06f};
    cmoe_rope_options o = scaled(CMOE_ROPE_YARN, 16, 10000, 40, 4096);
    o.mscale = o.mscale_all_dim = 1;
    expect(o, deepseek, 1);
    o.mscale = .707, o.mscale_all_dim = .5;
    expect(o, deepseek, 1.06446886f);
    o.mscale_all_dim = 0; /* both or none */
    expect(o, deepseek, 1.36888795f);
    o = scaled(CMOE_ROPE_YARN, 16, 150000, 32, 4096);
    o.truncate = 0;
    expect(o,
           (const float[]){1, 0.225418001f, 0.0508132763f, 0.00679495931f, 0.000456483918f,
                           1.8188337e-05f, 4.09997847e-06f, 9.24208962e-07f},
           1.34657359f);
    /* A ramp of no width. */
    expect(scaled(CMOE_ROPE_YARN, 4, 10000, 4, 6), (const float[]){1, 0.00249999994f}, 1.13862944f);
    o = scaled(CMOE_ROPE_YARN, 16, 1e6, 4, 32768);
    o.attention_factor = 1.25;
    expect(o,
           (const float[]){1, 0.177827939f, 0.0316227749f, 0.00421755994f, 0.000500000024f,
                           4.44569851e-05f, 7.90569447e-06f, 1.40585337e-06f},
           1.25f);
}

static void wave_rules(void **state)
{
    (void)state;
    expect(scaled(CMOE_ROPE_LLAMA3, 16, 500000, 8, 8192),
           (const float[]){1, 0.193922743f, 0.0376060307f, 0.00729266461f, 0.000524846138f,
                           3.42810235e-05f, 6.64786967e-06f, 1.28917316e-06f},
           1);
    const float shorts[] = {1, 1.1f, 1.2f, 1.3f}, longs[] = {1, 2, 4, 8};
    const float near[] = {1, 0.0909090862f, 0.00833333284f, 0.00076923077f};
    const float far[] = {1, 0.0500000007f, 0.00249999994f, 0.000125000006f};
    cmoe_rope_options o = scaled(CMOE_ROPE_LONGROPE, 8, 10000, 32, 4096);
    o.short_factor = shorts, o.long_factor = longs;
    expect(o, near, 1.19023812f);
    o.length = 4096;
    expect(o, near, 1.19023812f);
    o.length = 4097;
    expect(o, far, 1.19023812f);
    o.factor = 1;
    expect(o, far, 1);
    o.attention_factor = 1.5;
    expect(o, far, 1.5f);
    o.long_amplitude = 1.25, o.short_amplitude = 1.125;
    expect(o, far, 1.25f);
    o.length = 0;
    expect(o, near, 1.125f);
}

static void kind_names(void **state)
{
    (void)state;
    for (int32_t k = CMOE_ROPE_DEFAULT; k <= CMOE_ROPE_PROPORTIONAL; k++)
        assert_int_equal(cmoe_rope_kind_parse(cmoe_rope_kind_name(k)), k);
    assert_string_equal(cmoe_rope_kind_name(CMOE_ROPE_YARN), "yarn");
    assert_null(cmoe_rope_kind_name(-1));
    assert_null(cmoe_rope_kind_name(CMOE_ROPE_PROPORTIONAL + 1));
    assert_int_equal(cmoe_rope_kind_parse("su"), -1);
    assert_int_equal(cmoe_rope_kind_parse(NULL), -1);
}

static void refused(cmoe_rope_options o, cmoe_status status, const char *text)
{
    float f[8] = {-1}, a = -1;
    UNIT_FAILS(cmoe_rope_frequencies(&o, f, &a, &err), status, text);
    assert_true(f[0] == -1 && a == -1);
}

static void number_refused(int32_t kind, size_t offset, double value, const char *text)
{
    static const float factors[4] = {1, 1, 1, 1};
    cmoe_rope_options o = scaled(kind, 8, 10000, 2, 64);
    o.short_factor = o.long_factor = factors;
    memcpy((char *)&o + offset, &value, sizeof value);
    refused(o, CMOE_ERR_RANGE, text);
}
#define NUMBER(kind, field, value, text) \
    number_refused(CMOE_ROPE_##kind, offsetof(cmoe_rope_options, field), value, text)

static void frequency_errors(void **state)
{
    (void)state;
    refused(rope(9, 8, 10000), CMOE_ERR_RANGE,
            "kind = 9, want one of: 0 default, 1 linear, 2 dynamic, 3 yarn, 4 llama3, 5 longrope, "
            "6 proportional");
    refused(rope(-1, 8, 10000), CMOE_ERR_RANGE, "kind = -1");
    refused(rope(0, 7, 10000), CMOE_ERR_RANGE, "dim = 7, want an even number, 2 to 16777216");
    refused(rope(0, 0, 10000), CMOE_ERR_RANGE, "dim = 0");
    refused(rope(0, INT64_MAX - 1, 10000), CMOE_ERR_RANGE, "dim = 9223372036854775806");
    refused(rope(CMOE_ROPE_DYNAMIC, 2, 10000), CMOE_ERR_RANGE, "dim = 2, want >= 4 (dynamic");
    NUMBER(DEFAULT, theta, 0, "theta = 0, want a finite number > 0");
    NUMBER(DEFAULT, theta, (double)NAN, "theta = ");
    NUMBER(DEFAULT, theta, (double)INFINITY, "theta = inf");
    NUMBER(LINEAR, factor, 0, "factor = 0, want a finite number > 0");
    NUMBER(LINEAR, factor, -2, "factor = -2");
    NUMBER(LINEAR, factor, 1e-40, "frequency 0 = 1e+40, want at most 3.40282e+38");
    NUMBER(DEFAULT, theta, 1e-300, "want at most 3.40282e+38 (theta = 1e-300, factor = 2)");
    NUMBER(DYNAMIC, alpha, -1, "alpha = -1, want a finite number > 0, or 0: not given");
    NUMBER(YARN, theta, 1, "theta = 1, want > 1");
    NUMBER(YARN, beta_fast, 0, "beta_fast = 0");
    NUMBER(YARN, beta_slow, -1, "beta_slow = -1");
    NUMBER(YARN, attention_factor, -1, "attention_factor = -1");
    NUMBER(YARN, attention_factor, 1e300, "amplitude = 1e+300, want at most 3.40282e+38");
    NUMBER(YARN, mscale, -1, "mscale = -1");
    NUMBER(YARN, mscale_all_dim, (double)NAN, "mscale_all_dim = ");
    NUMBER(LLAMA3, low_frequency, 0, "low_frequency = 0");
    NUMBER(LLAMA3, high_frequency, -4, "high_frequency = -4");
    NUMBER(LLAMA3, high_frequency, 1, "high_frequency = 1, want > 1 (low_frequency)");
    NUMBER(LONGROPE, attention_factor, -1, "attention_factor = -1");
    NUMBER(LONGROPE, short_amplitude, -1, "short_amplitude = -1");
    NUMBER(LONGROPE, long_amplitude, (double)INFINITY, "long_amplitude = inf");
    NUMBER(PROPORTIONAL, partial, 0, "partial = 0, want 0 < partial <= 1");
    NUMBER(PROPORTIONAL, partial, 1.5, "partial = 1.5");
    const int32_t trained[] = {CMOE_ROPE_DYNAMIC, CMOE_ROPE_YARN, CMOE_ROPE_LLAMA3,
                               CMOE_ROPE_LONGROPE};
    for (int i = 0; i < 4; i++) {
        char text[64];
        snprintf(text, sizeof text, "original = 0, want >= 1 (%s)",
                 cmoe_rope_kind_name(trained[i]));
        refused(rope(trained[i], 8, 10000), CMOE_ERR_RANGE, text);
        cmoe_rope_options o = scaled(trained[i], 8, 10000, 2, 64);
        o.length = -1;
        refused(o, CMOE_ERR_RANGE, "length = -1, want >= 0");
    }
    cmoe_rope_options o = scaled(CMOE_ROPE_YARN, 8, 10000, 2, 64);
    o.truncate = 2;
    refused(o, CMOE_ERR_RANGE, "truncate = 2, want 0 or 1");
    refused(scaled(CMOE_ROPE_LONGROPE, 8, 10000, 2, 1), CMOE_ERR_RANGE, "original = 1, want >= 2");
    o = scaled(CMOE_ROPE_LONGROPE, 8, 10000, 2, 64);
    const float good[4] = {1, 1, 1, 1}, bad[4] = {1, 1, 0, 1};
    refused(o, CMOE_ERR_ARG, "short_factor is NULL, want 4 factors (dim / 2)");
    o.short_factor = good;
    refused(o, CMOE_ERR_ARG, "long_factor is NULL");
    o.long_factor = bad;
    refused(o, CMOE_ERR_RANGE, "long_factor[2] = 0, want a finite number > 0");
    o.size = 3;
    refused(o, CMOE_ERR_ARG, "cmoe_rope_options.size");
    o = rope(0, 8, 10000);
    float f[4], a;
    UNIT_FAILS(cmoe_rope_frequencies(&o, NULL, &a, &err), CMOE_ERR_ARG,
               "frequencies is NULL, want 4 floats");
    UNIT_FAILS(cmoe_rope_frequencies(&o, f, NULL, &err), CMOE_ERR_ARG,
               "amplitude is NULL, want one float");
}

/* ---- tables ---------------------------------------------------------------------------------- */

static float angle_of(int64_t position, float frequency)
{
    return (float)position * frequency; /* rounded: FLT_EVAL_METHOD is 0 wherever this runs */
}

static void table_values(void **state)
{
    (void)state;
    const int64_t positions[] = {0, 1, 1000003, 1 << 24};
    const float frequencies[] = {1, 0.1f, 0.01f, 0.001f};
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        float c[4][4], s[4][4];
        UNIT_OK(cmoe_rope_table(
            e.stream, cmoe_view_1d(positions, CMOE_I64, 4), cmoe_view_1d(frequencies, CMOE_F32, 4),
            1.5f, cmoe_view_mut_2d(c, CMOE_F32, 4, 4), cmoe_view_mut_2d(s, CMOE_F32, 4, 4), &err));
        for (int t = 0; t < 4; t++) {
            for (int j = 0; j < 4; j++) {
                const double a = (double)angle_of(positions[t], frequencies[j]);
                assert_true(c[t][j] == (float)cos(a) * 1.5f);
                assert_true(s[t][j] == (float)sin(a) * 1.5f);
            }
        }
        assert_true(c[0][0] == 1.5f && s[0][0] == 0);
        unit_close(&e);
    }
}

static void table_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    int32_t p[2] = {0, 5};
    float f[2] = {1, .1f}, c[4], s[4];
    memset(c, 0x5a, sizeof c);
    memset(s, 0x5a, sizeof s);
    const cmoe_view vp = cmoe_view_1d(p, CMOE_I32, 2), vf = cmoe_view_1d(f, CMOE_F32, 2);
    const cmoe_view_mut vc = cmoe_view_mut_2d(c, CMOE_F32, 2, 2);
    const cmoe_view_mut vs = cmoe_view_mut_2d(s, CMOE_F32, 2, 2);
    UNIT_FAILS(cmoe_rope_table(NULL, vp, vf, 1, vc, vs, &err), CMOE_ERR_ARG, "stream");
    UNIT_FAILS(cmoe_rope_table(e.stream, vf, vf, 1, vc, vs, &err), CMOE_ERR_DTYPE,
               "positions: dtype f32");
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, cmoe_view_1d(f, CMOE_BF16, 2), 1, vc, vs, &err),
               CMOE_ERR_DTYPE, "frequencies: dtype bf16");
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, INFINITY, vc, vs, &err), CMOE_ERR_RANGE,
               "amplitude = inf, want a finite number");
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, NAN, vc, vs, &err), CMOE_ERR_RANGE,
               "amplitude = ");
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, cmoe_view_mut_2d(c, CMOE_F32, 2, 1), vs, &err),
               CMOE_ERR_SHAPE, "cos: dims[1] = 1, want 2 [tokens = 2, rotated / 2 = 2]");
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, vc, cmoe_view_mut_2d(s, CMOE_F32, 1, 2), &err),
               CMOE_ERR_SHAPE, "sin: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, vc, vc, &err), CMOE_ERR_ARG,
               "cos overlaps sin");
    const cmoe_view one_p = cmoe_view_1d(p, CMOE_I32, 1), one_f = cmoe_view_1d(f, CMOE_F32, 1);
    const cmoe_view_mut on_p = cmoe_view_mut_2d(p, CMOE_F32, 1, 1);
    const cmoe_view_mut on_f = cmoe_view_mut_2d(f, CMOE_F32, 1, 1);
    const cmoe_view_mut c1 = cmoe_view_mut_2d(c, CMOE_F32, 1, 1);
    UNIT_FAILS(cmoe_rope_table(e.stream, one_p, one_f, 1, on_p, c1, &err), CMOE_ERR_ARG,
               "cos overlaps positions");
    UNIT_FAILS(cmoe_rope_table(e.stream, one_p, one_f, 1, on_f, c1, &err), CMOE_ERR_ARG,
               "cos overlaps frequencies");
    UNIT_FAILS(cmoe_rope_table(e.stream, one_p, one_f, 1, c1, on_p, &err), CMOE_ERR_ARG,
               "sin overlaps positions");
    UNIT_FAILS(cmoe_rope_table(e.stream, one_p, one_f, 1, c1, on_f, &err), CMOE_ERR_ARG,
               "sin overlaps frequencies");
    p[1] = -1;
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, vc, vs, &err), CMOE_ERR_RANGE,
               "positions[1] = -1, want 0 to 16777216");
    p[1] = (1 << 24) + 1;
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, vc, vs, &err), CMOE_ERR_RANGE,
               "positions[1] = 16777217, want 0 to 16777216 (whole numbers that float32 holds)");
    p[1] = 0;
    f[1] = NAN;
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, vc, vs, &err), CMOE_ERR_RANGE,
               "frequencies[1] = ");
    f[1] = -0x1p25f;
    UNIT_FAILS(cmoe_rope_table(e.stream, vp, vf, 1, vc, vs, &err), CMOE_ERR_RANGE,
               "frequencies[1] = -3.35544e+07, want -16777216 to 16777216");
    for (size_t i = 0; i < sizeof c; i++) {
        assert_int_equal(((unsigned char *)c)[i], 0x5a);
        assert_int_equal(((unsigned char *)s)[i], 0x5a);
    }
    UNIT_OK(cmoe_rope_table(e.stream, cmoe_view_1d(NULL, CMOE_I32, 0), one_f, 1,
                            cmoe_view_mut_2d(NULL, CMOE_F32, 0, 1),
                            cmoe_view_mut_2d(NULL, CMOE_F32, 0, 1), &err));
    unit_close(&e);
}

/* ---- the turn -------------------------------------------------------------------------------- */

enum { T = 3, HEADS = 2, D = 10, HALF = 3, AT = 2 };

/* Element i of a head after the turn, as the formula reads. */
static float turned(const float *x, const float *c, const float *s, int i, int interleaved,
                    int inverse)
{
    const int k = i - AT;
    if (k < 0 || k >= 2 * HALF) return x[i];
    const int j = interleaved ? k / 2 : k % HALF;
    const bool second = interleaved ? k & 1 : k >= HALF;
    const int partner = interleaved ? i ^ 1 : second ? i - HALF : i + HALF;
    const float sine = inverse ? -s[j] : s[j];
    return fmaf(x[i], c[j], second ? x[partner] * sine : -(x[partner] * sine));
}

static void turn_values(void **state)
{
    (void)state;
    float x[T][HEADS][D], out[T][HEADS][D], c[T][HALF], s[T][HALF];
    for (int i = 0; i < T * HEADS * D; i++)
        (&x[0][0][0])[i] = cmoe_random_normal(1, (uint64_t)i, 0);
    for (int i = 0; i < T * HALF; i++) {
        (&c[0][0])[i] = cosf((float)i);
        (&s[0][0])[i] = sinf((float)i);
    }
    const int64_t dims[3] = {T, HEADS, D};
    const cmoe_view vc = cmoe_view_2d(c, CMOE_F32, T, HALF),
                    vs = cmoe_view_2d(s, CMOE_F32, T, HALF);
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        for (int32_t k = 0; k < 4; k++) {
            cmoe_rope_rotate_options o;
            cmoe_rope_rotate_options_default(&o, sizeof o);
            o.offset = AT, o.interleaved = k & 1, o.inverse = k >> 1;
            UNIT_OK(cmoe_rope_rotate(e.stream, &o, cmoe_view_make(x, CMOE_F32, 3, dims), vc, vs,
                                     cmoe_view_mut_make(out, CMOE_F32, 3, dims), &err));
            for (int t = 0; t < T; t++) {
                for (int h = 0; h < HEADS; h++) {
                    for (int i = 0; i < D; i++)
                        assert_true(out[t][h][i] == turned(x[t][h], c[t], s[t], i, k & 1, k >> 1));
                }
            }
            /* Exactly in place: the same; and back again: where it began, but for rounding. */
            float y[T][HEADS][D];
            memcpy(y, x, sizeof y);
            const cmoe_view vy = cmoe_view_make(y, CMOE_F32, 3, dims);
            const cmoe_view_mut my = cmoe_view_mut_make(y, CMOE_F32, 3, dims);
            UNIT_OK(cmoe_rope_rotate(e.stream, &o, vy, vc, vs, my, &err));
            assert_memory_equal(y, out, sizeof y);
            o.inverse ^= 1;
            UNIT_OK(cmoe_rope_rotate(e.stream, &o, vy, vc, vs, my, &err));
            for (int i = 0; i < T * HEADS * D; i++)
                assert_true(fabsf((&y[0][0][0])[i] - (&x[0][0][0])[i]) < 4e-6f);
        }
        unit_close(&e);
    }
}

/* The heads of q inside a wider row, in and out of place, bf16 to f32, and f64 whose columns that
 * do not turn keep every digit. */
static void turn_layouts(void **state)
{
    (void)state;
    enum { WIDE = 31 };
    uint16_t x[T * WIDE];
    float f[T * WIDE], want[T * HEADS * D], out[T * HEADS * D], c[T] = {1, .5f, 0},
                                                                s[T] = {0, 1, 2};
    for (int i = 0; i < T * WIDE; i++)
        f[i] = cmoei_round_bf16(cmoe_random_normal(2, (uint64_t)i, 0));
    cmoei_store_f32(x, CMOE_BF16, 1, f, T * WIDE);
    const int64_t dims[3] = {T, HEADS, D};
    const cmoe_view vc = cmoe_view_2d(c, CMOE_F32, T, 1), vs = cmoe_view_2d(s, CMOE_F32, T, 1);
    unit_env e = unit_open(1);
    cmoe_view vx = cmoe_view_make(x + 4, CMOE_BF16, 3, dims);
    cmoe_view vf = cmoe_view_make(f + 4, CMOE_F32, 3, dims);
    vx.strides[0] = vf.strides[0] = WIDE;
    UNIT_OK(cmoe_rope_rotate(e.stream, NULL, vf, vc, vs,
                             cmoe_view_mut_make(want, CMOE_F32, 3, dims), &err));
    UNIT_OK(cmoe_rope_rotate(e.stream, NULL, vx, vc, vs, cmoe_view_mut_make(out, CMOE_F32, 3, dims),
                             &err));
    assert_memory_equal(out, want, sizeof want);
    double d[3] = {1.0 / 3, 2.0 / 3, 1.0 / 7}, y[3];
    const int64_t one[3] = {1, 1, 3};
    UNIT_OK(cmoe_rope_rotate(e.stream, NULL, cmoe_view_make(d, CMOE_F64, 3, one),
                             cmoe_view_2d(c, CMOE_F32, 1, 1), cmoe_view_2d(s, CMOE_F32, 1, 1),
                             cmoe_view_mut_make(y, CMOE_F64, 3, one), &err));
    assert_true(y[2] == d[2] && y[0] == (double)(float)d[0]);
    /* No pair turns: a copy. */
    UNIT_OK(cmoe_rope_rotate(e.stream, NULL, cmoe_view_make(d, CMOE_F64, 3, one),
                             cmoe_view_2d(NULL, CMOE_F32, 1, 0), cmoe_view_2d(NULL, CMOE_F32, 1, 0),
                             cmoe_view_mut_make(y, CMOE_F64, 3, one), &err));
    assert_memory_equal(y, d, sizeof d);
    const int64_t none[3] = {0, 2, 4};
    UNIT_OK(cmoe_rope_rotate(e.stream, NULL, cmoe_view_make(NULL, CMOE_F32, 3, none),
                             cmoe_view_2d(NULL, CMOE_F32, 0, 2), cmoe_view_2d(NULL, CMOE_F32, 0, 2),
                             cmoe_view_mut_make(NULL, CMOE_F32, 3, none), &err));
    unit_close(&e);
}

static void turn_threads(void **state)
{
    (void)state;
    enum { N = 64, H = 16, W = 128 };
    const size_t bytes = sizeof(float) * N * H * W;
    float *x = malloc(bytes), *first = malloc(bytes), *other = malloc(bytes);
    static float c[N * W / 2], s[N * W / 2], f[W / 2], amplitude;
    int32_t p[N];
    cmoe_rope_options o = rope(CMOE_ROPE_DEFAULT, W, 10000);
    UNIT_OK(cmoe_rope_frequencies(&o, f, &amplitude, &err));
    for (int i = 0; i < N; i++)
        p[i] = 7 * i;
    for (int i = 0; i < N * H * W; i++)
        x[i] = cmoe_random_normal(3, (uint64_t)i, 0);
    const int32_t threads[] = {1, 2, 7};
    const int64_t dims[3] = {N, H, W};
    for (int t = 0; t < 3; t++) {
        unit_env e = unit_open(threads[t]);
        UNIT_OK(cmoe_rope_table(e.stream, cmoe_view_1d(p, CMOE_I32, N),
                                cmoe_view_1d(f, CMOE_F32, W / 2), amplitude,
                                cmoe_view_mut_2d(c, CMOE_F32, N, W / 2),
                                cmoe_view_mut_2d(s, CMOE_F32, N, W / 2), &err));
        UNIT_OK(cmoe_rope_rotate(e.stream, NULL, cmoe_view_make(x, CMOE_F32, 3, dims),
                                 cmoe_view_2d(c, CMOE_F32, N, W / 2),
                                 cmoe_view_2d(s, CMOE_F32, N, W / 2),
                                 cmoe_view_mut_make(t ? other : first, CMOE_F32, 3, dims), &err));
        if (t) assert_memory_equal(first, other, bytes);
        unit_close(&e);
    }
    free(x), free(first), free(other);
}

static void turn_errors(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    float x[24] = {0}, c[4] = {0}, s[4] = {0}, out[24];
    memset(out, 0x5a, sizeof out);
    const int64_t dims[3] = {2, 3, 4}, small[3] = {1, 1, 2};
    const cmoe_view vx = cmoe_view_make(x, CMOE_F32, 3, dims);
    const cmoe_view vc = cmoe_view_2d(c, CMOE_F32, 2, 2), vs = cmoe_view_2d(s, CMOE_F32, 2, 2);
    const cmoe_view_mut vo = cmoe_view_mut_make(out, CMOE_F32, 3, dims);
    cmoe_rope_rotate_options o = {.size = sizeof o};
    UNIT_FAILS(cmoe_rope_rotate(NULL, NULL, vx, vc, vs, vo, &err), CMOE_ERR_ARG, "stream");
    o.interleaved = 2;
    UNIT_FAILS(cmoe_rope_rotate(e.stream, &o, vx, vc, vs, vo, &err), CMOE_ERR_RANGE,
               "interleaved = 2, want 0 or 1");
    o.interleaved = 0, o.inverse = -1;
    UNIT_FAILS(cmoe_rope_rotate(e.stream, &o, vx, vc, vs, vo, &err), CMOE_ERR_RANGE,
               "inverse = -1, want 0 or 1");
    o.inverse = 0, o.offset = 1;
    UNIT_FAILS(cmoe_rope_rotate(e.stream, &o, vx, vc, vs, vo, &err), CMOE_ERR_RANGE,
               "offset = 1, want 0 to 0 (head_dim - rotated)");
    o.offset = -1;
    UNIT_FAILS(cmoe_rope_rotate(e.stream, &o, vx, vc, vs, vo, &err), CMOE_ERR_RANGE, "offset = -1");
    o.size = 1;
    UNIT_FAILS(cmoe_rope_rotate(e.stream, &o, vx, vc, vs, vo, &err), CMOE_ERR_ARG,
               "cmoe_rope_rotate_options.size");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vc, vc, vs, vo, &err), CMOE_ERR_SHAPE,
               "x: rank 2, want 3 [tokens, heads, head_dim]");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vx, cmoe_view_2d(c, CMOE_F32, 1, 2), vs, vo, &err),
               CMOE_ERR_SHAPE, "cos: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vx, vc, cmoe_view_2d(s, CMOE_F32, 2, 1), vo, &err),
               CMOE_ERR_SHAPE, "sin: dims[1] = 1, want 2");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vx, vc, cmoe_view_2d(s, CMOE_F16, 2, 2), vo, &err),
               CMOE_ERR_DTYPE, "sin: dtype f16");
    float wide[6];
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vx, cmoe_view_2d(wide, CMOE_F32, 2, 3),
                                cmoe_view_2d(wide, CMOE_F32, 2, 3), vo, &err),
               CMOE_ERR_SHAPE, "cos: dims[1] = 3, want at most 2 (head_dim / 2)");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vx, vc, vs,
                                cmoe_view_mut_make(out, CMOE_F32, 3, small), &err),
               CMOE_ERR_SHAPE, "out: dims[0] = 1, want 2");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, vx, vc, vs,
                                cmoe_view_mut_make(x, CMOE_BF16, 3, dims), &err),
               CMOE_ERR_ARG, "out overlaps x");
    const cmoe_view x1 = cmoe_view_make(x, CMOE_F32, 3, small);
    const cmoe_view c1 = cmoe_view_2d(c, CMOE_F32, 1, 1), s1 = cmoe_view_2d(s, CMOE_F32, 1, 1);
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, x1, c1, s1,
                                cmoe_view_mut_make(c, CMOE_F32, 3, small), &err),
               CMOE_ERR_ARG, "out overlaps cos");
    UNIT_FAILS(cmoe_rope_rotate(e.stream, NULL, x1, c1, s1,
                                cmoe_view_mut_make(s, CMOE_F32, 3, small), &err),
               CMOE_ERR_ARG, "out overlaps sin");
    for (size_t i = 0; i < sizeof out; i++)
        assert_int_equal(((unsigned char *)out)[i], 0x5a);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_rules),      cmocka_unit_test(yarn_rules),
        cmocka_unit_test(wave_rules),       cmocka_unit_test(kind_names),
        cmocka_unit_test(frequency_errors), cmocka_unit_test(table_values),
        cmocka_unit_test(table_errors),     cmocka_unit_test(turn_values),
        cmocka_unit_test(turn_layouts),     cmocka_unit_test(turn_threads),
        cmocka_unit_test(turn_errors),
    };
    return UNIT_RUN("unit_rope", tests);
}
