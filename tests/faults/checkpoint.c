/* SPDX-License-Identifier: MIT
 *
 * checkpoint.c - the n-th allocation, read or write fails while a checkpoint is opened or a file
 * written, for n = 1, 2, ...: a status and a text, nothing left open, nothing left behind, and the
 * next call works.  And a libcmoe of another version.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>

#include "../unit/files.h"
#include "fault.h"

#include "core/core.h"
#include "weights/checkpoint.h"

static files_folder folder;
static float numbers[3000];

/* ---- what the linker puts between ------------------------------------------------------------ */

static struct {
    int64_t fail_call; /* the n-th system call from now fails */
    int number;        /* with this errno; 0: as if the file had ended, or takes one byte only */
    const char *version;
    char order[16]; /* f: a file was synced, d: a folder, r: renamed */
} with;

ssize_t __real_pread(int fd, void *p, size_t n, off_t at);
ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
int __real_fsync(int fd);
int __real_rename(const char *from, const char *to);
void *__real_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at);
int __real_fstat(int fd, struct stat *s);
const char *__real_cmoe_priv_core_version(void);

static bool fails(void)
{
    if (with.fail_call <= 0 || --with.fail_call > 0) return false;
    errno = with.number;
    return true;
}

ssize_t __wrap_pread(int fd, void *p, size_t n, off_t at)
{
    if (fails()) return with.number ? -1 : 0;
    return __real_pread(fd, p, n, at);
}

ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at)
{
    if (fails()) return with.number ? -1 : __real_pwrite(fd, p, 1, at);
    return __real_pwrite(fd, p, n, at);
}

static void note(char what)
{
    const size_t n = strlen(with.order);
    if (n + 1 < sizeof with.order) with.order[n] = what;
}

int __wrap_fsync(int fd)
{
    struct stat s;
    if (__real_fstat(fd, &s) == 0) note(S_ISDIR(s.st_mode) ? 'd' : 'f');
    return fails() ? -1 : __real_fsync(fd);
}

int __wrap_rename(const char *from, const char *to)
{
    note('r');
    return fails() ? -1 : __real_rename(from, to);
}

void *__wrap_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at)
{
    return fails() ? (void *)-1 : __real_mmap(p, n, prot, flags, fd, at);
}

int __wrap_fstat(int fd, struct stat *s)
{
    return fails() ? -1 : __real_fstat(fd, s);
}

const char *__wrap_cmoe_priv_core_version(void)
{
    return with.version ? with.version : __real_cmoe_priv_core_version();
}

/* Files that this process has open. */
static int open_files(void)
{
    int n = 0;
    DIR *list = opendir("/proc/self/fd");
    assert_non_null(list);
    while (readdir(list))
        n++;
    closedir(list);
    return n;
}

/* ---- cases ----------------------------------------------------------------------------------- */

static cmoe_view some(const char *name, int64_t first, int64_t n)
{
    cmoe_view v = cmoe_view_1d(numbers + first, CMOE_F32, n);
    v.name = name;
    return v;
}

static cmoe_status write_some(const char *file, cmoe_error *err)
{
    const cmoe_view v[] = {some("a", 0, 3000), some("b", 5, 7), some("c", 0, 0)};
    return cmoe_safetensors_write(files_in(&folder, file), v, 3, NULL, err);
}

static void make_shards(void)
{
    const cmoe_view one[] = {some("a", 0, 4), some("b", 4, 4)}, two[] = {some("c", 8, 3)};
    UNIT_OK(cmoe_safetensors_write(files_in(&folder, "1.safetensors"), one, 2, NULL, &err));
    UNIT_OK(cmoe_safetensors_write(files_in(&folder, "2.safetensors"), two, 1, NULL, &err));
    files_text(&folder, "model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\","
               "\"c\":\"2.safetensors\"}}");
}

static int64_t open_until_success(cmoe_ctx *ctx, fault_memory *m)
{
    const fault_memory before = *m;
    const int files = open_files();
    for (int64_t n = 1;; n++) {
        cmoe_error found = {0};
        cmoe_checkpoint *c = NULL;
        m->fail_at = n;
        const cmoe_status status = cmoe_checkpoint_open(&c, ctx, folder.path, &found);
        const bool reached = m->fail_at == 0;
        m->fail_at = 0;
        if (!reached) {
            assert_int_equal(status, CMOE_OK);
            cmoe_checkpoint_free(c);
            assert_int_equal(m->blocks, before.blocks);
            assert_int_equal(m->bytes, before.bytes);
            assert_int_equal(open_files(), files);
            return n - 1;
        }
        assert_int_equal(status, CMOE_ERR_MEMORY);
        assert_non_null(strstr(found.text, "could not be allocated"));
        assert_null(c);
        assert_int_equal(m->blocks, before.blocks);
        assert_int_equal(open_files(), files);
    }
}

static void memory_of_opening(void **state)
{
    (void)state;
    fault_memory m = {0};
    unit_env e = fault_env(&m, 1);
    folder = files_open("faults_checkpoint");
    UNIT_OK(write_some("model.safetensors", &err));
    assert_int_equal(open_until_success(e.ctx, &m), 6);
    remove(files_in(&folder, "model.safetensors"));
    make_shards();
    assert_int_equal(open_until_success(e.ctx, &m), 10);
    files_close(&folder);
    unit_close(&e);
    assert_int_equal(m.blocks, 0);
}

/* The bytes are on the disk before they get their name, and the name before the call returns. */
static void order_of_syncs(void **state)
{
    (void)state;
    folder = files_open("faults_checkpoint");
    memset(with.order, 0, sizeof with.order);
    UNIT_OK(write_some("x.safetensors", &err));
    assert_string_equal(with.order, "frd");
    files_close(&folder);
}

static void memory_of_writing(void **state)
{
    (void)state;
    folder = files_open("faults_checkpoint");
    int64_t n = 1;
    for (bool reached = true; reached; n++) {
        cmoe_error err = {0};
        fault.fail_libc = n;
        const cmoe_status status = write_some("x.safetensors", &err);
        reached = fault.fail_libc == 0;
        fault.fail_libc = 0;
        assert_int_equal(status, reached ? CMOE_ERR_MEMORY : CMOE_OK);
        assert_int_equal(files_count(&folder), reached ? 0 : 1);
    }
    assert_true(n > 3);
    files_close(&folder);
}

static void calls_of_opening(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    folder = files_open("faults_checkpoint");
    make_shards();
    const int files = open_files();
    int64_t n = 1;
    for (int kind = 0; kind < 3; kind++) {
        with.number = kind == 0 ? EIO : kind == 1 ? ENOMEM : EINTR;
        for (n = 1;; n++) {
            cmoe_error err = {0};
            cmoe_checkpoint *c = NULL;
            with.fail_call = n;
            const cmoe_status status = cmoe_checkpoint_open(&c, e.ctx, folder.path, &err);
            const bool reached = with.fail_call == 0;
            with.fail_call = 0;
            if (status == CMOE_OK) { /* a read that was interrupted is made again */
                assert_true(!reached || with.number == EINTR);
                cmoe_checkpoint_free(c);
            } else {
                assert_true(status == CMOE_ERR_IO ||
                            (status == CMOE_ERR_MEMORY && with.number == ENOMEM));
                assert_non_null(strstr(err.text, folder.path));
                assert_non_null(strstr(err.text, kind == 0   ? "Input/output error"
                                                 : kind == 1 ? "Cannot allocate memory"
                                                             : "Interrupted"));
                assert_null(c);
            }
            assert_int_equal(open_files(), files);
            if (!reached) break;
        }
    }
    assert_true(n > 8);
    with.number = 0; /* the file is shorter than it was a moment ago */
    with.fail_call = 2;
    cmoe_checkpoint *c = NULL;
    UNIT_FAILS(cmoe_checkpoint_open(&c, e.ctx, files_in(&folder, "1.safetensors"), &err),
               CMOE_ERR_IO, "/1.safetensors: ended at byte 0 while it was read");
    files_close(&folder);
    unit_close(&e);
}

static void calls_of_writing(void **state)
{
    (void)state;
    folder = files_open("faults_checkpoint");
    files_text(&folder, "x.safetensors", "what was there");
    const int files = open_files();
    int64_t n = 1;
    with.number = ENOSPC;
    for (;; n++) {
        cmoe_error err = {0};
        with.fail_call = n;
        const cmoe_status status = write_some("x.safetensors", &err);
        const bool reached = with.fail_call == 0;
        with.fail_call = 0;
        assert_int_equal(files_count(&folder), 1);
        assert_int_equal(open_files(), files);
        if (!reached || status == CMOE_OK) break; /* the folder's sync may fail */
        assert_int_equal(status, CMOE_ERR_IO);
        assert_non_null(strstr(err.text, "/x.safetensors: cannot be "));
        assert_non_null(strstr(err.text, ": No space left on device"));
        int64_t bytes;
        char *stays = files_get(&folder, "x.safetensors", &bytes);
        assert_int_equal(bytes, 14);
        free(stays);
    }
    assert_true(n >= 5);
    for (n = 1; n < 5; n++) { /* interrupted, or takes less than it is given */
        for (int kind = 0; kind < 2; kind++) {
            with.number = kind ? EINTR : 0;
            with.fail_call = n < 3 ? n : 0;
            UNIT_OK(write_some("x.safetensors", &err));
        }
    }
    with.fail_call = 0;
    int64_t bytes;
    char *whole = files_get(&folder, "x.safetensors", &bytes);
    assert_memory_equal(whole + bytes - 12028, numbers, 12000);
    free(whole);
    files_close(&folder);
}

static void another_version(void **state)
{
    (void)state;
    unit_env e = unit_open(1);
    cmoe_checkpoint *c = NULL;
    with.version = "0.0.9";
    UNIT_FAILS(cmoe_checkpoint_open(&c, e.ctx, ".", &err), CMOE_ERR_UNSUPPORTED,
               "libcmoe is version 0.0.9, libcmoe_engine version ");
    UNIT_FAILS(cmoe_safetensors_write("x", NULL, 0, NULL, &err), CMOE_ERR_UNSUPPORTED,
               "want the same of both");
    with.version = NULL;
    UNIT_OK(cmoei_engine_check(&err));
    unit_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_of_opening), cmocka_unit_test(memory_of_writing),
        cmocka_unit_test(order_of_syncs),    cmocka_unit_test(calls_of_opening),
        cmocka_unit_test(calls_of_writing),  cmocka_unit_test(another_version),
    };
    for (int i = 0; i < 3000; i++)
        numbers[i] = (float)i;
    return UNIT_RUN("faults_checkpoint", tests);
}
