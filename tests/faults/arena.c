/* SPDX-License-Identifier: MIT
 *
 * arena.c - each step with an arena of every size below the one that _bytes names: CMOE_ERR_MEMORY
 * with outputs untouched, or, where alignment left some slack, the whole result.
 */
#include "steps.h"

static void *guarded(int64_t bytes, int offset)
{
    const size_t total = ((size_t)bytes + 192 + 63) / 64 * 64;
    unsigned char *block = aligned_alloc(64, total); /* the same slack at every size */
    memset(block, 0xa5, total);
    return block + 64 + offset;
}

static void release(void *base, int64_t bytes, int offset)
{
    unsigned char *block = (unsigned char *)base - 64 - offset;
    for (int64_t i = 0; i < 64 + offset; i++)
        assert_int_equal(block[i], 0xa5);
    for (int64_t i = 64 + offset + bytes; i < bytes + 192; i++)
        assert_int_equal(block[i], 0xa5);
    free(block);
}

/* One call with so much memory; true when it succeeded. */
static bool try_size(steps_env *e, const step *s, int64_t bytes, int64_t need, int offset)
{
    static steps_out untouched;
    cmoe_error err = {0};
    void *base = guarded(bytes, offset);
    cmoe_arena arena = cmoe_arena_make(base, bytes);
    memset(&e->out, 0x5a, sizeof e->out);
    memset(&untouched, 0x5a, sizeof untouched);
    const cmoe_status status = s->run(e, &arena, &err);
    if (status != CMOE_OK) {
        if (status != CMOE_ERR_MEMORY || !strstr(err.text, "arena ") ||
            !strstr(err.text, "want ") || !strstr(err.text, "_bytes)"))
            fail_msg("%s with %d of %d bytes: %s (\"%s\")", s->name, (int)bytes, (int)need,
                     cmoe_status_name(status), err.text);
        if (memcmp(&e->out, &untouched, sizeof untouched) != 0)
            fail_msg("%s with %d of %d bytes fails and writes", s->name, (int)bytes, (int)need);
    }
    assert_true(arena.base == base && arena.bytes == bytes);
    if (!s->keeps || status != CMOE_OK) assert_int_equal(arena.used, 0);
    release(base, bytes, offset);
    return status == CMOE_OK;
}

static void every_size(steps_env *e, const step *s)
{
    int64_t need = -1;
    UNIT_OK(s->bytes(e, &need, &err));
    assert_true(need >= 0);
    const int offsets[] = {0, 1, 63};
    for (int o = 0; o < 3; o++) {
        if (!try_size(e, s, need, need, offsets[o]))
            fail_msg("%s: its own size of %d bytes is not enough", s->name, (int)need);
        bool enough = false;
        for (int64_t bytes = 0; bytes < need;
             bytes += bytes < 300 || need - bytes < 300 ? 1 : need / 37 + 1) {
            const bool worked = try_size(e, s, bytes, need, offsets[o]);
            if (enough && !worked)
                fail_msg("%s: less than %d bytes were enough", s->name, (int)bytes);
            enough = worked;
        }
        if (need > 64) assert_false(try_size(e, s, 0, need, offsets[o]));
    }
    if (need > 64) UNIT_FAILS(s->run(e, NULL, &err), CMOE_ERR_MEMORY, "arena ");
}

static void too_small(void **state)
{
    (void)state;
    static steps_env e;
    for (int32_t threads = 1; threads < 4; threads += 2) {
        fault_memory m = {0};
        steps_open(&e, &m, threads);
        for (int i = 0; i < STEPS; i++) {
            for (e.which = 0; e.which < steps[i].formats; e.which++)
                every_size(&e, &steps[i]);
        }
        steps_close(&e);
    }
}

/* Behind what others carved: scratch begins at `used`, and `used` stands there again afterwards. */
static void half_used(void **state)
{
    (void)state;
    static steps_env e;
    fault_memory m = {0};
    steps_open(&e, &m, 1);
    for (int i = 0; i < STEPS; i++) {
        for (e.which = 0; e.which < steps[i].formats; e.which++) {
            int64_t need = 0;
            UNIT_OK(steps[i].bytes(&e, &need, &err));
            cmoe_arena arena = unit_arena(need + 1000);
            memset(arena.base, 0xa5, 1000);
            arena.used = 1000;
            UNIT_OK(steps[i].run(&e, &arena, &err));
            if (steps[i].keeps)
                assert_true(arena.used >= 1000 && arena.used <= arena.bytes);
            else
                assert_int_equal(arena.used, 1000);
            for (int b = 0; b < 1000; b++)
                assert_int_equal(((unsigned char *)arena.base)[b], 0xa5);
            free(arena.base);
        }
    }
    steps_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(too_small), cmocka_unit_test(half_used)};
    return UNIT_RUN("faults_arena", tests);
}
