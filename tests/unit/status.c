/* SPDX-License-Identifier: MIT
 *
 * status.c - names, versions, error texts of any size, option structs of older and newer headers,
 * and checked sizes.
 */
#include "unit.h"

#include "cmoe/attention.h"
#include "cmoe/dispatch.h"
#include "cmoe/ops.h"
#include "core/core.h"

static void names(void **state)
{
    (void)state;
    const char *const want[] = {
        "CMOE_OK",           "CMOE_ERR_ARG",         "CMOE_ERR_SHAPE",  "CMOE_ERR_DTYPE",
        "CMOE_ERR_RANGE",    "CMOE_ERR_UNSUPPORTED", "CMOE_ERR_MEMORY", "CMOE_ERR_IO",
        "CMOE_ERR_FORMAT",   "CMOE_ERR_DEVICE",      "CMOE_ERR_COMM",   "CMOE_ERR_CANCELLED",
        "CMOE_ERR_INTERNAL",
    };
    for (int i = 0; i < 13; i++)
        assert_string_equal(cmoe_status_name((cmoe_status)-i), want[i]);
    assert_string_equal(cmoe_status_name((cmoe_status)-13), "CMOE_ERR_UNKNOWN");
    assert_string_equal(cmoe_status_name((cmoe_status)1), "CMOE_ERR_UNKNOWN");
}

static void versions(void **state)
{
    (void)state;
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", CMOE_VERSION_MAJOR, CMOE_VERSION_MINOR,
             CMOE_VERSION_PATCH);
    assert_string_equal(cmoe_version(), text);
    assert_int_equal(cmoe_abi_version(), CMOE_VERSION_MAJOR << 16 | CMOE_VERSION_MINOR);
}

static void error_text(void **state)
{
    (void)state;
    assert_int_equal(cmoei_fail(NULL, CMOE_ERR_IO, "nobody listens"), CMOE_ERR_IO);

    cmoe_error err = {0};
    assert_int_equal(cmoei_fail(&err, CMOE_ERR_SHAPE, "x: dims[%d] = %d", 1, 7), CMOE_ERR_SHAPE);
    assert_int_equal(err.status, CMOE_ERR_SHAPE);
    assert_string_equal(err.text, "x: dims[1] = 7");

    /* Longer than the text: cut, and terminated. */
    char words[2000];
    memset(words, 'w', sizeof words);
    words[sizeof words - 1] = '\0';
    cmoei_fail(&err, CMOE_ERR_ARG, "%s", words);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
}

/* Structs that a call reads or fills: their size, and zeros. */
#define EMPTY(type)                                                \
    do {                                                           \
        type made, want;                                           \
        memset(&made, 0x5a, sizeof made);                          \
        memset(&want, 0, sizeof want);                             \
        want.size = sizeof want;                                   \
        type##_default(&made, sizeof made);                        \
        assert_memory_equal(&made, &want, sizeof want);            \
        type##_default(NULL, sizeof made);                         \
        memset(&made, 0x5a, sizeof made);                          \
        type##_default(&made, sizeof made.size);                   \
        assert_int_equal(made.size, sizeof made.size);             \
        assert_int_equal(((char *)&made)[sizeof made.size], 0x5a); \
    } while (0)

static void empty_structs(void **state)
{
    (void)state;
    EMPTY(cmoe_kv);
    EMPTY(cmoe_batch);
    EMPTY(cmoe_received);
    EMPTY(cmoe_gdn_pack_out);
    EMPTY(cmoe_experts_info);
}

/* A caller's struct may be smaller than ours (an older header), and what lies behind is theirs. */
static void error_of_another_size(void **state)
{
    (void)state;
    for (size_t size = 1; size < 40; size++) {
        cmoe_error err;
        memset(&err, 0x5a, sizeof err);
        err.size = size;
        cmoei_fail(&err, CMOE_ERR_RANGE, "a text of more than forty characters, to be cut off");
        const unsigned char *bytes = (const unsigned char *)&err;
        const size_t head = offsetof(cmoe_error, text);
        if (size >= head) assert_int_equal(err.status, CMOE_ERR_RANGE);
        if (size > head) assert_int_equal(strlen(err.text), size - head - 1);
        for (size_t i = size < head ? sizeof size : size; i < sizeof err; i++)
            assert_int_equal(bytes[i], 0x5a);
    }
    cmoe_error err = {.size = 1 << 20}; /* a newer header: what we do not know is left alone */
    cmoei_fail(&err, CMOE_ERR_RANGE, "text");
    assert_string_equal(err.text, "text");
}

typedef struct opt {
    size_t size;
    int64_t a, b;
} opt;

typedef struct opt_newer {
    size_t size;
    int64_t a, b, c;
} opt_newer;

static cmoe_status read_opt(opt *o, const void *src, cmoe_error *err)
{
    *o = (opt){sizeof *o, 10, 20};
    return cmoei_options_read(o, sizeof *o, src, "opt", err);
}

static void options(void **state)
{
    (void)state;
    opt o;
    UNIT_OK(read_opt(&o, NULL, &err));
    assert_int_equal(o.b, 20);
    UNIT_OK(read_opt(&o, &((opt){sizeof(opt), 1, 2}), &err));
    assert_int_equal(o.a, 1);
    assert_int_equal(o.b, 2);

    /* Older: what it lacks keeps its default. */
    UNIT_OK(read_opt(&o, &((opt){offsetof(opt, b), 1, 2}), &err));
    assert_int_equal(o.a, 1);
    assert_int_equal(o.b, 20);
    assert_int_equal(o.size, sizeof o);

    /* Newer: fine as long as the unknown part says nothing. */
    UNIT_OK(read_opt(&o, &((opt_newer){sizeof(opt_newer), 1, 2, 0}), &err));
    assert_int_equal(o.size, sizeof o);
    const opt_newer newer = {sizeof newer, 1, 2, 256};
    UNIT_FAILS(
        read_opt(&o, &newer, &err), CMOE_ERR_UNSUPPORTED,
        "opt.size = 32 and byte 25 is set: made for a newer cmoe, this is 0.1.0 with 24 bytes");
    assert_int_equal(o.a, 10); /* untouched */

    UNIT_FAILS(read_opt(&o, &((opt){0, 1, 2}), &err), CMOE_ERR_ARG,
               "opt.size = 0, want sizeof(opt), as its _default sets it");
    UNIT_FAILS(read_opt(&o, &((opt){sizeof(size_t) - 1, 1, 2}), &err), CMOE_ERR_ARG,
               "opt.size = 7");
    UNIT_FAILS(read_opt(&o, &((opt){65537, 1, 2}), &err), CMOE_ERR_ARG, "opt.size = 65537");
}

static void options_written(void **state)
{
    (void)state;
    const opt ours = {sizeof ours, 1, 2};
    opt_newer theirs = {9, 9, 9, 9};
    cmoei_options_write(&theirs, sizeof theirs, &ours, sizeof ours);
    assert_int_equal(theirs.size, sizeof theirs);
    assert_int_equal(theirs.b, 2);
    assert_int_equal(theirs.c, 0);

    theirs = (opt_newer){9, 9, 9, 9};
    cmoei_options_write(&theirs, offsetof(opt, b), &ours, sizeof ours);
    assert_int_equal(theirs.size, offsetof(opt, b));
    assert_int_equal(theirs.a, 1);
    assert_int_equal(theirs.b, 9); /* beyond the caller's struct */

    cmoei_options_write(NULL, sizeof theirs, &ours, sizeof ours);
    cmoei_options_write(&theirs, sizeof(size_t) - 1, &ours, sizeof ours);
    assert_int_equal(theirs.a, 1);
}

static void name_list(void **state)
{
    (void)state;
    const char *const list[] = {"silu", "relu2"};
    assert_int_equal(cmoei_name_find(list, 2, "relu2"), 1);
    assert_int_equal(cmoei_name_find(list, 2, "relu"), -1);
    assert_int_equal(cmoei_name_find(list, 2, ""), -1);
    assert_int_equal(cmoei_name_find(list, 2, NULL), -1);
    assert_int_equal(cmoei_name_find(list, 0, "silu"), -1);
}

static void sizes(void **state)
{
    (void)state;
    int64_t x = 77;
    assert_true(cmoei_mul(INT64_MAX, 1, &x) && x == INT64_MAX);
    assert_true(cmoei_mul(INT64_MAX, 0, &x) && x == 0);
    assert_true(cmoei_mul(0, INT64_MAX, &x) && x == 0);
    assert_true(cmoei_mul((int64_t)1 << 31, (int64_t)1 << 31, &x) && x == (int64_t)1 << 62);
    assert_true(cmoei_add(INT64_MAX - 1, 1, &x) && x == INT64_MAX);
    x = 77;
    assert_false(cmoei_mul((int64_t)1 << 32, (int64_t)1 << 31, &x));
    assert_false(cmoei_mul(-1, 1, &x));
    assert_false(cmoei_mul(1, -1, &x));
    assert_false(cmoei_mul(INT64_MAX, 2, &x));
    assert_false(cmoei_add(INT64_MAX, 1, &x));
    assert_false(cmoei_add(-1, 1, &x));
    assert_false(cmoei_add(1, -1, &x));
    assert_int_equal(x, 77);
    assert_int_equal(cmoei_ceil_div(0, 7), 0);
    assert_int_equal(cmoei_ceil_div(7, 7), 1);
    assert_int_equal(cmoei_ceil_div(8, 7), 2);
    assert_int_equal(cmoei_ceil_div(INT64_MAX, 2), INT64_MAX / 2 + 1);
    assert_int_equal(cmoei_round_up(65, 64), 128);
}

static void arena(void **state)
{
    (void)state;
    /* What a dry run counts is enough at every address, and one byte less is not always. */
    for (int offset = 0; offset < 64; offset++) {
        cmoei_carver dry = cmoei_carver_dry();
        assert_null(cmoei_carve(&dry, 100));
        assert_null(cmoei_carve_array(&dry, 3, 8));
        const int64_t bytes = cmoei_carver_bytes(&dry);
        char *block = malloc((size_t)bytes + 64);
        const cmoe_arena a = cmoe_arena_make(block + offset, bytes);
        cmoei_carver c = cmoei_carver_open(&a);
        char *first = cmoei_carve(&c, 100), *second = cmoei_carve_array(&c, 3, 8);
        UNIT_OK(cmoei_carver_check(&c, "op", &err));
        assert_true((uintptr_t)first % CMOEI_ALIGN == 0 && (uintptr_t)second % CMOEI_ALIGN == 0);
        assert_true(first >= block + offset && second >= first + 100);
        assert_true(second + 24 <= block + offset + bytes);
        free(block);
    }
}

static void arena_errors(void **state)
{
    (void)state;
    char block[256];
    cmoe_arena a = cmoe_arena_make(block, 64);
    cmoei_carver c = cmoei_carver_open(&a);
    assert_null(cmoei_carve(&c, 100));
    UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_MEMORY,
               "op: arena of 64 bytes is too small, want at least ");
    UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_MEMORY, "(ask cmoe_op_bytes)");

    c = cmoei_carver_open(NULL);
    UNIT_OK(cmoei_carver_check(&c, "op", &err)); /* nothing wanted, nothing missing */
    assert_null(cmoei_carve(&c, 1));
    UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_MEMORY, "arena of 0 bytes");

    /* An arena whose numbers make no sense gives nothing. */
    const cmoe_arena odd[] = {{NULL, 64, 0}, {block, 64, -1}, {block, 64, 65}, {block, -1, 0}};
    for (int i = 0; i < 4; i++) {
        c = cmoei_carver_open(&odd[i]);
        assert_null(cmoei_carve(&c, 1));
        UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_MEMORY, "too small");
    }
    c = cmoei_carver_dry();
    cmoei_carve_array(&c, INT64_MAX, 2);
    UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_SHAPE,
               "op: its scratch memory would exceed 2^63 - 1 bytes");
    assert_int_equal(cmoei_carver_bytes(&c), INT64_MAX);
    c = cmoei_carver_dry();
    cmoei_carve(&c, INT64_MAX);
    cmoei_carve(&c, INT64_MAX);
    UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_SHAPE, "exceed 2^63 - 1");
    c = cmoei_carver_dry();
    cmoei_carve(&c, -1);
    UNIT_FAILS(cmoei_carver_check(&c, "op", &err), CMOE_ERR_SHAPE, "exceed 2^63 - 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(versions),
        cmocka_unit_test(error_text),
        cmocka_unit_test(empty_structs),
        cmocka_unit_test(error_of_another_size),
        cmocka_unit_test(options),
        cmocka_unit_test(options_written),
        cmocka_unit_test(name_list),
        cmocka_unit_test(sizes),
        cmocka_unit_test(arena),
        cmocka_unit_test(arena_errors),
    };
    return UNIT_RUN("unit_status", tests);
}
