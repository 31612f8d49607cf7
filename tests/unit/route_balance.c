/* SPDX-License-Identifier: MIT
 *
 * route_balance.c - the load-balancing loss against its formula written out, and expert loads.
 */
#include "route.h"

static double loss_by_hand(const float *x, const int32_t *ids, const int32_t *mask, int64_t tokens,
                           int64_t experts, int64_t topk)
{
    double n = 0, loss = 0;
    for (int64_t t = 0; t < tokens; t++)
        n += !mask || mask[t];
    for (int64_t e = 0; e < experts; e++) {
        double f = 0, p = 0;
        for (int64_t t = 0; t < tokens; t++) {
            if (mask && !mask[t]) continue;
            double sum = 0;
            for (int64_t i = 0; i < experts; i++)
                sum += exp((double)x[t * experts + i]);
            p += exp((double)x[t * experts + e]) / sum / n;
            for (int64_t k = 0; k < topk; k++)
                f += (ids[t * topk + k] == e) / (n * (double)topk);
        }
        loss += (double)experts * f * p;
    }
    return loss;
}

static void balance_loss(void **state)
{
    (void)state;
    const struct {
        int64_t tokens, experts, topk;
    } shapes[] = {{1, 1, 1}, {40, 12, 3}, {100, 30, 4}, {3, 300, 5}, {2, 1500, 7}};
    unit_env e = unit_open(2);
    for (int i = 0; i < 5; i++) {
        const int64_t T = shapes[i].tokens, E = shapes[i].experts, K = shapes[i].topk;
        float *x = normals((uint64_t)i, T * E, 2);
        const cmoe_route_options o = options(K, CMOE_SCORE_SOFTMAX);
        result r = route(&o, x, NULL, T, E);
        int32_t mask[100];
        for (int t = 0; t < T; t++)
            mask[t] = t % 3 != 1;
        r.ids[0] = -1; /* a dropped slot stays a slot */
        for (int masked = 0; masked < 2; masked++) {
            double loss;
            UNIT_OK(cmoe_route_balance_loss(
                e.stream, cmoe_view_2d(x, CMOE_F32, T, E), cmoe_view_2d(r.ids, CMOE_I32, T, K),
                masked ? cmoe_view_1d(mask, CMOE_I32, T) : cmoe_view_none(), &loss, &err));
            const double want = loss_by_hand(x, r.ids, masked ? mask : NULL, T, E, K);
            assert_true(fabs(loss - want) <= 1e-5 * want);
        }
        result_free(&r);
        free(x);
    }
    unit_close(&e);
}

static void balance_loss_of_special_routes(void **state)
{
    (void)state;
    const float x[8] = {0};
    const int64_t even[8] = {0, 1, 2, 3, 3, 2, 1, 0};
    const int32_t none[2] = {0, 0};
    unit_env e = unit_open(1);
    double loss = -1;
    const cmoe_view logits = cmoe_view_2d(x, CMOE_F32, 2, 4);
    UNIT_OK(cmoe_route_balance_loss(e.stream, logits, cmoe_view_2d(even, CMOE_I64, 2, 4),
                                    cmoe_view_none(), &loss, &err));
    assert_true(loss == 1); /* perfectly balanced */
    UNIT_OK(cmoe_route_balance_loss(e.stream, logits, cmoe_view_2d(even, CMOE_I64, 2, 4),
                                    cmoe_view_1d(none, CMOE_I32, 2), &loss, &err));
    assert_true(loss == 0); /* all padding */
    UNIT_OK(cmoe_route_balance_loss(e.stream, cmoe_view_2d(NULL, CMOE_F32, 0, 4),
                                    cmoe_view_2d(NULL, CMOE_I32, 0, 4), cmoe_view_none(), &loss,
                                    &err));
    assert_true(loss == 0);
    UNIT_OK(cmoe_route_balance_loss(e.stream, logits, cmoe_view_2d(NULL, CMOE_I32, 2, 0),
                                    cmoe_view_none(), &loss, &err));
    assert_true(loss == 0);
    loss = 7;
    UNIT_FAILS(cmoe_route_balance_loss(e.stream, cmoe_view_1d(x, CMOE_F32, 8),
                                       cmoe_view_2d(even, CMOE_I64, 2, 4), cmoe_view_none(), &loss,
                                       &err),
               CMOE_ERR_SHAPE, "logits: rank 1, want 2 [tokens, experts]");
    UNIT_FAILS(cmoe_route_balance_loss(e.stream, logits, cmoe_view_2d(even, CMOE_I64, 1, 4),
                                       cmoe_view_none(), &loss, &err),
               CMOE_ERR_SHAPE, "ids: dims[0] = 1, want 2 [tokens = 2, topk]");
    UNIT_FAILS(cmoe_route_balance_loss(e.stream, logits, cmoe_view_2d(even, CMOE_I64, 2, 4),
                                       cmoe_view_1d(even, CMOE_I64, 2), &loss, &err),
               CMOE_ERR_DTYPE, "mask: dtype i64 (9), want one of: i32");
    UNIT_FAILS(cmoe_route_balance_loss(e.stream, logits, cmoe_view_2d(even, CMOE_I64, 2, 4),
                                       cmoe_view_none(), NULL, &err),
               CMOE_ERR_ARG, "loss is NULL, want a place for the result");
    assert_true(loss == 7);
    unit_close(&e);
}

static void load(void **state)
{
    (void)state;
    const int64_t ids[2][3] = {{3, -1, 3}, {0, 4, INT64_MAX}};
    char block[4 * 16 + 1];
    unit_env e = unit_open(1);
    cmoe_view_mut counts = cmoe_view_mut_1d(block + 1, CMOE_I64, 4);
    counts.strides[0] = 2;
    UNIT_OK(cmoe_route_load(e.stream, cmoe_view_2d(ids, CMOE_I64, 2, 3), counts, &err));
    const int64_t want[4] = {1, 0, 0, 2};
    for (int i = 0; i < 4; i++)
        assert_memory_equal(block + 1 + 16 * i, &want[i], 8);
    const int32_t narrow[2] = {1, 1};
    UNIT_OK(cmoe_route_load(e.stream, cmoe_view_2d(narrow, CMOE_I32, 1, 2), counts, &err));
    assert_memory_equal(block + 1 + 16, ((int64_t[]){2}), 8);
    UNIT_OK(cmoe_route_load(e.stream, cmoe_view_2d(NULL, CMOE_I32, 0, 2), counts, &err));
    /* Any number of tokens without slots is nothing to do. */
    UNIT_OK(cmoe_route_load(e.stream, cmoe_view_2d(NULL, CMOE_I32, INT64_MAX, 0), counts, &err));
    assert_memory_equal(block + 1 + 16, ((int64_t[]){0}), 8);
    UNIT_FAILS(cmoe_route_load(e.stream, cmoe_view_2d(narrow, CMOE_F32, 1, 2), counts, &err),
               CMOE_ERR_DTYPE, "ids: dtype f32 (1), want one of: i32 i64");
    UNIT_FAILS(cmoe_route_load(e.stream, cmoe_view_2d(narrow, CMOE_I32, 1, 2),
                               cmoe_view_mut_1d(block, CMOE_I32, 4), &err),
               CMOE_ERR_DTYPE, "counts: dtype i32 (8), want one of: i64");
    UNIT_FAILS(cmoe_route_load(e.stream, cmoe_view_2d(block, CMOE_I32, 1, 2),
                               cmoe_view_mut_1d(block, CMOE_I64, 4), &err),
               CMOE_ERR_ARG, "counts overlaps ids in memory, want separate tensors");
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(balance_loss),
        cmocka_unit_test(balance_loss_of_special_routes),
        cmocka_unit_test(load),
    };
    return UNIT_RUN("unit_route_balance", tests);
}
