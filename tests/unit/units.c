/* SPDX-License-Identifier: MIT
 *
 * units.c - the units of a training step: their checks, and the tree of their sums.
 */
#include "unit.h"

#include "core/units.h"

static void whole(void **state)
{
    (void)state;
    cmoe_units u;
    int64_t one[2];
    UNIT_OK(cmoei_units_check(NULL, 9, &u, one, &err));
    assert_int_equal(u.count, 1);
    assert_int_equal(u.first[0], 0);
    assert_int_equal(u.first[1], 9);
    const int64_t first[] = {0, 0, 3, 3, 9};
    UNIT_OK(cmoei_units_check(&(cmoe_units){4, first}, 9, &u, one, &err));
    assert_int_equal(u.count, 4);
    assert_ptr_equal(u.first, first);
}

static void errors(void **state)
{
    (void)state;
    cmoe_units u;
    int64_t one[2], first[129] = {0, 2, 1, 3, 4};
    const int64_t counts[] = {-1, 0, 3, 65, 128, INT64_MIN};
    for (int i = 0; i < 6; i++)
        UNIT_FAILS(cmoei_units_check(&(cmoe_units){counts[i], first}, 4, &u, one, &err),
                   CMOE_ERR_RANGE, ", want a power of two from 1 to 64");
    UNIT_FAILS(cmoei_units_check(&(cmoe_units){4, NULL}, 4, &u, one, &err), CMOE_ERR_ARG,
               "units: first is NULL, want 5 numbers");
    UNIT_FAILS(cmoei_units_check(&(cmoe_units){4, first}, 4, &u, one, &err), CMOE_ERR_RANGE,
               "units: first[2] = 1, want at least first[1] = 2");
    UNIT_FAILS(cmoei_units_check(&(cmoe_units){1, first}, 4, &u, one, &err), CMOE_ERR_RANGE,
               "units: first[1] = 2, want 4 (tokens)");
    UNIT_FAILS(cmoei_units_check(&(cmoe_units){2, first + 1}, 4, &u, one, &err), CMOE_ERR_RANGE,
               "units: first[0] = 2, want 0");
}

static void contiguous(void **state)
{
    (void)state;
    float x[12] = {0};
    cmoe_view v = cmoe_view_2d(x, CMOE_F32, 2, 3);
    const cmoei_want want = {
        .name = "x", .rank = 2, .dims = {-1, -1}, .dim_names = {"rows", "hidden"}};
    UNIT_OK(cmoei_check_rows(&v, &want, &err));
    v.strides[0] = 7;
    UNIT_OK(cmoei_check_rows(&v, &want, &err));
    v.strides[0] = 6, v.strides[1] = 2;
    UNIT_FAILS(cmoei_check_rows(&v, &want, &err), CMOE_ERR_SHAPE,
               "x: strides[1] = 2, want 1 (contiguous)");
    v.dtype = CMOE_BF16;
    UNIT_FAILS(cmoei_check_rows(&v, &want, &err), CMOE_ERR_DTYPE, "x: dtype bf16");
    cmoe_view_mut m = cmoe_view_mut_2d(x, CMOE_F32, 2, 3);
    UNIT_OK(cmoei_check_rows_out(&m, &want, &err));
    m.strides[0] = 6, m.strides[1] = 2;
    UNIT_FAILS(cmoei_check_rows_out(&m, &want, &err), CMOE_ERR_SHAPE,
               "x: strides[1] = 2, want 1 (contiguous)");
}

/* The tree as it is defined: pairs of neighbours until one is left. */
static void trees(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= CMOE_UNITS_MOST; n *= 2) {
        float v[2 * CMOE_UNITS_MOST], w[2 * CMOE_UNITS_MOST], rows[2 * CMOEI_UNITS_ROWS];
        for (int64_t i = 0; i < 2 * n; i++)
            v[i] = w[i] = cmoe_random_normal(5, (uint64_t)i, (uint64_t)n);
        for (int64_t u = 0; u < n; u++) {
            memcpy(rows + 2 * cmoei_units_row(u), v + 2 * u, 2 * sizeof *v);
            cmoei_units_fold(rows, 2, u, 2);
        }
        cmoei_units_tree(w, 2, n, 2);
        for (int64_t m = n; m > 1; m /= 2) {
            for (int64_t i = 0; i < m / 2; i++) {
                v[2 * i] = v[4 * i] + v[4 * i + 2];
                v[2 * i + 1] = v[4 * i + 1] + v[4 * i + 3];
            }
        }
        assert_memory_equal(w, v, 2 * sizeof *v);
        assert_memory_equal(rows, v, 2 * sizeof *v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole),
        cmocka_unit_test(errors),
        cmocka_unit_test(contiguous),
        cmocka_unit_test(trees),
    };
    return UNIT_RUN("unit_units", tests);
}
