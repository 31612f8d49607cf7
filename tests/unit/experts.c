/* SPDX-License-Identifier: MIT
 *
 * experts.c - whole MLPs against the oracle of mlp_oracle.h: every option, format, instruction set
 * and number of threads; the oracle's own power to see a wrong option; and the named cases.
 */
#include "isa.h"
#include "mlp_oracle.h"

static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};
static const int32_t floats[] = {CMOE_F32, CMOE_F16, CMOE_BF16, CMOE_F64};

static mlp sizes(uint64_t seed, int32_t format, int64_t T, int64_t K, int64_t E, int64_t H,
                 int64_t I)
{
    mlp m = {.seed = seed, .T = T, .K = K, .E = E, .H = H, .I = I};
    cmoe_experts_options_default(&m.o, sizeof m.o);
    m.o.format = format;
    m.x_dtype = m.w_dtype = m.w2_dtype = m.bias_dtype = m.weight_dtype = m.out_dtype = CMOE_F32;
    m.id_dtype = CMOE_I32;
    return m;
}

/* Every option is as likely set as not. */
static mlp random_mlp(uint64_t seed, int32_t format)
{
    static const int64_t dims[] = {1, 2, 7, 16, 17, 31, 33, 48, 65};
    mlp m = sizes(seed, format, 1, 1, 1, 1, 1);
    m.T = mlp_draw(&m, 1, 9);
    m.K = mlp_draw(&m, 1, 4);
    m.E = mlp_draw(&m, 1, 4);
    m.H = dims[mlp_draw(&m, 0, CMOEI_COUNT(dims) - 1)];
    m.I = dims[mlp_draw(&m, 0, CMOEI_COUNT(dims) - 1)];
    m.o.activation = (int32_t)mlp_draw(&m, 0, 3);
    m.o.ungated = m.o.activation != CMOE_ACT_SWIGLU_OSS && mlp_draw(&m, 0, 2) == 0;
    m.o.row_dtype = mlp_draw(&m, 0, 1) ? CMOE_BF16 : 0;
    m.o.swiglu_limit = mlp_draw(&m, 0, 1) ? 0.8f : 0;
    m.o.alpha = mlp_draw(&m, 0, 1) ? (mlp_draw(&m, 0, 3) ? 0.9f : -1.1f) : 0;
    m.o.up_first = (int32_t)mlp_draw(&m, 0, 1);
    m.o.interleaved = (int32_t)mlp_draw(&m, 0, 1);
    m.o.transposed = (int32_t)mlp_draw(&m, 0, 1);
    m.o.borrow = mlp_draw(&m, 0, 3) == 0;
    m.o.round_gate_up = (int32_t)mlp_draw(&m, 0, 1);
    m.o.round_act = (int32_t)mlp_draw(&m, 0, 1);
    m.o.weight_at = (int32_t)mlp_draw(&m, 0, 1);
    m.o.first_expert = mlp_draw(&m, 0, 1) ? mlp_draw(&m, 0, 5) : 0;
    m.o.chunk = mlp_draw(&m, 0, 1) ? mlp_draw(&m, 1, 5) : 0;
    m.x_dtype = floats[mlp_draw(&m, 0, 3)];
    m.w_dtype = m.w2_dtype = floats[mlp_draw(&m, 0, 3)];
    if (mlp_draw(&m, 0, 3) == 0) m.w2_dtype = floats[mlp_draw(&m, 0, 3)];
    if (mlp_draw(&m, 0, 3) == 0) m.w_dtype = m.w2_dtype = CMOE_F8E4M3;
    if (format == CMOE_I8 && mlp_draw(&m, 0, 1)) m.w_dtype = m.w2_dtype = CMOE_I8;
    m.bias_dtype = floats[mlp_draw(&m, 0, 3)];
    m.weight_dtype = floats[mlp_draw(&m, 0, 3)];
    m.out_dtype = floats[mlp_draw(&m, 0, 3)];
    m.id_dtype = mlp_draw(&m, 0, 1) ? CMOE_I64 : CMOE_I32;
    m.odd = (int32_t)mlp_draw(&m, 0, 3);
    m.pad = mlp_draw(&m, 0, 1) ? (int32_t)mlp_draw(&m, 1, 3) : 0;
    mlp_fill(&m, mlp_draw(&m, 0, 1), mlp_draw(&m, 0, 1));
    return m;
}

/* Contexts of one instruction set with 1, 2 and 3 threads. */
typedef struct levels {
    const char *name[8];
    unit_env env[8][3];
    int n;
} levels;

static void levels_open(levels *l)
{
    l->n = 0;
    ISA_EACH(isa)
    {
        l->name[l->n] = isa;
        for (int32_t t = 0; t < 3; t++)
            l->env[l->n][t] = unit_open_isa(t + 1, isa);
        l->n++;
    }
}

static void levels_close(levels *l)
{
    for (int i = 0; i < l->n; i++) {
        for (int t = 0; t < 3; t++)
            unit_close(&l->env[i][t]);
    }
}

static void check_everywhere(mlp *m, const levels *l, int threads)
{
    double *got = calloc((size_t)(m->T * m->H + 1), sizeof *got);
    for (int i = 0; i < l->n; i++) {
        for (int t = 0; t < 3; t++) {
            if (threads >= 0 && t != threads) continue;
            mlp_run(m, &l->env[i][t], got);
            oracle_check(m, l->name[i], got);
        }
    }
    free(got);
}

static void every_option(void **state)
{
    enum { CASES = 150 };
    levels l;
    (void)state;
    levels_open(&l);
    for (int f = 0; f < 3; f++) {
        for (int i = 0; i < CASES; i++) {
            mlp m = random_mlp((uint64_t)(1000 * f + i), formats[f]);
            check_everywhere(&m, &l, i % 10 ? i % 3 : -1);
            mlp_free(&m);
        }
    }
    levels_close(&l);
}

/* ---- the oracle must be able to fail --------------------------------------------------------- */

/* Values that make every option matter: some sums beyond the limit, outputs in float32. */
static mlp telling(int32_t format)
{
    mlp m = sizes(77, format, 6, 3, 3, 33, 17);
    m.o.swiglu_limit = 0.8f;
    m.o.alpha = 0.9f;
    m.o.row_dtype = CMOE_BF16;
    m.o.round_gate_up = m.o.round_act = 1;
    m.o.activation = CMOE_ACT_SWIGLU_OSS;
    mlp_fill(&m, true, true);
    return m;
}

static void swap(double **a, double **b)
{
    double *c = *a;
    *a = *b;
    *b = c;
}

enum { LIES = 20 };

/* Changes one thing; NULL behind the last. */
static const char *lie(mlp *m, int which)
{
    switch (which) {
    case 0:
        swap(&m->gate, &m->up);
        return "gate and up swapped";
    case 1:
        m->bgate = NULL;
        return "no bias of the gate";
    case 2:
        m->bup = NULL;
        return "no bias of up";
    case 3:
        m->bdown = NULL;
        return "no bias of down";
    case 4:
        swap(&m->bgate, &m->bup);
        return "biases swapped";
    case 5:
        m->o.swiglu_limit = 0;
        return "no limit";
    case 6:
        m->o.swiglu_limit = 0.81f;
        return "another limit";
    case 7:
        m->o.alpha = 0.91f;
        return "another alpha";
    case 8:
        m->o.activation = CMOE_ACT_SILU;
        return "another activation";
    case 9:
        m->o.round_gate_up = 0;
        return "gate and up not rounded";
    case 10:
        m->o.round_act = 0;
        return "activation not rounded";
    case 11:
        m->o.row_dtype = CMOE_F32;
        return "rows not rounded";
    case 12:
        m->o.weight_at = CMOE_WEIGHT_ROW;
        return "weights before rounding";
    case 13:
        m->shared = NULL;
        return "no shared row";
    case 14:
        m->o.first_expert = 1;
        return "experts one further";
    case 15:
        m->E--;
        return "last expert left out";
    case 16:
        m->x[4] += 0.01;
        return "another x";
    case 17:
        m->down[5] += 0.02;
        return "another weight of down";
    case 18:
        m->weights[0] *= 1.01;
        return "another routing weight";
    case 19:
        m->o.ungated = 1;
        m->up = NULL;
        m->o.activation = CMOE_ACT_SILU;
        return "no gate";
    default:
        return NULL;
    }
}

static void the_oracle_sees(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    for (int f = 0; f < 3; f++) {
        mlp m = telling(formats[f]);
        /* Every expert is used, the first one by the weight that a lie changes. */
        for (int64_t i = 0; i < m.T * m.K; i++)
            m.ids[i] = i % m.E;
        const int64_t n = m.T * m.H;
        double *got = calloc((size_t)n, sizeof *got), *exact = calloc((size_t)n, sizeof *exact);
        near *want = calloc((size_t)n, sizeof *want);
        mlp_run(&m, &e, got);
        oracle_check(&m, "truth", got);
        for (int i = 0; i < LIES; i++) {
            mlp wrong = telling(formats[f]);
            memcpy(wrong.ids, m.ids, (size_t)(m.T * m.K) * sizeof *m.ids);
            const char *what = lie(&wrong, i);
            int64_t at, bad;
            oracle_run(&wrong, want);
            if (formats[f] == CMOE_I8) {
                exact_run(&wrong, exact);
                for (int64_t j = 0; j < n; j++)
                    want[j] = (near){exact[j], 0};
            }
            bad = oracle_bad(want, got, n, &at);
            if (bad < 1)
                fail_msg("%s: the oracle does not see \"%s\"", cmoe_dtype_name(formats[f]), what);
            mlp_free(&wrong);
        }
        assert_null(lie(&m, LIES));
        free(got);
        free(exact);
        free(want);
        mlp_free(&m);
    }
    /* A format is seen too: float32 is not bf16. */
    mlp m = telling(CMOE_F32);
    double *got = calloc((size_t)(m.T * m.H), sizeof *got);
    near *want = calloc((size_t)(m.T * m.H), sizeof *want);
    int64_t at;
    mlp_run(&m, &e, got);
    m.o.format = CMOE_BF16;
    oracle_run(&m, want);
    assert_true(oracle_bad(want, got, m.T * m.H, &at) > 0);
    free(got);
    free(want);
    mlp_free(&m);
    unit_close(&e);
}

/* ---- named cases ----------------------------------------------------------------------------- */

static void set_ids(mlp *m, int64_t (*id)(int64_t slot))
{
    for (int64_t i = 0; i < m->T * m->K; i++)
        m->ids[i] = id(i);
}

static int64_t always_two(int64_t slot)
{
    (void)slot;
    return 2;
}
static int64_t twice_in_a_token(int64_t slot)
{
    return slot / 4 % 3;
}
static int64_t ends_only(int64_t slot)
{
    return slot % 2 ? 6 : 0;
}
static int64_t nobodys(int64_t slot)
{
    return slot % 3 - 10;
}

static void one_case(int64_t T, int64_t K, int64_t E, int64_t H, int64_t I,
                     int64_t (*id)(int64_t slot))
{
    levels l;
    levels_open(&l);
    for (int f = 0; f < 3; f++) {
        mlp m = sizes((uint64_t)(T + 7 * H), formats[f], T, K, E, H, I);
        mlp_fill(&m, true, false);
        if (id) set_ids(&m, id);
        check_everywhere(&m, &l, -1);
        mlp_free(&m);
    }
    levels_close(&l);
}

/* More rows than a block has, so that several blocks and uneven tiles are walked. */
static void one_expert_owns_all_tokens(void **state)
{
    (void)state;
    one_case(205, 1, 4, 17, 9, always_two);
}

static void empty_experts(void **state)
{
    (void)state;
    one_case(6, 2, 7, 20, 12, ends_only);
    one_case(6, 2, 7, 20, 12, nobodys);
}

static void no_tokens(void **state)
{
    (void)state;
    one_case(0, 3, 4, 17, 9, NULL);
}

static void no_slots(void **state)
{
    (void)state;
    one_case(5, 0, 4, 17, 9, NULL);
}

static void repeated_expert_in_one_token(void **state)
{
    (void)state;
    one_case(5, 4, 3, 33, 16, twice_in_a_token);
}

static void no_multiple_of_any_tile(void **state)
{
    static const int64_t dims[] = {1, 15, 17, 33, 100};
    (void)state;
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++)
            one_case(3, 2, 2, dims[i], dims[j], NULL);
}

/* Without hidden units only the biases are left; without columns nothing is. */
static void nothing_inside(void **state)
{
    (void)state;
    one_case(4, 2, 3, 9, 0, NULL);
    one_case(4, 2, 3, 0, 9, NULL);
}

/* Weights of -128 against inputs of -127 and 127: the sums that shortcuts over |w| or unsigned
 * weights get wrong.  Inputs are constant in magnitude, so that each becomes +-127. */
static void int8_weights_of_minus_128(void **state)
{
    static const int64_t dims[][2] = {{1, 1}, {4, 3}, {17, 33}, {64, 16}, {257, 40}, {1024, 19}};
    (void)state;
    levels l;
    levels_open(&l);
    for (int i = 0; i < 6; i++) {
        for (int ungated = 0; ungated < 2; ungated++) {
            mlp m = sizes((uint64_t)i, CMOE_I8, 5, 2, 2, dims[i][0], dims[i][1]);
            m.w_dtype = m.w2_dtype = CMOE_I8;
            m.o.ungated = ungated;
            m.o.activation = ungated ? CMOE_ACT_RELU2 : CMOE_ACT_GELU_TANH;
            mlp_fill(&m, false, false);
            for (int64_t j = 0; j < m.E * m.H * m.I; j++)
                m.gate[j] = m.down[j] = -128;
            for (int64_t t = 0; t < m.T; t++)
                for (int64_t h = 0; h < m.H; h++)
                    m.x[t * m.H + h] = t == 0 ? -3 : t == 1 ? 3 : t == 2 ? (h % 2 ? 3 : -3) : 0;
            check_everywhere(&m, &l, i % 3);
            mlp_free(&m);
        }
    }
    levels_close(&l);
}

/* The longest reduction that int8 takes, and the largest sum: -128 * 127 * 131072. */
static void int8_at_its_longest(void **state)
{
    (void)state;
    levels l;
    levels_open(&l);
    mlp m = sizes(3, CMOE_I8, 2, 1, 1, 131072, 1);
    m.w_dtype = m.w2_dtype = CMOE_I8;
    m.o.ungated = 1;
    mlp_fill(&m, false, false);
    for (int64_t h = 0; h < m.H; h++) {
        m.gate[h] = -128;
        m.x[h] = 1;
        m.x[m.H + h] = -1;
    }
    m.sgate[0] = 0x1p-30;
    set_ids(&m, nobodys);
    m.ids[0] = m.ids[1] = 0;
    check_everywhere(&m, &l, 0);
    mlp_free(&m);
    levels_close(&l);
}

/* w13 says what the format is when nobody else does, whatever w2 is. */
static void format_of_w13(void **state)
{
    static const int32_t stored[] = {CMOE_F32, CMOE_BF16, CMOE_F16, CMOE_F64, CMOE_F8E4M3};
    static const int32_t want[] = {CMOE_F32, CMOE_BF16, CMOE_BF16, CMOE_F32, CMOE_BF16};
    (void)state;
    unit_env e = unit_open(2);
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 5; j++) {
            mlp m = sizes((uint64_t)(5 * i + j), 0, 4, 2, 2, 12, 10);
            double got[4 * 12];
            cmoe_experts *x = NULL;
            cmoe_experts_info info = {.size = sizeof info};
            m.w_dtype = stored[i];
            m.w2_dtype = stored[j];
            mlp_fill(&m, false, false);
            UNIT_OK(mlp_create(&m, e.ctx, &x, &err));
            UNIT_OK(cmoe_experts_describe(x, &info, &err));
            assert_int_equal(info.format, want[i]);
            cmoe_experts_free(x);
            mlp_run(&m, &e, got);
            m.o.format = want[i];
            oracle_check(&m, "default format", got);
            mlp_free(&m);
        }
    }
    unit_close(&e);
}

static void described(void **state)
{
    (void)state;
    unit_env e = unit_open_isa(1, "ref");
    mlp m = sizes(1, CMOE_I8, 1, 1, 3, 6, 4);
    m.o.first_expert = 9;
    m.o.row_dtype = CMOE_BF16;
    mlp_fill(&m, false, false);
    cmoe_experts *x = NULL;
    UNIT_OK(mlp_create(&m, e.ctx, &x, &err));
    cmoe_experts_info info = {.size = sizeof info};
    UNIT_OK(cmoe_experts_describe(x, &info, &err));
    assert_true(info.experts == 3 && info.hidden == 6 && info.inter == 4 && info.first_expert == 9);
    assert_true(info.format == CMOE_I8 && info.row_dtype == CMOE_BF16);
    assert_string_equal(info.variant, "ref");
    assert_int_equal(info.weight_bytes, 3 * info.expert_weight_bytes);
    assert_true(info.expert_weight_bytes >= 3 * 6 * 4 + 4 * (2 * 4 + 6));
    /* A caller of an older header has a shorter struct: the rest stays. */
    struct {
        size_t size;
        int64_t experts, behind;
    } old = {.size = 16, .behind = 77};
    UNIT_OK(cmoe_experts_describe(x, (cmoe_experts_info *)(void *)&old, &err));
    assert_true(old.experts == 3 && old.behind == 77);
    cmoe_experts_free(x);
    cmoe_experts_free(NULL);
    mlp_free(&m);
    unit_close(&e);
    assert_string_equal(cmoe_activation_name(CMOE_ACT_SWIGLU_OSS), "swiglu_oss");
    assert_null(cmoe_activation_name(4));
    assert_null(cmoe_activation_name(-1));
    for (int32_t a = 0; a < 4; a++)
        assert_int_equal(cmoe_activation_parse(cmoe_activation_name(a)), a);
    assert_int_equal(cmoe_activation_parse("gelu"), -1);
    assert_int_equal(cmoe_activation_parse(NULL), -1);
}

/* ---- rows alone ------------------------------------------------------------------------------ */

/* Rows in group order with padding: by token, grouped, into any format; padding is not touched. */
static void rows_alone(void **state)
{
    enum { T = 7, K = 2, E = 3, H = 19, I = 11 };
    (void)state;
    unit_env e = unit_open(2);
    for (int f = 0; f < 3; f++) {
        for (int at_row = 0; at_row < 2; at_row++) {
            mlp m = sizes(5, formats[f], T, K, E, H, I);
            m.o.weight_at = at_row;
            mlp_fill(&m, true, false);
            cmoe_experts *x = NULL;
            UNIT_OK(mlp_create(&m, e.ctx, &x, &err));
            cmoe_align_options ao;
            cmoe_align_options_default(&ao, sizeof ao);
            ao.experts = E;
            ao.block = 4;
            int64_t bytes, need;
            UNIT_OK(cmoe_align_bytes(&ao, T, K, &bytes, NULL, &err));
            cmoe_arena groups_arena = unit_arena(bytes);
            cmoe_groups g;
            UNIT_OK(cmoe_align(e.stream, &ao, mlp_ids(&m), &g, &groups_arena, &err));
            const int64_t R = g.first[E];
            UNIT_OK(cmoe_experts_rows_bytes(x, T, R, &need, NULL, &err));
            cmoe_arena arena = unit_arena(need);
            float *rows[2], *grouped = calloc((size_t)(R * H + 1), sizeof *grouped);
            for (int64_t r = 0; r < R; r++)
                for (int64_t h = 0; h < H; h++)
                    grouped[r * H + h] = g.slots[r] < 0 ? NAN : (float)m.x[g.slots[r] / K * H + h];
            const cmoe_view w =
                at_row ? mlp_lay_2d(&m, m.weights, CMOE_F32, T, K) : cmoe_view_none();
            for (int by_row = 0; by_row < 2; by_row++) {
                rows[by_row] = malloc((size_t)(R * H + 1) * sizeof(float));
                memset(rows[by_row], 0x5a, (size_t)(R * H + 1) * sizeof(float));
                UNIT_OK(cmoe_experts_rows(
                    e.stream, x,
                    by_row ? cmoe_view_2d(grouped, CMOE_F32, R, H)
                           : mlp_lay_2d(&m, m.x, CMOE_F32, T, H),
                    by_row, &g, w, cmoe_view_mut_2d(rows[by_row], CMOE_F32, R, H), &arena, &err));
            }
            assert_memory_equal(rows[0], rows[1], (size_t)(R * H + 1) * sizeof(float));
            /* Each row alone is a token with one slot. */
            for (int64_t r = 0; r < R; r++) {
                const float *got = rows[0] + r * H;
                if (g.slots[r] < 0) {
                    for (size_t b = 0; b < H * sizeof(float); b++)
                        assert_int_equal(((const unsigned char *)got)[b], 0x5a);
                    continue;
                }
                mlp one = m;
                double y[H], weight = at_row ? m.weights[g.slots[r]] : 1;
                int64_t id = m.ids[g.slots[r]];
                one.T = one.K = 1;
                one.x = m.x + g.slots[r] / K * H;
                one.weights = &weight;
                one.ids = &id;
                for (int h = 0; h < H; h++)
                    y[h] = got[h];
                oracle_check(&one, "a row", y);
            }
            for (int i = 0; i < 2; i++)
                free(rows[i]);
            free(grouped);
            free(arena.base);
            free(groups_arena.base);
            cmoe_experts_free(x);
            mlp_free(&m);
        }
    }
    unit_close(&e);
}

/* A dimension of one element is not stepped along: strides that are far away do no harm, and such
 * as leave int64 in bytes are refused like any other. */
static void strides_that_are_not_taken(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    mlp m = sizes(6, CMOE_F32, 1, 1, 1, 1, 1);
    mlp_fill(&m, true, false);
    const float x = (float)m.x[0], w = (float)m.weights[0];
    const int32_t id = 0;
    float out = 0;
    m.ids[0] = 0;
    cmoe_experts *p = NULL;
    UNIT_OK(mlp_create(&m, e.ctx, &p, &err));
    int64_t need;
    UNIT_OK(cmoe_experts_bytes(p, 1, 1, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    cmoe_view vx = cmoe_view_2d(&x, CMOE_F32, 1, 1), vi = cmoe_view_2d(&id, CMOE_I32, 1, 1),
              vw = cmoe_view_2d(&w, CMOE_F32, 1, 1);
    cmoe_view_mut vo = cmoe_view_mut_2d(&out, CMOE_F32, 1, 1);
    cmoe_view *views[] = {&vx, &vi, &vw};
    for (int i = 0; i < 3; i++)
        views[i]->strides[0] = views[i]->strides[1] = INT64_MAX / 4;
    vo.strides[0] = vo.strides[1] = INT64_MAX / 4;
    UNIT_OK(cmoe_experts_run(e.stream, p, vx, vi, vw, cmoe_view_none(), vo, &arena, &err));
    const double got = out;
    oracle_check(&m, "strides", &got);
    vi.strides[0] = INT64_MAX / 4 + 1;
    UNIT_FAILS(cmoe_experts_run(e.stream, p, vx, vi, vw, cmoe_view_none(), vo, &arena, &err),
               CMOE_ERR_SHAPE, "topk_ids: strides reach outside the address space");
    free(arena.base);
    cmoe_experts_free(p);
    mlp_free(&m);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_oracle_sees),
        cmocka_unit_test(every_option),
        cmocka_unit_test(one_expert_owns_all_tokens),
        cmocka_unit_test(empty_experts),
        cmocka_unit_test(no_tokens),
        cmocka_unit_test(no_slots),
        cmocka_unit_test(repeated_expert_in_one_token),
        cmocka_unit_test(no_multiple_of_any_tile),
        cmocka_unit_test(nothing_inside),
        cmocka_unit_test(int8_weights_of_minus_128),
        cmocka_unit_test(int8_at_its_longest),
        cmocka_unit_test(format_of_w13),
        cmocka_unit_test(described),
        cmocka_unit_test(rows_alone),
        cmocka_unit_test(strides_that_are_not_taken),
    };
    return UNIT_RUN("unit_experts", tests);
}
