/* SPDX-License-Identifier: MIT
 *
 * index.c - any bytes as a model.safetensors.index.json, compared with a general JSON library.
 *
 * What that accepts as an index must be accepted.  The reverse does not hold: of values that nobody
 * uses it wants more (numbers that fit, no key twice).
 */
#include "fuzz.h"

#include <jansson.h>

#include "weights/index.h"
#include "weights/json.h"

static bool plain(const char *name)
{
    for (; *name; name++) {
        if ((unsigned char)*name < 0x20 || *name == 0x7f) return false;
    }
    return true;
}

static bool shard_is_good(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && s[0] && plain(s) && !strchr(s, '/') && !strstr(s, "..");
}

static bool judge(json_t *all)
{
    json_t *map = json_object_get(all, "weight_map"), *value;
    const char *key;
    if (!json_is_object(map)) return false;
    json_object_foreach(map, key, value)
    {
        if (!plain(key) || !shard_is_good(value)) return false;
    }
    return true;
}

static void walk(const cmoei_index *x)
{
    int32_t file = -1;
    for (int64_t i = 0; i < x->count; i++) {
        const cmoei_index_row *row = &x->rows[x->by_name[i]];
        if (i > 0) FUZZ_CHECK(strcmp(x->rows[x->by_name[i - 1]].name, row->name) < 0);
        FUZZ_CHECK(row->shard[0] && !strchr(row->shard, '/') && !strstr(row->shard, ".."));
        FUZZ_CHECK(row->file >= 0 && row->file < x->files);
        FUZZ_CHECK(cmoei_utf8(row->name, (int64_t)strlen(row->name)));
        row = &x->rows[x->by_shard[i]];
        FUZZ_CHECK(row->file == file || row->file == file + 1);
        file = row->file;
    }
    FUZZ_CHECK(file + 1 == x->files);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cmoe_error err = {0};
    cmoei_index x = {0};
    char *text = fuzz_copy(data, size);
    const cmoe_status status = cmoei_index_read(&x, fuzz_ctx(), text, (int64_t)size, "input", &err);
    json_t *all = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    FUZZ_CHECK(status == CMOE_OK || status == CMOE_ERR_FORMAT);
    if (status == CMOE_OK) {
        walk(&x);
        if (all) {
            json_t *map = json_object_get(all, "weight_map");
            FUZZ_CHECK(json_is_object(map) && json_object_size(map) == (size_t)x.count);
            for (int64_t i = 0; i < x.count; i++) {
                const char *shard = json_string_value(json_object_get(map, x.rows[i].name));
                FUZZ_CHECK(shard && !strcmp(shard, x.rows[i].shard));
            }
        }
    } else {
        FUZZ_CHECK(err.status == status && strlen(err.text) > 8);
        /* jansson skips a NUL behind a number. */
        FUZZ_CHECK(!all || !judge(all) || memchr(text, 0, size) || strstr(err.text, "levels deep"));
    }
    json_decref(all);
    cmoei_index_free(&x, fuzz_ctx());
    free(text);
    return 0;
}
