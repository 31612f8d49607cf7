/* SPDX-License-Identifier: MIT
 *
 * kv.c - keys and values into the pages of the cache, and the checks of cache and batch.
 *
 * k [T, heads * key_dim] and v [T, heads * value_dim] become, for each page and head, keys
 * [key_dim, 64] and values [64, value_dim].  Keys are transposed so that attention finds 64 keys of
 * one dim side by side; therefore neighbouring tokens share every line of them, and work is split
 * by page and head, never by token.
 */
#include "ops/kv.h"

#include <inttypes.h>

#include "ops/ops.h"

/* ---- cache ----------------------------------------------------------------------------------- */

/* Structs without a _default: `size` says which header made them. */
static cmoe_status read_struct(void *dst, size_t dst_size, const void *src, const char *name,
                               const char *type, cmoe_error *err)
{
    size_t size;
    if (!src) return cmoei_fail(err, CMOE_ERR_ARG, "%s is NULL, want a %s", name, type);
    memcpy(&size, src, sizeof size);
    if (size < dst_size || size > 65536)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s.size = %zu, want sizeof(%s)", name, size, type);
    return cmoei_options_read(dst, dst_size, src, type, err);
}

static cmoe_status check_positive(int64_t value, const char *name, cmoe_error *err)
{
    if (value >= 1) return CMOE_OK;
    return cmoei_fail(err, CMOE_ERR_RANGE, "kv.%s = %" PRId64 ", want >= 1", name, value);
}

static cmoe_status page_bytes(const cmoe_kv *kv, int64_t *bytes, cmoe_error *err)
{
    int64_t n;
    CMOEI_TRY(check_positive(kv->heads, "heads", err));
    CMOEI_TRY(check_positive(kv->key_dim, "key_dim", err));
    CMOEI_TRY(check_positive(kv->value_dim, "value_dim", err));
    if (kv->format != CMOE_F32 && kv->format != CMOE_BF16)
        return cmoei_fail(err, CMOE_ERR_DTYPE, "kv.format = %s (%d), want one of: f32 bf16",
                          cmoe_dtype_name(kv->format), kv->format);
    if (kv->reserved)
        return cmoei_fail(err, CMOE_ERR_ARG, "kv.reserved = %d, want 0", kv->reserved);
    if (!cmoei_add(kv->key_dim, kv->value_dim, &n) || !cmoei_mul(n, kv->heads, &n) ||
        !cmoei_mul(n, CMOE_KV_PAGE * cmoe_dtype_bytes(kv->format), &n))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "kv: heads = %" PRId64 ", key_dim = %" PRId64 ", value_dim = %" PRId64
                          ": a page would exceed 2^63 - 1 bytes",
                          kv->heads, kv->key_dim, kv->value_dim);
    *bytes = n;
    return CMOE_OK;
}

cmoe_status cmoei_kv_read(cmoe_kv *out, const cmoe_kv *kv, cmoe_error *err)
{
    int64_t bytes, all;
    CMOEI_TRY(read_struct(out, sizeof *out, kv, "kv", "cmoe_kv", err));
    CMOEI_TRY(page_bytes(out, &bytes, err));
    if (out->pages < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "kv.pages = %" PRId64 ", want >= 0", out->pages);
    if (out->page_stride == 0) out->page_stride = bytes;
    if (out->page_stride < bytes || out->page_stride % CMOEI_ALIGN != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE,
                          "kv.page_stride = %" PRId64 ", want 0 or a multiple of 64 >= %" PRId64
                          " (cmoe_kv_page_bytes)",
                          out->page_stride, bytes);
    if (!cmoei_mul(out->page_stride, out->pages, &all))
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "kv: pages = %" PRId64 " of %" PRId64 " bytes exceed 2^63 - 1 bytes",
                          out->pages, out->page_stride);
    return CMOE_OK;
}

cmoe_status cmoe_kv_page_bytes(const cmoe_kv *kv, int64_t *bytes, cmoe_error *err)
{
    cmoe_kv k;
    int64_t n;
    if (!bytes) return cmoei_fail(err, CMOE_ERR_ARG, "bytes is NULL, want an int64_t");
    CMOEI_TRY(read_struct(&k, sizeof k, kv, "kv", "cmoe_kv", err));
    CMOEI_TRY(page_bytes(&k, &n, err));
    *bytes = n;
    return CMOE_OK;
}

cmoe_status cmoei_kv_check_base(const cmoe_kv *kv, cmoe_error *err)
{
    const int64_t bytes = kv->page_stride * kv->pages;
    const uintptr_t at = (uintptr_t)kv->base;
    if (bytes == 0) return CMOE_OK;
    if (!kv->base)
        return cmoei_fail(err, CMOE_ERR_ARG, "kv.base is NULL, want %" PRId64 " bytes", bytes);
    if (at % CMOEI_ALIGN != 0)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "kv.base: its address ends in %d, want a multiple of 64",
                          (int)(at % CMOEI_ALIGN));
    if ((uintptr_t)bytes > UINTPTR_MAX - at)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "kv.base: %" PRId64 " bytes reach outside the address space", bytes);
    return CMOE_OK;
}

cmoe_view_mut cmoei_kv_memory(const cmoe_kv *kv)
{
    return cmoe_view_mut_1d(kv->base, CMOE_U8, kv->page_stride * kv->pages);
}

/* ---- batch ----------------------------------------------------------------------------------- */

static cmoe_status check_sequences(const cmoe_batch *b, cmoe_error *err)
{
    int64_t end;
    if (b->first[0] != 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "batch: first[0] = %" PRId64 ", want 0",
                          b->first[0]);
    for (int64_t i = 0; i < b->sequences; i++) {
        if (b->first[i + 1] < b->first[i])
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "batch: first[%" PRId64 "] = %" PRId64 ", want >= %" PRId64
                              " (the one before it)",
                              i + 1, b->first[i + 1], b->first[i]);
        if (b->start[i] < 0)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "batch: start[%" PRId64 "] = %" PRId64 ", want >= 0", i, b->start[i]);
        const int64_t n = cmoei_batch_count(b, i);
        if (n == 0) continue;
        if (!cmoei_add(b->start[i], n, &end) || cmoei_ceil_div(end, CMOE_KV_PAGE) > b->page_columns)
            return cmoei_fail(err, CMOE_ERR_SHAPE,
                              "batch: sequence %" PRId64 " has %" PRId64
                              " tokens from position %" PRId64 ", want them within %" PRId64
                              " pages of %d (page_columns)",
                              i, n, b->start[i], b->page_columns, CMOE_KV_PAGE);
    }
    return CMOE_OK;
}

void cmoe_kv_default(cmoe_kv *kv, size_t size)
{
    const cmoe_kv d = {.size = sizeof d};
    cmoei_options_write(kv, size, &d, sizeof d);
}

void cmoe_batch_default(cmoe_batch *batch, size_t size)
{
    const cmoe_batch d = {.size = sizeof d};
    cmoei_options_write(batch, size, &d, sizeof d);
}

cmoe_status cmoei_batch_read(cmoe_batch *out, const cmoe_batch *batch, cmoe_error *err)
{
    int64_t n;
    CMOEI_TRY(read_struct(out, sizeof *out, batch, "batch", "cmoe_batch", err));
    if (out->sequences < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "batch.sequences = %" PRId64 ", want >= 0",
                          out->sequences);
    if (out->page_columns < 0)
        return cmoei_fail(err, CMOE_ERR_RANGE, "batch.page_columns = %" PRId64 ", want >= 0",
                          out->page_columns);
    if (out->sequences == 0) return CMOE_OK;
    if (!cmoei_mul(out->sequences, out->page_columns, &n) ||
        !cmoei_mul(n, (int64_t)sizeof *out->pages, &n) || out->sequences > INT64_MAX / 16)
        return cmoei_fail(err, CMOE_ERR_SHAPE,
                          "batch: sequences = %" PRId64 ", page_columns = %" PRId64
                          ": tables would exceed 2^63 - 1 bytes",
                          out->sequences, out->page_columns);
    if (!out->first || !out->start)
        return cmoei_fail(err, CMOE_ERR_ARG, "batch.%s is NULL, want %" PRId64 " numbers",
                          out->first ? "start" : "first", out->sequences + !out->first);
    return check_sequences(out, err);
}

cmoe_status cmoei_batch_check_pages(const cmoe_batch *b, const cmoe_kv *kv, int64_t i, int64_t page,
                                    int64_t page_end, cmoe_error *err)
{
    if (page < page_end && !b->pages)
        return cmoei_fail(err, CMOE_ERR_ARG,
                          "batch.pages is NULL, want pages [%" PRId64 ", %" PRId64 "]",
                          b->sequences, b->page_columns);
    for (; page < page_end; page++) {
        const int32_t id = b->pages[i * b->page_columns + page];
        if (id < 0 || id >= kv->pages)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "batch: page %" PRId64 " of sequence %" PRId64
                              " = %d, want 0 <= page < %" PRId64 " (kv.pages)",
                              page, i, id, kv->pages);
    }
    return CMOE_OK;
}

cmoe_status cmoei_batch_check_apart(const cmoe_batch *b, const cmoe_view_mut *out, const char *name,
                                    cmoe_error *err)
{
    if (b->sequences == 0) return CMOE_OK;
    const cmoe_view first = cmoe_view_1d(b->first, CMOE_I64, b->sequences + 1);
    const cmoe_view start = cmoe_view_1d(b->start, CMOE_I64, b->sequences);
    const cmoe_view pages = cmoe_view_2d(b->pages, CMOE_I32, b->sequences, b->page_columns);
    CMOEI_TRY(cmoei_check_apart(out, name, &first, "batch.first", err));
    CMOEI_TRY(cmoei_check_apart(out, name, &start, "batch.start", err));
    return cmoei_check_apart(out, name, &pages, "batch.pages", err);
}

/* ---- write ----------------------------------------------------------------------------------- */

/* The pages of sequence i that get tokens: entries [*page, *page_end) of its row. */
static void written(const cmoe_batch *b, int64_t i, int64_t *page, int64_t *page_end)
{
    *page = b->start[i] / CMOE_KV_PAGE;
    *page_end =
        cmoei_batch_count(b, i) ? cmoei_ceil_div(cmoei_batch_end(b, i), CMOE_KV_PAGE) : *page;
}

/* Two writers of one page would race.  Ids that differ in their low bits, as nearly all do, are
 * told apart by one bit each; where that cannot tell, all pages before are looked at. */
enum { MARKS = 1 << 16 };

static cmoe_status check_seen_before(const cmoe_batch *b, int64_t i, int64_t page, cmoe_error *err)
{
    const int32_t id = b->pages[i * b->page_columns + page];
    for (int64_t other = 0; other <= i; other++) {
        int64_t p, end;
        written(b, other, &p, &end);
        for (; p < (other == i ? page : end); p++) {
            if (b->pages[other * b->page_columns + p] == id)
                return cmoei_fail(err, CMOE_ERR_RANGE,
                                  "batch: page %" PRId64 " of sequence %" PRId64
                                  " = %d, as is page %" PRId64 " of sequence %" PRId64
                                  "; want pages that are written to be different",
                                  page, i, id, p, other);
        }
    }
    return CMOE_OK;
}

cmoe_status cmoei_batch_check_written(const cmoe_batch *b, const cmoe_kv *kv, cmoe_error *err)
{
    uint64_t mark[MARKS / 64] = {0};
    for (int64_t i = 0; i < b->sequences; i++) {
        int64_t p, end;
        written(b, i, &p, &end);
        CMOEI_TRY(cmoei_batch_check_pages(b, kv, i, p, end, err));
        for (; p < end; p++) {
            const uint32_t id = (uint32_t)b->pages[i * b->page_columns + p] % MARKS;
            const uint64_t bit = (uint64_t)1 << id % 64;
            if (mark[id / 64] & bit) CMOEI_TRY(check_seen_before(b, i, p, err));
            mark[id / 64] |= bit;
        }
    }
    return CMOE_OK;
}

typedef struct job {
    cmoe_kv kv;
    cmoe_batch batch;
    cmoei_plane k, v;
    int64_t pages; /* that get tokens, of all sequences */
} job;

static void put_key(const job *j, char *keys, int64_t slot, int64_t token, int64_t head)
{
    float x[CMOEI_BLOCK];
    const int64_t dims = j->kv.key_dim, bytes = cmoe_dtype_bytes(j->kv.format);
    for (int64_t d = 0; d < dims; d += CMOEI_BLOCK) {
        const int64_t n = CMOEI_MIN(dims - d, CMOEI_BLOCK);
        char *to = keys + (d * CMOE_KV_PAGE + slot) * bytes;
        cmoei_block_load(x, &j->k, token, head * dims + d, n);
        cmoei_store_f32(to, j->kv.format, CMOE_KV_PAGE, x, n);
    }
}

static void put_value(const job *j, char *values, int64_t slot, int64_t token, int64_t head)
{
    float x[CMOEI_BLOCK];
    const int64_t dims = j->kv.value_dim;
    const cmoei_plane to = {.data = values,
                            .step = dims * cmoe_dtype_bytes(j->kv.format),
                            .col = 1,
                            .dtype = j->kv.format};
    for (int64_t d = 0; d < dims; d += CMOEI_BLOCK) {
        const int64_t n = CMOEI_MIN(dims - d, CMOEI_BLOCK);
        cmoei_block_load(x, &j->v, token, head * dims + d, n);
        cmoei_block_store(&to, slot, d, x, n);
    }
}

/* The tokens of sequence i that lie in its page p, one head. */
static void put_page(const job *j, int64_t i, int64_t p, int64_t head)
{
    const cmoe_batch *b = &j->batch;
    char *page = (char *)j->kv.base + b->pages[i * b->page_columns + p] * j->kv.page_stride;
    const int64_t from = CMOEI_MAX(b->start[i], p * CMOE_KV_PAGE);
    const int64_t to = CMOEI_MIN(cmoei_batch_end(b, i), (p + 1) * CMOE_KV_PAGE);
    for (int64_t at = from; at < to; at++) {
        const int64_t token = b->first[i] + at - b->start[i], slot = at - p * CMOE_KV_PAGE;
        put_key(j, page + cmoei_kv_keys_at(&j->kv, head), slot, token, head);
        put_value(j, page + cmoei_kv_values_at(&j->kv, head), slot, token, head);
    }
}

static void write_task(void *arg, cmoei_team *team, int32_t index, int32_t count)
{
    const job *j = arg;
    int64_t item, end, before = 0;
    (void)team;
    cmoei_split(j->pages * j->kv.heads, index, count, &item, &end);
    for (int64_t i = 0; i < j->batch.sequences && item < end; i++) {
        int64_t page, page_end;
        written(&j->batch, i, &page, &page_end);
        const int64_t items = (page_end - page) * j->kv.heads;
        for (; item < CMOEI_MIN(end, before + items); item++)
            put_page(j, i, page + (item - before) / j->kv.heads, (item - before) % j->kv.heads);
        before += items;
    }
}

enum { TASK_ELEMENTS = 1 << 14 }; /* keys and values that are worth a thread: about 10 us */

static void write_all(cmoe_ctx *ctx, job *j)
{
    for (int64_t i = 0; i < j->batch.sequences; i++) {
        int64_t page, page_end;
        written(&j->batch, i, &page, &page_end);
        j->pages += page_end - page;
    }
    const double row = (double)j->kv.heads * (double)(j->kv.key_dim + j->kv.value_dim);
    const double tasks = (double)cmoei_batch_tokens(&j->batch) * row / TASK_ELEMENTS;
    const int64_t most = (int64_t)CMOEI_MIN(tasks, (double)ctx->threads);
    cmoei_region(ctx, CMOEI_MIN(most, j->pages * j->kv.heads), write_task, j);
}

cmoe_status cmoe_kv_write(cmoe_stream *s, const cmoe_kv *kv, const cmoe_batch *batch, cmoe_view k,
                          cmoe_view v, cmoe_error *err)
{
    job j = {0};
    CMOEI_TRY(cmoei_check_stream(s, err));
    CMOEI_TRY(cmoei_kv_read(&j.kv, kv, err));
    CMOEI_TRY(cmoei_kv_check_base(&j.kv, err));
    CMOEI_TRY(cmoei_batch_read(&j.batch, batch, err));
    const int64_t tokens = cmoei_batch_tokens(&j.batch);
    CMOEI_TRY(cmoei_check_matrix(&k, "k", tokens, j.kv.heads * j.kv.key_dim,
                                 "kv.heads * kv.key_dim", err));
    CMOEI_TRY(cmoei_check_matrix(&v, "v", tokens, j.kv.heads * j.kv.value_dim,
                                 "kv.heads * kv.value_dim", err));
    CMOEI_TRY(cmoei_batch_check_written(&j.batch, &j.kv, err));
    const cmoe_view_mut memory = cmoei_kv_memory(&j.kv);
    CMOEI_TRY(cmoei_check_apart(&memory, "kv.base", &k, "k", err));
    CMOEI_TRY(cmoei_check_apart(&memory, "kv.base", &v, "v", err));
    CMOEI_TRY(cmoei_batch_check_apart(&j.batch, &memory, "kv.base", err));
    if (tokens == 0) return CMOE_OK;
    j.k = cmoei_plane_of(&k);
    j.v = cmoei_plane_of(&v);
    write_all(s->ctx, &j);
    return CMOE_OK;
}
