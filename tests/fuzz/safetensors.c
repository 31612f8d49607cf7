/* SPDX-License-Identifier: MIT
 *
 * safetensors.c - any bytes as a safetensors file: the validator, then every tensor and its rows.
 *
 * What it says is compared with a second judge, written on a general JSON library with none of its
 * code: both accept the same files and see the same tensors.
 */
#include "fuzz.h"

#include <jansson.h>

#include "weights/header.h"
#include "weights/source.h"

/* ---- the second judge ------------------------------------------------------------------------ */

static bool name_is_plain(const char *name)
{
    for (; *name; name++) {
        if ((unsigned char)*name < 0x20 || *name == 0x7f) return false;
    }
    return true;
}

/* Bytes that a tensor must have, or -1. */
static int64_t judge_bytes(const json_t *shape, const json_t *dtype)
{
    __int128 values = 1;
    bool empty = false;
    int bits = 0;
    if (!json_is_array(shape) || json_array_size(shape) > 6 || !json_is_string(dtype)) return -1;
    for (int i = 0; i < 22; i++) {
        if (!strcmp(json_string_value(dtype), cmoei_stored_formats[i].name))
            bits = cmoei_stored_formats[i].bits;
    }
    if (bits == 0) return -1;
    for (size_t i = 0; i < json_array_size(shape); i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) return -1;
        if (json_integer_value(d) == 0)
            empty = true;
        else
            values *= json_integer_value(d);
        if (values > INT64_MAX) return -1;
    }
    if (values * bits > INT64_MAX) return -1;
    if (empty) return 0;
    return values * bits % 8 ? -1 : (int64_t)(values * bits / 8);
}

/* begin and end of a tensor; false: it is wrong in itself. */
static bool judge_tensor(const json_t *t, int64_t *begin, int64_t *end)
{
    const json_t *offsets = json_object_get(t, "data_offsets");
    if (!json_is_object(t) || json_object_size(t) != 3 || !json_is_array(offsets)) return false;
    if (json_array_size(offsets) != 2 || !json_is_integer(json_array_get(offsets, 0)) ||
        !json_is_integer(json_array_get(offsets, 1)))
        return false;
    *begin = json_integer_value(json_array_get(offsets, 0));
    *end = json_integer_value(json_array_get(offsets, 1));
    const int64_t want = judge_bytes(json_object_get(t, "shape"), json_object_get(t, "dtype"));
    return want >= 0 && *begin >= 0 && *end >= *begin && *end - *begin == want;
}

static bool judge_metadata(json_t *metadata)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata) || json_object_size(metadata) > CMOEI_METADATA_MAX) return false;
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value) || !name_is_plain(key)) return false;
    }
    return true;
}

/* Whether the tensors lie side by side over `data` bytes: the non-empty ones are followed from one
 * to the next, and empty ones must lie where one ends. */
static bool judge_places(json_t *all, int64_t data)
{
    const char *key;
    json_t *t;
    int64_t at = 0, begin, end, seen = 0, full = 0;
    json_object_foreach(all, key, t)
    {
        if (!strcmp(key, "__metadata__")) continue;
        if (!name_is_plain(key) || !judge_tensor(t, &begin, &end)) return false;
        full += end > begin;
    }
    for (bool found = true; found;) {
        found = false;
        json_object_foreach(all, key, t)
        {
            if (!strcmp(key, "__metadata__") || !judge_tensor(t, &begin, &end)) continue;
            if (begin == at && end > at && !found) {
                found = true;
                at = end;
                seen++;
            }
        }
    }
    if (seen != full || at != data) return false;
    json_object_foreach(all, key, t)
    {
        if (!strcmp(key, "__metadata__") || !judge_tensor(t, &begin, &end)) continue;
        bool edge = begin == 0;
        const char *other;
        json_t *u;
        int64_t b, e;
        json_object_foreach(all, other, u)
        {
            if (strcmp(other, "__metadata__") != 0 && judge_tensor(u, &b, &e) && e > b)
                edge = edge || e == begin;
        }
        if (!edge) return false;
    }
    return true;
}

/* The tree when the file is good. */
static json_t *judge(const char *text, int64_t length, int64_t data)
{
    while (length > 0 && text[length - 1] == ' ')
        length--;
    if (length < 2 || text[0] != '{' || text[length - 1] != '}') return NULL;
    if (memchr(text, 0, (size_t)length)) return NULL; /* jansson skips a NUL behind a number */
    json_t *all = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, NULL);
    json_t *metadata = json_object_get(all, "__metadata__");
    const bool good =
        json_is_object(all) && (!metadata || judge_metadata(metadata)) && judge_places(all, data);
    if (good) return all;
    json_decref(all);
    return NULL;
}

/* ---- the tensors ----------------------------------------------------------------------------- */

static void same_tensor(const cmoei_entry *e, const json_t *t, int64_t data)
{
    int64_t begin = -1, end = -1;
    FUZZ_CHECK(t && judge_tensor(t, &begin, &end));
    FUZZ_CHECK(e->begin == data + begin && e->bytes == end - begin);
    const json_t *shape = json_object_get(t, "shape");
    FUZZ_CHECK((size_t)e->rank == json_array_size(shape));
    for (int32_t i = 0; i < e->rank; i++)
        FUZZ_CHECK(e->dims[i] == json_integer_value(json_array_get(shape, (size_t)i)));
    FUZZ_CHECK(!strcmp(cmoei_stored_formats[e->stored].name,
                       json_string_value(json_object_get(t, "dtype"))));
}

/* Rows of a tensor as a matrix, with the bytes of `scale`, if any, as its scales. */
static void read_rows(const char *file, const cmoei_entry *e, const cmoei_entry *scale)
{
    const int32_t stored = cmoei_stored_formats[e->stored].dtype;
    const int32_t dtype = stored == CMOE_I8 || stored == CMOE_U8 ? CMOE_E2M1X2 : stored;
    const bool read = dtype == CMOE_F32 || dtype == CMOE_F16 || dtype == CMOE_BF16 ||
                      dtype == CMOE_F8E4M3 || dtype == CMOE_E2M1X2;
    if (!read || e->bytes == 0) return;
    const int64_t rows = e->rank > 0 ? e->dims[0] : 1;
    const int64_t values = e->bytes / cmoe_dtype_bytes(dtype), width = values / rows;
    cmoei_source s = {.data = file + e->begin,
                      .rows = rows,
                      .cols = dtype == CMOE_E2M1X2 ? 2 * width : width,
                      .row = width,
                      .col = 1,
                      .dtype = dtype};
    if (scale && scale->bytes > 0) { /* one byte of scale for blocks so large that they suffice */
        s.scale = file + scale->begin;
        s.scale_dtype = CMOE_F8E8M0;
        s.block_rows = rows;
        s.block_cols = cmoei_ceil_div(s.cols, scale->bytes);
        s.scale_col = 1;
    }
    float *row = malloc((size_t)s.cols * sizeof *row);
    for (int64_t n = 0; n < rows; n++)
        cmoei_source_row(&s, n, row);
    const cmoei_source part = cmoei_source_rows(&s, rows / 2, 2, (rows - rows / 2 + 1) / 2);
    for (int64_t n = 0; n < part.rows; n++)
        cmoei_source_row(&part, n, row);
    free(row);
    if (dtype == CMOE_E2M1X2) return;
    s.rows = width; /* transposed */
    s.cols = rows;
    s.row = 1;
    s.col = width;
    s.scale = NULL;
    row = malloc((size_t)rows * sizeof *row);
    for (int64_t n = 0; n < s.rows; n++)
        cmoei_source_row(&s, n, row);
    free(row);
}

static void walk(const cmoei_header *h, const char *file, int64_t size, int64_t data, json_t *tree)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < h->count; i++) {
        const cmoei_entry *e = &h->entries[h->order[i]];
        if (i > 0) FUZZ_CHECK(strcmp(h->entries[h->order[i - 1]].name, e->name) < 0);
        FUZZ_CHECK(e->begin >= data && e->bytes >= 0 && e->bytes <= size - e->begin);
        same_tensor(e, json_object_get(tree, e->name), data);
        read_rows(file, e, i > 0 ? &h->entries[h->order[i - 1]] : NULL);
        sum += e->bytes;
    }
    FUZZ_CHECK(sum == size - data);
    FUZZ_CHECK((size_t)h->count + (json_object_get(tree, "__metadata__") != NULL) ==
               json_object_size(tree));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cmoe_error err = {0};
    int64_t length = 0;
    char *file = fuzz_copy(data, size);
    if (cmoei_header_length(file, (int64_t)size, "input", &length, &err) == CMOE_OK) {
        cmoei_header h = {0};
        char *text = fuzz_copy(file + 8, (size_t)length);
        const int64_t left = (int64_t)size - 8 - length;
        const cmoe_status status =
            cmoei_header_read(&h, fuzz_ctx(), text, length, (int64_t)size, "input", &err);
        json_t *tree = judge(text, length, left);
        FUZZ_CHECK(status == CMOE_OK || status == CMOE_ERR_FORMAT);
        if (status == CMOE_OK) {
            FUZZ_CHECK(tree);
            walk(&h, file, (int64_t)size, 8 + length, tree);
        } else {
            FUZZ_CHECK(err.status == status && strlen(err.text) > 8);
            /* The library reads -0 as 0; here no number has a sign. */
            FUZZ_CHECK(!tree || strstr(err.text, "a negative number"));
        }
        json_decref(tree);
        cmoei_header_free(&h, fuzz_ctx());
        free(text);
    }
    free(file);
    return 0;
}

/* ---- mutation -------------------------------------------------------------------------------- */

#ifdef CMOE_FUZZING
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

/* The largest number behind a "data_offsets" of the text. */
static size_t last_end(const char *text, size_t length)
{
    size_t end = 0;
    json_t *all = json_loadb(text, length, 0, NULL), *t;
    const char *key;
    json_object_foreach(all, key, t)
    {
        const json_t *e = json_array_get(json_object_get(t, "data_offsets"), 1);
        const json_int_t n = json_integer_value(e);
        if (n > (json_int_t)end && n < 4096) end = (size_t)n;
    }
    json_decref(all);
    return end;
}

/* Blind changes nearly always break the length in front; so the header's text is changed, its
 * length written anew, and the data are made to fit more often than not. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    if (size < 10 || max_size < 64 || seed % 16 == 0) return LLVMFuzzerMutate(data, size, max_size);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | data[i];
    if (length > size - 8) length = size - 8;
    const size_t left = size - 8 - (size_t)length;
    uint8_t *text = malloc(max_size);
    FUZZ_CHECK(text);
    memcpy(text, data + 8, (size_t)length);
    const size_t now = LLVMFuzzerMutate(text, (size_t)length, max_size - 8);
    size_t rest = seed % 4 == 0 ? left : last_end((const char *)text, now);
    if (rest > max_size - 8 - now) rest = max_size - 8 - now;
    for (int i = 0; i < 8; i++)
        data[i] = (uint8_t)(now >> 8 * i);
    memcpy(data + 8, text, now);
    for (size_t i = 0; i < rest; i++)
        data[8 + now + i] = (uint8_t)(seed * (i + 1) >> 7);
    free(text);
    return 8 + now + rest;
}
#endif
