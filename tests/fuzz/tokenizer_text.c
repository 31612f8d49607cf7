/* SPDX-License-Identifier: MIT
 *
 * tokenizer_text.c - any bytes as text, for a tokenizer chosen by the first byte.
 *
 * Text that is no UTF-8 is refused at the first bad byte.  Other text has the same ids whatever the
 * capacity, ids within range, and decodes to the same bytes at once and streamed, which are UTF-8.
 */
#include "fuzz.h"

#include "cmoe/text.h"

#ifndef FUZZ_TOKENIZERS
#error "FUZZ_TOKENIZERS is the folder of the tokenizers"
#endif

static const char *const families[] = {"deepseek_v2",          "deepseek_v3", "mixtral_spm",
                                       "o200k_gptoss_minimax", "qwen2",       "bailing_llada2",
                                       "gpt2_olmoe",           "glm4_llama3"};
enum { FAMILIES = sizeof families / sizeof families[0] };

static const cmoe_tokenizer *tokenizer(unsigned i)
{
    static cmoe_tokenizer *all[FAMILIES];
    if (!all[i]) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", FUZZ_TOKENIZERS, families[i]);
        FUZZ_CHECK(cmoe_tokenizer_open(&all[i], fuzz_ctx(), path, NULL) == CMOE_OK);
    }
    return all[i];
}

static void check_decode(const cmoe_tokenizer *t, const int32_t *ids, int64_t count)
{
    int64_t bytes = -1, at = 0, n;
    const char *part;
    FUZZ_CHECK(cmoe_tokenizer_decode(t, ids, count, 0, NULL, 0, &bytes, NULL) == CMOE_OK);
    char *text = fuzz_copy("", 0);
    text = realloc(text, (size_t)bytes + 1);
    FUZZ_CHECK(text);
    FUZZ_CHECK(cmoe_tokenizer_decode(t, ids, count, 0, text, bytes, &bytes, NULL) == CMOE_OK);
    cmoe_detokenizer *d = NULL;
    FUZZ_CHECK(cmoe_detokenizer_create(&d, t, 0, NULL) == CMOE_OK);
    for (int64_t i = 0; i <= count; i++) {
        FUZZ_CHECK((i < count ? cmoe_detokenizer_push(d, ids[i], &part, &n, NULL)
                              : cmoe_detokenizer_finish(d, &part, &n, NULL)) == CMOE_OK);
        FUZZ_CHECK(at + n <= bytes && (n == 0 || memcmp(text + at, part, (size_t)n) == 0));
        at += n;
    }
    FUZZ_CHECK(at == bytes);
    cmoe_detokenizer_free(d);
    /* What was decoded is text again. */
    FUZZ_CHECK(cmoe_tokenizer_encode(t, NULL, text, bytes, NULL, 0, &n, NULL) == CMOE_OK);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    const cmoe_tokenizer *t = tokenizer(data[0] % FAMILIES);
    cmoe_encode_options o;
    cmoe_encode_options_default(&o, sizeof o);
    o.parse_special = data[0] >> 7;
    o.add_special = data[0] >> 6 & 1;
    char *text = fuzz_copy(data + 1, size - 1);
    int64_t count = -1, again = -1;
    const cmoe_status status =
        cmoe_tokenizer_encode(t, &o, text, (int64_t)size - 1, NULL, 0, &count, NULL);
    FUZZ_CHECK(status == CMOE_OK || status == CMOE_ERR_FORMAT);
    if (status == CMOE_OK) {
        int32_t *ids = malloc((size_t)count * 4 + 4);
        FUZZ_CHECK(ids);
        FUZZ_CHECK(cmoe_tokenizer_encode(t, &o, text, (int64_t)size - 1, ids, count, &again,
                                         NULL) == CMOE_OK);
        FUZZ_CHECK(again == count);
        for (int64_t i = 0; i < count; i++)
            FUZZ_CHECK(ids[i] >= 0 && ids[i] < cmoe_tokenizer_size(t));
        check_decode(t, ids, count);
        free(ids);
    }
    free(text);
    return 0;
}
