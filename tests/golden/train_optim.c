/* SPDX-License-Identifier: MIT
 *
 * train_optim.c - ten steps of every optimizer from given gradients, element by element as PyTorch has
 * them (golden/optim/README.md).
 */
#include <math.h>

#include "../unit/unit.h"

#include "cmoe/weights.h"
#include "train/optimizer.h"

enum { STEPS = 10, TENSORS = 3, MOST = 24 * 40 };

static const double lr_factor[STEPS] = {0.25, 0.5, 0.75, 1, 1, 0.9, 0.7, 0.45, 0.2, 0.1};
static const char *const names[TENSORS] = {"wide", "tall", "vector"};
static const int64_t shapes[TENSORS][2] = {{24, 40}, {37, 5}, {1, 17}};
static const char *path;

typedef struct golden {
    const char *run;
    cmoe_train_options o; /* lr is that of factor 1 */
    double within;        /* of any element: what two float32 runs differ by, see the README */
} golden;

static cmoe_train_options options(int32_t optimizer, double lr, double decay)
{
    cmoe_train_options o = {.size = sizeof o,
                            .optimizer = optimizer,
                            .schedule = CMOE_SCHEDULE_CONSTANT,
                            .steps = STEPS,
                            .lr = lr,
                            .final_lr = lr,
                            .weight_decay = decay};
    return o;
}

typedef struct state {
    float value[TENSORS][MOST], m[TENSORS][MOST], v[TENSORS][MOST], gradient[TENSORS][MOST];
    cmoei_trained t[TENSORS];
} state;

static const float *find(const cmoe_checkpoint *c, const char *run, const char *name)
{
    char full[64];
    cmoe_tensor t = {.size = sizeof t};
    snprintf(full, sizeof full, "%s.%s", run, name);
    const int64_t i = cmoe_checkpoint_find(c, full);
    if (i < 0) return NULL;
    UNIT_OK(cmoe_checkpoint_tensor(c, i, &t, &err));
    return t.data;
}

static void start(state *s, const cmoe_checkpoint *c, const golden *g)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < TENSORS; i++) {
        const bool orthogonal = g->o.optimizer == CMOE_OPTIMIZER_MUON && i < 2;
        const int32_t states = cmoei_optimizer_states(&g->o, orthogonal);
        memcpy(s->value[i], find(c, "start", names[i]),
               (size_t)(shapes[i][0] * shapes[i][1]) * sizeof(float));
        s->t[i] = (cmoei_trained){.name = names[i],
                                  .value = s->value[i],
                                  .gradient = s->gradient[i],
                                  .m = states > 0 ? s->m[i] : NULL,
                                  .v = states > 1 ? s->v[i] : NULL,
                                  .rows = shapes[i][0],
                                  .cols = shapes[i][1],
                                  .decay = i < 2,
                                  .orthogonal = orthogonal};
    }
}

static double compare(const float *got, const float *want, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static double one_step(unit_env *e, const cmoe_checkpoint *c, const golden *g, state *s, int step)
{
    cmoe_train_options o = g->o;
    cmoei_optimizer *x;
    double norm, scale = 1, worst = 0;
    for (int i = 0; i < TENSORS; i++) {
        const int64_t n = shapes[i][0] * shapes[i][1];
        memcpy(s->gradient[i], find(c, "grad", names[i]) + step * n, (size_t)n * sizeof(float));
    }
    UNIT_OK(cmoei_gradient_norm(e->stream, s->t, TENSORS, &norm, &err));
    if (o.clip > 0) {
        double want;
        memcpy(&want, (const char *)find(c, g->run, "norm") + step * 8, sizeof want);
        if (!(fabs(norm - want) <= 1e-6 * want))
            fail_msg("%s step %d: norm %.9g, want %.9g", g->run, step + 1, norm, want);
        scale = fmin(1, o.clip / (norm + 1e-6));
    }
    o.lr *= lr_factor[step];
    UNIT_OK(cmoei_optimizer_create(&x, e->ctx, &o, s->t, TENSORS, &err));
    UNIT_OK(cmoei_optimizer_step(x, e->stream, s->t, TENSORS, step + 1, scale, &err));
    cmoei_optimizer_free(x);
    for (int i = 0; i < TENSORS; i++) {
        const int64_t n = shapes[i][0] * shapes[i][1];
        const float *want = find(c, g->run, names[i]);
        if (want) worst = fmax(worst, compare(s->value[i], want + step * n, n));
    }
    return worst;
}

static void run(const golden *g)
{
    static state s[3];
    cmoe_checkpoint *c;
    for (int threads = 1; threads <= 3; threads++) {
        unit_env e = unit_open(threads);
        double worst = 0;
        UNIT_OK(cmoe_checkpoint_open(&c, e.ctx, path, &err));
        start(&s[threads - 1], c, g);
        for (int step = 0; step < STEPS; step++) {
            const double d = one_step(&e, c, g, &s[threads - 1], step);
            if (!(d <= g->within))
                fail_msg("%s step %d: differs by %.3g, want at most %.3g", g->run, step + 1, d,
                         g->within);
            worst = fmax(worst, d);
        }
        if (threads == 1) printf("%s: differs by at most %.3g\n", g->run, worst);
        assert_memory_equal(s[threads - 1].value, s[0].value, sizeof s->value);
        cmoe_checkpoint_free(c);
        unit_close(&e);
    }
}

/* Twice what float32 costs the runs themselves. */
static void sgd(void **unused)
{
    (void)unused;
    golden g = {"sgd", options(CMOE_OPTIMIZER_SGD, 0.1, 0), 2 * 4.7e-7};
    g.o.momentum = 0.9;
    run(&g);
}

static void adamw(void **unused)
{
    (void)unused;
    golden g = {"adamw", options(CMOE_OPTIMIZER_ADAMW, 0.01, 0.1), 2 * 8e-7};
    g.o.beta1 = 0.9, g.o.beta2 = 0.95, g.o.eps = 1e-8;
    run(&g);
}

static void adamw_clip(void **unused)
{
    (void)unused;
    golden g = {"adamw_clip", options(CMOE_OPTIMIZER_ADAMW, 0.01, 0.1), 2 * 1.1e-6};
    g.o.beta1 = 0.9, g.o.beta2 = 0.999, g.o.eps = 1e-5, g.o.clip = 1;
    run(&g);
}

static void muon(void **unused)
{
    (void)unused;
    golden g = {"muon", options(CMOE_OPTIMIZER_MUON, 0.02, 0.1), 2 * 9.1e-7};
    g.o.momentum = 0.95, g.o.beta1 = 0.9, g.o.beta2 = 0.95, g.o.eps = 1e-8;
    run(&g);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sgd),
        cmocka_unit_test(adamw),
        cmocka_unit_test(adamw_clip),
        cmocka_unit_test(muon),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s optim.safetensors\n", argv[0]);
        return 2;
    }
    path = argv[1];
    return UNIT_RUN("golden_train_optim", tests);
}
