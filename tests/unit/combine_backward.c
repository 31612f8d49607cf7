/* SPDX-License-Identifier: MIT
 *
 * combine_backward.c - backward of a combine: every text of an error, and outputs left out.
 */
#include "groups.h"

#include <math.h>

enum { T = 3, K = 2, H = 5, R = 6 };

/* Valid arguments, to be spoiled one at a time. */
typedef struct fixture {
    unit_env env;
    cmoe_combine_options o;
    cmoe_groups g;
    int64_t first[2];
    int32_t row_of[T * K], slots[R];
    float x[R * H], w[T * K], y[T * H], dx[R * H], dw[T * K];
    cmoe_view rows, weights, dout;
    cmoe_view_mut drows, dweights;
} fixture;

static void open_fixture(fixture *f)
{
    memset(f, 0, sizeof *f);
    f->env = unit_open(2);
    cmoe_combine_options_default(&f->o, sizeof f->o);
    for (int i = 0; i < R; i++) {
        f->row_of[i] = R - 1 - i;
        f->slots[i] = R - 1 - i;
        f->w[i] = (float)i - 2;
        f->dw[i] = 7;
    }
    for (int i = 0; i < R * H; i++) {
        f->x[i] = (float)(i % 7);
        f->dx[i] = 7;
    }
    for (int i = 0; i < T * H; i++)
        f->y[i] = (float)(i % 3) - 1;
    f->first[1] = R;
    f->g = (cmoe_groups){T, K, R, f->first, f->row_of, f->slots, 1};
    f->rows = cmoe_view_2d(f->x, CMOE_F32, R, H);
    f->weights = cmoe_view_2d(f->w, CMOE_F32, T, K);
    f->dout = cmoe_view_2d(f->y, CMOE_F32, T, H);
    f->drows = cmoe_view_mut_2d(f->dx, CMOE_F32, R, H);
    f->dweights = cmoe_view_mut_2d(f->dw, CMOE_F32, T, K);
}

static cmoe_status backward(fixture *f, const cmoe_groups *g, cmoe_error *err)
{
    return cmoe_combine_backward(f->env.stream, &f->o, f->rows, f->weights, g, f->dout, f->drows,
                                 f->dweights, err);
}

#define SPOILED(spoil, status, text)                         \
    do {                                                     \
        fixture f;                                           \
        open_fixture(&f);                                    \
        const cmoe_groups *g = &f.g;                         \
        spoil;                                               \
        UNIT_FAILS(backward(&f, g, &err), status, text);     \
        for (int i_ = 0; i_ < R * H; i_++)                   \
            assert_true(f.dx[i_] == 7 && f.dw[i_ % R] == 7); \
        unit_close(&f.env);                                  \
    } while (0)

static void errors(void **state)
{
    (void)state;
    SPOILED(g = NULL, CMOE_ERR_ARG, "groups is NULL");
    SPOILED(f.o.scale = 0, CMOE_ERR_RANGE, "scale = 0");
    SPOILED(f.o.shared_first = 2, CMOE_ERR_RANGE, "shared_first = 2");
    SPOILED(f.rows = cmoe_view_none(), CMOE_ERR_ARG, "rows: not given, want them for dweights");
    SPOILED(f.rows.dims[1] = 4, CMOE_ERR_SHAPE, "rows: dims[1] = 4, want 5");
    SPOILED(f.rows.dtype = CMOE_BF16, CMOE_ERR_DTYPE, "rows");
    SPOILED(f.rows.strides[1] = 2, CMOE_ERR_SHAPE, "rows: strides[1] = 2, want 1");
    SPOILED(f.dout = cmoe_view_none(), CMOE_ERR_ARG, "dout");
    SPOILED(f.dout.dims[0] = 2, CMOE_ERR_SHAPE, "dout: dims[0] = 2, want 3");
    SPOILED(f.dout.dtype = CMOE_F16, CMOE_ERR_DTYPE, "dout");
    SPOILED(f.weights.dims[1] = 1, CMOE_ERR_SHAPE, "weights: dims[1] = 1, want 2");
    SPOILED(f.drows.dims[0] = 5, CMOE_ERR_SHAPE, "drows: dims[0] = 5, want 6");
    SPOILED(f.dweights.dims[1] = 1, CMOE_ERR_SHAPE, "dweights: dims[1] = 1, want 2");
    SPOILED((f.drows.strides[0] = 1, f.drows.strides[1] = R), CMOE_ERR_SHAPE,
            "drows: strides[1] = 6, want 1");
    SPOILED(f.row_of[3] = 6, CMOE_ERR_RANGE, "row_of[1, 1] = 6, want -1 <= row < 6");
    SPOILED(f.row_of[3] = 5, CMOE_ERR_RANGE, "slots[5] is not slot 3");
    SPOILED(f.g.slots = NULL, CMOE_ERR_RANGE, "slots[5] is not slot 0");
    SPOILED(f.drows.data = f.x, CMOE_ERR_ARG, "drows overlaps rows");
    SPOILED(f.dout.data = f.dx, CMOE_ERR_ARG, "drows overlaps dout");
    SPOILED(f.weights.data = f.dw, CMOE_ERR_ARG, "dweights overlaps weights");
    SPOILED(f.dweights.data = f.dx, CMOE_ERR_ARG, "dweights overlaps drows");
    SPOILED(f.drows.data = f.row_of, CMOE_ERR_ARG, "drows overlaps groups.row_of");
}

static void outputs_left_out(void **state)
{
    (void)state;
    fixture both, f;
    open_fixture(&both);
    both.row_of[1] = -1; /* its row is padding now: not written */
    UNIT_OK(backward(&both, &both.g, &err));
    assert_true(both.dw[1] == 0);
    for (int h = 0; h < H; h++)
        assert_true(both.dx[4 * H + h] == 7 && both.dx[5 * H + h] == -2 * both.y[h]);
    for (int left = 0; left < 3; left++) {
        open_fixture(&f);
        f.row_of[1] = -1;
        if (left != 0) f.drows = cmoe_view_mut_none();
        if (left != 1) f.dweights = cmoe_view_mut_none();
        if (left != 1) f.rows = cmoe_view_none();
        UNIT_OK(backward(&f, &f.g, &err));
        for (int i = 0; i < R * H; i++)
            assert_true(f.dx[i] == (left == 0 ? both.dx[i] : 7));
        for (int i = 0; i < R; i++)
            assert_true(f.dw[i] == (left == 1 ? both.dw[i] : 7));
        unit_close(&f.env);
    }
    unit_close(&both.env);
    open_fixture(&f); /* no columns: empty sums */
    f.rows = cmoe_view_2d(NULL, CMOE_F32, R, 0);
    f.dout = cmoe_view_2d(NULL, CMOE_F32, T, 0);
    f.drows = cmoe_view_mut_2d(NULL, CMOE_F32, R, 0);
    UNIT_OK(backward(&f, &f.g, &err));
    for (int i = 0; i < R; i++)
        assert_true(f.dw[i] == 0);
    unit_close(&f.env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors),
        cmocka_unit_test(outputs_left_out),
    };
    return UNIT_RUN("unit_combine_backward", tests);
}
