/* SPDX-License-Identifier: MIT
 *
 * template.c - chat templates: what is refused and with which words, limits, places of a model's
 * directory, time, and memory given back.  What renders how is compared with Jinja itself by
 * tests/golden/text.
 */
#define _GNU_SOURCE
#include "unit.h"

#include <stdbool.h>

#include <sys/stat.h>
#include <unistd.h>

#include "cmoe/text.h"

static unit_env env;

static cmoe_status render(const char *source, const char *variables, const cmoe_render_options *o,
                          char **text, int64_t *bytes, cmoe_error *err)
{
    cmoe_template *t = NULL;
    cmoe_status status =
        cmoe_template_parse(&t, env.ctx, source, (int64_t)strlen(source), "T", err);
    if (status == CMOE_OK)
        status =
            cmoe_template_render(t, o, variables, (int64_t)strlen(variables), text, bytes, err);
    cmoe_template_free(t);
    return status;
}

typedef struct sample {
    const char *source, *want; /* text, or what the error begins with */
} sample;

static void renders(const char *source, const char *variables, const cmoe_render_options *o,
                    const char *want)
{
    char *text = NULL;
    int64_t bytes = -1;
    cmoe_error err = {0};
    if (render(source, variables, o, &text, &bytes, &err) != CMOE_OK)
        fail_msg("%s: %s", source, err.text);
    if ((size_t)bytes != strlen(want) || memcmp(text, want, (size_t)bytes) != 0)
        fail_msg("%s: \"%.*s\", want \"%s\"", source, (int)bytes, text, want);
    cmoe_text_free(env.ctx, text, bytes);
}

/* Widths that are smaller than the text, and counts below zero, down to the least integer there is. */
static void least_integer(void **state)
{
#define LEAST "(-9223372036854775807 - 1)"
    static const sample all[] = {{"{{ 'ab' | center(1) }}|{{ '' | center(-1) }}", "ab|"},
                                 {"{{ 'abc' | center(" LEAST ") }}", "abc"},
                                 {"{{ 'abc'.center(" LEAST ") }}", "abc"},
                                 {"{{ 'abc'.ljust(" LEAST ") }}", "abc"},
                                 {"{{ 'abc'.rjust(" LEAST ") }}", "abc"},
                                 {"{{ '-7'.zfill(" LEAST ") }}", "-7"},
                                 {"{{ 'aab' | replace('a', 'x', " LEAST ") }}", "xxb"},
                                 {"{{ 'aab'.replace('a', 'x', " LEAST ") }}", "xxb"},
                                 {"{{ 'ab'.replace('', '.', " LEAST ") }}", ".a.b."},
                                 {"{{ 'a b c'.split(none, " LEAST ") | join('-') }}", "a-b-c"},
                                 {"{{ 'a b c'.split(' ', " LEAST ") | join('-') }}", "a-b-c"},
                                 {"{{ 'a b c'.rsplit(none, " LEAST ") | join('-') }}", "a-b-c"},
                                 {"{{ 'a b c'.rsplit(' ', " LEAST ") | join('-') }}", "a-b-c"}};
#undef LEAST
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        renders(all[i].source, "{}", NULL, all[i].want);
}

static void refuses(const char *source, const cmoe_render_options *o, const char *want)
{
    char *text = NULL;
    int64_t bytes = -1;
    cmoe_error err = {0};
    const cmoe_status status =
        render(source, "{\"l\": [1, 2], \"s\": \"x\"}", o, &text, &bytes, &err);
    if (status != CMOE_ERR_FORMAT || err.status != status || text || bytes != -1)
        fail_msg("%s: %s", source, cmoe_status_name(status));
    if (strncmp(err.text, want, strlen(want)) != 0)
        fail_msg("%s: \"%s\", want \"%s\"", source, err.text, want);
}

static void errors(void **state)
{
    (void)state;
    static const sample samples[] = {
        /* what is known and refused, at parsing: also where it would never run */
        {"a\n{% include 'x' %}", "template T, line 2: {% include %} is not supported"},
        {"{% extends 'x' %}", "template T, line 1: {% extends %} is not supported"},
        {"{% import 'x' as y %}", "template T, line 1: {% import %} is not supported"},
        {"{% block b %}{% endblock %}", "template T, line 1: {% block %} is not supported"},
        {"{% if false %}\n{{ 1 | urlize }}{% endif %}",
         "template T, line 2: filter 'urlize' is not supported"},
        {"{{ 1 | nope }}", "template T, line 1: filter 'nope' is not supported"},
        {"{{ 1 is nope }}", "template T, line 1: test 'nope' is not supported"},
        {"{% nope %}", "template T, line 1: unknown tag {% nope %}"},
        {"{{ f(*l) }}", "template T, line 1: * in front of an argument is not supported"},
        {"{{ l[1, 2] }}", "template T, line 1: a tuple as an index is not supported"},
        {"{{ 99999999999999999999 }}",
         "template T, line 1: integer 99999999999999999999 does not fit into 64 bits"},
        {"{{ '\\N{DASH}' }}", "template T, line 1: bad escape \\N in a string"},
        {"{{ '\\ud800' }}", "template T, line 1: bad escape \\u in a string"},
        /* at rendering */
        {"{{ s.casefold() }}", "template T, line 1: 'casefold' of 'str object' is not supported"},
        {"{{ joiner(',') }}", "template T, line 1: function 'joiner' is not supported"},
        {"{{ strftime_now('%Q') }}", "template T, line 1: strftime_now: %Q is not supported"},
        {"\n\n{{ nope.x }}", "template T, line 3: 'nope' is undefined"},
        {"{{ l.nope() }}", "template T, line 1: 'list object' has no attribute 'nope'"},
        {"{{ l[9] + 1 }}", "template T, line 1: list object has no element 9"},
        {"{{ l.append(1) }}",
         "template T, line 1: access to attribute 'append' of 'list' object is unsafe."},
        {"{{ s.__class__.__mro__ }}",
         "template T, line 1: access to attribute '__class__' of 'str' object is unsafe."},
        {"{{ raise_exception('roles must\nalternate') }}",
         "template T, line 1: roles must\nalternate"},
        {"{{ 9223372036854775807 + 1 }}",
         "template T, line 1: an integer does not fit into 64 bits"},
        {"{{ -9223372036854775807 - 2 }}",
         "template T, line 1: an integer does not fit into 64 bits"},
        {"{{ 3037000500 * 3037000500 }}",
         "template T, line 1: an integer does not fit into 64 bits"},
        {"{{ 2 ** 63 }}", "template T, line 1: an integer does not fit into 64 bits"},
        {"{% macro f(a) %}\n{{ a + 'x' }}{% endmacro %}\n\n{{ f(1) }}",
         "template T, line 2: unsupported operand type(s) for +: 'int' and 'str'"},
        {"{{ f }}{% for x in 3 %}{% endfor %}", "template T, line 1: 'int' object is not iterable"},
    };
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++)
        refuses(samples[i].source, NULL, samples[i].want);
}

static void limits(void **state)
{
    (void)state;
    cmoe_render_options o;
    cmoe_render_options_default(&o, sizeof o);
    o.steps = 100000;
    o.output = 100000;
    static const sample samples[] = {
        {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         "template T, line 1: takes more than 100000 steps"},
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
         "template T, line 1: evaluation is nested more than"},
        {"{{ 'a' * 10 ** 9 }}", "template T, line 1: a string gets longer than 100000 bytes"},
        {"{{ [1] * 10 ** 9 }}", "template T, line 1: takes more than 100000 steps"},
        {"{{ [1] * 10 ** 18 }}", "template T, line 1: takes more than 100000 steps"},
        {"{{ [] * 10 ** 18 }}{% for i in range(9) %}{{ 'x' * 20000 }}{% endfor %}",
         "template T, line 1: gives more than 100000 bytes"},
        {"{{ 'x'.ljust(10 ** 12) }}", "template T, line 1: gives more than 100000 bytes"},
        {"{{ 'x' | center(10 ** 12) }}", "template T, line 1: gives more than 100000 bytes"},
        {"{{ '%9999999999s' % 1 }}", "template T, line 1: a width above 10000 is not supported"},
        {"{% set ns = namespace(x=[], y=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] "
         "%}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
         "template T, line 1: takes more than 100000 steps"},
        {"{% set ns = namespace(x=()) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% "
         "endfor %}{{ {ns.x: 1} }}",
         "template T, line 1: takes more than 100000 steps"},
        {"{% for i in range(9999) %}{% set x = ('a' * 50000 ~ 'b').rfind('b' ~ 'a' * 25000) %}{% "
         "endfor %}",
         "template T, line 1: takes more than 100000 steps"},
        {"{{ range(100001) }}", "template T, line 1: Range too big."},
        {"{{ [1] | tojson(indent=10 ** 12) }}", "template T, line 1: gives more than 100000 bytes"},
        {"{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor "
         "%}{{ ns.x }}",
         "template T, line 1: values are nested more than"},
        {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
         "template T, line 1: values are nested more than"},
        {"{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% "
         "endfor %}",
         "template T, line 1: a string gets longer than 100000 bytes"},
    };
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++)
        refuses(samples[i].source, &o, samples[i].want);
    /* Nesting of the source itself. */
    enum { N = 5000 };
    char *deep = malloc(8 * N);
    static const char *const open[] = {"(", "[", "not ", "-", "{% if x %}", "x.y(", "x["};
    for (size_t k = 0; k < sizeof open / sizeof open[0]; k++) {
        const bool tag = open[k][0] == '{';
        strcpy(deep, tag ? "" : "{{ ");
        for (int i = 0; i < 300; i++)
            strcat(deep, open[k]);
        strcat(deep, tag ? "" : "1 }}");
        cmoe_error err = {0};
        cmoe_template *t = NULL;
        assert_int_equal(cmoe_template_parse(&t, env.ctx, deep, (int64_t)strlen(deep), "T", &err),
                         CMOE_ERR_FORMAT);
        if (!strstr(err.text, "nested more than")) fail_msg("%s: %s", open[k], err.text);
    }
    /* A long chain is no nesting for the parser, but for evaluation. */
    strcpy(deep, "{{ 1");
    for (int i = 0; i < N; i++)
        memcpy(deep + 4 + 2 * i, "+1", 3);
    strcat(deep, " }}");
    refuses(deep, NULL, "template T, line 1: evaluation is nested more than");
    free(deep);
}

/* A loop that appends to a string is linear: a megabyte in small pieces fits the limits. */
static void appending(void **state)
{
    (void)state;
    char *text = NULL;
    int64_t bytes = 0;
    UNIT_OK(render("{% set ns = namespace(t='') %}{% for i in range(99999) %}{% set ns.t = ns.t ~ "
                   "'0123456789' %}{% endfor %}{{ ns.t }}",
                   "{}", NULL, &text, &bytes, &err));
    assert_int_equal(bytes, 999990);
    cmoe_text_free(env.ctx, text, bytes);
    /* Two strings that begin alike and go on differently. */
    renders(
        "{% set a = 'x' * 300 %}{% set b = a + 'b' %}{% set c = b + 'c' %}{% set d = b + 'd' %}{{ "
        "b[299:] }}{{ c[299:] }}{{ d[299:] }}",
        "{}", NULL, "xbxbcxbd");
}

static void time_now(void **state)
{
    (void)state;
    cmoe_render_options o;
    cmoe_render_options_default(&o, sizeof o);
    renders("{{ strftime_now('%Y-%m-%d %H:%M:%S %a %b %j') }}", "{}", &o,
            "1970-01-01 00:00:00 Thu Jan 001");
    o.now = 1709210096; /* a leap day */
    renders(
        "{{ strftime_now('%d %B %Y') }}|{{ strftime_now('%A %-d %-m %y %I %p %w %u %%') }}|{{ "
        "strftime_now('%F %T %R %D %e %j %f') }}",
        "{}", &o,
        "29 February 2024|Thursday 29 2 24 12 PM 4 4 %|2024-02-29 12:34:56 12:34 02/29/24 29 060 "
        "000000");
    o.now = -1;
    renders("{{ strftime_now('%F %T %a') }}", "{}", &o, "1969-12-31 23:59:59 Wed");
    o.now = 951782400;
    renders("{{ strftime_now('%F %j') }}", "{}", &o, "2000-02-29 060");
    o.now = 1735603200;
    renders("{{ strftime_now('%F %j') }}", "{}", &o, "2024-12-31 366");
}

/* Numbers, names and zeros survive the way from JSON; caller's variables win over functions. */
static void variables(void **state)
{
    (void)state;
    renders("{{ b.c[1] }}{{ b.d }}{{ a | length }}{{ big }}{{ 'x' in b }}{{ range }}",
            "{\"a\": \"\\u0000x\", \"b\": {\"c\": [1, \"z\"], \"d\": 1e16}, \"big\": "
            "-9223372036854775808, \"range\": 5}",
            NULL, "z1e+162-9223372036854775808False5");
    renders("{{ a | from_json }}{{ a | from_json | tojson }}",
            "{\"a\": \"{\\\"k\\\": [1, null]}\"}", NULL, "{'k': [1, None]}{\"k\": [1, null]}");
}

static void arguments(void **state)
{
    (void)state;
    cmoe_template *t = NULL;
    char *text = NULL;
    int64_t bytes = 0;
    cmoe_render_options o;
    cmoe_render_options_default(&o, sizeof o);
    UNIT_FAILS(cmoe_template_parse(NULL, env.ctx, "", 0, NULL, &err), CMOE_ERR_ARG,
               "must be given");
    UNIT_FAILS(cmoe_template_parse(&t, env.ctx, NULL, 3, NULL, &err), CMOE_ERR_ARG, "3 bytes");
    UNIT_FAILS(cmoe_template_parse(&t, env.ctx, "", -1, NULL, &err), CMOE_ERR_ARG, "-1 bytes");
    UNIT_FAILS(cmoe_template_parse(&t, env.ctx, "ab\xff", 3, NULL, &err), CMOE_ERR_FORMAT,
               "template source, line 1: byte 2 is not UTF-8");
    UNIT_OK(cmoe_template_parse(&t, env.ctx, NULL, 0, NULL, &err));
    UNIT_OK(cmoe_template_render(t, NULL, "{}", 2, &text, &bytes, &err));
    assert_int_equal(bytes, 0);
    cmoe_text_free(env.ctx, text, bytes);
    UNIT_FAILS(cmoe_template_render(t, NULL, "[]", 2, &text, &bytes, &err), CMOE_ERR_FORMAT,
               "variables are no JSON object");
    UNIT_FAILS(cmoe_template_render(t, NULL, "{\"a\":1,\"a\":2}", 13, &text, &bytes, &err),
               CMOE_ERR_FORMAT, "duplicate");
    UNIT_FAILS(cmoe_template_render(t, NULL, "", 0, &text, &bytes, &err), CMOE_ERR_FORMAT,
               "variables are no JSON");
    UNIT_FAILS(cmoe_template_render(t, NULL, "{}", -2, &text, &bytes, &err), CMOE_ERR_ARG, "-2");
    UNIT_FAILS(cmoe_template_render(NULL, NULL, "{}", 2, &text, &bytes, &err), CMOE_ERR_ARG, "");
    o.steps = 0;
    UNIT_FAILS(cmoe_template_render(t, &o, "{}", 2, &text, &bytes, &err), CMOE_ERR_RANGE,
               "steps = 0");
    cmoe_template_free(t);
    cmoe_template_free(NULL);
    cmoe_text_free(env.ctx, NULL, 0);
}

/* ---- files ----------------------------------------------------------------------------------- */

static char folder[64];

static void put(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!text) {
        unlink(path);
        return;
    }
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(text, 1, strlen(text), f);
    fclose(f);
}

static void opens(const char *name, const char *want)
{
    cmoe_template *t = NULL;
    char *text = NULL;
    int64_t bytes = 0;
    UNIT_OK(cmoe_template_open(&t, env.ctx, folder, name, &err));
    UNIT_OK(cmoe_template_render(t, NULL, "{}", 2, &text, &bytes, &err));
    assert_int_equal(bytes, strlen(want));
    assert_memory_equal(text, want, bytes);
    cmoe_text_free(env.ctx, text, bytes);
    cmoe_template_free(t);
}

static void places(void **state)
{
    (void)state;
    cmoe_template *t = NULL;
    strcpy(folder, "template_XXXXXX");
    assert_non_null(mkdtemp(folder));
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, folder, NULL, &err), CMOE_ERR_IO,
               "no chat template: want chat_template.jinja");
    put("chat_template.json", "{\"chat_template\": \"processor\"}");
    opens(NULL, "processor");
    put("tokenizer_config.json", "{\"bos_token\": \"<s>\"}");
    opens(NULL, "processor");
    put("tokenizer_config.json", "{\"chat_template\": null}");
    opens(NULL, "processor");
    put("tokenizer_config.json", "{\"chat_template\": \"config\"}");
    opens(NULL, "config");
    opens("default", "config");
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, folder, "rag", &err), CMOE_ERR_FORMAT,
               "no chat template \"rag\", want one of: default");
    put("tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"first\"}, "
        "{\"name\": \"tool_use\", \"template\": \"second\"}]}");
    opens(NULL, "first");
    opens("tool_use", "second");
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, folder, "rag", &err), CMOE_ERR_FORMAT,
               "want one of: default tool_use");
    put("chat_template.jinja", "file {{ 1 + 1 }}\n");
    opens(NULL, "file 2");
    opens("tool_use", "second");
    put("chat_template.jinja", "a\n{{");
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, folder, NULL, &err), CMOE_ERR_FORMAT,
               "chat_template.jinja, line 2: tag without }}");
    put("chat_template.jinja", NULL);
    put("tokenizer_config.json", "{\"chat_template\": 5}");
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, folder, NULL, &err), CMOE_ERR_FORMAT,
               "chat_template is no string");
    put("tokenizer_config.json", "{");
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, folder, NULL, &err), CMOE_ERR_FORMAT, "no JSON");
    put("one.txt", "{{ 'one' }}");
    char path[128];
    snprintf(path, sizeof path, "%s/one.txt", folder);
    UNIT_OK(cmoe_template_open(&t, env.ctx, path, NULL, &err));
    cmoe_template_free(t);
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, path, "rag", &err), CMOE_ERR_ARG, "is one template");
    put("one.txt", NULL);
    UNIT_FAILS(cmoe_template_open(&t, env.ctx, path, NULL, &err), CMOE_ERR_IO,
               "one.txt: No such file");
    put("tokenizer_config.json", NULL);
    put("chat_template.json", NULL);
    rmdir(folder);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static struct {
    int64_t blocks, calls, fail_at;
} memory;

static void *count_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    if (++memory.calls == memory.fail_at) return NULL;
    memory.blocks++;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void count_free(void *user, void *p, size_t bytes)
{
    (void)user;
    (void)bytes;
    memory.blocks -= p != NULL;
    free(p);
}

/* The n-th allocation fails, n = 1, 2, ...: always a status, and nothing is kept. */
static void no_memory(void **state)
{
    (void)state;
    static const char source[] = "{% macro m(a) %}{{ a ~ 'x' * 50000 }}{% endmacro %}{% for c in l "
                                 "%}{{ m(c) | upper | length "
                                 "}}{{ l | tojson }}{% endfor %}";
    cmoe_ctx *ctx = NULL;
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.allocator = (cmoe_allocator){.alloc = count_alloc, .free = count_free};
    o.threads = 1;
    UNIT_OK(cmoe_ctx_create(&ctx, &o, &err));
    const int64_t blocks = memory.blocks;
    cmoe_status status = CMOE_ERR_MEMORY;
    int64_t n = 1;
    for (; status == CMOE_ERR_MEMORY && n < 100; n++) {
        cmoe_template *t = NULL;
        cmoe_error err = {0};
        char *text = NULL;
        int64_t bytes = 0;
        memory.calls = 0;
        memory.fail_at = n;
        status = cmoe_template_parse(&t, ctx, source, sizeof source - 1, "T", &err);
        if (status == CMOE_OK)
            status = cmoe_template_render(t, NULL, "{\"l\": [1, 2]}", 13, &text, &bytes, &err);
        cmoe_text_free(ctx, text, bytes);
        cmoe_template_free(t);
        assert_int_equal(memory.blocks, blocks);
    }
    assert_int_equal(status, CMOE_OK);
    assert_true(n > 6);
    memory.fail_at = 0;
    cmoe_ctx_free(ctx);
    assert_int_equal(memory.blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors),   cmocka_unit_test(limits),    cmocka_unit_test(appending),
        cmocka_unit_test(time_now), cmocka_unit_test(variables), cmocka_unit_test(arguments),
        cmocka_unit_test(places),   cmocka_unit_test(no_memory), cmocka_unit_test(least_integer),
    };
    env = unit_open(1);
    const int failed = UNIT_RUN("template", tests);
    unit_close(&env);
    return failed;
}
