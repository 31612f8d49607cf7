/* SPDX-License-Identifier: MIT
 *
 * template.c - any bytes as a template, rendered with a small conversation under tight limits.
 *
 * Bytes behind the first zero, if there is one, are the variables instead.
 */
#include "fuzz.h"

#include "cmoe/text.h"

static const char conversation[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be "
    "terse.\"},{\"role\":\"user\",\"content\":\"h\\u00e9 "
    "\\u4f60\"},{\"role\":\"assistant\",\"content\":\"<think>\\nx</"
    "think>y\",\"tool_calls\":[{\"function\":{\"name\":"
    "\"f\",\"arguments\":{\"a\":[1,2.5,null,true]}}}]}],\"tools\":null,\"add_generation_prompt\":"
    "true,"
    "\"bos_token\":\"<s>\",\"n\":7,\"f\":0.1,\"items\":{\"k\":\"v\"}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    const size_t bytes = zero ? (size_t)(zero - data) : size;
    char *source = fuzz_copy(data, bytes);
    char *variables = zero ? fuzz_copy(zero + 1, size - bytes - 1)
                           : fuzz_copy(conversation, sizeof conversation - 1);
    const int64_t variables_bytes =
        zero ? (int64_t)(size - bytes - 1) : (int64_t)sizeof conversation - 1;
    cmoe_template *t = NULL;
    cmoe_error err = {0};
    cmoe_status status = cmoe_template_parse(&t, fuzz_ctx(), source, (int64_t)bytes, "input", &err);
    FUZZ_CHECK(status == CMOE_OK || status == CMOE_ERR_FORMAT);
    if (status == CMOE_OK) {
        cmoe_render_options o;
        cmoe_render_options_default(&o, sizeof o);
        o.steps = 20000;
        o.output = 1 << 16;
        char *text[2] = {NULL, NULL};
        int64_t length[2] = {0, 0};
        for (int i = 0; i < 2; i++) /* twice the same */
            status =
                cmoe_template_render(t, &o, variables, variables_bytes, &text[i], &length[i], &err);
        FUZZ_CHECK(status == CMOE_OK || status == CMOE_ERR_FORMAT);
        FUZZ_CHECK((status == CMOE_OK) == (text[0] != NULL) && !text[0] == !text[1]);
        FUZZ_CHECK(length[0] <= o.output && length[0] == length[1]);
        if (text[0]) FUZZ_CHECK(!memcmp(text[0], text[1], (size_t)length[0]));
        for (int i = 0; i < 2; i++)
            cmoe_text_free(fuzz_ctx(), text[i], length[i]);
    }
    if (status != CMOE_OK)
        FUZZ_CHECK(strlen(err.text) > 8 && !strncmp(err.text, "template input, line ", 21));
    cmoe_template_free(t);
    free(source);
    free(variables);
    return 0;
}
