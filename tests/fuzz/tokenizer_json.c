/* SPDX-License-Identifier: MIT
 *
 * tokenizer_json.c - any bytes as a tokenizer.json (and, behind a zero byte, a tokenizer_config.json).
 *
 * Refused with a text, or a tokenizer whose ids lie within its size and that gives back what it takes.
 */
#include "fuzz.h"

#include "text/tokenizer.h"

static void use(const cmoe_tokenizer *t)
{
    static const char text[] =
        "Hello  w\xc3\xb6rld 12 <s>\n\t\xe4\xbd\xa0\xe5\xa5\xbd\xf0\x9f\x98\x80"
        "aaaaaaaa\xe2\x96\x81 ab's";
    int32_t ids[512];
    int64_t n = 0, bytes = 0;
    char out[4096];
    /* A pattern may give up, replacements may make the text too long; both are said. */
    if (cmoe_tokenizer_encode(t, NULL, text, sizeof text - 1, ids, 512, &n, NULL) == CMOE_OK) {
        if (n > 512) n = 512;
        for (int64_t i = 0; i < n; i++)
            FUZZ_CHECK(ids[i] >= 0 && ids[i] < cmoe_tokenizer_size(t));
        const cmoe_status status =
            cmoe_tokenizer_decode(t, ids, n, 0, out, sizeof out, &bytes, NULL);
        FUZZ_CHECK(status == CMOE_OK || status == CMOE_ERR_RANGE);
    }
    for (int64_t i = 0; i < cmoe_tokenizer_size(t) && i < 100; i++) {
        const char *token = cmoe_tokenizer_token(t, i);
        FUZZ_CHECK(!token || cmoe_tokenizer_id(t, token) == i);
    }
    FUZZ_CHECK(cmoe_tokenizer_bos(t) >= -1 && cmoe_tokenizer_bos(t) < cmoe_tokenizer_size(t));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    const size_t json_bytes = zero ? (size_t)(zero - data) : size;
    char *json = fuzz_copy(data, json_bytes), *config = NULL;
    int64_t config_bytes = 0;
    if (zero) {
        config_bytes = (int64_t)(size - json_bytes - 1);
        config = fuzz_copy(zero + 1, (size_t)config_bytes);
    }
    cmoe_tokenizer *t = calloc(1, sizeof *t);
    FUZZ_CHECK(t);
    cmoe_error err = {0};
    *t = (cmoe_tokenizer){.ctx = fuzz_ctx(), .bos = -1, .eos = -1};
    t->pool.ctx = t->ctx;
    const cmoe_status status =
        cmoei_tokenizer_parse(t, json, (int64_t)json_bytes, config, config_bytes, &err);
    if (status == CMOE_OK)
        use(t);
    else
        FUZZ_CHECK(err.text[0] && err.status == status);
    cmoei_tokenizer_clear(t);
    free(t);
    free(config);
    free(json);
    return 0;
}
