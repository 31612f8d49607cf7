/* SPDX-License-Identifier: MIT
 *
 * convert.c - cmoe_convert: any number format to any other, any strides.
 *
 * Wide integers and doubles go over int64 or double where float32 would lose digits; all else goes
 * over float32, which holds every value of every smaller format.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core.h"

static bool packed(int32_t dtype)
{
    return dtype == CMOE_I4X2 || dtype == CMOE_E2M1X2;
}

static bool wide(int32_t dtype)
{
    return dtype == CMOE_I32 || dtype == CMOE_I64 || dtype == CMOE_F64;
}

/* ---- one value as a double, or exactly as int64 where both sides are integers ---------------- */

/* The double next to an int64, on the side of the odd fraction where there is none that is equal:
 * rounding that again, to float32 or less, gives what rounding x once would have given. */
static double integer_to_odd(int64_t x)
{
    const double d = (double)x;
    if (d == 0x1p63)
        return 0x1.fffffffffffffp62; /* INT64_MAX and a few below; its fraction is odd */
    if ((int64_t)d == x) return d;
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    if (!(u & 1)) u = (x < 0 ? (int64_t)d > x : (int64_t)d < x) ? u + 1 : u - 1;
    double odd;
    memcpy(&odd, &u, sizeof odd);
    return odd;
}

/* For a target `to`: what reaches a double is rounded once, what goes on to less not at all. */
static double load_double(const char *p, int32_t dtype, int32_t to)
{
    if (dtype == CMOE_F64) {
        double x;
        memcpy(&x, p, sizeof x);
        return x;
    }
    if (dtype == CMOE_I32 || dtype == CMOE_I64) {
        const int64_t x = cmoei_load_index(p, dtype);
        return to == CMOE_F64 ? (double)x : integer_to_odd(x);
    }
    float x;
    cmoei_load_f32(&x, p, dtype, 1, 1);
    return x;
}

static int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

static void store_integer(char *p, int32_t dtype, int64_t x)
{
    switch (dtype) {
    case CMOE_I8:
    case CMOE_U8:
        *p = dtype == CMOE_I8 ? (char)clamp(x, INT8_MIN, INT8_MAX)
                              : (char)(uint8_t)clamp(x, 0, UINT8_MAX);
        break;
    case CMOE_I32: {
        const int32_t y = (int32_t)clamp(x, INT32_MIN, INT32_MAX);
        memcpy(p, &y, sizeof y);
        break;
    }
    default:
        memcpy(p, &x, sizeof x);
    }
}

/* A float next to x on the side of the odd fraction, when x lies between two floats: rounding that
 * again, to anything narrower, gives what rounding x once would have given. */
static float round_to_odd(double x)
{
    float f = (float)x;
    if ((double)f == x || f != f || f - f != 0) return f;
    uint32_t u = cmoei_bits(f);
    if (!(u & 1)) {
        const bool away = fabs((double)f) < fabs(x);
        u = away ? u + 1 : u - 1;
    }
    return cmoei_float(u);
}

static void store_double(char *p, int32_t dtype, double x)
{
    switch (dtype) {
    case CMOE_F64:
        memcpy(p, &x, sizeof x);
        break;
    case CMOE_F32: {
        const float f = (float)x;
        memcpy(p, &f, sizeof f);
        break;
    }
    case CMOE_I8:
    case CMOE_U8:
    case CMOE_I32:
    case CMOE_I64:
        store_integer(p, dtype,
                      x != x         ? 0
                      : x >= 0x1p63  ? INT64_MAX
                      : x <= -0x1p63 ? INT64_MIN
                                     : (int64_t)nearbyint(x));
        break;
    default: {
        const float f = round_to_odd(x);
        cmoei_store_f32(p, dtype, 1, &f, 1);
    }
    }
}

static bool integer(int32_t dtype)
{
    return dtype == CMOE_I8 || dtype == CMOE_U8 || dtype == CMOE_I32 || dtype == CMOE_I64;
}

static int64_t load_integer(const char *p, int32_t dtype)
{
    return dtype == CMOE_I8   ? (int64_t)(int8_t)*p
           : dtype == CMOE_U8 ? (int64_t)(uint8_t)*p
                              : cmoei_load_index(p, dtype);
}

/* ---- one row along the last dimension -------------------------------------------------------- */

typedef struct row {
    int32_t dtype;
    int64_t step; /* bytes between elements */
    char *data;
} row;

static float load_nibble(row r, int64_t i)
{
    const uint8_t byte = (uint8_t)r.data[i / 2 * r.step];
    const uint8_t nibble = i & 1 ? byte >> 4 : byte & 15;
    if (r.dtype == CMOE_E2M1X2) return cmoei_e2m1_to_f32(nibble);
    return (float)(nibble < 8 ? nibble : nibble - 16);
}

static uint8_t to_nibble(int32_t dtype, float x)
{
    if (dtype == CMOE_E2M1X2) return cmoei_f32_to_e2m1(x);
    const float y = x != x ? 0 : x < -8 ? -8 : x > 7 ? 7 : nearbyintf(x);
    return (uint8_t)((int)y & 15);
}

static void convert_row(row in, row out, int64_t values)
{
    for (int64_t i = 0; i < values; i++) {
        if (packed(out.dtype)) {
            float x;
            if (packed(in.dtype))
                x = load_nibble(in, i);
            else
                x = round_to_odd(load_double(in.data + i * in.step, in.dtype, out.dtype));
            char *p = out.data + i / 2 * out.step;
            const uint8_t nibble = to_nibble(out.dtype, x);
            *p = (char)(i & 1 ? ((uint8_t)*p & 15) | nibble << 4 : nibble);
        } else if (packed(in.dtype)) {
            store_double(out.data + i * out.step, out.dtype, load_nibble(in, i));
        } else if (integer(in.dtype) && integer(out.dtype)) {
            store_integer(out.data + i * out.step, out.dtype,
                          load_integer(in.data + i * in.step, in.dtype));
        } else {
            store_double(out.data + i * out.step, out.dtype,
                         load_double(in.data + i * in.step, in.dtype, out.dtype));
        }
    }
}

static void convert_row_f32(row in, row out, int64_t values)
{
    float part[256];
    const int64_t si = in.step / cmoe_dtype_bytes(in.dtype),
                  so = out.step / cmoe_dtype_bytes(out.dtype);
    for (int64_t i = 0; i < values; i += CMOEI_COUNT(part)) {
        const int64_t n = CMOEI_MIN(values - i, CMOEI_COUNT(part));
        cmoei_load_f32(part, in.data + i * in.step, in.dtype, si, n);
        cmoei_store_f32(out.data + i * out.step, out.dtype, so, part, n);
    }
}

enum { TASK_VALUES = 65536 }; /* fewer do not pay for a task */

typedef struct convert_job {
    cmoe_view in;
    cmoe_view_mut out;
    int64_t rows, values; /* rows along the last dimension, values in each */
} convert_job;

static void convert_rows(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const convert_job *j = arg;
    const cmoe_view *in = &j->in;
    const cmoe_view_mut *out = &j->out;
    const bool over_f32 =
        !wide(in->dtype) && !wide(out->dtype) && !packed(in->dtype) && !packed(out->dtype);
    const int64_t bi = cmoe_dtype_bytes(in->dtype), bo = cmoe_dtype_bytes(out->dtype);
    const int32_t last = in->rank - 1;
    int64_t begin, end;
    (void)team;
    cmoei_split(j->rows, index, count, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int64_t oi = 0, oo = 0, rest = r;
        for (int32_t i = last - 1; i >= 0; i--) {
            oi += rest % in->dims[i] * in->strides[i];
            oo += rest % in->dims[i] * out->strides[i];
            rest /= in->dims[i];
        }
        const row ri = {in->dtype, in->strides[last] * bi, (char *)(uintptr_t)in->data + oi * bi};
        const row ro = {out->dtype, out->strides[last] * bo, (char *)out->data + oo * bo};
        (over_f32 ? convert_row_f32 : convert_row)(ri, ro, j->values);
    }
}

cmoe_status cmoe_convert(cmoe_stream *s, cmoe_view in, cmoe_view_mut out, cmoe_error *err)
{
    CMOEI_TRY(cmoei_check_stream(s, err));
    const uint32_t any = ~0u;
    cmoei_want want = {
        .name = "in", .dtypes = any, .rank = CMOEI_MIN(CMOEI_MAX(in.rank, 1), CMOE_MAX_RANK)};
    for (int32_t i = 0; i < CMOE_MAX_RANK; i++)
        want.dims[i] = -1;
    CMOEI_TRY(cmoei_check_in(&in, &want, err));
    want.name = "out";
    const int32_t last = in.rank - 1;
    for (int32_t i = 0; i <= last; i++)
        want.dims[i] = in.dims[i];
    int64_t values = in.dims[last];
    if (packed(in.dtype) && !cmoei_mul(values, 2, &values))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "in: dims[%d] = %" PRId64 " holds more than 2^63 - 1 values", last,
                          in.dims[last]);
    if (packed(out.dtype) && values % 2)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "in: dims[%d] = %" PRId64 ", want an even size to be packed in pairs",
                          last, values);
    want.dims[last] = packed(out.dtype) ? values / 2 : values;
    CMOEI_TRY(cmoei_check_out(&out, &want, err));
    CMOEI_TRY(cmoei_check_apart(&out, "out", &in, "in", err));
    if (cmoei_elements(&in) == 0) return CMOE_OK;

    const int64_t rows = cmoei_elements(&in) / in.dims[last];
    cmoei_region(s->ctx, CMOEI_MIN(rows, cmoei_elements(&in) / TASK_VALUES), convert_rows,
                 &(convert_job){in, out, rows, values});
    return CMOE_OK;
}
