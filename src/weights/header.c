/* SPDX-License-Identifier: MIT
 *
 * header.c - see header.h.
 *
 * Checks, in this order: length; words of JSON and their form, tensor by tensor (format known,
 * rank, shape, size = product of shape x bits, place inside the file); names unique; data side by
 * side from the first byte behind the header to the last of the file.  Stricter than the reference
 * reader in four points: a rank above 6, control characters in names, keys that it does not know,
 * and sizes that only a zero dimension keeps below 2^63 are refused.
 *
 * Memory: at most 3 times the header (a tensor takes 50 bytes of text and 88 of table).
 */
#include "header.h"

#include <string.h>

#include "json.h"

const cmoei_stored cmoei_stored_formats[] = {
    {"BOOL", 8, 0},
    {"F4", 4, 0},
    {"F6_E2M3", 6, 0},
    {"F6_E3M2", 6, 0},
    {"U8", 8, CMOE_U8},
    {"I8", 8, CMOE_I8},
    {"F8_E5M2", 8, 0},
    {"F8_E4M3", 8, CMOE_F8E4M3},
    {"F8_E8M0", 8, CMOE_F8E8M0},
    {"F8_E4M3FNUZ", 8, 0},
    {"F8_E5M2FNUZ", 8, 0},
    {"I16", 16, 0},
    {"U16", 16, 0},
    {"F16", 16, CMOE_F16},
    {"BF16", 16, CMOE_BF16},
    {"I32", 32, CMOE_I32},
    {"U32", 32, 0},
    {"F32", 32, CMOE_F32},
    {"C64", 64, 0},
    {"F64", 64, CMOE_F64},
    {"I64", 64, CMOE_I64},
    {"U64", 64, 0},
};
static const char format_names[] =
    "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16"
    " I32 U32 F32 C64 F64 I64 U64";

const cmoei_stored *cmoei_stored_of(int32_t dtype)
{
    for (int64_t i = 0; dtype != 0 && i < CMOEI_COUNT(cmoei_stored_formats); i++) {
        if (cmoei_stored_formats[i].dtype == dtype) return &cmoei_stored_formats[i];
    }
    return NULL;
}

static int32_t format_find(const char *name, int64_t bytes)
{
    for (int32_t i = 0; i < CMOEI_COUNT(cmoei_stored_formats); i++) {
        const char *have = cmoei_stored_formats[i].name;
        if ((int64_t)strlen(have) == bytes && !memcmp(have, name, (size_t)bytes)) return i;
    }
    return -1;
}

cmoe_status cmoei_header_length(const void *first, int64_t file_bytes, const char *file,
                                int64_t *length, cmoe_error *err)
{
    if (file_bytes < 8)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          "%s: %lld bytes, want at least 8 (a safetensors file begins with the "
                          "length of its header)",
                          file, (long long)file_bytes);
    const unsigned char *p = first;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | p[i];
    if (!memcmp(p, "version ", 8))
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          "%s: begins with \"version \": a git-lfs pointer, want the file that it "
                          "stands for",
                          file);
    if (n > CMOEI_HEADER_MAX)
        return cmoei_fail(err, CMOE_ERR_FORMAT, "%s: header of %llu bytes, want at most %d", file,
                          (unsigned long long)n, CMOEI_HEADER_MAX);
    if ((int64_t)n > file_bytes - 8)
        return cmoei_fail(err, CMOE_ERR_FORMAT,
                          "%s: header of %llu bytes, but only %lld behind its length: not a "
                          "safetensors file, or cut short",
                          file, (unsigned long long)n, (long long)(file_bytes - 8));
    *length = (int64_t)n;
    return CMOE_OK;
}

/* ---- one tensor ------------------------------------------------------------------------------ */

typedef struct reader {
    cmoei_json json;
    int64_t data, file_bytes; /* where data begin and end in the file */
    int64_t count, pairs;     /* tensors and metadata seen so far */
    int64_t name_bytes;       /* of both, with their NULs */

    /* In the second pass; room for what the first has counted. */
    cmoei_entry *entries; /* NULL in the first */
    const char **keys;    /* of __metadata__ */
    char *names;
    int64_t max_count, max_pairs, max_name_bytes;
} reader;

static cmoe_status read_dtype(reader *r, cmoei_entry *e)
{
    char name[24] = "", shown[CMOEI_SHOWN + 4];
    int64_t n;
    CMOEI_TRY(cmoei_json_string(&r->json, name, sizeof name, &n));
    e->stored = n <= (int64_t)sizeof name ? format_find(name, n) : -1;
    if (e->stored >= 0) return CMOE_OK;
    return cmoei_json_fail(&r->json, "\"%s\", want one of: %s",
                           cmoei_shown(shown, name, CMOEI_MIN(n, (int64_t)sizeof name)),
                           format_names);
}

static cmoe_status read_shape(reader *r, cmoei_entry *e)
{
    cmoei_json *j = &r->json;
    e->rank = 0;
    CMOEI_TRY(cmoei_json_want(j, '[', "a list of dimensions"));
    if (cmoei_json_next(j, ']')) return CMOE_OK;
    do {
        if (e->rank == CMOE_MAX_RANK)
            return cmoei_json_fail(j, "more than %d dimensions, want at most %d", CMOE_MAX_RANK,
                                   CMOE_MAX_RANK);
        j->index = e->rank;
        CMOEI_TRY(cmoei_json_count(j, &e->dims[e->rank++]));
        j->index = -1;
    } while (cmoei_json_next(j, ','));
    return cmoei_json_want(j, ']', "end of the shape");
}

static cmoe_status read_offsets(reader *r, cmoei_entry *e)
{
    cmoei_json *j = &r->json;
    int64_t ends[2];
    CMOEI_TRY(cmoei_json_want(j, '[', "first byte and end"));
    for (int i = 0; i < 2; i++) {
        j->index = i;
        CMOEI_TRY(cmoei_json_count(j, &ends[i]));
        j->index = -1;
        CMOEI_TRY(cmoei_json_want(j, i == 0 ? ',' : ']', "two offsets"));
    }
    if (ends[1] < ends[0])
        return cmoei_json_fail(j, "[%lld, %lld], want the end not before the begin",
                               (long long)ends[0], (long long)ends[1]);
    if (ends[1] > r->file_bytes - r->data)
        return cmoei_json_fail(j, "[%lld, %lld], but the file has %lld bytes of data: cut short?",
                               (long long)ends[0], (long long)ends[1],
                               (long long)(r->file_bytes - r->data));
    e->begin = r->data + ends[0];
    e->bytes = ends[1] - ends[0];
    return CMOE_OK;
}

/* The shape in bits must be what the offsets span. */
static cmoe_status check_size(reader *r, const cmoei_entry *e)
{
    const cmoei_stored *format = &cmoei_stored_formats[e->stored];
    int64_t values = 1, bits;
    bool empty = false, fits = true;
    for (int32_t i = 0; i < e->rank; i++) { /* zeros aside, so that strides fit as well */
        if (e->dims[i] == 0)
            empty = true;
        else
            fits = fits && cmoei_mul(values, e->dims[i], &values);
    }
    if (!fits || !cmoei_mul(values, format->bits, &bits))
        return cmoei_json_fail(&r->json, "its dimensions multiply to 2^63 bits or more");
    if (empty) bits = 0;
    if (bits % 8)
        return cmoei_json_fail(&r->json, "%lld values of %s are %lld bits, want whole bytes",
                               (long long)values, format->name, (long long)bits);
    if (bits / 8 == e->bytes) return CMOE_OK;
    return cmoei_json_fail(&r->json, "data_offsets span %lld bytes, want %lld (%lld values of %s)",
                           (long long)e->bytes, (long long)(bits / 8),
                           (long long)(empty ? 0 : values), format->name);
}

static cmoe_status read_tensor(reader *r, cmoei_entry *e)
{
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    cmoei_json *j = &r->json;
    bool seen[3] = {false};
    CMOEI_TRY(cmoei_json_want(j, '{', "a tensor"));
    do {
        char key[16] = "", shown[CMOEI_SHOWN + 4];
        int64_t n;
        CMOEI_TRY(cmoei_json_string(j, key, sizeof key - 1, &n));
        const int32_t k = n < (int64_t)sizeof key ? cmoei_name_find(keys, 3, key) : -1;
        if (k < 0)
            return cmoei_json_fail(j, "key \"%s\", want one of: dtype shape data_offsets",
                                   cmoei_shown(shown, key, CMOEI_MIN(n, (int64_t)sizeof key - 1)));
        if (seen[k]) return cmoei_json_fail(j, "key \"%s\" twice", key);
        seen[k] = true;
        CMOEI_TRY(cmoei_json_want(j, ':', "between key and value"));
        j->key = keys[k];
        CMOEI_TRY(k == 0 ? read_dtype(r, e) : k == 1 ? read_shape(r, e) : read_offsets(r, e));
        j->key = NULL;
    } while (cmoei_json_next(j, ','));
    CMOEI_TRY(cmoei_json_want(j, '}', "end of a tensor"));
    for (int k = 0; k < 3; k++) {
        if (!seen[k]) return cmoei_json_fail(j, "no \"%s\"", keys[k]);
    }
    return check_size(r, e);
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* A key and its colon, kept in the second pass; `kept` is then its copy. */
static cmoe_status read_key(reader *r, const char **kept)
{
    cmoei_json *j = &r->json;
    int64_t n;
    char *out = r->names ? r->names + r->name_bytes : NULL;
    const int64_t room = r->names ? r->max_name_bytes - r->name_bytes : 0;
    CMOEI_TRY(cmoei_json_subject(j, out, room, &n));
    if (r->names) {
        if (n >= room) return CMOE_ERR_INTERNAL; /* the text has changed meanwhile */
        out[n] = 0;
        for (int64_t i = 0; i < n; i++) {
            if ((unsigned char)out[i] < 0x20 || out[i] == 0x7f)
                return cmoei_json_fail(j, "a control character in the name");
        }
        *kept = out;
    }
    r->name_bytes += n + 1;
    return CMOE_OK;
}

static cmoe_status read_metadata(reader *r)
{
    cmoei_json *j = &r->json;
    int64_t ignored;
    j->subject_bytes = -1;
    j->key = "__metadata__";
    CMOEI_TRY(cmoei_json_want(j, '{', "an object of strings"));
    if (cmoei_json_next(j, '}')) return CMOE_OK;
    do {
        const char *key = NULL;
        CMOEI_TRY(read_key(r, &key));
        j->key = "__metadata__";
        CMOEI_TRY(cmoei_json_string(j, NULL, 0, &ignored));
        if (r->pairs == CMOEI_METADATA_MAX)
            return cmoei_json_fail(j, "more than %d pairs", CMOEI_METADATA_MAX);
        if (r->keys && r->pairs < r->max_pairs) r->keys[r->pairs] = key;
        r->pairs++;
    } while (cmoei_json_next(j, ','));
    return cmoei_json_want(j, '}', "end of the metadata");
}

static bool subject_is(const cmoei_json *j, const char *word)
{
    return j->subject_bytes == (int64_t)strlen(word) &&
           !memcmp(j->subject, word, (size_t)j->subject_bytes);
}

static cmoe_status read_all(reader *r)
{
    cmoei_json *j = &r->json;
    bool metadata = false;
    if (j->bytes == 0 || j->text[0] != '{')
        return cmoei_json_fail(j, "the header's first byte must be '{'");
    j->at = 1;
    if (!cmoei_json_next(j, '}')) {
        do {
            cmoei_entry e = {0};
            const int64_t names = r->name_bytes;
            CMOEI_TRY(read_key(r, &e.name));
            if (subject_is(j, "__metadata__")) {
                if (metadata) return cmoei_json_fail(j, "twice");
                metadata = true;
                r->name_bytes = names; /* not a tensor */
                CMOEI_TRY(read_metadata(r));
                continue;
            }
            CMOEI_TRY(read_tensor(r, &e));
            if (r->entries && r->count < r->max_count) r->entries[r->count] = e;
            r->count++;
        } while (cmoei_json_next(j, ','));
        j->subject_bytes = -1;
        j->key = NULL;
        CMOEI_TRY(cmoei_json_want(j, '}', "end of the header"));
    }
    return cmoei_json_end(j, true);
}

static int by_name(const void *table, int32_t a, int32_t b)
{
    const cmoei_entry *e = table;
    return strcmp(e[a].name, e[b].name);
}

static int by_key(const void *table, int32_t a, int32_t b)
{
    const char *const *keys = table;
    return strcmp(keys[a], keys[b]);
}

static int by_place(const void *table, int32_t a, int32_t b)
{
    const cmoei_entry *x = (const cmoei_entry *)table + a, *y = (const cmoei_entry *)table + b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static void identity(int32_t *order, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        order[i] = (int32_t)i;
}

static cmoe_status check_names(const reader *r, int32_t *order, int32_t *scratch)
{
    char shown[CMOEI_SHOWN + 4];
    identity(order, r->pairs);
    cmoei_sort(order, scratch, r->pairs, by_key, r->keys);
    for (int64_t i = 1; i < r->pairs; i++) {
        const char *key = r->keys[order[i]];
        if (!strcmp(key, r->keys[order[i - 1]]))
            return cmoei_fail(r->json.err, CMOE_ERR_FORMAT, "%s: __metadata__: key \"%s\" twice",
                              r->json.file, cmoei_shown(shown, key, (int64_t)strlen(key)));
    }
    identity(order, r->count);
    cmoei_sort(order, scratch, r->count, by_name, r->entries);
    for (int64_t i = 1; i < r->count; i++) {
        const char *name = r->entries[order[i]].name;
        if (!strcmp(name, r->entries[order[i - 1]].name))
            return cmoei_fail(r->json.err, CMOE_ERR_FORMAT, "%s: tensor \"%s\" twice in the header",
                              r->json.file, cmoei_shown(shown, name, (int64_t)strlen(name)));
    }
    return CMOE_OK;
}

/* Side by side from the first byte of the data to the last of the file. */
static cmoe_status check_places(const reader *r, int32_t *order, int32_t *scratch)
{
    char a[CMOEI_SHOWN + 4], b[CMOEI_SHOWN + 4];
    identity(order, r->count);
    cmoei_sort(order, scratch, r->count, by_place, r->entries);
    int64_t end = r->data;
    const char *before = NULL;
    for (int64_t i = 0; i < r->count; i++) {
        const cmoei_entry *e = &r->entries[order[i]];
        if (e->begin != end)
            return cmoei_fail(
                r->json.err, CMOE_ERR_FORMAT,
                "%s: tensor \"%s\" begins at byte %lld of the data, want %lld, where %s%s%s: %s",
                r->json.file, cmoei_shown(a, e->name, (int64_t)strlen(e->name)),
                (long long)(e->begin - r->data), (long long)(end - r->data),
                before ? "\"" : "the data begin",
                before ? cmoei_shown(b, before, (int64_t)strlen(before)) : "",
                before ? "\" ends" : "", e->begin < end ? "they overlap" : "a hole");
        end = e->begin + e->bytes;
        before = e->name;
    }
    if (end == r->file_bytes) return CMOE_OK;
    return cmoei_fail(r->json.err, CMOE_ERR_FORMAT,
                      "%s: %lld bytes behind the last tensor, want none (its data end at byte %lld "
                      "of %lld)",
                      r->json.file, (long long)(r->file_bytes - end), (long long)end,
                      (long long)r->file_bytes);
}

/* One block: entries, keys, three lists of indices, names. */
static cmoe_status make_block(cmoei_header *h, reader *second, const reader *first, cmoe_ctx *ctx,
                              int32_t **lists)
{
    /* "__metadata__" is put behind the names for a moment. */
    const int64_t names = first->name_bytes + 16, n = CMOEI_MAX(first->count, first->pairs);
    const int64_t entry_bytes = first->count * (int64_t)sizeof(cmoei_entry);
    const int64_t key_bytes = first->pairs * (int64_t)sizeof(char *);
    const int64_t list_bytes = n * (int64_t)sizeof(int32_t);
    h->block_bytes = entry_bytes + key_bytes + 3 * list_bytes + names;
    CMOEI_TRY(cmoei_alloc(ctx, h->block_bytes, "table of tensors", &h->block, first->json.err));
    char *p = h->block;
    second->entries = h->entries = (cmoei_entry *)(void *)p;
    second->keys = (const char **)(void *)(p + entry_bytes);
    for (int i = 0; i < 3; i++)
        lists[i] = (int32_t *)(void *)(p + entry_bytes + key_bytes + i * list_bytes);
    second->names = p + entry_bytes + key_bytes + 3 * list_bytes;
    second->max_count = first->count;
    second->max_pairs = first->pairs;
    second->max_name_bytes = names;
    return CMOE_OK;
}

cmoe_status cmoei_header_read(cmoei_header *out, cmoe_ctx *ctx, const char *text, int64_t length,
                              int64_t file_bytes, const char *file, cmoe_error *err)
{
    /* Whoever comes without cmoei_header_length gets no further than that would let them. */
    if (length < 0 || length > CMOEI_HEADER_MAX || length > file_bytes - 8)
        return cmoei_fail(err, CMOE_ERR_ARG, "%s: header of %lld bytes in a file of %lld", file,
                          (long long)length, (long long)file_bytes);
    reader first = {.json = cmoei_json_open(text, length, file, "header", err),
                    .data = 8 + length,
                    .file_bytes = file_bytes};
    reader second = first;
    cmoei_header h = {0};
    int32_t *lists[3];
    CMOEI_TRY(read_all(&first));
    CMOEI_TRY(make_block(&h, &second, &first, ctx, lists));
    h.count = first.count;
    h.order = lists[0];
    cmoe_status status = read_all(&second);
    if (status == CMOE_OK) status = check_names(&second, h.order, lists[2]);
    if (status == CMOE_OK) status = check_places(&second, lists[1], lists[2]);
    if (status != CMOE_OK)
        cmoei_header_free(&h, ctx);
    else
        *out = h;
    return status;
}

void cmoei_header_free(cmoei_header *h, cmoe_ctx *ctx)
{
    cmoei_free(ctx, h->block, h->block_bytes);
    *h = (cmoei_header){0};
}
