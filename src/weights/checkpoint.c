/* SPDX-License-Identifier: MIT
 *
 * checkpoint.c - all tensors of a checkpoint, whatever the number of its files, in one table.
 *
 * As in transformers, model.safetensors comes before an index.  With an index, the two must say the
 * same: every tensor lies in the shard that the index names, every shard holds only tensors that it
 * names, and none lies in two.  A file whose tensors nobody asks for, or a tensor that two files
 * claim, is a checkpoint put together from two others.
 */
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"
#include "index.h"
#include "json.h"

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

typedef struct item {
    const cmoei_entry *entry;
    int32_t file;
} item;

struct cmoe_checkpoint {
    cmoe_ctx *ctx;
    int64_t count, bytes, n_files;
    cmoei_file *files; /* [n_files] by name */
    item *items;       /* [count] as files and headers list them */
    int32_t *order;    /* [count] items by name */
    char *names;       /* of the files */
    int64_t items_bytes, names_bytes;
};

#define CMOEI_HERE                   \
    CMOEI_STRING(CMOE_VERSION_MAJOR) \
    "." CMOEI_STRING(CMOE_VERSION_MINOR) "." CMOEI_STRING(CMOE_VERSION_PATCH)

cmoe_status cmoei_engine_check(cmoe_error *err)
{
    if (!strcmp(cmoei_core_version(), CMOEI_HERE)) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_UNSUPPORTED,
                      "libcmoe is version %s, libcmoe_engine version %s: want the same of both",
                      cmoei_core_version(), CMOEI_HERE);
}

/* ---- files ----------------------------------------------------------------------------------- */

static cmoe_status make_files(cmoe_checkpoint *c, int64_t n, int64_t names_bytes, cmoe_error *err)
{
    const int64_t bytes = n * (int64_t)sizeof *c->files;
    CMOEI_TRY(cmoei_alloc(c->ctx, bytes, "table of files", (void **)&c->files, err));
    memset(c->files, 0, (size_t)bytes);
    c->n_files = n;
    for (int64_t i = 0; i < n; i++)
        c->files[i].fd = -1;
    CMOEI_TRY(cmoei_alloc(c->ctx, names_bytes, "names of files", (void **)&c->names, err));
    c->names_bytes = names_bytes;
    return CMOE_OK;
}

/* The name's copy is put at `at` of the names; returns where the next one goes. */
static int64_t name_file(cmoe_checkpoint *c, int64_t i, const char *name, int64_t at)
{
    const size_t n = strlen(name) + 1;
    c->files[i].name = memcpy(c->names + at, name, n);
    return at + (int64_t)n;
}

/* `path` beside `folder`, as texts show it. */
static cmoei_path shown_in(const char *path, const char *name)
{
    char whole[2 * CMOEI_PATH_SHOWN + 8];
    const size_t n = strlen(path);
    const bool slash = n > 0 && path[n - 1] == '/';
    const size_t skip = n > CMOEI_PATH_SHOWN ? n - CMOEI_PATH_SHOWN : 0;
    snprintf(whole, sizeof whole, "%s%s%s", path + skip, slash ? "" : "/", name);
    return cmoei_path_shown(whole);
}

/* One file.  `path` from `folder`; `name` without folder. */
static cmoe_status open_single(cmoe_checkpoint *c, int folder, const char *path, const char *name,
                               const char *shown, cmoe_error *err)
{
    CMOEI_TRY(make_files(c, 1, (int64_t)strlen(name) + 1, err));
    name_file(c, 0, name, 0);
    return cmoei_file_map(&c->files[0], c->ctx, folder, path, shown, "", err);
}

static cmoe_status read_index(cmoei_index *index, cmoe_ctx *ctx, int folder, const char *shown,
                              cmoe_error *err)
{
    int fd;
    int64_t bytes;
    void *text = NULL;
    CMOEI_TRY(cmoei_file_open(folder, index_name, shown, "", &fd, &bytes, err));
    cmoe_status status = CMOE_OK;
    if (bytes > CMOEI_INDEX_MAX)
        status = cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %lld bytes, want at most %d", shown,
                            (long long)bytes, CMOEI_INDEX_MAX);
    if (status == CMOE_OK) status = cmoei_alloc(ctx, bytes, "index of shards", &text, err);
    if (status == CMOE_OK) status = cmoei_file_read(fd, shown, text, bytes, 0, err);
    if (status == CMOE_OK) status = cmoei_index_read(index, ctx, text, bytes, shown, err);
    cmoei_free(ctx, text, bytes);
    close(fd);
    return status;
}

/* All shards of an index; `path` is the folder. */
static cmoe_status open_shards(cmoe_checkpoint *c, int folder, const char *path,
                               const cmoei_index *index, cmoe_error *err)
{
    int64_t at = 0, names = 1, i = -1;
    for (int64_t k = 0; k < index->count; k++) {
        const cmoei_index_row *row = &index->rows[index->by_shard[k]];
        if (row->file != i) names += (int64_t)strlen(row->shard) + 1;
        i = row->file;
    }
    CMOEI_TRY(make_files(c, index->files, names, err));
    i = -1;
    for (int64_t k = 0; k < index->count; k++) {
        const cmoei_index_row *row = &index->rows[index->by_shard[k]];
        char why[2 * CMOEI_SHOWN], shown[CMOEI_SHOWN + 4];
        if (row->file == i) continue;
        i = row->file;
        at = name_file(c, i, row->shard, at);
        snprintf(why, sizeof why, " (%s wants tensor \"%s\" from it)", index_name,
                 cmoei_shown(shown, row->name, (int64_t)strlen(row->name)));
        CMOEI_TRY(cmoei_file_map(&c->files[i], c->ctx, folder, row->shard,
                                 shown_in(path, row->shard).text, why, err));
    }
    return CMOE_OK;
}

/* ---- one table ------------------------------------------------------------------------------- */

static int by_name(const void *table, int32_t a, int32_t b)
{
    const item *items = table;
    return strcmp(items[a].entry->name, items[b].entry->name);
}

static cmoe_status make_table(cmoe_checkpoint *c, cmoe_error *err)
{
    char shown[CMOEI_SHOWN + 4];
    int64_t n = 0;
    for (int64_t i = 0; i < c->n_files; i++) {
        n += c->files[i].header.count;
        if (!cmoei_add(c->bytes, c->files[i].bytes, &c->bytes) || n > INT32_MAX)
            return cmoei_fail(err, CMOE_ERR_FORMAT, "more than 2^31 - 1 tensors or 2^63 bytes");
    }
    const int64_t bytes = n * (int64_t)(sizeof *c->items + 2 * sizeof *c->order);
    CMOEI_TRY(cmoei_alloc(c->ctx, bytes, "table of tensors", (void **)&c->items, err));
    c->items_bytes = bytes;
    c->order = (int32_t *)(void *)(c->items + n);
    for (int64_t i = 0; i < c->n_files; i++) {
        const cmoei_header *h = &c->files[i].header;
        for (int64_t k = 0; k < h->count; k++, c->count++) {
            c->items[c->count] = (item){&h->entries[h->order[k]], (int32_t)i};
            c->order[c->count] = (int32_t)c->count;
        }
    }
    cmoei_sort(c->order, c->order + n, n, by_name, c->items);
    for (int64_t i = 1; i < n; i++) {
        const item *a = &c->items[c->order[i - 1]], *b = &c->items[c->order[i]];
        if (!strcmp(a->entry->name, b->entry->name))
            return cmoei_fail(err, CMOE_ERR_FORMAT,
                              "tensor \"%s\" lies in %s and in %s, want it in one",
                              cmoei_shown(shown, a->entry->name, (int64_t)strlen(a->entry->name)),
                              c->files[a->file].name, c->files[b->file].name);
    }
    return CMOE_OK;
}

/* Index and shards must say the same; both lists are walked in name order. */
static cmoe_status compare_index(const cmoe_checkpoint *c, const cmoei_index *index,
                                 const char *shown, cmoe_error *err)
{
    char name[CMOEI_SHOWN + 4];
    int64_t i = 0, k = 0;
    while (i < c->count || k < index->count) {
        const item *have = i < c->count ? &c->items[c->order[i]] : NULL;
        const cmoei_index_row *want = k < index->count ? &index->rows[index->by_name[k]] : NULL;
        const int order = !have ? 1 : !want ? -1 : strcmp(have->entry->name, want->name);
        const char *which = order < 0 ? have->entry->name : want->name;
        cmoei_shown(name, which, (int64_t)strlen(which));
        if (order < 0)
            return cmoei_fail(err, CMOE_ERR_FORMAT,
                              "%s: tensor \"%s\" of %s is not listed, want every tensor of its "
                              "shards",
                              shown, name, c->files[have->file].name);
        if (order > 0)
            return cmoei_fail(err, CMOE_ERR_FORMAT,
                              "%s: tensor \"%s\" is said to lie in %s, which does not have it",
                              shown, name, want->shard);
        if (have->file != want->file)
            return cmoei_fail(err, CMOE_ERR_FORMAT,
                              "%s: tensor \"%s\" is said to lie in %s, but lies in %s", shown, name,
                              want->shard, c->files[have->file].name);
        i++;
        k++;
    }
    return CMOE_OK;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* The first, in name order, of the files here that hold weights in some other way; "" if none. */
static void find_other(int folder, char out[CMOEI_SHOWN + 4])
{
    static const char *const endings[] = {".safetensors", ".bin", ".gguf", ".pt",  ".pth",
                                          ".ckpt",        ".h5",  ".npz",  ".onnx"};
    char best[256] = "";
    const int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = again >= 0 ? fdopendir(again) : NULL;
    if (!list && again >= 0) close(again);
    for (const struct dirent *e; list && (e = readdir(list));) {
        const size_t n = strlen(e->d_name);
        for (int64_t i = 0; i < CMOEI_COUNT(endings); i++) {
            const size_t m = strlen(endings[i]);
            if (n > m && n < sizeof best && !strcmp(e->d_name + n - m, endings[i]) &&
                (!best[0] || strcmp(e->d_name, best) < 0))
                memcpy(best, e->d_name, n + 1);
        }
    }
    if (list) closedir(list);
    cmoei_shown(out, best, (int64_t)strlen(best));
}

static bool is_there(int folder, const char *name)
{
    struct stat s; /* a link that leads nowhere is there: opening it says so */
    return fstatat(folder, name, &s, AT_SYMLINK_NOFOLLOW) == 0;
}

static cmoe_status open_sharded(cmoe_checkpoint *c, int folder, const char *path, cmoe_error *err)
{
    const cmoei_path shown = shown_in(path, index_name);
    cmoei_index index = {0};
    CMOEI_TRY(read_index(&index, c->ctx, folder, shown.text, err));
    cmoe_status status = open_shards(c, folder, path, &index, err);
    if (status == CMOE_OK) status = make_table(c, err);
    if (status == CMOE_OK) status = compare_index(c, &index, shown.text, err);
    cmoei_index_free(&index, c->ctx);
    return status;
}

static cmoe_status open_folder(cmoe_checkpoint *c, int folder, const char *path, cmoe_error *err)
{
    if (is_there(folder, single_name)) {
        CMOEI_TRY(open_single(c, folder, single_name, single_name, shown_in(path, single_name).text,
                              err));
        return make_table(c, err);
    }
    if (is_there(folder, index_name)) return open_sharded(c, folder, path, err);
    char other[CMOEI_SHOWN + 4];
    find_other(folder, other);
    return cmoei_fail(err, CMOE_ERR_IO, "%s: holds neither %s nor %s%s%s%s",
                      cmoei_path_shown(path).text, single_name, index_name,
                      other[0] ? "; there is " : "", other,
                      other[0] ? ", which is not looked for" : "");
}

static cmoe_status open_path(cmoe_checkpoint *c, const char *path, cmoe_error *err)
{
    const cmoei_path shown = cmoei_path_shown(path);
    const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        const cmoe_status status = open_folder(c, folder, path, err);
        close(folder);
        return status;
    }
    if (errno != ENOTDIR)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: cannot be opened: %s", shown.text,
                          cmoei_errno_text(errno).text);
    const char *slash = strrchr(path, '/');
    CMOEI_TRY(open_single(c, AT_FDCWD, path, slash ? slash + 1 : path, shown.text, err));
    return make_table(c, err);
}

cmoe_status cmoe_checkpoint_open(cmoe_checkpoint **out, cmoe_ctx *ctx, const char *path,
                                 cmoe_error *err)
{
    if (!out || !ctx || !path)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL", !out ? "out" : !ctx ? "ctx" : "path");
    CMOEI_TRY(cmoei_engine_check(err));
    cmoe_checkpoint *c;
    CMOEI_TRY(cmoei_alloc(ctx, (int64_t)sizeof *c, "checkpoint", (void **)&c, err));
    *c = (cmoe_checkpoint){.ctx = ctx};
    const cmoe_status status = open_path(c, path, err);
    if (status != CMOE_OK)
        cmoe_checkpoint_free(c);
    else
        *out = c;
    return status;
}

void cmoe_checkpoint_free(cmoe_checkpoint *c)
{
    if (!c) return;
    for (int64_t i = 0; i < c->n_files; i++)
        cmoei_file_close(&c->files[i], c->ctx);
    cmoei_free(c->ctx, c->items, c->items_bytes);
    cmoei_free(c->ctx, c->names, c->names_bytes);
    cmoei_free(c->ctx, c->files, c->n_files * (int64_t)sizeof *c->files);
    cmoei_free(c->ctx, c, (int64_t)sizeof *c);
}

/* ---- asking ---------------------------------------------------------------------------------- */

int64_t cmoe_checkpoint_count(const cmoe_checkpoint *c)
{
    return c ? c->count : 0;
}

int64_t cmoe_checkpoint_bytes(const cmoe_checkpoint *c)
{
    return c ? c->bytes : 0;
}

int64_t cmoe_checkpoint_find(const cmoe_checkpoint *c, const char *name)
{
    int64_t low = 0, high = c && name ? c->count : 0;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const int order = strcmp(c->items[c->order[middle]].entry->name, name);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

void cmoe_tensor_default(cmoe_tensor *tensor, size_t size)
{
    const cmoe_tensor d = {.size = sizeof d};
    cmoei_options_write(tensor, size, &d, sizeof d);
}

cmoe_status cmoe_checkpoint_tensor(const cmoe_checkpoint *c, int64_t i, cmoe_tensor *tensor,
                                   cmoe_error *err)
{
    if (!c || !tensor)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL", !c ? "checkpoint" : "tensor");
    if (i < 0 || i >= c->count)
        return cmoei_fail(err, CMOE_ERR_RANGE, "tensor %lld, want 0 <= i < %lld", (long long)i,
                          (long long)c->count);
    if (tensor->size < sizeof tensor->size || tensor->size > 4096)
        return cmoei_fail(err, CMOE_ERR_ARG, "tensor.size = %zu, want sizeof(cmoe_tensor)",
                          tensor->size);
    const item *it = &c->items[c->order[i]];
    const cmoei_file *file = &c->files[it->file];
    const cmoei_stored *stored = &cmoei_stored_formats[it->entry->stored];
    cmoe_tensor t = {.size = sizeof t,
                     .name = it->entry->name,
                     .file = file->name,
                     .stored = stored->name,
                     .dtype = stored->dtype,
                     .rank = it->entry->rank,
                     .bytes = it->entry->bytes,
                     .data = file->data + it->entry->begin};
    memcpy(t.dims, it->entry->dims, sizeof t.dims);
    cmoei_options_write(tensor, tensor->size, &t, sizeof t);
    return CMOE_OK;
}

cmoe_view cmoe_tensor_view(const cmoe_tensor *tensor)
{
    if (!tensor) return cmoe_view_none();
    cmoe_view v = cmoe_view_make(tensor->data, tensor->dtype, tensor->rank, tensor->dims);
    v.name = tensor->name;
    return v;
}

/* ---- hints ----------------------------------------------------------------------------------- */

/* Whole pages of a file in [data, data + bytes): inside it (inward), or that it touches. */
static bool pages_of(const cmoei_file *f, const void *data, int64_t bytes, bool inward,
                     int64_t *begin, int64_t *end)
{
    const int64_t page = (int64_t)sysconf(_SC_PAGESIZE);
    const char *from = data, *to = from + CMOEI_MAX(bytes, 0);
    if (to <= f->data || from >= f->data + f->bytes) return false;
    const int64_t first = from < f->data ? 0 : from - f->data;
    const int64_t last = CMOEI_MIN(to - f->data, f->bytes);
    /* What lies behind the end of the file is nobody else's. */
    *begin = inward ? cmoei_round_up(first, page) : first / page * page;
    *end = inward && last < f->bytes ? last / page * page : cmoei_round_up(last, page);
    return *begin < *end;
}

void cmoei_checkpoint_drop(const cmoe_checkpoint *c, const void *data, int64_t bytes)
{
    int64_t begin, end;
    for (int64_t i = 0; i < c->n_files; i++) {
        const cmoei_file *f = &c->files[i];
        if (!pages_of(f, data, bytes, true, &begin, &end)) continue;
        madvise((void *)(uintptr_t)(f->data + begin), (size_t)(end - begin), MADV_DONTNEED);
        posix_fadvise(f->fd, begin, end - begin, POSIX_FADV_DONTNEED);
    }
}

void cmoei_checkpoint_will_need(const cmoe_checkpoint *c, const void *data, int64_t bytes)
{
    int64_t begin, end;
    for (int64_t i = 0; i < c->n_files; i++) {
        const cmoei_file *f = &c->files[i];
        if (pages_of(f, data, bytes, false, &begin, &end))
            madvise((void *)(uintptr_t)(f->data + begin), (size_t)(end - begin), MADV_WILLNEED);
    }
}

cmoe_status cmoei_checkpoint_whole(const cmoe_checkpoint *c, cmoe_error *err)
{
    for (int64_t i = 0; i < c->n_files; i++) {
        const cmoei_file *f = &c->files[i];
        struct stat now;
        if (f->fd >= 0 && fstat(f->fd, &now) == 0 && (int64_t)now.st_size < f->bytes)
            return cmoei_fail(err, CMOE_ERR_IO,
                              "%s: has %" PRId64 " bytes, want the %" PRId64
                              " it had when it was opened",
                              f->name, (int64_t)now.st_size, f->bytes);
    }
    return CMOE_OK;
}

/* ---- identity -------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t sum, uint64_t word)
{
    sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
    return sum ^ sum >> 32;
}

uint64_t cmoei_checkpoint_identity(const cmoe_checkpoint *c)
{
    uint64_t sum = (uint64_t)c->n_files;
    for (int64_t i = 0; i < c->n_files; i++) {
        struct stat st;
        const cmoei_file *f = &c->files[i];
        for (const char *p = f->name; *p; p++)
            sum = mix(sum, (unsigned char)*p);
        if (fstat(f->fd, &st) != 0) continue;
        sum = mix(mix(sum, (uint64_t)st.st_dev), (uint64_t)st.st_ino);
        sum = mix(mix(sum, (uint64_t)st.st_size), (uint64_t)st.st_mtim.tv_sec);
        sum = mix(sum, (uint64_t)st.st_mtim.tv_nsec);
    }
    return sum;
}
