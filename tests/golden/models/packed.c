/* SPDX-License-Identifier: MIT
 *
 * packed.c - packed weights kept on disk: the same logits from them, whatever becomes of the file.
 *
 *     golden_packed FOLDER
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../unit/files.h"
#include "../../unit/unit.h"
#include "models/tape.h"
#include "run.h"

enum { PATH = 4096, TOKENS = 9, KILLS = 20 };

static const char *folder;

static void case_path(char path[PATH], const char *name)
{
    snprintf(path, PATH, "%s/%s", folder, name);
}

/* Logits of a few tokens; the model is closed. */
static float *logits_of(run_model *m, int64_t *bytes)
{
    static const int32_t ids[TOKENS] = {1, 5, 9, 200, 17, 33, 2, 250, 8};
    cmoe_error err = {0};
    *bytes = TOKENS * m->info.vocab * (int64_t)sizeof(float);
    float *logits = run_memory(*bytes);
    const run_sequence s = {ids, TOKENS, logits};
    if (!run_logits(m, &s, 1, &(run_options){0}, &err)) fail_msg("%s", err.text);
    run_close(m);
    return logits;
}

typedef struct kept {
    char model[PATH], dir[64];
    int32_t format;
    float *want; /* logits without any cache */
    int64_t bytes;
} kept;

static void begin(kept *k, const char *name, int32_t format)
{
    cmoe_error err = {0};
    run_model m;
    if (name) case_path(k->model, name); /* else it has a path already */
    k->format = format;
    snprintf(k->dir, sizeof k->dir, "/tmp/cmoe_packed_XXXXXX");
    assert_non_null(mkdtemp(k->dir));
    if (!run_open(&m, k->model, 1, NULL, format, &err)) fail_msg("%s", err.text);
    k->want = logits_of(&m, &k->bytes);
}

/* The only file of the folder, which must be there. */
static void find(const kept *k, char path[PATH])
{
    int n = 0;
    DIR *d = opendir(k->dir);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        n++;
        snprintf(path, PATH, "%s/%s", k->dir, e->d_name);
    }
    closedir(d);
    assert_int_equal(n, 1);
}

static void end(kept *k)
{
    DIR *d = opendir(k->dir);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char path[PATH];
        snprintf(path, sizeof path, "%s/%s", k->dir, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    closedir(d);
    assert_int_equal(rmdir(k->dir), 0);
    free(k->want);
}

/* Loads, compares, and says whether the weights were found packed and how often the log was used. */
static void load(const kept *k, int cached, int said)
{
    cmoe_error err = {0};
    run_model m;
    int lines = 0;
    int64_t bytes;
    if (!run_open_kept(&m, k->model, k->dir, k->format, &lines, &err)) fail_msg("%s", err.text);
    if (cached >= 0) assert_int_equal(m.info.cached, cached);
    if (said >= 0) assert_int_equal(lines, said);
    float *got = logits_of(&m, &bytes);
    assert_int_equal(bytes, k->bytes);
    assert_memory_equal(got, k->want, (size_t)bytes);
    free(got);
}

/* One with each kind of bias, shared expert, dense layer, tied head. */
static void same_logits(void **state)
{
    static const char *const names[] = {
        "gpt_oss", "qwen2_moe", "glm4_moe",      "ernie4_5_moe_bias", "hunyuan_v1_moe",
        "phimoe",  "llama",     "qwen3_moe_fp8", "gpt_oss_mxfp4",     "sdar_moe"};
    static const int32_t formats[] = {CMOE_F32, CMOE_BF16, CMOE_I8};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kept k;
        begin(&k, names[i], formats[i % 3]);
        load(&k, 0, 0);
        load(&k, 1, 0);
        load(&k, 1, 0);
        end(&k);
    }
}

static void poke(const char *path, int64_t at)
{
    unsigned char byte;
    const int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x40;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* Made again, and said once. */
static void broken_files(void **state)
{
    (void)state;
    kept k;
    char path[PATH];
    struct stat st;
    begin(&k, "qwen3_moe", CMOE_BF16);
    load(&k, 0, 0);
    find(&k, path);
    assert_int_equal(stat(path, &st), 0);
    const int64_t places[] = {0, 17, 25, 33, 41, 60, 700, 4096, 5000, st.st_size / 2 / 4096 * 4096};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        poke(path, places[i]);
        load(&k, -1, -1); /* padding may be hit: then nothing is wrong */
        load(&k, 1, 0);
    }
    const int64_t sizes[] = {0, 1, 100, 4096, st.st_size - 1, st.st_size - 4096};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(truncate(path, sizes[i]), 0);
        load(&k, 0, 1);
        load(&k, 1, 0);
    }
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    load(&k, 0, -1);
    end(&k);
}

static void other_formats_other_files(void **state)
{
    (void)state;
    kept a, b;
    begin(&a, "mixtral", CMOE_BF16);
    begin(&b, "mixtral", CMOE_F32);
    assert_int_equal(rmdir(b.dir), 0);
    memcpy(b.dir, a.dir, sizeof a.dir);
    load(&a, 0, 0);
    load(&b, 0, 0);
    load(&a, 1, 0);
    load(&b, 1, 0);
    free(b.want);
    end(&a);
}

/* A folder that cannot be written to: loaded all the same, and said once. */
static void nowhere(void **state)
{
    (void)state;
    kept k;
    begin(&k, "mixtral", CMOE_BF16);
    assert_int_equal(rmdir(k.dir), 0);
    load(&k, 0, 1);
    free(k.want);
}

/* Killed while it writes, at any moment: what is left never changes a result. */
static void killed(void **state)
{
    (void)state;
    kept k;
    begin(&k, "olmoe", CMOE_F32);
    for (int i = 0; i < KILLS; i++) {
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            cmoe_error err = {0};
            run_model m;
            int said = 0;
            _exit(run_open_kept(&m, k.model, k.dir, k.format, &said, &err) ? 0 : 1);
        }
        const struct timespec some = {0, 300000L * (i % 10)};
        nanosleep(&some, NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        load(&k, -1, 0);
        load(&k, 1, 0);
        char path[PATH];
        DIR *d = opendir(k.dir);
        for (const struct dirent *e; (e = readdir(d)) != NULL;) {
            snprintf(path, sizeof path, "%s/%s", k.dir, e->d_name);
            if (e->d_name[0] != '.') unlink(path);
        }
        closedir(d);
    }
    end(&k);
}

static int32_t second_end(void *user, int64_t done, int64_t total)
{
    return done == total && ++*(int *)user > 1;
}

/* Cancelled while it writes: said, and nothing is left. */
static void cancelled(void **state)
{
    (void)state;
    kept k;
    run_model m = {0};
    int ends = 0;
    begin(&k, "olmoe", CMOE_F32);
    UNIT_OK(cmoe_ctx_create(&m.ctx, NULL, &err));
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = k.format;
    o.cache_dir = k.dir;
    o.progress = second_end;
    o.progress_user = &ends;
    UNIT_FAILS(cmoe_model_load(&m.model, m.ctx, k.model, &o, &err), CMOE_ERR_CANCELLED,
               "loading was cancelled");
    run_close(&m);
    assert_int_equal(rmdir(k.dir), 0); /* it is empty */
    free(k.want);
}

/* ---- one file for a model and a format ------------------------------------------------------------ */

static void touch(const char *path, int64_t seconds_ago)
{
    const time_t at = time(NULL) - (time_t)seconds_ago;
    const struct timespec both[2] = {{.tv_sec = at}, {.tv_sec = at}};
    assert_int_equal(utimensat(AT_FDCWD, path, both, 0), 0);
}

/* Files of the model that have changed take the place of what was kept, silently. */
static void replaced(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "model.safetensors"};
    kept k = {.format = 0};
    char path[PATH];
    files_folder from = {{0}};
    case_path(path, "mixtral");
    snprintf(from.path, sizeof from.path, "%.200s", path);
    const files_folder made = files_open("golden_packed");
    for (int i = 0; i < 2; i++) {
        int64_t n;
        char *data = files_get(&from, names[i], &n);
        files_put(&made, names[i], data, n);
        free(data);
    }
    snprintf(k.model, sizeof k.model, "%s", made.path);
    begin(&k, NULL, CMOE_BF16);
    for (int i = 0; i < 3; i++) {
        touch(files_in(&made, "model.safetensors"), 100 * (i + 1));
        load(&k, 0, 0);
        load(&k, 1, 0);
        find(&k, path);
    }
    snprintf(k.model, sizeof k.model, "./%s/../%s/", made.path, made.path);
    load(&k, 1, 0); /* the same folder */
    find(&k, path);
    end(&k);
    files_close(&made);
}

/* What a killed writer left goes; what is being written, what is young, and what is not ours stay. */
static void left_behind(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t age;
        bool locked, stays;
    } all[] = {{"a-bf16-0.packed.17.part", 1000, false, false},
               {"b-bf16-0.packed.4242.part", 100000, false, false},
               {"c-bf16-0.packed.17.part", 1000, true, true},
               {"d-bf16-0.packed.17.part", 0, false, true},
               {"film.part", 1000, false, true},
               {"e.packed.part", 1000, false, true},
               {"f.packed.17.partly", 1000, false, true}};
    enum { COUNT = sizeof all / sizeof all[0] };
    kept k;
    struct stat st;
    char path[PATH];
    int fd[COUNT];
    begin(&k, "mixtral", CMOE_BF16);
    for (int i = 0; i < COUNT; i++) {
        snprintf(path, sizeof path, "%s/%s", k.dir, all[i].name);
        fd[i] = open(path, O_WRONLY | O_CREAT, 0600);
        assert_true(fd[i] >= 0);
        touch(path, all[i].age);
        if (all[i].locked) assert_int_equal(flock(fd[i], LOCK_EX), 0);
    }
    load(&k, 0, 0);
    for (int i = 0; i < COUNT; i++) {
        snprintf(path, sizeof path, "%s/%s", k.dir, all[i].name);
        if ((stat(path, &st) == 0) != all[i].stays) fail_msg("%s", all[i].name);
        close(fd[i]);
    }
    load(&k, 1, 0);
    end(&k);
}

/* ---- files that are whole and wrong ---------------------------------------------------------------- */

static bool go_on(void *user, int64_t done, int64_t total)
{
    (void)user, (void)done, (void)total;
    return false;
}

/* Sums are right and the stretches are not those of the model: made again, and said once. */
static void other_stretches(void **state)
{
    (void)state;
    kept k;
    char path[PATH];
    begin(&k, "qwen2_moe", CMOE_BF16);
    load(&k, 0, 0);
    find(&k, path);
    const char *name = strrchr(path, '/') + 1;
    unit_env e = unit_open(1);
    for (int what = 0; what < 3; what++) {
        int64_t n, head[6], entry[3]; /* the 16 bytes of the magic, bytes, of the key, count, sum */
        const files_folder kept_at = {{0}};
        memcpy((void *)(uintptr_t)kept_at.path, k.dir, sizeof k.dir);
        char *file = files_get(&kept_at, name, &n);
        memcpy(head, file, sizeof head);
        const char *table = file + sizeof head + (head[3] + 7) / 8 * 8;
        cmoei_tape t = {.ctx = e.ctx, .records = true};
        /* One is missing, one is longer, there is one more. */
        for (int64_t i = 0; i < head[4] - (what == 0); i++) {
            memcpy(entry, table + i * (int64_t)sizeof entry, sizeof entry);
            entry[1] += what == 1 && i == 3 ? 64 : 0;
            UNIT_OK(cmoei_tape_put(&t, file + entry[0], entry[1], false, &err));
        }
        if (what == 2) UNIT_OK(cmoei_tape_put(&t, file, 64, false, &err));
        UNIT_OK(cmoei_tape_write(&t, k.dir, name, file + sizeof head, go_on, NULL, &err));
        cmoei_tape_close(&t);
        free(file);
        load(&k, 0, 1);
        load(&k, 1, 0);
    }
    unit_close(&e);
    end(&k);
}

static int32_t at_once(void *user, int64_t done, int64_t total)
{
    (void)done, (void)total;
    ++*(int *)user;
    return 1;
}

static void note(void *user, int32_t level, const char *text)
{
    (void)text;
    *(int *)user += level <= CMOE_LOG_WARN;
}

/* Cancelled while a kept file is looked through: nothing is packed, and the file is as it was, here
 * with a fault behind what was looked at. */
static void cancelled_reading(void **state)
{
    (void)state;
    kept k;
    char path[PATH];
    struct stat before, after;
    int calls = 0, said = 0;
    begin(&k, "olmoe", CMOE_F32);
    load(&k, 0, 0);
    find(&k, path);
    assert_int_equal(stat(path, &before), 0);
    poke(path, before.st_size - 4096);
    cmoe_ctx *ctx = NULL;
    cmoe_model *m = NULL;
    cmoe_ctx_options c;
    cmoe_ctx_options_default(&c, sizeof c);
    c.threads = 1;
    c.log = note;
    c.log_user = &said;
    UNIT_OK(cmoe_ctx_create(&ctx, &c, &err));
    cmoe_model_options o;
    cmoe_model_options_default(&o, sizeof o);
    o.format = k.format;
    o.cache_dir = k.dir;
    o.progress = at_once;
    o.progress_user = &calls;
    UNIT_FAILS(cmoe_model_load(&m, ctx, k.model, &o, &err), CMOE_ERR_CANCELLED,
               "loading was cancelled");
    assert_int_equal(calls, 1);
    assert_int_equal(said, 0);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    cmoe_ctx_free(ctx);
    load(&k, 0, 1);
    end(&k);
}

/* ---- written later --------------------------------------------------------------------------------- */

static int32_t never(void *user, int64_t done, int64_t total)
{
    int64_t *last = user;
    assert_true(done >= *last && done <= total);
    *last = done;
    return 0;
}

/* Nothing before cmoe_model_keep, and nothing when that is stopped. */
static void later(void **state)
{
    (void)state;
    kept k;
    begin(&k, "glm4_moe", CMOE_BF16);
    for (int stopped = 1; stopped >= 0; stopped--) {
        run_model m = {.info = {.size = sizeof m.info}};
        int calls = 0;
        int64_t last = 0, bytes;
        cmoe_model_options o;
        cmoe_model_options_default(&o, sizeof o);
        o.format = k.format;
        o.cache_dir = k.dir;
        o.cache_later = 1;
        UNIT_OK(cmoe_ctx_create(&m.ctx, NULL, &err));
        UNIT_OK(cmoe_stream_create(&m.stream, m.ctx, &err));
        UNIT_OK(cmoe_model_load(&m.model, m.ctx, k.model, &o, &err));
        UNIT_OK(cmoe_model_describe(m.model, &m.info, &err));
        assert_int_equal(rmdir(k.dir), 0); /* it is empty */
        assert_int_equal(mkdir(k.dir, 0700), 0);
        if (stopped) {
            UNIT_FAILS(cmoe_model_keep(m.model, at_once, &calls, &err), CMOE_ERR_CANCELLED, "");
            assert_int_equal(calls, 1);
            assert_int_equal(rmdir(k.dir), 0);
            assert_int_equal(mkdir(k.dir, 0700), 0);
        } else {
            UNIT_OK(cmoe_model_keep(m.model, never, &last, &err));
            UNIT_OK(cmoe_model_keep(m.model, NULL, NULL, &err)); /* once */
        }
        float *got = logits_of(&m, &bytes);
        assert_memory_equal(got, k.want, (size_t)bytes);
        free(got);
    }
    load(&k, 1, 0);
    end(&k);
    UNIT_FAILS(cmoe_model_keep(NULL, NULL, NULL, &err), CMOE_ERR_ARG, "model_keep: model is NULL");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_logits),
        cmocka_unit_test(broken_files),
        cmocka_unit_test(other_formats_other_files),
        cmocka_unit_test(nowhere),
        cmocka_unit_test(killed),
        cmocka_unit_test(cancelled),
        cmocka_unit_test(replaced),
        cmocka_unit_test(left_behind),
        cmocka_unit_test(other_stretches),
        cmocka_unit_test(cancelled_reading),
        cmocka_unit_test(later),
    };
    if (argc != 2) {
        printf("usage: golden_packed FOLDER\n");
        return 2;
    }
    folder = argv[1];
    return UNIT_RUN("golden_packed", tests);
}
