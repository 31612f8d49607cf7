/* SPDX-License-Identifier: MIT
 *
 * pre_normalize.c - the normalizers of a tokenizer, one behind the other.
 */
#include <string.h>

#include "tokenizer.h"

cmoe_status cmoei_replace(cmoei_buffer *out, const char *s, int64_t bytes, cmoei_text from,
                          cmoei_text to, int64_t most, cmoe_error *err)
{
    int64_t done = 0;
    const int64_t before = out->bytes;
    for (int64_t at = 0; from.bytes && at + from.bytes <= bytes;) {
        const char *hit = memmem(s + at, (size_t)(bytes - at), from.s, (size_t)from.bytes);
        if (!hit) break;
        at = hit - s;
        CMOEI_TRY(cmoei_buffer_add(out, s + done, at - done, err));
        CMOEI_TRY(cmoei_buffer_add(out, to.s, to.bytes, err));
        done = at += from.bytes;
        if (out->bytes - before > most)
            return cmoei_fail(err, CMOE_ERR_RANGE,
                              "Replace: more than %lld bytes out of a text of %lld",
                              (long long)most, (long long)bytes);
    }
    return cmoei_buffer_add(out, s + done, bytes - done, err);
}

static cmoei_text strip(cmoei_text s, bool left, bool right)
{
    int32_t length;
    while (left && s.bytes && cmoei_unicode_is_space(cmoei_utf8_get(s.s, &length))) {
        s.s += length;
        s.bytes -= length;
    }
    while (right && s.bytes) {
        const int64_t before = cmoei_utf8_before(s.s, s.bytes);
        if (!cmoei_unicode_is_space(cmoei_utf8_get(s.s + before, &length))) break;
        s.bytes = before;
    }
    return s;
}

cmoe_status cmoei_normalizers_run(const cmoe_tokenizer *t, cmoei_buffer work[2], cmoei_text *s,
                                  cmoe_error *err)
{
    const int64_t most = CMOEI_NORMAL_MORE + CMOEI_NORMAL_TIMES * s->bytes;
    for (int32_t i = 0; i < t->normalizers; i++) {
        const cmoei_normalizer *n = &t->normalizer[i];
        /* The text may lie in the one buffer; the result goes to the other. */
        cmoei_buffer *out = &work[s->s == work[0].data];
        if (!s->bytes) return CMOE_OK;
        if (n->kind == CMOEI_NORMALIZER_STRIP) {
            const cmoei_text stripped = strip(*s, n->left, n->right);
            if (stripped.s == s->s) {
                *s = stripped;
                continue;
            }
            out->bytes = 0;
            CMOEI_TRY(cmoei_buffer_add(out, stripped.s, stripped.bytes, err));
        } else if (n->kind == CMOEI_NORMALIZER_FORM) {
            out->bytes = 0;
            CMOEI_TRY(cmoei_normalize(out, s->s, s->bytes, n->form, err));
        } else if (n->kind == CMOEI_NORMALIZER_PREPEND) {
            out->bytes = 0;
            CMOEI_TRY(cmoei_buffer_add(out, n->to.s, n->to.bytes, err));
            CMOEI_TRY(cmoei_buffer_add(out, s->s, s->bytes, err));
        } else {
            out->bytes = 0;
            CMOEI_TRY(cmoei_replace(out, s->s, s->bytes, n->from, n->to, most, err));
        }
        *s = (cmoei_text){out->data, out->bytes};
    }
    return CMOE_OK;
}
