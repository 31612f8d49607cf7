/* SPDX-License-Identifier: MIT
 *
 * checkpoint.c - folders and files as users have them: whole, in shards, incomplete, of the wrong
 * kind; what is written comes back; and every error text of both ways.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "files.h"
#include "weights/checkpoint.h"
#include "weights/index.h"

static unit_env env;
static files_folder folder;

static void writes(const char *file, const cmoe_view *views, int64_t n)
{
    UNIT_OK(cmoe_safetensors_write(files_in(&folder, file), views, n, NULL, &err));
}

static float numbers[4096]; /* 0, 1, 2, ... */

static cmoe_view named(cmoe_view v, const char *name)
{
    v.name = name;
    return v;
}

/* [n] of numbers from `first` on. */
static cmoe_view some(const char *name, int64_t first, int64_t n)
{
    return named(cmoe_view_1d(numbers + first, CMOE_F32, n), name);
}

static int open_folder(void **state)
{
    (void)state;
    folder = files_open("unit_checkpoint");
    return 0;
}

static int close_folder(void **state)
{
    (void)state;
    files_close(&folder);
    return 0;
}

static void refuse_path(const char *path, cmoe_status status, const char *text)
{
    static char mark;
    cmoe_checkpoint *c = (cmoe_checkpoint *)(void *)&mark;
    UNIT_FAILS(cmoe_checkpoint_open(&c, env.ctx, path, &err), status, text);
    assert_ptr_equal(c, &mark);
    assert_int_equal(cmoe_checkpoint_open(&c, env.ctx, path, NULL), status);
}

static void refuse(cmoe_status status, const char *text)
{
    refuse_path(folder.path, status, text);
}

static cmoe_checkpoint *opened(const char *path)
{
    cmoe_checkpoint *c = NULL;
    UNIT_OK(cmoe_checkpoint_open(&c, env.ctx, path, &err));
    return c;
}

static cmoe_tensor tensor_of(const cmoe_checkpoint *c, const char *name)
{
    cmoe_tensor t = {.size = sizeof t};
    UNIT_OK(cmoe_checkpoint_tensor(c, cmoe_checkpoint_find(c, name), &t, &err));
    assert_string_equal(t.name, name);
    return t;
}

/* ---- round trip ------------------------------------------------------------------------------ */

static void every_format(void **state)
{
    (void)state;
    static const struct {
        int32_t dtype;
        const char *stored;
    } f[] = {{CMOE_F32, "F32"},        {CMOE_F16, "F16"},        {CMOE_BF16, "BF16"},
             {CMOE_F8E4M3, "F8_E4M3"}, {CMOE_F8E8M0, "F8_E8M0"}, {CMOE_I8, "I8"},
             {CMOE_U8, "U8"},          {CMOE_I32, "I32"},        {CMOE_I64, "I64"},
             {CMOE_F64, "F64"}};
    enum { N = sizeof f / sizeof f[0] };
    cmoe_view v[N + 3];
    char names[N][16];
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "t.%d", N - i);
        v[i] = named(cmoe_view_3d(numbers + i, f[i].dtype, 3, 1, 5), names[i]);
    }
    v[N] = named(cmoe_view_make(numbers, CMOE_F64, 0, NULL), "scalar \"\\ \xc3\xa9");
    v[N + 1] = named(cmoe_view_2d(NULL, CMOE_BF16, 0, 7), "empty");
    const int64_t six[6] = {1, 2, 1, 2, 1, 2};
    v[N + 2] = named(cmoe_view_make(numbers + 1, CMOE_I8, 6, six), "six");
    const char *const metadata[] = {"format", "pt", "a \"quoted\" key", "line\nand\x01\x1f", NULL};
    UNIT_OK(
        cmoe_safetensors_write(files_in(&folder, "model.safetensors"), v, N + 3, metadata, &err));
    assert_int_equal(files_count(&folder), 1);

    cmoe_checkpoint *c = opened(folder.path);
    assert_int_equal(cmoe_checkpoint_count(c), N + 3);
    for (int i = 0; i < N + 3; i++) {
        const cmoe_tensor t = tensor_of(c, v[i].name);
        assert_int_equal(t.dtype, v[i].dtype);
        assert_int_equal(t.rank, v[i].rank);
        assert_memory_equal(t.dims, v[i].dims, sizeof(int64_t) * (size_t)v[i].rank);
        assert_string_equal(t.file, "model.safetensors");
        if (i < N) assert_string_equal(t.stored, f[i].stored);
        const int64_t want = i == N       ? 8
                             : i == N + 1 ? 0
                             : i == N + 2 ? 8
                                          : 15 * cmoe_dtype_bytes(v[i].dtype);
        assert_int_equal(t.bytes, want);
        if (want) assert_memory_equal(t.data, v[i].data, (size_t)want);
        assert_int_equal((uintptr_t)t.data % (uintptr_t)cmoe_dtype_bytes(t.dtype), 0);
        const cmoe_view view = cmoe_tensor_view(&t);
        assert_ptr_equal(view.data, t.data);
        assert_string_equal(view.name, t.name);
        assert_memory_equal(view.strides, v[i].strides, sizeof(int64_t) * (size_t)v[i].rank);
    }
    cmoe_tensor before = {.size = sizeof before}, now = before;
    for (int64_t i = 0; i < N + 3; i++, before = now) {
        UNIT_OK(cmoe_checkpoint_tensor(c, i, &now, &err));
        assert_int_equal(cmoe_checkpoint_find(c, now.name), i);
        if (i) assert_true(strcmp(before.name, now.name) < 0);
    }
    int64_t bytes;
    char *file = files_get(&folder, "model.safetensors", &bytes);
    assert_int_equal(cmoe_checkpoint_bytes(c), bytes);
    assert_int_equal((unsigned char)file[0] % 8, 0); /* data begin at a multiple of 8 */
    assert_non_null(strstr(file + 8, "\"a \\\"quoted\\\" key\":\"line\\u000aand\\u0001\\u001f\""));
    cmoe_checkpoint_free(c);

    /* The order in which they are given does not matter. */
    for (int i = 0; i < (N + 3) / 2; i++) {
        const cmoe_view swap = v[i];
        v[i] = v[N + 2 - i];
        v[N + 2 - i] = swap;
    }
    UNIT_OK(
        cmoe_safetensors_write(files_in(&folder, "model.safetensors"), v, N + 3, metadata, &err));
    int64_t again_bytes;
    char *again = files_get(&folder, "model.safetensors", &again_bytes);
    assert_int_equal(again_bytes, bytes);
    assert_memory_equal(again, file, (size_t)bytes);
    free(again);
    free(file);
}

static void nothing_in_it(void **state)
{
    (void)state;
    writes("none.safetensors", NULL, 0);
    cmoe_checkpoint *c = opened(files_in(&folder, "none.safetensors"));
    assert_int_equal(cmoe_checkpoint_count(c), 0);
    assert_int_equal(cmoe_checkpoint_find(c, "x"), -1);
    cmoe_tensor t = {.size = sizeof t};
    UNIT_FAILS(cmoe_checkpoint_tensor(c, 0, &t, &err), CMOE_ERR_RANGE, "tensor 0, want 0 <= i < 0");
    cmoe_checkpoint_free(c);
    cmoe_checkpoint_free(NULL);
    assert_int_equal(cmoe_checkpoint_count(NULL), 0);
    assert_int_equal(cmoe_checkpoint_bytes(NULL), 0);
    assert_int_equal(cmoe_checkpoint_find(NULL, "x"), -1);
    assert_int_equal(cmoe_tensor_view(NULL).dtype, 0);
}

static void asking(void **state)
{
    (void)state;
    const cmoe_view v[] = {some("b", 0, 4), some("a", 8, 2)};
    writes("x.safetensors", v, 2);
    const cmoe_checkpoint *c = opened(files_in(&folder, "x.safetensors"));
    assert_int_equal(cmoe_checkpoint_find(c, "a"), 0);
    assert_int_equal(cmoe_checkpoint_find(c, "b"), 1);
    assert_int_equal(cmoe_checkpoint_find(c, ""), -1);
    assert_int_equal(cmoe_checkpoint_find(c, "c"), -1);
    assert_int_equal(cmoe_checkpoint_find(c, NULL), -1);
    cmoe_tensor t = {.size = sizeof t};
    UNIT_FAILS(cmoe_checkpoint_tensor(c, -1, &t, &err), CMOE_ERR_RANGE,
               "tensor -1, want 0 <= i < 2");
    UNIT_FAILS(cmoe_checkpoint_tensor(c, 2, &t, &err), CMOE_ERR_RANGE, "tensor 2, want 0 <= i < 2");
    UNIT_FAILS(cmoe_checkpoint_tensor(c, 0, NULL, &err), CMOE_ERR_ARG, "tensor is NULL");
    UNIT_FAILS(cmoe_checkpoint_tensor(NULL, 0, &t, &err), CMOE_ERR_ARG, "checkpoint is NULL");
    t.size = 0;
    UNIT_FAILS(cmoe_checkpoint_tensor(c, 0, &t, &err), CMOE_ERR_ARG, "tensor.size = 0, want");
    t.size = SIZE_MAX; /* never set */
    UNIT_FAILS(cmoe_checkpoint_tensor(c, 0, &t, &err), CMOE_ERR_ARG, "tensor.size = ");
    struct {
        cmoe_tensor t;
        char more[16];
    } newer = {.t = {.size = sizeof newer}, .more = "x"};
    UNIT_OK(cmoe_checkpoint_tensor(c, 0, &newer.t, &err)); /* of a newer header: the rest is zero */
    assert_int_equal(newer.more[0], 0);
    assert_string_equal(newer.t.name, "a");
    cmoe_checkpoint_free((cmoe_checkpoint *)(uintptr_t)c);
}

/* ---- shards ---------------------------------------------------------------------------------- */

static void index_is(const char *map)
{
    char text[4096];
    snprintf(
        text, sizeof text,
        "{\n \"metadata\": {\"total_size\": 1.5e3, \"x\": [null, {\"y\": [true, false]}, -1]},\n"
        " \"weight_map\": {%s}\n}\n",
        map);
    files_text(&folder, "model.safetensors.index.json", text);
}

static void two_shards(void)
{
    const cmoe_view one[] = {some("b", 0, 4), some("d", 4, 4)}, two[] = {some("a", 8, 3)};
    writes("model-1.safetensors", one, 2);
    writes("model-2.safetensors", two, 1);
}

#define MAP_B "\"b\": \"model-1.safetensors\""
#define MAP_D "\"d\": \"model-1.safetensors\""
#define MAP_A "\"a\": \"model-2.safetensors\""

static void sharded(void **state)
{
    (void)state;
    two_shards();
    index_is(MAP_D "," MAP_A "," MAP_B);
    cmoe_checkpoint *c = opened(folder.path);
    assert_int_equal(cmoe_checkpoint_count(c), 3);
    assert_string_equal(tensor_of(c, "a").file, "model-2.safetensors");
    assert_string_equal(tensor_of(c, "d").file, "model-1.safetensors");
    assert_memory_equal(tensor_of(c, "a").data, numbers + 8, 12);
    assert_memory_equal(tensor_of(c, "d").data, numbers + 4, 16);
    cmoe_checkpoint_free(c);
    c = opened(files_in(&folder, "")); /* with a slash at the end */
    cmoe_checkpoint_free(c);

    /* A whole file comes first. */
    const cmoe_view other[] = {some("z", 0, 1)};
    writes("model.safetensors", other, 1);
    c = opened(folder.path);
    assert_int_equal(cmoe_checkpoint_count(c), 1);
    cmoe_checkpoint_free(c);
    remove(files_in(&folder, "model.safetensors"));

    files_text(&folder, "model.safetensors.index.json", "{\"weight_map\":{}}");
    c = opened(folder.path);
    assert_int_equal(cmoe_checkpoint_count(c), 0);
    cmoe_checkpoint_free(c);
}

static void shards_that_disagree(void **state)
{
    (void)state;
    two_shards();
    index_is(MAP_B "," MAP_D);
    cmoe_checkpoint *c = opened(folder.path); /* a file that nobody names is not looked at */
    assert_int_equal(cmoe_checkpoint_count(c), 2);
    cmoe_checkpoint_free(c);
    index_is(MAP_B "," MAP_A);
    refuse(CMOE_ERR_FORMAT, "/model.safetensors.index.json: tensor \"d\" of model-1.safetensors is "
                            "not listed");
    index_is(MAP_B "," MAP_A "," MAP_D ",\"e\":\"model-2.safetensors\"");
    refuse(CMOE_ERR_FORMAT, "index.json: tensor \"e\" is said to lie in model-2.safetensors, which "
                            "does not have it");
    index_is(MAP_B "," MAP_A ",\"d\":\"model-2.safetensors\"");
    refuse(CMOE_ERR_FORMAT, "index.json: tensor \"d\" is said to lie in model-2.safetensors, but "
                            "lies in model-1.safetensors");
    index_is(MAP_B "," MAP_A "," MAP_D ",\"c\":\"model-3.safetensors\"");
    refuse(CMOE_ERR_IO, "/model-3.safetensors: cannot be opened: No such file or directory "
                        "(model.safetensors.index.json wants tensor \"c\" from it)");
    const cmoe_view two[] = {some("a", 8, 3), some("b", 0, 4)};
    writes("model-2.safetensors", two, 2);
    index_is(MAP_B "," MAP_A "," MAP_D);
    refuse(CMOE_ERR_FORMAT,
           "tensor \"b\" lies in model-1.safetensors and in model-2.safetensors, want it in one");
}

static void index_text(const char *text, const char *want)
{
    files_text(&folder, "model.safetensors.index.json", text);
    refuse(CMOE_ERR_FORMAT, want);
    refuse(CMOE_ERR_FORMAT, "/model.safetensors.index.json: ");
}

static void bad_index(void **state)
{
    (void)state;
    index_text("", "text byte 0: its end, want '{' (an index of shards)");
    index_text("[]", "'[', want '{'");
    index_text("{}", "no \"weight_map\"");
    index_text("{\"metadata\":{}}", "no \"weight_map\"");
    index_text("{\"weight_map\":[]}", "\"weight_map\": '[', want '{' (tensors and their shards)");
    index_text("{\"weight_map\":{},\"weight_map\":{}}", "\"weight_map\": twice");
    index_text("{\"weight_map\":{}} x", "'x' behind the closing brace, want nothing");
    index_text("{\"weight_map\":{\"a\":1}}", "\"a\": '1', want '\"'");
    index_text("{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", "weight_map: tensor \"a\" twice");
    index_text("{\"weight_map\":{\"a\":\"../x\"}}",
               "\"a\": shard \"../x\", want the name of a file in the same folder");
    index_text("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "shard \"/etc/passwd\", want");
    index_text("{\"weight_map\":{\"a\":\"b\\/c\"}}", "shard \"b/c\", want");
    index_text("{\"weight_map\":{\"a\":\"..\"}}", "shard \"..\", want");
    index_text("{\"weight_map\":{\"a\":\"\"}}", "shard \"\", want");
    index_text("{\"weight_map\":{\"a\":\"x\\u0001\"}}", "a control character in the name of the "
                                                        "shard");
    index_text("{\"weight_map\":{\"a\\t\":\"x\"}}",
               "a control character in the name of the tensor");
    index_text("{\"weight_map\":{\"a\":\"\xff\"}}", "invalid UTF-8");
    /* What nobody uses must be JSON all the same. */
    index_text("{\"metadata\":{\"a\":01}}", "not a number");
    index_text("{\"metadata\":-}", "not a number");
    index_text("{\"metadata\":1.}", "not a number");
    index_text("{\"metadata\":1e+}", "not a number");
    index_text("{\"metadata\":tru}", "'t', want a value");
    index_text("{\"metadata\":}", "'}', want a value");
    index_text("{\"metadata\":", "its end, want a value");
    index_text("{\"metadata\":[1,]}", "']', want a value");
    index_text("{\"metadata\":[1}", "'}', want ']'");
    index_text("{\"metadata\":{1:2}}", "'1', want '\"'");
    index_text("{\"metadata\":{\"a\" 2}}", "'2', want ':'");
    index_text("{\"metadata\":{\"a\":2 \"b\":3}}", "'\"', want '}'");
    char deep[200] = "{\"metadata\":";
    memset(deep + strlen(deep), '[', 65);
    index_text(deep, "nested more than 64 levels deep");
    cmoei_index x;
    UNIT_FAILS(cmoei_index_read(&x, env.ctx, "", CMOEI_INDEX_MAX + 1, "f", &err), CMOE_ERR_FORMAT,
               "f: 100000001 bytes, want at most 100000000");
    assert_int_equal(truncate(files_in(&folder, "model.safetensors.index.json"), 100000001), 0);
    refuse(CMOE_ERR_FORMAT, "index.json: 100000001 bytes, want at most 100000000");
}

/* ---- files ----------------------------------------------------------------------------------- */

static void paths(void **state)
{
    (void)state;
    cmoe_checkpoint *c = NULL;
    UNIT_FAILS(cmoe_checkpoint_open(NULL, env.ctx, ".", &err), CMOE_ERR_ARG, "out is NULL");
    UNIT_FAILS(cmoe_checkpoint_open(&c, NULL, ".", &err), CMOE_ERR_ARG, "ctx is NULL");
    UNIT_FAILS(cmoe_checkpoint_open(&c, env.ctx, NULL, &err), CMOE_ERR_ARG, "path is NULL");
    refuse_path("", CMOE_ERR_IO, ": cannot be opened: No such file or directory");
    refuse_path("no/such/folder", CMOE_ERR_IO,
                "no/such/folder: cannot be opened: No such file or directory");
    refuse(CMOE_ERR_IO, "holds neither model.safetensors nor model.safetensors.index.json");
    files_text(&folder, "pytorch_model.bin", "x");
    files_text(&folder, "config.json", "{}");
    refuse(CMOE_ERR_IO, "; there is pytorch_model.bin, which is not looked for");
    files_text(&folder, "model-q4.gguf", "x");
    refuse(CMOE_ERR_IO, "; there is model-q4.gguf, which is not looked for");
    refuse_path(files_in(&folder, "config.json/x"), CMOE_ERR_IO, "Not a directory");

    char longest[5000];
    memset(longest, 'l', sizeof longest);
    longest[sizeof longest - 1] = 0;
    refuse_path(longest, CMOE_ERR_IO, "lll: cannot be opened: File name too long");
    longest[250] = '/'; /* texts show its end */
    longest[251] = 'Z';
    longest[252] = 0;
    refuse_path(longest, CMOE_ERR_IO, "...lllll");
    refuse_path("a\nb", CMOE_ERR_IO, "a?b: cannot be opened");
}

static void other_kinds(void **state)
{
    (void)state;
    const char *path = files_in(&folder, "model.safetensors");
    assert_int_equal(mkfifo(path, 0666), 0); /* nobody writes to it: must not be waited for */
    refuse(CMOE_ERR_IO, "model.safetensors: is a FIFO, want a regular file");
    refuse_path(path, CMOE_ERR_IO, "model.safetensors: is a FIFO, want a regular file");
    remove(path);
    refuse_path("/dev/zero", CMOE_ERR_IO, "/dev/zero: is a device, want a regular file");
    assert_int_equal(mkdir(path, 0777), 0);
    refuse(CMOE_ERR_IO, "model.safetensors: is a folder, want a regular file");
    remove(path);
    assert_int_equal(symlink("nowhere", path), 0);
    refuse(CMOE_ERR_IO, "model.safetensors: cannot be opened: No such file or directory");
    remove(path);
    files_text(&folder, "model.safetensors", "x");
    if (geteuid() != 0) {
        chmod(path, 0);
        refuse(CMOE_ERR_IO, "model.safetensors: cannot be opened: Permission denied");
    }
    remove(path);
    assert_int_equal(mkfifo(files_in(&folder, "model.safetensors.index.json"), 0666), 0);
    refuse(CMOE_ERR_IO, "index.json: is a FIFO, want a regular file");
}

static void bad_files(void **state)
{
    (void)state;
    const char *path = files_in(&folder, "model.safetensors");
    files_text(&folder, "model.safetensors", "");
    refuse(CMOE_ERR_FORMAT, "/model.safetensors: 0 bytes, want at least 8");
    files_text(&folder, "model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
    refuse(CMOE_ERR_FORMAT, "/model.safetensors: begins with \"version \": a git-lfs pointer");
    const cmoe_view v[] = {some("a", 0, 4)};
    writes("model.safetensors", v, 1);
    int64_t n;
    char *file = files_get(&folder, "model.safetensors", &n);
    for (int64_t cut = 0; cut < n; cut++) { /* cut short anywhere */
        files_put(&folder, "model.safetensors", file, cut);
        refuse(CMOE_ERR_FORMAT, "/model.safetensors: ");
    }
    files_put(&folder, "model.safetensors", file, n - 1);
    refuse(CMOE_ERR_FORMAT, "\"a\": data_offsets: [0, 16], but the file has 15 bytes of data");
    files_put(&folder, "model.safetensors", file, n + 1);
    refuse(CMOE_ERR_FORMAT, "1 bytes behind the last tensor");
    free(file);

    /* A header of 100 MB that is there, as a hole in the file. */
    files_put(&folder, "model.safetensors", "\x00\xe1\xf5\x05\0\0\0\0{", 9);
    assert_int_equal(truncate(path, 200000000), 0);
    refuse(CMOE_ERR_FORMAT, "header byte 1: byte 0x00, want '\"'");
}

/* ---- hints ----------------------------------------------------------------------------------- */

/* Pages of [data, data + bytes) that are in memory. */
static int64_t resident(const void *data, int64_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)data / page * page;
    const size_t n = ((uintptr_t)data + (uintptr_t)bytes - at + page - 1) / page;
    unsigned char in[4096];
    int64_t count = 0;
    assert_true(n <= sizeof in);
    assert_int_equal(mincore((void *)at, n * page, in), 0);
    for (size_t i = 0; i < n; i++)
        count += in[i] & 1;
    return count;
}

static void hints(void **state)
{
    (void)state;
    enum { BYTES = 4 << 20 };
    char *data = calloc(1, BYTES);
    memset(data, 5, BYTES);
    const cmoe_view v[] = {named(cmoe_view_1d(data, CMOE_U8, BYTES), "large"),
                           named(cmoe_view_1d(data, CMOE_U8, 100), "neighbour")};
    writes("model.safetensors", v, 2);
    cmoe_checkpoint *c = opened(folder.path);
    const cmoe_tensor t = tensor_of(c, "large");
    const char *p = t.data;
    cmoei_checkpoint_will_need(c, p, BYTES);
    int64_t sum = 0;
    for (int64_t i = 0; i < BYTES; i++)
        sum += p[i];
    assert_int_equal(sum, 5ll * BYTES);
    const int64_t pages = BYTES / (int64_t)sysconf(_SC_PAGESIZE);
    assert_true(resident(p, BYTES) >= pages);
    cmoei_checkpoint_drop(c, p, BYTES / 2);
    cmoei_checkpoint_drop(c, p, BYTES);
    /* Some file systems keep everything in memory; then there is nothing to be seen. */
    print_message("  %d of %d pages stay\n", (int)resident(p, BYTES), (int)pages);
    for (int64_t i = 0; i < BYTES; i++)
        assert_int_equal(p[i], 5); /* read again from the file */

    cmoei_checkpoint_drop(c, p, 1); /* less than a page, none, elsewhere, beyond the end */
    cmoei_checkpoint_drop(c, p, 0);
    cmoei_checkpoint_drop(c, p, -1);
    cmoei_checkpoint_drop(c, data, BYTES);
    cmoei_checkpoint_drop(c, p + BYTES - 1, INT64_MAX);
    cmoei_checkpoint_will_need(c, p + BYTES - 1, INT64_MAX);
    cmoei_checkpoint_will_need(c, data, 10);
    assert_int_equal(p[BYTES - 1], 5);
    cmoe_checkpoint_free(c);
    free(data);
}

/* ---- writing --------------------------------------------------------------------------------- */

static void write_fails(const cmoe_view *v, int64_t n, const char *const *metadata,
                        cmoe_status status, const char *text)
{
    const int before = files_count(&folder);
    UNIT_FAILS(cmoe_safetensors_write(files_in(&folder, "w.safetensors"), v, n, metadata, &err),
               status, text);
    assert_int_equal(files_count(&folder), before); /* nothing behind */
}

static void bad_tensors(void **state)
{
    (void)state;
    const char *path = files_in(&folder, "w.safetensors");
    cmoe_view v = some("a", 0, 4);
    UNIT_FAILS(cmoe_safetensors_write(NULL, &v, 1, NULL, &err), CMOE_ERR_ARG, "path is NULL");
    UNIT_FAILS(cmoe_safetensors_write(path, NULL, 1, NULL, &err), CMOE_ERR_ARG, "tensors is NULL");
    write_fails(&v, -1, NULL, CMOE_ERR_RANGE, "-1 tensors, want 0 <= count < 2^31");
    v.name = NULL;
    write_fails(&v, 1, NULL, CMOE_ERR_ARG, "tensor name[0] is NULL");
    v.name = "a\xff";
    write_fails(&v, 1, NULL, CMOE_ERR_ARG, "tensor name[0] is not UTF-8");
    v.name = "a\nb";
    write_fails(&v, 1, NULL, CMOE_ERR_ARG, "tensor name[0] \"a?b\": a control character");
    v.name = "__metadata__";
    write_fails(&v, 1, NULL, CMOE_ERR_ARG, "tensor name[0]: \"__metadata__\" has another use");
    v = some("a", 0, 4);
    v.rank = 7;
    write_fails(&v, 1, NULL, CMOE_ERR_SHAPE, "a: rank 7, want 0 <= rank <= 6");
    v.rank = -1;
    write_fails(&v, 1, NULL, CMOE_ERR_SHAPE, "a: rank -1, want");
    static const int32_t no_word[] = {0, -3, CMOE_I4X2, CMOE_E2M1X2, 99};
    for (int i = 0; i < 5; i++) {
        v = some("a", 0, 4);
        v.dtype = no_word[i];
        write_fails(&v, 1, NULL, CMOE_ERR_DTYPE, "a: safetensors has no word for dtype ");
    }
    v = some("a", 0, 4);
    v.dims[0] = -4;
    write_fails(&v, 1, NULL, CMOE_ERR_SHAPE, "a: dims[0] = -4");
    v = some("a", 0, 4);
    v.data = NULL;
    write_fails(&v, 1, NULL, CMOE_ERR_ARG, "a: data is NULL");
    v = some("a", 0, 4);
    v.device = 0;
    write_fails(&v, 1, NULL, CMOE_ERR_DEVICE, "a: device 0");
    v = named(cmoe_view_2d(numbers, CMOE_F32, 4, 4), "a");
    v.strides[0] = 5;
    write_fails(&v, 1, NULL, CMOE_ERR_SHAPE, "a: strides[0] = 5, want 4 (contiguous)");
    v.strides[0] = 1;
    v.strides[1] = 4;
    write_fails(&v, 1, NULL, CMOE_ERR_SHAPE, "a: strides[1] = 4, want 1 (contiguous)");
    const int64_t large[] = {0, INT64_MAX / 16, 4};
    v = named(cmoe_view_make(numbers, CMOE_F32, 3, large), "a");
    for (int i = 0; i < 3; i++)
        v.strides[i] = 0;
    v.strides[2] = 1;
    v.strides[1] = 4;
    write_fails(&v, 1, NULL, CMOE_ERR_SHAPE, "a: dims multiply to 2^63 bits or more");
    const cmoe_view twice[] = {some("a", 0, 4), some("b", 0, 4), some("a", 4, 4)};
    write_fails(twice, 3, NULL, CMOE_ERR_ARG, "tensor \"a\" is given twice");
    v = some("a", 0, 4);
    const char *const half[] = {"k", NULL}, *const again[] = {"k", "v", "k", "w", NULL};
    const char *const bad_key[] = {"k\n", "v", NULL}, *const bad_value[] = {"k", "\x80", NULL};
    write_fails(&v, 1, half, CMOE_ERR_ARG, "metadata[1] is NULL");
    write_fails(&v, 1, again, CMOE_ERR_ARG, "metadata: key \"k\" twice");
    write_fails(&v, 1, bad_key, CMOE_ERR_ARG, "metadata[0] \"k?\": a control character");
    write_fails(&v, 1, bad_value, CMOE_ERR_ARG, "metadata[1] is not UTF-8");
}

static void bad_places(void **state)
{
    (void)state;
    const cmoe_view v = some("a", 0, 4096);
    UNIT_FAILS(cmoe_safetensors_write("no/such/folder/x", &v, 1, NULL, &err), CMOE_ERR_IO,
               "cannot be made: No such file or directory");
    UNIT_FAILS(cmoe_safetensors_write(folder.path, &v, 1, NULL, &err), CMOE_ERR_IO,
               ": is there and not a regular file");
    UNIT_FAILS(cmoe_safetensors_write("/dev/null", &v, 1, NULL, &err), CMOE_ERR_IO,
               "/dev/null: is there and not a regular file");

    /* As on a full disk: the system takes a part and then no more.  What was there stays. */
    files_text(&folder, "w.safetensors", "what was there");
    struct rlimit before, small;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    for (rlim_t bytes = 0; bytes < 16384; bytes += 1500) {
        small.rlim_cur = bytes;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        cmoe_error err = {0};
        const cmoe_status status =
            cmoe_safetensors_write(files_in(&folder, "w.safetensors"), &v, 1, NULL, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(status, CMOE_ERR_IO);
        assert_non_null(strstr(err.text, "/w.safetensors: cannot be written: File too large"));
        assert_int_equal(files_count(&folder), 1);
    }
    int64_t n;
    char *stays = files_get(&folder, "w.safetensors", &n);
    assert_int_equal(n, 14);
    free(stays);
    UNIT_OK(cmoe_safetensors_write(files_in(&folder, "w.safetensors"), &v, 1, NULL, &err));
    cmoe_checkpoint *c = opened(files_in(&folder, "w.safetensors"));
    assert_memory_equal(tensor_of(c, "a").data, numbers, sizeof numbers);
    assert_string_equal(tensor_of(c, "a").file, "w.safetensors");
    cmoe_checkpoint_free(c);
    struct stat s;
    const mode_t mask = umask(0);
    umask(mask);
    assert_int_equal(stat(files_in(&folder, "w.safetensors"), &s), 0);
    assert_int_equal(s.st_mode & 0777, 0666 & ~mask);
}

/* Names of temporary files that others have left are stepped over, and what is in them stays. */
static void left_behind(void **state)
{
    (void)state;
    const cmoe_view v = some("a", 0, 4096);
    char name[2][64];
    for (int i = 0; i < 2; i++) {
        snprintf(name[i], sizeof name[i], "w.safetensors.%ld-%d.tmp", (long)getpid(), i);
        files_text(&folder, name[i], "of somebody else");
    }
    writes("w.safetensors", &v, 1);
    assert_int_equal(files_count(&folder), 3);
    for (int i = 0; i < 2; i++) {
        int64_t n;
        char *text = files_get(&folder, name[i], &n);
        assert_int_equal(n, 16);
        assert_memory_equal(text, "of somebody else", 16);
        free(text);
    }
}

/* More tensors than fit a buffer, names of every length. */
static void many(void **state)
{
    (void)state;
    enum { N = 3000 };
    cmoe_view *v = calloc(N, sizeof *v);
    char(*names)[64] = calloc(N, sizeof *names);
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "%0*d", 4 + i % 50, i);
        v[i] = some(names[i], i, 1 + i % 3);
    }
    writes("model.safetensors", v, N);
    cmoe_checkpoint *c = opened(folder.path);
    assert_int_equal(cmoe_checkpoint_count(c), N);
    for (int i = 0; i < N; i++)
        assert_memory_equal(tensor_of(c, names[i]).data, numbers + i, 4 * (size_t)(1 + i % 3));
    cmoe_checkpoint_free(c);
    free(names);
    free(v);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, open_folder, close_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(every_format), IN_FOLDER(nothing_in_it),        IN_FOLDER(asking),
        IN_FOLDER(sharded),      IN_FOLDER(shards_that_disagree), IN_FOLDER(bad_index),
        IN_FOLDER(paths),        IN_FOLDER(other_kinds),          IN_FOLDER(bad_files),
        IN_FOLDER(hints),        IN_FOLDER(bad_tensors),          IN_FOLDER(bad_places),
        IN_FOLDER(many),         IN_FOLDER(left_behind),
    };
    for (int i = 0; i < 4096; i++)
        numbers[i] = (float)i;
    env = unit_open(1);
    const int failed = UNIT_RUN("unit_checkpoint", tests);
    unit_close(&env);
    return failed;
}
