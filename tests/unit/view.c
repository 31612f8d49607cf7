/* SPDX-License-Identifier: MIT
 *
 * view.c - views as they come from outside: every check of core/view.c, each with its text.
 */
#include "unit.h"

#include "core/core.h"

static const cmoei_want rows_of_8 = {
    .name = "x",
    .dtypes = CMOEI_FLOATS,
    .rank = 2,
    .dims = {-1, 8},
    .dim_names = {"tokens", "hidden"},
};

static cmoe_view good(float *data)
{
    return cmoe_view_2d(data, CMOE_F32, 4, 8);
}

static void making(void **state)
{
    (void)state;
    float data[24] = {0};
    const cmoe_view v = cmoe_view_3d(data, CMOE_F32, 2, 3, 4);
    assert_ptr_equal(v.data, data);
    assert_int_equal(v.rank, 3);
    assert_int_equal(v.device, CMOE_HOST);
    assert_int_equal(v.strides[0], 12);
    assert_int_equal(v.strides[1], 4);
    assert_int_equal(v.strides[2], 1);
    assert_int_equal(cmoei_elements(&v), 24);
    assert_ptr_equal(cmoei_at(&v, 1, 2), data + 20);

    const cmoe_view_mut m = cmoe_view_mut_2d(data, CMOE_F32, 4, 6);
    const cmoe_view of = cmoe_view_of(m);
    assert_ptr_equal(cmoei_at_mut(&m, 3, 5), data + 23);
    assert_memory_equal(of.dims, m.dims, sizeof m.dims);
    assert_memory_equal(of.strides, m.strides, sizeof m.strides);
    assert_int_equal(cmoe_view_mut_1d(data, CMOE_I8, 5).dims[0], 5);
    assert_int_equal(cmoe_view_1d(data, CMOE_I8, 5).strides[0], 1);

    const cmoe_view none = cmoe_view_none();
    assert_false(cmoei_given(&none));
    const cmoe_view_mut none_mut = cmoe_view_mut_none();
    assert_null(none_mut.data);
    assert_true(cmoei_given(&v));

    /* Ranks and dims beyond all bounds are for the checks to refuse, not for making to crash on. */
    const int64_t big[6] = {INT64_MAX, INT64_MAX, INT64_MAX, -5, INT64_MIN, 2};
    assert_int_equal(cmoe_view_make(data, CMOE_F32, 7, big).rank, 7);
    assert_int_equal(cmoe_view_make(data, CMOE_F32, -1, big).rank, -1);
    assert_int_equal(cmoe_view_make(data, CMOE_F32, 0, NULL).rank, 0);
    assert_int_equal(cmoe_view_make(data, CMOE_F32, 6, big).dims[4], INT64_MIN);
}

static void shape_and_type(void **state)
{
    (void)state;
    float data[32] = {0};
    cmoe_view v = good(data);
    UNIT_OK(cmoei_check_in(&v, &rows_of_8, &err));

    v.rank = 3;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE,
               "x: rank 3, want 2 [tokens, hidden = 8]");
    v.rank = -1;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE, "x: rank -1, want 2");
    v = cmoe_view_none();
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_ARG, "x is not given");

    v = good(data);
    v.name = "hidden_states";
    v.dtype = CMOE_I8;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_DTYPE,
               "hidden_states: dtype i8 (6), want one of: f32 f16 bf16 f64");
    const int32_t unknown[] = {0, -1, 13, 32, 33, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 7; i++) {
        v.dtype = unknown[i];
        UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_DTYPE, "dtype unknown (");
    }

    v = good(data);
    v.device = 0;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_DEVICE,
               "x: device 0, want -1 (a host tensor on a host stream)");

    v = good(data);
    v.dims[1] = 9;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE,
               "x: dims[1] = 9, want 8 [tokens, hidden = 8]");
    v.dims[0] = -4;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE, "x: dims[0] = -4, want >= 0");
    v.dims[0] = INT64_MIN;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE,
               "x: dims[0] = -9223372036854775808, want >= 0");
}

static void sizes_and_addresses(void **state)
{
    (void)state;
    float data[32] = {0};
    cmoe_view v = good(data);
    v.dims[0] = INT64_MAX / 4;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE,
               "x: dims up to dims[1] = 8 multiply beyond 2^63 - 1");
    v.dims[0] = INT64_MAX / 16;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE, "x: more than 2^63 - 1 bytes");

    v = good(NULL);
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_ARG,
               "x: data is NULL, want 128 bytes");
    v.dims[0] = 0; /* no elements: NULL is fine, but a stride must still fit in bytes */
    v.strides[0] = -(INT64_MAX / 4);
    UNIT_OK(cmoei_check_in(&v, &rows_of_8, &err));
    v.strides[0] = INT64_MIN;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE,
               "x: strides reach outside the address space");
    v = good(data);
    v.reserved = 5;
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_ARG, "x: reserved = 5, want 0");

    const int64_t wild[] = {INT64_MAX, INT64_MIN, INT64_MIN + 1, INT64_MAX / 4, -(INT64_MAX / 4)};
    for (int i = 0; i < 5; i++) {
        v = good(data);
        v.strides[0] = wild[i];
        UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE,
                   "x: strides reach outside the address space");
    }
    v = good(data);
    v.data = (const void *)(uintptr_t)(UINTPTR_MAX - 60);
    UNIT_FAILS(cmoei_check_in(&v, &rows_of_8, &err), CMOE_ERR_SHAPE, "outside the address space");

    /* Inputs may run backwards, repeat themselves, and begin at any byte. */
    v = good(data + 24);
    v.strides[0] = -8;
    UNIT_OK(cmoei_check_in(&v, &rows_of_8, &err));
    v = good(data);
    v.strides[0] = 0;
    UNIT_OK(cmoei_check_in(&v, &rows_of_8, &err));
    v = cmoe_view_2d((const char *)data + 1, CMOE_F32, 3, 8);
    UNIT_OK(cmoei_check_in(&v, &rows_of_8, &err));
}

static void outputs(void **state)
{
    (void)state;
    float data[64] = {0};
    cmoe_view_mut m = cmoe_view_mut_2d(data, CMOE_F32, 4, 8);
    UNIT_OK(cmoei_check_out(&m, &rows_of_8, &err));
    m.strides[0] = 16; /* every other row */
    UNIT_OK(cmoei_check_out(&m, &rows_of_8, &err));
    m.strides[0] = 1; /* transposed */
    m.strides[1] = 4;
    UNIT_OK(cmoei_check_out(&m, &rows_of_8, &err));
    m.strides[1] = 3; /* column 1 of row 0 is row 3 of column 0 */
    UNIT_FAILS(cmoei_check_out(&m, &rows_of_8, &err), CMOE_ERR_SHAPE,
               "x: strides are negative or make elements share memory");
    m.strides[0] = 0;
    m.strides[1] = 1;
    UNIT_FAILS(cmoei_check_out(&m, &rows_of_8, &err), CMOE_ERR_SHAPE, "share memory");
    m.strides[0] = 7;
    UNIT_FAILS(cmoei_check_out(&m, &rows_of_8, &err), CMOE_ERR_SHAPE, "share memory");
    m.data = data + 32;
    m.strides[0] = -8;
    UNIT_FAILS(cmoei_check_out(&m, &rows_of_8, &err), CMOE_ERR_SHAPE, "negative");
    m.dims[0] = 1; /* a stride that is never taken does not matter */
    UNIT_OK(cmoei_check_out(&m, &rows_of_8, &err));
    m.dims[0] = 0;
    m.strides[1] = 0;
    UNIT_OK(cmoei_check_out(&m, &rows_of_8, &err));
    m.dims[0] = 4;
    m.data = NULL;
    UNIT_FAILS(cmoei_check_out(&m, &rows_of_8, &err), CMOE_ERR_ARG, "data is NULL");
}

static void overlap(void **state)
{
    (void)state;
    float data[128] = {0};
    cmoe_view in = cmoe_view_2d(data, CMOE_F32, 4, 8);
    cmoe_view_mut out = cmoe_view_mut_2d(data + 32, CMOE_F32, 4, 8);
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err)); /* neighbours */
    out.data = data + 31;
    UNIT_FAILS(cmoei_check_apart(&out, "out", &in, "in", &err), CMOE_ERR_ARG,
               "out overlaps in in memory, want separate tensors");
    out.data = (char *)data + 127; /* the last byte */
    out.name = "rows";
    UNIT_FAILS(cmoei_check_apart(&out, "out", &in, "in", &err), CMOE_ERR_ARG,
               "rows overlaps in in memory");
    in = cmoe_view_2d((char *)data + 255, CMOE_F32, 4, 8); /* begins where out has its last byte */
    out.data = (char *)data + 128;
    UNIT_FAILS(cmoei_check_apart(&out, "out", &in, "in", &err), CMOE_ERR_ARG, "overlaps");
    in.data = (char *)data + 256;
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err));
    in.data = data;
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err));

    in = cmoe_view_2d(data + 56, CMOE_F32, 4, 8); /* backwards over 32..63 */
    in.strides[0] = -8;
    out.data = data + 32;
    UNIT_FAILS(cmoei_check_apart(&out, "out", &in, "in", &err), CMOE_ERR_ARG, "overlaps");
    out.data = data + 64;
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err));
    out.data = data;
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err));

    out.data = data + 40;
    out.dims[0] = 0; /* without elements: nothing to share */
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err));
    out.dims[0] = 4;
    in.data = NULL;
    UNIT_OK(cmoei_check_apart(&out, "out", &in, "in", &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(making),
        cmocka_unit_test(shape_and_type),
        cmocka_unit_test(sizes_and_addresses),
        cmocka_unit_test(outputs),
        cmocka_unit_test(overlap),
    };
    return UNIT_RUN("unit_view", tests);
}
