/* SPDX-License-Identifier: MIT
 *
 * index.c - see index.h.  Two passes over the text, as in header.c: check and count, then fill.
 */
#include "index.h"

#include <string.h>

#include "header.h"
#include "json.h"

typedef struct reader {
    cmoei_json json;
    int64_t count, name_bytes;

    cmoei_index_row *rows; /* NULL in the first pass */
    char *names;
    int64_t max_count, max_name_bytes;
} reader;

/* Keeps a string with its NUL; `n` bytes of it have been written behind the others. */
static cmoe_status keep(reader *r, int64_t n, const char *what, const char **kept)
{
    if (r->names) {
        char *out = r->names + r->name_bytes;
        if (n >= r->max_name_bytes - r->name_bytes) return CMOE_ERR_INTERNAL; /* text changed */
        out[n] = 0;
        for (int64_t i = 0; i < n; i++) {
            if ((unsigned char)out[i] < 0x20 || out[i] == 0x7f)
                return cmoei_json_fail(&r->json, "a control character in the name of the %s", what);
        }
        *kept = out;
    }
    r->name_bytes += n + 1;
    return CMOE_OK;
}

static char *room_of(const reader *r, int64_t *room)
{
    *room = r->names ? r->max_name_bytes - r->name_bytes : 0;
    return r->names ? r->names + r->name_bytes : NULL;
}

static cmoe_status check_shard(reader *r, const char *shard)
{
    char shown[CMOEI_SHOWN + 4];
    if (shard[0] && !strchr(shard, '/') && !strstr(shard, "..")) return CMOE_OK;
    return cmoei_json_fail(&r->json, "shard \"%s\", want the name of a file in the same folder",
                           cmoei_shown(shown, shard, (int64_t)strlen(shard)));
}

static cmoe_status read_map(reader *r)
{
    cmoei_json *j = &r->json;
    CMOEI_TRY(cmoei_json_want(j, '{', "tensors and their shards"));
    if (cmoei_json_next(j, '}')) return CMOE_OK;
    do {
        cmoei_index_row row = {0};
        int64_t n, room;
        char *out = room_of(r, &room);
        CMOEI_TRY(cmoei_json_subject(j, out, room, &n));
        CMOEI_TRY(keep(r, n, "tensor", &row.name));
        out = room_of(r, &room);
        CMOEI_TRY(cmoei_json_string(j, out, room, &n));
        CMOEI_TRY(keep(r, n, "shard", &row.shard));
        if (r->rows) {
            CMOEI_TRY(check_shard(r, row.shard));
            if (r->count < r->max_count) r->rows[r->count] = row;
        }
        r->count++;
    } while (cmoei_json_next(j, ','));
    j->subject_bytes = -1;
    return cmoei_json_want(j, '}', "end of weight_map");
}

static cmoe_status read_all(reader *r)
{
    static const char map[] = "weight_map";
    cmoei_json *j = &r->json;
    bool seen = false;
    CMOEI_TRY(cmoei_json_want(j, '{', "an index of shards"));
    if (!cmoei_json_next(j, '}')) {
        do {
            char key[16];
            int64_t n;
            CMOEI_TRY(cmoei_json_subject(j, key, sizeof key, &n));
            if (n != (int64_t)strlen(map) || memcmp(key, map, strlen(map)) != 0) {
                CMOEI_TRY(cmoei_json_skip(j));
                continue;
            }
            if (seen) return cmoei_json_fail(j, "twice");
            seen = true;
            CMOEI_TRY(read_map(r));
        } while (cmoei_json_next(j, ','));
        j->subject_bytes = -1;
        CMOEI_TRY(cmoei_json_want(j, '}', "end of the index"));
    }
    if (!seen) return cmoei_json_fail(j, "no \"weight_map\"");
    return cmoei_json_end(j, false);
}

static int by_name(const void *table, int32_t a, int32_t b)
{
    const cmoei_index_row *rows = table;
    return strcmp(rows[a].name, rows[b].name);
}

static int by_shard(const void *table, int32_t a, int32_t b)
{
    const cmoei_index_row *rows = table;
    return strcmp(rows[a].shard, rows[b].shard);
}

/* Both orders; numbers the shards. */
static cmoe_status sort_rows(cmoei_index *x, int32_t *scratch, const reader *r)
{
    char shown[CMOEI_SHOWN + 4];
    for (int64_t i = 0; i < x->count; i++)
        x->by_name[i] = (int32_t)i;
    cmoei_sort(x->by_name, scratch, x->count, by_name, x->rows);
    for (int64_t i = 1; i < x->count; i++) {
        const char *name = x->rows[x->by_name[i]].name;
        if (!strcmp(name, x->rows[x->by_name[i - 1]].name))
            return cmoei_fail(r->json.err, CMOE_ERR_FORMAT, "%s: weight_map: tensor \"%s\" twice",
                              r->json.file, cmoei_shown(shown, name, (int64_t)strlen(name)));
    }
    if (x->count > 0) memcpy(x->by_shard, x->by_name, (size_t)x->count * sizeof *x->by_name);
    cmoei_sort(x->by_shard, scratch, x->count, by_shard, x->rows);
    for (int64_t i = 0; i < x->count; i++) {
        cmoei_index_row *row = &x->rows[x->by_shard[i]];
        if (i == 0 || strcmp(row->shard, x->rows[x->by_shard[i - 1]].shard) != 0) x->files++;
        row->file = (int32_t)(x->files - 1);
    }
    return CMOE_OK;
}

cmoe_status cmoei_index_read(cmoei_index *out, cmoe_ctx *ctx, const char *text, int64_t bytes,
                             const char *file, cmoe_error *err)
{
    reader first = {.json = cmoei_json_open(text, bytes, file, "text", err)};
    if (bytes > CMOEI_INDEX_MAX)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: %lld bytes, want at most %d", file,
                          (long long)bytes, CMOEI_INDEX_MAX);
    reader second = first;
    CMOEI_TRY(read_all(&first));
    cmoei_index x = {.count = first.count};
    const int64_t row_bytes = x.count * (int64_t)sizeof *x.rows;
    const int64_t list_bytes = x.count * (int64_t)sizeof(int32_t);
    /* One byte more than the names: their end may be asked for. */
    x.block_bytes = row_bytes + 3 * list_bytes + first.name_bytes + 1;
    CMOEI_TRY(cmoei_alloc(ctx, x.block_bytes, "index of shards", &x.block, err));
    char *p = x.block;
    second.rows = x.rows = (cmoei_index_row *)(void *)p;
    x.by_shard = (int32_t *)(void *)(p + row_bytes);
    x.by_name = x.by_shard + x.count;
    second.names = p + row_bytes + 3 * list_bytes;
    second.max_count = first.count;
    second.max_name_bytes = first.name_bytes + 1;
    cmoe_status status = read_all(&second);
    if (status == CMOE_OK) status = sort_rows(&x, x.by_name + x.count, &second);
    if (status != CMOE_OK)
        cmoei_index_free(&x, ctx);
    else
        *out = x;
    return status;
}

void cmoei_index_free(cmoei_index *index, cmoe_ctx *ctx)
{
    cmoei_free(ctx, index->block, index->block_bytes);
    *index = (cmoei_index){0};
}
