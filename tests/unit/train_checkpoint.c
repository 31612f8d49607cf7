/* SPDX-License-Identifier: MIT
 *
 * train_checkpoint.c - checkpoints of a training: whole or not there, whatever happens to the files, to
 * the disk or to the writer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "files.h"

#include "cmoe/weights.h"
#include "train/checkpoint.h"

enum { A = 1000, B = 7, M = 1000, COUNT = 4 };
static const char key[] = "olmoe; lr 0.001; seed 1";

typedef struct data {
    float a[A], b[B], m[M];
    cmoei_checkpoint_array list[COUNT];
} data;

static void fill(data *d, int64_t step)
{
    for (int i = 0; i < A; i++)
        d->a[i] = d->m[i] = (float)step + (float)i / A;
    for (int i = 0; i < B; i++)
        d->b[i] = (float)(step * i);
    d->list[0] = (cmoei_checkpoint_array){"a", d->a, A, false};
    d->list[1] = (cmoei_checkpoint_array){"b \"quoted\"", d->b, B, false};
    d->list[2] = (cmoei_checkpoint_array){"m:a", d->m, M, true};
    d->list[3] = (cmoei_checkpoint_array){"none", NULL, 0, false};
}

static bool same(const data *x, int64_t step)
{
    static data want;
    fill(&want, step);
    return !memcmp(x->a, want.a, sizeof want.a) && !memcmp(x->b, want.b, sizeof want.b) &&
           !memcmp(x->m, want.m, sizeof want.m);
}

/* ---- a folder and a log ------------------------------------------------------------------------ */

typedef struct world {
    files_folder f;
    cmoe_ctx *ctx;
    char log[4096];
    data d;
} world;

static void note(void *user, int32_t level, const char *text)
{
    world *w = user;
    (void)level;
    const size_t n = strlen(w->log);
    snprintf(w->log + n, sizeof w->log - n, "%s\n", text);
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *where)
{
    (void)s, (void)kind, (void)where;
    return remove(path);
}

static void open_world(world *w)
{
    cmoe_error err = {0};
    cmoe_ctx_options o;
    memset(w, 0, sizeof *w);
    w->f = files_open("train_checkpoint");
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 2;
    o.log = note;
    o.log_user = w;
    assert_int_equal(cmoe_ctx_create(&w->ctx, &o, &err), CMOE_OK);
    w->log[0] = 0;
}

static void close_world(world *w)
{
    cmoe_ctx_free(w->ctx);
    assert_int_equal(nftw(w->f.path, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static cmoe_status save(world *w, int64_t step, int64_t keep, cmoe_error *err)
{
    const cmoei_checkpoint_write x = {w->f.path, step, key, "a note", keep};
    fill(&w->d, step);
    return cmoei_checkpoint_save(w->ctx, &x, w->d.list, COUNT, err);
}

static cmoe_status load(world *w, const char *with_key, int64_t *step, cmoe_error *err)
{
    fill(&w->d, -1);
    return cmoei_checkpoint_load(w->ctx, w->f.path, with_key, w->d.list, COUNT, step, err);
}

#define SAVE(w, step, keep) UNIT_OK(save(w, step, keep, &err))

/* The load must find this step and its contents. */
static void finds(world *w, int64_t want)
{
    int64_t step = -7;
    UNIT_OK(load(w, key, &step, &err));
    assert_int_equal(step, want);
    assert_true(same(&w->d, want > 0 ? want : -1));
}

static void fails(world *w, const char *text)
{
    int64_t step = -7;
    UNIT_FAILS(load(w, key, &step, &err), CMOE_ERR_FORMAT, text);
    assert_int_equal(step, -7);
    assert_true(same(&w->d, -1));
}

static void logged(world *w, const char *text)
{
    if (!strstr(w->log, text)) fail_msg("log \"%s\", want \"%s\" in it", w->log, text);
    w->log[0] = 0;
}

/* Entries of the folder, hidden ones too. */
static int entries(const world *w)
{
    int n = 0;
    DIR *list = opendir(w->f.path);
    for (struct dirent *e; (e = readdir(list));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(list);
    return n;
}

static bool there(const world *w, const char *name)
{
    return access(files_in(&w->f, name), F_OK) == 0;
}

#define STEP3 "step-00000003"
#define STEP5 "step-00000005"

/* ---- as it should be --------------------------------------------------------------------------- */

static void round_trip(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    finds(&w, 0);
    SAVE(&w, 3, 2);
    finds(&w, 3);
    assert_true(there(&w, STEP3 "/values.safetensors") && there(&w, STEP3 "/state.safetensors") &&
                there(&w, STEP3 "/manifest.json"));
    SAVE(&w, 5, 2);
    finds(&w, 5);
    SAVE(&w, 123456789, 2);
    finds(&w, 123456789);
    assert_int_equal(entries(&w), 2); /* 5 and the last */
    assert_false(there(&w, STEP3));
    assert_string_equal(w.log, "");
    int64_t step = -1;
    UNIT_OK(cmoei_checkpoint_load(w.ctx, "there/is/none", key, w.d.list, COUNT, &step, &err));
    assert_int_equal(step, 0);
    close_world(&w);
}

/* The same step again: the new one stands in its place. */
static void replaces(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    SAVE(&w, 3, 1);
    const cmoei_checkpoint_write x = {w.f.path, 3, "other", NULL, 1};
    int64_t step = 0;
    fill(&w.d, 4);
    UNIT_OK(cmoei_checkpoint_save(w.ctx, &x, w.d.list, COUNT, &err));
    UNIT_OK(load(&w, "other", &step, &err));
    assert_int_equal(step, 3);
    assert_true(same(&w.d, 4));
    assert_int_equal(entries(&w), 1);
    close_world(&w);
}

/* What a dead writer left goes; what is not ours stays. */
static void stale_parts(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    assert_int_equal(mkdir(files_in(&w.f, ".step-00000002.part"), 0777), 0);
    files_text(&w.f, ".step-00000002.part/values.safetensors.1-0.tmp", "half");
    assert_int_equal(mkdir(files_in(&w.f, ".step-00000003.part"), 0777), 0);
    assert_int_equal(mkdir(files_in(&w.f, "step-7"), 0777), 0); /* no name of ours */
    files_text(&w.f, "notes.txt", "mine");
    finds(&w, 0);
    SAVE(&w, 3, 1);
    finds(&w, 3);
    SAVE(&w, 5, 1);
    finds(&w, 5);
    assert_int_equal(entries(&w), 3);
    assert_true(there(&w, "notes.txt") && there(&w, "step-7"));
    close_world(&w);
}

/* A newer one that was broken does not make the writer remove what it has just written. */
static void newer_is_broken(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    SAVE(&w, 5, 1);
    files_text(&w.f, STEP5 "/values.safetensors", "broken");
    SAVE(&w, 3, 1);
    finds(&w, 3);
    logged(&w, "values.safetensors: 6 bytes, want ");
    SAVE(&w, 5, 1);
    finds(&w, 5);
    close_world(&w);
}

/* ---- broken files ------------------------------------------------------------------------------ */

static void cut(const world *w, const char *name, int64_t by)
{
    struct stat s;
    assert_int_equal(stat(files_in(&w->f, name), &s), 0);
    assert_int_equal(truncate(files_in(&w->f, name), by < 0 ? s.st_size + by : by), 0);
}

static void flip(const world *w, const char *name, int64_t at)
{
    int64_t n;
    char *text = files_get(&w->f, name, &n);
    text[at < 0 ? n + at : at] ^= 1;
    files_put(&w->f, name, text, n);
    free(text);
}

static void broken_files(void **unused)
{
    static const struct {
        const char *name;
        int64_t cut, flip; /* -100: leave */
        const char *text;
    } cases[] = {
        {"/values.safetensors", -1, -100, "bytes, want"},
        {"/values.safetensors", 0, -100, "values.safetensors: 0 bytes, want"},
        {"/state.safetensors", -5, -100, "state.safetensors: "},
        {"/state.safetensors", -100, -1, "it has changed since it was written"},
        {"/values.safetensors", -100, 0, "it has changed since it was written"},
        {"/values.safetensors", -100, 60, "it has changed since it was written"},
        {"/manifest.json", -1, -100, "manifest.json: line "},
        {"/manifest.json", 0, -100, "manifest.json: 0 bytes, want 1 to"},
        {"/manifest.json", -100, 0, "manifest.json: line "},
    };
    static world w;
    (void)unused;
    open_world(&w);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char name[64];
        SAVE(&w, 3, 2);
        SAVE(&w, 5, 2);
        snprintf(name, sizeof name, STEP5 "%s", cases[i].name);
        if (cases[i].cut != -100) cut(&w, name, cases[i].cut);
        if (cases[i].flip != -100) flip(&w, name, cases[i].flip);
        finds(&w, 3);
        logged(&w, cases[i].text);
        assert_int_equal(remove(files_in(&w.f, name)), 0);
        finds(&w, 3);
        logged(&w, "No such file");
    }
    cut(&w, STEP3 "/state.safetensors", 9); /* none is whole */
    finds(&w, 0);
    logged(&w, "a checkpoint is passed over");
    close_world(&w);
}

/* Any byte of a manifest: never a crash, never wrong contents. */
static void every_byte(void **unused)
{
    static world w;
    int64_t n;
    (void)unused;
    open_world(&w);
    SAVE(&w, 5, 2);
    char *text = files_get(&w.f, STEP5 "/manifest.json", &n);
    for (int64_t i = 0; i < n; i++) {
        cmoe_error err = {0};
        int64_t step = 0;
        text[i] ^= 4;
        files_put(&w.f, STEP5 "/manifest.json", text, n);
        text[i] ^= 4;
        const cmoe_status status = load(&w, key, &step, &err);
        if (status == CMOE_OK && step == 5)
            assert_true(same(&w.d, 5)); /* white space */
        else
            assert_true(same(&w.d, -1) && (status == CMOE_OK || status == CMOE_ERR_FORMAT));
    }
    free(text);
    close_world(&w);
}

/* Writes a manifest with one text in place of another of equal length. */
static void edit(const world *w, const char *from, const char *to)
{
    int64_t n;
    char *text = files_get(&w->f, STEP5 "/manifest.json", &n);
    text[n] = 0;
    char *at = strstr(text, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    files_put(&w->f, STEP5 "/manifest.json", text, n);
    free(text);
}

static void manifests(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    SAVE(&w, 5, 1);
    edit(&w, "\"version\": 1", "\"version\": 2");
    fails(&w, "version 2 of the format, written by cmoe 0.1.0; this is cmoe 0.1.0, which reads "
              "version 1");
    SAVE(&w, 5, 1);
    edit(&w, "cmoe training", "some training");
    finds(&w, 0);
    logged(&w, "it is not the manifest of a checkpoint");
    SAVE(&w, 5, 1);
    edit(&w, "a note", "a nose");
    finds(&w, 0);
    logged(&w, "it has changed since it was written");
    SAVE(&w, 5, 1);
    files_text(&w.f, STEP5 "/manifest.json", "[]");
    finds(&w, 0);
    logged(&w, "it is not the manifest of a checkpoint");
    SAVE(&w, 5, 1);
    assert_int_equal(rename(files_in(&w.f, STEP5), files_in(&w.f, "step-00000006")), 0);
    finds(&w, 0);
    logged(&w, "its manifest is that of step 5");
    close_world(&w);
}

/* ---- whole, but of something else -------------------------------------------------------------- */

static void other_key(void **unused)
{
    static world w;
    int64_t step = -7;
    (void)unused;
    open_world(&w);
    SAVE(&w, 3, 2);
    SAVE(&w, 5, 2);
    UNIT_FAILS(load(&w, "olmoe; lr 0.002; seed 1", &step, &err), CMOE_ERR_FORMAT,
               "step-00000005: it belongs to another model or other options: its key has \"olmoe; "
               "lr 0.001; seed 1\" where \"olmoe; lr 0.002; seed 1\" is wanted (character 15)");
    UNIT_FAILS(load(&w, "olmoe; lr 0.001", &step, &err), CMOE_ERR_FORMAT, "(character 16)");
    assert_true(step == -7 && same(&w.d, -1));
    close_world(&w);
}

static cmoe_status load_arrays(world *w, const cmoei_checkpoint_array *list, int64_t count,
                               cmoe_error *err)
{
    int64_t step;
    return cmoei_checkpoint_load(w->ctx, w->f.path, key, list, count, &step, err);
}

static void other_arrays(void **unused)
{
    static world w;
    static float more[A + 1];
    cmoei_checkpoint_array x[COUNT + 1];
    (void)unused;
    open_world(&w);
    SAVE(&w, 5, 1);
    fill(&w.d, -1);
    memcpy(x, w.d.list, sizeof w.d.list);
    x[COUNT] = (cmoei_checkpoint_array){"c", more, A, false};
    UNIT_FAILS(load_arrays(&w, x, COUNT + 1, &err), CMOE_ERR_FORMAT,
               "values.safetensors: there is no tensor \"c\"");
    UNIT_FAILS(load_arrays(&w, x + 1, COUNT - 1, &err), CMOE_ERR_FORMAT,
               "values.safetensors: tensor \"a\" is not known here");
    x[2].state = false;
    UNIT_FAILS(load_arrays(&w, x, COUNT, &err), CMOE_ERR_FORMAT, "there is no tensor \"m:a\"");
    x[2].state = true;
    x[0] = (cmoei_checkpoint_array){"a", more, A + 1, false};
    UNIT_FAILS(load_arrays(&w, x, COUNT, &err), CMOE_ERR_FORMAT,
               "tensor \"a\" has 1000 elements, want 1001");
    x[0] = w.d.list[0];
    x[COUNT] = x[1];
    UNIT_FAILS(load_arrays(&w, x, COUNT + 1, &err), CMOE_ERR_ARG, "an array is given twice");
    assert_true(same(&w.d, -1) && more[0] == 0);
    assert_string_equal(w.log, "");
    close_world(&w);
}

/* ---- a disk that does not take it -------------------------------------------------------------- */

static void full_disk(void **unused)
{
    static world w;
    struct rlimit before, small;
    (void)unused;
    open_world(&w);
    SAVE(&w, 3, 1);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    /* In the middle of values, of state, of the manifest. */
    for (rlim_t limit = 100; limit <= 4250; limit += 400) {
        cmoe_error err = {0};
        small = before;
        small.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        const cmoe_status status = save(&w, 5, 1, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        if (status != CMOE_ERR_IO || !strstr(err.text, "cannot be written: File too large"))
            fail_msg("%lld bytes: %s", (long long)limit, err.text);
        finds(&w, 3);
        assert_int_equal(entries(&w), 1);
    }
    SAVE(&w, 5, 1);
    finds(&w, 5);
    close_world(&w);
}

static void no_folder(void **unused)
{
    static world w;
    char dir[512];
    static char deep[5000];
    int64_t step = -7;
    (void)unused;
    open_world(&w);
    files_text(&w.f, "file", "x");
    snprintf(dir, sizeof dir, "%s/file", w.f.path);
    cmoei_checkpoint_write x = {dir, 1, key, NULL, 1};
    fill(&w.d, 1);
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, w.d.list, COUNT, &err), CMOE_ERR_IO,
               "file: cannot be opened: Not a directory");
    UNIT_FAILS(cmoei_checkpoint_load(w.ctx, dir, key, w.d.list, COUNT, &step, &err), CMOE_ERR_IO,
               "file: cannot be opened: Not a directory");
    snprintf(dir, sizeof dir, "%s/no/such", w.f.path);
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, w.d.list, COUNT, &err), CMOE_ERR_IO,
               "such: cannot be made: No such file");
    memset(deep, 'x', sizeof deep - 1);
    x.dir = deep;
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, w.d.list, COUNT, &err), CMOE_ERR_IO,
               "the path is longer than 4000 bytes");
    if (geteuid() != 0) { /* root may write everywhere */
        assert_int_equal(chmod(w.f.path, 0555), 0);
        UNIT_FAILS(save(&w, 1, 1, &err), CMOE_ERR_IO,
                   ".step-00000001.part: cannot be made: Permission denied");
        assert_int_equal(chmod(w.f.path, 0777), 0);
    }
    close_world(&w);
}

static void arguments(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    fill(&w.d, 1);
    const cmoei_checkpoint_array *list = w.d.list;
    cmoei_checkpoint_write x = {w.f.path, -1, key, NULL, 1};
    int64_t step;
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, list, COUNT, &err), CMOE_ERR_RANGE, "step = -1");
    x.step = 1;
    x.keep = 0;
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, list, COUNT, &err), CMOE_ERR_RANGE, "keep = 0");
    x.keep = 1;
    x.key = "two\nlines";
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, list, COUNT, &err), CMOE_ERR_ARG, "one line");
    x.key = key;
    x.note = "\xff";
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, list, COUNT, &err), CMOE_ERR_ARG, "note is not");
    x.note = NULL;
    x.dir = NULL;
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, list, COUNT, &err), CMOE_ERR_ARG, "dir is NULL");
    x.dir = "";
    UNIT_FAILS(cmoei_checkpoint_save(w.ctx, &x, list, COUNT, &err), CMOE_ERR_ARG, "dir is empty");
    UNIT_FAILS(cmoei_checkpoint_save(NULL, &x, list, COUNT, &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoei_checkpoint_load(w.ctx, w.f.path, NULL, list, COUNT, &step, &err), CMOE_ERR_ARG,
               "key is NULL");
    assert_int_equal(entries(&w), 0);
    close_world(&w);
}

/* ---- memory --------------------------------------------------------------------------------------- */

static int64_t calls_left;

static void *scarce(void *user, size_t bytes, size_t align)
{
    (void)user;
    return calls_left-- > 0 ? aligned_alloc(align, (bytes + align - 1) / align * align) : NULL;
}
static void give(void *user, void *ptr, size_t bytes)
{
    (void)user, (void)bytes;
    free(ptr);
}

/* The n-th allocation fails: nothing is lost, and a checkpoint is not taken for a broken one. */
static void no_memory(void **unused)
{
    static world w;
    cmoe_ctx *whole, *poor;
    cmoe_ctx_options o;
    (void)unused;
    open_world(&w);
    SAVE(&w, 3, 1);
    whole = w.ctx;
    cmoe_ctx_options_default(&o, sizeof o);
    o.allocator = (cmoe_allocator){NULL, scarce, give};
    calls_left = INT64_MAX;
    UNIT_OK(cmoe_ctx_create(&poor, &o, &err));
    for (int64_t n = 0, done = 0; !done; n++) {
        cmoe_error err = {0};
        w.ctx = poor;
        calls_left = n;
        const cmoe_status status = save(&w, 5, 1, &err);
        w.ctx = whole;
        done = status == CMOE_OK;
        assert_true(done ? n > 5 : status == CMOE_ERR_MEMORY);
        finds(&w, done ? 5 : 3);
        assert_int_equal(entries(&w), 1);
    }
    for (int64_t n = 0, done = 0; !done; n++) {
        cmoe_error err = {0};
        int64_t step = -7;
        w.ctx = poor;
        calls_left = n;
        const cmoe_status status = load(&w, key, &step, &err);
        done = status == CMOE_OK;
        assert_true(done ? n > 5 && step == 5 : status == CMOE_ERR_MEMORY && step == -7);
        assert_true(same(&w.d, done ? 5 : -1));
    }
    calls_left = INT64_MAX;
    cmoe_ctx_free(poor);
    w.ctx = whole;
    assert_string_equal(w.log, "");
    close_world(&w);
}

/* ---- writers ----------------------------------------------------------------------------------- */

static void second_writer(void **unused)
{
    static world w;
    (void)unused;
    open_world(&w);
    SAVE(&w, 3, 1);
    const int fd = open(w.f.path, O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    UNIT_FAILS(save(&w, 5, 1, &err), CMOE_ERR_IO, "another writer is at work in it");
    finds(&w, 3);
    assert_int_equal(entries(&w), 1);
    close(fd);
    SAVE(&w, 5, 1);
    finds(&w, 5);
    close_world(&w);
}

/* Saves without end.  Contexts have threads, and a fork has not: it makes its own. */
static void write_on(const files_folder *f, int64_t first)
{
    static world w;
    cmoe_error err = {0};
    cmoe_ctx_options o;
    cmoe_ctx_options_default(&o, sizeof o);
    o.threads = 1;
    w.f = *f;
    if (cmoe_ctx_create(&w.ctx, &o, &err) != CMOE_OK) _exit(2);
    for (int64_t i = 0;; i++) /* some of them twice */
        (void)save(&w, first + i / 3, 2, &err);
}

/* Killed at any moment, one writer or two: the newest one is whole, and never older than before. */
static void killed(void **unused)
{
    static world w;
    int64_t last = 0;
    (void)unused;
    open_world(&w);
    for (int round = 0; round < 20 || last == 0; round++) {
        pid_t child[2];
        const int writers = 1 + round % 2;
        for (int i = 0; i < writers; i++) {
            child[i] = fork();
            if (child[i] == 0) write_on(&w.f, last + 1);
        }
        const struct timespec pause = {0, 3000000 + 1700000 * round};
        nanosleep(&pause, NULL);
        for (int i = 0; i < writers; i++) {
            assert_int_equal(kill(child[i], SIGKILL), 0);
            assert_int_equal(waitpid(child[i], NULL, 0), child[i]);
        }
        int64_t step = 0;
        UNIT_OK(load(&w, key, &step, &err));
        if (step < last) fail_msg("step %lld after %lld", (long long)step, (long long)last);
        assert_true(same(&w.d, step > 0 ? step : -1));
        last = step;
    }
    assert_string_equal(w.log, "");
    SAVE(&w, last + 1, 1);
    assert_int_equal(entries(&w), 1); /* nothing of the dead */
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),   cmocka_unit_test(replaces),
        cmocka_unit_test(stale_parts),  cmocka_unit_test(newer_is_broken),
        cmocka_unit_test(broken_files), cmocka_unit_test(every_byte),
        cmocka_unit_test(manifests),    cmocka_unit_test(other_key),
        cmocka_unit_test(other_arrays), cmocka_unit_test(full_disk),
        cmocka_unit_test(no_folder),    cmocka_unit_test(arguments),
        cmocka_unit_test(no_memory),    cmocka_unit_test(second_writer),
        cmocka_unit_test(killed),
    };
    return UNIT_RUN("unit_train_checkpoint", tests);
}
