/* SPDX-License-Identifier: MIT
 *
 * pool.c - regions run every task once, barriers separate phases, items are handed out once, and a
 * busy or forked pool still gives a result.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

#include "core/core.h"

typedef struct phases {
    _Atomic int64_t sum[3];
    _Atomic int bad;
    int64_t items;
} phases;

static void three_phases(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    phases *p = arg;
    (void)index;
    (void)count;
    for (int phase = 0; phase < 3; phase++) {
        for (int64_t i; (i = cmoei_next(team, 1)) < p->items;)
            atomic_fetch_add(&p->sum[phase], i + 1);
        cmoei_barrier(team);
        if (atomic_load(&p->sum[phase]) != p->items * (p->items + 1) / 2) atomic_store(&p->bad, 1);
        cmoei_barrier(team);
    }
}

static void run_phases(cmoe_ctx *ctx, int rounds)
{
    for (int r = 0; r < rounds; r++) {
        phases p = {.items = r % 7 * 5};
        cmoei_region(ctx, 64, three_phases, &p);
        assert_int_equal(p.bad, 0);
    }
}

static void phases_and_items(void **state)
{
    (void)state;
    const int32_t threads[] = {1, 2, 3, 8};
    for (int i = 0; i < 4; i++) {
        unit_env e = unit_open(threads[i]);
        run_phases(e.ctx, 200);
        unit_close(&e);
    }
}

static void *other_caller(void *ctx)
{
    run_phases(ctx, 300);
    return NULL;
}

static void two_callers(void **state)
{
    (void)state;
    unit_env e = unit_open(3);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, other_caller, e.ctx), 0);
    run_phases(e.ctx, 300);
    pthread_join(t, NULL);
    unit_close(&e);
}

static void after_fork(void **state)
{
    (void)state;
    unit_env e = unit_open(2);
    run_phases(e.ctx, 3);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        run_phases(e.ctx, 3);
        unit_close(&e);
        _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    run_phases(e.ctx, 3);
    unit_close(&e);
}

static void split_covers(void **state)
{
    (void)state;
    for (int64_t n = 0; n < 40; n++) {
        for (int32_t count = 1; count < 9; count++) {
            int64_t at = 0;
            for (int32_t i = 0; i < count; i++) {
                int64_t b, e;
                cmoei_split(n, i, count, &b, &e);
                assert_int_equal(b, at);
                assert_true(e >= b && e - b <= n / count + 1);
                at = e;
            }
            assert_int_equal(at, n);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(phases_and_items),
        cmocka_unit_test(two_callers),
        cmocka_unit_test(after_fork),
        cmocka_unit_test(split_covers),
    };
    return UNIT_RUN("unit_pool", tests);
}
