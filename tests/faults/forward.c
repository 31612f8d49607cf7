/* SPDX-License-Identifier: MIT
 *
 * forward.c - the allocation guard: no step of a forward pass asks the C library or the context for
 * memory, or starts a thread.
 */
#include "steps.h"

static void nothing_is_allocated(void **state)
{
    (void)state;
    static steps_env e;
    for (int32_t threads = 1; threads < 4; threads += 2) {
        fault_memory m = {0};
        steps_open(&e, &m, threads);
        for (int i = 0; i < STEPS; i++) {
            for (e.which = 0; e.which < steps[i].formats; e.which++) {
                int64_t need = 0;
                UNIT_OK(steps[i].bytes(&e, &need, &err));
                cmoe_arena arena = unit_arena(need);
                cmoe_error err = {0};
                const int64_t libc = fault.libc_calls, context = m.calls;
                fault.fail_thread = 1;
                const cmoe_status status = steps[i].run(&e, &arena, &err);
                const int64_t more_libc = fault.libc_calls - libc, more = m.calls - context;
                if (status != CMOE_OK) fail_msg("%s: %s", steps[i].name, err.text);
                if (more_libc || more || !fault.fail_thread)
                    fail_msg("%s asks %d times for memory", steps[i].name, (int)(more_libc + more));
                fault.fail_thread = 0;
                free(arena.base);
            }
        }
        steps_close(&e);
        assert_int_equal(m.blocks, 0);
    }
}

/* The guard sees what it should: creating something does ask for memory. */
static void the_guard_is_awake(void **state)
{
    (void)state;
    fault_memory m = {0};
    const int64_t libc = fault.libc_calls;
    unit_env e = unit_open(2);
    assert_true(fault.libc_calls >= libc + 3);
    unit_close(&e);
    e = fault_env(&m, 2);
    assert_int_equal(m.calls, 3);
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_is_allocated),
                                       cmocka_unit_test(the_guard_is_awake)};
    return UNIT_RUN("faults_forward", tests);
}
