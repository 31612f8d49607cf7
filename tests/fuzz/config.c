/* SPDX-License-Identifier: MIT
 *
 * config.c - any bytes as config.json: a decoder whose sizes can be relied on, or an error.
 */
#include "fuzz.h"

#include "models/decoder.h"

/* Every tensor of an accepted decoder has a shape whose bytes fit. */
static void check(const cmoei_decoder *d)
{
    for (int64_t layer = -1; layer < d->layers; layer++) {
        for (int role = 0; role < CMOEI_ROLES; role++) {
            int64_t dims[2], elements, bytes;
            if (!cmoei_role_shape(d, layer, (cmoei_role)role, dims)) continue;
            FUZZ_CHECK(dims[0] > 0 && dims[1] > 0);
            FUZZ_CHECK(cmoei_mul(dims[0], dims[1], &elements) && cmoei_mul(elements, 4, &bytes));
        }
        if (layer < 0) continue;
        const cmoei_layer_shape *l = &d->layer[layer];
        FUZZ_CHECK(l->topk <= l->experts && (l->experts == 0) == (l->topk == 0));
        FUZZ_CHECK(l->window >= 0 && l->shared_inter >= 0);
    }
    FUZZ_CHECK(d->rope.dim >= 2 && d->rope.dim <= d->head_dim && d->rope.dim % 2 == 0);
    FUZZ_CHECK(d->heads % d->kv_heads == 0 && d->mask_token < d->vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cmoei_decoder d;
    cmoe_error err = {0};
    char *text = fuzz_copy(data, size);
    const cmoe_status status =
        cmoei_decoder_parse(&d, fuzz_ctx(), text, (int64_t)size, "input", &err);
    if (status == CMOE_OK) {
        check(&d);
        cmoei_decoder_close(&d, fuzz_ctx());
    } else {
        FUZZ_CHECK(status == CMOE_ERR_FORMAT || status == CMOE_ERR_UNSUPPORTED);
        FUZZ_CHECK(err.status == status && strlen(err.text) > 8);
    }
    free(text);
    return 0;
}
