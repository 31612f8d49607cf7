/* SPDX-License-Identifier: MIT
 *
 * merge.c - a model with its adapters folded in, as a directory.
 *
 * What the files of the model have comes out under the same names and in the same shapes.  A weight that an
 * adapter changes is made row by row: read as float32, the terms added, rounded once, and put back where the
 * file had it, whatever its rows and columns are in there.  One matrix of one expert is in memory at a time.
 *
 * Values of 8 and 4 bits have scales that a sum does not fit, so such weights are only written in another
 * format; config.json then loses what it says about them.
 *
 * All is written into a folder beside the one that was asked for, the weights last, and then renamed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapt.h"
#include "resolve.h"
#include "weights/checkpoint.h"
#include "weights/file.h"
#include "weights/write.h"

enum { PATH = 4096, FILE_MAX = 256 << 20 };

typedef enum merge_kind { COPY, CAST, ROWS } merge_kind;

/* A tensor that is written. */
typedef struct merge_item {
    char name[CMOEI_NAME];
    cmoe_tensor from;
    cmoei_match match;
    merge_kind kind;
    bool turned;
    int64_t matrices, rows, cols; /* ROWS: as the file has them before they are turned */
} merge_item;

typedef struct merger {
    cmoe_ctx *ctx;
    cmoei_decoder d;
    cmoe_checkpoint *files;
    cmoei_tensors t;
    cmoei_folds folds;
    int32_t dtype;
    bool unpacked; /* something of 8 or 4 bits is written in another format */
    merge_item *items;
    cmoe_view *views;
    int64_t count, items_bytes, views_bytes;
    cmoe_error *err;
    /* one matrix */
    const merge_item *item;
    int64_t matrix;
    float *rows; /* [threads, cols] */
    char *out;
} merger;

/* ---- what becomes of a tensor ---------------------------------------------------------------- */

/* Where row n of a matrix of a tensor lies in the model. */
static void row_of(const merger *m, const merge_item *x, int64_t n, cmoei_role *role, int64_t *at)
{
    const cmoei_decoder *d = &m->d;
    const int64_t q = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim, I = x->rows / 2;
    *role = x->match.role;
    *at = n;
    switch ((int)x->match.role) {
    case CMOEI_FUSED_GATE_UP:
        if (x->match.how & CMOEI_INTERLEAVED) {
            *role = n % 2 ? CMOEI_EXPERT_UP : CMOEI_EXPERT_GATE;
            *at = n / 2;
            return;
        }
        *role = n < I ? CMOEI_EXPERT_GATE : CMOEI_EXPERT_UP;
        *at = n < I ? n : n - I;
        return;
    case CMOEI_FUSED_DOWN:
        *role = CMOEI_EXPERT_DOWN;
        return;
    case CMOEI_FUSED_QKV:
        *role = n < q ? CMOEI_Q : n < q + kv ? CMOEI_K : CMOEI_V;
        *at = n < q ? n : n < q + kv ? n - q : n - q - kv;
        return;
    default:
        return;
    }
}

static bool touched(const merger *m, const cmoei_match *x)
{
    const cmoei_folds *f = &m->folds;
    switch ((int)x->role) {
    case CMOEI_FUSED_GATE_UP:
        return cmoei_folds_touch(f, x->layer, CMOEI_EXPERT_GATE) ||
               cmoei_folds_touch(f, x->layer, CMOEI_EXPERT_UP);
    case CMOEI_FUSED_DOWN:
        return cmoei_folds_touch(f, x->layer, CMOEI_EXPERT_DOWN);
    case CMOEI_FUSED_QKV:
        return cmoei_folds_touch(f, x->layer, CMOEI_Q) || cmoei_folds_touch(f, x->layer, CMOEI_K) ||
               cmoei_folds_touch(f, x->layer, CMOEI_V);
    default:
        return x->role < CMOEI_ROLES && cmoei_folds_touch(f, x->layer, x->role);
    }
}

static bool is_float(int32_t dtype)
{
    return dtype == CMOE_F32 || dtype == CMOE_F16 || dtype == CMOE_BF16;
}

/* Cuts an end off, where it stands. */
static bool cut(char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    if (n <= k || strcmp(name + n - k, end) != 0) return false;
    name[n - k] = '\0';
    return true;
}

/* Scales of a tensor that is written without: they have gone into its values. */
static bool is_spent_scale(const merger *m, const cmoe_tensor *x, const cmoei_match *match,
                           bool known)
{
    char base[CMOEI_NAME];
    cmoei_match owner;
    if (!m->dtype || strlen(x->name) >= CMOEI_NAME) return false;
    if (known && (match->how & CMOEI_SCALES)) return true;
    snprintf(base, sizeof base, "%s", x->name);
    return cut(base, "_scale_inv") && cmoei_match_name(&m->d, base, &owner) &&
           owner.role != CMOEI_IGNORED;
}

static cmoe_status size_rows(merger *m, merge_item *x, bool blocks)
{
    const cmoe_tensor *from = &x->from;
    const bool fused = x->match.role == CMOEI_FUSED_GATE_UP || x->match.role == CMOEI_FUSED_DOWN;
    if (blocks) {
        const cmoei_layer_shape *l = &m->d.layer[x->match.layer];
        const bool down = x->match.role == CMOEI_FUSED_DOWN;
        x->match.how = cmoei_adapt_how(&m->d, x->match.role);
        cut(x->name, "_blocks");
        x->matrices = l->experts;
        x->rows = down ? m->d.hidden : 2 * l->inter;
        x->cols = down ? l->inter : m->d.hidden;
    } else {
        const int32_t last = from->rank - 1;
        const bool turned = x->match.how & CMOEI_TRANSPOSED;
        x->matrices = fused ? from->dims[0] : 1;
        x->rows = last < 1 ? 1 : from->dims[turned ? last : last - 1];
        x->cols = from->dims[turned ? last - 1 : last];
    }
    x->turned = x->match.how & CMOEI_TRANSPOSED;
    m->unpacked = m->unpacked || blocks || from->dtype == CMOE_F8E4M3;
    return CMOE_OK;
}

static cmoe_status plan_item(merger *m, const cmoe_tensor *from, bool *kept)
{
    cmoei_match match = {.role = CMOEI_IGNORED};
    const bool known = cmoei_match_name(&m->d, from->name, &match) && match.role != CMOEI_IGNORED &&
                       !(match.role == CMOEI_HEAD && m->d.tied);
    merge_item *x = &m->items[m->count];
    const bool blocks = known && (match.how & CMOEI_BLOCKS);
    const bool packed = known && (blocks || from->dtype == CMOE_F8E4M3);
    const bool changed = known && !(match.how & CMOEI_SCALES) && touched(m, &match);
    *kept = !is_spent_scale(m, from, &match, known);
    if (!*kept) return CMOE_OK;
    if (strlen(from->name) >= CMOEI_NAME)
        return cmoei_fail(m->err, CMOE_ERR_UNSUPPORTED, "%s: the name of %.100s... is too long",
                          from->file, from->name);
    *x = (merge_item){.from = *from, .match = match};
    snprintf(x->name, sizeof x->name, "%s", from->name);
    if (changed && packed && !m->dtype)
        return cmoei_fail(m->err, CMOE_ERR_UNSUPPORTED,
                          "%s: %s has the format %.20s, whose scales do not fit the sum: want "
                          "another format for the merged model, bf16 or f32",
                          from->file, from->name, blocks ? "mxfp4" : from->stored);
    if (changed || (packed && m->dtype && !(match.how & CMOEI_SCALES))) {
        x->kind = ROWS;
        return size_rows(m, x, blocks);
    }
    /* The correction bias decides between experts: transformers keeps it in float32, too. */
    const bool cast = m->dtype && is_float(from->dtype) && from->dtype != m->dtype &&
                      match.role != CMOEI_CHOICE_BIAS;
    x->kind = cast ? CAST : COPY;
    return CMOE_OK;
}

static void plan_view(const merger *m, const merge_item *x, cmoe_view *v)
{
    *v = cmoe_tensor_view(&x->from);
    v->name = x->name;
    if (x->kind == COPY) return;
    v->dtype = m->dtype ? m->dtype : x->from.dtype;
    v->data = cmoei_later;
    if (x->kind == ROWS &&
        (x->match.role == CMOEI_FUSED_GATE_UP || x->match.role == CMOEI_FUSED_DOWN)) {
        *v = cmoe_view_3d(cmoei_later, v->dtype, x->matrices, x->turned ? x->cols : x->rows,
                          x->turned ? x->rows : x->cols);
        v->name = x->name;
    }
}

static cmoe_status plan(merger *m)
{
    const int64_t most = cmoe_checkpoint_count(m->files);
    m->items_bytes = most * (int64_t)sizeof *m->items;
    m->views_bytes = most * (int64_t)sizeof *m->views;
    CMOEI_TRY(cmoei_alloc(m->ctx, m->items_bytes, "tensors", (void **)&m->items, m->err));
    CMOEI_TRY(cmoei_alloc(m->ctx, m->views_bytes, "tensors", (void **)&m->views, m->err));
    for (int64_t i = 0; i < most; i++) {
        cmoe_tensor x = {.size = sizeof x};
        bool kept;
        CMOEI_TRY(cmoe_checkpoint_tensor(m->files, i, &x, m->err));
        CMOEI_TRY(plan_item(m, &x, &kept));
        m->count += kept;
    }
    for (int64_t i = 0; i < m->count; i++) {
        const cmoe_tensor *from = &m->items[i].from;
        plan_view(m, &m->items[i], &m->views[i]);
        if (m->views[i].dtype == 0 || m->views[i].dtype == CMOE_E2M1X2)
            return cmoei_fail(m->err, CMOE_ERR_UNSUPPORTED,
                              "%s: %.200s has the format %.20s, which is not written", from->file,
                              from->name, from->stored);
    }
    return CMOE_OK;
}

/* ---- values ---------------------------------------------------------------------------------- */

static void make_rows(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const merger *m = arg;
    const merge_item *x = m->item;
    const int32_t dtype = m->dtype ? m->dtype : x->from.dtype;
    const int64_t size = cmoe_dtype_bytes(dtype), e = CMOEI_MAX(x->match.expert, m->matrix);
    float *row = m->rows + index * x->cols;
    int64_t begin, end;
    (void)team;
    cmoei_split(x->rows, index, count, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        cmoei_role role;
        int64_t at;
        row_of(m, x, n, &role, &at);
        cmoei_source_row(cmoei_place_of((cmoei_tensors *)&m->t, x->match.layer, role, e), at, row);
        cmoei_fold_row(&m->folds, x->match.layer, role, role < CMOEI_LAYER_ROLES ? 0 : e, at, row);
        if (x->turned)
            cmoei_store_f32(m->out + n * size, dtype, x->rows, row, x->cols);
        else
            cmoei_store_f32(m->out + n * x->cols * size, dtype, 1, row, x->cols);
    }
}

static cmoe_status put_rows(merger *m, const merge_item *x, cmoei_sink *sink)
{
    const int32_t dtype = m->dtype ? m->dtype : x->from.dtype;
    const int64_t bytes = x->rows * x->cols * cmoe_dtype_bytes(dtype),
                  scratch = x->cols * m->ctx->threads * (int64_t)sizeof *m->rows;
    CMOEI_TRY(cmoei_alloc(m->ctx, bytes, "merged weight", (void **)&m->out, m->err));
    const cmoe_status status =
        cmoei_alloc(m->ctx, scratch, "merged weight", (void **)&m->rows, m->err);
    m->item = x;
    for (m->matrix = 0; status == CMOE_OK && m->matrix < x->matrices; m->matrix++) {
        cmoei_region(m->ctx, x->rows, make_rows, m);
        cmoei_sink_put(sink, m->out, bytes);
    }
    cmoei_free(m->ctx, m->out, bytes);
    if (status == CMOE_OK) cmoei_free(m->ctx, m->rows, scratch);
    return status;
}

static void put_cast(const merger *m, const merge_item *x, cmoei_sink *sink)
{
    enum { PART = 4096 };
    float values[PART], rounded[PART];
    const int64_t size = cmoe_dtype_bytes(x->from.dtype), n = x->from.bytes / size;
    for (int64_t i = 0; i < n; i += PART) {
        const int64_t count = CMOEI_MIN(PART, n - i);
        cmoei_load_f32(values, (const char *)x->from.data + i * size, x->from.dtype, 1, count);
        cmoei_store_f32(rounded, m->dtype, 1, values, count);
        cmoei_sink_put(sink, rounded, count * cmoe_dtype_bytes(m->dtype));
    }
}

static cmoe_status put_tensor(void *user, int64_t i, cmoei_sink *sink, cmoe_error *err)
{
    merger *m = user;
    (void)err;
    CMOEI_TRY(cmoei_checkpoint_whole(m->files, m->err));
    if (m->items[i].kind == ROWS) return put_rows(m, &m->items[i], sink);
    put_cast(m, &m->items[i], sink);
    return CMOE_OK;
}

/* ---- small files ----------------------------------------------------------------------------- */

static bool starts(const char *name, const char *start)
{
    return strncmp(name, start, strlen(start)) == 0;
}

/* What belongs to a model beside its weights. */
static bool is_copied(const char *name)
{
    static const char *const heads[] = {"tokenizer",    "chat_template", "special_tokens_map.json",
                                        "added_tokens", "vocab",         "merges.txt",
                                        "config.json",  "LICENSE",       "generation_config.json"};
    const char *dot = strrchr(name, '.');
    for (int64_t i = 0; i < CMOEI_COUNT(heads); i++)
        if (starts(name, heads[i])) return !dot || strcmp(dot, ".safetensors") != 0;
    return dot && (!strcmp(dot, ".jinja") || !strcmp(dot, ".tiktoken"));
}

/* config.json of a model whose weights have another format than before. */
static cmoe_status write_config(const merger *m, const char *text, int64_t bytes, const char *to)
{
    static const char *const keys[] = {"torch_dtype", "dtype"};
    const size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(17);
    json_t *root = json_loadb(text, (size_t)bytes, 0, NULL); /* which was read before */
    json_t *const list[] = {root, json_object_get(root, "text_config")};
    for (int32_t i = 0; i < 2; i++) {
        if (!json_is_object(list[i])) continue;
        if (m->unpacked) json_object_del(list[i], "quantization_config");
        for (int32_t k = 0; k < 2; k++)
            if (json_object_get(list[i], keys[k]))
                json_object_set_new(list[i], keys[k],
                                    json_string(m->dtype == CMOE_F32 ? "float32" : "bfloat16"));
    }
    char *out;
    const size_t n = json_dumpb(root, NULL, 0, flags);
    cmoe_status status = cmoei_alloc(m->ctx, (int64_t)n, "config.json", (void **)&out, m->err);
    if (status == CMOE_OK) {
        (void)json_dumpb(root, out, n, flags);
        status = n > 0 ? cmoei_file_write(to, out, (int64_t)n, m->err)
                       : cmoei_fail(m->err, CMOE_ERR_MEMORY, "no memory for config.json");
        cmoei_free(m->ctx, out, (int64_t)n);
    }
    json_decref(root);
    return status;
}

static cmoe_status copy_file(const merger *m, const char *from, const char *to, bool config)
{
    int fd;
    int64_t bytes;
    void *text;
    const cmoei_path shown = cmoei_path_shown(from);
    CMOEI_TRY(cmoei_file_open(AT_FDCWD, from, shown.text, "", &fd, &bytes, m->err));
    cmoe_status status = CMOE_OK;
    if (bytes > FILE_MAX)
        status = cmoei_fail(m->err, CMOE_ERR_FORMAT, "%s: has %" PRId64 " bytes, want at most %d",
                            shown.text, bytes, FILE_MAX);
    if (status == CMOE_OK) status = cmoei_alloc(m->ctx, bytes, "file", &text, m->err);
    if (status == CMOE_OK) {
        status = cmoei_file_read(fd, shown.text, text, bytes, 0, m->err);
        if (status == CMOE_OK)
            status = config && m->dtype ? write_config(m, text, bytes, to)
                                        : cmoei_file_write(to, text, bytes, m->err);
        cmoei_free(m->ctx, text, bytes);
    }
    close(fd);
    return status;
}

static cmoe_status copy_files(const merger *m, const char *model, const char *dir)
{
    char from[PATH], to[PATH];
    struct stat s;
    DIR *list = opendir(model);
    if (!list)
        return cmoei_fail(m->err, CMOE_ERR_IO, "%s: cannot be listed: %s",
                          cmoei_path_shown(model).text, cmoei_errno_text(errno).text);
    cmoe_status status = CMOE_OK;
    for (struct dirent *e; status == CMOE_OK && (e = readdir(list));) {
        if (!is_copied(e->d_name)) continue;
        if (snprintf(from, sizeof from, "%s/%s", model, e->d_name) >= PATH ||
            snprintf(to, sizeof to, "%s/%s", dir, e->d_name) >= PATH)
            status = cmoei_fail(m->err, CMOE_ERR_IO, "%.100s: the path is too long", e->d_name);
        else if (stat(from, &s) != 0 || S_ISREG(s.st_mode))
            status = copy_file(m, from, to, strcmp(e->d_name, "config.json") == 0);
    }
    closedir(list);
    return status;
}

/* ---- the directory --------------------------------------------------------------------------- */

/* Not there, or an empty directory. */
static cmoe_status check_free(const char *dir, cmoe_error *err)
{
    const cmoei_path shown = cmoei_path_shown(dir);
    DIR *list = opendir(dir);
    if (!list && errno == ENOENT) return CMOE_OK;
    if (!list)
        return cmoei_fail(err, CMOE_ERR_IO, "%s: %s, want a directory that is not there or empty",
                          shown.text, cmoei_errno_text(errno).text);
    bool empty = true;
    for (struct dirent *e; (e = readdir(list));)
        empty = empty && (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."));
    closedir(list);
    if (empty) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_IO,
                      "%s: is there already, want a directory that is not there or empty",
                      shown.text);
}

static void remove_folder(const char *dir)
{
    char path[PATH + 260];
    DIR *list = opendir(dir);
    if (!list) return;
    for (struct dirent *e; (e = readdir(list));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        (void)unlink(path);
    }
    closedir(list);
    (void)rmdir(dir);
}

static cmoe_status fill_folder(merger *m, const char *model, const char *dir)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    char file[PATH];
    CMOEI_TRY(copy_files(m, model, dir));
    if (snprintf(file, sizeof file, "%s/model.safetensors", dir) >= PATH)
        return cmoei_fail(m->err, CMOE_ERR_IO, "the path is too long");
    return cmoei_safetensors_write(file, m->views, m->count, metadata, put_tensor, m, m->err);
}

static cmoe_status write_folder(merger *m, const char *model, const char *out)
{
    char beside[PATH];
    size_t n = strlen(out);
    while (n > 1 && out[n - 1] == '/')
        n--;
    if (n == 0 || n > PATH - 64)
        return cmoei_fail(m->err, CMOE_ERR_IO, "%s: no path of a directory",
                          cmoei_path_shown(out).text);
    snprintf(beside, sizeof beside, "%.*s.%ld.part", (int)n, out, (long)getpid());
    if (mkdir(beside, 0777) != 0)
        return cmoei_fail(m->err, CMOE_ERR_IO, "%s: cannot be made: %s",
                          cmoei_path_shown(beside).text, cmoei_errno_text(errno).text);
    cmoe_status status = fill_folder(m, model, beside);
    if (status == CMOE_OK && rename(beside, out) != 0)
        status = cmoei_fail(m->err, CMOE_ERR_IO, "%s: cannot be renamed: %s",
                            cmoei_path_shown(out).text, cmoei_errno_text(errno).text);
    if (status != CMOE_OK) remove_folder(beside);
    return status;
}

static cmoe_status merge(merger *m, const char *model, const cmoe_adapter *const *adapters,
                         const float *scales, int64_t count, const char *out)
{
    CMOEI_TRY(check_free(out, m->err));
    CMOEI_TRY(cmoei_decoder_open(&m->d, m->ctx, model, m->err));
    CMOEI_TRY(cmoe_checkpoint_open(&m->files, m->ctx, model, m->err));
    CMOEI_TRY(cmoei_tensors_resolve(&m->t, m->ctx, &m->d, m->files, m->err));
    CMOEI_TRY(cmoei_folds_make(&m->folds, m->ctx, &m->d, adapters, scales, count, m->err));
    CMOEI_TRY(plan(m));
    return write_folder(m, model, out);
}

cmoe_status cmoe_model_merge(cmoe_ctx *ctx, const char *model, const cmoe_adapter *const *adapters,
                             const float *scales, int64_t count, int32_t dtype, const char *out_dir,
                             cmoe_error *err)
{
    if (!ctx || !model || !out_dir)
        return cmoei_fail(err, CMOE_ERR_ARG, "merge: %s is NULL",
                          !ctx     ? "ctx"
                          : !model ? "model"
                                   : "out_dir");
    if (dtype && dtype != CMOE_F32 && dtype != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE,
                          "dtype %s (%d) not supported, want one of: as stored (0) f32 bf16",
                          cmoe_dtype_name(dtype), dtype);
    CMOEI_TRY(cmoei_engine_check(err));
    merger m = {.ctx = ctx, .dtype = dtype, .err = err};
    const cmoe_status status = merge(&m, model, adapters, scales, count, out_dir);
    if (m.items) cmoei_free(ctx, m.items, m.items_bytes);
    if (m.views) cmoei_free(ctx, m.views, m.views_bytes);
    cmoei_folds_free(&m.folds);
    cmoei_tensors_free(&m.t, ctx);
    cmoe_checkpoint_free(m.files);
    cmoei_decoder_close(&m.d, ctx);
    return status;
}
