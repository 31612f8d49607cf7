/* SPDX-License-Identifier: MIT
 *
 * model.c - the n-th allocation fails while a model is loaded, planned, or given a cache: a status and
 * a text each time, no memory, file or mapping left behind, and the next call works.
 *
 *     faults_model FOLDER                  the golden checkpoints
 */
#include <dirent.h>

#include "cmoe/model.h"
#include "cmoe/weights.h"
#include "fault.h"

static const char *folder;

static const struct {
    const char *name;
    int32_t format;
} cases[] = {{"mixtral", CMOE_F32},    /* a rotary table to be ignored */
             {"qwen3_moe", CMOE_BF16}, /* shards */
             {"gpt_oss_mxfp4", CMOE_I8},
             {"phimoe", CMOE_F32}};
enum { CASES = sizeof cases / sizeof cases[0] };

/* ---- what is open ---------------------------------------------------------------------------- */

typedef struct outside {
    int64_t files, mappings;
} outside;

static outside outside_now(void)
{
    outside o = {0};
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        o.files++;
    closedir(dir);
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096];
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps))
        o.mappings += strstr(line, ".safetensors") != NULL;
    fclose(maps);
    return o;
}

static void check_outside(outside before)
{
    const outside now = outside_now();
    assert_int_equal(now.files, before.files);
    assert_int_equal(now.mappings, before.mappings);
}

/* ---- what is made ---------------------------------------------------------------------------- */

typedef struct world {
    cmoe_ctx *ctx;
    char path[4096];
    int32_t format;
    const cmoe_model *model; /* for a cache */
} world;

static cmoe_status make_model(const world *w, void **made, cmoe_error *err)
{
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = w->format;
    return cmoe_model_load((cmoe_model **)made, w->ctx, w->path, &o, err);
}
static void drop_model(void *made)
{
    cmoe_model_free(made);
}

static cmoe_status make_cache(const world *w, void **made, cmoe_error *err)
{
    cmoe_cache_options o;
    cmoe_cache_options_default(&o, sizeof o);
    o.pages = 3;
    return cmoe_cache_create((cmoe_cache **)made, w->model, &o, err);
}
static void drop_cache(void *made)
{
    cmoe_cache_free(made);
}

static cmoe_status make_checkpoint(const world *w, void **made, cmoe_error *err)
{
    return cmoe_checkpoint_open((cmoe_checkpoint **)made, w->ctx, w->path, err);
}
static void drop_checkpoint(void *made)
{
    cmoe_checkpoint_free(made);
}

static cmoe_status make_plan(const world *w, void **made, cmoe_error *err)
{
    cmoe_model_info info = {.size = sizeof info};
    const cmoe_status status = cmoe_model_plan(w->ctx, w->path, NULL, &info, err);
    if (status == CMOE_OK) *made = NULL;
    return status;
}
static void drop_plan(void *made)
{
    assert_null(made);
}

typedef struct subject {
    const char *name;
    cmoe_status (*make)(const world *w, void **made, cmoe_error *err);
    void (*drop)(void *made);
} subject;

static const subject subjects[] = {{"checkpoint", make_checkpoint, drop_checkpoint},
                                   {"plan", make_plan, drop_plan},
                                   {"model", make_model, drop_model},
                                   {"cache", make_cache, drop_cache}};
enum { SUBJECTS = sizeof subjects / sizeof subjects[0] };

/* ---- the n-th allocation --------------------------------------------------------------------- */

/* One try with a countdown set; true when the countdown ran out, and everything was as it should. */
static bool try(const subject *s, const world *w, int64_t *countdown, int64_t n)
{
    static const char mark;
    void *made = (void *)(uintptr_t)&mark;
    cmoe_error err = {0};
    *countdown = n;
    const cmoe_status status = s->make(w, &made, &err);
    const bool reached = *countdown == 0;
    *countdown = 0;
    if (!reached) {
        if (status != CMOE_OK) fail_msg("%s: %s", s->name, err.text);
        s->drop(made);
        return false;
    }
    if (status != CMOE_ERR_MEMORY || err.status != CMOE_ERR_MEMORY ||
        !strstr(err.text, "could not be "))
        fail_msg("%s %s, allocation %d: %s (\"%s\")", s->name, w->path, (int)n,
                 cmoe_status_name(status), err.text);
    assert_ptr_equal(made, &mark);
    return true;
}

static void until_success(const subject *s, const world *w, fault_memory *m)
{
    const fault_memory before = *m;
    const outside open = outside_now();
    int64_t n = 1;
    while (try(s, w, &m->fail_at, n)) {
        assert_int_equal(m->blocks, before.blocks);
        assert_int_equal(m->bytes, before.bytes);
        check_outside(open);
        if (n % 16 == 1) assert_false(try(s, w, &m->fail_at, INT64_MAX)); /* the next call works */
        n++;
    }
    assert_int_equal(m->blocks, before.blocks);
    check_outside(open);
    if (n < 2) fail_msg("%s allocates nothing?", s->name);
}

static void of_the_context(void **state)
{
    (void)state;
    for (int c = 0; c < CASES; c++) {
        fault_memory m = {0};
        unit_env e = fault_env(&m, 1);
        world w = {.ctx = e.ctx, .format = cases[c].format};
        snprintf(w.path, sizeof w.path, "%s/%s", folder, cases[c].name);
        void *model = NULL;
        UNIT_OK(make_model(&w, &model, &err));
        w.model = model;
        for (int i = 0; i < SUBJECTS; i++)
            until_success(&subjects[i], &w, &m);
        cmoe_model_free(model);
        unit_close(&e);
        assert_int_equal(m.blocks, 0);
        assert_int_equal(m.bytes, 0);
    }
}

/* Without an allocator of the caller's the C library's is asked, also by us directly. */
static void of_the_library(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    for (int c = 0; c < CASES; c++) {
        world w = {.ctx = e.ctx, .format = cases[c].format};
        snprintf(w.path, sizeof w.path, "%s/%s", folder, cases[c].name);
        void *model = NULL;
        UNIT_OK(make_model(&w, &model, &err));
        w.model = model;
        const outside open = outside_now();
        for (int i = 0; i < SUBJECTS; i++) {
            for (int64_t n = 1; try(&subjects[i], &w, &fault.fail_libc, n); n += 1 + n / 8) {
            }
            check_outside(open);
        }
        cmoe_model_free(model);
    }
    unit_close(&e);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_the_context),
        cmocka_unit_test(of_the_library),
    };
    if (argc != 2) {
        printf("usage: faults_model FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("faults_model", tests);
}
