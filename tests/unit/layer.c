/* SPDX-License-Identifier: MIT
 *
 * layer.c - a layer is the composition of its steps: logits against double, routing against
 * cmoe_route on those logits, output against the MLP oracle with the recorded routing.  Capture and
 * replay, chunks, load, balance loss, hash table, no gate, low-rank delta, shared experts.
 */
#include "isa.h"
#include "net.h"

static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};

/* ---- the parts ------------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int64_t n, double *magnitude)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += a[i] * b[i];
        *magnitude += fabs(a[i] * b[i]);
    }
    return sum;
}

/* How many logits are off by more than the roundings of three dot products. */
static int64_t bad_logits(const net *n, const records *r)
{
    const mlp *m = &n->m;
    const int64_t H = m->H, E = m->E - n->route.shared;
    int64_t bad = 0;
    for (int64_t i = 0; i < m->T * E; i++) {
        const double *x = m->x + i / E * H;
        const int64_t e = i % E;
        double magnitude = 0, want = dot(x, n->gate + e * H, H, &magnitude);
        if (n->with_gate_bias) want += n->gate_bias[e];
        for (int64_t k = 0; n->with_lora && k < NET_RANK; k++) {
            double low = 0;
            const double b = (double)n->lora_scale * n->lora_b[e * NET_RANK + k];
            want += b * dot(x, n->lora_a + k * H, H, &low);
            magnitude += fabs(b) * low;
        }
        bad += !(fabs(r->logits[i] - want) <=
                 (double)(H + 2 * NET_RANK + 4) * FLT_EPSILON * (magnitude + fabs(want)));
    }
    return bad;
}

/* cmoe_route on the recorded logits must give the recorded routing, bit for bit. */
static void check_routing(net *n, const unit_env *e, const cmoe_layer_call *call, const records *r)
{
    mlp *m = &n->m;
    const int blocks = m->blocks;
    const int64_t T = m->T, E = m->E - n->route.shared;
    int32_t *ids = malloc((size_t)(T * r->width + 1) * sizeof *ids);
    float *weights = malloc((size_t)(T * r->width + 1) * sizeof *weights);
    cmoe_route_inputs in;
    cmoe_route_inputs_default(&in, sizeof in);
    if (n->with_bias) in.bias = net_row(m, n->bias, E);
    if (n->with_scale) in.per_expert_scale = net_row(m, n->scale, E);
    in.given_ids = call->replay_ids;
    in.given_weights = call->replay_weights;
    if (n->with_table) {
        in.hash_table = cmoe_view_2d(n->table, CMOE_I64, NET_VOCAB, m->K);
        in.input_ids = cmoe_view_1d(n->input_ids, CMOE_I32, T);
    }
    int64_t need;
    UNIT_OK(cmoe_route_bytes(&n->route, T, E, &need, NULL, &err));
    cmoe_arena arena = unit_arena(need);
    UNIT_OK(cmoe_route(e->stream, &n->route, cmoe_view_2d(r->logits, CMOE_F32, T, E), &in,
                       cmoe_view_mut_2d(weights, CMOE_F32, T, r->width),
                       cmoe_view_mut_2d(ids, CMOE_I32, T, r->width), &arena, &err));
    assert_memory_equal(ids, r->ids, (size_t)(T * r->width) * sizeof *ids);
    for (int64_t i = 0; i < T * r->width; i++) {
        double magnitude = 0, want = weights[i];
        if (i % r->width >= m->K && n->with_shared_gate) {
            const double z = dot(m->x + i / r->width * m->H,
                                 n->sgate + (i % r->width - m->K) * m->H, m->H, &magnitude);
            want = 1 / (1 + exp(-z));
            assert_true(fabs(r->weights[i] - want) <= ((double)m->H * magnitude + 4) * FLT_EPSILON);
        } else {
            assert_memory_equal(&r->weights[i], &weights[i], sizeof *weights);
        }
    }
    free(arena.base);
    free(ids);
    free(weights);
    while (m->blocks > blocks)
        free(m->block[--m->blocks]);
}

/* The oracle's output for the recorded routing: routed sum, scale, shared expert. */
static void want_output(const net *n, const records *r, near *want)
{
    mlp m = n->m, s = n->shared;
    const int64_t count = m.T * m.H;
    m.K = r->width;
    m.ids = calloc((size_t)(m.T * m.K + 1), sizeof *m.ids);
    m.weights = calloc((size_t)(m.T * m.K + 1), sizeof *m.weights);
    for (int64_t i = 0; i < m.T * m.K; i++) {
        m.ids[i] = r->ids[i];
        m.weights[i] = r->weights[i];
    }
    oracle_run(&m, want);
    for (int64_t i = 0; i < count; i++)
        want[i] = near_op((double)n->o.combine_scale * want[i].v,
                          fabs(n->o.combine_scale) * want[i].e +
                              (double)m.K * FLT_EPSILON * fabs(want[i].v));
    if (n->with_shared) {
        near *row = calloc((size_t)(count + 1), sizeof *row);
        s.ids = calloc((size_t)(s.T + 1), sizeof *s.ids);
        s.weights = calloc((size_t)(s.T + 1), sizeof *s.weights);
        double gate_error = 0;
        for (int64_t t = 0; t < s.T; t++) {
            double magnitude = 0;
            const double z = dot(s.x + t * s.H, n->sgate, s.H, &magnitude);
            s.weights[t] = n->with_shared_gate ? 1 / (1 + exp(-z)) : 1;
            gate_error = fmax(gate_error, ((double)s.H * magnitude + 4) * FLT_EPSILON);
        }
        oracle_run(&s, row);
        for (int64_t i = 0; i < count; i++) { /* with shared_first it is in every partial sum */
            const double more =
                2 * gate_error * fabs(row[i].v) + (double)m.K * FLT_EPSILON * fabs(row[i].v);
            want[i] = near_op(want[i].v + row[i].v, want[i].e + row[i].e + more);
        }
        free(row);
        free(s.ids);
        free(s.weights);
    }
    free(m.ids);
    free(m.weights);
}

static int64_t bad_output(const net *n, const records *r)
{
    const int64_t count = n->m.T * n->m.H;
    near *want = calloc((size_t)(count + 1), sizeof *want);
    double *got = calloc((size_t)(count + 1), sizeof *got);
    int64_t at;
    for (int64_t i = 0; i < count; i++)
        got[i] = r->out[i];
    want_output(n, r, want);
    const int64_t bad = oracle_bad(want, got, count, &at);
    free(want);
    free(got);
    return bad;
}

static void check_load(const net *n, const records *r)
{
    for (int64_t e = 0; e < n->m.E; e++) {
        int64_t count = 0;
        for (int64_t i = 0; i < n->m.T * r->width; i++)
            count += r->ids[i] == e;
        assert_int_equal(r->load[e], count);
    }
}

/* E * sum_e (slots of e / (N K)) * mean softmax of e, over the N tokens that count. */
static double want_loss(const net *n, const records *r, const int32_t *mask)
{
    const int64_t T = n->m.T, K = n->m.K, E = n->m.E - n->route.shared;
    double loss = 0, N = 0;
    for (int64_t t = 0; t < T; t++)
        N += !mask || mask[t];
    for (int64_t e = 0; e < E; e++) {
        double slots = 0, mean = 0;
        for (int64_t t = 0; t < T; t++) {
            double sum = 0;
            if (mask && !mask[t]) continue;
            for (int64_t i = 0; i < E; i++)
                sum += exp(r->logits[t * E + i]);
            mean += exp(r->logits[t * E + e]) / sum;
            for (int64_t k = 0; k < K; k++)
                slots += r->ids[t * r->width + k] == e;
        }
        loss += slots / (N * (double)K) * (mean / N);
    }
    return N > 0 ? (double)E * loss : 0;
}

static void check_all(net *n, const unit_env *e, const cmoe_layer_call *call, const records *r,
                      const char *where)
{
    if (n->with_gate && bad_logits(n, r)) fail_msg("%s: %d logits", where, (int)bad_logits(n, r));
    if (n->with_gate) check_routing(n, e, call, r);
    if (n->m.o.format != CMOE_I8 && bad_output(n, r))
        fail_msg("%s: %d outputs", where, (int)bad_output(n, r));
    check_load(n, r);
    if (n->with_gate) {
        const double loss = want_loss(n, r, NULL);
        assert_true(fabs(r->loss - loss) <= 1e-5 * loss);
    }
}

/* ---- composition ----------------------------------------------------------------------------- */

static net random_net(uint64_t seed, int32_t format)
{
    net n = net_make(seed, format, 1, 1, 1, 1, 1);
    mlp *m = &n.m;
    m->T = mlp_draw(m, 1, 12);
    m->E = mlp_draw(m, 2, 9);
    m->K = mlp_draw(m, 1, m->E < 4 ? m->E : 4);
    m->H = mlp_draw(m, 1, 40);
    m->I = mlp_draw(m, 1, 33);
    m->x_dtype = mlp_draw(m, 0, 1) ? CMOE_BF16 : CMOE_F32;
    m->pad = (int32_t)mlp_draw(m, 0, 2);
    m->odd = (int32_t)mlp_draw(m, 0, 1);
    m->o.row_dtype = mlp_draw(m, 0, 1) ? CMOE_BF16 : CMOE_F32;
    m->o.weight_at = (int32_t)mlp_draw(m, 0, 1);
    m->o.activation = (int32_t)mlp_draw(m, 0, 3);
    n.route.topk = m->K;
    n.route.scoring = (int32_t)mlp_draw(m, 0, 3);
    n.route.scale = mlp_draw(m, 0, 1) ? 1.5f : 1;
    n.o.combine_scale = mlp_draw(m, 0, 1) ? 0.7f : 1;
    n.o.shared_first = (int32_t)mlp_draw(m, 0, 1);
    n.o.chunk = mlp_draw(m, 0, 1) ? mlp_draw(m, 1, 6) : 0;
    n.with_bias = mlp_draw(m, 0, 1);
    n.with_gate_bias = mlp_draw(m, 0, 1);
    n.with_scale = mlp_draw(m, 0, 1);
    n.with_lora = mlp_draw(m, 0, 1);
    n.with_table = mlp_draw(m, 0, 3) == 0;
    const int64_t kind = mlp_draw(m, 0, 2); /* none, separate, appended */
    n.with_shared = kind == 1;
    n.route.shared = kind == 2 ? mlp_draw(m, 1, 2) : 0;
    m->E += n.route.shared;
    n.with_shared_gate = kind > 0 && mlp_draw(m, 0, 1);
    net_fill(&n);
    return n;
}

static void composition(void **state)
{
    enum { CASES = 40 };
    (void)state;
    ISA_EACH(isa)
    {
        unit_env env[3];
        for (int32_t t = 0; t < 3; t++)
            env[t] = unit_open_isa(t + 1, isa);
        for (int f = 0; f < 3; f++) {
            for (int i = 0; i < CASES; i++) {
                net n = random_net((uint64_t)(100 * f + i), formats[f]);
                records r = records_make(&n), again = records_make(&n);
                built_net b = net_create(&n, env[i % 3].ctx);
                cmoe_layer_call c = net_call(&n, &r);
                net_forward(&n, &env[i % 3], &b, &c, &r);
                check_all(&n, &env[i % 3], &c, &r, isa);
                /* The records change nothing. */
                net_forward(&n, &env[i % 3], &b, n.with_table ? &c : NULL, &again);
                assert_memory_equal(again.out, r.out, (size_t)(n.m.T * n.m.H) * sizeof *r.out);
                built_free(&b);
                records_free(&r);
                records_free(&again);
                net_free(&n);
            }
        }
        for (int32_t t = 0; t < 3; t++)
            unit_close(&env[t]);
    }
}

/* Int8 layers: the exact emulation, with the recorded routing. */
static void int8_layer(void **state)
{
    (void)state;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        net n = net_make(3, CMOE_I8, 6, 2, 4, 33, 17);
        net_fill(&n);
        records r = net_run(&n, &e);
        mlp m = n.m;
        double got[6 * 33];
        for (int i = 0; i < 6 * 33; i++)
            got[i] = r.out[i];
        for (int i = 0; i < 6 * 2; i++) {
            m.ids[i] = r.ids[i];
            m.weights[i] = r.weights[i];
        }
        oracle_check(&m, isa, got);
        records_free(&r);
        net_free(&n);
        unit_close(&e);
    }
}

/* A wrong part of the layer must be seen by the checks above. */
static void the_checks_see(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    net n = net_make(4, CMOE_F32, 5, 2, 4, 20, 12);
    n.with_shared = n.with_shared_gate = n.with_gate_bias = n.with_lora = true;
    n.o.combine_scale = 0.7f;
    net_fill(&n);
    records r = net_run(&n, &e);
    assert_true(bad_logits(&n, &r) == 0 && bad_output(&n, &r) == 0);
    n.with_lora = false;
    assert_true(bad_logits(&n, &r) > 0);
    n.with_lora = true;
    n.with_gate_bias = false;
    assert_true(bad_logits(&n, &r) > 0);
    n.with_shared_gate = false;
    assert_true(bad_output(&n, &r) > 0);
    n.with_shared_gate = true;
    n.with_shared = false;
    assert_true(bad_output(&n, &r) > 0);
    n.with_shared = true;
    n.o.combine_scale = 0.701f;
    assert_true(bad_output(&n, &r) > 0);
    n.o.combine_scale = 0.7f;
    r.weights[3] *= 1.001f;
    assert_true(bad_output(&n, &r) > 0);
    records_free(&r);
    net_free(&n);
    unit_close(&e);
}

/* ---- capture and replay ---------------------------------------------------------------------- */

static void capture_and_replay(void **state)
{
    (void)state;
    ISA_EACH(isa)
    {
        unit_env e = unit_open_isa(2, isa);
        for (int f = 0; f < 3; f++) {
            net n = net_make(5, formats[f], 9, 3, 6, 24, 16);
            n.with_bias = n.with_shared = true;
            n.o.chunk = 4;
            net_fill(&n);
            records first = records_make(&n), r = records_make(&n);
            built_net b = net_create(&n, e.ctx);
            cmoe_layer_call c = net_call(&n, &first);
            net_forward(&n, &e, &b, &c, &first);
            for (int weights = 0; weights < 2; weights++) {
                memset(r.load, 0, 6 * sizeof *r.load);
                c = net_call(&n, &r);
                c.replay_ids = cmoe_view_2d(first.ids, CMOE_I32, 9, 3);
                if (weights) c.replay_weights = cmoe_view_2d(first.weights, CMOE_F32, 9, 3);
                net_forward(&n, &e, &b, &c, &r);
                records_equal(&n, &first, &r);
            }
            /* Other experts, some of them nobody: weights come from the live scores. */
            int64_t forced[9 * 3];
            for (int i = 0; i < 27; i++)
                forced[i] = (first.ids[i] + 2) % 7 - 1;
            memset(r.load, 0, 6 * sizeof *r.load);
            c = net_call(&n, &r);
            c.replay_ids = cmoe_view_2d(forced, CMOE_I64, 9, 3);
            net_forward(&n, &e, &b, &c, &r);
            for (int i = 0; i < 27; i++)
                assert_int_equal(r.ids[i], forced[i]);
            check_all(&n, &e, &c, &r, isa);
            /* And given weights are taken as they are. */
            float given[9 * 3];
            for (int i = 0; i < 27; i++)
                given[i] = (float)i / 8 - 1;
            memset(r.load, 0, 6 * sizeof *r.load);
            c.replay_weights = cmoe_view_2d(given, CMOE_F32, 9, 3);
            net_forward(&n, &e, &b, &c, &r);
            for (int i = 0; i < 27; i++)
                assert_true(r.weights[i] == given[i] || forced[i] < 0);
            check_all(&n, &e, &c, &r, isa);
            built_free(&b);
            records_free(&first);
            records_free(&r);
            net_free(&n);
        }
        unit_close(&e);
    }
}

static void chunks(void **state)
{
    static const int64_t sizes[] = {1, 2, 5, 12, 13, 14, INT64_MAX};
    (void)state;
    unit_env e = unit_open(2);
    for (int f = 0; f < 3; f++) {
        net n = net_make(6, formats[f], 13, 2, 5, 20, 12);
        n.with_shared = n.with_shared_gate = n.with_lora = n.with_table = true;
        net_fill(&n);
        records whole = net_run(&n, &e);
        for (int i = 0; i < 7; i++) {
            n.o.chunk = sizes[i];
            n.route.validate = i % 2;
            records r = net_run(&n, &e);
            records_equal(&n, &whole, &r);
            records_free(&r);
        }
        records_free(&whole);
        net_free(&n);
    }
    unit_close(&e);
}

/* ---- records --------------------------------------------------------------------------------- */

static void load_is_added(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    net n = net_make(7, CMOE_F32, 8, 2, 6, 10, 6);
    n.route.shared = 1; /* five routed, one appended */
    n.o.chunk = 3;
    net_fill(&n);
    records r = records_make(&n);
    built_net b = net_create(&n, e.ctx);
    const cmoe_layer_call c = net_call(&n, &r);
    net_forward(&n, &e, &b, &c, &r);
    check_load(&n, &r);
    assert_int_equal(r.load[5], 8); /* every token takes the appended one */
    int64_t once[6];
    memcpy(once, r.load, sizeof once);
    net_forward(&n, &e, &b, &c, &r);
    for (int i = 0; i < 6; i++)
        assert_int_equal(r.load[i], 2 * once[i]);
    built_free(&b);
    records_free(&r);
    net_free(&n);
    unit_close(&e);
}

static void balance_loss(void **state)
{
    static const int32_t masks[3][7] = {
        {1, 1, 1, 1, 1, 1, 1}, {1, 0, 0, 5, 1, -1, 0}, {0, 0, 0, 0, 0, 0, 0}};
    (void)state;
    unit_env e = unit_open(3);
    net n = net_make(8, CMOE_F32, 7, 2, 5, 10, 6);
    n.route.shared = 1;
    n.o.chunk = 2;
    net_fill(&n);
    records r = records_make(&n);
    built_net b = net_create(&n, e.ctx);
    for (int i = 0; i < 3; i++) {
        cmoe_layer_call c = net_call(&n, &r);
        c.mask = cmoe_view_1d(masks[i], CMOE_I32, 7);
        net_forward(&n, &e, &b, &c, &r);
        const double want = want_loss(&n, &r, masks[i]);
        assert_true(fabs(r.loss - want) <= 1e-5 * fabs(want));
        assert_true(i == 2 || want > 0);
    }
    built_free(&b);
    records_free(&r);
    net_free(&n);
    unit_close(&e);
}

/* Records at odd addresses and with gaps hold the same, and nothing between them is touched. */
static void strided_records(void **state)
{
    enum { T = 5, K = 2, E = 4, GAP = 3 };
    (void)state;
    unit_env e = unit_open(1);
    net n = net_make(9, CMOE_F32, T, K, E, 8, 4);
    net_fill(&n);
    records want = net_run(&n, &e), r = records_make(&n);
    built_net b = net_create(&n, e.ctx);
    char ids[T * (K + GAP) * 4 + 1], weights[T * K * 2 * 4 + 1], load[E * 2 * 8 + 3];
    memset(ids, 0x33, sizeof ids);
    memset(weights, 0x33, sizeof weights);
    memset(load, 0, sizeof load);
    cmoe_layer_call c = net_call(&n, &r);
    c.ids.data = ids + 1;
    c.ids.strides[0] = K + GAP;
    c.weights.data = weights + 1;
    c.weights.strides[0] = 2 * K;
    c.weights.strides[1] = 2;
    c.load.data = load + 3;
    c.load.strides[0] = 2;
    c.balance_loss = NULL;
    c.logits = cmoe_view_mut_none();
    net_forward(&n, &e, &b, &c, &r);
    assert_memory_equal(r.out, want.out, T * 8 * sizeof *r.out);
    for (int t = 0; t < T; t++) {
        assert_memory_equal(ids + 1 + t * (K + GAP) * 4, want.ids + t * K, K * 4);
        for (int g = K * 4; g < (K + GAP) * 4; g++)
            assert_int_equal(ids[1 + t * (K + GAP) * 4 + g], 0x33);
        for (int k = 0; k < K; k++) {
            const char *at = weights + 1 + (t * 2 * K + 2 * k) * 4;
            assert_memory_equal(at, &want.weights[t * K + k], 4);
            for (int g = 4; g < 8; g++)
                assert_int_equal(at[g], 0x33);
        }
    }
    for (int i = 0; i < E; i++) {
        assert_memory_equal(load + 3 + i * 16, &want.load[i], 8);
        for (int g = 8; g < 16 && i + 1 < E; g++)
            assert_int_equal(load[3 + i * 16 + g], 0);
    }
    built_free(&b);
    records_free(&want);
    records_free(&r);
    net_free(&n);
    unit_close(&e);
}

/* ---- named kinds of layers ------------------------------------------------------------------- */

static void hash_table(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net n = net_make(10, CMOE_F32, 7, 2, 5, 12, 8);
    n.with_table = true;
    n.route.scoring = CMOE_SCORE_SQRTSOFTPLUS;
    net_fill(&n);
    records r = net_run(&n, &e);
    for (int i = 0; i < 14; i++)
        assert_int_equal(r.ids[i], n.table[n.input_ids[i / 2] * 2 + i % 2]);
    assert_int_equal(bad_output(&n, &r), 0);
    records_free(&r);
    net_free(&n);
    unit_close(&e);
}

/* Routing is given in every forward; the experts say how many there are. */
static void without_a_gate(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    net n = net_make(11, CMOE_BF16, 6, 2, 5, 12, 8);
    n.with_gate = false;
    n.with_shared = n.with_shared_gate = true;
    net_fill(&n);
    records r = records_make(&n);
    built_net b = net_create(&n, e.ctx);
    int32_t ids[12];
    float weights[12];
    for (int i = 0; i < 12; i++) {
        ids[i] = i % 6 - 1;
        weights[i] = ids[i] < 0 ? 0 : (float)i / 10;
    }
    cmoe_layer_call c = net_call(&n, &r);
    c.replay_ids = cmoe_view_2d(ids, CMOE_I32, 6, 2);
    c.replay_weights = cmoe_view_2d(weights, CMOE_F32, 6, 2);
    net_forward(&n, &e, &b, &c, &r);
    assert_memory_equal(r.ids, ids, sizeof ids);
    assert_memory_equal(r.weights, weights, sizeof weights);
    assert_int_equal(bad_output(&n, &r), 0);
    check_load(&n, &r);
    built_free(&b);
    records_free(&r);
    net_free(&n);
    unit_close(&e);
}

static void zero_delta(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    net n = net_make(12, CMOE_F32, 6, 2, 5, 33, 8);
    net_fill(&n);
    records without = net_run(&n, &e);
    n.with_lora = true;
    records other = net_run(&n, &e);
    assert_true(memcmp(other.logits, without.logits, 6 * 5 * sizeof(float)) != 0);
    assert_int_equal(bad_logits(&n, &other), 0);
    memset(n.lora_b, 0, 5 * NET_RANK * sizeof *n.lora_b);
    records zero = net_run(&n, &e);
    records_equal(&n, &without, &zero);
    records_free(&without);
    records_free(&other);
    records_free(&zero);
    net_free(&n);
    unit_close(&e);
}

/* M7: the shared expert as expert E of the same object, in slot K.  With weight 1 both ways round
 * the same sum once, so the bits are equal; with a gate the product is rounded first in one of the
 * two, which is half a unit in the last place of it, and of the sum. */
static void separate_or_appended(void **state)
{
    enum { T = 6, K = 2, E = 4, H = 24, I = 16 };
    (void)state;
    for (int gated = 0; gated < 2; gated++) {
        for (int f = 0; f < 3; f++) {
            unit_env e = unit_open(2);
            net a = net_make(13, formats[f], T, K, E + 1, H, I);
            a.route.shared = 1;
            a.with_shared_gate = gated;
            net_fill(&a);
            net s = a; /* the same values, the last expert on its own */
            s.m.E = E;
            s.route.shared = 0;
            s.with_shared = true;
            s.shared.gate = a.m.gate + E * I * H;
            s.shared.up = a.m.up + E * I * H;
            s.shared.down = a.m.down + E * H * I;
            s.shared.bgate = a.m.bgate + E * I;
            s.shared.bup = a.m.bup + E * I;
            s.shared.bdown = a.m.bdown + E * H;
            records ra = net_run(&a, &e), rs = net_run(&s, &e);
            for (int t = 0; t < T; t++) {
                assert_memory_equal(ra.ids + t * (K + 1), rs.ids + t * K, K * 4);
                assert_int_equal(ra.ids[t * (K + 1) + K], E);
                assert_true(gated || ra.weights[t * (K + 1) + K] == 1);
            }
            if (!gated) assert_memory_equal(ra.out, rs.out, T * H * sizeof *ra.out);
            /* Rows of the shared expert: the difference of the two sums bounds nothing, so they
             * are computed once more alone. */
            net o = s;
            o.o.combine_scale = FLT_MIN; /* next to nothing */
            records ro = net_run(&o, &e);
            for (int i = 0; i < T * H; i++)
                assert_true(fabsf(ra.out[i] - rs.out[i]) <=
                            FLT_EPSILON * (fabsf(ro.out[i]) + fabsf(rs.out[i])));
            /* and are not nothing */
            assert_true(memcmp(ro.out, rs.out, T * H * sizeof *ro.out) != 0);
            records_free(&ra);
            records_free(&rs);
            records_free(&ro);
            net_free(&a);
            unit_close(&e);
        }
    }
}

static void one_owner_and_empty_experts(void **state)
{
    enum { T = 120, E = 6 };
    (void)state;
    unit_env e = unit_open(3);
    for (int f = 0; f < 2; f++) {
        net n = net_make(14, formats[f], T, 1, E, 10, 7);
        n.with_bias = true;
        net_fill(&n);
        for (int i = 0; i < E; i++)
            n.bias[i] = i == 3 ? 100 : 0;
        records r = net_run(&n, &e);
        assert_int_equal(r.load[3], T);
        assert_int_equal(bad_output(&n, &r), 0);
        records_free(&r);
        net_free(&n);
    }
    unit_close(&e);
}

static void every_expert_and_no_token(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    for (int f = 0; f < 3; f++) {
        net n = net_make(15, formats[f], 4, 5, 5, 11, 6);
        net_fill(&n);
        records r = net_run(&n, &e);
        for (int i = 0; i < 5; i++)
            assert_int_equal(r.load[i], 4);
        records_free(&r);
        net_free(&n);
        n = net_make(16, formats[f], 0, 2, 5, 11, 6);
        n.with_shared = true;
        n.with_table = f == 1;
        net_fill(&n);
        r = net_run(&n, &e);
        assert_true(r.loss == 0 && r.load[0] == 0);
        records_free(&r);
        net_free(&n);
    }
    unit_close(&e);
}

static void variants_listed(void **state)
{
    cmoe_variant v[200];
    (void)state;
    const int64_t n = cmoe_variants(NULL, 0);
    assert_true(n > 9 && n < 200);
    memset(v, 0, sizeof v);
    assert_int_equal(cmoe_variants(v, 200), n);
    assert_non_null(v[n - 1].name);
    assert_null(v[n].name);
    memset(v, 0, sizeof v);
    assert_int_equal(cmoe_variants(v, 3), n);
    assert_non_null(v[2].op);
    assert_null(v[3].op);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(composition),
        cmocka_unit_test(int8_layer),
        cmocka_unit_test(the_checks_see),
        cmocka_unit_test(capture_and_replay),
        cmocka_unit_test(chunks),
        cmocka_unit_test(load_is_added),
        cmocka_unit_test(balance_loss),
        cmocka_unit_test(strided_records),
        cmocka_unit_test(hash_table),
        cmocka_unit_test(without_a_gate),
        cmocka_unit_test(zero_delta),
        cmocka_unit_test(separate_or_appended),
        cmocka_unit_test(one_owner_and_empty_experts),
        cmocka_unit_test(every_expert_and_no_token),
        cmocka_unit_test(variants_listed),
    };
    return UNIT_RUN("unit_layer", tests);
}
