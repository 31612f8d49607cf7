/* SPDX-License-Identifier: MIT
 *
 * unit.h - cmocka with a closing line that counts, and a context for tests.
 */
#ifndef CMOE_UNIT_H
#define CMOE_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cmoe/cmoe.h"

/* Runs a group and prints "name: N passed, N failed" as the last line. */
#define UNIT_RUN(name, tests)                                               \
    unit_report(name, cmocka_run_group_tests_name(name, tests, NULL, NULL), \
                (int)(sizeof(tests) / sizeof((tests)[0])))

static inline int unit_report(const char *name, int failed, int all)
{
    printf("%s: %d passed, %d failed\n", name, all - failed, failed);
    return failed != 0;
}

/* A context and a stream that fail the test when they cannot be had. */
typedef struct unit_env {
    cmoe_ctx *ctx;
    cmoe_stream *stream;
} unit_env;

static inline unit_env unit_open_isa(int32_t threads, const char *isa)
{
    unit_env e = {0};
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = threads;
    if (isa) assert_int_equal(cmoe_isa_mask(isa, &o.isa_mask, &err), CMOE_OK);
    if (cmoe_ctx_create(&e.ctx, &o, &err) != CMOE_OK ||
        cmoe_stream_create(&e.stream, e.ctx, &err) != CMOE_OK)
        fail_msg("%s", err.text);
    return e;
}

static inline unit_env unit_open(int32_t threads)
{
    return unit_open_isa(threads, NULL);
}

static inline void unit_close(unit_env *e)
{
    cmoe_stream_free(e->stream);
    cmoe_ctx_free(e->ctx);
}

/* An arena on the heap, exactly as large as asked: sanitizers see one byte too many. */
static inline cmoe_arena unit_arena(int64_t bytes)
{
    return cmoe_arena_make(malloc((size_t)(bytes > 0 ? bytes : 1)), bytes);
}

/* The call must fail with this status and a text that contains this. */
#define UNIT_FAILS(call, want_status, want_text)                                          \
    do {                                                                                  \
        cmoe_error err = {0};                                                             \
        const cmoe_status got_ = (call);                                                  \
        if (got_ != (want_status) || err.status != (want_status))                         \
            fail_msg("%s: status %s, want %s (\"%s\")", #call, cmoe_status_name(got_),    \
                     cmoe_status_name(want_status), err.text);                            \
        if (!strstr(err.text, (want_text)))                                               \
            fail_msg("%s: text \"%s\", want \"%s\" in it", #call, err.text, (want_text)); \
    } while (0)

/* The call must succeed; `err` is in scope as above. */
#define UNIT_OK(call)                                                                              \
    do {                                                                                           \
        cmoe_error err = {0};                                                                      \
        const cmoe_status got_ = (call);                                                           \
        if (got_ != CMOE_OK) fail_msg("%s: %s (\"%s\")", #call, cmoe_status_name(got_), err.text); \
    } while (0)

#endif
